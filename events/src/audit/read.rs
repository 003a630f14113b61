//! Reading what is to be verified: each line of an export, or each row of a log, on its own and without any order.
//!
//! Everything here may run on any thread. What is found of one event does not depend on any other; how they hang
//! together is for [`super::chain`] to say.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::Arc;

use super::checkpoint::{Checkpoint, CheckpointEvent};
use super::export::{self, MAX_LINE, TRAILER_START, Trailer};
use super::hex::Hex;
use crate::envelope::{Actor, Envelope, Position, Private, Revision, StreamName};
use crate::id::{CallId, EventId};
use crate::json::Json;
use crate::ledger::{Amount, LedgerEvent};
use crate::money::NanoUsd;
use crate::store::chain::{self, Digest, Linked, Links, Seal};
use crate::store::sqlite::offline::Row;
use crate::task::TaskEvent;

/// What a line or a row turned out to be.
#[derive(Debug)]
pub enum Item {
    /// An event.
    Event(Box<Entry>),
    /// The signed end of an export.
    Trailer(Box<Checkpoint>),
    /// It does not read.
    Bad(Bad),
}

/// Why a line or a row does not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// In a sentence's middle.
    pub why: &'static str,
    /// It is the beginning of a line: the file ends before the line does.
    pub unfinished: bool,
    /// The position that it claims, where it still says one.
    pub position: Option<u64>,
}

/// What the chain and the books need of an event.
#[derive(Debug)]
pub struct Entry {
    /// The place that it claims in the log.
    pub position: u64,
    /// The place that it claims in its stream.
    pub revision: u64,
    /// The stream that it is in.
    pub stream: StreamName,
    /// The hash of its content, computed here.
    pub body: Digest,
    /// The links that stand beside it.
    pub links: Links,
    /// What became of its words.
    pub words: Words,
    /// What it says about money or about the log itself.
    pub fact: Fact,
}

/// What became of the part of an event that may be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// It has none.
    None,
    /// They are those that were sealed.
    Fit,
    /// They were erased, or left out.
    Gone,
    /// They are others.
    Wrong,
}

impl Words {
    fn of(seal: Option<Seal>, private: Option<&Private>) -> Self {
        match (seal, private) {
            (None, None) => Self::None,
            (Some(_), None) => Self::Gone,
            (Some(sealed), Some(private)) if chain::seal(private) == sealed => Self::Fit,
            (Some(_) | None, Some(_)) => Self::Wrong,
        }
    }
}

/// What an event says that is checked against other events.
#[derive(Debug)]
pub enum Fact {
    /// Nothing.
    None,
    /// Something happened in a ledger.
    Ledger(Box<LedgerEvent>),
    /// A task was charged for a call.
    Charged {
        /// The call.
        call: CallId,
        /// How much.
        amount: Amount,
    },
    /// A task was given money back.
    Refunded(NanoUsd),
    /// A task has ended, or (`false`) goes on after it had.
    Over(bool),
    /// The words of what comes before it in its stream were erased.
    Erased,
    /// The log's state was signed.
    Checkpoint(Box<Checkpoint>),
    /// It is about money or the log itself, and does not read.
    Odd,
}

#[derive(Deserialize)]
struct LinksText {
    stream: Hex<32>,
    global: Hex<32>,
}

#[derive(Deserialize)]
struct Line<'a> {
    links: LinksText,
    #[serde(default)]
    seal: Option<Hex<32>>,
    #[serde(default)]
    salt: Option<Hex<32>>,
    #[serde(borrow, default)]
    words: Option<&'a RawValue>,
    #[serde(default, rename = "wordsText")]
    words_text: Option<String>,
    #[serde(borrow)]
    event: Event<'a>,
}

#[derive(Deserialize)]
struct Event<'a> {
    id: EventId,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    schema: u16,
    stream: StreamName,
    revision: u64,
    position: u64,
    time: jiff::Timestamp,
    actor: Actor,
    #[serde(default)]
    correlation: Option<StreamName>,
    #[serde(default)]
    causation: Option<EventId>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    text: Option<String>,
}

