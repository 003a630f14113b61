//! What the outer rooms may ask of webhooks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use async_trait::async_trait;
use jiff::Timestamp;
use orchestra_events::store::MAX_PAGE;
use orchestra_events::webhook::state::Status;
use orchestra_events::webhook::{Attempt, Command, Patience, Refusal, Webhook, WebhookSpec, decide};
use orchestra_events::{Actor as Who, EventStore, Position, WebhookId};
use orchestra_runtime::egress::{Network, Resolve};
use orchestra_runtime::server_key::ServerKey;
use orchestra_runtime::webhook::{Secrets, Sender, Targets};
use secrecy::SecretString;
use uuid::Uuid;

use super::attempt::Means;
use super::feed::Owners;
use super::supervisor::{Count, Fetch, WebhookSupervisor};
use super::{Ask, AskError, Drain, JournalError, Ping, WebhookActor};
use crate::journal;
use crate::orchestra::derived_id;
use crate::service::{FieldError, Idempotency, ServiceError};

/// How often an actor that left just before the message came is made again for it.
const ASK_TRIES: u32 = 3;
/// How long what is under way may take when the server ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two looks at whether all are done.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// What an operator says about webhooks.
#[derive(Debug, Clone)]
pub struct WebhookRules {
    /// Networks that messages may go into although they are private, reserved or the like.
    pub networks: Vec<Network>,
    /// Webhooks of one team, and of the operators.
    pub most: usize,
    /// How long a receiver may take to answer.
    pub timeout: Duration,
    /// How long receivers are borne with.
    pub patience: Patience,
}

/// What a caller asks for.
#[derive(Debug, Clone)]
pub struct NewWebhook {
    /// What it is for.
    pub spec: WebhookSpec,
    /// Who repeats itself.
    pub idempotency: Option<Idempotency>,
}

/// A webhook was made.
#[derive(Debug, Clone)]
pub struct MadeWebhook {
    /// Its id.
    pub id: WebhookId,
    /// Its first secret. It is shown once: a repeat has none.
    pub secret: Option<SecretString>,
    /// It had been made before under the same idempotency key.
    pub repeated: bool,
}

/// What can be asked of webhooks. Who may ask is the caller's to check.
#[async_trait]
pub trait WebhookService: Send + Sync + 'static {
    /// Makes a webhook, which is told what happens from now on. Durable when it returns.
    async fn create_webhook(&self, new: NewWebhook, actor: Who) -> Result<MadeWebhook, ServiceError>;
    /// Has a webhook be for something else. The team stays.
    async fn change_webhook(&self, id: WebhookId, spec: WebhookSpec, actor: Who) -> Result<(), ServiceError>;
    /// Signs with another secret from now on, and for a while with the one before too. Answers the new one.
    async fn rotate_webhook(&self, id: WebhookId, overlap: Duration, actor: Who) -> Result<SecretString, ServiceError>;
    /// Sends nothing any more, or goes on where it ended.
    async fn enable_webhook(&self, id: WebhookId, enabled: bool, actor: Who) -> Result<(), ServiceError>;
    /// Removes a webhook for good.
    async fn remove_webhook(&self, id: WebhookId, actor: Who) -> Result<(), ServiceError>;
    /// Sends a test, and answers what came of it.
    async fn test_webhook(&self, id: WebhookId) -> Result<Attempt, ServiceError>;
    /// Sends again what the webhook wants of this part of the log, under the same message ids as before. One event is
    /// sent again with the same position twice.
    async fn replay_webhook(&self, id: WebhookId, from: Position, to: Position, actor: Who)
    -> Result<(), ServiceError>;
}

/// The running webhooks.
pub struct Webhooks {
    store: Arc<dyn EventStore>,
    secrets: Secrets,
    targets: Targets,
    most: usize,
    /// Those that are not removed, and whose they are.
    known: Mutex<HashMap<WebhookId, Option<String>>>,
    /// One is made at a time, so that there are never too many.
    making: tokio::sync::Mutex<()>,
    supervisor: Addr<WebhookSupervisor>,
    arbiter: Arbiter,
}

