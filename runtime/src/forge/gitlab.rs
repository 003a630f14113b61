//! GitLab, in the cloud (`https://gitlab.com/api/v4`) and on premises. Its pull requests are called merge requests.
//!
//! Source of paths, fields and statuses: GitLab's REST API pages on projects, merge requests, notes, commits (build
//! status), protected branches and users.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::http::{Answer, Request, Rest, Session, segment};
use super::wish::{HEAD_TRIES, MAX_COMMENT_PAGES, MAX_QUOTES, answer_lost, extra, names, note, shortened, undescribed};
use super::{
    Access, BranchRules, CommitStatus, Feature, Forge, ForgeError, NewPullRequest, Note, Opened, PullRequest,
    Repository, StatusState,
};

/// Comments on one page: with long ones, a page stays below the bound of an answer.
const COMMENTS_PER_PAGE: usize = 50;
/// The longest description of a commit status.
const MAX_DESCRIPTION: usize = 255;
/// Pages of protected branches that are read, a hundred rules each.
const MAX_RULE_PAGES: usize = 3;
/// The lowest role that may push to a branch without protection: Developer.
const DEVELOPER: u64 = 30;
/// What makes a merge request a draft.
const DRAFT: &str = "Draft: ";

/// A client of GitLab.
pub(super) struct Gitlab {
    rest: Rest,
}

/// Groups may be nested, so a project is named by its whole path as one segment.
fn project(access: Access<'_>) -> String {
    format!("/projects/{}", segment(access.repo.path()))
}

fn merge_request(value: &Value) -> Option<PullRequest> {
    let url = value.get("web_url")?.as_str()?;
    Some(PullRequest { number: value.get("iid")?.as_u64()?, url: url.to_owned() })
}

/// The role that this token has in the project, directly or through a group.
fn role(body: &Value) -> Option<u64> {
    let permissions = body.get("permissions")?.as_object()?;
    let levels = ["project_access", "group_access"]
        .iter()
        .filter_map(|key| permissions.get(*key)?.get("access_level")?.as_u64());
    levels.max()
}

/// Whether a protected branch's name, in which `*` stands for any text, means this branch.
fn means(pattern: &str, branch: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|start| branch.strip_prefix(start)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(end) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(end)
}

/// Whether a refusal is about the branch with the work. No branch's name has a blank.
fn head_unknown(error: &ForgeError) -> bool {
    let ForgeError::Refused { forge: Some(text), .. } = error else { return false };
    let text = text.to_lowercase();
    text.contains("source branch") && text.contains("does not exist")
}

impl Gitlab {
    pub(super) fn new(rest: Rest) -> Self {
        Self { rest }
    }

    /// The open merge request of this source branch: ours by its marker, else one to the same base, else any. And
    /// whether it carries the marker.
    async fn find(
        &self,
        session: &Session<'_>,
        access: Access<'_>,
        new: &NewPullRequest,
    ) -> Result<Option<(PullRequest, bool)>, ForgeError> {
        let request = Request::get(format!("{}/merge_requests", project(access)), "look for a merge request")
            .query("source_branch", new.head.as_str())
            .query("state", "opened")
            .query("per_page", "20");
        let answer = session.send(&request).await?;
        let rank = |one: &&Value| {
            let text = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default();
            (text("description").contains(&new.marker), text("target_branch") == new.base)
        };
        let of_head = |one: &&Value| {
            let same = |key: &str| one.get(key).and_then(Value::as_u64);
            // A branch of that name in a fork is somebody else's.
            one.get("source_branch").and_then(Value::as_str) == Some(new.head.as_str())
                && same("source_project_id") == same("target_project_id")
        };
        let Some(best) = answer.items("").iter().filter(of_head).max_by_key(rank) else { return Ok(None) };
        Ok(merge_request(best).map(|found| (found, rank(&best).0)))
    }

