//! Many finished tasks in a log, as they would stand there after months: appended through the store, folded by the read
//! models, nothing written past either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use orchestra_events::ledger::Path;
use orchestra_events::projections::ReadModels;
use orchestra_events::store::{Expected, MAX_PAGE};
use orchestra_events::task::conversation::Usage;
use orchestra_events::task::event::{Budget, Harness, SCHEMA, TaskSpec};
use orchestra_events::task::{Command, TaskEvent, decide};
use orchestra_events::{
    Actor, ActorKind, CallId, EventId, EventStore, Failure, FailureCode, NanoUsd, NewEvent, Position, StreamName,
    TaskId,
};
use serde_json::{Map, json};
use uuid::Uuid;

use super::books::{Charge, write_all};

/// Most teams.
pub const MAX_TEAMS: u64 = 10_000;
/// Most days.
pub const MAX_DAYS: u64 = 3_650;
/// Appends under way at the same time: enough that the store commits a thousand events at once, fewer than its queue holds.
const IN_FLIGHT: usize = 1_024;
/// Events folded in one transaction: more than in service, where nobody may wait long for the first.
const FOLD: usize = 10_000;
/// How often progress is told.
const TELL: Duration = Duration::from_secs(10);

const MODELS: [&str; 4] = ["claude-sonnet-4-6", "claude-opus-4-6", "gpt-5.2-codex", "qwen3-coder"];
const PROJECTS: [&str; 5] = ["infra", "web", "mobile", "billing", "search"];
const ENVIRONMENTS: [&str; 3] = ["prod", "staging", "dev"];
const TASK_TYPES: [&str; 4] = ["upgrade", "fix", "docs", "test"];

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Tasks.
    pub tasks: u64,
    /// Teams that they belong to.
    pub teams: u64,
    /// Days over which they were created, the last one today.
    pub days: u64,
}

/// Numbers that look random and are the same in every run (SplitMix64, Steele and others 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn one_of<'t>(&mut self, from: &[&'t str]) -> &'t str {
        from[usize::try_from(self.below(from.len() as u64)).unwrap_or(0) % from.len()]
    }

    /// Random as the rest, and as good as secret: nobody wrote these words.
    fn salt(&mut self) -> [u8; 32] {
        let mut salt = [0; 32];
        salt.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.next().to_le_bytes()));
        salt
    }

    fn uuid_at(&mut self, time: Timestamp) -> Uuid {
        let mut random = [0_u8; 10];
        random[..8].copy_from_slice(&self.next().to_le_bytes());
        random[8..].copy_from_slice(&self.next().to_le_bytes()[..2]);
        let millis = u64::try_from(time.as_millisecond()).unwrap_or_default();
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
    }
}

fn spec(dice: &mut Dice, number: u64, plan: Plan) -> TaskSpec {
    // A few large teams and many small ones, as in any company.
    let team = dice.below(plan.teams).min(dice.below(plan.teams));
    let repo = format!("github:acme-{team}/{}-{}", dice.one_of(&PROJECTS), dice.below(40));
    let metadata = Map::from_iter([("ticket".to_owned(), json!(format!("OPS-{number}")))]);
    TaskSpec {
        repo: orchestra_events::repo::RepoRef::parse(&repo, "github").expect("made of letters"),
        task: format!(
            "Bump the provider of module {number}. {}",
            "Update breaking calls, and run the tests. ".repeat(4)
        ),
        model: dice.one_of(&MODELS).to_owned(),
        harness: Harness::Builtin,
        command: Vec::new(),
        team: format!("team-{team}"),
        project: Some(dice.one_of(&PROJECTS).to_owned()),
        environment: Some(dice.one_of(&ENVIRONMENTS).to_owned()),
        task_type: Some(dice.one_of(&TASK_TYPES).to_owned()),
        customer: (dice.below(3) == 0).then(|| format!("customer-{}", dice.below(20))),
        budget: Budget { max_nano_usd: Some(NanoUsd::from_nanos(2_000_000_000)), max_tokens: None },
        base: None,
        branch: format!("orchestra/task-{number}"),
        further: Vec::new(),
        pull_request: None,
        campaign: None,
        image: "default".to_owned(),
        egress: Vec::new(),
        timeout_seconds: 1_800,
        retry: None,
        metadata,
        request_hash: None,
        caller_brings_model_key: true,
        caller_brings_git_token: false,
    }
}

