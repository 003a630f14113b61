//! What can be seen of sandboxes from the host without their server: which there are, what they use, what holds them.
//!
//! It goes by names and by what the kernel says, so it sees the sandboxes of a server that runs, and of one that crashed.
//! Nothing of a sandbox's disk is opened. What comes from its processes is hostile, and shown as such.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use orchestra_events::SandboxId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cgroup::{self, Hierarchy};
use super::checks::landlock_version;
use super::client::Connection;
use super::container::{Running, first_process, read_usage};
use super::ids::{HostIds, Ranges};
use super::layout::{Cause, Layout, State, make_dir, write_settled, write_whole};
use super::{Limits, Sandbox, SandboxError, SandboxSpec, Usage, layers, teardown};

/// Entries from the host that may wait to be taken down; beyond them nobody enters, so that none is lost.
pub const MAX_ENTRIES: usize = 256;
/// Processes of one sandbox that are shown.
const MAX_PROCESSES: usize = 256;
/// Characters of a command line that are shown.
const MAX_COMMAND: usize = 200;
/// Listening ports of one sandbox that are shown.
const MAX_LISTENERS: usize = 64;
/// Most that is read of a file of `/proc`: a process may give itself a command line of megabytes.
const MAX_PROC_BYTES: u64 = 64 * 1024;

/// What is written down about a sandbox when it is started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// The image it was started from.
    pub image: String,
    /// Memory of all its processes and temporary file systems, in bytes.
    pub memory_bytes: u64,
    /// Processors' worth of time.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u32,
    /// Its disk, in bytes.
    pub disk_bytes: u64,
    /// Wall-clock time from its start, in seconds.
    pub timeout_seconds: u64,
    /// Its control group, as a path below the root of each tree.
    pub cgroup: String,
}

impl About {
    /// Of a sandbox that is about to be started in this control group.
    pub fn of(spec: &SandboxSpec, cgroup: &str) -> Self {
        let Limits { memory_bytes, cpus, pids, disk_bytes, timeout } = spec.limits;
        let (image, cgroup) = (spec.image.clone(), cgroup.to_owned());
        Self { image, memory_bytes, cpus, pids, disk_bytes, timeout_seconds: timeout.as_secs(), cgroup }
    }

    /// Writes it down.
    pub(super) fn write(&self, layout: &Layout) -> io::Result<()> {
        write_whole(&layout.about(), &serde_json::to_vec(self)?, 0o600)
    }

    fn read(layout: &Layout) -> Option<Self> {
        serde_json::from_slice(&fs::read(layout.about()).ok()?).ok()
    }
}

/// How somebody came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// With one command.
    Exec,
    /// With a shell on a terminal.
    Shell,
}

/// Somebody with root on the host went into a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its own name, so that it is taken down once.
    pub id: Uuid,
    /// When.
    pub at: jiff::Timestamp,
    /// The user of the host, as far as the host knows.
    pub operator: String,
    /// How.
    pub kind: EntryKind,
    /// The program that was started, without its arguments: they may hold a secret.
    pub program: String,
}

/// The entries that wait to be taken down, oldest first.
pub(super) fn entries(layout: &Layout) -> io::Result<Vec<Entry>> {
    let files = match fs::read_dir(layout.entries()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    let mut found = Vec::new();
    for file in files.take(MAX_ENTRIES) {
        let file = file?;
        // What is being written has a longer name until it is whole.
        let whole = file.file_name().to_str().is_some_and(|name| name.parse::<Uuid>().is_ok());
        if whole && let Ok(entry) = serde_json::from_slice::<Entry>(&fs::read(file.path())?) {
            found.push(entry);
        }
    }
    found.sort_by_key(|entry| (entry.at, entry.id));
    Ok(found)
}

pub(super) fn forget_entry(layout: &Layout, entry: Uuid) -> io::Result<()> {
    match fs::remove_file(layout.entries().join(entry.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Its first process is alive.
    Running,
    /// It has a disk and was not started, or is being started now.
    Prepared,
    /// Its time was up.
    TimedOut,
    /// The kernel ended it for memory.
    OutOfMemory,
    /// It was stopped.
    Stopped,
    /// A crash has left something of it.
    Leftovers,
}

impl RunState {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Prepared => "prepared",
            Self::TimedOut => "timed-out",
            Self::OutOfMemory => "out-of-memory",
            Self::Stopped => "stopped",
            Self::Leftovers => "leftovers",
        }
    }
}

/// A process in a sandbox. All of it is the sandbox's own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its number on the host.
    pub pid: i32,
    /// Its number inside.
    pub inner_pid: Option<i32>,
    /// The start of its command line, without control characters.
    pub command: String,
}

