//! How long until a task has its files: the first on a repository beside `git clone --depth 1`, and every later one.
//!
//! A generated repository of 5,200 files and more than 300 MB, behind `git http-backend` on loopback, which asks for a token.
//! First tasks: proof of access, fetch, files and trusted repository, one of each in turn with git's clone; both begin with an
//! empty directory on the same file system and with nothing left to write back. Later tasks: look-up, trusted repository,
//! directories and record on the sandbox's disk, then the overlay's mount as the sandbox's helper does it, and a look at a
//! file in it; the proof of access apart. Needs root and git. `BENCH_RUNS` and `BENCH_FIRST` set the numbers of samples.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use orchestra_events::SandboxId;
use orchestra_runtime::git::{CacheDir, Git, GitAuth, GitConfig, Mirror, MirrorKey, Remote, RemoteKind};
use orchestra_runtime::sandbox::{Containers, SandboxConfig, Sandboxes, Volume, WORKSPACE_GID, WORKSPACE_UID};
use orchestra_test_forges::GitServer;
use secrecy::SecretString;

const TOKEN: &str = "a-token";
const FILES: usize = 5_200;
const FILE_BYTES: usize = 60 * 1024;
const DISK: u64 = 1 << 30;
const WARM_UP: usize = 10;

fn git(dir: &Path, args: &[&str]) {
    let done = Command::new("git")
        .args(["-c", "safe.directory=*", "-c", "gc.auto=0", "-c", "user.name=b", "-c", "user.email=b@b"])
        .args(args)
        .current_dir(dir)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_TERMINAL_PROMPT", "0")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(done.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Bytes that do not compress, the same in every run.
fn noise(state: &mut u64, into: &mut [u8]) {
    for chunk in into.chunks_mut(8) {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        chunk.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..chunk.len()]);
    }
}

/// Three commits; the last two change a few files each.
fn origin(root: &Path) {
    let seed = root.join("seed");
    let (mut state, mut content) = (7, vec![0; FILE_BYTES]);
    fs::create_dir_all(&seed).unwrap();
    git(&seed, &["init", "-q", "-b", "main"]);
    let mut write = |number: usize| {
        let folder = seed.join(format!("part{}/section{}", number % 20, number % 200));
        fs::create_dir_all(&folder).unwrap();
        noise(&mut state, &mut content);
        fs::write(folder.join(format!("file{number}.bin")), &content).unwrap();
    };
    (0..FILES).for_each(&mut write);
    let commit = |message: &str| {
        git(&seed, &["add", "-A"]);
        git(&seed, &["commit", "-qm", message]);
    };
    commit("first");
    for change in ["second", "third"] {
        (0..10).for_each(&mut write);
        commit(change);
    }
    git(&seed, &["-c", "pack.window=0", "repack", "-qad"]);
    fs::create_dir_all(root.join("forge/acme")).unwrap();
    git(root, &["clone", "-q", "--bare", "seed", "forge/acme/large.git"]);
    fs::remove_dir_all(&seed).unwrap();
}

struct Bench {
    dir: PathBuf,
    git: Git,
    remote: Remote,
    sandboxes: Containers,
}

impl Bench {
    fn token(&self) -> Option<SecretString> {
        Some(TOKEN.to_owned().into())
    }

    fn mirror(&self, cache: &CacheDir) -> Mirror {
        cache.mirror(&MirrorKey::new("bench", &self.remote, "acme/large", Some("1")))
    }

    /// Everything of a first task, and the parts of it.
    async fn first(&self, cache: &CacheDir, repository: &Path) -> [Duration; 2] {
        let start = Instant::now();
        let access = self.git.prove_access(cache, &self.remote, self.token(), None).await.unwrap();
        let proven = start.elapsed();
        let owner = (WORKSPACE_UID, WORKSPACE_GID);
        let mirror = self.mirror(cache);
        let lower = self.git.lower(&mirror, &self.remote, self.token(), &access.cloned, owner).await.unwrap();
        self.git.seed(&lower.path, repository, &lower.cloned).await.unwrap();
        [start.elapsed(), proven]
    }

    /// Everything of a later task after the proof.
    async fn later(&self, cache: &CacheDir, volume: &Volume, repository: &Path) -> [Duration; 4] {
        let start = Instant::now();
        let access = self.git.prove_access(cache, &self.remote, self.token(), None).await.unwrap();
        let proof = start.elapsed();
        let mirror = self.mirror(cache);
        let start = Instant::now();
        assert!(self.git.use_lower(&mirror, &access.cloned.base, &access.cloned.commit).await.unwrap());
        let lower = mirror.lower(&access.cloned.commit);
        self.git.seed(&lower, repository, &access.cloned).await.unwrap();
        let seeded = start.elapsed();
        volume.lay("", &lower).await.unwrap();
        let laid = start.elapsed();
        let at = mount_overlay(volume, &lower);
        assert_eq!(fs::metadata(at.join("part7/section7/file7.bin")).unwrap().len(), FILE_BYTES as u64);
        let ready = start.elapsed();
        umount2(&at, MntFlags::empty()).unwrap();
        [ready, seeded, laid - seeded, proof]
    }
}

