//! Mounts and namespaces: the ways to another view of the machine.

use super::{Attempt, all_fail, attempt};
use crate::host::{Host, say};

const FILTER: &str = "the filter knows and refuses the call";
const UNKNOWN: &str = "no rule allows it, and the C library goes another way when it hears that";

pub const MOUNTS: &[Attempt] = &[
    attempt("mount a tmpfs", "call(165, b'none', b'/tmp', b'tmpfs', 0, 0)", "EPERM", FILTER),
    attempt("mount a second proc", "call(165, b'proc', b'/tmp', b'proc', 0, 0)", "EPERM", FILTER),
    attempt("bind a folder over /proc", "call(165, b'/tmp', b'/proc', 0, 4096, 0)", "EPERM", FILTER),
    attempt("make a mount writable again", "call(165, 0, b'/proc/sys', 0, 4096 | 32, 0)", "EPERM", FILTER),
    attempt("make mounts shared", "call(165, 0, b'/', 0, 1 << 20, 0)", "EPERM", FILTER),
    attempt("mount a file as a disk", "call(165, b'/tmp/disk', b'/tmp', b'ext4', 0, b'loop')", "EPERM", FILTER),
    attempt("mount the control groups", "call(165, b'cgroup', b'/tmp', b'cgroup', 0, b'memory')", "EPERM", FILTER),
    attempt("mount an overlay", "call(165, b'o', b'/tmp', b'overlay', 0, b'lowerdir=/etc')", "EPERM", FILTER),
    attempt("take a mask off", "call(166, b'/proc/kcore', 2)", "EPERM", FILTER),
    attempt("detach /proc", "call(166, b'/proc', 2)", "EPERM", FILTER),
    attempt("pivot the root", "call(155, b'/tmp', b'/tmp')", "EPERM", FILTER),
    attempt("chroot", "call(161, b'/tmp')", "EPERM", FILTER),
    attempt("open a file system", "call(430, b'tmpfs', 0)", "EPERM", FILTER),
    attempt("configure a file system", "call(431, 0, 0, 0, 0, 0)", "EPERM", FILTER),
    attempt("mount an open file system", "call(432, 0, 0, 0)", "EPERM", FILTER),
    attempt("pick a mounted file system", "call(433, -100, b'/', 0)", "EPERM", FILTER),
    attempt("clone a tree of mounts", "call(428, -100, b'/', 1)", "EPERM", FILTER),
    attempt("move a mount", "call(429, -100, b'/tmp', -100, b'/proc', 0)", "EPERM", FILTER),
    attempt("change a mount's attributes", "call(442, -100, b'/', 0, 0, 0)", "EPERM", FILTER),
    attempt("clone a tree with attributes", "call(467, -100, b'/', 0, 0, 0)", "ENOSYS", UNKNOWN),
    attempt("list mounts by number", "call(458, 0, 0, 0, 0)", "ENOSYS", UNKNOWN),
    attempt("turn a file handle into a file", "call(304, -100, 0, 0)", "EPERM", FILTER),
    attempt("turn a file into a handle", "call(303, -100, b'/', 0, 0, 0)", "EPERM", FILTER),
    attempt(
        "remove a mask by name",
        "tried(lambda: os.unlink('/proc/kallsyms'))",
        "EBUSY|EPERM|EACCES|EROFS",
        "a mount stands on it, and /proc removes nothing",
    ),
    attempt(
        "move the work tree away",
        "tried(lambda: os.rename('/workspace', '/workspace2'))",
        "EACCES|EBUSY",
        "it is a mount, in a folder of somebody else",
    ),
];

