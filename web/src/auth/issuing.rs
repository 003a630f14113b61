//! Where keys come from: issued, rotated and revoked, each as an event in the key's own stream.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::key::{Bounds, Command, Key, KeyEvent, KeyGrant, KeyLimits, Scope, decide, evolve};
use orchestra_events::store::read_whole_stream;
use orchestra_events::{Actor, EventId, EventStore, Expected, KeyId, NewEvent, StoreError, StreamName};
use secrecy::SecretString;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::keys::{KeyRing, Used, kept, random_hex};

/// Longest environment in a key's prefix.
pub const MAX_ENVIRONMENT: usize = 32;
/// How often a change is tried again because another writer was first: a use was noted, or two people rotate at once.
const TRIES: usize = 8;
/// Uses that may wait to be written down. What does not fit is written down at a later use.
pub const USES_QUEUE: usize = 1_024;

/// Why a key could not be issued, rotated or revoked.
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

/// A key that is to be issued.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewKey {
    /// What its owner calls it.
    pub name: String,
    /// The team it acts for; none for an operator's key.
    pub team: Option<String>,
    /// The environment in its visible prefix.
    pub environment: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// What it is good for.
    pub bounds: Bounds,
    /// From when on it is worth nothing.
    pub expires_at: Option<Timestamp>,
    /// How much may be asked with it at once.
    pub limits: KeyLimits,
}

/// Whether a text can stand in a key as its environment.
pub fn is_environment(text: &str) -> bool {
    (1..=MAX_ENVIRONMENT).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// A new text for a key, and its hash.
fn new_text(id: KeyId, environment: &str) -> Result<(SecretString, String), KeyError> {
    if !is_environment(environment) {
        return Err(KeyError::Environment);
    }
    let secret = random_hex().ok_or(KeyError::NoRandomness)?;
    let id = id.to_string();
    let digits = id.strip_prefix("key_").unwrap_or(&id);
    let text = format!("orc_{environment}_{digits}_{secret}");
    let hash = kept(&text);
    Ok((text.into(), hash))
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

/// Folds the key, decides, appends; again if another writer was first.
async fn change(
    store: &dyn EventStore,
    id: KeyId,
    actor: &Actor,
    command: impl Fn(&Key) -> Command,
) -> Result<(), KeyError> {
    let mut tries = 0;
    loop {
        let history = read_whole_stream(store, &StreamName::key(id)).await?;
        let mut key = None;
        for envelope in &history {
            if let Some(event) = KeyEvent::decode(envelope).map_err(|error| KeyError::Json(error.to_string()))? {
                key = evolve(key, &event);
            }
        }
        let (Some(key), Some(last)) = (key, history.last()) else {
            return Err(orchestra_events::key::Refusal::NoSuchKey.into());
        };
        let events = decide(Some(&key), command(&key))?;
        match record(store, id, Expected::Exactly(last.revision), events, actor).await {
            Err(KeyError::Store(StoreError::WrongExpectedRevision { .. })) if tries < TRIES => tries += 1,
            done => return done,
        }
    }
}

/// Issues a key. Its text is returned here and exists nowhere else.
pub async fn issue(store: &dyn EventStore, new: NewKey, actor: &Actor) -> Result<(KeyId, SecretString), KeyError> {
    let id = KeyId::from_uuid(Uuid::now_v7());
    let (text, secret_sha256) = new_text(id, &new.environment)?;
    let NewKey { name, team, environment, scopes, bounds, expires_at, limits } = new;
    let grant = KeyGrant { name, team, environment, scopes, secret_sha256, bounds, expires_at, limits };
    record(store, id, Expected::NoStream, decide(None, Command::Issue(Box::new(grant)))?, actor).await?;
    Ok((id, text))
}

/// Issues a key without bounds.
pub async fn issue_key(
    store: &dyn EventStore,
    name: &str,
    team: Option<&str>,
    environment: &str,
    scopes: Vec<Scope>,
    actor: &Actor,
) -> Result<(KeyId, SecretString), KeyError> {
    let (name, team, environment) = (name.to_owned(), team.map(str::to_owned), environment.to_owned());
    issue(store, NewKey { name, team, environment, scopes, ..NewKey::default() }, actor).await
}

/// Gives a key a new text. The one it has now works for `overlap` longer.
pub async fn rotate_key(
    store: &dyn EventStore,
    id: KeyId,
    environment: &str,
    overlap: Duration,
    actor: &Actor,
) -> Result<SecretString, KeyError> {
    let (text, secret_sha256) = new_text(id, environment)?;
    let now = Timestamp::now();
    let previous_until = now.checked_add(overlap).unwrap_or(Timestamp::MAX);
    let rotate = |_: &Key| Command::Rotate { secret_sha256: secret_sha256.clone(), previous_until, now };
    change(store, id, actor, rotate).await?;
    Ok(text)
}

/// Revokes a key for good.
pub async fn revoke_key(store: &dyn EventStore, id: KeyId, actor: &Actor) -> Result<(), KeyError> {
    change(store, id, actor, |_| Command::Revoke).await
}

/// Issues one admin key when there is none that is worth anything: at the first start, or when the last has expired. The
/// text is returned this once.
pub async fn ensure_admin_key(store: &dyn EventStore, ring: &KeyRing) -> Result<Option<SecretString>, KeyError> {
    ring.catch_up(store).await?;
    if ring.another_admin(None, Timestamp::now()) {
        return Ok(None);
    }
    let (_, text) =
        issue_key(store, "first admin", None, "admin", vec![Scope::Admin], &Actor::system("first-start")).await?;
    ring.catch_up(store).await?;
    Ok(Some(text))
}

/// Writes down the uses of keys until `cancel` resolves.
pub async fn write_uses(ring: Arc<KeyRing>, store: Arc<dyn EventStore>, cancel: impl Future<Output = ()>) {
    let (to, mut uses) = mpsc::channel(USES_QUEUE);
    ring.note_uses(to);
    let mut cancel = std::pin::pin!(cancel);
    loop {
        let Used { key: id, last, by } = tokio::select! {
            used = uses.recv() => match used {
                Some(used) => used,
                None => return,
            },
            () = &mut cancel => return,
        };
        // A note and no decision: wherever the stream stands. What is lost here is the date of one use.
        let used = vec![KeyEvent::KeyUsed { at: last.at, address: last.address }];
        if let Err(error) = record(&*store, id, Expected::Any, used, &by).await {
            tracing::warn!(key = %id, "a use of a key could not be written down: {error}");
        }
    }
}
