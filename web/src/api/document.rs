//! The OpenAPI document as it is served and committed: what the handlers say of themselves, and what the route table
//! and the list of codes say of all of them.
//!
//! What is true of every operation is written here once: who may ask, what an `Idempotency-Key` does, and with which
//! codes each status can come. A handler names the statuses that are its own.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use actix_web::http::Method;
use orchestra_events::FailureCode;
use serde_json::{Map, Value, json};
use utoipa::OpenApi as _;

use super::endpoints::{Access, Endpoint, endpoints};
use super::openapi::Document;
use super::repeat::{Repeat, repeat};
use super::tasks::MAX_IDEMPOTENCY_KEY;
use crate::problem::Code;

/// The document. What it is made of does not change while a server runs.
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(whole);
    &DOCUMENT
}

/// What any request with a key can be answered with.
const WITH_KEY: [Code; 5] =
    [Code::Unauthenticated, Code::RateLimited, Code::Overloaded, Code::Lagging, Code::InternalError];
/// What can be wrong with a body before anybody reads its fields.
const WITH_BODY: [Code; 5] =
    [Code::InvalidJson, Code::UnsupportedMediaType, Code::BodyTooLarge, Code::BodyIncomplete, Code::InvalidRequest];
/// What a name for a request adds.
const WITH_NAME: [Code; 6] = [
    Code::IdempotencyKeyReused,
    Code::RequestInProgress,
    Code::InvalidRequest,
    Code::BodyTooLarge,
    Code::BodyIncomplete,
    Code::Conflict,
];

/// The codes that a handler means by a status that it names.
fn named(status: &str) -> &'static [Code] {
    match status {
        "400" => &[Code::InvalidQuery],
        "402" => &[Code::BudgetExceeded],
        "403" => &[Code::Forbidden],
        "404" => &[Code::NotFound],
        "409" => &[Code::Conflict],
        "422" => &[Code::InvalidRequest],
        "429" => &[Code::TooManyTasks],
        "503" => &[Code::Overloaded, Code::Lagging],
        _ => &[],
    }
}

fn codes(endpoint: &Endpoint, operation: &Value) -> Vec<Code> {
    let mut codes = Vec::new();
    let has = |kind: &str| {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        parameters.filter(|parameter| parameter["in"] == kind).count() > 0
    };
    let responses = operation["responses"].as_object().into_iter().flatten();
    codes.extend(responses.flat_map(|(status, _)| named(status)));
    match endpoint.access {
        // Nobody is asked, but the store is: everything else of these is constant.
        Access::Anyone if matches!(endpoint.path, "/readyz" | "/metrics") => {
            codes.extend([Code::Overloaded, Code::InternalError]);
        }
        Access::Anyone => {}
        Access::Known | Access::Scope(_) => {
            codes.extend(WITH_KEY);
            codes.extend([Code::Forbidden, Code::AddressNotAllowed]);
            if !endpoint.method.is_safe() {
                codes.push(Code::CrossSiteRequest);
            }
        }
    }
    if has("path") {
        codes.push(Code::NotFound);
    }
    if endpoint.path.starts_with("/v1/") && endpoint.method == Method::GET {
        codes.push(Code::InvalidQuery);
    }
    if operation.get("requestBody").is_some() {
        codes.extend(WITH_BODY);
    }
    match repeat(&endpoint.method, endpoint.path) {
        Some(Repeat::Claimed { .. }) => codes.extend(WITH_NAME),
        Some(Repeat::NamesWhatIsMade) => codes.push(Code::IdempotencyKeyReused),
        Some(Repeat::Idempotent) | None => {}
    }
    codes.sort_unstable_by_key(|code| (code.status().as_u16(), code.as_str()));
    codes.dedup();
    codes
}

fn header(description: &str, schema: Value) -> Value {
    json!({"description": description, "schema": schema})
}

