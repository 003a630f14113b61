//! OpenAI's Chat Completions.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::append;
use crate::model::wire::{Fault, MAX_PARTS};

/// A completion on the way.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Completion {
    /// `id`, `created`, `model` and what else describes the whole.
    fields: Map<String, Value>,
    choices: BTreeMap<u64, Choice>,
}

#[derive(Debug, Default)]
struct Choice {
    message: Map<String, Value>,
    calls: Vec<Value>,
    logprobs: Value,
    finish: Value,
    /// Fields of the choice that this version does not know.
    others: Map<String, Value>,
}

impl Completion {
    pub fn take(&mut self, chunk: Value) -> Result<(), Fault> {
        let Value::Object(mut chunk) = chunk else { return Ok(()) };
        let choices = chunk.remove("choices").unwrap_or_default();
        for (field, value) in chunk {
            // Obfuscation pads the events of a stream; an absent count leaves the earlier one.
            if field != "obfuscation" && !value.is_null() {
                self.fields.insert(field, value);
            }
        }
        let Value::Array(choices) = choices else { return Ok(()) };
        for choice in choices {
            let Value::Object(mut choice) = choice else { continue };
            let index = choice.remove("index").and_then(|index| index.as_u64()).unwrap_or(0);
            if self.choices.len() >= MAX_PARTS && !self.choices.contains_key(&index) {
                return Err(Fault::malformed("sent more answers than it was asked for"));
            }
            self.choices.entry(index).or_default().take(choice)?;
        }
        Ok(())
    }

    pub fn finish(mut self) -> Value {
        self.fields.insert("object".into(), "chat.completion".into());
        let choices = self.choices.into_iter().map(|(index, choice)| choice.finish(index)).collect();
        self.fields.insert("choices".into(), Value::Array(choices));
        Value::Object(self.fields)
    }
}

impl Choice {
    fn take(&mut self, mut choice: Map<String, Value>) -> Result<(), Fault> {
        if let Some(Value::Object(mut delta)) = choice.remove("delta") {
            if let Some(Value::Array(calls)) = delta.remove("tool_calls") {
                for call in calls {
                    self.call(call)?;
                }
            }
            for (field, value) in delta {
                // Some servers repeat it in every piece.
                if field == "role" && self.message.contains_key("role") {
                    continue;
                }
                merge(self.message.entry(field).or_insert(Value::Null), value);
            }
        }
        if let Some(finish) = choice.remove("finish_reason").filter(|finish| !finish.is_null()) {
            self.finish = finish;
        }
        if let Some(logprobs) = choice.remove("logprobs") {
            merge(&mut self.logprobs, logprobs);
        }
        self.others.extend(choice);
        Ok(())
    }

    fn call(&mut self, call: Value) -> Result<(), Fault> {
        let Value::Object(mut call) = call else { return Ok(()) };
        let index = call.remove("index").and_then(|index| index.as_u64());
        let known = match index {
            Some(index) => self.calls.iter().position(|known| known["index"].as_u64() == Some(index)),
            // Servers that number nothing send an id with each new call.
            None => match call.get("id").and_then(Value::as_str).filter(|id| !id.is_empty()) {
                Some(id) => self.calls.iter().position(|known| known["id"].as_str() == Some(id)),
                None => self.calls.len().checked_sub(1),
            },
        };
        let at = match known {
            Some(at) => at,
            None if self.calls.len() >= MAX_PARTS => return Err(Fault::malformed("sent too many tool calls")),
            None => {
                self.calls.push(json!({ "index": index }));
                self.calls.len() - 1
            }
        };
        let Value::Object(known) = &mut self.calls[at] else { return Ok(()) };
        for (field, value) in call {
            let before = known.entry(field.as_str()).or_insert(Value::Null);
            match (field.as_str(), &before) {
                // Whole in the first piece; some servers repeat them.
                ("id" | "type", Value::String(text)) if !text.is_empty() => {}
                ("function" | "custom", Value::Object(_)) => {
                    let Value::Object(piece) = value else { continue };
                    for (field, value) in piece {
                        let whole = field == "name" && before["name"].as_str().is_some_and(|name| !name.is_empty());
                        if !whole {
                            merge(&mut before[field], value);
                        }
                    }
                }
                _ => *before = value,
            }
        }
        Ok(())
    }

    fn finish(mut self, index: u64) -> Value {
        self.message.entry("role").or_insert("assistant".into());
        self.message.entry("content").or_insert(Value::Null);
        if !self.calls.is_empty() {
            for call in &mut self.calls {
                if let Value::Object(call) = call {
                    call.remove("index");
                }
            }
            self.message.insert("tool_calls".into(), Value::Array(self.calls));
        }
        let mut choice = self.others;
        choice.insert("index".into(), index.into());
        choice.insert("message".into(), Value::Object(self.message));
        choice.insert("logprobs".into(), self.logprobs);
        choice.insert("finish_reason".into(), self.finish);
        Value::Object(choice)
    }
}

/// Words and lists grow, anything else is overwritten; `null` says nothing.
fn merge(to: &mut Value, from: Value) {
    match (&mut *to, from) {
        (_, Value::Null) => {}
        (Value::String(_), Value::String(words)) => append(to, &words),
        (Value::Array(list), Value::Array(more)) => list.extend(more),
        (Value::Object(known), Value::Object(more)) => {
            for (field, value) in more {
                merge(known.entry(field).or_insert(Value::Null), value);
            }
        }
        (_, value) => *to = value,
    }
}
