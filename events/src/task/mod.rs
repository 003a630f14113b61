//! The task aggregate: one sentence, one repository, one budget, and everything that happened to them.

pub mod conversation;
pub mod event;

pub use conversation::{Block, Turn, UserPart};
pub use event::TaskEvent;
