//! A POST with an `Idempotency-Key` is done once: copies at once, later copies, copies after a crash.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::test::TestRequest;
use futures_util::future::join_all;
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::{Envelope, EventStore, Expected, NewEvent, Position, Revision, TaskId};
use orchestra_web::api::endpoints::endpoints;
use orchestra_web::api::repeat::repeat;
use serde_json::{Value, json};

use crate::harness::{Server, example, post};

/// Copies that arrive at the same time.
const COPIES: usize = 32;

fn named(key: &str, name: &str, path: &str, body: &Value) -> TestRequest {
    post(key, path, &body.to_string()).insert_header(("idempotency-key", name.to_owned()))
}

async fn log(store: &MemoryStore) -> Vec<Envelope> {
    store.read_all(Position::START, 1_000).await.expect("a log")
}

async fn count(server: &Server, kind: &str) -> usize {
    log(&server.store).await.iter().filter(|event| &*event.kind == kind).count()
}

/// A task that was cancelled before it began.
async fn cancelled(server: &Server) -> TaskId {
    let id = server.task(&server.admin, &example()).await;
    let answer = server.post(&server.admin, &format!("/v1/tasks/{id}/cancel"), "{}").await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    id
}

/// The same log in another house, without the events for which `lost` holds: what a crash left of it.
async fn after_crash(server: &Server, lost: impl Fn(&Envelope) -> bool) -> Server {
    let store = Arc::new(MemoryStore::new());
    for event in log(&server.store).await.into_iter().filter(|event| !lost(event)) {
        let expected = match event.revision.0 {
            0 => Expected::NoStream,
            revision => Expected::Exactly(Revision(revision - 1)),
        };
        let stream = event.stream.clone();
        let data = serde_json::value::RawValue::from_string(event.data.get().to_owned()).expect("JSON");
        let event = NewEvent {
            id: event.id,
            kind: event.kind,
            schema: event.schema,
            time: event.time,
            actor: event.actor,
            correlation: event.correlation,
            causation: event.causation,
            data,
            private: None,
        };
        store.append(&stream, expected, vec![event]).await.expect("an append");
    }
    Server::start_on(store, server.admin.clone()).await
}

#[test]
fn every_post_says_what_becomes_of_a_repeat() {
    for endpoint in endpoints() {
        let repeat = repeat(&endpoint.method, endpoint.path);
        assert!(repeat.is_some(), "{} {} is missing in api/repeat.rs", endpoint.method, endpoint.path);
    }
}

#[actix_web::test]
async fn copies_at_the_same_time_are_done_once() {
    let server = Server::start().await;
    let id = cancelled(&server).await;
    let path = format!("/v1/tasks/{id}/retry");
    // The second retry of a task would be refused: it is going on already.
    let answers = join_all((0..COPIES).map(|_| server.send(named(&server.admin, "r1", &path, &json!({}))))).await;
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        assert_eq!(answer.json()["id"], id.to_string());
        assert_eq!(answer.json()["status"], "queued");
    }
    let repeats = answers.iter().filter(|answer| answer.header("idempotency-replayed") == Some("true")).count();
    assert_eq!(repeats, COPIES - 1);
    assert_eq!(count(&server, "queued").await, 2, "submitted once, retried once");
    assert_eq!(count(&server, "request-claimed").await, 1);
    assert_eq!(server.post(&server.admin, &path, "{}").await.status, StatusCode::CONFLICT);
}

#[actix_web::test]
async fn another_body_or_path_under_the_key_is_refused_and_fresh_secrets_are_not_another_body() {
    let server = Server::start().await;
    let id = cancelled(&server).await;
    let path = format!("/v1/tasks/{id}/retry");
    let with = |token: &str| json!({"credentials": {"git": {"token": token}}});
    assert_eq!(server.send(named(&server.admin, "r1", &path, &with("ghp_one"))).await.status, StatusCode::ACCEPTED);
    let again = server.send(named(&server.admin, "r1", &path, &with("ghp_two"))).await;
    assert_eq!(again.status, StatusCode::ACCEPTED, "{}", again.text());
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let other = server.send(named(&server.admin, "r1", &path, &json!({"credentials": {}, "x": 1}))).await;
    assert_eq!((other.status, &*other.code()), (StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused"));
    let elsewhere = format!("/v1/tasks/{id}/cancel");
    let other = server.send(named(&server.admin, "r1", &elsewhere, &json!({}))).await;
    assert_eq!((other.status, &*other.code()), (StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused"));
    assert_eq!(count(&server, "cancelled").await, 1);
    for event in log(&server.store).await {
        let text = serde_json::to_string(&event).expect("JSON");
        assert!(!text.contains("ghp_") && !text.contains("\"r1\""), "{text}");
    }
}

#[actix_web::test]
async fn another_caller_may_use_the_same_key() {
    let server = Server::start().await;
    let team = server.team_key("platform").await;
    let (first, second) = (cancelled(&server).await, cancelled(&server).await);
    for (key, id) in [(&server.admin, first), (&team, second)] {
        let answer = server.send(named(key, "r1", &format!("/v1/tasks/{id}/retry"), &json!({}))).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        assert_eq!(answer.header("idempotency-replayed"), None);
        assert_eq!(answer.json()["id"], id.to_string());
    }
    assert_eq!(count(&server, "request-claimed").await, 2);
}

#[actix_web::test]
async fn what_was_refused_may_be_tried_again_under_the_same_key() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    let path = format!("/v1/tasks/{id}/retry");
    let refused = server.send(named(&server.admin, "r1", &path, &json!({}))).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "it has not failed yet");
    let wrong = server.send(named(&server.admin, "r1", &path, &json!({"word": 1}))).await;
    assert_eq!(wrong.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", wrong.text());
    assert_eq!(wrong.code(), "invalid-request");
    server.post(&server.admin, &format!("/v1/tasks/{id}/cancel"), "{}").await;
    let done = server.send(named(&server.admin, "r1", &path, &json!({}))).await;
    assert_eq!(done.status, StatusCode::ACCEPTED, "{}", done.text());
    assert_eq!(done.header("idempotency-replayed"), None);
}

#[actix_web::test]
async fn after_a_crash_the_repeat_finds_what_was_done_or_does_it() {
    let server = Server::start().await;
    let id = cancelled(&server).await;
    let path = format!("/v1/tasks/{id}/retry");
    let repeat = || named(&server.admin, "r1", &path, &json!({}));
    assert_eq!(server.send(repeat()).await.status, StatusCode::ACCEPTED);

    // A restart, with nothing lost.
    let restarted = after_crash(&server, |_| false).await;
    let answer = restarted.send(repeat()).await;
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (StatusCode::ACCEPTED, Some("true")));

    // Done, and the answer was not written down any more.
    let unanswered = after_crash(&server, |event| &*event.kind == "request-answered").await;
    let answers = join_all((0..COPIES).map(|_| unanswered.send(repeat()))).await;
    for answer in answers {
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        assert_eq!(answer.header("idempotency-replayed"), Some("true"));
    }
    assert_eq!(count(&unanswered, "queued").await, 2);

    // Claimed, and nothing done.
    let done = |event: &Envelope| {
        let caused = event.actor.origin.as_ref().is_some_and(|from| from.request.is_some());
        caused && &*event.kind != "request-claimed" || &*event.kind == "request-answered"
    };
    let forsaken = after_crash(&server, done).await;
    assert_eq!(count(&forsaken, "queued").await, 1);
    let answers = join_all((0..COPIES).map(|_| forsaken.send(repeat()))).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::ACCEPTED));
    assert_eq!(count(&forsaken, "queued").await, 2);
    assert_eq!(count(&forsaken, "request-claimed").await, 2);
}

