//! Who signs how far the log has come: at intervals, and when somebody asks.
//!
//! Each checkpoint is an event in the node's own stream, and a small file in a folder that is there to be copied off the
//! machine: whoever can write the database can write the folder too, but not what was copied elsewhere.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use orchestra_events::audit::checkpoint::{self, Checkpoint, CheckpointEvent, PublicKey, Statement};
use orchestra_events::audit::hex::Hex;
use orchestra_events::audit::{SigningKey, key_id};
use orchestra_events::store::chain::Digest;
use orchestra_events::store::{Linked, LinkedLog};
use orchestra_events::{Actor, Direction, EventId, Expected, NewEvent, Position, Revision, StoreError, StreamName};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// Checkpoint files that are kept; the oldest go. At the usual interval, a month of them.
pub const KEPT_FILES: usize = 4_096;
/// What the files' names begin with.
const FILE_PREFIX: &str = "checkpoint-";

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum NotaryError {
    /// There is no event yet.
    #[error("the log is empty: there is nothing to sign")]
    Empty,
    /// What was signed before is not what the log is now. To sign it would hide that.
    #[error(
        "the log is not what was signed at {at}: position {position} has another link now; \
         run `orchestra audit verify`, and do not trust this database"
    )]
    Rewritten {
        /// When that was signed.
        at: Timestamp,
        /// Up to where.
        position: u64,
    },
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An event does not read, or cannot be written.
    #[error("a checkpoint does not read: {0}")]
    Damaged(String),
}

/// A checkpoint and where it stands in its stream.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Its place in the stream of checkpoints; pages go on from it.
    pub revision: Revision,
    /// Who asked for it.
    pub actor: Actor,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
}

/// What can be asked of the record itself.
#[async_trait]
pub trait AuditService: Send + Sync + 'static {
    /// The key that checkpoints are verified with.
    fn public_key(&self) -> PublicKey;
    /// Signs the log as it is now, and writes that down.
    async fn sign(&self, actor: Actor) -> Result<Checkpoint, NotaryError>;
    /// Checkpoints that this server has signed, newest first: up to `limit` of those before a revision.
    async fn signed(&self, before: Option<Revision>, limit: usize) -> Result<Vec<Signed>, NotaryError>;
    /// Events with their links, after a position.
    async fn links(&self, after: Position, limit: usize) -> Result<Vec<Linked>, StoreError>;
    /// The end of an export at this position: signed, and not written down.
    async fn end(&self, position: Position, link: Digest) -> Result<Checkpoint, NotaryError>;
    /// The name of the log: the link of its first event.
    async fn log_id(&self) -> Result<Digest, NotaryError>;
}

/// Signs for one node.
pub struct Notary {
    store: Arc<dyn LinkedLog>,
    key: SigningKey,
    stream: StreamName,
    folder: Option<PathBuf>,
    /// Held while one is signed, so that each looks at the one before.
    turn: tokio::sync::Mutex<()>,
    log: OnceCell<Digest>,
}

impl Notary {
    /// A notary of this node. Files are kept if there is a folder, which is made.
    pub fn new(
        store: Arc<dyn LinkedLog>,
        key: SigningKey,
        node: &str,
        folder: Option<PathBuf>,
    ) -> Result<Self, NotaryError> {
        let stream = checkpoint::stream(node).map_err(|error| NotaryError::Damaged(error.to_string()))?;
        Ok(Self { store, key, stream, folder, turn: tokio::sync::Mutex::default(), log: OnceCell::new() })
    }

    async fn link_at(&self, position: Position) -> Result<Option<Digest>, StoreError> {
        let Some(before) = position.0.checked_sub(1) else { return Ok(None) };
        let found = self.store.read_links(Position(before), 1).await?;
        Ok(found
            .into_iter()
            .next()
            .filter(|linked| linked.event.position == position)
            .map(|linked| linked.links.global))
    }

    async fn statement(&self, position: Position, link: Digest) -> Result<Statement, NotaryError> {
        Ok(Statement { log: self.log_id().await?, position, link, time: Timestamp::now() })
    }

    /// The last checkpoint that this node has signed, and the position of its event.
    async fn last(&self) -> Result<Option<(Position, Checkpoint)>, NotaryError> {
        let newest = self.store.read_stream(&self.stream, None, Direction::Backwards, 1).await?;
        let Some(envelope) = newest.into_iter().next() else { return Ok(None) };
        let event = CheckpointEvent::decode(&envelope).map_err(|error| NotaryError::Damaged(error.to_string()))?;
        Ok(event.map(|CheckpointEvent::CheckpointSigned(checkpoint)| (envelope.position, *checkpoint)))
    }

    /// Signs if anything has happened since the last checkpoint.
    pub async fn sign_if_grown(&self) -> Result<Option<Checkpoint>, NotaryError> {
        let head = self.store.head().await?;
        let at_end = self.last().await?.is_some_and(|(position, _)| position >= head);
        if at_end || head == Position::START {
            return Ok(None);
        }
        self.sign(Actor::system("notary")).await.map(Some)
    }

