//! The same money counted again, from the events alone: a list of entries, and sums over it in 128 bits.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use orchestra_events::ledger::LedgerEvent;
use orchestra_events::projections::Dimension;
use orchestra_events::task::conversation::Usage;
use orchestra_events::task::{TaskEvent, TaskSpec};
use orchestra_events::{EventStore, Position, SandboxId, TaskId};

/// What a group comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    pub tasks: i128,
    pub input: i128,
    pub output: i128,
    pub cache_read: i128,
    pub cache_write: i128,
    pub cost: i128,
    pub refunded: i128,
    pub sandbox_ms: i128,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.tasks += other.tasks;
        self.input += other.input;
        self.output += other.output;
        self.cache_read += other.cache_read;
        self.cache_write += other.cache_write;
        self.cost += other.cost;
        self.refunded += other.refunded;
        self.sandbox_ms += other.sandbox_ms;
    }

    fn of(usage: &Usage, cost: i64) -> Self {
        Self {
            input: usage.input_tokens.into(),
            output: usage.output_tokens.into(),
            cache_read: usage.cache_read_tokens.into(),
            cache_write: i128::from(usage.cache_write5m_tokens) + i128::from(usage.cache_write1h_tokens),
            cost: cost.into(),
            ..Self::default()
        }
    }
}

struct Entry {
    day: Date,
    team: String,
    project: String,
    environment: String,
    task_type: String,
    model: String,
    customer: String,
    sums: Sums,
}

impl Entry {
    fn of(spec: &TaskSpec, day: Date, model: &str, sums: Sums) -> Self {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        Self {
            day,
            team: spec.team.clone(),
            project: text(&spec.project),
            environment: text(&spec.environment),
            task_type: text(&spec.task_type),
            model: model.to_owned(),
            customer: text(&spec.customer),
            sums,
        }
    }

    fn key(&self, by: Dimension) -> String {
        match by {
            Dimension::Day => self.day.to_string(),
            Dimension::Month => self.day.strftime("%Y-%m").to_string(),
            Dimension::Team => self.team.clone(),
            Dimension::Project => self.project.clone(),
            Dimension::Environment => self.environment.clone(),
            Dimension::TaskType => self.task_type.clone(),
            Dimension::Model => self.model.clone(),
            Dimension::Customer => self.customer.clone(),
        }
    }
}

/// All that was counted.
#[derive(Default)]
pub struct Counted {
    ledger: Vec<Entry>,
    tasks: Vec<Entry>,
}

fn utc(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}

fn grouped(entries: &[Entry], group_by: &[Dimension]) -> BTreeMap<Vec<String>, Sums> {
    let mut groups: BTreeMap<_, Sums> = BTreeMap::new();
    for entry in entries {
        groups.entry(group_by.iter().map(|by| entry.key(*by)).collect()).or_default().add(entry.sums);
    }
    groups
}

impl Counted {
    /// Counts a whole log.
    pub async fn of(store: &dyn EventStore) -> Self {
        let mut counted = Self::default();
        let mut specs: HashMap<TaskId, TaskSpec> = HashMap::new();
        let mut reserved = HashMap::new();
        let mut started: HashMap<(TaskId, SandboxId), Timestamp> = HashMap::new();
        let mut after = Position::START;
        loop {
            let page = store.read_all(after, 1_000).await.unwrap();
            let Some(last) = page.last() else { return counted };
            after = last.position;
            for envelope in &page {
                if envelope.stream.ledger_team().is_some() {
                    match LedgerEvent::decode(envelope).unwrap().unwrap() {
                        LedgerEvent::Reserved(event) => {
                            reserved.insert(event.call, (event.day, event.model));
                        }
                        LedgerEvent::Settled(event) => {
                            let (day, model) = &reserved[&event.call];
                            let sums = Sums::of(&event.usage, event.cost_nano_usd.nanos());
                            counted.ledger.push(Entry::of(&specs[&event.task], *day, model, sums));
                        }
                        LedgerEvent::Refunded(event) => {
                            let sums = Sums { refunded: event.nano_usd.nanos().into(), ..Sums::default() };
                            let spec = &specs[&event.task];
                            counted.ledger.push(Entry::of(spec, event.day.unwrap(), &spec.model, sums));
                        }
                        _ => {}
                    }
                }
                let Some(id) = envelope.stream.task_id() else { continue };
                let day = utc(envelope.time);
                match TaskEvent::decode(envelope).unwrap().unwrap() {
                    TaskEvent::Created(spec) => {
                        let sums = Sums { tasks: 1, ..Sums::default() };
                        counted.ledger.push(Entry::of(&spec, day, &spec.model, sums));
                        specs.insert(id, *spec);
                    }
                    TaskEvent::SandboxStarted { sandbox, .. } => {
                        started.insert((id, sandbox), envelope.time);
                    }
                    TaskEvent::SandboxStopped { sandbox, .. } => {
                        let Some(since) = started.remove(&(id, sandbox)) else { continue };
                        let ran = (envelope.time.as_microsecond() - since.as_microsecond()) / 1_000;
                        // No sandbox may run for longer than a day, and none runs backwards.
                        let sums = Sums { sandbox_ms: ran.clamp(0, 86_400_000).into(), ..Sums::default() };
                        counted.ledger.push(Entry::of(&specs[&id], day, &specs[&id].model, sums));
                    }
                    TaskEvent::TokensCharged { usage, cost_nano_usd, model, .. } => {
                        let sums = Sums::of(&usage, cost_nano_usd.nanos());
                        counted.tasks.push(Entry::of(&specs[&id], day, &model, sums));
                    }
                    TaskEvent::RefundGranted { nano_usd, .. } => {
                        let sums = Sums { refunded: nano_usd.nanos().into(), ..Sums::default() };
                        counted.tasks.push(Entry::of(&specs[&id], day, &specs[&id].model, sums));
                    }
                    _ => {}
                }
            }
        }
    }

    /// By the ledgers; tasks and sandboxes by the tasks' streams, which are all that knows them.
    pub fn by_ledger(&self, group_by: &[Dimension]) -> BTreeMap<Vec<String>, Sums> {
        grouped(&self.ledger, group_by)
    }

    /// By the tasks' own streams.
    pub fn by_tasks(&self, group_by: &[Dimension]) -> BTreeMap<Vec<String>, Sums> {
        grouped(&self.tasks, group_by)
    }
}
