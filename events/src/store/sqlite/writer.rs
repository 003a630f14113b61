//! The one thread that writes: it takes what waits, checks every expected revision against heads in memory, and
//! commits the lot with a single trip to the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::{CachedStatement, Connection, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::checkpoint::Checkpointer;
use super::erase::Erasure;
use super::failed;
use super::shared::{Live, Shared};
use super::state::{Head, State, Unindexed};
use crate::envelope::{Envelope, NewEvent, Position, Revision, StreamName};
use crate::id::EventId;
use crate::store::chain::{self, Digest, Seal};
use crate::store::{Appended, Expected, StoreError, packing, place_of, sealed};

/// Most events in one commit: enough that the trip to the disk is shared, few enough that the first does not wait
/// long for the last.
pub const GROUP_EVENTS: usize = 1_024;
/// Most bytes of `data` in one commit (one batch more may go over it).
pub const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// Events are indexed in bulk once this many are not.
pub const INDEX_EVERY: usize = 4_096;

/// An append on its way to the writer.
pub(super) struct Job {
    pub stream: StreamName,
    pub expected: Expected,
    pub events: Vec<Prepared>,
    /// Bytes of `data` in it, as counted in [`Shared::queued_bytes`].
    pub bytes: usize,
    pub reply: oneshot::Sender<Result<Appended, StoreError>>,
}

/// An event with all that can be computed before its place is known.
pub(super) struct Prepared {
    pub event: NewEvent,
    pub meta: Vec<u8>,
    pub seal: Option<Seal>,
    pub body: Digest,
}

/// What the writer is asked to do.
pub(super) enum Request {
    Append(Job),
    Erase(Erasure),
    /// Limits the database's size, so that tests can fill the disk.
    #[cfg(test)]
    LimitPages(u32, oneshot::Sender<()>),
    /// Kills the writer, so that tests can see what everyone else learns of it.
    #[cfg(test)]
    Panic,
}

/// The writer thread's own state.
pub(super) struct Writer {
    pub conn: Connection,
    pub state: State,
    pub shared: Arc<Shared>,
    pub bell: watch::Sender<Position>,
    pub checkpointer: Checkpointer,
    /// A commit failed and memory has not been rebuilt since.
    pub stale: bool,
    /// Events that have left the ring, freed only once everyone has an answer.
    pub evicted: Vec<Arc<Envelope>>,
}

/// A job that will stand in the log once the group commits.
struct Staged {
    stream: StreamName,
    stream_id: i64,
    first: u64,
    position: u64,
    events: Vec<NewEvent>,
}

/// Whom to tell what, once the group has committed.
type Answer = (oneshot::Sender<Result<Appended, StoreError>>, Result<Appended, StoreError>);

impl Drop for Writer {
    fn drop(&mut self) {
        // Also on a panic: who waits for events that will never come is told.
        self.shared.bells.close();
    }
}

