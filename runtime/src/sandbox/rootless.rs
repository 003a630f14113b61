//! Sandboxes of a server that is not root: in a user namespace of its own the helper has every right that it needs, and does there
//! what it does as root.
//!
//! The user himself is mapped to the sandbox's user 1000, so that the files of a work tree belong to both. The other ids are
//! those that `/etc/subuid` and `/etc/subgid` give him, by `newuidmap` and `newgidmap`; without them the sandbox has one user.
//! Weaker than root's sandboxes are these: no disk of limited size, no limits at all unless control groups of version 2 were
//! delegated, and the host's id of everything inside is the user's own.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::dir::Dir;
use nix::fcntl::{OFlag, renameat};
use nix::sched::{CloneFlags, clone, setns, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, Uid, UnlinkatFlags, User, fork, getpid, setgroups, unlinkat};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ids::{ON_DISK, RANGE};
use super::spec::AGENT_ID;
use super::{idmap, network};

/// Where distributions install the tools that write maps.
const FOLDERS: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];
/// Longest file of subordinate ids that is read.
const MAX_SUBORDINATE: u64 = 1 << 20;
/// Longest complaint of such a tool that is quoted.
const MAX_COMPLAINT: u64 = 2_000;
/// Stack of a process that only makes a handful of system calls.
const STACK_BYTES: usize = 64 * 1024;

/// Whether this process lacks the rights of the host's root.
pub fn is_needed() -> bool {
    !nix::unistd::geteuid().is_root()
}

/// Who the work tree belongs to on disk, for whoever writes it there: what root gives away belongs to the sandbox's user, and what
/// another user writes is the sandbox's as it is.
pub fn workspace_owner() -> (u32, u32) {
    if is_needed() {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    } else {
        (ON_DISK + AGENT_ID, ON_DISK + AGENT_ID)
    }
}

/// The rights that a sandbox is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authority {
    /// The host's root.
    #[default]
    Root,
    /// A user with ids of his own.
    Subordinate {
        /// The first of his subordinate user ids.
        uids: u32,
        /// The first of his subordinate group ids.
        gids: u32,
    },
    /// A user with no id but his own.
    Alone,
}

/// The path of a tool that writes maps.
pub fn map_tool(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}

/// The first of enough ids that a file like `/etc/subuid` gives this user.
pub fn subordinate(text: &str, user: &str, uid: u32) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let (owner, first, count) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse::<u32>().ok()?);
        (count >= RANGE - 1 && (owner == user || owner.parse() == Ok(uid))).then_some(first)
    })
}

/// What a file of subordinate ids gives this user.
pub fn subordinate_of_user(file: &str) -> Option<u32> {
    let uid = nix::unistd::geteuid();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name).unwrap_or_default();
    let mut text = String::new();
    File::open(file).ok()?.take(MAX_SUBORDINATE).read_to_string(&mut text).ok()?;
    subordinate(&text, &name, uid.as_raw())
}

impl Authority {
    /// What this process can make sandboxes with.
    pub fn of_user() -> Self {
        if !is_needed() {
            return Self::Root;
        }
        let tools = map_tool("newuidmap").is_some() && map_tool("newgidmap").is_some();
        match (tools, subordinate_of_user("/etc/subuid"), subordinate_of_user("/etc/subgid")) {
            (true, Some(uids), Some(gids)) => Self::Subordinate { uids, gids },
            _ => Self::Alone,
        }
    }

    /// Changes a container's description to what can be made with these rights.
    pub fn adapt(self, description: &mut Value) {
        match self {
            Self::Root | Self::Subordinate { .. } => {}
            Self::Alone => {
                // The container library becomes user 0 of the namespace first, so the only user is that one. He has no
                // capability, like everybody in a sandbox.
                description["process"]["user"] = json!({ "uid": 0, "gid": 0 });
                for mount in description["mounts"].as_array_mut().into_iter().flatten() {
                    if let Some(options) = mount["options"].as_array_mut() {
                        options.retain(|option| option != "gid=5");
                    }
                }
            }
        }
    }

