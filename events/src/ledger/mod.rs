//! The ledger of a team: what its model calls may cost, set aside before each and settled after it.
//!
//! One stream per team, `ledger-<team>`, is the truth of its money. [`decide`] takes every cap on a call's path at
//! once, so there is no moment at which two calls could both fit under what is left for one; [`evolve`] goes by the
//! civil dates that were recorded with the reservation and by nothing else, so a replay cannot move money to another
//! day. [`audit`] holds a whole log to the promise without using any of it.

pub mod audit;
pub mod command;
pub mod event;
pub mod exhausted;
pub mod quote;
pub mod scope;
pub mod state;
pub mod view;
pub mod window;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

pub use command::{Command, Refusal, Reserve, Settle, decide, fits};
pub use event::{Amount, Budget, Cap, LedgerEvent, Reserved, Settled};
pub use exhausted::{Amounts, Exhausted, Period};
pub use quote::{Fitted, Quote, Remaining};
pub use scope::{Holder, Path, Scope, Tier};
pub use state::{State, evolve};
pub use view::{Standing, View, view};
pub use window::Zones;
