//! What a key is good for within its team: which projects, repositories and models, and from which networks.
//!
//! Every list that is empty bounds nothing. A pattern is a text in which `*` stands for any characters, none included;
//! capitals count, so a name in other capitals is refused rather than let through.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::repo::RepoRef;
use crate::task::TaskSpec;

/// Most entries of one list.
pub const MAX_ENTRIES: usize = 64;
/// Longest pattern, in bytes: as long as the longest repository.
pub const MAX_PATTERN: usize = 400;

/// A text in which `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// A text that is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pattern has 1 to {MAX_PATTERN} printable ASCII characters; `*` stands for any")]
pub struct PatternError;

impl Pattern {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole of `text` is of this pattern.
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut at, mut here) = (0, 0);
        // Where the last `*` stood, and up to where it has taken the text: what is tried anew when the rest does not fit.
        let mut star: Option<(usize, usize)> = None;
        while here < text.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, here));
                    at += 1;
                }
                Some(letter) if *letter == text[here] => {
                    at += 1;
                    here += 1;
                }
                _ => {
                    let Some((place, taken)) = star else { return false };
                    star = Some((place, taken + 1));
                    at = place + 1;
                    here = taken + 1;
                }
            }
        }
        pattern[at..].iter().all(|letter| *letter == b'*')
    }

    /// Whether everything that `other` matches is matched by this one too.
    ///
    /// `*` stands in no name, and in a pattern only a `*` matches it. So the other's text, taken as a name, is matched
    /// exactly if each of its `*` falls to one of ours, whatever it stands for.
    pub fn covers(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        let fits = (1..=MAX_PATTERN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Self(text)) } else { Err(PatternError) }
    }
}

impl std::str::FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        text.to_owned().try_into()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

/// What a key is good for. An empty list bounds nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bounds {
    /// The projects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub projects: Vec<String>,
    /// The environments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environments: Vec<String>,
    /// The kinds of work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_types: Vec<String>,
    /// The repositories, as patterns of `forge:owner/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repos: Vec<Pattern>,
    /// The models, as patterns of the names that callers give.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Pattern>,
    /// The networks that it may be used from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<IpNet>,
}

/// What a task has that a key is not good for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// Its project, or that it has none.
    #[error("the key is bound to the projects {allowed}")]
    Project {
        /// Those that would do.
        allowed: String,
    },
    /// Its environment, or that it has none.
    #[error("the key is bound to the environments {allowed}")]
    Environment {
        /// Those that would do.
        allowed: String,
    },
    /// Its task type, or that it has none.
    #[error("the key is bound to the task types {allowed}")]
    TaskType {
        /// Those that would do.
        allowed: String,
    },
    /// One of its repositories.
    #[error("the key is not for {repo}; it is bound to the repositories {allowed}")]
    Repo {
        /// Which.
        repo: RepoRef,
        /// Those that would do.
        allowed: String,
    },
    /// Its model.
    #[error("the key is bound to the models {allowed}")]
    Model {
        /// Those that would do.
        allowed: String,
    },
}

impl Breach {
    /// The field of a request that it is about (RFC 6901).
    pub const fn pointer(&self) -> &'static str {
        match self {
            Self::Project { .. } => "/project",
            Self::Environment { .. } => "/environment",
            Self::TaskType { .. } => "/taskType",
            Self::Repo { .. } => "/repo",
            Self::Model { .. } => "/model",
        }
    }
}

/// How many of a list a message names.
const NAMED: usize = 8;

fn listed<T: fmt::Display>(allowed: &[T]) -> String {
    let mut names: Vec<_> = allowed.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    if allowed.len() > NAMED {
        names.push("others".to_owned());
    }
    names.join(", ")
}

fn named(allowed: &[String], name: Option<&str>) -> bool {
    allowed.is_empty() || name.is_some_and(|name| allowed.iter().any(|allowed| allowed == name))
}

fn matched(allowed: &[Pattern], text: &str) -> bool {
    allowed.is_empty() || allowed.iter().any(|pattern| pattern.matches(text))
}

