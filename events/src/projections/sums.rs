//! Usage by day and two or three of its parts, summed up as it is folded: what most reports ask for, without reading each
//! line.
//!
//! Lines are as many as there are combinations of all parts, soon as many as tasks. Of two parts there are few.

use std::collections::HashMap;

use jiff::civil::Date;
use rusqlite::{Transaction, params};

use super::books::Place;
use super::usage::Dimension::{self, Customer, Environment, Model, Project, TaskType, Team};
use crate::billing::Quantities;
use crate::money::NanoUsd;

/// The parts of a line besides its day.
pub(super) const PARTS: [Dimension; 6] = [Environment, TaskType, Model, Project, Team, Customer];

/// Which parts are summed up by: each two, those that tend to have few values first, and what a company asks of all its
/// teams most.
const SETS: [&[Dimension]; 16] = [
    &[Environment, TaskType],
    &[Environment, Model],
    &[TaskType, Model],
    &[Environment, Project],
    &[TaskType, Project],
    &[Model, Project],
    &[Environment, Team],
    &[TaskType, Team],
    &[Model, Team],
    &[Project, Team],
    &[Environment, Customer],
    &[TaskType, Customer],
    &[Model, Customer],
    &[Project, Customer],
    &[Team, Customer],
    &[Model, Project, Team],
];

/// The columns that hold the values of a set's parts.
const VALUES: [&str; 3] = ["a", "b", "c"];

/// How many numbers are summed up.
const SUMS: usize = 9;

fn name(set: &[Dimension]) -> String {
    set.iter().map(|part| part.column()).collect::<Vec<_>>().join(",")
}

/// What stands for the lines in a report that looks at these parts alone: the rows of the smallest set that has them all,
/// with the columns named as those of the lines.
pub(super) fn rows(parts: &[Dimension]) -> Option<String> {
    let set = SETS.into_iter().find(|set| parts.iter().all(|part| set.contains(part)))?;
    let columns: String =
        set.iter().zip(VALUES).map(|(part, value)| format!("{value} AS {}, ", part.column())).collect();
    Some(format!(
        "(SELECT {columns} day, tasks, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
             cost_nano_usd, refunded_nano_usd, sandbox_ms, billable_nano_usd
          FROM usage_sums WHERE parts = '{}')",
        name(set),
    ))
}

/// The text of a part of a line.
fn value(place: &Place, part: Dimension) -> &str {
    match part {
        Team => &place.team,
        Project => &place.project,
        Environment => &place.environment,
        TaskType => &place.task_type,
        Model => &place.model,
        Customer => &place.customer,
        Dimension::Day | Dimension::Month => unreachable!("no set has a day among its parts"),
    }
}

fn numbers((quantities, billable): (Quantities, NanoUsd)) -> [i64; SUMS] {
    let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
    [
        count(quantities.tasks),
        count(quantities.tokens.input),
        count(quantities.tokens.output),
        count(quantities.tokens.cache_read),
        count(quantities.tokens.cache_write),
        quantities.cost_nano_usd.nanos(),
        quantities.refunded_nano_usd.nanos(),
        count(quantities.sandbox_ms),
        billable.nanos(),
    ]
}

/// What a batch adds to the sums.
#[derive(Default)]
pub(super) struct Sums<'l>(HashMap<(usize, Date, [&'l str; VALUES.len()]), [i64; SUMS]>);

impl<'l> Sums<'l> {
    /// Takes in what became of a line.
    pub fn add(&mut self, place: &'l Place, before: (Quantities, NanoUsd), now: (Quantities, NanoUsd)) {
        let (before, now) = (numbers(before), numbers(now));
        for (number, set) in SETS.into_iter().enumerate() {
            let mut values = [""; VALUES.len()];
            values.iter_mut().zip(set).for_each(|(column, part)| *column = value(place, *part));
            let sums = self.0.entry((number, place.day, values)).or_insert([0; SUMS]);
            for ((sum, before), now) in sums.iter_mut().zip(before).zip(now) {
                *sum = sum.saturating_add(now.saturating_sub(before));
            }
        }
    }

    pub fn save(self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        let mut statement = transaction.prepare_cached(
            "INSERT INTO usage_sums VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT (parts, day, a, b, c) DO UPDATE SET
                 tasks = tasks + excluded.tasks, input_tokens = input_tokens + excluded.input_tokens,
                 output_tokens = output_tokens + excluded.output_tokens,
                 cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,
                 cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
                 cost_nano_usd = cost_nano_usd + excluded.cost_nano_usd,
                 refunded_nano_usd = refunded_nano_usd + excluded.refunded_nano_usd,
                 sandbox_ms = sandbox_ms + excluded.sandbox_ms,
                 billable_nano_usd = billable_nano_usd + excluded.billable_nano_usd",
        )?;
        let mut rows: Vec<_> = self.0.into_iter().collect();
        // Neighbours in the table one after the other.
        rows.sort_unstable_by_key(|(key, _)| *key);
        let names = SETS.map(name);
        for ((set, day, [a, b, c]), sums) in rows {
            let [tasks, input, output, read, write, cost, refunded, sandbox, billable] = sums;
            statement.execute(params![
                names[set],
                day.to_string(),
                a,
                b,
                c,
                tasks,
                input,
                output,
                read,
                write,
                cost,
                refunded,
                sandbox,
                billable,
            ])?;
        }
        Ok(())
    }
}
