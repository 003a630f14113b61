//! How each step of a task is done: the hands that belong to the plan in `orchestra_events::task::step`.
//!
//! Every step is safe to repeat: it looks first whether its effect took place. None of them touches the event stream;
//! each returns the command that says what came of it.

mod agent;
mod delivery;
pub mod egress;
mod harness;
mod meter;
pub mod money;
mod repository;
mod setup;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::blob::BlobStore;
use orchestra_events::task::Step;
use orchestra_events::task::command::{Command, Then};
use orchestra_events::task::delivery::is_committed;
use orchestra_events::task::event::{CredentialKind, SandboxEnd, Workspace};
use orchestra_events::task::state::{Attempt, Ending, Task};
use orchestra_events::{Failure, FailureCode, SandboxId, TaskId};
use orchestra_runtime::forge::Forges;
use orchestra_runtime::gateway::Gateway;
use orchestra_runtime::git::{BranchPolicies, Git};
use orchestra_runtime::image::{Lease, Supply};
use orchestra_runtime::model::{ModelClient, Models};
use orchestra_runtime::sandbox::{Limits, Sandbox, SandboxError, SandboxSpec, Sandboxes};
use orchestra_runtime::texts::Texts;
use orchestra_runtime::vault::Vault;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::egress::EgressDesk;
use crate::allowed::AllowedModels;
use crate::calls::CallMarks;
use crate::erasure::ErasureMarks;
use crate::images::ImageRules;
use crate::ledger::Ledgers;
use crate::mirror::Mirrors;
use crate::policy::RetryPolicy;
use crate::speech::Speech;
use crate::task::Recorder;
use crate::usage::{self, Totals};

pub use repository::CommitRules;
pub(crate) use repository::append_diff;
pub use setup::{SetupRules, Setups, setup_sandbox_of};

/// Everything the steps are done with.
pub struct Workshop {
    /// Where large content lies.
    pub blobs: Arc<dyn BlobStore>,
    /// The machines.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// Import, commit, push.
    pub git: Arc<Git>,
    /// Repositories that were fetched before.
    pub mirrors: Mirrors,
    /// What repositories' setup scripts have made.
    pub setups: Setups,
    /// Where repositories live.
    pub forges: Forges,
    /// How the agents' work becomes commits.
    pub commits: CommitRules,
    /// What pull requests and commits say.
    pub texts: Texts,
    /// Where people reach the dashboard.
    pub public_url: Option<String>,
    /// Names and prices of models.
    pub models: Arc<Models>,
    /// Asks them.
    pub model_client: Arc<dyn ModelClient>,
    /// The callers' secrets.
    pub vault: Arc<Vault>,
    /// The teams' money.
    pub ledgers: Ledgers,
    /// What stands between harnesses and their models.
    pub gateway: Arc<Gateway>,
    /// Which models the teams may use.
    pub allowed_models: AllowedModels,
    /// The sandboxes' way out.
    pub egress: EgressDesk,
    /// Which branches the teams' tasks may start from and push to.
    pub branches: BranchPolicies,
    /// Which calls were sent.
    pub calls: CallMarks,
    /// What is to be forgotten.
    pub erasing: ErasureMarks,
    /// What is being said.
    pub speech: Speech,
    /// Where images come from.
    pub images: Arc<Supply>,
    /// Which images the teams may use.
    pub image_rules: ImageRules,
    /// What follows failures.
    pub policy: RetryPolicy,
    /// What a sandbox may use; the timeout comes with the task.
    pub limits: Limits,
    /// What all sandboxes use together.
    pub totals: Totals,
    /// The name of this node.
    pub node: String,
    /// Bare repositories of running tasks, one folder a sandbox.
    pub repositories: PathBuf,
}

/// The sandbox of an attempt. Derived, so that whoever repeats a step finds what the first try made.
pub fn sandbox_of(id: TaskId, attempt: u32) -> SandboxId {
    // Version 8 is for values of one's own making; attempts differ in the low bits, tasks in the rest.
    let bits = id.uuid().as_u128() ^ (u128::from(attempt) << 1);
    SandboxId::from_uuid(uuid::Builder::from_u128(bits).with_version(uuid::Version::Custom).into_uuid())
}