    /// Signs at this interval until `cancel` resolves. What fails is said in the log and tried again at the next turn.
    pub async fn at_intervals(self: Arc<Self>, interval: Duration, cancel: impl Future<Output = ()>) {
        let mut cancel = std::pin::pin!(cancel);
        let mut turns = tokio::time::interval(interval);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = turns.tick() => {}
                () = &mut cancel => return,
            }
            match self.sign_if_grown().await {
                Ok(Some(checkpoint)) => tracing::info!(
                    position = checkpoint.position,
                    link = %checkpoint.global_link,
                    key = %checkpoint.key_id,
                    "signed a checkpoint of the log"
                ),
                Ok(None) => {}
                Err(error) => {
                    metrics::counter!("orchestra_checkpoint_failures_total").increment(1);
                    tracing::error!("no checkpoint was signed: {error}");
                }
            }
        }
    }

    /// Keeps a checkpoint as a file. The event is what counts: what fails here is said, and no more.
    async fn keep(&self, checkpoint: Checkpoint) {
        let Some(folder) = self.folder.clone() else { return };
        let kept = tokio::task::spawn_blocking(move || keep_in(&folder, &checkpoint)).await;
        match kept {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("a checkpoint is in the log and not in its folder: {error}"),
            Err(error) => tracing::warn!("a checkpoint is in the log and not in its folder: {error}"),
        }
    }
}

fn keep_in(folder: &Path, checkpoint: &Checkpoint) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    // Twenty digits: the names sort as the positions do.
    let path = folder.join(format!("{FILE_PREFIX}{:020}.json", checkpoint.position));
    let unfinished = path.with_extension("unfinished");
    let mut file = std::fs::File::create(&unfinished)?;
    serde_json::to_writer(&mut file, checkpoint)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    let mut names: Vec<_> = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| name.to_str().is_some_and(|name| name.starts_with(FILE_PREFIX) && name.ends_with(".json")))
        .collect();
    names.sort_unstable();
    let surplus = names.len().saturating_sub(KEPT_FILES);
    names.into_iter().take(surplus).try_for_each(|name| std::fs::remove_file(folder.join(name)))
}

#[async_trait]
impl AuditService for Notary {
    fn public_key(&self) -> PublicKey {
        Hex(self.key.verifying_key().to_bytes())
    }

    async fn sign(&self, actor: Actor) -> Result<Checkpoint, NotaryError> {
        let _turn = self.turn.lock().await;
        let head = self.store.head().await?;
        let link = self.link_at(head).await?.ok_or(NotaryError::Empty)?;
        if let Some((_, last)) = self.last().await?
            && last.key_id == key_id(&self.public_key())
            && self.link_at(Position(last.position)).await?.map(Hex::from) != Some(last.global_link)
        {
            return Err(NotaryError::Rewritten { at: last.time, position: last.position });
        }
        let checkpoint = self.statement(head, link).await?.sign(&self.key);
        let event = CheckpointEvent::CheckpointSigned(Box::new(checkpoint));
        let event = NewEvent {
            id: EventId(Uuid::now_v7()),
            kind: event.kind().into(),
            schema: checkpoint::SCHEMA,
            time: checkpoint.time,
            actor,
            correlation: None,
            causation: None,
            data: event.data().map_err(|error| NotaryError::Damaged(error.to_string()))?,
            private: None,
        };
        // Whoever else signs for this node at the same moment signs something true as well.
        self.store.append(&self.stream, Expected::Any, vec![event]).await?;
        metrics::counter!("orchestra_checkpoints_total").increment(1);
        self.keep(checkpoint).await;
        Ok(checkpoint)
    }

    async fn signed(&self, before: Option<Revision>, limit: usize) -> Result<Vec<Signed>, NotaryError> {
        let from = match before {
            None => None,
            Some(Revision(0)) => return Ok(Vec::new()),
            Some(Revision(before)) => Some(Revision(before - 1)),
        };
        let events = self.store.read_stream(&self.stream, from, Direction::Backwards, limit).await?;
        let read = events.into_iter().map(|envelope| {
            let event = CheckpointEvent::decode(&envelope).map_err(|error| NotaryError::Damaged(error.to_string()))?;
            Ok(event.map(|CheckpointEvent::CheckpointSigned(checkpoint)| Signed {
                revision: envelope.revision,
                actor: envelope.actor,
                checkpoint: *checkpoint,
            }))
        });
        read.filter_map(Result::transpose).collect()
    }

    async fn links(&self, after: Position, limit: usize) -> Result<Vec<Linked>, StoreError> {
        self.store.read_links(after, limit).await
    }

    async fn end(&self, position: Position, link: Digest) -> Result<Checkpoint, NotaryError> {
        Ok(self.statement(position, link).await?.sign(&self.key))
    }

