//! Everything that can happen to a team's bills. Names and meanings are public and permanent.

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::invoice::{Line, Totals};
use super::month::Month;
use super::plan::Plan;
use crate::envelope::Position;
use crate::id::WebhookId;
use crate::json::DecodeError;

/// The version of the shape of the events below. A change of shape raises it and adds an upcaster.
pub const SCHEMA: u16 = 1;

/// A plan goes from its first day on, beside those that were set before. Never for a day of a month that was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanSet {
    /// Counted from 1 in each team.
    pub version: u32,
    /// What it says.
    #[serde(flatten)]
    pub plan: Plan,
}

/// The bill of a month takes in nothing any more: what comes later in the log is an adjustment on the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeriodCutOff {
    /// The month.
    pub period: Month,
}

/// A line of a bill with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NumberedLine {
    /// Counted from 1 on each bill.
    pub number: u32,
    /// The same whenever and to whomever the line is sent: `team/2026-10/17`.
    pub idempotency_key: String,
    /// The line.
    #[serde(flatten)]
    pub line: Line,
}

/// Some lines of a bill that is being closed, in their order. Written down, they hold whatever becomes of the program
/// that worked them out; and they are what a metering endpoint is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvoiceReady {
    /// The month.
    pub period: Month,
    /// The lines, with numbers that follow on those of the event before.
    pub lines: Vec<NumberedLine>,
}

/// The bill of a month is complete, and stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeriodClosed {
    /// The month.
    pub period: Month,
    /// Up to which place of the log it was taken in: that of the `period-cut-off`.
    pub through: Position,
    /// What it comes to.
    pub totals: Totals,
    /// The SHA-256 of its lines.
    pub digest: String,
    /// The versions of the plan that its lines were priced with; 0 stands for none.
    pub plans: Vec<u32>,
}

/// The bill was sent to somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pushed {
    /// The month.
    pub period: Month,
    /// To which webhook.
    pub endpoint: WebhookId,
    /// The first event that was sent, and the last: each is a delivery under its own id.
    pub from: Position,
    /// The last one.
    pub through: Position,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum BillingEvent {
    /// A plan was set.
    PlanSet(Box<PlanSet>),
    /// A bill takes in nothing any more.
    PeriodCutOff(PeriodCutOff),
    /// Lines of it.
    InvoiceReady(Box<InvoiceReady>),
    /// It is complete.
    PeriodClosed(Box<PeriodClosed>),
    /// It was sent.
    InvoicePushed(Pushed),
}

impl BillingEvent {
    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] =
        &["plan-set", "period-cut-off", "invoice-ready", "period-closed", "invoice-pushed"];

    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::PlanSet(_) => "plan-set",
            Self::PeriodCutOff(_) => "period-cut-off",
            Self::InvoiceReady(_) => "invoice-ready",
            Self::PeriodClosed(_) => "period-closed",
            Self::InvoicePushed(_) => "invoice-pushed",
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        match self {
            Self::PlanSet(event) => to_raw_value(event),
            Self::PeriodCutOff(event) => to_raw_value(event),
            Self::InvoiceReady(event) => to_raw_value(event),
            Self::PeriodClosed(event) => to_raw_value(event),
            Self::InvoicePushed(event) => to_raw_value(event),
        }
    }

    /// Reads an event back from its envelope. `None`: a type this version does not know.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("billing", Self::KINDS, envelope)
    }
}
