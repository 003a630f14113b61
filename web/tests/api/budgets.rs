//! Budgets over REST: what may be set, by whom, and what the answer says.

use actix_web::http::Method;
use actix_web::test::TestRequest;
use orchestra_events::key::Scope;
use serde_json::{Value, json};

use crate::harness::{Answer, Server, get, post};

fn put(key: &str, path: &str, body: &Value) -> TestRequest {
    post(key, path, &body.to_string()).method(Method::PUT)
}

async fn set(server: &Server, path: &str, body: &Value) -> Answer {
    server.send(put(&server.admin, path, body)).await
}

#[actix_web::test]
async fn a_budget_is_set_read_and_taken_away() {
    let server = Server::start().await;
    let path = "/v1/budgets/environment:platform/infra/prod";
    let budget = json!({
        "perTask": { "maxUsd": 2, "maxTokens": 50_000 }, "perDay": { "maxUsd": 1.000000001 }, "timeZone": "Europe/Zurich",
    });
    let answer = set(&server, path, &budget).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let view = server.get(&server.admin, path).await.json();
    assert_eq!(view["scope"], "environment:platform/infra/prod");
    assert_eq!(view["perTask"], json!({ "maxUsd": 2.0, "maxTokens": 50_000 }));
    assert_eq!(view["perDay"]["maxUsd"].to_string(), "1.000000001");
    assert_eq!((&view["perDay"]["spentUsd"], &view["perDay"]["reservedTokens"]), (&json!(0.0), &json!(0)));
    assert!(view["perDay"]["resetsAt"].is_string() && view["perMonth"]["resetsAt"].is_string());
    assert_eq!((&view["perMonth"]["maxUsd"], &view["timeZone"]), (&json!(null), &json!("Europe/Zurich")));
    let list = server.get(&server.admin, "/v1/budgets?team=platform").await.json();
    assert_eq!(list["data"][0]["scope"], "environment:platform/infra/prod");
    set(&server, path, &json!({})).await;
    let view = server.get(&server.admin, path).await.json();
    assert_eq!(view["perTask"], json!({ "maxUsd": null, "maxTokens": null }));
}

#[actix_web::test]
async fn what_does_not_do_is_named() {
    let server = Server::start().await;
    for (body, pointer) in [
        (json!({ "perDay": { "maxUsd": -1 } }), "/perDay/maxUsd"),
        (json!({ "perDay": { "maxUsd": 1.0000000001 } }), "/perDay/maxUsd"),
        (json!({ "perDay": { "maxTokens": 1.5 } }), "/perDay/maxTokens"),
        (json!({ "perDay": { "maxDollars": 1 } }), "/perDay/maxDollars"),
        (json!({ "perday": {} }), "/perday"),
        (json!({ "timeZone": "Mars/Olympus" }), "/timeZone"),
        (json!({ "perMonth": 5 }), "/perMonth"),
    ] {
        let answer = set(&server, "/v1/budgets/team:platform", &body).await;
        assert_eq!(answer.status, 422, "{body}");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}");
    }
    for scope in ["team", "team:a/b", "squad:a", "project:a", "team:a%20b"] {
        let answer = server.get(&server.admin, &format!("/v1/budgets/{scope}")).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (404, "not-found"), "{scope}");
    }
}

#[actix_web::test]
async fn a_key_sees_the_budgets_of_its_own_team_alone() {
    let server = Server::start().await;
    let reads = server.key(Some("platform"), &[Scope::BudgetsRead]).await;
    let writes = server.key(Some("platform"), &[Scope::BudgetsWrite]).await;
    let none = server.key(Some("platform"), &[Scope::TasksRead]).await;
    let body = json!({});
    for (key, scope, reading, writing) in [
        (&reads, "team:platform", 200, 403),
        (&reads, "project:platform/infra", 200, 403),
        (&reads, "team:other", 404, 403),
        (&reads, "project:other/infra", 404, 403),
        (&writes, "team:platform", 403, 200),
        (&writes, "team:other", 403, 404),
        (&none, "team:platform", 403, 403),
    ] {
        let path = format!("/v1/budgets/{scope}");
        assert_eq!(server.get(key, &path).await.status, reading, "reading {scope}");
        assert_eq!(server.send(put(key, &path, &body)).await.status, writing, "writing {scope}");
    }
    for (key, path, expected) in [
        (&reads, "/v1/budgets", 200),
        (&reads, "/v1/budgets?team=other", 404),
        (&none, "/v1/budgets", 403),
        (&server.admin, "/v1/budgets?team=no%20team", 404),
    ] {
        assert_eq!(server.send(get(key, path)).await.status, expected, "{path}");
    }
    assert_eq!(server.get(&server.admin, "/v1/budgets").await.status, 400, "an operator names the team");
}
