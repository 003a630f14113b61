//! What the outer rooms may ask of campaigns, and how the orchestra answers it.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;
use orchestra_events::campaign::event::{CampaignEvent, CampaignRepo, CampaignSpec, Limits};
use orchestra_events::campaign::{Command, Refusal, child_id};
use orchestra_events::ledger::{Amount, Cap};
use orchestra_events::store::MAX_EVENT_BYTES;
use orchestra_events::task::TaskSpec;
use orchestra_events::task::command::Command as TaskCommand;
use orchestra_events::task::event::Budget;
use orchestra_events::{Actor as Who, CampaignId};
use orchestra_runtime::vault::Credentials;

use super::children::{Room, may_need_secrets};
use super::supervisor::{TakeUp, Tell};
use super::{AskError, JournalError, children};
use crate::journal;
use crate::orchestra::{Orchestra, derived_id, kinds};
use crate::service::{Erased, FieldError, NewRepo, NewTask, ServiceError};
use crate::workshop::money::opening_quote;

/// Most faults of repositories that one answer names.
const MAX_FAULTS: usize = 64;

/// What a caller asks for, syntax checked, names not yet resolved.
#[derive(Debug, Clone)]
pub struct NewCampaign {
    /// What its owner calls it.
    pub name: String,
    /// The task for each repository, with the first one in it; its idempotency key is the campaign's.
    pub task: NewTask,
    /// The repositories.
    pub repos: Vec<NewRepo>,
    /// What all tasks together may cost.
    pub budget: Budget,
    /// How fast it may go, and when it stops by itself.
    pub limits: Limits,
}

/// A campaign was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its id.
    pub id: CampaignId,
    /// It had been submitted before under the same idempotency key.
    pub repeated: bool,
}

/// A campaign's money as its team's ledger has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// What all its tasks together may cost.
    pub cap: Cap,
    /// Settled.
    pub spent: Amount,
    /// Set aside for calls that are under way.
    pub reserved: Amount,
}

/// What can be asked of campaigns.
#[async_trait]
pub trait CampaignService: Send + Sync + 'static {
    /// Takes a campaign. Durable when it returns.
    async fn create_campaign(&self, new: NewCampaign, actor: Who) -> Result<Accepted, ServiceError>;
    /// Asks for a campaign and all its tasks to be stopped.
    async fn cancel_campaign(&self, id: CampaignId, reason: Option<String>, actor: Who) -> Result<(), ServiceError>;
    /// Does again what failed, and goes on where it was paused.
    async fn retry_campaign(&self, id: CampaignId, given: Credentials, actor: Who) -> Result<(), ServiceError>;
    /// Replaces the secrets of a campaign and of all its tasks that run or wait for them.
    async fn supply_campaign(&self, id: CampaignId, given: Credentials, actor: Who) -> Result<(), ServiceError>;
    /// Forgets what was said and written in a campaign and its tasks, which must all have ended. Promised when it
    /// returns.
    async fn erase_campaign_content(&self, id: CampaignId, actor: Who) -> Result<Erased, ServiceError>;
    /// Its account in the ledger; `None` before its first task began, and long after its end.
    async fn account(&self, team: &str, id: CampaignId) -> Result<Option<Account>, ServiceError>;
}

/// A campaign's id: new, or, under an idempotency key, the one that the same key always gives.
fn campaign_id(new: &NewCampaign) -> CampaignId {
    let uuid = match &new.task.idempotency {
        Some(idempotency) => derived_id("campaign", idempotency),
        None => uuid::Uuid::now_v7(),
    };
    CampaignId::from_uuid(uuid)
}

/// By what two names of one repository are known: forges do not tell upper from lower case.
fn same_repo(repo: &CampaignRepo) -> String {
    repo.repo.to_string().to_ascii_lowercase()
}

