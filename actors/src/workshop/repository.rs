//! The steps around the repositories: clone and check out, commit, diff; and what is kept of them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::repo::RepoRef;
use orchestra_events::task::command::Command;
use orchestra_events::task::delivery::{Outcome, RepoWork};
use orchestra_events::task::event::{SandboxEnd, Target};
use orchestra_events::task::state::Task;
use orchestra_events::{Failure, FailureCode, SandboxId, TaskId};
use orchestra_runtime::forge::{Access, ForgeError, ForgeKind, ResolveError};
use orchestra_runtime::git::{
    CommitPolicy, ExportFault, GitError, ImportRules, PackFault, Remote, Signature, Situation, diff_script,
    export_script, with_current_token,
};
use orchestra_runtime::sandbox::{Exec, Exit};
use orchestra_runtime::texts::{Standing, trailers};
use secrecy::SecretString;
use tokio::io::AsyncReadExt;

use super::{Failed, Workshop, sandbox_of, setup_sandbox_of, workspace_of};
use crate::mirror::WorkTreeOrder;

/// The largest diff that is kept and shown, in bytes.
pub const MAX_DIFF: usize = 8 * 1024 * 1024;
/// How long the sandbox may take to pack its work.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the end of a broken export is waited for.
const EXPORT_END: Duration = Duration::from_secs(5);

/// How long commits that could not be delivered are kept for a retry.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The file in a repository that says since when it has been kept.
const KEPT: &str = "orchestra-kept";
/// The file in a repository that says which it is, for ever, as the mirror knows it.
pub(super) const ORIGIN: &str = "orchestra-origin";

/// How the agent's work becomes commits.
#[derive(Debug, Clone)]
pub struct CommitRules {
    /// What it is held against, and whether its own commits are kept.
    pub import: ImportRules,
    /// Who commits are by.
    pub author: Signature,
    /// Who made them: some forges take only commits of whoever pushes.
    pub committer: Signature,
    /// Who else is named in them.
    pub co_authors: Vec<Signature>,
}

impl Default for CommitRules {
    fn default() -> Self {
        let orchestra = Signature { name: "Orchestra".to_owned(), email: "orchestra@localhost".to_owned() };
        let import = ImportRules::default();
        Self { import, author: orchestra.clone(), committer: orchestra, co_authors: Vec::new() }
    }
}

/// What a forge's own interface says about a repository.
struct Known {
    /// What it is known by for ever.
    id: Option<String>,
    /// Whether the branch is protected, where that is told.
    protected: Option<bool>,
}

/// One of a task's repositories, with its place among them.
pub(super) fn work(task: &Task, repo: usize) -> Result<&RepoWork, Failed> {
    task.current()
        .and_then(|attempt| attempt.repos.get(repo))
        .ok_or_else(|| Failed::new(Failure::new(FailureCode::Internal, "The attempt has no repository at that place.")))
}

/// A repository that the configuration has no place for.
pub(super) fn unresolved(error: &ResolveError) -> Failed {
    Failed::new(Failure::new(FailureCode::RepoNotFound, format!("{error}.")))
}

impl Workshop {
    /// Where the host's own copy of one of a task's repositories lies.
    pub(super) fn repository(&self, sandbox: SandboxId, repo: usize) -> PathBuf {
        let name = if repo == 0 { format!("{sandbox}.git") } else { format!("{sandbox}.{repo}.git") };
        self.repositories.join(name)
    }

    /// Whether the commits that an attempt before has left can still be delivered.
    pub(super) fn has_kept_work(&self, task: &Task) -> bool {
        let Some(kept) = &task.kept else { return false };
        kept.repos.iter().enumerate().all(|(repo, work)| match (work.commit(), &work.checkout) {
            (Some(_), Some(checkout)) => work.pushed || self.repository(checkout.sandbox, repo).is_dir(),
            (Some(_), None) => false,
            (None, _) => true,
        })
    }

    /// Notes that these repositories hold commits that a retry can deliver.
    pub(super) async fn keep_repositories(&self, sandbox: SandboxId) {
        let whole = |path: &Path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."));
        let folders = self.repository_folders().await.into_iter();
        for (path, _) in folders.filter(|(path, of)| *of == sandbox && whole(path)) {
            if let Err(error) = tokio::fs::write(path.join(KEPT), b"").await {
                tracing::warn!(path = %path.display(), %error, "a task's commits are not kept");
            }
        }
    }

    /// Whether the repository is kept for a retry that may still come.
    async fn is_kept(path: &Path) -> bool {
        let Ok(marker) = tokio::fs::metadata(path.join(KEPT)).await else { return false };
        marker.modified().ok().and_then(|since| since.elapsed().ok()).is_none_or(|age| age < KEPT_FOR)
    }

