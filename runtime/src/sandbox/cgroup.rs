//! The control groups of a sandbox, on version 1, hybrid and version 2 hosts: names, counts, killing, removal.
//!
//! On version 1 the container library makes the groups and writes their limits. On version 2 that is done here: the library
//! takes "no swap" for "swap as it is", and fails at the first controller that is missing without naming the others.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};

use super::Limits;
use super::layout::Layout;
use super::spec::{CPU_PERIOD, cpu_quota};

/// Where all trees are.
pub const ROOT: &str = "/sys/fs/cgroup";
/// What the name of every group of ours begins with.
pub const PREFIX: &str = "orchestra.";
/// How long the processes of a killed group may take to be gone; a process in a slow system call ends with it.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How this host arranges control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// One tree per controller; the directory of each.
    V1(Vec<PathBuf>),
    /// One tree; the directory under which sandboxes may be made.
    V2(PathBuf),
    /// None that this user may change: nothing is limited, and a sandbox is whatever its first process is. The directory of all
    /// sandboxes, by which that is found.
    Absent(PathBuf),
}

/// What limits a sandbox, by the names of version 2.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Every mounted control group tree, out of the text of `/proc/self/mountinfo`.
fn mounted(mountinfo: &str) -> Vec<PathBuf> {
    let trees = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        let at = before.split(' ').nth(4)?;
        (matches!(kind, "cgroup" | "cgroup2") && at.starts_with(ROOT)).then(|| PathBuf::from(at))
    });
    trees.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The version 1 trees whose controllers a sandbox needs, devices included because the library reads the list of processes
/// from there; none on a version 2 host.
pub fn limiting_trees(mountinfo: &str) -> Vec<PathBuf> {
    let trees = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let at = before.split(' ').nth(4).filter(|at| after.next() == Some("cgroup") && at.starts_with(ROOT))?;
        let mut options = after.nth(1)?.split(',');
        options.any(|option| matches!(option, "memory" | "pids" | "cpu" | "devices")).then(|| PathBuf::from(at))
    });
    trees.collect()
}

/// The tree of version 2 beside those of version 1: it limits nothing, and it alone kills a whole group at once.
pub fn unified_tree(mountinfo: &str) -> Option<PathBuf> {
    mounted(mountinfo).into_iter().find(|tree| *tree == Path::new(ROOT).join("unified"))
}

/// Whether this user may make groups here, and move processes between them.
fn is_delegated(base: &Path) -> bool {
    let may_write = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    base != Path::new(ROOT) && may_write(base) && may_write(&base.join("cgroup.procs"))
}

/// Lets a group's children have the controllers that it has, and its parents' the same, as far as this user may. A group with
/// processes of its own refuses.
fn give_controllers(base: &Path) {
    let below = base.strip_prefix(ROOT).unwrap_or(Path::new(""));
    let mut group = PathBuf::from(ROOT);
    for part in std::iter::once(None).chain(below.components().map(Some)) {
        group.extend(part);
        for name in CONTROLLERS {
            let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{name}"));
        }
    }
}

/// The first process of a sandbox without groups: the child of its helper that the helper has named. It dies with the helper,
/// so there is none without.
fn first_process(sandboxes: &Path, name: &str) -> Option<i32> {
    let layout = Layout::at(sandboxes.join(name.rsplit('.').next()?), name.to_owned());
    let helper = layout.helper_pid()?;
    let pid: i32 = fs::read_to_string(layout.first_process()).ok()?.parse().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    (parent == Some(helper)).then_some(pid)
}

impl Hierarchy {
    /// Looks at what this user may use of this host's, for sandboxes that have their directories in `sandboxes`.
    ///
    /// # Errors
    /// When no control groups are mounted, for root.
    pub fn for_user(sandboxes: &Path) -> io::Result<Self> {
        let found = Self::detect();
        if nix::unistd::geteuid().is_root() {
            return found;
        }
        match found {
            Ok(Self::V2(base)) if is_delegated(&base) => Ok(Self::V2(base)),
            _ => Ok(Self::Absent(sandboxes.to_owned())),
        }
    }

    /// Looks at this host.
    ///
    /// # Errors
    /// When no control groups are mounted.
    pub fn detect() -> io::Result<Self> {
        if Path::new(ROOT).join("cgroup.controllers").exists() {
            let own = fs::read_to_string("/proc/self/cgroup")?;
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
            return Ok(Self::V2(Path::new(ROOT).join(own.trim_end_matches("/server"))));
        }
        match mounted(&fs::read_to_string("/proc/self/mountinfo")?) {
            trees if trees.is_empty() => Err(io::Error::other("no control groups are mounted below /sys/fs/cgroup")),
            trees => Ok(Self::V1(trees)),
        }
    }

