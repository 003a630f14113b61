//! Everything that can happen to a task. Names and meanings are public and permanent.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::conversation::{Block, StopReason, Usage};
use super::egress::{EgressDecision, EgressRest};
pub use super::spec::{
    Attempts, Budget, FurtherRepo, Harness, MAX_ATTEMPTS, MAX_REPOS, MAX_TASK_TEXT, MAX_TIMEOUT, PullRequestWish,
    Target, TaskSpec, Workspace,
};
use super::usage::{OperatorEntry, SandboxUsage};
use crate::blob::{BlobRef, Content};
use crate::failure::{Failure, FailureCode};
use crate::id::{CallId, CommitId, SandboxId};
use crate::json::DecodeError;
use crate::money::NanoUsd;
use crate::repo::RepoRef;

/// The version of the shape of the events below. A change of shape raises it and adds an upcaster.
pub const SCHEMA: u16 = 1;

/// A secret that only the caller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialKind {
    /// The model provider's key.
    Model,
    /// The forge's token.
    Git,
}

/// How a tool call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToolOutcome {
    /// It did what it was asked.
    Ok,
    /// It said no, or exited non-zero.
    Error,
    /// Its own limit passed.
    TimedOut,
    /// The kernel killed it for memory.
    OutOfMemory,
    /// The sandbox was lost while it ran: whether it had an effect is not known.
    Interrupted,
}

