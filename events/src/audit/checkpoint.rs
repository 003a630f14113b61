//! A signed checkpoint: how far the log had come at some time, in a statement that only the server's key can make.
//!
//! Whoever holds the database can write a whole new log with good links. What they cannot write is a checkpoint of it;
//! and a checkpoint that was copied elsewhere before shows that the log was another one then.
//!
//! ```text
//! statement = "orchestra-checkpoint/1\n"   23 bytes
//!             log id       32 bytes   the global link of the log's first event
//!             position     u64        the last event that the statement is about
//!             global link  32 bytes   of that event
//!             seconds      i64        when it was signed, since 1970-01-01T00:00:00Z
//!             nanos        i32        of that second, with the same sign
//!             key id       16 bytes   the beginning of SHA-256(public key)
//! signature = Ed25519(statement)      RFC 8032; checked strictly: no small order, one encoding
//! ```
//! Integers are big-endian. Outside it is a JSON object: `logId`, `position`, `globalLink`, `time`, `keyId`,
//! `publicKey` and `signature`, the bytes in lower-case hexadecimal.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest as _, Sha256};

use super::hex::Hex;
use crate::envelope::{Position, StreamName, StreamNameError};
use crate::json::DecodeError;
use crate::store::chain::Digest;

/// The version of the shape of [`CheckpointEvent`].
pub const SCHEMA: u16 = 1;

const CONTEXT: &[u8] = b"orchestra-checkpoint/1\n";

/// The public half of the key that signs.
pub type PublicKey = Hex<32>;

/// The name of a key: the first 16 bytes of the SHA-256 of its public half.
pub type SigningKeyId = Hex<16>;

/// The name of this key.
pub fn key_id(public: &PublicKey) -> SigningKeyId {
    let hash: [u8; 32] = Sha256::digest(public.0).into();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    Hex(id)
}

/// How far a log had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    /// Which log: the global link of its first event.
    pub log: Digest,
    /// The last event that it is about.
    pub position: Position,
    /// That event's global link.
    pub link: Digest,
    /// When it was made.
    pub time: Timestamp,
}

impl Statement {
    /// What is signed.
    pub fn bytes(&self, key: SigningKeyId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CONTEXT.len() + 100);
        bytes.extend_from_slice(CONTEXT);
        bytes.extend_from_slice(&self.log.0);
        bytes.extend_from_slice(&self.position.0.to_be_bytes());
        bytes.extend_from_slice(&self.link.0);
        bytes.extend_from_slice(&self.time.as_second().to_be_bytes());
        bytes.extend_from_slice(&self.time.subsec_nanosecond().to_be_bytes());
        bytes.extend_from_slice(&key.0);
        bytes
    }

    /// The statement with the key's signature.
    pub fn sign(&self, key: &SigningKey) -> Checkpoint {
        let public_key = Hex(key.verifying_key().to_bytes());
        let key_id = key_id(&public_key);
        Checkpoint {
            log_id: self.log.into(),
            position: self.position.0,
            global_link: self.link.into(),
            time: self.time,
            key_id,
            public_key,
            signature: Hex(key.sign(&self.bytes(key_id)).to_bytes()),
        }
    }
}

/// A statement and who vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checkpoint {
    /// Which log: the global link of its first event.
    pub log_id: Hex<32>,
    /// The last event that it is about.
    pub position: u64,
    /// That event's global link.
    pub global_link: Hex<32>,
    /// When it was made.
    pub time: Timestamp,
    /// The key's name.
    pub key_id: SigningKeyId,
    /// The key.
    pub public_key: PublicKey,
    /// What the key made of [`Statement::bytes`].
    pub signature: Hex<64>,
}

/// A signature that the key beside it has not made over the statement beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not the key's over this statement")]
pub struct BadSignature;

impl Checkpoint {
    /// What was signed.
    pub fn statement(&self) -> Statement {
        Statement {
            log: self.log_id.into(),
            position: Position(self.position),
            link: self.global_link.into(),
            time: self.time,
        }
    }

    /// Whether the key that it names has signed it. Whether that key is the right one is the caller's question.
    pub fn verify(&self) -> Result<(), BadSignature> {
        if key_id(&self.public_key) != self.key_id {
            return Err(BadSignature);
        }
        let key = VerifyingKey::from_bytes(&self.public_key.0).map_err(|_| BadSignature)?;
        let signature = Signature::from_bytes(&self.signature.0);
        key.verify_strict(&self.statement().bytes(self.key_id), &signature).map_err(|_| BadSignature)
    }
}

