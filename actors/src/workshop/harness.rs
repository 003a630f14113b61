//! The steps of a harness: run its program in the sandbox with the metered gateway on the loopback, and take its words
//! down as they come.
//!
//! The program writes to a file on the sandbox's disk, which is read by byte offset: whoever reads it next, after
//! a crash too, goes on where the record ends. Its exit code is noted and not believed.

use std::sync::Arc;
use std::time::Duration;

use orchestra_events::blob::Content;
use orchestra_events::task::command::{Command, HarnessWord, Then, verdict};
use orchestra_events::task::event::{CredentialKind, SandboxEnd, ToolOutcome};
use orchestra_events::task::state::{HarnessRun, Task};
use orchestra_events::{Failure, FailureCode, TaskId};
use orchestra_runtime::agent::harness::{Entry, Prepared, Reader, Run, logged, prepare};
use orchestra_runtime::gateway::Session;
use orchestra_runtime::sandbox::{Exec, ExecOutcome, Exit, Sandbox, SandboxError};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::meter::TaskMeter;
use super::{Failed, Workshop, agent};
use crate::task::Recorder;

/// Where the gateway listens on the sandbox's own loopback.
const GATEWAY_PORT: u16 = 7080;
/// Where the program's output goes, one file a run.
const LOG: &str = "/home/agent/.orchestra";
/// Longest line that is read; the rest of it is passed over.
const MAX_LINE: usize = 1024 * 1024;
/// Words that are recorded in one append.
const MAX_WORDS: usize = 64;
/// How long a word may wait for others to be recorded with.
const GATHER: Duration = Duration::from_millis(100);
/// How long writing the program's configuration may take.
const FILES_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the gateway may take to settle what is under way when the run ends.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers that are under way may take when the server ends. Less than it waits for its steps.
const LEAVE_PATIENCE: Duration = Duration::from_secs(12);
/// How much of an error log is shown to the user, in bytes.
const MAX_COMPLAINT: usize = 2_000;

/// Why a run came to nothing.
enum Stopped {
    /// The sandbox is gone.
    Lost(Command),
    /// Something failed.
    Failed(Failed),
}

impl From<SandboxError> for Stopped {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Gone(sandbox) => {
                Self::Lost(Command::RecordSandboxStopped { sandbox, reason: SandboxEnd::Lost })
            }
            error => Self::Failed(error.into()),
        }
    }
}

impl From<Failed> for Stopped {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

fn log_path(task: &Task, run: u32) -> String {
    format!("{LOG}/run-{}-{run}.log", task.attempt)
}

fn exec_id(task: &Task, run: u32, part: &str) -> String {
    format!("harness-{}-{run}-{part}", task.attempt)
}

fn internal(message: impl Into<String>) -> Failed {
    Failed::new(Failure::new(FailureCode::Internal, message))
}

impl Workshop {
    /// Runs the harness's program to its end, or goes on with the run that has begun.
    pub(super) async fn run_harness(
        &self,
        id: TaskId,
        task: &Arc<Task>,
        recorder: &Recorder,
        cancel: &CancellationToken,
    ) -> Result<Command, Failed> {
        let Some(attempt) = task.current() else { return Err(internal("The attempt is gone.")) };
        let sandbox = match self.sandbox(task).await {
            Ok(sandbox) => sandbox,
            Err(otherwise) => return otherwise,
        };
        let model = self.resolved(task)?;
        let meter = Arc::new(TaskMeter::new(id, task, &model, self.ledgers.clone(), recorder.clone()));
        let stop = CancellationToken::new();
        let listener = match sandbox.listen(GATEWAY_PORT).await {
            Ok(listener) => listener,
            Err(error) => return Err(error.into()),
        };
        let (vault, team, allowed) = (Arc::clone(&self.vault), task.spec.team.clone(), self.allowed_models.clone());
        let session = Session {
            meter: Arc::clone(&meter) as _,
            model: model.clone(),
            key: Arc::new(move || vault.model(id)),
            allowed: Arc::new(move |model| allowed.allows(&team, model)),
            deadline: Some(attempt.deadline),
        };
        let gateway = tokio::spawn(Arc::clone(&self.gateway).serve(listener, session, stop.clone()));
        // Dropped with this future too: a step that is cancelled leaves no gateway behind.
        let stop_on_drop = stop.drop_guard();
        let ran = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            ran = agent::before(Some(attempt.deadline), self.follow(task, &attempt.harness, &*sandbox, recorder)) => {
                Some(ran.unwrap_or_else(|| Err(Failed::new(agent::past_deadline(task)).into())))
            }
        };
        let cancelled = recorder.task().await.is_ok_and(|task| task.cancel_requested);
        match &ran {
            Some(Ok(_)) => {}
            // The server is about to end: the program goes on without us. What it has asked may still be answered.
            None if !cancelled => meter.quiet(LEAVE_PATIENCE).await,
            // Nobody waits for it any more, so it must not go on spending.
            Some(Err(_)) | None => {
                let _ = sandbox.kill_exec(&exec_id(task, attempt.harness.run, "main")).await;
            }
        }
        drop(stop_on_drop);
        if tokio::time::timeout(SETTLE_TIMEOUT, gateway).await.is_err() {
            tracing::warn!(task = %id, "the gateway did not settle its calls in time");
        }
        let outcome = match ran {
            // The caller of the step sees the same token and throws this away.
            None => return Err(internal("The run was cancelled.")),
            Some(Ok(outcome)) => outcome,
            Some(Err(Stopped::Lost(command))) => return Ok(command),
            Some(Err(Stopped::Failed(failed))) => return Err(failed),
        };
        let task = recorder.task().await.map_err(|error| internal(format!("{error}.")))?;
        self.judge(id, &task, &meter, &*sandbox, outcome).await
    }

