//! What an operator decides about the work that leaves a sandbox: limits, protected files, names, secrets.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

/// What becomes of the commits that the agent made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum History {
    /// Each is made anew, in order, with its message cleaned. Every one of them is checked, because every one of them
    /// is published.
    #[default]
    Keep,
    /// One commit holds the final tree. Only that tree is checked.
    Squash,
}

/// Files that an agent may not add, change, move or remove, where an operator names no others: what a forge runs, or
/// obeys, by itself. Sources: GitHub's, GitLab's and Bitbucket's documentation of workflows, code owners and pipelines.
pub const PROTECTED_FILES: [&str; 11] = [
    ".github/workflows/**",
    ".github/actions/**",
    ".gitlab-ci.yml",
    "bitbucket-pipelines.yml",
    "CODEOWNERS",
    ".github/CODEOWNERS",
    ".gitlab/CODEOWNERS",
    ".bitbucket/CODEOWNERS",
    "docs/CODEOWNERS",
    // Where submodules are fetched from, by whoever updates them.
    ".gitmodules",
    ".lfsconfig",
];

/// Bounds of one import. The child enforces them on itself, the kernel on the child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImportLimits {
    /// Bytes of the pack as it comes.
    pub pack_bytes: u64,
    /// Objects in the pack.
    pub objects: u64,
    /// Changed paths, over all commits.
    pub entries: u64,
    /// Bytes of one file of the new tree.
    pub file_bytes: u64,
    /// Bytes of all new or changed files together.
    pub total_bytes: u64,
    /// Commits between the base and the tip.
    pub commits: u32,
    /// Address space of the child. It dies at this, the server does not.
    pub memory_bytes: u64,
    /// Processor seconds of the child.
    pub cpu_seconds: u64,
}

impl Default for ImportLimits {
    fn default() -> Self {
        Self {
            // GitHub refuses pushes above 2 GiB and files above 100 MB; a code change is far below both.
            pack_bytes: 512 * 1024 * 1024,
            objects: 500_000,
            entries: 500_000,
            file_bytes: 100_000_000,
            total_bytes: 1024 * 1024 * 1024,
            commits: 1_000,
            memory_bytes: 1024 * 1024 * 1024,
            cpu_seconds: 120,
        }
    }
}

/// How new names are judged where git itself takes no side. What a client could mistake for `.git`, what leaves the
/// tree and what holds control characters is refused whatever stands here.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct NameRules {
    /// Whether a new name may be other than UTF-8.
    pub non_utf8: bool,
    /// Whether a new name may be one that Windows cannot store: a device (`AUX`, `com1.txt`), a trailing dot or space, a
    /// stream (`a:b`), or one of `< > " | ? *`.
    pub not_on_windows: bool,
    /// Whether a new name may equal another of its directory on file systems that ignore case or normalise Unicode.
    pub case_twins: bool,
}

impl Default for NameRules {
    fn default() -> Self {
        Self { non_utf8: true, not_on_windows: true, case_twins: false }
    }
}

/// Whether and where new content is searched for secrets. The sandbox has no say: a comment that allows a finding
/// would be written by the very agent that is being checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretRules {
    /// Whether it is searched at all.
    pub search: bool,
    /// Paths (globs, as for protected files) that are not searched, such as fixtures with made-up keys.
    pub allow_paths: Vec<String>,
    /// How much of one file is searched, in bytes from its beginning. Larger files are data rather than source.
    pub file_bytes: u64,
}

impl Default for SecretRules {
    fn default() -> Self {
        Self { search: true, allow_paths: Vec::new(), file_bytes: 8 * 1024 * 1024 }
    }
}

/// Everything that work out of a sandbox is held against.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImportRules {
    /// Sizes, counts, memory, time.
    pub limits: ImportLimits,
    /// Which trees are looked at: the final one, or those of all commits.
    pub history: History,
    /// Globs over whole paths from the root of the repository, whatever their case: `*` stays within a directory, `**`
    /// does not.
    pub protected: Vec<String>,
    /// Names.
    pub names: NameRules,
    /// Whether files that `.gitattributes` gives to Git LFS must be pointers to objects that the forge has.
    pub lfs: bool,
    /// Secrets.
    pub secrets: SecretRules,
}

