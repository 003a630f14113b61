//! What of an event its reader is told: where an act came from, and what a key or a session is known by, is not everybody's.

use crate::envelope::{Actor, Envelope};
use crate::json::Json;

/// Who reads an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// One team: where an act came from is not its to know.
    Team,
    /// The team whose own key or person acted: where they came from is its to know.
    OwnTeam,
    /// The operators.
    Operators,
}

/// Members of an event's data that only operators see: from where somebody came, and what a key or a session is known by.
const OPERATORS_ONLY: [(&str, &str); 6] = [
    ("key", "secretSha256"),
    ("key", "address"),
    ("access", "address"),
    ("access", "userAgent"),
    ("session", "cookieSha256"),
    ("session", "address"),
];

/// The event as this reader may see it.
pub fn as_seen_by(event: &Envelope, audience: Audience) -> Result<Envelope, serde_json::Error> {
    let origin = match audience {
        Audience::Operators => return Ok(event.clone()),
        Audience::OwnTeam => event.actor.origin.clone(),
        Audience::Team => None,
    };
    let data = without_what_is_the_operators(event)?;
    Ok(Envelope { actor: Actor { origin, ..event.actor.clone() }, data, ..event.clone() })
}

fn without_what_is_the_operators(event: &Envelope) -> Result<Json, serde_json::Error> {
    let mut hidden = OPERATORS_ONLY.iter().filter(|(category, _)| *category == event.stream.category()).peekable();
    if hidden.peek().is_none() {
        return Ok(event.data.clone());
    }
    let mut data: serde_json::Map<String, serde_json::Value> = serde_json::from_str(event.data.get())?;
    for (_, member) in hidden {
        data.remove(*member);
    }
    Ok(Json::stored(serde_json::to_string(&data)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{ActorKind, Origin};

    /// Something that a key of a team did.
    fn envelope(stream: &str, data: &str) -> Envelope {
        let actor = Actor {
            kind: ActorKind::ApiKey,
            id: "key_1".to_owned(),
            team: Some("platform".to_owned()),
            origin: Origin { user_agent: Some("curl".to_owned()), ..Origin::default() }.known(),
        };
        Envelope { actor, ..Envelope::example(stream.parse().unwrap(), "something", data) }
    }

    #[test]
    fn hashes_and_places_are_the_operators_and_an_origin_also_its_own_teams() {
        for (stream, data, left) in [
            ("key-1", r#"{"name":"ci","secretSha256":"00","address":"192.0.2.1"}"#, r#"{"name":"ci"}"#),
            ("session-1", r#"{"name":"ci","cookieSha256":"00"}"#, r#"{"name":"ci"}"#),
            ("access-1", r#"{"name":"ci","address":"192.0.2.1","userAgent":"curl"}"#, r#"{"name":"ci"}"#),
            ("task-1", r#"{"address":"in the words of a task"}"#, r#"{"address":"in the words of a task"}"#),
        ] {
            let event = envelope(stream, data);
            for (audience, told, origin) in
                [(Audience::Operators, data, true), (Audience::OwnTeam, left, true), (Audience::Team, left, false)]
            {
                let seen = as_seen_by(&event, audience).unwrap();
                assert_eq!((seen.data.get(), seen.actor.origin.is_some()), (told, origin), "{stream} {audience:?}");
                assert_eq!((seen.id, seen.position, &*seen.actor.id), (event.id, event.position, "key_1"));
            }
        }
        as_seen_by(&envelope("key-1", "[]"), Audience::Team).unwrap_err();
    }
}
