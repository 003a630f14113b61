//! The route table: every method and path there is, in one list that the server, the OpenAPI document's test and the
//! answers to wrong methods all read.

use std::collections::BTreeMap;

use actix_web::http::Method;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, Route, web};

use super::{budgets, campaigns, docs, events, health, openapi, task_actions, tasks, usage};
use crate::problem::Problem;

/// One method of one path.
pub struct Endpoint {
    /// The method.
    pub method: Method,
    /// The path, with its `{parameters}`.
    pub path: &'static str,
    /// What answers.
    pub route: Route,
}

/// Every endpoint there is.
pub fn endpoints() -> Vec<Endpoint> {
    let mut table = Vec::new();
    let mut add = |method: Method, path: &'static str, route: Route| {
        table.push(Endpoint { method: method.clone(), path, route: route.method(method) });
    };
    add(Method::POST, "/v1/tasks", web::route().to(tasks::create));
    add(Method::GET, "/v1/tasks", web::route().to(tasks::list));
    add(Method::GET, "/v1/tasks/{id}", web::route().to(tasks::get));
    add(Method::GET, "/v1/tasks/{id}/events", web::route().to(events::of_task));
    add(Method::POST, "/v1/tasks/{id}/cancel", web::route().to(task_actions::cancel));
    add(Method::POST, "/v1/tasks/{id}/retry", web::route().to(task_actions::retry));
    add(Method::POST, "/v1/tasks/{id}/messages", web::route().to(task_actions::message));
    add(Method::PUT, "/v1/tasks/{id}/credentials", web::route().to(task_actions::credentials));
    add(Method::GET, "/v1/tasks/{id}/diff", web::route().to(task_actions::diff));
    add(Method::POST, "/v1/campaigns", web::route().to(campaigns::create));
    add(Method::GET, "/v1/campaigns", web::route().to(campaigns::list));
    add(Method::GET, "/v1/campaigns/{id}", web::route().to(campaigns::get));
    add(Method::POST, "/v1/campaigns/{id}/cancel", web::route().to(campaigns::cancel));
    add(Method::POST, "/v1/campaigns/{id}/retry", web::route().to(campaigns::retry));
    add(Method::PUT, "/v1/campaigns/{id}/credentials", web::route().to(campaigns::credentials));
    add(Method::GET, "/v1/events", web::route().to(events::of_log));
    add(Method::GET, "/v1/budgets", web::route().to(budgets::list));
    add(Method::GET, "/v1/budgets/{scope}", web::route().to(budgets::get));
    add(Method::PUT, "/v1/budgets/{scope}", web::route().to(budgets::put));
    add(Method::GET, "/v1/usage", web::route().to(usage::report));
    add(Method::GET, "/openapi.json", web::route().to(openapi::openapi_json));
    add(Method::GET, "/docs", web::route().to(docs::index));
    add(Method::GET, "/docs/style.css", web::route().to(docs::style));
    add(Method::GET, "/docs/errors/{code}", web::route().to(docs::error));
    add(Method::GET, "/healthz", web::route().to(health::healthz));
    add(Method::GET, "/readyz", web::route().to(health::readyz));
    add(Method::GET, "/metrics", web::route().to(health::metrics));
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
