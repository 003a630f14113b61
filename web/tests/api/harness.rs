//! A whole application in memory: the real store, projector, key ring and routes; a task service without a runtime.

#[path = "../support/budgets.rs"]
mod budgets;
#[path = "../support/campaigns.rs"]
mod campaigns;
#[path = "../support/conformance.rs"]
mod conformance;
#[path = "../support/webhooks.rs"]
mod webhooks;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::test::TestRequest;
use actix_web::web::Bytes;
use actix_web::{test, web};
use async_trait::async_trait;
use budgets::Budgets;
use campaigns::Campaigns;
use jiff::Timestamp;
use orchestra_actors::service::ServiceError;
use orchestra_actors::{Credentials, Delta, Erased, NewTask, Submitted, TaskService};
use orchestra_events::key::Scope;
use orchestra_events::projections::{ReadModels, project};
use orchestra_events::repo::RepoRef;
use orchestra_events::session::{Holder, Membership, Role, Way};
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::store::{Direction, MAX_PAGE};
use orchestra_events::task::event::{CredentialKind, ErasureReason, SCHEMA};
use orchestra_events::task::{Command, Refusal, Task, TaskEvent, TaskResource, TaskSpec, decide, evolve};
use orchestra_events::{
    Actor, Envelope, EventId, EventStore, Expected, KeyId, NewEvent, Revision, SessionId, StreamName, TaskId,
};
use orchestra_web::auth::issuing::{NewKey, issue, rotate_key};
use orchestra_web::auth::{
    KeyRing, Lasting, NewSession, Sessions, Who, ensure_admin_key, issue_key, revoke_key, write_refusals, write_uses,
};
use orchestra_web::{App, configure};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;
use webhooks::Webhooks;

/// The longest that a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(10);

pub struct Service {
    store: Arc<MemoryStore>,
    submitted: Mutex<HashMap<(String, String), (String, TaskId)>>,
    deltas: broadcast::Sender<Delta>,
    /// The secrets that arrived, to see that they do.
    pub secrets: Mutex<Vec<String>>,
}

impl Service {
    async fn load(&self, id: TaskId) -> (Option<Task>, Vec<Envelope>) {
        let (stream, mut history) = (StreamName::task(id), Vec::<Envelope>::new());
        loop {
            let from = history.last().map_or(Revision(0), |last| Revision(last.revision.0 + 1));
            let page = self.store.read_stream(&stream, Some(from), Direction::Forwards, MAX_PAGE).await;
            let page = page.expect("a stream");
            if page.is_empty() {
                break;
            }
            history.extend(page);
        }
        let task = history.iter().fold(None, |task, envelope| {
            let event = TaskEvent::decode(envelope).expect("a task event").expect("a known type");
            evolve(task, &event)
        });
        (task, history)
    }

    /// Appends events as they are.
    pub async fn record(&self, id: TaskId, events: Vec<TaskEvent>, actor: &Actor, time: Timestamp) {
        let (_, history) = self.load(id).await;
        let expected = history.last().map_or(Expected::NoStream, |last| Expected::Exactly(last.revision));
        let events = events
            .into_iter()
            .map(|event| {
                let (data, private) = event.parts(*b"as random as a test needs it.  \n").expect("JSON");
                NewEvent {
                    id: EventId(Uuid::now_v7()),
                    kind: event.kind().into(),
                    schema: SCHEMA,
                    time,
                    actor: actor.clone(),
                    correlation: Some(StreamName::task(id)),
                    causation: None,
                    data,
                    private,
                }
            })
            .collect();
        self.store.append(&StreamName::task(id), expected, events).await.expect("an append");
    }

    /// Has the task do something.
    pub async fn command(&self, id: TaskId, command: Command, actor: &Actor) -> Result<(), ServiceError> {
        let (task, _) = self.load(id).await;
        let events = decide(task.as_ref(), command).map_err(|refusal| match refusal {
            Refusal::NoSuchTask => ServiceError::NoSuchTask,
            refusal => ServiceError::Refused { refusal, status: None },
        })?;
        if !events.is_empty() {
            self.record(id, events, actor, Timestamp::now()).await;
        }
        Ok(())
    }

