//! Who is calling, and what they may do: API keys, people, and their sessions at the dashboard.

pub mod caller;
pub mod guard;
pub mod keys;
pub mod people;
pub mod session;
pub mod tickets;
pub mod transport;

pub use caller::{Caller, Who};
pub use keys::{KeyRing, ensure_admin_key, issue_key, revoke_key};
pub use people::{GroupRule, People};
pub use session::{Lasting, NewSession, Sessions};
pub use tickets::Tickets;
pub use transport::Transport;
