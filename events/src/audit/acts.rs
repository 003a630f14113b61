//! Which events are acts: what the audit has a row for. One table for all of them.
//!
//! A type that is not in the table is not lost: whatever a key or a person did is an act, whatever its name; and what
//! says of itself that it refused or denied is a refusal.

use serde::Deserialize;

use crate::envelope::{ActorKind, Envelope};
use crate::id::{KeyId, TaskId};

/// Longest [`Act::about`], in bytes.
pub const MAX_ABOUT: usize = 200;

/// What kind of row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// A task, from its beginning to its end.
    Task,
    /// Somebody did something.
    Act,
    /// Somebody was refused something.
    Refusal,
}

impl Category {
    /// Every category.
    pub const ALL: [Self; 3] = [Self::Task, Self::Act, Self::Refusal];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Act => "act",
            Self::Refusal => "refusal",
        }
    }
}

/// What an event means to the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// The beginning of a task's row.
    Task,
    /// An act, whoever did it.
    Act,
    /// An act if a key or a person did it, and not Orchestra itself.
    ByHand,
    /// The same, but not in a stream's first two events: there it is a part of its beginning.
    ByHandLater,
    /// A refused act.
    Refusal,
    /// Work that goes on by itself.
    Work,
}

/// By the stream's category and the event's type; `*` stands for every other type of that category.
const TABLE: &[(&str, &str, Meaning)] = &[
    ("task", "created", Meaning::Task),
    ("task", "queued", Meaning::ByHandLater),
    ("task", "steered", Meaning::ByHand),
    ("task", "cancel-requested", Meaning::ByHand),
    ("task", "credentials-supplied", Meaning::ByHand),
    ("task", "operator-entered", Meaning::Act),
    ("task", "content-erased", Meaning::Act),
    ("task", "attempt-started", Meaning::Work),
    ("task", "cancelled", Meaning::Work),
    ("task", "retry-scheduled", Meaning::Work),
    ("campaign", "campaign-created", Meaning::Act),
    ("campaign", "campaign-cancelled", Meaning::ByHand),
    ("campaign", "campaign-retry-requested", Meaning::ByHand),
    ("campaign", "campaign-resumed", Meaning::ByHand),
    ("campaign", "campaign-paused", Meaning::ByHand),
    ("campaign", "campaign-content-erased", Meaning::Act),
    ("campaign", "campaign-child-started", Meaning::Work),
    ("campaign", "campaign-child-finished", Meaning::Work),
    ("campaign", "campaign-finished", Meaning::Work),
    ("ledger", "budget-set", Meaning::Act),
    ("ledger", "*", Meaning::Work),
    ("key", "key-used", Meaning::Work),
    ("key", "*", Meaning::Act),
    ("access", "*", Meaning::Refusal),
    ("session", "sign-in-refused", Meaning::Refusal),
    ("session", "*", Meaning::Act),
    ("webhook", "deliveries-recorded", Meaning::Work),
    ("billing", "plan-set", Meaning::Act),
    ("billing", "period-closed", Meaning::Act),
    ("checkpoint", "checkpoint-signed", Meaning::ByHand),
];

/// The name of an act where the event's own says less.
const NAMES: &[(&str, &str, &str)] = &[("task", "queued", "retried")];

/// A row for the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// Task, act or refusal.
    pub category: Category,
    /// What it is called: `task`, or the event's type.
    pub kind: String,
    /// The team that it concerns.
    pub team: Option<String>,
    /// The task that it concerns.
    pub task: Option<TaskId>,
    /// What it is about, in a few words: a key's name, a scope, a route.
    pub about: Option<String>,
    /// How it ended: `done`, or the code of a refusal.
    pub outcome: String,
    /// How many acts it stands for.
    pub count: u64,
}

/// What many events say in a member of the same name.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Said {
    team: Option<serde_json::Value>,
    name: Option<serde_json::Value>,
    scope: Option<serde_json::Value>,
    method: Option<String>,
    route: Option<String>,
    code: Option<String>,
    reason: Option<serde_json::Value>,
    count: Option<u64>,
    operator: Option<String>,
    program: Option<String>,
    why: Option<serde_json::Value>,
    way: Option<serde_json::Value>,
    position: Option<u64>,
}

