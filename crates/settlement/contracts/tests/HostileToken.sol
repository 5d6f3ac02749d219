// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title A token that misbehaves as it is told to
/// @notice For tests of `Channels` against tokens that are not OpenZeppelin's.
contract HostileToken {
    enum Mode {
        Honest,
        FeeOnTransfer,
        NoReturnValue,
        ReturnsFalse,
        CallsBack
    }

    mapping(address account => uint256) public balanceOf;
    Mode public mode;
    address private target;
    bytes private data;
    /// @notice Calls back that were made, and how many of them succeeded.
    uint128 public callsBack;
    uint128 public callsBackOk;

    function set(Mode mode_, address target_, bytes calldata data_) external {
        (mode, target, data) = (mode_, target_, data_);
    }

    function mint(address account, uint256 amount) external {
        balanceOf[account] += amount;
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        return _move(msg.sender, to, amount);
    }

    /// @notice Asks for no approval.
    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        return _move(from, to, amount);
    }

    function _move(address from, address to, uint256 amount) private returns (bool) {
        if (mode == Mode.ReturnsFalse) return false;
        if (mode == Mode.CallsBack) {
            (bool ok,) = target.call(data);
            callsBack += 1;
            if (ok) callsBackOk += 1;
        }
        balanceOf[from] -= amount;
        balanceOf[to] += mode == Mode.FeeOnTransfer ? amount - amount / 100 : amount;
        if (mode == Mode.NoReturnValue) {
            assembly {
                return(0, 0)
            }
        }
        return true;
    }
}
