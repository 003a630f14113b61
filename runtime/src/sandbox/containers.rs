//! Sandboxes as libcontainer containers on this host.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, PipeReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use orchestra_events::SandboxId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::OwnedMutexGuard;

use super::cgroup::Hierarchy;
use super::client::Connection;
use super::container::{Running, first_process};
use super::handover::{self, Ahead};
use super::helper::HELPER_ARG;
use super::ids::{HostIds, IdRange, Ranges};
use super::layers::Layer;
use super::layout::{HelperOrder, HelperReport, Layout, State, make_dir, write_whole};
use super::pool::{Pool, Starts};
use super::rootless::Authority;
use super::setups::Setups;
use super::zygote::Zygote;
use super::{
    Entry, Sandbox, SandboxConfig, SandboxError, SandboxSpec, Sandboxes, SetupKey, SetupLimits, Volume, inspect,
    layers, leftovers, seccomp, spec, teardown, volume,
};
use crate::image::{Image, ImageStore, Lease};

/// How long a container may take to come up on a host that is very busy.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Longest report of a helper.
const MAX_REPORT: u64 = 64 * 1024;
/// How much of the helper's log is quoted when it says nothing itself.
const LOG_QUOTE: usize = 2_000;

/// Starts, finds and removes sandboxes on this host.
#[derive(Clone)]
pub struct Containers {
    pub(super) inner: Arc<Inner>,
}

/// What all handles share.
pub(super) struct Inner {
    config: SandboxConfig,
    pub(super) state: State,
    pub(super) cgroups: Arc<Hierarchy>,
    pub(super) ranges: Ranges,
    images: ImageStore,
    setups: Setups,
    /// What helpers are forked from.
    zygote: Zygote,
    /// The program of every sandbox's first process.
    init: PathBuf,
    /// The compiled system call filter of every sandbox.
    filter: PathBuf,
    /// Sandboxes that are started ahead, if any are to be.
    pub(super) pool: OnceLock<Arc<Pool>>,
    pub(super) starts: Starts,
    /// One lock per sandbox that something is being done with.
    busy: Mutex<HashMap<SandboxId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Containers {
    /// Opens (and makes) the state directory.
    ///
    /// # Errors
    /// When it cannot be made, or the host has no control groups.
    pub fn new(config: SandboxConfig) -> Result<Self, SandboxError> {
        Self::with_host_ids(config, HostIds::default())
    }

    /// The same, for sandboxes that run with other ids of the host.
    ///
    /// # Errors
    /// As for [`Containers::new`].
    pub fn with_host_ids(config: SandboxConfig, ids: HostIds) -> Result<Self, SandboxError> {
        let at = config.state_dir.display();
        let state = State::open(&config.state_dir).map_err(SandboxError::host(format!("opening {at}")))?;
        leftovers::sweep(&config.state_dir);
        let cgroups =
            Hierarchy::for_user(&state.sandboxes()).map_err(SandboxError::host("looking for control groups"))?;
        cgroups.prepare().map_err(SandboxError::host("moving the server into a control group of its own"))?;
        let init = state.init_program().map_err(SandboxError::host("writing the sandboxes' first process"))?;
        let filter = seccomp::compile().and_then(|program| state.filter(&program));
        let filter = filter.map_err(SandboxError::host("compiling the system call filter"))?;
        let images = ImageStore::new(config.images.clone());
        let setups = Setups::open(&state).map_err(SandboxError::host("opening what setup scripts have made"))?;
        let ranges = Ranges::open(ids, &state);
        let zygote = Zygote::new(config.helper.clone());
        let cgroups = Arc::new(cgroups);
        let (pool, starts, busy) = (OnceLock::new(), Starts::default(), Mutex::default());
        let inner = Inner { config, state, cgroups, ranges, images, setups, zygote, init, filter, pool, starts, busy };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Does something with one sandbox while nobody else does, and to its end even if the caller stops waiting: half a
    /// start or half a removal would meet the next one.
    async fn alone<T, F>(&self, id: SandboxId, work: impl FnOnce(Arc<Inner>) -> F) -> Result<T, SandboxError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SandboxError>> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let work = work(Arc::clone(&inner));
        let task = tokio::spawn(async move {
            let _turn = inner.turn(id).await;
            work.await
        });
        task.await.unwrap_or_else(|error| Err(SandboxError::StartFailed { id, detail: error.to_string() }))
    }
}

impl Inner {
    /// Waits until nobody else in this process starts, removes or furnishes this sandbox.
    async fn turn(&self, id: SandboxId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(busy.entry(id).or_default())
        };
        lock.lock_owned().await
    }

