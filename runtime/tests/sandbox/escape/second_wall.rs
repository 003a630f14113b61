//! The second wall: what is refused although permissions and mounts allow it, and that it stays out of the way of work.

use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use orchestra_runtime::sandbox::{Sandboxes, Walls};

use super::{Attempt, all_fail, attempt};
use crate::host::{Host, limits, say};

/// The version of Landlock that this host's kernel has; 0 is none.
fn version() -> u32 {
    // SAFETY: with this flag the call reads nothing.
    let asked = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) };
    u32::try_from(asked).unwrap_or(0)
}

const RULES: &str = "the second wall has no rule for it";

pub const ATTEMPTS: &[Attempt] = &[
    attempt("write a file of its own in /proc", "write('/proc/self/comm', 'x')", "EACCES", RULES),
    attempt("offer itself to be killed for memory", "write('/proc/self/oom_score_adj', '500')", "EACCES", RULES),
    attempt("change its own memory through /proc", "opened('/proc/self/mem', os.O_RDWR)", "EACCES", RULES),
    attempt("reset its own pages through /proc", "write('/proc/self/clear_refs')", "EACCES", RULES),
    attempt("write what mode bits would let it write", "write('/usr/share/left-open/file', 'x')", "EACCES", RULES),
    attempt("make a file where mode bits would let it", "write('/usr/share/left-open/new', 'x')", "EACCES", RULES),
    attempt(
        "empty a file where mode bits would let it",
        "tried(lambda: os.truncate('/usr/share/left-open/file', 0))",
        "EACCES",
        RULES,
    ),
    attempt(
        "remove a file where mode bits would let it",
        "tried(lambda: os.unlink('/usr/share/left-open/file'))",
        "EACCES",
        RULES,
    ),
    attempt(
        "make a folder where mode bits would let it",
        "tried(lambda: os.mkdir('/usr/share/left-open/d'))",
        "EACCES",
        RULES,
    ),
    attempt(
        "make a link where mode bits would let it",
        "tried(lambda: os.symlink('/etc', '/usr/share/left-open/l'))",
        "EACCES",
        RULES,
    ),
    attempt(
        "make a pipe where mode bits would let it",
        "tried(lambda: os.mkfifo('/usr/share/left-open/p'))",
        "EACCES",
        RULES,
    ),
    attempt(
        "make a socket where mode bits would let it",
        "s = socket.socket(socket.AF_UNIX); answer = tried(lambda: s.bind('/usr/share/left-open/s'))",
        "EACCES",
        RULES,
    ),
    attempt(
        "rename where mode bits would let it",
        "tried(lambda: os.rename('/usr/share/left-open/file', '/usr/share/left-open/other'))",
        "EACCES",
        RULES,
    ),
    attempt(
        "give up the wall by another one",
        "fd = libc.syscall(444, struct.pack('QQQ', 2, 0, 0), 24, 0); libc.syscall(446, fd, 0); answer = write('/proc/self/comm', 'x') if fd >= 0 else 'no rules'",
        "EACCES",
        "a further set of rules only takes away",
    ),
    attempt(
        "give up the wall by a program",
        "run('sh', '-c', 'echo x > /proc/self/comm; echo $?').splitlines()[-1]",
        "2",
        "programs inherit it",
    ),
];

/// Folders as an image may bring them: writable for everybody.
fn leave_open(upper: &Path, folder: &str) {
    let path = upper.join(folder);
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(path.join("file"), "theirs").unwrap();
    let above = fs::metadata(upper.parent().unwrap().join("workspace")).unwrap();
    chown(path.join("file"), Some(above.uid()), Some(above.gid())).unwrap();
}

#[tokio::test]
async fn what_is_not_the_agents_is_for_reading_whatever_its_permissions_say() {
    if version() < 2 {
        return;
    }
    let host = Host::new();
    let id = host.id();
    let volume = host.sandboxes.create_volume(id, limits().disk_bytes).await.unwrap();
    let upper = volume.workspace().parent().unwrap().join("upper");
    for folder in ["usr/share/left-open", "usr/local/cache", "go"] {
        leave_open(&upper, folder);
    }
    let sandbox = host.start(id).await;
    let bits =
        say(&sandbox, "stat -c %a:%U /usr/share/left-open /usr/share/left-open/file; cat /usr/share/left-open/file")
            .await;
    assert_eq!(bits, "777:nobody\n644:agent\ntheirs", "permissions would allow it");
    all_fail(&sandbox, ATTEMPTS, &[]).await;
    // What an image leaves open where caches are is open: it lies on the sandbox's own disk.
    for folder in ["/usr/local/cache", "/go"] {
        let work = format!(
            "cd {folder} && echo new > file && mkdir d && mv file d/ && ln d/file d/linked && rm -r d && echo done"
        );
        assert_eq!(say(&sandbox, &work).await, "done\n", "{folder}");
    }
}

