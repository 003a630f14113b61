//! The cache of repositories on this host: what one task has fetched is there when the next one asks, if its own token
//! opens the door.
//!
//! ```text
//! {data}/mirrors/{digest of forge, host and repository}/
//!     mirror.json              whose this is, for people
//!     lines/{digest}.git       one base branch: a bare repository with that branch's objects and no others
//!     lowers/{commit}/         its files and a throw-away .git, never written to again: tasks lay an overlay over it
//!     lowers/{commit}.json     its size; used last when this file was touched last
//!     */*.unsettled            beside what the disk may not have taken yet
//! ```
//!
//! One bare repository for each base branch, not one for all: a sandbox gets the packs of the line that its commit is on, so
//! nothing of another branch can be in them. A line is never changed in place. A fetch makes a new one from links to the old
//! one's packs and takes its name over, and one that was moved by force is fetched anew, so that what the forge no longer
//! shows does not reach a later task.
//!
//! Architecture invariant: [`Git::prove_access`] comes before any look at the cache. It asks the forge with the task's own
//! token, so whoever has no access learns nothing, not even by how long it takes.

mod census;
mod durable;
mod line;
mod lower;
mod proof;

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orchestra_events::CommitId;
use reqwest::Url;
use secrecy::SecretString;
use sha2::{Digest, Sha256};

use super::clone::{Partial, init_bare};
use super::error::{GitError, Operation};
use super::pool::Late;
use super::{Cloned, Git, Remote};

pub use census::{CacheLimits, Cached, Part, victims};

/// How long the proof of access may take: it is one listing of refs.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(90);
/// Most branch names that a proof answers; a repository that has more is checked for name conflicts by its forge alone.
pub const MAX_HEADS: usize = 10_000;
/// The longest branch name that is kept of an answer, in bytes. No forge lets a longer one in.
const MAX_HEAD_BYTES: usize = 1_024;
/// How many commits a fetch into an existing line asks for. If the commit that the line had is not among them, it was moved
/// by force, or by too much: the line is fetched anew.
const REFRESH_DEPTH: u32 = 64;
/// Packs of a line before it is fetched anew: libgit2 cannot put packs together, and every look-up asks each.
const MAX_PACKS: usize = 16;

/// Beginnings of names of what is being made and of what is being removed.
const PARTIAL: &str = ".partial-";
const GONE: &str = ".gone-";

/// What makes a repository the same repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MirrorKey {
    digest: String,
    description: String,
}

impl MirrorKey {
    /// By the forge's immutable id where it is known, else by its path. Two forges, two hosts or a fork and its parent
    /// never share one.
    pub fn new(forge: &str, remote: &Remote, repo_path: &str, repo_id: Option<&str>) -> Self {
        let host = Url::parse(&remote.url)
            .ok()
            .and_then(|url| {
                let port = url.port_or_known_default().unwrap_or(0);
                Some(format!("{}://{}:{port}", url.scheme(), url.host_str()?))
            })
            .unwrap_or_else(|| remote.url.clone());
        let (kind, name) = match repo_id {
            Some(id) => ("id", id),
            None => ("path", repo_path),
        };
        let description = serde_json::json!({ "forge": forge, "host": host, kind: name }).to_string();
        Self { digest: digest(&description), description }
    }

    /// The repository in words: forge, host, and the immutable id or the path.
    pub fn description(&self) -> &str {
        &self.description
    }
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn fresh_name(beginning: &str) -> String {
    format!("{beginning}{}", uuid::Uuid::now_v7().simple())
}

/// Where all mirrors of this server are.
#[derive(Debug, Clone)]
pub struct CacheDir {
    root: PathBuf,
}

impl CacheDir {
    /// Opens (and makes) the directory. What is in it is readable by the server alone. What the machine did not bring to the
    /// disk before it lost power is not taken for whole.
    pub fn open(root: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        let cache = Self { root: fs::canonicalize(root)? };
        durable::forget_unsettled(&cache)?;
        Ok(cache)
    }

