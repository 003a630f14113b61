//! The rules of a ledger, one by one.

mod lives;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::audit::{Audit, Fault, check};
use super::event::{Amount, Budget, Cap, LedgerEvent, Reserved};
use super::state::{Checkpoint, ENDED_KEPT};
use super::*;
use crate::failure::FailureCode;
use crate::id::{CallId, CampaignId, TaskId};
use crate::money::NanoUsd;
use crate::task::conversation::Usage;

fn call(number: u128) -> CallId {
    CallId::from_uuid(Uuid::from_u128(number))
}

fn task(number: u128) -> TaskId {
    TaskId::from_uuid(Uuid::from_u128(number))
}

fn campaign(number: u128) -> CampaignId {
    CampaignId::from_uuid(Uuid::from_u128(number))
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn usd(nanos: i64) -> NanoUsd {
    NanoUsd::from_nanos(nanos)
}

fn cap(nanos: Option<i64>, tokens: Option<u64>) -> Cap {
    Cap { max_nano_usd: nanos.map(usd), max_tokens: tokens }
}

fn scope(text: &str) -> Scope {
    text.parse().unwrap()
}

/// A quote of a nano-dollar per token in and out.
fn quote(input: u64, wanted: u64, least: u64) -> Quote {
    Quote {
        input_tokens: input,
        input_picos: u128::from(input) * 1_000,
        output_picos: 1_000,
        replies: 1,
        wanted_output: wanted,
        least_output: least,
    }
}

fn zones() -> Zones {
    let mut zones = Zones::utc();
    for name in ZONES {
        zones.insert(name, TimeZone::get(name).expect("the system's time zones"));
    }
    zones
}

const ZONES: [&str; 5] = ["UTC", "Europe/Zurich", "America/New_York", "Pacific/Kiritimati", "Asia/Beirut"];

/// A ledger with its log, its audit and its clock.
struct Ledger {
    state: State,
    log: Vec<LedgerEvent>,
    audit: Audit,
    zones: Zones,
    now: Timestamp,
}

impl Ledger {
    fn new(now: &str) -> Self {
        Self { state: State::default(), log: Vec::new(), audit: Audit::new(), zones: zones(), now: at(now) }
    }

    /// Decides, and takes in what was decided; the audit sees every event first.
    fn ask(&mut self, command: Command) -> Result<Vec<LedgerEvent>, Refusal> {
        let events = decide(&self.state, command, &self.zones)?;
        for event in &events {
            self.audit.take(event).unwrap_or_else(|violation| panic!("{violation}\n{event:?}"));
            self.state = evolve(std::mem::take(&mut self.state), event);
            self.log.push(event.clone());
        }
        Ok(events)
    }

    fn budget(&mut self, of: &str, budget: Budget) {
        self.ask(Command::SetBudget { scope: scope(of), budget }).unwrap();
    }

    fn reserve(&mut self, number: u128, of: u128, quote: Quote) -> Result<Reserved, Refusal> {
        self.reserve_on(number, of, Path::team("a"), Cap::default(), quote)
    }

    fn reserve_on(&mut self, number: u128, of: u128, path: Path, own: Cap, quote: Quote) -> Result<Reserved, Refusal> {
        let request = Reserve {
            call: call(number),
            task: task(of),
            path,
            own,
            opening: Amount::ZERO,
            campaign: None,
            model: "m".to_owned(),
            price: "p".to_owned(),
            quote,
        };
        self.ask(Command::Reserve(Box::new(request), self.now))?;
        Ok(self.state.open_call(call(number)).expect("it is reserved").clone())
    }

    fn settle(&mut self, number: u128, tokens: u64) -> Result<Vec<LedgerEvent>, Refusal> {
        let usage = Usage { output_tokens: tokens, ..Usage::default() };
        let cost = usd(i64::try_from(tokens).unwrap());
        let settle = Settle { call: call(number), usage, cost, confirmed: true, price: "p".to_owned() };
        self.ask(Command::Settle(Box::new(settle)))
    }

    fn standing(&self, of: &str) -> View {
        view(&self.state, &scope(of), self.now, &self.zones)
    }

    /// What another process would know.
    fn refolded(&self) -> State {
        let start = self.log.iter().rposition(|event| matches!(event, LedgerEvent::DayClosed(_))).unwrap_or(0);
        self.log[start..].iter().fold(State::default(), evolve)
    }
}

fn exhausted(refused: Result<Reserved, Refusal>) -> (Exhausted, bool) {
    match refused {
        Err(Refusal::Exhausted { exhausted, waits_for }) => (*exhausted, waits_for),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_call_is_cut_to_what_is_left_and_refused_below_what_is_useful() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    ledger.budget("team:a", Budget { per_day: cap(Some(100), None), ..Budget::default() });
    let first = ledger.reserve(1, 1, quote(10, 50, 20)).unwrap();
    assert_eq!((first.amount(), first.max_output_tokens), (Amount { nano_usd: usd(60), tokens: 60 }, 50));
    let second = ledger.reserve(2, 1, quote(10, 50, 20)).unwrap();
    assert_eq!((second.reserved_nano_usd, second.max_output_tokens), (usd(40), 30));
    let (refused, waits_for) = exhausted(ledger.reserve(3, 1, quote(10, 50, 20)));
    assert!(waits_for, "the two may turn out to cost nothing");
    assert_eq!(refused.scope, "team:a");
    assert_eq!(refused.period, Period::Day);
    assert_eq!(refused.resets_at, Some(at("2026-11-23T00:00:00Z")));
    let zero = NanoUsd::ZERO;
    assert_eq!(
        refused.amounts,
        Amounts::Dollars { spent_nano_usd: zero, reserved_nano_usd: usd(100), cap_nano_usd: usd(100) }
    );
    ledger.settle(1, 60).unwrap();
    ledger.settle(2, 40).unwrap();
    let (_, waits_for) = exhausted(ledger.reserve(3, 1, quote(10, 50, 20)));
    assert!(!waits_for, "nothing is under way that could make room");
    ledger.now = at("2026-11-23T00:00:00Z");
    ledger.reserve(3, 1, quote(10, 50, 20)).unwrap();
}

#[test]
fn every_scope_and_period_holds_and_the_one_that_refuses_is_named() {
    let path = Path {
        project: Some("p".into()),
        environment: Some("e".into()),
        task_type: Some("t".into()),
        ..Path::team("a")
    };
    let tight = cap(Some(5), None);
    let per = |period| match period {
        Period::Task => Budget { per_task: tight, ..Budget::default() },
        Period::Day => Budget { per_day: tight, ..Budget::default() },
        Period::Month => Budget { per_month: tight, ..Budget::default() },
        Period::Campaign => panic!("a scope has no cap over campaigns"),
    };
    for of in ["team:a", "project:a/p", "environment:a/p/e", "task-type:a/t"] {
        for period in [Period::Task, Period::Day, Period::Month] {
            let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
            ledger.budget(of, per(period));
            let (refused, waits_for) = exhausted(ledger.reserve_on(1, 1, path.clone(), Cap::default(), quote(5, 9, 1)));
            assert_eq!((refused.scope.as_str(), refused.period, waits_for), (of, period, false));
            // Another team, project, environment or type of task is another matter.
            let elsewhere = Path { project: Some("q".into()), task_type: Some("u".into()), ..path.clone() };
            let other = ledger.reserve_on(2, 1, elsewhere, Cap::default(), quote(5, 9, 1));
            assert_eq!(other.is_ok(), of != "team:a");
        }
    }
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    let (refused, _) = exhausted(ledger.reserve_on(1, 1, path.clone(), tight, quote(5, 9, 1)));
    assert_eq!((refused.scope, refused.resets_at), (format!("task:{}", task(1)), None));
    let (refused, _) = exhausted(ledger.reserve_on(1, 1, path, cap(None, Some(5)), quote(5, 9, 1)));
    assert_eq!(refused.amounts, Amounts::Tokens { spent_tokens: 0, reserved_tokens: 0, cap_tokens: 5 });
}

/// Reserves for a task of a campaign.
fn reserve_for(ledger: &mut Ledger, number: u128, of: u128, campaign: CampaignId) -> Result<Reserved, Refusal> {
    let request = Reserve {
        call: call(number),
        task: task(of),
        path: Path::team("a"),
        own: Cap::default(),
        opening: Amount::ZERO,
        campaign: Some(campaign),
        model: "m".to_owned(),
        price: "p".to_owned(),
        quote: quote(10, 30, 30),
    };
    ledger.ask(Command::Reserve(Box::new(request), ledger.now))?;
    Ok(ledger.state.open_call(call(number)).expect("it is reserved").clone())
}

#[test]
fn the_tasks_of_a_campaign_share_one_cap_for_its_whole_life() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    let shared = campaign(5);
    assert_eq!(reserve_for(&mut ledger, 1, 1, shared), Err(Refusal::NoSuchCampaign(shared)));
    let open = |cap| Command::OpenCampaign {
        campaign: shared,
        cap,
        day: at("2026-11-22T10:00:00Z").to_zoned(TimeZone::UTC).date(),
    };
    assert_eq!(ledger.ask(open(cap(Some(100), None))).unwrap().len(), 1);
    // Said again, even with another cap, it is the account that stands.
    assert_eq!(ledger.ask(open(cap(Some(900), None))), Ok(vec![]));
    reserve_for(&mut ledger, 1, 1, shared).unwrap();
    reserve_for(&mut ledger, 2, 2, shared).unwrap();
    let (refused, waits_for) = exhausted(reserve_for(&mut ledger, 3, 3, shared));
    assert_eq!((refused.scope, refused.period, waits_for), (format!("campaign:{shared}"), Period::Campaign, true));
    assert_eq!(refused.resets_at, None);
    // A task that is no part of it is not held back.
    ledger.reserve(4, 4, quote(10, 30, 30)).unwrap();
    ledger.settle(1, 40).unwrap();
    let announced = ledger.settle(2, 40).unwrap();
    let holders: Vec<_> = announced
        .iter()
        .filter_map(|event| match event {
            LedgerEvent::ThresholdReached(event) => Some((event.scope.to_string(), event.percent)),
            _ => None,
        })
        .collect();
    assert_eq!(holders, [(format!("campaign:{shared}"), 50), (format!("campaign:{shared}"), 80)]);
    // Neither a new day nor a crash makes it whole again.
    ledger.now = at("2026-12-22T10:00:00Z");
    ledger.ask(Command::CloseDay("2026-12-21".parse().unwrap())).unwrap();
    ledger.state = ledger.refolded();
    assert!(!exhausted(reserve_for(&mut ledger, 5, 3, shared)).1);
    assert_eq!(ledger.state.campaign(shared).unwrap().1, Amount { nano_usd: usd(80), tokens: 80 });
}

#[test]
fn a_campaign_that_was_forgotten_is_not_begun_anew() {
    let mut ledger = Ledger::new("2026-01-10T10:00:00Z");
    let (idle, busy) = (campaign(5), campaign(6));
    for id in [idle, busy] {
        let (cap, day) = (cap(Some(100), None), "2026-01-10".parse().unwrap());
        ledger.ask(Command::OpenCampaign { campaign: id, cap, day }).unwrap();
    }
    reserve_for(&mut ledger, 1, 1, idle).unwrap();
    ledger.settle(1, 40).unwrap();
    // One with a reservation is kept, however long it takes.
    reserve_for(&mut ledger, 2, 2, busy).unwrap();
    for (number, month) in (3..).zip(["2026-02", "2026-03", "2026-04"]) {
        ledger.now = at(&format!("{month}-10T10:00:00Z"));
        ledger.reserve(number, number, quote(1, 1, 1)).unwrap();
        ledger.settle(number, 1).unwrap();
    }
    assert_eq!(reserve_for(&mut ledger, 9, 1, idle), Err(Refusal::NoSuchCampaign(idle)));
    reserve_for(&mut ledger, 10, 2, busy).unwrap();
    exhausted(reserve_for(&mut ledger, 11, 2, busy));
}

#[test]
fn what_is_said_twice_happens_once() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    let first = ledger.reserve(1, 1, quote(10, 50, 20)).unwrap();
    let events = ledger.log.len();
    assert_eq!(ledger.reserve(1, 1, quote(99, 99, 99)).unwrap(), first);
    assert_eq!(ledger.log.len(), events);
    ledger.settle(1, 7).unwrap();
    assert_eq!(ledger.settle(1, 9), Ok(vec![]));
    assert_eq!(ledger.ask(Command::Release(call(1))), Ok(vec![]));
    assert_eq!(ledger.ask(Command::Trim { call: call(1), to: Amount::ZERO }), Ok(vec![]));
    assert_eq!(ledger.reserve(1, 1, quote(1, 1, 1)), Err(Refusal::CallEnded(call(1))));
    assert_eq!(ledger.settle(2, 7), Err(Refusal::NoSuchCall(call(2))));
    assert_eq!(ledger.ask(Command::Release(call(2))), Err(Refusal::NoSuchCall(call(2))));
    assert_eq!(ledger.standing("team:a").day.spent, Amount { nano_usd: usd(7), tokens: 7 });
}

