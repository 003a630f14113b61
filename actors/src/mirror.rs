//! The mirrors: one actor per repository, made when somebody needs something fetched.
//!
//! [`Mirrors`] is what everybody else holds; it knows no actix in its interface. It asks the forge with the task's own token
//! first. Only then does it look into the cache, and if the commit's files are there, the actor is not needed. The actor does
//! one thing at a time with its repository: tasks that all need the same commit wait for one fetch.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use actix::prelude::*;
use orchestra_runtime::git::{
    Access, CacheDir, CacheLimits, Cached, Cloned, Git, GitError, Lower, Mirror, MirrorKey, Operation, Part, Remote,
    victims,
};
use orchestra_runtime::sandbox::{Sandboxes, workspace_owner};
use secrecy::SecretString;
use tokio::sync::oneshot;

/// Orders that may wait for one repository: more than tasks that run at once. Who comes then waits outside.
pub const MAILBOX: usize = 256;
/// An actor that was asked nothing for so long goes; it has nothing in memory.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// How often that is looked at.
const IDLE_LOOK: Duration = Duration::from_secs(60);
/// How often an order is given again to an actor that went just then. Giving it twice is harmless.
const TRIES: u32 = 3;

/// A work tree that a task needs.
#[derive(Debug, Clone)]
pub struct WorkTreeOrder {
    /// The forge's name in the configuration.
    pub forge: String,
    /// The repository's path on the forge.
    pub repo_path: String,
    /// The forge's immutable id of the repository, where it is known. Without one, the path is what tells repositories
    /// apart.
    pub repo_id: Option<String>,
    /// How it is reached.
    pub remote: Remote,
    /// The task's own token.
    pub token: Option<SecretString>,
    /// The branch that the work starts from; the default branch when absent.
    pub base: Option<String>,
    /// Where the task's own trusted repository is to be.
    pub repository: PathBuf,
}

/// A work tree that is there.
#[derive(Debug)]
pub struct WorkTree {
    /// What was fetched, by this task or one before it.
    pub cloned: Cloned,
    /// The branches that the forge shows to this task's token, as many as are kept.
    pub heads: Vec<String>,
    /// Which repository it is, for ever: the same words for the same one.
    pub origin: String,
    /// The commit's files, to be laid under a sandbox's work tree.
    pub lower: PathBuf,
    /// Whether everything was there already.
    pub hit: bool,
    /// Keeps the files until a sandbox's record does: drop it when they are laid.
    pub hold: Hold,
}

/// The files that nobody's record names yet, and those that are just being removed.
#[derive(Debug, Default)]
struct Held {
    held: HashMap<PathBuf, usize>,
    condemned: HashSet<PathBuf>,
}

type Holds = Arc<Mutex<Held>>;

/// As long as it lives, the files are not removed.
#[derive(Debug)]
pub struct Hold {
    holds: Holds,
    path: PathBuf,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.held.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                held.held.remove(&self.path);
            }
        }
    }
}

/// Holds the files unless they are just being removed.
fn hold(holds: &Holds, path: &Path) -> Option<Hold> {
    let mut held = holds.lock().unwrap_or_else(PoisonError::into_inner);
    if held.condemned.contains(path) {
        return None;
    }
    *held.held.entry(path.to_owned()).or_default() += 1;
    Some(Hold { holds: Arc::clone(holds), path: path.to_owned() })
}

/// Everybody's way to the mirrors. Cheap to clone.
#[derive(Clone)]
pub struct Mirrors {
    house: Arc<House>,
}

