//! Who did what, when, from where, to which repository, with which model, and what became of it.
//!
//! A page is bounded by what is looked at and not only by what is found: where several filters leave little of much, it
//! ends early and says where to go on.

use std::fmt::Write as _;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params, params_from_iter};
use serde::Deserialize;
use uuid::Uuid;

use super::tasks::{Cursor, OpenTasks};
use super::{Folded, Odd, ReadModelError};
use crate::audit::acts::{self, Act, Category};
use crate::envelope::{ActorKind, Envelope, Position};
use crate::id::{KeyId, TaskId};
use crate::task::event::TaskSpec;
use crate::task::{TaskEvent, TaskResource};

/// Most rows on one page.
pub const MAX_PAGE: usize = 200;
/// Rows that one page looks at before it ends early: some milliseconds' worth.
pub const SCAN_ROWS: usize = 4_096;

/// Which rows. What is set must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// The team that it concerns.
    pub team: Option<String>,
    /// The project.
    pub project: Option<String>,
    /// The key or the person who did it.
    pub actor: Option<String>,
    /// `forge:owner/name`, or `owner/name` on any forge; any of a task's repositories.
    pub repo: Option<String>,
    /// The model, as the caller named it.
    pub model: Option<String>,
    /// A task's status, `done`, or the code of a refusal.
    pub outcome: Option<String>,
    /// `task`, or what was done.
    pub kind: Option<String>,
    /// Tasks, acts or refusals alone.
    pub category: Option<Category>,
    /// What concerns this task.
    pub task: Option<TaskId>,
    /// Not before this time.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub to: Option<Timestamp>,
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// The task's UUID, or the event's.
    pub id: Uuid,
    /// When it was done.
    pub at: Timestamp,
    /// Task, act or refusal.
    pub category: Category,
    /// `task`, or what was done.
    pub kind: String,
    /// Whose it is.
    pub team: Option<String>,
    /// The project.
    pub project: Option<String>,
    /// What kind of being did it.
    pub actor_kind: ActorKind,
    /// Its id.
    pub actor: String,
    /// It is one of the team's own; otherwise where it came from is not the team's to see.
    pub own: bool,
    /// What it was called then.
    pub name: Option<String>,
    /// From where.
    pub address: Option<String>,
    /// With which program, by its own word.
    pub user_agent: Option<String>,
    /// On which repositories.
    pub repos: Vec<String>,
    /// With which model.
    pub model: Option<String>,
    /// What became of it.
    pub outcome: String,
    /// The task that it concerns.
    pub task: Option<TaskId>,
    /// What it is about.
    pub about: Option<String>,
    /// How many acts it stands for.
    pub count: u64,
    /// The stream of its event.
    pub stream: String,
    /// The place of its event in the log.
    pub position: Position,
    /// The task itself, where this is its row.
    pub resource: Option<Box<TaskResource>>,
}

/// Rows, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditPage {
    /// The rows: fewer than asked for, perhaps none, where the filters leave little of much.
    pub rows: Vec<AuditRow>,
    /// Where the next page starts; `None` when there is none.
    pub next: Option<Cursor>,
}

/// What is read of sign-ins and keys to know whose they are.
#[derive(Deserialize)]
struct Belongs {
    #[serde(default)]
    team: Option<String>,
    #[serde(default)]
    holder: Option<Holder>,
    #[serde(default)]
    memberships: Vec<Member>,
}

#[derive(Deserialize)]
struct Holder {
    #[serde(default)]
    issuer: Option<String>,
    #[serde(default)]
    subject: Option<String>,
}

#[derive(Deserialize)]
struct Member {
    #[serde(default)]
    team: Option<String>,
}

