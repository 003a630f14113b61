//! The reaper: removes sandboxes, volumes and repositories that no open task owns, and what the cache has no room for, at
//! start and from time to time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use orchestra_events::projections::tasks::MAX_PAGE;
use orchestra_events::projections::{ReadModels, TaskFilter};
use orchestra_events::task::TaskStatus;
use orchestra_events::task::event::MAX_ATTEMPTS;
use orchestra_events::{EventStore, SandboxId, TaskId};

use crate::workshop::{Workshop, sandbox_of, setup_sandbox_of};

/// Time between two passes.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// How long the read models may take to reach the head of the log before a pass is put off.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Removes what nobody owns.
pub struct Reaper {
    store: Arc<dyn EventStore>,
    read: Arc<ReadModels>,
    workshop: Arc<Workshop>,
}

impl Reaper {
    /// A reaper for this host.
    pub fn new(store: Arc<dyn EventStore>, read: Arc<ReadModels>, workshop: Arc<Workshop>) -> Self {
        Self { store, read, workshop }
    }
}

/// Make a pass now. Answers how much was removed.
#[derive(Message)]
#[rtype(result = "Result<usize, String>")]
pub struct Reap;

impl Actor for Reaper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.notify(Reap);
        ctx.run_interval(INTERVAL, |_, ctx| ctx.notify(Reap));
    }
}

impl Handler<Reap> for Reaper {
    /// One pass at a time.
    type Result = AtomicResponse<Self, Result<usize, String>>;

    fn handle(&mut self, _: Reap, _ctx: &mut Self::Context) -> Self::Result {
        let (store, read, workshop) = (Arc::clone(&self.store), Arc::clone(&self.read), Arc::clone(&self.workshop));
        let pass = async move {
            let removed = pass(&*store, &read, &workshop).await;
            match &removed {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "removed what nobody owned"),
                Err(error) => tracing::warn!(%error, "the reaper's pass is put off"),
            }
            removed
        };
        AtomicResponse::new(Box::pin(pass.into_actor(self)))
    }
}

async fn pass(store: &dyn EventStore, read: &ReadModels, workshop: &Workshop) -> Result<usize, String> {
    // First what there is, then who owns it: what is made in between is not in the first list.
    let mut found: HashSet<SandboxId> =
        workshop.sandboxes.list().await.map_err(|error| error.to_string())?.into_iter().collect();
    found.extend(workshop.repositories_found().await);
    let swept = workshop.mirrors.sweep().await + workshop.trim_setups().await + collect_images(workshop).await;
    if found.is_empty() {
        return Ok(swept);
    }
    let head = store.head().await.map_err(|error| error.to_string())?;
    read.wait_for(head, CATCH_UP).await.map_err(|error| error.to_string())?;
    for open in open_tasks(read).await? {
        // The attempt that is about to begin owns its sandbox already, and it may go on in that of one before it.
        for attempt in open.attempt.saturating_sub(MAX_ATTEMPTS)..=open.attempt + 1 {
            found.remove(&sandbox_of(open.id, attempt));
            found.remove(&setup_sandbox_of(open.id, attempt));
        }
    }
    let mut removed = 0;
    for sandbox in found {
        workshop.remove(sandbox).await;
        removed += 1;
    }
    metrics::counter!("orchestra_reaped_total").increment(removed as u64);
    Ok(removed + swept)
}

/// Removes images that nothing needs any more. Answers how much there was.
async fn collect_images(workshop: &Workshop) -> usize {
    // Every server that shares the images is seen by what it holds; this one also by what it has written down.
    let collected = match workshop.sandboxes.lowers().await {
        Ok(standing) => workshop.images.collect(standing).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match collected {
        Ok(collected) => {
            for image in &collected.images {
                tracing::info!(%image, "removed an image that nothing needs any more");
            }
            metrics::counter!("orchestra_images_removed_total").increment(collected.images.len() as u64);
            collected.count()
        }
        Err(error) => {
            tracing::warn!(%error, "images are not collected");
            0
        }
    }
}

/// A task that is not over.
pub(crate) struct Open {
    /// Which.
    pub id: TaskId,
    /// Its latest attempt.
    pub attempt: u32,
    /// Where it stands.
    pub status: TaskStatus,
    /// Whose it is.
    pub team: String,
    /// Who asked for it, or its campaign.
    pub created_by: Option<String>,
}

/// Every task that is not over, oldest first.
pub(crate) async fn open_tasks(read: &ReadModels) -> Result<Vec<Open>, String> {
    let mut open = Vec::new();
    for status in TaskStatus::ALL.into_iter().filter(|status| !status.is_final()) {
        let filter = TaskFilter { status: Some(status), ..TaskFilter::default() };
        let mut cursor = None;
        loop {
            let page = read.tasks(filter.clone(), cursor, MAX_PAGE).await.map_err(|error| error.to_string())?;
            let tasks = page.tasks.into_iter();
            open.extend(tasks.map(|task| Open {
                id: task.id,
                attempt: task.attempt,
                status,
                team: task.spec.team,
                created_by: task.created_by,
            }));
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    open.sort_by_key(|task| task.id);
    Ok(open)
}