#[test]
fn a_trim_frees_at_once_and_never_raises() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    ledger.budget("team:a", Budget { per_day: cap(Some(100), None), ..Budget::default() });
    ledger.reserve(1, 1, quote(50, 50, 50)).unwrap();
    exhausted(ledger.reserve(2, 1, quote(10, 10, 10)));
    let trim = |nanos, tokens| Command::Trim { call: call(1), to: Amount { nano_usd: usd(nanos), tokens } };
    assert_eq!(ledger.ask(trim(200, 200)), Ok(vec![]));
    ledger.ask(trim(70, 200)).unwrap();
    assert_eq!(ledger.state.open_call(call(1)).unwrap().amount(), Amount { nano_usd: usd(70), tokens: 100 });
    ledger.reserve(2, 1, quote(10, 20, 10)).unwrap();
    exhausted(ledger.reserve(3, 1, quote(1, 1, 1)));
}

#[test]
fn a_call_that_costs_more_than_was_set_aside_is_booked_in_full() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    ledger.budget("team:a", Budget { per_day: cap(Some(100), None), ..Budget::default() });
    ledger.reserve(1, 1, quote(50, 50, 50)).unwrap();
    ledger.settle(1, 150).unwrap();
    assert_eq!(ledger.standing("team:a").day.spent.nano_usd, usd(150));
    exhausted(ledger.reserve(2, 1, quote(1, 1, 1)));
    assert_eq!(check(&ledger.log).unwrap().overruns, 1);
}