    async fn find(&self, id: SandboxId) -> Option<Running> {
        let layout = self.state.layout(id);
        Connection::open(&layout).await.ok()?;
        // What was started ahead runs, and is nobody's before it was handed over.
        handover::ahead(&layout).is_none().then(|| Running::new(id, layout, Arc::clone(&self.cgroups)))
    }

    /// What the helper of such a sandbox over this image is told.
    fn order(
        &self,
        spec: &SandboxSpec,
        image: &Image,
        layout: &Layout,
        layers: Vec<Layer>,
        ids: IdRange,
    ) -> HelperOrder {
        let mut spec = spec.clone();
        spec.take_variables(&image.manifest.env);
        let mut description = spec::container(&spec, &self.cgroups.spec_path(layout.cgroup()), ids);
        if let Some(linux) = description["linux"].as_object_mut().filter(|_| self.cgroups.limits_by_itself()) {
            linux.remove("resources");
        }
        let authority = Authority::of_user();
        authority.adapt(&mut description);
        HelperOrder {
            ahead: false,
            description,
            lower: image.rootfs.clone(),
            layers,
            setup: None,
            ids,
            authority,
            init: self.init.clone(),
            filter: self.filter.clone(),
            timeout: spec.limits.timeout,
            cgroup: layout.cgroup().to_owned(),
        }
    }

    /// Writes down what operators are shown of it.
    fn describe(&self, spec: &SandboxSpec, layout: &Layout) -> io::Result<()> {
        inspect::About::of(spec, &self.cgroups.spec_path(layout.cgroup())).write(layout)
    }

    /// Everything on disk that the helper needs.
    fn prepare(&self, spec: &SandboxSpec, ahead: bool) -> Result<(Layout, Lease), SandboxError> {
        let id = spec.id;
        let layout = self.state.layout(id);
        // Held until the helper holds it.
        let lease = self.images.lease(&spec.image)?;
        volume::create(&self.state, id, spec.limits.disk_bytes)?;
        let preparing = || SandboxError::host(format!("preparing sandbox {id}"));
        teardown::end_run(&layout, &self.cgroups).map_err(preparing())?;
        let layers = layers::read(&layout).map_err(preparing())?;
        let ids = self.ranges.claim(&layout, &layers, &self.cgroups).map_err(|error| error.of(id))?;
        let setup = self.setups.order(&layout).map_err(preparing())?;
        let order = HelperOrder { ahead, setup, ..self.order(spec, &lease.image, &layout, layers, ids) };
        let write = || {
            if self.cgroups.limits_by_itself() {
                self.cgroups.furnish(layout.cgroup(), &spec.limits)?;
            }
            make_dir(&layout.stage())?;
            if ahead {
                layout.note_first_name(id)?;
                let noted = Ahead { disk_bytes: spec.limits.disk_bytes };
                write_whole(&layout.ahead(), &serde_json::to_vec(&noted)?, 0o600)?;
            }
            self.describe(spec, &layout)?;
            write_whole(&layout.order(), &serde_json::to_vec(&order)?, 0o600)
        };
        write().map_err(preparing())?;
        Ok((layout, lease))
    }

    /// What the helper of the sandbox in this directory was told, if it was started ahead just as this one would be started
    /// now, and runs.
    pub(super) fn ready_for(&self, spec: &SandboxSpec, layout: &Layout) -> Option<HelperOrder> {
        let noted = handover::ahead(layout)?;
        let was: HelperOrder = serde_json::from_slice(&fs::read(layout.order()).ok()?).ok()?;
        let layers = layers::read(layout).ok()?;
        let ids = self.ranges.held(layout, &layers).ok()??;
        let image = self.images.find(&spec.image).ok()?;
        let setup = self.setups.order(layout).ok()?;
        let wanted = HelperOrder { ahead: true, setup, ..self.order(spec, &image, layout, layers, ids) };
        // What lies under the work tree and how long it may live are told when it is handed over.
        let was = HelperOrder { layers: wanted.layers.clone(), timeout: wanted.timeout, ..was };
        let stands = noted.disk_bytes == spec.limits.disk_bytes && was == wanted && self.is_alive(layout);
        stands.then_some(wanted)
    }

