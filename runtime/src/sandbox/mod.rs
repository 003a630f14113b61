//! A disposable machine per task: started at once, with no secret, no way out, and nothing left behind.
//!
//! [`Containers`] is the implementation on libcontainer. What keeps it standing:
//!
//! - libcontainer runs only in a single-threaded helper ([`helper_main`]), which is forked from a process that the server
//!   starts for this ([`zygote_main`]). In a program with threads it deadlocks, and it changes the working directory of
//!   everyone.
//! - The helper is in a session of its own and holds nothing of the server's. It waits for the sandbox, enforces its
//!   wall-clock limit and clears it away, so a sandbox outlives the server, and a new server finds it by its socket.
//! - Commands never enter through libcontainer, whose way in leaves the user namespace and the seccomp filter behind.
//!   They are children of the sandbox's own first process, so they cannot have more rights than it has.

mod cgroup;
mod checks;
mod client;
mod container;
mod containers;
mod error;
mod handover;
mod helper;
mod idmap;
mod ids;
mod inspect;
mod layers;
mod layout;
mod leftovers;
mod network;
mod pool;
mod rootless;
mod seccomp;
mod setups;
mod spec;
mod stage;
mod streams;
mod teardown;
mod volume;
mod zygote;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use orchestra_events::SandboxId;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

pub use checks::{Check, checks};
pub use client::PipedExec;
pub use containers::Containers;
pub use error::SandboxError;
pub use helper::{HELPER_ARG, helper_main};
pub use ids::{HostIds, IdRange};
pub use inspect::{About, Confinement, Entry, EntryKind, Inspection, MAX_ENTRIES, Process, RunState, Survey};
pub use layers::MAX_LAYERS;
pub use network::listen_inside;
pub use orchestra_init::{Listed, Window};
pub use pool::MAX_READY;
pub use rootless::workspace_owner;
pub use seccomp::profile as seccomp_profile;
pub use setups::{SetupKey, SetupLimits, patterns as exclude_patterns};
pub use spec::container as container_description;
pub use streams::{INPUT_CHUNKS, Piece, StreamedExec};
pub use volume::Volume;
pub use zygote::{ZYGOTE_ARG, zygote_main};

/// Owner of the work tree on disk: user 1000 of the sandbox, whichever ids of the host that runs with.
pub const WORKSPACE_UID: u32 = ids::ON_DISK + spec::AGENT_ID;
/// Group of the work tree on disk.
pub const WORKSPACE_GID: u32 = ids::ON_DISK + spec::AGENT_ID;

/// What a sandbox may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Memory of all its processes and temporary file systems together; swap does not add to it.
    pub memory_bytes: u64,
    /// Processors' worth of time.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u32,
    /// Work tree, home and everything written over the image, together.
    pub disk_bytes: u64,
    /// Wall-clock time from its start, after which everything in it is killed.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 2 << 30,
            cpus: 2.0,
            pids: 512,
            disk_bytes: 10 << 30,
            timeout: Duration::from_secs(30 * 60),
        }
    }
}

/// A sandbox to start.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxSpec {
    /// Its name, everywhere.
    pub id: SandboxId,
    /// The image it starts from.
    pub image: String,
    /// What it may use.
    pub limits: Limits,
    /// Variables of every command in it. No secret ever belongs here.
    pub env: Vec<(String, String)>,
    /// What it calls itself.
    pub hostname: String,
}

impl SandboxSpec {
    /// A task's sandbox, with nothing that differs from task to task but these.
    pub fn of_a_task(id: SandboxId, image: String, limits: Limits) -> Self {
        Self { id, image, limits, env: Vec::new(), hostname: "sandbox".to_owned() }
    }

    /// Takes an image's own variables, as far as nothing is said of them already. Its path comes after the user's own.
    fn take_variables(&mut self, image: &BTreeMap<String, String>) {
        for (name, value) in image {
            if !self.env.iter().any(|(given, _)| given == name) {
                let value = if name == "PATH" { format!("{}/.local/bin:{value}", spec::HOME) } else { value.clone() };
                self.env.push((name.clone(), value));
            }
        }
    }
}

