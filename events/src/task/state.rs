//! What is known about a task: the fold of its events. Total: whatever happened is taken in.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::conversation::{Block, StopReason, Turn, Usage, UserPart};
use super::delivery::{self, RepoWork, is_committed};
use super::egress::EgressUse;
use super::event::{CredentialKind, Harness, TaskEvent, TaskSpec, Workspace};
use super::harness::{HarnessRun, LastCall, evolve_harness};
use super::setup::{self, SetUp};
use crate::blob::Content;
use crate::failure::Failure;
use crate::id::{CallId, CommitId, SandboxId};
use crate::money::NanoUsd;

/// What the model is told when its reply reached the output limit in the middle of a sentence.
const CONTINUE: &str = "Your reply reached its output limit. Go on from where it ended.";

/// What the model is told when an earlier attempt has left its changes.
const INHERITED: &str = "An earlier attempt at this task ended before it was done. What it changed is still in the \
                         workspace: look at it first.";

/// A task as its events tell it.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What was asked for.
    pub spec: Arc<TaskSpec>,
    /// Where it stands.
    pub phase: Phase,
    /// The current attempt, counted from 1; 0 before the first.
    pub attempt: u32,
    /// What all attempts have cost.
    pub spent: Spent,
    /// What of it is not billed.
    pub refunded: NanoUsd,
    /// A cancel was asked for in this attempt.
    pub cancel_requested: bool,
    /// Steps that failed in a row without one that worked in between.
    pub failures: u32,
    /// The commit that each repository's branch was last moved to by this task.
    pub landed: BTreeMap<String, CommitId>,
    /// What the next attempt takes over from the one before.
    pub kept: Option<Kept>,
    /// The next attempt does not begin before this time.
    pub begin_after: Option<Timestamp>,
    /// What its sandboxes connected to, in numbers.
    pub egress: EgressUse,
    /// Its words are forgotten: it cannot be done again.
    pub erased: bool,
}

/// What an attempt leaves to the next one: a workspace to go on in, or commits that are only to be delivered.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The repositories, as far as they have come.
    pub repos: Vec<RepoWork>,
    /// The running sandbox.
    pub sandbox: Option<SandboxId>,
    /// The setup of its workspace.
    pub set_up: SetUp,
    /// The session that the harness can go on with.
    pub session: Option<String>,
    /// What the agent said last.
    pub last_words: Option<Content>,
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// It waits for a node.
    Queued,
    /// A node took it; the attempt has not begun.
    Claimed,
    /// It waits for secrets. What was done so far is kept.
    AwaitingCredentials(Vec<CredentialKind>, Option<Box<Attempt>>),
    /// It is being worked on.
    Working(Box<Attempt>),
    /// It is over.
    Ended(Ending),
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// The commit is pushed.
    Succeeded,
    /// It failed.
    Failed(Failure),
    /// It was cancelled.
    Cancelled,
}

/// One go at the task.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// When it must be over.
    pub deadline: Timestamp,
    /// Its repositories, in the order of the request.
    pub repos: Vec<RepoWork>,
    /// The running sandbox.
    pub sandbox: Option<SandboxId>,
    /// The setup of its workspace, where a repository has a script for that.
    pub set_up: SetUp,
    /// What was said so far. Empty until the first model call is due.
    pub conversation: Vec<Turn>,
    /// Whose move it is.
    pub turn: AgentTurn,
    /// Words from the user that arrived while the model was speaking.
    pub unheard: Vec<String>,
    /// What the agent said last.
    pub last_words: Option<Content>,
    /// The size of what the model has read, as the provider counted it, and how many turns that covers.
    pub counted: Option<(u64, usize)>,
    /// Model calls made.
    pub calls: u32,
    /// The program that does the work, unless the built-in agent does.
    pub harness: HarnessRun,
    /// It goes on in the workspace of the attempt before.
    pub inherited: bool,
    /// What this attempt has cost.
    pub cost: NanoUsd,
    /// The tokens that this was charged for.
    pub usage: Usage,
    /// How often it was written down what its sandbox uses.
    pub samples: u32,
    /// What ends the attempt, once its sandbox is gone.
    pub failure: Option<Failure>,
    /// Not before this time.
    pub wait_until: Option<Timestamp>,
}

