//! The list of tasks and each task's detail.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, params_from_iter};
use uuid::Uuid;

use super::bounds::{self, Columns};
use super::{Folded, Odd, ReadModelError};
use crate::envelope::Envelope;
use crate::id::TaskId;
use crate::key::Bounds;
use crate::task::{TaskEvent, TaskResource, TaskStatus};

/// Most tasks on one page.
pub const MAX_PAGE: usize = 200;
/// How long a look beside a server waits for its lock.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Which tasks. What is set must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// The team.
    pub team: Option<String>,
    /// The project.
    pub project: Option<String>,
    /// Where they stand.
    pub status: Option<TaskStatus>,
    /// `forge:owner/name`, or `owner/name` on any forge.
    pub repo: Option<String>,
    /// The model, as the caller named it.
    pub model: Option<String>,
    /// The team's customer.
    pub customer: Option<String>,
    /// The campaign.
    pub campaign: Option<String>,
    /// Created after this time.
    pub created_after: Option<Timestamp>,
    /// Created before this time.
    pub created_before: Option<Timestamp>,
    /// Within these.
    pub bounds: Bounds,
}

/// The parts of a task's row that a key can be bound to.
const COLUMNS: Columns = Columns {
    project: "project",
    environment: "environment",
    task_type: "task_type",
    model: "model",
    repos: &["repo", "further"],
};

/// The place where a page ended: the next one starts behind it, whatever was created meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    created_at: i64,
    id: Uuid,
}

impl Cursor {
    pub(super) const fn new(created_at: i64, id: Uuid) -> Self {
        Self { created_at, id }
    }

    /// The earlier of a time, at which the rows end too, and where a page ended. One bound and not two: of two, SQLite
    /// looks for one in its index and reads every row from there to the other.
    pub(super) fn earlier(before: Option<Timestamp>, after: Option<Self>) -> Option<Self> {
        let before = before.map(|time| Self::new(time.as_microsecond(), Uuid::nil()));
        match (before, after) {
            (Some(before), Some(after)) => {
                Some(if (before.created_at, before.id) < (after.created_at, after.id) { before } else { after })
            }
            (before, after) => before.or(after),
        }
    }

    /// What a query compares with.
    pub(super) fn values(self) -> [Value; 2] {
        [Value::Integer(self.created_at), Value::Blob(self.id.as_bytes().to_vec())]
    }
}

/// A text that is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: pass on the nextCursor of the page before as it is")]
pub struct CursorError;

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}{}", self.created_at, self.id.simple())
    }
}

impl FromStr for Cursor {
    type Err = CursorError;
    fn from_str(text: &str) -> Result<Self, CursorError> {
        if text.len() != 48 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(CursorError);
        }
        let (time, id) = text.split_at(16);
        let created_at = u64::from_str_radix(time, 16).map_err(|_| CursorError)?.cast_signed();
        Ok(Self { created_at, id: Uuid::parse_str(id).map_err(|_| CursorError)? })
    }
}

/// Tasks, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<TaskResource>,
    /// Where the next page starts; `None` when there is none.
    pub next: Option<Cursor>,
}

pub(super) fn decode(document: &str) -> Result<TaskResource, ReadModelError> {
    serde_json::from_str(document).map_err(|error| ReadModelError::Failed(format!("a task row does not read: {error}")))
}

pub(super) fn find(connection: &Connection, id: TaskId) -> Result<Option<TaskResource>, ReadModelError> {
    let mut statement = connection.prepare_cached("SELECT document FROM tasks WHERE id = ?1")?;
    let document: Option<String> = statement.query_row([id.uuid().as_bytes()], |row| row.get(0)).optional()?;
    document.as_deref().map(decode).transpose()
}

