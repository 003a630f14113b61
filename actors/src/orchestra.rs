//! The whole orchestra: starts the actors, takes up open tasks where they stood, and answers the outer rooms.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use async_trait::async_trait;
use jiff::Timestamp;
use orchestra_events::blob::BlobRef;
use orchestra_events::ledger::{Budget as ScopeBudget, Path, Refusal as Refused, Scope, View};
use orchestra_events::projections::ReadModels;
use orchestra_events::store::{EventStore, read_whole_stream};
use orchestra_events::task::command::Command;
use orchestra_events::task::event::{Attempts, CredentialKind, FurtherRepo, TaskSpec};
use orchestra_events::task::resource::RepoDiff;
use orchestra_events::task::{Refusal, TaskEvent, TaskResource, TaskStatus};
use orchestra_events::{Actor as Who, StreamName, TaskId};
use orchestra_runtime::agent::harness::{PrepareError, Run, prepare};
use orchestra_runtime::git::{BranchRefusal, NamedAfter, check_branch_name};
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use crate::admission::{Admission, TaskLimits};
use crate::campaign::service::Means;
use crate::campaign::supervisor::{CampaignSupervisor, TakeUp};
use crate::erasure::Retention;
use crate::intake::Intake;
use crate::journal::{self, JournalError};
use crate::ledger::LedgerError;
use crate::projector::Projector;
use crate::reaper::{Open, Reap, Reaper, open_tasks};
use crate::recovery::settle_orphans;
use crate::scheduler::{Capacity, Enqueue, Lengths, Scheduler, Serve};
use crate::service::{
    BudgetService, Credentials, Delta, Erased, FieldError, Idempotency, NewRepo, NewTask, ServiceError, Submitted,
    TaskService,
};
use crate::supervisor::{Count, TaskSupervisor, Tell};
use crate::task::{AskError, Drain};
use crate::workshop::{Workshop, append_diff};

/// Tasks that may wait for a place on this node. Beyond, submissions are refused rather than forgotten.
pub const MAX_WAITING: usize = 100_000;
/// Threads that task actors run on, away from the web workers.
const ARBITERS: usize = 2;
/// How long a step may go on after the server was asked to end. Shorter than what service managers allow.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two looks at whether all are done.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// How long the read models may take to reach the head of the log at start.
const START_CATCH_UP: Duration = Duration::from_secs(300);

/// What a task gets when it does not say.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// The wall-clock limit of an attempt, in seconds.
    pub timeout_seconds: u64,
    /// What follows an attempt that failed.
    pub retry: Option<Attempts>,
    /// How long the words of what has ended are kept.
    pub retention: Retention,
}

/// The running actors.
pub struct Orchestra {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) read: Arc<ReadModels>,
    pub(crate) workshop: Arc<Workshop>,
    defaults: Defaults,
    pub(crate) retention: Retention,
    /// One erasure at a time, so that a mark without an event is of one that failed and not of one that has just begun.
    pub(crate) erasing: tokio::sync::Mutex<()>,
    /// Rung when there is something for the sweep.
    pub(crate) erasure_wanted: tokio::sync::Notify,
    supervisor: Addr<TaskSupervisor>,
    pub(crate) campaigns: Addr<CampaignSupervisor>,
    intake: Intake,
    scheduler: Addr<Scheduler>,
    reaper: Addr<Reaper>,
    _projector: Addr<Projector>,
    /// Dropped with the rest: whoever counts open tasks ends then.
    counting: watch::Sender<()>,
    arbiters: Vec<Arbiter>,
}

