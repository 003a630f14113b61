//! What is known about a key, and what can be asked of it.

use std::net::IpAddr;

use jiff::Timestamp;

use super::event::{KeyEvent, KeyGrant};

/// A key as its events tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// What it is and may do. The hash in it is that of the text that is handed out now.
    pub grant: KeyGrant,
    /// The text before it, while it works.
    pub previous: Option<Previous>,
    /// How often it was rotated.
    pub generation: u32,
    /// When it was last known to be used.
    pub last_use: Option<LastUse>,
    /// It is worth nothing any more.
    pub revoked: bool,
}

/// A text that was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    /// Its SHA-256 in lower-case hexadecimal.
    pub secret_sha256: String,
    /// From when on it is worth nothing.
    pub until: Timestamp,
}

/// A use of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastUse {
    /// When.
    pub at: Timestamp,
    /// From where, as far as that is known.
    pub address: Option<IpAddr>,
}

impl Key {
    /// Whether it has run out.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.grant.expires_at.is_some_and(|end| now >= end)
    }

    /// Whether it is worth anything.
    pub fn stands(&self, now: Timestamp) -> bool {
        !self.revoked && !self.expired(now)
    }

    /// How long the text of a generation is worth something, if it is: `Some(None)` stands for "until something happens".
    pub fn lasts(&self, generation: u32, now: Timestamp) -> Option<Option<Timestamp>> {
        if !self.stands(now) {
            return None;
        }
        let own = self.grant.expires_at;
        if generation == self.generation {
            return Some(own);
        }
        let previous = self.previous.as_ref().filter(|previous| now < previous.until)?;
        (generation.checked_add(1) == Some(self.generation))
            .then(|| Some(own.map_or(previous.until, |own| own.min(previous.until))))
    }
}

/// Something asked of a key. Its uses are not asked for: they are noted as they happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Give it to somebody.
    Issue(Box<KeyGrant>),
    /// Give it a new text.
    Rotate {
        /// The SHA-256 of the new text.
        secret_sha256: String,
        /// Until when the text it has now works.
        previous_until: Timestamp,
        /// The time.
        now: Timestamp,
    },
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
    /// It was taken back.
    #[error("the key was revoked; issue another one")]
    Revoked,
    /// It has run out.
    #[error("the key has expired; issue another one")]
    Expired,
}

/// What the command makes happen, or why it does nothing.
pub fn decide(key: Option<&Key>, command: Command) -> Result<Vec<KeyEvent>, Refusal> {
    match (key, command) {
        (None, Command::Issue(grant)) => Ok(vec![KeyEvent::KeyIssued(grant)]),
        (Some(_), Command::Issue(_)) => Err(Refusal::Exists),
        (None, Command::Revoke | Command::Rotate { .. }) => Err(Refusal::NoSuchKey),
        // Taking back what was taken back changes nothing.
        (Some(Key { revoked: true, .. }), Command::Revoke) => Ok(Vec::new()),
        (Some(_), Command::Revoke) => Ok(vec![KeyEvent::KeyRevoked {}]),
        (Some(Key { revoked: true, .. }), Command::Rotate { .. }) => Err(Refusal::Revoked),
        (Some(key), Command::Rotate { now, .. }) if key.expired(now) => Err(Refusal::Expired),
        (Some(_), Command::Rotate { secret_sha256, previous_until, now: _ }) => {
            Ok(vec![KeyEvent::KeyRotated { secret_sha256, previous_until }])
        }
    }
}

