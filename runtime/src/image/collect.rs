//! Removes images that nothing stands on and nobody names any more, layers that no image is made of, and what was left half
//! done.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::layer::Layers;
use super::references::is_image;
use super::{ImageError, ImageStore, Manifest};

/// What is kept of the images that were pulled for tasks by reference. Those with a name of their own are kept anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// What no task has used for so long goes.
    pub max_age: Duration,
    /// Bytes of all of them, as if they shared nothing; the one that was used longest ago goes first.
    pub max_bytes: u64,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// The sources of the images that went.
    pub images: Vec<String>,
    /// How many layers went.
    pub layers: usize,
}

impl Collected {
    /// How many things went.
    pub fn count(&self) -> usize {
        self.images.len() + self.layers
    }
}

fn names_in(dir: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(ImageError::io("reading", dir))?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(ImageError::io("reading", dir))
}

impl ImageStore {
    /// Takes a name away. What it meant goes with the next [`collect`](Self::collect), unless something stands on it.
    ///
    /// # Errors
    /// When there is no such name.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        super::check_name(name)?;
        let path = self.dir().join(name);
        fs::remove_file(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::Missing { name: name.to_owned(), dir: self.dir().to_owned() },
            _ => ImageError::io("removing", &path)(error),
        })
    }

    /// Removes what nobody needs. `standing` are root file systems that something is known to stand on; those that are held
    /// are spared anyway. Blocks: not for an async thread.
    ///
    /// # Errors
    /// [`ImageError::Busy`] while somebody makes images: nothing is removed then.
    pub fn collect(&self, keep: &Keep, standing: &HashSet<PathBuf>) -> Result<Collected, ImageError> {
        let store = self.store();
        let lock = match File::open(&store) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Collected::default()),
            lock => lock.map_err(ImageError::io("opening", &store))?,
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ImageError::Busy(self.dir().to_owned())),
            Err(TryLockError::Error(error)) => return Err(ImageError::io("locking", &store)(error)),
        }
        let mut collected = Collected::default();
        let mut wanted = self.named()?;
        wanted.extend(self.forget_references(keep, &wanted)?);
        let mut gone = Vec::new();
        let mut layers_in_use = BTreeSet::new();
        for name in names_in(&store)? {
            let home = store.join(&name);
            let leftover =
                [".partial-", ".fetch-", ".load-", ".layers-", ".gone-"].iter().any(|kind| name.starts_with(kind));
            if leftover {
                gone.push(home);
                continue;
            }
            if !is_image(&name) {
                continue;
            }
            let manifest = Self::manifest(&home, &name).ok();
            let spared =
                wanted.contains(&name) || standing.contains(&home.join("rootfs")) || !self.take(&home, &mut gone)?;
            match manifest {
                Some(Manifest { layers, .. }) if spared => layers_in_use.extend(layers),
                Some(Manifest { source, .. }) => collected.images.push(source),
                None if spared => {}
                None => collected.images.push(name),
            }
        }
        let layers = Layers::of(&store);
        for name in names_in(layers.dir())? {
            if !layers_in_use.contains(&name) {
                collected.layers += usize::from(!name.starts_with('.'));
                self.set_aside(&layers.dir().join(name), &mut gone)?;
            }
        }
        for name in names_in(&store.join("locks"))? {
            let _ = fs::remove_file(store.join("locks").join(name));
        }
        // From here on nobody can find what goes, so nobody needs to wait until it is gone.
        drop(lock);
        for path in gone {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io("removing", &path)(error));
                }
                _ => {}
            }
        }
        Ok(collected)
    }

    /// The images that have a name.
    fn named(&self) -> Result<BTreeSet<String>, ImageError> {
        let mut named = BTreeSet::new();
        for name in names_in(self.dir())? {
            // Whatever its name: a link that is being replaced has one with a dot.
            if let Ok(target) = fs::read_link(self.dir().join(name)) {
                named.extend(target.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        Ok(named)
    }

    /// Forgets references that are too old, or too many. The images of those that stay.
    fn forget_references(&self, keep: &Keep, named: &BTreeSet<String>) -> Result<BTreeSet<String>, ImageError> {
        let mut kept = self.kept_references();
        kept.sort_by_key(|kept| std::cmp::Reverse(kept.used));
        let now = SystemTime::now();
        let mut stay: BTreeMap<String, u64> = BTreeMap::new();
        for reference in kept {
            let image = &reference.pulled.image;
            let bytes = || Self::manifest(&self.store().join(image), image).map_or(0, |manifest| manifest.bytes);
            let young = now.duration_since(reference.used).is_ok_and(|age| age <= keep.max_age)
                // A clock that was set back.
                || reference.used > now;
            let costs = if named.contains(image) || stay.contains_key(image) { 0 } else { bytes() };
            let fits = stay.values().sum::<u64>().saturating_add(costs) <= keep.max_bytes;
            if young && fits {
                stay.entry(image.clone()).or_insert(costs);
            } else {
                fs::remove_file(&reference.path).map_err(ImageError::io("forgetting", &reference.path))?;
            }
        }
        Ok(stay.into_keys().collect())
    }

    /// Moves an image aside unless somebody holds it. Whether it was moved.
    fn take(&self, home: &Path, gone: &mut Vec<PathBuf>) -> Result<bool, ImageError> {
        let taking = || ImageError::io("removing", home);
        let held = File::open(home).map_err(taking())?;
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(taking()(error)),
        }
        self.set_aside(home, gone)?;
        Ok(true)
    }

    fn set_aside(&self, path: &Path, gone: &mut Vec<PathBuf>) -> Result<(), ImageError> {
        let aside = self.store().join(format!(".gone-{}", uuid::Uuid::now_v7()));
        fs::rename(path, &aside).map_err(ImageError::io("removing", path))?;
        gone.push(aside);
        Ok(())
    }

    /// How many sandboxes stand on each stored image, by the folder of its root file system, as the kernel's list of locks has
    /// it.
    pub fn holders(&self) -> BTreeMap<PathBuf, usize> {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let mut holders = BTreeMap::new();
        for name in names_in(&self.store()).unwrap_or_default().into_iter().filter(|name| is_image(name)) {
            let home = self.store().join(name);
            let Ok(meta) = fs::metadata(&home) else { continue };
            let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
            let inode = format!("{major:02x}:{minor:02x}:{}", meta.ino());
            let count = locks.lines().filter(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.contains(&"FLOCK") && words.contains(&"READ") && words.contains(&inode.as_str())
            });
            holders.insert(home.join("rootfs"), count.count());
        }
        holders
    }
}
