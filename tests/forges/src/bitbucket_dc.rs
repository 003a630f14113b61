//! A stand-in of Bitbucket Data Center's REST interface. Statuses are those of Atlassian's reference for 9.4; exceptions and
//! sentences are those that users of the interface have posted.
//!
//! A token that may write is an administrator's; one that may not may still read, comment and set lights, which take
//! `REPO_READ`.

use serde_json::{Value, json};

use crate::fake::{Dialect, Reply};
use crate::spec::Call;
use crate::state::{Comment, Login, Person, Pull, Repo, State, Status};

/// What comes before the paths of the description.
const ROOT: &str = "/rest";
/// Bounds of the real interface.
const MAX_TITLE: usize = 255;
const MAX_TEXT: usize = 32_768;

const REPO: &str = "/api/latest/projects/{projectKey}/repos/{repositorySlug}";
const RESTRICTIONS: &str = "/branch-permissions/latest/projects/{projectKey}/repos/{repositorySlug}/restrictions";

pub(crate) fn dialect() -> Dialect {
    Dialect {
        root: ROOT,
        description: include_str!("../specs/bitbucket-dc.json"),
        answer,
        error,
        limited: |seconds| error(429, "You have been rate limited").header("Retry-After", seconds.to_string()),
    }
}

fn error(status: u16, message: &str) -> Reply {
    refusal(status, None, message, None)
}

fn refusal(status: u16, context: Option<&str>, message: &str, exception: Option<&str>) -> Reply {
    let error = json!({ "context": context, "message": message, "exceptionName": exception });
    Reply::new(status, json!({ "errors": [error] }))
}

fn unpermitted() -> Reply {
    let exception = "com.atlassian.bitbucket.AuthorisationException";
    refusal(401, None, "You are not permitted to access this resource", Some(exception))
}

fn unknown(exception: &str, message: &str) -> Reply {
    refusal(404, None, message, Some(&format!("com.atlassian.bitbucket.{exception}")))
}

fn user(person: &Person) -> Value {
    json!({
        "name": person.login, "id": person.id, "slug": person.login, "active": true, "type": "NORMAL",
        "displayName": format!("{} Example", person.login),
    })
}

/// One page of a list, by `start` and `limit`.
fn page(call: &Call, items: Vec<Value>) -> Reply {
    let number =
        |name: &str, otherwise: usize| call.asked(name).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (start, limit) = (number("start", 0), number("limit", 25));
    let shown: Vec<Value> = items.iter().skip(start).take(limit).cloned().collect();
    let last = start + shown.len() >= items.len();
    let mut told = json!({ "start": start, "limit": limit, "size": shown.len(), "isLastPage": last, "values": shown });
    told["nextPageStart"] = if last { Value::Null } else { json!(start + limit) };
    Reply::new(200, told)
}

fn repository(repo: &Repo) -> Value {
    let (project, slug) = repo.path.split_once('/').unwrap_or(("", &repo.path));
    json!({
        "id": repo.id, "slug": slug, "name": slug, "archived": repo.archived, "state": "AVAILABLE",
        "project": { "key": project },
    })
}

fn pull(base: &str, people: &[Person], repo: &Repo, pull: &Pull) -> Value {
    let web = base.strip_suffix(ROOT).unwrap_or(base);
    let (project, slug) = repo.path.split_once('/').unwrap_or(("", &repo.path));
    let end = |branch: &str| {
        json!({
            "id": format!("refs/heads/{branch}"), "displayId": branch, "latestCommit": repo.git.head(branch),
            "repository": repository(repo),
        })
    };
    let mut target = end(&pull.base);
    if let Some((project, slug)) = pull.upstream.as_ref().and_then(|path| path.split_once('/')) {
        target["repository"] = json!({ "slug": slug, "name": slug, "project": { "key": project } });
    }
    let reviewers = pull.reviewers.iter().filter_map(|login| people.iter().find(|person| person.login == *login));
    let reviewers: Vec<Value> =
        reviewers.map(|person| json!({ "user": user(person), "role": "REVIEWER", "approved": false })).collect();
    let page = format!("{web}/projects/{project}/repos/{slug}/pull-requests/{}", pull.number);
    let mut told = json!({
        "id": pull.number, "version": pull.version, "title": pull.title, "description": pull.body,
        "state": if pull.open { "OPEN" } else { "DECLINED" }, "open": pull.open, "closed": !pull.open,
        "fromRef": end(&pull.head), "toRef": target, "reviewers": reviewers,
        "links": { "self": [{ "href": page }] },
    });
    // Servers before 8.18 know no drafts and do not speak of them.
    if repo.drafts {
        told["draft"] = json!(pull.draft);
    }
    told
}

