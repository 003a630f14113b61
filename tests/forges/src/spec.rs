//! A forge's published OpenAPI description, cut to the operations used, and what it says about one request.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::wire::Request;

/// The description of one forge.
pub(crate) struct Spec {
    operations: Vec<Operation>,
}

struct Operation {
    method: String,
    template: String,
    segments: Vec<String>,
    parameters: Vec<Parameter>,
    body: Option<Body>,
}

struct Parameter {
    name: String,
    place: String,
    required: bool,
    schema: Value,
    validator: jsonschema::Validator,
}

struct Body {
    required: bool,
    /// The fields that the schema knows; `None` when it does not list them.
    fields: Option<Vec<String>>,
    validator: jsonschema::Validator,
}

/// A request that the description knows.
#[derive(Debug, Clone)]
pub struct Call {
    /// `GET`, `POST` …
    pub method: String,
    /// The path with its parameters' names, such as `/repos/{owner}/{repo}`.
    pub template: String,
    /// The parameters in the path, decoded.
    pub params: BTreeMap<String, String>,
    /// The parameters behind the `?`, decoded.
    pub query: BTreeMap<String, String>,
    /// The body, or `Null`.
    pub body: Value,
}

impl Call {
    /// A parameter of the path.
    pub fn param(&self, name: &str) -> &str {
        self.params.get(name).map(String::as_str).unwrap_or_default()
    }

    /// A numeric parameter of the path.
    pub fn number(&self, name: &str) -> u64 {
        self.param(name).parse().unwrap_or_default()
    }

    /// A parameter behind the `?`.
    pub fn asked(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// A text in the body, by JSON pointer.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.body.pointer(pointer)?.as_str()
    }

    /// The texts of a list in the body.
    pub fn texts(&self, pointer: &str) -> Vec<String> {
        let items = self.body.pointer(pointer).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

impl Spec {
    pub(crate) fn parse(text: &str) -> Self {
        let mut document: Value = serde_json::from_str(text).expect("a description is JSON");
        nullable(&mut document);
        let components = document.get("components").cloned().unwrap_or_default();
        // Local references are found from the root of each schema.
        let compile = |schema: &Value| {
            let rooted = json!({ "allOf": [schema], "components": components });
            jsonschema::draft7::new(&rooted).expect("a description's schemas are valid")
        };
        let mut operations = Vec::new();
        for (template, methods) in object(&document["paths"]) {
            for (method, operation) in object(methods) {
                if method == "parameters" {
                    continue;
                }
                let shared = methods.get("parameters").and_then(Value::as_array);
                let own = operation.get("parameters").and_then(Value::as_array);
                let parameters = shared.into_iter().chain(own).flatten().map(|parameter| {
                    let parameter = follow(&document, parameter);
                    let schema = parameter.get("schema").cloned().unwrap_or_else(|| json!({}));
                    Parameter {
                        name: parameter["name"].as_str().expect("a parameter has a name").to_owned(),
                        place: parameter["in"].as_str().expect("a parameter has a place").to_owned(),
                        required: parameter["required"] == true,
                        validator: compile(&schema),
                        schema: follow(&document, &schema).clone(),
                    }
                });
                let body = operation.get("requestBody").map(|body| {
                    let body = follow(&document, body);
                    let schema = &body["content"]["application/json"]["schema"];
                    let mut fields = Vec::new();
                    let listed = list_fields(&document, schema, &mut fields);
                    let fields = listed.then_some(fields);
                    Body { required: body["required"] == true, fields, validator: compile(schema) }
                });
                operations.push(Operation {
                    method: method.to_uppercase(),
                    template: template.clone(),
                    segments: template.split('/').map(str::to_owned).collect(),
                    parameters: parameters.collect(),
                    body,
                });
            }
        }
        Self { operations }
    }

    /// The request as the description sees it, or what is wrong with it. `path` is below the interface's root.
    pub(crate) fn check(&self, request: &Request, path: &str) -> Result<Call, String> {
        let given: Vec<&str> = path.split('/').collect();
        let fits = |operation: &&Operation| {
            operation.method == request.method
                && operation.segments.len() == given.len()
                && operation
                    .segments
                    .iter()
                    .zip(&given)
                    .all(|(segment, given)| segment.starts_with('{') || segment == given)
        };
        // A fixed word is a better fit than a parameter.
        let fixed = |operation: &&Operation| operation.segments.iter().filter(|text| !text.starts_with('{')).count();
        let operation = self.operations.iter().filter(fits).max_by_key(fixed);
        let operation = operation.ok_or_else(|| format!("no operation {} {path}", request.method))?;
        let names = operation.segments.iter().zip(&given).filter_map(|(segment, given)| {
            let name = segment.strip_prefix('{')?.strip_suffix('}')?;
            Some((name.to_owned(), decode(given, false)))
        });
        let query = request.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        });
        let body = match request.body.as_slice() {
            [] => Value::Null,
            bytes => serde_json::from_slice(bytes).map_err(|error| format!("the body is no JSON: {error}"))?,
        };
        let call = Call {
            method: operation.method.clone(),
            template: operation.template.clone(),
            params: names.collect(),
            query: query.collect(),
            body,
        };
        operation.check(&call).map_err(|why| format!("{} {}: {why}", operation.method, operation.template))?;
        Ok(call)
    }
}

