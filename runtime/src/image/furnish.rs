//! What every root file system needs to be a sandbox's: mount points, a user, and nothing of the host's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::os::fd::OwnedFd;

use super::ImageError;

/// Largest user list that is read.
const MAX_USERS: u64 = 4 << 20;
const DIRECTORIES: &[(&str, u32)] = &[
    ("workspace", 0o755),
    ("orch", 0o755),
    ("home/agent", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
    ("etc", 0o755),
];
const GIT: &str = "[safe]\n\tdirectory = *\n[user]\n\tname = Agent\n\temail = agent@localhost\n[init]\n\tdefaultBranch = main\n\
                   [advice]\n\tdetachedHead = false\n[gc]\n\tauto = 0\n";

/// Opens a directory below another, made if missing, never through a link.
fn directory(parent: &OwnedFd, name: &str, mode: u32) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_bits_truncate(mode)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(|error| match error {
        Errno::ELOOP | Errno::ENOTDIR => io::Error::other(format!("/{name} in the image is not a directory")),
        error => error.into(),
    })
}

fn write(parent: &OwnedFd, name: &str, text: &str, mode: u32) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(parent, name, flags, Mode::from_bits_truncate(mode))?);
    fchmod(&file, Mode::from_bits_truncate(mode))?;
    file.write_all(text.as_bytes())
}

fn read(parent: &OwnedFd, name: &str) -> io::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut text = String::new();
    match openat(parent, name, flags, Mode::empty()) {
        Ok(file) => File::from(file).take(MAX_USERS).read_to_string(&mut text)?,
        Err(Errno::ENOENT) => 0,
        Err(error) => return Err(error.into()),
    };
    Ok(text)
}

/// Adds a line about id 1000 unless there is one.
fn know_agent(etc: &OwnedFd, file: &str, line: &str) -> io::Result<()> {
    let mut text = read(etc, file)?;
    if text.lines().any(|line| line.split(':').nth(2) == Some("1000")) {
        return Ok(());
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    write(etc, file, &text, 0o644)
}

fn furnish_root(rootfs: &Path) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open(rootfs, flags, Mode::empty())?;
    fchmod(&root, Mode::from_bits_truncate(0o755))?;
    for (path, mode) in DIRECTORIES {
        let mut at = root.try_clone()?;
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            at = directory(&at, name, if names.peek().is_some() { 0o755 } else { *mode })?;
        }
        fchmod(&at, Mode::from_bits_truncate(*mode))?;
    }
    write(&directory(&root, "orch", 0o755)?, "init", "", 0o755)?;
    let etc = directory(&root, "etc", 0o755)?;
    know_agent(&etc, "passwd", "agent:x:1000:1000::/home/agent:/bin/bash\n")?;
    know_agent(&etc, "group", "agent:x:1000:\n")?;
    // These come from the host when a root file system is bootstrapped, and say things about it.
    write(&etc, "hostname", "sandbox\n", 0o644)?;
    write(&etc, "hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n", 0o644)?;
    write(&etc, "resolv.conf", "", 0o644)?;
    write(&etc, "gitconfig", GIT, 0o644)
}

/// Prepares a root file system, which may be hostile: no link in it is followed.
pub fn furnish(rootfs: &Path) -> Result<(), ImageError> {
    furnish_root(rootfs).map_err(ImageError::io("preparing", rootfs))
}

/// Bytes and entries of a tree, no link followed.
pub fn measure(rootfs: &Path) -> Result<(u64, u64), ImageError> {
    let (mut bytes, mut entries) = (0, 0);
    let mut open = vec![rootfs.to_owned()];
    while let Some(dir) = open.pop() {
        let measuring = || ImageError::io("measuring", &dir);
        for entry in std::fs::read_dir(&dir).map_err(measuring())? {
            let entry = entry.map_err(measuring())?;
            let meta = entry.metadata().map_err(measuring())?;
            entries += 1;
            if meta.is_dir() {
                open.push(entry.path());
            } else if meta.is_file() {
                bytes += meta.len();
            }
        }
    }
    Ok((bytes, entries))
}
