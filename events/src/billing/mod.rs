//! What a team is billed: plans that say the prices, months that are closed for good, and the lines of each bill.
//!
//! One stream per team, `billing-<team>`. Which charge stands on which bill follows from the order of the log alone:
//! what comes after a month's `period-cut-off` is an adjustment on the next bill, and no plan reaches back behind it, so
//! that a closed month stays what it was, whatever happens later and however often the read models are folded again.

pub mod command;
pub mod event;
pub mod invoice;
pub mod month;
pub mod plan;
pub mod state;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

pub use command::{Command, Refusal, decide};
pub use event::{BillingEvent, InvoiceReady, NumberedLine, PeriodClosed, PeriodCutOff, Pushed};
pub use invoice::{CustomerTotal, Invoice, Line, LineKind, Totals};
pub use month::Month;
pub use plan::{Currency, Override, Plan, Quantities, Terms, Tokens};
pub use state::{Billing, Closing, evolve};
