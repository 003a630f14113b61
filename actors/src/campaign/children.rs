//! What a campaign does with its tasks: begins them, or begins them again, and follows them to their ends.
//!
//! Everything here may be done twice. A task's id follows from the campaign and the repository's place, so a second
//! start meets the stream of the first; a further run begins after the revision that `campaign-child-started` names,
//! and whoever finds the stream beyond it knows that it has begun.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;
use orchestra_events::campaign::event::OpenedPullRequest;
use orchestra_events::campaign::{Campaign, ChildOutcome, child_id};
use orchestra_events::subscription::Subscription;
use orchestra_events::task::TaskEvent;
use orchestra_events::task::command::Command as TaskCommand;
use orchestra_events::task::state::{Ending, Phase, Task};
use orchestra_events::{Actor as Who, CampaignId, Direction, Revision, StoreError, StreamName, TaskId};

use crate::intake::Intake;
use crate::journal;
use crate::ledger::{LedgerError, Ledgers};
use crate::supervisor::{TaskSupervisor, Tell};

/// The wait before something is tried again that the store or a full queue was in the way of.
const PAUSE: Duration = Duration::from_millis(250);

/// What every campaign works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Means {
    /// Lets tasks in.
    pub intake: Intake,
    /// The money.
    pub ledgers: Ledgers,
    /// The way to tasks that exist.
    pub tasks: Addr<TaskSupervisor>,
}

/// One run of one task of a campaign.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// The campaign.
    pub campaign: CampaignId,
    /// Which of its repositories.
    pub index: u32,
    /// The last event of the task's stream before this run.
    pub after: Option<Revision>,
}

impl Run {
    /// The task.
    pub fn task(self) -> TaskId {
        child_id(self.campaign, self.index)
    }
}

/// Who does what a campaign does.
pub(crate) fn who(campaign: CampaignId, team: &str) -> Who {
    Who { team: Some(team.to_owned()), ..Who::system(&campaign.to_string()) }
}

impl Means {
    /// The last revision of a task's stream; `None` when there is no such task.
    pub async fn head(&self, task: TaskId) -> Result<Option<Revision>, StoreError> {
        let last = self.intake.store.read_stream(&StreamName::task(task), None, Direction::Backwards, 1).await?;
        Ok(last.first().map(|envelope| envelope.revision))
    }

    /// Gives the campaign its account, before its first task begins.
    pub async fn open_account(&self, id: CampaignId, campaign: &Campaign) -> Result<(), LedgerError> {
        if campaign.has_begun() {
            return Ok(());
        }
        let spec = &campaign.spec;
        self.ledgers.open_campaign(&spec.template.team, id, spec.budget.into()).await
    }

    /// Sees to it that the run goes on. Answers how it ended, where it had ended before it could begin.
    async fn try_to_begin(&self, run: Run, campaign: &Campaign) -> Result<Option<ChildOutcome>, String> {
        let team = &campaign.spec.template.team;
        let (task, who) = (run.task(), who(run.campaign, team));
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let credentials = self.intake.vault.of_campaign(run.campaign);
        let loaded = journal::load(&*self.intake.store, task).await.map_err(|error| text(&error))?;
        let Some(loaded) = loaded else {
            let Some(spec) = campaign.spec.child(run.campaign, run.index) else {
                return Err("the campaign has no such repository".to_owned());
            };
            self.intake.admit(task, spec, credentials, &who).await.map_err(|error| text(&error))?;
            return Ok(None);
        };
        match &loaded.task.phase {
            // Somebody retried it by hand meanwhile, and it went well.
            Phase::Ended(Ending::Succeeded) if run.after == Some(loaded.revision) => Ok(Some(ChildOutcome::Succeeded)),
            Phase::Ended(_) if run.after == Some(loaded.revision) => {
                self.intake.vault.put(task, credentials).map_err(|error| text(&error))?;
                let tell = Tell { id: task, command: TaskCommand::Retry, who };
                self.tasks.send(tell).await.map_err(|error| text(&error))?.map_err(|error| text(&error))?;
                Ok(None)
            }
            Phase::Ended(_) => Ok(None),
            Phase::Queued | Phase::Claimed | Phase::AwaitingCredentials(..) | Phase::Working(_) => {
                // The server may have died between the task's first event and its place in the line.
                self.intake.queue(task, team.clone()).await.map_err(|error| text(&error))?;
                Ok(None)
            }
        }
    }

    /// The same, as often as it takes.
    pub async fn begin(&self, run: Run, campaign: &Campaign) -> Option<ChildOutcome> {
        loop {
            match self.try_to_begin(run, campaign).await {
                Ok(begun) => return begun,
                Err(error) => {
                    tracing::warn!(campaign = %run.campaign, task = %run.task(), error, "a task does not begin; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Answers how a run that has begun ended. `seen` hears of every pull request on the way.
    pub async fn follow<F: Future<Output = ()>>(
        &self,
        run: Run,
        seen: impl Fn(OpenedPullRequest) -> F,
    ) -> ChildOutcome {
        let store = Arc::clone(&self.intake.store);
        let mut events = Subscription::stream(store, StreamName::task(run.task()), run.after);
        loop {
            let envelope = match events.next().await {
                Ok(envelope) => envelope,
                Err(error) => {
                    tracing::warn!(campaign = %run.campaign, task = %run.task(), %error, "a task cannot be followed; trying again");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match TaskEvent::decode(&envelope) {
                Ok(Some(TaskEvent::PullRequestOpened { url, number, .. })) => {
                    seen(OpenedPullRequest { url, number, opened_at: envelope.time }).await;
                }
                Ok(Some(TaskEvent::Succeeded {})) => return ChildOutcome::Succeeded,
                Ok(Some(TaskEvent::Failed { failure, .. })) => return ChildOutcome::Failed { code: failure.code },
                Ok(Some(TaskEvent::Cancelled {})) => return ChildOutcome::Cancelled,
                Ok(_) => {}
                Err(error) => tracing::error!(task = %run.task(), %error, "an event of a task does not read"),
            }
        }
    }

    /// Asks a task that has begun to stop. One that is over has stopped.
    pub async fn cancel(&self, run: Run, team: &str) {
        let command = TaskCommand::Cancel { reason: Some("its campaign is cancelled".to_owned()) };
        loop {
            let tell = Tell { id: run.task(), command: command.clone(), who: who(run.campaign, team) };
            match self.tasks.send(tell).await {
                Ok(Ok(())) | Ok(Err(crate::task::AskError::Journal(journal::JournalError::Refused(_)))) | Err(_) => {
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(task = %run.task(), %error, "a task is not cancelled yet; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Whether a task waits for its caller's secrets, or may still need them.
pub(crate) fn may_need_secrets(task: &Task) -> bool {
    !matches!(task.phase, Phase::Ended(_))
}

/// How long until a time.
pub(crate) fn until(time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default()
}
