//! The webhook and its deliveries as JSON, and the shapes of what its endpoints take.

use orchestra_events::projections::{DeliveryRow, WebhookRow};
use orchestra_events::webhook::{Attempt, Pattern};
use serde::Serialize;
use utoipa::ToSchema;

/// A webhook. Its secret is shown when it is made and when it is rotated, and never else.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Webhook)]
pub struct WebhookView {
    id: String,
    /// The team whose events it is told; `null`: those of all.
    team: Option<String>,
    /// Where they are sent.
    url: String,
    /// Which of them: types such as `task.succeeded`, `task.*`, or `*`.
    events: Vec<String>,
    /// Only those of tasks and campaigns of these projects; empty: of all.
    projects: Vec<String>,
    /// The same for environments.
    environments: Vec<String>,
    description: Option<String>,
    enabled: bool,
    /// `gone`, `failures` or `by-hand`.
    disabled_reason: Option<&'static str>,
    /// How often its secret was made anew, plus one.
    secret_version: u32,
    /// Until then messages are signed with the secret before, too.
    #[schema(format = "date-time")]
    previous_secret_until: Option<String>,
    #[schema(format = "date-time")]
    created_at: String,
    /// What it wants of the log up to this position was delivered, was given up or is being retried.
    through: u64,
    #[schema(format = "date-time")]
    last_delivered_at: Option<String>,
    #[schema(format = "date-time")]
    failing_since: Option<String>,
    /// Attempts that were taken.
    delivered: u64,
    /// Messages that were given up.
    given_up: u64,
}

impl From<WebhookRow> for WebhookView {
    fn from(row: WebhookRow) -> Self {
        Self {
            id: row.id.to_string(),
            team: row.spec.team,
            url: row.spec.url,
            events: row.spec.events.into_iter().map(String::from).collect(),
            projects: row.spec.projects,
            environments: row.spec.environments,
            description: row.spec.description,
            enabled: row.disabled.is_none(),
            disabled_reason: row.disabled.map(|why| why.as_str()),
            secret_version: row.secret,
            previous_secret_until: row.previous_until.map(|time| time.to_string()),
            created_at: row.created_at.to_string(),
            through: row.through.0,
            last_delivered_at: row.delivered_at.map(|time| time.to_string()),
            failing_since: row.failing_since.map(|time| time.to_string()),
            delivered: row.delivered,
            given_up: row.given_up,
        }
    }
}

/// A webhook that was made, with its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = NewWebhook)]
pub struct NewWebhookView {
    /// What its messages are signed with. It cannot be shown again: `null` in the answer to a repeat of the request.
    #[schema(required)]
    pub secret: Option<String>,
    /// The webhook.
    #[serde(flatten)]
    pub webhook: WebhookView,
}

/// A page of webhooks.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookList {
    /// Newest first.
    pub data: Vec<WebhookView>,
    /// Pass it on as `cursor` for the next page; `null` when there is none.
    pub next_cursor: Option<String>,
}

/// A new secret.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSecret {
    /// What messages are signed with from now on. It is shown this once: `null` in the answer to a repeat of the request.
    #[schema(required)]
    pub secret: Option<String>,
    /// Until then they are signed with the one before, too.
    #[schema(format = "date-time")]
    pub previous_secret_until: Option<String>,
}

/// What became of one message.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Delivery)]
pub struct DeliveryView {
    /// The `webhook-id` of the message: the same in every attempt.
    message: String,
    /// The event's position in the log; `null` for a test.
    position: Option<u64>,
    #[serde(rename = "type")]
    kind: String,
    /// `delivered`, `retrying`, `given-up`, or `skipped`: it was to be tried again, and the webhook was for something else by
    /// then.
    outcome: &'static str,
    attempts: u32,
    /// What the receiver answered, if it did.
    status: Option<u16>,
    /// What went wrong, if it did not: `unresolvable`, `forbidden-address`, `unreachable`, `tls`, `timeout`, `broken`,
    /// `bad-answer` or `unsendable`.
    error: Option<&'static str>,
    /// How long the last answer took.
    milliseconds: u32,
    #[schema(format = "date-time")]
    first_attempt_at: String,
    #[schema(format = "date-time")]
    last_attempt_at: String,
    #[schema(format = "date-time")]
    next_attempt_at: Option<String>,
}

