//! Real command line agents, behind the gateway of a real server: what they change is pushed, what they say is recorded,
//! what they use is booked to the nano-dollar, whatever befalls the server or the budget meanwhile.

use serde_json::{Value, json};

use crate::harness::{House, Setup, count, nano_usd};
use crate::harness_cli::{Agent, CLAUDE, CODEX, OPENCODE, agents_are_there};

/// The image with the agents, and room for the largest of them.
fn setup(script: Value) -> Setup {
    Setup::new(script)
        .environment("ORCHESTRA_SANDBOX__MEMORY", "1536MiB")
        .environment("ORCHESTRA_SANDBOX__DISK", "1GiB")
        .environment("ORCHESTRA_SANDBOX__PIDS", "512")
        .environment("ORCHESTRA_SANDBOX__CPUS", "2")
}

async fn submit(house: &House, agent: &Agent, more: Value) -> String {
    // What the agent calls OpenAI's is served by the tests' compatible provider.
    let model = if agent.model.starts_with("gpt") { format!("compatible/{}", agent.model) } else { agent.model.into() };
    let mut payload = json!({
        "task": "Write two into notes.txt.", "team": "web", "model": model, "harness": agent.harness.as_str(),
        "image": "agents",
    });
    for (name, value) in more.as_object().unwrap() {
        payload[name] = value.clone();
    }
    house.submit(payload).await
}

/// The ledger, the task's stream, the task as it is shown, and the provider all say the same.
async fn books_agree(house: &House, task: &Value, events: &[Value]) {
    let charges = events.iter().filter(|event| event["type"] == "tokens-charged").map(|event| &event["data"]);
    let charged: u64 = charges.clone().map(|charge| charge["costNanoUsd"].as_u64().unwrap()).sum();
    let ledger = house.log_of("ledger-web").await;
    let settled: u64 = ledger
        .iter()
        .filter(|event| event["type"] == "settled")
        .map(|event| event["data"]["costNanoUsd"].as_u64().unwrap())
        .sum();
    assert_eq!((settled, charged), (charged, nano_usd(&task["usage"]["costUsd"])));
    let billed = house.model.requests().await.cost();
    if charges.clone().all(|charge| charge["confirmed"] == true) {
        assert_eq!(charged, billed);
    } else {
        assert!(charged >= billed, "{charged} and {billed}");
    }
    let ends = count(&ledger, "settled") + count(&ledger, "released");
    assert_eq!(count(&ledger, "reserved"), ends, "a reservation is left open");
}

/// An edit, from the submission to the branch.
async fn makes_an_edit(agent: Agent) {
    if !agents_are_there().await {
        return;
    }
    let turns = json!([
        agent.turn("I look first.", "cat notes.txt; echo two >> notes.txt"),
        { "text": "Two is there." },
    ]);
    let house = setup(json!([{ "match": "notes", "turns": turns }])).open().await;
    let id = submit(&house, &agent, json!({})).await;
    let task = house.ended(&id).await;
    let events = house.events(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}\n{events:#?}");
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "notes.txt"), "two");
    let said: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "message")
        .map(|event| event["data"]["content"][0]["text"].as_str().unwrap())
        .collect();
    // Codex says before all else that it does not know the tests' model.
    assert!(said.ends_with(&["I look first.", "Two is there."]), "{said:?}");
    assert_eq!((count(&events, "tool-called"), count(&events, "tool-finished")), (1, 1), "{events:#?}");
    assert_eq!((count(&events, "harness-started"), count(&events, "harness-finished")), (1, 1));
    assert!(events.iter().any(|event| event["data"]["session"].is_string()), "no session to go on with");
    books_agree(&house, &task, &events).await;
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_makes_an_edit() {
    makes_an_edit(CODEX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opencode_makes_an_edit() {
    makes_an_edit(OPENCODE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_makes_an_edit() {
    makes_an_edit(CLAUDE).await;
}

/// The server is killed while the agent's tool runs, and again while its model answers.
async fn outlives_the_server(agent: Agent) {
    if !agents_are_there().await {
        return;
    }
    let mut turns = json!([
        agent.turn("I look first.", "echo two >> notes.txt; sleep 2"),
        { "text": "Two is there." },
    ]);
    turns[1]["delayMs"] = json!(2_000);
    let mut house = setup(json!([{ "match": "notes", "turns": turns }])).open().await;
    let room: Vec<_> = ["MEMORY=1536MiB", "DISK=1GiB", "PIDS=512", "CPUS=2"]
        .iter()
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (format!("ORCHESTRA_SANDBOX__{name}"), value.to_owned()))
        .collect();
    let id = submit(&house, &agent, json!({})).await;
    house.event(&id, "tool-called").await;
    house.kill().await;
    house.restart_with(&room).await;
    house.model.asked(2).await;
    house.kill().await;
    house.restart_with(&room).await;
    let task = house.ended(&id).await;
    let events = house.events(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}\n{events:#?}");
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "notes.txt"), "two", "the tool ran once");
    assert_eq!(count(&events, "tool-called"), 1, "{events:#?}");
    books_agree(&house, &task, &events).await;
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_outlives_the_server() {
    outlives_the_server(CODEX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opencode_outlives_the_server() {
    outlives_the_server(OPENCODE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_outlives_the_server() {
    outlives_the_server(CLAUDE).await;
}

/// Money for the first call, and none for the second: the agent stops, and the task says why.
async fn stops_at_its_budget(agent: Agent) {
    if !agents_are_there().await {
        return;
    }
    let mut turns = json!([
        agent.turn("I look first.", "echo two >> notes.txt"),
        { "text": "Two is there." },
    ]);
    turns[0]["usage"] = json!({ "inputTokens": 400_000 });
    let house = setup(json!([{ "match": "notes", "turns": turns }])).open().await;
    let id = submit(&house, &agent, json!({ "budget": { "maxTokens": 420_000 } })).await;
    let task = house.ended(&id).await;
    let events = house.events(&id).await;
    assert_eq!(task["failure"]["code"], "budget-exceeded", "{task:#}\n{events:#?}");
    assert_eq!(task["failure"]["budget"]["scope"], format!("task:{id}"), "{task:#}");
    assert_eq!(house.model.requests().await.len(), 1, "{events:#?}");
    books_agree(&house, &task, &events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_stops_at_its_budget() {
    stops_at_its_budget(CODEX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opencode_stops_at_its_budget() {
    stops_at_its_budget(OPENCODE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_stops_at_its_budget() {
    stops_at_its_budget(CLAUDE).await;
}

/// A provider that is away for a while: the run fails, and its session is gone on with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_the_provider_failed_is_gone_on_with() {
    if !agents_are_there().await {
        return;
    }
    let agent = CODEX;
    let mut turns = json!([
        agent.turn("I look first.", "echo two >> notes.txt"),
        { "text": "Two is there." },
    ]);
    turns[1]["fault"] = json!({ "kind": "errorEvent", "times": 4 });
    let house = setup(json!([{ "match": "notes", "turns": turns }])).open().await;
    // A stream that breaks before its only count costs all that was set aside.
    let id = submit(&house, &agent, json!({ "budget": { "maxUsd": 20 } })).await;
    let task = house.ended(&id).await;
    let events = house.events(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}\n{events:#?}");
    let started: Vec<_> = events.iter().filter(|event| event["type"] == "harness-started").collect();
    assert!(started.len() > 1 && started[1]["data"]["resumes"].is_string(), "{started:#?}");
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "notes.txt"), "two");
}