pub(super) fn apply(
    transaction: &Transaction<'_>,
    open: &mut OpenTasks,
    envelope: &Envelope,
    event: Option<&TaskEvent>,
) -> Folded {
    learn(transaction, envelope)?;
    let mut failed = None;
    let act = acts::act(envelope, |key| {
        key_team(transaction, key).unwrap_or_else(|error| {
            failed = Some(error);
            None
        })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let Some(mut act) = act else { return Ok(Ok(())) };
    let spec: Option<TaskSpec> = match (event, act.task) {
        (Some(TaskEvent::Created(spec)), _) => Some((**spec).clone()),
        (_, Some(id)) => match open.get(transaction, id)? {
            Ok(Some(task)) => Some(task.spec.clone()),
            Ok(None) => None,
            Err(odd) => return Ok(Err(odd)),
        },
        (_, None) => None,
    };
    if act.category == Category::Task && spec.is_none() {
        return Ok(Err(Odd::NoTask));
    }
    if let Some(spec) = &spec {
        // Whose task it is, and not who happened to act on it.
        act.team = Some(spec.team.clone());
    }
    insert(transaction, envelope, &act, spec.as_ref())?;
    Ok(Ok(()))
}

/// Remembers whose a key or a person is.
fn learn(transaction: &Transaction<'_>, envelope: &Envelope) -> Result<(), rusqlite::Error> {
    let read = || serde_json::from_str::<Belongs>(envelope.data.get()).ok();
    let (actor, teams) = match (&*envelope.kind, envelope.stream.key_id()) {
        ("key-issued", Some(key)) => {
            let Some(said) = read() else { return Ok(()) };
            (key.to_string(), said.team.into_iter().collect::<Vec<_>>())
        }
        ("session-started", _) => {
            let Some(Belongs { holder: Some(holder), memberships, .. }) = read() else { return Ok(()) };
            if holder.issuer.is_none() || holder.subject.is_none() {
                return Ok(());
            }
            // Who works for the whole server is nobody's own.
            let everywhere = memberships.iter().any(|member| member.team.is_none());
            let teams = memberships.into_iter().filter_map(|member| member.team);
            (envelope.actor.id.clone(), if everywhere { Vec::new() } else { teams.collect() })
        }
        _ => return Ok(()),
    };
    transaction.prepare_cached("DELETE FROM audit_actors WHERE actor = ?1")?.execute([&actor])?;
    let mut statement = transaction.prepare_cached("INSERT OR IGNORE INTO audit_actors VALUES (?1, ?2)")?;
    for team in teams {
        statement.execute([&actor, &team])?;
    }
    Ok(())
}

/// Whether this key or person is one of the team's own.
pub(super) fn is_of(connection: &Connection, actor: &str, team: &str) -> Result<bool, rusqlite::Error> {
    connection.prepare_cached("SELECT 1 FROM audit_actors WHERE actor = ?1 AND team = ?2")?.exists([actor, team])
}

fn key_team(transaction: &Transaction<'_>, key: KeyId) -> Result<Option<String>, rusqlite::Error> {
    let mut statement = transaction.prepare_cached("SELECT team FROM audit_actors WHERE actor = ?1")?;
    statement.query_row([key.to_string()], |row| row.get(0)).optional()
}

fn insert(
    transaction: &Transaction<'_>,
    envelope: &Envelope,
    act: &Act,
    spec: Option<&TaskSpec>,
) -> Result<(), rusqlite::Error> {
    let id = match (act.category, act.task) {
        (Category::Task, Some(task)) => task.uuid(),
        (Category::Task | Category::Act | Category::Refusal, _) => envelope.id.0,
    };
    let at = envelope.time.as_microsecond();
    let origin = envelope.actor.origin.as_deref();
    let own = match &act.team {
        Some(team) => is_of(transaction, &envelope.actor.id, team)?,
        None => false,
    };
    let repos: Vec<_> =
        spec.map(|spec| spec.targets().into_iter().map(|target| target.repo).collect()).unwrap_or_default();
    let names: Vec<_> = repos.iter().map(ToString::to_string).collect();
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                                       ?18, ?19, ?20)
             ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            id.as_bytes(),
            at,
            act.category.as_str(),
            act.kind,
            act.team,
            spec.and_then(|spec| spec.project.as_ref()),
            actor_kind(envelope.actor.kind),
            envelope.actor.id,
            own,
            origin.and_then(|origin| origin.name.as_ref()),
            origin.and_then(|origin| origin.address).map(|address| address.to_string()),
            origin.and_then(|origin| origin.user_agent.as_ref()),
            (!names.is_empty()).then(|| serde_json::to_string(&names).unwrap_or_default()),
            spec.map(|spec| &spec.model),
            act.outcome,
            act.task.map(|task| *task.uuid().as_bytes()),
            act.about,
            i64::try_from(act.count).unwrap_or(i64::MAX),
            envelope.stream.as_str(),
            i64::try_from(envelope.position.0).unwrap_or(i64::MAX),
        ])?;
    if inserted > 0 {
        let mut statement = transaction.prepare_cached("INSERT OR IGNORE INTO audit_repos VALUES (?1, ?2, ?3, ?4)")?;
        for (repo, name) in repos.iter().zip(&names) {
            statement.execute(params![repo.path(), at, id.as_bytes(), name])?;
        }
    }
    Ok(())
}

