//! What happened, and what it decides.
//!
//! This crate holds Orchestra's domain as pure functions over append-only event streams, the store those streams
//! live in, and the read models folded from them.
//!
//! Architecture invariant: nothing here reads a clock, draws a random number, opens a socket or starts a process.
//! Time and ids arrive with the command.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod access;
pub mod audience;
pub mod audit;
pub mod billing;
pub mod blob;
pub mod campaign;
pub mod envelope;
pub mod failure;
pub mod id;
pub mod json;
pub mod key;
pub mod ledger;
pub mod money;
mod private;
pub mod projections;
pub mod repo;
pub mod request;
pub mod session;
pub mod store;
pub mod subscription;
pub mod task;
pub mod webhook;

pub use envelope::{Actor, ActorKind, Envelope, NewEvent, Origin, Position, Private, Revision, StreamName};
pub use failure::{Failure, FailureCode};
pub use id::{CallId, CampaignId, CommitId, EventId, KeyId, SandboxId, SessionId, TaskId, WebhookId};
pub use json::Json;
pub use money::NanoUsd;
pub use private::ERASED;
pub use store::{Appended, Direction, EventStore, Expected, StoreError};
