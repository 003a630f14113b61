//! Content too large for an event: stored beside the log by the hash of what it is, in a place of its task's own, so that it goes
//! when the task's words are erased.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::id::TaskId;

/// Content up to this many bytes stays in its event; above, it goes to the blob store.
pub const INLINE_LIMIT: usize = 32 * 1024;

/// The name of a blob: the SHA-256 of its bytes, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlobRef {
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
}

impl BlobRef {
    /// The name of no blob: what stands where one was, once that is erased.
    pub fn none() -> Self {
        Self { sha256: String::new(), bytes: 0 }
    }

    /// Whether it names no blob.
    pub fn is_none(&self) -> bool {
        self.sha256.is_empty()
    }
}

/// Text that is in the event itself or, when large, in the blob store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// The text itself.
    Inline(String),
    /// Where the text is.
    Blob(BlobRef),
}

/// Why a blob could not be stored or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// No blob of that name.
    #[error("no blob {0}")]
    Missing(String),
    /// What is stored does not hash to its name.
    #[error("blob {0} is damaged")]
    Damaged(String),
    /// Larger than [`MAX_BLOB_BYTES`].
    #[error("{0} bytes are too many for one blob, which holds at most {MAX_BLOB_BYTES}")]
    TooLarge(u64),
    /// The disk said no.
    #[error("the blob store failed: {0}")]
    Failed(String),
}

/// Largest blob: a blob is handled whole in memory.
pub const MAX_BLOB_BYTES: usize = 64 * 1024 * 1024;

fn name_of(bytes: &[u8]) -> BlobRef {
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    BlobRef { sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(), bytes: bytes.len() as u64 }
}

fn check_size(bytes: u64) -> Result<(), BlobError> {
    if bytes > MAX_BLOB_BYTES as u64 { Err(BlobError::TooLarge(bytes)) } else { Ok(()) }
}

/// A content-addressed store of what belongs to tasks. `put` and `erase` are idempotent.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Stores the bytes for a task, durable when it returns.
    async fn put(&self, owner: TaskId, bytes: Vec<u8>) -> Result<BlobRef, BlobError>;
    /// Reads and verifies a blob of a task.
    async fn get(&self, owner: TaskId, blob: &BlobRef) -> Result<Vec<u8>, BlobError>;
    /// Deletes all blobs of a task, for good when it returns.
    async fn erase(&self, owner: TaskId) -> Result<(), BlobError>;
}

/// Blobs in a folder: `tasks/89/…89/abcd…`, so that no directory grows too large. Each is written under another name,
/// synced and renamed, so that a name is only ever there with its whole content behind it.
///
/// What was stored before blobs belonged to tasks is in `ab/cd/abcd…`, for all together. It is read there, and never deleted.
#[derive(Debug, Clone)]
pub struct FolderBlobs {
    root: PathBuf,
}

/// Names of files that are being written; they are told apart by process and by this count.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

