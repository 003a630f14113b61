//! A caller's model key and git token live in memory only: after a restart the task waits for them, and goes on.

use serde_json::{Value, json};

use crate::harness::{GIT_TOKEN, House, REPO, Setup, bash, count, done, script, sha256};
use orchestra_test_forges::{At, Fault};

fn credentials(key: &str, token: &str) -> Value {
    json!({ "model": { "apiKey": key }, "git": { "token": token } })
}

async fn supply(house: &House, id: &str, credentials: &Value) {
    let (status, problem) = house.api.put(&format!("/v1/tasks/{id}/credentials"), credentials).await;
    assert_eq!(status, 202, "{problem}");
}

fn keys(house: &[Value]) -> Vec<&str> {
    house.iter().map(|request| request["keySha256"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_waits_for_its_secrets_after_a_restart() {
    let turns = json!([bash("echo one >> log.txt; sleep 2"), bash("echo two >> log.txt"), done()]);
    let mut house = Setup::new(script(turns)).key_required().open().await;
    let repo = format!("plain:{REPO}");
    let first = credentials("model-key-one", GIT_TOKEN);
    let id = house.submit(json!({ "repo": repo, "credentials": first })).await;
    house.event(&id, "tool-called").await;
    house.kill().await;
    house.restart().await;
    house.event(&id, "credentials-required").await;
    let task = house.task(&id).await;
    assert_eq!(task["status"], "awaiting-credentials", "{task:#}");
    assert!(task["reason"].as_str().unwrap().contains("model key"), "{task:#}");
    // Waiting costs nothing, and survives the next kill.
    house.kill().await;
    house.restart().await;
    assert_eq!(house.task(&id).await["status"], "awaiting-credentials");
    supply(&house, &id, &credentials("model-key-two", GIT_TOKEN)).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    // What was done before goes on; nothing is done twice.
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "log.txt"), "one\ntwo");
    let requests = house.model.requests().await;
    assert_eq!(requests.turns(), [0, 1, 2]);
    let (one, two) = (sha256("model-key-one"), sha256("model-key-two"));
    assert_eq!(keys(&requests.0), [&one[..], &two, &two]);
    assert_eq!(count(&house.events(&id).await, "credentials-supplied"), 1);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_secret_is_asked_for_and_nothing_is_lost() {
    let mut turns = json!([bash("echo one >> log.txt"), done()]);
    turns[1]["fault"] = json!({ "kind": "status", "status": 401, "times": 1 });
    let house = Setup::new(script(turns)).key_required().open().await;
    let repo = format!("plain:{REPO}");
    let id = house.submit(json!({ "repo": repo, "credentials": credentials("key-one", "a-wrong-token") })).await;
    let asked = house.event(&id, "credentials-required").await;
    assert_eq!(asked.data["data"]["missing"], json!(["git"]));
    let task = house.task(&id).await;
    assert_eq!((&task["status"], &task["failure"]["code"]), (&json!("awaiting-credentials"), &json!("git-auth")));
    supply(&house, &id, &json!({ "git": { "token": GIT_TOKEN } })).await;
    let asked = house.event_after(&id, asked.id, |frame| frame.kind == "credentials-required").await;
    assert_eq!(asked.data["data"]["missing"], json!(["model"]));
    assert_eq!(house.task(&id).await["failure"]["code"], "model-auth");
    supply(&house, &id, &json!({ "model": { "apiKey": "key-two" } })).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "log.txt"), "one");
    let requests = house.model.requests().await;
    let (one, two) = (sha256("key-one"), sha256("key-two"));
    assert_eq!(keys(&requests.0), [&one[..], &one, &two]);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_without_a_key_waits_for_one_and_can_be_cancelled() {
    let house = Setup::new(script(json!([done()]))).key_required().open().await;
    let id = house.submit(json!({})).await;
    house.event(&id, "credentials-required").await;
    assert_eq!(house.task(&id).await["status"], "awaiting-credentials");
    assert_eq!(house.api.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).await.0, 202);
    assert_eq!(house.ended(&id).await["status"], "cancelled");
    let (status, _) = house.api.put(&format!("/v1/tasks/{id}/credentials"), &credentials("k", "t")).await;
    assert_eq!(status, 409);
    assert_eq!(house.model.requests().await.len(), 0);
    house.nothing_left().await;
}

/// The operator's own key is for callers that bring none: who brought one is asked for it again, and the operator does not
/// pay for what is left of the task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_key_does_not_stand_in_for_a_callers() {
    let turns = json!([bash("echo one >> log.txt; sleep 2"), done()]);
    let operators = ("NO_OPERATOR_KEY".to_owned(), "the-operators-key".to_owned());
    let mut house = Setup::new(script(turns)).key_required().environment(&operators.0, &*operators.1).open().await;
    let id = house.submit(json!({ "credentials": { "model": { "apiKey": "the-callers-key" } } })).await;
    house.event(&id, "tool-called").await;
    house.kill().await;
    house.restart_with(std::slice::from_ref(&operators)).await;
    house.event(&id, "credentials-required").await;
    let (status, problem) = house
        .api
        .put(&format!("/v1/tasks/{id}/credentials"), &json!({ "model": { "apiKey": "the-callers-key" } }))
        .await;
    assert_eq!(status, 202, "{problem}");
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    // Who brings none is served with the operator's.
    let other = house.submit(json!({})).await;
    assert_eq!(house.ended(&other).await["status"], "succeeded");
    let (caller, operator) = (sha256("the-callers-key"), sha256("the-operators-key"));
    assert_eq!(keys(&house.model.requests().await.0), [&caller[..], &caller, &operator, &operator]);
}

/// The work is paid for when the push is refused: it waits for a token that may push, and is not done again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_the_token_may_not_make_waits_for_one_that_may() {
    let house = Setup::new(script(json!([bash("echo one >> log.txt"), done()]))).key_required().open().await;
    let repo = format!("plain:{REPO}");
    let id = house.submit(json!({ "repo": repo, "credentials": credentials("key", GIT_TOKEN) })).await;
    house.event(&id, "cloned").await;
    let kind = "text/plain";
    let header = Some(("X-Accepted-GitHub-Permissions", "contents=write".to_owned()));
    let refused = Fault::Status(403, kind, "Write access to repository not granted.".to_owned(), header);
    house.remotes.http.fault(Some((At::All, refused)));
    let asked = house.event(&id, "credentials-required").await;
    assert_eq!(asked.data["data"]["missing"], json!(["git"]));
    let task = house.task(&id).await;
    assert_eq!(
        (&task["status"], &task["failure"]["code"]),
        (&json!("awaiting-credentials"), &json!("git-token-scope"))
    );
    let message = task["failure"]["message"].as_str().unwrap();
    assert!(message.contains("`contents=write`") && message.contains("not granted"), "{message}");
    house.remotes.http.fault(None);
    supply(&house, &id, &json!({ "git": { "token": GIT_TOKEN } })).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "log.txt"), "one");
    assert_eq!(house.model.requests().await.turns(), [0, 1]);
    house.nothing_left().await;
}
