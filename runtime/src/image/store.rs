//! How an image gets into the store: made in a private place, then moved in whole; and who may do that at the same time.
//!
//! Whoever makes images holds a shared lock on the store, whoever removes some an exclusive one. Who stands on an image holds
//! a shared lock on that image's own folder. The kernel lets go of all of them when their holder is gone, however it went, and
//! they hold between all servers and commands that share the folder.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{FORMAT, Image, ImageError, ImageStore, Manifest, furnish, registries};

/// How often an image is looked up again when it was replaced in between.
const LOOKS: usize = 3;

/// What a new image's manifest says of where it comes from.
#[derive(Debug, Default)]
pub(super) struct About {
    pub source: String,
    pub inputs: String,
    pub digest: Option<String>,
    pub reference: Option<String>,
    pub env: BTreeMap<String, String>,
    pub layers: Vec<String>,
    pub agents: BTreeMap<String, String>,
}

/// A promise that nothing is collected meanwhile; holds for as long as it lives.
#[derive(Debug)]
pub(super) struct Writing(#[expect(dead_code, reason = "open is what it is for")] File);

/// An image that is not removed for as long as this lives.
#[derive(Debug)]
pub struct Lease {
    /// The image.
    pub image: Image,
    _held: File,
}

/// Holds the image that this root file system belongs to.
///
/// # Errors
/// When it is being removed, or is gone.
pub fn hold(rootfs: &Path) -> io::Result<File> {
    let home = rootfs.parent().unwrap_or(rootfs);
    let held = File::open(home)?;
    held.try_lock_shared().map_err(|error| match error {
        TryLockError::Error(error) => error,
        TryLockError::WouldBlock => io::Error::new(io::ErrorKind::NotFound, "the image is being removed"),
    })?;
    // Between the two it may have been removed, or replaced.
    let (now, then) = (fs::symlink_metadata(home)?, held.metadata()?);
    if (now.dev(), now.ino()) == (then.dev(), then.ino()) {
        return Ok(held);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the image was replaced"))
}

impl ImageStore {
    /// The named image, which stays for as long as the answer lives.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn lease(&self, name: &str) -> Result<Lease, ImageError> {
        let mut looks = 0;
        loop {
            let image = self.read(name)?;
            match hold(&image.rootfs) {
                Ok(held) => return Ok(Lease { image, _held: held }),
                Err(error) if error.kind() == io::ErrorKind::NotFound && looks < LOOKS => looks += 1,
                Err(error) => return Err(ImageError::io("holding", &image.rootfs)(error)),
            }
        }
    }

    /// Keeps images from being collected while one is made. Waits for a collection that is going on, which is a matter of
    /// moments.
    pub(super) fn writing(&self) -> Result<Writing, ImageError> {
        let store = self.store();
        let lock = || {
            fs::create_dir_all(&store)?;
            let file = File::open(&store)?;
            file.lock_shared()?;
            Ok(Writing(file))
        };
        lock().map_err(ImageError::io("locking", &store))
    }

    /// Where an image of these inputs is stored.
    pub(super) fn home_of(&self, inputs: &str) -> PathBuf {
        self.store().join(&inputs[..inputs.len().min(32)])
    }

    /// A stored image of the same inputs.
    pub(super) fn known(&self, inputs: &str) -> Option<PathBuf> {
        let stored = self.home_of(inputs);
        stored.join("manifest.json").exists().then_some(stored)
    }

    /// Makes a root file system in a private place, and stores it once it is whole.
    pub(super) fn store_new(
        &self,
        about: About,
        fill: impl FnOnce(&Path, &Path) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        let store = self.store();
        fs::create_dir_all(&store).map_err(ImageError::io("making", &store))?;
        let partial = store.join(format!(".partial-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&partial).map_err(ImageError::io("making", &partial))?;
        let done = self.fill_and_store(about, &partial, fill);
        // What failed is removed; what succeeded has been moved away but for its scraps.
        let _ = fs::remove_dir_all(&partial);
        done
    }

    fn fill_and_store(
        &self,
        about: About,
        partial: &Path,
        fill: impl FnOnce(&Path, &Path) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        let About { source, inputs, digest, reference, env, layers, agents } = about;
        let home = partial.join("image");
        let rootfs = home.join("rootfs");
        fs::create_dir(&home).map_err(ImageError::io("making", &home))?;
        fill(partial, &rootfs)?;
        furnish::furnish(&rootfs)?;
        let (bytes, entries) = furnish::measure(&rootfs)?;
        let stored = self.home_of(&inputs);
        let created = jiff::Timestamp::now().to_string();
        let registries = registries::read_and_keep(&home, &rootfs, &env)?;
        let format = FORMAT;
        let manifest = Manifest {
            format,
            source,
            inputs,
            digest,
            reference,
            created,
            bytes,
            entries,
            agents,
            env,
            layers,
            registries,
        };
        let text = serde_json::to_vec_pretty(&manifest).expect("a manifest has string keys");
        let file = home.join("manifest.json");
        fs::write(&file, text).map_err(ImageError::io("writing", &file))?;
        match fs::rename(&home, &stored) {
            Ok(()) => {}
            // Somebody else built the same meanwhile; theirs is as good.
            Err(_) if stored.join("manifest.json").exists() => {}
            Err(error) => return Err(ImageError::io("storing", &stored)(error)),
        }
        Ok(stored)
    }
}
