//! The server as a whole, in figures: `cargo bench --bench server`.
//!
//! Starts the release binary on folders of its own and measures from outside what its users notice: how soon it is
//! ready, how soon a submission is durable, how much memory it holds. Give the names of parts to run only those:
//! `start`, `submit`, `waiting`.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]
#![allow(
    clippy::disallowed_methods,
    reason = "what loads the server must not hold itself back, and waits on no event of its"
)]

mod load;
mod process;
mod seed;

use std::time::{Duration, Instant};

use load::Latencies;
use process::{Memory, Server};

/// Starts whose median counts.
const STARTS: usize = 7;
/// How long the server is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(5);
/// Submissions a second.
const PER_SECOND: u32 = 200;
/// Turns of the server and of the bare file, so that a noisy neighbour disturbs both.
const ROUNDS: usize = 4;
/// Length of one turn.
const ROUND: Duration = Duration::from_secs(5);
/// Open tasks in one process.
const OPEN: usize = 10_000;
/// Callers that submit them.
const CALLERS: usize = 32;
/// How long ten thousand tasks may take to find out that they wait for a key.
const LONGEST: Duration = Duration::from_secs(120);
/// One place, so that all but one task wait.
const ONE_PLACE: (&str, &str) = ("ORCHESTRA_SCHEDULER__PLACES", "1");

/// Prints one row: what, how much, and the bar it is held to.
fn row(what: &str, value: f64, unit: &str, bar: Option<f64>) {
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    let verdict =
        bar.map_or(String::new(), |bar| format!("< {bar} {unit}{}", if value < bar { "" } else { " **missed**" }));
    println!("| {what} | {value:.digits$} {unit} | {verdict} |");
}

fn heading(title: &str) {
    println!("\n{title}\n\n| what | result | goal |\n| --- | --: | --: |");
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn memory(what: &str, held: Memory, bar: f64) {
    row(&format!("{what}, resident"), held.rss, "MiB", Some(bar));
    row(&format!("{what}, its own share (PSS)"), held.pss, "MiB", None);
}

/// Readiness and idle memory on a full log, and reading from it.
async fn start() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let seed = seed::fill(folder.path()).await;
    eprintln!("seeded {} events in {:?}", seed.events, began.elapsed());
    heading(&format!("A log of {} events of {} tasks", seed.events, seed.tasks.len()));
    let starts = |what: &str, end: fn(Server)| {
        let times = (0..STARTS).map(|_| {
            let server = Server::start(folder.path(), &[]);
            let ready = millis(server.ready);
            end(server);
            ready
        });
        let (middle, best, worst) = median(times.collect());
        row(&format!("ready after {what}, median of {STARTS} ({best:.0}–{worst:.0})"), middle, "ms", Some(300.0));
    };
    starts("a clean stop", Server::stop);
    starts("a crash", Server::kill);
    // The first start on a copied log, or after `projections rebuild`, folds all of it.
    let per_second = seed.events as f64 / seed.folded.as_secs_f64();
    row("folding the read models anew", millis(seed.folded), &format!("ms ({per_second:.0} ev/s)"), None);

    let server = Server::start(folder.path(), &[]);
    std::thread::sleep(Duration::from_secs(1));
    let before = server.processor_time();
    std::thread::sleep(IDLE);
    let share = (server.processor_time() - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    memory("idle memory", server.memory(), 60.0);
    row("idle processor use", share, "% of a core", None);

    let paths = seed.tasks.iter().map(|id| format!("/v1/tasks/{id}"));
    let one = load::read_each(&server, &seed.key, paths).await;
    row(&format!("GET /v1/tasks/{{id}}, p50 of {}", one.count()), one.at(0.5), "ms", None);
    row("GET /v1/tasks/{id}, p99", one.at(0.99), "ms", None);
    let lists = ["", "?status=succeeded&limit=50", "?team=platform", "?repo=acme/api"];
    let paths = lists.iter().cycle().take(400).map(|query| format!("/v1/tasks{query}"));
    let list = load::read_each(&server, &seed.key, paths).await;
    row("GET /v1/tasks (a page of 50), p50 of 400", list.at(0.5), "ms", None);
    row("GET /v1/tasks (a page of 50), p99", list.at(0.99), "ms", None);
    memory("memory after that", server.memory(), 60.0);
    server.stop();

    let size = |path: &str| std::fs::metadata(path).ok().map(|file| file.len() as f64 / 1_048_576.0);
    row("release binary", size(&process::program()).unwrap(), "MiB", Some(60.0));
    if let Some(dist) = size(concat!(env!("CARGO_MANIFEST_DIR"), "/target/dist/orchestra")) {
        row("what is shipped (`--profile dist`)", dist, "MiB", Some(60.0));
    }
}

/// Durable submissions at a steady pace, beside the disk's own pace.
async fn submit() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(folder.path(), &[ONE_PLACE]);
    let key = server.admin_key.clone().unwrap();
    load::submit_paced(&server, &key, PER_SECOND, Duration::from_secs(1)).await;
    let (mut submitted, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        submitted.extend(load::submit_paced(&server, &key, PER_SECOND, ROUND).await);
        bare.extend(load::append_paced(other.path(), PER_SECOND, ROUND));
    }
    let (submitted, bare) = (Latencies::new(submitted), Latencies::new(bare));
    heading(&format!("{PER_SECOND} requests a second, {ROUNDS} turns of {ROUND:?}"));
    row(&format!("POST /v1/tasks, durable, p50 of {}", submitted.count()), submitted.at(0.5), "ms", None);
    row("POST /v1/tasks, durable, p99", submitted.at(0.99), "ms", Some(10.0));
    row("POST /v1/tasks, durable, longest", submitted.at(1.0), "ms", None);
    row("a bare append with fdatasync, p50", bare.at(0.5), "ms", None);
    row("a bare append with fdatasync, p99", bare.at(0.99), "ms", None);
    row("a bare append with fdatasync, longest", bare.at(1.0), "ms", None);
    server.stop();
}

