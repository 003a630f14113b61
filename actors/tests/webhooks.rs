//! Webhooks over a real receiver with faults of every kind: signed, in order, again where it was not taken, and never to
//! somebody else's address.

#[allow(dead_code, reason = "the tests of the whole server use the rest")]
#[path = "webhooks/receiver.rs"]
mod receiver;

#[path = "webhooks/changed.rs"]
mod changed;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orchestra_actors::journal;
use orchestra_actors::service::ServiceError;
use orchestra_actors::{NewWebhook, WebhookRules, WebhookService as _, Webhooks};
use orchestra_events::repo::RepoRef;
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::task::event::{Budget, Harness};
use orchestra_events::task::{TaskEvent, TaskSpec};
use orchestra_events::webhook::state::Status;
use orchestra_events::webhook::{DisabledWhy, Fault, Outcome, Patience, Webhook, WebhookEvent, WebhookSpec};
use orchestra_events::{
    Actor as Who, Direction, EventId, EventStore, Expected, NewEvent, Position, StreamName, TaskId, WebhookId,
};
use orchestra_runtime::egress::Resolve;
use orchestra_runtime::server_key::ServerKey;
use orchestra_runtime::webhook::target::FixedResolver;
use receiver::{Answer, Got, Receiver};
use secrecy::ExposeSecret as _;
use serde_json::value::RawValue;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// A log, a key, and webhooks over both.
struct House {
    store: Arc<MemoryStore>,
    key: Arc<ServerKey>,
    patience: Patience,
    most: usize,
    webhooks: Arc<Webhooks>,
}

/// The last attempt comes within the patience of a test, whatever waits were drawn before it.
fn quick() -> Patience {
    Patience { first_wait: Duration::from_millis(40), give_up: PATIENCE * 2 / 3, disable_after: PATIENCE * 2 }
}

fn start(store: &Arc<MemoryStore>, key: &Arc<ServerKey>, patience: Patience, most: usize) -> Arc<Webhooks> {
    let names =
        [("inside.example", "10.0.0.1"), ("metadata.example", "169.254.169.254"), ("open.example", "93.184.216.34")];
    let names = names.map(|(name, address)| (name.to_owned(), vec![address.parse::<IpAddr>().expect("an address")]));
    start_over(Arc::clone(store) as _, key, Arc::new(FixedResolver(names.into())), patience, most)
}

fn start_over(
    store: Arc<dyn EventStore>,
    key: &Arc<ServerKey>,
    resolver: Arc<dyn Resolve>,
    patience: Patience,
    most: usize,
) -> Arc<Webhooks> {
    let rules = WebhookRules {
        networks: vec!["127.0.0.0/8".parse().expect("a network")],
        most,
        timeout: Duration::from_millis(500),
        patience,
    };
    Webhooks::start(store, Arc::clone(key), resolver, rules)
}

impl House {
    async fn with(patience: Patience) -> Self {
        let (store, key) = (Arc::new(MemoryStore::new()), Arc::new(ServerKey::passing().expect("randomness")));
        let webhooks = start(&store, &key, patience, 20);
        webhooks.resume().await.expect("nothing to take up");
        Self { store, key, patience, most: 20, webhooks }
    }

    async fn new() -> Self {
        Self::with(quick()).await
    }

    /// Ends and begins again over the same log.
    async fn again(&mut self) {
        self.webhooks.stop().await;
        self.webhooks = start(&self.store, &self.key, self.patience, self.most);
        self.webhooks.resume().await.expect("the webhooks are taken up");
    }

    async fn make(&self, spec: WebhookSpec) -> (WebhookId, String) {
        let made = self.webhooks.create_webhook(NewWebhook { spec, idempotency: None }, Who::system("test")).await;
        let made = made.expect("a webhook");
        (made.id, made.secret.expect("it is new").expose_secret().to_owned())
    }

