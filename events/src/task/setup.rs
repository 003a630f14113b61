//! The setup scripts of a task's repositories: whether they have to run before the machine starts, and what came of it.

use super::command::{Command, Refusal, followed_by, working};
use super::event::TaskEvent;
use super::state::{Attempt, Task};
use super::step::{Step, planned_step};

/// How far the setup of an attempt's workspace has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SetUp {
    /// Nobody has begun.
    #[default]
    NotBegun,
    /// The scripts run, or ran when somebody last heard of them. The name of what they make.
    Running(String),
    /// What they make lies under the workspace.
    Done,
}

impl Attempt {
    /// Whether a base commit of its repositories has a setup script.
    pub fn has_setup(&self) -> bool {
        self.repos.iter().any(|repo| repo.checkout.as_ref().is_some_and(|checkout| checkout.setup))
    }

    /// Whether a setup has to be done, or found, before the machine starts.
    pub fn needs_setup(&self) -> bool {
        self.has_setup() && self.set_up != SetUp::Done
    }
}

/// What a setup came to, as events.
pub(super) fn decide(task: &Task, command: Command) -> Result<Vec<TaskEvent>, Refusal> {
    if !matches!(planned_step(task), Step::SetUp(_)) {
        return Err(Refusal::MovedOn);
    }
    let attempt = working(task)?;
    match command {
        Command::RecordSetupStart { key, sandbox } => {
            // The process that began it was killed, and this one goes on with it.
            if attempt.set_up == SetUp::Running(key.clone()) {
                return Ok(Vec::new());
            }
            let with_script = |repo: &&super::delivery::RepoWork| repo.checkout.as_ref().is_some_and(|made| made.setup);
            let repos = attempt.repos.iter().filter(with_script).map(|repo| repo.target.repo.clone()).collect();
            Ok(vec![TaskEvent::SetupStarted { repos, key, sandbox }])
        }
        Command::RecordSetup { key, cached, exit_code, duration_ms, output, omitted_bytes, failed } => {
            let done = failed.is_none();
            let finished =
                TaskEvent::SetupFinished { key, cached, done, exit_code, duration_ms, output, omitted_bytes };
            let failed = failed.map(|(failure, then)| {
                followed_by(task, TaskEvent::StepFailed { failure: failure.clone() }, &failure, then)
            });
            Ok(std::iter::once(finished).chain(failed.into_iter().flatten()).collect())
        }
        _ => Err(Refusal::MovedOn),
    }
}

/// What the events of a setup, and its end by a failure, mean for the attempt.
pub(super) fn evolve(attempt: &mut Attempt, event: &TaskEvent) {
    match event {
        TaskEvent::SetupStarted { key, .. } => attempt.set_up = SetUp::Running(key.clone()),
        TaskEvent::SetupFinished { done, .. } => attempt.set_up = if *done { SetUp::Done } else { SetUp::NotBegun },
        TaskEvent::StepFailed { .. } if attempt.set_up != SetUp::Done => attempt.set_up = SetUp::NotBegun,
        _ => {}
    }
}
