//! A unified diff, read into files and lines so that a template can colour and escape it.

use super::format;

/// Most bytes of a diff that are read for a page.
pub const MAX_DIFF_BYTES: usize = 2 * 1024 * 1024;
/// Most of one line that is shown, in bytes: minified files have lines of a megabyte.
pub const MAX_LINE_BYTES: usize = 2 * 1024;
/// Most files with a row of their own.
pub const MAX_FILES: usize = 300;
/// A file with at most this many lines starts open.
pub const OPEN_LINES: usize = 60;

/// How much of a diff a page shows.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most lines of the whole diff.
    pub lines: usize,
    /// Most lines of one file.
    pub lines_per_file: usize,
}

/// What the task page shows.
pub const ON_TASK_PAGE: Bounds = Bounds { lines: 1_500, lines_per_file: 400 };
/// What the page of the diff alone shows.
pub const ON_OWN_PAGE: Bounds = Bounds { lines: 20_000, lines_per_file: 10_000 };

/// A diff.
#[derive(Debug, Clone, Default)]
pub struct Diff {
    /// Its files.
    pub files: Vec<File>,
    /// Lines added in what was read.
    pub added: usize,
    /// Lines removed in what was read.
    pub removed: usize,
    /// What is not shown, in words.
    pub omitted: Option<String>,
}

/// One file of a diff.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// Its path, `old → new` where it moved.
    pub path: String,
    /// `new`, `deleted`, `renamed`, `binary` or nothing.
    pub change: &'static str,
    /// Lines added.
    pub added: usize,
    /// Lines removed.
    pub removed: usize,
    /// Its lines.
    pub lines: Vec<Line>,
    /// Lines that are not shown.
    pub omitted: usize,
    /// Whether it starts open.
    pub open: bool,
}

/// One line of a diff.
#[derive(Debug, Clone)]
pub struct Line {
    /// `add`, `del`, `ctx`, `hunk`.
    pub class: &'static str,
    /// Its number in the new file, or in the old one where it was removed.
    pub number: String,
    /// The text with its sign.
    pub text: String,
}

/// Reads a unified diff as git writes it. Never fails: what is not understood is shown as context.
pub fn read(diff: &[u8], bounds: Bounds) -> Diff {
    let read = &diff[..diff.len().min(MAX_DIFF_BYTES)];
    let mut reader = Reader { bounds, diff: Diff::default(), old: 0, new: 0, in_hunk: false, shown: 0 };
    for line in String::from_utf8_lossy(read).lines() {
        reader.line(line);
    }
    let mut result = reader.diff;
    let unread = diff.len() - read.len();
    let files = result.files.len().saturating_sub(MAX_FILES);
    result.files.truncate(MAX_FILES);
    let lines: usize = result.files.iter().map(|file| file.omitted).sum();
    let mut parts = Vec::new();
    if files > 0 {
        parts.push(format::count(files as u64, "file", "files"));
    }
    if lines > 0 {
        parts.push(format::count(lines as u64, "line", "lines"));
    }
    if unread > 0 {
        parts.push(format::bytes(unread as u64));
    }
    result.omitted = (!parts.is_empty()).then(|| format!("{} not shown here", parts.join(" and ")));
    for file in &mut result.files {
        file.open = file.omitted == 0 && file.lines.len() <= OPEN_LINES;
    }
    result
}

