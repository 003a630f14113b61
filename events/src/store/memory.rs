//! The store for tests: everything in memory, the same rules.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use super::bells::StreamBells;
use super::chain::{self, Digest, Linked};
use super::{Appended, Direction, EventStore, Expected, LinkedLog, MAX_PAGE, StoreError, check_batch, place_of};
use crate::envelope::{Envelope, NewEvent, Position, Revision, StreamName};
use crate::id::EventId;

/// An event store without a disk. Grows without bound: for tests.
#[derive(Debug)]
pub struct MemoryStore {
    log: Mutex<Log>,
    bell: watch::Sender<Position>,
    bells: StreamBells,
}

#[derive(Debug, Default)]
struct Log {
    /// The event at position p is at index p - 1.
    events: Vec<Linked>,
    /// Indexes of each stream's events, by revision.
    streams: HashMap<StreamName, Vec<usize>>,
    ids: HashMap<EventId, usize>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { log: Mutex::default(), bell: watch::Sender::new(Position::START), bells: StreamBells::default() }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn head(&self) -> Position {
        Position(self.events.len() as u64)
    }

    fn head_of(&self, stream: &StreamName) -> Option<Revision> {
        self.streams.get(stream).map(|indexes| Revision(indexes.len() as u64 - 1))
    }

    fn stands_at(&self, stream: &StreamName, first: u64, batch: &[NewEvent]) -> Option<Appended> {
        let indexes = self.streams.get(stream)?;
        let first = usize::try_from(first).ok()?;
        let standing = indexes.get(first..first.checked_add(batch.len())?)?;
        let same = standing.iter().zip(batch).all(|(index, new)| self.events[*index].event.id == new.id);
        let last = &self.events[*standing.last()?].event;
        same.then_some(Appended { revision: last.revision, position: last.position })
    }

    fn append(
        &mut self,
        stream: &StreamName,
        expected: Expected,
        batch: Vec<NewEvent>,
    ) -> Result<Appended, StoreError> {
        let actual = self.head_of(stream);
        let fits = match expected {
            Expected::NoStream => actual.is_none(),
            Expected::Exactly(wanted) => actual == Some(wanted),
            Expected::Any => true,
        };
        let place = place_of(expected, actual);
        if !fits {
            let conflict = StoreError::WrongExpectedRevision { stream: stream.clone(), expected, actual };
            return self.stands_at(stream, place, &batch).ok_or(conflict);
        }
        if let Some((id, index)) = batch.iter().find_map(|new| Some((new.id, *self.ids.get(&new.id)?))) {
            let standing = &self.events[index].event;
            let again = match expected {
                Expected::Any if standing.stream == *stream => self.stands_at(stream, standing.revision.0, &batch),
                Expected::Any | Expected::NoStream | Expected::Exactly(_) => None,
            };
            return again.ok_or_else(|| StoreError::DuplicateEvent { stream: stream.clone(), id });
        }
        let mut global = self.events.last().map_or(Digest::GENESIS, |last| last.links.global);
        let indexes = self.streams.entry(stream.clone()).or_default();
        let mut link = indexes.last().map_or(Digest::GENESIS, |index| self.events[*index].links.stream);
        for (new, revision) in batch.into_iter().zip(place..) {
            let (_, seal, body) = chain::prepare(stream, &new);
            let links = chain::extend(link, global, body);
            (link, global) = (links.stream, links.global);
            indexes.push(self.events.len());
            self.ids.insert(new.id, self.events.len());
            let event = Envelope {
                id: new.id,
                kind: new.kind,
                schema: new.schema,
                stream: stream.clone(),
                revision: Revision(revision),
                position: Position(self.events.len() as u64 + 1),
                time: new.time,
                actor: new.actor,
                correlation: new.correlation,
                causation: new.causation,
                data: new.data.into(),
                erased: false,
            };
            self.events.push(Linked { event, links, seal, private: new.private });
        }
        Ok(Appended { revision: Revision(indexes.len() as u64 - 1), position: self.head() })
    }

    fn after(&self, after: Position, limit: usize) -> impl Iterator<Item = &Linked> {
        let skip = usize::try_from(after.0).unwrap_or(usize::MAX);
        self.events.iter().skip(skip).take(limit.min(MAX_PAGE))
    }
}

#[async_trait]
impl EventStore for MemoryStore {
    async fn append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError> {
        check_batch(stream, &events)?;
        let mut log = self.log();
        let appended = log.append(stream, expected, events)?;
        // Under the lock, so that bells ring in order.
        self.bell.send_replace(log.head());
        let revision = log.head_of(stream).unwrap_or(appended.revision);
        self.bells.ring([(stream, revision)].into_iter());
        Ok(appended)
    }

    async fn read_stream(
        &self,
        stream: &StreamName,
        from: Option<Revision>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Envelope>, StoreError> {
        let log = self.log();
        let Some(indexes) = log.streams.get(stream) else { return Ok(Vec::new()) };
        let event = |index: &usize| log.events[*index].whole();
        let from = from.map(|from| usize::try_from(from.0).unwrap_or(usize::MAX));
        let limit = limit.min(MAX_PAGE);
        Ok(match direction {
            Direction::Forwards => indexes.iter().skip(from.unwrap_or(0)).take(limit).map(event).collect(),
            Direction::Backwards => {
                let end = from.map_or(indexes.len(), |from| from.saturating_add(1).min(indexes.len()));
                indexes[..end].iter().rev().take(limit).map(event).collect()
            }
        })
    }

    async fn read_all(&self, after: Position, limit: usize) -> Result<Vec<Envelope>, StoreError> {
        Ok(self.log().after(after, limit).map(Linked::whole).collect())
    }

    async fn erase(&self, streams: &[StreamName]) -> Result<u64, StoreError> {
        let mut log = self.log();
        let mut erased = 0;
        let indexes: Vec<_> = streams.iter().filter_map(|stream| log.streams.get(stream)).flatten().copied().collect();
        for index in indexes {
            let linked = &mut log.events[index];
            erased += u64::from(linked.private.take().is_some());
            linked.event.erased = linked.seal.is_some();
        }
        Ok(erased)
    }

    async fn head(&self) -> Result<Position, StoreError> {
        Ok(self.log().head())
    }

    fn bell(&self) -> watch::Receiver<Position> {
        self.bell.subscribe()
    }

    fn stream_bell(&self, stream: &StreamName) -> watch::Receiver<Option<Revision>> {
        self.bells.listen(stream)
    }
}

#[async_trait]
impl LinkedLog for MemoryStore {
    async fn read_links(&self, after: Position, limit: usize) -> Result<Vec<Linked>, StoreError> {
        Ok(self.log().after(after, limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn it_conforms() {
        conformance::run(|| async { Arc::new(MemoryStore::new()) as Arc<dyn EventStore> }).await;
    }
}
