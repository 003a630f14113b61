//! The route table: every method and path there is, in one list that the server, the OpenAPI document's test and the
//! answers to wrong methods all read.

use std::collections::BTreeMap;

use actix_web::http::Method;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, Route, web};

use super::health;
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
        let resource = routes.into_iter().fold(web::resource(path), |resource, route| resource.route(route));
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