/// Why two tasks on the same repository would be in each other's way.
fn clash(first: u32, earlier: &CampaignRepo, later: &CampaignRepo) -> Option<String> {
    if earlier.base == later.base {
        return Some(format!("is the same repository and base as number {first}; name it once"));
    }
    if earlier.base.is_none() || later.base.is_none() {
        // The default branch may be the one that the other names.
        return Some(format!("is the same repository as number {first}, and one of them names no base; name both"));
    }
    (earlier.branch == later.branch)
        .then(|| format!("would push to the same branch of the same repository as number {first}; give it another"))
}

fn journal_error(error: JournalError) -> ServiceError {
    match error {
        JournalError::Refused(Refusal::NoSuchCampaign) => ServiceError::NoSuchCampaign,
        JournalError::Refused(refusal) => ServiceError::CampaignRefused(refusal),
        JournalError::Store(error) => error.into(),
        JournalError::Damaged(detail) => ServiceError::Internal(detail),
    }
}

impl Orchestra {
    pub(crate) async fn tell_campaign(&self, id: CampaignId, command: Command, who: Who) -> Result<(), ServiceError> {
        let answer = self.campaigns.send(Tell { id, ask: (command, who) }).await;
        match answer.map_err(|_| ServiceError::Busy)? {
            Ok(()) => Ok(()),
            Err(AskError::Busy) => Err(ServiceError::Busy),
            Err(AskError::Journal(error)) => Err(journal_error(error)),
        }
    }

