//! What was used and what it cost, in every grouping a bill may ask for.

use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use rusqlite::types::Value;
use rusqlite::{Connection, Transaction, params_from_iter};

use super::bounds::{self, Columns};
use super::tasks::OpenTasks;
use super::{Folded, Odd, ReadModelError};
use crate::envelope::Envelope;
use crate::key::Bounds;
use crate::money::NanoUsd;
use crate::task::TaskEvent;
use crate::task::conversation::Usage;

/// More tokens than one model call can use; a charge above it is an odd event, not a bill.
pub const MAX_TOKENS_PER_CALL: u64 = 1_000_000_000;
/// More nano-dollars than one model call can cost (a million dollars), for the same reason.
pub const MAX_NANO_USD_PER_CALL: i64 = 1_000_000_000_000_000;
/// Most groups in one report; narrow the dates or group by less.
pub const MAX_GROUPS: usize = 10_000;

/// What usage can be grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// The day (UTC) on which it was charged.
    Day,
    /// The team.
    Team,
    /// The project.
    Project,
    /// The environment.
    Environment,
    /// The kind of work.
    TaskType,
    /// The model.
    Model,
    /// The team's customer.
    Customer,
}

impl Dimension {
    /// Every dimension.
    pub const ALL: [Self; 7] =
        [Self::Day, Self::Team, Self::Project, Self::Environment, Self::TaskType, Self::Model, Self::Customer];

    /// The name in queries and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Team => "team",
            Self::Project => "project",
            Self::Environment => "environment",
            Self::TaskType => "taskType",
            Self::Model => "model",
            Self::Customer => "customer",
        }
    }

    const fn column(self) -> &'static str {
        match self {
            Self::TaskType => "task_type",
            Self::Day | Self::Team | Self::Project | Self::Environment | Self::Model | Self::Customer => self.as_str(),
        }
    }
}

/// A text that names no dimension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("usage is grouped by day, team, project, environment, taskType, model and customer")]
pub struct DimensionError;

impl FromStr for Dimension {
    type Err = DimensionError;
    fn from_str(text: &str) -> Result<Self, DimensionError> {
        Self::ALL.into_iter().find(|known| known.as_str() == text).ok_or(DimensionError)
    }
}

/// What to report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageQuery {
    /// The groups, in the order in which they sort.
    pub group_by: Vec<Dimension>,
    /// The first day.
    pub from: Option<Date>,
    /// The last day, inclusive.
    pub to: Option<Date>,
    /// Only this team.
    pub team: Option<String>,
    /// Within these. Usage does not know its repositories: whoever is bound to some is refused before.
    pub bounds: Bounds,
}

/// The parts of a line that a key can be bound to.
const COLUMNS: Columns =
    Columns { project: "project", environment: "environment", task_type: "task_type", model: "model", repos: &[] };

/// One line of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageGroup {
    /// What the line is about, in the order asked for. `None`: tasks that name none.
    pub key: Vec<(Dimension, Option<String>)>,
    /// Tasks created in the period.
    pub tasks: u64,
    /// Input that was neither read from nor written to a cache.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Input read from a cache.
    pub cache_read_tokens: u64,
    /// Input written to a cache.
    pub cache_write_tokens: u64,
    /// What it cost.
    pub cost: NanoUsd,
    /// What of it is not billed.
    pub refunded: NanoUsd,
}

impl UsageGroup {
    /// What is billed.
    pub fn billable(&self) -> NanoUsd {
        self.cost.saturating_sub(self.refunded)
    }
}

/// A report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageReport {
    /// Its lines.
    pub groups: Vec<UsageGroup>,
    /// Their sum.
    pub total: UsageGroup,
    /// There are more than [`MAX_GROUPS`] lines; nothing is reported then.
    pub too_many: bool,
}

