//! A request that its caller gave a name of its own (`Idempotency-Key`): claimed before anything is done, answered
//! afterwards, so that however often it arrives it is done once.

pub mod event;
pub mod state;

pub use event::RequestEvent;
pub use state::{Command, Refusal, Request, Standing, decide, evolve};
