//! The most a model call can cost, as a straight line over its output limit, and the longest output that still fits.

use crate::money::NanoUsd;

/// Pico-dollars in a nano-dollar.
const PICOS_PER_NANO: u128 = 1_000;

/// The price of a call that has not been made: what its input can cost at most, and each token of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    /// The most tokens the request can be read as.
    pub input_tokens: u64,
    /// What reading them can cost at most, the calls of the provider's own tools included, in pico-dollars.
    pub input_picos: u128,
    /// What one token of output can cost at most, in pico-dollars.
    pub output_picos: u64,
    /// How many replies are written at once (`n`); each may be as long as the output limit.
    pub replies: u64,
    /// The output limit that the caller wants.
    pub wanted_output: u64,
    /// The least output limit with which the call is worth its input.
    pub least_output: u64,
}

/// What is left to spend. Absent means no limit of that kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Money.
    pub nano_usd: Option<NanoUsd>,
    /// Input and output tokens together.
    pub tokens: Option<u64>,
}

impl Remaining {
    /// The tighter of two limits, each kind for itself.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        }
        Self { nano_usd: least(self.nano_usd, other.nano_usd), tokens: least(self.tokens, other.tokens) }
    }
}

/// A call that fits: what to ask for, and the most it can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fitted {
    /// The output limit to send along.
    pub max_output_tokens: u64,
    /// The most it can cost.
    pub nano_usd: NanoUsd,
    /// The most tokens it can use.
    pub tokens: u64,
}

impl Quote {
    /// The most the call can cost with this output limit, rounded up to the nano-dollar.
    pub fn cost(&self, output: u64) -> NanoUsd {
        let written = u128::from(output).saturating_mul(u128::from(self.replies));
        let picos = self.input_picos.saturating_add(written.saturating_mul(u128::from(self.output_picos)));
        NanoUsd::from_nanos(i64::try_from(picos.div_ceil(PICOS_PER_NANO)).unwrap_or(i64::MAX))
    }

    /// The most tokens the call can use with this output limit.
    pub fn tokens(&self, output: u64) -> u64 {
        self.input_tokens.saturating_add(output.saturating_mul(self.replies))
    }

    /// Lowers the output limit until the call fits into what is left. `None`: it does not, even at the least output
    /// (or at the wanted one, when that is less).
    pub fn fit(&self, remaining: Remaining) -> Option<Fitted> {
        let replies = self.replies.max(1);
        let mut output = self.wanted_output;
        if let Some(tokens) = remaining.tokens {
            output = output.min(tokens.checked_sub(self.input_tokens)? / replies);
        }
        if let Some(left) = remaining.nano_usd {
            let left = u128::try_from(left.nanos()).ok()? * PICOS_PER_NANO;
            let left = left.checked_sub(self.input_picos)?;
            let each = u128::from(self.output_picos) * u128::from(replies);
            // Output that costs nothing is not limited by money.
            if let Some(affordable) = left.checked_div(each) {
                output = output.min(u64::try_from(affordable).unwrap_or(u64::MAX));
            }
        }
        // A request for no output at all is not one.
        if output < self.wanted_output.min(self.least_output) || output == 0 {
            return None;
        }
        Some(Fitted { max_output_tokens: output, nano_usd: self.cost(output), tokens: self.tokens(output) })
    }
}