fn meaning(envelope: &Envelope) -> Meaning {
    let (category, kind) = (envelope.stream.category(), &*envelope.kind);
    let listed = TABLE
        .iter()
        .find(|(of, named, _)| *of == category && (*named == kind || *named == "*"))
        .map(|(_, _, meaning)| *meaning);
    match listed {
        Some(meaning) => meaning,
        None if kind.ends_with("-denied") || kind.ends_with("-refused") => Meaning::Refusal,
        None => Meaning::ByHand,
    }
}

/// The category of an event's row; `None` if it has none.
pub fn category(envelope: &Envelope) -> Option<Category> {
    let by_hand = match envelope.actor.kind {
        ActorKind::ApiKey | ActorKind::Person => true,
        ActorKind::System => false,
    };
    match meaning(envelope) {
        Meaning::Task => Some(Category::Task),
        Meaning::Act => Some(Category::Act),
        Meaning::Refusal => Some(Category::Refusal),
        Meaning::ByHand => by_hand.then_some(Category::Act),
        Meaning::ByHandLater => (by_hand && envelope.revision.0 > 1).then_some(Category::Act),
        Meaning::Work => None,
    }
}

/// The row of an event that has one. `key_team` knows the teams of keys.
pub fn act(envelope: &Envelope, key_team: impl FnOnce(KeyId) -> Option<String>) -> Option<Act> {
    let category = category(envelope)?;
    let stream = &envelope.stream;
    let kind = match category {
        Category::Task => "task",
        Category::Act | Category::Refusal => NAMES
            .iter()
            .find(|(of, kind, _)| *of == stream.category() && **kind == *envelope.kind)
            .map_or(&*envelope.kind, |(_, _, name)| name),
    };
    // Members of other shapes are none: what is not understood is left out, and the act is not.
    let said: Said = serde_json::from_str(envelope.data.get()).unwrap_or_default();
    let text = |value: &Option<serde_json::Value>| value.as_ref().and_then(|value| value.as_str()).map(str::to_owned);
    let in_stream = || {
        let team = stream.ledger_team().or_else(|| stream.billing_team());
        let refused = stream.as_str().strip_prefix("access-").filter(|team| *team != "_none");
        team.or(refused).map(str::to_owned)
    };
    let of_key = || stream.key_id().and_then(key_team);
    let team = text(&said.team).or_else(in_stream).or_else(of_key).or_else(|| envelope.actor.team.clone());
    let route = said.method.as_ref().zip(said.route.as_ref()).map(|(method, route)| format!("{method} {route}"));
    let entered = said.operator.as_ref().zip(said.program.as_ref()).map(|(who, what)| format!("{who}: {what}"));
    // Names of campaigns are words that may be forgotten; what is shown here is kept.
    let kept = !matches!(stream.category(), "task" | "campaign");
    let about = route
        .or(entered)
        .or_else(|| text(&said.scope))
        .or_else(|| text(&said.name).filter(|_| kept))
        .or_else(|| said.position.filter(|_| stream.category() == "checkpoint").map(|at| format!("position {at}")));
    let outcome = match category {
        Category::Task => "queued".to_owned(),
        Category::Act => "done".to_owned(),
        Category::Refusal => said.code.clone().or_else(|| text(&said.reason)).unwrap_or_else(|| "refused".to_owned()),
    };
    let about = about.or_else(|| text(&said.why)).or_else(|| text(&said.way));
    Some(Act {
        category,
        kind: bounded(kind),
        team,
        task: stream.task_id(),
        about: about.map(|about| bounded(&about)).filter(|about| !about.is_empty()),
        outcome: bounded(&outcome),
        count: said.count.unwrap_or(1).max(1),
    })
}

