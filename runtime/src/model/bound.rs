//! How large a call can get before it is made: the bound that a reservation is built on.

use orchestra_events::ledger::Quote;

use super::pricing::{CacheWrites, Price};

/// Tokens that a provider may add to a request by itself (its own instructions for tool use), with room to spare.
pub const HIDDEN_INPUT_TOKENS: u64 = 1_024;

/// A call that may write fewer tokens than this is not worth its input.
pub const OUTPUT_FLOOR: u64 = 1_024;

/// The most tokens a request of so many bytes can be read as.
///
/// Byte-level tokenizers never make more tokens than there are bytes, but usually four times fewer. When an earlier
/// request of the same conversation has been counted by the provider (`previous`: the context tokens it reported, and
/// that request's bytes), the part that is the same is known, and only the new bytes are bounded.
pub fn input_bound(request_bytes: u64, previous: Option<(u64, u64)>) -> u64 {
    let whole = request_bytes.saturating_add(HIDDEN_INPUT_TOKENS);
    match previous {
        Some((context_tokens, bytes)) if bytes <= request_bytes => {
            whole.min(context_tokens.saturating_add(request_bytes - bytes).saturating_add(HIDDEN_INPUT_TOKENS))
        }
        _ => whole,
    }
}

/// The most tokens that an image is read as.
///
/// Anthropic scales images down to 4,784 tokens at most, and older models to 1,600 (Images and vision, platform.claude.com).
/// OpenAI counts up to 10,000 patches times 1.2 for its larger models; the small ones multiply by up to 2.46, and
/// gpt-4o-mini counts 2,833 and 5,667 for each of up to eight tiles (Images and vision, developers.openai.com). Others are
/// taken as Qwen's vision models, whose default limit of 16,384 is the largest of the usual open-weights servers.
pub fn image_tokens(price: &Price, provider: ImageRules, model: &str) -> u64 {
    price.image_tokens().unwrap_or(match provider {
        ImageRules::Anthropic => 4_784,
        ImageRules::Openai if ["mini", "nano", "luna"].iter().any(|small| model.contains(small)) => 48_169,
        ImageRules::Openai => 12_000,
        ImageRules::Other => 16_384,
    })
}

/// Whose way to count an image's tokens applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageRules {
    /// Anthropic's own models.
    Anthropic,
    /// OpenAI's own models.
    Openai,
    /// A compatible server.
    Other,
}

/// The most a call can cost whose request is within this bound and causes only these cache writes.
pub fn quote(price: &Price, writes: CacheWrites, input_bound: u64, wanted_output: u64) -> Quote {
    let (input_rate, output_rate) = price.dearest(writes, input_bound);
    Quote {
        input_tokens: input_bound,
        input_picos: u128::from(input_bound) * u128::from(input_rate),
        output_picos: output_rate,
        replies: 1,
        wanted_output: price.max_output_tokens().map_or(wanted_output, |most| wanted_output.min(most)),
        least_output: OUTPUT_FLOOR,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use orchestra_events::NanoUsd;
    use orchestra_events::ledger::Remaining;

    use super::super::pricing::Prices;
    use super::*;

    const TODAY: jiff::civil::Date = jiff::civil::date(2026, 12, 24);

    #[test]
    fn a_settled_prefix_is_known_and_only_the_rest_is_bounded() {
        for (bytes, previous, expected) in [
            (4_000, None, 5_024),
            (5_000, Some((1_000, 4_000)), 1_000 + 1_000 + 1_024),
            // Another conversation: shorter than what was counted.
            (3_000, Some((1_000, 4_000)), 4_024),
            // A report that is worse than the plain bound does not make it worse.
            (5_000, Some((9_000, 4_000)), 6_024),
            (u64::MAX, Some((u64::MAX, 0)), u64::MAX),
        ] {
            assert_eq!(input_bound(bytes, previous), expected, "{bytes} {previous:?}");
        }
    }

    #[test]
    fn a_tight_budget_shortens_the_answer_then_refuses() {
        let prices = Prices::built_in();
        let price = prices.find("anthropic", "claude-sonnet-4-6", TODAY).expect("priced");
        let dollars = |text: &str| Remaining { nano_usd: NanoUsd::parse_decimal(text).ok(), tokens: None };
        let fit = |remaining| quote(price, CacheWrites::FiveMinutes, 10_000, 32_000).fit(remaining);
        // 10,000 tokens at 3.75 per million and 32,000 at 15.
        assert_eq!(fit(dollars("2")).expect("fits").nano_usd.to_string(), "0.5175");
        assert_eq!(fit(dollars("0.5175")).expect("fits").max_output_tokens, 32_000);
        assert_eq!(fit(dollars("0.1875")).expect("fits").max_output_tokens, 10_000);
        assert_eq!(fit(dollars("0.0528")).map(|fitted| fitted.max_output_tokens), None);
        assert_eq!(fit(dollars("0.05286")).expect("fits").max_output_tokens, 1_024);
        assert_eq!(fit(Remaining { nano_usd: None, tokens: Some(12_000) }).expect("fits").max_output_tokens, 2_000);
        assert_eq!(fit(Remaining { nano_usd: None, tokens: Some(11_023) }), None);
        assert_eq!(fit(Remaining { nano_usd: None, tokens: Some(9_000) }), None);
        assert_eq!(fit(Remaining::default()).expect("fits").tokens, 42_000);
    }

    proptest! {
        #[test]
        fn what_fits_is_within_what_is_left(
            row in 0usize..200, input in 0u64..2_000_000, wanted in 1u64..200_000,
            nanos in 0i64..20_000_000_000, tokens in prop::option::of(0u64..2_000_000),
        ) {
            let prices = Prices::built_in();
            let mut names: Vec<_> = prices.models_of("openai").map(str::to_owned).collect();
            names.sort();
            let price = prices.find("openai", &names[row % names.len()], TODAY).expect("priced");
            let remaining = Remaining { nano_usd: Some(NanoUsd::from_nanos(nanos)), tokens };
            if let Some(fitted) = quote(price, CacheWrites::Any, input, wanted).fit(remaining) {
                prop_assert!(fitted.nano_usd.nanos() <= nanos);
                prop_assert!(tokens.is_none_or(|tokens| fitted.tokens <= tokens));
                prop_assert!(fitted.max_output_tokens >= wanted.min(OUTPUT_FLOOR).min(price.max_output_tokens().unwrap_or(u64::MAX)));
                prop_assert!(fitted.max_output_tokens <= wanted);
            }
        }
    }
}