struct House {
    git: Arc<Git>,
    sandboxes: Arc<dyn Sandboxes>,
    cache: CacheDir,
    limits: CacheLimits,
    holds: Holds,
    arbiter: Arbiter,
    actors: Mutex<HashMap<PathBuf, Addr<MirrorActor>>>,
    /// What the last process of this server has left half-made; taken once.
    leftovers: Mutex<Vec<PathBuf>>,
    /// Whose turn it is to make room: one pass at a time.
    trimming: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for House {
    fn drop(&mut self) {
        self.arbiter.stop();
    }
}

impl Mirrors {
    /// The mirrors below `dir`, on a thread of their own. Must be called within an actix system.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn start(
        git: Arc<Git>,
        sandboxes: Arc<dyn Sandboxes>,
        dir: &Path,
        limits: CacheLimits,
    ) -> std::io::Result<Self> {
        let cache = CacheDir::open(dir)?;
        let leftovers = Mutex::new(cache.leftovers());
        let (holds, arbiter, actors) = (Holds::default(), Arbiter::new(), Mutex::default());
        let trimming = Arc::default();
        let house = House { git, sandboxes, cache, limits, holds, arbiter, actors, leftovers, trimming };
        Ok(Self { house: Arc::new(house) })
    }

    /// A commit's files for a task, and its trusted repository beside them. The forge is asked first, with the task's own
    /// token: who has no access gets the forge's answer, and nothing of the cache has been looked at.
    ///
    /// # Errors
    /// What the forge or the disk says.
    pub async fn work_tree(&self, order: WorkTreeOrder) -> Result<WorkTree, GitError> {
        let house = &self.house;
        let Access { cloned, heads } =
            house.git.prove_access(&house.cache, &order.remote, order.token.clone(), order.base.as_deref()).await?;
        let key = MirrorKey::new(&order.forge, &order.remote, &order.repo_path, order.repo_id.as_deref());
        let mirror = house.cache.mirror(&key);
        let found = self.find(&mirror, &cloned).await;
        let hit = found.is_some();
        let (cloned, lower, hold) = match found {
            Some(hold) => (cloned, hold.path.clone(), hold),
            None => {
                let Made { lower, hold } = self.make(&mirror, &order, cloned).await?;
                if !lower.made {
                    // It waited for another task's fetch, which can take minutes: what was proven then is asked again.
                    let base = Some(lower.cloned.base.as_str());
                    house.git.prove_access(&house.cache, &order.remote, order.token.clone(), base).await?;
                }
                (lower.cloned, lower.path, hold)
            }
        };
        house.git.seed(&lower, &order.repository, &cloned).await?;
        metrics::counter!("orchestra_work_trees_total", "cache" => if hit { "hit" } else { "miss" }).increment(1);
        if !hit {
            self.trim_beside();
        }
        Ok(WorkTree { cloned, heads, origin: key.description().to_owned(), lower, hit, hold })
    }

    /// Files that are there, held before anybody can remove them.
    async fn find(&self, mirror: &Mirror, cloned: &Cloned) -> Option<Hold> {
        let whole = async || self.house.git.use_lower(mirror, &cloned.base, &cloned.commit).await.unwrap_or(false);
        // What is not whole is not held, not even for a moment: somebody may be about to replace it.
        if !whole().await {
            return None;
        }
        let hold = hold(&self.house.holds, &mirror.lower(&cloned.commit))?;
        whole().await.then_some(hold)
    }

    async fn make(&self, mirror: &Mirror, order: &WorkTreeOrder, wanted: Cloned) -> Result<Made, GitError> {
        for _ in 0..TRIES {
            let (wanted_by, _waiting) = oneshot::channel();
            let message = Make {
                wanted_by,
                mirror: mirror.clone(),
                remote: order.remote.clone(),
                token: order.token.clone(),
                wanted: wanted.clone(),
            };
            match self.address(mirror.dir()).send(message).await {
                Ok(made) => return made,
                Err(MailboxError::Closed | MailboxError::Timeout) => {}
            }
        }
        Err(gone())
    }

