//! The read models' own SQLite file: one writer, a few readers, none of them on an async thread.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, MigrationDefinitionError, Migrations};
use tokio::sync::Semaphore;

use super::ReadModelError;

/// Connections that read at the same time. More would only wait for the same few cores.
pub const READERS: usize = 4;
/// How long a read may wait for a free connection before the caller is told that the server is busy.
pub const READ_QUEUE_WAIT: Duration = Duration::from_secs(5);
/// How long SQLite itself waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Database {
    writer: Arc<Mutex<Connection>>,
    readers: Arc<Mutex<Vec<Connection>>>,
    slots: Arc<Semaphore>,
}

/// Gives its connection back when it is dropped, a panic included.
struct Borrowed {
    connection: Option<Connection>,
    pool: Arc<Mutex<Vec<Connection>>>,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

impl Database {
    pub fn open(path: &Path) -> Result<Self, ReadModelError> {
        let mut writer = Connection::open(path)?;
        writer.busy_timeout(BUSY_TIMEOUT)?;
        writer.pragma_update(None, "journal_mode", "wal")?;
        // What a power cut takes away is folded again from the log.
        writer.pragma_update(None, "synchronous", "normal")?;
        // What is forgotten is overwritten; what rows left behind when they were moved goes with `tidy`.
        writer.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
        Migrations::new(vec![
            M::up(include_str!("../../../migrations/1001_read_models.sql")),
            M::up(include_str!("../../../migrations/1002_refunds.sql")),
            M::up(include_str!("../../../migrations/1003_repositories.sql")),
            M::up(include_str!("../../../migrations/1004_campaigns.sql")),
            M::up(include_str!("../../../migrations/1005_task_bounds.sql")),
            M::up(include_str!("../../../migrations/1006_erasure.sql")),
            M::up(include_str!("../../../migrations/1007_webhooks.sql")),
            M::up(include_str!("../../../migrations/1008_audit.sql")),
            M::up(include_str!("../../../migrations/1009_billing.sql")),
        ])
        .to_latest(&mut writer)
        .map_err(|error| match error {
            rusqlite_migration::Error::MigrationDefinition(MigrationDefinitionError::DatabaseTooFarAhead) => {
                let path = path.display();
                ReadModelError::Failed(format!(
                    "{path} was made by another version of Orchestra. Start that one, or remove {path}, {path}-wal and \
                     {path}-shm: they are made anew from the log"
                ))
            }
            error => ReadModelError::Failed(error.to_string()),
        })?;
        let path: PathBuf = path.to_owned();
        let readers = (0..READERS)
            .map(|_| {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let reader = Connection::open_with_flags(&path, flags)?;
                reader.busy_timeout(BUSY_TIMEOUT)?;
                super::bounds::teach(&reader)?;
                Ok(reader)
            })
            .collect::<Result<Vec<_>, rusqlite::Error>>()?;
        Ok(Self {
            writer: Arc::new(Mutex::new(writer)),
            readers: Arc::new(Mutex::new(readers)),
            slots: Arc::new(Semaphore::new(READERS)),
        })
    }

    /// Runs a query on a blocking thread.
    pub async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        let slot = tokio::time::timeout(READ_QUEUE_WAIT, Arc::clone(&self.slots).acquire_owned())
            .await
            .map_err(|_| ReadModelError::Busy)?
            .map_err(|_| ReadModelError::Busy)?;
        let pool = Arc::clone(&self.readers);
        tokio::task::spawn_blocking(move || {
            let connection = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let borrowed = Borrowed { connection, pool };
            let connection = borrowed.connection.as_ref().ok_or(ReadModelError::Busy)?;
            let answer = query(connection);
            // The connection goes back before its slot does.
            drop(borrowed);
            drop(slot);
            answer
        })
        .await
        .map_err(|error| ReadModelError::Failed(error.to_string()))?
    }

    /// Runs a change on a blocking thread; one at a time.
    pub async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Connection) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        let writer = Arc::clone(&self.writer);
        tokio::task::spawn_blocking(move || change(&mut writer.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(|error| ReadModelError::Failed(error.to_string()))?
    }

    /// Runs a change on this thread: only while the file is being opened.
    pub fn read_now<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, ReadModelError>,
    ) -> Result<T, ReadModelError> {
        query(&self.writer.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
