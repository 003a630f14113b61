//! Refused acts: who was turned away at the door, from what, and how often. Names and meanings are public and permanent.
//!
//! They stand in `access-<team>`, the team of who was refused; those of callers without a team, and of callers who showed
//! nothing that is known here, in `access-_none`, which no team can be called. Nothing is decided by them: they are there
//! to be read. One event stands for `count` refusals of one kind: the first is written at once, those that follow within
//! a minute as one event when that is over. The envelope's actor is who was refused; a caller who is not known is
//! `system`/`unknown-caller`, with the address and program in its origin.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::json::DecodeError;

/// The version of the shape of the event below.
pub const SCHEMA: u16 = 1;
/// Its stable name in the envelope's `type`.
pub const ACCESS_DENIED: &str = "access-denied";
/// The id of the actor who stands for callers who are not known.
pub const UNKNOWN_CALLER: &str = "unknown-caller";

/// Somebody was refused: the data of `access-denied`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessDenied {
    /// The method of the request; `*` for refusals of several kinds that there was no room to tell apart.
    pub method: String,
    /// The path with its `{parameters}` as the interface names it, never what the caller put there; `*` as above.
    pub route: String,
    /// The stable code of the answer (`forbidden`, `unauthenticated`, `address-not-allowed`, `rate-limited` …).
    pub code: String,
    /// From where the first of them came, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The program that sent the first of them, by its own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// How many refusals this stands for.
    pub count: u64,
    /// When the first of them was.
    pub since: Timestamp,
    /// When the last of them was.
    pub until: Timestamp,
}

impl AccessDenied {
    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        serde_json::value::to_raw_value(self)
    }

    /// Reads it back from its envelope. `None`: another type.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        /// What the shared reader of events wants: an enum by type.
        #[derive(Deserialize)]
        #[serde(tag = "type", content = "data", rename_all = "kebab-case")]
        enum Event {
            AccessDenied(AccessDenied),
        }
        let event = crate::json::decode("access", &[ACCESS_DENIED], envelope)?;
        Ok(event.map(|Event::AccessDenied(denied)| denied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Envelope, StreamName};

    #[test]
    fn the_shape_of_the_event_is_fixed() {
        let time = Timestamp::from_second(1_800_000_000).expect("a time");
        let denied = AccessDenied {
            method: "POST".to_owned(),
            route: "/v1/tasks".to_owned(),
            code: "forbidden".to_owned(),
            address: Some("192.0.2.1".parse().expect("an address")),
            user_agent: Some("curl/8".to_owned()),
            count: 3,
            since: time,
            until: time,
        };
        let data = denied.data().expect("JSON");
        assert_eq!(
            data.get(),
            r#"{"method":"POST","route":"/v1/tasks","code":"forbidden","address":"192.0.2.1","userAgent":"curl/8","count":3,"since":"2027-01-15T08:00:00Z","until":"2027-01-15T08:00:00Z"}"#
        );
        let envelope =
            |kind: &str| Envelope { schema: SCHEMA, ..Envelope::example(StreamName::access(None), kind, data.get()) };
        assert_eq!(AccessDenied::decode(&envelope(ACCESS_DENIED)).expect("it reads"), Some(denied));
        assert_eq!(AccessDenied::decode(&envelope("other")).expect("it is not ours"), None);
    }
}
