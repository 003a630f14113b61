//! The dashboard's promises: nothing hostile gets through, nobody acts for somebody else, and no event is missed.

#[allow(dead_code, reason = "the example uses the rest")]
#[path = "pages/scripted.rs"]
mod scripted;

use std::time::Duration;

use actix_web::App;
use actix_web::body::MessageBody;
use actix_web::cookie::Cookie;
use actix_web::dev::ServiceResponse;
use actix_web::http::{StatusCode, header};
use actix_web::test::{TestRequest, call_service, init_service, read_body};
use askama::Template;
use orchestra_events::key::Scope;
use orchestra_events::task::event::ToolOutcome;
use orchestra_events::task::{Command, TaskEvent};
use orchestra_events::{Actor, EventStore as _, StreamName, TaskId};
use orchestra_web::headers::CONTENT_SECURITY_POLICY;
use orchestra_web::pages::sample::HOSTILE;
use orchestra_web::pages::{
    audit, budgets, campaigns, docs, error, keys, people, sign_in, task, tasks, usage, webhooks,
};
use scripted::World;
use secrecy::ExposeSecret as _;
use serde_json::json;

/// How long anything that should happen may take.
const PATIENCE: Duration = Duration::from_secs(10);

macro_rules! server {
    ($world:expr) => {{
        let app = $world.app.clone();
        init_service(App::new().configure(|cfg| orchestra_web::configure(cfg, app))).await
    }};
}

async fn text<B: MessageBody>(response: ServiceResponse<B>) -> String
where
    B::Error: std::fmt::Debug,
{
    let body = actix_web::body::to_bytes(response.into_body()).await.expect("a body");
    String::from_utf8(body.to_vec()).expect("UTF-8")
}

