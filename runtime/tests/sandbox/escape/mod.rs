//! Attempts to get out of a sandbox, to see its neighbours, or to take more than was given.
//!
//! Each one says how it has to fail: the kernel's error, or what it sees instead of what it looked for. "It failed" alone
//! would also be true of an attempt with a spelling mistake. Those that destroy nothing share a sandbox; [`probe.py`](probe.py)
//! makes each in a process of its own.

mod devices;
mod exhaustion;
mod interfaces;
mod neighbours;
mod network;
mod processes;
mod rights;
mod second_wall;
mod spaces;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use orchestra_runtime::sandbox::{Exec, Sandbox};

use crate::host::{Host, say, sh, text};

const PROBE: &str = include_str!("probe.py");
/// Fewest attempts that the suite promises.
const PROMISED: usize = 60;

/// One attempt and how it must fail.
pub struct Attempt {
    /// What is attempted.
    pub name: &'static str,
    /// The attempt, in Python.
    pub code: &'static str,
    /// What has to come of it; several, divided by a bar, where kernels differ.
    pub fails: &'static str,
    /// What stands in its way.
    pub because: &'static str,
}

/// An attempt as one row of a table.
pub const fn attempt(name: &'static str, code: &'static str, fails: &'static str, because: &'static str) -> Attempt {
    Attempt { name, code, fails, because }
}

/// Every table of attempts.
fn tables() -> Vec<&'static [Attempt]> {
    vec![
        spaces::MOUNTS,
        spaces::NAMESPACES,
        rights::ATTEMPTS,
        devices::ATTEMPTS,
        interfaces::FILES,
        interfaces::CALLS,
        processes::ATTEMPTS,
        second_wall::ATTEMPTS,
        network::ATTEMPTS,
        work::ATTEMPTS,
        neighbours::FINDS,
    ]
}

/// Makes the attempts in this sandbox, with these words put in, and says of all that did not fail as they must.
async fn all_fail(sandbox: &Arc<dyn Sandbox>, attempts: &[Attempt], words: &[(&str, String)]) {
    let filled = attempts.iter().map(|attempt| {
        let code = words.iter().fold(attempt.code.to_owned(), |code, (word, value)| code.replace(word, value));
        [attempt.name.to_owned(), code]
    });
    say(sandbox, &format!("cat > /tmp/probe.py <<'END'\n{PROBE}\nEND")).await;
    let exec = Exec {
        argv: ["python3", "/tmp/probe.py"].map(str::to_owned).to_vec(),
        stdin: serde_json::to_vec(&filled.collect::<Vec<_>>()).unwrap(),
        ..sh(&uuid::Uuid::now_v7().to_string(), "")
    };
    let said = text(&sandbox.exec(exec, None).await.unwrap());
    let came: BTreeMap<String, String> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut wrong = String::new();
    for Attempt { name, fails, because, .. } in attempts {
        let came = came.get(*name).map_or("nothing was heard of it", String::as_str);
        if !fails.split('|').any(|fails| fails == came) {
            let _ = writeln!(wrong, "{name}: {came}, and not {fails} ({because})");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}\n{said}");
}

#[test]
fn there_are_as_many_attempts_as_promised_and_no_two_alike() {
    let all: Vec<&Attempt> = tables().into_iter().flatten().collect();
    assert!(all.len() >= PROMISED, "{}", all.len());
    assert_eq!(all.iter().map(|attempt| attempt.name).collect::<BTreeSet<_>>().len(), all.len(), "names");
    assert_eq!(all.iter().map(|attempt| attempt.code).collect::<BTreeSet<_>>().len(), all.len(), "attempts");
    for Attempt { name, fails, because, .. } in all {
        // Nothing that would also pass when the attempt succeeds.
        assert!(!fails.is_empty() && !because.is_empty() && !fails.split('|').any(|way| way == "allowed"), "{name}");
    }
}

/// What the probe says of attempts that succeed, so that no row passes because the probe is broken.
#[tokio::test]
async fn the_probe_tells_success_from_failure() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let succeed: &[Attempt] = &[
        attempt("call", "call(39)", "allowed", "anybody may know its own number"),
        attempt("file", "read('/etc/hostname')", "allowed", "the image's files are for reading"),
        attempt("written", "write('/workspace/f')", "allowed", "the work tree is for writing"),
        attempt("opened", "opened('/dev/null', os.O_RDWR)", "allowed", "the usual devices are there"),
        attempt("made", "make(socket.AF_UNIX)", "allowed", "sockets may be made"),
        attempt("seen", "status('Uid')", "1000 1000 1000 1000", "everybody is the agent"),
        attempt("code", "machine_code(bytes.fromhex('b82a000000c3'))", "42", "memory may be run"),
        attempt("killed", "os.kill(os.getpid(), 9)", "SIGKILL", "a process may end itself"),
        attempt("missing", "read('/no/such/file')", "ENOENT", "the probe has no such file"),
        attempt("wrong", "1 / 0", "ZeroDivisionError: division by zero", "a mistake is told"),
        attempt(
            "connected",
            "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); answer = connect(*s.getsockname())",
            "allowed",
            "its own loopback is its own",
        ),
    ];
    all_fail(&sandbox, succeed, &[]).await;
}