    /// Removes what the limits do not allow, what a killed process has left half-made, and nothing that a sandbox uses.
    /// Answers how much.
    pub async fn sweep(&self) -> usize {
        let leftovers = {
            let mut leftovers = self.house.leftovers.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *leftovers)
        };
        let cleared = if leftovers.is_empty() { 0 } else { self.house.git.clear(leftovers).await.unwrap_or(0) };
        let _turn = self.house.trimming.lock().await;
        cleared + self.trim().await
    }

    /// Makes room while the task goes on. One such pass at a time is enough.
    fn trim_beside(&self) {
        let Ok(turn) = Arc::clone(&self.house.trimming).try_lock_owned() else { return };
        let mirrors = self.clone();
        drop(tokio::spawn(async move {
            mirrors.trim().await;
            drop(turn);
        }));
    }

    async fn trim(&self) -> usize {
        match self.try_trim().await {
            Ok(removed) => removed,
            Err(error) => {
                tracing::warn!(%error, "the cache of repositories is trimmed another time");
                0
            }
        }
    }

    async fn try_trim(&self) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
        let house = &self.house;
        let cached = house.git.census(&house.cache).await?;
        let mut pinned = house.sandboxes.lowers().await.unwrap_or_else(|error| {
            // One record that cannot be read could name any files. The branches' objects are in no record.
            tracing::warn!(%error, "it is not known which files sandboxes use; all of them stay");
            cached.iter().filter(|part| part.part == Part::Lower).map(|part| part.path.clone()).collect()
        });
        pinned.extend(house.holds.lock().unwrap_or_else(PoisonError::into_inner).held.keys().cloned());
        metrics::gauge!("orchestra_cache_bytes").set(cached.iter().map(|part| part.bytes).sum::<u64>() as f64);
        let mut removed = 0;
        for part in victims(&cached, &pinned, &house.limits, SystemTime::now()) {
            let address = self.address(&part.mirror);
            removed += usize::from(address.send(Evict(part)).await.is_ok_and(|evicted| evicted));
        }
        Ok(removed)
    }

    /// The mirror's actor, made if there is none.
    fn address(&self, dir: &Path) -> Addr<MirrorActor> {
        let mut actors = self.house.actors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = actors.get(dir)
            && address.connected()
        {
            return address.clone();
        }
        let (git, sandboxes) = (Arc::clone(&self.house.git), Arc::clone(&self.house.sandboxes));
        let holds = Arc::clone(&self.house.holds);
        let actor =
            move |_: &mut Context<MirrorActor>| MirrorActor { git, sandboxes, holds, last_asked: Instant::now() };
        let address = MirrorActor::start_in_arbiter(&self.house.arbiter.handle(), actor);
        // Those that left in peace are forgotten here, so that the map is as large as there are busy repositories.
        actors.retain(|_, address| address.connected());
        actors.insert(dir.to_owned(), address.clone());
        metrics::gauge!("orchestra_mirror_actors").set(actors.len() as f64);
        address
    }
}

fn gone() -> GitError {
    GitError::Git { operation: Operation::Clone, detail: "the repository's mirror is being taken down".to_owned() }
}

/// Does one thing at a time with one repository.
struct MirrorActor {
    git: Arc<Git>,
    sandboxes: Arc<dyn Sandboxes>,
    holds: Holds,
    last_asked: Instant,
}

impl Actor for MirrorActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        // While something is being done, this waits like every message, so only an idle actor goes.
        ctx.run_interval(IDLE_LOOK, |actor, ctx| {
            if actor.last_asked.elapsed() > IDLE {
                ctx.stop();
            }
        });
    }
}

/// Bring a commit's files.
#[derive(Message)]
#[rtype(result = "Result<Made, GitError>")]
struct Make {
    /// Closed when nobody waits for it any more: a forge that does not answer must not hold up the repository's next task.
    wanted_by: oneshot::Sender<()>,
    mirror: Mirror,
    remote: Remote,
    token: Option<SecretString>,
    wanted: Cloned,
}

/// Files that are there and held.
struct Made {
    lower: Lower,
    hold: Hold,
}

