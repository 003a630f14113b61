//! What a command in a sandbox may not do, and what it cannot see.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use orchestra_runtime::sandbox::{Containers, Exec, SandboxConfig, Sandboxes};
use sha2::{Digest, Sha256};

use crate::host::{Host, images, limits, say, sh, spec, text};

#[tokio::test]
async fn every_command_is_unprivileged() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let status = say(&sandbox, "cat /proc/self/status").await;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_default();
        line.split_once(':').unwrap().1.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("Seccomp"), field("NoNewPrivs"), field("Groups")), ("2".into(), "1".into(), String::new()));
    assert_eq!((field("Uid"), field("Gid")), ("1000 1000 1000 1000".into(), "1000 1000 1000 1000".into()));
    let map = say(&sandbox, "cat /proc/self/uid_map").await;
    let map: Vec<u32> = map.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert!(matches!(map[..], [0, first, 65_536] if first >= 100_000), "{map:?}");
    assert_eq!(say(&sandbox, "ls -l /proc/self/fd | wc -l").await.trim(), "5", "no descriptor beyond the usual ones");
}

/// Calls the kernel directly and prints the error of each attempt.
const ATTEMPTS: &str = r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, number, *arguments):
    result = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if name.startswith("clone") and result == 0:
        os._exit(0)
    print(name, "allowed" if result >= 0 else errno.errorcode[ctypes.get_errno()])
attempt("unshare-user", 272, 0x10000000)
attempt("unshare-net", 272, 0x40000000)
attempt("clone-user", 56, 0x10000000 | 17, 0, 0, 0, 0)
attempt("clone-mount", 56, 0x00020000 | 17, 0, 0, 0, 0)
attempt("clone-net", 56, 0x40000000 | 17, 0, 0, 0, 0)
attempt("clone3", 435, 0, 0)
attempt("setns", 308, 0, 0)
attempt("mount", 165, b"none", b"/tmp", b"tmpfs", 0, 0)
attempt("umount2", 166, b"/tmp", 2)
attempt("pivot_root", 155, b"/tmp", b"/tmp")
attempt("chroot", 161, b"/tmp")
attempt("open_tree", 428, -100, b"/", 0)
attempt("fsopen", 430, b"tmpfs", 0)
attempt("ptrace", 101, 16, 1, 0, 0)
attempt("process_vm_readv", 310, 1, 0, 0, 0, 0, 0)
attempt("bpf", 321, 0, 0, 0)
attempt("perf_event_open", 298, 0, 0, -1, -1, 0)
attempt("io_uring_setup", 425, 1, 0)
attempt("userfaultfd", 323, 0)
attempt("keyctl", 250, 0, -3, 0)
attempt("add_key", 248, b"user", b"x", b"y", 1, -3)
attempt("kexec_load", 246, 0, 0, 0, 0)
attempt("init_module", 175, 0, 0, b"")
attempt("open_by_handle_at", 304, -100, 0, 0)
attempt("settimeofday", 164, 0, 0)
attempt("sethostname", 170, b"x", 1)
attempt("setuid", 105, 0)
attempt("mknod", 133, b"/tmp/dev", 0o20666, 0x103)
attempt("unknown", 999)
"#;

#[tokio::test]
async fn the_dangerous_system_calls_are_refused() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let exec = Exec { argv: vec!["python3".into(), "-".into()], stdin: ATTEMPTS.into(), ..sh("one", "") };
    let said = text(&sandbox.exec(exec, None).await.unwrap());
    assert_eq!(said.lines().count(), ATTEMPTS.matches("\nattempt(").count(), "{said}");
    for line in said.lines() {
        let (name, result) = line.split_once(' ').unwrap();
        let expected = match name {
            // What matches no rule is "not implemented", so that the C library falls back to what is allowed.
            "clone-user" | "clone-mount" | "clone-net" | "clone3" | "unknown" => "ENOSYS",
            _ => "EPERM",
        };
        assert_eq!(result, expected, "{name}");
    }
    // The second wall behind the filter.
    assert_eq!(say(&sandbox, "cat /proc/sys/user/max_user_namespaces").await, "0\n");
}