    async fn hook(&self, receiver: &Receiver, team: Option<&str>, events: &[&str]) -> (WebhookId, String) {
        self.make(spec(&receiver.url(), team, events)).await
    }

    async fn append(&self, stream: &StreamName, kind: &str, team: Option<&str>, data: &str) -> Position {
        let event = NewEvent {
            id: EventId(Uuid::now_v7()),
            kind: kind.into(),
            schema: 1,
            time: Timestamp::now(),
            actor: Who { team: team.map(str::to_owned), ..Who::system("test") },
            correlation: None,
            causation: None,
            data: RawValue::from_string(data.to_owned()).expect("JSON"),
            private: None,
        };
        self.store.append(stream, Expected::Any, vec![event]).await.expect("an append").position
    }

    /// Something that happens to a team.
    async fn happens(&self, stream: &str, team: &str, number: usize) -> Position {
        let stream = format!("probe-{stream}").parse().expect("a name");
        self.append(&stream, "probe-seen", Some(team), &format!("{{\"number\":{number}}}")).await
    }

    async fn standing(&self, id: WebhookId) -> Webhook {
        let loaded = journal::load(&*self.store, id).await.expect("it reads").expect("it is there");
        (*loaded.state).clone()
    }

    async fn until(&self, id: WebhookId, what: &str, is_so: impl Fn(&Webhook) -> bool) -> Webhook {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let standing = self.standing(id).await;
            if is_so(&standing) {
                return standing;
            }
            assert!(Instant::now() < deadline, "still not {what}: {standing:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn recorded(&self, id: WebhookId) -> Vec<WebhookEvent> {
        let stream = StreamName::webhook(id);
        let found = self.store.read_stream(&stream, None, Direction::Forwards, 1_000).await.expect("a stream");
        found.iter().map(|event| WebhookEvent::decode(event).expect("it reads").expect("it is known")).collect()
    }
}

fn spec(url: &str, team: Option<&str>, events: &[&str]) -> WebhookSpec {
    WebhookSpec {
        team: team.map(str::to_owned),
        url: url.to_owned(),
        events: events.iter().map(|text| text.parse().expect("a pattern")).collect(),
        projects: Vec::new(),
        environments: Vec::new(),
        description: None,
    }
}

fn numbers(got: &[Got]) -> Vec<u64> {
    got.iter().map(|got| got.body["data"]["data"]["number"].as_u64().expect("a number")).collect()
}

fn ids(got: &[Got]) -> BTreeSet<&str> {
    got.iter().map(|got| got.id.as_str()).collect()
}

#[actix_rt::test]
async fn everything_arrives_once_signed_and_each_stream_in_its_order() {
    let house = House::new().await;
    let receiver = Receiver::start(|_, _| Answer::Status(204)).await;
    house.happens("a", "platform", 999).await;
    let (id, secret) = house.hook(&receiver, Some("platform"), &["probe.*"]).await;
    for number in 0..60 {
        house.happens(["a", "b", "c"][number % 3], "platform", number).await;
    }
    let got = receiver.wait_for(60).await;
    assert_eq!(ids(&got).len(), 60, "each once");
    let mut by_stream: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (message, number) in got.iter().zip(numbers(&got)) {
        assert!(message.is_signed_with(&secret), "{message:?}");
        assert_eq!(message.body["type"], "probe.seen");
        assert_eq!(message.body["timestamp"], message.body["data"]["time"]);
        by_stream.entry(message.body["data"]["stream"].as_str().expect("a name")).or_default().push(number);
    }
    assert_eq!(by_stream.len(), 3);
    for (stream, numbers) in by_stream {
        assert!(numbers.is_sorted(), "{stream}: {numbers:?}");
    }
    let head = house.store.head().await.expect("a head");
    house.until(id, "recorded", |webhook| webhook.through.0 + 3 >= head.0).await;
    // Written down in few events, whatever the number of messages.
    assert!(house.recorded(id).await.len() <= 5, "{:?}", house.recorded(id).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(receiver.got().len(), 60);
}

#[actix_rt::test]
async fn whatever_goes_wrong_once_goes_right_later_and_under_the_same_id() {
    for first in [
        Answer::Status(500),
        Answer::Status(404),
        Answer::Redirect,
        Answer::Hang,
        Answer::Drip,
        Answer::Reset,
        Answer::Huge(500),
        Answer::NotHttp,
    ] {
        let house = House::new().await;
        let elsewhere = Receiver::start(|_, _| Answer::Status(200)).await;
        let target = elsewhere.url();
        let once = first.clone();
        let receiver = Receiver::start(move |_, count| if count == 0 { once.clone() } else { Answer::Status(200) });
        let receiver = receiver.await.redirecting_to(&target);
        let (id, _) = house.hook(&receiver, Some("platform"), &["*"]).await;
        let position = house.happens("a", "platform", 1).await;
        let got = receiver.wait_for(2).await;
        assert_eq!(ids(&got).len(), 1, "{first:?}");
        house.until(id, "settled", |webhook| webhook.through >= position && webhook.pending.is_empty()).await;
        let recorded = house.recorded(id).await;
        let attempts: Vec<_> = recorded
            .iter()
            .filter_map(|event| match event {
                WebhookEvent::DeliveriesRecorded { attempts, .. } => Some(attempts),
                _ => None,
            })
            .flatten()
            .map(|attempt| (attempt.attempt, attempt.outcome.as_str()))
            .collect();
        assert_eq!(attempts, [(1, "retrying"), (2, "delivered")], "{first:?}");
        assert!(elsewhere.got().is_empty(), "no redirect is followed");
    }
}

#[actix_rt::test]
async fn a_huge_answer_that_says_yes_is_a_yes() {
    let house = House::new().await;
    let receiver = Receiver::start(|_, _| Answer::Huge(200)).await;
    let (id, _) = house.hook(&receiver, Some("platform"), &["*"]).await;
    let position = house.happens("a", "platform", 1).await;
    let standing = house.until(id, "delivered", |webhook| webhook.through >= position).await;
    assert!(standing.pending.is_empty());
    assert!(receiver.most_read() < 8 << 20, "{}", receiver.most_read());
}

#[actix_rt::test]
async fn a_receiver_that_asks_for_a_pause_gets_one() {
    let house = House::new().await;
    let receiver =
        Receiver::start(|_, count| if count == 0 { Answer::RetryAfter(1) } else { Answer::Status(200) }).await;
    house.hook(&receiver, Some("platform"), &["*"]).await;
    house.happens("a", "platform", 1).await;
    receiver.wait_for(1).await;
    // Not even something new is sent before the time is up. In the same stream, so that it waits for the first answer.
    house.happens("a", "platform", 2).await;
    let got = receiver.wait_for(3).await;
    for later in &got[1..] {
        assert!(later.at.duration_since(got[0].at) >= Duration::from_millis(990), "{:?}", later.at - got[0].at);
    }
}

#[actix_rt::test]
async fn gone_is_gone_until_somebody_says_otherwise() {
    let mut house = House::new().await;
    let receiver = Receiver::start(|_, count| if count == 0 { Answer::Status(410) } else { Answer::Status(200) }).await;
    let (id, _) = house.hook(&receiver, Some("platform"), &["*"]).await;
    house.happens("a", "platform", 1).await;
    house.until(id, "disabled", |webhook| webhook.status == Status::Disabled(DisabledWhy::Gone)).await;
    house.happens("a", "platform", 2).await;
    house.again().await;
    house.happens("a", "platform", 3).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(receiver.got().len(), 1, "disabled stays disabled");
    house.webhooks.enable_webhook(id, true, Who::system("test")).await.expect("enabled");
    let got = receiver.wait_for(4).await;
    let told: BTreeSet<_> = numbers(&got).into_iter().collect();
    assert_eq!(told, BTreeSet::from([1, 2, 3]), "nothing that happened meanwhile is lost");
}

#[actix_rt::test]
async fn a_receiver_that_takes_nothing_for_long_is_given_up() {
    let house = House::with(Patience { disable_after: Duration::from_millis(400), ..quick() }).await;
    let receiver = Receiver::start(|_, _| Answer::Status(500)).await;
    let (id, _) = house.hook(&receiver, Some("platform"), &["*"]).await;
    house.happens("a", "platform", 1).await;
    house.until(id, "given up", |webhook| webhook.status == Status::Disabled(DisabledWhy::Failures)).await;
    let count = receiver.got().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(count > 1 && receiver.got().len() == count);
}

#[actix_rt::test]
async fn a_message_that_is_never_taken_is_given_up_and_holds_up_no_other() {
    let house = House::with(Patience { give_up: Duration::from_millis(300), ..quick() }).await;
    let refuses = |got: &Got, _| {
        let number = got.body["data"]["data"]["number"].as_u64();
        if number == Some(1) { Answer::Status(400) } else { Answer::Status(200) }
    };
    let receiver = Receiver::start(refuses).await;
    let (id, _) = house.hook(&receiver, Some("platform"), &["*"]).await;
    house.happens("a", "platform", 1).await;
    for number in 2..10 {
        house.happens("a", "platform", number).await;
    }
    receiver.until("the others have arrived", |got| (2..10).all(|number| numbers(got).contains(&number))).await;
    house.until(id, "given up", |webhook| webhook.through.0 >= 10 && webhook.pending.is_empty()).await;
    let given_up = house.recorded(id).await.iter().any(|event| match event {
        WebhookEvent::DeliveriesRecorded { attempts, .. } => {
            attempts.iter().any(|attempt| attempt.outcome == Outcome::GivenUp { status: Some(400), fault: None })
        }
        _ => false,
    });
    assert!(given_up);
    assert_eq!(house.standing(id).await.status, Status::Enabled);
}

#[actix_rt::test]
async fn a_receiver_that_was_down_is_told_everything_once_it_is_back() {
    let house = House::new().await;
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let receiver = Receiver::start(move |_, _| {
        if is_down.load(std::sync::atomic::Ordering::SeqCst) { Answer::Status(503) } else { Answer::Status(200) }
    });
    let receiver = receiver.await;
    let (id, _) = house.hook(&receiver, Some("platform"), &["*"]).await;
    for number in 0..40 {
        house.happens(&format!("s{number}"), "platform", number).await;
    }
    house.until(id, "struggling", Webhook::is_struggling).await;
    let asked = receiver.got().len();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(receiver.got().len() - asked < 10, "one thing at a time: {}", receiver.got().len() - asked);
    down.store(false, std::sync::atomic::Ordering::SeqCst);
    receiver.until("all have arrived", |got| numbers(got).into_iter().collect::<BTreeSet<_>>().len() == 40).await;
    house.until(id, "at rest", |webhook| webhook.pending.is_empty() && webhook.failures == 0).await;
}

#[actix_rt::test]
async fn a_receiver_that_hangs_holds_up_nobody_else() {
    let house = House::new().await;
    let (hangs, answers) =
        (Receiver::start(|_, _| Answer::Hang).await, Receiver::start(|_, _| Answer::Status(200)).await);
    house.hook(&hangs, Some("platform"), &["*"]).await;
    house.hook(&answers, Some("platform"), &["*"]).await;
    let started = Instant::now();
    for number in 0..50 {
        house.happens(&format!("s{number}"), "platform", number).await;
    }
    answers.wait_for(50).await;
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
}

#[actix_rt::test]
async fn during_a_rotation_both_secrets_verify_and_afterwards_one_does() {
    let house = House::new().await;
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let (id, first) = house.hook(&receiver, Some("platform"), &["*"]).await;
    let rotate = |overlap| house.webhooks.rotate_webhook(id, overlap, Who::system("test"));
    let second = rotate(Duration::from_secs(60)).await.expect("a secret").expose_secret().to_owned();
    assert_ne!(first, second);
    house.happens("a", "platform", 1).await;
    let got = receiver.wait_for(1).await;
    assert!(got[0].is_signed_with(&first) && got[0].is_signed_with(&second));
    let third = rotate(Duration::ZERO).await.expect("a secret").expose_secret().to_owned();
    house.happens("a", "platform", 2).await;
    let got = receiver.wait_for(2).await;
    assert!(got[1].is_signed_with(&third) && got[1].is_signed_with(&first) && !got[1].is_signed_with(&second));
    // Nothing of it stands in the log.
    for event in house.store.read_all(Position::START, 1_000).await.expect("the log") {
        for secret in [&first, &second, &third] {
            assert!(!event.data.get().contains(secret.trim_start_matches("whsec_")), "{}", event.kind);
        }
    }
}

#[actix_rt::test]
async fn after_a_restart_it_goes_on_where_it_was() {
    let mut house = House::new().await;
    let fails = |got: &Got, _| {
        let number = got.body["data"]["data"]["number"].as_u64().unwrap_or(0);
        if number == 3 && got.attempts_before < 2 { Answer::Status(500) } else { Answer::Status(200) }
    };
    let receiver = Receiver::start(fails).await;
    let (id, secret) = house.hook(&receiver, Some("platform"), &["*"]).await;
    for number in 0..10 {
        house.happens("a", "platform", number).await;
    }
    receiver.until("some have arrived", |got| got.len() >= 5).await;
    house.again().await;
    for number in 10..20 {
        house.happens("a", "platform", number).await;
    }
    receiver.until("all have", |got| numbers(got).into_iter().collect::<BTreeSet<_>>().len() == 20).await;
    house.until(id, "at rest", |webhook| webhook.pending.is_empty() && webhook.through.0 >= 20).await;
    let got = receiver.got();
    assert!(got.iter().all(|got| got.is_signed_with(&secret)), "the secrets are those of before");
    // An end that is waited for writes down all that was answered: nothing but what failed comes twice.
    let twice: Vec<_> = (0..20).filter(|n| numbers(&got).iter().filter(|number| *number == n).count() > 1).collect();
    assert_eq!(twice, [3]);
}

#[actix_rt::test]
async fn what_was_sent_is_sent_again_when_somebody_asks_and_under_the_same_id() {
    let house = House::new().await;
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let (id, _) = house.hook(&receiver, Some("platform"), &["*"]).await;
    let mut positions = Vec::new();
    for number in 0..6 {
        positions.push(house.happens("a", "platform", number).await);
    }
    let first = receiver.wait_for(6).await;
    let replay = |from, to| house.webhooks.replay_webhook(id, from, to, Who::system("test"));
    replay(positions[2], positions[4]).await.expect("a replay");
    let got = receiver.wait_for(9).await;
    assert_eq!(numbers(&got[6..]), [2, 3, 4]);
    assert_eq!(got[6].id, first[2].id);
    // The same one twice, and a part of the log that is not there yet: it ends where the log does.
    replay(positions[5], positions[5]).await.expect("a replay");
    replay(positions[5], positions[5]).await.expect("a replay");
    let head = house.store.head().await.expect("a head");
    replay(head, Position(head.0 + 1_000)).await.expect("a replay");
    let got = receiver.wait_for(11).await;
    assert_eq!(numbers(&got[9..]), [5, 5]);
    house.until(id, "all replayed", |webhook| webhook.replays.is_empty() && webhook.replayed == 4).await;
    house.webhooks.enable_webhook(id, false, Who::system("test")).await.expect("disabled");
    assert!(matches!(replay(positions[0], positions[0]).await, Err(ServiceError::WebhookRefused(_))));
}

fn task(team: &str, project: &str) -> TaskEvent {
    TaskEvent::Created(Box::new(TaskSpec {
        repo: RepoRef::parse("acme/api", "github").expect("a repository"),
        task: "Mend it".to_owned(),
        model: "m".to_owned(),
        harness: Harness::Builtin,
        command: Vec::new(),
        retry: None,
        team: team.to_owned(),
        project: Some(project.to_owned()),
        environment: None,
        task_type: None,
        customer: None,
        budget: Budget::default(),
        base: None,
        branch: "orchestra/mend".to_owned(),
        further: Vec::new(),
        pull_request: None,
        campaign: None,
        image: "default".to_owned(),
        egress: Vec::new(),
        timeout_seconds: 60,
        metadata: serde_json::Map::new(),
        request_hash: None,
        caller_brings_model_key: false,
        caller_brings_git_token: false,
    }))
}

#[actix_rt::test]
async fn nobody_is_ever_told_what_is_another_teams() {
    let house = House::new().await;
    let answers = |_: &Got, _| Answer::Status(200);
    let (platform, web, operators, infra) = (
        Receiver::start(answers).await,
        Receiver::start(answers).await,
        Receiver::start(answers).await,
        Receiver::start(answers).await,
    );
    let everything = ["*", "key.*", "session.*", "access.*", "checkpoint.*", "webhook.*"];
    house.hook(&platform, Some("platform"), &everything).await;
    house.hook(&web, Some("web"), &everything).await;
    house.hook(&operators, None, &everything).await;
    let only = WebhookSpec { projects: vec!["infra".to_owned()], ..spec(&infra.url(), Some("platform"), &["task.*"]) };
    house.make(only).await;
    // The last webhook that was made is told to those that were there.
    let mut events = 1;
    for (number, (team, project)) in
        [("platform", "infra"), ("web", "infra"), ("platform", "api")].into_iter().enumerate()
    {
        let id = TaskId::from_uuid(Uuid::from_u128(number as u128 + 1));
        let created = task(team, project);
        house.append(&StreamName::task(id), created.kind(), None, created.data().expect("JSON").get()).await;
        // What the machine does to a task names no team: whose it is, its first event says.
        house.append(&StreamName::task(id), "queued", None, "{}").await;
        house.append(&StreamName::ledger(team).expect("a name"), "settled", None, "{}").await;
        house.append(&StreamName::billing(team).expect("a name"), "period-closed", None, "{}").await;
        let session = format!("session-{number}").parse().expect("a name");
        house.append(&session, "session-started", Some(team), "{}").await;
        house.append(&format!("access-{team}").parse().expect("a name"), "access-denied", None, "{}").await;
        events += 6;
    }
    house.append(&"access-_none".parse().expect("a name"), "access-denied", None, "{}").await;
    events += 1;
    // Nobody's: a stream without a first event that says so, and what names no team.
    house.append(&StreamName::task(TaskId::from_uuid(Uuid::from_u128(9))), "queued", Some("platform"), "{}").await;
    house.append(&"checkpoint-node".parse().expect("a name"), "checkpoint-signed", None, "{}").await;
    events += 2;
    operators.wait_for(events).await;
    let streams = |receiver: &Receiver| -> BTreeSet<String> {
        let name = |got: &Got| got.body["data"]["stream"].as_str().expect("a name").to_owned();
        receiver.got().iter().map(name).filter(|name| !name.starts_with("webhook-")).collect()
    };
    platform.until("all", |got| got.len() >= 12).await;
    web.until("all", |got| got.len() >= 6).await;
    infra.until("all", |got| got.len() >= 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let of = |number: u128| StreamName::task(TaskId::from_uuid(Uuid::from_u128(number))).to_string();
    let names = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(
        streams(&platform),
        names(&[&of(1), &of(3), "access-platform", "ledger-platform", "billing-platform", "session-0", "session-2"])
    );
    assert_eq!(streams(&web), names(&[&of(2), "access-web", "ledger-web", "billing-web", "session-1"]));
    assert_eq!(streams(&infra), names(&[&of(1)]));
    assert!(streams(&operators).contains("checkpoint-node") && streams(&operators).contains(&of(9)));
    let types = |receiver: &Receiver| -> BTreeSet<String> {
        receiver.got().iter().map(|got| got.body["type"].as_str().expect("a type").to_owned()).collect()
    };
    assert!(!types(&operators).contains("webhook.deliveries-recorded"), "it would never come to an end");
}

#[actix_rt::test]
async fn a_test_says_what_came_of_it() {
    let house = House::new().await;
    let receiver = Receiver::start(|_, count| if count == 0 { Answer::Status(200) } else { Answer::Hang }).await;
    let (id, secret) = house.hook(&receiver, Some("platform"), &["task.*"]).await;
    let good = house.webhooks.test_webhook(id).await.expect("an attempt");
    assert_eq!(good.outcome, Outcome::Delivered { status: 200 });
    let got = receiver.wait_for(1).await;
    assert_eq!(got[0].body["type"], "webhook.ping");
    assert!(got[0].is_signed_with(&secret));
    let bad = house.webhooks.test_webhook(id).await.expect("an attempt");
    assert_eq!(bad.outcome, Outcome::GivenUp { status: None, fault: Some(Fault::Timeout) });
    let standing = house.standing(id).await;
    assert_eq!((standing.status, standing.failures), (Status::Enabled, 0));
}

#[actix_rt::test]
async fn where_nothing_may_be_sent_no_webhook_is_made() {
    let house = House::new().await;
    for url in [
        "http://localhost/",
        "https://localhost:8443/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "https://user:password@open.example/",
        "https://inside.example/",
        "https://metadata.example/",
        "http://open.example/",
        "ftp://open.example/",
    ] {
        let wanted = NewWebhook { spec: spec(url, Some("platform"), &["*"]), idempotency: None };
        match house.webhooks.create_webhook(wanted, Who::system("test")).await {
            Err(ServiceError::Invalid(errors)) => assert_eq!(errors[0].pointer, "/url", "{url}"),
            other => panic!("{url}: {other:?}"),
        }
    }
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let (id, _) = house.make(spec("https://open.example/", Some("platform"), &["*"])).await;
    let change =
        |url: &str| house.webhooks.change_webhook(id, spec(url, Some("platform"), &["*"]), Who::system("test"));
    assert!(matches!(change("https://inside.example/").await, Err(ServiceError::Invalid(_))));
    change(&receiver.url()).await.expect("a good one");
    house.happens("a", "platform", 1).await;
    receiver.wait_for(1).await;
}

#[actix_rt::test]
async fn there_are_only_so_many_and_what_is_removed_makes_room() {
    let mut house = House::new().await;
    house.most = 2;
    house.again().await;
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let wanted = |team| NewWebhook { spec: spec(&receiver.url(), team, &["*"]), idempotency: None };
    let make = |team| house.webhooks.create_webhook(wanted(team), Who::system("test"));
    let first = make(Some("platform")).await.expect("one").id;
    make(Some("platform")).await.expect("two");
    assert!(matches!(make(Some("platform")).await, Err(ServiceError::Invalid(_))));
    make(Some("web")).await.expect("another team's");
    house.webhooks.remove_webhook(first, Who::system("test")).await.expect("removed");
    make(Some("platform")).await.expect("again");
    let gone = house.webhooks.enable_webhook(first, true, Who::system("test")).await;
    assert!(matches!(gone, Err(ServiceError::NoSuchWebhook)));
    let before = receiver.got().len();
    house.happens("a", "platform", 1).await;
    receiver.wait_for(before + 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(receiver.got().len(), before + 2, "the one that is gone is not told");
}