    /// Makes room for sandboxes. On version 2 a group with processes in it cannot give controllers to groups below
    /// it, so this process moves to a leaf of its own group (which the service manager must have delegated).
    pub fn prepare(&self) -> io::Result<()> {
        let Self::V2(base) = self else { return Ok(()) };
        give_controllers(base);
        if base == Path::new(ROOT) || fs::read_to_string(base.join("cgroup.procs"))?.trim().is_empty() {
            return Ok(());
        }
        let leaf = base.join("server");
        fs::create_dir_all(&leaf)?;
        for pid in fs::read_to_string(base.join("cgroup.procs"))?.lines() {
            match fs::write(leaf.join("cgroup.procs"), pid) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                moved => moved?,
            }
        }
        give_controllers(base);
        Ok(())
    }

    /// Whether [`Hierarchy::furnish`] writes the limits, so that the container's description must name none.
    pub fn limits_by_itself(&self) -> bool {
        !matches!(self, Self::V1(_))
    }

    /// Makes a sandbox's group and writes its limits, on version 2. Only root is promised that they hold: for other users,
    /// what was not delegated stays without.
    ///
    /// # Errors
    /// When the group cannot be made, or, for root, a controller is missing.
    pub fn furnish(&self, name: &str, limits: &Limits) -> io::Result<()> {
        let Self::V2(base) = self else { return Ok(()) };
        let missing = self.missing_controllers();
        if nix::unistd::geteuid().is_root() && !missing.is_empty() {
            return Err(io::Error::other(format!(
                "the control group {} has no {} to give to sandboxes",
                base.display(),
                missing.join(", ")
            )));
        }
        let group = base.join(name);
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let limits = [
            ("memory.max", limits.memory_bytes.to_string()),
            // Absent where the kernel counts no swap. A whole group is never ended for its memory (memory.oom.group stays 0):
            // the command that took too much dies, and the sandbox goes on.
            ("memory.swap.max", "0".to_owned()),
            ("pids.max", limits.pids.to_string()),
            ("cpu.max", format!("{} {CPU_PERIOD}", cpu_quota(limits))),
        ];
        for (file, value) in limits {
            let path = group.join(file);
            if path.exists() {
                fs::write(&path, &value).map_err(|error| {
                    io::Error::new(error.kind(), format!("writing {value} to {}: {error}", path.display()))
                })?;
            }
        }
        Ok(())
    }

    /// The controllers that limit sandboxes and that this host does not have, or does not give to this server.
    pub fn missing_controllers(&self) -> Vec<&'static str> {
        let given = match self {
            Self::V1(trees) => {
                let names = trees.iter().filter_map(|tree| tree.file_name()?.to_str());
                names.flat_map(|name| name.split(',')).map(str::to_owned).collect::<BTreeSet<_>>()
            }
            Self::V2(base) => {
                let text = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
                text.split_whitespace().map(str::to_owned).collect()
            }
            Self::Absent(_) => BTreeSet::new(),
        };
        CONTROLLERS.into_iter().filter(|name| !given.contains(*name)).collect()
    }

    /// Puts a sandbox's first process, while it is alone, where everything of it can be killed at once: on a hybrid host into
    /// the tree of version 2 too. Without it the group is killed process by process, so a failure is none of the sandbox's.
    pub fn join_for_killing(&self, name: &str, pid: Pid) {
        let Self::V1(trees) = self else { return };
        let Some(unified) = trees.iter().find(|tree| **tree == Path::new(ROOT).join("unified")) else { return };
        let group = unified.join(name);
        let _ = fs::create_dir(&group).and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()));
    }

    /// Takes the wait out of the next move of a process into a group. The kernel keeps every fork and exit away from a move,
    /// for which it waits for all processors, 10 ms and more when they are busy; but not again when another move has just
    /// been made. So this thread moves to the group that it is in, while the sandbox's helper is still on its way.
    ///
    /// Nothing depends on it but time, so it does not fail.
    pub fn ease_next_move(&self) {
        let _ = self.move_nowhere();
    }

    fn move_nowhere(&self) -> io::Result<()> {
        // Only this thread where the version allows that; there may be groups for single threads of this process.
        let own = fs::read_to_string("/proc/thread-self/cgroup")?;
        let (tree, own, file, whom) = match self {
            Self::V1(_) => {
                let own = own.lines().find_map(|line| line.split_once(":pids:"));
                (Path::new(ROOT).join("pids"), own, "tasks", nix::unistd::gettid().to_string())
            }
            Self::Absent(_) => return Ok(()),
            Self::V2(_) => {
                (ROOT.into(), own.lines().find_map(|line| line.split_once("::")), "cgroup.procs", "0".into())
            }
        };
        let (_, own) = own.ok_or(io::ErrorKind::NotFound)?;
        let group = tree.join(own.trim_start_matches('/'));
        fs::OpenOptions::new().write(true).open(group.join(file)).and_then(|mut file| file.write_all(whom.as_bytes()))
    }

    /// The path that the container library is given for the group of this name.
    pub fn spec_path(&self, name: &str) -> String {
        match self {
            Self::V1(_) | Self::Absent(_) => format!("/{name}"),
            Self::V2(base) => format!("/{}", base.join(name).strip_prefix(ROOT).unwrap_or(Path::new(name)).display()),
        }
    }

    fn trees(&self) -> &[PathBuf] {
        match self {
            Self::V1(trees) => trees,
            Self::V2(base) => std::slice::from_ref(base),
            Self::Absent(_) => &[],
        }
    }

    fn groups(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        // Never a whole tree, nor anybody else's group, whatever a damaged file may have said.
        let ours = name.starts_with(PREFIX) && !name.contains('/');
        self.trees().iter().filter(move |_| ours).map(move |tree| tree.join(name)).filter(|path| path.is_dir())
    }

    /// Names of the groups that begin so.
    pub fn names(&self, prefix: &str) -> BTreeSet<String> {
        let entries = self.trees().iter().filter_map(|tree| fs::read_dir(tree).ok()).flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect()
    }

    /// Every process in the group.
    pub fn pids(&self, name: &str) -> BTreeSet<i32> {
        if let Self::Absent(sandboxes) = self {
            // The others are in its process namespace, and end with it.
            return first_process(sandboxes, name).into_iter().collect();
        }
        let texts = self.groups(name).filter_map(|path| fs::read_to_string(path.join("cgroup.procs")).ok());
        texts.flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>()).collect()
    }

    /// Whether this process is in the group now; a recycled process id is not.
    pub fn holds(&self, name: &str, pid: i32) -> bool {
        if let Self::Absent(sandboxes) = self {
            return first_process(sandboxes, name) == Some(pid);
        }
        fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|text| text.lines().any(|line| line.rsplit('/').next() == Some(name)))
    }

    /// Kills everything in the group and waits until it is gone.
    pub fn kill(&self, name: &str) -> io::Result<()> {
        let start = Instant::now();
        loop {
            for group in self.groups(name) {
                // Version 2 kills a whole group at once, forks included; elsewhere the file does not exist.
                let _ = fs::OpenOptions::new()
                    .write(true)
                    .open(group.join("cgroup.kill"))
                    .and_then(|mut file| file.write_all(b"1"));
            }
            let pids = self.pids(name);
            if pids.is_empty() {
                return Ok(());
            }
            if start.elapsed() > KILL_PATIENCE {
                return Err(io::Error::other(format!("{} processes do not die", pids.len())));
            }
            for pid in pids.iter().filter(|pid| **pid > 1 && self.holds(name, **pid)) {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Removes the group, which must be empty.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let start = Instant::now();
        for group in self.groups(name).collect::<Vec<_>>() {
            loop {
                match fs::remove_dir(&group) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    // The kernel lets go of the last process a moment after it has ended.
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && start.elapsed() < KILL_PATIENCE => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn number(&self, name: &str, v1: &str, v2: &str) -> Option<u64> {
        let file = match self {
            Self::V1(_) => Path::new(ROOT).join(v1.split_once('/')?.0).join(name).join(v1.split_once('/')?.1),
            Self::V2(base) => base.join(name).join(v2),
            Self::Absent(_) => return None,
        };
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// How many processes of the group the kernel has killed for memory.
    pub fn oom_kills(&self, name: &str) -> u64 {
        let file = match self {
            Self::V1(_) => Path::new(ROOT).join("memory").join(name).join("memory.oom_control"),
            Self::V2(base) => base.join(name).join("memory.events"),
            Self::Absent(_) => return 0,
        };
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
    }

    /// Bytes of memory in use.
    pub fn memory(&self, name: &str) -> u64 {
        self.number(name, "memory/memory.usage_in_bytes", "memory.current").unwrap_or(0)
    }

    /// The most bytes of memory that were in use at once; 0 where the kernel does not say (version 2 before 5.19).
    pub fn memory_peak(&self, name: &str) -> u64 {
        self.number(name, "memory/memory.max_usage_in_bytes", "memory.peak").unwrap_or(0)
    }

    /// Processor time of all its processes, those that have ended included. On version 1 our groups are not in the tree that
    /// counts it, because joining each further tree makes starts slower: there it is what the processes and those that they
    /// have buried used, in the hundredths of a second that `/proc` counts in.
    pub fn cpu_time(&self, name: &str) -> Duration {
        match self {
            Self::V1(_) => match self.number(name, "cpuacct/cpuacct.usage", "") {
                Some(nanoseconds) => Duration::from_nanos(nanoseconds),
                None => self.pids(name).into_iter().map(cpu_time_of).sum(),
            },
            Self::V2(base) => {
                let text = fs::read_to_string(base.join(name).join("cpu.stat")).unwrap_or_default();
                let used = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
                Duration::from_micros(used.unwrap_or(0))
            }
            Self::Absent(_) => Duration::ZERO,
        }
    }

    /// The directories of the group, one for each tree that it is in.
    pub fn directories(&self, name: &str) -> Vec<PathBuf> {
        self.groups(name).collect()
    }

    /// Processes and threads.
    pub fn tasks(&self, name: &str) -> u64 {
        self.number(name, "pids/pids.current", "pids.current").unwrap_or(0)
    }
}

/// Processor time of a process and of the children that it has buried: fields 14 to 17 of `/proc/<pid>/stat` (proc(5)).
/// Orphans are buried by the sandbox's first process, so what they used is never lost.
fn cpu_time_of(pid: i32) -> Duration {
    /// What the kernel tells programs that a second has, on every architecture that we run on.
    const TICKS: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(11).take(4);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1_000 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trees_are_read_off_the_mount_list() {
        let text = "30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    31 30 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                    32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    33 30 0:28 / /elsewhere rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted(text), ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"].map(PathBuf::from));
    }

    #[test]
    fn only_trees_that_limit_something_are_joined() {
        let text = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                    32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                    34 30 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";
        assert_eq!(limiting_trees(text), ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct"].map(PathBuf::from));
        assert_eq!(unified_tree(text), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn a_server_without_a_group_of_its_own_is_told_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let base = Hierarchy::V2(dir.path().to_owned());
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io pids\n").unwrap();
        assert_eq!(base.missing_controllers(), ["memory"]);
        let error = base.furnish("orchestra.x", &Limits::default()).unwrap_err().to_string();
        assert!(error.contains("has no memory to give"), "{error}");
        assert!(!dir.path().join("orchestra.x").exists());
        let trees = ["memory", "cpu,cpuacct", "pids"].map(|name| Path::new(ROOT).join(name));
        assert!(Hierarchy::V1(trees.to_vec()).missing_controllers().is_empty());
        assert_eq!(Hierarchy::V1(trees[..1].to_vec()).missing_controllers(), ["pids", "cpu"]);
        assert_eq!(Hierarchy::Absent(PathBuf::new()).missing_controllers(), CONTROLLERS);
    }

    /// In a mount namespace with version 2 alone, as the kernel of this host has it: needs root.
    #[test]
    fn version_2_places_kills_and_removes() {
        let thread = std::thread::spawn(|| {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("none"), ROOT, Some("cgroup2"), MsFlags::empty(), none).unwrap();
            let Hierarchy::V2(_) = Hierarchy::detect().unwrap() else { panic!("not version 2") };
            let base = Path::new(ROOT).join(format!("base-{}", std::process::id()));
            fs::create_dir(&base).unwrap();
            let cgroups = Hierarchy::V2(base.clone());
            let name = "orchestra.test.x";
            fs::create_dir(base.join(name)).unwrap();
            let mut children: Vec<_> =
                (0..5).map(|_| std::process::Command::new("sleep").arg("1000").spawn().unwrap()).collect();
            for child in &children {
                fs::write(base.join(name).join("cgroup.procs"), child.id().to_string()).unwrap();
            }
            assert_eq!(cgroups.names("orchestra.test."), BTreeSet::from([name.to_owned()]));
            assert_eq!(cgroups.pids(name).len(), 5);
            assert!(cgroups.holds(name, children[0].id() as i32));
            assert!(!cgroups.holds(name, std::process::id() as i32));
            // Nobody buries them before they are waited for, so the kill alone empties the group.
            cgroups.kill(name).unwrap();
            for child in &mut children {
                assert!(!child.wait().unwrap().success());
            }
            cgroups.remove(name).unwrap();
            assert!(cgroups.names("orchestra.").is_empty());
            fs::remove_dir(&base).unwrap();
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_process_s_time_is_read_with_that_of_its_children() {
        let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", spin]).status().unwrap().success());
        let (own, pid) = (i32::try_from(std::process::id()).unwrap(), cpu_time_of(i32::MAX));
        assert!(cpu_time_of(own) >= Duration::from_millis(20), "{:?}", cpu_time_of(own));
        assert_eq!(pid, Duration::ZERO);
    }

    #[test]
    fn version_2_paths_are_absolute_below_the_own_group() {
        let base = Hierarchy::V2("/sys/fs/cgroup/system.slice/orchestra.service".into());
        assert_eq!(base.spec_path("orchestra.x"), "/system.slice/orchestra.service/orchestra.x");
        assert_eq!(Hierarchy::V1(Vec::new()).spec_path("orchestra.x"), "/orchestra.x");
    }
}
