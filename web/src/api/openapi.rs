//! The OpenAPI document, from the handlers themselves, and the shapes of what they take.

#![allow(unused_qualifications, reason = "derives write paths in full")]

use actix_web::HttpResponse;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, PartialSchema, ToSchema};

use super::resource::Usd;
use crate::problem::{Field, ProblemBody};

/// What a caller asks for.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built: payload.rs reads the fields one by one")]
pub struct TaskRequest {
    /// `owner/name` on the default forge, `forge:owner/name`, or a full URL. Either this or `repos` is required.
    #[schema(max_length = 400, example = "acme/api")]
    repo: Option<String>,
    /// Several repositories, each with a checkout of its own in one workspace, and a pull request of its own.
    #[schema(min_items = 1, max_items = 16)]
    repos: Option<Vec<RepoRequest>>,
    /// What is to be done.
    #[schema(max_length = 32768)]
    task: String,
    /// The model.
    #[schema(max_length = 200, example = "claude-sonnet-4-6")]
    model: String,
    /// Whose task it is; a team's key may leave it out.
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
    budget: Option<BudgetRequest>,
    /// The branch to start from; the repository's default branch when absent.
    #[schema(max_length = 244)]
    base: Option<String>,
    /// The branch to push to; made from the task's words when absent.
    #[schema(max_length = 244)]
    branch: Option<String>,
    /// The agent; `builtin` when absent.
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
    credentials: Option<CredentialsRequest>,
}

/// Free pairs: at most 50 entries of texts, numbers, true, false or null.
pub struct Metadata;

impl PartialSchema for Metadata {
    fn schema() -> RefOr<Schema> {
        let value = SchemaType::Array(vec![Type::String, Type::Number, Type::Boolean, Type::Null]);
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Object))
            .additional_properties(Some(Schema::Object(ObjectBuilder::new().schema_type(value).build())))
            .max_properties(Some(super::payload::MAX_METADATA_ENTRIES))
            .description(Some("Free pairs: at most 50 entries of texts, numbers, true, false or null"))
            .into()
    }
}

impl ToSchema for Metadata {}

/// A repository of several: its name alone, or an object.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "described, never built")]
pub enum RepoRequest {
    /// `owner/name`, `forge:owner/name` or a URL.
    Name(String),
    /// The same with branches of its own.
    Object(RepoBranchesRequest),
}

/// A repository with branches of its own.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct RepoBranchesRequest {
    /// `owner/name`, `forge:owner/name` or a URL.
    #[schema(max_length = 400)]
    repo: String,
    /// The branch to start from; the request's, or the repository's default branch when absent.
    #[schema(max_length = 244)]
    base: Option<String>,
    /// The branch to push to; the request's, or one made from the task's words when absent.
    #[schema(max_length = 244)]
    branch: Option<String>,
}

/// What the pull requests are to be like. What is absent is made from the server's templates; what a forge does not
/// have is left out, and an event says so.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct PullRequestRequest {
    /// One line.
    #[schema(max_length = 250)]
    title: Option<String>,
    /// Markdown.
    #[schema(max_length = 32768)]
    body: Option<String>,
    /// Whether they begin as drafts.
    draft: Option<bool>,
    /// Who is asked to look at them, by the names that the forge knows them by.
    #[schema(max_items = 20)]
    reviewers: Option<Vec<String>>,
    #[schema(max_items = 20)]
    labels: Option<Vec<String>>,
}

/// How often a task is attempted by itself, when it fails for a reason that may pass.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct AttemptsRequest {
    /// The most attempts, the first one counted.
    #[schema(minimum = 1, maximum = 10)]
    attempts: Option<u32>,
    /// `fresh`: the repository, cloned anew. `same`: the sandbox of the attempt before, with its changes.
    workspace: Option<WorkspaceName>,
}

/// What a task may cost.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct BudgetRequest {
    max_usd: Option<Usd>,
    #[schema(minimum = 1)]
    max_tokens: Option<u64>,
}

/// The caps of a scope; every part is optional.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct ScopeBudgetRequest {
    per_task: Option<CapRequest>,
    per_day: Option<CapRequest>,
    per_month: Option<CapRequest>,
    /// Whose midnight begins a day, such as `Europe/Zurich`; the team's when absent, of a team UTC.
    #[schema(max_length = 64)]
    time_zone: Option<String>,
}

/// A cap. 0 lets nothing through.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct CapRequest {
    max_usd: Option<Usd>,
    #[schema(minimum = 0)]
    max_tokens: Option<u64>,
}

/// Secrets, for this task only. Held in memory, never stored.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct CredentialsRequest {
    model: Option<ModelCredential>,
    git: Option<GitCredential>,
}

/// The model provider's key.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct ModelCredential {
    #[schema(format = Password, write_only)]
    api_key: String,
}

/// The forge's token.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct GitCredential {
    #[schema(format = Password, write_only)]
    token: String,
}

