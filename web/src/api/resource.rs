//! The task as JSON: the shape that the contract fixes, money exact to the nano-dollar.

use orchestra_events::NanoUsd;
use orchestra_events::ledger::{Amounts, Exhausted};
use orchestra_events::task::TaskResource;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

use super::sandbox_usage::SandboxUsageView;

/// Dollars as a decimal JSON number with up to nine places.
#[derive(Debug, Clone, Copy)]
pub struct Usd(pub NanoUsd);

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_json().serialize(serializer)
    }
}

impl PartialSchema for Usd {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Number))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Double)))
            .description(Some("Dollars, a decimal with up to nine places; exact in the text of the JSON"))
            .into()
    }
}

impl ToSchema for Usd {}

/// What a task may cost.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BudgetView {
    pub(super) max_usd: Option<Usd>,
    pub(super) max_tokens: Option<u64>,
}

/// What a task has used.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageView {
    input_tokens: u64,
    output_tokens: u64,
    cache_read_tokens: u64,
    cache_write_tokens: u64,
    /// What the provider charges.
    cost_usd: Usd,
    /// What the team is charged.
    billable_usd: Usd,
}

/// A pull request.
#[derive(Debug, Serialize, ToSchema)]
pub struct PullRequestView {
    pub(super) repo: String,
    pub(super) url: String,
    pub(super) number: u64,
}

/// Why a task failed, or why it waits or retries.
#[derive(Debug, Serialize, ToSchema)]
pub struct FailureView {
    /// The stable code; `docs/errors/` has a page for each.
    code: &'static str,
    /// What happened.
    message: String,
    /// What to do next.
    hint: String,
    /// Whether doing the same again may succeed.
    retryable: bool,
    /// The cap that was met, where it is a budget that refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<ExhaustedView>,
    /// In which attempt.
    attempt: u32,
}

/// The cap that a model call does not fit under: its dollars, or its tokens.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Exhausted)]
pub struct ExhaustedView {
    /// Whose cap: `team:platform`, `project:platform/infra`, … or `task:task_…` for the task's own, `campaign:campaign_…`
    /// for the one that the tasks of a campaign share.
    scope: String,
    /// task, day, month or campaign.
    period: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    spent_usd: Option<Usd>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reserved_usd: Option<Usd>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cap_usd: Option<Usd>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spent_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reserved_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cap_tokens: Option<u64>,
    /// When the cap is whole again; absent for a task's and a campaign's, which never are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "date-time")]
    resets_at: Option<String>,
}

impl From<Exhausted> for ExhaustedView {
    fn from(exhausted: Exhausted) -> Self {
        let (mut usd, mut tokens) = ([None; 3], [None; 3]);
        match exhausted.amounts {
            Amounts::Dollars { spent_nano_usd, reserved_nano_usd, cap_nano_usd } => {
                usd = [spent_nano_usd, reserved_nano_usd, cap_nano_usd].map(|amount| Some(Usd(amount)));
            }
            Amounts::Tokens { spent_tokens, reserved_tokens, cap_tokens } => {
                tokens = [spent_tokens, reserved_tokens, cap_tokens].map(Some);
            }
        }
        let ([spent_usd, reserved_usd, cap_usd], [spent_tokens, reserved_tokens, cap_tokens]) = (usd, tokens);
        Self {
            scope: exhausted.scope,
            period: exhausted.period.as_str(),
            spent_usd,
            reserved_usd,
            cap_usd,
            spent_tokens,
            reserved_tokens,
            cap_tokens,
            resets_at: exhausted.resets_at.map(|time| time.to_string()),
        }
    }
}

/// Where to go from here.
#[derive(Debug, Serialize, ToSchema)]
pub struct Links {
    #[serde(rename = "self")]
    this: String,
    events: String,
    diff: String,
    page: String,
}

