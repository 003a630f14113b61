//! Which system calls a sandbox may make: an allow-list for x86-64, nothing else.
//!
//! The list is compiled once per server, not once per sandbox: compiling takes longer than anything else a start does. The
//! result lies in a file under the name of its digest, and a helper that finds anything else there starts nothing.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use super::layout::digest;

/// Flags of `clone` that make a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u64 = 0x7E02_0000;

/// Calls without restrictions: files, processes, memory, time, signals, sockets already made.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    "accept", "accept4", "access", "alarm", "arch_prctl", "bind", "brk", "cachestat", "capget", "capset", "chdir",
    "chmod", "chown", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "close_range", "connect",
    "copy_file_range", "creat", "dup", "dup2", "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait",
    "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group", "faccessat",
    "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat",
    "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork", "fremovexattr", "fsetxattr", "fstat", "fstatfs",
    "fsync", "ftruncate", "futex", "futex_requeue", "futex_wait", "futex_waitv", "futex_wake", "futimesat",
    "get_mempolicy", "get_robust_list", "getcpu", "getcwd", "getdents", "getdents64", "getegid", "geteuid", "getgid", "getgroups",
    "getitimer", "getpeername", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrandom", "getresgid",
    "getresuid", "getrlimit", "getrusage", "getsid", "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid",
    "getxattr", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_setup", "io_submit", "ioctl", "ioprio_get",
    "ioprio_set", "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown",
    "lgetxattr", "link", "linkat", "listen", "listxattr", "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat",
    "madvise", "map_shadow_stack", "membarrier", "memfd_create", "mincore", "mkdir", "mkdirat", "mknod", "mknodat",
    "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive",
    "mq_timedsend", "mq_unlink", "mremap", "msgctl", "msgget", "msgrcv", "msgsnd", "mseal", "msync", "munlock",
    "munlockall", "munmap", "nanosleep", "newfstatat", "open", "openat", "openat2", "pause", "pidfd_open",
    "pidfd_send_signal", "pipe", "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "prctl",
    "pread64", "preadv", "preadv2", "prlimit64", "process_mrelease", "pselect6", "pwrite64", "pwritev", "pwritev2",
    "read", "readahead", "readlink", "readlinkat", "readv", "recvfrom", "recvmmsg", "recvmsg", "removexattr", "rename",
    "renameat", "renameat2", "restart_syscall", "rmdir", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "select", "semctl", "semget", "semop", "semtimedop", "sendfile", "sendmmsg",
    "sendmsg", "sendto", "set_robust_list", "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups",
    "setitimer", "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setrlimit", "setsid",
    "setsockopt", "setuid", "setxattr", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "sigaltstack", "signalfd",
    "signalfd4", "socketpair", "splice", "stat", "statfs", "statx", "symlink", "symlinkat", "sync", "sync_file_range",
    "syncfs", "sysinfo", "tee", "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_settime", "timerfd_create", "timerfd_gettime", "timerfd_settime", "times", "tkill", "truncate", "umask",
    "uname", "unlink", "unlinkat", "utime", "utimensat", "utimes", "vfork", "vmsplice", "wait4", "waitid", "write",
    "writev",
];

/// Calls that are known and refused as "not permitted", so that programs do not look for another way as they would
/// after "not implemented".
#[rustfmt::skip]
const REFUSED: &[&str] = &[
    "acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "delete_module",
    "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "init_module", "io_uring_enter",
    "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
    "lookup_dcookie", "mbind", "migrate_pages", "mount", "mount_setattr", "move_mount", "move_pages",
    "name_to_handle_at", "open_by_handle_at", "open_tree", "perf_event_open", "pidfd_getfd", "pivot_root",
    "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "quotactl_fd", "reboot",
    "request_key", "set_mempolicy", "setdomainname", "sethostname", "setns", "settimeofday", "swapoff", "swapon",
    "syslog", "umount2", "unshare", "userfaultfd", "vhangup",
];

/// Socket families that a build may need: local, IPv4 and IPv6 (there is only the loopback), and route netlink, which
/// name resolution uses to list interfaces.
const SOCKET_FAMILIES: &[u64] = &[1, 2, 10, 16];

