//! The script: which conversation, which turn, what is said, and what it counts for.

use orchestra_events::task::conversation::Usage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The conversations that the model can have. The first whose `match` occurs in the first user message is played.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Script(Vec<Conversation>);

/// One conversation.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Conversation {
    /// What the first user message must contain; everything contains the empty text.
    #[serde(rename = "match")]
    pub matches: String,
    /// What the model says, in order. A request with n assistant messages in it gets turn n.
    pub turns: Vec<Turn>,
}

/// One turn of the model.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Turn {
    /// Reasoning before the words.
    pub thinking: Option<String>,
    /// Words.
    pub text: Option<String>,
    /// Tools it asks for.
    #[serde(default)]
    pub tools: Vec<Tool>,
    /// Why it stops, in Anthropic's words; `tool_use` with tools and `end_turn` without when absent.
    pub stop: Option<String>,
    /// What it counts for, where the size of request and answer is not to say.
    #[serde(default)]
    pub usage: CountedAs,
    /// The wait before anything is answered.
    pub delay_ms: Option<u64>,
    /// The wait before each event of a stream.
    pub pace_ms: Option<u64>,
    /// What goes wrong.
    pub fault: Option<Fault>,
}

/// A tool call.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tool {
    /// The tool.
    pub name: String,
    /// Its input.
    #[serde(default)]
    pub input: Value,
    /// Its input as the model writes it, which need not be JSON.
    pub raw_input: Option<String>,
}

impl Tool {
    /// The input as it goes over the wire.
    pub fn written(&self) -> String {
        match &self.raw_input {
            Some(raw) => raw.clone(),
            None if self.input.is_null() => "{}".into(),
            None => self.input.to_string(),
        }
    }
}

/// Tokens in place of those that sizes would give.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CountedAs {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_tokens: Option<u64>,
    cache_write5m_tokens: Option<u64>,
    cache_write1h_tokens: Option<u64>,
}

/// What goes wrong, and how often.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// The status of `status`; 500 when absent.
    pub status: Option<u16>,
    /// The `Retry-After` of `status`, as it stands.
    pub retry_after: Option<String>,
    /// The error's code of `status`, such as `insufficient_quota`.
    pub code: Option<String>,
    /// The error's sentence.
    pub message: Option<String>,
    /// How often it happens in one conversation before the turn is played; always when absent.
    pub times: Option<u64>,
}

/// The ways of going wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    /// An HTTP error.
    Status,
    /// The stream ends properly half-way.
    Truncate,
    /// The connection breaks half-way.
    Reset,
    /// The stream falls silent half-way.
    Stall,
    /// Nothing is ever answered.
    Hang,
    /// A page in HTML, with status 200.
    Garbage,
    /// A line of the stream is not JSON.
    BadJson,
    /// An empty stream.
    Empty,
    /// An error event in place of the first event.
    ErrorFirst,
    /// An error event half-way.
    ErrorEvent,
    /// All of it, without what it counts for.
    NoUsage,
}

impl FaultKind {
    /// Whether a provider that fails in this way has done nothing that it would bill.
    pub fn before_any_work(self) -> bool {
        matches!(self, Self::Status | Self::Hang | Self::Garbage | Self::Empty | Self::ErrorFirst)
    }
}

impl Script {
    /// The conversation for a first message, and its name.
    pub fn find(&self, first_message: &str) -> Option<(&str, &Conversation)> {
        self.0.iter().map(|one| (&*one.matches, one)).find(|(matches, _)| first_message.contains(matches))
    }
}

/// What of a request matters.
#[derive(Debug, Clone)]
pub struct Asked {
    pub model: String,
    pub stream: bool,
    pub include_usage: bool,
    pub max_tokens: u64,
    /// What the user said before the model said anything. Some clients put a message of their own before it.
    pub first_message: String,
    /// How often the model has spoken already.
    pub turn: usize,
    /// Whether the client asks for a title of the conversation, beside it.
    pub for_title: bool,
    /// The tools that a call names in another way than most, in the Responses dialect.
    pub special_tools: Vec<SpecialTool>,
}

/// A tool of the Responses dialect whose input is text, or that is in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialTool {
    pub name: String,
    pub namespace: Option<String>,
    pub takes_text: bool,
}

/// Most tools of a request that are looked at.
const MAX_TOOLS: usize = 1_000;

fn special_tools(body: &Value) -> Vec<SpecialTool> {
    let lists = body["input"].as_array().into_iter().flatten().map(|item| &item["tools"]);
    let tools = lists.chain([&body["tools"]]).filter_map(Value::as_array).flatten();
    let mut found = Vec::new();
    for tool in tools.take(MAX_TOOLS) {
        let named = tool["name"].as_str().filter(|_| tool["type"] == "namespace");
        let within =
            tool["tools"].as_array().filter(|_| named.is_some()).map_or(std::slice::from_ref(tool), Vec::as_slice);
        for tool in within.iter().take(MAX_TOOLS) {
            let takes_text = tool["type"] == "custom" && tool["input_schema"].is_null();
            if let Some(name) = tool["name"].as_str().filter(|_| takes_text || named.is_some()) {
                found.push(SpecialTool { name: name.to_owned(), namespace: named.map(str::to_owned), takes_text });
            }
        }
    }
    found
}

