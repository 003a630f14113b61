//! What becomes of a POST that arrives twice: with an `Idempotency-Key` it is done once, and every repeat is answered
//! with what stands.
//!
//! A repeat shows the thing as it is now and not a copy of the first answer: copies would hold what is to be erased,
//! and keys that are to be shown once.

use actix_web::HttpResponse;
use actix_web::http::{Method, StatusCode};
use actix_web::web;
use futures_util::future::LocalBoxFuture;

use super::{audit_record, billing_periods, campaigns, keys, tasks, webhooks};
use crate::App;
use crate::auth::Caller;
use crate::problem::Problem;

/// What a request was about.
pub struct Subject {
    /// The id in its path, or that of what it made; empty where there is one thing that is meant.
    pub id: String,
    /// Its query.
    pub query: String,
}

/// Renders what a request was about.
pub type Show = fn(web::Data<App>, Caller, Subject) -> LocalBoxFuture<'static, Result<HttpResponse, Problem>>;

/// What an endpoint does with a repeat.
#[derive(Clone, Copy)]
pub enum Repeat {
    /// It is idempotent by itself, as most methods are: a repeat does nothing that the first one did not.
    Idempotent,
    /// The key is the id of what is made, so that a repeat meets it: no second record is needed.
    NamesWhatIsMade,
    /// Claimed in the log before it is done.
    Claimed {
        /// The status when it was done.
        done: StatusCode,
        /// The category of the stream in which the last of what it does is written: without that it was not done to its
        /// end, and is done again.
        ends: &'static str,
        /// What a repeat is shown.
        show: Show,
    },
}

/// What the endpoint does with a repeat. `None`: a POST that this table forgot, which a test finds.
pub fn repeat(method: &Method, path: &str) -> Option<Repeat> {
    if *method != Method::POST {
        return Some(Repeat::Idempotent);
    }
    let claimed = |done, ends, show| Some(Repeat::Claimed { done, ends, show });
    match path {
        "/v1/tasks" | "/v1/campaigns" | "/v1/webhooks" => Some(Repeat::NamesWhatIsMade),
        "/v1/tasks/{id}/cancel" | "/v1/tasks/{id}/retry" | "/v1/tasks/{id}/messages" => {
            claimed(StatusCode::ACCEPTED, "task", tasks::show)
        }
        "/v1/campaigns/{id}/cancel" | "/v1/campaigns/{id}/retry" => {
            claimed(StatusCode::ACCEPTED, "campaign", campaigns::show)
        }
        "/v1/keys" => claimed(StatusCode::CREATED, "key", keys::show),
        "/v1/keys/{id}/rotate" => claimed(StatusCode::OK, "key", keys::show),
        "/v1/webhooks/{id}/secret" => claimed(StatusCode::OK, "webhook", webhooks::show_secret),
        "/v1/webhooks/{id}/replay" => claimed(StatusCode::ACCEPTED, "webhook", webhooks::show),
        "/v1/audit/checkpoints" => claimed(StatusCode::CREATED, "checkpoint", audit_record::show),
        // A month is closed once, and is answered alike afterwards.
        "/v1/billing/periods/{period}/close" => Some(Repeat::Idempotent),
        // Sent again and then noted; sent twice, it has the same ids.
        "/v1/billing/periods/{period}/push" => claimed(StatusCode::ACCEPTED, "billing", billing_periods::show),
        // A message to the receiver, of which nothing is kept: a repeat sends none, and is told so.
        "/v1/webhooks/{id}/test" => claimed(StatusCode::OK, "webhook", webhooks::show_test),
        _ => None,
    }
}
