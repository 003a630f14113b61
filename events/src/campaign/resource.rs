//! The campaign as the outside sees it, folded event by event: small, however many repositories it has.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::{CampaignEvent, ChildOutcome};
use crate::envelope::{Envelope, Position, Revision};
use crate::id::CampaignId;

/// Where a campaign stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CampaignStatus {
    /// Tasks are being done, or wait for their turn.
    Running,
    /// No further task is begun until somebody says so.
    Paused,
    /// Every task has ended.
    Finished,
    /// It was cancelled; the last tasks may still be stopping.
    Cancelled,
}

impl CampaignStatus {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Running, Self::Paused, Self::Finished, Self::Cancelled];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How many of its tasks stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Not begun, or to be begun again.
    pub waiting: u32,
    /// Begun.
    pub running: u32,
    /// Ended well.
    pub succeeded: u32,
    /// Failed.
    pub failed: u32,
    /// Cancelled, or never begun.
    pub cancelled: u32,
}

impl Progress {
    /// All of them.
    pub const fn total(self) -> u32 {
        self.waiting + self.running + self.succeeded + self.failed + self.cancelled
    }

    /// Those that have come to an end.
    pub const fn ended(self) -> u32 {
        self.succeeded + self.failed + self.cancelled
    }

    fn moved(from: &mut u32, to: &mut u32, count: u32) {
        *from = from.saturating_sub(count);
        *to += count;
    }
}

/// A campaign as the outside sees it. What was asked for stands beside it, and never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CampaignResource {
    /// Its id.
    pub id: CampaignId,
    /// Where it stands.
    pub status: CampaignStatus,
    /// Why it stands there.
    pub reason: String,
    /// How far it is.
    pub progress: Progress,
    /// The repositories whose tasks are to be done again and have not begun again, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub again: Vec<u32>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its last task ended.
    pub finished_at: Option<Timestamp>,
    /// When its words were erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased_at: Option<Timestamp>,
    /// The last event folded in.
    pub revision: Revision,
    /// Its place in the log.
    pub position: Position,
}

impl CampaignResource {
    /// Folds one envelope in. `None` before `campaign-created`, and for streams that are no campaign's.
    pub fn fold(current: Option<Self>, envelope: &Envelope, event: &CampaignEvent) -> Option<Self> {
        let mut campaign = match (current, event) {
            (Some(campaign), _) => campaign,
            (None, CampaignEvent::CampaignCreated(spec)) => Self {
                id: envelope.stream.campaign_id()?,
                status: CampaignStatus::Running,
                reason: "created".to_owned(),
                progress: Progress {
                    waiting: u32::try_from(spec.repos.len()).unwrap_or(u32::MAX),
                    ..Progress::default()
                },
                again: Vec::new(),
                created_at: envelope.time,
                finished_at: None,
                erased_at: None,
                revision: envelope.revision,
                position: envelope.position,
            },
            (None, _) => return None,
        };
        campaign.revision = envelope.revision;
        campaign.position = envelope.position;
        campaign.apply(envelope.time, event);
        Some(campaign)
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_over(&self) -> bool {
        self.finished_at.is_some()
    }

    /// Where the task for a repository stands if its own stream does not say, or says what is over: `waiting` for its
    /// turn, or `cancelled` with the campaign. `begun`: it has a stream.
    pub fn instead_of_its_task(&self, index: u32, begun: bool) -> Option<&'static str> {
        let waits = !begun || self.again.contains(&index);
        waits.then_some(if self.is_over() { "cancelled" } else { "waiting" })
    }

    fn apply(&mut self, time: Timestamp, event: &CampaignEvent) {
        let progress = &mut self.progress;
        match event {
            CampaignEvent::CampaignCreated(_) => {}
            CampaignEvent::CampaignChildStarted { index, repo, .. } => {
                self.again.retain(|waiting| waiting != index);
                Progress::moved(&mut progress.waiting, &mut progress.running, 1);
                if self.status == CampaignStatus::Running {
                    self.reason = format!("working on {repo}");
                }
            }
            CampaignEvent::CampaignChildFinished { outcome, .. } => {
                let to = match outcome {
                    ChildOutcome::Succeeded => &mut progress.succeeded,
                    ChildOutcome::Failed { .. } => &mut progress.failed,
                    ChildOutcome::Cancelled => &mut progress.cancelled,
                };
                Progress::moved(&mut progress.running, to, 1);
            }
            CampaignEvent::CampaignPaused { reason } => {
                self.status = CampaignStatus::Paused;
                self.reason.clone_from(reason);
            }
            CampaignEvent::CampaignResumed {} => {
                self.status = CampaignStatus::Running;
                "resumed".clone_into(&mut self.reason);
            }
            CampaignEvent::CampaignCancelled { reason } => {
                self.status = CampaignStatus::Cancelled;
                self.reason = reason.clone().unwrap_or_else(|| "cancelled".to_owned());
            }
            CampaignEvent::CampaignRetryRequested { children } => {
                let count = u32::try_from(children.len()).unwrap_or(u32::MAX);
                Progress::moved(&mut progress.failed, &mut progress.waiting, count);
                self.again.extend(children);
                self.again.sort_unstable();
                self.again.dedup();
                self.finished_at = None;
                if self.status == CampaignStatus::Finished {
                    self.status = CampaignStatus::Running;
                }
                self.reason = format!("{count} to be done again");
            }
            CampaignEvent::CampaignFinished { succeeded, failed, cancelled } => {
                let (succeeded, failed, cancelled) = (*succeeded, *failed, *cancelled);
                *progress = Progress { succeeded, failed, cancelled, ..Progress::default() };
                self.finished_at = Some(time);
                if self.status != CampaignStatus::Cancelled {
                    self.status = CampaignStatus::Finished;
                    self.reason = format!("{succeeded} succeeded, {failed} failed, {cancelled} cancelled");
                }
            }
            CampaignEvent::CampaignContentErased { .. } => {
                if self.status == CampaignStatus::Cancelled {
                    // In the words of whoever cancelled it.
                    "cancelled".clone_into(&mut self.reason);
                }
                self.erased_at = Some(time);
            }
        }
    }
}
