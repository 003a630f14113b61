//! Which events a webhook wants: names such as `task.succeeded`, whole categories such as `task.*`, or `*`.
//!
//! A name is the category of the event's stream, a dot, and the event's type without the category in front: the
//! `campaign-finished` of a campaign's stream is `campaign.finished`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::event::WebhookSpec;
use crate::envelope::{Envelope, StreamName};
use crate::store::Filter;

/// Longest pattern, in bytes.
pub const MAX_PATTERN: usize = 100;

/// Categories that `*` leaves out: who signs in, who is refused, and the keeping of the log itself. They are sent where they
/// are named.
const ADMINISTRATIVE: [&str; 6] = ["key", "session", "access", "checkpoint", "request", "webhook"];

/// The type that is never sent: a webhook that is told of its own deliveries never comes to an end.
const NEVER: &str = "deliveries-recorded";

/// One of a webhook's event types, possibly with a star.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is no event type such as `task.succeeded`, `task.*` or `*`")]
pub struct PatternError;

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let word = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        let fits = text == "*"
            || text.len() <= MAX_PATTERN
                && text.split_once('.').is_some_and(|(category, kind)| {
                    category.bytes().all(|byte| byte.is_ascii_lowercase())
                        && word(category)
                        && (kind == "*" || word(kind))
                });
        if fits { Ok(Self(text.to_owned())) } else { Err(PatternError) }
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;
    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names a category of which only those should know who may read the audit.
    pub fn is_administrative(&self) -> bool {
        self.0.split_once('.').is_some_and(|(category, _)| ADMINISTRATIVE.contains(&category))
    }

    fn admits(&self, category: &str, kind: &str) -> bool {
        match self.0.split_once('.') {
            None => !ADMINISTRATIVE.contains(&category),
            Some((wanted, "*")) => wanted == category,
            Some((wanted, name)) => wanted == category && name == short(category, kind),
        }
    }
}

/// An event's type without its category in front.
fn short<'a>(category: &str, kind: &'a str) -> &'a str {
    kind.strip_prefix(category).and_then(|rest| rest.strip_prefix('-')).unwrap_or(kind)
}

/// The `type` that an event is sent with.
pub fn event_type(stream: &StreamName, kind: &str) -> String {
    let category = stream.category();
    format!("{category}.{}", short(category, kind))
}

/// To whom the things of a stream belong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// The team; none for what belongs to no team, or to nobody knows whom.
    pub team: Option<String>,
    /// The project of a task or of a campaign's tasks.
    pub project: Option<String>,
    /// Their environment.
    pub environment: Option<String>,
}

impl WebhookSpec {
    /// What has to be read of the log to find what it wants: all of it, or a few types.
    pub fn filter(&self) -> Filter {
        let mut types = Vec::new();
        for pattern in &self.events {
            match pattern.0.split_once('.') {
                None | Some((_, "*")) => return Filter::everything(),
                Some((category, name)) => types.extend([name.to_owned(), format!("{category}-{name}")]),
            }
        }
        Filter::types(types)
    }

    /// Whether it wants an event as far as that can be told without knowing whose it is. `own` is its own stream.
    pub fn wants(&self, own: &StreamName, event: &Envelope) -> bool {
        let category = event.stream.category();
        &*event.kind != NEVER
            && event.stream != *own
            && self.events.iter().any(|pattern| pattern.admits(category, &event.kind))
    }

    /// Whether it is told of every event of these types, as they are sent, that belongs to this owner.
    pub fn is_told(&self, types: &[&str], owner: &Owner) -> bool {
        let named = |name: &&str| {
            let (category, kind) = name.split_once('.').unwrap_or((name, ""));
            self.events.iter().any(|pattern| pattern.admits(category, kind))
        };
        types.iter().all(named) && self.may_see(owner)
    }