    /// The sandboxes whose repositories lie on this host and are not kept for anybody.
    pub(crate) async fn repositories_found(&self) -> Vec<SandboxId> {
        let mut found = Vec::new();
        for (path, sandbox) in self.repository_folders().await {
            if !Self::is_kept(&path).await {
                found.push(sandbox);
            }
        }
        found
    }

    /// Removes the repositories of a sandbox that nobody owns, unless they are kept.
    pub(super) async fn reap_repositories(&self, sandbox: SandboxId) {
        for (path, of) in self.repository_folders().await {
            if of == sandbox && Self::is_kept(&path).await {
                return;
            }
        }
        self.forget_repositories(sandbox).await;
    }

    /// Removes the repositories, and what a clone that never came to its end has left of them.
    pub(super) async fn forget_repositories(&self, sandbox: SandboxId) {
        for (path, of) in self.repository_folders().await {
            if of != sandbox {
                continue;
            }
            match tokio::fs::remove_dir_all(&path).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "a task's repository is left to the reaper");
                }
                _ => {}
            }
        }
    }

    /// Removes whatever is left of a task that has ended: its commits that a retry could deliver, and sandboxes that
    /// resisted their removal.
    pub(crate) async fn forget_leftovers(&self, id: TaskId, attempts: u32) -> Result<(), String> {
        let of_attempt = |attempt| [sandbox_of(id, attempt), setup_sandbox_of(id, attempt)];
        let own: HashSet<SandboxId> = (0..=attempts + 1).flat_map(of_attempt).collect();
        for sandbox in self.sandboxes.list().await.map_err(|error| error.to_string())? {
            if own.contains(&sandbox) {
                self.remove(sandbox).await;
            }
        }
        for (path, of) in self.repository_folders().await {
            if own.contains(&of)
                && let Err(error) = tokio::fs::remove_dir_all(&path).await
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(format!("{} cannot be removed: {error}", path.display()));
            }
        }
        Ok(())
    }

    /// Every repository on this host, whole or half-made, and whose it is.
    pub(super) async fn repository_folders(&self) -> Vec<(PathBuf, SandboxId)> {
        let mut found = Vec::new();
        let Ok(mut entries) = tokio::fs::read_dir(&self.repositories).await else { return found };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let name = entry.file_name();
            // A clone that is being made has a dot before its name and more behind it.
            let name = name.to_str().and_then(|name| name.trim_start_matches('.').split('.').next());
            found.extend(name.and_then(|name| name.parse().ok()).map(|sandbox| (entry.path(), sandbox)));
        }
        found
    }

    pub(super) fn remote(&self, repo: &RepoRef) -> Result<Remote, Failed> {
        self.forges.remote(repo).map_err(|error| unresolved(&error))
    }

    pub(super) fn git_failed(&self, error: &GitError) -> Failed {
        Failed::by_forge(error.failure(), error.retry_after())
    }

    /// What the forge's own interface says before anything is fetched, and before a model is paid for work that could not be
    /// delivered: that this token sees the repository and may push to it.
    async fn ask_forge(&self, id: TaskId, target: &Target) -> Result<Known, Failed> {
        let nothing = Known { id: None, protected: None };
        let kind = self.forges.kind(&target.repo).map_err(|error| unresolved(&error))?;
        let forge = match (kind, self.forges.forge(&target.repo)) {
            (ForgeKind::Plain | ForgeKind::Local, _) | (_, Err(ResolveError::Incomplete { .. })) => return Ok(nothing),
            (_, Err(error)) => return Err(unresolved(&error)),
            (_, Ok(forge)) => forge,
        };
        let refused = |error: ForgeError| {
            let mut failure = error.failure();
            if failure.code == FailureCode::PullRequestFailed {
                failure.code = FailureCode::CloneFailed;
            }
            Failed::by_forge(failure, error.retry_after())
        };
        // A public repository could be read without one; nothing could be pushed.
        if self.vault.git(id).is_none() {
            return Err(refused(ForgeError::TokenMissing { repo: target.repo.to_string() }));
        }
        let (at, asked) = (&target.repo, &forge);
        let find = |token: Option<SecretString>| async move {
            let found = asked.repository(Access { repo: at, token: token.as_ref() }).await?;
            match &token {
                Some(token) if found.may_push == Some(false) && !found.archived => {
                    Err(ForgeError::may_not_push(at.to_string(), token))
                }
                Some(_) | None => Ok(found),
            }
        };
        let found = self.with_token(id, find).await.map_err(refused)?;
        if found.archived {
            let message = format!("{} is archived: it takes no pushes.", target.repo);
            let failure = Failure::new(FailureCode::PushRejected, message);
            return Err(Failed::new(failure.with_hint("Unarchive the repository, then retry.")));
        }
        let token = self.vault.git(id);
        let access = Access { repo: &target.repo, token: token.as_ref() };
        // What the forge does not tell this token, it says when the branch is pushed.
        let rules = forge.branch_rules(access, &target.branch).await;
        Ok(Known { id: found.id, protected: rules.ok().and_then(|rules| rules.protected) })
    }

    pub(super) async fn clone_repository(&self, id: TaskId, task: &Task, repo: usize) -> Result<Command, Failed> {
        // Those after the first go where the first one is, which an attempt before may have put there.
        let sandbox = if repo == 0 { sandbox_of(id, task.attempt) } else { workspace_of(id, task) };
        let target = &work(task, repo)?.target;
        let remote = self.remote(&target.repo)?;
        if repo == 0 {
            // What a first try left is not trusted to be whole.
            self.sandboxes.destroy(sandbox).await?;
        }
        let known = self.ask_forge(id, target).await?;
        let order = |token: Option<SecretString>| {
            self.mirrors.work_tree(WorkTreeOrder {
                forge: target.repo.forge().to_owned(),
                repo_path: target.repo.path().to_owned(),
                repo_id: known.id.clone(),
                remote: remote.clone(),
                token,
                base: target.base.clone(),
                repository: self.repository(sandbox, repo),
            })
        };
        let tree = with_current_token(|| self.vault.git(id), order).await.map_err(|error| self.git_failed(&error))?;
        let situation = Situation {
            base: &tree.cloned.base,
            branch: &target.branch,
            default_branch: &tree.cloned.default_branch,
            heads: &tree.heads,
            protected: known.protected,
            may_be_ours: task.landed.contains_key(&target.repo.to_string()),
        };
        self.branches.of(&task.spec.team).check(&situation).map_err(|refused| Failed::new(refused.failure()))?;
        let repository = self.repository(sandbox, repo);
        let setup = self.git.has_setup_script(&repository, &tree.cloned.commit).await;
        let setup = setup.map_err(|error| self.git_failed(&error))?;
        if let Err(error) = tokio::fs::write(repository.join(ORIGIN), &tree.origin).await {
            let message = format!("It could not be noted where the repository is from: {error}.");
            return Err(Failed::new(Failure::new(FailureCode::Internal, message)));
        }
        let spec = self.sandbox_spec(task, sandbox);
        // What is started ahead has no setup under it.
        let volume = if setup {
            self.sandboxes.create_volume(sandbox, spec.limits.disk_bytes).await?
        } else {
            self.sandboxes.prepare(&spec).await?
        };
        volume.lay(&target.directory, &tree.lower).await?;
        // From here on the sandbox's own record keeps the files.
        let cloned = tree.cloned;
        Ok(Command::RecordClone { repo, base: cloned.base, commit: cloned.commit, sandbox, setup })
    }

    pub(super) async fn commit(&self, id: TaskId, task: &Task, repo: usize) -> Result<Command, Failed> {
        let sandbox = match self.sandbox(task).await {
            Ok(sandbox) => sandbox,
            Err(otherwise) => return otherwise,
        };
        let work = work(task, repo)?;
        let Some(checkout) = &work.checkout else {
            return Err(Failed::new(Failure::new(FailureCode::Internal, "The repository is not checked out.")));
        };
        let repository = self.repository(checkout.sandbox, repo);
        let rules = &self.commits;
        let export = piped("export", &work.target, export_script(&checkout.commit, rules.import.history));
        let mut pack = sandbox.exec_piped(export).await?;
        let imported = match self.git.import(&repository, &checkout.commit, &mut pack, &rules.import).await {
            Ok(Some(imported)) => imported,
            Ok(None) => return nothing_changed(task, repo),
            Err(error) => {
                let broken = matches!(
                    error,
                    GitError::PackRejected { fault: PackFault::Malformed, .. }
                        | GitError::ExportFailed { fault: ExportFault::NoAnswer }
                );
                // A pack that ends early is the sandbox's end, or its command's, rather than the agent's doing.
                let ended = if broken { tokio::time::timeout(EXPORT_END, pack.finish()).await.ok() } else { None };
                return match ended.map(|ended| ended.map(|outcome| outcome.exit)) {
                    Some(Ok(Exit::Lost)) => {
                        Ok(Command::RecordSandboxStopped { sandbox: checkout.sandbox, reason: SandboxEnd::Lost })
                    }
                    Some(Ok(Exit::OutOfMemory)) => {
                        let message = "The sandbox ran out of memory while it packed the work.";
                        Err(Failed::new(Failure::new(FailureCode::SandboxOutOfMemory, message)))
                    }
                    Some(Ok(Exit::TimedOut)) => {
                        let message = "The sandbox took too long to pack the work.";
                        Err(Failed::new(Failure::new(FailureCode::SandboxTimeout, message).with_retryable(true)))
                    }
                    Some(Ok(Exit::Code(_) | Exit::Signal(_)) | Err(_)) | None => Err(self.git_failed(&error)),
                };
            }
        };
        let text = self.task_text(id, task, repo, Standing::Running).await?;
        let policy = CommitPolicy {
            mode: imported.history,
            author: rules.author.clone(),
            committer: rules.committer.clone(),
            co_authors: rules.co_authors.clone(),
            trailers: trailers(&text),
            message: self.texts.commit_message(&text),
            time: Timestamp::now(),
        };
        let commits = self
            .git
            .commit(&repository, &checkout.commit, &imported, &policy)
            .await
            .map_err(|error| self.git_failed(&error))?;
        let messages = self.git.messages(&repository, &commits).await.map_err(|error| self.git_failed(&error))?;
        let commit = commits.last().expect("an import that changes the tree has a commit").clone();
        let diff = self
            .git
            .diff(&repository, &checkout.commit, &commit, MAX_DIFF)
            .await
            .map_err(|error| self.git_failed(&error))?;
        let stat = [diff.files, diff.insertions, diff.deletions].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let diff = self.blobs.put(id, diff.text).await.map_err(|error| {
            Failed::new(Failure::new(FailureCode::Internal, format!("The diff could not be stored: {error}.")))
        })?;
        let message = messages.last().cloned().unwrap_or_default();
        let commits = commits.into_iter().zip(messages.iter().map(|message| subject(message))).collect();
        Ok(Command::RecordCommit { repo, commits, tree: imported.tree, message, stat: stat.into(), diff })
    }

    /// The unified diff of what was, or would be, pushed, in all repositories. Empty before there are files.
    pub async fn diff(&self, id: TaskId, task: &Task) -> Result<Vec<u8>, Failure> {
        let Some(attempt) = task.current() else { return Ok(Vec::new()) };
        let mut text = Vec::new();
        for work in &attempt.repos {
            let one = match work.commit() {
                Some(commit) => {
                    let read = self.blobs.get(id, &commit.diff).await;
                    read.map_err(|error| Failure::new(FailureCode::Internal, format!("{error}.")))?
                }
                None => self.diff_inside(task, work).await?,
            };
            append_diff(&mut text, task.spec.further.is_empty(), &work.target.repo, &one);
        }
        text.truncate(MAX_DIFF);
        Ok(text)
    }

    /// The difference between the base and what is in the sandbox now.
    async fn diff_inside(&self, task: &Task, work: &RepoWork) -> Result<Vec<u8>, Failure> {
        let (Some(checkout), Ok(sandbox)) = (&work.checkout, self.sandbox(task).await) else {
            return Ok(Vec::new());
        };
        let piped = sandbox.exec_piped(piped("diff", &work.target, diff_script(&checkout.commit))).await;
        let mut text = Vec::new();
        let limit = u64::try_from(MAX_DIFF).unwrap_or(u64::MAX);
        piped.map_err(|error| error.failure())?.take(limit).read_to_end(&mut text).await.map_err(|error| {
            Failure::new(FailureCode::Internal, format!("The diff could not be read from the sandbox: {error}."))
        })?;
        Ok(text)
    }
}

