//! The root file systems that sandboxes start from: found by name, built from Debian, or pulled from a registry.
//!
//! `{dir}/<name>` is a symbolic link to `{dir}/.store/<digest>`, which holds `rootfs/` and `manifest.json`. A new
//! version is complete before the link moves, and sandboxes that run on the old one keep it.

mod agents;
mod build;
mod debian;
mod derive;
mod error;
mod furnish;
mod npm;
mod pull;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use agents::AgentVersion;
pub use build::BuildOptions;
pub use error::ImageError;

/// Longest name of an image, in bytes.
pub const MAX_NAME: usize = 100;

/// How far a build or a pull is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub phase: &'static str,
    /// How much of the whole is done, from 0 to 1.
    pub fraction: f64,
    /// The latest thing that happened.
    pub detail: String,
}

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
    /// The command line agents in it, by the name of their harness, with their versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub agents: BTreeMap<String, String>,
    /// The hosts that its own npm, pip, cargo and apt are configured for: `host`, or `host:port`.
    #[serde(default)]
    pub registries: BTreeSet<String>,
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

    /// Where the named image is stored.
    fn stored(&self, name: &str) -> Result<PathBuf, ImageError> {
        check_name(name)?;
        let missing = |_| ImageError::Missing { name: name.to_owned(), dir: self.dir.clone() };
        fs::canonicalize(self.dir.join(name)).map_err(missing)
    }

    /// What the image that is stored here, and asked for under this name, is made of.
    fn manifest(home: &Path, name: &str) -> Result<Manifest, ImageError> {
        let damaged = |detail: String| ImageError::Damaged { name: name.to_owned(), detail };
        let manifest = fs::read(home.join("manifest.json")).map_err(|error| damaged(error.to_string()))?;
        serde_json::from_slice(&manifest).map_err(|error| damaged(error.to_string()))
    }

    fn read(&self, name: &str) -> Result<Image, ImageError> {
        let home = self.stored(name)?;
        let manifest = Self::manifest(&home, name)?;
        let rootfs = home.join("rootfs");
        if !rootfs.is_dir() {
            let detail = "its root file system is missing".into();
            return Err(ImageError::Damaged { name: name.to_owned(), detail });
        }
        Ok(Image { name: name.to_owned(), rootfs, manifest })
    }

    /// The named image.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn find(&self, name: &str) -> Result<Image, ImageError> {
        self.read(name)
    }

    /// The root file system of the named image.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn resolve(&self, name: &str) -> Result<PathBuf, ImageError> {
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
