//! The root file systems that sandboxes start from: found by name, built from Debian, pulled from a registry, or loaded from an
//! archive.
//!
//! `{dir}/<name>` is a symbolic link to `{dir}/.store/<digest>`, which holds `rootfs/` and `manifest.json`. A new
//! version is complete before the link moves, and sandboxes that run on the old one keep it. `{dir}/.store/layers` holds the
//! layers that pulled images are made of, `{dir}/.store/refs` which references were pulled for tasks.

mod agents;
mod authorities;
mod build;
mod collect;
mod credentials;
mod debian;
mod derive;
mod error;
mod furnish;
mod layer;
mod layout;
mod npm;
mod oci;
mod packages;
mod pull;
mod references;
mod registries;
mod registry;
mod store;
mod supply;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use agents::AgentVersion;
pub use build::BuildOptions;
pub use collect::{Collected, Keep};
pub use credentials::Credentials;
pub use error::{ImageError, PullFault};
pub use packages::NpmPackage;
pub use pull::is_reference;
pub use store::{Lease, hold};
pub use supply::{Named, Supply};

/// Longest name of an image, in bytes.
pub const MAX_NAME: usize = 100;
/// Of the manifest that is written beside an image.
const FORMAT: u32 = 2;

/// How far a build or a pull is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub phase: &'static str,
    /// How much of the whole is done, from 0 to 1.
    pub fraction: f64,
    /// The latest thing that happened.
    pub detail: String,
    /// How far one of its parts is.
    pub part: Option<Part>,
}

/// A part of a pull: one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The start of its digest.
    pub name: String,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes that it has.
    pub total: u64,
}

impl Progress {
    fn new(phase: &'static str, fraction: f64, detail: String) -> Self {
        Self { phase, fraction, detail, part: None }
    }
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The shape of this document.
    #[serde(default)]
    format: u32,
    /// Where it came from: a registry reference with digest, or what it was built of.
    pub source: String,
    /// The digest of everything that went into it; the same inputs are not built twice.
    pub inputs: String,
    /// The digest of its manifest for this kind of machine, if it was pulled or loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What was asked for, if it was pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// How many files, directories and links it has.
    pub entries: u64,
    /// The command line agents in it, by the name of their harness, with their versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub agents: BTreeMap<String, String>,
    /// Variables that its programs expect.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The digests of its layers, unpacked, from the lowest up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
    /// The hosts, each with a port where one is named, that its own npm, pip, cargo and apt are configured for. Empty also
    /// when nobody has looked yet: [`ImageStore::registries`] does.
    #[serde(default)]
    pub registries: BTreeSet<String>,
}

impl Manifest {
    /// What says which image this is: the digest of what was pulled, or of what it was built of.
    pub fn identity(&self) -> String {
        self.digest.clone().unwrap_or_else(|| format!("built:{}", self.inputs))
    }
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

    /// What is wrong with a name, if something is.
    pub fn fault_of(name: &str) -> Option<ImageError> {
        check_name(name).err()
    }

    /// Where images lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the image of this name or reference is stored.
    fn stored(&self, name: &str) -> Result<PathBuf, ImageError> {
        if is_reference(name) {
            return self.stored_reference(name);
        }
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
        let mut manifest = Self::manifest(&home, name)?;
        if manifest.registries.is_empty() {
            manifest.registries = registries::kept(&home).unwrap_or_default();
        }
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

    /// The hosts, each with a port where one is named, that the image's own npm, pip, cargo and apt are configured for. What
    /// was found is kept beside the image. Blocks: not for an async thread.
    ///
    /// # Errors
    /// When there is no such image, or it is damaged.
    pub fn registries(&self, name: &str) -> Result<BTreeSet<String>, ImageError> {
        let image = self.read(name)?;
        let home = image.rootfs.parent().unwrap_or(&image.rootfs);
        match registries::kept(home) {
            Some(kept) => Ok(kept),
            None => registries::read_and_keep(home, &image.rootfs, &image.manifest.env),
        }
    }

    /// The names that there are. No image is opened.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| check_name(name).is_ok()).collect();
        names.sort();
        names
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
        let partial = self.dir.join(format!(".{name}.{}", uuid::Uuid::now_v7()));
        let _ = fs::remove_file(&partial);
        std::os::unix::fs::symlink(target, &partial)
            .and_then(|()| fs::rename(&partial, self.dir.join(name)))
            .map_err(ImageError::io("naming", &self.dir.join(name)))
    }
}
