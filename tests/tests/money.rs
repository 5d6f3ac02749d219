//! What a person does with money at the command line: vouchers become tokens, by themselves, on
//! demand and before a payer can close; deposits grow; ledgers are listed, exported and verified;
//! keys are kept under a passphrase. On the embedded chain, and on a real node.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::{Devnet, Lab, Process, Three, amount, done, last, sluice};

/// A tenant pays 2 base units a byte each way, so an echo costs 4.
const PER_BYTE: u128 = 4;

fn text(event: &Value, key: &str) -> Result<String> {
    Ok(event[key].as_str().with_context(|| format!("{key} in {event}"))?.to_owned())
}

/// Runs a command that must fail with all `words` in what it says.
fn fails(lab: &Lab, state: &str, args: &[&str], words: &[&str]) -> Result<()> {
    let mut process = lab.run(state, args)?;
    let (status, said) = (process.wait()?, process.errors());
    ensure!(!status.success(), "sluice {} ended well{}", args.join(" "), process.story());
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in what it said: {said}");
    }
    Ok(())
}

#[test]
fn running_roles_top_up_what_runs_dry_and_redeem_what_is_worth_its_fee() -> Result<()> {
    let lab = Lab::paid_with(&[
        ("[chain]\n", "[chain]\nlook = \"1s\"\n"),
        ("deposit = 100_000_000_000\nmax", "deposit = 8_000_000\ndeposit_max = 80_000_000\nmax"),
    ])?;
    let three = Three::start(&lab)?;
    let bytes = 8 << 20;
    three.talk(bytes)?;
    let topped = three.tenant.process.event(0, "topped_up")?;
    ensure!(amount(&topped, "deposit")? <= 80_000_000, "{topped}");
    let redeemed = three.provider.process.event(0, "redeemed")?;
    ensure!(text(&redeemed, "why")?.contains("small"), "{redeemed}");
    let (paid, fee) = (amount(&redeemed, "paid")?, amount(&redeemed, "fee")?);
    ensure!(fee * 100 < paid, "{redeemed}: the fee is more than 1 %");
    let three = three.stop()?;
    let topped: u128 = three
        .tenant
        .process
        .events("topped_up")
        .iter()
        .map(|event| amount(event, "more"))
        .sum::<Result<u128>>()?;
    ensure!(8_000_000 + topped >= bytes as u128 * PER_BYTE, "{topped} is less than was used");
    for state in ["connect", "provide", "relay"] {
        let verified = done(&lab, state, &["ledger", "verify"])?;
        ensure!(last(&verified, "verified")?["problems"] == 0);
    }
    Ok(())
}

#[test]
fn a_deposit_that_may_not_grow_is_told_once_and_grows_by_command() -> Result<()> {
    let lab = Lab::paid_with(&[(
        "deposit = 100_000_000_000\nmax",
        "deposit = 8_000_000\ndeposit_max = 8_000_000\nmax",
    )])?;
    let three = Three::start(&lab)?;
    // More than the deposit covers: the echo stops coming when it is used up.
    let mut tcp = TcpStream::connect(three.tenant.port("echo"))?;
    let mut writer = tcp.try_clone()?;
    let pump = std::thread::spawn(move || {
        let mut back = vec![0; Three::CHUNK];
        while writer.write_all(&back).is_ok() && tcp.read_exact(&mut back).is_ok() {}
    });
    let spent = three.tenant.process.event(0, "deposit_spent")?;
    ensure!(amount(&spent, "deposit_max")? == 8_000_000, "{spent}");
    let channel = text(&spent, "channel")?;
    let top_up = ["channel", "top-up", &channel, "1000000"];
    fails(&lab, "connect", &top_up, &["is in use by", "stop it to top up"])?;
    let three = three.stop()?;
    ensure!(three.tenant.process.events("deposit_spent").len() == 1);
    ensure!(pump.join().is_ok());
    let topped = done(&lab, "connect", &["channel", "top-up", &channel[..12], "1000000"])?;
    ensure!(amount(&last(&topped, "topped_up")?, "deposit")? == 9_000_000);
    let nothing = ["channel", "top-up", &channel, "0"];
    fails(&lab, "connect", &nothing, &["above 0"])?;
    fails(&lab, "provide", &top_up, &["pays this node"])?;
    fails(&lab, "connect", &["channel", "top-up", "0xffff", "1"], &["no channel begins with"])
}

