//! The step between clone and sandbox: what a repository's `.orchestra/setup.sh` makes is found, or made, and put under
//! the task's workspace.
//!
//! The script runs in a sandbox of its own, before the agent and without it, from the base commit. What it makes is kept
//! under a key over everything that goes into it; one task at a time makes what has a key, and the others wait for it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orchestra_events::blob::Content;
use orchestra_events::task::command::Command;
use orchestra_events::task::delivery::RepoWork;
use orchestra_events::task::setup::SetUp;
use orchestra_events::task::state::{Attempt, Task};
use orchestra_events::{Failure, FailureCode, SandboxId, TaskId};
use orchestra_runtime::agent::{End, render_output};
use orchestra_runtime::git::{Recipe, SETUP_SCRIPT, SetupScript};
use orchestra_runtime::sandbox::{
    Exec, ExecOutcome, Exit, Limits, Sandbox, SandboxError, SandboxSpec, SetupKey, SetupLimits, exclude_patterns,
};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::repository::ORIGIN;
use super::{Failed, Workshop};
use crate::task::Recorder;

/// Part of every key: raised when the same script would be run in another way.
const RECIPE_VERSION: u32 = 1;
/// How much longer than its scripts a setup's sandbox may live: for its start, and for what is asked of git afterwards.
const SLACK: Duration = Duration::from_secs(120);
/// How long git may take inside, once the scripts are done.
const TIDY_TIMEOUT: Duration = Duration::from_secs(120);
/// Most names that a script may leave which git does not ignore. Git holds every file against each of them.
const MAX_EXCLUDED: usize = 2_000;
/// Longest list of such names, in bytes.
const MAX_NAMES: u64 = 512 * 1024;
/// How much of the end of a script's output goes into the failure's sentence, in characters.
const MAX_QUOTED: usize = 600;
/// What every program says of a disk that takes nothing more. Free blocks tell less: ext4 keeps some back.
const DISK_FULL: &str = "No space left on device";
/// How much of the scripts' output is recorded, in bytes: less than would make it a blob.
const MAX_RECORDED: usize = 28 * 1024;
/// How long another task's failure is everybody's who has waited for it: whoever comes later tries anew.
const FAILURE_IS_SHARED: Duration = Duration::from_secs(60);

/// How setup scripts are run, and how much of what they make is kept.
#[derive(Debug, Clone)]
pub struct SetupRules {
    /// The longest that one script may run.
    pub timeout: Duration,
    /// Bounds of what is kept.
    pub limits: SetupLimits,
}

/// Everybody's way to the setups of this server.
pub struct Setups {
    rules: SetupRules,
    /// One turn for each key that somebody makes or waits for.
    turns: Mutex<HashMap<SetupKey, Arc<tokio::sync::Mutex<LastFailure>>>>,
}

/// How the last one to make it has failed, if it has, and when.
type LastFailure = Option<(Instant, Failure)>;

impl Setups {
    /// With nobody making anything.
    pub fn new(rules: SetupRules) -> Self {
        Self { rules, turns: Mutex::default() }
    }

    /// Waits until nobody else makes what has this key. Bounded by the time limits of the makers, and by the deadline of whoever
    /// waits.
    async fn turn(&self, key: &SetupKey) -> OwnedMutexGuard<LastFailure> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // As many as there are tasks at work.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(key.clone()).or_default())
        };
        turn.lock_owned().await
    }
}

/// The sandbox that an attempt's setup runs in. Derived like the attempt's own, so that the next process finds it and the
/// reaper knows whose it is.
pub fn setup_sandbox_of(id: TaskId, attempt: u32) -> SandboxId {
    /// Differs from the attempt's own sandbox in bits that no number of an attempt reaches.
    const SETUP: u128 = 1 << 48;
    let bits = super::sandbox_of(id, attempt).uuid().as_u128() ^ SETUP;
    SandboxId::from_uuid(Uuid::from_u128(bits))
}