/// The key after the event. Total: whatever happened is taken in.
pub fn evolve(key: Option<Key>, event: &KeyEvent) -> Option<Key> {
    match (key, event) {
        (None, KeyEvent::KeyIssued(grant)) => {
            Some(Key { grant: (**grant).clone(), previous: None, generation: 0, last_use: None, revoked: false })
        }
        (Some(key), KeyEvent::KeyRotated { secret_sha256, previous_until }) => Some(Key {
            previous: Some(Previous { secret_sha256: key.grant.secret_sha256, until: *previous_until }),
            grant: KeyGrant { secret_sha256: secret_sha256.clone(), ..key.grant },
            generation: key.generation.saturating_add(1),
            ..key
        }),
        (Some(key), KeyEvent::KeyUsed { at, address }) => {
            Some(Key { last_use: Some(LastUse { at: *at, address: *address }), ..key })
        }
        (Some(key), KeyEvent::KeyRevoked {}) => Some(Key { revoked: true, ..key }),
        (Some(key), KeyEvent::KeyIssued(_)) => Some(key),
        (None, KeyEvent::KeyRotated { .. } | KeyEvent::KeyUsed { .. } | KeyEvent::KeyRevoked {}) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Bounds, KeyLimits, Scope};

    fn grant() -> KeyGrant {
        KeyGrant {
            name: "ci".to_owned(),
            team: Some("platform".to_owned()),
            environment: "prod".to_owned(),
            scopes: vec![Scope::TasksCreate, Scope::TasksRead],
            secret_sha256: "00".repeat(32),
            bounds: Bounds::default(),
            expires_at: None,
            limits: KeyLimits::default(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn after(key: Option<Key>, command: Command) -> Key {
        decide(key.as_ref(), command).expect("allowed").iter().fold(key, evolve).expect("a key")
    }

    fn rotate(to: &str, until: i64, now: i64) -> Command {
        Command::Rotate { secret_sha256: to.repeat(32), previous_until: at(until), now: at(now) }
    }

    #[test]
    fn a_key_is_issued_once_and_revoked_for_good() {
        let key = after(None, Command::Issue(Box::new(grant())));
        assert!(!key.revoked);
        assert_eq!(decide(Some(&key), Command::Issue(Box::new(grant()))), Err(Refusal::Exists));
        let key = after(Some(key), Command::Revoke);
        assert!(key.revoked && !key.stands(at(0)));
        assert_eq!(decide(Some(&key), Command::Revoke), Ok(Vec::new()));
        assert_eq!(decide(Some(&key), rotate("11", 10, 0)), Err(Refusal::Revoked));
        assert!(evolve(Some(key), &KeyEvent::KeyIssued(Box::new(grant()))).is_some_and(|key| key.revoked));
        assert_eq!(decide(None, Command::Revoke), Err(Refusal::NoSuchKey));
    }

    #[test]
    fn the_text_before_a_rotation_works_until_its_time_and_older_ones_do_not() {
        let key = after(None, Command::Issue(Box::new(grant())));
        assert_eq!(key.lasts(0, at(0)), Some(None));
        let key = after(Some(key), rotate("11", 60, 0));
        assert_eq!(key.grant.secret_sha256, "11".repeat(32));
        assert_eq!(key.lasts(0, at(59)), Some(Some(at(60))));
        assert_eq!(key.lasts(0, at(60)), None, "at its time it is over");
        assert_eq!(key.lasts(1, at(60)), Some(None));
        let key = after(Some(key), rotate("22", 90, 10));
        assert_eq!(key.lasts(0, at(11)), None, "only the last but one works on");
        assert_eq!(key.lasts(1, at(11)), Some(Some(at(90))));
        assert_eq!(key.lasts(3, at(11)), None, "there is no such text yet");
        let key = after(Some(key), Command::Revoke);
        assert_eq!(key.lasts(2, at(11)), None);
    }

    #[test]
    fn a_key_runs_out() {
        let key = after(None, Command::Issue(Box::new(KeyGrant { expires_at: Some(at(100)), ..grant() })));
        assert_eq!(key.lasts(0, at(99)), Some(Some(at(100))));
        assert!(key.stands(at(99)) && !key.stands(at(100)));
        assert_eq!(decide(Some(&key), rotate("11", 200, 100)), Err(Refusal::Expired));
        let key = after(Some(key), rotate("11", 200, 50));
        assert_eq!(key.lasts(0, at(51)), Some(Some(at(100))), "an overlap does not outlive the key");
    }

    #[test]
    fn limits_are_handed_on_narrower_only() {
        let own = KeyLimits { requests_per_minute: Some(60), burst: Some(10), concurrent_tasks: Some(5) };
        assert!(own.within(&own) && own.within(&KeyLimits::default()) && !KeyLimits::default().within(&own));
        assert!(!KeyLimits { burst: None, ..own }.within(&own), "without a burst of its own sixty come at once");
        assert!(!KeyLimits { concurrent_tasks: Some(6), ..own }.within(&own));
        assert!(KeyLimits { requests_per_minute: Some(6), burst: None, concurrent_tasks: Some(1) }.within(&own));
    }

    #[test]
    fn the_shape_of_the_events_is_fixed() {
        let hash = "00".repeat(32);
        let bare = format!(
            r#"{{"name":"ci","team":"platform","environment":"prod","scopes":["tasks:create","tasks:read"],"secretSha256":"{hash}"}}"#
        );
        let full = KeyGrant {
            bounds: Bounds {
                projects: vec!["infra".to_owned()],
                environments: vec!["prod".to_owned()],
                task_types: vec!["upgrade".to_owned()],
                repos: vec!["github:acme/*".parse().expect("a pattern")],
                models: vec!["claude-*".parse().expect("a pattern")],
                networks: vec!["10.0.0.0/8".parse().expect("a network")],
            },
            expires_at: Some(at(0)),
            limits: KeyLimits { requests_per_minute: Some(60), burst: Some(10), concurrent_tasks: Some(5) },
            ..grant()
        };
        let with_all = format!(
            r#"{},"bounds":{{"projects":["infra"],"environments":["prod"],"taskTypes":["upgrade"],"repos":["github:acme/*"],"models":["claude-*"],"networks":["10.0.0.0/8"]}},"expiresAt":"2027-01-15T08:00:00Z","limits":{{"requestsPerMinute":60,"burst":10,"concurrentTasks":5}}}}"#,
            &bare[..bare.len() - 1]
        );
        let rotated = KeyEvent::KeyRotated { secret_sha256: hash.clone(), previous_until: at(60) };
        let used = KeyEvent::KeyUsed { at: at(0), address: Some("10.0.0.1".parse().expect("an address")) };
        for (event, shape) in [
            (KeyEvent::KeyIssued(Box::new(grant())), bare),
            (KeyEvent::KeyIssued(Box::new(full)), with_all),
            (rotated, format!(r#"{{"secretSha256":"{hash}","previousUntil":"2027-01-15T08:01:00Z"}}"#)),
            (used, r#"{"at":"2027-01-15T08:00:00Z","address":"10.0.0.1"}"#.to_owned()),
            (KeyEvent::KeyUsed { at: at(0), address: None }, r#"{"at":"2027-01-15T08:00:00Z"}"#.to_owned()),
            (KeyEvent::KeyRevoked {}, "{}".to_owned()),
        ] {
            assert_eq!(event.data().expect("JSON").get(), shape);
            let whole = format!(r#"{{"type":"{}","data":{shape}}}"#, event.kind());
            assert_eq!(serde_json::from_str::<KeyEvent>(&whole).expect("an event"), event);
            assert!(KeyEvent::KINDS.contains(&event.kind()));
        }
    }
}
