//! The steps of the built-in agent: reserve, ask, run a tool, and what to do about answers that were lost.

use std::time::Duration;

use orchestra_events::blob::{Content, INLINE_LIMIT};
use orchestra_events::ledger::Quote;
use orchestra_events::task::command::{Charge, Command, Then};
use orchestra_events::task::conversation::{Block, Turn, Usage, UserPart};
use orchestra_events::task::event::{CredentialKind, Harness, ToolOutcome};
use orchestra_events::task::state::{OpenCall, Task, ToolUse};
use orchestra_events::task::step::{MAX_CALLS, out_of_calls};
use orchestra_events::{Failure, FailureCode, TaskId};
use orchestra_runtime::agent::{End, plan_tool, render_output, system_prompt, tool_specs};
use orchestra_runtime::model::{
    Charge as Charged, FaultClass, ModelFailure, ModelReply, ModelRequest, ResolvedModel, input_bound, quote,
};
use orchestra_runtime::sandbox::{Exec, Exit, SandboxError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Failed, Workshop};

/// How much the agent may write in one reply, when the budget allows it.
const WANTED_OUTPUT: u64 = 16_000;
/// Pieces of a reply that wait to be shown.
const DELTA_BACKLOG: usize = 64;

/// The words for a tool call whose answer went with its sandbox.
pub(super) fn interrupted(tool: ToolUse) -> Command {
    let words = "The machine was restarted while this ran. Whether it had an effect is not known: look before you \
                 repeat it.";
    Command::RecordTool {
        tool_call: tool.id,
        outcome: ToolOutcome::Interrupted,
        output: Content::Inline(words.to_owned()),
        duration_ms: 0,
        omitted_bytes: 0,
    }
}

impl Workshop {
    pub(super) fn resolved(&self, task: &Task) -> Result<ResolvedModel, Failed> {
        // Checked at submission; the operator may have changed the configuration since.
        self.models
            .resolve(&task.spec.model)
            .map_err(|error| Failed::new(Failure::new(FailureCode::ModelAuth, format!("{error}."))))
    }

    async fn request(
        &self,
        id: TaskId,
        task: &Task,
        turns: &[Turn],
        max_output_tokens: u64,
    ) -> Result<ModelRequest, Failed> {
        Ok(ModelRequest {
            model: self.resolved(task)?,
            system: system_prompt().to_owned(),
            conversation: self.inline(id, turns).await?,
            tools: tool_specs(),
            max_output_tokens,
        })
    }

    /// The conversation with everything that lies in the blob store put back in.
    async fn inline(&self, id: TaskId, turns: &[Turn]) -> Result<Vec<Turn>, Failed> {
        let mut whole = turns.to_vec();
        for turn in &mut whole {
            match turn {
                Turn::User(parts) => {
                    for part in parts {
                        if let UserPart::ToolResult { output, .. } = part {
                            self.fetch(id, output).await?;
                        }
                    }
                }
                Turn::Assistant(blocks) => {
                    for block in blocks {
                        if let Block::Text { text } | Block::Thinking { text, .. } = block {
                            self.fetch(id, text).await?;
                        }
                    }
                }
            }
        }
        Ok(whole)
    }

    async fn fetch(&self, id: TaskId, content: &mut Content) -> Result<(), Failed> {
        if let Content::Blob(blob) = content {
            let bytes = self.blobs.get(id, blob).await.map_err(|error| internal(format!("{error}.")))?;
            *content = Content::Inline(String::from_utf8_lossy(&bytes).into_owned());
        }
        Ok(())
    }

    /// Moves content that is too large for an event to the blob store.
    pub(super) async fn store(&self, id: TaskId, content: &mut Content) -> Result<(), Failed> {
        if let Content::Inline(text) = content
            && text.len() > INLINE_LIMIT
        {
            let bytes = std::mem::take(text).into_bytes();
            *content = Content::Blob(self.blobs.put(id, bytes).await.map_err(|error| internal(format!("{error}.")))?);
        }
        Ok(())
    }

