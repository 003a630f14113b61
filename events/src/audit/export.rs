//! A log as a file that can be verified anywhere: one header, one line per event, one signed end.
//!
//! ```text
//! {"format":"orchestra-audit-log","version":1,"logId":"…","keyId":"…","publicKey":"…"}
//! {"links":{"stream":"…","global":"…"},"event":{"id":"…","type":"…", … ,"data":{…}}}        once per event
//! {"checkpoint":{"logId":"…","position":…,"globalLink":"…","time":"…", … ,"signature":"…"}}
//! ```
//! Of an event with words that may be forgotten, `data` is the part that stays, and before `event` stands
//! `"seal":"…","salt":"…","words":{…}`: the seal for good, salt and words unless they were erased, or left out of the export.
//!
//! Every line ends in a line feed and has exactly one spelling: whoever reads one writes it again and compares, so that
//! no byte of the file can change unseen. `data` stands there as it was appended, byte for byte; where that is not JSON
//! on one line, it stands as a text under `text` instead.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::checkpoint::{Checkpoint, PublicKey, SigningKeyId, key_id};
use super::hex::{self, Hex};
use crate::envelope::{Actor, Envelope, StreamName};
use crate::store::chain::{Digest, Linked};

/// How often whoever reads a log that goes on goes further than its end was, for the erasures of what is gone meanwhile.
/// The first time nearly always does.
pub const MAX_FURTHER: usize = 16;

/// The streams of which words are gone and the erasure was not met yet. It stands in the log before the words go, but
/// behind them: what was erased while a log was read may have it behind the end that the log had when reading began.
#[derive(Debug, Default)]
pub struct Owed(HashSet<StreamName>);

impl Owed {
    /// An event was read. `gone`: it had words, and has none now.
    pub fn met(&mut self, stream: &StreamName, kind: &str, gone: bool) {
        if is_erasure(stream, kind) {
            self.0.remove(stream);
        } else if gone && !self.0.contains(stream) {
            self.0.insert(stream.clone());
        }
    }

    /// Whether an erasure is still to come.
    pub fn is_any(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Whether an event says that the words before it in its stream are erased.
pub(super) fn is_erasure(stream: &StreamName, kind: &str) -> bool {
    matches!((stream.category(), kind), ("task", "content-erased") | ("campaign", "campaign-content-erased"))
}

/// What the header calls the format.
pub const FORMAT: &str = "orchestra-audit-log";
/// The version of the format.
pub const VERSION: u32 = 1;
/// Longest line, in bytes: an event's data is bounded, and each of its bytes becomes at most six.
pub const MAX_LINE: usize = 2 * 6 * crate::store::MAX_EVENT_BYTES + 64 * 1024;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The global link of the first event.
    pub log_id: Hex<32>,
    /// The name of the key that signs the end.
    pub key_id: SigningKeyId,
    /// That key.
    pub public_key: PublicKey,
}

impl Header {
    /// The header of an export of this log whose end this key signs.
    pub fn new(log: Digest, public_key: PublicKey) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            log_id: log.into(),
            key_id: key_id(&public_key),
            public_key,
        }
    }

    /// The line, its line feed included.
    pub fn line(&self) -> Vec<u8> {
        json_line(self)
    }

    /// Reads the line (without its line feed). `None`: it is no header, or not spelled as one.
    pub fn read(line: &[u8]) -> Option<Self> {
        let header: Self = serde_json::from_slice(line).ok()?;
        let fits = header.format == FORMAT && header.version == VERSION && header.key_id == key_id(&header.public_key);
        (fits && header.line().strip_suffix(b"\n") == Some(line)).then_some(header)
    }
}

/// The last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trailer {
    /// The end of the log, signed.
    pub checkpoint: Checkpoint,
}

/// What the last line begins with, and no other.
pub(super) const TRAILER_START: &[u8] = b"{\"checkpoint\":";

impl Trailer {
    /// The line, its line feed included.
    pub fn line(&self) -> Vec<u8> {
        json_line(self)
    }

    /// Reads the line (without its line feed). `None`: it is no trailer, or not spelled as one.
    pub fn read(line: &[u8]) -> Option<Self> {
        let trailer: Self = serde_json::from_slice(line).ok()?;
        (trailer.line().strip_suffix(b"\n") == Some(line)).then_some(trailer)
    }
}

fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("texts, numbers and times are JSON");
    line.push(b'\n');
    line
}

/// Appends the line of an event, with its words if there are any.
pub fn write_event(out: &mut Vec<u8>, linked: &Linked) {
    let Linked { event, links, seal, private } = linked;
    out.extend_from_slice(b"{\"links\":{\"stream\":\"");
    hex::put(out, &links.stream.0);
    out.extend_from_slice(b"\",\"global\":\"");
    hex::put(out, &links.global.0);
    out.extend_from_slice(b"\"}");
    if let Some(seal) = seal {
        out.extend_from_slice(b",\"seal\":\"");
        hex::put(out, &seal.0);
        out.push(b'"');
    }
    if let Some(private) = private {
        out.extend_from_slice(b",\"salt\":\"");
        hex::put(out, &private.salt);
        out.push(b'"');
        put_json(out, ",\"words\":", ",\"wordsText\":", private.content.get());
    }
    out.extend_from_slice(b",\"event\":{\"id\":\"");
    put_uuid(out, event.id.0);
    out.extend_from_slice(b"\",\"type\":");
    put_text(out, &event.kind);
    out.extend_from_slice(b",\"schema\":");
    put_number(out, event.schema.into());
    out.extend_from_slice(b",\"stream\":");
    put_text(out, event.stream.as_str());
    out.extend_from_slice(b",\"revision\":");
    put_number(out, event.revision.0);
    out.extend_from_slice(b",\"position\":");
    put_number(out, event.position.0);
    out.extend_from_slice(b",\"time\":\"");
    put_time(out, event);
    out.extend_from_slice(b"\",\"actor\":");
    put_actor(out, &event.actor);
    if let Some(correlation) = &event.correlation {
        out.extend_from_slice(b",\"correlation\":");
        put_text(out, correlation.as_str());
    }
    if let Some(causation) = event.causation {
        out.extend_from_slice(b",\"causation\":\"");
        put_uuid(out, causation.0);
        out.push(b'"');
    }
    put_json(out, ",\"data\":", ",\"text\":", event.data.get());
    out.extend_from_slice(b"}}\n");
}

/// Appends JSON as it is under the first name, or as a text under the second where it is none, or not on one line.
fn put_json(out: &mut Vec<u8>, name: &str, name_of_text: &str, data: &str) {
    let whole = |data: &str| serde_json::from_str::<&RawValue>(data).is_ok_and(|json| json.get().len() == data.len());
    if !data.bytes().any(|byte| matches!(byte, b'\n' | b'\r')) && whole(data) {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(data.as_bytes());
    } else {
        out.extend_from_slice(name_of_text.as_bytes());
        put_text(out, data);
    }
}

/// Appends a JSON text.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(&mut *out, text).expect("a text is JSON, and a vector takes it");
    }
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn put_uuid(out: &mut Vec<u8>, id: uuid::Uuid) {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    out.extend_from_slice(id.hyphenated().encode_lower(&mut text).as_bytes());
}

fn put_time(out: &mut Vec<u8>, event: &Envelope) {
    use std::io::Write as _;
    write!(out, "{}", event.time).expect("a vector takes everything");
}

fn put_actor(out: &mut Vec<u8>, actor: &Actor) {
    serde_json::to_writer(out, actor).expect("texts and addresses are JSON, and a vector takes them");
}
