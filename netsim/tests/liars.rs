//! A fast slice of the liars, and controls for those who keep the books.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netsim::check::{BYSTANDER_PROBES, Probes};
use netsim::liars::{
    Case, Counting, Losses, ProviderLie, RelayLie, Report, StrangerLie, TenantLie, cases,
};
use netsim::net::LinkSpec;
use netsim::scene::{HomeSpec, Scene};
use netsim::{pool, sim, time};
use sluice_path::CANDIDATES_MAX;
use sluice_proto::wire::encode_addr;
use sluice_proto::wire::session::Candidates;

const HONEST: Case = Case::HONEST;

/// Runs all; nobody loses more than a window.
fn within_a_window(cases: &[Case]) -> Vec<Losses> {
    let outcomes = pool::run(cases, Case::run, |_, _| {});
    let losses = cases.iter().zip(outcomes).map(|(case, outcome)| {
        let losses = match outcome {
            Ok(losses) => losses,
            Err(error) => panic!("replay with `liars --only {case}`: {error:#}"),
        };
        let [lease, reservation] = losses.windows;
        assert!(losses.provider.is_none_or(|lost| lost <= lease), "{case}: {losses:?}");
        assert!(losses.tenant.is_none_or(|lost| lost <= lease), "{case}: {losses:?}");
        assert!(losses.relay.is_none_or(|lost| lost <= reservation), "{case}: {losses:?}");
        assert!(losses.holder.is_none_or(|lost| lost <= reservation), "{case}: {losses:?}");
        assert!(losses.flood.is_none_or(|lost| lost == 0), "{case}: {losses:?}");
        let [sent, answers] = losses.stranger;
        assert!(answers <= sent, "{case}: {losses:?}");
        losses
    });
    losses.collect()
}

#[test]
fn honest_parties_agree_to_the_byte_whatever_the_network_does() {
    let relays = [RelayLie::None, RelayLie::Duplicates, RelayLie::Reorders, RelayLie::Repeats];
    let cases = relays.map(|relay| Case { relay, ..HONEST });
    for (case, losses) in cases.iter().zip(within_a_window(&cases)) {
        assert_eq!((losses.provider, losses.tenant), (Some(0), Some(0)), "{case}");
        assert_eq!(losses.paid, losses.heard.iter().sum::<u64>(), "{case}");
    }
}

#[test]
fn after_random_faults_the_three_parties_books_agree() {
    // 147: the only relay left carries small packets only, until the other is back. 337: two NATs that
    // map by destination make more pairs than an agent knows.
    let seeds: Vec<u64> = (0..8).chain([147, 337]).collect();
    let outcomes = pool::run(&seeds, |seed| sim::run_paid(*seed), |_, _| {});
    for (seed, outcome) in seeds.iter().zip(outcomes) {
        if let Err(error) = outcome {
            panic!("replay with `sim --seed {seed} --paid`: {error:#}");
        }
    }
}

#[test]
fn a_tenant_that_lies_costs_a_window_at_most() {
    let lies = [
        TenantLie::NeverPays,
        TenantLie::Replays,
        TenantLie::Equivocates,
        TenantLie::StrangersChannel,
        TenantLie::Floods,
        TenantLie::Elicits,
    ];
    within_a_window(&lies.map(|tenant| Case { tenant, ..HONEST }));
}

#[test]
fn acknowledgements_that_a_tenant_elicits_grant_it_no_more() {
    let elicits = Case { tenant: TenantLie::Elicits, ..HONEST };
    let [losses] = within_a_window(&[elicits])[..] else { panic!("one case") };
    assert_eq!(losses.flood, Some(0));
    // The control: where every packet counts as payload, the flood pays for itself.
    let control = Case { counting: Counting::EveryPacket, ..elicits };
    let beyond = control.run().expect("it can be played").flood.expect("the provider is honest");
    assert!(beyond > 256 << 10, "{beyond} bytes beyond the bound");
}

#[test]
fn a_provider_or_a_relay_that_lies_costs_a_window_at_most() {
    let lies = [ProviderLie::Inflates, ProviderLie::Unsolicited, ProviderLie::OwesRelay];
    let mut cases = lies.map(|provider| Case { provider, ..HONEST }).to_vec();
    cases.push(Case { relay: RelayLie::Inflates, ..HONEST });
    within_a_window(&cases);
}

#[test]
fn two_that_lie_together_cost_the_third_a_window_at_most() {
    let (tenant, provider) = (TenantLie::NeverPays, ProviderLie::OwesRelay);
    let relay = RelayLie::Inflates;
    within_a_window(&[
        Case { tenant, provider, ..HONEST },
        Case { tenant, relay, ..HONEST },
        Case { provider: ProviderLie::Inflates, relay, ..HONEST },
    ]);
}