fn location<B>(response: &ServiceResponse<B>) -> &str {
    response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Signs in through the form; the session's cookie.
macro_rules! sign_in {
    ($server:expr, $key:expr) => {{
        let form = [("key", $key.expose_secret()), ("next", "/tasks")];
        let request =
            TestRequest::post().uri("/sign-in").insert_header(("sec-fetch-site", "same-origin")).set_form(form);
        let response = call_service(&$server, request.to_request()).await;
        assert_eq!((response.status(), location(&response)), (StatusCode::SEE_OTHER, "/tasks"));
        response.response().cookies().next().expect("a cookie").into_owned()
    }};
}

fn csrf(page: &str) -> String {
    let (_, after) = page.split_once("name=\"csrf\" value=\"").expect("a form");
    after.split('"').next().expect("a value").to_owned()
}

/// No markup but our own, and nothing that a strict policy would refuse.
fn assert_harmless(html: &str) {
    let lower = html.to_lowercase();
    for forbidden in ["<script>", "<img src=x", "style=\"", "<style", "href=\"javascript:", " onclick=", " onload="] {
        assert!(!lower.contains(forbidden), "{forbidden} in:\n{html}");
    }
}

/// Whether the page shows these words, in whichever of the ways that the two template engines escape them.
fn shows(html: &str, words: &str) -> bool {
    let named = [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&quot;")];
    let numbered = [('&', "&#38;"), ('<', "&#60;"), ('>', "&#62;"), ('"', "&#34;")];
    let escaped =
        |with: [(char, &str); 4]| with.iter().fold(words.to_owned(), |text, (from, to)| text.replace(*from, to));
    let slashed = escaped(named).replace('/', "&#x2f;");
    [escaped(named), escaped(numbered), slashed].iter().any(|text| html.contains(text.as_str()))
}

#[test]
fn every_template_renders_every_sample() {
    fn all<T: Template>(samples: Vec<T>) -> Vec<String> {
        assert!(!samples.is_empty());
        samples.iter().map(|sample| sample.render().expect("it renders")).collect()
    }
    let pages = [
        all(tasks::TasksPage::samples()),
        all(task::TaskPage::samples()),
        all(task::DiffPage::samples()),
        all(sign_in::SignInPage::samples()),
        all(sign_in::OnwardPage::samples()),
        all(people::PeoplePage::samples()),
        all(keys::KeysPage::samples()),
        all(keys::KeyShownPage::samples()),
        all(error::MessagePage::samples()),
        all(docs::DocPage::samples()),
        all(audit::AuditPage::samples()),
        all(budgets::BudgetsPage::samples()),
        all(usage::UsagePage::samples()),
        all(campaigns::CampaignsPage::samples()),
        all(campaigns::CampaignPage::samples()),
        all(webhooks::WebhooksPage::samples()),
        all(webhooks::WebhookPage::samples()),
    ];
    for html in pages.iter().flatten() {
        assert!(html.starts_with("<!doctype html>") && html.contains("<h1") && html.contains("</html>"), "{html}");
        assert_harmless(html);
    }
}

#[actix_web::test]
async fn a_webhooks_secret_is_on_the_page_that_made_it_and_on_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let server = server!(world);
    let cookie = sign_in!(server, world.admin);
    let get = |path: &str| TestRequest::get().uri(path).cookie(cookie.clone()).to_request();
    let list = text(call_service(&server, get("/webhooks")).await).await;
    let form = |csrf: String| {
        [
            ("csrf", csrf),
            ("url", "https://receiver.example/hook".to_owned()),
            ("events", "task.*, campaign.finished".to_owned()),
            ("description", HOSTILE.chars().filter(|char| !char.is_control()).take(80).collect()),
        ]
    };
    let send = |path: &str, csrf: String| {
        let request = TestRequest::post().uri(path).cookie(cookie.clone());
        request.insert_header(("sec-fetch-site", "same-origin")).set_form(form(csrf)).to_request()
    };
    let stale = call_service(&server, send("/webhooks", "00".repeat(32))).await;
    assert!(stale.status().is_client_error(), "a form without its token makes nothing");
    let made = call_service(&server, send("/webhooks", csrf(&list))).await;
    assert_eq!(made.status(), StatusCode::OK);
    assert_eq!(made.headers().get(header::CACHE_CONTROL).and_then(|v| v.to_str().ok()), Some("no-store"));
    let made = text(made).await;
    assert!(made.contains("whsec_"), "{made}");
    assert_harmless(&made);
    let list = text(call_service(&server, get("/webhooks")).await).await;
    let (_, after) = list.split_once("href=\"/webhooks/webhook_").expect("a link");
    let path = format!("/webhooks/webhook_{}", after.split('"').next().expect("an id"));
    let page = text(call_service(&server, get(&path)).await).await;
    assert_harmless(&page);
    assert!(!page.contains("whsec_") && !list.contains("whsec_"));
    let rotated = text(call_service(&server, send(&format!("{path}/secret"), csrf(&page))).await).await;
    assert!(
        rotated.contains("whsec_")
            && !made.contains(rotated.split("whsec_").nth(1).expect("a secret").split('<').next().expect("its end"))
    );
    for (action, shows_words) in [("disable", "Disabled"), ("enable", "Enabled")] {
        let done = call_service(&server, send(&format!("{path}/{action}"), csrf(&page))).await;
        assert_eq!(done.status(), StatusCode::SEE_OTHER, "{action}");
        assert!(shows(&text(call_service(&server, get(&path)).await).await, shows_words), "{action}");
    }
    assert!(shows(
        &text(call_service(&server, send(&format!("{path}/test"), csrf(&page))).await).await,
        "answered 500"
    ));
    assert_eq!(location(&call_service(&server, send(&format!("{path}/remove"), csrf(&page))).await), "/webhooks");
    assert_eq!(call_service(&server, get(&path)).await.status(), StatusCode::NOT_FOUND);
}

#[actix_web::test]
async fn hostile_words_stay_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let id = world.create(HOSTILE, "acme/api", HOSTILE, HOSTILE, 200).await;
    world.begin(id).await;
    let input = json!({"command": format!("echo\n{HOSTILE}")});
    world.reply(id, &format!("# {HOSTILE}\n\n`{HOSTILE}`"), Some(("t1", "bash", input)), 10, Duration::ZERO).await;
    world.tool(id, "t1", ToolOutcome::Error, HOSTILE, Duration::ZERO).await;
    world.service.step(id, Command::Steer { message: HOSTILE.to_owned() }).await;
    world.caught_up().await;
    let server = server!(world);
    let cookie = sign_in!(server, world.admin);
    for path in
        ["/".to_owned(), "/tasks?text=%3Cscript%3E".to_owned(), format!("/tasks/{id}"), format!("/tasks/{id}/diff")]
    {
        let request = TestRequest::get().uri(&path).cookie(cookie.clone()).to_request();
        let response = call_service(&server, request).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let policy = response.headers().get(header::CONTENT_SECURITY_POLICY).expect("a policy");
        assert_eq!(policy, CONTENT_SECURITY_POLICY);
        let html = text(response).await;
        assert!(shows(&html, "<script>"), "{path} shows the words");
        assert_harmless(&html);
    }
    // The tool's answer as text, whatever it pretends to be.
    let output = world.service.store.head().await.expect("a head");
    assert!(output.0 > 0);
    let revision = revision_of(&world, id, "tool-finished").await;
    let request = TestRequest::get().uri(&format!("/tasks/{id}/output/{revision}")).cookie(cookie).to_request();
    let response = call_service(&server, request).await;
    assert_eq!(response.headers().get(header::CONTENT_TYPE).expect("a type"), "text/plain; charset=utf-8");
    assert_eq!(response.headers().get(header::X_CONTENT_TYPE_OPTIONS).expect("nosniff"), "nosniff");
    assert_eq!(text(response).await, HOSTILE);
}

