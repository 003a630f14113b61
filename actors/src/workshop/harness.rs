//! The steps of a harness: run its program in the sandbox with the metered gateway on the loopback, and take its words
//! down as they come.
//!
//! The program writes to a file on the sandbox's disk, which is read by byte offset: whoever reads it next, after
//! a crash too, goes on where the record ends. Its exit code is noted and not believed.

use std::sync::Arc;
use std::time::Duration;

use orchestra_events::blob::{Content, INLINE_LIMIT};
use orchestra_events::task::command::{Command, Then};
use orchestra_events::task::event::{CredentialKind, Harness, SandboxEnd, ToolOutcome};
use orchestra_events::task::harness::{HarnessRun, HarnessWord, verdict};
use orchestra_events::task::state::Task;
use orchestra_events::{Failure, FailureCode, SandboxId, TaskId};
use orchestra_runtime::agent::harness::{Entry, MAX_LINE_BYTES, Prepared, Reader, Run, logged, placed, prepare};
use orchestra_runtime::gateway::Session;
use orchestra_runtime::sandbox::{Exec, ExecOutcome, Exit, Sandbox, SandboxError};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::meter::TaskMeter;
use super::{Failed, Workshop, agent};
use crate::task::Recorder;

/// Where the gateway listens on the sandbox's own loopback.
const GATEWAY_PORT: u16 = 7080;
/// Where the program's output goes, one file a run.
const LOG: &str = "/home/agent/.orchestra";
/// Words that are recorded in one append.
const MAX_WORDS: usize = 64;
/// How long a word may wait for others to be recorded with.
const GATHER: Duration = Duration::from_millis(100);
/// The wait before the log is opened again after it ended.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How long writing the program's configuration may take.
const FILES_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the gateway may take to settle what is under way when the run ends.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers may take that a program did not wait for.
const SIDE_CALLS: Duration = Duration::from_secs(20);
/// How long answers that are under way may take when the server ends. Less than it waits for its steps.
const LEAVE_PATIENCE: Duration = Duration::from_secs(12);
/// How much of an error log is shown to the user, in bytes.
const MAX_COMPLAINT: usize = 2_000;

/// Why a run came to nothing.
enum Stopped {
    /// The sandbox is gone.
    Lost(SandboxId),
    /// Something failed.
    Failed(Failed),
}

