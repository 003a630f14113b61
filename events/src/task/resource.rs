//! The task as the outside sees it, folded from the same events as the state that decides.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::conversation::{Block, Usage};
use super::event::{TaskEvent, TaskSpec};
use super::usage::SandboxUsage;
use crate::blob::{BlobRef, Content};
use crate::envelope::{ActorKind, Envelope, Position, Revision};
use crate::failure::Failure;
use crate::id::{CallId, CommitId, SandboxId, TaskId};
use crate::money::NanoUsd;
use crate::repo::RepoRef;

/// Where a task stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskStatus {
    /// It waits for a node.
    Queued,
    /// Clone and sandbox are being made ready.
    Preparing,
    /// The agent works.
    Running,
    /// It waits for secrets of the caller.
    AwaitingCredentials,
    /// A step failed and will be done again.
    Retrying,
    /// The commit is pushed.
    Succeeded,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl TaskStatus {
    /// Every status.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Preparing,
        Self::Running,
        Self::AwaitingCredentials,
        Self::Retrying,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The kebab-case word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::AwaitingCredentials => "awaiting-credentials",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen unless somebody retries it.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A task as the outside sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskResource {
    /// Its id.
    pub id: TaskId,
    /// Where it stands.
    pub status: TaskStatus,
    /// What it is doing right now, or why it stands there.
    pub reason: String,
    /// What was asked for.
    pub spec: TaskSpec,
    /// Tokens of all attempts.
    pub usage: Usage,
    /// Dollars of all attempts.
    pub cost: NanoUsd,
    /// What of it is not billed.
    pub refunded: NanoUsd,
    /// The model calls that are open now, with what is reserved for each.
    pub open_calls: BTreeMap<CallId, NanoUsd>,
    /// The branch the work started from, once known.
    pub base: Option<String>,
    /// Where that branch stood.
    pub base_commit: Option<CommitId>,
    /// What was committed in the current attempt.
    pub commits: Vec<CommitId>,
    /// Files, lines added, lines removed.
    pub stat: Option<(u32, u32, u32)>,
    /// The diffs of the commits, one for each repository that was changed.
    pub diffs: Vec<RepoDiff>,
    /// The open pull requests.
    pub pull_requests: Vec<PullRequest>,
    /// The sandbox that is up now.
    pub sandbox: Option<SandboxId>,
    /// What the latest attempt's sandbox used when that was last written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_usage: Option<SandboxUsage>,
    /// The current attempt, counted from 1; 0 before the first.
    pub attempt: u32,
    /// Why it failed, or why it waits or retries.
    pub failure: Option<(Failure, u32)>,
    /// Who asked for it: the id of a key, of a person or of a campaign. `None`: Orchestra itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its latest attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When its words were erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased_at: Option<Timestamp>,
    /// The last event folded in.
    pub revision: Revision,
    /// Its place in the log.
    pub position: Position,
}

/// What was changed in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoDiff {
    /// Which.
    pub repo: RepoRef,
    /// The unified diff.
    pub diff: BlobRef,
}

/// A pull request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullRequest {
    /// Where.
    pub repo: String,
    /// Its page.
    pub url: String,
    /// Its number.
    pub number: u64,
}

fn creator(created: &Envelope, spec: &TaskSpec) -> Option<String> {
    match (spec.campaign, created.actor.kind) {
        (Some(campaign), _) => Some(campaign.to_string()),
        (None, ActorKind::ApiKey | ActorKind::Person) => Some(created.actor.id.clone()),
        (None, ActorKind::System) => None,
    }
}

