//! `sluice wallet`.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sluice_proto::{EthAddress, WalletKey};

use super::{address_of, chain, key_files, place, tell};
use crate::cli::{PassphraseArgs, StateArgs, WalletCommand};
use crate::config::Config;
use crate::state::{SecretFile, State};
use crate::wallet::{draw, new_passphrase, open, write_keystore};

pub(crate) async fn wallet(config: &Config, command: &WalletCommand, json: bool) -> Result<()> {
    match command {
        WalletCommand::Create { file, passphrase } => {
            write(config, file, &draw()?, passphrase, json)
        }
        WalletCommand::Import { file, from, passphrase } => {
            let key = open(from, passphrase_file(config, passphrase))?;
            write(config, file, &key, passphrase, json)
        }
        WalletCommand::Show { file, state } => show(config, file.as_deref(), state, json),
        WalletCommand::Balance { account, state } => {
            balance(config, account.as_deref(), state, json).await
        }
    }
}

fn passphrase_file<'a>(config: &'a Config, args: &'a PassphraseArgs) -> Option<&'a Path> {
    args.passphrase_file.as_deref().or(config.wallet.passphrase_file.as_deref())
}

fn write(
    config: &Config,
    file: &Path,
    key: &WalletKey,
    args: &PassphraseArgs,
    json: bool,
) -> Result<()> {
    let passphrase = new_passphrase(file, passphrase_file(config, args))?;
    write_keystore(file, key, &passphrase)?;
    let address = key.address();
    tell(
        json,
        || {
            json!({
                "event": "wallet", "address": address.to_string(), "kind": "keystore",
                "file": file.display().to_string(),
            })
        },
        || {
            format!(
                "{address}\nIts key is in {}. Without the file or the passphrase nobody gets at its \
                 money: keep a copy of both. Name it in [wallet] to use it.",
                file.display()
            )
        },
    );
    Ok(())
}

fn show(config: &Config, file: Option<&Path>, state: &StateArgs, json: bool) -> Result<()> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => key_files(config, &place(config, state)?),
    };
    for file in files {
        let kind = match State::wallet_file(&file)? {
            SecretFile::Plain(_) => "plain",
            SecretFile::Keystore(_) => "keystore",
        };
        let address = address_of(config, &file)?;
        tell(
            json,
            || {
                json!({
                    "event": "wallet", "address": address.to_string(), "kind": kind,
                    "file": file.display().to_string(),
                })
            },
            || format!("{address}  {} ({kind})", file.display()),
        );
    }
    Ok(())
}

async fn balance(
    config: &Config,
    account: Option<&str>,
    state: &StateArgs,
    json: bool,
) -> Result<()> {
    // An account that is named needs no state; the embedded chain may.
    let dir = place(config, state);
    let address = match account {
        Some(text) if text.starts_with("0x") => text
            .parse::<EthAddress>()
            .with_context(|| format!("{text}: write 0x and 40 hexadecimal digits"))?,
        Some(file) => address_of(config, Path::new(file))?,
        None => {
            let files = key_files(config, dir.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?);
            address_of(config, files.first().context("no key")?)?
        }
    };
    let chain = chain(config, dir.as_deref().unwrap_or(Path::new("."))).await?;
    let token = chain.token_info().await?;
    let (tokens, wei) =
        (chain.token_balance(address).await?, chain.coin_balance_wei(address).await?);
    tell(
        json,
        || {
            json!({
                "event": "balance", "address": address.to_string(), "tokens": tokens.to_string(),
                "symbol": token.symbol, "decimals": token.decimals, "wei": wei.to_string(),
                "chain_id": chain.domain().chain_id,
            })
        },
        || {
            format!(
                "{address} on chain {}: {tokens} base units of {} ({} decimals), {wei} wei for fees",
                chain.domain().chain_id,
                token.symbol,
                token.decimals
            )
        },
    );
    Ok(())
}
