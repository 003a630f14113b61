//! The whole plan of a task on one screen: from what is known, what is next.

use jiff::Timestamp;

use super::delivery::{self, is_committed, unreported};
use super::event::{Harness, SandboxEnd, Workspace};
use super::state::{AgentTurn, Attempt, Ending, OpenCall, Phase, Task, ToolProgress, ToolUse};
use crate::failure::{Failure, FailureCode};
use crate::id::SandboxId;

/// The next thing to do. Each step is safe to repeat: it first looks whether its effect took place.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Wait until a node has room.
    WaitForClaim,
    /// Wait until the caller supplies secrets.
    WaitForCredentials,
    /// Wait until this time, then ask again.
    WaitUntil(Timestamp),
    /// Start an attempt.
    Begin,
    /// Fetch this repository (by its place among the task's) and put its files into the workspace.
    Clone(usize),
    /// Find what the repositories' setup scripts make, or have it made, and lay it under this workspace.
    SetUp(SandboxId),
    /// Start the machine around the workspace that was filled for it.
    StartSandbox(SandboxId),
    /// Reserve the money for a model call.
    ReserveModel,
    /// Ask the model; the money is reserved.
    AskModel(OpenCall),
    /// Settle a model call that nobody waits for any more.
    AbandonModel(OpenCall),
    /// Record that a tool is about to run.
    CallTool(ToolUse),
    /// Run it, or fetch the answer of the run that has begun.
    RunTool(ToolUse),
    /// Tell the model that the tool's answer was lost.
    InterruptTool(ToolUse),
    /// Record that the harness's program is about to run, going on with this session if there is one.
    BeginHarness(Option<String>),
    /// Run it, or go on reading the run that has begun.
    RunHarness,
    /// Turn what was changed in this repository into commits.
    Commit(usize),
    /// Stop the machine.
    StopSandbox(SandboxId, SandboxEnd),
    /// Put this repository's commits on their branch.
    Push(usize),
    /// Open the pull request for that branch.
    OpenPullRequest(usize),
    /// Have it name the pull requests of the task's other repositories.
    LinkPullRequest(usize),
    /// Tell its forge how the task ends: well, or like this.
    Report(usize, Option<Ending>),
    /// Leave the attempt that failed so, and go on with another one.
    NextAttempt(Failure, Workspace),
    /// Say how it ended.
    Finish(Ending),
    /// Nothing: it is over.
    Rest,
}

/// Most model calls of one attempt: an agent that needs more is going round in circles.
pub const MAX_CALLS: u32 = 400;

/// What is next for this task at this time.
pub fn next_step(task: &Task, now: Timestamp) -> Step {
    let over = |attempt: &Attempt| task.cancel_requested || attempt.failure.is_some();
    match &task.phase {
        Phase::Working(attempt) if !over(attempt) => match attempt.wait_until {
            Some(until) if until > now => Step::WaitUntil(until),
            _ => planned_step(task),
        },
        Phase::Claimed => match task.begin_after {
            Some(until) if until > now => Step::WaitUntil(until),
            _ => planned_step(task),
        },
        _ => planned_step(task),
    }
}

