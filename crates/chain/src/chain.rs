//! The operations on channels, the same on both kinds of chain.

use std::path::Path;

use sluice_proto::{Amount, ChannelKey, Domain, EthAddress, Voucher, WalletKey, WalletSignature};
use sluice_settlement::{ChannelSlot, REDEEM_MAX, answer, call};

use crate::embedded::{EMBEDDED_CHAIN_ID, Embedded};
use crate::rpc::Rpc;
use crate::{
    ChainError, ChannelState, FeeEstimate, Redemption, RpcConfig, TokenInfo, TxReceipt, View,
};

/// A chain. Cheap to clone; clones share connection and state.
#[derive(Debug, Clone)]
pub enum Chain {
    /// In this process, state in a folder.
    Embedded(Embedded),
    /// A node over JSON-RPC.
    Rpc(Rpc),
}

impl Chain {
    /// Opens the embedded chain in `dir`; makes the folder and a new chain, contracts deployed, if
    /// there is none. Blocks for a moment.
    ///
    /// # Errors
    /// `Corrupt` or `Newer` when the state on disk cannot be used, `Io` when the disk cannot.
    pub fn open_embedded(dir: &Path) -> Result<Self, ChainError> {
        Embedded::open(dir).map(Self::Embedded)
    }

    /// Connects to a node and checks that chain and contracts are what `cfg` says.
    ///
    /// # Errors
    /// `BadUrl`, `Unreachable`, `WrongChain`, `NoContract`, `OtherContract`.
    pub async fn connect_rpc(cfg: RpcConfig) -> Result<Self, ChainError> {
        Rpc::connect(cfg).await.map(Self::Rpc)
    }

    /// What vouchers here are signed for. On a development node before
    /// [`deploy_dev`](Self::deploy_dev) the contract's address is zero.
    #[must_use]
    pub fn domain(&self) -> Domain {
        match self {
            Self::Embedded(_) => Embedded::domain(),
            Self::Rpc(rpc) => rpc.domain(),
        }
    }

    /// The ERC-20 token of channels here; zero in the case that [`domain`](Self::domain) names.
    #[must_use]
    pub fn token(&self) -> EthAddress {
        match self {
            Self::Embedded(_) => Embedded::token(),
            Self::Rpc(rpc) => rpc.token().unwrap_or_default(),
        }
    }

