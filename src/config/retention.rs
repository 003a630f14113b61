//! `retention` and `teams.NAME.retention`: how long words are kept after what they belong to has ended.

use std::collections::BTreeMap;

use orchestra_actors::Retention;
use serde::{Deserialize, Serialize};

use super::TeamSection;

/// The longest that may be asked for, in days; whoever wants more wants for ever.
const MAX_DAYS: u32 = 36_500;

/// `retention`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionSection {
    /// Days after which the words of a task or campaign that has ended are erased; 0 keeps them for ever.
    pub content_days: u32,
}

/// `teams.NAME.retention`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeamRetention {
    /// The same for the team, in place of the common number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_days: Option<u32>,
}

impl TeamRetention {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.content_days.is_none()
    }
}

/// The rules of both.
pub(super) fn rules(section: &RetentionSection, teams: &BTreeMap<String, TeamSection>) -> anyhow::Result<Retention> {
    let days = |key: &str, days: u32| {
        anyhow::ensure!(days <= MAX_DAYS, "{key} is {days}; it is at most {MAX_DAYS}, and 0 keeps words for ever");
        Ok((days > 0).then_some(days))
    };
    let mut own = BTreeMap::new();
    for (team, section) in teams {
        if let Some(number) = section.retention.content_days {
            own.insert(team.clone(), days(&format!("teams.{team}.retention.content_days"), number)?);
        }
    }
    Ok(Retention { days: days("retention.content_days", section.content_days)?, teams: own })
}
