//! What can happen to an API key. Names and meanings are public and permanent.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::bounds::Bounds;
use crate::json::DecodeError;

/// The version of the shape of the events below.
pub const SCHEMA: u16 = 1;

macro_rules! scopes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// What a key may do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Scope {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl Scope {
            /// Every scope there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

scopes! {
    /// Submit, retry, steer and supply credentials.
    TasksCreate = "tasks:create";
    /// Read tasks, their events and their diffs.
    TasksRead = "tasks:read";
    /// Cancel tasks.
    TasksCancel = "tasks:cancel";
    /// Start and retry campaigns, and supply their credentials.
    CampaignsCreate = "campaigns:create";
    /// Read campaigns.
    CampaignsRead = "campaigns:read";
    /// Cancel campaigns.
    CampaignsCancel = "campaigns:cancel";
    /// Read budgets and where they stand.
    BudgetsRead = "budgets:read";
    /// Set budgets.
    BudgetsWrite = "budgets:write";
    /// Read usage.
    UsageRead = "usage:read";
    /// Read the audit and the global event log of the key's team.
    AuditRead = "audit:read";
    /// List the team's keys.
    KeysRead = "keys:read";
    /// Issue, rotate and revoke keys of the team, with no more than the own rights.
    KeysWrite = "keys:write";
    /// Erase prompts and outputs of tasks for good.
    ContentErase = "content:erase";
    /// Read bills, plans and closed periods.
    BillingRead = "billing:read";
    /// Set plans and close periods.
    BillingWrite = "billing:write";
    /// Read webhooks and their deliveries.
    WebhooksRead = "webhooks:read";
    /// Create, change, replay and remove webhooks.
    WebhooksWrite = "webhooks:write";
    /// Read the state of exports.
    ExportsRead = "exports:read";
    /// Run exports.
    ExportsWrite = "exports:write";
    /// Everything, for every team.
    Admin = "admin";
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a key is and may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyGrant {
    /// What its owner calls it.
    pub name: String,
    /// The team it acts for; none for an operator's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The environment in its visible prefix, so that a production key is seen to be one.
    pub environment: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The SHA-256 of the whole key, in lower-case hexadecimal. The key itself is nowhere.
    pub secret_sha256: String,
    /// What it is good for within its team. Keys from before there were bounds have none.
    #[serde(default, skip_serializing_if = "Bounds::is_empty")]
    pub bounds: Bounds,
    /// From when on it is worth nothing. Absent: it lasts until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// How much may be asked with it at once.
    #[serde(default, skip_serializing_if = "KeyLimits::is_empty")]
    pub limits: KeyLimits,
}

/// How much may be asked with a key at once. What is absent is as the server's configuration says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyLimits {
    /// Requests per minute, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Requests at once, after a pause. Absent: a minute's worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Tasks that were created with it and are not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_tasks: Option<u32>,
}

impl KeyLimits {
    /// Whether nothing is limited by the key itself.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The same, with the other's in place of what is absent.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            // A burst of the other's own belongs to its rate.
            burst: self.burst.or(other.burst.filter(|burst| self.requests_per_minute.is_none_or(|own| own > *burst))),
            requests_per_minute: self.requests_per_minute.or(other.requests_per_minute),
            concurrent_tasks: self.concurrent_tasks.or(other.concurrent_tasks),
        }
    }

    /// Whether they allow no more than `other` does.
    pub fn within(&self, other: &Self) -> bool {
        let part = |own: Option<u32>, other: Option<u32>| other.is_none_or(|most| own.is_some_and(|own| own <= most));
        part(self.requests_per_minute, other.requests_per_minute)
            // Without a burst of its own, a minute's worth may come at once.
            && part(self.burst.or(self.requests_per_minute), other.burst.or(other.requests_per_minute))
            && part(self.concurrent_tasks, other.concurrent_tasks)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum KeyEvent {
    /// Somebody was given a key.
    KeyIssued(Box<KeyGrant>),
    /// It has a new secret; the one before works for a while longer.
    #[serde(rename_all = "camelCase")]
    KeyRotated {
        /// The SHA-256 of the new text.
        secret_sha256: String,
        /// From when on the text before it is worth nothing. An older one is worth nothing already.
        previous_until: Timestamp,
    },
    /// It was used, after it had not been for a while: at most once in an hour, so that a busy key does not fill the log.
    KeyUsed {
        /// When.
        at: Timestamp,
        /// From where, as far as that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
    },
    /// The key is worth nothing any more.
    KeyRevoked {},
}

impl KeyEvent {
    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] = &["key-issued", "key-rotated", "key-used", "key-revoked"];

    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::KeyIssued(_) => "key-issued",
            Self::KeyRotated { .. } => "key-rotated",
            Self::KeyUsed { .. } => "key-used",
            Self::KeyRevoked {} => "key-revoked",
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        /// The event as serde writes it, of which only the second member is wanted.
        #[derive(Deserialize)]
        struct Whole {
            data: Box<RawValue>,
        }
        serde_json::from_str::<Whole>(&serde_json::to_string(self)?).map(|whole| whole.data)
    }

    /// Reads an event back from its envelope. `None`: a type this version does not know.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("key", Self::KINDS, envelope)
    }
}
