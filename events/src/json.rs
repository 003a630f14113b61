//! The data of a stored event: JSON text that was checked when it was appended and is read again by whoever wants it.

use std::fmt;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer, forward_to_deserialize_any};
use serde_json::value::RawValue;

use crate::Envelope;

/// JSON text from the log.
///
/// An append takes only a [`RawValue`], which is proven to be JSON. Reading does not prove it again: a replay parses
/// every event into its type, which is proof enough, and a second one costs as much as the rest of the read. Writing
/// it into a larger document does prove it, so that a damaged row cannot break out of its envelope.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Box<str>);

impl Json {
    /// Text that a store has kept.
    pub fn stored(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text, byte for byte as it was appended.
    pub fn get(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Box<RawValue>> for Json {
    fn from(value: Box<RawValue>) -> Self {
        Self(value.into())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let proven: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        proven.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self::from)
    }
}

/// Reads the enum that serde writes as `{"type": kind, "data": data}` from its two parts.
fn from_kind_and_data<T: DeserializeOwned>(kind: &str, data: &str) -> Result<T, serde_json::Error> {
    T::deserialize(Parts { kind: Some(kind), data: Some(data) })
}

/// An event that cannot stand in the stream that it stands in.
#[derive(Debug, thiserror::Error)]
#[error("event {kind} (schema {schema}) does not read as a {of} event: {source}")]
pub struct DecodeError {
    of: &'static str,
    kind: String,
    schema: u16,
    source: serde_json::Error,
}

/// Reads an event back from its envelope. `None`: a type this version does not know, which is kept but means nothing to a fold.
pub(crate) fn decode<T: DeserializeOwned>(
    of: &'static str,
    kinds: &[&str],
    envelope: &Envelope,
) -> Result<Option<T>, DecodeError> {
    if !kinds.contains(&&*envelope.kind) {
        return Ok(None);
    }
    let read = from_kind_and_data(&envelope.kind, envelope.data.get());
    read.map(Some).map_err(|source| DecodeError {
        of,
        kind: envelope.kind.to_string(),
        schema: envelope.schema,
        source,
    })
}

/// The same from type and data alone, for whoever reads many and needs few.
pub(crate) fn decode_parts<T: DeserializeOwned>(
    kinds: &[&str],
    kind: &str,
    data: &str,
) -> Result<Option<T>, serde_json::Error> {
    if kinds.contains(&kind) { from_kind_and_data(kind, data).map(Some) } else { Ok(None) }
}

/// The two members of the object that is never written down.
struct Parts<'a> {
    kind: Option<&'a str>,
    data: Option<&'a str>,
}

impl<'de> Deserializer<'de> for Parts<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Parts<'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        let key = match (self.kind, self.data) {
            (Some(_), _) => "type",
            (None, Some(_)) => "data",
            (None, None) => return Ok(None),
        };
        seed.deserialize(BorrowedStrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        match (self.kind.take(), self.data) {
            (Some(kind), _) => seed.deserialize(BorrowedStrDeserializer::new(kind)),
            (None, data) => {
                self.data = None;
                let mut json = serde_json::Deserializer::from_str(data.unwrap_or_default());
                let value = seed.deserialize(&mut json)?;
                json.end()?;
                Ok(value)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "type", content = "data", rename_all = "kebab-case")]
    enum Happened {
        Nothing {},
        Much { what: String },
    }

    #[test]
    fn an_event_is_read_from_its_parts_as_from_the_whole() {
        for event in [Happened::Nothing {}, Happened::Much { what: "\n\"é".to_owned() }] {
            let whole: serde_json::Value = serde_json::to_value(&event).unwrap();
            let (kind, data) = (whole["type"].as_str().unwrap(), whole["data"].to_string());
            assert_eq!(from_kind_and_data::<Happened>(kind, &data).unwrap(), event);
        }
    }

    #[test]
    fn what_does_not_read_is_refused() {
        for (kind, data) in [
            ("never", "{}"),
            ("much", "{}"),
            ("much", ""),
            ("much", r#"{"what":"a""#),
            ("much", r#"{"what":"a"}}"#),
            ("much", r#"{"what":"a"},"type":"nothing""#),
        ] {
            assert!(from_kind_and_data::<Happened>(kind, data).is_err(), "{kind} {data}");
        }
    }

    #[test]
    fn damaged_text_does_not_break_out_of_its_document() {
        let fine = Json::stored(r#"{ "a": 1.0 }"#);
        assert_eq!(serde_json::to_string(&[fine]).unwrap(), r#"[{ "a": 1.0 }]"#);
        for damaged in ["", "{", r#"1,"id":2"#, "1 2"] {
            assert!(serde_json::to_string(&Json::stored(damaged)).is_err(), "{damaged}");
        }
    }
}
