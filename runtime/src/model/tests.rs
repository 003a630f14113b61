//! Calls over a real socket: whole replies, and every fault a provider or the way to it can have.

use std::time::Duration;

use orchestra_events::FailureCode;
use orchestra_events::blob::{BlobRef, Content};
use orchestra_events::task::conversation::{Block, StopReason, Turn, Usage, UserPart};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

const KEY: &str = "canary-7c1e9d";

/// What the server does once it has answered.
#[derive(Clone, Copy)]
enum Then {
    Close,
    Reset,
    Hang,
}

/// What the server answers: raw bytes, cut into pieces of this size, each in a packet of its own.
struct Answer {
    bytes: Vec<u8>,
    piece: usize,
    then: Then,
}

impl Answer {
    fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), piece: usize::MAX, then: Then::Close }
    }

    /// A stream that ends with the connection.
    fn stream(events: &str) -> Self {
        Self::raw(format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{events}"))
    }

    fn status(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::raw(format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ))
    }

    fn in_pieces(self, piece: usize) -> Self {
        Self { piece, ..self }
    }

    fn then(self, then: Then) -> Self {
        Self { then, ..self }
    }
}

async fn read_request(socket: &mut TcpStream) -> Vec<u8> {
    let mut request = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let read = socket.read(&mut buffer).await.expect("request");
        assert!(read > 0, "the client left before it had asked");
        request.extend_from_slice(&buffer[..read]);
        let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("content-length");
        if request.len() >= end + 4 + length.parse::<usize>().expect("number") {
            return request;
        }
    }
}

/// A provider for one call. The handle gives what it was asked, once the client has had its answer.
async fn provider(answer: Answer) -> (String, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("client");
        socket.set_nodelay(true).expect("socket");
        let request = read_request(&mut socket).await;
        for piece in answer.bytes.chunks(answer.piece.max(1)) {
            // The client may leave early, as it should when the answer is nonsense.
            if socket.write_all(piece).await.is_err() {
                return request;
            }
            if answer.piece < 64 {
                tokio::task::yield_now().await;
            }
        }
        match answer.then {
            Then::Close => drop(socket.shutdown().await),
            Then::Reset => drop(socket.set_zero_linger()),
            // Until the client leaves.
            Then::Hang => while socket.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {},
        }
        request
    });
    (url, served)
}

fn models(url: &str) -> Models {
    let config = |name: &str, dialect| ProviderConfig {
        name: name.into(),
        dialect,
        base_url: url.into(),
        operator_key: None,
        key_required: true,
        prices: Vec::new(),
    };
    let timeouts =
        Timeouts { first_byte: Duration::from_millis(500), idle: Duration::from_millis(500), ..Timeouts::default() };
    let configs = vec![config("anthropic", Dialect::Anthropic), config("openai", Dialect::OpenaiChat)];
    Models::new(configs, timeouts).expect("configuration")
}

fn request(models: &Models, model: &str) -> ModelRequest {
    ModelRequest {
        model: models.resolve(model).expect("known model"),
        system: "Be brief.".into(),
        conversation: vec![Turn::User(vec![UserPart::Text { text: "Say hello".into() }])],
        tools: vec![ToolSpec {
            name: "bash".into(),
            description: "Runs a command".into(),
            input_schema: json!({ "type": "object" }),
        }],
        max_output_tokens: 4_096,
    }
}

const CLAUDE: &str = "claude-sonnet-4-6";
const GPT: &str = "gpt-5";

async fn ask_as(model: &str, answer: Answer) -> (Result<ModelReply, ModelFailure>, String) {
    let (url, served) = provider(answer).await;
    let models = models(&url);
    let key = SecretString::from(KEY);
    let request = request(&models, model);
    let call = models.call(&request, Some(&key), None, CancellationToken::new());
    let outcome = tokio::time::timeout(Duration::from_secs(30), call).await.expect("every call ends");
    if let Err(failure) = &outcome {
        assert!(!format!("{failure:?} {failure}").contains(KEY), "the key is in {failure:?}");
    }
    let asked = tokio::time::timeout(Duration::from_secs(30), served).await.expect("the client lets go");
    (outcome, String::from_utf8(asked.expect("server")).expect("UTF-8"))
}

async fn fails(model: &str, answer: Answer) -> ModelFailure {
    ask_as(model, answer).await.0.expect_err("a failure")
}

fn events(events: &[Value]) -> String {
    events
        .iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default()))
        .collect()
}

