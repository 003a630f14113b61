//! Exports, written so that a mutation of their text is another export that git can read: a pack's sums and compression leave
//! a fuzzer nothing to change.
//!
//! A script is lines. `blob TEXT`, `object KIND TEXT` and `commit REF PARENTS TEXT` make an object. `tree` begins a directory with
//! nothing in it, `edit` one with the base's entries; `MODE REF NAME` puts a name in, `drop NAME` takes one out, in an `edit` in git's
//! order. `squash` and `strict` choose rules, `tip REF` what is announced, `cut NUMBER` where the stream ends. A REF is `#n` (the nth
//! object, counted from the last), `^` (the base), `~` (its parent) or `@NAME` (of the base's entries); parents are separated by
//! commas. In texts and names `%41` is a byte. What follows a line `export` is an export as it comes, and a line `repaired` the same
//! with the sum at its end put right.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use git2::{ObjectType, Oid};
use openssl::sha::sha1;
use orchestra_runtime::git::History;

use super::world::World;

/// Most objects of a script: as many as a pack of it may hold, and some more.
const MAX_OBJECTS: usize = 128;
/// The bytes of the sum that a pack ends with.
const SUM: usize = 20;

/// A name in a directory.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub mode: Vec<u8>,
    pub name: Vec<u8>,
    pub id: Oid,
}

/// What is imported, and under which rules.
pub(super) struct Export {
    pub history: History,
    pub strict: bool,
    pub bytes: Vec<u8>,
}

/// A directory's bytes, in the order given.
pub(super) fn tree_bytes(entries: &[Entry]) -> Vec<u8> {
    let parts = entries.iter().flat_map(|entry| [&entry.mode[..], b" ", &entry.name, b"\0", entry.id.as_bytes()]);
    parts.flatten().copied().collect()
}

/// As git sorts: a directory as if its name ended in a slash.
pub(super) fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|entry| [&entry.name[..], if entry.mode == b"40000" { b"/" } else { b"" }].concat());
    entries
}

fn unescaped(text: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((&first, more)) = rest.split_first() {
        let digit = |at: usize| more.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &more[2..];
            }
            _ => {
                bytes.push(first);
                rest = more;
            }
        }
    }
    bytes
}

/// An object and the number of its kind in a pack.
struct Object {
    kind: u8,
    bytes: Vec<u8>,
    id: Oid,
}

/// A directory that is being written.
struct Open {
    entries: Vec<Entry>,
    in_order: bool,
}

struct Script<'a> {
    world: &'a World,
    objects: Vec<Object>,
    open: Option<Open>,
    tip: Option<Oid>,
    cut: Option<usize>,
    history: History,
    strict: bool,
}

