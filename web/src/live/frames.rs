//! How one event looks on the wire.

use std::fmt::Write as _;

use actix_web::web::Bytes;
use orchestra_events::Envelope;

/// How a stream is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Server-sent events whose id is the revision in the task's stream.
    TaskEvents,
    /// Server-sent events whose id is the position in the log.
    LogEvents,
    /// One envelope per line.
    Lines,
}

impl Format {
    /// The media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::TaskEvents | Self::LogEvents => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        }
    }

    /// A stored event.
    pub fn event(self, envelope: &Envelope) -> Result<Bytes, serde_json::Error> {
        let json = serde_json::to_string(envelope)?;
        // `data` is kept as it was written: line breaks between its tokens would end the frame's line.
        let json = if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ") } else { json };
        let id = match self {
            Self::TaskEvents => envelope.revision.0,
            Self::LogEvents => envelope.position.0,
            Self::Lines => return Ok(format!("{json}\n").into()),
        };
        let mut frame = String::with_capacity(json.len() + 64);
        // Writing to a String does not fail.
        let _ = write!(frame, "id: {id}\nevent: {}\ndata: {json}\n\n", envelope.kind);
        Ok(frame.into())
    }

    /// A piece of text while the model speaks. It has no id: it is not stored.
    pub fn delta(self, text: &str) -> Bytes {
        match self {
            Self::TaskEvents => {
                let data = serde_json::json!({ "text": text });
                format!("event: delta\ndata: {data}\n\n").into()
            }
            Self::LogEvents | Self::Lines => Bytes::new(),
        }
    }

    /// A sign of life.
    pub const fn heartbeat(self) -> Bytes {
        match self {
            Self::TaskEvents | Self::LogEvents => Bytes::from_static(b": still here\n\n"),
            Self::Lines => Bytes::from_static(b"\n"),
        }
    }

    /// What a stream begins with, so that the caller knows at once that it stands.
    pub const fn opening(self) -> Bytes {
        match self {
            Self::TaskEvents | Self::LogEvents => Bytes::from_static(b": connected\n\n"),
            Self::Lines => Bytes::new(),
        }
    }
}
