//! The webhook's rules, as sentences: given what happened, when this is asked, then this happens.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::command::{Command, DEFAULT_OVERLAP, Refusal, decide};
use super::event::{Attempt, DisabledWhy, Fault, Outcome, WebhookEvent, WebhookSpec};
use super::message::MessageId;
use super::retry::Patience;
use super::state::{MAX_REPLAYS, STRUGGLING, Status, Webhook, evolve};
use crate::envelope::Position;
use crate::id::{EventId, WebhookId};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + seconds).unwrap()
}

fn spec() -> WebhookSpec {
    WebhookSpec {
        team: Some("platform".to_owned()),
        url: "https://receiver.example/hook".to_owned(),
        events: vec!["*".parse().unwrap()],
        projects: Vec::new(),
        environments: Vec::new(),
        description: None,
    }
}

fn created() -> Webhook {
    let events = decide(None, Command::Create { spec: spec(), after: Position(10), request_hash: None }).unwrap();
    events.iter().fold(None, evolve).unwrap()
}

fn attempt(position: u64, number: u32, seconds: i64, outcome: Outcome) -> Attempt {
    let message = MessageId::of(WebhookId::from_uuid(Uuid::nil()), EventId(Uuid::from_u128(position.into())));
    let position = Some(Position(position)).filter(|position| position.0 > 0);
    Attempt { position, message, kind: "task.failed".to_owned(), attempt: number, at: at(seconds), ms: 5, outcome }
}

fn delivered(position: u64, seconds: i64) -> Attempt {
    attempt(position, 1, seconds, Outcome::Delivered { status: 200 })
}

fn failed(position: u64, number: u32, seconds: i64, next: i64) -> Attempt {
    let outcome = Outcome::Retrying { status: None, fault: Some(Fault::Timeout), next: at(next), pause_until: None };
    attempt(position, number, seconds, outcome)
}

fn record(attempts: Vec<Attempt>, through: u64) -> Command {
    let patience = Patience::default();
    Command::Record { attempts, through: Position(through), replayed_through: None, patience }
}

fn after(webhook: Webhook, command: Command) -> Webhook {
    let events = decide(Some(&webhook), command).unwrap();
    events.iter().fold(Some(webhook), evolve).unwrap()
}

#[test]
fn what_failed_is_pending_until_it_is_taken_and_the_rest_goes_on() {
    let webhook = after(created(), record(vec![delivered(11, 0), failed(12, 1, 0, 5), delivered(13, 0)], 11));
    assert_eq!((webhook.through, webhook.failures), (Position(11), 0));
    assert_eq!(webhook.pending[&Position(12)].next, at(5));
    assert!(
        webhook.has_settled(Position(12)) && webhook.has_settled(Position(13)) && !webhook.has_settled(Position(14))
    );
    let webhook = after(webhook, record(vec![failed(12, 2, 5, 60)], 13));
    let pending = webhook.pending[&Position(12)];
    assert_eq!((pending.attempts, pending.first_at, pending.next), (2, at(0), at(60)));
    assert!(webhook.ahead.is_empty(), "below the checkpoint nothing has to be remembered one by one");
    let webhook = after(webhook, record(vec![attempt(12, 3, 60, Outcome::Delivered { status: 204 })], 13));
    assert!(webhook.pending.is_empty() && webhook.failing_since.is_none());
}

#[test]
fn a_receiver_that_is_down_is_asked_one_thing_at_a_time_and_told_the_rest_once_it_is_back() {
    let failures = (0..STRUGGLING).map(|n| failed(11 + u64::from(n), 1, i64::from(n), 10_000));
    let webhook = after(created(), record(failures.collect(), 15));
    assert!(webhook.is_struggling());
    assert_eq!(webhook.pause_until, Some(at(10_000)), "nothing at all is sent before the next try");
    let webhook = after(webhook, record(vec![attempt(11, 2, 10_000, Outcome::Delivered { status: 200 })], 15));
    assert!(!webhook.is_struggling() && webhook.pause_until.is_none());
    assert!(webhook.pending.values().all(|pending| pending.next == at(10_000)), "{:?}", webhook.pending);
    assert_eq!(webhook.pending.len(), 4);
}

#[test]
fn one_event_that_is_always_refused_is_not_tried_again_with_every_success() {
    let webhook = after(created(), record(vec![failed(11, 1, 0, 10_000), delivered(12, 1)], 12));
    assert_eq!(webhook.pending[&Position(11)].next, at(10_000));
}

#[test]
fn a_receiver_that_asks_for_a_pause_gets_it_from_every_event() {
    let (next, pause_until) = (at(60), Some(at(60)));
    let outcome = Outcome::Retrying { status: Some(429), fault: None, next, pause_until };
    let webhook = after(created(), record(vec![attempt(11, 1, 0, outcome), failed(12, 1, 0, 5)], 12));
    assert_eq!(webhook.pause_until, Some(at(60)));
}

