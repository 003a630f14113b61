//! Which model calls were sent: one small file per open call, written before the first byte leaves.
//!
//! After a crash, a reserved call without a mark was never sent: it is made as if nothing had happened. One with a
//! mark may have been answered and billed: its reservation is charged in full and marked as unconfirmed.
//!
//! A mark bears its task's name too: one whose removal a crash prevented goes when the task ends.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use orchestra_events::{CallId, TaskId};

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

    fn path(&self, task: TaskId, call: CallId) -> PathBuf {
        self.folder.join(format!("{task}.{call}"))
    }

    /// Durably says that the call is about to be sent.
    pub async fn mark(&self, task: TaskId, call: CallId) -> io::Result<()> {
        let (path, folder) = (self.path(task, call), self.folder.clone());
        blocking(move || {
            File::create(path)?.sync_all()?;
            File::open(folder)?.sync_all()
        })
        .await
    }

    /// Whether it was.
    pub async fn is_marked(&self, task: TaskId, call: CallId) -> io::Result<bool> {
        let path = self.path(task, call);
        blocking(move || path.try_exists()).await
    }

    /// Forgets a call whose outcome is recorded.
    pub async fn clear(&self, task: TaskId, call: CallId) {
        let path = self.path(task, call);
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

    /// Forgets every call of a task that ends.
    pub async fn clear_all(&self, task: TaskId) {
        let (folder, prefix) = (self.folder.clone(), format!("{task}."));
        let removed = blocking(move || {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(%task, %error, "marks of settled model calls stay behind");
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u128) -> TaskId {
        TaskId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn call(number: u128) -> CallId {
        CallId::from_uuid(uuid::Uuid::from_u128(number))
    }

    #[tokio::test]
    async fn a_mark_survives_until_it_is_cleared() {
        let folder = tempfile::tempdir().expect("a folder");
        let marks = CallMarks::open(folder.path().join("calls")).expect("opened");
        assert!(!marks.is_marked(task(1), call(1)).await.expect("read"));
        marks.mark(task(1), call(1)).await.expect("marked");
        let reopened = CallMarks::open(folder.path().join("calls")).expect("opened");
        assert!(reopened.is_marked(task(1), call(1)).await.expect("read"));
        reopened.clear(task(1), call(1)).await;
        reopened.clear(task(1), call(1)).await;
        assert!(!marks.is_marked(task(1), call(1)).await.expect("read"));
    }

    #[tokio::test]
    async fn the_marks_of_a_task_go_with_it_and_no_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let marks = CallMarks::open(folder.path().join("calls")).expect("opened");
        for (task, call) in [(task(1), call(1)), (task(1), call(2)), (task(2), call(3))] {
            marks.mark(task, call).await.expect("marked");
        }
        marks.clear_all(task(1)).await;
        assert!(!marks.is_marked(task(1), call(2)).await.expect("read"));
        assert!(marks.is_marked(task(2), call(3)).await.expect("read"));
    }
}