    /// Whether what belongs to this owner is this webhook's to know.
    pub fn may_see(&self, owner: &Owner) -> bool {
        let within =
            |wanted: &[String], is: Option<&String>| wanted.is_empty() || is.is_some_and(|is| wanted.contains(is));
        self.team.as_ref().is_none_or(|team| owner.team.as_ref() == Some(team))
            && within(&self.projects, owner.project.as_ref())
            && within(&self.environments, owner.environment.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(stream: &str, kind: &str) -> Envelope {
        Envelope::example(stream.parse().unwrap(), kind, "{}")
    }

    fn spec(patterns: &[&str]) -> WebhookSpec {
        WebhookSpec {
            team: Some("platform".to_owned()),
            url: "https://receiver.example/hook".to_owned(),
            events: patterns.iter().map(|text| text.parse().unwrap()).collect(),
            projects: Vec::new(),
            environments: Vec::new(),
            description: None,
        }
    }

    #[test]
    fn patterns_are_read_strictly() {
        for good in ["*", "task.*", "task.succeeded", "campaign.finished", "billing.period-closed"] {
            assert_eq!(good.parse::<Pattern>().unwrap().as_str(), good);
        }
        let long = format!("task.{}", "x".repeat(MAX_PATTERN));
        for bad in
            ["", ".", "task", "task.", ".x", "*.x", "**", "task.suc*", "Task.x", "task.a.b", "ta-sk.x", "task. ", &long]
        {
            assert_eq!(bad.parse::<Pattern>(), Err(PatternError), "{bad:?}");
        }
    }

    #[test]
    fn a_webhook_gets_what_it_names_and_a_star_leaves_out_what_administrators_do() {
        let own = "webhook-1".parse().unwrap();
        for (patterns, stream, kind, wanted) in [
            (&["task.succeeded"][..], "task-1", "succeeded", true),
            (&["task.succeeded"], "task-1", "failed", false),
            (&["task.succeeded"], "campaign-1", "succeeded", false),
            (&["campaign.finished"], "campaign-1", "campaign-finished", true),
            (&["campaign.campaign-finished"], "campaign-1", "campaign-finished", false),
            (&["task.*"], "task-1", "anything-new", true),
            (&["task.*"], "ledger-platform", "settled", false),
            (&["*"], "billing-platform", "period-closed", true),
            (&["*"], "key-1", "key-issued", false),
            (&["*"], "session-1", "session-started", false),
            (&["*"], "access-1", "access-denied", false),
            (&["*"], "checkpoint-node", "checkpoint-signed", false),
            (&["*"], "request-1", "request-claimed", false),
            (&["*"], "webhook-2", "webhook-created", false),
            (&["*", "key.*"], "key-1", "key-issued", true),
            (&["webhook.disabled"], "webhook-2", "webhook-disabled", true),
            // Its own stream, and what never ends: not even where it is asked for.
            (&["webhook.*"], "webhook-1", "webhook-disabled", false),
            (&["webhook.*", "webhook.deliveries-recorded"], "webhook-2", "deliveries-recorded", false),
        ] {
            let (spec, envelope) = (spec(patterns), envelope(stream, kind));
            assert_eq!(spec.wants(&own, &envelope), wanted, "{patterns:?} and {kind} of {stream}");
            assert!(!wanted || spec.filter().admits(&envelope), "{patterns:?} does not find {kind}");
        }
        assert_eq!(event_type(&"campaign-1".parse().unwrap(), "campaign-finished"), "campaign.finished");
        assert_eq!(event_type(&"task-1".parse().unwrap(), "succeeded"), "task.succeeded");
    }

    #[test]
    fn who_is_told_of_one_kind_alone_is_not_told_of_both() {
        let both = ["billing.invoice-ready", "billing.period-closed"];
        let owner = |team: &str| Owner { team: Some(team.to_owned()), ..Owner::default() };
        for (patterns, told) in [
            (&["*"][..], true),
            (&["billing.*"], true),
            (&both, true),
            (&["task.*"], false),
            (&["billing.period-closed"], false),
        ] {
            assert_eq!(spec(patterns).is_told(&both, &owner("platform")), told, "{patterns:?}");
            assert!(!spec(patterns).is_told(&both, &owner("web")));
        }
        let narrowed = WebhookSpec { projects: vec!["infra".to_owned()], ..spec(&["*"]) };
        assert!(!narrowed.is_told(&both, &owner("platform")), "a bill belongs to no project");
    }

    #[test]
    fn what_belongs_to_others_or_to_nobody_is_not_a_teams_to_know() {
        let owner = |team: Option<&str>, project: Option<&str>| Owner {
            team: team.map(str::to_owned),
            project: project.map(str::to_owned),
            environment: None,
        };
        let mut spec = spec(&["*"]);
        assert!(spec.may_see(&owner(Some("platform"), None)));
        assert!(!spec.may_see(&owner(Some("web"), None)) && !spec.may_see(&owner(None, None)));
        spec.projects = vec!["infra".to_owned()];
        assert!(spec.may_see(&owner(Some("platform"), Some("infra"))));
        assert!(!spec.may_see(&owner(Some("platform"), Some("api"))) && !spec.may_see(&owner(Some("platform"), None)));
        let all = WebhookSpec { team: None, projects: Vec::new(), ..spec };
        assert!(all.may_see(&owner(Some("web"), None)) && all.may_see(&owner(None, None)));
    }
}