/// Why it is cancelled.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct CancelRequest {
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// What comes along with a new attempt.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct RetryRequest {
    credentials: Option<CredentialsRequest>,
}

/// Words to the running agent.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct MessageRequest {
    #[schema(max_length = 16384)]
    message: String,
}

/// A key that is to be issued. What is left out is as the caller's own.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct KeyRequest {
    /// What you call it.
    #[schema(min_length = 1, max_length = 100, example = "ci of the web team")]
    name: String,
    /// What it may do. `campaigns:*` stands for all that begin so.
    #[schema(min_items = 1, max_items = 20, example = json!(["tasks:create", "tasks:read"]))]
    scopes: Vec<String>,
    /// The team it acts for. Without one it is an operator's, with the scope `admin`.
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    team: Option<String>,
    /// Stands in its visible prefix, so that a production key is seen to be one; `live` when absent.
    #[schema(max_length = 32, pattern = "^[a-z0-9-]+$")]
    environment: Option<String>,
    bounds: Option<KeyBoundsRequest>,
    /// From when on it is worth nothing; in the future.
    #[schema(format = "date-time")]
    expires_at: Option<String>,
    limits: Option<KeyLimitsRequest>,
}

/// What a key is good for within its team. An absent or empty list bounds nothing of its own.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct KeyBoundsRequest {
    #[schema(max_items = 64)]
    projects: Option<Vec<String>>,
    #[schema(max_items = 64)]
    environments: Option<Vec<String>>,
    #[schema(max_items = 64)]
    task_types: Option<Vec<String>>,
    /// Patterns of `forge:owner/name`, in which `*` stands for any characters.
    #[schema(max_items = 64, example = json!(["github:acme/*"]))]
    repos: Option<Vec<String>>,
    /// Patterns of the names that callers give models.
    #[schema(max_items = 64, example = json!(["claude-*"]))]
    models: Option<Vec<String>>,
    /// Networks that it may be used from, such as `10.0.0.0/8`, or addresses.
    #[schema(max_items = 64)]
    networks: Option<Vec<String>>,
}

/// How much may be asked with a key at once.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct KeyLimitsRequest {
    /// Requests per minute, on average.
    #[schema(minimum = 1, maximum = 1000000000)]
    requests_per_minute: Option<u32>,
    /// Requests at once; a minute's worth when absent.
    #[schema(minimum = 1, maximum = 1000000000)]
    burst: Option<u32>,
    /// Tasks created with it that are not over.
    #[schema(minimum = 1, maximum = 1000000000)]
    concurrent_tasks: Option<u32>,
}

/// How a key is given a new text.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct RotateRequest {
    /// How long the text it has now works on; an hour when absent.
    #[schema(minimum = 0, maximum = 2592000)]
    overlap_seconds: Option<u64>,
}

/// Where a task stands.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
#[allow(dead_code, reason = "described, never built")]
pub enum Status {
    /// It waits for a node.
    Queued,
    /// Clone and sandbox are being made ready.
    Preparing,
    /// The agent works.
    Running,
    /// It waits for secrets of the caller.
    AwaitingCredentials,
    /// A step failed and will be done again.
    Retrying,
    /// The commit is pushed.
    Succeeded,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// Where a campaign stands.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
#[allow(dead_code, reason = "described, never built")]
pub enum CampaignStatusName {
    /// Its tasks are begun and worked on.
    Running,
    /// It waits for somebody to say that it goes on.
    Paused,
    /// Every task has ended.
    Finished,
    /// It was stopped.
    Cancelled,
}

/// The agents there are.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
#[allow(dead_code, reason = "described, never built")]
pub enum HarnessName {
    /// Orchestra's own.
    Builtin,
    /// Anthropic's command line agent.
    ClaudeCode,
    /// OpenAI's command line agent.
    Codex,
    /// The open one.
    Opencode,
    /// A program of the caller's.
    Command,
}

/// What a further attempt begins with.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
#[allow(dead_code, reason = "described, never built")]
pub enum WorkspaceName {
    /// The repository, cloned anew.
    Fresh,
    /// The sandbox of the attempt before, with its changes.
    Same,
}

/// What kind of being acted.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
#[allow(dead_code, reason = "described, never built")]
pub enum ActorKindName {
    /// A caller with an API key.
    ApiKey,
    /// A person signed in to the dashboard.
    Person,
    /// Orchestra itself.
    System,
}

/// One event in its envelope.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct Event {
    id: String,
    /// What happened, as a stable name.
    #[schema(rename = "type")]
    kind: String,
    schema: u16,
    stream: String,
    revision: u64,
    position: u64,
    #[schema(format = "date-time")]
    time: String,
    actor: EventActor,
    correlation: Option<String>,
    causation: Option<String>,
    /// What happened; its shape belongs to the type and the schema.
    data: serde_json::Map<String, serde_json::Value>,
    /// The words in it were erased: placeholders stand where they were. Absent otherwise.
    erased: Option<bool>,
}