#[test]
fn vouchers_are_redeemed_when_they_are_asked_for() -> Result<()> {
    let lab = Lab::paid_with(&[("[chain]\n", "[wallet]\nredeem = \"on_demand\"\n\n[chain]\n")])?;
    let three = Three::start(&lab)?;
    three.talk(1 << 20)?;
    // What is not acknowledged yet may be missing.
    let enough = (1 << 19) * PER_BYTE;
    let look = tests::until("vouchers in the ledger", || {
        let look = done(&lab, "provide", &["redeem", "--dry-run", "--all"]).ok()?;
        let dry = look.events("dry_run").pop()?;
        (amount(&dry, "pays").ok()? > enough).then_some(look)
    })?;
    let line = last(&look, "redemption")?;
    ensure!(line["decision"] == "redeem" && line["rule"] == "on_demand", "{line}");
    ensure!(amount(&line, "fee_wei")? > 0, "{line}");
    let unasked = done(&lab, "provide", &["redeem", "--dry-run"])?;
    ensure!(last(&unasked, "redemption")?["decision"] == "wait");
    fails(&lab, "provide", &["redeem", "--all"], &["is in use by", "kill -USR1", "--dry-run"])?;

    three.provider.process.signal(Signal::USR1)?;
    let redeemed = three.provider.process.event(0, "redeemed")?;
    ensure!(redeemed["why"] == "asked for", "{redeemed}");
    let before = amount(&redeemed, "redeemed")?;
    three.talk(1 << 20)?;
    three.stop()?;

    let channel = text(&redeemed, "channel")?;
    let by_rule = done(&lab, "provide", &["redeem"])?;
    ensure!(amount(&last(&by_rule, "redeem_done")?, "paid")? == 0, "the rule waits");
    let stranger = format!("0x{}", "11".repeat(32));
    let unknown = ["redeem", "--channel", &stranger];
    fails(&lab, "provide", &unknown, &["--channel", &stranger, "no such channel"])?;
    let dry = done(&lab, "provide", &["redeem", "--dry-run", "--channel", &channel])?;
    let promised = amount(&last(&dry, "dry_run")?, "pays")?;
    let wet = done(&lab, "provide", &["redeem", "--channel", &channel])?;
    let paid = amount(&last(&wet, "redeemed")?, "paid")?;
    ensure!(paid == promised && paid > 0, "{promised} was promised, {paid} paid");
    let again = done(&lab, "provide", &["redeem", "--all"])?;
    ensure!(amount(&last(&again, "redeem_done")?, "paid")? == 0, "nothing is paid twice");

    let list = done(&lab, "provide", &["channel", "list"])?;
    let channels = list.events("channel");
    let ours = channels.iter().find(|c| c["channel"] == channel.as_str()).context("our channel")?;
    ensure!(ours["side"] == "payee" && ours["status"] == "open", "{ours}");
    ensure!(amount(ours, "redeemed")? == before + paid, "{ours}");
    ensure!(channels.iter().any(|c| c["side"] == "payer"), "and the one to the relay");
    Ok(())
}

/// A ledger with earnings is exported, its payer starts to close, and a watchtower that has nothing
/// but the export and coins for fees saves what was earned.
fn a_watchtower_saves_earnings(lab: &Lab) -> Result<()> {
    let three = Three::start(lab)?;
    three.talk(1 << 20)?;
    three.stop()?;
    let out = lab.path().join("vouchers.json");
    let file = out.display().to_string();
    done(lab, "provide", &["ledger", "export", "--out", &file])?;
    ensure!(std::fs::metadata(&out)?.permissions().mode() & 0o777 == 0o600);

    let quiet = done(lab, "watch", &["watch", &file, "--once"])?;
    ensure!(quiet.events("redeemed").is_empty(), "nobody closes, so no fee is paid");
    let list = done(lab, "connect", &["channel", "list"])?;
    let channel = text(&last(&list, "channel")?, "channel")?;
    let closing = done(lab, "connect", &["channel", "close", &channel])?;
    ensure!(last(&closing, "closing")?["closes_at_unix_s"].as_u64() > Some(0));
    let saved = done(lab, "watch", &["watch", &file, "--once"])?;
    let ready = last(&saved, "ready")?;
    let ends = last(&saved, "channel_ends")?;
    let redeemed = last(&saved, "redeemed")?;
    ensure!(ready["channels"] == 1 && ends["channel"] == channel.as_str(), "{ready} {ends}");
    ensure!(amount(&redeemed, "paid")? == amount(&ends, "unredeemed")?, "{redeemed} {ends}");
    ensure!(amount(&redeemed, "paid")? >= (1 << 20) * PER_BYTE, "{redeemed}");

    let verified = done(lab, "provide", &["ledger", "verify"])?;
    ensure!(last(&verified, "verified")?["on_chain"] == true);
    let closed = done(lab, "provide", &["channel", "close", &channel])?;
    let closed = last(&closed, "closed")?;
    ensure!(amount(&closed, "paid")? == 0 && amount(&closed, "refunded")? > 0, "{closed}");
    fails(lab, "provide", &["channel", "close", &channel], &["closed already"])
}