/// What keeps a sandbox in, as the kernel tells it of its first process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Confinement {
    /// How system calls are filtered: `filter` is as it should be.
    pub seccomp: String,
    /// The compiled filter's digest.
    pub seccomp_digest: Option<String>,
    /// Whether it can never gain rights by starting a program.
    pub no_new_privileges: bool,
    /// Every set of capabilities that is not empty: there should be none.
    pub capabilities: BTreeMap<String, String>,
    /// The version of Landlock: what the kernel has, until the sandbox itself has been asked what it is behind
    /// ([`Sandbox::walls`]); absent where there is none.
    pub landlock_abi: Option<u32>,
    /// Each kind of namespace, and whether it is another one than this process's.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Users as `inside outside count`, one line a range.
    pub uid_map: Vec<String>,
    /// Groups in the same way.
    pub gid_map: Vec<String>,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// Its number.
    pub id: String,
    /// It is not the host's.
    pub own: bool,
}

/// Everything that is to be seen of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// Its name.
    pub id: SandboxId,
    /// Where it stands.
    pub state: RunState,
    /// When it was started, or its disk was made.
    pub since: Option<jiff::Timestamp>,
    /// What was written down when it was started.
    pub about: Option<About>,
    /// What it uses.
    pub usage: Option<UsageNow>,
    /// Its directory on the host.
    pub directory: PathBuf,
    /// Its first process, as the host counts.
    pub first_process: Option<i32>,
    /// The process of ours that waits for its end.
    pub helper: Option<i32>,
    /// Its control groups.
    pub cgroups: Vec<PathBuf>,
    /// The directories of the host that lie under its work tree.
    pub layers: Vec<PathBuf>,
    /// What keeps it in.
    pub walls: Option<Confinement>,
    /// `address:port` of everything that listens on its loopback, ours too.
    pub listeners: Vec<String>,
    /// Its processes.
    pub processes: Vec<Process>,
}

/// [`Usage`] as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageNow {
    /// Processor time so far, in milliseconds.
    pub cpu_ms: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// The most of it at once.
    pub memory_peak_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes used of its disk.
    pub disk_used_bytes: u64,
    /// Processes killed for memory.
    pub oom_kills: u64,
}

impl From<Usage> for UsageNow {
    fn from(usage: Usage) -> Self {
        let Usage { cpu, memory_bytes, memory_peak_bytes, pids, disk_used_bytes, disk_bytes: _, oom_kills } = usage;
        let cpu_ms = u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX);
        Self { cpu_ms, memory_bytes, memory_peak_bytes, pids, disk_used_bytes, oom_kills }
    }
}

fn proc_text(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_PROC_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A text of a sandbox as one short line that does nothing to a terminal.
fn harmless(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_COMMAND).collect();
    line.trim_end().to_owned()
}

