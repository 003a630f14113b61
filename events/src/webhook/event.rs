//! Everything that can happen to a webhook. Names and meanings are public and permanent.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::message::MessageId;
use super::pattern::Pattern;
use crate::envelope::Position;
use crate::json::DecodeError;

/// The version of the shape of the events below. A change of shape raises it and adds an upcaster.
pub const SCHEMA: u16 = 1;

/// Longest address, in bytes.
pub const MAX_URL: usize = 2_000;
/// Longest description, in bytes.
pub const MAX_DESCRIPTION: usize = 200;
/// Most patterns of one webhook: more than there are types that anybody tells apart.
pub const MAX_PATTERNS: usize = 64;
/// Most projects, and most environments, of one filter.
pub const MAX_FILTERED: usize = 50;
/// Most attempts in one event, so that it stays small whatever the receiver does.
pub const MAX_RECORDED: usize = 100;

/// What a webhook is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSpec {
    /// The team whose events it is told; none: those of all, and of no team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Where they are sent.
    pub url: String,
    /// Which of them; at least one.
    pub events: Vec<Pattern>,
    /// Only events of tasks and campaigns of these projects. Empty: of all, and all other events too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub projects: Vec<String>,
    /// The same for environments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environments: Vec<String>,
    /// What its owner says about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Why nothing is sent any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisabledWhy {
    /// The receiver answered `410 Gone`.
    Gone,
    /// For days, nothing was taken.
    Failures,
    /// Somebody wanted it so.
    ByHand,
}

impl DisabledWhy {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Failures => "failures",
            Self::ByHand => "by-hand",
        }
    }
}

/// What went wrong where there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The name has no address.
    Unresolvable,
    /// The name leads to an address that webhooks must not be sent to.
    ForbiddenAddress,
    /// Nobody took the connection.
    Unreachable,
    /// TLS did not come up.
    Tls,
    /// The answer did not come in time.
    Timeout,
    /// The connection broke before the answer.
    Broken,
    /// What came back is not HTTP.
    BadAnswer,
    /// The event itself could not be read or written.
    Unsendable,
}

impl Fault {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unresolvable => "unresolvable",
            Self::ForbiddenAddress => "forbidden-address",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::BadAnswer => "bad-answer",
            Self::Unsendable => "unsendable",
        }
    }
}

/// What became of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Outcome {
    /// The receiver took it.
    Delivered {
        /// A 2xx.
        status: u16,
    },
    /// It did not, and is asked again.
    Retrying {
        /// What it answered, if it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// What went wrong, if it did not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fault: Option<Fault>,
        /// When.
        next: Timestamp,
        /// The receiver asked for nothing at all before this time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pause_until: Option<Timestamp>,
    },
    /// It did not, and is not asked again.
    GivenUp {
        /// What it answered, if it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// What went wrong, if it did not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fault: Option<Fault>,
    },
    /// It was not asked again: when its turn came, the webhook was for something else.
    Skipped,
}

impl Outcome {
    /// The answer's status, where there was one.
    pub const fn status(self) -> Option<u16> {
        match self {
            Self::Delivered { status } => Some(status),
            Self::Retrying { status, .. } | Self::GivenUp { status, .. } => status,
            Self::Skipped => None,
        }
    }

    /// What went wrong where there was no answer.
    pub const fn fault(self) -> Option<Fault> {
        match self {
            Self::Delivered { .. } | Self::Skipped => None,
            Self::Retrying { fault, .. } | Self::GivenUp { fault, .. } => fault,
        }
    }

    /// The stable name of how it stands after this.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered { .. } => "delivered",
            Self::Retrying { .. } => "retrying",
            Self::GivenUp { .. } => "given-up",
            Self::Skipped => "skipped",
        }
    }
}

/// One attempt to deliver one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// The event's place in the log; absent for a test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// The `webhook-id` that it was sent under.
    pub message: MessageId,
    /// The `type` that it was sent with.
    #[serde(rename = "type")]
    pub kind: String,
    /// Counted from 1 for each event.
    pub attempt: u32,
    /// When it began.
    pub at: Timestamp,
    /// How long the answer took, in milliseconds.
    pub ms: u32,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum WebhookEvent {
    /// Somebody wants to be told. Always the first event. The secret is version 1.
    WebhookCreated {
        /// What it is for.
        #[serde(flatten)]
        spec: WebhookSpec,
        /// It is told what happens after this.
        after: Position,
        /// The SHA-256 of the request, when it carried an idempotency key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_hash: Option<String>,
    },
    /// It is for something else now; the team stays.
    WebhookChanged(WebhookSpec),
    /// Messages are signed with another secret.
    WebhookSecretRotated {
        /// Which: secrets are derived from the server's key by their number.
        version: u32,
        /// Until then they are signed with the one before, too.
        previous_until: Timestamp,
    },
    /// What was tried since this was last recorded.
    DeliveriesRecorded {
        /// In the order in which the answers came.
        attempts: Vec<Attempt>,
        /// What the webhook wants of the log up to here was delivered, was given up or is being retried.
        through: Position,
        /// The same within the replay that comes first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replayed_through: Option<Position>,
    },
    /// Nothing is sent any more.
    WebhookDisabled {
        /// Why.
        why: DisabledWhy,
    },
    /// It goes on where it ended.
    WebhookEnabled {
        /// When.
        at: Timestamp,
    },
    /// It is gone for good.
    WebhookRemoved {},
    /// What the webhook wants of a part of the log is sent again.
    ReplayRequested {
        /// The first position.
        from: Position,
        /// The last one.
        to: Position,
    },
}

impl WebhookEvent {
    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] = &[
        "webhook-created",
        "webhook-changed",
        "webhook-secret-rotated",
        "deliveries-recorded",
        "webhook-disabled",
        "webhook-enabled",
        "webhook-removed",
        "replay-requested",
    ];

    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::WebhookCreated { .. } => "webhook-created",
            Self::WebhookChanged(_) => "webhook-changed",
            Self::WebhookSecretRotated { .. } => "webhook-secret-rotated",
            Self::DeliveriesRecorded { .. } => "deliveries-recorded",
            Self::WebhookDisabled { .. } => "webhook-disabled",
            Self::WebhookEnabled { .. } => "webhook-enabled",
            Self::WebhookRemoved {} => "webhook-removed",
            Self::ReplayRequested { .. } => "replay-requested",
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Tagged {
            data: Box<RawValue>,
        }
        let tagged = serde_json::to_string(self)?;
        Ok(serde_json::from_str::<Tagged>(&tagged)?.data)
    }

    /// Reads an event back from its envelope. `None`: a type this version does not know.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("webhook", Self::KINDS, envelope)
    }
}
