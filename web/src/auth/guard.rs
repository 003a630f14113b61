//! The one guard: who is calling, and whether they may. It stands in front of every handler of both tables.
//!
//! What it finds out goes with the request: the extractors [`Caller`] and [`Visitor`](crate::pages::shell::Visitor) take it
//! from there, and answer with an internal error where no guard has been. No handler can forget to ask.

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::{Next, from_fn};
use actix_web::{Error, HttpMessage as _, Route};

use super::Caller;
use super::caller::identify;
use crate::problem::Problem;
use crate::routes::{Access, Endpoint, Surface};

/// The route of a row, with the guard in front of it.
pub fn guarded(endpoint: Endpoint) -> Route {
    let Endpoint { access, surface, route, .. } = endpoint;
    route.wrap(from_fn(move |request, next| guard(access, surface, request, next)))
}

/// Who is calling and may, or why nobody does. `None`: nobody was asked.
fn admit(access: Access, request: &ServiceRequest) -> Result<Option<Caller>, Problem> {
    let caller = match access {
        Access::Anyone => return Ok(None),
        Access::Known | Access::Scope(_) => identify(request.request())?,
    };
    if let Access::Scope(scope) = access {
        caller.require(scope)?;
    }
    Ok(Some(caller))
}

async fn guard(
    access: Access,
    surface: Surface,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match admit(access, &request) {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.call(request).await
        }
        // An answer and not an error: an error would leave without the security headers.
        Err(problem) => {
            let wanted = request.uri().path_and_query().map(|path| path.as_str().to_owned());
            let next = wanted.as_deref().filter(|_| request.method().is_safe());
            let answer = surface.refuse(problem, next);
            Ok(request.into_response(answer))
        }
    }
}
