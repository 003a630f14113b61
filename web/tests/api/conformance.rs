//! Every answer that any of these tests gets is held against the document; here is what the document itself must be.

use orchestra_web::api::document::document;
use serde_json::{Value, json};

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