/// `personality` values: query, Linux, and no address randomisation, which debuggers set.
const PERSONALITIES: &[u64] = &[0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// Instructions that the kernel takes at most (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// Bytes of one instruction.
const INSTRUCTION_BYTES: usize = size_of::<libc::sock_filter>();

/// The list as a program for the kernel.
pub fn compile() -> io::Result<Vec<u8>> {
    let filter = build().map_err(io::Error::other)?;
    let mut program = File::from(memfd_create("filter", MFdFlags::MFD_CLOEXEC)?);
    filter.export_bpf(&program).map_err(io::Error::other)?;
    program.rewind()?;
    let mut bytes = Vec::new();
    program.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn build() -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::ENOSYS))?;
    filter.add_arch(ScmpArch::X8664)?;
    for (names, action) in [(ALLOWED, ScmpAction::Allow), (REFUSED, ScmpAction::Errno(libc::EPERM))] {
        for name in names {
            // A call that the compiler does not know yet stays "not implemented".
            if let Ok(call) = ScmpSyscall::from_name(name) {
                filter.add_rule(action, call)?;
            }
        }
    }
    let no_namespaces = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(NAMESPACE_FLAGS), 0);
    filter.add_rule_conditional(ScmpAction::Allow, ScmpSyscall::from_name("clone")?, &[no_namespaces])?;
    for (name, values) in [("socket", SOCKET_FAMILIES), ("personality", PERSONALITIES)] {
        let call = ScmpSyscall::from_name(name)?;
        for value in values {
            let equal = ScmpArgCompare::new(0, ScmpCompareOp::Equal, *value);
            filter.add_rule_conditional(ScmpAction::Allow, call, &[equal])?;
        }
    }
    Ok(filter)
}

/// A compiled filter that has been read and found whole.
#[derive(Debug, Clone)]
pub struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// Reads a filter from a file that is named by its digest.
    ///
    /// # Errors
    /// When it is missing or is not what its name says.
    pub fn read(path: &Path) -> io::Result<Self> {
        let refused = |what: &str| {
            let at = path.display();
            io::Error::other(format!("the system call filter {at} {what}; restart the server, which writes it anew"))
        };
        let bytes = fs::read(path).map_err(|error| refused(&format!("cannot be read ({error})")))?;
        let count = bytes.len() / INSTRUCTION_BYTES;
        let whole = count > 0 && count <= MAX_INSTRUCTIONS && bytes.len().is_multiple_of(INSTRUCTION_BYTES);
        if !whole || path.file_name().and_then(|name| name.to_str()) != Some(&*digest(&bytes)) {
            return Err(refused("is damaged"));
        }
        let (instructions, _) = bytes.as_chunks::<INSTRUCTION_BYTES>();
        let parse = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; INSTRUCTION_BYTES]| libc::sock_filter {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        };
        Ok(Self(instructions.iter().map(parse).collect()))
    }

    /// Puts the filter on this process, and on everything that it will ever start.
    ///
    /// # Errors
    /// When the kernel refuses it, as it does unless the process has given up new privileges.
    pub fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).map_err(io::Error::other)?,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the program and its instructions outlive the call, which only reads them.
        let set = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// The list as the OCI specification writes it, for other programs that run containers.
pub fn profile() -> Value {
    let mut calls = vec![
        json!({ "names": ALLOWED, "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM }),
        json!({
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }],
        }),
    ];
    let equal = |name: &str, value: &u64| {
        json!({
            "names": [name],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }],
        })
    };
    calls.extend(SOCKET_FAMILIES.iter().map(|family| equal("socket", family)));
    calls.extend(PERSONALITIES.iter().map(|persona| equal("personality", persona)));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": calls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_refused() {
        for name in REFUSED {
            assert!(!ALLOWED.contains(name), "{name}");
        }
        for name in ["clone", "clone3", "socket", "unshare", "mount", "ptrace", "bpf", "io_uring_setup", "setns"] {
            assert!(!ALLOWED.contains(&name), "{name}");
        }
    }

    #[test]
    fn only_a_whole_filter_under_its_own_name_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let program = compile().unwrap();
        let path = dir.path().join(digest(&program));
        assert!(Filter::read(&path).unwrap_err().to_string().contains("cannot be read"));
        fs::write(&path, &program).unwrap();
        let filter = Filter::read(&path).unwrap();
        assert_eq!(filter.0.len() * INSTRUCTION_BYTES, program.len());
        for damaged in [&program[..program.len() - INSTRUCTION_BYTES], &program[..program.len() - 1], b"", &[0; 64]] {
            fs::write(&path, damaged).unwrap();
            assert!(Filter::read(&path).unwrap_err().to_string().contains("is damaged"));
        }
        let empty = dir.path().join(digest(b""));
        fs::write(&empty, b"").unwrap();
        assert!(Filter::read(&empty).is_err());
        // What the kernel does not take for a program is an error, not a process without a filter.
        assert!(Filter(filter.0[..filter.0.len() / 2].to_vec()).install().is_err());
    }
}
