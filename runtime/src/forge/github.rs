//! GitHub, in the cloud (`https://api.github.com`) and on premises (`https://HOST/api/v3`).
//!
//! Source of paths, fields and statuses: GitHub's OpenAPI description, version 2022-11-28, which is pinned in each
//! request and held against this client by the tests.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::http::{Answer, Request, Rest, Session, segment};
use super::refusal::sentence;
use super::token::TokenKind;
use super::wish::{
    HEAD_TRIES, MAX_COMMENT_PAGES, MAX_QUOTES, answer_lost, declined, extra, names, note, shortened, undescribed,
};
use super::{
    Access, BranchRules, CommitStatus, Feature, Forge, ForgeError, NewPullRequest, Note, Opened, PullRequest,
    Repository, StatusState,
};

/// Comments on one page: with the longest ones, a page stays below the bound of an answer.
const COMMENTS_PER_PAGE: usize = 50;
/// The longest description of a commit status.
const MAX_DESCRIPTION: usize = 140;
/// Rules that hold a push back to a branch that exists, or to one that does not yet.
const HOLDING_RULES: [&str; 6] =
    ["update", "pull_request", "merge_queue", "required_status_checks", "required_deployments", "workflows"];

/// A client of GitHub.
pub(super) struct Github {
    rest: Rest,
}

fn with_version(request: Request) -> Request {
    request.header("x-github-api-version", "2022-11-28")
}

/// `/repos/OWNER/NAME` and the owner.
fn repo_path(access: Access<'_>) -> (String, String) {
    let (owner, name) = access.repo.path().rsplit_once('/').unwrap_or(("", access.repo.path()));
    (format!("/repos/{}/{}", segment(owner), segment(name)), owner.to_owned())
}

fn pull_request(value: &Value) -> Option<PullRequest> {
    let url = value.get("html_url")?.as_str()?;
    Some(PullRequest { number: value.get("number")?.as_u64()?, url: url.to_owned() })
}

/// Whether a 422 is about the branch with the work: `{"field": "head", "code": "invalid"}`.
fn head_unknown(answer: &Answer) -> bool {
    answer.items("/errors").iter().any(|error| error["field"] == "head" && error["code"] == "invalid")
}

impl Github {
    pub(super) fn new(rest: Rest) -> Self {
        Self { rest }
    }

    async fn send(&self, session: &Session<'_>, request: Request) -> Result<Answer, ForgeError> {
        session.send(&with_version(request)).await
    }

    /// The open pull request of this head branch: ours by its marker, else one to the same base, else any. And whether
    /// it carries the marker.
    async fn find(
        &self,
        session: &Session<'_>,
        access: Access<'_>,
        new: &NewPullRequest,
    ) -> Result<Option<(PullRequest, bool)>, ForgeError> {
        let (path, owner) = repo_path(access);
        let request = Request::get(format!("{path}/pulls"), "look for a pull request")
            .query("head", format!("{owner}:{}", new.head))
            .query("state", "open")
            .query("per_page", "20")
            .needs("pull_requests=read");
        let answer = self.send(session, request).await?;
        // The forge ignores a `head` that it does not understand and lists everything.
        let of_head = answer.items("").iter().filter(|pull| {
            let text = |pointer: &str| pull.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            // A branch of that name in a fork is somebody else's. The repository may have another name by now.
            text("/head/ref") == new.head && text("/head/repo/full_name") == text("/base/repo/full_name")
        });
        let rank = |pull: &&Value| {
            let text = |pointer: &str| pull.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            (text("/body").contains(&new.marker), text("/base/ref") == new.base)
        };
        let Some(best) = of_head.max_by_key(rank) else { return Ok(None) };
        Ok(pull_request(best).map(|found| (found, rank(&best).0)))
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
        let (path, _) = repo_path(access);
        let (mut draft, mut tries) = (new.draft, 1);
        loop {
            let body = json!({
                "title": new.title, "body": new.body, "head": new.head, "base": new.base,
                "draft": draft, "maintainer_can_modify": true,
            });
            let request = Request::post(format!("{path}/pulls"), "open a pull request", body)
                .takes(&[422])
                .needs("pull_requests=write");
            let error = match self.send(session, request.clone()).await {
                Ok(answer) if answer.ok() => {
                    let created = pull_request(&answer.body);
                    let created = created.ok_or_else(|| session.not_a_forge("a pull request without a number"))?;
                    return Ok((created, false, true));
                }
                Ok(answer) => {
                    let error = session.refusal(&request, &answer);
                    // The sentence alone, and whole words of it: the repository and the branch may be named anything.
                    let said = sentence(&answer.body).unwrap_or_default().to_lowercase();
                    if draft && said.contains("draft pull request") {
                        notes.push(note(Feature::Drafts, &error));
                        draft = false;
                        continue;
                    }
                    if head_unknown(&answer) && tries < HEAD_TRIES {
                        session.settle(tries).await;
                        tries += 1;
                        continue;
                    }
                    if !said.contains("already exists") {
                        return Err(error);
                    }
                    error
                }
                Err(error) if answer_lost(&error) => error,
                Err(error) => return Err(error),
            };
            return match self.find(session, access, new).await? {
                Some((found, ours)) => Ok((found, true, ours)),
                None => Err(error),
            };
        }
    }