#[test]
fn a_cap_that_is_set_at_noon_counts_the_morning() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    ledger.reserve(1, 1, quote(50, 50, 50)).unwrap();
    ledger.settle(1, 80).unwrap();
    ledger.reserve(2, 1, quote(5, 5, 5)).unwrap();
    ledger.budget("team:a", Budget { per_month: cap(None, Some(100)), ..Budget::default() });
    let view = ledger.standing("team:a");
    assert_eq!((view.month.spent.tokens, view.month.reserved.tokens), (80, 10));
    assert_eq!(ledger.reserve(3, 1, quote(5, 50, 5)).unwrap().reserved_tokens, 10);
    // A lower cap blocks what is new and touches nothing that stands.
    ledger.budget("team:a", Budget { per_month: cap(None, Some(1)), ..Budget::default() });
    exhausted(ledger.reserve(4, 1, quote(1, 1, 1)));
    ledger.settle(2, 10).unwrap();
}

#[test]
fn a_call_counts_to_the_day_on_which_it_was_reserved() {
    let mut ledger = Ledger::new("2026-11-22T22:59:59Z");
    let zurich = Budget { time_zone: Some("Europe/Zurich".into()), ..Budget::default() };
    ledger.budget("team:a", zurich.clone());
    ledger.budget("project:a/p", Budget { time_zone: Some("America/New_York".into()), ..zurich });
    let path = Path { project: Some("p".into()), ..Path::team("a") };
    let before = ledger.reserve_on(1, 1, path.clone(), Cap::default(), quote(5, 5, 5)).unwrap();
    ledger.now = at("2026-11-22T23:00:00Z");
    let after = ledger.reserve_on(2, 1, path, Cap::default(), quote(5, 5, 5)).unwrap();
    assert_eq!((before.day.to_string(), after.day.to_string()), ("2026-11-22".into(), "2026-11-23".into()));
    assert_eq!(after.day_of(Tier::Project).to_string(), "2026-11-22");
    assert!(before.days.is_empty());
    ledger.settle(1, 3).unwrap();
    let team = ledger.standing("team:a");
    assert_eq!((team.day.spent.tokens, team.day.reserved.tokens, team.month.spent.tokens), (0, 10, 3));
    assert_eq!(team.day.resets_at, Some(at("2026-11-23T23:00:00Z")));
    let project = ledger.standing("project:a/p");
    assert_eq!((project.day.spent.tokens, project.day.reserved.tokens), (3, 10));
    assert_eq!(project.day.resets_at, Some(at("2026-11-23T05:00:00Z")));
    // A scope without a zone of its own goes by its team's.
    assert_eq!(ledger.standing("task-type:a/t").time_zone, "Europe/Zurich");
}

