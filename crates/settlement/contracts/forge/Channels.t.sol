// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Everyone} from "./Everyone.sol";
import {VM} from "./Vm.sol";

/// @title What holds whatever anyone does
/// @notice Forge calls `Everyone` with random arguments, some hundred times a run, and this contract's
/// functions between them.
contract ChannelsTest {
    /// @dev As forge defines it.
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    string private constant TALLY = "forge/out/tally";
    Everyone private everyone;

    function setUp() external {
        everyone = new Everyone();
    }

    /// @notice Asked by forge: who is called at random.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(everyone);
    }

    /// @notice Asked by forge: what is for the end of a run only.
    function excludeSelectors() external view returns (FuzzSelector[] memory excluded) {
        excluded = new FuzzSelector[](1);
        excluded[0].addr = address(everyone);
        excluded[0].selectors = new bytes4[](1);
        excluded[0].selectors[0] = Everyone.closeAll.selector;
    }

    /// @notice The books of `Everyone` and of the tokens agree with the contract after each call: it checks itself
    /// what the call touched, and reverts otherwise.
    function invariant_everyChannelAndTokenIsWhereTheBooksSay() external view {}

    /// @notice At the end of each run: all of it once more, and then nothing is stuck.
    function afterInvariant() external {
        everyone.checkAll();
        everyone.closeAll();
        string[7] memory kinds =
            ["open", "topUp", "redeem", "redeemMany", "startClose", "finishClose", "closeByPayee"];
        for (uint256 i = 0; i < kinds.length; ++i) {
            uint256 done = everyone.tally(string.concat(kinds[i], " done"));
            uint256 refused = everyone.tally(string.concat(kinds[i], " refused"));
            VM.writeLine(TALLY, string.concat(kinds[i], " ", VM.toString(done), " ", VM.toString(refused)));
        }
    }
}
