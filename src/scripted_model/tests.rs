//! The scripted model, asked by the client that asks real ones.
#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use orchestra_events::task::conversation::{Block, StopReason, Turn, UserPart};
use orchestra_runtime::model::{
    Charge, Dialect, FaultClass, ModelClient, ModelFailure, ModelReply, ModelRequest, Models, ProviderConfig, Timeouts,
};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::record::Totals;
use super::{RequestRecord, Script, start};

fn script(script: Value) -> Script {
    serde_json::from_value(script).expect("a script")
}

struct House {
    url: String,
    models: Models,
    handle: actix_web::dev::ServerHandle,
    _dir: tempfile::TempDir,
    log: std::path::PathBuf,
}

impl House {
    fn new(turns: Value) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("requests.ndjson");
        let (address, server) = start("127.0.0.1:0", script(turns), Some(log.clone())).expect("a server");
        let handle = server.handle();
        actix_rt::spawn(server);
        let url = format!("http://{address}");
        let config = |name: &str, dialect, base_url: String| ProviderConfig {
            name: name.into(),
            dialect,
            base_url,
            operator_key: None,
            key_required: true,
            prices: Vec::new(),
        };
        let configs = vec![
            config("anthropic", Dialect::Anthropic, url.clone()),
            config("openai", Dialect::OpenaiChat, format!("{url}/v1")),
        ];
        let short = Duration::from_millis(500);
        let timeouts = Timeouts { first_byte: short, idle: short, ..Timeouts::default() };
        let models = Models::new(configs, timeouts).expect("configuration");
        Self { url, models, handle, _dir: dir, log }
    }

    async fn ask(&self, model: &str, conversation: Vec<Turn>) -> Result<ModelReply, ModelFailure> {
        let request = ModelRequest {
            model: self.models.resolve(model).expect("known"),
            system: "Be brief.".into(),
            conversation,
            tools: Vec::new(),
            max_output_tokens: 1_000,
        };
        let key = SecretString::from("canary-key");
        self.models.call(&request, Some(&key), None, CancellationToken::new()).await
    }

    async fn requests(&self) -> Vec<RequestRecord> {
        reqwest::get(format!("{}/requests", self.url)).await.expect("answer").json().await.expect("records")
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let answer =
            reqwest::Client::new().post(format!("{}{path}", self.url)).json(body).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }

    async fn totals(&self) -> Totals {
        reqwest::get(format!("{}/totals", self.url)).await.expect("answer").json().await.expect("totals")
    }

    async fn stop(self) {
        self.handle.stop(false).await;
    }
}

fn says(text: &str) -> Turn {
    Turn::User(vec![UserPart::Text { text: text.into() }])
}

const BOTH: [&str; 2] = ["claude-sonnet-4-6", "gpt-5"];

#[actix_rt::test]
async fn the_turn_follows_from_the_conversation() {
    let house = House::new(json!([
        { "match": "bump", "turns": [
            { "text": "I will look, 🏔 and then change the line.", "tools": [
                { "name": "bash", "input": { "command": "ls" } }, { "name": "read", "rawInput": "{\"path\"" } ] },
            { "text": "Done.", "usage": { "inputTokens": 500, "outputTokens": 20, "cacheReadTokens": 300 } } ] },
        { "match": "", "turns": [{ "text": "Anything else" }] },
    ]));
    for model in BOTH {
        let first = house.ask(model, vec![says("please bump it")]).await.expect("a reply");
        assert_eq!(first.stop_reason, StopReason::ToolUse, "{model}");
        let Block::ToolUse { name, input, .. } = &first.content[1] else { panic!("{first:?}") };
        assert_eq!((name.as_str(), input), ("bash", &json!({ "command": "ls" })));
        assert!(matches!(&first.content[2], Block::ToolUse { malformed: Some(raw), .. } if raw == "{\"path\""));
        assert!(first.usage.input_tokens > 0 && first.usage.output_tokens > 1);
        let conversation = vec![says("please bump it"), Turn::Assistant(first.content), says("go on")];
        let again = house.ask(model, conversation.clone()).await.expect("a reply");
        assert_eq!(again.stop_reason, StopReason::EndTurn);
        assert_eq!(
            (again.usage.input_tokens, again.usage.cache_read_tokens, again.usage.output_tokens),
            (500, 300, 20)
        );
        let past_the_end = [conversation, vec![Turn::Assistant(again.content), says("more")]].concat();
        assert_eq!(house.ask(model, past_the_end).await.expect_err("no such turn").class, FaultClass::Rejected);
        assert!(house.ask(model, vec![says("hello")]).await.is_ok());
    }
    let requests = house.requests().await;
    let turns: Vec<_> = requests.iter().map(|request| (request.script.as_deref(), request.turn)).collect();
    let once = [(Some("bump"), Some(0)), (Some("bump"), Some(1)), (Some("bump"), Some(2)), (Some(""), Some(0))];
    assert_eq!(turns, [once, once].concat());
    let key = "0b8bdfd5fe8e2887553f64e360259947f07d61acd45d51b4a74a53008e5a9597";
    assert!(requests.iter().all(|request| request.key_sha256.as_deref() == Some(key)));
    let log = std::fs::read_to_string(&house.log).expect("the log");
    assert_eq!(log.lines().count(), requests.len());
    assert!(!log.contains("canary-key"));
    house.stop().await;
}