/// What a task's setup consists of.
struct Plan {
    key: SetupKey,
    /// The folders of its repositories, in their order.
    folders: Vec<Folder>,
}

struct Folder {
    directory: String,
    /// It has a script.
    runs: bool,
    /// What is made is also used for other commits of it.
    narrowed: bool,
}

impl Folder {
    fn path(&self) -> String {
        format!("/workspace/{}", self.directory)
    }

    /// The script's place in words.
    fn script(&self) -> String {
        Path::new(&self.directory).join(SETUP_SCRIPT).display().to_string()
    }
}

/// What running the scripts came to.
struct Ran {
    output: Vec<String>,
    omitted_bytes: u64,
    exit_code: Option<i32>,
    failure: Option<Failure>,
}

fn internal(message: impl Into<String>) -> Failed {
    Failed::new(Failure::new(FailureCode::Internal, message))
}

fn not_made(message: impl Into<String>) -> Failure {
    Failure::new(FailureCode::SetupFailed, message)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Workshop {
    /// Finds what the setup scripts make, or makes it, and puts it under the workspace.
    pub(super) async fn set_up(
        &self,
        id: TaskId,
        task: &Task,
        workspace: SandboxId,
        recorder: &Recorder,
    ) -> Result<Command, Failed> {
        let started = Instant::now();
        self.disk_is_there(workspace).await?;
        // Mounted, also after the machine was started anew.
        self.sandboxes.create_volume(workspace, self.limits.disk_bytes).await?;
        // Held until the setup's own sandbox holds it.
        let image = self.provide_image(task).await?;
        let plan = self.plan(task).await?;
        let finished = |cached: bool, ran: Ran, failed| Command::RecordSetup {
            key: plan.key.short().to_owned(),
            cached,
            exit_code: ran.exit_code,
            duration_ms: milliseconds(started.elapsed()),
            output: (!ran.output.is_empty()).then(|| Content::Inline(bounded(&ran.output.join("\n")))),
            omitted_bytes: ran.omitted_bytes,
            failed,
        };
        let nothing_ran = || Ran { output: Vec::new(), omitted_bytes: 0, exit_code: None, failure: None };
        let found = || {
            metrics::counter!("orchestra_setups_total", "cache" => "hit").increment(1);
            Ok(finished(true, nothing_ran(), None))
        };
        if self.sandboxes.use_setup(workspace, &plan.key).await? {
            self.end_setup(id, task).await;
            return found();
        }
        let waiting_since = Instant::now();
        let mut turn = self.setups.turn(&plan.key).await;
        if self.sandboxes.use_setup(workspace, &plan.key).await? {
            self.end_setup(id, task).await;
            return found();
        }
        let failed = |failure: Failure| {
            let then = self.then(task, &failure, None);
            Some((failure, then))
        };
        if let Some((when, failure)) = &*turn
            && *when >= waiting_since
            && when.elapsed() < FAILURE_IS_SHARED
        {
            let failure = failure.clone();
            return Ok(finished(false, nothing_ran(), failed(failure)));
        }
        *turn = None;
        metrics::counter!("orchestra_setups_total", "cache" => "miss").increment(1);
        let made = self.make_setup(id, task, workspace, &plan, recorder).await;
        drop(image);
        metrics::histogram!("orchestra_setup_seconds").record(started.elapsed().as_secs_f64());
        let ran = match made {
            Ok(ran) => ran,
            Err(failed) => {
                self.end_setup(id, task).await;
                return Err(failed);
            }
        };
        if let Some(failure) = &ran.failure {
            self.end_setup(id, task).await;
            if !failure.retryable {
                *turn = Some((Instant::now(), failure.clone()));
            }
            let failure = failed(failure.clone());
            return Ok(finished(false, ran, failure));
        }
        if !self.sandboxes.use_setup(workspace, &plan.key).await? {
            return Err(internal("What the setup script has made is gone already."));
        }
        self.trim_setups_beside();
        Ok(finished(false, ran, None))
    }

    /// What goes into this task's setup, from its trusted repositories.
    async fn plan(&self, task: &Task) -> Result<Plan, Failed> {
        let repos = task.current().map(|attempt| attempt.repos.as_slice()).unwrap_or_default();
        let mut read = Vec::with_capacity(repos.len());
        for (place, work) in repos.iter().enumerate() {
            read.push(self.recipe(place, work).await?);
        }
        // A repository without a script counts whole, unless the others say what their scripts read.
        let all_narrowed = read.iter().flat_map(|(_, recipe)| recipe).all(|recipe| recipe.narrowed);
        let image = self.sandboxes.image_identity(&task.spec.image).await?;
        let (mut parts, mut folders) = (Vec::new(), Vec::new());
        for (work, (origin, recipe)) in repos.iter().zip(read) {
            let Some(checkout) = &work.checkout else { continue };
            let narrowed = recipe.as_ref().map_or(all_narrowed, |recipe| recipe.narrowed);
            let inputs = match &recipe {
                Some(recipe) => Some(recipe.inputs.clone()),
                None if all_narrowed => None,
                None => Some(checkout.commit.as_str().to_owned()),
            };
            parts.push(json!({
                "origin": origin,
                // What was made on another branch never serves this one.
                "base": checkout.base,
                "folder": work.target.directory,
                "script": recipe.as_ref().map(|recipe| &recipe.script),
                "inputs": inputs,
            }));
            folders.push(Folder { directory: work.target.directory.clone(), runs: recipe.is_some(), narrowed });
        }
        let recipe = json!({
            "version": RECIPE_VERSION,
            "image": image,
            "team": task.spec.team,
            // Where it may connect to: another answer can make another setup.
            "egress": task.spec.egress,
            "repositories": parts,
        });
        Ok(Plan { key: SetupKey::of(recipe.to_string().as_bytes()), folders })
    }

    /// What a repository is known by for ever, and its setup script if it has one.
    async fn recipe(&self, place: usize, work: &RepoWork) -> Result<(String, Option<Recipe>), Failed> {
        let checkout = work.checkout.as_ref().ok_or_else(|| internal("A repository is not checked out."))?;
        let repository = self.repository(checkout.sandbox, place);
        let origin = tokio::fs::read_to_string(repository.join(ORIGIN)).await;
        let origin =
            origin.map_err(|error| internal(format!("It is not noted where the repository is from: {error}.")))?;
        let script = self.git.setup_script(&repository, &checkout.commit).await;
        match script.map_err(|error| self.git_failed(&error))? {
            SetupScript::Absent => Ok((origin, None)),
            SetupScript::Usable(recipe) => Ok((origin, Some(recipe))),
            SetupScript::Unusable(reason) => Err(Failed::new(not_made(format!("In {}, {reason}.", work.target.repo)))),
        }
    }

    /// Runs the scripts in a sandbox of their own, or goes on with those that a process before has begun, and keeps
    /// what they have made.
    async fn make_setup(
        &self,
        id: TaskId,
        task: &Task,
        workspace: SandboxId,
        plan: &Plan,
        recorder: &Recorder,
    ) -> Result<Ran, Failed> {
        let sandbox = setup_sandbox_of(id, task.attempt);
        let begun = task.current().is_some_and(|attempt| attempt.set_up == SetUp::Running(plan.key.short().to_owned()));
        let start = Command::RecordSetupStart { key: plan.key.short().to_owned(), sandbox };
        recorder.record(start).await.map_err(|error| internal(format!("{error}.")))?;
        let attached = if begun { self.sandboxes.attach(sandbox).await? } else { None };
        let running = match attached {
            Some(running) => running,
            None => self.start_setup(task, workspace, sandbox, plan).await?,
        };
        self.egress.open(task, &running, recorder).await?;
        let mut ran = self.run_scripts(&*running, plan).await;
        if ran.failure.is_none() {
            match self.tidy(&*running, plan).await {
                Ok(excluded) => {
                    self.egress.close(sandbox).await;
                    self.sandboxes.keep_setup(sandbox, &plan.key, excluded).await?;
                }
                Err(failure) => ran.failure = Some(failure),
            }
        }
        Ok(ran)
    }

    /// A sandbox like the task's own: the same image, limits and files, and a disk of its own.
    async fn start_setup(
        &self,
        task: &Task,
        workspace: SandboxId,
        sandbox: SandboxId,
        plan: &Plan,
    ) -> Result<Arc<dyn Sandbox>, Failed> {
        // What a first try left is not trusted to be whole.
        self.sandboxes.destroy(sandbox).await?;
        let scripts = u32::try_from(plan.folders.iter().filter(|folder| folder.runs).count()).unwrap_or(u32::MAX);
        let limits = Limits {
            timeout: self.setups.rules.timeout.saturating_mul(scripts).saturating_add(SLACK),
            ..self.limits.clone()
        };
        self.sandboxes.create_setup(sandbox, workspace, limits.disk_bytes).await?;
        let spec = SandboxSpec {
            id: sandbox,
            image: task.spec.image.clone(),
            limits,
            env: self.egress.rules().variables(task),
            hostname: "sandbox".to_owned(),
        };
        Ok(self.sandboxes.start(&spec).await?)
    }

    async fn run_scripts(&self, sandbox: &dyn Sandbox, plan: &Plan) -> Ran {
        let mut ran = Ran { output: Vec::new(), omitted_bytes: 0, exit_code: None, failure: None };
        let timeout = self.setups.rules.timeout;
        for (place, folder) in plan.folders.iter().enumerate().filter(|(_, folder)| folder.runs) {
            let script = folder.script();
            let request = Exec {
                // One id for each script: the next process joins the run that has begun.
                id: format!("setup-{place}"),
                argv: vec!["bash".to_owned(), SETUP_SCRIPT.to_owned()],
                env: Vec::new(),
                cwd: folder.path(),
                stdin: Vec::new(),
                timeout,
            };
            let outcome = match sandbox.exec(request, None).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    ran.failure = Some(lost(&script, &error));
                    return ran;
                }
            };
            let Some(end) = end_of(&outcome, timeout) else {
                ran.failure = Some(not_made(format!("The connection to {script} broke.")).with_retryable(true));
                return ran;
            };
            let (text, omitted) = render_output(&outcome.head, &outcome.tail, outcome.total_bytes, end);
            let quoted = end_of_text(&text);
            ran.omitted_bytes += omitted;
            ran.exit_code = match end {
                End::Exited(code) => Some(code),
                End::Signalled(_) | End::TimedOut(_) | End::OutOfMemory => None,
            };
            let full = text.contains(DISK_FULL);
            ran.output.push(text);
            let failure = match end {
                End::Exited(0) => continue,
                End::Exited(code) => not_made(format!("{script} ended with exit code {code}. {quoted}")),
                End::Signalled(signal) => not_made(format!("{script} was ended by signal {signal}. {quoted}")),
                End::TimedOut(limit) => {
                    let message = format!("{script} did not end within {} s. {quoted}", limit.as_secs());
                    not_made(message)
                        .with_retryable(true)
                        .with_hint("Raise sandbox.setup_timeout, or have the script do less.")
                }
                End::OutOfMemory => not_made(format!("{script} ran out of memory. {quoted}"))
                    .with_hint("Raise sandbox.memory, or have the script do less at once."),
            };
            ran.failure = Some(if full {
                failure.with_hint("The disk was full: raise sandbox.disk, or have the script leave less.")
            } else {
                failure
            });
            return ran;
        }
        ran
    }

    /// Asks the git inside which names are to be passed over from now on, and takes away what is not to lie under other
    /// commits.
    async fn tidy(&self, sandbox: &dyn Sandbox, plan: &Plan) -> Result<BTreeMap<String, Vec<String>>, Failure> {
        let mut excluded = BTreeMap::new();
        for folder in &plan.folders {
            let mut patterns = None;
            // Each file by its name; where there are too many, whole folders.
            for more in [&[][..], &["--directory", "--no-empty-directory"][..]] {
                let names = self.names(sandbox, folder, more).await?;
                patterns = names.and_then(|names| exclude_patterns(&names, MAX_EXCLUDED));
                if patterns.is_some() {
                    break;
                }
            }
            let Some(patterns) = patterns else {
                let message = format!(
                    "{} leaves more than {MAX_EXCLUDED} files and folders that git does not ignore.",
                    folder.script()
                );
                let hint = "Name what it makes in .gitignore, so that git passes over it.";
                return Err(not_made(message).with_hint(hint));
            };
            excluded.insert(folder.directory.clone(), patterns);
        }
        for folder in plan.folders.iter().filter(|folder| folder.narrowed) {
            // A file of this commit must not come up again where a later one has removed it.
            let remove = "set -o pipefail; git ls-files -z | xargs -0 -r rm -f --";
            let request = inside("tidy", folder, &["bash", "--noprofile", "--norc", "-c", remove]);
            let outcome = sandbox.exec(request, None).await.map_err(|error| lost(&folder.script(), &error))?;
            if outcome.exit != Exit::Code(0) {
                return Err(no_git(folder));
            }
        }
        Ok(excluded)
    }

    /// The names in a work tree that git neither has nor ignores; `None` when the list is too long.
    async fn names(&self, sandbox: &dyn Sandbox, folder: &Folder, more: &[&str]) -> Result<Option<Vec<u8>>, Failure> {
        let mut argv = vec!["git", "-c", "core.fsmonitor=false", "ls-files", "-z", "--others", "--exclude-standard"];
        argv.extend(more);
        let piped = sandbox.exec_piped(inside("names", folder, &argv)).await;
        let mut piped = piped.map_err(|error| lost(&folder.script(), &error))?;
        let mut names = Vec::new();
        let read = (&mut piped).take(MAX_NAMES + 1).read_to_end(&mut names).await;
        if read.is_err() {
            return Err(no_git(folder));
        }
        if names.len() as u64 > MAX_NAMES {
            return Ok(None);
        }
        match piped.finish().await {
            Ok(outcome) if outcome.exit == Exit::Code(0) => Ok(Some(names)),
            Ok(_) => Err(no_git(folder)),
            Err(error) => Err(lost(&folder.script(), &error)),
        }
    }

    /// Removes the sandbox of this attempt's setup, if there is one.
    pub(super) async fn end_setup(&self, id: TaskId, task: &Task) {
        if !task.current().is_some_and(Attempt::has_setup) {
            return;
        }
        let sandbox = setup_sandbox_of(id, task.attempt);
        self.egress.close(sandbox).await;
        match tokio::time::timeout(super::TEARDOWN_TIMEOUT, self.sandboxes.destroy(sandbox)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%sandbox, %error, "a setup's sandbox is left to the reaper"),
            Err(_) => tracing::warn!(%sandbox, "a setup's sandbox is left to the reaper: its removal takes too long"),
        }
    }

    /// Removes what the limits do not allow, and nothing that a sandbox lies on. Answers how much.
    pub(crate) async fn trim_setups(&self) -> usize {
        trimmed(self.sandboxes.trim_setups(self.setups.rules.limits).await)
    }

    /// Makes room while the task goes on.
    fn trim_setups_beside(&self) {
        let (sandboxes, limits) = (Arc::clone(&self.sandboxes), self.setups.rules.limits);
        drop(tokio::spawn(async move { trimmed(sandboxes.trim_setups(limits).await) }));
    }
}

