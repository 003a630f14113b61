//! The projector: keeps the read models at the head of the log.

use std::sync::Arc;

use actix::prelude::*;
use orchestra_events::EventStore;
use orchestra_events::projections::{self, ReadModels};
use tokio_util::sync::CancellationToken;

/// Folds the log into the read models.
pub struct Projector {
    store: Arc<dyn EventStore>,
    read: Arc<ReadModels>,
    cancel: CancellationToken,
}

impl Projector {
    /// A projector from this log into these read models.
    pub fn new(store: Arc<dyn EventStore>, read: Arc<ReadModels>) -> Self {
        Self { store, read, cancel: CancellationToken::new() }
    }
}

impl Actor for Projector {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (store, read, cancel) = (Arc::clone(&self.store), Arc::clone(&self.read), self.cancel.clone());
        let run = projections::project(store, read, async move { cancel.cancelled().await });
        ctx.spawn(run.into_actor(self));
    }

    fn stopping(&mut self, _ctx: &mut Self::Context) -> Running {
        self.cancel.cancel();
        Running::Stop
    }
}
