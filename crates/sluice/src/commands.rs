//! The commands about money: what a person does with channels, vouchers and keys.

mod channel;
mod export;
mod ledger;
mod market;
mod mesh;
mod order;
mod redeem;
mod verify;
mod wallet;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sluice_chain::Chain;
use sluice_ledger::{ChannelRow, Ledger};
use sluice_proto::{EthAddress, WalletKey};

pub(crate) use channel::channel;
pub(crate) use ledger::{in_doubt, ledger};
pub(crate) use market::{bids, leases};
pub(crate) use mesh::{nodes, relays};
pub(crate) use order::{award, order, text as auction_text};
pub(crate) use redeem::redeem;
pub(crate) use wallet::wallet;
pub(crate) use watch::watch;

use crate::app::{give_play_money, open_chain, print};
use crate::cli::StateArgs;
use crate::config::Config;
use crate::ledgers;
use crate::settle::{Settler, policy};
use crate::state::{SecretFile, State};
use crate::wallet as keys;

/// The roles that have a state directory of their own.
const ROLES: [&str; 3] = ["relay", "provide", "connect"];

/// Prints one object to scripts, or its text to people.
fn tell(json: bool, value: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
    if json {
        print(&value().to_string());
    } else {
        print(&text());
    }
}

/// The state directory that is meant: the one that is named, the role's, or the only one with a
/// ledger.
fn place(config: &Config, args: &StateArgs) -> Result<PathBuf> {
    if let Some(dir) = args.state_dir.as_ref().or(config.node.state_dir.as_ref()) {
        return Ok(dir.clone());
    }
    if let Some(role) = &args.role {
        return Ok(State::default_dir(role)?);
    }
    if ledgers::is_on_server(config, None) {
        return Ok(State::default_dir("relay")?);
    }
    let mut found = Vec::new();
    for role in ROLES {
        let dir = State::default_dir(role)?;
        if State::ledger_in(&dir).exists() {
            found.push((role, dir));
        }
    }
    match found.as_slice() {
        [(_, dir)] => Ok(dir.clone()),
        [] => bail!("no role has run here yet, so there is no ledger: name one with --state-dir"),
        many => {
            let roles: Vec<_> = many.iter().map(|(role, _)| *role).collect();
            bail!("several roles have a ledger here: name one with --role {}", roles.join(" or "))
        }
    }
}

/// The ledger of a directory, to be read beside a running role.
async fn read_ledger(config: &Config, args: &StateArgs, dir: &Path) -> Result<Ledger> {
    ledgers::read(config, args.role.as_deref(), dir).await
}

/// The state and the ledger of a role that was started before, to act in its place.
async fn open_ledger(
    config: &Config,
    args: &StateArgs,
    dir: &Path,
    who: &str,
) -> Result<(State, Ledger)> {
    let role = args.role.as_deref();
    let mut state = match ledgers::is_on_server(config, role) {
        true => State::open(dir, who)?,
        false => State::open_existing(dir, who)?,
    };
    let ledger = ledgers::open(config, role, &mut state).await?;
    Ok((state, ledger))
}

/// The chain that the configuration names.
async fn chain(config: &Config, dir: &Path) -> Result<Chain> {
    let chain = open_chain(config, &State::chain_in(dir)).await?;
    chain.context("no chain is configured: set [chain] in sluice.toml")
}

/// Redeems with `wallet`, which is given coins where they are worth nothing.
async fn settler(config: &Config, chain: Chain, wallet: WalletKey) -> Result<Settler> {
    give_play_money(&chain, &wallet).await?;
    let policy = policy(config, &chain);
    Ok(Settler { chain, wallet, policy })
}

/// The files that may hold a node's keys, those of the configuration first.
fn key_files(config: &Config, dir: &Path) -> Vec<PathBuf> {
    let wallet = &config.wallet;
    let named = [&wallet.payee, &wallet.payer].into_iter().flatten().cloned();
    named.chain([State::wallet_in(dir)]).collect()
}

/// The file of the key that redeems.
fn payee_file(config: &Config, dir: &Path) -> PathBuf {
    config.wallet.payee.clone().unwrap_or_else(|| State::wallet_in(dir))
}

fn open_key(config: &Config, path: &Path) -> Result<WalletKey> {
    Ok(keys::open(path, config.wallet.passphrase_file.as_deref())?)
}

/// A key file's address; a keystore that does not say it is unlocked.
fn address_of(config: &Config, path: &Path) -> Result<EthAddress> {
    if let SecretFile::Keystore(keystore) = State::wallet_file(path)? {
        let stated = keystore.address();
        if let Some(address) = stated.with_context(|| format!("the keystore {}", path.display()))? {
            return Ok(address);
        }
    }
    Ok(open_key(config, path)?.address())
}

/// The key of `account`, which is the `role` of a channel.
fn key_of(config: &Config, dir: &Path, role: &str, account: EthAddress) -> Result<WalletKey> {
    for path in key_files(config, dir) {
        if address_of(config, &path)? == account {
            return open_key(config, &path);
        }
    }
    bail!(
        "the channel's {role} is {account}, and none of the keys here is its: name its file in [wallet]"
    )
}

/// The channel that `text` is the beginning of.
async fn find(ledger: &Ledger, text: &str) -> Result<ChannelRow> {
    let text = text.to_lowercase();
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    ensure!(
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{text:?} is not the beginning of a channel's id: `sluice channel list` shows them"
    );
    let mut rows = ledger.channels().await?;
    rows.retain(|row| hex::encode(row.id.0).starts_with(digits));
    match rows.len() {
        1 => Ok(rows.remove(0)),
        0 => bail!("no channel begins with {text}: `sluice channel list` shows them"),
        n => bail!("{n} channels begin with {text}: write more of it"),
    }
}

/// Refuses to go on while a role has the directory, and says what it does by itself.
fn free(dir: &Path, config: &Config, to: &str) -> Result<()> {
    let Some(holder) = State::holder_of(dir)? else { return Ok(()) };
    let pid = holder.rsplit(' ').next().filter(|pid| pid.parse::<u32>().is_ok());
    let now = match (to, pid) {
        ("redeem", Some(pid)) => format!(
            "; it redeems by itself (rule: {}): run `kill -USR1 {pid}` to let it redeem all now, or \
             add --dry-run to look",
            config.wallet.redeem
        ),
        _ => format!("; stop it to {to}"),
    };
    bail!("{} is in use by {holder}{now}", dir.display())
}

/// A table: columns as wide as need be, the first row its head.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The beginning of an id, enough for a person.
fn short(id: &impl ToString) -> String {
    id.to_string().chars().take(14).collect()
}

fn head<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}
