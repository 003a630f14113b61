//! The key as the outside sees it: its state, and when what happened to it. Its secret's hash stays in the state.

use jiff::Timestamp;

use super::event::KeyEvent;
use super::state::{Key, evolve};
use crate::envelope::{Envelope, Revision};
use crate::id::KeyId;

/// A key with its dates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyResource {
    /// Its id.
    pub id: KeyId,
    /// What it is and may do.
    pub key: Key,
    /// The last event folded in. An earlier one changes nothing: what is read twice happened once.
    pub revision: Revision,
    /// When it was issued.
    pub created_at: Timestamp,
    /// Who issued it: the id of a key, of a person or of a part of Orchestra.
    pub created_by: String,
    /// When it was last given a new text.
    pub rotated_at: Option<Timestamp>,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
}

impl KeyResource {
    /// The key after an event of its stream. `None`: its stream does not begin with its issue.
    pub fn fold(current: Option<Self>, id: KeyId, envelope: &Envelope, event: &KeyEvent) -> Option<Self> {
        let Some(current) = current else {
            return evolve(None, event).map(|key| Self {
                id,
                key,
                revision: envelope.revision,
                created_at: envelope.time,
                created_by: envelope.actor.id.clone(),
                rotated_at: None,
                revoked_at: None,
            });
        };
        if envelope.revision <= current.revision {
            return Some(current);
        }
        let revision = envelope.revision;
        let Self { key, created_at, created_by, mut rotated_at, mut revoked_at, .. } = current;
        match event {
            KeyEvent::KeyRotated { .. } => rotated_at = Some(envelope.time),
            KeyEvent::KeyRevoked {} => revoked_at = revoked_at.or(Some(envelope.time)),
            KeyEvent::KeyIssued(_) | KeyEvent::KeyUsed { .. } => {}
        }
        evolve(Some(key), event).map(|key| Self { id, key, revision, created_at, created_by, rotated_at, revoked_at })
    }
}
