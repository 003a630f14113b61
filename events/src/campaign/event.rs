//! Everything that can happen to a campaign. Names and meanings are public and permanent.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::envelope::Revision;
use crate::failure::FailureCode;
use crate::id::{CampaignId, TaskId};
use crate::json::DecodeError;
use crate::repo::RepoRef;
use crate::task::event::{Budget, ErasureReason, TaskSpec};

/// The version of the shape of the events below. A change of shape raises it and adds an upcaster.
pub const SCHEMA: u16 = 1;

/// Most repositories of one campaign: its first event and the list of its tasks stay of a size that is read at once.
pub const MAX_REPOS: usize = 1_000;
/// Most tasks of one campaign that run at once: more than a large node has places for.
pub const MAX_CONCURRENCY: u32 = 64;
/// Tasks of a campaign that run at once when its caller does not say.
pub const DEFAULT_CONCURRENCY: u32 = 4;
/// The highest limit of pull requests per hour; whoever wants more wants none.
pub const MAX_PULL_REQUESTS_PER_HOUR: u32 = 1_000;
/// Longest name of a campaign, in bytes.
pub const MAX_NAME: usize = 200;

/// What a user asked for. Everything later refers to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CampaignSpec {
    /// What its owner calls it.
    pub name: String,
    /// The first repository's task. Those of the others differ in repository, base and branch alone.
    pub template: TaskSpec,
    /// Where the work is done, in the order in which it is begun.
    pub repos: Vec<CampaignRepo>,
    /// What all tasks together may cost.
    pub budget: Budget,
    /// How fast it may go, and when it stops by itself.
    pub limits: Limits,
    /// The SHA-256 of the request, secrets left out, when it carried an idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
}

/// One of the repositories of a campaign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CampaignRepo {
    /// Where it is.
    pub repo: RepoRef,
    /// The branch to start from; the repository's default branch when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The branch to push to.
    pub branch: String,
}

/// How fast a campaign may go, and when it stops by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Tasks that may run at once.
    pub concurrency: u32,
    /// Pull requests that may be opened within any sixty minutes. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_requests_per_hour: Option<u32>,
    /// With so many failed tasks it is paused. Absent: it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_after_failures: Option<u32>,
}

impl CampaignSpec {
    /// What the task for one of the repositories is asked for.
    pub fn child(&self, campaign: CampaignId, index: u32) -> Option<TaskSpec> {
        let CampaignRepo { repo, base, branch } = self.repos.get(usize::try_from(index).ok()?)?.clone();
        Some(TaskSpec { repo, base, branch, campaign: Some(campaign), request_hash: None, ..self.template.clone() })
    }
}

/// The id of the task for one of a campaign's repositories. Derived, so that whoever starts it again after a crash
/// meets the stream of the first start.
pub fn child_id(campaign: CampaignId, index: u32) -> TaskId {
    let mut hash = Sha256::new();
    hash.update(b"task of a campaign\n");
    hash.update(campaign.uuid().as_bytes());
    hash.update(index.to_be_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    TaskId::from_uuid(uuid::Builder::from_bytes(bytes).with_version(uuid::Version::Custom).into_uuid())
}

/// How a task of a campaign ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum ChildOutcome {
    /// Its work is where it was wanted.
    Succeeded,
    /// It failed.
    Failed {
        /// Why.
        code: FailureCode,
    },
    /// It was cancelled.
    Cancelled,
}

/// A pull request that a task has opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenedPullRequest {
    /// Its page.
    pub url: String,
    /// Its number.
    pub number: u64,
    /// When.
    pub opened_at: Timestamp,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum CampaignEvent {
    /// A caller asked for it. Always the first event.
    CampaignCreated(Box<CampaignSpec>),
    /// The task for one of the repositories was begun, or begun again.
    CampaignChildStarted {
        /// Which of the repositories, counted from 0.
        index: u32,
        /// Its task.
        task: TaskId,
        /// The repository.
        repo: RepoRef,
        /// Counted from 1; more than 1 after a retry.
        run: u32,
        /// The last event of the task's stream before this run; absent when there was no such stream.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Revision>,
    },
    /// The task has come to an end.
    CampaignChildFinished {
        /// Which of the repositories.
        index: u32,
        /// Its task.
        task: TaskId,
        /// Which run of it.
        run: u32,
        /// How it ended.
        outcome: ChildOutcome,
        /// The pull requests that this run opened.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pull_requests: Vec<OpenedPullRequest>,
    },
    /// No further task is begun. Those that run go on.
    CampaignPaused {
        /// Why.
        reason: String,
    },
    /// Further tasks are begun again.
    CampaignResumed {},
    /// A caller wants it stopped: no further task is begun, and those that run are cancelled.
    CampaignCancelled {
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A caller wants those that failed done again.
    CampaignRetryRequested {
        /// Which ones.
        children: Vec<u32>,
    },
    /// Nothing runs and nothing waits.
    CampaignFinished {
        /// Tasks that succeeded.
        succeeded: u32,
        /// Tasks that failed.
        failed: u32,
        /// Tasks that were cancelled, those that were never begun among them.
        cancelled: u32,
    },
    /// The words of everything before this are forgotten, or about to be.
    CampaignContentErased {
        /// Why.
        reason: ErasureReason,
        /// How many events are before this.
        events: u64,
    },
}

impl CampaignEvent {
    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] = &[
        "campaign-created",
        "campaign-child-started",
        "campaign-child-finished",
        "campaign-paused",
        "campaign-resumed",
        "campaign-cancelled",
        "campaign-retry-requested",
        "campaign-finished",
        "campaign-content-erased",
    ];

    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::CampaignCreated(_) => "campaign-created",
            Self::CampaignChildStarted { .. } => "campaign-child-started",
            Self::CampaignChildFinished { .. } => "campaign-child-finished",
            Self::CampaignPaused { .. } => "campaign-paused",
            Self::CampaignResumed {} => "campaign-resumed",
            Self::CampaignCancelled { .. } => "campaign-cancelled",
            Self::CampaignRetryRequested { .. } => "campaign-retry-requested",
            Self::CampaignFinished { .. } => "campaign-finished",
            Self::CampaignContentErased { .. } => "campaign-content-erased",
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Tagged {
            data: Box<RawValue>,
        }
        let tagged = serde_json::to_string(self)?;
        Ok(serde_json::from_str::<Tagged>(&tagged)?.data)
    }

    /// Reads an event back from its envelope. `None`: a type this version does not know, which is kept but means
    /// nothing to the fold.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("campaign", Self::KINDS, envelope)
    }
}
