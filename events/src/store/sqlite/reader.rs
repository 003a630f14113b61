//! Reading the log: a few read-only connections, used on blocking threads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use tokio::sync::Semaphore;

use super::failed;
use super::shared::Run;
use crate::envelope::{Envelope, Position, Private, Revision, StreamName};
use crate::json::Json;
use crate::store::chain::{Digest, Linked, Links};
use crate::store::{Direction, Filter, MAX_PAGE_BYTES, Page, StoreError, packing, sealed};

/// Reads that run at the same time; more wait their turn. SQLite readers are bound by the processor, so a few suffice.
pub const READERS: usize = 4;
/// Rows that one filtered read looks at before it answers, so that a rare event does not occupy a reader for long.
pub const SCAN_ROWS: usize = 4_096;
/// Stream names and types that one reader remembers; it starts afresh above that.
pub const NAMES: usize = 8_192;
/// Pages that one reader caches, in KiB. The operating system caches the rest.
const CACHE_KIB: i64 = 4_096;

const COLUMNS: &str = "e.position, e.stream_id, e.revision, e.type, e.meta, e.data, e.seal";
/// The private part of an event, looked up only where there was one. Rows come in the order of their positions, or nearly, so
/// the next one is mostly beside the last.
const CONTENTS: &str = "LEFT JOIN contents c ON c.position = iif(e.seal IS NULL, NULL, e.position)";

/// The read-only connections.
pub(super) struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Reader>>>,
}

impl Readers {
    pub fn new(path: PathBuf) -> Self {
        Self { path, permits: Arc::new(Semaphore::new(READERS)), idle: Arc::default() }
    }

    /// Runs a read on a blocking thread.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Reader) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (path, idle) = (self.path.clone(), Arc::clone(&self.idle));
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let waiting = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut reader = match waiting {
                Some(reader) => reader,
                None => Reader::open(&path).map_err(|error| failed("opening a reader", &error))?,
            };
            let result = read(&mut reader).map_err(|error| failed("reading", &error));
            // A reader that failed may be in any state: the next one starts afresh.
            if result.is_ok() {
                idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
            }
            result
        });
        done.await.map_err(|error| StoreError::Failed(format!("a read was interrupted: {error}")))?
    }
}

/// One read-only connection and the names it has seen.
pub(super) struct Reader {
    conn: Connection,
    names: Names,
}

/// Stream names by id, and one shared copy of each type.
#[derive(Default)]
struct Names {
    streams: HashMap<i64, StreamName>,
    kinds: HashMap<Box<str>, Arc<str>>,
}

impl Names {
    fn kind(&mut self, kind: &str) -> Arc<str> {
        if let Some(known) = self.kinds.get(kind) {
            return Arc::clone(known);
        }
        if self.kinds.len() >= NAMES {
            self.kinds.clear();
        }
        let shared: Arc<str> = kind.into();
        self.kinds.insert(kind.into(), Arc::clone(&shared));
        shared
    }

    fn stream(&mut self, conn: &Connection, id: i64) -> rusqlite::Result<StreamName> {
        if let Some(known) = self.streams.get(&id) {
            return Ok(known.clone());
        }
        if self.streams.len() >= NAMES {
            self.streams.clear();
        }
        let name: String =
            conn.prepare_cached("SELECT name FROM streams WHERE id = ?1")?.query_row([id], |row| row.get(0))?;
        let name: StreamName = name.parse().map_err(|error| damaged(0, Box::new(error)))?;
        self.streams.insert(id, name.clone());
        Ok(name)
    }
}

/// A row that does not hold what the writer writes.
fn damaged(column: usize, error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, error)
}

/// What is read of one stream.
pub(super) struct StreamRead {
    pub stream: StreamName,
    pub from: Option<u64>,
    pub direction: Direction,
    pub limit: usize,
    /// The unindexed part of the stream, as it was before the read began.
    pub tail: Option<Run>,
}

