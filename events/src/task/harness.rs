//! The program of a harness: how far it has come, what it and the gateway report, and how its run is judged. None of it is
//! a step of the plan; it happens while `RunHarness` is done.

use std::collections::BTreeMap;

use serde_json::Value;

use super::command::{Command, Refusal, followed_by, working};
use super::conversation::{Block, StopReason};
use super::event::{Harness, TaskEvent, TaskSpec, ToolOutcome};
use super::state::{AgentTurn, Attempt, OpenCall, Phase, Task};
use crate::blob::Content;
use crate::failure::{Failure, FailureCode};
use crate::id::CallId;

/// What a harness is told when it goes on with its session and nobody has said anything new.
const CONTINUE_SESSION: &str = "You were interrupted. Look at what is done already, and finish the task.";

/// How far a harness has come with its attempt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HarnessRun {
    /// Which run this is, counted from 1; 0 before the first.
    pub run: u32,
    /// The program runs, or ran when its sandbox was last heard of.
    pub running: bool,
    /// What the run was started with.
    pub prompt: String,
    /// The session that the run goes on with.
    pub resumes: Option<String>,
    /// The session that a later run can go on with.
    pub session: Option<String>,
    /// Bytes of the run's log that are recorded.
    pub offset: u64,
    /// Its model calls whose outcome is not known.
    pub open: BTreeMap<CallId, OpenCall>,
    /// How its latest model call ended.
    pub last_call: Option<LastCall>,
}

/// How a model call ended.
#[derive(Debug, Clone, PartialEq)]
pub enum LastCall {
    /// The reply came whole.
    Stopped(StopReason),
    /// It did not.
    Failed(Failure),
}

/// Something a harness said or did.
#[derive(Debug, Clone, PartialEq)]
pub enum HarnessWord {
    /// Words.
    Message(Content),
    /// It is about to use a tool of its own.
    ToolCalled {
        /// Its id of the call.
        tool_call: String,
        /// The tool.
        name: String,
        /// Its input.
        input: Value,
    },
    /// The tool answered.
    ToolFinished {
        /// Its id of the call.
        tool_call: String,
        /// How.
        outcome: ToolOutcome,
        /// What it answered.
        output: Content,
        /// Bytes that are not in `output`.
        omitted_bytes: u64,
    },
}

impl HarnessWord {
    fn event(self) -> TaskEvent {
        match self {
            Self::Message(text) => {
                TaskEvent::Message { call: None, content: vec![Block::Text { text }], stop_reason: None }
            }
            Self::ToolCalled { tool_call, name, input } => TaskEvent::ToolCalled { tool_call, name, input },
            Self::ToolFinished { tool_call, outcome, output, omitted_bytes } => {
                TaskEvent::ToolFinished { tool_call, outcome, output, duration_ms: None, omitted_bytes }
            }
        }
    }
}

/// What a harness did, or the gateway for it: none of it is a step, all of it happened.
pub(super) fn by_harness(task: &Task, command: Command) -> Result<Vec<TaskEvent>, Refusal> {
    let attempt = match &task.phase {
        Phase::AwaitingCredentials(_, Some(attempt)) => attempt,
        _ => working(task)?,
    };
    let harness = &attempt.harness;
    match command {
        Command::RecordHarnessOutput { run, offset, session, said } => {
            // What was recorded before a crash is read again after it.
            if run != harness.run || !harness.running || offset <= harness.offset {
                return Err(Refusal::MovedOn);
            }
            let mut events: Vec<_> = said.into_iter().map(HarnessWord::event).collect();
            events.push(TaskEvent::HarnessRead { run, offset, session });
            Ok(events)
        }
        Command::RecordHarnessEnd { run, exit_code, duration_ms, failed } => {
            if run != harness.run || !harness.running {
                return Err(Refusal::MovedOn);
            }
            let mut events = vec![TaskEvent::HarnessFinished { run, exit_code, duration_ms, done: failed.is_none() }];
            if let Some((failure, then)) = failed {
                events.extend(followed_by(task, TaskEvent::StepFailed { failure: failure.clone() }, &failure, then));
            }
            Ok(events)
        }
        Command::RecordCall { open, model } => {
            if harness.open.contains_key(&open.call) {
                return Ok(Vec::new());
            }
            Ok(vec![TaskEvent::ModelCalled {
                call: open.call,
                model,
                reserved_nano_usd: open.reserved,
                reserved_tokens: open.reserved_tokens,
                max_output_tokens: open.max_output_tokens,
            }])
        }
        Command::RecordRetry { call, attempt, class, wait_ms } => {
            Ok(vec![TaskEvent::CallRetried { call, attempt, class, wait_ms }])
        }
        Command::RecordCallEnd { call, model, charge, stop_reason, failure } => {
            if !harness.open.contains_key(&call) {
                return Ok(Vec::new());
            }
            let mut events = Vec::new();
            if let Some(charge) = charge {
                events.push(TaskEvent::TokensCharged {
                    call,
                    model,
                    usage: charge.usage,
                    cost_nano_usd: charge.cost,
                    confirmed: charge.confirmed,
                    price: charge.price,
                    stop_reason,
                });
            }
            match failure {
                Some(failure) => events.push(TaskEvent::ModelCallFailed { call, failure }),
                // Given back without a word: the call closes all the same.
                None if events.is_empty() => {
                    let message = "The model call was given up before it cost anything.";
                    let failure = Failure::new(FailureCode::Cancelled, message);
                    events.push(TaskEvent::ModelCallFailed { call, failure });
                }
                None => {}
            }
            Ok(events)
        }
        _ => Err(Refusal::MovedOn),
    }
}

