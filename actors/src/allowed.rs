//! Which models a team may use.

use std::collections::BTreeMap;
use std::sync::Arc;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Most patterns of one team.
pub const MAX_PATTERNS: usize = 200;

/// The operator's lists of models, by team. A team without a list may use every model that has a price.
#[derive(Debug, Clone, Default)]
pub struct AllowedModels {
    teams: Arc<BTreeMap<String, GlobSet>>,
}

/// A list that does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowedModelsError {
    /// Not a pattern.
    #[error("teams.{team}.models: {pattern:?} is not a pattern such as \"claude-*\" or \"openai/gpt-5\": {why}")]
    Pattern {
        /// Whose.
        team: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// Over [`MAX_PATTERNS`].
    #[error("teams.{team}.models has more than {MAX_PATTERNS} patterns")]
    TooMany {
        /// Whose.
        team: String,
    },
}

impl AllowedModels {
    /// Reads the lists. A pattern with a slash speaks of `provider/model`, one without of the model at any provider.
    pub fn new<'a>(teams: impl IntoIterator<Item = (&'a String, &'a Vec<String>)>) -> Result<Self, AllowedModelsError> {
        let mut read = BTreeMap::new();
        for (team, patterns) in teams {
            if patterns.len() > MAX_PATTERNS {
                return Err(AllowedModelsError::TooMany { team: team.clone() });
            }
            let wrong = |pattern: &str, why: globset::Error| AllowedModelsError::Pattern {
                team: team.clone(),
                pattern: pattern.to_owned(),
                why: why.kind().to_string(),
            };
            let mut set = GlobSetBuilder::new();
            for pattern in patterns {
                let whole = if pattern.contains('/') { pattern.clone() } else { format!("*/{pattern}") };
                // Names of models have slashes of their own at some providers; the first one ends the provider's.
                let glob = GlobBuilder::new(&whole).literal_separator(false).build();
                set.add(glob.map_err(|why| wrong(pattern, why))?);
            }
            read.insert(team.clone(), set.build().map_err(|why| wrong("", why))?);
        }
        Ok(Self { teams: Arc::new(read) })
    }

    /// Whether the team may use this model, named `provider/model`.
    pub fn allows(&self, team: &str, model: &str) -> bool {
        self.teams.get(team).is_none_or(|patterns| patterns.is_match(model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_for_its_own_team_and_names_models_with_or_without_their_provider() {
        let list = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>();
        let teams =
            BTreeMap::from([("web".to_owned(), list(&["claude-*", "openai/gpt-5"])), ("none".to_owned(), list(&[]))]);
        let allowed = AllowedModels::new(&teams).expect("patterns");
        for (team, model, expected) in [
            ("web", "anthropic/claude-sonnet-4-6", true),
            ("web", "proxy/claude-sonnet-4-6", true),
            ("web", "openai/gpt-5", true),
            ("web", "openai/gpt-5-mini", false),
            ("web", "azure/gpt-5", false),
            ("none", "openai/gpt-5", false),
            ("other", "openai/gpt-5", true),
        ] {
            assert_eq!(allowed.allows(team, model), expected, "{team} {model}");
        }
        let teams = BTreeMap::from([("web".to_owned(), list(&["[a"]))]);
        assert!(matches!(AllowedModels::new(&teams), Err(AllowedModelsError::Pattern { .. })));
    }
}
