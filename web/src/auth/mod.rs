//! Who is calling, and what they may do: API keys, people, and their sessions at the dashboard.

pub mod address;
pub mod caller;
pub mod guard;
pub mod issuing;
pub mod keys;
pub mod limits;
pub mod people;
pub mod refusals;
pub mod session;
pub mod standing;
pub mod tickets;
pub mod transport;
pub mod watch;

pub use address::Proxies;
pub use caller::{Caller, Who};
pub use issuing::{ensure_admin_key, issue_key, revoke_key, write_uses};
pub use keys::KeyRing;
pub use limits::{Limits, Rate, Rates};
pub use people::{GroupRule, People};
pub use refusals::{Refusals, write_refusals};
pub use session::{Lasting, NewSession, Sessions};
pub use standing::Standing;
pub use tickets::Tickets;
pub use transport::Transport;
