//! How many calls a second one team's ledger can set money aside for and settle, next to what the disk allows:
//! `cargo bench -p orchestra-actors --bench ledger`.
//!
//! 64 callers reserve and settle, one call after the other each, under caps on team and project, per task, day and month.
//! The same runs over the store in memory, which shows what deciding and writing JSON cost. The yardstick is a bare file
//! that is appended to with an `fdatasync` for each batch, as many events and bytes to the batch as the ledger's had. All
//! three run in turn in every round, so that a noisy machine disturbs them alike.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use orchestra_actors::Ledgers;
use orchestra_events::ledger::audit::check;
use orchestra_events::ledger::{Amount, Budget, Cap, LedgerEvent, Path, Quote, Reserve, Settle};
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::store::read_whole_stream;
use orchestra_events::store::sqlite::SqliteStore;
use orchestra_events::store::wrapped::Wrapped;
use orchestra_events::task::conversation::Usage;
use orchestra_events::{
    Actor, Appended, CallId, EventStore, Expected, NanoUsd, NewEvent, StoreError, StreamName, TaskId,
};
use uuid::Uuid;

const CALLERS: usize = 64;
const ROUNDS: usize = 5;
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_millis(1_500);
/// What the bare file writes besides an event's data: about what the store keeps of an envelope.
const ENVELOPE_BYTES: u64 = 100;
/// The goal: pairs a second on the embedded store.
const GOAL: f64 = 5_000.0;

/// Counts what goes through.
struct Counting {
    inner: Arc<dyn EventStore>,
    appends: AtomicU64,
    events: AtomicU64,
    bytes: AtomicU64,
}

#[async_trait]
impl Wrapped for Counting {
    fn inner(&self) -> &dyn EventStore {
        &*self.inner
    }

