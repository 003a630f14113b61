//! What every handler needs: the task service, the log, the read models, the keys and the sessions.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use orchestra_actors::{BudgetService, CampaignService, TaskService};
use orchestra_events::projections::ReadModels;
use orchestra_events::session::{Holder, Session};
use orchestra_events::{EventStore, SessionId};
use tokio::sync::Semaphore;

use crate::auth::caller::Via;
use crate::auth::{Caller, KeyRing, People, Sessions, Transport, Who};
use crate::pages::Dashboard;
use crate::problem::Problem;

/// Live streams that one process serves at the same time. Each holds a socket and a cursor; above it, callers are
/// asked to come back, and nobody's stream slows down.
pub const MAX_STREAMS: usize = 10_000;
/// How long a read waits for the read models to have caught up with the log.
pub const READ_YOUR_WRITES: Duration = Duration::from_secs(3);

/// What every handler needs.
pub struct App {
    /// What can be asked of tasks.
    pub tasks: Arc<dyn TaskService>,
    /// What can be asked of campaigns.
    pub campaigns: Arc<dyn CampaignService>,
    /// What can be asked of budgets.
    pub budgets: Arc<dyn BudgetService>,
    /// The log.
    pub store: Arc<dyn EventStore>,
    /// What is folded from it.
    pub read: Arc<ReadModels>,
    /// Who may do what.
    pub keys: Arc<KeyRing>,
    /// Who is signed in to the dashboard.
    pub sessions: Arc<Sessions>,
    /// Who says who people are, where anybody does.
    pub people: Option<People>,
    /// How browsers reach this server.
    pub transport: Transport,
    /// What only the dashboard needs.
    pub dashboard: Dashboard,
    /// The figures for `/metrics`, where a recorder is installed.
    pub metrics: Option<PrometheusHandle>,
    /// One permit per live stream.
    pub streams: Arc<Semaphore>,
}

impl App {
    /// An application without metrics.
    pub fn new(
        tasks: Arc<dyn TaskService>,
        campaigns: Arc<dyn CampaignService>,
        budgets: Arc<dyn BudgetService>,
        store: Arc<dyn EventStore>,
        read: Arc<ReadModels>,
        keys: Arc<KeyRing>,
    ) -> Self {
        Self {
            tasks,
            campaigns,
            budgets,
            store,
            read,
            keys,
            sessions: Arc::default(),
            people: None,
            transport: Transport::default(),
            dashboard: Dashboard::default(),
            metrics: None,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }

    /// The same application, with a dashboard of its own.
    #[must_use]
    pub fn with_dashboard(mut self, dashboard: Dashboard) -> Self {
        self.dashboard = dashboard;
        self
    }

    /// The same application, with these sessions, and somebody who vouches for people.
    #[must_use]
    pub fn with_people(mut self, sessions: Arc<Sessions>, people: Option<People>) -> Self {
        (self.sessions, self.people) = (sessions, people);
        self
    }

    /// The same application, reached in this way.
    #[must_use]
    pub fn reached(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// The same application, with figures at `/metrics`.
    #[must_use]
    pub fn with_metrics(mut self, metrics: PrometheusHandle) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// The caller with these rights, as they stand now. `None`: they were taken back.
    pub fn current(&self, who: &Who) -> Option<Caller> {
        match who {
            Who::Key(id) => self.keys.holder(*id),
            Who::Person { session, .. } => Caller::person(*session, &*self.sessions.get(*session)?),
        }
    }

    /// Who is signed in with this session, as they stand now.
    pub fn signed_in(&self, id: SessionId, session: &Session) -> Option<Caller> {
        match &session.grant.holder {
            Holder::Key { key } => {
                let holder = self.current(&Who::Key(*key))?;
                Some(Caller { via: Via::Session(id), ..holder })
            }
            Holder::Person { .. } => Caller::person(id, session),
        }
    }

    /// The same caller as they stand now, by the way they came. `None`: their rights were taken back, or they signed out.
    /// What outlives its request asks this, again and again.
    pub fn still(&self, caller: &Caller) -> Option<Caller> {
        match caller.via {
            Via::Key => self.current(&caller.who),
            Via::Session(id) => self.signed_in(id, &*self.sessions.get(id)?),
        }
    }

    /// Waits until the read models show everything that was in the log when this was called.
    pub async fn caught_up(&self) -> Result<(), Problem> {
        let head = self.store.head().await?;
        Ok(self.read.wait_for(head, READ_YOUR_WRITES).await?)
    }
}
