//! The steps that bring a task's commits to their forge: push, pull request, links between several, and the last word.
//!
//! Each looks first whether it has been done: the branch may hold the commit, the pull request may be open. What a
//! forge does not have is a note in the task's stream and fails nothing.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use orchestra_events::blob::Content;
use orchestra_events::task::Task;
use orchestra_events::task::command::{Command, PullRequestOutcome, Then};
use orchestra_events::task::delivery::RepoWork;
use orchestra_events::task::event::{PullRequestWish, PushOutcome};
use orchestra_events::task::state::Ending;
use orchestra_events::{Failure, FailureCode, TaskId};
use orchestra_runtime::forge::{
    Access, CommitStatus, Forge, ForgeError, NewPullRequest, Note, ResolveError, StatusState,
};
use orchestra_runtime::git::{redact_secrets, with_current_token};
use orchestra_runtime::texts::{LinkedPullRequest, Standing, TaskText, marker};

use secrecy::{ExposeSecret, SecretString};

use super::repository::{unresolved, work};
use super::{Failed, Workshop, workspace_of};

/// Whose light it is that stands beside a commit.
const STATUS_CONTEXT: &str = "orchestra";

fn pairs(notes: impl IntoIterator<Item = Note>) -> Vec<(String, String)> {
    notes.into_iter().map(|note| (note.feature.as_str().to_owned(), note.detail)).collect()
}

/// A forge's refusal of something that no task fails for.
fn unsaid(error: &ForgeError, feature: &str) -> (String, String) {
    (feature.to_owned(), error.to_string())
}

impl Workshop {
    fn forge_of(&self, work: &RepoWork) -> Result<Arc<dyn Forge>, Failed> {
        self.forges.forge(&work.target.repo).map_err(|error| unresolved(&error))
    }

    /// Asks a forge with the token of the moment. When it refuses that one and the caller has supplied another by then,
    /// it is asked once more: an answer can take minutes, and nobody supplies the same token twice.
    pub(super) async fn with_token<T, F>(
        &self,
        id: TaskId,
        ask: impl Fn(Option<SecretString>) -> F,
    ) -> Result<T, ForgeError>
    where
        F: Future<Output = Result<T, ForgeError>>,
    {
        let first = self.vault.git(id);
        let answer = ask(first.clone()).await;
        let Err(error) = &answer else { return answer };
        let now = self.vault.git(id);
        let same = match (&first, &now) {
            (Some(first), Some(now)) => first.expose_secret() == now.expose_secret(),
            (_, None) => true,
            (None, Some(_)) => false,
        };
        let about_token = matches!(error.failure().code, FailureCode::GitAuth | FailureCode::GitTokenScope);
        if same || !about_token { answer } else { ask(now).await }
    }

    pub(super) async fn push(&self, id: TaskId, task: &Task, repo: usize) -> Result<Command, Failed> {
        let work = work(task, repo)?;
        let Some(commit) = work.commit() else {
            return Err(Failed::new(Failure::new(FailureCode::Internal, "There is no commit to push.")));
        };
        let repository = self.repository(workspace_of(id, task), repo);
        let remote = self.remote(&work.target.repo)?;
        // The rules may have changed while the agent was working. What others pushed meanwhile is met by the lease.
        let policy = self.branches.of(&task.spec.team);
        policy.check_names(None, &work.target.branch).map_err(|refused| Failed::new(refused.failure()))?;
        // What is on the branch may only be what this task has put there, or what it started from.
        let started_from = work.checkout.as_ref().filter(|checkout| checkout.base == work.target.branch);
        let expected = task.landed.get(&work.target.repo.to_string()).or(started_from.map(|checkout| &checkout.commit));
        let branch = &work.target.branch;
        let push = |token| self.git.push_over(&repository, &remote, token, branch, &commit.id, expected);
        let pushed = with_current_token(|| self.vault.git(id), push).await.map_err(|error| self.git_failed(&error))?;
        let outcome = if pushed.already_there { PushOutcome::AlreadyThere } else { PushOutcome::Pushed };
        Ok(Command::RecordPush { repo, outcome })
    }

