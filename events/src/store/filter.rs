//! Which events of the whole log a reader wants.

use crate::envelope::{Envelope, Position, StreamName};

/// A predicate over events. An empty filter lets everything through; what is set must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these types; empty: every type.
    pub types: Vec<String>,
    /// Only streams of this category (`task`, `ledger`, …).
    pub category: Option<String>,
    /// Only this stream.
    pub stream: Option<StreamName>,
    /// Only what was done on behalf of this team.
    pub team: Option<String>,
}

impl Filter {
    /// Everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Only streams of this category.
    pub fn category(category: impl Into<String>) -> Self {
        Self { category: Some(category.into()), ..Self::default() }
    }

    /// Only these types.
    pub fn types(types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { types: types.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Only what was done on behalf of this team, and otherwise as before.
    #[must_use]
    pub fn for_team(mut self, team: impl Into<String>) -> Self {
        self.team = Some(team.into());
        self
    }

    /// Whether the event is wanted.
    pub fn admits(&self, event: &Envelope) -> bool {
        self.admits_place(&event.stream, &event.kind) && self.admits_team(event.actor.team.as_deref())
    }

    /// The part of the answer that needs no more than the stream and the type.
    pub fn admits_place(&self, stream: &StreamName, kind: &str) -> bool {
        self.stream.as_ref().is_none_or(|wanted| wanted == stream)
            && self.category.as_ref().is_none_or(|wanted| wanted == stream.category())
            && (self.types.is_empty() || self.types.iter().any(|wanted| wanted == kind))
    }

    /// The part of the answer that needs the actor.
    pub fn admits_team(&self, team: Option<&str>) -> bool {
        self.team.as_deref().is_none_or(|wanted| team == Some(wanted))
    }
}

/// A filtered read of the whole log.
#[derive(Debug, Clone)]
pub struct Page {
    /// What was wanted, oldest first.
    pub events: Vec<Envelope>,
    /// Everything up to and including this position has been looked at; go on after it.
    pub through: Position,
}
