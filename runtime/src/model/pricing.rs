//! What a model costs: one versioned table, the operator's rows over it, and integer arithmetic.
//!
//! A price is in pico-dollars per token, which is the same number as micro-dollars per million tokens: three dollars
//! per million is 3,000,000. Every published price is whole in that unit. Sums are `u128` and round up to the
//! nano-dollar once, at the end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use jiff::civil::Date;
use orchestra_events::NanoUsd;
use orchestra_events::task::conversation::Usage;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The table that comes with the program: list prices at the standard service tier.
const BUILT_IN: &str = include_str!("prices.json");

/// A row's model that stands for every model of its provider without a row of its own.
pub const ANY_MODEL: &str = "*";

/// Pico-dollars in a nano-dollar.
const PICOS_PER_NANO: u128 = 1_000;

/// Pico-dollars per token, by kind of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rates {
    /// Input that no cache saw.
    pub input: u64,
    /// Output, thinking included.
    pub output: u64,
    /// Input read from a cache.
    pub cache_read: u64,
    /// Input written to a cache for five minutes, or the provider's only kind.
    pub cache_write5m: u64,
    /// Input written to a cache for an hour.
    pub cache_write1h: u64,
}

impl Rates {
    fn picos(&self, usage: &Usage) -> u128 {
        let times = |tokens: u64, rate: u64| u128::from(tokens) * u128::from(rate);
        // Five products of two 64-bit numbers can pass 2^128 only near its very end: saturate rather than wrap.
        times(usage.input_tokens, self.input)
            .saturating_add(times(usage.output_tokens, self.output))
            .saturating_add(times(usage.cache_read_tokens, self.cache_read))
            .saturating_add(times(usage.cache_write5m_tokens, self.cache_write5m))
            .saturating_add(times(usage.cache_write1h_tokens, self.cache_write1h))
    }

    fn dearest_input(&self, writes: CacheWrites) -> u64 {
        let read = self.input.max(self.cache_read);
        let cached = read.max(self.cache_write5m);
        match writes {
            CacheWrites::None => read,
            CacheWrites::FiveMinutes => cached,
            CacheWrites::Any => cached.max(self.cache_write1h),
        }
    }
}

fn round_up(picos: u128) -> NanoUsd {
    NanoUsd::from_nanos(i64::try_from(picos.div_ceil(PICOS_PER_NANO)).unwrap_or(i64::MAX))
}

/// Which cache writes a request can cause. What it cannot cause need not be reserved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheWrites {
    /// None at all: no mark, and a provider that writes only what is marked.
    None,
    /// Five-minute marks only, and whatever the provider does by itself: the built-in agent's requests.
    FiveMinutes,
    /// One-hour marks as well.
    Any,
}

/// A tool that the provider runs by itself, within a call, and bills per use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostedTool {
    /// Searches the web.
    WebSearch,
    /// Reads one page of the web.
    WebFetch,
}

/// Pico-dollars per use of each tool that has a price. A use of another one cannot be bounded, and is refused.
pub type ToolPrices = BTreeMap<HostedTool, u64>;

/// How often the provider's tools were used in a call.
pub type ToolCalls = BTreeMap<HostedTool, u64>;

/// Dearer rates for a whole call once it reads more than so many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LongContext {
    /// The rates apply above this many tokens of context.
    pub input_tokens: u64,
    /// As in [`Rates`].
    pub input: u64,
    /// As in [`Rates`].
    pub output: u64,
    /// As in [`Rates`].
    pub cache_read: u64,
    /// As in [`Rates`].
    pub cache_write5m: u64,
    /// As in [`Rates`].
    pub cache_write1h: u64,
}

impl LongContext {
    fn rates(&self) -> Rates {
        Rates {
            input: self.input,
            output: self.output,
            cache_read: self.cache_read,
            cache_write5m: self.cache_write5m,
            cache_write1h: self.cache_write1h,
        }
    }
}

