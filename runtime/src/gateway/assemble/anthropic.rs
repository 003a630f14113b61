//! Anthropic's Messages.

use serde_json::{Map, Value};

use super::append;
use crate::model::wire::{Fault, MAX_PARTS};

/// A message on the way.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Message {
    message: Value,
    parts: Vec<(u64, Value, String)>,
}

impl Message {
    pub fn take(&mut self, mut event: Value) -> Result<(), Fault> {
        let index = event["index"].as_u64().unwrap_or(0);
        match event["type"].as_str().unwrap_or_default() {
            "message_start" => self.message = event["message"].take(),
            "content_block_start" => {
                if self.parts.len() >= MAX_PARTS {
                    return Err(Fault::malformed("sent too many parts"));
                }
                self.parts.push((index, event["content_block"].take(), String::new()));
            }
            "content_block_delta" => {
                let Some((_, part, json)) = self.parts.iter_mut().rev().find(|(at, ..)| *at == index) else {
                    return Err(Fault::malformed("continued a part it had not begun"));
                };
                if !part.is_object() {
                    return Err(Fault::malformed("began a part that is none"));
                }
                let mut delta = event["delta"].take();
                let text = |name: &str| delta[name].as_str().unwrap_or_default();
                match delta["type"].as_str().unwrap_or_default() {
                    "text_delta" => append(&mut part["text"], text("text")),
                    "thinking_delta" => append(&mut part["thinking"], text("thinking")),
                    "signature_delta" => part["signature"] = delta["signature"].take(),
                    "input_json_delta" => json.push_str(text("partial_json")),
                    "citations_delta" => {
                        let citation = delta["citation"].take();
                        match &mut part["citations"] {
                            Value::Array(citations) => citations.push(citation),
                            other => *other = Value::Array(vec![citation]),
                        }
                    }
                    // Something newer than this version.
                    _ => {}
                }
            }
            "message_delta" => {
                // What the end says of the whole: why it stopped, and the last counts.
                merge(&mut self.message, event["delta"].take());
                let usage = event["usage"].take();
                match &mut self.message {
                    Value::Object(message) => merge(message.entry("usage").or_insert(Value::Null), usage),
                    _ => return Err(Fault::malformed("ended a reply it had not begun")),
                }
                for (field, value) in event.as_object_mut().map(std::mem::take).unwrap_or_default() {
                    if !matches!(field.as_str(), "type" | "delta" | "usage") {
                        self.message[field] = value;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<Value, Fault> {
        if !self.message.is_object() {
            return Err(Fault::truncated());
        }
        self.parts.sort_by_key(|(index, ..)| *index);
        let mut content = Vec::with_capacity(self.parts.len());
        for (_, mut part, json) in self.parts {
            if !json.is_empty() {
                // Cut off by the output limit, the input is not JSON: without a stream there is no way to say so but as text.
                part["input"] = serde_json::from_str(&json).unwrap_or(Value::Object(Map::new()));
            }
            content.push(part);
        }
        self.message["content"] = Value::Array(content);
        Ok(self.message)
    }
}

/// Later fields overwrite earlier ones.
fn merge(to: &mut Value, from: Value) {
    if let Value::Object(from) = from {
        match to {
            Value::Object(to) => to.extend(from),
            other => *other = Value::Object(from),
        }
    }
}
