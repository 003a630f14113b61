//! Holds an answer against the document of the interface: status, media type, headers, codes, shape.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use jsonschema::Validator;
use orchestra_web::api::document::document;
use serde_json::Value;

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
pub fn check<'h>((method, path): (&str, &str), status: u16, header: impl Fn(&str) -> Option<&'h str>, body: &[u8]) {
    let Some(template) = template(path) else { return };
    let operation = &document()["paths"][template][method.to_ascii_lowercase()];
    if !operation.is_object() {
        return;
    }
    let (status, text) = (status.to_string(), String::from_utf8_lossy(body));
    let about = format!("{method} {template} {status}");
    let response = &operation["responses"][&status];
    assert!(response.is_object(), "{about} is not described: {text}");
    for (name, _) in response["headers"].as_object().into_iter().flatten() {
        let name = name.to_ascii_lowercase();
        let optional = name.starts_with("ratelimit-")
            || matches!(&*name, "idempotency-replayed" | "retry-after" | "www-authenticate");
        assert!(optional || header(&name).is_some(), "{about} lacks {name}");
    }
    let Some(content) = response["content"].as_object() else {
        assert!(body.is_empty(), "{about} has a body that is not described");
        return;
    };
    let media_type = header("content-type").unwrap_or_default().split(';').next().unwrap_or_default().to_owned();
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
    let json: Value = serde_json::from_slice(body).unwrap_or_else(|error| panic!("{about}: {error}: {text}"));
    let faults: Vec<_> =
        validator.iter_errors(&json).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    assert!(faults.is_empty(), "{about}: {faults:#?} in {json:#}");
}
