//! Links that sign in once: the command line asks for one on behalf of a key's holder and prints it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use sha2::{Digest, Sha256};

use super::Caller;
use super::keys::random_hex;

/// Tickets that are open at the same time; when there are more, the one nearest its end goes.
pub const MAX_TICKETS: usize = 1_000;
/// How long a ticket can be used: long enough to find the window with the link in it.
pub const LIFETIME: Duration = Duration::from_secs(10 * 60);

struct Ticket {
    caller: Caller,
    ends: Instant,
}

/// The open tickets, by the hash of their text.
#[derive(Default)]
pub struct Tickets {
    open: Mutex<HashMap<[u8; 32], Ticket>>,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

impl Tickets {
    /// Makes a ticket; `/sign-in/{ticket}` signs in with it, once. `None`: the system has no randomness.
    pub fn issue(&self, caller: Caller) -> Option<SecretString> {
        self.issue_at(caller, Instant::now())
    }

    /// Whose ticket this is. It is worth nothing afterwards.
    pub fn redeem(&self, ticket: &str) -> Option<Caller> {
        self.redeem_at(ticket, Instant::now())
    }

    fn issue_at(&self, caller: Caller, now: Instant) -> Option<SecretString> {
        let text = random_hex()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_TICKETS {
            open.retain(|_, ticket| ticket.ends > now);
        }
        if open.len() >= MAX_TICKETS {
            let oldest = open.iter().min_by_key(|(_, ticket)| ticket.ends).map(|(hash, _)| *hash);
            oldest.map(|oldest| open.remove(&oldest));
        }
        open.insert(hash(&text), Ticket { caller, ends: now + LIFETIME });
        Some(text.into())
    }

    fn redeem_at(&self, ticket: &str, now: Instant) -> Option<Caller> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&hash(ticket)).filter(|ticket| ticket.ends > now).map(|ticket| ticket.caller)
    }
}

#[cfg(test)]
mod tests {
    use orchestra_events::KeyId;
    use secrecy::ExposeSecret as _;
    use uuid::Uuid;

    use super::*;
    use crate::auth::caller::{Via, Who};

    fn caller() -> Caller {
        let key = KeyId::from_uuid(Uuid::from_u128(1));
        Caller { via: Via::Key, ..Caller::named(Who::Key(key), "Ada") }
    }

    #[test]
    fn a_ticket_works_once() {
        let tickets = Tickets::default();
        let ticket = tickets.issue(caller()).expect("randomness");
        assert_eq!(tickets.redeem("something else"), None);
        assert_eq!(tickets.redeem(ticket.expose_secret()), Some(caller()));
        assert_eq!(tickets.redeem(ticket.expose_secret()), None);
    }

    #[test]
    fn a_ticket_ends_and_there_are_never_too_many() {
        let tickets = Tickets::default();
        let now = Instant::now();
        let late = tickets.issue_at(caller(), now).expect("randomness");
        assert_eq!(tickets.redeem_at(late.expose_secret(), now + LIFETIME), None);
        let first = tickets.issue_at(caller(), now).expect("randomness");
        for second in 1..=MAX_TICKETS as u64 {
            tickets.issue_at(caller(), now + Duration::from_millis(second)).expect("randomness");
        }
        assert_eq!(tickets.redeem_at(first.expose_secret(), now), None);
        assert!(tickets.open.lock().expect("not poisoned").len() <= MAX_TICKETS);
    }
}
