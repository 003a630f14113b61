//! What can be asked of a team's bills, and what they answer.

use std::collections::BTreeSet;

use jiff::civil::Date;

use super::event::{BillingEvent, InvoiceReady, NumberedLine, PeriodClosed, PeriodCutOff, PlanSet, Pushed};
use super::month::Month;
use super::plan::{HIGHEST_MARK_UP, HIGHEST_PRICE, LONGEST_NAME, MOST_OVERRIDES, Plan, Terms};
use super::state::{Billing, Closing};
use crate::money::NanoUsd;

/// Most plans of one team: one a month for twenty years.
pub const MOST_PLANS: usize = 240;
/// Most webhooks that the bills of one team are remembered to have been sent to, over all months.
pub const MOST_PUSHES: usize = 1_000;
/// Most lines in one `invoice-ready`, so that it stays below what an event may weigh, whatever the names on them are.
pub const LINES_PER_EVENT: usize = 100;

/// Something asked of a team's bills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Let a plan go from its first day on.
    SetPlan(Plan),
    /// Let the bill of a month take in nothing any more.
    CutOff {
        /// The month.
        period: Month,
        /// Today, in UTC.
        today: Date,
        /// The earliest month that anything was used in, if anything ever was.
        earliest: Option<Month>,
    },
    /// Write down lines of the month that is being closed. Those that are written down already are passed over.
    WriteLines {
        /// The month.
        period: Month,
        /// All of its lines, or the first of them.
        lines: Vec<NumberedLine>,
    },
    /// The lines are all written down.
    Close(Box<PeriodClosed>),
    /// The bill was sent.
    RecordPush(Pushed),
}

/// Why a command does nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The plan would change bills that are closed.
    #[error("{0} and what lies before it is closed; a plan begins on {first} at the earliest", first = .0.next().first_day())]
    PlanTooEarly(Month),
    /// The plan charges for nothing.
    #[error("the plan has neither a mark-up nor a price: a mark-up of 0 passes the cost on as it is")]
    NoPrice,
    /// A price is negative or larger than a million dollars, or the mark-up is above [`HIGHEST_MARK_UP`].
    #[error(
        "a price lies between 0 and {HIGHEST_PRICE} dollars, a mark-up between 0 and {HIGHEST_MARK_UP} basis points"
    )]
    PriceOutOfRange,
    /// An exception that is for nobody, or twice for the same.
    #[error(
        "an exception names a customer, a project or both, each at most {LONGEST_NAME} bytes long, and no two the same"
    )]
    BadOverride,
    /// Too many exceptions.
    #[error("a plan has at most {MOST_OVERRIDES} exceptions")]
    TooManyOverrides,
    /// Too many plans.
    #[error("{MOST_PLANS} plans of this team are set already")]
    TooManyPlans,
    /// The month goes on.
    #[error("{0} is not over yet (UTC)")]
    NotEnded(Month),
    /// An earlier month comes first.
    #[error("{0} is still open: months are closed in their order")]
    EarlierOpen(Month),
    /// The month lies before the first one that anything was used in.
    #[error("{0} lies before the first month that anything was used in")]
    BeforeTheFirst(Month),
    /// The month is not being closed.
    #[error("{0} is not being closed")]
    NotClosing(Month),
    /// Not all of its lines are written down.
    #[error("{written} of {all} lines of {period} are written down")]
    LinesMissing {
        /// The month.
        period: Month,
        /// How many are.
        written: u32,
        /// How many there are.
        all: u32,
    },
    /// The month is open.
    #[error("{0} is not closed")]
    NotClosed(Month),
}

fn check_terms(terms: &Terms) -> Result<(), Refusal> {
    let fits = |price: &NanoUsd| (NanoUsd::ZERO..=HIGHEST_PRICE).contains(price);
    if !terms.prices().iter().all(fits) || terms.mark_up_basis_points.is_some_and(|mark_up| mark_up > HIGHEST_MARK_UP) {
        return Err(Refusal::PriceOutOfRange);
    }
    let charges = terms.mark_up_basis_points.is_some() || terms.prices().iter().any(|price| *price > NanoUsd::ZERO);
    if charges { Ok(()) } else { Err(Refusal::NoPrice) }
}

