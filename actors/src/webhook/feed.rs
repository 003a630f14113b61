//! What a webhook wants of the log, page by page, and to whom each event belongs.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use orchestra_events::campaign::CampaignEvent;
use orchestra_events::key::KeyEvent;
use orchestra_events::task::TaskEvent;
use orchestra_events::webhook::{Owner, WebhookEvent, WebhookSpec};
use orchestra_events::{Direction, Envelope, EventStore, Position, Revision, StoreError, StreamName};

/// Streams whose owner is remembered; beyond it, they are asked for again.
const REMEMBERED: usize = 16_384;
/// Events that a webhook reads ahead of what it sends. Only their places are kept.
pub(crate) const READ_AHEAD: usize = 256;
/// How long a webhook that was at the end of the log waits for more once there is some: a burst is one read.
const GATHER: Duration = Duration::from_millis(50);

/// An event that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it stands.
    pub position: Position,
    /// In which stream: first attempts at the events of one stream are made in their order.
    pub stream: StreamName,
}

/// To whom streams belong. A stream's owner never changes.
#[derive(Debug, Default)]
pub(crate) struct Owners(Mutex<HashMap<StreamName, Owner>>);

impl Owners {
    pub async fn of(&self, store: &dyn EventStore, event: &Envelope) -> Result<Owner, StoreError> {
        let stream = &event.stream;
        let team = |team: Option<&str>| Owner { team: team.map(str::to_owned), ..Owner::default() };
        match stream.category() {
            "ledger" => return Ok(team(stream.ledger_team())),
            "billing" => return Ok(team(stream.billing_team())),
            // Those of callers without a team stand under a name that no team has.
            "access" => return Ok(team(stream.as_str().strip_prefix("access-"))),
            "task" | "campaign" | "key" | "webhook" => {}
            // Sessions and what else there is: whoever they were about is said by the actor alone.
            _ => return Ok(team(event.actor.team.as_deref())),
        }
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(stream) {
            return Ok(known.clone());
        }
        let first = store.read_stream(stream, Some(Revision(0)), Direction::Forwards, 1).await?;
        let owner = first.first().and_then(owner_by_first).unwrap_or_else(|| {
            tracing::warn!(%stream, "whose stream it is cannot be told; only operators are told of it");
            Owner::default()
        });
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(stream.clone(), owner.clone());
        Ok(owner)
    }
}

/// The owner, as the first event of a stream says.
fn owner_by_first(event: &Envelope) -> Option<Owner> {
    let team = |team: Option<String>| Some(Owner { team, ..Owner::default() });
    match event.stream.category() {
        "task" => match TaskEvent::decode(event).ok()?? {
            TaskEvent::Created(spec) => {
                Some(Owner { team: Some(spec.team), project: spec.project, environment: spec.environment })
            }
            _ => None,
        },
        "campaign" => match CampaignEvent::decode(event).ok()?? {
            CampaignEvent::CampaignCreated(spec) => {
                let task = spec.template;
                Some(Owner { team: Some(task.team), project: task.project, environment: task.environment })
            }
            _ => None,
        },
        "key" => match KeyEvent::decode(event).ok()?? {
            KeyEvent::KeyIssued(grant) => team(grant.team),
            _ => None,
        },
        "webhook" => match WebhookEvent::decode(event).ok()?? {
            WebhookEvent::WebhookCreated { spec, .. } => team(spec.team),
            _ => None,
        },
        _ => None,
    }
}

/// One look into the log after a position: what is wanted, and how far it went. Nothing new: the same position.
pub(crate) async fn page(
    store: &dyn EventStore,
    owners: &Owners,
    own: &StreamName,
    spec: &WebhookSpec,
    after: Position,
) -> Result<(Vec<Found>, Position), StoreError> {
    let page = store.read_matching(after, &spec.filter(), READ_AHEAD).await?;
    let mut found = Vec::new();
    for event in &page.events {
        if spec.wants(own, event) && spec.may_see(&owners.of(store, event).await?) {
            found.push(Found { position: event.position, stream: event.stream.clone() });
        }
    }
    Ok((found, page.through))
}

/// The same, but waits until there is something to look at.
pub(crate) async fn next_page(
    store: &dyn EventStore,
    owners: &Owners,
    own: &StreamName,
    spec: &WebhookSpec,
    after: Position,
) -> Result<(Vec<Found>, Position), StoreError> {
    let mut bell = store.bell();
    loop {
        // Marked as heard before the read: what is appended in between rings again.
        bell.borrow_and_update();
        let (found, through) = page(store, owners, own, spec, after).await?;
        if through > after {
            return Ok((found, through));
        }
        bell.changed().await.map_err(|_| StoreError::Closed)?;
        tokio::time::sleep(GATHER).await;
    }
}
