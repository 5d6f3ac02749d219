//! Records: published, looked for, taken.

use std::io;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::{
    self, GetRecordOk, InboundRequest, PutRecordError, QueryId, QueryResult, Quorum, Record,
    RecordKey,
};
use sluice_proto::{RecordError, SignedRecord};
use tokio::sync::oneshot;

use super::{Command, PUBLISH_AGAIN, Task};
use crate::clock::unix_ms;
use crate::event::MeshEvent;
use crate::mesh::{FindError, PublishError};
use crate::own::{Own, OwnRecord, Published};
use crate::records::{Refused, Taken, record_key};
use crate::store::kad_record;

/// Most records that are looked for at once.
const FINDS_MAX: usize = 256;
/// So many holders that gave one valid record are enough: one may lag behind, or lie by keeping an
/// old one.
const ANSWERS: usize = 3;
/// After the first valid one, others are waited for this long.
const GRACE: Duration = Duration::from_millis(500);
/// A record that nobody gave is looked for again: whoever holds it was busy, or another has it by now.
/// So many times ..
const ATTEMPTS: u32 = 3;
/// .. after this.
const FIND_AGAIN: Duration = Duration::from_millis(500);
/// A peer that passed on so many records that are none is shut out.
const STRIKES_MAX: u32 = 8;
/// Most peers whose strikes are counted.
const STRIKERS_MAX: usize = 1024;

/// A record that is being looked for.
#[derive(Debug)]
pub(super) struct Find {
    peer: PeerId,
    done: oneshot::Sender<Result<SignedRecord, FindError>>,
    answers: usize,
    attempts: u32,
    /// The newest valid one, for which there was no room.
    unheld: Option<SignedRecord>,
    /// When the first valid one came, and some time.
    enough_at: Option<Instant>,
}

impl Task {
    /// Signs a record and gives it to those who should hold it.
    pub(super) fn publish(
        &mut self,
        content: OwnRecord,
        done: Option<oneshot::Sender<Result<Published, PublishError>>>,
    ) {
        let addresses = self.addresses();
        let now_ms = unix_ms();
        match Own::sign(content, &addresses, self.last_sequence, &self.key, now_ms) {
            Ok(own) => {
                self.last_sequence = own.signed().record().sequence;
                self.write_down(Box::new(own), done);
            }
            Err(error) => tell(done, Err(error.into())),
        }
    }

    /// Has the number of a record written down before anybody sees it: a node that forgot it might sign
    /// another one of the same.
    fn write_down(
        &mut self,
        own: Box<Own>,
        done: Option<oneshot::Sender<Result<Published, PublishError>>>,
    ) {
        let Some(keep) = self.keep.clone() else { return self.kept(*own, Ok(()), done) };
        self.keeping = true;
        let commands = self.commands.clone();
        let sequence = self.last_sequence;
        tokio::spawn(async move {
            let kept = tokio::task::spawn_blocking(move || keep.keep(sequence)).await;
            let kept = kept.map_err(io::Error::other).flatten().map_err(|e| e.to_string());
            if let Some(commands) = commands.upgrade() {
                // A mesh that has ended publishes nothing.
                let _ = commands.send(Command::Kept { own, kept, done }).await;
            }
        });
    }

    pub(super) fn kept(
        &mut self,
        own: Own,
        kept: Result<(), String>,
        done: Option<oneshot::Sender<Result<Published, PublishError>>>,
    ) {
        let is_newest = own.signed().record().sequence == self.last_sequence;
        self.keeping &= !is_newest;
        match kept {
            // The one that came after it says all that this one does.
            Ok(()) | Err(_) if !is_newest => tell(done, Err(PublishError::NoHolder)),
            Ok(()) => {
                self.own = Some(own);
                self.put_own(done);
            }
            Err(error) => {
                tracing::warn!(%error, "the own record's number cannot be written down");
                self.unpublished = Some((own.content().clone(), Instant::now() + PUBLISH_AGAIN));
                tell(done, Err(PublishError::Kept(error)));
            }
        }
    }

