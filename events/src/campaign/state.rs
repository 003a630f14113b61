//! What is known about a campaign: the fold of its events. Total: whatever happened is taken in.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::event::{CampaignEvent, CampaignSpec, ChildOutcome};
use crate::envelope::Revision;

/// The time over which pull requests are counted.
pub const WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// A campaign as its events tell it.
#[derive(Debug, Clone, PartialEq)]
pub struct Campaign {
    /// What was asked for.
    pub spec: Arc<CampaignSpec>,
    /// Its tasks, in the order of the repositories.
    pub children: Vec<Child>,
    /// Why no further task is begun, while that is so.
    pub paused: Option<String>,
    /// A caller wants it stopped.
    pub cancelled: bool,
    /// Nothing runs and nothing waits.
    pub finished: bool,
    /// Tasks that failed since it was created, or since those that failed were last done again.
    pub failures: u32,
    /// When the tasks that have ended opened their pull requests, as far back from the last one as matters.
    pub opened: Vec<Timestamp>,
    /// Its words are forgotten: nothing of it can be done again.
    pub erased: bool,
}

/// A task of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// Where it stands.
    pub phase: Phase,
    /// How often it was begun.
    pub run: u32,
}

/// Where a task of a campaign stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is to be begun, or begun again.
    Waiting,
    /// It was begun; what its stream says after this revision (`None`: all of it) is about this run.
    Running(Option<Revision>),
    /// It has come to an end.
    Ended(ChildOutcome),
}

impl Campaign {
    fn new(spec: &CampaignSpec) -> Self {
        let children = vec![Child { phase: Phase::Waiting, run: 0 }; spec.repos.len()];
        Self {
            spec: Arc::new(spec.clone()),
            children,
            paused: None,
            cancelled: false,
            finished: false,
            failures: 0,
            opened: Vec::new(),
            erased: false,
        }
    }

    /// The task for one of the repositories.
    pub fn child(&self, index: u32) -> Option<&Child> {
        self.children.get(usize::try_from(index).ok()?)
    }

    fn child_mut(&mut self, index: u32) -> Option<&mut Child> {
        self.children.get_mut(usize::try_from(index).ok()?)
    }

    /// The tasks with their places, in the order of the repositories.
    pub fn indexed(&self) -> impl Iterator<Item = (u32, &Child)> {
        (0..).zip(&self.children)
    }

    /// The tasks that run: which, which run of it, and after which revision of their streams it began.
    pub fn running(&self) -> impl Iterator<Item = (u32, u32, Option<Revision>)> {
        self.indexed().filter_map(|(index, child)| match child.phase {
            Phase::Running(after) => Some((index, child.run, after)),
            Phase::Waiting | Phase::Ended(_) => None,
        })
    }

    /// The tasks that failed.
    pub fn failed(&self) -> impl Iterator<Item = u32> {
        let failed = |child: &Child| matches!(child.phase, Phase::Ended(ChildOutcome::Failed { .. }));
        self.indexed().filter(move |(_, child)| failed(child)).map(|(index, _)| index)
    }

    /// Whether any of its tasks was ever begun.
    pub fn has_begun(&self) -> bool {
        self.children.iter().any(|child| child.run > 0)
    }

    /// Whether nothing runs, and nothing waits that will still be begun.
    pub fn is_settled(&self) -> bool {
        self.children.iter().all(|child| match child.phase {
            Phase::Waiting => self.cancelled,
            Phase::Running(_) => false,
            Phase::Ended(_) => true,
        })
    }

    /// How many succeeded, failed and were cancelled, those that were never begun among the last.
    pub fn tally(&self) -> (u32, u32, u32) {
        self.children.iter().fold((0, 0, 0), |(succeeded, failed, cancelled), child| match child.phase {
            Phase::Ended(ChildOutcome::Succeeded) => (succeeded + 1, failed, cancelled),
            Phase::Ended(ChildOutcome::Failed { .. }) => (succeeded, failed + 1, cancelled),
            Phase::Ended(ChildOutcome::Cancelled) | Phase::Waiting | Phase::Running(_) => {
                (succeeded, failed, cancelled + 1)
            }
        })
    }
}

/// Takes one event in. `None` before `campaign-created`.
pub fn evolve(campaign: Option<Campaign>, event: &CampaignEvent) -> Option<Campaign> {
    let Some(mut campaign) = campaign else {
        return match event {
            CampaignEvent::CampaignCreated(spec) => Some(Campaign::new(spec)),
            // A stream that does not begin with `campaign-created` is no campaign; the decider never writes one.
            _ => None,
        };
    };
    match event {
        CampaignEvent::CampaignCreated(_) => {}
        CampaignEvent::CampaignChildStarted { index, run, after, .. } => {
            if let Some(child) = campaign.child_mut(*index) {
                *child = Child { phase: Phase::Running(*after), run: *run };
            }
        }
        CampaignEvent::CampaignChildFinished { index, outcome, pull_requests, .. } => {
            if let Some(child) = campaign.child_mut(*index) {
                child.phase = Phase::Ended(*outcome);
            }
            if let ChildOutcome::Failed { .. } = outcome {
                campaign.failures += 1;
            }
            campaign.opened.extend(pull_requests.iter().map(|opened| opened.opened_at));
            if let Some(last) = campaign.opened.iter().max().copied() {
                campaign.opened.retain(|opened| last.duration_since(*opened) <= WINDOW);
            }
        }
        CampaignEvent::CampaignPaused { reason } => campaign.paused = Some(reason.clone()),
        CampaignEvent::CampaignResumed {} => {
            campaign.paused = None;
            campaign.failures = 0;
        }
        CampaignEvent::CampaignCancelled { .. } => campaign.cancelled = true,
        CampaignEvent::CampaignRetryRequested { children } => {
            campaign.finished = false;
            campaign.failures = 0;
            for index in children {
                if let Some(child) = campaign.child_mut(*index) {
                    child.phase = Phase::Waiting;
                }
            }
        }
        CampaignEvent::CampaignFinished { .. } => {
            campaign.finished = true;
            campaign.paused = None;
        }
        CampaignEvent::CampaignContentErased { .. } => campaign.erased = true,
    }
    Some(campaign)
}
