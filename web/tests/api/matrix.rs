//! The authorisation matrix: every row of both route tables, every scope alone, every kind of caller.
//!
//! What is expected follows from the table: nothing here says by hand who may do what. What is by hand is one sample per
//! path, a request that would go through; a path without one fails the test, so that a new route cannot be forgotten.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use actix_web::Error;
use actix_web::body::BoxBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::{Method, StatusCode};
use actix_web::test::{TestRequest, call_service, init_service, read_body};
use actix_web::web::Bytes;
use jiff::Timestamp;
use orchestra_events::blob::Content;
use orchestra_events::key::{Bounds, Scope};
use orchestra_events::session::{Role, SessionEnd};
use orchestra_events::task::TaskEvent;
use orchestra_events::task::conversation::Block;
use orchestra_events::webhook::MessageId;
use orchestra_events::{Actor, CampaignId, Direction, EventStore as _, StreamName, TaskId, WebhookId};
use orchestra_web::auth::issuing::NewKey;
use orchestra_web::auth::session;
use orchestra_web::configure;
use orchestra_web::routes::{Access, Surface, is_narrowed, table};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::harness::{SOON, Server, example};

/// In every name that the own team gives: no other team's answer may hold it.
const MARK: &str = "canary";
/// Ids that nothing has.
const NO_TASK: &str = "task_00000000000000000000000000";
const NO_SESSION: &str = "session_00000000000000000000000000";
/// How long a session lasts that is used after its end: long enough to be used once before.
const SHORT: Duration = Duration::from_secs(3);
/// More sessions than are ended in a test.
const DISPOSABLE: usize = 1_000;
const NO_KEY: &str = "key_00000000000000000000000000";
const NO_CAMPAIGN: &str = "campaign_00000000000000000000000000";
const NO_WEBHOOK: &str = "webhook_00000000000000000000000000";

/// More than there are cells in which a webhook is removed.
const REMOVALS: usize = 600;

/// A row of the tables, without its handler.
#[derive(Clone)]
struct Row {
    method: Method,
    path: &'static str,
    access: Access,
    surface: Surface,
}

fn rows() -> Vec<Row> {
    let rows = table().into_iter();
    rows.map(|row| Row { method: row.method, path: row.path, access: row.access, surface: row.surface }).collect()
}

