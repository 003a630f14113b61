//! A stand-in of Bitbucket Cloud's REST interface. Statuses and shapes are those of Atlassian's reference; sentences are
//! those that users of the interface have posted.
//!
//! A token that may write is an administrator's with every scope; one that may not has the scopes for reading. A token of
//! the user `guest` has every scope, of somebody whom the workspace lets read only.

use serde_json::{Value, json};

use crate::fake::{Dialect, Reply};
use crate::spec::Call;
use crate::state::{Comment, Login, Person, Pull, Repo, State, Status};

/// What comes before the paths of the description.
const ROOT: &str = "/2.0";
/// Bounds of the real interface.
const MAX_TITLE: usize = 255;
const MAX_TEXT: usize = 32_768;
const MAX_STATUS_KEY: usize = 40;
const MAX_PULLS_A_PAGE: usize = 50;

/// Who has no role.
const GUEST: &str = "guest";

const WRITING: [&str; 5] = ["repository:write", "repository:admin", "pullrequest:write", "account", "project"];
const READING: [&str; 3] = ["repository", "pullrequest", "account"];

pub(crate) fn dialect() -> Dialect {
    Dialect {
        root: ROOT,
        description: include_str!("../specs/bitbucket-cloud.json"),
        answer: |state, login, call| {
            let scopes = scopes(login).join(", ");
            answer(state, login, call).header("X-OAuth-Scopes", scopes)
        },
        error,
        limited: |seconds| {
            error(429, "Rate limit for this resource has been exceeded").header("Retry-After", seconds.to_string())
        },
    }
}

fn error(status: u16, message: &str) -> Reply {
    Reply::new(status, json!({ "type": "error", "error": { "message": message } }))
}

fn invalid(field: &str, message: &str) -> Reply {
    let error = json!({ "fields": { field: [message] }, "message": format!("{field}: {message}") });
    Reply::new(400, json!({ "type": "error", "error": error }))
}

fn scopes(login: &Login) -> &'static [&'static str] {
    if login.may_write { &WRITING } else { &READING }
}

/// The refusal, when the token lacks this scope. The scopes for pull requests hold those for repositories.
fn lacks(login: &Login, scope: &str) -> Option<Reply> {
    let granted = scopes(login);
    let writes = format!("{scope}:write");
    let held = granted.iter().any(|one| *one == scope || *one == writes);
    let error = json!({
        "message": "Your credentials lack one or more required privilege scopes.",
        "detail": { "granted": granted, "required": [scope] },
    });
    (!held).then(|| Reply::new(403, json!({ "type": "error", "error": error })))
}

fn account(person: &Person) -> Value {
    json!({
        "type": "user", "uuid": person.uuid, "nickname": person.login, "display_name": format!("{} Example", person.login),
        "account_id": format!("557058:{}", person.id),
    })
}

/// One page of a list, by `page` and `pagelen`.
fn page(base: &str, call: &Call, most: usize, items: Vec<Value>) -> Reply {
    let number =
        |name: &str, otherwise: usize| call.asked(name).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (number, size) = (number("page", 1), number("pagelen", 10));
    if size > most {
        return error(400, "Invalid pagelen");
    }
    let shown: Vec<Value> = items.iter().skip((number - 1) * size).take(size).cloned().collect();
    let mut told = json!({ "page": number, "pagelen": size, "size": items.len(), "values": shown });
    if number * size < items.len() {
        told["next"] = json!(format!("{base}/somewhere?page={}", number + 1));
    }
    Reply::new(200, told)
}

/// The conditions of a query in Bitbucket's language: as much of it as `field="text"`, joined by AND.
fn conditions(query: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = query.trim();
    while !rest.is_empty() {
        let (field, after) = rest.split_once('=')?;
        let mut characters = after.trim_start().strip_prefix('"')?.chars();
        let mut text = String::new();
        loop {
            match characters.next()? {
                '\\' => text.push(characters.next()?),
                '"' => break,
                other => text.push(other),
            }
        }
        found.push((field.trim().to_owned(), text));
        rest = characters.as_str().trim();
        if !rest.is_empty() {
            rest = rest.strip_prefix("AND ")?.trim();
        }
    }
    Some(found)
}

