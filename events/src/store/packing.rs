//! The compact binary form of an event's metadata: what a row stores and what the hash chain covers.
//!
//! ```text
//! meta  = id        16 bytes
//!         schema    u16
//!         seconds   i64   since 1970-01-01T00:00:00Z
//!         nanos     i32   of that second, with the same sign
//!         kind      u8    of the actor: 1 api-key, 2 person, 3 system; 16 more if there is an origin
//!         actor id  text
//!         team      0 | 1 text
//!         origin    u8    only with the 16: the sum of 1 name, 2 address, 4 user agent, 8 request; not 0
//!                   text for each of the first three that is there, 16 bytes for the request
//!         correl.   0 | 1 text | 2      (2: the event's own stream)
//!         causation 0 | 1 id (16 bytes)
//! text  = u32 length in bytes, then that many bytes of UTF-8
//! ```
//! Integers are big-endian. There is exactly one encoding of each value; `2` is used whenever it can be.

use std::net::IpAddr;

use jiff::Timestamp;
use uuid::Uuid;

use crate::envelope::{Actor, ActorKind, Origin, StreamName};
use crate::id::EventId;

/// The metadata of an event: everything but its stream, its type, its data and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The event's id.
    pub id: EventId,
    /// The version of the shape of its data.
    pub schema: u16,
    /// When it happened.
    pub time: Timestamp,
    /// Who caused it.
    pub actor: Actor,
    /// The stream it belongs to in the larger story.
    pub correlation: Option<StreamName>,
    /// The event that led to it.
    pub causation: Option<EventId>,
}

/// The borrowed fields that [`pack`] writes.
pub(crate) struct MetaRef<'a> {
    pub id: EventId,
    pub schema: u16,
    pub time: Timestamp,
    pub actor: &'a Actor,
    pub correlation: Option<&'a StreamName>,
    pub causation: Option<EventId>,
}

const NONE: u8 = 0;
const SOME: u8 = 1;
const OWN_STREAM: u8 = 2;
const WITH_ORIGIN: u8 = 16;
const NAME: u8 = 1;
const ADDRESS: u8 = 2;
const USER_AGENT: u8 = 4;
const REQUEST: u8 = 8;

/// Appends a text with its length.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    // Texts come from envelopes whose size the store bounds far below 4 GiB.
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Packs the metadata of an event of `stream`.
pub(crate) fn pack(stream: &StreamName, meta: &MetaRef<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    out.extend_from_slice(meta.id.0.as_bytes());
    out.extend_from_slice(&meta.schema.to_be_bytes());
    out.extend_from_slice(&meta.time.as_second().to_be_bytes());
    out.extend_from_slice(&meta.time.subsec_nanosecond().to_be_bytes());
    let origin = meta.actor.origin.as_deref().filter(|origin| **origin != Origin::default());
    let kind = match meta.actor.kind {
        ActorKind::ApiKey => 1,
        ActorKind::Person => 2,
        ActorKind::System => 3,
    };
    out.push(if origin.is_some() { kind + WITH_ORIGIN } else { kind });
    put_text(&mut out, &meta.actor.id);
    match &meta.actor.team {
        None => out.push(NONE),
        Some(team) => {
            out.push(SOME);
            put_text(&mut out, team);
        }
    }
    if let Some(origin) = origin {
        put_origin(&mut out, origin);
    }
    match meta.correlation {
        None => out.push(NONE),
        Some(own) if own == stream => out.push(OWN_STREAM),
        Some(other) => {
            out.push(SOME);
            put_text(&mut out, other.as_str());
        }
    }
    match meta.causation {
        None => out.push(NONE),
        Some(cause) => {
            out.push(SOME);
            out.extend_from_slice(cause.0.as_bytes());
        }
    }
    out
}

fn put_origin(out: &mut Vec<u8>, origin: &Origin) {
    let flag = |there: bool, flag: u8| if there { flag } else { 0 };
    out.push(
        flag(origin.name.is_some(), NAME)
            + flag(origin.address.is_some(), ADDRESS)
            + flag(origin.user_agent.is_some(), USER_AGENT)
            + flag(origin.request.is_some(), REQUEST),
    );
    let address = origin.address.map(|address| address.to_string());
    for text in [&origin.name, &address, &origin.user_agent].into_iter().flatten() {
        put_text(out, text);
    }
    if let Some(request) = origin.request {
        out.extend_from_slice(request.0.as_bytes());
    }
}

/// The id in front of packed metadata.
pub(crate) fn packed_id(packed: &[u8]) -> Option<EventId> {
    packed.first_chunk().map(|bytes| EventId(Uuid::from_bytes(*bytes)))
}