#[tokio::test]
async fn the_walls_are_told_as_they_are() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let landlock = if version() < 2 { 0 } else { version() };
    let walls = Walls { filter: true, no_new_privileges: true, capabilities: 0, landlock };
    assert_eq!(sandbox.walls().await.unwrap(), walls);
}

/// Somebody outside the wall who listens under an abstract name in the sandbox's own network: only the server could.
#[tokio::test]
async fn abstract_sockets_of_somebody_outside_are_out_of_reach() {
    if version() < 6 {
        return;
    }
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let pid = fs::read_to_string(host.dir_of(sandbox.id()).join("pid")).unwrap();
    let space = File::open(format!("/proc/{pid}/ns/net")).unwrap();
    let outside = std::thread::spawn(move || {
        nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        UnixListener::bind_addr(&SocketAddr::from_abstract_name("outside").unwrap()).unwrap()
    });
    let _outside = outside.join().unwrap();
    let knock = "import socket, errno\ns = socket.socket(socket.AF_UNIX)\nprint(errno.errorcode.get(s.connect_ex('\\0outside'), 'reached'))\n\
                 own = socket.socket(socket.AF_UNIX); own.bind('\\0own'); own.listen()\nprint(socket.socket(socket.AF_UNIX).connect_ex('\\0own'))";
    assert_eq!(
        say(&sandbox, &format!("grep -c @outside /proc/net/unix; python3 - <<'E'\n{knock}\nE")).await,
        "1\nEPERM\n0\n"
    );
}

/// What builds do with files: none of it may meet the wall.
#[tokio::test]
async fn work_does_not_meet_the_wall() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    for place in ["/workspace", "/home/agent", "/tmp", "/var/tmp", "/dev/shm"] {
        let script = format!(
            "set -e; cd {place}; mkdir -p a/b c; echo x > a/b/f; ln a/b/f c/linked; mv a/b/f c/moved; ln -s c/moved s; \
             mkfifo p; truncate -s 100 c/moved; : > c/moved; cp /bin/true c/run; ./c/run; mv c/run a/b/; a/b/run; mv a d; rm -r d c s p; \
             python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.bind('{place}/sock')\"; rm sock; echo done"
        );
        assert_eq!(say(&sandbox, &script).await, "done\n", "{place}");
    }
    let devices = "set -e; echo x > /dev/null; head -c 4 /dev/urandom | wc -c; head -c 2 /dev/zero > /tmp/z; echo out > /dev/stdout; echo err > /dev/stderr; \
                   echo fd > /dev/fd/1; cat < /dev/null; cat <(echo sub); cat <<< here; \
                   python3 -c \"import os, termios; m, s = os.openpty(); print(os.isatty(s), termios.tcgetattr(s)[3] != 0, os.ttyname(s)[:9])\"";
    assert_eq!(say(&sandbox, devices).await, "4\nout\nerr\nfd\nsub\nhere\nTrue True /dev/pts/\n");
    let git = "set -e; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b; \
               git init -q r; cd r; mkdir d; for i in $(seq 50); do echo $i > d/$i; done; git add .; git commit -qm one; git mv d e; git commit -qm two; \
               git gc -q; git worktree add -q ../w HEAD~1; git clone -q . ../clone; git -C ../clone log --oneline | wc -l; ls ../w";
    assert_eq!(say(&sandbox, git).await, "2\nd\n");
    let node = "set -e; mkdir -p n/lib && cd n; echo '{\"name\":\"lib\",\"version\":\"1.0.0\",\"main\":\"i.js\"}' > lib/package.json; echo 'module.exports = 41' > lib/i.js; \
                echo '{\"name\":\"n\",\"version\":\"1.0.0\",\"dependencies\":{\"lib\":\"file:./lib\"}}' > package.json; \
                npm install --offline --no-audit --no-fund --silent; npm pack --silent ./lib; \
                node -e \"const w = require('worker_threads'); new w.Worker('process.exit(0)', { eval: true }).on('exit', () => console.log(require('lib') + 1))\"";
    assert_eq!(say(&sandbox, node).await, "lib-1.0.0.tgz\n42\n");
    let python = "set -e; python3 - <<'E'\nimport multiprocessing, subprocess, sys, tempfile, os, shutil\n\
                  with multiprocessing.Pool(2) as pool: print(sum(pool.map(abs, range(10))), flush=True)\n\
                  with tempfile.TemporaryDirectory() as d:\n    open(d + '/m.py', 'w').write('print(7)'); subprocess.run([sys.executable, '-m', 'compileall', '-q', d], check=True)\n    subprocess.run([sys.executable, d + '/m.py'], check=True)\nE";
    assert_eq!(say(&sandbox, python).await, "45\n7\n");
}
