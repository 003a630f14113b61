//! People at the dashboard: signed in through a provider, with the rights of their role, until they are not.
//!
//! The provider here is a double at the edge of our own trait; the real client against a real provider is tested in the
//! runtime's room, and both together in the promises.

use std::sync::{Arc, Mutex};

use actix_web::http::StatusCode;
use actix_web::test::TestRequest;
use async_trait::async_trait;
use orchestra_actors::{Attempt, Identity, IdentityError, IdentityProvider};
use orchestra_events::session::Role;
use orchestra_events::{ActorKind, EventStore as _, Position};
use orchestra_web::auth::people::rule;
use orchestra_web::auth::{People, Proxies, Transport, session};
use orchestra_web::pages::shell::csrf_token;
use serde_json::Value;

use crate::harness::{Answer, Server, example};

/// Says what it is told to say, and to whom it may.
#[derive(Default)]
struct Provider {
    says: Mutex<Option<Result<Vec<&'static str>, IdentityError>>>,
    /// The nonce and the verifier of the sign-in that was begun last.
    begun: Mutex<Option<(String, String)>>,
}

#[async_trait]
impl IdentityProvider for Provider {
    fn issuer(&self) -> &str {
        "https://login.example.com"
    }

    async fn authorization_url(&self, attempt: &Attempt<'_>) -> Result<String, IdentityError> {
        *self.begun.lock().expect("no panic while held") =
            Some((attempt.nonce.to_owned(), attempt.verifier.to_owned()));
        Ok(format!("https://login.example.com/authorize?state={}&to={}", attempt.state, attempt.redirect_uri))
    }

    async fn redeem(&self, code: &str, _: Option<&str>, attempt: &Attempt<'_>) -> Result<Identity, IdentityError> {
        let begun = self.begun.lock().expect("no panic while held").clone();
        assert_eq!(begun, Some((attempt.nonce.to_owned(), attempt.verifier.to_owned())), "the same browser");
        assert_eq!(code, "c0de");
        let groups = self.says.lock().expect("no panic while held").clone().expect("somebody to vouch for")?;
        Ok(Identity {
            issuer: self.issuer().to_owned(),
            subject: "5f0".to_owned(),
            name: "Ada <Lovelace>".to_owned(),
            groups: groups.into_iter().map(str::to_owned).collect(),
        })
    }
}

async fn server(https: bool) -> (Server, Arc<Provider>) {
    let provider = Arc::new(Provider::default());
    let rules = [
        ("readers", "platform", Role::Viewer),
        ("infra", "platform", Role::Operator),
        ("leads", "platform", Role::Admin),
        ("apps", "mobile", Role::Viewer),
        ("root", "*", Role::Admin),
    ];
    let rules = rules.map(|(group, team, role)| rule(group, team, role).expect("a rule")).into();
    let address = if https { "https://orchestra.example" } else { "http://orchestra.example" };
    let people = People::new(Arc::clone(&provider) as _, "Acme".to_owned(), rules, address);
    let server = Server::start_with(|app| {
        let sessions = Arc::clone(&app.sessions);
        app.with_people(sessions, Some(people)).reached(Transport::of(address))
    });
    (server.await, provider)
}

fn cookie_of(answer: &Answer, name: &str) -> Option<String> {
    answer.headers.get_all("set-cookie").find_map(|line| {
        let line = line.to_str().expect("text");
        line.strip_prefix(&format!("{name}=")).map(str::to_owned)
    })
}

fn value(line: &str) -> &str {
    line.split(';').next().unwrap_or_default()
}

/// A browser with one cookie.
fn browse(path: &str, name: &str, cookie: &str) -> TestRequest {
    TestRequest::get().uri(path).insert_header(("cookie", format!("{name}={cookie}")))
}

