//! Gets a repository in, and the agent's work out, without ever trusting what a sandbox wrote.
//!
//! One task's way: [`Git::prove_access`] shows that the token may read the base; [`Git::lower`] has its files, or fetches
//! them, to be laid under the work tree before the sandbox starts; inside, [`export_script`] hands the work over as a pack;
//! [`Git::import`] lets a confined child process check it; [`Git::commit`] makes the commits anew and [`Git::push`] sends one
//! branch, with a lease. [`Git::clone`] and [`Git::checkout`] are the same way without a cache, a copy of everything: tests
//! and benchmarks measure the cache by them.
//!
//! Architecture invariant: after a sandbox has started, nothing here opens its `.git` or walks its files. libgit2
//! reads bytes from a sandbox only in the importing child.

mod branch;
mod branch_policy;
mod checkout;
mod clone;
mod commit;
mod error;
mod extent;
mod history;
mod import;
mod message;
mod mirror;
mod pool;
mod probe;
mod push;
mod recipe;
mod refusal;
mod rotation;
mod script;
mod transport;

use std::path::{Path, PathBuf};
use std::time::Duration;

use git2::Oid;
use orchestra_events::CommitId;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncRead;

use crate::forge::{ForgeKind, GitCredential, git_credential};

pub use branch::{MAX_BRANCH_BYTES, check_branch_name};
pub use branch_policy::{
    BranchOverrides, BranchPolicies, BranchPolicy, BranchPolicyError, BranchRefusal, BranchSettings, NamedAfter,
    Situation,
};
pub use commit::CommitPolicy;
pub use error::{ExportFault, GitError, Operation, PackFault};
pub use import::{
    History, IMPORT_ARG, ImportLimits, ImportRules, InvalidGlob, NameRules, PROTECTED_FILES, SecretRules, import_main,
    redact_secrets,
};
pub use mirror::{
    Access, CacheDir, CacheLimits, Cached, Lower, MAX_HEADS, Mirror, MirrorKey, PROOF_TIMEOUT, Part, victims,
};
pub use pool::MAX_BLOCKING_CALLS;
pub use recipe::{Recipe, SETUP_SCRIPT, SetupScript};
pub use refusal::PushFault;
pub use rotation::with_current_token;
pub use script::{diff_script, export_script};

/// The way of a sandbox's work into a repository, in this process and at once, for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use std::path::Path;
    use std::time::Duration;

    use orchestra_events::CommitId;

    pub use super::import::import_here;
    use super::pool::Ticket;
    use super::{CommitPolicy, GitError, Imported, Operation, commit, oid};

    /// Longer than any input of a fuzzer takes.
    const LIMIT: Duration = Duration::from_secs(60);

    /// As [`super::Git::commit`].
    ///
    /// # Errors
    /// As there.
    pub fn commit(
        repo: &Path,
        base: &CommitId,
        imported: &Imported,
        policy: &CommitPolicy,
    ) -> Result<Vec<CommitId>, GitError> {
        let request = commit::Request {
            repo: repo.to_path_buf(),
            base: oid(Operation::Commit, base)?,
            tip: oid(Operation::Commit, &imported.tip)?,
            tree: oid(Operation::Commit, &imported.tree)?,
            checked: imported.history,
            policy: policy.clone(),
        };
        commit::run(&request, &Ticket::until(LIMIT))
    }
}

use pool::{Late, Pool};

/// The branch that a workspace's throw-away `.git` is on.
pub const WORK_BRANCH: &str = "work";
/// How long a clone may take: a 300 MB repository over a slow line needs minutes.
pub const CLONE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How long a push may take: it sends one change.
pub const PUSH_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How long work on the host's own disk may take.
pub const LOCAL_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How long the import may take, the sandbox's own packing included.
pub const IMPORT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How much a clone may receive: the disk of the server is shared by all tasks.
pub const MAX_CLONE_BYTES: u64 = 8 * 1024 * 1024 * 1024;
/// How long a connection to a forge may take to open.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a forge may be silent. It thinks before it sends a large pack, so this is not short.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteKind {
    /// Over https (or http) to a forge.
    Http,
    /// A bare repository directory on this machine (the `local:` forge). The caller has resolved the path and checked
    /// that it is below the forge's root.
    Local,
}