    async fn label(&self, session: &Session<'_>, path: &str, number: u64, wished: &[String], notes: &mut Vec<Note>) {
        let labels = names(Feature::Labels, wished, notes);
        if labels.is_empty() {
            return;
        }
        let body = json!({ "labels": labels });
        let request =
            Request::post(format!("{path}/issues/{number}/labels"), "label a pull request", body).needs("issues=write");
        if let Err(error) = self.send(session, request).await {
            notes.push(note(Feature::Labels, &error));
        }
    }

    /// All at once; and one by one when one of them is refused, because the forge does not say which.
    async fn ask_reviewers(
        &self,
        session: &Session<'_>,
        path: &str,
        number: u64,
        wished: &[String],
        notes: &mut Vec<Note>,
    ) {
        let reviewers = names(Feature::Reviewers, wished, notes);
        if reviewers.is_empty() || self.ask(session, path, number, &reviewers).await.is_ok() {
            return;
        }
        for reviewer in reviewers {
            if let Err(error) = self.ask(session, path, number, std::slice::from_ref(&reviewer)).await {
                let detail = format!("{}: {error}", session.line(&reviewer));
                notes.push(Note { feature: Feature::Reviewers, detail });
                if !declined(&error) {
                    return;
                }
            }
        }
    }

    async fn ask(
        &self,
        session: &Session<'_>,
        path: &str,
        number: u64,
        reviewers: &[String],
    ) -> Result<Answer, ForgeError> {
        let (teams, people): (Vec<_>, Vec<_>) = reviewers.iter().partition(|name| name.starts_with("team:"));
        // `team:slug`, or `team:org/slug`; the forge knows the organisation.
        let teams: Vec<&str> = teams.iter().map(|name| name.rsplit([':', '/']).next().unwrap_or_default()).collect();
        let body = json!({ "reviewers": people, "team_reviewers": teams });
        let path = format!("{path}/pulls/{number}/requested_reviewers");
        self.send(session, Request::post(path, "ask for a review", body).needs("pull_requests=write")).await
    }

