//! The sign-in of a person at the dashboard: begun once, for one team at a time, over after some hours at the latest.
//!
//! A session is kept by the SHA-256 of its cookie, as a key is kept by that of its text: the log lets nobody in. What
//! its holder may do is not in it where a key decides that (the key is asked each time); where an identity provider does,
//! the roles are those of the moment of the sign-in, and a role that was taken away is gone at the next one.

pub mod event;
pub mod role;
pub mod state;

pub use event::{Grant, Holder, Refused, SessionEnd, SessionEvent, Way};
pub use role::{Membership, Role};
pub use state::{Command, Refusal, Session, decide, evolve};