impl Handler<Make> for MirrorActor {
    /// One at a time: whoever waited for another task's fetch finds what it brought.
    type Result = AtomicResponse<Self, Result<Made, GitError>>;

    fn handle(&mut self, order: Make, _: &mut Self::Context) -> Self::Result {
        self.last_asked = Instant::now();
        let (git, holds, sandboxes) = (Arc::clone(&self.git), Arc::clone(&self.holds), Arc::clone(&self.sandboxes));
        let (order_mirror, order_base) = (order.mirror.clone(), order.wanted.base.clone());
        let make = async move {
            let Make { mut wanted_by, mut mirror, remote, token, wanted } = order;
            // Files that are not whole may be replaced if nobody has them; and nobody comes to use such files meanwhile.
            match sandboxes.lowers().await {
                Ok(mut in_use) => {
                    in_use.extend(holds.lock().unwrap_or_else(PoisonError::into_inner).held.keys().cloned());
                    mirror = mirror.with_in_use(in_use);
                }
                Err(error) => tracing::warn!(%error, "it is not known which files sandboxes use; all of them stay"),
            }
            let lower = tokio::select! {
                biased;
                () = wanted_by.closed() => return Err(gone()),
                lower = git.lower(&mirror, &remote, token, &wanted, workspace_owner()) => lower?,
            };
            // Nothing is removed from this mirror while this runs, so nothing of it is condemned.
            let hold = hold(&holds, &lower.path).ok_or_else(gone)?;
            Ok(Made { lower, hold })
        };
        let settle = (Arc::clone(&self.git), order_mirror, order_base);
        AtomicResponse::new(Box::pin(make.into_actor(self).map(move |made, actor, ctx| {
            actor.last_asked = Instant::now();
            if let Ok(Made { lower, .. }) = &made
                && lower.made
            {
                let (git, mirror, base) = settle;
                let commit = lower.cloned.commit.clone();
                // Beside everything else: the files are good to use, and a loss of power before this only costs a fetch.
                ctx.spawn(
                    async move {
                        if let Err(error) = git.settle(&mirror, &base, &commit).await {
                            tracing::warn!(%error, "the disk does not say whether it has the repository");
                        }
                    }
                    .into_actor(actor),
                );
            }
            made
        })))
    }
}

/// Remove a part, unless it is used after all. Answers whether it is gone.
#[derive(Message)]
#[rtype(result = "bool")]
struct Evict(Cached);

impl Handler<Evict> for MirrorActor {
    type Result = AtomicResponse<Self, bool>;

    fn handle(&mut self, Evict(part): Evict, _: &mut Self::Context) -> Self::Result {
        let (git, holds, sandboxes) = (Arc::clone(&self.git), Arc::clone(&self.holds), Arc::clone(&self.sandboxes));
        AtomicResponse::new(Box::pin(async move { evict(&git, &holds, &*sandboxes, &part).await }.into_actor(self)))
    }
}

async fn evict(git: &Git, holds: &Holds, sandboxes: &dyn Sandboxes, part: &Cached) -> bool {
    {
        let mut held = holds.lock().unwrap_or_else(PoisonError::into_inner);
        if held.held.contains_key(&part.path) {
            return false;
        }
        held.condemned.insert(part.path.clone());
    }
    // In this order: a hold is dropped after the sandbox's record is written, so what was not held a moment ago is
    // either in a record by now or will not be.
    let used = match part.part {
        Part::Lower => sandboxes.lowers().await.map_or(true, |lowers| lowers.contains(&part.path)),
        Part::Line => false,
    };
    let evicted = !used
        && match git.evict(part).await {
            Ok(evicted) => evicted,
            Err(error) => {
                tracing::warn!(path = %part.path.display(), %error, "a part of the cache resists its removal");
                false
            }
        };
    holds.lock().unwrap_or_else(PoisonError::into_inner).condemned.remove(&part.path);
    if evicted {
        metrics::counter!("orchestra_cache_evictions_total").increment(1);
    }
    evicted
}
