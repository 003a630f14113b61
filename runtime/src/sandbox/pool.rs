//! Sandboxes of one kind that are started ahead, so that a task finds one running.
//!
//! Each is an ordinary sandbox with a name and a directory of its own. Whoever makes the disk of a sandbox of this kind gets
//! one of them: its directory is given the new name, and what the task puts on the disk is on the disk of a sandbox that runs
//! already. Its start is then the handover ([`super::handover`]). Those that no process knows, because it was killed, are taken
//! over by the next server, or reported as left behind like any other sandbox that nobody owns.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use orchestra_events::SandboxId;
use tokio::sync::Notify;

use super::containers::{Containers, Inner};
use super::layout::Layout;
use super::{Limits, SandboxSpec, teardown};

/// Most sandboxes that are kept ready: each holds a disk, its control groups and the memory of two processes.
pub const MAX_READY: usize = 32;
/// How long one may wait for its task. A server that never comes back leaves none for longer.
const LIFE: Duration = Duration::from_secs(3600);
/// How long no sandbox must have been started before one may be started ahead: the processors are the tasks'.
const QUIET: Duration = Duration::from_millis(500);
/// Time between two looks at whether those that are ready are still alive.
const LOOK: Duration = Duration::from_secs(2);
/// Time until the next attempt when one could not be started.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// What is ready, and what it is like.
#[derive(Debug)]
pub struct Pool {
    /// What each is like, but for its name.
    spec: SandboxSpec,
    size: usize,
    members: Mutex<Members>,
    /// Rung when one was taken.
    taken: Notify,
}

#[derive(Debug, Default)]
struct Members {
    ready: VecDeque<SandboxId>,
    /// Being started, being handed over, or being removed: nobody's leftovers.
    busy: BTreeSet<SandboxId>,
}

impl Pool {
    /// Keeps up to `size` of this kind.
    pub fn new(spec: SandboxSpec, size: usize) -> Self {
        Self { spec, size: size.min(MAX_READY), members: Mutex::default(), taken: Notify::new() }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of this kind.
    fn like(&self, id: SandboxId) -> SandboxSpec {
        SandboxSpec { id, ..self.spec.clone() }
    }

    /// Whether a sandbox of this kind would do.
    pub fn serves(&self, spec: &SandboxSpec) -> bool {
        let limits = |spec: &SandboxSpec| Limits { timeout: Duration::ZERO, ..spec.limits.clone() };
        let ours = &self.spec;
        spec.image == ours.image
            && spec.env == ours.env
            && spec.hostname == ours.hostname
            && limits(spec) == limits(ours)
    }

    /// Every one that is the pool's business.
    pub fn ids(&self) -> Vec<SandboxId> {
        let members = self.members();
        members.ready.iter().chain(&members.busy).copied().collect()
    }

    /// How many are missing.
    pub fn missing(&self) -> usize {
        self.size.saturating_sub(self.members().ready.len())
    }

    /// Those that are ready now.
    pub fn ready(&self) -> Vec<SandboxId> {
        self.members().ready.iter().copied().collect()
    }

    /// Begins something with one that is not ready.
    pub fn begin(&self, id: SandboxId) {
        self.members().busy.insert(id);
    }

    /// Ends it: it is ready now.
    pub fn add(&self, id: SandboxId) {
        let mut members = self.members();
        members.busy.remove(&id);
        members.ready.push_back(id);
        show(&members);
    }

    /// Takes the one that has been ready for longest. It stays the pool's business until [`Self::end`].
    pub fn take(&self) -> Option<SandboxId> {
        let mut members = self.members();
        let id = members.ready.pop_front()?;
        members.busy.insert(id);
        show(&members);
        Some(id)
    }

    /// Takes this one, if it is ready.
    pub fn withdraw(&self, id: SandboxId) -> bool {
        let mut members = self.members();
        let before = members.ready.len();
        members.ready.retain(|ready| *ready != id);
        let was_ready = members.ready.len() < before;
        if was_ready {
            members.busy.insert(id);
            show(&members);
        }
        was_ready
    }

    /// Ends something with one: it is not the pool's any more.
    pub fn end(&self, id: SandboxId) {
        self.members().busy.remove(&id);
    }
}

fn show(members: &Members) {
    metrics::gauge!("orchestra_sandbox_pool_ready").set(members.ready.len() as f64);
}

/// How busy the host is with starts.
#[derive(Debug)]
pub struct Starts {
    running: AtomicUsize,
    last: Mutex<Instant>,
}

impl Default for Starts {
    fn default() -> Self {
        Self { running: AtomicUsize::new(0), last: Mutex::new(Instant::now()) }
    }
}

/// A start that is going on.
#[derive(Debug)]
pub struct Start<'a>(&'a Starts);