impl Reader {
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(super::BUSY_TIMEOUT)?;
        conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
        conn.pragma_update(None, "query_only", true)?;
        Ok(Self { conn, names: Names::default() })
    }

    /// Reads the whole log after a position and up to `head`.
    pub fn all(&mut self, after: Position, head: Position, limit: usize) -> rusqlite::Result<Vec<Envelope>> {
        let everything = Filter::everything();
        Ok(self.scan(after, head, &everything, limit, limit)?.events)
    }

    /// Reads what the filter admits, looking at no more than [`SCAN_ROWS`] rows.
    pub fn matching(
        &mut self,
        after: Position,
        head: Position,
        filter: &Filter,
        limit: usize,
    ) -> rusqlite::Result<Page> {
        self.scan(after, head, filter, limit, SCAN_ROWS)
    }

    fn scan(
        &mut self,
        after: Position,
        head: Position,
        filter: &Filter,
        limit: usize,
        rows: usize,
    ) -> rusqlite::Result<Page> {
        let mut page = Page { events: Vec::with_capacity(limit), through: after };
        let mut bytes = 0;
        // A reader that passes over most events does not read their private parts.
        let everything = *filter == Filter::everything();
        let (content, from) = if everything { ("c.content", CONTENTS) } else { ("NULL", "") };
        let sql = format!(
            "SELECT {COLUMNS}, {content} FROM events e {from} WHERE e.position > ?1 AND e.position <= ?2 \
             ORDER BY e.position LIMIT ?3"
        );
        let mut content = self.conn.prepare_cached("SELECT content FROM contents WHERE position = ?1")?;
        let mut statement = self.conn.prepare_cached(&sql)?;
        let mut found = statement.query(params![after.0, head.0, rows])?;
        while let Some(row) = found.next()? {
            if page.events.len() == limit || bytes > MAX_PAGE_BYTES {
                break;
            }
            page.through = Position(row.get(0)?);
            let stream = self.names.stream(&self.conn, row.get(1)?)?;
            if !filter.admits_place(&stream, text(row, 3)?) {
                continue;
            }
            let mut event = envelope(row, stream, &mut self.names)?;
            if filter.admits_team(event.actor.team.as_deref()) {
                if !everything && event.erased {
                    let words = content.query_row([event.position.0], |row| row.get::<_, Option<String>>(0));
                    if let Some(words) = words.optional()?.flatten() {
                        event.data = sealed::joined(event.data.get(), Some(&words));
                        event.erased = false;
                    }
                }
                bytes += event.data.get().len();
                page.events.push(event);
            }
        }
        Ok(page)
    }

    /// Reads the whole log with its links.
    pub fn links(&mut self, after: Position, head: Position, limit: usize) -> rusqlite::Result<Vec<Linked>> {
        let mut page = Vec::with_capacity(limit);
        let mut bytes = 0;
        let sql = format!(
            "SELECT {COLUMNS}, NULL, e.links, c.salt, c.content FROM events e {CONTENTS} \
             WHERE e.position > ?1 AND e.position <= ?2 ORDER BY e.position LIMIT ?3"
        );
        let mut statement = self.conn.prepare_cached(&sql)?;
        let mut found = statement.query(params![after.0, head.0, limit])?;
        while let Some(row) = found.next()? {
            if bytes > MAX_PAGE_BYTES {
                break;
            }
            let stream = self.names.stream(&self.conn, row.get(1)?)?;
            let mut event = envelope(row, stream, &mut self.names)?;
            let seal: Option<[u8; 32]> = row.get(6)?;
            let salt: Option<[u8; 32]> = row.get(9)?;
            let content = row.get_ref(10)?.as_str_or_null().map_err(|error| damaged(10, Box::new(error)))?;
            let private = salt.zip(content).map(|(salt, content)| Private { salt, content: Json::stored(content) });
            event.erased = seal.is_some() && private.is_none();
            bytes += event.data.get().len() + content.map_or(0, str::len);
            page.push(Linked { event, links: links(row, 8)?, seal: seal.map(Digest), private });
        }
        Ok(page)
    }

    /// Whether the first event of a stream has a seal. Its position, where the index does not hold it yet.
    pub fn first_is_sealed(&mut self, stream: &StreamName, position: Option<u64>) -> rusqlite::Result<bool> {
        let indexed = "SELECT position FROM stream_index \
                       WHERE stream_id = (SELECT id FROM streams WHERE name = ?1) AND revision = 0";
        let position = match position {
            Some(position) => Some(position),
            None => self.conn.prepare_cached(indexed)?.query_row([stream.as_str()], |row| row.get(0)).optional()?,
        };
        let Some(position) = position else { return Ok(true) };
        self.conn
            .prepare_cached("SELECT seal IS NOT NULL FROM events WHERE position = ?1")?
            .query_row([position], |row| row.get(0))
    }

    /// Names of streams between these two.
    pub fn names(&mut self, after: &str, end: &str, limit: usize) -> rusqlite::Result<Vec<StreamName>> {
        let mut statement = self
            .conn
            .prepare_cached("SELECT name FROM streams WHERE name > ?1 AND name < ?2 ORDER BY name LIMIT ?3")?;
        let names = statement.query_map(params![after, end, limit], |row| row.get::<_, String>(0))?;
        names.map(|name| name?.parse().map_err(|error| damaged(0, Box::new(error)))).collect()
    }

    /// Reads one stream: the indexed part by the index, the rest by the positions that the writer handed out.
    pub fn stream(&mut self, read: &StreamRead) -> rusqlite::Result<Vec<Envelope>> {
        let mut page = StreamPage { events: Vec::with_capacity(read.limit), bytes: 0, limit: read.limit };
        // Everything below this revision is indexed, everything from it on is in the tail.
        let border = read.tail.as_ref().map_or(u64::MAX, |tail| tail.first);
        let id = match &read.tail {
            Some(tail) => Some(tail.stream_id),
            None => self
                .conn
                .prepare_cached("SELECT id FROM streams WHERE name = ?1")?
                .query_row([read.stream.as_str()], |row| row.get(0))
                .optional()?,
        };
        let Some(id) = id else { return Ok(page.events) };
        match read.direction {
            Direction::Forwards => {
                let from = read.from.unwrap_or(0);
                if from < border {
                    self.indexed(id, from, border, "ASC", read, &mut page)?;
                }
                if let Some(tail) = &read.tail {
                    let skip = usize::try_from(from.saturating_sub(tail.first)).unwrap_or(usize::MAX);
                    self.at(tail.positions.iter().skip(skip), read, &mut page)?;
                }
            }
            Direction::Backwards => {
                let from = read.from.unwrap_or(u64::MAX);
                if let Some(tail) = read.tail.as_ref().filter(|tail| from >= tail.first) {
                    let take = usize::try_from(from - tail.first).unwrap_or(usize::MAX).saturating_add(1);
                    let take = take.min(tail.positions.len());
                    self.at(tail.positions[..take].iter().rev(), read, &mut page)?;
                }
                let end = from.saturating_add(1).min(border);
                self.indexed(id, 0, end, "DESC", read, &mut page)?;
            }
        }
        Ok(page.events)
    }

    fn indexed(
        &mut self,
        id: i64,
        from: u64,
        end: u64,
        order: &str,
        read: &StreamRead,
        page: &mut StreamPage,
    ) -> rusqlite::Result<()> {
        if page.is_full() {
            return Ok(());
        }
        let sql = format!(
            "SELECT {COLUMNS}, c.content FROM stream_index i CROSS JOIN events e ON e.position = i.position {CONTENTS} \
             WHERE i.stream_id = ?1 AND i.revision >= ?2 AND i.revision < ?3 ORDER BY i.revision {order} LIMIT ?4"
        );
        let mut statement = self.conn.prepare_cached(&sql)?;
        let end = i64::try_from(end).unwrap_or(i64::MAX);
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![id, from, end, page.limit - page.events.len()])?;
        while !page.is_full()
            && let Some(row) = rows.next()?
        {
            page.push(envelope(row, read.stream.clone(), &mut self.names)?);
        }
        Ok(())
    }

    fn at<'a>(
        &mut self,
        positions: impl Iterator<Item = &'a u64>,
        read: &StreamRead,
        page: &mut StreamPage,
    ) -> rusqlite::Result<()> {
        let sql = format!("SELECT {COLUMNS}, c.content FROM events e {CONTENTS} WHERE e.position = ?1");
        let mut statement = self.conn.prepare_cached(&sql)?;
        for position in positions {
            if page.is_full() {
                break;
            }
            let event = statement.query_row([position], |row| envelope(row, read.stream.clone(), &mut self.names))?;
            page.push(event);
        }
        Ok(())
    }
}

