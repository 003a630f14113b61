//! What can be asked of a task, and what the answer does: pure decisions over its state.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::conversation::{Block, StopReason, Usage};
use super::delivery::{self, is_committed};
use super::egress::{EgressDecision, EgressRest};
use super::event::{CredentialKind, ErasureReason, PushOutcome, SandboxEnd, TaskEvent, TaskSpec, ToolOutcome};
use super::harness::{HarnessWord, by_harness};
use super::setup;
use super::state::{AgentTurn, Attempt, Ending, OpenCall, Phase, Task, ToolProgress};
use super::step::{MAX_CALLS, Step, planned_step};
use super::usage::{OperatorEntry, SandboxUsage, about_sandbox};
use crate::blob::{BlobRef, Content};
use crate::failure::{Failure, FailureCode};
use crate::id::{CallId, CommitId, SandboxId};
use crate::money::NanoUsd;
use crate::repo::RepoRef;

/// The longest message to a running agent, in bytes.
pub const MAX_STEERING: usize = 16 * 1024;
/// Most messages that wait for the agent's ear.
pub const MAX_UNHEARD: usize = 32;

/// Something asked of a task, by its caller or by the actor that works on it. Times come with it.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A caller asks for a task.
    Create(Box<TaskSpec>),
    /// A node takes it.
    Claim {
        /// The node.
        node: String,
    },
    /// Work begins.
    Begin {
        /// Now.
        now: Timestamp,
        /// The commits that an attempt before has left are still there, and only to be delivered.
        delivers: bool,
    },
    /// A repository is checked out.
    RecordClone {
        /// Its place among the task's.
        repo: usize,
        /// The branch.
        base: String,
        /// Where it stands.
        commit: CommitId,
        /// Whose workspace holds the files.
        sandbox: SandboxId,
        /// Whether the commit has a setup script.
        setup: bool,
    },
    /// The setup scripts are about to run.
    RecordSetupStart {
        /// The beginning of the name of what they make.
        key: String,
        /// Where they run.
        sandbox: SandboxId,
    },
    /// The setup is there, or could not be made.
    RecordSetup {
        /// The beginning of its name.
        key: String,
        /// Whether it was there already.
        cached: bool,
        /// How the last script ended.
        exit_code: Option<i32>,
        /// How long it took, in milliseconds.
        duration_ms: u64,
        /// Both ends of what the scripts printed.
        output: Option<Content>,
        /// What they printed beyond that.
        omitted_bytes: u64,
        /// Why it could not be made, and what the policy makes of that.
        failed: Option<(Failure, Then)>,
    },
    /// The machine is up.
    RecordSandbox {
        /// Its name.
        sandbox: SandboxId,
        /// How long it took, in milliseconds.
        start_ms: u64,
        /// What its image's name stood for, if that is known.
        image_digest: Option<String>,
    },
    /// Money is set aside for a model call.
    ReserveModel {
        /// The call.
        call: CallId,
        /// How many unheard messages it was counted with: later ones are not paid for.
        heard: usize,
        /// The most it can cost.
        reserved: NanoUsd,
        /// The most tokens it can use.
        reserved_tokens: u64,
        /// The output limit.
        max_output_tokens: u64,
    },
    /// The model answered.
    RecordReply {
        /// The call.
        call: CallId,
        /// What it cost.
        charge: Charge,
        /// What it said.
        content: Vec<Block>,
        /// Why it stopped.
        stop_reason: StopReason,
    },
    /// The model did not answer.
    RecordModelFailure {
        /// The call.
        call: CallId,
        /// What it cost all the same.
        charge: Option<Charge>,
        /// Why.
        failure: Failure,
        /// What the policy makes of it.
        then: Then,
    },
    /// A tool is about to run.
    CallTool {
        /// Its id.
        tool_call: String,
    },
    /// A tool answered.
    RecordTool {
        /// Its id.
        tool_call: String,
        /// How it ended.
        outcome: ToolOutcome,
        /// What the model is shown.
        output: Content,
        /// How long it ran.
        duration_ms: u64,
        /// What it printed beyond that.
        omitted_bytes: u64,
    },
    /// What was changed in a repository is a commit, or several.
    RecordCommit {
        /// Its place among the task's.
        repo: usize,
        /// The commits with their first lines, oldest first; there is at least one.
        commits: Vec<(CommitId, String)>,
        /// Its tree.
        tree: CommitId,
        /// Its message.
        message: String,
        /// Files, lines added, lines removed.
        stat: (u32, u32, u32),
        /// The diff.
        diff: BlobRef,
    },
    /// The machine is gone.
    RecordSandboxStopped {
        /// Its name.
        sandbox: SandboxId,
        /// Why.
        reason: SandboxEnd,
    },
    /// The machine was stopped, and this is what it used at the last.
    RecordSandboxEnd {
        /// Its name.
        sandbox: SandboxId,
        /// Why.
        reason: SandboxEnd,
        /// What it used, unless it was gone already.
        last: Option<Box<SandboxUsage>>,
    },
    /// Nothing was changed in a repository.
    RecordUnchanged {
        /// Its place among the task's.
        repo: usize,
    },
    /// The branch holds the commit.
    RecordPush {
        /// The repository's place among the task's.
        repo: usize,
        /// How it got there.
        outcome: PushOutcome,
    },
    /// A pull request is open, or there is none to be had.
    RecordPullRequest {
        /// The repository's place among the task's.
        repo: usize,
        /// What came of it.
        opened: PullRequestOutcome,
        /// What the forge could not do of what was wished for: the feature, and why.
        notes: Vec<(String, String)>,
    },
    /// A pull request names those of the other repositories.
    RecordLink {
        /// The repository's place among the task's.
        repo: usize,
        /// What the forge could not do.
        notes: Vec<(String, String)>,
    },
    /// The forge was told how the task ends.
    RecordReport {
        /// The repository's place among the task's.
        repo: usize,
        /// What the forge could not do.
        notes: Vec<(String, String)>,
    },
    /// A step failed.
    RecordFailure {
        /// Why.
        failure: Failure,
        /// What the policy makes of it.
        then: Then,
    },
    /// Secrets are missing that only the caller has.
    RequireCredentials {
        /// Which.
        missing: Vec<CredentialKind>,
        /// Why those that were given do not do.
        failure: Option<Failure>,
    },
    /// The caller supplied secrets.
    SupplyCredentials {
        /// Which.
        supplied: Vec<CredentialKind>,
        /// Now.
        now: Timestamp,
    },
    /// Words for the running agent.
    Steer {
        /// The words.
        message: String,
    },
    /// Stop it.
    Cancel {
        /// In the caller's words.
        reason: Option<String>,
    },
    /// Start again.
    Retry,
    /// Forget its words.
    EraseContent {
        /// Why.
        reason: ErasureReason,
        /// How many events its stream has.
        events: u64,
    },
    /// Say how it ended.
    Finish {
        /// How.
        ending: Ending,
        /// Of what the attempt cost, what is not billed.
        refund: NanoUsd,
    },
    /// The attempt that failed is left, and another one follows.
    NextAttempt {
        /// Of what the attempt cost, what is not billed.
        refund: NanoUsd,
        /// When it begins.
        until: Timestamp,
        /// The wait, in milliseconds.
        wait_ms: u64,
    },
    /// The sandbox connected to hosts, or tried to.
    RecordEgress {
        /// What was decided.
        decisions: Vec<EgressDecision>,
        /// What is not among them.
        rest: EgressRest,
    },
    /// The harness's program is about to run.
    BeginHarness,
    /// The harness's program said something.
    RecordHarnessOutput {
        /// The run.
        run: u32,
        /// Bytes of its log that this covers, with all before.
        offset: u64,
        /// The session that can be gone on with.
        session: Option<String>,
        /// What it said and did.
        said: Vec<HarnessWord>,
    },
    /// The harness's program has ended.
    RecordHarnessEnd {
        /// The run.
        run: u32,
        /// Its exit code.
        exit_code: Option<i32>,
        /// How long it ran.
        duration_ms: u64,
        /// Why it did not do its work, and what the policy makes of it.
        failed: Option<(Failure, Then)>,
    },
    /// What the machine uses.
    RecordSandboxUsage(Box<SandboxUsage>),
    /// An operator of the host went into the machine.
    RecordOperatorEntry {
        /// Which one.
        sandbox: SandboxId,
        /// When.
        at: Timestamp,
        /// The host's user.
        operator: String,
        /// How.
        how: OperatorEntry,
        /// The program that was started.
        program: String,
    },
    /// Money is set aside for a model call of the harness.
    RecordCall {
        /// The call.
        open: OpenCall,
        /// The model.
        model: String,
    },
    /// An attempt of a call of the harness is made again.
    RecordRetry {
        /// The call.
        call: CallId,
        /// The attempt that failed.
        attempt: u32,
        /// How.
        class: String,
        /// The wait before the next.
        wait_ms: u64,
    },
    /// A model call of the harness has ended.
    RecordCallEnd {
        /// The call.
        call: CallId,
        /// The model.
        model: String,
        /// What it cost, if anything.
        charge: Option<Charge>,
        /// Why the model stopped.
        stop_reason: Option<StopReason>,
        /// Why the reply did not come whole.
        failure: Option<Failure>,
    },
}

