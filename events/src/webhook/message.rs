//! What is sent: the body of a message, and the id under which every attempt at it goes out.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::pattern::event_type;
use crate::audience::{Audience, as_seen_by};
use crate::envelope::Envelope;
use crate::id::{EventId, WebhookId};

/// The `webhook-id` of a message: the same whenever the same event is sent to the same webhook, so that a receiver
/// who has seen it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MessageId(Uuid);

impl MessageId {
    /// The id of an event's message to a webhook.
    pub fn of(webhook: WebhookId, event: EventId) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"message of a webhook\n");
        hash.update(webhook.uuid().as_bytes());
        hash.update(event.0.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        Self(Uuid::from_bytes(bytes))
    }

    /// Its bytes, which sort nothing.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Out of its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "msg_{}", self.0.simple())
    }
}

/// A text that is no id of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is no id of a message: expected msg_ and 32 lower-case hexadecimal digits")]
pub struct MessageIdError;

impl FromStr for MessageId {
    type Err = MessageIdError;

    fn from_str(text: &str) -> Result<Self, MessageIdError> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let digits = text.strip_prefix("msg_").filter(|digits| digits.len() == 32 && digits.bytes().all(hex));
        digits.and_then(|digits| Uuid::try_parse(digits).ok()).map(Self).ok_or(MessageIdError)
    }
}

impl TryFrom<String> for MessageId {
    type Error = MessageIdError;
    fn try_from(text: String) -> Result<Self, MessageIdError> {
        text.parse()
    }
}

impl From<MessageId> for String {
    fn from(id: MessageId) -> Self {
        id.to_string()
    }
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: String,
    timestamp: jiff::Timestamp,
    data: &'a Envelope,
}

/// The body of an event's message, as Standard Webhooks has it: `type`, `timestamp` and `data`, the event in its envelope.
pub fn body(event: &Envelope, audience: Audience) -> Result<Vec<u8>, serde_json::Error> {
    let kind = event_type(&event.stream, &event.kind);
    serde_json::to_vec(&Body { kind, timestamp: event.time, data: &as_seen_by(event, audience)? })
}

/// The `type` of a test.
pub const PING: &str = "webhook.ping";

/// The body of a test.
pub fn ping(webhook: WebhookId, at: jiff::Timestamp) -> Vec<u8> {
    serde_json::json!({ "type": PING, "timestamp": at, "data": { "webhook": webhook } }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Actor, ActorKind, Origin};

    /// Something that a key of a team did.
    fn envelope(stream: &str, data: &str) -> Envelope {
        let actor = Actor {
            kind: ActorKind::ApiKey,
            id: "key_1".to_owned(),
            team: Some("platform".to_owned()),
            origin: Origin { user_agent: Some("curl".to_owned()), ..Origin::default() }.known(),
        };
        Envelope { actor, ..Envelope::example(stream.parse().unwrap(), "key-issued", data) }
    }

    #[test]
    fn an_id_belongs_to_one_event_and_one_webhook_for_ever() {
        let webhook = WebhookId::from_uuid(Uuid::from_u128(1));
        let id = MessageId::of(webhook, EventId(Uuid::from_u128(2)));
        assert_eq!(id.to_string(), "msg_71d4050783de6bfb417eea267d8450a7");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(id, MessageId::of(webhook, EventId(Uuid::from_u128(3))));
        assert_ne!(id, MessageId::of(WebhookId::from_uuid(Uuid::from_u128(4)), EventId(Uuid::from_u128(2))));
        for bad in ["", "msg_", "msg_71D4050783DE6BFB417EEA267D8450A7", "msg_f2ff7a9b-a5ae-5c6f-e11c-0e8a84d42d45"] {
            assert_eq!(bad.parse::<MessageId>(), Err(MessageIdError), "{bad}");
        }
    }

    #[test]
    fn a_team_is_not_told_where_an_act_came_from() {
        let event = envelope("key-1", r#"{"name":"ci","secretSha256":"00"}"#);
        let read = |audience| serde_json::from_slice::<serde_json::Value>(&body(&event, audience).unwrap()).unwrap();
        let (team, operators) = (read(Audience::Team), read(Audience::Operators));
        assert_eq!((&team["type"], &team["timestamp"]), (&"key.issued".into(), &"2026-11-22T10:00:00Z".into()));
        assert_eq!(team["data"]["data"], serde_json::json!({ "name": "ci" }));
        assert_eq!(team["data"]["actor"], serde_json::json!({ "kind": "api-key", "id": "key_1", "team": "platform" }));
        assert_eq!(operators["data"]["actor"]["origin"]["userAgent"], "curl");
        assert_eq!(operators["data"]["data"]["secretSha256"], "00");
        assert_eq!(team["data"]["position"], 1);
    }
}