/// How a branch came to hold the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushOutcome {
    /// This push put it there.
    Pushed,
    /// It was there already: an earlier push had landed before its answer was lost.
    AlreadyThere,
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum TaskEvent {
    /// A caller asked for it. Always the first event.
    Created(Box<TaskSpec>),
    /// It waits for its turn.
    Queued {},
    /// A node took it.
    Claimed {
        /// The node.
        node: String,
    },
    /// Work began.
    AttemptStarted {
        /// Counted from 1.
        attempt: u32,
        /// When the attempt must be over.
        deadline: Timestamp,
        /// The commits of the attempt before are delivered; the agent is not asked again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        delivers: bool,
    },
    /// The repository was fetched and checked out.
    Cloned {
        /// Which one.
        repo: RepoRef,
        /// The branch the work starts from.
        base: String,
        /// Where that branch stood.
        commit: CommitId,
        /// The sandbox whose workspace holds the files.
        sandbox: SandboxId,
        /// The commit has a setup script, which runs before the agent starts.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        setup: bool,
    },
    /// The setup scripts are about to run, in a sandbox of their own: what they make is not there yet.
    SetupStarted {
        /// The repositories that have one.
        repos: Vec<RepoRef>,
        /// The beginning of the name of what they make: the same for everything that goes into it.
        key: String,
        /// The sandbox that they run in.
        sandbox: SandboxId,
    },
    /// What the setup scripts make lies under the workspace, or could not be made.
    SetupFinished {
        /// The beginning of its name.
        key: String,
        /// It was there already: nothing ran.
        cached: bool,
        /// It is there; otherwise the failure that follows says why not.
        done: bool,
        /// The exit code of the last script that ran; absent when none did, or a limit ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// From the wish for it until it was there, in milliseconds.
        duration_ms: u64,
        /// Both ends of what the scripts printed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Content>,
        /// Bytes they printed that are not in `output`.
        #[serde(default, skip_serializing_if = "is_zero")]
        omitted_bytes: u64,
    },
    /// The machine for it is up.
    SandboxStarted {
        /// Its name.
        sandbox: SandboxId,
        /// From which image.
        image: String,
        /// From the request to the first answer of its init, in milliseconds.
        start_ms: u64,
        /// What that name or reference stood for: the digest that it was pulled with, or of what it was built of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image_digest: Option<String>,
    },
    /// A model is about to be asked. The reservation stands until the call's outcome is known.
    ModelCalled {
        /// The call.
        call: CallId,
        /// The model.
        model: String,
        /// The most it can cost.
        reserved_nano_usd: NanoUsd,
        /// The most tokens it can use.
        reserved_tokens: u64,
        /// The output limit sent along.
        max_output_tokens: u64,
    },
    /// What a model call cost.
    TokensCharged {
        /// The call.
        call: CallId,
        /// The model.
        model: String,
        /// What the provider counted.
        usage: Usage,
        /// What that costs.
        cost_nano_usd: NanoUsd,
        /// False when the outcome was lost and the reservation was charged in full.
        confirmed: bool,
        /// Which row of which price table was applied.
        price: String,
        /// Why the model stopped, where the reply itself is not recorded: a harness keeps its own conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop_reason: Option<StopReason>,
    },
    /// The agent spoke.
    Message {
        /// The model call it answers; absent when a harness says it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        call: Option<CallId>,
        /// What it said.
        content: Vec<Block>,
        /// Why the model stopped; absent when a harness says it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop_reason: Option<StopReason>,
    },
    /// A model call brought no answer; nothing was charged for it unless `tokens-charged` says so.
    ModelCallFailed {
        /// The call.
        call: CallId,
        /// What went wrong.
        failure: Failure,
    },
    /// An attempt of a model call failed before anything of it was passed on, and is made again.
    CallRetried {
        /// The call.
        call: CallId,
        /// The attempt that failed, counted from 1.
        attempt: u32,
        /// How: `rate-limited`, `overloaded`, `server-error`, `connect`, `reset` …
        class: String,
        /// The wait before the next attempt, in milliseconds.
        wait_ms: u64,
    },
    /// The harness's program is about to run.
    HarnessStarted {
        /// Which run of this attempt, counted from 1.
        run: u32,
        /// The session of the program that this run goes on with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resumes: Option<String>,
    },
    /// The harness's output was read up to here. What it said stands beside this as `message`, `tool-called` and
    /// `tool-finished`.
    HarnessRead {
        /// The run.
        run: u32,
        /// Bytes of its log that are recorded.
        offset: u64,
        /// The name under which the program can go on with this session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
    },
    /// The harness's program has ended. Whether it did its work does not follow from its exit code.
    HarnessFinished {
        /// The run.
        run: u32,
        /// Its exit code; absent when a signal or a limit ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// How long it ran, in milliseconds.
        duration_ms: u64,
        /// The agent came to its end; otherwise the failure that follows says why not.
        done: bool,
    },
    /// The agent is about to run a tool.
    ToolCalled {
        /// The model's id of the call.
        tool_call: String,
        /// The tool.
        name: String,
        /// Its input.
        input: Value,
    },
    /// A tool answered.
    ToolFinished {
        /// The model's id of the call.
        tool_call: String,
        /// How it ended.
        outcome: ToolOutcome,
        /// What the model is shown.
        output: Content,
        /// How long it ran, in milliseconds; absent where nobody measured it, as for the tools of a harness.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        duration_ms: Option<u64>,
        /// Bytes it printed that are not in `output`.
        omitted_bytes: u64,
    },
    /// Somebody spoke to the running agent.
    Steered {
        /// The words.
        message: String,
    },
    /// The agent's work is a commit.
    Committed {
        /// Where; the task's first repository when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repo: Option<RepoRef>,
        /// The commit, the last one if there are several.
        commit: CommitId,
        /// All of them, oldest first, where there are several.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        commits: Vec<CommitId>,
        /// Its tree.
        tree: CommitId,
        /// Its message.
        message: String,
        /// The first lines of all of them, oldest first, where there are several.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        subjects: Vec<String>,
        /// Files it touches.
        files: u32,
        /// Lines added.
        insertions: u32,
        /// Lines removed.
        deletions: u32,
        /// The unified diff.
        diff: BlobRef,
    },
    /// The agent changed nothing in one of the task's repositories.
    Unchanged {
        /// In which.
        repo: RepoRef,
    },
    /// The branch holds the commit.
    Pushed {
        /// Where.
        repo: RepoRef,
        /// The branch.
        branch: String,
        /// The commit.
        commit: CommitId,
        /// How it got there.
        outcome: PushOutcome,
    },
    /// A pull request is open.
    PullRequestOpened {
        /// Where.
        repo: RepoRef,
        /// Its page.
        url: String,
        /// Its number.
        number: u64,
        /// It was open before: an earlier attempt's answer was lost, or somebody else has opened it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        existed: bool,
        /// Somebody else has opened it: its title and its text are theirs.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        foreign: bool,
    },
    /// There is no pull request: the forge has none.
    PullRequestOmitted {
        /// Where.
        repo: RepoRef,
        /// Why not.
        reason: String,
    },
    /// The pull request names those of the task's other repositories.
    PullRequestLinked {
        /// Where.
        repo: RepoRef,
    },
    /// The forge could not do something that was wished for; the task goes on without it.
    ForgeNoted {
        /// Where.
        repo: RepoRef,
        /// What: `labels`, `reviewers`, `drafts`, `commit-status`, `comments`, `descriptions`.
        feature: String,
        /// Why not.
        detail: String,
    },
    /// The forge was told how the task ended: the light beside the commit, and words below the pull request.
    Reported {
        /// Where.
        repo: RepoRef,
    },
    /// What the machine uses at this moment.
    SandboxUsage(Box<SandboxUsage>),
    /// Somebody with root on the host went into the machine.
    OperatorEntered {
        /// Which one.
        sandbox: SandboxId,
        /// When, by the host's clock; this may be written down later.
        at: Timestamp,
        /// The host's user.
        operator: String,
        /// How.
        how: OperatorEntry,
        /// The program that was started. Its arguments are not told: they may hold a secret.
        program: String,
    },
    /// The machine is gone.
    SandboxStopped {
        /// Its name.
        sandbox: SandboxId,
        /// Why: `finished`, `failed`, `cancelled`, `lost`.
        reason: SandboxEnd,
    },
    /// The sandbox connected to hosts, or tried to.
    EgressDecided {
        /// To which, and what was decided.
        decisions: Vec<EgressDecision>,
        /// What is not listed: too many hosts at once, or in this attempt.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        omitted: Option<EgressRest>,
    },
    /// A step went wrong.
    StepFailed {
        /// What went wrong.
        failure: Failure,
    },
    /// The step that failed will be done again.
    RetryScheduled {
        /// When.
        until: Timestamp,
        /// How often it has failed in a row.
        failures: u32,
        /// The wait, in milliseconds.
        wait_ms: u64,
    },
    /// The work waits for secrets that only the caller has.
    CredentialsRequired {
        /// Which ones.
        missing: Vec<CredentialKind>,
        /// Why one that was given does not do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Failure>,
    },
    /// The caller supplied secrets. The fact, never the value.
    CredentialsSupplied {
        /// Which ones.
        supplied: Vec<CredentialKind>,
        /// The new deadline of the attempt that goes on: waiting for secrets does not count against it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    /// What the attempt cost is not billed: it failed for a reason that is the provider's or ours. The cost itself
    /// stays in the books.
    RefundGranted {
        /// How much.
        nano_usd: NanoUsd,
        /// For which failure.
        reason: FailureCode,
    },
    /// The attempt failed, and another one follows by itself.
    AttemptFailed {
        /// Why.
        failure: Failure,
        /// Which one.
        attempt: u32,
        /// What the next one begins with.
        workspace: Workspace,
        /// When it begins.
        until: Timestamp,
        /// The wait, in milliseconds.
        wait_ms: u64,
    },
    /// Somebody wants it stopped.
    CancelRequested {
        /// In their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// It was stopped.
    Cancelled {},
    /// It did not succeed.
    Failed {
        /// Why.
        failure: Failure,
        /// In which attempt.
        attempt: u32,
    },
    /// It is done.
    Succeeded {},
    /// The words of everything before this are forgotten, or about to be.
    ContentErased {
        /// Why.
        reason: ErasureReason,
        /// How many events are before this.
        events: u64,
    },
}

/// Why words are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErasureReason {
    /// Somebody asked for it.
    Request,
    /// They were as old as the operator lets them become.
    Retention,
}

impl ErasureReason {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Retention => "retention",
        }
    }
}