#[test]
fn parts_of_a_cap_are_announced_once_per_window() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    ledger.budget("team:a", Budget { per_day: cap(Some(100), None), ..Budget::default() });
    let announced = |events: Vec<LedgerEvent>| -> Vec<u8> {
        let percent = |event: &LedgerEvent| match event {
            LedgerEvent::ThresholdReached(event) => Some(event.percent),
            _ => None,
        };
        events.iter().filter_map(percent).collect()
    };
    for (number, tokens, expected) in [(1, 49, vec![]), (2, 1, vec![50]), (3, 1, vec![]), (4, 49, vec![80, 100])] {
        ledger.reserve(number, 1, quote(0, tokens, 1)).unwrap();
        assert_eq!(announced(ledger.settle(number, tokens).unwrap()), expected);
    }
    ledger.now = at("2026-11-23T10:00:00Z");
    ledger.reserve(5, 1, quote(0, 50, 1)).unwrap();
    assert_eq!(announced(ledger.settle(5, 50).unwrap()), [50]);
    // Per task: once for each task, and for the task's own cap.
    ledger.budget("team:a", Budget { per_task: cap(None, Some(10)), ..Budget::default() });
    for (number, of) in [(6, 7), (7, 8)] {
        ledger.reserve_on(number, of, Path::team("a"), cap(None, Some(8)), quote(0, 8, 1)).unwrap();
        assert_eq!(announced(ledger.settle(number, 8).unwrap()), [50, 80, 100, 50, 80]);
    }
}

