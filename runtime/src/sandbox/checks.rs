//! What a host must have for sandboxes, checked one by one, each with its remedy.

use std::fs;
use std::path::Path;

use super::cgroup::Hierarchy;

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do when it is not.
    pub remedy: &'static str,
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn cgroup_check() -> Check {
    let (ok, detail) = match Hierarchy::detect() {
        Ok(cgroups) => {
            let kind = if matches!(cgroups, Hierarchy::V1(_)) { "version 1" } else { "version 2" };
            let missing = cgroups.missing_controllers();
            let detail = if missing.is_empty() {
                format!("{kind}, with memory, pids and cpu")
            } else {
                format!("{kind}, without {}", missing.join(", "))
            };
            (missing.is_empty(), detail)
        }
        Err(error) => (false, error.to_string()),
    };
    let remedy = "Mount control groups; under systemd set Delegate=yes on the server's unit.";
    Check { name: "control groups", ok, detail, remedy }
}

/// Looks at everything that sandboxes need of this host.
pub fn checks() -> Vec<Check> {
    let filesystems = read("/proc/filesystems");
    let has_filesystem =
        |name: &str| filesystems.lines().any(|line| line.trim().trim_start_matches("nodev").trim() == name);
    let namespaces = read("/proc/sys/user/max_user_namespaces");
    let kernel = read("/proc/sys/kernel/osrelease");
    let version = kernel.split(['.', '-']).take(2).map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
    let root = nix::unistd::geteuid().is_root();
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    let loops = Path::new("/dev/loop-control").exists();
    let mkfs =
        ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4", "/usr/bin/mkfs.ext4"].iter().find(|path| Path::new(path).exists());
    let missing_namespaces: Vec<_> = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"]
        .into_iter()
        .filter(|kind| !Path::new("/proc/self/ns").join(kind).exists())
        .collect();
    vec![
        Check {
            name: "processor",
            ok: cfg!(target_arch = "x86_64"),
            detail: std::env::consts::ARCH.to_owned(),
            remedy: "Run the server on x86-64: the list of allowed system calls is written for it.",
        },
        Check {
            name: "kernel",
            ok: version >= vec![5, 11],
            detail: kernel,
            remedy: "Use Linux 5.11 or newer (close_range, pidfd, LOOP_CONFIGURE, overlay).",
        },
        Check {
            name: "root",
            ok: root,
            detail: if root { "yes".into() } else { "the server does not run as root".into() },
            remedy: "Run the server as root; everything in a sandbox still runs as an unprivileged user.",
        },
        Check {
            name: "namespaces",
            ok: missing_namespaces.is_empty(),
            detail: if missing_namespaces.is_empty() {
                "all seven".into()
            } else {
                format!("missing: {}", missing_namespaces.join(", "))
            },
            remedy: "Use a kernel with all namespaces.",
        },
        Check {
            name: "user namespaces",
            ok: namespaces.parse::<u64>().is_ok_and(|count| count > 0),
            detail: format!("at most {}", if namespaces.is_empty() { "none" } else { &namespaces }),
            remedy: "Set the sysctl user.max_user_namespaces above 0.",
        },
        cgroup_check(),
        Check {
            name: "overlay file system",
            ok: has_filesystem("overlay"),
            detail: if has_filesystem("overlay") { "available".into() } else { "not known to the kernel".into() },
            remedy: "Load it: modprobe overlay.",
        },
        Check {
            name: "ext4 file system",
            ok: has_filesystem("ext4") && mkfs.is_some(),
            detail: mkfs.map_or("mkfs.ext4 is not installed".into(), |path| format!("made with {path}")),
            remedy: "Install e2fsprogs, and load the module: modprobe ext4.",
        },
        Check {
            name: "loop devices",
            ok: loops,
            detail: if loops { "/dev/loop-control".into() } else { "/dev/loop-control does not exist".into() },
            remedy: "Load the module: modprobe loop. In a container, pass /dev/loop-control and the loop devices through.",
        },
        Check {
            name: "system call filter",
            ok: actions.contains("errno"),
            detail: if actions.is_empty() { "seccomp is not available".into() } else { actions },
            remedy: "Use a kernel with CONFIG_SECCOMP_FILTER.",
        },
    ]
}