/// A repository on a forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The clone URL without a user name, or the absolute path of a local repository.
    pub url: String,
    /// How it is reached.
    pub kind: RemoteKind,
    /// How a token is shown there.
    pub auth: GitAuth,
}

/// How a token is shown to a git server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GitAuth {
    /// As the password of this user.
    User(String),
    /// As this kind of forge wants tokens of its kind shown: decided anew for each token, since one may take another's
    /// place while a task runs.
    Forge(ForgeKind),
}

impl GitAuth {
    pub(crate) fn credential<'t>(&'t self, token: &'t SecretString) -> GitCredential<'t> {
        match self {
            Self::User(user) => GitCredential::Basic { user, password: token.expose_secret() },
            Self::Forge(kind) => git_credential(*kind, token),
        }
    }
}

/// How git work is done on this server.
#[derive(Debug, Clone)]
pub struct GitConfig {
    /// The program that is started again, with [`IMPORT_ARG`], to read packs: this one.
    pub helper: PathBuf,
    /// How many commits of history a first fetch over HTTP brings; `None` is all.
    pub depth: Option<u32>,
    /// Bound of a clone's wall time.
    pub clone_timeout: Duration,
    /// Bound of a push's wall time.
    pub push_timeout: Duration,
    /// Bound of a checkout's, commit's or diff's wall time.
    pub local_timeout: Duration,
    /// Bound of an import's wall time.
    pub import_timeout: Duration,
    /// Bytes that a clone may receive.
    pub max_clone_bytes: u64,
    /// Options sent with every push; a forge that takes none gets the push without them.
    pub push_options: Vec<String>,
    /// Blocking git calls at once, at most [`MAX_BLOCKING_CALLS`].
    pub blocking_calls: usize,
}

impl GitConfig {
    /// The default bounds, with `helper` (the path of this very program) for the import.
    pub fn new(helper: impl Into<PathBuf>) -> Self {
        Self {
            helper: helper.into(),
            depth: None,
            clone_timeout: CLONE_TIMEOUT,
            push_timeout: PUSH_TIMEOUT,
            local_timeout: LOCAL_TIMEOUT,
            import_timeout: IMPORT_TIMEOUT,
            max_clone_bytes: MAX_CLONE_BYTES,
            push_options: Vec::new(),
            blocking_calls: MAX_BLOCKING_CALLS,
        }
    }
}

/// What a clone found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloned {
    /// The branch that the forge calls its default.
    pub default_branch: String,
    /// The branch that was fetched.
    pub base: String,
    /// Where that branch is.
    pub commit: CommitId,
}

/// What a checkout wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckoutStats {
    /// Files and links of the work tree.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of history copied into the throw-away `.git`.
    pub object_bytes: u64,
}

/// What an import let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The sandbox's last commit.
    pub tip: CommitId,
    /// Its tree, for [`Git::commit`].
    pub tree: CommitId,
    /// Files that differ from the base.
    pub files_changed: u32,
    /// What was checked: with [`History::Squash`] only the final tree, so that nothing else may be published.
    pub history: History,
}

/// Who a commit is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The name.
    pub name: String,
    /// The e-mail address.
    pub email: String,
}

/// A unified diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// The text, in the files' own encodings.
    pub text: Vec<u8>,
    /// Files that differ.
    pub files: u64,
    /// Lines added, in all files.
    pub insertions: u64,
    /// Lines removed, in all files.
    pub deletions: u64,
    /// Whether `text` was cut at the limit.
    pub truncated: bool,
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// The branch was at our commit before: an earlier attempt's answer was lost.
    pub already_there: bool,
}

