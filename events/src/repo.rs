//! Which repository: `owner/name`, `github:owner/name`, or a full URL, parsed once and never guessed again.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A repository on a named forge. Displays as `forge:owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepoRef {
    forge: String,
    path: String,
}

/// Longest repository reference accepted, in bytes.
pub const MAX_REPO_REF: usize = 400;

/// Why a text names no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepoRefError {
    /// Not `forge:owner/name`.
    #[error("expected owner/name, forge:owner/name or a full https URL")]
    Shape,
    /// A part has characters no forge allows.
    #[error(
        "each part of the name is made of letters, digits, '.', '_' and '-', and is not '.' or '..'; the first may begin with '~'"
    )]
    Part,
    /// Over the limit.
    #[error("at most {MAX_REPO_REF} bytes")]
    TooLong,
}

impl RepoRef {
    /// A repository by forge name and path (`owner/name`, or deeper where the forge has sub-groups).
    pub fn new(forge: &str, path: &str) -> Result<Self, RepoRefError> {
        if forge.len() + path.len() >= MAX_REPO_REF {
            return Err(RepoRefError::TooLong);
        }
        let named = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
                && !text.starts_with('-')
        };
        let path = path.trim_end_matches('/');
        // However often it comes: what is left is written, and read again from the log, as the same name.
        let path = path.trim_end_matches(".git");
        // `~ann/notes`: a person's own repository on Bitbucket Data Center.
        let mut parts = path.strip_prefix('~').unwrap_or(path).split('/');
        if forge.is_empty() || !named(forge) || path.is_empty() {
            return Err(RepoRefError::Shape);
        }
        if !parts.all(|part| !part.is_empty() && part != "." && part != ".." && named(part)) {
            return Err(RepoRefError::Part);
        }
        Ok(Self { forge: forge.to_owned(), path: path.to_owned() })
    }

    /// Parses `owner/name` (on `default_forge`) or `forge:owner/name`. Full URLs need the configured forges and
    /// are resolved by the caller first.
    pub fn parse(text: &str, default_forge: &str) -> Result<Self, RepoRefError> {
        match text.split_once(':') {
            Some((forge, path)) => Self::new(forge, path),
            None if text.contains('/') => Self::new(default_forge, text),
            None => Err(RepoRefError::Shape),
        }
    }

    /// The name of the forge in the configuration.
    pub fn forge(&self) -> &str {
        &self.forge
    }

    /// `owner/name`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for RepoRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.forge, self.path)
    }
}

impl TryFrom<String> for RepoRef {
    type Error = RepoRefError;
    fn try_from(text: String) -> Result<Self, RepoRefError> {
        let (forge, path) = text.split_once(':').ok_or(RepoRefError::Shape)?;
        Self::new(forge, path)
    }
}

impl From<RepoRef> for String {
    fn from(repo: RepoRef) -> Self {
        repo.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_are_understood() {
        assert_eq!(RepoRef::parse("acme/api", "github").map(|r| r.to_string()), Ok("github:acme/api".into()));
        assert_eq!(RepoRef::parse("local:demo.git", "github").map(|r| r.to_string()), Ok("local:demo".into()));
        assert_eq!(RepoRef::parse("acme/api.git.git", "github").map(|r| r.to_string()), Ok("github:acme/api".into()));
        assert_eq!(RepoRef::parse("gitlab:a/b/c", "github").map(|r| r.path().to_owned()), Ok("a/b/c".into()));
        assert_eq!(RepoRef::parse("dc:~ann/notes", "github").map(|r| r.path().to_owned()), Ok("~ann/notes".into()));
    }

    #[test]
    fn what_could_leave_its_folder_is_refused() {
        for wrong in
            ["", "api", "a/../b", "x:../b", "x:/etc", "a//b", "a b/c", "-x/y", "x:-u/y", "x:a/\u{0}", "~/a", "a/~b"]
        {
            assert!(RepoRef::parse(wrong, "github").is_err(), "{wrong:?}");
        }
    }
}
