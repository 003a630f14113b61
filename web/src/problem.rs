//! What a caller is told when something does not go: RFC 9457 problem details with a stable code.

use std::fmt;
use std::net::IpAddr;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use orchestra_actors::FieldError;
use orchestra_actors::admission::RETRY_AFTER_SECONDS as RETRY_AFTER_SECONDS_OF_TASKS;
use orchestra_actors::service::ServiceError;
use orchestra_events::StoreError;
use orchestra_events::key::Scope;
use orchestra_events::ledger::Exhausted;
use orchestra_events::ledger::scope::ParseScopeError;
use orchestra_events::projections::ReadModelError;
use orchestra_events::session::Refusal as SessionRefusal;
use orchestra_events::task::Refusal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::resource::ExhaustedView;
use crate::auth::session::SessionError;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:ident, $title:literal;)*) => {
        /// The stable codes of this interface. Each has a page in `docs/errors/`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The kebab-case name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The status it comes with.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// What it means in a few words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// A field does not do.
    InvalidRequest = "invalid-request", UNPROCESSABLE_ENTITY, "The request has fields that do not do";
    /// A query parameter does not do.
    InvalidQuery = "invalid-query", BAD_REQUEST, "The query has parameters that do not do";
    /// The body is no JSON.
    InvalidJson = "invalid-json", BAD_REQUEST, "The body is not JSON";
    /// The body is not what this path takes.
    UnsupportedMediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "The body is not of a type this path takes";
    /// The body is larger than the limit.
    BodyTooLarge = "body-too-large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// The body did not arrive.
    BodyIncomplete = "body-incomplete", BAD_REQUEST, "The body did not arrive whole";
    /// Nobody was named.
    Unauthenticated = "unauthenticated", UNAUTHORIZED, "Who is calling?";
    /// The key may not do this.
    Forbidden = "forbidden", FORBIDDEN, "This key may not do that";
    /// The key is not good for calls from there.
    AddressNotAllowed = "address-not-allowed", FORBIDDEN, "This key may not be used from there";
    /// Too many requests in too short a time.
    RateLimited = "rate-limited", TOO_MANY_REQUESTS, "Too many requests";
    /// Too many tasks are open.
    TooManyTasks = "too-many-tasks", TOO_MANY_REQUESTS, "Too many tasks are open";
    /// Another site's page sent this.
    CrossSiteRequest = "cross-site-request", FORBIDDEN, "This came from another site";
    /// There is no such thing, or not for this caller.
    NotFound = "not-found", NOT_FOUND, "There is no such thing";
    /// The path knows other methods.
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, "This path does not know that method";
    /// A cap is met.
    BudgetExceeded = "budget-exceeded", PAYMENT_REQUIRED, "A budget is used up";
    /// The state of the task or campaign does not allow it.
    Conflict = "conflict", CONFLICT, "Its state does not allow that";
    /// The same idempotency key with another body.
    IdempotencyKeyReused = "idempotency-key-reused", UNPROCESSABLE_ENTITY, "This Idempotency-Key was used for another request";
    /// The same request is being worked on.
    RequestInProgress = "request-in-progress", CONFLICT, "The same request is being worked on";
    /// Something is full.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "The server is busy";
    /// The read models do not keep up.
    Lagging = "lagging", SERVICE_UNAVAILABLE, "The server is still catching up with its own log";
    /// Our fault.
    InternalError = "internal-error", INTERNAL_SERVER_ERROR, "Something went wrong on our side";
}

impl Code {
    /// Whether trying again helps, and the answer says when.
    pub const fn retry_after(self) -> bool {
        matches!(
            self,
            Self::Overloaded | Self::Lagging | Self::RequestInProgress | Self::RateLimited | Self::TooManyTasks
        )
    }
}

/// Seconds after which a caller who was told to come back should.
pub const RETRY_AFTER_SECONDS: u32 = 2;

