//! What can be asked of a webhook, and what comes of it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::event::{Attempt, DisabledWhy, MAX_RECORDED, WebhookEvent, WebhookSpec};
use super::retry::Patience;
use super::state::{MAX_REPLAYS, Status, Webhook};
use crate::envelope::Position;

/// The longest that messages are signed with two secrets.
pub const MAX_OVERLAP: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long they are when nobody says.
pub const DEFAULT_OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);

/// The status by which a receiver wants to be told nothing any more (RFC 9110, 15.5.11).
pub const GONE: u16 = 410;

/// Something asked of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Tell somebody what happens after this.
    Create {
        /// What it is for.
        spec: WebhookSpec,
        /// The head of the log.
        after: Position,
        /// The hash of the request, when it carried an idempotency key.
        request_hash: Option<String>,
    },
    /// Be for this. The team stays what it was.
    Change(WebhookSpec),
    /// Sign with another secret, and for a while with both.
    Rotate {
        /// When.
        now: Timestamp,
        /// For how long.
        overlap: Duration,
    },
    /// Write down what was tried.
    Record {
        /// In the order in which the answers came; at most [`MAX_RECORDED`].
        attempts: Vec<Attempt>,
        /// How far the log has been gone through.
        through: Position,
        /// And the replay that comes first.
        replayed_through: Option<Position>,
        /// How long the receiver is borne with.
        patience: Patience,
    },
    /// Send nothing any more.
    Disable,
    /// Go on where it ended.
    Enable {
        /// When.
        now: Timestamp,
    },
    /// Go.
    Remove,
    /// Send a part of the log again.
    Replay {
        /// The first position.
        from: Position,
        /// The last one.
        to: Position,
    },
}

/// Why a command does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such webhook, or not any more.
    #[error("there is no such webhook")]
    NoSuchWebhook,
    /// There is one of that id already.
    #[error("the webhook exists already")]
    Exists,
    /// More replays than can wait.
    #[error("{MAX_REPLAYS} replays wait already; let them end first")]
    TooManyReplays,
    /// It sends nothing.
    #[error("the webhook is disabled; enable it first")]
    Disabled,
    /// The end lies before the beginning.
    #[error("a replay begins before it ends")]
    EmptyReplay,
    /// More attempts than one event holds.
    #[error("at most {MAX_RECORDED} attempts are recorded at once")]
    TooManyAttempts,
}

/// What the command makes happen, or why it does nothing.
pub fn decide(webhook: Option<&Webhook>, command: Command) -> Result<Vec<WebhookEvent>, Refusal> {
    let webhook = match (webhook, command) {
        (None, Command::Create { spec, after, request_hash }) => {
            return Ok(vec![WebhookEvent::WebhookCreated { spec, after, request_hash }]);
        }
        (Some(_), Command::Create { .. }) => return Err(Refusal::Exists),
        (None, _) => return Err(Refusal::NoSuchWebhook),
        (Some(webhook), _) if webhook.status == Status::Removed => return Err(Refusal::NoSuchWebhook),
        (Some(webhook), command) => (webhook, command),
    };
    let (webhook, command) = webhook;
    Ok(match command {
        Command::Create { .. } => return Err(Refusal::Exists),
        Command::Change(spec) => {
            let spec = WebhookSpec { team: webhook.spec.team.clone(), ..spec };
            if spec == webhook.spec { Vec::new() } else { vec![WebhookEvent::WebhookChanged(spec)] }
        }
        Command::Rotate { now, overlap } => {
            let overlap = SignedDuration::try_from(overlap.min(MAX_OVERLAP)).unwrap_or_default();
            let previous_until = now.checked_add(overlap).unwrap_or(now);
            vec![WebhookEvent::WebhookSecretRotated { version: webhook.secret.saturating_add(1), previous_until }]
        }
        Command::Record { attempts, through, replayed_through, patience } => {
            record(webhook, attempts, through, replayed_through, patience)?
        }
        Command::Disable => match webhook.status {
            Status::Enabled => vec![WebhookEvent::WebhookDisabled { why: DisabledWhy::ByHand }],
            Status::Disabled(_) | Status::Removed => Vec::new(),
        },
        Command::Enable { now } => match webhook.status {
            Status::Disabled(_) => vec![WebhookEvent::WebhookEnabled { at: now }],
            Status::Enabled | Status::Removed => Vec::new(),
        },
        Command::Remove => vec![WebhookEvent::WebhookRemoved {}],
        Command::Replay { from, to } => {
            if matches!(webhook.status, Status::Disabled(_)) {
                return Err(Refusal::Disabled);
            }
            if from > to || to == Position::START {
                return Err(Refusal::EmptyReplay);
            }
            if webhook.replays.len() >= MAX_REPLAYS {
                return Err(Refusal::TooManyReplays);
            }
            vec![WebhookEvent::ReplayRequested { from, to }]
        }
    })
}

fn record(
    webhook: &Webhook,
    attempts: Vec<Attempt>,
    through: Position,
    replayed_through: Option<Position>,
    patience: Patience,
) -> Result<Vec<WebhookEvent>, Refusal> {
    if attempts.len() > MAX_RECORDED {
        return Err(Refusal::TooManyAttempts);
    }
    let mut after = webhook.clone();
    attempts.iter().for_each(|attempt| after.attempted(attempt));
    let last = attempts.last().map(|attempt| attempt.at);
    let gone = attempts.iter().any(|attempt| attempt.outcome.status() == Some(GONE));
    let over = matches!((after.failing_since, last), (Some(since), Some(now)) if patience.is_over(since, now));
    let mut events = vec![WebhookEvent::DeliveriesRecorded { attempts, through, replayed_through }];
    if webhook.status == Status::Enabled {
        let why = if gone { Some(DisabledWhy::Gone) } else { over.then_some(DisabledWhy::Failures) };
        events.extend(why.map(|why| WebhookEvent::WebhookDisabled { why }));
    }
    Ok(events)
}