    /// Creates it, or finds the one that a lost answer or somebody else has created meanwhile. With whether it was there
    /// already, and whether it is ours.
    async fn create(
        &self,
        session: &Session<'_>,
        access: Access<'_>,
        new: &NewPullRequest,
        notes: &mut Vec<Note>,
    ) -> Result<(PullRequest, bool, bool), ForgeError> {
        let reviewers = self.reviewers(session, &names(Feature::Reviewers, &new.reviewers, notes), notes).await?;
        let labels = names(Feature::Labels, &new.labels, notes);
        let mut body = json!({
            "source_branch": new.head, "target_branch": new.base, "description": new.body,
            "title": if new.draft { format!("{DRAFT}{}", new.title) } else { new.title.clone() },
        });
        if !labels.is_empty() {
            // The comma is what divides labels.
            body["labels"] = json!(labels.iter().map(|label| label.replace(',', " ")).collect::<Vec<_>>().join(","));
        }
        if !reviewers.is_empty() {
            body["reviewer_ids"] = json!(reviewers);
        }
        let request = Request::post(format!("{}/merge_requests", project(access)), "open a merge request", body)
            .takes(&[409])
            .needs("api");
        let mut tries = 1;
        let sent = loop {
            match session.send(&request).await {
                Err(error) if head_unknown(&error) && tries < HEAD_TRIES => session.settle(tries).await,
                sent => break sent,
            }
            tries += 1;
        };
        let error = match sent {
            Ok(answer) if answer.ok() => {
                let given = answer.items("/reviewers").len();
                if given < reviewers.len() {
                    let detail =
                        format!("Of {} reviewers, GitLab took {given}: its edition allows no more.", reviewers.len());
                    notes.push(Note { feature: Feature::Reviewers, detail });
                }
                let created = merge_request(&answer.body);
                let created = created.ok_or_else(|| session.not_a_forge("a merge request without a number"))?;
                return Ok((created, false, true));
            }
            Ok(answer) => session.refusal(&request, &answer),
            Err(error) if answer_lost(&error) => error,
            Err(error) => return Err(self.archived(access, error).await),
        };
        match self.find(session, access, new).await? {
            Some((found, ours)) => Ok((found, true, ours)),
            None => Err(error),
        }
    }

    /// GitLab refuses an archived project's changes like those of a token that may not.
    async fn archived(&self, access: Access<'_>, error: ForgeError) -> ForgeError {
        if !matches!(error, ForgeError::TokenLacksPermission { .. } | ForgeError::NotFound { .. }) {
            return error;
        }
        match self.repository(access).await {
            Ok(repository) if repository.archived => {
                ForgeError::Archived { repo: access.repo.to_string(), forge: None }
            }
            Ok(_) | Err(_) => error,
        }
    }

    /// The ids of those who are known.
    async fn reviewers(
        &self,
        session: &Session<'_>,
        wished: &[String],
        notes: &mut Vec<Note>,
    ) -> Result<Vec<u64>, ForgeError> {
        let mut ids = Vec::new();
        for name in wished {
            if name.starts_with("team:") {
                let detail = format!("{}: GitLab asks people for reviews, not groups.", session.line(name));
                notes.push(Note { feature: Feature::Reviewers, detail });
                continue;
            }
            let request = Request::get("/users", "look up a reviewer").query("username", name.trim_start_matches('@'));
            match session.send(&request.takes(&[403, 404])).await {
                Ok(answer) => match answer.items("").first().and_then(|user| user.get("id")?.as_u64()) {
                    Some(id) => ids.push(id),
                    None => {
                        let detail = format!("{}: GitLab knows nobody of that name.", session.line(name));
                        notes.push(Note { feature: Feature::Reviewers, detail });
                    }
                },
                Err(error @ (ForgeError::TokenRejected { .. } | ForgeError::RateLimited { .. })) => return Err(error),
                Err(error) => notes.push(note(Feature::Reviewers, &error)),
            }
        }
        Ok(ids)
    }

