//! Bitbucket Cloud's REST interface, version 2.0.
//!
//! Sources: Atlassian's REST reference (api-group-pullrequests, api-group-commit-statuses, api-group-branch-restrictions,
//! api-group-workspaces), its page on filtering, and its changelog: `/user/permissions/repositories` is gone since
//! February 2026, so whether a token may push is asked by role.

use std::hash::{Hash as _, Hasher as _};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::bitbucket_people::{NOBODY, Reviewer, Wanted};
use super::bitbucket_place::CloudPlace as Place;
use super::bitbucket_rules;
use super::bitbucket_text::{body, mark, no_labels, title, unasked};
use super::http::{Answer, Request, Rest, Session, segment};
use super::token::TokenKind;
use super::wish::{HEAD_TRIES, MAX_COMMENT_PAGES, answer_lost, declined, extra, names, note, shortened, undescribed};
use super::{
    Access, BranchRules, CommitStatus, Feature, Forge, ForgeError, NewPullRequest, Note, Opened, PullRequest,
    Repository, StatusState,
};

/// Pull requests on a page; Bitbucket's most.
const PULL_REQUESTS_A_PAGE: &str = "50";
/// Other things on a page; Bitbucket's most.
const ITEMS_A_PAGE: &str = "100";
/// Pages of a workspace's members that are searched for reviewers: a thousand people.
const MAX_MEMBER_PAGES: usize = 10;
/// Pages of the pull requests from one branch.
const MAX_PULL_REQUEST_PAGES: usize = 2;
/// Characters that the key of a build status may have.
const MAX_STATUS_KEY: usize = 40;
/// Characters of a build status's description that are shown.
const MAX_DESCRIPTION: usize = 255;
/// Scopes of which one lets a token push: those of OAuth and access tokens, and those of API tokens.
const WRITE_SCOPES: [&str; 3] = ["repository:write", "pullrequest:write", "write:repository:bitbucket"];

const READ: &str = "read the repository";
const FIND: &str = "look for pull requests";
const OPEN: &str = "open a pull request";
const CHANGE: &str = "change a pull request";
const COMMENT: &str = "comment on a pull request";

/// Locks for opening pull requests. Two branches that share one wait for each other without need, and no longer.
const OPENING_LOCKS: usize = 64;

/// Bitbucket Cloud.
pub(super) struct BitbucketCloud {
    rest: Rest,
    web: String,
    /// Nowhere does Bitbucket say what a second pull request between the same branches comes to, so that looking for the
    /// first and opening it are one step for each branch.
    opening: [tokio::sync::Mutex<()>; OPENING_LOCKS],
}

/// A text in Bitbucket's query language.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

impl BitbucketCloud {
    /// A client. Its pages are where git is.
    pub(super) fn new(rest: Rest, git_url: Option<&str>) -> Self {
        let web = git_url.unwrap_or("https://bitbucket.org").trim_end_matches('/').to_owned();
        Self { rest, web, opening: std::array::from_fn(|_| tokio::sync::Mutex::default()) }
    }

    fn opening(&self, place: &Place<'_>, head: &str) -> &tokio::sync::Mutex<()> {
        let mut hasher = std::hash::DefaultHasher::new();
        (place.full_name().to_lowercase(), head).hash(&mut hasher);
        let lock = hasher.finish() % OPENING_LOCKS as u64;
        &self.opening[usize::try_from(lock).unwrap_or_default()]
    }