/// Files on disk, ready for an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkout {
    /// The branch the work starts from.
    pub base: String,
    /// Where it stood.
    pub commit: CommitId,
    /// The sandbox whose workspace holds the files.
    pub sandbox: SandboxId,
    /// The commit has a setup script.
    pub setup: bool,
}

/// The agent's work as a commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// The commit, the last one if there are several.
    pub id: CommitId,
    /// The first lines of all of them, oldest first.
    pub subjects: Vec<String>,
    /// Files touched, lines added, lines removed.
    pub stat: (u32, u32, u32),
    /// The diff against the base.
    pub diff: crate::blob::BlobRef,
}

/// Whose move it is.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentTurn {
    /// The model is to be asked.
    Model,
    /// The model has been asked, or is about to be: the reservation stands.
    Asked(OpenCall),
    /// Tools are to run, in this order; the first may have begun.
    Tools {
        /// Those that have not answered.
        waiting: Vec<ToolUse>,
        /// Whether the first of them was called.
        first: ToolProgress,
    },
    /// The model said what it had to say.
    Done,
}

/// How far the first waiting tool has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolProgress {
    /// Not called.
    Waiting,
    /// Called; the sandbox it was called in is the one that runs.
    Called,
    /// Called; the sandbox is gone, and with it the answer.
    Lost,
}

/// A model call whose outcome is not known.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenCall {
    /// The call.
    pub call: CallId,
    /// The most it can cost.
    pub reserved: NanoUsd,
    /// The most tokens it can use.
    pub reserved_tokens: u64,
    /// The output limit that goes with it.
    pub max_output_tokens: u64,
}

/// A tool the model wants run.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolUse {
    /// The model's id of the call.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its input.
    pub input: Value,
    /// What the model wrote when it was no JSON object.
    pub malformed: Option<String>,
}

/// What was used and what it cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Tokens.
    pub usage: Usage,
    /// Dollars.
    pub cost: NanoUsd,
    /// Tokens charged at the bound because the provider's count was lost.
    pub unconfirmed_tokens: u64,
}

impl Attempt {
    fn new(deadline: Timestamp, repos: Vec<RepoWork>) -> Self {
        Self {
            deadline,
            repos,
            sandbox: None,
            set_up: SetUp::default(),
            conversation: Vec::new(),
            turn: AgentTurn::Model,
            unheard: Vec::new(),
            last_words: None,
            counted: None,
            calls: 0,
            harness: HarnessRun::default(),
            inherited: false,
            cost: NanoUsd::ZERO,
            usage: Usage::default(),
            samples: 0,
            failure: None,
            wait_until: None,
        }
    }

    /// The attempt that goes on with what one before it has left.
    fn inheriting(deadline: Timestamp, kept: Kept) -> Self {
        let mut attempt = Self::new(deadline, kept.repos);
        attempt.sandbox = kept.sandbox;
        attempt.set_up = kept.set_up;
        attempt.harness.session = kept.session;
        attempt.last_words = kept.last_words;
        attempt.inherited = true;
        attempt
    }

    /// The sandbox whose workspace holds its files.
    pub fn workspace(&self) -> Option<SandboxId> {
        self.repos.iter().find_map(|repo| repo.checkout.as_ref()).map(|checkout| checkout.sandbox)
    }

    /// Whether the agent's words are still wanted: nothing of its work has been taken.
    pub fn listens(&self) -> bool {
        self.repos.iter().all(|repo| repo.outcome.is_none())
    }

    /// What it leaves to an attempt that goes on where it has stopped.
    fn leave(&mut self) -> Option<Kept> {
        let mut repos = std::mem::take(&mut self.repos);
        if !is_committed(&repos) {
            // The agent goes on, so what was taken of its work is taken anew.
            repos.iter_mut().for_each(|repo| repo.outcome = None);
        }
        // The forge hears how the next one ends.
        repos.iter_mut().for_each(|repo| repo.reported = false);
        let checked_out = repos.iter().any(|repo| repo.checkout.is_some());
        checked_out.then(|| Kept {
            repos,
            sandbox: self.sandbox,
            set_up: std::mem::take(&mut self.set_up),
            session: self.harness.session.take(),
            last_words: self.last_words.take(),
        })
    }

    /// What the model is told first.
    pub fn opening(&self, text: &str) -> Vec<UserPart> {
        let said = |text: &str| UserPart::Text { text: text.to_owned() };
        let note = self.inherited.then(|| said(INHERITED));
        std::iter::once(said(text)).chain(note).collect()
    }

