//! Reading a JSON object field by field: every fault is collected, with the pointer to where it is.

use std::fmt;

use actix_web::web::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::problem::{Code, Field, Problem};

/// Most members looked at in one object; an object with more is refused as a whole.
pub const MAX_MEMBERS: usize = 256;
/// Most faults reported at once; who has more mends these first.
pub const MAX_FAULTS: usize = 64;
/// The most similar known name is offered when at least this much of it agrees (Jaro-Winkler).
const NEAR: f64 = 0.75;
/// Longest unknown name repeated to the caller, in characters.
const SHOWN: usize = 64;

/// What is wrong with a request.
#[derive(Debug, Default)]
pub struct Faults(Vec<Field>);

impl Faults {
    /// Notes a fault.
    pub fn add(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        if self.0.len() < MAX_FAULTS {
            self.0.push(Field { pointer: pointer.into(), detail: detail.into() });
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Fine, or the problem that lists every fault.
    pub fn none(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::invalid(self.0)) }
    }

    /// The same for a query.
    pub fn none_in_query(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::invalid_query(self.0)) }
    }
}

struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if members.len() <= MAX_MEMBERS {
                        members.push((name, map.next_value()?));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// Parses a body as JSON of any shape. Says where it breaks, and nothing of what it holds.
pub fn json(body: &Bytes) -> Result<Box<RawValue>, Problem> {
    let text = std::str::from_utf8(body).map_err(|error| {
        Problem::new(
            Code::InvalidJson,
            format!("The body is not UTF-8: byte {} is wrong. Send UTF-8.", error.valid_up_to()),
        )
    })?;
    serde_json::from_str(text).map_err(|error| {
        let detail =
            format!("The body breaks at line {}, column {}. Send one JSON object.", error.line(), error.column());
        Problem::new(Code::InvalidJson, detail)
    })
}

/// A JSON pointer's next step (RFC 6901).
pub fn step(pointer: &str, name: &str) -> String {
    let name: String = name.chars().take(SHOWN).collect();
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// The known name that somebody who wrote `name` may have meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.chars().take(SHOWN).collect::<String>().to_lowercase();
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&lower, &known.to_lowercase()), known))
        .filter(|(similarity, _)| *similarity >= NEAR)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, known)| known)
}

/// An object whose members are taken one by one; what nobody took is unknown.
pub struct Object {
    pointer: String,
    members: Vec<(String, Box<RawValue>)>,
    known: Vec<&'static str>,
}

impl Object {
    /// The object at `pointer`, or a fault.
    pub fn read(raw: &RawValue, pointer: &str, faults: &mut Faults) -> Option<Self> {
        let Ok(Members(members)) = serde_json::from_str::<Members>(raw.get()) else {
            faults.add(pointer, "expected an object");
            return None;
        };
        if members.len() > MAX_MEMBERS {
            faults.add(pointer, format!("at most {MAX_MEMBERS} members"));
            return None;
        }
        Some(Self { pointer: pointer.to_owned(), members, known: Vec::new() })
    }

    /// Where a member is.
    pub fn at(&self, name: &str) -> String {
        step(&self.pointer, name)
    }

    /// A member, unless it is absent or `null`. One that comes twice is a fault.
    pub fn take(&mut self, name: &'static str, faults: &mut Faults) -> Option<Box<RawValue>> {
        self.known.push(name);
        let mut found = None;
        let mut twice = false;
        self.members.retain_mut(|(member, value)| {
            if member != name {
                return true;
            }
            twice |= found.is_some();
            found = Some(std::mem::take(value));
            false
        });
        if twice {
            faults.add(self.at(name), "comes twice; say it once");
        }
        found.filter(|value| value.get() != "null")
    }

    /// A text that passes a rule.
    pub fn text(
        &mut self,
        name: &'static str,
        rule: impl Fn(&str) -> Result<(), String>,
        faults: &mut Faults,
    ) -> Option<String> {
        let raw = self.take(name, faults)?;
        let Ok(text) = serde_json::from_str::<String>(raw.get()) else {
            faults.add(self.at(name), "expected a text");
            return None;
        };
        match rule(&text) {
            Ok(()) => Some(text),
            Err(detail) => {
                faults.add(self.at(name), detail);
                None
            }
        }
    }

    /// A whole number within bounds.
    pub fn whole(&mut self, name: &'static str, min: u64, max: u64, faults: &mut Faults) -> Option<u64> {
        let raw = self.take(name, faults)?;
        match serde_json::from_str::<u64>(raw.get()) {
            Ok(number) if (min..=max).contains(&number) => Some(number),
            Ok(_) | Err(_) => {
                faults.add(self.at(name), format!("expected a whole number from {min} to {max}"));
                None
            }
        }
    }

    /// An inner object.
    pub fn object(&mut self, name: &'static str, faults: &mut Faults) -> Option<Self> {
        let raw = self.take(name, faults)?;
        Self::read(&raw, &self.at(name), faults)
    }

    /// Every member that is left, whatever its name.
    pub fn rest(&mut self) -> Vec<(String, Box<RawValue>)> {
        std::mem::take(&mut self.members)
    }

    /// Refuses what nobody took, and offers the nearest known name.
    pub fn finish(self, faults: &mut Faults) {
        for (name, _) in &self.members {
            let detail = match nearest(name, self.known.iter().copied()) {
                Some(known) => format!("is not known here; did you mean `{known}`?"),
                None => format!("is not known here; known are {}", self.known.join(", ")),
            };
            faults.add(step(&self.pointer, name), detail);
        }
    }
}