/// Puts one repository's diff behind those before it. Where there are several, a line says whose it is: programs that
/// read diffs pass over what stands between files.
pub(crate) fn append_diff(text: &mut Vec<u8>, alone: bool, repo: &RepoRef, diff: &[u8]) {
    if !alone && !diff.is_empty() {
        text.extend_from_slice(format!("# {repo}\n").as_bytes());
    }
    text.extend_from_slice(diff);
}

/// What follows when the agent has left a repository as it was: nothing, unless it has left them all so.
fn nothing_changed(task: &Task, repo: usize) -> Result<Command, Failed> {
    let repos = task.current().map(|attempt| attempt.repos.as_slice()).unwrap_or_default();
    let mut others = repos.iter().enumerate().filter(|(other, _)| *other != repo);
    if others.all(|(_, work)| work.outcome == Some(Outcome::Unchanged)) {
        let message = "The agent finished without changing a file.";
        return Err(Failed::new(Failure::new(FailureCode::NothingToPush, message)));
    }
    Ok(Command::RecordUnchanged { repo })
}

fn piped(what: &str, target: &Target, argv: Vec<String>) -> Exec {
    Exec {
        id: format!("{what}-{}", uuid::Uuid::new_v4()),
        argv,
        env: Vec::new(),
        cwd: format!("/workspace/{}", target.directory),
        stdin: Vec::new(),
        timeout: EXPORT_TIMEOUT,
    }
}

/// A commit message's first line.
fn subject(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}