    /// Sets the money for the next call aside, with as much output as still fits.
    pub(super) async fn reserve(&self, id: TaskId, task: &Task) -> Result<Command, Failed> {
        let Some(attempt) = task.current() else { return Err(internal("The attempt is gone.")) };
        if attempt.calls >= MAX_CALLS {
            return Err(Failed::new(out_of_calls()));
        }
        // The first call opens the conversation with the task itself; unheard words join it as it is made.
        let mut turns = attempt.conversation.clone();
        if turns.is_empty() {
            turns.push(Turn::User(attempt.opening(&task.spec.task)));
        }
        let unheard = attempt.unheard.iter().map(|words| UserPart::Text { text: words.clone() });
        turns.push(Turn::User(unheard.collect()));
        let bytes = |request: &ModelRequest| request.bytes().map_err(|error| Failed::new(*error.failure));
        let request = self.request(id, task, &turns, WANTED_OUTPUT).await?;
        let previous = match attempt.counted {
            Some((tokens, turns)) if turns <= attempt.conversation.len() => {
                let counted = self.request(id, task, &attempt.conversation[..turns], WANTED_OUTPUT).await?;
                Some((tokens, bytes(&counted)?))
            }
            _ => None,
        };
        let bound = input_bound(bytes(&request)?, previous);
        let quote = quote(&request.model.price, ModelRequest::CACHE_WRITES, bound, WANTED_OUTPUT);
        self.set_aside(id, task, &request.model, quote, attempt.unheard.len()).await
    }

    /// Asks the model under a reservation that stands. Whatever happens, the answer settles it.
    pub(super) async fn ask(&self, id: TaskId, task: &Task, open: &OpenCall, cancel: CancellationToken) -> Command {
        match self.calls.is_marked(id, open.call).await {
            // An earlier process sent it; its answer is lost, its price is not known.
            Ok(true) => {
                return self.unconfirmed(task, open, "The server was restarted while the model answered.").await;
            }
            Ok(false) => {}
            Err(error) => {
                return self.not_sent(task, open, internal(format!("The call's mark: {error}.")).failure).await;
            }
        }
        let Some(attempt) = task.current() else {
            return self.not_sent(task, open, internal("The attempt is gone.").failure).await;
        };
        let request = match self.request(id, task, &attempt.conversation, open.max_output_tokens).await {
            Ok(request) => request,
            Err(failed) => return self.not_sent(task, open, failed.failure).await,
        };
        if attempt.deadline <= jiff::Timestamp::now() {
            return self.not_sent(task, open, past_deadline(task)).await;
        }
        if let Err(error) = self.calls.mark(id, open.call).await {
            return self.not_sent(task, open, internal(format!("The call's mark: {error}.")).failure).await;
        }
        let (deltas, mut heard) = mpsc::channel::<String>(DELTA_BACKLOG);
        let speech = self.speech.clone();
        let show = async move {
            while let Some(text) = heard.recv().await {
                speech.say(id, text);
            }
        };
        let key = self.vault.model(id);
        let deadline = task.current().map(|attempt| attempt.deadline);
        let call = self.model_client.call(&request, key.as_ref(), Some(deltas), cancel);
        let (answer, ()) = tokio::join!(before(deadline, call), show);
        match answer {
            Some(Ok(reply)) => self.reply(id, task, open, &request.model, reply).await,
            Some(Err(failure)) => self.refused(id, task, open, &request.model, failure).await,
            None => {
                let failure = past_deadline(task);
                let charge = self.end_call(task, open, Some(bound_charge(open))).await;
                Command::RecordModelFailure { call: open.call, charge, failure, then: Then::GiveUp }
            }
        }
    }

    async fn reply(
        &self,
        id: TaskId,
        task: &Task,
        open: &OpenCall,
        model: &ResolvedModel,
        mut reply: ModelReply,
    ) -> Command {
        let charge = Charge {
            cost: model.price.cost(&reply.usage),
            usage: reply.usage,
            confirmed: reply.usage_reported,
            price: model.price.id().to_owned(),
        };
        let Some(charge) = self.end_call(task, open, Some(charge)).await else {
            unreachable!("a charge that is booked is a charge")
        };
        for block in &mut reply.content {
            if let Block::Text { text } | Block::Thinking { text, .. } = block
                && let Err(failed) = self.store(id, text).await
            {
                let then = self.then(task, &failed.failure, None);
                return Command::RecordModelFailure {
                    call: open.call,
                    charge: Some(charge),
                    failure: failed.failure,
                    then,
                };
            }
        }
        Command::RecordReply { call: open.call, charge, content: reply.content, stop_reason: reply.stop_reason }
    }