fn check_plan(plan: &Plan) -> Result<(), Refusal> {
    if plan.overrides.len() > MOST_OVERRIDES {
        return Err(Refusal::TooManyOverrides);
    }
    check_terms(&plan.terms)?;
    let mut known = BTreeSet::new();
    for other in &plan.overrides {
        check_terms(&other.terms)?;
        let fits = |name: &&String| (1..=LONGEST_NAME).contains(&name.len());
        let names = [&other.customer, &other.project];
        let named: Vec<_> = names.into_iter().flatten().collect();
        if named.is_empty() || !named.iter().all(fits) || !known.insert((&other.customer, &other.project)) {
            return Err(Refusal::BadOverride);
        }
    }
    Ok(())
}

/// What the command makes happen, or why it does nothing.
pub fn decide(billing: &Billing, command: Command) -> Result<Vec<BillingEvent>, Refusal> {
    match command {
        Command::SetPlan(plan) => set_plan(billing, plan),
        Command::CutOff { period, today, earliest } => cut_off(billing, period, today, earliest),
        Command::WriteLines { period, lines } => {
            let Some(closing) = closing(billing, period)? else { return Ok(Vec::new()) };
            let left: Vec<_> = lines.into_iter().filter(|line| line.number > closing.lines).collect();
            let event = |lines: &[NumberedLine]| {
                BillingEvent::InvoiceReady(Box::new(InvoiceReady { period, lines: lines.to_vec() }))
            };
            Ok(left.chunks(LINES_PER_EVENT).map(event).collect())
        }
        Command::Close(closed) => {
            let Some(closing) = closing(billing, closed.period)? else { return Ok(Vec::new()) };
            if closing.lines != closed.totals.lines {
                let (period, written, all) = (closed.period, closing.lines, closed.totals.lines);
                return Err(Refusal::LinesMissing { period, written, all });
            }
            Ok(vec![BillingEvent::PeriodClosed(closed)])
        }
        Command::RecordPush(pushed) => {
            if !billing.closed.contains_key(&pushed.period) {
                return Err(Refusal::NotClosed(pushed.period));
            }
            // What was said need not be said again; above the bound, the log of deliveries knows.
            let known = billing.pushed.contains(&pushed) || billing.pushed.len() >= MOST_PUSHES;
            Ok(if known { Vec::new() } else { vec![BillingEvent::InvoicePushed(pushed)] })
        }
    }
}

/// The closing of this month; `None`: it is closed.
fn closing(billing: &Billing, period: Month) -> Result<Option<Closing>, Refusal> {
    if billing.closed.contains_key(&period) {
        return Ok(None);
    }
    match billing.closing {
        Some(closing) if closing.period == period => Ok(Some(closing)),
        Some(_) | None => Err(Refusal::NotClosing(period)),
    }
}

fn set_plan(billing: &Billing, plan: Plan) -> Result<Vec<BillingEvent>, Refusal> {
    check_plan(&plan)?;
    if let Some(last) = billing.cut_off
        && Month::of(plan.effective_from) <= last
    {
        return Err(Refusal::PlanTooEarly(last));
    }
    // What is so already need not be said.
    let stands = billing.plans.iter().rfind(|set| set.plan.effective_from == plan.effective_from);
    if stands.is_some_and(|set| set.plan == plan) {
        return Ok(Vec::new());
    }
    if billing.plans.len() >= MOST_PLANS {
        return Err(Refusal::TooManyPlans);
    }
    let version = billing.plans.last().map_or(0, |set| set.version) + 1;
    Ok(vec![BillingEvent::PlanSet(Box::new(PlanSet { version, plan }))])
}

fn cut_off(
    billing: &Billing,
    period: Month,
    today: Date,
    earliest: Option<Month>,
) -> Result<Vec<BillingEvent>, Refusal> {
    let is_closing = billing.closing.is_some_and(|closing| closing.period == period);
    if is_closing || billing.closed.contains_key(&period) {
        return Ok(Vec::new());
    }
    if let Some(closing) = billing.closing {
        return Err(Refusal::EarlierOpen(closing.period));
    }
    if today <= period.last_day() {
        return Err(Refusal::NotEnded(period));
    }
    let due = billing.cut_off.map_or(earliest, |last| Some(last.next()));
    match due {
        Some(due) if due < period => Err(Refusal::EarlierOpen(due)),
        Some(due) if due > period => Err(Refusal::BeforeTheFirst(period)),
        None => Err(Refusal::BeforeTheFirst(period)),
        Some(_) => Ok(vec![BillingEvent::PeriodCutOff(PeriodCutOff { period })]),
    }
}
