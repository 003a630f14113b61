//! Devices, and files that would be devices.

use super::{Attempt, all_fail, attempt};
use crate::host::{Host, say};

const ABSENT: &str = "only the seven usual devices are there";
const NODE: &str = "nobody in a sandbox makes a device";

pub const ATTEMPTS: &[Attempt] = &[
    attempt("memory as a device", "opened('/dev/mem', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("kernel memory as a device", "opened('/dev/kmem', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("the kernel's log", "opened('/dev/kmsg', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("loop devices", "opened('/dev/loop-control', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("a loop device", "opened('/dev/loop0', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("the host's disk", "opened('/dev/vda', os.O_RDONLY)", "ENOENT", ABSENT),
    attempt("file systems in user space", "opened('/dev/fuse', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("virtual machines", "opened('/dev/kvm', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("tunnels", "opened('/dev/net/tun', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("virtual sockets", "opened('/dev/vhost-vsock', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("device mapper", "opened('/dev/mapper/control', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("made input", "opened('/dev/uinput', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("processor registers", "opened('/dev/cpu/0/msr', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("the host's console", "opened('/dev/console', os.O_RDWR)", "ENOENT|EACCES|ENXIO", ABSENT),
    attempt("a virtual terminal", "opened('/dev/tty0', os.O_RDWR)", "ENOENT", ABSENT),
    attempt("a terminal that is not its own", "opened('/dev/tty', os.O_RDWR)", "ENXIO", "its session has no terminal"),
    attempt(
        "a character device",
        "call(133, b'/workspace/mem', stat.S_IFCHR | 0o666, os.makedev(1, 1))",
        "EPERM",
        NODE,
    ),
    attempt(
        "a block device",
        "call(259, -100, b'/workspace/disk', stat.S_IFBLK | 0o666, os.makedev(254, 0))",
        "EPERM",
        NODE,
    ),
    attempt(
        "a whiteout of overlays",
        "call(133, b'/workspace/whiteout', stat.S_IFCHR | 0o666, 0)",
        "EPERM",
        "it is a device, which the kernel would let everybody make",
    ),
    attempt(
        "a whiteout by a rename",
        "open('/workspace/gone', 'w').close(); answer = call(316, -100, b'/workspace/gone', -100, b'/workspace/gone2', 4)",
        "EPERM|EINVAL|EACCES",
        "the rename leaves a device behind, which the sandbox must not make",
    ),
    attempt(
        "an overlay's attribute for a folder",
        "os.makedirs('/workspace/opaque', exist_ok=True); answer = tried(lambda: os.setxattr('/workspace/opaque', 'trusted.overlay.opaque', b'y'))",
        "EPERM",
        "trusted attributes are the host's",
    ),
    attempt(
        "an overlay's redirection",
        "os.makedirs('/workspace/away', exist_ok=True); answer = tried(lambda: os.setxattr('/workspace/away', 'trusted.overlay.redirect', b'/etc'))",
        "EPERM",
        "trusted attributes are the host's",
    ),
    attempt(
        "a security attribute",
        "os.makedirs('/workspace/label', exist_ok=True); answer = tried(lambda: os.setxattr('/workspace/label', 'security.ima', b'x'))",
        "EPERM|EOPNOTSUPP",
        "security attributes are the host's",
    ),
    attempt(
        "a file that cannot be removed",
        "f = os.open('/workspace/immutable', os.O_CREAT | os.O_RDWR); answer = tried(lambda: fcntl.ioctl(f, 0x40086602, struct.pack('Q', 0x10)))",
        "EPERM",
        "the attribute needs a capability",
    ),
    attempt(
        "another project's quota",
        "f = os.open('/workspace/project', os.O_CREAT | os.O_RDWR); answer = tried(lambda: fcntl.ioctl(f, 0x401C5820, struct.pack('5I8x', 0, 0, 0, 7, 0)))",
        "EINVAL|EPERM|EOPNOTSUPP",
        "a project's number is set outside only",
    ),
    attempt(
        "the disk's file system resized",
        "f = os.open('/workspace', os.O_RDONLY); answer = tried(lambda: fcntl.ioctl(f, 0x40086610, struct.pack('Q', 1 << 40)))",
        "EPERM",
        "growing the disk needs a capability",
    ),
    attempt(
        "the disk's file system frozen",
        "f = os.open('/workspace', os.O_RDONLY); answer = tried(lambda: fcntl.ioctl(f, 0xC0045877, struct.pack('i', 0)))",
        "EPERM",
        "freezing needs a capability",
    ),
    attempt(
        "the disk shut down",
        "f = os.open('/workspace', os.O_RDONLY); answer = tried(lambda: fcntl.ioctl(f, 0x8004587D, struct.pack('I', 2)))",
        "EPERM",
        "shutting down needs a capability",
    ),
    attempt(
        "blocks of the disk by their numbers",
        "f = os.open('/workspace/numbers', os.O_CREAT | os.O_RDWR); answer = tried(lambda: fcntl.ioctl(f, 1, struct.pack('i', 0)))",
        "EPERM",
        "block numbers need a capability",
    ),
    attempt("quotas switched", "call(179, 0x80000200, b'/dev/loop0', 0, 0)", "EPERM", "the filter refuses it"),
    attempt("swap on a file", "call(167, b'/workspace/swap', 0)", "EPERM", "the filter refuses it"),
    attempt(
        "characters typed into a terminal",
        "m, s = os.openpty(); answer = tried(lambda: fcntl.ioctl(s, 0x5412, b'x'))",
        "EPERM",
        "the filter refuses it, on its own terminal too",
    ),
    attempt(
        "characters typed, with a number of more than 32 bits",
        "m, s = os.openpty(); answer = call(16, s, 0x1_0000_5412, b'x')",
        "EPERM",
        "the kernel would cut the number, and so does the filter",
    ),
    attempt(
        "a console's selection pasted",
        "m, s = os.openpty(); answer = tried(lambda: fcntl.ioctl(s, 0x541C, b'\\x03'))",
        "EPERM",
        "the filter refuses it",
    ),
    attempt(
        "the console redirected",
        "m, s = os.openpty(); answer = tried(lambda: fcntl.ioctl(s, 0x541D))",
        "EPERM",
        "it needs a capability",
    ),
    attempt(
        "entropy put into the host's pool",
        "f = os.open('/dev/random', os.O_RDWR); answer = tried(lambda: fcntl.ioctl(f, 0x40085203, struct.pack('2i8s', 64, 8, b'x' * 8)))",
        "EPERM|EACCES",
        "it needs a capability",
    ),
];

#[tokio::test]
async fn there_are_no_devices_but_the_usual_ones() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let there = say(&sandbox, "cd /dev; find . -xdev ! -type d ! -type l | sort | tr '\\n' ' '; find . -mindepth 1 -type d | sort | tr '\\n' ' '").await;
    assert_eq!(there, "./full ./null ./random ./tty ./urandom ./zero ./mqueue ./pts ./shm ");
    let links =
        say(&sandbox, "cd /dev; for l in $(find . -type l | sort); do echo \"$l:$(readlink $l)\"; done | tr '\\n' ' '")
            .await;
    for link in links.split_whitespace() {
        let to = link.split_once(':').unwrap().1;
        assert!(to.starts_with("/proc/self/fd") || to == "/proc/kcore" || to == "pts/ptmx", "{link} in {links}");
    }
    all_fail(&sandbox, ATTEMPTS, &[]).await;
    let left = say(&sandbox, "find /workspace /tmp -type c -o -type b | wc -l").await;
    assert_eq!(left, "0\n");
}
