//! Taking everything there is: memory, numbers, files, names, words, time. Each ends in an error for who asks, the sandbox's
//! first process goes on answering, and the host does not notice.

use std::time::{Duration, Instant};

use orchestra_runtime::sandbox::{Exec, Exit, Limits, Sandboxes};
use tokio::sync::mpsc;

use crate::host::{Host, limits, say, sh, text};

async fn ask(
    sandbox: &std::sync::Arc<dyn orchestra_runtime::sandbox::Sandbox>,
    name: &str,
    python: &str,
) -> (Exit, String) {
    let exec = Exec { argv: ["python3", "-c", python].map(str::to_owned).to_vec(), ..sh(name, "") };
    let outcome = sandbox.exec(exec, None).await.unwrap();
    (outcome.exit, text(&outcome))
}

#[tokio::test]
async fn open_files_end_at_the_limit_of_the_process() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let code = "import errno, os, resource\n\
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)\n\
        opened = []\n\
        try:\n    while True: opened.append(os.open('/dev/null', 0))\n\
        except OSError as error: print(errno.errorcode[error.errno], len(opened) < limit[0] <= 65536, limit[0] == limit[1])";
    assert_eq!(ask(&sandbox, "files", code).await, (Exit::Code(0), "EMFILE True True\n".into()));
    assert_eq!(say(&sandbox, "echo alive").await, "alive\n");
}

/// Every process with a table of files of its own: what they take is memory of the sandbox, which has an end.
#[tokio::test]
async fn open_files_of_many_processes_count_as_memory() {
    let host = Host::new();
    let sandbox = host.start_with(host.id(), Limits { memory_bytes: 96 << 20, ..limits() }).await;
    let code = "import os, time\n\
        for _ in range(100):\n    if os.fork() == 0:\n        try:\n            while True: os.pipe()\n        except OSError: time.sleep(100)\n\
        time.sleep(100)";
    let exec = Exec {
        argv: ["python3", "-c", code].map(str::to_owned).to_vec(),
        timeout: Duration::from_secs(4),
        ..sh("pipes", "")
    };
    let outcome = sandbox.exec(exec, None).await.unwrap();
    assert!(matches!(outcome.exit, Exit::OutOfMemory | Exit::TimedOut), "{outcome:?}");
    assert!(sandbox.usage().await.unwrap().memory_bytes <= 96 << 20);
    assert_eq!(say(&sandbox, "echo alive").await, "alive\n");
}

#[tokio::test]
async fn a_disk_full_of_names_is_an_error_for_who_makes_them() {
    let host = Host::new();
    let sandbox = host.start_with(host.id(), Limits { disk_bytes: 32 << 20, ..limits() }).await;
    let code = "import errno, os\nos.mkdir('d'); made = 0\n\
        try:\n    while True:\n        os.close(os.open(f'd/{made}', os.O_CREAT)); made += 1\n\
        except OSError as error: print(errno.errorcode[error.errno], 1000 < made < 100000)";
    assert_eq!(ask(&sandbox, "names", code).await, (Exit::Code(0), "ENOSPC True\n".into()));
    // Room for one more is there as soon as one is gone: it was the names and nothing else.
    assert_eq!(say(&sandbox, "rm d/0 && touch again && echo made").await, "made\n");
}

/// A name costs the kernel memory that no size of a file counts.
#[tokio::test]
async fn names_in_memory_are_counted_too() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    for (place, most) in [("/tmp", 16384), ("/dev/shm", 8192)] {
        let code = format!(
            "import errno, os\nmade = 0\n\
             try:\n    while made < 1000000:\n        os.close(os.open(f'{place}/{{made}}', os.O_CREAT)); made += 1\n    print('allowed')\n\
             except OSError as error: print(errno.errorcode[error.errno], 4000 < made <= {most})"
        );
        assert_eq!(ask(&sandbox, place, &code).await, (Exit::Code(0), "ENOSPC True\n".into()), "{place}");
        say(&sandbox, &format!("find {place} -type f -delete")).await;
    }
    let code = "import errno, os\n\
        try:\n    os.mkdir('/dev/x')\n    print('allowed')\n\
        except OSError as error: print(errno.errorcode[error.errno])";
    assert_eq!(ask(&sandbox, "dev", code).await.1, "EACCES\n");
}

#[tokio::test]
async fn memory_without_a_file_ends_the_command() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let anonymous = "import os\nf = os.memfd_create('x')\nwhile True: os.write(f, bytes(1 << 20))";
    assert_eq!(ask(&sandbox, "memfd", anonymous).await.0, Exit::OutOfMemory);
    let shared = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\n\
        for key in range(1, 1000):\n    id = libc.shmget(key, 64 << 20, 0o1600)\n    at = libc.shmat(id, None, 0)\n    ctypes.memset(at, 1, 64 << 20)";
    assert_eq!(ask(&sandbox, "shared", shared).await.0, Exit::OutOfMemory);
    // Segments without a process stay until the sandbox ends; they still count.
    assert!(sandbox.usage().await.unwrap().memory_bytes <= limits().memory_bytes);
    assert_eq!(say(&sandbox, "ipcrm -a 2>/dev/null; echo alive").await, "alive\n");
}

