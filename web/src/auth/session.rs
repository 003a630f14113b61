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
        let value = random_hex()?;
        let now = Instant::now();
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
        let now = Instant::now();
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