/// How a harness's run ended, judged by how its last model call did and never by its exit code: command line agents
/// end with 0 after errors, and with 1 after work well done.
pub fn verdict(task: &Task, exit_code: Option<i32>) -> Result<(), Failure> {
    let Some(attempt) = task.current() else { return Ok(()) };
    let harness = task.spec.harness.as_str();
    let how = exit_code.map_or_else(|| "was killed".to_owned(), |code| format!("ended with code {code}"));
    let truncated = |message: &str| Err(Failure::new(FailureCode::ModelTruncated, message));
    match &attempt.harness.last_call {
        Some(LastCall::Failed(failure)) => Err(failure.clone()),
        Some(LastCall::Stopped(stop)) => match stop {
            StopReason::EndTurn => Ok(()),
            StopReason::MaxTokens => truncated("The agent stopped because a reply reached its output limit."),
            StopReason::Pause => truncated("The agent stopped in the middle of a turn that the provider had paused."),
            StopReason::Refusal => {
                Err(Failure::new(FailureCode::ModelTruncated, "The model declined to go on.").with_retryable(false))
            }
            StopReason::ContextWindow => Err(Failure::new(
                FailureCode::ModelTruncated,
                "The conversation no longer fits into the model's context window.",
            )
            .with_retryable(false)),
            StopReason::ToolUse => Err(Failure::new(
                FailureCode::HarnessFailed,
                format!("The program of {harness} {how} while the model waited for a tool."),
            )
            .with_retryable(true)),
        },
        None if task.spec.harness == Harness::Command && exit_code == Some(0) => Ok(()),
        None => Err(Failure::new(
            FailureCode::HarnessFailed,
            format!("The program of {harness} {how} without an answer from a model."),
        )),
    }
}

/// What the events of a harness mean that mean something else for the built-in agent. `false`: nothing of its own.
pub(super) fn evolve_harness(attempt: &mut Attempt, spec: &TaskSpec, event: &TaskEvent) -> bool {
    let harness = &mut attempt.harness;
    match event {
        TaskEvent::ModelCalled { call, reserved_nano_usd, reserved_tokens, max_output_tokens, .. } => {
            attempt.calls += 1;
            let open = OpenCall {
                call: *call,
                reserved: *reserved_nano_usd,
                reserved_tokens: *reserved_tokens,
                max_output_tokens: *max_output_tokens,
            };
            harness.open.insert(*call, open);
        }
        TaskEvent::ModelCallFailed { call, failure } => {
            harness.open.remove(call);
            // One that we broke off says nothing about the agent.
            if failure.code != FailureCode::Cancelled {
                harness.last_call = Some(LastCall::Failed(failure.clone()));
            }
        }
        TaskEvent::HarnessStarted { run, resumes } => {
            let mut prompt = std::mem::take(&mut attempt.unheard).join("\n\n");
            if resumes.is_none() {
                let more = if prompt.is_empty() { String::new() } else { format!("\n\n{prompt}") };
                prompt = format!("{}{more}", spec.prompt());
            } else if prompt.is_empty() {
                CONTINUE_SESSION.clone_into(&mut prompt);
            }
            attempt.wait_until = None;
            harness.run = *run;
            harness.running = true;
            harness.prompt = prompt;
            harness.resumes.clone_from(resumes);
            harness.offset = 0;
            harness.last_call = None;
        }
        TaskEvent::HarnessRead { offset, session, .. } => {
            harness.offset = *offset;
            if session.is_some() {
                harness.session.clone_from(session);
            }
        }
        TaskEvent::HarnessFinished { done, .. } => {
            harness.running = false;
            attempt.turn = if *done && attempt.unheard.is_empty() { AgentTurn::Done } else { AgentTurn::Model };
        }
        TaskEvent::SandboxStopped { .. } => {
            attempt.sandbox = None;
            harness.running = false;
        }
        // Its program hears them when it is started again.
        TaskEvent::Steered { message } => {
            attempt.unheard.push(message.clone());
            if attempt.turn == AgentTurn::Done && attempt.listens() {
                attempt.turn = AgentTurn::Model;
            }
        }
        TaskEvent::Message { .. } | TaskEvent::ToolCalled { .. } | TaskEvent::ToolFinished { .. } => {}
        _ => return false,
    }
    true
}
