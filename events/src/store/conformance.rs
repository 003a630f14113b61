//! The suite every store passes.
//!
//! [`run`] takes a closure that makes an empty store and asserts, one promise after another, what the rest of
//! Orchestra relies on. It panics at the first promise that is broken.

// A test suite, also where another crate compiles it: a broken promise is a panic.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod erasing;
mod racing;

use std::sync::Arc;

use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    Direction, EventStore, Expected, Filter, MAX_BATCH, MAX_EVENT_BYTES, MAX_PAGE, StoreError, read_whole_stream,
};
use crate::envelope::{Actor, ActorKind, Envelope, NewEvent, Position, Revision, StreamName};
use crate::id::EventId;
use crate::subscription::{Delivery, Subscription};

pub use erasing::event_with_private;

type Store = Arc<dyn EventStore>;

/// Runs the whole suite, each part on a store of its own.
pub async fn run<F: Future<Output = Store>>(make: impl Fn() -> F) {
    what_is_appended_is_read(make().await).await;
    streams_are_read_both_ways(make().await).await;
    expectations_are_checked(make().await).await;
    a_repeated_append_is_the_same_append(make().await).await;
    an_id_is_used_once(make().await).await;
    batches_are_all_or_nothing(make().await).await;
    bad_batches_are_refused(make().await).await;
    large_pages_end_early(make().await).await;
    filters_choose(make().await).await;
    streams_are_listed_by_category(make().await).await;
    a_subscription_says_when_it_caught_up(make().await).await;
    erasing::both_parts_are_read_as_one_until_the_private_one_is_erased(make().await).await;
    erasing::long_streams_are_erased_whole(make().await).await;
    erasing::parts_that_do_not_fit_are_refused(make().await).await;
    racing::one_writer_wins(make().await).await;
    racing::writers_of_many_streams_do_not_disturb_each_other(make().await).await;
    racing::subscribers_see_each_event_once_and_in_order(make().await).await;
}

/// An event as a test needs it.
pub fn event(kind: &str, data: &str) -> NewEvent {
    NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: kind.into(),
        schema: 1,
        time: "2026-11-22T10:00:00.123456789Z".parse().unwrap(),
        actor: Actor {
            kind: ActorKind::ApiKey,
            id: "key_1".to_owned(),
            team: Some("platform".to_owned()),
            origin: None,
        },
        correlation: None,
        causation: None,
        data: RawValue::from_string(data.to_owned()).unwrap(),
        private: None,
    }
}

/// A stream name that exists.
pub fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

fn numbers(events: &[Envelope]) -> Vec<u64> {
    events.iter().map(|event| event.revision.0).collect()
}

async fn what_is_appended_is_read(store: Store) {
    let name = stream("task-é1".replace('é', "e").as_str());
    assert_eq!(store.head().await, Ok(Position::START));
    assert!(store.read_stream(&name, None, Direction::Forwards, 10).await.unwrap().is_empty());
    assert!(store.read_all(Position::START, 10).await.unwrap().is_empty());

    let data = "{\"text\": \"Zoë 🦀 \\u0000 \\ud83e\\udd80\",   \"n\":1.50, \"big\":123456789012345678901234567890}";
    let mut first = event("created", data);
    first.correlation = Some(stream("campaign-7"));
    first.causation = Some(EventId(Uuid::now_v7()));
    first.schema = 40_000;
    first.actor = Actor { kind: ActorKind::Person, id: "zoë@例え".to_owned(), team: None, origin: None };
    let mut second = event("queued", "null");
    second.correlation = Some(name.clone());
    second.actor = Actor::system("scheduler");
    let appended = store.append(&name, Expected::NoStream, vec![first.clone(), second.clone()]).await.unwrap();
    assert_eq!((appended.revision, appended.position), (Revision(1), store.head().await.unwrap()));

    for events in [
        store.read_stream(&name, None, Direction::Forwards, 10).await.unwrap(),
        store.read_all(Position::START, 10).await.unwrap(),
    ] {
        assert_eq!(numbers(&events), [0, 1]);
        assert!(events[0].position < events[1].position);
        for (stored, new) in events.iter().zip([&first, &second]) {
            assert_eq!(stored.stream, name);
            assert_eq!(stored.id, new.id);
            assert_eq!(stored.kind, new.kind);
            assert_eq!(stored.schema, new.schema);
            assert_eq!(stored.time, new.time);
            assert_eq!(stored.actor, new.actor);
            assert_eq!(stored.correlation, new.correlation);
            assert_eq!(stored.causation, new.causation);
            assert_eq!(stored.data.get(), new.data.get(), "byte for byte");
        }
    }
    let large = format!("\"{}\"", "ü".repeat(MAX_EVENT_BYTES / 2 - 1));
    store.append(&name, Expected::Exactly(Revision(1)), vec![event("message", &large)]).await.unwrap();
    let read = store.read_stream(&name, Some(Revision(2)), Direction::Forwards, 1).await.unwrap();
    assert!(read[0].data.get() == large, "the largest event comes back whole");
}