struct StreamPage {
    events: Vec<Envelope>,
    bytes: usize,
    limit: usize,
}

impl StreamPage {
    fn is_full(&self) -> bool {
        self.events.len() >= self.limit || self.bytes > MAX_PAGE_BYTES
    }

    fn push(&mut self, event: Envelope) {
        self.bytes += event.data.get().len();
        self.events.push(event);
    }
}

fn text<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<&'a str> {
    row.get_ref(column)?.as_str().map_err(|error| damaged(column, Box::new(error)))
}

/// An event from the columns of [`COLUMNS`] and, behind them, its private part.
fn envelope(row: &Row<'_>, stream: StreamName, names: &mut Names) -> rusqlite::Result<Envelope> {
    let packed = row.get_ref(4)?.as_blob().map_err(|error| damaged(4, Box::new(error)))?;
    let content = row.get_ref(7)?.as_str_or_null().map_err(|error| damaged(7, Box::new(error)))?;
    let sealed = row.get_ref(6)? != ValueRef::Null;
    let meta = packing::unpack(&stream, packed).ok_or_else(|| damaged(4, "metadata that does not unpack".into()))?;
    Ok(Envelope {
        id: meta.id,
        kind: names.kind(text(row, 3)?),
        schema: meta.schema,
        stream,
        revision: Revision(row.get(2)?),
        position: Position(row.get(0)?),
        time: meta.time,
        actor: meta.actor,
        correlation: meta.correlation,
        causation: meta.causation,
        data: sealed::joined(text(row, 5)?, content),
        erased: sealed && content.is_none(),
    })
}

/// The two links in a column.
pub(super) fn links(row: &Row<'_>, column: usize) -> rusqlite::Result<Links> {
    let both = row.get_ref(column)?.as_blob().map_err(|error| damaged(column, Box::new(error)))?;
    links_of(both).ok_or_else(|| damaged(column, "links that are not 64 bytes".into()))
}

/// The two links in these bytes.
pub(super) fn links_of(both: &[u8]) -> Option<Links> {
    let (stream, global): (&[u8; 32], &[u8]) = both.split_first_chunk()?;
    Some(Links { stream: Digest(*stream), global: Digest(global.try_into().ok()?) })
}
