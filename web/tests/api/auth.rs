//! Who may do what, and what the others are told.

use actix_web::http::StatusCode;
use actix_web::test::TestRequest;
use orchestra_events::Actor;
use orchestra_events::key::Scope;
use orchestra_web::api::endpoints::endpoints;
use orchestra_web::auth::{Who, ensure_admin_key, revoke_key, session};
use serde_json::json;

use crate::harness::{Server, example, get, post};

const TASK: &str = "task_00000000000000000000000000";

/// Paths that answer anybody.
fn is_public(path: &str) -> bool {
    !path.starts_with("/v1/")
}

#[actix_web::test]
async fn every_endpoint_asks_who_is_calling() {
    let server = Server::start().await;
    let broken = format!("{}0", &server.admin[..server.admin.len() - 1]);
    let other = format!("{}1", &server.admin[..server.admin.len() - 1]);
    let wrong = if broken == server.admin { other } else { broken };
    for endpoint in endpoints() {
        let path = endpoint.path.replace("{id}", TASK).replace("{code}", "internal");
        let request = || TestRequest::default().method(endpoint.method.clone()).uri(&path);
        let anonymous = server.send(request()).await;
        if is_public(&path) {
            assert_ne!(anonymous.status, StatusCode::UNAUTHORIZED, "{path}");
            continue;
        }
        assert_eq!((anonymous.status, &*anonymous.code()), (StatusCode::UNAUTHORIZED, "unauthenticated"), "{path}");
        assert_eq!(anonymous.header("www-authenticate"), Some("Bearer"));
        for value in ["Bearer orc_x", "Basic eDp5", "Bearer ", &format!("Bearer {wrong}"), &"Bearer x".repeat(1_000)] {
            let answer = server.send(request().insert_header(("authorization", value.to_owned()))).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path} {value:.40}");
        }
        // A key without any scope gets past the first question and not the second.
        let powerless = server.key(Some("platform"), &[]).await;
        let answer = server.send(request().insert_header(("authorization", format!("Bearer {powerless}")))).await;
        assert_eq!((answer.status, &*answer.code()), (StatusCode::FORBIDDEN, "forbidden"), "{path}");
    }
}

#[actix_web::test]
async fn another_teams_tasks_do_not_exist() {
    let server = Server::start().await;
    let (platform, mobile) = (server.team_key("platform").await, server.team_key("mobile").await);
    let mut body = example();
    body.as_object_mut().expect("an object").remove("team");
    let id = server.task(&platform, &body).await;
    assert_eq!(server.get(&platform, &format!("/v1/tasks/{id}")).await.json()["team"], "platform");
    for endpoint in endpoints().into_iter().filter(|endpoint| endpoint.path.starts_with("/v1/tasks/{id}")) {
        let path = endpoint.path.replace("{id}", &id.to_string());
        let request = post(&mobile, &path, r#"{"message": "x"}"#).method(endpoint.method.clone());
        let answer = server.send(request).await;
        assert_eq!((answer.status, &*answer.code()), (StatusCode::NOT_FOUND, "not-found"), "{path}");
    }
    for path in ["/v1/tasks".to_owned(), "/v1/tasks?team=platform".to_owned()] {
        assert_eq!(server.get(&mobile, &path).await.json(), json!({"data": [], "nextCursor": null}), "{path}");
    }
    assert_eq!(server.get(&mobile, "/v1/usage").await.json()["total"]["tasks"], 0);
    assert_eq!(server.get(&platform, "/v1/usage").await.json()["total"]["tasks"], 1);
    assert_eq!(server.get(&mobile, &format!("/v1/events?task={id}")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.get(&mobile, "/v1/events?team=platform").await.status, StatusCode::NOT_FOUND);
    let foreign = server.post(&mobile, "/v1/tasks", &example().to_string()).await;
    assert_eq!((foreign.status, &*foreign.code()), (StatusCode::FORBIDDEN, "forbidden"));
    assert_eq!(foreign.pointers(), ["/team"]);
    // The operator sees it all.
    assert_eq!(server.get(&server.admin, &format!("/v1/tasks/{id}")).await.status, StatusCode::OK);
    // A key of no team sees nobody's.
    let teamless = server.key(None, &[Scope::TasksRead]).await;
    assert_eq!(server.get(&teamless, &format!("/v1/tasks/{id}")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.get(&teamless, "/v1/tasks").await.json()["data"], json!([]));
}

#[actix_web::test]
async fn the_first_admin_key_is_given_once_and_its_secret_kept_nowhere() {
    let server = Server::start().await;
    let again = ensure_admin_key(&*server.store, &server.app.keys).await.expect("a read");
    assert!(again.is_none());
    let parts: Vec<_> = server.admin.split('_').collect();
    assert_eq!((parts.len(), parts[0], parts[2].len(), parts[3].len()), (4, "orc", 26, 64));
    let mut log = server.stream(get(&server.admin, "/v1/events")).await;
    let first = log.frame().await.expect("the key's event");
    assert_eq!(first.event, "key-issued");
    assert!(!first.data.contains(parts[3]), "{}", first.data);
}

#[actix_web::test]
async fn a_revoked_key_is_worth_nothing() {
    let server = Server::start().await;
    let key = server.team_key("platform").await;
    assert_eq!(server.get(&key, "/v1/tasks").await.status, StatusCode::OK);
    let caller = server.app.keys.authenticate(&key).expect("a caller");
    let cookie = server.session(&key).await;
    let Who::Key(id) = caller.who else { panic!("{} is no key", caller.who) };
    revoke_key(&*server.store, id, &Actor::system("test")).await.expect("an append");
    server.keys_caught_up().await;
    assert_eq!(server.get(&key, "/v1/tasks").await.status, StatusCode::UNAUTHORIZED);
    let with_cookie =
        TestRequest::get().uri("/v1/tasks").insert_header(("cookie", format!("{}={cookie}", session::COOKIE)));
    assert_eq!(server.send(with_cookie).await.status, StatusCode::UNAUTHORIZED);
}

#[actix_web::test]
async fn a_session_acts_only_from_our_own_pages() {
    let server = Server::start().await;
    let cookie = format!("{}={}", session::COOKIE, server.session(&server.admin).await);
    let submit = || {
        TestRequest::post()
            .uri("/v1/tasks")
            .insert_header(("cookie", cookie.clone()))
            .insert_header(("content-type", "application/json"))
            .insert_header(("host", "orchestra.example"))
            .set_payload(example().to_string())
    };
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "none"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("accept", "*/*"),
    ] {
        let answer = server.send(submit().insert_header((name, value))).await;
        assert_eq!((answer.status, &*answer.code()), (StatusCode::FORBIDDEN, "cross-site-request"), "{name}: {value}");
    }
    let own = server.send(submit().insert_header(("sec-fetch-site", "same-origin"))).await;
    assert_eq!(own.status, StatusCode::ACCEPTED, "{}", own.text());
    let own = server.send(submit().insert_header(("origin", "https://orchestra.example"))).await;
    assert_eq!(own.status, StatusCode::ACCEPTED, "{}", own.text());
}