    async fn resource(&self, id: TaskId) -> TaskResource {
        let (_, history) = self.load(id).await;
        let folded = history.iter().fold(None, |task, envelope| {
            let event = TaskEvent::decode(envelope).expect("a task event").expect("a known type");
            TaskResource::fold(task, envelope, &event)
        });
        folded.expect("a task")
    }

    fn keep(&self, given: &Credentials) {
        let mut secrets = self.secrets.lock().expect("no panic while held");
        secrets
            .extend([&given.model, &given.git].into_iter().flatten().map(|secret| secret.expose_secret().to_owned()));
    }

    pub fn say(&self, text: &str) {
        self.deltas.send(Delta { text: text.to_owned() }).expect("somebody listens");
    }

    pub fn listeners(&self) -> usize {
        self.deltas.receiver_count()
    }
}

#[async_trait]
impl TaskService for Service {
    async fn submit(&self, new: NewTask, actor: Actor) -> Result<Submitted, ServiceError> {
        self.keep(&new.credentials);
        let hash = new.idempotency.as_ref().map(|wish| wish.request_hash.clone());
        if let Some(wish) = &new.idempotency {
            let known = self
                .submitted
                .lock()
                .expect("no panic while held")
                .get(&(wish.owner.clone(), wish.key.clone()))
                .cloned();
            match known {
                Some((hash, _)) if hash != wish.request_hash => return Err(ServiceError::IdempotencyKeyReused),
                Some((_, id)) => return Ok(Submitted { task: self.resource(id).await, repeated: true }),
                None => {}
            }
        }
        let id = TaskId::from_uuid(Uuid::now_v7());
        if let Some(wish) = &new.idempotency {
            let mut submitted = self.submitted.lock().expect("no panic while held");
            submitted.insert((wish.owner.clone(), wish.key.clone()), (wish.request_hash.clone(), id));
        }
        let first = new.repos.first().cloned().expect("checked by the interface");
        let spec = TaskSpec {
            repo: RepoRef::parse(&first.repo, "github").expect("checked by the interface"),
            task: new.task,
            model: new.model,
            harness: new.harness,
            command: new.command.clone(),
            retry: new.retry,
            team: new.team,
            project: new.project,
            environment: new.environment,
            task_type: new.task_type,
            customer: new.customer,
            budget: new.budget,
            base: first.base,
            branch: first.branch.unwrap_or_else(|| "orchestra/work".to_owned()),
            further: Vec::new(),
            pull_request: new.pull_request,
            campaign: None,
            image: new.image.unwrap_or_else(|| "default".to_owned()),
            egress: new.egress.clone().unwrap_or_default(),
            timeout_seconds: new.timeout_seconds.unwrap_or(1_800),
            metadata: new.metadata,
            request_hash: hash,
            caller_brings_model_key: new.credentials.model.is_some(),
            caller_brings_git_token: new.credentials.git.is_some(),
        };
        new.bounds.admits(&spec)?;
        self.command(id, Command::Create(Box::new(spec)), &actor).await?;
        Ok(Submitted { task: self.resource(id).await, repeated: false })
    }

    async fn cancel(&self, id: TaskId, reason: Option<String>, actor: Actor) -> Result<(), ServiceError> {
        self.command(id, Command::Cancel { reason }, &actor).await
    }

    async fn retry(&self, id: TaskId, credentials: Credentials, actor: Actor) -> Result<(), ServiceError> {
        self.keep(&credentials);
        self.command(id, Command::Retry, &actor).await
    }

    async fn steer(&self, id: TaskId, message: String, actor: Actor) -> Result<(), ServiceError> {
        self.command(id, Command::Steer { message }, &actor).await
    }

    async fn supply_credentials(&self, id: TaskId, given: Credentials, actor: Actor) -> Result<(), ServiceError> {
        self.keep(&given);
        let kinds = [(CredentialKind::Model, given.model.is_some()), (CredentialKind::Git, given.git.is_some())];
        let supplied = kinds.into_iter().filter(|(_, given)| *given).map(|(kind, _)| kind).collect();
        self.command(id, Command::SupplyCredentials { supplied, now: Timestamp::now() }, &actor).await
    }

    async fn erase_content(&self, id: TaskId, who: Actor) -> Result<Erased, ServiceError> {
        let command = Command::EraseContent { reason: ErasureReason::Request, events: 1 };
        self.command(id, command, &who).await?;
        self.store.erase(&[StreamName::task(id)]).await?;
        Ok(Erased::Done)
    }

