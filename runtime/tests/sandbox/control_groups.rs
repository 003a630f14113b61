//! Limits are in the groups that the host has, whichever version it arranges them by, and a whole group is killed at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{Limits, Sandboxes};

use crate::host::{Host, limits, say, spec, until};

const ROOT: &str = "/sys/fs/cgroup";
/// Set for the test below that another runs in a mount namespace of its own.
const INSIDE: &str = "ORCHESTRA_TEST_INSIDE_VERSION_2";

/// Every group of this sandbox, in whichever tree and however deep.
fn groups(id: SandboxId) -> Vec<PathBuf> {
    let name = id.to_string();
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::from(ROOT)];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().ends_with(&name) {
                    found.push(entry.path());
                } else {
                    pending.push(entry.path());
                }
            }
        }
    }
    found
}

fn is_version_2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The group that has this file, and what is in it.
fn setting(id: SandboxId, file: &str) -> Option<String> {
    let text = groups(id).into_iter().find_map(|group| fs::read_to_string(group.join(file)).ok())?;
    Some(text.trim().to_owned())
}

#[tokio::test]
async fn the_limits_are_those_of_the_sandbox() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start_with(id, Limits { cpus: 0.5, ..limits() }).await;
    let memory = (256 << 20).to_string();
    let expected: &[(&str, &str)] = if is_version_2() {
        &[
            ("memory.max", &memory),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "0"),
            ("pids.max", "128"),
            ("cpu.max", "50000 100000"),
        ]
    } else {
        &[
            ("memory.limit_in_bytes", &memory),
            ("memory.memsw.limit_in_bytes", &memory),
            ("pids.max", "128"),
            ("cpu.cfs_quota_us", "50000"),
            ("cpu.cfs_period_us", "100000"),
        ]
    };
    for (file, value) in expected {
        match setting(id, file) {
            Some(set) => assert_eq!(set, *value, "{file}"),
            // Where the kernel counts no swap there is nothing to limit.
            None => assert!(file.contains("sw"), "{file} is nowhere"),
        }
    }
    assert!(sandbox.usage().await.unwrap().memory_bytes > 0);
    host.sandboxes.destroy(id).await.unwrap();
    assert_eq!(groups(id), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn one_word_kills_everything_where_the_kernel_knows_it() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    say(&sandbox, "for i in $(seq 20); do setsid sleep 1000 & done; echo").await;
    let Some(group) = groups(id).into_iter().find(|group| group.join("cgroup.kill").exists()) else {
        assert!(
            !is_version_2() && !Path::new(ROOT).join("unified/cgroup.controllers").exists(),
            "no group of version 2"
        );
        return;
    };
    let in_it: BTreeSet<String> =
        fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().map(str::to_owned).collect();
    assert!(in_it.len() > 20, "the whole sandbox is in it: {in_it:?}");
    let first = fs::read_to_string(host.dir_of(id).join("pid")).unwrap();
    assert!(in_it.contains(&first));
    fs::write(group.join("cgroup.kill"), "1").unwrap();
    until("all of them are gone", || in_it.iter().all(|pid| !Path::new("/proc").join(pid).exists())).await;
    until("the helper has cleared away", || groups(id).is_empty()).await;
    assert!(host.sandboxes.attach(id).await.unwrap().is_none());
}

/// A host with version 2 alone, as far as this one can show it: where version 1 has the controllers, they are not there.
#[test]
fn on_version_2_without_controllers_a_start_is_refused_and_says_which() {
    let script =
        format!("mount -t cgroup2 none {ROOT} && exec \"$0\" --exact control_groups::inside_version_2 --ignored");
    let run = Command::new("unshare")
        .args(["--mount", "sh", "-ec", &script])
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&run.stderr));
}

#[tokio::test]
#[ignore = "run by another test in a mount namespace of its own"]
async fn inside_version_2() {
    assert!(std::env::var_os(INSIDE).is_some() && is_version_2());
    let given = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap();
    let missing: Vec<_> = ["memory", "pids", "cpu"]
        .into_iter()
        .filter(|name| !given.split_whitespace().any(|has| has == *name))
        .collect();
    let host = Host::new();
    let id = host.id();
    if missing.is_empty() {
        // All of this file's tests show the rest there.
        return;
    }
    let error = host.sandboxes.start(&spec(id, limits())).await.err().unwrap().to_string();
    assert!(error.contains(&format!("has no {} to give", missing.join(", "))), "{error}");
    assert_eq!(groups(id), Vec::<PathBuf>::new());
    host.sandboxes.destroy(id).await.unwrap();
}
