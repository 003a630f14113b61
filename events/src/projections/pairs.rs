//! Usage by day and any two of its parts, summed up as it is folded: what most reports ask for, without reading each line.
//!
//! Lines are as many as there are combinations of all parts, soon as many as tasks. Of two parts there are few.

use std::collections::HashMap;

use jiff::civil::Date;
use rusqlite::{Transaction, params};

use super::books::Place;
use super::usage::Dimension;
use crate::billing::Quantities;
use crate::money::NanoUsd;

/// The parts of a line besides its day. Those that tend to have few values come first: they make the smallest pairs.
pub(super) const PARTS: [Dimension; 6] = [
    Dimension::Environment,
    Dimension::TaskType,
    Dimension::Model,
    Dimension::Project,
    Dimension::Team,
    Dimension::Customer,
];

/// How many numbers are summed up.
const SUMS: usize = 9;

/// Two different parts, in the order of [`PARTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair(Dimension, Dimension);

impl Pair {
    fn all() -> impl Iterator<Item = Self> {
        (1..PARTS.len()).flat_map(|second| PARTS[..second].iter().map(move |first| Self(*first, PARTS[second])))
    }

    /// The smallest pair that holds all of these parts.
    pub fn of(parts: &[Dimension]) -> Option<Self> {
        Self::all().find(|pair| parts.iter().all(|part| pair.0 == *part || pair.1 == *part))
    }

    fn name(self) -> String {
        format!("{},{}", self.0.column(), self.1.column())
    }

    /// Its rows, with the columns named as those of the lines.
    pub fn rows(self) -> String {
        format!(
            "(SELECT day, a AS {}, b AS {}, tasks, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
                 cost_nano_usd, refunded_nano_usd, sandbox_ms, billable_nano_usd
              FROM usage_pairs WHERE pair = '{}')",
            self.0.column(),
            self.1.column(),
            self.name(),
        )
    }
}

/// The text of a part of a line.
fn part(place: &Place, dimension: Dimension) -> &str {
    match dimension {
        Dimension::Team => &place.team,
        Dimension::Project => &place.project,
        Dimension::Environment => &place.environment,
        Dimension::TaskType => &place.task_type,
        Dimension::Model => &place.model,
        Dimension::Customer => &place.customer,
        Dimension::Day | Dimension::Month => unreachable!("a day is no part of a pair"),
    }
}

fn sums((quantities, billable): (Quantities, NanoUsd)) -> [i64; SUMS] {
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
pub(super) struct Pairs<'l>(HashMap<(Pair, Date, &'l str, &'l str), [i64; SUMS]>);

impl<'l> Pairs<'l> {
    /// Takes in what became of a line.
    pub fn add(&mut self, place: &'l Place, before: (Quantities, NanoUsd), now: (Quantities, NanoUsd)) {
        let (before, now) = (sums(before), sums(now));
        for pair in Pair::all() {
            let key = (pair, place.day, part(place, pair.0), part(place, pair.1));
            let added = self.0.entry(key).or_insert([0; SUMS]);
            for ((added, before), now) in added.iter_mut().zip(before).zip(now) {
                *added = added.saturating_add(now.saturating_sub(before));
            }
        }
    }

    pub fn save(self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        let mut statement = transaction.prepare_cached(
            "INSERT INTO usage_pairs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
             ON CONFLICT (pair, day, a, b) DO UPDATE SET
                 tasks = tasks + excluded.tasks, input_tokens = input_tokens + excluded.input_tokens,
                 output_tokens = output_tokens + excluded.output_tokens,
                 cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,
                 cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
                 cost_nano_usd = cost_nano_usd + excluded.cost_nano_usd,
                 refunded_nano_usd = refunded_nano_usd + excluded.refunded_nano_usd,
                 sandbox_ms = sandbox_ms + excluded.sandbox_ms,
                 billable_nano_usd = billable_nano_usd + excluded.billable_nano_usd",
        )?;
        let mut rows: Vec<_> =
            self.0.into_iter().map(|((pair, day, a, b), sums)| (pair.name(), day, a, b, sums)).collect();
        // Neighbours in the table one after the other.
        rows.sort_unstable();
        for (pair, day, a, b, sums) in rows {
            let [tasks, input, output, read, write, cost, refunded, sandbox, billable] = sums;
            statement.execute(params![
                pair,
                day.to_string(),
                a,
                b,
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
