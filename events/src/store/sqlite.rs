//! The embedded store: one SQLite file, one thread that writes, a few connections that read.
//!
//! Appends from everywhere queue up for the writer, which commits them in groups: whatever waits when it is ready
//! goes to the disk together. An append is acknowledged only after that trip (`synchronous = FULL`). Because one
//! thread gives out positions inside the commit, no reader ever sees a gap.
//!
//! ```text
//! append ──hash──▶ queue (QUEUE) ──▶ writer ──commit──▶ events.db ◀── readers (READERS)
//!                                      │ publishes: head, newest events, unindexed places; rings bells
//!                                      └─▶ checkpointer (side thread)
//! ```

mod checkpoint;
mod erase;
pub mod offline;
mod reader;
mod shared;
mod state;
mod writer;

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};
use tokio::sync::{mpsc, oneshot, watch};

use self::checkpoint::Checkpointer;
use self::reader::{Readers, StreamRead};
use self::shared::Shared;
use self::state::State;
use self::writer::{Job, Prepared, Request, Writer};
use super::{
    Appended, Direction, EventStore, Expected, Filter, Linked, LinkedLog, MAX_PAGE, Page, StoreError, chain,
    check_batch, sealed,
};
use crate::envelope::{Envelope, NewEvent, Position, Revision, StreamName};

pub use self::checkpoint::{CHECKPOINT_EVERY, WAL_BOUND, WAL_LIMIT};
pub use self::erase::ERASE_BATCH;
pub use self::reader::{READERS, SCAN_ROWS};
pub use self::shared::{RING_BYTES, RING_EVENTS};
pub use self::state::{HEADS, RECENT_IDS};
pub use self::writer::{GROUP_BYTES, GROUP_EVENTS, INDEX_EVERY};

/// Appends that may wait for the writer; more are refused as [`StoreError::Overloaded`].
pub const QUEUE: usize = 4_096;
/// Bytes of `data` that may wait with them.
pub const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// A batch with more `data` than this is hashed on a blocking thread instead of in the caller's task.
pub const HASH_INLINE: usize = 256 * 1024;

/// The database's page size: large enough that a commit of one event is one page, and few pages are half empty.
const PAGE_BYTES: usize = 8 * 1024;
/// Pages that the writer caches, in KiB.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
/// How long a connection waits for another one's lock (readers and the checkpoint share the write-ahead log).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the lock of a server that has died is looked at before it counts as taken.
const LOCK_LOOKS: u32 = 500;
/// The wait between two of those looks.
const LOCK_LOOK: Duration = Duration::from_millis(10);

const EVENT_LOG: &str = include_str!("../../../migrations/0001_event_log.sql");
const CONTENTS: &str = include_str!("../../../migrations/0002_contents.sql");

/// The embedded event store.
pub struct SqliteStore {
    /// `None` once the store is being dropped.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    readers: Readers,
    shared: Arc<Shared>,
    bell: watch::Receiver<Position>,
    /// Unlocked last, after the writer has ended.
    _lock: File,
}

