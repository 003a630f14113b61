//! What both dialects share: encoding a request, and gathering a streamed reply.

use orchestra_events::blob::Content;
use orchestra_events::task::conversation::{Block, StopReason, Usage};
use serde_json::{Value, json};

use super::fault::{ErrorBody, FaultClass};
use super::provider::Dialect;
use super::sse::Event;
use super::{Charge, ModelFailure, ModelRequest, anthropic, openai};

/// A reply has at most so many parts.
pub(crate) const MAX_PARTS: usize = 512;

/// The longest id or name of a tool call.
pub(super) const MAX_NAME_BYTES: usize = 256;

/// Added to the output that was seen of a broken stream: what may have been written but not arrived.
pub(super) const UNSEEN_OUTPUT_TOKENS: u64 = 256;

/// The output limit as it is sent, and what else depends on who is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub tokens: u64,
    /// Whether the server knows `max_completion_tokens` (OpenAI's own) rather than `max_tokens`.
    pub renamed: bool,
    /// Whether to name the standard service tier: only the two providers themselves bill others, and an account's own
    /// default could otherwise double the price.
    pub standard_tier: bool,
}

pub(super) fn encode(request: &ModelRequest, limit: Limit) -> Result<Vec<u8>, ModelFailure> {
    let body = match request.model.dialect {
        Dialect::Anthropic => anthropic::encode(request, limit)?,
        Dialect::OpenaiChat => openai::encode(request, limit)?,
        Dialect::OpenaiResponses => {
            let message = format!(
                "{} is configured with dialect openai-responses, which the built-in agent does not speak",
                request.model.provider
            );
            return Err(ModelFailure::new(FaultClass::Unsupported, Charge::Nothing, message));
        }
    };
    Ok(body.to_string().into_bytes())
}

/// A fault found in a stream, before it is known what the stream has cost.
#[derive(Debug)]
pub(crate) struct Fault {
    pub class: FaultClass,
    /// Completes a sentence that starts with the provider's name.
    pub what: String,
    /// What the provider itself says about it.
    pub reported: Option<ErrorBody>,
}

impl Fault {
    pub fn new(class: FaultClass, what: impl Into<String>) -> Self {
        Self { class, what: what.into(), reported: None }
    }

    pub fn malformed(what: impl Into<String>) -> Self {
        Self::new(FaultClass::Malformed, what)
    }

    /// The provider reports an error, after a status that promised none.
    pub fn reported(what: &str, body: ErrorBody) -> Self {
        Self { class: body.class(), what: what.into(), reported: Some(body) }
    }

    pub fn truncated() -> Self {
        Self::new(FaultClass::Truncated, "ended its reply before it was whole")
    }
}

/// Whether more is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Whole,
}

/// Gathers one reply, event by event.
pub(super) trait Assembly: Send + Sync {
    /// Takes the next event. Words are passed to `say` as they come.
    fn take(&mut self, event: &Event, say: &mut (dyn FnMut(&str) + Send)) -> Result<Progress, Fault>;
    /// The connection has ended properly: is the reply whole all the same?
    fn end(&self) -> Result<(), Fault>;
    /// Whether the provider has begun to work on it.
    fn started(&self) -> bool;
    /// What was counted so far.
    fn counted(&self) -> &Counted;
    /// The reply.
    fn finish(self: Box<Self>) -> Result<(Vec<Block>, StopReason), Fault>;
}

/// The provider's counts as they come, and what was seen of the output.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counted {
    pub input: Option<u64>,
    pub output: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    pub cache_write5m: Option<u64>,
    pub cache_write1h: Option<u64>,
    /// Whether `output` is the last word, not a count on the way.
    pub output_final: bool,
    pub output_bytes: u64,
    /// Whether the provider may bill output that it does not show: reasoning, whole or in summary.
    pub hidden_output: bool,
}

impl Counted {
    /// The usage, and whether all of it was reported. What was not is bounded: by the request's own bound for the input,
    /// by the bytes that came for the output, or by its limit where not all of it is shown.
    pub fn settle(&self, input_bound: u64, max_output: u64) -> (Usage, bool) {
        let (cache_write5m_tokens, cache_write1h_tokens) = self.cache_writes();
        let output_tokens = match self.output {
            Some(output) if self.output_final => output,
            reported => {
                let reported = reported.unwrap_or(0);
                let seen = self.output_bytes.saturating_add(UNSEEN_OUTPUT_TOKENS).min(max_output);
                reported.max(if self.hidden_output { max_output } else { seen })
            }
        };
        let usage = Usage {
            input_tokens: self.input.unwrap_or(input_bound),
            output_tokens,
            cache_read_tokens: self.cache_read.unwrap_or(0),
            cache_write5m_tokens,
            cache_write1h_tokens,
        };
        (usage, self.input.is_some() && self.output.is_some() && self.output_final)
    }

