//! A stand-in of GitHub's REST interface. Statuses, sentences and headers are those of GitHub's documentation.

use serde_json::{Value, json};

use crate::fake::{Dialect, Reply};
use crate::spec::Call;
use crate::state::{Comment, Login, Pull, Repo, State, Status};

pub(crate) fn dialect() -> Dialect {
    Dialect {
        root: "/api/v3",
        description: include_str!("../specs/github.json"),
        answer,
        error,
        // A secondary limit: 403, and the other limits look fine.
        limited: |seconds| {
            error(403, "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.")
                .header("Retry-After", seconds.to_string())
                .header("X-RateLimit-Remaining", "4711")
        },
    }
}

fn error(status: u16, message: &str) -> Reply {
    Reply::new(status, json!({ "message": message, "documentation_url": "https://docs.github.com/rest" }))
}

fn invalid(message: &str) -> Reply {
    let errors = json!([{ "resource": "PullRequest", "code": "custom", "message": message }]);
    Reply::new(422, json!({ "message": "Validation Failed", "errors": errors }))
}

fn lacks(login: &Login, permission: &str) -> Reply {
    let reply = error(403, "Resource not accessible by personal access token");
    match login.scopes {
        Some(scopes) => reply.header("X-Accepted-OAuth-Scopes", "repo, public_repo").header("X-OAuth-Scopes", scopes),
        None => reply.header("X-Accepted-GitHub-Permissions", permission),
    }
}

fn pull(base: &str, repo: &Repo, pull: &Pull) -> Value {
    json!({
        "number": pull.number, "html_url": format!("{base}/{}/pull/{}", repo.path, pull.number),
        "title": pull.title, "body": pull.body, "draft": pull.draft,
        "state": if pull.open { "open" } else { "closed" },
        "head": { "ref": pull.head, "repo": { "full_name": repo.path } },
        "base": { "ref": pull.base, "repo": { "full_name": repo.path } },
    })
}

fn answer(state: &mut State, login: &Login, call: &Call) -> Reply {
    let path = format!("{}/{}", call.param("owner"), call.param("repo"));
    let Some(repo) = state.seen(&path, login) else { return error(404, "Not Found") };
    let base = state.base.clone();
    if call.method == "GET" {
        return read(&base, repo, login, call);
    }
    if repo.archived {
        return error(403, "Repository was archived so is read-only.");
    }
    let needed = match call.template.as_str() {
        template if template.contains("/statuses/") => "statuses=write",
        template if template.contains("/issues/") => "issues=write; pull_requests=write",
        _ => "pull_requests=write",
    };
    if !login.may_write {
        return lacks(login, needed);
    }
    let known: Vec<String> = state.people.iter().map(|person| person.login.clone()).collect();
    let id = state.next_id();
    let repo = state.repos.get_mut(&path).expect("it was seen");
    write(&base, repo, login, &known, id, call)
}

fn read(base: &str, repo: &Repo, login: &Login, call: &Call) -> Reply {
    match call.template.as_str() {
        "/repos/{owner}/{repo}" => {
            // An app's installation has permissions of its own and no role: for it, every flag here is false.
            let push = login.may_write && !login.is_installation();
            let body = json!({
                "id": repo.id, "full_name": repo.path, "private": true, "archived": repo.archived,
                "default_branch": repo.default_branch,
                "permissions": { "admin": false, "push": push, "pull": true },
            });
            let reply = Reply::new(200, body);
            match login.scopes {
                Some(scopes) => reply.header("X-OAuth-Scopes", scopes),
                None => reply,
            }
        }
        "/repos/{owner}/{repo}/branches/{branch}" => {
            let branch = call.param("branch");
            match repo.git.head(branch) {
                Some(head) => {
                    let protected = repo.protects(branch);
                    Reply::new(200, json!({ "name": branch, "commit": { "sha": head }, "protected": protected }))
                }
                None => error(404, "Branch not found"),
            }
        }
        "/repos/{owner}/{repo}/rules/branches/{branch}" => {
            let branch = call.param("branch");
            let kinds: &[&str] =
                if repo.protects(branch) { &["creation", "update", "deletion"] } else { &["deletion"] };
            let rules = kinds.iter().map(|kind| json!({ "type": kind, "ruleset_id": 42, "ruleset_source": repo.path }));
            Reply::new(200, rules.collect())
        }
        "/repos/{owner}/{repo}/pulls" => {
            let owner = call.param("owner");
            let head = call.asked("head").and_then(|head| head.strip_prefix(&format!("{owner}:"))).map(str::to_owned);
            let state = call.asked("state").unwrap_or("open");
            let of = |one: &&Pull| {
                head.as_ref().is_none_or(|head| *head == one.head)
                    && call.asked("base").is_none_or(|base| base == one.base)
                    && (state == "all" || one.open == (state == "open"))
            };
            Reply::new(200, repo.pulls.iter().filter(of).map(|one| pull(base, repo, one)).collect())
        }
        "/repos/{owner}/{repo}/pulls/{pull_number}" => match repo.pull(call.number("pull_number")) {
            Some(found) => Reply::new(200, pull(base, repo, found)),
            None => error(404, "Not Found"),
        },
        "/repos/{owner}/{repo}/issues/{issue_number}/comments" => {
            let Some(found) = repo.pull(call.number("issue_number")) else { return error(404, "Not Found") };
            let number = |name: &str, otherwise: usize| call.asked(name).map_or(Ok(otherwise), str::parse);
            let (size, page) = (number("per_page", 30).unwrap_or(30), number("page", 1).unwrap_or(1));
            let comments = found.comments.iter().skip(size * (page - 1)).take(size);
            Reply::new(200, comments.map(|one| json!({ "id": one.id, "body": one.body })).collect())
        }
        _ => error(404, "Not Found"),
    }
}

