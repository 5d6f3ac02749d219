//! A part of `netsim crash`: the ledger, killed and failed at its calls.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::path::Path;

use netsim::crash::{self, Plan};
use netsim::figures::{self, Figure};

#[test]
fn whatever_a_ledger_acknowledged_outlives_kills_failing_disks_and_power_cuts() {
    let program = Path::new(env!("CARGO_BIN_EXE_netsim"));
    let plan = Plan { kills: 80, faults: 32, cuts: 80, doubles: 16 };
    let told = parking_lot::Mutex::new(Vec::new());
    let figures = crash::run(program, plan, |line| told.lock().push(line.to_owned()));
    let figures = figures.expect("victims start");
    let told = told.into_inner();
    // The controls are among them: what must be found missing is.
    assert!(figures.iter().all(Figure::is_met), "{told:#?}\n{}", figures::table(&figures));
}
