//! Logs to verify: small ones with tasks, a ledger and checkpoints, and what is done to them.

mod breaks;
mod money;
mod mutations;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::checkpoint::{self, Checkpoint, CheckpointEvent, PublicKey, Statement};
use super::export::{Header, Trailer, write_event};
use super::hex::Hex;
use super::{Report, SigningKey, Trust, verify};
use crate::envelope::{Actor, ActorKind, Envelope, Origin, Position, Private, Revision, StreamName};
use crate::failure::FailureCode;
use crate::id::{CallId, EventId, TaskId};
use crate::json::Json;
use crate::ledger::event::{Amount, Cap, LedgerEvent, Refunded, Reserved, Settled};
use crate::ledger::scope::Path;
use crate::money::NanoUsd;
use crate::store::chain::{Digest, Linked, body, extend, seal};
use crate::task::TaskEvent;
use crate::task::conversation::Usage;

pub(super) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(super) fn other_key() -> SigningKey {
    SigningKey::from_bytes(&[8; 32])
}

pub(super) fn public(key: &SigningKey) -> PublicKey {
    Hex(key.verifying_key().to_bytes())
}

/// Steele, Lea and Flood's SplitMix64: small, and the same everywhere.
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap()
    }
}

/// A log under construction.
#[derive(Clone, Default)]
pub(super) struct Log {
    pub events: Vec<Linked>,
}

pub(super) fn time(number: u64) -> Timestamp {
    let start: Timestamp = "2026-11-22T10:00:00.000001Z".parse().unwrap();
    start + jiff::SignedDuration::from_millis(i64::try_from(number * 37).unwrap())
}

pub(super) fn task(number: u128) -> TaskId {
    TaskId::from_uuid(Uuid::from_u128(number))
}

pub(super) fn call(number: u128) -> CallId {
    CallId::from_uuid(Uuid::from_u128(0xca11 << 64 | number))
}

impl Log {
    fn head(&self, stream: &StreamName) -> (u64, Digest, Digest) {
        let of_stream = self.events.iter().rev().find(|linked| linked.event.stream == *stream);
        let (revision, link) =
            of_stream.map_or((0, Digest::GENESIS), |linked| (linked.event.revision.0 + 1, linked.links.stream));
        (revision, link, self.events.last().map_or(Digest::GENESIS, |linked| linked.links.global))
    }

    pub fn link_of(&self, position: u64) -> Digest {
        self.events[usize::try_from(position).unwrap() - 1].links.global
    }

    pub fn raw(&mut self, stream: &StreamName, kind: &str, data: &str) -> u64 {
        let (revision, in_stream, in_log) = self.head(stream);
        let position = self.events.len() as u64 + 1;
        // Some have origins, and some a cause.
        let origin = position.is_multiple_of(5).then(|| {
            Box::new(Origin {
                name: Some("Zoë \"ops\"".to_owned()),
                address: Some("2001:db8::ab:1".parse().unwrap()),
                user_agent: Some("curl/8".to_owned()),
                request: None,
            })
        });
        let event = Envelope {
            id: EventId(Uuid::from_u128(0x0198_aaaa_bbbb_7ccc_8ddd_0000_0000_0000 + u128::from(position))),
            kind: Arc::from(kind),
            schema: 1,
            stream: stream.clone(),
            revision: Revision(revision),
            position: Position(position),
            time: time(position),
            actor: Actor { kind: ActorKind::ApiKey, id: "key_1".to_owned(), team: Some("web".to_owned()), origin },
            correlation: position.is_multiple_of(3).then(|| stream.clone()),
            causation: position.is_multiple_of(4).then(|| EventId(Uuid::from_u128(u128::from(position) << 64))),
            data: Json::stored(data),
            erased: false,
        };
        // Some have words that may be forgotten.
        let private = position.is_multiple_of(7).then(|| Private {
            salt: [u8::try_from(position % 251).unwrap(); 32],
            content: Json::stored(format!("{{\"words\":\"of {position}\"}}")),
        });
        let seal = private.as_ref().map(seal);
        let links = extend(in_stream, in_log, body(&event, seal));
        self.events.push(Linked { event, links, seal, private });
        position
    }

