//! How fast a whole export is verified, next to what reading and hashing the same bytes costs:
//! `cargo bench -p orchestra-events --bench audit`.
//!
//! The log has a million events (or as many as the first argument says) as tasks write them: conversation, tool calls of
//! about 700 bytes, reservations, settlements, charges, and a checkpoint every ten thousand. The yardsticks are one thread that
//! counts the lines of the file, and as many threads as the machine has cores that do nothing but SHA-256 over its bytes.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use orchestra_events::audit::checkpoint::{self, CheckpointEvent, Statement};
use orchestra_events::audit::export::{Header, Trailer, write_event};
use orchestra_events::audit::hex::Hex;
use orchestra_events::audit::{SigningKey, Trust, verify};
use orchestra_events::envelope::Private;
use orchestra_events::ledger::event::{Amount, Cap, LedgerEvent, Reserved, Settled};
use orchestra_events::store::chain::{Digest, Linked, body, extend, seal};
use orchestra_events::task::TaskEvent;
use orchestra_events::task::conversation::Usage;
use orchestra_events::{
    Actor, ActorKind, CallId, Envelope, EventId, Json, NanoUsd, Position, Revision, StreamName, TaskId,
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const EVENTS: u64 = 1_000_000;
const ROUNDS: usize = 3;
/// Calls of one task.
const CALLS: u64 = 10;
const CHECKPOINT_EVERY: u64 = 10_000;

struct Log {
    position: u64,
    global: Digest,
    first: Option<Digest>,
    streams: std::collections::HashMap<StreamName, (u64, Digest)>,
    line: Vec<u8>,
}

impl Log {
    fn push(&mut self, out: &mut impl Write, stream: &StreamName, kind: &str, data: String, words: Option<String>) {
        let (revision, in_stream) = self.streams.get(stream).copied().unwrap_or((0, Digest::GENESIS));
        self.position += 1;
        let event = Envelope {
            id: EventId(Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0000 + u128::from(self.position))),
            kind: Arc::from(kind),
            schema: 1,
            stream: stream.clone(),
            revision: Revision(revision),
            position: Position(self.position),
            time: jiff::Timestamp::from_microsecond(
                1_795_000_000_000_000 + i64::try_from(self.position).unwrap() * 999,
            )
            .unwrap(),
            actor: Actor {
                kind: ActorKind::System,
                id: "task".to_owned(),
                team: Some("platform".to_owned()),
                origin: None,
            },
            correlation: Some(stream.clone()),
            causation: None,
            data: Json::stored(data),
            erased: false,
        };
        let private = words.map(|words| Private { salt: [7; 32], content: Json::stored(words) });
        let sealed = private.as_ref().map(seal);
        let links = extend(in_stream, self.global, body(&event, sealed));
        self.streams.insert(stream.clone(), (revision + 1, links.stream));
        self.global = links.global;
        self.first.get_or_insert(links.global);
        self.line.clear();
        write_event(&mut self.line, &Linked { event, links, seal: sealed, private });
        out.write_all(&self.line).unwrap();
    }

    fn ledger(&mut self, out: &mut impl Write, event: &LedgerEvent) {
        let stream = StreamName::ledger("platform").unwrap();
        self.push(out, &stream, event.kind(), event.data().unwrap().get().to_owned(), None);
    }

    fn statement(&self) -> Statement {
        Statement {
            log: self.first.unwrap(),
            position: Position(self.position),
            link: self.global,
            time: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    /// One call: money set aside, the answer, what it asked for, what came of it.
    fn call(&mut self, out: &mut impl Write, task: TaskId, number: u64) {
        let call = CallId::from_uuid(Uuid::from_u128(u128::from(number) << 32 | 1));
        let stream = StreamName::task(task);
        let usage = Usage { input_tokens: 12_000, output_tokens: 400, ..Usage::default() };
        let (cost, price) = (NanoUsd::from_nanos(42_000_000), "claude-sonnet-4-6/2026-01".to_owned());
        self.ledger(
            out,
            &LedgerEvent::Reserved(Box::new(Reserved {
                call,
                task,
                path: orchestra_events::ledger::Path::team("platform"),
                day: "2026-11-22".parse().unwrap(),
                days: Default::default(),
                reserved_nano_usd: NanoUsd::from_nanos(90_000_000),
                reserved_tokens: 30_000,
                max_output_tokens: 4_096,
                model: "claude-sonnet-4-6".to_owned(),
                price: price.clone(),
                own: Cap::default(),
                opening: Amount::ZERO,
                campaign: None,
            })),
        );
        let settled = Settled { call, task, usage, cost_nano_usd: cost, confirmed: true, price: price.clone() };
        self.ledger(out, &LedgerEvent::Settled(Box::new(settled)));
        let model = "claude-sonnet-4-6".to_owned();
        let charged = TaskEvent::TokensCharged {
            call,
            model,
            usage,
            cost_nano_usd: cost,
            confirmed: true,
            price,
            stop_reason: None,
        };
        self.push(out, &stream, charged.kind(), charged.data().unwrap().get().to_owned(), None);
        let words = format!(
            "{{\"content\":[{{\"type\":\"text\",\"text\":\"{}\"}}]}}",
            "I look at the module first. ".repeat(9)
        );
        self.push(out, &stream, "message", format!("{{\"call\":\"{call}\",\"content\":[]}}"), Some(words));
        for tool in 0..2 {
            let words = format!(
                "{{\"input\":{{\"path\":\"modules/network/main.tf\",\"new\":\"{}\"}}}}",
                "  for_each = var.subnets\\n".repeat(18)
            );
            let data = format!("{{\"toolCall\":\"toolu_{number}_{tool}\",\"name\":\"edit-file\",\"input\":{{}}}}");
            self.push(out, &stream, "tool-called", data, Some(words));
            let words = format!("{{\"output\":\"{}\"}}", "applied 1 change to modules/network/main.tf\\n".repeat(12));
            let data = format!(
                "{{\"toolCall\":\"toolu_{number}_{tool}\",\"outcome\":\"ok\",\"durationMs\":12,\"omittedBytes\":0,\"output\":\"\"}}"
            );
            self.push(out, &stream, "tool-finished", data, Some(words));
        }
    }
}

fn write(path: &Path, events: u64, key: &SigningKey) {
    let mut log = Log {
        position: 0,
        global: Digest::GENESIS,
        first: None,
        streams: std::collections::HashMap::new(),
        line: Vec::new(),
    };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    // The header names the first event's link, which is known once the first line is.
    let mut head = Vec::new();
    log.push(&mut head, &"key-0198".parse().unwrap(), "key-issued", "{\"name\":\"first\"}".to_owned(), None);
    file.write_all(&Header::new(log.first.unwrap(), Hex(key.verifying_key().to_bytes())).line()).unwrap();
    file.write_all(&head).unwrap();
    let mut signed = 0;
    let mut number = 0;
    while log.position < events {
        number += 1;
        log.call(&mut file, TaskId::from_uuid(Uuid::from_u128(u128::from(number / CALLS + 1))), number);
        if log.position - signed >= CHECKPOINT_EVERY {
            signed = log.position;
            let event = CheckpointEvent::CheckpointSigned(Box::new(log.statement().sign(key)));
            let data = event.data().unwrap().get().to_owned();
            log.push(&mut file, &checkpoint::stream("node").unwrap(), event.kind(), data, None);
        }
    }
    file.write_all(&Trailer { checkpoint: log.statement().sign(key) }.line()).unwrap();
    file.flush().unwrap();
}

fn lines(path: &Path) -> u64 {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).unwrap());
    let mut lines = 0;
    loop {
        let bytes = file.fill_buf().unwrap();
        if bytes.is_empty() {
            return lines;
        }
        lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let used = bytes.len();
        file.consume(used);
    }
}

