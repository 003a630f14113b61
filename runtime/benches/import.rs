//! How long it takes until an agent's change of a thousand files is checked and in the trusted repository.
//!
//! Measured from the first byte of the export (a pack in memory, so that the sandbox's own packing is apart) to the
//! published pack: starting the child, indexing with verification, the walk with all default rules, publishing. Then
//! the same with making the commit, and the parts of the child's own time. `BENCH_RUNS` sets the number of samples.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orchestra_events::CommitId;
use orchestra_runtime::git::{
    CommitPolicy, Git, GitAuth, GitConfig, History, ImportRules, Remote, RemoteKind, Signature, export_script,
};

const FILES: usize = 1_000;
const WARM_UP: usize = 3;

fn git(dir: &Path, args: &[&str]) {
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*", "-c", "user.name=b", "-c", "user.email=b@b"]).args(args).current_dir(dir);
    assert!(command.status().unwrap().success(), "git {args:?}");
}

/// Some 4 KiB of text that differs from file to file.
fn text(n: usize, edited: bool) -> String {
    let mark = if edited { "changed" } else { "line" };
    (0..120).map(|line| format!("    let {mark}_{line} = compute({n}, {});\n", (n * 31 + line * 17) % 1009)).collect()
}

fn write(root: &Path, files: usize, edited: bool) {
    for n in 0..files {
        let folder = root.join(format!("src/module_{}", n % 50));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("file_{n}.rs")), text(n, edited)).unwrap();
    }
}

fn quantile(samples: &mut [Duration], share: f64) -> f64 {
    samples.sort();
    samples[((samples.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let runs: usize = std::env::var("BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(60);
    let dir = tempfile::tempdir().unwrap();
    let (seed, bare) = (dir.path().join("seed"), dir.path().join("origin.git"));
    std::fs::create_dir(&seed).unwrap();
    git(&seed, &["init", "-q", "-b", "main"]);
    write(&seed, 5 * FILES, false);
    git(&seed, &["add", "-A"]);
    git(&seed, &["commit", "-qm", "base"]);
    git(dir.path(), &["clone", "-q", "--bare", "seed", "origin.git"]);

    let tool = Git::new(GitConfig::new(env!("CARGO_BIN_EXE_import-child")));
    let remote = Remote {
        url: bare.to_string_lossy().into_owned(),
        kind: RemoteKind::Local,
        auth: GitAuth::User(String::new()),
    };
    let trusted = dir.path().join("trusted.git");
    let base = tool.clone(&trusted, &remote, None, None).await.unwrap().commit;
    let workspace = dir.path().join("workspace");
    let owner = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    tool.checkout(&trusted, &base, &workspace, owner).await.unwrap();
    write(&workspace, FILES, true);
    let started = Instant::now();
    let argv = export_script(&base, History::Keep);
    let export = Command::new(&argv[0]).args(&argv[1..]).current_dir(&workspace).output().unwrap();
    let pack = export.stdout;
    println!("change: {FILES} files of 5 × {FILES}; pack {} KiB, packed in {:?}", pack.len() >> 10, started.elapsed());

    let (mut imports, mut commits) = (Vec::new(), Vec::new());
    let mut peak = 0;
    for run in 0..WARM_UP + runs {
        let started = Instant::now();
        let imported = tool.import(&trusted, &base, &pack[..], &ImportRules::default()).await.unwrap().unwrap();
        let import = started.elapsed();
        assert_eq!(imported.files_changed as usize, FILES);
        let made = tool.commit(&trusted, &base, &imported, &policy()).await.unwrap();
        if run >= WARM_UP {
            imports.push(import);
            commits.push(started.elapsed());
        }
        peak = peak.max(measured(dir.path(), &trusted, &base, &pack, run).await);
        forget(&trusted, &made);
    }
    println!("| what | p50 ms | p99 ms | goal |\n| --- | --: | --: | --: |");
    println!("| import | {:.1} | {:.1} | 100 |", quantile(&mut imports, 0.5), quantile(&mut imports, 0.99));
    println!("| import and commit | {:.1} | {:.1} | |", quantile(&mut commits, 0.5), quantile(&mut commits, 0.99));
    println!(
        "peak memory of the child: {} MiB; its limit: {} MiB",
        peak >> 10,
        ImportRules::default().limits.memory_bytes >> 20
    );
}

fn policy() -> CommitPolicy {
    let who = Signature { name: "Orchestra".into(), email: "o@example.com".into() };
    CommitPolicy {
        mode: History::Keep,
        author: who.clone(),
        committer: who,
        co_authors: Vec::new(),
        trailers: vec![("Orchestra-Task".into(), "task_1".into())],
        message: "Change them".into(),
        time: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// Once in a while, the child's peak in KiB: through a second program, outside what is timed.
async fn measured(dir: &Path, trusted: &Path, base: &CommitId, pack: &[u8], run: usize) -> u64 {
    if !run.is_multiple_of(20) {
        return 0;
    }
    let program: PathBuf = dir.join("measured");
    if !program.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_import-child"), &program).unwrap();
    }
    let tool = Git::new(GitConfig::new(&program));
    tool.import(trusted, base, pack, &ImportRules::default()).await.unwrap().unwrap();
    std::fs::read_to_string(program.with_extension("peak")).unwrap().trim().parse().unwrap()
}

/// Back to the base: what was imported goes, so that each run finds the same repository.
fn forget(trusted: &Path, made: &[CommitId]) {
    assert_eq!(made.len(), 1);
    let folder = trusted.join("objects/pack");
    let mut packs: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().map(|file| file.path()).collect();
    packs.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
    // The clone's pack and index are the largest of their kind.
    for extension in ["pack", "idx"] {
        let mut kind: Vec<_> = packs.iter().filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
        kind.pop();
        kind.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}
