//! Writes files into a root file system without ever leaving it, whatever the names and links in an archive say.
//!
//! Every parent directory is opened by the kernel with the root file system as its root (`openat2` with
//! `RESOLVE_IN_ROOT`), and the last name is used without following a link.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

/// Most files, directories and links of one image, those included that an archive only implies.
pub(super) const MAX_ENTRIES: u64 = 2_000_000;
/// Most bytes of one image, unpacked: a bomb ends here instead of at the end of the disk.
pub(super) const MAX_BYTES: u64 = 20 << 30;
/// Deepest path: deeper than any that is meant, and few enough descriptors to walk it.
const MAX_DEPTH: usize = 128;
/// Longest path and longest name of one, as the kernel has them.
const MAX_PATH: usize = 4_095;
const MAX_NAME: usize = 255;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// A root file system that is being filled.
pub struct Root {
    fd: OwnedFd,
    /// Directories that may still be made because a path implies them.
    implied: Cell<u64>,
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The plain names of a path; `..` is kept out rather than resolved.
pub(super) fn names(path: &Path) -> io::Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    if path.as_os_str().len() > MAX_PATH {
        return Err(io::Error::other("the archive names a path that is longer than a path may be"));
    }
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("the archive names {}, which leaves it", path.display())));
            }
        }
    }
    if names.len() > MAX_DEPTH || names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(io::Error::other("the archive names a path that is deeper, or has a longer name, than may be"));
    }
    Ok(names)
}

impl Root {
    /// Opens a directory as the root of everything that follows.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: open(path, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?, implied: Cell::new(MAX_ENTRIES) })
    }

    /// Whether there is a file at this path, links resolved within the root.
    pub fn has_file(&self, path: &Path) -> bool {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
        openat2(&self.fd, path, how).and_then(|fd| fstat(&fd)).is_ok_and(|stat| kind(&stat) == SFlag::S_IFREG)
    }

    /// The start of a file, links resolved within the root; empty when there is none.
    pub(super) fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut bytes = Vec::new();
        match openat2(&self.fd, path, OpenHow::new().flags(flags).resolve(resolve)) {
            Ok(file) => File::from(file).take(most).read_to_end(&mut bytes)?,
            Err(Errno::ENOENT) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(bytes)
    }

    fn open_dir(&self, path: &Path) -> nix::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(&self.fd, path, OpenHow::new().flags(DIRECTORY).resolve(resolve))
    }

    /// The directory that holds `path`, made if missing, and the last name.
    fn parent<'path>(&self, path: &'path Path) -> io::Result<(OwnedFd, &'path OsStr)> {
        let mut names = names(path)?;
        let last = names.pop().ok_or_else(|| io::Error::other("the archive names its own root"))?;
        let whole: PathBuf = names.iter().collect();
        match self.open_dir(&whole) {
            Ok(fd) => return Ok((fd, last)),
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let mut so_far = PathBuf::new();
        let mut at = self.open_dir(Path::new(""))?;
        for name in names {
            so_far.push(name);
            at = match self.open_dir(&so_far) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => {
                    let left = self.implied.get().checked_sub(1).ok_or_else(too_large)?;
                    self.implied.set(left);
                    mkdirat(&at, name, Mode::from_bits_truncate(0o755))?;
                    self.open_dir(&so_far)?
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok((at, last))
    }

    /// Makes room for something new under this name.
    fn clear(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        remove(parent, name, 0)
    }

    /// Writes a file of this content, replacing what was there.
    pub fn write_file(&self, path: &Path, mode: u32, content: &mut dyn Read) -> io::Result<u64> {
        let (parent, name) = self.parent(path)?;
        self.clear(&parent, name)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&parent, name, flags, Mode::from_bits_truncate(0o600))?);
        let written = io::copy(content, &mut file)?;
        // No setuid and setgid bits: nothing in a sandbox may use them, and no image needs to carry them.
        fchmod(&file, Mode::from_bits_truncate(mode & 0o777))?;
        Ok(written)
    }

    /// Makes a symbolic link, replacing what was there. Where it points is nobody's business until somebody follows it.
    pub fn symlink(&self, path: &Path, target: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        self.clear(&parent, name)?;
        Ok(symlinkat(target, &parent, name)?)
    }

    /// Makes this name another one of a file that lies elsewhere on the same disk, replacing what was there.
    pub(super) fn take_in(&self, path: &Path, folder: &OwnedFd, file: &OsStr) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        self.clear(&parent, name)?;
        match linkat(folder, file, &parent, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            // As many names as the file system gives a file, or another file system: a copy of its own.
            Err(Errno::EMLINK | Errno::EXDEV | Errno::EPERM) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut source = File::from(openat(folder, file, flags, Mode::empty())?);
                let stat = fstat(&source)?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut copy = File::from(openat(&parent, name, flags, Mode::from_bits_truncate(0o600))?);
                io::copy(&mut source, &mut copy)?;
                copy.set_modified(source.metadata()?.modified()?)?;
                Ok(fchmod(&copy, Mode::from_bits_truncate(stat.st_mode & 0o777))?)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn hard_link(&self, path: &Path, target: &Path) -> io::Result<()> {
        let (from, old) = self.parent(target)?;
        let (to, new) = self.parent(path)?;
        if kind(&fstatat(&from, old, AtFlags::AT_SYMLINK_NOFOLLOW)?) == SFlag::S_IFDIR {
            return Err(io::Error::other(format!("the archive links to the directory {}", target.display())));
        }
        self.clear(&to, new)?;
        Ok(linkat(&from, old, &to, new, AtFlags::empty())?)
    }

    pub(super) fn directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        if names(path)?.is_empty() {
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if kind(&stat) == SFlag::S_IFDIR => {}
            Ok(_) => {
                self.clear(&parent, name)?;
                mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
            }
            Err(Errno::ENOENT) => mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?,
            Err(error) => return Err(error.into()),
        }
        let fd = openat(&parent, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
        // The owner can always enter: who unpacks is the owner, and has more to put in.
        fchmod(&fd, Mode::from_bits_truncate((mode & 0o1777) | 0o700))?;
        Ok(())
    }

    /// Removes what is here under this name.
    pub(super) fn whiteout(&self, path: &Path) -> io::Result<()> {
        let Some(name) = path.file_name() else {
            return Err(io::Error::other("the archive removes something outside of it"));
        };
        let dir = path.parent().unwrap_or(Path::new(""));
        names(dir)?;
        match self.open_dir(dir) {
            Ok(fd) => remove(&fd, name, 0),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes all that is in this directory.
    pub(super) fn opaque(&self, dir: &Path) -> io::Result<()> {
        names(dir)?;
        match self.open_dir(dir) {
            Ok(fd) => empty(&fd, 0),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What an image says that is larger than an image may be.
pub(super) fn too_large() -> io::Error {
    io::Error::other("the image is larger than an image may be")
}

/// Removes a file, a link, or a whole directory; no link is followed.
fn remove(parent: &OwnedFd, name: &OsStr, depth: usize) -> io::Result<()> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if kind(&stat) == SFlag::S_IFDIR => {
            let fd = openat(parent, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
            empty(&fd, depth + 1)?;
            Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?)
        }
        Ok(_) => Ok(unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?),
        Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn empty(dir: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("the archive's directories are too deep"));
    }
    let mut listing = Dir::from_fd(dir.try_clone()?)?;
    let names: Vec<OsString> = listing
        .iter()
        .map(|entry| Ok(OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned()))
        .collect::<nix::Result<_>>()?;
    for name in names.iter().filter(|name| *name != "." && *name != "..") {
        remove(dir, name, depth)?;
    }
    Ok(())
}