/// Who caused an event.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct EventActor {
    kind: ActorKindName,
    id: String,
    team: Option<String>,
}

/// A plan as it is set. What is absent is not charged for; a plan charges for something.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct BillingPlanRequest {
    /// The first civil day that it goes for, after every month that is closed.
    #[schema(format = "date")]
    effective_from: String,
    /// `USD`.
    currency: Option<String>,
    /// The provider's cost is passed on with this much on top, in hundredths of a per cent; absent: it is not passed on.
    #[schema(minimum = 0, maximum = 1_000_000)]
    mark_up_basis_points: Option<u32>,
    per_task_usd: Option<Usd>,
    per_minute_usd: Option<Usd>,
    per_million_input_tokens_usd: Option<Usd>,
    per_million_output_tokens_usd: Option<Usd>,
    per_million_cache_read_tokens_usd: Option<Usd>,
    per_million_cache_write_tokens_usd: Option<Usd>,
    /// The least that a month comes to for a customer for whom anything was done.
    minimum_usd: Option<Usd>,
    /// Who has other terms.
    #[schema(max_items = 500)]
    overrides: Option<Vec<BillingOverrideRequest>>,
}

/// To whom a bill is sent.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct BillPushRequest {
    /// A webhook of the team that wants `billing.invoice-ready`, or all of `billing.*`.
    #[schema(example = "webhook_00000000000000000000000000")]
    webhook: String,
}

/// Other terms for a customer, a project, or a project of a customer.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct BillingOverrideRequest {
    #[schema(min_length = 1, max_length = 200)]
    customer: Option<String>,
    #[schema(min_length = 1, max_length = 200)]
    project: Option<String>,
    #[schema(minimum = 0, maximum = 1_000_000)]
    mark_up_basis_points: Option<u32>,
    per_task_usd: Option<Usd>,
    per_minute_usd: Option<Usd>,
    per_million_input_tokens_usd: Option<Usd>,
    per_million_output_tokens_usd: Option<Usd>,
    per_million_cache_read_tokens_usd: Option<Usd>,
    per_million_cache_write_tokens_usd: Option<Usd>,
    minimum_usd: Option<Usd>,
}

/// What was used. Each group also holds what it is grouped by.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct Usage {
    groups: Vec<UsageLine>,
    total: UsageLine,
}

/// One line of a report.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct UsageLine {
    tasks: u64,
    input_tokens: u64,
    output_tokens: u64,
    cache_read_tokens: u64,
    cache_write_tokens: u64,
    cost_usd: Usd,
    billable_usd: Usd,
    refunded_usd: Usd,
    sandbox_ms: u64,
    day: Option<String>,
    month: Option<String>,
    team: Option<String>,
    project: Option<String>,
    environment: Option<String>,
    task_type: Option<String>,
    model: Option<String>,
    customer: Option<String>,
}

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("orc_<env>_<id>_<secret>").build();
        document.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(title = "Orchestra", description = "Runs background coding agents for teams: isolated, budgeted, audited."),
    modifiers(&Bearer),
    security(("key" = [])),
    components(schemas(ProblemBody, Field, Status, CampaignStatusName)),
    paths(
        super::tasks::create,
        super::tasks::list,
        super::tasks::get,
        super::events::of_task,
        super::events::of_log,
        super::task_actions::cancel,
        super::task_actions::erase,
        super::task_actions::retry,
        super::task_actions::message,
        super::task_actions::credentials,
        super::task_actions::diff,
        super::campaigns::create,
        super::campaigns::list,
        super::campaigns::get,
        super::campaigns::cancel,
        super::campaigns::erase,
        super::campaigns::retry,
        super::campaigns::credentials,
        super::audit::list,
        super::audit_record::key,
        super::audit_record::checkpoints,
        super::audit_record::sign,
        super::audit_record::export,
        super::budgets::list,
        super::budgets::get,
        super::budgets::put,
        super::usage::report,
        super::billing::plans,
        super::billing::put_plan,
        super::billing_periods::list,
        super::billing_periods::get,
        super::billing_periods::close,
        super::billing_periods::push,
        super::keys::create,
        super::keys::list,
        super::keys::get,
        super::keys::revoke,
        super::keys::rotate,
        super::webhooks::list,
        super::webhooks::create,
        super::webhooks::get,
        super::webhooks::change,
        super::webhooks::remove,
        super::webhooks::rotate,
        super::webhooks::test,
        super::webhooks::replay,
        super::webhooks::deliveries,
        super::health::healthz,
        super::health::readyz,
        super::health::metrics,
        openapi_json,
        super::docs::index,
        crate::pages::docs::show,
        super::docs::style,
    )
)]
pub struct Document;

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operation", security(()),
    responses((status = 200, description = "The OpenAPI document", content_type = "application/json", body = Object)))]
pub async fn openapi_json() -> HttpResponse {
    HttpResponse::Ok().json(super::document::document())
}