impl From<DeliveryRow> for DeliveryView {
    fn from(row: DeliveryRow) -> Self {
        Self {
            message: row.message.to_string(),
            position: row.position.map(|position| position.0),
            kind: row.kind,
            outcome: row.outcome.as_str(),
            attempts: row.attempts,
            status: row.status,
            error: row.fault.map(|fault| fault.as_str()),
            milliseconds: row.ms,
            first_attempt_at: row.first_at.to_string(),
            last_attempt_at: row.last_at.to_string(),
            next_attempt_at: row.next_at.map(|time| time.to_string()),
        }
    }
}

impl From<Attempt> for DeliveryView {
    fn from(attempt: Attempt) -> Self {
        Self {
            message: attempt.message.to_string(),
            position: attempt.position.map(|position| position.0),
            kind: attempt.kind,
            outcome: attempt.outcome.as_str(),
            attempts: attempt.attempt,
            status: attempt.outcome.status(),
            error: attempt.outcome.fault().map(|fault| fault.as_str()),
            milliseconds: attempt.ms,
            first_attempt_at: attempt.at.to_string(),
            last_attempt_at: attempt.at.to_string(),
            next_attempt_at: None,
        }
    }
}

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryList {
    /// Those that were first tried last first.
    pub data: Vec<DeliveryView>,
    /// Pass it on as `cursor` for the next page; `null` when there is none.
    pub next_cursor: Option<String>,
}

/// What a webhook is for.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built: webhooks.rs reads the fields one by one")]
pub struct WebhookRequest {
    /// Whose events; a team's key may leave it out. Absent with an operator's key: those of all.
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    team: Option<String>,
    /// Over TLS, to a name that leads into the open internet; or what the operator has opened besides.
    #[schema(max_length = 2000, example = "https://receiver.example/hook")]
    url: String,
    /// Which of them: types such as `task.succeeded`, `task.*`, or `*`, which leaves out keys, sessions, requests and refused ones,
    /// checkpoints and webhooks.
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 64)]
    events: Vec<Pattern>,
    /// Only those of tasks and campaigns of these projects.
    #[schema(max_items = 50)]
    projects: Option<Vec<String>>,
    /// The same for environments.
    #[schema(max_items = 50)]
    environments: Option<Vec<String>>,
    #[schema(max_length = 200)]
    description: Option<String>,
}

/// What is to be different; what is absent stays. The team stays in any case.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct WebhookChange {
    #[schema(max_length = 2000)]
    url: Option<String>,
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 64)]
    events: Option<Vec<Pattern>>,
    #[schema(max_items = 50)]
    projects: Option<Vec<String>>,
    #[schema(max_items = 50)]
    environments: Option<Vec<String>>,
    #[schema(max_length = 200)]
    description: Option<String>,
    /// `false` sends nothing any more, `true` goes on where it ended.
    enabled: Option<bool>,
}

/// How a secret is made anew.
#[derive(ToSchema)]
#[schema(as = WebhookSecretRequest, rename_all = "camelCase")]
#[allow(dead_code, reason = "described, never built")]
pub struct WebhookSecretRequest {
    /// How long messages are signed with both secrets; a day when absent.
    #[schema(minimum = 0, maximum = 604800)]
    overlap_seconds: Option<u64>,
}

/// What is sent again: one message, or all that is wanted of a part of the log.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, never built")]
pub struct WebhookReplayRequest {
    /// The `webhook-id` of one of the deliveries.
    #[schema(example = "msg_71d4050783de6bfb417eea267d8450a7")]
    message: Option<String>,
    /// The first position.
    #[schema(minimum = 1)]
    from: Option<u64>,
    /// The last position.
    #[schema(minimum = 1)]
    to: Option<u64>,
}