    /// What a process that was killed has left half-made or half-removed. To be asked before anything is begun.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        census::leftovers(self)
    }

    /// The mirror of a repository, there or not.
    pub fn mirror(&self, key: &MirrorKey) -> Mirror {
        Mirror { dir: self.root.join(&key.digest), description: key.description.clone(), in_use: None }
    }

    /// An empty repository. Without one libgit2 follows redirects while it lists refs.
    fn scratch(&self) -> Result<PathBuf, git2::Error> {
        let path = self.root.join("scratch.git");
        if !path.join("HEAD").is_file() {
            let partial = self.root.join(fresh_name(PARTIAL));
            init_bare(&partial)?;
            if fs::rename(&partial, &path).is_err() {
                // Somebody else was first.
                let _ = fs::remove_dir_all(&partial);
            }
        }
        Ok(path)
    }
}

/// The place of one repository's mirror.
#[derive(Debug, Clone)]
pub struct Mirror {
    dir: PathBuf,
    description: String,
    /// Files that somebody may be using; `None`: nobody has said, so it could be any.
    in_use: Option<Arc<HashSet<PathBuf>>>,
}

impl Mirror {
    /// Its own directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The same mirror, knowing what is in use: other files that are not whole may be replaced by [`Git::lower`]. Without
    /// this, whatever is there stays there.
    pub fn with_in_use(self, in_use: HashSet<PathBuf>) -> Self {
        Self { in_use: Some(Arc::new(in_use)), ..self }
    }

    fn may_replace(&self, path: &Path) -> bool {
        self.in_use.as_ref().is_some_and(|in_use| !in_use.contains(path))
    }

    fn line(&self, base: &str) -> PathBuf {
        self.dir.join("lines").join(format!("{}.git", digest(base)))
    }

    /// Where a commit's files are, or would be.
    pub fn lower(&self, commit: &CommitId) -> PathBuf {
        self.dir.join("lowers").join(commit.as_str())
    }

    /// Whether a commit's files are there, and whole.
    pub fn has(&self, commit: &CommitId) -> bool {
        let lower = self.lower(commit);
        lower.is_dir() && lower::note_of(&lower).is_file()
    }

    fn prepare(&self) -> io::Result<()> {
        for folder in ["lines", "lowers"] {
            DirBuilder::new().recursive(true).mode(0o700).create(self.dir.join(folder))?;
        }
        fs::write(self.dir.join("mirror.json"), &self.description)
    }
}

/// What a token can see of a repository at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The default branch, the base, and where that is now.
    pub cloned: Cloned,
    /// The branches that the forge shows, at most [`MAX_HEADS`].
    pub heads: Vec<String>,
}

/// A commit's files on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lower {
    /// The base and where it was when the files were fetched: later than the proof, if the forge had moved on.
    pub cloned: Cloned,
    /// The directory. Nobody may write to it.
    pub path: PathBuf,
    /// Whether something had to be fetched or written for this.
    pub made: bool,
}

impl Git {
    /// Asks the forge for the repository's refs, with this token and no other. The proof that must come before anything
    /// is taken from the cache; the base has to be among them.
    pub async fn prove_access(
        &self,
        cache: &CacheDir,
        remote: &Remote,
        token: Option<SecretString>,
        base: Option<&str>,
    ) -> Result<Access, GitError> {
        let request = proof::Request {
            cache: cache.clone(),
            remote: remote.clone(),
            token: token.clone(),
            base: base.map(str::to_owned),
        };
        let proven = self
            .pool
            .run(Operation::Clone, PROOF_TIMEOUT, Late::Abandon, move |ticket| proof::run(&request, ticket))
            .await;
        match proven {
            Err(error) => Err(self.probe.explain(error, Operation::Clone, remote, token.as_ref()).await),
            proven => proven,
        }
    }

