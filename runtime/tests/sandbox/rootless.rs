//! A server that is not root makes the same sandbox, and says what is weaker. The tests need root, to become somebody else:
//! in a mount namespace of their own, with users and subordinate ids that only exist there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use orchestra_runtime::sandbox::{Exit, Limits, Sandboxes, checks, workspace_owner};

use crate::host::{Host, images, limits, say, sh, text, until};

/// Somebody who exists nowhere else.
const USER: u32 = 51_234;
/// The first of his subordinate ids, in the test where he has some.
const SUBORDINATE: u32 = 700_000_000;
/// Set in the process that is he; says whether he has subordinate ids.
const AS_USER: &str = "ORCHESTRA_TEST_AS_USER";

/// Copies what a shell needs of the image, for him to own: as if he had pulled it himself.
fn image_of_his(to: &Path) {
    let from = fs::canonicalize(images().join("default")).unwrap();
    let script = "cd \"$1\"; mkdir -p \"$2/store\"; tar -c --exclude=./rootfs/usr/local/lib --exclude=node --exclude='python3*' \
                  --exclude=share . | tar -x --no-same-owner -C \"$2/store\"; mkdir -p \"$2/store/rootfs/usr/share\"; \
                  ln -s store \"$2/default\"; chown -hR \"$3\" \"$2\"";
    let copied =
        Command::new("bash").args(["-ec", script, "copy"]).arg(from).arg(to).arg(format!("{USER}:{USER}")).status();
    assert!(copied.unwrap().success());
}

/// Runs the ignored test of this name as that user.
fn as_user(test: &str, subordinate: bool, before: &str) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| dir.path().join(name);
    image_of_his(&at("images"));
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    fs::write(at("passwd"), format!("{passwd}somebody:x:{USER}:{USER}::/nonexistent:/bin/false\n")).unwrap();
    let ids = if subordinate { format!("somebody:{SUBORDINATE}:65536\n") } else { String::new() };
    fs::write(at("subid"), ids).unwrap();
    fs::create_dir(at("tmp")).unwrap();
    chown(at("tmp"), Some(USER), Some(USER)).unwrap();
    // The programs may lie where only root may look.
    let helper = env!("CARGO_BIN_EXE_orchestra-sandbox-helper");
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "touch /etc/subuid /etc/subgid; for file in subuid subgid; do mount --bind {dir}/subid /etc/$file; done; \
         mount --bind {dir}/passwd /etc/passwd; {before} cd /; \
         exec setpriv --reuid {USER} --regid {USER} --groups 4,27 --inh-caps=-all -- {this} --exact rootless::{test} --ignored",
        dir = dir.path().display(),
        this = this.display(),
    );
    assert!(Path::new(helper).exists());
    let run = Command::new("unshare")
        .args(["--mount", "sh", "-ec", &script])
        .env(AS_USER, if subordinate { "subordinate" } else { "alone" })
        .env("TMPDIR", at("tmp"))
        .env("ORCHESTRA_IMAGES", at("images"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&run.stderr));
    // What he left, he could remove: nothing.
    assert_eq!(fs::read_dir(at("tmp")).unwrap().count(), 0);
}

#[test]
fn a_user_with_subordinate_ids_makes_sandboxes() {
    as_user("as_somebody", true, "");
}

#[test]
fn a_user_without_subordinate_ids_makes_sandboxes_with_one_user() {
    as_user("as_somebody", false, "");
}

/// A group of version 2 that belongs to him, as a service manager gives it. What it can limit is up to the host.
#[test]
fn a_delegated_group_of_version_2_is_used() {
    let group = format!("/sys/fs/cgroup/test-{USER}-{}", std::process::id());
    let mounted = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        String::new()
    } else {
        "mount -t cgroup2 none /sys/fs/cgroup;".to_owned()
    };
    let give = format!(
        "{mounted} mkdir {group}; chown -R {USER}:{USER} {group}; trap : EXIT; echo $$ > {group}/cgroup.procs;"
    );
    as_user("with_a_group", true, &give);
    let remove = format!("{mounted} rmdir {group}/* 2>/dev/null; rmdir {group}");
    until_removed(&remove);
}

