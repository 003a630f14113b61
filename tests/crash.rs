//! Whenever the server is killed, the task ends as if nothing had happened: the same commit, each model call asked and
//! paid for once, each tool run once, one push.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::harness::{GIT_TOKEN, House, PATIENCE, REPO, Seed, Setup, bash, done, kinds, script};

/// Houses at once: two cores, and each of them mostly waits.
const AT_ONCE: usize = 3;
/// Kills at random moments.
const RANDOM_KILLS: u64 = 12;

/// Every tool that changes something leaves a line that a second run would double.
fn turns() -> Value {
    let tool = |name: &str, input: Value| json!({ "name": name, "input": input });
    json!([
        bash("echo one >> log.txt; cat log.txt"),
        { "text": "I write.", "tools": [tool("write", json!({ "path": "notes/plan.md", "content": "# Plan\n" }))] },
        { "text": "Several things at once.", "tools": [
            tool("edit", json!({ "path": "main.tf", "old_string": "~> 5.0", "new_string": "~> 6.0" })),
            tool("bash", json!({ "command": "echo two >> log.txt; wc -l < log.txt" })),
            tool("read", json!({ "path": "log.txt" })),
        ] },
        { "tools": [
            tool("bash", json!({ "command": "echo three >> log.txt; rm src/app.py; exit 3" })),
            tool("no-such-tool", json!({})),
        ] },
        done(),
    ])
}

/// What must be the same however often the server died.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    kinds: Vec<String>,
    tree: String,
    diff: String,
    log: String,
    turns: Vec<u64>,
    nano_usd: u64,
    usage: Value,
    outcomes: Vec<String>,
    commits: usize,
    pushes: usize,
    attempt: Value,
}

fn charges(events: &[Value]) -> impl Iterator<Item = &Value> {
    events.iter().filter(|event| event["type"] == "tokens-charged").map(|event| &event["data"])
}

fn charged(events: &[Value]) -> u64 {
    charges(events).map(|charge| charge["costNanoUsd"].as_u64().unwrap()).sum()
}

