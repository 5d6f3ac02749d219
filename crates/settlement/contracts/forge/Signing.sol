// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Channels} from "../src/Channels.sol";
import {VM} from "./Vm.sol";

/// @dev Order of secp256k1.
uint256 constant CURVE_ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;

/// @title Accounts with keys, and the contract under test
abstract contract Signing {
    uint256 internal constant ACTORS = 6;

    /// @dev Deploys the committed bytes, or those that the check's control puts in their place.
    function _deploy() internal returns (Channels channels) {
        string memory path = VM.envOr("SLUICE_ARTIFACT", "artifacts/Channels.json");
        bytes memory code = VM.parseJsonBytes(VM.readFile(path), ".bytecode");
        assembly {
            channels := create(0, add(code, 32), mload(code))
        }
        require(address(channels) != address(0), "Channels was not deployed");
    }

    function _secret(uint256 seed) internal pure returns (uint256) {
        return 1 + seed % ACTORS;
    }

    function _actor(uint256 seed) internal pure returns (address) {
        return VM.addr(_secret(seed));
    }

    function _sign(uint256 secret, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = VM.sign(secret, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev The other signature of the same key over the same digest.
    function _mirrored(uint256 secret, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = VM.sign(secret, digest);
        return abi.encodePacked(r, bytes32(CURVE_ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
    }
}
