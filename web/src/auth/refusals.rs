//! What was refused, taken down: each kind of refusal at once, and what follows within a minute as one count.
//!
//! Nobody can fill the log by being refused: kinds are counted together, there are so many of them at a time and no more,
//! and of callers whom nobody knows fewer still. What does not fit is one count under `*`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::access::{ACCESS_DENIED, AccessDenied, SCHEMA, UNKNOWN_CALLER};
use orchestra_events::{Actor, EventId, EventStore, Expected, NewEvent, Origin, StoreError, StreamName};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Caller, Who};

/// How long refusals of one kind are counted together.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Kinds of refusals of known callers that are counted at a time.
pub const MAX_KNOWN: usize = 1_000;
/// The same of callers whom nobody knows.
pub const MAX_UNKNOWN: usize = 30;
/// Refusals that may wait to be written. What does not fit is in the count that is written when their minute is over.
const QUEUE: usize = 256;
/// How often minutes that are over are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// A refusal.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Who was refused. `None`: somebody whom nobody knows.
    pub caller: Option<Caller>,
    /// From where.
    pub address: Option<IpAddr>,
    /// With which program, by its own word.
    pub user_agent: Option<String>,
    /// The method.
    pub method: String,
    /// The path with its parameters unfilled.
    pub route: String,
    /// The code of the answer.
    pub code: &'static str,
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    who: Option<Who>,
    /// Of callers whom nobody knows.
    address: Option<IpAddr>,
    method: String,
    route: String,
    code: &'static str,
}

/// A refusal as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    actor: Actor,
    denied: AccessDenied,
}

struct Window {
    opened: Timestamp,
    /// With the count of what was not written yet.
    entry: Entry,
}

/// What was refused within the last minute.
#[derive(Default)]
struct Tally {
    windows: HashMap<Kind, Window>,
    unknown: usize,
    overflow: Option<Window>,
}

impl Tally {
    /// Takes a refusal in. What is returned is to be written now.
    fn note(&mut self, refused: Refused, now: Timestamp) -> Option<(Kind, Entry)> {
        let Refused { caller, address, user_agent, method, route, code } = refused;
        let who = caller.as_ref().map(|caller| caller.who.clone());
        let nobody = who.is_none();
        let kind = Kind { who, address: address.filter(|_| nobody), method, route, code };
        if let Some(window) = self.windows.get_mut(&kind) {
            count(&mut window.entry.denied, now);
            return None;
        }
        let known = self.windows.len() - self.unknown;
        let full = if nobody { self.unknown >= MAX_UNKNOWN } else { known >= MAX_KNOWN };
        let actor = caller.as_ref().map_or_else(
            || Actor {
                origin: Origin { address, user_agent: user_agent.clone(), ..Origin::default() }.known(),
                ..Actor::system(UNKNOWN_CALLER)
            },
            Caller::actor,
        );
        let denied = AccessDenied {
            method: kind.method.clone(),
            route: kind.route.clone(),
            code: code.to_owned(),
            address,
            user_agent,
            count: 0,
            since: now,
            until: now,
        };
        if full {
            let nothing = || Window {
                opened: now,
                entry: Entry {
                    actor: Actor::system(UNKNOWN_CALLER),
                    denied: AccessDenied {
                        method: "*".to_owned(),
                        route: "*".to_owned(),
                        code: "*".to_owned(),
                        address: None,
                        user_agent: None,
                        ..denied.clone()
                    },
                },
            };
            count(&mut self.overflow.get_or_insert_with(nothing).entry.denied, now);
            return None;
        }
        self.unknown += usize::from(nobody);
        let entry = Entry { actor, denied };
        self.windows.insert(kind.clone(), Window { opened: now, entry: entry.clone() });
        let denied = AccessDenied { count: 1, ..entry.denied };
        Some((kind, Entry { denied, ..entry }))
    }

    /// What could not be written at once is counted to what is written later.
    fn put_back(&mut self, kind: &Kind, now: Timestamp) {
        if let Some(window) = self.windows.get_mut(kind) {
            count(&mut window.entry.denied, now);
        }
    }

    /// Closes the windows that are over (or all), and gives back what is to be written of them.
    fn close(&mut self, now: Timestamp, all: bool) -> Vec<Entry> {
        let over = |window: &Window| all || now.duration_since(window.opened).unsigned_abs() >= WINDOW;
        let mut closed = Vec::new();
        self.windows.retain(|kind, window| {
            let over = over(window);
            if over {
                self.unknown -= usize::from(kind.who.is_none());
                closed.push(window.entry.clone());
            }
            !over
        });
        if let Some(window) = self.overflow.take_if(|window| over(window)) {
            closed.push(window.entry);
        }
        closed.retain(|entry| entry.denied.count > 0);
        closed
    }
}

fn count(denied: &mut AccessDenied, now: Timestamp) {
    if denied.count == 0 {
        denied.since = now;
    }
    denied.count += 1;
    denied.until = now;
}

/// What was refused, on its way into the log.
#[derive(Default)]
pub struct Refusals {
    tally: Mutex<Tally>,
    writer: OnceLock<mpsc::Sender<Entry>>,
}