    /// The split is reported once, the total again and again: what the split does not explain was written for five
    /// minutes, and a split that is larger than the total is not believed.
    fn cache_writes(&self) -> (u64, u64) {
        let (short, long) = (self.cache_write5m.unwrap_or(0), self.cache_write1h.unwrap_or(0));
        match (self.cache_write, short.checked_add(long)) {
            (None, _) => (short, long),
            (Some(total), Some(split)) if split <= total => (total - long, long),
            (Some(total), _) => (0, total),
        }
    }
}

/// A tool call from what the model wrote for its input. Nothing at all means no arguments.
pub(super) fn tool_use(id: String, name: String, raw: String) -> Block {
    if raw.trim().is_empty() {
        return Block::ToolUse { id, name, input: json!({}), malformed: None };
    }
    match serde_json::from_str::<Value>(&raw) {
        Ok(input @ Value::Object(_)) => Block::ToolUse { id, name, input, malformed: None },
        _ => Block::ToolUse { id, name, input: Value::Null, malformed: Some(raw) },
    }
}

/// The input of an earlier tool call as it is sent back: always an object, or providers refuse the conversation.
pub(super) fn input_again(input: &Value, malformed: Option<&String>) -> Value {
    match malformed {
        Some(raw) => json!({ "invalid_json": raw }),
        None if input.is_object() => input.clone(),
        None => json!({}),
    }
}

/// The checks that hold for a reply in any dialect, and the stop reason that fits its parts.
pub(super) fn whole(content: Vec<Block>, stop: StopReason) -> Result<(Vec<Block>, StopReason), Fault> {
    let mut ids = std::collections::HashSet::new();
    for block in &content {
        if let Block::ToolUse { id, name, .. } = block {
            if id.is_empty() || name.is_empty() || id.len() > MAX_NAME_BYTES || name.len() > MAX_NAME_BYTES {
                return Err(Fault::malformed("sent a tool call whose id or name is empty or too long"));
            }
            if !ids.insert(id.as_str()) {
                return Err(Fault::malformed("sent two tool calls with the same id"));
            }
        }
    }
    match stop {
        StopReason::EndTurn if !ids.is_empty() => Ok((content, StopReason::ToolUse)),
        StopReason::ToolUse if ids.is_empty() => Err(Fault::malformed("stopped for a tool without naming one")),
        stop => Ok((content, stop)),
    }
}

pub(super) fn text(text: String) -> Block {
    Block::Text { text: Content::Inline(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_merge_to_what_is_billed() {
        let counted = |write, short, long| Counted {
            input: Some(10),
            output: Some(5),
            output_final: true,
            cache_write: write,
            cache_write5m: short,
            cache_write1h: long,
            ..Counted::default()
        };
        for (write, short, long, expected) in [
            (None, None, None, (0, 0)),
            (Some(100), None, None, (100, 0)),
            (Some(100), Some(60), Some(40), (60, 40)),
            (Some(100), Some(10), Some(40), (60, 40)),
            (Some(100), Some(200), Some(40), (0, 100)),
            (None, Some(7), Some(3), (7, 3)),
            (Some(1), Some(u64::MAX), Some(u64::MAX), (0, 1)),
        ] {
            let (usage, reported) = counted(write, short, long).settle(1_000, 1_000);
            assert_eq!((usage.cache_write5m_tokens, usage.cache_write1h_tokens), expected);
            assert!(reported);
        }
    }

    #[test]
    fn what_was_not_counted_is_bounded() {
        let counted = Counted { input: Some(10), output: Some(1), output_bytes: 300, ..Counted::default() };
        assert_eq!(counted.settle(1_000, 10_000).0.output_tokens, 556);
        assert_eq!(counted.settle(1_000, 400).0.output_tokens, 400, "the limit binds what was not seen");
        let thinking = Counted { hidden_output: true, ..counted.clone() };
        assert_eq!(thinking.settle(1_000, 10_000).0.output_tokens, 10_000, "what is not shown is billed too");
        let exact = Counted { output_final: true, ..thinking };
        assert_eq!(exact.settle(1_000, 10_000).0.output_tokens, 1);
        let (usage, reported) = Counted::default().settle(1_000, 400);
        assert_eq!((usage.input_tokens, usage.output_tokens, reported), (1_000, 256, false));
    }

    #[test]
    fn a_tool_input_that_is_no_object_is_kept_as_it_was_written() {
        for (raw, malformed) in [("{\"a\": 1}", false), ("", false), ("{\"a\": ", true), ("[1]", true), ("7", true)] {
            let Block::ToolUse { input, malformed: kept, .. } = tool_use("i".into(), "n".into(), raw.into()) else {
                panic!("a tool call")
            };
            assert_eq!((kept.as_deref(), input.is_null()), (malformed.then_some(raw), malformed), "{raw}");
            assert!(input_again(&input, kept.as_ref()).is_object());
        }
    }
}