    fn put_own(&mut self, done: Option<oneshot::Sender<Result<Published, PublishError>>>) {
        self.publish_at = None;
        let Some(own) = &self.own else { return };
        let record = kad_record(own.signed(), unix_ms());
        // All of them: with fewer, a query that has enough forgets those whom it still dials.
        match self.swarm.behaviour_mut().kad.put_record(record, Quorum::All) {
            Ok(query) => {
                self.publishing.insert(query, done);
            }
            Err(error) => {
                tracing::warn!(%error, "the own record is refused here");
                tell(done, Err(PublishError::NoHolder));
            }
        }
    }

    fn published(&mut self, query: QueryId, holders: usize) {
        let Some(done) = self.publishing.remove(&query) else { return };
        if holders == 0 {
            self.publish_at = Some(Instant::now() + PUBLISH_AGAIN);
            return tell(done, Err(PublishError::NoHolder));
        }
        let published = Published { sequence: self.last_sequence, holders };
        match done {
            Some(done) => tell(Some(done), Ok(published)),
            None => drop(self.emit(MeshEvent::Published(published))),
        }
    }

    /// Publishes again what nobody took, what is half over, and what leads to old addresses.
    pub(super) fn publish_anew(&mut self, now: Instant) {
        if !self.publishing.is_empty() || self.keeping {
            return;
        }
        if let Some((content, at)) = self.unpublished.take() {
            if at <= now {
                self.publish(content, None);
            } else {
                self.unpublished = Some((content, at));
            }
            return;
        }
        let addresses = self.addresses();
        let stale = self.own.as_ref().filter(|own| own.is_stale(&addresses, unix_ms()));
        if let Some(content) = stale.map(|own| own.content().clone()) {
            self.publish(content, None);
        } else if self.publish_at.is_some_and(|at| at <= now) {
            self.put_own(None);
        }
    }

    pub(super) fn find(
        &mut self,
        peer: PeerId,
        done: oneshot::Sender<Result<SignedRecord, FindError>>,
    ) {
        if self.finds.len() + self.waiting_finds.len() >= FINDS_MAX {
            return drop(done.send(Err(FindError::Busy)));
        }
        let key = RecordKey::from(record_key(&peer));
        let query = self.swarm.behaviour_mut().kad.get_record(key);
        let (answers, attempts) = (0, 1);
        self.finds
            .insert(query, Find { peer, done, answers, attempts, unheld: None, enough_at: None });
    }

