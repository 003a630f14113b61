//! Reading, writing and editing one file.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read as _};
use std::path::Path;

use serde::Deserialize;

use super::{Answer, at};

/// Lines shown when no limit is given, and at most.
const MAX_LINES: usize = 2_000;
/// Characters shown of one line; minified files have lines of megabytes.
const MAX_LINE_CHARS: usize = 2_000;
/// Bytes of text in one answer.
const MAX_TEXT: usize = 100 * 1024;
/// Largest file that `edit` takes.
const MAX_EDIT: u64 = 16 * 1024 * 1024;
/// Bytes looked at to tell binary from text.
const SNIFF: usize = 8 * 1024;

/// Which lines of which file to read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    path: String,
    /// The first line, counted from 1.
    #[serde(default)]
    offset: Option<usize>,
    #[serde(default)]
    limit: Option<usize>,
}

/// What to write where.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    path: String,
    content: String,
}

/// What to replace by what.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    path: String,
    old_string: String,
    new_string: String,
    #[serde(default)]
    replace_all: bool,
}

fn failed(path: &str, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => format!("{path} does not exist. Use glob to look for it."),
        ErrorKind::IsADirectory => format!("{path} is a directory. Use glob to list it."),
        ErrorKind::PermissionDenied => format!("{path} may not be accessed by this user."),
        ErrorKind::StorageFull => format!("{path} was not written: the disk is full."),
        _ => format!("{path}: {error}."),
    }
}

/// Opens a regular file; anything else (a pipe, a device) could block or never end.
fn open(path: &str, full: &Path) -> Result<File, String> {
    let kind = fs::metadata(full).map_err(|error| failed(path, &error))?;
    if kind.is_dir() {
        return Err(failed(path, &ErrorKind::IsADirectory.into()));
    }
    if !kind.is_file() {
        return Err(format!("{path} is not a regular file."));
    }
    File::open(full).map_err(|error| failed(path, &error))
}

/// Shows numbered lines.
pub fn read(root: &Path, call: Read) -> Answer {
    let path = &call.path;
    let mut reader = BufReader::with_capacity(SNIFF, open(path, &at(root, path))?);
    if reader.fill_buf().map_err(|error| failed(path, &error))?.contains(&0) {
        return Err(format!("{path} is a binary file and is not shown."));
    }
    let first = call.offset.unwrap_or(1).max(1);
    let limit = call.limit.unwrap_or(MAX_LINES).clamp(1, MAX_LINES);
    let mut text = String::new();
    let mut number = 0;
    let mut next = None;
    while let Some(line) = next_line(&mut reader).map_err(|error| failed(path, &error))? {
        number += 1;
        if number < first {
            continue;
        }
        if number >= first + limit || text.len() >= MAX_TEXT {
            next = Some(number);
            break;
        }
        let line = String::from_utf8_lossy(&line);
        let cut: String = line.chars().take(MAX_LINE_CHARS).collect();
        let more = if cut.len() < line.len() { " [line cut]" } else { "" };
        text.push_str(&format!("{number:>6}\t{cut}{more}\n"));
    }
    match next {
        Some(line) => text.push_str(&format!("[more lines follow; read on with offset {line}]\n")),
        None if number == 0 => text.push_str("[the file is empty]\n"),
        None if text.is_empty() => return Err(format!("{path} has only {number} lines.")),
        None => {}
    }
    Ok(text)
}

/// The next line without its ending; of a longer one only a bounded start, the rest is skipped.
fn next_line(reader: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    const KEEP: u64 = MAX_LINE_CHARS as u64 * 4 + 4;
    let mut line = Vec::new();
    if reader.by_ref().take(KEEP).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        loop {
            let chunk = reader.fill_buf()?;
            let newline = chunk.iter().position(|byte| *byte == b'\n');
            let used = newline.map_or(chunk.len(), |at| at + 1);
            let done = newline.is_some() || chunk.is_empty();
            reader.consume(used);
            if done {
                break;
            }
        }
    }
    while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        line.pop();
    }
    Ok(Some(line))
}

/// Writes a whole file, with the directories it needs.
pub fn write(root: &Path, call: Write) -> Answer {
    let path = &call.path;
    let full = at(root, path);
    let existed = full.exists();
    if let Some(parent) = full.parent() {
        fs::create_dir_all(parent).map_err(|error| failed(path, &error))?;
    }
    fs::write(&full, &call.content).map_err(|error| failed(path, &error))?;
    let verb = if existed { "Replaced" } else { "Created" };
    Ok(format!("{verb} {path} ({} bytes).\n", call.content.len()))
}