fn process(pid: i32) -> Option<Process> {
    let status = proc_text(&format!("/proc/{pid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let inner_pid = field("NSpid:").and_then(|pids| pids.split_ascii_whitespace().last()?.parse().ok());
    let line = proc_text(&format!("/proc/{pid}/cmdline")).filter(|line| !line.is_empty());
    let command = line.unwrap_or_else(|| format!("[{}]", field("Name:").unwrap_or_default().trim()));
    Some(Process { pid, inner_pid, command: harmless(&command) })
}

fn walls(pid: i32, filter: Option<String>) -> Option<Confinement> {
    let status = proc_text(&format!("/proc/{pid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
    let seccomp = match field("Seccomp:").as_deref() {
        Some("0") => "none",
        Some("1") => "strict",
        Some("2") => "filter",
        _ => "unknown",
    };
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].into_iter().filter_map(|set| {
        let value = field(&format!("{set}:"))?;
        value.bytes().any(|digit| digit != b'0').then(|| (set.to_owned(), value))
    });
    let namespaces = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"].into_iter().filter_map(|kind| {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).ok()? != theirs;
        Some((kind.to_owned(), Namespace { id: theirs.to_string_lossy().into_owned(), own }))
    });
    let map = |kind: &str| {
        let text = proc_text(&format!("/proc/{pid}/{kind}")).unwrap_or_default();
        text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    Some(Confinement {
        seccomp: seccomp.to_owned(),
        seccomp_digest: filter,
        no_new_privileges: field("NoNewPrivs:").as_deref() == Some("1"),
        capabilities: sets.collect(),
        landlock_abi: landlock_version(),
        namespaces: namespaces.collect(),
        uid_map: map("uid_map"),
        gid_map: map("gid_map"),
    })
}

/// What listens, out of `/proc/<pid>/net/tcp` or `tcp6`: the second field is address and port in hexadecimal, the fourth
/// the state, of which 0A is listening.
fn listening(text: &str) -> Vec<String> {
    let lines = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, port) = fields.get(1)?.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (*fields.get(3)? == "0A").then(|| match u32::from_str_radix(address, 16) {
            Ok(number) if address.len() == 8 => format!("{}:{port}", std::net::Ipv4Addr::from(number.to_le_bytes())),
            Ok(_) | Err(_) => format!("[v6]:{port}"),
        })
    });
    lines.take(MAX_LISTENERS).collect()
}

/// The sandboxes of one server, seen from beside it.
#[derive(Debug, Clone)]
pub struct Survey {
    state: State,
    ranges: Arc<Ranges>,
}