#[actix_web::test]
async fn a_test_of_a_webhook_is_sent_once() {
    let server = Server::start().await;
    let webhook = json!({"url": "https://receiver.example/hook", "events": ["task.*"], "team": "platform"});
    let made = server.post(&server.admin, "/v1/webhooks", &webhook.to_string()).await.json();
    let path = format!("/v1/webhooks/{}/test", made["id"].as_str().expect("an id"));
    let answers = join_all((0..COPIES).map(|_| server.send(named(&server.admin, "t1", &path, &json!({}))))).await;
    let (sent, told): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == StatusCode::OK);
    assert_eq!((sent.len(), server.webhooks.tests()), (1, 1));
    for answer in told {
        assert_eq!((answer.status, &*answer.code()), (StatusCode::CONFLICT, "conflict"), "{}", answer.text());
        assert!(answer.text().contains("sent once already"), "{}", answer.text());
    }
    assert_eq!(server.send(named(&server.admin, "t2", &path, &json!({}))).await.status, StatusCode::OK);
    assert_eq!(server.post(&server.admin, &path, "{}").await.status, StatusCode::OK);
    assert_eq!(server.webhooks.tests(), 3);
}

#[actix_web::test]
async fn who_may_not_ask_leaves_nothing_in_the_log() {
    let server = Server::start().await;
    let id = cancelled(&server).await;
    let reader = server.key(Some("platform"), &[orchestra_events::key::Scope::TasksRead]).await;
    let path = format!("/v1/tasks/{id}/retry");
    assert_eq!(server.send(named(&reader, "r1", &path, &json!({}))).await.status, StatusCode::FORBIDDEN);
    assert_eq!(server.send(named("orc_x", "r1", &path, &json!({}))).await.status, StatusCode::UNAUTHORIZED);
    let long = server.send(named(&server.admin, &"r".repeat(256), &path, &json!({}))).await;
    assert_eq!(long.code(), "invalid-request");
    assert_eq!(count(&server, "request-claimed").await, 0);
}

#[actix_web::test]
async fn a_key_is_issued_and_rotated_once_and_its_text_is_shown_once() {
    let server = Server::start().await;
    let body = json!({"name": "ci", "team": "platform", "scopes": ["tasks:read"]});
    let answers = join_all((0..COPIES).map(|_| server.send(named(&server.admin, "k1", "/v1/keys", &body)))).await;
    let texts: Vec<_> = answers.iter().filter_map(|answer| answer.json()["key"].as_str().map(str::to_owned)).collect();
    assert_eq!(texts.len(), 1, "shown once");
    let id = answers[0].json()["id"].clone();
    let location = format!("/v1/keys/{}", id.as_str().expect("an id"));
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        assert_eq!((&answer.json()["id"], answer.header("location")), (&id, Some(&*location)));
    }
    assert_eq!(count(&server, "key-issued").await, 2, "the first admin's and this one");

    let path = format!("{location}/rotate");
    let answers = join_all((0..COPIES).map(|_| server.send(named(&server.admin, "k2", &path, &json!({}))))).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(answers.iter().filter(|answer| answer.json()["key"].is_string()).count(), 1);
    assert_eq!(count(&server, "key-rotated").await, 1);

    // Issued, and the answer was lost in a crash: found again, by what it made.
    let crashed = after_crash(&server, |event| &*event.kind == "request-answered").await;
    let answer = crashed.send(named(&crashed.admin, "k1", "/v1/keys", &body)).await;
    assert_eq!((answer.status, &answer.json()["id"]), (StatusCode::CREATED, &id), "{}", answer.text());
    assert_eq!(answer.header("location"), Some(&*location));
    assert_eq!(count(&crashed, "key-issued").await, 2);
}
