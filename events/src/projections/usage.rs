//! What was used and what it cost, in every grouping a bill may ask for.

use std::str::FromStr;

use jiff::civil::Date;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::ReadModelError;
use super::bounds::{self, Columns};
use super::sums::{self, PARTS};
use crate::key::Bounds;
use crate::money::NanoUsd;

/// More tokens than one model call can use; a charge above it is an odd event, not a bill.
pub const MAX_TOKENS_PER_CALL: u64 = 1_000_000_000;
/// More nano-dollars than one model call can cost (a million dollars), for the same reason.
pub const MAX_NANO_USD_PER_CALL: i64 = 1_000_000_000_000_000;
/// Most groups in one report; narrow the dates or group by less.
pub const MAX_GROUPS: usize = 10_000;

/// What usage can be grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// The civil day that the ledger recorded, in the team's time zone; of tasks and sandboxes, that of UTC.
    Day,
    /// The month of that day.
    Month,
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
    pub const ALL: [Self; 8] = [
        Self::Day,
        Self::Month,
        Self::Team,
        Self::Project,
        Self::Environment,
        Self::TaskType,
        Self::Model,
        Self::Customer,
    ];

    /// The name in queries and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Team => "team",
            Self::Project => "project",
            Self::Environment => "environment",
            Self::TaskType => "taskType",
            Self::Model => "model",
            Self::Customer => "customer",
        }
    }

    pub(super) const fn column(self) -> &'static str {
        match self {
            Self::TaskType => "task_type",
            Self::Month => "substr(day, 1, 7)",
            Self::Day | Self::Team | Self::Project | Self::Environment | Self::Model | Self::Customer => self.as_str(),
        }
    }
}

/// A text that names no dimension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("usage is grouped by day, month, team, project, environment, taskType, model and customer")]
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
    /// Only this customer.
    pub customer: Option<String>,
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
    /// What of such a cost was reversed. May be for a charge of another group, and so be more than the cost here.
    pub refunded: NanoUsd,
    /// How long sandboxes ran, in milliseconds.
    pub sandbox_ms: u64,
    /// What it comes to by the team's plan: the sum of its lines, each rounded once. Negative where a refund is larger.
    pub billable: NanoUsd,
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

impl UsageQuery {
    /// The parts of a line that the report looks at, its day left out.
    fn parts(&self) -> impl Iterator<Item = Dimension> {
        let Bounds { projects, environments, task_types, models, repos: _, networks: _ } = &self.bounds;
        let looked_at = [
            (Dimension::Team, self.team.is_some()),
            (Dimension::Customer, self.customer.is_some()),
            (Dimension::Project, !projects.is_empty()),
            (Dimension::Environment, !environments.is_empty()),
            (Dimension::TaskType, !task_types.is_empty()),
            (Dimension::Model, !models.is_empty()),
        ];
        PARTS.into_iter().filter(move |part| self.group_by.contains(part) || looked_at.contains(&(*part, true)))
    }
}

pub(super) fn report(connection: &Connection, query: &UsageQuery) -> Result<UsageReport, ReadModelError> {
    let parts: Vec<_> = query.parts().collect();
    let rows = sums::rows(&parts).unwrap_or_else(|| "usage".to_owned());
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
    if let Some(customer) = &query.customer {
        narrow("customer =", customer.clone());
    }
    let mut within = clauses.join(" AND ");
    bounds::narrow(&mut within, &mut values, &query.bounds, &COLUMNS);
    let grouping = match columns.trim_end_matches(", ") {
        "" => String::new(),
        columns => format!("GROUP BY {columns} ORDER BY {columns}"),
    };
    let sql = format!(
        "SELECT {columns} SUM(tasks), SUM(input_tokens), SUM(output_tokens), SUM(cache_read_tokens),
             SUM(cache_write_tokens), SUM(cost_nano_usd), SUM(refunded_nano_usd),
             SUM(sandbox_ms), SUM(billable_nano_usd), COUNT(*)
         FROM {rows} WHERE {within} {grouping} LIMIT {}",
        MAX_GROUPS + 1,
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut report = UsageReport::default();
    let width = query.group_by.len();
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(width + 9)? == 0 {
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
            sandbox_ms: sum(7)?.unsigned_abs(),
            billable: NanoUsd::from_nanos(sum(8)?),
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
        report.total.sandbox_ms += group.sandbox_ms;
        report.total.billable += group.billable;
    }
    Ok(report)
}
