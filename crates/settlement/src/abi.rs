//! The contracts' interface, as `sol!` types. A test compares it with the artifacts' ABI.
#![allow(missing_docs, clippy::as_conversions, clippy::arithmetic_side_effects)]

alloy_sol_types::sol! {
    #[derive(Debug)]
    interface Channels {
        struct Key {
            address payer;
            address signer;
            address payee;
            address payout;
            address token;
            bytes32 salt;
        }

        struct Item {
            Key key;
            uint128 amount;
            bytes32 statement;
            bytes signature;
        }

        function open(Key key, uint128 deposit, uint32 period) returns (bytes32 id);
        function topUp(Key key, uint128 more);
        function startClose(Key key);
        function finishClose(Key key);
        function redeem(Key key, uint128 amount, bytes32 statement, bytes signature);
        function redeemMany(Item[] items);
        function closeByPayee(
            Key key,
            uint128 amount,
            bytes32 statement,
            bytes voucherSignature,
            bytes payeeSignature
        );
        function channels(bytes32 id) returns (uint96 deposit, uint96 redeemed, uint40 closesAt, uint24 period);
        function channelId(Key key) returns (bytes32);
        function voucherDigest(bytes32 channel, uint128 amount, bytes32 statement) returns (bytes32);
        function closeDigest(bytes32 channel, uint128 amount) returns (bytes32);

        event Opened(
            bytes32 indexed channel,
            address indexed payer,
            address indexed payee,
            Key key,
            uint256 deposit,
            uint256 period
        );
        event ToppedUp(bytes32 indexed channel, uint256 deposit);
        event Redeemed(bytes32 indexed channel, uint256 redeemed, uint256 paid);
        event Refused(bytes32 indexed channel, uint8 reason);
        event CloseStarted(bytes32 indexed channel, uint256 closesAt);
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
        error TokenGone();
        error NotClosing();
        error TooEarly(uint256 closesAt);
        error SafeERC20FailedOperation(address token);
        error ReentrancyGuardReentrantCall();
    }

    #[derive(Debug)]
    interface Token {
        function balanceOf(address account) returns (uint256);
        function allowance(address owner, address spender) returns (uint256);
        function approve(address spender, uint256 amount) returns (bool);
        function decimals() returns (uint8);
        function symbol() returns (string);
        function mint(address account, uint256 amount);

        error ERC20InsufficientBalance(address sender, uint256 balance, uint256 needed);
        error ERC20InsufficientAllowance(address spender, uint256 allowance, uint256 needed);
    }
}
