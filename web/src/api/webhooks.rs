//! Webhooks: made, listed, read, changed, tested, rotated, replayed and removed, and what became of their messages.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::LocalBoxFuture;
use orchestra_actors::NewWebhook;
use orchestra_actors::service::Idempotency;
use orchestra_events::key::{Bounds, Scope};
use orchestra_events::projections::tasks::MAX_PAGE;
use orchestra_events::projections::{Cursor, DeliveryOutcome, WebhookRow};
use orchestra_events::webhook::command::{DEFAULT_OVERLAP, MAX_OVERLAP};
use orchestra_events::webhook::event::{MAX_DESCRIPTION, MAX_FILTERED, MAX_PATTERNS, MAX_URL};
use orchestra_events::webhook::{MessageId, Pattern, WebhookSpec};
use orchestra_events::{Actor, Position, WebhookId};
use secrecy::ExposeSecret as _;
use sha2::{Digest, Sha256};

use super::fields::{Faults, Object};
use super::query::Parameters;
use super::repeat::Subject;
use super::tasks::{DEFAULT_PAGE, idempotency_key};
use super::webhook_resource::{DeliveryList, DeliveryView, NewWebhookView, WebhookList, WebhookSecret, WebhookView};
use super::{body, rules};
use crate::App;
use crate::auth::Caller;
use crate::problem::{Code, Field, Problem, ProblemBody};

/// The largest position that is taken.
const MAX_POSITION: u64 = i64::MAX.unsigned_abs();

/// Whether a webhook exists for this caller: it is of their team, and is told nothing outside their bounds.
pub fn is_theirs(caller: &Caller, spec: &WebhookSpec) -> bool {
    let of_team = spec.team.as_ref().map_or(caller.is_admin(), |team| caller.sees(team));
    of_team && is_within(caller, spec)
}

/// Whether it is told nothing outside a caller's bounds. What is sent cannot be narrowed down to task types, repositories
/// or models: who is bound to those has no webhooks.
fn is_within(caller: &Caller, spec: &WebhookSpec) -> bool {
    let Bounds { projects, environments, task_types, repos, models, networks: _ } = &*caller.bounds;
    let inside = |told: &[String], allowed: &[String]| {
        allowed.is_empty() || (!told.is_empty() && told.iter().all(|name| allowed.contains(name)))
    };
    let narrower = !task_types.is_empty() || !repos.is_empty() || !models.is_empty();
    !narrower && inside(&spec.projects, projects) && inside(&spec.environments, environments)
}

/// What a caller's bounds have to say about a webhook they want.
pub fn check_bounds(caller: &Caller, spec: &WebhookSpec) -> Result<(), Problem> {
    if is_within(caller, spec) {
        return Ok(());
    }
    let detail =
        "reaches further than the key; name its own projects and environments, and use a key that is bound to \
        nothing else"
            .to_owned();
    Err(Problem::invalid(vec![Field { pointer: String::new(), detail }]))
}

/// A webhook that this caller may see.
pub async fn visible(app: &App, caller: &Caller, id: &str) -> Result<WebhookRow, Problem> {
    let id: WebhookId = id.parse().map_err(|_| Problem::no_such_webhook())?;
    app.caught_up().await?;
    let row = app.read.webhook(id).await?.ok_or_else(Problem::no_such_webhook)?;
    if is_theirs(caller, &row.spec) { Ok(row) } else { Err(Problem::no_such_webhook()) }
}

/// Refuses to have something sent, or to change to where, on the word of somebody who may not read it themselves.
pub fn check_reading(caller: &Caller, spec: &WebhookSpec) -> Result<(), Problem> {
    if spec.events.iter().any(Pattern::is_administrative) { caller.require(Scope::AuditRead) } else { Ok(()) }
}

/// Who the caller is in an event about a webhook of this team.
pub fn actor(caller: &Caller, team: Option<&str>) -> Actor {
    team.map_or_else(|| caller.actor(), |team| caller.actor_for(team))
}

async fn as_it_stands(app: &App, caller: &Caller, id: &str) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(WebhookView::from(visible(app, caller, id).await?)))
}

/// The webhook as a repeat of a request about it sees it.
pub fn show(
    app: web::Data<App>,
    caller: Caller,
    subject: Subject,
) -> LocalBoxFuture<'static, Result<HttpResponse, Problem>> {
    Box::pin(async move { as_it_stands(&app, &caller, &subject.id).await })
}