fn until_removed(script: &str) {
    let start = std::time::Instant::now();
    while !Command::new("unshare").args(["--mount", "sh", "-c", script]).status().unwrap().success() {
        assert!(start.elapsed().as_secs() < 10, "the group is not empty");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_default();
    line.split_once(':').map(|(_, value)| value.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
}

/// What must be so whoever makes a sandbox.
#[tokio::test]
#[ignore = "run by others as a user who is not root"]
async fn as_somebody() {
    let subordinate = std::env::var(AS_USER).unwrap() == "subordinate";
    assert_eq!((nix::unistd::geteuid().as_raw(), workspace_owner()), (USER, (USER, USER)));
    let host = Host::new();
    let id = host.id();
    let lower = host.dir.path().join("lowers/one");
    fs::create_dir_all(lower.join("src")).unwrap();
    fs::write(lower.join("src/lib.rs"), "shared\n").unwrap();
    let volume = host.sandboxes.create_volume(id, 64 << 20).await.unwrap();
    volume.lay("repo", &lower).await.unwrap();
    fs::write(volume.workspace().join("from-the-host"), "hello\n").unwrap();
    let sandbox = host.start(id).await;

    // Nobody inside has a right, as with root.
    let status = say(&sandbox, "cat /proc/self/status").await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!((field(&status, "Seccomp"), field(&status, "NoNewPrivs")), ("2".into(), "1".into()));
    let user = if subordinate { "1000" } else { "0" };
    assert_eq!(field(&status, "Uid"), [user; 4].join(" "));
    if subordinate {
        assert_eq!(field(&status, "Groups"), "", "the user's groups stay outside");
    }
    let map = say(&sandbox, "wc -l < /proc/self/uid_map; cat /proc/sys/user/max_user_namespaces").await;
    assert_eq!(map, if subordinate { "3\n0\n" } else { "1\n0\n" });
    for attempt in
        ["unshare -U true", "unshare -n true", "mount -t tmpfs x /tmp", "chroot /tmp", "mknod /tmp/zero c 1 5"]
    {
        let said = say(&sandbox, &format!("{attempt} && echo allowed")).await;
        assert!(
            !said.contains("allowed") && (said.contains("ermi") || said.contains("superuser")),
            "{attempt}: {said}"
        );
    }

    // Its network is its loopback, and we can be on it.
    let network =
        say(&sandbox, "cat /proc/net/route | wc -l; ls /sys/class/net 2>/dev/null; exec 3<>/dev/tcp/1.1.1.1/53").await;
    assert!(network.starts_with("1\n") && network.contains("unreachable"), "{network}");
    let listener = sandbox.listen(8787).await.unwrap();
    let said = tokio::spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"from outside\n").await.unwrap();
    });
    assert_eq!(say(&sandbox, "cat < /dev/tcp/127.0.0.1/8787").await, "from outside\n");
    said.await.unwrap();
    let held = sandbox.listen(8788).await.unwrap();
    let taken = sandbox.listen(8788).await.unwrap_err().to_string();
    assert!(taken.contains("in use"), "{taken}");
    drop(held);

    // It sees no other process and none of the host's files.
    let processes = say(&sandbox, "ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm").await;
    let (count, first) = processes.split_once('\n').unwrap();
    assert!(count.parse::<u32>().unwrap() < 8 && first.trim() == "init", "{processes}");
    assert!(say(&sandbox, &format!("ls {}", host.dir.path().display())).await.contains("No such file"));
    assert!(
        say(&sandbox, "cat /proc/kallsyms | wc -c; cat /proc/kcore; echo 1 > /proc/sys/kernel/core_pattern")
            .await
            .contains("0\n")
    );

    // Files, on both sides; the shared ones stay.
    let files = say(
        &sandbox,
        "cd /workspace; cat from-the-host; echo x >> from-the-host; echo new > new; echo y >> repo/src/lib.rs; mv repo/src repo/moved; \
         cat repo/moved/lib.rs; stat -c %u new from-the-host repo/moved/lib.rs ~; echo o > /var/tmp/over; cat /var/tmp/over; \
         mkdir -p closed/deep; echo z > closed/deep/z; chmod 0 closed/deep closed; ln -s / root",
    )
    .await;
    let owner = format!("{user}\n").repeat(4);
    assert_eq!(files, format!("hello\nshared\ny\n{owner}o\n"));
    assert_eq!(fs::read_to_string(volume.workspace().join("from-the-host")).unwrap(), "hello\nx\n");
    assert_eq!(fs::metadata(volume.workspace().join("new")).unwrap().uid(), USER);
    assert_eq!(fs::read_to_string(lower.join("src/lib.rs")).unwrap(), "shared\n");

    // Commands end with all that they started, and it is found again by another server.
    let slow = sh("slow", "setsid sleep 1000 & sleep 1000");
    let outcome = sandbox
        .exec(orchestra_runtime::sandbox::Exec { timeout: std::time::Duration::from_secs(1), ..slow }, None)
        .await;
    assert_eq!(outcome.unwrap().exit, Exit::TimedOut);
    let outcome =
        host.restarted().attach(id).await.unwrap().unwrap().exec(sh("code", "echo again; exit 7"), None).await.unwrap();
    assert_eq!((outcome.exit, text(&outcome)), (Exit::Code(7), "again\n".into()));

    // Killed and started again, its work is there; destroyed, nothing is.
    let first: i32 = fs::read_to_string(host.dir_of(id).join("pid")).unwrap().parse().unwrap();
    sandbox.kill().await.unwrap();
    until("its first process is gone", || !Path::new(&format!("/proc/{first}")).exists()).await;
    let again = host.start(id).await;
    assert_eq!(say(&again, "cat /workspace/new").await, "new\n");
    // A helper that is killed takes its sandbox along: without groups nobody else would find it.
    let first: i32 = fs::read_to_string(host.dir_of(id).join("pid")).unwrap().parse().unwrap();
    host.sandboxes.destroy(id).await.unwrap();
    until("its first process is gone", || !Path::new(&format!("/proc/{first}")).exists()).await;
    assert!(!host.dir_of(id).exists());
    assert!(host.sandboxes.list().await.unwrap().is_empty());

    // The wall clock.
    let id = host.id();
    let short = Limits { timeout: std::time::Duration::from_secs(2), ..limits() };
    let sandbox = host.start_with(id, short).await;
    let error = sandbox.exec(sh("long", "sleep 1000"), None).await.unwrap_err();
    assert_eq!(error.failure().code.as_str(), "sandbox-timeout", "{error}");
    let helper_of = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        field(&status, "PPid").parse::<i32>().unwrap()
    };
    let id = host.id();
    host.start(id).await;
    let first = fs::read_to_string(host.dir_of(id).join("pid")).unwrap();
    let helper = nix::unistd::Pid::from_raw(helper_of(&first));
    nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap();
    until("it died with its helper", || !PathBuf::from(format!("/proc/{first}")).exists()).await;
    for id in host.sandboxes.list().await.unwrap() {
        host.sandboxes.destroy(id).await.unwrap();
    }

    let doctor = checks();
    let check =
        |name: &str| doctor.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}"));
    assert!(check("root").detail.contains("no disk of limited size"), "{:?}", check("root"));
    assert_eq!(check("subordinate ids").ok, subordinate);
    assert!(check("overlay for users").ok, "{:?}", check("overlay for users"));
}

