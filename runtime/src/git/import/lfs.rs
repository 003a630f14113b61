//! Which files belong to Git LFS, and what stands in the tree in their place.
//!
//! Filters of a sandbox are not obeyed, so a file that `.gitattributes` gives to LFS comes out with its content. Pushed
//! like that, it would be in the history for ever; as a pointer to an object that the forge does not have, nobody could
//! check it out. Patterns follow gitattributes(5), pointers version 1 of the specification in git-lfs's
//! `docs/spec.md`.

use std::collections::HashMap;

use globset::{GlobBuilder, GlobMatcher};

/// The longest pointer, as git-lfs reads it.
pub(super) const MAX_POINTER_BYTES: usize = 1024;
/// How much of a `.gitattributes` is read: hundreds of times a real one.
pub(super) const MAX_ATTRIBUTES_BYTES: usize = 1024 * 1024;
/// Rules of one file, and macros: compiling each costs memory.
const MAX_RULES: usize = 2_000;

/// Whether these bytes are a pointer of Git LFS.
pub(super) fn is_pointer(content: &[u8]) -> bool {
    if content.len() >= MAX_POINTER_BYTES {
        return false;
    }
    let Ok(text) = std::str::from_utf8(content) else { return false };
    let mut lines = text.lines();
    let version = lines.next().and_then(|line| line.strip_prefix("version "));
    if !matches!(version, Some("https://git-lfs.github.com/spec/v1" | "https://hawser.github.com/spec/v1")) {
        return false;
    }
    let fields: HashMap<_, _> = lines.filter_map(|line| line.split_once(' ')).collect();
    let hash = fields.get("oid").and_then(|oid| oid.strip_prefix("sha256:"));
    hash.is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        && fields.get("size").is_some_and(|size| size.parse::<u64>().is_ok())
}

/// What one line says about LFS.
struct Rule {
    paths: GlobMatcher,
    /// Whether only the last part of the path is compared.
    name_only: bool,
    lfs: bool,
}

/// The `.gitattributes` of one directory.
#[derive(Default)]
pub(super) struct Attributes(Vec<Rule>);

impl Attributes {
    /// Reads what there is to read: a line that cannot be understood says nothing, as in git.
    pub(super) fn parse(content: &[u8]) -> Self {
        let content = &content[..content.len().min(MAX_ATTRIBUTES_BYTES)];
        let mut macros: HashMap<&str, bool> = HashMap::new();
        let mut rules = Vec::new();
        for line in content.split(|byte| *byte == b'\n') {
            let Some(line) = std::str::from_utf8(line).ok().map(str::trim).filter(|line| !line.starts_with('#')) else {
                continue;
            };
            let Some((pattern, attributes)) = pattern_and_rest(line) else { continue };
            let mut lfs = None;
            for attribute in attributes.split_ascii_whitespace() {
                lfs = match attribute {
                    "filter=lfs" => Some(true),
                    "-filter" | "!filter" | "filter" => Some(false),
                    other if other.starts_with("filter=") => Some(false),
                    other => macros.get(other).copied().or(lfs),
                };
            }
            let Some(lfs) = lfs else { continue };
            if rules.len() + macros.len() == MAX_RULES {
                break;
            }
            match line.strip_prefix("[attr]") {
                Some(named) => {
                    macros.insert(named.split_ascii_whitespace().next().unwrap_or_default(), lfs);
                }
                None => rules.extend(rule(&pattern, lfs)),
            }
        }
        Self(rules)
    }

    /// What is said about the path, relative to this directory: the last line that matches counts.
    pub(super) fn lfs(&self, path: &[u8]) -> Option<bool> {
        use std::os::unix::ffi::OsStrExt;
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let matching = self.0.iter().rev().find(|rule| {
            let compared = if rule.name_only { name } else { path };
            rule.paths.is_match(std::ffi::OsStr::from_bytes(compared))
        });
        matching.map(|rule| rule.lfs)
    }
}

/// The pattern of a line, which may be quoted like a string in C, and what follows it.
fn pattern_and_rest(line: &str) -> Option<(String, &str)> {
    let Some(quoted) = line.strip_prefix('"') else {
        let (pattern, rest) = line.split_once(|c: char| c.is_ascii_whitespace())?;
        return Some((pattern.to_owned(), rest));
    };
    let mut pattern = String::new();
    let mut chars = quoted.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((pattern, &quoted[at + 1..])),
            (_, '\\') => pattern.push(match chars.next()?.1 {
                't' => '\t',
                'n' => '\n',
                other => other,
            }),
            (_, other) => pattern.push(other),
        }
    }
}

fn rule(pattern: &str, lfs: bool) -> Option<Rule> {
    // Neither kind is a pattern of gitattributes(5): there is no negation, and a directory has no attributes.
    if pattern.starts_with('!') || pattern.ends_with('/') {
        return None;
    }
    let name_only = !pattern.contains('/');
    let glob = GlobBuilder::new(pattern.strip_prefix('/').unwrap_or(pattern))
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .ok()?;
    Some(Rule { paths: glob.compile_matcher(), name_only, lfs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_git_reads_them() {
        let attributes = Attributes::parse(
            b"# psd filter=lfs\n*.psd filter=lfs diff=lfs merge=lfs -text\n[attr]big filter=lfs -text\n*.bin big\n\
              /assets/** filter=lfs\nassets/*.txt -filter\ndata/x.dat filter=lfs\n\"a b.raw\" filter=lfs\nkeep.psd !filter\n\
              *.enc filter=crypt\ndir/ filter=lfs\n\xff filter=lfs\n*.md text\n",
        );
        for (path, expected) in [
            ("a.psd", Some(true)),
            ("deep/er/a.psd", Some(true)),
            ("x.bin", Some(true)),
            ("assets/deep/x", Some(true)),
            ("assets/x.txt", Some(false)),
            ("assets/deep/x.txt", Some(true)),
            ("more/assets/x", None),
            ("data/x.dat", Some(true)),
            ("more/data/x.dat", None),
            ("a b.raw", Some(true)),
            ("deep/keep.psd", Some(false)),
            ("a.enc", Some(false)),
            ("dir/a", None),
            ("a.md", None),
        ] {
            assert_eq!(attributes.lfs(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn a_pointer_is_one_by_its_three_lines() {
        let hash = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{hash}\nsize 12345\n");
        assert!(is_pointer(pointer.as_bytes()));
        let extended = pointer.replace("oid", "ext-0-x sha256:00\noid");
        assert!(is_pointer(extended.as_bytes()));
        for broken in [
            pointer.replace("v1", "v2"),
            pointer.replace(hash, &hash[1..]),
            pointer.replace("12345", "many"),
            pointer.replace("version", "Version"),
            format!("\n{pointer}"),
            format!("{pointer}{}", "x".repeat(1024)),
            String::new(),
        ] {
            assert!(!is_pointer(broken.as_bytes()), "{broken}");
        }
    }
}
