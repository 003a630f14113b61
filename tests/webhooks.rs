//! Who asks to be told what happens is told: signed, in order, whatever becomes of the server meanwhile, and nobody is told
//! what is another team's.

#[allow(dead_code, reason = "the tests of the actors use the rest")]
#[path = "../actors/tests/webhooks/receiver.rs"]
pub mod receiver;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use receiver::{Answer, Got, Receiver};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{House, PATIENCE, Setup, bash, done, kinds, program, script};

const CONFIG: &str = "[webhooks]\nnetworks = [\"127.0.0.0/8\"]\ntimeout = \"2s\"\nfirst_wait = \"50ms\"\n";
/// Changes between two kills.
const CHANGES: u64 = 25;

async fn hook(house: &House, receiver: &Receiver, team: &str, events: &[&str]) -> Value {
    let body = json!({ "url": receiver.url(), "events": events, "team": team });
    let (status, webhook) = house.api.post("/v1/webhooks", &body).await;
    assert_eq!(status, 201, "{webhook}");
    webhook
}

async fn set_budget(house: &House, team: &str, tokens: u64) {
    let budget = json!({ "perDay": { "maxTokens": tokens } });
    let (status, answer) = house.api.put(&format!("/v1/budgets/team:{team}"), &budget).await;
    assert_eq!(status, 200, "{answer}");
}

/// What arrived, by its id; everything under one id is the same.
fn by_id(got: &[Got]) -> BTreeMap<&str, &Value> {
    let mut seen: BTreeMap<&str, &Value> = BTreeMap::new();
    for got in got {
        let before = *seen.entry(&got.id).or_insert(&got.body);
        assert_eq!(before, &got.body, "two bodies under {}", got.id);
    }
    seen
}

fn revision(body: &Value) -> u64 {
    body["data"]["revision"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_again_and_again_tells_everything() {
    let mut house = Setup::new(script(json!([done()]))).config(CONFIG).open().await;
    // Every seventh message finds the receiver out of sorts.
    let receiver = Receiver::start(|_, count| Answer::Status(if count % 7 == 3 { 500 } else { 200 })).await;
    let others = Receiver::start(|_, _| Answer::Status(200)).await;
    let webhook = hook(&house, &receiver, "platform", &["ledger.*"]).await;
    hook(&house, &others, "web", &["*"]).await;
    let secret = webhook["secret"].as_str().unwrap();
    for round in 0..4 {
        for change in 0..CHANGES {
            set_budget(&house, "platform", 1 + round * CHANGES + change).await;
        }
        house.kill().await;
        house.restart().await;
    }
    let happened = house.log_of("ledger-platform").await;
    assert!(happened.len() as u64 >= 4 * CHANGES, "{}", happened.len());
    let told = |got: &[Got]| got.iter().map(|got| revision(&got.body)).collect::<BTreeSet<_>>().len();
    let got = receiver.until("everything has arrived", |got| told(got) == happened.len()).await;
    assert!(got.iter().all(|got| got.is_signed_with(secret)), "the secret outlives the server");
    let bodies = by_id(&got);
    assert_eq!(bodies.len(), happened.len(), "one id for each event, however often it came");
    for event in &happened {
        let body = bodies.values().find(|body| body["data"]["position"] == event["position"]).unwrap();
        let mut expected = event.clone();
        expected["actor"].as_object_mut().unwrap().remove("origin");
        assert_eq!(body["data"], expected);
    }
    assert!(others.got().is_empty(), "{:?}", others.got());
    // The log of deliveries says the same.
    let id = webhook["id"].as_str().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let (_, page) = house.api.get(&format!("/v1/webhooks/{id}/deliveries?outcome=delivered&limit=200")).await;
        if page["data"].as_array().unwrap().len() == happened.len() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{page}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let key = std::fs::metadata(house.data().join("server.key")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&key) & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_told_from_its_first_event_to_its_last() {
    let house = Setup::new(script(json!([bash("echo hello > hello.txt"), done()]))).config(CONFIG).open().await;
    let receiver = Receiver::start(|_, _| Answer::Status(204)).await;
    hook(&house, &receiver, "platform", &["task.*"]).await;
    let id = house.submit(json!({})).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let events = house.events(&id).await;
    let got = receiver.until("all of it has arrived", |got| got.len() >= events.len()).await;
    let types: Vec<_> = got.iter().map(|got| got.body["type"].as_str().unwrap().to_owned()).collect();
    let expected: Vec<_> = kinds(&events).into_iter().map(|kind| format!("task.{kind}")).collect();
    assert_eq!(types, expected, "in their order");
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_library_takes_the_messages() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    assert!(folder.join("node_modules").exists(), "install the peer with `make browser-tools`");
    let house = Setup::new(script(json!([done()]))).config(CONFIG).open().await;
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let webhook = hook(&house, &receiver, "platform", &["ledger.*"]).await;
    let (id, first) = (webhook["id"].as_str().unwrap(), webhook["secret"].as_str().unwrap());
    let (status, rotated) = house.api.post(&format!("/v1/webhooks/{id}/secret"), &json!({})).await;
    assert_eq!(status, 200, "{rotated}");
    for tokens in 1..=5 {
        set_budget(&house, "platform", tokens).await;
    }
    let got = receiver.until("they have arrived", |got| got.len() >= 5).await;
    let lines: Vec<_> = [first, rotated["secret"].as_str().unwrap()]
        .iter()
        .flat_map(|secret| got.iter().map(|got| got.for_a_peer(secret).to_string()))
        .collect();
    let mut peer = tokio::process::Command::new("node")
        .arg("verify.mjs")
        .current_dir(folder)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = peer.stdin.take().unwrap();
    stdin.write_all(lines.join("\n").as_bytes()).await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, peer.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), lines.len().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_enough() {
    let house = Setup::new(script(json!([done()]))).config(CONFIG).open().await;
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let run = |arguments: &[&str]| {
        let mut command = program();
        command.arg("webhooks").args(arguments);
        command.env("ORCHESTRA_URL", &house.api.base).env("ORCHESTRA_KEY", house.api.key());
        async move {
            let output = command.output().await.unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{error}");
            String::from_utf8(output.stdout).unwrap()
        }
    };
    let made = run(&["create", &receiver.url(), "--event", "ledger.*", "--team", "platform"]).await;
    let (id, first) = made.trim().split_once('\n').unwrap();
    assert!(first.starts_with("whsec_"), "{made}");
    assert!(run(&["test", id]).await.starts_with("delivered: 200"));
    set_budget(&house, "platform", 7).await;
    let got = receiver.until("the test and the event have", |got| got.len() >= 2).await;
    assert!(got[0].is_signed_with(first));
    let second = run(&["rotate", id, "--overlap", "60"]).await;
    assert_ne!(second.trim(), first);
    let position = got[1].body["data"]["position"].to_string();
    run(&["replay", id, "--from", &position, "--to", &position]).await;
    let got = receiver.until("it has again", |got| got.len() >= 3).await;
    assert_eq!(got[2].id, got[1].id);
    assert!(got[2].is_signed_with(first) && got[2].is_signed_with(second.trim()));
    assert!(run(&["list"]).await.contains(&id[..20]));
    // What became of messages is written down together, up to a second later.
    let recorded = async {
        while !run(&["deliveries", id, "--outcome", "delivered"]).await.contains("ledger") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recorded).await.expect("it is in the list");
    run(&["disable", id]).await;
    assert!(run(&["show", id]).await.contains("by-hand"));
    run(&["enable", id]).await;
    run(&["remove", id]).await;
    assert_eq!(house.api.get(&format!("/v1/webhooks/{id}")).await.0, 404);
}