/// Writes down where the tasks of a batch stand now.
pub(super) fn save(transaction: &Transaction<'_>, open: &OpenTasks) -> Result<(), rusqlite::Error> {
    let mut statement = transaction.prepare_cached("UPDATE audit SET outcome = ?2 WHERE id = ?1 AND outcome <> ?2")?;
    for task in open.all() {
        statement.execute((task.id.uuid().as_bytes(), task.status.as_str()))?;
    }
    Ok(())
}

const fn actor_kind(kind: ActorKind) -> &'static str {
    match kind {
        ActorKind::ApiKey => "api-key",
        ActorKind::Person => "person",
        ActorKind::System => "system",
    }
}

/// How the rows are reached: by the filter that leaves least, as far as that can be told beforehand. SQLite has no
/// figures to choose an index with; each of ours is already in the order of the page.
struct Way {
    from: String,
    clauses: Vec<&'static str>,
    values: Vec<Value>,
}

impl Way {
    fn by(index: &str, clauses: Vec<&'static str>, values: Vec<Value>) -> Self {
        Self { from: format!("audit a INDEXED BY {index}"), clauses, values }
    }

    fn of(filter: &AuditFilter) -> Self {
        let text = |text: &str| Value::Text(text.to_owned());
        if let Some(task) = filter.task {
            return Self::by("audit_by_task", vec!["a.task ="], vec![Value::Blob(task.uuid().as_bytes().to_vec())]);
        }
        if let Some(repo) = &filter.repo {
            let path = repo.split_once(':').map_or(repo.as_str(), |(_, path)| path);
            let from = "audit_repos r CROSS JOIN audit a ON a.id = r.id".to_owned();
            return Self { from, clauses: vec!["r.repo_path ="], values: vec![text(path)] };
        }
        if let Some(actor) = &filter.actor {
            return Self::by("audit_by_actor", vec!["a.actor ="], vec![text(actor)]);
        }
        let narrower = [
            (&filter.project, "a.project =", "audit_by_team_project", "audit_by_project"),
            (&filter.kind, "a.kind =", "audit_by_team_kind", "audit_by_kind"),
            (&filter.outcome, "a.outcome =", "audit_by_team_outcome", "audit_by_outcome"),
            (&filter.model, "a.model =", "audit_by_team_model", "audit_by_model"),
        ];
        let found = narrower.into_iter().find_map(|(value, clause, of_team, of_all)| {
            value.as_ref().map(|value| (text(value), clause, of_team, of_all))
        });
        match (&filter.team, found) {
            (Some(team), Some((value, clause, index, _))) => {
                Self::by(index, vec!["a.team =", clause], vec![text(team), value])
            }
            (None, Some((value, clause, _, index))) => Self::by(index, vec![clause], vec![value]),
            (Some(team), None) => Self::by("audit_by_team", vec!["a.team ="], vec![text(team)]),
            (None, None) => match filter.category {
                Some(category) => Self::by("audit_by_category", vec!["a.category ="], vec![text(category.as_str())]),
                None => Self::by("audit_by_time", Vec::new(), Vec::new()),
            },
        }
    }
}

const COLUMNS: &str = "a.id, a.at, a.category, a.kind, a.team, a.project, a.actor_kind, a.actor, a.own, a.name, \
                       a.address, a.user_agent, a.repos, a.model, a.outcome, a.task, a.about, a.count, a.stream, \
                       a.position";

