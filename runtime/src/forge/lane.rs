//! One thing created at a time, per forge and token, with a pause between two.
//!
//! Forges count what a token creates (pull requests, comments, labels, lights) and block tokens that create too fast, for
//! hours and without a header that says so. GitHub asks for one request at a time and a second between them; with that,
//! campaigns that open hundreds of pull requests get through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Lanes kept at once: one per token that created something lately. More tokens share one lane.
pub(super) const MAX_LANES: usize = 1024;
/// Requests that may wait in one lane; more are told to come again.
pub(super) const MAX_WAITING: usize = 512;
/// How long a request may wait for its turn: 512 turns of a second.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

/// Whose turn it is: a digest of the interface's address and the token, so that no token is kept here.
type Key = [u8; 32];

struct Lane {
    turn: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<Instant>,
    closed_until: Option<Instant>,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            state: Mutex::default(),
        }
    }
}

/// All lanes of a server.
#[derive(Default)]
pub(super) struct Lanes(Mutex<HashMap<Key, Arc<Lane>>>);

/// A turn: while it is held, nobody else creates anything with that token.
pub(super) struct Turn {
    lane: Arc<Lane>,
    _place: OwnedSemaphorePermit,
    _turn: OwnedSemaphorePermit,
}

/// Too many wait, or the forge closed this lane for longer than anybody waits here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Crowded {
    pub retry_after: Duration,
}

impl Lanes {
    /// Waits for a turn, and then until `gap` has passed since the last one. A lane that the forge has closed for longer
    /// than `patience` refuses at once.
    pub(super) async fn turn(
        &self,
        origin: &str,
        token: Option<&SecretString>,
        gap: Duration,
        patience: Duration,
    ) -> Result<Turn, Crowded> {
        let lane = self.lane(key(origin, token));
        let crowded = || Crowded { retry_after: Duration::from_secs(60) };
        let place = Arc::clone(&lane.waiting).try_acquire_owned().map_err(|_| crowded())?;
        let turn = tokio::time::timeout(LONGEST_WAIT, Arc::clone(&lane.turn).acquire_owned())
            .await
            .map_err(|_| crowded())?
            .map_err(|_| crowded())?;
        let now = Instant::now();
        let (last, closed_until) = {
            let state = lane.state.lock().unwrap_or_else(PoisonError::into_inner);
            (state.last, state.closed_until)
        };
        if let Some(closed) = closed_until.map(|until| until.saturating_duration_since(now)).filter(|t| *t > patience) {
            return Err(Crowded { retry_after: closed });
        }
        if let Some(until) = last.map(|last| last + gap).max(closed_until) {
            tokio::time::sleep_until(until).await;
        }
        lane.state.lock().unwrap_or_else(PoisonError::into_inner).last = Some(Instant::now());
        Ok(Turn { lane, _place: place, _turn: turn })
    }

    fn lane(&self, key: Key) -> Arc<Lane> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= MAX_LANES && !lanes.contains_key(&key) {
            let now = Instant::now();
            lanes.retain(|_, lane| {
                let state = lane.state.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::strong_count(lane) > 1 || state.closed_until.is_some_and(|until| until > now)
            });
        }
        let key = if lanes.len() < MAX_LANES || lanes.contains_key(&key) { key } else { Key::default() };
        Arc::clone(lanes.entry(key).or_default())
    }
}

impl Turn {
    /// The forge asked to wait so long: nobody with this token creates anything before.
    pub(super) fn close_for(&self, wait: Duration) {
        let mut state = self.lane.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed_until = state.closed_until.max(Some(Instant::now() + wait));
    }
}

fn key(origin: &str, token: Option<&SecretString>) -> Key {
    let mut digest = Sha256::new();
    digest.update(origin.as_bytes());
    digest.update([0]);
    digest.update(token.map(|token| token.expose_secret().trim()).unwrap_or_default().as_bytes());
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_millis(60);
    const PATIENCE: Duration = Duration::from_millis(500);

    async fn turn(lanes: &Lanes, token: &str) -> Result<Turn, Crowded> {
        lanes.turn("https://api.example", Some(&SecretString::from(token)), GAP, PATIENCE).await
    }

    #[tokio::test]
    async fn one_token_creates_one_thing_at_a_time_with_a_pause_between() {
        let lanes = Lanes::default();
        let start = Instant::now();
        let first = turn(&lanes, "a").await.expect("a turn");
        // Another token has its own lane: if it had not, this would wait for ever.
        drop(turn(&lanes, "b").await.expect("a turn"));
        let waits = tokio::time::timeout(GAP * 3, turn(&lanes, "a")).await;
        assert!(waits.is_err(), "the first turn is still held");
        drop(first);
        for _ in 0..3 {
            drop(turn(&lanes, "a").await.expect("a turn"));
        }
        assert!(start.elapsed() >= GAP * 5, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn what_the_forge_closed_stays_closed_for_everybody_with_that_token() {
        let lanes = Lanes::default();
        turn(&lanes, "a").await.expect("a turn").close_for(GAP * 4);
        let start = Instant::now();
        turn(&lanes, "a").await.expect("a turn").close_for(Duration::from_secs(3600));
        assert!(start.elapsed() >= GAP * 3, "{:?}", start.elapsed());
        let refused = turn(&lanes, "a").await.err().expect("an hour is not waited for");
        assert!(refused.retry_after > Duration::from_secs(3500), "{refused:?}");
        turn(&lanes, "b").await.expect("another token goes on");
    }

    #[tokio::test]
    async fn lanes_are_bounded_and_the_idle_ones_go() {
        let lanes = Lanes::default();
        for number in 0..MAX_LANES + 10 {
            drop(turn(&lanes, &number.to_string()).await.expect("a turn"));
        }
        assert!(lanes.0.lock().expect("unpoisoned").len() <= MAX_LANES);
    }
}