impl Orchestra {
    /// Starts the actors on arbiters of their own. Must be called within an actix system. Open tasks are taken up by
    /// [`resume`](Self::resume).
    pub fn start(
        store: Arc<dyn EventStore>,
        read: Arc<ReadModels>,
        workshop: Workshop,
        capacity: Capacity,
        defaults: Defaults,
    ) -> Arc<Self> {
        let workshop = Arc::new(workshop);
        let arbiters: Vec<_> = (0..=ARBITERS).map(|_| Arbiter::new()).collect();
        let (house, workers) = arbiters.split_first().expect("there is one more than ARBITERS");
        let house = house.handle();
        let scheduler = Scheduler::start_in_arbiter(&house, move |_| Scheduler::new(capacity));
        let supervisor = {
            let (store, workshop, scheduler) = (Arc::clone(&store), Arc::clone(&workshop), scheduler.clone());
            let workers = workers.iter().map(Arbiter::handle).collect();
            TaskSupervisor::start_in_arbiter(&house, move |_| TaskSupervisor::new(store, workshop, scheduler, workers))
        };
        let intake = Intake {
            store: Arc::clone(&store),
            vault: Arc::clone(&workshop.vault),
            scheduler: scheduler.clone(),
            admission: Admission::new(),
        };
        let campaigns = {
            let means = Means { intake: intake.clone(), workshop: Arc::clone(&workshop), tasks: supervisor.clone() };
            let handle = house.clone();
            CampaignSupervisor::start_in_arbiter(&house, move |_| CampaignSupervisor::new(means, handle))
        };
        let projector = {
            let (store, read) = (Arc::clone(&store), Arc::clone(&read));
            Projector::start_in_arbiter(&house, move |_| Projector::new(store, read))
        };
        let reaper = {
            let (store, read, workshop) = (Arc::clone(&store), Arc::clone(&read), Arc::clone(&workshop));
            Reaper::start_in_arbiter(&house, move |_| Reaper::new(store, read, workshop))
        };
        Arc::new(Self {
            store,
            read,
            workshop,
            retention: defaults.retention.clone(),
            defaults,
            erasing: tokio::sync::Mutex::default(),
            erasure_wanted: tokio::sync::Notify::new(),
            supervisor,
            campaigns,
            intake,
            scheduler,
            reaper,
            _projector: projector,
            counting: watch::Sender::new(()),
            arbiters,
        })
    }

    /// From now on callers and teams may have no more tasks open than these limits say. Once, before
    /// [`resume`](Self::resume); without it there are no limits.
    pub fn limit_tasks(&self, limits: Arc<dyn TaskLimits>) {
        self.intake.admission.limit(limits);
    }

    /// Queues every open task again, and only then begins to give out places. Returns how many there were.
    pub async fn resume(&self) -> Result<usize, ServiceError> {
        let head = self.store.head().await?;
        let internal = |error: String| ServiceError::Internal(error);
        self.read.wait_for(head, START_CATCH_UP).await.map_err(|error| internal(error.to_string()))?;
        let orphans = settle_orphans(&self.store, &self.workshop.ledgers).await.map_err(internal)?;
        if orphans > 0 {
            tracing::info!(orphans, "ended reservations that a crash had left");
        }
        // Read before what is open: what happens in between is seen twice, which counts once.
        let from = self.read.checkpoint();
        let open = open_tasks(&self.read).await.map_err(internal)?;
        let count = open.len();
        let admission = &self.intake.admission;
        admission.load(&*self.store, &open).await?;
        let counting = Arc::clone(admission).follow(Arc::clone(&self.store), from, self.counting.subscribe());
        actix::spawn(counting);
        for Open { id, status, team, .. } in open {
            // Those that wait for secrets wait on: the vault is empty, and only their callers can change that.
            if status != TaskStatus::AwaitingCredentials {
                self.scheduler.send(Enqueue { id, team }).await.map_err(|_| ServiceError::Busy)?;
            }
        }
        let serve = Serve(self.supervisor.clone().recipient());
        self.scheduler.send(serve).await.map_err(|_| ServiceError::Busy)?;
        // After their tasks: what a campaign finds to be done for one is then done by nobody else.
        for id in self.read.open_campaigns().await.map_err(|error| internal(error.to_string()))? {
            self.campaigns.send(TakeUp(id)).await.map_err(|_| ServiceError::Busy)?;
        }
        Ok(count)
    }

