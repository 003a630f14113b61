//! Commands that are spoken with while they run: two outputs, an input, a terminal; and an end that reaches everything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use orchestra_runtime::sandbox::{Exec, Exit, Piece, Sandbox, StreamedExec, Window};

use crate::host::{Host, say, sh};

const WINDOW: Window = Window { rows: 33, columns: 101 };

/// Everything a command says, and how it ends.
async fn whole(mut exec: StreamedExec) -> (String, String, Exit) {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    while let Some(piece) = exec.next().await {
        match piece {
            Piece::Output(bytes) => output.extend_from_slice(&bytes),
            Piece::Errors(bytes) => errors.extend_from_slice(&bytes),
        }
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(output), text(errors), exec.finish().await.unwrap())
}

/// Reads until these words were said.
async fn heard(exec: &mut StreamedExec, words: &str) -> String {
    let mut said = String::new();
    while !said.contains(words) {
        let piece = tokio::time::timeout(Duration::from_secs(20), exec.next()).await;
        match piece.unwrap_or_else(|_| panic!("{words:?} was not said: {said:?}")) {
            Some(Piece::Output(bytes) | Piece::Errors(bytes)) => said.push_str(&String::from_utf8_lossy(&bytes)),
            None => panic!("{words:?} was not said: {said:?}"),
        }
    }
    said
}

async fn type_in(exec: &StreamedExec, text: &str) {
    exec.input().send(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
}

/// How many processes with this in their command line run, the one that looks excepted.
async fn count(sandbox: &Arc<dyn Sandbox>, what: &str) -> usize {
    let script = format!(
        "n=0; {{ for f in /proc/[0-9]*; do if tr '\\0' ' ' < $f/cmdline | grep -q '^{what}'; then \
         grep -q '^State:.Z' $f/status || n=$((n+1)); fi; done; }} 2>/dev/null; echo $n"
    );
    say(sandbox, &script).await.trim().parse().unwrap()
}

async fn until_count(sandbox: &Arc<dyn Sandbox>, what: &str, wanted: usize) {
    let start = Instant::now();
    loop {
        let found = count(sandbox, what).await;
        if found == wanted {
            return;
        }
        let listed = say(sandbox, "for f in /proc/[0-9]*; do tr '\\0' ' ' < $f/cmdline; echo; done").await;
        assert!(start.elapsed() < Duration::from_secs(10), "{found} of {what} run, not {wanted}: {listed}");
    }
}

#[tokio::test]
async fn both_outputs_come_apart_and_as_they_are_written() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let script = "echo out; echo err >&2; read line; echo got $line; exit 7";
    let mut exec = sandbox.exec_streamed(sh("one", script), None).await.unwrap();
    let mut first = [exec.next().await.unwrap(), exec.next().await.unwrap()];
    first.sort_by_key(|piece| matches!(piece, Piece::Errors(_)));
    assert_eq!(first, [Piece::Output(Bytes::from("out\n")), Piece::Errors(Bytes::from("err\n"))]);
    // It has said that before it was answered.
    type_in(&exec, "this\n").await;
    assert_eq!(whole(exec).await, ("got this\n".into(), String::new(), Exit::Code(7)));
    let missing = Exec { argv: vec!["no-such-program".into()], ..sh("two", "") };
    let (output, errors, exit) = whole(sandbox.exec_streamed(missing, None).await.unwrap()).await;
    assert_eq!((&*output, exit), ("", Exit::Code(127)));
    assert!(errors.starts_with("no-such-program: "), "{errors}");
    let late = Exec { timeout: Duration::from_millis(200), ..sh("three", "sleep 100") };
    assert_eq!(whole(sandbox.exec_streamed(late, None).await.unwrap()).await.2, Exit::TimedOut);
}

