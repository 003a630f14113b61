//! The campaign as JSON, and the shapes of what its endpoints take.

use std::collections::HashMap;

use orchestra_actors::campaign::service::Account;
use orchestra_events::TaskId;
use orchestra_events::campaign::{CampaignResource, Progress, child_id};
use orchestra_events::projections::CampaignRow;
use orchestra_events::task::{TaskResource, TaskStatus};
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::{
    AttemptsRequest, BudgetRequest, CredentialsRequest, HarnessName, Metadata, PullRequestRequest, RepoRequest,
};
use super::resource::{BudgetView, PullRequestView, Usd};

/// How many tasks stand where.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CampaignProgress)]
pub struct ProgressView {
    /// Repositories.
    total: u32,
    /// Not begun, or to be begun again.
    waiting: u32,
    /// Begun.
    running: u32,
    succeeded: u32,
    failed: u32,
    /// Cancelled, or never begun.
    cancelled: u32,
}

impl From<Progress> for ProgressView {
    fn from(progress: Progress) -> Self {
        let Progress { waiting, running, succeeded, failed, cancelled } = progress;
        Self { total: progress.total(), waiting, running, succeeded, failed, cancelled }
    }
}

/// What a campaign has used.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CampaignUsage)]
pub struct CostView {
    /// What the providers charge.
    cost_usd: Usd,
    /// What the team is charged.
    billable_usd: Usd,
    /// Set aside for calls that are under way, where the campaign is read alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    reserved_usd: Option<Usd>,
    /// Input and output tokens together, where the campaign is read alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<u64>,
}

/// One repository of a campaign, and its task.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CampaignChild)]
pub struct ChildView {
    /// Its place in the list, counted from 0.
    index: u32,
    /// `forge:owner/name`.
    repo: String,
    base: Option<String>,
    branch: String,
    /// Its task; `null` before it is begun.
    task: Option<String>,
    /// The task's status; `waiting` before it is begun or begun again, `cancelled` where the campaign is over first.
    status: &'static str,
    cost_usd: Usd,
    pull_requests: Vec<PullRequestView>,
    /// Why it failed: a code.
    failure: Option<&'static str>,
}

/// Where to go from here.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CampaignLinks)]
pub struct LinksView {
    #[serde(rename = "self")]
    this: String,
    tasks: String,
    page: String,
}

/// A campaign.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Campaign)]
pub struct CampaignView {
    id: String,
    name: String,
    #[schema(value_type = super::openapi::CampaignStatusName)]
    status: &'static str,
    /// Why it stands there.
    reason: String,
    /// What is to be done, everywhere.
    task: String,
    model: String,
    #[schema(value_type = HarnessName)]
    harness: &'static str,
    team: String,
    project: Option<String>,
    environment: Option<String>,
    task_type: Option<String>,
    customer: Option<String>,
    /// What all tasks together may cost.
    budget: BudgetView,
    /// What each task may cost.
    task_budget: BudgetView,
    concurrency: u32,
    pull_requests_per_hour: Option<u32>,
    /// A number of failed tasks.
    stop_after_failures: Option<u32>,
    progress: ProgressView,
    usage: CostView,
    /// The repositories with their tasks, where the campaign is read alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    children: Option<Vec<ChildView>>,
    #[schema(format = "date-time")]
    created_at: String,
    /// When its last task ended.
    #[schema(format = "date-time")]
    finished_at: Option<String>,
    /// When its words were erased.
    #[schema(format = "date-time")]
    content_erased_at: Option<String>,
    links: LinksView,
}

fn budget(budget: orchestra_events::task::event::Budget) -> BudgetView {
    BudgetView { max_usd: budget.max_nano_usd.map(Usd), max_tokens: budget.max_tokens }
}

impl From<CampaignRow> for CampaignView {
    fn from(row: CampaignRow) -> Self {
        let billable = row.cost.saturating_sub(row.refunded);
        let CampaignRow { campaign, spec, cost, .. } = row;
        let id = campaign.id;
        let links = LinksView {
            this: format!("/v1/campaigns/{id}"),
            tasks: format!("/v1/tasks?campaign={id}"),
            page: format!("/campaigns/{id}"),
        };
        Self {
            id: id.to_string(),
            name: spec.name,
            status: campaign.status.as_str(),
            reason: campaign.reason,
            task: spec.template.task,
            model: spec.template.model,
            harness: spec.template.harness.as_str(),
            team: spec.template.team,
            project: spec.template.project,
            environment: spec.template.environment,
            task_type: spec.template.task_type,
            customer: spec.template.customer,
            budget: budget(spec.budget),
            task_budget: budget(spec.template.budget),
            concurrency: spec.limits.concurrency,
            pull_requests_per_hour: spec.limits.pull_requests_per_hour,
            stop_after_failures: spec.limits.stop_after_failures,
            progress: campaign.progress.into(),
            usage: CostView { cost_usd: Usd(cost), billable_usd: Usd(billable), reserved_usd: None, tokens: None },
            children: None,
            created_at: campaign.created_at.to_string(),
            finished_at: campaign.finished_at.map(|time| time.to_string()),
            content_erased_at: campaign.erased_at.map(|time| time.to_string()),
            links,
        }
    }
}

impl CampaignView {
    /// Where the campaign is.
    pub fn path(&self) -> &str {
        &self.links.this
    }