fn claude_start() -> Value {
    json!({ "type": "message_start", "message": { "id": "m", "role": "assistant", "content": [], "usage": {
        "input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 22, "cache_creation_input_tokens": 33,
        "cache_creation": { "ephemeral_5m_input_tokens": 33, "ephemeral_1h_input_tokens": 0 } } } })
}

fn claude_events() -> Vec<Value> {
    let delta = |index: u64, delta: Value| json!({ "type": "content_block_delta", "index": index, "delta": delta });
    vec![
        claude_start(),
        json!({ "type": "ping" }),
        json!({ "type": "content_block_start", "index": 0,
            "content_block": { "type": "thinking", "thinking": "", "signature": "" } }),
        delta(0, json!({ "type": "thinking_delta", "thinking": "Hm." })),
        delta(0, json!({ "type": "signature_delta", "signature": "c2ln" })),
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({ "type": "content_block_start", "index": 1, "content_block": { "type": "text", "text": "" } }),
        delta(1, json!({ "type": "text_delta", "text": "Grüezi " })),
        delta(1, json!({ "type": "text_delta", "text": "🏔" })),
        json!({ "type": "content_block_stop", "index": 1 }),
        json!({ "type": "some_newer_event", "field": 1 }),
        json!({ "type": "content_block_start", "index": 2,
            "content_block": { "type": "tool_use", "id": "toolu_1", "name": "bash", "input": {} } }),
        delta(2, json!({ "type": "input_json_delta", "partial_json": "" })),
        delta(2, json!({ "type": "input_json_delta", "partial_json": "{\"command\": \"l" })),
        delta(2, json!({ "type": "input_json_delta", "partial_json": "s\"}" })),
        json!({ "type": "content_block_stop", "index": 2 }),
        json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" }, "usage": { "output_tokens": 44 } }),
        json!({ "type": "message_stop" }),
    ]
}

fn claude_reply() -> ModelReply {
    ModelReply {
        content: vec![
            Block::Thinking { text: Content::Inline("Hm.".into()), signature: Some("c2ln".into()) },
            Block::Text { text: Content::Inline("Grüezi 🏔".into()) },
            Block::ToolUse {
                id: "toolu_1".into(),
                name: "bash".into(),
                input: json!({ "command": "ls" }),
                malformed: None,
            },
        ],
        stop_reason: StopReason::ToolUse,
        usage: Usage {
            input_tokens: 11,
            output_tokens: 44,
            cache_read_tokens: 22,
            cache_write5m_tokens: 33,
            cache_write1h_tokens: 0,
        },
        usage_reported: true,
    }
}

fn chunk(delta: Value, finish: Option<&str>) -> Value {
    json!({ "object": "chat.completion.chunk", "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }],
        "usage": null })
}

fn gpt_stream(chunks: &[Value], end: &str) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect::<String>() + end
}

fn gpt_usage() -> Value {
    json!({ "choices": [], "usage": { "prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107,
        "prompt_tokens_details": { "cached_tokens": 64 } } })
}

fn gpt_chunks() -> Vec<Value> {
    let call = |index: u64, id: Option<&str>, name: Option<&str>, arguments: &str| {
        chunk(
            json!({ "tool_calls": [{ "index": index, "id": id, "type": "function",
            "function": { "name": name, "arguments": arguments } }] }),
            None,
        )
    };
    vec![
        chunk(json!({ "role": "assistant", "content": "" }), None),
        chunk(json!({ "content": "Grüezi " }), None),
        chunk(json!({ "content": "🏔" }), None),
        call(0, Some("call_1"), Some("bash"), ""),
        call(0, None, None, "{\"command\": \"l"),
        call(1, Some("call_2"), Some("read"), "{\"path\""),
        call(0, None, None, "s\"}"),
        chunk(json!({}), Some("tool_calls")),
        gpt_usage(),
    ]
}

