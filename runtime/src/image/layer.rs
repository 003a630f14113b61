//! The layers of pulled images, each unpacked once: `{store}/layers/<diff-id>` holds its files, by number, and a list of what
//! its archive says about them.
//!
//! An image's root file system is made by doing what the lists of its layers say, one after the other; a file is then another
//! name of the layer's. So a sandbox starts over one directory, however many layers there are (an overlay's cost grows with
//! each), two images share what they have in common, and removing a layer takes nothing from an image that was made of it.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tar::EntryType;

use super::unpack::{MAX_BYTES, MAX_ENTRIES, Root, names, too_large};

/// The prefix of a name that says "not there any more", and the name that says "nothing from below".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Most bytes of one entry's headers: names, links and attributes. All of them are held in memory.
const MAX_HEADERS: u64 = 1 << 20;
/// Most bytes of all headers and padding of a layer.
const MAX_OVERHEAD: u64 = 4 << 30;
/// Most bytes after the end of an archive: what tools write to fill a tape's block, and more.
const MAX_TRAILER: u64 = 16 << 20;
/// Longest list of a layer: as many entries as an image may have, with paths of ordinary length.
const MAX_LIST: u64 = 1 << 30;
/// What a list begins with; another number makes older layers be fetched again.
const FORMAT: &[u8; 8] = b"layer 1\n";
/// Says that a layer has reached the disk.
const SETTLED: &str = "settled";

/// What one entry of a layer's archive says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    /// What lies here from below is gone.
    Whiteout,
    /// What is in this directory from below is gone.
    Opaque,
    /// A directory.
    Directory { mode: u32 },
    /// A file: its number in the layer, and its size.
    File { number: u32, size: u64 },
    /// A symbolic link.
    Symlink { target: PathBuf },
    /// Another name of a file that is there already.
    Link { target: PathBuf },
}

/// An entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    path: PathBuf,
    act: Act,
}

/// What the layers of one image may still take together.
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

impl Allowance {
    fn entry(&mut self) -> io::Result<()> {
        self.entries = self.entries.checked_sub(1).ok_or_else(too_large)?;
        Ok(())
    }

    fn bytes(&mut self, count: u64) -> io::Result<()> {
        self.bytes = self.bytes.checked_sub(count).ok_or_else(too_large)?;
        Ok(())
    }
}

/// Reads no further than its allowance, and hashes what it reads.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
    in_all: u64,
    digest: Sha256,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left.get().min(self.in_all)).unwrap_or(usize::MAX).min(buf.len());
        if most == 0 && !buf.is_empty() {
            // At the very end there is nothing to refuse.
            return match self.inner.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(io::Error::other("the archive has more headers, or more after its end, than an archive may")),
            };
        }
        let count = self.inner.read(&mut buf[..most])?;
        self.digest.update(&buf[..count]);
        self.left.set(self.left.get() - count as u64);
        self.in_all -= count as u64;
        Ok(count)
    }
}

/// A layer's archive, whatever it is packed with; told by its first bytes, because media types vary.
fn unpacked(path: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(path)?;
    let mut magic = [0; 4];
    let count = file.read(&mut magic)?;
    let file = BufReader::new(File::open(path)?);
    Ok(match &magic[..count] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    })
}

/// The digest of a file, in hexadecimal.
pub fn digest_of(path: &Path) -> io::Result<String> {
    let mut file = Metered {
        inner: File::open(path)?,
        left: Rc::new(Cell::new(u64::MAX)),
        in_all: u64::MAX,
        digest: Sha256::new(),
    };
    io::copy(&mut file, &mut io::sink())?;
    Ok(hexadecimal(file.digest))
}

