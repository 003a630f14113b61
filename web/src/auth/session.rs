//! Dashboard sessions: folded from the log and kept up to date like the keys, so that a restart signs nobody out.
//!
//! A session is known by the hash of its cookie. How long it is over at the latest stands in its first event; that nobody
//! has used it for a while is known to this process alone, and becomes an event when it is noticed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orchestra_events::session::event::SCHEMA;
use orchestra_events::session::{
    Command, Grant, Holder, Membership, Refused, Session, SessionEnd, SessionEvent, Way, decide, evolve,
};
use orchestra_events::store::{Filter, MAX_PAGE, fold_stream};
use orchestra_events::{
    Actor, Envelope, EventId, EventStore, Expected, NewEvent, Position, Revision, SessionId, StoreError, StreamName,
};
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use uuid::Uuid;

use super::People;
use super::keys::{kept, random_hex, read_hash};

/// The cookie that carries a session where the dashboard is served without encryption.
pub const COOKIE: &str = "orchestra_session";
/// The same where it is encrypted: a browser takes such a name from this very host alone, for all paths, encrypted
/// (RFC 6265bis, section 4.1.3.2).
pub const SECURE_COOKIE: &str = "__Host-orchestra_session";
/// Sessions open at the same time; when there are more, one goes: of the same holder, else of the same team, else of the
/// team that has most; of those the one nearest its end.
pub const MAX_SESSIONS: usize = 10_000;
/// Of those, one holder's.
pub const MAX_PER_HOLDER: usize = 20;
/// Of those, one team's, and as many of the operators: a team that signs in without end crowds out itself alone.
pub const MAX_PER_TEAM: usize = 2_000;
/// The longest a session may be configured to last, and so how far back the log is read at the start.
pub const MAX_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How often it is looked which sessions nobody uses.
const SWEEP: Duration = Duration::from_secs(60);
/// The pause before the log is read again after it failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a change is tried again when another was faster.
const TRIES: usize = 5;
/// Failed sign-ins that are written down at once, and the time after which one more is. Anybody can fail, and the log is
/// for ever: what is beyond is counted.
const REFUSALS: u32 = 20;
const REFUSAL_PAUSE: Duration = Duration::from_secs(10);

/// How long sessions last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lasting {
    /// At the most.
    pub lifetime: Duration,
    /// Without being used.
    pub idle: Duration,
}

impl Default for Lasting {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(12 * 60 * 60), idle: Duration::from_secs(2 * 60 * 60) }
    }
}

/// Why a session could not be begun or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The session's own rules said no.
    #[error(transparent)]
    Refused(#[from] orchestra_events::session::Refusal),
    /// The system has no randomness to give.
    #[error("the system gave no random bytes")]
    NoRandomness,
    /// An event could not be written as JSON.
    #[error("a session event does not serialise: {0}")]
    Json(String),
}

/// Somebody who is let in.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Whose it is.
    pub holder: Holder,
    /// How they came in.
    pub way: Way,
    /// What they are called.
    pub name: String,
    /// Their teams and roles, where no key decides.
    pub memberships: Vec<Membership>,
    /// Which text of their key they showed.
    pub generation: u32,
}

/// An open session.
#[derive(Debug, Clone)]
pub struct Open {
    /// Its id.
    pub id: SessionId,
    /// What it is.
    pub session: Arc<Session>,
    /// How long nobody has used it.
    pub unused: Duration,
}

struct Entry {
    session: Arc<Session>,
    /// Whom it was begun for, where a key decides.
    key_team: Option<String>,
    revision: Revision,
    /// Milliseconds since the book was opened.
    used: AtomicU64,
}

impl Entry {
    /// The team that it counts for; none for the operators'.
    fn team(&self) -> Option<&str> {
        self.session.membership().map_or(self.key_team.as_deref(), |membership| membership.team.as_deref())
    }
}

