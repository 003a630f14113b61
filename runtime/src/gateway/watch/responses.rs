//! OpenAI's Responses: usage comes once, in the event that ends the reply. `input_tokens` includes what was read from and
//! written to a cache, `output_tokens` the reasoning.

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
    calls: bool,
    refused: bool,
    searches: u64,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    /// A string in events that carry words, an object in others.
    delta: Option<Value>,
    #[serde(borrow)]
    item: Option<Item<'a>>,
    response: Option<Response>,
    error: Option<Value>,
    code: Option<Value>,
    message: Option<Value>,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Response {
    usage: Option<Usage>,
    incomplete_details: Option<Incomplete>,
    error: Option<Value>,
    #[serde(default)]
    output: Option<Vec<Output>>,
}

#[derive(Deserialize)]
struct Output {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Incomplete {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<InputDetails>,
}

#[derive(Deserialize)]
struct InputDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

fn count(usage: &Usage, tally: &mut Tally) {
    let counted = &mut tally.counted;
    if let Some(input) = usage.input_tokens {
        let details = usage.input_tokens_details.as_ref();
        let read = details.and_then(|details| details.cached_tokens).unwrap_or(0).min(input);
        let written = details.and_then(|details| details.cache_write_tokens).unwrap_or(0).min(input - read);
        counted.input = Some(input - read - written);
        counted.cache_read = Some(read);
        counted.cache_write = Some(written);
    }
    if let Some(output) = usage.output_tokens {
        counted.output = Some(output);
        counted.output_final = true;
    }
}

fn is_call(kind: &str) -> bool {
    matches!(
        kind,
        "function_call"
            | "custom_tool_call"
            | "local_shell_call"
            | "shell_call"
            | "apply_patch_call"
            | "tool_search_call"
    )
}

/// What the price or the end of a reply depends on.
fn is_known(kind: &str) -> bool {
    matches!(
        kind,
        "error" | "response.failed" | "response.completed" | "response.incomplete" | "response.output_item.done"
    )
}

impl Reader {
    pub fn take(&mut self, data: &[u8], tally: &mut Tally) -> Result<Seen, Fault> {
        if data.trim_ascii() == b"[DONE]" {
            return if tally.whole { Ok(Seen::Part) } else { Err(Fault::truncated()) };
        }
        let wrong = || Fault::malformed("sent an event that is not in OpenAI's dialect");
        let event: Event<'_> = match serde_json::from_slice(data) {
            Ok(event) => event,
            Err(_) if is_newer(data, is_known) => return Ok(Seen::Part),
            Err(_) => return Err(wrong()),
        };
        let reported = |error: &Value| Fault::reported("broke off with an error", ErrorBody::from_value(error));
        match &*event.kind.0 {
            "keepalive" => Ok(Seen::Filler),
            "error" => {
                // The fields of the error are the event's own, or those of an object in it.
                let own = serde_json::json!({ "type": event.code, "code": event.code, "message": event.message });
                Err(reported(&event.error.filter(|error| !error.is_null()).unwrap_or(own)))
            }
            "response.failed" => {
                let response = event.response.ok_or_else(wrong)?;
                // A count of nothing after something was written is no count.
                let usage = response.usage.filter(|usage| {
                    usage.output_tokens.unwrap_or(0) > 0 || tally.counted.output_bytes == 0 && tally.started
                });
                if let Some(usage) = usage.filter(|usage| usage.input_tokens.unwrap_or(0) > 0) {
                    count(&usage, tally);
                }
                Err(reported(&response.error.unwrap_or_default()))
            }
            "response.completed" | "response.incomplete" => {
                let response = event.response.ok_or_else(wrong)?;
                if let Some(usage) = &response.usage {
                    count(usage, tally);
                }
                let kinds = response.output.unwrap_or_default();
                let kinds = || kinds.iter().filter_map(|item| item.kind.as_deref());
                let calls = self.calls || kinds().any(is_call);
                let searches = kinds().filter(|kind| *kind == "web_search_call").count() as u64;
                self.searches = self.searches.max(searches);
                self.note_searches(tally);
                let reason = response.incomplete_details.and_then(|details| details.reason);
                tally.stop = match (&*event.kind.0, reason.as_deref()) {
                    ("response.incomplete", Some("max_output_tokens")) => Some(StopReason::MaxTokens),
                    ("response.incomplete", Some("content_filter")) => Some(StopReason::Refusal),
                    ("response.incomplete", _) => None,
                    _ if calls => Some(StopReason::ToolUse),
                    _ if self.refused => Some(StopReason::Refusal),
                    _ => Some(StopReason::EndTurn),
                };
                Ok(Seen::Whole)
            }
            kind => {
                self.refused |= kind.starts_with("response.refusal.");
                let item = event.item.and_then(|item| item.kind);
                if kind == "response.output_item.done"
                    && let Some(Text(item)) = &item
                {
                    self.calls |= is_call(item);
                    self.searches += u64::from(item == "web_search_call");
                    self.note_searches(tally);
                }
                if let Some(Value::String(words)) = &event.delta {
                    saw(&mut tally.counted, Length(words.len() as u64).0);
                }
                Ok(Seen::Part)
            }
        }
    }

    fn note_searches(&self, tally: &mut Tally) {
        if self.searches > 0 {
            tally.tools.insert(HostedTool::WebSearch, self.searches);
        }
    }
}
