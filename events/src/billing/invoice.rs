//! A bill: the lines of one month, what they come to for each customer, and a digest that shows any change.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::event::NumberedLine;
use super::month::Month;
use super::plan::Quantities;
use super::state::Billing;
use crate::money::NanoUsd;

/// Most lines of one bill. A month of a team that has more is narrowed by fewer projects, types of task and customers.
pub const MOST_LINES: usize = 200_000;

/// What a line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LineKind {
    /// What was used in the month.
    Usage,
    /// What belongs to an earlier month and came after that was cut off.
    Adjustment,
    /// What is missing to the least that the month comes to.
    Minimum,
}

impl LineKind {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Adjustment => "adjustment",
            Self::Minimum => "minimum",
        }
    }
}

/// One line of a bill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// What it is for.
    pub kind: LineKind,
    /// The civil day that was recorded with it: the team's for money and tokens, that of UTC for tasks and sandboxes.
    pub day: Date,
    /// The month that an adjustment corrects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrects: Option<Month>,
    /// The team's customer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    /// The project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The kind of work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_type: Option<String>,
    /// The model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What was used.
    #[serde(flatten)]
    pub quantities: Quantities,
    /// What it comes to.
    pub billable_nano_usd: NanoUsd,
}

/// What a bill comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// How many lines there are.
    pub lines: u32,
    /// The sum of all of them.
    #[serde(flatten)]
    pub quantities: Quantities,
    /// The sum of the lines of the month itself.
    pub usage_nano_usd: NanoUsd,
    /// The sum of the adjustments.
    pub adjustments_nano_usd: NanoUsd,
    /// The sum of what was missing to minima.
    pub minimum_nano_usd: NanoUsd,
    /// The sum of the three: what is to be paid.
    pub billable_nano_usd: NanoUsd,
}

impl Totals {
    fn add(&mut self, line: &Line) {
        self.lines = self.lines.saturating_add(1);
        self.quantities += line.quantities;
        let part = match line.kind {
            LineKind::Usage => &mut self.usage_nano_usd,
            LineKind::Adjustment => &mut self.adjustments_nano_usd,
            LineKind::Minimum => &mut self.minimum_nano_usd,
        };
        *part += line.billable_nano_usd;
        self.billable_nano_usd += line.billable_nano_usd;
    }
}

/// What a bill comes to for one customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomerTotal {
    /// The customer; `None`: what was done for none.
    pub customer: Option<String>,
    /// What it comes to.
    pub totals: Totals,
}

/// A bill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoice {
    /// Whose it is.
    pub team: String,
    /// The month.
    pub period: Month,
    /// Its lines, in the order of their numbers.
    pub lines: Vec<Line>,
    /// What it comes to for each customer, by name; first what was done for none.
    pub customers: Vec<CustomerTotal>,
    /// What it comes to.
    pub totals: Totals,
    /// The versions of the plan that its lines were priced with; 0 stands for none.
    pub plans: Vec<u32>,
}

impl Invoice {
    /// Draws a bill up from its lines, which come priced and in their order: adds what is missing to minima, and sums.
    pub fn draw_up(billing: &Billing, team: &str, period: Month, mut lines: Vec<Line>) -> Self {
        let mut usage: BTreeMap<Option<String>, (bool, NanoUsd)> = BTreeMap::new();
        for line in lines.iter().filter(|line| line.kind == LineKind::Usage) {
            let sum = usage.entry(line.customer.clone()).or_default();
            sum.0 |= !line.quantities.is_empty();
            sum.1 += line.billable_nano_usd;
        }
        let day = period.last_day();
        for (customer, (active, sum)) in usage {
            let least = billing.terms(day, customer.as_deref(), None).0.minimum;
            if active && least > sum {
                lines.push(Line {
                    kind: LineKind::Minimum,
                    day,
                    corrects: None,
                    customer,
                    project: None,
                    environment: None,
                    task_type: None,
                    model: None,
                    quantities: Quantities::default(),
                    billable_nano_usd: least - sum,
                });
            }
        }
        let (mut totals, mut customers, mut plans) = (Totals::default(), BTreeMap::new(), BTreeSet::new());
        for line in &lines {
            totals.add(line);
            let of: &mut Totals = customers.entry(line.customer.clone()).or_default();
            of.add(line);
            plans.insert(billing.terms(line.day, line.customer.as_deref(), line.project.as_deref()).1);
        }
        let customers = customers.into_iter().map(|(customer, totals)| CustomerTotal { customer, totals }).collect();
        Self { team: team.to_owned(), period, lines, customers, totals, plans: plans.into_iter().collect() }
    }

    /// The lines with their numbers and the names under which they are sent.
    pub fn numbered(&self) -> impl Iterator<Item = NumberedLine> {
        (1..).zip(&self.lines).map(|(number, line)| NumberedLine::new(&self.team, self.period, number, line.clone()))
    }

    /// The [`LinesDigest`] of its lines.
    ///
    /// # Errors
    /// Never for lines of ours; JSON is written by whoever writes JSON.
    pub fn digest(&self) -> Result<String, serde_json::Error> {
        let mut digest = LinesDigest::default();
        self.numbered().try_for_each(|line| digest.add(&line))?;
        Ok(digest.finish())
    }
}

impl NumberedLine {
    /// A line of a bill under its number.
    pub fn new(team: &str, period: Month, number: u32, line: Line) -> Self {
        Self { number, idempotency_key: format!("{team}/{period}/{number}"), line }
    }
}

/// The SHA-256 over a bill's lines as JSON, each with its number and followed by a line feed.
#[derive(Debug, Default)]
pub struct LinesDigest(Sha256);

impl LinesDigest {
    /// Takes in the next line.
    ///
    /// # Errors
    /// Never for lines of ours; JSON is written by whoever writes JSON.
    pub fn add(&mut self, line: &NumberedLine) -> Result<(), serde_json::Error> {
        self.0.update(serde_json::to_vec(line)?);
        self.0.update(b"\n");
        Ok(())
    }

    /// The digest, in hexadecimal.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
