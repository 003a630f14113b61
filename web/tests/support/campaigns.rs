//! Campaigns of tests: the real rules over the test's log, and nobody who begins a task by himself.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use orchestra_actors::Credentials;
use orchestra_actors::campaign::JournalError;
use orchestra_actors::campaign::service::{Accepted, Account, CampaignService, NewCampaign};
use orchestra_actors::journal;
use orchestra_actors::service::{Erased, FieldError, ServiceError};
use orchestra_events::campaign::{CampaignRepo, CampaignSpec, Command, Refusal, child_id, decide};
use orchestra_events::repo::RepoRef;
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::task::TaskSpec;
use orchestra_events::task::event::ErasureReason;
use orchestra_events::{Actor, CampaignId};
use secrecy::ExposeSecret;
use uuid::Uuid;

/// The campaigns in this log.
pub struct Campaigns {
    store: Arc<MemoryStore>,
    /// The secrets that arrived, to see that they do.
    pub secrets: Mutex<Vec<String>>,
}

fn refused(error: JournalError) -> ServiceError {
    match error {
        JournalError::Refused(Refusal::NoSuchCampaign) => ServiceError::NoSuchCampaign,
        JournalError::Refused(refusal) => ServiceError::CampaignRefused(refusal),
        JournalError::Store(error) => error.into(),
        JournalError::Damaged(detail) => ServiceError::Internal(detail),
    }
}

impl Campaigns {
    pub fn new(store: Arc<MemoryStore>) -> Self {
        Self { store, secrets: Mutex::default() }
    }

    /// Has the campaign do something.
    pub async fn command(&self, id: CampaignId, command: Command, who: &Actor) -> Result<(), ServiceError> {
        let loaded = journal::load(&*self.store, id).await.map_err(refused)?;
        let events = decide(loaded.as_ref().map(|loaded| &*loaded.state), command);
        let events = events.map_err(|refusal| refused(JournalError::Refused(refusal)))?;
        let revision = loaded.expect("it decided").revision;
        if !events.is_empty() {
            journal::append(&*self.store, id, revision, &events, who).await.map_err(refused)?;
        }
        Ok(())
    }

    fn keep(&self, given: &Credentials) {
        let mut secrets = self.secrets.lock().expect("no panic while held");
        secrets.extend([&given.model, &given.git].into_iter().flatten().map(|s| s.expose_secret().to_owned()));
    }
}

#[async_trait]
impl CampaignService for Campaigns {
    async fn create_campaign(&self, new: NewCampaign, who: Actor) -> Result<Accepted, ServiceError> {
        self.keep(&new.task.credentials);
        // Under a key always the same id, as the real one has it.
        let named = new.task.idempotency.as_ref().map(|wish| format!("{} {}", wish.owner, wish.key));
        let uuid = named.map_or_else(Uuid::now_v7, |name| {
            let bytes: Vec<u8> = name.bytes().rev().chain([0; 16]).take(16).collect();
            Uuid::from_slice(&bytes).expect("16 bytes")
        });
        let id = CampaignId::from_uuid(uuid);
        let hash = new.task.idempotency.as_ref().map(|wish| wish.request_hash.clone());
        if let Some(standing) = journal::load(&*self.store, id).await.map_err(refused)? {
            let same = standing.state.spec.request_hash == hash;
            return if same { Ok(Accepted { id, repeated: true }) } else { Err(ServiceError::IdempotencyKeyReused) };
        }
        let mut repos = Vec::new();
        for (index, wanted) in (0..).zip(&new.repos) {
            let repo = RepoRef::parse(&wanted.repo, "github").map_err(|error| {
                ServiceError::Invalid(vec![FieldError {
                    pointer: format!("/repos/{index}"),
                    detail: error.to_string(),
                }])
            })?;
            let branch = wanted.branch.clone().unwrap_or_else(|| format!("orchestra/{}", child_id(id, index)));
            repos.push(CampaignRepo { repo, base: wanted.base.clone(), branch });
        }
        let task = new.task;
        let bounds = Arc::clone(&task.bounds);
        let template = TaskSpec {
            repo: repos[0].repo.clone(),
            task: task.task,
            model: task.model,
            harness: task.harness,
            command: task.command,
            retry: task.retry,
            team: task.team,
            project: task.project,
            environment: task.environment,
            task_type: task.task_type,
            customer: task.customer,
            budget: task.budget,
            base: repos[0].base.clone(),
            branch: repos[0].branch.clone(),
            further: Vec::new(),
            pull_request: task.pull_request,
            campaign: Some(id),
            image: task.image.unwrap_or_else(|| "default".to_owned()),
            egress: Vec::new(),
            timeout_seconds: task.timeout_seconds.unwrap_or(1_800),
            metadata: task.metadata,
            request_hash: None,
            caller_brings_model_key: task.credentials.model.is_some(),
            caller_brings_git_token: task.credentials.git.is_some(),
        };
        bounds.admits(&template)?;
        if let Some(outside) = repos.iter().find(|repo| !bounds.admits_repo(&repo.repo)) {
            return Err(bounds.not_for(&outside.repo).into());
        }
        let (name, budget, limits) = (new.name, new.budget, new.limits);
        let spec = CampaignSpec { name, template, repos, budget, limits, request_hash: hash };
        journal::create_campaign(&*self.store, id, spec, &who).await.map_err(refused)?;
        Ok(Accepted { id, repeated: false })
    }

    async fn cancel_campaign(&self, id: CampaignId, reason: Option<String>, who: Actor) -> Result<(), ServiceError> {
        self.command(id, Command::Cancel { reason }, &who).await
    }

    async fn retry_campaign(&self, id: CampaignId, given: Credentials, who: Actor) -> Result<(), ServiceError> {
        self.keep(&given);
        self.command(id, Command::Retry, &who).await
    }

    async fn supply_campaign(&self, _: CampaignId, given: Credentials, _: Actor) -> Result<(), ServiceError> {
        self.keep(&given);
        Ok(())
    }

    async fn erase_campaign_content(&self, id: CampaignId, who: Actor) -> Result<Erased, ServiceError> {
        self.command(id, Command::EraseContent { reason: ErasureReason::Request, events: 1 }, &who).await?;
        Ok(Erased::UnderWay)
    }

    async fn account(&self, _: &str, _: CampaignId) -> Result<Option<Account>, ServiceError> {
        Ok(Some(Account::default()))
    }
}
