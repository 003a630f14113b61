//! The event store: append with an expected revision, read, and be told when there is more.
//!
//! Two stores implement [`EventStore`]: [`sqlite::SqliteStore`], the embedded default, and
//! [`memory::MemoryStore`] for tests. Both pass the suite in `conformance`, which other stores can run with the
//! feature of that name.

pub(crate) mod bells;
pub mod chain;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod filter;
pub mod memory;
pub mod packing;
pub mod sealed;
pub mod sqlite;
pub mod wrapped;

use std::collections::{BTreeSet, HashSet};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::envelope::{Envelope, NewEvent, Position, Revision, StreamName};
use crate::id::EventId;

pub use chain::{Linked, Links, Seal};
pub use filter::{Filter, Page};

/// What the writer believes about the stream it appends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It does not exist yet.
    NoStream,
    /// Its last event has this revision.
    Exactly(Revision),
    /// Whatever it is now. Only for streams without a decision behind them.
    Any,
}

/// Where an append landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The revision of the last event of the batch.
    pub revision: Revision,
    /// The position of the last event of the batch.
    pub position: Position,
}

/// In which order a stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    Forwards,
    /// Newest first.
    Backwards,
}

/// Most events one append may carry.
pub const MAX_BATCH: usize = 1_000;
/// Largest `data` of one event, in bytes, its private part included; what is larger belongs into the blob store.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// Most bytes of `data` one append may carry, so that a full queue to the writer stays small.
pub const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Most events one read returns; ask again from the last one.
pub const MAX_PAGE: usize = 1_000;
/// A page ends early once its `data` has grown past this many bytes, so that a thousand large events do not become
/// a gigabyte in memory.
pub const MAX_PAGE_BYTES: usize = 32 * 1024 * 1024;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another writer was first. Nothing was written.
    #[error("{stream} is at revision {actual:?}, not at {expected:?}: another writer was first")]
    WrongExpectedRevision {
        /// The stream.
        stream: StreamName,
        /// What the writer expected.
        expected: Expected,
        /// The revision of its last event, if it exists.
        actual: Option<Revision>,
    },
    /// No events, or more than [`MAX_BATCH`], or one larger than [`MAX_EVENT_BYTES`], or all of them larger than
    /// [`MAX_BATCH_BYTES`], or one whose private part does not fit its public one.
    #[error(
        "an append carries 1 to {MAX_BATCH} events of at most {MAX_EVENT_BYTES} bytes each and \
         {MAX_BATCH_BYTES} bytes together, private parts laid out after their placeholders"
    )]
    BadBatch,
    /// An event with this id already stands elsewhere, or twice in the batch. Nothing was written.
    #[error(
        "the event {id} is already in the log at another place than the end of {stream}; give a new event a new id"
    )]
    DuplicateEvent {
        /// The stream of the append.
        stream: StreamName,
        /// The id that was used again.
        id: EventId,
    },
    /// The queue to the writer is full: the disk does not keep up.
    #[error("the event store is overloaded; try again")]
    Overloaded,
    /// The store was closed, or its writer died.
    #[error("the event store is closed")]
    Closed,
    /// The disk or the database said no.
    #[error("the event store failed: {0}")]
    Failed(String),
}

/// An append-only log of streams.
///
/// Positions rise with every event and no reader ever sees a position before all lower ones are visible to it.
#[async_trait]
pub trait EventStore: Send + Sync + 'static {
    /// Appends a batch to one stream, all or nothing, durable when it returns.
    ///
    /// Appending a batch whose event ids already stand at that place returns where they stand (so a writer that
    /// lost the answer can repeat itself). With [`Expected::NoStream`] and [`Expected::Exactly`] that holds for ever;
    /// with [`Expected::Any`], and for an id that stands elsewhere ([`StoreError::DuplicateEvent`]), a store needs to
    /// remember only its most recent events.
    async fn append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError>;

    /// Reads up to `limit` (at most [`MAX_PAGE`]) events of one stream. Forwards starts at `from` inclusive
    /// (`None`: the first), backwards starts at `from` inclusive (`None`: the last). A stream that does not exist is empty.
    ///
    /// A page of large events ends early (see [`MAX_PAGE_BYTES`]): only an empty page means that there is no more.
    async fn read_stream(
        &self,
        stream: &StreamName,
        from: Option<Revision>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Envelope>, StoreError>;

    /// Reads up to `limit` (at most [`MAX_PAGE`]) events of the whole log after `after`, oldest first. Only an empty
    /// page means that there is no more.
    async fn read_all(&self, after: Position, limit: usize) -> Result<Vec<Envelope>, StoreError>;

    /// Reads up to `limit` events that the filter admits, and says how far it has looked. There is no more once
    /// [`Page::through`] is where it began.
    async fn read_matching(&self, after: Position, filter: &Filter, limit: usize) -> Result<Page, StoreError> {
        let mut page = Page { events: Vec::new(), through: after };
        for event in self.read_all(after, MAX_PAGE).await? {
            if page.events.len() == limit.min(MAX_PAGE) {
                break;
            }
            page.through = event.position;
            if filter.admits(&event) {
                page.events.push(event);
            }
        }
        Ok(page)
    }

    /// Up to `limit` (at most [`MAX_PAGE`]) streams of a category after this one, in the order of their names. For
    /// categories with few streams: a store without an index of names reads the whole log.
    async fn streams(
        &self,
        category: &str,
        after: Option<&StreamName>,
        limit: usize,
    ) -> Result<Vec<StreamName>, StoreError> {
        let (filter, mut names, mut through) = (Filter::category(category), BTreeSet::new(), Position::START);
        loop {
            let page = self.read_matching(through, &filter, MAX_PAGE).await?;
            if page.through <= through {
                break;
            }
            through = page.through;
            names.extend(page.events.into_iter().map(|event| event.stream));
        }
        Ok(names.into_iter().filter(|name| after.is_none_or(|after| name > after)).take(limit.min(MAX_PAGE)).collect())
    }

    /// Whether a stream's words lie beside its events, so that they can be erased. Not so where it begins before there
    /// were private parts.
    async fn keeps_apart(&self, _stream: &StreamName) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Deletes the private parts of these streams' events, as many as there are, for good: when it returns, no file of
    /// the store holds them. The events, their public parts and their links stay as they are. Gives the number of events
    /// that had one; a repeat finds none and is harmless, and finishes what an interrupted one has left.
    async fn erase(&self, streams: &[StreamName]) -> Result<u64, StoreError>;

    /// The position of the last event, or [`Position::START`].
    async fn head(&self) -> Result<Position, StoreError>;

    /// Rings whenever the whole log has grown; holds the position of its last event.
    fn bell(&self) -> watch::Receiver<Position>;

    /// Rings whenever this stream has grown; holds its last revision where one is known.
    fn stream_bell(&self, stream: &StreamName) -> watch::Receiver<Option<Revision>>;
}

