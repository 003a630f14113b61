//! Erasing: the private parts of a stream's events go from the database, from memory and from the write-ahead log.
//!
//! A row is emptied in its place (`secure_delete` writes zeros over what it was) and never deleted. SQLite moves rows
//! between pages only when rows come in the middle or go, and where a row was before it was moved is not overwritten; this
//! table grows at its end and loses no row, so what it holds is in one place.

use std::sync::Arc;

use rusqlite::params;
use tokio::sync::oneshot;

use super::writer::Writer;
use super::{SqliteStore, failed};
use crate::envelope::{Position, StreamName};
use crate::json::Json;
use crate::store::StoreError;

/// Most events that are emptied in one transaction: appends wait for it.
pub const ERASE_BATCH: usize = 512;
/// How often the write-ahead log is tried, at intervals of [`PAUSE`](std::time::Duration), while readers are in it.
const TRIES: u32 = 200;
/// Between two tries. With [`TRIES`], ten seconds in all.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// What a batch came to.
pub(super) struct Erased {
    /// Events whose private part it was that deleted it.
    pub events: u64,
    /// The revision to go on at; `None` at the end of the stream.
    pub next: Option<u64>,
}

/// A part of an erasure, on its way to the writer.
pub(super) enum Erasure {
    /// The next batch of a stream's events, from a revision on.
    Batch(StreamName, u64, oneshot::Sender<Result<Erased, StoreError>>),
    /// The write-ahead log is emptied into the database and cut to nothing. `false`: somebody is reading it.
    CutLog(oneshot::Sender<Result<bool, StoreError>>),
}

impl SqliteStore {
    pub(super) async fn erase_all(&self, streams: &[StreamName]) -> Result<u64, StoreError> {
        let mut events = 0;
        for stream in streams {
            let mut from = Some(0);
            while let Some(revision) = from {
                let batch = self.ask(|reply| Erasure::Batch(stream.clone(), revision, reply)).await?;
                events += batch.events;
                from = batch.next;
            }
        }
        // Also when there was nothing: whoever was interrupted may have left the old pages in the log.
        for _ in 0..TRIES {
            if self.ask(Erasure::CutLog).await? {
                return Ok(events);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(StoreError::Overloaded)
    }

    async fn ask<T>(
        &self,
        erasure: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Erasure,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(super::writer::Request::Erase(erasure(reply)))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Writer {
    /// Does a part of an erasure, and answers.
    pub(super) fn erase(&mut self, erasure: Erasure) {
        // Whoever went away asks again, or leaves it to the next start.
        match erasure {
            Erasure::Batch(stream, from, reply) => {
                let done = self.erase_batch(&stream, from).map_err(|error| failed("erasing", &error));
                if done.is_err() && !self.conn.is_autocommit() {
                    // A failed rollback shows at the next append.
                    let _ = self.conn.execute_batch("ROLLBACK");
                }
                let _ = reply.send(done);
            }
            Erasure::CutLog(reply) => {
                let cut = self.checkpointer.cut(&self.conn).map_err(|error| failed("cutting the log", &error));
                let _ = reply.send(cut);
            }
        }
    }

    fn erase_batch(&mut self, stream: &StreamName, from: u64) -> rusqlite::Result<Erased> {
        let (positions, next) = self.positions(stream, from)?;
        let mut changed = Vec::new();
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        {
            let mut empty = self.conn.prepare_cached(
                "UPDATE contents SET salt = NULL, content = NULL WHERE position = ?1 AND content IS NOT NULL",
            )?;
            for position in positions {
                if empty.execute([position])? > 0 {
                    changed.push(position);
                }
            }
        }
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.checkpointer.wrote(changed.len() * super::PAGE_BYTES);
        self.forget(&changed)?;
        Ok(Erased { events: changed.len() as u64, next })
    }

    /// Where the events of a stream stand from a revision on, a batch of them, and the revision after.
    fn positions(&self, stream: &StreamName, from: u64) -> rusqlite::Result<(Vec<u64>, Option<u64>)> {
        let live = self.shared.live();
        let tail = live.tail.get(stream);
        let mut positions: Vec<u64> = self
            .conn
            .prepare_cached(
                "SELECT position FROM stream_index WHERE stream_id = (SELECT id FROM streams WHERE name = ?1) \
                 AND revision >= ?2 ORDER BY revision LIMIT ?3",
            )?
            .query_map(params![stream.as_str(), from, ERASE_BATCH], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if let Some(tail) = tail {
            // The index ends where the tail begins.
            let skip =
                usize::try_from((from + positions.len() as u64).saturating_sub(tail.first)).unwrap_or(usize::MAX);
            if from + positions.len() as u64 >= tail.first {
                let room = ERASE_BATCH - positions.len();
                positions.extend(tail.positions.iter().skip(skip).take(room));
            }
        }
        let next = (positions.len() == ERASE_BATCH).then_some(from + ERASE_BATCH as u64);
        Ok((positions, next))
    }

    /// Takes the words of these events out of the memory that readers are served from.
    fn forget(&mut self, positions: &[u64]) -> rusqlite::Result<()> {
        for position in positions {
            let Some(event) = self.shared.live().at(*position).map(Arc::clone) else { continue };
            let public: String = self
                .conn
                .prepare_cached("SELECT data FROM events WHERE position = ?1")?
                .query_row([position], |row| row.get(0))?;
            let mut event = crate::Envelope::clone(&event);
            event.data = Json::stored(public);
            event.erased = true;
            self.shared.live_mut().replace(Position(*position), Arc::new(event));
        }
        Ok(())
    }
}
