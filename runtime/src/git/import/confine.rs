//! Takes from the importing child everything that it does not need, before it reads the first byte.
//!
//! What must hold is the kernel's limits on memory, time and files; without them the child refuses to work. The rest is
//! depth: no network, no capabilities, no file but the repository's objects and the quarantine. Not every kernel and
//! not every server may have it, so its absence is no error.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};

use super::Order;

/// Files the child may hold open: the packs of the trusted repository, the new pack, three pipes.
const OPEN_FILES: u64 = 1024;
/// Room for an index, the completed thin pack and libgit2's temporary file beside the pack itself.
const FILE_SIZE_FACTOR: u64 = 4;
/// One number above the last capability of any kernel (they are counted in 64 bits).
const CAPABILITIES: libc::c_ulong = 64;

/// Confines this process, which has one thread, for good.
pub(super) fn confine(order: &Order) -> Result<(), String> {
    // SAFETY: this process has opened nothing yet that it would use; standard input, output and error stay.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    let limits = &order.rules.limits;
    for (resource, limit) in [
        (Resource::RLIMIT_AS, limits.memory_bytes),
        (Resource::RLIMIT_CPU, limits.cpu_seconds),
        (Resource::RLIMIT_FSIZE, limits.pack_bytes.saturating_mul(FILE_SIZE_FACTOR)),
        (Resource::RLIMIT_NOFILE, OPEN_FILES),
        (Resource::RLIMIT_NPROC, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_CORE, 0),
    ] {
        setrlimit(resource, limit, limit).map_err(|error| format!("a resource limit could not be set: {error}"))?;
    }
    // With root's privileges the first works, without them the second where users may have namespaces of their own.
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        let _ = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
    }
    drop_capabilities();
    let _ = nix::sys::prctl::set_no_new_privs();
    let objects = order.repo.join("objects");
    let mut readable = alternates(&objects);
    readable.push(objects);
    restrict_files(&readable, &order.quarantine);
    Ok(())
}

/// Where else the trusted repository keeps objects: the host wrote this file.
fn alternates(objects: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_to_string(objects.join("info/alternates")).unwrap_or_default();
    listed.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect()
}

fn drop_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Set {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`: two sets of 32 bits each.
    const VERSION: u32 = 0x2008_0522;
    for capability in 0..CAPABILITIES {
        // SAFETY: this call takes numbers only; one that is unknown is an error and changes nothing.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    let header = Header { version: VERSION, pid: 0 };
    let none = [Set { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: the kernel reads a header and, for this version, two sets; both outlive the call.
    unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
}

/// Landlock (landlock(7)): nothing can be opened but files below `readable`, to read, and below `writable`.
fn restrict_files(readable: &[PathBuf], writable: &Path) {
    #[repr(C)]
    struct Ruleset {
        handled_fs: u64,
        handled_net: u64,
        scoped: u64,
    }
    #[repr(C, packed)]
    struct Beneath {
        allowed: u64,
        parent: i32,
    }
    const VERSION_QUERY: libc::c_ulong = 1;
    const PATH_BENEATH: libc::c_int = 1;
    const READ_FILE: u64 = 1 << 2;
    const READ_DIR: u64 = 1 << 3;
    /// To write, truncate and remove files, and to make regular ones.
    const WRITE: u64 = 1 << 1 | 1 << 5 | 1 << 8;
    const TRUNCATE: u64 = 1 << 14;
    // SAFETY: without attributes this call only tells the version.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Ruleset>(), 0_usize, VERSION_QUERY)
    };
    // What each version of the interface knows (`linux/landlock.h`): rights on files, on TCP, and scopes.
    let (rights, size) = match version {
        1 => (13, 8),
        2 => (14, 8),
        3 => (15, 8),
        4 => (15, 16),
        5 => (16, 16),
        6.. => (16, 24),
        _ => return,
    };
    let handled_fs = (1_u64 << rights) - 1;
    let ruleset = Ruleset { handled_fs, handled_net: 0b11, scoped: 0b11 };
    // SAFETY: the kernel reads the first `size` bytes of the structure, which is at least as large.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size, 0 as libc::c_ulong) };
    let Ok(descriptor) = i32::try_from(descriptor) else { return };
    if descriptor < 0 {
        return;
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let rules = unsafe { File::from_raw_fd(descriptor) };
    let reading = READ_FILE | READ_DIR;
    let writing = (reading | WRITE | TRUNCATE) & handled_fs;
    for (path, allowed) in readable.iter().map(|path| (path.as_path(), reading)).chain([(writable, writing)]) {
        let Ok(folder) = File::open(path) else { continue };
        let beneath = Beneath { allowed, parent: folder.as_raw_fd() };
        // SAFETY: the kernel reads the structure; both descriptors are open.
        unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                rules.as_raw_fd(),
                PATH_BENEATH,
                &raw const beneath,
                0 as libc::c_ulong,
            )
        };
    }
    // Landlock asks for this, or for a capability that is gone by now.
    let _ = nix::sys::prctl::set_no_new_privs();
    // SAFETY: the call takes a descriptor and no flags.
    unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0 as libc::c_ulong) };
}