#[test]
fn one_charge_makes_eighty_five_events_at_most() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    let all = cap(Some(100), Some(100));
    let path = Path {
        project: Some("p".into()),
        environment: Some("e".into()),
        task_type: Some("t".into()),
        ..Path::team("a")
    };
    for of in path.scopes().map(|scope| scope.to_string()).collect::<Vec<_>>() {
        ledger.budget(&of, Budget { per_task: all, per_day: all, per_month: all, time_zone: None });
    }
    let day = "2026-11-22".parse().unwrap();
    ledger.ask(Command::OpenCampaign { campaign: campaign(5), cap: all, day }).unwrap();
    let request = Reserve {
        call: call(1),
        task: task(1),
        path,
        own: all,
        opening: Amount::ZERO,
        campaign: Some(campaign(5)),
        model: "m".to_owned(),
        price: "p".to_owned(),
        quote: quote(50, 50, 50),
    };
    ledger.ask(Command::Reserve(Box::new(request), ledger.now)).unwrap();
    assert_eq!(ledger.settle(1, 100).unwrap().len(), 85);
}

#[test]
fn a_refund_gives_no_headroom_and_never_more_than_was_spent() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    ledger.budget("team:a", Budget { per_day: cap(Some(100), None), ..Budget::default() });
    ledger.reserve(1, 1, quote(50, 50, 50)).unwrap();
    ledger.settle(1, 100).unwrap();
    let refund = |from, to| Command::Refund {
        task: task(1),
        from: usd(from),
        to: usd(to),
        usage: Usage::default(),
        reason: FailureCode::Internal,
        team: "a".to_owned(),
        now: at("2026-11-22T10:00:00Z"),
    };
    assert_eq!(ledger.ask(refund(0, 0)), Ok(vec![]));
    assert_eq!(ledger.ask(refund(0, 60)).unwrap().len(), 1);
    // A crash before the task's own stream had it: asked again, it is the same refund.
    assert_eq!(ledger.ask(refund(0, 60)), Ok(vec![]));
    assert_eq!(ledger.ask(refund(60, 120)), Err(Refusal::RefundTooLarge { task: task(1), left: usd(40) }));
    exhausted(ledger.reserve(2, 1, quote(1, 1, 1)));
    assert_eq!(check(&ledger.log).unwrap().tasks[&task(1)].refunded, usd(60));
}