fn pull(base: &str, people: &[Person], repo: &Repo, pull: &Pull) -> Value {
    let web = base.strip_suffix(ROOT).unwrap_or(base);
    let end = |branch: &str| {
        let hash = repo.git.head(branch).unwrap_or_default();
        json!({
            "branch": { "name": branch }, "commit": { "hash": hash.get(..12).unwrap_or_default() },
            "repository": { "type": "repository", "full_name": repo.path, "uuid": repo.uuid },
        })
    };
    let reviewers = pull.reviewers.iter().filter_map(|login| people.iter().find(|person| person.login == *login));
    json!({
        "type": "pullrequest", "id": pull.number, "title": pull.title, "description": pull.body, "draft": pull.draft,
        "state": if pull.open { "OPEN" } else { "DECLINED" }, "close_source_branch": pull.delete_branch,
        "source": end(&pull.head), "destination": end(&pull.base),
        "reviewers": reviewers.map(account).collect::<Vec<_>>(),
        "links": { "html": { "href": format!("{web}/{}/pull-requests/{}", repo.path, pull.number) } },
    })
}

fn answer(state: &mut State, login: &Login, call: &Call) -> Reply {
    let base = state.base.clone();
    match call.template.as_str() {
        "/repositories/{workspace}" => return repositories(&base, state, login, call),
        "/workspaces/{workspace}/members" => {
            let members =
                state.people.iter().map(|person| json!({ "type": "workspace_membership", "user": account(person) }));
            return lacks(login, "account").unwrap_or_else(|| page(&base, call, 100, members.collect()));
        }
        _ => {}
    }
    let path = format!("{}/{}", call.param("workspace"), call.param("repo_slug"));
    let Some(repo) = state.seen(&path, login) else {
        return error(
            404,
            "You may not have access to this repository or it no longer exists in this workspace. If you think this repository exists and you have access, make sure you are authenticated.",
        );
    };
    if call.method == "GET" {
        return read(&base, &state.people, repo, login, call);
    }
    let scope = match call.template.as_str() {
        template if template.ends_with("/statuses/build") => "repository",
        template if template.contains("/comments") => "pullrequest",
        _ => "pullrequest:write",
    };
    if let Some(refusal) = lacks(login, scope) {
        return refusal;
    }
    if login.user == GUEST {
        return error(403, "Your account does not have write access to this repository.");
    }
    if repo.archived {
        return error(403, "This repository is restricted to read-only access.");
    }
    let (people, id) = (state.people.clone(), state.next_id());
    let repo = state.repos.get_mut(&path).expect("it was seen");
    match (call.method.as_str(), call.template.rsplit('/').next().unwrap_or_default()) {
        ("POST", "pullrequests") => open(&base, &people, repo, login, call),
        ("PUT", "{pull_request_id}") => change(&base, &people, repo, login, call),
        ("POST", "comments") => {
            let Some(found) = repo.pull_mut(call.number("pull_request_id")) else { return error(404, "Not found") };
            let body = call.text("/content/raw").unwrap_or_default().to_owned();
            if body.trim().is_empty() || body.chars().count() > MAX_TEXT {
                return invalid("content", "This field is required.");
            }
            found.comments.push(Comment { id, body, version: 0 });
            Reply::new(201, json!({ "type": "pullrequest_comment", "id": id }))
        }
        ("PUT", "{comment_id}") => {
            let found = repo.pull_mut(call.number("pull_request_id"));
            let comments = found.map(|pull| pull.comments.iter_mut()).into_iter().flatten();
            let Some(comment) = comments.into_iter().find(|one| one.id == call.number("comment_id")) else {
                return error(404, "Not found");
            };
            call.text("/content/raw").unwrap_or_default().clone_into(&mut comment.body);
            Reply::new(200, json!({ "type": "pullrequest_comment", "id": comment.id }))
        }
        ("POST", "build") => light(repo, call),
        _ => error(404, "Not found"),
    }
}

