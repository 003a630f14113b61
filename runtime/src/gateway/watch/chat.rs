//! OpenAI's Chat Completions and its many copies: usage comes in a last chunk without choices, in every chunk, or not at
//! all. `prompt_tokens` includes what was read from and written to a cache, `completion_tokens` the reasoning.

use std::collections::BTreeSet;

use orchestra_events::task::conversation::StopReason;
use serde::Deserialize;
use serde_json::Value;

use super::super::scan::{Length, Text};
use super::{Seen, Tally, saw};
use crate::model::fault::ErrorBody;
use crate::model::wire::Fault;

#[derive(Debug)]
pub(super) struct Reader {
    replies: u64,
    finished: BTreeSet<u64>,
    refused: bool,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: u64,
    delta: Option<Delta>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<Length>,
    refusal: Option<Length>,
    reasoning_content: Option<Length>,
    reasoning: Option<Length>,
    tool_calls: Option<Vec<ToolCall>>,
    function_call: Option<Function>,
}

#[derive(Deserialize)]
struct ToolCall {
    function: Option<Function>,
    custom: Option<Custom>,
}

#[derive(Deserialize)]
struct Function {
    name: Option<Length>,
    arguments: Option<Length>,
}

#[derive(Deserialize)]
struct Custom {
    input: Option<Length>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

fn count(usage: &Usage, tally: &mut Tally) {
    let counted = &mut tally.counted;
    if let Some(prompt) = usage.prompt_tokens {
        let details = usage.prompt_tokens_details.as_ref();
        let read = details.and_then(|details| details.cached_tokens).unwrap_or(0).min(prompt);
        let written = details.and_then(|details| details.cache_write_tokens).unwrap_or(0).min(prompt - read);
        counted.input = Some(prompt - read - written);
        counted.cache_read = Some(read);
        counted.cache_write = Some(written);
    }
    if let Some(completion) = usage.completion_tokens {
        counted.output = Some(completion);
    }
}

impl Reader {
    pub fn new(replies: u64) -> Self {
        Self { replies, finished: BTreeSet::new(), refused: false }
    }

    /// Whether every reply has ended.
    pub fn finished(&self) -> bool {
        self.finished.len() as u64 >= self.replies
    }

    pub fn take(&mut self, data: &[u8], tally: &mut Tally) -> Result<Seen, Fault> {
        if data.trim_ascii() == b"[DONE]" {
            // Without a reason to stop, it is an end without a reply.
            return if self.finished() { Ok(Seen::Whole) } else { Err(Fault::truncated()) };
        }
        let wrong = || Fault::malformed("sent a chunk that is not in OpenAI's dialect");
        let chunk: Chunk<'_> = serde_json::from_slice(data).map_err(|_| wrong())?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(Fault::reported("broke off with an error", ErrorBody::from_value(&error)));
        }
        let (choices, usage) = (chunk.choices, chunk.usage);
        if choices.is_none() && usage.is_none() {
            return Err(wrong());
        }
        if let Some(usage) = &usage {
            count(usage, tally);
        }
        let choices = choices.unwrap_or_default();
        let empty = choices.is_empty();
        for choice in choices {
            self.choice(choice, tally)?;
        }
        // Some servers repeat the count on the way; only after the end of every reply is it the last word.
        tally.counted.output_final |= usage.as_ref().is_some_and(|usage| usage.completion_tokens.is_some());
        tally.counted.output_final &= self.finished();
        Ok(match (empty, usage.is_some()) {
            (true, true) => Seen::UsageOnly,
            // A keep-alive of another gateway.
            (true, false) => Seen::Filler,
            (false, _) => Seen::Part,
        })
    }

    fn choice(&mut self, choice: Choice<'_>, tally: &mut Tally) -> Result<(), Fault> {
        if choice.index >= self.replies {
            return Err(Fault::malformed("sent more answers than it was asked for"));
        }
        if let Some(delta) = choice.delta {
            self.refused |= delta.refusal.is_some_and(|words| words.0 > 0);
            for seen in [delta.content, delta.refusal, delta.reasoning_content, delta.reasoning].into_iter().flatten() {
                saw(&mut tally.counted, seen.0);
            }
            let calls = delta.tool_calls.unwrap_or_default();
            let custom = calls.iter().filter_map(|call| call.custom.as_ref()?.input);
            custom.for_each(|input| saw(&mut tally.counted, input.0));
            for function in calls.into_iter().filter_map(|call| call.function).chain(delta.function_call) {
                for seen in [function.name, function.arguments].into_iter().flatten() {
                    saw(&mut tally.counted, seen.0);
                }
            }
        }
        if let Some(Text(reason)) = choice.finish_reason {
            self.finished.insert(choice.index);
            tally.stop = match &*reason {
                _ if self.refused => Some(StopReason::Refusal),
                "stop" => Some(StopReason::EndTurn),
                "tool_calls" | "function_call" => Some(StopReason::ToolUse),
                "length" => Some(StopReason::MaxTokens),
                "content_filter" => Some(StopReason::Refusal),
                _ => None,
            };
        }
        Ok(())
    }
}
