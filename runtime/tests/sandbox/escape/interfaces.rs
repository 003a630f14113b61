//! What the kernel offers beside files of programs: settings, logs, keys, modules, and calls that reach far into it.

use super::{Attempt, all_fail, attempt};
use crate::host::{Host, say};

const READ_ONLY: &str = "the kernel's settings are read-only, and belong to nobody inside";
const MASKED: &str = "something empty lies over it";
const NO_SYS: &str = "/sys is not mounted";
const FILTER: &str = "the filter knows and refuses the call";
const UNKNOWN: &str = "no rule allows it";

/// What a write to a setting comes to: a read-only mount, or the permissions of a file that is the host's root's.
const SETTING: &str = "EROFS|EACCES";
/// The same where a kernel may not have the file at all.
const IF_THERE: &str = "EROFS|EACCES|ENOENT";

pub const FILES: &[Attempt] = &[
    attempt("core_pattern", "write('/proc/sys/kernel/core_pattern', '|/workspace/x')", SETTING, READ_ONLY),
    attempt("core_pattern opened for both", "opened('/proc/sys/kernel/core_pattern', os.O_RDWR)", SETTING, READ_ONLY),
    attempt("modprobe's path", "write('/proc/sys/kernel/modprobe', '/workspace/x')", IF_THERE, READ_ONLY),
    attempt("hotplug's path", "write('/proc/sys/kernel/hotplug', '/workspace/x')", IF_THERE, READ_ONLY),
    attempt("a panic at every oops", "write('/proc/sys/kernel/panic_on_oops')", SETTING, READ_ONLY),
    attempt("address randomisation", "write('/proc/sys/kernel/randomize_va_space', '0')", SETTING, READ_ONLY),
    attempt("the host's name in the settings", "write('/proc/sys/kernel/hostname', 'host')", SETTING, READ_ONLY),
    attempt("perf for everybody", "write('/proc/sys/kernel/perf_event_paranoid', '-1')", SETTING, READ_ONLY),
    attempt("memory overcommitted", "write('/proc/sys/vm/overcommit_memory')", SETTING, READ_ONLY),
    attempt("the host's caches dropped", "write('/proc/sys/vm/drop_caches', '3')", SETTING, READ_ONLY),
    attempt("links followed anywhere", "write('/proc/sys/fs/protected_symlinks', '0')", SETTING, READ_ONLY),
    attempt(
        "a file format of its own",
        "write('/proc/sys/fs/binfmt_misc/register', ':x:M::x::/workspace/x:')",
        IF_THERE,
        READ_ONLY,
    ),
    attempt("forwarding between networks", "write('/proc/sys/net/ipv4/ip_forward')", SETTING, READ_ONLY),
    attempt("pings for all groups", "write('/proc/sys/net/ipv4/ping_group_range', '0 65535')", SETTING, READ_ONLY),
    attempt("terminals that can be typed into", "write('/proc/sys/dev/tty/legacy_tiocsti')", IF_THERE, READ_ONLY),
    attempt("the emergency key", "write('/proc/sysrq-trigger', 'c')", IF_THERE, READ_ONLY),
    attempt("interrupts steered", "write('/proc/irq/default_smp_affinity', 'f')", IF_THERE, READ_ONLY),
    attempt("a release agent", "write('/sys/fs/cgroup/release_agent', '/workspace/x')", "ENOENT|EACCES", NO_SYS),
    attempt(
        "a helper for device events",
        "write('/sys/kernel/uevent_helper', '/workspace/x')",
        "ENOENT|EACCES",
        NO_SYS,
    ),
    attempt("kernel debugging files", "tried(lambda: os.listdir('/sys/kernel/debug'))", "ENOENT", NO_SYS),
    attempt("the firmware's variables", "tried(lambda: os.listdir('/sys/firmware'))", "ENOENT", NO_SYS),
    attempt("everything below /sys", "len(os.listdir('/sys'))", "0", NO_SYS),
    attempt("its control group's limits", "tried(lambda: os.listdir('/sys/fs/cgroup'))", "ENOENT", NO_SYS),
    attempt("the kernel's memory", "read('/proc/kcore')", "nothing|ENOENT", MASKED),
    attempt("the kernel's symbols", "read('/proc/kallsyms')", "nothing", MASKED),
    attempt("the kernel's command line", "read('/proc/cmdline')", "nothing", MASKED),
    attempt("the kernel's configuration", "read('/proc/config.gz')", "nothing|ENOENT", MASKED),
    attempt("the kernel's keys", "read('/proc/keys')", "nothing|ENOENT", MASKED),
    attempt("everybody's key quotas", "read('/proc/key-users')", "nothing|ENOENT", MASKED),
    attempt("the kernel's modules", "read('/proc/modules')", "nothing|ENOENT", MASKED),
    attempt("interrupt counts, which tell keystrokes", "read('/proc/interrupts')", "nothing", MASKED),
    attempt("soft interrupt counts", "read('/proc/softirqs')", "nothing", MASKED),
    attempt("what the host's disks do", "read('/proc/diskstats')", "nothing", MASKED),
    attempt("the host's partitions", "read('/proc/partitions')", "nothing", MASKED),
    attempt(
        "the host's pressure",
        "repr(os.listdir('/proc/pressure')) if os.path.isdir('/proc/pressure') else '[]'",
        "[]",
        MASKED,
    ),
    attempt("the kernel's timers", "read('/proc/timer_list')", "nothing|ENOENT", MASKED),
    attempt("the scheduler's state", "read('/proc/sched_debug')", "nothing|ENOENT", MASKED),
    attempt("the scheduler's statistics", "read('/proc/schedstat')", "nothing|ENOENT", MASKED),
    attempt("memory by zones", "read('/proc/zoneinfo')", "nothing", MASKED),
    attempt("physical memory's map", "read('/proc/iomem')", "nothing", MASKED),
    attempt("the kernel's allocations", "read('/proc/vmallocinfo')", "nothing|EACCES", MASKED),
    attempt("the kernel's log as a file", "read('/proc/kmsg')", "nothing", MASKED),
    attempt("buses", "repr(os.listdir('/proc/bus'))", "[]", MASKED),
    attempt(
        "power and batteries",
        "repr(os.listdir('/proc/acpi')) if os.path.isdir('/proc/acpi') else '[]'",
        "[]",
        MASKED,
    ),
    attempt("pages by their frames", "read('/proc/kpagecount', 8)", "EACCES|ENOENT", "it is the host's root's"),
    attempt(
        "its own pages' frames",
        "f = open('/proc/self/pagemap', 'rb'); x = ctypes.create_string_buffer(1); f.seek(ctypes.addressof(x) // 4096 * 8); answer = struct.unpack('Q', f.read(8))[0] & ((1 << 55) - 1)",
        "0",
        "the numbers are hidden from who has no capability",
    ),
    attempt(
        "another root of the image",
        "write('/etc/passwd', 'root::0:0::/:/bin/sh')",
        "EACCES",
        "the image's files are not its own",
    ),
    attempt("another first process", "write('/orch/init', 'x')", "EROFS|ETXTBSY|EACCES", "it is mounted read-only"),
    attempt(
        "a library for everybody",
        "write('/etc/ld.so.preload', '/workspace/x.so')",
        "EACCES",
        "the image's files are not its own",
    ),
];

