//! What was meant for a webhook and then was not any more, attempts that panic, and a store that takes nothing for a while.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use orchestra_actors::service::Idempotency;
use orchestra_actors::{NewWebhook, WebhookService as _, Webhooks};
use orchestra_events::store::Appended;
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::store::wrapped::Wrapped;
use orchestra_events::webhook::event::MAX_RECORDED;
use orchestra_events::webhook::{Outcome, WebhookEvent, WebhookSpec};
use orchestra_events::{Actor as Who, EventStore, Expected, NewEvent, Position, StoreError, StreamName, TaskId};
use orchestra_runtime::egress::Resolve;
use orchestra_runtime::server_key::ServerKey;
use tokio::sync::Notify;
use uuid::Uuid;

use super::receiver::{Answer, Receiver};
use super::{House, PATIENCE, numbers, quick, spec, start_over, task};

/// A log with moods.
struct Moody {
    log: Arc<MemoryStore>,
    /// Whoever reads the event at this place alone panics, once.
    panics_at: AtomicU64,
    /// How many more records of deliveries are taken.
    takes: AtomicUsize,
}

#[async_trait]
impl Wrapped for Moody {
    fn inner(&self) -> &dyn EventStore {
        &*self.log
    }

    async fn on_append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError> {
        let record = events.iter().any(|event| &*event.kind == "deliveries-recorded");
        let one_less = |left: usize| left.checked_sub(1);
        if record && self.takes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err() {
            return Err(StoreError::Overloaded);
        }
        self.log.append(stream, expected, events).await
    }

