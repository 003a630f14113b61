//! Bitbucket Data Center's REST interface, as of 7.4 (build status by repository), with drafts as of 8.18.
//!
//! Source: Atlassian's REST reference for Bitbucket Data Center 9.4. Its refusals carry the name of a Java exception,
//! which tells them apart: one status, 409, is a pull request that is there already, one with nothing to merge, an
//! archive, an unknown reviewer or a version that is out of date.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::bitbucket_place::{DataCenterPlace as Place, data_center_root};
use super::bitbucket_rules;
use super::bitbucket_text::{body, mark, no_labels, title, unasked};
use super::http::{Answer, Request, Rest, Session};
use super::wish::{HEAD_TRIES, MAX_COMMENT_PAGES, answer_lost, declined, extra, names, note, shortened, undescribed};
use super::{
    Access, BranchRules, CommitStatus, Feature, Forge, ForgeError, NewPullRequest, Note, Opened, PullRequest,
    Repository, StatusState,
};

/// Items asked for on one page; the server may give fewer.
const ITEMS_A_PAGE: &str = "100";
/// Pages read of other lists than comments.
const MAX_PAGES: usize = 5;
/// How often a change is made anew on a version that somebody else was quicker with.
const MAX_VERSIONS: u32 = 3;
/// Characters that a build status's key and name may have.
const MAX_STATUS_KEY: usize = 255;
/// Characters that a build status's description may have.
const MAX_DESCRIPTION: usize = 255;
/// Characters that a build status's address may have.
const MAX_STATUS_URL: usize = 450;

const READ: &str = "read the repository";
const FIND: &str = "look for pull requests";
const OPEN: &str = "open a pull request";
const CHANGE: &str = "change a pull request";
const COMMENT: &str = "comment on a pull request";

/// Bitbucket Data Center.
pub(super) struct BitbucketDc {
    rest: Rest,
}

/// The exception that a refusal names, without its package.
fn exception(answer: &Answer) -> &str {
    let name = answer.text("/errors/0/exceptionName").unwrap_or_default();
    name.rsplit('.').next().unwrap_or(name)
}

/// Whether a refusal's sentence is about this branch, by its short or its whole name.
fn names_branch(answer: &Answer, branch: &str) -> bool {
    let said = answer.text("/errors/0/message").unwrap_or_default();
    [format!("\"{branch}\""), format!("\"refs/heads/{branch}\"")].iter().any(|name| said.contains(name))
}

impl BitbucketDc {
    /// A client.
    pub(super) fn new(rest: Rest) -> Self {
        Self { rest: rest.rooted(data_center_root) }
    }

    /// Where its pages are.
    fn web(&self) -> String {
        let api = self.rest.api().as_str().trim_end_matches('/');
        api.strip_suffix("/rest").unwrap_or(api).to_owned()
    }

    /// All items of a list, page by page, until `done`.
    async fn each(
        &self,
        session: &Session<'_>,
        request: &Request,
        pages: usize,
        mut done: impl FnMut(&Value) -> bool,
    ) -> Result<(), ForgeError> {
        let mut start = 0;
        for _ in 0..pages {
            let page = request.clone().query("limit", ITEMS_A_PAGE).query("start", start.to_string());
            let answer = session.send(&page).await?;
            let next = answer.body.pointer("/nextPageStart").and_then(Value::as_u64);
            let last = answer.body.pointer("/isLastPage") != Some(&Value::Bool(false));
            match next.filter(|next| !last && *next > start) {
                _ if answer.items("/values").iter().any(&mut done) => break,
                Some(next) => start = next,
                None => break,
            }
        }
        Ok(())
    }

