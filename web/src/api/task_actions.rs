//! What can be asked of a task that exists: cancel, retry, steer, new credentials, its diff, to forget its words.

use actix_web::{HttpRequest, HttpResponse, web};
use orchestra_actors::Erased;

use super::fields::{Faults, Object};
use super::resource::TaskView;
use super::tasks::visible;
use super::{body, rules};
use crate::App;
use crate::auth::Caller;
use crate::problem::{Problem, ProblemBody};

async fn as_it_stands(app: &App, caller: &Caller, id: &str) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Accepted().json(TaskView::from(visible(app, caller, id).await?)))
}

/// Asks for a task to be stopped.
#[utoipa::path(post, path = "/v1/tasks/{id}/cancel", tag = "tasks", operation_id = "cancelTask",
    params(("id" = String, Path)), request_body(content = Option<super::openapi::CancelRequest>, example = json!({"reason": "not needed any more"})),
    responses((status = 202, description = "It is being stopped, or was already", body = TaskView),
        (status = 409, description = "It is over", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn cancel(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let task = visible(&app, &caller, &id).await?;
    let reason = body::reason(&request, payload).await?;
    app.tasks.cancel(task.id, reason, caller.actor_for(&task.spec.team)).await?;
    as_it_stands(&app, &caller, &id).await
}

/// Starts a new attempt at a task that failed or was cancelled. New credentials may come along.
#[utoipa::path(post, path = "/v1/tasks/{id}/retry", tag = "tasks", operation_id = "retryTask",
    params(("id" = String, Path)), request_body(content = Option<super::openapi::RetryRequest>),
    responses((status = 202, description = "It is queued again", body = TaskView),
        (status = 409, description = "It is still going on, or has succeeded", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "Too many tasks of the key or team are open, or too many requests came", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn retry(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let task = visible(&app, &caller, &id).await?;
    let given = body::optional_credentials(&request, payload).await?;
    app.tasks.retry(task.id, given, caller.actor_for(&task.spec.team)).await?;
    as_it_stands(&app, &caller, &id).await
}

/// Speaks to the running agent.
#[utoipa::path(post, path = "/v1/tasks/{id}/messages", tag = "tasks", operation_id = "steerTask",
    params(("id" = String, Path)), request_body(content = super::openapi::MessageRequest, example = json!({"message": "Leave the tests as they are."})),
    responses((status = 202, description = "The agent hears it before its next step", body = TaskView),
        (status = 409, description = "No agent is running", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn message(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let task = visible(&app, &caller, &id).await?;
    let raw = body::json(&request, payload).await?;
    let mut faults = Faults::default();
    let words = Object::read(&raw, "", &mut faults).and_then(|mut object| {
        let before = faults.count();
        let words = object.text("message", rules::message, &mut faults);
        if words.is_none() && faults.count() == before {
            faults.add("/message", "is required: what should the agent hear?");
        }
        object.finish(&mut faults);
        words
    });
    faults.none()?;
    let words = words.ok_or_else(|| Problem::internal("a message without faults is missing"))?;
    app.tasks.steer(task.id, words, caller.actor_for(&task.spec.team)).await?;
    as_it_stands(&app, &caller, &id).await
}

/// Replaces the secrets of a task. They are held in memory only.
#[utoipa::path(put, path = "/v1/tasks/{id}/credentials", tag = "tasks", operation_id = "putTaskCredentials",
    params(("id" = String, Path)), request_body(content = super::openapi::CredentialsRequest, example = json!({"git": {"token": "ghp_example"}})),
    responses((status = 202, description = "The task goes on with them", body = TaskView),
        (status = 409, description = "It is over", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn credentials(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let task = visible(&app, &caller, &id).await?;
    let given = body::credentials(&request, payload).await?;
    app.tasks.supply_credentials(task.id, given, caller.actor_for(&task.spec.team)).await?;
    as_it_stands(&app, &caller, &id).await
}

/// Erases what was asked for, said and written in a task that has ended: prompt, messages, inputs and outputs of tools,
/// diffs. Who, when, where, which model, how much and how it ended stay, and so does the proof that nothing else was changed.
///
/// It cannot be undone, and a repeat is harmless. `204` once no file of the server holds the words; `202` if that goes
/// on by itself, as after a restart.
#[utoipa::path(delete, path = "/v1/tasks/{id}/content", tag = "tasks", operation_id = "eraseTaskContent",
    params(("id" = String, Path)),
    responses((status = 204, description = "It is gone"), (status = 202, description = "It is promised, and goes on", body = TaskView),
        (status = 409, description = "The task is still going on", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn erase(app: web::Data<App>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let task = visible(&app, &caller, &id).await?;
    match app.tasks.erase_content(task.id, caller.actor_for(&task.spec.team)).await? {
        Erased::Done => Ok(HttpResponse::NoContent().finish()),
        Erased::UnderWay => as_it_stands(&app, &caller, &id).await,
    }
}

/// The unified diff of what was, or would be, pushed. Empty when there is none yet.
#[utoipa::path(get, path = "/v1/tasks/{id}/diff", tag = "tasks", operation_id = "getTaskDiff",
    params(("id" = String, Path)),
    responses((status = 200, description = "The diff", content_type = "text/x-diff", body = String),
        (status = 409, description = "It was erased", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn diff(app: web::Data<App>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let task = visible(&app, &caller, &id).await?;
    let diff = app.tasks.diff(task.id).await?;
    Ok(HttpResponse::Ok().content_type("text/x-diff; charset=utf-8").body(diff))
}
