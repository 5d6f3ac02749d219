//! A chain that undoes its newest 64 blocks, at each step of a channel's life, under the real
//! processes: what was done is done again or told, and nothing is lost but what was served on credit
//! on a channel whose opening was undone.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_chain::View;
use sluice_ledger::{Edge, Role};
use sluice_metering::Terms;
use sluice_proto::Amount;
use tests::{Books, DEPTH, Devnet, Echo, Lab, Provider, Three, amount, done, last};

/// A tenant pays 2 base units a byte each way.
const PER_BYTE: u128 = 2;
/// Final is what is deeper than any reorganisation here.
const CONFIRMATIONS: u64 = DEPTH + 1;
const LOOK: (&str, &str) = ("[chain]\n", "[chain]\nlook = \"1s\"\n");
const ON_DEMAND: (&str, &str) = ("[chain]\n", "[wallet]\nredeem = \"on_demand\"\n\n[chain]\n");

/// Runs a command to its end, which must be a good one; its last event of a kind.
fn told(lab: &Lab, state: &str, args: &[&str], kind: &str) -> Result<Value> {
    last(&done(lab, state, args)?, kind)
}

/// Both payees redeem all: the chain pays what they earned, and pays it once.
fn all_is_paid(devnet: &Devnet, lab: &Lab) -> Result<()> {
    for state in ["provide", "relay"] {
        told(lab, state, &["redeem", "--all"], "redeem_done")?;
        let row = lab.channel(state, Role::Payee)?;
        let paid = devnet.on_chain(&row, View::Latest)?.context("the channel is there")?.redeemed;
        ensure!(paid == lab.earned(state)?, "{state}: {paid} of {} was paid", lab.earned(state)?);
        let balance = devnet.block_on(devnet.chain().token_balance(row.key.payout))?;
        ensure!(balance >= paid, "{state} has {balance}");
    }
    Ok(())
}

#[test]
fn openings_that_are_undone_under_a_session_are_sent_again_and_all_is_paid() -> Result<()> {
    let Some(devnet) = Devnet::start(CONFIRMATIONS)? else { return Ok(()) };
    let lab = devnet.lab(&[LOOK])?;
    let mark = devnet.block()?;
    let three = Three::start(&lab)?;
    three.talk(1 << 20)?;
    let rows = [lab.channel("connect", Role::Payer)?, lab.channel("provide", Role::Payer)?];
    devnet.undo(mark)?;
    let again = three.tenant.process.event(0, "reopened")?;
    ensure!(amount(&again, "deposit")? == rows[0].deposit.0, "{again}");
    // The relay may have refused the provider meanwhile, which then opens it to be taken again.
    for row in &rows {
        let state =
            tests::until("it is open again", || devnet.on_chain(row, View::Latest).ok()?)?;
        ensure!(state.deposit == row.deposit, "{state:?}");
    }
    three.talk(1 << 20)?;
    ensure!(three.tenant.process.events("session").len() == 1, "the session went on");
    three.stop()?;
    devnet.mine(CONFIRMATIONS)?;
    all_is_paid(&devnet, &lab)
}

#[test]
fn a_payer_that_is_gone_when_its_opening_is_undone_costs_its_payee_the_credit_at_most() -> Result<()>
{
    let Some(devnet) = Devnet::start(CONFIRMATIONS)? else { return Ok(()) };
    let credit = ("[provide]\n", "[provide]\nunfinal_credit_windows = 3\n");
    let lab = devnet.lab(&[LOOK, credit])?;
    let mark = devnet.block()?;
    let mut three = Three::start(&lab)?;
    // It asks for more than is given on credit.
    let tcp = TcpStream::connect(three.tenant.port("echo"))?;
    let (mut writer, mut reader) = (tcp.try_clone()?, tcp.try_clone()?);
    std::thread::spawn(move || while writer.write_all(&[0xA5; Three::CHUNK]).is_ok() {});
    let lease = Books::look(&lab.state("connect"))?.lease(Edge::Tenant)?;
    let window = u128::from(Terms::parse(&lease.terms)?.window);
    let most = 3 * window * PER_BYTE;
    let near = Amount(most - window * PER_BYTE / 2);
    std::thread::spawn(move || {
        let mut back = vec![0; Three::CHUNK];
        while reader.read(&mut back).is_ok_and(|n| n > 0) {}
    });
    let at_the_credit = tests::until("the credit is used up", || {
        lab.earned("provide").ok().filter(|earned| *earned >= near)
    })?;
    ensure!(at_the_credit.0 <= most, "{at_the_credit} was earned on a credit of {most}");
    three.tenant.process.kill()?;
    devnet.undo(mark)?;
    let lost = lab.earned("provide")?;
    ensure!(lost.0 <= most, "{lost} was earned on a credit of {most}");
    let row = lab.channel("provide", Role::Payee)?;
    ensure!(devnet.on_chain(&row, View::Latest)?.is_none(), "nobody opened it again");
    three.provider.process.stop()?;
    three.relay.process.stop()?;
    let kept = told(&lab, "provide", &["redeem", "--all"], "redemption")?;
    ensure!(kept["decision"] == "wait", "{kept}");

    // The payer comes back: what it had signed for is good again.
    let relay = lab.relay_at(three.relay.socket()?)?;
    let echo = Echo::start()?;
    let provider = lab.provide(&relay, &[("echo", echo.addr())], "never")?;
    let mut tenant = lab.connect(&three.provider.ticket, &["echo"], "never")?;
    tenant.process.stop()?;
    let Provider { mut process, .. } = provider;
    process.stop()?;
    let paid = told(&lab, "provide", &["redeem", "--all"], "redeem_done")?;
    ensure!(amount(&paid, "paid")? >= lost.0, "{paid} of {lost}");
    Ok(())
}

