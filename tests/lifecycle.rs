//! A task's life: from the payload of the contract to a pushed branch, and every other way it may end.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    GIT_TOKEN, House, MODEL, REPO, Setup, bash, cost_of, count, done, kinds, nano_usd, processes_of, script,
};

fn write(path: &str) -> Value {
    json!({ "tools": [{ "name": "write", "input": { "path": path, "content": "written\n" } }] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_ends_with_its_work_on_a_branch() {
    let turns = json!([
        bash("ls"),
        { "text": "I edit.", "tools": [
            { "name": "edit", "input": { "path": "main.tf", "old_string": "~> 5.0", "new_string": "~> 6.0" } }] },
        done(),
    ]);
    let house = Setup::new(script(turns)).open().await;
    // The contract's own example, as it stands.
    let payload = json!({
        "repo": "acme/api",
        "task": "Bump terraform-aws-provider from 5.x to 6.x; update breaking calls",
        "model": "claude-sonnet-4-6",
        "team": "platform",
        "budget": { "maxUsd": 2.00 },
    });
    let (status, task) = house.api.post("/v1/tasks", &payload).await;
    assert_eq!(status, 202, "{task}");
    // It may have been taken up before the answer was written.
    assert!(["queued", "preparing", "running"].contains(&task["status"].as_str().unwrap()), "{task}");
    let id = task["id"].as_str().unwrap();
    let task = house.ended(id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let branch = task["branch"].as_str().unwrap();
    assert_eq!(task["reason"], format!("pushed {branch}"));
    assert_eq!((&task["repo"], &task["base"], &task["attempt"]), (&json!("local:acme/api"), &json!("main"), &json!(1)));

    assert_eq!(house.remotes.branches(), [branch]);
    assert_eq!(house.remotes.files(branch), ["README.md", "main.tf", "src/app.py"]);
    let bumped = house.remotes.file("main", "main.tf").replace("5.0", "6.0");
    assert_eq!(house.remotes.file(branch, "main.tf"), bumped);
    for unchanged in ["README.md", "src/app.py"] {
        assert_eq!(house.remotes.file(branch, unchanged), house.remotes.file("main", unchanged));
    }
    assert_eq!((house.remotes.commits(branch), house.remotes.pushes(branch)), (1, 1));
    assert_eq!(task["commits"], json!([house.remotes.head(branch)]));
    let diff = house.api.text(&format!("/v1/tasks/{id}/diff")).await;
    assert!(diff.contains("-    aws = { version = \"~> 5.0\" }\n+    aws = { version = \"~> 6.0\" }\n"), "{diff}");

    // What it cost is what the provider counted, to the nano-dollar.
    let requests = house.model.requests().await;
    assert_eq!(requests.turns(), [0, 1, 2]);
    assert_eq!(task["usage"]["inputTokens"], requests.billed("inputTokens"));
    assert_eq!(task["usage"]["outputTokens"], requests.billed("outputTokens"));
    assert_eq!(nano_usd(&task["usage"]["costUsd"]), requests.cost());
    assert!(requests.cost() > 0);

    let events = house.events(id).await;
    let call = ["model-called", "tokens-charged", "message"];
    let tool = ["tool-called", "tool-finished"];
    let begin = ["created", "queued", "claimed", "attempt-started", "cloned", "sandbox-started"];
    let end = ["committed", "sandbox-usage", "sandbox-stopped", "pushed", "pull-request-omitted", "succeeded"];
    assert_eq!(kinds(&events), [&begin[..], &call, &tool, &call, &tool, &call, &end].concat());
    let time = |name: &str| task[name].as_str().unwrap().to_owned();
    assert!(time("createdAt") <= time("startedAt") && time("startedAt") <= time("finishedAt"));
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_token_is_charged_at_its_own_price() {
    let usage =
        json!({ "inputTokens": 1_234, "outputTokens": 567, "cacheReadTokens": 8_910, "cacheWrite5mTokens": 1_112 });
    let mut turns = json!([write("a"), done()]);
    turns[0]["usage"] = usage.clone();
    let house = Setup::new(script(turns)).open().await;
    let id = house.submit(json!({})).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let requests = house.model.requests().await;
    assert_eq!(nano_usd(&task["usage"]["costUsd"]), requests.cost());
    assert_eq!(cost_of(&requests.0[0]["usage"]), 1_234 * 3_000 + 567 * 15_000 + 8_910 * 300 + 1_112 * 3_750);
    assert_eq!(task["usage"]["cacheReadTokens"], requests.billed("cacheReadTokens"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_dialect_does_the_same_work() {
    let turns = json!([bash("echo openai > who.txt"), done()]);
    let house = Setup::new(script(turns)).open().await;
    let id = house.submit(json!({ "model": "compatible/some-model" })).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let branch = task["branch"].as_str().unwrap();
    assert_eq!(house.remotes.file(branch, "who.txt"), "openai");
    let requests = house.model.requests().await;
    assert!(requests.0.iter().all(|request| request["dialect"] == "openai-chat" && request["model"] == "some-model"));
    // The operator's own prices, which are those of the tests' other model.
    assert_eq!(nano_usd(&task["usage"]["costUsd"]), requests.cost());
    assert!(requests.cost() > 0);
}

async fn failure(house: &House, more: Value) -> Value {
    let id = house.submit(more).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "failed", "{task:#}");
    for field in ["message", "hint"] {
        assert!(task["failure"][field].as_str().is_some_and(|text| text.len() > 10), "{task:#}");
    }
    task["failure"]["code"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_fails_with_its_name() {
    let turns = |turns: Value, of: &str| json!({ "match": of, "turns": turns });
    let house = Setup::new(json!([
        turns(json!([bash("true"), done()]), "change nothing"),
        turns(json!([bash("sleep 100"), done()]), "take too long"),
        turns(json!([write("a"), { "text": "never", "fault": { "kind": "hang" } }]), "wait for the model"),
        turns(json!([write("a"), done()]), ""),
    ]))
    .open()
    .await;
    // All at once: they have nothing to do with each other.
    let (nothing, long, silent, base, main, gone, poor) = tokio::join!(
        failure(&house, json!({ "task": "change nothing" })),
        failure(&house, json!({ "task": "take too long", "timeoutSeconds": 4 })),
        failure(&house, json!({ "task": "wait for the model", "timeoutSeconds": 4 })),
        failure(&house, json!({ "base": "no-such-branch" })),
        failure(&house, json!({ "branch": "main" })),
        failure(&house, json!({ "repo": "acme/gone" })),
        failure(&house, json!({ "task": "be poor", "budget": { "maxUsd": 0.001 } })),
    );
    assert_eq!(nothing, "nothing-to-push");
    assert_eq!([long, silent], ["sandbox-timeout", "sandbox-timeout"]);
    assert_eq!(base, "branch-policy");
    assert_eq!(main, "branch-policy");
    assert_eq!(gone, "repo-not-found");
    assert_eq!(poor, "budget-exceeded");
    assert_eq!(house.remotes.branches(), [""; 0]);
    // Two for nothing, three for what took too long; what is refused beforehand costs nothing.
    assert_eq!(house.model.requests().await.len(), 5);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_task_can_be_tried_again() {
    let mut turns = json!([bash("echo tried >> tries.txt"), done()]);
    turns[1]["fault"] = json!({ "kind": "status", "status": 400, "times": 1, "message": "not today" });
    let house = Setup::new(script(turns)).open().await;
    let id = house.submit(json!({})).await;
    let task = house.ended(&id).await;
    assert_eq!(
        (&task["status"], &task["failure"]["code"]),
        (&json!("failed"), &json!("model-unavailable")),
        "{task:#}"
    );
    assert!(task["failure"]["message"].as_str().unwrap().contains("not today"));
    let spent = nano_usd(&task["usage"]["costUsd"]);
    house.nothing_left().await;

    let last = house.events(&id).await.len() as u64 - 1;
    let (status, _) = house.api.post(&format!("/v1/tasks/{id}/retry"), &json!({})).await;
    assert_eq!(status, 202);
    let task = house.ended_after(&id, Some(last)).await;
    assert_eq!((&task["status"], &task["attempt"]), (&json!("succeeded"), &json!(2)), "{task:#}");
    assert_eq!(task["failure"], Value::Null);
    // A new attempt starts from the repository, not from what the failed one left.
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "tries.txt"), "tried");
    let requests = house.model.requests().await;
    assert_eq!(requests.turns(), [0, 1, 0, 1]);
    // What the first attempt cost stays on the bill.
    assert!(spent > 0 && nano_usd(&task["usage"]["costUsd"]) == requests.cost());
    let (status, problem) = house.api.post(&format!("/v1/tasks/{id}/retry"), &json!({})).await;
    assert_eq!(status, 409, "{problem}");
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_submission_is_the_same_task() {
    let house = Setup::new(script(json!([write("a"), done()]))).open().await;
    let submit = async |key: &str, more: &str| {
        let mut payload = house.payload();
        payload["task"] = json!(more);
        let request = house.api.request(reqwest::Method::POST, "/v1/tasks").json(&payload);
        house.api.send(request.header("idempotency-key", key)).await
    };
    // Twice at the same time, and once more when it is over.
    let (first, second) = tokio::join!(submit("one", "a task"), submit("one", "a task"));
    assert_eq!((first.0, second.0), (202, 202), "{first:?} {second:?}");
    let id = first.1["id"].as_str().unwrap();
    assert_eq!(second.1["id"], id);
    assert_eq!(house.ended(id).await["status"], "succeeded");
    let (status, again) = submit("one", "a task").await;
    assert_eq!((status, &again["id"]), (202, &json!(id)));
    let (status, problem) = submit("one", "another task").await;
    assert_eq!((status, &problem["code"]), (422, &json!("idempotency-key-reused")));
    assert_eq!(house.api.get("/v1/tasks").await.1["data"].as_array().unwrap().len(), 1);
    assert_eq!(house.model.requests().await.len(), 2);
    let (status, other) = submit("two", "another task").await;
    assert_eq!(status, 202);
    assert_ne!(other["id"], id);
    house.ended(other["id"].as_str().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_agent_hears_what_it_is_told() {
    let mut turns = json!([bash("sleep 1; echo a > a.txt"), done(), bash("echo b > b.txt"), done()]);
    turns[1]["delayMs"] = json!(1_000);
    let house = Setup::new(script(turns)).open().await;
    // Two tasks that differ in nothing but the length of what they are told while the first tool runs.
    let steered = async |length: usize| {
        let id = house.submit(json!({})).await;
        house.event(&id, "tool-called").await;
        let words = json!({ "message": "x".repeat(length) });
        let (status, problem) = house.api.post(&format!("/v1/tasks/{id}/messages"), &words).await;
        assert_eq!(status, 202, "{problem}");
        // And again while it says its last words: it goes on.
        house
            .event_after(&id, None, |frame| frame.kind == "model-called" && frame.data["revision"].as_u64() > Some(10))
            .await;
        let (status, problem) =
            house.api.post(&format!("/v1/tasks/{id}/messages"), &json!({ "message": "go on" })).await;
        assert_eq!(status, 202, "{problem}");
        let task = house.ended(&id).await;
        assert_eq!(task["status"], "succeeded", "{task:#}");
        let files = house.remotes.files(task["branch"].as_str().unwrap());
        assert!(files.contains(&"a.txt".to_owned()) && files.contains(&"b.txt".to_owned()), "{files:?}");
        assert_eq!(count(&house.events(&id).await, "steered"), 2);
        let (status, _) = house.api.post(&format!("/v1/tasks/{id}/messages"), &words).await;
        assert_eq!(status, 409);
    };
    steered(100).await;
    let short = house.model.requests().await;
    steered(1_100).await;
    let long = house.model.requests().await;
    assert_eq!(long.turns(), [0, 1, 2, 3, 0, 1, 2, 3]);
    let bytes = |turn: usize| long.0[turn]["bodyBytes"].as_u64().unwrap();
    assert_eq!(short.0[..], long.0[..4]);
    // Not in the request before, and from the next one on in every one.
    assert_eq!([0, 1, 2, 3].map(|turn| bytes(turn + 4) - bytes(turn)), [0, 1_000, 1_000, 1_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_outlives_a_restart_and_answers_once() {
    let mut house =
        Setup::new(script(json!([bash("echo before | tee -a log.txt; sleep 4; echo after | tee -a log.txt"), done()])))
            .open()
            .await;
    let id = house.submit(json!({})).await;
    let called = house.event(&id, "tool-called").await;
    let sleeps =
        |house: &House| processes_of(&house.data()).into_iter().find(|(_, command)| command.starts_with("sleep"));
    let sleeping = loop {
        if let Some(found) = sleeps(&house) {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    house.kill().await;
    assert_eq!(sleeps(&house).as_ref(), Some(&sleeping), "the tool goes on without a server");
    house.restart().await;
    assert_eq!(sleeps(&house).as_ref(), Some(&sleeping), "the tool is not run again");
    let finished = house.event_after(&id, called.id, |frame| frame.kind == "tool-finished").await;
    assert_eq!(finished.data["data"]["output"], "before\nafter\n[exit code 0]");
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "log.txt"), "before\nafter");
    let events = house.events(&id).await;
    assert_eq!((count(&events, "tool-called"), count(&events, "tool-finished")), (1, 1));
    assert_eq!(house.model.requests().await.turns(), [0, 1]);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_asked_to_end_is_taken_up_where_it_stopped() {
    let mut slow = json!([bash("echo one >> log.txt"), bash("echo two >> log.txt"), done()]);
    slow[1]["delayMs"] = json!(1_500);
    let mut house = Setup::new(script(slow)).open().await;
    let id = house.submit(json!({})).await;
    house.event(&id, "tool-finished").await;
    house.server.take().unwrap().stop().await;
    house.restart().await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "log.txt"), "one\ntwo");
    // A model that was answering was waited for: nothing is asked or paid for twice.
    assert_eq!(house.model.requests().await.turns(), [0, 1, 2]);
    assert_eq!(nano_usd(&task["usage"]["costUsd"]), house.model.requests().await.cost());
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_a_repository_over_http() {
    let house = Setup::new(script(json!([write("a.txt"), done()]))).open().await;
    let credentials = json!({ "git": { "token": GIT_TOKEN } });
    let id = house.submit(json!({ "repo": format!("plain:{REPO}"), "model": MODEL, "credentials": credentials })).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!(house.remotes.branches(), [task["branch"].as_str().unwrap()]);
    assert!(house.remotes.http.requests().iter().any(|line| line.starts_with("POST /acme/api.git/git-receive-pack")));
    house.nothing_left().await;
}