/// What a repeat of the request for a new secret sees of it.
pub fn show_secret(
    app: web::Data<App>,
    caller: Caller,
    subject: Subject,
) -> LocalBoxFuture<'static, Result<HttpResponse, Problem>> {
    Box::pin(async move {
        let previous_secret_until =
            visible(&app, &caller, &subject.id).await?.previous_until.map(|time| time.to_string());
        Ok(HttpResponse::Ok().json(WebhookSecret { secret: None, previous_secret_until }))
    })
}

/// What a repeat of a test is told: it was sent, and what came of it was in the first answer alone.
pub fn show_test(
    app: web::Data<App>,
    caller: Caller,
    subject: Subject,
) -> LocalBoxFuture<'static, Result<HttpResponse, Problem>> {
    Box::pin(async move {
        visible(&app, &caller, &subject.id).await?;
        let detail = "This test was sent once already, and what came of it was in the first answer. For another test, use \
                      another Idempotency-Key.";
        Err(Problem::new(Code::Conflict, detail))
    })
}

fn url(text: &str) -> Result<(), String> {
    // Where it leads is the service's to say.
    if (1..=MAX_URL).contains(&text.len()) { Ok(()) } else { Err(format!("expected 1 to {MAX_URL} bytes")) }
}

fn description(text: &str) -> Result<(), String> {
    let fits = (1..=MAX_DESCRIPTION).contains(&text.len()) && !text.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(format!("expected 1 to {MAX_DESCRIPTION} bytes without control characters")) }
}

/// The patterns in a list of texts, those that the caller may ask for.
pub fn patterns(texts: &[String], caller: &Caller) -> Result<Vec<Pattern>, (Option<usize>, String)> {
    if texts.is_empty() || texts.len() > MAX_PATTERNS {
        return Err((None, format!("expected 1 to {MAX_PATTERNS} event types")));
    }
    let mut patterns: Vec<Pattern> = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let pattern: Pattern = text.parse().map_err(|error| (Some(index), format!("{error}")))?;
        if pattern.is_administrative() && !caller.may(Scope::AuditRead) {
            return Err((Some(index), format!("is for keys with the scope `{}`", Scope::AuditRead)));
        }
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    Ok(patterns)
}

fn texts(object: &mut Object, name: &'static str, faults: &mut Faults) -> Option<Vec<String>> {
    let raw = object.take(name, faults)?;
    let texts = serde_json::from_str::<Vec<String>>(raw.get());
    if texts.is_err() {
        faults.add(object.at(name), "expected a list of texts");
    }
    texts.ok()
}

fn read_patterns(object: &mut Object, caller: &Caller, faults: &mut Faults) -> Option<Vec<Pattern>> {
    let texts = texts(object, "events", faults)?;
    match patterns(&texts, caller) {
        Ok(patterns) => Some(patterns),
        Err((index, detail)) => {
            let pointer = object.at("events");
            faults.add(index.map_or_else(|| pointer.clone(), |index| format!("{pointer}/{index}")), detail);
            None
        }
    }
}

fn names(object: &mut Object, name: &'static str, faults: &mut Faults) -> Option<Vec<String>> {
    let texts = texts(object, name, faults)?;
    let pointer = object.at(name);
    if texts.len() > MAX_FILTERED {
        faults.add(pointer, format!("expected at most {MAX_FILTERED} names"));
        return None;
    }
    for (index, text) in texts.iter().enumerate() {
        if let Err(detail) = rules::name(text) {
            faults.add(format!("{pointer}/{index}"), detail);
        }
    }
    Some(texts.into_iter().collect::<BTreeSet<_>>().into_iter().collect())
}

/// Reads what a webhook is for.
fn new_spec(mut object: Object, caller: &Caller, faults: &mut Faults) -> Option<WebhookSpec> {
    let before = faults.count();
    let asked = object.text("team", rules::name, faults);
    let team = match (caller.is_admin(), &caller.team) {
        (true, _) => asked,
        (false, Some(own)) => {
            if asked.as_ref().is_some_and(|asked| asked != own) {
                faults.add(object.at("team"), "is not the key's own team; leave it out");
            }
            Some(own.clone())
        }
        (false, None) => {
            faults.add(object.at("team"), "is none that this key acts for; use a team's key");
            None
        }
    };
    let url = object.text("url", url, faults);
    let events = read_patterns(&mut object, caller, faults);
    let spec = WebhookSpec {
        team,
        url: url.clone().unwrap_or_default(),
        events: events.clone().unwrap_or_default(),
        // What is left out is as the key's own.
        projects: names(&mut object, "projects", faults).unwrap_or_else(|| caller.bounds.projects.clone()),
        environments: names(&mut object, "environments", faults).unwrap_or_else(|| caller.bounds.environments.clone()),
        description: object.text("description", description, faults),
    };
    if faults.count() == before {
        for (there, name, what) in
            [(url.is_some(), "url", "where to?"), (events.is_some(), "events", "of what? `task.*`, for example")]
        {
            if !there {
                faults.add(object.at(name), format!("is required: {what}"));
            }
        }
    }
    object.finish(faults);
    Some(spec)
}

