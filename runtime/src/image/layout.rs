//! Loads an image from disk: an OCI layout, as a folder or a tar archive, or what `docker save` writes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use serde::Deserialize;
use std::os::fd::OwnedFd;

use super::error::PullFault;
use super::layer::{Allowance, Layers, digest_of, take_out};
use super::oci::{self, Config, Descriptor, Digest, Document, MAX_DOCUMENT};
use super::pull::{Source, blocking, verified};
use super::store::About;
use super::unpack::Root;
use super::{Image, ImageError, ImageStore, Progress, check_name};

/// The annotation with which archives name their images.
const NAME: &str = "org.opencontainers.image.ref.name";
/// Longest list of names in a message.
const MAX_NAMES: usize = 20;

/// A folder with an image in it.
struct Layout {
    root: OwnedFd,
    dir: PathBuf,
}

fn invalid(what: &str) -> impl Fn(io::Error) -> PullFault {
    let what = what.to_owned();
    move |error| PullFault::Invalid(format!("{what}: {error}"))
}

impl Layout {
    fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { root: open(dir, flags, Mode::empty())?, dir: dir.to_owned() })
    }

    /// A plain file of it; links lead nowhere but within.
    fn file(&self, path: &str) -> io::Result<File> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = File::from(openat2(&self.root, path, OpenHow::new().flags(flags).resolve(resolve))?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a plain file")) }
    }

    fn document(&self, path: &str) -> Result<Vec<u8>, PullFault> {
        let mut bytes = Vec::new();
        let read = self.file(path).and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes));
        read.map_err(invalid(path))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(PullFault::Invalid(format!("{path} is larger than {MAX_DOCUMENT} bytes")));
        }
        Ok(bytes)
    }

    fn blob(digest: &Digest) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }

    /// A file as a path that cannot be exchanged for another while it is read.
    fn copied(&self, path: &str, to: &Path) -> io::Result<()> {
        io::copy(&mut self.file(path)?, &mut File::create(to)?).map(drop)
    }

    /// The entry of the index that is meant.
    fn chosen(&self, tag: Option<&str>) -> Result<Descriptor, PullFault> {
        let Document::Index(entries) = Document::read(&self.document("index.json")?)? else {
            return Err(PullFault::Invalid("index.json is no index".into()));
        };
        let name = |entry: &Descriptor| {
            let name = entry.annotations.get(NAME).or_else(|| entry.annotations.get("io.containerd.image.name"));
            name.map_or_else(
                || "(unnamed)".to_owned(),
                |name| name.chars().filter(|letter| !letter.is_control()).take(200).collect(),
            )
        };
        let is_meant = |entry: &&Descriptor| {
            tag.is_none_or(|tag| {
                let name = name(entry);
                name == tag || name.rsplit_once(':').is_some_and(|(_, end)| end == tag)
            })
        };
        let meant: Vec<&Descriptor> = entries.iter().filter(is_meant).collect();
        match meant.as_slice() {
            [only] => Ok((*only).clone()),
            [] | [_, ..] => match oci::for_this_machine(&entries) {
                // One image for several platforms, without an index of its own.
                Ok(entry) if tag.is_none() && entries.iter().all(|other| name(other) == name(entry)) => {
                    Ok(entry.clone())
                }
                _ => {
                    let names: Vec<String> = entries.iter().map(name).take(MAX_NAMES).collect();
                    let detail = format!("it has the images {}; say with --tag which one", names.join(", "));
                    Err(PullFault::Invalid(detail))
                }
            },
        }
    }
}

#[async_trait]
impl Source for Layout {
    async fn document(&self, digest: &Digest) -> Result<Vec<u8>, PullFault> {
        verified("a manifest", Layout::document(self, &Self::blob(digest))?, digest)
    }

    async fn config(&self, config: &Descriptor) -> Result<Vec<u8>, PullFault> {
        let digest = config.digest()?;
        verified("the configuration", Layout::document(self, &Self::blob(&digest))?, &digest)
    }

