//! Books that do not add up, in logs whose chain holds.

use super::super::books::{Fault, Mismatch};
use super::*;

fn books(log: &Log) -> Result<super::super::Balance, Mismatch> {
    let report = check(&log.lines(&key()), &pinned());
    assert_eq!(report.broken, None);
    report.books
}

fn over(log: &mut Log, id: TaskId) {
    log.task(id, &TaskEvent::Succeeded {});
}

#[test]
fn a_charge_that_the_ledger_does_not_have_is_named() {
    let mut log = Log::default();
    log.call(task(1), 1, 500);
    let at = log.task(task(1), &charged(2, 600));
    over(&mut log, task(1));
    let wrong = books(&log).unwrap_err();
    assert_eq!(wrong.position, at);
    assert!(matches!(wrong.fault, Fault::NotSettled { task: id, .. } if id == task(1)), "{wrong}");
}

#[test]
fn a_settlement_that_the_task_does_not_have_is_named_once_the_task_is_over() {
    let mut log = Log::default();
    log.call(task(1), 1, 500);
    log.ledger(&reserved(task(1), 2, 900));
    let at = log.ledger(&settled(task(1), 2, 600));
    assert_eq!(books(&log).unwrap().under_way, 1, "the task's own event may still come");
    over(&mut log, task(1));
    let wrong = books(&log).unwrap_err();
    assert_eq!(wrong.position, at);
    assert!(matches!(wrong.fault, Fault::NotCharged { task: id, .. } if id == task(1)), "{wrong}");
    log.task(task(1), &TaskEvent::Queued {});
    assert!(books(&log).is_ok(), "it goes on");
}

#[test]
fn another_amount_is_named_to_the_nano_dollar() {
    let mut log = Log::default();
    log.ledger(&reserved(task(1), 1, 900));
    log.ledger(&settled(task(1), 1, 600));
    let mut wrong = charged(1, 600);
    let TaskEvent::TokensCharged { cost_nano_usd, .. } = &mut wrong else { unreachable!() };
    *cost_nano_usd = NanoUsd::from_nanos(601);
    let at = log.task(task(1), &wrong);
    let mismatch = books(&log).unwrap_err();
    assert_eq!(mismatch.position, at);
    assert!(matches!(mismatch.fault, Fault::Differs { .. }), "{mismatch}");
    assert!(mismatch.to_string().contains("$0.000000601"), "{mismatch}");
}

#[test]
fn refunds_agree_once_the_task_is_over() {
    let mut log = Log::default();
    log.call(task(1), 1, 500);
    log.ledger(&refunded(task(1), 400));
    assert_eq!(books(&log).unwrap().under_way, 1);
    over(&mut log, task(1));
    assert!(matches!(books(&log).unwrap_err().fault, Fault::Refunds { .. }));
}

#[test]
fn a_charge_twice_a_ledger_that_breaks_its_promise_and_what_does_not_read_are_named() {
    let mut log = Log::default();
    log.call(task(1), 1, 500);
    let at = log.task(task(1), &charged(1, 500));
    let wrong = books(&log).unwrap_err();
    assert_eq!((wrong.position, matches!(wrong.fault, Fault::ChargedTwice { .. })), (at, true), "{wrong}");

    let mut log = Log::default();
    log.call(task(1), 1, 500);
    let at = log.ledger(&settled(task(1), 1, 500));
    let wrong = books(&log).unwrap_err();
    assert_eq!((wrong.position, matches!(wrong.fault, Fault::Ledger { .. })), (at, true), "{wrong}");

    let mut log = Log::default();
    log.call(task(1), 1, 500);
    let at = log.raw(&StreamName::ledger("web").unwrap(), "settled", "{}");
    let wrong = books(&log).unwrap_err();
    assert_eq!((wrong.position, matches!(wrong.fault, Fault::Unreadable(_))), (at, true), "{wrong}");
}

#[test]
fn the_charge_may_stand_before_its_settlement() {
    let mut log = Log::default();
    log.ledger(&reserved(task(1), 1, 900));
    log.task(task(1), &charged(1, 600));
    assert_eq!(books(&log).unwrap().under_way, 1, "its reservation is open");
    log.ledger(&settled(task(1), 1, 600));
    over(&mut log, task(1));
    let balance = books(&log).unwrap();
    assert_eq!((balance.calls, balance.under_way, balance.settled.nano_usd.nanos()), (1, 0, 600));
}