/// What a request carries.
#[derive(Clone)]
enum Body {
    Nothing,
    Json(Value),
    Form(Vec<(&'static str, String)>),
}

/// A request that would go through.
struct Sample {
    /// With what the own team has.
    path: String,
    /// The same with an id that nothing has; `None` where the path names nothing that belongs to a team.
    missing: Option<String>,
    body: Body,
}

/// What the own team has.
struct Things {
    task: TaskId,
    campaign: CampaignId,
    webhook: WebhookId,
    /// One of its messages.
    message: MessageId,
    /// Webhooks that go when they are asked to, each once.
    removable: Mutex<Vec<WebhookId>>,
    /// A key that whoever may change keys may change: it can do nothing else itself.
    key: String,
    /// The revision of an event of the task with a text of its own.
    output: u64,
    /// Sessions that may be ended, one at a time.
    sessions: Mutex<Vec<String>>,
}

impl Things {
    async fn new(server: &Server) -> Self {
        let mut body = example();
        for name in ["task", "project", "environment", "taskType", "customer"] {
            body[name] = json!(MARK);
        }
        let task = server.task(&server.admin, &body).await;
        let mut campaign = body.clone();
        campaign.as_object_mut().expect("an object").remove("repo");
        campaign["name"] = json!(MARK);
        campaign["repos"] = json!(["acme/api", "acme/web"]);
        campaign["taskBudget"] = json!({"maxUsd": 1});
        let answer = server.post(&server.admin, "/v1/campaigns", &campaign.to_string()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        let campaign = answer.json()["id"].as_str().expect("an id").parse().expect("a campaign id");
        let budget = json!({"perDay": {"maxUsd": 900}}).to_string();
        let request = crate::harness::post(&server.admin, "/v1/budgets/project:platform/canary", &budget);
        assert_eq!(server.send(request.method(Method::PUT)).await.status, StatusCode::OK);
        let key = json!({"name": MARK, "team": "platform", "scopes": ["keys:write"]}).to_string();
        let answer = server.post(&server.admin, "/v1/keys", &key).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let key = answer.json()["id"].as_str().expect("an id").to_owned();
        let said = TaskEvent::Message {
            call: None,
            content: vec![Block::Text { text: Content::Inline(MARK.to_owned()) }],
            stop_reason: None,
        };
        server.service.record(task, vec![said], &Actor::system("test"), Timestamp::now()).await;
        let last = server.store.read_stream(&StreamName::task(task), None, Direction::Backwards, 1).await;
        let output = last.expect("a stream").first().expect("an event").revision.0;
        let sessions = Mutex::new(server.disposable_sessions(DISPOSABLE).await);
        let webhook = json!({"url": "https://receiver.example/canary", "events": ["task.*"], "team": "platform"});
        let answer = server.post(&server.admin, "/v1/webhooks", &webhook.to_string()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let webhook = answer.json()["id"].as_str().expect("an id").parse().expect("a webhook id");
        let message = server.webhooks.delivered(webhook, 1).await;
        let removable = Mutex::new(server.webhooks.many(REMOVALS, "platform", MARK).await);
        Self { task, campaign, key, webhook, message, removable, output, sessions }
    }

    fn removable(&self, row: &Row) -> String {
        let id = self.removable.lock().expect("no panic while held").pop().expect("there are REMOVALS of them");
        row.path.replace("{id}", &id.to_string())
    }

    /// The sample of a row. Whoever adds a route adds a request that would go through here.
    fn sample(&self, server: &Server, row: &Row) -> Sample {
        let task = (row.path.replace("{id}", &self.task.to_string()), row.path.replace("{id}", NO_TASK));
        let campaign = (row.path.replace("{id}", &self.campaign.to_string()), row.path.replace("{id}", NO_CAMPAIGN));
        let webhook = (row.path.replace("{id}", &self.webhook.to_string()), row.path.replace("{id}", NO_WEBHOOK));
        let key = (row.path.replace("{id}", &self.key), row.path.replace("{id}", NO_KEY));
        let of = |(path, missing): (String, String), body| Sample { path, missing: Some(missing), body };
        let plain = |body| Sample { path: row.path.to_owned(), missing: None, body };
        let at = |path: &str| Sample { path: path.to_owned(), missing: None, body: Body::Nothing };
        let secrets = || Body::Json(json!({"git": {"token": "ghp_x"}}));
        match (row.method.as_str(), row.path) {
            ("POST", "/v1/tasks") => plain(Body::Json(own_team(example()))),
            ("POST", "/v1/campaigns") => plain(Body::Json(own_team(json!({
                "name": "x", "repos": ["acme/api"], "task": "x", "model": "claude-sonnet-4-6",
            })))),
            ("POST", "/v1/keys") => plain(Body::Json(json!({"name": "x", "scopes": ["keys:write"], "team": null}))),
            (_, "/v1/keys/{id}" | "/v1/keys/{id}/rotate") => of(key, Body::Nothing),
            ("POST", "/v1/tasks/{id}/messages") => of(task, Body::Json(json!({"message": "Go on."}))),
            ("PUT", "/v1/tasks/{id}/credentials") => of(task, secrets()),
            ("PUT", "/v1/campaigns/{id}/credentials") => of(campaign, secrets()),
            (_, "/v1/tasks/{id}" | "/v1/tasks/{id}/events" | "/v1/tasks/{id}/diff")
            | ("POST", "/v1/tasks/{id}/cancel" | "/v1/tasks/{id}/retry") => of(task, Body::Nothing),
            (_, "/v1/campaigns/{id}") | ("POST", "/v1/campaigns/{id}/cancel" | "/v1/campaigns/{id}/retry") => {
                of(campaign, Body::Nothing)
            }
            ("DELETE", "/v1/tasks/{id}/content") => of(task, Body::Nothing),
            ("DELETE", "/v1/campaigns/{id}/content") => of(campaign, Body::Nothing),
            (method, "/v1/budgets/{scope}") => {
                let body = if method == "PUT" { Body::Json(json!({})) } else { Body::Nothing };
                let at = |project: &str| format!("/v1/budgets/project:platform/{project}");
                of((at(MARK), at("no-such")), body)
            }
            ("GET", "/v1/audit" | "/v1/audit/key" | "/v1/audit/checkpoints" | "/v1/audit/export" | "/audit")
            | ("POST", "/v1/audit/checkpoints") => plain(Body::Nothing),
            (method, "/v1/billing/plans/{team}") => {
                let plan = || Body::Json(json!({"effectiveFrom": "2026-01-01", "markUpBasisPoints": 0}));
                let body = if method == "PUT" { plan() } else { Body::Nothing };
                of(("/v1/billing/plans/platform".to_owned(), "/v1/billing/plans/no-such-team".to_owned()), body)
            }
            (_, "/v1/billing/periods/{period}" | "/v1/billing/periods/{period}/close") => {
                at(&row.path.replace("{period}", "2026-01"))
            }
            ("POST", "/v1/billing/periods/{period}/push") => Sample {
                body: Body::Json(json!({"webhook": self.webhook.to_string()})),
                ..at("/v1/billing/periods/2026-01/push")
            },
            ("POST", "/usage/{period}/close") => Sample {
                path: "/usage/2026-01/close".to_owned(),
                missing: None,
                body: Body::Form(vec![("team", "platform".to_owned())]),
            },
            ("GET", "/v1/billing/periods" | "/usage") => plain(Body::Nothing),
            ("POST", "/v1/webhooks") => {
                plain(Body::Json(json!({"url": "https://receiver.example/hook", "events": ["task.*"]})))
            }
            ("PATCH", "/v1/webhooks/{id}") => of(webhook, Body::Json(json!({"enabled": true}))),
            ("POST", "/v1/webhooks/{id}/replay") => of(webhook, Body::Json(json!({"from": 1, "to": 1}))),
            // Gone, every row after this would find nothing: each time another one.
            ("DELETE", "/v1/webhooks/{id}") => of((self.removable(row), webhook.1), Body::Nothing),
            ("POST", "/webhooks/{id}/remove") => of((self.removable(row), webhook.1), Body::Form(Vec::new())),
            (_, "/v1/webhooks/{id}" | "/v1/webhooks/{id}/deliveries" | "/v1/webhooks/{id}/secret")
            | ("POST", "/v1/webhooks/{id}/test") => of(webhook, Body::Nothing),
            ("POST", "/webhooks") => plain(Body::Form(vec![
                ("url", "https://receiver.example/hook".to_owned()),
                ("events", "task.*".to_owned()),
            ])),
            ("GET", "/webhooks/{id}") => of(webhook, Body::Nothing),
            ("POST", "/webhooks/{id}/replay") => of(webhook, Body::Form(vec![("message", self.message.to_string())])),
            ("POST", path) if path.starts_with("/webhooks/{id}/") => of(webhook, Body::Form(Vec::new())),
            ("GET", "/v1/webhooks" | "/webhooks") => plain(Body::Nothing),
            ("GET", "/v1/tasks" | "/v1/campaigns" | "/v1/keys" | "/v1/events" | "/v1/budgets" | "/v1/usage")
            | ("GET", "/openapi.json" | "/docs" | "/docs/style.css" | "/docs/errors")
            | ("GET", "/healthz" | "/readyz" | "/metrics")
            | ("GET", "/" | "/tasks" | "/live/tasks" | "/campaigns" | "/live/campaigns" | "/budgets" | "/sign-in") => {
                plain(Body::Nothing)
            }
            ("GET", "/docs/errors/{code}") => at("/docs/errors/internal"),
            ("GET", "/assets/{name}") => at("/assets/icon.svg"),
            ("GET", "/sign-in/{ticket}") => {
                let holder = server.app.keys.authenticate(&server.admin).expect("the first key");
                let ticket = server.app.dashboard.tickets.issue(holder).expect("randomness");
                at(&format!("/sign-in/{}", ticket.expose_secret()))
            }
            ("POST", "/sign-in") => plain(Body::Form(vec![("key", server.admin.clone()), ("next", "/".to_owned())])),
            // Without a provider there is nothing there.
            ("GET", "/sign-in/oidc" | "/sign-in/oidc/return") => plain(Body::Nothing),
            ("POST", "/team") => plain(Body::Form(vec![("team", "platform".to_owned())])),
            ("GET", "/people" | "/keys") => plain(Body::Nothing),
            ("POST", "/keys") => plain(Body::Form(vec![("name", "x".to_owned()), ("scopes", "keys:write".to_owned())])),
            ("POST", "/keys/{id}/rotate" | "/keys/{id}/revoke") => {
                let key = row.path.replace("{id}", &self.key);
                Sample { path: key, missing: Some(row.path.replace("{id}", NO_KEY)), body: Body::Form(Vec::new()) }
            }
            ("POST", "/people/{id}/end" | "/people/{id}/end-all") => {
                let session = self.sessions.lock().expect("not poisoned").pop().expect("enough sessions");
                let of = |id: &str| row.path.replace("{id}", id);
                Sample { path: of(&session), missing: Some(of(NO_SESSION)), body: Body::Form(Vec::new()) }
            }
            ("POST", "/sign-out") => plain(Body::Form(Vec::new())),
            ("GET", "/tasks/{id}" | "/tasks/{id}/live" | "/tasks/{id}/diff" | "/tasks/{id}/diff.patch") => {
                of(task, Body::Nothing)
            }
            ("GET", "/tasks/{id}/output/{revision}") => {
                let with = |path: String| path.replace("{revision}", &self.output.to_string());
                of((with(task.0), with(task.1)), Body::Nothing)
            }
            ("POST", "/tasks/{id}/cancel" | "/tasks/{id}/retry" | "/tasks/{id}/credentials") => {
                of(task, Body::Form(Vec::new()))
            }
            ("POST", "/tasks/{id}/erase") => of(task, Body::Form(vec![("certain", "yes".to_owned())])),
            ("POST", "/campaigns/{id}/erase") => of(campaign, Body::Form(vec![("certain", "yes".to_owned())])),
            ("POST", "/tasks/{id}/messages") => of(task, Body::Form(vec![("message", "Go on.".to_owned())])),
            ("GET", "/campaigns/{id}" | "/campaigns/{id}/live") => of(campaign, Body::Nothing),
            ("POST", "/campaigns/{id}/cancel" | "/campaigns/{id}/retry" | "/campaigns/{id}/credentials") => {
                of(campaign, Body::Form(Vec::new()))
            }
            (method, path) => panic!("the matrix has no sample for {method} {path}: add one here"),
        }
    }
}

/// Without the team: every caller's own.
fn own_team(mut body: Value) -> Value {
    body.as_object_mut().expect("an object").remove("team");
    body
}

/// How a caller shows who they are.
#[derive(Clone)]
enum Shown {
    Nothing,
    Bearer(String),
    Cookie(String),
}

fn request(row: &Row, path: &str, body: &Body, shown: &Shown) -> TestRequest {
    let request = TestRequest::default()
        .method(row.method.clone())
        .uri(path)
        .peer_addr("192.0.2.7:5000".parse().expect("an address"))
        .insert_header(("sec-fetch-site", "same-origin"));
    let request = match body {
        Body::Nothing => request,
        Body::Json(body) => request.insert_header(("content-type", "application/json")).set_payload(body.to_string()),
        Body::Form(fields) => request.set_form(fields.iter().map(|(name, value)| (*name, value)).collect::<Vec<_>>()),
    };
    match shown {
        Shown::Nothing => request,
        Shown::Bearer(key) => request.insert_header(("authorization", format!("Bearer {key}"))),
        Shown::Cookie(value) => request.insert_header(("cookie", format!("{}={value}", session::COOKIE))),
    }
}

async fn call<S, R>(service: &S, request: R) -> ServiceResponse<BoxBody>
where
    S: Service<R, Response = ServiceResponse<BoxBody>, Error = Error>,
{
    call_service(service, request).await
}

/// The whole answer, or for a stream its beginning: a stream of nobody's things would never end.
async fn whole<S, R>(service: &S, row: &Row, request: R) -> (StatusCode, Bytes)
where
    S: Service<R, Response = ServiceResponse<BoxBody>, Error = Error>,
{
    let answer = call(service, request).await;
    let status = answer.status();
    let streams = row.surface == Surface::Stream || row.path == "/v1/events";
    if streams && status == StatusCode::OK {
        return (status, Bytes::new());
    }
    let body = tokio::time::timeout(SOON, read_body(answer)).await;
    (status, body.unwrap_or_else(|_| panic!("{} {} does not end", row.method, row.path)))
}

/// Whether an answer says who is calling is unknown.
fn unknown(row: &Row, answer: &ServiceResponse<BoxBody>) -> bool {
    match row.surface {
        Surface::Api | Surface::Stream => answer.status() == StatusCode::UNAUTHORIZED,
        Surface::Page => {
            let to = answer.headers().get("location").and_then(|to| to.to_str().ok()).unwrap_or_default();
            answer.status() == StatusCode::SEE_OTHER && to.starts_with("/sign-in?next=")
        }
    }
}

macro_rules! service {
    ($server:expr) => {{
        let app = $server.app.clone();
        init_service(actix_web::App::new().configure(|cfg| configure(cfg, app))).await
    }};
}

/// Which scopes a caller has: one alone, none, or all but one.
fn sets() -> Vec<(String, Vec<Scope>)> {
    let mut sets: Vec<_> = Scope::ALL.iter().map(|scope| (scope.as_str().to_owned(), vec![*scope])).collect();
    sets.push(("none".to_owned(), Vec::new()));
    sets
}

/// Whether a caller is somebody.
#[derive(Clone, Copy)]
enum Known {
    Yes,
    No,
    /// They are, and call from where they may not.
    Elsewhere,
}

/// What the table says of a caller with these scopes.
fn may(access: Access, scopes: &[Scope]) -> bool {
    match access {
        Access::Anyone | Access::Known => true,
        Access::Scope(wanted) => scopes.contains(&wanted) || scopes.contains(&Scope::Admin),
    }
}

/// The tables as operators read them. A scope that goes, or changes, shows in what is committed.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scopes.md");

#[test]
fn the_documented_scopes_are_those_of_the_tables() {
    let mut text = "# Who may ask what\n\n\
        Every route with the scope that a key, or a person's role, needs for it. `admin` has them all, for every team. Keys that are \
        bound to a part of a team (its projects, repositories and so on) are let in where the last column says so, and are \
        refused elsewhere. Made \
        from the route tables; `ORCHESTRA_ACCEPT=1 cargo test --workspace --test api` writes it anew.\n\n\
        | | path | needs | bound keys |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for row in rows() {
        let needs = match row.access {
            Access::Anyone => "nothing".to_owned(),
            Access::Known => "a key or a session".to_owned(),
            Access::Scope(scope) => format!("`{}`", scope.as_str()),
        };
        let bound = match row.access {
            Access::Anyone => "-",
            Access::Known | Access::Scope(_) if is_narrowed(row.path) => "yes",
            Access::Known | Access::Scope(_) => "no",
        };
        text += &format!("| {} | `{}` | {needs} | {bound} |\n", row.method, row.path);
    }
    if std::env::var_os("ORCHESTRA_ACCEPT").is_some() {
        std::fs::write(COMMITTED, &text).expect("a file");
    }
    let committed = std::fs::read_to_string(COMMITTED).expect("a committed document");
    assert!(
        committed == text,
        "who may ask what differs from docs/scopes.md; if that is meant, run the tests with ORCHESTRA_ACCEPT=1 and commit"
    );
}

#[actix_web::test]
async fn every_route_asks_every_caller_for_its_scope() {
    let server = Server::start().await;
    let things = Things::new(&server).await;
    let service = service!(server);
    let mut looked_at = 0;
    let garbage = format!("{}0000", &server.admin[..server.admin.len() - 4]);
    for (name, scopes) in sets() {
        let good = server.key(Some("platform"), &scopes).await;
        let revoked = server.key(Some("platform"), &scopes).await;
        let holder = server.app.keys.authenticate(&revoked).expect("not revoked yet");
        let (cookie, ended) = (server.session(&good).await, server.session(&revoked).await);
        server.revoke(&holder.who).await;
        let new = NewKey { team: Some("platform".to_owned()), scopes: scopes.clone(), ..NewKey::default() };
        let now = Timestamp::now();
        let ending = |at| NewKey { expires_at: Some(at), ..new.clone() };
        let from = |network: &str| NewKey {
            bounds: Bounds { networks: vec![network.parse().expect("a network")], ..Bounds::default() },
            ..new.clone()
        };
        let (id, within_overlap) = server.issue(new.clone()).await;
        let rotated = server.rotate(id, Duration::from_secs(3_600)).await;
        let (id, rotated_out) = server.issue(new.clone()).await;
        server.rotate(id, Duration::ZERO).await;
        let good_key = |text: String| (Known::Yes, Shown::Bearer(text));
        let dead_key = |text: String| (Known::No, Shown::Bearer(text));
        let mut callers = [
            ("a good key", good_key(good.clone())),
            ("its session", (Known::Yes, Shown::Cookie(cookie))),
            ("a rotated key", good_key(rotated)),
            ("a rotated key's text before, within the overlap", good_key(within_overlap)),
            ("a key that will expire", good_key(server.issue(ending(now + Duration::from_secs(3_600))).await.1)),
            ("a key of this network", good_key(server.issue(from("192.0.2.0/24")).await.1)),
            ("a key of another network", (Known::Elsewhere, Shown::Bearer(server.issue(from("10.0.0.0/8")).await.1))),
            ("a rotated key's text before, after the overlap", dead_key(rotated_out)),
            ("an expired key", dead_key(server.issue(ending(now - Duration::from_secs(1))).await.1)),
            ("a revoked key", dead_key(revoked)),
            ("a revoked key's session", (Known::No, Shown::Cookie(ended))),
            ("nobody", (Known::No, Shown::Nothing)),
            ("garbage", dead_key(garbage.clone())),
            ("a cookie of ours that never was", (Known::No, Shown::Cookie("00".repeat(32)))),
        ];
        for row in rows() {
            for (kind, (known, shown)) in &callers {
                // Nobody hands on more than they have: who is let in for a while only, or from one network, gives a key no
                // text that stays, and none that works from everywhere.
                let less = ["within the overlap", "will expire", "of this network"];
                if less.iter().any(|part| kind.contains(part)) && row.path.ends_with("/keys/{id}/rotate") {
                    continue;
                }
                let sample = things.sample(&server, &row);
                let cell = format!("{} {} by {kind} with {name}", row.method, row.path);
                let mut body = sample.body.clone();
                if let (Body::Form(fields), Shown::Cookie(cookie)) = (&mut body, shown) {
                    fields.push(("csrf", orchestra_web::pages::shell::csrf_token(cookie)));
                }
                let answer = call(&service, request(&row, &sample.path, &body, shown).to_request()).await;
                let status = answer.status();
                assert!(!status.is_server_error() || status == StatusCode::SERVICE_UNAVAILABLE, "{cell}: {status}");
                looked_at += 1;
                match (row.access, known) {
                    (Access::Anyone, _) => {
                        assert!(!matches!(status.as_u16(), 401 | 403), "{cell}: {status}");
                    }
                    (Access::Known | Access::Scope(_), Known::No) => {
                        assert!(unknown(&row, &answer), "{cell}: {status}");
                    }
                    (access, Known::Yes) if may(access, &scopes) => {
                        assert!(!unknown(&row, &answer), "{cell}: {status}");
                        assert!(!matches!(status.as_u16(), 401 | 403 | 404 | 405), "{cell}: {status}");
                    }
                    (_, Known::Yes | Known::Elsewhere) => assert_eq!(status, StatusCode::FORBIDDEN, "{cell}"),
                }
            }
            // Signing in anew and signing out end a session.
            if row.path.starts_with("/sign-") {
                callers[1].1.1 = Shown::Cookie(server.session(&good).await);
            }
        }
    }
    assert!(looked_at > 5_000, "{looked_at}");
}

/// The fields of a form with the token of this session's pages.
fn with_token(body: &Body, cookie: &str) -> Body {
    match body {
        Body::Form(fields) => {
            let mut fields = fields.clone();
            fields.push(("csrf", orchestra_web::pages::shell::csrf_token(cookie)));
            Body::Form(fields)
        }
        other @ (Body::Nothing | Body::Json(_)) => other.clone(),
    }
}

#[actix_web::test]
async fn every_route_asks_every_role_in_the_own_team_and_in_another() {
    let server = Server::start().await;
    let things = Things::new(&server).await;
    let service = service!(server);
    let mut looked_at = 0;
    let roles = [Role::Viewer, Role::Operator, Role::Admin];
    let mut expired = Vec::new();
    for role in roles {
        let cookie = server.person_for(SHORT, "platform", role).await;
        let tasks = TestRequest::get().uri("/tasks").insert_header(("cookie", format!("{}={cookie}", session::COOKIE)));
        assert_eq!(call(&service, tasks.to_request()).await.status(), StatusCode::OK, "it works while it lasts");
        expired.push(cookie);
    }
    tokio::time::sleep(SHORT).await;
    for (role, expired) in roles.into_iter().zip(&expired) {
        let scopes = role.scopes();
        for row in rows() {
            // Signing in anew and signing out end a session, and so does an end of all of a person's: each row has its own.
            let own = server.person("platform", role).await.1;
            let other = server.person("mobile", role).await.1;
            let (id, ended) = server.person("platform", role).await;
            let gone = server.app.sessions.end(&*server.store, id, SessionEnd::SignedOut, &Actor::system("test")).await;
            gone.expect("an append");
            let sample = things.sample(&server, &row);
            let cell = |who: &str| format!("{} {} by {who} {role:?}", row.method, row.path);
            let ask = |path: &str, cookie: &str| {
                let shown = Shown::Cookie(cookie.to_owned());
                request(&row, path, &with_token(&sample.body, cookie), &shown).to_request()
            };
            for (cookie, kind) in [(&ended, "an ended"), (expired, "an expired")] {
                let answer = call(&service, ask(&sample.path, cookie)).await;
                let refused = row.access == Access::Anyone || unknown(&row, &answer);
                assert!(refused, "{}: {}", cell(kind), answer.status());
                looked_at += 1;
            }
            if row.access == Access::Anyone {
                continue;
            }
            // Another team's things are not there for them, whatever they may at home.
            if let Some(missing) = &sample.missing {
                let theirs = whole(&service, &row, ask(&sample.path, &other)).await;
                let nobodys = whole(&service, &row, ask(missing, &other)).await;
                assert_eq!(theirs, nobodys, "{}", cell("another team's"));
                let expected = if may(row.access, &scopes) { StatusCode::NOT_FOUND } else { StatusCode::FORBIDDEN };
                assert_eq!(theirs.0, expected, "{}", cell("another team's"));
            }
            // Without the token of its page no form does anything; who may not is told that first.
            if matches!(sample.body, Body::Form(_)) {
                let shown = Shown::Cookie(own.clone());
                let answer = call(&service, request(&row, &sample.path, &sample.body, &shown).to_request()).await;
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{} without a token", cell("the own team's"));
            }
            let status = call(&service, ask(&sample.path, &own)).await.status();
            if may(row.access, &scopes) {
                assert!(!matches!(status.as_u16(), 401 | 403 | 404 | 405), "{}: {status}", cell("the own team's"));
            } else {
                assert_eq!(status, StatusCode::FORBIDDEN, "{}", cell("the own team's"));
            }
        }
    }
    assert!(looked_at > 400, "{looked_at}");
}

#[actix_web::test]
async fn keys_that_are_bound_to_a_part_are_let_in_where_answers_are_held_to_it_and_nowhere_else() {
    let server = Server::start().await;
    let things = Things::new(&server).await;
    let service = service!(server);
    let scopes: Vec<_> = Scope::ALL.iter().copied().filter(|scope| *scope != Scope::Admin).collect();
    let bounds = Bounds { projects: vec![MARK.into()], ..Bounds::default() };
    let new = NewKey { team: Some("platform".to_owned()), scopes: scopes.clone(), bounds, ..NewKey::default() };
    let bound = Shown::Bearer(server.issue(new).await.1);
    for row in rows().into_iter().filter(|row| matches!(row.access, Access::Scope(scope) if scopes.contains(&scope))) {
        let sample = things.sample(&server, &row);
        let status = call(&service, request(&row, &sample.path, &sample.body, &bound).to_request()).await.status();
        if !is_narrowed(row.path) {
            assert_eq!(status, StatusCode::FORBIDDEN, "{} {}", row.method, row.path);
        } else if row.method == Method::GET && row.path != "/v1/events" && sample.missing.is_none() {
            assert_eq!(status, StatusCode::OK, "{} {}", row.method, row.path);
        }
    }
}

#[actix_web::test]
async fn what_is_another_teams_is_as_if_it_were_not() {
    let server = Server::start().await;
    let service = service!(server);
    // Everything but an operator's.
    let scopes: Vec<_> = Scope::ALL.iter().copied().filter(|scope| *scope != Scope::Admin).collect();
    let mut others = vec![
        ("another team's", Shown::Bearer(server.key(Some("mobile"), &scopes).await)),
        ("no team's", Shown::Bearer(server.key(None, &scopes).await)),
    ];
    // Those of the same team who are bound to something else, an operator of it included.
    let pattern = |text: &str| text.parse().expect("a pattern");
    let elsewhere = [
        ("bound to a project", Bounds { projects: vec!["elsewhere".into()], ..Bounds::default() }),
        ("bound to an environment", Bounds { environments: vec!["elsewhere".into()], ..Bounds::default() }),
        ("bound to a task type", Bounds { task_types: vec!["elsewhere".into()], ..Bounds::default() }),
        ("bound to repositories", Bounds { repos: vec![pattern("github:acme/else*")], ..Bounds::default() }),
        ("bound to a repository of two", Bounds { repos: vec![pattern("github:acme/web")], ..Bounds::default() }),
        ("bound to models", Bounds { models: vec![pattern("gpt-*")], ..Bounds::default() }),
    ];
    for (kind, bounds) in elsewhere {
        let new = NewKey { team: Some("platform".to_owned()), scopes: scopes.clone(), bounds, ..NewKey::default() };
        others.push((kind, Shown::Bearer(server.issue(new.clone()).await.1)));
        let new = NewKey { team: None, scopes: vec![Scope::Admin], ..new };
        others.push((kind, Shown::Bearer(server.issue(new).await.1)));
    }
    let public = |row: &Row| row.access == Access::Anyone;
    // What the lists say before the own team has anything…
    let mut before = BTreeMap::new();
    for row in rows().into_iter().filter(|row| row.method == Method::GET && !public(row) && !row.path.contains('{')) {
        for (_, shown) in &others {
            let answer = whole(&service, &row, request(&row, row.path, &Body::Nothing, shown).to_request()).await;
            before.entry(row.path).or_insert_with(Vec::new).push(answer);
        }
    }
    let things = Things::new(&server).await;
    // … they say afterwards, byte for byte.
    for row in rows().into_iter().filter(|row| before.contains_key(row.path) && row.method == Method::GET) {
        for ((kind, shown), was) in others.iter().zip(&before[row.path]) {
            let is = whole(&service, &row, request(&row, row.path, &Body::Nothing, shown).to_request()).await;
            let without_position = |text: &Bytes| {
                let text = String::from_utf8_lossy(text).into_owned();
                // A page's stream begins where the log was when the page was made.
                text.split("position=")
                    .map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()))
                    .collect::<Vec<_>>()
                    .join("")
            };
            assert_eq!(is.0, was.0, "{} by a key {kind}", row.path);
            assert_eq!(without_position(&is.1), without_position(&was.1), "{} by a key {kind}", row.path);
        }
    }
    // What has an id answers as an id that nothing has.
    let mut looked_at = 0;
    for row in rows().into_iter().filter(|row| !public(row)) {
        let sample = things.sample(&server, &row);
        let Some(missing) = sample.missing else { continue };
        for (kind, shown) in &others {
            let theirs = whole(&service, &row, request(&row, &sample.path, &sample.body, shown).to_request()).await;
            let nobodys = whole(&service, &row, request(&row, &missing, &sample.body, shown).to_request()).await;
            let cell = format!("{} {} by a key {kind}", row.method, row.path);
            // A budget has no parts, and neither has what is not narrowed at all: who is bound to a part is told so, whether
            // the thing exists or not.
            let no_part = kind.starts_with("bound") && (row.path == "/v1/budgets/{scope}" || !is_narrowed(row.path));
            let expected = if no_part { nobodys.0 } else { StatusCode::NOT_FOUND };
            assert_eq!(theirs.0, expected, "{cell}");
            assert_eq!(theirs, nobodys, "{cell}");
            assert!(matches!(theirs.0.as_u16(), 403 | 404), "{cell}");
            assert!(!String::from_utf8_lossy(&theirs.1).contains(MARK), "{cell}");
            looked_at += 1;
        }
        // The operator finds the same thing: the sample is right.
        let operator = Shown::Bearer(server.admin.clone());
        let found = call(&service, request(&row, &sample.path, &sample.body, &operator).to_request()).await;
        assert_ne!(found.status(), StatusCode::NOT_FOUND, "{} {}", row.method, row.path);
    }
    assert!(looked_at > 30, "{looked_at}");
}

#[actix_web::test]
async fn no_spelling_of_a_path_gets_round_the_guard() {
    let server = Server::start().await;
    let things = Things::new(&server).await;
    let service = service!(server);
    for row in rows().into_iter().filter(|row| row.access != Access::Anyone) {
        let path = things.sample(&server, &row).path;
        let last = path.rfind('/').expect("a slash");
        let spellings = [
            format!("{path}/"),
            format!("/{path}"),
            format!("//{}", path.trim_start_matches('/')),
            format!("{path}?x=/healthz"),
            format!("{path}%00"),
            format!("/healthz/..{path}"),
            format!("/./{}", path.trim_start_matches('/')),
            format!("/%2e{path}"),
            format!("{}%2F{}", &path[..last], &path[last + 1..]),
            path.replace("/v1", "/%761").replace("tasks", "t%61sks").replace("campaigns", "c%61mpaigns"),
            path.to_uppercase(),
            format!("{path};x=1"),
        ];
        for method in ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW"] {
            for spelling in &spellings {
                let Ok(uri) = spelling.parse::<actix_web::http::Uri>() else { continue };
                let method = Method::from_bytes(method.as_bytes()).expect("a method");
                let request = TestRequest::default().method(method.clone()).uri(&uri.to_string());
                let answer =
                    call(&service, request.insert_header(("x-http-method-override", "GET")).to_request()).await;
                let status = answer.status().as_u16();
                // Whichever row it was that matched.
                let signs_in = unknown(&Row { surface: Surface::Page, ..row.clone() }, &answer);
                let refused = matches!(status, 401 | 404 | 405) || signs_in;
                assert!(refused, "{method} {spelling}: {status}");
            }
        }
    }
}