fn answer(state: &mut State, login: &Login, call: &Call) -> Reply {
    if call.template == "/api/latest/repos" {
        let named = |repo: &&Repo| {
            let told = repository(repo);
            let is = |name: &str, pointer: &str| {
                let text = told.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
                call.asked(name).is_none_or(|wanted| wanted.eq_ignore_ascii_case(text))
            };
            let shown = call.asked("archived").is_some_and(|which| which == "ALL") || !repo.archived;
            is("projectkey", "/project/key") && is("name", "/name") && shown
        };
        let permitted = call.asked("permission") == Some("REPO_READ") || login.may_write;
        let seen = state.repos.keys().filter_map(|path| state.seen(path, login)).filter(named);
        return page(call, seen.filter(|_| permitted).map(repository).collect());
    }
    let base = state.base.clone();
    let path = format!("{}/{}", call.param("projectKey"), call.param("repositorySlug"));
    let Some(repo) = state.seen(&path, login) else {
        // The server tells those who may not see a repository from one that is not there.
        return if state.repos.contains_key(&path) {
            unpermitted()
        } else {
            unknown("repository.NoSuchRepositoryException", &format!("Repository {path} does not exist."))
        };
    };
    if call.method == "GET" {
        return read(&base, &state.people, repo, login, call);
    }
    let end = call.template.strip_prefix(REPO).unwrap_or_default();
    if !login.may_write && end.starts_with("/pull-requests") && !end.contains("/comments") {
        return unpermitted();
    }
    if repo.archived {
        let exception = "com.atlassian.bitbucket.repository.RepositoryArchivedException";
        return refusal(409, None, &format!("Repository {path} is archived and cannot be modified."), Some(exception));
    }
    let (people, id) = (state.people.clone(), state.next_id());
    let repo = state.repos.get_mut(&path).expect("it was seen");
    match (call.method.as_str(), end) {
        ("POST", "/pull-requests") => open(&base, &people, repo, login, call),
        ("PUT", "/pull-requests/{pullRequestId}") => change(&base, &people, repo, login, call),
        ("POST", "/pull-requests/{pullRequestId}/comments") => {
            let Some(found) = repo.pull_mut(call.number("pullRequestId")) else { return no_pull() };
            let body = call.text("/text").unwrap_or_default().to_owned();
            if body.trim().is_empty() || body.chars().count() > MAX_TEXT {
                return refusal(400, Some("text"), "Please enter a comment of at most 32768 characters", None);
            }
            found.comments.push(Comment { id, body: body.clone(), version: 0 });
            Reply::new(201, json!({ "id": id, "version": 0, "text": body }))
        }
        ("PUT", "/pull-requests/{pullRequestId}/comments/{commentId}") => {
            let Some(found) = repo.pull_mut(call.number("pullRequestId")) else { return no_pull() };
            let Some(comment) = found.comments.iter_mut().find(|one| one.id == call.number("commentId")) else {
                return unknown("comment.NoSuchCommentException", "No such comment");
            };
            if call.body.pointer("/version") != Some(&json!(comment.version)) {
                let exception = "com.atlassian.bitbucket.comment.CommentOutOfDateException";
                return refusal(
                    409,
                    None,
                    "You are attempting to modify a comment based on out-of-date information.",
                    Some(exception),
                );
            }
            call.text("/text").unwrap_or_default().clone_into(&mut comment.body);
            comment.version += 1;
            Reply::new(200, json!({ "id": comment.id, "version": comment.version, "text": comment.body }))
        }
        ("POST", "/commits/{commitId}/builds") => {
            let text = |pointer: &str| call.text(pointer).unwrap_or_default().to_owned();
            let commit = call.param("commitId").to_owned();
            if !repo.git.has_commit(&commit) {
                return unknown("commit.NoSuchCommitException", &format!("Commit '{commit}' does not exist."));
            }
            repo.set_status(Status {
                commit,
                state: text("/state"),
                context: text("/key"),
                description: text("/description"),
                url: call.text("/url").map(str::to_owned),
            });
            Reply::new(204, Value::Null)
        }
        _ => error(404, "null for uri"),
    }
}