struct Reader {
    bounds: Bounds,
    diff: Diff,
    /// The number of the next line of the old file, and how many the hunk still holds is told by `in_hunk`.
    old: u64,
    new: u64,
    in_hunk: bool,
    shown: usize,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(names) = line.strip_prefix("diff --git ") {
            let path = names.split_once(" b/").map_or(names, |(_, new)| new).to_owned();
            self.diff.files.push(File { path, ..File::default() });
            self.in_hunk = false;
            return;
        }
        if line.starts_with("@@ ") {
            let (old, new) = hunk_starts(line);
            (self.old, self.new, self.in_hunk) = (old, new, true);
            self.show("hunk", String::new(), line);
            return;
        }
        if !self.in_hunk {
            self.header(line);
            return;
        }
        match line.as_bytes().first() {
            Some(b'+') => {
                self.diff.added += 1;
                if let Some(file) = self.diff.files.last_mut() {
                    file.added += 1;
                }
                self.show("add", self.new.to_string(), line);
                self.new += 1;
            }
            Some(b'-') => {
                self.diff.removed += 1;
                if let Some(file) = self.diff.files.last_mut() {
                    file.removed += 1;
                }
                self.show("del", self.old.to_string(), line);
                self.old += 1;
            }
            Some(b'\\') => self.show("hunk", String::new(), line),
            _ => {
                self.show("ctx", self.new.to_string(), line);
                self.old += 1;
                self.new += 1;
            }
        }
    }

    fn header(&mut self, line: &str) {
        let Some(file) = self.diff.files.last_mut() else { return };
        if line.starts_with("new file") {
            file.change = "new";
        } else if line.starts_with("deleted file") {
            file.change = "deleted";
        } else if let Some(from) = line.strip_prefix("rename from ") {
            file.change = "renamed";
            file.path = format!("{from} → {}", file.path);
        } else if line.starts_with("Binary files") || line.starts_with("GIT binary patch") {
            file.change = "binary";
        }
    }

    fn show(&mut self, class: &'static str, number: String, text: &str) {
        let Some(file) = self.diff.files.last_mut() else { return };
        if file.lines.len() >= self.bounds.lines_per_file || self.shown >= self.bounds.lines {
            file.omitted += 1;
            return;
        }
        self.shown += 1;
        let (text, cut) = format::head_of(text, MAX_LINE_BYTES);
        let text = if cut > 0 { format!("{text}… ({} more)", format::bytes(cut as u64)) } else { text.to_owned() };
        file.lines.push(Line { class, number, text });
    }
}

/// `@@ -10,7 +12,8 @@`: 10 and 12.
fn hunk_starts(line: &str) -> (u64, u64) {
    let start = |sign: char| {
        let rest = line.split(sign).nth(1)?;
        rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
    };
    (start('-').unwrap_or(1), start('+').unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str = "diff --git a/main.tf b/main.tf\nindex 1..2 100644\n--- a/main.tf\n+++ b/main.tf\n@@ -3,3 +3,3 @@ terraform {\n   aws = {\n-    version = \"~> 5.0\"\n+    version = \"~> 6.0\"\n   }\ndiff --git a/x b/y\nsimilarity index 90%\nrename from x\nrename to y\n";

    #[test]
    fn lines_are_numbered_and_counted() {
        let diff = read(DIFF.as_bytes(), ON_TASK_PAGE);
        assert_eq!((diff.files.len(), diff.added, diff.removed), (2, 1, 1));
        let lines: Vec<_> = diff.files[0].lines.iter().map(|line| (line.class, line.number.as_str())).collect();
        assert_eq!(lines, [("hunk", ""), ("ctx", "3"), ("del", "4"), ("add", "4"), ("ctx", "5")]);
        assert_eq!((diff.files[1].change, diff.files[1].path.as_str()), ("renamed", "x → y"));
        assert_eq!(diff.omitted, None);
    }

    #[test]
    fn what_is_left_out_is_said() {
        let long = format!("diff --git a/a b/a\n@@ -0,0 +1,900 @@\n{}", "+x\n".repeat(900));
        let diff = read(long.as_bytes(), ON_TASK_PAGE);
        assert_eq!((diff.added, diff.files[0].lines.len()), (900, 400));
        assert_eq!(diff.omitted.as_deref(), Some("501 lines not shown here"));
        let wide = format!("diff --git a/a b/a\n@@ -0,0 +1 @@\n+{}", "y".repeat(3_000_000));
        assert!(read(wide.as_bytes(), ON_TASK_PAGE).omitted.is_some_and(|text| text.contains("KiB not shown")));
    }

    #[test]
    fn a_removed_line_that_looks_like_a_header_is_a_line() {
        let diff = read(b"diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1,1 +1,1 @@\n--- old\n+++ new\n", ON_TASK_PAGE);
        assert_eq!((diff.added, diff.removed), (1, 1));
    }
}