fn write(base: &str, repo: &mut Repo, login: &Login, known: &[String], id: u64, call: &Call) -> Reply {
    match (call.method.as_str(), call.template.as_str()) {
        ("POST", "/repos/{owner}/{repo}/pulls") => open(base, repo, call),
        ("PATCH", "/repos/{owner}/{repo}/pulls/{pull_number}") => {
            let Some(found) = repo.pull_mut(call.number("pull_number")) else { return error(404, "Not Found") };
            if let Some(title) = call.text("/title") {
                title.clone_into(&mut found.title);
            }
            if let Some(body) = call.text("/body") {
                body.clone_into(&mut found.body);
            }
            let found = found.clone();
            Reply::new(200, pull(base, repo, &found))
        }
        ("POST", "/repos/{owner}/{repo}/pulls/{pull_number}/requested_reviewers") => {
            let (people, teams) = (call.texts("/reviewers"), call.texts("/team_reviewers"));
            if people.iter().any(|name| !known.contains(name) || *name == login.user) {
                return error(
                    422,
                    "Reviews may only be requested from collaborators. One or more of the users or teams you specified is not a collaborator of the repository.",
                );
            }
            let Some(found) = repo.pull_mut(call.number("pull_number")) else { return error(404, "Not Found") };
            for name in people.into_iter().chain(teams.iter().map(|team| format!("team:{team}"))) {
                if !found.reviewers.contains(&name) {
                    found.reviewers.push(name);
                }
            }
            let found = found.clone();
            Reply::new(201, pull(base, repo, &found))
        }
        ("POST", "/repos/{owner}/{repo}/issues/{issue_number}/labels") => {
            let Some(found) = repo.pull_mut(call.number("issue_number")) else { return error(404, "Not Found") };
            for label in call.texts("/labels") {
                if !found.labels.contains(&label) {
                    found.labels.push(label);
                }
            }
            Reply::new(200, found.labels.iter().map(|label| json!({ "name": label })).collect())
        }
        ("POST", "/repos/{owner}/{repo}/issues/{issue_number}/comments") => {
            let Some(found) = repo.pull_mut(call.number("issue_number")) else { return error(404, "Not Found") };
            let body = call.text("/body").unwrap_or_default().to_owned();
            found.comments.push(Comment { id, body: body.clone(), version: 0 });
            Reply::new(201, json!({ "id": id, "body": body }))
        }
        ("PATCH", "/repos/{owner}/{repo}/issues/comments/{comment_id}") => {
            let comments = repo.pulls.iter_mut().flat_map(|pull| &mut pull.comments);
            let mut comments = comments.filter(|comment| comment.id == call.number("comment_id"));
            let Some(comment) = comments.next() else { return error(404, "Not Found") };
            call.text("/body").unwrap_or_default().clone_into(&mut comment.body);
            Reply::new(200, json!({ "id": comment.id, "body": comment.body }))
        }
        ("POST", "/repos/{owner}/{repo}/statuses/{sha}") => {
            let commit = call.param("sha").to_owned();
            if !repo.git.has_commit(&commit) {
                return error(422, &format!("No commit found for SHA: {commit}"));
            }
            let text = |pointer: &str| call.text(pointer).unwrap_or_default().to_owned();
            if text("/description").chars().count() > 140 {
                return invalid("description is too long (maximum is 140 characters)");
            }
            repo.set_status(Status {
                commit,
                state: text("/state"),
                context: text("/context"),
                description: text("/description"),
                url: call.text("/target_url").map(str::to_owned),
            });
            Reply::new(201, json!({ "id": id, "state": text("/state") }))
        }
        _ => error(404, "Not Found"),
    }
}

fn open(base: &str, repo: &mut Repo, call: &Call) -> Reply {
    let text = |pointer: &str| call.text(pointer).unwrap_or_default().to_owned();
    let (head, to) = (text("/head"), text("/base"));
    let draft = call.body.pointer("/draft") == Some(&Value::Bool(true));
    let head = head.split_once(':').map_or(head.clone(), |(_, branch)| branch.to_owned());
    let (Some(tip), Some(target)) = (repo.git.head(&head), repo.git.head(&to)) else {
        let field = if repo.git.head(&to).is_none() { "base" } else { "head" };
        let errors = json!([{ "resource": "PullRequest", "field": field, "code": "invalid" }]);
        return Reply::new(422, json!({ "message": "Validation Failed", "errors": errors }));
    };
    if tip == target {
        return invalid(&format!("No commits between {to} and {head}"));
    }
    if repo.open_pull(&head, &to).is_some() {
        return invalid(&format!("A pull request already exists for {}:{head}.", call.param("owner")));
    }
    if draft && !repo.drafts {
        return error(422, "Draft pull requests are not supported in this repository.");
    }
    let new = Pull { head, base: to, title: text("/title"), body: text("/body"), draft, ..Pull::default() };
    let new = repo.add_pull(new).clone();
    Reply::new(201, pull(base, repo, &new))
}