    /// A comment that carries the marker and is none of these.
    async fn find_comment(
        &self,
        session: &Session<'_>,
        list: &str,
        marker: &str,
        not: &[u64],
    ) -> Result<Option<u64>, ForgeError> {
        for page in 1..=MAX_COMMENT_PAGES {
            let request = Request::get(list, "read the comments")
                .query("sort", "asc")
                .query("per_page", COMMENTS_PER_PAGE.to_string())
                .query("page", page.to_string());
            let answer = session.send(&request).await?;
            let notes = answer.items("");
            let marked = notes
                .iter()
                .filter(|note| note.get("body").and_then(Value::as_str).is_some_and(|body| body.contains(marker)));
            let mut ids = marked.filter_map(|note| note.get("id")?.as_u64());
            if let Some(id) = ids.find(|id| !not.contains(id)) {
                return Ok(Some(id));
            }
            if notes.len() < COMMENTS_PER_PAGE {
                break;
            }
        }
        Ok(None)
    }

    async fn put_comment(
        &self,
        session: &Session<'_>,
        access: Access<'_>,
        number: u64,
        marker: &str,
        text: &str,
    ) -> Result<(), ForgeError> {
        let list = format!("{}/merge_requests/{number}/notes", project(access));
        let body = json!({ "body": text });
        let mut quotes = Vec::new();
        while quotes.len() < MAX_QUOTES
            && let Some(id) = self.find_comment(session, &list, marker, &quotes).await?
        {
            // Somebody may have quoted ours: theirs cannot be changed.
            let request = Request::put(format!("{list}/{id}"), "change a comment", body.clone()).takes(&[403, 404]);
            if session.send(&request).await?.ok() {
                return Ok(());
            }
            quotes.push(id);
        }
        let request = Request::post(list.as_str(), "comment on a merge request", body).needs("api");
        match session.send(&request).await {
            Err(error) if answer_lost(&error) => {
                self.find_comment(session, &list, marker, &quotes).await?.map(drop).ok_or(error)
            }
            done => done.map(drop),
        }
    }

    async fn describe(
        &self,
        session: &Session<'_>,
        access: Access<'_>,
        number: u64,
        title: &str,
        body: &str,
    ) -> Result<Answer, ForgeError> {
        let path = format!("{}/merge_requests/{number}", project(access));
        let now = session.send(&Request::get(path.as_str(), "read a merge request")).await?;
        // The title alone makes a draft: without the prefix it would be taken for ready.
        let draft = now.body.get("draft").and_then(Value::as_bool).unwrap_or(false);
        let title = if draft && !title.starts_with(DRAFT) { format!("{DRAFT}{title}") } else { title.to_owned() };
        let body = json!({ "title": title, "description": body });
        session.send(&Request::put(path, "describe a merge request", body).needs("api")).await
    }

