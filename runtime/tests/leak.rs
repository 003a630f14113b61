//! Sandboxes are started and die at any moment, and so does their server; afterwards nothing of them is on this host.
//!
//! A few by default. The full count, which takes minutes: `LEAK_SANDBOXES=1000 LEAK_KILLS=20 cargo test --workspace --test
//! leak`. Needs root and an image named `default`. What died how is decided by `LEAK_SEED`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{
    Containers, Exec, Limits, Sandbox, SandboxConfig, SandboxError, SandboxSpec, Sandboxes,
};
use sha2::{Digest, Sha256};

/// Sandboxes when nobody says how many.
const SANDBOXES: u64 = 30;
/// Deaths of the server when nobody says how many.
const KILLS: u64 = 3;
/// Sandboxes that one server works on at once.
const AT_ONCE: u64 = 6;
/// How long the last traces may take to go: the kernel unmounts and reaps in its own time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one life of a server may take.
const LIFE: Duration = Duration::from_secs(600);

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Numbers that look random and are the same in every run (SplitMix64).
struct Seed(u64);

impl Seed {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }

    fn moment(&mut self, longest_ms: u64) -> Duration {
        Duration::from_micros(self.below(longest_ms * 1_000))
    }
}

fn images() -> PathBuf {
    let cache = || {
        let home = std::env::var_os("HOME").unwrap_or("/root".into());
        std::env::var_os("XDG_CACHE_HOME").map_or_else(|| Path::new(&home).join(".cache"), PathBuf::from)
    };
    std::env::var_os("ORCHESTRA_IMAGES").map_or_else(|| cache().join("orchestra/images"), PathBuf::from)
}

fn open(state: &Path) -> Containers {
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_orchestra-sandbox-helper"));
    Containers::new(SandboxConfig { state_dir: state.to_owned(), images: images(), helper }).unwrap()
}

fn spec(id: SandboxId) -> SandboxSpec {
    let timeout = Duration::from_secs(600);
    let limits = Limits { memory_bytes: 128 << 20, cpus: 1.0, pids: 64, disk_bytes: 64 << 20, timeout };
    SandboxSpec { id, image: "default".into(), limits, env: Vec::new(), hostname: "sandbox".into() }
}