#[tokio::test]
async fn input_of_any_length_passes_and_ends() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let exec = sandbox.exec_streamed(sh("one", "sleep 0.3; md5sum; echo end >&2"), None).await.unwrap();
    let input = exec.input();
    let send = tokio::spawn(async move {
        for _ in 0..300 {
            input.send(Bytes::from(vec![b'x'; 100_000])).await.unwrap();
        }
        input.send(Bytes::new()).await.unwrap();
    });
    let (sum, errors, exit) = whole(exec).await;
    send.await.unwrap();
    let expected = say(&sandbox, "head -c 30000000 /dev/zero | tr '\\0' x | md5sum").await;
    assert_eq!((sum, &*errors, exit), (expected, "end\n", Exit::Code(0)));
    // Nobody reads: whoever writes waits, and what is to be read is not lost.
    let exec = sandbox.exec_streamed(sh("two", "sleep 1000"), None).await.unwrap();
    let input = exec.input();
    let fill = async {
        loop {
            input.send(Bytes::from(vec![b'x'; 100_000])).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), fill).await.is_err());
    assert_eq!(say(&sandbox, "echo well").await, "well\n", "init still serves others");
    // A signal is not behind that input.
    assert!(sandbox.signal_exec("two", 15).await.unwrap());
    assert_eq!(whole(exec).await.2, Exit::Signal(15));
}

#[tokio::test]
async fn a_reader_who_waits_stops_the_command_and_loses_nothing() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let script = "(seq 1 200000; touch /workspace/out) & (seq 1 200000 >&2; touch /workspace/err) & wait";
    let exec = sandbox.exec_streamed(sh("one", script), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(say(&sandbox, "ls /workspace").await, "", "both are stopped by their reader");
    let (output, errors, exit) = whole(exec).await;
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(output == expected && errors == expected && exit == Exit::Code(0));
}

#[tokio::test]
async fn a_dropped_stream_takes_its_command_with_it_and_ids_are_free_again() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let exec = sandbox.exec_streamed(sh("one", "setsid sleep 4711 & sleep 4711"), None).await.unwrap();
    until_count(&sandbox, "sleep 4711", 2).await;
    let refused = sandbox.exec_streamed(sh("one", "true"), None).await.unwrap();
    assert!(refused.finish().await.unwrap_err().to_string().contains("cannot be shared"));
    let listed = sandbox.running().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&*listed[0].id, &*listed[0].command), ("one", "bash -c setsid sleep 4711 & sleep 4711"));
    drop(exec);
    until_count(&sandbox, "sleep 4711", 0).await;
    assert!(sandbox.running().await.unwrap().is_empty());
    let (output, ..) = whole(sandbox.exec_streamed(sh("one", "echo again"), None).await.unwrap()).await;
    assert_eq!(output, "again\n");
}

#[tokio::test]
async fn a_terminal_is_one() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let script = "trap 'stty size' WINCH; tty; stty size; until [ -e /tmp/on ]; do sleep 0.05; done; \
                  read line; echo line: $line; sleep 1000";
    let shell = Exec { env: vec![("TERM".into(), "xterm".into())], ..sh("one", script) };
    let mut exec = sandbox.exec_streamed(shell, Some(WINDOW)).await.unwrap();
    let said = heard(&mut exec, "33 101").await;
    assert!(said.contains("/dev/pts/"), "{said}");
    assert!(sandbox.resize_exec("one", Window { rows: 11, columns: 22 }).await.unwrap());
    heard(&mut exec, "11 22").await;
    say(&sandbox, "touch /tmp/on").await;
    type_in(&exec, "hello\r").await;
    heard(&mut exec, "line: hello").await;
    // Control-C is a byte on the wire and a signal inside.
    type_in(&exec, "\u{3}").await;
    assert_eq!(whole(exec).await.2, Exit::Signal(2));
    assert!(!sandbox.resize_exec("one", WINDOW).await.unwrap());

    // As tight as any command, and it dies with its connection, whatever it has started.
    let script = "grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status; setsid sleep 4712 & sleep 4712";
    let mut exec = sandbox.exec_streamed(sh("two", script), Some(WINDOW)).await.unwrap();
    let said = heard(&mut exec, "Seccomp:").await;
    let said = if said.contains("Seccomp:\t2") { said } else { said + &heard(&mut exec, "2").await };
    assert!(said.contains("NoNewPrivs:\t1") && said.contains("CapEff:\t0000000000000000"), "{said}");
    until_count(&sandbox, "sleep 4712", 2).await;
    drop(exec);
    until_count(&sandbox, "sleep 4712", 0).await;
    // An end of input is what a terminal's user types.
    let exec = sandbox.exec_streamed(sh("three", "cat; exit 3"), Some(WINDOW)).await.unwrap();
    type_in(&exec, "words\r").await;
    exec.input().send(Bytes::new()).await.unwrap();
    let (output, _, exit) = whole(exec).await;
    assert_eq!((output.contains("words"), exit), (true, Exit::Code(3)));
}

