//! Whose money it is: a team, a project, an environment or a type of task, and the path that a call takes through them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{CampaignId, TaskId};

/// Longest name of a team, project, environment or task type, in bytes.
pub const MAX_NAME: usize = 64;

/// What a budget can be set for, as it is written: `team:platform`, `project:platform/infra`,
/// `environment:platform/infra/prod`, `task-type:platform/dependency-upgrade`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everything a team does.
    Team {
        /// The team.
        team: String,
    },
    /// One of its projects.
    Project {
        /// The team.
        team: String,
        /// The project.
        project: String,
    },
    /// One environment of a project.
    Environment {
        /// The team.
        team: String,
        /// The project.
        project: String,
        /// The environment.
        environment: String,
    },
    /// One type of task, in all projects.
    TaskType {
        /// The team.
        team: String,
        /// The type of task.
        task_type: String,
    },
}

/// The kinds of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// A team.
    Team,
    /// A project.
    Project,
    /// An environment.
    Environment,
    /// A type of task.
    TaskType,
}

impl Tier {
    /// How many kinds there are.
    pub const COUNT: usize = 4;

    /// The word before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Team => "team",
            Self::Project => "project",
            Self::Environment => "environment",
            Self::TaskType => "task-type",
        }
    }
}

/// Why a text names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseScopeError {
    /// The word before the colon, or the number of names after it.
    #[error(
        "{0:?} is not a scope: expected team:TEAM, project:TEAM/PROJECT, environment:TEAM/PROJECT/ENVIRONMENT or \
         task-type:TEAM/TYPE"
    )]
    Shape(String),
    /// A name that nothing can have.
    #[error(
        "{0:?} is not a name: expected 1 to {MAX_NAME} letters, digits, '.', '_' and '-', starting with a letter or a \
         digit"
    )]
    Name(String),
}

/// Most characters of a wrong text that an error repeats.
const MAX_QUOTED: usize = 80;

fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

fn name(text: &str) -> Result<String, ParseScopeError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fits = (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(inner)
        && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if fits { Ok(text.to_owned()) } else { Err(ParseScopeError::Name(quoted(text))) }
}

impl Scope {
    /// The team whose ledger counts it.
    pub fn team(&self) -> &str {
        match self {
            Self::Team { team }
            | Self::Project { team, .. }
            | Self::Environment { team, .. }
            | Self::TaskType { team, .. } => team,
        }
    }

    /// Its kind.
    pub const fn tier(&self) -> Tier {
        match self {
            Self::Team { .. } => Tier::Team,
            Self::Project { .. } => Tier::Project,
            Self::Environment { .. } => Tier::Environment,
            Self::TaskType { .. } => Tier::TaskType,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.tier().as_str(), self.team())?;
        match self {
            Self::Team { .. } => Ok(()),
            Self::Project { project, .. } => write!(f, "/{project}"),
            Self::Environment { project, environment, .. } => write!(f, "/{project}/{environment}"),
            Self::TaskType { task_type, .. } => write!(f, "/{task_type}"),
        }
    }
}

impl FromStr for Scope {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, ParseScopeError> {
        let shape = || ParseScopeError::Shape(quoted(text));
        let (kind, names) = text.split_once(':').ok_or_else(shape)?;
        // One more than any scope has, so that a name too many is seen.
        let names: Vec<&str> = names.splitn(4, '/').collect();
        match (kind, names.as_slice()) {
            ("team", [team]) => Ok(Self::Team { team: name(team)? }),
            ("project", [team, project]) => Ok(Self::Project { team: name(team)?, project: name(project)? }),
            ("environment", [team, project, environment]) => {
                Ok(Self::Environment { team: name(team)?, project: name(project)?, environment: name(environment)? })
            }
            ("task-type", [team, task_type]) => Ok(Self::TaskType { team: name(team)?, task_type: name(task_type)? }),
            _ => Err(shape()),
        }
    }
}

/// Whose cap it is: a scope's, or the task's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// A scope's.
    Scope(Scope),
    /// The task's own, as its caller asked for it: `task:task_01k…`.
    Task(TaskId),
    /// The one that all tasks of a campaign share: `campaign:campaign_01k…`.
    Campaign(CampaignId),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scope(scope) => scope.fmt(f),
            Self::Task(task) => write!(f, "task:{task}"),
            Self::Campaign(campaign) => write!(f, "campaign:{campaign}"),
        }
    }
}

impl FromStr for Holder {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, ParseScopeError> {
        let shape = |_| ParseScopeError::Shape(quoted(text));
        match text.split_once(':') {
            Some(("task", task)) => task.parse().map(Self::Task).map_err(shape),
            Some(("campaign", campaign)) => campaign.parse().map(Self::Campaign).map_err(shape),
            Some(_) | None => text.parse().map(Self::Scope),
        }
    }
}

macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(Scope Holder);

/// Where a task stands in its team: every scope on it counts what the task spends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// The team.
    pub team: String,
    /// The project within the team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The environment within the project; without a project it is no scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The type of task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_type: Option<String>,
}

impl Path {
    /// The team alone.
    pub fn team(team: impl Into<String>) -> Self {
        Self { team: team.into(), project: None, environment: None, task_type: None }
    }

    /// The scopes on it, the team first.
    pub fn scopes(&self) -> impl Iterator<Item = Scope> + '_ {
        let team = || self.team.clone();
        let project = self.project.as_ref().map(|project| Scope::Project { team: team(), project: project.clone() });
        let environment = self.project.as_ref().zip(self.environment.as_ref()).map(|(project, environment)| {
            Scope::Environment { team: team(), project: project.clone(), environment: environment.clone() }
        });
        let task_type =
            self.task_type.as_ref().map(|task_type| Scope::TaskType { team: team(), task_type: task_type.clone() });
        [Some(Scope::Team { team: team() }), project, environment, task_type].into_iter().flatten()
    }
}

impl From<&crate::task::TaskSpec> for Path {
    fn from(spec: &crate::task::TaskSpec) -> Self {
        Self {
            team: spec.team.clone(),
            project: spec.project.clone(),
            environment: spec.environment.clone(),
            task_type: spec.task_type.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::StreamName;

    #[test]
    fn scopes_round_trip() {
        for text in [
            "team:platform",
            "project:platform/infra",
            "environment:platform/infra/prod",
            "task-type:platform/dependency-upgrade",
        ] {
            let scope: Scope = text.parse().expect(text);
            assert_eq!(scope.to_string(), text);
            assert_eq!(scope.team(), "platform");
            assert_eq!(serde_json::to_string(&scope).unwrap(), format!("{text:?}"));
            assert_eq!(text.parse(), Ok(Holder::Scope(scope)));
        }
        let task = Holder::Task(TaskId::from_uuid(uuid::Uuid::from_u128(7)));
        assert_eq!(task.to_string().parse(), Ok(task));
        let campaign = Holder::Campaign(CampaignId::from_uuid(uuid::Uuid::from_u128(7)));
        assert_eq!(campaign.to_string(), "campaign:campaign_00000000000000000000000007");
        assert_eq!(campaign.to_string().parse(), Ok(campaign));
        assert!("campaign:task_00000000000000000000000007".parse::<Holder>().is_err());
    }

    #[test]
    fn what_is_no_scope_is_told_what_one_looks_like() {
        for wrong in ["", "team", "team:a/b", "project:a", "environment:a/b", "environment:a/b/c/d", "Team:a"] {
            let refused = wrong.parse::<Scope>().expect_err(wrong).to_string();
            assert!(refused.contains("expected team:TEAM"), "{refused}");
        }
        for wrong in ["team:", "team:-a", "project:a/", "task-type:a/b c", "team:\u{e9}", "project:a/b\n"] {
            let refused = wrong.parse::<Scope>().expect_err(wrong).to_string();
            assert!(refused.contains("is not a name"), "{refused}");
        }
        assert!(format!("team:{}", "x".repeat(MAX_NAME + 1)).parse::<Scope>().is_err());
    }

    #[test]
    fn every_team_that_can_be_named_has_a_stream() {
        for team in ["a".to_owned(), "0.x_y-z".to_owned(), "Z".repeat(MAX_NAME)] {
            let scope: Scope = format!("team:{team}").parse().expect("a team");
            let stream = StreamName::ledger(scope.team()).expect("a stream");
            assert_eq!(stream.as_str(), format!("ledger-{team}"));
            assert_eq!(stream.ledger_team(), Some(team.as_str()));
        }
        for bad in ["", "a b", "a\n", &"x".repeat(300)] {
            assert!(StreamName::ledger(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_environment_needs_its_project() {
        let mut path =
            Path { environment: Some("prod".into()), task_type: Some("upgrade".into()), ..Path::team("platform") };
        let texts = |path: &Path| path.scopes().map(|scope| scope.to_string()).collect::<Vec<_>>();
        assert_eq!(texts(&path), ["team:platform", "task-type:platform/upgrade"]);
        path.project = Some("infra".into());
        assert_eq!(
            texts(&path),
            [
                "team:platform",
                "project:platform/infra",
                "environment:platform/infra/prod",
                "task-type:platform/upgrade"
            ]
        );
    }
}
