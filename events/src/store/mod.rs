//! The event store: append with an expected revision, read, and be told when there is more.
//!
//! Two stores implement [`EventStore`]: [`sqlite::SqliteStore`], the embedded default, and
//! [`memory::MemoryStore`] for tests. Both pass the suite in [`conformance`].

pub mod conformance;
pub mod memory;
pub mod sqlite;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::envelope::{Envelope, NewEvent, Position, Revision, StreamName};

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
/// Largest `data` of one event, in bytes; what is larger belongs into the blob store.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// Most events one read returns; ask again from the last one.
pub const MAX_PAGE: usize = 1_000;

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
    /// No events, or more than [`MAX_BATCH`], or one larger than [`MAX_EVENT_BYTES`].
    #[error("an append carries 1 to {MAX_BATCH} events of at most {MAX_EVENT_BYTES} bytes each")]
    BadBatch,
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
    /// lost the answer can repeat itself).
    async fn append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError>;

    /// Reads up to `limit` (at most [`MAX_PAGE`]) events of one stream. Forwards starts at `from` inclusive
    /// (`None`: the first), backwards starts at `from` inclusive (`None`: the last). A stream that does not exist is empty.
    async fn read_stream(
        &self,
        stream: &StreamName,
        from: Option<Revision>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Envelope>, StoreError>;

    /// Reads up to `limit` (at most [`MAX_PAGE`]) events of the whole log after `after`, oldest first.
    async fn read_all(&self, after: Position, limit: usize) -> Result<Vec<Envelope>, StoreError>;

    /// The position of the last event, or [`Position::START`].
    async fn head(&self) -> Result<Position, StoreError>;

    /// Rings whenever the whole log has grown; holds the position of its last event.
    fn bell(&self) -> watch::Receiver<Position>;

    /// Rings whenever this stream has grown; holds its last revision where one is known.
    fn stream_bell(&self, stream: &StreamName) -> watch::Receiver<Option<Revision>>;
}

/// Reads a whole stream, page by page.
pub async fn read_whole_stream(store: &dyn EventStore, stream: &StreamName) -> Result<Vec<Envelope>, StoreError> {
    let mut events = Vec::new();
    let mut from = None;
    loop {
        let page = store.read_stream(stream, from, Direction::Forwards, MAX_PAGE).await?;
        let full = page.len() == MAX_PAGE;
        from = page.last().map(|last| Revision(last.revision.0 + 1));
        events.extend(page);
        if !full {
            return Ok(events);
        }
    }
}