async fn revision_of(world: &World, id: TaskId, kind: &str) -> u64 {
    let events = orchestra_events::store::read_whole_stream(&*world.service.store, &StreamName::task(id)).await;
    events.expect("events").iter().find(|event| &*event.kind == kind).expect("such an event").revision.0
}

async fn kinds(world: &World, id: TaskId) -> Vec<String> {
    let events = orchestra_events::store::read_whole_stream(&*world.service.store, &StreamName::task(id)).await;
    events.expect("events").iter().map(|event| event.kind.to_string()).collect()
}

#[actix_web::test]
async fn a_session_is_kept_in_a_cookie_that_only_this_server_sees() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let server = server!(world);
    let response = call_service(&server, TestRequest::get().uri("/tasks?status=failed").to_request()).await;
    assert_eq!(
        (response.status(), location(&response)),
        (StatusCode::SEE_OTHER, "/sign-in?next=/tasks%3Fstatus%3Dfailed")
    );

    let wrong = TestRequest::post()
        .uri("/sign-in")
        .insert_header(("sec-fetch-site", "same-origin"))
        .set_form([("key", "orc_dev_x_y"), ("next", "//evil.example")]);
    let response = call_service(&server, wrong.to_request()).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(response.response().cookies().next().is_none());
    assert!(!text(response).await.contains("evil.example"));

    let cookie = sign_in!(server, world.admin);
    assert!(cookie.http_only() == Some(true) && cookie.same_site() == Some(actix_web::cookie::SameSite::Strict));
    assert_eq!((cookie.path(), cookie.secure()), (Some("/"), None));
    let key = world.admin.expose_secret();
    assert!(!cookie.value().contains(key), "the key does not stay in the browser");

    // Not everybody who says so came encrypted; behind a proxy that is believed, `web/tests/api/people.rs`.
    let https = TestRequest::post()
        .uri("/sign-in")
        .insert_header(("x-forwarded-proto", "https"))
        .insert_header(("sec-fetch-site", "same-origin"))
        .set_form([("key", key)]);
    let response = call_service(&server, https.to_request()).await;
    assert_eq!(response.response().cookies().next().expect("a cookie").secure(), None);

    let page = call_service(&server, TestRequest::get().uri("/").cookie(cookie.clone()).to_request()).await;
    assert_eq!(page.headers().get(header::CACHE_CONTROL).expect("a rule"), "no-store");
    let token = csrf(&text(page).await);
    let out = |token: &str| {
        TestRequest::post()
            .uri("/sign-out")
            .cookie(cookie.clone())
            .insert_header(("sec-fetch-site", "same-origin"))
            .set_form([("csrf", token)])
            .to_request()
    };
    assert_eq!(call_service(&server, out("wrong")).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(call_service(&server, out(&token)).await.status(), StatusCode::SEE_OTHER);
    let gone = call_service(&server, TestRequest::get().uri("/").cookie(cookie).to_request()).await;
    assert!(location(&gone).starts_with("/sign-in"));
}

#[actix_web::test]
async fn a_ticket_signs_in_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let server = server!(world);
    let caller = world.keys.authenticate(world.admin.expose_secret()).expect("the key is known");
    let ticket = world.app.dashboard.tickets.issue(caller).expect("a ticket");
    let uri = format!("/sign-in/{}", ticket.expose_secret());
    let response = call_service(&server, TestRequest::get().uri(&uri).to_request()).await;
    assert_eq!((response.status(), location(&response)), (StatusCode::SEE_OTHER, "/"));
    let cookie = response.response().cookies().next().expect("a cookie").into_owned();
    let page = call_service(&server, TestRequest::get().uri("/").cookie(cookie).to_request()).await;
    assert_eq!(page.status(), StatusCode::OK);
    let again = call_service(&server, TestRequest::get().uri(&uri).to_request()).await;
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED);
    assert!(again.response().cookies().next().is_none());
}

#[actix_web::test]
async fn a_form_acts_only_for_whom_it_was_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let (id, _) = world.seed().await;
    let server = server!(world);
    let cookie = sign_in!(server, world.admin);
    let other = sign_in!(server, world.admin);
    let page = TestRequest::get().uri(&format!("/tasks/{id}")).cookie(cookie.clone()).to_request();
    let token = csrf(&text(call_service(&server, page).await).await);
    let post = |cookie: &Cookie<'static>, site: &'static str, token: &str| {
        TestRequest::post()
            .uri(&format!("/tasks/{id}/cancel"))
            .cookie(cookie.clone())
            .insert_header(("sec-fetch-site", site))
            .set_form([("csrf", token)])
            .to_request()
    };
    for (cookie, site, token) in [
        (&cookie, "same-origin", ""),
        (&other, "same-origin", &*token),
        (&cookie, "cross-site", &token),
        (&cookie, "none", &token),
    ] {
        let response = call_service(&server, post(cookie, site, token)).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{site} {token}");
    }
    assert!(!kinds(&world, id).await.contains(&"cancel-requested".to_owned()));
    let response = call_service(&server, post(&cookie, "same-origin", &token)).await;
    assert_eq!(location(&response), format!("/tasks/{id}?notice=cancelling"));
    assert!(kinds(&world, id).await.contains(&"cancel-requested".to_owned()));

    // A message reaches the task as a person's; a refusal is a page with a way back.
    let say = |words: String| {
        TestRequest::post()
            .uri(&format!("/tasks/{id}/messages"))
            .cookie(cookie.clone())
            .insert_header(("sec-fetch-site", "same-origin"))
            .set_form([("csrf", token.clone()), ("message", words)])
            .to_request()
    };
    assert_eq!(call_service(&server, say("Keep the tests.".to_owned())).await.status(), StatusCode::SEE_OTHER);
    assert!(kinds(&world, id).await.contains(&"steered".to_owned()));
    let refused = call_service(&server, say(String::new())).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(text(refused).await.contains(&format!("href=\"/tasks/{id}\"")));
}

