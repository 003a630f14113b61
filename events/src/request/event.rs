//! What can happen to a named request. Names and meanings are public and permanent.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::json::DecodeError;

/// The version of the shape of the events below.
pub const SCHEMA: u16 = 1;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum RequestEvent {
    /// Somebody is about to do it. What it causes carries this event's id as the request of its origin.
    RequestClaimed {
        /// Method and path, the path with its `{parameters}` as the interface describes it.
        endpoint: String,
        /// What was asked for, secrets left out, as a keyed hash: the caller's key is what it is keyed with, so
        /// that nobody who reads the log can try out texts against it.
        content: String,
    },
    /// It was done.
    RequestAnswered {
        /// The HTTP status of the answer.
        status: u16,
        /// What it made, where it made something new.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        location: Option<String>,
    },
    /// It was refused and nothing was done: the same key may try again.
    RequestAbandoned {
        /// The HTTP status of the refusal.
        status: u16,
    },
}

impl RequestEvent {
    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] = &["request-claimed", "request-answered", "request-abandoned"];

    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::RequestClaimed { .. } => "request-claimed",
            Self::RequestAnswered { .. } => "request-answered",
            Self::RequestAbandoned { .. } => "request-abandoned",
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Part {
            data: Box<RawValue>,
        }
        // The enum writes `{"type": …, "data": …}`; the envelope wants the second member.
        let whole = serde_json::value::to_raw_value(self)?;
        serde_json::from_str::<Part>(whole.get()).map(|part| part.data)
    }

    /// Reads an event back from its envelope. `None`: a type this version does not know.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("request", Self::KINDS, envelope)
    }
}