    /// Looks again for what was not found and is due.
    pub(super) fn find_again(&mut self, now: Instant) {
        let due: Vec<_> = self.waiting_finds.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, find) in due {
            if find.done.is_closed() {
                continue;
            }
            let key = RecordKey::from(record_key(&find.peer));
            let query = self.swarm.behaviour_mut().kad.get_record(key);
            self.finds.insert(query, Find { attempts: find.attempts + 1, ..find });
        }
    }

    /// Ends those that have waited long enough after their first answer, and those whose caller went.
    pub(super) fn finish_finds(&mut self, now: Instant) {
        let is_over =
            |find: &Find| find.done.is_closed() || find.enough_at.is_some_and(|at| at <= now);
        let over: Vec<QueryId> =
            self.finds.iter().filter(|(_, find)| is_over(find)).map(|(query, _)| *query).collect();
        for query in over {
            self.finish_find(query);
        }
    }

    /// Answers with the newest record that is held: what came in was taken or refused, or is kept
    /// with the query.
    fn finish_find(&mut self, query: QueryId) {
        let Some(find) = self.finds.remove(&query) else { return };
        let kad = &mut self.swarm.behaviour_mut().kad;
        if let Some(mut query) = kad.query_mut(&query) {
            query.finish();
        }
        let held = kad.store_mut().0.get(&find.peer, unix_ms()).cloned();
        if held.is_none() && find.unheld.is_none() && find.attempts < ATTEMPTS {
            let at = Instant::now() + FIND_AGAIN * find.attempts;
            return self.waiting_finds.push((at, find));
        }
        let found = held.or(find.unheld);
        // Whoever asked and went away wants no answer.
        let _ = find.done.send(found.ok_or(FindError::NotFound(find.peer)));
    }

    pub(super) fn handle_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest {
                request: InboundRequest::PutRecord { source, record: Some(record), .. },
            } => drop(self.take(Some(source), record)),
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                self.handle_query(id, result, step.last);
            }
            kad::Event::InboundRequest { .. }
            | kad::Event::RoutingUpdated { .. }
            | kad::Event::UnroutablePeer { .. }
            | kad::Event::RoutablePeer { .. }
            | kad::Event::PendingRoutablePeer { .. }
            | kad::Event::ModeChanged { .. } => {}
        }
    }

    fn handle_query(&mut self, id: QueryId, result: QueryResult, last: bool) {
        match result {
            QueryResult::GetRecord(result) => {
                if let Ok(GetRecordOk::FoundRecord(found)) = result {
                    self.answered(id, found.peer, found.record);
                }
                if last {
                    self.finish_find(id);
                }
            }
            QueryResult::PutRecord(Ok(_)) => {
                self.published(id, kad::K_VALUE.get());
            }
            QueryResult::PutRecord(Err(
                PutRecordError::QuorumFailed { success, .. }
                | PutRecordError::Timeout { success, .. },
            )) => self.published(id, success.len()),
            QueryResult::Bootstrap(_)
            | QueryResult::GetClosestPeers(_)
            | QueryResult::GetProviders(_)
            | QueryResult::StartProviding(_)
            | QueryResult::RepublishProvider(_)
            | QueryResult::RepublishRecord(_) => {}
        }
    }

    /// A holder gave a record for a query.
    fn answered(&mut self, query: QueryId, source: Option<PeerId>, record: Record) {
        let taken = self.take(source, record);
        let Some(find) = self.finds.get_mut(&query) else { return };
        match taken {
            Ok(_) => find.answers += 1,
            Err(Refused::Full(signed)) => {
                let sequence = |s: &SignedRecord| s.record().sequence;
                if find.unheld.as_ref().is_none_or(|u| sequence(u) < sequence(&signed)) {
                    find.unheld = Some(*signed);
                }
                find.answers += 1;
            }
            Err(Refused::Older { .. }) => {}
            Err(_) => return,
        }
        find.enough_at.get_or_insert_with(|| Instant::now() + GRACE);
        if find.answers >= ANSWERS {
            self.finish_find(query);
        }
    }

    /// Takes a record from a peer (or from our own store) if it counts; counts what does not.
    fn take(&mut self, source: Option<PeerId>, record: Record) -> Result<Taken, Refused> {
        let records = &mut self.swarm.behaviour_mut().kad.store_mut().0;
        let taken = records.take(record.key.as_ref(), record.value.into(), unix_ms());
        match &taken {
            Ok(Taken::New) => self.counts.records_taken += 1,
            Ok(Taken::Known) => {}
            Err(refused) => self.refused(source, refused),
        }
        taken
    }

    fn refused(&mut self, source: Option<PeerId>, refused: &Refused) {
        match refused {
            Refused::Record(
                RecordError::Expired(_) | RecordError::TooLong(_) | RecordError::Future(_),
            ) => self.counts.records_untimely += 1,
            Refused::Record(_) | Refused::WrongKey(_) => self.counts.records_invalid += 1,
            Refused::Older { .. } => self.counts.records_older += 1,
            Refused::Equivocation(evidence) => {
                self.counts.equivocations += 1;
                if let Some(peer) = evidence.proves() {
                    self.block(peer);
                    let evidence = (**evidence).clone();
                    self.emit(MeshEvent::Equivocation { peer, evidence });
                }
            }
            Refused::Equivocator(_) | Refused::Full(_) => {}
        }
        if let Some(source) = source.filter(|_| refused.is_senders_fault()) {
            self.strike(source);
        }
    }

    fn strike(&mut self, peer: PeerId) {
        if self.strikes.len() >= STRIKERS_MAX {
            self.strikes.clear();
        }
        let strikes = self.strikes.entry(peer).or_default();
        *strikes += 1;
        if *strikes >= STRIKES_MAX {
            self.strikes.remove(&peer);
            self.block(peer);
        }
    }
}

fn tell(
    done: Option<oneshot::Sender<Result<Published, PublishError>>>,
    result: Result<Published, PublishError>,
) {
    if let Some(done) = done {
        // Whoever asked and went away wants no answer.
        let _ = done.send(result);
    }
}
