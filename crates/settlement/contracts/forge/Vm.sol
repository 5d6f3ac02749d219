// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title What these tests ask of forge
interface Vm {
    function addr(uint256 secret) external pure returns (address);
    function chainId(uint256 id) external;
    function envOr(string calldata name, string calldata otherwise) external view returns (string memory);
    function parseJsonBytes(string calldata json, string calldata key) external pure returns (bytes memory);
    function prank(address caller) external;
    function readFile(string calldata path) external view returns (string memory);
    function sign(uint256 secret, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function toString(uint256 value) external pure returns (string memory);
    function warp(uint256 unixSeconds) external;
    function writeLine(string calldata path, string calldata line) external;
}

Vm constant VM = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