pub const CALLS: &[Attempt] = &[
    attempt("bpf", "call(321, 0, struct.pack('4I', 2, 4, 4, 1) + bytes(64), 72)", "EPERM", FILTER),
    attempt("perf_event_open", "call(298, bytes(128), 0, -1, -1, 0)", "EPERM", FILTER),
    attempt("io_uring_setup", "call(425, 1, bytes(120))", "EPERM", FILTER),
    attempt("io_uring_enter", "call(426, 0, 0, 0, 0, 0)", "EPERM", FILTER),
    attempt("io_uring_register", "call(427, -1, 0, 0, 0)", "EPERM", FILTER),
    attempt("userfaultfd", "call(323, 1)", "EPERM", FILTER),
    attempt("keyctl", "call(250, 0, -3, 1)", "EPERM", FILTER),
    attempt("add_key", "call(248, b'user', b'x', b'y', 1, -3)", "EPERM", FILTER),
    attempt("request_key", "call(249, b'user', b'x', 0, -3)", "EPERM", FILTER),
    attempt("init_module", "call(175, b'x', 1, b'')", "EPERM", FILTER),
    attempt("finit_module", "call(313, os.open('/dev/null', 0), b'', 0)", "EPERM", FILTER),
    attempt("delete_module", "call(176, b'overlay', 0)", "EPERM", FILTER),
    attempt("kexec_load", "call(246, 0, 0, 0, 0)", "EPERM", FILTER),
    attempt("kexec_file_load", "call(320, -1, -1, 0, b'', 0)", "EPERM", FILTER),
    attempt("reboot", "call(169, 0xfee1dead, 672274793, 0x1234567, 0)", "EPERM", FILTER),
    attempt("the kernel's log by a call", "call(103, 3, bytes(4096), 4096)", "EPERM", FILTER),
    attempt("accounting", "call(163, b'/workspace/acct')", "EPERM", FILTER),
    attempt("watching whole file systems", "call(300, 0, 0)", "EPERM", FILTER),
    attempt("settimeofday", "call(164, struct.pack('2q', 0, 0), 0)", "EPERM", FILTER),
    attempt("clock_settime", "call(227, 0, struct.pack('2q', 0, 0))", "EPERM", FILTER),
    attempt("adjtimex", "call(159, bytes(208))", "EPERM", FILTER),
    attempt("clock_adjtime", "call(305, 0, bytes(208))", "EPERM", FILTER),
    attempt("an alarm that wakes the machine", "call(283, 8, 0)", "EPERM|EINVAL|EOPNOTSUPP", "it needs a capability"),
    attempt("sethostname", "call(170, b'host', 4)", "EPERM", FILTER),
    attempt("setdomainname", "call(171, b'host', 4)", "EPERM", FILTER),
    attempt("iopl", "call(172, 3)", "EPERM", FILTER),
    attempt("ioperm", "call(173, 0x80, 1, 1)", "EPERM", FILTER),
    attempt("vhangup", "call(153)", "EPERM", FILTER),
    attempt("modify_ldt", "call(154, 0, bytes(64), 64)", "ENOSYS", UNKNOWN),
    attempt("memory policy of pages", "call(237, 0, 0, 0, 0, 0, 0)", "EPERM", FILTER),
    attempt("memory policy asked", "call(239, 0, 0, 0, 0, 0)", "EPERM", FILTER),
    attempt("pages moved", "call(279, 0, 0, 0, 0, 0, 0)", "EPERM", FILTER),
    attempt("secret memory", "call(447, 0)", "ENOSYS", UNKNOWN),
    attempt("old file system lists", "call(139, 1, b'ext4')", "ENOSYS", UNKNOWN),
    attempt("shared library loading", "call(134, b'/workspace/x')", "ENOSYS", UNKNOWN),
    attempt("security modules listed", "call(461, bytes(64), struct.pack('I', 64), 0)", "ENOSYS", UNKNOWN),
    attempt("a call that does not exist", "call(999)", "ENOSYS", UNKNOWN),
    attempt(
        "a call of 32 bit programs",
        "machine_code(bytes.fromhex('53b814000000cd805bc3'))",
        "SIGSYS",
        "the filter ends who enters the kernel by another door",
    ),
    attempt(
        "mount, by the way of 32 bit programs",
        "machine_code(bytes.fromhex('53b81500000031db31c9cd805bc3'))",
        "SIGSYS",
        "the filter ends who enters the kernel by another door",
    ),
    attempt(
        "a call of the x32 kind",
        "call(0x40000000 | 39)",
        "SIGSYS|ENOSYS",
        "the numbers of that kind are not in the list",
    ),
    attempt(
        "unshare of the x32 kind",
        "call(0x40000000 | 272, 0x10000000)",
        "SIGSYS|ENOSYS",
        "the numbers of that kind are not in the list",
    ),
    attempt(
        "a filter of its own that allows everything",
        "f = sock_filter((6, 0, 0, 0x7fff0000)); b = ctypes.create_string_buffer(f); p = struct.pack('HxxxxxxQ', 1, ctypes.addressof(b)); call(317, 1, 0, p); answer = call(272, 0x10000000)",
        "EPERM",
        "of several filters the strictest counts",
    ),
    attempt(
        "a filter of its own that asks itself",
        "f = sock_filter((0x20, 0, 0, 0), (0x15, 0, 1, 272), (6, 0, 0, 0x7fc00000), (6, 0, 0, 0x7fff0000)); b = ctypes.create_string_buffer(f); p = struct.pack('HxxxxxxQ', 4, ctypes.addressof(b)); fd = libc.syscall(317, 1, 8, p); answer = call(272, 0x10000000) if fd >= 0 else 'EPERM'",
        "EPERM",
        "a refusal comes before a question",
    ),
];

#[tokio::test]
async fn the_kernels_files_are_read_only_masked_or_absent() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    all_fail(&sandbox, FILES, &[]).await;
    assert_eq!(say(&sandbox, "cat /proc/sys/kernel/hostname").await, "sandbox\n");
}

#[tokio::test]
async fn the_kernels_far_reaching_calls_are_refused() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    all_fail(&sandbox, CALLS, &[]).await;
}