    pub fn push(&mut self, stream: &StreamName, kind: &str, data: &RawValue) -> u64 {
        self.raw(stream, kind, data.get())
    }

    pub fn task(&mut self, id: TaskId, event: &TaskEvent) -> u64 {
        self.push(&StreamName::task(id), event.kind(), &event.data().unwrap())
    }

    pub fn ledger(&mut self, event: &LedgerEvent) -> u64 {
        self.push(&StreamName::ledger("web").unwrap(), event.kind(), &event.data().unwrap())
    }

    pub fn statement(&self) -> Statement {
        let position = self.events.len() as u64;
        Statement {
            log: self.link_of(1),
            position: Position(position),
            link: self.link_of(position),
            time: time(position),
        }
    }

    pub fn checkpoint(&mut self, key: &SigningKey) -> Checkpoint {
        let checkpoint = self.statement().sign(key);
        let event = CheckpointEvent::CheckpointSigned(Box::new(checkpoint));
        self.push(&checkpoint::stream("node-1").unwrap(), event.kind(), &event.data().unwrap());
        checkpoint
    }

    /// A call from its reservation to its charge.
    pub fn call(&mut self, id: TaskId, number: u128, cost: i64) {
        self.ledger(&reserved(id, number, cost + 1_000));
        self.ledger(&settled(id, number, cost));
        self.task(id, &charged(number, cost));
    }

    /// Every link computed anew, from this position on: what somebody does who can write the database and has no key.
    pub fn relink(&mut self, from: u64) {
        let rest = self.events.split_off(usize::try_from(from).unwrap() - 1);
        for linked in rest {
            let mut event = linked.event;
            let (revision, in_stream, in_log) = self.head(&event.stream);
            event.revision = Revision(revision);
            event.position = Position(self.events.len() as u64 + 1);
            let Linked { seal, private, .. } = linked;
            let links = extend(in_stream, in_log, body(&event, seal));
            self.events.push(Linked { event, links, seal, private });
        }
    }

    pub fn lines(&self, key: &SigningKey) -> Vec<Vec<u8>> {
        let mut lines = vec![Header::new(self.link_of(1), public(key)).line()];
        lines.extend(self.events.iter().map(line));
        lines.push(Trailer { checkpoint: self.statement().sign(key) }.line());
        lines
    }
}

pub(super) fn line(linked: &Linked) -> Vec<u8> {
    let mut line = Vec::new();
    write_event(&mut line, linked);
    line
}

pub(super) fn usage(cost: i64) -> Usage {
    Usage { input_tokens: cost.unsigned_abs(), output_tokens: 3, ..Usage::default() }
}

pub(super) fn reserved(id: TaskId, number: u128, bound: i64) -> LedgerEvent {
    LedgerEvent::Reserved(Box::new(Reserved {
        call: call(number),
        task: id,
        path: Path::team("web"),
        day: "2026-11-22".parse().unwrap(),
        days: Default::default(),
        reserved_nano_usd: NanoUsd::from_nanos(bound),
        reserved_tokens: bound.unsigned_abs(),
        max_output_tokens: 100,
        model: "m".to_owned(),
        price: "p".to_owned(),
        own: Cap::default(),
        opening: Amount::ZERO,
        campaign: None,
    }))
}

pub(super) fn settled(id: TaskId, number: u128, cost: i64) -> LedgerEvent {
    LedgerEvent::Settled(Box::new(Settled {
        call: call(number),
        task: id,
        usage: usage(cost),
        cost_nano_usd: NanoUsd::from_nanos(cost),
        confirmed: true,
        price: "p".to_owned(),
    }))
}