    /// Whether both the sandbox's helper and its first process are there.
    pub(super) fn is_alive(&self, layout: &Layout) -> bool {
        layout.helper_pid().is_some() && first_process(layout, &self.cgroups).is_some()
    }

    /// Makes the sandbox that was started ahead in this one's directory this one, if there is one.
    fn take_over(&self, spec: &SandboxSpec) -> Option<Layout> {
        let layout = self.state.layout(spec.id);
        handover::ahead(&layout)?;
        let order = self.ready_for(spec, &layout)?;
        let handed = self.describe(spec, &layout).and_then(|()| handover::hand_over(&layout, &order));
        let id = spec.id;
        let handed = handed.inspect_err(|error| tracing::warn!(sandbox = %id, %error, "not handed over; started anew"));
        handed.ok().map(|()| layout)
    }

    /// Starts a helper for what is prepared, and waits until the sandbox answers.
    pub(super) async fn bring_up(self: &Arc<Self>, spec: SandboxSpec, ahead: bool) -> Result<Running, SandboxError> {
        let id = spec.id;
        let prepared = self.blocking(id, move |this| {
            let (layout, lease) = this.prepare(&spec, ahead)?;
            let failed = |error: io::Error| SandboxError::StartFailed { id, detail: error.to_string() };
            let report = this.start_helper(&layout, true).map_err(failed)?;
            Ok((layout, report, lease))
        });
        let (layout, report, _lease) = prepared.await?;
        self.launch(id, &layout, report).await?;
        let running = Running::new(id, layout, Arc::clone(&self.cgroups));
        running.ping().await?;
        Ok(running)
    }

    /// Has a helper started for the sandbox, which goes on if this process dies. What it reports can be read from the pipe.
    fn start_helper(&self, layout: &Layout, forked: bool) -> io::Result<PipeReader> {
        let log = File::create(layout.log())?;
        let (reader, writer) = io::pipe()?;
        if forked {
            match self.zygote.order(layout.dir(), &writer, &log) {
                Ok(()) => return Ok(reader),
                Err(error) => tracing::warn!(%error, "no zygote; the sandbox's helper is started directly"),
            }
        }
        let mut command = Command::new(&self.config.helper);
        command.arg(HELPER_ARG).arg(layout.dir()).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(writer).stderr(log).spawn().map(|_| reader).map_err(|error| {
            io::Error::new(error.kind(), format!("{} cannot be run: {error}", self.config.helper.display()))
        })
    }

    /// Another helper, if the first was never there: its zygote may have been killed with the order in its hands.
    fn relaunch(&self, layout: &Layout) -> io::Result<Option<PipeReader>> {
        let was_there = layout.helper_pid().is_some() || fs::metadata(layout.log()).is_ok_and(|log| log.len() > 0);
        if was_there { Ok(None) } else { self.start_helper(layout, false).map(Some) }
    }

    /// What a helper says once its sandbox stands, or does not; nothing when it ended without a word.
    async fn hear(&self, id: SandboxId, report: PipeReader) -> Result<Vec<u8>, SandboxError> {
        let failed = |detail: String| SandboxError::StartFailed { id, detail };
        let unheard = |error: io::Error| failed(format!("its helper could not be heard: {error}"));
        let report = pipe::Receiver::from_owned_fd(report.into()).map_err(unheard)?;
        let mut line = Vec::new();
        let mut reader = BufReader::new(report.take(MAX_REPORT));
        let read = tokio::time::timeout(START_PATIENCE, reader.read_until(b'\n', &mut line)).await;
        read.map_err(|_| failed(format!("its helper said nothing for {START_PATIENCE:?}")))?.map_err(unheard)?;
        Ok(line)
    }