fn form(path: &str, cookie: &str, fields: &[(&str, &str)]) -> TestRequest {
    let mut fields = fields.to_vec();
    let token = csrf_token(cookie);
    fields.push(("csrf", &token));
    TestRequest::post()
        .uri(path)
        .insert_header(("cookie", format!("{}={cookie}", session::COOKIE)))
        .insert_header(("sec-fetch-site", "same-origin"))
        .set_form(fields)
}

/// To the provider: the cookie of the attempt, and the state.
async fn begin(server: &Server, next: &str) -> (String, String) {
    let answer = server.send(TestRequest::get().uri(&format!("/sign-in/oidc?next={next}"))).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    let to = answer.header("location").expect("a place").to_owned();
    assert!(to.starts_with("https://login.example.com/authorize?"), "{to}");
    assert!(to.ends_with("&to=http://orchestra.example/sign-in/oidc/return"), "{to}");
    let line = cookie_of(&answer, "orchestra_sign_in").expect("a cookie");
    assert!(line.contains("; HttpOnly") && line.contains("; SameSite=Lax") && line.contains("; Max-Age=600"), "{line}");
    let state = to.split("state=").nth(1).and_then(|rest| rest.split('&').next()).expect("a state");
    (value(&line).to_owned(), state.to_owned())
}

async fn come_back(server: &Server, cookie: &str, state: &str) -> Answer {
    server.send(browse(&format!("/sign-in/oidc/return?code=c0de&state={state}"), "orchestra_sign_in", cookie)).await
}

/// Signs in as somebody in these groups; the session's cookie.
async fn sign_in(server: &Server, provider: &Provider, groups: &[&'static str]) -> String {
    *provider.says.lock().expect("no panic while held") = Some(Ok(groups.to_vec()));
    let (cookie, state) = begin(server, "/tasks").await;
    let answer = come_back(server, &cookie, &state).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let line = cookie_of(&answer, session::COOKIE).expect("a session");
    assert!(line.contains("; HttpOnly") && line.contains("; SameSite=Strict") && line.contains("; Path=/"), "{line}");
    value(&line).to_owned()
}

async fn status(server: &Server, cookie: &str, path: &str) -> StatusCode {
    server.send(browse(path, session::COOKIE, cookie)).await.status
}

/// The sessions' events: type, data, who did it.
async fn events(server: &Server) -> Vec<(String, Value, ActorKind, String)> {
    let all = server.store.read_all(Position::START, 1_000).await.expect("events");
    let of_sessions = all.into_iter().filter(|envelope| envelope.stream.category() == "session");
    of_sessions
        .map(|envelope| {
            let data = serde_json::from_str(envelope.data.get()).expect("JSON");
            (envelope.kind.to_string(), data, envelope.actor.kind, envelope.actor.id)
        })
        .collect()
}

#[actix_web::test]
async fn a_person_comes_in_through_the_provider_and_goes_where_they_wanted() {
    let (server, provider) = server(false).await;
    let page = server.send(TestRequest::get().uri("/sign-in?next=/budgets")).await;
    assert!(page.text().contains("href=\"/sign-in/oidc?next=/budgets\"") && page.text().contains("Sign in with Acme"));
    *provider.says.lock().expect("no panic while held") = Some(Ok(vec!["infra"]));
    let (cookie, state) = begin(&server, "/budgets").await;
    let answer = come_back(&server, &cookie, &state).await;
    // A page and no redirect: the browser comes from another site, and a redirect would leave the strict cookie behind.
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.text().contains("<meta http-equiv=\"refresh\" content=\"0;url=/budgets\">"), "{}", answer.text());
    assert!(cookie_of(&answer, "orchestra_sign_in").expect("removed").contains("Max-Age=0"));
    let cookie = value(&cookie_of(&answer, session::COOKIE).expect("a session")).to_owned();
    let page = server.send(browse("/budgets", session::COOKIE, &cookie)).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.text().contains("Ada &#60;Lovelace&#62;"), "the name stands on the page, as a name");
    // Who is signed in is not asked again.
    let again = server.send(browse("/sign-in?next=/tasks", session::COOKIE, &cookie)).await;
    assert_eq!((again.status, again.header("location")), (StatusCode::SEE_OTHER, Some("/tasks")));
    let events = events(&server).await;
    let (kind, data, actor, id) = events.last().expect("an event");
    assert_eq!((kind.as_str(), actor, id.as_str()), ("session-started", &ActorKind::Person, "login.example.com:5f0"));
    assert_eq!(data["memberships"][0]["role"], "operator");
    assert!(!data.to_string().contains(&cookie));
}