#[tokio::test]
async fn the_first_process_has_the_filter_too() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    assert_eq!(say(&sandbox, "grep -E '^(Seccomp|NoNewPrivs):' /proc/1/status").await, "NoNewPrivs:\t1\nSeccomp:\t2\n");
}

#[tokio::test]
async fn nothing_starts_without_the_whole_filter() {
    let host = Host::new();
    let refused = async |sandboxes: &Containers, why: &str| {
        let id = host.id();
        let error = sandboxes.start(&spec(id, limits())).await.err().unwrap();
        assert_eq!(error.failure().code.as_str(), "sandbox-start-failed", "{error}");
        assert!(error.to_string().contains("system call filter") && error.to_string().contains(why), "{error}");
        assert!(sandboxes.attach(id).await.unwrap().is_none());
        let left = fs::read_dir("/sys/fs/cgroup/pids").into_iter().flatten().flatten();
        assert_eq!(left.filter(|group| group.file_name().to_string_lossy().ends_with(&id.to_string())).count(), 0);
    };
    let filter = fs::read_dir(host.dir.path().join("filter")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&filter).unwrap();
    fs::write(&filter, &whole[..whole.len() / 2]).unwrap();
    refused(&host.sandboxes, "damaged").await;
    fs::remove_file(&filter).unwrap();
    refused(&host.sandboxes, "cannot be read").await;

    // Not even one that is what its name says, but that the kernel does not take.
    let folder = tempfile::tempdir().unwrap();
    let bad = [0; 8];
    let name: String = Sha256::digest(bad).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    fs::write(folder.path().join(&name), bad).unwrap();
    let helper = folder.path().join("helper");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = sandbox-helper ] || exit 2\nsed -i 's#\"filter\":\"[^\"]*\"#\"filter\":\"{}\"#' \"$2/helper.json\"\nexec {} \"$@\"\n",
        folder.path().join(&name).display(),
        env!("CARGO_BIN_EXE_orchestra-sandbox-helper"),
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = SandboxConfig { state_dir: host.dir.path().into(), images: images(), helper };
    refused(&Containers::new(config).unwrap(), "the kernel refuses").await;

    // A server that starts writes a missing filter anew.
    assert_eq!(say(&host.restarted().start(&spec(host.id(), limits())).await.unwrap(), "echo on").await, "on\n");
}

#[tokio::test]
async fn the_first_process_is_out_of_reach() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let script = "for file in mem environ maps root exe fd/3; do cat /proc/1/$file >/dev/null 2>&1 && echo $file; done; \
                  for signal in KILL TERM STOP INT; do kill -$signal 1; done; echo end";
    assert_eq!(say(&sandbox, script).await, "end\n");
    assert_eq!(say(&sandbox, "echo alive").await, "alive\n");
    assert!(say(&sandbox, "echo x > /orch/init").await.contains("Read-only file system"));
}

#[tokio::test]
async fn only_the_loopback_is_there_and_it_is_its_own() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = |address: &str, port: u16| {
        let family = if address.contains(':') { "AF_INET6" } else { "AF_INET" };
        let code = "import socket,sys,errno\ns=socket.socket(socket.FAMILY); s.settimeout(5)\nprint(errno.errorcode[s.connect_ex(('ADDRESS',PORT))])";
        let code = code.replace("FAMILY", family).replace("ADDRESS", address).replace("PORT", &port.to_string());
        format!("python3 -c \"{code}\"")
    };
    assert_eq!(say(&sandbox, &connect("127.0.0.1", port)).await, "ECONNREFUSED\n", "the host's listener");
    for address in ["8.8.8.8", "169.254.169.254", "10.0.0.1", "192.168.0.1", "2001:4860:4860::8888"] {
        assert_eq!(say(&sandbox, &connect(address, 80)).await, "ENETUNREACH\n", "{address}");
    }
    assert_eq!(say(&sandbox, "tail -n +3 /proc/net/dev | cut -d: -f1").await.trim(), "lo");
    for family in ["AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_BLUETOOTH"] {
        let code =
            format!("import socket\ntry: socket.socket(socket.{family}, socket.SOCK_RAW)\nexcept OSError: print('no')");
        assert_eq!(say(&sandbox, &format!("python3 -c \"{code}\"")).await, "no\n", "{family}");
    }
    let raw = "python3 -c \"import socket\ntry: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\nexcept OSError: print('no')\"";
    assert_eq!(say(&sandbox, raw).await, "no\n");

    // The one way out: a listener that the host binds inside.
    let inside = sandbox.listen(8787).await.unwrap();
    inside.set_nonblocking(false).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = inside.accept().unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(b"pong").unwrap();
        word
    });
    let talk = "exec 3<>/dev/tcp/127.0.0.1/8787; printf ping >&3; head -c 4 <&3";
    assert_eq!(say(&sandbox, talk).await, "pong");
    assert_eq!(&server.join().unwrap(), b"ping");
}