#[actix_web::test]
async fn another_teams_tasks_do_not_exist() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let (id, _) = world.seed().await;
    let key = world.key("payments", vec![Scope::TasksRead]).await;
    let server = server!(world);
    let cookie = sign_in!(server, key);
    for path in ["", "/live", "/diff", "/diff.patch", "/output/1"] {
        let request = TestRequest::get().uri(&format!("/tasks/{id}{path}")).cookie(cookie.clone()).to_request();
        assert_eq!(call_service(&server, request).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
    let list = text(call_service(&server, TestRequest::get().uri("/").cookie(cookie.clone()).to_request()).await).await;
    assert!(list.contains("moment to date-fns") && !list.contains("terraform"), "{list}");
    let asked = TestRequest::get().uri("/tasks?team=platform").cookie(cookie).to_request();
    assert!(text(call_service(&server, asked).await).await.contains("No task matches"));
}

#[actix_web::test]
async fn filters_live_in_the_address() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    world.seed().await;
    let server = server!(world);
    let cookie = sign_in!(server, world.admin);
    let rows = async |query: &str| {
        let request = TestRequest::get().uri(&format!("/tasks{query}")).cookie(cookie.clone()).to_request();
        let response = call_service(&server, request).await;
        (response.status(), text(response).await.matches("id=\"row-task_").count())
    };
    assert_eq!(rows("").await, (StatusCode::OK, 8));
    assert_eq!(rows("?status=failed").await, (StatusCode::OK, 1));
    assert_eq!(rows("?team=platform").await, (StatusCode::OK, 3));
    assert_eq!(rows("?repo=acme/billing").await, (StatusCode::OK, 2));
    assert_eq!(rows("?text=TERRAFORM+calls").await, (StatusCode::OK, 1));
    assert_eq!(rows("?status=nonsense").await, (StatusCode::BAD_REQUEST, 0));
    assert_eq!(rows("?after=nonsense").await, (StatusCode::BAD_REQUEST, 0));
    for number in 0..tasks::ROWS {
        world.create(&format!("Number {number}"), "acme/many", "platform", "claude-haiku-4-5", 10).await;
    }
    world.caught_up().await;
    let first = TestRequest::get().uri("/tasks?repo=acme/many&text=number").cookie(cookie.clone()).to_request();
    assert!(!text(call_service(&server, first).await).await.contains("rel=\"next\""));
    let page =
        text(call_service(&server, TestRequest::get().uri("/tasks").cookie(cookie.clone()).to_request()).await).await;
    let (before, _) = page.split_once("\" rel=\"next\"").expect("a next page");
    let next = before.rsplit("href=\"").next().expect("an address").replace("&amp;", "&").replace("&#38;", "&");
    assert_eq!(rows(next.strip_prefix("/tasks").expect("this list")).await, (StatusCode::OK, 8));
}

/// A stream, frame by frame.
struct Frames<B> {
    body: std::pin::Pin<Box<B>>,
    buffer: String,
}

/// One frame: its id, its name and its data.
type Frame = (Option<u64>, Option<String>, String);

impl<B: MessageBody> Frames<B> {
    fn new(response: ServiceResponse<B>) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert!(
            response.headers().get(header::CONTENT_TYPE).expect("a type").as_bytes().starts_with(b"text/event-stream")
        );
        Self { body: Box::pin(response.into_body()), buffer: String::new() }
    }

    /// The next frame; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.buffer.split_once("\n\n") {
                let (mut id, mut name, mut data) = (None, None, Vec::new());
                for line in frame.lines() {
                    match line.split_once(": ") {
                        Some(("id", value)) => id = value.parse().ok(),
                        Some(("event", value)) => name = Some(value.to_owned()),
                        Some(("data", value)) => data.push(value),
                        _ => {}
                    }
                }
                let found = (id, name, data.join("\n"));
                let comment = frame.starts_with(':');
                self.buffer = rest.to_owned();
                if comment {
                    continue;
                }
                return Some(found);
            }
            let chunk = std::future::poll_fn(|context| self.body.as_mut().poll_next(context));
            let chunk = tokio::time::timeout(PATIENCE, chunk).await.expect("the stream says something in time")?;
            let Ok(chunk) = chunk else { panic!("the stream broke") };
            self.buffer.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }
}