#[actix_web::test]
async fn the_role_decides() {
    let (server, provider) = server(false).await;
    let task = server.task(&server.admin, &example()).await;
    let mut body = example();
    body["team"] = "mobile".into();
    let foreign = server.task(&server.admin, &body).await;
    for (group, reads, works, governs) in
        [("readers", true, false, false), ("infra", true, true, false), ("leads", true, true, true)]
    {
        let cookie = sign_in(&server, &provider, &[group]).await;
        let allowed = |allowed: bool, status: StatusCode| (status != StatusCode::FORBIDDEN) == allowed;
        assert!(allowed(reads, status(&server, &cookie, &format!("/tasks/{task}")).await), "{group}");
        assert_eq!(status(&server, &cookie, &format!("/tasks/{foreign}")).await, StatusCode::NOT_FOUND, "{group}");
        let message = form(&format!("/tasks/{task}/messages"), &cookie, &[("message", "Go on.")]);
        assert!(allowed(works, server.send(message).await.status), "{group}");
        assert!(allowed(governs, status(&server, &cookie, "/people").await), "{group}");
        let budget = TestRequest::put()
            .uri("/v1/budgets/team:platform")
            .insert_header(("cookie", format!("{}={cookie}", session::COOKIE)))
            .insert_header(("sec-fetch-site", "same-origin"))
            .insert_header(("content-type", "application/json"))
            .set_payload("{}");
        assert!(allowed(governs, server.send(budget).await.status), "{group}");
    }
    // What they did is theirs in the log.
    let lead = sign_in(&server, &provider, &["leads"]).await;
    assert_eq!(server.send(form(&format!("/tasks/{task}/cancel"), &lead, &[])).await.status, StatusCode::SEE_OTHER);
    let stream = orchestra_events::StreamName::task(task);
    let events = orchestra_events::store::read_whole_stream(&*server.store, &stream).await.expect("events");
    let asked = events.iter().find(|event| &*event.kind == "cancel-requested").expect("an event");
    assert_eq!((asked.actor.kind, &*asked.actor.id), (ActorKind::Person, "login.example.com:5f0"));
    let root = sign_in(&server, &provider, &["root"]).await;
    assert_eq!(status(&server, &root, &format!("/tasks/{foreign}")).await, StatusCode::OK);
}

