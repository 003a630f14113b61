//! A stream that one actor decides on, read and written: load and fold, decide and append. Tasks, campaigns and webhooks have theirs here.

use std::error::Error;
use std::sync::Arc;

use jiff::Timestamp;
use orchestra_events::campaign::{self, Campaign, CampaignEvent, CampaignSpec};
use orchestra_events::json::DecodeError;
use orchestra_events::store::fold_stream;
use orchestra_events::task::{self, Task, TaskEvent, TaskSpec};
use orchestra_events::webhook::{self, Webhook, WebhookEvent};
use orchestra_events::{
    Actor, Appended, CampaignId, Envelope, EventId, EventStore, Expected, NewEvent, Private, Revision, StoreError,
    StreamName, TaskId, WebhookId,
};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The id of something whose state is what happened to it: names its stream, and says how that is read.
pub trait Subject: Copy {
    /// What is known of it.
    type State: Clone;
    /// What can happen to it.
    type Event;
    /// Why a command to it is refused.
    type Refusal: Error;
    /// What crash tests call its kind.
    const KIND: &'static str;
    /// The version of its events.
    const SCHEMA: u16;

    /// Its stream.
    fn stream(self) -> StreamName;
    /// Reads an event of its stream; `None`: one that this version does not know.
    fn decode(envelope: &Envelope) -> Result<Option<Self::Event>, DecodeError>;
    /// Name and data of an event: what stays of it, and what may be forgotten.
    fn encode(event: &Self::Event, salt: [u8; 32]) -> Result<Encoded, serde_json::Error>;
    /// The state after an event.
    fn evolve(state: Option<Self::State>, event: &Self::Event) -> Option<Self::State>;
}

impl Subject for TaskId {
    type State = Task;
    type Event = TaskEvent;
    type Refusal = task::Refusal;
    const KIND: &'static str = "task";
    const SCHEMA: u16 = task::event::SCHEMA;

    fn stream(self) -> StreamName {
        StreamName::task(self)
    }

    fn decode(envelope: &Envelope) -> Result<Option<TaskEvent>, DecodeError> {
        TaskEvent::decode(envelope)
    }

    fn encode(event: &TaskEvent, salt: [u8; 32]) -> Result<Encoded, serde_json::Error> {
        let (data, private) = event.parts(salt)?;
        Ok((event.kind(), data, private))
    }

    fn evolve(state: Option<Task>, event: &TaskEvent) -> Option<Task> {
        task::evolve(state, event)
    }
}

impl Subject for CampaignId {
    type State = Campaign;
    type Event = CampaignEvent;
    type Refusal = campaign::Refusal;
    const KIND: &'static str = "campaign";
    const SCHEMA: u16 = campaign::event::SCHEMA;

    fn stream(self) -> StreamName {
        StreamName::campaign(self)
    }

    fn decode(envelope: &Envelope) -> Result<Option<CampaignEvent>, DecodeError> {
        CampaignEvent::decode(envelope)
    }

    fn encode(event: &CampaignEvent, salt: [u8; 32]) -> Result<Encoded, serde_json::Error> {
        let (data, private) = event.parts(salt)?;
        Ok((event.kind(), data, private))
    }

    fn evolve(state: Option<Campaign>, event: &CampaignEvent) -> Option<Campaign> {
        campaign::evolve(state, event)
    }
}

impl Subject for WebhookId {
    type State = Webhook;
    type Event = WebhookEvent;
    type Refusal = webhook::Refusal;
    const KIND: &'static str = "webhook";
    const SCHEMA: u16 = webhook::event::SCHEMA;

    fn stream(self) -> StreamName {
        StreamName::webhook(self)
    }

    fn decode(envelope: &Envelope) -> Result<Option<WebhookEvent>, DecodeError> {
        WebhookEvent::decode(envelope)
    }

    fn encode(event: &WebhookEvent, _salt: [u8; 32]) -> Result<Encoded, serde_json::Error> {
        Ok((event.kind(), event.data()?, None))
    }

    fn evolve(state: Option<Webhook>, event: &WebhookEvent) -> Option<Webhook> {
        webhook::evolve(state, event)
    }
}

/// The name of an event, what stays of its data, and what may be forgotten.
pub type Encoded = (&'static str, Box<RawValue>, Option<Private>);

/// Random bytes that nobody guesses: each half has 122 of its bits drawn anew.
fn salt() -> [u8; 32] {
    let mut salt = [0; 32];
    salt[..16].copy_from_slice(Uuid::new_v4().as_bytes());
    salt[16..].copy_from_slice(Uuid::new_v4().as_bytes());
    salt
}

/// A state, folded, and how far.
#[derive(Debug, Clone)]
pub struct Loaded<S> {
    /// The state. Shared with whatever is being done on it.
    pub state: Arc<S>,
    /// The revision of the last event folded in.
    pub revision: Revision,
}

/// Why a command was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError<R = task::Refusal> {
    /// The state does not allow it.
    #[error(transparent)]
    Refused(R),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An event does not read, or does not serialise.
    #[error("{0}")]
    Damaged(String),
}