/// The revisions of the timeline rows in a fragment.
fn rows_in(html: &str) -> Vec<u64> {
    html.split("id=\"e-").skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok()).collect()
}

#[actix_web::test]
async fn a_live_page_resumes_with_no_gap_and_no_repeat_and_settles() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let (id, sandbox) = world.seed().await;
    let server = server!(world);
    let cookie = sign_in!(server, world.admin);
    let page = TestRequest::get().uri(&format!("/tasks/{id}")).cookie(cookie.clone()).to_request();
    let page = text(call_service(&server, page).await).await;
    let mut seen = rows_in(&page);
    let (_, connect) = page.split_once("hx-sse:connect=\"").expect("a stream");
    let uri = connect.split('"').next().expect("an address").to_owned();
    assert!(page.contains("hx-sse:close=\"settled\""));

    // While the reader is away after three frames, everything else happens.
    world.reply(id, "First <b>words</b>.", Some(("t1", "bash", json!({"command": "ls"}))), 10, Duration::ZERO).await;
    let request = TestRequest::get().uri(&uri).cookie(cookie.clone()).to_request();
    let mut frames = Frames::new(call_service(&server, request).await);
    let (last, _, html) = frames.next().await.expect("a frame");
    assert!(
        html.contains("hx-target=\"#timeline\" hx-swap=\"beforeend\"") && html.contains("hx-target=\"#head\""),
        "{html}"
    );
    assert!(shows(&html, "First <b>words</b>."), "{html}");
    seen.extend(rows_in(&html));

    world.service.say(id, "Now I <script>");
    let (no_id, _, spoken) = frames.next().await.expect("words");
    assert_eq!(no_id, None, "words that are not stored move nobody's place");
    assert!(spoken.contains("Now I &lt;script&gt;"), "{spoken}");
    drop(frames);

    world.tool(id, "t1", ToolOutcome::Ok, "main.tf\n", Duration::ZERO).await;
    world.reply(id, "Done.", None, 10, Duration::ZERO).await;
    world.deliver(id, sandbox).await;
    let resume = TestRequest::get()
        .uri(&uri)
        .cookie(cookie.clone())
        .insert_header(("last-event-id", last.expect("an id").to_string()))
        .to_request();
    let mut frames = Frames::new(call_service(&server, resume).await);
    let mut names = Vec::new();
    let mut all = String::new();
    while let Some((_, name, html)) = frames.next().await {
        seen.extend(rows_in(&html));
        all.push_str(&html);
        names.extend(name);
    }
    assert_eq!(names, ["settled"], "the stream ends by itself, and says so");
    let whole: Vec<u64> = (0..kinds(&world, id).await.len() as u64).collect();
    assert_eq!(seen, whole, "every event once, in order");
    assert!(all.contains("hx-target=\"#changes\"") && shows(&all, "domain = \"vpc\""), "{all}");

    let page = TestRequest::get().uri(&format!("/tasks/{id}")).cookie(cookie).to_request();
    let page = text(call_service(&server, page).await).await;
    assert!(!page.contains("hx-sse:connect"), "a page of what is over waits for nothing");
}

#[actix_web::test]
async fn an_open_list_shows_what_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let (id, _) = world.seed().await;
    let server = server!(world);
    let cookie = sign_in!(server, world.admin);
    let page = text(call_service(&server, TestRequest::get().uri("/").cookie(cookie.clone()).to_request()).await).await;
    let (_, connect) = page.split_once("hx-sse:connect=\"").expect("a stream");
    let uri = connect.split('"').next().expect("an address").replace("&#38;", "&").replace("&amp;", "&");
    let mut frames =
        Frames::new(call_service(&server, TestRequest::get().uri(&uri).cookie(cookie.clone()).to_request()).await);
    world.reply(id, "Looking around.", None, 10, Duration::ZERO).await;
    let (position, _, html) = frames.next().await.expect("a frame");
    assert!(position.is_some() && html.contains(&format!("hx-target=\"#row-{id}\" hx-swap=\"outerMorph\"")), "{html}");
    assert_eq!(html.matches("<hx-partial").count(), 1, "only what changed: {html}");
    let new = world.create("A new one", "acme/api", "platform", "claude-haiku-4-5", 10).await;
    let (position, _, html) = frames.next().await.expect("a frame");
    assert!(html.contains("hx-target=\"#list\"") && html.contains(&format!("row-{new}")), "{html}");

    // Who comes back after missing something gets the whole list, at once.
    drop(frames);
    world.service.act(new, &Actor::system("test"), Command::Cancel { reason: None }).await.expect("it cancels");
    world.caught_up().await;
    let resume = TestRequest::get()
        .uri(&uri)
        .cookie(cookie)
        .insert_header(("last-event-id", position.expect("an id").to_string()))
        .to_request();
    let mut frames = Frames::new(call_service(&server, resume).await);
    let (_, _, html) = frames.next().await.expect("a frame");
    assert!(html.contains("hx-target=\"#list\"") && html.contains("chip cancelled"), "{html}");

    let nobody = call_service(&server, TestRequest::get().uri("/live/tasks").to_request()).await;
    assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED, "a redirect would be taken for a stream");
}