#[actix_rt::test]
async fn each_fault_is_what_a_client_takes_it_for() {
    for (kind, class, nothing_charged) in [
        ("truncate", FaultClass::Truncated, false),
        ("reset", FaultClass::Reset, false),
        ("stall", FaultClass::IdleTimeout, false),
        ("hang", FaultClass::FirstByteTimeout, true),
        ("garbage", FaultClass::Malformed, false),
        ("badJson", FaultClass::Malformed, false),
        ("empty", FaultClass::Truncated, false),
        ("errorFirst", FaultClass::Overloaded, true),
        ("errorEvent", FaultClass::Overloaded, false),
        ("status", FaultClass::ServerError, true),
    ] {
        let text = "A long text, so that half of it is not nothing at all. ".repeat(10);
        let turn = json!({ "text": text, "fault": { "kind": kind, "times": 1 } });
        let house = House::new(json!([{ "match": "", "turns": [turn] }]));
        for model in BOTH {
            // Each conversation has the fault once.
            let failure = house.ask(model, vec![says(model)]).await.expect_err(kind);
            assert_eq!((failure.class, failure.charged == Charge::Nothing), (class, nothing_charged), "{kind} {model}");
            assert!(house.ask(model, vec![says(model)]).await.is_ok(), "{kind} {model}");
        }
        let faults: Vec<bool> = house.requests().await.iter().map(|request| request.fault.is_some()).collect();
        assert_eq!(faults, [true, false, true, false], "{kind}");
        house.stop().await;
    }
    let limited = json!({ "kind": "status", "status": 429, "retryAfter": "3" });
    let spent = json!({ "kind": "status", "status": 429, "code": "insufficient_quota" });
    let house = House::new(json!([
        { "match": "limited", "turns": [{ "fault": limited }] },
        { "match": "spent", "turns": [{ "fault": spent }] },
        { "match": "uncounted", "turns": [{ "text": "x", "fault": { "kind": "noUsage" } }] },
    ]));
    for model in BOTH {
        for _ in 0..2 {
            let failure = house.ask(model, vec![says("limited")]).await.expect_err("always");
            assert_eq!((failure.class, failure.retry_after), (FaultClass::RateLimited, Some(Duration::from_secs(3))));
        }
        assert_eq!(house.ask(model, vec![says("spent")]).await.expect_err("spent").class, FaultClass::SpendLimit);
        assert!(!house.ask(model, vec![says("uncounted")]).await.expect("a reply").usage_reported);
        assert_eq!(house.ask(model, vec![says("else")]).await.expect_err("no script").class, FaultClass::Rejected);
    }
    house.stop().await;
}

#[actix_rt::test]
async fn it_answers_whole_and_keeps_to_the_output_limit() {
    let long = "word ".repeat(1_000);
    let house = House::new(json!([{ "match": "", "turns": [{ "text": long, "tools": [{ "name": "bash" }] }] }]));
    let client = reqwest::Client::new();
    let ask = async |path: &str, limit: u64| {
        let body = json!({ "model": "m", "max_tokens": limit, "messages": [{ "role": "user", "content": "x" }] });
        let answer = client.post(format!("{}{path}", house.url)).json(&body).send().await.expect("an answer");
        answer.json::<Value>().await.expect("JSON")
    };
    let whole = ask("/v1/messages", 9_000).await;
    assert_eq!((&whole["content"][1]["name"], &whole["stop_reason"]), (&json!("bash"), &json!("tool_use")));
    let cut = ask("/v1/messages", 100).await;
    assert_eq!((&cut["usage"]["output_tokens"], &cut["stop_reason"]), (&json!(100), &json!("max_tokens")));
    let whole = ask("/v1/chat/completions", 9_000).await;
    assert_eq!(whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{}");
    let cut = ask("/v1/chat/completions", 100).await;
    assert_eq!(
        (&cut["usage"]["completion_tokens"], &cut["choices"][0]["finish_reason"]),
        (&json!(100), &json!("length"))
    );
    house.stop().await;
}

#[actix_rt::test]
async fn it_stays_on_this_machine_and_refuses_what_is_no_script() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let refused = start(listen, script(json!([])), None).err().expect("refused").to_string();
        assert!(refused.contains("loopback"), "{refused}");
    }
    let typo = json!([{ "match": "", "turns": [{ "txt": "x" }] }]);
    assert!(serde_json::from_value::<Script>(typo).is_err());
}