fn row(row: &Row<'_>) -> Result<AuditRow, ReadModelError> {
    let odd = |what: &str| ReadModelError::Failed(format!("an audit row does not read: {what}"));
    let category = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
    let category = Category::ALL.into_iter().find(|known| known.as_str() == category);
    let kinds = [ActorKind::ApiKey, ActorKind::Person, ActorKind::System];
    let kind = row.get_ref(6)?.as_str().map_err(rusqlite::Error::from)?;
    let repos: Option<String> = row.get(12)?;
    Ok(AuditRow {
        id: Uuid::from_bytes(row.get(0)?),
        at: Timestamp::from_microsecond(row.get(1)?).map_err(|_| odd("its time"))?,
        category: category.ok_or_else(|| odd("its category"))?,
        kind: row.get(3)?,
        team: row.get(4)?,
        project: row.get(5)?,
        actor_kind: kinds.into_iter().find(|known| actor_kind(*known) == kind).ok_or_else(|| odd("its actor"))?,
        actor: row.get(7)?,
        own: row.get(8)?,
        name: row.get(9)?,
        address: row.get(10)?,
        user_agent: row.get(11)?,
        repos: match repos {
            Some(repos) => serde_json::from_str(&repos).map_err(|_| odd("its repositories"))?,
            None => Vec::new(),
        },
        model: row.get(13)?,
        outcome: row.get(14)?,
        task: row.get::<_, Option<[u8; 16]>>(15)?.map(|id| TaskId::from_uuid(Uuid::from_bytes(id))),
        about: row.get(16)?,
        count: row.get::<_, i64>(17)?.unsigned_abs(),
        stream: row.get(18)?,
        position: Position(row.get::<_, i64>(19)?.unsigned_abs()),
        resource: None,
    })
}

/// Whether the filters that the index does not hold admit the row.
fn admits(filter: &AuditFilter, row: &AuditRow) -> bool {
    let same = |wanted: &Option<String>, value: Option<&str>| wanted.is_none() || wanted.as_deref() == value;
    let repo = |wanted: &String| {
        row.repos.iter().any(|repo| match wanted.contains(':') {
            true => repo == wanted,
            false => repo.split_once(':').is_some_and(|(_, path)| path == wanted),
        })
    };
    same(&filter.team, row.team.as_deref())
        && same(&filter.project, row.project.as_deref())
        && same(&filter.actor, Some(&row.actor))
        && same(&filter.model, row.model.as_deref())
        && same(&filter.outcome, Some(&row.outcome))
        && same(&filter.kind, Some(&row.kind))
        && filter.category.is_none_or(|category| category == row.category)
        && filter.task.is_none_or(|task| Some(task) == row.task)
        && filter.repo.as_ref().is_none_or(repo)
}

pub(super) fn page(
    connection: &Connection,
    filter: &AuditFilter,
    after: Option<Cursor>,
    limit: usize,
) -> Result<AuditPage, ReadModelError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let Way { from, clauses, mut values } = Way::of(filter);
    let order = if from.starts_with("audit_repos") { "r" } else { "a" };
    let mut sql = format!("SELECT {COLUMNS} FROM {from} WHERE 1 = 1");
    // Writing to a String does not fail.
    for (number, clause) in (1..).zip(clauses) {
        let _ = write!(sql, " AND {clause} ?{number}");
    }
    if let Some(time) = filter.from {
        values.push(Value::Integer(time.as_microsecond()));
        let _ = write!(sql, " AND {order}.at >= ?{}", values.len());
    }
    if let Some(cursor) = Cursor::earlier(filter.to, after) {
        values.extend(cursor.values());
        let _ = write!(sql, " AND ({order}.at, {order}.id) < (?{}, ?{})", values.len() - 1, values.len());
    }
    // One more than is looked at tells whether there is another page.
    let _ = write!(sql, " ORDER BY {order}.at DESC, {order}.id DESC LIMIT {}", SCAN_ROWS + 1);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut found = statement.query(params_from_iter(values))?;
    let mut rows: Vec<AuditRow> = Vec::with_capacity(limit);
    let mut last = None;
    let mut next = None;
    let mut looked = 0;
    while let Some(read) = found.next()? {
        if rows.len() == limit || looked == SCAN_ROWS {
            next = last;
            break;
        }
        looked += 1;
        let read = row(read)?;
        last = Some(Cursor::new(read.at.as_microsecond(), read.id));
        // A repository that a task has twice comes twice.
        if admits(filter, &read) && rows.last().is_none_or(|before| before.id != read.id) {
            rows.push(read);
        }
    }
    for row in &mut rows {
        if let (Category::Task, Some(task)) = (row.category, row.task) {
            row.resource = super::tasks::find(connection, task)?.map(Box::new);
        }
    }
    Ok(AuditPage { rows, next })
}
