//! Whether a ledger holds: its signatures, its arithmetic, and what the chain says.

use anyhow::Result;
use sluice_chain::{Chain, View};
use sluice_ledger::{ChannelRow, LeaseRow, Ledger, Link, Role, StoredVoucher};
use sluice_metering::{Channel, Terms, VoucherRecord};
use sluice_proto::wire::pay;
use sluice_proto::{Amount, amount_due};

/// What is wrong with one row.
pub(super) struct Problem {
    /// Which lease or channel.
    pub(super) of: String,
    /// What is wrong, and what it may mean.
    pub(super) what: String,
}

/// What was checked, and what was found.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) leases: usize,
    pub(super) vouchers: usize,
    pub(super) channels: usize,
    pub(super) problems: Vec<Problem>,
}

impl Verdict {
    fn note(&mut self, of: &impl ToString, what: impl Into<String>) {
        self.problems.push(Problem { of: of.to_string(), what: what.into() });
    }
}

/// Checks every lease and channel.
///
/// # Errors
/// When the ledger or the chain cannot be read.
pub(super) async fn verify(ledger: &Ledger, chain: Option<&Chain>) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    for row in ledger.leases().await? {
        check_lease(ledger, &row, &mut verdict).await?;
    }
    for row in ledger.channels().await? {
        check_channel(ledger, chain, &row, &mut verdict).await?;
    }
    Ok(verdict)
}

async fn check_lease(ledger: &Ledger, row: &LeaseRow, verdict: &mut Verdict) -> Result<()> {
    verdict.leases += 1;
    let of = format!("lease {}", row.id);
    let signed =
        pay::SignedTerms { terms: row.terms.clone(), signature: row.terms_signature.clone() };
    let terms = match Terms::open(&signed) {
        Ok(terms) => terms,
        Err(error) => {
            verdict.note(&of, error.to_string());
            return Ok(());
        }
    };
    let other = match row.role {
        Role::Payer => terms.payee,
        Role::Payee => terms.payer,
    };
    if (terms.lease, other) != (row.id, row.peer) {
        verdict.note(&of, "its terms are of another lease or with another node");
    }
    let channel = match row.channel {
        Some(id) => ledger.channel(id).await?,
        None => None,
    };
    let newest = match row.role {
        Role::Payer => ledger.newest_signed(row.id).await?,
        Role::Payee => ledger.newest_earned(row.id).await?,
    };
    let links = ledger.vouchers(row.id, row.role).await?;
    verdict.vouchers += links.len();
    check_links(&of, &terms, row.base, &links, verdict);
    let Some(newest) = newest else {
        if !links.is_empty() {
            verdict.note(&of, "it has a chain of amounts, but its newest voucher is missing");
        }
        return Ok(());
    };
    check_newest(&of, &terms, row, channel.as_ref(), &newest, verdict);
    let last = links.last().map(|link| (link.up, link.down, link.amount));
    if last != Some((newest.up, newest.down, newest.amount)) {
        verdict.note(&of, "its chain of amounts does not end at its newest voucher");
    }
    Ok(())
}

fn check_newest(
    of: &String,
    terms: &Terms,
    row: &LeaseRow,
    channel: Option<&ChannelRow>,
    newest: &StoredVoucher,
    verdict: &mut Verdict,
) {
    let channel = channel.map(|channel| Channel {
        id: channel.id,
        domain: channel.domain,
        signer: channel.key.signer,
        deposit: channel.deposit,
        base: row.base,
    });
    match VoucherRecord::verify(terms, channel.as_ref(), &newest.voucher) {
        Err(lie) => verdict.note(of, format!("its newest voucher does not hold: {lie}")),
        Ok(record) => {
            let says = (record.counts.up, record.counts.down, record.amount);
            if says != (newest.up, newest.down, newest.amount) {
                verdict.note(of, "what stands beside its newest voucher is not what that says");
            }
        }
    }
}

/// Numbers, counts and amounts grow, and each amount follows from its counts and the price.
fn check_links(of: &String, terms: &Terms, base: Amount, links: &[Link], verdict: &mut Verdict) {
    for pair in links.windows(2) {
        let [a, b] = pair else { continue };
        if b.seq <= a.seq || b.up < a.up || b.down < a.down || b.amount < a.amount {
            verdict.note(of, format!("voucher {} falls below voucher {}", b.seq, a.seq));
        }
    }
    for link in links {
        let due = amount_due(base, link.up, link.down, terms.price);
        if due != Some(link.amount) {
            let due = due.map_or_else(|| "more than fits".to_owned(), |due| due.to_string());
            let what = format!(
                "voucher {} says {} for {} bytes up and {} down, which cost {due}",
                link.seq, link.amount, link.up, link.down
            );
            verdict.note(of, what);
        }
    }
}

async fn check_channel(
    ledger: &Ledger,
    chain: Option<&Chain>,
    row: &ChannelRow,
    verdict: &mut Verdict,
) -> Result<()> {
    verdict.channels += 1;
    let of = format!("channel {}", row.id);
    if row.key.id(&row.domain) != row.id {
        verdict.note(&of, "its id does not follow from what it binds");
    }
    let newest = ledger.newest_on_channel(row.id, row.role).await?;
    let newest = newest.map_or(Amount(0), |voucher| voucher.amount);
    let Some(chain) = chain.filter(|chain| chain.domain() == row.domain) else { return Ok(()) };
    let Some(state) = chain.channel(&row.key, View::Latest).await? else {
        if row.role == Role::Payer && newest == Amount(0) {
            // Written down before it was sent; opened when it is needed.
            return Ok(());
        }
        verdict.note(&of, "the chain has no such channel: its opening was undone, or never sent");
        return Ok(());
    };
    if newest > state.deposit {
        let deposit = state.deposit;
        verdict.note(&of, format!("its vouchers come to {newest}, above its deposit of {deposit}"));
    }
    if state.redeemed > newest {
        let redeemed = state.redeemed;
        let what = format!(
            "{redeemed} was redeemed on the chain, but the newest voucher here says {newest}: this \
             ledger is older than what it wrote once, a restored backup perhaps"
        );
        verdict.note(&of, what);
    }
    if row.role == Role::Payee && state.closed && newest > state.redeemed {
        let lost = newest.0.saturating_sub(state.redeemed.0);
        verdict.note(&of, format!("it was closed with {lost} of its vouchers unredeemed"));
    }
    Ok(())
}