/// The sandbox whose workspace the attempt has: its own, or that of an attempt before it that it went on in.
fn workspace_of(id: TaskId, task: &Task) -> SandboxId {
    task.current().and_then(Attempt::workspace).unwrap_or_else(|| sandbox_of(id, task.attempt))
}

/// Uniform over all of `u64`.
fn random() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    // Version and variant bits are fixed in either half, at different places.
    high.rotate_left(32) ^ low
}

/// The longest wait that a forge may ask for once everything is committed. Beyond, the task fails and keeps its commits.
const LONGEST_DELIVERY_WAIT: Duration = Duration::from_secs(15 * 60);

/// Longest wait for a sandbox, or what a task left on disk, to be cleared away.
const TEARDOWN_TIMEOUT: Duration = Duration::from_secs(60);

impl Workshop {
    /// Does one step. `None`: it was cancelled, or has nothing to say.
    pub async fn perform(
        &self,
        id: TaskId,
        task: &Arc<Task>,
        step: Step,
        recorder: Recorder,
        cancel: CancellationToken,
    ) -> Option<Command> {
        // What was sent before a crash is booked first, with or without a key: it holds back other people's money.
        let sent = match &step {
            Step::AskModel(open) => self.calls.is_marked(id, open.call).await.unwrap_or(false),
            Step::RunHarness => {
                if let Err(failed) = self.abandon_lost(id, task, &recorder).await {
                    return Some(failed.command(self, task));
                }
                false
            }
            _ => false,
        };
        if !sent && let Some(missing) = self.missing(id, task, &step) {
            if let Step::AskModel(open) = &step {
                // Nobody can say how long that takes; meanwhile the money is somebody else's.
                let charge = self.end_call(task, open, None).await;
                let failure =
                    Failure::new(FailureCode::ModelAuth, "The model's key is gone: it is only kept in memory.");
                return Some(Command::RecordModelFailure {
                    call: open.call,
                    charge,
                    failure,
                    then: Then::AskFor(missing),
                });
            }
            return Some(Command::RequireCredentials { missing, failure: None });
        }
        let done = match step {
            Step::WaitForClaim => return Some(Command::Claim { node: self.node.clone() }),
            Step::Begin => {
                return Some(Command::Begin { now: Timestamp::now(), delivers: self.has_kept_work(task) });
            }
            Step::ReserveModel => self.reserve(id, task).await,
            Step::AskModel(open) => return Some(self.ask(id, task, &open, cancel).await),
            Step::AbandonModel(open) => return Some(self.abandon(id, task, &open).await),
            Step::CallTool(tool) => return Some(Command::CallTool { tool_call: tool.id }),
            Step::RunTool(tool) => {
                let run = async {
                    self.keep_egress(task, &recorder).await?;
                    self.run_tool(task, tool).await
                };
                self.unless(cancel, task, run).await?
            }
            Step::InterruptTool(tool) => return Some(agent::interrupted(tool)),
            Step::Clone(repo) => self.unless(cancel, task, self.clone_repository(id, task, repo)).await?,
            Step::SetUp(workspace) => self.unless(cancel, task, self.set_up(id, task, workspace, &recorder)).await?,
            Step::StartSandbox(sandbox) => {
                self.unless(cancel, task, self.start_sandbox(task, sandbox, &recorder)).await?
            }
            Step::BeginHarness(_) => return Some(Command::BeginHarness),
            Step::RunHarness => {
                let ran = self.run_harness(id, task, &recorder, &cancel).await;
                if cancel.is_cancelled() {
                    return None;
                }
                ran
            }
            Step::Commit(repo) => self.unless(cancel, task, self.commit(id, task, repo)).await?,
            Step::StopSandbox(sandbox, reason) => {
                // Before anything of it is gone; recorded with its end, so that a step that is repeated repeats nothing.
                let last = usage::last(self, sandbox, &self.limits(task), &recorder).await.map(Box::new);
                let stopped = self.stop_sandbox(sandbox, reason).await;
                stopped.map(|_| Command::RecordSandboxEnd { sandbox, reason, last })
            }
            Step::Push(repo) => self.push(id, task, repo).await,
            Step::OpenPullRequest(repo) => self.open_pull_request(id, task, repo).await,
            Step::LinkPullRequest(repo) => self.link_pull_request(id, task, repo).await,
            Step::Report(repo, ending) => self.report(id, task, repo, ending.as_ref()).await,
            Step::NextAttempt(failure, workspace) => {
                return Some(self.next_attempt(id, task, failure, workspace).await);
            }
            Step::Finish(ending) => return Some(self.finish(id, task, ending).await),
            Step::WaitForCredentials | Step::WaitUntil(_) | Step::Rest => return None,
        };
        Some(done.unwrap_or_else(|failed| failed.command(self, task)))
    }

