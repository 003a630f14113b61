//! A scope's budget as its owner sees it: caps, what of them is spent and reserved, and when they are whole again.

use jiff::Timestamp;

use super::event::{Amount, Budget, Cap};
use super::exhausted::Period;
use super::scope::Scope;
use super::state::State;
use super::window::{Zones, resets_at};

/// A scope's budget and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The scope.
    pub scope: Scope,
    /// The caps that were set; empty when none were.
    pub budget: Budget,
    /// The zone whose midnight counts, its own or its team's.
    pub time_zone: String,
    /// The current day.
    pub day: Standing,
    /// The current month.
    pub month: Standing,
}

/// Where a cap stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The cap.
    pub cap: Cap,
    /// Settled.
    pub spent: Amount,
    /// Set aside for calls that are under way.
    pub reserved: Amount,
    /// When it is whole again.
    pub resets_at: Option<Timestamp>,
}

/// A scope's budget as it stands now.
pub fn view(state: &State, scope: &Scope, now: Timestamp, zones: &Zones) -> View {
    let budget = state.budgets.get(scope).cloned().unwrap_or_default();
    let date = state.date(scope, now, zones);
    let zone = state.zone(scope, zones);
    let standing = |period| {
        let (spent, reserved) = state.spent(scope, period, date);
        Standing { cap: budget.cap(period), spent, reserved, resets_at: resets_at(period, date, &zone) }
    };
    let (day, month) = (standing(Period::Day), standing(Period::Month));
    let time_zone = state.time_zone(scope).unwrap_or("UTC").to_owned();
    View { scope: scope.clone(), budget, time_zone, day, month }
}
