//! Turns an image, wherever it comes from, into a root file system: its documents are checked, its layers unpacked once, and
//! what they say is done, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use oci_client::Reference;

use super::credentials::Credentials;
use super::error::PullFault;
use super::layer::Layers;
use super::oci::{self, Config, Descriptor, Digest, Document};
use super::registry::{self, Registry};
use super::store::About;
use super::{Image, ImageError, ImageStore, Part, Progress, check_name};

/// Layers that are fetched and unpacked at once: enough to keep a network busy, few enough that other downloads of the host
/// go on.
const AT_ONCE: usize = 3;
/// How deep an index may lie within others. Archives have one level more than registries.
const MAX_INDEXES: usize = 3;
/// The part of a pull that is over when the layers are there.
const LAYERS_SHARE: f64 = 0.85;

/// Where the parts of an image come from.
#[async_trait]
pub(super) trait Source: Send + Sync {
    /// The manifest or index of this digest, checked against it.
    async fn document(&self, digest: &Digest) -> Result<Vec<u8>, PullFault>;
    /// A configuration, checked against its digest.
    async fn config(&self, config: &Descriptor) -> Result<Vec<u8>, PullFault>;
    /// A layer's archive as a file, checked against its digest; at `to`, if it is not one already. `got` hears how many bytes
    /// of it there are by now.
    async fn layer(
        &self,
        layer: &Descriptor,
        to: &Path,
        got: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<PathBuf, PullFault>;
}

/// Bytes that have this digest.
pub(super) fn verified(what: &'static str, bytes: Vec<u8>, digest: &Digest) -> Result<Vec<u8>, PullFault> {
    let found = Digest::of(&bytes);
    if found == *digest {
        return Ok(bytes);
    }
    Err(PullFault::Digest { what, expected: digest.to_string(), found: found.to_string() })
}

/// A folder that goes when it is let go of.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Reads a reference.
///
/// # Errors
/// When it is none, or names a digest that is no SHA-256.
pub(super) fn parse(reference: &str) -> Result<Reference, PullFault> {
    let parsed: Reference = reference.parse().map_err(|error| PullFault::Reference(format!("{error}")))?;
    if let Some(digest) = parsed.digest() {
        digest.parse::<Digest>()?;
    }
    Ok(parsed)
}

/// Whether this is meant as a reference rather than as a local name, which has none of these.
pub fn is_reference(text: &str) -> bool {
    text.contains(['/', ':', '@'])
}

/// An image by its documents, before its layers.
pub(super) struct Found {
    /// The digest of the manifest for this machine.
    pub digest: Digest,
    manifest: oci::Manifest,
}

impl ImageStore {
    /// Pulls an image (`registry/name:tag`, `registry/name@sha256:…`) and gives it a name here. An image that is there
    /// already, by its digest, is not fetched again, and neither is a layer.
    ///
    /// # Errors
    /// When the registry refuses, or what it sends is not what it announced; nothing half-pulled gets a name.
    pub async fn pull(
        &self,
        reference: &str,
        name: &str,
        credentials: &Credentials,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        check_name(name)?;
        let store = self.clone();
        let _writing = blocking(move || store.writing()).await?;
        let stored = self.fetch(reference, credentials, progress).await?;
        self.link(name, &stored)?;
        progress(Progress::new("done", 1.0, String::new()));
        self.read(name)
    }