/// Unpacks the metadata of an event of `stream`; `None` if the bytes are not what [`pack`] writes.
pub(crate) fn unpack(stream: &StreamName, packed: &[u8]) -> Option<Meta> {
    let mut rest = Unread(packed);
    let id = EventId(Uuid::from_bytes(rest.take()?));
    let schema = u16::from_be_bytes(rest.take()?);
    let seconds = i64::from_be_bytes(rest.take()?);
    let nanos = i32::from_be_bytes(rest.take()?);
    let time = Timestamp::new(seconds, nanos).ok()?;
    let kind = rest.byte()?;
    let with_origin = kind & WITH_ORIGIN != 0;
    let kind = match kind & !WITH_ORIGIN {
        1 => ActorKind::ApiKey,
        2 => ActorKind::Person,
        3 => ActorKind::System,
        _ => return None,
    };
    let actor_id = rest.text()?.to_owned();
    let team = match rest.byte()? {
        NONE => None,
        SOME => Some(rest.text()?.to_owned()),
        _ => return None,
    };
    let origin = if with_origin { Some(Box::new(rest.origin()?)) } else { None };
    let correlation = match rest.byte()? {
        NONE => None,
        SOME => Some(rest.text()?.parse().ok()?),
        OWN_STREAM => Some(stream.clone()),
        _ => return None,
    };
    let causation = match rest.byte()? {
        NONE => None,
        SOME => Some(EventId(Uuid::from_bytes(rest.take()?))),
        _ => return None,
    };
    let actor = Actor { kind, id: actor_id, team, origin };
    rest.0.is_empty().then_some(Meta { id, schema, time, actor, correlation, causation })
}

struct Unread<'a>(&'a [u8]);

impl<'a> Unread<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = u32::from_be_bytes(self.take()?) as usize;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    fn origin(&mut self) -> Option<Origin> {
        let there = self.byte()?;
        if there == 0 || there & !(NAME | ADDRESS | USER_AGENT | REQUEST) != 0 {
            return None;
        }
        let mut text = |flag: u8| {
            if there & flag == 0 { Some(None) } else { self.text().map(|text| Some(text.to_owned())) }
        };
        let (name, address, user_agent) = (text(NAME)?, text(ADDRESS)?, text(USER_AGENT)?);
        let address = match address {
            None => None,
            // Only as it is written by `put_origin`: there is one encoding of each value.
            Some(text) => Some(text.parse::<IpAddr>().ok().filter(|address| address.to_string() == text)?),
        };
        let request = if there & REQUEST == 0 { None } else { Some(EventId(Uuid::from_bytes(self.take()?))) };
        Some(Origin { name, address, user_agent, request })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(meta: &Meta) -> Vec<u8> {
        let stream: StreamName = "task-1".parse().unwrap();
        let packed = pack(
            &stream,
            &MetaRef {
                id: meta.id,
                schema: meta.schema,
                time: meta.time,
                actor: &meta.actor,
                correlation: meta.correlation.as_ref(),
                causation: meta.causation,
            },
        );
        assert_eq!(unpack(&stream, &packed).as_ref(), Some(meta));
        packed
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let mut meta = Meta {
            id: EventId(Uuid::from_u128(1)),
            schema: 7,
            time: "1969-12-31T23:59:58.000000001Z".parse().unwrap(),
            actor: Actor {
                kind: ActorKind::Person,
                id: "Zoë 🦀".to_owned(),
                team: Some("platform".to_owned()),
                origin: None,
            },
            correlation: Some("campaign-9".parse().unwrap()),
            causation: Some(EventId(Uuid::max())),
        };
        let other = round_trip(&meta);
        meta.correlation = Some("task-1".parse().unwrap());
        assert!(round_trip(&meta).len() < other.len(), "the own stream is not spelled out");
        meta.correlation = None;
        meta.causation = None;
        meta.actor.team = None;
        let bare = round_trip(&meta);
        meta.actor.origin = Some(Box::default());
        let stream: StreamName = "task-1".parse().unwrap();
        assert_eq!(
            pack(
                &stream,
                &MetaRef {
                    id: meta.id,
                    schema: meta.schema,
                    time: meta.time,
                    actor: &meta.actor,
                    correlation: None,
                    causation: None
                }
            ),
            bare,
            "an origin of which nothing is known is none"
        );
        for origin in [
            Origin { name: Some("Ada".to_owned()), ..Origin::default() },
            Origin { address: Some("2001:db8::1".parse().unwrap()), ..Origin::default() },
            Origin { user_agent: Some("curl/8".to_owned()), request: Some(EventId(Uuid::max())), ..Origin::default() },
        ] {
            meta.actor.origin = origin.known();
            round_trip(&meta);
        }
        meta.actor.origin = Origin {
            name: Some("Ada".to_owned()),
            address: Some("192.0.2.7".parse().unwrap()),
            user_agent: Some(String::new()),
            request: Some(EventId(Uuid::from_u128(5))),
        }
        .known();
        let packed = round_trip(&meta);
        for cut in 0..packed.len() {
            assert_eq!(unpack(&stream, &packed[..cut]), None, "cut at {cut}");
        }
        assert_eq!(unpack(&stream, &[packed, vec![0]].concat()), None, "one byte too many");
    }
}
