//! The sandbox's disk: a sparse file with a file system of the allowed size, mounted through a loop device.
//!
//! The kernel ends its growth exactly at the limit, with the error that every program knows. It is removed by
//! unmounting and deleting one file: nothing that the sandbox wrote is ever walked.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use orchestra_events::SandboxId;

use super::layout::{Layout, State};
use super::{SandboxError, WORKSPACE_GID, WORKSPACE_UID, layers, rootless};

/// Smallest disk: below this a file system has no room for anything.
const MIN_BYTES: u64 = 16 << 20;
/// Sizes are rounded up to this, so that there are few templates.
const ROUND_BYTES: u64 = 1 << 20;
/// Attempts to get a loop device: each failed one means that another process took it in between.
const LOOP_ATTEMPTS: usize = 64;
/// How long an unmount waits for somebody who still has a file open; then the mount is detached, and goes with them.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(2);

const LOOP_MAJOR: u64 = 7;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A sandbox's mounted disk.
#[derive(Debug, Clone)]
pub struct Volume {
    id: SandboxId,
    layout: Layout,
    workspace: PathBuf,
}

impl Volume {
    /// Where the host puts the work tree before the start. Once the sandbox has run, everything below is hostile: never
    /// follow a path in it.
    pub fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// Lays the directory `lower` under the folder `directory` of the work tree; the empty name is the work tree itself. What
    /// the sandbox writes there goes to its own disk. Nothing is mounted now: the helper does that at each start, in its own
    /// namespace. Only before the first start; the same folder again replaces what was said of it. `lower` must be on this
    /// host for as long as the sandbox is, and must not change.
    ///
    /// # Errors
    /// When the folder's name is not one plain name, one layer would cover another, there are more than [`MAX_LAYERS`], or the
    /// disk refuses.
    pub async fn lay(&self, directory: &str, lower: &Path) -> Result<(), SandboxError> {
        let (volume, directory, lower) = (self.clone(), directory.to_owned(), lower.to_owned());
        let laid = tokio::task::spawn_blocking(move || layers::lay(&volume.layout, &directory, &lower)).await;
        let laid = laid.unwrap_or_else(|error| Err(io::Error::other(error)));
        laid.map_err(SandboxError::host(format!("laying files under the work tree of sandbox {}", self.id)))
    }
}

/// Makes and mounts a sandbox's disk, or finds it mounted.
pub fn create(state: &State, id: SandboxId, bytes: u64) -> Result<Volume, SandboxError> {
    let layout = state.layout(id);
    let doing = |what: &str| format!("{what} the disk of sandbox {id}");
    let full = |error: io::Error, what: &str| match error.kind() {
        io::ErrorKind::StorageFull => SandboxError::DiskFull(id),
        _ => SandboxError::host(doing(what))(error),
    };
    super::layout::make_dir(layout.dir()).map_err(|error| full(error, "making the directory for"))?;
    let at = layout.volume();
    let volume = Volume { id, workspace: at.join("workspace"), layout: layout.clone() };
    if is_mount_point(&at).map_err(SandboxError::host(doing("looking at")))? {
        // Whoever mounted it may have died before the next step.
        furnish(&at).map_err(|error| full(error, "preparing"))?;
        return Ok(volume);
    }
    if rootless::is_needed() {
        // Only root mounts disk images: a plain directory, whose size nothing limits.
        let made = super::layout::make_dir(&at).and_then(|()| furnish(&at));
        return made.map(|()| volume).map_err(|error| full(error, "making the directory for"));
    }
    if !layout.volume_image().exists() {
        let template = template(&state.templates(), bytes)
            .map_err(|error| full(error, "making an empty file system (with mkfs.ext4) for"))?;
        let partial = layout.volume_image().with_extension("partial");
        copy_sparse(&template, &partial)
            .and_then(|()| fs::rename(&partial, layout.volume_image()))
            .map_err(|error| full(error, "copying"))?;
    }
    super::layout::make_dir(&at).map_err(|error| full(error, "making the directory for"))?;
    mount_image(&layout.volume_image(), &at).map_err(SandboxError::host(doing("mounting")))?;
    furnish(&at).map_err(|error| full(error, "preparing"))?;
    Ok(volume)
}