    async fn on_append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError> {
        let bytes: usize = events.iter().map(|event| event.data.get().len()).sum();
        self.appends.fetch_add(1, Ordering::Relaxed);
        self.events.fetch_add(events.len() as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.inner.append(stream, expected, events).await
    }
}

#[derive(Default)]
struct Seen {
    pairs: u64,
    reserves: Vec<Duration>,
}

struct Run {
    pairs_per_second: f64,
    p50: Duration,
    p99: Duration,
    batch: f64,
    bytes: f64,
}

fn request(task: TaskId) -> Reserve {
    Reserve {
        call: CallId::from_uuid(Uuid::now_v7()),
        task,
        path: Path {
            project: Some("infrastructure".to_owned()),
            task_type: Some("dependency-upgrade".to_owned()),
            ..Path::team("platform")
        },
        own: Cap { max_nano_usd: Some(NanoUsd::from_nanos(i64::MAX / 4)), max_tokens: None },
        opening: Amount::ZERO,
        campaign: None,
        model: "claude-sonnet-4-6".to_owned(),
        price: "2026-11-22/anthropic/claude-sonnet-4-6".to_owned(),
        quote: Quote {
            input_tokens: 27_487,
            input_picos: 27_487 * 3_750_000,
            output_picos: 15_000_000,
            replies: 1,
            wanted_output: 8_192,
            least_output: 1_024,
        },
    }
}

async fn caller(ledgers: Ledgers, from: Instant, until: Instant) -> Seen {
    let task = TaskId::from_uuid(Uuid::now_v7());
    let mut seen = Seen::default();
    while Instant::now() < until {
        let request = request(task);
        let call = request.call;
        let began = Instant::now();
        ledgers.reserve(request).await.unwrap();
        let reserved = Instant::now();
        let usage = Usage { input_tokens: 120, output_tokens: 412, cache_read_tokens: 26_000, ..Usage::default() };
        let price = "2026-11-22/anthropic/claude-sonnet-4-6".to_owned();
        let settle = Settle { call, usage, cost: NanoUsd::from_nanos(14_340_000), confirmed: true, price };
        ledgers.settle("platform", settle).await.unwrap();
        if began >= from && Instant::now() < until {
            seen.pairs += 1;
            seen.reserves.push(reserved - began);
        }
    }
    seen
}

async fn ledger(inner: Arc<dyn EventStore>, callers: usize) -> Run {
    let (appends, events, bytes) = Default::default();
    let store = Arc::new(Counting { inner, appends, events, bytes });
    let ledgers = Ledgers::start(store.clone());
    let cap = |nanos| Cap { max_nano_usd: Some(NanoUsd::from_nanos(nanos)), max_tokens: Some(u64::MAX / 2) };
    let large = cap(i64::MAX / 4);
    let budget =
        Budget { per_task: large, per_day: large, per_month: large, time_zone: Some("Europe/Zurich".to_owned()) };
    for scope in ["team:platform", "project:platform/infrastructure"] {
        ledgers.set_budget(scope.parse().unwrap(), budget.clone(), Actor::system("bench")).await.unwrap();
    }
    let from = Instant::now() + WARM_UP;
    let callers: Vec<_> =
        (0..callers).map(|_| actix_rt::spawn(caller(ledgers.clone(), from, from + MEASURED))).collect();
    let mut all = Seen::default();
    for caller in callers {
        let seen = caller.await.unwrap();
        all.pairs += seen.pairs;
        all.reserves.extend(seen.reserves);
    }
    all.reserves.sort_unstable();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let (appends, events) = (count(&store.appends), count(&store.events));
    let log = read_whole_stream(&*store, &StreamName::ledger("platform").unwrap()).await.unwrap();
    let log: Vec<_> = log.iter().map(|envelope| LedgerEvent::decode(envelope).unwrap().unwrap()).collect();
    let totals = check(&log).unwrap();
    assert_eq!((totals.open.len(), totals.events as f64), (0, events));
    Run {
        pairs_per_second: all.pairs as f64 / MEASURED.as_secs_f64(),
        p50: all.reserves[all.reserves.len() / 2],
        p99: all.reserves[all.reserves.len() * 99 / 100],
        batch: events / appends,
        bytes: count(&store.bytes) / events,
    }
}

/// Pairs a second that a bare file would take, in batches of this size.
fn bare_file(folder: &std::path::Path, batch: f64, bytes: f64) -> (f64, f64) {
    let mut file = File::create(folder.join("bare")).unwrap();
    let events = batch.round().max(1.0);
    let line = vec![b'x'; ((bytes as u64 + ENVELOPE_BYTES) * events as u64) as usize];
    let (began, mut appends) = (Instant::now(), 0u64);
    while began.elapsed() < MEASURED {
        file.write_all(&line).unwrap();
        file.sync_data().unwrap();
        appends += 1;
    }
    let per_second = appends as f64 / began.elapsed().as_secs_f64();
    (per_second, per_second * events / 2.0)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_unstable_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let (mut sqlite, mut memory, mut bare, mut alone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // A system each, so that nothing of one run is left when the next begins.
        let open = |name: &str| -> Arc<dyn EventStore> {
            Arc::new(SqliteStore::open(folder.path().join(format!("{name}-{round}.db"))).unwrap())
        };
        let run = actix_rt::System::new().block_on(ledger(open("many"), CALLERS));
        bare.push(bare_file(folder.path(), run.batch, run.bytes));
        sqlite.push(run);
        memory.push(actix_rt::System::new().block_on(ledger(Arc::new(MemoryStore::new()), CALLERS)));
        alone.push(actix_rt::System::new().block_on(ledger(open("one"), 1)));
    }
    println!("Reserve and settle in one team, medians of {ROUNDS} rounds of {MEASURED:?}\n");
    println!(
        "{:<36} {:>9} {:>16} {:>16} {:>13} {:>12}",
        "", "pairs/s", "reserve p50 ms", "reserve p99 ms", "events/append", "bytes/event"
    );
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    let row = |name: &str, runs: &[Run]| {
        let of = |value: &dyn Fn(&Run) -> f64| median(runs.iter().map(value).collect());
        println!(
            "{name:<36} {:>9.0} {:>16.2} {:>16.2} {:>13.1} {:>12.0}",
            of(&|run| run.pairs_per_second),
            of(&|run| milliseconds(run.p50)),
            of(&|run| milliseconds(run.p99)),
            of(&|run| run.batch),
            of(&|run| run.bytes)
        );
        of(&|run| run.pairs_per_second)
    };
    let pairs = row(&format!("SQLite, durable, {CALLERS} callers"), &sqlite);
    row("SQLite, durable, one caller", &alone);
    row(&format!("in memory, {CALLERS} callers"), &memory);
    let (syncs, limit) = bare.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
    let (syncs, limit) = (median(syncs), median(limit));
    println!("{:<36} {limit:>9.0}   {syncs:.0} fdatasync/s in batches of the first row's size", "bare file");
    let verdict = if pairs >= GOAL { "met" } else { "missed" };
    println!("\n{:.2} of the bare file; the goal of {GOAL:.0} pairs/s is {verdict}", pairs / limit);
}
