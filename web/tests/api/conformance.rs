//! Every answer that any of these tests gets is held against the document: status, media type, headers, codes, shape.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use actix_web::http::Method;
use jsonschema::Validator;
use orchestra_web::api::document::document;
use serde_json::{Value, json};

use crate::harness::Answer;

static VALIDATORS: LazyLock<Mutex<HashMap<String, &'static Validator>>> = LazyLock::new(Mutex::default);

/// The path of the document that this one is an example of. A name goes before a parameter, and a scope has slashes.
fn template(path: &str) -> Option<&'static str> {
    let parts: Vec<_> = path.split('/').collect();
    let fits = |template: &str| {
        let wanted: Vec<_> = template.split('/').collect();
        let same = |(wanted, part): (&&str, &&str)| wanted.starts_with('{') && !part.is_empty() || wanted == part;
        let long = wanted.last() == Some(&"{scope}") && parts.len() >= wanted.len();
        (long || wanted.len() == parts.len()) && wanted.iter().zip(&parts).all(same)
    };
    let paths = document()["paths"].as_object().expect("paths").keys();
    paths.map(String::as_str).filter(|template| fits(template)).min_by_key(|template| template.matches('{').count())
}

/// Fails where the answer is not as described. Paths and methods that are not described are not looked at: what they
/// answer is the same for all of them.
pub fn check(method: &Method, path: &str, answer: &Answer) {
    let Some(template) = template(path) else { return };
    let operation = &document()["paths"][template][method.as_str().to_ascii_lowercase()];
    if !operation.is_object() {
        return;
    }
    let status = answer.status.as_u16().to_string();
    let about = format!("{method} {template} {status}");
    let response = &operation["responses"][&status];
    assert!(response.is_object(), "{about} is not described: {}", answer.text());
    for (name, _) in response["headers"].as_object().into_iter().flatten() {
        let name = name.to_ascii_lowercase();
        let optional = name.starts_with("ratelimit-")
            || matches!(&*name, "idempotency-replayed" | "retry-after" | "www-authenticate");
        assert!(optional || answer.header(&name).is_some(), "{about} lacks {name}");
    }
    let Some(content) = response["content"].as_object() else {
        assert!(answer.body.is_empty(), "{about} has a body that is not described");
        return;
    };
    let media_type = answer.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default().to_owned();
    let media = content.get(&media_type).unwrap_or_else(|| panic!("{about} is {media_type:?}"));
    if !media_type.ends_with("json") || media_type.ends_with("x-ndjson") {
        return;
    }
    let key = format!("{about} {media_type}");
    let known = VALIDATORS.lock().expect("no panic while held").get(&key).copied();
    let validator = known.unwrap_or_else(|| {
        let mut schema = media["schema"].clone();
        schema["components"] = document()["components"].clone();
        let validator: &'static _ = Box::leak(Box::new(jsonschema::validator_for(&schema).expect("a schema")));
        VALIDATORS.lock().expect("no panic while held").insert(key, validator);
        validator
    });
    let json = answer.json();
    let faults: Vec<_> =
        validator.iter_errors(&json).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    assert!(faults.is_empty(), "{about}: {faults:#?} in {json:#}");
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(document(), &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("within the document");
        assert!(document().pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}

#[test]
fn every_operation_has_a_name_of_its_own_and_says_who_may_ask() {
    let mut names = std::collections::BTreeSet::new();
    for (path, methods) in document()["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let name = operation["operationId"].as_str().expect("an operationId");
            assert!(names.insert(name), "{name} is used twice");
            assert!(operation["security"].is_array(), "{method} {path}");
            assert_eq!(operation["security"] == json!([]), operation["x-required-scope"].is_null(), "{method} {path}");
            let template: Vec<_> = path.split('{').skip(1).filter_map(|part| part.split('}').next()).collect();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let mut described: Vec<_> = parameters.iter().filter(|one| one["in"] == "path").collect();
            described
                .retain(|one| one["required"] == true && template.contains(&one["name"].as_str().expect("a name")));
            assert_eq!(described.len(), template.len(), "{method} {path} does not describe its path");
        }
    }
}
