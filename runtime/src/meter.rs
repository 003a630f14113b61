//! Money for model calls: what everything that asks a provider must get first, and gives back what is left of.
//!
//! The trait stands here so that the arrow keeps pointing left: the gateway asks, the ledger's actor answers. One
//! meter belongs to one task. Every call that [`Meter::reserve`] lets through ends in exactly one [`Meter::settle`] or
//! [`Meter::release`]; what a crash leaves open is settled at its bound by whoever folds the ledger next.

use std::time::Duration;

use async_trait::async_trait;
use orchestra_events::ledger::Quote;
use orchestra_events::task::conversation::{StopReason, Usage};
use orchestra_events::{CallId, Failure, NanoUsd};

use crate::model::FaultClass;

/// A call that wants to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Its id, new for every reservation.
    pub call: CallId,
    /// The model, as `provider/model`.
    pub model: String,
    /// The table version and row that the quote was made with.
    pub price: String,
    /// What it can cost.
    pub quote: Quote,
}

/// Money that is set aside. Durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// The call it is for.
    pub call: CallId,
    /// How much the call may write.
    pub max_output_tokens: u64,
    /// What is set aside.
    pub nano_usd: NanoUsd,
    /// The tokens that are set aside.
    pub tokens: u64,
}

/// What became of a call that has cost something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// What the provider counted, or the bound of what it did not say.
    pub usage: Usage,
    /// What that costs, tools included.
    pub cost: NanoUsd,
    /// Whether all of it is the provider's own count.
    pub confirmed: bool,
    /// The table version and row that was applied.
    pub price: String,
    /// Why the model stopped, when it said so.
    pub stop_reason: Option<StopReason>,
    /// What went wrong, when the reply did not come whole.
    pub failure: Option<Failure>,
}

/// An attempt that failed and is made again before the caller has seen anything of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retried {
    /// The attempt that failed, counted from 1.
    pub attempt: u32,
    /// How.
    pub class: FaultClass,
    /// How long is waited before the next.
    pub wait: Duration,
}

/// Why there is no money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    /// A cap is met. The failure names it.
    #[error("{0}")]
    Refused(Box<Failure>),
    /// The task is over, or being stopped.
    #[error("the task is over")]
    Over,
    /// The ledger did not answer.
    #[error("the ledger does not answer: {0}")]
    Unavailable(String),
}

/// Money for the model calls of one task.
#[async_trait]
pub trait Meter: Send + Sync {
    /// Sets aside what the call can cost, with as much output as fits. Nothing may be sent to a provider before this
    /// has returned: the reservation is durable then. Reserving an open call again returns what stands.
    async fn reserve(&self, ask: Ask) -> Result<Reservation, MeterError>;
    /// Gives back what is known to be too much while the call goes on; never more than was set aside. A hint: what is
    /// given back may be used when somebody else needs it.
    fn trim(&self, call: CallId, nano_usd: NanoUsd, tokens: u64);
    /// Books what the call has cost. Doing so again changes nothing.
    async fn settle(&self, call: CallId, settlement: Settlement) -> Result<(), MeterError>;
    /// Gives everything back: the provider did no work. Doing so again changes nothing.
    async fn release(&self, call: CallId, failure: Option<Failure>) -> Result<(), MeterError>;
    /// Notes that an attempt is made again.
    async fn retried(&self, call: CallId, retried: Retried);
}