    /// All items of a list, page by page, until `done`.
    async fn each(
        &self,
        session: &Session<'_>,
        request: &Request,
        pages: usize,
        mut done: impl FnMut(&Value) -> bool,
    ) -> Result<(), ForgeError> {
        for page in 1..=pages {
            let answer = session.send(&request.clone().query("page", page.to_string())).await?;
            if answer.items("/values").iter().any(&mut done) || answer.text("/next").is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn may_push(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        repository: &Answer,
    ) -> Result<Option<bool>, ForgeError> {
        let Some(token) = session.token() else { return Ok(None) };
        let scopes = repository.headers.get("x-oauth-scopes").and_then(|scopes| scopes.to_str().ok());
        let writes = scopes.map(|all| all.split(',').any(|scope| WRITE_SCOPES.contains(&scope.trim())));
        if writes == Some(false) || TokenKind::of(token) == TokenKind::BitbucketAccess {
            // An access token is no user with a role: its scopes are all there is to know.
            return Ok(writes);
        }
        let request = Request::get(format!("/repositories/{}", segment(place.workspace())), READ)
            .query("role", "contributor")
            .query("q", format!("full_name={}", quoted(&place.full_name())))
            .takes(&[400, 403, 404, 410]);
        let answer = session.send(&request).await?;
        let ours = |item: &Value| {
            let name = item.pointer("/full_name").and_then(Value::as_str);
            name.is_some_and(|name| name.eq_ignore_ascii_case(&place.full_name()))
        };
        Ok(answer.ok().then(|| answer.items("/values").iter().any(ours)))
    }

    /// The open pull request of this head branch: ours by its marker, else one to the same base, else any. And whether
    /// it carries the marker.
    async fn find(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        new: &NewPullRequest,
    ) -> Result<Option<(PullRequest, bool)>, ForgeError> {
        let request = Request::get(place.path("/pullrequests"), FIND)
            .query("q", format!("source.branch.name={} AND state=\"OPEN\"", quoted(&new.head)))
            .query("pagelen", PULL_REQUESTS_A_PAGE)
            .needs("pullrequest");
        let marker = mark(&new.marker);
        let mut best: Option<((bool, bool), Value)> = None;
        self.each(session, &request, MAX_PULL_REQUEST_PAGES, |item| {
            let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            // A fork may have a branch of that name.
            let here = text("/source/repository/full_name").eq_ignore_ascii_case(&place.full_name());
            let rank = (text("/description").contains(&marker), text("/destination/branch/name") == new.base);
            let better = best.as_ref().is_none_or(|(known, _)| rank > *known);
            if here && text("/source/branch/name") == new.head && text("/state") == "OPEN" && better {
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
        let url = match item.pointer("/links/html/href").and_then(Value::as_str) {
            Some(url) => session.line(url),
            None => format!("{}/{}/pull-requests/{number}", self.web, place.full_name()),
        };
        Ok(PullRequest { number, url })
    }

    /// The accounts behind these names. A UUID is taken as it is; account ids, nicknames and full names are looked up
    /// among the workspace's members.
    async fn reviewers(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        wished: &[String],
        notes: &mut Vec<Note>,
    ) -> Vec<Reviewer> {
        let mut wanted: Vec<Wanted> =
            names(Feature::Reviewers, wished, notes).iter().map(|name| Wanted::new(name)).collect();
        let mut unread: Option<String> = None;
        if !wanted.iter().all(Wanted::known) {
            let request =
                Request::get(format!("/workspaces/{}/members", segment(place.workspace())), "look for reviewers")
                    .query("pagelen", ITEMS_A_PAGE)
                    .needs("account");
            let told = self.each(session, &request, MAX_MEMBER_PAGES, |member| {
                wanted.iter_mut().for_each(|wish| wish.meet(member));
                false
            });
            // The list is a help, and nobody's task fails for it. An access token is refused there with 401, as if it were
            // dead; of one that is, the next request tells.
            unread = told.await.err().map(|error| {
                format!("the workspace's members cannot be listed with this token; give the account's UUID ({error})")
            });
        }
        let mut found: Vec<Reviewer> = Vec::new();
        for wish in wanted {
            match wish.found() {
                Ok(reviewer) if found.iter().any(|known| known.uuid == reviewer.uuid) => {}
                Ok(reviewer) => found.push(reviewer),
                Err((name, why)) => {
                    let why = unread.as_deref().filter(|_| why == NOBODY).unwrap_or(why);
                    notes.push(unasked(session, &name, why));
                }
            }
        }
        found
    }

    /// Creates it, without what of the wish Bitbucket refuses; or finds the one that a lost answer has left.
    /// With whether it was there already, and whether it is ours.
    async fn create(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        new: &NewPullRequest,
        notes: &mut Vec<Note>,
    ) -> Result<(PullRequest, bool, bool), ForgeError> {
        let reviewers = self.reviewers(session, place, &new.reviewers, notes).await;
        let (mut with_reviewers, mut draft, mut tries) = (!reviewers.is_empty(), new.draft, 1);
        loop {
            let mut wish = json!({
                "title": title(&new.title),
                "description": body(&new.body, Some(&new.marker)),
                "source": {"branch": {"name": new.head}},
                "destination": {"branch": {"name": new.base}},
            });
            if draft {
                wish["draft"] = json!(true);
            }
            if with_reviewers {
                wish["reviewers"] = reviewers.iter().map(|reviewer| json!({"uuid": reviewer.uuid})).collect();
            }
            let request =
                Request::post(place.path("/pullrequests"), OPEN, wish).needs("pullrequest:write").takes(&[400, 409]);
            let error = match session.send(&request).await {
                Ok(answer) if answer.ok() => {
                    if draft && answer.body.pointer("/draft") != Some(&Value::Bool(true)) {
                        notes.push(no_draft());
                    }
                    let opened = self.pull_request(session, place, &answer.body)?;
                    if !with_reviewers {
                        self.ask(session, place, opened.number, &reviewers, notes).await;
                    }
                    return Ok((opened, false, true));
                }
                Ok(answer) if at_fault(&answer, "reviewers") && with_reviewers => {
                    with_reviewers = false;
                    continue;
                }
                Ok(answer) if at_fault(&answer, "draft") && draft => {
                    draft = false;
                    notes.push(no_draft());
                    continue;
                }
                Ok(answer) if at_fault(&answer, "source") && tries < HEAD_TRIES => {
                    session.settle(tries).await;
                    tries += 1;
                    continue;
                }
                Ok(answer) => session.refusal(&request, &answer),
                Err(error) if answer_lost(&error) => error,
                Err(error) => return Err(error),
            };
            // It may be there all the same.
            let (found, ours) = self.find(session, place, new).await?.ok_or(error)?;
            if ours {
                self.ask(session, place, found.number, &reviewers, notes).await;
            }
            return Ok((found, true, ours));
        }
    }

    /// The comments that carry the mark, the newest first.
    async fn marked(&self, session: &Session<'_>, path: &str, mark: &str) -> Result<Vec<u64>, ForgeError> {
        let request = Request::get(path, "read the comments")
            .query("pagelen", ITEMS_A_PAGE)
            .query("sort", "-created_on")
            .needs("pullrequest");
        let mut ours = Vec::new();
        self.each(session, &request, MAX_COMMENT_PAGES, |comment| {
            let raw = comment.pointer("/content/raw").and_then(Value::as_str).unwrap_or_default();
            if raw.contains(mark) && comment["deleted"] != Value::Bool(true) {
                ours.extend(comment["id"].as_u64());
            }
            false
        })
        .await?;
        Ok(ours)
    }

    async fn put_comment(&self, session: &Session<'_>, path: &str, marker: &str, text: &str) -> Result<(), ForgeError> {
        let (mark, wish) = (mark(marker), json!({"content": {"raw": body(text, Some(marker))}}));
        for id in self.marked(session, path, &mark).await? {
            // Somebody may have quoted ours: theirs cannot be changed.
            let request = Request::put(format!("{path}/{id}"), COMMENT, wish.clone()).takes(&[403, 404]);
            if session.send(&request).await?.ok() {
                return Ok(());
            }
        }
        match session.send(&Request::post(path, COMMENT, wish).needs("pullrequest")).await {
            Err(error) if answer_lost(&error) => {
                self.marked(session, path, &mark).await?.first().map(drop).ok_or(error)
            }
            done => done.map(drop),
        }
    }

    async fn ask(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        number: u64,
        reviewers: &[Reviewer],
        notes: &mut Vec<Note>,
    ) {
        if reviewers.is_empty() {
            return;
        }
        if let Err(error) = self.ask_missing(session, place, number, reviewers, notes).await {
            notes.push(note(Feature::Reviewers, &error));
        }
    }

    /// Asks those who are not asked yet: all at once, and one by one when that is refused, because Bitbucket refuses the
    /// whole list for one bad name and does not always say which.
    async fn ask_missing(
        &self,
        session: &Session<'_>,
        place: &Place<'_>,
        number: u64,
        reviewers: &[Reviewer],
        notes: &mut Vec<Note>,
    ) -> Result<(), ForgeError> {
        let path = place.path(&format!("/pullrequests/{number}"));
        let now = session.send(&Request::get(path.clone(), FIND).needs("pullrequest")).await?;
        let mut asked = uuids(&now);
        let missing: Vec<&Reviewer> = reviewers.iter().filter(|wish| !asked.contains(&wish.uuid)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let all: Vec<String> = asked.iter().cloned().chain(missing.iter().map(|wish| wish.uuid.clone())).collect();
        if session.send(&changed(&path, &now, &all)).await?.ok() {
            return Ok(());
        }
        for reviewer in missing {
            asked.push(reviewer.uuid.clone());
            let answer = session.send(&changed(&path, &now, &asked)).await?;
            if !answer.ok() {
                asked.pop();
                let why = answer.text("/error/message").unwrap_or("Bitbucket refuses it");
                notes.push(unasked(session, &reviewer.name, why));
            }
        }
        Ok(())
    }
}

/// Who is asked for a review of this pull request.
fn uuids(pull_request: &Answer) -> Vec<String> {
    let uuid = |reviewer: &Value| reviewer.get("uuid").and_then(Value::as_str).map(str::to_owned);
    pull_request.items("/reviewers").iter().filter_map(uuid).collect()
}

/// The same pull request with these reviewers. What a change leaves out is taken away.
fn changed(path: &str, now: &Answer, reviewers: &[String]) -> Request {
    let wish = json!({
        "title": now.body["title"],
        "description": now.body["description"],
        "reviewers": reviewers.iter().map(|uuid| json!({"uuid": uuid})).collect::<Vec<_>>(),
    });
    Request::put(path, CHANGE, wish).needs("pullrequest:write").takes(&[400])
}

fn no_draft() -> Note {
    Note {
        feature: Feature::Drafts,
        detail: "Bitbucket opened it as an ordinary pull request, not as a draft.".to_owned(),
    }
}

/// Whether a 400 is about this field: `{"error": {"fields": {"reviewers": […]}, "message": "reviewers: …"}}`.
fn at_fault(answer: &Answer, field: &str) -> bool {
    answer.body.pointer("/error/fields").and_then(|fields| fields.get(field)).is_some()
        || answer.text("/error/message").is_some_and(|message| message.starts_with(&format!("{field}:")))
}

/// The key of a light: the context, or as much of it as is taken, told apart by a digest.
fn status_key(context: &str) -> String {
    if context.chars().count() <= MAX_STATUS_KEY {
        return context.to_owned();
    }
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(context.as_bytes());
    let tail: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let head: String = context.chars().take(MAX_STATUS_KEY - tail.len() - 1).collect();
    format!("{head}-{tail}")
}

#[async_trait]
impl Forge for BitbucketCloud {
    async fn repository(&self, access: Access<'_>) -> Result<Repository, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let answer = session.send(&Request::get(place.path(""), READ).needs("repository")).await?;
        let id = answer.text("/uuid").map(|uuid| session.line(uuid));
        let id = id.ok_or_else(|| session.not_a_forge("it answers with a repository without a UUID"))?;
        Ok(Repository {
            id: Some(id),
            default_branch: answer.text("/mainbranch/name").map(|name| session.line(name)),
            // Cloud has no archives; a read-only one says so when something is to be changed.
            archived: false,
            may_push: self.may_push(&session, &place, &answer).await?,
        })
    }

    async fn branch_rules(&self, access: Access<'_>, branch: &str) -> Result<BranchRules, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let request = Request::get(place.path("/branch-restrictions"), "read the branch restrictions")
            .query("kind", "push")
            .query("pagelen", ITEMS_A_PAGE)
            .takes(&[403, 404]);
        // Only an administrator may read them; for others the push itself tells.
        let answer = session.send(&request).await?;
        if !answer.ok() || answer.text("/next").is_some() {
            return Ok(BranchRules { protected: None });
        }
        Ok(BranchRules { protected: bitbucket_rules::cloud(answer.items("/values"), branch) })
    }

    async fn open_pull_request(&self, access: Access<'_>, new: &NewPullRequest) -> Result<Opened, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let mut notes: Vec<Note> = no_labels(&session, &new.labels).into_iter().collect();
        let _opening = self.opening(&place, &new.head).lock().await;
        let (pull_request, existed, ours) = match self.find(&session, &place, new).await? {
            Some((found, ours)) => {
                // What somebody else opened is left as it is.
                if ours {
                    let described = self.describe_pull_request(access, found.number, &new.title, &new.body).await;
                    notes.extend(undescribed(described));
                    let reviewers = self.reviewers(&session, &place, &new.reviewers, &mut notes).await;
                    self.ask(&session, &place, found.number, &reviewers, &mut notes).await;
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
        let path = place.path(&format!("/pullrequests/{number}"));
        let now = match session.send(&Request::get(path.clone(), FIND).needs("pullrequest")).await {
            Err(error) if declined(&error) => return Ok(Some(note(Feature::Descriptions, &error))),
            now => now?,
        };
        // A change without reviewers takes the reviewers away.
        let reviewers: Vec<Value> = uuids(&now).iter().map(|uuid| json!({"uuid": uuid})).collect();
        let wish = json!({"title": title(new_title), "description": body(text, None), "reviewers": reviewers});
        let request = Request::put(path, CHANGE, wish).needs("pullrequest:write");
        extra(Feature::Descriptions, session.send(&request).await)
    }

    async fn comment(
        &self,
        access: Access<'_>,
        number: u64,
        marker: &str,
        text: &str,
    ) -> Result<Option<Note>, ForgeError> {
        let (session, place) = (self.rest.session(access), Place::of(access.repo)?);
        let path = place.path(&format!("/pullrequests/{number}/comments"));
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
        // A light without an address is refused.
        let page = || format!("{}/{}/commits/{commit}", self.web, place.full_name());
        let wish = json!({
            "key": status_key(&status.context),
            "name": status.context,
            "state": state,
            "description": shortened(&status.description, MAX_DESCRIPTION),
            "url": status.url.clone().unwrap_or_else(page),
        });
        let path = place.path(&format!("/commit/{commit}/statuses/build"));
        let request = Request::post(path, "set the commit's status", wish).needs("repository");
        extra(Feature::CommitStatus, session.send(&request).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_cannot_leave_its_quotes() {
        assert_eq!(quoted("a\" OR state=\"MERGED"), "\"a\\\" OR state=\\\"MERGED\"");
        assert_eq!(quoted("a\\"), "\"a\\\\\"");
    }

    #[test]
    fn a_status_key_is_bounded_and_its_own() {
        assert_eq!(status_key("orchestra"), "orchestra");
        let (one, two) = (status_key(&format!("{}1", "x".repeat(50))), status_key(&format!("{}2", "x".repeat(50))));
        assert_eq!((one.len(), two.len()), (MAX_STATUS_KEY, MAX_STATUS_KEY));
        assert_ne!(one, two);
    }
}
