//! Commands run once, output arrives, the sandbox outlives who started it.

use std::process::Command;
use std::time::{Duration, Instant};

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{Exec, Exit, SandboxError, Sandboxes, WORKSPACE_UID};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::host::{Host, limits, open, say, sh, spec, text};

#[tokio::test]
async fn a_sandbox_starts_and_runs_a_command() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let outcome = sandbox.exec(sh("one", "echo hello; echo oops >&2; pwd; exit 7"), None).await.unwrap();
    assert_eq!(outcome.exit, Exit::Code(7));
    assert_eq!(text(&outcome), "hello\noops\n/workspace\n");
    assert_eq!(outcome.total_bytes, 22);
    let missing = Exec { argv: vec!["no-such-program".into()], ..sh("two", "") };
    assert_eq!(sandbox.exec(missing, None).await.unwrap().exit, Exit::Code(127));
    let killed = sandbox.exec(sh("three", "kill -TERM $$"), None).await.unwrap();
    assert_eq!(killed.exit, Exit::Signal(15));
}

#[tokio::test]
async fn input_environment_and_directory_reach_the_command() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let input = vec![b'x'; 3_000_000];
    let exec = Exec {
        stdin: input,
        env: vec![("NAME".into(), "a b".into())],
        cwd: "/tmp".into(),
        ..sh("one", "wc -c; echo $NAME; pwd; echo $HOME")
    };
    assert_eq!(text(&sandbox.exec(exec, None).await.unwrap()), "3000000\na b\n/tmp\n/home/agent\n");
}

#[tokio::test]
async fn a_command_runs_once_however_often_it_is_asked_for() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    let script = "echo started; echo ran >> runs; while [ ! -e go ]; do sleep 0.01; done; echo finished";
    let (live, mut output) = mpsc::channel(8);
    let first = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.exec(sh("once", script), Some(live)).await }
    });
    assert_eq!(output.recv().await.unwrap(), "started\n");
    first.abort();
    // Another server process finds the sandbox and joins the running command.
    let again = host.restarted().attach(id).await.unwrap().unwrap();
    let joined = tokio::spawn(async move { again.exec(sh("once", script), None).await });
    say(&sandbox, "touch go").await;
    let outcome = joined.await.unwrap().unwrap();
    assert_eq!((outcome.exit, text(&outcome)), (Exit::Code(0), "started\nfinished\n".into()));
    // Finished, it is answered from what was kept.
    assert_eq!(sandbox.exec(sh("once", script), None).await.unwrap(), outcome);
    assert_eq!(say(&sandbox, "cat runs").await, "ran\n");
    // Forgotten, the same id is a new command.
    sandbox.forget("once").await.unwrap();
    sandbox.exec(sh("once", script), None).await.unwrap();
    assert_eq!(say(&sandbox, "cat runs").await, "ran\nran\n");
}

/// A server in a process of its own, whose only sandbox has begun its command; for who wants to kill it.
pub async fn server(host: &Host, id: SandboxId) -> std::process::Child {
    let server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::server_that_dies", "--ignored"])
        .env("SANDBOX_TEST_STATE", host.dir.path())
        .env("SANDBOX_TEST_ID", id.to_string())
        .spawn()
        .unwrap();
    let started = host.dir_of(id).join("volume/workspace/started");
    crate::host::until("the command has started", || started.exists()).await;
    server
}

