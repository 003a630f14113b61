//! What happens to a task when its actor dies, or when another writer takes it: with everything real but a store that
//! breaks on purpose.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use orchestra_actors::allowed::AllowedModels;
use orchestra_actors::calls::CallMarks;
use orchestra_actors::images::ImageRules;
use orchestra_actors::journal::new_events;
use orchestra_actors::ledger::Ledgers;
use orchestra_actors::mirror::Mirrors;
use orchestra_actors::policy::RetryPolicy;
use orchestra_actors::speech::Speech;
use orchestra_actors::workshop::egress::{EgressDesk, EgressRules};
use orchestra_actors::workshop::{CommitRules, SetupRules, Setups, Workshop};
use orchestra_actors::{
    Capacity, Credentials, Defaults, ErasureMarks, NewRepo, NewTask, Orchestra, Retention, TaskService,
};
use orchestra_events::blob::MemoryBlobs;
use orchestra_events::projections::ReadModels;
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::store::read_whole_stream;
use orchestra_events::store::wrapped::Wrapped;
use orchestra_events::subscription::Subscription;
use orchestra_events::task::TaskEvent;
use orchestra_events::task::event::{Budget, Harness};
use orchestra_events::{Actor, Appended, Envelope, EventStore, Expected, NewEvent, StoreError, StreamName, TaskId};
use orchestra_runtime::forge::{ForgeConfig, ForgeKind, Forges};
use orchestra_runtime::gateway::{Gateway, GatewayPolicy};
use orchestra_runtime::git::{BranchPolicies, CacheLimits, Git, GitConfig};
use orchestra_runtime::image::{ImageStore, Keep, Supply};
use orchestra_runtime::model::{Models, ProviderConfig, Timeouts};
use orchestra_runtime::sandbox::{Containers, Limits, SandboxConfig, Sandboxes, SetupLimits};
use orchestra_runtime::texts::Texts;
use orchestra_runtime::vault::Vault;