impl FolderBlobs {
    /// Uses this folder, creating it if it is missing, and removes what a crash left half written.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, BlobError> {
        let root = root.into();
        let unfinished = root.join("unfinished");
        let prepare = || {
            match std::fs::remove_dir_all(&unfinished) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::fs::create_dir_all(&unfinished)
        };
        prepare().map_err(|error| cannot("prepare the folder", &root, &error))?;
        Ok(Self { root })
    }

    /// The folder of a task. The end of an id is random, its beginning the time.
    fn folder(&self, owner: TaskId) -> PathBuf {
        let name = owner.uuid().simple().to_string();
        self.root.join("tasks").join(&name[name.len() - 2..]).join(name)
    }

    /// The file of a blob. `None` if the name is not a SHA-256 in lower-case hexadecimal: names come from stored
    /// events, and a path is made of nothing else.
    fn path(&self, owner: TaskId, blob: &BlobRef) -> Option<PathBuf> {
        is_hash(&blob.sha256).then(|| self.folder(owner).join(&blob.sha256))
    }

    /// Where it is if it was stored before blobs belonged to tasks.
    fn shared_path(&self, blob: &BlobRef) -> Option<PathBuf> {
        let name = &blob.sha256;
        is_hash(name).then(|| self.root.join(&name[..2]).join(&name[2..4]).join(name))
    }

    fn put_now(&self, owner: TaskId, bytes: &[u8]) -> Result<BlobRef, BlobError> {
        let blob = name_of(bytes);
        let Some(path) = self.path(owner, &blob) else { return Err(BlobError::Missing(blob.sha256)) };
        match Self::read(&path, &blob) {
            Ok(_) => return Ok(blob),
            // A damaged blob is replaced by the good bytes at hand.
            Err(BlobError::Missing(_) | BlobError::Damaged(_)) => {}
            Err(error @ (BlobError::TooLarge(_) | BlobError::Failed(_))) => return Err(error),
        }
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.root.join("unfinished").join(format!("{}-{number}", std::process::id()));
        let written = Self::write(&unfinished, &path, bytes);
        if let Err(error) = written {
            let _ = std::fs::remove_file(&unfinished);
            return Err(cannot("write", &path, &error));
        }
        Ok(blob)
    }

    fn write(unfinished: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = File::options().write(true).create_new(true).open(unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        let parents: Vec<_> = path.ancestors().skip(1).take(4).collect();
        if let Some(parent) = parents.first() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::rename(unfinished, path)?;
        // The rename and the directories above it are durable once their directories are.
        parents.iter().try_for_each(|parent| File::open(parent)?.sync_all())
    }

    fn get_now(&self, owner: TaskId, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
        let missing = || BlobError::Missing(blob.sha256.clone());
        let own = Self::read(&self.path(owner, blob).ok_or_else(missing)?, blob);
        match (own, self.shared_path(blob)) {
            (Err(BlobError::Missing(_)), Some(shared)) => Self::read(&shared, blob),
            (own, _) => own,
        }
    }

    fn erase_now(&self, owner: TaskId) -> Result<(), BlobError> {
        let folder = self.folder(owner);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(cannot("delete", &folder, &error)),
            Ok(()) => {}
        }
        let parent = folder.parent().unwrap_or(&self.root);
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| cannot("delete", &folder, &error))
    }

    fn read(path: &Path, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(BlobError::Missing(blob.sha256.clone())),
            Err(error) => return Err(cannot("read", path, &error)),
        };
        let mut bytes = Vec::new();
        // One byte more than there should be shows a file that has grown, without reading all of it.
        file.take(blob.bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| cannot("read", path, &error))?;
        if name_of(&bytes) == *blob { Ok(bytes) } else { Err(BlobError::Damaged(blob.sha256.clone())) }
    }
}