    async fn status(&self, session: &Session<'_>, access: Access<'_>, status: &CommitStatus) -> Result<(), ForgeError> {
        let state = match status.state {
            // The forge's own `pending` would be a job that waits for a runner.
            StatusState::Pending => "running",
            StatusState::Success => "success",
            StatusState::Failure => "failed",
        };
        let mut body = json!({
            "state": state, "name": status.context, "description": shortened(&status.description, MAX_DESCRIPTION),
        });
        if let Some(url) = &status.url {
            body["target_url"] = json!(url);
        }
        let path = format!("{}/statuses/{}", project(access), status.commit.as_str());
        let request = Request::post(path, "set a commit status", body).takes(&[400]).needs("api");
        let answer = session.send(&request).await?;
        let error = (!answer.ok()).then(|| session.refusal(&request, &answer));
        match error {
            // It shines so already.
            Some(ForgeError::Refused { forge: Some(text), .. }) if text.contains("Cannot transition status") => Ok(()),
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Forge for Gitlab {
    async fn repository(&self, access: Access<'_>) -> Result<Repository, ForgeError> {
        let session = self.rest.session(access);
        let answer = session.send(&Request::get(project(access), "read the project").needs("read_api")).await?;
        let id = answer.body.get("id").and_then(Value::as_u64).map(|id| id.to_string());
        if id.is_none() {
            return Err(session.not_a_forge("a project without an id"));
        }
        Ok(Repository {
            id,
            default_branch: answer.text("/default_branch").map(str::to_owned),
            archived: answer.body.get("archived").and_then(Value::as_bool).unwrap_or(false),
            may_push: role(&answer.body).map(|role| role >= DEVELOPER),
        })
    }

    async fn branch_rules(&self, access: Access<'_>, branch: &str) -> Result<BranchRules, ForgeError> {
        let session = self.rest.session(access);
        for page in 1..=MAX_RULE_PAGES {
            let path = format!("{}/protected_branches", project(access));
            let request = Request::get(path, "read the protected branches")
                .query("per_page", "100")
                .query("page", page.to_string())
                .takes(&[403, 404]);
            let answer = session.send(&request).await?;
            if !answer.ok() {
                return Ok(BranchRules { protected: None });
            }
            let rules = answer.items("");
            let named =
                |rule: &Value| rule.get("name").and_then(Value::as_str).is_some_and(|pattern| means(pattern, branch));
            if rules.iter().any(named) {
                return Ok(BranchRules { protected: Some(true) });
            }
            if rules.len() < 100 {
                return Ok(BranchRules { protected: Some(false) });
            }
        }
        Ok(BranchRules { protected: None })
    }

    async fn open_pull_request(&self, access: Access<'_>, new: &NewPullRequest) -> Result<Opened, ForgeError> {
        let session = self.rest.session(access);
        let mut notes = Vec::new();
        let (pull_request, existed, ours) = match self.find(&session, access, new).await? {
            // Labels and reviewers were given with it.
            Some((found, ours)) => {
                if ours {
                    let described = self.describe_pull_request(access, found.number, &new.title, &new.body).await;
                    notes.extend(undescribed(described));
                }
                (found, true, ours)
            }
            None => self.create(&session, access, new, &mut notes).await?,
        };
        Ok(Opened { pull_request: Some(pull_request), existed, ours, notes })
    }

    async fn describe_pull_request(
        &self,
        access: Access<'_>,
        number: u64,
        title: &str,
        body: &str,
    ) -> Result<Option<Note>, ForgeError> {
        let session = self.rest.session(access);
        extra(Feature::Descriptions, self.describe(&session, access, number, title, body).await)
    }

    async fn comment(
        &self,
        access: Access<'_>,
        number: u64,
        marker: &str,
        text: &str,
    ) -> Result<Option<Note>, ForgeError> {
        let session = self.rest.session(access);
        extra(Feature::Comments, self.put_comment(&session, access, number, marker, text).await)
    }

    async fn set_status(&self, access: Access<'_>, status: &CommitStatus) -> Result<Option<Note>, ForgeError> {
        let session = self.rest.session(access);
        extra(Feature::CommitStatus, self.status(&session, access, status).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, branch, expected) in [
            ("main", "main", true),
            ("main", "mainly", false),
            ("release/*", "release/1.2", true),
            ("release/*", "releases/1", false),
            ("*-stable", "1-stable", true),
            ("*-stable", "1-stable-2", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "ac", false),
            ("ab*ba", "aba", false),
            ("*", "anything", true),
        ] {
            assert_eq!(means(pattern, branch), expected, "{pattern} {branch}");
        }
    }

    #[test]
    fn the_higher_of_two_roles_counts() {
        let body = json!({"permissions": {"project_access": null, "group_access": {"access_level": 40}}});
        assert_eq!(role(&body), Some(40));
        assert_eq!(role(&json!({"permissions": {"project_access": null, "group_access": null}})), None);
    }
}
