//! Anthropic's Messages: the input is counted in `message_start`, the output cumulatively in `message_delta`. A later
//! count overwrites an earlier one, also with zero; an absent one leaves it. Only the first has the split of the cache
//! writes.

use orchestra_events::task::conversation::StopReason;
use serde::Deserialize;
use serde_json::Value;

use super::super::scan::{Length, Text};
use super::{Seen, Tally, is_newer, saw};
use crate::model::HostedTool;
use crate::model::fault::ErrorBody;
use crate::model::wire::Fault;

#[derive(Debug, Default)]
pub(super) struct Reader {
    started: bool,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    message: Option<Message>,
    content_block: Option<Block>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Message {
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<Length>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    stop_reason: Option<Text<'a>>,
    text: Option<Length>,
    partial_json: Option<Length>,
    thinking: Option<Length>,
}

#[derive(Deserialize)]
struct Usage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation: Option<CacheCreation>,
    server_tool_use: Option<ServerToolUse>,
}

#[derive(Deserialize)]
struct CacheCreation {
    ephemeral_5m_input_tokens: Option<u64>,
    ephemeral_1h_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct ServerToolUse {
    web_search_requests: Option<u64>,
    web_fetch_requests: Option<u64>,
}

fn count(usage: Usage, tally: &mut Tally) {
    let keep = |kept: &mut Option<u64>, reported: Option<u64>| *kept = reported.or(*kept);
    let counted = &mut tally.counted;
    keep(&mut counted.input, usage.input_tokens);
    keep(&mut counted.output, usage.output_tokens);
    keep(&mut counted.cache_read, usage.cache_read_input_tokens);
    keep(&mut counted.cache_write, usage.cache_creation_input_tokens);
    if let Some(split) = usage.cache_creation {
        keep(&mut counted.cache_write5m, split.ephemeral_5m_input_tokens);
        keep(&mut counted.cache_write1h, split.ephemeral_1h_input_tokens);
    }
    if let Some(used) = usage.server_tool_use {
        for (tool, uses) in
            [(HostedTool::WebSearch, used.web_search_requests), (HostedTool::WebFetch, used.web_fetch_requests)]
        {
            if let Some(uses) = uses {
                tally.tools.insert(tool, uses);
            }
        }
    }
}

pub(in crate::gateway) fn stop_reason(text: &str) -> Option<StopReason> {
    Some(match text {
        "end_turn" | "stop_sequence" => StopReason::EndTurn,
        "tool_use" => StopReason::ToolUse,
        "max_tokens" => StopReason::MaxTokens,
        "refusal" => StopReason::Refusal,
        "model_context_window_exceeded" => StopReason::ContextWindow,
        "pause_turn" => StopReason::Pause,
        // Newer than this version; the reply is whole all the same.
        _ => return None,
    })
}

fn is_known(kind: &str) -> bool {
    matches!(kind, "error" | "message_start" | "message_delta" | "message_stop") || kind.starts_with("content_block_")
}

impl Reader {
    pub fn take(&mut self, data: &[u8], tally: &mut Tally) -> Result<Seen, Fault> {
        let event: Event<'_> = match serde_json::from_slice(data) {
            Ok(event) => event,
            Err(_) if is_newer(data, is_known) => return Ok(if self.started { Seen::Part } else { Seen::Filler }),
            Err(_) => return Err(Fault::malformed("sent an event that is not in Anthropic's dialect")),
        };
        match &*event.kind.0 {
            "ping" => return Ok(Seen::Filler),
            "error" => {
                let error = event.error.unwrap_or_default();
                return Err(Fault::reported("broke off with an error", ErrorBody::from_value(&error)));
            }
            "message_start" => {
                if std::mem::replace(&mut self.started, true) {
                    return Err(Fault::malformed("began its reply twice"));
                }
                if let Some(usage) = event.message.and_then(|message| message.usage) {
                    count(usage, tally);
                }
            }
            "content_block_start" | "content_block_delta" | "content_block_stop" | "message_delta" | "message_stop"
                if !self.started =>
            {
                return Err(Fault::malformed("began its reply in the middle"));
            }
            "content_block_start" => {
                let block = event.content_block.ok_or_else(|| Fault::malformed("began a part without one"))?;
                let kind = block.kind.unwrap_or_default();
                // Thinking is shown in summary, or not at all; what a tool of the provider does, neither.
                tally.counted.hidden_output |= !matches!(kind.as_str(), "text" | "tool_use");
                saw(&mut tally.counted, block.text.unwrap_or_default().0);
            }
            "content_block_delta" => {
                let delta = event.delta.ok_or_else(|| Fault::malformed("continued a part without a delta"))?;
                for seen in [delta.text, delta.partial_json, delta.thinking].into_iter().flatten() {
                    saw(&mut tally.counted, seen.0);
                }
            }
            "message_delta" => {
                // Without a count here, the one of the beginning is all there is, and it is not the last word.
                let counted = event.usage.as_ref().is_some_and(|usage| usage.output_tokens.is_some());
                if let Some(usage) = event.usage {
                    count(usage, tally);
                }
                if let Some(Text(stop)) = event.delta.and_then(|delta| delta.stop_reason) {
                    tally.stop = stop_reason(&stop);
                    tally.counted.output_final = counted;
                }
            }
            "message_stop" => return Ok(Seen::Whole),
            // Something newer than this version.
            _ if !self.started => return Ok(Seen::Filler),
            _ => {}
        }
        Ok(Seen::Part)
    }
}
