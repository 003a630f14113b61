//! The callers' secrets, in memory only, each for one task or one campaign.
//!
//! Nothing here can be printed, stored or listed. What is forgotten or replaced is wiped by `secrecy`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use orchestra_events::{CampaignId, TaskId};
use secrecy::SecretString;

/// Tasks whose secrets are held at once: more than the open tasks of one node, and a bound for memory.
pub const MAX_TASKS: usize = 100_000;

/// The longest secret: keys and tokens are far shorter, and a bound for memory.
pub const MAX_SECRET_BYTES: usize = 16 * 1024;

/// Whose secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A task's.
    Task(TaskId),
    /// A campaign's, from which each of its tasks is given its own as it begins.
    Campaign(CampaignId),
}

impl From<TaskId> for Owner {
    fn from(task: TaskId) -> Self {
        Self::Task(task)
    }
}

impl From<CampaignId> for Owner {
    fn from(campaign: CampaignId) -> Self {
        Self::Campaign(campaign)
    }
}

/// What a caller handed over for one task.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The model provider's key.
    pub model: Option<SecretString>,
    /// The forge's token.
    pub git: Option<SecretString>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// Why secrets were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// [`MAX_TASKS`] are held already.
    #[error("this server holds the credentials of {MAX_TASKS} tasks already; try again when some have ended")]
    Full,
    /// Longer than [`MAX_SECRET_BYTES`].
    #[error("a credential is longer than {MAX_SECRET_BYTES} bytes; supply the bare key or token")]
    TooLong,
}

/// Which secrets of a task are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// A model key.
    pub model: bool,
    /// A git token.
    pub git: bool,
}

/// The secrets of the open tasks.
#[derive(Default)]
pub struct Vault {
    tasks: Mutex<HashMap<Owner, Credentials>>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault")
    }
}

impl Vault {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<Owner, Credentials>> {
        // Nothing under this lock can panic half-way through a change.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what is given, in one step, in place of what was kept. What is absent stays as it was.
    pub fn put(&self, owner: impl Into<Owner>, credentials: Credentials) -> Result<(), VaultError> {
        use secrecy::ExposeSecret;
        let secrets = [&credentials.model, &credentials.git];
        if secrets.into_iter().flatten().any(|secret| secret.expose_secret().len() > MAX_SECRET_BYTES) {
            return Err(VaultError::TooLong);
        }
        if credentials.model.is_none() && credentials.git.is_none() {
            return Ok(());
        }
        let owner = owner.into();
        let mut tasks = self.tasks();
        if tasks.len() >= MAX_TASKS && !tasks.contains_key(&owner) {
            return Err(VaultError::Full);
        }
        let kept = tasks.entry(owner).or_default();
        if credentials.model.is_some() {
            kept.model = credentials.model;
        }
        if credentials.git.is_some() {
            kept.git = credentials.git;
        }
        Ok(())
    }

    /// Keeps what is given where nothing is kept. What is kept stays as it is.
    pub fn put_missing(&self, owner: impl Into<Owner>, given: Credentials) -> Result<(), VaultError> {
        let owner = owner.into();
        let kept = self.tasks().get(&owner).cloned().unwrap_or_default();
        let missing = Credentials {
            model: given.model.filter(|_| kept.model.is_none()),
            git: given.git.filter(|_| kept.git.is_none()),
        };
        self.put(owner, missing)
    }

    /// The task's model key.
    pub fn model(&self, task: TaskId) -> Option<SecretString> {
        self.tasks().get(&task.into())?.model.clone()
    }

    /// The task's git token.
    pub fn git(&self, task: TaskId) -> Option<SecretString> {
        self.tasks().get(&task.into())?.git.clone()
    }

    /// Everything that is held for a campaign, for one of its tasks that begins.
    pub fn of_campaign(&self, campaign: CampaignId) -> Credentials {
        self.tasks().get(&campaign.into()).cloned().unwrap_or_default()
    }

    /// Which secrets of the task are held.
    pub fn has(&self, task: TaskId) -> Held {
        self.tasks()
            .get(&task.into())
            .map_or_else(Held::default, |kept| Held { model: kept.model.is_some(), git: kept.git.is_some() })
    }

    /// Wipes the secrets of a task or a campaign.
    pub fn forget(&self, owner: impl Into<Owner>) {
        self.tasks().remove(&owner.into());
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn task(n: u128) -> TaskId {
        TaskId::from_uuid(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn rotation_replaces_what_is_given_and_keeps_the_rest() {
        let vault = Vault::new();
        let secret = |text: &str| Some(SecretString::from(text));
        vault.put(task(1), Credentials { model: secret("one"), git: secret("two") }).expect("room");
        vault.put(task(1), Credentials { model: secret("three"), git: None }).expect("room");
        let read = |secret: Option<SecretString>| secret.map(|secret| secret.expose_secret().to_owned());
        assert_eq!(read(vault.model(task(1))).as_deref(), Some("three"));
        assert_eq!(read(vault.git(task(1))).as_deref(), Some("two"));
        assert_eq!(vault.has(task(1)), Held { model: true, git: true });
        vault.put_missing(task(1), Credentials { model: secret("four"), git: None }).expect("room");
        assert_eq!(read(vault.model(task(1))).as_deref(), Some("three"));
        vault.put_missing(task(3), Credentials { model: None, git: secret("five") }).expect("room");
        assert_eq!(vault.has(task(3)), Held { model: false, git: true });
        assert_eq!(vault.has(task(2)), Held::default());
        vault.forget(task(1));
        assert!(vault.model(task(1)).is_none() && vault.git(task(1)).is_none());
    }

    #[test]
    fn a_campaign_and_a_task_of_the_same_number_are_two() {
        let vault = Vault::new();
        let campaign = CampaignId::from_uuid(task(1).uuid());
        let secret = Credentials { model: None, git: Some(SecretString::from("one")) };
        vault.put(campaign, secret).expect("room");
        assert_eq!(vault.has(task(1)), Held::default());
        assert!(vault.of_campaign(campaign).git.is_some());
        vault.forget(campaign);
        assert!(vault.of_campaign(campaign).git.is_none());
    }

    #[test]
    fn nothing_can_be_read_from_how_it_prints() {
        let vault = Vault::new();
        let credentials = Credentials { model: Some(SecretString::from("canary")), git: None };
        let printed = format!("{credentials:?}");
        vault.put(task(1), credentials).expect("room");
        assert!(!format!("{vault:?} {printed}").contains("canary"));
    }

    #[test]
    fn it_is_bounded() {
        let vault = Vault::new();
        let long = Credentials { model: Some(SecretString::from("x".repeat(MAX_SECRET_BYTES + 1))), git: None };
        assert_eq!(vault.put(task(1), long), Err(VaultError::TooLong));
        for n in 0..MAX_TASKS {
            vault.put(task(n as u128), Credentials { model: Some(SecretString::from("k")), git: None }).expect("room");
        }
        let more = Credentials { model: Some(SecretString::from("k")), git: None };
        assert_eq!(vault.put(task(u128::MAX), more.clone()), Err(VaultError::Full));
        assert_eq!(vault.put(task(7), more), Ok(()), "an open task may still rotate");
        vault.put(task(u128::MAX), Credentials::default()).expect("nothing to keep");
    }
}