fn journal_error(error: JournalError) -> ServiceError {
    match error {
        JournalError::Refused(Refusal::NoSuchWebhook) => ServiceError::NoSuchWebhook,
        JournalError::Refused(refusal) => ServiceError::WebhookRefused(refusal),
        JournalError::Store(error) => error.into(),
        JournalError::Damaged(detail) => ServiceError::Internal(detail),
    }
}

fn ask_error(error: AskError) -> ServiceError {
    match error {
        AskError::Busy => ServiceError::Busy,
        AskError::Journal(error) => journal_error(error),
    }
}

impl Webhooks {
    /// Starts them on an arbiter of their own. Must be called within an actix system. Nothing is sent before
    /// [`resume`](Self::resume).
    pub fn start(
        store: Arc<dyn EventStore>,
        key: Arc<ServerKey>,
        resolver: Arc<dyn Resolve>,
        rules: WebhookRules,
    ) -> Arc<Self> {
        let (secrets, targets) = (Secrets::new(key), Targets::new(rules.networks, resolver));
        let means = Means {
            store: Arc::clone(&store),
            secrets: secrets.clone(),
            targets: targets.clone(),
            sender: Sender::new(&targets, rules.timeout),
            patience: rules.patience,
            owners: Arc::new(Owners::default()),
        };
        let arbiter = Arbiter::new();
        let handle = arbiter.handle();
        let supervisor =
            WebhookSupervisor::start_in_arbiter(&arbiter.handle(), move |_| WebhookSupervisor::new(means, handle));
        let (known, making) = (Mutex::default(), tokio::sync::Mutex::new(()));
        Arc::new(Self { store, secrets, targets, most: rules.most, known, making, supervisor, arbiter })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<WebhookId, Option<String>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes every webhook up where it stands. Returns how many there are.
    pub async fn resume(&self) -> Result<usize, ServiceError> {
        let mut last = None;
        loop {
            let streams = self.store.streams("webhook", last.as_ref(), MAX_PAGE).await?;
            for id in streams.iter().filter_map(orchestra_events::StreamName::webhook_id) {
                let loaded = journal::load(&*self.store, id).await.map_err(journal_error)?;
                let Some(webhook) = loaded.filter(|loaded| loaded.state.status != Status::Removed) else { continue };
                self.known().insert(id, webhook.state.spec.team.clone());
                self.actor(id).await?;
            }
            match streams.into_iter().next_back() {
                Some(stream) => last = Some(stream),
                None => break,
            }
        }
        Ok(self.known().len())
    }

    /// Waits for what is under way and begins nothing new.
    pub async fn stop(&self) {
        let drained = async {
            self.supervisor.send(Drain).await?;
            while self.supervisor.send(Count).await? > 0 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
            Ok::<_, MailboxError>(())
        };
        match tokio::time::timeout(DRAIN_TIMEOUT, drained).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the webhooks ended before they were asked to"),
            Err(_) => {
                tracing::warn!("messages that took longer than {DRAIN_TIMEOUT:?} are sent again at the next start")
            }
        }
        self.arbiter.stop();
    }

    async fn actor(&self, id: WebhookId) -> Result<Addr<WebhookActor>, ServiceError> {
        self.supervisor.send(Fetch(id)).await.ok().flatten().ok_or(ServiceError::Busy)
    }

    async fn ask(&self, id: WebhookId, command: Command, who: Who) -> Result<Arc<Webhook>, ServiceError> {
        if !self.known().contains_key(&id) {
            return Err(ServiceError::NoSuchWebhook);
        }
        for _ in 0..ASK_TRIES {
            match self.actor(id).await?.send(Ask { command: command.clone(), who: who.clone() }).await {
                Ok(answer) => return answer.map_err(ask_error),
                // It left just before the message came.
                Err(MailboxError::Closed) => {}
                Err(MailboxError::Timeout) => break,
            }
        }
        Err(ServiceError::Busy)
    }

    /// Whether messages may be sent there.
    async fn check_url(&self, url: &str) -> Result<(), ServiceError> {
        let checked = match self.targets.read(url) {
            Ok(target) => self.targets.look(&target).await,
            Err(error) => Err(error),
        };
        checked.map_err(|error| {
            ServiceError::Invalid(vec![FieldError { pointer: "/url".to_owned(), detail: error.to_string() }])
        })
    }