/// Whether every entry lies within one of the other's, and there is one if the other has any.
fn inside<T>(own: &[T], other: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    other.is_empty() || (!own.is_empty() && own.iter().all(|own| other.iter().any(|other| covers(other, own))))
}

impl Bounds {
    /// Whether nothing is bounded.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a thing of this project is within them; a thing of no project is not, once there are projects.
    pub fn admits_project(&self, project: Option<&str>) -> bool {
        named(&self.projects, project)
    }

    /// Whether a thing of this environment is within them.
    pub fn admits_environment(&self, environment: Option<&str>) -> bool {
        named(&self.environments, environment)
    }

    /// Whether work of this kind is within them.
    pub fn admits_task_type(&self, task_type: Option<&str>) -> bool {
        named(&self.task_types, task_type)
    }

    /// Whether this repository is within them.
    pub fn admits_repo(&self, repo: &RepoRef) -> bool {
        matched(&self.repos, &repo.to_string())
    }

    /// Whether this model is within them, by the name that the caller gives it.
    pub fn admits_model(&self, model: &str) -> bool {
        matched(&self.models, model)
    }

    /// Whether the key may be used from there. Where the address is not known, a key with networks is not.
    pub fn admits_address(&self, address: Option<IpAddr>) -> bool {
        // An IPv4 caller of a socket for both looks like `::ffff:10.0.0.1`.
        let address = address.map(|address| address.to_canonical());
        self.networks.is_empty()
            || address.is_some_and(|address| self.networks.iter().any(|network| network.contains(&address)))
    }

    /// Whether such a task is within them, all of its repositories included.
    ///
    /// # Errors
    /// With the first thing that is not.
    pub fn admits(&self, spec: &TaskSpec) -> Result<(), Breach> {
        if !self.admits_project(spec.project.as_deref()) {
            return Err(Breach::Project { allowed: listed(&self.projects) });
        }
        if !self.admits_environment(spec.environment.as_deref()) {
            return Err(Breach::Environment { allowed: listed(&self.environments) });
        }
        if !self.admits_task_type(spec.task_type.as_deref()) {
            return Err(Breach::TaskType { allowed: listed(&self.task_types) });
        }
        let repos = std::iter::once(&spec.repo).chain(spec.further.iter().map(|further| &further.repo));
        for repo in repos {
            if !self.admits_repo(repo) {
                return Err(self.not_for(repo));
            }
        }
        if !self.admits_model(&spec.model) {
            return Err(Breach::Model { allowed: listed(&self.models) });
        }
        Ok(())
    }

    /// What is said of a repository that is not within them.
    pub fn not_for(&self, repo: &RepoRef) -> Breach {
        Breach::Repo { repo: repo.clone(), allowed: listed(&self.repos) }
    }

    /// Whether they admit nothing that `other` does not: what one who is bound by `other` may hand on.
    pub fn within(&self, other: &Self) -> bool {
        self.things_within(other) && inside(&self.networks, &other.networks, |other, own| other.contains(own))
    }

    /// The same of the things that they admit, from wherever.
    pub fn things_within(&self, other: &Self) -> bool {
        inside(&self.projects, &other.projects, String::eq)
            && inside(&self.environments, &other.environments, String::eq)
            && inside(&self.task_types, &other.task_types, String::eq)
            && inside(&self.repos, &other.repos, Pattern::covers)
            && inside(&self.models, &other.models, Pattern::covers)
    }

