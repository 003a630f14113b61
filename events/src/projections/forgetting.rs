//! What the read models know of words that may be forgotten, and how they forget them.

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use uuid::Uuid;

use super::ReadModelError;

/// What has ended long enough ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// It ended before this time.
    pub before: Timestamp,
    /// Only of this team.
    pub team: Option<String>,
    /// Not of these teams.
    pub but: Vec<String>,
}

/// When something ended, in microseconds since 1970, and its id: where the next page begins.
pub type EndedAt = (i64, Uuid);

/// What has ended so long ago and still has its words, the oldest first.
pub(super) fn ended(
    connection: &Connection,
    table: &'static str,
    rule: &Ended,
    after: Option<EndedAt>,
    limit: usize,
) -> Result<Vec<EndedAt>, ReadModelError> {
    let (at, id) = after.unwrap_or((i64::MIN, Uuid::nil()));
    let mut values = vec![
        Value::Integer(rule.before.as_microsecond()),
        Value::Integer(at),
        Value::Blob(id.as_bytes().to_vec()),
        Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)),
    ];
    let mut sql = format!(
        "SELECT finished_at, id FROM {table} \
         WHERE erased = 0 AND finished_at IS NOT NULL AND finished_at < ?1 AND (finished_at, id) > (?2, ?3)"
    );
    for (clause, team) in rule.team.iter().map(|team| ("=", team)).chain(rule.but.iter().map(|team| ("<>", team))) {
        values.push(Value::Text(team.clone()));
        sql.push_str(&format!(" AND team {clause} ?{}", values.len()));
    }
    sql.push_str(" ORDER BY finished_at, id LIMIT ?4");
    let mut statement = connection.prepare(&sql)?;
    let found = statement.query_map(params_from_iter(values), |row| Ok((row.get(0)?, row.get::<_, [u8; 16]>(1)?)))?;
    found.map(|found| found.map(|(at, id)| (at, Uuid::from_bytes(id))).map_err(Into::into)).collect()
}

/// The size of the file, in bytes.
pub(super) fn bytes(connection: &Connection) -> Result<u64, ReadModelError> {
    Ok(connection
        .query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |row| row.get(0))?)
}

/// Writes the file anew, and cuts its write-ahead log to nothing: rows are moved between pages as they grow, and what
/// they leave where they were is overwritten by nothing else.
pub(super) fn tidy(connection: &Connection) -> Result<(), ReadModelError> {
    connection.execute_batch("VACUUM")?;
    let busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy { Err(ReadModelError::Busy) } else { Ok(()) }
}
