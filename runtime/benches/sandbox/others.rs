//! The tools beside ours, each told to make the same container: `crun` and `runc` from one OCI description, `bwrap` from
//! arguments, with its control groups made by hand.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, setrlimit};
use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{IdRange, container_description, seccomp_profile};
use serde_json::{Value, json};

use crate::spec;

/// What the containers of the other tools are made of.
pub struct Parts {
    /// The image's root file system.
    pub lower: PathBuf,
    /// Our first process's program, which they get mounted and do not run.
    pub init: PathBuf,
    /// The compiled system call filter.
    pub filter: PathBuf,
    /// Where `crun` and `runc` keep their state: in memory, as by default.
    pub state: PathBuf,
}

/// One container of another tool: its name, its directory, its disk.
pub struct Place {
    pub name: String,
    pub dir: PathBuf,
    pub volume: PathBuf,
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// The number under which `bwrap` is handed the filter.
const FILTER_FD: i32 = 9;
/// Where the version 1 trees are that a sandbox's limits need.
const TREES: [&str; 4] = ["memory", "pids", "cpu", "devices"];

fn mount_root(parts: &Parts, place: &Place) -> PathBuf {
    let rootfs = place.dir.join("rootfs");
    fs::create_dir(&rootfs).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        parts.lower.display(),
        place.volume.join("upper").display(),
        place.volume.join("work").display()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(Some("overlay"), &rootfs, Some("overlay"), flags, Some(&*options)).unwrap();
    rootfs
}

/// Runs the tool until its container says its first word, and waits for its end.
fn first_word(mut command: Command, start: Instant) -> Duration {
    command.env_clear().env("PATH", PATH).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut word = [0; 3];
    let read = child.stdout.as_mut().unwrap().read_exact(&mut word);
    let cold = start.elapsed();
    let output = child.wait_with_output().unwrap();
    assert!(read.is_ok() && &word == b"ok\n", "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    cold
}

/// Our container for the others: paths of its own, the command instead of our first process, the filter's source.
fn description(parts: &Parts, place: &Place, rootfs: &Path) -> Value {
    let id = SandboxId::from_uuid(uuid::Uuid::nil());
    let mut container = container_description(&spec(id), &format!("/{}", place.name), IdRange::SHARED);
    container["linux"]["seccomp"] = seccomp_profile();
    container["root"]["path"] = json!(rootfs);
    // The second wall behind the filter, which the others do not know.
    container["linux"].as_object_mut().unwrap().remove("sysctl");
    container["process"]["args"] = json!(["bash", "-lc", "echo ok"]);
    for mount in container["mounts"].as_array_mut().unwrap() {
        match mount["destination"].as_str().unwrap() {
            "/workspace" => mount["source"] = json!(place.volume.join("workspace")),
            "/home/agent" => mount["source"] = json!(place.volume.join("home")),
            "/orch/init" => mount["source"] = json!(parts.init),
            _ => {}
        }
    }
    container
}

/// `crun run` or `runc run`.
pub fn oci(program: &str, parts: &Parts, place: &Place) -> Duration {
    let start = Instant::now();
    let rootfs = mount_root(parts, place);
    let description = description(parts, place, &rootfs);
    fs::write(place.dir.join("config.json"), serde_json::to_vec(&description).unwrap()).unwrap();
    let mut command = Command::new(program);
    command.arg("--root").arg(parts.state.join(program)).args(["run", "--bundle"]).arg(&place.dir).arg(&place.name);
    let cold = first_word(command, start);
    umount2(&rootfs, MntFlags::empty()).unwrap();
    cold
}

/// The limits of the description, written by hand into version 1 groups.
fn make_groups(name: &str, resources: &Value) -> Vec<PathBuf> {
    let groups = TREES.map(|tree| Path::new("/sys/fs/cgroup").join(tree).join(name));
    let [memory, pids, cpu, _] = &groups;
    for group in &groups {
        fs::create_dir(group).unwrap();
    }
    let set = |group: &Path, file: &str, value: &Value| fs::write(group.join(file), value.to_string()).unwrap();
    set(memory, "memory.limit_in_bytes", &resources["memory"]["limit"]);
    if let Some(swap) = resources["memory"].get("swap") {
        set(memory, "memory.memsw.limit_in_bytes", swap);
    }
    set(pids, "pids.max", &resources["pids"]["limit"]);
    set(cpu, "cpu.cfs_period_us", &resources["cpu"]["period"]);
    set(cpu, "cpu.cfs_quota_us", &resources["cpu"]["quota"]);
    groups.into()
}

/// `bwrap` with the same namespaces, mounts, filter and limits. It maps one user only.
pub fn bwrap(parts: &Parts, place: &Place) -> Duration {
    let start = Instant::now();
    let rootfs = mount_root(parts, place);
    let container = container_description(&spec(SandboxId::from_uuid(uuid::Uuid::nil())), "/", IdRange::SHARED);
    let groups = make_groups(&place.name, &container["linux"]["resources"]);
    let mut command = Command::new("bwrap");
    command.args(["--unshare-user", "--uid", "1000", "--gid", "1000", "--unshare-pid", "--unshare-net"]);
    command.args(["--unshare-ipc", "--unshare-uts", "--unshare-cgroup", "--hostname", "bench", "--new-session"]);
    command.args(["--cap-drop", "ALL", "--clearenv", "--bind"]).arg(&rootfs).arg("/");
    command.args(["--proc", "/proc", "--dev", "/dev", "--perms", "1777"]);
    for mount in container["mounts"].as_array().unwrap() {
        match mount["destination"].as_str().unwrap() {
            "/tmp" => command.args(["--tmpfs", "/tmp"]),
            "/dev/shm" => command.args(["--tmpfs", "/dev/shm"]),
            "/workspace" => command.arg("--bind").arg(place.volume.join("workspace")).arg("/workspace"),
            "/home/agent" => command.arg("--bind").arg(place.volume.join("home")).arg("/home/agent"),
            "/orch/init" => command.arg("--ro-bind").arg(&parts.init).arg("/orch/init"),
            _ => &mut command,
        };
    }
    let paths = |key: &str| container["linux"][key].as_array().unwrap().clone();
    for path in paths("maskedPaths").iter().filter_map(Value::as_str).filter(|path| Path::new(path).exists()) {
        if Path::new(path).is_dir() {
            command.args(["--tmpfs", path]);
        } else {
            command.args(["--ro-bind", "/dev/null", path]);
        }
    }
    for path in paths("readonlyPaths").iter().filter_map(Value::as_str).filter(|path| Path::new(path).exists()) {
        command.args(["--ro-bind", path, path]);
    }
    for variable in container["process"]["env"].as_array().unwrap() {
        let (name, value) = variable.as_str().unwrap().split_once('=').unwrap();
        command.args(["--setenv", name, value]);
    }
    command.args(["--chdir", "/workspace", "--seccomp", &FILTER_FD.to_string(), "bash", "-lc", "echo ok"]);
    let filter = File::open(&parts.filter).unwrap();
    let files = container["process"]["rlimits"][0]["hard"].as_u64().unwrap();
    let joins: Vec<PathBuf> = groups.iter().map(|group| group.join("cgroup.procs")).collect();
    // SAFETY: the program that forks here has other threads, but what runs before the start of `bwrap` takes no lock except
    // the allocator's, which the library resets in a child.
    unsafe {
        command.pre_exec(move || {
            joins.iter().try_for_each(|file| fs::write(file, "0"))?;
            setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            // A duplicate survives the start.
            if libc::dup2(filter.as_raw_fd(), FILTER_FD) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let cold = first_word(command, start);
    for group in groups {
        // The kernel lets go of the last process a moment after it has ended.
        while fs::remove_dir(&group).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    umount2(&rootfs, MntFlags::empty()).unwrap();
    cold
}
