//! How long until a new sandbox says its first word, beside `bwrap`, `crun` and `runc` with an equal configuration; and what
//! a running one costs: the way of a command, the end, the memory, and many at once.
//!
//! All get the same image under an overlay, the same disk (made beforehand), namespaces, system call filter, limits and
//! mounts, and run `bash -lc 'echo ok'`. Measured from the call (mounting the overlay included) to the first byte of
//! output, one of each in turn; crun and runc keep one state directory, so crun too compiles the filter only once. Needs
//! root, version 1 control groups, the three programs, and an image named `default`. `BENCH_RUNS` sets the number of samples.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod others;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use orchestra_events::SandboxId;
use orchestra_runtime::image::ImageStore;
use orchestra_runtime::sandbox::{Containers, Exec, Limits, Sandbox, SandboxConfig, SandboxSpec, Sandboxes};

use others::{Parts, Place};

const WARM_UP: usize = 5;
const DISK: u64 = 1 << 30;
/// Sandboxes that are started at the same moment.
const AT_ONCE: usize = 50;
/// Sandboxes that are kept ready for the measurement of the pool.
const POOL: usize = 2;
/// Idle sandboxes whose memory is looked at.
const IDLE: usize = 8;
/// Commands of each kind in each running sandbox.
const EXECS: usize = 5;

fn images() -> PathBuf {
    let cache = || Path::new(&std::env::var_os("HOME").unwrap_or("/root".into())).join(".cache/orchestra/images");
    std::env::var_os("ORCHESTRA_IMAGES").map_or_else(cache, PathBuf::from)
}

fn helper() -> PathBuf {
    env!("CARGO_BIN_EXE_orchestra-sandbox-helper").into()
}

fn limits() -> Limits {
    Limits { memory_bytes: 1 << 30, cpus: 2.0, pids: 256, disk_bytes: DISK, timeout: Duration::from_secs(600) }
}

fn spec(id: SandboxId) -> SandboxSpec {
    SandboxSpec { id, image: "default".into(), limits: limits(), env: Vec::new(), hostname: "bench".into() }
}

fn new_id() -> SandboxId {
    SandboxId::from_uuid(uuid::Uuid::now_v7())
}

fn command(argv: &[&str]) -> Exec {
    Exec {
        id: uuid::Uuid::now_v7().to_string(),
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        cwd: "/workspace".into(),
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
    }
}

/// What is measured of ours, besides the start.
#[derive(Default)]
struct Samples {
    cold: Vec<Duration>,
    bwrap: Vec<Duration>,
    crun: Vec<Duration>,
    runc: Vec<Duration>,
    execs: [Vec<Duration>; 3],
    teardown: Vec<Duration>,
}

const COMMANDS: [&[&str]; 3] = [&["bash", "-lc", "echo ok"], &["bash", "-c", "true"], &["/bin/true"]];

/// From the call to the first byte of output.
async fn first_output(sandboxes: &Containers, id: SandboxId) -> (Duration, Arc<dyn Sandbox>) {
    let start = Instant::now();
    let sandbox = sandboxes.start(&spec(id)).await.unwrap();
    let (live, mut output) = tokio::sync::mpsc::channel(4);
    let running = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.exec(command(COMMANDS[0]), Some(live)).await }
    });
    assert_eq!(output.recv().await.unwrap(), "ok\n");
    let elapsed = start.elapsed();
    running.await.unwrap().unwrap();
    (elapsed, sandbox)
}

/// Ours: start to first output, then some commands in the running sandbox, then its end.
async fn ours(sandboxes: &Containers, samples: &mut Samples) {
    let id = new_id();
    sandboxes.create_volume(id, DISK).await.unwrap();
    let (cold, sandbox) = first_output(sandboxes, id).await;
    samples.cold.push(cold);
    for _ in 0..EXECS {
        for (argv, execs) in COMMANDS.iter().zip(&mut samples.execs) {
            let start = Instant::now();
            sandbox.exec(command(argv), None).await.unwrap();
            execs.push(start.elapsed());
        }
    }
    let start = Instant::now();
    sandboxes.destroy(id).await.unwrap();
    samples.teardown.push(start.elapsed());
}