impl Writer {
    /// Writes until the last sender is gone.
    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::new();
        while let Some(first) = requests.blocking_recv() {
            let (mut events, mut bytes) = (0, 0);
            let mut erasure = None;
            let mut next = Some(first);
            while let Some(request) = next.take() {
                match request {
                    Request::Append(job) => {
                        events += job.events.len();
                        bytes += job.bytes;
                        group.push(job);
                    }
                    Request::Erase(asked) => erasure = Some(asked),
                    #[cfg(test)]
                    Request::LimitPages(pages, done) => {
                        self.conn.pragma_update(None, "max_page_count", pages).expect("a pragma");
                        let _ = done.send(());
                    }
                    #[cfg(test)]
                    Request::Panic => panic!("as a test asked"),
                }
                // What was asked for before is done before.
                if events < GROUP_EVENTS && bytes < GROUP_BYTES && erasure.is_none() {
                    next = requests.try_recv().ok();
                }
            }
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            if !group.is_empty() {
                self.commit(&mut group);
            }
            if let Some(erasure) = erasure {
                self.erase(erasure);
            }
            self.evicted.clear();
            self.checkpointer.tend(&self.conn);
        }
        self.checkpointer.finish(&self.conn);
    }

    /// Commits a group and answers everyone in it.
    fn commit(&mut self, group: &mut Vec<Job>) {
        let mut replies = Vec::with_capacity(group.len());
        let mut jobs = Vec::with_capacity(group.len());
        for job in group.drain(..) {
            replies.push(job.reply);
            jobs.push((job.stream, job.expected, job.events));
        }
        match self.try_commit(jobs) {
            Ok(answers) => {
                for answer in replies.into_iter().zip(answers) {
                    let (reply, result): Answer = answer;
                    // A caller that went away has its answer in the log.
                    let _ = reply.send(result);
                }
            }
            Err(error) => {
                tracing::error!(%error, "an event store commit failed");
                if !self.conn.is_autocommit()
                    && let Err(error) = self.conn.execute_batch("ROLLBACK")
                {
                    tracing::error!(%error, "rolling back failed too");
                }
                self.stale = true;
                let failure = failed("appending", &error);
                for reply in replies {
                    let _ = reply.send(Err(failure.clone()));
                }
            }
        }
    }

    fn try_commit(
        &mut self,
        jobs: Vec<(StreamName, Expected, Vec<Prepared>)>,
    ) -> rusqlite::Result<Vec<Result<Appended, StoreError>>> {
        if self.stale {
            let (state, live) = State::load(&self.conn)?;
            let head = live.head;
            self.state = state;
            *self.shared.live_mut() = live;
            self.bell.send_replace(head);
            self.stale = false;
        }
        let mut answers = Vec::with_capacity(jobs.len());
        let mut staged = Vec::with_capacity(jobs.len());
        let mut written = 0;
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let indexed = self.state.unindexed.len() >= INDEX_EVERY;
        if indexed {
            written += self.write_index()?;
        }
        {
            // Only this thread ever takes the lock for writing, so holding it for reading makes nobody wait.
            let live = self.shared.live();
            let mut stage = Stage { conn: &self.conn, state: &mut self.state, live: &live, staged: &mut staged };
            let mut insert = self.conn.prepare_cached(
                "INSERT INTO events (position, stream_id, revision, type, meta, links, data, seal) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?;
            let mut insert_content =
                self.conn.prepare_cached("INSERT INTO contents (position, salt, content) VALUES (?1, ?2, ?3)")?;
            let mut inserts = Inserts { event: &mut insert, content: &mut insert_content };
            for (stream, expected, events) in jobs {
                answers.push(stage.job(stream, expected, events, &mut inserts, &mut written)?);
            }
        }
        if staged.is_empty() && !indexed {
            self.conn.prepare_cached("ROLLBACK")?.execute([])?;
            return Ok(answers);
        }
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.checkpointer.wrote(written);
        if indexed {
            self.state.unindexed.clear();
        }
        self.publish(staged, indexed);
        Ok(answers)
    }

    /// Writes the index rows of all committed events that have none, and moves the mark.
    fn write_index(&mut self) -> rusqlite::Result<usize> {
        // Sorted, so that each leaf is touched once.
        self.state.unindexed.sort_unstable();
        let mut insert =
            self.conn.prepare_cached("INSERT INTO stream_index (stream_id, revision, position) VALUES (?1, ?2, ?3)")?;
        let mut mark = 0;
        for entry in &self.state.unindexed {
            mark = mark.max(entry.position);
            insert.execute(params![entry.stream_id, entry.revision, entry.position])?;
        }
        self.conn.prepare_cached("UPDATE stream_index_mark SET position = ?1")?.execute([mark])?;
        Ok(self.state.unindexed.len() * 32)
    }

    /// Shows readers what has been committed, then rings the bells.
    fn publish(&mut self, staged: Vec<Staged>, indexed: bool) {
        let mut grown = Vec::with_capacity(staged.len());
        let mut events = Vec::with_capacity(staged.len());
        for job in staged {
            let last = job.first + job.events.len() as u64 - 1;
            grown.push((job.stream.clone(), Revision(last)));
            for (event, offset) in job.events.into_iter().zip(0..) {
                let entry = Unindexed {
                    stream_id: job.stream_id,
                    revision: job.first + offset,
                    position: job.position + offset,
                };
                self.state.unindexed.push(entry);
                events.push((entry, Arc::new(envelope(event, job.stream.clone(), entry))));
            }
        }
        let head = Position(self.state.position);
        {
            let mut live = self.shared.live_mut();
            if indexed {
                live.tail.clear();
            }
            for (entry, event) in events {
                live.note(&event.stream, entry.stream_id, entry.revision, entry.position);
                live.push(event, &mut self.evicted);
            }
            live.head = head;
        }
        self.bell.send_replace(head);
        self.shared.bells.ring(grown.iter().map(|(stream, revision)| (stream, *revision)));
    }
}

fn envelope(event: NewEvent, stream: StreamName, entry: Unindexed) -> Envelope {
    Envelope {
        id: event.id,
        kind: event.kind,
        schema: event.schema,
        stream,
        revision: Revision(entry.revision),
        position: Position(entry.position),
        time: event.time,
        actor: event.actor,
        correlation: event.correlation,
        causation: event.causation,
        data: match &event.private {
            None => event.data.into(),
            Some(private) => sealed::joined(event.data.get(), Some(private.content.get())),
        },
        erased: false,
    }
}

/// The statements that write an event.
struct Inserts<'a, 'c> {
    event: &'a mut CachedStatement<'c>,
    content: &'a mut CachedStatement<'c>,
}

/// One group between BEGIN and COMMIT.
struct Stage<'a> {
    conn: &'a Connection,
    state: &'a mut State,
    live: &'a Live,
    staged: &'a mut Vec<Staged>,
}