#[tokio::test]
#[ignore = "run by another as a user with a control group"]
async fn with_a_group() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    let seen = say(&sandbox, "cat /proc/self/cgroup").await;
    assert!(
        seen.contains("0::/\n") && seen.lines().all(|line| line.ends_with(":/")),
        "it sees itself at the root: {seen}"
    );
    let first = fs::read_to_string(host.dir_of(id).join("pid")).unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let base = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap().trim_end_matches("/server").to_owned();
    let path = fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap();
    let path = path.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    assert!(path.starts_with(&format!("{base}/orchestra.")) && path.ends_with(&id.to_string()), "{path}");
    let group = Path::new("/sys/fs/cgroup").join(&path[1..]);
    let given = fs::read_to_string(Path::new("/sys/fs/cgroup").join(&base[1..]).join("cgroup.controllers")).unwrap();
    for (controller, file, value) in [
        ("memory", "memory.max", (256u64 << 20).to_string()),
        ("memory", "memory.swap.max", "0".to_owned()),
        ("pids", "pids.max", "128".to_owned()),
        ("cpu", "cpu.max", "100000 100000".to_owned()),
    ] {
        let is_given = given.split_whitespace().any(|name| name == controller);
        match fs::read_to_string(group.join(file)) {
            Ok(set) => assert_eq!(set.trim(), value, "{file}"),
            Err(_) => assert!(!is_given || file.contains("swap"), "{file} could be set and is not there"),
        }
    }
    host.sandboxes.destroy(id).await.unwrap();
    assert!(!group.exists());
    assert!(!Path::new(&format!("/proc/{first}")).exists());
}