/// A task's life in a few events, and what it cost.
struct Life {
    stream: StreamName,
    events: Vec<NewEvent>,
    charges: Vec<Charge>,
}

fn life(dice: &mut Dice, number: u64, plan: Plan, created: Timestamp) -> anyhow::Result<Life> {
    let spec = spec(dice, number, plan);
    let task = TaskId::from_uuid(dice.uuid_at(created));
    let path = Path {
        team: spec.team.clone(),
        project: spec.project.clone(),
        environment: spec.environment.clone(),
        task_type: spec.task_type.clone(),
    };
    let mut charges = Vec::new();
    let caller = Actor {
        kind: ActorKind::ApiKey,
        id: format!("key_{:026}", number % 1_000),
        team: Some(spec.team.clone()),
        origin: None,
    };
    let model = spec.model.clone();
    let mut events = decide(None, Command::Create(Box::new(spec))).context("a task without faults was refused")?;
    events.push(TaskEvent::AttemptStarted {
        attempt: 1,
        deadline: created + Duration::from_secs(1_800),
        delivers: false,
    });
    for _ in 0..=dice.below(2) {
        let usage = Usage {
            input_tokens: 500 + dice.below(20_000),
            output_tokens: 50 + dice.below(4_000),
            cache_read_tokens: dice.below(100_000),
            ..Usage::default()
        };
        let nanos = 3_000 * usage.input_tokens + 15_000 * usage.output_tokens + 300 * usage.cache_read_tokens;
        let (call, cost) = (CallId::from_uuid(dice.uuid_at(created)), NanoUsd::from_nanos(i64::try_from(nanos)?));
        charges.push(Charge {
            task,
            call,
            path: path.clone(),
            model: model.clone(),
            time: created,
            usage,
            cost,
            ids: [(); 3].map(|()| EventId(dice.uuid_at(created))),
        });
        events.push(TaskEvent::TokensCharged {
            call,
            model: model.clone(),
            usage,
            cost_nano_usd: cost,
            confirmed: true,
            price: "bench".to_owned(),
            stop_reason: None,
        });
    }
    let end = match dice.below(10) {
        0 => TaskEvent::Failed { failure: Failure::new(FailureCode::PushRejected, "seeded".to_owned()), attempt: 1 },
        1 => {
            events.push(TaskEvent::CancelRequested { reason: None });
            TaskEvent::Cancelled {}
        }
        _ => TaskEvent::Succeeded {},
    };
    events.push(end);
    let stream = StreamName::task(task);
    let mut time = created;
    let events = events.into_iter().map(|event| {
        time += Duration::from_millis(1 + dice.below(60_000));
        let (data, private) = event.parts(dice.salt())?;
        Ok(NewEvent {
            id: EventId(dice.uuid_at(time)),
            kind: event.kind().into(),
            schema: SCHEMA,
            time,
            // Somebody asks, and Orchestra does the rest.
            actor: match event {
                TaskEvent::Created(_) | TaskEvent::CancelRequested { .. } => caller.clone(),
                _ => Actor::system("task"),
            },
            correlation: Some(stream.clone()),
            causation: None,
            data,
            private,
        })
    });
    let events = events.collect::<Result<_, serde_json::Error>>()?;
    Ok(Life { stream, events, charges })
}