/// The top-level directories; the sandbox sees what is in them, never the directory that they are in.
fn furnish(at: &Path) -> io::Result<()> {
    let directory = |name: &str, mode: u32, owner: u32| {
        let path = at.join(name);
        match fs::DirBuilder::new().mode(mode).create(&path) {
            // What another user than root makes is the sandbox's as it is.
            Ok(()) if rootless::is_needed() => Ok(()),
            Ok(()) => chown(&path, Some(owner), Some(owner)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    };
    debug_assert_eq!(WORKSPACE_UID, WORKSPACE_GID);
    directory("upper", 0o755, 0)?;
    directory("work", 0o700, 0)?;
    directory("workspace", 0o755, WORKSPACE_UID)?;
    directory("home", 0o755, WORKSPACE_UID)
}

/// An empty file system of this size, made once.
fn template(folder: &Path, bytes: u64) -> io::Result<PathBuf> {
    let bytes = bytes.max(MIN_BYTES).next_multiple_of(ROUND_BYTES);
    let path = folder.join(format!("{bytes}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    let partial = folder.join(format!("{bytes}.{}.partial", uuid::Uuid::now_v7()));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?.set_len(bytes)?;
    let made = Command::new("mkfs.ext4")
        .args([
            "-q",
            "-F",
            "-b",
            "4096",
            "-m",
            "0",
            "-O",
            "^has_journal,^resize_inode",
            "-E",
            "lazy_itable_init=1,nodiscard",
        ])
        .arg(&partial)
        // The server's own variables hold the operator's keys.
        .env_clear()
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .output();
    let made = made.and_then(|made| {
        let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        if made.status.success() { fs::rename(&partial, &path) } else { Err(io::Error::other(said)) }
    });
    if made.is_err() {
        let _ = fs::remove_file(&partial);
    }
    made.map(|()| path)
}

/// Copies only what is there; holes stay holes.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let from = File::open(from)?;
    let to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0i64;
    loop {
        // SAFETY: plain system calls on an open descriptor.
        let (data, hole) = unsafe {
            let data = libc::lseek(from.as_raw_fd(), at, libc::SEEK_DATA);
            if data < 0 {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(libc::ENXIO) { Ok(()) } else { Err(error) };
            }
            (data, libc::lseek(from.as_raw_fd(), data, libc::SEEK_HOLE))
        };
        if hole < 0 {
            return Err(io::Error::last_os_error());
        }
        let (mut source, mut target) = (data, data);
        while source < hole {
            // SAFETY: both descriptors are open and both offsets are valid places for the call to advance.
            let copied = unsafe {
                libc::copy_file_range(
                    from.as_raw_fd(),
                    &raw mut source,
                    to.as_raw_fd(),
                    &raw mut target,
                    (hole - source) as usize,
                    0,
                )
            };
            match copied {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count if count < 0 => return Err(io::Error::last_os_error()),
                _ => {}
            }
        }
        at = hole;
    }
}

/// A free loop device that shows the file and frees itself when it is unmounted.
fn attach_loop(image: &File, flags: u32) -> io::Result<(File, PathBuf)> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..LOOP_ATTEMPTS {
        // SAFETY: this request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        if !path.metadata().is_ok_and(|meta| meta.file_type().is_block_device()) {
            // A static /dev has nodes for the first few devices only.
            let mode = Mode::from_bits_truncate(0o600);
            match mknod(&path, SFlag::S_IFBLK, mode, makedev(LOOP_MAJOR, number as u64)) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        // SAFETY: all-zero is the documented neutral value of every field.
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.fd = image.as_raw_fd() as u32;
        config.block_size = 4096;
        config.info.flags = LO_FLAGS_AUTOCLEAR | flags;
        // SAFETY: the layout is the kernel's, and the struct outlives the call.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
            return Ok((device, path));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::Error::other("every free loop device was taken by somebody else first"))
}

fn mount_image(image: &Path, at: &Path) -> io::Result<()> {
    let image = OpenOptions::new().read(true).write(true).open(image)?;
    let (device, path) = attach_loop(&image, 0)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    // Unused inode tables stay unwritten: the kernel must not fill a disk that lives for minutes.
    mount(Some(&path), at, Some("ext4"), flags, Some("noinit_itable"))?;
    drop(device);
    Ok(())
}

/// Mounts a disk that nobody will write to again. Any number of mounts of one file may be there at once.
pub fn mount_read_only(image: &Path, at: &Path) -> io::Result<()> {
    let image = File::open(image)?;
    let (device, path) = attach_loop(&image, LO_FLAGS_READ_ONLY)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(Some(&path), at, Some("ext4"), flags, Some("noload"))?;
    drop(device);
    Ok(())
}

/// Unmounts a disk and waits until the kernel has written it whole and let go of its file. Unlike [`unmount`] it never
/// detaches what somebody still holds: that would go on changing.
pub fn release(at: &Path, image: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        if is_mount_point(at)? {
            match umount2(at, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
                Err(error) => return Err(error.into()),
            }
        } else if !has_loop_device(image)? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other("somebody still holds the disk"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a loop device shows this file: it is mounted somewhere, or was a moment ago.
fn has_loop_device(image: &Path) -> io::Result<bool> {
    let image = fs::canonicalize(image)?;
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b"loop") {
            continue;
        }
        // A device without a file has no such entry.
        let backing = fs::read(entry.path().join("loop/backing_file")).unwrap_or_default();
        if backing.trim_ascii_end() == image.as_os_str().as_encoded_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether something is mounted exactly here.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let here = match fs::symlink_metadata(path) {
        Ok(here) => here,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let above = fs::symlink_metadata(path.parent().unwrap_or(Path::new("/")))?;
    Ok(here.dev() != above.dev())
}

/// Unmounts whatever is mounted here, also several times over.
pub fn unmount(path: &Path) -> io::Result<()> {
    let start = Instant::now();
    while is_mount_point(path)? {
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EBUSY) if start.elapsed() < UNMOUNT_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(nix::errno::Errno::EBUSY) => umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)?,
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
