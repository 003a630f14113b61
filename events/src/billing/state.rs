//! What is known about a team's bills: its plans, and how far they are closed.

use std::collections::BTreeMap;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::event::{BillingEvent, PeriodClosed, PlanSet, Pushed};
use super::month::Month;
use super::plan::{Quantities, Terms};
use crate::money::NanoUsd;

/// A team's bills.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Billing {
    /// The plans, in the order in which they were set.
    pub plans: Vec<PlanSet>,
    /// The last month that takes in nothing any more.
    pub cut_off: Option<Month>,
    /// The month that is being closed.
    pub closing: Option<Closing>,
    /// The months that are closed.
    pub closed: BTreeMap<Month, PeriodClosed>,
    /// To whom they were sent, the last time each.
    pub pushed: Vec<Pushed>,
}

/// A month that is cut off, and whose lines are being written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Closing {
    /// The month.
    pub period: Month,
    /// Lines that are written down.
    pub lines: u32,
}

impl Billing {
    /// The bill on which something of this day stands that happens now.
    pub fn period_of(&self, day: Date) -> Month {
        let month = Month::of(day);
        self.cut_off.map_or(month, |last| if month <= last { last.next() } else { month })
    }

    /// The terms of a day for a customer and a project, and the version of the plan that they are from; 0: no plan goes
    /// for that day, and the cost is passed on as it is.
    pub fn terms(&self, day: Date, customer: Option<&str>, project: Option<&str>) -> (&Terms, u32) {
        let goes = self.plans.iter().filter(|set| set.plan.effective_from <= day);
        match goes.max_by_key(|set| (set.plan.effective_from, set.version)) {
            Some(set) => (set.plan.terms_for(customer, project), set.version),
            None => (&Terms::AT_COST, 0),
        }
    }

    /// What a line comes to.
    pub fn price(&self, day: Date, customer: Option<&str>, project: Option<&str>, of: &Quantities) -> NanoUsd {
        self.terms(day, customer, project).0.price(of)
    }
}

/// A team's bills after the event. Total: whatever happened is taken in.
#[must_use]
pub fn evolve(mut billing: Billing, event: &BillingEvent) -> Billing {
    match event {
        BillingEvent::PlanSet(set) => billing.plans.push(set.as_ref().clone()),
        BillingEvent::PeriodCutOff(cut) => {
            billing.cut_off = billing.cut_off.max(Some(cut.period));
            billing.closing = Some(Closing { period: cut.period, lines: 0 });
        }
        BillingEvent::InvoiceReady(ready) => {
            if let (Some(closing), Some(last)) = (&mut billing.closing, ready.lines.last()) {
                closing.lines = closing.lines.max(last.number);
            }
        }
        BillingEvent::PeriodClosed(closed) => {
            billing.closing = None;
            billing.closed.entry(closed.period).or_insert_with(|| closed.as_ref().clone());
        }
        BillingEvent::InvoicePushed(pushed) => {
            let same = |known: &Pushed| known.period == pushed.period && known.endpoint == pushed.endpoint;
            billing.pushed.retain(|known| !same(known));
            billing.pushed.push(pushed.clone());
        }
    }
    billing
}
