//! Capabilities, other users, and programs that would lend theirs.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use orchestra_runtime::sandbox::Sandboxes;

use super::{Attempt, all_fail, attempt};
use crate::host::{Host, images, limits, say};

const NONE: &str = "0000000000000000";
const NO_CAPABILITY: &str = "the capability for it is in no set of the process";

pub const ATTEMPTS: &[Attempt] = &[
    attempt("effective capabilities", "status('CapEff')", NONE, "none are given"),
    attempt("permitted capabilities", "status('CapPrm')", NONE, "none are given"),
    attempt("inheritable capabilities", "status('CapInh')", NONE, "none are given"),
    attempt("ambient capabilities", "status('CapAmb')", NONE, "none are given"),
    attempt("bounding set", "status('CapBnd')", NONE, "no program on disk can lend any"),
    attempt("new privileges", "status('NoNewPrivs')", "1", "exec never grants any, for good"),
    attempt(
        "new privileges allowed again",
        "call(157, 38, 0, 0, 0, 0)",
        "EINVAL",
        "the kernel takes it back from nobody",
    ),
    attempt("the filter taken off", "call(157, 22, 0, 0, 0, 0)", "EINVAL", "a filter stays"),
    attempt("supplementary groups", "repr(os.getgroups())", "[]", "the helper gives up the server's"),
    attempt(
        "capset",
        "header = struct.pack('Ii', 0x20080522, 0); answer = call(126, header, struct.pack('6I', *[0xFFFFFFFF, 0xFFFFFFFF, 0] * 2))",
        "EPERM",
        NO_CAPABILITY,
    ),
    attempt("raise an ambient capability", "call(157, 47, 2, 21, 0, 0)", "EPERM", NO_CAPABILITY),
    attempt("secure bits", "call(157, 28, 0, 0, 0, 0)", "EPERM", NO_CAPABILITY),
    attempt("setuid 0", "tried(lambda: os.setuid(0))", "EPERM", NO_CAPABILITY),
    attempt("setgid 0", "tried(lambda: os.setgid(0))", "EPERM", NO_CAPABILITY),
    attempt("setresuid 0", "tried(lambda: os.setresuid(0, 0, 0))", "EPERM", NO_CAPABILITY),
    attempt("setuid to a neighbour", "tried(lambda: os.setuid(1001))", "EPERM", NO_CAPABILITY),
    attempt("setgroups", "tried(lambda: os.setgroups([0, 4, 27]))", "EPERM", NO_CAPABILITY),
    attempt(
        "the file system's user",
        "libc.setfsuid(0); answer = status('Uid').split()[3]",
        "1000",
        "the call says nothing and changes nothing",
    ),
    attempt(
        "give a file away",
        "open('/workspace/given', 'w').close(); answer = tried(lambda: os.chown('/workspace/given', 0, 0))",
        "EPERM",
        NO_CAPABILITY,
    ),
    attempt(
        "lend a file a capability",
        "open('/workspace/lent', 'w').close(); answer = tried(lambda: os.setxattr('/workspace/lent', 'security.capability', struct.pack('<5I', 0x02000001, 1, 0, 0, 0)))",
        "EPERM",
        NO_CAPABILITY,
    ),
    attempt(
        "its own setuid program",
        "run('sh', '-c', 'cp /usr/bin/grep /workspace/grep && chmod 6755 /workspace/grep && exec /workspace/grep ^Uid /proc/self/status')",
        "Uid:\t1000\t1000\t1000\t1000",
        "it is nobody's but its own, and the bit does not count",
    ),
    attempt(
        "more open files",
        "tried(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20)))",
        "EPERM|ValueError: not allowed to raise maximum limit",
        NO_CAPABILITY,
    ),
    attempt("more processes", "call(302, 0, 6, struct.pack('2Q', 1 << 40, 1 << 40), 0)", "EPERM", NO_CAPABILITY),
    attempt(
        "core files",
        "call(302, 0, 4, struct.pack('2Q', 1 << 40, 1 << 40), 0)",
        "EPERM",
        "none are written, and nobody may raise that",
    ),
    attempt(
        "a limit of the first process",
        "call(302, 1, 7, struct.pack('2Q', 1, 1), 0)",
        "EPERM",
        "the filter keeps commands from it: without descriptors it would end",
    ),
    attempt(
        "the first process behind all others",
        "tried(lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)))",
        "EPERM",
        "the filter keeps commands from it",
    ),
    attempt(
        "the first process's limits, with a number of more than 32 bits",
        "call(302, 0x1_0000_0001, 7, struct.pack('2Q', 1, 1), 0)",
        "EPERM",
        "the kernel would cut the number, and so does the filter",
    ),
    attempt(
        "lock all memory",
        "resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] <= 64 << 20",
        "True",
        "locked memory has a limit",
    ),
    attempt(
        "real-time priority",
        "tried(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)))",
        "EPERM",
        NO_CAPABILITY,
    ),
    attempt("higher priority", "tried(lambda: os.setpriority(os.PRIO_PROCESS, 0, -10))", "EACCES", NO_CAPABILITY),
    attempt("real-time disk access", "call(251, 1, 0, (1 << 13) | 4)", "EPERM", NO_CAPABILITY),
    attempt(
        "personality without randomisation",
        "call(135, 0x0040000)",
        "ENOSYS",
        "only the usual personalities are allowed",
    ),
    attempt(
        "personality that runs what it reads",
        "call(135, 0x0400000)",
        "ENOSYS",
        "only the usual personalities are allowed",
    ),
    attempt(
        "personality with memory at zero",
        "call(135, 0x0100000)",
        "ENOSYS",
        "only the usual personalities are allowed",
    ),
    attempt(
        "less likely to be killed for memory",
        "write('/proc/self/oom_score_adj', '-500')",
        "EACCES|EPERM",
        NO_CAPABILITY,
    ),
];

