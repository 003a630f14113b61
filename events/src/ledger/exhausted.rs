//! Which cap a call met, with everything a user needs to do something about it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::money::NanoUsd;

/// Over which time a cap counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Period {
    /// One task, all its attempts.
    Task,
    /// A civil day in the budget's time zone.
    Day,
    /// A civil month in the budget's time zone.
    Month,
    /// One campaign, all its tasks.
    Campaign,
}

impl Period {
    /// The name in messages and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Day => "day",
            Self::Month => "month",
            Self::Campaign => "campaign",
        }
    }
}

/// The cap that a call does not fit under. Either the dollars or the tokens of it are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exhausted {
    /// Whose cap: `team:platform`, `project:platform/infra`, … or `task:task_01k…` for the task's own,
    /// `campaign:campaign_01k…` for the one that the tasks of a campaign share.
    pub scope: String,
    /// Over which time it counts.
    pub period: Period,
    /// What it measures, and where it stands.
    #[serde(flatten)]
    pub amounts: Amounts,
    /// When the period ends and the cap is whole again; a task's or a campaign's never is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Timestamp>,
}

/// Spent, reserved and cap, in one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Amounts {
    /// Nano-dollars.
    Dollars {
        /// Settled.
        spent_nano_usd: NanoUsd,
        /// Set aside for calls that are under way.
        reserved_nano_usd: NanoUsd,
        /// The cap.
        cap_nano_usd: NanoUsd,
    },
    /// Tokens, read and written.
    Tokens {
        /// Settled.
        spent_tokens: u64,
        /// Set aside for calls that are under way.
        reserved_tokens: u64,
        /// The cap.
        cap_tokens: u64,
    },
}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the budget of {} per {} is used up: ", self.scope, self.period.as_str())?;
        match self.amounts {
            Amounts::Dollars { spent_nano_usd, reserved_nano_usd, cap_nano_usd } => {
                write!(f, "${spent_nano_usd} spent and ${reserved_nano_usd} reserved of ${cap_nano_usd}")?;
            }
            Amounts::Tokens { spent_tokens, reserved_tokens, cap_tokens } => {
                write!(f, "{spent_tokens} tokens spent and {reserved_tokens} reserved of {cap_tokens}")?;
            }
        }
        match self.resets_at {
            Some(at) => write!(f, "; it is whole again at {at}"),
            None => Ok(()),
        }
    }
}
