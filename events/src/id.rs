//! Typed ids: what a user sees (`task_01k…`), and the stream each one names (`task-0198…`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An id that does not parse. The text says which kind was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a {kind} id: expected {kind}_ and 26 characters of 0-9 and a-z without i, l, o and u")]
pub struct ParseIdError {
    kind: &'static str,
    given: String,
}

/// Crockford's base 32 in lower case: no i, l, o, u, and it sorts like the number it encodes.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 128 bits in base 32 need 26 digits; the first carries only three bits.
const DIGITS: usize = 26;

fn encode(id: Uuid) -> [u8; DIGITS] {
    let mut rest = id.as_u128();
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest & 31) as usize];
        rest >>= 5;
    }
    digits
}

fn decode(digits: &str) -> Option<Uuid> {
    let digits = digits.as_bytes();
    if digits.len() != DIGITS || digits[0] > b'7' {
        return None;
    }
    digits
        .iter()
        .try_fold(0u128, |number, digit| {
            let value = ALPHABET.iter().position(|known| known == digit)?;
            Some((number << 5) | value as u128)
        })
        .map(Uuid::from_u128)
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID (version 7, so that ids sort by creation).
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            /// The UUID inside.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let digits = encode(self.0);
                let digits = std::str::from_utf8(&digits).map_err(|_| fmt::Error)?;
                write!(f, concat!($kind, "_{}"), digits)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(given: &str) -> Result<Self, ParseIdError> {
                given
                    .strip_prefix(concat!($kind, "_"))
                    .and_then(decode)
                    .map(Self)
                    .ok_or_else(|| ParseIdError { kind: $kind, given: given.chars().take(64).collect() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

typed_id!(
    /// A task.
    TaskId,
    "task"
);
typed_id!(
    /// An API key (its public half; the secret half is never stored).
    KeyId,
    "key"
);
typed_id!(
    /// A webhook: where events are sent.
    WebhookId,
    "webhook"
);
typed_id!(
    /// A person's session at the dashboard.
    SessionId,
    "session"
);
typed_id!(
    /// A campaign: one task over many repositories.
    CampaignId,
    "campaign"
);
typed_id!(
    /// One call to a model: the reservation, the request and the charge share it.
    CallId,
    "call"
);
typed_id!(
    /// One sandbox: its directory, control group and namespaces carry this name.
    SandboxId,
    "sbx"
);

/// The id of one event, the key by which an append is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub Uuid);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A git object id in lower-case hexadecimal (40 characters for SHA-1, 64 for SHA-256).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId(String);

impl CommitId {
    /// The hexadecimal text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for CommitId {
    type Error = ParseCommitIdError;

    fn try_from(text: String) -> Result<Self, ParseCommitIdError> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if matches!(text.len(), 40 | 64) && text.bytes().all(hex) { Ok(Self(text)) } else { Err(ParseCommitIdError) }
    }
}

impl From<CommitId> for String {
    fn from(id: CommitId) -> Self {
        id.0
    }
}

/// A text that is not a git object id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a git object id: expected 40 or 64 lower-case hexadecimal digits")]
pub struct ParseCommitIdError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_sort_like_their_uuids() {
        let low = TaskId::from_uuid(Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001));
        let high = TaskId::from_uuid(Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0002));
        assert_eq!(low.to_string().parse::<TaskId>(), Ok(low));
        assert!(low.to_string() < high.to_string());
        assert_eq!(TaskId::from_uuid(Uuid::max()).to_string().parse::<TaskId>(), Ok(TaskId::from_uuid(Uuid::max())));
    }

    #[test]
    fn a_wrong_id_says_what_was_expected() {
        for wrong in ["", "task_", "key_00000000000000000000000000", "task_8zzzzzzzzzzzzzzzzzzzzzzzzz", "task_l"] {
            let refused = wrong.parse::<TaskId>().expect_err(wrong);
            assert!(refused.to_string().contains("task id"), "{refused}");
        }
    }
}
