// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Channels} from "../src/Channels.sol";
import {Plain} from "./Models.sol";
import {Signing} from "./Signing.sol";
import {VM} from "./Vm.sol";

/// @title A voucher and a consent pay once, where they were signed for, and nowhere else
contract ReplayTest is Signing {
    uint256 private constant PAYER = 1;
    uint256 private constant SIGNER = 2;
    uint256 private constant PAYEE = 3;
    uint256 private constant PAYOUT = 4;
    uint256 private constant STRANGER = 5;
    uint128 private constant DEPOSIT = 1_000;
    uint128 private constant AMOUNT = 400;
    bytes32 private constant STATEMENT = "statement";

    Channels private channels;
    Plain private token;
    Channels.Key private key;
    bytes32 private id;
    bytes private voucher;

    function setUp() external {
        channels = _deploy();
        token = new Plain();
        token.mint(VM.addr(PAYER), 100 * DEPOSIT);
        key = Channels.Key({
            payer: VM.addr(PAYER),
            signer: VM.addr(SIGNER),
            payee: VM.addr(PAYEE),
            payout: VM.addr(PAYOUT),
            token: IERC20(address(token)),
            salt: "salt"
        });
        id = _open(channels, key);
        voucher = _sign(SIGNER, channels.voucherDigest(id, AMOUNT, STATEMENT));
    }

    /// @dev The control: as it is, the voucher pays.
    function test_control_theVoucherPaysWhereItWasSignedFor() external {
        channels.redeem(key, AMOUNT, STATEMENT, voucher);
        require(token.balanceOf(key.payout) == AMOUNT, "not paid");
    }

    function test_twice() external {
        channels.redeem(key, AMOUNT, STATEMENT, voucher);
        _refused(channels, key, voucher, abi.encodeWithSelector(Channels.AmountNotHigher.selector, AMOUNT, AMOUNT));
    }

    function test_onAnotherChain() external {
        VM.chainId(block.chainid + 1);
        // The fork's id is another, so that the channel is not there ..
        _refused(channels, key, voucher, _notOpen(channels, key));
        // .. and if the same parties open it there, it is another.
        _open(channels, key);
        _refused(channels, key, voucher, _badSignature());
    }

    function test_onAnotherContract() external {
        Channels other = _deploy();
        _refused(other, key, voucher, _notOpen(other, key));
        _open(other, key);
        _refused(other, key, voucher, _badSignature());
    }

    function test_onAnotherChannelOfTheSameParties() external {
        Channels.Key memory other = key;
        other.salt = "other salt";
        _open(channels, other);
        _refused(channels, other, voucher, _badSignature());
    }

    function test_onTheChannelOpenedAgain() external {
        _closeAt(AMOUNT);
        _refused(channels, key, voucher, _notOpen(channels, key));
        VM.prank(key.payer);
        _fails(abi.encodeCall(Channels.open, (key, DEPOSIT, 3 days)), _exists());
        Channels.Key memory again = key;
        again.salt = "again";
        _open(channels, again);
        _refused(channels, again, voucher, _badSignature());
    }

    function test_forAnotherPayee() external {
        Channels.Key memory other = key;
        other.payee = VM.addr(STRANGER);
        _refused(channels, other, voucher, _notOpen(channels, other));
        _open(channels, other);
        _refused(channels, other, voucher, _badSignature());
    }

    function test_toAnotherPayout() external {
        Channels.Key memory other = key;
        other.payout = VM.addr(STRANGER);
        _refused(channels, other, voucher, _notOpen(channels, other));
        _open(channels, other);
        _refused(channels, other, voucher, _badSignature());
    }

    function test_fromAnotherPayerOrOfAnotherToken() external {
        Channels.Key memory other = key;
        other.payer = VM.addr(STRANGER);
        token.mint(other.payer, DEPOSIT);
        _open(channels, other);
        _refused(channels, other, voucher, _badSignature());
        other = key;
        Plain dear = new Plain();
        dear.mint(key.payer, DEPOSIT);
        other.token = IERC20(address(dear));
        _open(channels, other);
        _refused(channels, other, voucher, _badSignature());
    }

    function test_withAnotherAmountOrStatement() external {
        _fails(abi.encodeCall(Channels.redeem, (key, AMOUNT + 1, STATEMENT, voucher)), _badSignature());
        _fails(abi.encodeCall(Channels.redeem, (key, AMOUNT, "another", voucher)), _badSignature());
    }

    function test_signaturesOfOtherShapes() external {
        bytes32 digest = channels.voucherDigest(id, AMOUNT, STATEMENT);
        (uint8 v, bytes32 r, bytes32 s) = VM.sign(SIGNER, digest);
        bytes32 short = bytes32(uint256(s) | (uint256(v - 27) << 255));
        bytes[9] memory spoilt = [
            _mirrored(SIGNER, digest),
            abi.encodePacked(r, short),
            abi.encodePacked(r, s, v - 27),
            abi.encodePacked(r, s, v == 27 ? uint8(28) : uint8(27)),
            abi.encodePacked(r, s, v, uint8(0)),
            abi.encodePacked(r, s),
            new bytes(65),
            bytes(""),
            _sign(PAYER, digest)
        ];
        for (uint256 i = 0; i < spoilt.length; ++i) _refused(channels, key, spoilt[i], _badSignature());
        channels.redeem(key, AMOUNT, STATEMENT, voucher);
    }

    function test_aConsentIsGoodForItsChannelAmountChainAndContractOnly() external {
        Channels.Key memory other = key;
        other.salt = "other";
        _open(channels, other);
        bytes memory consent = _sign(PAYEE, channels.closeDigest(id, 0));
        bytes memory refusal = abi.encodeWithSelector(Channels.BadPayeeSignature.selector);
        _fails(abi.encodeCall(Channels.closeByPayee, (other, 0, 0, "", consent)), refusal);
        _fails(abi.encodeCall(Channels.closeByPayee, (key, AMOUNT, STATEMENT, voucher, consent)), refusal);
        bytes memory mirrored = _mirrored(PAYEE, channels.closeDigest(id, 0));
        _fails(abi.encodeCall(Channels.closeByPayee, (key, 0, 0, "", mirrored)), refusal);
        // A voucher is no consent, and a consent no voucher.
        bytes memory crossed = _sign(PAYEE, channels.voucherDigest(id, 0, 0));
        _fails(abi.encodeCall(Channels.closeByPayee, (key, 0, 0, "", crossed)), refusal);
        _refused(channels, key, _sign(SIGNER, channels.closeDigest(id, AMOUNT)), _badSignature());
        // It ends when more was redeemed.
        channels.redeem(key, AMOUNT, STATEMENT, voucher);
        bytes memory below = abi.encodeWithSelector(Channels.AmountBelowRedeemed.selector, 0, AMOUNT);
        _fails(abi.encodeCall(Channels.closeByPayee, (key, 0, 0, "", consent)), below);
    }

    // ------------------------------------------------------------------ inside

    function _open(Channels where, Channels.Key memory which) private returns (bytes32) {
        VM.prank(which.payer);
        return where.open(which, DEPOSIT, 3 days);
    }

    function _closeAt(uint128 amount) private {
        VM.prank(key.payee);
        channels.closeByPayee(key, amount, STATEMENT, voucher, "");
    }

    function _refused(Channels where, Channels.Key memory which, bytes memory signature, bytes memory reason) private {
        (bool ok, bytes memory said) =
            address(where).call(abi.encodeCall(Channels.redeem, (which, AMOUNT, STATEMENT, signature)));
        require(!ok && keccak256(said) == keccak256(reason), "not refused for that reason");
        Channels.Item[] memory items = new Channels.Item[](1);
        items[0] = Channels.Item(which, AMOUNT, STATEMENT, signature);
        (ok,) = address(where).call(abi.encodeCall(Channels.redeemMany, (items)));
        require(!ok, "paid among many");
        VM.prank(which.payee);
        (ok,) = address(where).call(
            abi.encodeCall(Channels.closeByPayee, (which, AMOUNT, STATEMENT, signature, bytes("")))
        );
        require(!ok || _isRedeemed(where, which), "paid at a close");
    }

    /// @dev A close at what was redeemed already needs no voucher, so none is spoilt.
    function _isRedeemed(Channels where, Channels.Key memory which) private view returns (bool) {
        (, uint96 redeemed,,) = where.channels(where.channelId(which));
        return redeemed == AMOUNT;
    }

    function _fails(bytes memory data, bytes memory reason) private {
        (bool ok, bytes memory said) = address(channels).call(data);
        require(!ok && keccak256(said) == keccak256(reason), "not refused for that reason");
    }

    function _badSignature() private pure returns (bytes memory) {
        return abi.encodeWithSelector(Channels.BadVoucherSignature.selector);
    }

    function _notOpen(Channels where, Channels.Key memory which) private view returns (bytes memory) {
        return abi.encodeWithSelector(Channels.ChannelNotOpen.selector, where.channelId(which));
    }

    function _exists() private view returns (bytes memory) {
        return abi.encodeWithSelector(Channels.ChannelExists.selector, id);
    }
}