/// Words without end, to somebody who does not listen: the command is slowed or its words are dropped, and the first process
/// keeps a few buffers.
#[tokio::test]
async fn a_flood_of_words_is_kept_in_few_buffers() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let resident = async || {
        let line = say(&sandbox, "grep VmRSS /proc/1/status").await;
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident().await;
    let (live, deaf) = mpsc::channel(1);
    let floods: Vec<_> = (0..4)
        .map(|number| {
            let (sandbox, live) = (sandbox.clone(), live.clone());
            let exec =
                Exec { timeout: Duration::from_secs(3), ..sh(&format!("flood-{number}"), "yes | cat & yes >&2") };
            tokio::spawn(async move { sandbox.exec(exec, Some(live)).await.unwrap() })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let during = resident().await;
    for flood in floods {
        let outcome = flood.await.unwrap();
        assert_eq!(outcome.exit, Exit::TimedOut);
        assert!(outcome.total_bytes > 1 << 20, "it was no flood: {}", outcome.total_bytes);
        assert!(outcome.head.len() + outcome.tail.len() <= 128 * 1024);
    }
    drop(deaf);
    assert!(during < before + 16 * 1024, "{before} KiB before, {during} KiB in the flood");
}

/// A piped command whose reader does not read waits in its pipe.
#[tokio::test]
async fn a_stream_that_nobody_reads_stops_its_writer() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let script = "python3 -c \"import os, time\nn = 0\nwhile True:\n    n += os.write(1, bytes(65536)); open('/tmp/written', 'w').write(str(n))\"";
    let piped = sandbox.exec_piped(Exec { timeout: Duration::from_secs(20), ..sh("deaf", script) }).await.unwrap();
    let written = async || say(&sandbox, "cat /tmp/written").await.parse::<u64>().unwrap_or(0);
    let start = Instant::now();
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = written().await;
        if now == last && now > 0 {
            break;
        }
        last = now;
        assert!(start.elapsed() < Duration::from_secs(15), "it goes on writing: {now}");
    }
    assert!(last < 16 << 20, "{last} bytes went somewhere");
    drop(piped);
}

/// Threads are processes to the kernel's count.
#[tokio::test]
async fn threads_count_as_processes() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let code = "import threading, time\nthreads = 0\n\
        try:\n    while True:\n        threading.Thread(target=time.sleep, args=(2,), daemon=True).start(); threads += 1\n\
        except RuntimeError as error: print(error, 64 < threads < 128)";
    assert_eq!(ask(&sandbox, "threads", code).await, (Exit::Code(0), "can't start new thread True\n".into()));
    assert_eq!(say(&sandbox, "echo alive").await, "alive\n");
}

/// Timers, watches and queues have limits of their own, per user of the host; two sandboxes must not share them.
#[tokio::test]
async fn what_the_kernel_counts_per_user_has_an_end() {
    let host = Host::new();
    let sandbox = host.start_with(host.id(), Limits { memory_bytes: 128 << 20, ..limits() }).await;
    let code = "import ctypes, errno, os\nlibc = ctypes.CDLL(None, use_errno=True)\nmade = 0\n\
        while libc.inotify_init() >= 0: made += 1\nprint(errno.errorcode[ctypes.get_errno()], 0 < made < 65536)";
    assert_eq!(ask(&sandbox, "watches", code).await, (Exit::Code(0), "EMFILE True\n".into()));
    let code = "import ctypes, errno, os\nrt = ctypes.CDLL('librt.so.1', use_errno=True)\nmade = 0\n\
        while made < 100000 and rt.mq_open(b'/%d' % made, os.O_CREAT | os.O_RDWR, 0o600, None) >= 0: made += 1\nprint(errno.errorcode[ctypes.get_errno()], made < 1024)";
    let (exit, said) = ask(&sandbox, "queues", code).await;
    assert!(exit == Exit::Code(0) && (said == "EMFILE True\n" || said == "ENOSPC True\n"), "{said}");
}

/// The last words of a fork bomb do not outlive the command's limit, also when its processes hide in sessions of their own:
/// they go with the sandbox, which answers all the while.
#[tokio::test]
async fn a_fork_bomb_in_sessions_of_its_own_ends_with_the_sandbox() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    let bomb = "import os\nwhile True:\n    try:\n        if os.fork() == 0: os.setsid()\n    except OSError: pass";
    let exec = Exec {
        argv: ["python3", "-c", bomb].map(str::to_owned).to_vec(),
        timeout: Duration::from_secs(2),
        ..sh("bomb", "")
    };
    let outcome = sandbox.exec(exec, None).await.unwrap();
    assert!(matches!(outcome.exit, Exit::TimedOut | Exit::OutOfMemory | Exit::Signal(9)), "{outcome:?}");
    assert!(sandbox.usage().await.unwrap().pids <= u64::from(limits().pids));
    let answered = sandbox.exec(Exec { argv: vec!["/bin/true".into()], ..sh("still", "") }, None).await.unwrap();
    assert!(matches!(answered.exit, Exit::Code(_)), "{answered:?}");
    let start = Instant::now();
    host.sandboxes.destroy(id).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
