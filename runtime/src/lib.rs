//! The outside world behind small traits: sandboxes, models, git, forges, credentials.

pub mod agent;
pub mod egress;
pub mod forge;
pub mod gateway;
pub mod git;
mod http;
pub mod image;
pub mod meter;
pub mod model;
pub mod oidc;
mod redact;
pub mod sandbox;
pub mod server_key;
pub mod texts;
pub mod vault;
pub mod webhook;
