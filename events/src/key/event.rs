//! What can happen to an API key. Names and meanings are public and permanent.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum KeyEvent {
    /// Somebody was given a key.
    KeyIssued(KeyGrant),
    /// The key is worth nothing any more.
    KeyRevoked {},
}

impl KeyEvent {
    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] = &["key-issued", "key-revoked"];

    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::KeyIssued(_) => "key-issued",
            Self::KeyRevoked {} => "key-revoked",
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        match self {
            Self::KeyIssued(grant) => serde_json::value::to_raw_value(grant),
            Self::KeyRevoked {} => RawValue::from_string("{}".to_owned()),
        }
    }

    /// Reads an event back from its envelope. `None`: a type this version does not know.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("key", Self::KINDS, envelope)
    }
}
