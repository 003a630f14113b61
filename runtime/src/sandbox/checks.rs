//! What a host must have for sandboxes, checked one by one, each with its remedy.

use std::fs;
use std::path::Path;

use super::cgroup::Hierarchy;
use super::{idmap, rootless};

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
    let (ok, detail) = match Hierarchy::for_user(Path::new("/")) {
        Ok(Hierarchy::Absent(_)) => (false, "none that this user may change: nothing but time is limited".to_owned()),
        Ok(cgroups) => {
            let kind = match &cgroups {
                Hierarchy::V1(_) => "version 1",
                Hierarchy::V2(_) | Hierarchy::Absent(_) => "version 2",
            };
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
    let mut all = vec![
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
        // Not a fault, but whoever runs it so should know.
        Check {
            name: "root",
            ok: true,
            detail: if root {
                "yes".into()
            } else {
                "no; weaker than with it: no disk of limited size, limits only where control groups of version 2 are delegated, \
                 and what is in a sandbox runs with this user's own id"
                    .into()
            },
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
        landlock(),
    ];
    if root {
        all.extend([own_ids(), kill_at_once()]);
    } else {
        // Disks are root's.
        all.retain(|check| !matches!(check.name, "ext4 file system" | "loop devices"));
        all.extend([map_tools(), subordinate_ids(), overlay_for_users()]);
    }
    all
}

fn check(name: &'static str, found: Result<String, String>, remedy: &'static str) -> Check {
    let (ok, detail) = match found {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    Check { name, ok, detail, remedy }
}

/// The version of the kernel's Landlock, asked the way that Linux documents; `None` where it has none.
pub fn landlock_version() -> Option<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_ulong = 1;
    // SAFETY: with this flag the call takes no ruleset and only answers.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, LANDLOCK_CREATE_RULESET_VERSION) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

fn landlock() -> Check {
    // It is a further wall where there is one; sandboxes stand without it.
    let detail =
        landlock_version().map_or_else(|| "not in this kernel".to_owned(), |version| format!("version {version}"));
    check("landlock", Ok(detail), "Nothing needs it; a kernel with CONFIG_SECURITY_LANDLOCK and lsm=landlock has it.")
}

fn own_ids() -> Check {
    let found =
        idmap::probe_kernel(Path::new("/var/lib")).map_err(|error| format!("{error}; all sandboxes share one range"));
    check(
        "host ids per sandbox",
        found.map(|()| "files can be shown with other owners".to_owned()),
        "Use Linux 5.19 or newer, and keep /run writable for the server.",
    )
}

fn kill_at_once() -> Check {
    let trees = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().map(Path::new);
    let tree = trees.into_iter().find(|tree| tree.join("cgroup.controllers").exists());
    let kernel = read("/proc/sys/kernel/osrelease");
    let mut numbers = kernel.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let new = (numbers.next(), numbers.next()) >= (Some(5), Some(14));
    let detail = match tree {
        Some(tree) if new => format!("cgroup.kill in {}", tree.display()),
        _ => "no cgroup.kill; a sandbox's processes are killed with its first process, or one by one".to_owned(),
    };
    check("killing at once", Ok(detail), "Use Linux 5.14 or newer, and mount cgroup2 on /sys/fs/cgroup/unified.")
}

fn map_tools() -> Check {
    let missing: Vec<_> =
        ["newuidmap", "newgidmap"].into_iter().filter(|name| rootless::map_tool(name).is_none()).collect();
    let found =
        if missing.is_empty() { Ok("installed".to_owned()) } else { Err(format!("missing: {}", missing.join(", "))) };
    check("newuidmap", found, "Install them (Debian: uidmap); without, a sandbox has one user.")
}

fn subordinate_ids() -> Check {
    let missing: Vec<_> = ["/etc/subuid", "/etc/subgid"]
        .into_iter()
        .filter(|file| rootless::subordinate_of_user(file).is_none())
        .collect();
    let found = if missing.is_empty() {
        Ok("65,536 of this user's own".to_owned())
    } else {
        Err(format!("none for this user in {}; a sandbox has one user", missing.join(" and ")))
    };
    check(
        "subordinate ids",
        found,
        "Give the user 65,536 of each: usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST USER.",
    )
}

fn overlay_for_users() -> Check {
    let found = rootless::try_overlay().map(|()| "works".to_owned()).map_err(|error| error.to_string());
    check(
        "overlay for users",
        found,
        "Use Linux 5.11 or newer, and let users make namespaces (kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns).",
    )
}
