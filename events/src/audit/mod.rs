//! The record that shows tampering: signed checkpoints of the log, its export, and what proves both.
//!
//! [`crate::store::chain`] links every event to the one before it. That alone shows a careless change; who can write the
//! database can write all links anew. So the server signs how far the log had come ([`checkpoint`]), and what was
//! signed can be kept where the writer of the database does not reach. [`verify`] needs nothing but the export
//! ([`export`]) and the public key.

pub mod acts;
pub mod books;
pub mod chain;
pub mod checkpoint;
pub mod export;
pub mod hex;
mod parallel;
mod read;
pub mod verify;

#[cfg(test)]
mod tests;

pub use books::{Balance, Mismatch};
pub use chain::{Break, Kind, Trust};
pub use checkpoint::{Checkpoint, CheckpointEvent, PublicKey, Statement, key_id};
pub use ed25519_dalek::SigningKey;
pub use hex::Hex;
pub use verify::{Report, VerifyError};