/// Sets what libgit2 keeps per process: no configuration of the operator's machine acts on tasks, and no forge may be
/// silent for ever. Call it once in `main`, before any thread uses git. Repeating it does nothing.
pub fn init_process() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let millis = |duration: Duration| i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: these setters store into libgit2's globals without a lock; the contract above and `Once` keep
        // other threads out of libgit2 meanwhile.
        let set = unsafe {
            use git2::ConfigLevel;
            [ConfigLevel::System, ConfigLevel::Global, ConfigLevel::XDG, ConfigLevel::ProgramData]
                .into_iter()
                .try_for_each(|level| git2::opts::set_search_path(level, ""))
                .and_then(|()| git2::opts::set_server_connect_timeout_in_milliseconds(millis(CONNECT_TIMEOUT)))
                .and_then(|()| git2::opts::set_server_timeout_in_milliseconds(millis(SILENCE_TIMEOUT)))
                // Repositories of a local forge belong to whom they belong; libgit2 runs nothing from them.
                .and_then(|()| git2::opts::set_verify_owner_validation(false))
        };
        // Every object that is read here was hashed when its pack was indexed, by this program, under the name that it is found
        // by. Hashing it once more at each read is a good part of a checkout's time.
        git2::opts::strict_hash_verification(false);
        if let Err(error) = set {
            tracing::error!(error = error.message(), "git could not be prepared");
        }
    });
}

fn commit_id(id: Oid) -> CommitId {
    CommitId::try_from(id.to_string()).expect("an object id prints as 40 hexadecimal digits")
}

fn oid(operation: Operation, id: &CommitId) -> Result<Oid, GitError> {
    Oid::from_str(id.as_str()).map_err(|_| GitError::Git {
        operation,
        detail: "repositories with SHA-256 object ids are not supported".to_owned(),
    })
}

/// Which libgit2 is built in.
pub fn version() -> String {
    let (major, minor, patch) = git2::Version::get().libgit2_version();
    format!("libgit2 {major}.{minor}.{patch}")
}

/// Git for tasks: one value per server, shared.
pub struct Git {
    config: GitConfig,
    pool: Pool,
    probe: probe::Probe,
}

impl Git {
    /// Git with the given bounds.
    pub fn new(config: GitConfig) -> Self {
        init_process();
        Self { pool: Pool::new(config.blocking_calls), probe: probe::Probe::new(), config }
    }

    /// Fetches `base` (or the default branch) into the bare repository `into`. What an earlier attempt left there is
    /// replaced; `into` is never half a clone.
    pub async fn clone(
        &self,
        into: &Path,
        remote: &Remote,
        token: Option<SecretString>,
        base: Option<&str>,
    ) -> Result<Cloned, GitError> {
        let request = clone::Request {
            into: into.to_path_buf(),
            remote: remote.clone(),
            token: token.clone(),
            base: base.map(str::to_owned),
            depth: self.config.depth,
            max_bytes: self.config.max_clone_bytes,
        };
        let cloned = self
            .pool
            .run(Operation::Clone, self.config.clone_timeout, Late::Abandon, move |ticket| clone::run(&request, ticket))
            .await;
        match cloned {
            Err(error) => Err(self.probe.explain(error, Operation::Clone, remote, token.as_ref()).await),
            cloned => cloned,
        }
    }

    /// Writes the files of `commit` and a throw-away `.git` into `workspace` and gives them to `owner`. What is in
    /// `workspace` is removed first. Only for a directory that no sandbox has written to or is running in.
    pub async fn checkout(
        &self,
        repo: &Path,
        commit: &CommitId,
        workspace: &Path,
        owner: (u32, u32),
    ) -> Result<CheckoutStats, GitError> {
        let request = checkout::Request {
            repo: repo.to_path_buf(),
            commit: oid(Operation::Checkout, commit)?,
            workspace: workspace.to_path_buf(),
            owner,
            objects: checkout::Objects::Copied,
            previous: None,
            max_bytes: self.config.max_clone_bytes,
        };
        self.pool
            .run(Operation::Checkout, self.config.local_timeout, Late::Await, move |ticket| {
                checkout::run(&request, ticket)
            })
            .await
    }