    /// Waits for what the helper says.
    async fn launch(self: &Arc<Self>, id: SandboxId, layout: &Layout, report: PipeReader) -> Result<(), SandboxError> {
        let failed = |detail: String| SandboxError::StartFailed { id, detail };
        let mut line = self.hear(id, report).await?;
        if line.is_empty() {
            let again = layout.clone();
            let report =
                self.blocking(id, move |this| this.relaunch(&again).map_err(SandboxError::host("a second helper")));
            if let Some(report) = report.await? {
                line = self.hear(id, report).await?;
            }
        }
        match serde_json::from_slice(&line) {
            Ok(HelperReport::Ready(_)) => Ok(()),
            Ok(HelperReport::Failed(detail)) => Err(failed(detail)),
            Err(_) => {
                let log = fs::read(layout.log()).unwrap_or_default();
                let log = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_QUOTE)..]).trim().to_owned();
                Err(failed(if log.is_empty() { "its helper ended without a word".into() } else { log }))
            }
        }
    }

    /// Runs what waits for the kernel on a thread for that.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        id: SandboxId,
        work: impl FnOnce(&Self) -> Result<T, SandboxError> + Send + 'static,
    ) -> Result<T, SandboxError> {
        let this = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        done.unwrap_or_else(|error| Err(SandboxError::StartFailed { id, detail: error.to_string() }))
    }

    async fn start(self: Arc<Self>, spec: SandboxSpec) -> Result<Arc<dyn Sandbox>, SandboxError> {
        let id = spec.id;
        if let Some(running) = self.find(id).await {
            return Ok(Arc::new(running));
        }
        let _start = self.starts.begin();
        if self.state.layout(id).ahead().exists() {
            let asked = spec.clone();
            if let Some(layout) = self.blocking(id, move |this| Ok(this.take_over(&asked))).await? {
                let running = Running::new(id, layout, Arc::clone(&self.cgroups));
                match running.ping().await {
                    Ok(()) => {
                        tracing::info!(sandbox = %id, "sandbox handed over");
                        return Ok(Arc::new(running));
                    }
                    // It died in our hands. Nobody has used it: a new one is as good.
                    Err(error) => tracing::warn!(sandbox = %id, %error, "handed over and gone; started anew"),
                }
            }
        }
        let cgroups = Arc::clone(&self.cgroups);
        // Beside everything else, and nobody waits for it.
        drop(tokio::task::spawn_blocking(move || cgroups.ease_next_move()));
        let running = self.bring_up(spec, false).await?;
        tracing::info!(sandbox = %id, "sandbox started");
        Ok(Arc::new(running))
    }
}

#[async_trait]
impl Sandboxes for Containers {
    async fn create_volume(&self, id: SandboxId, disk_bytes: u64) -> Result<Volume, SandboxError> {
        let work = move |inner: Arc<Inner>| async move {
            let made = move |this: &Inner| {
                // Who makes a disk soon starts a sandbox.
                this.zygote.wake();
                volume::create(&this.state, id, disk_bytes)
            };
            inner.blocking(id, made).await
        };
        self.alone(id, work).await
    }

    async fn prepare(&self, spec: &SandboxSpec) -> Result<Volume, SandboxError> {
        let (spec, spec_id) = (spec.clone(), spec.id);
        let work = move |inner: Arc<Inner>| async move {
            let made = move |this: &Inner| {
                this.zygote.wake();
                this.claim(&spec);
                volume::create(&this.state, spec.id, spec.limits.disk_bytes)
            };
            inner.blocking(spec_id, made).await
        };
        self.alone(spec_id, work).await
    }

    async fn start(&self, spec: &SandboxSpec) -> Result<Arc<dyn Sandbox>, SandboxError> {
        let spec = spec.clone();
        self.alone(spec.id, move |inner| inner.start(spec)).await
    }

    async fn attach(&self, id: SandboxId) -> Result<Option<Arc<dyn Sandbox>>, SandboxError> {
        Ok(self.inner.find(id).await.map(|running| Arc::new(running) as Arc<dyn Sandbox>))
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), SandboxError> {
        let work = move |inner: Arc<Inner>| async move {
            inner.blocking(id, move |this| teardown::destroy(&this.state, &this.cgroups, &this.ranges, id)).await
        };
        self.alone(id, work).await.inspect(|()| tracing::info!(sandbox = %id, "sandbox removed"))
    }

    async fn lowers(&self) -> Result<HashSet<PathBuf>, SandboxError> {
        let nobody = SandboxId::from_uuid(uuid::Uuid::nil());
        let looking = SandboxError::host("looking for what lies under the sandboxes");
        let work = |this: &Inner| {
            let mut lowers = HashSet::from_iter(layers::lowers(&this.state).map_err(looking)?);
            lowers.extend(layers::images(&this.state));
            Ok(lowers)
        };
        self.inner.blocking(nobody, work).await
    }

