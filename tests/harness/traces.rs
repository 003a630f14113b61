//! Everything on this machine that belongs to the sandboxes of one server: counted by name, so that nothing hides.

use std::fs;
use std::path::{Path, PathBuf};

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{Containers, Exec, Limits, SandboxConfig, SandboxSpec, Sandboxes};
use sha2::{Digest, Sha256};

/// What the server's control groups start with.
fn group_prefix(data: &Path) -> Option<String> {
    let state = fs::canonicalize(data.join("sandboxes")).ok()?;
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let tag: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Some(format!("orchestra.{tag}."))
}

/// Processes in the server's sandboxes, and their helpers: their ids and command lines.
pub fn processes_of(data: &Path) -> Vec<(i32, String)> {
    let Some(prefix) = group_prefix(data) else { return Vec::new() };
    let state = data.join("sandboxes").display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let group = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().replace('\0', " ");
        // The helper is our own program, told the sandbox's folder; the server is told its data folder.
        let is_helper = command.contains("sandbox-helper") && command.contains(&state);
        if group.contains(&prefix) || is_helper {
            found.push((pid, command));
        }
    }
    found
}

fn entries(folder: PathBuf) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Processes, mounts, control groups, loop devices and folders of the server's sandboxes, one line each.
pub fn traces(data: &Path) -> Vec<String> {
    let mut found: Vec<_> =
        processes_of(data).into_iter().map(|(pid, command)| format!("process {pid} {command}")).collect();
    let at = data.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(&at)).map(|line| format!("mount {line}")));
    let prefix = group_prefix(data).unwrap_or_else(|| "no sandbox was ever made".to_owned());
    let is_ours = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    let mut trees = entries("/sys/fs/cgroup".into());
    if let Ok(own) = fs::read_to_string("/proc/self/cgroup") {
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        trees.extend([PathBuf::from("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup").join(own)]);
    }
    trees.dedup();
    let groups = trees.into_iter().flat_map(entries).filter(|path| is_ours(path));
    found.extend(groups.map(|path| format!("control group {}", path.display())));
    for device in entries("/sys/block".into()) {
        let backing = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        if backing.contains(&at) {
            found.push(format!("loop device {} of {}", device.display(), backing.trim()));
        }
    }
    for folder in ["sandboxes/sandboxes", "repositories", "calls"] {
        found.extend(entries(data.join(folder)).into_iter().map(|path| format!("folder {}", path.display())));
    }
    found
}

fn sandboxes(data: &Path) -> Containers {
    let config = SandboxConfig {
        state_dir: data.join("sandboxes"),
        images: super::images(),
        helper: super::process::PROGRAM.into(),
    };
    Containers::new(config).unwrap()
}

/// Starts a sandbox of this server that belongs to no task, as one does whose task's events were lost.
pub async fn orphan(data: &Path) -> SandboxId {
    let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
    let limits = Limits { memory_bytes: 128 << 20, disk_bytes: 64 << 20, ..Limits::default() };
    let (image, hostname) = ("default".to_owned(), "orphan".to_owned());
    let spec = SandboxSpec { id, image, limits, env: Vec::new(), hostname };
    let sandbox = sandboxes(data).start(&spec).await.unwrap_or_else(|error| panic!("{error}"));
    let argv = ["bash", "-c", "sleep 1000 & setsid sleep 1000 & echo started"].map(str::to_owned).to_vec();
    let exec = Exec {
        id: "one".to_owned(),
        argv,
        env: Vec::new(),
        cwd: "/workspace".to_owned(),
        stdin: Vec::new(),
        timeout: super::PATIENCE,
    };
    sandbox.exec(exec, None).await.unwrap_or_else(|error| panic!("{error}"));
    fs::create_dir_all(data.join(format!("repositories/{id}.git/objects"))).unwrap();
    id
}

/// Removes whatever sandboxes are left, for the end of a test that failed.
pub fn destroy_sandboxes(data: &Path) {
    if group_prefix(data).is_none() {
        return;
    }
    let data = data.to_owned();
    // A thread of its own: a destructor may run within a runtime, which cannot be blocked.
    let cleared = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sandboxes = sandboxes(&data);
            for id in sandboxes.list().await.unwrap_or_default() {
                if let Err(error) = sandboxes.destroy(id).await {
                    eprintln!("sandbox {id} is left behind: {error}");
                }
            }
        });
    });
    let _ = cleared.join();
}