impl Operation {
    fn check(&self, call: &Call) -> Result<(), String> {
        for parameter in &self.parameters {
            let given = match parameter.place.as_str() {
                "path" => call.params.get(&parameter.name),
                "query" => call.query.get(&parameter.name),
                _ => continue,
            };
            let Some(given) = given else {
                if parameter.required {
                    return Err(format!("the parameter {} is missing", parameter.name));
                }
                continue;
            };
            let value = typed(&parameter.schema, given);
            parameter.validator.validate(&value).map_err(|error| format!("{} = {given:?}: {error}", parameter.name))?;
        }
        let known = |name: &&String| self.parameters.iter().any(|one| one.place == "query" && one.name == **name);
        if let Some(name) = call.query.keys().find(|name| !known(name)) {
            return Err(format!("there is no parameter {name}"));
        }
        match (&self.body, &call.body) {
            (None, Value::Null) => Ok(()),
            (None, _) => Err("it takes no body".to_owned()),
            (Some(body), Value::Null) if body.required => Err("the body is missing".to_owned()),
            (Some(_), Value::Null) => Ok(()),
            (Some(body), given) => {
                body.validator.validate(given).map_err(|error| format!("{}: {error}", error.instance_path()))?;
                let unknown = |name: &&String| body.fields.as_ref().is_some_and(|fields| !fields.contains(name));
                let given = given.as_object().into_iter().flat_map(Map::keys);
                // The descriptions forbid no further fields; a misspelt one would pass unseen.
                given.clone().find(unknown).map_or(Ok(()), |name| Err(format!("the body has no field {name}")))
            }
        }
    }
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("a description has an object here")
}

fn follow<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).expect("references are local"),
        None => value,
    }
}

/// Collects the fields that a schema of an object knows. Whether it knows any.
fn list_fields(document: &Value, schema: &Value, fields: &mut Vec<String>) -> bool {
    let schema = follow(document, schema);
    let parts = ["allOf", "oneOf", "anyOf"].iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    let mut listed = false;
    for part in parts {
        listed |= list_fields(document, part, fields);
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        fields.extend(properties.keys().cloned());
        listed = true;
    }
    listed
}

/// OpenAPI 3.0 says `nullable` where JSON Schema says one more type.
fn nullable(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(nullable),
        Value::Object(map) => {
            map.values_mut().for_each(nullable);
            if map.get("nullable") == Some(&Value::Bool(true)) {
                if let Some(Value::String(kind)) = map.get("type").cloned() {
                    map.insert("type".to_owned(), json!([kind, "null"]));
                }
                if let Some(Value::Array(choices)) = map.get_mut("enum") {
                    choices.push(Value::Null);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A parameter's text as the value that its schema speaks of.
fn typed(schema: &Value, text: &str) -> Value {
    let number = || text.parse::<i64>().map(Value::from).ok();
    let kinds = schema.get("oneOf").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![schema.clone()]);
    let is = |kind: &str| kinds.iter().any(|schema| schema["type"] == kind);
    let value = match () {
        () if is("integer") || is("number") => number(),
        () if is("boolean") => text.parse::<bool>().map(Value::from).ok(),
        () if is("array") => Some(text.split(',').map(Value::from).collect()),
        () => None,
    };
    value.unwrap_or_else(|| Value::from(text))
}

/// Percent-encoding undone; in queries `+` is a blank.
fn decode(text: &str, query: bool) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|digits| std::str::from_utf8(digits).ok());
        match hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if query && *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, query: &str, body: &Value) -> Request {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        Request { method: method.to_owned(), path: String::new(), query: query.to_owned(), headers: Vec::new(), body }
    }

    #[test]
    fn what_the_description_does_not_know_is_a_violation() {
        let spec = Spec::parse(include_str!("../specs/github.json"));
        let pulls = "/repos/acme/api/pulls";
        let good = json!({"title": "t", "head": "x", "base": "main", "draft": true});
        let call = spec.check(&request("POST", "", &good), pulls).expect("a good request");
        assert_eq!((call.template.as_str(), call.param("owner")), ("/repos/{owner}/{repo}/pulls", "acme"));
        for (method, query, body, path) in [
            ("POST", "", json!({"title": "t", "head": "x"}), pulls),
            ("POST", "", json!({"head": "x", "base": "main", "draft": "yes"}), pulls),
            ("POST", "", json!({"head": "x", "base": "main", "drft": true}), pulls),
            ("POST", "", Value::Null, pulls),
            ("GET", "state=bogus", Value::Null, pulls),
            ("GET", "stat=open", Value::Null, pulls),
            ("DELETE", "", Value::Null, pulls),
            ("GET", "", Value::Null, "/repos/acme/api/pulls/seven"),
            ("GET", "", Value::Null, "/repos/acme/api/nothing"),
        ] {
            assert!(spec.check(&request(method, query, &body), path).is_err(), "{method} {path}?{query} {body}");
        }
        let call = spec.check(&request("GET", "head=acme%3Aa%2Fb+c", &Value::Null), pulls).expect("a good request");
        assert_eq!(call.asked("head"), Some("acme:a/b c"));
    }
}