    /// Books the calls that an earlier process had under way: their answers are lost.
    pub(super) async fn abandon_lost(&self, id: TaskId, task: &Task, recorder: &Recorder) -> Result<(), Failed> {
        for open in task.current().into_iter().flat_map(|attempt| attempt.harness.open.values()) {
            let command = self.abandon(id, task, open).await;
            recorder.record(command).await.map_err(|error| internal(format!("{error}.")))?;
        }
        Ok(())
    }

    /// What came of a run that has ended.
    async fn judge(
        &self,
        id: TaskId,
        task: &Task,
        meter: &TaskMeter,
        sandbox: &dyn Sandbox,
        outcome: ExecOutcome,
    ) -> Result<Command, Failed> {
        let Some(attempt) = task.current() else { return Err(internal("The attempt is gone.")) };
        let run = attempt.harness.run;
        let exit_code = match outcome.exit {
            Exit::Code(code) => Some(code),
            Exit::Signal(_) | Exit::TimedOut | Exit::OutOfMemory | Exit::Lost => None,
        };
        let failure = match (outcome.exit, meter.refusal()) {
            (Exit::OutOfMemory, _) => Some(Failure::new(
                FailureCode::SandboxOutOfMemory,
                format!("The program of {} was killed for memory.", task.spec.harness.as_str()),
            )),
            (Exit::TimedOut, _) => Some(agent::past_deadline(task)),
            (_, Some(refused)) => Some(refused),
            _ => verdict(task, exit_code).err(),
        };
        let failed = match failure {
            None => None,
            Some(mut failure) => {
                if failure.code == FailureCode::HarnessFailed
                    && let Some(words) = self.complaint(task, run, sandbox).await
                {
                    failure.message = format!("{} It said: {words}", failure.message);
                }
                let callers_key = self.vault.model(id).is_some();
                let then = match failure.code {
                    FailureCode::ModelAuth if callers_key => Then::AskFor(vec![CredentialKind::Model]),
                    _ => self.then(task, &failure, None),
                };
                Some((failure, then))
            }
        };
        let _ = sandbox.forget(&exec_id(task, run, "main")).await;
        let duration_ms = u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX);
        Ok(Command::RecordHarnessEnd { run, exit_code, duration_ms, failed })
    }

    /// Starts the program unless it runs, and records what it says until it has ended.
    async fn follow(
        &self,
        task: &Task,
        harness: &HarnessRun,
        sandbox: &dyn Sandbox,
        recorder: &Recorder,
    ) -> Result<ExecOutcome, Stopped> {
        let prepared = self.prepared(task, harness)?;
        let log = log_path(task, harness.run);
        self.write_files(task, harness.run, sandbox, &prepared, &log).await?;
        let exec = Exec {
            id: exec_id(task, harness.run, "main"),
            argv: logged(prepared.argv, &log),
            env: prepared.env,
            cwd: "/workspace".to_owned(),
            stdin: prepared.stdin,
            timeout: Duration::from_secs(task.spec.timeout_seconds),
        };
        let mut log = Log::new(task, harness, log);
        let main = sandbox.exec(exec, None);
        tokio::pin!(main);
        let outcome = loop {
            tokio::select! {
                biased;
                read = self.read_log(&mut log, sandbox, recorder, true) => read?,
                outcome = &mut main => break outcome?,
            }
        };
        // What it wrote at the last: from where the record ends (the reading was broken off) to the end of the file.
        let recorded = recorder.task().await.map_err(|error| internal(format!("{error}.")))?;
        log.back_to(recorded.current().map_or(log.recorded, |attempt| attempt.harness.offset));
        self.read_log(&mut log, sandbox, recorder, false).await?;
        let last = log.reader.end();
        self.take_down(&mut log, last, recorder).await?;
        Ok(outcome)
    }

    fn prepared(&self, task: &Task, harness: &HarnessRun) -> Result<Prepared, Failed> {
        let model = self.resolved(task)?;
        let run = Run {
            harness: task.spec.harness,
            prompt: &harness.prompt,
            model: &model,
            gateway: &format!("http://127.0.0.1:{GATEWAY_PORT}"),
            resume: harness.resumes.as_deref(),
            command: &task.spec.command,
        };
        prepare(&run).map_err(|error| Failed::new(Failure::new(FailureCode::HarnessFailed, format!("{error}."))))
    }

    async fn write_files(
        &self,
        task: &Task,
        run: u32,
        sandbox: &dyn Sandbox,
        prepared: &Prepared,
        log: &str,
    ) -> Result<(), Stopped> {
        let nothing = (log.to_owned(), Vec::new());
        let files = prepared.files.iter().chain([&nothing]);
        for (number, (path, content)) in files.enumerate() {
            let id = exec_id(task, run, &number.to_string());
            let script = r#"mkdir -p "$(dirname "$0")" && cat >> "$0.new" && { [ -e "$0" ] && [ "$1" = keep ] && rm "$0.new" || mv "$0.new" "$0"; }"#;
            let keep = if path == log { "keep" } else { "replace" };
            let outcome = sandbox
                .exec(
                    Exec {
                        id: id.clone(),
                        argv: ["/bin/sh", "-c", script, path, keep].map(str::to_owned).to_vec(),
                        env: Vec::new(),
                        cwd: "/".to_owned(),
                        stdin: content.clone(),
                        timeout: FILES_TIMEOUT,
                    },
                    None,
                )
                .await?;
            let _ = sandbox.forget(&id).await;
            if outcome.exit != Exit::Code(0) {
                let said = String::from_utf8_lossy(&outcome.head).into_owned();
                return Err(internal(format!("The configuration of the harness was not written: {said}")).into());
            }
        }
        Ok(())
    }

    /// Reads the log from where the record ends. With `live` it waits for more and never returns unless something
    /// fails; otherwise it stops at the end of the file.
    async fn read_log(
        &self,
        log: &mut Log,
        sandbox: &dyn Sandbox,
        recorder: &Recorder,
        live: bool,
    ) -> Result<(), Stopped> {
        let from = format!("+{}", log.offset + 1);
        log.forget_partial();
        let mut argv = vec!["tail".to_owned(), "-c".to_owned(), from, log.path.clone()];
        if live {
            argv.push("-f".to_owned());
        }
        let exec = Exec {
            id: format!("{}-{}", log.tail_id, uuid::Uuid::new_v4().simple()),
            argv,
            env: Vec::new(),
            cwd: "/".to_owned(),
            stdin: Vec::new(),
            timeout: log.timeout,
        };
        let mut tail = sandbox.exec_piped(exec).await?;
        let mut chunk = vec![0; 64 * 1024];
        let mut words = Vec::new();
        loop {
            let read = tail.read(&mut chunk);
            let count = if words.is_empty() {
                read.await
            } else {
                match tokio::time::timeout(GATHER, read).await {
                    Ok(count) => count,
                    Err(_) => {
                        self.take_down(log, std::mem::take(&mut words), recorder).await?;
                        continue;
                    }
                }
            };
            let count = count.map_err(|error| internal(format!("The harness's log does not read: {error}.")))?;
            if count == 0 {
                if !live {
                    log.end(&mut words);
                }
                self.take_down(log, words, recorder).await?;
                return Ok(());
            }
            log.push(&chunk[..count], &mut words);
            if words.len() >= MAX_WORDS {
                self.take_down(log, std::mem::take(&mut words), recorder).await?;
            }
        }
    }

    /// Records what was said, and how far the log is read.
    async fn take_down(&self, log: &mut Log, entries: Vec<Entry>, recorder: &Recorder) -> Result<(), Stopped> {
        if entries.is_empty() && log.offset == log.recorded {
            return Ok(());
        }
        let mut session = None;
        let mut said = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry {
                Entry::Session(name) => session = Some(name),
                Entry::Message(text) => said.push(HarnessWord::Message(self.content(text).await?)),
                Entry::Error(text) => said.push(HarnessWord::Message(self.content(text).await?)),
                Entry::ToolCalled { id, name, input } => {
                    said.push(HarnessWord::ToolCalled { tool_call: id, name, input });
                }
                Entry::ToolFinished { id, ok, output } => said.push(HarnessWord::ToolFinished {
                    tool_call: id,
                    outcome: if ok { ToolOutcome::Ok } else { ToolOutcome::Error },
                    output: self.content(output).await?,
                    omitted_bytes: 0,
                }),
            }
        }
        // Words that came without a line of their own (at the very end) still move the record on.
        let offset = log.offset.max(log.recorded + 1);
        let command = Command::RecordHarnessOutput { run: log.run, offset, session, said };
        recorder.record(command).await.map_err(|error| internal(format!("{error}.")))?;
        log.recorded = offset;
        Ok(())
    }

    async fn content(&self, text: String) -> Result<Content, Failed> {
        let mut content = Content::Inline(text);
        self.store(&mut content).await?;
        Ok(content)
    }

    /// What the program complained of, in a line.
    async fn complaint(&self, task: &Task, run: u32, sandbox: &dyn Sandbox) -> Option<String> {
        let errors = format!("{}.err", log_path(task, run));
        let id = exec_id(task, run, "complaint");
        let exec = Exec {
            id: id.clone(),
            argv: vec!["tail".to_owned(), "-c".to_owned(), MAX_COMPLAINT.to_string(), errors],
            env: Vec::new(),
            cwd: "/".to_owned(),
            stdin: Vec::new(),
            timeout: FILES_TIMEOUT,
        };
        let outcome = sandbox.exec(exec, None).await.ok()?;
        let _ = sandbox.forget(&id).await;
        let text = String::from_utf8_lossy(&outcome.head).into_owned();
        let line = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        Some(line.collect::<Vec<_>>().join(" ")).filter(|line| !line.is_empty())
    }
}

