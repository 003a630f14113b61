//! The watch at the door: what a caller has left goes onto every answer, and what was refused is taken down.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::middleware::Next;
use actix_web::web;
use actix_web::{Error, HttpMessage as _};

use super::address;
use super::caller::Recognised;
use super::limits::Allowance;
use super::refusals::Refused;
use crate::App;
use crate::problem::Code;

/// Where no route was met: a path is the caller's text, and none of it is kept.
const NO_ROUTE: &str = "(none)";

/// Goes with a request whose refusal is in the log already, by another name.
#[derive(Debug, Clone, Copy)]
pub struct TakenDown;

/// The code of an answer that refuses the caller, and not just the request.
fn refusal(response: &ServiceResponse<impl MessageBody>) -> Option<&'static str> {
    let code = response.response().extensions().get::<Code>().copied();
    match (response.status(), code) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS, Some(code)) => {
            Some(code.as_str())
        }
        (StatusCode::UNAUTHORIZED, None) => Some(Code::Unauthenticated.as_str()),
        (StatusCode::FORBIDDEN, None) => Some(Code::Forbidden.as_str()),
        _ => None,
    }
}

/// Looks at every answer on its way out.
pub async fn watch(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let mut response = next.call(request).await?;
    let allowance = response.request().extensions().get::<Allowance>().copied();
    if let Some(allowance) = allowance {
        allowance.write(response.headers_mut());
    }
    let taken_down = response.request().extensions().contains::<TakenDown>();
    if let Some(code) = refusal(&response).filter(|_| !taken_down) {
        let request = response.request();
        let caller = request.extensions().get::<Recognised>().map(|recognised| recognised.caller.clone());
        if let Some(app) = request.app_data::<web::Data<App>>() {
            app.refusals.record(Refused {
                address: app.proxies.origin(address::peer(request), request.headers()),
                user_agent: address::user_agent(request.headers()),
                caller,
                method: request.method().as_str().chars().take(16).collect(),
                route: request.match_pattern().unwrap_or_else(|| NO_ROUTE.to_owned()),
                code,
            });
        }
    }
    Ok(response)
}