    /// Every model call whose outcome is not known.
    pub fn open_calls(&self) -> impl Iterator<Item = &OpenCall> {
        let asked = match &self.turn {
            AgentTurn::Asked(open) => Some(open),
            AgentTurn::Model | AgentTurn::Tools { .. } | AgentTurn::Done => None,
        };
        asked.into_iter().chain(self.harness.open.values())
    }

    fn say(&mut self, part: UserPart) {
        match self.conversation.last_mut() {
            Some(Turn::User(parts)) => parts.push(part),
            Some(Turn::Assistant(_)) | None => self.conversation.push(Turn::User(vec![part])),
        }
    }

    fn hear_out(&mut self) {
        for text in std::mem::take(&mut self.unheard) {
            self.say(UserPart::Text { text });
        }
    }

    /// The model's last turn asked for these tools.
    fn tools_of(content: &[Block]) -> Vec<ToolUse> {
        content
            .iter()
            .filter_map(|block| match block {
                Block::ToolUse { id, name, input, malformed } => Some(ToolUse {
                    id: id.clone(),
                    name: name.clone(),
                    input: input.clone(),
                    malformed: malformed.clone(),
                }),
                Block::Text { .. } | Block::Thinking { .. } => None,
            })
            .collect()
    }

    fn message(&mut self, content: &[Block], stop: StopReason) {
        let waiting = Self::tools_of(content);
        self.conversation.push(Turn::Assistant(content.to_vec()));
        self.turn = match (waiting.is_empty(), stop) {
            (false, _) => AgentTurn::Tools { waiting, first: ToolProgress::Waiting },
            (true, StopReason::Pause) => AgentTurn::Model,
            (true, StopReason::MaxTokens) => {
                self.say(UserPart::Text { text: CONTINUE.to_owned() });
                AgentTurn::Model
            }
            (true, _) if !self.unheard.is_empty() => AgentTurn::Model,
            (true, _) => AgentTurn::Done,
        };
        if self.turn == AgentTurn::Model {
            self.hear_out();
        }
    }

    fn tool_finished(&mut self, tool_call: &str, output: &Content, is_error: bool) {
        self.say(UserPart::ToolResult { tool_call: tool_call.to_owned(), output: output.clone(), is_error });
        if let AgentTurn::Tools { waiting, first } = &mut self.turn {
            waiting.retain(|tool| tool.id != tool_call);
            *first = ToolProgress::Waiting;
            if waiting.is_empty() {
                self.turn = AgentTurn::Model;
                self.hear_out();
            }
        }
    }
}

impl Task {
    /// The current attempt, whether it goes on or waits for secrets.
    pub fn current(&self) -> Option<&Attempt> {
        match &self.phase {
            Phase::Working(attempt) | Phase::AwaitingCredentials(_, Some(attempt)) => Some(attempt),
            Phase::Queued | Phase::Claimed | Phase::AwaitingCredentials(_, None) | Phase::Ended(_) => None,
        }
    }

    fn current_mut(&mut self) -> Option<&mut Attempt> {
        match &mut self.phase {
            Phase::Working(attempt) | Phase::AwaitingCredentials(_, Some(attempt)) => Some(attempt),
            Phase::Queued | Phase::Claimed | Phase::AwaitingCredentials(_, None) | Phase::Ended(_) => None,
        }
    }

    /// What the open model calls hold back.
    pub fn reserved(&self) -> (NanoUsd, u64) {
        let open = self.current().into_iter().flat_map(Attempt::open_calls);
        open.fold((NanoUsd::ZERO, 0), |(dollars, tokens), call| {
            (dollars + call.reserved, tokens.saturating_add(call.reserved_tokens))
        })
    }

    /// Dollars that are neither spent nor reserved; `None` without a cap.
    pub fn dollars_left(&self) -> Option<NanoUsd> {
        let cap = self.spec.budget.max_nano_usd?;
        Some(cap.saturating_sub(self.spent.cost + self.reserved().0))
    }

    /// Tokens that are neither spent nor reserved; `None` without a cap.
    pub fn tokens_left(&self) -> Option<u64> {
        let used = self.spent.usage.total().saturating_add(self.spent.unconfirmed_tokens);
        Some(self.spec.budget.max_tokens?.saturating_sub(used.saturating_add(self.reserved().1)))
    }
}

