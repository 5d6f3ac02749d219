//! `sluice.toml`: what is read, and how what is wrong is told.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use sluice::config::{
    BitRate, ByteSize, ChainChoice, ChainKind, Config, ConfigError, DirectPolicy, Expose, Finality,
    Map, parse_duration, parse_relay,
};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("sluice.toml", &format!("version = 1\n{text}"))
}

/// What is said about a text of which exactly one thing is wrong, after `version = 1`.
fn complaint(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert_eq!(error.problems.len(), 1, "{error}");
    error.to_string()
}

#[test]
fn without_a_file_all_is_default() {
    assert_eq!(Config::parse("f", "version = 1"), Ok(Config::default()));
    assert_eq!(Config::default().check(), Ok(()));
    assert_eq!(Config::default().connect.max_price_down, 0, "only free offers are accepted");
    assert_eq!(Config::default().relay.bind, "0.0.0.0:4433".parse().expect("a socket"));
}

#[test]
fn the_example_says_the_defaults() {
    assert_eq!(Config::parse("example", Config::example()), Ok(Config::default()));
}

#[test]
fn the_examples_own_examples_are_valid() {
    let lines = Config::example().lines().collect::<Vec<_>>();
    let mut tried = 0;
    for (i, line) in lines.iter().enumerate() {
        let Some(commented) = line.strip_prefix('#') else { continue };
        let is_key = commented.starts_with(|c: char| c.is_ascii_lowercase());
        let Some((key, _)) = commented.split_once(" = ").filter(|_| is_key) else { continue };
        let mut with: Vec<_> = lines.clone();
        with[i] = commented;
        // The default stands on the next line; a key may stand only once.
        if with.get(i + 1).is_some_and(|next| next.starts_with(&format!("{key} = "))) {
            with.remove(i + 1);
        }
        match Config::parse("example", &with.join("\n")) {
            Ok(config) => assert_ne!(config, Config::default(), "{line}"),
            Err(error) => assert_eq!(key, "ticket", "{error}"),
        }
        tried += 1;
    }
    assert_eq!(tried, 34);
}

#[test]
fn the_example_has_every_key() {
    let sections = Config::example().split("\n[").skip(1).collect::<Vec<_>>();
    assert_eq!(sections.len(), 9);
    for section in sections {
        let (name, body) = section.split_once(']').expect("a head");
        let said = complaint(&format!("[{name}]\nqqqqqqqqqqqqqqqq = 1"));
        let (_, keys) = said.split_once("may have: ").expect("the keys are listed");
        for key in keys.split(", ") {
            let stands =
                |line: &str| line.trim_start_matches('#').starts_with(&format!("{key} = "));
            assert!(body.lines().any(stands), "{name}.{key} is not in the example");
        }
    }
}

/// Values that no key of any kind may have.
const HOSTILE: [&str; 5] = ["{ a = 1 }", "1979-05-27", "-1", "nan", "[[1]]"];

#[test]
fn every_key_refuses_by_its_name_what_it_cannot_be() {
    let mut tried = 0;
    for section in Config::example().split("\n[").skip(1) {
        let (name, _) = section.split_once(']').expect("a head");
        let said = complaint(&format!("[{name}]\nqqqqqqqqqqqqqqqq = 1"));
        let (_, keys) = said.split_once("may have: ").expect("the keys are listed");
        for key in keys.trim_end().split(", ") {
            for value in HOSTILE {
                let error =
                    parse(&format!("[{name}]\n{key} = {value}")).expect_err(key).to_string();
                assert!(error.contains(&format!("{name}.{key}")), "{key} = {value}: {error}");
                tried += 1;
            }
        }
    }
    assert!(tried > 40 * HOSTILE.len(), "{tried}");
}

