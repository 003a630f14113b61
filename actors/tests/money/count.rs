//! The same money counted again, from the events alone: a list of entries, and sums over it in 128 bits.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use orchestra_events::ledger::LedgerEvent;
use orchestra_events::projections::{AuditRow, Dimension};
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

#[derive(Clone)]
struct Entry {
    task: TaskId,
    /// The civil day that it counts to.
    day: Date,
    /// The day on which the task was asked for, which is the day of its row in the audit.
    asked: Date,
    team: String,
    project: String,
    environment: String,
    task_type: String,
    model: String,
    customer: String,
    sums: Sums,
}

/// A task as it was asked for.
struct Asked {
    task: TaskId,
    spec: TaskSpec,
    on: Date,
}

impl Entry {
    fn of(Asked { task, spec, on }: &Asked, day: Date, model: &str, sums: Sums) -> Self {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        Self {
            task: *task,
            day,
            asked: *on,
            team: spec.team.clone(),
            project: text(&spec.project),
            environment: text(&spec.environment),
            task_type: text(&spec.task_type),
            model: model.to_owned(),
            customer: text(&spec.customer),
            sums,
        }
    }

    /// What a row of the audit says: its own columns where it has them, and the task's where it shows the task.
    fn of_row(row: &AuditRow) -> Self {
        let (task, on) = (row.resource.as_deref().unwrap(), utc(row.at));
        let sums = Sums {
            tasks: row.count.into(),
            refunded: task.refunded.nanos().into(),
            ..Sums::of(&task.usage, task.cost.nanos())
        };
        let spec = TaskSpec { team: row.team.clone().unwrap(), project: row.project.clone(), ..task.spec.clone() };
        Self::of(&Asked { task: row.task.unwrap(), spec, on }, on, row.model.as_deref().unwrap(), sums)
    }

    /// The same on the day on which the task was asked for.
    fn when_asked(&self) -> Self {
        Self { day: self.asked, ..self.clone() }
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

/// One side of the comparison with the audit: the days are those on which tasks were asked for, and what sandboxes
/// took is left out, since the audit does not say it.
pub struct Side(Vec<Entry>);

impl Side {
    fn new(entries: impl Iterator<Item = Entry>) -> Self {
        let money = |entry: Entry| Entry { sums: Sums { sandbox_ms: 0, ..entry.sums }, ..entry.when_asked() };
        let some = entries.map(money).filter(|entry| entry.sums != Sums::default());
        Self(some.collect())
    }

    /// What the rows of the audit say.
    pub fn of_rows(rows: &[AuditRow]) -> Self {
        Self::new(rows.iter().map(Entry::of_row))
    }

    /// In groups.
    pub fn by(&self, group_by: &[Dimension]) -> BTreeMap<Vec<String>, Sums> {
        grouped(&self.0, group_by)
    }

    /// Task by task.
    pub fn by_task(&self) -> BTreeMap<TaskId, Sums> {
        let mut tasks: BTreeMap<_, Sums> = BTreeMap::new();
        self.0.iter().for_each(|entry| tasks.entry(entry.task).or_default().add(entry.sums));
        tasks
    }
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
        let mut asked: HashMap<TaskId, Asked> = HashMap::new();
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
                            counted.ledger.push(Entry::of(&asked[&event.task], *day, model, sums));
                        }
                        LedgerEvent::Refunded(event) => {
                            let sums = Sums { refunded: event.nano_usd.nanos().into(), ..Sums::default() };
                            let asked = &asked[&event.task];
                            counted.ledger.push(Entry::of(asked, event.day.unwrap(), &asked.spec.model, sums));
                        }
                        _ => {}
                    }
                }
                let Some(id) = envelope.stream.task_id() else { continue };
                let day = utc(envelope.time);
                match TaskEvent::decode(envelope).unwrap().unwrap() {
                    TaskEvent::Created(spec) => {
                        let sums = Sums { tasks: 1, ..Sums::default() };
                        let new = Asked { task: id, spec: *spec, on: day };
                        let entry = Entry::of(&new, day, &new.spec.model, sums);
                        counted.ledger.push(entry.clone());
                        counted.tasks.push(entry);
                        asked.insert(id, new);
                    }
                    TaskEvent::SandboxStarted { sandbox, .. } => {
                        started.insert((id, sandbox), envelope.time);
                    }
                    TaskEvent::SandboxStopped { sandbox, .. } => {
                        let Some(since) = started.remove(&(id, sandbox)) else { continue };
                        let ran = (envelope.time.as_microsecond() - since.as_microsecond()) / 1_000;
                        // No sandbox may run for longer than a day, and none runs backwards.
                        let sums = Sums { sandbox_ms: ran.clamp(0, 86_400_000).into(), ..Sums::default() };
                        counted.ledger.push(Entry::of(&asked[&id], day, &asked[&id].spec.model, sums));
                    }
                    TaskEvent::TokensCharged { usage, cost_nano_usd, model, .. } => {
                        let sums = Sums::of(&usage, cost_nano_usd.nanos());
                        counted.tasks.push(Entry::of(&asked[&id], day, &model, sums));
                    }
                    TaskEvent::RefundGranted { nano_usd, .. } => {
                        let sums = Sums { refunded: nano_usd.nanos().into(), ..Sums::default() };
                        counted.tasks.push(Entry::of(&asked[&id], day, &asked[&id].spec.model, sums));
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

    /// The ledgers, and the tasks' own streams, as the audit has to have them.
    pub fn for_the_audit(&self) -> [(&'static str, Side); 2] {
        [("ledgers", &self.ledger), ("tasks", &self.tasks)].map(|(name, side)| (name, Side::new(side.iter().cloned())))
    }
}