    /// Makes the sandbox's user and network namespaces, once this process has entered its own, and names them in the description.
    /// The library would write a map of several lines with the tools for that, which know nothing of namespaces in namespaces;
    /// and what it makes, nobody but root may look at before the first program runs.
    ///
    /// They are open for as long as what is returned.
    pub fn make_namespaces(self, description: &mut Value) -> io::Result<Vec<File>> {
        let agent = ON_DISK + AGENT_ID;
        let lines = match self {
            Self::Root => return Ok(Vec::new()),
            // One line for each that the outer map has, because none may lie across two of those.
            Self::Subordinate { .. } => format!(
                "0 {ON_DISK} {AGENT_ID}\n{AGENT_ID} {agent} 1\n{} {} {}\n",
                AGENT_ID + 1,
                agent + 1,
                RANGE - AGENT_ID - 1
            ),
            Self::Alone => format!("0 {agent} 1\n"),
        };
        let made = idmap::namespaces(&lines, CloneFlags::CLONE_NEWNET, &["user", "net"])?;
        if let [_, network] = &made[..] {
            network::raise_loopback_in(network)?;
        }
        for (kind, file) in ["user", "network"].iter().zip(&made) {
            for namespace in description["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
                if namespace["type"] == *kind {
                    namespace["path"] = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
                }
            }
        }
        if let Some(linux) = description["linux"].as_object_mut() {
            linux.remove("uidMappings");
            linux.remove("gidMappings");
        }
        Ok(made)
    }

    /// Moves this process into a user namespace where it may do what root may elsewhere. For a program with one thread.
    pub fn enter(self) -> io::Result<()> {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        match self {
            Self::Root => Ok(()),
            Self::Subordinate { uids, gids } => {
                map_with_tools(&[("newuidmap", lines(uid.as_raw(), uids)), ("newgidmap", lines(gid.as_raw(), gids))])?;
                // Those of the user who started this one are not the sandbox's.
                setgroups(&[]).map_err(io::Error::from)
            }
            Self::Alone => {
                unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(refused)?;
                fs::write("/proc/self/setgroups", "deny")?;
                fs::write("/proc/self/uid_map", own_line(uid))?;
                fs::write("/proc/self/gid_map", format!("{} {gid} 1", ON_DISK + AGENT_ID))
            }
        }
    }
}

fn own_line(uid: Uid) -> String {
    format!("{} {uid} 1", ON_DISK + AGENT_ID)
}

fn refused(error: nix::errno::Errno) -> io::Error {
    io::Error::other(format!("this user may not make a user namespace: {error}"))
}

/// The map: the user in the place of the sandbox's user, his subordinate ids in all others.
fn lines(own: u32, first: u32) -> Vec<String> {
    let parts = [
        (ON_DISK, first, AGENT_ID),
        (ON_DISK + AGENT_ID, own, 1),
        (ON_DISK + AGENT_ID + 1, first + AGENT_ID, RANGE - AGENT_ID - 1),
    ];
    parts.iter().flat_map(|(inside, outside, count)| [*inside, *outside, *count]).map(|id| id.to_string()).collect()
}

/// Makes the namespace and has its maps written by somebody who stays outside.
fn map_with_tools(tools: &[(&str, Vec<String>)]) -> io::Result<()> {
    let us = getpid();
    let (mut ready, done) = io::pipe()?;
    let (complaint, mut complain) = io::pipe()?;
    // SAFETY: this process has one thread, so the child may do whatever a process may.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop((done, complaint));
            // SAFETY: the default action installs no code.
            let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
            let made = ready.read_exact(&mut [0]).is_ok();
            let written = made && tools.iter().all(|(name, lines)| write_map(name, us.as_raw(), lines, &mut complain));
            std::process::exit(i32::from(!written));
        }
    };
    drop((ready, complain));
    let made = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
    if made.is_ok() {
        (&done).write_all(&[0])?;
    }
    drop(done);
    let ended = waitpid(child, None)?;
    made.map_err(refused)?;
    if ended == WaitStatus::Exited(child, 0) {
        return Ok(());
    }
    let mut text = String::new();
    let _ = complaint.take(MAX_COMPLAINT).read_to_string(&mut text);
    Err(io::Error::other(format!("the subordinate ids of this user could not be mapped: {}", text.trim())))
}

fn write_map(name: &str, pid: i32, lines: &[String], complain: &mut impl Write) -> bool {
    let tool = map_tool(name).unwrap_or_else(|| name.into());
    match Command::new(tool).arg(pid.to_string()).args(lines).env_clear().output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let _ = complain.write_all(&output.stderr);
            false
        }
        Err(error) => {
            let _ = write!(complain, "{name}: {error}");
            false
        }
    }
}

