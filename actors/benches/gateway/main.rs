//! The gateway beside others, in figures: `cargo bench -p orchestra-actors --bench gateway`.
//!
//! A provider, a bare relay, Orchestra's gateway and those of others run as processes of their own on loopback; this one
//! calls them in turn, round by round, so that a noisy machine disturbs all alike, and measures them from `/proc`. Give
//! the names of parts to run only those: `throughput`, `latency`, `memory`; `--only=bare,sums` takes only rows with such
//! words in their names, `--rounds=2` so many turns; `--peers` installs the others' gateways first.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]
#![allow(
    clippy::disallowed_methods,
    reason = "what starts and loads other processes is no actor, and waits on no event of theirs"
)]

mod gateway;
mod load;
mod meter;
mod peers;
mod process;
mod relay;
mod upstream;

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway::Money;
use load::{Outcome, Target, at, closed_loop, count_up, open_loop, silent};
use orchestra_events::ledger::Quote;
use orchestra_events::store::sqlite::SqliteStore;
use orchestra_events::task::conversation::Usage;
use orchestra_events::{CallId, NanoUsd};
use orchestra_runtime::meter::{Ask, Meter, Settlement};
use process::{Machine, Member, Memory, ROLE, load_averages};
use tokio::net::TcpListener;
use uuid::Uuid;

/// Callers at once.
const CALLERS: usize = 64;
/// Turns of everything that is measured, unless told otherwise.
const ROUNDS: usize = 5;
/// Length of a turn under full load, and what goes before it uncounted.
const FULL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(2));
/// Length of a turn at a steady pace.
const PACED: Duration = Duration::from_secs(8);
/// Streams a second at that pace.
const PER_SECOND: u32 = 50;
/// The same for LiteLLM, which would not keep up.
const PER_SECOND_LITELLM: u32 = 10;
/// Streamed calls after which memory is read.
const CALLS: [u64; 4] = [1_000, 10_000, 50_000, 100_000];
/// Streams held open.
const SILENT: [usize; 2] = [100, 1_000];
/// How long a process is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);
/// Threads of each process.
const THREADS: usize = 2;
/// Reservations in one turn, and the pause between two.
const RESERVATIONS: (usize, Duration) = (200, Duration::from_millis(20));

/// What is measured in one row.
struct Subject {
    name: &'static str,
    kind: Kind,
    target: Target,
    /// The process between caller and provider.
    member: Option<Member>,
    at_rest: Memory,
    full: Vec<Full>,
    paced: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Direct,
    Bare,
    Ours,
    Litellm,
    Portkey,
}

/// Where to call, and what stands there.
type Started = (Target, Option<Member>);

/// One turn under full load.
struct Full {
    outcome: Outcome,
    per_second: f64,
    /// Milliseconds of processor time a stream.
    processor: f64,
    others: f64,
}

/// The processes of one run.
struct House {
    subjects: Vec<Subject>,
    /// Rows without figures, and why.
    absent: Vec<(&'static str, String)>,
    /// Turns of everything.
    rounds: usize,
    /// Rows to be measured: those with one of these in their names. None: all.
    only: Vec<String>,
    upstream: Member,
    scratch: tempfile::TempDir,
}

impl House {
    fn open(given: &[String]) -> Self {
        let option = |name: &str| given.iter().find_map(|given| given.strip_prefix(name));
        let rounds = option("--rounds=").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
        let only = option("--only=").map(|only| only.split(',').map(str::to_owned).collect()).unwrap_or_default();
        // On the disk that the project is on: `/tmp` may be memory, which syncs nothing.
        let scratch = tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")).unwrap();
        let upstream = Member::role("upstream", &[]);
        let address = upstream.addresses[0];
        let key = vec![("x-api-key", upstream::KEY.to_owned())];
        let direct = Target { addresses: vec![address], headers: key };
        let mut house = Self { subjects: Vec::new(), absent: Vec::new(), rounds, only, upstream, scratch };
        house.add("direct", Kind::Direct, |_| Ok((direct, None)));
        for (name, kind, role) in ROLES {
            house.add(name, kind, |house| Ok(house.start(role)));
        }
        let with = |(target, member)| (target, Some(member));
        house.add("LiteLLM 1.106.2, 1 worker", Kind::Litellm, |house| {
            peers::litellm(address, house.scratch.path()).map(with)
        });
        house.add("Portkey 1.15.2", Kind::Portkey, |house| peers::portkey(address, house.scratch.path()).map(with));
        house
    }

