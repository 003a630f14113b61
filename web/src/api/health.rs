//! Is it alive, is it ready, how is it doing.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::problem::{Problem, ProblemBody};

/// The most events the read models may be behind before this node asks not to be sent readers.
pub const READY_LAG: u64 = 10_000;

/// How far a node that is ready has read.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// `ready`.
    status: &'static str,
    /// The position of the last event.
    head: u64,
    /// The position up to which the read models have it.
    read_models: u64,
    /// How many positions they are behind.
    lag: u64,
    /// Events that they could not read.
    skipped_events: u64,
}

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "operation", security(()),
    responses((status = 200, description = "The process answers", content_type = "text/plain", body = String)))]
pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ok\n")
}

/// The store answers and the read models keep up with it.
#[utoipa::path(get, path = "/readyz", tag = "operation", security(()),
    responses((status = 200, description = "Ready to serve", body = Readiness),
        (status = 503, description = "Not ready, and why", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn readyz(app: web::Data<App>) -> Result<HttpResponse, Problem> {
    let head = app.store.head().await?;
    let at = app.read.checkpoint();
    let lag = head.0.saturating_sub(at.0);
    if lag > READY_LAG {
        return Err(Problem::lagging(format!("The read models are {lag} positions behind the log.")));
    }
    Ok(HttpResponse::Ok().json(Readiness {
        status: "ready",
        head: head.0,
        read_models: at.0,
        lag,
        skipped_events: app.read.skipped(),
    }))
}

/// Figures in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operation", security(()),
    responses((status = 200, description = "Prometheus text format", content_type = "text/plain", body = String),
        (status = 404, description = "Started without metrics", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn metrics(app: web::Data<App>) -> Result<HttpResponse, Problem> {
    let handle = app.metrics.as_ref().ok_or_else(Problem::no_metrics)?;
    metrics::gauge!("orchestra_read_models_position").set(app.read.checkpoint().0 as f64);
    metrics::gauge!("orchestra_read_models_lag")
        .set(app.store.head().await?.0.saturating_sub(app.read.checkpoint().0) as f64);
    metrics::gauge!("orchestra_read_models_skipped_events").set(app.read.skipped() as f64);
    let open = crate::app::MAX_STREAMS.saturating_sub(app.streams.available_permits());
    metrics::gauge!("orchestra_live_streams").set(open as f64);
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(handle.render()))
}