/// As the sandbox's helper does it, in its own mount namespace.
fn mount_overlay(volume: &Volume, lower: &Path) -> PathBuf {
    let disk = volume.workspace().parent().unwrap();
    let open = |path: &Path| fs::File::open(path).unwrap();
    let (lower, upper) = (open(lower), open(&disk.join("layers/workspace/upper")));
    let (work, at) = (open(&disk.join("layers/workspace/work")), open(volume.workspace()));
    let name = |file: &fs::File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let options =
        format!("lowerdir={},upperdir={},workdir={},redirect_dir=on", name(&lower), name(&upper), name(&work));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(Some("overlay"), name(&at).as_str(), Some("overlay"), flags, Some(&*options)).unwrap();
    volume.workspace().to_owned()
}

fn clone_with_git(remote: &Remote, into: &Path) -> Duration {
    let url = remote.url.replacen("http://", &format!("http://x:{TOKEN}@"), 1);
    let start = Instant::now();
    git(into.parent().unwrap(), &["clone", "-q", "--depth", "1", &url, into.to_str().unwrap()]);
    start.elapsed()
}

fn at(samples: &[Duration], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort();
    sorted[((sorted.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3
}

fn row(name: &str, samples: &[Duration]) {
    let [p50, p99] = [0.5, 0.99].map(|share| at(samples, share));
    println!("| {name} | {} | {p50:.1} | {p99:.1} |", samples.len());
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

fn main() {
    let (first_runs, runs) = (number("BENCH_FIRST", 5), number("BENCH_RUNS", 200));
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_owned();
    origin(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(GitServer::start(&dir.join("forge"), TOKEN));
    let remote = Remote { url: server.url("acme/large"), kind: RemoteKind::Http, auth: GitAuth::User("x".to_owned()) };
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_orchestra-sandbox-helper"));
    let state = SandboxConfig { state_dir: dir.join("state"), images: dir.join("images"), helper };
    let config = GitConfig { depth: Some(1), ..GitConfig::new(env!("CARGO_BIN_EXE_import-child")) };
    let bench = Bench { git: Git::new(config), remote, sandboxes: Containers::new(state).unwrap(), dir: dir.clone() };

    let settle = |paths: &[&Path]| {
        for path in paths {
            fs::remove_dir_all(path).unwrap();
        }
        nix::unistd::sync();
    };
    let (mut ours, mut proofs, mut gits) = (Vec::new(), Vec::new(), Vec::new());
    settle(&[]);
    for run in 0..=first_runs {
        let (mirrors, repository, clone) = (dir.join("first"), dir.join("first.git"), dir.join("clone"));
        let cache = CacheDir::open(&mirrors).unwrap();
        let [took, proof] = runtime.block_on(bench.first(&cache, &repository));
        settle(&[&mirrors, &repository]);
        let by_git = clone_with_git(&bench.remote, &clone);
        settle(&[&clone]);
        // The first of each only warms up.
        if run > 0 {
            ours.push(took);
            proofs.push(proof);
            gits.push(by_git);
        }
    }

    let cache = CacheDir::open(&dir.join("mirrors")).unwrap();
    runtime.block_on(bench.first(&cache, &dir.join("first.git")));
    let parts: Vec<[Duration; 4]> = runtime.block_on(async {
        let mut parts = Vec::new();
        for run in 0..WARM_UP + runs {
            let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
            let volume = bench.sandboxes.create_volume(id, DISK).await.unwrap();
            let repository = bench.dir.join("repositories").join(format!("{run}.git"));
            let sample = bench.later(&cache, &volume, &repository).await;
            bench.sandboxes.destroy(id).await.unwrap();
            if run >= WARM_UP {
                parts.push(sample);
            }
        }
        parts
    });
    let part = |number: usize| parts.iter().map(|sample| sample[number]).collect::<Vec<_>>();
    let rest: Vec<Duration> = parts.iter().map(|[ready, seeded, laid, _]| *ready - *seeded - *laid).collect();
    println!("| milliseconds | samples | p50 | p99 |\n| --- | ---: | ---: | ---: |");
    row("first task: proof, depth 1, files, trusted repository", &ours);
    row("of it the proof of access", &proofs);
    row("`git clone --depth 1`", &gits);
    row("later task: work tree ready", &part(0));
    row("of it look-up and trusted repository", &part(1));
    row("of it directories and record", &part(2));
    row("of it mount and a look at a file", &rest);
    row("before it the proof of access", &part(3));
    let mut ratios: Vec<f64> =
        ours.iter().zip(&gits).map(|(ours, git)| ours.as_secs_f64() / git.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    let (low, middle, high) = (ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
    println!("\nfirst task / git clone, pair by pair: {middle:.2} ({low:.2} to {high:.2})");
}
