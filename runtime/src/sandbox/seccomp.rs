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

/// Calls that do not depend on their arguments: files, processes, memory, time, signals, sockets already made.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    "accept", "accept4", "access", "alarm", "arch_prctl", "bind", "brk", "capget", "capset", "chdir",
    "chmod", "chown", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "close_range", "connect",
    "copy_file_range", "creat", "dup", "dup2", "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait",
    "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group", "faccessat",
    "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat",
    "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork", "fremovexattr", "fsetxattr", "fstat", "fstatfs",
    "fsync", "ftruncate", "futex", "futex_requeue", "futex_wait", "futex_waitv", "futex_wake", "futimesat",
    "get_robust_list", "getcpu", "getcwd", "getdents", "getdents64", "getegid", "geteuid", "getgid", "getgroups",
    "getitimer", "getpeername", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrandom", "getresgid",
    "getresuid", "getrlimit", "getrusage", "getsid", "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid",
    "getxattr", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_setup", "io_submit", "ioctl", "ioprio_get",
    "ioprio_set", "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown",
    "lgetxattr", "link", "linkat", "listen", "listxattr", "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat",
    "madvise", "map_shadow_stack", "membarrier", "memfd_create", "mincore", "mkdir", "mkdirat",
    "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive",
    "mq_timedsend", "mq_unlink", "mremap", "msgctl", "msgget", "msgrcv", "msgsnd", "mseal", "msync", "munlock",
    "munlockall", "munmap", "nanosleep", "newfstatat", "open", "openat", "openat2", "pause", "pidfd_open",
    "pidfd_send_signal", "pipe", "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "prctl",
    "pread64", "preadv", "preadv2", "prlimit64", "process_mrelease", "pselect6", "pwrite64", "pwritev", "pwritev2",
    "read", "readahead", "readlink", "readlinkat", "readv", "recvfrom", "recvmmsg", "recvmsg", "removexattr", "rename",
    "renameat", "restart_syscall", "rmdir", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "select", "semctl", "semget", "semop", "semtimedop", "sendfile", "sendmmsg",
    "sendmsg", "sendto", "set_robust_list", "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups",
    "setitimer", "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setrlimit", "setsid",
    "setsockopt", "setuid", "setxattr", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "sigaltstack", "signalfd",
    "signalfd4", "splice", "stat", "statfs", "statx", "symlink", "symlinkat", "sync", "sync_file_range",
    "syncfs", "sysinfo", "tee", "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_settime", "timerfd_create", "timerfd_gettime", "timerfd_settime", "times", "tkill", "truncate", "umask",
    "uname", "unlink", "unlinkat", "utime", "utimensat", "utimes", "vfork", "wait4", "waitid", "write",
    "writev",
];

/// Calls that are known and refused as "not permitted", so that programs do not look for another way as they would
/// after "not implemented".
#[rustfmt::skip]
const REFUSED: &[&str] = &[
    "acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "delete_module",
    "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "get_mempolicy", "init_module", "io_uring_enter",
    "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
    "lookup_dcookie", "mbind", "migrate_pages", "mount", "mount_setattr", "move_mount", "move_pages",
    "name_to_handle_at", "open_by_handle_at", "open_tree", "perf_event_open", "pidfd_getfd", "pivot_root",
    "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "quotactl_fd", "reboot",
    "request_key", "set_mempolicy", "setdomainname", "sethostname", "setns", "settimeofday", "swapoff", "swapon",
    "syslog", "umount2", "unshare", "userfaultfd", "vhangup", "vmsplice",
];

