//! How a route is hung in: a row of a table says who may ask, and the guard stands in front of the handler.
//!
//! Architecture invariant: [`hang`] is the only place that gives a path a handler, and it takes rows alone. The guard is
//! part of the route itself, so what was matched decides who may ask; there is no second look at the path that could see
//! another one (an encoded slash, a doubled one, another method).

use std::collections::BTreeMap;

use actix_web::http::Method;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError as _, Route, web};
use orchestra_events::key::Scope;

use crate::auth::guard::guarded;
use crate::pages::{PageError, actions};
use crate::problem::{Code, Problem};

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody, without a key.
    Anyone,
    /// Whoever shows who they are, with whatever scopes.
    Known,
    /// Who holds a key with this scope.
    Scope(Scope),
}

/// Who reads the answer, and so in which form a refusal is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// A program: problem details.
    Api,
    /// A person: a page, or the way to the sign-in page.
    Page,
    /// A page's own live stream: a page's refusal, but never a redirect, which would be taken for a stream and tried again
    /// for ever.
    Stream,
}

impl Surface {
    /// A refusal in its form. `next`: the path that the visitor wanted to see.
    pub fn refuse(self, problem: Problem, next: Option<&str>) -> HttpResponse {
        match self {
            Self::Api => problem.response(),
            Self::Page if problem.code == Code::Unauthenticated => {
                PageError::SignIn { next: next.unwrap_or("/tasks").to_owned() }.error_response()
            }
            Self::Page | Self::Stream => PageError::from(problem).error_response(),
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
    /// Who reads the answer.
    pub surface: Surface,
    /// What answers.
    pub route: Route,
}

/// What holds its answers to the bounds of a key: to those of its projects, its repositories and so on. Whatever is not
/// here, a key with such a bound is refused, so that a new route shows nobody more than is theirs.
const NARROWED: [&str; 14] = [
    "/v1/tasks",
    "/v1/campaigns",
    "/v1/budgets",
    "/v1/usage",
    // Narrowed to a task, or refused.
    "/v1/events",
    // A key hands on no more than it has.
    "/v1/keys",
    "/keys",
    // A key sees and makes those that are told nothing outside its projects and environments.
    "/v1/webhooks",
    "/webhooks",
    "/tasks",
    "/live/tasks",
    "/campaigns",
    "/live/campaigns",
    "/budgets",
];

/// Whether the answers of a path are held to the bounds of a key.
pub fn is_narrowed(path: &str) -> bool {
    let within = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    // The front page is the list of tasks.
    path == "/" || NARROWED.into_iter().any(within)
}

/// Every route there is: those of the interface and those of the dashboard.
pub fn table() -> Vec<Endpoint> {
    let mut table = crate::api::endpoints::endpoints();
    table.extend(crate::pages::routes::pages());
    table
}

/// The methods and routes of one path.
struct Path {
    surface: Surface,
    methods: Vec<Method>,
    routes: Vec<Route>,
}

/// Hangs the rows in; a path asked with another method answers which ones it knows.
pub fn hang(cfg: &mut web::ServiceConfig, table: Vec<Endpoint>) {
    // In the order of the texts a name comes before a `{parameter}` in the same place, so that it is matched first.
    let mut paths: BTreeMap<&'static str, Path> = BTreeMap::new();
    for endpoint in table {
        let empty = || Path { surface: endpoint.surface, methods: Vec::new(), routes: Vec::new() };
        let path = paths.entry(endpoint.path).or_insert_with(empty);
        path.methods.push(endpoint.method.clone());
        path.routes.push(guarded(endpoint));
    }
    for (path, Path { surface, methods, routes }) in paths {
        // A scope has slashes of its own.
        let pattern = path.replace("{scope}", "{scope:.+}");
        let mut resource = routes.into_iter().fold(web::resource(pattern), |resource, route| resource.route(route));
        if surface != Surface::Api {
            resource = with_page_errors(resource);
        }
        let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        cfg.service(resource.default_service(web::route().to(move || {
            let allow = allow.clone();
            async move {
                let mut response = surface.refuse(Problem::method_not_allowed(&allow), None);
                if let Ok(value) = HeaderValue::from_str(&allow) {
                    response.headers_mut().insert(header::ALLOW, value);
                }
                response
            }
        })));
    }
}

/// What does not read in a form, a query or a path is told as a page.
fn with_page_errors(resource: actix_web::Resource) -> actix_web::Resource {
    let form = web::FormConfig::default().limit(actions::MAX_FORM).error_handler(|error, _| {
        let detail = format!("The form did not arrive whole: {error}. Go back and send it again.");
        PageError::from(Problem::new(Code::BodyIncomplete, detail)).into()
    });
    let query = web::QueryConfig::default().error_handler(|_, _| PageError::not_found().into());
    let path = web::PathConfig::default().error_handler(|_, _| PageError::not_found().into());
    resource.app_data(form).app_data(query).app_data(path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_method_of_every_path_stands_in_one_table_once() {
        let mut seen = BTreeSet::new();
        for endpoint in table() {
            assert!(seen.insert((endpoint.path, endpoint.method.to_string())), "{} {}", endpoint.method, endpoint.path);
            let private = endpoint.path.starts_with("/v1/") && endpoint.surface == Surface::Api;
            assert!(!private || matches!(endpoint.access, Access::Scope(_)), "{} asks nobody", endpoint.path);
        }
    }

    fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.display().to_string(), std::fs::read_to_string(&path).expect("a source")));
            }
        }
    }

    #[test]
    fn nothing_is_hung_in_beside_the_tables() {
        let mut found = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        assert!(found.len() > 50, "the sources are elsewhere");
        for (file, text) in found {
            // `lib.rs` opens the outermost scope, which holds no handler of its own.
            let ways: &[&str] = match file.rsplit("/src/").next() {
                Some("routes.rs") => &[],
                Some("lib.rs") => &["web::resource(", ".route("],
                _ => &["web::resource(", ".service(", "cfg.route(", "#[get(", "#[post(", "#[put(", "#[delete("],
            };
            for way in ways {
                assert!(!text.contains(way), "{file} hangs something in with {way}");
            }
        }
    }
}
