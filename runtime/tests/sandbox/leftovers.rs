//! Nothing stays when a sandbox is destroyed, whatever died before.

use std::fs;
use std::path::Path;

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{Exit, Limits, SandboxSpec, Sandboxes};

use crate::host::{Host, helper_of, kill, limits, say, sh, spec, until};

/// Everything on this host that bears the sandbox's name.
fn traces(host: &Host, id: SandboxId) -> Vec<String> {
    let name = id.to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if cgroup.contains(&name) || (command.contains(&name) && command.contains("sandbox-helper")) {
            found.push(format!("process {}", entry.path().display()));
        }
    }
    for mounts in fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(&name)) {
        found.push(format!("mount {mounts}"));
    }
    for tree in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let groups = fs::read_dir(tree.path()).into_iter().flatten().flatten();
        found.extend(
            groups
                .filter(|group| group.file_name().to_string_lossy().contains(&name))
                .map(|group| format!("group {}", group.path().display())),
        );
    }
    for device in fs::read_dir("/sys/block").unwrap().flatten() {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if backing.contains(&name) {
            found.push(format!("loop device {}", device.path().display()));
        }
    }
    if host.dir_of(id).exists() {
        found.push("directory".into());
    }
    found
}

#[tokio::test]
async fn destroying_leaves_nothing_and_may_be_repeated() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    say(&sandbox, "sleep 1000 & setsid sleep 1000 & ln -s / /workspace/host; ln -s /etc/passwd /var/tmp/p; echo").await;
    assert!(traces(&host, id).len() >= 8, "{:?}", traces(&host, id));
    host.sandboxes.destroy(id).await.unwrap();
    // Another sandbox that is just being built may hold the last mount for a moment.
    until("nothing is left", || traces(&host, id).is_empty()).await;
    assert!(Path::new("/etc/passwd").exists());
    host.sandboxes.destroy(id).await.unwrap();
    host.sandboxes.destroy(host.id()).await.unwrap();
    assert!(host.sandboxes.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_killed_helper_leaves_is_found_and_removed() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    kill(helper_of(id).unwrap());
    until("the helper is dead", || helper_of(id).is_none()).await;
    // The sandbox itself goes on, and a new server finds it.
    assert_eq!(say(&sandbox, "echo on").await, "on\n");
    let server = host.restarted();
    assert!(server.attach(id).await.unwrap().is_some());
    assert_eq!(server.list().await.unwrap(), [id]);
    server.destroy(id).await.unwrap();
    until("nothing is left", || traces(&host, id).is_empty()).await;
}

#[tokio::test]
async fn a_group_without_a_directory_is_found_by_its_name() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    assert_eq!(sandbox.exec(sh("one", "true"), None).await.unwrap().exit, Exit::Code(0));
    kill(helper_of(id).unwrap());
    until("the helper is dead", || helper_of(id).is_none()).await;
    let hidden = host.dir.path().join("hidden");
    nix::mount::umount2(&host.dir_of(id).join("volume"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    fs::rename(host.dir_of(id), &hidden).unwrap();
    assert_eq!(host.sandboxes.list().await.unwrap(), [id]);
    host.sandboxes.destroy(id).await.unwrap();
    until("nothing is left", || traces(&host, id).is_empty()).await;
}

#[tokio::test]
async fn a_loop_device_without_a_mount_is_found_by_its_file() {
    let host = Host::new();
    let id = host.id();
    host.sandboxes.create_volume(id, 64 << 20).await.unwrap();
    nix::mount::umount2(&host.dir_of(id).join("volume"), nix::mount::MntFlags::empty()).unwrap();
    // One that does not let go by itself, of a file that is gone with its directory.
    let image = host.dir_of(id).join("volume.ext4");
    let attached = std::process::Command::new("losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
    assert!(attached.status.success(), "{}", String::from_utf8_lossy(&attached.stderr));
    fs::remove_dir_all(host.dir_of(id)).unwrap();
    let devices = |host: &Host| traces(host, id).iter().filter(|trace| trace.starts_with("loop")).count();
    assert_eq!(devices(&host), 1, "{:?}", traces(&host, id));
    assert_eq!(host.sandboxes.list().await.unwrap(), [id]);
    host.sandboxes.destroy(id).await.unwrap();
    until("nothing is left", || traces(&host, id).is_empty()).await;
    assert!(host.sandboxes.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing_running() {
    let host = Host::new();
    let id = host.id();
    let missing = SandboxSpec { image: "no-such-image".into(), ..spec(id, limits()) };
    let error = host.sandboxes.start(&missing).await.err().unwrap();
    assert!(error.to_string().contains("no image named no-such-image"), "{error}");
    assert_eq!(error.failure().code.as_str(), "sandbox-start-failed");
    // Less memory than the container library itself needs.
    let tiny = spec(id, Limits { memory_bytes: 64 << 10, ..limits() });
    let error = host.sandboxes.start(&tiny).await.err().unwrap();
    assert!(matches!(error.failure().code.as_str(), "sandbox-start-failed" | "sandbox-out-of-memory"), "{error}");
    host.sandboxes.destroy(id).await.unwrap();
    until("nothing is left", || traces(&host, id).is_empty()).await;
}

#[tokio::test]
async fn a_volume_alone_is_found_and_removed() {
    let host = Host::new();
    let id = host.id();
    let volume = host.sandboxes.create_volume(id, 64 << 20).await.unwrap();
    fs::write(volume.workspace().join("kept"), "kept").unwrap();
    host.sandboxes.create_volume(id, 64 << 20).await.unwrap();
    assert_eq!(fs::read_to_string(volume.workspace().join("kept")).unwrap(), "kept");
    assert_eq!(host.sandboxes.list().await.unwrap(), [id]);
    host.sandboxes.destroy(id).await.unwrap();
    until("nothing is left", || traces(&host, id).is_empty()).await;
}
