//! A sandbox that was started ahead is the task's as if it had been started for it, and never anybody's twice.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{Containers, Limits, SandboxError, SandboxSpec, Sandboxes, WORKSPACE_UID};

use crate::host::{Host, helper_of, kill, limits, open, say, sh, spec, text, until};

/// Names of all directories of sandboxes, whatever they are.
fn directories(host: &Host) -> Vec<SandboxId> {
    let entries = fs::read_dir(host.dir.path().join("sandboxes")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

async fn pool_of(host: &Host, size: usize) {
    host.sandboxes.keep_ready(size, spec(host.id(), limits())).await;
    ready(&host.sandboxes, size).await;
}

async fn ready(sandboxes: &Containers, size: usize) {
    until("the pool is full", || sandboxes.ready() == size).await;
}

/// The first process of the sandbox in this directory.
fn first_process(host: &Host, id: SandboxId) -> i32 {
    fs::read_to_string(host.dir_of(id).join("pid")).unwrap().parse().unwrap()
}

fn lower(host: &Host, name: &str) -> PathBuf {
    let lower = host.dir.path().join("lowers").join(name);
    fs::create_dir_all(lower.join("src")).unwrap();
    fs::write(lower.join("src/file"), name).unwrap();
    for path in [&lower, &lower.join("src"), &lower.join("src/file")] {
        std::os::unix::fs::chown(path, Some(WORKSPACE_UID), Some(WORKSPACE_UID)).unwrap();
    }
    lower
}

#[tokio::test]
async fn a_task_gets_one_that_runs_with_its_files_and_its_time() {
    let host = Host::new();
    pool_of(&host, 1).await;
    let [member] = directories(&host)[..] else { panic!("one is ready") };
    assert!(host.sandboxes.list().await.unwrap().is_empty(), "what waits for a task is nobody's leftover");
    let process = first_process(&host, member);

    let id = host.id();
    let wanted = spec(id, Limits { timeout: Duration::from_secs(4), ..limits() });
    let volume = host.sandboxes.prepare(&wanted).await.unwrap();
    assert!(!host.dir_of(member).exists() && volume.workspace().starts_with(host.dir_of(id)));
    volume.lay("", &lower(&host, "main")).await.unwrap();
    // It is not the task's before it has its files.
    assert!(host.sandboxes.attach(id).await.unwrap().is_none());
    let sandbox = host.sandboxes.start(&wanted).await.unwrap();
    assert_eq!(first_process(&host, id), process, "it was running before");
    assert_eq!(
        say(&sandbox, "cat src/file; echo changed > src/file; echo new > new; cat src/file new; pwd").await,
        "mainchanged\nnew\n/workspace\n"
    );
    assert_eq!(fs::read_to_string(host.dir.path().join("lowers/main/src/file")).unwrap(), "main");
    let listed = host.sandboxes.list().await.unwrap();
    assert_eq!(listed, [id], "once, under its own name");
    assert!(sandbox.usage().await.unwrap().memory_bytes > 0, "its control groups are found under their first name");

    // Its time began with the handover, not when it was started ahead.
    let ended = sandbox.exec(sh("long", "sleep 60"), None).await;
    assert!(matches!(ended, Err(SandboxError::TimedOut(ended)) if ended == id), "{ended:?}");
    host.sandboxes.destroy(id).await.unwrap();
    assert!(host.sandboxes.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn several_folders_are_laid_and_the_agent_may_not_take_them_away() {
    let host = Host::new();
    pool_of(&host, 1).await;
    let id = host.id();
    let wanted = spec(id, limits());
    let volume = host.sandboxes.prepare(&wanted).await.unwrap();
    for name in ["one", "two"] {
        volume.lay(name, &lower(&host, name)).await.unwrap();
    }
    let sandbox = host.sandboxes.start(&wanted).await.unwrap();
    assert_eq!(
        say(&sandbox, "cat one/src/file two/src/file; echo x >> one/src/file; mv one/src one/moved; ls one").await,
        "onetwomoved\n"
    );
    let options = say(&sandbox, "grep ' /workspace' /proc/self/mountinfo | cut -d' ' -f6").await;
    assert_eq!(options.lines().count(), 3);
    assert!(options.lines().all(|line| line.contains("nosuid") && line.contains("nodev")), "{options}");
    let mounts = say(&sandbox, "cat /proc/self/mountinfo").await;
    assert!(!mounts.contains("/sandboxes/") && !mounts.contains("lowers"), "{mounts}");
    assert!(say(&sandbox, "umount one; umount /workspace; mv one three; rmdir two").await.contains("busy"));
}

/// What of a sandbox can be seen from inside that says how it is shut in.
const WALLS: &str = "grep -E 'Seccomp|NoNewPrivs|Cap|Groups|Uid|Gid' /proc/self/status; cat /proc/self/uid_map; \
                     cut -d' ' -f5- /proc/self/mountinfo | sed 's/master:[0-9]*//;s/shared:[0-9]*//;s/ - / /' | \
                     grep -v -E '^(/|/workspace|/home/agent|/orch/init) ' | sort; \
                     cat /proc/sys/user/max_user_namespaces; ulimit -a; env | sort; ls -la /proc/1/fd 2>&1; hostname; id; \
                     ls -l /dev; cat /proc/net/dev | cut -d: -f1; ls -ld /workspace /tmp /home/agent";

#[tokio::test]
async fn it_is_shut_in_exactly_like_one_that_was_started_for_the_task() {
    let host = Host::new();
    pool_of(&host, 1).await;
    let (cold, warm) = (host.id(), host.id());
    let wanted = spec(warm, limits());
    host.sandboxes.prepare(&wanted).await.unwrap();
    let warm = host.sandboxes.start(&wanted).await.unwrap();
    let cold = host.start(cold).await;
    let without_time = |text: String| {
        let kept = text.lines().map(|line| line.split(" Nov ").next().unwrap_or(line).to_owned());
        kept.collect::<Vec<_>>().join("\n")
    };
    let (seen_cold, seen_warm) = (without_time(say(&cold, WALLS).await), without_time(say(&warm, WALLS).await));
    assert!(seen_cold.contains("Seccomp:\t2") && seen_cold.contains("NoNewPrivs:\t1"), "{seen_cold}");
    assert_eq!(seen_cold, seen_warm);
    for attempt in ["unshare -U true", "mount -t tmpfs x /tmp", "chroot / true", "echo 1 > /proc/1/oom_score_adj"] {
        assert_ne!(
            warm.exec(sh(attempt, attempt), None).await.unwrap().exit,
            orchestra_runtime::sandbox::Exit::Code(0)
        );
    }
    // Neither sees the other.
    say(&warm, "echo secret | tee /tmp/f /dev/shm/f ~/f").await;
    assert_eq!(say(&cold, "cat /tmp/f /dev/shm/f ~/f 2>&1 | grep -c secret").await, "0\n");
}

#[tokio::test]
async fn the_pool_is_bounded_and_filled_again() {
    let host = Host::new();
    pool_of(&host, 2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(directories(&host).len(), 2);
    let id = host.id();
    host.sandboxes.prepare(&spec(id, limits())).await.unwrap();
    host.sandboxes.start(&spec(id, limits())).await.unwrap();
    ready(&host.sandboxes, 2).await;
    assert_eq!(directories(&host).len(), 3);
    assert_eq!(host.sandboxes.list().await.unwrap(), [id]);
}

#[tokio::test]
async fn another_kind_is_started_for_the_task() {
    let host = Host::new();
    pool_of(&host, 1).await;
    let [member] = directories(&host)[..] else { panic!("one is ready") };
    let id = host.id();
    let other = spec(id, Limits { memory_bytes: 128 << 20, ..limits() });
    host.sandboxes.prepare(&other).await.unwrap();
    let sandbox = host.sandboxes.start(&other).await.unwrap();
    assert!(host.dir_of(member).exists() && host.sandboxes.ready() == 1);
    assert_eq!(say(&sandbox, "echo on").await, "on\n");

    // Even one that was taken already: the task has changed its mind between its disk and its start.
    let id = host.id();
    let volume = host.sandboxes.prepare(&spec(id, limits())).await.unwrap();
    fs::write(volume.workspace().join("file"), "kept").unwrap();
    let process = first_process(&host, id);
    let env = vec![("NAME".to_owned(), "value".to_owned())];
    let sandbox = host.sandboxes.start(&SandboxSpec { env, ..spec(id, limits()) }).await.unwrap();
    assert_ne!(first_process(&host, id), process);
    assert_eq!(say(&sandbox, "cat file; echo $NAME").await, "keptvalue\n");
}

#[tokio::test]
async fn a_dead_one_is_not_given_to_a_task_and_is_replaced() {
    let host = Host::new();
    pool_of(&host, 1).await;
    for dies in ["its first process", "its helper", "after it was taken"] {
        ready(&host.sandboxes, 1).await;
        let known = host.sandboxes.list().await.unwrap();
        let member = directories(&host).into_iter().find(|id| !known.contains(id)).unwrap();
        let id = host.id();
        match dies {
            "its first process" => kill(first_process(&host, member)),
            "its helper" => kill(helper_of(member).unwrap()),
            _ => {}
        }
        host.sandboxes.prepare(&spec(id, limits())).await.unwrap();
        if dies == "after it was taken" {
            kill(first_process(&host, id));
        }
        let sandbox = host.sandboxes.start(&spec(id, limits())).await.unwrap();
        assert_eq!(say(&sandbox, "echo on").await, "on\n", "{dies}");
        host.sandboxes.destroy(id).await.unwrap();
    }
    ready(&host.sandboxes, 1).await;
    assert_eq!(directories(&host).len(), 1);
}

/// Not a test: what `what_a_killed_server_had_ready_is_taken_over` runs in a process of its own, and kills.
#[tokio::test]
#[ignore = "run by another test in a process of its own"]
async fn server_with_a_pool() {
    let Some(state) = std::env::var_os("SANDBOX_TEST_STATE") else { return };
    let sandboxes = open(state.as_ref());
    let id: SandboxId = std::env::var("SANDBOX_TEST_ID").unwrap().parse().unwrap();
    sandboxes.keep_ready(2, spec(id, limits())).await;
    ready(&sandboxes, 2).await;
    sandboxes.prepare(&spec(id, limits())).await.unwrap();
    fs::write(PathBuf::from(state).join("claimed"), "").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn what_a_killed_server_had_ready_is_taken_over() {
    let host = Host::new();
    let id = host.id();
    let mut server = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ahead::server_with_a_pool", "--ignored"])
        .env("SANDBOX_TEST_STATE", host.dir.path())
        .env("SANDBOX_TEST_ID", id.to_string())
        .spawn()
        .unwrap();
    let claimed = host.dir.path().join("claimed");
    until("one was taken", || claimed.exists()).await;
    server.kill().unwrap();
    server.wait().unwrap();
    // A server without a pool sees leftovers, which its reaper removes.
    let left = host.sandboxes.list().await.unwrap();
    assert!(left.contains(&id) && left.len() >= 2, "{left:?}");

    // What was taken is given to whoever starts it.
    let process = first_process(&host, id);
    let sandbox = host.sandboxes.start(&spec(id, limits())).await.unwrap();
    assert_eq!(say(&sandbox, "echo on").await, "on\n");
    assert_eq!(first_process(&host, id), process);

    // A server with one of another kind takes nothing over; one of this kind takes what runs.
    let other = open(host.dir.path());
    other.keep_ready(1, spec(host.id(), Limits { pids: 64, ..limits() })).await;
    assert_eq!(other.ready(), 0);
    drop(other);
    let again = open(host.dir.path());
    again.keep_ready(1, spec(host.id(), limits())).await;
    assert_eq!(again.ready(), 1);
    let taken = host.id();
    again.prepare(&spec(taken, limits())).await.unwrap();
    let sandbox = again.start(&spec(taken, limits())).await.unwrap();
    let outcome = sandbox.exec(sh("one", "echo on"), None).await.unwrap();
    assert_eq!(text(&outcome), "on\n");
}
