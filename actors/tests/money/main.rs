//! Money is one and the same wherever it is counted: after random lives of teams, with refunds, crashes, plans that
//! change, words that are erased and months that are closed, the usage report, the audit, the bills, the ledgers and the
//! tasks' own streams add up to the same nano-dollar in every grouping, and a closed month is what it was.
//!
//! What happens is decided by the ledger's and the tasks' own rules and folded by the read models themselves. What it
//! must come to is counted by [`count`], which shares nothing with them but the events.

#![allow(clippy::unwrap_used)]

mod count;
mod world;

use std::collections::BTreeMap;

use count::{Counted, Side, Sums};
use jiff::SignedDuration;
use jiff::tz::TimeZone;
use orchestra_events::audit::acts::Category;
use orchestra_events::billing::{LineKind, Quantities};
use orchestra_events::ledger::LedgerEvent;
use orchestra_events::ledger::audit::check;
use orchestra_events::projections::{AuditFilter, AuditRow, Dimension, UsageGroup, UsageQuery};
use orchestra_events::store::read_whole_stream;
use orchestra_events::{EventStore as _, NanoUsd, Position, StreamName};
use world::{Seen, TEAMS, World};

/// Random lives. Each is some hundred steps over some months.
const LIVES: u64 = 60;
/// Steps of one.
const STEPS: usize = 400;
/// Rows on a page of the audit: few, so that every life has many pages.
const AUDIT_PAGE: usize = 3;

/// Every dimension alone, and every two of them.
fn groupings() -> Vec<Vec<Dimension>> {
    let all = Dimension::ALL;
    let pairs = all.iter().enumerate().flat_map(|(at, one)| all[at + 1..].iter().map(move |other| vec![*one, *other]));
    std::iter::once(Vec::new()).chain(all.iter().map(|one| vec![*one])).chain(pairs).collect()
}

/// Every three of them: some reports read sums of their own, and others the lines themselves.
fn threes() -> impl Iterator<Item = Vec<Dimension>> {
    let all = Dimension::ALL;
    let at = move |at: usize| (at + 1..all.len()).map(move |next| (all[next], next));
    (0..all.len()).flat_map(move |one| {
        at(one).flat_map(move |(two, second)| at(second).map(move |(three, _)| vec![all[one], two, three]))
    })
}

fn sums_of(group: &UsageGroup) -> Sums {
    Sums {
        tasks: group.tasks.into(),
        input: group.input_tokens.into(),
        output: group.output_tokens.into(),
        cache_read: group.cache_read_tokens.into(),
        cache_write: group.cache_write_tokens.into(),
        cost: group.cost.nanos().into(),
        refunded: group.refunded.nanos().into(),
        sandbox_ms: group.sandbox_ms.into(),
    }
}

fn key_of(group: &UsageGroup) -> Vec<String> {
    group.key.iter().map(|(_, value)| value.clone().unwrap_or_default()).collect()
}

/// The report in every grouping is what the events count up to; what is billed is the same in all of them.
async fn reports_are_the_ledgers(world: &World, counted: &Counted) -> NanoUsd {
    let mut billable = None;
    for group_by in groupings().into_iter().chain(threes()) {
        let report =
            world.read.usage(UsageQuery { group_by: group_by.clone(), ..UsageQuery::default() }).await.unwrap();
        let reported: BTreeMap<_, _> = report.groups.iter().map(|group| (key_of(group), sums_of(group))).collect();
        assert_eq!(reported, counted.by_ledger(&group_by), "{group_by:?}");
        let sum: NanoUsd = report.groups.iter().map(|group| group.billable).sum();
        assert_eq!(sum, report.total.billable, "{group_by:?}");
        assert_eq!(*billable.get_or_insert(sum), sum, "{group_by:?}");
    }
    billable.unwrap_or_default()
}

