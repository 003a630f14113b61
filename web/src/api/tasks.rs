//! Submitting, listing and reading tasks.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::LocalBoxFuture;
use jiff::Timestamp;
use orchestra_actors::service::Idempotency;
use orchestra_events::TaskId;
use orchestra_events::projections::tasks::MAX_PAGE;
use orchestra_events::projections::{Cursor, TaskFilter};
use orchestra_events::task::{TaskResource, TaskStatus};
use tracing::Instrument as _;

use super::query::Parameters;
use super::repeat::Subject;
use super::resource::{TaskList, TaskView};
use super::{body, payload};
use crate::App;
use crate::auth::Caller;
use crate::problem::{Field, Problem, ProblemBody};

/// Tasks on a page when the caller does not say.
pub const DEFAULT_PAGE: usize = 50;
/// Longest `Idempotency-Key`, in bytes.
pub const MAX_IDEMPOTENCY_KEY: usize = 255;

/// The id in a path. One that is no id names nothing, so it is not found.
pub fn task_id(text: &str) -> Result<TaskId, Problem> {
    text.parse().map_err(|_| Problem::no_such_task())
}

/// A task that this caller may see, with everything that happened to it before this was called.
pub async fn visible(app: &App, caller: &Caller, id: &str) -> Result<TaskResource, Problem> {
    let id = task_id(id)?;
    app.caught_up().await?;
    let task = app.read.task(id).await?.ok_or_else(Problem::no_such_task)?;
    if caller.sees_task(&task.spec) { Ok(task) } else { Err(Problem::no_such_task()) }
}

/// The task as a repeat of a request about it sees it.
pub fn show(
    app: web::Data<App>,
    caller: Caller,
    subject: Subject,
) -> LocalBoxFuture<'static, Result<HttpResponse, Problem>> {
    Box::pin(async move { Ok(HttpResponse::Ok().json(TaskView::from(visible(&app, &caller, &subject.id).await?))) })
}

pub(super) fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let Some(value) = request.headers().get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    // `to_str` lets tabs pass.
    if (1..=MAX_IDEMPOTENCY_KEY).contains(&text.len()) && !text.contains('\t') {
        return Ok(Some(text.to_owned()));
    }
    let detail = format!("the header Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters");
    Err(Problem::invalid(vec![Field { pointer: String::new(), detail }]))
}

/// Submits a task.
///
/// Answers as soon as the task is durable; follow `links.events` to see what becomes of it. With an `Idempotency-Key`
/// a repeat of the same request returns the task that the first one made.
#[utoipa::path(post, path = "/v1/tasks", tag = "tasks", operation_id = "createTask",
    request_body(content = super::openapi::TaskRequest, example = json!({
        "repo": "acme/api", "task": "Bump terraform-aws-provider from 5.x to 6.x; update breaking calls",
        "model": "claude-sonnet-4-6", "team": "platform", "budget": {"maxUsd": 2.00},
    })),
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeat of this request do nothing new")),
    responses(
        (status = 202, description = "Accepted", body = TaskView, headers(("Location" = String, description = "The task"))),
        (status = 402, description = "A budget above it is used up", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "Too many tasks of the key or team are open, or too many requests came", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Fields that do not do, or a reused Idempotency-Key", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create(
    app: web::Data<App>,
    caller: Caller,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let key = idempotency_key(&request)?;
    let mut new = payload::new_task(&body::json(&request, payload).await?, &caller)?;
    new.idempotency =
        key.map(|key| Idempotency { owner: caller.who.to_string(), key, request_hash: payload::request_hash(&new) });
    let actor = caller.actor_for(&new.team);
    let submitted = app.tasks.submit(new, actor).instrument(tracing::info_span!("submit")).await?;
    let task = TaskView::from(submitted.task);
    Ok(HttpResponse::Accepted().insert_header((header::LOCATION, task.path().to_owned())).json(task))
}

/// Lists tasks, newest first.
#[utoipa::path(get, path = "/v1/tasks", tag = "tasks", operation_id = "listTasks",
    params(
        ("team" = Option<String>, Query), ("project" = Option<String>, Query),
        ("status" = Option<super::openapi::Status>, Query),
        ("repo" = Option<String>, Query, description = "`forge:owner/name`, or `owner/name` on any forge"),
        ("model" = Option<String>, Query), ("customer" = Option<String>, Query), ("campaign" = Option<String>, Query),
        ("createdAfter" = Option<String>, Query, format = "date-time"),
        ("createdBefore" = Option<String>, Query, format = "date-time"),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200),
    ),
    responses((status = 200, description = "A page of tasks", body = TaskList)))]
pub async fn list(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let team = query.text("team");
    let known = TaskStatus::ALL.map(TaskStatus::as_str).join(", ");
    let status =
        query.one_of("status", |text| TaskStatus::ALL.into_iter().find(|status| status.as_str() == text), &known);
    let time = "a time such as 2026-11-22T10:00:00Z";
    let filter = TaskFilter {
        team: team.clone(),
        project: query.text("project"),
        status,
        repo: query.text("repo"),
        model: query.text("model"),
        customer: query.text("customer"),
        campaign: query.text("campaign"),
        created_after: query.parsed::<Timestamp>("createdAfter", time),
        created_before: query.parsed::<Timestamp>("createdBefore", time),
        bounds: (*caller.bounds).clone(),
    };
    let cursor = query.parsed::<Cursor>("cursor", "the nextCursor of the page before");
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE);
    query.finish()?;
    let Some(team) = caller.narrow(team) else {
        // Another team's tasks do not exist for this caller.
        return Ok(HttpResponse::Ok().json(TaskList { data: Vec::new(), next_cursor: None }));
    };
    app.caught_up().await?;
    let page = app.read.tasks(TaskFilter { team, ..filter }, cursor, limit).await?;
    Ok(HttpResponse::Ok().json(TaskList {
        data: page.tasks.into_iter().map(TaskView::from).collect(),
        next_cursor: page.next.map(|cursor| cursor.to_string()),
    }))
}

/// Reads a task.
#[utoipa::path(get, path = "/v1/tasks/{id}", tag = "tasks", operation_id = "getTask",
    params(("id" = String, Path)),
    responses((status = 200, description = "The task", body = TaskView),
        (status = 404, description = "No such task, or another team's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn get(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    Parameters::of(&request)?.finish()?;
    Ok(HttpResponse::Ok().json(TaskView::from(visible(&app, &caller, &id).await?)))
}
