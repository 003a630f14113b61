//! What is charged for what was used: mark-up and prices, and the one place where an amount is rounded.

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::money::NanoUsd;
use crate::task::conversation::Usage;

/// The highest mark-up, in basis points: a hundred times the cost on top of it.
pub const HIGHEST_MARK_UP: u32 = 1_000_000;
/// The highest price and the highest minimum: a million dollars.
pub const HIGHEST_PRICE: NanoUsd = NanoUsd::from_nanos(1_000_000 * 1_000_000_000);
/// Most exceptions of one plan.
pub const MOST_OVERRIDES: usize = 500;
/// Longest name of a customer or project, in bytes.
pub const LONGEST_NAME: usize = 200;

/// Basis points in a whole.
const BASIS_POINTS: i128 = 10_000;
/// Milliseconds in a minute.
const MINUTE_MS: i128 = 60_000;
/// The tokens that a price is for.
const MILLION: i128 = 1_000_000;
/// What every part of a price can be written in without a remainder: a multiple of the three numbers above.
const PARTS: i128 = 3_000_000;

const _: () = assert!(PARTS % BASIS_POINTS == 0 && PARTS % MINUTE_MS == 0 && PARTS % MILLION == 0);

/// The currency of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Currency {
    /// US dollars: providers' prices are in them, and nothing here converts.
    #[default]
    #[serde(rename = "USD")]
    Usd,
}

impl Currency {
    /// Its code (ISO 4217).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Usd => "USD",
        }
    }
}

/// Tokens by the kind that they are priced by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tokens {
    /// Input that was neither read from nor written to a cache.
    pub input: u64,
    /// Output.
    pub output: u64,
    /// Input read from a cache.
    pub cache_read: u64,
    /// Input written to a cache, for however long.
    pub cache_write: u64,
}

impl Tokens {
    fn each(self) -> [u64; 4] {
        [self.input, self.output, self.cache_read, self.cache_write]
    }
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        Self {
            input: usage.input_tokens,
            output: usage.output_tokens,
            cache_read: usage.cache_read_tokens,
            cache_write: usage.cache_write_tokens(),
        }
    }
}

impl std::ops::AddAssign for Tokens {
    fn add_assign(&mut self, other: Self) {
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
        self.cache_read = self.cache_read.saturating_add(other.cache_read);
        self.cache_write = self.cache_write.saturating_add(other.cache_write);
    }
}

/// What a line of a bill is about, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quantities {
    /// Tasks that were created.
    pub tasks: u64,
    /// Tokens of model calls.
    pub tokens: Tokens,
    /// What the provider takes for them.
    pub cost_nano_usd: NanoUsd,
    /// What of such a cost was reversed. May be for a charge of another day, and so be more than the cost beside it.
    pub refunded_nano_usd: NanoUsd,
    /// The tokens of the charges that were reversed.
    pub refunded_tokens: Tokens,
    /// How long sandboxes ran, in milliseconds.
    pub sandbox_ms: u64,
}

impl Quantities {
    /// Whether it is nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for Quantities {
    fn add_assign(&mut self, other: Self) {
        self.tasks = self.tasks.saturating_add(other.tasks);
        self.tokens += other.tokens;
        self.cost_nano_usd += other.cost_nano_usd;
        self.refunded_nano_usd += other.refunded_nano_usd;
        self.refunded_tokens += other.refunded_tokens;
        self.sandbox_ms = self.sandbox_ms.saturating_add(other.sandbox_ms);
    }
}

fn is_nothing(amount: &NanoUsd) -> bool {
    *amount == NanoUsd::ZERO
}

/// Prices. What is absent is not charged for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// The provider's cost is passed on, with this much on top, in hundredths of a per cent. Absent: it is not passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark_up_basis_points: Option<u32>,
    /// For each task that is created.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub per_task: NanoUsd,
    /// For each minute that a sandbox runs, to the millisecond.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub per_minute: NanoUsd,
    /// For a million tokens of input.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub per_million_input: NanoUsd,
    /// For a million tokens of output.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub per_million_output: NanoUsd,
    /// For a million tokens read from a cache.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub per_million_cache_read: NanoUsd,
    /// For a million tokens written to a cache.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub per_million_cache_write: NanoUsd,
    /// The least that a month comes to for a customer for whom anything was done.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub minimum: NanoUsd,
}