impl Asked {
    /// Reads any dialect; Anthropic's and the older one of OpenAI agree on everything that is looked at.
    pub fn read(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let number = |name: &str| body.get(name).and_then(Value::as_u64);
        let limit = ["max_completion_tokens", "max_output_tokens", "max_tokens"].iter().find_map(|name| number(name));
        let (first_message, turn) = match (&body["messages"], &body["input"]) {
            (Value::Array(messages), _) => (first_message(messages), spoken(messages)),
            (_, Value::Array(items)) => (opening(items), spoken_items(items)),
            (_, Value::String(text)) => (text.clone(), 0),
            _ => return None,
        };
        Some(Self {
            model: body.get("model").and_then(Value::as_str).unwrap_or_default().to_owned(),
            stream: body["stream"] == true,
            include_usage: body["stream_options"]["include_usage"] == true,
            max_tokens: limit.unwrap_or(u64::MAX),
            first_message,
            turn,
            for_title: body["tools"].as_array().is_none_or(Vec::is_empty) && system(&body).contains(TITLE),
            special_tools: special_tools(&body),
        })
    }
}

/// What the system prompt of a request for a title says, in every client that makes one.
const TITLE: &str = "title generator";

/// The system prompt, wherever the dialect has it.
fn system(body: &Value) -> String {
    let said = |message: &&Value| matches!(message["role"].as_str(), Some("system" | "developer"));
    let among = body["messages"].as_array().or(body["input"].as_array()).into_iter().flatten().filter(said);
    let within = among.map(|message| words(&message["content"]));
    let apart = [words(&body["system"]), words(&body["instructions"])];
    apart.into_iter().chain(within).collect::<Vec<_>>().join("\n")
}

fn first_message(messages: &[Value]) -> String {
    let first = messages.iter().find(|message| message["role"] == "user");
    first.map(|message| words(&message["content"])).unwrap_or_default()
}

fn spoken(messages: &[Value]) -> usize {
    messages.iter().filter(|message| message["role"] == "assistant").count()
}

/// Whether an item of the Responses dialect is the model's. One answer is one or several of them in a row.
fn is_models(item: &Value) -> bool {
    let kind = item["type"].as_str().unwrap_or("message");
    item["role"] == "assistant" || kind == "reasoning" || (kind.ends_with("_call") && item["role"].is_null())
}

/// All that the user's side said before the model: some clients open with a message about the machine.
fn opening(items: &[Value]) -> String {
    let before = items.iter().take_while(|item| !is_models(item));
    let users = before.filter(|item| item["role"] == "user");
    users.map(|item| words(&item["content"])).collect::<Vec<_>>().join("\n")
}

fn spoken_items(items: &[Value]) -> usize {
    let models: Vec<bool> = items.iter().map(is_models).collect();
    usize::from(models.first() == Some(&true)) + models.windows(2).filter(|two| !two[0] && two[1]).count()
}

fn words(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

/// A turn as it is played to one request.
#[derive(Debug, Clone)]
pub struct Played {
    pub thinking: Option<String>,
    pub text: Option<String>,
    pub tools: Vec<Tool>,
    pub stop: String,
    pub usage: Usage,
    pub count: bool,
}

/// Four bytes make a token.
pub fn tokens(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}

impl Played {
    /// The answer to a question that no script is about.
    pub fn aside(asked: &Asked, body_bytes: usize) -> Self {
        let turn = Turn { text: Some("A task for the scripted model".into()), ..Turn::default() };
        Self::new(&turn, asked, body_bytes)
    }

    /// Plays a turn. Like any provider it keeps to the request's output limit: what does not fit is cut off.
    pub fn new(turn: &Turn, asked: &Asked, body_bytes: usize) -> Self {
        let said = |part: &Option<String>| part.as_ref().map_or(0, String::len);
        let written: usize = turn.tools.iter().map(|tool| tool.name.len() + tool.written().len()).sum();
        let counted = &turn.usage;
        let output = counted.output_tokens.unwrap_or(1 + tokens(said(&turn.thinking) + said(&turn.text) + written));
        let usage = Usage {
            input_tokens: counted.input_tokens.unwrap_or(tokens(body_bytes)),
            output_tokens: output.min(asked.max_tokens),
            cache_read_tokens: counted.cache_read_tokens.unwrap_or(0),
            cache_write5m_tokens: counted.cache_write5m_tokens.unwrap_or(0),
            cache_write1h_tokens: counted.cache_write1h_tokens.unwrap_or(0),
        };
        let mut played = Self {
            thinking: turn.thinking.clone(),
            text: turn.text.clone(),
            tools: turn.tools.clone(),
            stop: turn
                .stop
                .clone()
                .unwrap_or_else(|| if turn.tools.is_empty() { "end_turn".into() } else { "tool_use".into() }),
            usage,
            count: true,
        };
        if output > asked.max_tokens {
            let room = usize::try_from(asked.max_tokens).unwrap_or(usize::MAX).saturating_mul(4);
            played.text = played.text.map(|text| text.chars().take(room).collect());
            played.tools.clear();
            played.stop = "max_tokens".into();
        }
        played
    }

    /// The text in the pieces it is streamed in.
    pub fn pieces(text: &str) -> Vec<String> {
        let letters: Vec<char> = text.chars().collect();
        letters.chunks(24).map(|piece| piece.iter().collect()).collect()
    }
}