#[test]
fn budgets_are_checked() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    let set = |budget| Command::SetBudget { scope: scope("team:a"), budget };
    let lost = Budget { time_zone: Some("Europe/Atlantis".into()), ..Budget::default() };
    assert_eq!(ledger.ask(set(lost)), Err(Refusal::UnknownTimeZone("Europe/Atlantis".into())));
    let negative = Budget { per_day: cap(Some(-1), None), ..Budget::default() };
    assert_eq!(ledger.ask(set(negative)), Err(Refusal::NegativeCap));
    let some = Budget { per_day: cap(Some(1), None), ..Budget::default() };
    assert_eq!(ledger.ask(set(some.clone())).unwrap().len(), 1);
    assert_eq!(ledger.ask(set(some)), Ok(vec![]));
    assert_eq!(ledger.ask(set(Budget::default())).unwrap().len(), 1);
    assert_eq!(ledger.state.budgets().count(), 0);
}

#[test]
fn a_call_that_nothing_bounds_is_refused() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    let endless = Quote { wanted_output: u64::MAX, output_picos: u64::MAX, ..quote(1, 1, 1) };
    assert!(matches!(ledger.reserve(1, 1, endless), Err(Refusal::TooDear { .. })));
    assert!(matches!(ledger.reserve(1, 1, quote(1, 0, 0)), Err(Refusal::TooDear { .. })));
}

#[test]
fn a_first_call_is_checked_without_a_trace() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    ledger
        .budget("team:a", Budget { per_task: cap(Some(50), None), per_day: cap(Some(60), None), ..Budget::default() });
    ledger.reserve(1, 1, quote(0, 20, 1)).unwrap();
    let fits = |quote| fits(&ledger.state, &Path::team("a"), Cap::default(), &quote, ledger.now, &ledger.zones);
    assert_eq!(fits(quote(0, 99, 1)).unwrap().max_output_tokens, 40);
    assert!(matches!(fits(quote(0, 99, 41)), Err(Refusal::Exhausted { waits_for: true, .. })));
    assert!(matches!(fits(quote(0, 99, 51)), Err(Refusal::Exhausted { waits_for: false, .. })));
}