/// A disk like that of ours for another tool, open to the users of its namespace.
async fn place(sandboxes: &Containers, state: &Path) -> (SandboxId, Place) {
    let id = new_id();
    let volume = sandboxes.create_volume(id, DISK).await.unwrap();
    let volume = volume.workspace().parent().unwrap().to_owned();
    let dir = volume.parent().unwrap().to_owned();
    for open in [state, &state.join("sandboxes"), &dir, &volume] {
        fs::set_permissions(open, Permissions::from_mode(0o755)).unwrap();
    }
    (id, Place { name: format!("bench.{id}"), dir, volume })
}

async fn theirs(sandboxes: &Containers, state: &Path, run: impl FnOnce(&Place) -> Duration) -> Duration {
    let (id, place) = place(sandboxes, state).await;
    let cold = run(&place);
    sandboxes.destroy(id).await.unwrap();
    cold
}

/// The only file in a folder of the state directory.
fn only(folder: &Path) -> PathBuf {
    fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
}

/// A number of kilobytes out of a process's memory map.
fn kilobytes(pid: &str, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

fn helper_of(id: SandboxId) -> String {
    let (name, all) = (id.to_string(), fs::read_dir("/proc").unwrap().flatten());
    let helper = all.filter_map(|entry| entry.file_name().into_string().ok()).find(|pid| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.contains("sandbox-helper") && command.contains(&name)
    });
    helper.unwrap()
}

/// What each of some idle sandboxes costs beside the processes that its commands start.
async fn memory(sandboxes: &Containers, state: &Path) {
    let ids: Vec<SandboxId> = (0..IDLE).map(|_| new_id()).collect();
    for id in &ids {
        sandboxes.create_volume(*id, DISK).await.unwrap();
        first_output(sandboxes, *id).await;
    }
    println!("\n| KiB, {IDLE} idle sandboxes | private dirty | proportional (Pss) |\n| --- | ---: | ---: |");
    let median = |mut values: Vec<u64>| {
        values.sort_unstable();
        values[values.len() / 2]
    };
    let mut sums = [0, 0];
    for (name, pid) in [
        ("helper", Box::new(helper_of) as Box<dyn Fn(SandboxId) -> String>),
        ("first process", Box::new(|id| fs::read_to_string(state.join(format!("sandboxes/{id}/pid"))).unwrap())),
    ] {
        let [dirty, pss] =
            ["Private_Dirty", "Pss"].map(|key| median(ids.iter().map(|id| kilobytes(&pid(*id), key)).collect()));
        println!("| {name} | {dirty} | {pss} |");
        sums = [sums[0] + dirty, sums[1] + pss];
    }
    println!("| both | {} | {} |", sums[0], sums[1]);
    for id in ids {
        sandboxes.destroy(id).await.unwrap();
    }
}

/// From the pool: making the disk, which is taking one that was started ahead, and from the start to the first output.
async fn warm(sandboxes: &Containers, runs: usize) -> [Vec<Duration>; 2] {
    sandboxes.keep_ready(POOL, spec(new_id())).await;
    let [mut disks, mut starts] = [Vec::new(), Vec::new()];
    for run in 0..WARM_UP + runs {
        while sandboxes.ready() < POOL {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let id = new_id();
        let start = Instant::now();
        sandboxes.prepare(&spec(id)).await.unwrap();
        let disk = start.elapsed();
        let (first, _) = first_output(sandboxes, id).await;
        if run >= WARM_UP {
            disks.push(disk);
            starts.push(first);
        }
        sandboxes.destroy(id).await.unwrap();
    }
    [disks, starts]
}

/// Many at the same moment: each one's time from the common beginning to its own first output.
async fn at_once(sandboxes: &Containers) -> Vec<Duration> {
    let ids: Vec<SandboxId> = (0..AT_ONCE).map(|_| new_id()).collect();
    for id in &ids {
        sandboxes.create_volume(*id, DISK).await.unwrap();
    }
    let starts = ids.iter().map(|&id| {
        let sandboxes = sandboxes.clone();
        tokio::spawn(async move { first_output(&sandboxes, id).await.0 })
    });
    let mut times = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        times.push(start.await.unwrap());
    }
    for id in ids {
        sandboxes.destroy(id).await.unwrap();
    }
    times
}