    async fn create_setup(&self, id: SandboxId, like: SandboxId, disk_bytes: u64) -> Result<(), SandboxError> {
        let work = move |this: &Inner| {
            volume::create(&this.state, id, disk_bytes)?;
            let begun = this.setups.begin(&this.state.layout(id), &this.state.layout(like));
            begun.map_err(SandboxError::host(format!("preparing the setup in sandbox {id}")))
        };
        self.alone(id, move |inner: Arc<Inner>| async move { inner.blocking(id, work).await }).await
    }

    async fn keep_setup(
        &self,
        id: SandboxId,
        key: &SetupKey,
        excluded: BTreeMap<String, Vec<String>>,
    ) -> Result<(), SandboxError> {
        let key = key.clone();
        let work = move |this: &Inner| {
            let layout = this.state.layout(id);
            let kept = teardown::end_run(&layout, &this.cgroups)
                .and_then(|()| this.setups.keep(&layout, &key, excluded))
                .map_err(SandboxError::host(format!("keeping the setup of sandbox {id}")))?;
            tracing::info!(sandbox = %id, key = key.short(), bytes = kept, "setup kept");
            teardown::destroy(&this.state, &this.cgroups, &this.ranges, id)
        };
        self.alone(id, move |inner: Arc<Inner>| async move { inner.blocking(id, work).await }).await
    }

    async fn use_setup(&self, id: SandboxId, key: &SetupKey) -> Result<bool, SandboxError> {
        let key = key.clone();
        let work = move |this: &Inner| {
            let put = this.setups.put_under(&this.state.layout(id), &key);
            put.map_err(SandboxError::host(format!("putting a setup under sandbox {id}")))
        };
        self.alone(id, move |inner: Arc<Inner>| async move { inner.blocking(id, work).await }).await
    }

    async fn trim_setups(&self, limits: SetupLimits) -> Result<usize, SandboxError> {
        let nobody = SandboxId::from_uuid(uuid::Uuid::nil());
        let trimmed = self.inner.blocking(nobody, move |this| {
            this.setups.trim(&limits, SystemTime::now()).map_err(SandboxError::host("trimming the kept setups"))
        });
        let (removed, bytes) = trimmed.await?;
        metrics::gauge!("orchestra_setups_bytes").set(bytes as f64);
        Ok(removed)
    }

    async fn image_identity(&self, image: &str) -> Result<String, SandboxError> {
        let (nobody, image) = (SandboxId::from_uuid(uuid::Uuid::nil()), image.to_owned());
        let work = move |this: &Inner| {
            let found = this.images.find(&image)?;
            let stored = found.rootfs.parent().and_then(|home| home.file_name()).unwrap_or_default().to_owned();
            Ok(format!("{}/{}/{}", stored.display(), found.manifest.inputs, found.manifest.created))
        };
        self.inner.blocking(nobody, work).await
    }

    async fn entries(&self, id: SandboxId) -> Result<Vec<Entry>, SandboxError> {
        let reading = SandboxError::host(format!("reading who has entered sandbox {id}"));
        self.inner.blocking(id, move |this| inspect::entries(&this.state.layout(id)).map_err(reading)).await
    }

    async fn forget_entry(&self, id: SandboxId, entry: uuid::Uuid) -> Result<(), SandboxError> {
        let doing = SandboxError::host(format!("taking down who has entered sandbox {id}"));
        self.inner.blocking(id, move |this| inspect::forget_entry(&this.state.layout(id), entry).map_err(doing)).await
    }

    async fn list(&self) -> Result<Vec<SandboxId>, SandboxError> {
        let nobody = SandboxId::from_uuid(uuid::Uuid::nil());
        let pooled = || self.inner.pool.get().map(|pool| pool.ids()).unwrap_or_default();
        // Asked before and after: one that is taken or made meanwhile is in one of the two.
        let before = pooled();
        let mut found =
            self.inner.blocking(nobody, |this| teardown::list(&this.state, &this.cgroups, &this.ranges)).await?;
        let after = pooled();
        found.retain(|id| !before.contains(id) && !after.contains(id));
        Ok(found)
    }
}