async fn streams_are_listed_by_category(store: Store) {
    for name in ["key-b", "keys-a", "key-a-2", "ke-y", "task-1", "key-a"] {
        store.append(&stream(name), Expected::NoStream, vec![event("m", "0"), event("m", "1")]).await.unwrap();
    }
    let list = async |category, after: Option<&str>, limit| {
        let names = store.streams(category, after.map(stream).as_ref(), limit).await.unwrap();
        names.iter().map(StreamName::to_string).collect::<Vec<_>>()
    };
    assert_eq!(list("key", None, 10).await, ["key-a", "key-a-2", "key-b"]);
    assert_eq!(list("key", None, 2).await, ["key-a", "key-a-2"]);
    assert_eq!(list("key", Some("key-a-2"), 2).await, ["key-b"]);
    assert!(list("key", Some("key-b"), 2).await.is_empty());
    assert!(list("ledger", None, 2).await.is_empty());
}

async fn streams_are_read_both_ways(store: Store) {
    let (name, other) = (stream("task-1"), stream("task-2"));
    let total = MAX_PAGE as u64 + 200;
    let mut next = Expected::NoStream;
    for from in (0..total).step_by(100) {
        let batch = (from..from + 100).map(|number| event("message", &number.to_string())).collect();
        next = Expected::Exactly(store.append(&name, next, batch).await.unwrap().revision);
        store.append(&other, Expected::Any, vec![event("noise", "0")]).await.unwrap();
    }
    let read = async |from: Option<u64>, direction, limit| {
        numbers(&store.read_stream(&name, from.map(Revision), direction, limit).await.unwrap())
    };
    use Direction::{Backwards, Forwards};
    assert_eq!(read(None, Forwards, 3).await, [0, 1, 2]);
    assert_eq!(read(Some(98), Forwards, 4).await, [98, 99, 100, 101]);
    assert_eq!(read(Some(total - 2), Forwards, 10).await, [total - 2, total - 1]);
    assert!(read(Some(total), Forwards, 10).await.is_empty());
    assert!(read(Some(u64::MAX), Forwards, 10).await.is_empty());
    assert_eq!(read(None, Backwards, 2).await, [total - 1, total - 2]);
    assert_eq!(read(Some(101), Backwards, 3).await, [101, 100, 99]);
    assert_eq!(read(Some(1), Backwards, 10).await, [1, 0]);
    assert_eq!(read(Some(0), Backwards, 10).await, [0]);
    assert_eq!(read(Some(u64::MAX), Backwards, 1).await, [total - 1]);
    assert!(read(None, Forwards, 0).await.is_empty());
    assert_eq!(read(None, Forwards, usize::MAX).await.len(), MAX_PAGE);
    assert_eq!(read(None, Backwards, usize::MAX).await.len(), MAX_PAGE);

    let whole = read_whole_stream(&*store, &name).await.unwrap();
    assert_eq!(numbers(&whole), (0..total).collect::<Vec<_>>());
    assert!(whole.iter().enumerate().all(|(number, event)| event.data.get() == number.to_string()));
    assert!(store.read_stream(&stream("task-3"), None, Backwards, 5).await.unwrap().is_empty());

    let mut after = Position::START;
    let mut seen = 0;
    loop {
        let page = store.read_all(after, 333).await.unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.windows(2).all(|pair| pair[0].position < pair[1].position));
        assert!(page[0].position > after);
        after = last.position;
        seen += page.len() as u64;
    }
    assert_eq!(seen, total + total / 100);
    assert_eq!(after, store.head().await.unwrap());
    assert!(store.read_all(Position(u64::MAX), 10).await.unwrap().is_empty());
}

async fn expectations_are_checked(store: Store) {
    let name = stream("ledger-platform");
    let one = || vec![event("reserved", "{}")];
    let conflict = |expected, actual: Option<u64>| {
        Err(StoreError::WrongExpectedRevision { stream: name.clone(), expected, actual: actual.map(Revision) })
    };
    let at = |revision| Expected::Exactly(Revision(revision));
    assert_eq!(store.append(&name, at(0), one()).await, conflict(at(0), None));
    store.append(&name, Expected::NoStream, one()).await.unwrap();
    assert_eq!(store.append(&name, Expected::NoStream, one()).await, conflict(Expected::NoStream, Some(0)));
    store.append(&name, at(0), one()).await.unwrap();
    assert_eq!(store.append(&name, at(0), one()).await, conflict(at(0), Some(1)));
    assert_eq!(store.append(&name, at(2), one()).await, conflict(at(2), Some(1)));
    assert_eq!(store.append(&name, at(u64::MAX), one()).await, conflict(at(u64::MAX), Some(1)));
    assert_eq!(store.append(&name, Expected::Any, one()).await.unwrap().revision, Revision(2));
    assert_eq!(store.append(&stream("ledger-new"), Expected::Any, one()).await.unwrap().revision, Revision(0));
    assert_eq!(numbers(&read_whole_stream(&*store, &name).await.unwrap()), [0, 1, 2]);
}