/// Ten thousand open tasks in one process: those that wait for a place, and those that wait for a key.
async fn waiting() {
    // A forge that accepts connections and says nothing: the task that has the only place keeps it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let forge = [
        ONE_PLACE,
        ("ORCHESTRA_FORGES__SILENT__KIND", "plain"),
        ("ORCHESTRA_FORGES__SILENT__GIT_URL", &silent),
        ("ORCHESTRA_DEFAULT_FORGE", "silent"),
    ];
    let folder = tempfile::tempdir().unwrap();
    heading(&format!("{OPEN} open tasks"));
    let server = Server::start(folder.path(), &forge);
    let key = server.admin_key.clone().unwrap();
    let began = Instant::now();
    let bodies = (0..OPEN).map(|number| load::task(number, true));
    load::submit_many(&server, &key, bodies, CALLERS).await;
    let per_second = OPEN as f64 / began.elapsed().as_secs_f64();
    row(&format!("submitted by {CALLERS} callers"), per_second, "tasks/s", None);
    std::thread::sleep(IDLE);
    let queued = load::count(&server, &key, "queued").await;
    memory(&format!("{queued} queued"), server.memory(), 400.0);
    server.kill();

    // Their keys were only in memory: each in turn gets the second place, and waits for its key.
    let mut forge = forge;
    forge[0].1 = "2";
    let mut server = Server::start(folder.path(), &forge);
    row("ready again after a crash", millis(server.ready), "ms", None);
    let began = Instant::now();
    server.wait_until_resumed();
    row("and all taken up", millis(server.ready + began.elapsed()), "ms", None);
    while metric(&server, "orchestra_tasks_waiting") != Some(0) && began.elapsed() < LONGEST {
        std::thread::sleep(Duration::from_millis(100));
    }
    row("until each waits for its key", began.elapsed().as_secs_f64(), "s", None);
    std::thread::sleep(IDLE);
    let waiting = load::count(&server, &key, "awaiting-credentials").await;
    memory(&format!("{waiting} waiting for a key"), server.memory(), 400.0);
    server.stop();
    let server = Server::start(folder.path(), &forge);
    row("ready again after a clean stop", millis(server.ready), "ms", None);
    std::thread::sleep(IDLE);
    memory(&format!("{waiting} waiting for a key, after a start"), server.memory(), 400.0);
    server.stop();
}

/// A figure of `/metrics`.
fn metric(server: &Server, name: &str) -> Option<usize> {
    let text = process::get(server.address, "/metrics")?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|value| value as usize)
}

fn main() {
    let names: Vec<_> = std::env::args().skip(1).filter(|given| !given.starts_with('-')).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|given| given == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        if wanted("start") {
            start().await;
        }
        if wanted("submit") {
            submit().await;
        }
        if wanted("waiting") {
            waiting().await;
        }
    });
}