impl SqliteStore {
    /// Opens the log in this file, creating it if it is missing. Refuses a file that another store has open.
    ///
    /// Blocks while it reads the end of the log (some milliseconds; longer after a crash).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let lock = lock(path)?;
        let mut conn = open_writer(path)?;
        Migrations::new(vec![M::up(EVENT_LOG), M::up(CONTENTS)])
            .to_latest(&mut conn)
            .map_err(|error| StoreError::Failed(format!("preparing {}: {error}", path.display())))?;
        let (state, live) = State::load(&conn).map_err(|error| failed("reading the end of the log", &error))?;
        let (bell, listener) = watch::channel(live.head);
        let shared = Arc::new(Shared::new(live));
        let checkpointer = Checkpointer::start(path)?;
        let writer =
            Writer { conn, state, shared: Arc::clone(&shared), bell, checkpointer, stale: false, evicted: Vec::new() };
        let (requests, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("event-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|error| StoreError::Failed(format!("starting a thread: {error}")))?;
        Ok(Self {
            requests: Some(requests),
            writer: Some(thread),
            readers: Readers::new(path.to_owned()),
            shared,
            bell: listener,
            _lock: lock,
        })
    }

    async fn prepare(stream: StreamName, events: Vec<NewEvent>, bytes: usize) -> Result<Vec<Prepared>, StoreError> {
        let prepare = move || {
            let prepared = events.into_iter().map(|event| {
                let (meta, seal, body) = chain::prepare(&stream, &event);
                Prepared { event, meta, seal, body }
            });
            prepared.collect()
        };
        if bytes <= HASH_INLINE {
            return Ok(prepare());
        }
        tokio::task::spawn_blocking(prepare).await.map_err(|error| StoreError::Failed(error.to_string()))
    }

    fn send(&self, request: Request) -> Result<(), StoreError> {
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })
    }

    /// The answer to a read of a stream, if memory holds all of it.
    fn stream_in_memory(&self, read: &mut StreamRead) -> Option<Vec<Envelope>> {
        let live = self.shared.live();
        let run = live.tail.get(&read.stream)?;
        let (start, end) = match read.direction {
            Direction::Forwards => {
                let from = read.from.unwrap_or(0);
                (from, run.end().min(from.saturating_add(read.limit as u64)))
            }
            Direction::Backwards => {
                let end = read.from.map_or(run.end(), |from| from.saturating_add(1).min(run.end()));
                (end.saturating_sub(read.limit as u64), end)
            }
        };
        let found = if start >= run.end() {
            Some(Vec::new())
        } else if start >= run.first && start < end {
            let (skip, count) = (usize::try_from(start - run.first).ok()?, usize::try_from(end - start).ok()?);
            run.positions[skip..][..count].iter().map(|position| live.at(*position).cloned()).collect()
        } else {
            None
        };
        if found.is_none() {
            read.tail = Some(run.clone());
        }
        drop(live);
        let mut events: Vec<_> = found?.iter().map(|event| Envelope::clone(event)).collect();
        if read.direction == Direction::Backwards {
            events.reverse();
        }
        Some(events)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The writer commits what waits, checkpoints and ends.
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the event store's writer had panicked");
        }
    }
}