pub const NAMESPACES: &[Attempt] = &[
    attempt("unshare users", "call(272, 0x10000000)", "EPERM", FILTER),
    attempt("unshare mounts", "call(272, 0x00020000)", "EPERM", FILTER),
    attempt("unshare the network", "call(272, 0x40000000)", "EPERM", FILTER),
    attempt("unshare process numbers", "call(272, 0x20000000)", "EPERM", FILTER),
    attempt("unshare control groups", "call(272, 0x02000000)", "EPERM", FILTER),
    attempt("unshare time", "call(272, 0x80)", "EPERM", FILTER),
    attempt("clone into new users", "call(56, 0x10000000 | 17, 0, 0, 0, 0)", "ENOSYS", UNKNOWN),
    attempt("clone into new mounts", "call(56, 0x00020000 | 17, 0, 0, 0, 0)", "ENOSYS", UNKNOWN),
    attempt("clone into a new network", "call(56, 0x40000000 | 17, 0, 0, 0, 0)", "ENOSYS", UNKNOWN),
    attempt("clone into new process numbers", "call(56, 0x20000000 | 17, 0, 0, 0, 0)", "ENOSYS", UNKNOWN),
    attempt("clone into all of them", "call(56, 0x7E020000 | 17, 0, 0, 0, 0)", "ENOSYS", UNKNOWN),
    attempt(
        "clone3, whose flags no filter can read",
        "call(435, struct.pack('8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)",
        "ENOSYS",
        UNKNOWN,
    ),
    attempt("enter the first process's users", "call(308, os.open('/proc/self/ns/user', 0), 0)", "EPERM", FILTER),
    attempt("enter mounts by a process handle", "call(308, os.pidfd_open(os.getppid()), 0x00020000)", "EPERM", FILTER),
    attempt(
        "map more users",
        "write('/proc/self/uid_map', '0 0 1')",
        "EPERM|EACCES",
        "the map is written, once and for all, by the host",
    ),
    attempt(
        "allow itself more groups",
        "write('/proc/self/setgroups', 'allow')",
        "EPERM|EACCES",
        "groups were decided before the map was written",
    ),
    attempt(
        "allow more user namespaces",
        "write('/proc/sys/user/max_user_namespaces', '9')",
        "EROFS|EACCES",
        "the settings are read-only, and not its own",
    ),
];

#[tokio::test]
async fn there_is_no_other_view_of_the_machine() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    all_fail(&sandbox, MOUNTS, &[]).await;
    all_fail(&sandbox, NAMESPACES, &[]).await;
    // Behind the filter: the kernel would not make one either.
    assert_eq!(say(&sandbox, "cat /proc/sys/user/max_user_namespaces").await, "0\n");
}

#[tokio::test]
async fn no_mount_grants_rights_and_only_what_is_meant_for_it_can_be_written() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let mounts = say(&sandbox, "cat /proc/self/mountinfo").await;
    let mut seen = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(4);
        let (at, options) = (fields.next().unwrap(), fields.next().unwrap());
        let has = |option: &str| options.split(',').any(|one| one == option);
        seen.push(at);
        // A device is no program, also where it hides a file; an empty folder that hides another one stays empty.
        let device = line.contains(" - devtmpfs ");
        let mask = at.starts_with("/proc/") && has("ro");
        assert!(has("nosuid") || device || mask, "{line}");
        assert!(has("nodev") || at == "/dev" || at.starts_with("/dev/") || at.starts_with("/proc/"), "{line}");
        if at.starts_with("/proc/") || at.starts_with("/orch") {
            assert!(has("ro") || device, "what is mounted in there can be written: {line}");
        }
    }
    for at in ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/tmp", "/workspace", "/home/agent", "/orch/init"] {
        assert!(seen.contains(&at), "{at} in {seen:?}");
    }
    assert!(!seen.iter().any(|at| at.starts_with("/sys")), "the kernel's devices and settings are not shown: {seen:?}");
    // What is writable at all, by the permissions and the mounts together, in the first two levels of the tree.
    let writable =
        "for d in / /*/ /*/*/; do [ -w \"$d\" ] && [ ! -L \"${d%/}\" ] && echo \"$d\"; done | sort | tr '\\n' ' '";
    let found = say(&sandbox, writable).await;
    let places = ["/dev/mqueue/", "/dev/shm/", "/home/agent/", "/tmp/", "/var/tmp/", "/workspace/"];
    for place in found.split_whitespace() {
        let own = place.starts_with("/proc/") || place == "/run/lock/";
        assert!(places.contains(&place) || own, "{place} in {found}");
    }
}
