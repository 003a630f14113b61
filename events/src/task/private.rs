//! Which fields of a task's events hold words that may be forgotten.

use serde_json::value::RawValue;

use super::event::{TaskEvent, TaskSpec};
use crate::envelope::Private;
use crate::private::{Field, Left, Table, fields, parts, without_words};

const fn field(name: &'static str, left: Left) -> Field {
    Field { name, left }
}

/// The words in what was asked for. Who asked, where and within what stays. A branch is named after the task's words.
pub(crate) const REQUEST: &[Field] = &[
    field("task", Left::Note),
    field("branch", Left::Note),
    field("further", Left::Repos),
    field("command", Left::Nothing),
    field("pullRequest", Left::Nothing),
    field("metadata", Left::Nothing),
    // Whoever guesses a request can tell by its hash that the guess is right.
    field("requestHash", Left::Nothing),
];

const FAILURE: &[Field] = &[field("failure", Left::Failure)];

/// Every type of event, with the fields that hold words. Hosts that a sandbox asked for, and programs that operators ran, are facts
/// of the audit and stay.
pub(crate) const WORDS: &Table = &[
    ("created", REQUEST),
    ("queued", &[]),
    ("claimed", &[]),
    ("attempt-started", &[]),
    ("cloned", &[]),
    ("setup-started", &[]),
    ("setup-finished", &[field("output", Left::Nothing)]),
    ("sandbox-started", &[]),
    ("model-called", &[]),
    ("tokens-charged", &[]),
    ("message", &[field("content", Left::Turn)]),
    ("model-call-failed", FAILURE),
    ("call-retried", &[]),
    ("harness-started", &[field("resumes", Left::Nothing)]),
    ("harness-read", &[field("session", Left::Nothing)]),
    ("harness-finished", &[]),
    ("tool-called", &[field("input", Left::Object)]),
    ("tool-finished", &[field("output", Left::Note)]),
    ("steered", &[field("message", Left::Note)]),
    ("committed", &[field("message", Left::Note), field("subjects", Left::Nothing), field("diff", Left::NoBlob)]),
    ("unchanged", &[]),
    ("pushed", &[field("branch", Left::Note)]),
    ("pull-request-opened", &[]),
    ("pull-request-omitted", &[field("reason", Left::Note)]),
    ("pull-request-linked", &[]),
    ("forge-noted", &[field("detail", Left::Note)]),
    ("reported", &[]),
    ("sandbox-usage", &[]),
    ("operator-entered", &[]),
    ("sandbox-stopped", &[]),
    ("egress-decided", &[]),
    ("step-failed", FAILURE),
    ("retry-scheduled", &[]),
    ("credentials-required", FAILURE),
    ("credentials-supplied", &[]),
    ("refund-granted", &[]),
    ("attempt-failed", FAILURE),
    ("cancel-requested", &[field("reason", Left::Nothing)]),
    ("cancelled", &[]),
    ("failed", FAILURE),
    ("succeeded", &[]),
    ("content-erased", &[]),
];

impl TaskSpec {
    /// What stays of it when its words are forgotten.
    pub fn without_words(&self) -> Self {
        without_words(self, REQUEST).expect("a request reads without its words: every field of them has a placeholder")
    }
}

impl TaskEvent {
    /// The `data` of the envelope in two parts: what stays, and what may be forgotten. The salt has to be random, and
    /// new for each event.
    pub fn parts(&self, salt: [u8; 32]) -> Result<(Box<RawValue>, Option<Private>), serde_json::Error> {
        parts(self.data()?, fields(WORDS, self.kind()), salt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    use crate::StreamName;
    use crate::id::TaskId;
    use crate::private::tests::{Golden, envelope, holds};
    use crate::task::event::ErasureReason;
    use crate::task::{Command, Refusal, TaskResource, decide, evolve};

    #[test]
    fn every_event_is_whole_with_its_words_and_readable_without() {
        holds(TaskEvent::KINDS, WORDS, include_str!("golden.json"), |kind, data| {
            let read = TaskEvent::decode(&envelope("task-1", kind, data));
            assert!(matches!(read, Ok(Some(_))), "{kind} {data}: {read:?}");
        });
    }

    /// Every event there is an example of, in the order of the table, and then an end.
    fn life(end: &str) -> Vec<TaskEvent> {
        let golden: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        let before = TaskEvent::KINDS.iter().filter(|kind| !["cancelled", "failed", "succeeded"].contains(kind));
        let kinds = before.copied().filter(|kind| *kind != "content-erased").chain([end, "content-erased"]);
        let examples = kinds.flat_map(|kind| golden[kind].iter().map(move |data| (kind, data)));
        let read = |(kind, data): (&str, &Value)| TaskEvent::decode(&envelope("task-1", kind, &data.to_string()));
        examples.map(|example| read(example).unwrap().unwrap()).collect()
    }

    #[test]
    fn what_is_known_after_an_erasure_is_what_the_log_without_words_says() {
        for end in ["cancelled", "failed", "succeeded"] {
            let stream = StreamName::task(TaskId::from_uuid(uuid::Uuid::nil()));
            let (mut with, mut without) = (None, None);
            for event in life(end) {
                let (left, _) = event.parts([1; 32]).unwrap();
                let told = envelope(stream.as_str(), event.kind(), left.get());
                with = TaskResource::fold(with, &told, &event);
                without = TaskResource::fold(without, &told, &TaskEvent::decode(&told).unwrap().unwrap());
            }
            assert_eq!(with, without, "{end}");
            let text = serde_json::to_string(&with).unwrap();
            assert!(text.contains("\"task\":\"[erased]\""), "{text}");
            for word in ["Bump", "OPS-1", "bump-9f3c", "As asked.", "00ff"] {
                assert!(!text.contains(word), "{word} is still known: {text}");
            }
        }
    }

    #[test]
    fn only_what_has_ended_is_forgotten_and_what_is_forgotten_is_not_done_again() {
        let erase = || Command::EraseContent { reason: ErasureReason::Request, events: 3 };
        let life = life("failed");
        let erased = life.last().unwrap();
        let before: Vec<_> =
            life.iter().filter(|event| !matches!(event, TaskEvent::ContentErased { .. })).cloned().collect();
        let fold = |events: &[TaskEvent]| events.iter().fold(None, evolve).unwrap();
        let going_on = fold(&before[..3]);
        assert_eq!(decide(Some(&going_on), erase()), Err(Refusal::StillOpen));
        let ended = fold(&before);
        assert!(decide(Some(&ended), Command::Retry).is_ok());
        assert!(matches!(decide(Some(&ended), erase()).as_deref(), Ok([TaskEvent::ContentErased { events: 3, .. }])));
        let erased = evolve(Some(ended), erased).unwrap();
        assert_eq!(decide(Some(&erased), erase()), Ok(Vec::new()), "again is nothing new");
        assert_eq!(decide(Some(&erased), Command::Retry), Err(Refusal::Erased));
    }
}