    /// Takes what [`export_script`] wrote into the trusted repository `repo`, if it passes the checks. `None`: the
    /// work tree is the base's.
    pub async fn import(
        &self,
        repo: &Path,
        base: &CommitId,
        pack: impl AsyncRead + Send + Unpin,
        rules: &ImportRules,
    ) -> Result<Option<Imported>, GitError> {
        import::run(&self.config.helper, repo, base, rules, self.config.import_timeout, pack).await
    }

    /// Makes the commits that are pushed out of what was imported, the oldest first: the sandbox's own ones made anew, or
    /// one of the final tree. The same inputs give the same commits.
    pub async fn commit(
        &self,
        repo: &Path,
        base: &CommitId,
        imported: &Imported,
        policy: &CommitPolicy,
    ) -> Result<Vec<CommitId>, GitError> {
        let request = commit::Request {
            repo: repo.to_path_buf(),
            base: oid(Operation::Commit, base)?,
            tip: oid(Operation::Commit, &imported.tip)?,
            tree: oid(Operation::Commit, &imported.tree)?,
            checked: imported.history,
            policy: policy.clone(),
        };
        self.pool
            .run(Operation::Commit, self.config.local_timeout, Late::Await, move |ticket| commit::run(&request, ticket))
            .await
    }

    /// The messages of these commits of the trusted repository.
    pub async fn messages(&self, repo: &Path, commits: &[CommitId]) -> Result<Vec<String>, GitError> {
        let repo = repo.to_path_buf();
        let commits: Vec<_> = commits.iter().map(|id| oid(Operation::Commit, id)).collect::<Result<_, _>>()?;
        self.pool
            .run(Operation::Commit, self.config.local_timeout, Late::Await, move |_| commit::messages(&repo, &commits))
            .await
    }

    /// The unified diff between two commits of the trusted repository, with at most `max_bytes` of text.
    pub async fn diff(
        &self,
        repo: &Path,
        base: &CommitId,
        commit: &CommitId,
        max_bytes: usize,
    ) -> Result<Diff, GitError> {
        let repo = repo.to_path_buf();
        let (base, tip) = (oid(Operation::Diff, base)?, oid(Operation::Diff, commit)?);
        self.pool
            .run(Operation::Diff, self.config.local_timeout, Late::Await, move |ticket| {
                commit::diff(&repo, base, tip, max_bytes, ticket)
            })
            .await
    }

    /// Creates `branch` at `commit` on the forge. The branch already at our commit is success; at any other commit it
    /// is a conflict, and nobody's work is overwritten. Safe to repeat after a lost answer.
    pub async fn push(
        &self,
        repo: &Path,
        remote: &Remote,
        token: Option<SecretString>,
        branch: &str,
        commit: &CommitId,
    ) -> Result<Pushed, GitError> {
        self.push_over(repo, remote, token, branch, commit, None).await
    }

    /// The same for a branch that is at `expected` on the forge (`None`: that is not there), such as one of the task's own
    /// from an earlier attempt. At any other commit it is a conflict.
    pub async fn push_over(
        &self,
        repo: &Path,
        remote: &Remote,
        token: Option<SecretString>,
        branch: &str,
        commit: &CommitId,
        expected: Option<&CommitId>,
    ) -> Result<Pushed, GitError> {
        check_branch_name(branch)?;
        let request = push::Request {
            repo: repo.to_path_buf(),
            remote: remote.clone(),
            token: token.clone(),
            branch: branch.to_owned(),
            commit: oid(Operation::Push, commit)?,
            expected: expected.map(|commit| oid(Operation::Push, commit)).transpose()?,
            options: self.config.push_options.clone(),
            max_bytes: self.config.max_clone_bytes,
        };
        let pushed = self
            .pool
            .run(Operation::Push, self.config.push_timeout, Late::Abandon, move |ticket| push::run(&request, ticket))
            .await;
        match pushed {
            Err(error) => Err(self.probe.explain(error, Operation::Push, remote, token.as_ref()).await),
            pushed => pushed,
        }
    }
}
