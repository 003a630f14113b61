//! Which model calls were sent: one small file per open call, written before the first byte leaves.
//!
//! After a crash, a reserved call without a mark was never sent: it is made as if nothing had happened. One with a
//! mark may have been answered and billed: its reservation is charged in full and marked as unconfirmed.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use orchestra_events::CallId;

/// The marks, in one folder.
#[derive(Debug, Clone)]
pub struct CallMarks {
    folder: PathBuf,
}

impl CallMarks {
    /// Marks in this folder, which is created.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    fn path(&self, call: CallId) -> PathBuf {
        self.folder.join(call.to_string())
    }

    /// Durably says that the call is about to be sent.
    pub async fn mark(&self, call: CallId) -> io::Result<()> {
        let (path, folder) = (self.path(call), self.folder.clone());
        blocking(move || {
            File::create(path)?.sync_all()?;
            File::open(folder)?.sync_all()
        })
        .await
    }

    /// Whether it was.
    pub async fn is_marked(&self, call: CallId) -> io::Result<bool> {
        let path = self.path(call);
        blocking(move || path.try_exists()).await
    }

    /// Forgets a call whose outcome is recorded.
    pub async fn clear(&self, call: CallId) {
        let path = self.path(call);
        let removed = blocking(move || match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await;
        if let Err(error) = removed {
            // A mark left behind names a call that is settled: nobody asks for it again.
            tracing::warn!(%call, %error, "the mark of a settled model call stays behind");
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_survives_until_it_is_cleared() {
        let folder = tempfile::tempdir().expect("a folder");
        let call = CallId::from_uuid(uuid::Uuid::from_u128(1));
        let marks = CallMarks::open(folder.path().join("calls")).expect("opened");
        assert!(!marks.is_marked(call).await.expect("read"));
        marks.mark(call).await.expect("marked");
        let reopened = CallMarks::open(folder.path().join("calls")).expect("opened");
        assert!(reopened.is_marked(call).await.expect("read"));
        reopened.clear(call).await;
        reopened.clear(call).await;
        assert!(!marks.is_marked(call).await.expect("read"));
    }
}
