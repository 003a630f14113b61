//! How fast the embedded event store is, next to what the disk allows: `cargo bench -p orchestra-events`.
//!
//! The yardstick is a bare append-only file behind the same kind of writer thread: a bounded queue, group commit
//! without artificial delay, one `fdatasync` per group, one answer per append. It keeps no index, checks nothing and
//! cannot be read. Both run in turn in every round, so that a noisy machine disturbs both alike.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestra_events::store::sqlite::SqliteStore;
use orchestra_events::store::{fold_log, fold_stream};
use orchestra_events::task::{TaskEvent, evolve};
use orchestra_events::{
    Actor, ActorKind, Envelope, EventId, EventStore, Expected, NewEvent, Position, Revision, StoreError, StreamName,
    TaskId,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

const WRITERS: [usize; 3] = [1, 16, 256];
const ROUNDS: usize = 7;
const WARM_UP: Duration = Duration::from_millis(200);
const MEASURED: Duration = Duration::from_millis(700);
/// Bytes of `data` in each event.
const DATA_BYTES: usize = 700;
/// What the bare file writes besides: about what the store keeps of an envelope.
const ENVELOPE_BYTES: usize = 100;
/// Every so many appends a writer names a wrong revision, and must be refused.
const CONFLICT_EVERY: u64 = 500;

/// The data of a typical event: what a tool call looks like.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolCalled {
    call: String,
    attempt: u32,
    tool: String,
    arguments: Arguments,
    tokens: u64,
    cost_nano_usd: u64,
    cached: bool,
}

#[derive(Deserialize)]
struct Arguments {
    path: String,
    old: String,
    new: String,
}

fn data(number: u64) -> Box<RawValue> {
    let mut text = format!(
        "{{\"call\":\"call_01k9xq7n3{number:017}\",\"attempt\":1,\"tool\":\"edit-file\",\"tokens\":{},\
         \"costNanoUsd\":{},\"cached\":false,\"arguments\":{{\"path\":\"modules/network/main.tf\",\
         \"old\":\"resource \\\"aws_subnet\\\" {{\\n  count = 3\\n}}\\n\",\"new\":\"",
        1_000 + number % 777,
        3_000_000 + number,
    );
    let end = "\"}}";
    while text.len() + end.len() + 16 <= DATA_BYTES {
        text.push_str("  for_each = 1\\n");
    }
    while text.len() + end.len() < DATA_BYTES {
        text.push('.');
    }
    text.push_str(end);
    RawValue::from_string(text).unwrap()
}

fn event(number: u64) -> NewEvent {
    NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: "tool-called".into(),
        schema: 1,
        time: jiff::Timestamp::now(),
        actor: Actor {
            kind: ActorKind::System,
            id: "task".to_owned(),
            team: Some("platform".to_owned()),
            origin: None,
        },
        correlation: None,
        causation: None,
        data: data(number),
        private: None,
    }
}

/// The yardstick.
#[derive(Clone)]
struct BareFile {
    queue: mpsc::Sender<(Vec<u8>, oneshot::Sender<()>)>,
}

impl BareFile {
    fn open(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        let (queue, mut waiting) = mpsc::channel::<(Vec<u8>, oneshot::Sender<()>)>(4_096);
        std::thread::spawn(move || {
            let (mut bytes, mut replies) = (Vec::new(), Vec::new());
            while let Some(first) = waiting.blocking_recv() {
                let mut next = Some(first);
                while let Some((record, reply)) = next.take() {
                    bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
                    bytes.extend_from_slice(&record);
                    replies.push(reply);
                    if replies.len() < 1_024 {
                        next = waiting.try_recv().ok();
                    }
                }
                file.write_all(&bytes).unwrap();
                file.sync_data().unwrap();
                bytes.clear();
                for reply in replies.drain(..) {
                    let _ = reply.send(());
                }
            }
        });
        Self { queue }
    }

    async fn append(&self, event: NewEvent) {
        let mut record = Vec::with_capacity(DATA_BYTES + ENVELOPE_BYTES);
        record.resize(ENVELOPE_BYTES, 7);
        record.extend_from_slice(event.data.get().as_bytes());
        let (reply, done) = oneshot::channel();
        self.queue.send((record, reply)).await.unwrap();
        done.await.unwrap();
    }
}

#[derive(Clone)]
enum Engine {
    Bare(BareFile),
    Sqlite(Arc<SqliteStore>),
}

/// What one writer measured: how long each acknowledged append took, and how many conflicts were refused.
struct Lap {
    latencies: Vec<Duration>,
    conflicts: u64,
}

