//! A stand-in of GitLab's REST interface. Statuses and sentences are those of GitLab's documentation.

use serde_json::{Value, json};

use crate::fake::{Dialect, Reply};
use crate::spec::Call;
use crate::state::{Comment, Login, Pull, Repo, State, Status};

/// What makes a merge request a draft.
const DRAFT: &str = "Draft: ";

pub(crate) fn dialect() -> Dialect {
    Dialect {
        root: "/api/v4",
        description: include_str!("../specs/gitlab.json"),
        answer,
        error,
        limited: |seconds| error(429, "Too Many Requests").header("Retry-After", seconds.to_string()),
    }
}

fn error(status: u16, message: &str) -> Reply {
    let message = match status {
        401 => "401 Unauthorized",
        _ => message,
    };
    Reply::new(status, json!({ "message": message }))
}

fn lacks_scope() -> Reply {
    let body = json!({
        "error": "insufficient_scope", "scope": "api",
        "error_description": "The request requires higher privileges than provided by the access token.",
    });
    Reply::new(403, body)
}

fn merge_request(base: &str, repo: &Repo, pull: &Pull) -> Value {
    let title = if pull.draft { format!("{DRAFT}{}", pull.title) } else { pull.title.clone() };
    json!({
        "iid": pull.number, "id": 9000 + pull.number, "title": title, "description": pull.body,
        "web_url": format!("{base}/{}/-/merge_requests/{}", repo.path, pull.number),
        "source_branch": pull.head, "target_branch": pull.base, "draft": pull.draft, "labels": pull.labels,
        "source_project_id": repo.id, "target_project_id": repo.id,
        "state": if pull.open { "opened" } else { "merged" },
        "reviewers": pull.reviewers.iter().map(|name| json!({ "username": name })).collect::<Vec<_>>(),
    })
}

fn answer(state: &mut State, login: &Login, call: &Call) -> Reply {
    if call.template == "/users" {
        let wanted = call.asked("username").unwrap_or_default();
        let people = state.people.iter().filter(|person| person.login == wanted);
        return Reply::new(200, people.map(|one| json!({ "id": one.id, "username": one.login })).collect());
    }
    let named = call.param("id");
    let path = state.repos.values().find(|repo| repo.path == named || repo.id.to_string() == named);
    let path = path.map(|repo| repo.path.clone()).unwrap_or_default();
    let Some(repo) = state.seen(&path, login) else { return error(404, "404 Project Not Found") };
    let base = state.base.clone();
    if call.method == "GET" {
        return read(&base, repo, login, call);
    }
    if !login.may_write {
        return lacks_scope();
    }
    if repo.archived {
        return error(403, "403 Forbidden");
    }
    let ids = call.body.pointer("/reviewer_ids").and_then(Value::as_array).cloned().unwrap_or_default();
    let reviewers = state.people.iter().filter(|person| ids.contains(&json!(person.id)));
    let reviewers: Vec<String> = reviewers.map(|person| person.login.clone()).collect();
    let id = state.next_id();
    let repo = state.repos.get_mut(&path).expect("it was seen");
    write(&base, repo, reviewers, id, call)
}

fn read(base: &str, repo: &Repo, login: &Login, call: &Call) -> Reply {
    let missing = || error(404, "404 Not found");
    let number =
        |name: &str, otherwise: usize| call.asked(name).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (size, page) = (number("per_page", 20), number("page", 1));
    match call.template.as_str() {
        "/projects/{id}" => {
            // Developer, or Reporter.
            let level = if login.may_write { 30 } else { 20 };
            let body = json!({
                "id": repo.id, "path_with_namespace": repo.path, "default_branch": repo.default_branch,
                "archived": repo.archived,
                "permissions": { "project_access": { "access_level": level }, "group_access": null },
            });
            Reply::new(200, body)
        }
        "/projects/{id}/protected_branches" => {
            let rule = |name: &String| json!({ "name": name, "push_access_levels": [{ "access_level": 40 }] });
            Reply::new(200, repo.protected.iter().skip(size * (page - 1)).take(size).map(rule).collect())
        }
        "/projects/{id}/merge_requests" => {
            let of = |one: &&Pull| {
                call.asked("source_branch").is_none_or(|branch| branch == one.head)
                    && call.asked("target_branch").is_none_or(|branch| branch == one.base)
                    && call.asked("state").is_none_or(|state| state == "all" || one.open == (state == "opened"))
            };
            Reply::new(200, repo.pulls.iter().filter(of).map(|one| merge_request(base, repo, one)).collect())
        }
        "/projects/{id}/merge_requests/{merge_request_iid}" => match repo.pull(call.number("merge_request_iid")) {
            Some(found) => Reply::new(200, merge_request(base, repo, found)),
            None => missing(),
        },
        "/projects/{id}/merge_requests/{merge_request_iid}/notes" => {
            let Some(found) = repo.pull(call.number("merge_request_iid")) else { return missing() };
            let notes = found.comments.iter().skip(size * (page - 1)).take(size);
            Reply::new(200, notes.map(|one| json!({ "id": one.id, "body": one.body })).collect())
        }
        _ => missing(),
    }
}

