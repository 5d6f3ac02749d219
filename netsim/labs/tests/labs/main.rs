//! Labs with the real binaries behind real kernel NAT. `cargo labs` runs them.

mod cells;
mod faults;
mod household;
mod links;
mod mappings;
mod routers;
mod sleep;

use anyhow::Result;
use netsim_labs::{Internet, NEEDED};
use tests::{has, skip};

/// Whether labs can run here; says loudly why not.
pub(crate) fn can_run() -> Result<bool> {
    let missing: Vec<_> = NEEDED.into_iter().filter(|program| !has(program)).collect();
    let why = if !rustix::process::geteuid().is_root() {
        "labs need root".to_owned()
    } else if !missing.is_empty() {
        format!("not installed: {}", missing.join(", "))
    } else if let Err(error) = Internet::new(0) {
        format!("the kernel lacks something: {error:#}")
    } else {
        return Ok(true);
    };
    skip("labs", &why)?;
    Ok(false)
}
