//! Prints what each operation costs on the embedded chain (Cancun rules), as a table; with `--json`
//! the figures follow on one line.

#![expect(clippy::print_stdout, reason = "a program for people")]

use anyhow::Context as _;
use sluice_chain::{Chain, Redemption};
use sluice_proto::{Amount, ChannelKey, EthAddress, Voucher, WalletKey};
use sluice_settlement::PERIOD_DEFAULT_S;

const BATCH: u8 = 100;

struct Bench {
    chain: Chain,
    payer: WalletKey,
    payee: WalletKey,
    key: ChannelKey,
    figures: Vec<serde_json::Value>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir().context("failed to make a folder")?;
    let mut bench = Bench::new(dir.path()).await?;
    println!("{:<52} {:>9} {:>12}", "operation", "gas", "target");
    bench.single().await?;
    bench.batch().await?;
    if std::env::args().any(|argument| argument == "--json") {
        println!("{}", serde_json::json!({ "figures": bench.figures }));
    }
    Ok(())
}

impl Bench {
    async fn new(dir: &std::path::Path) -> anyhow::Result<Self> {
        let chain = Chain::open_embedded(dir)?;
        let wallet = |seed| WalletKey::from_bytes([seed; 32]).expect("a valid key");
        let (payer, payee) = (wallet(1), wallet(2));
        chain.fund_dev(payer.address(), Amount(1 << 60)).await?;
        chain.fund_dev(payee.address(), Amount(0)).await?;
        let key = ChannelKey {
            payer: payer.address(),
            signer: payer.address(),
            payee: payee.address(),
            payout: EthAddress([0xaa; 20]),
            token: chain.token(),
            salt: [0xff; 32],
        };
        Ok(Self { chain, payer, payee, key, figures: Vec::new() })
    }

    fn salted(&self, salt: u8) -> ChannelKey {
        ChannelKey { salt: [salt; 32], ..self.key }
    }

    async fn open(&self, key: ChannelKey) -> anyhow::Result<(u64, u64)> {
        let deposit = Amount(1_000_000_000);
        let receipt = self.chain.open_channel(&self.payer, key, deposit, PERIOD_DEFAULT_S).await?;
        Ok((receipt.gas, receipt.gas_approval))
    }

    fn voucher(&self, key: ChannelKey, amount: u128) -> Redemption {
        let domain = self.chain.domain();
        let statement = sluice_proto::eth::keccak256(&amount.to_be_bytes());
        let voucher = Voucher { channel: key.id(&domain), amount: Amount(amount), statement };
        Redemption { key, voucher, signature: self.payer.sign(voucher.digest(&domain)) }
    }

    async fn single(&mut self) -> anyhow::Result<()> {
        let (open, approval) = self.open(self.key).await?;
        self.print("open, the contract's first of the token", open, None);
        self.print("  approval before it", approval, None);
        let (open, _) = self.open(self.salted(0xfe)).await?;
        self.print("open", open, Some(110_000));

        let top_up = self.chain.top_up(&self.payer, &self.key, Amount(1_000)).await?;
        self.print("top up", top_up.gas, None);
        let first = self.chain.redeem(&self.payee, &[self.voucher(self.key, 1_000)]).await?;
        self.print("redeem one, the payout's first tokens", first.gas, Some(75_000));
        let next = self.chain.redeem(&self.payee, &[self.voucher(self.key, 2_000_000)]).await?;
        self.print("redeem one", next.gas, Some(75_000));

        let fresh = ChannelKey { payout: EthAddress([0xbb; 20]), ..self.salted(0xfc) };
        self.open(fresh).await?;
        let last = self.voucher(fresh, 1_000);
        let last = Some((last.voucher, last.signature));
        let close = self.chain.close_by_payee(&self.payee, &fresh, last, &self.payee).await?;
        self.print("close with a voucher, the payout's first tokens", close.gas, None);
        let last = self.voucher(self.key, 3_000_000);
        let last = Some((last.voucher, last.signature));
        let close = self.chain.close_by_payee(&self.payee, &self.key, last, &self.payee).await?;
        self.print("close by the payee with a voucher", close.gas, Some(75_000));
        let key = self.salted(0xfe);
        let close = self.chain.close_by_payee(&self.payer, &key, None, &self.payee).await?;
        self.print("close by the payee's consent, nothing to pay", close.gas, Some(75_000));

        let key = self.salted(0xfd);
        self.open(key).await?;
        let start = self.chain.start_close(&self.payer, &key).await?;
        self.print("start to close", start.gas, None);
        self.chain.advance_dev(u64::from(PERIOD_DEFAULT_S)).await?;
        let finish = self.chain.finish_close(&self.payer, &key).await?;
        self.print("finish to close", finish.gas, None);
        Ok(())
    }

    async fn batch(&mut self) -> anyhow::Result<()> {
        let keys: Vec<_> = (0..BATCH).map(|salt| self.salted(salt)).collect();
        let mut items = Vec::new();
        for key in keys {
            self.open(key).await?;
            items.push(self.voucher(key, 123_456_789));
        }
        let gas = self.chain.redeem(&self.payee, &items).await?.gas;
        self.print("redeem 100 at once, each", gas / u64::from(BATCH), Some(18_000));
        Ok(())
    }

    fn print(&mut self, operation: &str, gas: u64, target: Option<u64>) {
        let Some(target) = target else {
            println!("{operation:<52} {gas:>9}");
            return;
        };
        let met = gas <= target;
        let shown = if met { format!("<={target}") } else { format!("MISSED {target}") };
        println!("{operation:<52} {gas:>9} {shown:>12}");
        let name = format!("gas: {operation}");
        self.figures.push(serde_json::json!({
            "name": name, "value": gas, "unit": "gas", "target": target, "met": met
        }));
    }
}