/// A price that the operator sets for a model of one provider. It goes before the built-in table.
///
/// Everything is in pico-dollars per token (micro-dollars per million tokens); a self-hosted model may cost 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct PriceRow {
    /// The model, as the provider names it; `*` for all that have no row.
    pub model: String,
    /// The day from which the price holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Date>,
    /// Input that no cache saw.
    #[serde(deserialize_with = "micro_usd")]
    pub input: u64,
    /// Output, thinking included.
    #[serde(deserialize_with = "micro_usd")]
    pub output: u64,
    /// Input read from a cache; as `input` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read: Option<u64>,
    /// Input written to a cache for five minutes; as `input` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_5m: Option<u64>,
    /// Input written to a cache for an hour; as the five-minute price when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_1h: Option<u64>,
    /// The rates above some size of context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_context: Option<LongContextRow>,
    /// The most output tokens the model can write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    /// The most tokens that one image is read as; absent, what the provider documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_tokens: Option<u64>,
    /// Pico-dollars per use of a tool that the provider runs (ten billion for a cent); absent, the built-in prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<ToolPrices>,
    /// The version of the file that the row is from.
    #[serde(skip)]
    pub version: Option<Arc<str>>,
}

/// A price, with an error that names its unit: dollars are what most people write first.
fn micro_usd<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct MicroUsd;

    impl Visitor<'_> for MicroUsd {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("whole micro-dollars per million tokens (3000000 for $3)")
        }

        fn visit_u64<E: de::Error>(self, price: u64) -> Result<u64, E> {
            Ok(price)
        }

        fn visit_i64<E: de::Error>(self, price: i64) -> Result<u64, E> {
            u64::try_from(price).map_err(|_| E::invalid_value(de::Unexpected::Signed(price), &self))
        }
    }

    deserializer.deserialize_u64(MicroUsd)
}

/// An operator's rates above some size of context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct LongContextRow {
    /// The rates apply above this many tokens of context.
    pub above_input_tokens: u64,
    /// Input that no cache saw.
    pub input: u64,
    /// Output, thinking included.
    pub output: u64,
    /// Input read from a cache; as `input` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read: Option<u64>,
    /// Input written to a cache for five minutes; as `input` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_5m: Option<u64>,
    /// Input written to a cache for an hour; as the five-minute price when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_1h: Option<u64>,
}

/// The price of one model, with the name under which a charge records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    id: Arc<str>,
    effective: Option<Date>,
    base: Rates,
    long_context: Option<LongContext>,
    max_output_tokens: Option<u64>,
    image_tokens: Option<u64>,
    tools: ToolPrices,
}

impl Price {
    /// `table version/row`, as charges record it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The day from which it holds, when the row says one.
    pub fn effective(&self) -> Option<Date> {
        self.effective
    }

    /// The most output tokens the model can write, when the row says so.
    pub fn max_output_tokens(&self) -> Option<u64> {
        self.max_output_tokens
    }

    /// The most tokens that one image is read as, when the row says so.
    pub fn image_tokens(&self) -> Option<u64> {
        self.image_tokens
    }

    /// What one use of a tool costs that the provider runs, in pico-dollars.
    pub fn tool(&self, tool: HostedTool) -> Option<u64> {
        self.tools.get(&tool).copied()
    }

    /// What a call costs, rounded up to the nano-dollar.
    pub fn cost(&self, usage: &Usage) -> NanoUsd {
        self.cost_with(usage, &ToolCalls::new())
    }

    /// What a call costs in which the provider used tools of its own. One without a price is not billed.
    pub fn cost_with(&self, usage: &Usage, calls: &ToolCalls) -> NanoUsd {
        let tokens = match &self.long_context {
            Some(tier) if usage.context() > tier.input_tokens => tier.rates().picos(usage),
            _ => self.base.picos(usage),
        };
        let tools = calls.iter().map(|(tool, uses)| u128::from(self.tool(*tool).unwrap_or(0)) * u128::from(*uses));
        round_up(tools.fold(tokens, u128::saturating_add))
    }