impl TaskResource {
    /// Folds one envelope in. `None` before `created`, and for streams that are no task's.
    pub fn fold(current: Option<Self>, envelope: &Envelope, event: &TaskEvent) -> Option<Self> {
        let mut task = match (current, event) {
            (Some(task), _) => task,
            (None, TaskEvent::Created(spec)) => Self {
                id: envelope.stream.task_id()?,
                status: TaskStatus::Queued,
                reason: "created".to_owned(),
                spec: spec.as_ref().clone(),
                usage: Usage::default(),
                cost: NanoUsd::ZERO,
                refunded: NanoUsd::ZERO,
                open_calls: BTreeMap::new(),
                base: spec.base.clone(),
                base_commit: None,
                commits: Vec::new(),
                stat: None,
                diffs: Vec::new(),
                pull_requests: Vec::new(),
                sandbox: None,
                sandbox_usage: None,
                attempt: 0,
                failure: None,
                created_by: creator(envelope, spec),
                created_at: envelope.time,
                started_at: None,
                finished_at: None,
                erased_at: None,
                revision: envelope.revision,
                position: envelope.position,
            },
            (None, _) => return None,
        };
        task.revision = envelope.revision;
        task.position = envelope.position;
        task.apply(envelope.time, event);
        Some(task)
    }

    fn to(&mut self, status: TaskStatus, reason: impl Into<String>) {
        self.status = status;
        self.reason = reason.into();
    }

    fn end(&mut self, status: TaskStatus, time: Timestamp, reason: impl Into<String>) {
        self.to(status, reason);
        self.finished_at = Some(time);
        self.open_calls.clear();
    }

    /// Dollars reserved for the calls that are open now.
    pub fn reserved(&self) -> NanoUsd {
        self.open_calls.values().copied().sum()
    }

    /// What is billed: the cost less what was refunded.
    pub fn billable(&self) -> NanoUsd {
        self.cost.saturating_sub(self.refunded)
    }

    /// Forgets the words: what is left is what the log without them folds to.
    fn forget(&mut self, time: Timestamp) {
        self.spec = self.spec.without_words();
        self.failure = self.failure.take().map(|(failure, attempt)| (failure.without_words(), attempt));
        self.diffs.iter_mut().for_each(|change| change.diff = BlobRef::none());
        self.reason = match (self.status, &self.failure) {
            (TaskStatus::Succeeded, _) => self.outcome(),
            (TaskStatus::Failed, Some((failure, _))) => failure.message.clone(),
            (status, _) => status.as_str().to_owned(),
        };
        self.erased_at = Some(time);
    }

    /// What a task that succeeded has done.
    fn outcome(&self) -> String {
        match self.pull_requests.as_slice() {
            [] => format!("pushed {}", self.spec.branch),
            [one] => format!("opened {}", one.url),
            several => format!("opened {} pull requests", several.len()),
        }
    }

