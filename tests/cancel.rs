//! A task can be cancelled at any time, and then holds nothing any more: no sandbox, no place, no model call.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{GIT_TOKEN, House, PATIENCE, REPO, Seed, Setup, bash, count, done, kinds, script};
use orchestra_test_forges::{At, Fault};

/// A cancelled task is over long before what it was doing would have been.
const SOON: Duration = Duration::from_secs(30);

async fn cancel(house: &House, id: &str) -> Value {
    let started = Instant::now();
    let (status, task) = house.api.post(&format!("/v1/tasks/{id}/cancel"), &json!({ "reason": "not needed" })).await;
    assert_eq!(status, 202, "{task}");
    let task = house.ended(id).await;
    assert_eq!(task["status"], "cancelled", "{task:#}");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    task
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_frees_what_it_holds() {
    let mut slow_model = json!([done()]);
    slow_model[0]["delayMs"] = json!(60_000);
    let mut slow_words = json!([{ "text": "word ".repeat(400) }]);
    slow_words[0]["paceMs"] = json!(2_000);
    let mut refused = json!([done()]);
    refused[0]["fault"] = json!({ "kind": "status", "status": 429, "retryAfter": "60" });
    let house = Setup::new(json!([
        { "match": "slow tool", "turns": [bash("echo a > a.txt; sleep 60"), done()] },
        { "match": "slow model", "turns": slow_model },
        { "match": "slow words", "turns": slow_words },
        { "match": "refused", "turns": refused },
        { "match": "", "turns": [bash("echo a > a.txt"), done()] },
    ]))
    .config("[scheduler]\nplaces = 1\nper_team = 1")
    .open()
    .await;
    // With one place: each of these could not begin if the one before it still held anything.
    let tool = house.submit(json!({ "task": "slow tool" })).await;
    house.event(&tool, "tool-called").await;

    let queued = house.submit(json!({})).await;
    let task = cancel(&house, &queued).await;
    assert_eq!((&task["attempt"], house.task(&tool).await["status"].as_str()), (&json!(0), Some("running")));

    assert_eq!(cancel(&house, &tool).await["failure"], Value::Null);
    house.nothing_left().await;

    let model = house.submit(json!({ "task": "slow model" })).await;
    house.event(&model, "model-called").await;
    house.model.asked(2).await;
    cancel(&house, &model).await;
    house.nothing_left().await;
    let events = house.events(&model).await;
    // Nobody knows what the provider will charge for it: it is booked at its reservation.
    let charge = events.iter().find(|event| event["type"] == "tokens-charged").unwrap();
    assert_eq!(charge["data"]["confirmed"], false);
    assert_eq!((count(&events, "model-called"), count(&events, "tokens-charged")), (1, 1));

    let words = house.submit(json!({ "task": "slow words" })).await;
    let mut frames = house.api.follow(&format!("/v1/tasks/{words}/events"), None).await;
    while frames.next().await.expect("it speaks").kind != "delta" {}
    cancel(&house, &words).await;

    let waiting = house.submit(json!({ "task": "refused" })).await;
    house.event(&waiting, "retry-scheduled").await;
    assert_eq!(house.task(&waiting).await["status"], "retrying");
    cancel(&house, &waiting).await;
    house.nothing_left().await;

    // The place is free, and what was cancelled can be tried again.
    let last = house.events(&queued).await.len() as u64 - 1;
    assert_eq!(house.api.post(&format!("/v1/tasks/{queued}/retry"), &json!({})).await.0, 202);
    let task = house.ended_after(&queued, Some(last)).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let (status, problem) = house.api.post(&format!("/v1/tasks/{queued}/cancel"), &json!({})).await;
    assert_eq!(status, 409, "{problem}");
    assert_eq!(house.remotes.branches(), [task["branch"].as_str().unwrap()]);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_survives_a_kill() {
    let mut house = Setup::new(script(json!([bash("sleep 60"), done()]))).open().await;
    let id = house.submit(json!({})).await;
    house.event(&id, "tool-called").await;
    assert_eq!(house.api.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).await.0, 202);
    house.kill().await;
    let started = Instant::now();
    house.restart().await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "cancelled", "{task:#}");
    assert!(started.elapsed() < SOON);
    house.nothing_left().await;
}

/// Tasks that are cancelled at moments of no meaning.
const RANDOM_CANCELS: u64 = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_at_any_moment_leaves_nothing() {
    let mut turns = json!([bash("echo a > a.txt"), bash("sleep 0.1"), done()]);
    turns[1]["delayMs"] = json!(60);
    let house = Setup::new(script(turns)).open().await;
    for number in 0..RANDOM_CANCELS {
        let mut seed = Seed(number);
        let id = house.submit(json!({})).await;
        let revision = seed.below(20);
        house.event_after(&id, None, |frame| frame.id >= Some(revision)).await;
        tokio::time::sleep(Duration::from_millis(seed.below(60))).await;
        let (status, answer) = house.api.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).await;
        let task = house.ended(&id).await;
        match status {
            202 => assert_eq!(task["status"], "cancelled", "{number}: {task:#}"),
            409 => assert_eq!(task["status"], "succeeded", "{number}: {task:#}"),
            _ => panic!("{number}: {status} {answer}"),
        }
        let events = house.events(&id).await;
        // Each reservation is settled before the end.
        assert_eq!(count(&events, "model-called"), count(&events, "message") + count(&events, "model-call-failed"));
        // A branch that was pushed is on record, whatever the task's end.
        let branch = task["branch"].as_str().unwrap().to_owned();
        assert_eq!(house.remotes.branches().contains(&branch), count(&events, "pushed") == 1, "{:?}", kinds(&events));
    }
    house.nothing_left().await;
}

/// Waits for a file that the forge makes.
async fn file(path: &std::path::Path) {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} is not there", path.display());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

fn packs_asked_for(house: &House) -> usize {
    house.remotes.http.requests().iter().filter(|line| line.starts_with("POST")).count()
}

/// Waits until a clone has begun.
async fn half_a_clone(house: &House, before: usize) {
    let deadline = Instant::now() + PATIENCE;
    while packs_asked_for(house) == before {
        assert!(Instant::now() < deadline, "no clone has begun");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forge_that_is_slow_cannot_hide_what_happened() {
    let mut house = Setup::new(script(json!([bash("echo a > a.txt"), done()]))).open().await;
    let payload = json!({ "repo": format!("plain:{REPO}"), "credentials": { "git": { "token": GIT_TOKEN } } });
    // It does not answer at all: a cancelled clone holds nothing, nor does one whose server was killed.
    house.remotes.http.fault(Some((At::Pack, Fault::Hang)));
    for killed in [false, true] {
        let before = packs_asked_for(&house);
        let id = house.submit(payload.clone()).await;
        half_a_clone(&house, before).await;
        if killed {
            house.kill().await;
            house.restart().await;
        }
        cancel(&house, &id).await;
        house.nothing_left().await;
    }
    house.remotes.http.fault(None);
    // The branch has moved, and its answer is late: the push is on record, and the task is cancelled.
    let (landed, go) = (house.remotes.bare().join("landed"), house.remotes.bare().join("go"));
    house.remotes.after_push("touch landed; until [ -e go ]; do sleep 0.05; done");
    let id = house.submit(payload).await;
    file(&landed).await;
    assert_eq!(house.api.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).await.0, 202);
    std::fs::write(go, "").unwrap();
    assert_eq!(house.ended(&id).await["status"], "cancelled");
    let events = house.events(&id).await;
    assert_eq!(kinds(&events)[events.len() - 3..], ["cancel-requested", "pushed", "cancelled"]);
    house.nothing_left().await;
}