#[tokio::test]
async fn a_whole_reply_is_the_same_however_it_is_cut() {
    let text = events(&claude_events());
    for (text, piece) in [(text.clone(), usize::MAX), (text.clone(), 1), (text.replace('\n', "\r\n"), 7)] {
        let (reply, _) = ask_as(CLAUDE, Answer::stream(&text).in_pieces(piece)).await;
        assert_eq!(reply.expect("a reply"), claude_reply(), "in pieces of {piece}");
    }
    let expected = ModelReply {
        content: vec![
            Block::Text { text: Content::Inline("Grüezi 🏔".into()) },
            Block::ToolUse {
                id: "call_1".into(),
                name: "bash".into(),
                input: json!({ "command": "ls" }),
                malformed: None,
            },
            Block::ToolUse {
                id: "call_2".into(),
                name: "read".into(),
                input: Value::Null,
                malformed: Some("{\"path\"".into()),
            },
        ],
        stop_reason: StopReason::ToolUse,
        usage: Usage { input_tokens: 36, output_tokens: 7, cache_read_tokens: 64, ..Usage::default() },
        usage_reported: true,
    };
    let text = gpt_stream(&gpt_chunks(), ": a comment\n\ndata: [DONE]\n\n");
    for (text, piece) in [(text.clone(), usize::MAX), (text.clone(), 1), (text.replace('\n', "\r\n"), 7)] {
        let (reply, _) = ask_as(GPT, Answer::stream(&text).in_pieces(piece)).await;
        assert_eq!(reply.expect("a reply"), expected, "in pieces of {piece}");
    }
}

#[tokio::test]
async fn the_words_are_heard_while_they_come_and_a_slow_listener_stops_nothing() {
    let (url, _served) = provider(Answer::stream(&events(&claude_events()))).await;
    let models = models(&url);
    let (sender, mut words) = mpsc::channel(1);
    let key = SecretString::from(KEY);
    let reply = models.call(&request(&models, CLAUDE), Some(&key), Some(sender), CancellationToken::new()).await;
    assert!(reply.is_ok());
    assert_eq!(words.recv().await.as_deref(), Some("Grüezi "));
    assert_eq!(words.recv().await, None, "the second did not fit and was dropped");
}

fn body(asked: &str) -> Value {
    serde_json::from_str(asked.split_once("\r\n\r\n").expect("a body").1).expect("JSON")
}