    /// Removes what nobody owns, now. Answers how much there was.
    pub async fn reap(&self) -> Result<usize, String> {
        self.reaper.send(Reap).await.map_err(|error| error.to_string())?
    }

    /// Live task actors, and how many of them hold a place.
    pub async fn actors(&self) -> (usize, usize) {
        self.supervisor.send(Count).await.unwrap_or_default()
    }

    /// Begins nothing new and waits for what is being done, so that no model is paid for an answer that nobody
    /// takes; then stops the actors. Sandboxes stay up: the next process finds them.
    pub async fn stop(&self) {
        let drained = async {
            self.campaigns.send(crate::campaign::Drain).await?;
            self.supervisor.send(Drain).await?;
            while self.supervisor.send(Count).await?.0 > 0 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
            Ok::<_, MailboxError>(())
        };
        match tokio::time::timeout(DRAIN_TIMEOUT, drained).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the actors ended before they were asked to"),
            Err(_) => tracing::warn!("steps that take longer than {DRAIN_TIMEOUT:?} are taken up at the next start"),
        }
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }

    pub(crate) async fn tell(&self, id: TaskId, command: Command, who: Who) -> Result<(), ServiceError> {
        let answer = self.supervisor.send(Tell { id, command, who }).await;
        match answer.map_err(|_| ServiceError::Busy)? {
            Ok(()) => Ok(()),
            Err(AskError::Busy) => Err(ServiceError::Busy),
            Err(AskError::Journal(JournalError::Refused(Refusal::NoSuchTask))) => Err(ServiceError::NoSuchTask),
            Err(AskError::Journal(JournalError::Refused(refusal))) => {
                let status = self.read.task(id).await.ok().flatten().map(|task| task.status);
                Err(ServiceError::Refused { refusal, status })
            }
            Err(AskError::Journal(JournalError::Store(error))) => Err(error.into()),
            Err(AskError::Journal(JournalError::Damaged(detail))) => Err(ServiceError::Internal(detail)),
        }
    }

    /// Resolves one repository of a request: its name, and its branches by the rules of the team.
    pub(crate) fn target(
        &self,
        id: TaskId,
        new: &NewTask,
        wanted: &NewRepo,
        errors: &mut Vec<FieldError>,
    ) -> Option<FurtherRepo> {
        let before = errors.len();
        let mut wrong = |pointer: String, detail: String| errors.push(FieldError { pointer, detail });
        if let Some(base) = &wanted.base
            && let Err(error) = check_branch_name(base)
        {
            wrong(format!("{}/base", wanted.within), error.to_string());
        }
        let policy = self.workshop.branches.of(&new.team);
        let branch = wanted.branch.clone().unwrap_or_else(|| {
            policy.name(&NamedAfter {
                id,
                task: &new.task,
                team: &new.team,
                project: new.project.as_deref(),
                task_type: new.task_type.as_deref(),
            })
        });
        if let Err(refused) = policy.check_names(wanted.base.as_deref(), &branch) {
            let field = match refused {
                BranchRefusal::BaseNotAllowed { .. } | BranchRefusal::NoSuchBase { .. } => "base",
                BranchRefusal::Invalid { .. }
                | BranchRefusal::NameNotAllowed { .. }
                | BranchRefusal::IsBase { .. }
                | BranchRefusal::IsDefault { .. }
                | BranchRefusal::NameTaken { .. }
                | BranchRefusal::CaseTwin { .. }
                | BranchRefusal::Exists { .. }
                | BranchRefusal::Protected { .. } => "branch",
            };
            wrong(format!("{}/{field}", wanted.within), format!("{refused} {}", refused.failure().hint));
        }
        let repo = match self.workshop.forges.parse(&wanted.repo) {
            Ok(repo) => repo,
            Err(error) => {
                wrong(wanted.pointer.clone(), error.to_string());
                return None;
            }
        };
        (errors.len() == before).then(|| FurtherRepo { repo, base: wanted.base.clone(), branch })
    }

    /// Resolves the names in a request.
    pub(crate) fn spec(&self, id: TaskId, new: &NewTask) -> Result<TaskSpec, ServiceError> {
        let mut errors = Vec::new();
        let mut targets: Vec<FurtherRepo> = Vec::with_capacity(new.repos.len());
        for wanted in &new.repos {
            let Some(target) = self.target(id, new, wanted, &mut errors) else { continue };
            if targets.iter().any(|other| other.repo == target.repo) {
                let detail = "is named twice; one task has one branch in each repository".to_owned();
                errors.push(FieldError { pointer: wanted.pointer.clone(), detail });
            }
            targets.push(target);
        }
        let mut wrong = |pointer: &str, detail: String| {
            errors.push(FieldError { pointer: pointer.to_owned(), detail });
        };
        match self.workshop.models.resolve(&new.model) {
            Err(error) => wrong("/model", error.to_string()),
            Ok(model) => {
                let name = format!("{}/{}", model.provider, model.model_id);
                if !self.workshop.allowed_models.allows(&new.team, &name) {
                    wrong("/model", format!("is not among the models that team {:?} may use", new.team));
                }
                let run = Run {
                    harness: new.harness,
                    prompt: "",
                    model: &model,
                    gateway: "",
                    resume: None,
                    command: &new.command,
                };
                match prepare(&run) {
                    Ok(_) | Err(PrepareError::Builtin) => {}
                    Err(error) => wrong("/harness", error.to_string()),
                }
            }
        }
        let image = self.workshop.image_rules.choose(&new.team, new.image.as_deref());
        let egress = self.workshop.egress.rules().effective(&new.team, &image, new.egress.as_deref());
        let egress = egress.unwrap_or_else(|refused| {
            refused.into_iter().for_each(|refused| wrong(&format!("/egress/{}", refused.place), refused.detail));
            Vec::new()
        });
        if !errors.is_empty() {
            return Err(ServiceError::Invalid(errors));
        }
        let mut targets = targets.into_iter();
        let Some(FurtherRepo { repo, base, branch }) = targets.next() else {
            return Err(ServiceError::Internal("a task without a repository".to_owned()));
        };
        let spec = TaskSpec {
            repo,
            base,
            branch,
            task: new.task.clone(),
            model: new.model.clone(),
            harness: new.harness,
            command: new.command.clone(),
            team: new.team.clone(),
            project: new.project.clone(),
            environment: new.environment.clone(),
            task_type: new.task_type.clone(),
            customer: new.customer.clone(),
            budget: new.budget,
            further: targets.collect(),
            pull_request: new.pull_request.clone(),
            campaign: None,
            image,
            egress,
            timeout_seconds: new.timeout_seconds.unwrap_or(self.defaults.timeout_seconds),
            retry: new.retry.or(self.defaults.retry).filter(|retry| retry.most > 1),
            metadata: new.metadata.clone(),
            request_hash: new.idempotency.as_ref().map(|idempotency| idempotency.request_hash.clone()),
            caller_brings_model_key: new.credentials.model.is_some(),
            caller_brings_git_token: new.credentials.git.is_some(),
        };
        // Only here is it known which repositories their names stand for.
        new.bounds.admits(&spec)?;
        Ok(spec)
    }

    /// Whether there is such an image, as far as that can be known before it is pulled.
    pub(crate) async fn check_image(&self, spec: &TaskSpec) -> Result<(), ServiceError> {
        let TaskSpec { team, image, .. } = spec;
        let rules = &self.workshop.image_rules;
        // What the operator chose is not the caller's fault, and is told when the sandbox starts.
        if *image == rules.choose(team, None) {
            return Ok(());
        }
        let detail = match rules.refusal(team, image) {
            Some(refused) => Some(refused),
            None => rules.unknown(team, image, &self.workshop.images.names().await),
        };
        match detail {
            Some(detail) => Err(ServiceError::Invalid(vec![FieldError { pointer: "/image".to_owned(), detail }])),
            None => Ok(()),
        }
    }

    /// Whether the first model call of such a task would fit under the caps of its scopes.
    pub(crate) async fn check_budget(&self, spec: &TaskSpec) -> Result<(), ServiceError> {
        let model = self.workshop.models.resolve(&spec.model);
        let model = model.map_err(|error| ServiceError::Internal(error.to_string()))?;
        let path = Path::from(spec);
        match self.workshop.affordable(path, &model, spec.harness, &spec.task).await {
            // Calls that are under way may need less than is set aside for them: this task's first call waits for that.
            Ok(()) | Err(LedgerError::Refused(Refused::Exhausted { waits_for: true, .. })) => Ok(()),
            Err(error) => Err(service_error(error)),
        }
    }

    async fn resource(&self, id: TaskId) -> Result<Option<TaskResource>, ServiceError> {
        let stream = StreamName::task(id);
        let mut task = None;
        for envelope in read_whole_stream(&*self.store, &stream).await? {
            if let Ok(Some(event)) = TaskEvent::decode(&envelope) {
                task = TaskResource::fold(task, &envelope, &event);
            }
        }
        Ok(task)
    }

    async fn blob(&self, id: TaskId, blob: &BlobRef) -> Result<Vec<u8>, ServiceError> {
        self.workshop.blobs.get(id, blob).await.map_err(|error| ServiceError::Internal(error.to_string()))
    }
}