    /// A comment that carries the marker and is none of these.
    async fn find_comment(
        &self,
        session: &Session<'_>,
        path: &str,
        marker: &str,
        not: &[u64],
    ) -> Result<Option<u64>, ForgeError> {
        for page in 1..=MAX_COMMENT_PAGES {
            let request = Request::get(path, "read the comments")
                .query("per_page", COMMENTS_PER_PAGE.to_string())
                .query("page", page.to_string());
            let answer = self.send(session, request).await?;
            let comments = answer.items("");
            let marked = comments.iter().filter(|comment| {
                comment.get("body").and_then(Value::as_str).is_some_and(|body| body.contains(marker))
            });
            let mut ids = marked.filter_map(|comment| comment.get("id")?.as_u64());
            if let Some(id) = ids.find(|id| !not.contains(id)) {
                return Ok(Some(id));
            }
            if comments.len() < COMMENTS_PER_PAGE {
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
        let (path, _) = repo_path(access);
        let list = format!("{path}/issues/{number}/comments");
        let body = json!({ "body": text });
        let mut quotes = Vec::new();
        while quotes.len() < MAX_QUOTES
            && let Some(id) = self.find_comment(session, &list, marker, &quotes).await?
        {
            // Somebody may have quoted ours: theirs cannot be changed.
            let path = format!("{path}/issues/comments/{id}");
            let request = Request::patch(path, "change a comment", body.clone()).takes(&[403, 404]);
            if self.send(session, request).await?.ok() {
                return Ok(());
            }
            quotes.push(id);
        }
        let request = Request::post(list.as_str(), "comment on a pull request", body).needs("issues=write");
        match self.send(session, request).await {
            Err(error) if answer_lost(&error) => {
                self.find_comment(session, &list, marker, &quotes).await?.map(drop).ok_or(error)
            }
            done => done.map(drop),
        }
    }
}

#[async_trait]
impl Forge for Github {
    async fn repository(&self, access: Access<'_>) -> Result<Repository, ForgeError> {
        let session = self.rest.session(access);
        let (path, _) = repo_path(access);
        let answer = self.send(&session, Request::get(path, "read the repository").needs("metadata=read")).await?;
        let flag = |pointer: &str| answer.body.pointer(pointer).and_then(Value::as_bool);
        let id = answer.body.get("id").and_then(Value::as_u64).map(|id| id.to_string());
        if id.is_none() {
            return Err(session.not_a_forge("a repository without an id"));
        }
        // A classic token may be its owner's, who may push, and itself lack the scope.
        let scopes = answer.headers.get("x-oauth-scopes").and_then(|value| value.to_str().ok()).map(str::trim);
        let scopes = scopes.filter(|scopes| !scopes.is_empty());
        let private = flag("/private").unwrap_or(true);
        let scoped = scopes.is_none_or(|scopes| {
            scopes.split(',').any(|scope| matches!(scope.trim(), "repo") || scope.trim() == "public_repo" && !private)
        });
        // `permissions` tells of a person's role. An app's installation has none, so it is told that it may not whatever
        // it may; and what an app may on a person's behalf is told only where there are scopes. The push itself tells.
        let by_role = match access.token.map(TokenKind::of) {
            Some(TokenKind::GithubInstallation) => false,
            Some(TokenKind::GithubOauth) => scopes.is_some(),
            Some(_) | None => true,
        };
        Ok(Repository {
            id,
            default_branch: answer.text("/default_branch").map(str::to_owned),
            archived: flag("/archived").unwrap_or(false),
            may_push: flag("/permissions/push").filter(|_| by_role).map(|push| push && scoped),
        })
    }

    async fn branch_rules(&self, access: Access<'_>, branch: &str) -> Result<BranchRules, ForgeError> {
        let session = self.rest.session(access);
        let (path, _) = repo_path(access);
        let branch = segment(branch);
        let request = Request::get(format!("{path}/branches/{branch}"), "read the branch").takes(&[403, 404]);
        let known = self.send(&session, request).await?;
        if known.body.get("protected").and_then(Value::as_bool) == Some(true) {
            return Ok(BranchRules { protected: Some(true) });
        }
        // Rules are told also of a branch that is not there yet.
        let request = Request::get(format!("{path}/rules/branches/{branch}"), "read the branch's rules")
            .query("per_page", "100")
            .takes(&[403, 404]);
        let rules = self.send(&session, request).await?;
        let holds = |rule: &Value| {
            let kind = rule.get("type").and_then(Value::as_str).unwrap_or_default();
            HOLDING_RULES.contains(&kind) && known.ok() || kind == "creation" && !known.ok()
        };
        let protected = if rules.ok() { Some(rules.items("").iter().any(holds)) } else { known.ok().then_some(false) };
        Ok(BranchRules { protected })
    }

    async fn open_pull_request(&self, access: Access<'_>, new: &NewPullRequest) -> Result<Opened, ForgeError> {
        let session = self.rest.session(access);
        let (path, _) = repo_path(access);
        let mut notes = Vec::new();
        let (pull_request, existed, ours) = match self.find(&session, access, new).await? {
            Some((found, ours)) => {
                if ours {
                    let described = self.describe_pull_request(access, found.number, &new.title, &new.body).await;
                    notes.extend(undescribed(described));
                }
                (found, true, ours)
            }
            None => self.create(&session, access, new, &mut notes).await?,
        };
        // What somebody else opened is left as it is.
        if ours {
            self.label(&session, &path, pull_request.number, &new.labels, &mut notes).await;
            self.ask_reviewers(&session, &path, pull_request.number, &new.reviewers, &mut notes).await;
        }
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
        let (path, _) = repo_path(access);
        let body = json!({ "title": title, "body": body });
        let request = Request::patch(format!("{path}/pulls/{number}"), "describe a pull request", body)
            .needs("pull_requests=write");
        extra(Feature::Descriptions, self.send(&session, request).await)
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
        let (path, _) = repo_path(access);
        let state = match status.state {
            StatusState::Pending => "pending",
            StatusState::Success => "success",
            StatusState::Failure => "failure",
        };
        let mut body = json!({
            "state": state, "context": status.context,
            "description": shortened(&status.description, MAX_DESCRIPTION),
        });
        if let Some(url) = &status.url {
            body["target_url"] = json!(url);
        }
        let path = format!("{path}/statuses/{}", status.commit.as_str());
        let request = Request::post(path, "set a commit status", body).needs("statuses=write");
        extra(Feature::CommitStatus, self.send(&session, request).await)
    }
}