#[tokio::test]
async fn each_dialect_is_asked_in_its_own_way() {
    let (_, asked) = ask_as(CLAUDE, Answer::stream(&events(&claude_events()))).await;
    assert!(asked.starts_with("POST /v1/messages HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("x-api-key: {KEY}\r\n")) && asked.contains("anthropic-version: 2023-06-01\r\n"));
    let sent = body(&asked);
    assert_eq!((&sent["stream"], &sent["max_tokens"]), (&json!(true), &json!(4096)));
    assert_eq!(sent["system"][0]["cache_control"]["type"], "ephemeral");
    assert_eq!(sent["messages"][0]["content"][0]["cache_control"]["type"], "ephemeral");
    assert_eq!(sent["tools"][0]["input_schema"]["type"], "object");

    let (_, asked) = ask_as(GPT, Answer::stream(&gpt_stream(&gpt_chunks(), "data: [DONE]\n\n"))).await;
    assert!(asked.starts_with("POST /chat/completions HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("authorization: Bearer {KEY}\r\n")));
    let sent = body(&asked);
    assert_eq!(sent["stream_options"]["include_usage"], true);
    assert_eq!(sent["max_tokens"], 4096);
    assert_eq!(sent["messages"][0], json!({ "role": "system", "content": "Be brief." }));
    assert_eq!(sent["tools"][0]["function"]["name"], "bash");
}

#[test]
fn a_conversation_goes_back_as_the_provider_wants_it() {
    let models = models("http://127.0.0.1:1");
    let conversation = vec![
        Turn::User(vec![UserPart::Text { text: "Go".into() }]),
        Turn::Assistant(vec![
            Block::Thinking { text: Content::Inline("Hm.".into()), signature: Some("c2ln".into()) },
            Block::Thinking { text: Content::Inline(String::new()), signature: Some("redacted_thinking:QUJD".into()) },
            Block::Text { text: Content::Inline(String::new()) },
            Block::ToolUse { id: "a".into(), name: "bash".into(), input: Value::Null, malformed: Some("{".into()) },
        ]),
        Turn::User(vec![
            UserPart::Text { text: "Faster".into() },
            UserPart::ToolResult { tool_call: "a".into(), output: Content::Inline("no".into()), is_error: true },
        ]),
    ];
    let sent = |model: &str| {
        let request = ModelRequest { conversation: conversation.clone(), ..request(&models, model) };
        let limit = wire::Limit { tokens: 1, renamed: true };
        serde_json::from_slice::<Value>(&wire::encode(&request, limit).expect("encodes")).expect("JSON")
    };
    let claude = sent(CLAUDE);
    assert_eq!(
        claude["messages"][1]["content"],
        json!([
            { "type": "thinking", "thinking": "Hm.", "signature": "c2ln" },
            { "type": "redacted_thinking", "data": "QUJD" },
            { "type": "tool_use", "id": "a", "name": "bash", "input": { "invalid_json": "{" } },
        ])
    );
    assert_eq!(claude["messages"][2]["content"][0]["type"], "tool_result", "results come first");
    assert_eq!(claude["messages"][2]["content"][1]["cache_control"]["type"], "ephemeral");
    let gpt = sent(GPT);
    assert_eq!(gpt["max_completion_tokens"], 1);
    assert_eq!(gpt["messages"][2]["content"], Value::Null);
    assert_eq!(gpt["messages"][2]["tool_calls"][0]["function"]["arguments"], "{\"invalid_json\":\"{\"}");
    assert_eq!(gpt["messages"][3], json!({ "role": "tool", "tool_call_id": "a", "content": "The tool failed:\nno" }));
    assert_eq!(gpt["messages"][4], json!({ "role": "user", "content": "Faster" }));
    let blob = Content::Blob(BlobRef { sha256: "ab".into(), bytes: 1 });
    let part = UserPart::ToolResult { tool_call: "a".into(), output: blob, is_error: false };
    let unresolved = ModelRequest { conversation: vec![Turn::User(vec![part])], ..request(&models, CLAUDE) };
    assert_eq!(unresolved.bytes().expect_err("unresolved").charged, Charge::Nothing);
}

#[tokio::test]
async fn every_refusal_has_its_class() {
    let late = "Retry-After: 7\r\n";
    for (status, headers, body, class, code, wait) in [
        ("429 Too Many Requests", late, "{}", FaultClass::RateLimited, FailureCode::ModelRateLimited, Some(7)),
        (
            "429 Too Many Requests",
            "",
            r#"{"error":{"code":"insufficient_quota"}}"#,
            FaultClass::SpendLimit,
            FailureCode::ModelRateLimited,
            None,
        ),
        ("529 Overloaded", "", "{}", FaultClass::Overloaded, FailureCode::ModelOverloaded, None),
        ("500 Oops", late, "<html>", FaultClass::ServerError, FailureCode::ModelUnavailable, Some(7)),
        (
            "401 Unauthorized",
            "",
            r#"{"error":{"message":"bad key canary-7c1e9d"}}"#,
            FaultClass::Auth,
            FailureCode::ModelAuth,
            None,
        ),
        ("400 Bad Request", "", "", FaultClass::Rejected, FailureCode::ModelUnavailable, None),
        (
            "307 Moved",
            "Location: http://127.0.0.1:1/\r\n",
            "",
            FaultClass::Rejected,
            FailureCode::ModelUnavailable,
            None,
        ),
    ] {
        for model in [CLAUDE, GPT] {
            let failure = fails(model, Answer::status(status, headers, body)).await;
            assert_eq!((failure.class, failure.failure.code), (class, code), "{status}");
            assert_eq!(failure.retry_after, wait.map(Duration::from_secs), "{status}");
            assert_eq!(failure.charged, Charge::Nothing, "{status}");
        }
    }
}

#[tokio::test]
async fn a_broken_reply_is_named_and_its_cost_bounded() {
    let claude = claude_events();
    let half = events(&claude[..8]);
    let seen = Usage { output_tokens: "Hm.Grüezi ".len() as u64 + 256, ..claude_reply().usage };
    for (what, then, class, code) in [
        ("cut", Then::Close, FaultClass::Truncated, FailureCode::ModelTruncated),
        ("silent", Then::Hang, FaultClass::IdleTimeout, FailureCode::ModelTimeout),
    ] {
        let failure = fails(CLAUDE, Answer::stream(&half).then(then)).await;
        assert_eq!((failure.class, failure.failure.code), (class, code), "{what}");
        assert_eq!(failure.charged, Charge::Usage(seen), "{what}");
        let failure = fails(GPT, Answer::stream(&gpt_stream(&gpt_chunks()[..4], "")).then(then)).await;
        assert_eq!((failure.class, failure.charged), (class, Charge::Unknown), "{what}");
    }
    // All but the closing event: the count is exact, the reply is not believed.
    let failure = fails(CLAUDE, Answer::stream(&events(&claude[..claude.len() - 1]))).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::Truncated, Charge::Usage(claude_reply().usage)));
    let failure = fails(GPT, Answer::stream(&gpt_stream(&gpt_chunks()[..3], "data: [DONE]\n\n"))).await;
    assert_eq!(failure.class, FaultClass::Truncated, "the end without a reason to end");
    // A length that is not reached is a broken connection, not an end.
    let mut broken = Answer::stream(&half);
    broken.bytes = String::from_utf8(broken.bytes)
        .expect("UTF-8")
        .replace("Connection: close", "Content-Length: 99999")
        .into_bytes();
    let failure = fails(CLAUDE, broken).await;
    assert_eq!((failure.class, failure.failure.code), (FaultClass::Reset, FailureCode::NetworkDropped));
    assert_eq!(failure.charged, Charge::Usage(seen));
    let failure = fails(CLAUDE, Answer::raw("").then(Then::Reset)).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::Reset, Charge::Unknown));
    let failure = fails(CLAUDE, Answer::raw("").then(Then::Hang)).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::FirstByteTimeout, Charge::Unknown));
    let failure = fails(GPT, Answer::stream("").then(Then::Hang)).await;
    assert_eq!((failure.class, failure.failure.code), (FaultClass::FirstByteTimeout, FailureCode::ModelTimeout));
}