#[tokio::test]
async fn the_host_is_not_visible() {
    let host = Host::new();
    let id = host.id();
    fs::write(host.dir.path().join("secret"), "secret").unwrap();
    let mut spec = spec(id, limits());
    spec.env = vec![("GREETING".into(), "hi".into())];
    let sandbox = host.sandboxes.start(&spec).await.unwrap();
    let path = host.dir.path().display().to_string();
    assert!(say(&sandbox, &format!("cat {path}/secret")).await.contains("No such file"));
    let environment = say(&sandbox, "env; hostname 2>/dev/null || cat /proc/sys/kernel/hostname").await;
    assert!(environment.contains("GREETING=hi") && environment.ends_with("sandbox\n"), "{environment}");
    assert!(!environment.contains("CARGO"), "{environment}");
    let mounts = say(&sandbox, "cat /proc/self/mountinfo").await;
    assert!(!mounts.contains("/sandboxes/") && !mounts.contains("orchestra/images"), "{mounts}");
    // The shell, cat and init; nobody else.
    assert_eq!(say(&sandbox, "set -- /proc/[0-9]*; echo $#").await, "2\n");
    for attempt in ["cat /etc/shadow", "touch /usr/x", "touch /etc/x", "echo 1 > /proc/sysrq-trigger", "ls /root"] {
        let said = say(&sandbox, attempt).await;
        assert!(["denied", "Read-only", "No such file"].iter().any(|no| said.contains(no)), "{attempt}: {said}");
    }
    for file in ["/proc/kcore", "/proc/kallsyms", "/proc/cmdline", "/proc/keys", "/dev/mem", "/dev/loop-control"] {
        assert_eq!(say(&sandbox, &format!("head -c 1 {file} 2>/dev/null | wc -c")).await, "0\n", "{file}");
    }
    assert!(say(&sandbox, "echo x > /proc/sys/kernel/core_pattern").await.contains("Read-only"));
}

#[tokio::test]
async fn two_sandboxes_do_not_see_each_other() {
    let host = Host::new();
    let (one, two) = (host.start(host.id()).await, host.start(host.id()).await);
    let leave = "echo secret > /workspace/f; echo secret > /tmp/f; echo secret > /dev/shm/f; echo secret > ~/f; \
                 echo secret > /var/tmp/f; python3 -c \"import socket,time\ns=socket.socket(socket.AF_UNIX); s.bind(chr(0)+'name'); s.listen()\nprint('bound', flush=True)\ntime.sleep(100)\" &\nsleep 0.3";
    assert_eq!(say(&one, leave).await, "bound\n");
    let look = "cat /workspace/f /tmp/f /dev/shm/f ~/f /var/tmp/f 2>&1 | grep -c secret; cat /proc/[0-9]*/comm | grep -c python; \
                python3 -c \"import socket,errno\nprint(errno.errorcode[socket.socket(socket.AF_UNIX).connect_ex(chr(0)+'name')])\"";
    assert_eq!(say(&one, "cat /workspace/f").await, "secret\n");
    assert_eq!(say(&two, look).await, "0\n0\nECONNREFUSED\n");
    assert_eq!(host.sandboxes.list().await.unwrap().len(), 2);
}
