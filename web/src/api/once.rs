//! Doing a named request once: around every POST, claimed in the log before its handler begins and answered there
//! afterwards.
//!
//! Two copies at once are two appends at the same place, of which the store takes one; the other waits for its bell. A
//! claim that nobody holds any more was left by a crash: what it caused carries its id as the request of its origin,
//! so that the next copy finds it and does nothing, or finds nothing and does it.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::body::BoxBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage as _, HttpResponse, web};
use jiff::{SignedDuration, Timestamp};
use orchestra_actors::service::ServiceError;
use orchestra_events::request::event::SCHEMA;
use orchestra_events::request::{Command, Refusal, Request, RequestEvent, decide, evolve};
use orchestra_events::store::{Direction, MAX_PAGE};
use orchestra_events::{Appended, Envelope, EventId, Expected, NewEvent, Position, StoreError, StreamName};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use super::body;
use super::repeat::{Show, Subject};
use super::tasks::idempotency_key;
use crate::App;
use crate::auth::Caller;
use crate::problem::Problem;

/// How long a copy waits for the first one to be answered. Longer than any handler takes, shorter than clients wait.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after its claim a request may have caused something: handlers are bounded to less. What a crash left is
/// looked for within it.
const LONGEST_REQUEST: SignedDuration = SignedDuration::from_mins(5);
/// Named requests that one process works on at the same time.
pub const MAX_CLAIMS: usize = 10_000;
/// Members of a body that are secrets: a repeat may bring fresh ones, and they are in no hash.
const SECRET_MEMBERS: [&str; 2] = ["credentials", "secret"];
/// Says that an answer is to a repeat.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The claims that this process is working on. One that is not here and has no answer was left by a crash.
#[derive(Debug, Default)]
pub struct Claims(Mutex<HashSet<EventId>>);

impl Claims {
    fn open(&self) -> MutexGuard<'_, HashSet<EventId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self, id: EventId) -> bool {
        self.open().contains(&id)
    }
}

/// A claim of this process, until it is dropped.
struct Held {
    app: web::Data<App>,
    id: EventId,
}

impl Held {
    fn new(app: &web::Data<App>) -> Result<Self, Problem> {
        let id = EventId(Uuid::now_v7());
        let mut open = app.claims.open();
        if open.len() >= MAX_CLAIMS {
            return Err(Problem::overloaded("Too many requests with an Idempotency-Key at once."));
        }
        open.insert(id);
        drop(open);
        Ok(Self { app: app.clone(), id })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.app.claims.open().remove(&self.id);
    }
}

/// A POST of the route table.
#[derive(Clone, Copy)]
pub struct Post {
    /// Its path, with its `{parameters}`.
    pub path: &'static str,
    /// The status when it was done.
    pub done: StatusCode,
    /// The category of the stream in which the last of what it does is written.
    pub ends: &'static str,
    /// What a repeat is shown.
    pub show: Show,
}

/// A claim in the log, and whoever has to end it.
struct Claim {
    held: Held,
    named: Named,
    at: Appended,
    time: Timestamp,
}

impl Claim {
    /// Writes down how it ended. If that fails, the next copy finds a claim that nobody holds, and looks for itself.
    async fn end(self, status: StatusCode, location: Option<String>) {
        let ended = async {
            let event = if status.is_success() {
                RequestEvent::RequestAnswered { status: status.as_u16(), location }
            } else if status.is_server_error() {
                // After a fault of ours nobody knows what was done, the handler included. The log does.
                match self.named.effect(self.held.id, self.at.position, self.time).await? {
                    Some(location) => self.named.answered(location),
                    None => RequestEvent::RequestAbandoned { status: status.as_u16() },
                }
            } else {
                RequestEvent::RequestAbandoned { status: status.as_u16() }
            };
            self.named.append(Expected::Exactly(self.at.revision), EventId(Uuid::now_v7()), event).await
        };
        if let Err(error) = ended.await {
            tracing::error!(stream = %self.named.stream, %error, "the end of a request is not written down");
        }
    }
}

/// What is to become of a copy.
enum Turn {
    /// It is the one that does it.
    Do(Box<Claim>),
    /// It was done; this is what came of it.
    Show { status: u16, location: Option<String> },
}