impl Starts {
    /// One begins.
    pub fn begin(&self) -> Start<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        Start(self)
    }

    /// How long until one may be started ahead, as far as is known now.
    pub fn quiet_in(&self) -> Duration {
        if self.running.load(Ordering::Relaxed) > 0 {
            return QUIET;
        }
        QUIET.saturating_sub(self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }
}

impl Drop for Start<'_> {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Containers {
    /// Keeps up to `size` sandboxes like this one, but for its name, started ahead; none for 0. Those that an earlier process
    /// has left are taken over, if they are just as they would be started now. Once per process, on a runtime.
    pub async fn keep_ready(&self, size: usize, spec: SandboxSpec) {
        if super::rootless::is_needed() {
            // What lies under a work tree can be mounted into a running sandbox by root alone.
            tracing::warn!("without root no sandboxes are kept ready");
            return;
        }
        if size == 0 || self.inner.pool.set(Arc::new(Pool::new(spec, size))).is_err() {
            return;
        }
        let nobody = SandboxId::from_uuid(uuid::Uuid::nil());
        let adopted = self.inner.blocking(nobody, |inner| {
            inner.adopt();
            Ok(())
        });
        let _ = adopted.await;
        tokio::spawn(keep(Arc::downgrade(&self.inner)));
    }

    /// How many sandboxes wait for a task.
    pub fn ready(&self) -> usize {
        self.inner.pool.get().map_or(0, |pool| pool.ready().len())
    }
}

impl Inner {
    /// Takes over what an earlier process has left ready.
    fn adopt(&self) {
        let Some(pool) = self.pool.get() else { return };
        for entry in fs::read_dir(self.state.sandboxes()).into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let layout = self.state.layout(id);
            // One whose directory has another name already is a task's.
            let is_unclaimed = Layout::first_name(layout.dir()) == Some(id);
            if pool.missing() > 0 && is_unclaimed && self.ready_for(&pool.like(id), &layout).is_some() {
                pool.add(id);
            }
        }
    }

    /// Gives a sandbox that was started ahead this one's name, if there is one that would do and this one has no disk yet.
    pub(super) fn claim(&self, spec: &SandboxSpec) {
        let Some(pool) = self.pool.get() else { return };
        let layout = self.state.layout(spec.id);
        if layout.dir().exists() {
            return;
        }
        while pool.serves(spec)
            && let Some(member) = pool.take()
        {
            let from = self.state.layout(member);
            let claimed = self.ready_for(&pool.like(member), &from).is_some() && self.rename(&from, &layout);
            pool.taken.notify_one();
            if claimed {
                pool.end(member);
                metrics::counter!("orchestra_sandbox_pool_hits_total").increment(1);
                return;
            }
            self.discard(pool, member);
        }
        metrics::counter!("orchestra_sandbox_pool_misses_total").increment(1);
    }

    /// Gives a sandbox's directory another name, and its host user ids to that. The ids first: what a crash between the two
    /// leaves belongs to nobody, under either name, and nothing of it under both.
    fn rename(&self, from: &Layout, to: &Layout) -> bool {
        let renamed = self
            .ranges
            .pass_on(from, to)
            .and_then(|()| Ok(renameat2(AT_FDCWD, from.dir(), AT_FDCWD, to.dir(), RenameFlags::RENAME_NOREPLACE)?));
        if let Err(error) = &renamed {
            tracing::warn!(%error, "what was started ahead cannot be given to a task");
            let _ = self.ranges.release(to);
        }
        renamed.is_ok()
    }

    /// Removes one that is of no use, now or with the next look for leftovers.
    fn discard(&self, pool: &Pool, member: SandboxId) {
        if let Err(error) = teardown::destroy(&self.state, &self.cgroups, &self.ranges, member) {
            tracing::warn!(sandbox = %member, %error, "one that was started ahead is left behind");
        }
        pool.end(member);
    }

    /// Replaces what is not as it should be any more, and starts one that is missing. How long to wait until the next look.
    async fn tend(self: &Arc<Self>) -> Duration {
        let Some(pool) = self.pool.get() else { return LOOK };
        let nobody = SandboxId::from_uuid(uuid::Uuid::nil());
        let looked = self.blocking(nobody, |this| {
            let Some(pool) = this.pool.get() else { return Ok(()) };
            for member in pool.ready() {
                let stands = this.ready_for(&pool.like(member), &this.state.layout(member)).is_some();
                if !stands && pool.withdraw(member) {
                    this.discard(pool, member);
                }
            }
            Ok(())
        });
        if let Err(error) = looked.await {
            tracing::warn!(%error, "looking after what was started ahead");
        }
        if pool.missing() == 0 {
            return LOOK;
        }
        let quiet_in = self.starts.quiet_in();
        if quiet_in > Duration::ZERO {
            return quiet_in;
        }
        let member = SandboxId::from_uuid(uuid::Uuid::now_v7());
        pool.begin(member);
        let mut spec = pool.like(member);
        spec.limits.timeout = LIFE;
        match self.bring_up(spec, true).await {
            Ok(_) => {
                pool.add(member);
                Duration::ZERO
            }
            Err(error) => {
                tracing::warn!(%error, "no sandbox can be started ahead");
                let discarded = self.blocking(member, move |this| {
                    this.pool.get().into_iter().for_each(|pool| this.discard(pool, member));
                    Ok(())
                });
                let _ = discarded.await;
                AFTER_FAILURE
            }
        }
    }
}

