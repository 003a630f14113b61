//! The root file systems that sandboxes start from: found by name, built from Debian, or pulled from a registry.
//!
//! `{dir}/<name>` is a symbolic link to `{dir}/.store/<digest>`, which holds `rootfs/` and `manifest.json`. A new
//! version is complete before the link moves, and sandboxes that run on the old one keep it.

mod error;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::ImageError;

/// Longest name of an image, in bytes.
pub const MAX_NAME: usize = 100;

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Where it came from: a registry reference with digest, or what it was built of.
    pub source: String,
    /// The digest of everything that went into it; the same inputs are not built twice.
    pub inputs: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// How many files, directories and links it has.
    pub entries: u64,
}

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// What it is made of.
    pub manifest: Manifest,
}

/// A directory of images.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: PathBuf,
}

/// Lower-case letters, digits and `.`, `_`, `-`, not first: no name can leave the directory.
fn check_name(name: &str) -> Result<(), ImageError> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let fits = name.len() <= MAX_NAME
        && name.bytes().all(known)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if fits { Ok(()) } else { Err(ImageError::Name(name.chars().take(MAX_NAME).collect())) }
}

impl ImageStore {
    /// The images in this directory, which need not exist yet.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn store(&self) -> PathBuf {
        self.dir.join(".store")
    }

    fn read(&self, name: &str) -> Result<Image, ImageError> {
        let missing = |_| ImageError::Missing { name: name.to_owned(), dir: self.dir.clone() };
        let home = fs::canonicalize(self.dir.join(name)).map_err(missing)?;
        let damaged = |detail: String| ImageError::Damaged { name: name.to_owned(), detail };
        let manifest = fs::read(home.join("manifest.json")).map_err(|error| damaged(error.to_string()))?;
        let manifest = serde_json::from_slice(&manifest).map_err(|error| damaged(error.to_string()))?;
        let rootfs = home.join("rootfs");
        if !rootfs.is_dir() {
            return Err(damaged("its root file system is missing".into()));
        }
        Ok(Image { name: name.to_owned(), rootfs, manifest })
    }

    /// The root file system of the named image.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn resolve(&self, name: &str) -> Result<PathBuf, ImageError> {
        check_name(name)?;
        self.read(name).map(|image| image.rootfs)
    }

    /// Every image, by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ImageError::io("reading", &self.dir)(error)),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut images: Vec<Image> =
            names.filter(|name| check_name(name).is_ok()).filter_map(|name| self.read(&name).ok()).collect();
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Makes `name` mean this stored image, in one step.
    fn link(&self, name: &str, stored: &Path) -> Result<(), ImageError> {
        let target = Path::new(".store").join(stored.file_name().unwrap_or_default());
        let partial = self.dir.join(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&partial);
        std::os::unix::fs::symlink(target, &partial)
            .and_then(|()| fs::rename(&partial, self.dir.join(name)))
            .map_err(ImageError::io("naming", &self.dir.join(name)))
    }
}