#[test]
fn every_section_is_read() {
    let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    let config = parse(&format!(
        r#"
[node]
state_dir = "/s"
direct = "never"
threads = 2
[provide]
expose = ["web=tcp:127.0.0.1:8080", "db=tcp:[::1]:5432"]
relays = ["{peer}@192.0.2.1:4433+tcp"]
price_down = "1_000_000_000_000_000_000_000"
rate_max = "10 Gbit/s"
starter_bytes = 4096
idle_timeout = "90 s"
[relay]
tcp = "0.0.0.0:443"
price = 5
starter_total = "1.5 GiB"
allow = ["{peer}"]
[connect]
map = ["9000=web"]
direct = "always"
[chain]
kind = "rpc"
url = "http://127.0.0.1:8545"
finality = 1
period = "3 days"
[wallet]
payee = "/k"
"#
    ))
    .expect("is valid");
    assert_eq!(config.node.direct, DirectPolicy::Never);
    assert_eq!(config.provide.expose[1].targets, ["[::1]:5432".parse().expect("a socket")]);
    assert_eq!(config.provide.relays[0].to_string(), format!("{peer}@192.0.2.1:4433+tcp:443"));
    assert_eq!(config.provide.price_down, 10_u128.pow(21));
    assert_eq!(config.provide.rate_max, BitRate(10_000_000_000));
    assert_eq!(config.provide.starter_bytes, ByteSize(4096));
    assert_eq!(config.provide.idle_timeout, Duration::from_secs(90));
    assert_eq!(config.relay.tcp, Some("0.0.0.0:443".parse().expect("a socket")));
    assert_eq!(Config::default().relay.tcp, None);
    assert_eq!(config.relay.starter_total, ByteSize(3 << 29));
    assert_eq!(config.relay.allow.as_deref().map(<[_]>::len), Some(1));
    assert_eq!(config.connect.map[0].to_string(), "127.0.0.1:9000=web");
    assert_eq!(config.connect.direct, Some(DirectPolicy::Always));
    assert_eq!(config.chain.period, Duration::from_secs(3 * 86_400));
    assert_eq!(config.wallet.payee.as_deref(), Some(Path::new("/k")));
    assert_eq!(config.check(), Ok(()));
    let Ok(ChainChoice::Rpc { finality, .. }) = config.chain.choice() else { panic!("is rpc") };
    assert_eq!(finality, Finality::Confirmations(1));
}

