//! How a task gets in: its stream, its secrets, its place in the line. The one way, for a caller's task as for one of a
//! campaign.

use std::sync::Arc;

use actix::Addr;
use orchestra_events::task::{TaskResource, TaskSpec};
use orchestra_events::{Actor as Who, Direction, EventStore, StreamName, TaskId};
use orchestra_runtime::vault::{Credentials, Vault};

use crate::admission::{Admission, Owner, Place};
use crate::journal::{self, JournalError};
use crate::scheduler::{Enqueue, Scheduler};
use crate::service::ServiceError;

/// Lets tasks in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Intake {
    /// The log.
    pub store: Arc<dyn EventStore>,
    /// Where secrets go.
    pub vault: Arc<Vault>,
    /// Who gives out places.
    pub scheduler: Addr<Scheduler>,
    /// Who counts how many are open.
    pub admission: Arc<Admission>,
}

impl Intake {
    /// Creates the task and queues it. Durable when it returns. `false`: there was one of that id, and nothing was done.
    /// `for_whom`: who asked, where that is not who creates it.
    pub async fn admit(
        &self,
        id: TaskId,
        spec: TaskSpec,
        credentials: Credentials,
        who: &Who,
        for_whom: Option<&Who>,
    ) -> Result<bool, ServiceError> {
        let team = spec.team.clone();
        let place = match self.admission.take(id, Owner::of(&team, for_whom.unwrap_or(who))) {
            Ok(place) => place,
            // What was let in before is not let in again: a repeat is no further task.
            Err(refused) => return if self.exists(id).await? { Ok(false) } else { Err(refused) },
        };
        let created = journal::create(&*self.store, id, spec, who).await.map_err(|error| match error {
            JournalError::Store(error) => ServiceError::Store(error),
            JournalError::Refused(_) | JournalError::Damaged(_) => ServiceError::Internal(error.to_string()),
        })?;
        if created {
            place.keep();
            // Before the task can begin: it looks for its secrets when it has a place.
            if let Err(error) = self.vault.put(id, credentials) {
                // The task asks for them again; nothing is lost but the caller's convenience.
                tracing::warn!(task = %id, %error, "the task's credentials are not kept");
            }
            self.queue(id, team).await?;
        }
        Ok(created)
    }

    /// A place for a task that was over and is to go on: that of who asked for it first.
    pub async fn place_again(&self, task: &TaskResource) -> Result<Place, ServiceError> {
        let owner = Owner::again(&*self.store, &task.spec.team, task.created_by.as_deref()).await?;
        self.admission.take_again(task.id, owner)
    }

    async fn exists(&self, id: TaskId) -> Result<bool, ServiceError> {
        let first = self.store.read_stream(&StreamName::task(id), None, Direction::Backwards, 1).await?;
        Ok(!first.is_empty())
    }

    /// Has the task wait for a place, unless it waits or works already.
    pub async fn queue(&self, id: TaskId, team: String) -> Result<(), ServiceError> {
        self.scheduler.send(Enqueue { id, team }).await.map_err(|_| ServiceError::Busy)
    }
}
