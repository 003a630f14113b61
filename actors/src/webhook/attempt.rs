//! One attempt: the event is read, its message made, signed and sent, and what came of it judged.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::audience::Audience;
use orchestra_events::webhook::message::{self, MessageId};
use orchestra_events::webhook::pattern::event_type;
use orchestra_events::webhook::{Attempt, Fault, Outcome, Patience, Webhook, WebhookSpec};
use orchestra_events::{Envelope, EventId, EventStore, Position, StoreError, StreamName, WebhookId};
use orchestra_runtime::webhook::{Answer, Message, Secrets, Sender, Targets};
use uuid::Uuid;

use super::feed::Owners;

/// What every webhook's actor works with.
#[derive(Clone)]
pub(crate) struct Means {
    /// The log.
    pub store: Arc<dyn EventStore>,
    /// What messages are signed with.
    pub secrets: Secrets,
    /// Where they may go.
    pub targets: Targets,
    /// What sends them.
    pub sender: Sender,
    /// How long receivers are borne with.
    pub patience: Patience,
    /// To whom streams belong.
    pub owners: Arc<Owners>,
}

/// What is to be tried.
#[derive(Debug, Clone)]
pub(crate) struct Try {
    /// The webhook.
    pub id: WebhookId,
    /// What it is for, now that it is tried: possibly something else than when the event was found.
    pub spec: WebhookSpec,
    /// Who reads them.
    pub audience: Audience,
    /// What they are signed with: at the time of sending those of these that are still valid.
    pub versions: Vec<u32>,
    /// Counted from 1.
    pub number: u32,
    /// When the first attempt was, where this is a later one.
    pub first_at: Option<Timestamp>,
}

impl Try {
    pub fn new(id: WebhookId, webhook: &Webhook, now: Timestamp) -> Self {
        Self {
            id,
            spec: webhook.spec.clone(),
            audience: if webhook.spec.team.is_some() { Audience::Team } else { Audience::Operators },
            versions: webhook.signs_with(now),
            number: 1,
            first_at: None,
        }
    }
}

impl Means {
    async fn event(&self, position: Position) -> Option<Envelope> {
        // Reads begin after a position; the first event after the one before is this one.
        let before = Position(position.0.saturating_sub(1));
        let found = self.store.read_all(before, 1).await;
        let found = found.inspect_err(|error| tracing::warn!(%error, "an event for a webhook does not read")).ok()?;
        found.into_iter().next().filter(|event| event.position == position)
    }

    /// Whether the webhook still is to be told of an event.
    async fn is_for(&self, tried: &Try, event: &Envelope) -> Result<bool, StoreError> {
        let own = StreamName::webhook(tried.id);
        Ok(tried.spec.wants(&own, event) && tried.spec.may_see(&self.owners.of(&*self.store, event).await?))
    }

    async fn post(&self, tried: &Try, id: MessageId, body: Vec<u8>, at: Timestamp) -> Answer {
        // Read anew each time: the operator's networks may be others by now.
        let Ok(target) = self.targets.read(&tried.spec.url) else {
            return Answer { status: Err(Fault::ForbiddenAddress), retry_after: None, took: Duration::ZERO };
        };
        let signature = self.secrets.sign(tried.id, &tried.versions, &id.to_string(), at, &body);
        self.sender.send(&target, Message { id, at, signature, body }).await
    }

    /// An attempt at an event of the log.
    pub async fn attempt(&self, tried: Try, position: Position) -> Attempt {
        let at = Timestamp::now();
        let event = self.event(position).await;
        let (message, kind) = match &event {
            Some(event) => (MessageId::of(tried.id, event.id), event_type(&event.stream, &event.kind)),
            None => (MessageId::of(tried.id, EventId(Uuid::nil())), "unknown".to_owned()),
        };
        let body = match &event {
            // Asked before each attempt: since the last one it may have been narrowed or sent elsewhere.
            Some(event) => match self.is_for(&tried, event).await {
                Ok(true) => message::body(event, tried.audience).ok(),
                Ok(false) => {
                    count(Outcome::Skipped, Duration::ZERO);
                    let (position, outcome) = (Some(position), Outcome::Skipped);
                    return Attempt { position, message, kind, attempt: tried.number, at, ms: 0, outcome };
                }
                Err(error) => {
                    tracing::warn!(%error, "whose an event for a webhook is does not read");
                    None
                }
            },
            None => None,
        };
        let answer = match body {
            Some(body) => self.post(&tried, message, body, at).await,
            None => Answer { status: Err(Fault::Unsendable), retry_after: None, took: Duration::ZERO },
        };
        let outcome = self.judge(&tried, at, &answer);
        count(outcome, answer.took);
        Attempt { position: Some(position), message, kind, attempt: tried.number, at, ms: ms(answer.took), outcome }
    }

    /// A test: tried once.
    pub async fn ping(&self, tried: Try) -> Attempt {
        let at = Timestamp::now();
        let message = MessageId::of(tried.id, EventId(Uuid::now_v7()));
        let answer = self.post(&tried, message, message::ping(tried.id, at), at).await;
        let outcome = match answer.status {
            Ok(status @ 200..=299) => Outcome::Delivered { status },
            status => Outcome::GivenUp { status: status.ok(), fault: status.err() },
        };
        let kind = message::PING.to_owned();
        Attempt { position: None, message, kind, attempt: 1, at, ms: ms(answer.took), outcome }
    }

    fn judge(&self, tried: &Try, at: Timestamp, answer: &Answer) -> Outcome {
        let (status, fault) = match answer.status {
            Ok(status @ 200..=299) => return Outcome::Delivered { status },
            Ok(status) => (Some(status), None),
            Err(fault) => (None, Some(fault)),
        };
        let now = Timestamp::now();
        // The low half of a random UUID without the two bits that say so.
        let random = Uuid::new_v4().as_u64_pair().1.wrapping_shl(2) | 2;
        let asked = answer.retry_after.filter(|_| matches!(status, Some(429 | 503)));
        match self.patience.next(tried.number, tried.first_at.unwrap_or(at), now, asked, random) {
            Some(next) => {
                let pause_until = asked.map(|asked| Patience::spared_until(now, asked));
                Outcome::Retrying { status, fault, next, pause_until }
            }
            None => Outcome::GivenUp { status, fault },
        }
    }
}

fn ms(took: Duration) -> u32 {
    u32::try_from(took.as_millis()).unwrap_or(u32::MAX)
}

fn count(outcome: Outcome, took: Duration) {
    metrics::counter!("orchestra_webhook_attempts_total", "outcome" => outcome.as_str()).increment(1);
    metrics::histogram!("orchestra_webhook_attempt_seconds").record(took.as_secs_f64());
}
