//! The ledger of a team: what its model calls may cost, set aside before each and settled after it.

pub mod exhausted;
pub mod quote;

pub use exhausted::{Exhausted, Period};
pub use quote::{Fitted, Quote, Remaining};
