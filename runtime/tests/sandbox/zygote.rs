//! Helpers are forked from one process, and need neither it nor the server.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use orchestra_events::SandboxId;
use orchestra_runtime::image::ImageStore;
use orchestra_runtime::sandbox::{Containers, SandboxConfig, Sandboxes};

use crate::host::{Host, helper_of, images, kill, limits, open, say, spec, until};
use crate::life::server;

/// A line of `/proc/<pid>/status`.
fn status(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default().trim().to_owned()
}

/// The process that a sandbox's helper was forked from.
fn zygote_of(id: SandboxId) -> i32 {
    let parent = status(helper_of(id).unwrap(), "PPid").parse().unwrap();
    let command = fs::read_to_string(format!("/proc/{parent}/cmdline")).unwrap();
    assert!(command.contains("sandbox-zygote"), "{command}");
    parent
}

fn is_alive(pid: i32) -> bool {
    !matches!(status(pid, "State").chars().next(), None | Some('Z' | 'X'))
}

#[tokio::test]
async fn helpers_come_from_one_process_and_have_nothing_of_its() {
    let host = Host::new();
    let (one, two) = (host.id(), host.id());
    host.start(one).await;
    host.start(two).await;
    assert_eq!(zygote_of(one), zygote_of(two));
    for id in [one, two] {
        let helper = helper_of(id).unwrap();
        let stat = fs::read_to_string(format!("/proc/{helper}/stat")).unwrap();
        let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
        assert_eq!(session, helper.to_string(), "a session of its own");
        assert_eq!(status(helper, "Groups"), "");
        assert_eq!(status(helper, "Threads"), "1");
        let open: Vec<String> = fs::read_dir(format!("/proc/{helper}/fd"))
            .unwrap()
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
            .collect();
        // It holds its image, so that nobody removes it.
        let image = ImageStore::new(images()).resolve("default").unwrap().parent().unwrap().display().to_string();
        let known =
            |path: &String| path == "/dev/null" || path.ends_with("/lock") || path.contains("pidfd") || *path == image;
        // Standard error is the sandbox's own log.
        assert!(open.iter().all(|path| known(path) || path.contains(&id.to_string())), "{open:?}");
        // The kernel shows the memory of a process that gave up being looked into to root alone, and so it does here.
        assert_eq!(fs::read(format!("/proc/{helper}/environ")).unwrap_or_default(), b"");
    }
}

#[tokio::test]
async fn a_killed_zygote_takes_nothing_with_it_and_is_replaced() {
    let host = Host::new();
    let (one, two) = (host.id(), host.id());
    let first = host.start(one).await;
    let (zygote, helper) = (zygote_of(one), helper_of(one).unwrap());
    kill(zygote);
    until("the zygote is dead", || !is_alive(zygote)).await;
    assert_eq!(say(&first, "echo on").await, "on\n");
    assert!(is_alive(helper));
    let second = host.start(two).await;
    assert_eq!(say(&second, "echo on").await, "on\n");
    assert_ne!(zygote_of(two), zygote);
    // The end of a sandbox whose zygote is gone is as clean as any.
    host.sandboxes.destroy(one).await.unwrap();
    until("the helper is gone", || !is_alive(helper)).await;
    assert_eq!(host.sandboxes.list().await.unwrap(), [two]);
}

#[tokio::test]
async fn without_a_zygote_every_helper_is_the_program_started_again() {
    let host = Host::new();
    let folder = tempfile::tempdir().unwrap();
    let helper = folder.path().join("helper");
    let program = env!("CARGO_BIN_EXE_orchestra-sandbox-helper");
    fs::write(&helper, format!("#!/bin/sh\n[ \"$1\" = sandbox-helper ] || exit 2\nexec {program} \"$@\"\n")).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = SandboxConfig { state_dir: host.dir.path().into(), images: images(), helper };
    let sandboxes = Containers::new(config).unwrap();
    for _ in 0..3 {
        let id = host.id();
        let sandbox = sandboxes.start(&spec(id, limits())).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(say(&sandbox, "echo on").await, "on\n");
        assert_eq!(status(helper_of(id).unwrap(), "Groups"), "");
    }
}

#[tokio::test]
async fn a_zygote_ends_with_its_server_and_the_sandbox_does_not() {
    let host = Host::new();
    let id = host.id();
    let mut server = server(&host, id).await;
    let (zygote, helper) = (zygote_of(id), helper_of(id).unwrap());
    server.kill().unwrap();
    server.wait().unwrap();
    until("the zygote is gone", || !is_alive(zygote)).await;
    assert!(is_alive(helper));
    let sandbox = open(host.dir.path()).attach(id).await.unwrap().expect("it still runs");
    assert_eq!(say(&sandbox, "touch go; echo on").await, "on\n");
}