/// The events of a stream, each checked to be named by its own type and numbered in order.
fn stream_events(stream: &str) -> Vec<Value> {
    let events: Vec<Value> = stream
        .split_terminator("\n\n")
        .map(|event| {
            let (name, data) = event.split_once("\ndata: ").expect("a name and data");
            let data: Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(name, format!("event: {}", data["type"].as_str().expect("a type")));
            data
        })
        .collect();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    events
}

fn user(text: &str) -> Value {
    json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }] })
}

#[actix_rt::test]
async fn responses_are_told_event_by_event_and_come_to_the_same_as_whole_ones() {
    let house = House::new(json!([{ "match": "bump", "turns": [
        { "text": "I will look, 🏔 and then change the line.", "tools": [
            { "name": "exec_command", "input": { "cmd": "ls" } },
            { "name": "apply_patch", "rawInput": "*** Begin Patch" },
            { "name": "exec", "input": "text(1)" } ] },
        { "text": "Done.", "usage": { "inputTokens": 500, "outputTokens": 20, "cacheReadTokens": 300 } },
    ] }]));
    let hidden = json!([{ "type": "namespace", "name": "functions", "tools": [{ "type": "custom", "name": "exec" }] }]);
    let mut input = vec![
        json!({ "type": "additional_tools", "role": "developer", "tools": hidden }),
        user("The machine has bash."),
        user("please bump it"),
    ];
    let tools = json!([{ "type": "custom", "name": "apply_patch" }, { "type": "function", "name": "exec_command" }]);
    let ask = async |input: &[Value], more: Value| {
        let mut body = json!({ "model": "gpt-5", "stream": true, "input": input, "tools": tools });
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let (status, text) = house.post("/v1/responses", &body).await;
        assert_eq!(status, 200, "{text}");
        text
    };
    let events = stream_events(&ask(&input, json!({})).await);
    let last = events.last().expect("an event");
    assert_eq!((&events[0]["type"], &last["type"]), (&json!("response.created"), &json!("response.completed")));
    let whole: Value = serde_json::from_str(&ask(&input, json!({ "stream": false })).await).expect("JSON");
    let output = whole["output"].as_array().expect("a list");
    assert_eq!(&last["response"]["output"], &whole["output"]);
    // What was told piece by piece is what the whole has.
    for (index, item) in output.iter().enumerate() {
        let at = |kind: &str| events.iter().find(|event| event["type"] == kind && event["output_index"] == index);
        assert_eq!(&at("response.output_item.done").expect("done")["item"], item);
        let pieces = events.iter().filter(|event| event["output_index"] == index);
        let told: String = pieces.filter_map(|event| event["delta"].as_str()).collect();
        let (text, of) = match item["type"].as_str().expect("a type") {
            "message" => (&item["content"][0]["text"], "response.output_text.done"),
            "function_call" => (&item["arguments"], "response.function_call_arguments.done"),
            _ => (&item["input"], "response.custom_tool_call_input.done"),
        };
        assert_eq!(told, text.as_str().expect("text"));
        assert!(at(of).is_some(), "{of} {item}");
    }
    let kinds: Vec<&str> = output.iter().filter_map(|item| item["type"].as_str()).collect();
    assert_eq!(kinds, ["message", "function_call", "custom_tool_call", "custom_tool_call"]);
    assert_eq!((&output[3]["namespace"], &output[3]["input"]), (&json!("functions"), &json!("text(1)")));

    // One answer of four items is one turn, whatever came back for it.
    input.extend(output.iter().cloned());
    for call in ["call_0_0", "call_0_1", "call_0_2"] {
        input.push(json!({ "type": "function_call_output", "call_id": call, "output": "" }));
    }
    let events = stream_events(&ask(&input, json!({})).await);
    let usage = &events.last().expect("an event")["response"]["usage"];
    assert_eq!((&usage["input_tokens"], &usage["input_tokens_details"]["cached_tokens"]), (&json!(800), &json!(300)));
    assert_eq!((&usage["output_tokens"], &usage["total_tokens"]), (&json!(20), &json!(820)));
    let cut = stream_events(&ask(&input, json!({ "max_output_tokens": 3 })).await);
    let last = cut.last().expect("an event");
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(last["response"]["usage"]["output_tokens"], 3);
    let turns: Vec<_> = house.requests().await.iter().map(|request| request.turn).collect();
    assert_eq!(turns, [Some(0), Some(0), Some(1), Some(1)]);
    house.stop().await;
}

