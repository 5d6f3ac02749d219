//! The leases of a state directory: what is kept outlasts the process, and what is damaged is said.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use sluice::roles::{Ended, LEASES_MAX, LeaseError, LeaseState, Leases};
use sluice_proto::market::SignedLease;
use sluice_proto::{LeaseId, RelayAddr};
use tests::{Cast, Member, lease_terms, loopback, signed_lease};

struct Pair {
    tenant: Member,
    provider: Member,
}

impl Pair {
    async fn new() -> Result<Self> {
        let cast = Cast::free()?;
        Ok(Self { tenant: cast.member().await?, provider: cast.member().await? })
    }

    /// A lease of this name, made at this time.
    fn lease(&self, n: u16, made_unix_s: u64) -> Result<SignedLease> {
        let relay = RelayAddr::new(self.provider.peer(), ([127, 0, 0, 1], 4433).into());
        ensure!(loopback().ip() == relay.addr.ip());
        let mut terms = lease_terms(&self.tenant, &self.provider, relay, 0)?;
        terms.lease.0[..2].copy_from_slice(&n.to_be_bytes());
        terms.made_unix_s = made_unix_s;
        signed_lease(&self.tenant, &self.provider, terms)
    }
}

#[tokio::test]
async fn a_lease_is_there_after_a_restart_and_so_is_how_it_ended() -> Result<()> {
    let (pair, dir) = (Pair::new().await?, tempfile::tempdir()?);
    let leases = Leases::open(dir.path())?;
    ensure!(!dir.path().join("leases").exists(), "reading makes nothing");
    let (first, second) = (pair.lease(0xAB01, 1000)?, pair.lease(0xAB02, 2000)?);
    leases.put(&second)?;
    leases.put(&first)?;
    leases.end(first.lease().lease, Ended::Unfunded)?;
    leases.end(first.lease().lease, Ended::Closed)?;
    leases.end(LeaseId([9; 32]), Ended::Closed)?;

    // Beside the one that writes, or after it.
    for leases in [leases.clone(), Leases::open(dir.path())?] {
        ensure!(leases.damaged().is_empty(), "{:?}", leases.damaged());
        let all = leases.all(3000);
        let states: Vec<_> = all.iter().map(|(lease, state)| (lease.as_ref(), *state)).collect();
        let expected = [(&first, LeaseState::Ended(Ended::Unfunded)), (&second, LeaseState::Open)];
        ensure!(states == expected, "{states:?}");
        let (tenant, provider) = (pair.tenant.peer(), pair.provider.peer());
        let open = |now| leases.open_between(tenant, provider, now);
        ensure!(open(3000).as_deref() == Some(&second));
        ensure!(open(second.lease().ends_unix_s()).is_none(), "its time is over");
        ensure!(leases.open_between(provider, tenant, 3000).is_none(), "the other way round");
        ensure!(leases.state(second.lease().lease, u64::MAX) == Some(LeaseState::Over));
    }
    let mode = |path: &str| -> Result<u32> {
        Ok(fs::metadata(dir.path().join(path))?.permissions().mode() & 0o777)
    };
    ensure!(mode("leases")? == 0o700);
    ensure!(mode(&format!("leases/{}", hex(&second)))? == 0o600, "it holds an invite");
    Ok(())
}

fn hex(lease: &SignedLease) -> String {
    lease.lease().lease.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_lease_is_found_by_the_beginning_of_its_id() -> Result<()> {
    let (pair, dir) = (Pair::new().await?, tempfile::tempdir()?);
    let leases = Leases::open(dir.path())?;
    let (first, second) = (pair.lease(0xAB01, 1000)?, pair.lease(0xAB02, 2000)?);
    leases.put(&first)?;
    leases.put(&second)?;
    ensure!(*leases.find("AB02")? == second && *leases.find(&hex(&first))? == first);
    ensure!(matches!(leases.find("ab"), Err(LeaseError::Ambiguous { count: 2, .. })));
    ensure!(matches!(leases.find("ac"), Err(LeaseError::Unknown(_))));
    for no_id in ["", "  ", "lease", "ab01/../ab01"] {
        ensure!(matches!(leases.find(no_id), Err(LeaseError::NotAnId(_))), "{no_id:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_lease_is_named_and_left_alone() -> Result<()> {
    let (pair, dir) = (Pair::new().await?, tempfile::tempdir()?);
    let leases = Leases::open(dir.path())?;
    let lease = pair.lease(1, 1000)?;
    leases.put(&lease)?;
    let path = dir.path().join("leases").join(hex(&lease));
    let whole = fs::read(&path)?;
    let mut forged = whole.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let other = dir.path().join("leases").join("00".repeat(32));
    fs::write(&other, &whole)?;
    fs::write(&path, &forged)?;
    // What a power cut left of one that was being written.
    fs::write(path.with_extension("new"), &whole[..100])?;
    let leases = Leases::open(dir.path())?;
    let mut damaged: Vec<_> = leases.damaged().iter().map(|d| d.path.clone()).collect();
    damaged.sort();
    ensure!(damaged == [other.clone(), path.clone()], "{:?}", leases.damaged());
    ensure!(leases.all(0).is_empty());
    ensure!(fs::read(&path)? == forged && fs::read(&other)? == whole);
    // It is written anew over what is damaged, and over what was never finished.
    leases.put(&lease)?;
    fs::remove_file(&other)?;
    let leases = Leases::open(dir.path())?;
    ensure!(leases.damaged().is_empty() && leases.all(0).len() == 1);
    // A mark that nobody can read: what may have ended is not served.
    fs::write(path.with_extension("ended"), [0xFF])?;
    let leases = Leases::open(dir.path())?;
    let state = leases.state(lease.lease().lease, 1001).context("the lease")?;
    ensure!(state == LeaseState::Ended(Ended::Closed), "{state:?}");
    Ok(())
}

#[tokio::test]
async fn beyond_the_bound_only_what_is_over_gives_way() -> Result<()> {
    let (pair, dir) = (Pair::new().await?, tempfile::tempdir()?);
    let leases = Leases::open(dir.path())?;
    let most = u16::try_from(LEASES_MAX)?;
    for n in 0..most {
        leases.put(&pair.lease(n, 10_000)?)?;
    }
    let next = pair.lease(most, 10_001)?;
    ensure!(matches!(leases.put(&next), Err(LeaseError::Full)));
    // Again is not one more.
    leases.put(&pair.lease(0, 10_000)?)?;
    let ended = pair.lease(7, 10_000)?.lease().lease;
    leases.end(ended, Ended::Unfunded)?;
    leases.put(&next)?;
    let all = Leases::open(dir.path())?.all(10_001);
    ensure!(all.len() == LEASES_MAX && all.iter().all(|(lease, _)| lease.lease().lease != ended));
    let files = fs::read_dir(dir.path().join("leases"))?.count();
    ensure!(files == LEASES_MAX, "{files} files");
    Ok(())
}