pub(super) fn hexadecimal(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What this boot of the machine is called: what was written in it has not been lost to a power cut.
fn boot() -> Vec<u8> {
    fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// The layers of a store.
#[derive(Debug, Clone)]
pub struct Layers {
    dir: PathBuf,
}

impl Layers {
    /// Of the store in this directory.
    pub fn of(store: &Path) -> Self {
        Self { dir: store.join("layers") }
    }

    /// Where they lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn home(&self, diff_id: &str) -> PathBuf {
        self.dir.join(diff_id)
    }

    /// Whether this layer is here, whole.
    pub fn has(&self, diff_id: &str) -> bool {
        let home = self.home(diff_id);
        home.join("list").is_file()
            && (home.join(SETTLED).exists() || fs::read(home.join("boot")).is_ok_and(|known| known == boot()))
    }

    /// Unpacks an archive as this layer, if that is what it is.
    ///
    /// # Errors
    /// When the archive is another one, or does not read, or is too large; nothing is kept then.
    pub fn add(&self, archive: &Path, diff_id: &str) -> io::Result<()> {
        if self.has(diff_id) {
            return Ok(());
        }
        fs::create_dir_all(&self.dir)?;
        let partial = self.dir.join(format!(".partial-{}", uuid::Uuid::now_v7()));
        let done = self.unpack(archive, diff_id, &partial);
        let _ = fs::remove_dir_all(&partial);
        done
    }

    fn unpack(&self, archive: &Path, diff_id: &str, partial: &Path) -> io::Result<()> {
        fs::create_dir_all(partial.join("files"))?;
        let (said, found) = take_apart(unpacked(archive)?, &partial.join("files"))?;
        if found != diff_id {
            let detail = format!(
                "a layer's content is not what the image says: sha256:{diff_id} was expected, sha256:{found} came"
            );
            return Err(io::Error::other(detail));
        }
        write_list(&partial.join("list"), &said)?;
        fs::write(partial.join("boot"), boot())?;
        let home = self.home(diff_id);
        if home.exists() && !self.has(diff_id) {
            // From before a power cut, and perhaps not whole.
            fs::remove_dir_all(&home)?;
        }
        match fs::rename(partial, &home) {
            Err(error) if !self.has(diff_id) => Err(error),
            // Somebody else unpacked the same meanwhile; theirs is as good.
            _ => Ok(()),
        }
    }

    /// Does to a root file system what this layer says.
    pub fn apply(&self, diff_id: &str, root: &Root, allowance: &mut Allowance) -> io::Result<()> {
        let home = self.home(diff_id);
        let files: OwnedFd = File::open(home.join("files"))?.into();
        let said = read_list(&home.join("list"))?;
        // First for the whole layer: it may say that something from below is gone after it has put its own in that place.
        for Said { path, act } in &said {
            match act {
                Act::Whiteout => root.whiteout(path)?,
                Act::Opaque => root.opaque(path)?,
                Act::Directory { .. } | Act::File { .. } | Act::Symlink { .. } | Act::Link { .. } => {}
            }
        }
        for Said { path, act } in &said {
            allowance.entry()?;
            match act {
                Act::Whiteout | Act::Opaque => {}
                Act::Directory { mode } => root.directory(path, *mode)?,
                Act::File { number, size } => {
                    allowance.bytes(*size)?;
                    root.take_in(path, &files, OsStr::new(&number.to_string()))?;
                }
                Act::Symlink { target } => root.symlink(path, target)?,
                Act::Link { target } => root.hard_link(path, target)?,
            }
        }
        Ok(())
    }

    /// Notes that these layers have reached the disk.
    pub fn settle<'a>(&self, diff_ids: impl IntoIterator<Item = &'a String>) -> io::Result<()> {
        let file = File::open(&self.dir)?;
        // SAFETY: a plain system call on an open descriptor.
        if unsafe { libc::syncfs(std::os::fd::AsRawFd::as_raw_fd(&file)) } < 0 {
            return Err(io::Error::last_os_error());
        }
        for diff_id in diff_ids {
            File::create(self.home(diff_id).join(SETTLED))?;
        }
        Ok(())
    }
}

