//! Webhooks and their deliveries as their owners see them: the same after a rebuild, and never too many.

use serde_json::value::RawValue;
use uuid::Uuid;

use super::*;
use crate::envelope::{Actor, NewEvent, StreamName};
use crate::id::EventId;
use crate::projections::{BATCH, ReadModels};
use crate::store::memory::MemoryStore;
use crate::store::{EventStore, Expected};
use crate::webhook::event::SCHEMA;

fn webhook(number: u128) -> WebhookId {
    WebhookId::from_uuid(Uuid::from_u128(number))
}

fn message(number: u64) -> MessageId {
    MessageId::of(webhook(1), EventId(Uuid::from_u128(number.into())))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

async fn append(store: &MemoryStore, id: WebhookId, event: &WebhookEvent) {
    let event = NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: event.kind().into(),
        schema: SCHEMA,
        time: at(0),
        actor: Actor::system("test"),
        correlation: None,
        causation: None,
        data: RawValue::from_string(event.data().unwrap().get().to_owned()).unwrap(),
        private: None,
    };
    store.append(&StreamName::webhook(id), Expected::Any, vec![event]).await.unwrap();
}

fn created(team: Option<&str>) -> WebhookEvent {
    let spec = WebhookSpec {
        team: team.map(str::to_owned),
        url: "https://receiver.example/".to_owned(),
        events: vec!["*".parse().unwrap()],
        projects: Vec::new(),
        environments: Vec::new(),
        description: None,
    };
    WebhookEvent::WebhookCreated { spec, after: Position(0), request_hash: None }
}

fn attempt(number: u64, attempt: u32, outcome: Outcome) -> Attempt {
    let (position, kind) = (Some(Position(number)), "task.failed".to_owned());
    Attempt { position, message: message(number), kind, attempt, at: at(attempt.into()), ms: 5, outcome }
}

fn recorded(attempts: Vec<Attempt>, through: u64) -> WebhookEvent {
    WebhookEvent::DeliveriesRecorded { attempts, through: Position(through), replayed_through: None }
}

const FAILED: Outcome =
    Outcome::Retrying { status: None, fault: Some(Fault::Timeout), next: Timestamp::MAX, pause_until: None };
const TAKEN: Outcome = Outcome::Delivered { status: 204 };

#[tokio::test]
async fn a_message_is_one_row_as_its_last_attempt_left_it() {
    let (folder, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let read = ReadModels::open(&folder.path().join("read.db")).unwrap();
    for (number, team) in [(1, Some("platform")), (2, Some("web")), (3, None)] {
        append(&store, webhook(number), &created(team)).await;
    }
    append(&store, webhook(1), &recorded(vec![attempt(7, 1, FAILED), attempt(8, 1, TAKEN)], 8)).await;
    append(&store, webhook(1), &WebhookEvent::WebhookDisabled { why: DisabledWhy::ByHand }).await;
    append(&store, webhook(1), &WebhookEvent::WebhookEnabled { at: at(5) }).await;
    append(&store, webhook(1), &recorded(vec![attempt(7, 2, TAKEN), attempt(9, 1, FAILED)], 9)).await;
    append(&store, webhook(2), &recorded(vec![attempt(7, 1, TAKEN)], 9)).await;
    append(&store, webhook(2), &WebhookEvent::WebhookRemoved {}).await;
    for event in store.read_all(Position::START, BATCH).await.unwrap() {
        read.apply(vec![event]).await.unwrap();
    }
    let before = (read.webhook(webhook(1)).await.unwrap(), read.deliveries(webhook(1), None, None, 10).await.unwrap());
    read.rebuild(&store).await.unwrap();
    let after = (read.webhook(webhook(1)).await.unwrap(), read.deliveries(webhook(1), None, None, 10).await.unwrap());
    assert_eq!((&before, read.skipped()), (&after, 0));
    let (row, page) = (after.0.unwrap(), after.1);
    assert_eq!((row.through, row.delivered, row.given_up, row.disabled), (Position(9), 2, 0, None));
    assert_eq!((row.delivered_at, row.failing_since), (Some(at(2)), Some(at(1))));
    let rows: Vec<_> = page.deliveries.iter().map(|row| (row.position.unwrap().0, row.attempts, row.outcome)).collect();
    let (retrying, delivered) = (DeliveryOutcome::Retrying, DeliveryOutcome::Delivered);
    assert_eq!(rows, [(9, 1, retrying), (8, 1, delivered), (7, 2, delivered)]);
    assert_eq!((page.deliveries[2].first_at, page.deliveries[2].last_at), (at(1), at(2)));
    let only = read.deliveries(webhook(1), Some(retrying), None, 10).await.unwrap();
    assert_eq!(only.deliveries, page.deliveries[..1]);
    assert_eq!(read.delivery(webhook(1), message(8)).await.unwrap().as_ref(), Some(&page.deliveries[1]));
    assert_eq!(read.webhook(webhook(2)).await.unwrap(), None);
    assert!(read.deliveries(webhook(2), None, None, 10).await.unwrap().deliveries.is_empty());
    // Nobody's list holds another's; no team is called like what stands for the operators.
    for (team, expected) in [
        (None, vec![webhook(3), webhook(1)]),
        (Some(Some("platform")), vec![webhook(1)]),
        (Some(Some("web")), vec![]),
        (Some(Some("")), vec![]),
        (Some(None), vec![webhook(3)]),
    ] {
        let page = read.webhooks(team.map(|team| team.map(str::to_owned)), None, 10, |_| true).await.unwrap();
        assert_eq!(page.webhooks.iter().map(|row| row.id).collect::<Vec<_>>(), expected, "{team:?}");
    }
}

#[tokio::test]
async fn only_so_many_deliveries_are_shown_and_always_the_newest() {
    let (folder, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let read = ReadModels::open(&folder.path().join("read.db")).unwrap();
    append(&store, webhook(1), &created(Some("platform"))).await;
    let batch = MAX_RECORDED as u64;
    let batches = MAX_DELIVERIES.unsigned_abs() / batch + 2;
    for number in 0..batches {
        let first = number * batch + 1;
        let attempts = (first..first + batch).map(|number| attempt(number, 1, TAKEN)).collect();
        append(&store, webhook(1), &recorded(attempts, first + batch)).await;
    }
    read.apply(store.read_all(Position::START, BATCH).await.unwrap()).await.unwrap();
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let page = read.deliveries(webhook(1), None, cursor, MAX_PAGE).await.unwrap();
        seen.extend(page.deliveries.iter().map(|row| row.position.unwrap().0));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let newest = batches * batch;
    assert_eq!(seen, (newest - MAX_DELIVERIES.unsigned_abs() + 1..=newest).rev().collect::<Vec<_>>());
    assert_eq!(read.webhook(webhook(1)).await.unwrap().unwrap().delivered, newest);
}