fn trimmed(trimmed: Result<usize, SandboxError>) -> usize {
    trimmed.unwrap_or_else(|error| {
        tracing::warn!(%error, "the kept setups are trimmed another time");
        0
    })
}

fn inside(what: &str, folder: &Folder, argv: &[&str]) -> Exec {
    Exec {
        id: format!("{what}-{}", Uuid::new_v4()),
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        cwd: folder.path(),
        stdin: Vec::new(),
        timeout: TIDY_TIMEOUT,
    }
}

fn no_git(folder: &Folder) -> Failure {
    not_made(format!("After {}, git does not work in the repository any more.", folder.script()))
        .with_hint("Have the script leave .git alone.")
}

/// The sandbox went while something ran in it.
fn lost(script: &str, error: &SandboxError) -> Failure {
    match error {
        SandboxError::OutOfMemory(_) => not_made(format!("{script} ran out of memory, and its sandbox was stopped."))
            .with_hint("Raise sandbox.memory, or have the script do less at once."),
        SandboxError::Refused { detail, .. } => not_made(format!("The sandbox did not run {script}: {detail}.")),
        SandboxError::Gone(_)
        | SandboxError::TimedOut(_)
        | SandboxError::Unresponsive { .. }
        | SandboxError::Image(_)
        | SandboxError::StartFailed { .. }
        | SandboxError::DiskFull(_)
        | SandboxError::NotRemoved { .. }
        | SandboxError::Host { .. } => {
            not_made(format!("The sandbox of {script} was lost: {error}.")).with_retryable(true)
        }
    }
}

