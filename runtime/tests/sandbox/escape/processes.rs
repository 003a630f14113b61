//! Other processes: the sandbox's first one, the host's, and the memory of any.

use std::fs;
use std::time::{Duration, Instant};

use orchestra_runtime::sandbox::{Exec, Exit};

use super::{Attempt, all_fail, attempt};
use crate::host::{Host, say, sh, text};

const FILTER: &str = "the filter knows and refuses the call";
const UNDUMPABLE: &str = "the first process is not dumpable";

pub const ATTEMPTS: &[Attempt] = &[
    attempt("trace the first process", "call(101, 16, 1, 0, 0)", "EPERM", FILTER),
    attempt("seize the first process", "call(101, 0x4206, 1, 0, 0)", "EPERM", FILTER),
    attempt(
        "trace a child",
        "p = os.fork() or time.sleep(9); answer = call(101, 16, p, 0, 0); os.kill(p, 9)",
        "EPERM",
        FILTER,
    ),
    attempt("be traced", "call(101, 0, 0, 0, 0)", "EPERM", FILTER),
    attempt("read another's memory by a call", "call(310, 1, 0, 0, 0, 0, 0)", "EPERM", FILTER),
    attempt("write another's memory by a call", "call(311, 1, 0, 0, 0, 0, 0)", "EPERM", FILTER),
    attempt("take a descriptor of the first process", "call(438, os.pidfd_open(1), 3, 0)", "EPERM", FILTER),
    attempt("compare with the first process", "call(312, os.getpid(), 1, 0, 0, 3)", "EPERM", FILTER),
    attempt("advise another's memory", "call(440, os.pidfd_open(1), 0, 0, 21, 0)", "EPERM", FILTER),
    attempt("the first process's memory", "opened('/proc/1/mem', os.O_RDWR)", "EACCES", UNDUMPABLE),
    attempt("the first process's variables", "read('/proc/1/environ')", "EACCES", UNDUMPABLE),
    attempt("the first process's map", "read('/proc/1/maps')", "EACCES", UNDUMPABLE),
    attempt("the first process's descriptors", "tried(lambda: os.listdir('/proc/1/fd'))", "EACCES", UNDUMPABLE),
    attempt("the first process's listener", "opened('/proc/1/fd/3', os.O_RDWR)", "EACCES", UNDUMPABLE),
    attempt("the first process's root", "tried(lambda: os.listdir('/proc/1/root/'))", "EACCES", UNDUMPABLE),
    attempt("the first process's folder", "tried(lambda: os.listdir('/proc/1/cwd/'))", "EACCES", UNDUMPABLE),
    attempt("the first process's program", "opened('/proc/1/exe', os.O_RDONLY)", "EACCES", UNDUMPABLE),
    attempt("the first process's namespaces", "opened('/proc/1/ns/user', os.O_RDONLY)", "EACCES", UNDUMPABLE),
    attempt("the first process's stack", "read('/proc/1/stack')", "EACCES|EPERM|ENOENT", UNDUMPABLE),
    attempt("the first process's next call", "read('/proc/1/syscall')", "EACCES|EPERM|ENOENT", UNDUMPABLE),
    attempt(
        "kill the first process",
        "os.kill(1, 9); time.sleep(0.1); answer = status('State', 1)[0] in 'SR'",
        "True",
        "the kernel keeps its signals from it",
    ),
    attempt(
        "stop the first process",
        "os.kill(1, 19); time.sleep(0.1); answer = status('State', 1)[0] in 'SR'",
        "True",
        "the kernel keeps its signals from it",
    ),
    attempt(
        "a signal by its handle",
        "signal.pidfd_send_signal(os.pidfd_open(1), 9); time.sleep(0.1); answer = status('State', 1)[0] in 'SR'",
        "True",
        "the kernel keeps its signals from it",
    ),
    attempt(
        "a real-time signal for the first process",
        "os.kill(1, 40); time.sleep(0.1); answer = status('State', 1)[0] in 'SR'",
        "True",
        "the kernel keeps its signals from it",
    ),
    attempt(
        "a signal it has blocked",
        "os.kill(1, 17); time.sleep(0.1); answer = status('State', 1)[0] in 'SR'",
        "True",
        "it counts its children itself",
    ),
    attempt(
        "a process of the host",
        "tried(lambda: os.kill(HOST_PID, 0))",
        "ESRCH",
        "the host's numbers mean nothing inside",
    ),
    attempt(
        "a process of the host in /proc",
        "tried(lambda: os.listdir('/proc/HOST_PID'))",
        "ENOENT",
        "the host's numbers mean nothing inside",
    ),
    attempt("the parent of the first process", "status('PPid', 1)", "0", "whoever made it is in another namespace"),
    attempt(
        "the helper's folder",
        "repr([p for p in os.listdir('/proc') if p.isdigit() and 'helper' in open(f'/proc/{p}/comm').read()])",
        "[]",
        "it is in another namespace",
    ),
    attempt(
        "descriptors that were forgotten",
        "sorted(int(f) for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}') and int(f) > 2 and 'pipe' not in os.readlink(f'/proc/self/fd/{f}'))",
        "[]",
        "every descriptor of the host is closed before the start",
    ),
    attempt(
        "a folder that was left open",
        "repr([f for f in os.listdir('/proc/self/fd') if os.path.isdir(f'/proc/self/fd/{f}') and '/fd' not in os.readlink(f'/proc/self/fd/{f}')])",
        "[]",
        "the helper's stage is not inherited",
    ),
    attempt(
        "a program without a name",
        "f = os.memfd_create('x'); os.write(f, open('/usr/bin/grep', 'rb').read()); answer = run(f'/proc/{os.getpid()}/fd/{f}', '^CapEff', '/proc/self/status')",
        "CapEff:\t0000000000000000",
        "it runs, with nobody's rights",
    ),
    attempt("the session of the first process", "tried(lambda: os.setpgid(0, 1))", "EPERM", "it is in another session"),
    attempt("its ancestors' control group", "write('/proc/self/cgroup', '0')", "EACCES", "the file is for reading"),
    attempt(
        "the host's control group path",
        "repr([l for l in open('/proc/self/cgroup') if l.strip().split(':', 2)[2].count('/') != 1])",
        "[]",
        "it sees itself at the root of its control groups, or its own name on a host with both versions",
    ),
];

