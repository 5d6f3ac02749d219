// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Channels} from "../src/Channels.sol";
import {
    FeeOnTop,
    FeeOnTransfer,
    Hooked,
    Model,
    Pausing,
    Plain,
    Rebasing,
    ReturnsFalse,
    ReturnsNothing
} from "./Models.sol";
import {Signing} from "./Signing.sol";
import {VM} from "./Vm.sol";

/// @title What each strange token is refused for, or comes to
contract StrangeTest is Signing {
    uint256 private constant PAYER = 1;
    uint256 private constant PAYEE = 2;
    uint128 private constant DEPOSIT = 1_000;

    Channels private channels;

    function setUp() external {
        channels = _deploy();
    }

    function test_aFeeIsRefusedAtOpenAndAtTopUp() external {
        Model token = _watched(new FeeOnTransfer());
        token.disturb(0);
        bytes memory reason = abi.encodeWithSelector(Channels.DepositMismatch.selector, DEPOSIT, 990);
        _openFails(_key(token, ""), reason);
        token.calm();
        _open(_key(token, ""));
        token.disturb(99);
        VM.prank(VM.addr(PAYER));
        (bool ok, bytes memory said) = address(channels).call(abi.encodeCall(Channels.topUp, (_key(token, ""), 7)));
        reason = abi.encodeWithSelector(Channels.DepositMismatch.selector, 7, 0);
        require(!ok && keccak256(said) == keccak256(reason), "a fee of all of it");
    }

    function test_aTokenThatReturnsFalseIsRefusedAtOpenAndLosesNothingLater() external {
        Model token = _watched(new ReturnsFalse());
        token.disturb(0);
        _openFails(_key(token, ""), abi.encodeWithSignature("SafeERC20FailedOperation(address)", token));
        token.calm();
        _open(_key(token, ""));
        token.disturb(0);
        require(!_redeem(_key(token, ""), 100), "paid by false");
        token.calm();
        require(_redeem(_key(token, ""), 100) && token.balanceOf(VM.addr(PAYEE)) == 100, "not paid");
    }

    function test_aTokenThatReturnsNothingIsPaidOutAndRefunded() external {
        Model token = _watched(new ReturnsNothing());
        _open(_key(token, ""));
        require(_redeem(_key(token, ""), 100) && token.balanceOf(VM.addr(PAYEE)) == 100, "not paid");
        _finish(_key(token, ""));
        require(token.balanceOf(address(channels)) == 0, "something is left");
    }

    function test_nothingIsATokenButAContract() external {
        Channels.Key memory key = _key(Model(VM.addr(9)), "");
        VM.prank(key.payer);
        (bool ok,) = address(channels).call(abi.encodeCall(Channels.open, (key, DEPOSIT, 3 days)));
        require(!ok, "opened on an account");
    }

    function test_aPausedTokenDelaysAndLosesNothing() external {
        Model token = _watched(new Pausing());
        _open(_key(token, ""));
        token.disturb(0);
        require(!_redeem(_key(token, ""), 300), "paid while paused");
        _startClose(_key(token, ""));
        VM.warp(block.timestamp + 30 days);
        require(!_tryFinish(_key(token, "")), "refunded while paused");
        token.calm();
        require(_redeem(_key(token, ""), 300) && _tryFinish(_key(token, "")), "not paid after the pause");
        require(token.balanceOf(VM.addr(PAYEE)) == 300, "another amount");
    }

    /// @dev Half of all balances are gone. First come, first served, and nobody's rest is stuck.
    function test_aTokenThatTakesBalancesAwayPaysWhatIsThere() external {
        Model token = _watched(new Rebasing());
        Channels.Key memory one = _key(token, "1");
        Channels.Key memory two = _key(token, "2");
        _open(one);
        _open(two);
        token.disturb(0);
        require(token.balanceOf(address(channels)) == DEPOSIT, "the scene is not as told");
        require(_redeem(one, 700), "not paid");
        // 300 are left of it: the voucher of 500 pays those, and stays good for the other 200.
        require(_redeem(two, 500), "not paid in part");
        (, uint96 redeemed,,) = channels.channels(channels.channelId(two));
        require(redeemed == 300 && token.balanceOf(address(channels)) == 0, "another part");
        require(!_redeem(two, 500), "paid out of nothing");
        // Only the payer may give its rest up.
        _startClose(one);
        VM.warp(block.timestamp + 4 days);
        VM.prank(VM.addr(PAYEE));
        (bool ok,) = address(channels).call(abi.encodeCall(Channels.finishClose, (one)));
        require(!ok, "somebody else gave it up");
        require(_tryFinish(one), "the payer's close is stuck");
        // What comes back serves the voucher.
        token.mint(address(channels), 1_000);
        require(_redeem(two, 500), "the rest of the voucher is lost");
        (, redeemed,,) = channels.channels(channels.channelId(two));
        require(redeemed == 500, "another rest");
    }

    function test_aFeeOnTopCostsOnlyTheTokensOwnChannels() external {
        Model token = _watched(new FeeOnTop());
        Model honest = _watched(new Pausing());
        _open(_key(token, ""));
        _open(_key(honest, ""));
        token.disturb(9);
        require(_redeem(_key(token, ""), 500), "not paid");
        require(token.balanceOf(address(channels)) == 450, "the scene is not as told");
        token.calm();
        _finish(_key(token, ""));
        require(token.balanceOf(address(channels)) == 0, "something is left");
        require(honest.balanceOf(address(channels)) == DEPOSIT, "another token's channel noticed");
    }

    function test_aTokenThatCallsBackGetsNothingDone() external {
        Hooked token = new Hooked();
        _watched(token);
        Channels.Key memory one = _key(token, "1");
        Channels.Key memory two = _key(token, "2");
        _open(one);
        _open(two);
        _startClose(two);
        VM.warp(block.timestamp + 4 days);
        Channels.Item[] memory items = new Channels.Item[](1);
        items[0] = Channels.Item(two, 500, 0, _voucher(two, 500));
        bytes memory consent = _sign(PAYEE, channels.closeDigest(channels.channelId(two), 500));
        // Each would succeed by itself.
        bytes[5] memory backs = [
            abi.encodeCall(Channels.redeem, (two, 500, 0, items[0].signature)),
            abi.encodeCall(Channels.redeemMany, (items)),
            abi.encodeCall(Channels.closeByPayee, (two, 500, 0, items[0].signature, consent)),
            abi.encodeCall(Channels.finishClose, (two)),
            abi.encodeCall(Channels.topUp, (one, 1))
        ];
        for (uint128 i = 0; i < backs.length; ++i) {
            token.hook(address(channels), backs[i]);
            require(_redeem(one, 10 * (i + 1)), "not paid");
        }
        require(token.calls() == 2 * backs.length && token.callsOk() == 0, "called back with success");
        require(token.balanceOf(VM.addr(PAYEE)) == 50, "another amount");
        token.hook(address(0), "");
        (bool ok,) = address(channels).call(backs[0]);
        require(ok, "the scene is not as told");
    }

    function test_manyAreEachPaidTheirOwnByTheirOwnToken() external {
        Model[2] memory tokens = [_watched(new Plain()), _watched(new ReturnsNothing())];
        Channels.Item[] memory items = new Channels.Item[](6);
        for (uint256 i = 0; i < items.length; ++i) {
            Channels.Key memory key = _key(tokens[i / 4], bytes32(i));
            // Two for one payout, two for two others, and two of another token for the last of them.
            key.payout = VM.addr(10 + (i < 2 ? 0 : i < 3 ? 1 : 2));
            _open(key);
            uint128 amount = uint128(1 << i);
            items[i] = Channels.Item(key, amount, 0, _voucher(key, amount));
        }
        items[1].signature = "";
        channels.redeemMany(items);
        uint256[6] memory expected = [uint256(1), 4, 8, 0, 0, 48];
        for (uint256 i = 0; i < expected.length; ++i) {
            require(tokens[i / 3].balanceOf(VM.addr(10 + i % 3)) == expected[i], "paid to somebody else");
        }
    }

    // ------------------------------------------------------------------ inside

    function _watched(Model token) private returns (Model) {
        token.watch(address(channels));
        token.mint(VM.addr(PAYER), 10 * DEPOSIT);
        return token;
    }

    function _key(Model token, bytes32 salt) private pure returns (Channels.Key memory) {
        address payer = VM.addr(PAYER);
        address payee = VM.addr(PAYEE);
        return Channels.Key(payer, payer, payee, payee, IERC20(address(token)), salt);
    }

    function _open(Channels.Key memory key) private {
        VM.prank(key.payer);
        channels.open(key, DEPOSIT, 3 days);
    }

    function _openFails(Channels.Key memory key, bytes memory reason) private {
        VM.prank(key.payer);
        (bool ok, bytes memory said) = address(channels).call(abi.encodeCall(Channels.open, (key, DEPOSIT, 3 days)));
        require(!ok && keccak256(said) == keccak256(reason), "not refused for that reason");
    }

    function _redeem(Channels.Key memory key, uint128 amount) private returns (bool ok) {
        (ok,) = address(channels).call(abi.encodeCall(Channels.redeem, (key, amount, 0, _voucher(key, amount))));
    }

    function _voucher(Channels.Key memory key, uint128 amount) private view returns (bytes memory) {
        return _sign(PAYER, channels.voucherDigest(channels.channelId(key), amount, 0));
    }

    function _startClose(Channels.Key memory key) private {
        VM.prank(key.payer);
        channels.startClose(key);
    }

    function _tryFinish(Channels.Key memory key) private returns (bool ok) {
        VM.prank(key.payer);
        (ok,) = address(channels).call(abi.encodeCall(Channels.finishClose, (key)));
    }

    function _finish(Channels.Key memory key) private {
        _startClose(key);
        VM.warp(block.timestamp + 3 days);
        require(_tryFinish(key), "a deposit is stuck");
    }
}