    /// The work's outcome, `None` when it was cancelled, a failure when the attempt's deadline passed.
    async fn unless(
        &self,
        cancel: CancellationToken,
        task: &Task,
        work: impl Future<Output = Result<Command, Failed>>,
    ) -> Option<Result<Command, Failed>> {
        let deadline = task.current().map(|attempt| attempt.deadline);
        tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            done = agent::before(deadline, work) => {
                Some(done.unwrap_or_else(|| Err(Failed::new(agent::past_deadline(task)))))
            }
        }
    }

    /// Secrets that this step needs and only the caller has.
    fn missing(&self, id: TaskId, task: &Task, step: &Step) -> Option<Vec<CredentialKind>> {
        let model = || {
            let resolved = self.models.resolve(&task.spec.model);
            // A caller who brought a key does not mean the operator to pay for what is left of the task.
            let callers = task.spec.caller_brings_model_key
                || resolved.is_ok_and(|model| self.models.needs_callers_key(&model.provider));
            (callers && self.vault.model(id).is_none()).then_some(CredentialKind::Model)
        };
        let git = || (task.spec.caller_brings_git_token && self.vault.git(id).is_none()).then_some(CredentialKind::Git);
        let missing: Vec<_> = match step {
            // What is only to be delivered needs no model.
            Step::Begin if self.has_kept_work(task) => git().into_iter().collect(),
            Step::Begin => model().into_iter().chain(git()).collect(),
            Step::ReserveModel | Step::AskModel(_) | Step::BeginHarness(_) | Step::RunHarness => {
                model().into_iter().collect()
            }
            Step::Clone(_)
            | Step::Push(_)
            | Step::OpenPullRequest(_)
            | Step::LinkPullRequest(_)
            | Step::Report(_, None) => git().into_iter().collect(),
            Step::WaitForClaim
            | Step::WaitForCredentials
            | Step::WaitUntil(_)
            | Step::SetUp(_)
            | Step::StartSandbox(_)
            | Step::AbandonModel(_)
            | Step::CallTool(_)
            | Step::RunTool(_)
            | Step::InterruptTool(_)
            | Step::Commit(_)
            | Step::Report(_, Some(_))
            | Step::StopSandbox(..)
            | Step::NextAttempt(..)
            | Step::Finish(_)
            | Step::Rest => Vec::new(),
        };
        (!missing.is_empty()).then_some(missing)
    }

    /// Whether the vault has all of these.
    pub(crate) fn holds(&self, id: TaskId, kinds: &[CredentialKind]) -> bool {
        let held = self.vault.has(id);
        kinds.iter().all(|kind| match kind {
            CredentialKind::Model => held.model,
            CredentialKind::Git => held.git,
        })
    }

    /// The limits of this task's sandbox.
    pub(crate) fn limits(&self, task: &Task) -> Limits {
        Limits { timeout: Duration::from_secs(task.spec.timeout_seconds), ..self.limits.clone() }
    }

    /// This task's sandbox. The same from the making of its disk to its start, or one that was started ahead is of no use.
    fn sandbox_spec(&self, task: &Task, id: SandboxId) -> SandboxSpec {
        let env = self.egress.rules().variables(task);
        SandboxSpec { env, ..SandboxSpec::of_a_task(id, task.spec.image.clone(), self.limits(task)) }
    }

    /// What follows a failure of this task's step.
    fn then(&self, task: &Task, failure: &Failure, asked: Option<Duration>) -> Then {
        let mut policy = self.policy;
        if task.current().is_some_and(|attempt| is_committed(&attempt.repos)) {
            // Nothing runs any more, and what is committed is worth a longer wait than an agent at work.
            policy.longest_asked = policy.longest_asked.max(LONGEST_DELIVERY_WAIT);
        }
        policy.after(failure, task.failures + 1, asked, Timestamp::now(), random())
    }

    async fn start_sandbox(&self, task: &Task, id: SandboxId, recorder: &Recorder) -> Result<Command, Failed> {
        let mut started = std::time::Instant::now();
        let mut image_digest = None;
        let sandbox = match self.sandboxes.attach(id).await? {
            Some(running) => running,
            None => {
                self.disk_is_there(id).await?;
                // Held until the sandbox itself holds it. What has to be pulled first is not counted as the start.
                let image = self.provide_image(task).await?;
                image_digest = Some(image.image.manifest.identity());
                started = std::time::Instant::now();
                let spec = self.sandbox_spec(task, id);
                self.sandboxes.prepare(&spec).await?;
                let sandbox = self.sandboxes.start(&spec).await?;
                drop(image);
                sandbox
            }
        };
        // Before the first command, so that nothing in it can have taken the port.
        self.egress.open(task, &sandbox, recorder).await?;
        let start_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        metrics::histogram!("orchestra_sandbox_start_seconds").record(started.elapsed().as_secs_f64());
        Ok(Command::RecordSandbox { sandbox: sandbox.id(), start_ms, image_digest })
    }

    /// The task's image, pulled if it is not there, for as long as the answer lives.
    async fn provide_image(&self, task: &Task) -> Result<Lease, Failed> {
        let lease = self.images.provide(&task.spec.image).await.map_err(|error| {
            let wait = error.asked_wait();
            Failed { wait, ..Failed::from(SandboxError::from(error)) }
        })?;
        // Where nobody has looked into the image yet, that is not for this thread to do.
        let (rules, name) = (self.egress.rules().clone(), task.spec.image.clone());
        let _ = tokio::task::spawn_blocking(move || rules.usual_variables(&name)).await;
        Ok(lease)
    }

    /// The checkout is on the sandbox's disk. Where that is gone (a log put back from a back-up), an empty one in its place
    /// would show the agent a repository without files.
    async fn disk_is_there(&self, id: SandboxId) -> Result<(), Failed> {
        if self.sandboxes.list().await?.contains(&id) {
            return Ok(());
        }
        let failure = Failure::new(
            FailureCode::SandboxStartFailed,
            "The sandbox's disk is gone, and the work of this attempt with it.",
        );
        let hint = "Retry the task: it begins again from the repository.";
        Err(Failed::new(failure.with_retryable(false).with_hint(hint)))
    }

    async fn stop_sandbox(&self, sandbox: SandboxId, reason: SandboxEnd) -> Result<Command, Failed> {
        self.egress.close(sandbox).await;
        match tokio::time::timeout(TEARDOWN_TIMEOUT, self.sandboxes.destroy(sandbox)).await {
            Ok(Ok(())) => {}
            // The task's fate does not hang on it: the reaper comes by again until nothing is left.
            Ok(Err(error)) => tracing::warn!(%sandbox, %error, "the sandbox is left to the reaper"),
            Err(_) => tracing::warn!(%sandbox, "the sandbox is left to the reaper: its removal takes too long"),
        }
        Ok(Command::RecordSandboxStopped { sandbox, reason })
    }

    /// Clears away what the attempt left on disk, forgets its secrets, and says how it ended.
    async fn finish(&self, id: TaskId, task: &Task, ending: Ending) -> Command {
        let committed = task.current().is_some_and(|attempt| is_committed(&attempt.repos));
        if matches!(ending, Ending::Failed(_)) && committed {
            // What was made is not lost with the push: a retry delivers it.
            let sandbox = workspace_of(id, task);
            if let Err(error) = self.stop_sandbox(sandbox, SandboxEnd::Failed).await {
                tracing::warn!(%sandbox, failure = %error.failure, "the sandbox is left to the reaper");
            }
            self.keep_repositories(sandbox).await;
            self.calls.clear_all(id).await;
        } else {
            self.clear_away(id, task).await;
        }
        self.vault.forget(id);
        let refund = self.refund(id, task, &ending).await;
        Command::Finish { ending, refund }
    }

    /// Leaves an attempt that failed: with everything it had on disk, or for the next one to go on in.
    async fn next_attempt(&self, id: TaskId, task: &Task, failure: Failure, workspace: Workspace) -> Command {
        if workspace == Workspace::Fresh {
            self.clear_away(id, task).await;
        } else {
            self.end_setup(id, task).await;
        }
        let refund = self.refund(id, task, &Ending::Failed(failure)).await;
        let (until, wait_ms) = self.policy.before_attempt(task.attempt + 1, Timestamp::now(), random());
        Command::NextAttempt { refund, until, wait_ms }
    }

    /// Removes what an attempt has left on disk.
    async fn clear_away(&self, id: TaskId, task: &Task) {
        let sandbox = workspace_of(id, task);
        if let Err(error) = self.stop_sandbox(sandbox, SandboxEnd::Finished).await {
            tracing::warn!(%sandbox, failure = %error.failure, "the sandbox is left to the reaper");
        }
        self.end_setup(id, task).await;
        self.forget_repositories(sandbox).await;
        self.calls.clear_all(id).await;
    }

    /// Removes everything of a sandbox that nobody owns.
    pub(crate) async fn remove(&self, sandbox: SandboxId) {
        self.egress.close(sandbox).await;
        match tokio::time::timeout(TEARDOWN_TIMEOUT, self.sandboxes.destroy(sandbox)).await {
            Ok(Ok(())) => self.reap_repositories(sandbox).await,
            Ok(Err(error)) => tracing::warn!(%sandbox, %error, "a sandbox resists its removal"),
            Err(_) => tracing::warn!(%sandbox, "a sandbox's removal takes too long"),
        }
    }

    /// The running sandbox of the attempt, or the command that says it is lost.
    async fn sandbox(&self, task: &Task) -> Result<Arc<dyn Sandbox>, Result<Command, Failed>> {
        let Some(id) = task.current().and_then(|attempt| attempt.sandbox) else {
            return Err(Err(Failed::new(Failure::new(FailureCode::Internal, "The attempt has no sandbox."))));
        };
        match self.sandboxes.attach(id).await {
            Ok(Some(sandbox)) => Ok(sandbox),
            Ok(None) => Err(Ok(Command::RecordSandboxStopped { sandbox: id, reason: SandboxEnd::Lost })),
            Err(error) => Err(Err(error.into())),
        }
    }
}

/// A step that failed.
struct Failed {
    failure: Failure,
    asks_for: Option<CredentialKind>,
    /// What the other side asks to wait.
    wait: Option<Duration>,
}

impl Failed {
    fn new(failure: Failure) -> Self {
        Self { failure, asks_for: None, wait: None }
    }

    /// A forge's refusal. Where another token is the remedy, the task waits for one and its work is kept.
    fn by_forge(failure: Failure, wait: Option<Duration>) -> Self {
        let about_token = matches!(failure.code, FailureCode::GitAuth | FailureCode::GitTokenScope);
        Self { failure, asks_for: about_token.then_some(CredentialKind::Git), wait }
    }

    fn command(self, workshop: &Workshop, task: &Task) -> Command {
        let then = match self.asks_for {
            Some(kind) => Then::AskFor(vec![kind]),
            None => workshop.then(task, &self.failure, self.wait),
        };
        Command::RecordFailure { failure: self.failure, then }
    }
}

impl From<SandboxError> for Failed {
    fn from(error: SandboxError) -> Self {
        Self::new(error.failure())
    }
}