impl Survey {
    /// Looks below a server's directory of sandboxes.
    ///
    /// # Errors
    /// When no server has kept sandboxes there, or this user may not look.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let ranges = Arc::new(Ranges::known(HostIds::default()));
        Ok(Self { state: State::existing(state_dir)?, ranges })
    }

    /// The control groups as the sandbox's own server sees them: on version 2 they are below that server's group, which
    /// is not the group of whoever looks.
    fn cgroups(&self, about: Option<&About>) -> io::Result<Hierarchy> {
        Ok(match (Hierarchy::detect()?, about) {
            (Hierarchy::V2(_), Some(about)) => {
                let below = about.cgroup.trim_start_matches('/');
                Hierarchy::V2(Path::new(cgroup::ROOT).join(below).parent().unwrap_or(Path::new(cgroup::ROOT)).into())
            }
            (hierarchy, _) => hierarchy,
        })
    }

    /// Every sandbox of which anything is left.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<SandboxId>, SandboxError> {
        let cgroups = Hierarchy::detect().map_err(SandboxError::host("looking for control groups"))?;
        teardown::list(&self.state, &cgroups, &self.ranges)
    }

    /// Looks at one.
    ///
    /// # Errors
    /// When the host has no control groups. What else cannot be seen is left out.
    pub fn inspect(&self, id: SandboxId) -> Result<Inspection, SandboxError> {
        let layout = self.state.layout(id);
        let about = About::read(&layout);
        let cgroups = self.cgroups(about.as_ref()).map_err(SandboxError::host("looking for control groups"))?;
        let first = first_process(&layout, &cgroups);
        let mut pids: Vec<i32> = cgroups.pids(layout.cgroup()).into_iter().collect();
        pids.truncate(MAX_PROCESSES);
        let groups = cgroups.directories(layout.cgroup());
        let state = match (first, layout.read_ending().map(|ending| ending.cause)) {
            (Some(_), _) => RunState::Running,
            (None, Some(Cause::TimedOut)) => RunState::TimedOut,
            (None, Some(Cause::OutOfMemory)) => RunState::OutOfMemory,
            (None, Some(Cause::Stopped)) => RunState::Stopped,
            (None, None) if layout.volume_image().exists() && pids.is_empty() && !layout.first_process().exists() => {
                RunState::Prepared
            }
            (None, None) => RunState::Leftovers,
        };
        let began = if first.is_some() { layout.first_process() } else { layout.volume_image() };
        let since = fs::metadata(began).and_then(|file| file.modified()).ok();
        let net = |table: &str| first.and_then(|pid| proc_text(&format!("/proc/{pid}/net/{table}")));
        let listeners = ["tcp", "tcp6"].into_iter().filter_map(net).flat_map(|text| listening(&text)).collect();
        let usage = first.and_then(|_| read_usage(&layout, &cgroups).ok()).map(UsageNow::from);
        Ok(Inspection {
            id,
            state,
            since: since.and_then(|time: SystemTime| jiff::Timestamp::try_from(time).ok()),
            about,
            usage,
            directory: layout.dir().to_owned(),
            first_process: first,
            helper: layout.helper_pid(),
            cgroups: groups,
            layers: layers::read(&layout).unwrap_or_default().into_iter().map(|layer| layer.lower).collect(),
            walls: first.and_then(|pid| walls(pid, self.filter_of(&layout))),
            listeners,
            processes: pids.into_iter().filter_map(process).collect(),
        })
    }

    /// The digest of the filter that a sandbox was started with, which is the name of its file.
    fn filter_of(&self, layout: &Layout) -> Option<String> {
        let order: serde_json::Value = serde_json::from_slice(&fs::read(layout.order()).ok()?).ok()?;
        let path = PathBuf::from(order.get("filter")?.as_str()?);
        Some(path.file_name()?.to_str()?.to_owned())
    }

    /// A handle on a running sandbox.
    ///
    /// # Errors
    /// When it does not run (any more).
    pub async fn attach(&self, id: SandboxId) -> Result<Arc<dyn Sandbox>, SandboxError> {
        let layout = self.state.layout(id);
        let about = About::read(&layout);
        let cgroups = self.cgroups(about.as_ref()).map_err(SandboxError::host("looking for control groups"))?;
        Connection::open(&layout).await.map_err(|_| SandboxError::Gone(id))?;
        Ok(Arc::new(Running::new(id, layout, Arc::new(cgroups))))
    }

    /// Notes durably that somebody enters a sandbox; its server takes it down in the task's log.
    ///
    /// # Errors
    /// When too many entries wait already, or the note cannot be written: then nobody is to enter.
    pub fn note(&self, id: SandboxId, entry: &Entry) -> Result<(), SandboxError> {
        let layout = self.state.layout(id);
        let write = || {
            if entries(&layout)?.len() >= MAX_ENTRIES {
                let full = format!("{MAX_ENTRIES} entries wait to be taken down; start the server, which does so");
                return Err(io::Error::other(full));
            }
            make_dir(&layout.entries())?;
            write_settled(&layout.entries().join(entry.id.to_string()), &serde_json::to_vec(entry)?, 0o600)
        };
        write().map_err(SandboxError::host(format!("noting who enters sandbox {id}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_is_read_off_the_kernels_table() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue\n\
                       0: 0100007F:1BA8 00000000:0000 0A 00000000:00000000 00:00000000\n\
                       1: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000\n\
                       2: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n";
        assert_eq!(listening(text), ["127.0.0.1:7080", "0.0.0.0:8080"]);
        let six = "sl\n 0: 00000000000000000000000001000000:1BA8 0:0 0A 0\n";
        assert_eq!(listening(six), ["[v6]:7080"]);
        assert!(listening("nonsense").is_empty());
    }

    #[test]
    fn a_command_line_does_nothing_to_a_terminal() {
        assert_eq!(harmless("sh\0-c\0\u{1b}]0;owned\u{7}\0"), "sh -c  ]0;owned");
        assert_eq!(harmless(&"x".repeat(10_000)).len(), MAX_COMMAND);
    }

    #[test]
    fn a_directory_without_sandboxes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Survey::open(dir.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "and nothing is made there");
    }
}
