//! Puts a streamed reply together for a caller that did not ask for a stream.
//!
//! The provider is always asked for one: it shows that it is alive, and what it costs when it breaks off.

mod anthropic;
mod chat;

use bytes::Bytes;
use serde_json::Value;

use super::watch::Seen;
use super::{Api, frames};
use crate::model::wire::Fault;

/// A reply on the way.
#[derive(Debug)]
pub(super) enum Assembly {
    Anthropic(anthropic::Message),
    Chat(chat::Completion),
    /// The closing event has it whole.
    Responses(Option<Value>),
}

impl Assembly {
    /// For a reply in this dialect.
    pub fn new(api: Api) -> Self {
        match api {
            Api::Messages | Api::CountTokens => Self::Anthropic(anthropic::Message::default()),
            Api::Chat => Self::Chat(chat::Completion::default()),
            Api::Responses => Self::Responses(None),
        }
    }

    /// Takes an event as it came. It has been found to be in the dialect.
    pub fn take(&mut self, frame: &[u8], seen: Seen) -> Result<(), Fault> {
        let Some(data) = frames::data(frame) else { return Ok(()) };
        if data.trim_ascii() == b"[DONE]" {
            return Ok(());
        }
        match self {
            Self::Anthropic(message) => message.take(parse(&data)?),
            Self::Chat(completion) => completion.take(parse(&data)?),
            // The others are many, and only repeat it.
            Self::Responses(whole) if seen == Seen::Whole => {
                *whole = Some(parse(&data)?["response"].take());
                Ok(())
            }
            Self::Responses(_) => Ok(()),
        }
    }

    /// The reply, as the dialect has it without a stream.
    pub fn finish(self) -> Result<Bytes, Fault> {
        let reply = match self {
            Self::Anthropic(message) => message.finish()?,
            Self::Chat(completion) => completion.finish(),
            Self::Responses(whole) => whole.ok_or_else(Fault::truncated)?,
        };
        Ok(Bytes::from(reply.to_string()))
    }
}

fn parse(data: &[u8]) -> Result<Value, Fault> {
    serde_json::from_slice(data).map_err(|_| Fault::malformed("sent an event that is not JSON"))
}

/// Appends a text to what is there.
fn append(to: &mut Value, words: &str) {
    match to {
        Value::String(text) => text.push_str(words),
        other => *other = Value::from(words),
    }
}
