//! The rules of bills, one by one.

use jiff::civil::{Date, date};
use proptest::prelude::*;

use super::event::{NumberedLine, PlanSet};
use super::plan::{HIGHEST_PRICE, MOST_OVERRIDES};
use super::*;
use crate::envelope::Position;
use crate::money::NanoUsd;

fn usd(nanos: i64) -> NanoUsd {
    NanoUsd::from_nanos(nanos)
}

fn month(text: &str) -> Month {
    text.parse().unwrap()
}

fn plan(from: Date, terms: Terms) -> Plan {
    Plan { effective_from: from, currency: Currency::Usd, terms, overrides: Vec::new() }
}

fn marked_up(basis_points: u32) -> Terms {
    Terms { mark_up_basis_points: Some(basis_points), ..Terms::default() }
}

/// Bills and their log.
#[derive(Default)]
struct Bills {
    billing: Billing,
    log: Vec<BillingEvent>,
}

impl Bills {
    fn ask(&mut self, command: Command) -> Result<Vec<BillingEvent>, Refusal> {
        let events = decide(&self.billing, command)?;
        for event in &events {
            self.billing = evolve(std::mem::take(&mut self.billing), event);
            self.log.push(event.clone());
        }
        let folded = self.log.iter().fold(Billing::default(), evolve);
        assert_eq!(folded, self.billing, "a fold is the live state");
        Ok(events)
    }

    fn cut_off(&mut self, period: &str, today: Date, earliest: Option<&str>) -> Result<Vec<BillingEvent>, Refusal> {
        self.ask(Command::CutOff { period: month(period), today, earliest: earliest.map(month) })
    }

    fn close(&mut self, period: &str, lines: u32) -> Result<Vec<BillingEvent>, Refusal> {
        let totals = Totals { lines, ..Totals::default() };
        let (period, through, digest) = (month(period), Position(7), "00".to_owned());
        self.ask(Command::Close(Box::new(PeriodClosed { period, through, totals, digest, plans: vec![0] })))
    }
}

fn line(day: Date, quantities: Quantities, billable: i64) -> Line {
    Line {
        kind: LineKind::Usage,
        day,
        corrects: None,
        customer: None,
        project: None,
        environment: None,
        task_type: None,
        model: None,
        quantities,
        billable_nano_usd: usd(billable),
    }
}

fn numbered(count: u32) -> Vec<NumberedLine> {
    let of = |number| NumberedLine {
        number,
        idempotency_key: format!("a/2026-10/{number}"),
        line: line(date(2026, 10, 1), Quantities::default(), 1),
    };
    (1..=count).map(of).collect()
}

#[test]
fn a_line_is_rounded_once_to_the_nearest_and_to_the_even_of_two() {
    let cost = |nanos: i64| Quantities { cost_nano_usd: usd(nanos), ..Quantities::default() };
    // 50 % on top of odd amounts lies half-way between two nano-dollars.
    for (nanos, expected) in [(1, 2), (3, 4), (5, 8), (7, 10), (2, 3), (0, 0)] {
        assert_eq!(marked_up(5_000).price(&cost(nanos)), usd(expected), "{nanos}");
    }
    // Below nothing the rule is the same: a refund of 1 takes back what a charge of 1 was.
    for (nanos, expected) in [(1, -2), (3, -4), (5, -8)] {
        let refund = Quantities { refunded_nano_usd: usd(nanos), ..Quantities::default() };
        assert_eq!(marked_up(5_000).price(&refund), usd(expected), "{nanos}");
    }
    // The parts are added before anything is rounded: a third of each, three times, is one.
    let terms = Terms { per_minute: usd(1), per_million_input: usd(1), ..Terms::default() };
    let third = Quantities {
        sandbox_ms: 20_000,
        tokens: Tokens { input: 666_667, ..Tokens::default() },
        ..Quantities::default()
    };
    assert_eq!(terms.price(&third), usd(1));
    let dear =
        Terms { mark_up_basis_points: Some(plan::HIGHEST_MARK_UP), per_minute: HIGHEST_PRICE, ..Terms::default() };
    let huge = Quantities { cost_nano_usd: NanoUsd::MAX, sandbox_ms: u64::MAX, ..Quantities::default() };
    assert_eq!(dear.price(&huge), NanoUsd::MAX, "it ends, and does not wrap");
}

