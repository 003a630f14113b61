//! A log as a busy month leaves it, written through the store itself.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestra_events::key::Scope;
use orchestra_events::projections::ReadModels;
use orchestra_events::store::sqlite::SqliteStore;
use orchestra_events::{Actor, EventId, EventStore, Expected, NewEvent, StreamName, TaskId};
use orchestra_web::auth::issue_key;
use secrecy::ExposeSecret;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

/// Stored tasks, all of them over.
pub const TASKS: usize = 2_000;
/// Events of each.
pub const EVENTS_PER_TASK: usize = 50;

/// What every task of the seed begins and ends with; between them the agent goes round.
const BEGIN: [&str; 6] = ["created", "queued", "claimed", "attempt-started", "cloned", "sandbox-started"];
const ROUND: [&str; 5] = ["model-called", "tokens-charged", "message", "tool-called", "tool-finished"];
const END: [&str; 4] = ["committed", "sandbox-stopped", "pushed", "succeeded"];

/// What stood behind the seed.
pub struct Seed {
    /// An admin's key.
    pub key: String,
    /// The tasks.
    pub tasks: Vec<TaskId>,
    pub events: u64,
    /// How long the read models took to fold them.
    pub folded: Duration,
}

/// One example of each type: those that the golden test holds still, with an output of a usual length.
fn examples() -> serde_json::Map<String, Value> {
    let golden = include_str!("../../events/src/task/golden.json");
    let Value::Object(mut all) = serde_json::from_str(golden).unwrap() else { panic!("an object") };
    for examples in all.values_mut() {
        *examples = examples[0].take();
    }
    all["tool-finished"]["output"] = Value::from("resource \"aws_subnet\" \"a\" {\n  count = 3\n}\n".repeat(24));
    all
}

/// Fills an empty folder with [`TASKS`] times [`EVENTS_PER_TASK`] events and an admin's key.
pub async fn fill(data: &Path) -> Seed {
    std::fs::create_dir_all(data).unwrap();
    let store: Arc<dyn EventStore> = Arc::new(SqliteStore::open(data.join("events.db")).unwrap());
    let who = Actor::system("seed");
    let (_, key) = issue_key(&*store, "bench", None, "bench", vec![Scope::Admin], &who).await.unwrap();
    let examples = examples();
    let rounds = ROUND.iter().cycle().take(EVENTS_PER_TASK - BEGIN.len() - END.len());
    let kinds: Vec<&str> = BEGIN.iter().chain(rounds).chain(&END).copied().collect();
    let mut tasks = Vec::with_capacity(TASKS);
    for number in 0..TASKS {
        let id = TaskId::from_uuid(Uuid::now_v7());
        let stream = StreamName::task(id);
        let batch: Vec<_> = kinds
            .iter()
            .map(|kind| {
                let mut data = examples[*kind].clone();
                if *kind == "created" {
                    data["task"] = format!("Bump the provider of module {number}").into();
                }
                NewEvent {
                    id: EventId(Uuid::now_v7()),
                    kind: (*kind).into(),
                    schema: 1,
                    time: jiff::Timestamp::now(),
                    actor: who.clone(),
                    correlation: Some(stream.clone()),
                    causation: None,
                    data: RawValue::from_string(data.to_string()).unwrap(),
                    private: None,
                }
            })
            .collect();
        store.append(&stream, Expected::NoStream, batch).await.unwrap();
        tasks.push(id);
    }
    let read = ReadModels::open(&data.join("read.db")).unwrap();
    let began = Instant::now();
    let head = read.rebuild(&*store).await.unwrap();
    let folded = began.elapsed();
    assert_eq!(read.skipped(), 0, "the seed folds");
    Seed { key: key.expose_secret().to_owned(), tasks, events: head.0, folded }
}
