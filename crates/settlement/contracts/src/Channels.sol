// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// @title One-way payment channels over ERC-20 deposits
/// @notice A payer deposits; its signer signs vouchers of growing, cumulative amounts; whoever holds
/// the newest voucher may have it paid out to the payee's payout address. The payee may close at
/// once, the payer only after the channel's period, in which the payee can still redeem.
///
/// What holds for every channel, and what an auditor should try to break:
///  - redeemed <= deposit, and redeemed never falls;
///  - tokens leave only to `payout`, up to the highest voucher of `signer`, or to `payer`, once, at the end;
///  - the sum over open channels of (deposit - redeemed) of a token is at most this contract's balance of it,
///    as long as the token itself takes nothing away;
///  - a closed channel stays closed: its id can never be opened again.
///
/// There is no owner, no pause, no fee and no upgrade. A channel is one storage slot: what never
/// changes is in the id, so callers pass the key and the contract hashes it. A token that does not
/// deliver exactly what was sent is refused at deposit. If a token later takes balances away, its
/// channels share what is left in the order in which they are redeemed and closed; no other token's
/// channels notice. INVARIANTS.md, one folder up, says why each line above holds.
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
        BadSignature,
        TokenGone
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

    /// @notice Only the channel's payer may do this.
    error NotPayer();
    /// @notice Signer, payee or payout is zero, or the payout is this contract.
    error ZeroAddress();
    /// @notice Nothing was deposited.
    error ZeroAmount();
    /// @notice The period is not within PERIOD_MIN and PERIOD_MAX.
    error PeriodOutOfRange(uint256 period);
    /// @notice The deposit does not fit 96 bits.
    error DepositTooLarge(uint256 deposit);
    /// @notice The token delivered another amount than was sent.
    error DepositMismatch(uint256 expected, uint256 received);
    /// @notice This id was opened before.
    error ChannelExists(bytes32 channel);
    /// @notice Never opened, or closed.
    error ChannelNotOpen(bytes32 channel);
    /// @notice The payer has started to close.
    error ChannelClosing(bytes32 channel);
    /// @notice The voucher pays nothing that was not paid before.
    error AmountNotHigher(uint256 amount, uint256 redeemed);
    /// @notice The voucher is not covered by the deposit.
    error AmountOverDeposit(uint256 amount, uint256 deposit);
    /// @notice A channel cannot close at less than was redeemed.
    error AmountBelowRedeemed(uint256 amount, uint256 redeemed);
    /// @notice The voucher is not the signer's, for this chain, contract, channel, amount and statement.
    error BadVoucherSignature();
    /// @notice The caller is not the payee and brings no consent of the payee to this amount.
    error BadPayeeSignature();
    /// @notice Each of many vouchers was refused.
    error NothingRedeemed();
    /// @notice The token took all of this contract's balance away.
    error TokenGone();
    /// @notice No close was started.
    error NotClosing();
    /// @notice The close can be finished from `closesAt` on.
    error TooEarly(uint256 closesAt);

    /// @notice The EIP-712 domain; there is nothing to configure.
    constructor() EIP712("Sluice Channels", "1") {}

    // ------------------------------------------------------------------ payer

    /// @notice Opens the channel of `key` with a deposit taken from the caller, who must be its payer
    /// and must have approved this contract.
    /// @param key What the channel binds; each id can be opened once, ever.
    /// @param deposit Base units, above 0 and below 2^96.
    /// @param period Seconds from `startClose` to `finishClose`, PERIOD_MIN to PERIOD_MAX.
    /// @return id The channel's id.
    function open(Key calldata key, uint128 deposit, uint32 period) external nonReentrant returns (bytes32 id) {
        require(msg.sender == key.payer, NotPayer());
        require(
            key.signer != address(0) && key.payee != address(0) && key.payout != address(0)
                && key.payout != address(this),
            ZeroAddress()
        );
        require(period >= PERIOD_MIN && period <= PERIOD_MAX, PeriodOutOfRange(period));
        id = channelId(key);
        require(channels[id].period == 0, ChannelExists(id));
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

    /// @notice Closes a channel whose period has passed and refunds the payer what was not redeemed. Anyone may call;
    /// only the payer itself may close for less, when the token took balances away.
    /// @param key The channel's key.
    function finishClose(Key calldata key) external nonReentrant {
        (bytes32 id, Channel storage channel) = _openChannel(key);
        uint40 closesAt = channel.closesAt;
        require(closesAt != 0, NotClosing());
        require(block.timestamp >= closesAt, TooEarly(closesAt));
        uint256 most = msg.sender == key.payer ? _balance(key.token) : type(uint256).max;
        _close(id, channel, key, channel.redeemed, 0, most);
    }

    // ------------------------------------------------------------------ payee

    /// @notice Pays a voucher out: `amount` less what was redeemed before, to the channel's payout. Anyone may submit.
    /// If the token took balances away it pays what is there; the voucher stays good for the rest.
    /// @param key The channel's key.
    /// @param amount The voucher's cumulative amount, above what was redeemed, at most the deposit.
    /// @param statement The voucher's statement hash, opaque here.
    /// @param signature The signer's, 65 bytes `r || s || v`.
    function redeem(Key calldata key, uint128 amount, bytes32 statement, bytes calldata signature)
        external
        nonReentrant
    {
        (bytes32 id, uint256 paid, Refusal refusal) = _redeem(key, amount, statement, signature, _balance(key.token));
        if (refusal == Refusal.NotOpen) revert ChannelNotOpen(id);
        if (refusal == Refusal.NotHigher) revert AmountNotHigher(amount, channels[id].redeemed);
        if (refusal == Refusal.OverDeposit) revert AmountOverDeposit(amount, channels[id].deposit);
        if (refusal == Refusal.BadSignature) revert BadVoucherSignature();
        if (refusal == Refusal.TokenGone) revert TokenGone();
        key.token.safeTransfer(key.payout, paid);
    }

    /// @notice Redeems many vouchers, each judged by itself: one that pays nothing is skipped with a `Refused` event,
    /// so that nobody can stop a batch by redeeming one of its vouchers first. Neighbours with the same token and
    /// payout are paid by one transfer: sort by them. A token that refuses its transfer, or has too little, reverts the
    /// whole call: use `redeem` then.
    /// @param items The vouchers; reverts if all of them are refused.
    function redeemMany(Item[] calldata items) external nonReentrant {
        IERC20 token;
        address payout;
        uint256 sum;
        for (uint256 i = 0; i < items.length; ++i) {
            Item calldata item = items[i];
            (bytes32 id, uint256 paid, Refusal refusal) =
                _redeem(item.key, item.amount, item.statement, item.signature, type(uint256).max);
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
        _close(id, channel, key, uint96(amount), paid, type(uint256).max);
    }

    // ------------------------------------------------------------------ views

    /// @notice The id of the channel of `key` on this chain and contract.
    /// @param key What the channel binds.
    /// @return The id.
    function channelId(Key calldata key) public view returns (bytes32) {
        return keccak256(abi.encode(key, block.chainid, address(this)));
    }

    /// @notice What a channel's signer signs for a voucher.
    /// @param channel The channel's id.
    /// @param amount Cumulative, base units.
    /// @param statement Hash of what the amount is for, opaque here.
    /// @return The EIP-712 digest.
    function voucherDigest(bytes32 channel, uint128 amount, bytes32 statement) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, channel, amount, statement)));
    }

    /// @notice What a payee signs so that anyone may close its channel at `amount`. The consent stays good until more
    /// was redeemed: a payee that signed it earns no more on this channel.
    /// @param channel The channel's id.
    /// @param amount Cumulative, base units.
    /// @return The EIP-712 digest.
    function closeDigest(bytes32 channel, uint128 amount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(CLOSE_TYPEHASH, channel, amount)));
    }

    // ------------------------------------------------------------------ inside

    /// @dev Checks a voucher and counts at most `most` of it as redeemed. Moves no tokens: the caller transfers `paid`.
    function _redeem(
        Key calldata key,
        uint128 amount,
        bytes32 statement,
        bytes calldata signature,
        uint256 most
    ) private returns (bytes32 id, uint256 paid, Refusal refusal) {
        id = channelId(key);
        Channel storage channel = channels[id];
        uint256 redeemed = channel.redeemed;
        if (channel.period == 0 || channel.closesAt == CLOSED) return (id, 0, Refusal.NotOpen);
        if (amount <= redeemed) return (id, 0, Refusal.NotHigher);
        if (amount > channel.deposit) return (id, 0, Refusal.OverDeposit);
        if (!_signedBy(key.signer, voucherDigest(id, amount, statement), signature)) {
            return (id, 0, Refusal.BadSignature);
        }
        paid = Math.min(amount - redeemed, most);
        if (paid == 0) return (id, 0, Refusal.TokenGone);
        redeemed += paid;
        channel.redeemed = uint96(redeemed);
        emit Redeemed(id, redeemed, paid);
    }

    /// @dev Marks closed for good, then pays `paid` to the payout and the rest of the deposit, at most `most`, to the
    /// payer.
    function _close(
        bytes32 id,
        Channel storage channel,
        Key calldata key,
        uint96 redeemed,
        uint256 paid,
        uint256 most
    ) private {
        uint256 refund = Math.min(channel.deposit - redeemed, most);
        channel.redeemed = redeemed;
        channel.closesAt = CLOSED;
        emit Closed(id, redeemed, refund);
        if (paid != 0) key.token.safeTransfer(key.payout, paid);
        if (refund != 0) key.token.safeTransfer(key.payer, refund);
    }

    /// @dev Takes exactly `amount` from the caller: a token that delivers less, or more, is refused.
    function _take(Key calldata key, uint256 amount) private {
        require(amount != 0, ZeroAmount());
        uint256 before = _balance(key.token);
        key.token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = Math.saturatingSub(_balance(key.token), before);
        require(received == amount, DepositMismatch(amount, received));
    }

    /// @dev What this contract has of a token.
    function _balance(IERC20 token) private view returns (uint256) {
        return token.balanceOf(address(this));
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
