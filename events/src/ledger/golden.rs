//! Every event's JSON as it was first written: what is in somebody's log stays readable for good.

use std::collections::BTreeMap;

use serde_json::Value;

use super::event::{LedgerEvent, SCHEMA};
use crate::envelope::{Envelope, StreamName};

/// The `data` of each type, schema 1. A line here is never changed: a new shape is a new schema with an upcaster and
/// a line of its own.
const GOLDEN: &str = include_str!("golden.json");

fn envelope(kind: &str, data: &Value) -> Envelope {
    let stream = StreamName::ledger("platform").expect("a team");
    Envelope { schema: SCHEMA, ..Envelope::example(stream, kind, data.to_string()) }
}

#[test]
fn every_type_reads_and_writes_what_it_always_did() {
    let golden: BTreeMap<String, Vec<Value>> = serde_json::from_str(GOLDEN).expect("JSON");
    let known: Vec<_> = golden.keys().map(String::as_str).collect();
    let mut kinds = LedgerEvent::KINDS.to_vec();
    kinds.sort_unstable();
    assert_eq!(known, kinds);
    for (kind, examples) in &golden {
        assert!(!examples.is_empty(), "{kind}");
        for data in examples {
            let event = LedgerEvent::decode(&envelope(kind, data))
                .unwrap_or_else(|error| panic!("{kind} no longer reads: {error}"))
                .unwrap_or_else(|| panic!("{kind} is not known any more"));
            assert_eq!(event.kind(), kind);
            let written: Value = serde_json::from_str(event.data().expect("JSON").get()).expect("JSON");
            assert_eq!(&written, data, "{kind} writes another shape");
        }
    }
}

#[test]
fn fields_that_came_later_may_be_absent_and_unknown_ones_are_passed_over() {
    let data = serde_json::json!({"call": "call_00000000000000000000000009", "from": "a later version"});
    assert!(matches!(LedgerEvent::decode(&envelope("released", &data)), Ok(Some(LedgerEvent::Released(_)))));
    assert!(matches!(LedgerEvent::decode(&envelope("from-the-future", &data)), Ok(None)));
    assert!(LedgerEvent::decode(&envelope("trimmed", &data)).is_err());
}
