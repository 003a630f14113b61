//! The webhook aggregate: somebody's address that is told what happened, and what became of telling it.
//!
//! Read [`event`] for what can happen, [`command`] for what can be asked, [`state`] for what is known from it, [`retry`] for
//! when a delivery is tried again, [`pattern`] for which events a webhook wants, and [`message`] for what is sent. The
//! deliveries stand in the webhook's own stream: that is their log, and the checkpoint from which the next process goes on.

pub mod command;
pub mod event;
#[cfg(test)]
mod golden;
pub mod message;
pub mod pattern;
pub mod retry;
pub mod state;
#[cfg(test)]
mod tests;

pub use command::{Command, Refusal, decide};
pub use event::{Attempt, DisabledWhy, Fault, Outcome, WebhookEvent, WebhookSpec};
pub use message::MessageId;
pub use pattern::{Owner, Pattern};
pub use retry::Patience;
pub use state::{Webhook, evolve};