    async fn layer(
        &self,
        layer: &Descriptor,
        to: &Path,
        got: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<PathBuf, PullFault> {
        let (announced, size, path) = (layer.digest()?, layer.size()?, to.to_owned());
        let (dir, name) = (self.dir.clone(), Self::blob(&announced));
        let work = move || {
            // A private copy, so that what was checked is what is unpacked.
            Self::open(&dir)?.copied(&name, &path)?;
            Ok((digest_of(&path)?, path))
        };
        let copied: io::Result<(String, PathBuf)> =
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let (found, path) = copied.map_err(invalid("a layer"))?;
        if found != *announced.hex() {
            let found = format!("sha256:{found}");
            return Err(PullFault::Digest { what: "a layer", expected: announced.to_string(), found });
        }
        got(size);
        Ok(path)
    }
}

/// One image of what `docker save` has written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A folder that goes when it is let go of.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl ImageStore {
    /// Loads an image from an OCI layout (a folder or a tar archive) or an archive of `docker save`, and gives it a name here.
    /// `tag` says which, where there are several.
    ///
    /// # Errors
    /// When there is none that fits, or it is not what its digests say; nothing half-loaded gets a name.
    pub async fn load(
        &self,
        path: &Path,
        tag: Option<&str>,
        name: &str,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        check_name(name)?;
        let failed = |fault: PullFault| ImageError::Load { path: path.to_owned(), fault };
        let store = self.clone();
        let _writing = blocking(move || store.writing()).await?;
        progress(Progress::new("reading the archive", 0.0, path.display().to_string()));
        let scratch = Scratch(self.store().join(format!(".load-{}", uuid::Uuid::now_v7())));
        let dir = if path.is_dir() {
            path.to_owned()
        } else {
            let (archive, to) = (path.to_owned(), scratch.0.clone());
            let unpacked = tokio::task::spawn_blocking(move || {
                fs::create_dir(&to)?;
                take_out(&archive, &Root::open(&to)?)
            });
            let unpacked = unpacked.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            unpacked.map_err(|error| failed(PullFault::Invalid(error.to_string())))?;
            scratch.0.clone()
        };
        let layout = Layout::open(&dir).map_err(ImageError::io("opening", &dir))?;
        let stored = if layout.file("index.json").is_ok() {
            let entry = layout.chosen(tag).map_err(failed)?;
            let digest = entry.digest().map_err(failed)?;
            let bytes = Source::document(&layout, &digest).await.map_err(failed)?;
            let said = format!("{}@{digest}", path.display());
            self.install(&layout, (bytes, digest), (said, None), &failed, progress).await?
        } else if layout.file("manifest.json").is_ok() {
            let (store, said, tag) = (self.clone(), path.display().to_string(), tag.map(str::to_owned));
            progress(Progress::new("unpacking", 0.3, String::new()));
            let work = move || Ok(store.load_saved(&layout, tag.as_deref(), &said));
            blocking(work).await?.map_err(failed)?
        } else {
            let detail = "it has neither an index.json, as OCI layouts do, nor a manifest.json, as docker save writes";
            return Err(failed(PullFault::Invalid(detail.into())));
        };
        self.link(name, &stored)?;
        progress(Progress::new("done", 1.0, String::new()));
        self.read(name)
    }

    /// An archive of the older kind: its layers are named by their paths, and checked by what the configuration says of them.
    fn load_saved(&self, layout: &Layout, tag: Option<&str>, said: &str) -> Result<PathBuf, PullFault> {
        let text = Layout::document(layout, "manifest.json")?;
        let images: Vec<Saved> = serde_json::from_slice(&text)
            .map_err(|error| PullFault::Invalid(format!("manifest.json does not read: {error}")))?;
        let named = |image: &&Saved| tag.is_none_or(|tag| image.repo_tags.iter().flatten().any(|name| name == tag));
        let meant: Vec<&Saved> = images.iter().filter(named).collect();
        let [image] = meant.as_slice() else {
            let names: Vec<&str> =
                images.iter().flat_map(|image| image.repo_tags.iter().flatten()).map(String::as_str).collect();
            let names = names[..names.len().min(MAX_NAMES)].join(", ");
            return Err(PullFault::Invalid(format!("it has the images {names}; say with --tag which one")));
        };
        let bytes = Layout::document(layout, &image.config)?;
        let config = Config::read(&bytes, image.layers.len())?;
        // The configuration names every layer, so its digest says which image this is.
        let digest = Digest::of(&bytes);
        let inputs = digest.hex().clone();
        if let Some(stored) = self.known(&inputs) {
            return Ok(stored);
        }
        let layers = Layers::of(&self.store());
        let scratch = Scratch(self.store().join(format!(".fetch-{}", uuid::Uuid::now_v7())));
        fs::create_dir_all(&scratch.0).map_err(invalid("making a folder"))?;
        for (path, id) in image.layers.iter().zip(&config.diff_ids) {
            let copy = scratch.0.join(id.hex());
            let added = layout.copied(path, &copy).and_then(|()| layers.add(&copy, id.hex()));
            added.map_err(invalid("a layer"))?;
            let _ = fs::remove_file(&copy);
        }
        let about = About {
            source: format!("{said}@{digest}"),
            inputs,
            digest: Some(digest.to_string()),
            env: config.env.into_iter().collect::<BTreeMap<_, _>>(),
            layers: config.diff_ids.iter().map(|id| id.hex().clone()).collect(),
            ..About::default()
        };
        self.store_layers(about).map_err(|error| PullFault::Invalid(error.to_string()))
    }

    /// Makes an image of layers that are here.
    pub(super) fn store_layers(&self, about: About) -> Result<PathBuf, ImageError> {
        let layers = Layers::of(&self.store());
        let ids = about.layers.clone();
        self.store_new(about, |_, rootfs| {
            let applied = || {
                fs::create_dir(rootfs)?;
                let root = Root::open(rootfs)?;
                let mut allowance = Allowance::default();
                ids.iter().try_for_each(|id| layers.apply(id, &root, &mut allowance))?;
                layers.settle(&ids)
            };
            applied().map_err(ImageError::io("putting layers together in", rootfs))
        })
    }
}