    /// Gives a campaign these secrets, and each of its tasks that runs or waits for them.
    async fn give(&self, id: CampaignId, given: Credentials, who: &Who) -> Result<(), ServiceError> {
        let supplied = kinds(&given);
        if supplied.is_empty() {
            return Ok(());
        }
        // First the campaign's own, from which a task that begins meanwhile takes them.
        self.workshop.vault.put(id, given.clone()).map_err(|_| ServiceError::Busy)?;
        // Read after that: a task that began in between was given the old ones.
        let loaded = journal::load(&*self.store, id).await.map_err(journal_error)?;
        let campaign = loaded.ok_or(ServiceError::NoSuchCampaign)?.state;
        if campaign.finished {
            // Its last task has ended meanwhile, and its actor has wiped what there was.
            self.workshop.vault.forget(id);
            return Ok(());
        }
        for (index, ..) in campaign.running() {
            let task = child_id(id, index);
            let standing = journal::load(&*self.store, task).await;
            let standing = standing.map_err(|error| ServiceError::Internal(error.to_string()))?;
            if !standing.is_some_and(|loaded| may_need_secrets(&loaded.state)) {
                continue;
            }
            self.workshop.vault.put(task, given.clone()).map_err(|_| ServiceError::Busy)?;
            let command = TaskCommand::SupplyCredentials { supplied: supplied.clone(), now: Timestamp::now() };
            match self.tell(task, command, who.clone()).await {
                // It has come to its end meanwhile.
                Ok(()) | Err(ServiceError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Wipes the secrets of a campaign of which no task will ask for them.
    async fn forget_if_over(&self, id: CampaignId) {
        if let Ok(Some(loaded)) = journal::load(&*self.store, id).await
            && loaded.state.finished
        {
            self.workshop.vault.forget(id);
        }
    }

    /// Resolves the names in a request.
    fn campaign_spec(&self, id: CampaignId, new: &NewCampaign) -> Result<CampaignSpec, ServiceError> {
        let mut errors = Vec::new();
        let mut template = None;
        match self.spec(child_id(id, 0), &new.task) {
            Ok(spec) => template = Some(spec),
            // The repositories are looked at one by one below.
            Err(ServiceError::Invalid(found)) => {
                errors.extend(found.into_iter().filter(|error| !error.pointer.starts_with("/repos/")))
            }
            Err(error) => return Err(error),
        }
        let repos = self.campaign_repos(id, new, &mut errors);
        if let Some(outside) = repos.iter().find(|repo| !new.task.bounds.admits_repo(&repo.repo)) {
            return Err(new.task.bounds.not_for(&outside.repo).into());
        }
        let Some(template) = template.filter(|_| errors.is_empty()) else { return Err(ServiceError::Invalid(errors)) };
        Ok(CampaignSpec {
            name: new.name.clone(),
            template: TaskSpec { campaign: Some(id), request_hash: None, ..template },
            repos,
            budget: new.budget,
            limits: new.limits,
            request_hash: new.task.idempotency.as_ref().map(|idempotency| idempotency.request_hash.clone()),
        })
    }

    /// Whether the first call of a first task would fit under the campaign's own cap.
    fn check_cap(&self, spec: &CampaignSpec) -> Result<(), ServiceError> {
        let template = &spec.template;
        let model = self.workshop.models.resolve(&template.model);
        let model = model.map_err(|error| ServiceError::Internal(error.to_string()))?;
        let quote = opening_quote(&model, template.harness, &template.task);
        match Room::of(&quote, spec.budget.into(), Amount::ZERO, Amount::ZERO) {
            Room::Free => Ok(()),
            Room::Reserved | Room::UsedUp => {
                let detail = "is less than the first model call of one task may cost; raise it".to_owned();
                Err(ServiceError::Invalid(vec![FieldError { pointer: "/budget".to_owned(), detail }]))
            }
        }
    }

    fn campaign_repos(&self, id: CampaignId, new: &NewCampaign, errors: &mut Vec<FieldError>) -> Vec<CampaignRepo> {
        let mut repos: Vec<CampaignRepo> = Vec::with_capacity(new.repos.len());
        let mut known: HashMap<String, Vec<(u32, CampaignRepo)>> = HashMap::new();
        for (index, wanted) in (0_u32..).zip(&new.repos) {
            if errors.len() >= MAX_FAULTS {
                break;
            }
            let Some(target) = self.target(child_id(id, index), &new.task, wanted, errors) else { continue };
            let repo = CampaignRepo { repo: target.repo, base: target.base, branch: target.branch };
            let earlier = known.entry(same_repo(&repo)).or_default();
            if let Some(detail) = earlier.iter().find_map(|(first, other)| clash(*first, other, &repo)) {
                errors.push(FieldError { pointer: wanted.pointer.clone(), detail });
            }
            earlier.push((index, repo.clone()));
            repos.push(repo);
        }
        repos
    }
}

#[async_trait]
impl CampaignService for Orchestra {
    async fn create_campaign(&self, new: NewCampaign, who: Who) -> Result<Accepted, ServiceError> {
        let id = campaign_id(&new);
        let hash = new.task.idempotency.as_ref().map(|idempotency| idempotency.request_hash.clone());
        let credentials = new.task.credentials.clone();
        let existing = match &hash {
            Some(_) => journal::load(&*self.store, id).await.map_err(journal_error)?,
            None => None,
        };
        // A repeat is answered with what stands, whatever has become of its repositories or its money by now.
        let created = if existing.is_some() {
            false
        } else {
            let spec = self.campaign_spec(id, &new)?;
            let size = CampaignEvent::CampaignCreated(Box::new(spec.clone())).data();
            if size.map_err(|error| ServiceError::Internal(error.to_string()))?.get().len() > MAX_EVENT_BYTES {
                let detail = "so many long names are too many for one campaign; make two of it".to_owned();
                return Err(ServiceError::Invalid(vec![FieldError { pointer: "/repos".to_owned(), detail }]));
            }
            self.check_image(&spec.template).await?;
            self.check_budget(&spec.template).await?;
            self.check_cap(&spec)?;
            journal::create_campaign(&*self.store, id, spec, &who).await.map_err(journal_error)?
        };
        if created {
            // Nobody has taken it up yet: each of its tasks is given these. Not earlier, because under the same key
            // there may be a campaign which uses others.
            if let Err(error) = self.workshop.vault.put(id, credentials) {
                // Its tasks ask for them again; nothing is lost but the caller's convenience.
                tracing::warn!(campaign = %id, %error, "the campaign's credentials are not kept");
            }
        } else {
            let standing = journal::load(&*self.store, id).await.map_err(journal_error)?;
            let standing = standing.ok_or(ServiceError::NoSuchCampaign)?;
            if standing.state.spec.request_hash != hash {
                return Err(ServiceError::IdempotencyKeyReused);
            }
            // The server may have lost those of the first time.
            self.give(id, credentials, &who).await?;
        }
        self.campaigns.send(TakeUp(id)).await.map_err(|_| ServiceError::Busy)?;
        Ok(Accepted { id, repeated: !created })
    }

    async fn cancel_campaign(&self, id: CampaignId, reason: Option<String>, who: Who) -> Result<(), ServiceError> {
        self.tell_campaign(id, Command::Cancel { reason }, who).await
    }

    async fn retry_campaign(&self, id: CampaignId, given: Credentials, who: Who) -> Result<(), ServiceError> {
        let loaded = journal::load(&*self.store, id).await.map_err(journal_error)?;
        loaded.ok_or(ServiceError::NoSuchCampaign)?;
        // Before it is accepted: what begins again at once is given these.
        self.workshop.vault.put(id, given.clone()).map_err(|_| ServiceError::Busy)?;
        if let Err(error) = self.tell_campaign(id, Command::Retry, who.clone()).await {
            self.forget_if_over(id).await;
            return Err(error);
        }
        // Others may have waited for them all along.
        self.give(id, given, &who).await
    }

    async fn erase_campaign_content(&self, id: CampaignId, who: Who) -> Result<Erased, ServiceError> {
        self.erase_campaign(id, who).await
    }

    async fn supply_campaign(&self, id: CampaignId, given: Credentials, who: Who) -> Result<(), ServiceError> {
        let loaded = journal::load(&*self.store, id).await.map_err(journal_error)?;
        let campaign = loaded.ok_or(ServiceError::NoSuchCampaign)?.state;
        if campaign.finished {
            return Err(ServiceError::CampaignRefused(Refusal::Ended("finished")));
        }
        self.give(id, given, &who).await
    }

    async fn account(&self, team: &str, id: CampaignId) -> Result<Option<Account>, ServiceError> {
        let account = self.workshop.ledgers.campaign(team, id).await;
        let account = account.map_err(|error| ServiceError::Internal(error.to_string()))?;
        Ok(account.map(|(cap, spent, reserved)| Account { cap, spent, reserved }))
    }
}

/// The means of all campaigns.
pub(crate) type Means = children::Means;

#[cfg(test)]
mod tests {
    use orchestra_events::repo::RepoRef;

    use super::*;

    #[test]
    fn two_tasks_on_one_repository_need_two_bases_and_two_branches() {
        let at = |name: &str, base: Option<&str>, branch: &str| CampaignRepo {
            repo: RepoRef::parse(name, "github").expect("a name"),
            base: base.map(str::to_owned),
            branch: branch.to_owned(),
        };
        let first = at("acme/api", Some("main"), "a");
        assert_eq!(same_repo(&first), same_repo(&at("Acme/API", None, "b")));
        assert_ne!(same_repo(&first), same_repo(&at("gitlab:acme/api", None, "b")));
        for (later, word) in [
            (at("acme/api", Some("main"), "b"), "base"),
            (at("acme/api", Some("next"), "a"), "branch"),
            (at("acme/api", None, "b"), "names no base"),
        ] {
            let detail = clash(0, &first, &later).expect("they clash");
            assert!(detail.contains(word) && detail.contains("number 0"), "{detail}");
        }
        assert!(clash(0, &at("acme/api", None, "a"), &at("acme/api", Some("main"), "b")).is_some());
        assert!(clash(0, &at("acme/api", None, "a"), &at("acme/api", None, "b")).is_some());
        assert_eq!(clash(0, &first, &at("acme/api", Some("next"), "b")), None);
    }
}