/// Why a sandbox is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxEnd {
    /// The work was done.
    Finished,
    /// The work failed.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It vanished: the machine restarted, or the kernel killed it.
    Lost,
}

impl TaskEvent {
    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Created(_) => "created",
            Self::Queued {} => "queued",
            Self::Claimed { .. } => "claimed",
            Self::AttemptStarted { .. } => "attempt-started",
            Self::Cloned { .. } => "cloned",
            Self::SetupStarted { .. } => "setup-started",
            Self::SetupFinished { .. } => "setup-finished",
            Self::SandboxStarted { .. } => "sandbox-started",
            Self::ModelCalled { .. } => "model-called",
            Self::TokensCharged { .. } => "tokens-charged",
            Self::Message { .. } => "message",
            Self::ModelCallFailed { .. } => "model-call-failed",
            Self::CallRetried { .. } => "call-retried",
            Self::HarnessStarted { .. } => "harness-started",
            Self::HarnessRead { .. } => "harness-read",
            Self::HarnessFinished { .. } => "harness-finished",
            Self::ToolCalled { .. } => "tool-called",
            Self::ToolFinished { .. } => "tool-finished",
            Self::Steered { .. } => "steered",
            Self::Committed { .. } => "committed",
            Self::Unchanged { .. } => "unchanged",
            Self::Pushed { .. } => "pushed",
            Self::PullRequestOpened { .. } => "pull-request-opened",
            Self::PullRequestOmitted { .. } => "pull-request-omitted",
            Self::PullRequestLinked { .. } => "pull-request-linked",
            Self::ForgeNoted { .. } => "forge-noted",
            Self::Reported { .. } => "reported",
            Self::SandboxUsage(_) => "sandbox-usage",
            Self::OperatorEntered { .. } => "operator-entered",
            Self::SandboxStopped { .. } => "sandbox-stopped",
            Self::EgressDecided { .. } => "egress-decided",
            Self::StepFailed { .. } => "step-failed",
            Self::RetryScheduled { .. } => "retry-scheduled",
            Self::CredentialsRequired { .. } => "credentials-required",
            Self::CredentialsSupplied { .. } => "credentials-supplied",
            Self::RefundGranted { .. } => "refund-granted",
            Self::AttemptFailed { .. } => "attempt-failed",
            Self::CancelRequested { .. } => "cancel-requested",
            Self::Cancelled {} => "cancelled",
            Self::Failed { .. } => "failed",
            Self::Succeeded {} => "succeeded",
            Self::ContentErased { .. } => "content-erased",
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<serde_json::value::RawValue>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Tagged {
            data: Box<serde_json::value::RawValue>,
        }
        let tagged = serde_json::to_string(self)?;
        Ok(serde_json::from_str::<Tagged>(&tagged)?.data)
    }

    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] = &[
        "created",
        "queued",
        "claimed",
        "attempt-started",
        "cloned",
        "setup-started",
        "setup-finished",
        "sandbox-started",
        "model-called",
        "tokens-charged",
        "message",
        "model-call-failed",
        "call-retried",
        "harness-started",
        "harness-read",
        "harness-finished",
        "tool-called",
        "tool-finished",
        "steered",
        "committed",
        "unchanged",
        "pushed",
        "pull-request-opened",
        "pull-request-omitted",
        "pull-request-linked",
        "forge-noted",
        "reported",
        "sandbox-usage",
        "operator-entered",
        "sandbox-stopped",
        "egress-decided",
        "step-failed",
        "retry-scheduled",
        "credentials-required",
        "credentials-supplied",
        "refund-granted",
        "attempt-failed",
        "cancel-requested",
        "cancelled",
        "failed",
        "succeeded",
        "content-erased",
    ];

    /// Reads an event back from its envelope. `None`: a type this version does not know, which is kept but means
    /// nothing to the fold.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("task", Self::KINDS, envelope)
    }
}
