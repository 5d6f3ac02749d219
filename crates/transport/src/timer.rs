//! Keeps the NAT's timer measured, in the background, with one socket beside the data socket.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use sluice_path::{Timer, TimerSurvey};
use sluice_proto::frame::Observed;
use tokio::sync::watch;

use crate::node::Inner;
use crate::observe::Observer;
use crate::side::SideSocket;
use crate::survey;

/// Sessions that learn of a survey's end have their say before this begins: they are woken at the same
/// moment and in any order, which would make two runs of one seed differ.
const SETTLE: Duration = Duration::from_millis(20);

/// Measures when it is due, until the node is gone.
pub(crate) async fn keep_timed(node: Weak<Inner>) {
    let Some(strong) = node.upgrade() else { return };
    let (clock, mut changes) = (strong.clock.clone(), strong.nat.subscribe());
    drop(strong);
    while let Some(strong) = node.upgrade() {
        let at = network(&strong);
        if let Some(at) = at {
            strong.keepalive.lock().handle_network(at, clock.now());
            publish(&strong);
        }
        let due = at.and_then(|_| strong.keepalive.lock().measure_at());
        drop(strong);
        if let (Some(at), Some(due)) = (at, due)
            && due <= clock.now()
        {
            clock.sleep(SETTLE).await;
            if measure(&node, at, &mut changes).await.is_none() {
                return;
            }
            continue;
        }
        let hour = clock.now() + Duration::from_secs(3600);
        tokio::select! {
            biased;
            changed = changes.changed() => if changed.is_err() { return },
            () = clock.sleep_until(due.unwrap_or(hour)) => {}
        }
    }
}

/// The network that the node is on, by the public address that a relay sees, once the survey is over:
/// the two would disturb one another.
fn network(node: &Inner) -> Option<IpAddr> {
    let surveyed = node.nat_options.lock().survey && node.nat.borrow().complete;
    let (_, observed) = survey::legs_up(node).into_iter().next().filter(|_| surveyed)?;
    observed.map(|observed| observed.ip())
}

/// A socket that is closed in the end.
struct Fresh {
    node: Weak<Inner>,
    socket: Arc<SideSocket>,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some(node) = self.node.upgrade() {
            node.socket.sides.close(self.socket.id);
        }
    }
}

/// Measures once, as long as the node stays on the network. `None` once the node is gone: while the
/// fresh socket is silent nothing here keeps it.
async fn measure(
    node: &Weak<Inner>,
    at: IpAddr,
    changes: &mut watch::Receiver<survey::NatState>,
) -> Option<()> {
    let strong = node.upgrade()?;
    let clock = strong.clock.clone();
    let relays = survey::legs_up(&strong).len();
    let mut survey = TimerSurvey::new(relays, strong.random.number(), clock.now());
    let opened = strong.socket.sides.open(&strong.network, &strong.socket, 1).pop();
    let fresh = opened.map(|socket| Fresh { node: node.clone(), socket });
    drop(strong);
    let mut observer = None;
    while let (Some(fresh), Some(due)) = (&fresh, survey.poll_timeout()) {
        ask(node, &mut observer, &mut survey, &fresh.socket)?;
        tokio::select! {
            biased;
            changed = changes.changed() => {
                changed.ok()?;
                let now = network(&*node.upgrade()?);
                if now.is_some_and(|now| now != at) {
                    break;
                }
            }
            seen = answer(&mut observer) => if let Some(seen) = seen {
                survey.handle_answer(seen.token, seen.address, clock.now());
            },
            () = clock.sleep_until(due) => survey.handle_timeout(clock.now()),
        }
        observer = observer.filter(|_| survey.is_asking());
        let strong = node.upgrade()?;
        if survey.timer() != Timer::default() {
            strong.keepalive.lock().handle_timer(survey.timer(), false, clock.now());
            publish(&strong);
        }
    }
    let strong = node.upgrade()?;
    let (timer, complete) = (survey.timer(), survey.is_complete());
    tracing::debug!(?timer, complete, "the NAT's timer was measured");
    strong.keepalive.lock().handle_timer(timer, complete, clock.now());
    publish(&strong);
    Some(())
}

/// Sends what is to be asked; `None` once the node is gone.
fn ask(
    node: &Weak<Inner>,
    observer: &mut Option<Observer>,
    survey: &mut TimerSurvey,
    fresh: &Arc<SideSocket>,
) -> Option<()> {
    while let Some(mut question) = survey.poll_transmit() {
        let strong = node.upgrade()?;
        let legs: Vec<_> = survey::legs_up(&strong).into_iter().map(|(leg, _)| leg).collect();
        // A relay that came or went meanwhile costs a step of the measurement at most.
        question.relay %= legs.len().max(1);
        let observer = observer.get_or_insert_with(|| Observer::new(strong));
        survey::ask(observer, &legs, std::slice::from_ref(fresh), &question);
    }
    Some(())
}

async fn answer(observer: &mut Option<Observer>) -> Option<Observed> {
    match observer {
        Some(observer) => observer.answer().await,
        None => std::future::pending().await,
    }
}

/// A direct path that had been idle for this long turned out to be dead.
pub(crate) fn lost(node: &Inner, idle: Duration) {
    node.keepalive.lock().handle_lost(idle, node.clock.now());
    publish(node);
}

fn publish(node: &Inner) {
    let timer = node.keepalive.lock().timer();
    node.nat.send_if_modified(|state| {
        let changed = state.timer != timer;
        state.timer = timer;
        changed
    });
}