#[derive(Default)]
struct Book {
    open: HashMap<SessionId, Entry>,
    by_cookie: HashMap<[u8; 32], SessionId>,
}

/// How many failures may still be written down.
struct Budget {
    left: u32,
    refilled: Instant,
    omitted: u64,
}

/// How many sessions may be open.
struct Most {
    of_all: usize,
    of_team: usize,
    of_holder: usize,
}

/// Who is signed in.
pub struct Sessions {
    book: RwLock<Book>,
    lasting: Lasting,
    most: Most,
    began: Instant,
    position: watch::Sender<Position>,
    /// Counts what takes rights away: endings, and changes of the team. Open streams listen to it.
    cuts: watch::Sender<u64>,
    // One reader of the log at a time: events are folded in their order.
    reading: tokio::sync::Mutex<()>,
    refusals: Mutex<Budget>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new(Lasting::default())
    }
}

fn hash(cookie: &str) -> [u8; 32] {
    Sha256::digest(cookie.as_bytes()).into()
}

fn stamped(event: &SessionEvent, actor: &Actor) -> Result<NewEvent, SessionError> {
    Ok(NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: event.kind().into(),
        schema: SCHEMA,
        time: Timestamp::now(),
        actor: actor.clone(),
        correlation: None,
        causation: None,
        data: event.data().map_err(|error| SessionError::Json(error.to_string()))?,
        private: None,
    })
}