/// Not a test: what [`server`] runs.
#[tokio::test]
#[ignore = "run by another test in a process of its own"]
async fn server_that_dies() {
    let Some(state) = std::env::var_os("SANDBOX_TEST_STATE") else { return };
    let id = std::env::var("SANDBOX_TEST_ID").unwrap().parse().unwrap();
    let sandboxes = open(state.as_ref());
    let sandbox = sandboxes.start(&spec(id, limits())).await.unwrap();
    let script = "echo ran >> runs; touch started; while [ ! -e go ]; do sleep 0.01; done; echo done";
    tokio::spawn(async move { sandbox.exec(sh("long", script), None).await });
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_sandbox_survives_the_death_of_its_server() {
    let host = Host::new();
    let id = host.id();
    let mut server = server(&host, id).await;
    server.kill().unwrap();
    server.wait().unwrap();

    let sandbox = host.sandboxes.attach(id).await.unwrap().expect("it still runs");
    say(&sandbox, "touch go").await;
    let script = "echo ran >> runs; touch started; while [ ! -e go ]; do sleep 0.01; done; echo done";
    let outcome = sandbox.exec(sh("long", script), None).await.unwrap();
    assert_eq!((outcome.exit, text(&outcome)), (Exit::Code(0), "done\n".into()));
    assert_eq!(say(&sandbox, "cat runs").await, "ran\n");
}

#[tokio::test]
async fn starting_twice_finds_the_running_one_and_starting_again_keeps_the_work() {
    let host = Host::new();
    let id = host.id();
    let volume = host.sandboxes.create_volume(id, 256 << 20).await.unwrap();
    std::fs::write(volume.workspace().join("file"), "from the host").unwrap();
    std::os::unix::fs::chown(volume.workspace().join("file"), Some(WORKSPACE_UID), Some(WORKSPACE_UID)).unwrap();
    let sandbox = host.start(id).await;
    assert_eq!(say(&sandbox, "cat file; echo more >> file; stat -c %u file").await, "from the host1000\n");
    host.start(id).await;
    assert_eq!(say(&sandbox, "cat file").await, "from the hostmore\n");
    sandbox.kill().await.unwrap();
    assert!(matches!(sandbox.exec(sh("x", "true"), None).await, Err(SandboxError::Gone(_))));
    assert!(host.sandboxes.attach(id).await.unwrap().is_none());
    let sandbox = host.start(id).await;
    assert_eq!(say(&sandbox, "cat file").await, "from the hostmore\n");
}

#[tokio::test]
async fn a_stream_of_any_length_arrives_whole_at_the_readers_pace() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let total: u64 = 200_000_000;
    let script = format!("yes 0123456789 | head -c {total}; echo note >&2; exit 3");
    let mut stream = sandbox.exec_piped(sh("pack", &script)).await.unwrap();
    // The reader waits: the command must wait too, instead of filling anybody's memory.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(sandbox.usage().await.unwrap().memory_bytes < 64 << 20);
    let mut buffer = vec![0; 1 << 20];
    let mut read: u64 = 0;
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        for (offset, byte) in buffer[..count].iter().enumerate().step_by(4_099) {
            assert_eq!(*byte, b"0123456789\n"[((read + offset as u64) % 11) as usize]);
        }
        read += count as u64;
    }
    assert_eq!(read, total);
    let outcome = stream.finish().await.unwrap();
    assert_eq!((outcome.exit, &outcome.stderr[..]), (Exit::Code(3), &b"note\n"[..]));
}

#[tokio::test]
async fn a_dropped_stream_ends_its_command() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    let stream = sandbox.exec_piped(sh("endless", "touch begun; yes")).await.unwrap();
    let begun = host.dir_of(id).join("volume/workspace/begun");
    crate::host::until("the command runs", || begun.exists()).await;
    drop(stream);
    let start = Instant::now();
    while say(&sandbox, "cat /proc/[0-9]*/comm").await.contains("yes") {
        assert!(start.elapsed() < Duration::from_secs(10), "the command goes on");
    }
}

#[tokio::test]
async fn a_process_left_behind_does_not_hold_up_the_result() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let start = Instant::now();
    let script = "(while true; do echo tick; sleep 0.05; done) & echo $! > daemon; echo done";
    let outcome = sandbox.exec(sh("one", script), None).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5) && text(&outcome).contains("done"));
    // And it lives on, though nobody listens to it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(say(&sandbox, "kill -0 $(cat daemon) && echo alive").await, "alive\n");
}

#[tokio::test]
async fn a_running_command_can_be_killed() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let (live, mut output) = mpsc::channel(1);
    let run = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.exec(sh("long", "echo up; sleep 1000 & sleep 1000"), Some(live)).await }
    });
    output.recv().await.unwrap();
    assert!(sandbox.kill_exec("long").await.unwrap());
    assert_eq!(run.await.unwrap().unwrap().exit, Exit::Signal(9));
    assert!(!sandbox.kill_exec("long").await.unwrap());
    assert_eq!(say(&sandbox, "cat /proc/[0-9]*/comm | grep -c sleep").await, "0\n");
}

#[tokio::test]
async fn the_file_tools_work_inside() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let tool = |id: &str, name: &str, call: &str| Exec {
        argv: ["/orch/init", "tool", name].map(str::to_owned).to_vec(),
        stdin: call.into(),
        ..sh(id, "")
    };
    let run = async |id: &str, name: &str, call: &str| {
        let outcome = sandbox.exec(tool(id, name, call), None).await.unwrap();
        (outcome.exit, text(&outcome))
    };
    let written = run("1", "write", r#"{"path": "src/a.txt", "content": "one\ntwo\n"}"#).await;
    assert_eq!(written, (Exit::Code(0), "Created src/a.txt (8 bytes).\n".into()));
    assert_eq!(run("2", "read", r#"{"path": "src/a.txt"}"#).await.1, "     1\tone\n     2\ttwo\n");
    assert_eq!(run("3", "grep", r#"{"pattern": "tw"}"#).await.1, "src/a.txt:2:two\n");
    assert_eq!(run("4", "glob", r#"{"pattern": "*.txt"}"#).await.1, "src/a.txt\n");
    let edited = run("5", "edit", r#"{"path": "src/a.txt", "old_string": "one", "new_string": "1"}"#).await;
    assert_eq!(edited.1, "Replaced once in src/a.txt.\n");
    assert_eq!(run("6", "read", r#"{"path": "none"}"#).await.0, Exit::Code(1));
    assert_eq!(say(&sandbox, "cat src/a.txt").await, "1\ntwo\n");
}
