//! The audit: who did what, when, from where, on which repository, with which model, at what cost, and what became of it.

use std::collections::VecDeque;
use std::str::FromStr;

use actix_web::http::header;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use orchestra_events::audit::acts::Category;
use orchestra_events::projections::audit::MAX_PAGE;
use orchestra_events::projections::{AuditFilter, AuditPage, AuditRow, Cursor};
use orchestra_events::task::TaskResource;
use orchestra_events::{ActorKind, TaskId};
use serde::Serialize;
use utoipa::ToSchema;

use super::csv;
use super::query::Parameters;
use super::resource::Usd;
use crate::App;
use crate::auth::Caller;
use crate::problem::{Problem, ProblemBody};

/// Rows on a page when the caller does not say.
pub const DEFAULT_PAGE: usize = 50;

/// One row.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// The task's id, or the event's.
    id: String,
    /// When.
    #[schema(format = "date-time", value_type = String)]
    time: Timestamp,
    /// `task`, `act` or `refusal`.
    category: &'static str,
    /// `task`, or what was done: `key-issued`, `budget-set`, `access-denied` …
    kind: String,
    /// Who.
    actor: AuditActor,
    /// Whose it is; null for what concerns no team.
    team: Option<String>,
    project: Option<String>,
    /// What it is about in a few words: a key's name, a budget's scope, the route that was refused.
    about: Option<String>,
    /// How many acts of the same kind it stands for.
    count: u64,
    /// The task that it concerns.
    task: Option<String>,
    /// On which repositories.
    repos: Vec<String>,
    /// With which model.
    model: Option<String>,
    /// A task's status, `done`, or the code of a refusal.
    outcome: String,
    /// Why the task failed: the stable code.
    failure: Option<&'static str>,
    /// What the task has used; null where this is no task's row.
    usage: Option<AuditUsage>,
    pull_requests: Vec<String>,
    #[schema(format = "date-time", value_type = Option<String>)]
    started_at: Option<Timestamp>,
    #[schema(format = "date-time", value_type = Option<String>)]
    finished_at: Option<Timestamp>,
    /// From the request to its end, in milliseconds.
    duration_ms: Option<u64>,
    /// The stream of its event.
    stream: String,
    /// The place of its event in the log.
    position: u64,
}

/// Who, and from where. What is not the caller's to see is null.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditActor {
    /// `api-key`, `person` or `system`.
    kind: &'static str,
    /// The key's or the person's id.
    id: String,
    /// What it was called then.
    name: Option<String>,
    /// From where.
    address: Option<String>,
    /// With which program, by its own word.
    user_agent: Option<String>,
}

/// What a task has used.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditUsage {
    input_tokens: u64,
    output_tokens: u64,
    cache_read_tokens: u64,
    cache_write_tokens: u64,
    cost_usd: Usd,
    billable_usd: Usd,
}

/// A page of rows.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditList {
    /// Newest first. May be shorter than `limit`, or empty, where there is more to look through.
    data: Vec<AuditEntry>,
    /// Pass it on as `cursor` for the next page; null when there is none.
    next_cursor: Option<String>,
}

impl AuditEntry {
    /// The row as this caller may see it.
    pub fn new(row: AuditRow, caller: &Caller) -> Self {
        // Where an operator, or another team's person, came from is not this team's to know.
        let shown = row.own || caller.is_admin();
        let task = row.resource.as_deref();
        let milliseconds = |task: &TaskResource| {
            let taken = task.finished_at?.duration_since(task.created_at);
            u64::try_from(taken.as_millis()).ok()
        };
        Self {
            id: match (row.category, row.task) {
                (Category::Task, Some(task)) => task.to_string(),
                (Category::Task | Category::Act | Category::Refusal, _) => row.id.to_string(),
            },
            time: row.at,
            category: row.category.as_str(),
            kind: row.kind,
            actor: AuditActor {
                kind: match row.actor_kind {
                    ActorKind::ApiKey => "api-key",
                    ActorKind::Person => "person",
                    ActorKind::System => "system",
                },
                id: row.actor,
                name: row.name.filter(|_| shown),
                address: row.address.filter(|_| shown),
                user_agent: row.user_agent.filter(|_| shown),
            },
            team: row.team,
            project: row.project,
            about: row.about,
            count: row.count,
            task: row.task.map(|task| task.to_string()),
            repos: row.repos,
            model: row.model,
            outcome: row.outcome,
            failure: task.and_then(|task| task.failure.as_ref()).map(|(failure, _)| failure.code.as_str()),
            usage: task.map(|task| AuditUsage {
                input_tokens: task.usage.input_tokens,
                output_tokens: task.usage.output_tokens,
                cache_read_tokens: task.usage.cache_read_tokens,
                cache_write_tokens: task.usage.cache_write_tokens(),
                cost_usd: Usd(task.cost),
                billable_usd: Usd(task.cost.saturating_sub(task.refunded)),
            }),
            pull_requests: task
                .map(|task| task.pull_requests.iter().map(|pull| pull.url.clone()).collect())
                .unwrap_or_default(),
            started_at: task.and_then(|task| task.started_at),
            finished_at: task.and_then(|task| task.finished_at),
            duration_ms: task.and_then(milliseconds),
            stream: row.stream,
            position: row.position.0,
        }
    }