pub(super) fn apply(
    transaction: &Transaction<'_>,
    open: &mut OpenTasks,
    envelope: &Envelope,
    event: &TaskEvent,
) -> Folded {
    let none = NanoUsd::ZERO;
    let (tasks, usage, cost, refunded, charged_model) = match event {
        TaskEvent::Created(_) => (1, Usage::default(), none, none, None),
        TaskEvent::TokensCharged { usage, cost_nano_usd, model, .. } => (0, *usage, *cost_nano_usd, none, Some(model)),
        // Booked under the task's own model, whichever of its calls it pays back.
        TaskEvent::RefundGranted { nano_usd, .. } => (0, Usage::default(), none, *nano_usd, None),
        _ => return Ok(Ok(())),
    };
    let most = MAX_NANO_USD_PER_CALL.unsigned_abs();
    let plausible = usage.total() <= MAX_TOKENS_PER_CALL && cost.nanos().unsigned_abs() <= most;
    if !plausible {
        return Ok(Err(Odd::Implausible));
    }
    let Some(id) = envelope.stream.task_id() else { return Ok(Ok(())) };
    let task = match open.get(transaction, id)? {
        Ok(Some(task)) => task,
        Ok(None) => return Ok(Err(Odd::NoTask)),
        Err(odd) => return Ok(Err(odd)),
    };
    let day = envelope.time.to_zoned(TimeZone::UTC).date().to_string();
    let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let mut statement = transaction.prepare_cached(
        "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT DO UPDATE SET
             tasks = tasks + excluded.tasks,
             input_tokens = input_tokens + excluded.input_tokens,
             output_tokens = output_tokens + excluded.output_tokens,
             cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,
             cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
             cost_nano_usd = cost_nano_usd + excluded.cost_nano_usd,
             refunded_nano_usd = refunded_nano_usd + excluded.refunded_nano_usd",
    )?;
    statement.execute(rusqlite::params![
        day,
        task.spec.team,
        text(&task.spec.project),
        text(&task.spec.environment),
        text(&task.spec.task_type),
        charged_model.unwrap_or(&task.spec.model),
        text(&task.spec.customer),
        tasks,
        count(usage.input_tokens),
        count(usage.output_tokens),
        count(usage.cache_read_tokens),
        count(usage.cache_write_tokens()),
        cost.nanos(),
        refunded.nanos(),
    ])?;
    Ok(Ok(()))
}

pub(super) fn report(connection: &Connection, query: &UsageQuery) -> Result<UsageReport, ReadModelError> {
    let columns: String = query.group_by.iter().map(|by| format!("{}, ", by.column())).collect();
    let mut clauses = vec!["1 = 1".to_owned()];
    let mut values = Vec::new();
    let mut narrow = |clause: &str, value: String| {
        values.push(Value::Text(value));
        clauses.push(format!("{clause} ?{}", values.len()));
    };
    if let Some(from) = query.from {
        narrow("day >=", from.to_string());
    }
    if let Some(to) = query.to {
        narrow("day <=", to.to_string());
    }
    if let Some(team) = &query.team {
        narrow("team =", team.clone());
    }
    let mut within = clauses.join(" AND ");
    bounds::narrow(&mut within, &mut values, &query.bounds, &COLUMNS);
    let grouping = match columns.trim_end_matches(", ") {
        "" => String::new(),
        columns => format!("GROUP BY {columns} ORDER BY {columns}"),
    };
    let sql = format!(
        "SELECT {columns} SUM(tasks), SUM(input_tokens), SUM(output_tokens), SUM(cache_read_tokens),
             SUM(cache_write_tokens), SUM(cost_nano_usd), SUM(refunded_nano_usd), COUNT(*)
         FROM usage WHERE {within} {grouping} LIMIT {}",
        MAX_GROUPS + 1,
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut report = UsageReport::default();
    let width = query.group_by.len();
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(width + 7)? == 0 {
            continue;
        }
        let sum = |index: usize| row.get::<_, i64>(width + index);
        let key = query.group_by.iter().enumerate().map(|(index, by)| {
            let text: String = row.get(index)?;
            Ok((*by, Some(text).filter(|text| !text.is_empty())))
        });
        report.groups.push(UsageGroup {
            key: key.collect::<Result<_, rusqlite::Error>>()?,
            tasks: sum(0)?.unsigned_abs(),
            input_tokens: sum(1)?.unsigned_abs(),
            output_tokens: sum(2)?.unsigned_abs(),
            cache_read_tokens: sum(3)?.unsigned_abs(),
            cache_write_tokens: sum(4)?.unsigned_abs(),
            cost: NanoUsd::from_nanos(sum(5)?),
            refunded: NanoUsd::from_nanos(sum(6)?),
        });
    }
    if report.groups.len() > MAX_GROUPS {
        return Ok(UsageReport { too_many: true, ..UsageReport::default() });
    }
    for group in &report.groups {
        report.total.tasks += group.tasks;
        report.total.input_tokens += group.input_tokens;
        report.total.output_tokens += group.output_tokens;
        report.total.cache_read_tokens += group.cache_read_tokens;
        report.total.cache_write_tokens += group.cache_write_tokens;
        report.total.cost += group.cost;
        report.total.refunded += group.refunded;
    }
    Ok(report)
}