/// What the tasks' own streams say of money and tokens is what the ledgers say, where a task knows the grouping: it
/// does not know the ledger's days.
fn tasks_are_the_ledgers(counted: &Counted) {
    for group_by in groupings() {
        if group_by.iter().any(|by| matches!(by, Dimension::Day | Dimension::Month)) {
            continue;
        }
        let money = |sums: BTreeMap<Vec<String>, Sums>| -> BTreeMap<Vec<String>, Sums> {
            let only = |sums: Sums| Sums { tasks: 0, sandbox_ms: 0, ..sums };
            let some = sums.into_iter().map(|(key, sums)| (key, only(sums)));
            some.filter(|(_, sums)| *sums != Sums::default()).collect()
        };
        assert_eq!(money(counted.by_tasks(&group_by)), money(counted.by_ledger(&group_by)), "{group_by:?}");
    }
}

/// All rows of the audit with this filter, page by page.
async fn audit(world: &World, filter: AuditFilter) -> Vec<AuditRow> {
    let (mut rows, mut cursor) = (Vec::new(), None);
    loop {
        let page = world.read.audit(filter.clone(), cursor, AUDIT_PAGE).await.unwrap();
        rows.extend(page.rows);
        cursor = page.next;
        if cursor.is_none() {
            return rows;
        }
    }
}

/// Each task has one row in the audit, with what its stream and its ledger say; in every grouping they add up to the
/// same, and the audit's own filters find the same groups. Tasks whose words are gone have theirs as before.
async fn the_audit_is_the_ledgers(world: &World, counted: &Counted) {
    let of_tasks = || AuditFilter { category: Some(Category::Task), ..AuditFilter::default() };
    let rows = audit(world, of_tasks()).await;
    let erased = rows.iter().filter(|row| row.resource.as_ref().unwrap().erased_at.is_some()).count();
    assert_eq!(erased, world.erased.len());
    let audited = Side::of_rows(&rows);
    for (name, side) in counted.for_the_audit() {
        assert_eq!(audited.by_task(), side.by_task(), "{name}");
        for group_by in groupings() {
            assert_eq!(audited.by(&group_by), side.by(&group_by), "{name} {group_by:?}");
        }
        let only = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        for by in [Dimension::Team, Dimension::Project, Dimension::Model, Dimension::Day] {
            for (key, sums) in side.by(&[by]) {
                let value = only(&key[0]);
                let filter = match by {
                    Dimension::Team => AuditFilter { team: value, ..of_tasks() },
                    Dimension::Project => AuditFilter { project: value, ..of_tasks() },
                    Dimension::Model => AuditFilter { model: value, ..of_tasks() },
                    _ => {
                        let day: jiff::civil::Date = key[0].parse().unwrap();
                        let from = day.to_zoned(TimeZone::UTC).unwrap().timestamp();
                        AuditFilter { from: Some(from), to: Some(from + SignedDuration::from_hours(24)), ..of_tasks() }
                    }
                };
                if filter == of_tasks() {
                    // No filter asks for tasks without a project.
                    continue;
                }
                let found = Side::of_rows(&audit(world, filter).await);
                assert_eq!(found.by(&[by]), BTreeMap::from([(key, sums)]), "{name}");
            }
        }
    }
}

/// Each ledger keeps its promises, and its audit's sums are the report's.
async fn audits_are_the_reports(world: &World) {
    for team in TEAMS {
        let stream = StreamName::ledger(team).unwrap();
        let log = read_whole_stream(&*world.store, &stream).await.unwrap();
        let log: Vec<_> = log.iter().map(|envelope| LedgerEvent::decode(envelope).unwrap().unwrap()).collect();
        let totals = check(&log).unwrap_or_else(|violation| panic!("{violation}"));
        let query = UsageQuery { team: Some(team.to_owned()), ..UsageQuery::default() };
        let report = world.read.usage(query).await.unwrap().total;
        assert_eq!(totals.settled.nano_usd, report.cost, "{team}");
        let refunded: NanoUsd = totals.tasks.values().map(|task| task.refunded).sum();
        assert_eq!(refunded, report.refunded, "{team}");
        assert!(totals.open.is_empty(), "every reservation has come to its end");
    }
}