    fn on_read_all(&self, after: Position, limit: usize) {
        let here = after.0 + 1;
        let panics = limit == 1 && self.panics_at.compare_exchange(here, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        assert!(!panics, "as the test wants it");
    }
}

/// A resolver that never finds one of the names.
#[derive(Default)]
struct Slow {
    asked: Notify,
}

#[async_trait]
impl Resolve for Slow {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if host == "slow.example" {
            self.asked.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(vec!["93.184.216.34".parse().expect("an address")])
    }
}

fn house(store: Arc<dyn EventStore>, log: &Arc<MemoryStore>, resolver: Arc<dyn Resolve>) -> House {
    let key = Arc::new(ServerKey::passing().expect("randomness"));
    let webhooks: Arc<Webhooks> = start_over(store, &key, resolver, quick(), 20);
    House { store: Arc::clone(log), key, patience: quick(), most: 20, webhooks }
}

fn moody() -> (House, Arc<Moody>) {
    let log = Arc::new(MemoryStore::new());
    let (panics_at, takes) = (AtomicU64::new(0), AtomicUsize::new(usize::MAX));
    let store = Arc::new(Moody { log: Arc::clone(&log), panics_at, takes });
    (house(Arc::clone(&store) as _, &log, Arc::new(Slow::default())), store)
}

#[actix_rt::test]
async fn what_waits_is_not_sent_to_whom_it_is_not_for_any_more() {
    for (patterns, projects) in [(&["task.failed"][..], &[][..]), (&["*"], &["infra"])] {
        let house = House::new().await;
        let before = Receiver::start(|_, _| Answer::Status(500)).await;
        let after = Receiver::start(|_, _| Answer::Status(200)).await;
        let (id, _) = house.hook(&before, Some("platform"), &["*"]).await;
        let created = task("platform", "api");
        let stream = StreamName::task(TaskId::from_uuid(Uuid::from_u128(1)));
        let position = house.append(&stream, created.kind(), None, created.data().expect("JSON").get()).await;
        house.until(id, "pending", |webhook| webhook.pending.contains_key(&position)).await;
        let narrow = WebhookSpec {
            projects: projects.iter().map(|name| (*name).to_owned()).collect(),
            ..spec(&after.url(), Some("platform"), patterns)
        };
        house.webhooks.change_webhook(id, narrow, Who::system("test")).await.expect("changed");
        let standing = house.until(id, "settled", |webhook| webhook.pending.is_empty()).await;
        assert!(after.got().is_empty(), "{:?}", after.got());
        assert!(standing.through >= position);
        let skipped = house.recorded(id).await.into_iter().any(|event| match event {
            WebhookEvent::DeliveriesRecorded { attempts, .. } => {
                attempts.iter().any(|attempt| attempt.position == Some(position) && attempt.outcome == Outcome::Skipped)
            }
            _ => false,
        });
        assert!(skipped, "it is in the delivery log");
    }
}

#[actix_rt::test]
async fn what_waits_and_is_still_wanted_goes_to_the_new_address() {
    let house = House::new().await;
    let before = Receiver::start(|_, _| Answer::Status(500)).await;
    let after = Receiver::start(|_, _| Answer::Status(200)).await;
    let (id, _) = house.hook(&before, Some("platform"), &["*"]).await;
    let position = house.happens("a", "platform", 1).await;
    house.until(id, "pending", |webhook| webhook.pending.contains_key(&position)).await;
    let moved = spec(&after.url(), Some("platform"), &["*"]);
    house.webhooks.change_webhook(id, moved, Who::system("test")).await.expect("changed");
    assert_eq!(numbers(&after.wait_for(1).await), [1]);
}

#[actix_rt::test]
async fn a_name_that_is_never_found_holds_up_no_other_webhook() {
    let (log, slow) = (Arc::new(MemoryStore::new()), Arc::new(Slow::default()));
    let house = house(Arc::clone(&log) as _, &log, Arc::clone(&slow) as _);
    let wanted = |url: &str| NewWebhook { spec: spec(url, Some("platform"), &["*"]), idempotency: None };
    let (webhooks, never) = (Arc::clone(&house.webhooks), wanted("https://slow.example/"));
    let waits = actix_rt::spawn(async move { webhooks.create_webhook(never, Who::system("test")).await.map(drop) });
    slow.asked.notified().await;
    let other = house.webhooks.create_webhook(wanted("https://open.example/"), Who::system("test"));
    let made = tokio::time::timeout(Duration::from_secs(3), other).await.expect("its turn comes at once");
    made.expect("a webhook");
    assert!(!waits.is_finished());
    waits.abort();
}

#[actix_rt::test]
async fn the_secret_is_shown_once() {
    let house = House::new().await;
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let idempotency = Idempotency { owner: "o".to_owned(), key: "k".to_owned(), request_hash: "h".to_owned() };
    let wanted = || NewWebhook { spec: spec(&receiver.url(), None, &["*"]), idempotency: Some(idempotency.clone()) };
    let create = || house.webhooks.create_webhook(wanted(), Who::system("test"));
    let first = create().await.expect("a webhook");
    assert!(first.secret.is_some() && !first.repeated);
    house.webhooks.rotate_webhook(first.id, Duration::ZERO, Who::system("test")).await.expect("rotated");
    let again = create().await.expect("the same");
    assert_eq!((again.id, again.repeated), (first.id, true));
    assert!(again.secret.is_none());
}

#[actix_rt::test]
async fn a_replay_of_which_an_attempt_panics_is_made_again() {
    let (house, store) = moody();
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let (id, _) = house.hook(&receiver, Some("platform"), &["*"]).await;
    let mut positions = Vec::new();
    for number in 0..3 {
        positions.push(house.happens("a", "platform", number).await);
    }
    receiver.wait_for(3).await;
    store.panics_at.store(positions[1].0, Ordering::SeqCst);
    house.webhooks.replay_webhook(id, positions[0], positions[2], Who::system("test")).await.expect("a replay");
    house.until(id, "replayed", |webhook| webhook.replays.is_empty() && webhook.replayed == 1).await;
    assert_eq!(store.panics_at.load(Ordering::SeqCst), 0, "it did panic");
    let mut again = numbers(&receiver.got()[3..]);
    again.sort_unstable();
    assert_eq!(again, [0, 1, 2]);
}

#[actix_rt::test]
async fn a_replay_is_written_down_no_further_than_its_attempts() {
    let (house, store) = moody();
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let (id, _) = house.hook(&receiver, Some("platform"), &["*"]).await;
    let count = MAX_RECORDED + MAX_RECORDED / 2;
    let mut positions = Vec::new();
    for number in 0..count {
        positions.push(house.happens(&format!("s{number}"), "platform", number).await);
    }
    let last = *positions.last().expect("there are some");
    receiver.wait_for(count).await;
    house.until(id, "delivered", |webhook| webhook.through >= last).await;
    store.takes.store(0, Ordering::SeqCst);
    house.webhooks.replay_webhook(id, positions[0], last, Who::system("test")).await.expect("a replay");
    receiver.wait_for(2 * count).await;
    // The last answers are on their way back.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = house.recorded(id).await.len();
    // One record is taken, and then the process is as good as dead.
    store.takes.store(1, Ordering::SeqCst);
    let recorded = tokio::time::timeout(PATIENCE, async {
        loop {
            match house.recorded(id).await.split_off(before).pop() {
                Some(event) => break event,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    let WebhookEvent::DeliveriesRecorded { attempts, replayed_through, .. } = recorded.await.expect("a record") else {
        panic!("something else was recorded")
    };
    assert_eq!(attempts.len(), MAX_RECORDED, "there is more than fits");
    let through = replayed_through.expect("a replay is under way");
    let tried: Vec<_> = attempts.iter().filter_map(|attempt| attempt.position).collect();
    let lost: Vec<_> = positions.iter().filter(|position| **position <= through && !tried.contains(position)).collect();
    assert!(lost.is_empty(), "nobody would make these again: {lost:?}");
    store.takes.store(usize::MAX, Ordering::SeqCst);
    house.until(id, "replayed", |webhook| webhook.replays.is_empty()).await;
}
