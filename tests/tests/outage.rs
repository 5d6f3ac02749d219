//! A node that is away, or lies, while payers close: under the real processes for a day of a close's
//! three, and under the settler alone with each lie, also beside a second node.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use sluice::roles::Reporter;
use sluice::settle::{Demand, Held, Rounds, Settler};
use sluice::state::State;
use sluice_chain::anvil::{Mood, Way};
use sluice_chain::{Chain, ChannelState, Finality, RpcConfig, View};
use sluice_ledger::{ChannelRow, Role};
use sluice_proto::{Amount, ChannelKey, EthAddress, Voucher, WalletKey};
use sluice_settlement::{RedemptionPolicy, RedemptionRule};
use tests::{Books, Devnet, Lab, PATIENCE, Process, Three, amount, done, last};

const LOOK: (&str, &str) = ("[chain]\n", "[chain]\nlook = \"1s\"\n");
const DAY_S: u64 = 24 * 3600;
const PERIOD_S: u32 = 72 * 3600;
/// In a redeemed or a refunded channel's place: the contract's mark of one that is closed.
const CLOSED: u64 = (1 << 40) - 1;

/// What a node that is away does, and what is said of it.
fn troubles() -> Vec<(Mood, &'static str)> {
    vec![
        (Mood::Refuses, "cannot reach the chain"),
        (Mood::Overloaded, "503"),
        (Mood::Rubbish, "is it an Ethereum node?"),
        (Mood::OtherChain, "wrong chain"),
        (Mood::Floods, "too long"),
        (Mood::Hangs, "cannot reach the chain"),
    ]
}

/// What the newest voucher on a channel says that a state directory holds.
fn earned(lab: &Lab, state: &str, row: &ChannelRow) -> Result<Amount> {
    let row = ChannelRow { role: Role::Payee, ..row.clone() };
    let newest = Books::look(&lab.state(state))?.newest_on(&row)?;
    Ok(newest.context("a voucher")?.amount)
}

fn now(devnet: &Devnet, row: &ChannelRow) -> Result<ChannelState> {
    devnet.on_chain(row, View::Latest)?.context("the channel is there")
}

/// Waits until a role says that it cannot settle, in these words.
fn complains(role: &Process, since: usize, words: &str) -> Result<()> {
    role.wait_for(since, &format!("settlement_failed: {words}"), |event| {
        let message = event["message"].as_str().unwrap_or_default();
        (event["event"] == "settlement_failed" && message.contains(words)).then_some(())
    })
}