    fn csv(&self) -> String {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let time = |value: Option<Timestamp>| value.map(|at| at.to_string()).unwrap_or_default();
        let usage = |pick: fn(&AuditUsage) -> String| self.usage.as_ref().map(pick).unwrap_or_default();
        csv::line([
            self.time.to_string(),
            self.category.to_owned(),
            self.kind.clone(),
            self.id.clone(),
            self.actor.kind.to_owned(),
            self.actor.id.clone(),
            text(&self.actor.name),
            text(&self.actor.address),
            text(&self.actor.user_agent),
            text(&self.team),
            text(&self.project),
            text(&self.about),
            self.count.to_string(),
            text(&self.task),
            self.repos.join(" "),
            text(&self.model),
            self.outcome.clone(),
            self.failure.unwrap_or_default().to_owned(),
            usage(|usage| usage.input_tokens.to_string()),
            usage(|usage| usage.output_tokens.to_string()),
            usage(|usage| usage.cache_read_tokens.to_string()),
            usage(|usage| usage.cache_write_tokens.to_string()),
            usage(|usage| usage.cost_usd.0.to_string()),
            usage(|usage| usage.billable_usd.0.to_string()),
            self.pull_requests.join(" "),
            time(self.started_at),
            time(self.finished_at),
            self.duration_ms.map(|milliseconds| milliseconds.to_string()).unwrap_or_default(),
            self.position.to_string(),
        ])
    }
}

/// The first line of the CSV.
const COLUMNS: [&str; 29] = [
    "time",
    "category",
    "kind",
    "id",
    "actorKind",
    "actorId",
    "actorName",
    "address",
    "userAgent",
    "team",
    "project",
    "about",
    "count",
    "task",
    "repos",
    "model",
    "outcome",
    "failure",
    "inputTokens",
    "outputTokens",
    "cacheReadTokens",
    "cacheWriteTokens",
    "costUsd",
    "billableUsd",
    "pullRequests",
    "startedAt",
    "finishedAt",
    "durationMs",
    "position",
];

/// A time, or a day.
enum Moment {
    Time(Timestamp),
    Day(Date),
}

impl FromStr for Moment {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        match text.parse::<Timestamp>() {
            Ok(time) => Ok(Self::Time(time)),
            Err(_) => text.parse().map(Self::Day),
        }
    }
}

impl Moment {
    /// The time itself, or the first moment of the day (UTC).
    fn begin(self) -> Option<Timestamp> {
        match self {
            Self::Time(time) => Some(time),
            Self::Day(day) => Some(day.to_zoned(TimeZone::UTC).ok()?.timestamp()),
        }
    }

    /// The time itself, or the first moment after the day (UTC).
    fn end(self) -> Option<Timestamp> {
        match self {
            Self::Time(time) => Some(time),
            Self::Day(day) => {
                let begin = day.to_zoned(TimeZone::UTC).ok()?.timestamp();
                begin.checked_add(SignedDuration::from_hours(24)).ok()
            }
        }
    }
}

/// The filters of a request, taken out of its query. `team` is as asked for, not yet narrowed to the caller's own.
pub fn filter(query: &mut Parameters) -> AuditFilter {
    let expected = "a time such as 2026-11-22T10:00:00Z, or a day such as 2026-11-22";
    let known = |text: &str| Category::ALL.into_iter().find(|category| category.as_str() == text);
    let category = query.one_of("category", known, "task, act, refusal");
    AuditFilter {
        team: query.text("team"),
        project: query.text("project"),
        actor: query.text("actor"),
        repo: query.text("repo"),
        model: query.text("model"),
        outcome: query.text("outcome"),
        kind: query.text("kind"),
        category,
        task: query.parsed::<TaskId>("task", "a task id such as task_01k…"),
        from: query.parsed::<Moment>("from", expected).and_then(Moment::begin),
        to: query.parsed::<Moment>("to", expected).and_then(Moment::end),
    }
}

/// The rows that this caller may see.
pub async fn page(
    app: &App,
    caller: &Caller,
    filter: AuditFilter,
    cursor: Option<Cursor>,
    limit: usize,
) -> Result<AuditPage, Problem> {
    let Some(team) = caller.narrow(filter.team.clone()) else {
        // Another team's acts do not exist for this caller.
        return Ok(AuditPage { rows: Vec::new(), next: None });
    };
    app.caught_up().await?;
    Ok(app.read.audit(AuditFilter { team, ..filter }, cursor, limit).await?)
}