/// Appends the tasks, oldest first, and folds them.
pub async fn seed(store: impl EventStore, read: ReadModels, plan: Plan, tell: impl Fn(String)) -> anyhow::Result<()> {
    let store: Arc<dyn EventStore> = Arc::new(store);
    let began = Instant::now();
    let now = Timestamp::now();
    let period = Duration::from_secs(plan.days * 24 * 60 * 60);
    let mut dice = Dice(plan.tasks);
    let lives = (0..plan.tasks).map(|number| {
        let left = period.mul_f64((plan.tasks - number) as f64 / plan.tasks as f64);
        life(&mut dice, number, plan, now - left)
    });
    let mut appends = stream::iter(lives)
        .map(|life| {
            let store = Arc::clone(&store);
            async move {
                let Life { stream, events, charges } = life?;
                let count = events.len();
                store.append(&stream, Expected::NoStream, events).await?;
                anyhow::Ok((count, charges))
            }
        })
        .buffer_unordered(IN_FLIGHT);
    let (mut tasks, mut events, mut told) = (0_u64, 0, Instant::now());
    let mut books: BTreeMap<String, Vec<Charge>> = BTreeMap::new();
    while let Some(done) = appends.next().await {
        let (count, charges) = done?;
        events += count;
        tasks += 1;
        for charge in charges {
            books.entry(charge.path.team.clone()).or_default().push(charge);
        }
        if told.elapsed() > TELL {
            told = Instant::now();
            tell(format!("{tasks} tasks in the log"));
        }
    }
    drop(appends);
    events += write_all(&store, books).await?;
    let appended = began.elapsed();
    tell(format!(
        "{tasks} tasks, {events} events in the log after {:.0} s ({:.0} events/s)",
        appended.as_secs_f64(),
        events as f64 / appended.as_secs_f64()
    ));
    fold(&*store, &read, &tell).await?;
    let folding = began.elapsed() - appended;
    tell(format!("folded in {:.0} s ({:.0} events/s)", folding.as_secs_f64(), events as f64 / folding.as_secs_f64()));
    Ok(())
}

async fn fold(store: &dyn EventStore, read: &ReadModels, tell: &impl Fn(String)) -> anyhow::Result<()> {
    let head = store.head().await?;
    let mut told = Instant::now();
    let mut at = read.checkpoint();
    while at < head {
        let mut batch = Vec::with_capacity(FOLD + MAX_PAGE);
        let mut through: Position = at;
        while batch.len() < FOLD {
            let page = store.read_all(through, MAX_PAGE).await?;
            let Some(last) = page.last() else { break };
            through = last.position;
            batch.extend(page);
        }
        if batch.is_empty() {
            break;
        }
        at = read.apply(batch).await?;
        if told.elapsed() > TELL {
            told = Instant::now();
            tell(format!("folded up to position {} of {}", at.0, head.0));
        }
    }
    anyhow::ensure!(read.skipped() == 0, "{} events did not fold: see the log", read.skipped());
    Ok(())
}

#[cfg(test)]
mod tests {
    use orchestra_events::projections::{Dimension, TaskFilter, UsageQuery};
    use orchestra_events::store::memory::MemoryStore;

    use super::*;

    #[actix_web::test]
    async fn what_is_seeded_folds_and_adds_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("read.db");
        let read = ReadModels::open(&file).expect("read models");
        let plan = Plan { tasks: 300, teams: 7, days: 9 };
        seed(MemoryStore::new(), read, plan, |_| {}).await.expect("it seeds");
        let read = ReadModels::open(&file).expect("read models");
        let query = UsageQuery { group_by: vec![Dimension::Team], ..UsageQuery::default() };
        let usage = read.usage(query).await.expect("a report");
        assert_eq!(usage.total.tasks, 300);
        assert_eq!(usage.groups.len(), 7);
        assert!(usage.total.cost > NanoUsd::ZERO);
        let mut seen = 0;
        let mut cursor = None;
        loop {
            let page = read.tasks(TaskFilter::default(), cursor, 100).await.expect("a page");
            assert!(page.tasks.iter().all(|task| task.status.is_final() && task.finished_at.is_some()));
            seen += page.tasks.len();
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, 300);
    }
}