fn request_hash(spec: &WebhookSpec) -> Result<String, Problem> {
    let text = serde_json::to_string(spec).map_err(Problem::internal)?;
    Ok(Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

/// Makes a webhook: what happens from now on is sent to its URL, signed after Standard Webhooks.
///
/// The answer holds its secret, which is not shown again. With an `Idempotency-Key` a repeat of the same request returns
/// the webhook that the first one made, with `null` for its secret.
#[utoipa::path(post, path = "/v1/webhooks", tag = "webhooks", operation_id = "createWebhook",
    request_body(content = super::webhook_resource::WebhookRequest),
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeat of this request do nothing new")),
    responses(
        (status = 201, description = "The webhook, with its secret", body = NewWebhookView, headers(("Location" = String, description = "The webhook"))),
        (status = 422, description = "Fields that do not do, or a reused Idempotency-Key", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create(
    app: web::Data<App>,
    caller: Caller,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let key = idempotency_key(&request)?;
    let raw = body::json(&request, payload).await?;
    let mut faults = Faults::default();
    let spec = Object::read(&raw, "", &mut faults).and_then(|object| new_spec(object, &caller, &mut faults));
    faults.none()?;
    let spec = spec.ok_or_else(|| Problem::internal("a webhook without faults is missing"))?;
    check_bounds(&caller, &spec)?;
    let request_hash = request_hash(&spec)?;
    let idempotency = key.map(|key| Idempotency { owner: caller.who.to_string(), key, request_hash });
    let actor = actor(&caller, spec.team.as_deref());
    let made = app.webhooks()?.create_webhook(NewWebhook { spec, idempotency }, actor).await?;
    let webhook = WebhookView::from(visible(&app, &caller, &made.id.to_string()).await?);
    let secret = made.secret.map(|secret| secret.expose_secret().to_owned());
    Ok(HttpResponse::Created()
        .insert_header((header::LOCATION, format!("/v1/webhooks/{}", made.id)))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(NewWebhookView { secret, webhook }))
}

/// Lists webhooks, newest first.
#[utoipa::path(get, path = "/v1/webhooks", tag = "webhooks", operation_id = "listWebhooks",
    params(
        ("team" = Option<String>, Query),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200),
    ),
    responses((status = 200, description = "A page of webhooks", body = WebhookList)))]
pub async fn list(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let team = query.text("team");
    let cursor = query.parsed::<Cursor>("cursor", "the nextCursor of the page before");
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE);
    query.finish()?;
    let Some(team) = caller.narrow(team) else {
        // Another team's webhooks do not exist for this caller.
        return Ok(HttpResponse::Ok().json(WebhookList { data: Vec::new(), next_cursor: None }));
    };
    app.caught_up().await?;
    let page = app.read.webhooks(team.map(Some), cursor, limit, move |row| is_within(&caller, &row.spec)).await?;
    Ok(HttpResponse::Ok().json(WebhookList {
        data: page.webhooks.into_iter().map(WebhookView::from).collect(),
        next_cursor: page.next.map(|cursor| cursor.to_string()),
    }))
}

