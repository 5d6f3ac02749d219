// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Channels} from "../src/Channels.sol";
import {
    Blocklisting,
    Coarse,
    FeeOnTop,
    FeeOnTransfer,
    Hooked,
    Huge,
    Model,
    Pausing,
    Plain,
    Rebasing,
    RefusesZero,
    ReturnsFalse,
    ReturnsNothing
} from "./Models.sol";
import {Signing} from "./Signing.sol";
import {VM} from "./Vm.sol";

/// @title Everyone who may call, in any order, over twelve token models
/// @notice Keeps a second set of books beside the contract, says of each call whether it must succeed or
/// must fail, and reverts when the contract does otherwise. Roles are drawn from the same few accounts,
/// so that one is often payer, signer, payee and payout at once.
contract Everyone is Signing {
    /// @dev What a channel must be.
    struct Book {
        Channels.Key key;
        uint256 deposit;
        uint256 redeemed;
        uint256 closesAt;
        uint256 period;
        bool closed;
    }

    /// @dev What is spoilt about a signature.
    enum Spoilt {
        Nothing,
        OtherKey,
        Mirrored,
        OtherChannel,
        OtherAmount,
        OtherContract,
        Empty
    }

    uint256 private constant MODELS = 12;
    /// @dev Channels of one run; later opens are of ids that exist.
    uint256 private constant CHANNELS_MAX = 100;
    uint256 private constant CHANCES = 8;
    /// @dev Mostly one of so many newest channels is called, since the others are often closed.
    uint256 private constant NEWEST = 4;
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

    Channels public immutable channels;
    Model[MODELS] public models;
    bytes32[] public ids;
    address[ACTORS] private actors;
    mapping(bytes32 id => Book) private books;

    /// @dev By token: what went in, to payouts, back to payers, and what payers gave up.
    mapping(Model model => uint256) private deposited;
    mapping(Model model => uint256) private paid;
    mapping(Model model => uint256) private refunded;
    mapping(Model model => uint256) private forgone;
    mapping(Model model => uint256) private donated;
    /// @dev By token and account: what it must have got.
    mapping(Model model => mapping(address account => uint256)) private got;

    uint256 private clock = 1_800_000_000;
    /// @notice What came of the calls, by kind.
    mapping(string kind => uint256) public tally;

    constructor() {
        channels = _deploy();
        models[0] = new Plain();
        models[1] = new FeeOnTransfer();
        models[2] = new FeeOnTop();
        models[3] = new Rebasing();
        models[4] = new Pausing();
        models[5] = new Hooked();
        models[6] = new ReturnsNothing();
        models[7] = new ReturnsFalse();
        models[8] = new Blocklisting();
        models[9] = new Coarse();
        models[10] = new Huge();
        models[11] = new RefusesZero();
        for (uint256 actor = 0; actor < ACTORS; ++actor) {
            actors[actor] = _actor(actor);
            for (uint256 i = 0; i < MODELS; ++i) models[i].mint(actors[actor], 2 ** 250);
        }
        for (uint256 actor = 0; actor < ACTORS; ++actor) Blocklisting(address(models[8])).nominate(actors[actor]);
        for (uint256 i = 0; i < MODELS; ++i) models[i].watch(address(channels));
    }

    // ------------------------------------------------------------------ what anyone may do

    function open(uint256 seed, uint256 amount, uint256 period) external {
        _now();
        Channels.Key memory key = _key(seed);
        Model model = _model(key);
        uint128 deposit = uint128(1 + amount % (model.amountMax() + 1) - _chance(amount, "none"));
        uint32 kept = uint32(period % (channels.PERIOD_MAX() - channels.PERIOD_MIN() + 1)) + channels.PERIOD_MIN();
        if (_chance(period, "short") == 1) kept = uint32(period % channels.PERIOD_MIN());
        if (_chance(period, "long") == 1) kept = channels.PERIOD_MAX() + 1 + uint32(period % 1 days);
        address caller = _chance(seed, "stranger") == 1 ? actors[amount % ACTORS] : key.payer;

        bytes32 id = channels.channelId(key);
        bool right = caller == key.payer && key.signer != address(0) && key.payee != address(0)
            && key.payout != address(0) && key.payout != address(channels) && books[id].period == 0 && deposit != 0
            && deposit < 2 ** 96 && kept >= channels.PERIOD_MIN() && kept <= channels.PERIOD_MAX();
        VM.prank(caller);
        (bool ok, bytes memory answer) = address(channels).call(abi.encodeCall(Channels.open, (key, deposit, kept)));
        _judge("open", ok, right, model.orderly());
        if (ok) {
            require(abi.decode(answer, (bytes32)) == id, "another id");
            ids.push(id);
            books[id] = Book(key, deposit, 0, 0, kept, false);
            deposited[model] += deposit;
        }
        _check(id, model);
    }

    function topUp(uint256 seed, uint256 amount) external {
        (bytes32 id, Book storage book, Model model) = _some(seed);
        uint256 more = amount % (model.amountMax() + 1);
        bool right = _isOpen(book) && book.closesAt == 0 && more != 0 && book.deposit + more < 2 ** 96;
        VM.prank(actors[amount % ACTORS]);
        bool ok = _try(abi.encodeCall(Channels.topUp, (book.key, uint128(more))));
        _judge("topUp", ok, right, model.orderly());
        if (ok) {
            book.deposit += more;
            deposited[model] += more;
        }
        _check(id, model);
    }

    function redeem(uint256 seed, uint256 amountSeed, uint256 spoilSeed) external {
        (bytes32 id, Book storage book, Model model) = _some(seed);
        Channels.Item memory item = _item(book, id, amountSeed, spoilSeed);
        uint256 there = model.balanceOf(address(channels));
        uint256 due = _due(book, item.amount, spoilSeed);
        if (due > there) due = there;
        VM.prank(actors[spoilSeed % ACTORS]);
        bool ok = _try(abi.encodeCall(Channels.redeem, (item.key, item.amount, item.statement, item.signature)));
        _judge("redeem", ok, due != 0, model.orderly());
        if (ok) _pay(book, model, due);
        _check(id, model);
    }

    function redeemMany(uint256[6] calldata seeds, uint256 count) external {
        _now();
        if (ids.length == 0) return;
        Channels.Item[] memory items = new Channels.Item[](count % (seeds.length + 1));
        uint256[] memory before = new uint256[](items.length);
        bool orderly = true;
        uint256 sum;
        for (uint256 i = 0; i < items.length; ++i) {
            (bytes32 id, Book storage book, Model model) = _some(seeds[i]);
            before[i] = book.redeemed;
            items[i] = _item(book, id, seeds[i] >> 64, seeds[i] >> 128);
            uint256 due = _due(book, items[i].amount, seeds[i] >> 128);
            sum += due;
            // As if it succeeds: the next one may be of this channel.
            book.redeemed += due;
            // A sum beyond what is there reverts all, which only a token that took balances away can cause.
            orderly = orderly && model.orderly() && model.drift() >= 0;
        }
        VM.prank(actors[count % ACTORS]);
        bool ok = _try(abi.encodeCall(Channels.redeemMany, (items)));
        _judge("redeemMany", ok, sum != 0, orderly);
        for (uint256 left = items.length; left > 0; --left) {
            uint256 i = left - 1;
            Book storage book = books[channels.channelId(items[i].key)];
            uint256 due = book.redeemed - before[i];
            book.redeemed = before[i];
            before[i] = due;
        }
        for (uint256 i = 0; i < items.length; ++i) {
            Book storage book = books[channels.channelId(items[i].key)];
            if (ok) _pay(book, _model(items[i].key), before[i]);
        }
        for (uint256 i = 0; i < items.length; ++i) _check(channels.channelId(items[i].key), _model(items[i].key));
    }

    function startClose(uint256 seed, uint256 callerSeed) external {
        (bytes32 id, Book storage book, Model model) = _some(seed);
        address caller = _chance(callerSeed, "stranger") == 1 ? actors[callerSeed % ACTORS] : book.key.payer;
        bool right = caller == book.key.payer && _isOpen(book) && book.closesAt == 0;
        VM.prank(caller);
        bool ok = _try(abi.encodeCall(Channels.startClose, (book.key)));
        _judge("startClose", ok, right, true);
        if (ok) book.closesAt = clock + book.period;
        _check(id, model);
    }

    function finishClose(uint256 seed, uint256 callerSeed) external {
        (bytes32 id, Book storage book, Model model) = _some(seed);
        // Often just when it becomes possible, or a second before.
        if (book.closesAt > clock && !book.closed && _chance(callerSeed, "wait") == 1) {
            clock = book.closesAt - callerSeed % 2;
            _now();
        }
        address caller = callerSeed % 2 == 0 ? book.key.payer : actors[callerSeed % ACTORS];
        _finish(id, book, model, caller);
        _check(id, model);
    }

    function closeByPayee(uint256 seed, uint256 amountSeed, uint256 spoilSeed, uint256 consentSeed) external {
        (bytes32 id, Book storage book, Model model) = _some(seed);
        Channels.Item memory item = _item(book, id, amountSeed, spoilSeed);
        (address caller, bytes memory consent, bool agreed) = _consent(book, id, item.amount, consentSeed);
        bool right = agreed && _isOpen(book) && item.amount >= book.redeemed && item.amount <= book.deposit
            && (item.amount == book.redeemed || _isSound(spoilSeed));
        bool there = model.balanceOf(address(channels)) >= book.deposit - book.redeemed;
        VM.prank(caller);
        bool ok = _try(
            abi.encodeCall(Channels.closeByPayee, (item.key, item.amount, item.statement, item.signature, consent))
        );
        _judge("closeByPayee", ok, right, model.orderly() && there);
        if (ok) {
            _pay(book, model, item.amount - book.redeemed);
            _refund(book, model, book.deposit - book.redeemed);
        }
        _check(id, model);
    }

    /// @notice Time passes.
    function wait_(uint256 time) external {
        clock += time % 10 days;
        _now();
    }

    /// @notice A token turns strange, or ordinary again.
    function disturb(uint256 seed, uint256 how) external {
        _now();
        Model model = models[seed % MODELS];
        if (how % 2 == 0) {
            model.calm();
            return;
        }
        model.disturb(how);
        if (address(model) == address(models[5]) && ids.length != 0) {
            Book storage book = books[ids[how % ids.length]];
            Hooked(address(model)).hook(address(channels), _backCall(book, how));
        }
    }

    /// @notice Someone sends tokens to the contract by mistake.
    function donate(uint256 seed, uint256 amount) external {
        _now();
        Model model = models[seed % MODELS];
        uint256 given = 1 + amount % model.amountMax();
        // Outside of the contract's own calls a token may well call it.
        if (address(model) == address(models[5])) Hooked(address(model)).hook(address(0), "");
        VM.prank(actors[amount % ACTORS]);
        (bool ok,) = address(model).call(abi.encodeCall(Model.transfer, (address(channels), given)));
        uint256 came = model.came() - deposited[model] - donated[model];
        require(came == (ok && came != 0 ? given : 0), "donated something else");
        donated[model] += came;
    }

    // ------------------------------------------------------------------ what must hold

    /// @notice Every channel is what the books say, and every token is where they say.
    function checkAll() public view {
        for (uint256 i = 0; i < ids.length; ++i) _checkChannel(ids[i]);
        for (uint256 m = 0; m < MODELS; ++m) {
            uint256 held;
            for (uint256 i = 0; i < ids.length; ++i) {
                Book storage book = books[ids[i]];
                (uint96 deposit, uint96 redeemed, uint40 closesAt,) = channels.channels(ids[i]);
                if (address(book.key.token) == address(models[m]) && closesAt != channels.CLOSED()) held += deposit - redeemed;
            }
            _checkToken(models[m], held);
        }
        require(Hooked(address(models[5])).callsOk() == 0, "a token called back into the contract");
    }

    /// @notice With all tokens ordinary again, every channel can be closed and nothing is stuck.
    function closeAll() external {
        for (uint256 m = 0; m < MODELS; ++m) models[m].calm();
        for (uint256 i = 0; i < ids.length; ++i) {
            Book storage book = books[ids[i]];
            if (!_isOpen(book) || book.closesAt != 0) continue;
            VM.prank(book.key.payer);
            require(_try(abi.encodeCall(Channels.startClose, (book.key))), "a close cannot be started");
            book.closesAt = clock + book.period;
        }
        clock += channels.PERIOD_MAX();
        _now();
        for (uint256 i = 0; i < ids.length; ++i) {
            Book storage book = books[ids[i]];
            if (!_isOpen(book)) continue;
            Model model = _model(book.key);
            _finish(ids[i], book, model, book.key.payer);
            require(book.closed, "a deposit is stuck");
        }
        checkAll();
        for (uint256 m = 0; m < MODELS; ++m) {
            Model model = models[m];
            require(paid[model] + refunded[model] + forgone[model] == deposited[model], "money is missing");
            require(!_whole(model) || forgone[model] == 0, "a payer gave up something for no reason");
            require(!_whole(model) || model.balanceOf(address(channels)) == donated[model], "something is left");
        }
    }

    // ------------------------------------------------------------------ inside

    /// @dev Forge forgets the time between two calls.
    function _now() private {
        VM.warp(clock);
    }

    function _some(uint256 seed) private returns (bytes32 id, Book storage book, Model model) {
        _now();
        // Before any was opened: a channel that does not exist.
        uint256 from = _chance(seed, "newest") == 0 && ids.length > NEWEST ? ids.length - NEWEST : 0;
        id = ids.length == 0 ? bytes32(0) : ids[from + seed % (ids.length - from)];
        book = books[id];
        model = ids.length == 0 ? models[0] : _model(book.key);
    }

    function _key(uint256 seed) private view returns (Channels.Key memory key) {
        if (ids.length >= CHANNELS_MAX || (ids.length != 0 && _chance(seed, "again") == 1)) {
            return books[ids[seed % ids.length]].key;
        }
        key = Channels.Key({
            payer: actors[seed % ACTORS],
            signer: actors[(seed >> 8) % ACTORS],
            payee: actors[(seed >> 16) % ACTORS],
            payout: actors[(seed >> 24) % ACTORS],
            token: IERC20(address(models[(seed >> 32) % MODELS])),
            salt: bytes32((seed >> 40) % 4)
        });
        if (_chance(seed, "no signer") == 1) key.signer = address(0);
        else if (_chance(seed, "no payee") == 1) key.payee = address(0);
        else if (_chance(seed, "no payout") == 1) key.payout = address(0);
        else if (_chance(seed, "payout here") == 1) key.payout = address(channels);
    }

    /// @dev A voucher, perhaps spoilt, at an amount that is likely to matter.
    function _item(Book storage book, bytes32 id, uint256 amountSeed, uint256 spoilSeed)
        private
        view
        returns (Channels.Item memory item)
    {
        uint256 amount = (amountSeed >> 8) % (book.deposit + 1);
        uint256 edge = amountSeed % CHANCES;
        if (edge == 0) amount = book.deposit;
        if (edge == 1) amount = book.deposit + 1;
        if (edge == 2) amount = book.redeemed;
        if (edge == 3) amount = book.redeemed + 1;
        bytes32 statement = bytes32(amountSeed);
        item = Channels.Item(book.key, uint128(amount), statement, "");
        item.signature = _voucher(book, id, uint128(amount), statement, _spoilt(spoilSeed));
    }

    function _voucher(Book storage book, bytes32 id, uint128 amount, bytes32 statement, Spoilt spoilt)
        private
        view
        returns (bytes memory)
    {
        if (spoilt == Spoilt.Empty || book.period == 0) return "";
        uint256 secret = _secretAt(book.key.signer);
        if (spoilt == Spoilt.OtherKey) secret = _secret(secret);
        if (spoilt == Spoilt.OtherChannel) id ^= bytes32(uint256(1));
        if (spoilt == Spoilt.OtherAmount) amount += 1;
        bytes32 digest = channels.voucherDigest(id, amount, statement);
        if (spoilt == Spoilt.Mirrored) return _mirrored(secret, digest);
        if (spoilt == Spoilt.OtherContract) digest = _elsewhere(id, amount, statement);
        return _sign(secret, digest);
    }

    /// @dev The same voucher for a contract at another address.
    function _elsewhere(bytes32 id, uint128 amount, bytes32 statement) private view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(DOMAIN_TYPEHASH, keccak256("Sluice Channels"), keccak256("1"), block.chainid, address(this))
        );
        bytes32 content = keccak256(abi.encode(channels.VOUCHER_TYPEHASH(), id, amount, statement));
        return keccak256(abi.encodePacked(hex"1901", domain, content));
    }

    function _consent(Book storage book, bytes32 id, uint128 amount, uint256 seed)
        private
        view
        returns (address caller, bytes memory consent, bool agreed)
    {
        if (book.period == 0 || seed % 2 == 0) return (book.key.payee, "", true);
        caller = actors[(seed >> 8) % ACTORS];
        uint256 kind = (seed >> 16) % 6;
        uint256 secret = _secretAt(book.key.payee);
        bytes32 digest = channels.closeDigest(id, amount);
        consent = _sign(secret, digest);
        if (kind == 0) consent = _sign(_secret(secret), digest);
        if (kind == 1) consent = _mirrored(secret, digest);
        if (kind == 2) consent = _sign(secret, channels.closeDigest(id, amount + 1));
        agreed = kind > 2 || caller == book.key.payee;
    }

    /// @dev A call that would move money if the contract let tokens call back.
    function _backCall(Book storage book, uint256 seed) private view returns (bytes memory) {
        bytes32 id = channels.channelId(book.key);
        uint128 amount = uint128(book.deposit);
        bytes32 digest = channels.voucherDigest(id, amount, 0);
        bytes memory signature = _sign(_secretAt(book.key.signer), digest);
        uint256 kind = (seed >> 8) % 5;
        if (kind == 0) return abi.encodeCall(Channels.redeem, (book.key, amount, 0, signature));
        if (kind == 1) return abi.encodeCall(Channels.finishClose, (book.key));
        if (kind == 2) {
            bytes memory consent = _sign(_secretAt(book.key.payee), channels.closeDigest(id, amount));
            return abi.encodeCall(Channels.closeByPayee, (book.key, amount, 0, signature, consent));
        }
        if (kind == 3) return abi.encodeCall(Channels.topUp, (book.key, 1));
        Channels.Item[] memory items = new Channels.Item[](1);
        items[0] = Channels.Item(book.key, amount, 0, signature);
        return abi.encodeCall(Channels.redeemMany, (items));
    }

    function _finish(bytes32 id, Book storage book, Model model, address caller) private {
        uint256 rest = book.deposit - book.redeemed;
        uint256 there = model.balanceOf(address(channels));
        if (caller == book.key.payer && there < rest) rest = there;
        bool right = _isOpen(book) && book.closesAt != 0 && clock >= book.closesAt;
        VM.prank(caller);
        bool ok = _try(abi.encodeCall(Channels.finishClose, (book.key)));
        _judge("finishClose", ok, right, model.orderly() && there >= rest);
        if (ok) _refund(book, model, rest);
        _checkChannel(id);
    }

    function _pay(Book storage book, Model model, uint256 amount) private {
        book.redeemed += amount;
        paid[model] += amount;
        got[model][book.key.payout] += amount;
    }

    function _refund(Book storage book, Model model, uint256 amount) private {
        book.closed = true;
        refunded[model] += amount;
        forgone[model] += book.deposit - book.redeemed - amount;
        got[model][book.key.payer] += amount;
    }

    function _judge(string memory kind, bool ok, bool right, bool orderly) private {
        require(right || !ok, string.concat(kind, " succeeded and must not"));
        require(ok || !right || !orderly, string.concat(kind, " failed and must not"));
        tally[string.concat(kind, ok ? " done" : " refused")] += 1;
    }

    function _check(bytes32 id, Model model) private view {
        _checkChannel(id);
        _checkToken(model, deposited[model] - paid[model] - refunded[model] - forgone[model]);
    }

    function _checkChannel(bytes32 id) private view {
        Book storage book = books[id];
        (uint96 deposit, uint96 redeemed, uint40 closesAt, uint24 period) = channels.channels(id);
        require(redeemed <= deposit, "more was redeemed than deposited");
        require(deposit == book.deposit && redeemed == book.redeemed && period == book.period, "another state");
        require(closesAt == (book.closed ? channels.CLOSED() : book.closesAt), "another end");
    }

    /// @dev By the token's own books: paid + refunded + held = deposited, and only those were paid who should.
    function _checkToken(Model model, uint256 held) private view {
        require(model.came() == deposited[model] + donated[model], "a deposit was not what arrived");
        require(model.went() == paid[model] + refunded[model], "something else was paid");
        require(paid[model] + refunded[model] + forgone[model] + held == deposited[model], "money is missing");
        for (uint256 actor = 0; actor < ACTORS; ++actor) {
            require(model.wentTo(actors[actor]) == got[model][actors[actor]], "somebody else was paid");
        }
        int256 balance = int256(model.came()) - int256(model.went()) + model.drift();
        require(int256(model.balanceOf(address(channels))) == balance, "the token's books are wrong");
    }

    function _due(Book storage book, uint256 amount, uint256 spoilSeed) private view returns (uint256) {
        bool right = _isOpen(book) && amount > book.redeemed && amount <= book.deposit && _isSound(spoilSeed);
        return right ? amount - book.redeemed : 0;
    }

    /// @dev Whether the token never took anything away.
    function _whole(Model model) private view returns (bool) {
        return model.drift() == 0;
    }

    function _try(bytes memory data) private returns (bool ok) {
        (ok,) = address(channels).call(data);
    }

    function _isOpen(Book storage book) private view returns (bool) {
        return book.period != 0 && !book.closed;
    }

    function _spoilt(uint256 seed) private pure returns (Spoilt) {
        uint256 kind = (seed >> 16) % (2 * CHANCES);
        return kind > uint256(type(Spoilt).max) ? Spoilt.Nothing : Spoilt(kind);
    }

    function _isSound(uint256 seed) private pure returns (bool) {
        return _spoilt(seed) == Spoilt.Nothing;
    }

    /// @dev 1 with a chance of one in CHANCES, drawn from `seed` for this `purpose`.
    function _chance(uint256 seed, string memory purpose) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(seed, purpose))) % CHANCES == 0 ? 1 : 0;
    }

    function _model(Channels.Key memory key) private pure returns (Model) {
        return Model(address(key.token));
    }

    function _secretAt(address account) private view returns (uint256) {
        for (uint256 actor = 0; actor < ACTORS; ++actor) {
            if (actors[actor] == account) return _secret(actor);
        }
        revert("no actor");
    }
}