/// The answer with these codes, all of one status.
fn refusal(status: u16, codes: &[Code], said: Option<&str>) -> Value {
    let names: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
    let titles: Vec<_> = codes.iter().map(|code| format!("`{}`: {}", code.as_str(), code.title())).collect();
    let description = said.map_or_else(|| titles.join("; "), |said| format!("{said} ({})", titles.join("; ")));
    let mut headers = Map::new();
    if codes.iter().any(|code| code.retry_after()) {
        let text = "Seconds after which to try again";
        headers.insert("Retry-After".to_owned(), header(text, json!({"type": "integer", "minimum": 0})));
    }
    if codes.contains(&Code::Unauthenticated) {
        let text = "How to show who is calling";
        headers.insert("WWW-Authenticate".to_owned(), header(text, json!({"type": "string"})));
    }
    let schema = json!({"allOf": [
        {"$ref": "#/components/schemas/Problem"},
        {"type": "object", "properties": {
            "status": {"type": "integer", "enum": [status]},
            "code": {"type": "string", "enum": names},
        }},
    ]});
    let mut response = json!({
        "description": description, "content": {"application/problem+json": {"schema": schema}},
    });
    if !headers.is_empty() {
        response["headers"] = Value::Object(headers);
    }
    response
}

/// What all operations have in common, for one of them.
fn complete(endpoint: &Endpoint, operation: &mut Value) {
    match endpoint.access {
        Access::Anyone => operation["security"] = json!([]),
        Access::Known => operation["security"] = json!([{"key": []}]),
        Access::Scope(scope) => {
            operation["security"] = json!([{"key": [scope.as_str()]}]);
            operation["x-required-scope"] = json!(scope.as_str());
        }
    }
    let codes = codes(endpoint, operation);
    let mut of_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        of_status.entry(code.status().as_u16()).or_default().push(code);
    }
    for (status, codes) in of_status {
        let key = status.to_string();
        let said = operation["responses"][&key]["description"].as_str().map(str::to_owned);
        operation["responses"][&key] = refusal(status, &codes, said.as_deref());
    }
    if matches!(repeat(&endpoint.method, endpoint.path), Some(Repeat::NamesWhatIsMade | Repeat::Claimed { .. })) {
        name_of_request(endpoint, operation);
    }
    if endpoint.access != Access::Anyone {
        rate_limits(operation);
    }
}

/// The fields by which a caller sees how often it may ask.
fn rate_limits(operation: &mut Value) {
    let fields = [
        ("RateLimit-Limit", "Requests that may be made at once", "integer"),
        ("RateLimit-Remaining", "How many of them are left", "integer"),
        ("RateLimit-Reset", "Seconds after which all of them are left again", "integer"),
        ("RateLimit-Policy", "Requests in a window of seconds, `60;w=60`", "string"),
    ];
    for (_, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        for (name, description, kind) in fields {
            response["headers"][name] = header(description, json!({"type": kind}));
        }
    }
}

/// The header by which a POST is done once.
fn name_of_request(endpoint: &Endpoint, operation: &mut Value) {
    if !operation["parameters"].is_array() {
        operation["parameters"] = json!([]);
    }
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.retain(|parameter| parameter["name"] != "Idempotency-Key");
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "A name for this request, unique among the caller's: a repeat with the same name and body does \
                nothing new and is answered with what stands, for as long as the log is kept. The same name with another \
                body is refused. What was refused may be tried again under its name.",
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY, "pattern": "^[!-~]([ -~]*[!-~])?$"},
        }));
    }
    if let Some(Repeat::Claimed { .. }) = repeat(&endpoint.method, endpoint.path)
        && let Some(responses) = operation["responses"].as_object_mut()
    {
        for (_, response) in responses.iter_mut().filter(|(status, _)| status.starts_with('2')) {
            response["headers"]["Idempotency-Replayed"] =
                header("`true` where this answers a repeat", json!({"type": "string", "enum": ["true"]}));
        }
    }
}

fn whole() -> Value {
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    let schemas = &mut document["components"]["schemas"];
    let all: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    schemas["ProblemCode"] = json!({
        "type": "string", "enum": all, "description": "The stable codes of refusals. Each has a page at `/docs/errors/`.",
    });
    schemas["Problem"]["properties"]["code"] = json!({"$ref": "#/components/schemas/ProblemCode"});
    let all: Vec<_> = FailureCode::ALL.iter().map(|code| code.as_str()).collect();
    schemas["FailureCode"] = json!({
        "type": "string", "enum": all,
        "description": "The stable codes of tasks that failed. Each has a page at `/docs/errors/`.",
    });
    schemas["FailureView"]["properties"]["code"] = json!({"$ref": "#/components/schemas/FailureCode"});
    for endpoint in endpoints() {
        let method = endpoint.method.as_str().to_ascii_lowercase();
        if let Some(operation) = document["paths"].get_mut(endpoint.path).and_then(|path| path.get_mut(&method)) {
            complete(&endpoint, operation);
        }
    }
    document
}