#[async_trait]
impl EventStore for SqliteStore {
    async fn append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError> {
        check_batch(stream, &events)?;
        let bytes = events.iter().map(sealed::data_bytes).sum();
        let events = Self::prepare(stream.clone(), events, bytes).await?;
        let queued = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let job = Job { stream: stream.clone(), expected, events, bytes, reply };
        let sent =
            if queued + bytes > QUEUE_BYTES { Err(StoreError::Overloaded) } else { self.send(Request::Append(job)) };
        if let Err(refused) = sent {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(refused);
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn read_stream(
        &self,
        stream: &StreamName,
        from: Option<Revision>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Envelope>, StoreError> {
        let limit = limit.min(MAX_PAGE);
        let mut read =
            StreamRead { stream: stream.clone(), from: from.map(|from| from.0), direction, limit, tail: None };
        if limit == 0 {
            return Ok(Vec::new());
        }
        if let Some(events) = self.stream_in_memory(&mut read) {
            return Ok(events);
        }
        self.readers.read(move |reader| reader.stream(&read)).await
    }

    async fn read_all(&self, after: Position, limit: usize) -> Result<Vec<Envelope>, StoreError> {
        let limit = limit.min(MAX_PAGE);
        let (head, newest): (_, Option<Vec<_>>) = {
            let live = self.shared.live();
            (live.head, live.after(after).map(|events| events.take(limit).cloned().collect()))
        };
        match newest {
            Some(events) => Ok(events.iter().map(|event| Envelope::clone(event)).collect()),
            None => self.readers.read(move |reader| reader.all(after, head, limit)).await,
        }
    }

    async fn read_matching(&self, after: Position, filter: &Filter, limit: usize) -> Result<Page, StoreError> {
        let limit = limit.min(MAX_PAGE);
        let head = {
            let live = self.shared.live();
            if let Some(events) = live.after(after) {
                let mut page = Page { events: Vec::new(), through: after };
                for event in events {
                    if page.events.len() == limit {
                        break;
                    }
                    page.through = event.position;
                    if filter.admits(event) {
                        page.events.push(Envelope::clone(event));
                    }
                }
                return Ok(page);
            }
            live.head
        };
        let filter = filter.clone();
        self.readers.read(move |reader| reader.matching(after, head, &filter, limit)).await
    }

    async fn streams(
        &self,
        category: &str,
        after: Option<&StreamName>,
        limit: usize,
    ) -> Result<Vec<StreamName>, StoreError> {
        let limit = limit.min(MAX_PAGE);
        // The dot is what comes after the dash.
        let (first, end) = (format!("{category}-"), format!("{category}."));
        let after = after.map_or(first, |after| after.as_str().to_owned());
        self.readers.read(move |reader| reader.names(&after, &end, limit)).await
    }

    async fn keeps_apart(&self, stream: &StreamName) -> Result<bool, StoreError> {
        let stream = stream.clone();
        let first = {
            let live = self.shared.live();
            live.tail.get(&stream).filter(|run| run.first == 0).and_then(|run| run.positions.first().copied())
        };
        self.readers.read(move |reader| reader.first_is_sealed(&stream, first)).await
    }

    async fn erase(&self, streams: &[StreamName]) -> Result<u64, StoreError> {
        self.erase_all(streams).await
    }

    async fn head(&self) -> Result<Position, StoreError> {
        Ok(self.shared.live().head)
    }

    fn bell(&self) -> watch::Receiver<Position> {
        self.bell.clone()
    }

    fn stream_bell(&self, stream: &StreamName) -> watch::Receiver<Option<Revision>> {
        self.shared.bells.listen(stream)
    }
}

#[async_trait]
impl LinkedLog for SqliteStore {
    async fn read_links(&self, after: Position, limit: usize) -> Result<Vec<Linked>, StoreError> {
        let limit = limit.min(MAX_PAGE);
        let head = self.shared.live().head;
        self.readers.read(move |reader| reader.links(after.min(head), head, limit)).await
    }
}

/// Takes the lock file beside the database: two servers on one log would each believe in their own heads.
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let cannot = |error: std::io::Error| {
        StoreError::Failed(format!(
            "cannot lock {}: {error}; is its folder there, and may this user write to it?",
            lock_path.display()
        ))
    };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path).map_err(cannot)?;
    for look in 0.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.rewind().and_then(|()| (&file).take(32).read_to_string(&mut holder));
                let holder = holder.trim();
                // A program that it was just about to start can outlive a server that is killed, by as long as that takes.
                let is_dead = !holder.is_empty() && !Path::new("/proc").join(holder).exists();
                if is_dead && look < LOCK_LOOKS {
                    wait_for_the_dead();
                    continue;
                }
                let holder = if holder.is_empty() { "unknown" } else { holder };
                return Err(StoreError::Failed(format!(
                    "{} is in use by another server (process {holder}); stop that one first, or choose another data folder",
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
    }
    // Only for the message above: the lock itself is the kernel's and goes with the process.
    file.set_len(0).and_then(|()| file.rewind()).map_err(cannot)?;
    writeln!(file, "{}", std::process::id()).map_err(cannot)?;
    Ok(file)
}

#[expect(clippy::disallowed_methods, reason = "nothing tells when another process ends, and nothing runs here yet")]
fn wait_for_the_dead() {
    std::thread::sleep(LOCK_LOOK);
}

/// A connection that may write.
fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let conn = Connection::open(path)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        conn.pragma_update(None, "page_size", PAGE_BYTES)?;
        conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update(None, "wal_autocheckpoint", 0)?;
        // What is erased is overwritten.
        conn.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
        conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
        conn.set_prepared_statement_cache_capacity(32);
        Ok(conn)
    };
    open().map_err(|error: rusqlite::Error| StoreError::Failed(format!("opening {}: {error}", path.display())))
}

fn failed(doing: &str, error: &rusqlite::Error) -> StoreError {
    StoreError::Failed(format!("{doing}: {error}"))
}
