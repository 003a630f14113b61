//! The hash chain that makes a changed, missing or reordered event show.
//!
//! ```text
//! canonical   = 0x01 ‖ text(stream) ‖ text(type) ‖ u32 length ‖ meta ‖ text(data)
//!             | 0x02 ‖ text(stream) ‖ text(type) ‖ u32 length ‖ meta ‖ text(public data) ‖ seal
//! seal        = SHA-256(0x04 ‖ salt ‖ private data)
//! body        = SHA-256(0x00 ‖ canonical)
//! stream link = SHA-256(0x02 ‖ previous link of that stream ‖ body)
//! global link = SHA-256(0x03 ‖ previous global link ‖ stream link)
//! ```
//! `text` is a big-endian `u32` length and that many bytes; `meta` is laid out in [`super::packing`]; `data` is the
//! JSON byte for byte as it was appended. The link before the first is 32 zero bytes.
//!
//! An event whose data has a private part has the second form. Its seal stays when the private part and its 32 bytes of salt are
//! erased, so that the chain verifies with and without them.
//!
//! Revision and position are not in `canonical`: a body is hashed before its place is known. They are what the
//! chain itself counts: [`Verifier`] asks that revisions rise by one from 0 in each stream and positions by one from 1.

use std::collections::HashMap;
use std::fmt;

use sha2::{Digest as _, Sha256};

use super::packing::{self, MetaRef};
use crate::envelope::{Envelope, NewEvent, Position, Private, StreamName};

/// The version of the canonical form of an event without a private part, its first byte.
pub const CANONICAL_VERSION: u8 = 1;
/// The version of the canonical form of an event with one.
pub const SEALED_VERSION: u8 = 2;

const BODY: u8 = 0x00;
const STREAM_LINK: u8 = 0x02;
const GLOBAL_LINK: u8 = 0x03;
const SEAL: u8 = 0x04;

/// A SHA-256 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// What stands before the first link.
    pub const GENESIS: Self = Self([0; 32]);
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The salted hash of an event's private part.
pub type Seal = Digest;

/// The seal of a private part.
pub fn seal(private: &Private) -> Seal {
    let hash = Sha256::new().chain_update([SEAL]).chain_update(private.salt).chain_update(private.content.get());
    Digest(hash.finalize().into())
}

/// The two links of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Links {
    /// Its place in its stream's chain.
    pub stream: Digest,
    /// Its place in the whole log's chain.
    pub global: Digest,
}

/// An event with its links.
#[derive(Debug, Clone)]
pub struct Linked {
    /// The event. Its data is the public part alone.
    pub event: Envelope,
    /// What the store recorded for it.
    pub links: Links,
    /// The seal of its private part, if it was appended with one.
    pub seal: Option<Seal>,
    /// The private part, unless it was erased.
    pub private: Option<Private>,
}

impl Linked {
    /// The event as readers see it: with its private part.
    pub fn whole(&self) -> Envelope {
        let mut event = self.event.clone();
        if let Some(private) = &self.private {
            event.data = super::sealed::joined(event.data.get(), Some(private.content.get()));
        }
        event
    }
}

/// The canonical bytes of an event whose data is the public part alone.
pub fn canonical(event: &Envelope, seal: Option<Seal>) -> Vec<u8> {
    let meta = packed_meta(&event.stream, event);
    let data = event.data.get();
    let mut out = Vec::with_capacity(64 + event.stream.as_str().len() + event.kind.len() + meta.len() + data.len());
    canonical_head(&mut out, seal, &event.stream, &event.kind, &meta, data.len());
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(seal.as_ref().map_or(&[], |seal| &seal.0));
    out
}

/// Everything of the canonical form but the bytes of the data, and the seal, at its end.
fn canonical_head(
    out: &mut Vec<u8>,
    seal: Option<Seal>,
    stream: &StreamName,
    kind: &str,
    meta: &[u8],
    data_len: usize,
) {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    out.push(if seal.is_some() { SEALED_VERSION } else { CANONICAL_VERSION });
    packing::put_text(out, stream.as_str());
    packing::put_text(out, kind);
    out.extend_from_slice(&length(meta.len()));
    out.extend_from_slice(meta);
    out.extend_from_slice(&length(data_len));
}

fn packed_meta(stream: &StreamName, event: &Envelope) -> Vec<u8> {
    packing::pack(
        stream,
        &MetaRef {
            id: event.id,
            schema: event.schema,
            time: event.time,
            actor: &event.actor,
            correlation: event.correlation.as_ref(),
            causation: event.causation,
        },
    )
}

/// The hash of an event's content; its data is the public part alone.
pub fn body(event: &Envelope, seal: Option<Seal>) -> Digest {
    let meta = packed_meta(&event.stream, event);
    body_of(&event.stream, &event.kind, &meta, event.data.get(), seal)
}