async fn write(engine: Engine, writer: usize, start: Instant) -> Lap {
    let stream: StreamName = format!("task-{}-{writer}", Uuid::now_v7()).parse().unwrap();
    let mut lap = Lap { latencies: Vec::new(), conflicts: 0 };
    let mut expected = Expected::NoStream;
    for number in 0.. {
        let began = Instant::now();
        if began - start >= WARM_UP + MEASURED {
            break;
        }
        match &engine {
            Engine::Bare(file) => file.append(event(number)).await,
            Engine::Sqlite(store) => {
                if number % CONFLICT_EVERY == CONFLICT_EVERY - 1 {
                    let wrong = Expected::Exactly(Revision(u64::MAX));
                    let refused = store.append(&stream, wrong, vec![event(number)]).await;
                    assert!(matches!(refused, Err(StoreError::WrongExpectedRevision { .. })));
                    lap.conflicts += 1;
                    continue;
                }
                let appended = store.append(&stream, expected, vec![event(number)]).await.unwrap();
                expected = Expected::Exactly(appended.revision);
            }
        }
        let ended = Instant::now();
        if began - start >= WARM_UP && ended - start < WARM_UP + MEASURED {
            lap.latencies.push(ended - began);
        }
    }
    lap
}

#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    p50: f64,
    p99: f64,
}

async fn measure(engine: Engine, writers: usize) -> Figures {
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers).map(|writer| tokio::spawn(write(engine.clone(), writer, start))).collect();
    let mut latencies = Vec::new();
    for task in tasks {
        let lap = task.await.unwrap();
        latencies.extend(lap.latencies);
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    Figures { per_second: latencies.len() as f64 / MEASURED.as_secs_f64(), p50: at(0.5), p99: at(0.99) }
}