#[tokio::test]
async fn nobody_becomes_anybody_else() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    all_fail(&sandbox, ATTEMPTS, &[]).await;
}

/// The `security.capability` of a file that grants these to whoever is below this host user's namespace.
fn file_capabilities(permitted: u32, root: u32) -> Vec<u8> {
    /// Version 3, which names the namespace's root, with the effective bit.
    const REVISION: u32 = 0x0300_0001;
    [REVISION, permitted, 0, 0, 0, root].iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn grant(path: &Path, value: &[u8]) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let set =
        // SAFETY: both strings end in zero and the value is as long as it says.
        unsafe { libc::setxattr(path.as_ptr(), c"security.capability".as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// What no sandbox can make itself, and a repository or an image might bring: programs of the sandbox's own root with the
/// set-user bit and with capabilities.
#[tokio::test]
async fn programs_that_lend_rights_lend_none() {
    let host = Host::new();
    let id = host.id();
    let volume = host.sandboxes.create_volume(id, limits().disk_bytes).await.unwrap();
    let work = volume.workspace();
    let root = fs::metadata(work).unwrap().uid() - 1000;
    let grep = images().join("default/rootfs/usr/bin/grep");
    for (name, owner, mode) in [("of-root", root, 0o6755), ("of-the-host", 0, 0o6755), ("capable", root, 0o755)] {
        fs::copy(&grep, work.join(name)).unwrap();
        chown(work.join(name), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(work.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    grant(&work.join("capable"), &file_capabilities(u32::MAX, root));
    let sandbox = host.start(id).await;
    assert_eq!(say(&sandbox, "stat -c %a:%u /workspace/of-root").await, "6755:0\n", "the bits are there");
    assert!(
        say(
            &sandbox,
            "grep -q security /proc/self/status; python3 -c \"import os; print(os.listxattr('/workspace/capable'))\""
        )
        .await
        .contains("security.capability")
    );
    for name in ["of-root", "of-the-host", "capable"] {
        let lines = say(&sandbox, &format!("/workspace/{name} -E '^(Uid|Gid|CapPrm|CapEff)' /proc/self/status")).await;
        let words: Vec<&str> = lines.split_whitespace().collect();
        let expected =
            "Uid: 1000 1000 1000 1000 Gid: 1000 1000 1000 1000 CapPrm: 0000000000000000 CapEff: 0000000000000000";
        assert_eq!(words.join(" "), expected, "{name}");
    }
}
