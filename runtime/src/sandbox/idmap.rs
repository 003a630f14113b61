//! Shows files with other owners than they have on disk: the kernel's idmapped mounts (Linux 5.12, under an overlay 5.19).
//!
//! On disk, the files of every sandbox belong to the ids from [`ids::ON_DISK`] on. In the helper's mount namespace the same
//! files are mounted once more so that these ids are seen, and written, as the sandbox's own range; all other ids are what they are.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;

use super::ids::{self, IdRange};

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Enough for a process that makes one system call.
const STACK_BYTES: usize = 16 * 1024;

/// A user namespace in which nobody lives: the kernel reads off it how ids on disk are shown.
pub struct IdMap {
    namespace: File,
    /// Where translated directories are mounted, each under a number.
    shelf: PathBuf,
    shown: usize,
}

impl IdMap {
    /// How a sandbox with these ids sees its files. `shelf` is a directory in a mount namespace of the caller's own.
    pub fn new(range: IdRange, shelf: PathBuf) -> io::Result<Self> {
        let lines = format!("0 0 {}\n{} {} {}\n", ids::ON_DISK, ids::ON_DISK, range.first, ids::RANGE);
        Ok(Self { namespace: namespace(&lines)?, shelf, shown: 0 })
    }

    /// Mounts a directory again, with its ids translated, and returns where.
    pub fn show(&mut self, directory: &Path) -> io::Result<PathBuf> {
        let failed = |error: io::Error| {
            io::Error::new(error.kind(), format!("translating owners in {}: {error}", directory.display()))
        };
        let tree = translated(directory, &self.namespace).map_err(failed)?;
        let at = self.shelf.join(self.shown.to_string());
        self.shown += 1;
        fs::create_dir(&at)?;
        attach(&tree, &at).map_err(failed)?;
        Ok(at)
    }
}

/// The owners of files as a sandbox is to see them.
pub enum Owners {
    /// As they are on disk: the sandbox has these ids.
    OnDisk,
    /// Translated.
    Translated(IdMap),
}

impl Owners {
    /// For a sandbox with these ids; translated directories are mounted on `shelf`.
    pub fn of(range: IdRange, shelf: PathBuf) -> io::Result<Self> {
        if range == IdRange::SHARED { Ok(Self::OnDisk) } else { IdMap::new(range, shelf).map(Self::Translated) }
    }

    /// Where the directory is seen with these owners. A layer of an overlay, or the source of a bind mount, must be named so.
    pub fn show(&mut self, directory: &Path) -> io::Result<PathBuf> {
        match self {
            Self::OnDisk => Ok(directory.to_owned()),
            Self::Translated(map) => map.show(directory),
        }
    }
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A user namespace with this map.
fn namespace(lines: &str) -> io::Result<File> {
    let mut stack = vec![0u8; STACK_BYTES];
    // In the caller's memory: copying the map of that would be the slowest part. On a stack of its own it only waits.
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_VM;
    let parent = std::process::id();
    let wait = || -> isize {
        // SAFETY: plain system calls; the process ends with its parent, also with one that has ended already.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            while libc::getppid() == parent as libc::pid_t {
                libc::pause();
            }
        }
        0
    };
    // SAFETY: the child neither allocates nor locks, and is gone before its stack is.
    let child = unsafe { clone(Box::new(wait), &mut stack, flags, Some(libc::SIGCHLD)) }?;
    let mapped = ["uid_map", "gid_map"]
        .iter()
        .try_for_each(|map| fs::write(format!("/proc/{child}/{map}"), lines))
        .and_then(|()| File::open(format!("/proc/{child}/ns/user")));
    let _ = kill(child, Signal::SIGKILL);
    while waitpid(child, None) == Err(nix::errno::Errno::EINTR) {}
    mapped
}

/// A copy of the mount that a directory is in, from the directory on, that nobody sees yet and whose ids are translated.
fn translated(directory: &Path, namespace: &File) -> io::Result<OwnedFd> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_PATH;
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(directory)?;
    let wanted = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: the descriptor is open, the path an empty string.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), c"".as_ptr(), wanted) };
    // SAFETY: just made, owned by nobody else.
    let tree = unsafe { OwnedFd::from_raw_fd(checked(tree)? as i32) };
    let attributes = MountAttr {
        set: libc::MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        user_namespace: namespace.as_raw_fd() as u64,
    };
    // SAFETY: the struct is the kernel's first version of it, and outlives the call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(tree)
}

fn attach(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    let at = File::open(at)?;
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both descriptors are open, both paths empty strings.
    checked(unsafe {
        let (from, to) = (tree.as_fd().as_raw_fd(), at.as_raw_fd());
        libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags)
    })?;
    Ok(())
}

/// Whether files below this directory can be shown with other owners, under an overlay too.
///
/// # Errors
/// When not: the kernel or the file system does not know how, or this process may not.
pub fn probe(directory: &Path) -> io::Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = kernel.split(['.', '-']).map(|part| part.trim().parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // An older one takes the mount, and refuses it later as a layer of an overlay.
    if version < (5, 19) {
        return Err(io::Error::other("idmapped mounts under an overlay need Linux 5.19"));
    }
    let range = IdRange { first: 0x7000_0000 };
    let namespace = IdMap::new(range, PathBuf::new())
        .map_err(|error| io::Error::other(format!("a user namespace for it cannot be made: {error}")))?
        .namespace;
    translated(directory, &namespace).map(drop).map_err(|error| {
        io::Error::other(format!("files in {} cannot be shown with other owners: {error}", directory.display()))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown};

    use nix::mount::{MsFlags, mount};
    use nix::sched::unshare;

    use super::*;

    /// Needs root, like everything about mounts.
    #[test]
    fn owners_are_translated_both_ways_and_the_host_keeps_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (files, shelf) = (dir.path().join("files"), dir.path().join("shelf"));
        fs::create_dir(&files).unwrap();
        fs::create_dir(&shelf).unwrap();
        fs::write(files.join("agent"), "").unwrap();
        fs::write(files.join("host"), "").unwrap();
        chown(files.join("agent"), Some(101_000), Some(101_000)).unwrap();
        let seen = std::thread::spawn({
            let files = files.clone();
            move || {
                unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
                let none: Option<&str> = None;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                let mut map = IdMap::new(IdRange { first: 0x7003_0000 }, shelf).unwrap();
                let at = map.show(&files).unwrap();
                fs::write(at.join("new"), "").unwrap();
                chown(at.join("new"), Some(0x7003_0000 + 7), Some(0x7003_0000 + 8)).unwrap();
                assert!(chown(at.join("new"), Some(0x7004_0000), None).is_err(), "nobody else's ids get onto the disk");
                ["agent", "host"].map(|name| fs::metadata(at.join(name)).map(|meta| (meta.uid(), meta.gid())).unwrap())
            }
        });
        assert_eq!(seen.join().unwrap(), [(0x7003_0000 + 1000, 0x7003_0000 + 1000), (0, 0)]);
        let new = fs::metadata(files.join("new")).unwrap();
        assert_eq!((new.uid(), new.gid()), (100_007, 100_008));
    }

    #[test]
    fn a_file_system_that_cannot_do_it_is_named() {
        let error = probe(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains("files in /proc cannot be shown with other owners"), "{error}");
    }
}
