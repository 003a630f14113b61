//! An operator's file of prices: rows by provider, with the unit and a version written into it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::pricing::PriceRow;

/// Why an operator's file of prices cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PriceFileError {
    /// Not JSON, or not of the form that is expected. The sentence says where.
    #[error(
        "the file of prices is not understood ({0}); it reads {{\"version\": \"2026-12\", \"unit\": \"pico-dollars per \
         token\", \"providers\": {{\"anthropic\": [{{\"model\": \"…\", \"input\": 3000000, \"output\": 15000000}}]}}}}"
    )]
    Form(#[from] serde_json::Error),
    /// The unit is part of the file so that nobody has to guess it.
    #[error("the prices are in {0:?}; convert them to \"pico-dollars per token\" (micro-dollars per million tokens)")]
    Unit(String),
    /// The version becomes part of every charge.
    #[error("the file's version {0:?} is not 1 to 40 letters, digits, dots, dashes and underscores; correct it")]
    Version(String),
    /// Two rows of one model hold from the same day.
    #[error("{provider}/{model} has two rows that hold from {from}; remove one, or give it another day")]
    Twice {
        /// The provider.
        provider: String,
        /// The model.
        model: String,
        /// The day, or `always`.
        from: String,
    },
}

/// The unit of every price that is not per use of a tool.
const UNIT: &str = "pico-dollars per token";

/// Reads an operator's file of prices: rows by provider, to be put before those of the configuration.
pub fn read_operator(json: &str) -> Result<BTreeMap<String, Vec<PriceRow>>, PriceFileError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        version: String,
        unit: String,
        providers: BTreeMap<String, Vec<PriceRow>>,
    }
    let mut file: File = serde_json::from_str(json)?;
    if file.unit != UNIT {
        return Err(PriceFileError::Unit(file.unit));
    }
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if file.version.is_empty() || file.version.len() > 40 || !file.version.chars().all(letters) {
        return Err(PriceFileError::Version(file.version));
    }
    let version: Arc<str> = file.version.into();
    for (provider, rows) in &mut file.providers {
        let mut seen = std::collections::HashSet::new();
        for row in rows {
            if !seen.insert((row.model.clone(), row.effective)) {
                return Err(PriceFileError::Twice {
                    provider: provider.clone(),
                    model: row.model.clone(),
                    from: row.effective.map_or_else(|| "always".into(), |day| day.to_string()),
                });
            }
            row.version = Some(Arc::clone(&version));
        }
    }
    Ok(file.providers)
}

#[cfg(test)]
mod tests {
    use super::super::pricing::Prices;
    use super::*;

    const TODAY: jiff::civil::Date = jiff::civil::date(2026, 12, 24);

    #[test]
    fn an_operators_file_is_read_or_says_what_is_wrong_with_it() {
        let file =
            |rest: &str| format!(r#"{{"version": "v7", "unit": "pico-dollars per token", "providers": {rest}}}"#);
        let rows = read_operator(&file(r#"{"p": [{"model": "m", "input": 1, "output": 2}]}"#)).expect("read");
        let mut prices = Prices::default();
        prices.set("p", &rows["p"][0]);
        assert_eq!(prices.find("p", "m", TODAY).expect("priced").id(), "operator-v7/p/m");
        for (json, expected) in [
            (file(r#"{"p": [{"model": "m", "input": 1.5, "output": 2}]}"#), "line 1 column"),
            (file(r#"{"p": [{"model": "m", "inptu": 1, "output": 2}]}"#), "inptu"),
            (
                file(r#"{"p": [{"model": "m", "input": 1, "output": 2}, {"model": "m", "input": 1, "output": 3}]}"#),
                "p/m has two rows that hold from always",
            ),
            (file("{}").replace("pico", "nano"), "convert them"),
            (file("{}").replace("v7", "a/b"), "correct it"),
            ("[".into(), "it reads {\"version\""),
        ] {
            let error = read_operator(&json).expect_err(&json).to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
