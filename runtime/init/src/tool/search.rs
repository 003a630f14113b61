//! Finding files by name and lines by pattern, with the repository's own ignore rules.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use globset::{GlobBuilder, GlobMatcher};
use ignore::WalkBuilder;
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use super::{Answer, at, shown};

/// Files named in one answer.
const MAX_FILES: usize = 200;
/// Entries visited in one search; a bigger tree is searched in part, and the answer says so.
const MAX_VISITED: usize = 200_000;
/// Matching lines in one answer.
const MAX_MATCHES: usize = 200;
/// Bytes of text in one answer.
const MAX_TEXT: usize = 64 * 1024;
/// Largest file that is searched.
const MAX_SEARCHED: u64 = 8 * 1024 * 1024;
/// Characters shown of one line.
const MAX_LINE_CHARS: usize = 400;
/// Lines of context on each side, at most.
const MAX_CONTEXT: usize = 20;
/// Memory for one compiled pattern.
const MAX_PATTERN: usize = 4 * 1024 * 1024;

/// Which names to look for, and where.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Glob {
    pattern: String,
    #[serde(default)]
    path: Option<String>,
}

/// Which lines to look for, and where.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grep {
    pattern: String,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    glob: Option<String>,
    #[serde(default)]
    context: usize,
    #[serde(default)]
    case_insensitive: bool,
}

/// A pattern without a slash is about the file's name alone, wherever it is.
fn matcher(pattern: &str) -> Result<GlobMatcher, String> {
    let anywhere = if pattern.contains('/') { pattern.to_owned() } else { format!("**/{pattern}") };
    let glob = GlobBuilder::new(anywhere.trim_start_matches("./")).literal_separator(true).build();
    Ok(glob.map_err(|error| format!("The glob is not valid: {error}."))?.compile_matcher())
}

/// Every file below `start` that the ignore rules leave, hidden ones included, `.git` not. True when cut short.
fn walk(start: &Path, mut visit: impl FnMut(PathBuf) -> bool) -> bool {
    let walker = WalkBuilder::new(start).hidden(false).require_git(false).sort_by_file_name(Ord::cmp).build();
    for (count, entry) in walker.enumerate() {
        if count >= MAX_VISITED {
            return true;
        }
        let Ok(entry) = entry else { continue };
        let inside_git = entry.path().strip_prefix(start).is_ok_and(|path| path.starts_with(".git"));
        if !inside_git && entry.file_type().is_some_and(|kind| kind.is_file()) && !visit(entry.into_path()) {
            return false;
        }
    }
    false
}

fn start(root: &Path, path: Option<&str>) -> Result<PathBuf, String> {
    let start = at(root, path.unwrap_or("."));
    let start = fs::canonicalize(&start).map_err(|_| format!("{} does not exist.", path.unwrap_or(".")))?;
    Ok(start)
}