#[actix_web::test]
async fn a_long_timeline_comes_in_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let (id, _) = world.seed().await;
    for number in 0..80 {
        let tool = format!("t{number}");
        let call = Some((&*tool, "bash", json!({"command": "ls"})));
        world.reply(id, "Again.", call, 10, Duration::ZERO).await;
        world.tool(id, &tool, ToolOutcome::Ok, "x", Duration::ZERO).await;
    }
    let total = kinds(&world, id).await.len() as u64;
    let server = server!(world);
    let cookie = sign_in!(server, world.admin);
    let mut shown = Vec::new();
    let mut uri = format!("/tasks/{id}");
    loop {
        let request = TestRequest::get().uri(&uri).cookie(cookie.clone()).to_request();
        let html = text(call_service(&server, request).await).await;
        let mut rows = rows_in(&html);
        assert!(rows.len() <= task::ROWS);
        rows.append(&mut shown);
        shown = rows;
        let Some((_, after)) = html.split_once("?before=") else { break };
        let before: String = after.chars().take_while(char::is_ascii_digit).collect();
        uri = format!("/tasks/{id}?before={before}");
    }
    assert_eq!(shown, (0..total).collect::<Vec<_>>());
}

#[actix_web::test]
async fn assets_are_kept_by_what_is_in_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let server = server!(world);
    let html = text(call_service(&server, TestRequest::get().uri("/sign-in").to_request()).await).await;
    let uri = html.split("href=\"").find(|rest| rest.starts_with("/assets/orchestra.css")).expect("a style sheet");
    let uri = uri.split('"').next().expect("an address");
    let response = call_service(&server, TestRequest::get().uri(uri).to_request()).await;
    assert_eq!(response.headers().get(header::CONTENT_TYPE).expect("a type"), "text/css; charset=utf-8");
    let cache = response.headers().get(header::CACHE_CONTROL).expect("a rule").to_str().expect("text");
    assert!(cache.contains("immutable"), "{cache}");
    let tag = response.headers().get(header::ETAG).expect("a tag").clone();
    let again = TestRequest::get().uri(uri).insert_header((header::IF_NONE_MATCH, tag)).to_request();
    let again = call_service(&server, again).await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert!(read_body(again).await.is_empty());
    let old = call_service(&server, TestRequest::get().uri("/assets/orchestra.css?v=0").to_request()).await;
    assert!(!old.headers().get(header::CACHE_CONTROL).expect("a rule").as_bytes().ends_with(b"immutable"));
    let none = call_service(&server, TestRequest::get().uri("/assets/..%2fsrc%2flib.rs").to_request()).await;
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
}

#[actix_web::test]
async fn every_failure_has_a_page_and_nothing_is_a_dead_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let server = server!(world);
    for code in orchestra_events::FailureCode::ALL {
        let uri = format!("/docs/errors/{code}");
        let response = call_service(&server, TestRequest::get().uri(&uri).to_request()).await;
        assert_eq!(response.status(), StatusCode::OK, "{uri}");
        assert!(text(response).await.contains(code.as_str()));
    }
    let browser = TestRequest::get().uri("/nowhere").insert_header((header::ACCEPT, "text/html,*/*")).to_request();
    let response = call_service(&server, browser).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(text(response).await.contains("Nothing here"));
    let program = call_service(&server, TestRequest::get().uri("/nowhere").to_request()).await;
    assert_eq!(program.headers().get(header::CONTENT_TYPE).expect("a type"), "application/problem+json");
}

#[actix_web::test]
async fn secrets_in_a_form_go_to_the_task_and_nowhere_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    world.seed().await;
    let server = server!(world);
    let cookie = sign_in!(server, world.admin);
    let list = TestRequest::get().uri("/tasks?status=awaiting-credentials").cookie(cookie.clone()).to_request();
    let list = text(call_service(&server, list).await).await;
    let id = list.split("id=\"row-").nth(1).and_then(|rest| rest.split('"').next()).expect("a task").to_owned();
    let page = TestRequest::get().uri(&format!("/tasks/{id}")).cookie(cookie.clone()).to_request();
    let page = text(call_service(&server, page).await).await;
    assert!(page.contains("Git token") && !page.contains("Model key"), "only what is missing is asked for");
    let token = csrf(&page);
    let form = TestRequest::post()
        .uri(&format!("/tasks/{id}/credentials"))
        .cookie(cookie)
        .insert_header(("sec-fetch-site", "same-origin"))
        .set_form([("csrf", &*token), ("git", "ghp_very_secret"), ("model", "")]);
    let response = call_service(&server, form.to_request()).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    let id: TaskId = id.parse().expect("an id");
    let events = orchestra_events::store::read_whole_stream(&*world.service.store, &StreamName::task(id)).await;
    let events = events.expect("events");
    assert!(
        events.iter().any(|event| matches!(TaskEvent::decode(event), Ok(Some(TaskEvent::CredentialsSupplied { .. }))))
    );
    assert!(events.iter().all(|event| !event.data.get().contains("ghp_very_secret")));
}