#[test]
fn what_is_kept_is_bounded_however_long_the_ledger_gets() {
    let mut ledger = Ledger::new("2026-01-01T10:00:00Z");
    let mut number = 0;
    for _ in 0..200 {
        for _ in 0..12 {
            number += 1;
            let path = Path { project: Some(format!("p{number}")), ..Path::team("a") };
            ledger.reserve_on(number, number, path, Cap::default(), quote(1, 1, 1)).unwrap();
            ledger.settle(number, 1).unwrap();
        }
        ledger.now += SignedDuration::from_hours(24);
    }
    assert!(ledger.state.tasks.len() <= 24, "{}", ledger.state.tasks.len());
    assert!(ledger.state.accounts.len() <= 62 * 12 + 1, "{}", ledger.state.accounts.len());
    assert!((0..number).filter(|number| ledger.state.has_ended(call(*number))).count() <= ENDED_KEPT);
    let team = &ledger.state.accounts[&scope("team:a")];
    assert_eq!((team.days.kept.len(), team.months.kept.len()), (2, 2));
    ledger.audit.agrees_with(&ledger.state).unwrap();
}

#[test]
fn a_checkpoint_that_would_be_too_large_forgets_idle_tasks_first() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    for number in 1..=12_000 {
        let opening = Amount { nano_usd: usd(1), tokens: 1 };
        let request = Reserve {
            call: call(number),
            task: task(number),
            path: Path::team("a"),
            own: Cap::default(),
            opening,
            campaign: None,
            model: "m".into(),
            price: "p".into(),
            quote: quote(1, 1, 1),
        };
        ledger.ask(Command::Reserve(Box::new(request), ledger.now)).unwrap();
        if number > 10 {
            ledger.settle(number, 1).unwrap();
        }
    }
    let events = ledger.ask(Command::CloseDay("2026-11-22".parse().unwrap())).unwrap();
    let [LedgerEvent::DayClosed(closed)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(closed.checkpoint.tasks.len(), 10);
    assert_eq!(ledger.refolded(), ledger.state);
    assert_eq!(ledger.ask(Command::CloseDay("2026-11-22".parse().unwrap())), Ok(vec![]));
}

#[test]
fn the_audit_sees_what_must_not_be() {
    let mut ledger = Ledger::new("2026-11-22T10:00:00Z");
    ledger.budget("team:a", Budget { per_day: cap(Some(100), None), ..Budget::default() });
    ledger.reserve(1, 1, quote(50, 50, 50)).unwrap();
    ledger.settle(1, 40).unwrap();
    let of = |events: &[LedgerEvent]| check(events).map(drop).map_err(|violation| violation.fault);
    assert_eq!(of(&ledger.log), Ok(()));
    let (reserved, settled) = (ledger.log[1].clone(), ledger.log[2].clone());
    let with = |more: &[LedgerEvent]| of(&[ledger.log.clone(), more.to_vec()].concat());
    assert_eq!(with(&[settled]), Err(Fault::NotOpen(call(1))));
    assert_eq!(with(std::slice::from_ref(&reserved)), Err(Fault::ReservedTwice(call(1))));
    let LedgerEvent::Reserved(mut other) = reserved else { panic!("{reserved:?}") };
    other.call = call(2);
    let over = with(&[LedgerEvent::Reserved(other.clone())]);
    assert!(matches!(over, Err(Fault::Overshoot { used: 140, cap: 100, .. })), "{over:?}");
    other.reserved_nano_usd = usd(10);
    let trim = event::Trimmed { call: call(2), reserved_nano_usd: usd(11), reserved_tokens: 0 };
    assert_eq!(with(&[LedgerEvent::Reserved(other), LedgerEvent::Trimmed(trim)]), Err(Fault::Raised(call(2))));
    let mut checkpoint = Checkpoint::of(&ledger.state);
    checkpoint.scopes[0].days[0].spent.tokens -= 1;
    let closed = event::DayClosed { day: "2026-11-22".parse().unwrap(), checkpoint };
    assert!(matches!(with(&[LedgerEvent::DayClosed(Box::new(closed))]), Err(Fault::Disagreement { .. })));
}