    /// The same, with the other's lists in place of those that are empty.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        fn part<T: Clone>(own: Vec<T>, other: &[T]) -> Vec<T> {
            if own.is_empty() { other.to_vec() } else { own }
        }
        Self {
            projects: part(self.projects, &other.projects),
            environments: part(self.environments, &other.environments),
            task_types: part(self.task_types, &other.task_types),
            repos: part(self.repos, &other.repos),
            models: part(self.models, &other.models),
            networks: part(self.networks, &other.networks),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().expect("a pattern")
    }

    #[test]
    fn a_star_stands_for_any_characters_and_nothing_else_does() {
        for (text, name, fits) in [
            ("github:acme/*", "github:acme/api", true),
            ("github:acme/*", "github:acme/", true),
            ("github:acme/*", "github:acme-evil/api", false),
            ("github:acme/*", "xgithub:acme/api", false),
            ("*", "anything", true),
            ("*:acme/*-api", "gitlab:acme/sub/big-api", true),
            ("*:acme/*-api", "gitlab:acme/api", false),
            ("claude-*", "claude-sonnet-4-6", true),
            ("claude-*", "Claude-sonnet", false),
            ("a*b*c", "abbbcc", true),
            ("a*b*c", "abbbcd", false),
            ("a", "", false),
            ("github:acme/api", "github:acme/apix", false),
            ("github:a.c/api", "github:abc/api", false),
        ] {
            assert_eq!(pattern(text).matches(name), fits, "{text} {name}");
        }
        for wrong in ["", "a b", "ä", "a\n", &"x".repeat(MAX_PATTERN + 1)] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        /// What the wider pattern covers, it covers in every name that the narrower one matches.
        #[test]
        fn what_is_covered_is_matched(wide in "[ab*]{1,6}", narrow in "[ab*]{1,6}", fill in proptest::collection::vec("[abc]{0,3}", 6)) {
            let (wide, narrow) = (pattern(&wide), pattern(&narrow));
            let mut fill = fill.into_iter();
            let name: String = narrow.as_str().chars().map(|letter| match letter {
                '*' => fill.next().unwrap_or_default(),
                letter => letter.to_string(),
            }).collect();
            prop_assert!(narrow.matches(&name));
            if wide.covers(&narrow) {
                prop_assert!(wide.matches(&name), "{wide} {narrow} {name}");
            }
            // And nothing less does: with a letter that stands in neither, matching is covering.
            let odd: String = narrow.as_str().replace('*', "z");
            prop_assert_eq!(wide.matches(&odd), wide.covers(&narrow), "{} {}", wide, narrow);
        }
    }

    #[test]
    fn addresses_are_looked_at_in_one_form() {
        let bounds = Bounds { networks: vec!["10.0.0.0/8".parse().unwrap()], ..Bounds::default() };
        assert!(bounds.admits_address(Some("10.1.2.3".parse().unwrap())));
        assert!(bounds.admits_address(Some("::ffff:10.1.2.3".parse().unwrap())));
        assert!(!bounds.admits_address(Some("11.1.2.3".parse().unwrap())));
        assert!(!bounds.admits_address(Some("::1".parse().unwrap())));
        assert!(!bounds.admits_address(None), "an unknown place is not one of them");
        assert!(Bounds::default().admits_address(None));
    }

    #[test]
    fn nobody_hands_on_more_than_they_have() {
        let own = Bounds {
            projects: vec!["infra".into(), "web".into()],
            repos: vec![pattern("github:acme/*")],
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            ..Bounds::default()
        };
        let narrower = Bounds {
            projects: vec!["web".into()],
            repos: vec![pattern("github:acme/api"), pattern("github:acme/web-*")],
            networks: vec!["10.1.0.0/16".parse().unwrap()],
            models: vec![pattern("claude-*")],
            ..Bounds::default()
        };
        assert!(narrower.within(&own) && own.within(&own) && own.within(&Bounds::default()));
        assert!(!own.within(&narrower) && !Bounds::default().within(&own));
        for wider in [
            Bounds { projects: Vec::new(), ..narrower.clone() },
            Bounds { projects: vec!["web".into(), "ops".into()], ..narrower.clone() },
            Bounds { repos: vec![pattern("github:*")], ..narrower.clone() },
            Bounds { networks: vec!["0.0.0.0/0".parse().unwrap()], ..narrower.clone() },
        ] {
            assert!(!wider.within(&own), "{wider:?}");
        }
        assert!(Bounds::default().or(&own).within(&own), "what is left out is as one's own");
    }
}
