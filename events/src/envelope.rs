//! The envelope around every event: one shape for the store, the live streams, the export and the audit.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::id::{CampaignId, EventId, KeyId, SessionId, TaskId, WebhookId};
use crate::json::Json;

/// The place of an event in its stream, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// The place of an event in the whole log, counted from 1. Opaque: only its order means anything, and on some
/// stores there are gaps. `Position(0)` stands for "before the first event".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// Before the first event.
    pub const START: Self = Self(0);
}

/// The name of a stream: a category, a dash, and what it is about (`task-0198…`, `ledger-platform`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName(Arc<str>);

/// Longest stream name accepted, in bytes.
pub const MAX_STREAM_NAME: usize = 200;

impl StreamName {
    /// The stream of a task.
    pub fn task(id: TaskId) -> Self {
        Self(format!("task-{}", id.uuid()).into())
    }

    /// The stream of a campaign.
    pub fn campaign(id: CampaignId) -> Self {
        Self(format!("campaign-{}", id.uuid()).into())
    }

    /// The stream of an API key.
    pub fn key(id: KeyId) -> Self {
        Self(format!("key-{}", id.uuid()).into())
    }

    /// The stream of a webhook.
    pub fn webhook(id: WebhookId) -> Self {
        Self(format!("webhook-{}", id.uuid()).into())
    }

    /// The stream of a person's session at the dashboard.
    pub fn session(id: SessionId) -> Self {
        Self(format!("session-{}", id.uuid()).into())
    }

    /// The stream of a request that its caller gave a name, by the hash of both.
    pub fn request(id: Uuid) -> Self {
        Self(format!("request-{id}").into())
    }

    /// What callers of a team were refused; without one, what callers of no team and unknown ones were. No team has a
    /// name that begins with `_`, and a text that is no team's name is taken for none.
    pub fn access(team: Option<&str>) -> Self {
        let of_team = team.and_then(|team| format!("access-{team}").parse().ok());
        of_team.unwrap_or_else(|| Self("access-_none".into()))
    }

    /// What a team is billed. Refuses what cannot be a team's name.
    pub fn billing(team: &str) -> Result<Self, StreamNameError> {
        format!("billing-{team}").parse()
    }

    /// The ledger of a team. Refuses what cannot be a team's name, which an API key or a task never carries.
    pub fn ledger(team: &str) -> Result<Self, StreamNameError> {
        format!("ledger-{team}").parse()
    }

    /// The team whose ledger this is, if it is one.
    pub fn ledger_team(&self) -> Option<&str> {
        self.0.strip_prefix("ledger-")
    }

    /// The task whose stream this is, if it is one.
    pub fn task_id(&self) -> Option<TaskId> {
        Uuid::parse_str(self.0.strip_prefix("task-")?).ok().map(TaskId::from_uuid)
    }

    /// The campaign whose stream this is, if it is one.
    pub fn campaign_id(&self) -> Option<CampaignId> {
        Uuid::parse_str(self.0.strip_prefix("campaign-")?).ok().map(CampaignId::from_uuid)
    }

    /// The key whose stream this is, if it is one.
    pub fn key_id(&self) -> Option<KeyId> {
        Uuid::parse_str(self.0.strip_prefix("key-")?).ok().map(KeyId::from_uuid)
    }

    /// The webhook whose stream this is, if it is one.
    pub fn webhook_id(&self) -> Option<WebhookId> {
        Uuid::parse_str(self.0.strip_prefix("webhook-")?).ok().map(WebhookId::from_uuid)
    }

    /// The session whose stream this is, if it is one.
    pub fn session_id(&self) -> Option<SessionId> {
        Uuid::parse_str(self.0.strip_prefix("session-")?).ok().map(SessionId::from_uuid)
    }

    /// The team whose bills this is about, if it is about bills.
    pub fn billing_team(&self) -> Option<&str> {
        self.0.strip_prefix("billing-")
    }

    /// What stands before the first dash.
    pub fn category(&self) -> &str {
        self.0.split_once('-').map_or(&*self.0, |(category, _)| category)
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that no stream can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stream name is a lower-case category, a dash and 1 to 190 printable characters")]
pub struct StreamNameError;

impl TryFrom<String> for StreamName {
    type Error = StreamNameError;
    fn try_from(name: String) -> Result<Self, StreamNameError> {
        name.parse()
    }
}

impl From<StreamName> for String {
    fn from(name: StreamName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl FromStr for StreamName {
    type Err = StreamNameError;
    fn from_str(name: &str) -> Result<Self, StreamNameError> {
        let (category, about) = name.split_once('-').ok_or(StreamNameError)?;
        let fits = !category.is_empty()
            && category.bytes().all(|byte| byte.is_ascii_lowercase())
            && !about.is_empty()
            && name.len() <= MAX_STREAM_NAME
            && about.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Self(name.into())) } else { Err(StreamNameError) }
    }
}

/// Who caused an event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Actor {
    /// What kind of being acted.
    pub kind: ActorKind,
    /// Its id within that kind (`key_…`, a node name, an actor's name).
    pub id: String,
    /// The team on whose behalf it acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Where it came from; for the audit. Never empty: absent where nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<Origin>>,
}

/// Where an act came from, as far as it is known. What a caller says about itself is its word and no more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// What the key or the person was called at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The network address that the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The program that sent it, by its own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// The request that it was part of, where the caller gave it a name of its own (`Idempotency-Key`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<EventId>,
}