async fn a_repeated_append_is_the_same_append(store: Store) {
    let name = stream("task-1");
    let (a, b, c, d) = (event("a", "1"), event("b", "2"), event("c", "3"), event("d", "4"));
    let first = vec![a.clone(), b.clone()];
    let created = store.append(&name, Expected::NoStream, first.clone()).await.unwrap();
    assert_eq!(store.append(&name, Expected::NoStream, first.clone()).await, Ok(created));
    let at = |revision| Expected::Exactly(Revision(revision));
    let next = store.append(&name, at(1), vec![c.clone()]).await.unwrap();
    // Also when the stream has gone on since.
    assert_eq!(store.append(&name, Expected::NoStream, first.clone()).await, Ok(created));
    assert_eq!(store.append(&name, at(1), vec![c.clone()]).await, Ok(next));
    let any = store.append(&name, Expected::Any, vec![d.clone()]).await.unwrap();
    assert_eq!(store.append(&name, Expected::Any, vec![d.clone()]).await, Ok(any));
    assert_eq!(store.append(&name, Expected::Any, vec![c.clone(), d.clone()]).await, Ok(any));
    // A batch that is only partly there, in another order, or at another place is not that batch.
    let conflicts = [
        (Expected::NoStream, vec![a.clone(), event("x", "0")]),
        (Expected::NoStream, vec![b.clone(), a.clone()]),
        (at(0), vec![a.clone()]),
        (at(2), vec![d.clone(), event("x", "0")]),
    ];
    for (expected, batch) in conflicts {
        let refused = store.append(&name, expected, batch).await;
        assert!(matches!(refused, Err(StoreError::WrongExpectedRevision { .. })), "{refused:?}");
    }
    assert_eq!(numbers(&read_whole_stream(&*store, &name).await.unwrap()), [0, 1, 2, 3]);
}

async fn an_id_is_used_once(store: Store) {
    let (one, two) = (stream("task-1"), stream("task-2"));
    let a = event("a", "1");
    store.append(&one, Expected::NoStream, vec![a.clone()]).await.unwrap();
    let at = |revision| Expected::Exactly(Revision(revision));
    for (name, expected, batch) in [
        (&two, Expected::NoStream, vec![a.clone()]),
        (&two, Expected::Any, vec![event("b", "2"), a.clone()]),
        (&one, at(0), vec![a.clone()]),
        (&one, Expected::Any, vec![a.clone(), event("b", "2")]),
    ] {
        let refused = store.append(name, expected, batch).await;
        assert_eq!(refused, Err(StoreError::DuplicateEvent { stream: name.clone(), id: a.id }));
    }
    let twice = event("b", "2");
    let refused = store.append(&two, Expected::NoStream, vec![twice.clone(), twice.clone()]).await;
    assert_eq!(refused, Err(StoreError::DuplicateEvent { stream: two.clone(), id: twice.id }));
    assert_eq!(store.read_all(Position::START, 10).await.unwrap().len(), 1);
    store.append(&two, Expected::NoStream, vec![twice]).await.expect("a refused id may still be used");
}

async fn batches_are_all_or_nothing(store: Store) {
    let name = stream("task-1");
    let batch = |count: usize| (0..count).map(|number| event("m", &number.to_string())).collect::<Vec<_>>();
    store.append(&name, Expected::NoStream, batch(3)).await.unwrap();
    let before = store.head().await.unwrap();
    assert!(store.append(&name, Expected::Exactly(Revision(1)), batch(5)).await.is_err());
    let mut reused = batch(4);
    reused[3].id = store.read_all(Position::START, 1).await.unwrap()[0].id;
    assert!(store.append(&name, Expected::Exactly(Revision(2)), reused).await.is_err());
    assert_eq!(store.head().await.unwrap(), before);
    let appended = store.append(&name, Expected::Exactly(Revision(2)), batch(MAX_BATCH)).await.unwrap();
    assert_eq!(appended.revision, Revision(2 + MAX_BATCH as u64));
    let rest = store.read_all(before, MAX_PAGE).await.unwrap();
    assert_eq!(rest.last().unwrap().position, appended.position);
    assert_eq!(numbers(&rest), (3..3 + MAX_BATCH as u64).collect::<Vec<_>>());
}

