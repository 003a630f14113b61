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
