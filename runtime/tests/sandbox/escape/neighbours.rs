//! Two sandboxes at once: neither finds anything of the other's.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Attempt, all_fail, attempt};
use crate::host::{Host, say};

const OWN: &str = "each sandbox has its own";

/// Leaves a mark wherever two processes of one machine could meet, says so, and waits.
const LEAVE: &str = r#"
import ctypes, mmap, os, socket, time
for place in ["/workspace/mark", "/tmp/mark", "/dev/shm/mark", "/var/tmp/mark", "/home/agent/mark"]:
    open(place, "w").write("mark")
tcp = socket.socket(); tcp.bind(("127.0.0.1", 5555)); tcp.listen()
name = socket.socket(socket.AF_UNIX); name.bind("\0mark"); name.listen()
path = socket.socket(socket.AF_UNIX); path.bind("/tmp/mark.sock"); path.listen()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.shmget(4711, 4096, 0o1666) >= 0 and libc.msgget(4711, 0o1666) >= 0 and libc.semget(4711, 1, 0o1666) >= 0
assert ctypes.CDLL("librt.so.1").mq_open(b"/mark", os.O_CREAT | os.O_RDWR, 0o666, None) >= 0
print("left", flush=True)
time.sleep(600)
"#;

pub const FINDS: &[Attempt] = &[
    attempt("a file in the work tree", "read('/workspace/mark')", "ENOENT", OWN),
    attempt("a file in /tmp", "read('/tmp/mark')", "ENOENT", OWN),
    attempt("a file in /dev/shm", "read('/dev/shm/mark')", "ENOENT", OWN),
    attempt("a file in /var/tmp", "read('/var/tmp/mark')", "ENOENT", OWN),
    attempt("a file at home", "read('/home/agent/mark')", "ENOENT", OWN),
    attempt("a listener", "connect('127.0.0.1', 5555)", "ECONNREFUSED", OWN),
    attempt("an abstract socket", "connect_unix('\\0mark')", "ECONNREFUSED", OWN),
    attempt("a socket with a path", "connect_unix('/tmp/mark.sock')", "ENOENT", OWN),
    attempt("the list of sockets", "repr([l for l in open('/proc/net/unix') if 'mark' in l])", "[]", OWN),
    attempt("the list of listeners", "repr([l for l in open('/proc/net/tcp') if ':15B3 ' in l])", "[]", OWN),
    attempt("shared memory", "outcome(libc.shmget(4711, 0, 0))", "ENOENT", OWN),
    attempt("a message queue", "outcome(libc.msgget(4711, 0))", "ENOENT", OWN),
    attempt("a semaphore", "outcome(libc.semget(4711, 0, 0))", "ENOENT", OWN),
    attempt("shared memory by its list", "len(open('/proc/sysvipc/shm').readlines()) - 1", "0", OWN),
    attempt(
        "a queue of messages",
        "outcome(ctypes.CDLL('librt.so.1', use_errno=True).mq_open(b'/mark', os.O_RDONLY))",
        "ENOENT",
        OWN,
    ),
    attempt(
        "a process",
        "repr([p for p in os.listdir('/proc') if p.isdigit() and b'leave.py' in open(f'/proc/{p}/cmdline', 'rb').read()])",
        "[]",
        OWN,
    ),
    attempt("a process by its number on the host", "tried(lambda: os.kill(NEIGHBOUR, 0))", "ESRCH", OWN),
    attempt("a namespace by its number", "os.readlink('/proc/self/ns/net') in 'NAMESPACES'", "False", OWN),
];

#[tokio::test]
async fn neighbours_do_not_meet() {
    let host = Host::new();
    let (one, two) = (host.start(host.id()).await, host.start(host.id()).await);
    let leave = format!(
        "cat > leave.py <<'E'\n{LEAVE}\nE\n: > said; (python3 leave.py > said 2>&1 &); until grep -q left said; do grep Error said && break; sleep 0.02; done; cat said"
    );
    assert_eq!(say(&one, &leave).await, "left\n");
    let pid = fs::read_to_string(host.dir_of(one.id()).join("pid")).unwrap();
    let spaces = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"];
    let of =
        async |sandbox| say(sandbox, &spaces.map(|space| format!("readlink /proc/self/ns/{space};")).concat()).await;
    let (first, second) = (of(&one).await, of(&two).await);
    for (space, (a, b)) in spaces.iter().zip(first.lines().zip(second.lines())) {
        let here = fs::read_link(format!("/proc/self/ns/{space}")).unwrap().display().to_string();
        assert!(a != b && a != here && b != here, "{space}: {a}, {b} and the host's {here}");
    }
    let words = [("NEIGHBOUR", pid), ("NAMESPACES", first.replace('\n', " "))];
    all_fail(&two, FINDS, &words).await;
    // What was looked for is there: the one who left it finds all of it.
    let there = "import ctypes, os, socket\nlibc = ctypes.CDLL(None)\n\
                 print(os.path.exists('/tmp/mark'), socket.socket(socket.AF_UNIX).connect_ex('\\0mark'), libc.shmget(4711, 0, 0) >= 0, ctypes.CDLL('librt.so.1').mq_open(b'/mark', 0) >= 0)";
    assert_eq!(say(&one, &format!("python3 - <<'E'\n{there}\nE")).await, "True 0 True True\n");
}

/// The server's own folder is closed to everybody else on the host, so that even who leaves a sandbox as its user finds
/// nothing of another.
#[tokio::test]
async fn the_folder_of_all_sandboxes_is_closed_to_their_users() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    say(&sandbox, "echo secret > secret").await;
    let folder = host.dir_of(id);
    let closed = [
        folder.clone(),
        folder.join("volume.ext4"),
        folder.join("helper.json"),
        folder.join("helper.log"),
        folder.join("pid"),
    ];
    for path in closed {
        let meta = fs::metadata(&path).unwrap();
        let open_to_others = meta.mode() & 0o077;
        assert!(
            meta.uid() == 0 && (open_to_others == 0 || path == folder.join("helper.log")),
            "{} {:o}",
            path.display(),
            meta.mode()
        );
    }
}