    async fn diff(&self, _: TaskId) -> Result<Vec<u8>, ServiceError> {
        Ok(b"--- a/x\n+++ b/x\n".to_vec())
    }

    fn deltas(&self, _: TaskId) -> broadcast::Receiver<Delta> {
        self.deltas.subscribe()
    }
}

pub struct Server {
    pub app: web::Data<App>,
    pub store: Arc<MemoryStore>,
    pub service: Arc<Service>,
    pub campaigns: Arc<Campaigns>,
    pub webhooks: Arc<Webhooks>,
    pub admin: String,
    stop: DropGuard,
    _folder: tempfile::TempDir,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The pointers of a problem's errors.
    pub fn pointers(&self) -> Vec<String> {
        let errors = self.json()["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["pointer"].as_str().expect("a pointer").to_owned()).collect()
    }

    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.text());
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16());
        assert!(json["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        let code = json["code"].as_str().expect("a code").to_owned();
        assert_eq!(json["type"], format!("/docs/errors/{code}"));
        code
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::start_as(Arc::new(MemoryStore::new()), None, |app| app).await
    }

    /// A server whose application was changed before it served anybody.
    pub async fn start_with(change: impl FnOnce(App) -> App) -> Self {
        Self::start_as(Arc::new(MemoryStore::new()), None, change).await
    }

    /// A server over a log that there is already, of which this is the admin key.
    pub async fn start_on(store: Arc<MemoryStore>, admin: String) -> Self {
        Self::start_as(store, Some(admin), |app| app).await
    }

    async fn start_as(store: Arc<MemoryStore>, admin: Option<String>, change: impl FnOnce(App) -> App) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let read = Arc::new(ReadModels::open(&folder.path().join("read.db")).expect("read models"));
        let keys = Arc::new(KeyRing::load(&*store).await.expect("keys"));
        let issued = ensure_admin_key(&*store, &keys).await.expect("an append");
        let admin = admin.or(issued.map(|key| key.expose_secret().to_owned())).expect("the first key");
        let service = Arc::new(Service {
            store: Arc::clone(&store),
            submitted: Mutex::default(),
            deltas: broadcast::Sender::new(16),
            secrets: Mutex::default(),
        });
        let cancel = CancellationToken::new();
        let log: Arc<dyn EventStore> = store.clone();
        actix_web::rt::spawn(project(Arc::clone(&log), Arc::clone(&read), cancel.clone().cancelled_owned()));
        actix_web::rt::spawn(Arc::clone(&keys).follow(Arc::clone(&log), cancel.clone().cancelled_owned()));
        let campaigns = Arc::new(Campaigns::new(Arc::clone(&store)));
        let budgets = Arc::new(Budgets::default());
        let signing = orchestra_events::audit::SigningKey::from_bytes(&[5; 32]);
        let notary = orchestra_actors::Notary::new(store.clone(), signing, "node-1", None).expect("a name");
        let app = App::new(service.clone(), campaigns.clone(), budgets, log, read, keys).with_audit(Arc::new(notary));
        let webhooks = Arc::new(Webhooks::new(Arc::clone(&store)));
        let app = change(app);
        let app = web::Data::new(app.with_webhooks(webhooks.clone()));
        Self { app, store, service, campaigns, webhooks, admin, stop: cancel.drop_guard(), _folder: folder }
    }

    /// Has uses of keys and refusals written down from now on.
    pub fn write_down(&self) {
        let log = || -> Arc<dyn EventStore> { self.store.clone() };
        let stop = || self.stop.token().clone().cancelled_owned();
        actix_web::rt::spawn(write_uses(Arc::clone(&self.app.keys), log(), stop()));
        actix_web::rt::spawn(write_refusals(Arc::clone(&self.app.refusals), log(), stop()));
    }

    /// A new key, known to the ring.
    pub async fn key(&self, team: Option<&str>, scopes: &[Scope]) -> String {
        let actor = Actor::system("test");
        let issued = issue_key(&*self.store, "test", team, "test", scopes.to_vec(), &actor).await;
        let (_, text) = issued.expect("a key");
        self.keys_caught_up().await;
        text.expose_secret().to_owned()
    }

    /// A key with bounds and an end, known to the ring.
    pub async fn issue(&self, new: NewKey) -> (KeyId, String) {
        let new = NewKey { name: "test".to_owned(), environment: "test".to_owned(), ..new };
        let (id, text) = issue(&*self.store, new, &Actor::system("test")).await.expect("a key");
        self.keys_caught_up().await;
        (id, text.expose_secret().to_owned())
    }

    /// Gives a key another text; the one before works for `overlap`.
    pub async fn rotate(&self, id: KeyId, overlap: Duration) -> String {
        let rotated = rotate_key(&*self.store, id, "test", overlap, &Actor::system("test")).await;
        self.keys_caught_up().await;
        rotated.expect("a new text").expose_secret().to_owned()
    }

    /// Takes a key back, and waits until the ring knows.
    pub async fn revoke(&self, who: &Who) {
        let Who::Key(id) = who else { panic!("{who} is no key") };
        revoke_key(&*self.store, *id, &Actor::system("test")).await.expect("an append");
        self.keys_caught_up().await;
    }

    /// Signs in with a key; the cookie's value.
    pub async fn session(&self, key: &str) -> String {
        let caller = self.app.keys.authenticate(key).expect("a key that is known");
        let Who::Key(id) = caller.who else { panic!("{} is no key", caller.who) };
        let new = NewSession {
            holder: Holder::Key { key: id },
            way: Way::Key,
            name: caller.name.clone(),
            memberships: Vec::new(),
            generation: caller.generation,
        };
        let begun = self.app.sessions.start(&*self.store, new, None, &caller.actor()).await;
        begun.expect("a session").1.expose_secret().to_owned()
    }

    /// Sessions of people in the team `platform`, by id.
    pub async fn disposable_sessions(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for number in 0..count {
            let new = NewSession {
                holder: Holder::Person { issuer: "https://a.example".to_owned(), subject: number.to_string() },
                way: Way::Oidc,
                name: "canary".to_owned(),
                memberships: vec![Membership { team: Some("platform".to_owned()), role: Role::Viewer }],
                generation: 0,
            };
            let begun = self.app.sessions.start(&*self.store, new, None, &Actor::system("test")).await;
            ids.push(begun.expect("a session").0.to_string());
        }
        ids
    }

    /// Signs in a person with this role; the cookie's value.
    pub async fn person(&self, team: &str, role: Role) -> (SessionId, String) {
        self.person_in(&self.app.sessions, team, role).await
    }

    /// The same, for this long.
    pub async fn person_for(&self, lifetime: Duration, team: &str, role: Role) -> String {
        let sessions = Sessions::new(Lasting { lifetime, ..Lasting::default() });
        let cookie = self.person_in(&sessions, team, role).await.1;
        self.app.sessions.catch_up(&*self.store).await.expect("the log is read");
        cookie
    }

    async fn person_in(&self, sessions: &Sessions, team: &str, role: Role) -> (SessionId, String) {
        let new = NewSession {
            holder: Holder::Person { issuer: "https://a.example".to_owned(), subject: format!("{team} {role:?}") },
            way: Way::Oidc,
            name: "test".to_owned(),
            memberships: vec![Membership { team: Some(team.to_owned()), role }],
            generation: 0,
        };
        let begun = sessions.start(&*self.store, new, None, &Actor::system("test")).await;
        let (id, cookie) = begun.expect("a session");
        (id, cookie.expose_secret().to_owned())
    }

    pub async fn keys_caught_up(&self) {
        let head = self.store.head().await.expect("a head");
        assert!(self.app.keys.wait_for(head, SOON).await, "the key ring lags");
    }

    /// A team's key with everything a team does.
    pub async fn team_key(&self, team: &str) -> String {
        let scopes = [
            Scope::TasksCreate,
            Scope::TasksRead,
            Scope::TasksCancel,
            Scope::CampaignsCreate,
            Scope::CampaignsRead,
            Scope::CampaignsCancel,
            Scope::UsageRead,
            Scope::AuditRead,
            Scope::ContentErase,
        ];
        self.key(Some(team), &scopes).await
    }

    pub async fn send(&self, request: TestRequest) -> Answer {
        let app = self.app.clone();
        let service = test::init_service(actix_web::App::new().configure(|cfg| configure(cfg, app))).await;
        let request = request.to_request();
        let (method, path) = (request.method().clone(), request.path().to_owned());
        let response = test::call_service(&service, request).await;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = tokio::time::timeout(SOON, test::read_body(response)).await.expect("the body ends");
        let answer = Answer { status, headers, body };
        let asked = (method.as_str(), &*path);
        conformance::check(asked, answer.status.as_u16(), |name| answer.header(name), &answer.body);
        answer
    }

    pub async fn stream(&self, request: TestRequest) -> Pieces {
        let app = self.app.clone();
        let service = test::init_service(actix_web::App::new().configure(|cfg| configure(cfg, app))).await;
        let response = test::call_service(&service, request.to_request()).await;
        assert_eq!(response.status(), StatusCode::OK);
        let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        Pieces { body: response.map_into_boxed_body().into_body(), buffer: String::new(), content_type }
    }

    pub async fn get(&self, key: &str, path: &str) -> Answer {
        self.send(get(key, path)).await
    }

    pub async fn post(&self, key: &str, path: &str, body: &str) -> Answer {
        self.send(post(key, path, body)).await
    }

    /// A task, and its id.
    pub async fn task(&self, key: &str, body: &Value) -> TaskId {
        let answer = self.post(key, "/v1/tasks", &body.to_string()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        answer.json()["id"].as_str().expect("an id").parse().expect("a task id")
    }
}

