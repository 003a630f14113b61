//! `limits`, what teams say about them, and `trusted_proxies`: how much callers may ask, and how it is known where they are.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use ipnet::IpNet;
use orchestra_actors::admission::TaskLimits;
use orchestra_web::auth::{KeyRing, Proxies, Rate, Rates};
use serde::{Deserialize, Serialize};

use super::{Config, TeamSection};

/// Most networks of proxies.
const MAX_PROXIES: usize = 100;

/// `limits`. In each, 0 stands for no limit.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsSection {
    /// Requests of one key in a minute, where the key has no limit of its own. As many may come at once.
    pub requests_per_minute: u32,
    /// Requests of all keys of a team together.
    pub team_requests_per_minute: u32,
    /// Requests with wrong keys from one address.
    pub failures_per_minute: u32,
    /// Tasks of one key that are not over, where the key has no limit of its own.
    pub concurrent_tasks: u32,
    /// Tasks of one team that are not over.
    pub team_concurrent_tasks: u32,
}

/// `teams.NAME.limits`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeamLimits {
    /// In place of `limits.team_requests_per_minute`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// In place of `limits.team_concurrent_tasks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_tasks: Option<u32>,
}

impl TeamLimits {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.requests_per_minute.is_none() && self.concurrent_tasks.is_none()
    }
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            // Ten thousand a second: only a program that has lost its way meets it.
            requests_per_minute: 600_000,
            team_requests_per_minute: 0,
            failures_per_minute: 600,
            concurrent_tasks: 0,
            team_concurrent_tasks: 0,
        }
    }
}

/// How many tasks may be open at once: as keys say themselves, else as the configuration does.
pub struct OpenTasks {
    keys: Arc<KeyRing>,
    caller: Option<u32>,
    team: Option<u32>,
    teams: HashMap<String, Option<u32>>,
}

impl TaskLimits for OpenTasks {
    fn of_caller(&self, id: &str) -> Option<u32> {
        let key = id.parse().ok().and_then(|id| self.keys.find(id));
        key.and_then(|key| key.key.grant.limits.concurrent_tasks).or(self.caller)
    }

    fn of_team(&self, team: &str) -> Option<u32> {
        self.teams.get(team).copied().unwrap_or(self.team)
    }
}

impl Config {
    /// Whose word about where a request came from is believed.
    pub fn proxies(&self) -> anyhow::Result<Proxies> {
        anyhow::ensure!(self.trusted_proxies.len() <= MAX_PROXIES, "at most {MAX_PROXIES} networks in trusted_proxies");
        let network = |text: &String| {
            let host = || text.parse::<std::net::IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(|_| host()).with_context(|| {
                format!("in trusted_proxies: {text:?} is no network; expected one such as \"10.0.0.0/8\"")
            })
        };
        Ok(Proxies::new(self.trusted_proxies.iter().map(network).collect::<Result<_, _>>()?))
    }

    /// How many tasks may be open at once, where keys do not say so themselves.
    pub fn open_tasks(&self, keys: Arc<KeyRing>) -> OpenTasks {
        let limit = |most: u32| Some(most).filter(|most| *most > 0);
        let own =
            |(team, section): (&String, &TeamSection)| Some((team.clone(), limit(section.limits.concurrent_tasks?)));
        OpenTasks {
            keys,
            caller: limit(self.limits.concurrent_tasks),
            team: limit(self.limits.team_concurrent_tasks),
            teams: self.teams.iter().filter_map(own).collect(),
        }
    }

    /// How often callers may ask.
    pub fn rates(&self) -> Rates {
        let LimitsSection { requests_per_minute, team_requests_per_minute, failures_per_minute, .. } = self.limits;
        let own = |(team, section): (&String, &TeamSection)| {
            Some((team.clone(), Rate::new(section.limits.requests_per_minute?, None)))
        };
        Rates {
            caller: Rate::new(requests_per_minute, None),
            team: Rate::new(team_requests_per_minute, None),
            teams: self.teams.iter().filter_map(own).collect(),
            failures: Rate::new(failures_per_minute, None),
            concurrent_tasks: Some(self.limits.concurrent_tasks).filter(|most| *most > 0),
        }
    }
}