fn no_pull() -> Reply {
    unknown("pull.NoSuchPullRequestException", "No pull request exists with that ID for this repository.")
}

fn read(base: &str, people: &[Person], repo: &Repo, login: &Login, call: &Call) -> Reply {
    if call.template == RESTRICTIONS {
        let rules = repo.protected.iter().enumerate().flat_map(|(number, pattern)| {
            let (kind, id) = match pattern.contains('*') {
                true => ("PATTERN", pattern.clone()),
                false => ("BRANCH", format!("refs/heads/{pattern}")),
            };
            ["fast-forward-only", "pull-request-only"].map(|rule| {
                let matcher = json!({ "id": id, "displayId": pattern, "type": { "id": kind } });
                json!({ "id": number, "type": rule, "matcher": matcher, "users": [], "groups": [], "accessKeys": [] })
            })
        });
        return if login.may_write { page(call, rules.collect()) } else { unpermitted() };
    }
    match call.template.strip_prefix(REPO).unwrap_or("?") {
        "" => Reply::new(200, repository(repo)),
        "/default-branch" => {
            let branch = &repo.default_branch;
            Reply::new(200, json!({ "id": format!("refs/heads/{branch}"), "displayId": branch, "type": "BRANCH" }))
        }
        "/pull-requests" => {
            let outgoing = call.asked("direction") == Some("OUTGOING");
            let of = |one: &&Pull| {
                let branch = if outgoing { &one.head } else { &one.base };
                call.asked("at").is_none_or(|at| at == format!("refs/heads/{branch}"))
                    && match call.asked("state").unwrap_or("OPEN") {
                        "ALL" => true,
                        state => one.open == (state == "OPEN"),
                    }
            };
            page(call, repo.pulls.iter().rev().filter(of).map(|one| pull(base, people, repo, one)).collect())
        }
        "/pull-requests/{pullRequestId}" => match repo.pull(call.number("pullRequestId")) {
            Some(found) => Reply::new(200, pull(base, people, repo, found)),
            None => no_pull(),
        },
        "/pull-requests/{pullRequestId}/activities" => {
            let Some(found) = repo.pull(call.number("pullRequestId")) else { return no_pull() };
            let said = found.comments.iter().rev().map(|one| {
                let comment = json!({ "id": one.id, "version": one.version, "text": one.body });
                json!({ "id": one.id + 10_000, "action": "COMMENTED", "commentAction": "ADDED", "comment": comment })
            });
            page(call, said.chain([json!({ "id": 10_000, "action": "OPENED" })]).collect())
        }
        _ => error(404, "null for uri"),
    }
}

/// The people of a list, or the refusal that names those that nobody knows.
fn reviewers(people: &[Person], login: &Login, call: &Call) -> Result<Vec<String>, Reply> {
    let listed = call.body.pointer("/reviewers").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = listed.filter_map(|one| one.pointer("/user/name")?.as_str()).collect();
    let why = |name: &str| {
        if name == login.user {
            return Some(format!("{name} is the author of the pull request and cannot be a reviewer."));
        }
        (!people.iter().any(|person| person.login == name)).then(|| format!("{name} is not a user."))
    };
    let errors: Vec<Value> = names
        .iter()
        .filter_map(|name| Some(json!({ "context": name, "message": why(name)?, "exceptionName": null })))
        .collect();
    if errors.is_empty() {
        return Ok(names.into_iter().map(str::to_owned).collect());
    }
    let error = json!({
        "context": "reviewers", "message": "Errors encountered while adding some reviewers to this pull request.",
        "exceptionName": "com.atlassian.bitbucket.pull.InvalidPullRequestReviewersException",
        "reviewerErrors": errors, "validReviewers": [],
    });
    Err(Reply::new(409, json!({ "errors": [error] })))
}