/// What is next once every wait is over: the step that a command has to fit.
pub fn planned_step(task: &Task) -> Step {
    let attempt = match &task.phase {
        Phase::Queued => return Step::WaitForClaim,
        Phase::Claimed => return Step::Begin,
        Phase::AwaitingCredentials(_, Some(attempt)) if task.cancel_requested => attempt,
        Phase::AwaitingCredentials(..) => return Step::WaitForCredentials,
        Phase::Ended(_) => return Step::Rest,
        Phase::Working(attempt) => attempt,
    };
    if task.cancel_requested || attempt.failure.is_some() {
        let (end, ending) = match &attempt.failure {
            Some(failure) if !task.cancel_requested => (SandboxEnd::Failed, Ending::Failed(failure.clone())),
            _ => (SandboxEnd::Cancelled, Ending::Cancelled),
        };
        let again = match &ending {
            Ending::Failed(failure) => another_attempt(task, failure).map(|workspace| (failure.clone(), workspace)),
            Ending::Succeeded | Ending::Cancelled => None,
        };
        return match (attempt.open_calls().next(), again, attempt.sandbox) {
            (Some(open), _, _) => Step::AbandonModel(open.clone()),
            (None, Some((failure, Workspace::Same)), _) => Step::NextAttempt(failure, Workspace::Same),
            (None, _, Some(sandbox)) => Step::StopSandbox(sandbox, end),
            (None, Some((failure, workspace)), None) => Step::NextAttempt(failure, workspace),
            (None, None, None) => match unreported(&attempt.repos) {
                Some(repo) => Step::Report(repo, Some(ending)),
                None => Step::Finish(ending),
            },
        };
    }
    if let Some(repo) = attempt.repos.iter().position(|repo| repo.checkout.is_none()) {
        return Step::Clone(repo);
    }
    if is_committed(&attempt.repos) {
        return match (attempt.sandbox, delivery::next(&attempt.repos)) {
            (Some(sandbox), _) => Step::StopSandbox(sandbox, SandboxEnd::Finished),
            (None, Some(step)) => step,
            (None, None) => Step::Finish(Ending::Succeeded),
        };
    }
    let Some(workspace) = attempt.workspace() else { return Step::Clone(0) };
    // A call whose money is reserved is settled before a machine is started for it.
    if let AgentTurn::Asked(open) = &attempt.turn {
        return Step::AskModel(open.clone());
    }
    if attempt.sandbox.is_none() {
        return if attempt.needs_setup() { Step::SetUp(workspace) } else { Step::StartSandbox(workspace) };
    }
    let harness = &attempt.harness;
    match &attempt.turn {
        AgentTurn::Asked(open) => Step::AskModel(open.clone()),
        AgentTurn::Model if task.spec.harness != Harness::Builtin => {
            match (harness.running, harness.open.values().next()) {
                (true, _) => Step::RunHarness,
                // What a sandbox that was lost had under way.
                (false, Some(open)) => Step::AbandonModel(open.clone()),
                (false, None) => Step::BeginHarness(harness.session.clone()),
            }
        }
        AgentTurn::Model => Step::ReserveModel,
        AgentTurn::Tools { waiting, first } => match (waiting.first(), first) {
            (Some(tool), ToolProgress::Waiting) => Step::CallTool(tool.clone()),
            (Some(tool), ToolProgress::Called) => Step::RunTool(tool.clone()),
            (Some(tool), ToolProgress::Lost) => Step::InterruptTool(tool.clone()),
            (None, _) => Step::ReserveModel,
        },
        AgentTurn::Done => match attempt.open_calls().next() {
            // Nothing is delivered before it is paid for.
            Some(open) => Step::AbandonModel(open.clone()),
            None => Step::Commit(attempt.repos.iter().position(|repo| repo.outcome.is_none()).unwrap_or_default()),
        },
    }
}

/// Whether another attempt follows one that failed so, and what it begins with.
fn another_attempt(task: &Task, failure: &Failure) -> Option<Workspace> {
    let retry = task.spec.retry?;
    // What is committed is only to be delivered: no agent is paid for it twice.
    let committed = task.current().is_some_and(|attempt| is_committed(&attempt.repos));
    let workspace = if committed { Workspace::Same } else { retry.workspace };
    (failure.retryable && task.attempt < retry.most).then_some(workspace)
}

/// The agent used up its calls.
pub fn out_of_calls() -> Failure {
    Failure::new(FailureCode::BudgetExceeded, format!("The agent made {MAX_CALLS} model calls without finishing."))
        .with_hint("Split the task into smaller ones.")
}

impl Step {
    /// Its name in traces.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::WaitForClaim => "claim",
            Self::WaitForCredentials => "wait-for-credentials",
            Self::WaitUntil(_) => "wait",
            Self::Begin => "begin",
            Self::Clone(_) => "clone",
            Self::SetUp(_) => "set-up",
            Self::StartSandbox(_) => "start-sandbox",
            Self::ReserveModel => "reserve-model",
            Self::AskModel(_) => "ask-model",
            Self::AbandonModel(_) => "abandon-model",
            Self::CallTool(_) => "call-tool",
            Self::RunTool(_) => "run-tool",
            Self::InterruptTool(_) => "interrupt-tool",
            Self::BeginHarness(_) => "begin-harness",
            Self::RunHarness => "run-harness",
            Self::Commit(_) => "commit",
            Self::StopSandbox(..) => "stop-sandbox",
            Self::Push(_) => "push",
            Self::OpenPullRequest(_) => "open-pull-request",
            Self::LinkPullRequest(_) => "link-pull-request",
            Self::Report(..) => "report",
            Self::NextAttempt(..) => "next-attempt",
            Self::Finish(_) => "finish",
            Self::Rest => "rest",
        }
    }
}
