//! The task aggregate: one sentence, one repository, one budget, and everything that happened to them.
//!
//! Read [`TaskSpec`] for what a user asks for, [`event`] for what can happen, [`command`] for what can be asked, [`state`] for
//! what is known from it, [`step`] for what comes next, and [`delivery`] for the way of each repository's commits to their
//! pull request. [`usage`] is what its sandbox uses of the host, `private` which fields hold words that may be forgotten, and [`resource`] what the outside sees.

pub mod command;
pub mod conversation;
pub mod delivery;
pub mod egress;
pub mod event;
#[cfg(test)]
mod golden;
pub mod harness;
pub(crate) mod private;
pub mod resource;
pub mod setup;
mod spec;
pub mod state;
pub mod step;
#[cfg(test)]
mod tests;
pub mod usage;

pub use command::{Command, Refusal, decide};
pub use conversation::{Block, Turn, UserPart};
pub use event::{TaskEvent, TaskSpec};
pub use resource::{TaskResource, TaskStatus};
pub use state::{Task, evolve};
pub use step::{Step, next_step, planned_step};
