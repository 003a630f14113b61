//! The one secret of a server that is kept: a file beside the data, from which every other secret of its own is made.
//!
//! Webhooks are signed, and so are checkpoints of the log. Their keys are not stored: each is derived from this one
//! (HKDF-SHA256, RFC 5869) for a purpose, so that a rotated key is the next purpose and a copy of the log holds none.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hkdf::Hkdf;
use orchestra_events::audit::SigningKey;
use secrecy::{ExposeSecret as _, SecretBox};
use sha2::Sha256;

/// Length of the key and of every derived one, in bytes.
pub const KEY_BYTES: usize = 32;

/// Where the file lies in the data folder.
pub const FILE: &str = "server.key";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum ServerKeyError {
    /// The file could not be read or written.
    #[error("cannot use the server's key {path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds something else.
    #[error("{0} does not hold {KEY_BYTES} bytes: restore it from a back-up; without it, receivers reject webhooks")]
    Damaged(PathBuf),
    /// Others can read it.
    #[error("{0} can be read by others: `chmod 600` it, and rotate the webhooks' secrets if somebody has")]
    Open(PathBuf),
    /// The system has no randomness to give.
    #[error("the system gave no random bytes")]
    NoRandomness,
}

/// The key.
pub struct ServerKey(SecretBox<[u8; KEY_BYTES]>);

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKey")
    }
}

impl ServerKey {
    /// Reads the key of a data folder, or makes one, durable when this returns.
    pub fn open(data_dir: &Path) -> Result<Self, ServerKeyError> {
        let path = data_dir.join(FILE);
        match File::open(&path) {
            Ok(file) => Self::read(file, path),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::make(data_dir, path),
            Err(error) => Err(ServerKeyError::File { path, error }),
        }
    }

    /// A key that is not kept, for tests and for servers in memory.
    pub fn passing() -> Result<Self, ServerKeyError> {
        let mut key = SecretBox::new(Box::new([0; KEY_BYTES]));
        getrandom::fill(secrecy::ExposeSecretMut::expose_secret_mut(&mut key))
            .map_err(|_| ServerKeyError::NoRandomness)?;
        Ok(Self(key))
    }

    fn read(file: File, path: PathBuf) -> Result<Self, ServerKeyError> {
        let cannot = |error| ServerKeyError::File { path: path.clone(), error };
        if file.metadata().map_err(cannot)?.mode() & 0o077 != 0 {
            return Err(ServerKeyError::Open(path));
        }
        let mut bytes = Vec::with_capacity(KEY_BYTES + 1);
        file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(cannot)?;
        let bytes = bytes.try_into().map_err(|_| ServerKeyError::Damaged(path))?;
        Ok(Self(SecretBox::new(Box::new(bytes))))
    }

    fn make(data_dir: &Path, path: PathBuf) -> Result<Self, ServerKeyError> {
        let key = Self::passing()?;
        let unfinished = path.with_extension("key.unfinished");
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(key.0.expose_secret())?;
            file.sync_all()?;
            // A name that is there already stays: another process was first.
            std::fs::hard_link(&unfinished, &path)?;
            std::fs::remove_file(&unfinished)?;
            File::open(data_dir)?.sync_all()
        })();
        match written {
            Ok(()) => Ok(key),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let file = File::open(&path).map_err(|error| ServerKeyError::File { path: path.clone(), error })?;
                Self::read(file, path)
            }
            Err(error) => Err(ServerKeyError::File { path, error }),
        }
    }

    /// The key for a purpose, such as `webhook/webhook_01k…/2`. The same purpose always has the same key.
    pub fn derive(&self, purpose: &str) -> SecretBox<[u8; KEY_BYTES]> {
        let mut key = SecretBox::new(Box::new([0; KEY_BYTES]));
        Hkdf::<Sha256>::new(Some(b"orchestra"), self.0.expose_secret())
            .expand(purpose.as_bytes(), secrecy::ExposeSecretMut::expose_secret_mut(&mut key).as_mut_slice())
            .expect("32 bytes are fewer than 255 hashes");
        key
    }

    /// The key that signs checkpoints of the log.
    pub fn checkpoint_key(&self) -> SigningKey {
        SigningKey::from_bytes(self.derive("checkpoint/1").expose_secret())
    }

    /// Whether a data folder has a key: for those who must not make one.
    pub fn is_in(data_dir: &Path) -> bool {
        data_dir.join(FILE).exists()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_each_purpose_has_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let first = ServerKey::open(folder.path()).unwrap();
        let again = ServerKey::open(folder.path()).unwrap();
        let (one, same) = (first.derive("webhook/1"), again.derive("webhook/1"));
        assert_eq!(one.expose_secret(), same.expose_secret());
        assert_ne!(one.expose_secret(), first.derive("webhook/2").expose_secret());
        assert_ne!(one.expose_secret(), ServerKey::passing().unwrap().derive("webhook/1").expose_secret());
        assert_eq!(format!("{first:?}"), "ServerKey");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_is_damaged_or_open_to_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        ServerKey::open(folder.path()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(ServerKey::open(folder.path()), Err(ServerKeyError::Open(_))));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for bytes in [31, 33, 0] {
            std::fs::write(&path, vec![1; bytes]).unwrap();
            assert!(matches!(ServerKey::open(folder.path()), Err(ServerKeyError::Damaged(_))), "{bytes}");
        }
    }
}
