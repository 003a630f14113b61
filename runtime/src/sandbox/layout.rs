//! Where everything of one sandbox lies on the host, so that it can be found again by name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use orchestra_events::SandboxId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ids::IdRange;
use super::layers::Layer;
use super::rootless::Authority;
use super::setups::SetupOrder;

/// The program that is the first process of every sandbox.
const INIT: &[u8] = include_bytes!(env!("ORCHESTRA_INIT"));

/// The directory of all sandboxes of one server.
#[derive(Debug, Clone)]
pub struct State {
    dir: PathBuf,
    tag: String,
}

/// What the helper is told.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct HelperOrder {
    /// Whether it is started ahead, for whoever comes.
    #[serde(default)]
    pub ahead: bool,
    /// The container in OCI form.
    pub description: serde_json::Value,
    /// The image's root file system.
    pub lower: PathBuf,
    /// What lies under the work tree.
    #[serde(default)]
    pub layers: Vec<Layer>,
    /// What it has to do with setup scripts.
    #[serde(default)]
    pub setup: Option<SetupOrder>,
    /// The host's ids for its users.
    pub ids: IdRange,
    /// What it is made with.
    #[serde(default)]
    pub authority: Authority,
    /// The first process's program.
    pub init: PathBuf,
    /// The compiled system call filter.
    pub filter: PathBuf,
    /// Seconds and nanoseconds until everything is killed.
    pub timeout: std::time::Duration,
    /// The name of its control groups and of the container.
    pub cgroup: String,
}

/// How a sandbox came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// What ended it.
    pub cause: Cause,
    /// Processes that were killed for memory in its life.
    pub oom_kills: u64,
}

/// What ended a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Its wall-clock limit.
    TimedOut,
    /// The kernel killed its first process for memory.
    OutOfMemory,
    /// Somebody killed it, or its first process ended.
    Stopped,
}

/// What the helper says once the sandbox stands, or does not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HelperReport {
    /// The first process runs, with this process id.
    Ready(i32),
    /// It did not come up.
    Failed(String),
}

pub fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What a file with this content is called: the start of its SHA-256 digest in hexadecimal.
pub fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file so that it is there whole or not at all, whoever else writes it at the same moment.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write(path, bytes, mode, false)
}

/// The same also when the machine loses power: for what is read after that.
pub fn write_settled(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write(path, bytes, mode, true)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn write(path: &Path, bytes: &[u8], mode: u32, settle: bool) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", uuid::Uuid::now_v7()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
    file.write_all(bytes)?;
    if settle {
        file.sync_all()?;
    }
    drop(file);
    fs::rename(&partial, path)
}

impl State {
    /// The directory of a server that has run.
    ///
    /// # Errors
    /// When no server has kept sandboxes there.
    pub fn existing(dir: &Path) -> io::Result<Self> {
        fs::read_dir(dir.join("sandboxes"))?;
        Self::open(dir)
    }

    /// Opens (and makes) the directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        make_dir(&dir.join("sandboxes"))?;
        make_dir(&dir.join("volumes"))?;
        let dir = fs::canonicalize(dir)?;
        Ok(Self::at(dir))
    }

    fn at(dir: PathBuf) -> Self {
        let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
        let tag = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Self { dir, tag }
    }

    /// The directory that holds one directory per sandbox.
    pub fn sandboxes(&self) -> PathBuf {
        self.dir.join("sandboxes")
    }

    /// The directory of what setup scripts have made.
    pub fn setups(&self) -> PathBuf {
        self.dir.join("setups")
    }

    /// The directory of empty disks to copy.
    pub fn templates(&self) -> PathBuf {
        self.dir.join("volumes")
    }

    /// What every control group of this server's sandboxes starts with; two servers on a host do not mix.
    pub fn cgroup_prefix(&self) -> String {
        format!("{}{}.", super::cgroup::PREFIX, self.tag)
    }

    /// The paths of one sandbox. Its control groups bear its name, unless it was started ahead under another.
    pub fn layout(&self, id: SandboxId) -> Layout {
        let dir = self.sandboxes().join(id.to_string());
        let named = |name: SandboxId| format!("{}{name}", self.cgroup_prefix());
        let cgroup = named(Layout::first_name(&dir).unwrap_or(id));
        Layout { dir, cgroup }
    }

    /// The sandbox's first process as a file.
    pub fn init_program(&self) -> io::Result<PathBuf> {
        self.keep("init", INIT, 0o555)
    }

    /// A system call filter as a file.
    pub fn filter(&self, program: &[u8]) -> io::Result<PathBuf> {
        self.keep("filter", program, 0o400)
    }

    /// A file that is named by its content and written when it is not there or not whole.
    fn keep(&self, folder: &str, content: &[u8], mode: u32) -> io::Result<PathBuf> {
        let folder = self.dir.join(folder);
        let path = folder.join(digest(content));
        if !fs::read(&path).is_ok_and(|kept| kept == content) {
            DirBuilder::new().recursive(true).mode(0o755).create(&folder)?;
            write_whole(&path, content, mode)?;
        }
        Ok(path)
    }
}