/// Reads a line of an export, its line feed included where it has one.
pub fn line(line: &[u8], scratch: &mut Vec<u8>) -> Item {
    let bad = |why| Item::Bad(Bad { why, unfinished: false, position: None });
    let Some(text) = line.strip_suffix(b"\n") else {
        return Item::Bad(Bad { why: "the line does not end", unfinished: true, position: None });
    };
    if line.len() > MAX_LINE {
        return bad("the line is longer than any event");
    }
    if text.starts_with(TRAILER_START) {
        return match Trailer::read(text) {
            Some(trailer) => Item::Trailer(Box::new(trailer.checkpoint)),
            None => bad("the last line is not spelled as an export's end"),
        };
    }
    let Ok(read) = serde_json::from_slice::<Line<'_>>(text) else {
        return bad("the line is not an event");
    };
    let Line { links, seal, salt, words, words_text, event } = read;
    let words = words.map(|words| Json::stored(words.get())).or_else(|| words_text.map(Json::stored));
    let private = salt.zip(words).map(|(salt, content)| Private { salt: salt.0, content });
    let seal = seal.map(Seal::from);
    let claimed = event.position;
    let data = match (event.data, event.text) {
        (Some(data), None) => Json::stored(data.get()),
        (None, Some(text)) => Json::stored(text),
        (Some(_), Some(_)) | (None, None) => return bad("the line has no data, or has it twice"),
    };
    let linked = Linked {
        event: Envelope {
            id: event.id,
            kind: Arc::from(event.kind),
            schema: event.schema,
            stream: event.stream,
            revision: Revision(event.revision),
            position: Position(event.position),
            time: event.time,
            actor: event.actor,
            correlation: event.correlation,
            causation: event.causation,
            data,
            erased: false,
        },
        seal,
        private,
        links: Links { stream: links.stream.into(), global: links.global.into() },
    };
    // There is one spelling: whatever else would read the same was not written by an export.
    scratch.clear();
    export::write_event(scratch, &linked);
    if scratch != line {
        return Item::Bad(Bad {
            why: "the line is not spelled as an export spells it",
            unfinished: false,
            position: Some(claimed),
        });
    }
    let Linked { event, links, seal, private } = linked;
    Item::Event(Box::new(Entry {
        position: event.position.0,
        revision: event.revision.0,
        body: chain::body(&event, seal),
        words: Words::of(seal, private.as_ref()),
        links,
        fact: fact(&event.stream, &event.kind, event.data.get()),
        stream: event.stream,
    }))
}

/// Reads a row of a log.
pub fn row(row: &Row) -> Item {
    let bad = |why| Item::Bad(Bad { why, unfinished: false, position: Some(row.position) });
    let Some(stream) = row.stream.clone() else { return bad("the event is in no stream") };
    let Some(links) = row.links() else { return bad("it has no links") };
    Item::Event(Box::new(Entry {
        position: row.position,
        revision: row.revision,
        body: chain::body_of(&stream, &row.kind, &row.meta, &row.data, row.seal()),
        words: Words::of(row.seal(), row.private().as_ref()),
        links,
        fact: fact(&stream, &row.kind, &row.data),
        stream,
    }))
}

/// What an event says that is checked against others.
fn fact(stream: &StreamName, kind: &str, data: &str) -> Fact {
    let read = match stream.category() {
        "ledger" => match crate::json::decode_parts::<LedgerEvent>(LedgerEvent::KINDS, kind, data) {
            Ok(Some(event)) => Ok(Fact::Ledger(Box::new(event))),
            Ok(None) => Ok(Fact::None),
            Err(error) => Err(error),
        },
        "task" if matches!(kind, "tokens-charged" | "refund-granted") => {
            crate::json::decode_parts::<TaskEvent>(TaskEvent::KINDS, kind, data).map(|event| match event {
                Some(TaskEvent::TokensCharged { call, usage, cost_nano_usd, .. }) => {
                    Fact::Charged { call, amount: Amount { nano_usd: cost_nano_usd, tokens: usage.total() } }
                }
                Some(TaskEvent::RefundGranted { nano_usd, .. }) => Fact::Refunded(nano_usd),
                Some(_) | None => Fact::None,
            })
        }
        "task" if matches!(kind, "succeeded" | "failed" | "cancelled") => Ok(Fact::Over(true)),
        "task" if kind == "queued" => Ok(Fact::Over(false)),
        "task" | "campaign" if export::is_erasure(stream, kind) => Ok(Fact::Erased),
        "checkpoint" => crate::json::decode_parts::<CheckpointEvent>(CheckpointEvent::KINDS, kind, data)
            .map(|event| event.map_or(Fact::None, |CheckpointEvent::CheckpointSigned(it)| Fact::Checkpoint(it))),
        _ => Ok(Fact::None),
    };
    read.unwrap_or(Fact::Odd)
}