/// A store that keeps a hash chain over its log.
#[async_trait]
pub trait LinkedLog: EventStore {
    /// Reads like [`EventStore::read_all`], each event with its links.
    async fn read_links(&self, after: Position, limit: usize) -> Result<Vec<Linked>, StoreError>;
}

/// Checks what every store asks of a batch.
pub(crate) fn check_batch(stream: &StreamName, events: &[NewEvent]) -> Result<(), StoreError> {
    if events.is_empty() || events.len() > MAX_BATCH {
        return Err(StoreError::BadBatch);
    }
    let mut bytes = 0;
    for event in events {
        let length = sealed::data_bytes(event);
        bytes += length;
        if length > MAX_EVENT_BYTES || !sealed::is_laid_out(event) {
            return Err(StoreError::BadBatch);
        }
    }
    if bytes > MAX_BATCH_BYTES {
        return Err(StoreError::BadBatch);
    }
    if events.len() > 1 {
        let mut seen = HashSet::with_capacity(events.len());
        if let Some(twice) = events.iter().find(|event| !seen.insert(event.id)) {
            return Err(StoreError::DuplicateEvent { stream: stream.clone(), id: twice.id });
        }
    }
    Ok(())
}

/// Where a batch of `count` events would stand if the stream is as expected, counted as its first revision.
pub(crate) fn place_of(expected: Expected, head: Option<Revision>) -> u64 {
    match expected {
        Expected::NoStream => 0,
        Expected::Exactly(revision) => revision.0.saturating_add(1),
        Expected::Any => head.map_or(0, |revision| revision.0 + 1),
    }
}

/// Events that a fold reads at a time: few enough that they are still in the processor's cache when they are folded.
pub const FOLD_PAGE: usize = 256;

/// Reads a whole stream, page by page.
pub async fn read_whole_stream(store: &dyn EventStore, stream: &StreamName) -> Result<Vec<Envelope>, StoreError> {
    let mut events = Vec::new();
    fold_stream(store, stream, Revision(0), |event| {
        events.push(event);
        Ok::<_, StoreError>(())
    })
    .await?;
    Ok(events)
}

/// Hands every event of a stream from a revision on to `each`, until the end of the stream or the first error. The
/// next page is read while `each` works on this one, so replaying costs the longer of the two and not their sum.
pub async fn fold_stream<E: From<StoreError>>(
    store: &dyn EventStore,
    stream: &StreamName,
    from: Revision,
    each: impl FnMut(Envelope) -> Result<(), E>,
) -> Result<(), E> {
    // A plain closure over boxed futures: what an async closure returns cannot be seen to be `Send`.
    let read = |from| store.read_stream(stream, Some(from), Direction::Forwards, FOLD_PAGE);
    fold(read, from, |event| Revision(event.revision.0 + 1), each).await
}

/// Hands every event of the whole log after a position to `each`, like [`fold_stream`].
pub async fn fold_log<E: From<StoreError>>(
    store: &dyn EventStore,
    after: Position,
    each: impl FnMut(Envelope) -> Result<(), E>,
) -> Result<(), E> {
    fold(|after| store.read_all(after, FOLD_PAGE), after, |event| event.position, each).await
}

async fn fold<'a, C: Copy, E: From<StoreError>>(
    read: impl Fn(C) -> BoxFuture<'a, Result<Vec<Envelope>, StoreError>>,
    from: C,
    next: impl Fn(&Envelope) -> C,
    mut each: impl FnMut(Envelope) -> Result<(), E>,
) -> Result<(), E> {
    let mut page = read(from).await?;
    while let Some(last) = page.last() {
        // Polled in this order: the read is on its way before the work on this page begins.
        let from = next(last);
        let work = async { page.into_iter().try_for_each(&mut each) };
        let (following, worked) = futures_util::future::join(read(from), work).await;
        worked?;
        page = following?;
    }
    Ok(())
}
