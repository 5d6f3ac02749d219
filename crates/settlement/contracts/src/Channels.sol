// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// @title One-way payment channels over ERC-20 deposits
/// @notice A payer deposits; its signer signs vouchers of growing, cumulative amounts; whoever holds
/// the newest voucher may have it paid out to the payee's payout address. The payee may close at
/// once, the payer only after the channel's period, in which the payee can still redeem.
///
/// What holds for every channel, and what an auditor should try to break:
///  - redeemed <= deposit, and redeemed never falls;
///  - tokens leave only to `payout`, up to the highest voucher of `signer`, or to `payer`, once, at the end;
///  - the sum over open channels of (deposit - redeemed) of a token is at most this contract's balance of it;
///  - a closed channel stays closed: its id can never be opened again.
///
/// There is no owner, no pause, no fee and no upgrade. A channel is one storage slot: what never
/// changes is in the id, so callers pass the key and the contract hashes it. Tokens that take a fee on
/// transfer are refused at deposit; tokens that rebase or that can freeze accounts are the parties'
/// own risk, contained to the channels of that token.
contract Channels is EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice What a channel binds. Its hash is the channel's id.
    /// @param payer Deposits, and is refunded.
    /// @param signer Signs vouchers for the payer: an account with a key, not a contract.
    /// @param payee May close at once.
    /// @param payout Receives what is redeemed.
    /// @param token The ERC-20 token.
    /// @param salt Tells channels of the same parties apart.
    struct Key {
        address payer;
        address signer;
        address payee;
        address payout;
        IERC20 token;
        bytes32 salt;
    }

    /// @notice One voucher to redeem: see `redeem`.
    struct Item {
        Key key;
        uint128 amount;
        bytes32 statement;
        bytes signature;
    }

    /// @notice The changing part of a channel.
    /// @param deposit Ever deposited, base units.
    /// @param redeemed Paid to the payout so far, base units.
    /// @param closesAt Unix seconds from when `finishClose` works; 0: not closing; CLOSED: closed.
    /// @param period Seconds between `startClose` and `finishClose`; 0: never opened.
    struct Channel {
        uint96 deposit;
        uint96 redeemed;
        uint40 closesAt;
        uint24 period;
    }

    /// @notice Why a voucher pays nothing.
    enum Refusal {
        None,
        NotOpen,
        NotHigher,
        OverDeposit,
        BadSignature
    }

    /// @notice Shortest close period: time for a payee to notice and redeem.
    uint32 public constant PERIOD_MIN = 48 hours;
    /// @notice Longest close period: a slip must not lock a deposit for years.
    uint32 public constant PERIOD_MAX = 180 days;
    /// @notice `closesAt` of a closed channel.
    uint40 public constant CLOSED = type(uint40).max;

    /// @notice EIP-712 type of what a channel's signer signs.
    bytes32 public constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channel,uint128 amount,bytes32 statement)");
    /// @notice EIP-712 type of a payee's consent that anyone may close its channel at an amount.
    bytes32 public constant CLOSE_TYPEHASH = keccak256("Close(bytes32 channel,uint128 amount)");

    /// @notice Channels by id.
    mapping(bytes32 id => Channel) public channels;

    /// @notice A channel was opened.
    event Opened(
        bytes32 indexed channel, address indexed payer, address indexed payee, Key key, uint256 deposit, uint256 period
    );
    /// @notice A deposit grew to `deposit`.
    event ToppedUp(bytes32 indexed channel, uint256 deposit);
    /// @notice `paid` was sent to the payout; `redeemed` is the new cumulative amount.
    event Redeemed(bytes32 indexed channel, uint256 redeemed, uint256 paid);
    /// @notice An item of `redeemMany` was skipped.
    event Refused(bytes32 indexed channel, Refusal reason);
    /// @notice The payer started to close; `finishClose` works from `closesAt`.
    event CloseStarted(bytes32 indexed channel, uint256 closesAt);
    /// @notice The channel is closed: `redeemed` in all went to the payout, `refunded` back to the payer.
    event Closed(bytes32 indexed channel, uint256 redeemed, uint256 refunded);

    error NotPayer();
    error ZeroAddress();
    error ZeroAmount();
    error PeriodOutOfRange(uint256 period);
    error DepositTooLarge(uint256 deposit);
    error DepositMismatch(uint256 expected, uint256 received);
    error ChannelExists(bytes32 channel);
    error ChannelNotOpen(bytes32 channel);
    error ChannelClosing(bytes32 channel);
    error AmountNotHigher(uint256 amount, uint256 redeemed);
    error AmountOverDeposit(uint256 amount, uint256 deposit);
    error AmountBelowRedeemed(uint256 amount, uint256 redeemed);
    error BadVoucherSignature();
    error BadPayeeSignature();
    error NothingRedeemed();
    error NotClosing();
    error TooEarly(uint256 closesAt);

    /// @notice The EIP-712 domain; there is nothing to configure.
    constructor() EIP712("Sluice Channels", "1") {}

    // ------------------------------------------------------------------ payer

    /// @notice Opens the channel of `key` with a deposit taken from the caller, who must be its payer
    /// and must have approved this contract.
    /// @param key What the channel binds; each id can be opened once, ever.
    /// @param deposit Base units, above 0 and below 2^96.
    /// @param period Seconds from `startClose` to `finishClose`, PERIOD_MIN to PERIOD_MAX.
    function open(Key calldata key, uint128 deposit, uint32 period) external nonReentrant returns (bytes32 id) {
        require(msg.sender == key.payer, NotPayer());
        require(
            key.signer != address(0) && key.payee != address(0) && key.payout != address(0)
                && key.payout != address(this),
            ZeroAddress()
        );
        require(period >= PERIOD_MIN && period <= PERIOD_MAX, PeriodOutOfRange(period));
        id = channelId(key);
        Channel storage channel = channels[id];
        require(channel.period == 0, ChannelExists(id));
        channels[id] = Channel({deposit: _toUint96(deposit), redeemed: 0, closesAt: 0, period: uint24(period)});
        emit Opened(id, key.payer, key.payee, key, deposit, period);
        _take(key, deposit);
    }

    /// @notice Adds to the deposit of an open channel that is not closing. Anyone may pay in; what is left
    /// at the end is refunded to the payer.
    /// @param key The channel's key.
    /// @param more Base units to add, taken from the caller.
    function topUp(Key calldata key, uint128 more) external nonReentrant {
        (bytes32 id, Channel storage channel) = _openChannel(key);
        require(channel.closesAt == 0, ChannelClosing(id));
        uint96 deposit = _toUint96(uint256(channel.deposit) + more);
        channel.deposit = deposit;
        emit ToppedUp(id, deposit);
        _take(key, more);
    }

    /// @notice Starts to close: from now plus the channel's period on, `finishClose` refunds the payer. Until it has
    /// been called vouchers are still redeemed.
    /// @param key The channel's key; the caller must be its payer.
    function startClose(Key calldata key) external nonReentrant {
        require(msg.sender == key.payer, NotPayer());
        (bytes32 id, Channel storage channel) = _openChannel(key);
        require(channel.closesAt == 0, ChannelClosing(id));
        uint40 closesAt = uint40(block.timestamp + channel.period);
        channel.closesAt = closesAt;
        emit CloseStarted(id, closesAt);
    }

    /// @notice Closes a channel whose period has passed and refunds the payer what was not redeemed. Anyone may call.
    /// @param key The channel's key.
    function finishClose(Key calldata key) external nonReentrant {
        (bytes32 id, Channel storage channel) = _openChannel(key);
        uint40 closesAt = channel.closesAt;
        require(closesAt != 0, NotClosing());
        require(block.timestamp >= closesAt, TooEarly(closesAt));
        _close(id, channel, key, channel.redeemed, 0);
    }

    // ------------------------------------------------------------------ payee

    /// @notice Pays a voucher out: `amount` less what was redeemed before, to the channel's payout. Anyone may submit.
    /// @param key The channel's key.
    /// @param amount The voucher's cumulative amount, above what was redeemed, at most the deposit.
    /// @param statement The voucher's statement hash, opaque here.
    /// @param signature The signer's, 65 bytes `r || s || v`.
    function redeem(Key calldata key, uint128 amount, bytes32 statement, bytes calldata signature)
        external
        nonReentrant
    {
        bytes32 id = channelId(key);
        Channel storage channel = channels[id];
        (uint256 paid, Refusal refusal) = _redeem(id, channel, key.signer, amount, statement, signature);
        if (refusal == Refusal.NotOpen) revert ChannelNotOpen(id);
        if (refusal == Refusal.NotHigher) revert AmountNotHigher(amount, channel.redeemed);
        if (refusal == Refusal.OverDeposit) revert AmountOverDeposit(amount, channel.deposit);
        if (refusal == Refusal.BadSignature) revert BadVoucherSignature();
        key.token.safeTransfer(key.payout, paid);
    }

    /// @notice Redeems many vouchers, each judged by itself: one that pays nothing is skipped with a `Refused` event,
    /// so that nobody can stop a batch by redeeming one of its vouchers first. Neighbours with the same token and
    /// payout are paid by one transfer: sort by them. A token that refuses its transfer reverts the whole call.
    /// @param items The vouchers; reverts if all of them are refused.
    function redeemMany(Item[] calldata items) external nonReentrant {
        IERC20 token;
        address payout;
        uint256 sum;
        for (uint256 i = 0; i < items.length; ++i) {
            Item calldata item = items[i];
            bytes32 id = channelId(item.key);
            (uint256 paid, Refusal refusal) =
                _redeem(id, channels[id], item.key.signer, item.amount, item.statement, item.signature);
            if (refusal != Refusal.None) {
                emit Refused(id, refusal);
                continue;
            }
            if (address(item.key.token) != address(token) || item.key.payout != payout) {
                if (sum != 0) token.safeTransfer(payout, sum);
                (token, payout, sum) = (item.key.token, item.key.payout, 0);
            }
            sum += paid;
        }
        require(sum != 0, NothingRedeemed());
        token.safeTransfer(payout, sum);
    }

    /// @notice Closes at `amount`: pays the payout up to it and refunds the rest to the payer. The caller is the
    /// payee, or brings the payee's consent.
    /// @param key The channel's key.
    /// @param amount Cumulative: what was redeemed already, or a higher voucher's amount.
    /// @param statement That voucher's statement hash; ignored if `amount` is what was redeemed.
    /// @param voucherSignature The signer's; may be empty if `amount` is what was redeemed.
    /// @param payeeSignature The payee's over `Close(channel, amount)`; may be empty if the payee calls.
    function closeByPayee(
        Key calldata key,
        uint128 amount,
        bytes32 statement,
        bytes calldata voucherSignature,
        bytes calldata payeeSignature
    ) external nonReentrant {
        (bytes32 id, Channel storage channel) = _openChannel(key);
        require(
            msg.sender == key.payee || _signedBy(key.payee, closeDigest(id, amount), payeeSignature),
            BadPayeeSignature()
        );
        uint256 redeemed = channel.redeemed;
        uint256 deposit = channel.deposit;
        require(amount >= redeemed, AmountBelowRedeemed(amount, redeemed));
        require(amount <= deposit, AmountOverDeposit(amount, deposit));
        uint256 paid = amount - redeemed;
        if (paid != 0) {
            require(
                _signedBy(key.signer, voucherDigest(id, amount, statement), voucherSignature), BadVoucherSignature()
            );
            emit Redeemed(id, amount, paid);
        }
        _close(id, channel, key, uint96(amount), paid);
    }

    // ------------------------------------------------------------------ views

    /// @notice The id of the channel of `key` on this chain and contract.
    function channelId(Key calldata key) public view returns (bytes32) {
        return keccak256(abi.encode(key, block.chainid, address(this)));
    }

    /// @notice What a channel's signer signs for a voucher.
    function voucherDigest(bytes32 channel, uint128 amount, bytes32 statement) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, channel, amount, statement)));
    }

    /// @notice What a payee signs so that anyone may close its channel at `amount`.
    function closeDigest(bytes32 channel, uint128 amount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(CLOSE_TYPEHASH, channel, amount)));
    }

    // ------------------------------------------------------------------ inside

    /// @dev Checks a voucher and counts it as redeemed. Moves no tokens: the caller transfers `paid`.
    function _redeem(
        bytes32 id,
        Channel storage channel,
        address signer,
        uint128 amount,
        bytes32 statement,
        bytes calldata signature
    ) private returns (uint256 paid, Refusal refusal) {
        (uint96 deposit, uint96 redeemed, uint40 closesAt, uint24 period) =
            (channel.deposit, channel.redeemed, channel.closesAt, channel.period);
        if (period == 0 || closesAt == CLOSED) return (0, Refusal.NotOpen);
        if (amount <= redeemed) return (0, Refusal.NotHigher);
        if (amount > deposit) return (0, Refusal.OverDeposit);
        if (!_signedBy(signer, voucherDigest(id, amount, statement), signature)) return (0, Refusal.BadSignature);
        paid = amount - redeemed;
        channel.redeemed = uint96(amount);
        emit Redeemed(id, amount, paid);
    }

    /// @dev Marks closed for good, then pays `paid` to the payout and the rest of the deposit to the payer.
    function _close(bytes32 id, Channel storage channel, Key calldata key, uint96 redeemed, uint256 paid) private {
        uint256 refund = channel.deposit - redeemed;
        channel.redeemed = redeemed;
        channel.closesAt = CLOSED;
        emit Closed(id, redeemed, refund);
        if (paid != 0) key.token.safeTransfer(key.payout, paid);
        if (refund != 0) key.token.safeTransfer(key.payer, refund);
    }

    /// @dev Takes exactly `amount` from the caller: a token that delivers less, or more, is refused.
    function _take(Key calldata key, uint256 amount) private {
        require(amount != 0, ZeroAmount());
        uint256 before = key.token.balanceOf(address(this));
        key.token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = key.token.balanceOf(address(this)) - before;
        require(received == amount, DepositMismatch(amount, received));
    }

    /// @dev The channel of `key`, which must have been opened and not closed.
    function _openChannel(Key calldata key) private view returns (bytes32 id, Channel storage channel) {
        id = channelId(key);
        channel = channels[id];
        require(channel.period != 0 && channel.closesAt != CLOSED, ChannelNotOpen(id));
    }

    /// @dev Whether `signature` is `account`'s over `digest`: 65 bytes, low `s`, never the zero address.
    function _signedBy(address account, bytes32 digest, bytes calldata signature) private pure returns (bool) {
        (address found, ECDSA.RecoverError err,) = ECDSA.tryRecoverCalldata(digest, signature);
        return err == ECDSA.RecoverError.NoError && found == account;
    }

    /// @dev Deposits are kept in 96 bits, so that a channel fits one storage slot.
    function _toUint96(uint256 deposit) private pure returns (uint96) {
        require(deposit <= type(uint96).max, DepositTooLarge(deposit));
        return uint96(deposit);
    }
}