pub(super) fn page(
    connection: &Connection,
    filter: &TaskFilter,
    after: Option<Cursor>,
    limit: usize,
) -> Result<TaskPage, ReadModelError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let mut sql = "SELECT id, created_at FROM tasks WHERE 1 = 1".to_owned();
    let mut values: Vec<Value> = Vec::new();
    let mut narrow = |clause: &str, value: Value| {
        values.push(value);
        // Writing to a String does not fail.
        let _ = write!(sql, " AND {clause} ?{}", values.len());
    };
    let texts = [
        ("team =", &filter.team),
        ("project =", &filter.project),
        ("model =", &filter.model),
        ("customer =", &filter.customer),
        ("campaign =", &filter.campaign),
    ];
    for (clause, text) in texts {
        if let Some(text) = text {
            narrow(clause, Value::Text(text.clone()));
        }
    }
    if let Some(status) = filter.status {
        narrow("status =", Value::Text(status.as_str().to_owned()));
    }
    if let Some(repo) = &filter.repo {
        match repo.split_once(':') {
            Some((_, path)) => {
                narrow("repo_path =", Value::Text(path.to_owned()));
                narrow("repo =", Value::Text(repo.clone()));
            }
            None => narrow("repo_path =", Value::Text(repo.clone())),
        }
    }
    if let Some(time) = filter.created_after {
        narrow("created_at >", Value::Integer(time.as_microsecond()));
    }
    if let Some(cursor) = Cursor::earlier(filter.created_before, after) {
        values.extend(cursor.values());
        let _ = write!(sql, " AND (created_at, id) < (?{}, ?{})", values.len() - 1, values.len());
    }
    bounds::narrow(&mut sql, &mut values, &filter.bounds, &COLUMNS);
    // One more than asked for tells whether there is another page. The documents are read for these alone, however many
    // rows were looked at or sorted.
    let sql = format!(
        "SELECT t.document FROM ({sql} ORDER BY created_at DESC, id DESC LIMIT {}) found
         CROSS JOIN tasks t ON t.id = found.id ORDER BY found.created_at DESC, found.id DESC",
        limit + 1
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut tasks = Vec::with_capacity(limit);
    let mut more = false;
    while let Some(row) = rows.next()? {
        if tasks.len() == limit {
            more = true;
            break;
        }
        tasks.push(decode(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?);
    }
    let next = tasks
        .last()
        .filter(|_| more)
        .map(|last: &TaskResource| Cursor { created_at: last.created_at.as_microsecond(), id: last.id.uuid() });
    Ok(TaskPage { tasks, next })
}

/// The tasks of a file of read models that are not over, with their attempts, beside whatever server has it open.
///
/// # Errors
/// When there is no such file, or it is another version's.
pub fn open_in_file(path: &Path) -> Result<Vec<(TaskId, u32)>, ReadModelError> {
    // Not read-only: whoever reads a log that nobody else has open makes the file for its shared memory.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(LOOK_TIMEOUT)?;
    connection.pragma_update(None, "query_only", true)?;
    let open = TaskStatus::ALL.into_iter().filter(|status| !status.is_final());
    let open: Vec<_> = open.map(|status| format!("'{}'", status.as_str())).collect();
    let sql = format!("SELECT document FROM tasks WHERE status IN ({})", open.join(", "));
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let mut tasks = Vec::new();
    while let Some(row) = rows.next()? {
        let task = decode(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?;
        tasks.push((task.id, task.attempt));
    }
    Ok(tasks)
}

/// The names of the repositories besides the first, as a JSON list.
fn further(task: &TaskResource) -> Option<String> {
    let names: Vec<_> = task.spec.further.iter().map(|further| further.repo.to_string()).collect();
    (!names.is_empty()).then(|| serde_json::Value::from(names).to_string())
}

/// The tasks that a batch touches, read once and written once.
#[derive(Default)]
pub(super) struct OpenTasks {
    tasks: HashMap<TaskId, Option<TaskResource>>,
}

impl OpenTasks {
    /// The task as far as it is folded.
    pub fn get(
        &mut self,
        transaction: &Transaction<'_>,
        id: TaskId,
    ) -> Result<Result<Option<&mut TaskResource>, Odd>, rusqlite::Error> {
        let task = match self.tasks.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let mut statement = transaction.prepare_cached("SELECT document FROM tasks WHERE id = ?1")?;
                let document: Option<String> =
                    statement.query_row([id.uuid().as_bytes()], |row| row.get(0)).optional()?;
                match document.as_deref().map(serde_json::from_str).transpose() {
                    Ok(task) => place.insert(task),
                    Err(error) => return Ok(Err(Odd::Document(error))),
                }
            }
        };
        Ok(Ok(task.as_mut()))
    }

    pub fn apply(&mut self, transaction: &Transaction<'_>, envelope: &Envelope, event: &TaskEvent) -> Folded {
        let Some(id) = envelope.stream.task_id() else { return Ok(Ok(())) };
        if let Err(odd) = self.get(transaction, id)? {
            return Ok(Err(odd));
        }
        let current = self.tasks.get_mut(&id).and_then(Option::take);
        let folded = TaskResource::fold(current, envelope, event);
        let known = folded.is_some();
        self.tasks.insert(id, folded);
        Ok(if known { Ok(()) } else { Err(Odd::NoTask) })
    }

    /// Those that are known, as far as they are folded.
    pub fn all(&self) -> impl Iterator<Item = &TaskResource> {
        self.tasks.values().flatten()
    }

    pub fn save(self, transaction: &Transaction<'_>) -> Result<(), ReadModelError> {
        let mut statement = transaction.prepare_cached(
            "INSERT INTO tasks (id, created_at, team, project, status, repo, repo_path, model, customer, campaign,
                                cost_nano_usd, refunded_nano_usd, document, created_by, finished_at, erased, environment,
                                task_type, further)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
             ON CONFLICT (id) DO UPDATE SET status = excluded.status, document = excluded.document,
                                            cost_nano_usd = excluded.cost_nano_usd,
                                            refunded_nano_usd = excluded.refunded_nano_usd,
                                            finished_at = excluded.finished_at, erased = excluded.erased",
        )?;
        for task in self.tasks.into_values().flatten() {
            let document = serde_json::to_string(&task).map_err(|error| ReadModelError::Failed(error.to_string()))?;
            statement.execute(rusqlite::params![
                task.id.uuid().as_bytes(),
                task.created_at.as_microsecond(),
                &task.spec.team,
                &task.spec.project,
                task.status.as_str(),
                task.spec.repo.to_string(),
                task.spec.repo.path(),
                &task.spec.model,
                &task.spec.customer,
                task.spec.campaign.map(|campaign| campaign.to_string()),
                task.cost.nanos(),
                task.refunded.nanos(),
                document,
                &task.created_by,
                task.finished_at.map(Timestamp::as_microsecond),
                task.erased_at.is_some(),
                &task.spec.environment,
                &task.spec.task_type,
                further(&task),
            ])?;
        }
        Ok(())
    }
}