    fn takes(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// One of our own roles, on a folder of its own.
    fn start(&self, role: &str) -> Started {
        let folder = tempfile::tempdir_in(self.scratch.path()).unwrap().keep();
        let arguments = [self.upstream.addresses[0].to_string(), folder.to_str().unwrap().to_owned()];
        let member = Member::role(role, &arguments);
        (Target { addresses: member.addresses.clone(), headers: Vec::new() }, Some(member))
    }

    fn add(&mut self, name: &'static str, kind: Kind, start: impl FnOnce(&Self) -> Result<Started, String>) {
        // What the others are compared with is always there.
        if !self.takes(name) && !matches!(kind, Kind::Direct | Kind::Bare) {
            return;
        }
        match start(self) {
            Ok((target, member)) => {
                let at_rest = member.as_ref().map(Member::memory).unwrap_or_default();
                let (full, paced) = (Vec::new(), Outcome::default());
                self.subjects.push(Subject { name, kind, target, member, at_rest, full, paced });
            }
            Err(why) => self.absent.push((name, why)),
        }
    }
}

const ROLES: [(&str, Kind, &str); 4] = [
    ("bare pass-through", Kind::Bare, "relay"),
    ("Orchestra, sums in memory", Kind::Ours, "gateway-memory"),
    ("Orchestra, ledger over a store in memory", Kind::Ours, "gateway-ledger"),
    ("Orchestra, ledger over SQLite, synced", Kind::Ours, "gateway-durable"),
];

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The medians over the rounds, and the extremes in brackets.
fn spread(values: &[f64], digits: usize) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.digits$} ({low:.digits$}–{high:.digits$})", median(values.to_vec()))
}

/// Says what went wrong, if anything did: a figure without its failures is none.
fn failures(name: &str, outcome: &Outcome) {
    if outcome.failed > 0 {
        println!(
            "\n{name}: **{} calls failed**, such as: {}",
            outcome.failed,
            outcome.example.as_deref().unwrap_or("?")
        );
    }
}

/// As many streams as 64 callers get, one after the other each.
async fn throughput(house: &mut House) {
    let began = load_averages();
    for _ in 0..house.rounds {
        for subject in &mut house.subjects {
            let mark = || (Machine::now(), subject.member.as_ref().map_or(0.0, Member::processor_time));
            let (outcome, before, after) = closed_loop(&subject.target, CALLERS, FULL.1, FULL.0, mark).await;
            let streams = outcome.heard.len() as f64;
            subject.full.push(Full {
                per_second: streams / FULL.0.as_secs_f64(),
                processor: (after.1 - before.1) * 1e3 / streams,
                others: after.0.others_since(before.0),
                outcome,
            });
        }
    }
    let others: Vec<f64> = house.subjects.iter().flat_map(|subject| &subject.full).map(|full| full.others).collect();
    println!(
        "\n{CALLERS} streaming callers, {} turns of {:?} each; others took {} cores meanwhile; load {began} before, {} \
         after\n",
        house.rounds,
        FULL.0,
        spread(&others, 2),
        load_averages()
    );
    println!(
        "| | streams/s | ratio to bare | CPU ms/stream | ratio to bare | first byte p50 ms | p99 ms | resident MiB, rest → peak |"
    );
    println!("| --- | --: | --: | --: | --: | --: | --: | --: |");
    let bare = |what: fn(&Full) -> f64| -> Vec<f64> {
        let bare = house.subjects.iter().find(|subject| subject.kind == Kind::Bare).unwrap();
        bare.full.iter().map(what).collect()
    };
    let (bare_rate, bare_processor) = (bare(|full| full.per_second), bare(|full| full.processor));
    let ratio =
        |own: &[f64], bare: &[f64]| -> Vec<f64> { own.iter().zip(bare).map(|(own, bare)| own / bare).collect() };
    for subject in &mut house.subjects {
        let rate: Vec<f64> = subject.full.iter().map(|full| full.per_second).collect();
        let processor: Vec<f64> = subject.full.iter().map(|full| full.processor).collect();
        let mut outcome = Outcome::default();
        for full in &mut subject.full {
            outcome.extend(std::mem::take(&mut full.outcome));
        }
        let (cost, memory) = match &subject.member {
            Some(member) => (
                format!("{} | {}", spread(&processor, 2), spread(&ratio(&processor, &bare_processor), 2)),
                format!("{:.0} → {:.0}", subject.at_rest.resident, member.memory().peak),
            ),
            None => ("– | –".to_owned(), "–".to_owned()),
        };
        println!(
            "| {} | {} | {} | {cost} | {:.2} | {:.2} | {memory} |",
            subject.name,
            spread(&rate, 0),
            spread(&ratio(&rate, &bare_rate), 3),
            outcome.first(0.5),
            outcome.first(0.99),
        );
        failures(subject.name, &outcome);
    }
    absent(house, 7);
    for subject in house.subjects.iter().filter(|subject| subject.kind == Kind::Ours) {
        let rates = |of: &Subject| of.full.iter().map(|full| full.per_second).collect::<Vec<_>>();
        let against = |kind: Kind| {
            let other = house.subjects.iter().find(|subject| subject.kind == kind)?;
            Some(spread(&ratio(&rates(subject), &rates(other)), 1))
        };
        let (litellm, portkey) = (against(Kind::Litellm), against(Kind::Portkey));
        let text = |of: Option<String>| of.unwrap_or_else(|| "not measured".to_owned());
        println!("\n{}: {} × LiteLLM, {} × Portkey", subject.name, text(litellm), text(portkey));
    }
}