    /// Brings a commit's files into the mirror: fetches what is missing and writes them out, owned by `owner`. One call at
    /// a time for each mirror, and only after [`Git::prove_access`] with the same token.
    pub async fn lower(
        &self,
        mirror: &Mirror,
        remote: &Remote,
        token: Option<SecretString>,
        access: &Cloned,
        owner: (u32, u32),
    ) -> Result<Lower, GitError> {
        let request = lower::Request {
            mirror: mirror.clone(),
            remote: remote.clone(),
            token: token.clone(),
            wanted: access.clone(),
            depth: self.config.depth,
            max_bytes: self.config.max_clone_bytes,
            owner,
        };
        let made = self
            .pool
            .run(Operation::Clone, self.config.clone_timeout, Late::Abandon, move |ticket| lower::run(&request, ticket))
            .await;
        match made {
            Err(error) => Err(self.probe.explain(error, Operation::Clone, remote, token.as_ref()).await),
            made => made,
        }
    }

    /// Waits until the disk has a line and a commit's files, so that they are still good after the machine lost power. Nobody
    /// has to wait for it before they are used.
    pub async fn settle(&self, mirror: &Mirror, base: &str, commit: &CommitId) -> Result<(), GitError> {
        let paths = [mirror.line(base), mirror.lower(commit)];
        self.pool
            .run(Operation::Checkout, self.config.local_timeout, Late::Await, move |_| {
                durable::settle(&paths)
                    .map_err(|error| GitError::io(Operation::Checkout, "waiting for the disk", &error))
            })
            .await
    }

    /// Makes a task's own trusted repository `into` from a commit's files: links to the same packs, so it costs nothing
    /// and outlives the mirror.
    pub async fn seed(&self, lower: &Path, into: &Path, cloned: &Cloned) -> Result<(), GitError> {
        let (lower, into, cloned) = (lower.to_owned(), into.to_owned(), cloned.clone());
        self.pool
            .run(Operation::Clone, self.config.local_timeout, Late::Await, move |ticket| {
                lower::seed(&lower, &into, &cloned, ticket)
            })
            .await
    }

    /// Removes something from the cache, unless it was used since it was counted. Its name is gone at once; its files follow.
    pub async fn evict(&self, part: &Cached) -> Result<bool, GitError> {
        let part = part.clone();
        self.pool.run(Operation::Checkout, self.config.local_timeout, Late::Await, move |_| census::evict(&part)).await
    }

    /// Everything in the cache.
    pub async fn census(&self, cache: &CacheDir) -> Result<Vec<Cached>, GitError> {
        let cache = cache.clone();
        self.pool
            .run(Operation::Checkout, self.config.local_timeout, Late::Await, move |_| census::census(&cache))
            .await
    }

    /// Whether a commit's files are there; if so, notes that they are used now. Only after [`Git::prove_access`].
    pub async fn use_lower(&self, mirror: &Mirror, base: &str, commit: &CommitId) -> Result<bool, GitError> {
        let (mirror, base, commit) = (mirror.clone(), base.to_owned(), commit.clone());
        self.pool
            .run(Operation::Checkout, self.config.local_timeout, Late::Await, move |_| {
                let there = mirror.has(&commit);
                if there {
                    lower::touch(&mirror, &base, &commit);
                }
                Ok(there)
            })
            .await
    }

    /// Removes [`CacheDir::leftovers`], as far as they still are some. Answers how many there were.
    pub async fn clear(&self, leftovers: Vec<PathBuf>) -> Result<usize, GitError> {
        self.pool
            .run(Operation::Checkout, self.config.local_timeout, Late::Await, move |_| {
                Ok(leftovers.iter().filter(|path| census::clear(path)).count())
            })
            .await
    }
}

/// Removes a directory, or a file, that may be gone already.
fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes the name `to` over from whatever has it.
fn replace(partial: &Partial, to: &Path) -> io::Result<()> {
    let gone = to.with_file_name(fresh_name(GONE));
    let had = match fs::rename(to, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        moved => moved.map(|()| true)?,
    };
    fs::rename(&partial.0, to)?;
    if had { remove_tree(&gone) } else { Ok(()) }
}
