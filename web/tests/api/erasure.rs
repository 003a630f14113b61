//! Forgetting what was said: over REST and from the page.

use actix_web::http::{Method, StatusCode};
use actix_web::test::TestRequest;
use orchestra_events::key::Scope;
use serde_json::json;

use crate::harness::{Server, example, get};

fn erase(key: &str, path: &str) -> TestRequest {
    get(key, path).method(Method::DELETE)
}

#[actix_web::test]
async fn words_go_once_the_task_has_ended_and_do_not_come_back() {
    let server = Server::start().await;
    let mut body = example();
    body["task"] = json!("Bump the canary.");
    let id = server.task(&server.admin, &body).await;
    let (task, content) = (format!("/v1/tasks/{id}"), format!("/v1/tasks/{id}/content"));
    let answer = server.send(erase(&server.admin, &content)).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::CONFLICT, "conflict"));
    assert!(answer.text().contains("still going on"), "{}", answer.text());
    assert_eq!(server.post(&server.admin, &format!("{task}/cancel"), "{}").await.status, StatusCode::ACCEPTED);

    let reader = server.key(Some("platform"), &[Scope::TasksRead, Scope::TasksCreate, Scope::TasksCancel]).await;
    assert_eq!(server.send(erase(&reader, &content)).await.status, StatusCode::FORBIDDEN);
    let eraser = server.key(Some("platform"), &[Scope::ContentErase]).await;
    for _ in 0..2 {
        let answer = server.send(erase(&eraser, &content)).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::NO_CONTENT, ""));
    }
    let shown = server.get(&server.admin, &task).await.json();
    assert_eq!((&shown["task"], &shown["status"]), (&json!("[erased]"), &json!("cancelled")));
    assert!(shown["contentErasedAt"].is_string(), "{shown:#}");
    let events = server.get(&server.admin, &format!("{task}/events")).await;
    assert!(!events.text().contains("canary"), "{}", events.text());
    let events = events.json();
    let kinds: Vec<_> = events["data"].as_array().unwrap().iter().map(|event| &event["type"]).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "content-erased").count(), 1, "{kinds:?}");
    assert_eq!(events["data"][0]["erased"], true);
    let retried = server.post(&server.admin, &format!("{task}/retry"), "{}").await;
    assert_eq!(retried.status, StatusCode::CONFLICT);
    assert!(retried.text().contains("erased"), "{}", retried.text());
    let page = server.get(&server.admin, &format!("/tasks/{id}")).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.text().contains("[erased]") && !page.text().contains("canary"));
}
