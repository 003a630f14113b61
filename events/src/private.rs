//! Which fields of events hold words, and how an event's data is split into what stays and what may be forgotten.
//!
//! Words are what people, models, tools and repositories say: prompts, messages, inputs and outputs, branch names made of them,
//! and the sentences of failures, which quote them. What stays is what the audit and the bills need: who, when,
//! where, which model, how much, with which outcome.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::envelope::Private;
use crate::failure::FailureCode;
use crate::json::Json;
use crate::store::sealed::Members;

/// What stands where words were.
pub const ERASED: &str = "[erased]";

/// A field that holds words.
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What stands there when they are erased.
    pub left: Left,
}

/// What stands in the place of erased words: of the same type, so that it reads as before.
pub enum Left {
    /// Nothing: the field may be absent.
    Nothing,
    /// A text that says so.
    Note,
    /// An empty object.
    Object,
    /// An agent's turn that says so.
    Turn,
    /// The name of no blob.
    NoBlob,
    /// The failure with its code, its cap and whether it may be tried again; its sentences say so, or what always
    /// holds for the code.
    Failure,
    /// The repositories, without their branches.
    Repos,
    /// A task's request, without the words in it.
    Request,
}

impl Left {
    fn of(&self, value: &RawValue) -> Result<Option<Value>, serde_json::Error> {
        let read = || serde_json::from_str::<Value>(value.get());
        Ok(Some(match self {
            Self::Nothing => return Ok(None),
            Self::Note => ERASED.into(),
            Self::Object => Value::Object(Map::new()),
            Self::Turn => json!([{"type": "text", "text": ERASED}]),
            Self::NoBlob => json!({"sha256": "", "bytes": 0}),
            Self::Failure => {
                let mut failure = read()?;
                if let Value::Object(parts) = &mut failure {
                    let code = parts.get("code").cloned().unwrap_or_default();
                    let hint = serde_json::from_value(code).map_or(ERASED, FailureCode::hint);
                    parts.insert("message".to_owned(), ERASED.into());
                    parts.insert("hint".to_owned(), hint.into());
                }
                failure
            }
            Self::Repos => {
                let mut repos = read()?;
                for repo in repos.as_array_mut().into_iter().flatten() {
                    if let Value::Object(parts) = repo {
                        parts.insert("branch".to_owned(), ERASED.into());
                    }
                }
                repos
            }
            Self::Request => match split(value, crate::task::private::REQUEST, [0; 32])? {
                Some((left, _)) => serde_json::from_str(left.get())?,
                None => read()?,
            },
        }))
    }
}

/// The data of an event as it is appended: what stays, and what may be forgotten. The salt has to be random, and new for
/// each event.
pub(crate) fn parts(
    data: Box<RawValue>,
    fields: &[Field],
    salt: [u8; 32],
) -> Result<(Box<RawValue>, Option<Private>), serde_json::Error> {
    Ok(match split(&data, fields, salt)? {
        Some((public, private)) => (public, Some(private)),
        None => (data, None),
    })
}

/// Splits an object. `None`: it has none of the fields.
fn split(
    data: &RawValue,
    fields: &[Field],
    salt: [u8; 32],
) -> Result<Option<(Box<RawValue>, Private)>, serde_json::Error> {
    if fields.is_empty() {
        return Ok(None);
    }
    let Members(members) = serde_json::from_str(data.get())?;
    let field = |name: &str| fields.iter().find(|field| field.name == name);
    let (mut stays, mut left, mut replaced, mut dropped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, value) in &members {
        let member = |value: &str| format!("{}:{value}", Value::from(name.as_str()));
        match field(name).map(|field| field.left.of(value)).transpose()? {
            None => stays.push(member(value.get())),
            Some(None) => dropped.push(member(value.get())),
            Some(Some(note)) => {
                left.push(member(&note.to_string()));
                replaced.push(member(value.get()));
            }
        }
    }
    if replaced.is_empty() && dropped.is_empty() {
        return Ok(None);
    }
    // Placeholders last in the one and their words first in the other: so readers can join the two without a parse.
    let object = |first: Vec<String>, then: Vec<String>| format!("{{{}}}", [first, then].concat().join(","));
    let public = RawValue::from_string(object(stays, left))?;
    let content = Json::stored(object(replaced, dropped));
    Ok(Some((public, Private { salt, content })))
}