    fn apply(&mut self, time: Timestamp, event: &TaskEvent) {
        use TaskStatus as Status;
        match event {
            TaskEvent::Created(_) => {}
            TaskEvent::Queued {} => {
                self.finished_at = None;
                self.failure = None;
                self.to(Status::Queued, "waiting for a free sandbox");
            }
            TaskEvent::Claimed { node } => self.to(Status::Preparing, format!("taken by {node}")),
            TaskEvent::AttemptStarted { attempt, delivers: true, .. } => {
                self.attempt = *attempt;
                self.started_at = Some(time);
                self.to(Status::Running, "delivering what the attempt before has committed");
            }
            TaskEvent::AttemptStarted { attempt, delivers: false, .. } => {
                self.attempt = *attempt;
                self.started_at = Some(time);
                self.sandbox_usage = None;
                self.commits.clear();
                self.stat = None;
                self.diffs.clear();
                self.to(Status::Preparing, format!("cloning {}", self.spec.repo));
            }
            TaskEvent::Cloned { repo, base, commit, .. } => {
                if *repo == self.spec.repo {
                    self.base = Some(base.clone());
                    self.base_commit = Some(commit.clone());
                }
                self.to(Status::Preparing, "starting the sandbox");
            }
            TaskEvent::SetupStarted { .. } => self.to(Status::Preparing, "running the repository's setup script"),
            TaskEvent::SetupFinished { done: true, .. } => {
                self.failure = None;
                self.to(Status::Preparing, "starting the sandbox");
            }
            TaskEvent::SetupFinished { done: false, .. } => {}
            TaskEvent::SandboxStarted { sandbox, .. } => {
                self.sandbox = Some(*sandbox);
                self.to(Status::Running, "the sandbox is up");
            }
            TaskEvent::ModelCalled { call, model, reserved_nano_usd, .. } => {
                self.open_calls.insert(*call, *reserved_nano_usd);
                self.failure = None;
                self.to(Status::Running, format!("asking {model}"));
            }
            TaskEvent::TokensCharged { call, usage, cost_nano_usd, .. } => {
                self.open_calls.remove(call);
                self.usage += *usage;
                self.cost += *cost_nano_usd;
            }
            TaskEvent::Message { content, .. } => {
                if let Some(words) = first_words(content) {
                    self.to(Status::Running, words);
                }
            }
            TaskEvent::ModelCallFailed { call, failure } => {
                self.open_calls.remove(call);
                self.failure = Some((failure.clone(), self.attempt));
            }
            TaskEvent::StepFailed { failure } => self.failure = Some((failure.clone(), self.attempt)),
            TaskEvent::ToolCalled { name, input, .. } => self.to(Status::Running, activity(name, input)),
            TaskEvent::CallRetried { class, wait_ms, .. } => {
                let seconds = wait_ms.div_ceil(1_000);
                self.reason = format!("the model call failed ({class}): again in {seconds} s");
            }
            TaskEvent::HarnessStarted { .. } => {
                self.failure = None;
                self.to(Status::Running, format!("{} is at work", self.spec.harness.as_str()));
            }
            TaskEvent::RefundGranted { nano_usd, .. } => self.refunded += *nano_usd,
            TaskEvent::AttemptFailed { failure, attempt, wait_ms, .. } => {
                self.open_calls.clear();
                self.failure = Some((failure.clone(), *attempt));
                let seconds = wait_ms.div_ceil(1_000);
                let reason = format!("attempt {attempt} failed with {}: another one in {seconds} s", failure.code);
                self.to(Status::Retrying, reason);
            }
            TaskEvent::HarnessRead { .. }
            | TaskEvent::HarnessFinished { .. }
            | TaskEvent::ToolFinished { .. }
            | TaskEvent::Steered { .. } => {}
            TaskEvent::Committed { repo, commit, commits, files, insertions, deletions, diff, .. } => {
                if commits.is_empty() {
                    self.commits.push(commit.clone());
                } else {
                    self.commits.extend(commits.iter().cloned());
                }
                let (f, i, d) = self.stat.unwrap_or_default();
                let sum = |one: u32, more: &u32| one.saturating_add(*more);
                self.stat = Some((sum(f, files), sum(i, insertions), sum(d, deletions)));
                let repo = repo.clone().unwrap_or_else(|| self.spec.repo.clone());
                self.diffs.push(RepoDiff { repo, diff: diff.clone() });
                self.to(Status::Running, format!("pushing {}", self.spec.branch));
            }
            TaskEvent::Pushed { branch, .. } => self.to(Status::Running, format!("pushed {branch}")),
            TaskEvent::PullRequestOpened { repo, url, number, .. } => {
                let opened = PullRequest { repo: repo.to_string(), url: url.clone(), number: *number };
                if !self.pull_requests.contains(&opened) {
                    self.pull_requests.push(opened);
                }
                self.to(Status::Running, format!("opened a pull request on {repo}"));
            }
            TaskEvent::PullRequestLinked { repo } => {
                self.to(Status::Running, format!("linked the pull request on {repo} to the others"));
            }
            TaskEvent::Unchanged { .. }
            | TaskEvent::PullRequestOmitted { .. }
            | TaskEvent::ForgeNoted { .. }
            | TaskEvent::EgressDecided { .. }
            | TaskEvent::Reported { .. } => {}
            TaskEvent::SandboxUsage(usage) => self.sandbox_usage = Some(usage.as_ref().clone()),
            TaskEvent::OperatorEntered { .. } => {}
            TaskEvent::SandboxStopped { .. } => self.sandbox = None,
            TaskEvent::RetryScheduled { wait_ms, failures, .. } => {
                let because = self.failure.as_ref().map_or("a failure", |(failure, _)| failure.code.as_str());
                let seconds = wait_ms.div_ceil(1_000);
                let reason = format!("after {because} ({failures} in a row): again in {seconds} s");
                self.to(Status::Retrying, reason);
            }
            TaskEvent::CredentialsRequired { missing, failure } => {
                let names: Vec<_> = missing
                    .iter()
                    .map(|kind| match kind {
                        super::event::CredentialKind::Model => "a model key",
                        super::event::CredentialKind::Git => "a git token",
                    })
                    .collect();
                self.failure = failure.clone().map(|failure| (failure, self.attempt));
                self.to(Status::AwaitingCredentials, format!("waiting for {}", names.join(" and ")));
            }
            TaskEvent::CredentialsSupplied { .. } => {
                if self.status == Status::AwaitingCredentials {
                    self.failure = None;
                    let status = if self.attempt == 0 { Status::Queued } else { Status::Running };
                    self.to(status, "credentials supplied");
                }
            }
            TaskEvent::CancelRequested { .. } => self.reason = "cancelling".to_owned(),
            TaskEvent::Cancelled {} => {
                self.failure = None;
                self.end(Status::Cancelled, time, "cancelled");
            }
            TaskEvent::Failed { failure, attempt } => {
                self.end(Status::Failed, time, failure.message.clone());
                self.failure = Some((failure.clone(), *attempt));
            }
            TaskEvent::Succeeded {} => {
                self.failure = None;
                let reason = self.outcome();
                self.end(Status::Succeeded, time, reason);
            }
            TaskEvent::ContentErased { .. } => self.forget(time),
        }
    }
}