/// A task's id: new, or, under an idempotency key, the one that the same key always gives.
fn task_id(new: &NewTask) -> TaskId {
    let Some(idempotency) = &new.idempotency else { return TaskId::from_uuid(Uuid::now_v7()) };
    TaskId::from_uuid(derived_id("", idempotency))
}

/// The id that an idempotency key gives a thing of this kind, always the same.
pub(crate) fn derived_id(kind: &str, idempotency: &Idempotency) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(kind);
    for part in [&idempotency.owner, &idempotency.key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_bytes(bytes).with_version(uuid::Version::Custom).into_uuid()
}

fn service_error(error: LedgerError) -> ServiceError {
    match error {
        LedgerError::Refused(Refused::Exhausted { exhausted, .. }) => ServiceError::Exhausted(exhausted),
        LedgerError::Refused(refused @ Refused::UnknownTimeZone(_)) => {
            ServiceError::Invalid(vec![FieldError { pointer: "/timeZone".to_owned(), detail: refused.to_string() }])
        }
        LedgerError::Refused(refused @ Refused::TooManyBudgets) => {
            ServiceError::Invalid(vec![FieldError { pointer: String::new(), detail: refused.to_string() }])
        }
        LedgerError::Busy => ServiceError::Busy,
        LedgerError::Store(error) => error.into(),
        error => ServiceError::Internal(error.to_string()),
    }
}