#[test]
fn a_watchtower_saves_earnings_on_the_embedded_chain() -> Result<()> {
    a_watchtower_saves_earnings(&Lab::paid()?)
}

#[test]
fn a_watchtower_saves_earnings_on_a_real_node() -> Result<()> {
    let Some(devnet) = Devnet::start(1)? else { return Ok(()) };
    let lab = devnet.lab(&[])?;
    a_watchtower_saves_earnings(&lab)
}

#[test]
fn watching_once_ends_well_unless_a_voucher_is_about_to_be_lost() -> Result<()> {
    let Some(devnet) = Devnet::start(1)? else { return Ok(()) };
    let lab = devnet.lab(&[])?;
    let three = Three::start(&lab)?;
    three.talk(1 << 19)?;
    three.stop()?;
    let file = lab.path().join("vouchers.json").display().to_string();
    done(&lab, "provide", &["ledger", "export", "--out", &file])?;
    let once = ["watch", file.as_str(), "--once"];
    // Nobody closes: nothing is to be done, even by one who could not pay for it.
    ensure!(done(&lab, "poor", &once)?.events("redeemed").is_empty());

    let channel =
        text(&last(&done(&lab, "connect", &["channel", "list"])?, "channel")?, "channel")?;
    done(&lab, "connect", &["channel", "close", &channel])?;
    fails(&lab, "poor", &once, &["not all that had to be redeemed was", "fund"])?;
    let capped = std::fs::read_to_string(lab.path().join("sluice.toml"))?;
    lab.write(
        "sluice.toml",
        &capped.replacen("[chain]\n", "[chain]\ngas_price_max = \"1 wei\"\n", 1),
    )?;
    let waits = done(&lab, "watch", &once)?;
    ensure!(waits.events("redeemed").is_empty(), "gas is dearer than that{}", waits.story());
    lab.write("sluice.toml", &capped)?;
    ensure!(done(&lab, "watch", &once)?.events("redeemed").len() == 1, "it was redeemed");
    ensure!(done(&lab, "watch", &once)?.events("redeemed").is_empty(), "once");

    let missing = ["watch", "nowhere.json", "--once"];
    fails(&lab, "watch", &missing, &["the vouchers in nowhere.json"])?;
    let broken = lab.write("broken.json", "{\"sluice_ledger\": 1}")?.display().to_string();
    fails(&lab, "watch", &["watch", &broken, "--once"], &["broken.json", "channels"])?;
    lab.write("sluice.toml", "version = 1\n")?;
    fails(&lab, "watch", &once, &["no chain is configured"])?;
    drop(devnet);
    lab.write("sluice.toml", &capped)?;
    fails(&lab, "watch", &once, &["cannot reach the chain"])
}

#[test]
fn a_ledger_is_listed_exported_and_verified_and_a_forged_export_is_refused() -> Result<()> {
    let lab = Lab::paid()?;
    fails(&lab, "provide", &["ledger", "list"], &["no ledger in", "--state-dir"])?;
    let three = Three::start(&lab)?;
    three.talk(1 << 19)?;
    let listed = done(&lab, "provide", &["ledger", "list"])?;
    ensure!(listed.events("lease").len() == 2, "beside the running role{}", listed.story());
    three.stop()?;
    let exported = done(&lab, "provide", &["ledger", "export"])?.output();
    let export: Value = serde_json::from_str(&exported)?;
    ensure!(export["channels"].as_array().map(Vec::len) == Some(2));
    for (table, head) in [("vouchers", "lease,"), ("channels", "channel,"), ("transactions", "")] {
        let args = ["ledger", "export", "--format", "csv", "--table", table];
        let csv = done(&lab, "provide", &args)?.output();
        let columns: Vec<_> = csv.lines().map(|line| line.split(',').count()).collect();
        ensure!(csv.starts_with(head) && columns.len() > 1, "{csv}");
        ensure!(columns.windows(2).all(|pair| pair[0] == pair[1]), "{csv}");
    }
    let amount = export["channels"].as_array().and_then(|channels| {
        let earned = channels.iter().find(|c| c["side"] == "payee")?;
        Some(earned["voucher"]["amount"].as_str()?.to_owned())
    });
    let amount = amount.context("no earned voucher")?;
    let refused = |from: &str, to: &str, words: &[&str]| {
        ensure!(exported.contains(from), "{from}");
        let file = lab.write("forged.json", &exported.replace(from, to))?;
        fails(&lab, "watch", &["watch", &file.display().to_string(), "--once"], words)
    };
    let more = format!("\"amount\": \"{amount}\",\n        \"statement\"");
    let forged = more.replace(&amount, &format!("{amount}0"));
    refused(&more, &forged, &["forged.json", "voucher.signature", "not by the channel's signer"])?;
    refused("\"payout\": \"0x", "\"payout\": \"0xff", &["forged.json", "payout"])?;
    refused("\"sluice_ledger\": 1", "\"sluice_ledger\": 2", &["sluice_ledger", "version 2"])
}