/// One field that does not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Field {
    /// JSON pointer to the field (RFC 6901); `?name` for a query parameter.
    pub pointer: String,
    /// What is wrong with it and what would be right.
    pub detail: String,
}

/// The answer when something does not go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its stable name.
    pub code: Code,
    /// What happened, and what to do next.
    pub detail: String,
    /// The fields that do not do.
    pub errors: Vec<Field>,
    /// The cap that is met.
    pub budget: Option<Box<Exhausted>>,
    /// Seconds after which trying again may help, where that is known better than by its code.
    pub retry_after: Option<u32>,
}

/// How a problem looks outside.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// The page about this code.
    #[serde(rename = "type")]
    kind: String,
    /// What it means in a few words.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// The stable code.
    code: &'a str,
    /// What happened, and what to do next.
    detail: &'a str,
    /// The fields that do not do.
    #[serde(skip_serializing_if = "<[Field]>::is_empty")]
    errors: &'a [Field],
    /// The cap that is met.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<ExhaustedView>,
}

impl Problem {
    /// A problem.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), budget: None, retry_after: None }
    }

    /// The answer.
    pub fn response(&self) -> HttpResponse {
        let body = ProblemBody {
            kind: format!("/docs/errors/{}", self.code.as_str()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            code: self.code.as_str(),
            detail: &self.detail,
            errors: &self.errors,
            budget: self.budget.as_deref().cloned().map(ExhaustedView::from),
        };
        let json = serde_json::to_string(&body).unwrap_or_default();
        let mut response = HttpResponse::build(self.code.status());
        response.insert_header((header::CONTENT_TYPE, "application/problem+json"));
        if self.code == Code::Unauthenticated {
            response.insert_header((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        }
        if self.code.retry_after() {
            response.insert_header((header::RETRY_AFTER, self.retry_after.unwrap_or(RETRY_AFTER_SECONDS).to_string()));
        }
        let mut response = response.body(json);
        // For whoever takes down what was refused.
        response.extensions_mut().insert(self.code);
        response
    }

    /// Fields of the body that do not do.
    pub fn invalid(errors: Vec<Field>) -> Self {
        let detail = match errors.len() {
            1 => "One field does not do; `errors` says which and why. Nothing was stored.".to_owned(),
            count => format!("{count} fields do not do; `errors` says which and why. Nothing was stored."),
        };
        Self { errors, ..Self::new(Code::InvalidRequest, detail) }
    }

    /// Query parameters that do not do.
    pub fn invalid_query(errors: Vec<Field>) -> Self {
        Self { errors, ..Self::new(Code::InvalidQuery, "Mend the parameters that `errors` names.") }
    }

    /// Nobody was named.
    pub fn unauthenticated() -> Self {
        Self::new(
            Code::Unauthenticated,
            "Send an API key as `Authorization: Bearer orc_…`, or sign in to the dashboard.",
        )
    }

    /// The key is unknown, revoked or malformed: which one is nobody's business.
    pub fn unknown_key() -> Self {
        Self::new(Code::Unauthenticated, "This server does not know that API key. Check it, or ask for a new one.")
    }

    /// A scope is missing.
    pub fn missing_scope(scope: Scope) -> Self {
        Self::new(Code::Forbidden, format!("The key lacks the scope `{scope}`. Use one that has it."))
    }

    /// The key has a newer text than the one that was shown.
    pub fn replaced_text() -> Self {
        let detail = "The key has been rotated since. Only its newest text gives it another one: ask with that.";
        Self::new(Code::Forbidden, detail)
    }

    /// The key's bounds cannot be held to in this answer.
    pub fn too_wide(what: &str, bounded_to: &str) -> Self {
        let detail = format!(
            "{what} cannot be narrowed to the {bounded_to} that this key is bound to. Use a key without that bound."
        );
        Self::new(Code::Forbidden, detail)
    }

    /// The key is not good for calls from there.
    pub fn address_not_allowed(from: Option<IpAddr>) -> Self {
        let from = from.map_or_else(|| "an address that is not known".to_owned(), |from| from.to_string());
        Self::new(
            Code::AddressNotAllowed,
            format!("The key is bound to networks, and this came from {from}. Call from there, or use another key."),
        )
    }

    /// Too many requests. `seconds`: until the next one is taken.
    pub fn rate_limited(whose: &str, seconds: u32) -> Self {
        let detail = format!("{whose} asks more often than its limit allows. Wait {seconds} s and try again.");
        Self { retry_after: Some(seconds), ..Self::new(Code::RateLimited, detail) }
    }

    /// Another site's page sent this.
    pub fn cross_site() -> Self {
        Self::new(
            Code::CrossSiteRequest,
            "A browser session may change things only from this server's own pages. Use an API key from elsewhere.",
        )
    }

    /// A cap is met.
    pub fn budget_exceeded(exhausted: Exhausted) -> Self {
        let detail = format!("The task was not taken: {exhausted}. Raise the budget, or wait until it is whole again.");
        Self { budget: Some(Box::new(exhausted)), ..Self::new(Code::BudgetExceeded, detail) }
    }

    /// A text in a path that names no scope.
    pub fn no_such_scope(error: &ParseScopeError) -> Self {
        Self::new(Code::NotFound, format!("{error}."))
    }

    /// There is no such task for this caller.
    pub fn no_such_task() -> Self {
        Self::new(Code::NotFound, "There is no such task, or it belongs to another team. Check the id.")
    }

    /// There is no such campaign for this caller.
    pub fn no_such_campaign() -> Self {
        Self::new(Code::NotFound, "There is no such campaign, or it belongs to another team. Check the id.")
    }

    /// There is no such webhook for this caller.
    pub fn no_such_webhook() -> Self {
        Self::new(Code::NotFound, "There is no such webhook, or it belongs to another team. Check the id.")
    }

    /// The server was started without webhooks.
    pub fn no_webhooks() -> Self {
        Self::new(Code::NotFound, "This server was started without webhooks.")
    }

    /// There is no such key for this caller.
    pub fn no_such_key() -> Self {
        Self::new(Code::NotFound, "There is no such key, or it belongs to another team. Check the id.")
    }

    /// There is no such team for this caller.
    pub fn no_such_team() -> Self {
        Self::new(Code::NotFound, "There is no such team, or the key belongs to another one. Leave `team` out.")
    }

    /// There is nothing at that path.
    pub fn no_such_path() -> Self {
        Self::new(Code::NotFound, "There is nothing at this path. /docs lists every path of the interface.")
    }

    /// The recorder is not installed.
    pub fn no_metrics() -> Self {
        Self::new(Code::NotFound, "This server was started without metrics.")
    }

    /// The path knows other methods.
    pub fn method_not_allowed(allow: &str) -> Self {
        Self::new(Code::MethodNotAllowed, format!("Use one of: {allow}."))
    }

    /// The read models do not keep up.
    pub fn lagging(detail: impl Into<String>) -> Self {
        Self::new(Code::Lagging, format!("{} Try again in a moment.", detail.into()))
    }

    /// A copy of the request is not done yet.
    pub fn in_progress() -> Self {
        Self::new(
            Code::RequestInProgress,
            "A request with this Idempotency-Key is not done yet. Repeat it in a moment.",
        )
    }

    /// Something is full.
    pub fn overloaded(detail: &str) -> Self {
        Self::new(Code::Overloaded, format!("{detail} Try again in a moment."))
    }

    /// Our fault. What went wrong goes to the log, not to the caller.
    pub fn internal(what: impl fmt::Display) -> Self {
        tracing::error!("a request failed: {what}");
        Self::new(Code::InternalError, "Try again; if it happens again, look into the server's log.")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    fn error_response(&self) -> HttpResponse {
        self.response()
    }
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Store(error) => error.into(),
            SessionError::Refused(SessionRefusal::NoSuchSession) => Self::unauthenticated(),
            SessionError::Refused(SessionRefusal::NoSuchTeam) => {
                Self::new(Code::NotFound, "You have no part in such a team.")
            }
            SessionError::Refused(SessionRefusal::Exists | SessionRefusal::TooManyTeams)
            | SessionError::NoRandomness
            | SessionError::Json(_) => Self::internal(error.to_string()),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Overloaded => Self::overloaded("The event store does not keep up."),
            StoreError::WrongExpectedRevision { .. } => {
                Self::new(Code::Conflict, "Somebody else changed this at the same moment. Read it again and repeat.")
            }
            error => Self::internal(error),
        }
    }
}

impl From<ReadModelError> for Problem {
    fn from(error: ReadModelError) -> Self {
        match error {
            ReadModelError::Busy => Self::overloaded("Too many reads at once."),
            ReadModelError::Lagging { .. } => Self::lagging("The read models have not caught up with the log."),
            ReadModelError::Store(error) => error.into(),
            ReadModelError::Failed(_) => Self::internal(error),
        }
    }
}

impl From<FieldError> for Field {
    fn from(error: FieldError) -> Self {
        Self { pointer: error.pointer, detail: error.detail }
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Invalid(fields) => Self::invalid(fields.into_iter().map(Field::from).collect()),
            ServiceError::OutOfBounds(breach) => {
                let field = Field { pointer: breach.pointer().to_owned(), detail: breach.to_string() };
                let detail = format!("Nothing was stored: {breach}. Ask for a key that may, or change the request.");
                Self { errors: vec![field], ..Self::new(Code::Forbidden, detail) }
            }
            ServiceError::IdempotencyKeyReused => Self::new(
                Code::IdempotencyKeyReused,
                "The key came before with another body. Repeat that body, or take a new key for this one.",
            ),
            ServiceError::NoSuchTask | ServiceError::Refused { refusal: Refusal::NoSuchTask, .. } => {
                Self::no_such_task()
            }
            ServiceError::NoSuchCampaign => Self::no_such_campaign(),
            ServiceError::NoSuchWebhook => Self::no_such_webhook(),
            ServiceError::WebhookRefused(refusal) => Self::new(Code::Conflict, format!("Nothing was done: {refusal}.")),
            ServiceError::CampaignRefused(refusal) => {
                Self::new(Code::Conflict, format!("Nothing was done: {refusal}."))
            }
            ServiceError::Refused { refusal: Refusal::BadMessage, .. } => Self::invalid(vec![Field {
                pointer: "/message".to_owned(),
                detail: format!("{}.", Refusal::BadMessage),
            }]),
            ServiceError::Refused { refusal, status } => {
                let standing =
                    status.map_or_else(String::new, |status| format!(" Its status is `{}`.", status.as_str()));
                Self::new(Code::Conflict, format!("Nothing was done: {refusal}.{standing}"))
            }
            ServiceError::Exhausted(exhausted) => Self::budget_exceeded(*exhausted),
            ServiceError::TooManyTasks { of_team, most } => {
                let whose = if of_team { "The team" } else { "This key" };
                let detail = format!(
                    "{whose} may have {most} tasks open at once, and has. Nothing was stored: wait for one to end, or cancel one."
                );
                Self { retry_after: Some(RETRY_AFTER_SECONDS_OF_TASKS), ..Self::new(Code::TooManyTasks, detail) }
            }
            ServiceError::Busy => Self::overloaded("A queue is full."),
            ServiceError::Store(error) => error.into(),
            ServiceError::Internal(what) => Self::internal(what),
        }
    }
}

/// The answer at a path that nothing is at.
pub async fn no_such_page() -> HttpResponse {
    Problem::no_such_path().response()
}