#[async_trait]
impl BudgetService for Orchestra {
    async fn budget(&self, scope: &Scope) -> Result<View, ServiceError> {
        self.workshop.ledgers.budget(scope.clone()).await.map_err(service_error)
    }

    async fn budgets(&self, team: &str) -> Result<Vec<View>, ServiceError> {
        let own = Scope::Team { team: team.to_owned() };
        let mut views = vec![self.budget(&own).await?];
        let others = self.workshop.ledgers.budgets(team).await.map_err(service_error)?;
        views.extend(others.into_iter().filter(|view| view.scope != own));
        Ok(views)
    }

    async fn set_budget(&self, scope: &Scope, budget: ScopeBudget, who: Who) -> Result<View, ServiceError> {
        self.workshop.ledgers.set_budget(scope.clone(), budget, who).await.map_err(service_error)?;
        self.budget(scope).await
    }
}

pub(crate) fn kinds(given: &Credentials) -> Vec<CredentialKind> {
    let model = given.model.as_ref().map(|_| CredentialKind::Model);
    model.into_iter().chain(given.git.as_ref().map(|_| CredentialKind::Git)).collect()
}

#[async_trait]
impl TaskService for Orchestra {
    async fn submit(&self, new: NewTask, who: Who) -> Result<Submitted, ServiceError> {
        let id = task_id(&new);
        let spec = self.spec(id, &new)?;
        let (waiting, _) = self.scheduler.send(Lengths).await.map_err(|_| ServiceError::Busy)?;
        if waiting >= MAX_WAITING {
            return Err(ServiceError::Busy);
        }
        // A repeat is answered with what stands, whatever is left of the money by now.
        let repeated = new.idempotency.is_some() && self.resource(id).await?.is_some();
        if !repeated {
            self.check_image(&spec).await?;
            self.check_budget(&spec).await?;
        }
        let hash = spec.request_hash.clone();
        let created = self.intake.admit(id, spec, new.credentials, &who, None).await?;
        let task = self.resource(id).await?.ok_or(ServiceError::NoSuchTask)?;
        if !created && task.spec.request_hash != hash {
            return Err(ServiceError::IdempotencyKeyReused);
        }
        Ok(Submitted { task, repeated: !created })
    }