impl Refusals {
    /// Takes a refusal down. Never waits. Without [`write_refusals`] running, nothing is kept.
    pub fn record(&self, refused: Refused) {
        let Some(writer) = self.writer.get() else { return };
        let now = Timestamp::now();
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kind, entry)) = tally.note(refused, now)
            && writer.try_send(entry).is_err()
        {
            tally.put_back(&kind, now);
        }
    }

    fn close(&self, all: bool) -> Vec<Entry> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).close(Timestamp::now(), all)
    }
}

async fn write(store: &dyn EventStore, Entry { actor, denied }: Entry) -> Result<(), StoreError> {
    let stream = StreamName::access(actor.team.as_deref());
    let event = NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: ACCESS_DENIED.into(),
        schema: SCHEMA,
        time: denied.until,
        actor,
        correlation: None,
        causation: None,
        data: denied.data().map_err(|error| StoreError::Failed(error.to_string()))?,
        private: None,
    };
    store.append(&stream, Expected::Any, vec![event]).await.map(drop)
}

/// Writes refusals into the log until `cancel` resolves, and then what is still counted.
pub async fn write_refusals(refusals: Arc<Refusals>, store: Arc<dyn EventStore>, cancel: impl Future<Output = ()>) {
    let (to, mut entries) = mpsc::channel(QUEUE);
    if refusals.writer.set(to).is_err() {
        tracing::warn!("refusals are written already");
        return;
    }
    let mut cancel = std::pin::pin!(cancel);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (due, ends) = tokio::select! {
            () = &mut cancel => {
                let mut due = Vec::new();
                while let Ok(entry) = entries.try_recv() {
                    due.push(entry);
                }
                due.extend(refusals.close(true));
                (due, true)
            }
            entry = entries.recv() => (entry.into_iter().collect(), false),
            _ = look.tick() => (refusals.close(false), false),
        };
        for entry in due {
            if let Err(error) = write(&*store, entry).await {
                tracing::warn!("a refusal could not be written down: {error}");
            }
        }
        if ends {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use orchestra_events::KeyId;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn known(number: u128) -> Option<Caller> {
        Some(Caller {
            team: Some("platform".to_owned()),
            ..Caller::named(Who::Key(KeyId::from_uuid(Uuid::from_u128(number))), "ci")
        })
    }

    fn refused(caller: Option<Caller>, address: &str, route: &str) -> Refused {
        Refused {
            caller,
            address: Some(address.parse().expect("an address")),
            user_agent: Some("curl/8".to_owned()),
            method: "GET".to_owned(),
            route: route.to_owned(),
            code: "forbidden",
        }
    }

    #[test]
    fn the_first_is_written_at_once_and_the_rest_of_its_minute_as_one() {
        let mut tally = Tally::default();
        let (_, first) = tally.note(refused(known(1), "192.0.2.1", "/v1/keys"), at(0)).expect("the first");
        assert_eq!((first.denied.count, first.denied.since), (1, at(0)));
        assert_eq!(first.actor.team.as_deref(), Some("platform"));
        for second in 1..=5 {
            // Another address is the same caller.
            assert!(tally.note(refused(known(1), "192.0.2.2", "/v1/keys"), at(second)).is_none());
        }
        assert!(tally.note(refused(known(1), "192.0.2.1", "/v1/tasks"), at(6)).is_some(), "another route");
        assert!(tally.note(refused(known(2), "192.0.2.1", "/v1/keys"), at(6)).is_some(), "another caller");
        assert_eq!(tally.close(at(59), false), []);
        let closed = tally.close(at(60), false);
        assert_eq!(closed.len(), 1);
        let denied = &closed[0].denied;
        assert_eq!((denied.count, denied.since, denied.until), (5, at(1), at(5)));
        assert_eq!(tally.close(at(200), false), [], "what was written at once is not written again");
        assert!(tally.note(refused(known(1), "192.0.2.1", "/v1/keys"), at(201)).is_some(), "a new minute");
    }

    #[test]
    fn whoever_is_refused_without_end_does_not_fill_the_log() {
        let mut tally = Tally::default();
        let mut written = 0;
        for number in 0..10_000_u32 {
            let address = IpAddr::from(number.to_be_bytes()).to_string();
            written += u64::from(tally.note(refused(None, &address, "/v1/tasks"), at(0)).is_some());
        }
        assert_eq!(written, MAX_UNKNOWN as u64);
        assert!(tally.note(refused(known(1), "192.0.2.1", "/v1/tasks"), at(1)).is_some(), "who is known has room");
        let closed = tally.close(at(60), false);
        assert_eq!(closed.len(), 1, "all others are one");
        assert_eq!((&*closed[0].denied.route, closed[0].denied.count), ("*", 10_000 - MAX_UNKNOWN as u64));
        for number in 0..2 * MAX_KNOWN as u128 {
            written += u64::from(tally.note(refused(known(number + 10), "192.0.2.1", "/v1/x"), at(61)).is_some());
            assert!(tally.windows.len() <= MAX_KNOWN + MAX_UNKNOWN);
        }
        assert!(written < (MAX_KNOWN + MAX_UNKNOWN) as u64 + 1);
    }
}