#[test]
fn a_day_without_a_node_while_payers_close_costs_nobody_anything() -> Result<()> {
    let Some(devnet) = Devnet::start(1)? else { return Ok(()) };
    let way = Way::to(devnet.url())?;
    let lab = devnet.lab_through(way.url(), &[LOOK])?;
    let payers = ["connect", "provide"].map(|state| {
        let state = State::open(&lab.state(state), state)?;
        anyhow::Ok(state.wallet().clone())
    });
    let three = Three::start(&lab)?;
    three.talk(1 << 20)?;
    // Payer and payee of each edge.
    let edges = [("connect", "provide"), ("provide", "relay")];
    let mut rows = Vec::new();
    for (payer, _) in edges {
        rows.push(lab.channel(payer, Role::Payer)?);
    }
    let roles = [&three.provider.process, &three.relay.process];

    let mut before = BTreeMap::new();
    let span_s = DAY_S / u64::try_from(troubles().len())?;
    for (index, (mood, words)) in troubles().into_iter().enumerate() {
        let told = roles.map(Process::told);
        way.set(mood);
        if index == 0 {
            // The payers have another way to the node.
            for (wallet, row) in payers.iter().zip(&rows) {
                let wallet = wallet.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?;
                devnet.block_on(devnet.chain().start_close(wallet, &row.key))?;
            }
        }
        devnet.block_on(devnet.chain().advance_dev(span_s))?;
        three.talk(2 << 20)?;
        for ((_, payee), row) in edges.iter().zip(&rows) {
            let last = before.get(&row.id).copied().unwrap_or_default();
            let amount = tests::until(&format!("{payee} earns more than {last}"), || {
                earned(&lab, payee, row).ok().filter(|amount| *amount > last)
            })?;
            before.insert(row.id, amount);
            ensure!(now(&devnet, row)?.redeemed == Amount(0), "nobody could have redeemed it");
        }
        for (role, told) in roles.into_iter().zip(told) {
            complains(role, told, words)?;
        }
    }
    ensure!(three.tenant.process.events("session").len() == 1, "it was one session all the time");

    // It is back, two days before the first refund.
    way.set(Mood::Honest);
    for ((_, payee), row) in edges.iter().zip(&rows) {
        let due = earned(&lab, payee, row)?;
        tests::until("the payee redeems", || {
            (now(&devnet, row).ok()?.redeemed >= due).then_some(())
        })?;
        let closes_at = now(&devnet, row)?.closing_at_unix_s.context("it is being closed")?;
        let left_s = closes_at - devnet.block_on(devnet.chain().now_unix_s())?;
        ensure!(left_s > 47 * 3600, "{left_s} s are left");
    }
    // Nobody goes on serving for what cannot be redeemed any more.
    let Three { mut tenant, mut provider, mut relay, .. } = three;
    provider.process.event(0, "session_ended")?;
    tenant.process.stop()?;
    provider.process.stop()?;
    // Its last vouchers came with the end.
    done(&lab, "provide", &["redeem"])?;
    for ((_, payee), row) in edges.iter().zip(&rows) {
        tests::until(&format!("{payee} has all that it earned"), || {
            let due = earned(&lab, payee, row).ok()?;
            (now(&devnet, row).ok()?.redeemed == due).then_some(())
        })?;
    }
    relay.process.stop()?;
    devnet.block_on(devnet.chain().advance_dev(2 * DAY_S))?;
    for ((payer, payee), row) in edges.iter().zip(&rows) {
        let close = done(&lab, payer, &["channel", "close", &row.id.to_string()])?;
        let (state, due) = (now(&devnet, row)?, earned(&lab, payee, row)?);
        ensure!(state.closed && state.redeemed == due, "{payee} has {state:?} of {due}");
        let refunded = amount(&last(&close, "refunded")?, "refunded")?;
        ensure!(refunded == row.deposit.0 - due.0, "{payer} got {refunded}");
    }
    Ok(())
}

/// A payee's settler and a channel for each thing that is tried.
struct Scene {
    devnet: Devnet,
    way: Way,
    payer: WalletKey,
    payee: WalletKey,
    channels: u8,
}

impl Scene {
    fn start() -> Result<Option<Self>> {
        let Some(devnet) = Devnet::start(1)? else { return Ok(None) };
        let way = Way::to(devnet.url())?;
        let wallet = |n| WalletKey::from_bytes([n; 32]).context("a key");
        let (payer, payee) = (wallet(1)?, wallet(2)?);
        devnet.block_on(devnet.chain().fund_dev(payer.address(), Amount(1_000_000)))?;
        devnet.block_on(devnet.chain().fund_dev(payee.address(), Amount(0)))?;
        Ok(Some(Self { devnet, way, payer, payee, channels: 0 }))
    }

    /// A settler that asks these nodes, in this order.
    fn settler(&self, urls: &[&str]) -> Result<Settler> {
        let (first, others) = urls.split_first().context("a node")?;
        let chain = self.devnet.chain();
        let config = RpcConfig {
            url: (*first).to_owned(),
            other_urls: others.iter().map(|url| (*url).to_owned()).collect(),
            contract: Some(chain.domain().contract),
            token: Some(chain.token()),
            finality: Finality::Confirmations(1),
            chain_id: Some(sluice_chain::DEV_CHAIN_ID),
            patience: PATIENCE,
            inclusion: 2 * PATIENCE,
        };
        let policy = RedemptionPolicy {
            rule: RedemptionRule::BeforeClose,
            gas_price_wei_max: None,
            coin_price: None,
        };
        let chain = self.devnet.block_on(Chain::connect_rpc(config))?;
        Ok(Settler { chain, wallet: self.payee.clone(), policy })
    }