#[actix_web::test]
async fn a_team_sees_its_own_budgets_and_no_other_teams() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).await;
    world.seed().await;
    let own = world.key("platform", vec![Scope::BudgetsRead]).await;
    let other = world.key("mobile", vec![Scope::BudgetsRead]).await;
    let none = world.key("platform", vec![Scope::TasksRead]).await;
    let server = server!(world);
    let get = async |key: &secrecy::SecretString, path: &str| {
        let bearer = ("authorization", format!("Bearer {}", key.expose_secret()));
        let response = call_service(&server, TestRequest::get().uri(path).insert_header(bearer).to_request()).await;
        let status = response.status();
        (status, String::from_utf8(read_body(response).await.to_vec()).unwrap())
    };
    let (status, page) = get(&own, "/budgets").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("project:platform/infra") && page.contains("$2.00 per task"), "{page}");
    assert_eq!(get(&other, "/budgets?team=platform").await.0, StatusCode::NOT_FOUND);
    let (_, page) = get(&other, "/budgets").await;
    assert!(!page.contains("platform"), "{page}");
    assert_eq!(get(&none, "/budgets").await.0, StatusCode::FORBIDDEN);
    let (_, page) = get(&world.admin, "/budgets").await;
    assert!(page.contains("href=\"/budgets?team=platform\""), "{page}");
}

#[actix_web::test]
async fn a_team_sees_its_own_usage_and_bills_and_closes_them_only_from_its_own_form() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).await;
    world.seed().await;
    let own = world.key("platform", vec![Scope::UsageRead, Scope::BillingRead, Scope::BillingWrite]).await;
    let reader = world.key("platform", vec![Scope::UsageRead]).await;
    let other = world.key("mobile", vec![Scope::UsageRead, Scope::BillingRead, Scope::BillingWrite]).await;
    let none = world.key("platform", vec![Scope::TasksRead]).await;
    let server = server!(world);
    let get = async |key: &secrecy::SecretString, path: &str| {
        let bearer = ("authorization", format!("Bearer {}", key.expose_secret()));
        let response = call_service(&server, TestRequest::get().uri(path).insert_header(bearer).to_request()).await;
        let status = response.status();
        (status, String::from_utf8(read_body(response).await.to_vec()).unwrap())
    };
    let (status, page) = get(&own, "/usage?by=customer").await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert!(page.contains("Bills of platform") && page.contains("groupBy=customer"), "{page}");
    assert_harmless(&page);
    assert!(!get(&reader, "/usage").await.1.contains("Bills of"), "bills are another right");
    assert_eq!(get(&none, "/usage").await.0, StatusCode::FORBIDDEN);
    assert_eq!(get(&other, "/usage?team=platform").await.0, StatusCode::NOT_FOUND);
    assert!(!get(&other, "/usage").await.1.contains("platform"));
    for wrong in ["by=tema", "by=environment", "month=2026-13", "month=%3Cscript%3E"] {
        assert_eq!(get(&own, &format!("/usage?{wrong}")).await.0, StatusCode::NOT_FOUND, "{wrong}");
    }
    let (_, page) = get(&world.admin, "/usage?month=2026-01").await;
    assert!(page.contains("href=\"/usage?team=platform&#38;by=day&#38;month=2026-01\""), "{page}");

    let cookie = sign_in!(server, own);
    let post = |token: &str, period: &str, team: &str| {
        TestRequest::post()
            .uri(&format!("/usage/{period}/close"))
            .cookie(cookie.clone())
            .insert_header(("sec-fetch-site", "same-origin"))
            .set_form([("csrf", token), ("team", team)])
            .to_request()
    };
    assert_eq!(call_service(&server, post("guessed", "2020-01", "platform")).await.status(), StatusCode::FORBIDDEN);
    let page = TestRequest::get().uri("/usage").cookie(cookie.clone()).to_request();
    let token = csrf(&text(call_service(&server, page).await).await);
    assert_eq!(call_service(&server, post(&token, "2020-01", "mobile")).await.status(), StatusCode::NOT_FOUND);
    let running = call_service(&server, post(&token, "2999-01", "platform")).await;
    assert_eq!(running.status(), StatusCode::CONFLICT, "it is not over");
    let before = call_service(&server, post(&token, "2020-01", "platform")).await;
    assert_eq!(before.status(), StatusCode::CONFLICT, "nothing was used by then");
    assert!(text(before).await.contains("href=\"/usage?team=platform&#38;month=2020-01\""), "there is a way back");
}

