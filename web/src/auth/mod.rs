//! Who is calling, and what they may do: API keys and dashboard sessions.

pub mod caller;
pub mod guard;
pub mod keys;
pub mod session;
pub mod tickets;

pub use caller::{Caller, Who};
pub use keys::{KeyRing, ensure_admin_key, issue_key, revoke_key};
pub use session::Sessions;
pub use tickets::Tickets;