/// A stream that sorts before every session that was begun less than this long ago: the ids begin with their time.
fn before(ago: Duration) -> StreamName {
    let then =
        Timestamp::now().as_millisecond().saturating_sub_unsigned(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    let bits = u128::try_from(then.max(0)).unwrap_or_default() << 80;
    StreamName::session(SessionId::from_uuid(Uuid::from_u128(bits)))
}

impl Sessions {
    /// A book without a session in it, which lasts so long.
    pub fn new(lasting: Lasting) -> Self {
        let refusals = Mutex::new(Budget { left: REFUSALS, refilled: Instant::now(), omitted: 0 });
        Self {
            book: RwLock::default(),
            lasting,
            most: Most { of_all: MAX_SESSIONS, of_team: MAX_PER_TEAM, of_holder: MAX_PER_HOLDER },
            began: Instant::now(),
            position: watch::Sender::default(),
            cuts: watch::Sender::default(),
            reading: tokio::sync::Mutex::default(),
            refusals,
        }
    }

    /// Folds every session that may still be open from the log.
    pub async fn load(store: &dyn EventStore, lasting: Lasting) -> Result<Self, StoreError> {
        let sessions = Self::new(lasting);
        let head = store.head().await?;
        let mut last = before(MAX_LIFETIME);
        loop {
            let streams = store.streams("session", Some(&last), MAX_PAGE).await?;
            for stream in &streams {
                fold_stream(store, stream, Revision(0), |envelope| {
                    sessions.apply(&envelope);
                    Ok::<_, StoreError>(())
                })
                .await?;
            }
            match streams.into_iter().next_back() {
                Some(stream) => last = stream,
                None => break,
            }
        }
        sessions.position.send_replace(head);
        sessions.catch_up(store).await?;
        Ok(sessions)
    }

    /// Reads what the log holds by now.
    pub async fn catch_up(&self, store: &dyn EventStore) -> Result<(), StoreError> {
        let _turn = self.reading.lock().await;
        let filter = Filter::category("session");
        loop {
            let after = *self.position.borrow();
            let page = store.read_matching(after, &filter, MAX_PAGE).await?;
            if page.through <= after {
                return Ok(());
            }
            for envelope in &page.events {
                self.apply(envelope);
            }
            self.position.send_replace(page.through);
        }
    }

    fn apply(&self, envelope: &Envelope) {
        let Some(id) = envelope.stream.session_id() else { return };
        let event = match SessionEvent::decode(envelope) {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(stream = %envelope.stream, revision = envelope.revision.0, "a session event does not read: {error}");
                return;
            }
        };
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        let before = book.open.remove(&id);
        // Events that were folded when the book was opened, and come again.
        if before.as_ref().is_some_and(|entry| entry.revision >= envelope.revision) {
            book.open.extend(before.map(|entry| (id, entry)));
            return;
        }
        let used =
            AtomicU64::new(before.as_ref().map_or_else(|| self.clock(), |entry| entry.used.load(Ordering::Relaxed)));
        let key_team = match &before {
            Some(entry) => entry.key_team.clone(),
            None => envelope.actor.team.clone(),
        };
        let folded = evolve(before.map(|entry| (*entry.session).clone()), &event);
        let Some(session) = folded else { return };
        let Some(cookie) = read_hash(&session.grant.cookie_sha256) else { return };
        if session.ended.is_some() {
            book.by_cookie.remove(&cookie);
        } else {
            book.by_cookie.insert(cookie, id);
            book.open.insert(id, Entry { session: Arc::new(session), key_team, revision: envelope.revision, used });
        }
        drop(book);
        match event {
            SessionEvent::TeamChosen { .. } | SessionEvent::SessionEnded { .. } => {
                self.cuts.send_modify(|count| *count += 1);
            }
            SessionEvent::SessionStarted(_) | SessionEvent::SignInRefused(_) => {}
        }
    }

    fn clock(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Keeps the book up to date until `cancel` resolves, and ends what nobody uses.
    pub async fn follow(self: Arc<Self>, store: Arc<dyn EventStore>, cancel: impl Future<Output = ()>) {
        let mut cancel = std::pin::pin!(cancel);
        let mut bell = store.bell();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            bell.borrow_and_update();
            let heard = async {
                match self.catch_up(&*store).await {
                    Ok(()) => bell.changed().await.is_ok(),
                    Err(error) => {
                        tracing::error!("the sessions could not be read: {error}; trying again in {PAUSE:?}");
                        tokio::time::sleep(PAUSE).await;
                        true
                    }
                }
            };
            tokio::select! {
                goes_on = heard => if !goes_on { return },
                _ = sweep.tick() => self.sweep(&*store).await,
                () = &mut cancel => return,
            }
        }
    }

    /// Ends what nobody has used for long, and forgets what is over by itself.
    async fn sweep(&self, store: &dyn EventStore) {
        let now = Timestamp::now();
        let over: Vec<_> = {
            let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
            let Book { open, by_cookie } = &mut *book;
            open.retain(|_, entry| entry.session.grant.ends > now);
            by_cookie.retain(|_, id| open.contains_key(id));
            open.iter().filter(|(_, entry)| self.unused(entry) >= self.lasting.idle).map(|(id, _)| *id).collect()
        };
        for id in over {
            if let Err(error) = self.end(store, id, SessionEnd::Unused, &Actor::system("sessions")).await {
                tracing::warn!(%id, "an unused session could not be ended: {error}");
            }
        }
    }

    fn unused(&self, entry: &Entry) -> Duration {
        Duration::from_millis(self.clock().saturating_sub(entry.used.load(Ordering::Relaxed)))
    }

    fn is_open(&self, entry: &Entry) -> bool {
        entry.session.grant.ends > Timestamp::now() && self.unused(entry) < self.lasting.idle
    }

    /// The session of this cookie. It counts as used. `None`: there is none, or none any more.
    pub fn find(&self, cookie: &str) -> Option<Open> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        // Found by a hash: how long that takes says nothing about the cookie.
        let id = *book.by_cookie.get(&hash(cookie))?;
        let entry = book.open.get(&id).filter(|entry| self.is_open(entry))?;
        entry.used.store(self.clock(), Ordering::Relaxed);
        Some(Open { id, session: Arc::clone(&entry.session), unused: Duration::ZERO })
    }

    /// The session of this id as it stands. Looking does not use it: a page that is left open does not keep it open.
    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        book.open.get(&id).filter(|entry| self.is_open(entry)).map(|entry| Arc::clone(&entry.session))
    }

    /// Every open session, the newest first.
    pub fn all(&self) -> Vec<Open> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        let open = book.open.iter().filter(|(_, entry)| self.is_open(entry));
        let mut all: Vec<_> = open
            .map(|(id, entry)| Open { id: *id, session: Arc::clone(&entry.session), unused: self.unused(entry) })
            .collect();
        all.sort_by_key(|open| std::cmp::Reverse(open.id));
        all
    }

    /// Rings whenever a session has ended or speaks for another team.
    pub fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// The sessions that have to go so that one more of this holder, for this team, fits: their own before those of their
    /// team, and those before anybody else's.
    fn too_many(&self, holder: &Holder, team: Option<&str>) -> Vec<SessionId> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        let mut open: Vec<_> = book.open.iter().map(|(id, entry)| (entry.session.grant.ends, *id, entry)).collect();
        // The one nearest its end first.
        open.sort_unstable_by_key(|(ends, id, _)| (*ends, *id));
        let own = |entry: &Entry| entry.session.grant.holder == *holder;
        let of_team = |entry: &Entry| entry.team() == team;
        let count = |open: &[(Timestamp, SessionId, &Entry)], of: &dyn Fn(&Entry) -> bool| {
            open.iter().filter(|(_, _, entry)| of(entry)).count()
        };
        let mut gone = Vec::new();
        let mut one_goes = |open: &mut Vec<(Timestamp, SessionId, &Entry)>, of: &dyn Fn(&Entry) -> bool| {
            let first = open.iter().position(|(_, _, entry)| of(entry));
            first.map(|first| gone.push(open.remove(first).1)).is_some()
        };
        while count(&open, &own) >= self.most.of_holder && one_goes(&mut open, &own) {}
        while count(&open, &of_team) >= self.most.of_team
            && (one_goes(&mut open, &|entry| own(entry) && of_team(entry)) || one_goes(&mut open, &of_team))
        {}
        while open.len() >= self.most.of_all {
            if one_goes(&mut open, &own) || one_goes(&mut open, &of_team) {
                continue;
            }
            // They have none yet: whoever has most gives way.
            let mut teams: HashMap<_, usize> = HashMap::new();
            for (_, _, entry) in &open {
                *teams.entry(entry.team()).or_default() += 1;
            }
            let largest = teams.into_iter().max_by_key(|(_, count)| *count).map(|(team, _)| team);
            if !one_goes(&mut open, &|entry| Some(entry.team()) == largest) {
                break;
            }
        }
        gone
    }

    /// Lets somebody in. The cookie is returned here and exists in the browser alone. A session that the browser had
    /// before is over.
    pub async fn start(
        &self,
        store: &dyn EventStore,
        new: NewSession,
        before: Option<&str>,
        actor: &Actor,
    ) -> Result<(SessionId, SecretString), SessionError> {
        if let Some(before) = before.and_then(|cookie| self.find(cookie)) {
            self.end(store, before.id, SessionEnd::Renewed, actor).await?;
        }
        let team = match new.memberships.first() {
            Some(membership) => membership.team.as_deref(),
            None => actor.team.as_deref(),
        };
        for id in self.too_many(&new.holder, team) {
            self.end(store, id, SessionEnd::Crowded, &Actor::system("sessions")).await?;
        }
        let cookie = random_hex().ok_or(SessionError::NoRandomness)?;
        let NewSession { holder, way, name, memberships, generation } = new;
        let ends = Timestamp::now().saturating_add(self.lasting.lifetime.min(MAX_LIFETIME)).unwrap_or(Timestamp::MAX);
        let grant = Grant { holder, way, name, memberships, generation, cookie_sha256: kept(&cookie), ends };
        let events = decide(None, Command::Start(Box::new(grant)))?;
        let id = SessionId::from_uuid(Uuid::now_v7());
        let events = events.iter().map(|event| stamped(event, actor)).collect::<Result<_, _>>()?;
        store.append(&StreamName::session(id), Expected::NoStream, events).await?;
        self.catch_up(store).await?;
        Ok((id, cookie.into()))
    }

    async fn change(
        &self,
        store: &dyn EventStore,
        id: SessionId,
        command: &Command,
        actor: &Actor,
    ) -> Result<(), SessionError> {
        let mut tries = 0;
        loop {
            let known = {
                let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
                book.open.get(&id).map(|entry| (Arc::clone(&entry.session), entry.revision))
            };
            let Some((session, revision)) = known else {
                return Err(orchestra_events::session::Refusal::NoSuchSession.into());
            };
            let events = decide(Some(&session), command.clone())?;
            let events = events.iter().map(|event| stamped(event, actor)).collect::<Result<Vec<_>, _>>()?;
            if events.is_empty() {
                return Ok(());
            }
            let appended = store.append(&StreamName::session(id), Expected::Exactly(revision), events).await;
            self.catch_up(store).await?;
            match appended {
                Err(StoreError::WrongExpectedRevision { .. }) if tries < TRIES => tries += 1,
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Goes on for another of the person's teams.
    pub async fn choose(
        &self,
        store: &dyn EventStore,
        id: SessionId,
        team: Option<String>,
        actor: &Actor,
    ) -> Result<(), SessionError> {
        self.change(store, id, &Command::Choose(team), actor).await
    }

    /// Ends a session. One that is over already is over.
    pub async fn end(
        &self,
        store: &dyn EventStore,
        id: SessionId,
        why: SessionEnd,
        actor: &Actor,
    ) -> Result<(), SessionError> {
        match self.change(store, id, &Command::End(why), actor).await {
            Err(SessionError::Refused(orchestra_events::session::Refusal::NoSuchSession)) => Ok(()),
            done => done,
        }
    }

    /// Ends the sessions of people who would not be let in like that any more: nobody vouches for people now, somebody else
    /// does, or no group has what they came in with. Asked once, at the start: a configuration does not change while it runs.
    pub async fn hold_to(&self, store: &dyn EventStore, people: Option<&People>) -> Result<(), SessionError> {
        for open in self.all() {
            let stands = match &open.session.grant.holder {
                Holder::Key { .. } => true,
                Holder::Person { .. } => people.is_some_and(|people| people.still_give(&open.session)),
            };
            if !stands {
                self.end(store, open.id, SessionEnd::Withdrawn, &Actor::system("sessions")).await?;
            }
        }
        Ok(())
    }

    /// Whether a failure may be written down, and how many were not since the last one.
    fn admit_refusal(&self, now: Instant) -> Option<u64> {
        let mut budget = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        while budget.left < REFUSALS && now.saturating_duration_since(budget.refilled) >= REFUSAL_PAUSE {
            budget.left += 1;
            budget.refilled += REFUSAL_PAUSE;
        }
        if budget.left == 0 {
            budget.omitted += 1;
            return None;
        }
        if budget.left == REFUSALS {
            budget.refilled = now;
        }
        budget.left -= 1;
        Some(std::mem::take(&mut budget.omitted))
    }

    /// Writes down that somebody did not get in. A log that does not take it is no reason to let them wait.
    pub async fn refuse(&self, store: &dyn EventStore, way: Way, reason: &str, holder: Option<Holder>, actor: &Actor) {
        let Some(omitted) = self.admit_refusal(Instant::now()) else { return };
        let event = SessionEvent::SignInRefused(Refused { way, reason: reason.to_owned(), holder, omitted });
        let stream = StreamName::session(SessionId::from_uuid(Uuid::now_v7()));
        let written = match stamped(&event, actor) {
            Ok(event) => {
                store.append(&stream, Expected::NoStream, vec![event]).await.map(drop).map_err(SessionError::from)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::warn!("a failed sign-in could not be written down: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
