//! Every event's JSON as it was first written: what is in somebody's log stays readable for good.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use super::event::{CampaignEvent, SCHEMA};
use crate::envelope::{Envelope, StreamName};
use crate::id::CampaignId;

/// The `data` of each type, schema 1. A line here is never changed: a new shape is a new schema with an upcaster and
/// a line of its own.
const GOLDEN: &str = include_str!("golden.json");

fn envelope(kind: &str, data: &Value) -> Envelope {
    let stream = StreamName::campaign(CampaignId::from_uuid(Uuid::nil()));
    Envelope { schema: SCHEMA, ..Envelope::example(stream, kind, data.to_string()) }
}

#[test]
fn every_type_reads_and_writes_what_it_always_did() {
    let golden: BTreeMap<String, Vec<Value>> = serde_json::from_str(GOLDEN).expect("JSON");
    let mut missing: Vec<_> = CampaignEvent::KINDS.iter().filter(|kind| !golden.contains_key(**kind)).collect();
    missing.sort_unstable();
    assert!(missing.is_empty(), "golden.json has no example of {missing:?}");
    for (kind, examples) in &golden {
        assert!(!examples.is_empty(), "{kind}");
        for data in examples {
            let event = CampaignEvent::decode(&envelope(kind, data))
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
    let data = serde_json::json!({"from": "a later version"});
    let event = CampaignEvent::decode(&envelope("campaign-cancelled", &data)).expect("it reads");
    assert_eq!(event, Some(CampaignEvent::CampaignCancelled { reason: None }));
    assert_eq!(CampaignEvent::decode(&envelope("from-the-future", &data)).expect("it is kept"), None);
}