#[tokio::test]
async fn other_processes_are_out_of_reach() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let words = [("HOST_PID", std::process::id().to_string())];
    all_fail(&sandbox, ATTEMPTS, &words).await;
    assert_eq!(say(&sandbox, "echo alive").await, "alive\n");
}

#[tokio::test]
async fn a_signal_for_everybody_ends_the_command_and_not_the_sandbox() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    for signal in ["KILL", "STOP", "TERM"] {
        let everybody =
            Exec { timeout: Duration::from_secs(3), ..sh(signal, &format!("sleep 100 & kill -{signal} -1; echo on")) };
        let outcome = sandbox.exec(everybody, None).await.unwrap();
        // The sender is spared by the kernel; the first process is a namespace's, whose signals do not reach it.
        assert_eq!((outcome.exit, text(&outcome)), (Exit::Code(0), "on\n".into()), "{signal}");
        assert_eq!(say(&sandbox, "echo alive").await, "alive\n", "{signal}");
    }
}

/// What a task leaves running goes on until its sandbox ends, and not a moment longer.
#[tokio::test]
async fn what_is_left_running_ends_with_the_sandbox() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    let bomb = "import os, signal, time\n\
        for number in range(1, 64):\n    try: signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n\
        if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n\
        while True:\n    open('/workspace/beat', 'a').write('x'); time.sleep(0.02)";
    let leave = format!(
        "cat > bomb.py <<'E'\n{bomb}\nE\nfor i in 1 2 3; do (setsid nohup python3 bomb.py >/dev/null 2>&1 &); done; until [ -s beat ]; do sleep 0.01; done; echo left"
    );
    assert_eq!(say(&sandbox, &leave).await, "left\n");
    let beats = async || say(&sandbox, "stat -c %s beat").await.trim().parse::<u64>().unwrap();
    let (before, start) = (beats().await, Instant::now());
    while beats().await == before {
        assert!(start.elapsed() < Duration::from_secs(10), "what was left behind is not running");
    }
    // From outside, where no answer of the sandbox is needed.
    let beat = host.dir_of(id).join("volume/workspace/beat");
    let size = || fs::metadata(&beat).unwrap().len();
    sandbox.kill().await.unwrap();
    let at_the_end = size();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(size(), at_the_end, "the heart still beats");
    let name = id.to_string();
    let in_group =
        |entry: &fs::DirEntry| fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| text.contains(&name));
    assert_eq!(fs::read_dir("/proc").unwrap().flatten().filter(in_group).count(), 0);
}