/// Where sandboxes live on this host.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Everything about sandboxes is below here, readable by the server alone.
    pub state_dir: PathBuf,
    /// The image store's directory.
    pub images: PathBuf,
    /// The program that is started with [`ZYGOTE_ARG`] or [`HELPER_ARG`]; normally this very program.
    pub helper: PathBuf,
}

impl SandboxConfig {
    /// Sandboxes whose helper is the running program.
    ///
    /// # Errors
    /// When the running program's path cannot be found out.
    pub fn new(state_dir: PathBuf, images: PathBuf) -> std::io::Result<Self> {
        Ok(Self { state_dir, images, helper: std::env::current_exe()? })
    }
}

/// A command to run in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The key by which a captured command runs once, whatever crashes (1 to 200 bytes).
    pub id: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables on top of the sandbox's own.
    pub env: Vec<(String, String)>,
    /// Directory to start in.
    pub cwd: String,
    /// Standard input, up to 15 MiB.
    pub stdin: Vec<u8>,
    /// Wall-clock limit, after which its whole session is killed.
    pub timeout: Duration,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// Its time was up.
    TimedOut,
    /// It failed, and meanwhile the kernel killed a process of this sandbox for memory.
    OutOfMemory,
    /// The connection to it broke before it ended, and its kind cannot be joined again.
    Lost,
}

/// The result of a captured command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// How it ended.
    pub exit: Exit,
    /// The start of its output, both streams merged.
    pub head: Vec<u8>,
    /// The end of its output, when there was more than the start holds.
    pub tail: Vec<u8>,
    /// How much it wrote in all.
    pub total_bytes: u64,
    /// How long it ran.
    pub duration: Duration,
}

/// How a piped command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipedOutcome {
    /// How it ended.
    pub exit: Exit,
    /// Both ends of what it said on standard error.
    pub stderr: Vec<u8>,
}

/// What a sandbox uses now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of all its processes so far.
    pub cpu: Duration,
    /// Memory of all its processes and temporary file systems.
    pub memory_bytes: u64,
    /// The most of it at once; 0 where the kernel does not say.
    pub memory_peak_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes used of its disk.
    pub disk_used_bytes: u64,
    /// Bytes that its disk holds.
    pub disk_bytes: u64,
    /// Processes that the kernel killed for memory so far.
    pub oom_kills: u64,
}

/// What stands between a running sandbox and the host beside its namespaces, as found now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walls {
    /// Whether the first process, and so every command, is behind a system call filter.
    pub filter: bool,
    /// Whether no program can lend it privileges.
    pub no_new_privileges: bool,
    /// Capabilities that a program could still give it, as the kernel's bits.
    pub capabilities: u64,
    /// The version of Landlock that it is restricted by from the first command on; 0 is none: the host's kernel does not have it, or only the first
    /// version, which allows no renames between folders.
    pub landlock: u32,
}