pub(super) fn charged(number: u128, cost: i64) -> TaskEvent {
    TaskEvent::TokensCharged {
        call: call(number),
        model: "m".to_owned(),
        usage: usage(cost),
        cost_nano_usd: NanoUsd::from_nanos(cost),
        confirmed: true,
        price: "p".to_owned(),
        stop_reason: None,
    }
}

pub(super) fn refunded(id: TaskId, nano_usd: i64) -> LedgerEvent {
    LedgerEvent::Refunded(Refunded {
        task: id,
        nano_usd: NanoUsd::from_nanos(nano_usd),
        reason: FailureCode::ModelUnavailable,
        day: None,
        usage: Usage::default(),
    })
}

/// A log of about so many events with everything in it.
pub(super) fn sample(events: usize) -> Log {
    let mut log = Log::default();
    log.raw(&"key-0198".parse().unwrap(), "key-issued", r#"{"name":"first \u00e9\n","scopes":["admin"]}"#);
    let mut number = 0;
    while log.events.len() < events {
        number += 1;
        let id = task(number);
        log.task(id, &TaskEvent::Queued {});
        log.call(id, 10 * number, 5_000 + i64::try_from(number).unwrap());
        log.raw(&"future-1".parse().unwrap(), "unheard-of", &format!("{{\"n\":{number}, \"x\":[1.50, \"\u{e9}\"]}}"));
        log.task(id, &TaskEvent::Steered { message: format!("a \"word\"\n\u{1} and {number}") });
        log.call(id, 10 * number + 1, 700);
        if number % 3 == 0 {
            log.ledger(&refunded(id, 5_000));
            let reason = FailureCode::ModelUnavailable;
            log.task(id, &TaskEvent::RefundGranted { nano_usd: NanoUsd::from_nanos(5_000), reason });
        }
        log.task(id, &TaskEvent::Succeeded {});
        if number % 2 == 0 {
            log.checkpoint(&key());
        }
    }
    // Not on one line, and no JSON at all: both are exported as texts.
    log.raw(&"future-1".parse().unwrap(), "unheard-of", "{\n\"n\": 1 }");
    log.raw(&"future-1".parse().unwrap(), "unheard-of", "{damaged");
    log
}

pub(super) fn check(lines: &[Vec<u8>], trust: &Trust) -> Report {
    verify::export(&lines.concat()[..], trust).unwrap()
}

pub(super) fn pinned() -> Trust {
    Trust { keys: vec![public(&key())], checkpoints: Vec::new() }
}

#[test]
fn a_good_log_verifies() {
    let log = sample(300);
    let lines = log.lines(&key());
    for trust in [pinned(), Trust::default()] {
        let report = check(&lines, &trust);
        assert!(report.holds(), "{report:?}");
        assert_eq!(report.found.events, log.events.len() as u64);
        assert_eq!(report.position, log.events.len() as u64);
        assert!(report.found.signed > 2 && report.found.not_checked == 0, "{report:?}");
        assert_eq!(report.found.keys, [super::key_id(&public(&key()))]);
        let balance = report.books.unwrap();
        assert!(balance.calls > 40 && balance.ledgers == 1 && balance.under_way == 0, "{balance:?}");
        let settled: i64 = 5_700 * i64::try_from(balance.tasks).unwrap();
        assert!(balance.settled.nano_usd.nanos() > settled, "{balance:?}");
        assert!(balance.refunded.nanos() > 0, "{balance:?}");
    }
}

#[test]
fn a_line_means_what_the_store_has() {
    for linked in sample(40).events {
        let line = line(&linked);
        let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let mut event: Envelope = match read["event"].get("text") {
            None => serde_json::from_value(read["event"].clone()).unwrap(),
            Some(_) => linked.event.clone(),
        };
        if event.data != linked.event.data {
            let values = [&event.data, &linked.event.data].map(|data| data.get().parse::<serde_json::Value>().unwrap());
            assert_eq!(values[0], values[1]);
            event.data = linked.event.data.clone();
        }
        assert_eq!(body(&event, linked.seal), body(&linked.event, linked.seal), "{}", String::from_utf8_lossy(&line));
    }
}
