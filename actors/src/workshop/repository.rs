//! The steps around the repository: clone and check out, commit, push, diff.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::task::command::Command;
use orchestra_events::task::event::{CredentialKind, PushOutcome};
use orchestra_events::task::state::{Checkout, Commit, Task};
use orchestra_events::{Failure, FailureCode, SandboxId, TaskId};
use orchestra_runtime::git::{GitError, Remote, Signature, diff_script, export_script};
use orchestra_runtime::sandbox::Exec;
use tokio::io::AsyncReadExt;

use super::{Failed, Workshop, sandbox_of, workspace_of};
use crate::mirror::{WorkTree, WorkTreeOrder};

/// The largest diff that is kept and shown, in bytes.
pub const MAX_DIFF: usize = 8 * 1024 * 1024;
/// How long the sandbox may take to pack its work.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest first line of a commit message, in characters.
const MAX_SUBJECT: usize = 72;

impl Workshop {
    pub(super) fn repository(&self, sandbox: SandboxId) -> PathBuf {
        self.repositories.join(format!("{sandbox}.git"))
    }

    /// Removes the repository, and what a clone that never came to its end has left of it.
    pub(super) async fn forget_repository(&self, sandbox: SandboxId) {
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

    fn remote(&self, task: &Task) -> Result<Remote, Failed> {
        self.forges
            .remote(&task.spec.repo)
            .map_err(|error| Failed::new(Failure::new(FailureCode::RepoNotFound, format!("{error}."))))
    }

    /// A git failure as the task's, asking for a token where a new one is the remedy.
    fn git_failed(&self, error: &GitError) -> Failed {
        let failure = error.failure();
        let asks_for = (failure.code == FailureCode::GitAuth).then_some(CredentialKind::Git);
        Failed { failure, asks_for }
    }

    pub(super) async fn clone_repository(&self, id: TaskId, task: &Task) -> Result<Command, Failed> {
        let sandbox = sandbox_of(id, task.attempt);
        let remote = self.remote(task)?;
        // What a first try left is not trusted to be whole.
        self.sandboxes.destroy(sandbox).await?;
        let order = WorkTreeOrder {
            forge: task.spec.repo.forge().to_owned(),
            repo_path: task.spec.repo.path().to_owned(),
            repo_id: None,
            remote,
            token: self.vault.git(id),
            base: task.spec.base.clone(),
            repository: self.repository(sandbox),
        };
        let tree = self.mirrors.work_tree(order).await.map_err(|error| self.git_failed(&error))?;
        let cloned = &tree.cloned;
        let branch = &task.spec.branch;
        if *branch == cloned.base || *branch == cloned.default_branch {
            let message = format!("The branch {branch} is where the work starts from; it is never pushed to.");
            return Err(Failed::new(Failure::new(FailureCode::BranchPolicy, message)));
        }
        let volume = self.sandboxes.create_volume(sandbox, self.limits(task).disk_bytes).await?;
        volume.lay("", &tree.lower).await?;
        // From here on the sandbox's own record keeps the files.
        let WorkTree { cloned, .. } = tree;
        Ok(Command::RecordClone { base: cloned.base, commit: cloned.commit, sandbox })
    }

    pub(super) async fn commit(&self, id: TaskId, task: &Task, checkout: &Checkout) -> Result<Command, Failed> {
        let sandbox = match self.sandbox(task).await {
            Ok(sandbox) => sandbox,
            Err(otherwise) => return otherwise,
        };
        let repository = self.repository(checkout.sandbox);
        let mut pack = sandbox.exec_piped(piped("export", export_script(&checkout.commit))).await?;
        let imported = self.git.import(&repository, &checkout.commit, &mut pack).await;
        let Some(imported) = imported.map_err(|error| self.git_failed(&error))? else {
            let message = "The agent finished without changing a file.";
            return Err(Failed::new(Failure::new(FailureCode::NothingToPush, message)));
        };
        let message = commit_message(id, task);
        let signature = Signature { name: "Orchestra".to_owned(), email: "orchestra@localhost".to_owned() };
        let commit = self
            .git
            .commit(&repository, &checkout.commit, &imported.tree, signature, &message, Timestamp::now())
            .await
            .map_err(|error| self.git_failed(&error))?;
        let diff = self
            .git
            .diff(&repository, &checkout.commit, &commit, MAX_DIFF)
            .await
            .map_err(|error| self.git_failed(&error))?;
        let stat = [diff.files, diff.insertions, diff.deletions].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let diff = self.blobs.put(diff.text).await.map_err(|error| {
            Failed::new(Failure::new(FailureCode::Internal, format!("The diff could not be stored: {error}.")))
        })?;
        Ok(Command::RecordCommit { commit, tree: imported.tree, message, stat: stat.into(), diff })
    }

    pub(super) async fn push(&self, id: TaskId, task: &Task, commit: &Commit) -> Result<Command, Failed> {
        let sandbox = workspace_of(id, task);
        let remote = self.remote(task)?;
        let pushed = self
            .git
            .push(&self.repository(sandbox), &remote, self.vault.git(id), &task.spec.branch, &commit.id)
            .await
            .map_err(|error| self.git_failed(&error))?;
        let outcome = if pushed.already_there { PushOutcome::AlreadyThere } else { PushOutcome::Pushed };
        Ok(Command::RecordPush { outcome })
    }

    /// The unified diff of what was, or would be, pushed. Empty before there are files.
    pub async fn diff(&self, task: &Task) -> Result<Vec<u8>, Failure> {
        let Some(attempt) = task.current() else { return Ok(Vec::new()) };
        if let Some(commit) = &attempt.commit {
            let read = self.blobs.get(&commit.diff).await;
            return read.map_err(|error| Failure::new(FailureCode::Internal, format!("{error}.")));
        }
        let (Some(checkout), Ok(sandbox)) = (&attempt.checkout, self.sandbox(task).await) else {
            return Ok(Vec::new());
        };
        let piped = sandbox.exec_piped(piped("diff", diff_script(&checkout.commit))).await;
        let mut text = Vec::new();
        let limit = u64::try_from(MAX_DIFF).unwrap_or(u64::MAX);
        piped.map_err(|error| error.failure())?.take(limit).read_to_end(&mut text).await.map_err(|error| {
            Failure::new(FailureCode::Internal, format!("The diff could not be read from the sandbox: {error}."))
        })?;
        Ok(text)
    }
}

fn piped(what: &str, argv: Vec<String>) -> Exec {
    Exec {
        id: format!("{what}-{}", uuid::Uuid::new_v4()),
        argv,
        env: Vec::new(),
        cwd: "/workspace".to_owned(),
        stdin: Vec::new(),
        timeout: EXPORT_TIMEOUT,
    }
}

fn commit_message(id: TaskId, task: &Task) -> String {
    let text = task.spec.task.trim();
    let first = text.lines().next().unwrap_or_default();
    let subject: String = if first.chars().count() > MAX_SUBJECT {
        first.chars().take(MAX_SUBJECT - 1).chain(['…']).collect()
    } else {
        first.to_owned()
    };
    let body = if subject == text { String::new() } else { format!("{text}\n\n") };
    format!("{subject}\n\n{body}Orchestra-Task: {id}\nOrchestra-Model: {}\n", task.spec.model)
}