impl Default for ImportRules {
    fn default() -> Self {
        Self {
            limits: ImportLimits::default(),
            history: History::default(),
            protected: PROTECTED_FILES.map(str::to_owned).to_vec(),
            names: NameRules::default(),
            lfs: true,
            secrets: SecretRules::default(),
        }
    }
}

impl ImportRules {
    /// Whether every pattern can be used: call it where the configuration is read.
    pub fn check(&self) -> Result<(), InvalidGlob> {
        globs(&self.protected)?;
        globs(&self.secrets.allow_paths)?;
        Ok(())
    }
}

/// A pattern that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is not a path pattern: {reason}.")]
pub struct InvalidGlob {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The set of these patterns.
pub(super) fn globs(patterns: &[String]) -> Result<GlobSet, InvalidGlob> {
    let invalid = |pattern: &str, error: globset::Error| InvalidGlob {
        pattern: pattern.to_owned(),
        reason: error.kind().to_string(),
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern)
            .literal_separator(true)
            .backslash_escape(true)
            .case_insensitive(true)
            .build()
            .map_err(|error| invalid(pattern, error))?;
        set.add(glob);
    }
    set.build().map_err(|error| invalid(&patterns.join(" "), error))
}

/// The files that may not be touched.
pub(super) struct Protected {
    files: GlobSet,
    /// The directories that the patterns name: a link in place of one would lead elsewhere.
    directories: Vec<String>,
}

impl Protected {
    pub(super) fn new(patterns: &[String]) -> Result<Self, InvalidGlob> {
        let directories = patterns.iter().flat_map(|pattern| {
            let literal = &pattern[..pattern.find(['*', '?', '[', '{', '\\']).unwrap_or(pattern.len())];
            literal.match_indices('/').map(|(end, _)| literal[..end].to_ascii_lowercase()).collect::<Vec<_>>()
        });
        Ok(Self { directories: directories.collect(), files: globs(patterns)? })
    }

    /// Whether the file at this path is protected.
    pub(super) fn file(&self, path: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        self.files.is_match(std::ffi::OsStr::from_bytes(path))
    }

    /// Whether something other than a directory at this path stands where a protected file's directory belongs.
    pub(super) fn directory(&self, path: &[u8]) -> bool {
        self.directories.iter().any(|directory| directory.as_bytes().eq_ignore_ascii_case(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_forge_obeys_is_protected_and_nothing_beside_it() {
        let protected = Protected::new(&ImportRules::default().protected).expect("the defaults are patterns");
        for path in [
            ".github/workflows/ci.yml",
            ".github/workflows/deep/er.yml",
            ".GitHub/Workflows/CI.yml",
            ".github/actions/x/action.yml",
            "CODEOWNERS",
            "docs/CODEOWNERS",
            ".gitlab-ci.yml",
        ] {
            assert!(protected.file(path.as_bytes()), "{path}");
        }
        for path in ["src/CODEOWNERS", ".github/dependabot.yml", "x/.gitlab-ci.yml", ".github/workflows", "\u{e9}"] {
            assert!(!protected.file(path.as_bytes()), "{path}");
        }
        assert!(
            protected.directory(b".github")
                && protected.directory(b".GITHUB/workflows")
                && protected.directory(b"docs")
        );
        assert!(!protected.directory(b"src") && !protected.directory(b".github/x"));
    }

    #[test]
    fn a_pattern_that_is_none_is_named() {
        let rules = ImportRules { protected: vec!["ok/**".to_owned(), "a[".to_owned()], ..ImportRules::default() };
        let error = rules.check().expect_err("an open class");
        assert_eq!(error.pattern, "a[");
        assert!(error.to_string().contains("\"a[\""), "{error}");
    }
}
