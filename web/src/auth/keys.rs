//! API keys: `orc_<env>_<id>_<256 bits>`, known by their hash, folded from the log and kept up to date.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::key::{Command, Key, KeyEvent, KeyGrant, Scope, decide, evolve};
use orchestra_events::store::{Filter, MAX_PAGE, fold_stream};
use orchestra_events::{
    Actor, Envelope, EventId, EventStore, Expected, KeyId, NewEvent, Position, Revision, StoreError, StreamName,
};
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use uuid::Uuid;

use super::Caller;

/// Longest key text looked at, in bytes; what is longer is no key.
pub const MAX_KEY_TEXT: usize = 200;
/// Longest environment in a key's prefix.
pub const MAX_ENVIRONMENT: usize = 32;
/// The pause before the log is read again after it failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a key could not be issued or revoked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key's own rules said no.
    #[error(transparent)]
    Refused(#[from] orchestra_events::key::Refusal),
    /// The environment does not fit into a key.
    #[error("the environment of a key has 1 to {MAX_ENVIRONMENT} characters of a-z, 0-9 and '-'")]
    Environment,
    /// The system has no randomness to give.
    #[error("the system gave no random bytes")]
    NoRandomness,
    /// An event could not be written as JSON.
    #[error("a key event does not serialise: {0}")]
    Json(String),
}

/// Every key there is, by id.
#[derive(Default)]
pub struct KeyRing {
    keys: RwLock<HashMap<KeyId, Key>>,
    position: watch::Sender<Position>,
}

/// 256 random bits in hexadecimal. `None`: the system has none to give.
pub(super) fn random_hex() -> Option<String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn digits(id: KeyId) -> String {
    let text = id.to_string();
    text.strip_prefix("key_").unwrap_or(&text).to_owned()
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

impl KeyRing {
    /// Folds every key from the log.
    pub async fn load(store: &dyn EventStore) -> Result<Self, StoreError> {
        let ring = Self::default();
        // Key by key and not event by event: the log is long and the keys are few. What is appended meanwhile is folded
        // twice, which changes nothing.
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

    async fn catch_up(&self, store: &dyn EventStore) -> Result<(), StoreError> {
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
            self.position.send_replace(page.through);
        }
    }

    fn apply(&self, envelope: &Envelope) {
        let Some(id) = envelope.stream.key_id() else { return };
        match KeyEvent::decode(envelope) {
            Ok(Some(event)) => {
                let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
                let key = keys.remove(&id);
                if let Some(key) = evolve(key, &event) {
                    keys.insert(id, key);
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(stream = %envelope.stream, revision = envelope.revision.0, "a key event does not read: {error}");
            }
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
        let id = id_of(text)?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.get(&id)?;
        let given = hex(&Sha256::digest(text.as_bytes()));
        let same: bool = given.as_bytes().ct_eq(key.grant.secret_sha256.as_bytes()).into();
        (same && !key.revoked).then(|| Caller::new(id, &key.grant))
    }

    /// Who holds the key of this id, as it stands now. For those who have shown the key before.
    pub fn holder(&self, id: KeyId) -> Option<Caller> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&id).filter(|key| !key.revoked).map(|key| Caller::new(id, &key.grant))
    }

    /// Every key, with its id.
    pub fn all(&self) -> Vec<(KeyId, Key)> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().map(|(id, key)| (*id, key.clone())).collect()
    }
}

async fn record(
    store: &dyn EventStore,
    id: KeyId,
    expected: Expected,
    events: Vec<KeyEvent>,
    actor: &Actor,
) -> Result<(), KeyError> {
    let events = events
        .into_iter()
        .map(|event| {
            Ok(NewEvent {
                id: EventId(Uuid::now_v7()),
                kind: event.kind().into(),
                schema: orchestra_events::key::event::SCHEMA,
                time: Timestamp::now(),
                actor: actor.clone(),
                correlation: None,
                causation: None,
                data: event.data().map_err(|error| KeyError::Json(error.to_string()))?,
                private: None,
            })
        })
        .collect::<Result<Vec<_>, KeyError>>()?;
    if !events.is_empty() {
        store.append(&StreamName::key(id), expected, events).await?;
    }
    Ok(())
}

/// Issues a key. Its text is returned here and exists nowhere else.
pub async fn issue_key(
    store: &dyn EventStore,
    name: &str,
    team: Option<&str>,
    environment: &str,
    scopes: Vec<Scope>,
    actor: &Actor,
) -> Result<(KeyId, SecretString), KeyError> {
    let fits = (1..=MAX_ENVIRONMENT).contains(&environment.len())
        && environment.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !fits {
        return Err(KeyError::Environment);
    }
    let id = KeyId::from_uuid(Uuid::now_v7());
    let secret = random_hex().ok_or(KeyError::NoRandomness)?;
    let text = format!("orc_{environment}_{}_{secret}", digits(id));
    let grant = KeyGrant {
        name: name.to_owned(),
        team: team.map(str::to_owned),
        environment: environment.to_owned(),
        scopes,
        secret_sha256: hex(&Sha256::digest(text.as_bytes())),
    };
    record(store, id, Expected::NoStream, decide(None, Command::Issue(grant))?, actor).await?;
    Ok((id, text.into()))
}

/// Revokes a key for good.
pub async fn revoke_key(store: &dyn EventStore, id: KeyId, actor: &Actor) -> Result<(), KeyError> {
    let history = orchestra_events::store::read_whole_stream(store, &StreamName::key(id)).await?;
    let mut key = None;
    for envelope in &history {
        if let Some(event) = KeyEvent::decode(envelope).map_err(|error| KeyError::Json(error.to_string()))? {
            key = evolve(key, &event);
        }
    }
    let events = decide(key.as_ref(), Command::Revoke)?;
    let expected = history.last().map_or(Expected::NoStream, |last| Expected::Exactly(last.revision));
    record(store, id, expected, events, actor).await
}

/// Issues one admin key when there is no key at all. The text is returned this once.
pub async fn ensure_admin_key(store: &dyn EventStore, ring: &KeyRing) -> Result<Option<SecretString>, KeyError> {
    ring.catch_up(store).await?;
    if !ring.keys.read().unwrap_or_else(PoisonError::into_inner).is_empty() {
        return Ok(None);
    }
    let (_, text) =
        issue_key(store, "first admin", None, "admin", vec![Scope::Admin], &Actor::system("first-start")).await?;
    ring.catch_up(store).await?;
    Ok(Some(text))
}