fn percentile(samples: &mut [Duration], share: f64) -> f64 {
    samples.sort();
    samples[((samples.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3
}

fn row(name: &str, samples: &mut [Duration]) {
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| percentile(samples, share));
    println!("| {name} | {} | {p50:.1} | {p90:.1} | {p99:.1} | {:.2} |", samples.len(), p99 / p50);
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn main() {
    let runs = std::env::var("BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(100);
    // crun refuses a host with both versions of control groups; in a mount namespace of our own there is only one.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let _ = umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH);

    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path();
    // The other tools' own state is in memory, as by default.
    let state = dir.path().join("others");
    fs::create_dir(&state).unwrap();
    mount(Some("others"), &state, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let config = SandboxConfig { state_dir: dir.path().into(), images: images(), helper: helper() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let sandboxes = Containers::new(config).unwrap();
    let parts = Parts {
        lower: ImageStore::new(images()).resolve("default").unwrap(),
        init: only(&dir.path().join("init")),
        filter: only(&dir.path().join("filter")),
        state: state.clone(),
    };
    println!("load {} at the beginning", load());
    let mut samples = Samples::default();
    runtime.block_on(async {
        for run in 0..WARM_UP + runs {
            if run == WARM_UP {
                samples = Samples::default();
            }
            ours(&sandboxes, &mut samples).await;
            samples.bwrap.push(theirs(&sandboxes, dir.path(), |place| others::bwrap(&parts, place)).await);
            samples.crun.push(theirs(&sandboxes, dir.path(), |place| others::oci("crun", &parts, place)).await);
            samples.runc.push(theirs(&sandboxes, dir.path(), |place| others::oci("runc", &parts, place)).await);
        }
    });
    println!("load {} after the starts\n", load());
    println!("| milliseconds | samples | p50 | p90 | p99 | p99 / p50 |\n| --- | ---: | ---: | ---: | ---: | ---: |");
    row("Orchestra, cold start to first output", &mut samples.cold);
    row("bwrap, the same", &mut samples.bwrap);
    row("crun run, the same", &mut samples.crun);
    row("runc run, the same", &mut samples.runc);
    for (argv, execs) in COMMANDS.iter().zip(&mut samples.execs) {
        row(&format!("Orchestra, `{}` in a running sandbox, to its result", argv.join(" ")), execs);
    }
    row("Orchestra, removing a running sandbox", &mut samples.teardown);
    let ours = percentile(&mut samples.cold, 0.5);
    for (name, theirs) in [("bwrap", &mut samples.bwrap), ("crun", &mut samples.crun), ("runc", &mut samples.runc)] {
        println!("ratio to {name}: {:.2}", ours / percentile(theirs, 0.5));
    }
    runtime.block_on(async move {
        row(&format!("Orchestra, {AT_ONCE} at once, each to its first output"), &mut at_once(&sandboxes).await);
        memory(&sandboxes, state_dir).await;
        println!(
            "\n| milliseconds | samples | p50 | p90 | p99 | p99 / p50 |\n| --- | ---: | ---: | ---: | ---: | ---: |"
        );
        let [mut disks, mut starts] = warm(&sandboxes, runs).await;
        row("Orchestra, from the pool: start to first output", &mut starts);
        row("Orchestra, from the pool: taking it, with its disk", &mut disks);
        println!("\nload {} at the end", load());
        // Whoever measures next finds nothing of this.
        drop(sandboxes);
    });
    let config = SandboxConfig { state_dir: dir.path().into(), images: images(), helper: helper() };
    runtime.block_on(async {
        let sandboxes = Containers::new(config).unwrap();
        for id in sandboxes.list().await.unwrap() {
            sandboxes.destroy(id).await.unwrap();
        }
    });
    umount2(&state, MntFlags::empty()).unwrap();
}
