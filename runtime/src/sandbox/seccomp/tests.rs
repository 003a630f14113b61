//! The compiled filter, run over every call there is: it does what the lists say, and allows nothing that the container
//! engines refuse.

use super::{engines, *};

const X86_64: u32 = 0xC000_003E;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xC000_00B7;
/// What the numbers of the x32 kind have set.
const X32: u32 = 0x4000_0000;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOT_PERMITTED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NOT_IMPLEMENTED: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const KILLED: u32 = libc::SECCOMP_RET_KILL_THREAD;
/// Beyond the highest number of any call that a kernel knows.
const NUMBERS: u32 = 1024;

/// What the kernel would answer: the program, run over a call.
fn judge(program: &[libc::sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [number.to_le_bytes(), architecture.to_le_bytes(), [0; 4], [0; 4]].concat();
    data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let libc::sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            0x20 => accumulator = u32::from_le_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn compiled() -> Vec<libc::sock_filter> {
    let bytes = compile().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(digest(&bytes));
    fs::write(&path, &bytes).unwrap();
    Filter::read(&path).unwrap().0
}

fn number(name: &str) -> u32 {
    ScmpSyscall::from_name(name).unwrap().as_raw_syscall() as u32
}

fn name(number: u32) -> String {
    ScmpSyscall::from(number as i32).get_name().unwrap_or_default()
}

/// Some arguments with which a call is allowed, if there are any.
fn allowing(call: &str) -> Vec<[u64; 6]> {
    let rules = conditional().into_iter().filter(|(name, allowed, _)| *name == call && *allowed);
    let arguments = |places: Vec<Where>| {
        let mut arguments = [0; 6];
        places.iter().for_each(|place| arguments[place.index as usize] = place.value);
        arguments
    };
    std::iter::once([0; 6]).chain(rules.map(|(_, _, places)| arguments(places))).collect()
}

#[test]
fn nothing_is_allowed_that_the_engines_refuse() {
    let program = compiled();
    for number in 0..NUMBERS {
        let name = name(number);
        let allowed = allowing(&name).into_iter().any(|with| judge(&program, X86_64, number, with) == ALLOW);
        assert!(!allowed || engines::ALLOWED.contains(&&*name), "{name} ({number})");
        let listed = ALLOWED.contains(&&*name) || conditional().iter().any(|(call, ..)| *call == name);
        assert_eq!(allowed, listed, "{name} ({number}): the program does what the lists say");
    }
    assert_eq!(PERSONALITIES, engines::PERSONALITIES);
    assert_eq!(NAMESPACE_FLAGS, engines::CLONE_FLAGS);
    for family in 0..64 {
        let allowed =
            (0..300).any(|protocol| judge(&program, X86_64, number("socket"), [family, 1, protocol, 0, 0, 0]) == ALLOW);
        assert!(!allowed || !engines::REFUSED_FAMILIES.contains(&family), "{family}");
        assert_eq!(allowed, SOCKETS.iter().any(|(ours, _)| *ours as u64 == family), "{family}");
    }
}

/// What the engines allow and a sandbox does not, so that a call that is added later is added knowingly.
#[test]
fn what_the_engines_allow_beyond_us_is_known() {
    let program = compiled();
    let refused =
        |name: &&&str| allowing(name).into_iter().all(|with| judge(&program, X86_64, number(name), with) != ALLOW);
    let more: Vec<&str> =
        engines::ALLOWED.iter().filter(|name| ScmpSyscall::from_name(name).is_ok()).filter(refused).copied().collect();
    let expected = [
        "adjtimex",
        "cachestat",
        "clock_adjtime",
        "epoll_ctl_old",
        "epoll_wait_old",
        "fanotify_mark",
        "get_thread_area",
        "memfd_secret",
        "modify_ldt",
        "name_to_handle_at",
        "process_vm_readv",
        "process_vm_writev",
        "ptrace",
        "remap_file_pages",
        "set_thread_area",
        "vmsplice",
    ];
    // Calls that this machine's compiler does not know are "not implemented" either way.
    let newer = ["getxattrat", "listmount", "listxattrat", "removexattrat", "setxattrat", "statmount", "uretprobe"];
    assert!(more.iter().all(|name| expected.contains(name) || newer.contains(name)), "{more:?}");
    assert!(expected.iter().all(|name| more.contains(name) || ScmpSyscall::from_name(name).is_err()), "{more:?}");
}

#[test]
fn no_other_architecture_has_a_way_in() {
    let program = compiled();
    for number in (0..NUMBERS).chain([u32::MAX]) {
        for architecture in [I386, AARCH64, 0, u32::MAX] {
            assert_eq!(judge(&program, architecture, number, [0; 6]), KILLED, "{architecture:#x} {number}");
        }
        let x32 = judge(&program, X86_64, number | X32, [0; 6]);
        assert!(matches!(x32, KILLED | NOT_IMPLEMENTED), "{number}: {x32:#x}");
    }
}

#[test]
fn arguments_are_compared_as_the_kernel_reads_them() {
    let program = compiled();
    let judge = |name: &str, arguments: &[u64]| {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        judge(&program, X86_64, number(name), all)
    };
    // The kernel looks at 32 bits of these; whatever is above them must not make them something else.
    for above in [0, 1 << 32, u64::MAX << 32] {
        for request in [0x5412, 0x541C] {
            assert_eq!(judge("ioctl", &[0, above | request]), NOT_PERMITTED);
        }
        for call in ["prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"] {
            assert_eq!(judge(call, &[above | 1]), NOT_PERMITTED, "{call}");
            assert_eq!(judge(call, &[above | 2]), ALLOW, "{call}");
            assert_eq!(judge(call, &[above]), ALLOW, "{call}");
        }
        assert_eq!(judge("socket", &[above | 17, 3, 0]), NOT_IMPLEMENTED);
        assert_eq!(judge("clone", &[above | 0x1000_0000 | 17]), NOT_IMPLEMENTED);
        assert_eq!(judge("clone", &[above | 17]), ALLOW);
        assert_eq!(judge("mknod", &[0, above | 0o020_666]), NOT_PERMITTED);
        assert_eq!(judge("mknodat", &[0, 0, above | 0o060_666]), NOT_PERMITTED);
        assert_eq!(judge("renameat2", &[0, 0, 0, 0, above | 4]), NOT_PERMITTED);
    }
    for request in [0x5401, 0x5411, 0x5413, 0x541B, 0x541D, 0x8004_5430] {
        assert_eq!(judge("ioctl", &[0, request]), ALLOW, "{request:#x}");
    }
    // Every flag that makes a namespace, alone and with all others.
    for bit in 0..64u64 {
        let makes_one = NAMESPACE_FLAGS & (1 << bit) != 0;
        assert_eq!(judge("clone", &[1 << bit]), if makes_one { NOT_IMPLEMENTED } else { ALLOW }, "{bit}");
    }
    for (mode, verdict) in
        [(0o100_644, ALLOW), (0o010_600, ALLOW), (0o140_600, ALLOW), (0o644, ALLOW), (0o040_755, NOT_IMPLEMENTED)]
    {
        assert_eq!(judge("mknod", &[0, mode]), verdict, "{mode:o}");
    }
    assert_eq!(judge("renameat2", &[0, 0, 0, 0, 1]), ALLOW, "rename without replacing");
    assert_eq!(judge("renameat2", &[0, 0, 0, 0, 2]), ALLOW, "exchange");
    for (socket, verdict) in [
        ([1, 1, 0], ALLOW),
        ([2, 1, 6], ALLOW),
        ([10, 2, 17], ALLOW),
        ([16, 3, 0], ALLOW),
        ([16, 3, 12], NOT_IMPLEMENTED),
        ([2, 1, 262], NOT_IMPLEMENTED),
        ([2, 3, 1], NOT_IMPLEMENTED),
    ] {
        assert_eq!(judge("socket", &socket), verdict, "{socket:?}");
    }
    assert_eq!(judge("socketpair", &[1, 1, 0]), ALLOW);
    assert_eq!(judge("socketpair", &[30, 1, 0]), NOT_IMPLEMENTED);
    assert_eq!(judge("personality", &[0x4_0000]), NOT_IMPLEMENTED, "no address randomisation");
    for name in REFUSED {
        if ScmpSyscall::from_name(name).is_ok() {
            assert_eq!(judge(name, &[]), NOT_PERMITTED, "{name}");
        }
    }
}

#[test]
fn no_call_is_both_allowed_and_refused() {
    for name in REFUSED {
        assert!(!ALLOWED.contains(name), "{name}");
    }
    for name in ["clone", "clone3", "mknod", "socket", "unshare", "mount", "ptrace", "bpf", "io_uring_setup", "setns"] {
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