    async fn log_id(&self) -> Result<Digest, NotaryError> {
        self.log.get_or_try_init(|| async { self.link_at(Position(1)).await?.ok_or(NotaryError::Empty) }).await.copied()
    }
}

#[cfg(test)]
mod tests {
    use orchestra_events::EventStore;
    use orchestra_events::audit::{Trust, verify};
    use orchestra_events::store::memory::MemoryStore;
    use serde_json::value::RawValue;

    use super::*;

    async fn append(store: &MemoryStore, data: &str) {
        let event = NewEvent {
            id: EventId(Uuid::now_v7()),
            kind: "happened".into(),
            schema: 1,
            time: Timestamp::now(),
            actor: Actor::system("test"),
            correlation: None,
            causation: None,
            data: RawValue::from_string(data.to_owned()).expect("JSON"),
            private: None,
        };
        store.append(&"test-1".parse().expect("a name"), Expected::Any, vec![event]).await.expect("an append");
    }

    fn notary(store: &Arc<MemoryStore>, folder: Option<PathBuf>) -> Notary {
        Notary::new(Arc::clone(store) as _, SigningKey::from_bytes(&[3; 32]), "node-1", folder).expect("a name")
    }

    async fn exported(notary: &Notary) -> Vec<u8> {
        use orchestra_events::audit::export::{Header, Trailer, write_event};
        let mut file = Header::new(notary.log_id().await.expect("a log"), notary.public_key()).line();
        let events = notary.links(Position::START, 1_000).await.expect("events");
        events.iter().for_each(|linked| write_event(&mut file, linked));
        let last = events.last().expect("an event");
        let checkpoint = notary.end(last.event.position, last.links.global).await.expect("signed");
        file.extend(Trailer { checkpoint }.line());
        file
    }

    #[tokio::test]
    async fn what_is_signed_verifies_and_only_growth_is_signed_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Arc::new(MemoryStore::default());
        let notary = notary(&store, Some(folder.path().join("checkpoints")));
        assert!(matches!(notary.sign(Actor::system("test")).await, Err(NotaryError::Empty)));
        assert!(notary.sign_if_grown().await.expect("quiet").is_none());
        append(&store, "{}").await;
        let first = notary.sign_if_grown().await.expect("signed").expect("grown");
        assert_eq!(first.position, 1);
        assert!(notary.sign_if_grown().await.expect("quiet").is_none(), "a checkpoint is no growth");
        append(&store, "{}").await;
        let second = notary.sign_if_grown().await.expect("signed").expect("grown");
        assert_eq!(second.position, 3);
        let asked = notary.sign(Actor::system("somebody")).await.expect("asked for");
        let listed = notary.signed(None, 2).await.expect("a page");
        assert_eq!(listed.iter().map(|signed| signed.checkpoint).collect::<Vec<_>>(), [asked, second]);
        let rest = notary.signed(Some(listed[1].revision), 5).await.expect("a page");
        assert_eq!(rest.iter().map(|signed| signed.checkpoint).collect::<Vec<_>>(), [first]);

        let trust = Trust { keys: vec![notary.public_key()], checkpoints: vec![first] };
        let report = verify::export(&exported(&notary).await[..], &trust).expect("it reads");
        assert!(report.holds(), "{report:?}");
        assert_eq!((report.found.signed, report.found.given), (3, 1));
        let mut files: Vec<_> = std::fs::read_dir(folder.path().join("checkpoints"))
            .expect("a folder")
            .map(|entry| std::fs::read_to_string(entry.expect("an entry").path()).expect("a file"))
            .collect();
        files.sort();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|file| serde_json::from_str::<Checkpoint>(file).expect("JSON").verify().is_ok()));
    }

    #[tokio::test]
    async fn a_log_that_was_written_anew_is_not_signed() {
        let store = Arc::new(MemoryStore::default());
        append(&store, "{\"a\":1}").await;
        let signed = notary(&store, None).sign(Actor::system("test")).await.expect("signed");
        // Another history of the same length, with the checkpoint carried over.
        let other = Arc::new(MemoryStore::default());
        append(&other, "{\"a\":2}").await;
        for linked in store.read_links(Position(1), 10).await.expect("events") {
            let event = linked.event;
            let copy = NewEvent {
                id: event.id,
                kind: event.kind,
                schema: event.schema,
                time: event.time,
                actor: event.actor,
                correlation: event.correlation,
                causation: event.causation,
                data: RawValue::from_string(event.data.get().to_owned()).expect("JSON"),
                private: None,
            };
            other.append(&event.stream, Expected::Any, vec![copy]).await.expect("an append");
        }
        let refused = notary(&other, None).sign(Actor::system("test")).await;
        assert!(
            matches!(refused, Err(NotaryError::Rewritten { position, .. }) if position == signed.position),
            "{refused:?}"
        );
    }
}