/// Mounts an overlay as a user's helper does, in a process that ends at once.
pub fn try_overlay() -> io::Result<()> {
    let dir = tempfile_dir()?;
    let paths = ["lower", "upper", "work", "merged"].map(|name| dir.join(name));
    let made = paths.iter().try_for_each(fs::create_dir);
    let tried = made.and_then(|()| {
        let options = format!(
            "userxattr,lowerdir={},upperdir={},workdir={}\0",
            paths[0].display(),
            paths[1].display(),
            paths[2].display()
        );
        let at = CString::new(paths[3].as_os_str().as_bytes())?;
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let maps = [
            (c"/proc/self/setgroups", "deny".to_owned()),
            (c"/proc/self/uid_map", own_line(uid)),
            (c"/proc/self/gid_map", format!("{} {gid} 1", ON_DISK + AGENT_ID)),
        ];
        let attempt = || -> isize {
            // SAFETY: plain system calls; every string ends with a zero byte and outlives them.
            unsafe {
                let ok = libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) == 0
                    && maps.iter().all(|(path, text)| {
                        let map = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                        map >= 0 && libc::write(map, text.as_ptr().cast(), text.len()) == text.len() as isize
                    })
                    && libc::mount(
                        c"overlay".as_ptr(),
                        at.as_ptr(),
                        c"overlay".as_ptr(),
                        0,
                        options.as_ptr().cast::<libc::c_void>(),
                    ) == 0;
                if ok { 0 } else { nix::errno::Errno::last_raw() as isize }
            }
        };
        let mut stack = vec![0u8; STACK_BYTES];
        // SAFETY: the child makes system calls and nothing else, so it waits for no lock of another thread.
        wait_for(unsafe { clone(Box::new(attempt), &mut stack, CloneFlags::empty(), Some(libc::SIGCHLD)) }?)
    });
    let removed = remove_tree(&dir);
    tried.and(removed)
}

fn tempfile_dir() -> io::Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("orchestra-overlay-{}", uuid::Uuid::now_v7()));
    fs::create_dir(&dir).map(|()| dir)
}

/// Waits for a child whose exit code is an error number.
fn wait_for(child: Pid) -> io::Result<()> {
    loop {
        return match waitpid(child, None) {
            Err(nix::errno::Errno::EINTR) => continue,
            Ok(WaitStatus::Exited(_, 0)) => Ok(()),
            Ok(WaitStatus::Exited(_, code)) => Err(io::Error::from_raw_os_error(code)),
            Ok(_) => Err(io::Error::other("a process that does this died")),
            Err(error) => Err(error.into()),
        };
    }
}

/// Binds a listener on `127.0.0.1:port` of a sandbox of this user. Only a process with one thread may change its user
/// namespace, so a child does it, and leaves the listener in the table of descriptors that it shares with this one.
pub fn listen_inside(pid: i32, port: u16) -> io::Result<TcpListener> {
    let namespace = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
    let (user, network) = (namespace("user")?, namespace("net")?);
    // A number for the listener.
    let place: OwnedFd = File::open("/dev/null")?.into();
    let (address, options) = (
        libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
            sin_zero: [0; 8],
        },
        libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
    );
    let listen = || -> isize {
        let result = (|| {
            setns(&user, CloneFlags::CLONE_NEWUSER)?;
            setns(&network, CloneFlags::CLONE_NEWNET)?;
            // SAFETY: plain system calls on descriptors and memory that outlive them.
            unsafe {
                let socket = libc::socket(libc::AF_INET, options, 0);
                let reuse: libc::c_int = 1;
                let length = size_of::<libc::c_int>() as libc::socklen_t;
                let bound = socket >= 0
                    && libc::setsockopt(
                        socket,
                        libc::SOL_SOCKET,
                        libc::SO_REUSEADDR,
                        (&raw const reuse).cast(),
                        length,
                    ) == 0
                    && libc::bind(socket, (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) == 0
                    && libc::listen(socket, 128) == 0
                    && libc::dup3(socket, place.as_raw_fd(), libc::O_CLOEXEC) >= 0;
                let error = nix::errno::Errno::last();
                libc::close(socket);
                if bound { Ok(()) } else { Err(error) }
            }
        })();
        result.map_or_else(|error| error as isize, |()| 0)
    };
    let mut stack = vec![0u8; STACK_BYTES];
    // SAFETY: the child has a copy of this memory in which other threads may hold locks for ever; it makes system calls and
    // nothing else, so it waits for none.
    let child = unsafe { clone(Box::new(listen), &mut stack, CloneFlags::CLONE_FILES, Some(libc::SIGCHLD)) }?;
    wait_for(child).map(|()| TcpListener::from(place))
}

