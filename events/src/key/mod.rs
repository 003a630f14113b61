//! The API key aggregate: issued once, shown once, kept as a hash, revoked for good.

pub mod event;
pub mod state;

pub use event::{KeyEvent, KeyGrant, Scope};
pub use state::{Command, Key, Refusal, decide, evolve};