/// Longest user agent and longest name kept, in bytes.
pub const MAX_ORIGIN_TEXT: usize = 200;

impl Origin {
    /// Boxed; `None` if nothing is known.
    pub fn known(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// The kinds of beings that act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActorKind {
    /// A caller with an API key.
    ApiKey,
    /// A person signed in to the dashboard.
    Person,
    /// Orchestra itself.
    System,
}

impl Actor {
    /// Orchestra itself, acting through the named part.
    pub fn system(part: &str) -> Self {
        Self { kind: ActorKind::System, id: part.to_owned(), team: None, origin: None }
    }
}

/// An event that is about to be appended: everything but the place the store will give it.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Its id; the same id appended again at the same place is the same event.
    pub id: EventId,
    /// The stable kebab-case name of what happened.
    pub kind: Arc<str>,
    /// The version of the shape of `data`.
    pub schema: u16,
    /// When it happened.
    pub time: Timestamp,
    /// Who caused it.
    pub actor: Actor,
    /// The stream this belongs to in the larger story (a task, a campaign).
    pub correlation: Option<StreamName>,
    /// The event that led to this one.
    pub causation: Option<EventId>,
    /// What happened, as JSON. Where there is a private part, this is what stays when that is erased: whole by itself,
    /// with placeholders where readers need something.
    pub data: Box<RawValue>,
    /// The part of what happened that may be forgotten.
    pub private: Option<Private>,
}

/// The part of an event's data that may be erased: it is kept beside the event, and the log's hashes cover its seal.
#[derive(Clone, PartialEq, Eq)]
pub struct Private {
    /// Random bytes that go into the seal, so that nobody can try what was said until the seal fits.
    pub salt: [u8; 32],
    /// A JSON object. Its members stand for those of the same name in the public part: readers see the two as one
    /// object. Those that have a placeholder there come first, in the order of the placeholders, which are the last
    /// members of the public part; then joining the two is a copy and no parse.
    pub content: Json,
}

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Private({} bytes)", self.content.get().len())
    }
}

/// An event as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Its id.
    pub id: EventId,
    /// The stable kebab-case name of what happened.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// The version of the shape of `data`.
    pub schema: u16,
    /// The stream it is in.
    pub stream: StreamName,
    /// Its place in that stream.
    pub revision: Revision,
    /// Its place in the whole log.
    pub position: Position,
    /// When it happened.
    pub time: Timestamp,
    /// Who caused it.
    pub actor: Actor,
    /// The stream this belongs to in the larger story.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation: Option<StreamName>,
    /// The event that led to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub causation: Option<EventId>,
    /// What happened, as JSON: its private part included, unless that was erased.
    pub data: Json,
    /// The private part was erased: placeholders stand in its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub erased: bool,
}

#[cfg(test)]
impl Envelope {
    /// The first event of a stream and of the log, as tests need one that no store has kept.
    pub(crate) fn example(stream: StreamName, kind: &str, data: impl Into<Box<str>>) -> Self {
        Self {
            id: EventId(Uuid::nil()),
            kind: kind.into(),
            schema: 1,
            stream,
            revision: Revision(0),
            position: Position(1),
            time: "2026-11-22T10:00:00Z".parse().unwrap(),
            actor: Actor::system("test"),
            correlation: None,
            causation: None,
            data: Json::stored(data),
            erased: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_names_are_checked() {
        for good in ["task-1", "ledger-platform", "key-0198"] {
            assert!(good.parse::<StreamName>().is_ok(), "{good}");
        }
        let long = format!("task-{}", "x".repeat(MAX_STREAM_NAME));
        for bad in ["", "task", "task-", "-x", "Task-x", "task-a b", "task-\n", &long] {
            assert!(bad.parse::<StreamName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_task_of_a_stream_is_found_again() {
        let id = TaskId::from_uuid(Uuid::from_u128(7));
        assert_eq!(StreamName::task(id).task_id(), Some(id));
        assert_eq!(StreamName::task(id).key_id(), None);
    }
}