/// A request with a name.
#[derive(Clone)]
struct Named {
    app: web::Data<App>,
    caller: Caller,
    stream: StreamName,
    post: Post,
    content: String,
}

impl Named {
    /// Reads its name and its body, which is put back for the handler. `None`: it has no name.
    async fn read(post: Post, request: &mut ServiceRequest) -> Result<Option<Self>, Problem> {
        let Some(key) = idempotency_key(request.request())? else { return Ok(None) };
        // The guard before this knows who is calling, and that they may.
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Problem::internal("a POST asks nobody who is calling"))?;
        let app = request.app_data::<web::Data<App>>().ok_or_else(|| Problem::internal("no application"))?.clone();
        let payload = request.extract::<web::Payload>().await.map_err(Problem::internal)?;
        let body = body::read(request.request(), payload).await?;
        let content = content(&key, &request.uri().to_string(), &body);
        request.set_payload(Payload::from(body));
        let name = digest(&["request", &caller.who.to_string(), &key]);
        let name: [u8; 16] = std::array::from_fn(|place| name[place]);
        let stream = StreamName::request(uuid::Builder::from_custom_bytes(name).into_uuid());
        Ok(Some(Self { app, caller, stream, post, content }))
    }

    async fn append(&self, expected: Expected, id: EventId, event: RequestEvent) -> Result<Appended, StoreError> {
        let data = event.data().map_err(|error| StoreError::Failed(error.to_string()))?;
        let event = NewEvent {
            id,
            kind: event.kind().into(),
            schema: SCHEMA,
            time: Timestamp::now(),
            actor: self.caller.actor(),
            correlation: None,
            causation: None,
            data,
            private: None,
        };
        self.app.store.append(&self.stream, expected, vec![event]).await
    }

    /// What the claim caused, if it was done to its end: what it made, where the path does not name it.
    async fn effect(
        &self,
        claim: EventId,
        at: Position,
        time: Timestamp,
    ) -> Result<Option<Option<String>>, StoreError> {
        let until = time.saturating_add(LONGEST_REQUEST).unwrap_or(Timestamp::MAX);
        let mut after = at;
        loop {
            let page = self.app.store.read_all(after, MAX_PAGE).await?;
            let Some(last) = page.last() else { return Ok(None) };
            let caused = |event: &&Envelope| {
                event.stream.category() == self.post.ends
                    && event.actor.origin.as_ref().is_some_and(|from| from.request == Some(claim))
            };
            if let Some(event) = page.iter().find(caused) {
                let made = (!self.post.path.contains('{')).then(|| location(&event.stream)).flatten();
                return Ok(Some(made));
            }
            if last.time > until {
                return Ok(None);
            }
            after = last.position;
        }
    }

    fn answered(&self, location: Option<String>) -> RequestEvent {
        RequestEvent::RequestAnswered { status: self.post.done.as_u16(), location }
    }

    /// Claims it, or waits for whoever did.
    async fn turn(&self) -> Result<Turn, Problem> {
        let patience = Instant::now() + PATIENCE;
        let mut bell = self.app.store.stream_bell(&self.stream);
        loop {
            bell.borrow_and_update();
            // An answer follows its claim: the last two events say how it stands.
            let mut page = self.app.store.read_stream(&self.stream, None, Direction::Backwards, 2).await?;
            page.reverse();
            let mut request: Option<Request> = None;
            for envelope in &page {
                if let Some(event) = RequestEvent::decode(envelope).map_err(Problem::internal)? {
                    request = evolve(request, &event);
                }
            }
            let last = page.last();
            let expected = last.map_or(Expected::NoStream, |last| Expected::Exactly(last.revision));
            let mut command = Command::Claim {
                endpoint: format!("{} {}", Method::POST, self.post.path),
                content: self.content.clone(),
                forsaken: false,
            };
            let mut decided = decide(request.as_ref(), command.clone());
            if let (Err(Refusal::UnderWay), Some(last)) = (&decided, last)
                && !self.app.claims.holds(last.id)
            {
                if let Some(location) = self.effect(last.id, last.position, last.time).await? {
                    let answered = self.append(expected, EventId(Uuid::now_v7()), self.answered(location)).await;
                    match answered {
                        Ok(_) | Err(StoreError::WrongExpectedRevision { .. }) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
                if let Command::Claim { forsaken, .. } = &mut command {
                    *forsaken = true;
                }
                decided = decide(request.as_ref(), command);
            }
            match decided {
                Ok(events) => {
                    let held = Held::new(&self.app)?;
                    let event =
                        events.into_iter().next().ok_or_else(|| Problem::internal("a claim without an event"))?;
                    match self.append(expected, held.id, event).await {
                        Ok(at) => {
                            let claim = Claim { held, named: self.clone(), at, time: Timestamp::now() };
                            return Ok(Turn::Do(Box::new(claim)));
                        }
                        // Another copy was first.
                        Err(StoreError::WrongExpectedRevision { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(Refusal::Answered { status, location }) => return Ok(Turn::Show { status, location }),
                Err(Refusal::Reused) => return Err(ServiceError::IdempotencyKeyReused.into()),
                Err(Refusal::UnderWay) => match tokio::time::timeout_at(patience, bell.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(StoreError::Closed.into()),
                    Err(_) => return Err(Problem::in_progress()),
                },
                Err(refusal @ Refusal::NotClaimed) => return Err(Problem::internal(refusal)),
            }
        }
    }

    /// The answer to a repeat.
    async fn show(&self, about: Subject, status: u16, location: Option<String>) -> HttpResponse {
        let made = location.as_deref().and_then(|location| location.rsplit('/').next()).map(str::to_owned);
        let subject = Subject { id: made.unwrap_or(about.id), query: about.query };
        match (self.post.show)(self.app.clone(), self.caller.clone(), subject).await {
            Ok(mut response) => {
                *response.status_mut() = StatusCode::from_u16(status).unwrap_or(self.post.done);
                let headers = response.headers_mut();
                headers.insert(REPLAYED, HeaderValue::from_static("true"));
                if let Some(location) = location.and_then(|location| HeaderValue::from_str(&location).ok()) {
                    headers.insert(header::LOCATION, location);
                }
                response
            }
            // What it was about is gone, or not the caller's any more.
            Err(problem) => problem.response(),
        }
    }
}

/// The path of what a stream is about, where it has one of its own.
fn location(stream: &StreamName) -> Option<String> {
    let key = stream.key_id().map(|id| format!("/v1/keys/{id}"));
    key.or_else(|| stream.webhook_id().map(|id| format!("/v1/webhooks/{id}")))
}

/// SHA-256 of several texts, none of which can run into the next.
fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// JSON in one spelling: members in order, secrets left out.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(name, _)| !SECRET_MEMBERS.contains(&name.as_str()));
            let sorted: BTreeMap<_, _> = kept.map(|(name, value)| (name.clone(), canonical(value))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// What is asked for, as a hash keyed with the caller's key: nobody else can try out texts against it.
fn content(key: &str, target: &str, body: &Bytes) -> String {
    let body = match serde_json::from_slice::<Value>(body) {
        Ok(value) => canonical(&value).to_string(),
        // No JSON: the handler refuses it.
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    digest(&["content", key, target, &body]).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Has a POST done once, however often it arrives under its name.
pub async fn at_most_once(
    post: Post,
    mut request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse, Error> {
    let turn = match Named::read(post, &mut request).await {
        Ok(None) => return next.call(request).await,
        Ok(Some(named)) => named.turn().await.map(|turn| (named, turn)),
        Err(problem) => Err(problem),
    };
    match turn {
        Err(problem) => Ok(request.into_response(problem.response())),
        Ok((named, Turn::Show { status, location })) => {
            let id = request.match_info().iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default();
            let about = Subject { id, query: request.query_string().to_owned() };
            let response = named.show(about, status, location).await;
            Ok(request.into_response(response))
        }
        Ok((named, Turn::Do(claim))) => {
            // What it causes carries the claim.
            request.extensions_mut().insert(Caller { request: Some(claim.held.id), ..named.caller });
            // A task of its own: it is done to its end though the caller hangs up in the middle.
            let done = actix_web::rt::spawn(async move {
                let response = next.call(request).await;
                let (status, location) = match &response {
                    Ok(response) => {
                        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                        (response.status(), location.map(str::to_owned))
                    }
                    Err(error) => (error.as_response_error().status_code(), None),
                };
                claim.end(status, location).await;
                response
            });
            done.await.unwrap_or_else(|error| Err(Problem::internal(error).into()))
        }
    }
}
