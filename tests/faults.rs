//! What a model provider does wrong is repeated or named, never mistaken for success, and never paid for twice.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{House, Setup, bash, count, done, nano_usd};

/// A conversation whose second turn goes wrong.
fn conversation(name: &str, fault: Value) -> Value {
    let mut turns = json!([bash("echo once >> log.txt"), done()]);
    turns[1]["text"] = json!("These are enough words to be cut in the middle of them, wherever that is.");
    turns[1]["fault"] = fault;
    json!({ "match": format!("<{name}>"), "turns": turns })
}

async fn run(house: &House, name: &str) -> (Value, Vec<Value>) {
    let id = house.submit(json!({ "task": format!("Meet <{name}>.") })).await;
    (house.ended(&id).await, house.events(&id).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_passes_is_waited_out() {
    let faults = [
        ("429", json!({ "kind": "status", "status": 429, "times": 2 })),
        ("429-after", json!({ "kind": "status", "status": 429, "retryAfter": "1", "times": 1 })),
        ("529", json!({ "kind": "status", "status": 529, "times": 2 })),
        ("500", json!({ "kind": "status", "status": 500, "times": 1 })),
        ("truncate", json!({ "kind": "truncate", "times": 1 })),
        ("reset", json!({ "kind": "reset", "times": 1 })),
        ("garbage", json!({ "kind": "garbage", "times": 1 })),
        ("bad-json", json!({ "kind": "badJson", "times": 1 })),
        ("empty", json!({ "kind": "empty", "times": 1 })),
        ("error-first", json!({ "kind": "errorFirst", "times": 1 })),
        ("error-event", json!({ "kind": "errorEvent", "times": 2 })),
    ];
    let script = faults.iter().map(|(name, fault)| conversation(name, fault.clone())).collect();
    let house = Setup::new(Value::Array(script)).open().await;
    let runs = join_all(faults.iter().map(|(name, _)| run(&house, name))).await;
    let requests = house.model.requests().await;
    for ((name, fault), (task, events)) in faults.iter().zip(runs) {
        let times = usize::try_from(fault["times"].as_u64().unwrap()).unwrap();
        assert_eq!(task["status"], "succeeded", "{name}: {task:#}");
        assert_eq!(count(&events, "retry-scheduled"), times, "{name}: {events:#?}");
        assert_eq!(count(&events, "model-call-failed"), times, "{name}");
        assert_eq!(count(&events, "model-called"), times + 2, "{name}");
        let ours = requests.0.iter().filter(|request| request["script"] == format!("<{name}>"));
        assert_eq!(ours.clone().count(), times + 2, "{name}");
        assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "log.txt"), "once", "{name}");
        // Never less than the provider bills.
        let billed: u64 = ours.clone().map(|request| crate::harness::cost_of(&request["usage"])).sum();
        let cost = nano_usd(&task["usage"]["costUsd"]);
        assert!(cost >= billed, "{name}: {cost} is less than {billed}");
        // And never more than was set aside for it.
        let reserved = |event: &Value| event["data"]["reservedNanoUsd"].as_u64();
        let bound: u64 = events.iter().filter_map(reserved).sum();
        assert!(cost <= bound, "{name}: {cost} is more than {bound}");
        if matches!(fault["kind"].as_str(), Some("status" | "errorFirst")) {
            assert_eq!(cost, billed, "{name}: what was refused is free");
        }
        assert_eq!(task["failure"], Value::Null, "{name}");
    }
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_stays_ends_the_task_with_its_name() {
    let faults = [
        ("429", json!({ "kind": "status", "status": 429 }), "model-rate-limited", 3),
        ("529", json!({ "kind": "status", "status": 529 }), "model-overloaded", 3),
        ("503", json!({ "kind": "status", "status": 500 }), "model-unavailable", 3),
        ("400", json!({ "kind": "status", "status": 400 }), "model-unavailable", 1),
        ("403", json!({ "kind": "status", "status": 403 }), "model-auth", 1),
        ("truncate", json!({ "kind": "truncate" }), "model-truncated", 3),
        ("reset", json!({ "kind": "reset" }), "network-dropped", 3),
        ("garbage", json!({ "kind": "garbage" }), "model-unavailable", 3),
    ];
    let script = faults.iter().map(|(name, fault, ..)| conversation(name, fault.clone())).collect();
    let more = "[retry]\nmost_failures = 3\nfirst_wait = \"20ms\"";
    let house = Setup::new(Value::Array(script)).without_retry().config(more).open().await;
    let runs = join_all(faults.iter().map(|(name, ..)| run(&house, name))).await;
    let requests = house.model.requests().await;
    for ((name, _, code, asked), (task, events)) in faults.iter().zip(runs) {
        assert_eq!(task["status"], "failed", "{name}: {task:#}");
        assert_eq!(task["failure"]["code"], *code, "{name}: {task:#}");
        assert_eq!(count(&events, "retry-scheduled"), asked - 1, "{name}: {events:#?}");
        assert_eq!(count(&events, "failed"), 1, "{name}");
        let ours = requests.0.iter().filter(|request| request["script"] == format!("<{name}>"));
        assert_eq!(ours.count(), asked + 1, "{name}");
    }
    assert_eq!(house.remotes.branches(), [""; 0]);
    house.nothing_left().await;
}

/// A provider that is away for longer than one attempt lasts: the next one begins anew, or where the last one stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_attempt_outlasts_what_one_does_not() {
    let away = json!({ "kind": "status", "status": 529, "times": 2 });
    let script = ["fresh", "same"].map(|workspace| conversation(workspace, away.clone())).to_vec();
    let config = "[retry]\nmost_failures = 2\nfirst_wait = \"20ms\"\nattempt_wait = \"200ms\"\n";
    let house = Setup::new(Value::Array(script)).without_retry().config(config).open().await;
    // Where changes were left, the model is told so, and the scripted one takes that for another conversation: it fails twice
    // more.
    for (workspace, attempts, log) in [("fresh", 2, "once"), ("same", 3, "once\nonce\nonce")] {
        let retry = json!({ "attempts": 3, "workspace": workspace });
        let id = house.submit(json!({ "task": format!("Meet <{workspace}>."), "retry": retry })).await;
        let task = house.ended(&id).await;
        let events = house.events(&id).await;
        assert_eq!((&task["status"], &task["attempt"]), (&json!("succeeded"), &json!(attempts)), "{task:#}");
        let failed = events.iter().find(|event| event["type"] == "attempt-failed").unwrap();
        assert_eq!(failed["data"]["failure"]["code"], "model-overloaded");
        assert_eq!(failed["data"]["workspace"], workspace);
        let clones = if workspace == "fresh" { 2 } else { 1 };
        assert_eq!((count(&events, "cloned"), count(&events, "sandbox-started")), (clones, clones), "{events:#?}");
        assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "log.txt"), log);
        // What the first attempt cost is not billed.
        let (cost, billable) = (nano_usd(&task["usage"]["costUsd"]), nano_usd(&task["usage"]["billableUsd"]));
        assert!(billable > 0 && billable < cost, "{billable} of {cost}");
    }
    house.nothing_left().await;
}
