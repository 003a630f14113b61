//! What runs in a sandbox sees nothing of the host and of other tasks, has no rights, and leaves nothing behind.
//!
//! Every probe goes the way of an agent: a tool call of the model, through the server, into a real sandbox.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::time::Duration;

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{Containers, Limits, SandboxConfig, SandboxSpec, Sandboxes};
use serde_json::{Value, json};

use crate::harness::{House, PROGRAM, Setup, bash, count, done, images, processes_of};

/// A task's conversation: these turns for the tasks whose sentence holds this word.
fn talk(word: &str, turns: Value) -> Value {
    json!({ "match": word, "turns": turns })
}

/// What the tools of a task answered, in order.
async fn outputs(house: &House, id: &str) -> Vec<String> {
    let events = house.events(id).await;
    let finished = events.iter().filter(|event| event["type"] == "tool-finished");
    finished.map(|event| event["data"]["output"].as_str().unwrap().to_owned()).collect()
}

/// Runs one probe as a task's only tool call, on a server with this variable; answers what it printed.
async fn probe(variable: (&str, &str), command: &str) -> (House, String) {
    let turns = json!([bash(command), done()]);
    let house = Setup::new(json!([talk("", turns)])).environment(variable.0, variable.1).open().await;
    let id = house.submit(json!({})).await;
    house.ended(&id).await;
    let said = outputs(&house, &id).await.remove(0);
    (house, said)
}

/// The host's own IPv4 addresses, as the kernel's routing table has them.
fn own_addresses() -> BTreeSet<Ipv4Addr> {
    let table = fs::read_to_string("/proc/net/fib_trie").unwrap();
    let lines: Vec<&str> = table.lines().collect();
    let local = lines.windows(2).filter(|two| two[1].contains("/32 host LOCAL"));
    local.filter_map(|two| two[0].trim().strip_prefix("|-- ")?.parse().ok()).collect()
}

/// Tries every way out that it is told, and prints what came of each.
const KNOCK: &str = r#"
import json, socket, sys
def attempt(family, kind, address, word=b"x"):
    try:
        s = socket.socket(family, kind)
        s.settimeout(3)
        s.connect(address)
        s.send(word)
        if kind == socket.SOCK_DGRAM and family != socket.AF_UNIX:
            s.recv(1)
        return "reached"
    except OSError as error:
        return type(error).__name__ + " " + str(error)
    finally:
        try: s.close()
        except Exception: pass
asked = json.loads(open("/workspace/asked.json").read())
for host, port in asked["tcp"]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    print("tcp", host, port, attempt(family, socket.SOCK_STREAM, (host, port)))
for host, port in asked["udp"]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    print("udp", host, port, attempt(family, socket.SOCK_DGRAM, (host, port)))
for name in asked["unix"]:
    print("unix", name.replace("\0", "@"), attempt(socket.AF_UNIX, socket.SOCK_STREAM, name))
for name in ["example.com", "localhost.localdomain", "metadata.google.internal", "host.docker.internal"]:
    try: print("dns", name, "reached" if socket.getaddrinfo(name, 80) else "")
    except OSError as error: print("dns", name, error)
for family, kind in [("AF_PACKET", "SOCK_RAW"), ("AF_INET", "SOCK_RAW"), ("AF_VSOCK", "SOCK_STREAM"), ("AF_ALG", "SOCK_SEQPACKET"), ("AF_BLUETOOTH", "SOCK_RAW"), ("AF_CAN", "SOCK_RAW")]:
    try: socket.socket(getattr(socket, family), getattr(socket, kind)); print("socket", family, "reached")
    except (OSError, AttributeError) as error: print("socket", family, error)
