//! Content too large for an event: stored once, by the hash of what it is.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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

/// A content-addressed store. `put` is idempotent.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Stores the bytes, durable when it returns.
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobRef, BlobError>;
    /// Reads and verifies a blob.
    async fn get(&self, blob: &BlobRef) -> Result<Vec<u8>, BlobError>;
}

/// Blobs in a folder: `ab/cd/abcd…`, so that no directory grows too large. Each is written under another name, synced
/// and renamed, so that a name is only ever there with its whole content behind it.
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

    /// The file of a blob. `None` if the name is not a SHA-256 in lower-case hexadecimal: names come from stored
    /// events, and a path is made of nothing else.
    fn path(&self, blob: &BlobRef) -> Option<PathBuf> {
        let name = &blob.sha256;
        let is_hash = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_hash.then(|| self.root.join(&name[..2]).join(&name[2..4]).join(name))
    }

    fn put_now(&self, bytes: &[u8]) -> Result<BlobRef, BlobError> {
        let blob = name_of(bytes);
        let Some(path) = self.path(&blob) else { return Err(BlobError::Missing(blob.sha256)) };
        match self.get_now(&blob) {
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
        let parents: Vec<_> = path.ancestors().skip(1).take(3).collect();
        if let Some(parent) = parents.first() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::rename(unfinished, path)?;
        // The rename and the two directories above it are durable once their directories are.
        parents.iter().try_for_each(|parent| File::open(parent)?.sync_all())
    }

    fn get_now(&self, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
        let Some(path) = self.path(blob) else { return Err(BlobError::Missing(blob.sha256.clone())) };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(BlobError::Missing(blob.sha256.clone())),
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        let mut bytes = Vec::new();
        // One byte more than there should be shows a file that has grown, without reading all of it.
        file.take(blob.bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| cannot("read", &path, &error))?;
        if name_of(&bytes) == *blob { Ok(bytes) } else { Err(BlobError::Damaged(blob.sha256.clone())) }
    }
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
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobRef, BlobError> {
        check_size(bytes.len() as u64)?;
        let store = self.clone();
        blocking(move || store.put_now(&bytes)).await
    }

    async fn get(&self, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
        check_size(blob.bytes)?;
        let (store, blob) = (self.clone(), blob.clone());
        blocking(move || store.get_now(&blob)).await
    }
}

/// Blobs in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryBlobs {
    blobs: Mutex<HashMap<String, Vec<u8>>>,
}

#[async_trait]
impl BlobStore for MemoryBlobs {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobRef, BlobError> {
        check_size(bytes.len() as u64)?;
        let blob = name_of(&bytes);
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.sha256.clone(), bytes);
        Ok(blob)
    }

    async fn get(&self, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
        check_size(blob.bytes)?;
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = blobs.get(&blob.sha256).ok_or_else(|| BlobError::Missing(blob.sha256.clone()))?;
        if bytes.len() as u64 == blob.bytes { Ok(bytes.clone()) } else { Err(BlobError::Damaged(blob.sha256.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn conforms(store: impl BlobStore) {
        for bytes in [Vec::new(), b"hello".to_vec(), vec![0xff; 3_000_000]] {
            let blob = store.put(bytes.clone()).await.unwrap();
            assert_eq!(blob.bytes, bytes.len() as u64);
            assert_eq!(store.put(bytes.clone()).await.as_ref(), Ok(&blob), "again is the same");
            assert!(store.get(&blob).await.unwrap() == bytes);
            let longer = BlobRef { bytes: blob.bytes + 1, ..blob.clone() };
            assert_eq!(store.get(&longer).await, Err(BlobError::Damaged(blob.sha256)));
        }
        let known = store.put(b"hello".to_vec()).await.unwrap();
        assert_eq!(known.sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        for unknown in
            ["0".repeat(64), "../../../../etc/passwd".to_owned(), known.sha256.to_uppercase(), "é".repeat(32)]
        {
            let blob = BlobRef { sha256: unknown.clone(), bytes: 5 };
            assert_eq!(store.get(&blob).await, Err(BlobError::Missing(unknown)));
        }
        let huge = vec![0; MAX_BLOB_BYTES + 1];
        assert_eq!(store.put(huge).await, Err(BlobError::TooLarge(MAX_BLOB_BYTES as u64 + 1)));
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
        let blob = store.put(b"hello".to_vec()).await.unwrap();
        let path = store.path(&blob).unwrap();
        for damage in ["hellO", "hell", "hello and more", ""] {
            std::fs::write(&path, damage).unwrap();
            assert_eq!(store.get(&blob).await, Err(BlobError::Damaged(blob.sha256.clone())), "{damage:?}");
        }
        store.put(b"hello".to_vec()).await.unwrap();
        assert_eq!(store.get(&blob).await.unwrap(), b"hello");
        let left = folder.path().join("unfinished");
        assert_eq!(std::fs::read_dir(&left).unwrap().count(), 0);
        std::fs::write(left.join("1-1"), "half").unwrap();
        FolderBlobs::open(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(&left).unwrap().count(), 0, "what a crash left is gone");
        assert_eq!(store.get(&blob).await.unwrap(), b"hello");
    }
}