impl Terms {
    /// The provider's cost and nothing else: what goes until a plan is set.
    pub const AT_COST: Self = Self {
        mark_up_basis_points: Some(0),
        per_task: NanoUsd::ZERO,
        per_minute: NanoUsd::ZERO,
        per_million_input: NanoUsd::ZERO,
        per_million_output: NanoUsd::ZERO,
        per_million_cache_read: NanoUsd::ZERO,
        per_million_cache_write: NanoUsd::ZERO,
        minimum: NanoUsd::ZERO,
    };

    /// Every price, the minimum included.
    pub(super) const fn prices(&self) -> [NanoUsd; 7] {
        [
            self.per_task,
            self.per_minute,
            self.per_million_input,
            self.per_million_output,
            self.per_million_cache_read,
            self.per_million_cache_write,
            self.minimum,
        ]
    }

    /// What a line comes to.
    ///
    /// A refund takes back what the model calls it is about were charged: their cost with its mark-up, and the prices of
    /// their tokens. Prices per task and per minute stand. The exact amount is rounded here, once, to the nearest
    /// nano-dollar, and to the even one where two are equally near; sums of lines are never rounded.
    pub fn price(&self, of: &Quantities) -> NanoUsd {
        let nanos = |amount: NanoUsd| i128::from(amount.nanos());
        let mut parts = 0_i128;
        if let Some(mark_up) = self.mark_up_basis_points {
            let passed_on = nanos(of.cost_nano_usd) - nanos(of.refunded_nano_usd);
            parts += passed_on * (BASIS_POINTS + i128::from(mark_up)) * (PARTS / BASIS_POINTS);
        }
        parts += i128::from(of.tasks) * nanos(self.per_task) * PARTS;
        parts += i128::from(of.sandbox_ms) * nanos(self.per_minute) * (PARTS / MINUTE_MS);
        let prices = [
            self.per_million_input,
            self.per_million_output,
            self.per_million_cache_read,
            self.per_million_cache_write,
        ];
        for ((price, used), refunded) in prices.into_iter().zip(of.tokens.each()).zip(of.refunded_tokens.each()) {
            parts += (i128::from(used) - i128::from(refunded)) * nanos(price) * (PARTS / MILLION);
        }
        let rounded = half_even(parts, PARTS);
        NanoUsd::from_nanos(i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX }))
    }
}

/// The whole number nearest to a quotient, the even one of two that are equally near. `by` is positive and even.
fn half_even(parts: i128, by: i128) -> i128 {
    let (whole, rest) = (parts.div_euclid(by), parts.rem_euclid(by));
    let up = match rest.cmp(&(by / 2)) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => whole % 2 != 0,
        std::cmp::Ordering::Greater => true,
    };
    whole + i128::from(up)
}

/// Other terms for a customer, a project, or a project of a customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    /// Only for this customer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    /// Only for this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// In place of the plan's.
    pub terms: Terms,
}

/// What a team charges from a day on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The first civil day that it goes for.
    pub effective_from: Date,
    /// The currency of its prices.
    pub currency: Currency,
    /// Its prices.
    pub terms: Terms,
    /// Who has others. The narrower goes first: customer and project, then customer, then project.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

impl Plan {
    /// The terms for a customer and a project.
    pub fn terms_for(&self, customer: Option<&str>, project: Option<&str>) -> &Terms {
        let find = |customer: Option<&str>, project: Option<&str>| {
            let fits = |other: &&Override| other.customer.as_deref() == customer && other.project.as_deref() == project;
            self.overrides.iter().find(fits).map(|other| &other.terms)
        };
        let both = || (customer.is_some() && project.is_some()).then(|| find(customer, project)).flatten();
        let by_customer = || customer.and_then(|customer| find(Some(customer), None));
        let by_project = || project.and_then(|project| find(None, Some(project)));
        both().or_else(by_customer).or_else(by_project).unwrap_or(&self.terms)
    }
}