/// The cost of a model call.
#[derive(Debug, Clone, PartialEq)]
pub struct Charge {
    /// What the provider counted, or the bound where its count was lost.
    pub usage: Usage,
    /// What that costs.
    pub cost: NanoUsd,
    /// Whether the provider's count is known.
    pub confirmed: bool,
    /// Which price was applied.
    pub price: String,
}

/// What came of asking for a pull request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullRequestOutcome {
    /// It is open.
    Open {
        /// Its page.
        url: String,
        /// Its number.
        number: u64,
        /// It was open before.
        existed: bool,
        /// Somebody else has opened it.
        foreign: bool,
    },
    /// The forge has none.
    Omitted {
        /// Why.
        reason: String,
    },
}

/// What follows a failed step.
#[derive(Debug, Clone, PartialEq)]
pub enum Then {
    /// The same step, later.
    Retry {
        /// When.
        until: Timestamp,
        /// The wait, in milliseconds.
        wait_ms: u64,
    },
    /// The same step, once the caller has supplied these.
    AskFor(Vec<CredentialKind>),
    /// The end of the attempt.
    GiveUp,
}

/// Why a command does nothing. Nothing is recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such task.
    #[error("there is no such task")]
    NoSuchTask,
    /// There is one of that id already.
    #[error("the task exists already")]
    Exists,
    /// It is over.
    #[error("the task is over: it has {0}")]
    Ended(&'static str),
    /// It is still going on.
    #[error("the task is still going on")]
    StillOpen,
    /// Its words are forgotten.
    #[error("what the task was asked for has been erased")]
    Erased,
    /// Its words are in the log itself.
    #[error(
        "the task is from before words were kept apart: they are in the hashes of the log itself and cannot be erased"
    )]
    Inseparable,
    /// The next step is another one by now.
    #[error("the task has moved on: its next step is another one")]
    MovedOn,
    /// The reservation does not fit into the budget.
    #[error("the reservation does not fit into the budget")]
    OverBudget,
    /// The attempt has made [`MAX_CALLS`] model calls.
    #[error("the attempt has made its {MAX_CALLS} model calls")]
    OutOfCalls,
    /// Too many messages wait already.
    #[error("{MAX_UNHEARD} messages wait for the agent already")]
    TooManyMessages,
    /// Empty, or over [`MAX_STEERING`].
    #[error("a message has 1 to {MAX_STEERING} bytes")]
    BadMessage,
}