#[tokio::test]
async fn an_error_inside_a_stream_has_its_class() {
    let error = json!({ "type": "error", "error": { "type": "overloaded_error", "message": "canary-7c1e9d busy" } });
    let failure = fails(CLAUDE, Answer::stream(&events(std::slice::from_ref(&error)))).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::Overloaded, Charge::Nothing));
    assert!(failure.failure.message.ends_with("[key] busy"), "{}", failure.failure.message);
    let failure = fails(CLAUDE, Answer::stream(&events(&[claude_start(), error]))).await;
    assert_eq!(failure.class, FaultClass::Overloaded);
    assert!(matches!(failure.charged, Charge::Usage(usage) if usage.input_tokens == 11));
    let error = json!({ "error": { "message": "slow down", "code": "rate_limit_exceeded" } });
    let failure = fails(GPT, Answer::stream(&gpt_stream(std::slice::from_ref(&error), ""))).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::RateLimited, Charge::Nothing));
    let failure = fails(GPT, Answer::status("200 OK", "", &error.to_string())).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::RateLimited, Charge::Nothing));
}

#[tokio::test]
async fn nonsense_is_refused_and_never_believed() {
    let stop = json!({ "type": "message_stop" });
    let html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>";
    for (what, model, answer) in [
        ("a login page", CLAUDE, Answer::raw(html)),
        ("a login page", GPT, Answer::raw(html)),
        ("no JSON", CLAUDE, Answer::stream("data: {\n\n")),
        ("no JSON", GPT, Answer::stream("data: <>\n\n")),
        ("no fields", GPT, Answer::stream("data: {}\n\n")),
        ("wrong types", CLAUDE, Answer::stream("data: {\"type\":\"message_start\",\"message\":7}\n\n")),
        ("wrong types", GPT, Answer::stream("data: {\"choices\":{\"a\":1}}\n\n")),
        ("a negative count", GPT, Answer::stream("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":-1}}\n\n")),
        ("no start", CLAUDE, Answer::stream(&events(std::slice::from_ref(&stop)))),
        ("two starts", CLAUDE, Answer::stream(&events(&[claude_start(), claude_start()]))),
        ("deep nesting", GPT, Answer::stream(&format!("data: {}\n\n", "[".repeat(100_000)))),
        (
            "a tool stop without a tool",
            GPT,
            Answer::stream(&gpt_stream(&[chunk(json!({}), Some("tool_calls")), gpt_usage()], "data: [DONE]\n\n")),
        ),
        ("a second answer", GPT, Answer::stream("data: {\"choices\":[{\"index\":1,\"delta\":{}}]}\n\n")),
        (
            "a part out of nowhere",
            CLAUDE,
            Answer::stream(&events(&[
                claude_start(),
                json!({ "type": "content_block_delta", "index": 3, "delta": { "type": "text_delta", "text": "x" } }),
            ])),
        ),
        ("a line of 100 MB", CLAUDE, Answer::stream(&format!("data: {}", "x".repeat(100_000_000)))),
    ] {
        let failure = fails(model, answer).await;
        assert_eq!(failure.class, FaultClass::Malformed, "{what}: {failure:?}");
    }
    let failure = fails(CLAUDE, Answer::raw("SSH-2.0-OpenSSH_9.9\r\n")).await;
    assert_eq!(failure.class, FaultClass::Reset, "not HTTP at all");
    let not_utf8 = [Answer::stream("").bytes, b"data: {\"type\":\"ping\xff\"}\n\n".to_vec()].concat();
    assert_eq!(fails(CLAUDE, Answer::raw(not_utf8)).await.class, FaultClass::Malformed);
}