/// The stream of a node's checkpoints. Refuses what cannot be a node's name.
pub fn stream(node: &str) -> Result<StreamName, StreamNameError> {
    format!("checkpoint-{node}").parse()
}

/// What can happen in the stream of checkpoints. Names and meanings are public and permanent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum CheckpointEvent {
    /// A checkpoint was signed.
    CheckpointSigned(Box<Checkpoint>),
}

impl CheckpointEvent {
    /// Every name [`kind`](Self::kind) can return.
    pub const KINDS: &'static [&'static str] = &["checkpoint-signed"];

    /// The stable name in the envelope's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::CheckpointSigned(_) => "checkpoint-signed",
        }
    }

    /// The `data` of the envelope.
    pub fn data(&self) -> Result<Box<RawValue>, serde_json::Error> {
        match self {
            Self::CheckpointSigned(checkpoint) => to_raw_value(checkpoint),
        }
    }

    /// Reads an event back from its envelope. `None`: a type this version does not know.
    pub fn decode(envelope: &crate::Envelope) -> Result<Option<Self>, DecodeError> {
        crate::json::decode("checkpoint", Self::KINDS, envelope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement() -> Statement {
        Statement {
            log: Digest([1; 32]),
            position: Position(7),
            link: Digest([2; 32]),
            time: "2026-11-22T10:00:00.123456Z".parse().unwrap(),
        }
    }

    #[test]
    fn only_the_statement_that_was_signed_verifies() {
        let key = SigningKey::from_bytes(&[9; 32]);
        let good = statement().sign(&key);
        assert_eq!(good.verify(), Ok(()));
        assert_eq!(good.statement(), statement());
        let other = SigningKey::from_bytes(&[8; 32]);
        let foreign = statement().sign(&other);
        assert_eq!(foreign.verify(), Ok(()), "by another key, and it says so");
        assert_ne!(foreign.key_id, good.key_id);
        let wrong = [
            Checkpoint { log_id: Hex([3; 32]), ..good },
            Checkpoint { position: 8, ..good },
            Checkpoint { global_link: Hex([3; 32]), ..good },
            Checkpoint { time: "2026-11-22T10:00:00.123457Z".parse().unwrap(), ..good },
            Checkpoint { key_id: foreign.key_id, ..good },
            Checkpoint { public_key: foreign.public_key, ..good },
            Checkpoint { public_key: foreign.public_key, key_id: foreign.key_id, ..good },
            Checkpoint { signature: foreign.signature, ..good },
        ];
        for wrong in wrong {
            assert_eq!(wrong.verify(), Err(BadSignature), "{wrong:?}");
        }
    }

    #[test]
    fn no_bit_of_a_signature_can_change() {
        let good = statement().sign(&SigningKey::from_bytes(&[9; 32]));
        for bit in 0..512 {
            let mut wrong = good;
            wrong.signature.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(wrong.verify(), Err(BadSignature), "bit {bit}");
        }
    }

    #[test]
    fn the_signed_bytes_and_the_json_stay_as_they_are() {
        let key = SigningKey::from_bytes(&[9; 32]);
        let checkpoint = statement().sign(&key);
        assert_eq!(statement().bytes(checkpoint.key_id).len(), 23 + 32 + 8 + 32 + 8 + 4 + 16);
        let hash: [u8; 32] = Sha256::digest(statement().bytes(checkpoint.key_id)).into();
        insta::assert_snapshot!(Hex(hash), @"4ec3c22e9fe025e7d1012e37516a93698624e7e1bf6879e09c0fc0ccd9496f94");
        insta::assert_snapshot!(serde_json::to_string(&checkpoint).unwrap(), @r#"{"logId":"0101010101010101010101010101010101010101010101010101010101010101","position":7,"globalLink":"0202020202020202020202020202020202020202020202020202020202020202","time":"2026-11-22T10:00:00.123456Z","keyId":"dbc298251c51321b7266e78d1c151c2b","publicKey":"fd1724385aa0c75b64fb78cd602fa1d991fdebf76b13c58ed702eac835e9f618","signature":"61ad77f6956c8d5c281cabc01cfed3082f3fcc0809ba3dd761e37ad0bd199fbed3028e30a45dbd6f958dac543eccbf325d0aab123b826989eeeb22580c64d208"}"#);
    }
}