    /// A new channel of 600 with a voucher over 400, that its payer closes.
    fn closing(&mut self) -> Result<Held> {
        self.channels += 1;
        let chain = self.devnet.chain();
        let key = ChannelKey {
            payer: self.payer.address(),
            signer: self.payer.address(),
            payee: self.payee.address(),
            payout: EthAddress([0xAA; 20]),
            token: chain.token(),
            salt: [self.channels; 32],
        };
        self.devnet.block_on(async {
            chain.open_channel(&self.payer, key, Amount(600), PERIOD_S).await?;
            chain.start_close(&self.payer, &key).await
        })?;
        let domain = chain.domain();
        let voucher = Voucher { channel: key.id(&domain), amount: Amount(400), statement: [7; 32] };
        let signature = self.payer.sign(voucher.digest(&domain));
        Ok(Held { key, domain, peer: None, voucher, signature })
    }

    /// One round; what was paid.
    fn round(&self, settler: &Settler, held: &Held) -> Result<Amount> {
        let (mut rounds, report) = (Rounds::default(), Reporter::logged());
        let round = rounds.round(settler, std::slice::from_ref(held), &Demand::Rule, &report);
        let (_, paid) = self.devnet.block_on(round)?;
        if let Some(trouble) = rounds.trouble() {
            anyhow::bail!("{trouble}");
        }
        Ok(Amount(paid.iter().map(|paid| paid.paid.0).sum()))
    }

    fn redeemed(&self, held: &Held) -> Result<Amount> {
        let state = self.devnet.block_on(self.devnet.chain().channel(&held.key, View::Latest))?;
        Ok(state.context("the channel is there")?.redeemed)
    }
}

/// What a node may say of a channel of 600 that is being closed, and of which nothing is redeemed.
fn slots() -> Vec<(&'static str, [u64; 4])> {
    let period = u64::from(PERIOD_S);
    vec![
        ("that nothing was ever deposited", [0; 4]),
        ("that its payer does not close it", [600, 0, 0, period]),
        ("that it is closed", [600, 400, CLOSED, period]),
        ("that all is redeemed", [600, 600, 1, period]),
        ("that less was deposited", [399, 0, 1, period]),
        ("that its close can be finished", [600, 0, 1, period]),
    ]
}

#[test]
fn a_settler_with_one_node_that_is_away_or_lies_sends_nothing_and_pays_out_when_it_is_back()
-> Result<()> {
    let Some(mut scene) = Scene::start()? else { return Ok(()) };
    let settler = scene.settler(&[scene.way.url()])?;
    for (mood, words) in troubles() {
        let held = scene.closing()?;
        scene.way.set(mood.clone());
        // The first failure may be that of the answer; after it the node must name its chain.
        let said = (0..2).map(|_| scene.round(&settler, &held)).collect::<Vec<_>>();
        scene.way.set(Mood::Honest);
        for said in &said {
            ensure!(said.is_err(), "{mood:?}: {said:?}");
        }
        let error = said.into_iter().filter_map(Result::err).next_back().context("an error")?;
        ensure!(format!("{error:#}").contains(words), "{mood:?}: {error:#}");
        ensure!(scene.redeemed(&held)? == Amount(0), "{mood:?}: something was sent");
        ensure!(scene.round(&settler, &held)? == Amount(400), "{mood:?}: it goes on");
        ensure!(scene.redeemed(&held)? == Amount(400));
    }
    Ok(())
}

#[test]
fn a_settler_with_two_nodes_pays_out_before_a_close_whatever_one_of_them_does() -> Result<()> {
    let Some(mut scene) = Scene::start()? else { return Ok(()) };
    let away = troubles().into_iter().map(|(mood, _)| mood);
    let lies = slots().into_iter().map(|(_, slot)| Mood::Slot(slot));
    for mood in away.chain(lies) {
        for liar_is_first in [true, false] {
            let mut urls = [scene.way.url().to_owned(), scene.devnet.url().to_owned()];
            if !liar_is_first {
                urls.reverse();
            }
            let settler = scene.settler(&urls.each_ref().map(String::as_str))?;
            let held = scene.closing()?;
            scene.way.set(mood.clone());
            let paid = scene.round(&settler, &held);
            scene.way.set(Mood::Honest);
            let case = format!("{mood:?}, asked first: {liar_is_first}");
            ensure!(paid.with_context(|| case.clone())? == Amount(400), "{case}");
            ensure!(scene.redeemed(&held)? == Amount(400), "{case}");
        }
    }
    Ok(())
}
