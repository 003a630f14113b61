//! Any agent behind the metered gateway: nothing is spent past a cap, nothing is paid for twice, and every book says
//! the same.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{House, Setup, bash, cost_of, count, done, nano_usd, script};

/// A program for the sandbox that asks the gateway so often at once, and writes down how each call was answered.
const SWARM: &str = r#"
import concurrent.futures, json, os, sys, urllib.error, urllib.request
base = os.environ["ANTHROPIC_BASE_URL"]
def ask(number):
    body = {"model": "claude-sonnet-4-6", "max_tokens": 2000, "stream": number % 2 == 0,
            "messages": [{"role": "user", "content": os.environ["ORCHESTRA_TASK"]}]}
    request = urllib.request.Request(base + "/v1/messages", json.dumps(body).encode(),
        {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": "none"})
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        error.read()
        return error.code
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    answers = list(pool.map(ask, range(int(sys.argv[1]))))
with open("answers.json", "w") as file:
    json.dump(answers, file)
print("answered", sorted(set(answers)))
"#;

fn program(text: &str) -> Value {
    json!(["python3", "-c", text])
}

fn swarm(calls: u32) -> Value {
    json!(["python3", "-c", SWARM, calls.to_string()])
}

/// What the ledger says was spent and reserved, at every prefix, must stay under this; returns what was spent.
fn never_over(events: &[Value], cap: u64) -> u64 {
    let (mut spent, mut open) = (0, BTreeMap::new());
    let amount = |data: &Value, name: &str| data[name].as_u64().unwrap();
    for event in events {
        let data = &event["data"];
        let call = data["call"].as_str().unwrap_or_default().to_owned();
        match event["type"].as_str().unwrap() {
            "reserved" | "trimmed" => drop(open.insert(call, amount(data, "reservedNanoUsd"))),
            "settled" => {
                assert!(open.remove(&call).is_some(), "{call} is settled without a reservation");
                spent += amount(data, "costNanoUsd");
            }
            "released" => assert!(open.remove(&call).is_some(), "{call} is released without a reservation"),
            _ => {}
        }
        let held: u64 = open.values().sum();
        assert!(spent + held <= cap, "{spent} spent and {held} held are more than {cap}: {event:#}");
    }
    assert!(open.is_empty(), "left open: {open:?}");
    spent
}

/// The ledger of the tests' team, from the log's own stream.
async fn ledger(house: &House) -> Vec<Value> {
    house.log_of("ledger-web").await
}

fn total(events: &[Value], kind: &str, amount: &str) -> u64 {
    let of_kind = events.iter().filter(|event| event["type"] == kind);
    of_kind.map(|event| event["data"][amount].as_u64().unwrap()).sum()
}

/// A task of team `web` whose agent is a program of the test's own.
async fn run(house: &House, words: Value) -> String {
    house.submit(json!({ "task": "Ask.", "team": "web", "harness": "command", "command": words })).await
}

async fn set_budget(house: &House, scope: &str, budget: Value) -> Value {
    let (status, view) = house.api.put(&format!("/v1/budgets/{scope}"), &budget).await;
    assert_eq!(status, 200, "{view}");
    view
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_calls_at_once_never_pass_a_cap_and_every_book_agrees() {
    let house = Setup::new(script(json!([{ "text": "Here is one answer of several words." }]))).open().await;
    // A call of the swarm sets about three cents aside and costs a tenth of that: thirty fit at once, of sixty-four.
    let cap = 1_000_000_000;
    set_budget(&house, "team:web", json!({ "perDay": { "maxUsd": 1.0 }, "perMonth": { "maxUsd": 1.0 } })).await;
    let task = run(&house, swarm(300)).await;
    let ended = house.ended(&task).await;
    let answers = house.remotes.file(ended["branch"].as_str().unwrap_or_default(), "answers.json");
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    let answers: Vec<u64> = serde_json::from_str(&answers).unwrap();
    assert_eq!(answers.len(), 300);
    assert!(answers.iter().all(|status| [200, 402].contains(status)), "{answers:?}");
    let served = answers.iter().filter(|status| **status == 200).count();
    let book = ledger(&house).await;
    let spent = never_over(&book, cap);
    let events = house.events(&task).await;
    let requests = house.model.requests().await;
    let billed: u64 = requests.0.iter().map(|request| cost_of(&request["usage"])).sum();
    assert_eq!(requests.len(), served);
    assert_eq!(spent, billed, "the ledger and the provider");
    assert_eq!(total(&events, "tokens-charged", "costNanoUsd"), billed, "the task and the provider");
    assert_eq!(nano_usd(&ended["usage"]["costUsd"]), billed, "the resource and the provider");
    assert_eq!((count(&events, "model-called"), count(&events, "tokens-charged")), (served, served));
    let (_, view) = house.api.get("/v1/budgets/team:web").await;
    assert_eq!(nano_usd(&view["perDay"]["spentUsd"]), billed, "{view}");
    assert_eq!(nano_usd(&view["perMonth"]["reservedUsd"]), 0, "{view}");
    let (_, usage) = house.api.get("/v1/usage?groupBy=team,model").await;
    assert_eq!(nano_usd(&usage["total"]["costUsd"]), billed, "{usage}");
    // Half, four fifths: each said once.
    let reached: Vec<_> = book.iter().filter(|event| event["type"] == "threshold-reached").collect();
    let mut seen = BTreeMap::new();
    for event in &reached {
        let data = &event["data"];
        *seen.entry((data["period"].to_string(), data["percent"].as_u64().unwrap())).or_insert(0) += 1;
    }
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    assert_eq!(seen.contains_key(&("\"day\"".to_owned(), 50)), billed * 2 >= cap, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_without_money_is_told_so_at_the_door_and_in_the_middle() {
    let mut turns = json!([bash("echo once >> log.txt"), done()]);
    turns[0]["usage"] = json!({ "inputTokens": 15_000 });
    let house = Setup::new(script(turns)).open().await;
    set_budget(&house, "team:web", json!({ "perDay": { "maxUsd": 0 }, "timeZone": "Europe/Zurich" })).await;
    let mut payload = house.payload();
    payload["team"] = json!("web");
    let (status, problem) = house.api.post("/v1/tasks", &payload).await;
    assert_eq!((status, &problem["code"]), (402, &json!("budget-exceeded")), "{problem}");
    let budget = &problem["budget"];
    assert_eq!((&budget["scope"], &budget["period"]), (&json!("team:web"), &json!("day")), "{problem}");
    assert_eq!(nano_usd(&budget["capUsd"]) + nano_usd(&budget["spentUsd"]) + nano_usd(&budget["reservedUsd"]), 0);
    // Midnight in Zurich, in winter and in summer.
    let resets = budget["resetsAt"].as_str().unwrap();
    assert!(resets.ends_with("T23:00:00Z") || resets.ends_with("T22:00:00Z"), "{resets}");
    let (_, tasks) = house.api.get("/v1/tasks?team=web").await;
    assert_eq!(tasks["data"], json!([]), "nothing was taken");

    // What was taken before is answered as it stands, whatever is left of the money.
    set_budget(&house, "team:web", json!({})).await;
    let submit = || {
        let request = house.api.request(reqwest::Method::POST, "/v1/tasks").header("idempotency-key", "once");
        house.api.send(request.json(&payload))
    };
    let (status, first) = submit().await;
    assert_eq!(status, 202, "{first}");
    house.ended(first["id"].as_str().unwrap()).await;
    set_budget(&house, "team:web", json!({ "perDay": { "maxUsd": 0 } })).await;
    let (status, again) = submit().await;
    assert!(status < 300 && again["id"] == first["id"], "{status} {again}");
    let before = house.model.requests().await.len();

    // Room for the first call and not for the second.
    set_budget(&house, "project:web/infra", json!({ "perDay": { "maxTokens": 20_000 } })).await;
    set_budget(&house, "team:web", json!({})).await;
    let task = house.submit(json!({ "team": "web", "project": "infra" })).await;
    let ended = house.ended(&task).await;
    assert_eq!(ended["failure"]["code"], "budget-exceeded", "{ended:#}");
    let budget = &ended["failure"]["budget"];
    assert_eq!((&budget["scope"], &budget["period"]), (&json!("project:web/infra"), &json!("day")), "{ended:#}");
    assert_eq!(budget["capTokens"], 20_000);
    assert!(budget["spentTokens"].as_u64().unwrap() > 0 && budget["resetsAt"].is_string(), "{budget}");
    assert_eq!(house.model.requests().await.len(), before + 1);
    never_over(&ledger(&house).await, u64::MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_attempt_cost_that_the_provider_failed_is_not_billed() {
    let mut turns = json!([bash("echo once >> log.txt"), done()]);
    turns[1]["fault"] = json!({ "kind": "status", "status": 529 });
    let house = Setup::new(script(turns)).open().await;
    let task = house.submit(json!({ "team": "web" })).await;
    let ended = house.ended(&task).await;
    assert_eq!(ended["failure"]["code"], "model-overloaded", "{ended:#}");
    let cost = nano_usd(&ended["usage"]["costUsd"]);
    assert_eq!(cost, house.model.requests().await.cost());
    assert!(cost > 0);
    assert_eq!(nano_usd(&ended["usage"]["billableUsd"]), 0);
    let book = ledger(&house).await;
    assert_eq!((count(&book, "refunded"), total(&book, "refunded", "nanoUsd")), (1, cost));
    let (_, usage) = house.api.get("/v1/usage?groupBy=customer&team=web").await;
    assert_eq!((nano_usd(&usage["total"]["costUsd"]), nano_usd(&usage["total"]["billableUsd"])), (cost, 0), "{usage}");
    // A refund is no headroom: the money was spent.
    let (_, view) = house.api.get("/v1/budgets/team:web").await;
    assert_eq!(nano_usd(&view["perDay"]["spentUsd"]), cost);
}

/// Asks twice, with a long breath between the two, and notes each answer.
const PATIENT: &str = r#"
import json, os, sys, time, urllib.request
def ask(words):
    body = {"model": "claude-sonnet-4-6", "max_tokens": 2000, "stream": True, "messages": [{"role": "user", "content": words}]}
    for attempt in range(600):
        try:
            request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", json.dumps(body).encode(),
                {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": "none"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read().decode()
            if "message_stop" in text:
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit("no answer")
with open("log.txt", "a") as log:
    print("first", flush=True); ask("first"); print("one", file=log, flush=True)
    print("second", flush=True); ask("second"); print("two", file=log, flush=True)
print("over", flush=True)
"#;

fn words_of(events: &[Value]) -> Vec<&str> {
    let messages = events.iter().filter(|event| event["type"] == "message");
    messages.map(|event| event["data"]["content"][0]["text"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_outlives_the_server_and_finds_its_gateway_again() {
    let mut slow = json!([{ "text": "The second answer." }]);
    slow[0]["delayMs"] = json!(3_000);
    let turns = json!([{ "text": "The first answer." }]);
    let mut house =
        Setup::new(json!([{ "match": "second", "turns": slow }, { "match": "first", "turns": turns }])).open().await;
    let task = run(&house, program(PATIENT)).await;
    // In the middle of the second call.
    house.model.asked(2).await;
    house.kill().await;
    house.restart().await;
    let ended = house.ended(&task).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    let events = house.events(&task).await;
    assert_eq!(house.remotes.file(ended["branch"].as_str().unwrap(), "log.txt"), "one\ntwo");
    // Every word once, none twice, and one run of the program.
    assert_eq!(words_of(&events), ["first", "second", "over"]);
    assert_eq!(count(&events, "harness-started"), 1);
    let lost: Vec<_> = events.iter().filter(|event| event["data"]["confirmed"] == json!(false)).collect();
    assert_eq!(lost.len(), 1, "{events:#?}");
    assert_eq!(count(&events, "tokens-charged"), 3);
    let book = ledger(&house).await;
    assert_eq!(never_over(&book, u64::MAX), total(&events, "tokens-charged", "costNanoUsd"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_ends_the_agent_and_frees_what_it_held() {
    let mut slow = json!([{ "text": "Too late." }]);
    slow[0]["delayMs"] = json!(60_000);
    let house = Setup::new(script(slow)).open().await;
    let task = run(&house, program(PATIENT)).await;
    house.model.asked(1).await;
    let (status, _) = house.api.post(&format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    assert_eq!(status, 202);
    assert_eq!(house.ended(&task).await["status"], "cancelled");
    house.nothing_left().await;
    let book = ledger(&house).await;
    let events = house.events(&task).await;
    assert_eq!(never_over(&book, u64::MAX), total(&events, "tokens-charged", "costNanoUsd"));
    let (_, view) = house.api.get("/v1/budgets/team:web").await;
    assert_eq!(nano_usd(&view["perDay"]["reservedUsd"]), 0, "{view}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_fails_is_a_typed_failure_and_its_words_are_shown() {
    let house = Setup::new(script(json!([done()]))).open().await;
    let task = run(&house, json!(["/bin/sh", "-c", "echo out; echo the reason >&2; exit 3"])).await;
    let ended = house.ended(&task).await;
    assert_eq!(ended["failure"]["code"], "harness-failed", "{ended:#}");
    let message = ended["failure"]["message"].as_str().unwrap();
    assert!(message.contains("ended with code 3") && message.contains("the reason"), "{message}");
    let task = run(&house, json!(["/no/such/program"])).await;
    let ended = house.ended(&task).await;
    assert_eq!(ended["failure"]["code"], "harness-failed", "{ended:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_uses_the_models_on_its_list_and_no_others() {
    let house = Setup::new(script(json!([done()]))).config("[teams.web]\nmodels = [\"claude-sonnet-*\"]").open().await;
    let mut payload = house.payload();
    (payload["team"], payload["model"]) = (json!("web"), json!("claude-haiku-4-5"));
    let (status, problem) = house.api.post("/v1/tasks", &payload).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/model")), "{problem}");
    // Nor does a program inside a sandbox get at another one.
    let other = PATIENT
        .replace("claude-sonnet-4-6", "claude-haiku-4-5")
        .replace("except OSError:", "except ZeroDivisionError:");
    let task = run(&house, program(&other)).await;
    assert_eq!(house.ended(&task).await["failure"]["code"], "harness-failed");
    assert_eq!(house.model.requests().await.len(), 0);
}

/// A provider that is overloaded for a while: the program notices nothing, and the record shows every attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_retried_for_a_program_is_on_record_and_costs_nothing() {
    let mut turns = json!([{ "text": "At last." }]);
    turns[0]["fault"] = json!({ "kind": "status", "status": 529, "times": 2 });
    let house = Setup::new(script(turns)).open().await;
    let task = run(&house, swarm(1)).await;
    let ended = house.ended(&task).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    assert_eq!(house.remotes.file(ended["branch"].as_str().unwrap(), "answers.json"), "[200]");
    let events = house.events(&task).await;
    let retried: Vec<_> =
        events.iter().filter(|event| event["type"] == "call-retried").map(|event| &event["data"]).collect();
    assert_eq!(retried.len(), 2, "{events:#?}");
    for (number, retry) in (1..).zip(&retried) {
        assert_eq!((&retry["attempt"], &retry["class"]), (&json!(number), &json!("overloaded")));
        assert!(retry["waitMs"].is_u64(), "{retry}");
    }
    assert_eq!((count(&events, "model-called"), count(&events, "tokens-charged")), (1, 1));
    assert_eq!(never_over(&ledger(&house).await, u64::MAX), house.model.requests().await.cost());
}

/// Two calls with long prompts at once: the second fits only because the first gives back what its prompt turned out not to
/// need.
const PAIR: &str = r#"
import json, os, sys, threading, time, urllib.request
def ask(number):
    body = {"model": "claude-sonnet-4-6", "max_tokens": 2000, "stream": True,
            "messages": [{"role": "user", "content": f"call {number} " + "word " * 40000}]}
    try:
        request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", json.dumps(body).encode(),
            {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": "none"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
    except OSError:
        pass
first = threading.Thread(target=ask, args=(1,))
first.start()
time.sleep(1)
ask(2)
first.join()
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_back_is_not_charged_after_a_kill() {
    let mut slow = json!([{ "text": "word ".repeat(400) }]);
    slow[0]["paceMs"] = json!(1_000);
    let mut house = Setup::new(script(slow)).without_retry().config("[retry]\nmost_failures = 1").open().await;
    let cap = 1_000_000_000;
    set_budget(&house, "team:web", json!({ "perDay": { "maxUsd": 1.0 } })).await;
    let task = run(&house, program(PAIR)).await;
    house.model.asked(2).await;
    assert_eq!(count(&ledger(&house).await, "trimmed"), 1, "the second call fits without");
    house.kill().await;
    house.restart().await;
    let ended = house.ended(&task).await;
    assert_eq!(ended["failure"]["code"], "network-dropped", "{ended:#}");
    let events = house.events(&task).await;
    let spent = never_over(&ledger(&house).await, cap);
    assert_eq!(total(&events, "tokens-charged", "costNanoUsd"), spent);
}