#[test]
fn every_price_counts_what_it_is_for() {
    let tokens = Tokens { input: 1_000_000, output: 2_000_000, cache_read: 3_000_000, cache_write: 4_000_000 };
    let used = Quantities {
        tasks: 5,
        tokens,
        cost_nano_usd: usd(1_000),
        refunded_nano_usd: usd(100),
        refunded_tokens: Tokens { output: 1_000_000, ..Tokens::default() },
        sandbox_ms: 90_000,
    };
    let none = Terms::default();
    for (terms, expected) in [
        (none, 0),
        (Terms::AT_COST, 900),
        (marked_up(1_000), 990),
        (Terms { per_task: usd(7), ..none }, 35),
        (Terms { per_minute: usd(10), ..none }, 15),
        (Terms { per_million_input: usd(3), ..none }, 3),
        // One of the two million was reversed.
        (Terms { per_million_output: usd(3), ..none }, 3),
        (Terms { per_million_cache_read: usd(3), ..none }, 9),
        (Terms { per_million_cache_write: usd(3), ..none }, 12),
        (Terms { mark_up_basis_points: Some(0), per_task: usd(7), per_minute: usd(10), ..none }, 950),
    ] {
        assert_eq!(terms.price(&used), usd(expected), "{terms:?}");
    }
}

proptest! {
    #[test]
    fn a_charge_and_its_refund_come_to_nothing(nanos in 0..=1_000_000_000_000_000_i64, tokens in 0..1_000_000_000_u64, mark_up in 0..=plan::HIGHEST_MARK_UP, price in 0..=1_000_000_000_000_i64) {
        let terms = Terms { mark_up_basis_points: Some(mark_up), per_million_output: usd(price), ..Terms::default() };
        let tokens = Tokens { output: tokens, ..Tokens::default() };
        let both = Quantities {
            tokens, cost_nano_usd: usd(nanos), refunded_nano_usd: usd(nanos), refunded_tokens: tokens,
            ..Quantities::default()
        };
        prop_assert_eq!(terms.price(&both), NanoUsd::ZERO);
        let charge = Quantities { tokens, cost_nano_usd: usd(nanos), ..Quantities::default() };
        let refund = Quantities { refunded_nano_usd: usd(nanos), refunded_tokens: tokens, ..Quantities::default() };
        // To the half of a nano-dollar the two stand on different lines.
        prop_assert_eq!(terms.price(&charge).nanos(), -terms.price(&refund).nanos());
    }
}

#[test]
fn the_narrowest_exception_goes_and_the_day_decides_on_the_plan() {
    let other = |customer: Option<&str>, project: Option<&str>, mark_up| Override {
        customer: customer.map(str::to_owned),
        project: project.map(str::to_owned),
        terms: marked_up(mark_up),
    };
    let overrides =
        vec![other(None, Some("infra"), 3), other(Some("Acme"), None, 2), other(Some("Acme"), Some("infra"), 1)];
    let mut bills = Bills::default();
    let at_cost = |bills: &Bills, day| *bills.billing.terms(day, None, None).0 == Terms::AT_COST;
    assert!(at_cost(&bills, date(2026, 10, 1)));
    bills.ask(Command::SetPlan(Plan { overrides, ..plan(date(2026, 10, 10), marked_up(9)) })).unwrap();
    let of = |bills: &Bills, day, customer, project| bills.billing.terms(day, customer, project).0.mark_up_basis_points;
    let day = date(2026, 10, 10);
    for (customer, project, expected) in [
        (Some("Acme"), Some("infra"), 1),
        (Some("Acme"), Some("web"), 2),
        (Some("Acme"), None, 2),
        (Some("Other"), Some("infra"), 3),
        (None, Some("infra"), 3),
        (None, None, 9),
        (Some("Other"), None, 9),
    ] {
        assert_eq!(of(&bills, day, customer, project), Some(expected), "{customer:?} {project:?}");
    }
    assert!(at_cost(&bills, date(2026, 10, 9)), "no plan goes before its first day");
    bills.ask(Command::SetPlan(plan(date(2026, 10, 20), marked_up(20)))).unwrap();
    // Set later for an earlier day: it goes until the other begins.
    bills.ask(Command::SetPlan(plan(date(2026, 10, 15), marked_up(15)))).unwrap();
    assert_eq!(of(&bills, date(2026, 10, 19), None, None), Some(15));
    assert_eq!(of(&bills, date(2026, 10, 25), None, None), Some(20));
    // Said again, it is nothing new; said otherwise for the same day, the later word goes.
    assert_eq!(bills.ask(Command::SetPlan(plan(date(2026, 10, 20), marked_up(20)))), Ok(vec![]));
    bills.ask(Command::SetPlan(plan(date(2026, 10, 20), marked_up(21)))).unwrap();
    let (terms, version) = bills.billing.terms(date(2026, 10, 25), None, None);
    assert_eq!((terms.mark_up_basis_points, version), (Some(21), 4));
}

