//! Money as whole nano-dollars: no float ever enters a sum.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};

use serde::{Deserialize, Serialize};

/// An amount in nano-dollars (1 USD = 1,000,000,000). Inside it is an integer; outside it is a decimal number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NanoUsd(i64);

const NANOS_PER_USD: i64 = 1_000_000_000;

impl NanoUsd {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// About 9.2 billion dollars.
    pub const MAX: Self = Self(i64::MAX);

    /// From whole nano-dollars.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Whole nano-dollars.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Parses a JSON decimal (`2`, `2.00`, `0.000000001`). Refuses signs, exponents and more than nine places.
    pub fn parse_decimal(text: &str) -> Result<Self, ParseMoneyError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || (text.contains('.') && fraction.is_empty()) {
            return Err(ParseMoneyError::NotADecimal);
        }
        if fraction.len() > 9 {
            return Err(ParseMoneyError::TooManyPlaces);
        }
        let whole: i64 = whole.parse().map_err(|_| ParseMoneyError::TooLarge)?;
        let fraction: i64 = format!("{fraction:0<9}").parse().map_err(|_| ParseMoneyError::NotADecimal)?;
        whole
            .checked_mul(NANOS_PER_USD)
            .and_then(|nanos| nanos.checked_add(fraction))
            .map(Self)
            .ok_or(ParseMoneyError::TooLarge)
    }

    /// The amount that is left, or nothing when `other` is larger.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0).max(0))
    }

    /// The decimal as a JSON number, exact to the nano-dollar.
    pub fn to_json(self) -> Box<serde_json::value::RawValue> {
        serde_json::value::RawValue::from_string(self.to_string())
            .unwrap_or_else(|_| unreachable!("digits with one decimal point are a JSON number"))
    }
}

impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let nanos = self.0.unsigned_abs();
        let (whole, fraction) = (nanos / NANOS_PER_USD as u64, nanos % NANOS_PER_USD as u64);
        let fraction = format!("{fraction:09}");
        let trimmed = fraction.trim_end_matches('0');
        write!(f, "{sign}{whole}.{}", if trimmed.is_empty() { "0" } else { trimmed })
    }
}

impl Add for NanoUsd {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for NanoUsd {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl AddAssign for NanoUsd {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for NanoUsd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

/// Why a text is not an amount of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseMoneyError {
    /// Signs, exponents, words.
    #[error("expected a decimal number such as 2 or 2.50")]
    NotADecimal,
    /// Finer than a nano-dollar.
    #[error("at most nine decimal places")]
    TooManyPlaces,
    /// Above 9.2 billion dollars.
    #[error("too large")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_round_trip_exactly() {
        for (text, nanos) in
            [("2", 2_000_000_000), ("2.00", 2_000_000_000), ("0.1", 100_000_000), ("0.000000001", 1), ("0", 0)]
        {
            assert_eq!(NanoUsd::parse_decimal(text), Ok(NanoUsd(nanos)), "{text}");
        }
        assert_eq!(NanoUsd(1).to_string(), "0.000000001");
        assert_eq!(NanoUsd(2_500_000_000).to_string(), "2.5");
        assert_eq!(NanoUsd(-1_000_000_000).to_string(), "-1.0");
    }

    #[test]
    fn what_is_not_money_is_refused() {
        for wrong in ["", "-1", "+1", "1e3", ".5", "1.", "1.0000000001", "99999999999", "NaN", "1,5"] {
            assert!(NanoUsd::parse_decimal(wrong).is_err(), "{wrong}");
        }
    }
}
