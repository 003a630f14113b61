//! Where the top-level fields of a JSON object lie, without reading further into them.
//!
//! A request passes byte for byte; only single values of it are replaced. So nothing is parsed and written again: the
//! scan says which bytes are which.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An object has at most so many fields. The largest request of any dialect has some thirty.
pub(super) const MAX_FIELDS: usize = 256;

/// A field of the object.
#[derive(Debug)]
pub(super) struct Field<'a> {
    /// Its name, with every escape resolved.
    pub key: Cow<'a, str>,
    /// Its value as it is written.
    pub raw: &'a str,
    /// Where the value lies.
    pub at: Range<usize>,
}

impl Field<'_> {
    pub fn is_null(&self) -> bool {
        self.raw == "null"
    }
}

/// An object and its fields.
#[derive(Debug)]
pub(super) struct Object<'a> {
    pub fields: Vec<Field<'a>>,
    /// Right after the opening brace: where a field can be put in.
    pub inside: usize,
}

impl<'a> Object<'a> {
    /// Scans a text, the first byte of which is at `offset` of something larger. The error is a sentence.
    pub fn scan(text: &'a str, offset: usize) -> Result<Self, String> {
        let Fields(fields) = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut seen = HashSet::with_capacity(fields.len());
        for (key, _) in &fields {
            // Which of the two the provider would read is anybody's guess.
            if !seen.insert(&**key) {
                return Err(format!("the field {key:?} is there twice"));
            }
        }
        drop(seen);
        let brace = text.find('{').unwrap_or_default();
        let fields = fields
            .into_iter()
            .map(|(key, raw)| {
                let raw = raw.get();
                // A raw value borrows from the text.
                let start = offset + (raw.as_ptr() as usize - text.as_ptr() as usize);
                Field { key, raw, at: start..start + raw.len() }
            })
            .collect();
        Ok(Self { fields, inside: offset + brace + 1 })
    }

    /// The field of this name; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Field<'a>> {
        self.find(key).filter(|field| !field.is_null())
    }

    /// The field of this name, also when it is `null`.
    pub fn find(&self, key: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|field| field.key == key)
    }
}

struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(32);
                while let Some(Text(key)) = map.next_key()? {
                    if fields.len() == MAX_FIELDS {
                        return Err(serde::de::Error::custom(format_args!("more than {MAX_FIELDS} fields")));
                    }
                    fields.push((key, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Walk)
    }
}

/// A string that is borrowed where it has no escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Walk)
    }
}

/// How many bytes a string has; the string itself is not kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Length(pub u64);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl Visitor<'_> for Walk {
            type Value = Length;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Length, E> {
                Ok(Length(text.len() as u64))
            }
        }
        deserializer.deserialize_str(Walk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_found_where_it_lies() {
        let text = " {\"a\": 1 , \"m\\u006fdel\":\"x\\\"}\", \"deep\": {\"a\": [1, {\"model\": 2}]}, \"n\": null}\n";
        let object = Object::scan(text, 0).expect("an object");
        for (key, raw) in [("a", "1"), ("model", "\"x\\\"}\""), ("deep", "{\"a\": [1, {\"model\": 2}]}"), ("n", "null")]
        {
            let field = object.find(key).expect(key);
            assert_eq!((field.raw, &text[field.at.clone()]), (raw, raw));
        }
        assert!(object.get("n").is_none() && object.get("b").is_none());
        assert_eq!(&text[object.inside..object.inside + 3], "\"a\"");
        assert_eq!(Object::scan(text, 100).expect("an object").inside, object.inside + 100);
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for (text, expected) in [
            (r#"{"max_tokens": 1, "max_tokens": 2}"#, "twice"),
            (r#"{"model": 1, "mod\u0065l": 2}"#, "twice"),
            ("[]", "expected a JSON object"),
            ("{\"a\": 1} x", "trailing"),
            ("{\"a\": 01}", "invalid number"),
            ("{\"a\": tru}", "expected"),
            ("", "EOF"),
        ] {
            let error = Object::scan(text, 0).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many: Vec<String> = (0..=MAX_FIELDS).map(|n| format!("\"{n}\": 0")).collect();
        assert!(Object::scan(&format!("{{{}}}", many.join(",")), 0).is_err());
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(Object::scan(&deep, 0).is_ok(), "depth costs no stack");
    }
}
