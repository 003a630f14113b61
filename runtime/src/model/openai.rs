//! OpenAI's Chat Completions API and its many compatible servers: the request, and the streamed reply.
//!
//! `prompt_tokens` includes what was read from and written to a cache. Usage comes in a last chunk without choices, only
//! because the request asks for it, and some servers leave it out all the same.

use orchestra_events::blob::Content;
use orchestra_events::task::conversation::{Block, StopReason, Turn, UserPart};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::ErrorBody;
use super::sse::Event;
use super::wire::{self, Assembly, Counted, Fault, Limit, MAX_PARTS, Progress};
use super::{ModelFailure, ModelRequest, inline};

pub(super) fn encode(request: &ModelRequest, limit: Limit) -> Result<Value, ModelFailure> {
    let mut messages = Vec::with_capacity(request.conversation.len() + 1);
    if !request.system.is_empty() {
        messages.push(json!({ "role": "system", "content": request.system }));
    }
    for turn in &request.conversation {
        match turn {
            Turn::User(parts) => user(parts, &mut messages)?,
            Turn::Assistant(blocks) => messages.push(assistant(blocks)?),
        }
    }
    let mut body = json!({
        "model": request.model.model_id,
        "stream": true,
        "stream_options": { "include_usage": true },
        "messages": messages,
    });
    body[if limit.renamed { "max_completion_tokens" } else { "max_tokens" }] = limit.tokens.into();
    if limit.standard_tier {
        body["service_tier"] = "default".into();
    }
    if !request.tools.is_empty() {
        body["tools"] = request
            .tools
            .iter()
            .map(|tool| {
                json!({ "type": "function", "function": {
                    "name": tool.name, "description": tool.description, "parameters": tool.input_schema,
                } })
            })
            .collect();
    }
    Ok(body)
}

fn user(parts: &[UserPart], messages: &mut Vec<Value>) -> Result<(), ModelFailure> {
    // Every result directly follows the turn that asked for it.
    for part in parts {
        if let UserPart::ToolResult { tool_call, output, is_error } = part {
            let output = inline(output)?;
            let content = if *is_error { format!("The tool failed:\n{output}") } else { output.to_owned() };
            messages.push(json!({ "role": "tool", "tool_call_id": tool_call, "content": content }));
        }
    }
    for part in parts {
        if let UserPart::Text { text } = part {
            messages.push(json!({ "role": "user", "content": text }));
        }
    }
    Ok(())
}

