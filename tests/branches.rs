//! Which branches a task may have is the operator's to say, and is said before anything is paid for.

use serde_json::json;

use crate::harness::{Setup, bash, done, script};

const RULES: &str = r#"
[branches]
bases = ["main"]
template = "bots/{team}/{slug}-{shortid}"
names = ["bots/**"]
[teams.free.branches]
bases = []
names = []
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_keeps_to_the_branches_that_its_team_may_have() {
    let house = Setup::new(script(json!([bash("echo one >> log.txt"), done()]))).config(RULES).open().await;
    for (base, branch, pointer, words) in [
        ("main", "mine", "/branch", "bots/**"),
        ("develop", "bots/x", "/base", "allowed are main"),
        ("main", "main", "/branch", "where the work starts from"),
    ] {
        let mut payload = house.payload();
        (payload["base"], payload["branch"]) = (json!(base), json!(branch));
        let (status, problem) = house.api.post("/v1/tasks", &payload).await;
        assert_eq!((status, problem["code"].as_str()), (422, Some("invalid-request")), "{problem}");
        let errors = problem["errors"].as_array().unwrap();
        let error = errors.iter().find(|error| error["pointer"] == pointer).unwrap_or_else(|| panic!("{problem}"));
        assert!(error["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    let id = house.submit(json!({ "task": "Write one line" })).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let branch = task["branch"].as_str().unwrap();
    assert!(branch.starts_with("bots/") && branch.contains("/write-one-line-"), "{branch}");
    assert_eq!(house.remotes.file(branch, "log.txt"), "one");

    // The default branch is found out by the clone, before a model is asked; and another team has rules of its own.
    let before = house.model.requests().await.len();
    let id = house.submit(json!({ "team": "free", "branch": "main" })).await;
    let task = house.ended(&id).await;
    assert_eq!((&task["status"], &task["failure"]["code"]), (&json!("failed"), &json!("branch-policy")), "{task:#}");
    assert!(task["failure"]["hint"].as_str().unwrap().contains("branches.allow_default"), "{task:#}");
    assert_eq!(house.model.requests().await.len(), before);
}