fn ended(ending: &Ending) -> Refusal {
    Refusal::Ended(match ending {
        Ending::Succeeded => "succeeded",
        Ending::Failed(_) => "failed",
        Ending::Cancelled => "been cancelled",
    })
}

/// The open attempt, or why there is none.
pub(super) fn working(task: &Task) -> Result<&Attempt, Refusal> {
    match &task.phase {
        Phase::Working(attempt) => Ok(attempt),
        // What is being stopped waits for nobody.
        Phase::AwaitingCredentials(_, Some(attempt)) if task.cancel_requested => Ok(attempt),
        Phase::Ended(ending) => Err(ended(ending)),
        Phase::Queued | Phase::Claimed | Phase::AwaitingCredentials(..) => Err(Refusal::MovedOn),
    }
}

fn open_call(task: &Task, call: CallId) -> Result<&OpenCall, Refusal> {
    match &working(task)?.turn {
        AgentTurn::Asked(open) if open.call == call => Ok(open),
        _ => Err(Refusal::MovedOn),
    }
}

/// The name of one of the task's repositories.
pub(super) fn named(task: &Task, repo: usize) -> Result<RepoRef, Refusal> {
    Ok(working(task)?.repos.get(repo).ok_or(Refusal::MovedOn)?.target.repo.clone())
}

fn charged(task: &Task, call: CallId, charge: Charge) -> TaskEvent {
    TaskEvent::TokensCharged {
        call,
        model: task.spec.model.clone(),
        usage: charge.usage,
        cost_nano_usd: charge.cost,
        confirmed: charge.confirmed,
        price: charge.price,
        stop_reason: None,
    }
}

