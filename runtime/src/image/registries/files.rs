//! Files of an image, read as what they are: a stranger's. Links are resolved by the kernel within the image's root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use flate2::read::DeflateDecoder;
use nix::dir::Dir;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use regex::bytes::Regex;

/// Largest file of text, of which no more is read.
const MAX_TEXT: u64 = 1 << 20;
/// Largest program.
const MAX_PROGRAM: u64 = 512 << 20;
/// How much of a program is looked at at once.
const PIECE: usize = 1 << 20;
/// What of a piece is looked at again with the next: longer than any match.
const OVERLAP: usize = 512;
/// Most names of one folder.
const MAX_NAMES: usize = 256;
/// Most different things that are counted in one program.
const MAX_KINDS: usize = 256;

/// The files of one image.
pub struct Files {
    root: OwnedFd,
}

impl Files {
    pub fn open(rootfs: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self { root: open(rootfs, flags, Mode::empty())? })
    }

    fn at(&self, path: &str, flags: OFlag) -> Option<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        // A pipe without a writer would be waited for.
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        openat2(&self.root, path, OpenHow::new().flags(flags).resolve(resolve)).ok()
    }

    fn file(&self, path: &str) -> Option<File> {
        let file = File::from(self.at(path, OFlag::O_RDONLY)?);
        file.metadata().is_ok_and(|meta| meta.is_file()).then_some(file)
    }

    /// Whether there is a plain file.
    pub fn is_there(&self, path: &str) -> bool {
        self.file(path).is_some()
    }

    /// The start of a text; empty when there is none.
    pub fn text(&self, path: &str) -> String {
        let mut bytes = Vec::new();
        if let Some(file) = self.file(path) {
            let _ = file.take(MAX_TEXT).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The names in a folder, sorted.
    pub fn list(&self, path: &str) -> Vec<String> {
        let Some(mut dir) = self.at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).and_then(|fd| Dir::from_fd(fd).ok())
        else {
            return Vec::new();
        };
        let names = dir.iter().flatten().filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        let mut names: Vec<String> = names.filter(|name| name != "." && name != "..").take(MAX_NAMES).collect();
        names.sort();
        names
    }

    /// What a pattern's first group matches most often in a program.
    pub fn most_frequent(&self, path: &str, pattern: &Regex) -> Option<String> {
        let mut program = self.file(path)?.take(MAX_PROGRAM);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut piece = Vec::with_capacity(PIECE + OVERLAP);
        loop {
            let read = (&mut program).take(PIECE as u64).read_to_end(&mut piece).ok()?;
            if read == 0 {
                break;
            }
            let last = read < PIECE;
            let end = piece.len();
            for found in pattern.captures_iter(&piece) {
                let (Some(whole), Some(group)) = (found.get(0), found.get(1)) else { continue };
                // One that reaches into the part that is looked at again is counted then.
                if (last || whole.start() < end - OVERLAP.min(end)) && counts.len() < MAX_KINDS {
                    *counts.entry(String::from_utf8_lossy(group.as_bytes()).into_owned()).or_default() += 1;
                }
            }
            piece.drain(..end - OVERLAP.min(end));
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(found, _)| found)
    }

    /// A text out of the wheel (a zip archive) in this folder whose name begins so.
    pub fn in_wheel(&self, folder: &str, prefix: &str, inside: &str) -> Option<String> {
        let name = self.list(folder).into_iter().find(|name| name.starts_with(prefix) && name.ends_with(".whl"))?;
        let mut wheel = Vec::new();
        self.file(&format!("{folder}/{name}"))?.take(16 * MAX_TEXT).read_to_end(&mut wheel).ok()?;
        // The header of a file ends with its name: signature, 14 bytes, sizes, lengths of name and of extras.
        const HEADER: usize = 30;
        let place = wheel.windows(inside.len()).enumerate().find_map(|(place, window)| {
            let header = place.checked_sub(HEADER).filter(|_| window == inside.as_bytes())?;
            wheel[header..].starts_with(b"PK\x03\x04").then_some(header)
        })?;
        let number =
            |at: usize| Some(usize::from(u16::from_le_bytes([*wheel.get(place + at)?, *wheel.get(place + at + 1)?])));
        let content = wheel.get(place + HEADER + inside.len() + number(28)?..)?;
        let mut text = Vec::new();
        match number(8)? {
            0 => text.extend_from_slice(&content[..content.len().min(64 << 10)]),
            8 => drop(DeflateDecoder::new(content).take(MAX_TEXT).read_to_end(&mut text)),
            _ => return None,
        }
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}