print("interfaces", [name for _, name in socket.if_nameindex()])
print("routes", len(open("/proc/net/route").readlines()) - 1)
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
print("own loopback", attempt(socket.AF_INET, socket.SOCK_STREAM, s.getsockname()))
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_loopback_is_reachable() {
    // Whoever gets through is noticed here, too.
    let listeners =
        ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"].map(|at| TcpListener::bind(at).expect("an address of the host"));
    let echo = UdpSocket::bind("0.0.0.0:0").unwrap();
    let name = format!("orchestra-isolation-{}", std::process::id());
    let hidden = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let plain = UnixListener::bind(&path).unwrap();
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
    }
    echo.set_nonblocking(true).unwrap();
    hidden.set_nonblocking(true).unwrap();
    plain.set_nonblocking(true).unwrap();
    let [loopback, any, six] = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());
    let addresses = own_addresses();
    assert!(addresses.contains(&Ipv4Addr::LOCALHOST), "{addresses:?}");

    let turns = json!([
        { "tools": [{ "name": "read", "input": { "path": "/proc/net/dev" } }] },
        { "tools": [{ "name": "write", "input": { "path": "knock.py", "content": KNOCK } }] },
        bash("python3 knock.py"),
        done(),
    ]);
    let house = Setup::new(json!([talk("", turns)])).open().await;
    let server = house.api.base.trim_start_matches("http://").rsplit_once(':').unwrap();
    let mut tcp: Vec<(String, u16)> = vec![
        ("127.0.0.1".into(), loopback),
        ("127.0.0.1".into(), any),
        (server.0.into(), server.1.parse().unwrap()),
        ("::1".into(), six),
        ("169.254.169.254".into(), 80),
        ("fd00:ec2::254".into(), 80),
        ("1.1.1.1".into(), 443),
        ("8.8.8.8".into(), 53),
        ("140.82.121.3".into(), 443),
        ("10.0.0.1".into(), 22),
        ("172.17.0.1".into(), 2375),
        ("192.168.1.1".into(), 80),
        ("2606:4700:4700::1111".into(), 443),
        ("0.0.0.0".into(), any),
    ];
    tcp.extend(addresses.iter().map(|address| (address.to_string(), any)));
    let udp = echo.local_addr().unwrap().port();
    let asked = json!({
        "tcp": tcp,
        "udp": [("8.8.8.8", 53), ("127.0.0.1", udp), ("169.254.169.254", 53), ("255.255.255.255", 67), ("224.0.0.251", 5353)],
        "unix": [format!("\0{name}"), path.display().to_string(), "/run/docker.sock", "/var/run/dbus/system_bus_socket"],
    });
    // The file comes with the repository: what the script says was fixed before the ports were known.
    house.remotes.add("asked.json", &asked.to_string());
    let id = house.submit(json!({})).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let said = outputs(&house, &id).await;
    let knocks: Vec<&str> = said[2].lines().collect();
    let attempts = tcp.len() + 5 + 4 + 4 + 6;
    assert_eq!(knocks.len(), attempts + 4, "each attempt has its line:\n{}", said[2]);
    for line in &knocks[..attempts] {
        assert!(!line.contains("reached"), "{line}");
    }
    assert_eq!(
        knocks[attempts..attempts + 3],
        ["interfaces ['lo']", "routes 0", "own loopback reached"],
        "{}",
        said[2]
    );
    for listener in &listeners {
        assert!(listener.accept().is_err(), "somebody came through to {listener:?}");
    }
    assert!(echo.recv(&mut [0; 1]).is_err() && hidden.accept().is_err() && plain.accept().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_and_every_tool_is_without_rights() {
    let read = |path: &str| json!({ "tools": [{ "name": "read", "input": { "path": path } }] });
    let grep = json!({ "tools": [{ "name": "grep", "input": { "pattern": "Cap|Seccomp|NoNew|Groups", "path": "/proc/self/status" } }] });
    // What the server itself runs in the sandbox for the diff and the commit: a git that writes down its rights first.
    let spy = "mkdir -p ~/.local/bin && printf '#!/bin/sh\\ncat /proc/self/status >> /workspace/spied\\nexec /usr/bin/git \"$@\"\\n' \
               > ~/.local/bin/git && chmod +x ~/.local/bin/git; command -v git";
    let turns = json!([
        bash("cat /proc/self/status; (setsid sh -c 'cat /proc/self/status' &) ; sleep 0.3"),
        read("/proc/self/status"),
        grep,
        bash(
            "readlink /proc/self/ns/user /proc/self/ns/pid /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts /proc/self/ns/cgroup; cat /proc/self/uid_map; ls /proc/self/fd | wc -l"
        ),
        bash(spy),
        done(),
    ]);
    let house = Setup::new(json!([talk("", turns)])).open().await;
    let id = house.submit(json!({})).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let said = outputs(&house, &id).await;
    let mut statuses = vec![said[0].clone(), said[1].clone(), said[2].clone()];
    let branch = task["branch"].as_str().unwrap();
    statuses.push(house.remotes.file(branch, "spied"));
    for (number, status) in statuses.iter().enumerate() {
        let values = |name: &str| -> BTreeSet<String> {
            let lines = status.lines().filter_map(|line| line.split_once(&format!("{name}:")));
            lines.map(|(_, value)| value.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        let only = |value: &str| BTreeSet::from([value.to_owned()]);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(values(set), only("0000000000000000"), "{number}: {status}");
        }
        assert_eq!(values("Seccomp"), only("2"), "{number}: {status}");
        assert_eq!(values("NoNewPrivs"), only("1"), "{number}: {status}");
        assert_eq!(values("Groups"), only(""), "{number}: {status}");
    }
    let mut lines = said[3].lines();
    for space in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let hosts = fs::read_link(format!("/proc/self/ns/{space}")).unwrap().display().to_string();
        let inside = lines.next().unwrap();
        assert!(inside.starts_with(space) && inside != hosts, "{space}: {inside}");
    }
    let map: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert!(map[0] == "0" && map[1] != "0", "user 0 of the sandbox is not the host's: {map:?}");
    assert_eq!(lines.next().unwrap().trim(), "4", "no descriptor but the usual ones and the listing's own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hosts_files_processes_and_environment_are_not_visible() {
    let dir = tempfile::tempdir().unwrap();
    let canary = "canary-of-the-host-7291";
    fs::write(dir.path().join("canary"), canary).unwrap();
    let mut neighbour =
        tokio::process::Command::new("sleep").arg("600").env("NEIGHBOUR", canary).kill_on_drop(true).spawn().unwrap();
    let shadow = fs::read_to_string("/etc/shadow").unwrap();
    let here = dir.path().display().to_string();
    // The pattern does not match itself: commands are visible to what they start.
    let command = format!(
        "echo A; cat {here}/canary /proc/1/root{here}/canary /proc/self/root{here}/canary /proc/1/cwd/../..{here}/canary 2>&1 | grep -c 'canary-of-the-hos[t]'; \
         echo B; cat /etc/shadow /etc/gshadow /root/.ssh/* /proc/1/environ /proc/1/mem 2>/dev/null | wc -c; \
         echo C; grep -la 'canary-of-the-hos[t]' /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | wc -l; \
         echo D; ls -d /proc/[0-9]* | wc -l; \
         echo E; env | cut -d= -f1 | sort | tr '\\n' ' '; echo; \
         echo F; cat /proc/self/mountinfo | grep -c -e '{here}' -e orchestra; \
         echo G; cat /proc/sys/kernel/hostname; \
         echo H; for d in /dev/sda /dev/vda /dev/mem /dev/kmem /dev/kmsg /dev/loop0 /dev/loop-control /dev/fuse /dev/kvm /proc/kcore /proc/sysrq-trigger /sys/kernel/debug; do head -c 1 $d 2>/dev/null | wc -c; done | sort -u | tr '\\n' ' '; echo; \
         echo I; for f in /usr/bin/x /etc/x /bin/x /orch/init /proc/sys/kernel/core_pattern /sys/fs/cgroup/x /x; do (echo x > $f) 2>/dev/null && echo wrote $f; done; \
         echo J; (mount -t tmpfs x /mnt; chroot / true; unshare -r true; mknod /tmp/d b 7 0; nsenter -t 1 -a true; su -c id) >/dev/null 2>&1 && echo allowed; \
         echo K"
    );
    let (house, said) = probe(("HOST_CANARY", canary), &command).await;
    let part = |from: &str, to: &str| {
        let start = said.find(&format!("{from}\n")).unwrap_or_else(|| panic!("{from}: {said}")) + from.len() + 1;
        let end = said[start..].find(&format!("{to}\n")).unwrap_or_else(|| panic!("{to}: {said}"));
        said[start..start + end].trim().to_owned()
    };
    assert_eq!(part("A", "B"), "0", "a file of the host");
    assert_eq!(part("B", "C"), "0", "shadow files and the first process");
    assert_eq!(part("C", "D"), "0", "environments and command lines");
    // The first process, the shell, and what counts.
    assert!(part("D", "E").parse::<u32>().unwrap() <= 5, "{said}");
    let names: BTreeSet<String> = part("E", "F").split(' ').map(str::to_owned).collect();
    for (name, _) in std::env::vars() {
        let ordinary = [
            "HOME", "PATH", "PWD", "SHLVL", "LANG", "LC_ALL", "TERM", "USER", "SHELL", "_", "OLDPWD", "LOGNAME",
            "TMPDIR", "CI",
        ];
        assert!(!names.contains(&name) || ordinary.contains(&&*name), "{name} of the host: {said}");
    }
    assert!(!names.contains("HOST_CANARY"), "{said}");
    assert_eq!(part("F", "G"), "0", "paths of the host in the mount list");
    assert_ne!(part("G", "H"), fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "the host's name");
    assert_eq!(part("H", "I"), "0", "devices and kernel files");
    assert_eq!(part("I", "J"), "", "places that are not the task's to write");
    assert_eq!(part("J", "K"), "", "what needs a right");
    assert_eq!(fs::read_to_string("/etc/shadow").unwrap(), shadow);
    assert!(!said.contains(canary), "{said}");
    let _ = neighbour.kill().await;
    house.nothing_left().await;
}

/// Leaves a mark in every place that two processes of one machine could share, and waits.
const LEAVE: &str = r#"
import ctypes, os, socket, time
for place in ["/workspace/mark", "/tmp/mark", "/dev/shm/mark", "/var/tmp/mark", os.path.expanduser("~/mark"), "/run/mark"]:
    try: open(place, "w").write("mark-of-the-other-task")
    except OSError: pass
tcp = socket.socket(); tcp.bind(("127.0.0.1", 5555)); tcp.listen()
name = socket.socket(socket.AF_UNIX); name.bind("\0mark-of-the-other-task"); name.listen()
libc = ctypes.CDLL(None, use_errno=True)
shm = libc.shmget(4711, 4096, 0o1666)
libc.msgget(4711, 0o1666); libc.semget(4711, 1, 0o1666)
rt = ctypes.CDLL("librt.so.1", use_errno=True)
rt.mq_open(b"/mark", os.O_CREAT | os.O_RDWR, 0o666, None)
print("left", flush=True)
time.sleep(600)
"#;

/// Looks for such a mark in every place.
const LOOK: &str = r#"
import ctypes, os, socket
found = []
for place in ["/workspace/mark", "/tmp/mark", "/dev/shm/mark", "/var/tmp/mark", os.path.expanduser("~/mark"), "/run/mark"]:
    if os.path.exists(place): found.append(place)
for address in [("127.0.0.1", 5555), "\0mark-of-the-other-task"]:
    s = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    if s.connect_ex(address) == 0: found.append(repr(address))
libc = ctypes.CDLL(None, use_errno=True)
if libc.shmget(4711, 0, 0) >= 0: found.append("shared memory")
if libc.msgget(4711, 0) >= 0: found.append("message queue")
if libc.semget(4711, 0, 0) >= 0: found.append("semaphore")
rt = ctypes.CDLL("librt.so.1", use_errno=True)
if rt.mq_open(b"/mark", os.O_RDONLY) >= 0: found.append("posix queue")
for pid in filter(str.isdigit, os.listdir("/proc")):
    try: text = open(f"/proc/{pid}/cmdline").read()
    except OSError: continue
    if "leave.py" in text: found.append("process " + pid)
for line in open("/proc/net/unix"):
    if "mark-of-the" in line: found.append("socket list")
print("found", found)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tasks_at_once_do_not_see_each_other() {
    let write = |path: &str, content: &str| json!({ "tools": [{ "name": "write", "input": { "path": path, "content": content } }] });
    let script = json!([
        talk(
            "leave",
            json!([
                write("leave.py", LEAVE),
                bash(
                    "(python3 leave.py > /tmp/said 2>&1 &); until grep -q left /tmp/said; do sleep 0.05; done; cat /tmp/said"
                ),
                write("look.py", LOOK),
                bash("python3 look.py"),
                bash("sleep 600"),
                done()
            ])
        ),
        talk(
            "look",
            json!([
                write("look.py", LOOK),
                bash("python3 look.py; ls -A /workspace ~ /tmp /dev/shm /var/tmp | tr '\\n' ' '"),
                done()
            ])
        ),
    ]);
    let house = Setup::new(script).open().await;
    let one = house.submit(json!({ "task": "leave marks" })).await;
    // Its last tool call is running: everything it leaves is in place.
    house
        .event_after(&one, None, |frame| {
            frame.kind == "tool-called" && frame.data["data"]["input"]["command"] == "sleep 600"
        })
        .await;
    let seen_by_itself = outputs(&house, &one).await;
    for sign in
        ["/workspace/mark", "/tmp/mark", "/dev/shm/mark", "5555", "mark-of-the-other-task", "shared memory", "process"]
    {
        assert!(seen_by_itself[3].contains(sign), "the probe finds what is there: {sign} in {}", seen_by_itself[3]);
    }
    let two = house.submit(json!({ "task": "look around" })).await;
    let task = house.ended(&two).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!(house.task(&one).await["status"], "running", "both were there at the same time");
    let seen = outputs(&house, &two).await;
    assert!(seen[1].starts_with("found []\n"), "{}", seen[1]);
    assert!(!seen[1].contains("mark") && !seen[1].contains("leave.py"), "{}", seen[1]);
    let traces = house.traces();
    assert!(traces.iter().all(|trace| !trace.contains("folder") || !trace.contains(&two)), "{traces:#?}");
    let (status, _) = house.api.post(&format!("/v1/tasks/{one}/cancel"), &json!({})).await;
    assert_eq!(status, 202);
    assert_eq!(house.ended(&one).await["status"], "cancelled");
    house.nothing_left().await;
}

/// The network namespaces of everything that runs on this machine.
fn network_namespaces() -> BTreeSet<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.path().join("ns/net")).ok()?.display().to_string())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_of_tasks_that_finished_failed_were_cancelled_or_crashed() {
    let linger = "(setsid sleep 1000 >/dev/null 2>&1 &); (nohup sh -c 'while :; do sleep 1; done' >/dev/null 2>&1 &); ln -s / /workspace/host-link 2>/dev/null; echo x > x; rm host-link; readlink /proc/self/ns/net";
    let script = json!([
        talk("finish", json!([bash(linger), done()])),
        talk("fail", json!([bash(linger), bash("rm -rf .git"), done()])),
        talk("linger", json!([bash(linger), bash("sleep 600"), done()])),
        talk("crash", json!([bash(linger), bash("sleep 3; echo slept"), done()])),
    ]);
    let mut house = Setup::new(script).open().await;
    let mut ids = Vec::new();
    for word in ["finish", "fail", "linger", "crash"] {
        ids.push(house.submit(json!({ "task": word })).await);
    }
    let slow = |frame: &crate::harness::Frame| {
        frame.kind == "tool-called"
            && frame.data["data"]["input"]["command"].as_str().is_some_and(|text| text.starts_with("sleep"))
    };
    house.event_after(&ids[2], None, slow).await;
    house.event_after(&ids[3], None, slow).await;
    let inside = [outputs(&house, &ids[2]).await.remove(0), outputs(&house, &ids[3]).await.remove(0)];
    let inside = inside.map(|text| text.lines().next().unwrap().to_owned());
    let there = network_namespaces();
    assert!(inside.iter().all(|space| there.contains(space)), "{inside:?} in {there:?}");
    let traces = house.traces();
    for kind in ["process", "mount", "control group", "loop device", "folder"] {
        assert!(traces.iter().filter(|trace| trace.starts_with(kind)).count() >= 2, "two sandboxes: {traces:#?}");
    }
    assert_eq!(house.ended(&ids[0]).await["status"], "succeeded");
    assert_eq!(house.ended(&ids[1]).await["status"], "failed");
    // The server dies, and so does one sandbox's helper, which would have cleared it away.
    house.kill().await;
    let helpers: Vec<i32> = processes_of(&house.data())
        .into_iter()
        .filter(|(_, command)| command.contains("sandbox-helper"))
        .map(|(pid, _)| pid)
        .collect();
    assert_eq!(helpers.len(), 2, "sandboxes outlive the server");
    // SAFETY: a plain system call; the process is a helper of this test's own server.
    assert_eq!(unsafe { libc::kill(helpers[0], libc::SIGKILL) }, 0);
    // And one that no task ever owned, as an earlier crash may leave it.
    let sandboxes = Containers::new(SandboxConfig {
        state_dir: house.data().join("sandboxes"),
        images: images(),
        helper: PROGRAM.into(),
    })
    .unwrap();
    let orphan = SandboxId::from_uuid(uuid::Uuid::now_v7());
    let limits = Limits {
        memory_bytes: 256 << 20,
        disk_bytes: 64 << 20,
        timeout: Duration::from_secs(600),
        ..Limits::default()
    };
    sandboxes.create_volume(orphan, limits.disk_bytes).await.unwrap();
    let spec = SandboxSpec { id: orphan, image: "default".into(), limits, env: Vec::new(), hostname: "sandbox".into() };
    sandboxes.start(&spec).await.unwrap();
    fs::create_dir_all(
        house.data().join("repositories").join(format!("{}.git", SandboxId::from_uuid(uuid::Uuid::now_v7()))),
    )
    .unwrap();
    house.restart().await;
    let (status, _) = house.api.post(&format!("/v1/tasks/{}/cancel", ids[2]), &json!({})).await;
    assert_eq!(status, 202);
    assert_eq!(house.ended(&ids[2]).await["status"], "cancelled");
    let crashed = house.ended(&ids[3]).await;
    assert!(matches!(crashed["status"].as_str(), Some("succeeded" | "failed")), "{crashed:#}");
    house.nothing_left().await;
    let there = network_namespaces();
    assert!(inside.iter().all(|space| !there.contains(space)), "{inside:?} in {there:?}");
    let events = house.events(&ids[3]).await;
    assert!(count(&events, "sandbox-stopped") >= 1);
}
