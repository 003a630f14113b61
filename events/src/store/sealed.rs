//! Events whose words may be forgotten: a public part, which is in the log for good, and a private part beside it.
//!
//! Readers see one JSON object. While the private part is there, its members stand for those of the same name in the
//! public part, which are placeholders; once it is erased, the placeholders are all there is.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::envelope::NewEvent;
use crate::json::Json;

/// Whether the two parts of an event can be joined: both are objects, laid out as [`Private`](crate::Private) says.
pub(crate) fn is_laid_out(event: &NewEvent) -> bool {
    let Some(private) = &event.private else { return true };
    let members = |text| serde_json::from_str::<Members<'_>>(text);
    let (Ok(Members(public)), Ok(Members(private))) = (members(event.data.get()), members(private.content.get()))
    else {
        return false;
    };
    let places: Vec<_> = private.iter().map(|(name, _)| public.iter().position(|(other, _)| name == other)).collect();
    let placeholders = places.iter().flatten().count();
    let due = (public.len() - placeholders.min(public.len())..).take(placeholders).map(Some);
    places.iter().take(placeholders).copied().eq(due)
}

/// What readers of an event see as its data.
pub fn joined(public: &str, private: Option<&str>) -> Json {
    match private {
        None => Json::stored(public),
        Some(private) => Json::stored(join(public, private)),
    }
}

fn join(public: &str, private: &str) -> String {
    copied(public, private).unwrap_or_else(|| parsed(public, private))
}

/// Joins two parts that are laid out as [`Private`](crate::Private) says, without looking at more of them than the public
/// members before the placeholders. `None`: they are not.
fn copied(public: &str, private: &str) -> Option<String> {
    let (first, _) = name(private, 1)?;
    let kept = kept(public, first)?;
    let mut whole = String::with_capacity(kept.len() + private.len() + 1);
    whole.push_str(kept);
    if kept.len() > 1 {
        whole.push(',');
    }
    whole.push_str(private.get(1..)?);
    Some(whole)
}

/// The beginning of an object up to the member of this name, or to its end; without the comma in between.
fn kept<'a>(object: &'a str, wanted: &str) -> Option<&'a str> {
    let bytes = object.as_bytes();
    let (mut at, mut before) = (1, 1);
    loop {
        let (found, colon) = match bytes.get(at)? {
            b'}' if at == 1 => return object.get(..1),
            _ => name(object, at)?,
        };
        if found == wanted {
            return object.get(..before);
        }
        (bytes.get(colon)? == &b':').then_some(())?;
        at = value(bytes, colon + 1)?;
        before = at;
        match bytes.get(at)? {
            b',' => at += 1,
            b'}' => return object.get(..at),
            _ => return None,
        }
    }
}

/// The name that begins at this byte, and where it ends. `None` for anything that is not plain.
fn name(object: &str, at: usize) -> Option<(&str, usize)> {
    let rest = object.get(at..)?.strip_prefix('"')?;
    let length = rest.find(['"', '\\'])?;
    (rest.as_bytes()[length] == b'"').then(|| (&rest[..length], at + length + 2))
}

/// The end of the value that begins at this byte.
fn value(bytes: &[u8], from: usize) -> Option<usize> {
    let (mut at, mut depth, mut quoted) = (from, 0_u32, false);
    loop {
        let byte = *bytes.get(at)?;
        match byte {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b',' | b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
}

/// Joins two objects however they are written.
fn parsed(public: &str, private: &str) -> String {
    let members = |text| serde_json::from_str::<Members<'_>>(text);
    let (Ok(Members(public_members)), Ok(Members(private_members))) = (members(public), members(private)) else {
        // An append takes objects only. What is damaged is shown as it is, and does not read.
        return public.to_owned();
    };
    let replaced = |name: &str| private_members.iter().any(|(other, _)| other == name);
    let stay = public_members.iter().filter(|(name, _)| !replaced(name));
    let mut whole = String::with_capacity(public.len() + private.len());
    for (name, value) in stay.chain(&private_members) {
        whole.push(if whole.is_empty() { '{' } else { ',' });
        whole.push_str(&serde_json::Value::from(name.as_str()).to_string());
        whole.push(':');
        whole.push_str(value.get());
    }
    if whole.is_empty() { "{}".to_owned() } else { whole + "}" }
}

/// The members of an object, in their order.
pub(crate) struct Members<'a>(pub Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Walk)
    }
}

/// Bytes of an event's data, both parts.
pub(super) fn data_bytes(event: &NewEvent) -> usize {
    event.data.get().len() + event.private.as_ref().map_or(0, |private| private.content.get().len())
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;

    use crate::envelope::Private;
    use crate::store::conformance::event;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    fn laid_out(public: &str, private: &str) -> bool {
        let private = Some(Private { salt: [0; 32], content: Json::stored(private) });
        is_laid_out(&NewEvent { private, ..event("m", public) })
    }

    #[test]
    fn private_members_stand_for_public_ones() {
        for (public, private) in [
            ("{}", r#"{"a":1}"#),
            ("{}", "{}"),
            (r#"{"x":2}"#, "{}"),
            (r#"{"a":1}"#, r#"{"b":2}"#),
            (r#"{"n":[1,{"a":"}"}],"s":"\"a\":","a":"gone"}"#, r#"{"a":"said","b":{"a":1}}"#),
            (r#"{"x":{"y":[]},"a":"gone","b":[]}"#, r#"{"a":"\\\"","b":[1,2]}"#),
            // Not as compact as they could be: they are parsed.
            (r#"{ "x" : "é" , "a" : 1 }"#, r#" { "a" : "ü" } "#),
            (r#"{"x":2,"\u0061":1}"#, r#"{"a":3}"#),
            (r#"{"x":2}"#, r#"{"\u0078":3}"#),
        ] {
            assert!(laid_out(public, private), "{public} {private}");
            let mut expected = object(public);
            expected.extend(object(private));
            for whole in [join(public, private), parsed(public, private)] {
                assert_eq!(object(&whole), expected, "{public} {private} → {whole}");
                // A member that stands there twice does not read as an event.
                let Members(members) = serde_json::from_str(&whole).unwrap();
                assert_eq!(members.len(), expected.len(), "{whole}");
            }
        }
    }

    #[test]
    fn parts_that_cannot_be_copied_together_are_refused() {
        for (public, private) in [
            (r#"{"a":1,"x":2}"#, r#"{"a":3}"#),
            (r#"{"x":0,"a":1,"b":2}"#, r#"{"b":3,"a":4}"#),
            (r#"{"x":0,"a":1}"#, r#"{"z":3,"a":4}"#),
            ("[]", r#"{"a":3}"#),
            ("{}", "1"),
            ("{}", r#"{"a":1"#),
        ] {
            assert!(!laid_out(public, private), "{public} {private}");
        }
    }

    #[test]
    fn the_usual_layout_is_copied() {
        let (public, private) = (r#"{"x":{"y":[]},"a":"gone","b":[]}"#, r#"{"a":"said","b":[1,2],"c":null}"#);
        assert_eq!(copied(public, private).as_deref(), Some(r#"{"x":{"y":[]},"a":"said","b":[1,2],"c":null}"#));
        assert_eq!(copied("{}", private).as_deref(), Some(private));
        assert_eq!(copied(r#"{"a":"gone"}"#, private).as_deref(), Some(private));
    }

    #[test]
    fn damage_is_survived() {
        for (public, private) in
            [("", ""), ("{", "{"), ("null", "1"), (r#"{"a"}"#, r#"{"b":1}"#), ("[1]", r#"{"a":1}"#)]
        {
            join(public, private);
        }
    }
}