#[test]
fn a_deposit_that_becomes_final_carries_on_beyond_the_credit() -> Result<()> {
    let Some(devnet) = Devnet::start(CONFIRMATIONS)? else { return Ok(()) };
    let credit = ("[provide]\n", "[provide]\nunfinal_credit_windows = 2\n");
    let lab = devnet.lab(&[LOOK, credit])?;
    let three = Three::start(&lab)?;
    devnet.mine(CONFIRMATIONS)?;
    three.talk(4 << 20)?;
    three.stop()?;
    ensure!(lab.earned("provide")?.0 >= (8 << 20) * PER_BYTE);
    all_is_paid(&devnet, &lab)
}

#[test]
fn a_top_up_that_is_undone_in_use_is_sent_again() -> Result<()> {
    let Some(devnet) = Devnet::start(CONFIRMATIONS)? else { return Ok(()) };
    let small =
        ("deposit = 100_000_000_000\nmax", "deposit = 4_000_000\ndeposit_max = 400_000_000\nmax");
    let lab = devnet.lab(&[LOOK, ON_DEMAND, small])?;
    let three = Three::start(&lab)?;
    devnet.mine(CONFIRMATIONS)?;
    let mark = devnet.block()?;
    // Twice the deposit, so that it is topped up, and that is used.
    three.talk(2 << 20)?;
    let tenant = &three.tenant.process;
    tenant.event(0, "topped_up")?;
    let (told, promised) = (tenant.told(), lab.earned("provide")?);
    let row = lab.channel("connect", Role::Payer)?;
    devnet.undo(mark)?;
    tenant.event(told, "topped_up")?;
    tests::until("the deposit covers what was promised", || {
        let state = devnet.on_chain(&row, View::Latest).ok()??;
        (state.deposit >= promised).then_some(())
    })?;
    three.talk(1 << 20)?;
    three.stop()?;
    devnet.mine(CONFIRMATIONS)?;
    all_is_paid(&devnet, &lab)
}

#[test]
fn redemptions_and_closes_that_are_undone_are_done_again_and_pay_once() -> Result<()> {
    let Some(devnet) = Devnet::start(CONFIRMATIONS)? else { return Ok(()) };
    let lab = devnet.lab(&[ON_DEMAND])?;
    let three = Three::start(&lab)?;
    three.talk(1 << 20)?;
    three.stop()?;
    devnet.mine(CONFIRMATIONS)?;
    let ours = lab.channel("provide", Role::Payee)?;
    let id = ours.id.to_string();
    let state = |view| devnet.on_chain(&ours, view)?.context("the channel is there");
    let due = lab.earned("provide")?;

    // The payer starts to close.
    let mark = devnet.block()?;
    let close = ["channel", "close", id.as_str()];
    told(&lab, "connect", &close, "closing")?;
    devnet.undo(mark)?;
    ensure!(state(View::Latest)?.closing_at_unix_s.is_none(), "that was undone");
    let closing = told(&lab, "connect", &close, "closing")?;
    ensure!(closing["closes_at_unix_s"].as_u64() == state(View::Latest)?.closing_at_unix_s);

    // The payee redeems.
    let mark = devnet.block()?;
    let redeem = ["redeem", "--channel", id.as_str()];
    ensure!(amount(&told(&lab, "provide", &redeem, "redeemed")?, "paid")? == due.0);
    devnet.undo(mark)?;
    ensure!(state(View::Latest)?.redeemed == Amount(0), "that was undone");
    ensure!(amount(&told(&lab, "provide", &redeem, "redeemed")?, "paid")? == due.0);
    devnet.mine(CONFIRMATIONS)?;
    ensure!(state(View::Final)?.redeemed == due, "it was paid once");

    // The payer gets back the rest.
    devnet.block_on(devnet.chain().advance_dev(72 * 3600))?;
    let mark = devnet.block()?;
    let refunded = told(&lab, "connect", &close, "refunded")?;
    ensure!(amount(&refunded, "refunded")? == ours.deposit.0 - due.0, "{refunded}");
    devnet.undo(mark)?;
    ensure!(!state(View::Latest)?.closed, "that was undone");
    let refunded = told(&lab, "connect", &close, "refunded")?;
    ensure!(amount(&refunded, "refunded")? == ours.deposit.0 - due.0, "{refunded}");

    // The relay closes at once, with its voucher.
    let theirs = lab.channel("relay", Role::Payee)?;
    let (id, due) = (theirs.id.to_string(), lab.earned("relay")?);
    let close = ["channel", "close", id.as_str()];
    let mark = devnet.block()?;
    ensure!(amount(&told(&lab, "relay", &close, "closed")?, "paid")? == due.0);
    devnet.undo(mark)?;
    let now = devnet.on_chain(&theirs, View::Latest)?.context("the channel is there")?;
    ensure!(!now.closed && now.redeemed == Amount(0), "that was undone");
    let closed = told(&lab, "relay", &close, "closed")?;
    ensure!(amount(&closed, "paid")? == due.0, "{closed}");
    ensure!(amount(&closed, "refunded")? == theirs.deposit.0 - due.0, "{closed}");
    devnet.mine(CONFIRMATIONS)?;
    let held = devnet.block_on(devnet.chain().token_balance(devnet.chain().domain().contract))?;
    ensure!(held == Amount(0), "{held} is left in the contract");
    Ok(())
}