#[test]
fn what_is_wrong_is_named_with_file_line_key_and_remedy() {
    let cases = [
        (
            "[provide]\nprice_dwn = 1",
            "sluice.toml, line 3: provide.price_dwn: there is no such key; did you mean `price_down`?",
        ),
        (
            "\n\n[connect]\nrelays = []",
            "sluice.toml, line 5: connect.relays: there is no such key; `relays` belongs in [provide]",
        ),
        (
            "[wallet]\nxyzzy = 1",
            "sluice.toml, line 3: wallet.xyzzy: there is no such key; [wallet] may have: payer, payee",
        ),
        (
            "[providr]\n",
            "sluice.toml, line 2: providr: there is no such section; did you mean `[provide]`?",
        ),
        (
            "expose = []",
            "sluice.toml, line 2: expose: there is no such key outside the sections; `expose` belongs below a line `[provide]`",
        ),
        (
            "relay = 4",
            "sluice.toml, line 2: relay: must be a section: write `[relay]` on a line of its own",
        ),
        (
            "[relay]\nprice = -1",
            "sluice.toml, line 3: relay.price: must be a whole number of at least 0, not the number -1",
        ),
        (
            "[relay]\nflows_max = 0",
            "sluice.toml, line 3: relay.flows_max: must be a whole number from 1 to 1048576, not the number 0",
        ),
        (
            "[relay]\nprice = 1.5",
            "sluice.toml, line 3: relay.price: must be a whole number of at least 0, not the number 1.5",
        ),
        (
            "[relay]\nstarter_bytes = \"256 MB/s\"",
            "sluice.toml, line 3: relay.starter_bytes: \"256 MB/s\" is not a size: write a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as \"256 MiB\"",
        ),
        (
            "[relay]\nledger = \"postgres://u:s3cret@db.example/fleet\"",
            "sluice.toml, line 3: relay.ledger: the way to the server is not encrypted: use one on this machine",
        ),
        (
            "[relay]\nledger = \"postgres://u:s3cret@127.0.0.1:pg/fleet\"",
            "sluice.toml, line 3: relay.ledger: it is not the URL of a PostgreSQL server: write one such as",
        ),
        ("[relay]\nrate_max = 0", "sluice.toml, line 3: relay.rate_max: the rate must not be 0"),
        (
            "[provide]\nexpose = [\n  \"web=tcp:127.0.0.1:80\",\n  \"db=tcp:db.lan:5432\",\n]",
            "sluice.toml, line 5: provide.expose[1]: \"db.lan:5432\" is not an address that can be exposed: write an IP address and a port, such as 127.0.0.1:8080, or localhost:8080; names are not looked up",
        ),
        (
            "[provide]\nexpose = \"web\"",
            "sluice.toml, line 3: provide.expose: must be a list of texts, such as [\"..\", \"..\"], not the text \"web\"",
        ),
        ("[node]\nlog = true", "sluice.toml, line 3: node.log: must be text in quotes, not `true`"),
        (
            "[node]\ndirect = \"after-funding\"",
            "sluice.toml, line 3: node.direct: \"after-funding\" is none of \"always\", \"after_funding\", \"never\"; did you mean \"after_funding\"?",
        ),
        (
            "[chain]\nperiod = \"24h\"",
            "sluice.toml, line 3: chain.period: must be from 48 h to 4320 h, not 24h",
        ),
        (
            "[chain]\ntoken = \"0x12\"",
            "sluice.toml, line 3: chain.token: \"0x12\" is not an address: write 0x and 40 hexadecimal digits",
        ),
        (
            "[chain]\nfinality = 0",
            "sluice.toml, line 3: chain.finality: \"0\" is not a finality: write \"finalized\" or a number of confirmations from 1",
        ),
        (
            "[connect]\nticket = \"sluice1abc\"",
            "sluice.toml, line 3: connect.ticket: the ticket is damaged",
        ),
    ];
    for (text, expected) in cases {
        let said = complaint(text);
        assert!(said.starts_with(expected), "{said}\nis not\n{expected}");
    }
}

#[test]
fn a_file_of_another_version_or_no_toml_is_refused() {
    let said = |text| Config::parse("f.toml", text).expect_err(text).to_string();
    assert_eq!(said(""), "f.toml: version: is missing: write `version = 1` on the first line");
    assert_eq!(
        said("version = 2"),
        "f.toml, line 1: version: this file is of version 2, and this Sluice reads version 1: \
         update Sluice"
    );
    assert!(said("version = \"1\"").contains("must be the number 1"));
    assert!(said("version = 1\n[node\n").starts_with("f.toml, line 2: this is not TOML: "));
    assert!(said("version = 1\n[node]\nlog = \"a\"\nlog = \"b\"").contains("line 4"));
}

#[test]
fn all_that_is_wrong_is_told_at_once_in_the_order_of_the_file() {
    let error =
        parse("[relay]\nprise = 1\nthreads = -2\n[node]\nbind = \"x\"").expect_err("is wrong");
    let keys: Vec<_> = error.problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(keys, ["relay.prise", "relay.threads", "node.bind"]);
    assert_eq!(error.to_string().lines().count(), 3);
}

#[test]
fn fields_that_contradict_each_other_are_refused_by_check() {
    let mut config = Config::default();
    config.provide.price_down = 5;
    let said = config.check().expect_err("has a price and no chain").to_string();
    assert!(said.starts_with("configuration: provide.price_down: a price needs a chain"), "{said}");
    config.chain.kind = ChainKind::Rpc;
    let said = config.check().expect_err("has no url").to_string();
    assert!(said.starts_with("configuration: chain.url: is missing"), "{said}");
    config.chain.url = Some("http://127.0.0.1:8545".to_owned());
    assert_eq!(config.check(), Ok(()));
    config.chain.kind = ChainKind::Embedded;
    assert!(config.check().is_err());
}

