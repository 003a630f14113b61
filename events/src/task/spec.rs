//! What a user asks for: the content of a task's first event, to which everything later refers.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::CampaignId;
use crate::money::NanoUsd;
use crate::repo::RepoRef;

/// The longest wall-clock limit a task may ask for.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest text a task may be described with, in bytes.
pub const MAX_TASK_TEXT: usize = 32 * 1024;

/// What a user asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskSpec {
    /// Where the work is done.
    pub repo: RepoRef,
    /// What is to be done, in the user's words.
    pub task: String,
    /// The model, as the user named it.
    pub model: String,
    /// Which agent does it.
    pub harness: Harness,
    /// Program and arguments of [`Harness::Command`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Whose task it is.
    pub team: String,
    /// The project within the team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The environment within the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// What kind of work it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_type: Option<String>,
    /// The team's own customer, for pass-through billing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    /// What it may cost.
    pub budget: Budget,
    /// The branch to start from; the repository's default branch when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The branch to push to.
    pub branch: String,
    /// The repositories besides `repo`, each with its own branch and pull request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<FurtherRepo>,
    /// What the pull requests are to be like, as far as the caller said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<PullRequestWish>,
    /// The campaign that this is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign: Option<CampaignId>,
    /// The sandbox image.
    pub image: String,
    /// The hosts that its sandbox may connect to, as patterns and words. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// The wall-clock limit of one attempt.
    pub timeout_seconds: u64,
    /// What follows an attempt that failed. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Attempts>,
    /// Free text pairs of the caller.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// The SHA-256 of the request, secrets left out, when it carried an idempotency key: a repeat with another body
    /// is told so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// Whether a model key came with the request.
    pub caller_brings_model_key: bool,
    /// Whether a git token came with the request.
    pub caller_brings_git_token: bool,
}

/// A repository that a task works on besides its first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FurtherRepo {
    /// Where it is.
    pub repo: RepoRef,
    /// The branch to start from; the repository's default branch when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The branch to push to.
    pub branch: String,
}

/// What a caller wants of a pull request. What is absent is made from the operator's templates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullRequestWish {
    /// Its title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Whether it begins as a draft.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draft: bool,
    /// Who is asked to look at it, by the names that the forge knows them by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reviewers: Vec<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// One of the repositories that a task works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub repo: RepoRef,
    /// The branch to start from; the repository's default branch when absent.
    pub base: Option<String>,
    /// The branch to push to.
    pub branch: String,
    /// The folder of its work tree below the workspace; empty when the workspace is the work tree.
    pub directory: String,
}

/// Most repositories of one task, the first one counted.
pub const MAX_REPOS: usize = 16;

impl TaskSpec {
    /// The repositories, in the order of the request. One alone is the workspace itself; of several each has a folder
    /// with its own name, and a number behind it where two names are alike.
    pub fn targets(&self) -> Vec<Target> {
        let first = FurtherRepo { repo: self.repo.clone(), base: self.base.clone(), branch: self.branch.clone() };
        if self.further.is_empty() {
            let FurtherRepo { repo, base, branch } = first;
            return vec![Target { repo, base, branch, directory: String::new() }];
        }
        let mut targets: Vec<Target> = Vec::with_capacity(1 + self.further.len());
        for FurtherRepo { repo, base, branch } in std::iter::once(first).chain(self.further.iter().cloned()) {
            let name = repo.path().rsplit('/').next().unwrap_or(repo.path()).to_owned();
            let taken = |name: &str| targets.iter().any(|target| target.directory.eq_ignore_ascii_case(name));
            let numbered = (2..).map(|number| format!("{name}-{number}"));
            let directory = std::iter::once(name.clone()).chain(numbered).find(|name| !taken(name));
            targets.push(Target { repo, base, branch, directory: directory.unwrap_or(name) });
        }
        targets
    }

    /// What the agent is told: the task, and where its repositories are when there are several.
    pub fn prompt(&self) -> String {
        let targets = self.targets();
        if targets.len() < 2 {
            return self.task.clone();
        }
        let folders = targets.iter().map(|target| format!("- {}/ is {}", target.directory, target.repo));
        let folders = folders.collect::<Vec<_>>().join("\n");
        format!(
            "{}\n\nThe workspace holds several repositories, each in a folder of its own:\n{folders}\nWhat is changed \
             in each becomes a pull request of its own.",
            self.task
        )
    }
}

/// Which agent does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Harness {
    /// Orchestra's own loop.
    Builtin,
    /// Anthropic's command line agent, `claude`.
    ClaudeCode,
    /// OpenAI's command line agent, `codex`.
    Codex,
    /// The command line agent `opencode`.
    Opencode,
    /// A command of the caller's own.
    Command,
}

impl Harness {
    /// Every harness.
    pub const ALL: [Self; 5] = [Self::Builtin, Self::ClaudeCode, Self::Codex, Self::Opencode, Self::Command];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::ClaudeCode => "claude-code",
            Self::Codex => "codex",
            Self::Opencode => "opencode",
            Self::Command => "command",
        }
    }
}

/// How often a task is attempted by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempts {
    /// The most attempts, the first one counted.
    pub most: u32,
    /// What a further attempt begins with.
    pub workspace: Workspace,
}

/// What a further attempt begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workspace {
    /// The repository, cloned anew.
    Fresh,
    /// The sandbox of the attempt before, with what was changed in it.
    Same,
}

impl Workspace {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Fresh, Self::Same];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Same => "same",
        }
    }
}

/// Most attempts that a task may ask for.
pub const MAX_ATTEMPTS: u32 = 10;

/// Caps of one task. Absent means no cap of that kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// In nano-dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_nano_usd: Option<NanoUsd>,
    /// Input and output tokens together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
}
