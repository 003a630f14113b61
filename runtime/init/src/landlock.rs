//! The second wall: what the first process gives up for itself, and so for every command, by Landlock.
//!
//! It stands behind the permissions of files and the mounts, and says the same once more in other words: what is not the
//! agent's is for reading. Who got round one of them would still have this one before him. It holds for this process and its
//! children for ever, needs no right, and can only take away. A kernel without it runs sandboxes with one wall less.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// The bits of linux/landlock.h, and with which version of the interface each of them came.
mod bit {
    pub const EXECUTE: u64 = 1;
    pub const WRITE_FILE: u64 = 1 << 1;
    pub const READ_FILE: u64 = 1 << 2;
    pub const READ_DIR: u64 = 1 << 3;
    pub const REMOVE_DIR: u64 = 1 << 4;
    pub const REMOVE_FILE: u64 = 1 << 5;
    pub const MAKE_CHAR: u64 = 1 << 6;
    pub const MAKE_DIR: u64 = 1 << 7;
    pub const MAKE_REG: u64 = 1 << 8;
    pub const MAKE_SOCK: u64 = 1 << 9;
    pub const MAKE_FIFO: u64 = 1 << 10;
    pub const MAKE_BLOCK: u64 = 1 << 11;
    pub const MAKE_SYM: u64 = 1 << 12;
    /// Version 2.
    pub const REFER: u64 = 1 << 13;
    /// Version 3.
    pub const TRUNCATE: u64 = 1 << 14;
    /// Version 5.
    pub const IOCTL_DEV: u64 = 1 << 15;
    /// Version 6: no connection to an abstract socket of somebody outside.
    pub const SCOPE_ABSTRACT_SOCKET: u64 = 1;
    /// Version 6: no signal to somebody outside.
    pub const SCOPE_SIGNAL: u64 = 1 << 1;
}

/// The oldest version that is used. The first one refuses every rename and link from one folder to another, which no build
/// survives.
const OLDEST: u32 = 2;
/// Asks for the version instead of making a set of rules.
const ASK_VERSION: u32 = 1;
/// A rule about everything below a path.
const BENEATH: u32 = 1;

/// Rights to look at files and to run them.
const READING: u64 = bit::EXECUTE | bit::READ_FILE | bit::READ_DIR;
/// Rights to do with files as one likes; but nobody makes a device.
const WRITING: u64 = READING
    | bit::WRITE_FILE
    | bit::REMOVE_DIR
    | bit::REMOVE_FILE
    | bit::MAKE_DIR
    | bit::MAKE_REG
    | bit::MAKE_SOCK
    | bit::MAKE_FIFO
    | bit::MAKE_SYM
    | bit::REFER
    | bit::TRUNCATE;
/// Rights to the devices that there are: null, zero, random, terminals.
const USING: u64 = bit::READ_FILE | bit::READ_DIR | bit::WRITE_FILE | bit::TRUNCATE | bit::IOCTL_DEV;

/// What is the agent's.
const OWN: &[&str] = &["/workspace", "/home/agent", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"];
/// Where the kernel's files and the host's are: never open to writing, whatever their permissions say.
const NEVER_OPEN: &[&str] = &["/proc", "/sys", "/dev", "/orch", "/boot"];
/// Folders of an image whose folders may be meant for writing, beside those of its root: the caches of toolchains.
const LOOKED_INTO: &[&str] = &["/usr/local", "/opt", "/srv", "/var", "/var/lib", "/var/cache", "/run", "/home", "/mnt"];
/// Most folders that are looked at, so that an image of many names does not slow a start.
const MAX_LOOKED_AT: usize = 1024;
/// Most folders of an image that are open to writing.
const MAX_OPEN: usize = 64;

/// `struct landlock_ruleset_attr`; older kernels know its beginning.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Handled {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    folder: RawFd,
}

/// Everything that a kernel with this version can take away; none below the oldest that is used.
const fn handled(version: u32) -> Option<Handled> {
    if version < OLDEST {
        return None;
    }
    let mut files = WRITING | bit::MAKE_CHAR | bit::MAKE_BLOCK | bit::IOCTL_DEV;
    if version < 3 {
        files &= !bit::TRUNCATE;
    }
    if version < 5 {
        files &= !bit::IOCTL_DEV;
    }
    // There is one network, the loopback, and nothing to take away from it.
    let scoped = if version < 6 { 0 } else { bit::SCOPE_ABSTRACT_SOCKET | bit::SCOPE_SIGNAL };
    Some(Handled { files, network: 0, scoped })
}