fn write(base: &str, repo: &mut Repo, reviewers: Vec<String>, id: u64, call: &Call) -> Reply {
    let text = |pointer: &str| call.text(pointer).unwrap_or_default().to_owned();
    let missing = || error(404, "404 Not found");
    let number = call.number("merge_request_iid");
    match (call.method.as_str(), call.template.as_str()) {
        ("POST", "/projects/{id}/merge_requests") => open(base, repo, reviewers, call),
        ("PUT", "/projects/{id}/merge_requests/{merge_request_iid}") => {
            let Some(found) = repo.pull_mut(number) else { return missing() };
            if let Some(title) = call.text("/title") {
                found.draft = title.starts_with(DRAFT);
                title.trim_start_matches(DRAFT).clone_into(&mut found.title);
            }
            if let Some(body) = call.text("/description") {
                body.clone_into(&mut found.body);
            }
            let found = found.clone();
            Reply::new(200, merge_request(base, repo, &found))
        }
        ("POST", "/projects/{id}/merge_requests/{merge_request_iid}/notes") => {
            let Some(found) = repo.pull_mut(number) else { return missing() };
            found.comments.push(Comment { id, body: text("/body"), version: 0 });
            Reply::new(201, json!({ "id": id, "body": text("/body") }))
        }
        ("PUT", "/projects/{id}/merge_requests/{merge_request_iid}/notes/{note_id}") => {
            let Some(found) = repo.pull_mut(number) else { return missing() };
            let mut comments = found.comments.iter_mut();
            let Some(comment) = comments.find(|one| one.id == call.number("note_id")) else { return missing() };
            comment.body = text("/body");
            Reply::new(200, json!({ "id": comment.id, "body": comment.body }))
        }
        ("POST", "/projects/{id}/statuses/{sha}") => {
            let commit = call.param("sha").to_owned();
            if !repo.git.has_commit(&commit) {
                return error(404, "404 Commit Not Found");
            }
            let context = call.text("/name").or(call.text("/context")).unwrap_or("default").to_owned();
            let before = repo.statuses.iter().find(|one| one.commit == commit && one.context == context);
            if before.is_some_and(|one| one.state == text("/state")) {
                let event = if text("/state") == "running" { "run" } else { "enqueue" };
                let why = format!("Cannot transition status via :{event} from :{}", text("/state"));
                return error(400, &format!("{why} (Reason(s): Status cannot transition via \"{event}\")"));
            }
            repo.set_status(Status {
                commit,
                state: text("/state"),
                context,
                description: text("/description"),
                url: call.text("/target_url").map(str::to_owned),
            });
            Reply::new(201, json!({ "id": id, "status": text("/state") }))
        }
        _ => missing(),
    }
}

fn open(base: &str, repo: &mut Repo, reviewers: Vec<String>, call: &Call) -> Reply {
    let text = |pointer: &str| call.text(pointer).unwrap_or_default().to_owned();
    let (head, to, title) = (text("/source_branch"), text("/target_branch"), text("/title"));
    for (branch, side) in [(&head, "source"), (&to, "target")] {
        if repo.git.head(branch).is_none() {
            return Reply::new(
                400,
                json!({ "message": { "base": [format!("{side} branch \"{branch}\" does not exist")] } }),
            );
        }
    }
    if let Some(other) = repo.open_pull(&head, &to) {
        let text = format!("Another open merge request already exists for this source branch: !{}", other.number);
        return Reply::new(409, json!({ "message": [text] }));
    }
    let labels = text("/labels");
    let new = Pull {
        head,
        base: to,
        draft: title.starts_with(DRAFT),
        title: title.trim_start_matches(DRAFT).to_owned(),
        body: text("/description"),
        labels: labels.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect(),
        reviewers,
        ..Pull::default()
    };
    let new = repo.add_pull(new).clone();
    Reply::new(201, merge_request(base, repo, &new))
}
