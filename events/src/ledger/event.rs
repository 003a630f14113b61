//! Everything that can happen in a team's ledger. Names and meanings are public and permanent.

use std::collections::BTreeMap;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::exhausted::{Amounts, Period};
use super::scope::{Holder, Path, Scope, Tier};
use super::state::Checkpoint;
use crate::failure::FailureCode;
use crate::id::{CallId, CampaignId, TaskId};
use crate::json::DecodeError;
use crate::money::NanoUsd;
use crate::task::conversation::Usage;

/// The version of the shape of the events below. A change of shape raises it and adds an upcaster.
pub const SCHEMA: u16 = 1;

/// Money and tokens together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Amount {
    /// Nano-dollars.
    pub nano_usd: NanoUsd,
    /// Tokens, read and written.
    pub tokens: u64,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self { nano_usd: NanoUsd::ZERO, tokens: 0 };

    /// The smaller of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { nano_usd: self.nano_usd.min(other.nano_usd), tokens: self.tokens.min(other.tokens) }
    }

    /// What is left after taking `other` away; never less than nothing.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self {
            nano_usd: self.nano_usd.saturating_sub(other.nano_usd),
            tokens: self.tokens.saturating_sub(other.tokens),
        }
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

impl std::ops::Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { nano_usd: self.nano_usd + other.nano_usd, tokens: self.tokens.saturating_add(other.tokens) }
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// A limit in dollars, in tokens, in both or in neither. Absent means no limit of that kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cap {
    /// In nano-dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_nano_usd: Option<NanoUsd>,
    /// Input and output tokens together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
}

impl Cap {
    /// Whether it limits nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<crate::task::event::Budget> for Cap {
    fn from(budget: crate::task::event::Budget) -> Self {
        Self { max_nano_usd: budget.max_nano_usd, max_tokens: budget.max_tokens }
    }
}

/// The caps of a scope.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// What one task may cost.
    #[serde(default, skip_serializing_if = "Cap::is_empty")]
    pub per_task: Cap,
    /// What a civil day may cost.
    #[serde(default, skip_serializing_if = "Cap::is_empty")]
    pub per_day: Cap,
    /// What a civil month may cost.
    #[serde(default, skip_serializing_if = "Cap::is_empty")]
    pub per_month: Cap,
    /// Whose midnight counts, by its IANA name. Absent: the team's; of a team: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
}

impl Budget {
    /// Whether it says nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The cap over a period. A scope has none over campaigns: each brings its own.
    pub const fn cap(&self, period: Period) -> Cap {
        match period {
            Period::Campaign => Cap { max_nano_usd: None, max_tokens: None },
            Period::Task => self.per_task,
            Period::Day => self.per_day,
            Period::Month => self.per_month,
        }
    }
}

/// A scope was given caps, in place of those it had. Empty ones take them away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetSet {
    /// The scope.
    pub scope: Scope,
    /// Its caps.
    pub budget: Budget,
}

/// A campaign has an account here: what its tasks spend together counts against its cap, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CampaignOpened {
    /// The campaign.
    pub campaign: CampaignId,
    /// What all its tasks together may cost. Empty: no cap, but a sum.
    #[serde(default, skip_serializing_if = "Cap::is_empty")]
    pub cap: Cap,
    /// The day (UTC) on which it was opened.
    pub day: Date,
}

/// A model is about to be asked: the most it can cost is set aside, in every scope on the path at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reserved {
    /// The call.
    pub call: CallId,
    /// The task that makes it.
    pub task: TaskId,
    /// Where the task stands.
    pub path: Path,
    /// The civil date in the team's time zone: the call counts to this day and its month, whenever it is settled.
    pub day: Date,
    /// The civil date in those scopes where it is another one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub days: BTreeMap<Tier, Date>,
    /// The most it can cost.
    pub reserved_nano_usd: NanoUsd,
    /// The most tokens it can use.
    pub reserved_tokens: u64,
    /// The output limit to send along.
    pub max_output_tokens: u64,
    /// The model.
    pub model: String,
    /// Which row of which price table the amount was computed with.
    pub price: String,
    /// The task's own cap.
    #[serde(default, skip_serializing_if = "Cap::is_empty")]
    pub own: Cap,
    /// What the task had spent before, where the ledger did not know (any more).
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub opening: Amount,
    /// The campaign whose account counts it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign: Option<CampaignId>,
}

impl Reserved {
    /// The date whose day and month a scope of this kind counts it to.
    pub fn day_of(&self, tier: Tier) -> Date {
        self.days.get(&tier).copied().unwrap_or(self.day)
    }

    /// What is set aside.
    pub const fn amount(&self) -> Amount {
        Amount { nano_usd: self.reserved_nano_usd, tokens: self.reserved_tokens }
    }
}