#[test]
fn gone_disables_at_once_and_days_of_failures_do() {
    let gone = attempt(11, 1, 0, Outcome::GivenUp { status: Some(410), fault: None });
    let events = decide(Some(&created()), record(vec![gone], 11)).unwrap();
    assert_eq!(events[1..], [WebhookEvent::WebhookDisabled { why: DisabledWhy::Gone }]);

    let five_days = 5 * 24 * 3600;
    let webhook = after(created(), record(vec![failed(11, 1, 0, 5)], 11));
    let webhook = after(webhook, record(vec![failed(11, 2, five_days - 1, five_days)], 11));
    assert_eq!(webhook.status, Status::Enabled);
    let webhook = after(webhook, record(vec![failed(11, 3, five_days, five_days + 9)], 11));
    assert_eq!(webhook.status, Status::Disabled(DisabledWhy::Failures));

    // Somebody else's success in between begins the days anew.
    let webhook = after(created(), record(vec![failed(11, 1, 0, 5), delivered(12, 60)], 12));
    let webhook = after(webhook, record(vec![failed(11, 2, five_days, five_days + 9)], 12));
    assert_eq!(webhook.status, Status::Enabled);
}

#[test]
fn a_test_that_fails_says_nothing_about_the_webhook_but_gone() {
    let failed = attempt(0, 1, 0, Outcome::GivenUp { status: Some(500), fault: None });
    let webhook = after(created(), record(vec![failed], 10));
    assert_eq!((webhook.failures, webhook.failing_since, webhook.status), (0, None, Status::Enabled));
}

#[test]
fn disabled_stays_disabled_until_somebody_enables_it_and_then_goes_on_where_it_was() {
    let webhook = after(created(), record(vec![failed(11, 1, 0, 5)], 11));
    let webhook = after(webhook, Command::Disable);
    assert_eq!(webhook.status, Status::Disabled(DisabledWhy::ByHand));
    assert_eq!(decide(Some(&webhook), Command::Disable), Ok(Vec::new()));
    let replay = Command::Replay { from: Position(1), to: Position(2) };
    assert_eq!(decide(Some(&webhook), replay), Err(Refusal::Disabled));
    // What was under way when it was disabled is still recorded, and does not enable it.
    let webhook = after(webhook, record(vec![delivered(12, 3)], 11));
    assert!(matches!(webhook.status, Status::Disabled(_)));
    let webhook = after(webhook, Command::Enable { now: at(1_000) });
    assert_eq!((webhook.status, webhook.through), (Status::Enabled, Position(11)));
    let pending = webhook.pending[&Position(11)];
    assert_eq!((pending.first_at, pending.next), (at(1_000), at(1_000)), "the days off do not count");
    assert_eq!(decide(Some(&webhook), Command::Enable { now: at(2_000) }), Ok(Vec::new()));
}

#[test]
fn what_is_removed_is_gone() {
    let webhook = after(created(), Command::Remove);
    for command in [Command::Remove, Command::Enable { now: at(0) }, Command::Change(spec()), record(Vec::new(), 11)] {
        assert_eq!(decide(Some(&webhook), command), Err(Refusal::NoSuchWebhook));
    }
    assert_eq!(evolve(Some(webhook), &WebhookEvent::WebhookEnabled { at: at(0) }).unwrap().status, Status::Removed);
    assert_eq!(decide(None, Command::Disable), Err(Refusal::NoSuchWebhook));
}

#[test]
fn a_rotation_overlaps_with_the_secrets_before_it() {
    let rotate = |webhook, seconds| after(webhook, Command::Rotate { now: at(seconds), overlap: DEFAULT_OVERLAP });
    let day = 24 * 3600;
    let webhook = rotate(created(), 0);
    assert_eq!(webhook.signs_with(at(day - 1)), [2, 1]);
    assert_eq!(webhook.signs_with(at(day)), [2]);
    let webhook = rotate(rotate(rotate(webhook, 10), 20), 30);
    assert_eq!(webhook.signs_with(at(40)), [5, 4, 3, 2], "the oldest of too many goes");
    let at_once = after(created(), Command::Rotate { now: at(0), overlap: Duration::ZERO });
    assert_eq!(at_once.signs_with(at(0)), [2]);
}

#[test]
fn a_team_cannot_be_changed() {
    let other = WebhookSpec { team: Some("web".to_owned()), description: Some("x".to_owned()), ..spec() };
    let webhook = after(created(), Command::Change(other));
    assert_eq!(webhook.spec.team.as_deref(), Some("platform"));
    assert_eq!(webhook.spec.description.as_deref(), Some("x"));
    assert_eq!(decide(Some(&webhook), Command::Change(webhook.spec.clone())), Ok(Vec::new()));
}

#[test]
fn replays_are_done_one_after_the_other_and_are_not_endless() {
    let replay = |from, to| Command::Replay { from: Position(from), to: Position(to) };
    let mut webhook = after(after(created(), replay(3, 5)), replay(7, 7));
    let done = |webhook: Webhook, through| {
        let event = WebhookEvent::DeliveriesRecorded {
            attempts: Vec::new(),
            through: Position(10),
            replayed_through: Some(Position(through)),
        };
        evolve(Some(webhook), &event).unwrap()
    };
    webhook = done(webhook, 4);
    assert_eq!(webhook.replays.len(), 2);
    webhook = done(webhook, 5);
    assert_eq!((webhook.replays.len(), webhook.replays[0].through), (1, Position(6)));
    assert_eq!(decide(Some(&webhook), replay(9, 8)), Err(Refusal::EmptyReplay));
    assert_eq!(decide(Some(&webhook), replay(0, 0)), Err(Refusal::EmptyReplay));
    while webhook.replays.len() < MAX_REPLAYS {
        webhook = after(webhook, replay(1, 2));
    }
    assert_eq!(decide(Some(&webhook), replay(1, 2)), Err(Refusal::TooManyReplays));
}
