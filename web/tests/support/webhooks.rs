//! Webhooks of tests: the real rules over the test's log, and nobody who sends anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use orchestra_actors::journal::{self, JournalError};
use orchestra_actors::service::{FieldError, ServiceError};
use orchestra_actors::{MadeWebhook, NewWebhook, WebhookService};
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::webhook::{
    Attempt, Command, MessageId, Outcome, Patience, Refusal, Webhook, WebhookSpec, decide,
};
use orchestra_events::{Actor, EventId, EventStore as _, Expected, Position, StreamName, WebhookId};
use secrecy::SecretString;
use uuid::Uuid;

/// The webhooks in this log, and how many tests were sent.
pub struct Webhooks(pub Arc<MemoryStore>, AtomicUsize);

fn refused(error: JournalError<Refusal>) -> ServiceError {
    match error {
        JournalError::Refused(Refusal::NoSuchWebhook) => ServiceError::NoSuchWebhook,
        JournalError::Refused(refusal) => ServiceError::WebhookRefused(refusal),
        JournalError::Store(error) => error.into(),
        JournalError::Damaged(detail) => ServiceError::Internal(detail),
    }
}

fn secret(id: WebhookId, version: u32) -> SecretString {
    format!("whsec_{id}_{version}").into()
}

impl Webhooks {
    pub fn new(store: Arc<MemoryStore>) -> Self {
        Self(store, AtomicUsize::new(0))
    }

    /// How many tests were sent.
    pub fn tests(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }

    async fn ask(&self, id: WebhookId, command: Command, who: &Actor) -> Result<Webhook, ServiceError> {
        let loaded = journal::load(&*self.0, id).await.map_err(refused)?.ok_or(ServiceError::NoSuchWebhook)?;
        let decided = decide(Some(&loaded.state), command);
        let events = decided.map_err(|refusal| refused(JournalError::Refused(refusal)))?;
        if events.is_empty() {
            return Ok((*loaded.state).clone());
        }
        let appended = journal::append(&*self.0, id, loaded.revision, &events, who).await.map_err(refused)?;
        Ok((*loaded.after::<WebhookId>(&events, appended.revision).state).clone())
    }

    /// So many of a team's, that are described like this.
    pub async fn many(&self, count: usize, team: &str, description: &str) -> Vec<WebhookId> {
        let spec = WebhookSpec {
            team: Some(team.to_owned()),
            url: "https://receiver.example/hook".to_owned(),
            events: vec!["*".parse().expect("a pattern")],
            projects: Vec::new(),
            environments: Vec::new(),
            description: Some(description.to_owned()),
        };
        let mut ids = Vec::new();
        for _ in 0..count {
            let new = NewWebhook { spec: spec.clone(), idempotency: None };
            ids.push(self.create_webhook(new, Actor::system("test")).await.expect("a webhook").id);
        }
        ids
    }

    /// Writes down that something was delivered, as if it had been.
    pub async fn delivered(&self, id: WebhookId, position: u64) -> MessageId {
        let message = MessageId::of(id, EventId(Uuid::from_u128(position.into())));
        let attempt = Attempt {
            position: Some(Position(position)),
            message,
            kind: "task.created".to_owned(),
            attempt: 1,
            at: Timestamp::now(),
            ms: 3,
            outcome: Outcome::Delivered { status: 200 },
        };
        let (attempts, through, patience) = (vec![attempt], Position(position), Patience::default());
        let command = Command::Record { attempts, through, replayed_through: None, patience };
        self.ask(id, command, &Actor::system("test")).await.expect("it is recorded");
        message
    }
}

#[async_trait]
impl WebhookService for Webhooks {
    async fn create_webhook(&self, new: NewWebhook, who: Actor) -> Result<MadeWebhook, ServiceError> {
        if !new.spec.url.starts_with("https://") {
            let detail = "a webhook's URL begins with https://".to_owned();
            return Err(ServiceError::Invalid(vec![FieldError { pointer: "/url".to_owned(), detail }]));
        }
        // Under a key always the same id, as the real one has it.
        let named = new.idempotency.as_ref().map(|wish| format!("{} {}", wish.key, wish.owner));
        let uuid = named.map_or_else(Uuid::now_v7, |name| {
            let bytes: Vec<u8> = name.bytes().chain([0; 16]).take(16).collect();
            Uuid::from_slice(&bytes).expect("16 bytes")
        });
        let (id, hash) = (WebhookId::from_uuid(uuid), new.idempotency.map(|wish| wish.request_hash));
        if let Some(standing) = journal::load(&*self.0, id).await.map_err(refused)? {
            let same = standing.state.request_hash == hash;
            let made = MadeWebhook { id, secret: None, repeated: true };
            return if same { Ok(made) } else { Err(ServiceError::IdempotencyKeyReused) };
        }
        let command = Command::Create { spec: new.spec, after: self.0.head().await?, request_hash: hash };
        let events = decide(None, command).expect("a new one");
        let events = journal::new_events(id, &events, &who).map_err(refused)?;
        self.0.append(&StreamName::webhook(id), Expected::NoStream, events).await?;
        Ok(MadeWebhook { id, secret: Some(secret(id, 1)), repeated: false })
    }

    async fn change_webhook(&self, id: WebhookId, spec: WebhookSpec, who: Actor) -> Result<(), ServiceError> {
        self.ask(id, Command::Change(spec), &who).await.map(drop)
    }

    async fn rotate_webhook(&self, id: WebhookId, overlap: Duration, who: Actor) -> Result<SecretString, ServiceError> {
        let webhook = self.ask(id, Command::Rotate { now: Timestamp::now(), overlap }, &who).await?;
        Ok(secret(id, webhook.secret))
    }

    async fn enable_webhook(&self, id: WebhookId, enabled: bool, who: Actor) -> Result<(), ServiceError> {
        let command = if enabled { Command::Enable { now: Timestamp::now() } } else { Command::Disable };
        self.ask(id, command, &who).await.map(drop)
    }

    async fn remove_webhook(&self, id: WebhookId, who: Actor) -> Result<(), ServiceError> {
        self.ask(id, Command::Remove, &who).await.map(drop)
    }

    async fn test_webhook(&self, id: WebhookId) -> Result<Attempt, ServiceError> {
        journal::load(&*self.0, id).await.map_err(refused)?.ok_or(ServiceError::NoSuchWebhook)?;
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(Attempt {
            position: None,
            message: MessageId::of(id, EventId(Uuid::nil())),
            kind: "webhook.ping".to_owned(),
            attempt: 1,
            at: Timestamp::now(),
            ms: 3,
            outcome: Outcome::GivenUp { status: Some(500), fault: None },
        })
    }

    async fn replay_webhook(
        &self,
        id: WebhookId,
        from: Position,
        to: Position,
        who: Actor,
    ) -> Result<(), ServiceError> {
        self.ask(id, Command::Replay { from, to }, &who).await.map(drop)
    }
}
