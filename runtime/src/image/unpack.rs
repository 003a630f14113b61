//! Writes files into a root file system without ever leaving it, whatever the names and links in an archive say.
//!
//! Every parent directory is opened by the kernel with the root file system as its root (`openat2` with
//! `RESOLVE_IN_ROOT`), and the last name is used without following a link.

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

/// Most entries of one image.
const MAX_ENTRIES: u64 = 2_000_000;
/// Most bytes of one image, unpacked: a bomb ends here instead of at the end of the disk.
const MAX_BYTES: u64 = 20 << 30;
/// Deepest directory that is removed for a whiteout.
const MAX_DEPTH: usize = 256;
/// The prefix of a name that says "not there any more", and the name that says "nothing from below".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// A root file system that is being filled.
pub struct Root {
    fd: OwnedFd,
}

/// What all layers of an image may still take.
#[derive(Debug)]
pub struct Allowance {
    entries: u64,
    bytes: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { entries: MAX_ENTRIES, bytes: MAX_BYTES }
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The plain names of a path; `..` is kept out rather than resolved.
fn names(path: &Path) -> io::Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("the archive names {}, which leaves it", path.display())));
            }
        }
    }
    Ok(names)
}

impl Root {
    /// Opens a directory as the root of everything that follows.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: open(path, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())? })
    }

    /// Whether there is a file at this path, links resolved within the root.
    pub fn has_file(&self, path: &Path) -> bool {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
        openat2(&self.fd, path, how).and_then(|fd| fstat(&fd)).is_ok_and(|stat| kind(&stat) == SFlag::S_IFREG)
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

    fn hard_link(&self, path: &Path, target: &Path) -> io::Result<()> {
        let (from, old) = self.parent(target)?;
        let (to, new) = self.parent(path)?;
        if kind(&fstatat(&from, old, AtFlags::AT_SYMLINK_NOFOLLOW)?) == SFlag::S_IFDIR {
            return Err(io::Error::other(format!("the archive links to the directory {}", target.display())));
        }
        self.clear(&to, new)?;
        Ok(linkat(&from, old, &to, new, AtFlags::empty())?)
    }

    fn directory(&self, path: &Path, mode: u32) -> io::Result<()> {
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

    /// Removes what a layer says is gone. First for the whole layer, because a layer may say so after it has already put
    /// something of its own there.
    pub fn apply_whiteouts(&self, layer: impl Read) -> io::Result<()> {
        let mut archive = tar::Archive::new(layer);
        for entry in archive.entries()? {
            let entry = entry?;
            let path = entry.path()?.into_owned();
            let Some(name) = path.file_name().map(OsStrExt::as_bytes) else { continue };
            if name == OPAQUE {
                let dir = path.parent().unwrap_or(Path::new(""));
                names(dir)?;
                match self.open_dir(dir) {
                    Ok(fd) => empty(&fd, 0)?,
                    Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            } else if let Some(gone) = name.strip_prefix(WHITEOUT) {
                if matches!(gone, b"" | b"." | b"..") || gone.contains(&b'/') {
                    return Err(io::Error::other("the archive removes something outside of it"));
                }
                let dir = path.parent().unwrap_or(Path::new(""));
                names(dir)?;
                match self.open_dir(dir) {
                    Ok(fd) => remove(&fd, OsStr::from_bytes(gone), 0)?,
                    Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Puts a layer's files over those that are there.
    pub fn apply_layer(&self, layer: impl Read, allowance: &mut Allowance) -> io::Result<()> {
        let too_large = || io::Error::other("the image is larger than an image may be");
        let mut archive = tar::Archive::new(layer);
        for entry in archive.entries()? {
            let mut entry = entry?;
            allowance.entries = allowance.entries.checked_sub(1).ok_or_else(too_large)?;
            let path = entry.path()?.into_owned();
            if path.file_name().is_some_and(|name| name.as_bytes().starts_with(WHITEOUT)) {
                continue;
            }
            let mode = entry.header().mode().unwrap_or(0o644);
            let target = entry.link_name()?.map(std::borrow::Cow::into_owned);
            match (entry.header().entry_type(), target) {
                (tar::EntryType::Directory, _) => self.directory(&path, mode)?,
                (tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse, _) => {
                    allowance.bytes = allowance.bytes.checked_sub(entry.size()).ok_or_else(too_large)?;
                    self.write_file(&path, mode, &mut entry)?;
                }
                (tar::EntryType::Symlink, Some(target)) => self.symlink(&path, &target)?,
                (tar::EntryType::Link, Some(target)) => self.hard_link(&path, &target)?,
                // Devices and pipes: a sandbox gets its own /dev, and nothing else may be one.
                _ => {}
            }
        }
        Ok(())
    }
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