#[test]
fn a_file_is_loaded_from_where_it_is_and_missed_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, "version = 1\n[relay]\nprice = 3\n").expect("writes");
    assert_eq!(Config::load(Some(&path)).expect("loads").relay.price, 3);
    let absent = folder.path().join("absent.toml");
    let said = Config::load(Some(&absent)).expect_err("is missing").to_string();
    assert!(said.contains("absent.toml: there is no such file"), "{said}");
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).expect("writes");
    assert!(Config::load(Some(&path)).expect_err("is too large").to_string().contains("larger"));
}

#[test]
fn services_are_sockets_of_this_machine_or_its_neighbours_by_number() {
    let targets = |text| Expose::parse(text).map(|e| e.targets.len());
    assert_eq!(targets("web=tcp:127.0.0.1:80"), Ok(1));
    assert_eq!(targets("web=tcp:localhost:80"), Ok(2));
    assert_eq!(targets("web=127.0.0.1:80"), Ok(1));
    assert_eq!(
        Expose::parse("web=tcp:localhost:80").expect("parses").to_string(),
        "web=tcp:localhost:80"
    );
    for (text, part) in [
        ("web", "name=tcp:address:port"),
        ("Web=tcp:127.0.0.1:80", "service name"),
        ("web=udp:127.0.0.1:80", "only tcp"),
        ("web=tcp:example.org:80", "names are not looked up"),
        ("web=tcp:127.0.0.1", "an IP address and a port"),
        ("web=tcp:127.0.0.1:0", "must not be 0"),
        ("web=tcp:0.0.0.0:80", "127.0.0.1:80"),
        ("web=tcp:224.0.0.1:80", "cannot be dialled"),
        ("web=tcp:localhost:99999", "not a port"),
    ] {
        let said = Expose::parse(text).expect_err(text).to_string();
        assert!(said.contains(part), "{text}: {said}");
    }
}

#[test]
fn maps_and_relays_say_which_part_is_wrong() {
    assert_eq!(Map::parse("localhost:1=web").expect("parses").to_string(), "127.0.0.1:1=web");
    assert_eq!(Map::parse("[::1]:1=web").expect("parses").to_string(), "[::1]:1=web");
    for (text, part) in [
        ("9000", "address:port=service"),
        ("home:9000=web", "an IP address and a port"),
        ("9000=WEB", "service name"),
        ("=web", "an IP address and a port"),
    ] {
        let said = Map::parse(text).expect_err(text).to_string();
        assert!(said.contains(part), "{text}: {said}");
    }
    let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    for (text, tcp) in [("", None), ("+tcp", Some(443)), ("+tcp:8443", Some(8443))] {
        let relay = parse_relay(&format!("{peer}@192.0.2.1:4433{text}")).expect("parses");
        assert_eq!(relay.tcp.map(u16::from), tcp);
        assert_eq!(parse_relay(&relay.to_string()), Ok(relay));
    }
    for (text, part) in [
        ("192.0.2.1:4433".to_owned(), "<peer id>@"),
        (format!("{peer}@relay.example:4433"), "an IP address"),
        (format!("{peer}@0.0.0.0:4433"), "cannot be dialled"),
        (format!("{peer}@192.0.2.1:4433+tcp:0"), "relay's TCP port"),
        (format!("{peer}@192.0.2.1:4433+tcp:https"), "relay's TCP port"),
        (format!("{peer}@192.0.2.1:4433+tcp443"), "relay's TCP port"),
        ("12D3KooW@192.0.2.1:4433".to_owned(), "not a peer id"),
    ] {
        let said = parse_relay(&text).expect_err(&text).to_string();
        assert!(said.contains(part), "{text}: {said}");
    }
}

