//! The part of the suite in which many act at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Store, event, numbers, stream};
use crate::envelope::{Position, Revision};
use crate::store::{Expected, Filter, StoreError, read_whole_stream};
use crate::subscription::Subscription;

/// Far above what any of this takes: a store that loses a wake-up fails instead of hanging.
const DEADLINE: Duration = Duration::from_secs(60);

async fn all<T: 'static>(mut tasks: JoinSet<T>) -> Vec<T> {
    let mut done = Vec::new();
    let finish = async {
        while let Some(task) = tasks.join_next().await {
            done.push(task.expect("a task of the suite failed"));
        }
    };
    tokio::time::timeout(DEADLINE, finish).await.expect("the store hangs");
    done
}

/// A number below `bound` that differs from run to run.
fn chance(bound: u64) -> u64 {
    (Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).as_u128() as u64) % bound.max(1)
}

pub(super) async fn one_writer_wins(store: Store) {
    let name = stream("task-contended");
    for round in 0..20u64 {
        let expected = round.checked_sub(1).map_or(Expected::NoStream, |last| Expected::Exactly(Revision(last)));
        let mut writers = JoinSet::new();
        for _ in 0..16 {
            let (store, name) = (Arc::clone(&store), name.clone());
            writers.spawn(async move { store.append(&name, expected, vec![event("m", "0")]).await });
        }
        let results = all(writers).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        let refused = results.iter().filter_map(|result| result.as_ref().err());
        for refusal in refused {
            let actual = Some(Revision(round));
            assert_eq!(*refusal, StoreError::WrongExpectedRevision { stream: name.clone(), expected, actual });
        }
    }
    assert_eq!(numbers(&read_whole_stream(&*store, &name).await.unwrap()), (0..20).collect::<Vec<_>>());
}

/// Meanwhile, readers of the whole log never see a position whose predecessors they cannot see.
pub(super) async fn writers_of_many_streams_do_not_disturb_each_other(store: Store) {
    const WRITERS: u64 = 24;
    const APPENDS: u64 = 40;
    let finished = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..3 {
        let (store, finished) = (Arc::clone(&store), Arc::clone(&finished));
        readers.spawn(async move {
            let mut after = Position::START;
            let mut next: HashMap<_, u64> = HashMap::new();
            let mut seen = Vec::new();
            loop {
                let last_round = finished.load(Ordering::Acquire);
                let page = store.read_all(after, 1 + chance(50) as usize).await.unwrap();
                for event in &page {
                    assert!(event.position > after);
                    after = event.position;
                    let due = next.entry(event.stream.clone()).or_default();
                    assert_eq!(event.revision.0, *due, "{} has a gap at {after:?}", event.stream);
                    *due += 1;
                    seen.push(event.id);
                }
                if page.is_empty() {
                    if last_round {
                        return seen;
                    }
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let name = stream(&format!("task-{writer}"));
            let mut expected = Expected::NoStream;
            let mut last = Position::START;
            for number in 0..APPENDS {
                let batch = (0..1 + number % 3).map(|_| event("m", &number.to_string())).collect();
                let appended = store.append(&name, expected, batch).await.unwrap();
                assert!(appended.position > last);
                let read = store.read_stream(&name, Some(appended.revision), crate::store::Direction::Forwards, 1);
                assert_eq!(read.await.unwrap()[0].position, appended.position, "a writer reads what it wrote");
                let wrong = store.append(&name, expected, vec![event("m", "0")]).await;
                assert!(matches!(wrong, Err(StoreError::WrongExpectedRevision { .. })), "{wrong:?}");
                last = appended.position;
                expected = Expected::Exactly(appended.revision);
            }
        });
    }
    all(writers).await;
    finished.store(true, Ordering::Release);
    let log: Vec<_> = {
        let mut ids = Vec::new();
        let mut after = Position::START;
        loop {
            let page = store.read_all(after, 1_000).await.unwrap();
            let Some(last) = page.last() else { break ids };
            after = last.position;
            ids.extend(page.iter().map(|event| event.id));
        }
    };
    assert!(log.len() as u64 > WRITERS * APPENDS);
    for seen in all(readers).await {
        assert!(seen == log, "a reader saw {} events, the log has {}", seen.len(), log.len());
    }
}

/// 50 subscribers to one stream and 50 to the whole log join at random moments while writers write.
pub(super) async fn subscribers_see_each_event_once_and_in_order(store: Store) {
    const STREAMS: u64 = 5;
    const EVENTS: u64 = 300;
    let written = Arc::new(AtomicU64::new(0));
    let mut subscribers = JoinSet::new();
    for number in 0..100u64 {
        let (store, written) = (Arc::clone(&store), Arc::clone(&written));
        subscribers.spawn(async move {
            let join_at = chance(STREAMS * EVENTS);
            while written.load(Ordering::Acquire) < join_at {
                tokio::task::yield_now().await;
            }
            let name = stream(&format!("task-{}", number % STREAMS));
            if number % 2 == 0 {
                let after = chance(EVENTS).checked_sub(1);
                let mut due = after.map_or(0, |after| after + 1);
                let mut subscription = Subscription::stream(store, name, after.map(Revision));
                while due < EVENTS {
                    assert_eq!(subscription.next().await.unwrap().revision.0, due);
                    due += 1;
                }
            } else {
                let filter = if number % 4 == 1 {
                    Filter::everything()
                } else {
                    Filter { stream: Some(name), ..Filter::default() }
                };
                let wanted = if number % 4 == 1 { STREAMS * EVENTS } else { EVENTS };
                let mut subscription = Subscription::all(store, Position::START, filter);
                let mut last = Position::START;
                let mut next: HashMap<_, u64> = HashMap::new();
                for _ in 0..wanted {
                    let event = subscription.next().await.unwrap();
                    assert!(event.position > last, "in order");
                    last = event.position;
                    let due = next.entry(event.stream).or_default();
                    assert_eq!(event.revision.0, *due, "without a gap");
                    *due += 1;
                }
            }
        });
    }
    let mut writers = JoinSet::new();
    for number in 0..STREAMS {
        let (store, written) = (Arc::clone(&store), Arc::clone(&written));
        writers.spawn(async move {
            let name = stream(&format!("task-{number}"));
            let mut next = 0;
            while next < EVENTS {
                let count = (1 + chance(4)).min(EVENTS - next);
                let batch = (0..count).map(|_| event("m", "0")).collect();
                store.append(&name, Expected::Any, batch).await.unwrap();
                next += count;
                written.fetch_add(count, Ordering::Release);
            }
        });
    }
    all(writers).await;
    all(subscribers).await;
}
