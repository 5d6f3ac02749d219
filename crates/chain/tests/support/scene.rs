//! A node of a test's own, a way to it that may lie, and the key of a channel between two wallets.

use std::time::Duration;

use sluice_chain::anvil::{Anvil, Way};
use sluice_chain::{Chain, DEV_CHAIN_ID, Finality, INCLUSION_DEFAULT, Redemption, RpcConfig};
use sluice_proto::{Amount, ChannelKey, EthAddress, Voucher, WalletKey};

pub(crate) const PERIOD_S: u32 = 72 * 60 * 60;

pub(crate) struct Scene {
    #[allow(dead_code, reason = "it ends with the scene")]
    pub(crate) anvil: Anvil,
    pub(crate) way: Way,
    /// Asks the node itself.
    pub(crate) chain: Chain,
    pub(crate) payer: WalletKey,
    pub(crate) payee: WalletKey,
    /// Of a channel that is not open yet.
    pub(crate) key: ChannelKey,
    cfg: RpcConfig,
}

impl Scene {
    /// The payer has so many tokens. `None` where anvil is not installed.
    pub(crate) async fn new(tokens: u128, confirmations: u64, patience: Duration) -> Option<Self> {
        let anvil = Anvil::start()?;
        let way = Way::to(anvil.url()).unwrap();
        let cfg = RpcConfig {
            url: anvil.url().to_owned(),
            other_urls: Vec::new(),
            contract: None,
            token: None,
            finality: Finality::Confirmations(confirmations),
            chain_id: Some(DEV_CHAIN_ID),
            patience,
            inclusion: INCLUSION_DEFAULT,
        };
        let chain = Chain::connect_rpc(cfg.clone()).await.unwrap().deploy_dev().await.unwrap();
        let [payer, payee] = [1, 2].map(|seed| WalletKey::from_bytes([seed; 32]).unwrap());
        chain.fund_dev(payer.address(), Amount(tokens)).await.unwrap();
        chain.fund_dev(payee.address(), Amount(0)).await.unwrap();
        let key = ChannelKey {
            payer: payer.address(),
            signer: payer.address(),
            payee: payee.address(),
            payout: EthAddress([0xaa; 20]),
            token: chain.token(),
            salt: [9; 32],
        };
        Some(Self { anvil, way, chain, payer, payee, key, cfg })
    }

    /// Of another that uses the same contracts through the way.
    pub(crate) fn config(&self) -> RpcConfig {
        RpcConfig {
            url: self.way.url().to_owned(),
            contract: Some(self.chain.domain().contract),
            token: Some(self.chain.token()),
            ..self.cfg.clone()
        }
    }

    /// What the payer signs.
    pub(crate) fn voucher(&self, amount: u128) -> Redemption {
        let domain = self.chain.domain();
        let channel = self.key.id(&domain);
        let voucher = Voucher { channel, amount: Amount(amount), statement: [7; 32] };
        let signature = self.payer.sign(voucher.digest(&domain));
        Redemption { key: self.key, voucher, signature }
    }
}