fn is_hash(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> BlobError {
    BlobError::Failed(format!("cannot {what} {}: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| BlobError::Failed(error.to_string()))?
}

#[async_trait]
impl BlobStore for FolderBlobs {
    async fn put(&self, owner: TaskId, bytes: Vec<u8>) -> Result<BlobRef, BlobError> {
        check_size(bytes.len() as u64)?;
        let store = self.clone();
        blocking(move || store.put_now(owner, &bytes)).await
    }

    async fn get(&self, owner: TaskId, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
        check_size(blob.bytes)?;
        let (store, blob) = (self.clone(), blob.clone());
        blocking(move || store.get_now(owner, &blob)).await
    }

    async fn erase(&self, owner: TaskId) -> Result<(), BlobError> {
        let store = self.clone();
        blocking(move || store.erase_now(owner)).await
    }
}

/// Blobs in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryBlobs {
    blobs: Mutex<HashMap<(TaskId, String), Vec<u8>>>,
}

#[async_trait]
impl BlobStore for MemoryBlobs {
    async fn put(&self, owner: TaskId, bytes: Vec<u8>) -> Result<BlobRef, BlobError> {
        check_size(bytes.len() as u64)?;
        let blob = name_of(&bytes);
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).insert((owner, blob.sha256.clone()), bytes);
        Ok(blob)
    }

    async fn erase(&self, owner: TaskId) -> Result<(), BlobError> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| *of != owner);
        Ok(())
    }

    async fn get(&self, owner: TaskId, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
        check_size(blob.bytes)?;
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = blobs.get(&(owner, blob.sha256.clone())).ok_or_else(|| BlobError::Missing(blob.sha256.clone()))?;
        if bytes.len() as u64 == blob.bytes { Ok(bytes.clone()) } else { Err(BlobError::Damaged(blob.sha256.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn task(number: u128) -> TaskId {
        TaskId::from_uuid(uuid::Uuid::from_u128(number))
    }

    async fn conforms(store: impl BlobStore) {
        let (mine, other) = (task(1), task(2));
        for bytes in [Vec::new(), b"hello".to_vec(), vec![0xff; 3_000_000]] {
            let blob = store.put(mine, bytes.clone()).await.unwrap();
            assert_eq!(blob.bytes, bytes.len() as u64);
            assert_eq!(store.put(mine, bytes.clone()).await.as_ref(), Ok(&blob), "again is the same");
            assert!(store.get(mine, &blob).await.unwrap() == bytes);
            assert_eq!(store.get(other, &blob).await, Err(BlobError::Missing(blob.sha256.clone())));
            let longer = BlobRef { bytes: blob.bytes + 1, ..blob.clone() };
            assert_eq!(store.get(mine, &longer).await, Err(BlobError::Damaged(blob.sha256)));
        }
        let known = store.put(mine, b"hello".to_vec()).await.unwrap();
        assert_eq!(known.sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        for unknown in
            ["0".repeat(64), "../../../../etc/passwd".to_owned(), known.sha256.to_uppercase(), "é".repeat(32)]
        {
            let blob = BlobRef { sha256: unknown.clone(), bytes: 5 };
            assert_eq!(store.get(mine, &blob).await, Err(BlobError::Missing(unknown)));
        }
        store.put(other, b"hello".to_vec()).await.unwrap();
        for _ in 0..2 {
            store.erase(mine).await.unwrap();
            assert_eq!(store.get(mine, &known).await, Err(BlobError::Missing(known.sha256.clone())));
            assert_eq!(store.get(other, &known).await.unwrap(), b"hello", "what another task has stays");
        }
        store.put(mine, b"hello".to_vec()).await.unwrap();
        assert_eq!(store.get(mine, &known).await.unwrap(), b"hello");
        let huge = vec![0; MAX_BLOB_BYTES + 1];
        assert_eq!(store.put(mine, huge).await, Err(BlobError::TooLarge(MAX_BLOB_BYTES as u64 + 1)));
    }

    #[tokio::test]
    async fn blobs_come_back_as_they_were_stored() {
        conforms(MemoryBlobs::default()).await;
        let folder = tempfile::tempdir().unwrap();
        conforms(FolderBlobs::open(folder.path().join("blobs")).unwrap()).await;
    }

    #[tokio::test]
    async fn damage_is_found_and_mended_by_the_next_put() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderBlobs::open(folder.path()).unwrap();
        let blob = store.put(task(1), b"hello".to_vec()).await.unwrap();
        let path = store.path(task(1), &blob).unwrap();
        for damage in ["hellO", "hell", "hello and more", ""] {
            std::fs::write(&path, damage).unwrap();
            assert_eq!(store.get(task(1), &blob).await, Err(BlobError::Damaged(blob.sha256.clone())), "{damage:?}");
        }
        store.put(task(1), b"hello".to_vec()).await.unwrap();
        assert_eq!(store.get(task(1), &blob).await.unwrap(), b"hello");
        let left = folder.path().join("unfinished");
        assert_eq!(std::fs::read_dir(&left).unwrap().count(), 0);
        std::fs::write(left.join("1-1"), "half").unwrap();
        FolderBlobs::open(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(&left).unwrap().count(), 0, "what a crash left is gone");
        assert_eq!(store.get(task(1), &blob).await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn what_was_stored_for_all_together_is_still_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderBlobs::open(folder.path()).unwrap();
        let blob = name_of(b"hello");
        let shared = store.shared_path(&blob).unwrap();
        assert!(shared.ends_with(format!("2c/f2/{}", blob.sha256)));
        std::fs::create_dir_all(shared.parent().unwrap()).unwrap();
        std::fs::write(&shared, "hello").unwrap();
        assert_eq!(store.get(task(1), &blob).await.unwrap(), b"hello");
        store.erase(task(1)).await.unwrap();
        assert_eq!(store.get(task(2), &blob).await.unwrap(), b"hello");
    }
}
