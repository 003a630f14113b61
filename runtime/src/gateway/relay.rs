//! A call from its reservation to its settlement: attempts, waits, and what the caller is told when all fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use orchestra_events::ledger::Quote;
use orchestra_events::{CallId, Failure, FailureCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::errors::Refusal;
use super::exchange::{Exchange, Failed, Sent};
use super::reply::{Gone, Reply};
use super::request::Call;
use super::{Gateway, Session};
use crate::meter::{Ask, MeterError, Reservation, Retried, Settlement};
use crate::model::breaker::{Admission, Health};
use crate::model::retry::{self, Left, MAX_RETRY_AFTER, Retry};
use crate::model::{Charge, FaultClass, ModelFailure};

/// No call goes on for longer, with a deadline or without.
const MAX_CALL: Duration = Duration::from_secs(2 * 60 * 60);

/// The ledger is told what a call has cost at most so often; each wait is twice as long as the one before.
const SETTLE_TRIES: u32 = 6;

/// The first of these waits.
const SETTLE_WAIT: Duration = Duration::from_millis(100);

/// A session that is being served.
pub(super) struct Live {
    pub gateway: Arc<Gateway>,
    pub session: Session,
    /// The task's retries that are left.
    pub retries: AtomicU32,
    /// Calls under way.
    pub calls: Arc<Semaphore>,
    /// Memory for the bodies of requests, in KiB.
    pub bodies: Arc<Semaphore>,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

/// A call under way.
pub(super) struct Relay {
    pub live: Arc<Live>,
    pub call: Call,
    pub sent: Sent,
    pub reply: Reply,
    /// Its place among the calls, and its body's memory.
    pub _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Why a call goes no further, whatever the provider does.
#[derive(Debug, Clone, Copy)]
enum Stop {
    Told,
    Deadline,
    Gone,
}

impl Stop {
    fn failed(self) -> Failed {
        let (code, message) = match self {
            Self::Told => (FailureCode::Cancelled, "The task was stopped while the model answered."),
            Self::Deadline => (FailureCode::SandboxTimeout, "The task's time was over while the model answered."),
            Self::Gone => (FailureCode::Cancelled, "The caller has gone away."),
        };
        let mut failure = ModelFailure::new(FaultClass::Cancelled, Charge::Unknown, message);
        failure.failure = Box::new(Failure::new(code, message));
        failure.into()
    }
}

/// An admission to a provider, which must say how it went.
pub(super) struct Ticket {
    live: Arc<Live>,
    provider: Arc<str>,
    probe: bool,
    health: Option<Health>,
}

impl Ticket {
    /// The provider has begun a reply. Everybody waits for a probe: it has found out enough.
    pub fn begun(&mut self) {
        if std::mem::take(&mut self.probe) {
            self.live.gateway.report(&self.provider, Some(Health::Up), true);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.live.gateway.report(&self.provider, self.health, self.probe);
    }
}

/// What a fault says about the provider.
fn health(class: FaultClass) -> Option<Health> {
    match class {
        FaultClass::ServerError
        | FaultClass::Overloaded
        | FaultClass::Connect
        | FaultClass::Tls
        | FaultClass::Reset
        | FaultClass::FirstByteTimeout
        | FaultClass::IdleTimeout => Some(Health::Down),
        FaultClass::SpendLimit | FaultClass::Auth | FaultClass::Rejected => Some(Health::Up),
        // Its own pace, or nothing it could help.
        FaultClass::RateLimited
        | FaultClass::Truncated
        | FaultClass::Malformed
        | FaultClass::Cancelled
        | FaultClass::Unsupported => None,
    }
}

impl Relay {
    /// Makes the call. Whatever happens, what was reserved is settled or released.
    pub async fn run(mut self) {
        match self.attempts().await {
            Ok(Some(whole)) => self.reply.answer(whole),
            Ok(None) => self.reply.end().await,
            Err(refusal) => self.reply.refuse(refusal).await,
        }
    }

    /// The gathered reply, or nothing when it was passed on as it came.
    async fn attempts(&mut self) -> Result<Option<Bytes>, Refusal> {
        let deadline = Instant::now() + self.live.time_left().map_or(MAX_CALL, |left| left.min(MAX_CALL));
        let mut open: Option<Reservation> = None;
        let mut attempt = 1;
        loop {
            let ticket = match self.admitted(deadline).await {
                Ok(ticket) => ticket,
                Err(failed) => return Err(self.give_up(open, failed).await),
            };
            let reservation = match open.take() {
                Some(reservation) => reservation,
                None => self.reserve().await?,
            };
            if self.reply.is_gone() {
                drop(ticket);
                return Err(self.give_up(Some(reservation), Stop::Gone.failed()).await);
            }
            let (outcome, settlement) = self.attempt(ticket, reservation, deadline).await;
            if let Some(settlement) = settlement {
                self.live.settle(reservation.call, settlement).await;
            } else {
                open = Some(reservation);
            }
            let failed = match outcome {
                Ok(whole) => return Ok(whole),
                Err(failed) => failed,
            };
            let class = failed.failure.class;
            let Retry::After { wait } = self.again(&failed.failure, attempt, deadline) else {
                return Err(self.give_up(open, failed).await);
            };
            self.live.session.meter.retried(reservation.call, Retried { attempt, class, wait }).await;
            attempt += 1;
            if let Err(stop) = self.pause(deadline, wait).await {
                return Err(self.give_up(open, stop.failed()).await);
            }
        }
    }

    /// One attempt, and what it is to be settled at; without that, it has cost nothing.
    async fn attempt(
        &mut self,
        ticket: Ticket,
        reservation: Reservation,
        deadline: Instant,
    ) -> (Result<Option<Bytes>, Failed>, Option<Settlement>) {
        let mut exchange = Exchange::new(&self.live, &self.call, reservation, ticket);
        let outcome = tokio::select! {
            biased;
            () = self.live.stop.cancelled() => Err(Stop::Told.failed()),
            () = sleep_until(deadline) => Err(Stop::Deadline.failed()),
            outcome = exchange.run(&self.sent, &mut self.reply) => outcome,
        };
        let outcome = outcome.and_then(|()| exchange.gathered());
        match outcome {
            Ok(whole) => {
                exchange.ticket.health = Some(Health::Up);
                let settlement = settlement(&self.call, reservation, &exchange, None);
                (Ok(whole), Some(settlement))
            }
            Err(failed) => {
                let class = failed.failure.class;
                exchange.ticket.health = health(class);
                // Who stops a call before it is answered cannot know what it has cost.
                let cost = exchange.begun || exchange.sent && class == FaultClass::Cancelled;
                let settlement =
                    cost.then(|| settlement(&self.call, reservation, &exchange, Some(&failed.failure.failure)));
                (Err(failed), settlement)
            }
        }
    }

    /// Sets money aside, under a new id.
    async fn reserve(&mut self) -> Result<Reservation, Refusal> {
        let ask = Ask {
            call: CallId::from_uuid(uuid::Uuid::now_v7()),
            model: self.call.target.name(),
            price: self.call.target.model.price.id().to_owned(),
            quote: self.call.quote,
        };
        // Never given up half-way: it might stand, and nobody would know.
        let reserved = self.reply.meanwhile(false, self.live.session.meter.reserve(ask)).await;
        let error = match reserved {
            Ok(Ok(reservation)) => return Ok(reservation),
            Ok(Err(error)) => error,
            Err(Gone) => MeterError::Over,
        };
        Err(Refusal::no_money(&error, self.call.api))
    }

    /// Waits until the provider's breaker lets the call through.
    async fn admitted(&mut self, deadline: Instant) -> Result<Ticket, Failed> {
        let provider = Arc::clone(&self.call.target.model.provider);
        let mut waited = Duration::ZERO;
        loop {
            let wait = match self.live.gateway.admit(&provider) {
                Admission::Wait(wait) => wait,
                admission => {
                    let probe = admission == Admission::Probe;
                    return Ok(Ticket { live: Arc::clone(&self.live), provider, probe, health: None });
                }
            };
            waited = waited.saturating_add(wait);
            if waited > MAX_RETRY_AFTER {
                let message =
                    format!("{provider} has failed most calls of the last half minute and is left alone for now");
                let mut failure = ModelFailure::new(FaultClass::Overloaded, Charge::Nothing, message);
                failure.retry_after = Some(wait);
                return Err(failure.into());
            }
            self.pause(deadline, wait).await.map_err(Stop::failed)?;
        }
    }

    async fn pause(&mut self, deadline: Instant, wait: Duration) -> Result<(), Stop> {
        let sleep = self.live.gateway.clock.sleep(wait);
        tokio::select! {
            biased;
            () = self.live.stop.cancelled() => Err(Stop::Told),
            () = sleep_until(deadline) => Err(Stop::Deadline),
            slept = self.reply.meanwhile(true, sleep) => slept.map_err(|Gone| Stop::Gone),
        }
    }

    fn again(&self, failure: &ModelFailure, attempt: u32, deadline: Instant) -> Retry {
        if self.reply.forwarded || self.reply.is_gone() {
            return Retry::GiveUp;
        }
        let time = Some(deadline.saturating_duration_since(Instant::now()));
        let retries = self.live.retries.load(Ordering::Acquire);
        let random = self.live.gateway.clock.random();
        let left = Left { retries, time };
        let decided = retry::decide_within(failure.class, attempt, failure.retry_after, random, left);
        if decided != Retry::GiveUp {
            // Two calls that take the last one at once are one retry too many, which harms nobody.
            let _ = self.live.retries.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        }
        decided
    }

    async fn give_up(&self, open: Option<Reservation>, failed: Failed) -> Refusal {
        let ModelFailure { failure, class, retry_after, .. } = failed.failure;
        if let Some(reservation) = open {
            self.live.release(reservation.call, &failure).await;
        }
        let mut refusal = Refusal::failed(class, &failure, failed.status, retry_after, self.call.api.shape());
        if self.live.retries.load(Ordering::Acquire) == 0 {
            refusal.should_retry = Some(false);
        }
        refusal.headers = failed.headers;
        refusal
    }
}

impl Live {
    /// What is left of the task's time.
    fn time_left(&self) -> Option<Duration> {
        let left = self.session.deadline?.duration_since(self.gateway.clock.now());
        Some(Duration::try_from(left).unwrap_or_default())
    }

    async fn settle(&self, call: CallId, settlement: Settlement) {
        let mut wait = SETTLE_WAIT;
        for attempt in 1..=SETTLE_TRIES {
            match self.session.meter.settle(call, settlement.clone()).await {
                Ok(()) => return,
                // The reservation stands: whoever folds the ledger next settles it at its bound.
                Err(error) if attempt == SETTLE_TRIES => tracing::error!(%call, %error, "a call was not settled"),
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait *= 2;
        }
    }

    async fn release(&self, call: CallId, failure: &Failure) {
        let mut wait = SETTLE_WAIT;
        for attempt in 1..=SETTLE_TRIES {
            match self.session.meter.release(call, Some(failure.clone())).await {
                Ok(()) => return,
                Err(error) if attempt == SETTLE_TRIES => tracing::error!(%call, %error, "a call was not released"),
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait *= 2;
        }
    }
}

/// What an attempt has cost: as the provider counted it, or at the bound of what it did not say.
fn settlement(call: &Call, reservation: Reservation, exchange: &Exchange<'_>, failure: Option<&Failure>) -> Settlement {
    let tally = &exchange.watch.tally;
    let price = &call.target.model.price;
    let most = reservation.max_output_tokens.saturating_mul(call.quote.replies);
    let (mut usage, confirmed) = tally.counted.settle(call.quote.input_tokens, most);
    if !tally.started {
        usage.output_tokens = most;
    }
    let cost = if !tally.started || !confirmed && call.hosted {
        // Nothing is known; how often the provider's tools were used is said at the end.
        reservation.nano_usd
    } else if tally.counted.input.is_some() {
        price.cost_with(&usage, &tally.tools)
    } else {
        Quote { replies: 1, ..call.quote }.cost(usage.output_tokens)
    };
    Settlement {
        usage,
        cost,
        confirmed,
        price: price.id().to_owned(),
        stop_reason: tally.stop,
        failure: failure.cloned(),
    }
}
