//! A task's stream, read and written: load and fold, decide and append.

use std::sync::Arc;

use jiff::Timestamp;
use orchestra_events::store::fold_stream;
use orchestra_events::task::{Command, Refusal, Task, TaskEvent, TaskSpec, decide, evolve};
use orchestra_events::{
    Actor, Appended, EventId, EventStore, Expected, NewEvent, Revision, StoreError, StreamName, TaskId,
};
use uuid::Uuid;

/// A task, folded, and how far.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The task. Shared with the step that is being done.
    pub task: Arc<Task>,
    /// The revision of the last event folded in.
    pub revision: Revision,
}

/// Why a command was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The task's state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An event does not read, or does not serialise.
    #[error("{0}")]
    Damaged(String),
}

/// Reads and folds a task's stream. `None`: there is no such task.
pub async fn load(store: &dyn EventStore, id: TaskId) -> Result<Option<Loaded>, JournalError> {
    let mut task = None;
    let mut revision = Revision(0);
    fold_stream(store, &StreamName::task(id), Revision(0), |envelope| {
        revision = envelope.revision;
        match TaskEvent::decode(&envelope) {
            Ok(Some(event)) => task = evolve(task.take(), &event),
            Ok(None) => {}
            Err(error) => return Err(JournalError::Damaged(error.to_string())),
        }
        Ok(())
    })
    .await?;
    Ok(task.map(|task| Loaded { task: Arc::new(task), revision }))
}

/// Envelopes for events that happen now.
pub fn new_events(id: TaskId, events: &[TaskEvent], actor: &Actor) -> Result<Vec<NewEvent>, JournalError> {
    let time = Timestamp::now();
    let stream = StreamName::task(id);
    events
        .iter()
        .map(|event| {
            Ok(NewEvent {
                id: EventId(Uuid::now_v7()),
                kind: Arc::from(event.kind()),
                schema: orchestra_events::task::event::SCHEMA,
                time,
                actor: actor.clone(),
                correlation: Some(stream.clone()),
                causation: None,
                data: event.data().map_err(|error| JournalError::Damaged(error.to_string()))?,
            })
        })
        .collect()
}

impl Loaded {
    /// The state after these events, which stand in the stream up to `revision`.
    #[must_use]
    pub fn after(self, events: &[TaskEvent], revision: Revision) -> Self {
        let task = events.iter().fold(Some(Arc::unwrap_or_clone(self.task)), evolve);
        let task = task.expect("a fold that began with a task ends with one");
        Self { task: Arc::new(task), revision }
    }
}

/// Appends what was decided on the state at this revision.
pub async fn append(
    store: &dyn EventStore,
    id: TaskId,
    revision: Revision,
    events: &[TaskEvent],
    who: &Actor,
) -> Result<Appended, JournalError> {
    let expected = Expected::Exactly(revision);
    let appended = store.append(&StreamName::task(id), expected, new_events(id, events, who)?).await?;
    stop_here_if_asked("task", appended.revision);
    Ok(appended)
}

/// Creates a task. `false`: its id is taken.
pub async fn create(store: &dyn EventStore, id: TaskId, spec: TaskSpec, who: &Actor) -> Result<bool, JournalError> {
    // What begins a task of a campaign belongs to the campaign's story; all that follows is the task's own.
    let correlation = spec.campaign.map_or_else(|| StreamName::task(id), StreamName::campaign);
    let events = decide(None, Command::Create(Box::new(spec)))?;
    let mut events = new_events(id, &events, who)?;
    for event in &mut events {
        event.correlation = Some(correlation.clone());
    }
    match store.append(&StreamName::task(id), Expected::NoStream, events).await {
        Ok(appended) => {
            stop_here_if_asked("task", appended.revision);
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
pub(crate) fn stop_here_if_asked(category: &str, reached: Revision) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Ok(failpoint) = std::env::var("ORCHESTRA_FAILPOINT") else { return };
    let wanted = failpoint.strip_prefix("campaign:");
    if wanted.is_some() != (category == "campaign") {
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