/// Removes a directory and all that a sandbox wrote into it: whatever its modes are, however deep it is, and without following a
/// link. Nothing may run in it any more.
pub fn remove_tree(root: &Path) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if !fs::symlink_metadata(root).is_ok_and(|meta| meta.is_dir()) {
        return Ok(());
    }
    let mut moved = 0u64;
    loop {
        open_up(root)?;
        let mut top = Dir::open(root, flags, Mode::empty())?;
        let names = names(&mut top)?;
        if names.is_empty() {
            return fs::remove_dir(root);
        }
        for name in names {
            if is_gone(&top, &name)? {
                continue;
            }
            open_up(&below(&top, &name))?;
            let mut dir = Dir::openat(&top, &*name, flags, Mode::empty())?;
            // What is below comes up here, so that no depth is too deep.
            for inner in self::names(&mut dir)? {
                if is_gone(&dir, &inner)? {
                    continue;
                }
                open_up(&below(&dir, &inner))?;
                loop {
                    moved += 1;
                    match renameat(&dir, &*inner, &top, format!(".removed-{moved}").as_str()) {
                        // The sandbox chose the same name.
                        Err(nix::errno::Errno::ENOTEMPTY | nix::errno::Errno::EEXIST | nix::errno::Errno::ENOTDIR) => {}
                        renamed => break renamed?,
                    }
                }
            }
            unlinkat(&top, &*name, UnlinkatFlags::RemoveDir)?;
        }
    }
}

/// A name in an open directory, as a path.
fn below(dir: &Dir, name: &CStr) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_fd().as_raw_fd().to_string()).join(OsStr::from_bytes(name.to_bytes()))
}

fn names(dir: &mut Dir) -> io::Result<Vec<CString>> {
    let mut found = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push(entry.file_name().to_owned());
        }
    }
    Ok(found)
}

/// Removes a file or an empty directory; false for one that has something in it.
fn is_gone(dir: &Dir, name: &CStr) -> io::Result<bool> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(nix::errno::Errno::EISDIR | nix::errno::Errno::EPERM) => {}
        removed => return removed.map(|()| true).map_err(io::Error::from),
    }
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Err(nix::errno::Errno::ENOTEMPTY | nix::errno::Errno::EEXIST) => Ok(false),
        removed => removed.map(|()| true).map_err(io::Error::from),
    }
}

/// Lets the owner into a directory that he closed; never through a link.
fn open_up(path: &Path) -> io::Result<()> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let dir = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    fs::set_permissions(format!("/proc/self/fd/{}", dir.as_raw_fd()), Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number_and_must_be_enough() {
        let text = "# comment\nann:100000:65536\nbob:200000:1000\n1003:300000:65535\nbroken\nbob:400000:70000\n";
        assert_eq!(subordinate(text, "ann", 1001), Some(100_000));
        assert_eq!(subordinate(text, "bob", 1002), Some(400_000));
        assert_eq!(subordinate(text, "cyd", 1003), Some(300_000));
        assert_eq!(subordinate(text, "dan", 1004), None);
    }

    #[test]
    fn the_map_has_every_id_once() {
        let lines: Vec<u32> = lines(1001, 200_000).iter().map(|id| id.parse().unwrap()).collect();
        assert_eq!(lines, [100_000, 200_000, 1_000, 101_000, 1001, 1, 101_001, 201_000, 64_535]);
    }

    #[test]
    fn closed_and_deep_directories_are_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "kept").unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b/closed/c")).unwrap();
        fs::create_dir_all(root.join(".removed-1/x")).unwrap();
        std::os::unix::fs::symlink(&kept, root.join("a/link")).unwrap();
        std::os::unix::fs::symlink(&kept, root.join("link")).unwrap();
        fs::set_permissions(root.join("a/b/closed"), Permissions::from_mode(0o000)).unwrap();
        // Deeper than a path can say: each round puts what there is into a new directory.
        fs::create_dir(root.join("deep")).unwrap();
        for _ in 0..5_000 {
            fs::create_dir(root.join("above")).unwrap();
            fs::rename(root.join("deep"), root.join("above/d")).unwrap();
            fs::rename(root.join("above"), root.join("deep")).unwrap();
        }
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "kept");
        remove_tree(&root).unwrap();
    }

    #[test]
    fn who_has_one_id_is_one_user_inside() {
        let mut description = json!({
            "linux": {}, "process": {}, "mounts": [{ "options": ["newinstance", "gid=5"] }, { "destination": "/x" }],
        });
        Authority::Alone.adapt(&mut description);
        assert_eq!(description["mounts"][0]["options"], json!(["newinstance"]));
        assert_eq!(description["process"]["user"]["uid"], 0);
    }
}