#[test]
fn a_stranger_on_the_network_moves_nothing_and_costs_nothing() {
    let lies = [StrangerLie::Replays, StrangerLie::Elsewhere, StrangerLie::Forges];
    let cases = lies.map(|stranger| Case { stranger, ..HONEST });
    for (case, losses) in cases.iter().zip(within_a_window(&cases)) {
        assert!(losses.stranger[0] > 0, "{case}: it did send");
        assert_eq!((losses.provider, losses.tenant), (Some(0), Some(0)), "{case}");
    }
}

/// Strangers that a peer names each time: far more than are believed.
const NAMED: u16 = 4096;
/// So often, others each time.
const TIMES: u16 = 5;

#[test]
fn a_peer_that_names_strangers_by_the_thousand_troubles_few_of_them_a_little() {
    time::run(async |clock| {
        let line = LinkSpec::delay(Duration::from_millis(5));
        let mut scene = Scene::new(clock, 1, &[line; 2]).await.expect("relays");
        let probes = Probes::watch(&scene.net);
        let provider = scene.provider(&HomeSpec::default(), 2).await.expect("a provider");
        let tenant = scene.tenant(&HomeSpec::default(), 2).await.expect("a tenant");
        let (_ours, theirs) = scene.session(&tenant, &provider).await.expect("a session");
        theirs.set_direct_allowed(true);
        for time in 0..TIMES {
            // The documentation's prefix of RFC 3849: somebody else each time.
            let stranger = |n| Ipv6Addr::new(0x2001, 0xdb8, 0xbad, time, 0, 0, 0, n);
            let v4 = |n: u16| Ipv4Addr::new(192, 0, (n >> 8) as u8, n as u8);
            let addresses = (1..=NAMED)
                .flat_map(|n| [IpAddr::from(stranger(n)), IpAddr::from(v4(n + time * NAMED))])
                .map(|ip| encode_addr(SocketAddr::new(ip, 443)))
                .collect();
            theirs.add_candidates(&Candidates { addresses });
            scene.sleep(Duration::from_secs(10)).await;
        }
        let probes = probes.lock();
        assert!(probes.total > 0, "the peer was believed at first");
        let worst = probes.by_target.values().max().copied().unwrap_or_default();
        assert!(worst <= BYSTANDER_PROBES, "{worst} probes to one of {probes:?}");
        let targets = probes.by_target.len();
        let most = usize::from(TIMES) * CANDIDATES_MAX;
        assert!(targets <= most, "{targets} strangers, more than {most}");
    });
}

#[test]
fn a_provider_that_does_not_ask_its_gate_loses_more_and_that_is_noticed() {
    let (tenant, provider) = (TenantLie::NeverPays, ProviderLie::Repeats);
    let losses = Case { tenant, provider, ..HONEST }.run().expect("it is judged");
    let lost = losses.heard.iter().sum::<u64>() - losses.paid;
    assert!(lost > losses.windows[0], "{losses:?}");
}

#[test]
fn a_loss_of_two_windows_is_a_figure_that_is_missed() {
    let mut report = Report::default();
    let one = Losses { windows: [100, 100], provider: Some(100), ..Losses::default() };
    report.add(&HONEST, &Ok(one));
    assert!(report.figures().iter().all(netsim::figures::Figure::is_met));
    for two in [
        Losses { provider: Some(200), ..one },
        Losses { tenant: Some(200), ..one },
        Losses { relay: Some(200), ..one },
        Losses { holder: Some(200), ..one },
        Losses { flood: Some(1), ..one },
        Losses { stranger: [10, 11], ..one },
    ] {
        let mut report = Report::default();
        report.add(&HONEST, &Ok(two));
        let missed = report.figures().iter().filter(|figure| !figure.is_met()).count();
        assert_eq!(missed, 1, "{two:?}");
    }
    let mut report = Report::default();
    report.add(&HONEST, &Err(anyhow::anyhow!("it hung")));
    assert_eq!(report.figures().iter().filter(|figure| !figure.is_met()).count(), 1);
}

#[test]
fn every_set_of_liars_has_its_case() {
    let all = cases(1);
    let one = |case: &&Case| {
        let liars = [
            case.tenant != TenantLie::None,
            case.provider != ProviderLie::None,
            case.relay != RelayLie::None,
            case.stranger != StrangerLie::None,
        ];
        liars.into_iter().filter(|lies| *lies).count() == 1
    };
    assert_eq!(all.iter().filter(one).count(), 8 + 4 + 5 + 3);
    assert_eq!(all.len(), 1 + 20 + 8 * 5 + 8 * 4 + 4 * 5);
}