    /// Fetches what a reference names, without giving it a name. Whoever calls holds the store for writing.
    pub(super) async fn fetch(
        &self,
        reference: &str,
        credentials: &Credentials,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PathBuf, ImageError> {
        let failed = |fault: PullFault| ImageError::Pull { reference: reference.to_owned(), fault };
        let parsed = parse(reference).map_err(failed)?;
        let (asked, named) = registry::hosts(&parsed);
        progress(Progress::new("asking the registry", 0.0, asked.to_owned()));
        let auth = credentials.of(asked, named)?;
        let (host, repository) = (asked.to_owned(), parsed.repository().to_owned());
        let registry = Registry::new(parsed, auth).map_err(failed)?;
        let (bytes, top) = registry.top().await.map_err(failed)?;
        let source = format!("{host}/{repository}@{top}");
        self.install(&registry, (bytes, top), (source, Some(reference.to_owned())), &failed, progress).await
    }

    /// Stores the image that a document leads to.
    pub(super) async fn install(
        &self,
        source: &dyn Source,
        top: (Vec<u8>, Digest),
        (said, reference): (String, Option<String>),
        failed: &(dyn Fn(PullFault) -> ImageError + Sync),
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PathBuf, ImageError> {
        let Found { digest, manifest } = resolve(source, top).await.map_err(failed)?;
        let inputs = digest.hex().clone();
        if let Some(stored) = self.known(&inputs) {
            return Ok(stored);
        }
        // Whoever pulls the same at this moment, in this process or another, is waited for.
        let lock = self.lock_of(&inputs)?;
        let _alone =
            blocking(move || lock.lock().map(|()| lock).map_err(ImageError::io("locking", Path::new("a pull"))))
                .await?;
        if let Some(stored) = self.known(&inputs) {
            return Ok(stored);
        }
        let config = source.config(&manifest.config).await.map_err(failed)?;
        let config = Config::read(&config, manifest.layers.len()).map_err(failed)?;
        if let Some(odd) = manifest.layers.iter().find(|layer| !oci::is_file_system(layer)) {
            let detail = format!("it is no file system: one of its layers is {odd:?}");
            return Err(failed(PullFault::Invalid(detail.chars().take(300).collect())));
        }
        let layers = Layers::of(&self.store());
        self.fetch_layers(source, &manifest, &config, &layers, failed, progress).await?;
        progress(Progress::new(
            "putting the layers together",
            LAYERS_SHARE,
            format!("{} layers", config.diff_ids.len()),
        ));
        let about = About {
            source: said,
            inputs,
            digest: Some(digest.to_string()),
            reference,
            env: config.env.into_iter().collect(),
            layers: config.diff_ids.iter().map(|id| id.hex().clone()).collect(),
            agents: BTreeMap::new(),
        };
        let store = self.clone();
        let work = move || store.store_layers(about);
        blocking(work).await.map_err(|error| match error {
            ImageError::Io { source, .. } if source.kind() == std::io::ErrorKind::Other => {
                failed(PullFault::Invalid(source.to_string()))
            }
            error => error,
        })
    }

    async fn fetch_layers(
        &self,
        source: &dyn Source,
        manifest: &oci::Manifest,
        config: &Config,
        layers: &Layers,
        failed: &(dyn Fn(PullFault) -> ImageError + Sync),
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), ImageError> {
        let mut seen = BTreeSet::new();
        let pairs = manifest.layers.iter().zip(&config.diff_ids).filter(|(_, id)| seen.insert((*id).clone()));
        let missing: Vec<(&Descriptor, &Digest)> = pairs.filter(|(_, id)| !layers.has(id.hex())).collect();
        let folder = self.store().join(format!(".fetch-{}", uuid::Uuid::now_v7()));
        fs::create_dir_all(&folder).map_err(ImageError::io("making", &folder))?;
        let folder = Scratch(folder);
        let total: u64 = missing.iter().filter_map(|(layer, _)| layer.size().ok()).sum();
        let counts = std::sync::Mutex::new(BTreeMap::<String, u64>::new());
        let say = |phase: &'static str, layer: &Descriptor, id: &Digest, so_far: u64| {
            let name = id.hex()[..12].to_owned();
            // Held until it is told, so that nobody hears of less after more.
            let mut counts = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            counts.insert(name.clone(), so_far);
            let sum: u64 = counts.values().sum();
            let fraction = if total == 0 { 1.0 } else { sum as f64 / total as f64 };
            let part = Part { name, done: so_far, total: layer.size().unwrap_or(0) };
            let detail = format!("{sum} of {total} bytes");
            progress(Progress { part: Some(part), ..Progress::new(phase, LAYERS_SHARE * fraction.min(1.0), detail) });
        };
        let one = |(layer, id): (Descriptor, Digest)| {
            let (to, say) = (folder.0.join(id.hex()), &say);
            async move {
                let so_far = std::sync::atomic::AtomicU64::new(0);
                let got = |count| {
                    // A try that follows a broken one begins anew; the bar does not go back.
                    if so_far.fetch_max(count, std::sync::atomic::Ordering::Relaxed) <= count {
                        say("fetching layers", &layer, &id, count);
                    }
                };
                let archive = source.layer(&layer, &to, &got).await.map_err(failed)?;
                say("unpacking layers", &layer, &id, layer.size().unwrap_or(0));
                let (layers, id) = (layers.clone(), id.hex().clone());
                let unpacked = tokio::task::spawn_blocking(move || layers.add(&archive, &id)).await;
                let unpacked = unpacked.map_err(|error| failed(PullFault::Invalid(error.to_string())))?;
                let _ = fs::remove_file(&to);
                unpacked.map_err(|error| failed(PullFault::Invalid(error.to_string())))
            }
        };
        let work: Vec<_> = missing.into_iter().map(|(layer, id)| (layer.clone(), id.clone())).map(one).collect();
        stream::iter(work).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await.map(drop)
    }
}

/// Follows indexes to the manifest for this machine.
async fn resolve(source: &dyn Source, (mut bytes, mut digest): (Vec<u8>, Digest)) -> Result<Found, PullFault> {
    for _ in 0..=MAX_INDEXES {
        match Document::read(&bytes)? {
            Document::Image(manifest) => return Ok(Found { digest, manifest }),
            Document::Index(entries) => {
                digest = oci::for_this_machine(&entries)?.digest()?;
                bytes = source.document(&digest).await?;
            }
        }
    }
    Err(PullFault::Invalid(format!("its indexes lie more than {MAX_INDEXES} deep")))
}

/// Runs what waits for the disk on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let died = |error: tokio::task::JoinError| ImageError::Program { program: "a thread", detail: error.to_string() };
    tokio::task::spawn_blocking(work).await.map_err(died)?
}

impl ImageStore {
    /// The file whose lock is held by whoever makes this image.
    fn lock_of(&self, inputs: &str) -> Result<File, ImageError> {
        let folder = self.store().join("locks");
        fs::create_dir_all(&folder).map_err(ImageError::io("making", &folder))?;
        let path = folder.join(&inputs[..32]);
        File::options().write(true).create(true).truncate(false).open(&path).map_err(ImageError::io("opening", &path))
    }
}