#[test]
fn what_is_no_plan_is_refused() {
    let day = date(2026, 10, 1);
    let with = |overrides| Plan { overrides, ..plan(day, marked_up(1)) };
    let other =
        |customer: Option<&str>, terms| Override { customer: customer.map(str::to_owned), project: None, terms };
    let negative = Terms { per_task: usd(-1), ..marked_up(0) };
    for (plan, refusal) in [
        (plan(day, Terms::default()), Refusal::NoPrice),
        (plan(day, negative), Refusal::PriceOutOfRange),
        (plan(day, Terms { minimum: HIGHEST_PRICE + usd(1), ..marked_up(0) }), Refusal::PriceOutOfRange),
        (plan(day, marked_up(plan::HIGHEST_MARK_UP + 1)), Refusal::PriceOutOfRange),
        (with(vec![other(None, marked_up(1))]), Refusal::BadOverride),
        (with(vec![other(Some(""), marked_up(1))]), Refusal::BadOverride),
        (with(vec![other(Some("a"), marked_up(1)), other(Some("a"), marked_up(2))]), Refusal::BadOverride),
        (with(vec![other(Some("a"), Terms::default())]), Refusal::NoPrice),
        (with(vec![other(Some("a"), marked_up(1)); MOST_OVERRIDES + 1]), Refusal::TooManyOverrides),
    ] {
        let mut bills = Bills::default();
        assert_eq!(bills.ask(Command::SetPlan(plan)), Err(refusal));
    }
}

#[test]
fn months_are_closed_in_their_order_once_they_are_over_and_for_good() {
    let mut bills = Bills::default();
    let november = date(2026, 11, 1);
    assert_eq!(bills.cut_off("2026-10", date(2026, 10, 31), None), Err(Refusal::NotEnded(month("2026-10"))));
    let early = bills.cut_off("2026-10", november, Some("2026-09"));
    assert_eq!(early, Err(Refusal::EarlierOpen(month("2026-09"))));
    assert_eq!(bills.cut_off("2026-10", november, Some("2026-10")).unwrap().len(), 1);
    assert_eq!(bills.cut_off("2026-10", november, None), Ok(vec![]), "said again, it is nothing new");
    assert_eq!(bills.close("2026-09", 0), Err(Refusal::NotClosing(month("2026-09"))));
    // Nothing is closed beside a month that is being closed, and nothing without all of its lines.
    let beside = bills.cut_off("2026-11", date(2026, 12, 1), None);
    assert_eq!(beside, Err(Refusal::EarlierOpen(month("2026-10"))));
    let lines = numbered(command::LINES_PER_EVENT as u32 + 1);
    let write = |lines: &[NumberedLine]| Command::WriteLines { period: month("2026-10"), lines: lines.to_vec() };
    assert_eq!(bills.ask(write(&lines[..3])).unwrap().len(), 1);
    let all = lines.len() as u32;
    let missing = Refusal::LinesMissing { period: month("2026-10"), written: 3, all };
    assert_eq!(bills.close("2026-10", all), Err(missing));
    // The rest, in events that are not too large; the first three are not said again.
    assert_eq!(bills.ask(write(&lines)).unwrap().len(), 1);
    assert_eq!(bills.ask(write(&lines)), Ok(vec![]));
    assert_eq!(bills.close("2026-10", all).unwrap().len(), 1);
    assert_eq!(bills.close("2026-10", all), Ok(vec![]));
    assert_eq!(bills.ask(write(&lines)), Ok(vec![]));
    assert_eq!(bills.cut_off("2026-10", november, None), Ok(vec![]), "what is closed is closed");
    let before = bills.cut_off("2026-08", november, None);
    assert_eq!(before, Err(Refusal::BeforeTheFirst(month("2026-08"))));
    let skipping = bills.cut_off("2026-12", date(2027, 1, 1), None);
    assert_eq!(skipping, Err(Refusal::EarlierOpen(month("2026-11"))));

    // Nothing reaches back behind it.
    let too_early = bills.ask(Command::SetPlan(plan(date(2026, 10, 31), marked_up(1))));
    assert_eq!(too_early, Err(Refusal::PlanTooEarly(month("2026-10"))));
    bills.ask(Command::SetPlan(plan(november, marked_up(1)))).unwrap();
    assert_eq!(bills.billing.period_of(date(2026, 10, 31)), month("2026-11"));
    assert_eq!(bills.billing.period_of(date(2026, 9, 1)), month("2026-11"));
    assert_eq!(bills.billing.period_of(date(2026, 12, 24)), month("2026-12"));
}

