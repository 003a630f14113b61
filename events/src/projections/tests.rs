//! The read models over a store in memory: once each, whatever comes twice; odd events passed over; rebuilt the same.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::*;
use crate::campaign::{CampaignRepo, CampaignSpec, CampaignStatus, ChildOutcome, Limits, child_id};
use crate::envelope::{Actor, NewEvent, StreamName};
use crate::id::{CallId, EventId};
use crate::money::NanoUsd;
use crate::store::Expected;
use crate::store::memory::MemoryStore;
use crate::task::conversation::Usage;
use crate::task::event::{Budget, Harness, TaskSpec};

const SOON: Duration = Duration::from_secs(10);

fn task(number: u128) -> TaskId {
    TaskId::from_uuid(Uuid::from_u128(number))
}

pub(super) fn created() -> TaskEvent {
    TaskEvent::Created(Box::new(TaskSpec {
        repo: crate::repo::RepoRef::parse("acme/api", "github").expect("a repository"),
        task: "Mend it".to_owned(),
        model: "m".to_owned(),
        harness: Harness::Builtin,
        command: Vec::new(),
        retry: None,
        team: "platform".to_owned(),
        project: None,
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

fn charged(tokens: u64, nanos: i64) -> TaskEvent {
    TaskEvent::TokensCharged {
        call: CallId::from_uuid(Uuid::from_u128(1)),
        model: "m".to_owned(),
        usage: Usage { input_tokens: tokens, ..Usage::default() },
        cost_nano_usd: NanoUsd::from_nanos(nanos),
        confirmed: true,
        price: "test".to_owned(),
        stop_reason: None,
    }
}

async fn append_raw(store: &MemoryStore, stream: &StreamName, kind: &str, data: &str) -> Position {
    let event = NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: kind.into(),
        schema: 1,
        time: Timestamp::from_second(1_790_000_000).expect("a time"),
        actor: Actor::system("test"),
        correlation: None,
        causation: None,
        data: RawValue::from_string(data.to_owned()).expect("JSON"),
        private: None,
    };
    store.append(stream, Expected::Any, vec![event]).await.expect("an append").position
}

async fn append(store: &MemoryStore, id: TaskId, event: &TaskEvent) -> Position {
    append_raw(store, &StreamName::task(id), event.kind(), event.data().expect("JSON").get()).await
}

/// The ledger's word, which is what usage is made of.
async fn settled(store: &MemoryStore, id: TaskId, call: u128, tokens: u64, nanos: i64) -> Position {
    let event = LedgerEvent::Settled(Box::new(crate::ledger::Settled {
        call: CallId::from_uuid(Uuid::from_u128(call)),
        task: id,
        usage: Usage { input_tokens: tokens, ..Usage::default() },
        cost_nano_usd: NanoUsd::from_nanos(nanos),
        confirmed: true,
        price: "test".to_owned(),
    }));
    let stream = StreamName::ledger("platform").expect("a team");
    append_raw(store, &stream, event.kind(), event.data().expect("JSON").get()).await
}

fn open(folder: &TempDir) -> ReadModels {
    ReadModels::open(&folder.path().join("read.db")).expect("read models")
}

async fn everything(read: &ReadModels) -> (TaskPage, UsageReport) {
    let tasks = read.tasks(TaskFilter::default(), None, 100).await.expect("tasks");
    let query = UsageQuery { group_by: Dimension::ALL.to_vec(), ..UsageQuery::default() };
    (tasks, read.usage(query).await.expect("usage"))
}

#[tokio::test]
async fn an_event_counts_once_however_often_it_is_delivered() {
    let (folder, store) = (tempfile::tempdir().expect("a folder"), MemoryStore::new());
    append(&store, task(1), &created()).await;
    append(&store, task(1), &charged(5, 7)).await;
    append(&store, task(1), &charged(5, 7)).await;
    settled(&store, task(1), 1, 5, 7).await;
    let last = settled(&store, task(1), 2, 5, 7).await;
    let log = store.read_all(Position::START, BATCH).await.expect("a log");
    let read = open(&folder);
    for _ in 0..3 {
        // Whole, and again from the middle.
        read.apply(log.clone()).await.expect("a fold");
        read.apply(log[1..].to_vec()).await.expect("a fold");
    }
    assert_eq!(read.checkpoint(), last);
    let (tasks, usage) = everything(&read).await;
    assert_eq!((tasks.tasks[0].usage.input_tokens, tasks.tasks[0].cost.nanos()), (10, 14));
    assert_eq!((usage.total.tasks, usage.total.input_tokens, usage.total.cost.nanos()), (1, 10, 14));
    drop(read);
    // The checkpoint outlives the process.
    let read = open(&folder);
    assert_eq!(read.checkpoint(), last);
    read.apply(log).await.expect("a fold");
    assert_eq!(everything(&read).await, (tasks, usage));
}

#[tokio::test]
async fn an_odd_event_is_skipped_and_counted_and_stops_nothing() {
    let (folder, store) = (tempfile::tempdir().expect("a folder"), MemoryStore::new());
    append(&store, task(1), &created()).await;
    // Does not read; is of no known task; cannot be; is not known (which is not odd).
    append_raw(&store, &StreamName::task(task(1)), "tokens-charged", r#"{"call": 3}"#).await;
    append(&store, task(2), &charged(1, 1)).await;
    append(&store, task(1), &charged(u64::MAX, 1)).await;
    append_raw(&store, &StreamName::task(task(1)), "from-the-future", "{}").await;
    append_raw(&store, &"ledger-platform".parse().expect("a name"), "settled", r#"{"odd": 1}"#).await;
    settled(&store, task(1), 1, u64::MAX, 1).await;
    let last = settled(&store, task(1), 2, 2, 3).await;
    let read = open(&folder);
    read.apply(store.read_all(Position::START, BATCH).await.expect("a log")).await.expect("a fold");
    assert_eq!(read.checkpoint(), last);
    // The first is odd to both projections, the second to the tasks, the last two to usage.
    assert_eq!(read.skipped(), 5);
    let (tasks, usage) = everything(&read).await;
    assert_eq!(tasks.tasks.len(), 1);
    assert_eq!((usage.total.input_tokens, usage.total.cost.nanos()), (2, 3));
    drop(read);
    assert_eq!(open(&folder).skipped(), 5);
}

#[tokio::test]
async fn a_rebuild_ends_where_folding_one_by_one_ended() {
    let (folder, store) = (tempfile::tempdir().expect("a folder"), MemoryStore::new());
    for number in 0..30 {
        append(&store, task(number % 7), &created()).await;
        append(&store, task(number % 7), &charged(number as u64, 1)).await;
        settled(&store, task(number % 7), number, number as u64, 1).await;
        if number % 5 == 0 {
            append(&store, task(number % 7), &TaskEvent::Cancelled {}).await;
        }
    }
    let read = open(&folder);
    for event in store.read_all(Position::START, BATCH).await.expect("a log") {
        read.apply(vec![event]).await.expect("a fold");
    }
    let before = (everything(&read).await, read.checkpoint(), read.skipped());
    let reached = read.rebuild(&store).await.expect("a rebuild");
    assert_eq!((everything(&read).await, reached, read.skipped()), before);
}

#[test]
fn read_models_of_another_version_are_told_apart_and_what_to_do_about_them() {
    let folder = TempDir::new().expect("a folder");
    drop(open(&folder));
    let path = folder.path().join("read.db");
    let file = Connection::open(&path).expect("SQLite");
    file.pragma_update(None, "user_version", 1_000).expect("a version");
    drop(file);
    let error = ReadModels::open(&path).err().expect("it does not open").to_string();
    assert!(error.contains("another version") && error.contains("read.db-wal"), "{error}");
}

#[tokio::test]
async fn who_has_written_can_wait_to_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Arc::new(MemoryStore::new());
    let read = Arc::new(open(&folder));
    let first = append(&store, task(1), &created()).await;
    let none = read.wait_for(first, Duration::from_millis(1)).await;
    assert_eq!(none, Err(ReadModelError::Lagging { at: Position::START, wanted: first }));
    let (stop, stopped) = oneshot::channel::<()>();
    let cancel = async {
        let _ = stopped.await;
    };
    let projector = tokio::spawn(project(store.clone(), Arc::clone(&read), cancel));
    read.wait_for(first, SOON).await.expect("the projector is there");
    for number in 2..50 {
        let at = append(&store, task(number), &created()).await;
        read.wait_for(at, SOON).await.expect("the projector goes on");
        assert!(read.task(task(number)).await.expect("a read").is_some());
    }
    drop(stop);
    tokio::time::timeout(SOON, projector).await.expect("it stops when asked").expect("no panic");
}

#[tokio::test]
async fn a_cursor_survives_its_text_and_nothing_else_passes_for_one() {
    let (folder, store) = (tempfile::tempdir().expect("a folder"), MemoryStore::new());
    for number in 1..=3 {
        append(&store, task(number), &created()).await;
    }
    let read = open(&folder);
    read.apply(store.read_all(Position::START, BATCH).await.expect("a log")).await.expect("a fold");
    // All three were created in the same microsecond: the id decides.
    let page = read.tasks(TaskFilter::default(), None, 2).await.expect("a page");
    let ids: Vec<_> = page.tasks.iter().map(|task| task.id).collect();
    assert_eq!(ids, [task(3), task(2)]);
    let cursor = page.next.expect("a next page").to_string().parse().expect("a cursor");
    let page = read.tasks(TaskFilter::default(), Some(cursor), 2).await.expect("a page");
    assert_eq!((page.tasks.len(), page.tasks[0].id, page.next), (1, task(1), None));
    // A time and a cursor together are the earlier of the two.
    for (second, first, left) in [(1_790_000_000, 0, 0), (1_790_000_001, 3, 1)] {
        let created_before = Some(Timestamp::from_second(second).expect("a time"));
        let filter = TaskFilter { created_before, ..TaskFilter::default() };
        assert_eq!(read.tasks(filter.clone(), None, 5).await.expect("a page").tasks.len(), first);
        assert_eq!(read.tasks(filter, Some(cursor), 5).await.expect("a page").tasks.len(), left);
    }
    for wrong in ["", "x", &"g".repeat(48), &"0".repeat(47), &"é".repeat(24)] {
        assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
    }
}

fn campaign(number: u128) -> CampaignId {
    CampaignId::from_uuid(Uuid::from_u128(number))
}

fn campaign_spec(id: CampaignId, team: &str) -> CampaignSpec {
    let TaskEvent::Created(template) = created() else { unreachable!("it is one") };
    let repos = ["acme/api", "acme/web"].map(|repo| CampaignRepo {
        repo: crate::repo::RepoRef::parse(repo, "github").expect("a repository"),
        base: None,
        branch: "orchestra/mend".to_owned(),
    });
    CampaignSpec {
        name: "Mend them".to_owned(),
        template: TaskSpec { team: team.to_owned(), campaign: Some(id), ..*template },
        repos: repos.into(),
        budget: Budget::default(),
        limits: Limits { concurrency: 1, pull_requests_per_hour: None, stop_after_failures: None },
        request_hash: None,
    }
}

async fn append_campaign(store: &MemoryStore, id: CampaignId, event: &CampaignEvent) -> Position {
    append_raw(store, &StreamName::campaign(id), event.kind(), event.data().expect("JSON").get()).await
}

#[tokio::test]
async fn a_campaign_shows_its_progress_its_tasks_and_what_they_cost() {
    let (folder, store) = (tempfile::tempdir().expect("a folder"), MemoryStore::new());
    for (number, team) in [(1, "platform"), (2, "other"), (3, "platform")] {
        let spec = Box::new(campaign_spec(campaign(number), team));
        append_campaign(&store, campaign(number), &CampaignEvent::CampaignCreated(spec)).await;
    }
    let spec = campaign_spec(campaign(1), "platform");
    let first = child_id(campaign(1), 0);
    let child = spec.child(campaign(1), 0).expect("it has two");
    let started =
        CampaignEvent::CampaignChildStarted { index: 0, task: first, repo: child.repo.clone(), run: 1, after: None };
    append_campaign(&store, campaign(1), &started).await;
    append(&store, first, &TaskEvent::Created(Box::new(child))).await;
    append(&store, first, &charged(5, 7)).await;
    // Another task's money is not the campaign's.
    append(&store, task(9), &created()).await;
    append(&store, task(9), &charged(5, 1_000)).await;
    // Does not read: skipped, and nothing stops.
    append_raw(&store, &StreamName::campaign(campaign(1)), "campaign-paused", "{}").await;
    let outcome = ChildOutcome::Failed { code: crate::FailureCode::CloneFailed };
    let ended =
        CampaignEvent::CampaignChildFinished { index: 0, task: first, run: 1, outcome, pull_requests: Vec::new() };
    append_campaign(&store, campaign(1), &ended).await;
    let read = open(&folder);
    // Event by event, and then from the beginning: the same.
    for event in store.read_all(Position::START, BATCH).await.expect("a log") {
        read.apply(vec![event]).await.expect("a fold");
    }
    let before = read.campaign(campaign(1)).await.expect("a read").expect("it is there");
    read.rebuild(&store).await.expect("a rebuild");
    let row = read.campaign(campaign(1)).await.expect("a read").expect("it is there");
    assert_eq!(row, before);
    assert_eq!((row.spec, row.cost.nanos(), read.skipped()), (spec, 7, 1));
    let progress = crate::campaign::Progress { waiting: 1, failed: 1, ..Default::default() };
    assert_eq!((row.campaign.progress, row.campaign.status), (progress, CampaignStatus::Running));
    let children = read.children(campaign(1)).await.expect("a read");
    assert_eq!(children.iter().map(|task| task.id).collect::<Vec<_>>(), [first]);
    let filter = TaskFilter { campaign: Some(campaign(1).to_string()), ..TaskFilter::default() };
    assert_eq!(read.tasks(filter, None, 10).await.expect("a page").tasks, children);
    // Those that a restart has to take up again.
    let cancelled = CampaignEvent::CampaignCancelled { reason: None };
    let at = append_campaign(&store, campaign(3), &cancelled).await;
    let finished = CampaignEvent::CampaignFinished { succeeded: 0, failed: 0, cancelled: 2 };
    append_campaign(&store, campaign(2), &finished).await;
    read.apply(store.read_all(Position(at.0 - 1), BATCH).await.expect("a log")).await.expect("a fold");
    assert_eq!(read.open_campaigns().await.expect("a read"), [campaign(1), campaign(3)]);
    // Pages, newest first, of one team.
    let filter = CampaignFilter { team: Some("platform".to_owned()), status: None, ..CampaignFilter::default() };
    let page = read.campaigns(filter.clone(), None, 1).await.expect("a page");
    assert_eq!(page.campaigns.iter().map(|row| row.campaign.id).collect::<Vec<_>>(), [campaign(3)]);
    assert_eq!((page.campaigns[0].spec.repos.len(), before.spec.repos.len()), (0, 2), "a list leaves them out");
    let page = read.campaigns(filter, page.next, 5).await.expect("a page");
    assert_eq!(page.campaigns.iter().map(|row| row.campaign.id).collect::<Vec<_>>(), [campaign(1)]);
    assert_eq!(page.next, None);
    let none = CampaignFilter { status: Some(CampaignStatus::Paused), ..CampaignFilter::default() };
    assert!(read.campaigns(none, None, 5).await.expect("a page").campaigns.is_empty());
}