/// Takes one event in. `None` before `created`.
pub fn evolve(task: Option<Task>, event: &TaskEvent) -> Option<Task> {
    let Some(mut task) = task else {
        return match event {
            TaskEvent::Created(spec) => Some(Task {
                spec: Arc::new(spec.as_ref().clone()),
                phase: Phase::Queued,
                attempt: 0,
                spent: Spent::default(),
                refunded: NanoUsd::ZERO,
                cancel_requested: false,
                failures: 0,
                landed: BTreeMap::new(),
                kept: None,
                begin_after: None,
                egress: EgressUse::default(),
                erased: false,
            }),
            // A stream that does not begin with `created` is no task; the decider never writes one.
            _ => None,
        };
    };
    match event {
        TaskEvent::Created(_) => {}
        TaskEvent::Queued {} => {
            if matches!(task.phase, Phase::Ended(_)) {
                task.cancel_requested = false;
                task.failures = 0;
                task.phase = Phase::Queued;
            }
        }
        TaskEvent::Claimed { .. } => {
            if task.phase == Phase::Queued {
                task.phase = Phase::Claimed;
            }
        }
        TaskEvent::AttemptStarted { attempt, deadline, delivers } => {
            task.attempt = *attempt;
            task.begin_after = None;
            task.egress.entries = 0;
            // Commits that are kept and not delivered are gone from the disk.
            let attempt = match task.kept.take().filter(|kept| is_committed(&kept.repos) == *delivers) {
                Some(kept) => Attempt::inheriting(*deadline, kept),
                None => Attempt::new(*deadline, RepoWork::all(&task.spec)),
            };
            task.phase = Phase::Working(Box::new(attempt));
        }
        TaskEvent::CredentialsRequired { missing, .. } => {
            task.phase = match task.phase {
                Phase::Working(mut attempt) => {
                    attempt.failure = None;
                    attempt.wait_until = None;
                    Phase::AwaitingCredentials(missing.clone(), Some(attempt))
                }
                Phase::AwaitingCredentials(_, kept) => Phase::AwaitingCredentials(missing.clone(), kept),
                Phase::Queued | Phase::Claimed => Phase::AwaitingCredentials(missing.clone(), None),
                ended @ Phase::Ended(_) => ended,
            };
        }
        TaskEvent::CredentialsSupplied { supplied, deadline } => {
            task.phase = match task.phase {
                Phase::AwaitingCredentials(missing, kept) => {
                    let missing: Vec<_> = missing.into_iter().filter(|kind| !supplied.contains(kind)).collect();
                    match (missing.is_empty(), kept) {
                        (false, kept) => Phase::AwaitingCredentials(missing, kept),
                        (true, Some(mut attempt)) => {
                            attempt.deadline = deadline.unwrap_or(attempt.deadline);
                            Phase::Working(attempt)
                        }
                        (true, None) => Phase::Queued,
                    }
                }
                other => other,
            };
            task.failures = 0;
        }
        TaskEvent::CancelRequested { .. } => {
            task.cancel_requested = true;
            // What the attempt holds is cleaned up like that of any other; no secret is needed for it.
            if let Phase::AwaitingCredentials(_, Some(attempt)) = task.phase {
                task.phase = Phase::Working(attempt);
            } else if let Some(kept) = task.kept.take() {
                task.phase = Phase::Working(Box::new(Attempt::inheriting(Timestamp::MAX, kept)));
            }
        }
        TaskEvent::RefundGranted { nano_usd, .. } => task.refunded += *nano_usd,
        TaskEvent::EgressDecided { decisions, omitted } => task.egress.evolve(decisions, *omitted),
        TaskEvent::AttemptFailed { workspace, until, .. } => {
            task.kept = match (workspace, task.current_mut()) {
                (Workspace::Same, Some(attempt)) => attempt.leave(),
                (Workspace::Fresh, _) | (Workspace::Same, None) => None,
            };
            task.failures = 0;
            task.begin_after = Some(*until);
            task.phase = Phase::Claimed;
        }
        TaskEvent::Cancelled {} => task.phase = Phase::Ended(Ending::Cancelled),
        TaskEvent::Failed { failure, .. } => {
            let committed = task.current_mut().filter(|attempt| is_committed(&attempt.repos));
            task.kept = committed.and_then(Attempt::leave);
            task.phase = Phase::Ended(Ending::Failed(failure.clone()));
        }
        TaskEvent::Succeeded {} => task.phase = Phase::Ended(Ending::Succeeded),
        TaskEvent::ContentErased { .. } => {
            task.erased = true;
            task.kept = None;
        }
        TaskEvent::SandboxUsage(_) => {
            if let Some(attempt) = task.current_mut() {
                attempt.samples = attempt.samples.saturating_add(1);
            }
        }
        TaskEvent::OperatorEntered { .. } => {}
        TaskEvent::TokensCharged { call, usage, cost_nano_usd, confirmed, stop_reason, .. } => {
            task.spent.cost += *cost_nano_usd;
            if *confirmed {
                task.spent.usage += *usage;
            } else {
                task.spent.unconfirmed_tokens = task.spent.unconfirmed_tokens.saturating_add(usage.total());
            }
            let stopped = *stop_reason;
            if let Some(attempt) = task.current_mut() {
                attempt.cost += *cost_nano_usd;
                attempt.usage += *usage;
                if attempt.harness.open.remove(call).is_some() {
                    attempt.harness.last_call = stopped.map(LastCall::Stopped).or(attempt.harness.last_call.take());
                } else if *confirmed {
                    attempt.counted = Some((usage.context(), attempt.conversation.len()));
                }
                // The charge closes the reservation; `message` or `model-call-failed` says what the call brought.
                if matches!(&attempt.turn, AgentTurn::Asked(open) if open.call == *call) {
                    attempt.turn = AgentTurn::Model;
                }
            }
        }
        TaskEvent::Cloned { .. }
        | TaskEvent::SetupStarted { .. }
        | TaskEvent::SetupFinished { .. }
        | TaskEvent::SandboxStarted { .. }
        | TaskEvent::ModelCalled { .. }
        | TaskEvent::Message { .. }
        | TaskEvent::ModelCallFailed { .. }
        | TaskEvent::CallRetried { .. }
        | TaskEvent::HarnessStarted { .. }
        | TaskEvent::HarnessRead { .. }
        | TaskEvent::HarnessFinished { .. }
        | TaskEvent::ToolCalled { .. }
        | TaskEvent::ToolFinished { .. }
        | TaskEvent::Steered { .. }
        | TaskEvent::Committed { .. }
        | TaskEvent::Unchanged { .. }
        | TaskEvent::Pushed { .. }
        | TaskEvent::PullRequestOpened { .. }
        | TaskEvent::PullRequestOmitted { .. }
        | TaskEvent::PullRequestLinked { .. }
        | TaskEvent::ForgeNoted { .. }
        | TaskEvent::Reported { .. }
        | TaskEvent::SandboxStopped { .. }
        | TaskEvent::StepFailed { .. }
        | TaskEvent::RetryScheduled { .. } => {
            let by_harness = task.spec.harness != Harness::Builtin;
            match event {
                TaskEvent::StepFailed { .. } => task.failures += 1,
                TaskEvent::ModelCallFailed { .. } if !by_harness => task.failures += 1,
                TaskEvent::RetryScheduled { .. }
                | TaskEvent::SetupStarted { .. }
                | TaskEvent::SetupFinished { done: false, .. }
                | TaskEvent::Steered { .. }
                | TaskEvent::ModelCalled { .. }
                | TaskEvent::ModelCallFailed { .. }
                | TaskEvent::CallRetried { .. } => {}
                // Every run of a harness gets somewhere before it fails; that alone is no reason to let it fail for ever.
                TaskEvent::SandboxStarted { .. } if by_harness => {}
                TaskEvent::HarnessStarted { .. }
                | TaskEvent::HarnessRead { .. }
                | TaskEvent::HarnessFinished { .. } => {}
                TaskEvent::Message { .. } | TaskEvent::ToolCalled { .. } | TaskEvent::ToolFinished { .. }
                    if by_harness => {}
                _ => task.failures = 0,
            }
            if let TaskEvent::Pushed { repo, commit, .. } = event {
                task.landed.insert(repo.to_string(), commit.clone());
            }
            let spec = Arc::clone(&task.spec);
            if let (TaskEvent::Message { content, .. }, Some(attempt)) = (event, task.current_mut()) {
                let said = content.iter().rev().find_map(|block| match block {
                    Block::Text { text } => Some(text.clone()),
                    Block::Thinking { .. } | Block::ToolUse { .. } => None,
                });
                attempt.last_words = said.or(attempt.last_words.take());
            }
            if let Some(attempt) = task.current_mut()
                && (spec.harness == Harness::Builtin || !evolve_harness(attempt, &spec, event))
            {
                evolve_attempt(attempt, &spec, event);
            }
        }
    }
    Some(task)
}