    /// `"embedded"` or `"rpc"`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Rpc(_) => "rpc",
        }
    }

    /// Whether [`deploy_dev`](Self::deploy_dev), [`fund_dev`](Self::fund_dev) and
    /// [`advance_dev`](Self::advance_dev) work here: embedded, or chain id 31337.
    #[must_use]
    pub fn is_development(&self) -> bool {
        match self {
            Self::Embedded(_) => true,
            Self::Rpc(rpc) => rpc.is_development(),
        }
    }

    /// Development chains only: a handle with `Channels` and a test token deployed. Embedded they
    /// always are; on a node they are deployed unless both addresses were configured.
    ///
    /// # Errors
    /// `NotDevelopment`, or as for sending.
    pub async fn deploy_dev(&self) -> Result<Self, ChainError> {
        match self {
            Self::Embedded(_) => Ok(self.clone()),
            Self::Rpc(rpc) => rpc.deploy_dev().await.map(Self::Rpc),
        }
    }

    /// Development chains only: tops the account's coins for fees up to 10 and mints it `tokens`.
    ///
    /// # Errors
    /// `NotDevelopment`, or as for sending.
    pub async fn fund_dev(&self, account: EthAddress, tokens: Amount) -> Result<(), ChainError> {
        match self {
            Self::Embedded(embedded) => embedded.fund(account, tokens).await,
            Self::Rpc(rpc) => rpc.fund_dev(account, tokens).await,
        }
    }

    /// Development chains only: moves chain time ahead.
    ///
    /// # Errors
    /// `NotDevelopment`, or as for reading.
    pub async fn advance_dev(&self, seconds: u64) -> Result<(), ChainError> {
        match self {
            Self::Embedded(embedded) => embedded.advance(seconds).await,
            Self::Rpc(rpc) => rpc.advance_dev(seconds).await,
        }
    }

    /// The account's tokens, in the newest block.
    ///
    /// # Errors
    /// As for any read: `Unreachable`, `Refused`, `BadAnswer`; `OtherContract` when the token is none.
    pub async fn token_balance(&self, account: EthAddress) -> Result<Amount, ChainError> {
        let answer = self.read_token(call::balance_of(account)).await?;
        answer::amount(&answer).ok_or_else(|| self.not_a_token())
    }

    /// The account's coins for fees, in wei, in the newest block.
    ///
    /// # Errors
    /// As for any read.
    pub async fn coin_balance_wei(&self, account: EthAddress) -> Result<u128, ChainError> {
        match self {
            Self::Embedded(embedded) => embedded.coin_balance(account).await,
            Self::Rpc(rpc) => rpc.coin_balance(account).await,
        }
    }

    /// How to print amounts.
    ///
    /// # Errors
    /// As for [`token_balance`](Self::token_balance).
    pub async fn token_info(&self) -> Result<TokenInfo, ChainError> {
        let decimals = answer::amount(&self.read_token(call::decimals()).await?)
            .and_then(|decimals| u8::try_from(decimals.0).ok())
            .ok_or_else(|| self.not_a_token())?;
        let symbol = answer::symbol(&self.read_token(call::symbol()).await?)
            .ok_or_else(|| self.not_a_token())?;
        Ok(TokenInfo { symbol, decimals })
    }

    /// Approves the deposit if that is needed, and opens the channel.
    ///
    /// # Errors
    /// `WrongWallet`, `WrongToken`, `InsufficientFunds`, `Reverted` with `ChannelExists`,
    /// `TokenBalance`, `PeriodOutOfRange` and the like, `Timeout`, or as for reading.
    pub async fn open_channel(
        &self,
        payer: &WalletKey,
        key: ChannelKey,
        deposit: Amount,
        period_s: u32,
    ) -> Result<TxReceipt, ChainError> {
        check_wallet("payer", key.payer, payer)?;
        self.check_token(&key)?;
        let _alone = self.spending().lock().await;
        let approval = self.approve(payer, deposit).await?;
        let open = call::open(&key, deposit, period_s);
        self.send("open a channel", payer, open, &[&key])
            .await
            .map(|receipt| receipt.with(approval))
    }

    /// Approves `more` if that is needed, and adds it to the deposit. Any wallet may pay in.
    ///
    /// # Errors
    /// `WrongToken`, `InsufficientFunds`, `Reverted` with `ChannelNotOpen`, `ChannelClosing`,
    /// `TokenBalance` and the like, `Timeout`, or as for reading.
    pub async fn top_up(
        &self,
        payer: &WalletKey,
        key: &ChannelKey,
        more: Amount,
    ) -> Result<TxReceipt, ChainError> {
        self.check_token(key)?;
        let _alone = self.spending().lock().await;
        let approval = self.approve(payer, more).await?;
        let top_up = call::top_up(key, more);
        self.send("top up a channel", payer, top_up, &[key])
            .await
            .map(|receipt| receipt.with(approval))
    }

    /// The channel as the chain keeps it; `None` if it was never opened. When nodes disagree, what
    /// is final is what all of them say, and the newest is what must be acted on if any of them is
    /// right: see [`ChannelSlot::sure`] and [`ChannelSlot::urgent`].
    ///
    /// # Errors
    /// As for any read.
    pub async fn channel(
        &self,
        key: &ChannelKey,
        view: View,
    ) -> Result<Option<ChannelState>, ChainError> {
        let data = call::channel(key.id(&self.domain()));
        let answers = match self {
            Self::Embedded(embedded) => vec![embedded.call(self.contract()?, data).await?],
            Self::Rpc(rpc) => rpc.call_each(self.contract()?, data, view).await?,
        };
        let views: Vec<_> = answers.iter().filter_map(|bytes| answer::channel(bytes)).collect();
        if views.is_empty() {
            return Err(self.not_channels());
        }
        let slot = match view {
            View::Latest => ChannelSlot::urgent(&views),
            View::Final => ChannelSlot::sure(&views),
        };
        Ok(slot.map(|slot| ChannelState::new(*key, slot)))
    }

    /// Redeems one voucher, or up to 100 in one transaction; any wallet may. Among many, one that
    /// pays nothing is skipped and stands in the receipt as
    /// [`ChannelEvent::Refused`](crate::ChannelEvent::Refused).
    ///
    /// # Errors
    /// `BatchSize`, `WrongChannel`, `InsufficientFunds`, `Reverted` when none pays, `Timeout`, or as
    /// for reading.
    pub async fn redeem(
        &self,
        submitter: &WalletKey,
        vouchers: &[Redemption],
    ) -> Result<TxReceipt, ChainError> {
        let keys: Vec<_> = vouchers.iter().map(|item| &item.key).collect();
        self.send("redeem", submitter, self.redeem_call(vouchers)?, &keys).await
    }

    /// What [`redeem`](Self::redeem) would cost now, or why it would fail.
    ///
    /// # Errors
    /// As for [`redeem`](Self::redeem).
    pub async fn estimate_redeem(
        &self,
        submitter: EthAddress,
        vouchers: &[Redemption],
    ) -> Result<FeeEstimate, ChainError> {
        let data = self.redeem_call(vouchers)?;
        let contract = self.contract()?;
        match self {
            Self::Embedded(chain) => chain.estimate("redeem", submitter, contract, data).await,
            Self::Rpc(rpc) => rpc.estimate("redeem", submitter, contract, data).await,
        }
    }

    /// What gas costs now, in wei, tip included.
    ///
    /// # Errors
    /// As for any read.
    pub async fn gas_price_wei(&self) -> Result<u128, ChainError> {
        match self {
            Self::Embedded(_) => Ok(Embedded::gas_price_wei()),
            Self::Rpc(rpc) => rpc.gas_price_wei().await,
        }
    }

    /// Closes at `voucher`, or at what was redeemed already: pays the payout, refunds the rest to
    /// the payer. The payee's wallet consents; any wallet may submit and pay the fee.
    ///
    /// # Errors
    /// `WrongWallet`, `WrongChannel`, `NoSuchChannel`, `InsufficientFunds`, `Reverted`, `Timeout`,
    /// or as for reading.
    pub async fn close_by_payee(
        &self,
        submitter: &WalletKey,
        key: &ChannelKey,
        voucher: Option<(Voucher, WalletSignature)>,
        payee: &WalletKey,
    ) -> Result<TxReceipt, ChainError> {
        check_wallet("payee", key.payee, payee)?;
        let channel = key.id(&self.domain());
        let amount = match &voucher {
            Some((voucher, _)) => self.check_channel(key, voucher)?.amount,
            None => match self.channel(key, View::Latest).await? {
                Some(state) => state.redeemed,
                None => return Err(ChainError::NoSuchChannel { channel }),
            },
        };
        let consent = (submitter.address() != payee.address())
            .then(|| payee.sign(self.domain().close_digest(channel, amount)));
        let voucher = voucher.as_ref().map(|(voucher, signature)| (voucher, signature));
        let close = call::close_by_payee(key, amount, voucher, consent.as_ref());
        self.send("close a channel", submitter, close, &[key]).await
    }

    /// Starts to close: after the channel's period the payer may be refunded.
    ///
    /// # Errors
    /// `WrongWallet`, `InsufficientFunds`, `Reverted`, `Timeout`, or as for reading.
    pub async fn start_close(
        &self,
        payer: &WalletKey,
        key: &ChannelKey,
    ) -> Result<TxReceipt, ChainError> {
        check_wallet("payer", key.payer, payer)?;
        self.send("start to close a channel", payer, call::start_close(key), &[key]).await
    }

    /// Finishes a close whose period has passed: refunds the payer. Any wallet may.
    ///
    /// # Errors
    /// `InsufficientFunds`, `Reverted` with `NotClosing` or `TooEarly`, `Timeout`, or as for reading.
    pub async fn finish_close(
        &self,
        submitter: &WalletKey,
        key: &ChannelKey,
    ) -> Result<TxReceipt, ChainError> {
        self.send("finish to close a channel", submitter, call::finish_close(key), &[key]).await
    }

    /// Chain time, Unix seconds: what deadlines are measured by.
    ///
    /// # Errors
    /// As for any read.
    pub async fn now_unix_s(&self) -> Result<u64, ChainError> {
        match self {
            Self::Embedded(embedded) => embedded.now_unix_s().await,
            Self::Rpc(rpc) => rpc.now_unix_s().await,
        }
    }

    /// Approves `amount` for the contract unless so much is approved already. A smaller approval
    /// that was left over is taken back first, as some tokens demand.
    async fn approve(
        &self,
        payer: &WalletKey,
        amount: Amount,
    ) -> Result<Option<TxReceipt>, ChainError> {
        let (contract, token) = (self.contract()?, self.token_address()?);
        let allowance = self.read_token(call::allowance(payer.address(), contract)).await?;
        let allowance = answer::amount(&allowance).unwrap_or(Amount(u128::MAX));
        if allowance >= amount {
            return Ok(None);
        }
        let approve = async |amount| {
            let data = call::approve(contract, amount);
            self.send_to("approve the deposit", payer, token, data).await
        };
        let reset = if allowance.0 == 0 { None } else { Some(approve(Amount(0)).await?) };
        Ok(Some(approve(amount).await?.with(reset)))
    }

    /// Held from approving a deposit until it was taken, so that two deposits of one wallet cannot
    /// spend each other's approval.
    fn spending(&self) -> &tokio::sync::Mutex<()> {
        match self {
            Self::Embedded(embedded) => embedded.spending(),
            Self::Rpc(rpc) => rpc.spending(),
        }
    }

    /// Sends to the contract. Of what the receipt tells only these channels count: nothing that was
    /// sent has to do with another.
    async fn send(
        &self,
        what: &'static str,
        wallet: &WalletKey,
        data: Vec<u8>,
        keys: &[&ChannelKey],
    ) -> Result<TxReceipt, ChainError> {
        let mut receipt = self.send_to(what, wallet, self.contract()?, data).await?;
        let domain = self.domain();
        let ours: Vec<_> = keys.iter().map(|key| key.id(&domain)).collect();
        receipt.events.retain(|event| ours.contains(&event.channel()));
        Ok(receipt)
    }

    async fn send_to(
        &self,
        what: &'static str,
        wallet: &WalletKey,
        to: EthAddress,
        data: Vec<u8>,
    ) -> Result<TxReceipt, ChainError> {
        match self {
            Self::Embedded(embedded) => embedded.send(what, wallet.address(), to, data).await,
            Self::Rpc(rpc) => rpc.send(what, wallet, to, data).await,
        }
    }

    async fn read(&self, to: EthAddress, data: Vec<u8>, view: View) -> Result<Vec<u8>, ChainError> {
        match self {
            Self::Embedded(embedded) => embedded.call(to, data).await,
            Self::Rpc(rpc) => rpc.call(to, data, view).await,
        }
    }

    async fn read_token(&self, data: Vec<u8>) -> Result<Vec<u8>, ChainError> {
        self.read(self.token_address()?, data, View::Latest).await
    }

    fn redeem_call(&self, vouchers: &[Redemption]) -> Result<Vec<u8>, ChainError> {
        for item in vouchers {
            self.check_channel(&item.key, &item.voucher)?;
        }
        match vouchers {
            [one] => Ok(call::redeem(&one.key, &one.voucher, &one.signature)),
            many if (2..=REDEEM_MAX).contains(&many.len()) => Ok(call::redeem_many(
                many.iter().map(|item| (&item.key, &item.voucher, &item.signature)),
            )),
            other => Err(ChainError::BatchSize { count: other.len(), most: REDEEM_MAX }),
        }
    }

    fn contract(&self) -> Result<EthAddress, ChainError> {
        match self {
            Self::Embedded(_) => Ok(Embedded::domain().contract),
            Self::Rpc(rpc) => rpc.contract().ok_or_else(|| self.no_address("Channels")),
        }
    }

    fn token_address(&self) -> Result<EthAddress, ChainError> {
        match self {
            Self::Embedded(_) => Ok(Embedded::token()),
            Self::Rpc(rpc) => rpc.token().ok_or_else(|| self.no_address("token")),
        }
    }

    fn chain_id(&self) -> u64 {
        match self {
            Self::Embedded(_) => EMBEDDED_CHAIN_ID,
            Self::Rpc(rpc) => rpc.domain().chain_id,
        }
    }

    fn check_channel<'v>(
        &self,
        key: &ChannelKey,
        voucher: &'v Voucher,
    ) -> Result<&'v Voucher, ChainError> {
        let expected = key.id(&self.domain());
        if voucher.channel == expected {
            Ok(voucher)
        } else {
            Err(ChainError::WrongChannel { expected, found: voucher.channel })
        }
    }

    fn check_token(&self, key: &ChannelKey) -> Result<(), ChainError> {
        let expected = self.token_address()?;
        if key.token == expected {
            Ok(())
        } else {
            Err(ChainError::WrongToken { expected, found: key.token })
        }
    }

    fn no_address(&self, what: &'static str) -> ChainError {
        ChainError::NoAddress { what, chain_id: self.chain_id() }
    }

    fn not_a_token(&self) -> ChainError {
        let (address, chain_id) = (self.token(), self.chain_id());
        ChainError::OtherContract { what: "token", address, chain_id }
    }

    fn not_channels(&self) -> ChainError {
        let Domain { contract: address, chain_id } = self.domain();
        ChainError::OtherContract { what: "Channels", address, chain_id }
    }
}

fn check_wallet(
    role: &'static str,
    expected: EthAddress,
    wallet: &WalletKey,
) -> Result<(), ChainError> {
    let found = wallet.address();
    if found == expected { Ok(()) } else { Err(ChainError::WrongWallet { role, expected, found }) }
}

impl TxReceipt {
    fn with(mut self, approval: Option<Self>) -> Self {
        if let Some(approval) = approval {
            self.gas_approval = approval.gas.saturating_add(approval.gas_approval);
            self.fee_wei = self.fee_wei.saturating_add(approval.fee_wei);
        }
        self
    }
}