fn answered(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The version of the interface that this kernel has; 0 is none, also when something outside keeps this process from asking.
fn version() -> u32 {
    // SAFETY: with this flag the call reads nothing.
    let asked =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Handled>(), 0, ASK_VERSION) };
    u32::try_from(asked).unwrap_or(0)
}

/// The folders of the image that anybody may write to. What is written there lies on the sandbox's own disk.
fn open_folders() -> Vec<PathBuf> {
    let places = std::iter::once("/").chain(LOOKED_INTO.iter().copied());
    let entries = places.filter_map(|place| fs::read_dir(place).ok()).flatten().flatten().take(MAX_LOOKED_AT);
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    let closed = |path: &Path| OWN.iter().chain(NEVER_OPEN).any(|other| path.starts_with(other));
    folders.filter(|path| !closed(path) && access(path, AccessFlags::W_OK).is_ok()).take(MAX_OPEN).collect()
}

/// Allows these rights below a path; one that is not there needs no rule.
fn allow(rules: &OwnedFd, path: &Path, allowed: u64) -> io::Result<()> {
    let folder: File = match OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let rule = Beneath { allowed, folder: folder.as_raw_fd() };
    // SAFETY: both descriptors are open and the rule outlives the call, which only reads it.
    let added = unsafe { libc::syscall(libc::SYS_landlock_add_rule, rules.as_raw_fd(), BENEATH, &raw const rule, 0) };
    answered(added).map(drop)
}

/// Puts the wall up, for this process and all that it will ever start. The version that it was built with; 0 when the kernel
/// has none that is of use. A process that may gain privileges by exec is refused by the kernel.
///
/// # Errors
/// When the kernel has it and it cannot be put up: nothing starts behind half a wall.
pub fn restrict() -> io::Result<u32> {
    let version = version();
    let Some(handled) = handled(version) else { return Ok(0) };
    // SAFETY: the attributes outlive the call. A kernel that is older than the last field takes them because it is zero then.
    let rules =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const handled, size_of::<Handled>(), 0) };
    let rules = RawFd::try_from(answered(rules)?).map_err(io::Error::other)?;
    // SAFETY: just made, owned by nobody else.
    let rules = unsafe { OwnedFd::from_raw_fd(rules) };
    let open = open_folders();
    let own = OWN.iter().map(Path::new).chain(open.iter().map(PathBuf::as_path));
    allow(&rules, Path::new("/"), READING & handled.files)?;
    allow(&rules, Path::new("/dev"), USING & handled.files)?;
    for path in own {
        allow(&rules, path, WRITING & handled.files)?;
    }
    // SAFETY: the descriptor is a set of rules.
    answered(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) })?;
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_takes_away_what_it_knows_and_no_more() {
        assert_eq!((handled(0), handled(1)), (None, None));
        // The highest bit that each version of the interface has; an unknown one is an error for the kernel.
        for (version, highest) in [(2, bit::REFER), (3, bit::TRUNCATE), (4, bit::TRUNCATE), (5, bit::IOCTL_DEV)] {
            let handled = handled(version).unwrap();
            assert_eq!(handled.files, (highest << 1) - 1, "{version}");
            assert_eq!((handled.network, handled.scoped), (0, 0), "{version}");
        }
        for version in 6..20 {
            assert_eq!(handled(version), Some(Handled { files: 0xFFFF, network: 0, scoped: 3 }), "{version}");
        }
    }

    #[test]
    fn no_rule_lets_anybody_make_a_device() {
        for rights in [READING, WRITING, USING] {
            assert_eq!(rights & (bit::MAKE_CHAR | bit::MAKE_BLOCK), 0);
        }
        assert_eq!(WRITING & bit::IOCTL_DEV, 0);
        assert_eq!(READING & (bit::WRITE_FILE | bit::TRUNCATE | bit::REFER), 0);
    }

    /// In a child, because it is for ever.
    #[test]
    fn a_process_behind_the_wall_writes_where_it_may() {
        if version() < OLDEST {
            return;
        }
        // Its own, by every permission.
        let elsewhere = Path::new("/proc/self/comm");
        // SAFETY: the child makes system calls and ends without running anything of its parent's.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                nix::sys::prctl::set_no_new_privs().unwrap();
                let restricted = restrict().is_ok_and(|version| version >= OLDEST);
                let refused = OpenOptions::new().write(true).open(elsewhere).is_err();
                let reads = File::open(elsewhere).is_ok();
                let null = OpenOptions::new().write(true).open("/dev/null").is_ok();
                let code =
                    [restricted, refused, reads, null].iter().rev().fold(0, |code, ok| code << 1 | i32::from(*ok));
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(code) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                let ended = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0b1111));
            }
        }
    }
}