/// Each thread hashes its part of the file.
fn hash(path: &Path, threads: u64) {
    let length = std::fs::metadata(path).unwrap().len();
    thread::scope(|scope| {
        for part in 0..threads {
            scope.spawn(move || {
                let mut file = File::open(path).unwrap();
                file.seek(SeekFrom::Start(length / threads * part)).unwrap();
                let mut rest = file.take(length / threads + threads);
                let mut buffer = vec![0; 256 * 1024];
                let mut hash = Sha256::new();
                loop {
                    match rest.read(&mut buffer).unwrap() {
                        0 => break,
                        read => hash.update(&buffer[..read]),
                    }
                }
                std::hint::black_box(hash.finalize());
            });
        }
    });
}

fn main() {
    let events = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(EVENTS);
    let key = SigningKey::from_bytes(&[7; 32]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.ndjson");
    let began = Instant::now();
    write(&path, events, &key);
    let bytes = std::fs::metadata(&path).unwrap().len();
    let threads = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    println!(
        "{events} events, {} MB, written in {:.1} s; {threads} cores",
        bytes / 1_000_000,
        began.elapsed().as_secs_f64()
    );
    let trust = Trust { keys: vec![Hex(key.verifying_key().to_bytes())], checkpoints: Vec::new() };
    println!("| round | count lines | SHA-256 of the bytes, {threads} threads | verify | events per second |");
    println!("| --- | --- | --- | --- | --- |");
    for round in 1..=ROUNDS {
        let began = Instant::now();
        let counted = lines(&path);
        let counting = began.elapsed().as_secs_f64();
        let began = Instant::now();
        hash(&path, threads);
        let hashing = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let report = verify::export(BufReader::with_capacity(1 << 20, File::open(&path).unwrap()), &trust).unwrap();
        let verifying = began.elapsed().as_secs_f64();
        assert!(report.holds(), "{report:?}");
        assert_eq!(report.found.events + 2, counted);
        println!(
            "| {round} | {counting:.2} s | {hashing:.2} s | {verifying:.2} s | {:.0} |",
            report.found.events as f64 / verifying
        );
    }
}
