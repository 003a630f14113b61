//! Anthropic's Messages API: the request, and the streamed reply.
//!
//! Usage comes twice: `message_start` has the input and its cache split, `message_delta` has cumulative counts. A later
//! count overwrites an earlier one, also with zero; an absent one leaves it.

use orchestra_events::blob::Content;
use orchestra_events::task::conversation::{Block, StopReason, Turn, UserPart};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::ErrorBody;
use super::sse::Event;
use super::wire::{self, Assembly, Counted, Fault, Limit, MAX_PARTS, Progress};
use super::{ModelFailure, ModelRequest, inline};

/// The version of the API that this file is written to.
pub(crate) const VERSION: &str = "2023-06-01";

/// Marks a thinking block that came encrypted as a whole, in the place of its signature.
const REDACTED: &str = "redacted_thinking:";

pub(super) fn encode(request: &ModelRequest, limit: Limit) -> Result<Value, ModelFailure> {
    let mut messages = Vec::with_capacity(request.conversation.len());
    for turn in &request.conversation {
        messages.push(match turn {
            Turn::User(parts) => json!({ "role": "user", "content": user(parts)? }),
            Turn::Assistant(blocks) => json!({ "role": "assistant", "content": assistant(blocks)? }),
        });
    }
    // The conversation up to here is read again by the next call: keep it.
    let last =
        messages.last_mut().and_then(|message| message["content"].as_array_mut()).and_then(|parts| parts.last_mut());
    if let Some(part) = last
        && !matches!(part["type"].as_str(), Some("thinking" | "redacted_thinking"))
    {
        part["cache_control"] = json!({ "type": "ephemeral" });
    }
    let mut body = json!({
        "model": request.model.model_id,
        "max_tokens": limit.tokens,
        "stream": true,
        "messages": messages,
    });
    if limit.standard_tier {
        body["service_tier"] = "standard_only".into();
    }
    if !request.system.is_empty() {
        let cached = json!({ "type": "ephemeral" });
        body["system"] = json!([{ "type": "text", "text": request.system, "cache_control": cached }]);
    }
    if !request.tools.is_empty() {
        body["tools"] = request
            .tools
            .iter()
            .map(
                |tool| json!({ "name": tool.name, "description": tool.description, "input_schema": tool.input_schema }),
            )
            .collect();
    }
    Ok(body)
}

fn user(parts: &[UserPart]) -> Result<Vec<Value>, ModelFailure> {
    let mut content = Vec::with_capacity(parts.len());
    // The API wants every result before the first word.
    for part in parts {
        if let UserPart::ToolResult { tool_call, output, is_error } = part {
            content.push(json!({
                "type": "tool_result", "tool_use_id": tool_call, "content": inline(output)?, "is_error": is_error,
            }));
        }
    }
    for part in parts {
        if let UserPart::Text { text } = part
            && !text.trim().is_empty()
        {
            content.push(json!({ "type": "text", "text": text }));
        }
    }
    if content.is_empty() {
        content.push(json!({ "type": "text", "text": "(nothing)" }));
    }
    Ok(content)
}

