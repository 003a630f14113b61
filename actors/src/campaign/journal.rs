//! A campaign's stream, read and written: load and fold, decide and append.

use std::sync::Arc;

use jiff::Timestamp;
use orchestra_events::campaign::event::SCHEMA;
use orchestra_events::campaign::{Campaign, CampaignEvent, CampaignSpec, Command, Refusal, decide, evolve};
use orchestra_events::store::fold_stream;
use orchestra_events::{
    Actor, Appended, CampaignId, EventId, EventStore, Expected, NewEvent, Revision, StoreError, StreamName,
};
use uuid::Uuid;

use crate::journal::stop_here_if_asked;

/// A campaign, folded, and how far.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The campaign.
    pub campaign: Arc<Campaign>,
    /// The revision of the last event folded in.
    pub revision: Revision,
}

/// Why a command was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The campaign's state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An event does not read, or does not serialise.
    #[error("{0}")]
    Damaged(String),
}

/// Reads and folds a campaign's stream. `None`: there is no such campaign.
pub async fn load(store: &dyn EventStore, id: CampaignId) -> Result<Option<Loaded>, JournalError> {
    let mut campaign = None;
    let mut revision = Revision(0);
    fold_stream(store, &StreamName::campaign(id), Revision(0), |envelope| {
        revision = envelope.revision;
        match CampaignEvent::decode(&envelope) {
            Ok(Some(event)) => campaign = evolve(campaign.take(), &event),
            Ok(None) => {}
            Err(error) => return Err(JournalError::Damaged(error.to_string())),
        }
        Ok(())
    })
    .await?;
    Ok(campaign.map(|campaign| Loaded { campaign: Arc::new(campaign), revision }))
}

fn new_events(id: CampaignId, events: &[CampaignEvent], actor: &Actor) -> Result<Vec<NewEvent>, JournalError> {
    let time = Timestamp::now();
    events
        .iter()
        .map(|event| {
            Ok(NewEvent {
                id: EventId(Uuid::now_v7()),
                kind: Arc::from(event.kind()),
                schema: SCHEMA,
                time,
                actor: actor.clone(),
                correlation: Some(StreamName::campaign(id)),
                causation: None,
                data: event.data().map_err(|error| JournalError::Damaged(error.to_string()))?,
            })
        })
        .collect()
}

impl Loaded {
    /// The state after these events, which stand in the stream up to `revision`.
    #[must_use]
    pub fn after(self, events: &[CampaignEvent], revision: Revision) -> Self {
        let campaign = events.iter().fold(Some(Arc::unwrap_or_clone(self.campaign)), evolve);
        let campaign = campaign.expect("a fold that began with a campaign ends with one");
        Self { campaign: Arc::new(campaign), revision }
    }
}

/// Appends what was decided on the state at this revision.
pub async fn append(
    store: &dyn EventStore,
    id: CampaignId,
    revision: Revision,
    events: &[CampaignEvent],
    who: &Actor,
) -> Result<Appended, JournalError> {
    let expected = Expected::Exactly(revision);
    let appended = store.append(&StreamName::campaign(id), expected, new_events(id, events, who)?).await?;
    stop_here_if_asked("campaign", appended.revision);
    Ok(appended)
}

/// Creates a campaign. `false`: its id is taken.
pub async fn create(
    store: &dyn EventStore,
    id: CampaignId,
    spec: CampaignSpec,
    who: &Actor,
) -> Result<bool, JournalError> {
    let events = decide(None, Command::Create(Box::new(spec)))?;
    match store.append(&StreamName::campaign(id), Expected::NoStream, new_events(id, &events, who)?).await {
        Ok(appended) => {
            stop_here_if_asked("campaign", appended.revision);
            Ok(true)
        }
        Err(StoreError::WrongExpectedRevision { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
