// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Channels} from "../src/Channels.sol";
import {Huge} from "./Models.sol";
import {Signing} from "./Signing.sol";
import {VM} from "./Vm.sol";

/// @title Each argument at the last value that is taken and the first that is refused, and why
contract EdgesTest is Signing {
    uint256 private constant PAYER = 1;
    uint256 private constant SIGNER = 2;
    uint256 private constant PAYEE = 3;
    uint256 private constant STRANGER = 4;
    uint128 private constant DEPOSIT = 1_000;
    uint128 private constant DEPOSIT_MAX = type(uint96).max;
    uint32 private constant PERIOD = 3 days;

    Channels private channels;
    Huge private token;
    Channels.Key private key;

    function setUp() external {
        channels = _deploy();
        token = new Huge();
        token.watch(address(channels));
        token.mint(VM.addr(PAYER), 2 ** 100);
        key = Channels.Key({
            payer: VM.addr(PAYER),
            signer: VM.addr(SIGNER),
            payee: VM.addr(PAYEE),
            payout: VM.addr(PAYEE),
            token: IERC20(address(token)),
            salt: ""
        });
    }

    function test_depositsFit96BitsAndAreNotNothing() external {
        _payerFails(_open(key, DEPOSIT_MAX + 1, PERIOD), _tooLarge(uint256(DEPOSIT_MAX) + 1));
        _payerFails(_open(key, type(uint128).max, PERIOD), _tooLarge(type(uint128).max));
        _payerFails(_open(key, 0, PERIOD), _error(Channels.ZeroAmount.selector));
        _payerDoes(_open(key, DEPOSIT_MAX - 1, PERIOD));
        _payerFails(abi.encodeCall(Channels.topUp, (key, 2)), _tooLarge(uint256(DEPOSIT_MAX) + 1));
        _payerFails(
            abi.encodeCall(Channels.topUp, (key, type(uint128).max)),
            _tooLarge(uint256(type(uint128).max) + DEPOSIT_MAX - 1)
        );
        _payerFails(abi.encodeCall(Channels.topUp, (key, 0)), _error(Channels.ZeroAmount.selector));
        _payerDoes(abi.encodeCall(Channels.topUp, (key, 1)));
        (uint96 deposit,,,) = channels.channels(channels.channelId(key));
        require(deposit == DEPOSIT_MAX && token.balanceOf(address(channels)) == DEPOSIT_MAX, "another deposit");
    }

    function test_periodsAreNeitherShorterNorLongerThanAllowed() external {
        (uint32 min, uint32 max) = (channels.PERIOD_MIN(), channels.PERIOD_MAX());
        require(min == 48 hours, "another minimum");
        uint32[3] memory refused = [0, min - 1, max + 1];
        for (uint256 i = 0; i < refused.length; ++i) {
            bytes memory reason = abi.encodeWithSelector(Channels.PeriodOutOfRange.selector, refused[i]);
            _payerFails(_open(key, DEPOSIT, refused[i]), reason);
        }
        _payerDoes(_open(key, DEPOSIT, min));
        key.salt = "longest";
        _payerDoes(_open(key, DEPOSIT, max));
    }

    function test_onlyThePayerOpensAndNobodyIsMissing() external {
        _fails(STRANGER, _open(key, DEPOSIT, PERIOD), _error(Channels.NotPayer.selector));
        Channels.Key[4] memory lacking = [key, key, key, key];
        lacking[0].signer = address(0);
        lacking[1].payee = address(0);
        lacking[2].payout = address(0);
        lacking[3].payout = address(channels);
        for (uint256 i = 0; i < lacking.length; ++i) {
            _payerFails(_open(lacking[i], DEPOSIT, PERIOD), _error(Channels.ZeroAddress.selector));
        }
        _payerDoes(_open(key, DEPOSIT, PERIOD));
        _payerFails(_open(key, DEPOSIT, PERIOD), _errorOf(Channels.ChannelExists.selector));
    }

    function test_vouchersPayUpToTheDepositAndOnlyMoreThanBefore() external {
        _payerDoes(_open(key, DEPOSIT, PERIOD));
        _fails(STRANGER, _redeem(DEPOSIT + 1), _overDeposit(DEPOSIT + 1));
        _fails(STRANGER, _redeem(type(uint128).max), _overDeposit(type(uint128).max));
        _fails(STRANGER, _redeem(0), _notHigher(0, 0));
        _does(STRANGER, _redeem(DEPOSIT - 1));
        _fails(STRANGER, _redeem(DEPOSIT - 1), _notHigher(DEPOSIT - 1, DEPOSIT - 1));
        _does(STRANGER, _redeem(DEPOSIT));
        require(token.balanceOf(key.payout) == DEPOSIT, "not all was paid");
    }

    function test_manyWithNothingInThemAreRefused() external {
        _payerDoes(_open(key, DEPOSIT, PERIOD));
        Channels.Item[] memory none = new Channels.Item[](0);
        _fails(STRANGER, abi.encodeCall(Channels.redeemMany, (none)), _error(Channels.NothingRedeemed.selector));
        Channels.Item[] memory over = new Channels.Item[](1);
        over[0] = Channels.Item(key, DEPOSIT + 1, 0, _voucher(DEPOSIT + 1));
        _fails(STRANGER, abi.encodeCall(Channels.redeemMany, (over)), _error(Channels.NothingRedeemed.selector));
    }

    function test_onlyThePayerStartsACloseAndOnce() external {
        bytes memory start = abi.encodeCall(Channels.startClose, (key));
        _payerFails(start, _errorOf(Channels.ChannelNotOpen.selector));
        _payerDoes(_open(key, DEPOSIT, PERIOD));
        uint256[3] memory others = [SIGNER, PAYEE, STRANGER];
        for (uint256 i = 0; i < others.length; ++i) _fails(others[i], start, _error(Channels.NotPayer.selector));
        _payerDoes(start);
        _payerFails(start, _errorOf(Channels.ChannelClosing.selector));
        _payerFails(abi.encodeCall(Channels.topUp, (key, 1)), _errorOf(Channels.ChannelClosing.selector));
    }

    function test_aCloseIsFinishedWhenThePeriodIsOverAndNotASecondBefore() external {
        bytes memory finish = abi.encodeCall(Channels.finishClose, (key));
        _payerDoes(_open(key, DEPOSIT, PERIOD));
        _payerFails(finish, _error(Channels.NotClosing.selector));
        uint256 closesAt = block.timestamp + PERIOD;
        _payerDoes(abi.encodeCall(Channels.startClose, (key)));
        _payerFails(finish, abi.encodeWithSelector(Channels.TooEarly.selector, closesAt));
        VM.warp(closesAt - 1);
        _payerFails(finish, abi.encodeWithSelector(Channels.TooEarly.selector, closesAt));
        _does(STRANGER, _redeem(400));
        VM.warp(closesAt);
        uint256 before = token.balanceOf(key.payer);
        _does(STRANGER, finish);
        require(token.balanceOf(key.payer) - before == DEPOSIT - 400, "another refund");
        require(token.balanceOf(address(channels)) == 0, "something is left");
        _payerFails(finish, _errorOf(Channels.ChannelNotOpen.selector));
    }

    function test_thePayeeClosesBetweenWhatWasPaidAndTheDeposit() external {
        _payerDoes(_open(key, DEPOSIT, PERIOD));
        _does(STRANGER, _redeem(400));
        bytes memory below = abi.encodeWithSelector(Channels.AmountBelowRedeemed.selector, 399, 400);
        _fails(PAYEE, _close(399), below);
        _fails(PAYEE, _close(DEPOSIT + 1), _overDeposit(DEPOSIT + 1));
        uint256[3] memory others = [PAYER, SIGNER, STRANGER];
        for (uint256 i = 0; i < others.length; ++i) {
            _fails(others[i], _close(400), _error(Channels.BadPayeeSignature.selector));
        }
        _does(PAYEE, _close(DEPOSIT));
        require(token.balanceOf(key.payout) == DEPOSIT, "not all was paid");
        _fails(PAYEE, _close(DEPOSIT), _errorOf(Channels.ChannelNotOpen.selector));
    }

    // ------------------------------------------------------------------ inside

    function _open(Channels.Key memory which, uint128 deposit, uint32 period) private pure returns (bytes memory) {
        return abi.encodeCall(Channels.open, (which, deposit, period));
    }

    function _redeem(uint128 amount) private view returns (bytes memory) {
        return abi.encodeCall(Channels.redeem, (key, amount, 0, _voucher(amount)));
    }

    function _close(uint128 amount) private view returns (bytes memory) {
        return abi.encodeCall(Channels.closeByPayee, (key, amount, 0, _voucher(amount), ""));
    }

    function _voucher(uint128 amount) private view returns (bytes memory) {
        return _sign(SIGNER, channels.voucherDigest(channels.channelId(key), amount, 0));
    }

    function _payerDoes(bytes memory data) private {
        _does(PAYER, data);
    }

    function _payerFails(bytes memory data, bytes memory reason) private {
        _fails(PAYER, data, reason);
    }

    function _does(uint256 secret, bytes memory data) private {
        VM.prank(VM.addr(secret));
        (bool ok,) = address(channels).call(data);
        require(ok, "refused");
    }

    function _fails(uint256 secret, bytes memory data, bytes memory reason) private {
        VM.prank(VM.addr(secret));
        (bool ok, bytes memory said) = address(channels).call(data);
        require(!ok && keccak256(said) == keccak256(reason), "not refused for that reason");
    }

    function _error(bytes4 selector) private pure returns (bytes memory) {
        return abi.encodeWithSelector(selector);
    }

    function _errorOf(bytes4 selector) private view returns (bytes memory) {
        return abi.encodeWithSelector(selector, channels.channelId(key));
    }

    function _tooLarge(uint256 deposit) private pure returns (bytes memory) {
        return abi.encodeWithSelector(Channels.DepositTooLarge.selector, deposit);
    }

    function _overDeposit(uint128 amount) private pure returns (bytes memory) {
        return abi.encodeWithSelector(Channels.AmountOverDeposit.selector, amount, DEPOSIT);
    }

    function _notHigher(uint128 amount, uint128 redeemed) private pure returns (bytes memory) {
        return abi.encodeWithSelector(Channels.AmountNotHigher.selector, amount, redeemed);
    }
}
