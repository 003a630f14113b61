//! What can be asked of a campaign, and what it answers.

use super::event::{CampaignEvent, CampaignSpec, ChildOutcome, OpenedPullRequest};
use super::state::{Campaign, Phase, evolve};
use crate::envelope::Revision;
use crate::id::TaskId;
use crate::task::event::ErasureReason;

/// Something asked of a campaign.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Begin it.
    Create(Box<CampaignSpec>),
    /// The task for this repository begins, or begins again.
    StartChild {
        /// Which of the repositories.
        index: u32,
        /// Its task.
        task: TaskId,
        /// The last event of the task's stream, if there is one.
        after: Option<Revision>,
    },
    /// The task has come to an end.
    RecordChild {
        /// Which of the repositories.
        index: u32,
        /// Its task.
        task: TaskId,
        /// Which run of it.
        run: u32,
        /// How it ended.
        outcome: ChildOutcome,
        /// The pull requests that this run opened.
        pull_requests: Vec<OpenedPullRequest>,
    },
    /// Begin no further task: something is in the way that a caller has to know of.
    Pause {
        /// What.
        reason: String,
    },
    /// Stop it.
    Cancel {
        /// Why.
        reason: Option<String>,
    },
    /// Do again what failed, and go on where it is paused.
    Retry,
    /// Forget its words.
    EraseContent {
        /// Why.
        reason: ErasureReason,
        /// How many events its stream has.
        events: u64,
    },
}

/// Why a command does nothing. Nothing is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such campaign.
    #[error("there is no such campaign")]
    NoSuchCampaign,
    /// There is one of that id already.
    #[error("the campaign exists already")]
    Exists,
    /// It is over.
    #[error("the campaign is over: it has {0}")]
    Ended(&'static str),
    /// Nothing failed, and it is not paused.
    #[error("no task of the campaign has failed, and it is not paused")]
    NothingToRetry,
    /// It is still going on.
    #[error("the campaign is still going on")]
    StillOpen,
    /// Its words are forgotten.
    #[error("what the campaign was asked for has been erased")]
    Erased,
    /// Its words are in the log itself.
    #[error(
        "the campaign is from before words were kept apart: they are in the hashes of the log itself and cannot be erased"
    )]
    Inseparable,
    /// It stands elsewhere by now.
    #[error("the campaign has moved on")]
    MovedOn,
}

/// The event that ends it, if these leave nothing to be done.
fn finished_by(campaign: &Campaign, events: &[CampaignEvent]) -> Option<CampaignEvent> {
    let after = events.iter().fold(Some(campaign.clone()), evolve)?;
    let (succeeded, failed, cancelled) = after.tally();
    (after.is_settled() && !after.finished).then_some(CampaignEvent::CampaignFinished { succeeded, failed, cancelled })
}

/// What the command makes happen, or why it does nothing.
pub fn decide(campaign: Option<&Campaign>, command: Command) -> Result<Vec<CampaignEvent>, Refusal> {
    let (campaign, command) = match (campaign, command) {
        (None, Command::Create(spec)) => return Ok(vec![CampaignEvent::CampaignCreated(spec)]),
        (Some(_), Command::Create(_)) => return Err(Refusal::Exists),
        (None, _) => return Err(Refusal::NoSuchCampaign),
        (Some(campaign), command) => (campaign, command),
    };
    match command {
        Command::Create(_) => Err(Refusal::Exists),
        Command::StartChild { index, task, after } => start(campaign, index, task, after),
        Command::RecordChild { index, task, run, outcome, pull_requests } => {
            let runs = |child: &&super::state::Child| matches!(child.phase, Phase::Running(_)) && child.run == run;
            campaign.child(index).filter(runs).ok_or(Refusal::MovedOn)?;
            let mut events = vec![CampaignEvent::CampaignChildFinished { index, task, run, outcome, pull_requests }];
            match finished_by(campaign, &events) {
                Some(finished) => events.push(finished),
                None => events.extend(too_many_failures(campaign, outcome)),
            }
            Ok(events)
        }
        Command::Pause { .. } if campaign.finished || campaign.cancelled => Err(Refusal::MovedOn),
        Command::Pause { .. } if campaign.paused.is_some() => Ok(Vec::new()),
        Command::Pause { reason } => Ok(vec![CampaignEvent::CampaignPaused { reason }]),
        Command::Cancel { .. } if campaign.cancelled => Ok(Vec::new()),
        Command::Cancel { .. } if campaign.finished => Err(Refusal::Ended("finished")),
        Command::Cancel { reason } => {
            let mut events = vec![CampaignEvent::CampaignCancelled { reason }];
            events.extend(finished_by(campaign, &events));
            Ok(events)
        }
        Command::Retry if campaign.erased => Err(Refusal::Erased),
        Command::Retry => retry(campaign),
        Command::EraseContent { .. } if !campaign.finished => Err(Refusal::StillOpen),
        Command::EraseContent { .. } if campaign.erased => Ok(Vec::new()),
        Command::EraseContent { reason, events } => Ok(vec![CampaignEvent::CampaignContentErased { reason, events }]),
    }
}

fn start(
    campaign: &Campaign,
    index: u32,
    task: TaskId,
    after: Option<Revision>,
) -> Result<Vec<CampaignEvent>, Refusal> {
    let child = campaign.child(index).ok_or(Refusal::MovedOn)?;
    let most = usize::try_from(campaign.spec.limits.concurrency).unwrap_or(usize::MAX);
    let stopped = campaign.cancelled || campaign.finished || campaign.paused.is_some();
    if child.phase != Phase::Waiting || stopped || campaign.running().count() >= most {
        return Err(Refusal::MovedOn);
    }
    let repo = usize::try_from(index).ok().and_then(|index| campaign.spec.repos.get(index));
    let repo = repo.ok_or(Refusal::MovedOn)?.repo.clone();
    Ok(vec![CampaignEvent::CampaignChildStarted { index, task, repo, run: child.run + 1, after }])
}

/// The pause that one more failure brings about.
fn too_many_failures(campaign: &Campaign, outcome: ChildOutcome) -> Option<CampaignEvent> {
    let ChildOutcome::Failed { code } = outcome else { return None };
    let failures = campaign.failures + 1;
    let reached = campaign.spec.limits.stop_after_failures.is_some_and(|most| failures >= most);
    if !reached || campaign.paused.is_some() || campaign.cancelled {
        return None;
    }
    let reason = match failures {
        1 => format!("a task failed ({code}); look at it, then retry the campaign"),
        _ => format!("{failures} tasks failed, the last one with {code}; look at them, then retry the campaign"),
    };
    Some(CampaignEvent::CampaignPaused { reason })
}

fn retry(campaign: &Campaign) -> Result<Vec<CampaignEvent>, Refusal> {
    if campaign.cancelled {
        return Err(Refusal::Ended("been cancelled"));
    }
    let children: Vec<u32> = campaign.failed().collect();
    if children.is_empty() && campaign.paused.is_none() {
        return Err(Refusal::NothingToRetry);
    }
    let requested = (!children.is_empty()).then_some(CampaignEvent::CampaignRetryRequested { children });
    let resumed = campaign.paused.is_some().then_some(CampaignEvent::CampaignResumed {});
    Ok(requested.into_iter().chain(resumed).collect())
}
