//! Live streams: server-sent events and newline-delimited JSON over a subscription.

pub mod frames;
pub mod stream;