/// Without control characters, and not longer than [`MAX_ABOUT`].
fn bounded(text: &str) -> String {
    let mut kept = String::with_capacity(text.len().min(MAX_ABOUT));
    for character in text.chars().filter(|character| !character.is_control()) {
        if kept.len() + character.len_utf8() > MAX_ABOUT {
            break;
        }
        kept.push(character);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Actor, Revision};

    fn event(stream: &str, kind: &str, revision: u64, by: ActorKind, data: &str) -> Envelope {
        let actor = Actor { kind: by, id: "x".to_owned(), team: Some("own".to_owned()), origin: None };
        Envelope { revision: Revision(revision), actor, ..Envelope::example(stream.parse().unwrap(), kind, data) }
    }

    fn read(stream: &str, kind: &str, revision: u64, by: ActorKind, data: &str) -> Option<Act> {
        act(&event(stream, kind, revision, by, data), |_| None)
    }

    #[test]
    fn what_the_table_does_not_know_is_an_act_if_somebody_did_it() {
        use ActorKind::{ApiKey, Person, System};
        for (stream, kind, revision, by, expected) in [
            ("task-1", "created", 0, System, Some(Category::Task)),
            ("task-1", "queued", 1, ApiKey, None),
            ("task-1", "queued", 7, ApiKey, Some(Category::Act)),
            ("task-1", "message", 7, System, None),
            ("task-1", "operator-entered", 7, System, Some(Category::Act)),
            ("ledger-a", "settled", 7, ApiKey, None),
            ("ledger-a", "budget-set", 7, System, Some(Category::Act)),
            ("key-1", "key-used", 7, ApiKey, None),
            ("key-1", "key-rotated", 7, System, Some(Category::Act)),
            ("access-a", "access-denied", 0, System, Some(Category::Refusal)),
            ("checkpoint-1", "checkpoint-signed", 0, System, None),
            ("checkpoint-1", "checkpoint-signed", 0, Person, Some(Category::Act)),
            // From the future.
            ("teapot-1", "tea-ordered", 0, Person, Some(Category::Act)),
            ("teapot-1", "tea-ordered", 0, System, None),
            ("teapot-1", "tea-refused", 0, System, Some(Category::Refusal)),
            ("task-1", "blessed", 5, Person, Some(Category::Act)),
        ] {
            assert_eq!(category(&event(stream, kind, revision, by, "{}")), expected, "{stream} {kind} {by:?}");
        }
    }

    #[test]
    fn a_row_says_whose_and_what() {
        let denied = r#"{"method":"POST","route":"/v1/tasks","code":"forbidden","count":3}"#;
        let row = read("access-web", "access-denied", 0, ActorKind::ApiKey, denied).unwrap();
        assert_eq!(
            (row.team.as_deref(), row.about.as_deref(), &*row.outcome, row.count),
            (Some("web"), Some("POST /v1/tasks"), "forbidden", 3)
        );
        let set =
            read("ledger-web", "budget-set", 0, ActorKind::ApiKey, r#"{"scope":"team:web","budget":{}}"#).unwrap();
        assert_eq!((set.team.as_deref(), set.about.as_deref()), (Some("web"), Some("team:web")));
        let issued = r#"{"name":"ci\u0007","team":"api","scopes":["admin"]}"#;
        let row = read("key-1", "key-issued", 0, ActorKind::ApiKey, issued).unwrap();
        assert_eq!((row.team.as_deref(), row.about.as_deref(), &*row.kind), (Some("api"), Some("ci"), "key-issued"));
        let retried = read("task-1", "queued", 9, ActorKind::Person, "{}").unwrap();
        assert_eq!((&*retried.kind, retried.team.as_deref()), ("retried", Some("own")));
        let named = read("campaign-1", "campaign-created", 0, ActorKind::Person, r#"{"name":"secret plan"}"#).unwrap();
        assert_eq!(named.about, None, "it may be erased, and this would stay");
        let odd = read("teapot-1", "tea-ordered", 0, ActorKind::Person, r#"{"name":7,"count":"many"}"#).unwrap();
        assert_eq!((odd.about, odd.count), (None, 1));
        let long = format!("{{\"name\":\"{}\"}}", "é".repeat(500));
        let row = read("teapot-1", "tea-ordered", 0, ActorKind::Person, &long).unwrap();
        assert_eq!(row.about.unwrap().len(), MAX_ABOUT);
    }
}
