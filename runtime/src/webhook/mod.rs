//! Telling somebody outside what happened: where messages may be sent ([`target`]), how they are signed ([`sign`]) and how
//! they are sent ([`send`]).
//!
//! Addresses come from teams, and the server can reach more than they can. So they are checked like those that sandboxes
//! connect to: by name over TLS, into no private network that the operator has not named, with the very addresses that
//! were checked.

pub mod send;
pub mod sign;
pub mod target;

pub use send::{Answer, MAX_ANSWER, Message, Sender};
pub use sign::{Secrets, sign};
pub use target::{Target, TargetError, Targets};