/// All bills together are all that was used, and each line has the price of its day.
async fn bills_are_the_report(world: &World, billable: NanoUsd, seen: &mut Seen) {
    let (mut used, mut billed) = (Quantities::default(), NanoUsd::ZERO);
    for team in TEAMS {
        let billing = world.read.billing(team.to_owned()).await.unwrap();
        for sums in world.read.billing_periods(team.to_owned()).await.unwrap() {
            let bill = world.read.invoice(team.to_owned(), sums.period).await.unwrap().unwrap();
            for line in &bill.lines {
                if line.kind == LineKind::Minimum {
                    seen.minima += 1;
                    continue;
                }
                let (customer, project) = (line.customer.as_deref(), line.project.as_deref());
                let price = billing.price(line.day, customer, project, &line.quantities);
                assert_eq!(price, line.billable_nano_usd, "{team} {line:?}");
                seen.adjustments += u64::from(line.kind == LineKind::Adjustment);
                used += line.quantities;
                billed += line.billable_nano_usd;
            }
            assert_eq!(bill.totals.billable_nano_usd - bill.totals.minimum_nano_usd, sums.billable);
        }
    }
    let total = world.read.usage(UsageQuery::default()).await.unwrap().total;
    assert_eq!(billed, billable);
    assert_eq!((used.cost_nano_usd, used.refunded_nano_usd), (total.cost, total.refunded));
    assert_eq!((used.tasks, used.sandbox_ms), (total.tasks, total.sandbox_ms));
    assert_eq!((used.tokens.input, used.tokens.output), (total.input_tokens, total.output_tokens));
}

/// Every month that was closed still has the lines that it was closed with.
async fn closed_months_stand(world: &World) {
    for ((team, period), kept) in &world.closed {
        let bill = world.read.invoice(team.clone(), *period).await.unwrap().unwrap();
        assert_eq!(bill.numbered().collect::<Vec<_>>(), kept.lines, "{team} {period}");
        assert_eq!(bill.digest().unwrap(), kept.closed.digest, "{team} {period}");
        assert_eq!(bill.totals, kept.closed.totals, "{team} {period}");
        assert_eq!(bill.plans, kept.closed.plans, "{team} {period}");
        assert_eq!(world.written_lines(team, *period).await, kept.lines, "{team} {period}");
    }
}

async fn everything_agrees(world: &World, seen: &mut Seen) {
    let counted = Counted::of(&*world.store).await;
    let billable = reports_are_the_ledgers(world, &counted).await;
    tasks_are_the_ledgers(&counted);
    the_audit_is_the_ledgers(world, &counted).await;
    audits_are_the_reports(world).await;
    bills_are_the_report(world, billable, seen).await;
    closed_months_stand(world).await;
    assert_eq!(world.read.skipped(), 0, "no event is odd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_is_the_same_wherever_it_is_counted() {
    let mut seen = Seen::default();
    for seed in 0..LIVES {
        println!("life {seed}");
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step(&mut seen).await;
        }
        world.come_to_rest(&mut seen).await;
        everything_agrees(&world, &mut seen).await;
        seen.closed += world.closed.len() as u64;
        // Thrown away and folded anew in other batches, it is the same.
        let at = world.read.rebuild(&*world.store).await.unwrap();
        assert_eq!(at, world.store.head().await.unwrap());
        everything_agrees(&world, &mut Seen::default()).await;
        let mut after = Position::START;
        let alone = world.other_read_models();
        loop {
            let batch = world.store.read_all(after, 7).await.unwrap();
            let Some(last) = batch.last() else { break };
            after = last.position;
            alone.apply(batch).await.unwrap();
        }
        let query = || UsageQuery { group_by: Dimension::ALL.to_vec(), ..UsageQuery::default() };
        assert_eq!(alone.usage(query()).await.unwrap(), world.read.usage(query()).await.unwrap(), "life {seed}");
        world.end().await;
    }
    println!("{seen:?}");
    let Seen { refunds, crashes, unconfirmed, late, closed, adjustments, plans, resumed, minima, erased } = seen;
    for (what, times) in [
        ("refunds", refunds),
        ("crashes between two streams", crashes),
        ("calls whose outcome was lost", unconfirmed),
        ("settled on another day than reserved", late),
        ("months closed", closed),
        ("adjustments", adjustments),
        ("plans set", plans),
        ("closings that somebody else went on with", resumed),
        ("tasks whose words were erased", erased),
        ("amounts that were missing to the least", minima),
    ] {
        assert!(times > LIVES / 4, "{what}: {times}");
    }
}