#[actix_rt::test]
async fn responses_fail_as_they_do_elsewhere() {
    let turn = |kind: &str| json!({ "text": "A text that has a middle. ".repeat(9), "fault": { "kind": kind } });
    let kinds = ["truncate", "errorFirst", "errorEvent", "noUsage", "empty", "status"];
    let script: Vec<Value> = kinds.iter().map(|kind| json!({ "match": kind, "turns": [turn(kind)] })).collect();
    let house = House::new(script.into());
    for (kind, last) in [
        ("truncate", Some("response.output_text.delta")),
        ("errorFirst", Some("error")),
        ("errorEvent", Some("response.failed")),
        ("noUsage", Some("response.completed")),
        ("empty", None),
        ("status", None),
    ] {
        let body = json!({ "model": "gpt-5", "stream": true, "input": kind });
        let (status, text) = house.post("/v1/responses", &body).await;
        assert_eq!(status, if kind == "status" { 500 } else { 200 }, "{kind}");
        if kind == "status" {
            assert!(text.contains("server_error"), "{text}");
            continue;
        }
        let ended = text.split_terminator("\n\n").last().map(|event| {
            let data = event.split_once("data: ").expect("data").1;
            serde_json::from_str::<Value>(data).expect("JSON")
        });
        assert_eq!(ended.as_ref().and_then(|event| event["type"].as_str()), last, "{kind}: {text}");
        if let Some(ended) = ended.filter(|_| kind == "noUsage") {
            assert!(ended["response"]["usage"].is_null());
        }
    }
    house.stop().await;
}

#[actix_rt::test]
async fn what_was_billed_is_counted_per_model_and_questions_beside_the_script_are_answered() {
    let usage = json!({ "inputTokens": 100, "outputTokens": 10, "cacheReadTokens": 7 });
    let fails = |kind: &str| json!({ "text": "x", "usage": usage, "fault": { "kind": kind, "times": 1 } });
    let house = House::new(
        json!([{ "match": "cut", "turns": [fails("truncate")] }, { "match": "", "turns": [fails("status")] }]),
    );
    for (model, words) in [("claude-sonnet-4-6", "cut"), ("claude-sonnet-4-6", "x"), ("gpt-5", "x")] {
        assert!(house.ask(model, vec![says(words)]).await.is_err() == (model != "gpt-5"));
        assert!(house.ask(model, vec![says(words)]).await.is_ok());
    }
    // A client's own question for a title does not come to the turn, and is billed like any other.
    let title = "You are a title generator. You output ONLY a thread title.";
    for (path, body) in [
        (
            "/v1/messages",
            json!({ "model": "title", "max_tokens": 9, "system": [{ "text": title }],
            "messages": [{ "role": "user", "content": "cut" }] }),
        ),
        (
            "/v1/chat/completions",
            json!({ "model": "title", "messages": [
            { "role": "system", "content": title }, { "role": "user", "content": "cut" }] }),
        ),
        ("/v1/responses", json!({ "model": "title", "instructions": title, "input": "cut" })),
    ] {
        let (status, text) = house.post(path, &body).await;
        assert!(status == 200 && text.contains("scripted model"), "{status} {text}");
    }
    let (_, counted) = house.post("/v1/messages/count_tokens", &json!({ "messages": [] })).await;
    assert_eq!(serde_json::from_str::<Value>(&counted).expect("JSON")["input_tokens"], 4);

    let totals = house.totals().await.models;
    let counts = |model: &str| {
        let of = &totals[model];
        let tokens = |usage: &orchestra_events::task::conversation::Usage| {
            (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens)
        };
        (of.calls, of.billed_calls, tokens(&of.billed), of.reported_calls, tokens(&of.reported))
    };
    // The cut answer is billed and was never told in full; the refused one is not billed.
    assert_eq!(counts("claude-sonnet-4-6"), (4, 3, (300, 30, 21), 2, (200, 20, 14)));
    assert_eq!(counts("gpt-5"), (2, 2, (200, 20, 14), 2, (200, 20, 14)));
    assert_eq!((totals["title"].calls, totals["title"].reported_calls), (3, 3));
    assert_eq!(house.requests().await.len(), 9);
    house.stop().await;
}