    async fn may_push(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        repository: &Value,
    ) -> Result<Option<bool>, ForgeError> {
        if session.token().is_none() {
            return Ok(None);
        }
        let request = Request::get("/api/latest/repos", READ)
            .query("projectkey", place.project())
            .query("name", repository["name"].as_str().unwrap_or(place.slug()))
            .query("permission", "REPO_WRITE")
            .query("archived", "ALL");
        let mut writable = false;
        let told = self.each(session, &request, MAX_PAGES, |item| {
            writable |= item["id"] == repository["id"];
            writable
        });
        match told.await {
            Ok(()) => Ok(Some(writable)),
            Err(error) if declined(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The open pull request of this head branch: ours by its marker, else one to the same base, else any. And whether
    /// it carries the marker.
    async fn find(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        new: &NewPullRequest,
    ) -> Result<Option<(PullRequest, bool)>, ForgeError> {
        let request = Request::get(place.api("/pull-requests"), FIND)
            .query("direction", "OUTGOING")
            .query("at", format!("refs/heads/{}", new.head))
            .query("state", "OPEN")
            .needs("REPO_READ");
        let (marker, head, base) =
            (mark(&new.marker), format!("refs/heads/{}", new.head), format!("refs/heads/{}", new.base));
        let mut best: Option<((bool, bool), Value)> = None;
        self.each(session, &request, MAX_PAGES, |item| {
            let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let rank = (text("/description").contains(&marker), text("/toRef/id") == base);
            // A fork lists what it offers to the repository that it was made of, too.
            let here = place.is(text("/toRef/repository/project/key"), text("/toRef/repository/slug"));
            if here && text("/fromRef/id") == head && best.as_ref().is_none_or(|(known, _)| rank > *known) {
                best = Some((rank, item.clone()));
            }
            false
        })
        .await?;
        let Some(((ours, _), item)) = best else { return Ok(None) };
        Ok(Some((self.pull_request(session, place, &item)?, ours)))
    }

    fn pull_request(&self, session: &Session<'_>, place: &Place<'_>, item: &Value) -> Result<PullRequest, ForgeError> {
        let number = item.pointer("/id").and_then(Value::as_u64);
        let number = number.ok_or_else(|| session.not_a_forge("it answers with a pull request without a number"))?;
        let url = match item.pointer("/links/self/0/href").and_then(Value::as_str) {
            Some(url) => session.line(url),
            None => format!("{}/pull-requests/{number}", place.page(&self.web())),
        };
        Ok(PullRequest { number, url })
    }

    /// Creates it, without what of the wish the server refuses; or finds the one that a lost answer or somebody else has
    /// left. With whether it was there already, and whether it is ours.
    async fn create(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        new: &NewPullRequest,
        notes: &mut Vec<Note>,
    ) -> Result<(PullRequest, bool, bool), ForgeError> {
        let (mut asked, mut tries) = (reviewers(new, notes), 1);
        loop {
            let mut wish = json!({
                "title": title(&new.title),
                "description": body(&new.body, Some(&new.marker)),
                "fromRef": place.branch(&new.head),
                "toRef": place.branch(&new.base),
            });
            if new.draft {
                wish["draft"] = json!(true);
            }
            if !asked.is_empty() {
                wish["reviewers"] = users(&asked);
            }
            let request = Request::post(place.api("/pull-requests"), OPEN, wish).needs("REPO_WRITE").takes(&[404, 409]);
            let error = match session.send(&request).await {
                Ok(answer) if answer.ok() => {
                    if new.draft && answer.body.pointer("/draft") != Some(&Value::Bool(true)) {
                        let detail = "This Bitbucket opened it as an ordinary pull request; drafts are there as of version 8.18.";
                        notes.push(Note { feature: Feature::Drafts, detail: detail.to_owned() });
                    }
                    return Ok((self.pull_request(session, place, &answer.body)?, false, true));
                }
                Ok(answer) => match exception(&answer) {
                    "InvalidPullRequestReviewersException" if !asked.is_empty() => {
                        drop_refused(session, &answer, &mut asked, notes);
                        continue;
                    }
                    "NoSuchBranchException" if tries < HEAD_TRIES && names_branch(&answer, &new.head) => {
                        session.settle(tries).await;
                        tries += 1;
                        continue;
                    }
                    "DuplicatePullRequestException" => session.refusal(&request, &answer),
                    _ => return Err(session.refusal(&request, &answer)),
                },
                Err(error) if answer_lost(&error) => error,
                Err(error) => return Err(error),
            };
            let (found, ours) = self.find(session, place, new).await?.ok_or(error)?;
            return Ok((found, true, ours));
        }
    }

    /// Changes a pull request, on its newest version. What a change leaves out is taken away, so it is told anew.
    async fn change(
        &self,
        session: &Session<'_>,
        path: &str,
        wish: impl Fn(&Answer) -> Value,
    ) -> Result<Answer, ForgeError> {
        let mut tries = 1;
        loop {
            let now = session.send(&Request::get(path, FIND).needs("REPO_READ")).await?;
            let mut whole = json!({
                "version": now.body["version"],
                "title": now.body["title"],
                "description": now.body["description"],
                "reviewers": users(&asked(&now)),
            });
            if let Some(draft) = now.body.get("draft").filter(|draft| draft.is_boolean()) {
                whole["draft"] = draft.clone();
            }
            if let (Value::Object(whole), Value::Object(wish)) = (&mut whole, wish(&now)) {
                whole.extend(wish);
            }
            let request = Request::put(path, CHANGE, whole).needs("REPO_WRITE").takes(&[409]);
            let answer = session.send(&request).await?;
            match exception(&answer) {
                "PullRequestOutOfDateException" if tries < MAX_VERSIONS => tries += 1,
                "InvalidPullRequestReviewersException" => return Ok(answer),
                _ if answer.ok() => return Ok(answer),
                _ => return Err(session.refusal(&request, &answer)),
            }
        }
    }

    /// Asks those who are not asked yet.
    async fn ask(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        number: u64,
        mut wished: Vec<String>,
        notes: &mut Vec<Note>,
    ) {
        let path = place.api(&format!("/pull-requests/{number}"));
        while !wished.is_empty() {
            let together = |now: &Answer| {
                let mut all = asked(now);
                let missing =
                    wished.iter().filter(|name| !asked(now).iter().any(|known| known.eq_ignore_ascii_case(name)));
                all.extend(missing.cloned());
                json!({"reviewers": users(&all)})
            };
            match self.change(session, &path, together).await {
                Ok(answer) if answer.ok() => return,
                Ok(answer) => drop_refused(session, &answer, &mut wished, notes),
                Err(error) => {
                    notes.push(note(Feature::Reviewers, &error));
                    return;
                }
            }
        }
    }

    /// The comments that carry the mark, the newest first, with their versions.
    async fn marked(&self, session: &Session<'_>, path: &str, mark: &str) -> Result<Vec<(u64, u64)>, ForgeError> {
        // Comments are listed by file only; all of them stand among what happened.
        let request = Request::get(format!("{path}/activities"), "read the comments").needs("REPO_READ");
        let mut ours = Vec::new();
        self.each(session, &request, MAX_COMMENT_PAGES, |activity| {
            let said = activity.pointer("/comment/text").and_then(Value::as_str).unwrap_or_default();
            if activity["action"] == "COMMENTED" && said.contains(mark) {
                let of = |name: &str| activity.pointer(name).and_then(Value::as_u64);
                ours.extend(of("/comment/id").zip(of("/comment/version")));
            }
            false
        })
        .await?;
        Ok(ours)
    }

    async fn put_comment(&self, session: &Session<'_>, path: &str, marker: &str, text: &str) -> Result<(), ForgeError> {
        let (mark, text) = (mark(marker), body(text, Some(marker)));
        let mut tries = 1;
        'versions: loop {
            for (id, version) in self.marked(session, path, &mark).await? {
                let wish = json!({"text": text, "version": version});
                // Somebody may have quoted ours: theirs cannot be changed. It may also be gone, or changed by now.
                let request = Request::put(format!("{path}/comments/{id}"), COMMENT, wish).takes(&[401, 403, 404, 409]);
                let answer = session.send(&request).await?;
                match exception(&answer) {
                    _ if answer.ok() => return Ok(()),
                    "CommentOutOfDateException" if tries < MAX_VERSIONS => {
                        tries += 1;
                        continue 'versions;
                    }
                    _ => {}
                }
            }
            break;
        }
        let request = Request::post(format!("{path}/comments"), COMMENT, json!({"text": text})).needs("REPO_READ");
        match session.send(&request).await {
            Err(error) if answer_lost(&error) => {
                self.marked(session, path, &mark).await?.first().map(drop).ok_or(error)
            }
            done => done.map(drop),
        }
    }
}

/// Who is wished for.
fn reviewers(new: &NewPullRequest, notes: &mut Vec<Note>) -> Vec<String> {
    let names = names(Feature::Reviewers, &new.reviewers, notes);
    names.into_iter().map(|name| name.trim_start_matches('@').to_owned()).collect()
}

/// Who is asked for a review of this pull request.
fn asked(pull_request: &Answer) -> Vec<String> {
    let name = |reviewer: &Value| reviewer.pointer("/user/name").and_then(Value::as_str).map(str::to_owned);
    pull_request.items("/reviewers").iter().filter_map(name).collect()
}

fn users(names: &[String]) -> Value {
    names.iter().map(|name| json!({"user": {"name": name}})).collect()
}

/// Takes out who the server names, and everybody when it names none that was asked.
fn drop_refused(session: &Session<'_>, answer: &Answer, asked: &mut Vec<String>, notes: &mut Vec<Note>) {
    let errors = answer.items("/errors/0/reviewerErrors");
    let why = |name: &str| {
        let named =
            errors.iter().find(|error| error["context"].as_str().is_some_and(|told| told.eq_ignore_ascii_case(name)));
        named.map(|error| error["message"].as_str().unwrap_or("Bitbucket refuses it"))
    };
    let before = asked.len();
    asked.retain(|name| match why(name) {
        Some(why) => {
            notes.push(unasked(session, name, why));
            false
        }
        None => true,
    });
    if asked.len() == before {
        let why = answer.text("/errors/0/message").unwrap_or("Bitbucket refuses it");
        notes.extend(asked.drain(..).map(|name| unasked(session, &name, why)));
    }
}

#[async_trait]
impl Forge for BitbucketDc {
    async fn repository(&self, access: Access<'_>) -> Result<Repository, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let told = session.send(&Request::get(place.api(""), READ)).await;
        let answer = told.map_err(|error| match error {
            // Data Center tells a repository that may not be seen from none; the remedy is the same.
            ForgeError::TokenLacksPermission { repo, forge, .. } => ForgeError::NotFound { repo, forge },
            error => error,
        })?;
        let id = answer.body.pointer("/id").and_then(Value::as_u64);
        let id = id.ok_or_else(|| session.not_a_forge("it answers with a repository without an id"))?;
        // An empty repository has none.
        let branch = session.send(&Request::get(place.api("/default-branch"), READ).takes(&[404])).await?;
        Ok(Repository {
            id: Some(id.to_string()),
            default_branch: branch.text("/displayId").map(|name| session.line(name)),
            archived: answer.body.pointer("/archived") == Some(&Value::Bool(true)),
            may_push: self.may_push(&session, &place, &answer.body).await?,
        })
    }

    async fn branch_rules(&self, access: Access<'_>, branch: &str) -> Result<BranchRules, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let request = Request::get(place.below("branch-permissions", "/restrictions"), "read the branch permissions");
        let mut rules = Vec::new();
        let told = self.each(&session, &request, MAX_PAGES, |rule| {
            rules.push(rule.clone());
            false
        });
        match told.await {
            Ok(()) => Ok(BranchRules { protected: bitbucket_rules::data_center(&rules, branch) }),
            // Only an administrator may read them; for others the push itself tells.
            Err(error) if declined(&error) => Ok(BranchRules { protected: None }),
            Err(error) => Err(error),
        }
    }

    async fn open_pull_request(&self, access: Access<'_>, new: &NewPullRequest) -> Result<Opened, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let mut notes: Vec<Note> = no_labels(&session, &new.labels).into_iter().collect();
        let (pull_request, existed, ours) = match self.find(&session, &place, new).await? {
            Some((found, ours)) => {
                // What somebody else opened is left as it is.
                if ours {
                    let described = self.describe_pull_request(access, found.number, &new.title, &new.body).await;
                    notes.extend(undescribed(described));
                    let wished = reviewers(new, &mut notes);
                    self.ask(&session, &place, found.number, wished, &mut notes).await;
                }
                (found, true, ours)
            }
            None => self.create(&session, &place, new, &mut notes).await?,
        };
        Ok(Opened { pull_request: Some(pull_request), existed, ours, notes })
    }

    async fn describe_pull_request(
        &self,
        access: Access<'_>,
        number: u64,
        new_title: &str,
        text: &str,
    ) -> Result<Option<Note>, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let path = place.api(&format!("/pull-requests/{number}"));
        let wish = |_: &Answer| json!({"title": title(new_title), "description": body(text, None)});
        extra(Feature::Descriptions, self.change(&session, &path, wish).await)
    }

    async fn comment(
        &self,
        access: Access<'_>,
        number: u64,
        marker: &str,
        text: &str,
    ) -> Result<Option<Note>, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let path = place.api(&format!("/pull-requests/{number}"));
        extra(Feature::Comments, self.put_comment(&session, &path, marker, text).await)
    }

    async fn set_status(&self, access: Access<'_>, status: &CommitStatus) -> Result<Option<Note>, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let commit = status.commit.as_str();
        let state = match status.state {
            StatusState::Pending => "INPROGRESS",
            StatusState::Success => "SUCCESSFUL",
            StatusState::Failure => "FAILED",
        };
        // A light without an address is refused, and so is one with a long address.
        let page = || format!("{}/commits/{commit}", place.page(&self.web()));
        let url = status.url.clone().filter(|url| url.chars().count() <= MAX_STATUS_URL).unwrap_or_else(page);
        let key = shortened(&status.context, MAX_STATUS_KEY);
        let description = shortened(&status.description, MAX_DESCRIPTION);
        let wish = json!({"key": key, "name": key, "state": state, "description": description, "url": url});
        let path = place.api(&format!("/commits/{commit}/builds"));
        let request = Request::post(path, "set the commit's status", wish).needs("REPO_READ");
        extra(Feature::CommitStatus, session.send(&request).await)
    }
}