    /// The campaign with its repositories, each with its task, and with what the ledger says.
    pub fn whole(row: CampaignRow, tasks: Vec<TaskResource>, account: Option<Account>) -> Self {
        let (id, repos) = (row.campaign.id, row.spec.repos.clone());
        let campaign = &row.campaign;
        let reason = reason(campaign, &tasks);
        let mut tasks: HashMap<TaskId, TaskResource> = tasks.into_iter().map(|task| (task.id, task)).collect();
        let children = (0..).zip(repos).map(|(index, repo)| {
            let task = tasks.remove(&child_id(id, index));
            // After a retry the task still says how it failed, until it begins again.
            let instead = campaign.instead_of_its_task(index, task.is_some());
            ChildView {
                index,
                repo: repo.repo.to_string(),
                base: repo.base,
                branch: repo.branch,
                status: instead.or(task.as_ref().map(|task| task.status.as_str())).unwrap_or("waiting"),
                cost_usd: Usd(task.as_ref().map_or(orchestra_events::NanoUsd::ZERO, |task| task.cost)),
                failure: task
                    .as_ref()
                    .filter(|_| instead.is_none())
                    .and_then(|task| Some(task.failure.as_ref()?.0.code.as_str())),
                task: task.as_ref().map(|task| task.id.to_string()),
                pull_requests: task
                    .into_iter()
                    .flat_map(|task| task.pull_requests)
                    .map(|request| PullRequestView { repo: request.repo, url: request.url, number: request.number })
                    .collect(),
            }
        });
        let children = children.collect();
        let mut view = Self::from(row);
        view.reason = reason;
        view.children = Some(children);
        if let Some(account) = account {
            view.usage.reserved_usd = Some(Usd(account.reserved.nano_usd));
            view.usage.tokens = Some(account.spent.tokens);
        }
        view
    }
}

/// Why a campaign stands where it does, with what it waits for: a restart of the server loses the secrets of callers.
pub fn reason(campaign: &CampaignResource, tasks: &[TaskResource]) -> String {
    let waiting = tasks.iter().filter(|task| task.status == TaskStatus::AwaitingCredentials).count();
    let (reason, id) = (&campaign.reason, campaign.id);
    match waiting {
        0 => reason.clone(),
        1 => format!("{reason}; 1 task waits for credentials: PUT /v1/campaigns/{id}/credentials"),
        _ => format!("{reason}; {waiting} tasks wait for credentials: PUT /v1/campaigns/{id}/credentials"),
    }
}

/// A page of campaigns.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CampaignList {
    /// Newest first.
    pub data: Vec<CampaignView>,
    /// Pass it on as `cursor` for the next page; `null` when there is none.
    pub next_cursor: Option<String>,
}

/// What a caller asks for: a task, on many repositories.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built: campaign_payload.rs reads the fields one by one")]
pub struct CampaignRequest {
    /// What you call it.
    #[schema(max_length = 200)]
    name: String,
    /// In the order in which they are begun. Each is `owner/name`, `forge:owner/name`, a URL, or an object.
    #[schema(min_items = 1, max_items = 1000)]
    repos: Vec<RepoRequest>,
    /// Tasks that may run at once.
    #[schema(minimum = 1, maximum = 64, default = 4)]
    concurrency: Option<u32>,
    /// Pull requests that may be opened within any sixty minutes.
    #[schema(minimum = 1, maximum = 1000)]
    pull_requests_per_hour: Option<u32>,
    /// With so many failed tasks, or such a part of all (0.1), it is paused.
    stop_after_failures: Option<f64>,
    /// What all tasks together may cost.
    budget: Option<BudgetRequest>,
    /// What each task may cost.
    task_budget: Option<BudgetRequest>,
    /// What is to be done, everywhere.
    #[schema(max_length = 32768)]
    task: String,
    /// The model.
    #[schema(max_length = 200, example = "claude-sonnet-4-6")]
    model: String,
    /// Whose campaign it is; a team's key may leave it out.
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    team: Option<String>,
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    project: Option<String>,
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    environment: Option<String>,
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    task_type: Option<String>,
    #[schema(max_length = 200)]
    customer: Option<String>,
    /// The branch to start from, where a repository has none of its own.
    #[schema(max_length = 244)]
    base: Option<String>,
    /// The branch to push to, where a repository has none of its own.
    #[schema(max_length = 244)]
    branch: Option<String>,
    /// `builtin`, `claude-code`, `codex`, `opencode` or `command`.
    harness: Option<HarnessName>,
    /// Program and arguments, with the harness `command`.
    #[schema(min_items = 1, max_items = 64)]
    command: Option<Vec<String>>,
    #[schema(max_length = 200)]
    image: Option<String>,
    /// The hosts that the sandbox may connect to: names, `*.example.com`, either with a port, and `package-registries`. What
    /// the server allows when absent; none when empty.
    #[schema(max_items = 100)]
    egress: Option<Vec<String>>,
    #[schema(minimum = 1, maximum = 86400)]
    timeout_seconds: Option<u64>,
    retry: Option<AttemptsRequest>,
    pull_request: Option<PullRequestRequest>,
    metadata: Option<Metadata>,
    /// For the tasks of this campaign only. Held in memory, never stored.
    credentials: Option<CredentialsRequest>,
}