#[test]
fn quantities_are_exact() {
    assert_eq!("256 MiB".parse(), Ok(ByteSize(256 << 20)));
    assert_eq!("1.5GB".parse(), Ok(ByteSize(1_500_000_000)));
    assert_eq!("7".parse(), Ok(ByteSize(7)));
    assert_eq!("10 Gbit/s".parse(), Ok(BitRate(10_000_000_000)));
    assert_eq!("2.5mbit/s".parse(), Ok(BitRate(2_500_000)));
    assert_eq!(parse_duration("72h"), Ok(Duration::from_secs(72 * 3600)));
    assert_eq!(parse_duration("1.5 min"), Ok(Duration::from_secs(90)));
    for bad in ["", "MiB", "1 Mib/s", "-1", "1..5 MB", "1. MB", "99999999999 TiB", "1 2", "0x10"] {
        assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
    }
    assert!(parse_duration("10").is_err(), "a duration needs its unit");
}

proptest! {
    #[test]
    fn sizes_and_rates_are_read_as_they_are_written(n in any::<u64>(), shift in 0_u32..50) {
        let size = ByteSize(n >> shift << shift);
        prop_assert_eq!(size.to_string().parse(), Ok(size));
        let rate = BitRate((n >> shift).max(1));
        prop_assert_eq!(rate.to_string().parse(), Ok(rate));
    }

    #[test]
    fn no_text_makes_it_panic(text in "(version = 1\n)?(\\[[a-z]{1,8}\\]\n)?([a-z_]{1,9} = ([0-9\".\\[\\]a-z]{0,9})\n){0,4}.{0,20}") {
        let _ = Config::parse("f", &text);
        let _ = Expose::parse(&text);
        let _ = Map::parse(&text);
        let _ = parse_relay(&text);
        let _ = text.parse::<ByteSize>();
        let _ = parse_duration(&text);
    }
}

#[test]
fn what_a_home_sells_is_refused_where_it_cannot_be_meant() {
    let with = |keys: &str| {
        let chain = "[chain]\nkind = \"embedded\"";
        Config::parse("test", &format!("version = 1\n[sell]\non = true\n{keys}\n{chain}\n"))
            .and_then(|config| config.check().map(|()| config))
    };
    let config = with("closed = [\"22:00-06:30\"]\nutc_offset = \"-03:30\"").expect("it is fine");
    let hours: Vec<_> = config.sell.closed.iter().map(|h| (h.from_min, h.to_min)).collect();
    assert_eq!((hours, config.sell.utc_offset_min), (vec![(22 * 60, 6 * 60 + 30)], -210));
    for (keys, named) in [
        ("closed = [\"22:00\"]", "a part of the day"),
        ("closed = [\"24:00-06:00\"]", "a part of the day"),
        ("closed = [\"06:00-06:00\"]", "a part of the day"),
        ("utc_offset = \"2\"", "a distance from UTC"),
        ("utc_offset = \"+15:00\"", "a distance from UTC"),
        ("denied = [\"nobody\"]", "a peer id"),
        ("regions = [\"Not A Region\"]", "regions"),
        ("regions = []", "sell.regions"),
        ("window_max = \"1 KiB\"", "must be from"),
        ("duration_max = \"1s\"", "must be from"),
        ("uplink = \"1 Mbit/s\"\nuplink_kept = \"1 Mbit/s\"", "none is left to sell"),
        ("floor_down = 5\nceiling_down = 4", "below the floor"),
        ("leases_max = 0", "leases_max"),
    ] {
        let error = with(keys).expect_err(keys).to_string();
        assert!(error.contains(named), "{keys}: {error}");
    }
    let free = Config::parse("test", "version = 1\n[sell]\nfloor_up = 1\n").expect("well-formed");
    let error = free.check().expect_err("a price without a chain").to_string();
    assert!(error.contains("sell.floor_up") && error.contains("chain"), "{error}");
}