impl Script<'_> {
    fn add(&mut self, kind: u8, bytes: Vec<u8>) {
        let hashed = match kind {
            1 => Some(ObjectType::Commit),
            2 => Some(ObjectType::Tree),
            3 => Some(ObjectType::Blob),
            4 => Some(ObjectType::Tag),
            _ => None,
        };
        let id = hashed.map_or_else(zero, |kind| Oid::hash_object(kind, &bytes).expect("it is hashed in memory"));
        if self.objects.len() < MAX_OBJECTS {
            self.objects.push(Object { kind, bytes, id });
        }
    }

    fn close(&mut self) {
        if let Some(Open { entries, in_order }) = self.open.take() {
            let entries = if in_order { sorted(entries) } else { entries };
            self.add(2, tree_bytes(&entries));
        }
    }

    fn reference(&self, text: &[u8]) -> Oid {
        match text.split_first() {
            Some((b'#', number)) => {
                let back =
                    std::str::from_utf8(number).ok().and_then(|number| number.parse::<usize>().ok()).unwrap_or(0);
                let object = self.objects.len().checked_sub(back + 1).and_then(|at| self.objects.get(at));
                object.map_or_else(zero, |object| object.id)
            }
            Some((b'^', _)) => Oid::from_str(self.world.base.as_str()).expect("an id"),
            Some((b'~', _)) => self.world.older,
            Some((b'@', name)) => {
                let entry = self.world.entries.iter().find(|entry| entry.name == name);
                entry.map_or_else(zero, |entry| entry.id)
            }
            _ => zero(),
        }
    }

    fn line(&mut self, line: &[u8]) {
        let (word, rest) = split(line);
        match word {
            b"squash" => self.history = History::Squash,
            b"strict" => self.strict = true,
            b"tip" => self.tip = Some(self.reference(rest)),
            b"cut" => self.cut = std::str::from_utf8(rest).ok().and_then(|number| number.parse().ok()),
            b"blob" => {
                self.close();
                self.add(3, unescaped(rest));
            }
            b"object" => {
                self.close();
                let (kind, text) = split(rest);
                self.add(kind.first().map_or(0, |digit| digit & 7), unescaped(text));
            }
            b"tree" | b"edit" => {
                self.close();
                let in_order = word == b"edit";
                let entries = if in_order { self.world.entries.clone() } else { Vec::new() };
                self.open = Some(Open { entries, in_order });
            }
            b"drop" => {
                let name = unescaped(rest);
                self.open.iter_mut().for_each(|open| open.entries.retain(|entry| entry.name != name));
            }
            b"commit" => {
                self.close();
                let ((tree, rest), mut text) = (split(rest), b"tree ".to_vec());
                let (parents, message) = split(rest);
                text.extend(self.reference(tree).to_string().bytes());
                for parent in parents.split(|byte| *byte == b',').filter(|parent| !parent.is_empty() && *parent != b"-")
                {
                    text.extend(format!("\nparent {}", self.reference(parent)).bytes());
                }
                text.extend(b"\nauthor A <a@b> 0 +0000\ncommitter A <a@b> 0 +0000\n\n");
                text.extend(unescaped(message));
                self.add(1, text);
            }
            mode if mode.first().is_some_and(u8::is_ascii_digit) => {
                let (reference, name) = split(rest);
                let entry = Entry { mode: mode.to_vec(), name: unescaped(name), id: self.reference(reference) };
                if let Some(Open { entries, in_order }) = &mut self.open {
                    entries.retain(|other| !*in_order || other.name != entry.name);
                    entries.push(entry);
                }
            }
            _ => {}
        }
    }

    fn export(mut self) -> Export {
        self.close();
        let last = || self.objects.last().map_or_else(zero, |object| object.id);
        let mut bytes = format!("tip {}\n", self.tip.unwrap_or_else(last)).into_bytes();
        let mut pack = b"PACK\0\0\0\x02".to_vec();
        pack.extend(u32::try_from(self.objects.len()).expect("a bounded number").to_be_bytes());
        for object in &self.objects {
            let mut size = object.bytes.len();
            let mut byte = (object.kind << 4) | (size & 15) as u8;
            size >>= 4;
            while size > 0 {
                pack.push(byte | 0x80);
                byte = (size & 0x7f) as u8;
                size >>= 7;
            }
            pack.push(byte);
            let mut deflated = ZlibEncoder::new(Vec::new(), Compression::fast());
            deflated.write_all(&object.bytes).expect("into memory");
            pack.extend(deflated.finish().expect("into memory"));
        }
        pack.extend(sha1(&pack));
        bytes.extend(pack);
        bytes.truncate(self.cut.unwrap_or(usize::MAX));
        Export { history: self.history, strict: self.strict, bytes }
    }
}

fn zero() -> Oid {
    Oid::from_bytes(&[0; 20]).expect("20 bytes")
}

/// A line's first word, and what follows it.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    (&line[..end], line.get(end + 1..).unwrap_or_default())
}

fn repaired(export: &[u8]) -> Vec<u8> {
    let mut bytes = export.to_vec();
    let start = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if let Some(end) = bytes.len().checked_sub(SUM).filter(|end| *end > start) {
        let sum = sha1(&bytes[start..end]);
        bytes[end..].copy_from_slice(&sum);
    }
    bytes
}

/// What an input stands for.
pub(super) fn export(input: &[u8], world: &World) -> Export {
    let as_it_comes = |bytes| Export { history: History::Keep, strict: false, bytes };
    if let Some(export) = input.strip_prefix(b"export\n") {
        return as_it_comes(export.to_vec());
    }
    if let Some(export) = input.strip_prefix(b"repaired\n") {
        return as_it_comes(repaired(export));
    }
    let (objects, history) = (Vec::new(), History::Keep);
    let mut script = Script { world, objects, open: None, tip: None, cut: None, history, strict: false };
    input.split(|byte| *byte == b'\n').for_each(|line| script.line(line));
    script.export()
}
