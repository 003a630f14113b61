//! A task's life: from the payload of the contract to a pushed branch, and every way it may end otherwise.

use serde_json::json;

use crate::harness::{Setup, bash, done, kinds, script};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_ends_with_its_work_on_a_branch() {
    let turns = json!([
        bash("ls"),
        { "tools": [{ "name": "edit", "input": { "path": "main.tf", "old_string": "~> 5.0", "new_string": "~> 6.0" } }] },
        done(),
    ]);
    let house = Setup::new(script(turns)).open().await;
    // The contract's own example, as it stands.
    let payload = json!({
        "repo": "acme/api",
        "task": "Bump terraform-aws-provider from 5.x to 6.x; update breaking calls",
        "model": "claude-sonnet-4-6",
        "team": "platform",
        "budget": { "maxUsd": 2.00 },
    });
    let (status, task) = house.api.post("/v1/tasks", &payload).await;
    assert_eq!((status, &task["status"]), (202, &json!("queued")), "{task}");
    let id = task["id"].as_str().unwrap();
    let task = house.ended(id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let branch = task["branch"].as_str().unwrap();
    assert_eq!(house.remotes.branches(), [branch]);
    assert!(house.remotes.file(branch, "main.tf").contains("~> 6.0"));
    assert_eq!(house.remotes.files(branch), ["README.md", "main.tf", "src/app.py"]);
    assert_eq!((house.remotes.commits(branch), house.remotes.pushes(branch)), (1, 1));
    let events = house.events(id).await;
    assert_eq!(kinds(&events).last(), Some(&"succeeded"));
    house.nothing_left().await;
}