/// Tends the pool for as long as anybody may take from it.
async fn keep(inner: Weak<Inner>) {
    loop {
        let (wait, pool) = {
            let Some(inner) = inner.upgrade() else { return };
            let Some(pool) = inner.pool.get() else { return };
            (inner.tend().await, Arc::clone(pool))
        };
        // A failure is waited out whoever asks; otherwise a place that has become free is filled as soon as it is quiet.
        if wait == LOOK {
            let _ = tokio::time::timeout(wait, pool.taken.notified()).await;
        } else {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> SandboxId {
        SandboxId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn spec() -> SandboxSpec {
        let (image, hostname) = ("default".into(), "sandbox".into());
        SandboxSpec { id: id(0), image, limits: Limits::default(), env: Vec::new(), hostname }
    }

    #[test]
    fn only_the_name_and_the_time_may_differ() {
        let pool = Pool::new(spec(), 1);
        let other_time = Limits { timeout: Duration::from_secs(7), ..Limits::default() };
        assert!(pool.serves(&SandboxSpec { id: id(9), limits: other_time, ..spec() }));
        let smaller = Limits { disk_bytes: 1 << 30, ..Limits::default() };
        for other in [
            SandboxSpec { image: "other".into(), ..spec() },
            SandboxSpec { limits: smaller, ..spec() },
            SandboxSpec { env: vec![("A".into(), "b".into())], ..spec() },
            SandboxSpec { hostname: "other".into(), ..spec() },
        ] {
            assert!(!pool.serves(&other), "{other:?}");
        }
    }

    #[test]
    fn one_that_is_taken_is_the_pools_until_it_is_let_go() {
        let pool = Pool::new(spec(), 2);
        pool.begin(id(1));
        assert_eq!((pool.missing(), pool.ids(), pool.take()), (2, vec![id(1)], None));
        pool.add(id(1));
        assert_eq!((pool.missing(), pool.ready()), (1, vec![id(1)]));
        assert_eq!(pool.take(), Some(id(1)));
        assert!(!pool.withdraw(id(1)));
        assert_eq!((pool.missing(), pool.ids()), (2, vec![id(1)]));
        pool.end(id(1));
        assert!(pool.ids().is_empty());
        assert_eq!(Pool::new(spec(), 1_000).missing(), MAX_READY);
    }
}