/// The call turned out to need less: the rest is free at once, not only at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trimmed {
    /// The call.
    pub call: CallId,
    /// The most it can cost.
    pub reserved_nano_usd: NanoUsd,
    /// The most tokens it can use.
    pub reserved_tokens: u64,
}

/// What a call cost. Ends its reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settled {
    /// The call.
    pub call: CallId,
    /// The task that made it.
    pub task: TaskId,
    /// What the provider counted; the bound where the count was lost.
    pub usage: Usage,
    /// What that costs.
    pub cost_nano_usd: NanoUsd,
    /// False when the outcome was lost and the bound was charged.
    pub confirmed: bool,
    /// Which row of which price table was applied.
    pub price: String,
}

impl Settled {
    /// What counts against the caps.
    pub fn amount(&self) -> Amount {
        Amount { nano_usd: self.cost_nano_usd, tokens: self.usage.total() }
    }
}

/// The call cost nothing. Ends its reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    /// The call.
    pub call: CallId,
}

/// A task's charge is reversed towards whoever pays for it. What was spent stays spent: no cap gets it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refunded {
    /// The task.
    pub task: TaskId,
    /// How much.
    pub nano_usd: NanoUsd,
    /// Which failure it is a refund for.
    pub reason: FailureCode,
    /// The civil date in the team's time zone: the refund counts to this day. Absent: the day of the event in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<Date>,
    /// The tokens of the charges that it reverses.
    #[serde(default, skip_serializing_if = "is_unused")]
    pub usage: Usage,
}

fn is_unused(usage: &Usage) -> bool {
    *usage == Usage::default()
}

/// What was spent has reached a part of a cap; said once per window and part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdReached {
    /// Whose cap.
    pub scope: Holder,
    /// Over which time it counts.
    pub period: Period,
    /// The day, or the first day of the month. Absent for a task and a campaign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Date>,
    /// The task whose spending this is, where a cap per task is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// 50, 80 or 100.
    pub percent: u8,
    /// Where it stands, in the unit that has reached it.
    #[serde(flatten)]
    pub amounts: Amounts,
}

/// A day of the ledger is over (in UTC, whatever zones its budgets use): everything that is still needed of what came before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DayClosed {
    /// The last day on which anything happened.
    pub day: Date,
    /// The ledger as it stands. A fold may begin here.
    pub checkpoint: Checkpoint,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum LedgerEvent {
    /// A scope was given caps.
    BudgetSet(Box<BudgetSet>),
    /// A campaign has an account.
    CampaignOpened(CampaignOpened),
    /// The most a call can cost was set aside.
    Reserved(Box<Reserved>),
    /// Less than was set aside is needed.
    Trimmed(Trimmed),
    /// A call was paid for.
    Settled(Box<Settled>),
    /// A call cost nothing.
    Released(Released),
    /// A charge was reversed.
    Refunded(Refunded),
    /// A cap is used up to a part.
    ThresholdReached(Box<ThresholdReached>),
    /// A day is over.
    DayClosed(Box<DayClosed>),
}

impl LedgerEvent {
    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] = &[
        "budget-set",
        "campaign-opened",
        "reserved",
        "trimmed",
        "settled",
        "released",
        "refunded",
        "threshold-reached",
        "day-closed",
    ];

    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::BudgetSet(_) => "budget-set",
            Self::CampaignOpened(_) => "campaign-opened",
            Self::Reserved(_) => "reserved",
            Self::Trimmed(_) => "trimmed",
            Self::Settled(_) => "settled",
            Self::Released(_) => "released",
            Self::Refunded(_) => "refunded",
            Self::ThresholdReached(_) => "threshold-reached",
            Self::DayClosed(_) => "day-closed",
        }
    }

    /// The task it is about, if it is about one.
    pub fn task(&self) -> Option<TaskId> {
        match self {
            Self::Reserved(event) => Some(event.task),
            Self::Settled(event) => Some(event.task),
            Self::Refunded(event) => Some(event.task),
            Self::ThresholdReached(event) => event.task,
            Self::BudgetSet(_)
            | Self::CampaignOpened(_)
            | Self::Trimmed(_)
            | Self::Released(_)
            | Self::DayClosed(_) => None,
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        match self {
            Self::BudgetSet(event) => to_raw_value(event),
            Self::CampaignOpened(event) => to_raw_value(event),
            Self::Reserved(event) => to_raw_value(event),
            Self::Trimmed(event) => to_raw_value(event),
            Self::Settled(event) => to_raw_value(event),
            Self::Released(event) => to_raw_value(event),
            Self::Refunded(event) => to_raw_value(event),
            Self::ThresholdReached(event) => to_raw_value(event),
            Self::DayClosed(event) => to_raw_value(event),
        }
    }

    /// Reads an event back from its envelope. `None`: a type this version does not know, which is kept but means
    /// nothing to the fold.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("ledger", Self::KINDS, envelope)
    }
}