/// The paths of one sandbox.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
    cgroup: String,
}

impl Layout {
    /// Of the sandbox in this directory; for the helper, which is told nothing else.
    pub fn at(dir: PathBuf, cgroup: String) -> Self {
        Self { dir, cgroup }
    }

    /// The socket of a helper whose sandbox was started ahead.
    pub const HANDOVER: &str = "handover.sock";

    /// The name under which the sandbox in this directory was started, if that is written there.
    pub fn first_name(dir: &Path) -> Option<SandboxId> {
        fs::read_to_string(dir.join("first-name")).ok()?.parse().ok()
    }

    /// Notes the name under which the sandbox was started; its directory gets another, its control groups cannot.
    pub fn note_first_name(&self, id: SandboxId) -> io::Result<()> {
        write_whole(&self.dir.join("first-name"), id.to_string().as_bytes(), 0o600)
    }

    /// What is noted of a sandbox that was started ahead, for as long as it is nobody's.
    pub fn ahead(&self) -> PathBuf {
        self.dir.join("ahead.json")
    }

    /// Of the sandbox whose directory this is, of whichever server on this host.
    pub fn by_directory(dir: &Path) -> Option<Self> {
        let id = dir.file_name()?.to_str()?.parse().ok()?;
        Some(State::at(dir.parent()?.parent()?.to_owned()).layout(id))
    }

    /// Its own directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of its control groups.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Its disk as a file.
    pub fn volume_image(&self) -> PathBuf {
        self.dir.join("volume.ext4")
    }

    /// What lies under its work tree.
    pub fn layers(&self) -> PathBuf {
        self.dir.join("layers.json")
    }

    /// Where its disk is mounted.
    pub fn volume(&self) -> PathBuf {
        self.dir.join("volume")
    }

    /// Where the helper makes its own little root, in its own mount namespace.
    pub fn stage(&self) -> PathBuf {
        self.dir.join("stage")
    }

    /// The number of its first process on this host.
    pub fn first_process(&self) -> PathBuf {
        self.dir.join("pid")
    }

    /// The socket of its first process.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("init.sock")
    }

    /// What the helper is told.
    pub fn order(&self) -> PathBuf {
        self.dir.join("helper.json")
    }

    /// What is to be known about it without asking it.
    pub fn about(&self) -> PathBuf {
        self.dir.join("about.json")
    }

    /// One file for each entry from the host that nobody has taken down yet.
    pub fn entries(&self) -> PathBuf {
        self.dir.join("entries")
    }

    /// What the helper's own errors go to.
    pub fn log(&self) -> PathBuf {
        self.dir.join("helper.log")
    }

    /// The file on which the helper holds a lock for as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// How it ended, once it has.
    pub fn ending(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    /// The last number of memory kills that was told to somebody.
    pub fn oom_seen(&self) -> PathBuf {
        self.dir.join("oom-seen")
    }

    /// How many memory kills were told to somebody, and of which command the last ones were told.
    pub fn oom_told(&self) -> (u64, String) {
        let text = fs::read_to_string(self.oom_seen()).unwrap_or_default();
        let (count, whom) = text.split_once('\n').unwrap_or((&text, ""));
        (count.parse().unwrap_or(0), whom.to_owned())
    }

    /// How it ended, if it has.
    pub fn read_ending(&self) -> Option<Ending> {
        serde_json::from_slice(&fs::read(self.ending()).ok()?).ok()
    }

    /// The process that holds the helper's lock.
    pub fn helper_pid(&self) -> Option<i32> {
        let file = OpenOptions::new().read(true).write(true).open(self.lock()).ok()?;
        let mut lock = whole_file_lock();
        // SAFETY: the descriptor is open and the struct is valid for the call to fill.
        let asked = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_GETLK, &raw mut lock) };
        (asked == 0 && lock.l_type != libc::F_UNLCK as i16 && lock.l_pid > 0).then_some(lock.l_pid)
    }
}

/// A write lock on a whole file.
pub fn whole_file_lock() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}