async fn outcome(house: &House, id: &str) -> Outcome {
    let task = house.ended(id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let events = house.events(id).await;
    let branch = task["branch"].as_str().unwrap();
    assert_eq!(house.remotes.branches(), [branch]);
    let finished = events.iter().filter(|event| event["type"] == "tool-finished");
    Outcome {
        // A run that takes longer holds more samples; that is no difference.
        kinds: kinds(&events).into_iter().filter(|kind| *kind != "sandbox-usage").map(str::to_owned).collect(),
        tree: house.remotes.tree(branch),
        diff: house.api.text(&format!("/v1/tasks/{id}/diff")).await,
        log: house.remotes.file(branch, "log.txt"),
        turns: house.model.requests().await.turns(),
        nano_usd: charged(&events),
        usage: task["usage"].clone(),
        outcomes: finished.map(|event| event["data"]["outcome"].as_str().unwrap().to_owned()).collect(),
        commits: house.remotes.commits(branch),
        pushes: house.remotes.pushes(branch),
        attempt: task["attempt"].clone(),
    }
}

/// The last revision of each batch: what is appended at once cannot be torn apart by a kill.
fn boundaries(events: &[Value]) -> Vec<u64> {
    let last_of_each: BTreeMap<_, _> =
        events.iter().map(|event| (event["time"].as_str().unwrap(), event["revision"].as_u64().unwrap())).collect();
    last_of_each.into_values().collect()
}

/// A run that nobody disturbs: the outcome, and where it can be.
async fn reference() -> (Outcome, Vec<Value>) {
    let house = Setup::new(script(turns())).open().await;
    let id = house.submit(json!({})).await;
    let outcome = outcome(&house, &id).await;
    let events = house.events(&id).await;
    house.nothing_left().await;
    (outcome, events)
}

/// Waits for a file that another process makes.
async fn file(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} is not there", path.display());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Submits under an idempotency key, whether the server lives long enough to answer or not.
fn submit_in_the_background(house: &House) -> tokio::task::JoinHandle<()> {
    let request = house.api.request(reqwest::Method::POST, "/v1/tasks").json(&house.payload());
    let request = request.header("idempotency-key", "the-only-one");
    tokio::spawn(async move {
        let _ = request.send().await;
    })
}

/// What a client does whose submission got no answer: it asks again under the same key.
async fn submit_again(house: &House) -> String {
    let request = house.api.request(reqwest::Method::POST, "/v1/tasks").json(&house.payload());
    let (status, task) = house.api.send(request.header("idempotency-key", "the-only-one")).await;
    assert_eq!(status, 202, "{task}");
    task["id"].as_str().unwrap().to_owned()
}

/// The variable that stops a server once a task's stream has reached this revision, and the file that says so.
fn failpoint(folder: &Path, boundary: u64) -> ((String, String), PathBuf) {
    let reached = folder.join(format!("reached-{boundary}"));
    (("ORCHESTRA_FAILPOINT".to_owned(), format!("{boundary}:{}", reached.display())), reached)
}

async fn killed_at(boundary: u64) -> Outcome {
    let marks = tempfile::tempdir().unwrap();
    let ((name, value), reached) = failpoint(marks.path(), boundary);
    let mut house = Setup::new(script(turns())).environment(&name, value).open().await;
    let submitted = submit_in_the_background(&house);
    file(&reached).await;
    house.kill().await;
    submitted.await.unwrap();
    house.restart().await;
    let id = submit_again(&house).await;
    let outcome = outcome(&house, &id).await;
    house.nothing_left().await;
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_after_any_event_changes_nothing() {
    let (expected, events) = reference().await;
    assert_eq!(expected.turns, [0, 1, 2, 3, 4]);
    assert_eq!(expected.log, "one\ntwo\nthree");
    assert_eq!((expected.commits, expected.pushes), (1, 1));
    let boundaries = boundaries(&events);
    assert_eq!(boundaries.last(), Some(&(events.len() as u64 - 1)));
    assert!(boundaries.len() > 25, "{boundaries:?}");
    let runs = boundaries.iter().map(|boundary| async move {
        let started = Instant::now();
        let outcome = tokio::spawn(killed_at(*boundary)).await;
        (*boundary, outcome, started.elapsed())
    });
    let runs: Vec<_> = futures_util::stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
    let mut wrong = Vec::new();
    for (boundary, outcome, took) in runs {
        let after = &events[usize::try_from(boundary).unwrap()]["type"];
        match outcome {
            Ok(outcome) if outcome == expected => {}
            Ok(outcome) => wrong.push(format!("after {boundary} ({after}), {took:?}: {outcome:#?}")),
            Err(error) => wrong.push(format!("after {boundary} ({after}), {took:?}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}\nexpected {expected:#?}", wrong.len(), boundaries.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_after_every_single_event_still_gets_there() {
    let (expected, events) = reference().await;
    let marks = tempfile::tempdir().unwrap();
    let mut house = Setup::new(script(turns())).open().await;
    house.kill().await;
    let boundaries = boundaries(&events);
    for boundary in &boundaries {
        let (variable, reached) = failpoint(marks.path(), *boundary);
        house.restart_with(&[variable]).await;
        let submitted = (*boundary == boundaries[0]).then(|| submit_in_the_background(&house));
        file(&reached).await;
        house.kill().await;
        if let Some(submitted) = submitted {
            submitted.await.unwrap();
        }
    }
    house.restart().await;
    let id = submit_again(&house).await;
    assert_eq!(outcome(&house, &id).await, expected);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_whose_answer_was_lost_is_not_made_again() {
    let credentials = json!({ "git": { "token": GIT_TOKEN } });
    let mut house = Setup::new(script(turns())).open().await;
    // The branch moves, and the forge keeps the answer to itself until the server is dead.
    let (landed, go) = (house.remotes.bare().join("landed"), house.remotes.bare().join("go"));
    house.remotes.after_push("touch landed; until [ -e go ]; do sleep 0.05; done");
    let id = house.submit(json!({ "repo": format!("plain:{REPO}"), "credentials": credentials })).await;
    file(&landed).await;
    house.kill().await;
    std::fs::write(go, "").unwrap();
    house.restart().await;
    house.event(&id, "credentials-required").await;
    assert_eq!(house.api.put(&format!("/v1/tasks/{id}/credentials"), &credentials).await.0, 202);
    let outcome = outcome(&house, &id).await;
    assert_eq!((outcome.commits, outcome.pushes), (1, 1));
    assert_eq!(outcome.turns, [0, 1, 2, 3, 4]);
    let pushed = house.event(&id, "pushed").await;
    assert_eq!(pushed.data["data"]["outcome"], "already-there");
    house.nothing_left().await;
}

/// The same task, spoken slowly, so that a kill meets a model in the middle of its words.
fn slow_turns() -> Value {
    let mut turns = turns();
    for turn in turns.as_array_mut().unwrap() {
        turn["delayMs"] = json!(40);
        turn["paceMs"] = json!(8);
    }
    turns
}

async fn killed_at_random(number: u64, revisions: u64) -> (Outcome, Vec<Value>) {
    let mut seed = Seed(number);
    let mut house = Setup::new(script(slow_turns())).open().await;
    let id = house.submit(json!({})).await;
    let revision = seed.below(revisions - 1);
    house.event_after(&id, None, |frame| frame.id >= Some(revision)).await;
    tokio::time::sleep(Duration::from_millis(seed.below(120))).await;
    house.kill().await;
    house.restart().await;
    let outcome = outcome(&house, &id).await;
    let events = house.events(&id).await;
    house.nothing_left().await;
    (outcome, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_repeats_at_most_the_call_in_flight() {
    let (expected, events) = reference().await;
    let revisions = events.len() as u64;
    let runs = (0..RANDOM_KILLS).map(|number| async move {
        (
            number,
            tokio::spawn(killed_at_random(number, revisions)).await.unwrap_or_else(|e| panic!("seed {number}: {e}")),
        )
    });
    let runs: Vec<_> = futures_util::stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
    for (number, (outcome, events)) in runs {
        let lost = check_charges(&events, &outcome, &expected);
        assert!(lost <= 1, "seed {number}: {events:#?}");
    }
}

/// At most the interrupted call is repeated, and all else is as expected. The interrupted call is charged at its
/// reservation; at what it has cost where the kill came between the ledger's book and the task's own. Answers how many
/// calls were interrupted.
fn check_charges(events: &[Value], outcome: &Outcome, expected: &Outcome) -> usize {
    let event_of = |call: &Value, kind: &str| {
        events.iter().find(|event| event["type"] == kind && event["data"]["call"] == *call).map(|event| &event["data"])
    };
    let nanos = |charge: &Value| charge["costNanoUsd"].as_u64().unwrap();
    let lost: Vec<_> =
        charges(events).filter(|charge| event_of(&charge["call"], "model-call-failed").is_some()).collect();
    for charge in charges(events) {
        let reserved = event_of(&charge["call"], "model-called").unwrap()["reservedNanoUsd"].as_u64().unwrap();
        if charge["confirmed"] == false {
            assert_eq!(nanos(charge), reserved);
            assert!(lost.contains(&charge), "{charge}");
        }
        assert!(nanos(charge) <= reserved, "{charge}");
    }
    assert_eq!(outcome.nano_usd, expected.nano_usd + lost.iter().map(|charge| nanos(charge)).sum::<u64>());
    let mut once = outcome.turns.clone();
    once.dedup();
    assert_eq!(once, expected.turns);
    // The kill may come between the mark and the first byte: then the call was charged and never asked.
    assert!(outcome.turns.len() <= expected.turns.len() + lost.len(), "{:?}", outcome.turns);
    let Outcome { tree, diff, log, outcomes, commits, pushes, attempt, .. } = expected.clone();
    assert_eq!(Outcome { tree, diff, log, outcomes, commits, pushes, attempt, ..outcome.clone() }, *outcome);
    lost.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_in_flight_is_charged_at_its_reservation_and_repeated() {
    let (expected, _) = reference().await;
    let mut slow = turns();
    slow[2]["delayMs"] = json!(3_000);
    let mut house = Setup::new(script(slow)).open().await;
    let id = house.submit(json!({})).await;
    house.model.asked(3).await;
    house.kill().await;
    house.restart().await;
    let outcome = outcome(&house, &id).await;
    assert_eq!(outcome.turns, [0, 1, 2, 2, 3, 4]);
    let events = house.events(&id).await;
    assert_eq!(check_charges(&events, &outcome, &expected), 1);
    assert_eq!(charges(&events).filter(|charge| charge["confirmed"] == false).count(), 1);
    house.nothing_left().await;
}