    async fn refused(
        &self,
        id: TaskId,
        task: &Task,
        open: &OpenCall,
        model: &ResolvedModel,
        failed: ModelFailure,
    ) -> Command {
        let charge = match failed.charged {
            Charged::Nothing => None,
            Charged::Usage(usage) => Some(Charge {
                usage,
                cost: model.price.cost(&usage).min(open.reserved),
                confirmed: true,
                price: model.price.id().to_owned(),
            }),
            Charged::Unknown => Some(bound_charge(open)),
        };
        let charge = self.end_call(task, open, charge).await;
        let callers_key = self.vault.model(id).is_some();
        let then = match failed.class {
            FaultClass::Auth if callers_key => Then::AskFor(vec![CredentialKind::Model]),
            _ => self.then(task, &failed.failure, failed.retry_after),
        };
        Command::RecordModelFailure { call: open.call, charge, failure: *failed.failure, then }
    }

    async fn unconfirmed(&self, task: &Task, open: &OpenCall, message: &str) -> Command {
        let failure = Failure::new(FailureCode::NetworkDropped, message);
        let then = self.then(task, &failure, None);
        let charge = self.end_lost_call(task, open, true).await;
        Command::RecordModelFailure { call: open.call, charge, failure, then }
    }

    pub(super) async fn not_sent(&self, task: &Task, open: &OpenCall, failure: Failure) -> Command {
        let then = self.then(task, &failure, None);
        let charge = self.end_call(task, open, None).await;
        Command::RecordModelFailure { call: open.call, charge, failure, then }
    }

    /// Settles a call that nobody waits for: in full if it may have been sent, not at all if it was not.
    pub(super) async fn abandon(&self, id: TaskId, task: &Task, open: &OpenCall) -> Command {
        let by_harness = task.spec.harness != Harness::Builtin;
        // The gateway sends a call as soon as its money is set aside; the built-in agent marks it first.
        let sent = by_harness || self.calls.is_marked(id, open.call).await.unwrap_or(true);
        let failure = if task.cancel_requested {
            Failure::new(FailureCode::Cancelled, "The task was cancelled while the model answered.")
        } else if by_harness {
            Failure::new(FailureCode::NetworkDropped, "The server, or the sandbox, went away while the model answered.")
        } else {
            Failure::new(FailureCode::NetworkDropped, "Nobody waits for this answer any more.")
        };
        let charge = self.end_lost_call(task, open, sent).await;
        if by_harness {
            let model = task.spec.model.clone();
            let failure = Some(failure);
            return Command::RecordCallEnd { call: open.call, model, charge, stop_reason: None, failure };
        }
        Command::RecordModelFailure { call: open.call, charge, failure, then: Then::GiveUp }
    }

    /// Runs a tool once, however often this is called: the sandbox keeps the answer under the tool call's id.
    pub(super) async fn run_tool(&self, task: &Task, tool: ToolUse) -> Result<Command, Failed> {
        let outcome = |outcome, text: String, duration: Duration, omitted_bytes| Command::RecordTool {
            tool_call: tool.id.clone(),
            outcome,
            output: Content::Inline(text),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            omitted_bytes,
        };
        if let Some(raw) = &tool.malformed {
            let text = format!("The input of this call is not a JSON object, so nothing ran: {}", shortened(raw));
            return Ok(outcome(ToolOutcome::Error, text, Duration::ZERO, 0));
        }
        let planned = match plan_tool(&tool.name, &tool.input) {
            Ok(planned) => planned,
            Err(text) => return Ok(outcome(ToolOutcome::Error, text, Duration::ZERO, 0)),
        };
        let sandbox = match self.sandbox(task).await {
            Ok(sandbox) => sandbox,
            Err(otherwise) => return otherwise,
        };
        let exec = exec_id(task, &tool.id);
        let request = Exec {
            id: exec.clone(),
            argv: planned.argv,
            env: Vec::new(),
            cwd: "/workspace".to_owned(),
            stdin: planned.stdin,
            timeout: planned.timeout,
        };
        let ran = match sandbox.exec(request, None).await {
            Ok(ran) => ran,
            Err(SandboxError::Gone(id)) => {
                let reason = orchestra_events::task::event::SandboxEnd::Lost;
                return Ok(Command::RecordSandboxStopped { sandbox: id, reason });
            }
            Err(SandboxError::Refused { detail, .. }) => {
                let text = format!("The machine did not run this: {detail}");
                return Ok(outcome(ToolOutcome::Error, text, Duration::ZERO, 0));
            }
            Err(error) => return Err(error.into()),
        };
        let end = match ran.exit {
            Exit::Code(code) => End::Exited(code),
            Exit::Signal(signal) => End::Signalled(signal),
            Exit::TimedOut => End::TimedOut(planned.timeout),
            Exit::OutOfMemory => End::OutOfMemory,
            Exit::Lost => return Ok(interrupted(tool)),
        };
        let how = end.outcome();
        let (text, omitted) = render_output(&ran.head, &ran.tail, ran.total_bytes, end);
        Ok(outcome(how, text, ran.duration, omitted))
    }

