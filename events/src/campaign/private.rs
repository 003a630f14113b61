//! Which fields of a campaign's events hold words that may be forgotten.

use serde_json::value::RawValue;

use super::event::{CampaignEvent, CampaignSpec};
use crate::envelope::Private;
use crate::private::{Field, Left, Table, fields, parts, without_words};

const fn field(name: &'static str, left: Left) -> Field {
    Field { name, left }
}

/// Every type of event, with the fields that hold words.
pub(crate) const WORDS: &Table = &[
    (
        "campaign-created",
        &[
            field("name", Left::Note),
            field("template", Left::Request),
            field("repos", Left::Repos),
            field("requestHash", Left::Nothing),
        ],
    ),
    ("campaign-child-started", &[]),
    ("campaign-child-finished", &[]),
    ("campaign-paused", &[field("reason", Left::Note)]),
    ("campaign-resumed", &[]),
    ("campaign-cancelled", &[field("reason", Left::Nothing)]),
    ("campaign-retry-requested", &[]),
    ("campaign-finished", &[]),
    ("campaign-content-erased", &[]),
];

impl CampaignSpec {
    /// What stays of it when its words are forgotten.
    pub fn without_words(&self) -> Self {
        let words = fields(WORDS, "campaign-created");
        without_words(self, words).expect("a campaign reads without its words: every field of them has a placeholder")
    }
}

impl CampaignEvent {
    /// The `data` of the envelope in two parts: what stays, and what may be forgotten. The salt has to be random, and
    /// new for each event.
    pub fn parts(&self, salt: [u8; 32]) -> Result<(Box<RawValue>, Option<Private>), serde_json::Error> {
        parts(self.data()?, fields(WORDS, self.kind()), salt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private::tests::{envelope, holds};

    #[test]
    fn every_event_is_whole_with_its_words_and_readable_without() {
        holds(CampaignEvent::KINDS, WORDS, include_str!("golden.json"), |kind, data| {
            let read = CampaignEvent::decode(&envelope("campaign-1", kind, data));
            assert!(matches!(read, Ok(Some(_))), "{kind} {data}: {read:?}");
        });
    }
}
