//! Webhooks over REST: what may be asked, by whom, and what the answer says.

use actix_web::http::Method;
use actix_web::test::TestRequest;
use orchestra_events::key::Scope;
use orchestra_events::{Direction, EventStore as _, StreamName};
use orchestra_web::auth::session;
use serde_json::{Value, json};

use crate::harness::{Answer, Server, post};

const PATH: &str = "/v1/webhooks";

fn wanted() -> Value {
    json!({ "url": "https://receiver.example/hook", "events": ["task.*"], "team": "platform" })
}

async fn make(server: &Server, key: &str, body: &Value) -> Value {
    let answer = server.post(key, PATH, &body.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

async fn send(server: &Server, method: Method, path: &str, body: &Value) -> Answer {
    server.send(post(&server.admin, path, &body.to_string()).method(method)).await
}

#[actix_web::test]
async fn a_webhook_is_made_read_changed_and_removed_and_its_secret_is_shown_once() {
    let server = Server::start().await;
    let made = make(&server, &server.admin, &wanted()).await;
    let id = made["id"].as_str().expect("an id");
    assert!(made["secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")));
    let path = format!("{PATH}/{id}");
    let read = server.get(&server.admin, &path).await;
    assert!(!read.text().contains("whsec_"), "{}", read.text());
    let read = read.json();
    assert_eq!(
        (&read["enabled"], &read["secretVersion"], &read["events"]),
        (&json!(true), &json!(1), &json!(["task.*"]))
    );
    let change = json!({ "enabled": false, "events": ["task.failed", "task.failed"], "projects": ["b", "a"] });
    let changed = send(&server, Method::PATCH, &path, &change).await.json();
    assert_eq!((&changed["enabled"], &changed["disabledReason"]), (&json!(false), &json!("by-hand")));
    assert_eq!((&changed["events"], &changed["projects"]), (&json!(["task.failed"]), &json!(["a", "b"])));
    assert_eq!(changed["url"], wanted()["url"], "what is absent stays");
    let replay = send(&server, Method::POST, &format!("{path}/replay"), &json!({ "from": 1, "to": 2 })).await;
    assert_eq!((replay.status.as_u16(), &*replay.code()), (409, "conflict"));
    let rotated = send(&server, Method::POST, &format!("{path}/secret"), &json!({ "overlapSeconds": 60 })).await;
    assert_eq!(rotated.header("cache-control"), Some("no-store"));
    assert_ne!(rotated.json()["secret"], made["secret"]);
    assert!(rotated.json()["previousSecretUntil"].is_string());
    assert_eq!(send(&server, Method::DELETE, &path, &json!({})).await.status, 204);
    assert_eq!(server.get(&server.admin, &path).await.status, 404);
    assert_eq!(server.get(&server.admin, PATH).await.json()["data"], json!([]));
    // Nowhere in the log either.
    let stream = StreamName::webhook(id.parse().expect("an id"));
    for event in server.store.read_stream(&stream, None, Direction::Forwards, 100).await.expect("a stream") {
        assert!(!event.data.get().contains("whsec_"), "{}", event.kind);
    }
}

#[actix_web::test]
async fn what_does_not_do_is_named() {
    let server = Server::start().await;
    for (body, pointer) in [
        (json!({ "events": ["*"] }), "/url"),
        (json!({ "url": "https://receiver.example/" }), "/events"),
        (json!({ "url": "ftp://receiver.example/", "events": ["*"] }), "/url"),
        (json!({ "url": "https://receiver.example/", "events": [] }), "/events"),
        (json!({ "url": "https://receiver.example/", "events": ["*", "task"] }), "/events/1"),
        (json!({ "url": "https://receiver.example/", "events": "task.*" }), "/events"),
        (json!({ "url": "https://receiver.example/", "events": ["*"], "projects": ["a b"] }), "/projects/0"),
        (json!({ "url": "https://receiver.example/", "events": ["*"], "team": "a/b" }), "/team"),
        (json!({ "url": "https://receiver.example/", "events": ["*"], "description": "a\nb" }), "/description"),
        (json!({ "url": "https://receiver.example/", "events": ["*"], "secret": "mine" }), "/secret"),
    ] {
        let answer = server.post(&server.admin, PATH, &body.to_string()).await;
        assert_eq!((answer.status.as_u16(), answer.pointers()), (422, vec![pointer.to_owned()]), "{body}");
    }
    let made = make(&server, &server.admin, &wanted()).await;
    let path = format!("{PATH}/{}", made["id"].as_str().expect("an id"));
    for (method, part, body, pointer) in [
        (Method::PATCH, "", json!({ "enabled": "yes" }), "/enabled"),
        (Method::PATCH, "", json!({ "team": "web" }), "/team"),
        (Method::POST, "/secret", json!({ "overlapSeconds": 604_801 }), "/overlapSeconds"),
        (Method::POST, "/replay", json!({}), ""),
        (Method::POST, "/replay", json!({ "from": 1 }), ""),
        (Method::POST, "/replay", json!({ "from": 0, "to": 1 }), "/from"),
        (Method::POST, "/replay", json!({ "from": 2, "to": 1 }), "/to"),
        (Method::POST, "/replay", json!({ "message": "msg_1" }), "/message"),
        (Method::POST, "/replay", json!({ "message": format!("msg_{}", "0".repeat(32)) }), "/message"),
    ] {
        let answer = send(&server, method, &format!("{path}{part}"), &body).await;
        assert_eq!((answer.status.as_u16(), answer.pointers()), (422, vec![pointer.to_owned()]), "{part} {body}");
    }
}

#[actix_web::test]
async fn a_team_sees_its_own_and_the_operators_are_nobodys() {
    let server = Server::start().await;
    let scopes = [Scope::WebhooksRead, Scope::WebhooksWrite];
    let (own, other) = (server.key(Some("platform"), &scopes).await, server.key(Some("web"), &scopes).await);
    let teamless = server.key(None, &scopes).await;
    let made = make(&server, &own, &json!({ "url": "https://receiver.example/", "events": ["task.*"] })).await;
    assert_eq!(made["team"], "platform");
    let operators = make(&server, &server.admin, &json!({ "url": "https://receiver.example/", "events": ["*"] })).await;
    assert_eq!(operators["team"], json!(null));
    for (key, sees) in [(&own, 1), (&other, 0), (&teamless, 0), (&server.admin, 2)] {
        let list = server.get(key, PATH).await.json();
        assert_eq!(list["data"].as_array().map(Vec::len), Some(sees));
    }
    for (webhook, key, status) in [
        (&made, &own, 200),
        (&made, &other, 404),
        (&made, &teamless, 404),
        (&operators, &own, 404),
        (&operators, &teamless, 404),
        (&operators, &server.admin, 200),
    ] {
        let path = format!("{PATH}/{}", webhook["id"].as_str().expect("an id"));
        assert_eq!(server.get(key, &path).await.status, status);
        let status = if status == 200 { 200 } else { 404 };
        assert_eq!(server.get(key, &format!("{path}/deliveries")).await.status, status);
    }
    for (key, body) in
        [(&own, wanted_for("web")), (&teamless, json!({ "url": "https://receiver.example/", "events": ["*"] }))]
    {
        let answer = server.post(key, PATH, &body.to_string()).await;
        assert_eq!((answer.status.as_u16(), answer.pointers()), (422, vec!["/team".to_owned()]));
    }
}

fn wanted_for(team: &str) -> Value {
    let mut body = wanted();
    body["team"] = json!(team);
    body
}

#[actix_web::test]
async fn a_key_that_is_bound_has_webhooks_within_its_bounds_alone() {
    let server = Server::start().await;
    let wide = make(&server, &server.admin, &wanted()).await;
    let issue = |bounds: Value| {
        let server = &server;
        async move {
            let body = json!({ "name": "x", "team": "platform", "bounds": bounds,
                "scopes": ["webhooks:read", "webhooks:write"] });
            let answer = server.post(&server.admin, "/v1/keys", &body.to_string()).await;
            assert_eq!(answer.status, 201, "{}", answer.text());
            server.keys_caught_up().await;
            answer.json()["key"].as_str().expect("a key").to_owned()
        }
    };
    let infra = issue(json!({ "projects": ["infra", "api"] })).await;
    let body = json!({ "url": "https://receiver.example/", "events": ["task.*"] });
    let made = make(&server, &infra, &body).await;
    assert_eq!(made["projects"], json!(["infra", "api"]), "what is left out is as the key's own");
    let (own, others) =
        (format!("{PATH}/{}", made["id"].as_str().expect("an id")), wide["id"].as_str().expect("an id"));
    assert_eq!(server.get(&infra, &format!("{PATH}/{others}")).await.status, 404);
    assert_eq!(server.get(&infra, PATH).await.json()["data"].as_array().map(Vec::len), Some(1));
    for projects in [json!([]), json!(["infra", "web"])] {
        let change = json!({ "projects": projects }).to_string();
        assert_eq!(server.send(post(&infra, &own, &change).method(Method::PATCH)).await.status, 422, "{change}");
    }
    let narrow = json!({ "projects": ["infra"] }).to_string();
    assert_eq!(server.send(post(&infra, &own, &narrow).method(Method::PATCH)).await.status, 200);
    let by_repo = issue(json!({ "repos": ["github:acme/*"] })).await;
    assert_eq!(server.post(&by_repo, PATH, &body.to_string()).await.status, 422);
}

#[actix_web::test]
async fn what_administrators_do_is_for_those_who_may_read_the_audit() {
    let server = Server::start().await;
    let plain = server.key(Some("platform"), &[Scope::WebhooksWrite]).await;
    let auditor = server.key(Some("platform"), &[Scope::WebhooksWrite, Scope::AuditRead]).await;
    let body = json!({ "url": "https://receiver.example/", "events": ["*", "key.*"] }).to_string();
    let refused = server.post(&plain, PATH, &body).await;
    assert_eq!((refused.status.as_u16(), refused.pointers()), (422, vec!["/events/1".to_owned()]));
    assert_eq!(server.post(&auditor, PATH, &body).await.status, 201);
}

#[actix_web::test]
async fn what_administrators_do_is_not_led_elsewhere_by_those_who_may_not_read_it() {
    let server = Server::start().await;
    let plain = server.key(Some("platform"), &[Scope::WebhooksRead, Scope::WebhooksWrite]).await;
    let auditor = server.key(Some("platform"), &[Scope::WebhooksWrite, Scope::AuditRead]).await;
    let mut body = wanted();
    body["events"] = json!(["task.*", "key.*"]);
    let made = make(&server, &auditor, &body).await;
    let path = format!("{PATH}/{}", made["id"].as_str().expect("an id"));
    let elsewhere = json!({ "url": "https://elsewhere.example/" });
    let acts = [
        (Method::PATCH, "", elsewhere.clone()),
        (Method::PATCH, "", json!({ "url": "https://elsewhere.example/", "events": ["task.*"] })),
        (Method::PATCH, "", json!({ "url": "https://elsewhere.example/", "enabled": false })),
        (Method::PATCH, "", json!({ "enabled": true })),
        (Method::POST, "/secret", json!({})),
        (Method::POST, "/test", json!({})),
        (Method::POST, "/replay", json!({ "from": 1, "to": 2 })),
    ];
    let ask = async |key: &str, (method, part, body): &(Method, &str, Value)| {
        server.send(post(key, &format!("{path}{part}"), &body.to_string()).method(method.clone())).await
    };
    for act in &acts {
        let answer = ask(&plain, act).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (403, "forbidden"), "{act:?}");
        assert!(answer.text().contains("audit:read"), "{}", answer.text());
    }
    let cookie = format!("{}={}", session::COOKIE, server.session(&plain).await);
    let page = format!("/webhooks/{}", made["id"].as_str().expect("an id"));
    let shown = server.send(TestRequest::get().uri(&page).insert_header(("cookie", &*cookie))).await;
    let token = shown.text().split("name=\"csrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let token = token.expect("a form").to_owned();
    for part in ["enable", "test", "secret", "replay", "disable"] {
        let form = [("csrf", &*token), ("message", "msg_00000000000000000000000000000000")];
        let request = TestRequest::post().uri(&format!("{page}/{part}")).set_form(form);
        let headers = request.insert_header(("cookie", &*cookie)).insert_header(("sec-fetch-site", "same-origin"));
        let status = if part == "disable" { 303 } else { 403 };
        assert_eq!(server.send(headers).await.status, status, "{part}");
    }
    let stands = server.get(&plain, &path).await.json();
    assert_eq!((&stands["url"], &stands["secretVersion"]), (&made["url"], &json!(1)));
    assert_eq!(stands["enabled"], json!(false), "whoever writes webhooks can stop it");
    // Without what is the administrators' it is theirs to lead elsewhere.
    for (key, act) in [(&auditor, &acts[1]), (&plain, &acts[0]), (&plain, &acts[4])] {
        assert_eq!(ask(key, act).await.status, 200, "{act:?}");
    }
}

#[actix_web::test]
async fn a_repeat_under_the_same_key_makes_no_second_webhook() {
    let server = Server::start().await;
    let request =
        |body: &Value| post(&server.admin, PATH, &body.to_string()).insert_header(("idempotency-key", "once"));
    let first = server.send(request(&wanted())).await;
    let again = server.send(request(&wanted())).await;
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (201, 201));
    let but_for_the_secret = |answer: &Answer| {
        let mut made = answer.json();
        made["secret"] = Value::Null;
        made
    };
    assert_eq!(but_for_the_secret(&first), again.json());
    let other = server.send(request(&wanted_for("web"))).await;
    assert_eq!((other.status.as_u16(), &*other.code()), (422, "idempotency-key-reused"));
}