fn end_of(outcome: &ExecOutcome, limit: Duration) -> Option<End> {
    match outcome.exit {
        Exit::Code(code) => Some(End::Exited(code)),
        Exit::Signal(signal) => Some(End::Signalled(signal)),
        Exit::TimedOut => Some(End::TimedOut(limit)),
        Exit::OutOfMemory => Some(End::OutOfMemory),
        Exit::Lost => None,
    }
}

/// The end of an output, for a sentence.
fn end_of_text(text: &str) -> String {
    // The last line is the note about how it ended, which the sentence says already.
    let text = text.rsplit_once('\n').map_or("", |(text, _)| text).trim();
    let skip = text.chars().count().saturating_sub(MAX_QUOTED);
    let end: String = text.chars().skip(skip).collect();
    let dots = if skip > 0 { "…" } else { "" };
    if end.is_empty() { "It printed nothing.".to_owned() } else { format!("Its output ends: {dots}{end}") }
}

/// Both ends of a text that is too long to be recorded whole.
fn bounded(text: &str) -> String {
    if text.len() <= MAX_RECORDED {
        return text.to_owned();
    }
    let (head, tail) = (text.floor_char_boundary(MAX_RECORDED / 4), text.len() - MAX_RECORDED * 3 / 4);
    format!("{}\n[…]\n{}", &text[..head], &text[text.ceil_char_boundary(tail)..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setups_sandbox_is_nobody_elses() {
        let task = TaskId::from_uuid(Uuid::from_u128(7));
        let mut ids: Vec<_> =
            (0..40).flat_map(|n| [super::super::sandbox_of(task, n), setup_sandbox_of(task, n)]).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 80);
    }

    #[test]
    fn what_is_quoted_is_the_end_and_what_is_recorded_has_both() {
        assert_eq!(end_of_text("(no output)\n[exit code 1]"), "Its output ends: (no output)");
        let long = format!("{}the end\n[exit code 1]", "é".repeat(1_000));
        assert!(end_of_text(&long).ends_with("the end") && end_of_text(&long).contains('…'));
        assert!(end_of_text(&long).chars().count() < MAX_QUOTED + 30);
        let text = format!("begin{}end", "é".repeat(MAX_RECORDED));
        let short = bounded(&text);
        assert!(short.starts_with("begin") && short.ends_with("end") && short.len() < MAX_RECORDED + 20);
        assert_eq!(bounded("short"), "short");
    }
}