/// Starts, finds and removes sandboxes.
#[async_trait]
pub trait Sandboxes: Send + Sync {
    /// Makes the sandbox's disk, so that a work tree can be put there before the start. Replaces nothing that exists.
    async fn create_volume(&self, id: SandboxId, disk_bytes: u64) -> Result<Volume, SandboxError>;
    /// Makes the disk of a sandbox that will be started exactly so, which may be that of one that was started ahead.
    async fn prepare(&self, spec: &SandboxSpec) -> Result<Volume, SandboxError> {
        self.create_volume(spec.id, spec.limits.disk_bytes).await
    }
    /// Starts a sandbox, or finds it running.
    async fn start(&self, spec: &SandboxSpec) -> Result<Arc<dyn Sandbox>, SandboxError>;
    /// Finds a running sandbox, whoever started it. `None` when it does not run (any more).
    async fn attach(&self, id: SandboxId) -> Result<Option<Arc<dyn Sandbox>>, SandboxError>;
    /// Kills everything in a sandbox and removes all that it had on this host. Doing so again changes nothing.
    async fn destroy(&self, id: SandboxId) -> Result<(), SandboxError>;
    /// Every directory that lies under the work tree of any sandbox, or under its root: none of them may be removed or changed.
    async fn lowers(&self) -> Result<HashSet<PathBuf>, SandboxError>;
    /// Makes the disk of a sandbox that is to run setup scripts, over the same files as those of `like`, the sandbox of the
    /// task that needs what they make. Replaces nothing that exists.
    async fn create_setup(&self, id: SandboxId, like: SandboxId, disk_bytes: u64) -> Result<(), SandboxError>;
    /// Ends such a sandbox, and keeps its disk under this key for the sandboxes of later tasks. `excluded` are, for each folder
    /// of the work tree, patterns of what git is to pass over there.
    async fn keep_setup(
        &self,
        id: SandboxId,
        key: &SetupKey,
        excluded: BTreeMap<String, Vec<String>>,
    ) -> Result<(), SandboxError>;
    /// Puts what is kept under this key below what the sandbox will change, which has a disk and has not run yet. `false` when
    /// there is nothing under it. What lies under a sandbox is not removed while that is there.
    async fn use_setup(&self, id: SandboxId, key: &SetupKey) -> Result<bool, SandboxError>;
    /// Removes what the limits do not allow, and what a killed process has left half-made. Answers how many.
    async fn trim_setups(&self, limits: SetupLimits) -> Result<usize, SandboxError>;
    /// What tells the image that a name means now from every other.
    async fn image_identity(&self, image: &str) -> Result<String, SandboxError>;
    /// Those who have entered a sandbox from the host and are not written down anywhere else yet, oldest first.
    async fn entries(&self, id: SandboxId) -> Result<Vec<Entry>, SandboxError>;
    /// Lets an entry go that is written down elsewhere.
    async fn forget_entry(&self, id: SandboxId, entry: uuid::Uuid) -> Result<(), SandboxError>;
    /// Every sandbox of which anything is left on this host, running or not.
    async fn list(&self) -> Result<Vec<SandboxId>, SandboxError>;
}

/// A running sandbox.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Its name.
    fn id(&self) -> SandboxId;
    /// Runs a command, exactly once per id however often this is called and whoever restarts, and returns both ends of
    /// its output. Dropping the future leaves the command running. The result is kept until [`Sandbox::forget`].
    /// `live` gets the output as it comes; a receiver that is behind misses pieces rather than slowing the command.
    async fn exec(&self, request: Exec, live: Option<mpsc::Sender<Bytes>>) -> Result<ExecOutcome, SandboxError>;
    /// Runs a command whose standard output is read as a stream, however long. Dropping the stream kills it.
    async fn exec_piped(&self, request: Exec) -> Result<PipedExec, SandboxError>;
    /// Runs a command whose two outputs are read as streams of their own, or, with a window, one on a terminal that is
    /// opened inside. Its input comes through [`StreamedExec::input`]. Dropping the streams kills it.
    async fn exec_streamed(&self, request: Exec, window: Option<Window>) -> Result<StreamedExec, SandboxError>;
    /// Sends a signal to every process in a running command's session. Whether there was one.
    async fn signal_exec(&self, exec: &str, signal: i32) -> Result<bool, SandboxError>;
    /// Tells a command's terminal how large it is. Whether there was one.
    async fn resize_exec(&self, exec: &str, window: Window) -> Result<bool, SandboxError>;
    /// The commands that run now. The sandbox says so, so it may be told wrong.
    async fn running(&self) -> Result<Vec<Listed>, SandboxError>;
    /// Kills a running command and every process that belongs to it: its session, what descends from it, and what bears
    /// its mark (docs/security.md says what can still slip away until the sandbox ends). Whether there was one.
    async fn kill_exec(&self, exec: &str) -> Result<bool, SandboxError>;
    /// Frees a kept result; from then on the same id would run again.
    async fn forget(&self, exec: &str) -> Result<(), SandboxError>;
    /// Binds a listener on the sandbox's own loopback, served by this process. Bind before the first command runs, so
    /// that nothing in the sandbox can have taken the port.
    async fn listen(&self, port: u16) -> Result<std::net::TcpListener, SandboxError>;
    /// What keeps it in.
    async fn walls(&self) -> Result<Walls, SandboxError>;
    /// What it uses now.
    async fn usage(&self) -> Result<Usage, SandboxError>;
    /// Kills everything in it at once. Its disk stays until it is destroyed.
    async fn kill(&self) -> Result<(), SandboxError>;
}

impl AsyncRead for PipedExec {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.get_mut().poll_output(cx, buf)
    }
}
