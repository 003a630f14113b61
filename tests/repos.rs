//! One task on several repositories: a checkout each in one workspace, a branch each, and nothing lost on the way.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::{GIT_TOKEN, House, Remotes, Setup, bash, count, done, git, kinds, script};

/// Bare repositories beside the first one.
fn more(remotes: &Remotes, names: &[&str]) {
    for name in names {
        let bare = remotes.local_root().join(format!("{name}.git"));
        git(remotes.local_root(), &["clone", "--quiet", "--bare", "acme/api.git", bare.to_str().unwrap()]);
        git(&bare, &["config", "http.receivepack", "true"]);
        git(&bare, &["config", "core.logAllRefUpdates", "always"]);
    }
}

fn of(remotes: &Remotes, name: &str, arguments: &[&str]) -> String {
    git(&remotes.local_root().join(format!("{name}.git")), arguments)
}

async fn submit(house: &House, repos: Value) -> String {
    let mut payload = house.payload();
    payload.as_object_mut().unwrap().remove("repo");
    payload["repos"] = repos;
    payload["credentials"] = json!({ "git": { "token": GIT_TOKEN } });
    let (status, task) = house.api.post("/v1/tasks", &payload).await;
    assert_eq!(status, 202, "{task}");
    task["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_repository_has_a_folder_and_a_branch_of_its_own() {
    let turns = json!([bash("ls; echo six > api/version; echo six > lib/version; cat web/README.md"), done()]);
    let house = Setup::new(script(turns)).open().await;
    more(&house.remotes, &["acme/web", "acme/lib"]);
    let lib = json!({ "repo": "plain:acme/lib", "branch": "lib/six" });
    let id = submit(&house, json!(["acme/api", "acme/web", lib])).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let events = house.events(&id).await;
    let told: Vec<_> = events.iter().filter(|event| event["type"] == "cloned").map(|e| &e["data"]["repo"]).collect();
    assert_eq!(told, ["local:acme/api", "local:acme/web", "plain:acme/lib"]);
    assert_eq!((count(&events, "committed"), count(&events, "unchanged"), count(&events, "pushed")), (2, 1, 2));
    // Everything is pushed before anything is asked of a forge.
    let late = kinds(&events).into_iter().skip_while(|kind| *kind != "sandbox-stopped").collect::<Vec<_>>();
    assert_eq!(late[1..5], ["pushed", "pushed", "pull-request-omitted", "pull-request-omitted"]);

    let branch = task["branch"].as_str().unwrap();
    assert_eq!(house.remotes.file(branch, "version"), "six");
    assert_eq!(of(&house.remotes, "acme/lib", &["show", "lib/six:version"]), "six");
    assert_eq!(of(&house.remotes, "acme/web", &["for-each-ref", "--format=%(refname:short)"]), "main");
    assert_eq!(task["commits"].as_array().unwrap().len(), 2);
    let diff = house.api.text(&format!("/v1/tasks/{id}/diff")).await;
    assert!(
        diff.contains("# local:acme/api\n") && diff.contains("# plain:acme/lib\n") && !diff.contains("web"),
        "{diff}"
    );
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_cannot_be_had_ends_the_task_before_a_model_is_paid() {
    let house = Setup::new(script(json!([bash("echo a > api/a"), done()]))).open().await;
    let id = submit(&house, json!(["acme/api", "acme/none"])).await;
    let task = house.ended(&id).await;
    assert_eq!((&task["status"], &task["failure"]["code"]), (&json!("failed"), &json!("repo-not-found")), "{task:#}");
    assert_eq!(house.model.requests().await.len(), 0);
    house.nothing_left().await;
    for (repos, pointer) in [
        (json!(["acme/api", "acme/api.git"]), "/repos/1"),
        (json!(["acme/api", { "repo": "nowhere:a/b" }]), "/repos/1/repo"),
    ] {
        let mut payload = house.payload();
        payload.as_object_mut().unwrap().remove("repo");
        payload["repos"] = repos;
        let (status, problem) = house.api.post("/v1/tasks", &payload).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{problem}");
    }
}

/// A push that the forge refuses for good ends the task, and not the work: a retry pushes the same commits, and asks no
/// model again. Also when the server was killed in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_was_refused_is_delivered_by_a_retry_without_a_model() {
    let turns = json!([bash("echo six > api/version; echo six > lib/version"), done()]);
    let mut house = Setup::new(script(turns)).open().await;
    more(&house.remotes, &["acme/lib"]);
    let hook = house.remotes.local_root().join("acme/lib.git/hooks/pre-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\necho 'error: GH006: Protected branch update failed.' >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();

    let id = submit(&house, json!(["acme/api", "plain:acme/lib"])).await;
    let task = house.ended(&id).await;
    assert_eq!((&task["status"], &task["failure"]["code"]), (&json!("failed"), &json!("branch-protected")), "{task:#}");
    let commits = task["commits"].clone();
    assert_eq!(commits.as_array().unwrap().len(), 2);
    let asked = house.model.requests().await.len();
    house.kill().await;
    house.restart().await;

    std::fs::remove_file(&hook).unwrap();
    let last = house.events(&id).await.len() as u64 - 1;
    let body = json!({ "credentials": { "git": { "token": GIT_TOKEN } } });
    let (status, problem) = house.api.post(&format!("/v1/tasks/{id}/retry"), &body).await;
    assert_eq!(status, 202, "{problem}");
    let task = house.ended_after(&id, Some(last)).await;
    assert_eq!((&task["status"], &task["attempt"]), (&json!("succeeded"), &json!(2)), "{task:#}");
    assert_eq!(task["commits"], commits, "the very commits that were refused");
    assert_eq!(house.model.requests().await.len(), asked, "no model is paid again");
    let branch = task["branch"].as_str().unwrap();
    assert_eq!(of(&house.remotes, "acme/lib", &["show", &format!("{branch}:version")]), "six");
    assert_eq!(house.remotes.pushes(branch), 1, "what had landed is not pushed again");
    house.nothing_left().await;
}