/// Replaces one exact occurrence, or all of them.
pub fn edit(root: &Path, call: Edit) -> Answer {
    let path = &call.path;
    let full = at(root, path);
    if call.old_string.is_empty() {
        return Err("old_string is empty. Use write to create a file.".into());
    }
    if call.old_string == call.new_string {
        return Err("old_string and new_string are the same; nothing would change.".into());
    }
    let mut bytes = Vec::new();
    let file = open(path, &full)?;
    file.take(MAX_EDIT + 1).read_to_end(&mut bytes).map_err(|error| failed(path, &error))?;
    if bytes.len() as u64 > MAX_EDIT {
        return Err(format!("{path} is larger than {} MiB and cannot be edited.", MAX_EDIT >> 20));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8 text and cannot be edited."))?;
    let found = text.matches(&call.old_string).count();
    if found == 0 {
        let applied = !call.new_string.is_empty() && text.contains(&call.new_string);
        let hint = if applied { " new_string is already there: the edit may have been made before." } else { "" };
        return Err(format!("old_string was not found in {path}.{hint} Read the file and copy the text exactly."));
    }
    if found > 1 && !call.replace_all {
        return Err(format!(
            "old_string matches {found} times in {path}. Add surrounding lines until it matches once, or set replace_all."
        ));
    }
    let changed = text.replace(&call.old_string, &call.new_string);
    fs::write(&full, changed).map_err(|error| failed(path, &error))?;
    let times = if found == 1 { "once".to_owned() } else { format!("{found} times") };
    Ok(format!("Replaced {times} in {path}.\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("orchestra-init-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn reading(path: &str, offset: Option<usize>, limit: Option<usize>) -> Read {
        Read { path: path.into(), offset, limit }
    }

    fn editing(path: &str, old: &str, new: &str, replace_all: bool) -> Edit {
        Edit { path: path.into(), old_string: old.into(), new_string: new.into(), replace_all }
    }

    #[test]
    fn lines_are_numbered_and_paged() {
        let root = folder("read");
        let text: String = (1..=5_000).map(|n| format!("line {n}\r\n")).collect();
        fs::write(root.join("a.txt"), text).unwrap();
        let page = read(&root, reading("a.txt", Some(10), Some(2))).unwrap();
        assert_eq!(page, "    10\tline 10\n    11\tline 11\n[more lines follow; read on with offset 12]\n");
        assert!(read(&root, reading("a.txt", None, None)).unwrap().ends_with("offset 2001]\n"));
        assert_eq!(read(&root, reading("a.txt", Some(6_000), None)).unwrap_err(), "a.txt has only 5000 lines.");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn binary_missing_endless_and_huge_lines_are_handled() {
        let root = folder("odd");
        fs::write(root.join("b"), b"\x7fELF\0\0").unwrap();
        fs::write(root.join("long"), format!("{}\nnext\n", "x".repeat(3_000_000))).unwrap();
        fs::write(root.join("empty"), "").unwrap();
        assert!(read(&root, reading("b", None, None)).unwrap_err().contains("binary"));
        assert!(read(&root, reading("none", None, None)).unwrap_err().contains("does not exist"));
        assert!(read(&root, reading("/dev/zero", None, None)).unwrap_err().contains("not a regular file"));
        assert!(read(&root, reading(".", None, None)).unwrap_err().contains("directory"));
        assert_eq!(read(&root, reading("empty", None, None)).unwrap(), "[the file is empty]\n");
        let long = read(&root, reading("long", None, None)).unwrap();
        assert!(long.contains("[line cut]") && long.ends_with("     2\tnext\n") && long.len() < 3_000);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn writing_creates_parents_and_says_which() {
        let root = folder("write");
        let call = || Write { path: "a/b/c.txt".into(), content: "hi".into() };
        assert_eq!(write(&root, call()).unwrap(), "Created a/b/c.txt (2 bytes).\n");
        assert_eq!(write(&root, call()).unwrap(), "Replaced a/b/c.txt (2 bytes).\n");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_edit_must_match_once() {
        let root = folder("edit");
        fs::write(root.join("f"), "one two two").unwrap();
        assert!(edit(&root, editing("f", "two", "2", false)).unwrap_err().contains("matches 2 times"));
        assert_eq!(edit(&root, editing("f", "one", "1", false)).unwrap(), "Replaced once in f.\n");
        assert!(edit(&root, editing("f", "one", "1", false)).unwrap_err().contains("already there"));
        assert_eq!(edit(&root, editing("f", "two", "2", true)).unwrap(), "Replaced 2 times in f.\n");
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "1 2 2");
        assert!(edit(&root, editing("f", "", "2", true)).is_err());
        fs::remove_dir_all(root).unwrap();
    }
}
