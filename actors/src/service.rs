//! What the outer rooms may ask of the actors: the task service, as one trait.

use std::sync::Arc;

use async_trait::async_trait;
use orchestra_events::campaign::Refusal as CampaignRefusal;
use orchestra_events::key::{Bounds, Breach};
use orchestra_events::ledger::Exhausted;
use orchestra_events::ledger::event::Budget as ScopeBudget;
use orchestra_events::ledger::scope::Scope;
use orchestra_events::ledger::view::View;
use orchestra_events::task::event::{Attempts, Budget, Harness, PullRequestWish};
use orchestra_events::task::{Refusal, TaskResource, TaskStatus};
use orchestra_events::webhook::Refusal as WebhookRefusal;
use orchestra_events::{Actor, StoreError, TaskId};
pub use orchestra_runtime::oidc::{Attempt, Identity, IdentityError, IdentityProvider};
pub use orchestra_runtime::vault::Credentials;
use serde_json::{Map, Value};
use tokio::sync::broadcast;

/// How far an erasure has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased {
    /// No file has the words any more.
    Done,
    /// It is promised and goes on by itself.
    UnderWay,
}

/// What a caller asks for, syntax checked, names not yet resolved.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// Where it is to be done; at least one.
    pub repos: Vec<NewRepo>,
    /// What is to be done.
    pub task: String,
    /// The model's name.
    pub model: String,
    /// Which agent does it.
    pub harness: Harness,
    /// Program and arguments of the harness `command`.
    pub command: Vec<String>,
    /// Whose task it is.
    pub team: String,
    /// The project within the team.
    pub project: Option<String>,
    /// The environment within the project.
    pub environment: Option<String>,
    /// What kind of work it is.
    pub task_type: Option<String>,
    /// The team's own customer.
    pub customer: Option<String>,
    /// What it may cost.
    pub budget: Budget,
    /// What the pull requests are to be like.
    pub pull_request: Option<PullRequestWish>,
    /// The sandbox image; the server's default when absent.
    pub image: Option<String>,
    /// The hosts that the sandbox may connect to; what the server or the team allows when absent.
    pub egress: Option<Vec<String>>,
    /// The wall-clock limit; the server's default when absent.
    pub timeout_seconds: Option<u64>,
    /// What follows an attempt that failed.
    pub retry: Option<Attempts>,
    /// Free text pairs.
    pub metadata: Map<String, Value>,
    /// The caller's secrets, for this task only.
    pub credentials: Credentials,
    /// What the caller is good for: a task outside is refused.
    pub bounds: Arc<Bounds>,
    /// Who repeats itself: the key's id and the caller's `Idempotency-Key`, with the hash of the request.
    pub idempotency: Option<Idempotency>,
}

/// A repository of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewRepo {
    /// `owner/name`, `forge:owner/name` or a URL.
    pub repo: String,
    /// The branch to start from.
    pub base: Option<String>,
    /// The branch to push to; made from the task's words when absent.
    pub branch: Option<String>,
    /// Where in the request its name stands (RFC 6901).
    pub pointer: String,
    /// Where the object with its branches stands; empty for the request itself.
    pub within: String,
}

/// A caller's wish that a repeated request does nothing new.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// Whose key it is: two callers may use the same one.
    pub owner: String,
    /// The caller's `Idempotency-Key`.
    pub key: String,
    /// SHA-256 of the request, secrets left out.
    pub request_hash: String,
}

/// A task was accepted.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// The task as it stands.
    pub task: TaskResource,
    /// It had been submitted before under the same idempotency key.
    pub repeated: bool,
}

/// A field of the request that does not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// JSON pointer to the field (RFC 6901).
    pub pointer: String,
    /// What is wrong with it and what would be right.
    pub detail: String,
}

/// Why the service did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServiceError {
    /// Fields that name nothing known here.
    #[error("the request names things this server does not know")]
    Invalid(Vec<FieldError>),
    /// The task lies outside what the caller is good for.
    #[error("{0}")]
    OutOfBounds(#[from] Breach),
    /// The same idempotency key came with another body.
    #[error("this Idempotency-Key was used for another request")]
    IdempotencyKeyReused,
    /// There is no such task.
    #[error("there is no such task")]
    NoSuchTask,
    /// There is no such campaign.
    #[error("there is no such campaign")]
    NoSuchCampaign,
    /// The campaign's state does not allow it.
    #[error("{0}")]
    CampaignRefused(CampaignRefusal),
    /// There is no such webhook.
    #[error("there is no such webhook")]
    NoSuchWebhook,
    /// The webhook's state does not allow it.
    #[error("{0}")]
    WebhookRefused(WebhookRefusal),
    /// The task's state does not allow it.
    #[error("{refusal}")]
    Refused {
        /// Why.
        refusal: Refusal,
        /// Where it stands.
        status: Option<TaskStatus>,
    },
    /// A cap is met already: the first model call would not fit.
    #[error("{0}")]
    Exhausted(Box<Exhausted>),
    /// As many tasks are open as may be.
    #[error("{} already", if *.of_team { format!("the team has {most} open tasks") } else { format!("the caller has {most} open tasks") })]
    TooManyTasks {
        /// Whether it is the team's limit, and not the caller's own.
        of_team: bool,
        /// The limit.
        most: u32,
    },
    /// A queue is full; trying again helps.
    #[error("the server is busy; try again")]
    Busy,
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something else went wrong on our side.
    #[error("{0}")]
    Internal(String),
}

/// A piece of text while the model speaks. Not stored: what the pieces add up to arrives as an event.
#[derive(Debug, Clone)]
pub struct Delta {
    /// The words.
    pub text: String,
}

/// What can be asked of budgets.
#[async_trait]
pub trait BudgetService: Send + Sync + 'static {
    /// A scope's caps and where they stand.
    async fn budget(&self, scope: &Scope) -> Result<View, ServiceError>;
    /// The team's own, and those of all its scopes that have caps.
    async fn budgets(&self, team: &str) -> Result<Vec<View>, ServiceError>;
    /// Gives a scope caps in place of those it had.
    async fn set_budget(&self, scope: &Scope, budget: ScopeBudget, actor: Actor) -> Result<View, ServiceError>;
}

/// What can be asked of tasks.
#[async_trait]
pub trait TaskService: Send + Sync + 'static {
    /// Takes a task. Durable when it returns.
    async fn submit(&self, new: NewTask, actor: Actor) -> Result<Submitted, ServiceError>;
    /// Asks for a task to be stopped.
    async fn cancel(&self, id: TaskId, reason: Option<String>, actor: Actor) -> Result<(), ServiceError>;
    /// Starts a new attempt at a task that failed or was cancelled.
    async fn retry(&self, id: TaskId, credentials: Credentials, actor: Actor) -> Result<(), ServiceError>;
    /// Speaks to the running agent.
    async fn steer(&self, id: TaskId, message: String, actor: Actor) -> Result<(), ServiceError>;
    /// Replaces secrets of a live task.
    async fn supply_credentials(&self, id: TaskId, given: Credentials, actor: Actor) -> Result<(), ServiceError>;
    /// The unified diff of what was, or would be, pushed. Empty when there is none yet.
    async fn diff(&self, id: TaskId) -> Result<Vec<u8>, ServiceError>;
    /// Forgets what was said and written in a task that has ended. Promised when it returns, whatever dies then.
    async fn erase_content(&self, id: TaskId, actor: Actor) -> Result<Erased, ServiceError>;
    /// What the model is saying right now. Slow readers lose pieces.
    fn deltas(&self, id: TaskId) -> broadcast::Receiver<Delta>;
}
