//! What the writer publishes and readers look at without touching the disk: the head, the newest events, and where
//! the events stand that the index does not hold yet.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::envelope::{Envelope, Position, StreamName};
use crate::store::bells::StreamBells;

/// Most recent events kept in memory: live readers are nearly always within the last few seconds of the log.
pub const RING_EVENTS: usize = 4_096;
/// Most bytes of `data` kept in memory with them.
pub const RING_BYTES: usize = 8 * 1024 * 1024;

/// State that the writer thread and all readers share.
#[derive(Debug)]
pub(super) struct Shared {
    live: RwLock<Live>,
    /// Bells of single streams.
    pub bells: StreamBells,
    /// Bytes of `data` waiting in the queue to the writer.
    pub queued_bytes: AtomicUsize,
}

/// The published end of the log.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The last committed position; nothing above it is ever shown.
    pub head: Position,
    ring: VecDeque<Arc<Envelope>>,
    ring_bytes: usize,
    /// The events above the index mark, by stream.
    pub tail: HashMap<StreamName, Run>,
}

/// The unindexed events of one stream: revisions from `first` on, each at the position in the same place.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub stream_id: i64,
    pub first: u64,
    pub positions: Vec<u64>,
}

impl Run {
    /// The revision after the last.
    pub fn end(&self) -> u64 {
        self.first + self.positions.len() as u64
    }
}

impl Shared {
    pub fn new(live: Live) -> Self {
        Self { live: RwLock::new(live), bells: StreamBells::default(), queued_bytes: AtomicUsize::new(0) }
    }

    pub fn live(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn live_mut(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Notes where an unindexed event stands. Events of one stream come in order.
    pub fn note(&mut self, stream: &StreamName, stream_id: i64, revision: u64, position: u64) {
        match self.tail.get_mut(stream) {
            Some(run) => run.positions.push(position),
            None => {
                let run = Run { stream_id, first: revision, positions: vec![position] };
                self.tail.insert(stream.clone(), run);
            }
        }
    }

    /// Adds the newest event, and moves those there is no room for any more to `evicted`.
    pub fn push(&mut self, event: Arc<Envelope>, evicted: &mut Vec<Arc<Envelope>>) {
        self.ring_bytes += event.data.get().len();
        self.ring.push_back(event);
        while self.ring.len() > RING_EVENTS || self.ring_bytes > RING_BYTES {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= oldest.data.get().len();
            evicted.push(oldest);
        }
    }

    /// The event at a position, if it is among the newest.
    pub fn at(&self, position: u64) -> Option<&Arc<Envelope>> {
        let first = self.ring.front()?.position.0;
        self.ring.get(usize::try_from(position.checked_sub(first)?).ok()?)
    }

    /// Puts an event in the place of the one at its position, if that is among the newest.
    pub fn replace(&mut self, position: Position, event: Arc<Envelope>) {
        let Some(first) = self.ring.front().map(|event| event.position.0) else { return };
        let place = position.0.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        if let Some(old) = place.and_then(|place| self.ring.get_mut(place)) {
            self.ring_bytes = self.ring_bytes - old.data.get().len() + event.data.get().len();
            *old = event;
        }
    }

    /// All events after a position, if they are all in memory.
    pub fn after(&self, after: Position) -> Option<impl Iterator<Item = &Arc<Envelope>>> {
        if after >= self.head {
            return Some(self.ring.range(self.ring.len()..));
        }
        let skip = (after.0 + 1).checked_sub(self.ring.front()?.position.0)?;
        Some(self.ring.range(usize::try_from(skip).ok()?..))
    }
}
