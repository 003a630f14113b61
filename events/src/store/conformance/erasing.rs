//! What can be forgotten, and what stays when it is.

use super::{Store, event, numbers, stream};
use crate::envelope::{NewEvent, Position, Private, Revision};
use crate::id::EventId;
use crate::json::Json;
use crate::store::{Direction, Expected, Filter, MAX_EVENT_BYTES, StoreError, read_whole_stream};
use uuid::Uuid;

/// An event of which a part can be forgotten.
pub fn event_with_private(kind: &str, public: &str, private: &str) -> NewEvent {
    let salt = *Uuid::now_v7().as_bytes();
    let salt = [salt, salt].concat().try_into().unwrap();
    NewEvent { private: Some(Private { salt, content: Json::stored(private) }), ..event(kind, public) }
}

const PUBLIC: &str = r#"{"n":1,"task":"[erased]"}"#;
const PRIVATE: &str = r#"{"task":"rename it \"Zoë\" 🦀","metadata":{}}"#;
const WHOLE: &str = r#"{"n":1,"task":"rename it \"Zoë\" 🦀","metadata":{}}"#;

pub(super) async fn both_parts_are_read_as_one_until_the_private_one_is_erased(store: Store) {
    let (name, other) = (stream("task-1"), stream("task-2"));
    let batch = vec![event_with_private("created", PUBLIC, PRIVATE), event("queued", "{}")];
    store.append(&name, Expected::NoStream, batch.clone()).await.unwrap();
    store.append(&other, Expected::NoStream, vec![event_with_private("created", PUBLIC, PRIVATE)]).await.unwrap();
    let filters = [Filter::everything(), Filter::category("task")];
    let data = async || {
        let mut seen = vec![store.read_all(Position::START, 10).await.unwrap()];
        for filter in &filters {
            seen.push(store.read_matching(Position::START, filter, 10).await.unwrap().events);
        }
        for (number, way) in [Direction::Forwards, Direction::Backwards].into_iter().enumerate() {
            let mut events = store.read_stream(&name, None, way, 10).await.unwrap();
            if number == 1 {
                events.reverse();
            }
            events.extend(store.read_stream(&other, None, way, 10).await.unwrap());
            seen.push(events);
        }
        let first = &seen[0];
        for other in &seen[1..] {
            let same = |(one, other): (&crate::Envelope, &crate::Envelope)| {
                (one.id, one.data.get(), one.erased) == (other.id, other.data.get(), other.erased)
            };
            assert!(first.len() == other.len() && first.iter().zip(other).all(same), "{first:?} and {other:?}");
        }
        seen[0].iter().map(|event| (event.data.get().to_owned(), event.erased)).collect::<Vec<_>>()
    };
    let told = |text: &str, erased| (text.to_owned(), erased);
    assert_eq!(data().await, [told(WHOLE, false), told("{}", false), told(WHOLE, false)]);

    assert_eq!(store.erase(std::slice::from_ref(&name)).await, Ok(1));
    assert_eq!(data().await, [told(PUBLIC, true), told("{}", false), told(WHOLE, false)]);
    assert_eq!(store.erase(std::slice::from_ref(&name)).await, Ok(0), "again is harmless");
    assert_eq!(store.erase(&[stream("task-3"), stream("task-4")]).await, Ok(0));

    // The stream goes on, and a repeated append is still the same append.
    let repeated = store.append(&name, Expected::NoStream, batch).await.unwrap();
    assert_eq!(repeated.revision, Revision(1));
    let last = event_with_private("message", PUBLIC, PRIVATE);
    store.append(&name, Expected::Exactly(Revision(1)), vec![last]).await.unwrap();
    let whole = read_whole_stream(&*store, &name).await.unwrap();
    assert_eq!(numbers(&whole), [0, 1, 2]);
    assert_eq!((whole[0].data.get(), whole[2].data.get()), (PUBLIC, WHOLE), "what is erased does not come back");
    let json = serde_json::to_value(&whole[0]).unwrap();
    assert_eq!((&json["erased"], &json["data"]["task"]), (&true.into(), &"[erased]".into()));
    assert_eq!(serde_json::to_value(&whole[2]).unwrap().get("erased"), None);
}

pub(super) async fn long_streams_are_erased_whole(store: Store) {
    let (name, other) = (stream("task-1"), stream("task-2"));
    for _ in 0..13 {
        let batch = (0..100).map(|_| event_with_private("message", PUBLIC, PRIVATE)).collect();
        store.append(&name, Expected::Any, batch).await.unwrap();
        let between = (0..300).map(|_| event_with_private("message", PUBLIC, PRIVATE)).collect();
        store.append(&other, Expected::Any, between).await.unwrap();
    }
    assert_eq!(store.erase(std::slice::from_ref(&name)).await, Ok(1_300));
    assert!(read_whole_stream(&*store, &name).await.unwrap().iter().all(|event| event.erased));
    assert!(read_whole_stream(&*store, &other).await.unwrap().iter().all(|event| !event.erased));
}

pub(super) async fn parts_that_do_not_fit_are_refused(store: Store) {
    let name = stream("task-1");
    let half = "x".repeat(MAX_EVENT_BYTES / 2);
    let large = |member: &str| format!("{{\"{member}\":\"{half}\"}}");
    for (public, private) in [
        ("{}".to_owned(), "[]".to_owned()),
        ("null".to_owned(), "{}".to_owned()),
        (r#"{"a":1,"b":2}"#.to_owned(), r#"{"a":3}"#.to_owned()),
        (large("a"), large("b")),
    ] {
        let batch = vec![event_with_private("m", &public, &private)];
        assert_eq!(store.append(&name, Expected::Any, batch).await, Err(StoreError::BadBatch));
    }
    let id = EventId(Uuid::now_v7());
    let fits = NewEvent { id, ..event_with_private("m", "{}", &large("b")) };
    store.append(&name, Expected::NoStream, vec![fits]).await.unwrap();
}