    fn check_number(&self, team: Option<&str>) -> Result<(), ServiceError> {
        let of_team = self.known().values().filter(|other| other.as_deref() == team).count();
        if of_team < self.most {
            return Ok(());
        }
        let detail = format!("there are {of_team} webhooks already, which is the most; remove one first");
        Err(ServiceError::Invalid(vec![FieldError { pointer: String::new(), detail }]))
    }

    async fn made_before(&self, id: WebhookId, hash: Option<&str>) -> Result<Option<MadeWebhook>, ServiceError> {
        let Some(standing) = journal::load(&*self.store, id).await.map_err(journal_error)? else { return Ok(None) };
        if standing.state.request_hash.as_deref() != hash {
            return Err(ServiceError::IdempotencyKeyReused);
        }
        Ok(Some(MadeWebhook { id, secret: None, repeated: true }))
    }
}

#[async_trait]
impl WebhookService for Webhooks {
    async fn create_webhook(&self, new: NewWebhook, who: Who) -> Result<MadeWebhook, ServiceError> {
        let hash = new.idempotency.as_ref().map(|wish| wish.request_hash.clone());
        let uuid = new.idempotency.as_ref().map_or_else(Uuid::now_v7, |wish| derived_id("webhook", wish));
        let id = WebhookId::from_uuid(uuid);
        if new.idempotency.is_some()
            && let Some(made) = self.made_before(id, hash.as_deref()).await?
        {
            return Ok(made);
        }
        self.check_number(new.spec.team.as_deref())?;
        // Before it is anybody's turn: how long an address takes to be found is up to whoever owns the name.
        self.check_url(&new.spec.url).await?;
        let _turn = self.making.lock().await;
        // It may have been made meanwhile, or another one in the last place.
        if new.idempotency.is_some()
            && let Some(made) = self.made_before(id, hash.as_deref()).await?
        {
            return Ok(made);
        }
        self.check_number(new.spec.team.as_deref())?;
        let team = new.spec.team.clone();
        let command = Command::Create { spec: new.spec, after: self.store.head().await?, request_hash: hash.clone() };
        let events = decide(None, command).map_err(|refusal| journal_error(JournalError::Refused(refusal)))?;
        let events = journal::new_events(id, &events, &who).map_err(journal_error)?;
        if !journal::begin::<WebhookId>(&*self.store, id, events).await.map_err(journal_error)? {
            return self.made_before(id, hash.as_deref()).await?.ok_or(ServiceError::NoSuchWebhook);
        }
        self.known().insert(id, team);
        self.actor(id).await?;
        Ok(MadeWebhook { id, secret: Some(self.secrets.shown(id, 1)), repeated: false })
    }

    async fn change_webhook(&self, id: WebhookId, spec: WebhookSpec, who: Who) -> Result<(), ServiceError> {
        self.check_url(&spec.url).await?;
        self.ask(id, Command::Change(spec), who).await.map(drop)
    }

    async fn rotate_webhook(&self, id: WebhookId, overlap: Duration, who: Who) -> Result<SecretString, ServiceError> {
        let webhook = self.ask(id, Command::Rotate { now: Timestamp::now(), overlap }, who).await?;
        Ok(self.secrets.shown(id, webhook.secret))
    }

    async fn enable_webhook(&self, id: WebhookId, enabled: bool, who: Who) -> Result<(), ServiceError> {
        let command = if enabled { Command::Enable { now: Timestamp::now() } } else { Command::Disable };
        self.ask(id, command, who).await.map(drop)
    }

    async fn remove_webhook(&self, id: WebhookId, who: Who) -> Result<(), ServiceError> {
        self.ask(id, Command::Remove, who).await?;
        self.known().remove(&id);
        Ok(())
    }

    async fn test_webhook(&self, id: WebhookId) -> Result<Attempt, ServiceError> {
        if !self.known().contains_key(&id) {
            return Err(ServiceError::NoSuchWebhook);
        }
        let answer = self.actor(id).await?.send(Ping).await;
        answer.map_err(|_| ServiceError::Busy)?.map_err(ask_error)
    }

    async fn replay_webhook(&self, id: WebhookId, from: Position, to: Position, who: Who) -> Result<(), ServiceError> {
        self.ask(id, Command::Replay { from, to }, who).await.map(drop)
    }
}