#[test]
fn a_bill_adds_what_is_missing_to_the_least_and_sums_by_customer() {
    let mut billing = Billing::default();
    let set = |customer: Option<&str>, minimum| Override {
        customer: customer.map(str::to_owned),
        project: None,
        terms: Terms { minimum: usd(minimum), ..marked_up(0) },
    };
    let terms = Terms { minimum: usd(100), ..marked_up(0) };
    let plan = Plan { overrides: vec![set(Some("Acme"), 10)], ..plan(date(2026, 10, 31), terms) };
    billing.plans.push(PlanSet { version: 3, plan });
    let one = Quantities { tasks: 1, ..Quantities::default() };
    let of = |customer: Option<&str>, kind, billable| Line {
        kind,
        customer: customer.map(str::to_owned),
        ..line(date(2026, 10, 31), one, billable)
    };
    let lines = vec![
        of(Some("Late"), LineKind::Adjustment, -40),
        of(None, LineKind::Usage, 30),
        of(Some("Acme"), LineKind::Usage, 10),
        of(Some("Big"), LineKind::Usage, 60),
        of(Some("Big"), LineKind::Usage, 50),
    ];
    let bill = Invoice::draw_up(&billing, "a", month("2026-10"), lines.clone());
    let sums: Vec<_> = bill
        .customers
        .iter()
        .map(|sum| (sum.customer.as_deref(), sum.totals.minimum_nano_usd.nanos(), sum.totals.billable_nano_usd.nanos()))
        .collect();
    // Only adjustments: nothing was done for them in this month, and no least is owed.
    assert_eq!(sums, [(None, 70, 100), (Some("Acme"), 0, 10), (Some("Big"), 0, 110), (Some("Late"), 0, -40)]);
    assert_eq!(bill.lines.len(), 6);
    assert_eq!((bill.totals.lines, bill.totals.quantities.tasks), (6, 5));
    assert_eq!((bill.totals.usage_nano_usd, bill.totals.adjustments_nano_usd), (usd(150), usd(-40)));
    assert_eq!(bill.totals.billable_nano_usd, usd(180));
    assert_eq!(bill.plans, [3]);
    assert_eq!(bill.numbered().last().unwrap().idempotency_key, "a/2026-10/6");
    // Whatever changes in a line changes the digest, its place included.
    let digest = |lines| Invoice::draw_up(&billing, "a", month("2026-10"), lines).digest().unwrap();
    let whole = digest(lines.clone());
    assert_eq!(whole, digest(lines.clone()));
    let (mut dropped, mut swapped, mut changed) = (lines.clone(), lines.clone(), lines);
    dropped.pop();
    swapped.swap(3, 4);
    changed[2].quantities.sandbox_ms += 1;
    for other in [dropped, swapped, changed] {
        assert_ne!(digest(other), whole);
    }
}