    /// The most a call can cost that reads and writes at most so many tokens, whatever it caches.
    pub fn bound(&self, input_tokens: u64, output_tokens: u64) -> NanoUsd {
        self.bound_for(CacheWrites::Any, input_tokens, output_tokens)
    }

    /// The most a call can cost when its request can cause only these cache writes.
    pub fn bound_for(&self, writes: CacheWrites, input_tokens: u64, output_tokens: u64) -> NanoUsd {
        let (input, output) = self.dearest(writes, input_tokens);
        let picos = (u128::from(input_tokens) * u128::from(input))
            .saturating_add(u128::from(output_tokens) * u128::from(output));
        round_up(picos)
    }

    /// The dearest rates for input and output that a call within this input bound can meet.
    pub(super) fn dearest(&self, writes: CacheWrites, input_tokens: u64) -> (u64, u64) {
        let base = (self.base.dearest_input(writes), self.base.output);
        match &self.long_context {
            // The call may also turn out smaller than its bound and meet the base rates: take the dearer of the two.
            Some(tier) if input_tokens > tier.input_tokens => {
                let tier = tier.rates();
                (base.0.max(tier.dearest_input(writes)), base.1.max(tier.output))
            }
            _ => base,
        }
    }
}

impl PriceRow {
    fn price(&self, provider: &str, tools: &ToolPrices) -> Price {
        let write5m = self.cache_write_5m.unwrap_or(self.input);
        let day = self.effective.map(|day| format!("@{day}")).unwrap_or_default();
        let version = self.version.as_deref().map(|version| format!("-{version}")).unwrap_or_default();
        Price {
            id: format!("operator{version}{day}/{provider}/{}", self.model).into(),
            effective: self.effective,
            base: Rates {
                input: self.input,
                output: self.output,
                cache_read: self.cache_read.unwrap_or(self.input),
                cache_write5m: write5m,
                cache_write1h: self.cache_write_1h.unwrap_or(write5m),
            },
            long_context: self.long_context.as_ref().map(|row| {
                let write5m = row.cache_write_5m.unwrap_or(row.input);
                LongContext {
                    input_tokens: row.above_input_tokens,
                    input: row.input,
                    output: row.output,
                    cache_read: row.cache_read.unwrap_or(row.input),
                    cache_write5m: write5m,
                    cache_write1h: row.cache_write_1h.unwrap_or(write5m),
                }
            }),
            max_output_tokens: self.max_output_tokens,
            image_tokens: self.image_tokens,
            tools: self.tools.clone().unwrap_or_else(|| tools.clone()),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TableFile {
    version: String,
    effective: Date,
    // For the reader of the file; there is one unit.
    #[serde(rename = "unit")]
    _unit: String,
    /// By provider.
    #[serde(default)]
    tools: BTreeMap<String, ToolPrices>,
    rows: Vec<TableRow>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TableRow {
    model: String,
    #[serde(default)]
    aliases: Vec<String>,
    provider: String,
    #[serde(flatten)]
    rates: RatesRow,
    above: Option<LongContext>,
    max_output_tokens: Option<u64>,
    /// The day from which this row goes before the model's earlier ones.
    effective: Option<Date>,
}

// `flatten` and `deny_unknown_fields` exclude each other, hence a twin of `Rates` that ignores its neighbours.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RatesRow {
    input: u64,
    output: u64,
    cache_read: u64,
    cache_write5m: u64,
    cache_write1h: u64,
}

/// The rows of one model, the latest day first; a row without a day holds since ever.
#[derive(Debug, Clone, Default)]
struct Rows {
    operator: Vec<(Option<Date>, Arc<Price>)>,
    table: Vec<(Option<Date>, Arc<Price>)>,
}

impl Rows {
    /// The operator's row of the day, or the table's. A row of a later day is not there yet.
    fn on(&self, day: Date) -> Option<&Arc<Price>> {
        let holds = |(from, _): &&(Option<Date>, Arc<Price>)| from.is_none_or(|from| from <= day);
        self.operator.iter().find(holds).or_else(|| self.table.iter().find(holds)).map(|(_, price)| price)
    }
}

fn put(rows: &mut Vec<(Option<Date>, Arc<Price>)>, from: Option<Date>, price: Arc<Price>) {
    rows.retain(|(other, _)| *other != from);
    rows.push((from, price));
    rows.sort_by_key(|(from, _)| std::cmp::Reverse(*from));
}

/// Every price that is known: the operator's, then the built-in table's.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    rows: HashMap<(String, String), Rows>,
    tools: BTreeMap<String, ToolPrices>,
}

impl Prices {
    /// The built-in table.
    pub fn built_in() -> Self {
        let table: TableFile =
            serde_json::from_str(BUILT_IN).expect("prices.json is part of the program and read by its tests");
        let mut prices = Self { rows: HashMap::new(), tools: table.tools };
        for row in table.rows {
            let day = row.effective.map(|day| format!("@{day}")).unwrap_or_default();
            let price = Arc::new(Price {
                id: format!("{}/{}{day}", table.version, row.model).into(),
                effective: row.effective.or(Some(table.effective)),
                base: Rates {
                    input: row.rates.input,
                    output: row.rates.output,
                    cache_read: row.rates.cache_read,
                    cache_write5m: row.rates.cache_write5m,
                    cache_write1h: row.rates.cache_write1h,
                },
                long_context: row.above,
                max_output_tokens: row.max_output_tokens,
                image_tokens: None,
                tools: prices.tools_of(&row.provider),
            });
            for name in row.aliases.into_iter().chain([row.model]) {
                let rows = prices.rows.entry((row.provider.clone(), name)).or_default();
                // The table's own day says when it was made: its prices were not others before.
                put(&mut rows.table, row.effective, Arc::clone(&price));
            }
        }
        prices
    }

    fn tools_of(&self, provider: &str) -> ToolPrices {
        self.tools.get(provider).cloned().unwrap_or_default()
    }

    /// Puts an operator's row before what is there. It takes the place of an earlier one that holds from the same day.
    pub fn set(&mut self, provider: &str, row: &PriceRow) {
        let price = Arc::new(row.price(provider, &self.tools_of(provider)));
        let rows = self.rows.entry((provider.to_owned(), row.model.clone())).or_default();
        put(&mut rows.operator, row.effective, price);
    }

    /// The price of a provider's model on a day.
    pub fn find(&self, provider: &str, model: &str, day: Date) -> Option<&Arc<Price>> {
        let row = |model: &str| self.rows.get(&(provider.to_owned(), model.to_owned()))?.on(day);
        row(model).or_else(|| row(ANY_MODEL))
    }

    /// The models of a provider that have a price.
    pub fn models_of<'a>(&'a self, provider: &'a str) -> impl Iterator<Item = &'a str> {
        self.rows.keys().filter(move |(name, _)| name == provider).map(|(_, model)| model.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TODAY: Date = jiff::civil::date(2026, 12, 24);

    fn price(provider: &str, model: &str) -> Arc<Price> {
        Arc::clone(Prices::built_in().find(provider, model, TODAY).expect(model))
    }

    fn usage(input: u64, output: u64, read: u64, write5m: u64, write1h: u64) -> Usage {
        Usage {
            input_tokens: input,
            output_tokens: output,
            cache_read_tokens: read,
            cache_write5m_tokens: write5m,
            cache_write1h_tokens: write1h,
        }
    }

    #[test]
    fn a_price_in_dollars_is_told_its_unit() {
        let row = |input: &str| format!(r#"{{"model":"m","input":{input},"output":15000000}}"#);
        assert_eq!(serde_json::from_str::<PriceRow>(&row("3000000")).map(|row| row.input).ok(), Some(3_000_000));
        for wrong in ["3.0", "-3", "\"3\""] {
            let error = serde_json::from_str::<PriceRow>(&row(wrong)).expect_err(wrong).to_string();
            assert!(error.contains("micro-dollars per million tokens"), "{error}");
        }
    }

    #[test]
    fn a_million_tokens_cost_the_published_price() {
        // Dollars per million: input, output, cache read, write for 5 minutes, write for an hour.
        for (provider, model, dollars) in [
            ("anthropic", "claude-sonnet-4-6", ["3", "15", "0.3", "3.75", "6"]),
            ("anthropic", "claude-haiku-4-5", ["1", "5", "0.1", "1.25", "2"]),
            ("anthropic", "claude-haiku-4-5-20251001", ["1", "5", "0.1", "1.25", "2"]),
            ("anthropic", "claude-opus-5-5", ["4", "20", "0.2", "5", "8"]),
            ("openai", "gpt-5", ["1.25", "10", "0.125", "1.25", "1.25"]),
            ("openai", "gpt-5-2025-08-07", ["1.25", "10", "0.125", "1.25", "1.25"]),
            ("openai", "o4-mini", ["1.1", "4.4", "0.275", "1.1", "1.1"]),
        ] {
            let price = price(provider, model);
            let million = 1_000_000;
            for (kind, (usage, dollars)) in [
                // Input below any long-context threshold, a tenth at a time.
                (usage(million / 10, 0, 0, 0, 0), dollars[0]),
                (usage(0, million / 10, 0, 0, 0), dollars[1]),
                (usage(0, 0, million / 10, 0, 0), dollars[2]),
                (usage(0, 0, 0, million / 10, 0), dollars[3]),
                (usage(0, 0, 0, 0, million / 10), dollars[4]),
            ]
            .into_iter()
            .enumerate()
            {
                let expected = NanoUsd::parse_decimal(dollars).expect("decimal").nanos() / 10;
                assert_eq!(price.cost(&usage).nanos(), expected, "{model} kind {kind}");
            }
        }
    }

    #[test]
    fn a_long_context_costs_its_tier_from_the_next_token_on() {
        let haiku = price("anthropic", "claude-haiku-5-5");
        assert_eq!(haiku.cost(&usage(100_000, 0, 0, 0, 0)).nanos(), 10_000_000);
        assert_eq!(haiku.cost(&usage(100_001, 0, 0, 0, 0)).nanos(), 50_000_500);
        // The context counts, not the uncached part of it, and the output gets dearer too.
        assert_eq!(haiku.cost(&usage(1, 1_000, 100_000, 0, 0)).nanos(), 500 + 2_500_000 + 5_000_000);
    }

    #[test]
    fn a_fraction_of_a_nano_dollar_is_rounded_up() {
        assert_eq!(price("openai", "gpt-6-luna").cost(&usage(0, 0, 1, 0, 0)).nanos(), 10);
        let mut prices = Prices::default();
        let row: PriceRow = serde_json::from_str(r#"{"model": "m", "input": 1, "output": 0}"#).expect("row");
        prices.set("p", &row);
        let price = prices.find("p", "m", TODAY).expect("priced");
        assert_eq!(price.cost(&usage(1, 0, 0, 0, 0)).nanos(), 1);
        assert_eq!(price.cost(&usage(1_000, 0, 0, 0, 0)).nanos(), 1);
        assert_eq!(price.cost(&usage(1_001, 0, 0, 0, 0)).nanos(), 2);
    }

    #[test]
    fn nonsense_amounts_saturate() {
        let all = usage(u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX);
        assert_eq!(price("anthropic", "claude-opus-5").cost(&all), NanoUsd::MAX);
        assert_eq!(price("anthropic", "claude-opus-5").bound(u64::MAX, u64::MAX), NanoUsd::MAX);
    }

    #[test]
    fn the_operators_row_goes_first_and_says_so() {
        let mut prices = Prices::built_in();
        let row: PriceRow = serde_json::from_str(
            r#"{"model": "claude-sonnet-4-6", "effective": "2026-12-01", "input": 10, "output": 20}"#,
        )
        .expect("row");
        prices.set("anthropic", &row);
        let price = prices.find("anthropic", "claude-sonnet-4-6", TODAY).expect("priced");
        assert_eq!(price.id(), "operator@2026-12-01/anthropic/claude-sonnet-4-6");
        assert_eq!(price.cost(&usage(1_000, 0, 0, 0, 0)).nanos(), 10);
        assert!(serde_json::from_str::<PriceRow>(r#"{"model": "m", "input": 1, "output": 1, "inptu": 2}"#).is_err());
        prices.set("ollama", &PriceRow { model: ANY_MODEL.into(), ..row });
        assert!(prices.find("ollama", "anything", TODAY).is_some());
        assert!(prices.find("other", "anything", TODAY).is_none());
    }

    #[test]
    fn a_row_holds_from_its_day_on_and_the_latest_of_the_operators_goes_first() {
        let mut prices = Prices::built_in();
        for (day, input) in [("2027-02-01", 30), ("2027-01-01", 20)] {
            let row = format!(r#"{{"model": "gpt-5", "effective": "{day}", "input": {input}, "output": 0}}"#);
            prices.set("openai", &serde_json::from_str(&row).expect("row"));
        }
        for (day, expected) in [
            ((2026, 12, 31), "2026-11-22/gpt-5"),
            ((2027, 1, 1), "operator@2027-01-01/openai/gpt-5"),
            ((2027, 1, 31), "operator@2027-01-01/openai/gpt-5"),
            ((2027, 2, 1), "operator@2027-02-01/openai/gpt-5"),
        ] {
            let day = jiff::civil::date(day.0, day.1, day.2);
            assert_eq!(prices.find("openai", "gpt-5", day).expect("priced").id(), expected, "{day}");
        }
        let future = r#"{"model": "new", "effective": "2027-01-01", "input": 1, "output": 1}"#;
        prices.set("openai", &serde_json::from_str(future).expect("row"));
        assert!(prices.find("openai", "new", TODAY).is_none(), "not before its day");
    }

    #[test]
    fn a_use_of_the_providers_own_tool_has_its_price() {
        let sonnet = price("anthropic", "claude-sonnet-4-6");
        let calls = ToolCalls::from([(HostedTool::WebSearch, 3), (HostedTool::WebFetch, 2)]);
        // Three cents, and one thousand tokens of output.
        assert_eq!(sonnet.cost_with(&usage(0, 1_000, 0, 0, 0), &calls).to_string(), "0.045");
        assert_eq!(price("openai", "gpt-5").tool(HostedTool::WebSearch), None);
        let row = r#"{"model": "m", "input": 0, "output": 0, "tools": {"web_search": 1500}}"#;
        let mut prices = Prices::default();
        prices.set("p", &serde_json::from_str(row).expect("row"));
        let price = prices.find("p", "m", TODAY).expect("priced");
        let search = ToolCalls::from([(HostedTool::WebSearch, 1)]);
        assert_eq!(price.cost_with(&usage(0, 0, 0, 0, 0), &search).nanos(), 2, "rounded up once");
    }

    proptest! {
        #[test]
        fn no_call_within_the_bound_costs_more_than_the_bound(
            row in 0usize..200,
            parts in prop::array::uniform4(0u64..400_000),
            slack in 0u64..300_000,
            output in 0u64..200_000,
            hour in any::<bool>(),
        ) {
            let prices = Prices::built_in();
            let mut names: Vec<_> = prices.rows.keys().cloned().collect();
            names.sort();
            let (provider, model) = &names[row % names.len()];
            let price = prices.find(provider, model, TODAY).expect("priced");
            let usage = usage(parts[0], output, parts[1], parts[2], if hour { parts[3] } else { 0 });
            let bound = usage.context() + slack;
            prop_assert!(price.cost(&usage) <= price.bound(bound, output));
            if !hour {
                prop_assert!(price.cost(&usage) <= price.bound_for(CacheWrites::FiveMinutes, bound, output));
            }
            if usage.cache_write_tokens() == 0 {
                prop_assert!(price.cost(&usage) <= price.bound_for(CacheWrites::None, bound, output));
            }
        }
    }
}
