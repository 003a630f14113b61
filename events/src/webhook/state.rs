//! What is known of a webhook: where it stands in the log, what is being retried, and how it has been going.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;

use super::event::{Attempt, DisabledWhy, Outcome, WebhookEvent, WebhookSpec};
use crate::envelope::Position;

/// With so many failures in a row the receiver is taken to be down: it is asked one thing at a time, the oldest first, and
/// nothing new is begun until it takes something.
pub const STRUGGLING: u32 = 5;
/// Secrets before the present one that messages are still signed with: receivers rotate theirs one after the other.
pub const MAX_EARLIER: usize = 3;
/// Replays that wait for their turn.
pub const MAX_REPLAYS: usize = 20;

/// Whether anything is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Enabled,
    /// Not until somebody enables it.
    Disabled(DisabledWhy),
    /// It is gone.
    Removed,
}

/// An event that the receiver did not take and is asked about again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Attempts so far.
    pub attempts: u32,
    /// When the first of them was.
    pub first_at: Timestamp,
    /// When the next one is due.
    pub next: Timestamp,
}

/// A part of the log that is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    /// What is wanted up to here has been sent again.
    pub through: Position,
    /// The last position.
    pub to: Position,
}

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// What it is for.
    pub spec: WebhookSpec,
    /// Whether anything is sent.
    pub status: Status,
    /// The number of the secret that messages are signed with.
    pub secret: u32,
    /// Those before it, and until when messages are signed with them too.
    pub earlier: Vec<(u32, Timestamp)>,
    /// What it wants of the log up to here was delivered, was given up or is pending.
    pub through: Position,
    /// What came to an end above that already.
    pub ahead: BTreeSet<Position>,
    /// What is asked about again, by its position.
    pub pending: BTreeMap<Position, Pending>,
    /// Attempts that failed since one last did not.
    pub failures: u32,
    /// Since when nothing has been taken.
    pub failing_since: Option<Timestamp>,
    /// Nothing is sent before this.
    pub pause_until: Option<Timestamp>,
    /// What is sent again, one after the other.
    pub replays: VecDeque<Replay>,
    /// Replays that have come to their end.
    pub replayed: u64,
    /// The hash of the request that made it.
    pub request_hash: Option<String>,
}

impl Webhook {
    /// Whether the receiver is taken to be down.
    pub const fn is_struggling(&self) -> bool {
        self.failures >= STRUGGLING
    }

    /// The secrets that a message is signed with at this time, by their numbers, the present one first.
    pub fn signs_with(&self, now: Timestamp) -> Vec<u32> {
        let valid = self.earlier.iter().rev().filter(|(_, until)| now < *until).map(|(version, _)| *version);
        std::iter::once(self.secret).chain(valid).collect()
    }

    /// Takes in what became of one attempt. The actor does the same before it is recorded.
    pub fn attempted(&mut self, attempt: &Attempt) {
        match attempt.outcome {
            Outcome::Delivered { .. } => {
                if self.is_struggling() {
                    // It is back: what waited for hours need not wait for the rest of them.
                    self.pending.values_mut().for_each(|pending| pending.next = attempt.at);
                }
                (self.failures, self.failing_since, self.pause_until) = (0, None, None);
                self.settled(attempt.position);
            }
            Outcome::Retrying { next, pause_until, .. } => {
                self.failed(attempt);
                self.pause_until = self.pause_until.max(pause_until);
                if self.is_struggling() {
                    self.pause_until = self.pause_until.max(Some(next));
                }
                if let Some(position) = attempt.position {
                    let pending = self.pending.entry(position);
                    let pending = pending.or_insert(Pending { attempts: 0, first_at: attempt.at, next });
                    (pending.attempts, pending.next) = (attempt.attempt, next);
                }
            }
            Outcome::GivenUp { .. } => {
                // A test says how the receiver is, and no more than that.
                if attempt.position.is_some() {
                    self.failed(attempt);
                    self.settled(attempt.position);
                }
            }
            // Nobody was asked, so it says nothing about the receiver.
            Outcome::Skipped => self.settled(attempt.position),
        }
    }

    fn failed(&mut self, attempt: &Attempt) {
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(attempt.at);
    }

    fn settled(&mut self, position: Option<Position>) {
        let Some(position) = position else { return };
        self.pending.remove(&position);
        if position > self.through {
            self.ahead.insert(position);
        }
    }

    /// Takes in how far the log has been gone through.
    pub fn reached(&mut self, through: Position, replayed_through: Option<Position>) {
        self.through = self.through.max(through);
        let through = self.through;
        self.ahead.retain(|position| *position > through);
        if let (Some(replayed), Some(replay)) = (replayed_through, self.replays.front_mut()) {
            replay.through = replay.through.max(replayed);
            if replay.through >= replay.to {
                self.replays.pop_front();
                self.replayed += 1;
            }
        }
    }

    /// Whether an event that was found in the log has been taken care of.
    pub fn has_settled(&self, position: Position) -> bool {
        position <= self.through || self.ahead.contains(&position) || self.pending.contains_key(&position)
    }
}

/// The webhook after the event. Total: whatever happened is taken in.
pub fn evolve(webhook: Option<Webhook>, event: &WebhookEvent) -> Option<Webhook> {
    let Some(mut webhook) = webhook else {
        let WebhookEvent::WebhookCreated { spec, after, request_hash } = event else { return None };
        return Some(Webhook {
            spec: spec.clone(),
            status: Status::Enabled,
            secret: 1,
            earlier: Vec::new(),
            through: *after,
            ahead: BTreeSet::new(),
            pending: BTreeMap::new(),
            failures: 0,
            failing_since: None,
            pause_until: None,
            replays: VecDeque::new(),
            replayed: 0,
            request_hash: request_hash.clone(),
        });
    };
    match event {
        WebhookEvent::WebhookCreated { .. } => {}
        WebhookEvent::WebhookChanged(spec) => webhook.spec = spec.clone(),
        WebhookEvent::WebhookSecretRotated { version, previous_until } => {
            webhook.earlier.push((webhook.secret, *previous_until));
            let surplus = webhook.earlier.len().saturating_sub(MAX_EARLIER);
            webhook.earlier.drain(..surplus);
            webhook.secret = *version;
        }
        WebhookEvent::DeliveriesRecorded { attempts, through, replayed_through } => {
            attempts.iter().for_each(|attempt| webhook.attempted(attempt));
            webhook.reached(*through, *replayed_through);
        }
        WebhookEvent::WebhookDisabled { why } => {
            if webhook.status != Status::Removed {
                webhook.status = Status::Disabled(*why);
            }
        }
        WebhookEvent::WebhookEnabled { at } => {
            if webhook.status != Status::Removed {
                webhook.status = Status::Enabled;
            }
            (webhook.failures, webhook.failing_since, webhook.pause_until) = (0, None, None);
            // The days in which nothing was sent are not the receiver's fault.
            webhook.pending.values_mut().for_each(|pending| (pending.first_at, pending.next) = (*at, *at));
        }
        WebhookEvent::WebhookRemoved {} => {
            webhook.status = Status::Removed;
            webhook.pending.clear();
            webhook.replays.clear();
        }
        WebhookEvent::ReplayRequested { from, to } => {
            webhook.replays.push_back(Replay { through: Position(from.0.saturating_sub(1)), to: *to });
        }
    }
    Some(webhook)
}
