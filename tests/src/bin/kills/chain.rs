//! What the chain says in the end: each payee got what its newest voucher says and not more, and
//! every token in the contract belongs to a channel that its payer can close.

use anyhow::{Context as _, Result, ensure};
use sluice_chain::{Chain, View};
use sluice_ledger::Role as Side;
use sluice_proto::Amount;
use tests::Books;
use tokio::runtime::Runtime;

use crate::stage::{Role, Stage};

/// Redeems what those who do not run have earned, and compares.
pub(crate) fn check(stage: &Stage) -> Result<()> {
    for role in [Role::Relay, Role::Provider] {
        if !stage.has(role) {
            let mut redeem = stage.lab.run(&stage.state(role), &["redeem", "--all"])?;
            ensure!(
                redeem.wait()?.success(),
                "the {} cannot redeem{}",
                role.name(),
                redeem.story()
            );
        }
    }
    let runtime = Runtime::new()?;
    let chain = Chain::open_embedded(&stage.lab.path().join("chain"))?;
    let chain = runtime.block_on(chain.deploy_dev())?;
    let mut held = 0;
    for state in states(stage)? {
        let books = Books::look(&stage.lab.state(&state))?;
        for row in books.channels()? {
            let newest = books.newest_on(&row)?.map_or(Amount(0), |voucher| voucher.amount);
            let on_chain = runtime.block_on(chain.channel(&row.key, View::Latest))?;
            let Some(on_chain) = on_chain else {
                ensure!(newest.0 == 0, "{state}: channel {} was never opened", row.id);
                continue;
            };
            let redeemed = on_chain.redeemed;
            ensure!(redeemed <= newest, "{state}: {redeemed} was paid for a voucher of {newest}");
            match row.role {
                Side::Payer => held += on_chain.deposit.0 - redeemed.0,
                Side::Payee if !stage.runs(&state) => {
                    ensure!(redeemed == newest, "{state}: {redeemed} of {newest} was paid");
                }
                Side::Payee => {}
            }
        }
    }
    let contract = runtime.block_on(chain.token_balance(chain.domain().contract))?;
    ensure!(contract.0 == held, "{contract} is held, but payers know of {held}");
    Ok(())
}

/// The state directories that have a ledger.
fn states(stage: &Stage) -> Result<Vec<String>> {
    let mut states = Vec::new();
    for entry in std::fs::read_dir(stage.lab.path())? {
        let entry = entry?;
        if entry.path().join("ledger.db").exists() {
            let name = entry.file_name().into_string().ok().context("a name of ours")?;
            states.push(name);
        }
    }
    Ok(states)
}