fn repositories(base: &str, state: &State, login: &Login, call: &Call) -> Reply {
    let Some(wanted) = conditions(call.asked("q").unwrap_or_default()) else { return error(400, "Invalid query") };
    if wanted.iter().any(|(field, _)| field != "full_name") {
        return error(400, "Unknown field");
    }
    let of_role = match call.asked("role") {
        Some("contributor" | "admin" | "owner") => login.may_write && login.user != GUEST,
        Some(_) | None => true,
    };
    let workspace = format!("{}/", call.param("workspace"));
    let seen = state.repos.keys().filter(|path| {
        path.starts_with(&workspace)
            && wanted.iter().all(|(_, name)| name == *path)
            && state.seen(path, login).is_some()
    });
    let told = seen.filter(|_| of_role).map(|path| json!({ "type": "repository", "full_name": path })).collect();
    lacks(login, "repository").unwrap_or_else(|| page(base, call, 100, told))
}

fn read(base: &str, people: &[Person], repo: &Repo, login: &Login, call: &Call) -> Reply {
    let (scope, end) = match call.template.rsplit('/').next().unwrap_or_default() {
        end @ ("pullrequests" | "{pull_request_id}" | "comments") => ("pullrequest", end),
        end @ "branch-restrictions" => ("repository:admin", end),
        end => ("repository", end),
    };
    if let Some(refusal) = lacks(login, scope) {
        return refusal;
    }
    match end {
        "{repo_slug}" => {
            let branch = json!({ "type": "branch", "name": repo.default_branch });
            let body = json!({ "type": "repository", "uuid": repo.uuid, "full_name": repo.path, "mainbranch": branch });
            Reply::new(200, body)
        }
        "branch-restrictions" => {
            let rules = repo.protected.iter().enumerate().flat_map(|(number, pattern)| {
                ["push", "delete"].map(|kind| {
                    json!({
                        "type": "branchrestriction", "id": number, "kind": kind, "branch_match_kind": "glob",
                        "pattern": pattern, "users": [], "groups": [],
                    })
                })
            });
            let rules: Vec<Value> =
                rules.filter(|rule| call.asked("kind").is_none_or(|kind| rule["kind"] == kind)).collect();
            page(base, call, 100, rules)
        }
        "pullrequests" => {
            let Some(wanted) = conditions(call.asked("q").unwrap_or_default()) else {
                return error(400, "Invalid query");
            };
            let fits = |told: &Value| {
                wanted
                    .iter()
                    .all(|(field, text)| told.pointer(&format!("/{}", field.replace('.', "/"))) == Some(&json!(text)))
            };
            let told = repo.pulls.iter().map(|one| pull(base, people, repo, one)).filter(fits).map(|mut told| {
                // Only a pull request by itself is told with its reviewers.
                told.as_object_mut().map(|told| told.remove("reviewers"));
                told
            });
            page(base, call, MAX_PULLS_A_PAGE, told.collect())
        }
        "{pull_request_id}" => match repo.pull(call.number("pull_request_id")) {
            Some(found) => Reply::new(200, pull(base, people, repo, found)),
            None => error(404, "Not found"),
        },
        "comments" => {
            let Some(found) = repo.pull(call.number("pull_request_id")) else { return error(404, "Not found") };
            let told = |one: &Comment| json!({ "type": "pullrequest_comment", "id": one.id, "content": { "raw": one.body }, "deleted": false });
            let mut comments: Vec<Value> = found.comments.iter().map(told).collect();
            if call.asked("sort") == Some("-created_on") {
                comments.reverse();
            }
            page(base, call, 100, comments)
        }
        _ => error(404, "Not found"),
    }
}

/// The people behind a list of accounts, or why it is refused as a whole.
fn reviewers(people: &[Person], login: &Login, call: &Call) -> Result<Vec<String>, Reply> {
    let listed = call.body.pointer("/reviewers").and_then(Value::as_array);
    let known = |account: &Value| people.iter().find(|person| account.get("uuid") == Some(&json!(person.uuid)));
    let asked: Option<Vec<&Person>> = listed.into_iter().flatten().map(known).collect();
    let asked = asked.ok_or_else(|| invalid("reviewers", "Malformed reviewers list"))?;
    if let Some(author) = asked.iter().find(|person| person.login == login.user) {
        let message = format!("{} is the author and cannot be included as a reviewer.", author.login);
        return Err(invalid("reviewers", &message));
    }
    Ok(asked.into_iter().map(|person| person.login.clone()).collect())
}