/// A program's log, and how far it is read.
struct Log {
    run: u32,
    path: String,
    tail_id: String,
    timeout: Duration,
    reader: Reader,
    /// The end of the last whole line.
    offset: u64,
    /// What the task's stream has of it.
    recorded: u64,
    /// The line that has not ended yet.
    partial: Vec<u8>,
    /// Its bytes, also those beyond [`MAX_LINE`].
    partial_bytes: u64,
}

impl Log {
    fn new(task: &Task, harness: &HarnessRun, path: String) -> Self {
        Self {
            run: harness.run,
            path,
            tail_id: exec_id(task, harness.run, "tail"),
            timeout: Duration::from_secs(task.spec.timeout_seconds),
            reader: Reader::new(task.spec.harness),
            offset: harness.offset,
            recorded: harness.offset,
            partial: Vec::new(),
            partial_bytes: 0,
        }
    }

    fn push(&mut self, mut chunk: &[u8], words: &mut Vec<Entry>) {
        while let Some(end) = chunk.iter().position(|&byte| byte == b'\n') {
            self.keep(&chunk[..end]);
            words.extend(self.reader.line(&self.partial));
            self.offset += self.partial_bytes + 1;
            self.forget_partial();
            chunk = &chunk[end + 1..];
        }
        self.keep(chunk);
    }

