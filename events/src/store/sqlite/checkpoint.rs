//! Keeping the write-ahead log short, beside the writer rather than in its way.
//!
//! A side thread copies committed pages into the database while the writer goes on. It can never quite catch up with
//! a busy writer, and SQLite starts the log anew only once everything in it has been copied; so when the log has
//! grown to its bound and the side thread has just done most of the work, the writer copies the small rest itself.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;

/// The side thread copies pages each time that about this much has been written.
pub const CHECKPOINT_EVERY: usize = 16 * 1024 * 1024;
/// Above this length the log is started anew as soon as the side thread has finished a round. Opening after a crash
/// reads the whole log, so this also bounds the time to start.
pub const WAL_BOUND: usize = 32 * 1024 * 1024;
/// Above this length (a disk that does not keep up) the writer waits until the log is copied, whatever it takes.
pub const WAL_LIMIT: usize = 128 * 1024 * 1024;

/// How long cutting the log waits for its readers. Appends wait meanwhile.
const CUT_WAIT: Duration = Duration::from_millis(100);

/// How long the log is, in bytes: all of it, and the part that is not in the database yet.
#[derive(Clone, Copy)]
struct Lengths {
    log: usize,
    rest: usize,
}

/// The writer's end of the side thread.
pub(super) struct Checkpointer {
    ask: Option<SyncSender<()>>,
    done: Receiver<Lengths>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
    lengths: Lengths,
}

impl Checkpointer {
    /// Starts the side thread with a connection of its own.
    pub fn start(path: &Path) -> Result<Self, crate::store::StoreError> {
        let conn = super::open_writer(path)?;
        let (ask, asked) = sync_channel::<()>(1);
        let (tell, done) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("event-checkpoint".to_owned())
            .spawn(move || {
                while asked.recv().is_ok() {
                    let lengths = checkpoint(&conn).unwrap_or_else(|error| {
                        tracing::warn!(%error, "a checkpoint failed; the next one tries again");
                        Lengths { log: 0, rest: 0 }
                    });
                    if tell.send(lengths).is_err() {
                        break;
                    }
                }
            })
            .map_err(|error| crate::store::StoreError::Failed(format!("starting a thread: {error}")))?;
        let lengths = Lengths { log: 0, rest: 0 };
        Ok(Self { ask: Some(ask), done, thread: Some(thread), busy: false, lengths })
    }

    /// Counts what a commit has added (pages are rounded up: the true length comes back from each checkpoint).
    pub fn wrote(&mut self, bytes: usize) {
        let bytes = bytes + super::PAGE_BYTES * 2;
        self.lengths.log += bytes;
        self.lengths.rest += bytes;
    }

    /// Starts a round if one is due, and ends the log if it is long and nearly copied. Called after each commit.
    pub fn tend(&mut self, conn: &Connection) {
        let mut finished = false;
        if self.busy {
            match self.done.try_recv() {
                Ok(lengths) => {
                    self.busy = false;
                    self.lengths = lengths;
                    finished = true;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.busy = false,
            }
        }
        let nearly_copied = finished && self.lengths.log >= WAL_BOUND;
        if nearly_copied || self.lengths.log >= WAL_LIMIT {
            match checkpoint(conn) {
                // All is copied: the next commit starts the log anew.
                Ok(Lengths { rest: 0, .. }) => self.lengths = Lengths { log: 0, rest: 0 },
                Ok(lengths) => self.lengths = lengths,
                Err(error) => tracing::warn!(%error, "a checkpoint failed; the next one tries again"),
            }
            return;
        }
        if !self.busy
            && self.lengths.rest >= CHECKPOINT_EVERY
            && let Some(ask) = &self.ask
        {
            self.busy = ask.try_send(()).is_ok();
        }
    }

    /// Copies everything and cuts the log to nothing, so that what was overwritten is in no file. `false`: somebody
    /// reads, or the side thread copies; the next try may succeed.
    pub fn cut(&mut self, conn: &Connection) -> rusqlite::Result<bool> {
        conn.busy_timeout(CUT_WAIT)?;
        let busy = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        conn.busy_timeout(super::BUSY_TIMEOUT)?;
        let cut = !busy?;
        if cut {
            self.lengths = Lengths { log: 0, rest: 0 };
        }
        Ok(cut)
    }

    /// Copies everything, so that the next opening has nothing to recover.
    pub fn finish(&mut self, conn: &Connection) {
        self.ask = None;
        while self.busy && self.done.recv().is_ok() {}
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Err(error) = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::warn!(%error, "the last checkpoint failed; the next start recovers instead");
        }
    }
}

/// Copies what can be copied without waiting for anybody.
fn checkpoint(conn: &Connection) -> rusqlite::Result<Lengths> {
    conn.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |row| {
        let (log, copied): (i64, i64) = (row.get(1)?, row.get(2)?);
        let bytes = |frames: i64| usize::try_from(frames).unwrap_or(0) * super::PAGE_BYTES;
        Ok(Lengths { log: bytes(log), rest: bytes(log - copied) })
    })
}
