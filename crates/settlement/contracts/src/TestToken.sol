// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @title A token without value, for development chains
/// @notice Anyone mints any amount to anyone. Never accept it for anything.
contract TestToken is ERC20 {
    constructor() ERC20("Sluice Test Token", "TEST") {}

    /// @notice Six decimals, like the common dollar tokens.
    function decimals() public pure override returns (uint8) {
        return 6;
    }

    /// @notice Makes `amount` new base units for `account`.
    function mint(address account, uint256 amount) external {
        _mint(account, amount);
    }
}