/// What the store does when an event of this type is appended.
#[derive(Clone, Copy)]
enum Trouble {
    /// Panics, so many times.
    Panic(&'static str, u32),
    /// Lets another writer go first, once.
    OtherWriter(&'static str),
}

struct TroubledStore {
    inner: MemoryStore,
    trouble: Trouble,
    times: AtomicU32,
}

#[async_trait]
impl Wrapped for TroubledStore {
    fn inner(&self) -> &dyn EventStore {
        &self.inner
    }

    async fn on_append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError> {
        let has = |kind: &str| events.iter().any(|event| &*event.kind == kind);
        match self.trouble {
            Trouble::Panic(kind, times) if has(kind) && self.times.fetch_add(1, Ordering::SeqCst) < times => {
                panic!("the store breaks on purpose");
            }
            Trouble::OtherWriter(kind) if has(kind) && self.times.fetch_add(1, Ordering::SeqCst) == 0 => {
                let other = TaskEvent::Steered { message: "from elsewhere".into() };
                let id = stream.task_id().unwrap();
                let other = new_events(id, &[other], &Actor::system("another node")).unwrap();
                self.inner.append(stream, expected, other).await?;
            }
            Trouble::Panic(..) | Trouble::OtherWriter(_) => {}
        }
        self.inner.append(stream, expected, events).await
    }
}

struct House {
    store: Arc<dyn EventStore>,
    orchestra: Arc<Orchestra>,
    _folder: tempfile::TempDir,
}

/// A whole orchestra whose only repository does not exist: every task fails at its first step, if it comes that far.
async fn house(trouble: Trouble) -> House {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let store: Arc<dyn EventStore> =
        Arc::new(TroubledStore { inner: MemoryStore::new(), trouble, times: AtomicU32::new(0) });
    let read = Arc::new(ReadModels::open(&at("read.db")).unwrap());
    std::fs::create_dir_all(at("forge")).unwrap();
    let local = ForgeConfig { kind: ForgeKind::Local, git_url: None, api_url: None, root: Some(at("forge")) };
    let mut providers = ProviderConfig::built_in();
    providers.iter_mut().for_each(|provider| provider.key_required = false);
    let models = Arc::new(Models::new(providers, Timeouts::default()).unwrap());
    let gateway = Arc::new(Gateway::new(Arc::clone(&models), GatewayPolicy::default()));
    let sandboxes: Arc<dyn Sandboxes> =
        Arc::new(Containers::new(SandboxConfig::new(at("sandboxes"), at("images")).unwrap()).unwrap());
    let git = Arc::new(Git::new(GitConfig::new(std::env::current_exe().unwrap())));
    let mirrors = Mirrors::start(Arc::clone(&git), Arc::clone(&sandboxes), &at("mirrors"), CacheLimits::default());
    let workshop = Workshop {
        blobs: Arc::new(MemoryBlobs::default()),
        erasing: ErasureMarks::open(at("erasing")).unwrap(),
        sandboxes,
        git,
        mirrors: mirrors.unwrap(),
        setups: Setups::new(SetupRules { timeout: Duration::from_secs(60), limits: SetupLimits::default() }),
        forges: Forges::new(BTreeMap::from([("local".to_owned(), local)]), "local"),
        model_client: Arc::clone(&gateway) as _,
        gateway,
        models,
        ledgers: Ledgers::start(Arc::clone(&store)),
        allowed_models: AllowedModels::default(),
        branches: BranchPolicies::default(),
        texts: Texts::default(),
        vault: Arc::new(Vault::new()),
        calls: CallMarks::open(at("calls")).unwrap(),
        speech: Speech::default(),
        images: Arc::new(Supply::new(
            ImageStore::new(at("images")),
            BTreeMap::new(),
            orchestra_runtime::image::Credentials::Anonymous,
            Keep { max_age: Duration::from_secs(60), max_bytes: 1 << 30 },
        )),
        image_rules: ImageRules::new("default".into(), &[], BTreeMap::new()).unwrap(),
        policy: RetryPolicy::default(),
        limits: Limits::default(),
        commits: CommitRules::default(),
        public_url: None,
        totals: Default::default(),
        node: "test".into(),
        repositories: at("repositories"),
        egress: EgressDesk::new(EgressRules::default()).unwrap(),
    };
    let defaults = Defaults { timeout_seconds: 60, retry: None, retention: Retention::default() };
    let capacity = Capacity { places: 1, per_team: 1 };
    let orchestra = Orchestra::start(Arc::clone(&store), read, workshop, capacity, defaults);
    orchestra.resume().await.unwrap();
    House { store, orchestra, _folder: folder }
}

impl House {
    async fn submit(&self) -> TaskId {
        let new = NewTask {
            repos: vec![NewRepo { repo: "acme/none".into(), pointer: "/repo".into(), ..NewRepo::default() }],
            task: "Do it".into(),
            model: "claude-sonnet-4-6".into(),
            harness: Harness::Builtin,
            command: Vec::new(),
            retry: None,
            team: "platform".into(),
            project: None,
            environment: None,
            task_type: None,
            customer: None,
            budget: Budget::default(),
            pull_request: None,
            image: None,
            egress: None,
            timeout_seconds: None,
            metadata: serde_json::Map::new(),
            credentials: Credentials::default(),
            bounds: Arc::default(),
            idempotency: None,
        };
        self.orchestra.submit(new, Actor::system("test")).await.unwrap().task.id
    }

    /// Waits for an event of this type, and returns the types of all up to it.
    async fn until(&self, id: TaskId, kind: &str) -> Vec<Envelope> {
        let mut events = Vec::new();
        let mut stream = Subscription::stream(Arc::clone(&self.store), StreamName::task(id), None);
        let wait = async {
            while events.last().is_none_or(|last: &Envelope| &*last.kind != kind) {
                events.push(stream.next().await.unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the event comes within its time");
        events
    }
}

fn kinds(events: &[Envelope]) -> Vec<&str> {
    events.iter().map(|event| &*event.kind).collect()
}

fn code(events: &[Envelope]) -> String {
    match TaskEvent::decode(events.last().unwrap()).unwrap() {
        Some(TaskEvent::Failed { failure, .. }) => failure.code.to_string(),
        other => panic!("{other:?}"),
    }
}

#[actix_rt::test]
async fn an_actor_that_dies_is_made_again_and_goes_on_where_it_was() {
    let house = house(Trouble::Panic("attempt-started", 2)).await;
    let id = house.submit().await;
    let events = house.until(id, "failed").await;
    assert_eq!(kinds(&events), ["created", "queued", "claimed", "attempt-started", "step-failed", "failed"]);
    assert_eq!(code(&events), "repo-not-found");
    // Its place is free again: the next task gets it.
    let next = house.submit().await;
    assert_eq!(code(&house.until(next, "failed").await), "repo-not-found");
}

#[actix_rt::test]
async fn a_task_whose_actor_keeps_dying_fails_and_blocks_nobody() {
    let house = house(Trouble::Panic("attempt-started", 4)).await;
    let id = house.submit().await;
    let events = house.until(id, "failed").await;
    assert_eq!(kinds(&events), ["created", "queued", "claimed", "failed"]);
    assert_eq!(code(&events), "internal");
    let next = house.submit().await;
    assert_eq!(code(&house.until(next, "failed").await), "repo-not-found");
}

#[actix_rt::test]
async fn an_actor_whose_task_is_written_by_another_leaves_it_to_them() {
    let house = house(Trouble::OtherWriter("attempt-started")).await;
    let id = house.submit().await;
    let events = house.until(id, "steered").await;
    assert_eq!(kinds(&events), ["created", "queued", "claimed", "steered"]);
    // Its place is free again, and by the time the next task is through, the first still has no event of ours.
    let next = house.submit().await;
    house.until(next, "failed").await;
    let events = read_whole_stream(&*house.store, &StreamName::task(id)).await.unwrap();
    assert_eq!(kinds(&events), ["created", "queued", "claimed", "steered"]);
}
