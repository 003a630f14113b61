//! Events: of one task, as a page or as a live stream, and of the whole log.

use std::str::FromStr;

use actix_web::http::header::{self, HeaderMap};
use actix_web::{HttpRequest, HttpResponse, web};
use orchestra_events::audience::{Audience, as_seen_by};
use orchestra_events::store::{Direction, Filter};
use orchestra_events::subscription::Subscription;
use orchestra_events::{Envelope, Position, Revision, StreamName, TaskId};
use serde::Serialize;
use utoipa::ToSchema;

use super::query::Parameters;
use super::tasks::visible;
use crate::App;
use crate::auth::Caller;
use crate::live::frames::Format;
use crate::live::stream::{Subject, respond};
use crate::problem::{Problem, ProblemBody};

/// Events on a page when the caller does not say.
pub const DEFAULT_PAGE: usize = 100;
/// Most events on a page.
pub const MAX_PAGE: usize = 500;
/// Most event types in a filter.
pub const MAX_TYPES: usize = 64;

/// A page of events.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventList {
    /// Oldest first.
    #[schema(value_type = Vec<super::openapi::Event>)]
    data: Vec<Envelope>,
    /// Pass it on as `after` for the next page; `null` when there is none.
    next_cursor: Option<String>,
}

fn accepts(request: &HttpRequest, media_type: &str) -> bool {
    let accepted = request.headers().get_all(header::ACCEPT).filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|list| list.split(','))
        .any(|part| part.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(media_type)))
}

/// The id of an event in a stream: a revision or a position. No store counts further than a signed number does.
struct EventNumber(u64);

impl FromStr for EventNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // Digits alone: a sign or a space is no id that was ever given out.
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|number| digits && *number <= i64::MAX as u64);
        number.map(Self).ok_or(())
    }
}

/// Where to go on: `Last-Event-ID` is what a client that was cut off sends, so it goes before `?after=`.
pub fn after(headers: &HeaderMap, query: &mut Parameters) -> Option<u64> {
    let asked = query.parsed::<EventNumber>("after", "the id of the last event seen").map(|number| number.0);
    let Some(last) = headers.get("last-event-id") else { return asked };
    let last = last.to_str().ok().and_then(|text| text.trim().parse::<EventNumber>().ok()).map(|number| number.0);
    if last.is_none() {
        query.fault("after", "the header Last-Event-ID is not the id of an event");
    }
    last
}

/// The events of a task.
///
/// With `Accept: text/event-stream`: its history, then what happens; `id:` is the revision, and `Last-Event-ID` or
/// `after` goes on after one. Otherwise a page of JSON.
#[utoipa::path(get, path = "/v1/tasks/{id}/events", tag = "events", operation_id = "getTaskEvents",
    params(("id" = String, Path),
        ("after" = Option<u64>, Query, description = "The revision of the last event seen"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "For pages only"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same as `after`, as browsers send it")),
    responses((status = 200, description = "Events", content((EventList = "application/json"), (String = "text/event-stream"))),
        (status = 404, description = "No such task, or another team's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn of_task(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let live = accepts(&request, "text/event-stream");
    let mut query = Parameters::of(&request)?;
    let after = after(request.headers(), &mut query).map(Revision);
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE);
    query.finish()?;
    let task = visible(&app, &caller, &id).await?;
    let stream = StreamName::task(task.id);
    if live {
        let subscription = Subscription::stream(app.store.clone(), stream, after);
        return respond(app, &caller, subscription, Subject::Task(task.id), Format::TaskEvents);
    }
    let from = after.map_or(Revision(0), |after| Revision(after.0.saturating_add(1)));
    let mut data = app.store.read_stream(&stream, Some(from), Direction::Forwards, limit).await?;
    data.truncate(limit);
    let last = data.last().map(|last| last.revision);
    // A page of large events ends early; whether there are more, the task's own revision tells.
    let next_cursor = last.filter(|last| *last < task.revision).map(|last| last.0.to_string());
    // From where somebody came is for the audit.
    let told = data.iter().map(|event| as_seen_by(event, Audience::Team)).collect::<Result<_, _>>();
    Ok(HttpResponse::Ok().json(EventList { data: told.map_err(Problem::internal)?, next_cursor }))
}

/// The whole log, as it grows: what a warehouse reads.
///
/// With `Accept: application/x-ndjson` one envelope per line, otherwise server-sent events. `id:` is the position. From where
/// an act came (`actor.origin`) is told to operators, and to a team of its own keys and people.
#[utoipa::path(get, path = "/v1/events", tag = "events", operation_id = "getEvents",
    params(("after" = Option<u64>, Query, description = "The position of the last event seen"),
        ("type" = Option<String>, Query, description = "Event types, separated by commas"),
        ("team" = Option<String>, Query), ("task" = Option<String>, Query),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same as `after`, as browsers send it")),
    responses((status = 200, description = "Events",
        content((String = "text/event-stream"), (String = "application/x-ndjson"))),
        (status = 404, description = "No such task or team, or another's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn of_log(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let format = if accepts(&request, "application/x-ndjson") { Format::Lines } else { Format::LogEvents };
    let mut query = Parameters::of(&request)?;
    let after = after(request.headers(), &mut query).map_or(Position::START, Position);
    let types: Vec<String> =
        query.text("type").map(|text| text.split(',').map(|kind| kind.trim().to_owned()).collect()).unwrap_or_default();
    if types.len() > MAX_TYPES {
        query.fault("type", format!("at most {MAX_TYPES} types"));
    }
    let team = query.text("team");
    let task = query.parsed::<TaskId>("task", "a task id such as task_01k…");
    query.finish()?;
    let stream = match task {
        Some(id) => Some(StreamName::task(visible(&app, &caller, &id.to_string()).await?.id)),
        None => None,
    };
    if task.is_none() {
        caller.require_whole_team("The log")?;
    }
    let Some(team) = caller.narrow(team) else {
        // Another team's events do not exist for this caller.
        return Err(Problem::no_such_team());
    };
    let filter = Filter { types, stream, ..Filter::everything() };
    let subscription = Subscription::all(app.store.clone(), after, filter);
    respond(app, &caller, subscription, Subject::Log(team), format)
}
