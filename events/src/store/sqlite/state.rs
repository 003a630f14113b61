//! What the writer remembers between commits, so that an append costs no reads: heads of streams, recent ids, the end
//! of both chains. All of it is rebuilt from the database, on opening and after a failed commit.

use std::collections::{HashMap, VecDeque};

use rusqlite::{Connection, OptionalExtension, params};

use super::reader::links;
use super::shared::Live;
use crate::envelope::{Position, StreamName};
use crate::id::EventId;
use crate::store::chain::Digest;
use crate::store::packing;

/// Heads of streams are kept in two generations of this many; the older one is forgotten when the younger is full.
pub const HEADS: usize = 32_768;
/// How many of the newest events are known by id, to recognise one that is appended again.
pub const RECENT_IDS: usize = 8_192;

/// The end of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub stream_id: i64,
    pub revision: u64,
    pub link: Digest,
}

/// The cache of stream heads.
#[derive(Default)]
pub(super) struct Heads {
    young: HashMap<StreamName, Head>,
    old: HashMap<StreamName, Head>,
}

impl Heads {
    pub fn get(&mut self, stream: &StreamName) -> Option<Head> {
        if let Some(head) = self.young.get(stream) {
            return Some(*head);
        }
        let head = self.old.remove(stream)?;
        self.put(stream, head);
        Some(head)
    }

    pub fn put(&mut self, stream: &StreamName, head: Head) {
        if let Some(known) = self.young.get_mut(stream) {
            *known = head;
            return;
        }
        if self.young.len() >= HEADS {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(stream.clone(), head);
    }
}

/// The ids of the newest events.
#[derive(Default)]
pub(super) struct RecentIds {
    places: HashMap<EventId, u64>,
    order: VecDeque<EventId>,
}

impl RecentIds {
    pub fn position(&self, id: EventId) -> Option<u64> {
        self.places.get(&id).copied()
    }

    pub fn put(&mut self, id: EventId, position: u64) {
        self.places.insert(id, position);
        self.order.push_back(id);
        if self.order.len() > RECENT_IDS
            && let Some(oldest) = self.order.pop_front()
        {
            self.places.remove(&oldest);
        }
    }
}

/// Where an event stands that the index does not hold yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unindexed {
    pub stream_id: i64,
    pub revision: u64,
    pub position: u64,
}

/// The writer's memory.
#[derive(Default)]
pub(super) struct State {
    pub heads: Heads,
    pub recent: RecentIds,
    /// The last position written.
    pub position: u64,
    /// The global link there.
    pub link: Option<Digest>,
    /// Committed events above the index mark.
    pub unindexed: Vec<Unindexed>,
}

impl State {
    /// Reads the end of the log. Also gives the part of it that readers need.
    pub fn load(conn: &Connection) -> rusqlite::Result<(Self, Live)> {
        let mut state = Self::default();
        let mut live = Live::default();
        let last = conn
            .query_row("SELECT position, links FROM events ORDER BY position DESC LIMIT 1", [], |row| {
                Ok((row.get::<_, u64>(0)?, links(row, 1)?))
            })
            .optional()?;
        if let Some((position, links)) = last {
            state.position = position;
            state.link = Some(links.global);
            live.head = Position(position);
        }
        let mark: u64 = conn.query_row("SELECT position FROM stream_index_mark", [], |row| row.get(0))?;
        let from = mark.min(state.position.saturating_sub(RECENT_IDS as u64));
        // `meta` stands before `data` in the row, so large events are not read here.
        let mut statement = conn.prepare(
            "SELECT e.position, e.stream_id, e.revision, substr(e.meta, 1, 16), \
                    CASE WHEN e.position > ?2 THEN (SELECT name FROM streams s WHERE s.id = e.stream_id) END \
             FROM events e WHERE e.position > ?1 ORDER BY e.position",
        )?;
        let mut rows = statement.query(params![from, mark])?;
        while let Some(row) = rows.next()? {
            let (position, stream_id, revision) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if let Some(id) = packing::packed_id(row.get_ref(3)?.as_blob()?) {
                state.recent.put(id, position);
            }
            if let Some(name) = row.get_ref(4)?.as_str_or_null()? {
                let stream = name.parse().map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, Box::new(error))
                })?;
                live.note(&stream, stream_id, revision, position);
                state.unindexed.push(Unindexed { stream_id, revision, position });
            }
        }
        Ok((state, live))
    }

    /// The end of a stream, from memory or from disk.
    pub fn head(&mut self, conn: &Connection, live: &Live, stream: &StreamName) -> rusqlite::Result<Option<Head>> {
        if let Some(head) = self.heads.get(stream) {
            return Ok(Some(head));
        }
        let place = match live.tail.get(stream) {
            Some(run) => run.positions.last().map(|position| (run.stream_id, run.end() - 1, *position)),
            None => conn
                .prepare_cached(
                    "SELECT i.stream_id, i.revision, i.position FROM stream_index i \
                     WHERE i.stream_id = (SELECT id FROM streams WHERE name = ?1) ORDER BY i.revision DESC LIMIT 1",
                )?
                .query_row([stream.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?,
        };
        let Some((stream_id, revision, position)) = place else { return Ok(None) };
        let links = conn
            .prepare_cached("SELECT links FROM events WHERE position = ?1")?
            .query_row([position], |row| links(row, 0))?;
        let head = Head { stream_id, revision, link: links.stream };
        self.heads.put(stream, head);
        Ok(Some(head))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn caches_stay_within_their_bounds_and_keep_what_is_used() {
        let mut heads = Heads::default();
        let hot: StreamName = "task-hot".parse().unwrap();
        let head = Head { stream_id: 1, revision: 0, link: Digest::GENESIS };
        heads.put(&hot, head);
        for number in 0..3 * HEADS {
            heads.put(&format!("task-{number}").parse().unwrap(), head);
            assert!(heads.get(&hot).is_some(), "forgotten after {number}");
        }
        assert!(heads.young.len() + heads.old.len() <= 2 * HEADS);

        let mut recent = RecentIds::default();
        for number in 0..2 * RECENT_IDS as u64 {
            recent.put(EventId(Uuid::from_u128(number.into())), number);
        }
        assert_eq!(recent.places.len(), RECENT_IDS);
        assert_eq!(recent.position(EventId(Uuid::from_u128(0))), None);
    }
}
