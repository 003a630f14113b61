//! Every event's JSON as it was first written: what is in somebody's log stays readable for good.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use super::event::{SCHEMA, WebhookEvent};
use crate::envelope::{Envelope, StreamName};
use crate::id::WebhookId;

/// The `data` of each type, schema 1. A line here is never changed: a new shape is a new schema with an upcaster and
/// a line of its own.
const GOLDEN: &str = include_str!("golden.json");

#[test]
fn every_type_reads_and_writes_what_it_always_did() {
    let golden: BTreeMap<String, Vec<Value>> = serde_json::from_str(GOLDEN).expect("JSON");
    let known: Vec<_> = golden.keys().map(String::as_str).collect();
    let mut kinds = WebhookEvent::KINDS.to_vec();
    kinds.sort_unstable();
    assert_eq!(known, kinds, "golden.json has an example of each type");
    for (kind, examples) in &golden {
        assert!(!examples.is_empty(), "{kind}");
        for data in examples {
            let stream = StreamName::webhook(WebhookId::from_uuid(Uuid::nil()));
            let envelope = Envelope { schema: SCHEMA, ..Envelope::example(stream, kind, data.to_string()) };
            let event = WebhookEvent::decode(&envelope)
                .unwrap_or_else(|error| panic!("{kind} no longer reads: {error}"))
                .unwrap_or_else(|| panic!("{kind} is not known any more"));
            assert_eq!(event.kind(), kind);
            let written: Value = serde_json::from_str(event.data().expect("JSON").get()).expect("JSON");
            assert_eq!(&written, data, "{kind} writes another shape");
        }
    }
}
