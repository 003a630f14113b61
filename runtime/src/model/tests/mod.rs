//! Calls over a real socket: a server that answers what it is told to, byte by byte.

mod faults;
mod replies;

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