    /// What stands after the last line break is a line too once nothing more can come.
    fn end(&mut self, words: &mut Vec<Entry>) {
        if self.partial_bytes > 0 {
            words.extend(self.reader.line(&self.partial));
            self.offset += self.partial_bytes;
        }
        self.forget_partial();
    }

    fn forget_partial(&mut self) {
        self.partial.clear();
        self.partial_bytes = 0;
    }

    fn back_to(&mut self, recorded: u64) {
        (self.offset, self.recorded) = (recorded, recorded);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.partial_bytes += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use orchestra_events::task::event::Harness;

    use super::*;

    #[test]
    fn an_offset_ends_with_a_whole_line_however_the_bytes_arrive() {
        let text = b"one\n\ntwo words\nhalf";
        for size in 1..text.len() {
            let mut log = Log {
                run: 1,
                path: String::new(),
                tail_id: String::new(),
                timeout: Duration::ZERO,
                reader: Reader::new(Harness::Command),
                offset: 0,
                recorded: 0,
                partial: Vec::new(),
                partial_bytes: 0,
            };
            let mut words = Vec::new();
            for chunk in text.chunks(size) {
                log.push(chunk, &mut words);
            }
            assert_eq!(log.offset, 15, "in pieces of {size}");
            assert_eq!(log.partial, b"half");
            assert_eq!(words, [Entry::Message("one".into()), Entry::Message("two words".into())]);
        }
    }
}