#[tokio::test]
async fn a_reply_says_why_it_stopped() {
    for (reason, expected) in [
        ("end_turn", StopReason::EndTurn),
        ("stop_sequence", StopReason::EndTurn),
        ("max_tokens", StopReason::MaxTokens),
        ("refusal", StopReason::Refusal),
        ("pause_turn", StopReason::Pause),
        ("model_context_window_exceeded", StopReason::ContextWindow),
    ] {
        let stream = events(&[
            claude_start(),
            json!({ "type": "message_delta", "delta": { "stop_reason": reason }, "usage": { "output_tokens": 0 } }),
            json!({ "type": "message_stop" }),
        ]);
        let reply = ask_as(CLAUDE, Answer::stream(&stream)).await.0.expect(reason);
        assert_eq!((reply.stop_reason, reply.usage.output_tokens), (expected, 0), "zero is a count, not an absence");
    }
    for (reason, expected) in
        [("stop", StopReason::EndTurn), ("length", StopReason::MaxTokens), ("content_filter", StopReason::Refusal)]
    {
        let stream = gpt_stream(&[chunk(json!({ "content": "x" }), Some(reason)), gpt_usage()], "");
        let reply = ask_as(GPT, Answer::stream(&stream)).await.0.expect(reason);
        assert_eq!(reply.stop_reason, expected);
    }
}

#[tokio::test]
async fn a_count_that_never_came_is_bounded_and_marked() {
    let stream = gpt_stream(&[chunk(json!({ "content": "x" }), Some("stop"))], "data: [DONE]\n\n");
    let reply = ask_as(GPT, Answer::stream(&stream)).await.0.expect("a reply");
    assert!(!reply.usage_reported);
    assert!(reply.usage.input_tokens > HIDDEN_INPUT_TOKENS, "{:?}", reply.usage);
    assert_eq!(reply.usage.output_tokens, 1 + 256);
}

#[tokio::test]
async fn a_call_that_cannot_be_made_costs_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    drop(listener);
    let models = models(&url);
    let request = request(&models, CLAUDE);
    let key = SecretString::from(KEY);
    let call = |key| models.call(&request, key, None, CancellationToken::new());
    let failure = call(Some(&key)).await.expect_err("nobody listens");
    assert_eq!((failure.class, failure.charged), (FaultClass::Connect, Charge::Nothing));
    let failure = call(None).await.expect_err("no key");
    assert_eq!((failure.class, failure.charged), (FaultClass::Auth, Charge::Nothing));
    let failure = call(Some(&SecretString::from("canary\n7c1e9d"))).await.expect_err("not a key");
    assert_eq!((failure.class, failure.charged), (FaultClass::Auth, Charge::Nothing));
    assert!(!format!("{failure:?} {models:?}").contains("canary"));
    // Plain HTTP where TLS is expected.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let url = format!("https://{}", listener.local_addr().expect("address"));
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("client");
        let _ = socket.read(&mut [0; 8192]).await;
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("client");
    });
    let models = self::models(&url);
    let failure = models.call(&request, Some(&key), None, CancellationToken::new()).await.expect_err("no TLS there");
    served.await.expect("server");
    assert_eq!(failure.class, FaultClass::Tls, "{failure:?}");
    assert_eq!(failure.charged, Charge::Nothing);
}

#[tokio::test]
async fn cancelling_ends_the_call_and_closes_the_connection() {
    let (url, served) = provider(Answer::stream(&events(&claude_events()[..8])).then(Then::Hang)).await;
    let models = models(&url);
    let (cancel, key) = (CancellationToken::new(), SecretString::from(KEY));
    let (sender, mut words) = mpsc::channel(8);
    let request = request(&models, CLAUDE);
    let call = models.call(&request, Some(&key), Some(sender), cancel.clone());
    let (outcome, ()) = tokio::join!(call, async {
        words.recv().await.expect("it speaks");
        cancel.cancel();
    });
    let failure = outcome.expect_err("cancelled");
    assert_eq!((failure.class, failure.failure.code), (FaultClass::Cancelled, FailureCode::Cancelled));
    assert!(matches!(failure.charged, Charge::Usage(usage) if usage.input_tokens == 11));
    tokio::time::timeout(Duration::from_secs(10), served).await.expect("the connection is closed").expect("server");
    let failure = models.call(&request, Some(&key), None, cancel).await.expect_err("cancelled before");
    assert_eq!(failure.charged, Charge::Nothing);
}
