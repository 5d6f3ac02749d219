// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title A token as tests see it: an ERC-20 that may turn strange and be made orderly again
/// @notice Asks for no approvals. Keeps its own books of what came to and went from one watched account,
/// so that tests need not believe that account's.
abstract contract Model {
    address public watched;
    /// @notice Moved to the watched account, and from it, by amount asked for.
    uint256 public came;
    uint256 public went;
    /// @notice Of `went`, by who was to get it.
    mapping(address to => uint256) public wentTo;
    /// @notice What the watched balance changed by beyond `came - went`.
    int256 public drift;
    /// @notice Whether it does now what an ordinary token does.
    bool public orderly = true;

    mapping(address account => uint256) internal books;

    function watch(address account) external {
        watched = account;
    }

    function mint(address to, uint256 amount) external virtual {
        books[to] += amount;
    }

    function balanceOf(address account) public view virtual returns (uint256) {
        return books[account];
    }

    /// @notice Base units that tests use at a time.
    function amountMax() external pure virtual returns (uint256) {
        return 1e12;
    }

    function transfer(address to, uint256 amount) external virtual returns (bool) {
        return _transfer(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external virtual returns (bool) {
        return _transfer(from, to, amount);
    }

    /// @notice Turns strange, in a way that depends on `seed`.
    function disturb(uint256 seed) external {
        orderly = false;
        uint256 before = balanceOf(watched);
        _disturb(seed);
        drift += int256(balanceOf(watched)) - int256(before);
    }

    /// @notice Is an ordinary token again; balances stay as they are.
    function calm() external {
        orderly = true;
        uint256 before = balanceOf(watched);
        _calm();
        drift += int256(balanceOf(watched)) - int256(before);
    }

    function _transfer(address from, address to, uint256 amount) internal returns (bool) {
        uint256 before = balanceOf(watched);
        _move(from, to, amount);
        int256 change = int256(balanceOf(watched)) - int256(before);
        if (to == watched && from != watched) {
            came += amount;
            drift += change - int256(amount);
        } else if (from == watched && to != watched) {
            went += amount;
            wentTo[to] += amount;
            drift += change + int256(amount);
        }
        return true;
    }

    function _move(address from, address to, uint256 amount) internal virtual {
        books[from] -= amount;
        books[to] += amount;
    }

    function _disturb(uint256) internal virtual {}
    function _calm() internal virtual {}
}

contract Plain is Model {}

/// @notice Delivers less than was sent: by 1 to 100 %.
contract FeeOnTransfer is Model {
    uint256 private percent;

    function _move(address from, address to, uint256 amount) internal override {
        books[from] -= amount;
        books[to] += amount - amount * percent / 100;
    }

    function _disturb(uint256 seed) internal override {
        percent = 1 + seed % 100;
    }

    function _calm() internal override {
        percent = 0;
    }
}

/// @notice Takes a fee from the sender on top of what is sent.
contract FeeOnTop is Model {
    uint256 private percent;

    function _move(address from, address to, uint256 amount) internal override {
        books[from] -= amount + amount * percent / 100;
        books[to] += amount;
    }

    function _disturb(uint256 seed) internal override {
        percent = 1 + seed % 20;
    }

    function _calm() internal override {
        percent = 0;
    }
}

/// @notice Balances grow and shrink by themselves; transfers are rounded.
contract Rebasing is Model {
    uint256 private index = 1e18;

    function balanceOf(address account) public view override returns (uint256) {
        return books[account] * index / 1e18;
    }

    function _move(address from, address to, uint256 amount) internal override {
        uint256 shares = amount * 1e18 / index;
        books[from] -= shares;
        books[to] += shares;
    }

    function _disturb(uint256 seed) internal override {
        index = index * (50 + seed % 90) / 100 + seed % 7;
        // Neither to nothing nor beyond all numbers in a long run.
        if (index < 1e12 || index > 1e24) index = 1e18;
    }

    /// @dev It stays where it is: what it took does not come back.
    function _calm() internal override {
        orderly = index == 1e18;
    }
}

/// @notice Can be stopped.
contract Pausing is Model {
    bool private paused;

    function _move(address from, address to, uint256 amount) internal override {
        require(!paused, "paused");
        super._move(from, to, amount);
    }

    function _disturb(uint256) internal override {
        paused = true;
    }

    function _calm() internal override {
        paused = false;
    }
}

/// @notice Calls somebody before and after it moves, as ERC-777 does.
contract Hooked is Model {
    address private target;
    bytes private data;
    /// @notice Calls that were made, and that succeeded.
    uint256 public calls;
    uint256 public callsOk;

    /// @notice Whom to call, and with what.
    function hook(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function _move(address from, address to, uint256 amount) internal override {
        _call();
        super._move(from, to, amount);
        _call();
    }

    function _call() private {
        if (target == address(0)) return;
        (bool ok,) = target.call(data);
        calls += 1;
        if (ok) callsOk += 1;
    }

    function _calm() internal override {
        target = address(0);
    }
}

/// @notice Returns nothing where ERC-20 returns a bool.
contract ReturnsNothing is Model {
    function transfer(address to, uint256 amount) external override returns (bool) {
        _transfer(msg.sender, to, amount);
        assembly {
            return(0, 0)
        }
    }

    function transferFrom(address from, address to, uint256 amount) external override returns (bool) {
        _transfer(from, to, amount);
        assembly {
            return(0, 0)
        }
    }
}

/// @notice Returns false, and moves nothing, where others revert.
contract ReturnsFalse is Model {
    bool private refuses;

    function transfer(address to, uint256 amount) external override returns (bool) {
        return !refuses && balanceOf(msg.sender) >= amount && _transfer(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external override returns (bool) {
        return !refuses && balanceOf(from) >= amount && _transfer(from, to, amount);
    }

    function _disturb(uint256) internal override {
        refuses = true;
    }

    function _calm() internal override {
        refuses = false;
    }
}

/// @notice Freezes single accounts.
contract Blocklisting is Model {
    uint256 private constant KEPT = 8;
    address private blocked;

    /// @notice Who is frozen next.
    address[] public candidates;

    function nominate(address account) external {
        if (candidates.length < KEPT) candidates.push(account);
    }

    function _move(address from, address to, uint256 amount) internal override {
        require(from != blocked && to != blocked, "blocked");
        super._move(from, to, amount);
    }

    function _disturb(uint256 seed) internal override {
        blocked = candidates.length == 0 ? watched : candidates[seed % candidates.length];
    }

    function _calm() internal override {
        blocked = address(0);
    }
}

/// @notice No decimals: amounts of 1 to 5.
contract Coarse is Model {
    function amountMax() external pure override returns (uint256) {
        return 5;
    }
}

/// @notice Amounts around the contract's bound of 2^96, out of a supply near 2^256.
contract Huge is Model {
    function amountMax() external pure override returns (uint256) {
        return 2 ** 96 + 2 ** 95;
    }
}

/// @notice Refuses to move nothing, and from an account to itself.
contract RefusesZero is Model {
    function _move(address from, address to, uint256 amount) internal override {
        require(amount != 0 && from != to, "nothing to move");
        super._move(from, to, amount);
    }
}
