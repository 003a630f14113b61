//! Who is calling, and what they may do: API keys and dashboard sessions.

pub mod address;
pub mod caller;
pub mod guard;
pub mod issuing;
pub mod keys;
pub mod session;
pub mod tickets;

pub use address::Proxies;
pub use caller::{Caller, Who};
pub use issuing::{ensure_admin_key, issue_key, revoke_key, write_uses};
pub use keys::KeyRing;
pub use session::Sessions;
pub use tickets::Tickets;