    pub(super) async fn open_pull_request(&self, id: TaskId, task: &Task, repo: usize) -> Result<Command, Failed> {
        let work = work(task, repo)?;
        let forge = match self.forges.forge(&work.target.repo) {
            Ok(forge) => forge,
            // One that tasks can be pushed to, and whose interface the operator has not named.
            Err(error @ ResolveError::Incomplete { .. }) => {
                let opened = PullRequestOutcome::Omitted { reason: format!("{error}.") };
                return Ok(Command::RecordPullRequest { repo, opened, notes: Vec::new() });
            }
            Err(error) => return Err(unresolved(&error)),
        };
        let text = self.task_text(id, task, repo, Standing::Running).await?;
        if text.base == work.target.branch {
            let reason = format!("The work went straight to {}, as the server's rules allow.", text.base);
            let opened = PullRequestOutcome::Omitted { reason };
            return Ok(Command::RecordPullRequest { repo, opened, notes: Vec::new() });
        }
        let wish = task.spec.pull_request.clone().unwrap_or_default();
        let PullRequestWish { draft, reviewers, labels, .. } = wish;
        let new = NewPullRequest {
            head: work.target.branch.clone(),
            base: text.base.clone(),
            title: self.texts.title(&text),
            body: self.texts.body(&text),
            marker: marker(id, repo),
            draft,
            reviewers,
            labels,
        };
        let (at, asked, wanted) = (&work.target.repo, &forge, &new);
        let open = |token: Option<SecretString>| async move {
            asked.open_pull_request(Access { repo: at, token: token.as_ref() }, wanted).await
        };
        let opened =
            self.with_token(id, open).await.map_err(|error| Failed::by_forge(error.failure(), error.retry_after()))?;
        let (outcome, notes) = match opened.pull_request {
            Some(request) => {
                let mut notes = pairs(opened.notes);
                // Not worth a second try: the last word replaces it.
                match self.shine(id, &*forge, work, &text, StatusState::Pending).await {
                    Ok(note) => notes.extend(pairs(note)),
                    Err(error) => notes.push(unsaid(&error, "commit-status")),
                }
                let (existed, foreign) = (opened.existed, !opened.ours);
                (PullRequestOutcome::Open { url: request.url, number: request.number, existed, foreign }, notes)
            }
            None => {
                let reason = opened.notes.into_iter().next().map(|note| note.detail);
                let reason = reason.unwrap_or_else(|| "The forge has none.".to_owned());
                (PullRequestOutcome::Omitted { reason }, Vec::new())
            }
        };
        Ok(Command::RecordPullRequest { repo, opened: outcome, notes })
    }

    /// Gives the pull request its text anew, now that those of the other repositories have their addresses.
    pub(super) async fn link_pull_request(&self, id: TaskId, task: &Task, repo: usize) -> Result<Command, Failed> {
        let work = work(task, repo)?;
        let Some((_, number)) = work.open_request() else {
            return Ok(Command::RecordLink { repo, notes: Vec::new() });
        };
        let forge = self.forge_of(work)?;
        let text = self.task_text(id, task, repo, Standing::Running).await?;
        let (title, body) = (&self.texts.title(&text), &self.texts.body(&text));
        let (at, asked) = (&work.target.repo, &forge);
        let describe = |token: Option<SecretString>| async move {
            asked.describe_pull_request(Access { repo: at, token: token.as_ref() }, number, title, body).await
        };
        let notes = match self.with_token(id, describe).await {
            Ok(note) => pairs(note),
            Err(error) => {
                let failed = Failed::by_forge(error.failure(), error.retry_after());
                // The pull requests are open; that they do not name one another is no reason to call the task failed.
                match (failed.asks_for, self.then(task, &failed.failure, failed.wait)) {
                    (Some(_), _) | (None, Then::Retry { .. }) => return Err(failed),
                    (None, Then::AskFor(_) | Then::GiveUp) => vec![unsaid(&error, "descriptions")],
                }
            }
        };
        Ok(Command::RecordLink { repo, notes })
    }

    /// The light beside the commit and the words below the pull request. Both are a courtesy: what the forge will not have
    /// is noted, and the task ends as it would have ended. What may pass is waited for while the task is doing well, so that
    /// no light stays on for ever.
    pub(super) async fn report(
        &self,
        id: TaskId,
        task: &Task,
        repo: usize,
        ending: Option<&Ending>,
    ) -> Result<Command, Failed> {
        let work = work(task, repo)?;
        let Some((_, number)) = work.open_request() else {
            return Ok(Command::RecordReport { repo, notes: Vec::new() });
        };
        let (standing, state) = match ending {
            None | Some(Ending::Succeeded) => (Standing::Succeeded, StatusState::Success),
            Some(Ending::Failed(failure)) => (Standing::Failed(failure.clone()), StatusState::Failure),
            Some(Ending::Cancelled) => (Standing::Cancelled, StatusState::Failure),
        };
        let forge = match self.forges.forge(&work.target.repo) {
            Ok(forge) => forge,
            Err(error) => {
                let notes = vec![("comments".to_owned(), format!("{error}."))];
                return Ok(Command::RecordReport { repo, notes });
            }
        };
        let text = self.task_text(id, task, repo, standing).await?;
        let (words, mark) = (&self.texts.comment(&text), &marker(id, repo));
        let (at, asked) = (&work.target.repo, &forge);
        let comment = |token: Option<SecretString>| async move {
            asked.comment(Access { repo: at, token: token.as_ref() }, number, mark, words).await
        };
        let said = [
            ("commit-status", self.shine(id, &*forge, work, &text, state).await),
            ("comments", self.with_token(id, comment).await),
        ];
        let mut notes = Vec::new();
        for (feature, said) in said {
            match said {
                Ok(note) => notes.extend(pairs(note)),
                Err(error) => {
                    let failed = Failed::by_forge(error.failure(), error.retry_after());
                    let passes = failed.asks_for.is_none()
                        && matches!(self.then(task, &failed.failure, failed.wait), Then::Retry { .. });
                    if ending.is_none() && passes {
                        return Err(failed);
                    }
                    notes.push(unsaid(&error, feature));
                }
            }
        }
        Ok(Command::RecordReport { repo, notes })
    }