/// Every way known here to leave a command's session, its parent and its mark.
const ESCAPES: &str = "
    mkfifo /tmp/fifo
    sleep 4713 &
    setsid sleep 4713 &
    (setsid bash -c '(setsid sleep 4713 &) ; exec sleep 4713' &)
    env -i PATH=/bin setsid bash -c '(env -i PATH=/bin setsid sleep 4713 &)' &
    (setsid bash -c 'kill -STOP $$; sleep 4713' &)
    (setsid bash -c 'trap \"\" TERM INT HUP; exec -a \"sleep 4713\" cat /tmp/fifo' &)
    python3 -c 'import os,time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.chdir(\"/\"); os.execv(\"/bin/sleep\", [\"sleep\", \"4713\"])'
    sleep 0.5; echo ready; sleep 4713";

/// The stopped one never becomes a `sleep`; all others are.
const SLEEPERS: usize = 8;

async fn nothing_of_it(sandbox: &Arc<dyn Sandbox>) {
    until_count(sandbox, "sleep 4713", 0).await;
    until_count(sandbox, "bash -c kill", 0).await;
    assert_eq!(count(sandbox, "sleep 4714").await, 1, "what an earlier command has left running goes on");
}

#[tokio::test]
async fn a_kill_a_limit_and_a_hang_up_reach_every_process() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    // A server that an earlier command has started, and another command that runs.
    say(&sandbox, "(env -i PATH=/bin setsid sleep 4714 >/dev/null 2>&1 &); sleep 0.1").await;

    let killed = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.exec(sh("killed", ESCAPES), None).await.unwrap().exit }
    });
    until_count(&sandbox, "sleep 4713", SLEEPERS).await;
    assert_eq!(count(&sandbox, "bash -c kill -STOP").await, 1);
    assert!(sandbox.kill_exec("killed").await.unwrap());
    assert_eq!(killed.await.unwrap(), Exit::Signal(9));
    nothing_of_it(&sandbox).await;

    let late = Exec { timeout: Duration::from_secs(3), ..sh("late", &ESCAPES.replace("mkfifo", "true")) };
    assert_eq!(sandbox.exec(late, None).await.unwrap().exit, Exit::TimedOut);
    nothing_of_it(&sandbox).await;

    let mut streamed = sandbox.exec_streamed(sh("streamed", &ESCAPES.replace("mkfifo", "true")), None).await.unwrap();
    heard(&mut streamed, "ready").await;
    until_count(&sandbox, "sleep 4713", SLEEPERS).await;
    drop(streamed);
    nothing_of_it(&sandbox).await;
}

#[tokio::test]
async fn one_command_s_end_is_not_another_s() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let other = sandbox.exec_streamed(sh("other", "setsid sleep 4715 & (setsid sleep 4715 &); sleep 4715"), None);
    let other = other.await.unwrap();
    let mine = sandbox.exec_streamed(sh("mine", "setsid sleep 4716 & (setsid sleep 4716 &); sleep 4716"), None);
    let mine = mine.await.unwrap();
    until_count(&sandbox, "sleep 4715", 3).await;
    until_count(&sandbox, "sleep 4716", 3).await;
    assert!(sandbox.kill_exec("mine").await.unwrap());
    assert_eq!(whole(mine).await.2, Exit::Signal(9));
    until_count(&sandbox, "sleep 4716", 0).await;
    assert_eq!(count(&sandbox, "sleep 4715").await, 3);
    assert!(sandbox.signal_exec("other", 2).await.unwrap());
    assert!(!sandbox.signal_exec("nobody", 2).await.unwrap());
    assert!(sandbox.signal_exec("other", 9_999).await.is_err());
    drop(other);
    until_count(&sandbox, "sleep 4715", 0).await;
}