pub(super) fn followed_by(task: &Task, failed: TaskEvent, failure: &Failure, then: Then) -> Vec<TaskEvent> {
    match then {
        Then::Retry { until, wait_ms } => {
            vec![failed, TaskEvent::RetryScheduled { until, failures: task.failures + 1, wait_ms }]
        }
        // Nobody is asked for a token to finish what is being stopped.
        Then::AskFor(_) if task.cancel_requested => vec![failed],
        Then::AskFor(missing) => {
            vec![failed, TaskEvent::CredentialsRequired { missing, failure: Some(failure.clone()) }]
        }
        Then::GiveUp => vec![failed],
    }
}

/// What the command makes happen, or why it does nothing.
pub fn decide(task: Option<&Task>, command: Command) -> Result<Vec<TaskEvent>, Refusal> {
    let task = match (task, command) {
        (None, Command::Create(spec)) => return Ok(vec![TaskEvent::Created(spec), TaskEvent::Queued {}]),
        (Some(_), Command::Create(_)) => return Err(Refusal::Exists),
        (None, _) => return Err(Refusal::NoSuchTask),
        (Some(task), command) => (task, command),
    };
    match task {
        (
            task,
            command @ (Command::Steer { .. } | Command::Cancel { .. } | Command::Retry | Command::EraseContent { .. }),
        ) => by_caller(task, command),
        (task, Command::SupplyCredentials { supplied, now }) => supply(task, supplied, now),
        (task, command @ (Command::RecordSandboxUsage(_) | Command::RecordOperatorEntry { .. })) => {
            about_sandbox(task, command)
        }
        (task, command) => by_actor(task, command),
    }
}

fn by_caller(task: &Task, command: Command) -> Result<Vec<TaskEvent>, Refusal> {
    match (command, &task.phase) {
        (Command::EraseContent { reason, events }, Phase::Ended(_)) => {
            let erased = TaskEvent::ContentErased { reason, events };
            Ok(if task.erased { Vec::new() } else { vec![erased] })
        }
        (Command::EraseContent { .. }, _) => Err(Refusal::StillOpen),
        (Command::Retry, _) if task.erased => Err(Refusal::Erased),
        (Command::Retry, Phase::Ended(Ending::Failed(_) | Ending::Cancelled)) => Ok(vec![TaskEvent::Queued {}]),
        (Command::Retry, Phase::Ended(ending)) => Err(ended(ending)),
        (Command::Retry, _) => Err(Refusal::StillOpen),
        (_, Phase::Ended(ending)) => Err(ended(ending)),
        (Command::Cancel { reason }, phase) => {
            if task.cancel_requested {
                return Ok(Vec::new());
            }
            let requested = TaskEvent::CancelRequested { reason };
            Ok(match phase {
                // Nothing runs, so nothing has to be stopped first.
                Phase::Queued | Phase::Claimed | Phase::AwaitingCredentials(_, None) if task.kept.is_none() => {
                    vec![requested, TaskEvent::Cancelled {}]
                }
                Phase::Queued
                | Phase::Claimed
                | Phase::AwaitingCredentials(..)
                | Phase::Working(_)
                | Phase::Ended(_) => vec![requested],
            })
        }
        (Command::Steer { message }, _) => {
            if message.trim().is_empty() || message.len() > MAX_STEERING {
                return Err(Refusal::BadMessage);
            }
            match task.current() {
                Some(attempt) if !attempt.listens() => Err(Refusal::MovedOn),
                Some(attempt) if attempt.unheard.len() >= MAX_UNHEARD => Err(Refusal::TooManyMessages),
                Some(_) => Ok(vec![TaskEvent::Steered { message }]),
                // Words before the attempt begins would be lost with the next `attempt-started`.
                None => Err(Refusal::MovedOn),
            }
        }
        _ => Err(Refusal::MovedOn),
    }
}

fn supply(task: &Task, supplied: Vec<CredentialKind>, now: Timestamp) -> Result<Vec<TaskEvent>, Refusal> {
    match &task.phase {
        Phase::Ended(ending) => Err(ended(ending)),
        Phase::AwaitingCredentials(_, Some(_)) => {
            Ok(vec![TaskEvent::CredentialsSupplied { supplied, deadline: Some(deadline(task, now)) }])
        }
        Phase::AwaitingCredentials(_, None) | Phase::Queued | Phase::Claimed | Phase::Working(_) => {
            Ok(vec![TaskEvent::CredentialsSupplied { supplied, deadline: None }])
        }
    }
}