fn absent(house: &House, columns: usize) {
    for (name, why) in &house.absent {
        println!("| {name} | {why} |{}", " |".repeat(columns - 1));
    }
}

/// What is added to the wait for the first byte when nobody is short of anything.
async fn latency(house: &mut House) {
    let began = load_averages();
    let before = Machine::now();
    let mut disk = Disk::open(house.scratch.path()).await;
    for _ in 0..house.rounds {
        for subject in &mut house.subjects {
            let per_second = if subject.kind == Kind::Litellm { PER_SECOND_LITELLM } else { PER_SECOND };
            subject.paced.extend(open_loop(&subject.target, per_second, PACED).await);
        }
        disk.turn().await;
    }
    println!(
        "\n{PER_SECOND} streams a second ({PER_SECOND_LITELLM} for LiteLLM), events 10 ms apart, {} turns of {PACED:?} \
         each; others took {:.2} cores meanwhile; load {began} before, {} after\n",
        house.rounds,
        Machine::now().others_since(before),
        load_averages()
    );
    println!("| | streams | first byte p50 ms | p99 ms | added p50 ms | added p99 ms | whole reply p50 ms | p99 ms |");
    println!("| --- | --: | --: | --: | --: | --: | --: | --: |");
    let direct = (house.subjects[0].paced.first(0.5), house.subjects[0].paced.first(0.99));
    for subject in &house.subjects {
        let paced = &subject.paced;
        let (middle, late) = (paced.first(0.5), paced.first(0.99));
        let added = match subject.kind {
            Kind::Direct => "– | –".to_owned(),
            _ => format!("{:.2} | {:.2}", middle - direct.0, late - direct.1),
        };
        println!(
            "| {} | {} | {middle:.2} | {late:.2} | {added} | {:.1} | {:.1} |",
            subject.name,
            paced.heard.len(),
            paced.whole(0.5),
            paced.whole(0.99),
        );
        failures(subject.name, paced);
    }
    absent(house, 7);
    println!("\nOn the same disk, {PER_SECOND} a second, {} of each:\n", disk.reserves.len());
    println!("| what | p50 ms | p99 ms |\n| --- | --: | --: |");
    let rows = [
        ("a durable reservation", &disk.reserves),
        ("its settlement", &disk.settles),
        ("a bare append and `fdatasync`", &disk.bare),
    ];
    for (what, times) in rows {
        let share = |share| at(times.iter().copied(), share);
        println!("| {what} | {:.2} | {:.2} |", share(0.5), share(0.99));
    }
}

/// The ledger on the disk without a gateway, and the disk without a ledger.
struct Disk {
    meter: meter::OfLedger,
    file: File,
    reserves: Vec<Duration>,
    settles: Vec<Duration>,
    bare: Vec<Duration>,
}

impl Disk {
    async fn open(folder: &Path) -> Self {
        let store = SqliteStore::open(folder.join("apart.db")).unwrap();
        let meter = meter::OfLedger::new(meter::ledgers(Arc::new(store)).await);
        let file = File::create(folder.join("bare")).unwrap();
        Self { meter, file, reserves: Vec::new(), settles: Vec::new(), bare: Vec::new() }
    }

    async fn turn(&mut self) {
        let price = "2026-11-22/anthropic/claude-sonnet-4-6";
        let quote = Quote {
            input_tokens: 1_100,
            input_picos: 1_100 * 3_000_000,
            output_picos: 15_000_000,
            replies: 1,
            wanted_output: 1_024,
            least_output: 1_024,
        };
        for _ in 0..RESERVATIONS.0 {
            tokio::time::sleep(RESERVATIONS.1).await;
            let call = CallId::from_uuid(Uuid::now_v7());
            let model = "anthropic/claude-sonnet-4-6".to_owned();
            let began = Instant::now();
            self.meter.reserve(Ask { call, model, price: price.to_owned(), quote }).await.unwrap();
            self.reserves.push(began.elapsed());
            let settlement = Settlement {
                usage: Usage { input_tokens: 280, output_tokens: 96, ..Usage::default() },
                cost: NanoUsd::from_nanos(2_280_000),
                confirmed: true,
                price: price.to_owned(),
                stop_reason: None,
                failure: None,
            };
            let began = Instant::now();
            self.meter.settle(call, settlement).await.unwrap();
            self.settles.push(began.elapsed());
        }
        // Not in between: growing one file makes the sync of another wait.
        for _ in 0..RESERVATIONS.0 {
            tokio::time::sleep(RESERVATIONS.1).await;
            let began = Instant::now();
            self.file.write_all(&[b'x'; 700]).unwrap();
            self.file.sync_data().unwrap();
            self.bare.push(began.elapsed());
        }
    }
}