    /// Lets the sandbox forget an answer that is recorded, and the host a call that is settled.
    pub async fn recorded(&self, id: TaskId, task: &Task, command: &Command) {
        match command {
            Command::RecordReply { call, .. } | Command::RecordModelFailure { call, .. } => {
                self.calls.clear(id, *call).await
            }
            Command::RecordTool { tool_call, .. } => {
                if let Ok(sandbox) = self.sandbox(task).await
                    && let Err(error) = sandbox.forget(&exec_id(task, tool_call)).await
                {
                    tracing::debug!(%error, "the sandbox keeps an answer that nobody needs");
                }
            }
            _ => {}
        }
    }
}

/// The key under which the sandbox runs a tool call once. Providers' ids repeat between attempts and scripted models.
fn exec_id(task: &Task, tool_call: &str) -> String {
    let turn = task.current().map_or(0, |attempt| attempt.calls);
    let call: String = tool_call.chars().filter(char::is_ascii_graphic).take(150).collect();
    format!("{}-{turn}-{call}", task.attempt)
}

fn internal(message: impl Into<String>) -> Failed {
    Failed::new(Failure::new(FailureCode::Internal, message))
}

pub(super) fn bound_charge(open: &OpenCall) -> Charge {
    Charge {
        usage: Usage { input_tokens: open.reserved_tokens, ..Usage::default() },
        cost: open.reserved,
        confirmed: false,
        price: "reservation".to_owned(),
    }
}

/// Longest piece of a malformed input that is quoted to the model, in characters.
const MAX_QUOTE: usize = 500;

fn shortened(text: &str) -> String {
    text.chars().take(MAX_QUOTE).collect()
}

pub(super) fn past_deadline(task: &Task) -> Failure {
    let seconds = task.spec.timeout_seconds;
    Failure::new(FailureCode::SandboxTimeout, format!("The task did not finish within its {seconds} s."))
}

/// The work's outcome, or `None` once the attempt's deadline is over.
pub(super) async fn before<T>(deadline: Option<jiff::Timestamp>, work: impl Future<Output = T>) -> Option<T> {
    let Some(deadline) = deadline else { return Some(work.await) };
    let left = deadline.duration_since(jiff::Timestamp::now());
    tokio::time::timeout(Duration::try_from(left).unwrap_or_default(), work).await.ok()
}

/// What the first call of a task of the built-in agent can cost.
pub(super) fn first_quote(model: &ResolvedModel, text: &str) -> Quote {
    let tools = serde_json::to_string(&tool_specs().iter().map(|tool| &tool.input_schema).collect::<Vec<_>>());
    let bytes = system_prompt().len() + text.len() + tools.map_or(0, |tools| tools.len());
    quote(&model.price, ModelRequest::CACHE_WRITES, input_bound(bytes as u64, None), WANTED_OUTPUT)
}

/// The least that any call about this text can cost.
pub(super) fn least_quote(model: &ResolvedModel, text: &str) -> Quote {
    quote(&model.price, ModelRequest::CACHE_WRITES, input_bound(text.len() as u64, None), WANTED_OUTPUT)
}
