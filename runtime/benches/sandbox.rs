//! How long until a new sandbox says its first word, beside `crun run` with an equal configuration.
//!
//! Both get the same image under an overlay, the same disk (made beforehand), namespaces, system call filter, limits and
//! mounts, and run `bash -lc 'echo ok'`. Measured from the call (mounting the overlay included) to the first byte of
//! output, one of each in turn; crun keeps one state directory, so it too compiles the filter only once. Needs root, `crun`,
//! and an image named `default`. `BENCH_RUNS` sets the number of samples.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use orchestra_events::SandboxId;
use orchestra_runtime::image::ImageStore;
use orchestra_runtime::sandbox::{
    Containers, Exec, IdRange, Limits, SandboxConfig, SandboxSpec, Sandboxes, container_description, seccomp_profile,
};
use serde_json::{Value, json};

const WARM_UP: usize = 5;
const DISK: u64 = 1 << 30;

fn images() -> PathBuf {
    let cache = || Path::new(&std::env::var_os("HOME").unwrap_or("/root".into())).join(".cache/orchestra/images");
    std::env::var_os("ORCHESTRA_IMAGES").map_or_else(cache, PathBuf::from)
}

fn limits() -> Limits {
    Limits { memory_bytes: 1 << 30, cpus: 2.0, pids: 256, disk_bytes: DISK, timeout: Duration::from_secs(600) }
}

fn spec(id: SandboxId) -> SandboxSpec {
    SandboxSpec { id, image: "default".into(), limits: limits(), env: Vec::new(), hostname: "bench".into() }
}

fn command(id: &str) -> Exec {
    Exec {
        id: id.into(),
        argv: ["bash", "-lc", "echo ok"].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: "/workspace".into(),
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
    }
}

/// Ours: start to first output, then some commands in the running sandbox.
async fn ours(sandboxes: &Containers, execs: &mut Vec<Duration>) -> Duration {
    let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
    sandboxes.create_volume(id, DISK).await.unwrap();
    let start = Instant::now();
    let sandbox = sandboxes.start(&spec(id)).await.unwrap();
    let (live, mut output) = tokio::sync::mpsc::channel(4);
    let running = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.exec(command("first"), Some(live)).await }
    });
    assert_eq!(output.recv().await.unwrap(), "ok\n");
    let cold = start.elapsed();
    running.await.unwrap().unwrap();
    for number in 0..3 {
        let start = Instant::now();
        sandbox.exec(command(&number.to_string()), None).await.unwrap();
        execs.push(start.elapsed());
    }
    sandboxes.destroy(id).await.unwrap();
    cold
}

/// The same container for crun: paths of its own, the command instead of our first process, the filter's source.
fn description(name: &str, rootfs: &Path, volume: &Path, init: &Path) -> Value {
    let id = SandboxId::from_uuid(uuid::Uuid::nil());
    let mut container = container_description(&spec(id), &format!("/{name}"), IdRange::SHARED);
    container["linux"]["seccomp"] = seccomp_profile();
    container["root"]["path"] = json!(rootfs);
    // The second wall behind the filter, which crun does not know.
    container["linux"].as_object_mut().unwrap().remove("sysctl");
    container["process"]["args"] = json!(["bash", "-lc", "echo ok"]);
    for mount in container["mounts"].as_array_mut().unwrap() {
        match mount["destination"].as_str().unwrap() {
            "/workspace" => mount["source"] = json!(volume.join("workspace")),
            "/home/agent" => mount["source"] = json!(volume.join("home")),
            "/orch/init" => mount["source"] = json!(init),
            _ => {}
        }
    }
    container
}

async fn crun(sandboxes: &Containers, state: &Path, lower: &Path, init: &Path) -> Duration {
    let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
    let name = format!("bench.{id}");
    let volume = sandboxes.create_volume(id, DISK).await.unwrap();
    let volume = volume.workspace().parent().unwrap().to_owned();
    let dir = volume.parent().unwrap().to_owned();
    for open in [state, &state.join("sandboxes"), &dir, &volume] {
        fs::set_permissions(open, Permissions::from_mode(0o755)).unwrap();
    }
    let rootfs = dir.join("rootfs");
    let start = Instant::now();
    fs::create_dir(&rootfs).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        volume.join("upper").display(),
        volume.join("work").display()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(Some("overlay"), &rootfs, Some("overlay"), flags, Some(&*options)).unwrap();
    let description = description(&name, &rootfs, &volume, init);
    fs::write(dir.join("config.json"), serde_json::to_vec(&description).unwrap()).unwrap();
    let mut child = Command::new("crun")
        .arg("--root")
        .arg(state.join("crun"))
        .args(["run", "--bundle"])
        .arg(&dir)
        .arg(&name)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = [0; 3];
    let read = child.stdout.as_mut().unwrap().read_exact(&mut word);
    let cold = start.elapsed();
    let output = child.wait_with_output().unwrap();
    assert!(read.is_ok() && &word == b"ok\n", "crun: {}", String::from_utf8_lossy(&output.stderr));
    umount2(&rootfs, MntFlags::empty()).unwrap();
    sandboxes.destroy(id).await.unwrap();
    cold
}

fn row(name: &str, samples: &mut [Duration]) {
    samples.sort();
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    println!("| {name} | {} | {:.1} | {:.1} | {:.1} |", samples.len(), at(0.5), at(0.9), at(0.99));
}

fn main() {
    let runs = std::env::var("BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(100);
    // crun refuses a host with both versions of control groups; in a mount namespace of our own there is only one.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let _ = umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH);

    let dir = tempfile::tempdir().unwrap();
    // crun's own state is in memory, as by default.
    let state = dir.path().join("crun");
    fs::create_dir(&state).unwrap();
    mount(Some("crun"), &state, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let lower = ImageStore::new(images()).resolve("default").unwrap();
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_orchestra-sandbox-helper"));
    let config = SandboxConfig { state_dir: dir.path().into(), images: images(), helper };
    let sandboxes = Containers::new(config).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut our_starts, mut our_execs, mut crun_starts) = (Vec::new(), Vec::new(), Vec::new());
    runtime.block_on(async {
        for run in 0..WARM_UP + runs {
            let ours = ours(&sandboxes, &mut our_execs).await;
            let init = fs::read_dir(dir.path().join("init")).unwrap().next().unwrap().unwrap().path();
            let crun = crun(&sandboxes, dir.path(), &lower, &init).await;
            if run < WARM_UP {
                our_execs.clear();
            } else {
                our_starts.push(ours);
                crun_starts.push(crun);
            }
        }
    });
    umount2(&state, MntFlags::empty()).unwrap();
    println!("| milliseconds | samples | p50 | p90 | p99 |\n| --- | ---: | ---: | ---: | ---: |");
    row("Orchestra, cold start to first output", &mut our_starts);
    row("crun run, cold start to first output", &mut crun_starts);
    row("Orchestra, `bash -lc` in a running sandbox, to its result", &mut our_execs);
}
