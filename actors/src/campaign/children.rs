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

use orchestra_events::ledger::{Amount, Cap, Quote, Refusal as Refused, Remaining};
use orchestra_events::subscription::Subscription;
use orchestra_events::task::TaskEvent;
use orchestra_events::task::command::Command as TaskCommand;
use orchestra_events::task::state::{Ending, Phase, Task};
use orchestra_events::{Actor as Who, CampaignId, Direction, FailureCode, Revision, StoreError, StreamName, TaskId};
use tokio::sync::watch;

use crate::admission;
use crate::intake::Intake;
use crate::journal::{self, JournalError};
use crate::ledger::LedgerError;
use crate::service::ServiceError;
use crate::supervisor::{TaskSupervisor, Tell};
use crate::task::AskError;
use crate::workshop::Workshop;
use crate::workshop::money::opening_quote;

/// The wait before something is tried again that the store or a full queue was in the way of.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest such wait of a task that does not begin; the first is doubled with each try.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What every campaign works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Means {
    /// Lets tasks in.
    pub intake: Intake,
    /// The money, and what models cost.
    pub workshop: Arc<Workshop>,
    /// The way to tasks that exist.
    pub tasks: Addr<TaskSupervisor>,
}

/// Why a run did not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NotBegun {
    /// It never will.
    ForGood(String),
    /// Something is in the way that passes.
    ForNow(String),
}

impl From<StoreError> for NotBegun {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        match error {
            StoreError::BadBatch => Self::ForGood(detail),
            StoreError::WrongExpectedRevision { .. }
            | StoreError::DuplicateEvent { .. }
            | StoreError::Overloaded
            | StoreError::Closed
            | StoreError::Failed(_) => Self::ForNow(detail),
        }
    }
}

impl From<JournalError> for NotBegun {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Store(error) => error.into(),
            JournalError::Damaged(detail) => Self::ForGood(detail),
            JournalError::Refused(refusal) => Self::ForNow(refusal.to_string()),
        }
    }
}

impl From<ServiceError> for NotBegun {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Store(error) => error.into(),
            // An event that does not serialise will not.
            ServiceError::Internal(detail) => Self::ForGood(detail),
            other => Self::ForNow(other.to_string()),
        }
    }
}

/// What is left of a campaign's cap for one more task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Enough for its first call.
    Free,
    /// Enough, if the calls that are under way cost less than is set aside for them.
    Reserved,
    /// Too little, however those turn out.
    UsedUp,
}

