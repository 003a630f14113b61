//! Whoever looks after the host sees every sandbox, and can go in as its agent does and not otherwise; each entry is on record.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::harness::{House, PATIENCE, Setup, bash, done, processes_of, program, script};

fn sandbox(house: &House, verb: &str) -> Command {
    let mut command = program();
    command.args(["sandbox", verb]).env("SUDO_USER", "ada").current_dir("/");
    command.env("ORCHESTRA_DATA_DIR", house.data()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn run(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

async fn exec(house: &House, id: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = sandbox(house, "exec");
    command.arg(id).args(more);
    run(command).await
}

/// A house with a task whose agent sleeps until it is told.
async fn at_work() -> (House, String) {
    let turns = json!([bash("until [ -e /tmp/go ]; do sleep 0.1; done; echo made > made.txt"), done()]);
    let house = Setup::new(script(turns)).open().await;
    let id = house.submit(json!({})).await;
    house.event(&id, "tool-called").await;
    let deadline = Instant::now() + PATIENCE;
    while !processes_of(&house.data()).iter().any(|(_, command)| command.contains("sleep 0.1")) {
        assert!(Instant::now() < deadline, "the tool runs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (house, id)
}

async fn listed(house: &House) -> Vec<Value> {
    let mut command = sandbox(house, "ps");
    command.arg("--json");
    let (code, out, err) = run(command).await;
    assert_eq!(code, Some(0), "{err}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sandbox_is_seen_with_and_without_its_server() {
    let (mut house, task) = at_work().await;
    for running in [true, false] {
        if !running {
            house.kill().await;
        }
        let all = listed(&house).await;
        assert_eq!(all.len(), 1, "{all:#?}");
        let seen = &all[0];
        assert_eq!((&seen["task"], &seen["state"]), (&json!(task), &json!("running")), "{seen:#}");
        assert_eq!(seen["about"]["image"], "default");
        assert!(seen["usage"]["memoryBytes"].as_u64().unwrap() > 100_000, "{seen:#}");
        assert!(seen["usage"]["memoryPeakBytes"].as_u64() >= seen["usage"]["memoryBytes"].as_u64(), "{seen:#}");
        assert!(seen["usage"]["cpuMs"].as_u64().unwrap() > 0, "{seen:#}");
        assert!(seen["usage"]["pids"].as_u64().unwrap() >= 3, "{seen:#}");
        assert!(seen["usage"]["diskUsedBytes"].as_u64().unwrap() > 0, "{seen:#}");
        let (code, table, _) = run(sandbox(&house, "ps")).await;
        let id = seen["id"].as_str().unwrap();
        assert!(code == Some(0) && table.contains("running"), "{table}");

        // By the start of its own name, and of its task's.
        for name in [&id[..12], &task[..20], &task[5..20], &task] {
            let mut command = sandbox(&house, "inspect");
            command.args([name, "--json"]);
            let (code, out, err) = run(command).await;
            assert_eq!(code, Some(0), "{name}: {err}");
            let one: Value = serde_json::from_str(&out).unwrap();
            assert_eq!(one["id"], id);
            let walls = &one["walls"];
            assert_eq!((&walls["seccomp"], &walls["noNewPrivileges"]), (&json!("filter"), &json!(true)), "{walls:#}");
            assert_eq!(walls["capabilities"], json!({}));
            for kind in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
                assert_eq!(walls["namespaces"][kind]["own"], true, "{kind}: {walls:#}");
            }
            assert_ne!(walls["uidMap"].as_array().unwrap().len(), 0);
            assert!(one["cgroups"].as_array().unwrap().iter().all(|group| group.as_str().unwrap().contains(id)));
            assert!(one["commands"][0]["command"].as_str().unwrap().contains("until"), "{one:#}");
            let processes = one["processes"].as_array().unwrap();
            assert!(processes.iter().any(|process| process["innerPid"] == 1), "{one:#}");
        }
        let mut command = sandbox(&house, "inspect");
        command.arg(id);
        let (_, text, _) = run(command).await;
        for words in ["limits", "usage", "namespace", "its own", "cgroup", "capabilities   none", "layer"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("HOST'S") && !text.contains("POSSIBLE"), "{text}");
    }
    house.restart().await;
    assert_eq!(exec(&house, &task, &["touch", "/tmp/go"]).await.0, Some(0));
    assert_eq!(house.ended(&task).await["status"], "succeeded");
    house.nothing_left().await;
    assert!(listed(&house).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_runs_as_the_agent_would_and_is_on_record() {
    let (house, task) = at_work().await;
    let secret = "hunter2-in-an-argument";
    let (code, out, err) = exec(&house, &task, &["--", "sh", "-c", "echo out; echo err >&2; exit 7", secret]).await;
    assert_eq!((code, &*out, &*err), (Some(7), "out\n", "err\n"));
    let (code, out, _) =
        exec(&house, &task, &["grep", "-E", "^(Uid|CapEff|Seccomp|NoNewPrivs):", "/proc/self/status"]).await;
    assert_eq!(code, Some(0));
    for line in ["Uid:\t1000\t1000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(out.contains(line), "{line}: {out}");
    }
    assert_eq!(exec(&house, &task, &["--", "sh", "-c", "kill -TERM $$"]).await.0, Some(128 + 15));
    assert_eq!(exec(&house, &task, &["no-such-program"]).await.0, Some(127));
    let (code, _, err) = exec(&house, &task, &["--timeout", "500ms", "sleep", "100"]).await;
    assert_eq!(code, Some(124), "{err}");
    let (_, out, _) = exec(&house, &task, &["--cwd", "/tmp", "--env", "A=b c", "--", "sh", "-c", "pwd; echo $A"]).await;
    assert_eq!(out, "/tmp\nb c\n");

    // Input passes, and its end.
    let mut command = sandbox(&house, "exec");
    let mut child = command.args([&*task, "--", "sh", "-c", "wc -c; echo done"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![b'x'; 3_000_000]).await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "3000000\ndone\n");

    // Output comes as it is written, a signal reaches the command, and the second one ends everything.
    let script = "trap 'echo told' INT; (setsid sleep 4720 &) ; echo ready; while :; do sleep 0.1; done";
    let mut child = sandbox(&house, "exec").args([&*task, "--", "bash", "-c", script]).spawn().unwrap();
    said(&mut child, "ready").await;
    interrupt(&child);
    said(&mut child, "told").await;
    interrupt(&child);
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(128 + 9));
    gone(&house, "sleep 4720").await;
    // So does the end of the one who asked for it.
    let mut child = sandbox(&house, "exec").args([&*task, "--", "sh", "-c", "echo ready; sleep 4721"]).spawn().unwrap();
    said(&mut child, "ready").await;
    child.kill().await.unwrap();
    gone(&house, "sleep 4721").await;

    assert_eq!(exec(&house, &task, &["touch", "/tmp/go"]).await.0, Some(0));
    assert_eq!(house.ended(&task).await["status"], "succeeded");
    let events = house.events(&task).await;
    let entries: Vec<&Value> = events.iter().filter(|event| event["type"] == "operator-entered").collect();
    assert_eq!(entries.len(), 10, "{entries:#?}");
    assert_eq!(entries[0]["data"]["operator"], "ada");
    assert_eq!((&entries[0]["data"]["how"], &entries[0]["data"]["program"]), (&json!("exec"), &json!("sh")));
    assert!(!serde_json::to_string(&events).unwrap().contains(secret), "arguments are nobody's business");
    let last = events.iter().rev().find(|event| event["type"] == "sandbox-usage").unwrap();
    assert!(last["data"]["cpuMs"].as_u64().unwrap() > 0 && last["data"]["limits"]["pids"] == 512, "{last:#}");
    house.nothing_left().await;
}

fn interrupt(child: &Child) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    // SAFETY: a plain system call; the process is our own child and not yet waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
}

async fn said(child: &mut Child, words: &str) {
    let stdout = child.stdout.as_mut().unwrap();
    let mut heard = String::new();
    let mut buffer = [0; 1_024];
    while !heard.contains(words) {
        let count = tokio::time::timeout(PATIENCE, stdout.read(&mut buffer)).await.expect("it says so").unwrap();
        assert_ne!(count, 0, "{words} was not said: {heard}");
        heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

async fn gone(house: &House, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while processes_of(&house.data()).iter().any(|(_, command)| command.starts_with(what)) {
        assert!(Instant::now() < deadline, "{what} runs on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A terminal: the end that a person sits at, and the end that is given to a program.
fn terminal() -> (File, OwnedFd) {
    let (mut person, mut program) = (-1, -1);
    let size = libc::winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: both numbers are valid to write, and the struct to read; no name or settings are asked for.
    let opened = unsafe {
        libc::openpty(&raw mut person, &raw mut program, std::ptr::null_mut(), std::ptr::null(), &raw const size)
    };
    assert_eq!(opened, 0);
    // SAFETY: just made, owned by nobody else.
    unsafe { (File::from_raw_fd(person), OwnedFd::from_raw_fd(program)) }
}

fn settings(of: &impl AsRawFd) -> (u32, u32, u32) {
    // SAFETY: an all-zero struct is valid, and outlives the call that fills it.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::tcgetattr(of.as_raw_fd(), &raw mut settings) }, 0);
    (settings.c_lflag, settings.c_iflag, settings.c_oflag)
}

/// Reads a terminal on a thread of its own until it says these words.
async fn shown(mut person: File, words: &'static str) -> File {
    let read = tokio::task::spawn_blocking(move || {
        let (mut heard, mut buffer) = (String::new(), [0; 1_024]);
        while !heard.contains(words) {
            let count = person.read(&mut buffer).unwrap_or(0);
            assert_ne!(count, 0, "{words} was not shown: {heard}");
            heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        person
    });
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{words} was not shown")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_has_a_terminal_and_gives_it_back() {
    let (house, task) = at_work().await;
    let (mut person, end) = terminal();
    let before = settings(&person);
    let spawn = |end: &OwnedFd| {
        let mut command = sandbox(&house, "shell");
        let stdio = || Stdio::from(end.try_clone().unwrap());
        command.arg(&task).env("TERM", "xterm-256color").stdin(stdio()).stdout(stdio()).stderr(stdio());
        command.spawn().unwrap()
    };
    let mut child = spawn(&end);
    person.write_all(b"tty && stty size && echo $TERM-$((40+2))\r").unwrap();
    person = shown(person, "xterm-256color-42").await;
    assert_ne!(settings(&person), before, "raw while it runs");
    // Another size arrives inside.
    let size = libc::winsize { ws_row: 11, ws_col: 44, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct outlives the call, which reads it.
    assert_eq!(unsafe { libc::ioctl(person.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    // The test's own terminal is nobody's controlling one, so the kernel tells nobody. SAFETY: a plain system call.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGWINCH) }, 0);
    person.write_all(b"sleep 0.5; stty size | tr ' ' x\r").unwrap();
    person = shown(person, "11x44").await;
    // Control-C ends what runs in the shell, and not the shell.
    person.write_all(b"sleep 4722\r").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !processes_of(&house.data()).iter().any(|(_, command)| command.starts_with("sleep 4722")) {
        assert!(Instant::now() < deadline, "the shell runs it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    person.write_all(b"\x03").unwrap();
    gone(&house, "sleep 4722").await;
    person.write_all(b"exit 5\r").unwrap();
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(5));
    assert_eq!(settings(&person), before, "given back as it was");

    // Also when it is ended from outside.
    let mut child = spawn(&end);
    person.write_all(b"echo on-$((1+1)); sleep 4723\r").unwrap();
    person = shown(person, "on-2").await;
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    // SAFETY: a plain system call; the process is our own child and not yet waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGHUP) }, 0);
    tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!(settings(&person), before, "given back as it was");
    gone(&house, "sleep 4723").await;

    assert_eq!(exec(&house, &task, &["touch", "/tmp/go"]).await.0, Some(0));
    assert_eq!(house.ended(&task).await["status"], "succeeded");
    let events = house.events(&task).await;
    let shells = events.iter().filter(|event| event["data"]["how"] == "shell").count();
    assert_eq!(shells, 2, "{events:#?}");
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_is_said_in_words_that_help() {
    let (mut house, task) = at_work().await;
    let id = listed(&house).await[0]["id"].as_str().unwrap().to_owned();
    let (code, _, err) = exec(&house, "sbx_nobody", &["true"]).await;
    assert!(code == Some(2) && err.contains("the nearest are") && err.contains(&id), "{err}");
    let mut elsewhere = sandbox(&house, "ps");
    elsewhere.args(["--data", "/var/empty"]);
    let (code, _, err) = run(elsewhere).await;
    assert!(code == Some(2) && err.contains("--data") && err.contains("/var/empty"), "{err}");
    let mut nobody = sandbox(&house, "ps");
    nobody.uid(65_534);
    match tokio::time::timeout(PATIENCE, nobody.output()).await.expect("it ends") {
        Ok(output) => {
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(2) && err.contains("root"), "{err}");
        }
        // The build's own folder may be root's alone.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
    }
    // One whose server is gone and whose run has ended cannot be entered.
    house.kill().await;
    for (pid, command) in processes_of(&house.data()) {
        if command.contains("pid1") {
            // SAFETY: a plain system call; the process is the first one of this test's own sandbox.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
    gone(&house, "/orch/init pid1").await;
    let (code, _, err) = exec(&house, &id, &["true"]).await;
    assert!(code == Some(2) && err.contains("does not run any more"), "{err}");
    let seen = &listed(&house).await[0];
    assert_eq!(seen["state"], "stopped", "{seen:#}");
    house.restart().await;
    house.api.post(&format!("/v1/tasks/{task}/cancel"), &json!({})).await;
    house.ended(&task).await;
    house.nothing_left().await;
}
