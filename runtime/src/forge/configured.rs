//! Where repositories live: the configured forges, and the remote that a repository's name stands for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use orchestra_events::repo::{RepoRef, RepoRefError};
use serde::{Deserialize, Serialize};

use crate::git::{Remote, RemoteKind};

/// What speaks at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForgeKind {
    /// GitHub, in the cloud or on premises.
    Github,
    /// Bitbucket Cloud.
    BitbucketCloud,
    /// Bitbucket Data Center.
    BitbucketDc,
    /// GitLab.
    Gitlab,
    /// Any git server over HTTP.
    Plain,
    /// Bare repositories in a folder of this machine.
    Local,
}

/// One configured forge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgeConfig {
    /// What speaks there.
    pub kind: ForgeKind,
    /// Clone URLs are `{git_url}/{owner}/{repo}.git`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_url: Option<String>,
    /// The REST endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_url: Option<String>,
    /// For `local`: the folder of the bare repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
}

/// The configured forges.
#[derive(Debug, Clone)]
pub struct Forges {
    forges: BTreeMap<String, ForgeConfig>,
    default: String,
}

/// Why a repository has no remote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The text is no repository reference.
    #[error(transparent)]
    Reference(#[from] RepoRefError),
    /// No forge of that name.
    #[error("no forge {name:?} is configured; known are {known}")]
    Unknown {
        /// The name given.
        name: String,
        /// Those there are.
        known: String,
    },
    /// A URL on a host that no forge is configured for.
    #[error("no configured forge has this host; add it under [forges.NAME] with its git_url")]
    UnknownHost,
    /// User name or password in a URL.
    #[error("a repository URL carries no user name and no token; send the token in credentials.git.token")]
    Userinfo,
    /// The configuration lacks what this kind of forge needs.
    #[error("forge {name:?} has no {key}; set it in the configuration")]
    Incomplete {
        /// The forge.
        name: String,
        /// The missing key.
        key: &'static str,
    },
    /// A bare repository that is not there, or is not below the root.
    #[error("no repository {0} on this machine's local forge")]
    NoSuchLocal(String),
}

impl Forges {
    /// The forges by name; `default` is meant where a reference names none.
    pub fn new(forges: BTreeMap<String, ForgeConfig>, default: impl Into<String>) -> Self {
        Self { forges, default: default.into() }
    }

    /// Parses what a user wrote: `owner/name`, `forge:owner/name` or a URL of a configured forge.
    pub fn parse(&self, text: &str) -> Result<RepoRef, ResolveError> {
        let repo = if text.contains("://") { self.parse_url(text)? } else { RepoRef::parse(text, &self.default)? };
        self.config(&repo)?;
        Ok(repo)
    }

    fn parse_url(&self, text: &str) -> Result<RepoRef, ResolveError> {
        let (scheme, rest) = text.split_once("://").ok_or(RepoRefError::Shape)?;
        if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
            return Err(ResolveError::Userinfo);
        }
        let url = format!("{}://{rest}", scheme.to_ascii_lowercase());
        self.forges
            .iter()
            .find_map(|(name, forge)| {
                let base = forge.git_url.as_deref()?.trim_end_matches('/');
                let path = url.strip_prefix(base)?.strip_prefix('/')?;
                Some(RepoRef::new(name, path))
            })
            .ok_or(ResolveError::UnknownHost)?
            .map_err(ResolveError::from)
    }

    fn config(&self, repo: &RepoRef) -> Result<&ForgeConfig, ResolveError> {
        self.forges.get(repo.forge()).ok_or_else(|| ResolveError::Unknown {
            name: repo.forge().to_owned(),
            known: self.forges.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// The forge that this repository is on, as one without pull requests.
    pub fn forge(&self, repo: &RepoRef) -> Result<std::sync::Arc<dyn super::Forge>, ResolveError> {
        self.config(repo)?;
        Ok(std::sync::Arc::new(super::plain::Plain))
    }

    /// The remote that git talks to.
    pub fn remote(&self, repo: &RepoRef) -> Result<Remote, ResolveError> {
        let config = self.config(repo)?;
        let incomplete = |key| ResolveError::Incomplete { name: repo.forge().to_owned(), key };
        if config.kind == ForgeKind::Local {
            let root = config.root.as_ref().ok_or_else(|| incomplete("root"))?;
            let missing = || ResolveError::NoSuchLocal(repo.path().to_owned());
            let root = root.canonicalize().map_err(|_| missing())?;
            let found = [format!("{}.git", repo.path()), repo.path().to_owned()]
                .iter()
                .find_map(|path| root.join(path).canonicalize().ok())
                .filter(|path| path.starts_with(&root) && path.is_dir())
                .ok_or_else(missing)?;
            let url = found.to_str().ok_or_else(missing)?.to_owned();
            return Ok(Remote { url, kind: RemoteKind::Local, username: String::new() });
        }
        let base = config.git_url.as_deref().ok_or_else(|| incomplete("git_url"))?.trim_end_matches('/');
        let username = match config.kind {
            ForgeKind::Github => "x-access-token",
            ForgeKind::BitbucketCloud | ForgeKind::BitbucketDc => "x-token-auth",
            ForgeKind::Gitlab => "oauth2",
            ForgeKind::Plain | ForgeKind::Local => "git",
        };
        Ok(Remote { url: format!("{base}/{}.git", repo.path()), kind: RemoteKind::Http, username: username.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forges() -> Forges {
        let plain = |url: &str| ForgeConfig {
            kind: ForgeKind::Github,
            git_url: Some(url.to_owned()),
            api_url: None,
            root: None,
        };
        let mut forges = BTreeMap::new();
        forges.insert("github".to_owned(), plain("https://git.example"));
        forges.insert("inner".to_owned(), plain("http://127.0.0.1:9/git/"));
        Forges::new(forges, "github")
    }

    #[test]
    fn names_and_urls_find_their_forge() {
        for (text, expected) in [
            ("acme/api", "github:acme/api"),
            ("inner:acme/api", "inner:acme/api"),
            ("https://git.example/acme/api.git", "github:acme/api"),
            ("http://127.0.0.1:9/git/acme/api", "inner:acme/api"),
        ] {
            assert_eq!(forges().parse(text).map(|repo| repo.to_string()), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_names_no_forge_is_refused() {
        for text in [
            "nowhere:acme/api",
            "https://git.example.evil/acme/api",
            "https://evil.example/acme/api",
            "https://user:token@git.example/acme/api",
            "https://git.example/../etc",
            "file:///etc/passwd",
        ] {
            let refused = forges().parse(text).expect_err(text).to_string();
            assert!(!refused.contains("token@"), "{refused}");
        }
    }

    #[test]
    fn a_local_repository_stays_below_its_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("acme/api.git")).expect("a repository");
        std::fs::create_dir_all(folder.path().join("outside.git")).expect("another");
        std::os::unix::fs::symlink(folder.path().join("outside.git"), root.join("acme/link.git")).expect("a link");
        let local = ForgeConfig { kind: ForgeKind::Local, git_url: None, api_url: None, root: Some(root) };
        let forges = Forges::new(BTreeMap::from([("local".to_owned(), local)]), "local");
        let remote = |text: &str| forges.parse(text).and_then(|repo| forges.remote(&repo));
        assert!(remote("local:acme/api").is_ok_and(|remote| remote.url.ends_with("acme/api.git")));
        assert!(matches!(remote("local:acme/link"), Err(ResolveError::NoSuchLocal(_))));
        assert!(matches!(remote("local:acme/none"), Err(ResolveError::NoSuchLocal(_))));
    }
}