impl Stage<'_> {
    /// Writes one job's rows, or finds out why not. An error means that the whole group fails.
    fn job(
        &mut self,
        stream: StreamName,
        expected: Expected,
        events: Vec<Prepared>,
        insert: &mut Inserts<'_, '_>,
        written: &mut usize,
    ) -> rusqlite::Result<Result<Appended, StoreError>> {
        let head = self.state.head(self.conn, self.live, &stream)?;
        let revision = head.map(|head| Revision(head.revision));
        let fits = match expected {
            Expected::NoStream => head.is_none(),
            Expected::Exactly(wanted) => revision == Some(wanted),
            Expected::Any => true,
        };
        if !fits {
            let conflict = StoreError::WrongExpectedRevision { stream: stream.clone(), expected, actual: revision };
            let place = place_of(expected, revision);
            return Ok(self.stands_at(&stream, head, place, &events)?.ok_or(conflict));
        }
        if let Some((id, position)) =
            events.iter().find_map(|new| Some((new.event.id, self.state.recent.position(new.event.id)?)))
        {
            let duplicate = StoreError::DuplicateEvent { stream: stream.clone(), id };
            return Ok(match (expected, self.revision_at(head, position)?) {
                (Expected::Any, Some(place)) => self.stands_at(&stream, head, place, &events)?.ok_or(duplicate),
                (Expected::Any | Expected::NoStream | Expected::Exactly(_), _) => Err(duplicate),
            });
        }
        let (stream_id, first, mut link) = match head {
            Some(head) => (head.stream_id, head.revision + 1, head.link),
            None => {
                self.conn.prepare_cached("INSERT INTO streams (name) VALUES (?1)")?.execute([stream.as_str()])?;
                (self.conn.last_insert_rowid(), 0, Digest::GENESIS)
            }
        };
        let position = self.state.position + 1;
        let mut global = self.state.link.unwrap_or(Digest::GENESIS);
        let mut kept = Vec::with_capacity(events.len());
        for (Prepared { event, meta, seal, body }, offset) in events.into_iter().zip(0..) {
            let links = chain::extend(link, global, body);
            (link, global) = (links.stream, links.global);
            let mut both = [0; 64];
            both[..32].copy_from_slice(&link.0);
            both[32..].copy_from_slice(&global.0);
            let data = event.data.get();
            let (place, seal) = (position + offset, seal.map(|seal| seal.0));
            insert.event.execute(params![place, stream_id, first + offset, &*event.kind, meta, both, data, seal])?;
            if let Some(private) = &event.private {
                insert.content.execute(params![place, private.salt, private.content.get()])?;
            }
            *written += sealed::data_bytes(&event) + meta.len() + 128;
            self.state.recent.put(event.id, position + offset);
            kept.push(event);
        }
        let count = kept.len() as u64;
        self.state.position += count;
        self.state.link = Some(global);
        let last = first + count - 1;
        self.state.heads.put(&stream, Head { stream_id, revision: last, link });
        self.staged.push(Staged { stream, stream_id, first, position, events: kept });
        Ok(Ok(Appended { revision: Revision(last), position: Position(position + count - 1) }))
    }

    /// Where a batch stands, if exactly this batch stands at this place in the stream.
    fn stands_at(
        &self,
        stream: &StreamName,
        head: Option<Head>,
        first: u64,
        events: &[Prepared],
    ) -> rusqlite::Result<Option<Appended>> {
        let last = first.saturating_add(events.len() as u64 - 1);
        let Some(head) = head.filter(|head| head.revision >= last) else { return Ok(None) };
        let mut position = 0;
        for (new, revision) in events.iter().zip(first..) {
            position = self.position_of(stream, head.stream_id, revision)?;
            if self.id_at(position)? != Some(new.event.id) {
                return Ok(None);
            }
        }
        Ok(Some(Appended { revision: Revision(last), position: Position(position) }))
    }

    fn position_of(&self, stream: &StreamName, stream_id: i64, revision: u64) -> rusqlite::Result<u64> {
        let staged = self.staged.iter().find(|job| {
            job.stream_id == stream_id && (job.first..job.first + job.events.len() as u64).contains(&revision)
        });
        if let Some(job) = staged {
            return Ok(job.position + (revision - job.first));
        }
        if let Some(run) = self.live.tail.get(stream)
            && let Some(offset) = revision.checked_sub(run.first)
            && let Some(position) = usize::try_from(offset).ok().and_then(|offset| run.positions.get(offset))
        {
            return Ok(*position);
        }
        self.conn
            .prepare_cached("SELECT position FROM stream_index WHERE stream_id = ?1 AND revision = ?2")?
            .query_row(params![stream_id, revision], |row| row.get(0))
    }

    fn id_at(&self, position: u64) -> rusqlite::Result<Option<EventId>> {
        let id: [u8; 16] = self
            .conn
            .prepare_cached("SELECT substr(meta, 1, 16) FROM events WHERE position = ?1")?
            .query_row([position], |row| row.get(0))?;
        Ok(packing::packed_id(&id))
    }

    /// The revision of the event at a position, if it is in the stream with this head.
    fn revision_at(&self, head: Option<Head>, position: u64) -> rusqlite::Result<Option<u64>> {
        let Some(head) = head else { return Ok(None) };
        let (stream_id, revision): (i64, u64) = self
            .conn
            .prepare_cached("SELECT stream_id, revision FROM events WHERE position = ?1")?
            .query_row([position], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((stream_id == head.stream_id).then_some(revision))
    }
}