/// Longest `reason`, in characters.
const MAX_REASON: usize = 160;

fn shorten(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    if line.chars().count() <= MAX_REASON {
        return line.to_owned();
    }
    line.chars().take(MAX_REASON - 1).chain(['…']).collect()
}

fn first_words(content: &[Block]) -> Option<String> {
    content.iter().find_map(|block| match block {
        Block::Text { text: Content::Inline(text) } if !text.trim().is_empty() => Some(shorten(text)),
        Block::Text { .. } | Block::Thinking { .. } | Block::ToolUse { .. } => None,
    })
}

/// A tool call in the words of a status line. Every agent has its own names for the same few tools.
pub fn activity(tool: &str, input: &Value) -> String {
    let field = |names: &[&str]| names.iter().find_map(|name| input.get(name)?.as_str()).unwrap_or("…");
    let path = || field(&["path", "file_path", "filePath"]);
    shorten(&match tool.to_ascii_lowercase().as_str() {
        "bash" | "shell" | "exec_command" | "command_execution" => format!("running {}", field(&["command", "cmd"])),
        "read" => format!("reading {}", path()),
        "write" => format!("writing {}", path()),
        "edit" => format!("editing {}", path()),
        "glob" => format!("looking for {}", field(&["pattern"])),
        "grep" => format!("searching for {}", field(&["pattern"])),
        _ => format!("using {tool}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_agents_tools_are_told_in_the_same_words() {
        for (tool, input, expected) in [
            ("bash", json!({ "command": "ls" }), "running ls"),
            ("Bash", json!({ "command": "ls", "description": "x" }), "running ls"),
            ("command_execution", json!({ "command": "ls" }), "running ls"),
            ("Edit", json!({ "file_path": "a.rs" }), "editing a.rs"),
            ("write", json!({ "filePath": "a.rs" }), "writing a.rs"),
            ("read", json!({ "path": 1 }), "reading …"),
            ("WebThing", Value::Null, "using WebThing"),
        ] {
            assert_eq!(activity(tool, &input), expected, "{tool}");
        }
    }
}
