//! Content too large for an event: stored once, by the hash of what it is.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

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
    /// The disk said no.
    #[error("the blob store failed: {0}")]
    Failed(String),
}

/// A content-addressed store. `put` is idempotent.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Stores the bytes, durable when it returns.
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobRef, BlobError>;
    /// Reads and verifies a blob.
    async fn get(&self, blob: &BlobRef) -> Result<Vec<u8>, BlobError>;
}