/// Reads and folds a stream. `None`: there is nothing with this id.
pub async fn load<I: Subject>(
    store: &dyn EventStore,
    id: I,
) -> Result<Option<Loaded<I::State>>, JournalError<I::Refusal>> {
    let mut state = None;
    let mut revision = Revision(0);
    fold_stream(store, &id.stream(), Revision(0), |envelope| {
        revision = envelope.revision;
        match I::decode(&envelope) {
            Ok(Some(event)) => state = I::evolve(state.take(), &event),
            Ok(None) => {}
            Err(error) => return Err(JournalError::Damaged(error.to_string())),
        }
        Ok(())
    })
    .await?;
    Ok(state.map(|state| Loaded { state: Arc::new(state), revision }))
}

/// Envelopes for events that happen now.
pub fn new_events<I: Subject>(
    id: I,
    events: &[I::Event],
    actor: &Actor,
) -> Result<Vec<NewEvent>, JournalError<I::Refusal>> {
    let time = Timestamp::now();
    let stream = id.stream();
    let new = |event| {
        let (kind, data, private) =
            I::encode(event, salt()).map_err(|error| JournalError::Damaged(error.to_string()))?;
        Ok(NewEvent {
            id: EventId(Uuid::now_v7()),
            kind: Arc::from(kind),
            schema: I::SCHEMA,
            time,
            actor: actor.clone(),
            correlation: Some(stream.clone()),
            causation: None,
            data,
            private,
        })
    };
    events.iter().map(new).collect()
}

impl<S: Clone> Loaded<S> {
    /// The state after these events, which stand in the stream up to `revision`.
    #[must_use]
    pub fn after<I: Subject<State = S>>(self, events: &[I::Event], revision: Revision) -> Self {
        let state = events.iter().fold(Some(Arc::unwrap_or_clone(self.state)), I::evolve);
        let state = state.expect("a fold that began with a state ends with one");
        Self { state: Arc::new(state), revision }
    }
}

/// Appends what was decided on the state at this revision.
pub async fn append<I: Subject>(
    store: &dyn EventStore,
    id: I,
    revision: Revision,
    events: &[I::Event],
    who: &Actor,
) -> Result<Appended, JournalError<I::Refusal>> {
    let appended = store.append(&id.stream(), Expected::Exactly(revision), new_events(id, events, who)?).await?;
    stop_here_if_asked(I::KIND, appended.revision);
    Ok(appended)
}

/// Creates a task. `false`: its id is taken.
pub async fn create(
    store: &dyn EventStore,
    id: TaskId,
    spec: TaskSpec,
    who: &Actor,
) -> Result<bool, JournalError<task::Refusal>> {
    // What begins a task of a campaign belongs to the campaign's story; all that follows is the task's own.
    let correlation = spec.campaign.map_or_else(|| StreamName::task(id), StreamName::campaign);
    let events = task::decide(None, task::Command::Create(Box::new(spec))).map_err(JournalError::Refused)?;
    let mut events = new_events(id, &events, who)?;
    for event in &mut events {
        event.correlation = Some(correlation.clone());
    }
    begin(store, id, events).await
}

/// Creates a campaign. `false`: its id is taken.
pub async fn create_campaign(
    store: &dyn EventStore,
    id: CampaignId,
    spec: CampaignSpec,
    who: &Actor,
) -> Result<bool, JournalError<campaign::Refusal>> {
    let events = campaign::decide(None, campaign::Command::Create(Box::new(spec))).map_err(JournalError::Refused)?;
    begin(store, id, new_events(id, &events, who)?).await
}

/// Appends the first events of a stream. `false`: there is such a stream already.
pub(crate) async fn begin<I: Subject>(
    store: &dyn EventStore,
    id: I,
    events: Vec<NewEvent>,
) -> Result<bool, JournalError<I::Refusal>> {
    match store.append(&id.stream(), Expected::NoStream, events).await {
        Ok(appended) => {
            stop_here_if_asked(I::KIND, appended.revision);
            Ok(true)
        }
        Err(StoreError::WrongExpectedRevision { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// For the crash tests, in debug builds only: `ORCHESTRA_FAILPOINT=REVISION:FILE` stops the thread for good once a
/// task's stream has reached that revision, and says so by creating the file. Whoever waits for the file can then kill
/// the process between this append and whatever would have come next. `campaign:REVISION:FILE` does the same for a
/// campaign's stream.
fn stop_here_if_asked(category: &str, reached: Revision) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Ok(failpoint) = std::env::var("ORCHESTRA_FAILPOINT") else { return };
    let wanted = failpoint.strip_prefix("campaign:");
    if category == WebhookId::KIND || wanted.is_some() != (category == "campaign") {
        return;
    }
    let Some((revision, file)) = wanted.unwrap_or(&failpoint).split_once(':') else { return };
    // A batch moves the stream by more than one: the first append that reaches the place is the one. The file is
    // created once, so that a second process with the same variable does not stop again.
    let asked = revision.parse().is_ok_and(|revision: u64| reached.0 >= revision);
    if asked && std::fs::File::create_new(file).is_ok() {
        loop {
            std::thread::park();
        }
    }
}
