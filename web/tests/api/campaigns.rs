//! Starting, reading, listing and acting on campaigns.

use actix_web::http::StatusCode;
use actix_web::test::TestRequest;
use orchestra_events::campaign::event::OpenedPullRequest;
use orchestra_events::campaign::{ChildOutcome, Command, child_id};
use orchestra_events::key::Scope;
use orchestra_events::{Actor, CampaignId, EventStore, FailureCode};
use serde_json::{Value, json};

use crate::harness::{Server, example, post};

fn campaign() -> Value {
    let mut body = example();
    body.as_object_mut().expect("an object").remove("repo");
    body["name"] = json!("Bump the provider");
    body["repos"] =
        json!(["acme/api", { "repo": "gitlab:acme/web", "base": "release/2", "branch": "bump" }, "acme/docs"]);
    body["budget"] = json!({ "maxUsd": 20, "maxTokens": 500_000 });
    body["taskBudget"] = json!({ "maxUsd": 2 });
    body
}

async fn create(server: &Server, key: &str, body: &Value) -> (CampaignId, Value) {
    let answer = server.post(key, "/v1/campaigns", &body.to_string()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    let json = answer.json();
    let id = json["id"].as_str().expect("an id");
    assert_eq!(answer.header("location"), Some(&*format!("/v1/campaigns/{id}")));
    (id.parse().expect("a campaign id"), json)
}

/// The task for a repository begins, and ends so.
async fn play(server: &Server, id: CampaignId, index: u32, run: u32, outcome: ChildOutcome) {
    let (task, who) = (child_id(id, index), Actor::system("test"));
    let start = Command::StartChild { index, task, after: None };
    server.campaigns.command(id, start, &who).await.expect("it may begin");
    let opened_at = "2026-11-22T10:00:00Z".parse().expect("a time");
    let pull_requests = vec![OpenedPullRequest { url: "https://h/1".into(), number: 1, opened_at }];
    let end = Command::RecordChild { index, task, run, outcome, pull_requests };
    server.campaigns.command(id, end, &who).await.expect("it ran");
}

#[actix_web::test]
async fn a_campaign_is_a_tasks_payload_with_repositories() {
    let server = Server::start().await;
    let mut body = campaign();
    let more = json!({
        "project": "infra", "concurrency": 2, "pullRequestsPerHour": 20, "stopAfterFailures": 0.5,
        "credentials": { "git": { "token": "ghp_canary" } },
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    let (id, json) = create(&server, &server.admin, &body).await;
    assert_eq!((&json["status"], &json["name"], &json["team"]), (&json!("running"), &body["name"], &json!("platform")));
    assert_eq!((&json["concurrency"], &json["pullRequestsPerHour"]), (&json!(2), &json!(20)));
    assert_eq!(json["stopAfterFailures"], 2, "half of three, rounded up");
    assert_eq!((&json["budget"]["maxUsd"], &json["taskBudget"]["maxUsd"]), (&json!(20.0), &json!(2.0)));
    assert_eq!(
        json["progress"],
        json!({ "total": 3, "waiting": 3, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0 })
    );
    let web = &json["children"][1];
    assert_eq!(
        (&web["repo"], &web["base"], &web["branch"]),
        (&json!("gitlab:acme/web"), &json!("release/2"), &json!("bump"))
    );
    assert_eq!((&web["status"], &web["task"]), (&json!("waiting"), &Value::Null));
    assert_eq!(json["links"]["tasks"], format!("/v1/tasks?campaign={id}"));
    assert_eq!(*server.campaigns.secrets.lock().expect("no panic"), ["ghp_canary"]);
    let log = server.store.read_all(orchestra_events::Position::START, 100).await.expect("a log");
    assert!(log.iter().all(|event| !event.data.get().contains("canary")));
    let read = server.get(&server.admin, &format!("/v1/campaigns/{id}")).await;
    assert_eq!(read.json(), json);
}

#[actix_web::test]
async fn each_wrong_field_is_pointed_at_and_nothing_is_stored() {
    let server = Server::start().await;
    let before = server.store.head().await.expect("a head");
    let many: Vec<String> = (0..1_001).map(|number| format!("acme/r{number}")).collect();
    for (name, value, pointer) in [
        ("name", json!(null), "/name"),
        ("name", json!(" "), "/name"),
        ("name", json!("a\nb"), "/name"),
        ("repos", json!(null), "/repos"),
        ("repos", json!([]), "/repos"),
        ("repos", json!("acme/api"), "/repos"),
        ("repos", json!(many), "/repos"),
        ("repos", json!(["acme/api", "a/../b"]), "/repos/1"),
        ("repos", json!(["acme/api", 7]), "/repos/1"),
        ("repos", json!([{ "base": "main" }]), "/repos/0/repo"),
        ("repos", json!([{ "repo": "acme/api", "base": "a..b" }]), "/repos/0/base"),
        ("repos", json!([{ "repo": "acme/api", "brunch": "b" }]), "/repos/0/brunch"),
        ("repo", json!("acme/api"), "/repo"),
        ("concurrency", json!(0), "/concurrency"),
        ("concurrency", json!(65), "/concurrency"),
        ("pullRequestsPerHour", json!(0), "/pullRequestsPerHour"),
        ("stopAfterFailures", json!(0), "/stopAfterFailures"),
        ("stopAfterFailures", json!(1.5), "/stopAfterFailures"),
        ("stopAfterFailures", json!("3"), "/stopAfterFailures"),
        ("budget", json!({ "maxUsd": 0 }), "/budget/maxUsd"),
        ("taskBudget", json!({ "maxUsd": 0 }), "/taskBudget/maxUsd"),
        ("taskBudget", json!({ "maxTokens": "5" }), "/taskBudget/maxTokens"),
        ("task", json!(null), "/task"),
        ("model", json!("a b"), "/model"),
        ("team", json!("a/b"), "/team"),
        ("concurency", json!(3), "/concurency"),
    ] {
        let mut body = campaign();
        body[name] = value.clone();
        let answer = server.post(&server.admin, "/v1/campaigns", &body.to_string()).await;
        assert_eq!(answer.code(), "invalid-request", "{name}: {value}");
        assert_eq!(answer.pointers(), [pointer], "{name}: {value}: {}", answer.text());
        if name == "concurency" {
            assert!(answer.text().contains("did you mean `concurrency`?"), "{}", answer.text());
        }
    }
    // All of them at once.
    let answer = server.post(&server.admin, "/v1/campaigns", r#"{"repos": ["x"], "budget": 3, "taskBudget": 4}"#).await;
    let mut pointers = answer.pointers();
    pointers.sort_unstable();
    assert_eq!(pointers, ["/budget", "/model", "/name", "/repos/0", "/task", "/taskBudget", "/team"]);
    assert_eq!(server.store.head().await.expect("a head"), before);
}

#[actix_web::test]
async fn a_repeat_under_the_same_key_is_the_same_campaign() {
    let server = Server::start().await;
    let key = server.team_key("platform").await;
    let repeat = |body: &Value| post(&key, "/v1/campaigns", &body.to_string()).insert_header(("idempotency-key", "k1"));
    let first = server.send(repeat(&campaign())).await.json();
    assert_eq!(server.send(repeat(&campaign())).await.json()["id"], first["id"]);
    for (name, other) in [("name", json!("Another")), ("repos", json!(["acme/api"])), ("concurrency", json!(9))] {
        let mut body = campaign();
        body[name] = other;
        assert_eq!(server.send(repeat(&body)).await.code(), "idempotency-key-reused", "{name}");
    }
}

#[actix_web::test]
async fn progress_is_shown_and_only_what_failed_is_retried() {
    let server = Server::start().await;
    let key = server.team_key("platform").await;
    let mut body = campaign();
    body["stopAfterFailures"] = json!(1);
    let (id, _) = create(&server, &key, &body).await;
    let path = format!("/v1/campaigns/{id}");
    assert_eq!(server.post(&key, &format!("{path}/retry"), "").await.code(), "conflict");
    play(&server, id, 0, 1, ChildOutcome::Succeeded).await;
    play(&server, id, 1, 1, ChildOutcome::Failed { code: FailureCode::GitAuth }).await;
    let paused = server.get(&key, &path).await.json();
    assert_eq!(paused["status"], "paused");
    assert!(paused["reason"].as_str().expect("a reason").contains("git-auth"), "{paused}");
    assert_eq!((&paused["progress"]["succeeded"], &paused["progress"]["waiting"]), (&json!(1), &json!(1)));
    let credentials = r#"{"credentials": {"git": {"token": "better"}}}"#;
    let again = server.post(&key, &format!("{path}/retry"), credentials).await;
    assert_eq!((again.status, &again.json()["progress"]["waiting"]), (StatusCode::ACCEPTED, &json!(2)));
    assert_eq!(*server.campaigns.secrets.lock().expect("no panic"), ["better"]);
    let cancelled = server.post(&key, &format!("{path}/cancel"), r#"{"reason": "enough"}"#).await.json();
    assert_eq!((&cancelled["status"], &cancelled["reason"]), (&json!("cancelled"), &json!("enough")));
    assert!(cancelled["finishedAt"].is_string(), "nothing ran: {cancelled}");
    assert_eq!(server.post(&key, &format!("{path}/retry"), "").await.code(), "conflict");
    let put = |body: &'static str| {
        TestRequest::put()
            .uri(&format!("{path}/credentials"))
            .insert_header(("authorization", format!("Bearer {key}")))
            .insert_header(("content-type", "application/json"))
            .set_payload(body)
    };
    assert_eq!(server.send(put("{}")).await.code(), "invalid-request");
    assert_eq!(server.send(put(r#"{"git": {"token": "t"}}"#)).await.status, StatusCode::ACCEPTED);
}

#[actix_web::test]
async fn lists_are_pages_and_another_teams_campaigns_do_not_exist() {
    let server = Server::start().await;
    let (own, other) = (server.team_key("platform").await, server.team_key("other").await);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(create(&server, &own, &campaign()).await.0.to_string());
    }
    ids.reverse();
    let page = server.get(&own, "/v1/campaigns?limit=2").await.json();
    let names = |page: &Value| -> Vec<String> {
        let data = page["data"].as_array().expect("a list");
        data.iter().map(|campaign| campaign["id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(names(&page), ids[..2]);
    assert_eq!(page["data"][0].get("children"), None);
    let cursor = page["nextCursor"].as_str().expect("another page");
    let rest = server.get(&own, &format!("/v1/campaigns?limit=2&cursor={cursor}")).await.json();
    assert_eq!((names(&rest), &rest["nextCursor"]), (ids[2..].to_vec(), &Value::Null));
    assert_eq!(names(&server.get(&own, "/v1/campaigns?status=paused").await.json()), [""; 0]);
    assert_eq!(server.get(&own, "/v1/campaigns?status=happy").await.code(), "invalid-query");
    let path = format!("/v1/campaigns/{}", ids[0]);
    assert_eq!(server.get(&other, &path).await.code(), "not-found");
    assert_eq!(server.post(&other, &format!("{path}/cancel"), "").await.code(), "not-found");
    assert_eq!(names(&server.get(&other, "/v1/campaigns").await.json()), [""; 0]);
    assert_eq!(names(&server.get(&other, "/v1/campaigns?team=platform").await.json()), [""; 0]);
    assert_eq!(server.get(&own, "/v1/campaigns/nonsense").await.code(), "not-found");
    assert_eq!(server.post(&other, "/v1/campaigns", &campaign().to_string()).await.code(), "forbidden");
}

#[actix_web::test]
async fn each_verb_wants_its_own_scope() {
    let server = Server::start().await;
    let (id, _) = create(&server, &server.admin, &campaign()).await;
    let path = format!("/v1/campaigns/{id}");
    let reader = server.key(Some("platform"), &[Scope::CampaignsRead, Scope::TasksCreate, Scope::TasksCancel]).await;
    assert_eq!(server.get(&reader, &path).await.status, StatusCode::OK);
    for (path, body) in [
        ("/v1/campaigns".to_owned(), campaign().to_string()),
        (format!("{path}/retry"), String::new()),
        (format!("{path}/cancel"), String::new()),
    ] {
        assert_eq!(server.post(&reader, &path, &body).await.code(), "forbidden", "{path}");
    }
    let writer =
        server.key(Some("platform"), &[Scope::CampaignsCreate, Scope::CampaignsCancel, Scope::TasksRead]).await;
    assert_eq!(server.get(&writer, &path).await.code(), "forbidden");
    assert_eq!(server.get(&writer, "/v1/campaigns").await.code(), "forbidden");
    assert_eq!(server.post(&writer, &format!("{path}/cancel"), "").await.status, StatusCode::ACCEPTED);
}
