//! What every handler needs: the task service, the log, the read models, the keys and the sessions.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use metrics_exporter_prometheus::PrometheusHandle;
use orchestra_actors::{
    AuditService, BillingDesk, BillingService, BudgetService, CampaignService, TaskService, WebhookService,
};
use orchestra_events::projections::ReadModels;
use orchestra_events::session::{Holder, Session};
use orchestra_events::{EventStore, SessionId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::api::once::Claims;
use crate::auth::caller::Via;
use crate::auth::{Caller, KeyRing, Limits, People, Proxies, Refusals, Sessions, Transport, Who};
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
    /// What can be asked of bills.
    pub billing: Arc<dyn BillingService>,
    /// What can be asked of webhooks, where there are any.
    pub webhooks: Option<Arc<dyn WebhookService>>,
    /// The record itself: who signs it and gives it out. Absent only where a test needs none.
    pub audit: Option<Arc<dyn AuditService>>,
    /// The log.
    pub store: Arc<dyn EventStore>,
    /// What is folded from it.
    pub read: Arc<ReadModels>,
    /// Who may do what.
    pub keys: Arc<KeyRing>,
    /// Whose word about where a request came from is believed.
    pub proxies: Proxies,
    /// Who has asked how often.
    pub limits: Limits,
    /// What was refused, on its way into the log.
    pub refusals: Arc<Refusals>,
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
    /// The named requests that are being worked on.
    pub claims: Claims,
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
            billing: Arc::new(BillingDesk::new(Arc::clone(&store), Arc::clone(&read))),
            webhooks: None,
            audit: None,
            store,
            read,
            keys,
            sessions: Arc::default(),
            people: None,
            transport: Transport::default(),
            proxies: Proxies::default(),
            limits: Limits::default(),
            refusals: Arc::default(),
            dashboard: Dashboard::default(),
            metrics: None,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            claims: Claims::default(),
        }
    }

    /// The same application, with somebody who signs the log.
    #[must_use]
    pub fn with_audit(mut self, audit: Arc<dyn AuditService>) -> Self {
        self.audit = Some(audit);
        self
    }

    /// The same application, with a dashboard of its own.
    #[must_use]
    pub fn with_dashboard(mut self, dashboard: Dashboard) -> Self {
        self.dashboard = dashboard;
        self
    }

    /// The same application, with bills made at another desk.
    #[must_use]
    pub fn with_billing(mut self, billing: Arc<dyn BillingService>) -> Self {
        self.billing = billing;
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

    /// The same application, with webhooks.
    #[must_use]
    pub fn with_webhooks(mut self, webhooks: Arc<dyn WebhookService>) -> Self {
        self.webhooks = Some(webhooks);
        self
    }

    /// What can be asked of webhooks.
    pub fn webhooks(&self) -> Result<&dyn WebhookService, Problem> {
        self.webhooks.as_deref().ok_or_else(Problem::no_webhooks)
    }

    /// The same application, behind these proxies.
    #[must_use]
    pub fn behind(mut self, proxies: Proxies) -> Self {
        self.proxies = proxies;
        self
    }

    /// The same application, where callers may not ask more often than these limits let them.
    #[must_use]
    pub fn limited(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same application, with figures at `/metrics`.
    #[must_use]
    pub fn with_metrics(mut self, metrics: PrometheusHandle) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Who is signed in with this session, as they stand now.
    pub fn signed_in(&self, id: SessionId, session: &Session) -> Option<Caller> {
        match &session.grant.holder {
            Holder::Key { key } => {
                let holder = self.keys.holder_of(*key, session.grant.generation, Timestamp::now())?;
                Some(Caller { via: Via::Session(id), ..holder })
            }
            Holder::Person { .. } => Caller::person(id, session),
        }
    }

    /// A place among the live streams and the long answers, or the problem that says that all are taken.
    pub fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|error| match error {
            TryAcquireError::NoPermits => Problem::overloaded("Too many live streams are open."),
            TryAcquireError::Closed => Problem::overloaded("The server is shutting down."),
        })
    }

    /// The rights that this caller showed, as they stand now: they end when the text that was shown is rotated away, and
    /// with the session. `None`: they were taken back, or have run out.
    pub fn standing(&self, caller: &Caller) -> Option<Caller> {
        match (caller.via, &caller.who) {
            (Via::Session(id), _) => self.signed_in(id, &*self.sessions.get(id)?),
            (Via::Key, Who::Key(id)) => self.keys.holder_of(*id, caller.generation, Timestamp::now()),
            // A person shows a session, and no key.
            (Via::Key, Who::Person { .. }) => None,
        }
    }

    /// Waits until the read models show everything that was in the log when this was called.
    pub async fn caught_up(&self) -> Result<(), Problem> {
        let head = self.store.head().await?;
        Ok(self.read.wait_for(head, READ_YOUR_WRITES).await?)
    }
}
