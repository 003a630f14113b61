//! Submitting, reading, listing and acting on tasks.

use actix_web::http::StatusCode;
use orchestra_events::Actor;
use orchestra_events::task::Command;
use orchestra_events::task::event::CredentialKind;
use serde_json::{Value, json};

use crate::harness::{Server, example, get, post};

#[actix_web::test]
async fn the_example_is_accepted_and_can_be_read_at_once() {
    let server = Server::start().await;
    let answer = server.post(&server.admin, "/v1/tasks", &example().to_string()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let task = answer.json();
    let id = task["id"].as_str().expect("an id");
    assert!(id.starts_with("task_"));
    assert_eq!(answer.header("location"), Some(&*format!("/v1/tasks/{id}")));
    assert_eq!(task["links"]["page"], format!("/tasks/{id}"));
    let read = server.get(&server.admin, &format!("/v1/tasks/{id}")).await;
    assert_eq!(read.status, StatusCode::OK);
    assert_eq!(read.json(), task);
    let names: Vec<_> = [
        "id",
        "status",
        "reason",
        "repo",
        "task",
        "model",
        "harness",
        "team",
        "project",
        "environment",
        "taskType",
        "customer",
        "budget",
        "usage",
        "branch",
        "base",
        "egress",
        "commits",
        "pullRequests",
        "attempt",
        "failure",
        "campaign",
        "metadata",
        "createdAt",
        "startedAt",
        "finishedAt",
        "contentErasedAt",
        "links",
    ]
    .into();
    let mut found: Vec<_> = task.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected = names.clone();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(task["status"], "queued");
    assert_eq!(task["repo"], "github:acme/api");
    assert_eq!(task["customer"], Value::Null);
    assert!(read.text().contains(r#""budget":{"maxUsd":2.0,"maxTokens":null}"#), "{}", read.text());
    assert!(read.text().contains(r#""costUsd":0.0,"billableUsd":0.0"#), "{}", read.text());
}

#[actix_web::test]
async fn every_optional_field_comes_back() {
    let server = Server::start().await;
    let mut body = example();
    let more = json!({
        "project": "infra", "environment": "prod", "taskType": "dependency-upgrade", "customer": "Acme & Söhne",
        "base": "main", "branch": "orchestra/x", "harness": "builtin", "image": "default", "timeoutSeconds": 60,
        "metadata": {"ticket": "OPS-1", "n": 3, "urgent": true}, "budget": {"maxUsd": 0.000000001, "maxTokens": 5},
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    // The amount as it is written: a float would print it with an exponent.
    let text = body.to_string().replace("1e-9", "0.000000001");
    let answer = server.post(&server.admin, "/v1/tasks", &text).await;
    let task = answer.json();
    for name in ["project", "environment", "taskType", "customer", "base", "branch", "metadata", "harness"] {
        assert_eq!(task[name], body[name], "{name}");
    }
    assert!(answer.text().contains(r#""maxUsd":0.000000001,"maxTokens":5"#), "{}", answer.text());
}

#[actix_web::test]
async fn a_repeat_under_the_same_key_is_the_same_task() {
    let server = Server::start().await;
    let with = |key: &str, body: &Value| {
        post(&server.admin, "/v1/tasks", &body.to_string()).insert_header(("idempotency-key", key.to_owned()))
    };
    let first = server.send(with("k1", &example())).await;
    let repeat = server.send(with("k1", &example())).await;
    assert_eq!(repeat.status, StatusCode::ACCEPTED);
    assert_eq!(repeat.json()["id"], first.json()["id"]);
    assert_eq!(repeat.header("location"), first.header("location"));
    // Other secrets are the same request: they are never part of what is compared.
    let mut rotated = example();
    rotated["credentials"] = json!({"git": {"token": "ghp_other"}});
    assert_eq!(server.send(with("k1", &rotated)).await.json()["id"], first.json()["id"]);
    let mut other = example();
    other["task"] = json!("something else");
    let reused = server.send(with("k1", &other)).await;
    assert_eq!(reused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(reused.code(), "idempotency-key-reused");
    assert_ne!(server.send(with("k2", &example())).await.json()["id"], first.json()["id"]);
    let long = server.send(with(&"k".repeat(256), &example())).await;
    assert_eq!(long.code(), "invalid-request");
}

#[actix_web::test]
async fn lists_are_newest_first_and_pages_neither_repeat_nor_skip() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for number in 0..7 {
        let mut body = example();
        body["project"] = json!(if number % 2 == 0 { "even" } else { "odd" });
        body["customer"] = json!(format!("c{number}"));
        ids.push(server.task(&server.admin, &body).await.to_string());
    }
    ids.reverse();
    let mut seen = Vec::new();
    let mut path = "/v1/tasks?limit=3".to_owned();
    loop {
        let page = server.get(&server.admin, &path).await.json();
        seen.extend(
            page["data"].as_array().expect("a list").iter().map(|task| task["id"].as_str().expect("an id").to_owned()),
        );
        // What is created in between does not move the pages behind it.
        server.task(&server.admin, &example()).await;
        match page["nextCursor"].as_str() {
            Some(cursor) => path = format!("/v1/tasks?limit=3&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, ids);
    let count = |answer: Value| answer["data"].as_array().expect("a list").len();
    for (query, expected) in [
        ("project=even", 4),
        ("project=even&customer=c2", 1),
        ("repo=acme/api&customer=c1", 1),
        ("repo=github:acme/api&customer=c1", 1),
        ("repo=gitlab:acme/api", 0),
        ("status=queued&project=odd", 3),
        ("status=failed", 0),
        ("team=platform&project=odd", 3),
        ("team=other", 0),
        ("model=gpt-x", 0),
        ("campaign=x", 0),
        ("createdAfter=2020-01-01T00:00:00Z&project=odd", 3),
        ("createdBefore=2020-01-01T00:00:00Z", 0),
    ] {
        let answer = server.get(&server.admin, &format!("/v1/tasks?{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.text());
        assert_eq!(count(answer.json()), expected, "{query}");
    }
    for (query, pointer) in [
        ("statuss=queued", "?statuss"),
        ("status=sleeping", "?status"),
        ("cursor=x", "?cursor"),
        ("limit=0", "?limit"),
        ("limit=201", "?limit"),
        ("createdAfter=yesterday", "?createdAfter"),
        ("team=a&team=b", "?team"),
    ] {
        let answer = server.get(&server.admin, &format!("/v1/tasks?{query}")).await;
        assert_eq!(answer.code(), "invalid-query", "{query}");
        assert_eq!(answer.pointers(), [pointer], "{query}");
    }
}

#[actix_web::test]
async fn a_task_is_cancelled_retried_and_supplied() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    let at = |what: &str| format!("/v1/tasks/{id}/{what}");
    // Nobody hears a message before the attempt begins.
    let early = server.post(&server.admin, &at("messages"), r#"{"message": "hello"}"#).await;
    assert_eq!((early.status, &*early.code()), (StatusCode::CONFLICT, "conflict"));
    let cancelled = server.post(&server.admin, &at("cancel"), r#"{"reason": "wrong repository"}"#).await;
    assert_eq!(cancelled.status, StatusCode::ACCEPTED, "{}", cancelled.text());
    assert_eq!(cancelled.json()["status"], "cancelled");
    let again = server.send(post(&server.admin, &at("cancel"), "")).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let retried = server.post(&server.admin, &at("retry"), r#"{"credentials": {"git": {"token": "ghp_retry"}}}"#).await;
    assert_eq!(retried.json()["status"], "queued");
    assert_eq!(server.post(&server.admin, &at("retry"), "").await.status, StatusCode::CONFLICT);
    let system = Actor::system("test");
    let missing = vec![CredentialKind::Model];
    server
        .service
        .command(id, Command::RequireCredentials { missing, failure: None }, &system)
        .await
        .expect("an event");
    assert_eq!(server.get(&server.admin, &format!("/v1/tasks/{id}")).await.json()["status"], "awaiting-credentials");
    let request = post(&server.admin, &at("credentials"), r#"{"model": {"apiKey": "sk-put"}}"#);
    let supplied = server.send(request.method(actix_web::http::Method::PUT)).await;
    assert_eq!(supplied.json()["status"], "queued", "{}", supplied.text());
    assert_eq!(*server.service.secrets.lock().expect("no panic"), ["ghp_retry", "sk-put"]);
    let log = server.get(&server.admin, &at("events?limit=500")).await;
    assert!(!log.text().contains("sk-put") && !log.text().contains("ghp_retry"));
    let diff = server.get(&server.admin, &at("diff")).await;
    assert_eq!(diff.header("content-type"), Some("text/x-diff; charset=utf-8"));
    assert!(diff.text().starts_with("--- a/x"));
}

#[actix_web::test]
async fn bodies_of_actions_are_checked() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    for (method, what, body, pointer) in [
        ("POST", "messages", "{}", "/message"),
        ("POST", "messages", r#"{"message": 3}"#, "/message"),
        ("POST", "messages", r#"{"message": " "}"#, "/message"),
        ("POST", "messages", r#"{"message": "x", "mesage": "y"}"#, "/mesage"),
        ("POST", "cancel", r#"{"reason": 1}"#, "/reason"),
        ("POST", "cancel", r#"{"why": "x"}"#, "/why"),
        ("POST", "cancel", "[]", ""),
        ("POST", "retry", r#"{"credentials": {"git": {"tokn": "x"}}}"#, "/credentials/git/token"),
        ("PUT", "credentials", "{}", ""),
        ("PUT", "credentials", r#"{"model": {"apiKey": "a b"}}"#, "/model/apiKey"),
    ] {
        let request = post(&server.admin, &format!("/v1/tasks/{id}/{what}"), body);
        let request = request.method(method.parse().expect("a method"));
        let answer = server.send(request).await;
        assert_eq!(answer.code(), "invalid-request", "{what} {body}");
        assert!(answer.pointers().iter().any(|found| found == pointer), "{what} {body}: {}", answer.text());
    }
}

#[actix_web::test]
async fn what_the_framework_refuses_is_a_problem_too() {
    let server = Server::start().await;
    for (method, path, status, code) in [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/nothing", 404, "not-found"),
        ("DELETE", "/v1/tasks", 405, "method-not-allowed"),
        ("GET", "/v1/tasks/not-an-id", 404, "not-found"),
        ("GET", "/v1/tasks/task_00000000000000000000000000", 404, "not-found"),
        ("GET", "/v1/tasks/%ff%fe", 404, "not-found"),
        ("GET", "/metrics", 404, "not-found"),
    ] {
        let request = get(&server.admin, path).method(method.parse().expect("a method"));
        let answer = server.send(request).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{method} {path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        if status == 405 {
            assert_eq!(answer.header("allow"), Some("POST, GET"));
        }
    }
}