/// Reads a webhook.
#[utoipa::path(get, path = "/v1/webhooks/{id}", tag = "webhooks", operation_id = "getWebhook",
    params(("id" = String, Path)),
    responses((status = 200, description = "The webhook", body = WebhookView),
        (status = 404, description = "No such webhook, or another team's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn get(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    Parameters::of(&request)?.finish()?;
    as_it_stands(&app, &caller, &id).await
}

/// Changes a webhook: what is sent, where to, and whether anything is. What is absent stays.
///
/// A webhook of events such as `key.*` is changed with the scope `audit:read` besides; it is stopped without.
#[utoipa::path(patch, path = "/v1/webhooks/{id}", tag = "webhooks", operation_id = "changeWebhook",
    params(("id" = String, Path)), request_body(content = super::webhook_resource::WebhookChange),
    responses((status = 200, description = "The webhook as it stands now", body = WebhookView),
        (status = 404, description = "No such webhook, or another team's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Fields that do not do", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn change(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let row = visible(&app, &caller, &id).await?;
    let raw = body::json(&request, payload).await?;
    let mut faults = Faults::default();
    let change = Object::read(&raw, "", &mut faults).map(|mut object| {
        let spec = WebhookSpec {
            team: row.spec.team.clone(),
            url: object.text("url", url, &mut faults).unwrap_or_else(|| row.spec.url.clone()),
            events: read_patterns(&mut object, &caller, &mut faults).unwrap_or_else(|| row.spec.events.clone()),
            projects: names(&mut object, "projects", &mut faults).unwrap_or_else(|| row.spec.projects.clone()),
            environments: names(&mut object, "environments", &mut faults)
                .unwrap_or_else(|| row.spec.environments.clone()),
            description: object.text("description", description, &mut faults).or_else(|| row.spec.description.clone()),
        };
        let enabled = object.take("enabled", &mut faults).and_then(|raw| {
            let enabled = serde_json::from_str::<bool>(raw.get());
            if enabled.is_err() {
                faults.add(object.at("enabled"), "expected true or false");
            }
            enabled.ok()
        });
        object.finish(&mut faults);
        (spec, enabled)
    });
    faults.none()?;
    let (spec, enabled) = change.ok_or_else(|| Problem::internal("a change without faults is missing"))?;
    check_bounds(&caller, &spec)?;
    // Whoever may only write webhooks can stop what they may not read, and nothing else of it.
    if spec != row.spec || enabled != Some(false) {
        check_reading(&caller, &row.spec)?;
        check_reading(&caller, &spec)?;
    }
    let actor = actor(&caller, row.spec.team.as_deref());
    if spec != row.spec {
        app.webhooks()?.change_webhook(row.id, spec, actor.clone()).await?;
    }
    if let Some(enabled) = enabled {
        app.webhooks()?.enable_webhook(row.id, enabled, actor).await?;
    }
    as_it_stands(&app, &caller, &id).await
}

/// Removes a webhook for good. What is under way may still arrive.
#[utoipa::path(delete, path = "/v1/webhooks/{id}", tag = "webhooks", operation_id = "removeWebhook",
    params(("id" = String, Path)),
    responses((status = 204, description = "It is gone"),
        (status = 404, description = "No such webhook, or another team's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn remove(app: web::Data<App>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let row = visible(&app, &caller, &id).await?;
    app.webhooks()?.remove_webhook(row.id, actor(&caller, row.spec.team.as_deref())).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Makes a webhook's secret anew. For a while, messages are signed with both.
///
/// A webhook of events such as `key.*` asks for the scope `audit:read` besides.
#[utoipa::path(post, path = "/v1/webhooks/{id}/secret", tag = "webhooks", operation_id = "rotateWebhookSecret",
    params(("id" = String, Path)), request_body(content = Option<super::webhook_resource::WebhookSecretRequest>),
    responses((status = 200, description = "The new secret", body = WebhookSecret),
        (status = 404, description = "No such webhook, or another team's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Fields that do not do", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn rotate(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let row = visible(&app, &caller, &id).await?;
    check_reading(&caller, &row.spec)?;
    let mut faults = Faults::default();
    let overlap = body::optional_object(&request, payload, &mut faults).await?.and_then(|mut object| {
        let overlap = object.whole("overlapSeconds", 0, MAX_OVERLAP.as_secs(), &mut faults);
        object.finish(&mut faults);
        overlap
    });
    faults.none()?;
    let overlap = overlap.map_or(DEFAULT_OVERLAP, Duration::from_secs);
    let actor = actor(&caller, row.spec.team.as_deref());
    let secret = app.webhooks()?.rotate_webhook(row.id, overlap, actor).await?;
    let row = visible(&app, &caller, &id).await?;
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(WebhookSecret {
        secret: Some(secret.expose_secret().to_owned()),
        previous_secret_until: row.previous_until.map(|time| time.to_string()),
    }))
}

/// Sends a test to a webhook, once, and answers what came of it.
///
/// A webhook of events such as `key.*` asks for the scope `audit:read` besides.
#[utoipa::path(post, path = "/v1/webhooks/{id}/test", tag = "webhooks", operation_id = "testWebhook",
    params(("id" = String, Path)),
    responses((status = 200, description = "What came of it", body = DeliveryView),
        (status = 404, description = "No such webhook, or another team's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It was sent before under this Idempotency-Key", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Another test is under way", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn test(app: web::Data<App>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let row = visible(&app, &caller, &id).await?;
    check_reading(&caller, &row.spec)?;
    let attempt = app.webhooks()?.test_webhook(row.id).await?;
    Ok(HttpResponse::Ok().json(DeliveryView::from(attempt)))
}

/// The position of one message's event.
pub async fn position_of(app: &App, webhook: WebhookId, message: MessageId) -> Result<Position, Problem> {
    let row = app.read.delivery(webhook, message).await?;
    let position = row.and_then(|row| row.position);
    position.ok_or_else(|| {
        let detail =
            "is none of the newest deliveries of this webhook; name its position with `from` and `to`".to_owned();
        Problem::invalid(vec![Field { pointer: "/message".to_owned(), detail }])
    })
}

/// Sends again what a webhook wants of a part of the log, under the same message ids as before.
///
/// A webhook of events such as `key.*` asks for the scope `audit:read` besides.
#[utoipa::path(post, path = "/v1/webhooks/{id}/replay", tag = "webhooks", operation_id = "replayWebhook",
    params(("id" = String, Path)), request_body(content = super::webhook_resource::WebhookReplayRequest),
    responses((status = 202, description = "It is sent again", body = WebhookView),
        (status = 404, description = "No such webhook, or another team's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It is disabled, or too many replays wait", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Fields that do not do", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn replay(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let row = visible(&app, &caller, &id).await?;
    check_reading(&caller, &row.spec)?;
    let raw = body::json(&request, payload).await?;
    let mut faults = Faults::default();
    let is_id = |text: &str| text.parse::<MessageId>().map(drop).map_err(|error| error.to_string());
    let asked = Object::read(&raw, "", &mut faults).map(|mut object| {
        let before = faults.count();
        let message = object.text("message", is_id, &mut faults).and_then(|text| text.parse::<MessageId>().ok());
        let from = object.whole("from", 1, MAX_POSITION, &mut faults);
        let to = object.whole("to", 1, MAX_POSITION, &mut faults);
        let one = message.is_some() && from.is_none() && to.is_none();
        let range = message.is_none() && from.is_some() && to.is_some();
        if faults.count() == before && !one && !range {
            faults.add("", "expected either `message`, or `from` and `to`");
        }
        if from.zip(to).is_some_and(|(from, to)| from > to) {
            faults.add("/to", "is not after `from`");
        }
        object.finish(&mut faults);
        (message, from.zip(to))
    });
    faults.none()?;
    let (from, to) = match asked {
        Some((Some(message), _)) => {
            let position = position_of(&app, row.id, message).await?;
            (position, position)
        }
        Some((None, Some((from, to)))) => (Position(from), Position(to)),
        Some((None, None)) | None => return Err(Problem::internal("a replay without faults is missing")),
    };
    let actor = actor(&caller, row.spec.team.as_deref());
    app.webhooks()?.replay_webhook(row.id, from, to, actor).await?;
    Ok(HttpResponse::Accepted().json(WebhookView::from(visible(&app, &caller, &id).await?)))
}

/// What became of a webhook's messages, those that were first tried last first: the newest ten thousand.
#[utoipa::path(get, path = "/v1/webhooks/{id}/deliveries", tag = "webhooks", operation_id = "listDeliveries",
    params(("id" = String, Path),
        ("outcome" = Option<String>, Query, description = "delivered, retrying, given-up or skipped"),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200)),
    responses((status = 200, description = "A page of deliveries", body = DeliveryList),
        (status = 404, description = "No such webhook, or another team's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn deliveries(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let outcome = query.parsed::<DeliveryOutcome>("outcome", "one of delivered, retrying, given-up, skipped");
    let cursor = query.parsed::<u64>("cursor", "the nextCursor of the page before");
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE);
    query.finish()?;
    let row = visible(&app, &caller, &id).await?;
    let page = app.read.deliveries(row.id, outcome, cursor, limit).await?;
    Ok(HttpResponse::Ok().json(DeliveryList {
        data: page.deliveries.into_iter().map(DeliveryView::from).collect(),
        next_cursor: page.next.map(|cursor| cursor.to_string()),
    }))
}
