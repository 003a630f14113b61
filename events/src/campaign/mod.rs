//! The campaign aggregate: one sentence over many repositories, a task for each, and what holds them together.
//!
//! Read [`event`] for what can happen, [`command`] for what can be asked, [`state`] for what is known from it, and
//! [`step`] for what comes next. [`resource`] is what the outside sees. The tasks themselves are tasks like any other,
//! each in a stream of its own; a campaign only decides when one begins, and takes down how it ended.

pub mod command;
pub mod event;
#[cfg(test)]
mod golden;
mod private;
pub mod resource;
pub mod state;
pub mod step;
#[cfg(test)]
mod tests;

pub use command::{Command, Refusal, decide};
pub use event::{CampaignEvent, CampaignRepo, CampaignSpec, ChildOutcome, Limits, child_id};
pub use resource::{CampaignResource, CampaignStatus, Progress};
pub use state::{Campaign, evolve};
pub use step::{Step, next_step};
