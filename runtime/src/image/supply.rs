//! Images for tasks: those with a name on this machine, those that the operator has configured by reference, and those that a
//! task names by reference. What is not there yet is pulled when it is first wanted, once for all who want it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::pull::{blocking, parse};
use super::{Collected, Credentials, ImageError, ImageStore, Keep, Lease, Progress, is_reference};

/// How long what a tag stood for is taken for what it stands for: tasks that start one after the other do not ask each time.
const FRESH: Duration = Duration::from_secs(300);
/// Steps of a pull's progress that are logged.
const LOGGED_STEPS: f64 = 10.0;

/// An image that the operator has configured.
#[derive(Debug, Clone)]
pub struct Named {
    /// Where it is from.
    pub reference: String,
    /// Who asks for it.
    pub credentials: Credentials,
}

/// Finds images, and fetches those that are not there.
#[derive(Debug)]
pub struct Supply {
    store: ImageStore,
    named: BTreeMap<String, Named>,
    credentials: Credentials,
    keep: Keep,
    /// One lock per image that is being fetched.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// Logs a pull at every tenth of it.
fn logged(reference: &str) -> impl Fn(Progress) + Send + Sync {
    let reference = reference.to_owned();
    let last = Mutex::new(-1.0);
    move |progress: Progress| {
        let step = (progress.fraction * LOGGED_STEPS).floor();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if step > *last {
            *last = step;
            let percent = step * 100.0 / LOGGED_STEPS;
            tracing::info!(%reference, percent, phase = progress.phase, detail = progress.detail, "pulling an image");
        }
    }
}

impl Supply {
    /// Images of this store. `credentials` are told to the registries of references that tasks name.
    pub fn new(store: ImageStore, named: BTreeMap<String, Named>, credentials: Credentials, keep: Keep) -> Self {
        Self { store, named, credentials, keep, busy: Mutex::default() }
    }

    /// Where they lie.
    pub fn store(&self) -> &ImageStore {
        &self.store
    }

    /// The names that a task may be given: those that are there, and those that are configured.
    pub async fn names(&self) -> Vec<String> {
        let store = self.store.clone();
        let mut names = blocking(move || Ok(store.names())).await.unwrap_or_default();
        names.extend(self.named.keys().cloned());
        names.sort();
        names.dedup();
        names
    }

    /// Whether this reads as a reference. None when it does.
    pub fn fault_of(reference: &str) -> Option<String> {
        parse(reference).err().map(|fault| fault.to_string())
    }

    /// The image of this name or reference, held; pulled first if need be.
    ///
    /// # Errors
    /// When there is none, or it cannot be pulled and was not pulled before.
    pub async fn provide(&self, image: &str) -> Result<Lease, ImageError> {
        let turn = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(busy.entry(image.to_owned()).or_default())
        };
        let _turn = turn.lock().await;
        if is_reference(image) { self.by_reference(image).await } else { self.by_name(image).await }
    }

    async fn lease(&self, image: &str) -> Result<Lease, ImageError> {
        let (store, image) = (self.store.clone(), image.to_owned());
        blocking(move || store.lease(&image)).await
    }

    async fn by_name(&self, name: &str) -> Result<Lease, ImageError> {
        match (self.lease(name).await, self.named.get(name)) {
            // Configured as something else than it was pulled as.
            (Ok(lease), Some(named)) if lease.image.manifest.reference.as_ref() != Some(&named.reference) => {}
            (Err(ImageError::Missing { .. } | ImageError::Damaged { .. }), Some(_)) => {}
            (answer, _) => return answer,
        }
        self.pull_named(name).await?;
        self.lease(name).await
    }

    async fn pull_named(&self, name: &str) -> Result<(), ImageError> {
        let Some(Named { reference, credentials }) = self.named.get(name) else { return Ok(()) };
        self.store.pull(reference, name, credentials, &logged(reference)).await?;
        Ok(())
    }

    /// Pulls what is configured, so that the first task does not wait for it: also what is here already, whose tag may stand
    /// for something newer. What fails is logged, and tried again when a task wants it.
    pub async fn pull_all(&self) {
        for (name, Named { reference, .. }) in &self.named {
            if let Err(error) = self.pull_named(name).await {
                tracing::warn!(%name, %reference, %error, "a configured image was not pulled");
            }
        }
    }

    async fn by_reference(&self, reference: &str) -> Result<Lease, ImageError> {
        self.store.note_use(reference);
        let known = self.store.pulled(reference);
        let pinned = parse(reference).is_ok_and(|parsed| parsed.digest().is_some());
        let is_fresh = |asked: Timestamp| {
            let age = Timestamp::now().duration_since(asked);
            !age.is_negative() && age.unsigned_abs() < FRESH
        };
        if known.as_ref().is_some_and(|known| pinned || is_fresh(known.asked))
            && let Ok(lease) = self.lease(reference).await
        {
            return Ok(lease);
        }
        match self.pull_reference(reference).await {
            Ok(()) => self.lease(reference).await,
            Err(error) if error.is_passing() && known.is_some() => {
                let lease = self.lease(reference).await.map_err(|_| error)?;
                tracing::warn!(%reference, "its registry does not answer; what the tag stood for last is used");
                Ok(lease)
            }
            Err(error) => Err(error),
        }
    }

    async fn pull_reference(&self, reference: &str) -> Result<(), ImageError> {
        let store = self.store.clone();
        let _writing = blocking(move || store.writing()).await?;
        let stored = self.store.fetch(reference, &self.credentials, &logged(reference)).await?;
        let (store, reference) = (self.store.clone(), reference.to_owned());
        blocking(move || store.note_pulled(&reference, &stored)).await
    }

    /// Removes what nobody needs. `standing` are root file systems that something is known to stand on.
    ///
    /// # Errors
    /// When the store cannot be read. While images are being made, nothing is removed and nothing is wrong.
    pub async fn collect(&self, standing: HashSet<PathBuf>) -> Result<Collected, ImageError> {
        let (store, keep) = (self.store.clone(), self.keep);
        match blocking(move || store.collect(&keep, &standing)).await {
            Err(ImageError::Busy(_)) => Ok(Collected::default()),
            collected => collected,
        }
    }
}
