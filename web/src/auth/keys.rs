//! The key ring: API keys (`orc_<env>_<id>_<256 bits>`) known by their hash, folded from the log and kept up to date.
//!
//! [`issuing`](super::issuing) is where keys come from. A key is looked up by the id in its text, which is no secret, and
//! told by the hash of the whole, compared in constant time; whether it has run out is asked at each look.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::audit::Hex;
use orchestra_events::key::{Bounds, KeyEvent, KeyResource, LastUse, Scope};
use orchestra_events::store::{Filter, MAX_PAGE, fold_stream};
use orchestra_events::{Actor, Envelope, EventStore, KeyId, Position, Revision, StoreError};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::{mpsc, watch};

use super::caller::{Caller, Via, Who};

/// Longest key text looked at, in bytes; what is longer is no key.
pub const MAX_KEY_TEXT: usize = 200;
/// How long a key's use is not written down again after it was: a busy key is one event in an hour.
pub const USE_PAUSE: Duration = Duration::from_secs(60 * 60);
/// The pause before the log is read again after it failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A key, and what is needed to tell it at once.
struct Entry {
    resource: KeyResource,
    /// The hash of its text, and of the one before it.
    current: [u8; 32],
    previous: Option<[u8; 32]>,
    /// Shared with every caller who shows it.
    bounds: Arc<Bounds>,
    /// When its use was last written down, in seconds since 1970.
    noted: AtomicI64,
}

/// Every key there is, by id.
#[derive(Default)]
pub struct KeyRing {
    keys: RwLock<BTreeMap<KeyId, Entry>>,
    position: watch::Sender<Position>,
    /// Counts what takes rights away: revocations and rotations. Open streams listen to it.
    cuts: watch::Sender<u64>,
    uses: OnceLock<mpsc::Sender<Used>>,
    /// Held while somebody changes keys: who may change what depends on the others.
    changing: tokio::sync::Mutex<()>,
}

/// A use of a key that is to be written down.
pub struct Used {
    /// Which key.
    pub key: KeyId,
    /// When and from where.
    pub last: LastUse,
    /// Who used it.
    pub by: Actor,
}

/// A key as its owner's list shows it, and where the list goes on.
pub struct KeyPage {
    /// Newest first.
    pub keys: Vec<KeyResource>,
    /// The last of them, if there are more.
    pub next: Option<KeyId>,
}

/// 256 random bits in hexadecimal. `None`: the system has none to give.
pub(super) fn random_hex() -> Option<String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(Hex(bytes).to_string())
}

/// SHA-256 of a secret, as it stands in an event.
pub(super) fn kept(secret: &str) -> String {
    Hex::<32>(Sha256::digest(secret.as_bytes()).into()).to_string()
}

/// A hash that stands in an event. What is none matches nothing.
pub(super) fn read_hash(text: &str) -> Option<[u8; 32]> {
    text.parse::<Hex<32>>().ok().map(|hex| hex.0)
}

/// The id that a key's text names.
fn id_of(text: &str) -> Option<KeyId> {
    if text.len() > MAX_KEY_TEXT {
        return None;
    }
    let mut parts = text.strip_prefix("orc_")?.split('_');
    let (_environment, id, _secret) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    format!("key_{id}").parse().ok()
}

impl Entry {
    fn of(resource: KeyResource, before: Option<&Self>) -> Option<Self> {
        let key = &resource.key;
        let noted = key.last_use.map_or(i64::MIN, |last| last.at.as_second());
        Some(Self {
            current: read_hash(&key.grant.secret_sha256)?,
            previous: key.previous.as_ref().and_then(|previous| read_hash(&previous.secret_sha256)),
            bounds: Arc::new(key.grant.bounds.clone()),
            noted: AtomicI64::new(before.map_or(noted, |before| before.noted.load(Ordering::Relaxed).max(noted))),
            resource,
        })
    }

    /// Whose it is, without any rights.
    fn nobody(&self) -> Caller {
        let KeyResource { id, key, .. } = &self.resource;
        Caller { team: key.grant.team.clone(), ..Caller::named(Who::Key(*id), key.grant.name.clone()) }
    }

    /// Who holds the text of this generation, while it is worth something.
    fn caller(&self, generation: u32, now: Timestamp) -> Option<Caller> {
        let KeyResource { id, key, .. } = &self.resource;
        let ends = key.lasts(generation, now)?;
        Some(Caller {
            team: key.grant.team.clone(),
            scopes: key.grant.scopes.clone(),
            bounds: Arc::clone(&self.bounds),
            limits: key.grant.limits,
            ends,
            generation,
            ..Caller::named(Who::Key(*id), key.grant.name.clone())
        })
    }
}