/// `personality` values: query, Linux, Linux for 32 bits, and either of them with the version number of old kernels. Those
/// that take protection away (no address randomisation, memory that is executable because it is readable, a page at
/// address zero) are not among them.
const PERSONALITIES: &[u64] = &[0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// Socket families and protocols that a build may need: local ones; streams and datagrams of IPv4 and IPv6 (there is only
/// the loopback); and route netlink, which name resolution uses to list interfaces. Every other protocol is a part of the
/// kernel that few programs use and few people read.
const SOCKETS: &[(i32, &[i32])] = &[
    (libc::AF_UNIX, &[0]),
    (libc::AF_INET, &[0, libc::IPPROTO_TCP, libc::IPPROTO_UDP]),
    (libc::AF_INET6, &[0, libc::IPPROTO_TCP, libc::IPPROTO_UDP]),
    (libc::AF_NETLINK, &[libc::NETLINK_ROUTE]),
];

/// Kinds of files that `mknod` may make: plain ones (also by no kind at all), pipes and sockets. Devices are refused by the
/// kernel too, but for the whiteout of overlays, which it lets everybody make.
const NODES: &[u32] = &[0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK];
/// Kinds that `mknod` refuses as "not permitted".
const REFUSED_NODES: &[u32] = &[libc::S_IFCHR, libc::S_IFBLK];

/// One comparison of an argument: its index, the bits that count, and their value.
#[derive(Debug, Clone, Copy)]
struct Where {
    index: u32,
    mask: u64,
    value: u64,
}

/// Every bit of an argument.
const WHOLE: u64 = u64::MAX;

impl Where {
    /// The argument has this value, in all its bits: what a caller may have put into the half that the kernel cuts off makes it
    /// another one.
    const fn is(index: u32, value: u64) -> Self {
        Self { index, mask: WHOLE, value }
    }

    /// These bits of the argument have this value.
    const fn masked(index: u32, mask: u64, value: u64) -> Self {
        Self { index, mask, value }
    }

    fn compare(self) -> ScmpArgCompare {
        let op = if self.mask == WHOLE { ScmpCompareOp::Equal } else { ScmpCompareOp::MaskedEqual(self.mask) };
        ScmpArgCompare::new(self.index, op, self.value)
    }

    /// As the OCI specification writes it.
    fn profile(self) -> Value {
        if self.mask == WHOLE {
            return json!({ "index": self.index, "value": self.value, "op": "SCMP_CMP_EQ" });
        }
        json!({ "index": self.index, "value": self.mask, "valueTwo": self.value, "op": "SCMP_CMP_MASKED_EQ" })
    }
}

/// Calls that depend on their arguments: what they must be for the call to be allowed, or refused.
fn conditional() -> Vec<(&'static str, bool, Vec<Where>)> {
    let mut rules = vec![
        ("clone", true, vec![Where::masked(0, NAMESPACE_FLAGS, 0)]),
        // Without the flag that leaves a whiteout behind.
        ("renameat2", true, vec![Where::masked(4, u64::from(libc::RENAME_WHITEOUT), 0)]),
        (
            "renameat2",
            false,
            vec![Where::masked(4, u64::from(libc::RENAME_WHITEOUT), u64::from(libc::RENAME_WHITEOUT))],
        ),
        ("socketpair", true, vec![Where::is(0, libc::AF_UNIX as u64)]),
    ];
    for (call, mode) in [("mknod", 1), ("mknodat", 2)] {
        let kind = |kind: &u32| vec![Where::masked(mode, u64::from(libc::S_IFMT), u64::from(*kind))];
        rules.extend(NODES.iter().map(|node| (call, true, kind(node))));
        rules.extend(REFUSED_NODES.iter().map(|node| (call, false, kind(node))));
    }
    for (family, protocols) in SOCKETS {
        let pair = |protocol: &i32| vec![Where::is(0, *family as u64), Where::is(2, *protocol as u64)];
        rules.extend(protocols.iter().map(|protocol| ("socket", true, pair(protocol))));
    }
    rules.extend(PERSONALITIES.iter().map(|persona| ("personality", true, vec![Where::is(0, *persona)])));
    rules
}

/// The number by which a sandbox's first process is known to all in it.
const FIRST_PROCESS: u32 = 1;
/// Selects text on a console and pastes it into whatever reads there: `TIOCLINUX` of linux/tiocl.h.
const TIOCLINUX: u32 = 0x541C;

/// Calls that are allowed but for one value of one argument: name, index, value. The lower 32 bits alone are compared, because
/// that is what the kernel looks at; a compiler of allow-lists cannot say "all but", so these come before its program.
///
/// The first process belongs to the agent's user, so the kernel would let every command take its descriptors away, which ends
/// the sandbox, or put it behind everybody else's work.
#[rustfmt::skip]
const ALL_BUT: &[(&str, u32, u32)] = &[
    ("ioctl", 1, libc::TIOCSTI as u32),
    ("ioctl", 1, TIOCLINUX),
    ("prlimit64", 0, FIRST_PROCESS),
    ("sched_setaffinity", 0, FIRST_PROCESS),
    ("sched_setattr", 0, FIRST_PROCESS),
    ("sched_setparam", 0, FIRST_PROCESS),
    ("sched_setscheduler", 0, FIRST_PROCESS),
];

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
    let mut bytes = exceptions()?.iter().flat_map(instruction_bytes).collect::<Vec<u8>>();
    program.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What [`ALL_BUT`] says, as instructions that fall through to the ones that follow them.
fn exceptions() -> io::Result<Vec<libc::sock_filter>> {
    /// Offsets in the kernel's `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const ARGUMENTS: u32 = 16;
    /// `AUDIT_ARCH_X86_64` of linux/audit.h.
    const X86_64: u32 = 0xC000_003E;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let instruction = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut body = Vec::new();
    for (name, index, value) in ALL_BUT {
        let number = ScmpSyscall::from_name(name).map_err(io::Error::other)?.as_raw_syscall() as u32;
        body.extend([
            instruction(LOAD, NUMBER, 0, 0),
            instruction(JUMP_IF_EQUAL, number, 0, 3),
            instruction(LOAD, ARGUMENTS + 8 * index, 0, 0),
            instruction(JUMP_IF_EQUAL, *value, 0, 1),
            instruction(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
        ]);
    }
    // Another architecture's numbers mean other calls; what follows ends them.
    let mut program = vec![
        instruction(LOAD, ARCHITECTURE, 0, 0),
        instruction(JUMP_IF_EQUAL, X86_64, 1, 0),
        instruction(JUMP, body.len() as u32, 0, 0),
    ];
    program.append(&mut body);
    Ok(program)
}

fn instruction_bytes(instruction: &libc::sock_filter) -> [u8; INSTRUCTION_BYTES] {
    let ([c0, c1], [k0, k1, k2, k3]) = (instruction.code.to_ne_bytes(), instruction.k.to_ne_bytes());
    [c0, c1, instruction.jt, instruction.jf, k0, k1, k2, k3]
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
    for (name, allowed, arguments) in conditional() {
        let action = if allowed { ScmpAction::Allow } else { ScmpAction::Errno(libc::EPERM) };
        let compares: Vec<_> = arguments.into_iter().map(Where::compare).collect();
        filter.add_rule_conditional(action, ScmpSyscall::from_name(name)?, &compares)?;
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

/// The list as the OCI specification writes it, for other programs that run containers. What is allowed but for one value of
/// an argument is allowed in it without the exception: the specification has no words for that.
pub fn profile() -> Value {
    let mut calls = vec![
        json!({ "names": ALLOWED, "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM }),
    ];
    for (name, allowed, arguments) in conditional() {
        let args: Vec<_> = arguments.into_iter().map(Where::profile).collect();
        calls.push(if allowed {
            json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": args })
        } else {
            json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM, "args": args })
        });
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": calls,
    })
}

#[cfg(test)]
mod engines;
#[cfg(test)]
mod tests;
