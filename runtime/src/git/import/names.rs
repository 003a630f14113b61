//! Which names and link targets may be in a tree that other people's git clients will check out.

use super::rules::NameRules;

/// Names that git gives a meaning to when they are not ordinary files.
const GIT_FILES: [&str; 5] = ["gitmodules", "gitattributes", "gitignore", "gitconfig", "mailmap"];
/// The six characters and two more that NTFS makes of such a name once `GITMOD~1` to `GITMOD~4` are taken (git's
/// `path.c`), in the order of the list above.
const HASHED_SHORT_NAMES: [&str; 4] = ["gi7eba", "gi7d29", "gi250a", "maba30"];
/// The longest path component, as on every common file system.
const MAX_NAME_BYTES: usize = 255;
/// Names of devices that Windows sees in place of a file of that name, with any extension (Microsoft's "Naming Files,
/// Paths, and Namespaces").
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

/// What is wrong with one path component, if anything.
pub(super) fn fault(name: &[u8]) -> Option<&'static str> {
    if name.is_empty() || name == b"." || name == b".." {
        return Some("a path leaves its directory");
    }
    if name.len() > MAX_NAME_BYTES {
        return Some("a file name is longer than 255 bytes");
    }
    if name.contains(&b'/') || name.contains(&b'\\') {
        return Some("a file name holds a slash or backslash");
    }
    if name.iter().any(u8::is_ascii_control) || String::from_utf8_lossy(name).contains(is_deceptive) {
        return Some("a file name holds a control character");
    }
    if name.windows(3).any(|three| three == b"::$") {
        return Some("a file name is a stream of another file on Windows");
    }
    if is_dot_git(name) {
        return Some("a path goes through a `.git` in disguise");
    }
    None
}

/// What is wrong with a name that was not there before, if anything: what the operator decides.
pub(super) fn unwanted(name: &[u8], rules: &NameRules) -> Option<&'static str> {
    if !rules.non_utf8 && std::str::from_utf8(name).is_err() {
        return Some("a new file name is not UTF-8");
    }
    if !rules.not_on_windows && is_not_on_windows(name) {
        return Some("a new file name is one that Windows cannot store");
    }
    None
}

/// Whether Windows stores this name as another one, as a device, or not at all.
fn is_not_on_windows(name: &[u8]) -> bool {
    let text = String::from_utf8_lossy(name).to_ascii_lowercase();
    let stem = text.split('.').next().unwrap_or_default().trim_end();
    let numbered = ["com", "lpt"].iter().any(|port| {
        let number = stem.strip_prefix(port).unwrap_or_default();
        matches!(number, "\u{b9}" | "\u{b2}" | "\u{b3}") || (number.len() == 1 && number.as_bytes()[0].is_ascii_digit())
    });
    numbered
        || DEVICES.contains(&stem)
        || text.ends_with(['.', ' '])
        || text.contains(['<', '>', ':', '"', '|', '?', '*'])
}

/// Control characters of Unicode, and those that turn the reading direction: a name must look like what it is.
fn is_deceptive(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether some file system takes this name for `.git`: other case (most), trailing dots and spaces, short names and
/// streams (NTFS), ignored code points (HFS+).
pub(super) fn is_dot_git(name: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(name) else {
        // Not UTF-8 is not a disguise that HFS+ or NTFS can store; the bytes still may be `.git` with a tail.
        return ntfs_equals(&String::from_utf8_lossy(name), ".git");
    };
    let seen: String = text.chars().filter(|c| !hfs_ignores(*c)).collect();
    ntfs_equals(&seen, ".git") || short_name(&seen).is_some_and(|stem| stem == "git")
}

/// The part before `~N` of an NTFS short name, in lower case.
fn short_name(name: &str) -> Option<String> {
    let name = name.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    let (stem, number) = name.rsplit_once('~')?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| stem.to_ascii_lowercase())
}

/// Whether a link has a name that git itself would read through: `.gitmodules` and the like, also in disguise.
pub(super) fn is_git_file(name: &[u8]) -> bool {
    let text = String::from_utf8_lossy(name);
    let seen: String = text.chars().filter(|c| !hfs_ignores(*c)).collect();
    let short = short_name(&seen);
    GIT_FILES.iter().any(|file| {
        ntfs_equals(&seen, &format!(".{file}")) || short.as_deref().is_some_and(|stem| file.get(..6) == Some(stem))
    }) || short.is_some_and(|stem| stem.len() > 1 && HASHED_SHORT_NAMES.iter().any(|hashed| hashed.starts_with(&stem)))
}