/// Reads an archive to its end: its files go to `files`, each under a number; what it says is listed. The digest is that of
/// the whole archive.
fn take_apart(archive: impl Read, files: &Path) -> io::Result<(Vec<Said>, String)> {
    let left = Rc::new(Cell::new(MAX_HEADERS));
    let metered =
        Metered { inner: archive, left: Rc::clone(&left), in_all: MAX_BYTES + MAX_OVERHEAD, digest: Sha256::new() };
    let mut archive = tar::Archive::new(metered);
    let mut allowance = Allowance::default();
    let mut said = Vec::new();
    let mut entries = archive.entries()?;
    loop {
        // What is read until the next entry is there is held in memory.
        left.set(MAX_HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry?;
        allowance.entry()?;
        // What there is to read of a sparse file is less than what it becomes.
        left.set(u64::MAX);
        allowance.bytes(entry.size())?;
        let path = entry.path()?.into_owned();
        names(&path)?;
        let act = read_entry(&mut entry, &path, files, said.len())?;
        // Whatever of it nobody wanted: else it would count as headers of the next.
        io::copy(&mut entry, &mut io::sink())?;
        said.extend(act);
    }
    drop(entries);
    let mut rest = archive.into_inner();
    left.set(MAX_TRAILER);
    io::copy(&mut rest, &mut io::sink())?;
    Ok((said, hexadecimal(rest.digest)))
}

/// Takes the plain files and the links out of an archive, for an image that came as one; everything else in it is passed over.
pub fn take_out(archive: &Path, root: &Root) -> io::Result<()> {
    let left = Rc::new(Cell::new(MAX_HEADERS));
    let in_all = MAX_BYTES + MAX_OVERHEAD;
    let metered = Metered { inner: unpacked(archive)?, left: Rc::clone(&left), in_all, digest: Sha256::new() };
    let mut archive = tar::Archive::new(metered);
    let mut allowance = Allowance::default();
    let mut entries = archive.entries()?;
    loop {
        left.set(MAX_HEADERS);
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry?;
        allowance.entry()?;
        left.set(u64::MAX);
        allowance.bytes(entry.size())?;
        let path = entry.path()?.into_owned();
        match (entry.header().entry_type(), entry.link_name()?.map(std::borrow::Cow::into_owned)) {
            (EntryType::Regular | EntryType::Continuous, _) => drop(root.write_file(&path, 0o600, &mut entry)?),
            (EntryType::Symlink, Some(target)) => root.symlink(&path, &target)?,
            (EntryType::Link, Some(target)) => root.hard_link(&path, &target)?,
            _ => {}
        }
        io::copy(&mut entry, &mut io::sink())?;
    }
}

fn read_entry(
    entry: &mut tar::Entry<'_, impl Read>,
    path: &Path,
    files: &Path,
    number: usize,
) -> io::Result<Option<Said>> {
    if let Some(name) = path.file_name().map(OsStrExt::as_bytes).filter(|name| name.starts_with(WHITEOUT)) {
        let dir = path.parent().unwrap_or(Path::new(""));
        if name == OPAQUE {
            return Ok(Some(Said { path: dir.to_owned(), act: Act::Opaque }));
        }
        let gone = &name[WHITEOUT.len()..];
        if matches!(gone, b"" | b"." | b"..") {
            return Err(io::Error::other("the archive removes something outside of it"));
        }
        return Ok(Some(Said { path: dir.join(OsStr::from_bytes(gone)), act: Act::Whiteout }));
    }
    let header = entry.header();
    let mode = header.mode().unwrap_or(0o644);
    let modified = header.mtime().ok();
    let target = entry.link_name()?.map(std::borrow::Cow::into_owned);
    let act = match (entry.header().entry_type(), target) {
        // The root's own entry says nothing that matters here.
        (EntryType::Directory, _) if names(path)?.is_empty() => return Ok(None),
        (EntryType::Directory, _) => Act::Directory { mode },
        (EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse, _) => {
            let number = u32::try_from(number).map_err(|_| too_large())?;
            let to = files.join(number.to_string());
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
            let size = io::copy(entry, &mut file)?;
            // The interpreters of some languages compare it with what they noted when they compiled the file.
            if let Some(modified) =
                modified.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            {
                // A time that this file system cannot hold.
                let _ = file.set_modified(modified);
            }
            // No setuid and setgid bits: nothing in a sandbox may use them, and no image needs to carry them. Owners and
            // extended attributes, capabilities among them, are left out too.
            file.set_permissions(Permissions::from_mode(mode & 0o777))?;
            Act::File { number, size }
        }
        (EntryType::Symlink, Some(target)) => Act::Symlink { target },
        (EntryType::Link, Some(target)) => {
            names(&target)?;
            Act::Link { target }
        }
        // Devices and pipes: a sandbox gets its own /dev, and nothing else may be one.
        _ => return Ok(None),
    };
    Ok(Some(Said { path: path.to_owned(), act }))
}

fn write_list(path: &Path, said: &[Said]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(FORMAT)?;
    let text = |file: &mut BufWriter<File>, text: &Path| {
        let bytes = text.as_os_str().as_bytes();
        let length = u32::try_from(bytes.len()).map_err(|_| too_large())?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(bytes)
    };
    for Said { path, act } in said {
        let (kind, number, size, target) = match act {
            Act::Whiteout => (b'w', 0, 0, None),
            Act::Opaque => (b'o', 0, 0, None),
            Act::Directory { mode } => (b'd', *mode, 0, None),
            Act::File { number, size } => (b'f', *number, *size, None),
            Act::Symlink { target } => (b's', 0, 0, Some(target)),
            Act::Link { target } => (b'l', 0, 0, Some(target)),
        };
        file.write_all(&[kind])?;
        file.write_all(&number.to_le_bytes())?;
        file.write_all(&size.to_le_bytes())?;
        text(&mut file, path)?;
        text(&mut file, target.map_or(Path::new(""), PathBuf::as_path))?;
    }
    file.flush()
}

fn read_list(path: &Path) -> io::Result<Vec<Said>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the list of a layer is damaged");
    let mut list = Vec::new();
    File::open(path)?.take(MAX_LIST).read_to_end(&mut list)?;
    let mut rest = list.strip_prefix(FORMAT).ok_or_else(damaged)?;
    let mut take = |count: usize| {
        let (taken, after) = rest.split_at_checked(count).ok_or_else(damaged)?;
        rest = after;
        Ok::<_, io::Error>(taken)
    };
    let mut said = Vec::new();
    loop {
        let Ok(kind) = take(1).map(|kind| kind[0]) else { return Ok(said) };
        let mut fixed = [0; 12];
        fixed.copy_from_slice(take(12)?);
        let number = u32::from_le_bytes([fixed[0], fixed[1], fixed[2], fixed[3]]);
        let size =
            u64::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7], fixed[8], fixed[9], fixed[10], fixed[11]]);
        let mut text = || {
            let mut length = [0; 4];
            length.copy_from_slice(take(4)?);
            let length = usize::try_from(u32::from_le_bytes(length)).map_err(|_| damaged())?;
            Ok::<_, io::Error>(PathBuf::from(OsStr::from_bytes(take(length)?)))
        };
        let (path, target) = (text()?, text()?);
        let act = match kind {
            b'w' => Act::Whiteout,
            b'o' => Act::Opaque,
            b'd' => Act::Directory { mode: number },
            b'f' => Act::File { number, size },
            b's' => Act::Symlink { target },
            b'l' => Act::Link { target },
            _ => return Err(damaged()),
        };
        said.push(Said { path, act });
    }
}