#[actix_web::test]
async fn whoever_is_not_vouched_for_stays_outside_and_it_is_written_down() {
    let (server, provider) = server(false).await;
    let says = |what| *provider.says.lock().expect("no panic while held") = Some(what);
    says(Ok(vec!["infra"]));
    let (cookie, state) = begin(&server, "/tasks").await;
    let (other, _) = begin(&server, "/tasks").await;
    let refused = |answer: &Answer, status: StatusCode| {
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(cookie_of(answer, session::COOKIE).is_none());
        assert!(answer.text().contains("href=\"/sign-in\""));
    };
    // Another browser, a state that somebody made up, no browser at all.
    refused(&come_back(&server, &other, &state).await, StatusCode::UNAUTHORIZED);
    refused(&come_back(&server, &cookie, "made-up").await, StatusCode::UNAUTHORIZED);
    refused(&come_back(&server, "broken", &state).await, StatusCode::UNAUTHORIZED);
    let path = format!("/sign-in/oidc/return?code=c0de&state={state}");
    refused(&server.send(TestRequest::get().uri(&path)).await, StatusCode::UNAUTHORIZED);
    let denied = format!("/sign-in/oidc/return?error=access_denied&state={state}");
    refused(&server.send(browse(&denied, "orchestra_sign_in", &cookie)).await, StatusCode::UNAUTHORIZED);
    // The provider does not do, or does not know them.
    for (said, expected) in [
        (Err(IdentityError::Refused("invalid_grant <script>".to_owned())), StatusCode::UNAUTHORIZED),
        (Err(IdentityError::Unreachable("refused".to_owned())), StatusCode::SERVICE_UNAVAILABLE),
        (Err(IdentityError::Busy), StatusCode::SERVICE_UNAVAILABLE),
        (Ok(vec![]), StatusCode::FORBIDDEN),
        (Ok(vec!["strangers", "*", "platform"]), StatusCode::FORBIDDEN),
    ] {
        says(said);
        let (cookie, state) = begin(&server, "/tasks").await;
        let answer = come_back(&server, &cookie, &state).await;
        refused(&answer, expected);
        assert!(!answer.text().contains("script"), "the provider's words are for the log alone");
    }
    let wrong = TestRequest::post()
        .uri("/sign-in")
        .insert_header(("sec-fetch-site", "same-origin"))
        .set_form([("key", "orc_dev_x_y")]);
    assert_eq!(server.send(wrong).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(server.send(TestRequest::get().uri("/sign-in/no-ticket")).await.status, StatusCode::UNAUTHORIZED);
    let events = events(&server).await;
    let reasons: Vec<_> =
        events.iter().map(|(kind, data, ..)| (kind.as_str(), data["reason"].as_str().unwrap())).collect();
    let expected = [
        "wrong-state",
        "wrong-state",
        "no-sign-in",
        "no-sign-in",
        "provider-refused",
        "provider-refused",
        "provider-unreachable",
        "busy",
        "no-membership",
        "no-membership",
        "unknown-key",
        "unknown-link",
    ];
    assert_eq!(reasons, expected.map(|reason| ("sign-in-refused", reason)));
    assert_eq!(events[8].3, "login.example.com:5f0", "who it was is known by then");
}

#[actix_web::test]
async fn a_person_with_several_teams_speaks_for_one_at_a_time() {
    let (server, provider) = server(false).await;
    let cookie = sign_in(&server, &provider, &["leads", "apps"]).await;
    let page = server.send(browse("/tasks", session::COOKIE, &cookie)).await;
    assert!(page.text().contains("<option value=\"platform\" selected>platform (admin)</option>"), "{}", page.text());
    assert_eq!(status(&server, &cookie, "/people").await, StatusCode::OK);
    let switched = server.send(form("/team", &cookie, &[("team", "mobile")])).await;
    assert_eq!(switched.status, StatusCode::SEE_OTHER);
    // The rights are those of the team, not the sum of all.
    assert_eq!(status(&server, &cookie, "/people").await, StatusCode::FORBIDDEN);
    let page = server.send(browse("/tasks", session::COOKIE, &cookie)).await;
    assert!(page.text().contains("<option value=\"mobile\" selected>mobile (viewer)</option>"));
    for team in ["web", ""] {
        let answer = server.send(form("/team", &cookie, &[("team", team)])).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{team:?}");
    }
    let alone = sign_in(&server, &provider, &["apps"]).await;
    let page = server.send(browse("/tasks", session::COOKIE, &alone)).await;
    assert!(!page.text().contains("action=\"/team\""), "who has one team is not asked which");
}

#[actix_web::test]
async fn a_session_does_not_outlive_the_configuration_that_gave_it() {
    let (server, provider) = server(false).await;
    let (reader, lead) =
        (sign_in(&server, &provider, &["readers"]).await, sign_in(&server, &provider, &["leads", "apps"]).await);
    let by_key = server.session(&server.admin).await;
    let rules = |rules: &[(&str, &str, Role)]| {
        let rules = rules.iter().map(|(group, team, role)| rule(group, team, *role).expect("a rule")).collect();
        People::new(Arc::clone(&provider) as _, "Acme".to_owned(), rules, "http://orchestra.example")
    };
    let all =
        [("readers", "platform", Role::Viewer), ("chiefs", "platform", Role::Admin), ("apps", "mobile", Role::Viewer)];
    let open = || [&reader, &lead, &by_key].map(|cookie| server.app.sessions.find(cookie).is_some());
    let held =
        async |people: Option<&People>| server.app.sessions.hold_to(&*server.store, people).await.expect("it ends");
    held(Some(&rules(&all))).await;
    assert_eq!(open(), [true, true, true], "another group gives the same");
    // Team leads are operators from now on: who came in as more comes in anew.
    held(Some(&rules(&[all[0], ("leads", "platform", Role::Operator), all[2]]))).await;
    assert_eq!(open(), [true, false, true]);
    held(None).await;
    assert_eq!(open(), [false, false, true], "nobody vouches for people any more");
    let why: Vec<_> = events(&server).await.into_iter().filter(|(kind, ..)| kind == "session-ended").collect();
    assert!(why.len() == 2 && why.iter().all(|(_, data, ..)| data["why"] == "withdrawn"), "{why:?}");
}

#[actix_web::test]
async fn who_is_in_charge_sees_who_is_signed_in_and_ends_it() {
    let (server, provider) = server(false).await;
    let viewer = sign_in(&server, &provider, &["readers"]).await;
    let second = sign_in(&server, &provider, &["readers"]).await;
    let both = sign_in(&server, &provider, &["readers", "apps"]).await;
    let operator = server.session(&server.admin).await;
    let id = |cookie: &str| server.app.sessions.find(cookie).expect("open").id.to_string();
    let lead = sign_in(&server, &provider, &["leads"]).await;
    // The team's lead sees those who are in the team alone.
    let page = server.send(browse("/people", session::COOKIE, &lead)).await;
    for (cookie, seen) in [(&viewer, true), (&second, true), (&lead, true), (&both, false), (&operator, false)] {
        assert_eq!(page.text().contains(&id(cookie)), seen);
        let path = format!("/people/{}/end", id(cookie));
        if !seen {
            assert_eq!(server.send(form(&path, &lead, &[])).await.status, StatusCode::NOT_FOUND);
        }
    }
    let token = server.send(form(&format!("/people/{}/end", id(&viewer)), &viewer, &[])).await;
    assert_eq!(token.status, StatusCode::FORBIDDEN, "a viewer ends nobody's session");
    let ended = server.send(form(&format!("/people/{}/end", id(&viewer)), &lead, &[])).await;
    assert_eq!(ended.status, StatusCode::SEE_OTHER);
    assert_eq!(status(&server, &viewer, "/tasks").await, StatusCode::SEE_OTHER, "to the sign-in page");
    assert_eq!(status(&server, &second, "/tasks").await, StatusCode::OK);
    // The operator ends all of a person's, whichever teams they are in.
    let all = server.send(form(&format!("/people/{}/end-all", id(&second)), &operator, &[])).await;
    assert_eq!(all.status, StatusCode::SEE_OTHER);
    for cookie in [&second, &both, &lead] {
        assert_eq!(status(&server, cookie, "/tasks").await, StatusCode::SEE_OTHER);
    }
    assert_eq!(status(&server, &operator, "/tasks").await, StatusCode::OK);
}

#[actix_web::test]
async fn signing_out_ends_the_session_and_not_just_the_cookie() {
    let (server, provider) = server(false).await;
    let cookie = sign_in(&server, &provider, &["infra"]).await;
    let unproven = TestRequest::post()
        .uri("/sign-out")
        .insert_header(("cookie", format!("{}={cookie}", session::COOKIE)))
        .insert_header(("sec-fetch-site", "same-origin"))
        .set_form([("csrf", "")]);
    assert_eq!(server.send(unproven).await.status, StatusCode::FORBIDDEN);
    assert_eq!(server.send(form("/sign-out", &cookie, &[])).await.status, StatusCode::SEE_OTHER);
    assert_eq!(status(&server, &cookie, "/tasks").await, StatusCode::SEE_OTHER);
    let events = events(&server).await;
    let (kind, data, actor, _) = events.last().expect("an event");
    assert_eq!((kind.as_str(), data["why"].as_str(), actor), ("session-ended", Some("signed-out"), &ActorKind::Person));
    // A group that was taken away is gone at the next sign-in.
    *provider.says.lock().expect("no panic while held") = Some(Ok(vec![]));
    let (cookie, state) = begin(&server, "/tasks").await;
    assert_eq!(come_back(&server, &cookie, &state).await.status, StatusCode::FORBIDDEN);
}

#[actix_web::test]
async fn a_link_from_another_site_finds_the_session_again() {
    let (server, provider) = server(false).await;
    let cookie = sign_in(&server, &provider, &["infra"]).await;
    // The browser keeps the strict cookie back at first …
    let elsewhere = TestRequest::get().uri("/tasks?status=failed").insert_header(("sec-fetch-site", "cross-site"));
    let to = server.send(elsewhere).await.header("location").expect("a place").to_owned();
    let bounced = server.send(TestRequest::get().uri(&to).insert_header(("sec-fetch-site", "cross-site"))).await;
    assert!(bounced.text().contains(&format!("content=\"0;url={to}\"")), "{}", bounced.text());
    // … and sends it from our own page.
    let own = browse(&to, session::COOKIE, &cookie).insert_header(("sec-fetch-site", "same-origin"));
    assert_eq!(server.send(own).await.header("location"), Some("/tasks?status=failed"));
    let nobody = TestRequest::get().uri(&to).insert_header(("sec-fetch-site", "same-origin"));
    assert!(server.send(nobody).await.text().contains("name=\"key\""));
}

#[actix_web::test]
async fn where_it_is_encrypted_only_cookies_bound_to_this_host_count() {
    let (server, provider) = server(true).await;
    *provider.says.lock().expect("no panic while held") = Some(Ok(vec!["infra"]));
    let answer = server.send(TestRequest::get().uri("/sign-in/oidc?next=/tasks")).await;
    let line = cookie_of(&answer, "__Host-orchestra_sign_in").expect("a cookie");
    assert!(line.contains("; Secure") && line.contains("; Path=/") && !line.contains("Domain"), "{line}");
    let to = answer.header("location").expect("a place");
    let state = to.split("state=").nth(1).and_then(|rest| rest.split('&').next()).expect("a state");
    let path = format!("/sign-in/oidc/return?code=c0de&state={state}");
    let planted = server.send(browse(&path, "orchestra_sign_in", value(&line))).await;
    assert_eq!(planted.status, StatusCode::UNAUTHORIZED, "a cookie that another host could have planted");
    let answer = server.send(browse(&path, "__Host-orchestra_sign_in", value(&line))).await;
    let line = cookie_of(&answer, session::SECURE_COOKIE).expect("a session");
    assert!(line.contains("; Secure") && line.contains("; HttpOnly") && line.contains("; SameSite=Strict"), "{line}");
    let cookie = value(&line);
    assert_eq!(server.send(browse("/tasks", session::SECURE_COOKIE, cookie)).await.status, StatusCode::OK);
    assert_eq!(status(&server, cookie, "/tasks").await, StatusCode::SEE_OTHER);
}

#[actix_web::test]
async fn a_proxy_that_is_believed_says_whether_it_was_asked_encrypted() {
    let server =
        Server::start_with(|app| app.behind(Proxies::new(vec!["10.0.0.0/8".parse().expect("a network")]))).await;
    for (peer, said, https) in [
        ("10.0.0.2:443", "https", true),
        ("10.0.0.2:443", "http, https", true),
        ("10.0.0.2:443", "https, http", false),
        ("203.0.113.9:443", "https", false),
    ] {
        let request = TestRequest::post()
            .uri("/sign-in")
            .peer_addr(peer.parse().expect("an address"))
            .insert_header(("x-forwarded-proto", said))
            .insert_header(("sec-fetch-site", "same-origin"))
            .set_form([("key", &server.admin)]);
        let answer = server.send(request).await;
        assert_eq!(cookie_of(&answer, session::SECURE_COOKIE).is_some(), https, "{peer} {said}");
        assert_eq!(answer.header("strict-transport-security").is_some(), https, "{peer} {said}");
    }
}

#[actix_web::test]
async fn keys_are_made_and_taken_back_on_their_page() {
    let (server, provider) = server(false).await;
    let viewer = sign_in(&server, &provider, &["readers"]).await;
    let fields = [("name", "ci <b>"), ("scopes", "tasks:read"), ("scopes", "tasks:create"), ("repos", "github:acme/*")];
    let fields = [&fields[..], &[("days", "7"), ("projects", "infra, web")]].concat();
    assert_eq!(server.send(form("/keys", &viewer, &fields)).await.status, StatusCode::FORBIDDEN);
    assert!(!server.send(browse("/keys", session::COOKIE, &viewer)).await.text().contains("action=\"/keys\""));
    let lead = sign_in(&server, &provider, &["leads"]).await;
    let shown = server.send(form("/keys", &lead, &fields)).await;
    assert_eq!(shown.status, StatusCode::OK, "{}", shown.text());
    let (_, after) = shown.text().split_once("<code>").expect("the text");
    let text = after.split('<').next().expect("the text").to_owned();
    let key = server.app.keys.authenticate(&text).expect("a key");
    assert_eq!(key.team.as_deref(), Some("platform"), "the team that they speak for");
    assert_eq!(key.bounds.projects, ["infra", "web"]);
    assert!(key.ends.is_some() && key.bounds.repos.len() == 1 && key.scopes.len() == 2);
    let page = server.send(browse("/keys", session::COOKIE, &lead)).await;
    assert!(page.text().contains("ci &#60;b&#62;") && !page.text().contains(&text), "shown once");
    // Nobody hands on more than they have, and what is wrong is said beside the form.
    let more = server.send(form("/keys", &lead, &[("name", "x"), ("scopes", "admin")])).await;
    assert_eq!(more.status, StatusCode::FORBIDDEN);
    assert!(more.text().contains("not yours to hand on") && more.text().contains("value=\"x\""), "{}", more.text());
    let nothing = server.send(form("/keys", &lead, &[("name", "x")])).await;
    assert_eq!(nothing.status, StatusCode::UNPROCESSABLE_ENTITY);
    let id = key.who.to_string();
    let rotated = server.send(form(&format!("/keys/{id}/rotate"), &lead, &[])).await;
    assert_eq!(rotated.status, StatusCode::OK);
    assert!(!rotated.text().contains(&text) && server.app.keys.authenticate(&text).is_some(), "both work for a while");
    assert_eq!(server.send(form(&format!("/keys/{id}/revoke"), &viewer, &[])).await.status, StatusCode::FORBIDDEN);
    let revoked = server.send(form(&format!("/keys/{id}/revoke"), &lead, &[])).await;
    assert_eq!(revoked.header("location"), Some("/keys?notice=revoked"));
    assert!(server.app.keys.authenticate(&text).is_none());
    // An operator's key is not the team's to see.
    let admin = server.app.keys.authenticate(&server.admin).expect("a key").who.to_string();
    assert!(!server.send(browse("/keys", session::COOKIE, &lead)).await.text().contains(&admin));
    assert_eq!(server.send(form(&format!("/keys/{admin}/revoke"), &lead, &[])).await.status, StatusCode::NOT_FOUND);
}