/// Lists tasks, acts and refused acts, newest first.
///
/// One row per task, which changes until the task has ended, one per act of a key or a person, and one for refusals of a
/// kind. A page may be shorter than `limit`; go on until `nextCursor` is null. As CSV without `limit`: everything.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", operation_id = "listAudit",
    params(
        ("team" = Option<String>, Query), ("project" = Option<String>, Query),
        ("actor" = Option<String>, Query, description = "The id of a key or a person"),
        ("repo" = Option<String>, Query, description = "`forge:owner/name`, or `owner/name` on any forge"),
        ("model" = Option<String>, Query),
        ("outcome" = Option<String>, Query, description = "A task's status, `done`, or the code of a refusal"),
        ("kind" = Option<String>, Query, description = "`task`, or what was done, such as `key-issued`"),
        ("category" = Option<String>, Query, description = "`task`, `act` or `refusal`"),
        ("task" = Option<String>, Query, description = "What concerns this task"),
        ("from" = Option<String>, Query, description = "A time, or a day (UTC); inclusive"),
        ("to" = Option<String>, Query, description = "A time, exclusive, or a day (UTC), inclusive"),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200),
        ("format" = Option<String>, Query, description = "`csv`; the same as `Accept: text/csv`")),
    responses((status = 200, description = "A page of rows", content((AuditList = "application/json"), (String = "text/csv"))),
        (status = 400, description = "Parameters that do not do", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn list(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let filter = filter(&mut query);
    let cursor = query.parsed::<Cursor>("cursor", "the nextCursor of the page before");
    let limited = request.query_string().split('&').any(|part| part.starts_with("limit="));
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE);
    let format = query.text("format");
    if !matches!(format.as_deref(), None | Some("csv" | "json")) {
        query.fault("format", "expected json or csv");
    }
    query.finish()?;
    let accepts = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let as_csv = match format.as_deref() {
        Some(format) => format == "csv",
        None => accepts.is_some_and(|accept| accept.contains("text/csv")),
    };
    if as_csv && !limited {
        return everything(app, caller, filter, cursor).await;
    }
    let page = page(&app, &caller, filter, cursor, limit).await?;
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    let data: Vec<_> = page.rows.into_iter().map(|row| AuditEntry::new(row, &caller)).collect();
    if as_csv {
        let text: String = std::iter::once(csv::line(COLUMNS)).chain(data.iter().map(AuditEntry::csv)).collect();
        return Ok(HttpResponse::Ok().content_type("text/csv; charset=utf-8").body(text));
    }
    Ok(HttpResponse::Ok().json(AuditList { data, next_cursor }))
}

/// What is left to send of a whole list.
struct Rest {
    app: web::Data<App>,
    caller: Caller,
    filter: AuditFilter,
    /// `None`: the last page is on its way.
    next: Option<Option<Cursor>>,
    ready: VecDeque<Bytes>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

/// Every row as CSV, page by page: a year of it takes no more memory than a day.
async fn everything(
    app: web::Data<App>,
    caller: Caller,
    filter: AuditFilter,
    cursor: Option<Cursor>,
) -> Result<HttpResponse, Problem> {
    let permit = app.stream_permit()?;
    // Before the first byte, so that what cannot be read is still a problem.
    let first = page(&app, &caller, filter.clone(), cursor, MAX_PAGE).await?;
    let lines = |caller: &Caller, page: AuditPage| -> Bytes {
        let lines = page.rows.into_iter().map(|row| AuditEntry::new(row, caller).csv());
        lines.collect::<String>().into()
    };
    let next = first.next.map(Some);
    let ready = VecDeque::from([csv::line(COLUMNS).into(), lines(&caller, first)]);
    let rest = Rest { app, caller, filter, next, ready, _permit: permit };
    let pieces = stream::unfold(rest, move |mut rest| async move {
        loop {
            if let Some(ready) = rest.ready.pop_front() {
                if ready.is_empty() {
                    continue;
                }
                return Some((Ok::<_, actix_web::Error>(ready), rest));
            }
            let cursor = rest.next.take()?;
            // A key that was revoked meanwhile reads no further, and is not told that this was all.
            let Some(caller) = rest.app.standing(&rest.caller) else {
                return Some((Err(Problem::unknown_key().into()), rest));
            };
            match page(&rest.app, &caller, rest.filter.clone(), cursor, MAX_PAGE).await {
                Ok(page) => {
                    rest.next = page.next.map(Some);
                    rest.ready.push_back(lines(&caller, page));
                }
                // The connection breaks off: an end would look like the end of the list.
                Err(problem) => return Some((Err(problem.into()), rest)),
            }
        }
    });
    Ok(HttpResponse::Ok().content_type("text/csv; charset=utf-8").streaming(pieces))
}