async fn bad_batches_are_refused(store: Store) {
    let name = stream("task-1");
    let too_large = format!("\"{}\"", "x".repeat(MAX_EVENT_BYTES - 1));
    let nearly = format!("\"{}\"", "x".repeat(MAX_EVENT_BYTES - 2));
    let many = |count: usize, data: &str| (0..count).map(|_| event("m", data)).collect::<Vec<_>>();
    for batch in [vec![], many(MAX_BATCH + 1, "0"), vec![event("m", &too_large)], many(17, &nearly)] {
        assert_eq!(store.append(&name, Expected::Any, batch).await, Err(StoreError::BadBatch));
    }
    assert_eq!(store.head().await, Ok(Position::START));
}

async fn large_pages_end_early(store: Store) {
    let name = stream("task-1");
    let large = format!("\"{}\"", "x".repeat(MAX_EVENT_BYTES - 2));
    for _ in 0..4 {
        let batch = (0..10).map(|_| event("m", &large)).collect();
        store.append(&name, Expected::Any, batch).await.unwrap();
    }
    let whole = read_whole_stream(&*store, &name).await.unwrap();
    assert_eq!(numbers(&whole), (0..40).collect::<Vec<_>>(), "an early end is not the end");
    let mut subscription = Subscription::stream(store, name, None);
    for revision in 0..40 {
        assert_eq!(subscription.next().await.unwrap().revision, Revision(revision));
    }
}

async fn filters_choose(store: Store) {
    let team = |kind: &str, team: &str| {
        let mut event = event(kind, "0");
        event.actor.team = Some(team.to_owned());
        event
    };
    for (name, new) in [
        ("task-1", team("created", "platform")),
        ("ledger-platform", team("reserved", "platform")),
        ("task-2", team("created", "data")),
        ("task-1", team("failed", "platform")),
    ] {
        store.append(&stream(name), Expected::Any, vec![new]).await.unwrap();
    }
    let all = store.read_all(Position::START, 10).await.unwrap();
    let chosen = async |filter: Filter, limit| {
        let page = store.read_matching(Position::START, &filter, limit).await.unwrap();
        let indexes = page.events.iter().map(|found| all.iter().position(|event| event.id == found.id).unwrap());
        (indexes.collect::<Vec<_>>(), page.through)
    };
    let end = all[3].position;
    assert_eq!(chosen(Filter::everything(), 10).await, (vec![0, 1, 2, 3], end));
    assert_eq!(chosen(Filter::types(["created"]), 10).await, (vec![0, 2], end));
    assert_eq!(chosen(Filter::category("ledger"), 10).await, (vec![1], end));
    assert_eq!(chosen(Filter::category("task").for_team("platform"), 10).await, (vec![0, 3], end));
    let one = Filter { stream: Some(stream("task-1")), ..Filter::default() };
    assert_eq!(chosen(one, 10).await, (vec![0, 3], end));
    assert_eq!(chosen(Filter::types(["never"]), 10).await, (vec![], end), "it says how far it has looked");
    let (first, through) = chosen(Filter::types(["created"]), 1).await;
    assert_eq!(first, [0]);
    assert!(through < all[2].position, "what was not handed over is not passed over");
}

async fn a_subscription_says_when_it_caught_up(store: Store) {
    let name = stream("task-1");
    let mut subscriptions = [
        Subscription::stream(Arc::clone(&store), name.clone(), None),
        Subscription::all(Arc::clone(&store), Position::START, Filter::types(["wanted"])),
    ];
    for subscription in &mut subscriptions {
        assert!(matches!(subscription.next_delivery().await, Ok(Delivery::CaughtUp)));
    }
    store.append(&name, Expected::NoStream, vec![event("wanted", "1")]).await.unwrap();
    for subscription in &mut subscriptions {
        let Ok(Delivery::Event(event)) = subscription.next_delivery().await else { panic!("caught up twice") };
        assert_eq!(event.revision, Revision(0));
    }
    store.append(&stream("task-2"), Expected::NoStream, vec![event("unwanted", "1")]).await.unwrap();
    store.append(&name, Expected::Any, vec![event("wanted", "2")]).await.unwrap();
    for mut subscription in subscriptions {
        assert_eq!(subscription.next().await.unwrap().revision, Revision(1));
        assert!(subscription.looked_through().is_none_or(|through| through.0 > 2));
    }
    let mut resumed = Subscription::stream(Arc::clone(&store), name, Some(Revision(0)));
    assert_eq!(numbers(&resumed.next_batch().await.unwrap()), [1]);
}
