//! Dashboard sessions: in memory, bounded, expiring. A restart signs everybody out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Caller;
use super::keys::random_hex;

/// The cookie that carries a session.
pub const COOKIE: &str = "orchestra_session";
/// Sessions kept at the same time; when there are more, the one nearest its end goes.
pub const MAX_SESSIONS: usize = 10_000;
/// How long a session lasts without use.
pub const IDLE: Duration = Duration::from_secs(12 * 60 * 60);

struct Session {
    caller: Caller,
    ends: Instant,
}

/// Who is signed in.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<HashMap<String, Session>>,
}

impl Sessions {
    /// Signs the caller in; the value goes into the cookie. `None`: the system has no randomness.
    pub fn start(&self, caller: Caller) -> Option<String> {
        self.start_at(caller, Instant::now())
    }

    fn start_at(&self, caller: Caller, now: Instant) -> Option<String> {
        let value = random_hex()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_SESSIONS {
            open.retain(|_, session| session.ends > now);
        }
        if open.len() >= MAX_SESSIONS {
            let oldest = open.iter().min_by_key(|(_, session)| session.ends).map(|(value, _)| value.clone());
            oldest.map(|oldest| open.remove(&oldest));
        }
        open.insert(value.clone(), Session { caller, ends: now + IDLE });
        Some(value)
    }

    /// Who came with this cookie; their session starts to run anew.
    pub fn find(&self, cookie: &str) -> Option<Caller> {
        self.find_at(cookie, Instant::now())
    }

    fn find_at(&self, cookie: &str, now: Instant) -> Option<Caller> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(cookie) {
            Some(session) if session.ends > now => {
                session.ends = now + IDLE;
                Some(session.caller.clone())
            }
            Some(_) => {
                open.remove(cookie);
                None
            }
            None => None,
        }
    }

    /// Signs out.
    pub fn end(&self, cookie: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(cookie);
    }
}

#[cfg(test)]
mod tests {
    use orchestra_events::KeyId;
    use uuid::Uuid;

    use super::*;
    use crate::auth::caller::{Via, Who};

    fn caller() -> Caller {
        let key = KeyId::from_uuid(Uuid::from_u128(1));
        Caller { via: Via::Session, ..Caller::named(Who::Key(key), "Ada") }
    }

    #[test]
    fn a_session_lasts_while_it_is_used_and_ends_when_it_is_not() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let value = sessions.start_at(caller(), now).expect("randomness");
        let later = now + IDLE - Duration::from_secs(1);
        assert_eq!(sessions.find_at(&value, later), Some(caller()));
        assert_eq!(sessions.find_at(&value, later + IDLE - Duration::from_secs(1)), Some(caller()));
        assert_eq!(sessions.find_at(&value, later + IDLE + IDLE), None);
        assert_eq!(sessions.find_at(&value, now), None, "what has ended stays ended");
    }

    #[test]
    fn signing_out_ends_it_and_there_are_never_too_many() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let first = sessions.start_at(caller(), now).expect("randomness");
        for second in 1..=MAX_SESSIONS as u64 {
            sessions.start_at(caller(), now + Duration::from_millis(second)).expect("randomness");
        }
        assert_eq!(sessions.find_at(&first, now), None, "the one nearest its end went");
        let last = sessions.start_at(caller(), now).expect("randomness");
        sessions.end(&last);
        assert_eq!(sessions.find_at(&last, now), None);
    }
}
