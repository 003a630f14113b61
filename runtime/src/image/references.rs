//! Which references were pulled for tasks: `{store}/refs/<hash>` says which image a reference stood for, when the registry was
//! last asked, and, by the file's own time, when a task last wanted it.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::oci::Digest;
use super::{ImageError, ImageStore};

/// Largest record.
const MAX_RECORD: u64 = 16 << 10;

/// What is known of one reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// As it was asked for.
    pub reference: String,
    /// The folder of its image in the store.
    pub image: String,
    /// When the registry was last asked.
    pub asked: Timestamp,
}

/// A record, and when a task last wanted it.
pub struct Kept {
    pub path: PathBuf,
    pub pulled: Pulled,
    pub used: SystemTime,
}

/// Whether the name of a folder is an image's.
pub fn is_image(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn read(path: &Path) -> Option<Pulled> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_RECORD).read_to_end(&mut text).ok()?;
    let pulled: Pulled = serde_json::from_slice(&text).ok()?;
    is_image(&pulled.image).then_some(pulled)
}

impl ImageStore {
    fn refs(&self) -> PathBuf {
        self.store().join("refs")
    }

    fn record_of(&self, reference: &str) -> PathBuf {
        self.refs().join(&Digest::of(reference.as_bytes()).hex()[..32])
    }

    /// What a reference stood for when it was last asked for.
    pub(super) fn pulled(&self, reference: &str) -> Option<Pulled> {
        read(&self.record_of(reference)).filter(|pulled| pulled.reference == reference)
    }

    pub(super) fn stored_reference(&self, reference: &str) -> Result<PathBuf, ImageError> {
        let missing = || ImageError::Missing { name: reference.to_owned(), dir: self.dir().to_owned() };
        let stored = self.store().join(self.pulled(reference).ok_or_else(missing)?.image);
        if stored.is_dir() { Ok(stored) } else { Err(missing()) }
    }

    /// Notes that a reference stands for this stored image.
    pub(super) fn note_pulled(&self, reference: &str, stored: &Path) -> Result<(), ImageError> {
        let image = stored.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pulled = Pulled { reference: reference.to_owned(), image, asked: Timestamp::now() };
        let (path, text) = (self.record_of(reference), serde_json::to_vec(&pulled).expect("a record has string keys"));
        let partial = self.refs().join(format!(".{}", uuid::Uuid::now_v7()));
        let write = || {
            fs::create_dir_all(self.refs())?;
            fs::write(&partial, text)?;
            fs::rename(&partial, &path)
        };
        write().map_err(ImageError::io("noting", &path))
    }

    /// Notes that a task wants a reference now.
    pub(super) fn note_use(&self, reference: &str) {
        if let Ok(file) = File::options().append(true).open(self.record_of(reference)) {
            // Only the order in which they are removed hangs on it.
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// Every record.
    pub(super) fn kept_references(&self) -> Vec<Kept> {
        let entries = fs::read_dir(self.refs()).into_iter().flatten().flatten();
        let kept = entries.filter_map(|entry| {
            let (path, used) = (entry.path(), entry.metadata().ok()?.modified().ok()?);
            Some(Kept { pulled: read(&path)?, path, used })
        });
        kept.collect()
    }
}
