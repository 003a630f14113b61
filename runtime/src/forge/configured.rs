//! Where repositories live: the configured forges, and the remote that a repository's name stands for.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use orchestra_events::repo::{RepoRef, RepoRefError};
use serde::{Deserialize, Serialize};

use super::Forge;
use super::bitbucket_cloud::BitbucketCloud;
use super::bitbucket_dc::BitbucketDc;
use super::github::Github;
use super::gitlab::Gitlab;
use super::http::{ForgeLimits, Rest, check_api_url};
use super::lane::Lanes;
use super::plain::Plain;
use crate::git::{GitAuth, Remote, RemoteKind};

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

impl ForgeKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Github, Self::BitbucketCloud, Self::BitbucketDc, Self::Gitlab, Self::Plain, Self::Local];
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

/// The configured forges, and a client of each. Clones share the clients.
#[derive(Clone)]
pub struct Forges {
    forges: BTreeMap<String, ForgeConfig>,
    default: String,
    clients: BTreeMap<String, Result<Arc<dyn Forge>, ResolveError>>,
}

impl fmt::Debug for Forges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forges").field("forges", &self.forges).field("default", &self.default).finish_non_exhaustive()
    }
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
    /// The address of a forge's interface is none that a token may be sent to.
    #[error("forge {name:?} has an api_url that is not a plain http or https address")]
    ApiUrl {
        /// The forge.
        name: String,
    },
    /// A bare repository that is not there, or is not below the root.
    #[error("no repository {0} on this machine's local forge")]
    NoSuchLocal(String),
}

impl Forges {
    /// The forges by name; `default` is meant where a reference names none.
    pub fn new(forges: BTreeMap<String, ForgeConfig>, default: impl Into<String>) -> Self {
        Self::with_limits(forges, default, &ForgeLimits::default())
    }

    /// The same, with another patience than the default one.
    pub fn with_limits(
        forges: BTreeMap<String, ForgeConfig>,
        default: impl Into<String>,
        limits: &ForgeLimits,
    ) -> Self {
        let lanes = Arc::new(Lanes::default());
        let clients = forges.iter().map(|(name, forge)| (name.clone(), client(name, forge, limits, &lanes))).collect();
        Self { forges, default: default.into(), clients }
    }

    /// The forge that this repository is on.
    pub fn forge(&self, repo: &RepoRef) -> Result<Arc<dyn Forge>, ResolveError> {
        self.config(repo)?;
        self.clients.get(repo.forge()).expect("there is a client, or why there is none, for each forge").clone()
    }

    /// What speaks where this repository is.
    pub fn kind(&self, repo: &RepoRef) -> Result<ForgeKind, ResolveError> {
        Ok(self.config(repo)?.kind)
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
            return Ok(Remote { url, kind: RemoteKind::Local, auth: GitAuth::Forge(config.kind) });
        }
        let base = config.git_url.as_deref().ok_or_else(|| incomplete("git_url"))?.trim_end_matches('/');
        let url = format!("{base}/{}.git", repo.path());
        Ok(Remote { url, kind: RemoteKind::Http, auth: GitAuth::Forge(config.kind) })
    }
}

fn client(
    name: &str,
    config: &ForgeConfig,
    limits: &ForgeLimits,
    lanes: &Arc<Lanes>,
) -> Result<Arc<dyn Forge>, ResolveError> {
    let rest = || -> Result<Rest, ResolveError> {
        let incomplete = || ResolveError::Incomplete { name: name.to_owned(), key: "api_url" };
        let url = config.api_url.as_deref().ok_or_else(incomplete)?;
        let url = check_api_url(url).ok_or_else(|| ResolveError::ApiUrl { name: name.to_owned() })?;
        Ok(Rest::new(config.kind, url, limits.clone(), Arc::clone(lanes)))
    };
    Ok(match config.kind {
        ForgeKind::Github => Arc::new(Github::new(rest()?)),
        ForgeKind::BitbucketCloud => Arc::new(BitbucketCloud::new(rest()?, config.git_url.as_deref())),
        ForgeKind::BitbucketDc => Arc::new(BitbucketDc::new(rest()?)),
        ForgeKind::Gitlab => Arc::new(Gitlab::new(rest()?)),
        ForgeKind::Plain | ForgeKind::Local => Arc::new(Plain),
    })
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
    fn a_forge_without_an_address_that_takes_tokens_has_no_client() {
        let at = |kind, api_url: Option<&str>| {
            let git_url = Some("https://git.example".to_owned());
            let config = ForgeConfig { kind, git_url, api_url: api_url.map(str::to_owned), root: None };
            let forges = Forges::new(BTreeMap::from([("here".to_owned(), config)]), "here");
            let repo = forges.parse("acme/api").expect("a repository");
            assert_eq!(forges.kind(&repo), Ok(kind));
            assert_eq!(forges.remote(&repo).expect("a remote").auth, GitAuth::Forge(kind));
            forges.forge(&repo).err()
        };
        for kind in [ForgeKind::Github, ForgeKind::BitbucketCloud, ForgeKind::BitbucketDc, ForgeKind::Gitlab] {
            assert!(matches!(at(kind, None), Some(ResolveError::Incomplete { key: "api_url", .. })), "{kind:?}");
            for wrong in ["https://user:secret@api.example", "ftp://api.example", "api.example"] {
                assert!(matches!(at(kind, Some(wrong)), Some(ResolveError::ApiUrl { .. })), "{kind:?} {wrong}");
            }
            assert_eq!(at(kind, Some("https://api.example/api/v3/")), None);
        }
        assert_eq!(at(ForgeKind::Plain, None), None);
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
