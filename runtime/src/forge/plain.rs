//! A git server without pull requests, or a folder of bare repositories: the branch is the result.

use async_trait::async_trait;

use super::{Access, BranchRules, CommitStatus, Feature, Forge, ForgeError, NewPullRequest, Note, Opened, Repository};

/// Answers every wish with a note, and every question with "not known".
pub(super) struct Plain;

fn note(feature: Feature, what: &str) -> Note {
    Note { feature, detail: format!("This git server has no {what}.") }
}

#[async_trait]
impl Forge for Plain {
    async fn repository(&self, _: Access<'_>) -> Result<Repository, ForgeError> {
        Ok(Repository { id: None, default_branch: None, archived: false, may_push: None })
    }

    async fn branch_rules(&self, _: Access<'_>, _: &str) -> Result<BranchRules, ForgeError> {
        Ok(BranchRules { protected: None })
    }

    async fn open_pull_request(&self, _: Access<'_>, _: &NewPullRequest) -> Result<Opened, ForgeError> {
        let note = note(Feature::PullRequests, "pull requests; the branch is pushed");
        Ok(Opened { pull_request: None, existed: false, ours: false, notes: vec![note] })
    }

    async fn describe_pull_request(&self, _: Access<'_>, _: u64, _: &str, _: &str) -> Result<Option<Note>, ForgeError> {
        Ok(Some(note(Feature::Descriptions, "pull requests")))
    }

    async fn comment(&self, _: Access<'_>, _: u64, _: &str, _: &str) -> Result<Option<Note>, ForgeError> {
        Ok(Some(note(Feature::Comments, "pull requests")))
    }

    async fn set_status(&self, _: Access<'_>, _: &CommitStatus) -> Result<Option<Note>, ForgeError> {
        Ok(Some(note(Feature::CommitStatus, "commit status")))
    }
}
