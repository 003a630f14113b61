//! The route table: every method and path there is, in one list that the server, the OpenAPI document's test and the
//! answers to wrong methods all read.

use std::collections::BTreeMap;

use actix_web::http::Method;
use actix_web::http::header::{self, HeaderValue};
use actix_web::middleware::from_fn;
use actix_web::{HttpResponse, Route, web};
use orchestra_events::key::Scope;

use super::{budgets, campaigns, docs, events, health, openapi, task_actions, tasks, usage};
use super::once::{Post, at_most_once};
use super::repeat::{Repeat, repeat};
use crate::auth::Caller;
use crate::problem::Problem;

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody, without a key.
    Anyone,
    /// Who holds a key with this scope.
    Scope(Scope),
}

impl Access {
    /// Whether this caller may ask at all.
    pub fn admits(self, caller: &Caller) -> bool {
        match self {
            Self::Anyone => true,
            Self::Scope(scope) => caller.may(scope),
        }
    }
}

/// One method of one path.
pub struct Endpoint {
    /// The method.
    pub method: Method,
    /// The path, with its `{parameters}`.
    pub path: &'static str,
    /// Who may ask.
    pub access: Access,
    /// What becomes of a repeat; `None` fails a test.
    pub repeat: Option<Repeat>,
    /// What answers.
    pub route: Route,
}

/// Every endpoint there is.
pub fn endpoints() -> Vec<Endpoint> {
    let mut table = Vec::new();
    let mut add = |method: Method, path: &'static str, access: Access, route: Route| {
        let repeat = repeat(&method, path);
        let route = route.method(method.clone());
        let route = match repeat {
            Some(Repeat::Claimed { done, show }) => {
                let post = Post { path, access, done, show };
                route.wrap(from_fn(move |request, next| at_most_once(post, request, next)))
            }
            Some(Repeat::Idempotent | Repeat::NamesWhatIsMade) | None => route,
        };
        table.push(Endpoint { method, path, access, repeat, route });
    };
    add(Method::POST, "/v1/tasks", Access::Scope(Scope::TasksCreate), web::route().to(tasks::create));
    add(Method::GET, "/v1/tasks", Access::Scope(Scope::TasksRead), web::route().to(tasks::list));
    add(Method::GET, "/v1/tasks/{id}", Access::Scope(Scope::TasksRead), web::route().to(tasks::get));
    add(Method::GET, "/v1/tasks/{id}/events", Access::Scope(Scope::TasksRead), web::route().to(events::of_task));
    add(
        Method::POST,
        "/v1/tasks/{id}/cancel",
        Access::Scope(Scope::TasksCancel),
        web::route().to(task_actions::cancel),
    );
    add(Method::POST, "/v1/tasks/{id}/retry", Access::Scope(Scope::TasksCreate), web::route().to(task_actions::retry));
    add(
        Method::POST,
        "/v1/tasks/{id}/messages",
        Access::Scope(Scope::TasksCreate),
        web::route().to(task_actions::message),
    );
    add(
        Method::PUT,
        "/v1/tasks/{id}/credentials",
        Access::Scope(Scope::TasksCreate),
        web::route().to(task_actions::credentials),
    );
    add(Method::GET, "/v1/tasks/{id}/diff", Access::Scope(Scope::TasksRead), web::route().to(task_actions::diff));
    add(Method::POST, "/v1/campaigns", Access::Scope(Scope::CampaignsCreate), web::route().to(campaigns::create));
    add(Method::GET, "/v1/campaigns", Access::Scope(Scope::CampaignsRead), web::route().to(campaigns::list));
    add(Method::GET, "/v1/campaigns/{id}", Access::Scope(Scope::CampaignsRead), web::route().to(campaigns::get));
    add(
        Method::POST,
        "/v1/campaigns/{id}/cancel",
        Access::Scope(Scope::CampaignsCancel),
        web::route().to(campaigns::cancel),
    );
    add(
        Method::POST,
        "/v1/campaigns/{id}/retry",
        Access::Scope(Scope::CampaignsCreate),
        web::route().to(campaigns::retry),
    );
    add(
        Method::PUT,
        "/v1/campaigns/{id}/credentials",
        Access::Scope(Scope::CampaignsCreate),
        web::route().to(campaigns::credentials),
    );
    add(Method::GET, "/v1/events", Access::Scope(Scope::AuditRead), web::route().to(events::of_log));
    add(Method::GET, "/v1/budgets", Access::Scope(Scope::BudgetsRead), web::route().to(budgets::list));
    add(Method::GET, "/v1/budgets/{scope}", Access::Scope(Scope::BudgetsRead), web::route().to(budgets::get));
    add(Method::PUT, "/v1/budgets/{scope}", Access::Scope(Scope::BudgetsWrite), web::route().to(budgets::put));
    add(Method::GET, "/v1/usage", Access::Scope(Scope::UsageRead), web::route().to(usage::report));
    add(Method::GET, "/openapi.json", Access::Anyone, web::route().to(openapi::openapi_json));
    add(Method::GET, "/docs", Access::Anyone, web::route().to(docs::index));
    add(Method::GET, "/docs/style.css", Access::Anyone, web::route().to(docs::style));
    add(Method::GET, "/docs/errors/{code}", Access::Anyone, web::route().to(docs::error));
    add(Method::GET, "/healthz", Access::Anyone, web::route().to(health::healthz));
    add(Method::GET, "/readyz", Access::Anyone, web::route().to(health::readyz));
    add(Method::GET, "/metrics", Access::Anyone, web::route().to(health::metrics));
    table
}

/// Hangs every endpoint in; a path asked with another method answers which ones it knows.
pub fn configure(cfg: &mut web::ServiceConfig) {
    let mut paths: BTreeMap<&'static str, (Vec<Method>, Vec<Route>)> = BTreeMap::new();
    for endpoint in endpoints() {
        let (methods, routes) = paths.entry(endpoint.path).or_default();
        methods.push(endpoint.method);
        routes.push(endpoint.route);
    }
    for (path, (methods, routes)) in paths {
        // A scope has slashes of its own.
        let pattern = path.replace("{scope}", "{scope:.+}");
        let resource = routes.into_iter().fold(web::resource(pattern), |resource, route| resource.route(route));
        let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        cfg.service(resource.default_service(web::route().to(move || {
            let allow = allow.clone();
            async move {
                let mut response: HttpResponse = Problem::method_not_allowed(&allow).response();
                if let Ok(value) = HeaderValue::from_str(&allow) {
                    response.headers_mut().insert(header::ALLOW, value);
                }
                response
            }
        })));
    }
}