impl KeyRing {
    /// Folds every key from the log.
    pub async fn load(store: &dyn EventStore) -> Result<Self, StoreError> {
        let ring = Self::default();
        // Key by key and not event by event: the log is long and the keys are few. What is appended meanwhile is read
        // twice and folded once.
        let head = store.head().await?;
        let mut last = None;
        loop {
            let streams = store.streams("key", last.as_ref(), MAX_PAGE).await?;
            for stream in &streams {
                fold_stream(store, stream, Revision(0), |envelope| {
                    ring.apply(&envelope);
                    Ok::<_, StoreError>(())
                })
                .await?;
            }
            match streams.into_iter().next_back() {
                Some(stream) => last = Some(stream),
                None => break,
            }
        }
        ring.position.send_replace(head);
        Ok(ring)
    }

    /// Folds what the log has had since. What two fold at the same time is folded once.
    pub async fn catch_up(&self, store: &dyn EventStore) -> Result<(), StoreError> {
        let filter = Filter::category("key");
        loop {
            let after = *self.position.borrow();
            let page = store.read_matching(after, &filter, MAX_PAGE).await?;
            if page.through <= after {
                return Ok(());
            }
            for envelope in &page.events {
                self.apply(envelope);
            }
            self.position.send_if_modified(|at| {
                let further = page.through > *at;
                *at = (*at).max(page.through);
                further
            });
        }
    }