impl Room {
    /// What a cap leaves for a call of this price.
    pub fn of(quote: &Quote, cap: Cap, spent: Amount, reserved: Amount) -> Self {
        let fits = |used: Amount| {
            let left = Remaining {
                nano_usd: cap.max_nano_usd.map(|cap| cap.saturating_sub(used.nano_usd)),
                tokens: cap.max_tokens.map(|cap| cap.saturating_sub(used.tokens)),
            };
            quote.fit(left).is_some()
        };

        match (fits(spent + reserved), fits(spent)) {
            (true, _) => Self::Free,
            (false, true) => Self::Reserved,
            (false, false) => Self::UsedUp,
        }
    }
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
        self.workshop.ledgers.open_campaign(&spec.template.team, id, spec.budget.into()).await
    }

    /// Whether one more task may begin: what is left of the shared cap is enough for its first call.
    pub async fn room(&self, id: CampaignId, campaign: &Campaign) -> Result<Room, LedgerError> {
        let template = &campaign.spec.template;
        let account = self.workshop.ledgers.campaign(&template.team, id).await?;
        let (cap, spent, reserved) = account.ok_or(LedgerError::Refused(Refused::NoSuchCampaign(id)))?;
        // A model that is not known any more is for the task to say.
        let Ok(model) = self.workshop.models.resolve(&template.model) else { return Ok(Room::Free) };
        Ok(Room::of(&opening_quote(&model, template.harness, &template.task), cap, spent, reserved))
    }

    /// Sees to it that the run goes on. Answers how it ended, where it had ended before it could begin.
    async fn try_to_begin(&self, run: Run, campaign: &Campaign) -> Result<Option<ChildOutcome>, NotBegun> {
        let team = &campaign.spec.template.team;
        let (task, who) = (run.task(), who(run.campaign, team));
        let Some(loaded) = journal::load(&*self.intake.store, task).await? else {
            let Some(spec) = campaign.spec.child(run.campaign, run.index) else {
                return Err(NotBegun::ForGood("the campaign has no such repository".to_owned()));
            };
            let credentials = self.intake.vault.of_campaign(run.campaign);
            // It counts to whoever asked for the campaign.
            let creator = admission::creator(&*self.intake.store, run.campaign).await?;
            let admitted = self.intake.admit(task, spec, credentials, &who, creator.as_ref()).await;
            // What the campaign was given meanwhile, too.
            self.lend(run.campaign, task);
            return match admitted? {
                true => Ok(None),
                false => Err(NotBegun::ForNow("the task has come to be meanwhile".to_owned())),
            };
        };
        match &loaded.state.phase {
            // Somebody retried it by hand meanwhile, and it went well.
            Phase::Ended(Ending::Succeeded) if run.after == Some(loaded.revision) => Ok(Some(ChildOutcome::Succeeded)),
            Phase::Ended(_) if run.after == Some(loaded.revision) => {
                if let Err(error) = self.intake.vault.put(task, self.intake.vault.of_campaign(run.campaign)) {
                    tracing::warn!(%task, %error, "the task's credentials are not kept");
                }
                let tell = Tell { id: task, command: TaskCommand::Retry, who };
                match self.tasks.send(tell).await {
                    Ok(Ok(())) => Ok(None),
                    Ok(Err(AskError::Journal(JournalError::Damaged(detail)))) => Err(NotBegun::ForGood(detail)),
                    Ok(Err(error)) => Err(NotBegun::ForNow(error.to_string())),
                    Err(error) => Err(NotBegun::ForNow(error.to_string())),
                }
            }
            Phase::Ended(_) => Ok(None),
            Phase::Queued | Phase::Claimed | Phase::AwaitingCredentials(..) | Phase::Working(_) => {
                // The server may have died between the task's first event and its place in the line, or the answer to
                // the append may have been lost, and its secrets with it.
                self.lend(run.campaign, task);
                self.intake.queue(task, team.clone()).await?;
                Ok(None)
            }
        }
    }

    /// Gives a task what it lacks of its campaign's secrets.
    fn lend(&self, campaign: CampaignId, task: TaskId) {
        let given = self.intake.vault.of_campaign(campaign);
        if let Err(error) = self.intake.vault.put_missing(task, given) {
            // The task asks for them.
            tracing::warn!(%task, %error, "the task's credentials are not kept");
        }
    }

    /// The same, as often as it takes, or until the campaign is cancelled and the run has not begun.
    pub async fn begin(
        &self,
        run: Run,
        campaign: &Campaign,
        mut stopped: watch::Receiver<bool>,
    ) -> Option<ChildOutcome> {
        let (id, task) = (run.campaign, run.task());
        let mut pause = PAUSE;
        loop {
            let stop = *stopped.borrow_and_update();
            let not_begun = match stop {
                // Its stream stands where it stood: there is nothing to be stopped.
                true => match self.head(task).await {
                    Ok(head) if head == run.after => return Some(ChildOutcome::Cancelled),
                    Ok(_) => return None,
                    Err(error) => NotBegun::from(error),
                },
                false => match self.try_to_begin(run, campaign).await {
                    Ok(begun) => return begun,
                    Err(error) => error,
                },
            };
            match not_begun {
                NotBegun::ForGood(error) => {
                    tracing::error!(campaign = %id, %task, error, "a task cannot begin");
                    return Some(ChildOutcome::Failed { code: FailureCode::Internal });
                }
                NotBegun::ForNow(error) => {
                    tracing::warn!(campaign = %id, %task, error, "a task does not begin; again in {pause:?}");
                }
            }
            // Nobody who could stop it any more: then only time passes.
            let cancelled = async {
                if stopped.changed().await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = pause.saturating_mul(2).min(LONGEST_PAUSE),
                () = cancelled => pause = PAUSE,
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
                Ok(Ok(())) | Ok(Err(AskError::Journal(JournalError::Refused(_)))) | Err(_) => {
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

#[cfg(test)]
mod tests {
    use orchestra_events::NanoUsd;

    use super::*;

    #[test]
    fn what_passes_is_told_from_what_stays() {
        let damaged = NotBegun::from(JournalError::Damaged("x".to_owned()));
        assert_eq!(damaged, NotBegun::ForGood("x".to_owned()));
        assert!(matches!(NotBegun::from(StoreError::BadBatch), NotBegun::ForGood(_)));
        assert!(matches!(NotBegun::from(StoreError::Overloaded), NotBegun::ForNow(_)));
        assert!(matches!(NotBegun::from(ServiceError::Busy), NotBegun::ForNow(_)));
    }

    #[test]
    fn a_cap_that_is_spent_is_told_from_one_that_is_only_set_aside() {
        // A call of 10 tokens of input and 1 to 100 of output, each for a nano-dollar.
        let quote = Quote {
            input_tokens: 10,
            input_picos: 10_000,
            output_picos: 1_000,
            replies: 1,
            wanted_output: 100,
            least_output: 5,
        };
        let amount = |both: u32| Amount { nano_usd: NanoUsd::from_nanos(both.into()), tokens: both.into() };
        let dollars = Cap { max_nano_usd: Some(NanoUsd::from_nanos(100)), max_tokens: None };
        let tokens = Cap { max_nano_usd: None, max_tokens: Some(100) };
        for cap in [dollars, tokens] {
            let room = |spent, reserved| Room::of(&quote, cap, amount(spent), amount(reserved));
            assert_eq!(room(0, 0), Room::Free);
            assert_eq!(room(45, 40), Room::Free);
            assert_eq!(room(45, 41), Room::Reserved);
            assert_eq!(room(86, 0), Room::UsedUp, "not the whole cap, but less than a call needs");
            assert_eq!(room(120, 0), Room::UsedUp);
        }
        assert_eq!(Room::of(&quote, Cap::default(), amount(1_000), amount(1_000)), Room::Free);
    }
}