#[actix_web::test]
async fn deliveries_come_in_pages_and_by_outcome() {
    let server = Server::start().await;
    let made = make(&server, &server.admin, &wanted()).await;
    let id = made["id"].as_str().expect("an id");
    let mut messages = Vec::new();
    for position in 1..=5 {
        messages.push(server.webhooks.delivered(id.parse().expect("an id"), position).await.to_string());
    }
    messages.reverse();
    let path = format!("{PATH}/{id}/deliveries");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&server.admin, &format!("{path}?limit=2{cursor}")).await.json();
        seen.extend(
            page["data"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|row| row["message"].as_str().expect("an id").to_owned()),
        );
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, messages);
    for (outcome, count) in [("delivered", 5), ("retrying", 0), ("given-up", 0)] {
        let page = server.get(&server.admin, &format!("{path}?outcome={outcome}")).await.json();
        assert_eq!(page["data"].as_array().map(Vec::len), Some(count), "{outcome}");
    }
    assert_eq!(server.get(&server.admin, &format!("{path}?outcome=lost")).await.status, 400);
    let replay = json!({ "message": messages[0] });
    assert_eq!(send(&server, Method::POST, &format!("{PATH}/{id}/replay"), &replay).await.status, 202);
    let test = send(&server, Method::POST, &format!("{PATH}/{id}/test"), &json!({})).await.json();
    assert_eq!((&test["outcome"], &test["status"], &test["position"]), (&json!("given-up"), &json!(500), &json!(null)));
}

#[actix_web::test]
async fn a_repeat_of_the_request_is_not_shown_the_secret() {
    let server = Server::start().await;
    let create = || {
        let request = post(&server.admin, PATH, &wanted().to_string()).insert_header(("Idempotency-Key", "once"));
        server.send(request)
    };
    let first = create().await;
    assert_eq!(first.status, 201, "{first:?}");
    let made = first.json();
    assert!(made["secret"].is_string());
    let path = format!("{PATH}/{}/secret", made["id"].as_str().expect("an id"));
    let rotated = send(&server, Method::POST, &path, &json!({})).await.json();
    let again = create().await;
    assert_eq!((again.status.as_u16(), &again.json()["id"]), (201, &made["id"]));
    assert_eq!(again.json().get("secret"), Some(&Value::Null));
    for secret in [&made["secret"], &rotated["secret"]] {
        assert!(!again.text().contains(secret.as_str().expect("a secret")));
    }
}