/// A task.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Task)]
pub struct TaskView {
    id: String,
    #[schema(value_type = super::openapi::Status)]
    status: &'static str,
    /// What it is doing right now, or why it stands there.
    reason: String,
    /// `forge:owner/name`.
    repo: String,
    /// What is to be done.
    task: String,
    model: String,
    #[schema(value_type = super::openapi::HarnessName)]
    harness: &'static str,
    team: String,
    project: Option<String>,
    environment: Option<String>,
    task_type: Option<String>,
    customer: Option<String>,
    budget: BudgetView,
    usage: UsageView,
    /// Absent before the first sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_usage: Option<SandboxUsageView>,
    /// The hosts that its sandbox may connect to.
    egress: Vec<String>,
    branch: String,
    base: Option<String>,
    commits: Vec<String>,
    pull_requests: Vec<PullRequestView>,
    /// Counted from 1; 0 before the first.
    attempt: u32,
    failure: Option<FailureView>,
    campaign: Option<String>,
    metadata: Map<String, Value>,
    #[schema(format = "date-time")]
    created_at: String,
    #[schema(format = "date-time")]
    started_at: Option<String>,
    #[schema(format = "date-time")]
    finished_at: Option<String>,
    /// When its words were erased: what was asked for, said and written.
    #[schema(format = "date-time")]
    content_erased_at: Option<String>,
    links: Links,
}

impl TaskView {
    /// Where the task is.
    pub fn path(&self) -> &str {
        &self.links.this
    }
}

impl From<TaskResource> for TaskView {
    fn from(task: TaskResource) -> Self {
        let this = format!("/v1/tasks/{}", task.id);
        let links = Links {
            events: format!("{this}/events"),
            diff: format!("{this}/diff"),
            page: format!("/tasks/{}", task.id),
            this,
        };
        let billable = task.billable();
        Self {
            id: task.id.to_string(),
            status: task.status.as_str(),
            reason: task.reason,
            repo: task.spec.repo.to_string(),
            task: task.spec.task,
            model: task.spec.model,
            harness: task.spec.harness.as_str(),
            team: task.spec.team,
            project: task.spec.project,
            environment: task.spec.environment,
            task_type: task.spec.task_type,
            customer: task.spec.customer,
            budget: BudgetView {
                max_usd: task.spec.budget.max_nano_usd.map(Usd),
                max_tokens: task.spec.budget.max_tokens,
            },
            usage: UsageView {
                input_tokens: task.usage.input_tokens,
                output_tokens: task.usage.output_tokens,
                cache_read_tokens: task.usage.cache_read_tokens,
                cache_write_tokens: task.usage.cache_write_tokens(),
                cost_usd: Usd(task.cost),
                billable_usd: Usd(billable),
            },
            sandbox_usage: task.sandbox_usage.map(SandboxUsageView::from),
            egress: task.spec.egress,
            branch: task.spec.branch,
            base: task.base,
            commits: task.commits.iter().map(ToString::to_string).collect(),
            pull_requests: task
                .pull_requests
                .into_iter()
                .map(|request| PullRequestView { repo: request.repo, url: request.url, number: request.number })
                .collect(),
            attempt: task.attempt,
            failure: task.failure.map(|(failure, attempt)| FailureView {
                code: failure.code.as_str(),
                message: failure.message,
                hint: failure.hint,
                retryable: failure.retryable,
                budget: failure.budget.map(|exhausted| ExhaustedView::from(*exhausted)),
                attempt,
            }),
            campaign: task.spec.campaign.map(|campaign| campaign.to_string()),
            metadata: task.spec.metadata,
            created_at: task.created_at.to_string(),
            started_at: task.started_at.map(|time| time.to_string()),
            finished_at: task.finished_at.map(|time| time.to_string()),
            content_erased_at: task.erased_at.map(|time| time.to_string()),
            links,
        }
    }
}

/// A page of tasks.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskList {
    /// Newest first.
    pub data: Vec<TaskView>,
    /// Pass it on as `cursor` for the next page; `null` when there is none.
    pub next_cursor: Option<String>,
}
