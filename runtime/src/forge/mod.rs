//! Forges: where repositories live, and the pull requests on them, by one trait for all.
//!
//! [`Forges`] resolves names; [`Forge`] is what each kind of forge can be asked. What a forge does not have (labels,
//! reviewers, pull requests at all) comes back as a [`Note`], which is recorded and fails nobody's task.

mod bitbucket_cloud;
mod bitbucket_dc;
mod bitbucket_people;
mod bitbucket_place;
mod bitbucket_rules;
mod bitbucket_text;
mod configured;
mod error;
mod github;
mod gitlab;
mod http;
mod lane;
mod plain;
mod refusal;
mod token;
mod wish;

use async_trait::async_trait;
use orchestra_events::CommitId;
use orchestra_events::repo::RepoRef;
use secrecy::SecretString;

pub use configured::{ForgeConfig, ForgeKind, Forges, ResolveError};
pub use error::ForgeError;
pub use http::ForgeLimits;
pub use token::TokenKind;
pub(crate) use token::{GitCredential, git_credential};

/// Who asks for which repository.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// The repository.
    pub repo: &'a RepoRef,
    /// The caller's token, as the vault has it at this moment.
    pub token: Option<&'a SecretString>,
}

/// A repository as its forge describes it to this token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// What stays the same when it is renamed, and is never given to another one: GitHub's `id`, Bitbucket's `uuid`.
    /// `None` where the forge has nothing of the kind.
    pub id: Option<String>,
    /// The branch that pull requests go to when nothing is said.
    pub default_branch: Option<String>,
    /// Whether it takes no pushes from anybody.
    pub archived: bool,
    /// Whether the token may push, as far as the forge says.
    pub may_push: Option<bool>,
}

/// What the forge says about a branch before it is pushed to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BranchRules {
    /// Whether pushes to a branch of that name are held back by a rule. `None`: the forge does not tell this token.
    pub protected: Option<bool>,
}

/// A pull request to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPullRequest {
    /// The branch with the work.
    pub head: String,
    /// The branch that it goes to.
    pub base: String,
    /// One line.
    pub title: String,
    /// Its text, in the forge's Markdown. It holds `marker`.
    pub body: String,
    /// What tells our pull request from anybody else's: stands in the body, unseen by readers.
    pub marker: String,
    /// Whether it begins as a draft.
    pub draft: bool,
    /// Who is asked to look at it, by the names that the forge knows them by.
    pub reviewers: Vec<String>,
    /// Its labels.
    pub labels: Vec<String>,
}

/// A pull request that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// Its number in the repository.
    pub number: u64,
    /// Its page.
    pub url: String,
}

/// What came of opening one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The pull request; `None` on a forge that has none.
    pub pull_request: Option<PullRequest>,
    /// It was there before: an earlier attempt's answer was lost, or somebody opened one for the branch.
    pub existed: bool,
    /// It is this task's own: just created, or found with the marker in it. What somebody else opened is to be left as it
    /// is, also by whoever would describe it anew.
    pub ours: bool,
    /// What of the wish could not be had.
    pub notes: Vec<Note>,
}

/// What a forge could not do of what was wished for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Of which part.
    pub feature: Feature,
    /// Why, in a sentence.
    pub detail: String,
}

/// What not every forge has, or has for everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Pull requests.
    PullRequests,
    /// Pull requests that are not to be looked at yet.
    Drafts,
    /// People who are asked to look at it.
    Reviewers,
    /// Labels.
    Labels,
    /// A light beside a commit.
    CommitStatus,
    /// Words below a pull request.
    Comments,
    /// Changing a pull request's text.
    Descriptions,
}

impl Feature {
    /// Its stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PullRequests => "pull-requests",
            Self::Drafts => "drafts",
            Self::Reviewers => "reviewers",
            Self::Labels => "labels",
            Self::CommitStatus => "commit-status",
            Self::Comments => "comments",
            Self::Descriptions => "descriptions",
        }
    }
}

/// How the light beside a commit shines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusState {
    /// The task goes on.
    Pending,
    /// It succeeded.
    Success,
    /// It failed.
    Failure,
}

/// The light beside a commit. One per context: a later one replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitStatus {
    /// Of which commit.
    pub commit: CommitId,
    /// How it shines.
    pub state: StatusState,
    /// Whose light it is, such as `orchestra`.
    pub context: String,
    /// One line, at most 140 characters.
    pub description: String,
    /// Where to read more.
    pub url: Option<String>,
}

/// What every kind of forge can be asked. Each call is safe to repeat: it looks first whether it has been done.
///
/// Every method is bounded in time, follows no redirect to another origin, sends the token nowhere else, and waits out
/// what the forge asks to wait when that is short; a longer wait comes back as [`ForgeError::RateLimited`].
#[async_trait]
pub trait Forge: Send + Sync {
    /// The repository, as this token sees it.
    async fn repository(&self, access: Access<'_>) -> Result<Repository, ForgeError>;
    /// What holds pushes to this branch back.
    async fn branch_rules(&self, access: Access<'_>, branch: &str) -> Result<BranchRules, ForgeError>;
    /// Opens a pull request, or finds the one that is open for that head branch already. One of ours is given this title
    /// and body, which an earlier attempt may have worded otherwise; one of somebody else's is left as it is.
    async fn open_pull_request(&self, access: Access<'_>, new: &NewPullRequest) -> Result<Opened, ForgeError>;
    /// Gives a pull request another text. A forge without it answers with a note.
    async fn describe_pull_request(
        &self,
        access: Access<'_>,
        number: u64,
        title: &str,
        body: &str,
    ) -> Result<Option<Note>, ForgeError>;
    /// Says something below a pull request, once per marker: a repeat replaces what was said.
    async fn comment(
        &self,
        access: Access<'_>,
        number: u64,
        marker: &str,
        text: &str,
    ) -> Result<Option<Note>, ForgeError>;
    /// Sets the light beside a commit.
    async fn set_status(&self, access: Access<'_>, status: &CommitStatus) -> Result<Option<Note>, ForgeError>;
}