/// The same from the packed metadata.
pub(crate) fn body_of(stream: &StreamName, kind: &str, meta: &[u8], data: &str, seal: Option<Seal>) -> Digest {
    let mut head = Vec::with_capacity(256);
    head.push(BODY);
    canonical_head(&mut head, seal, stream, kind, meta, data.len());
    let mut hash = Sha256::new().chain_update(&head).chain_update(data);
    if let Some(seal) = seal {
        hash.update(seal.0);
    }
    Digest(hash.finalize().into())
}

/// What can be computed of an event that is about to be appended: its packed metadata, its seal and its body hash.
pub(crate) fn prepare(stream: &StreamName, event: &NewEvent) -> (Vec<u8>, Option<Seal>, Digest) {
    let meta = packing::pack(
        stream,
        &MetaRef {
            id: event.id,
            schema: event.schema,
            time: event.time,
            actor: &event.actor,
            correlation: event.correlation.as_ref(),
            causation: event.causation,
        },
    );
    let seal = event.private.as_ref().map(seal);
    let body = body_of(stream, &event.kind, &meta, event.data.get(), seal);
    (meta, seal, body)
}

fn link(tag: u8, previous: Digest, next: Digest) -> Digest {
    let mut bytes = [0; 65];
    bytes[0] = tag;
    bytes[1..33].copy_from_slice(&previous.0);
    bytes[33..].copy_from_slice(&next.0);
    Digest(Sha256::digest(bytes).into())
}

/// The links of the event with this body, after these links.
pub fn extend(previous_in_stream: Digest, previous_in_log: Digest, body: Digest) -> Links {
    let stream = link(STREAM_LINK, previous_in_stream, body);
    Links { stream, global: link(GLOBAL_LINK, previous_in_log, stream) }
}

/// The global link of the event with this stream link, after this one.
pub fn extend_log(previous_in_log: Digest, stream: Digest) -> Digest {
    link(GLOBAL_LINK, previous_in_log, stream)
}

/// The first place where the log does not verify.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// An event is missing or was moved.
    #[error("position {found:?} follows {after:?}: events are missing or were moved")]
    Position {
        /// The last position that verified.
        after: Position,
        /// What came next.
        found: Position,
    },
    /// A stream does not count up by one.
    #[error("{stream} jumps to revision {found} at position {at:?}, where {expected} was due")]
    Revision {
        /// The stream.
        stream: StreamName,
        /// Where in the log.
        at: Position,
        /// The revision that was due.
        expected: u64,
        /// The revision found.
        found: u64,
    },
    /// The content of an event, or a link, is not what it was.
    #[error("the event at position {at:?} ({stream}, revision {revision}) is not what was appended")]
    Link {
        /// The stream.
        stream: StreamName,
        /// Where in the log.
        at: Position,
        /// Where in its stream.
        revision: u64,
    },
    /// The private part of an event is there and is not what was sealed.
    #[error("the words of the event at position {at:?} ({stream}, revision {revision}) are not those that were sealed")]
    Content {
        /// The stream.
        stream: StreamName,
        /// Where in the log.
        at: Position,
        /// Where in its stream.
        revision: u64,
    },
}

/// Walks the log in order of position and recomputes every link.
///
/// Holds one hash per stream, so memory grows with the number of streams.
#[derive(Debug)]
pub struct Verifier {
    last: Position,
    global: Digest,
    streams: HashMap<StreamName, (u64, Digest)>,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { last: Position::START, global: Digest::GENESIS, streams: HashMap::new() }
    }
}

impl Verifier {
    /// Checks the next event.
    pub fn check(&mut self, linked: &Linked) -> Result<(), Break> {
        let Linked { event, links, seal: sealed, private } = linked;
        if event.position.0 != self.last.0 + 1 {
            return Err(Break::Position { after: self.last, found: event.position });
        }
        let (due, previous) = self.streams.get(&event.stream).copied().unwrap_or((0, Digest::GENESIS));
        if event.revision.0 != due {
            return Err(Break::Revision {
                stream: event.stream.clone(),
                at: event.position,
                expected: due,
                found: event.revision.0,
            });
        }
        if extend(previous, self.global, body(event, *sealed)) != *links {
            return Err(Break::Link { stream: event.stream.clone(), at: event.position, revision: event.revision.0 });
        }
        // What was erased leaves its seal; what is there must fit it.
        if private.as_ref().is_some_and(|private| Some(seal(private)) != *sealed) {
            return Err(Break::Content {
                stream: event.stream.clone(),
                at: event.position,
                revision: event.revision.0,
            });
        }
        self.last = event.position;
        self.global = links.global;
        self.streams.insert(event.stream.clone(), (due + 1, links.stream));
        Ok(())
    }

    /// The last position that verified, and the global link there: what an anchor outside records.
    pub fn head(&self) -> (Position, Digest) {
        (self.last, self.global)
    }
}

/// Checks a run of events from the start of the log; the first break, if there is one.
pub fn verify<'a>(events: impl IntoIterator<Item = &'a Linked>) -> Result<(Position, Digest), Break> {
    let mut verifier = Verifier::default();
    events.into_iter().try_for_each(|linked| verifier.check(linked))?;
    Ok(verifier.head())
}