/// Lists files by name, the latest changed first.
pub fn glob(root: &Path, call: Glob) -> Answer {
    let matcher = matcher(&call.pattern)?;
    let base = start(root, call.path.as_deref())?;
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    let cut = walk(&base, |path| {
        if matcher.is_match(path.strip_prefix(&base).unwrap_or(&path)) {
            let time = fs::symlink_metadata(&path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            found.push((time, path));
        }
        true
    });
    if found.is_empty() {
        return Ok(format!("No file matches {}.\n", call.pattern));
    }
    let total = found.len();
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let mut text = String::new();
    for (_, path) in found.iter().take(MAX_FILES) {
        let _ = writeln!(text, "{}", shown(&root, path));
    }
    if total > MAX_FILES {
        let _ = writeln!(text, "[{} more; narrow the pattern or the path]", total - MAX_FILES);
    }
    if cut {
        let _ = writeln!(text, "[only the first {MAX_VISITED} entries were looked at; narrow the path]");
    }
    Ok(text)
}

/// Shows the lines that match, with their file and number.
pub fn grep(root: &Path, call: Grep) -> Answer {
    let mut pattern = RegexBuilder::new(&call.pattern);
    pattern.case_insensitive(call.case_insensitive).size_limit(MAX_PATTERN);
    let pattern =
        pattern.build().map_err(|error| format!("The pattern is not a valid regular expression: {error}."))?;
    let names = call.glob.as_deref().map(matcher).transpose()?;
    let base = start(root, call.path.as_deref())?;
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let mut answer = Matches { text: String::new(), count: 0, full: false };
    let context = call.context.min(MAX_CONTEXT);
    let cut = walk(&base, |path| {
        let name = path.strip_prefix(&base).ok().filter(|name| !name.as_os_str().is_empty());
        let name = name.map_or_else(|| path.file_name().map(Path::new).unwrap_or(&path), |name| name);
        if names.as_ref().is_none_or(|names| names.is_match(name)) {
            search(&path, &shown(&root, &path), &pattern, context, &mut answer);
        }
        !answer.full
    });
    if answer.count == 0 {
        answer.text = format!("Nothing matches {}.\n", call.pattern);
    }
    if answer.full {
        answer.text.push_str("[more matches follow; narrow the pattern, the path or the glob]\n");
    }
    if cut {
        let _ = writeln!(answer.text, "[only the first {MAX_VISITED} entries were looked at; narrow the path]");
    }
    Ok(answer.text)
}

struct Matches {
    text: String,
    count: usize,
    full: bool,
}

fn search(path: &Path, name: &str, pattern: &Regex, context: usize, answer: &mut Matches) {
    let mut bytes = Vec::new();
    let Ok(file) = File::open(path) else { return };
    if file.take(MAX_SEARCHED + 1).read_to_end(&mut bytes).is_err() || bytes.len() as u64 > MAX_SEARCHED {
        return;
    }
    if bytes.contains(&0) || !pattern.is_match(&bytes) {
        return;
    }
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let mut shown_to = 0;
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| pattern.is_match(line)) {
        if answer.count >= MAX_MATCHES || answer.text.len() >= MAX_TEXT {
            answer.full = true;
            return;
        }
        answer.count += 1;
        let from = index.saturating_sub(context).max(shown_to);
        if context > 0 && from > shown_to && shown_to > 0 {
            answer.text.push_str("--\n");
        }
        let to = (index + context + 1).min(lines.len());
        for number in from..to {
            let mark = if lines[number] == *line && number == index { ':' } else { '-' };
            let line = String::from_utf8_lossy(lines[number]);
            let line: String = line.trim_end_matches('\r').chars().take(MAX_LINE_CHARS).collect();
            if mark == ':' || !pattern.is_match(lines[number]) {
                let _ = writeln!(answer.text, "{name}{mark}{}{mark}{line}", number + 1);
            } else {
                // The next match prints itself with its own context.
                shown_to = number;
                break;
            }
            shown_to = number + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("orchestra-search-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("src/deep")).unwrap();
        fs::create_dir_all(path.join("target")).unwrap();
        fs::create_dir_all(path.join(".git")).unwrap();
        fs::write(path.join(".gitignore"), "target\n").unwrap();
        fs::write(path.join("src/a.rs"), "fn one() {}\nfn two() {}\nlet x;\nfn three() {}\n").unwrap();
        fs::write(path.join("src/deep/b.rs"), "// ONE\n").unwrap();
        fs::write(path.join("target/c.rs"), "fn one() {}\n").unwrap();
        fs::write(path.join(".git/config"), "fn one() {}\n").unwrap();
        path
    }

    fn grepping(pattern: &str) -> Grep {
        Grep { pattern: pattern.into(), path: None, glob: None, context: 0, case_insensitive: false }
    }

    #[test]
    fn names_are_found_newest_first_without_ignored_ones() {
        let root = folder("glob");
        let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
        File::options().write(true).open(root.join("src/a.rs")).unwrap().set_modified(old).unwrap();
        let call = |pattern: &str| Glob { pattern: pattern.into(), path: None };
        assert_eq!(glob(&root, call("*.rs")).unwrap(), "src/deep/b.rs\nsrc/a.rs\n");
        assert_eq!(glob(&root, call("src/*.rs")).unwrap(), "src/a.rs\n");
        assert_eq!(glob(&root, call("*.zip")).unwrap(), "No file matches *.zip.\n");
        assert!(glob(&root, call("[")).is_err());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn lines_are_found_with_context_glob_and_case() {
        let root = folder("grep");
        assert_eq!(grep(&root, grepping("fn one")).unwrap(), "src/a.rs:1:fn one() {}\n");
        let call = Grep { case_insensitive: true, ..grepping("one") };
        assert_eq!(grep(&root, call).unwrap(), "src/a.rs:1:fn one() {}\nsrc/deep/b.rs:1:// ONE\n");
        let call = Grep { glob: Some("src/deep/*.rs".into()), case_insensitive: true, ..grepping("one") };
        assert_eq!(grep(&root, call).unwrap(), "src/deep/b.rs:1:// ONE\n");
        let call = Grep { context: 1, path: Some("src/a.rs".into()), ..grepping("let|two") };
        let expected = "src/a.rs-1-fn one() {}\nsrc/a.rs:2:fn two() {}\nsrc/a.rs:3:let x;\nsrc/a.rs-4-fn three() {}\n";
        assert_eq!(grep(&root, call).unwrap(), expected);
        assert!(grep(&root, grepping("(")).unwrap_err().contains("regular expression"));
        assert_eq!(grep(&root, grepping("absent")).unwrap(), "Nothing matches absent.\n");
        fs::remove_dir_all(root).unwrap();
    }
}