    fn apply(&self, envelope: &Envelope) {
        let Some(id) = envelope.stream.key_id() else { return };
        let event = match KeyEvent::decode(envelope) {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(stream = %envelope.stream, revision = envelope.revision.0, "a key event does not read: {error}");
                return;
            }
        };
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.get(&id).is_some_and(|entry| envelope.revision <= entry.resource.revision) {
            return;
        }
        let before = keys.remove(&id);
        let folded = KeyResource::fold(before.as_ref().map(|entry| entry.resource.clone()), id, envelope, &event);
        match folded.and_then(|resource| Entry::of(resource, before.as_ref())) {
            Some(entry) => drop(keys.insert(id, entry)),
            None => tracing::error!(stream = %envelope.stream, "a key's events do not fold; the key opens nothing"),
        }
        drop(keys);
        match event {
            KeyEvent::KeyRevoked {} | KeyEvent::KeyRotated { .. } => self.cuts.send_modify(|count| *count += 1),
            KeyEvent::KeyIssued(_) | KeyEvent::KeyUsed { .. } => {}
        }
    }

    /// Keeps the ring up to date until `cancel` resolves.
    pub async fn follow(self: Arc<Self>, store: Arc<dyn EventStore>, cancel: impl Future<Output = ()>) {
        let mut cancel = std::pin::pin!(cancel);
        let mut bell = store.bell();
        loop {
            bell.borrow_and_update();
            let heard = async {
                match self.catch_up(&*store).await {
                    Ok(()) => bell.changed().await.is_ok(),
                    Err(error) => {
                        tracing::error!("the keys could not be read: {error}; trying again in {PAUSE:?}");
                        tokio::time::sleep(PAUSE).await;
                        true
                    }
                }
            };
            tokio::select! {
                goes_on = heard => if !goes_on { return },
                () = &mut cancel => return,
            }
        }
    }

    /// Waits until the ring knows everything up to `wanted`. False: not within the limit.
    pub async fn wait_for(&self, wanted: Position, limit: Duration) -> bool {
        let mut bell = self.position.subscribe();
        matches!(tokio::time::timeout(limit, bell.wait_for(|at| *at >= wanted)).await, Ok(Ok(_)))
    }

    /// Who holds this key. `None`: nobody, or nobody any more.
    pub fn authenticate(&self, text: &str) -> Option<Caller> {
        self.authenticate_at(text, Timestamp::now())
    }

    /// The same at another time.
    pub fn authenticate_at(&self, text: &str, now: Timestamp) -> Option<Caller> {
        self.told(text, |entry, generation| entry.caller(generation, now))
    }

    /// Whose text this was, for the record: of a key that stands or is over. They may do nothing with it.
    pub fn whose(&self, text: &str) -> Option<Caller> {
        self.told(text, |entry, generation| Some(Caller { generation, ..entry.nobody() }))
    }

    /// The same by the key's id.
    pub fn whose_id(&self, id: KeyId) -> Option<Caller> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&id).map(Entry::nobody)
    }

    /// The key that a text is of, and the text's generation.
    fn told<T>(&self, text: &str, then: impl FnOnce(&Entry, u32) -> Option<T>) -> Option<T> {
        let id = id_of(text)?;
        let given: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let entry = keys.get(&id)?;
        // Both are compared whole, whatever the first says.
        let current = given.ct_eq(&entry.current);
        let previous =
            given.ct_eq(&entry.previous.unwrap_or_default()) & Choice::from(u8::from(entry.previous.is_some()));
        let newest = entry.resource.key.generation;
        match (bool::from(current), bool::from(previous)) {
            (true, _) => then(entry, newest),
            (false, true) => then(entry, newest.checked_sub(1)?),
            (false, false) => None,
        }
    }

    /// Who holds the key of this id, as it stands now. For those who have shown the key before.
    pub fn holder(&self, id: KeyId) -> Option<Caller> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let entry = keys.get(&id)?;
        entry.caller(entry.resource.key.generation, Timestamp::now())
    }

    /// Who holds the text of this generation of a key, while that is worth something.
    pub fn holder_of(&self, id: KeyId, generation: u32, now: Timestamp) -> Option<Caller> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&id)?.caller(generation, now)
    }

    /// A key with its dates, whatever it is worth.
    pub fn find(&self, id: KeyId) -> Option<KeyResource> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&id).map(|entry| entry.resource.clone())
    }

    /// Those keys that are wanted, before this one, newest first.
    pub fn page(&self, wanted: impl Fn(&KeyResource) -> bool, before: Option<KeyId>, limit: usize) -> KeyPage {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let end = before.map_or(Bound::Unbounded, Bound::Excluded);
        let range = keys.range((Bound::Unbounded, end)).rev().map(|(_, entry)| &entry.resource);
        let mut found = range.filter(|key| wanted(key));
        let page: Vec<_> = found.by_ref().take(limit).cloned().collect();
        let next = page.last().map(|last| last.id).filter(|_| found.next().is_some());
        KeyPage { keys: page, next }
    }

    /// Waits until nobody else changes keys through this process. Hold what is returned from looking to appending.
    pub async fn changing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Whether anybody but the holder of this key may do everything.
    pub fn another_admin(&self, but: Option<KeyId>, now: Timestamp) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.values().map(|entry| &entry.resource).any(|resource| {
            Some(resource.id) != but && resource.key.stands(now) && resource.key.grant.scopes.contains(&Scope::Admin)
        })
    }

    /// The same of keys that neither end by themselves nor are bound to anything.
    pub fn another_lasting_admin(&self, but: KeyId) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.values().map(|entry| &entry.resource).filter(|resource| resource.id != but).any(|resource| {
            let grant = &resource.key.grant;
            let lasts = grant.expires_at.is_none() && grant.bounds.is_empty();
            lasts && !resource.key.revoked && grant.scopes.contains(&Scope::Admin)
        })
    }

    /// How many keys of a team, or of none, work.
    pub fn standing_of(&self, team: Option<&str>, now: Timestamp) -> usize {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let of_team = keys.values().map(|entry| &entry.resource.key).filter(|key| key.grant.team.as_deref() == team);
        of_team.filter(|key| key.stands(now)).count()
    }

    /// Rings when rights were taken away: whoever serves somebody for long asks again then.
    pub fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// Where uses of keys are sent, to be written down. Once; without it, none are.
    pub fn note_uses(&self, to: mpsc::Sender<Used>) {
        if self.uses.set(to).is_err() {
            tracing::warn!("the uses of keys have a taker already");
        }
    }

    /// Has the use of a key written down, unless it was a short while ago. Never waits: when the queue is full, a later
    /// use is written down.
    pub fn used(&self, caller: &Caller, now: Timestamp) {
        let (Who::Key(id), Via::Key, Some(uses)) = (&caller.who, caller.via, self.uses.get()) else { return };
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = keys.get(id) else { return };
        let (noted, second) = (entry.noted.load(Ordering::Relaxed), now.as_second());
        if second.saturating_sub(noted) < USE_PAUSE.as_secs().cast_signed() {
            return;
        }
        let first = entry.noted.compare_exchange(noted, second, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let used = || Used { key: *id, last: LastUse { at: now, address: caller.address }, by: caller.actor() };
        if first && uses.try_send(used()).is_err() {
            entry.noted.store(noted, Ordering::Relaxed);
        }
    }
}