/// Runs `sluice` without a state directory.
fn bare(args: &[&str], lab: &Lab, passphrase: Option<&str>) -> Result<(bool, Process)> {
    let mut process = Process::start("sluice", sluice(), |command| {
        command.args(args).arg("--json").current_dir(lab.path());
        command.env_remove("SLUICE_LOG").env_remove("SLUICE_PASSPHRASE");
        if let Some(passphrase) = passphrase {
            command.env("SLUICE_PASSPHRASE", passphrase);
        }
    })?;
    let ended_well = process.wait()?.success();
    Ok((ended_well, process))
}

fn secret(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let path = lab.write(name, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

#[test]
fn keys_are_kept_under_a_passphrase_from_a_file_or_the_environment() -> Result<()> {
    let lab = Lab::paid()?;
    let good = |args: &[&str], passphrase| -> Result<Value> {
        let (ended_well, process) = bare(args, &lab, passphrase)?;
        ensure!(ended_well, "{args:?}{}", process.story());
        last(&process, "wallet")
    };
    let bad = |args: &[&str], passphrase, words: &[&str]| -> Result<()> {
        let (ended_well, process) = bare(args, &lab, passphrase)?;
        let said = process.errors();
        ensure!(!ended_well && words.iter().all(|w| said.contains(w)), "{args:?}: {said}");
        Ok(())
    };
    let made = good(&["wallet", "create", "a.json"], Some("open sesame"))?;
    let file = std::fs::read_to_string(lab.path().join("a.json"))?;
    ensure!(!file.contains("sesame") && made["kind"] == "keystore");
    let shown = good(&["wallet", "show", "a.json"], None)?;
    ensure!(shown["address"] == made["address"], "the address is known without a passphrase");
    bad(&["wallet", "create", "a.json"], Some("x"), &["a.json exists", "never overwritten"])?;
    bad(&["wallet", "create", "b.json"], None, &["b.json", "SLUICE_PASSPHRASE"])?;
    bad(&["wallet", "create", "b.json"], Some(""), &["empty"])?;

    // A key that the world knows: the first of every development node.
    let digits = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80\n";
    secret(&lab, "plain.key", digits)?;
    secret(&lab, "passphrase", "open sesame\n")?;
    let import = ["wallet", "import", "b.json", "--from", "plain.key", "--passphrase-file"];
    let imported = good(&[&import[..], &["passphrase"]].concat(), None)?;
    ensure!(imported["address"] == "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266", "{imported}");
    let again = ["wallet", "import", "c.json", "--from", "b.json"];
    bad(&again, Some("open simsim"), &["b.json", "passphrase is wrong"])?;
    ensure!(good(&again, Some("open sesame"))?["address"] == imported["address"]);
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(lab.path().join("passphrase"), open)?;
    bad(
        &["wallet", "import", "d.json", "--from", "plain.key", "--passphrase-file", "passphrase"],
        None,
        &["passphrase", "open to other users"],
    )
}

#[test]
fn a_role_pays_with_the_keystore_that_it_is_named() -> Result<()> {
    let lab = Lab::paid()?;
    secret(&lab, "passphrase", "open sesame\n")?;
    let create = ["wallet", "create", "payee.json", "--passphrase-file", "passphrase"];
    let (ended_well, made) = bare(&create, &lab, None)?;
    ensure!(ended_well, "{}", made.story());
    let address = text(&last(&made, "wallet")?, "address")?;
    let config = std::fs::read_to_string(lab.path().join("sluice.toml"))?;
    let wallet = "\n[wallet]\npayee = \"payee.json\"\npassphrase_file = \"passphrase\"\n";
    lab.write("sluice.toml", &format!("{config}{wallet}"))?;
    let three = Three::start(&lab)?;
    three.talk(1 << 18)?;
    three.stop()?;
    let list = done(&lab, "provide", &["channel", "list"])?;
    let earned = list.events("channel").into_iter().find(|c| c["side"] == "payee");
    let earned = earned.context("a channel that pays")?;
    ensure!(earned["payee"] == address.as_str(), "{earned}");
    let redeemed = done(&lab, "provide", &["redeem", "--all"])?;
    let paid = amount(&last(&redeemed, "redeemed")?, "paid")?;
    let balance = done(&lab, "provide", &["wallet", "balance"])?;
    let balance = last(&balance, "balance")?;
    ensure!(balance["address"] == address.as_str() && amount(&balance, "tokens")? > paid);
    Ok(())
}