/// What a hundred thousand streams leave behind, and what silent ones hold.
async fn memory(house: &House) {
    println!(
        "\nMemory over {} streamed calls by {CALLERS} callers, MiB (resident, and of it allocated)\n",
        CALLS[CALLS.len() - 1]
    );
    println!("| | {} | streams/s |", CALLS.map(|count| format!("after {count}")).join(" | "));
    println!("| --- |{} --: |", " --: |".repeat(CALLS.len()));
    for (name, _, role) in ROLES {
        // A store in memory keeps everything, as it must.
        if role == "gateway-ledger" || !house.takes(name) {
            continue;
        }
        let (target, member) = house.start(role);
        let member = member.unwrap();
        let (mut cells, mut rate) = (Vec::new(), 0.0);
        let outcome = count_up(&target, CALLERS, &CALLS, |_, per_second| {
            std::thread::sleep(SETTLE);
            let memory = member.memory();
            cells.push(format!("{:.1} ({:.1})", memory.resident, memory.own));
            rate = per_second;
        })
        .await;
        println!("| {name} | {} | {rate:.0} |", cells.join(" | "));
        failures(name, &outcome);
    }
    println!("\nMemory of silent streams, MiB allocated beyond the kernel's socket buffers\n");
    println!(
        "| | none | {} | per hundred | beyond the bare relay's |",
        SILENT.map(|count| format!("{count} open")).join(" | ")
    );
    println!("| --- | --: |{} --: | --: |", " --: |".repeat(SILENT.len()));
    let mut bare = f64::NAN;
    for (name, kind, role) in ROLES {
        if !house.takes(name) && kind != Kind::Bare {
            continue;
        }
        let mut cells = Vec::new();
        let mut each = f64::NAN;
        for count in SILENT {
            let (target, member) = house.start(role);
            let member = member.unwrap();
            // One caller, so that nothing of the connections to come is there yet.
            count_up(&target, 1, &CALLS[..1], |_, _| {}).await;
            tokio::time::sleep(SETTLE).await;
            let before = member.memory().own;
            let held = silent(&target, count).await;
            tokio::time::sleep(SETTLE).await;
            let after = member.memory().own;
            drop(held);
            if cells.is_empty() {
                cells.push(format!("{before:.1}"));
            }
            cells.push(format!("{after:.1}"));
            each = (after - before) * 100.0 / count as f64;
        }
        if kind == Kind::Bare {
            bare = each;
        }
        println!("| {name} | {} | {each:.2} | {:.2} |", cells.join(" | "), each - bare);
    }
}

/// Announces where it listens, and serves until whoever started it lets go.
async fn play(role: &str, arguments: &[String]) {
    let announce = |addresses: &[SocketAddr]| {
        println!("{}", addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        process::end_with_parent();
    };
    let money = match role {
        "gateway-memory" => Some(Money::Memory),
        "gateway-ledger" => Some(Money::Ledger),
        "gateway-durable" => Some(Money::Durable),
        _ => None,
    };
    let upstream = || arguments[0].parse::<SocketAddr>().unwrap();
    if let Some(money) = money {
        return gateway::serve(upstream(), money, Path::new(&arguments[1]), announce).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    announce(&[listener.local_addr().unwrap()]);
    match role {
        "upstream" => upstream::serve(listener).await,
        "relay" => relay::serve(listener, upstream()).await,
        _ => panic!("no such role: {role}"),
    }
}

async fn measure(given: &[String]) {
    if given.iter().any(|given| given == "--peers") {
        peers::install();
    }
    let names: Vec<_> = given.iter().filter(|given| !given.starts_with('-')).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|given| *given == name);
    let mut house = House::open(given);
    if wanted("throughput") {
        throughput(&mut house).await;
    }
    if wanted("latency") {
        latency(&mut house).await;
    }
    if wanted("memory") {
        memory(&house).await;
    }
}

/// A runtime with several threads, within an actix system, which the ledger's actors need.
fn run(work: impl Future<Output = ()>) {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().unwrap();
    actix_rt::System::with_tokio_rt(runtime).block_on(work);
}

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if given.first().is_some_and(|first| first == ROLE) {
        run(async move { play(&given[1], &given[2..]).await });
    } else {
        run(async move { measure(&given).await });
    }
}
