//! A state directory of its own, the shared image, and what tests ask of sandboxes again and again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{
    Containers, Exec, ExecOutcome, HostIds, Limits, Sandbox, SandboxConfig, SandboxSpec, Sandboxes,
};
use tempfile::TempDir;

/// One server's sandboxes; whatever a failed test leaves is removed at the end.
pub struct Host {
    pub dir: TempDir,
    pub sandboxes: Containers,
}

/// Where images are: `ORCHESTRA_IMAGES`, or the user's cache.
pub fn images() -> PathBuf {
    if let Some(dir) = std::env::var_os("ORCHESTRA_IMAGES") {
        return dir.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap_or("/root".into())).join(".cache"));
    cache.join("orchestra/images")
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { sandboxes: open(dir.path()), dir }
    }

    /// A second server on the same state, as after a restart.
    pub fn restarted(&self) -> Containers {
        open(self.dir.path())
    }

    pub fn id(&self) -> SandboxId {
        SandboxId::from_uuid(uuid::Uuid::now_v7())
    }

    pub fn dir_of(&self, id: SandboxId) -> PathBuf {
        self.dir.path().join("sandboxes").join(id.to_string())
    }

    pub async fn start(&self, id: SandboxId) -> Arc<dyn Sandbox> {
        self.start_with(id, limits()).await
    }

    pub async fn start_with(&self, id: SandboxId, limits: Limits) -> Arc<dyn Sandbox> {
        self.sandboxes.start(&spec(id, limits)).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let sandboxes = self.restarted();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for id in sandboxes.list().await.unwrap_or_default() {
                    let _ = sandboxes.destroy(id).await;
                }
            });
        })
        .join()
        .unwrap();
    }
}

pub fn open(state: &Path) -> Containers {
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_orchestra-sandbox-helper"));
    Containers::new(SandboxConfig { state_dir: state.to_owned(), images: images(), helper }).unwrap()
}

/// A server whose sandboxes run with other ids of the host.
pub fn open_with(state: &Path, ids: HostIds) -> Containers {
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_orchestra-sandbox-helper"));
    Containers::with_host_ids(SandboxConfig { state_dir: state.to_owned(), images: images(), helper }, ids).unwrap()
}

pub fn limits() -> Limits {
    Limits { memory_bytes: 256 << 20, cpus: 1.0, pids: 128, disk_bytes: 256 << 20, timeout: Duration::from_secs(300) }
}

pub fn spec(id: SandboxId, limits: Limits) -> SandboxSpec {
    SandboxSpec { id, image: "default".into(), limits, env: Vec::new(), hostname: "sandbox".into() }
}

/// A shell command.
pub fn sh(id: &str, script: &str) -> Exec {
    Exec {
        id: id.into(),
        argv: ["bash", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: "/workspace".into(),
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
    }
}

pub fn text(outcome: &ExecOutcome) -> String {
    String::from_utf8_lossy(&[&outcome.head[..], &outcome.tail[..]].concat()).into_owned()
}

/// Runs a shell command and gives its output.
pub async fn say(sandbox: &Arc<dyn Sandbox>, script: &str) -> String {
    let id = uuid::Uuid::now_v7().to_string();
    text(&sandbox.exec(sh(&id, script), None).await.unwrap_or_else(|error| panic!("{error}")))
}

/// Asks again until it is so, for at most this long.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The process that watches over a sandbox.
pub fn helper_of(id: SandboxId) -> Option<i32> {
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let command = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let is_helper = command.contains("sandbox-helper") && command.contains(&id.to_string());
        is_helper.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
    })
}

pub fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}