fn deadline(task: &Task, now: Timestamp) -> Timestamp {
    let limit = SignedDuration::from_secs(i64::try_from(task.spec.timeout_seconds).unwrap_or(i64::MAX));
    now.checked_add(limit).unwrap_or(Timestamp::MAX)
}

fn by_actor(task: &Task, command: Command) -> Result<Vec<TaskEvent>, Refusal> {
    if let Phase::Ended(ending) = &task.phase {
        // Nothing is owed here: no attempt ends before its open call is settled.
        return Err(ended(ending));
    }
    if let Command::RecordEgress { decisions, rest } = command {
        return Ok(task.egress.decide(decisions, rest).into_iter().collect());
    }
    let next = planned_step(task);
    match command {
        Command::BeginHarness => match next {
            Step::BeginHarness(resumes) => {
                let run = working(task)?.harness.run + 1;
                Ok(vec![TaskEvent::HarnessStarted { run, resumes }])
            }
            _ => Err(Refusal::MovedOn),
        },
        Command::RecordHarnessOutput { .. }
        | Command::RecordHarnessEnd { .. }
        | Command::RecordCall { .. }
        | Command::RecordRetry { .. }
        | Command::RecordCallEnd { .. } => by_harness(task, command),
        Command::Claim { node } if next == Step::WaitForClaim => Ok(vec![TaskEvent::Claimed { node }]),
        Command::Begin { now, delivers } if next == Step::Begin => {
            let delivers = delivers && task.kept.as_ref().is_some_and(|kept| is_committed(&kept.repos));
            Ok(vec![TaskEvent::AttemptStarted { attempt: task.attempt + 1, deadline: deadline(task, now), delivers }])
        }
        Command::RecordClone { repo, base, commit, sandbox, setup } if next == Step::Clone(repo) => {
            Ok(vec![TaskEvent::Cloned { repo: named(task, repo)?, base, commit, sandbox, setup }])
        }
        Command::RecordSetupStart { .. } | Command::RecordSetup { .. } => setup::decide(task, command),
        Command::RecordSandbox { sandbox, start_ms, image_digest } => match next {
            Step::StartSandbox(workspace) if workspace == sandbox => {
                let image = task.spec.image.clone();
                Ok(vec![TaskEvent::SandboxStarted { sandbox, image, start_ms, image_digest }])
            }
            _ => Err(Refusal::MovedOn),
        },
        Command::ReserveModel { call, heard, reserved, reserved_tokens, max_output_tokens }
            if next == Step::ReserveModel =>
        {
            if working(task)?.unheard.len() != heard {
                return Err(Refusal::MovedOn);
            }
            if working(task)?.calls >= MAX_CALLS {
                return Err(Refusal::OutOfCalls);
            }
            let fits = task.dollars_left().is_none_or(|left| reserved <= left)
                && task.tokens_left().is_none_or(|left| reserved_tokens <= left);
            if !fits {
                return Err(Refusal::OverBudget);
            }
            Ok(vec![TaskEvent::ModelCalled {
                call,
                model: task.spec.model.clone(),
                reserved_nano_usd: reserved,
                reserved_tokens,
                max_output_tokens,
            }])
        }
        Command::RecordReply { call, charge, content, stop_reason } => {
            open_call(task, call)?;
            let mut events = vec![
                charged(task, call, charge),
                TaskEvent::Message { call: Some(call), content, stop_reason: Some(stop_reason) },
            ];
            let stopped = match stop_reason {
                StopReason::Refusal => Some("The model declined to go on."),
                StopReason::ContextWindow => Some("The conversation no longer fits into the model's context window."),
                StopReason::EndTurn | StopReason::ToolUse | StopReason::MaxTokens | StopReason::Pause => None,
            };
            events.extend(stopped.map(|message| TaskEvent::StepFailed {
                failure: Failure::new(FailureCode::ModelTruncated, message).with_retryable(false),
            }));
            Ok(events)
        }
        Command::RecordModelFailure { call, charge, failure, then } => {
            open_call(task, call)?;
            let mut events: Vec<_> = charge.map(|charge| charged(task, call, charge)).into_iter().collect();
            let failed = TaskEvent::ModelCallFailed { call, failure: failure.clone() };
            events.extend(followed_by(task, failed, &failure, then));
            Ok(events)
        }
        Command::CallTool { tool_call } => match next {
            Step::CallTool(tool) if tool.id == tool_call => {
                let input = match tool.malformed {
                    Some(raw) => Value::String(raw),
                    None => tool.input,
                };
                Ok(vec![TaskEvent::ToolCalled { tool_call, name: tool.name, input }])
            }
            _ => Err(Refusal::MovedOn),
        },
        Command::RecordTool { tool_call, outcome, output, duration_ms, omitted_bytes } => match &working(task)?.turn {
            AgentTurn::Tools { waiting, first } => match waiting.first() {
                Some(tool) if tool.id == tool_call && *first != ToolProgress::Waiting => {
                    let duration_ms = Some(duration_ms);
                    Ok(vec![TaskEvent::ToolFinished { tool_call, outcome, output, duration_ms, omitted_bytes }])
                }
                _ => Err(Refusal::MovedOn),
            },
            _ => Err(Refusal::MovedOn),
        },
        Command::RecordCommit { .. }
        | Command::RecordUnchanged { .. }
        | Command::RecordPush { .. }
        | Command::RecordPullRequest { .. }
        | Command::RecordLink { .. }
        | Command::RecordReport { .. } => delivery::decide(task, command),
        Command::RecordSandboxEnd { sandbox, reason, last } => {
            let stopped = by_actor(task, Command::RecordSandboxStopped { sandbox, reason })?;
            let last = last.map(|usage| about_sandbox(task, Command::RecordSandboxUsage(usage)));
            Ok(last.and_then(Result::ok).unwrap_or_default().into_iter().chain(stopped).collect())
        }
        Command::RecordSandboxStopped { sandbox, reason } => match working(task)?.sandbox {
            Some(running) if running == sandbox => Ok(vec![TaskEvent::SandboxStopped { sandbox, reason }]),
            _ => Err(Refusal::MovedOn),
        },
        // Nothing is held before the attempt begins, so nothing has to be cleaned up first.
        Command::RecordFailure { failure, then: Then::GiveUp }
            if matches!(task.phase, Phase::Queued | Phase::Claimed) && task.kept.is_none() =>
        {
            Ok(vec![TaskEvent::Failed { failure, attempt: task.attempt }])
        }
        Command::RecordFailure { failure, then } => {
            let attempt = working(task)?;
            if matches!(attempt.turn, AgentTurn::Asked(_)) || attempt.failure.is_some() {
                return Err(Refusal::MovedOn);
            }
            let failed = TaskEvent::StepFailed { failure: failure.clone() };
            Ok(followed_by(task, failed, &failure, then))
        }
        Command::RequireCredentials { .. } if task.cancel_requested => Err(Refusal::MovedOn),
        Command::RequireCredentials { missing, failure } => match &task.phase {
            Phase::AwaitingCredentials(known, _) if *known == missing => Ok(Vec::new()),
            _ => Ok(vec![TaskEvent::CredentialsRequired { missing, failure }]),
        },
        Command::NextAttempt { refund, until, wait_ms } => match next {
            Step::NextAttempt(failure, workspace) => {
                let granted = (refund > NanoUsd::ZERO)
                    .then_some(TaskEvent::RefundGranted { nano_usd: refund, reason: failure.code });
                let attempt = task.attempt;
                let failed = TaskEvent::AttemptFailed { failure, attempt, workspace, until, wait_ms };
                Ok(granted.into_iter().chain([failed]).collect())
            }
            _ => Err(Refusal::MovedOn),
        },
        Command::Finish { ending, refund } if next == Step::Finish(ending.clone()) => {
            let granted = match &ending {
                Ending::Failed(failure) if refund > NanoUsd::ZERO => {
                    Some(TaskEvent::RefundGranted { nano_usd: refund, reason: failure.code })
                }
                // The attempt had failed and the ledger had refunded it when somebody cancelled.
                Ending::Cancelled if refund > NanoUsd::ZERO => {
                    Some(TaskEvent::RefundGranted { nano_usd: refund, reason: FailureCode::Cancelled })
                }
                Ending::Failed(_) | Ending::Succeeded | Ending::Cancelled => None,
            };
            let ended = match ending {
                Ending::Succeeded => TaskEvent::Succeeded {},
                Ending::Cancelled => TaskEvent::Cancelled {},
                Ending::Failed(failure) => TaskEvent::Failed { failure, attempt: task.attempt },
            };
            Ok(granted.into_iter().chain([ended]).collect())
        }
        _ => Err(Refusal::MovedOn),
    }
}