fn assistant(blocks: &[Block]) -> Result<Vec<Value>, ModelFailure> {
    let mut content = Vec::with_capacity(blocks.len());
    for block in blocks {
        match block {
            Block::Text { text } => {
                let text = inline(text)?;
                if !text.trim().is_empty() {
                    content.push(json!({ "type": "text", "text": text }));
                }
            }
            Block::Thinking { text, signature: Some(signature) } => {
                content.push(match signature.strip_prefix(REDACTED) {
                    Some(data) => json!({ "type": "redacted_thinking", "data": data }),
                    None => json!({ "type": "thinking", "thinking": inline(text)?, "signature": signature }),
                });
            }
            // Without its signature the API does not take it back.
            Block::Thinking { signature: None, .. } => {}
            Block::ToolUse { id, name, input, malformed } => {
                let input = wire::input_again(input, malformed.as_ref());
                content.push(json!({ "type": "tool_use", "id": id, "name": name, "input": input }));
            }
        }
    }
    if content.is_empty() {
        content.push(json!({ "type": "text", "text": "(nothing)" }));
    }
    Ok(content)
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StreamEvent {
    MessageStart {
        message: Started,
    },
    ContentBlockStart {
        index: u64,
        content_block: StartedBlock,
    },
    ContentBlockDelta {
        index: u64,
        delta: Delta,
    },
    ContentBlockStop {
        index: u64,
    },
    MessageDelta {
        delta: Stopped,
        usage: Option<WireUsage>,
    },
    MessageStop,
    Error {
        error: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Started {
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StartedBlock {
    Text {
        #[serde(default)]
        text: String,
    },
    Thinking {
        #[serde(default)]
        thinking: String,
        #[serde(default)]
        signature: String,
    },
    RedactedThinking {
        data: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[serde(default)]
        input: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "signature_delta")]
    Signature { signature: String },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Stopped {
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation: Option<CacheCreation>,
}

#[derive(Deserialize)]
struct CacheCreation {
    ephemeral_5m_input_tokens: Option<u64>,
    ephemeral_1h_input_tokens: Option<u64>,
}

enum Draft {
    Text(String),
    Thinking { text: String, signature: String },
    Redacted(String),
    ToolUse { id: String, name: String, input: Value, raw: String },
    Unknown,
}

/// A reply on the way.
#[derive(Default)]
pub(super) struct Reply {
    started: bool,
    counted: Counted,
    drafts: Vec<(u64, Draft)>,
    stop: Option<String>,
    whole: bool,
}

impl Reply {
    fn count(&mut self, usage: WireUsage) {
        let keep = |kept: &mut Option<u64>, reported: Option<u64>| *kept = reported.or(*kept);
        keep(&mut self.counted.input, usage.input_tokens);
        keep(&mut self.counted.output, usage.output_tokens);
        keep(&mut self.counted.cache_read, usage.cache_read_input_tokens);
        keep(&mut self.counted.cache_write, usage.cache_creation_input_tokens);
        if let Some(split) = usage.cache_creation {
            keep(&mut self.counted.cache_write5m, split.ephemeral_5m_input_tokens);
            keep(&mut self.counted.cache_write1h, split.ephemeral_1h_input_tokens);
        }
    }

    fn draft(&mut self, index: u64) -> Option<&mut Draft> {
        self.drafts.iter_mut().rev().find(|(at, _)| *at == index).map(|(_, draft)| draft)
    }
}

impl Assembly for Reply {
    fn take(&mut self, event: &Event, say: &mut (dyn FnMut(&str) + Send)) -> Result<Progress, Fault> {
        let event: StreamEvent = serde_json::from_slice(&event.data)
            .map_err(|_| Fault::malformed("sent an event that is not in Anthropic's dialect"))?;
        if !self.started
            && !matches!(event, StreamEvent::MessageStart { .. } | StreamEvent::Error { .. } | StreamEvent::Other)
        {
            return Err(Fault::malformed("began its reply in the middle"));
        }
        match event {
            StreamEvent::MessageStart { message } => {
                if std::mem::replace(&mut self.started, true) {
                    return Err(Fault::malformed("began its reply twice"));
                }
                message.usage.into_iter().for_each(|usage| self.count(usage));
            }
            StreamEvent::ContentBlockStart { index, content_block } => {
                if self.drafts.len() >= MAX_PARTS || self.draft(index).is_some() {
                    return Err(Fault::malformed("sent too many parts, or the same one twice"));
                }
                let draft = match content_block {
                    StartedBlock::Text { text } => {
                        if !text.is_empty() {
                            say(&text);
                        }
                        Draft::Text(text)
                    }
                    StartedBlock::Thinking { thinking, signature } => Draft::Thinking { text: thinking, signature },
                    StartedBlock::RedactedThinking { data } => Draft::Redacted(data),
                    StartedBlock::ToolUse { id, name, input } => Draft::ToolUse { id, name, input, raw: String::new() },
                    StartedBlock::Other => Draft::Unknown,
                };
                self.counted.hidden_output |=
                    matches!(draft, Draft::Thinking { .. } | Draft::Redacted(_) | Draft::Unknown);
                self.drafts.push((index, draft));
            }
            StreamEvent::ContentBlockDelta { index, delta } => {
                let bytes = match &delta {
                    Delta::Text { text: words }
                    | Delta::InputJson { partial_json: words }
                    | Delta::Thinking { thinking: words } => words.len(),
                    Delta::Signature { .. } | Delta::Other => 0,
                };
                self.counted.output_bytes = self.counted.output_bytes.saturating_add(bytes as u64);
                let draft = self.draft(index).ok_or_else(|| Fault::malformed("continued a part it had not begun"))?;
                match (draft, delta) {
                    (Draft::Text(text), Delta::Text { text: more }) => {
                        say(&more);
                        text.push_str(&more);
                    }
                    (Draft::Thinking { text, .. }, Delta::Thinking { thinking }) => text.push_str(&thinking),
                    (Draft::Thinking { signature, .. }, Delta::Signature { signature: more }) => {
                        signature.push_str(&more);
                    }
                    (Draft::ToolUse { raw, .. }, Delta::InputJson { partial_json }) => raw.push_str(&partial_json),
                    // Something newer than this program.
                    (Draft::Unknown, _) | (_, Delta::Other) => {}
                    _ => return Err(Fault::malformed("continued a part with one of another kind")),
                }
            }
            StreamEvent::ContentBlockStop { index } => {
                self.draft(index).ok_or_else(|| Fault::malformed("ended a part it had not begun"))?;
            }
            StreamEvent::MessageDelta { delta, usage } => {
                // Without a count here, the one of the beginning is all there is, and it is not the last word.
                let counted = usage.as_ref().is_some_and(|usage| usage.output_tokens.is_some());
                usage.into_iter().for_each(|usage| self.count(usage));
                if delta.stop_reason.is_some() {
                    self.stop = delta.stop_reason;
                    self.counted.output_final = counted;
                }
            }
            StreamEvent::MessageStop => {
                self.whole = true;
                return Ok(Progress::Whole);
            }
            StreamEvent::Error { error } => {
                return Err(Fault::reported("broke off with an error", ErrorBody::from_value(&error)));
            }
            StreamEvent::Other => {}
        }
        Ok(Progress::More)
    }

    fn end(&self) -> Result<(), Fault> {
        if self.whole { Ok(()) } else { Err(Fault::truncated()) }
    }

    fn started(&self) -> bool {
        self.started
    }

    fn counted(&self) -> &Counted {
        &self.counted
    }

    fn finish(self: Box<Self>) -> Result<(Vec<Block>, StopReason), Fault> {
        self.end()?;
        let stop = match self.stop.as_deref() {
            Some("end_turn" | "stop_sequence") => StopReason::EndTurn,
            Some("tool_use") => StopReason::ToolUse,
            Some("max_tokens") => StopReason::MaxTokens,
            Some("refusal") => StopReason::Refusal,
            Some("model_context_window_exceeded") => StopReason::ContextWindow,
            Some("pause_turn") => StopReason::Pause,
            Some(_) => return Err(Fault::malformed("stopped for a reason this version does not know")),
            None => return Err(Fault::truncated()),
        };
        let mut drafts = self.drafts;
        drafts.sort_by_key(|(index, _)| *index);
        let content = drafts
            .into_iter()
            .filter_map(|(_, draft)| match draft {
                Draft::Text(words) => Some(wire::text(words)),
                Draft::Thinking { text, signature } => Some(Block::Thinking {
                    text: Content::Inline(text),
                    signature: (!signature.is_empty()).then_some(signature),
                }),
                Draft::Redacted(data) => Some(Block::Thinking {
                    text: Content::Inline(String::new()),
                    signature: Some(format!("{REDACTED}{data}")),
                }),
                Draft::ToolUse { id, name, input, raw } => {
                    let at_once = raw.is_empty() && input.as_object().is_some_and(|input| !input.is_empty());
                    Some(wire::tool_use(id, name, if at_once { input.to_string() } else { raw }))
                }
                Draft::Unknown => None,
            })
            .collect();
        wire::whole(content, stop)
    }
}