fn median(figures: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<_> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn appends(counts: &[usize]) {
    let mut all: Vec<(Vec<Figures>, Vec<Figures>)> = counts.iter().map(|_| (Vec::new(), Vec::new())).collect();
    // One file and one database for the whole run: what is measured is a server that has been up for a while, not
    // the first seconds of an empty disk.
    let folder = tempfile::tempdir().unwrap();
    let file = Engine::Bare(BareFile::open(&folder.path().join("log")));
    let store = Engine::Sqlite(Arc::new(SqliteStore::open(folder.path().join("events.db")).unwrap()));
    measure(file.clone(), 256).await;
    measure(store.clone(), 256).await;
    for round in 0..ROUNDS {
        for (writers, (bare, sqlite)) in counts.iter().zip(&mut all) {
            if round % 2 == 0 {
                bare.push(measure(file.clone(), *writers).await);
                sqlite.push(measure(store.clone(), *writers).await);
            } else {
                sqlite.push(measure(store.clone(), *writers).await);
                bare.push(measure(file.clone(), *writers).await);
            }
        }
    }
    println!("\nAppends of one event ({DATA_BYTES} bytes of data), median of {ROUNDS} interleaved rounds\n");
    println!(
        "| writers | bare file ev/s | p50 ms | p99 ms | SQLite ev/s | p50 ms | p99 ms | ev/s ratio (rounds) | p99 ratio |"
    );
    println!("| --: | --: | --: | --: | --: | --: | --: | --: | --: |");
    for (writers, (bare, sqlite)) in counts.iter().zip(&all) {
        let speed = |figures: &[Figures]| median(figures, |figures| figures.per_second);
        let p50 = |figures: &[Figures]| median(figures, |figures| figures.p50);
        let p99 = |figures: &[Figures]| median(figures, |figures| figures.p99);
        let mut ratios: Vec<_> =
            bare.iter().zip(sqlite).map(|(bare, sqlite)| sqlite.per_second / bare.per_second).collect();
        let mut tails: Vec<_> = bare.iter().zip(sqlite).map(|(bare, sqlite)| sqlite.p99 / bare.p99).collect();
        ratios.sort_by(f64::total_cmp);
        tails.sort_by(f64::total_cmp);
        println!(
            "| {writers} | {:.0} | {:.2} | {:.2} | {:.0} | {:.2} | {:.2} | **{:.0} %** ({:.0}–{:.0}) | {:.2} ({:.2}–{:.2}) |",
            speed(bare),
            p50(bare),
            p99(bare),
            speed(sqlite),
            p50(sqlite),
            p99(sqlite),
            ratios[ROUNDS / 2] * 100.0,
            ratios[0] * 100.0,
            ratios[ROUNDS - 1] * 100.0,
            tails[ROUNDS / 2],
            tails[0],
            tails[ROUNDS - 1],
        );
    }
}

const STREAMS: usize = 10;
const PER_STREAM: usize = 10_000;
/// Events of a stream that stand together, before another stream's follow.
const RUN: usize = 10;
const TIMES: usize = 7;

fn millis(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// The shortest of sorted times: what the machine does when nobody disturbs it.
fn best(times: &[Duration]) -> f64 {
    times[0].as_secs_f64() * 1e3
}

/// A stream of a task whose agent goes round and round, with the data that the golden test holds still.
/// With its words apart, as they are written, or in the events themselves, as they were before they could be erased.
async fn long_task(store: &SqliteStore, apart: bool) -> StreamName {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../src/task/golden.json")).unwrap();
    let begin = ["created", "queued", "claimed", "attempt-started", "cloned", "sandbox-started"];
    let round = ["model-called", "tokens-charged", "message", "tool-called", "tool-finished"];
    let kinds: Vec<_> = begin.iter().chain(round.iter().cycle()).take(PER_STREAM).collect();
    let stream = StreamName::task(TaskId::from_uuid(Uuid::now_v7()));
    for batch in kinds.chunks(500) {
        let events = batch.iter().map(|kind| {
            let mut data = golden[**kind][0].clone();
            if **kind == "tool-finished" {
                data["output"] = "resource \"aws_subnet\" \"a\" {\n  count = 3\n}\n".repeat(40).into();
            }
            let raw = RawValue::from_string(data.to_string()).unwrap();
            let whole = NewEvent { kind: (**kind).into(), data: raw, ..event(0) };
            if !apart {
                return whole;
            }
            let envelope = Envelope {
                id: whole.id,
                kind: Arc::clone(&whole.kind),
                schema: 1,
                stream: stream.clone(),
                revision: Revision(0),
                position: Position(0),
                time: whole.time,
                actor: whole.actor.clone(),
                correlation: None,
                causation: None,
                data: whole.data.clone().into(),
                erased: false,
            };
            let (data, private) = TaskEvent::decode(&envelope).unwrap().unwrap().parts([7; 32]).unwrap();
            NewEvent { data, private, ..whole }
        });
        store.append(&stream, Expected::Any, events.collect()).await.unwrap();
    }
    stream
}

/// How long it takes to have the task again.
async fn replay(store: &SqliteStore, stream: &StreamName) -> Duration {
    let began = Instant::now();
    let mut task = None;
    let each = |envelope: Envelope| {
        let event = TaskEvent::decode(&envelope).unwrap().unwrap();
        task = evolve(task.take(), &event);
        Ok::<_, StoreError>(())
    };
    fold_stream(store, stream, Revision(0), each).await.unwrap();
    assert!(task.is_some());
    began.elapsed()
}

/// How long it takes to read the whole log, and nothing more.
async fn scan(store: &SqliteStore) -> Duration {
    let began = Instant::now();
    let each = |envelope: Envelope| {
        std::hint::black_box(envelope.data.get());
        Ok::<_, StoreError>(())
    };
    fold_log(store, Position::START, each).await.unwrap();
    began.elapsed()
}

async fn reads_and_openings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let streams: Vec<StreamName> = (0..STREAMS).map(|_| format!("task-{}", Uuid::now_v7()).parse().unwrap()).collect();
    for _ in 0..PER_STREAM / RUN {
        let appends = streams.iter().map(|stream| {
            let (store, stream) = (Arc::clone(&store), stream.clone());
            let batch = (0..RUN as u64).map(event).collect();
            tokio::spawn(async move { store.append(&stream, Expected::Any, batch).await.unwrap() })
        });
        for append in appends.collect::<Vec<_>>() {
            append.await.unwrap();
        }
    }

    let other = tempfile::tempdir().unwrap();
    let tasks = SqliteStore::open(other.path().join("events.db")).unwrap();
    let task = long_task(&tasks, false).await;
    let apart = tempfile::tempdir().unwrap();
    let tasks_apart = SqliteStore::open(apart.path().join("events.db")).unwrap();
    let task_apart = long_task(&tasks_apart, true).await;

    println!("\nReads ({} stored events, warm cache, median of {TIMES})\n", STREAMS * PER_STREAM);
    println!("| what | median | best |\n| --- | --: | --: |");
    // In turn, so that a noisy machine disturbs both alike.
    let (mut times, mut times_apart) = (Vec::new(), Vec::new());
    let (mut scans, mut scans_apart) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        times.push(replay(&tasks, &task).await);
        times_apart.push(replay(&tasks_apart, &task_apart).await);
        scans.push(scan(&tasks).await);
        scans_apart.push(scan(&tasks_apart).await);
    }
    for (what, mut times) in [
        ("folded, words in the events", times),
        ("folded, words apart", times_apart),
        ("scanned, words in the events", scans),
        ("scanned, words apart", scans_apart),
    ] {
        let middle = millis(&mut times);
        println!("| a task of {PER_STREAM} events, {what} | {middle:.1} ms | {:.1} ms |", best(&times));
    }
    type Parse = fn(&str);
    let typed: Parse = |data| {
        let call: ToolCalled = serde_json::from_str(data).unwrap();
        let Arguments { path, old, new } = call.arguments;
        std::hint::black_box((call.call, call.attempt, call.tool, path, old, new));
        std::hint::black_box((call.tokens, call.cost_nano_usd, call.cached));
    };
    let value: Parse = |data| {
        std::hint::black_box(serde_json::from_str::<serde_json::Value>(data).unwrap());
    };
    let raw: Parse = |data| {
        std::hint::black_box(data);
    };
    for (how, parse) in [("raw", raw), ("data into a typed event", typed), ("data into a JSON value", value)] {
        let mut times = Vec::new();
        for turn in 0..TIMES {
            let began = Instant::now();
            let mut seen = 0;
            let each = |event: Envelope| {
                parse(event.data.get());
                seen += 1;
                Ok::<_, StoreError>(())
            };
            fold_stream(&*store, &streams[turn % STREAMS], Revision(0), each).await.unwrap();
            assert_eq!(seen, PER_STREAM);
            times.push(began.elapsed());
        }
        let middle = millis(&mut times);
        println!("| replay of a {PER_STREAM}-event stream, {how} | {middle:.1} ms | {:.1} ms |", best(&times));
    }
    for (how, parse) in [("raw", raw), ("data into a typed event", typed), ("data into a JSON value", value)] {
        let mut times = Vec::new();
        for _ in 0..TIMES {
            let began = Instant::now();
            let mut seen = 0;
            let each = |event: Envelope| {
                parse(event.data.get());
                seen += 1;
                Ok::<_, StoreError>(())
            };
            fold_log(&*store, Position::START, each).await.unwrap();
            assert_eq!(seen, STREAMS * PER_STREAM);
            times.push(began.elapsed());
        }
        let per_second = |millis: f64| (STREAMS * PER_STREAM) as f64 / millis * 1e3;
        let middle = per_second(millis(&mut times));
        println!("| full scan, {how} | {middle:.0} ev/s | {:.0} ev/s |", per_second(best(&times)));
    }

    // A copy of the files of a running store is what a crash leaves behind.
    let mut crashed = Vec::new();
    let wal = std::fs::metadata(path.with_extension("db-wal")).map_or(0, |file| file.len());
    for _ in 0..TIMES {
        let copy = tempfile::tempdir().unwrap();
        for name in ["events.db", "events.db-wal"] {
            std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
        }
        let began = Instant::now();
        let reopened = SqliteStore::open(copy.path().join("events.db")).unwrap();
        crashed.push(began.elapsed());
        assert_eq!(reopened.head().await.unwrap(), store.head().await.unwrap());
    }
    let bytes = std::fs::metadata(&path).unwrap().len();
    drop(store);
    let mut clean = Vec::new();
    for _ in 0..TIMES {
        let began = Instant::now();
        let reopened = SqliteStore::open(&path).unwrap();
        clean.push(began.elapsed());
        drop(reopened);
    }
    println!("| opening after a clean stop | {:.1} ms | {:.1} ms |", millis(&mut clean), best(&clean));
    println!(
        "| opening after a crash ({:.0} MiB of write-ahead log) | {:.1} ms | {:.1} ms |",
        wal as f64 / 1_048_576.0,
        millis(&mut crashed),
        best(&crashed)
    );
    println!("| database bytes per event | {:.0} | |", bytes as f64 / (STREAMS * PER_STREAM) as f64);
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let only = std::env::args().nth(1).filter(|given| !given.starts_with('-'));
    if only.as_deref().is_none_or(|only| only == "appends") {
        let counts: Vec<usize> = std::env::args().skip(2).filter_map(|count| count.parse().ok()).collect();
        runtime.block_on(appends(if counts.is_empty() { &WRITERS } else { &counts }));
    }
    if only.as_deref().is_none_or(|only| only == "reads") {
        runtime.block_on(reads_and_openings());
    }
}
