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
use crate::routes::{Access, Endpoint, Surface, is_narrowed};

/// The route of a row, with the guard in front of it.
pub fn guarded(endpoint: Endpoint) -> Route {
    let Endpoint { access, surface, route, path, .. } = endpoint;
    let asks = Asks { access, narrowed: is_narrowed(path) };
    route.wrap(from_fn(move |request, next| guard(asks, surface, request, next)))
}

/// What a row asks of its callers.
#[derive(Clone, Copy)]
struct Asks {
    access: Access,
    /// The handler holds its answer to the bounds of a key; where it does not, a key with bounds is not let in.
    narrowed: bool,
}

/// Who is calling and may, or why nobody does. `None`: nobody was asked.
fn admit(asks: Asks, request: &ServiceRequest) -> Result<Option<Caller>, Problem> {
    let caller = match asks.access {
        Access::Anyone => return Ok(None),
        Access::Known | Access::Scope(_) => identify(request.request())?,
    };
    if let Access::Scope(scope) = asks.access {
        caller.require(scope)?;
        if !asks.narrowed {
            caller.require_whole_team("This")?;
        }
    }
    Ok(Some(caller))
}

async fn guard(
    asks: Asks,
    surface: Surface,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match admit(asks, &request) {
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
