//! The bill, as scripts and as people read it.

use sluice::bill::{Bill, Gas, PathBill, PathKind};

fn bill() -> Bill {
    Bill {
        bytes_delivered: 268_435_456,
        sha256_ok: true,
        paths: vec![
            PathBill { kind: PathKind::Relayed, bytes: 134_300_000, mbit_s: 2_310.44 },
            PathBill { kind: PathKind::Direct, bytes: 134_135_456, mbit_s: 946.0 },
        ],
        billed_bytes_tenant: 268_435_456,
        billed_bytes_provider: 268_435_456,
        vouchers: 64,
        unpaid_bytes_max: 12_582_912,
        window_bytes: 16_777_216,
        tenant_paid: 250_000_000_000_000_000,
        provider_earned: 250_000_000_000_000_000,
        relay_earned: 25_012_345_678_901_234,
        tenant_refunded: 750_000_000_000_000_000,
        gas: Gas { open: 213_456, redeem: 91_234, close: 61_000 },
        chain: "embedded".to_owned(),
    }
}

#[test]
fn a_person_can_read_it() {
    let expected = "\
Delivered
  relayed                 134,300,000  bytes   134.3 MB  at 2,310.4 Mbit/s
  direct                  134,135,456  bytes   134.1 MB  at 946.0 Mbit/s
  in all                  268,435,456  bytes   268.4 MB  SHA-256 matches

Metered
  the tenant counted      268,435,456  bytes   268.4 MB
  the provider counted    268,435,456  bytes   268.4 MB  both agree
  vouchers signed                  64
  unpaid at most           12,582,912  bytes    12.6 MB  within the window
  window                   16,777,216  bytes    16.8 MB

Money, in token base units, settled on the embedded chain
  the tenant deposited  1,000,000,000,000,000,000
    paid the provider     250,000,000,000,000,000
    got back              750,000,000,000,000,000
  the provider earned     250,000,000,000,000,000  all that the tenant paid
    paid the relay         25,012,345,678,901,234
    kept                  224,987,654,321,098,766
  the relay earned         25,012,345,678,901,234

Gas
  to open channels                        213,456
  to redeem vouchers                       91,234
  to close channels                        61,000
";
    let printed = bill().to_string();
    assert_eq!(printed, expected, "\n{printed}");
}

#[test]
fn what_does_not_add_up_is_shouted() {
    let bill = Bill {
        sha256_ok: false,
        billed_bytes_provider: 1,
        window_bytes: 1,
        provider_earned: 1,
        ..bill()
    };
    let printed = bill.to_string();
    for alarm in [
        "SHA-256 DOES NOT MATCH",
        "THEY DO NOT AGREE",
        "BEYOND THE WINDOW",
        "NOT WHAT THE TENANT PAID",
        "its relay cost more than it earned",
    ] {
        assert!(printed.contains(alarm), "{alarm} is missing:\n{printed}");
    }
}

#[test]
fn without_a_chain_no_money_is_spoken_of() {
    let bill = Bill { chain: "none".to_owned(), ..bill() };
    let printed = bill.to_string();
    assert!(printed.contains("nothing was charged"), "{printed}");
    assert!(!printed.contains("Gas"), "{printed}");
}

#[test]
fn a_script_finds_every_field() {
    let json: serde_json::Value =
        serde_json::from_str(&serde_json::to_string(&bill()).expect("serializes")).expect("parses");
    let object = json.as_object().expect("an object");
    let fields = [
        "bytes_delivered",
        "sha256_ok",
        "paths",
        "billed_bytes_tenant",
        "billed_bytes_provider",
        "vouchers",
        "unpaid_bytes_max",
        "window_bytes",
        "tenant_paid",
        "provider_earned",
        "relay_earned",
        "tenant_refunded",
        "gas",
        "chain",
    ];
    assert_eq!(object.len(), fields.len());
    assert!(fields.iter().all(|field| object.contains_key(*field)));
    assert_eq!(json["paths"][0]["kind"], "relayed");
    assert_eq!(json["paths"][1]["kind"], "direct");
    assert_eq!(json["gas"]["redeem"], 91_234);
    assert_eq!(json["tenant_paid"], 250_000_000_000_000_000_u64);
}
