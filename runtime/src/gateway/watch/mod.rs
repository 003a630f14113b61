//! Reads what a provider streams, as far as money and faults need it, while it is passed on unchanged.
//!
//! Counts are taken, never added up: every dialect repeats them, cumulatively. What was not counted is bounded by what
//! was seen.

mod anthropic;
mod chat;
mod responses;

use orchestra_events::task::conversation::StopReason;

use super::scan::Text;
use super::{Api, frames};
use crate::model::ToolCalls;
use crate::model::wire::{Counted, Fault};

/// What an event was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// A comment or a keep-alive: not a sign that the provider has begun.
    Filler,
    /// A part of the reply.
    Part,
    /// The usage and nothing else: a caller that did not ask for it does not get it.
    UsageOnly,
    /// The end of the reply.
    Whole,
}

/// What is known of a reply.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub counted: Counted,
    /// Uses of the provider's own tools.
    pub tools: ToolCalls,
    pub stop: Option<StopReason>,
    /// Whether the provider has begun to work.
    pub started: bool,
    /// Whether the closing event has come.
    pub whole: bool,
}

/// Reads one reply.
#[derive(Debug)]
pub(super) struct Watch {
    pub tally: Tally,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    Anthropic(anthropic::Reader),
    Chat(chat::Reader),
    Responses(responses::Reader),
}

impl Watch {
    /// For a reply in this dialect; `replies` is how many the caller asked for at once.
    pub fn new(api: Api, replies: u64) -> Self {
        let mut tally = Tally::default();
        let reader = match api {
            Api::Messages | Api::CountTokens => Reader::Anthropic(anthropic::Reader::default()),
            Api::Chat => Reader::Chat(chat::Reader::new(replies)),
            Api::Responses => Reader::Responses(responses::Reader::default()),
        };
        // OpenAI's models, and those that copy its dialects, mostly reason out of sight.
        tally.counted.hidden_output = !matches!(reader, Reader::Anthropic(_));
        Self { tally, reader }
    }

    /// Takes an event as it came.
    pub fn take(&mut self, frame: &[u8]) -> Result<Seen, Fault> {
        let Some(data) = frames::data(frame) else { return Ok(Seen::Filler) };
        let seen = match &mut self.reader {
            Reader::Anthropic(reader) => reader.take(&data, &mut self.tally),
            Reader::Chat(reader) => reader.take(&data, &mut self.tally),
            Reader::Responses(reader) => reader.take(&data, &mut self.tally),
        }?;
        self.tally.started |= seen != Seen::Filler;
        self.tally.whole |= seen == Seen::Whole;
        Ok(seen)
    }

    /// The connection has ended properly: is the reply whole?
    pub fn end(&mut self) -> Result<(), Fault> {
        // Some servers leave out `[DONE]`: the reason to stop and the last count show that nothing is missing.
        let whole = self.tally.whole
            || match &self.reader {
                Reader::Chat(reader) => reader.finished() && self.tally.counted.output_final,
                Reader::Anthropic(_) | Reader::Responses(_) => false,
            };
        self.tally.whole = whole;
        if whole { Ok(()) } else { Err(Fault::truncated()) }
    }
}

/// Whether an event that could not be read is one that this version need not read: its type is none of these.
fn is_newer(data: &[u8], known: fn(&str) -> bool) -> bool {
    #[derive(serde::Deserialize)]
    struct Kind<'a> {
        #[serde(borrow, rename = "type")]
        kind: Text<'a>,
    }
    serde_json::from_slice::<Kind<'_>>(data).is_ok_and(|event| !known(&event.kind.0))
}

/// Adds to what was seen of the output.
fn saw(counted: &mut Counted, bytes: u64) {
    counted.output_bytes = counted.output_bytes.saturating_add(bytes);
}
