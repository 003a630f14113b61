//! What is known about a key, and what can be asked of it.

use super::event::{KeyEvent, KeyGrant};

/// A key as its events tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// What it is and may do.
    pub grant: KeyGrant,
    /// It is worth nothing any more.
    pub revoked: bool,
}

/// Something asked of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Give it to somebody.
    Issue(KeyGrant),
    /// Take it back.
    Revoke,
}

/// Why a command does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such key.
    #[error("there is no such key")]
    NoSuchKey,
    /// There is one of that id already.
    #[error("the key exists already")]
    Exists,
}

/// What the command makes happen, or why it does nothing.
pub fn decide(key: Option<&Key>, command: Command) -> Result<Vec<KeyEvent>, Refusal> {
    match (key, command) {
        (None, Command::Issue(grant)) => Ok(vec![KeyEvent::KeyIssued(grant)]),
        (Some(_), Command::Issue(_)) => Err(Refusal::Exists),
        (None, Command::Revoke) => Err(Refusal::NoSuchKey),
        // Taking back what was taken back changes nothing.
        (Some(Key { revoked: true, .. }), Command::Revoke) => Ok(Vec::new()),
        (Some(_), Command::Revoke) => Ok(vec![KeyEvent::KeyRevoked {}]),
    }
}

/// The key after the event. Total: whatever happened is taken in.
pub fn evolve(key: Option<Key>, event: &KeyEvent) -> Option<Key> {
    match (key, event) {
        (None, KeyEvent::KeyIssued(grant)) => Some(Key { grant: grant.clone(), revoked: false }),
        (Some(key), KeyEvent::KeyRevoked {}) => Some(Key { revoked: true, ..key }),
        (key, KeyEvent::KeyIssued(_) | KeyEvent::KeyRevoked {}) => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Scope;

    fn grant() -> KeyGrant {
        KeyGrant {
            name: "ci".to_owned(),
            team: Some("platform".to_owned()),
            environment: "prod".to_owned(),
            scopes: vec![Scope::TasksCreate, Scope::TasksRead],
            secret_sha256: "00".repeat(32),
        }
    }

    #[test]
    fn a_key_is_issued_once_and_revoked_for_good() {
        let issued = decide(None, Command::Issue(grant())).expect("a new key");
        let key = issued.iter().fold(None, evolve).expect("a key");
        assert!(!key.revoked);
        assert_eq!(decide(Some(&key), Command::Issue(grant())), Err(Refusal::Exists));
        let revoked = decide(Some(&key), Command::Revoke).expect("a revocation");
        let key = revoked.iter().fold(Some(key), evolve).expect("a key");
        assert!(key.revoked);
        assert_eq!(decide(Some(&key), Command::Revoke), Ok(Vec::new()));
        assert!(evolve(Some(key), &KeyEvent::KeyIssued(grant())).is_some_and(|key| key.revoked));
    }

    #[test]
    fn the_shape_of_the_events_is_fixed() {
        let data = KeyEvent::KeyIssued(grant()).data().expect("JSON");
        assert_eq!(
            data.get(),
            format!(
                r#"{{"name":"ci","team":"platform","environment":"prod","scopes":["tasks:create","tasks:read"],"secretSha256":"{}"}}"#,
                "00".repeat(32)
            )
        );
        assert_eq!(KeyEvent::KeyRevoked {}.data().expect("JSON").get(), "{}");
    }
}