/// A value without its words: what stays of it in the log.
pub(crate) fn without_words<T: Serialize + DeserializeOwned>(
    value: &T,
    fields: &[Field],
) -> Result<T, serde_json::Error> {
    let (left, _) = parts(serde_json::value::to_raw_value(value)?, fields, [0; 32])?;
    serde_json::from_str(left.get())
}

/// The fields that hold words, of every type of event.
pub(crate) type Table = [(&'static str, &'static [Field])];

/// The fields of one type. A type that is not in the table has none; that every type is in it is tested.
pub(crate) fn fields(table: &'static Table, kind: &str) -> &'static [Field] {
    table.iter().find(|(name, _)| *name == kind).map_or(&[], |(_, fields)| fields)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::store::conformance::event;
    use crate::store::sealed::{is_laid_out, joined};
    use crate::{Envelope, NewEvent};

    /// The golden examples of each type.
    pub type Golden = BTreeMap<String, Vec<Value>>;

    /// That the table names every type once and no field that there is no example of; that each example comes
    /// together again as it was, and can be read without its words.
    pub fn holds(kinds: &[&str], table: &'static Table, golden: &str, reads: impl Fn(&str, &str)) {
        let golden: Golden = serde_json::from_str(golden).unwrap();
        let named: Vec<_> = table.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(named, kinds, "every type has its line in the table, also one without words");
        for (kind, fields) in table {
            for field in *fields {
                let shown = golden[*kind].iter().any(|example| example.get(field.name).is_some());
                assert!(shown, "golden.json has no {kind} with {}", field.name);
            }
            let mut marks = 0;
            for example in &golden[*kind] {
                let mut marked = example.clone();
                let words: usize = fields.iter().map(|field| marked.get_mut(field.name).map_or(0, mark)).sum();
                for data in [example, &marked] {
                    let whole = RawValue::from_string(data.to_string()).unwrap();
                    let (public, private) = parts(whole.clone(), fields, [7; 32]).unwrap();
                    let content = private.as_ref().map(|private| private.content.get());
                    assert!(!public.get().contains(CANARY), "{kind} keeps words: {public}");
                    let again: Value = serde_json::from_str(joined(public.get(), content).get()).unwrap();
                    assert_eq!(&again, data, "{kind} does not come together again");
                    assert!(is_laid_out(&NewEvent { private, ..event(kind, public.get()) }), "{kind}");
                    reads(kind, public.get());
                    reads(kind, whole.get());
                }
                marks += words;
            }
            assert!(fields.is_empty() || marks > 0, "{kind}: the canary found no place");
        }
    }

    const CANARY: &str = "canary";

    /// Puts a word into every free text below a field that holds words; gives their number.
    fn mark(value: &mut Value) -> usize {
        match value {
            Value::String(text) => {
                text.push_str(CANARY);
                1
            }
            Value::Array(items) => items.iter_mut().map(mark).sum(),
            Value::Object(members) => {
                members.iter_mut().filter(|(name, _)| free(name)).map(|(_, value)| mark(value)).sum()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
    }

    /// Members that are not words wherever they stand: names from fixed lists, ids, places, hashes.
    fn free(name: &str) -> bool {
        !matches!(
            name,
            "code"
                | "type"
                | "budget"
                | "repo"
                | "base"
                | "harness"
                | "campaign"
                | "model"
                | "team"
                | "image"
                | "egress"
                | "project"
                | "environment"
                | "taskType"
                | "customer"
                | "workspace"
        )
    }

    /// An envelope with this data, as a test needs it.
    pub fn envelope(stream: &str, kind: &str, data: &str) -> Envelope {
        Envelope { erased: true, ..Envelope::example(stream.parse().unwrap(), kind, data) }
    }
}