/// Equal after NTFS has dropped the stream (`:…`) and trailing dots and spaces, without regard to case.
fn ntfs_equals(name: &str, wanted: &str) -> bool {
    let name = name.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    name.eq_ignore_ascii_case(wanted)
}

/// The code points that HFS+ leaves out of a comparison (Apple TN1150, as in git's `utf8.c`).
pub(super) fn hfs_ignores(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

/// What is wrong with a link's target, `depth` directories below the root of the tree.
///
/// Targets climb first and descend after (`../../a/b`). A `..` after a name is refused: the name could be another
/// link, and then `..` starts from wherever that one leads. With this, links that are each inside stay inside
/// together.
pub(super) fn link_fault(target: &[u8], depth: usize) -> Option<&'static str> {
    if target.is_empty() || target.contains(&0) {
        return Some("a symbolic link has no usable target");
    }
    if target[0] == b'/' || target.contains(&b'\\') || target.get(1) == Some(&b':') {
        return Some("a symbolic link has an absolute target");
    }
    let mut climbed = 0;
    let mut descended = false;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if descended => return Some("a symbolic link climbs after it descended"),
            b".." => climbed += 1,
            name if is_dot_git(name) => return Some("a symbolic link points into `.git`"),
            _ => descended = true,
        }
    }
    (climbed > depth).then_some("a symbolic link points out of the repository")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_in_every_disguise_is_seen() {
        for name in [
            ".git",
            ".GIT",
            ".Git",
            ".git.",
            ".git ",
            ".git . .",
            "git~1",
            "GIT~1",
            ".git:x",
            ".git::$INDEX_ALLOCATION",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".gi\u{206a}t.",
            "git~2",
            "Git~17",
            "git~1.",
            "x::$DATA",
            "a\u{85}b",
            "a\u{202e}txt.exe",
        ] {
            assert!(fault(name.as_bytes()).is_some(), "{name:?}");
        }
        assert!(
            fault(b"..").is_some() && fault(b"a\\b").is_some() && fault(b"a\nb").is_some() && fault(b"a/b").is_some()
        );
        for name in [".github", ".gitignore", "git", ".gitx", "a.git", "..a", "a:b", "\u{fc}", "aux"] {
            assert_eq!(fault(name.as_bytes()), None, "{name:?}");
        }
        assert_eq!(fault(b"\xff\xfe"), None, "a name need not be UTF-8");
        assert!(
            is_git_file(b".gitmodules")
                && is_git_file(b".GITMODULES ")
                && is_git_file(b"gitmod~1")
                && is_git_file(b"GI7EBA~1")
                && is_git_file(b"gitatt~2")
                && !is_git_file(b"gi~x")
                && !is_git_file(b"modules")
        );
    }

    #[test]
    fn the_operator_decides_about_names_that_only_some_systems_know() {
        let strict = NameRules { non_utf8: false, not_on_windows: false, case_twins: false };
        for name in [&b"aux"[..], b"AUX.c", b"con .x", b"com1", b"LPT9.txt", b"a:b", b"a.", b"a ", b"a?", b"\xff"] {
            assert!(unwanted(name, &strict).is_some(), "{name:?}");
            assert_eq!(unwanted(name, &NameRules::default()), None, "{name:?}");
            assert_eq!(fault(name), None, "{name:?}");
        }
        for name in ["auxiliary", "com", "com10", "console.rs", ".a", "a b", "\u{e9}"] {
            assert_eq!(unwanted(name.as_bytes(), &strict), None, "{name:?}");
        }
    }

    #[test]
    fn links_stay_inside() {
        for (target, depth) in [("a", 0), ("../a", 1), ("../../x/y", 2), ("./a", 0), ("a//b", 0)] {
            assert_eq!(link_fault(target.as_bytes(), depth), None, "{target}");
        }
        for (target, depth) in [
            ("/etc/passwd", 3),
            ("..", 0),
            ("../../a", 1),
            ("a/../../b", 5),
            (".git/config", 0),
            ("", 0),
            ("C:/x", 0),
            ("a\\b", 0),
            ("x/../y", 0),
        ] {
            assert!(link_fault(target.as_bytes(), depth).is_some(), "{target}");
        }
    }
}