impl From<SandboxError> for Stopped {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Gone(sandbox) => Self::Lost(sandbox),
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
        self.egress.open(task, &sandbox, recorder).await?;
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
            ran = agent::before(Some(attempt.deadline), self.follow(id, task, &attempt.harness, &*sandbox, recorder)) => {
                Some(ran.unwrap_or_else(|| Err(Failed::new(agent::past_deadline(task)).into())))
            }
        };
        let cancelled = recorder.task().await.is_ok_and(|task| task.cancel_requested);
        match &ran {
            // What it asked on the side, and left: an answer costs less than what is set aside for it.
            Some(Ok(_)) => meter.quiet(SIDE_CALLS).await,
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
            Some(Err(Stopped::Lost(sandbox))) => {
                return Ok(Command::RecordSandboxStopped { sandbox, reason: SandboxEnd::Lost });
            }
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
        id: TaskId,
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
        let mut log = Log::new(id, task, harness, log);
        let main = sandbox.exec(exec, None);
        tokio::pin!(main);
        let outcome = loop {
            tokio::select! {
                biased;
                read = self.read_log(&mut log, sandbox, recorder, true) => {
                    read?;
                    // The file is gone, or the reader was killed: once more, and not without end at full speed.
                    tokio::time::sleep(READ_AGAIN).await;
                }
                outcome = &mut main => break outcome?,
            }
        };
        // What it wrote at the last: from where the record ends (the reading was broken off) to the end of the file.
        let recorded = recorder.task().await.map_err(|error| internal(format!("{error}.")))?;
        log.recorded = recorded.current().map_or(log.recorded, |attempt| attempt.harness.offset);
        self.read_log(&mut log, sandbox, recorder, false).await?;
        // Told once: the place that is recorded with it lies behind the end of the file.
        if log.recorded <= log.offset {
            let last = log.reader.end();
            self.take_down(&mut log, last, recorder).await?;
        }
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
        // The log is there before the program, so that it can be read from the first moment on; a run that goes on keeps it.
        let touch = ["/bin/sh", "-c", r#"mkdir -p "${0%/*}" && : >>"$0""#, log].map(str::to_owned).to_vec();
        let files = prepared.files.iter().map(|(path, content)| (placed(path), content.clone()));
        for (number, (argv, stdin)) in files.chain([(touch, Vec::new())]).enumerate() {
            let id = exec_id(task, run, &number.to_string());
            let cwd = "/".to_owned();
            let exec = Exec { id: id.clone(), argv, env: Vec::new(), cwd, stdin, timeout: FILES_TIMEOUT };
            let outcome = sandbox.exec(exec, None).await?;
            let _ = sandbox.forget(&id).await;
            if outcome.exit != Exit::Code(0) {
                let said = String::from_utf8_lossy(&outcome.head).into_owned();
                return Err(internal(format!("The configuration of the harness was not written: {said}")).into());
            }
        }
        Ok(())
    }

    /// Reads the log from its beginning, and records what is not recorded yet: only who has heard the whole of it knows
    /// which of a program's tools are running. With `live` it waits for more and never returns unless something
    /// fails; otherwise it stops at the end of the file.
    async fn read_log(
        &self,
        log: &mut Log,
        sandbox: &dyn Sandbox,
        recorder: &Recorder,
        live: bool,
    ) -> Result<(), Stopped> {
        log.begin();
        let mut argv = ["tail", "-c", "+1", &log.path].map(str::to_owned).to_vec();
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
        if entries.is_empty() && log.offset <= log.recorded {
            return Ok(());
        }
        let mut session = None;
        let mut said = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry {
                Entry::Session(name) => session = Some(name),
                Entry::Message(text) => said.push(HarnessWord::Message(self.content(log.task, text).await?)),
                Entry::Error(text) => said.push(HarnessWord::Message(self.content(log.task, text).await?)),
                Entry::ToolCalled { id, name, input } => {
                    said.push(HarnessWord::ToolCalled { tool_call: id, name, input: bounded_input(input) });
                }
                Entry::ToolFinished { id, ok, output } => said.push(HarnessWord::ToolFinished {
                    tool_call: id,
                    outcome: if ok { ToolOutcome::Ok } else { ToolOutcome::Error },
                    output: self.content(log.task, output).await?,
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

    async fn content(&self, task: TaskId, text: String) -> Result<Content, Failed> {
        let mut content = Content::Inline(text);
        self.store(task, &mut content).await?;
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

/// A tool's input as an event can hold it: one that is too large for that is its beginning, as text.
fn bounded_input(input: Value) -> Value {
    let text = input.to_string();
    if text.len() <= INLINE_LIMIT {
        return input;
    }
    Value::String(format!("{}…", &text[..text.floor_char_boundary(INLINE_LIMIT)]))
}

/// A program's log, and how far it is read.
struct Log {
    /// Whose words these are.
    task: TaskId,
    run: u32,
    harness: Harness,
    path: String,
    tail_id: String,
    timeout: Duration,
    reader: Reader,
    /// The end of the last whole line that was read.
    offset: u64,
    /// How much of it the task's stream has.
    recorded: u64,
    /// The line that has not ended yet.
    partial: Vec<u8>,
    /// Its bytes, also those beyond [`MAX_LINE_BYTES`].
    partial_bytes: u64,
}

impl Log {
    fn new(id: TaskId, task: &Task, run: &HarnessRun, path: String) -> Self {
        Self {
            task: id,
            run: run.run,
            harness: task.spec.harness,
            path,
            tail_id: exec_id(task, run.run, "tail"),
            timeout: Duration::from_secs(task.spec.timeout_seconds),
            reader: Reader::new(task.spec.harness),
            offset: 0,
            recorded: run.offset,
            partial: Vec::new(),
            partial_bytes: 0,
        }
    }

    /// Back to the first byte.
    fn begin(&mut self) {
        self.reader = Reader::new(self.harness);
        self.offset = 0;
        self.forget_partial();
    }

    fn push(&mut self, mut chunk: &[u8], words: &mut Vec<Entry>) {
        while let Some(end) = chunk.iter().position(|&byte| byte == b'\n') {
            self.keep(&chunk[..end]);
            self.line(1, words);
            chunk = &chunk[end + 1..];
        }
        self.keep(chunk);
    }

    /// What stands after the last line break is a line too once nothing more can come.
    fn end(&mut self, words: &mut Vec<Entry>) {
        if self.partial_bytes > 0 {
            self.line(0, words);
        }
    }

    fn line(&mut self, line_break: u64, words: &mut Vec<Entry>) {
        let said = self.reader.line(&self.partial);
        self.offset += self.partial_bytes + line_break;
        self.forget_partial();
        if self.offset > self.recorded {
            words.extend(said);
        }
    }

    fn forget_partial(&mut self) {
        self.partial.clear();
        self.partial_bytes = 0;
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = (MAX_LINE_BYTES + 1).saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.partial_bytes += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(recorded: u64) -> Log {
        Log {
            task: TaskId::from_uuid(uuid::Uuid::nil()),
            run: 1,
            harness: Harness::Command,
            path: String::new(),
            tail_id: String::new(),
            timeout: Duration::ZERO,
            reader: Reader::new(Harness::Command),
            offset: 0,
            recorded,
            partial: Vec::new(),
            partial_bytes: 0,
        }
    }

    #[test]
    fn what_is_recorded_is_not_told_again_however_the_bytes_arrive() {
        let text = b"one\n\ntwo words\nhalf";
        let said = |text: &str| Entry::Message(text.into());
        for (recorded, expected) in
            [(0, vec![said("one"), said("two words")]), (4, vec![said("two words")]), (15, vec![]), (20, vec![])]
        {
            for size in 1..text.len() {
                let (mut log, mut words) = (log(recorded), Vec::new());
                for chunk in text.chunks(size) {
                    log.push(chunk, &mut words);
                }
                assert_eq!((log.offset, &*log.partial), (15, &b"half"[..]), "in pieces of {size}");
                assert_eq!(words, expected, "in pieces of {size}, after {recorded}");
            }
        }
        let (mut log, mut words) = (log(0), Vec::new());
        log.push(b"half", &mut words);
        log.end(&mut words);
        assert_eq!((words, log.offset), (vec![said("half")], 4));
    }
}