fn assistant(blocks: &[Block]) -> Result<Value, ModelFailure> {
    let (mut words, mut calls) = (String::new(), Vec::new());
    for block in blocks {
        match block {
            Block::Text { text } => words.push_str(inline(text)?),
            // The dialect has no place for it.
            Block::Thinking { .. } => {}
            Block::ToolUse { id, name, input, malformed } => {
                let arguments = wire::input_again(input, malformed.as_ref()).to_string();
                calls.push(
                    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }),
                );
            }
        }
    }
    let mut message = json!({ "role": "assistant", "content": words });
    if !calls.is_empty() {
        if words.is_empty() {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = calls.into();
    }
    Ok(message)
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    // Not OpenAI's own: several open-weights servers show the model's reasoning under one of these names.
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

#[derive(Deserialize)]
struct ToolCall {
    index: Option<u64>,
    id: Option<String>,
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

#[derive(Default)]
struct Call {
    index: Option<u64>,
    id: String,
    name: String,
    raw: String,
}

/// A reply on the way.
pub(super) struct Reply {
    started: bool,
    counted: Counted,
    words: String,
    reasoning: String,
    refused: bool,
    calls: Vec<Call>,
    finish: Option<String>,
    done: bool,
}

impl Default for Reply {
    fn default() -> Self {
        Self {
            started: false,
            // The models that reason mostly do so out of sight.
            counted: Counted { hidden_output: true, ..Counted::default() },
            words: String::new(),
            reasoning: String::new(),
            refused: false,
            calls: Vec::new(),
            finish: None,
            done: false,
        }
    }
}

impl Reply {
    fn count(&mut self, usage: &WireUsage) {
        if let Some(prompt) = usage.prompt_tokens {
            let details = usage.prompt_tokens_details.as_ref();
            let read = details.and_then(|details| details.cached_tokens).unwrap_or(0).min(prompt);
            let written = details.and_then(|details| details.cache_write_tokens).unwrap_or(0).min(prompt - read);
            self.counted.input = Some(prompt - read - written);
            self.counted.cache_read = Some(read);
            self.counted.cache_write = Some(written);
        }
        if let Some(completion) = usage.completion_tokens {
            self.counted.output = Some(completion);
        }
    }

    fn choice(&mut self, choice: Choice, say: &mut (dyn FnMut(&str) + Send)) -> Result<(), Fault> {
        if choice.index != 0 {
            return Err(Fault::malformed("sent more than the one answer it was asked for"));
        }
        if let Some(delta) = choice.delta {
            for words in [delta.content, delta.refusal.inspect(|words| self.refused |= !words.is_empty())] {
                let Some(words) = words.filter(|words| !words.is_empty()) else { continue };
                self.counted.output_bytes = self.counted.output_bytes.saturating_add(words.len() as u64);
                say(&words);
                self.words.push_str(&words);
            }
            if let Some(words) = delta.reasoning_content {
                self.counted.output_bytes = self.counted.output_bytes.saturating_add(words.len() as u64);
                self.reasoning.push_str(&words);
            }
            for call in delta.tool_calls.unwrap_or_default() {
                self.tool_call(call)?;
            }
        }
        self.finish = choice.finish_reason.or(self.finish.take());
        Ok(())
    }

    fn tool_call(&mut self, delta: ToolCall) -> Result<(), Fault> {
        let id = delta.id.filter(|id| !id.is_empty());
        let known = match delta.index {
            Some(index) => self.calls.iter().position(|call| call.index == Some(index)),
            // Servers that number nothing send an id with each new call.
            None => match &id {
                Some(id) => self.calls.iter().position(|call| call.id == *id),
                None => self.calls.len().checked_sub(1),
            },
        };
        let at = match known {
            Some(at) => at,
            None if self.calls.len() >= MAX_PARTS => return Err(Fault::malformed("sent too many tool calls")),
            None => {
                self.calls.push(Call { index: delta.index, ..Call::default() });
                self.calls.len() - 1
            }
        };
        let call = &mut self.calls[at];
        if let Some(id) = id {
            call.id = id;
        }
        if let Some(function) = delta.function {
            // Usually whole in the first chunk and absent later; some servers repeat it.
            if let Some(name) = function.name.filter(|name| !name.is_empty()) {
                call.name = name;
            }
            if let Some(arguments) = function.arguments {
                self.counted.output_bytes = self.counted.output_bytes.saturating_add(arguments.len() as u64);
                call.raw.push_str(&arguments);
            }
        }
        Ok(())
    }
}

impl Assembly for Reply {
    fn take(&mut self, event: &Event, say: &mut (dyn FnMut(&str) + Send)) -> Result<Progress, Fault> {
        if event.data.trim_ascii() == b"[DONE]" {
            self.done = true;
            return Ok(Progress::Whole);
        }
        let chunk: Chunk = serde_json::from_slice(&event.data)
            .map_err(|_| Fault::malformed("sent a chunk that is not in OpenAI's dialect"))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(Fault::reported("broke off with an error", ErrorBody::from_value(&error)));
        }
        let (choices, usage) = (chunk.choices, chunk.usage);
        if choices.is_none() && usage.is_none() {
            return Err(Fault::malformed("sent a chunk that is not in OpenAI's dialect"));
        }
        self.started = true;
        usage.iter().for_each(|usage| self.count(usage));
        for choice in choices.unwrap_or_default() {
            self.choice(choice, say)?;
        }
        // Some servers repeat the count on the way; only together with the end is it the last word.
        self.counted.output_final = self.finish.is_some() && self.counted.output.is_some();
        Ok(Progress::More)
    }

    fn end(&self) -> Result<(), Fault> {
        // Without `[DONE]` the count is what shows that nothing is missing.
        let whole = self.finish.is_some() && (self.done || self.counted.output_final);
        if whole { Ok(()) } else { Err(Fault::truncated()) }
    }

    fn started(&self) -> bool {
        self.started
    }

    fn counted(&self) -> &Counted {
        &self.counted
    }

    fn finish(self: Box<Self>) -> Result<(Vec<Block>, StopReason), Fault> {
        self.end()?;
        let stop = match self.finish.as_deref() {
            _ if self.refused => StopReason::Refusal,
            Some("stop") => StopReason::EndTurn,
            Some("tool_calls" | "function_call") => StopReason::ToolUse,
            Some("length") => StopReason::MaxTokens,
            Some("content_filter") => StopReason::Refusal,
            _ => return Err(Fault::malformed("stopped for a reason this version does not know")),
        };
        let mut content = Vec::with_capacity(self.calls.len() + 2);
        if !self.reasoning.is_empty() {
            content.push(Block::Thinking { text: Content::Inline(self.reasoning), signature: None });
        }
        if !self.words.is_empty() {
            content.push(wire::text(self.words));
        }
        for call in self.calls {
            // Some servers name no id; the answer to the call must name one.
            let id = if call.id.is_empty() { format!("call_{}", uuid::Uuid::now_v7().simple()) } else { call.id };
            content.push(wire::tool_use(id, call.name, call.raw));
        }
        wire::whole(content, stop)
    }
}
