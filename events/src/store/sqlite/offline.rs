//! A look at a log's file beside whoever has it open: rows as they lie there, damaged ones included.
//!
//! The store itself stops at a row that does not unpack. Whoever verifies a log wants to say which one that is.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::{failed, reader};
use crate::envelope::{Envelope, Position, Private, Revision, StreamName};
use crate::json::Json;
use crate::store::chain::{Digest, Linked, Links, Seal};
use crate::store::{MAX_PAGE_BYTES, StoreError, packing};

/// How long a look waits for the writer's lock.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Stream names that a look remembers; it starts afresh above that.
const NAMES: usize = 65_536;

/// A row as it lies in the file.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its place in the log.
    pub position: u64,
    /// Its place in its stream.
    pub revision: u64,
    /// Its stream; `None` if there is no such stream, or its name is none.
    pub stream: Option<StreamName>,
    /// Its type.
    pub kind: String,
    /// Its packed metadata.
    pub meta: Vec<u8>,
    /// The bytes of its two links.
    pub links: Vec<u8>,
    /// Its data, without the words that may be forgotten.
    pub data: String,
    /// The bytes of its seal, if it has one.
    pub seal: Option<Vec<u8>>,
    /// The bytes of its salt and its words, unless they were erased.
    pub words: Option<(Vec<u8>, String)>,
}

impl Row {
    /// The event in it. `None`: it does not read.
    pub fn linked(&self) -> Option<Linked> {
        let stream = self.stream.clone()?;
        let meta = packing::unpack(&stream, &self.meta)?;
        let event = Envelope {
            id: meta.id,
            kind: Arc::from(&*self.kind),
            schema: meta.schema,
            stream,
            revision: Revision(self.revision),
            position: Position(self.position),
            time: meta.time,
            actor: meta.actor,
            correlation: meta.correlation,
            causation: meta.causation,
            data: Json::stored(&*self.data),
            erased: self.seal.is_some() && self.words.is_none(),
        };
        Some(Linked { event, links: self.links()?, seal: self.seal(), private: self.private() })
    }

    /// Its seal. What is no seal is one that nothing fits.
    pub fn seal(&self) -> Option<Seal> {
        self.seal.as_ref().map(|seal| Digest(seal.as_slice().try_into().unwrap_or([0; 32])))
    }

    /// Its words. A salt of another length is one that fits no seal.
    pub fn private(&self) -> Option<Private> {
        let (salt, content) = self.words.as_ref()?;
        let salt = salt.as_slice().try_into().unwrap_or([0; 32]);
        Some(Private { salt, content: Json::stored(&**content) })
    }

    /// Its links. `None`: there are not 64 bytes.
    pub fn links(&self) -> Option<Links> {
        reader::links_of(&self.links)
    }
}

/// An open file.
pub struct Snapshot {
    connection: Connection,
    names: HashMap<i64, Option<StreamName>>,
}

impl Snapshot {
    /// Opens the log in this file, which must be there. Nothing is written to it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = || {
            // Not read-only: whoever reads a log that nobody else has open makes the file for its shared memory.
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(LOOK_TIMEOUT)?;
            connection.pragma_update(None, "query_only", true)?;
            Ok(connection)
        };
        let connection = open()
            .map_err(|error: rusqlite::Error| StoreError::Failed(format!("opening {}: {error}", path.display())))?;
        Ok(Self { connection, names: HashMap::new() })
    }

    /// The position of the last event, or [`Position::START`].
    pub fn head(&self) -> Result<Position, StoreError> {
        self.connection
            .query_row("SELECT COALESCE(MAX(position), 0) FROM events", [], |row| row.get(0))
            .map(Position)
            .map_err(|error| failed("reading the end of the log", &error))
    }

    /// Rows after a position and up to `head`, at most so many; fewer where they are large. None: there are no more.
    pub fn rows(&mut self, after: Position, head: Position, limit: usize) -> Result<Vec<Row>, StoreError> {
        self.read(after, head, limit).map_err(|error| failed("reading the log", &error))
    }

    fn read(&mut self, after: Position, head: Position, limit: usize) -> rusqlite::Result<Vec<Row>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT e.position, e.revision, e.stream_id, e.type, e.meta, e.links, e.data, e.seal, c.salt, c.content
             FROM events e LEFT JOIN contents c ON c.position = iif(e.seal IS NULL, NULL, e.position)
             WHERE e.position > ?1 AND e.position <= ?2 ORDER BY e.position LIMIT ?3",
        )?;
        let mut found = statement.query(params![after.0, head.0, limit])?;
        let mut rows = Vec::with_capacity(limit);
        let mut bytes = 0;
        while let Some(row) = found.next()? {
            // What is no UTF-8 is not what was appended; read as it may be, it shows as altered.
            let text = |column| row.get_ref(column).map(lossy);
            let blob = |column| row.get_ref(column).map(|value| value.as_blob().unwrap_or_default().to_vec());
            let id = row.get(2)?;
            let data = text(6)?;
            let there = |column| Ok::<_, rusqlite::Error>(row.get_ref(column)? != rusqlite::types::ValueRef::Null);
            let seal = if there(7)? { Some(blob(7)?) } else { None };
            let words = if there(8)? || there(9)? { Some((blob(8)?, text(9)?)) } else { None };
            bytes += data.len() + words.as_ref().map_or(0, |(_, words)| words.len());
            rows.push(Row {
                position: row.get(0)?,
                revision: row.get(1)?,
                stream: stream(&self.connection, &mut self.names, id)?,
                kind: text(3)?,
                meta: blob(4)?,
                links: blob(5)?,
                data,
                seal,
                words,
            });
            if bytes > MAX_PAGE_BYTES {
                break;
            }
        }
        Ok(rows)
    }
}

fn lossy(value: rusqlite::types::ValueRef<'_>) -> String {
    match value {
        rusqlite::types::ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => String::from_utf8_lossy(bytes).into_owned(),
        },
        rusqlite::types::ValueRef::Null
        | rusqlite::types::ValueRef::Integer(_)
        | rusqlite::types::ValueRef::Real(_)
        | rusqlite::types::ValueRef::Blob(_) => String::new(),
    }
}

fn stream(
    connection: &Connection,
    names: &mut HashMap<i64, Option<StreamName>>,
    id: i64,
) -> rusqlite::Result<Option<StreamName>> {
    if let Some(known) = names.get(&id) {
        return Ok(known.clone());
    }
    if names.len() >= NAMES {
        names.clear();
    }
    let mut statement = connection.prepare_cached("SELECT name FROM streams WHERE id = ?1")?;
    let name: Option<String> = statement.query_row([id], |row| row.get_ref(0).map(lossy)).optional()?;
    let name = name.and_then(|name| name.parse().ok());
    names.insert(id, name.clone());
    Ok(name)
}