    async fn cancel(&self, id: TaskId, reason: Option<String>, who: Who) -> Result<(), ServiceError> {
        self.tell(id, Command::Cancel { reason }, who).await
    }

    async fn retry(&self, id: TaskId, credentials: Credentials, who: Who) -> Result<(), ServiceError> {
        let task = self.resource(id).await?.ok_or(ServiceError::NoSuchTask)?;
        let over = task.status.is_final();
        let place = self.intake.place_again(&task).await?;
        if over {
            self.workshop.vault.put(id, credentials).map_err(|_| ServiceError::Busy)?;
        }
        let told = self.tell(id, Command::Retry, who).await;
        if over && matches!(told, Err(ServiceError::Refused { .. })) {
            self.workshop.vault.forget(id);
        }
        if told.is_ok() {
            place.keep();
        }
        told
    }

    async fn steer(&self, id: TaskId, message: String, who: Who) -> Result<(), ServiceError> {
        self.tell(id, Command::Steer { message }, who).await
    }

    async fn supply_credentials(&self, id: TaskId, given: Credentials, who: Who) -> Result<(), ServiceError> {
        let supplied = kinds(&given);
        let task = self.resource(id).await?.ok_or(ServiceError::NoSuchTask)?;
        if !task.status.is_final() {
            self.workshop.vault.put(id, given).map_err(|_| ServiceError::Busy)?;
        }
        self.tell(id, Command::SupplyCredentials { supplied, now: Timestamp::now() }, who).await
    }

    async fn diff(&self, id: TaskId) -> Result<Vec<u8>, ServiceError> {
        let task = self.resource(id).await?.ok_or(ServiceError::NoSuchTask)?;
        if !task.diffs.is_empty() {
            let mut text = Vec::new();
            for RepoDiff { repo, diff } in &task.diffs {
                if diff.is_none() {
                    return Err(ServiceError::Refused { refusal: Refusal::Erased, status: Some(task.status) });
                }
                append_diff(&mut text, task.spec.further.is_empty(), repo, &self.blob(id, diff).await?);
            }
            return Ok(text);
        }
        let loaded = journal::load(&*self.store, id).await;
        match loaded.map_err(|error| ServiceError::Internal(error.to_string()))? {
            Some(loaded) => {
                self.workshop.diff(id, &loaded.state).await.map_err(|f| ServiceError::Internal(f.to_string()))
            }
            None => Err(ServiceError::NoSuchTask),
        }
    }

    async fn erase_content(&self, id: TaskId, who: Who) -> Result<Erased, ServiceError> {
        self.erase_task(id, who).await
    }

    fn deltas(&self, id: TaskId) -> broadcast::Receiver<Delta> {
        self.workshop.speech.listen(id)
    }
}