fn sh(script: &str) -> Exec {
    Exec {
        id: uuid::Uuid::now_v7().to_string(),
        argv: ["bash", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: "/workspace".into(),
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
    }
}

/// `kill -9` to whatever process of a sandbox bears this in its command line and belongs to it.
fn kill_process(id: SandboxId, part: &str) {
    let name = id.to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let group = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if command.contains(part) && (command.contains(&name) || group.contains(&name)) {
            // SAFETY: a plain system call; the process is of this test's own sandbox, or gone.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// What is done to a sandbox before it is removed.
const FATES: u64 = 10;

async fn one(sandboxes: &Containers, other: &Containers, fate: u64, seed: &mut Seed) -> Result<(), SandboxError> {
    let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
    let daemons = "setsid sleep 1000 & (setsid sleep 1000 &); ln -s / host; mkfifo f; cat f & echo";
    match fate {
        0 => {
            let sandbox = sandboxes.start(&spec(id)).await?;
            sandbox.exec(sh(daemons), None).await?;
        }
        // Removed by somebody else while it is being started.
        1 | 2 => {
            let starting = tokio::spawn({
                let sandboxes = sandboxes.clone();
                async move { sandboxes.start(&spec(id)).await.map(drop) }
            });
            tokio::time::sleep(seed.moment(80)).await;
            // Either may be told no by the other; what counts is that nothing stays.
            let _ = other.destroy(id).await;
            let _ = starting.await.unwrap();
        }
        3 => {
            let sandbox = sandboxes.start(&spec(id)).await?;
            tokio::time::sleep(seed.moment(20)).await;
            kill_process(id, "sandbox-helper");
            let _ = sandbox.exec(sh(daemons), None).await;
        }
        4 => {
            let sandbox = sandboxes.start(&spec(id)).await?;
            let running = tokio::spawn(async move { sandbox.exec(sh("sleep 1000"), None).await.map(drop) });
            tokio::time::sleep(seed.moment(20)).await;
            kill_process(id, "pid1");
            let _ = running.await.unwrap();
        }
        // Its helper dies while it builds.
        5 => {
            let starting = tokio::spawn({
                let sandboxes = sandboxes.clone();
                async move { sandboxes.start(&spec(id)).await.map(drop) }
            });
            tokio::time::sleep(seed.moment(60)).await;
            kill_process(id, "sandbox-helper");
            let _ = starting.await.unwrap();
        }
        6 => {
            let sandbox = sandboxes.start(&spec(id)).await?;
            let mut piped = sandbox.exec_streamed(sh("while :; do echo x; done"), None).await?;
            piped.next().await;
            sandbox.kill().await?;
        }
        7 => drop(sandboxes.create_volume(id, 64 << 20).await?),
        8 => {
            let sandbox = sandboxes.start(&spec(id)).await?;
            drop(sandbox.listen(7080).await?);
        }
        // Started, stopped, and started again over the same disk.
        _ => {
            let sandbox = sandboxes.start(&spec(id)).await?;
            sandbox.kill().await?;
            let _ = sandboxes.start(&spec(id)).await.map(|sandbox: Arc<dyn Sandbox>| sandbox.id());
        }
    }
    sandboxes.destroy(id).await
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Not a test: a server that begins as every one does, by removing what the one before has left, and then works until it is
/// killed or has done its share.
#[test]
#[ignore = "run by another test in a process of its own"]
fn server_that_dies() {
    let Some(state) = std::env::var_os("LEAK_STATE").map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (sandboxes, other) = (open(&state), open(&state));
        for id in sandboxes.list().await.unwrap() {
            sandboxes.destroy(id).await.unwrap_or_else(|error| panic!("the sweep: {error}"));
        }
        // What a server keeps open anyway is open once it has started one.
        one(&sandboxes, &other, 0, &mut Seed(0)).await.unwrap();
        one(&sandboxes, &other, 1, &mut Seed(0)).await.unwrap();
        say("swept");
        let (share, begun, first) = (number("LEAK_SHARE", 0), Arc::new(AtomicU64::new(0)), descriptors());
        let workers = (0..AT_ONCE).map(|worker| {
            let (sandboxes, other, begun) = (sandboxes.clone(), other.clone(), Arc::clone(&begun));
            let mut seed = Seed(number("LEAK_SEED", 1) ^ (worker << 32));
            tokio::spawn(async move {
                while begun.fetch_add(1, Ordering::Relaxed) < share {
                    let fate = seed.below(FATES);
                    match one(&sandboxes, &other, fate, &mut seed).await {
                        Ok(()) => say("done"),
                        Err(error) => say(&format!("failed {fate} {error}")),
                    }
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
        for id in sandboxes.list().await.unwrap() {
            sandboxes.destroy(id).await.unwrap();
        }
        // What was dropped last is closed by tasks that are still to run.
        let start = Instant::now();
        while descriptors() > first && start.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        say(&format!("descriptors {first} {}", descriptors()));
    });
}

fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "leak: {}", line.replace('\n', " ")).and_then(|()| output.flush()).unwrap();
}

/// One life of a server.
struct Server {
    process: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    began: Instant,
}

impl Server {
    fn begin(state: &Path, share: u64, seed: u64) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["server_that_dies", "--exact", "--ignored", "--nocapture"])
            .env("LEAK_STATE", state)
            .env("LEAK_SHARE", share.to_string())
            .env("LEAK_SEED", seed.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines, began: Instant::now() }
    }

    /// What it says next; nothing when it has ended.
    fn line(&mut self) -> Option<String> {
        assert!(self.began.elapsed() < LIFE, "a server does not come to its end");
        loop {
            let line = self.lines.next()?.unwrap();
            // The test harness begins a line of its own without ending it.
            if let Some((_, line)) = line.split_once("leak: ") {
                return Some(line.to_owned());
            }
        }
    }
}

/// Everything on this host that belongs to this state directory, one line each.
fn traces(state: &Path) -> Vec<String> {
    let state = fs::canonicalize(state).unwrap();
    let at = state.display().to_string();
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let tag: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let group = format!("orchestra.{tag}.");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let command = read("cmdline").replace('\0', " ");
        // Every process of a sandbox is in its group, and every namespace of it is held by one of them, by a mount, or by
        // a descriptor of the server, which is counted there.
        if read("cgroup").contains(&group) || command.contains(&at) {
            found.push(format!("process {} {command}", entry.path().display()));
        }
        // Mounts in whatever namespace a helper has left behind.
        if entry.file_name().to_string_lossy().parse::<i32>().is_ok() && read("mountinfo").contains(&at) {
            found.push(format!("mount seen by {} {command}", entry.path().display()));
        }
    }
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(&group) {
                found.push(format!("group {}", entry.path().display()));
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    for device in fs::read_dir("/sys/block").unwrap().flatten() {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if backing.contains(&at) {
            found.push(format!("loop device {}", device.path().display()));
        }
    }
    // What all sandboxes share stays; nothing of any one of them does, and nothing half made.
    let mut folders = vec![state.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let half = name.contains("partial") && !is_young(&entry.path());
            if half || name.starts_with("sbx_") {
                found.push(format!("file {}", entry.path().display()));
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// The next start removes what was half written; not before it is sure that nobody writes it.
fn is_young(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|file| file.modified());
    modified.is_ok_and(|at| at.elapsed().unwrap_or_default() < Duration::from_secs(60))
}

#[test]
fn nothing_is_left_of_sandboxes_and_servers_that_died_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (all, kills, seed) = (number("LEAK_SANDBOXES", SANDBOXES), number("LEAK_KILLS", KILLS), number("LEAK_SEED", 7));
    let mut chance = Seed(seed);
    let (mut done, mut failed, mut killed, mut left_by_kills) = (0, Vec::new(), 0, 0);
    let began = Instant::now();
    let fair = all / (kills + 1);
    loop {
        let share = if killed < kills { u64::MAX } else { all.saturating_sub(done) };
        let mut server = Server::begin(&state, share, chance.below(u64::MAX));
        let until = done + chance.below(2 * fair.max(1));
        let mut descriptors = None;
        while let Some(line) = server.line() {
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("done", _) => done += 1,
                ("failed", words) => failed.push(words.to_owned()),
                ("descriptors", counts) => descriptors = Some(counts.to_owned()),
                ("swept", _) => {}
                _ => panic!("{line}"),
            }
            if killed < kills && done >= until {
                std::thread::sleep(chance.moment(60));
                server.process.kill().unwrap();
                server.process.wait().unwrap();
                killed += 1;
                left_by_kills += traces(&state).len();
                break;
            }
        }
        if let Some(counts) = descriptors {
            assert!(server.process.wait().unwrap().success());
            let (before, after) = counts.split_once(' ').unwrap();
            let (before, after): (u64, u64) = (before.parse().unwrap(), after.parse().unwrap());
            assert!(after <= before, "the server had {before} descriptors and now has {after}");
            break;
        }
        assert!(!server.process.wait().unwrap().success(), "a life ended without a word");
    }
    assert!(done >= all && killed == kills, "{done} of {all} sandboxes, {killed} of {kills} kills");
    let start = Instant::now();
    while !traces(&state).is_empty() && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    let left = traces(&state);
    let took = began.elapsed();
    println!(
        "{done} sandboxes, {killed} deaths of the server, which left {left_by_kills} traces; {took:?}; now {}",
        left.len()
    );
    assert!(kills == 0 || left_by_kills > 0, "a death of the server was none: there was nothing to clear away");
    assert!(left.is_empty(), "left behind: {left:#?}");
    assert!(failed.is_empty(), "{} of {done} ended with an error: {failed:#?}", failed.len());
}
