//! What can happen to a person's sign-in. Names and meanings are public and permanent.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::role::Membership;
use crate::KeyId;
use crate::json::DecodeError;

/// The version of the shape of the events below.
pub const SCHEMA: u16 = 1;

/// Whose session it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Holder {
    /// Who holds a key: they may do what the key may, as long as it may.
    Key {
        /// The key.
        key: KeyId,
    },
    /// A person whom an identity provider vouches for.
    Person {
        /// The provider, by its issuer identifier (OpenID Connect Core 1.0, section 2).
        issuer: String,
        /// The person there: never given to anybody else.
        subject: String,
    },
}

impl Holder {
    /// The stable name in every event of theirs.
    pub fn id(&self) -> String {
        match self {
            Self::Key { key } => key.to_string(),
            Self::Person { issuer, subject } => {
                let place = issuer.split_once("://").map_or(issuer.as_str(), |(_, place)| place);
                format!("{}:{subject}", place.trim_end_matches('/'))
            }
        }
    }
}

/// How somebody came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// They typed a key.
    Key,
    /// They used a link that the command line printed.
    Link,
    /// An identity provider sent them.
    Oidc,
}

impl Way {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Link => "link",
            Self::Oidc => "oidc",
        }
    }
}

/// What a session is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Whose it is.
    pub holder: Holder,
    /// How they came in.
    pub way: Way,
    /// What they were called then.
    pub name: String,
    /// Their teams and roles. Empty where a key says what its holder may do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memberships: Vec<Membership>,
    /// Which text of their key they showed: how often it had been rotated when that was made.
    #[serde(default, skip_serializing_if = "is_zero_u32")]
    pub generation: u32,
    /// The SHA-256 of the cookie, in lower-case hexadecimal. The cookie itself is in the browser alone.
    pub cookie_sha256: String,
    /// When it is over at the latest.
    pub ends: Timestamp,
}

/// Why a session ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionEnd {
    /// Its holder signed out.
    SignedOut,
    /// Its holder signed in anew from the same browser.
    Renewed,
    /// An administrator ended it.
    Ended,
    /// Nobody used it for long.
    Unused,
    /// There were too many, and this one was the nearest to its end.
    Crowded,
    /// The server's configuration gives its holder no more what they came in with.
    Withdrawn,
}

/// A sign-in that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// How it was tried.
    pub way: Way,
    /// Why it failed: a stable word.
    pub reason: String,
    /// Who it was, where that was found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// How many more failed since the last event, and were too many to be written down one by one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero_u32(number: &u32) -> bool {
    *number == 0
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum SessionEvent {
    /// Somebody signed in.
    SessionStarted(Box<Grant>),
    /// They went on for another of their teams.
    TeamChosen {
        /// The team; none for the whole server.
        team: Option<String>,
    },
    /// It is over.
    SessionEnded {
        /// Why.
        why: SessionEnd,
    },
    /// Somebody did not get in. The only event of its stream.
    SignInRefused(Refused),
}

impl SessionEvent {
    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] = &["session-started", "team-chosen", "session-ended", "sign-in-refused"];

    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::SessionStarted(_) => "session-started",
            Self::TeamChosen { .. } => "team-chosen",
            Self::SessionEnded { .. } => "session-ended",
            Self::SignInRefused(_) => "sign-in-refused",
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        match self {
            Self::SessionStarted(grant) => serde_json::value::to_raw_value(grant),
            Self::TeamChosen { team } => serde_json::value::to_raw_value(&json!({ "team": team })),
            Self::SessionEnded { why } => serde_json::value::to_raw_value(&json!({ "why": why })),
            Self::SignInRefused(refused) => serde_json::value::to_raw_value(refused),
        }
    }

    /// Reads an event back from its envelope. `None`: a type this version does not know.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("session", Self::KINDS, envelope)
    }
}
