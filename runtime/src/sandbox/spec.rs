//! The description of a sandbox's container, as the OCI runtime specification has it.

use std::path::Path;

use serde_json::{Value, json};

use super::ids::{self, IdRange};
use super::{Limits, SandboxSpec, stage};

/// The user and group that everything in a sandbox runs as.
pub const AGENT_ID: u32 = 1_000;
/// Where the user's own files are.
pub const HOME: &str = "/home/agent";
/// Where the work tree is.
pub const WORKSPACE: &str = "/workspace";
/// Where the first process and the file tools are.
pub const INIT: &str = "/orch/init";
/// Processes that the control group allows beyond what commands may use, so that the first process can answer and
/// start a diagnosis while a fork bomb burns.
pub const RESERVED_PIDS: u32 = 16;
/// Open files per process: what build tools need, and few enough that one sandbox cannot eat the host's table.
const MAX_OPEN_FILES: u64 = 65_536;
/// Microseconds of the scheduler's accounting period.
pub const CPU_PERIOD: u64 = 100_000;
/// Largest `/tmp`. It counts as memory, so it is never more than a quarter of that: a full one must be an error for who
/// writes, not the end of every process.
const MAX_TMP_BYTES: u64 = 512 << 20;
/// Largest `/dev/shm`; for the same reason never more than an eighth of the memory.
const MAX_SHM_BYTES: u64 = 64 << 20;
/// Bytes of a file system in memory for which it may have one more file. Each file costs the kernel about a kilobyte that its
/// size does not count; without an end of their own, empty files would use up the sandbox's memory, and a full `/tmp` would end
/// processes instead of being an error.
const BYTES_PER_FILE: u64 = 4096;

/// What the container engines mask, and what else tells of the host: its disks, its memory, its other work. What runtimes and
/// build tools read to fit themselves to the machine (`cpuinfo`, `meminfo`, `stat`, `loadavg`, `cgroups`) stays.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/buddyinfo",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/consoles",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/scsi",
    "/proc/softirqs",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
];
const READ_ONLY: &[&str] = &["/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/proc/driver", "/proc/tty"];

/// The variables of every command.
fn environment(spec: &SandboxSpec) -> Vec<String> {
    let ours = [
        ("PATH", "/home/agent/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", HOME),
        ("USER", "agent"),
        ("LOGNAME", "agent"),
        ("SHELL", "/bin/bash"),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("TMPDIR", "/tmp"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("NPM_CONFIG_PREFIX", "/home/agent/.local"),
    ];
    let given = |name: &str| spec.env.iter().any(|(given, _)| given == name);
    let kept = ours.iter().filter(|(name, _)| !given(name)).map(|(name, value)| format!("{name}={value}"));
    kept.chain(spec.env.iter().map(|(name, value)| format!("{name}={value}"))).collect()
}

fn mounts(limits: &Limits) -> Vec<Value> {
    let tmpfs = |to: &str, size: u64, mode: &str| {
        let files = size / BYTES_PER_FILE;
        let options =
            ["nosuid", "nodev", &format!("mode={mode}"), &format!("size={size}"), &format!("nr_inodes={files}")];
        let options = options.map(str::to_owned);
        json!({ "destination": to, "type": "tmpfs", "source": "tmpfs", "options": options })
    };
    let bind = |from: &str, to: &str, options: &[&str]| json!({ "destination": to, "type": "bind", "source": from, "options": options });
    vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=64k", "nr_inodes=128"],
        }),
        json!({
            "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        }),
        json!({
            "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"],
        }),
        tmpfs("/dev/shm", MAX_SHM_BYTES.min(limits.memory_bytes / 8), "1777"),
        tmpfs("/tmp", MAX_TMP_BYTES.min(limits.memory_bytes / 4), "1777"),
        // With what is mounted in it: a task's other repositories.
        bind(stage::WORKSPACE, WORKSPACE, &["rbind", "rw", "nosuid", "nodev"]),
        bind(stage::HOME, HOME, &["bind", "rw", "nosuid", "nodev"]),
        bind(stage::INIT, INIT, &["bind", "ro", "nosuid", "nodev"]),
    ]
}

/// Whether swap can be limited; naming a limit that the kernel does not have would fail the start.
fn counts_swap() -> bool {
    Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
        || (Path::new("/sys/fs/cgroup/cgroup.controllers").exists() && Path::new("/proc/swaps").exists())
}

/// Microseconds of processor time in each period.
pub fn cpu_quota(limits: &Limits) -> i64 {
    (limits.cpus.max(0.01) * CPU_PERIOD as f64) as i64
}

/// What version 1 is to limit, in the names that the container library has for it.
fn resources(limits: &Limits) -> Value {
    let mut memory = json!({ "limit": limits.memory_bytes });
    if counts_swap() {
        // Memory and swap together: no swap beyond the memory.
        memory["swap"] = limits.memory_bytes.into();
    }
    json!({
        "memory": memory,
        "pids": { "limit": limits.pids },
        "cpu": { "period": CPU_PERIOD, "quota": cpu_quota(limits) },
    })
}

/// The most open files that this process may grant; raising its own limit is not asked of the host.
fn open_files() -> u64 {
    nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .map_or(1024, |(_, hard)| hard.min(MAX_OPEN_FILES))
}

/// The container's description in OCI form, with the paths of the helper's stage; `cgroup` is the path of its control group,
/// and `range` the host's ids for its users.
/// There is no system call filter in it, because the helper puts on the one that the server has compiled.
pub fn container(spec: &SandboxSpec, cgroup: &str, range: IdRange) -> Value {
    let limits = &spec.limits;
    let id_map = json!([{ "containerID": 0, "hostID": range.first, "size": ids::RANGE }]);
    let none: [&str; 0] = [];
    let processes = limits.pids.saturating_sub(RESERVED_PIDS).max(1);
    let open_files = open_files();
    let namespaces = ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": { "path": stage::ROOT, "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": AGENT_ID, "gid": AGENT_ID },
            "args": [INIT, "pid1", processes.to_string()],
            "env": environment(spec),
            "cwd": WORKSPACE,
            "capabilities": {
                "bounding": none, "effective": none, "inheritable": none, "permitted": none, "ambient": none,
            },
            "rlimits": [
                { "type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            ],
            "noNewPrivileges": true,
        },
        "mounts": mounts(limits),
        "linux": {
            "namespaces": namespaces,
            "uidMappings": id_map,
            "gidMappings": id_map,
            "cgroupsPath": cgroup,
            "resources": resources(limits),
            "sysctl": { "user.max_user_namespaces": "0" },
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}