pub fn get(key: &str, path: &str) -> TestRequest {
    TestRequest::get().uri(path).insert_header(("authorization", format!("Bearer {key}")))
}

pub fn post(key: &str, path: &str, body: &str) -> TestRequest {
    TestRequest::post()
        .uri(path)
        .insert_header(("authorization", format!("Bearer {key}")))
        .insert_header(("content-type", "application/json"))
        .set_payload(body.to_owned())
}

/// The example that everybody starts from.
pub fn example() -> Value {
    serde_json::json!({
        "repo": "acme/api",
        "task": "Bump terraform-aws-provider from 5.x to 6.x; update breaking calls",
        "model": "claude-sonnet-4-6",
        "team": "platform",
        "budget": {"maxUsd": 2.00}
    })
}

/// A streamed answer, piece by piece.
pub struct Pieces {
    body: BoxBody,
    buffer: String,
    pub content_type: String,
}

/// One server-sent event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    pub id: Option<u64>,
    pub event: String,
    pub data: String,
}

impl Pieces {
    async fn more(&mut self) -> bool {
        let next = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_next(context));
        match tokio::time::timeout(SOON, next).await.expect("a piece in time") {
            Some(piece) => {
                self.buffer += std::str::from_utf8(&piece.expect("a piece")).expect("UTF-8");
                true
            }
            None => false,
        }
    }

    /// A piece of it, whatever it is. `None`: it has ended.
    pub async fn piece(&mut self) -> Option<()> {
        self.more().await.then_some(())
    }

    /// Reads it to its end; what was not looked at yet.
    pub async fn end(mut self) -> String {
        while self.more().await {}
        self.buffer
    }

    /// Reads it to its end. Whether that was none, but the connection broke off.
    pub async fn breaks_off(mut self) -> bool {
        loop {
            let next = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_next(context));
            match tokio::time::timeout(SOON, next).await.expect("a piece in time") {
                Some(Ok(_)) => {}
                Some(Err(_)) => return true,
                None => return false,
            }
        }
    }

    /// Whether it has ended by now.
    pub async fn has_ended(&mut self) -> bool {
        let next = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_next(context));
        matches!(tokio::time::timeout(Duration::from_millis(50), next).await, Ok(None))
    }

    async fn until(&mut self, mark: &str) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.find(mark) {
                let rest = self.buffer.split_off(end + mark.len());
                return Some(std::mem::replace(&mut self.buffer, rest));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The next line.
    pub async fn line(&mut self) -> Option<String> {
        self.until("\n").await
    }

    /// The next event; comments are passed over.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            let text = self.until("\n\n").await?;
            let mut frame = Frame::default();
            for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with(':')) {
                let (name, value) = line.split_once(": ").expect("a field");
                match name {
                    "id" => frame.id = Some(value.parse().expect("a number")),
                    "event" => value.clone_into(&mut frame.event),
                    "data" => frame.data += value,
                    other => panic!("unknown field {other}"),
                }
            }
            if frame != Frame::default() {
                return Some(frame);
            }
        }
    }
}