/// What is wrong with a pull request's texts.
fn texts(call: &Call) -> Option<Reply> {
    let long = |pointer: &str, most: usize| call.text(pointer).is_some_and(|text| text.chars().count() > most);
    let refused = |field: &str| Some(refusal(400, Some(field), &format!("The {field} is too long."), None));
    match () {
        () if call.text("/title").is_none_or(str::is_empty) => {
            Some(refusal(400, Some("title"), "You must supply a title for this pull request.", None))
        }
        () if long("/title", MAX_TITLE) => refused("title"),
        () if long("/description", MAX_TEXT) => refused("description"),
        () => None,
    }
}

fn open(base: &str, people: &[Person], repo: &mut Repo, login: &Login, call: &Call) -> Reply {
    let text = |pointer: &str| call.text(pointer).unwrap_or_default().to_owned();
    let branch = |pointer: &str| text(pointer).trim_start_matches("refs/heads/").to_owned();
    let (head, to) = (branch("/fromRef/id"), branch("/toRef/id"));
    if let Some(refusal) = texts(call) {
        return refusal;
    }
    let conflict = |exception: &str, message: &str| {
        refusal(409, None, message, Some(&format!("com.atlassian.bitbucket.pull.{exception}")))
    };
    if head == to {
        return conflict("InvalidPullRequestTargetException", "You must select a different source and target branch.");
    }
    let missing = |name: &str| {
        let exception = "com.atlassian.bitbucket.repository.NoSuchBranchException";
        refusal(404, None, &format!("Branch \"{name}\" does not exist."), Some(exception))
    };
    let Some(tip) = repo.git.head(&head) else { return missing(&head) };
    let Some(target) = repo.git.head(&to) else { return missing(&to) };
    if tip == target {
        let message = format!("{to} is already up-to-date with branch {head} in repository {}.", repo.path);
        return conflict("EmptyPullRequestException", &message);
    }
    if let Some(found) = repo.open_pull(&head, &to).filter(|found| found.upstream.is_none()) {
        let mut refused = conflict(
            "DuplicatePullRequestException",
            "Only one pull request may be open for a given source and target branch",
        );
        refused.body["errors"][0]["existingPullRequest"] = pull(base, people, repo, found);
        return refused;
    }
    let reviewers = match reviewers(people, login, call) {
        Ok(reviewers) => reviewers,
        Err(refusal) => return refusal,
    };
    let draft = call.body.pointer("/draft") == Some(&Value::Bool(true)) && repo.drafts;
    let (title, body) = (text("/title"), text("/description"));
    let new = repo.add_pull(Pull { head, base: to, title, body, draft, reviewers, ..Pull::default() }).clone();
    Reply::new(201, pull(base, people, repo, &new))
}

fn change(base: &str, people: &[Person], repo: &mut Repo, login: &Login, call: &Call) -> Reply {
    if let Some(refusal) = texts(call) {
        return refusal;
    }
    let number = call.number("pullRequestId");
    let Some(found) = repo.pull_mut(number) else { return no_pull() };
    if call.body.pointer("/version") != Some(&json!(found.version)) {
        let exception = "com.atlassian.bitbucket.pull.PullRequestOutOfDateException";
        let message = "You are attempting to modify a pull request based on out-of-date information.";
        return refusal(409, None, message, Some(exception));
    }
    let asked = match reviewers(people, login, call) {
        Ok(reviewers) => reviewers,
        Err(refusal) => return refusal,
    };
    found.title = call.text("/title").unwrap_or_default().to_owned();
    // What a change leaves out is gone.
    found.body = call.text("/description").unwrap_or_default().to_owned();
    found.reviewers = asked;
    if let Some(draft) = call.body.pointer("/draft").and_then(Value::as_bool) {
        found.draft = draft;
    }
    found.version += 1;
    Reply::new(200, pull(base, people, repo, repo.pull(number).expect("it was found")))
}