    /// Sets the light beside the commit.
    async fn shine(
        &self,
        id: TaskId,
        forge: &dyn Forge,
        work: &RepoWork,
        text: &TaskText,
        state: StatusState,
    ) -> Result<Option<Note>, ForgeError> {
        let Some(commit) = work.commit() else { return Ok(None) };
        let status = &CommitStatus {
            commit: commit.id.clone(),
            state,
            context: STATUS_CONTEXT.to_owned(),
            description: self.texts.status(text),
            url: text.link.clone(),
        };
        let repo = &work.target.repo;
        let set = |token: Option<SecretString>| async move {
            forge.set_status(Access { repo, token: token.as_ref() }, status).await
        };
        self.with_token(id, set).await
    }

    /// What the texts of one of the task's pull requests are made of.
    pub(super) async fn task_text(
        &self,
        id: TaskId,
        task: &Task,
        repo: usize,
        standing: Standing,
    ) -> Result<TaskText, Failed> {
        let work = work(task, repo)?;
        let spec = &task.spec;
        let attempt = task.current();
        let commit = work.commit();
        let (files, insertions, deletions) = commit.map(|commit| commit.stat).unwrap_or_default();
        let wish = spec.pull_request.as_ref();
        let others = attempt.map(|attempt| attempt.repos.as_slice()).unwrap_or_default();
        let linked = others.iter().enumerate().filter(|(other, _)| *other != repo).filter_map(|(_, other)| {
            let (url, _) = other.open_request()?;
            Some(LinkedPullRequest { repo: other.target.repo.to_string(), url: url.to_owned() })
        });
        let base = work.checkout.as_ref().map(|checkout| checkout.base.clone());
        let summary = match attempt.and_then(|attempt| attempt.last_words.as_ref()) {
            Some(Content::Inline(words)) => Some(words.clone()),
            Some(Content::Blob(blob)) => {
                self.blobs.get(id, blob).await.ok().map(|words| String::from_utf8_lossy(&words).into_owned())
            }
            None => None,
        };
        // What is refused in a file is not to be told in a text.
        let summary =
            summary.map(|words| if self.commits.import.secrets.search { redact_secrets(&words) } else { words });
        let limit = SignedDuration::from_secs(i64::try_from(spec.timeout_seconds).unwrap_or(i64::MAX));
        let began = attempt.and_then(|attempt| attempt.deadline.checked_sub(limit).ok());
        let took = began.and_then(|began| Duration::try_from(Timestamp::now().duration_since(began)).ok());
        Ok(TaskText {
            id,
            task: spec.task.clone(),
            model: spec.model.clone(),
            harness: spec.harness.as_str().to_owned(),
            team: spec.team.clone(),
            project: spec.project.clone(),
            task_type: spec.task_type.clone(),
            repo: work.target.repo.to_string(),
            repo_index: repo,
            branch: work.target.branch.clone(),
            base: base.or_else(|| work.target.base.clone()).unwrap_or_default(),
            commits: commit.map(|commit| commit.subjects.clone()).unwrap_or_default(),
            files: files.into(),
            insertions: insertions.into(),
            deletions: deletions.into(),
            cost: task.spent.cost,
            input_tokens: task.spent.usage.context(),
            output_tokens: task.spent.usage.output_tokens,
            duration: took.unwrap_or_default(),
            link: self.public_url.as_ref().map(|url| format!("{url}/tasks/{id}")),
            summary,
            pull_requests: linked.collect(),
            attempt: task.attempt,
            requested_title: wish.and_then(|wish| wish.title.clone()),
            requested_body: wish.and_then(|wish| wish.body.clone()),
            standing,
        })
    }
}
