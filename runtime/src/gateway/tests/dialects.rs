//! The three dialects, as callers and providers use them.

use serde_json::Value;

use super::house::Plan;

/// The three dialects, as callers use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Messages,
    Chat,
    Responses,
}

pub const ALL: [Speaks; 3] = [Speaks::Messages, Speaks::Chat, Speaks::Responses];

impl Speaks {
    pub const fn path(self) -> &'static str {
        match self {
            Self::Messages => "/v1/messages",
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
        }
    }

    pub const fn model(self) -> &'static str {
        match self {
            Self::Messages => "claude-sonnet-4-6",
            Self::Chat | Self::Responses => "gpt-5",
        }
    }

    pub fn request(self, stream: bool) -> String {
        match self {
            Self::Messages => format!(
                r#"{{"model":"claude-sonnet-4-6","max_tokens":4096,"stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#
            ),
            Self::Chat => format!(
                r#"{{"model":"gpt-5","max_completion_tokens":4096,"stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#
            ),
            Self::Responses => {
                format!(r#"{{"model":"gpt-5","max_output_tokens":4096,"stream":{stream},"input":"hi"}}"#)
            }
        }
    }

    /// The events of a whole reply: 10 tokens read, 5 written, "Grüezi 🏔".
    pub fn events(self) -> Vec<String> {
        let event = |json: &str| {
            let value: Value = serde_json::from_str(json).expect("JSON");
            match self {
                Self::Chat => format!("data: {json}\n\n"),
                _ => format!("event: {}\ndata: {json}\n\n", value["type"].as_str().expect("a type")),
            }
        };
        match self {
            Self::Messages => [
                r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"usage":{"input_tokens":10,"output_tokens":1}}}"#,
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Grüezi "}}"#,
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"🏔"}}"#,
                r#"{"type":"content_block_stop","index":0}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":5}}"#,
                r#"{"type":"message_stop"}"#,
            ]
            .map(event)
            .to_vec(),
            Self::Chat => [
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[{"index":0,"delta":{"content":"Grüezi "},"finish_reason":null}],"usage":null}"#,
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[{"index":0,"delta":{"content":"🏔"},"finish_reason":null}],"usage":null}"#,
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#,
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}"#,
            ]
            .map(event)
            .into_iter()
            .chain(["data: [DONE]\n\n".to_owned()])
            .collect(),
            Self::Responses => [
                r#"{"type":"response.created","sequence_number":0,"response":{"id":"resp_1","status":"in_progress","usage":null}}"#,
                r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"message","id":"i1","content":[]}}"#,
                r#"{"type":"response.output_text.delta","output_index":0,"delta":"Grüezi "}"#,
                r#"{"type":"response.output_text.delta","output_index":0,"delta":"🏔"}"#,
                r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"message","id":"i1","content":[{"type":"output_text","text":"Grüezi 🏔"}]}}"#,
                r#"{"type":"response.completed","response":{"id":"resp_1","object":"response","status":"completed","output":[{"type":"message","id":"i1","content":[{"type":"output_text","text":"Grüezi 🏔"}]}],"usage":{"input_tokens":10,"output_tokens":5,"total_tokens":15}}}"#,
            ]
            .map(event)
            .to_vec(),
        }
    }

    pub fn whole(self) -> String {
        self.events().concat()
    }

    /// What the whole reply costs, in nano-dollars.
    pub const fn cost(self) -> i64 {
        match self {
            Self::Messages => 10 * 3_000 + 5 * 15_000,
            Self::Chat | Self::Responses => 10 * 1_250 + 5 * 10_000,
        }
    }

    /// An error in the middle of a stream.
    pub fn error(self, kind: &str, message: &str) -> String {
        match self {
            Self::Messages => format!(
                "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":\"{message}\"}}}}\n\n"
            ),
            Self::Chat => format!("data: {{\"error\":{{\"code\":\"{kind}\",\"message\":\"{message}\"}}}}\n\n"),
            Self::Responses => format!(
                "event: error\ndata: {{\"type\":\"error\",\"code\":\"{kind}\",\"message\":\"{message}\",\"param\":null}}\n\n"
            ),
        }
    }

    /// The model's words in a reply without a stream.
    pub fn words(self, reply: &Value) -> String {
        let pointer = match self {
            Self::Messages => "/content/0/text",
            Self::Chat => "/choices/0/message/content",
            Self::Responses => "/output/0/content/0/text",
        };
        reply.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no words in {reply}")).to_owned()
    }

    pub fn plan(self) -> Plan {
        Plan { model: self.model(), ..Plan::default() }
    }
}