/// What is wrong with a pull request's texts.
fn texts(call: &Call) -> Option<Reply> {
    if call.text("/title").is_some_and(|title| title.chars().count() > MAX_TITLE) {
        return Some(invalid("title", "Ensure this value has at most 255 characters."));
    }
    let long = call.text("/description").is_some_and(|text| text.chars().count() > MAX_TEXT);
    long.then(|| invalid("description", "Ensure this value has at most 32768 characters."))
}

fn open(base: &str, people: &[Person], repo: &mut Repo, login: &Login, call: &Call) -> Reply {
    let text = |pointer: &str| call.text(pointer).unwrap_or_default().to_owned();
    let (head, mut to) = (text("/source/branch/name"), text("/destination/branch/name"));
    if to.is_empty() {
        to.clone_from(&repo.default_branch);
    }
    if text("/title").is_empty() {
        return invalid("title", "This field is required.");
    }
    if let Some(refusal) = texts(call) {
        return refusal;
    }
    let Some(tip) = repo.git.head(&head) else { return invalid("source", &format!("branch not found: {head}")) };
    let Some(target) = repo.git.head(&to) else { return invalid("destination", &format!("branch not found: {to}")) };
    if tip == target {
        return error(400, "There are no changes to be pulled");
    }
    let reviewers = match reviewers(people, login, call) {
        Ok(reviewers) => reviewers,
        Err(refusal) => return refusal,
    };
    let draft = call.body.pointer("/draft") == Some(&Value::Bool(true)) && repo.drafts;
    // A second one between the same branches changes the first one.
    let number = match repo.open_pull(&head, &to).map(|pull| pull.number) {
        Some(number) => {
            let found = repo.pull_mut(number).expect("it was found");
            (found.title, found.body, found.reviewers) = (text("/title"), text("/description"), reviewers);
            number
        }
        None => {
            let (title, body) = (text("/title"), text("/description"));
            repo.add_pull(Pull { head, base: to, title, body, draft, reviewers, ..Pull::default() }).number
        }
    };
    Reply::new(201, pull(base, people, repo, repo.pull(number).expect("it was opened")))
}

fn change(base: &str, people: &[Person], repo: &mut Repo, login: &Login, call: &Call) -> Reply {
    let asked = match reviewers(people, login, call) {
        Ok(reviewers) => reviewers,
        Err(refusal) => return refusal,
    };
    if let Some(refusal) = texts(call) {
        return refusal;
    }
    let number = call.number("pull_request_id");
    let Some(found) = repo.pull_mut(number) else { return error(404, "Not found") };
    if !found.open {
        return error(400, "Only open pull requests can be mutated");
    }
    if let Some(title) = call.text("/title") {
        title.clone_into(&mut found.title);
    }
    if let Some(text) = call.text("/description") {
        text.clone_into(&mut found.body);
    }
    // Reviewers that a change leaves out are gone.
    found.reviewers = asked;
    Reply::new(200, pull(base, people, repo, repo.pull(number).expect("it was found")))
}

fn light(repo: &mut Repo, call: &Call) -> Reply {
    let text = |pointer: &str| call.text(pointer).unwrap_or_default().to_owned();
    let commit = call.param("commit").to_owned();
    if !repo.git.has_commit(&commit) {
        return error(404, "Commit not found");
    }
    if call.text("/url").is_none() {
        return invalid("url", "required key not provided");
    }
    if text("/key").chars().count() > MAX_STATUS_KEY {
        return invalid("key", "Ensure this value has at most 40 characters.");
    }
    repo.set_status(Status {
        commit,
        state: text("/state"),
        context: text("/key"),
        description: text("/description"),
        url: call.text("/url").map(str::to_owned),
    });
    Reply::new(201, json!({ "type": "build", "key": text("/key"), "state": text("/state") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_with_its_quotes() {
        let read = |query: &str| conditions(query);
        let pair = |field: &str, text: &str| (field.to_owned(), text.to_owned());
        assert_eq!(
            read(r#"source.branch.name="a\" AND state=\"x" AND state="OPEN""#),
            Some(vec![pair("source.branch.name", "a\" AND state=\"x"), pair("state", "OPEN")])
        );
        assert_eq!(read(""), Some(Vec::new()));
        assert_eq!(read("state=OPEN"), None);
        assert_eq!(read(r#"state="OPEN" OR x="y""#), None);
    }
}
