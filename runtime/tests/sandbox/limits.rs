//! A sandbox takes no more than it was given: output, time, processes, disk, memory.

use std::time::{Duration, Instant};

use orchestra_runtime::sandbox::{Exec, Exit, Limits, SandboxError, Sandboxes};

use crate::host::{Host, limits, say, sh, text};

#[tokio::test]
async fn endless_output_is_counted_and_both_ends_are_kept() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let outcome = sandbox.exec(sh("loud", "echo first; yes | head -c 100000000; echo last"), None).await.unwrap();
    assert_eq!(outcome.total_bytes, 100_000_000 + 6 + 5);
    assert!(outcome.head.starts_with(b"first\ny\n") && outcome.tail.ends_with(b"y\nlast\n"));
    assert!(outcome.head.len() + outcome.tail.len() <= 128 * 1024);
}

#[tokio::test]
async fn a_command_that_never_ends_is_killed_with_all_it_started() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let exec = Exec {
        timeout: Duration::from_millis(500),
        ..sh("slow", "trap '' TERM; set -m; sleep 1000 & (sleep 1000 & sleep 1000) & echo up; sleep 1000")
    };
    let outcome = sandbox.exec(exec, None).await.unwrap();
    assert_eq!((outcome.exit, text(&outcome)), (Exit::TimedOut, "up\n".into()));
    assert!(outcome.duration >= Duration::from_millis(500) && outcome.duration < Duration::from_secs(5));
    assert_eq!(say(&sandbox, "cat /proc/[0-9]*/comm | grep -c sleep").await, "0\n");
}

#[tokio::test]
async fn a_fork_bomb_is_bounded_and_the_sandbox_still_answers_and_dies() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    let bomb = Exec { timeout: Duration::from_secs(20), ..sh("bomb", "bomb() { bomb | bomb & }; bomb; sleep 1000") };
    let exploding = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.exec(bomb, None).await }
    });
    let start = Instant::now();
    while sandbox.usage().await.unwrap().pids < 100 {
        assert!(start.elapsed() < Duration::from_secs(15), "it does not explode");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(sandbox.usage().await.unwrap().pids <= u64::from(limits().pids));
    assert_eq!(say(&sandbox, "echo still here").await, "still here\n");
    let start = Instant::now();
    host.sandboxes.destroy(id).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(matches!(exploding.await.unwrap(), Err(SandboxError::Gone(_)) | Ok(_)));
}

#[tokio::test]
async fn a_full_disk_is_an_error_in_the_sandbox_and_nowhere_else() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start_with(id, Limits { disk_bytes: 64 << 20, ..limits() }).await;
    let said = say(&sandbox, "dd if=/dev/zero of=/workspace/fill bs=1M count=500; du -m fill | cut -f1").await;
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.lines().last().unwrap().parse::<u64>().unwrap() <= 64, "{said}");
    let usage = sandbox.usage().await.unwrap();
    assert!(usage.disk_bytes <= 64 << 20 && usage.disk_used_bytes > 48 << 20, "{usage:?}");
    assert!(
        say(&sandbox, "head -c 8000000 /dev/zero > /var/tmp/f").await.contains("No space left"),
        "the layer over the image counts too"
    );
    // These count as memory; full, they must not cost anybody's life.
    for place in ["/tmp", "/dev/shm"] {
        let said = say(&sandbox, &format!("head -c 200000000 /dev/zero > {place}/f; rm {place}/f")).await;
        assert!(said.contains("No space left"), "{place}: {said}");
    }
    say(&sandbox, "rm /workspace/fill; echo x > /workspace/ok").await;
}

#[tokio::test]
async fn too_much_memory_is_reported_as_such() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let hungry = "python3 -c \"x = bytearray(1 << 30)\"";
    let outcome = sandbox.exec(sh("hungry", hungry), None).await.unwrap();
    assert_eq!(outcome.exit, Exit::OutOfMemory, "{outcome:?}");
    // Asked again, it is the same answer; another failure is not blamed on it; and the sandbox lives.
    assert_eq!(sandbox.exec(sh("hungry", hungry), None).await.unwrap().exit, Exit::OutOfMemory);
    assert_eq!(sandbox.exec(sh("fails", "exit 137"), None).await.unwrap().exit, Exit::Code(137));
    assert_eq!(say(&sandbox, "echo alive").await, "alive\n");
}

#[tokio::test]
async fn the_wall_clock_ends_a_sandbox_without_a_server() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start_with(id, Limits { timeout: Duration::from_secs(2), ..limits() }).await;
    let run = tokio::time::timeout(Duration::from_secs(20), sandbox.exec(sh("long", "sleep 1000"), None)).await;
    let error = run.unwrap().unwrap_err();
    assert!(matches!(error, SandboxError::TimedOut(_)), "{error}");
    assert_eq!(error.failure().code.as_str(), "sandbox-timeout");
    assert!(host.sandboxes.attach(id).await.unwrap().is_none());
}

#[tokio::test]
async fn the_processor_is_shared_as_told() {
    let host = Host::new();
    let sandbox = host.start_with(host.id(), Limits { cpus: 0.2, ..limits() }).await;
    let spin = "python3 -c \"import time\nt=time.monotonic(); c=time.process_time()\nwhile time.monotonic()-t<1.5: pass\nprint((time.process_time()-c)/1.5)\"";
    let share: f64 = say(&sandbox, spin).await.trim().parse().unwrap();
    assert!(share < 0.4, "{share}");
}