fn evolve_attempt(attempt: &mut Attempt, spec: &TaskSpec, event: &TaskEvent) {
    if !matches!(event, TaskEvent::RetryScheduled { .. } | TaskEvent::Steered { .. }) {
        attempt.wait_until = None;
    }
    match event {
        TaskEvent::Cloned { .. }
        | TaskEvent::Committed { .. }
        | TaskEvent::Unchanged { .. }
        | TaskEvent::Pushed { .. }
        | TaskEvent::PullRequestOpened { .. }
        | TaskEvent::PullRequestOmitted { .. }
        | TaskEvent::PullRequestLinked { .. }
        | TaskEvent::Reported { .. } => delivery::evolve(&mut attempt.repos, event),
        TaskEvent::SetupStarted { .. } | TaskEvent::SetupFinished { .. } => setup::evolve(attempt, event),
        TaskEvent::SandboxStarted { sandbox, .. } => attempt.sandbox = Some(*sandbox),
        TaskEvent::SandboxStopped { .. } => {
            attempt.sandbox = None;
            if let AgentTurn::Tools { first: first @ ToolProgress::Called, .. } = &mut attempt.turn {
                *first = ToolProgress::Lost;
            }
        }
        TaskEvent::ModelCalled { call, reserved_nano_usd, reserved_tokens, max_output_tokens, .. } => {
            if attempt.conversation.is_empty() {
                attempt.opening(&spec.prompt()).into_iter().for_each(|part| attempt.say(part));
            }
            attempt.hear_out();
            attempt.calls += 1;
            attempt.turn = AgentTurn::Asked(OpenCall {
                call: *call,
                reserved: *reserved_nano_usd,
                reserved_tokens: *reserved_tokens,
                max_output_tokens: *max_output_tokens,
            });
        }
        TaskEvent::Message { content, stop_reason, .. } => {
            attempt.message(content, stop_reason.unwrap_or(StopReason::EndTurn));
        }
        TaskEvent::ModelCallFailed { call, failure } => {
            if matches!(&attempt.turn, AgentTurn::Asked(open) if open.call == *call) {
                attempt.turn = AgentTurn::Model;
            }
            attempt.failure = Some(failure.clone());
        }
        TaskEvent::StepFailed { failure } => {
            setup::evolve(attempt, event);
            attempt.failure = Some(failure.clone());
        }
        TaskEvent::RetryScheduled { until, .. } => {
            attempt.failure = None;
            attempt.wait_until = Some(*until);
        }
        TaskEvent::ToolCalled { .. } => {
            if let AgentTurn::Tools { first, .. } = &mut attempt.turn {
                *first = ToolProgress::Called;
            }
        }
        TaskEvent::ToolFinished { tool_call, outcome, output, .. } => {
            let is_error = *outcome != super::event::ToolOutcome::Ok;
            attempt.tool_finished(tool_call, output, is_error);
        }
        TaskEvent::Steered { message } => {
            attempt.unheard.push(message.clone());
            if attempt.turn == AgentTurn::Done && attempt.listens() {
                attempt.turn = AgentTurn::Model;
                attempt.hear_out();
            }
        }
        TaskEvent::ForgeNoted { .. }
        | TaskEvent::CallRetried { .. }
        | TaskEvent::HarnessStarted { .. }
        | TaskEvent::HarnessRead { .. }
        | TaskEvent::HarnessFinished { .. }
        | TaskEvent::RefundGranted { .. }
        | TaskEvent::EgressDecided { .. }
        | TaskEvent::AttemptFailed { .. } => {}
        TaskEvent::Created(_)
        | TaskEvent::Queued {}
        | TaskEvent::Claimed { .. }
        | TaskEvent::AttemptStarted { .. }
        | TaskEvent::CredentialsRequired { .. }
        | TaskEvent::CredentialsSupplied { .. }
        | TaskEvent::CancelRequested { .. }
        | TaskEvent::Cancelled {}
        | TaskEvent::Failed { .. }
        | TaskEvent::Succeeded {}
        | TaskEvent::ContentErased { .. }
        | TaskEvent::SandboxUsage(_)
        | TaskEvent::OperatorEntered { .. }
        | TaskEvent::TokensCharged { .. } => {}
    }
}