/// A campaign over two repositories, as a caller starts it.
macro_rules! campaign {
    ($server:expr, $key:expr, $name:expr) => {{
        let body = json!({
            "name": $name, "repos": ["acme/api", "acme/web"], "task": $name, "model": "m", "team": "platform",
        });
        let request = TestRequest::post()
            .uri("/v1/campaigns")
            .insert_header((header::AUTHORIZATION, format!("Bearer {}", $key.expose_secret())))
            .set_json(body);
        let answer = call_service(&$server, request.to_request()).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let json: serde_json::Value = serde_json::from_str(&text(answer).await).expect("JSON");
        json["id"].as_str().expect("an id").parse::<orchestra_events::CampaignId>().expect("a campaign id")
    }};
}

#[actix_web::test]
async fn a_campaigns_page_shows_its_progress_keeps_up_and_can_stop_it() {
    use orchestra_events::campaign::{ChildOutcome, Command as Order, child_id};
    // No apostrophe: the two template engines write it differently.
    let name = "<script>\"&</script><img src=x onerror=alert(1)>";
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(folder.path()).await;
    let server = server!(world);
    let cookie = sign_in!(server, world.admin);
    let id = campaign!(server, world.admin, name);
    world.caught_up().await;
    let get = |uri: &str| TestRequest::get().uri(uri).cookie(cookie.clone()).to_request();
    let list = text(call_service(&server, get("/campaigns")).await).await;
    assert!(shows(&list, name) && list.contains("2 waiting"), "{list}");
    assert_harmless(&list);
    let path = format!("/campaigns/{id}");
    let page = text(call_service(&server, get(&path)).await).await;
    assert!(shows(&page, name) && page.contains("github:acme/web") && !page.contains(">Retry what failed<"), "{page}");
    assert_harmless(&page);

    let (_, connect) = page.split_once("hx-sse:connect=\"").expect("a stream");
    let uri = connect.split('"').next().expect("an address").replace("&#38;", "&").replace("&amp;", "&");
    let nobody = call_service(&server, TestRequest::get().uri(&uri).to_request()).await;
    assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED, "a redirect would be taken for a stream");
    let mut frames = Frames::new(call_service(&server, get(&uri)).await);
    let (task, who) = (child_id(id, 0), Actor::system("test"));
    let start = Order::StartChild { index: 0, task, after: None };
    world.campaigns.command(id, start, &who).await.expect("it may begin");
    let (_, _, html) = frames.next().await.expect("a frame");
    assert!(html.contains("hx-target=\"#campaign\"") && html.contains("1 running, 1 waiting"), "{html}");
    let outcome = ChildOutcome::Failed { code: orchestra_events::FailureCode::GitAuth };
    let end = Order::RecordChild { index: 0, task, run: 1, outcome, pull_requests: Vec::new() };
    world.campaigns.command(id, end, &who).await.expect("it ran");
    let (_, _, html) = frames.next().await.expect("a frame");
    assert!(html.contains("1 failed, 1 waiting") && html.contains(">Retry what failed<"), "{html}");

    let send = |to: &str, token: &str| {
        TestRequest::post()
            .uri(&format!("{path}/{to}"))
            .cookie(cookie.clone())
            .insert_header(("sec-fetch-site", "same-origin"))
            .set_form([("csrf", token)])
            .to_request()
    };
    let token = csrf(&page);
    let forged = call_service(&server, send("cancel", "another")).await;
    assert!(forged.status().is_client_error(), "{}", forged.status());
    for (to, words) in [("retry", "2 waiting"), ("credentials", "2 waiting"), ("cancel", "2 cancelled")] {
        let done = call_service(&server, send(to, &token)).await;
        assert_eq!((done.status(), location(&done)), (StatusCode::SEE_OTHER, &*path));
        world.caught_up().await;
        let page = text(call_service(&server, get(&path)).await).await;
        assert!(page.contains(words), "{to}: {page}");
    }

    // Another team's campaign does not exist, and who may not read any is told so.
    let other = world.key("other", vec![Scope::CampaignsRead]).await;
    let other = sign_in!(server, other);
    let answer = call_service(&server, TestRequest::get().uri(&path).cookie(other.clone()).to_request()).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let list = text(call_service(&server, TestRequest::get().uri("/campaigns").cookie(other).to_request()).await).await;
    assert!(list.contains("No campaigns yet."), "{list}");
    let blind = world.key("platform", vec![Scope::TasksRead]).await;
    let blind = sign_in!(server, blind);
    let answer = call_service(&server, TestRequest::get().uri(&path).cookie(blind).to_request()).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
}
