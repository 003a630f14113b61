//! From a sentence to a pull request, on every kind of forge: over a real git server, and stand-ins of the forges'
//! interfaces that hold each request against the forge's own description.

use orchestra_test_forges::{ApiFault, Bare, FakeForge, GitServer, Kind, Login, On, Pull};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{House, Setup, bash, count, done, script, until};

/// The server's own first lines of a forge in its configuration.
fn configured(kind: Kind) -> (&'static str, &'static str, &'static str) {
    match kind {
        Kind::Github => ("github", "github_pat_canaryWrites1", "github_pat_canaryReads1"),
        Kind::Gitlab => ("gitlab", "glpat-canaryWrites2", "glpat-canaryReads2"),
        Kind::BitbucketCloud => ("bitbucket-cloud", "ATCTT3xcanaryWrites3", "ATCTT3xcanaryReads3"),
        Kind::BitbucketDc => ("bitbucket-dc", "BBDC-canaryWrites4", "BBDC-canaryReads4"),
    }
}

/// A house with one forge, `hub`, whose repositories are behind git and behind an interface.
struct Hub {
    house: House,
    forge: FakeForge,
    git: GitServer,
    dir: TempDir,
    token: &'static str,
    reads: &'static str,
}

impl Hub {
    async fn open(kind: Kind, turns: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let forge = FakeForge::start(kind, dir.path()).await;
        let (name, token, reads) = configured(kind);
        for repo in ["acme/api", "acme/web"] {
            forge.add_repo(repo);
        }
        forge.add_person("ann");
        for (token, may_write) in [(token, true), (reads, false)] {
            let user = "orchestra-bot".to_owned();
            forge.add_token(token, Login { user, may_write, sees: None, scopes: None });
        }
        let git = match kind {
            Kind::BitbucketDc => GitServer::start_bearer(dir.path(), token).await,
            Kind::Github | Kind::Gitlab | Kind::BitbucketCloud => GitServer::start(dir.path(), token).await,
        };
        git.accept(reads);
        let lines = format!(
            "[forges.hub]\nkind = \"{name}\"\ngit_url = \"{}\"\napi_url = \"{}\"\n",
            git.base(),
            forge.api_url()
        );
        let house = Setup::new(script(turns)).config(&lines).open().await;
        Self { house, forge, git, dir, token, reads }
    }

    async fn submit(&self, token: &str, more: Value) -> String {
        let mut fields = json!({ "repo": "hub:acme/api", "credentials": { "git": { "token": token } } });
        for (name, value) in more.as_object().unwrap() {
            fields[name] = value.clone();
        }
        self.house.submit(fields).await
    }

    async fn supply(&self, id: &str, token: &str) {
        let given = json!({ "git": { "token": token } });
        let (status, problem) = self.house.api.put(&format!("/v1/tasks/{id}/credentials"), &given).await;
        assert_eq!(status, 202, "{problem}");
    }

    fn pulls(&self, repo: &str) -> Vec<Pull> {
        self.forge.with(|state| state.repos[repo].pulls.clone())
    }

    fn lights(&self, repo: &str) -> usize {
        self.forge.with(|state| state.repos[repo].status_changes.len())
    }

    fn head(&self, repo: &str, branch: &str) -> Option<String> {
        Bare::at(self.dir.path(), repo).head(branch)
    }

    async fn end(&self) {
        assert_eq!(self.forge.violations(), Vec::<String>::new(), "what the forge's description does not allow");
        self.house.nothing_left().await;
    }
}

fn work() -> Value {
    json!([bash("echo six > version"), { "text": "The provider is at 6.x now." }])
}

async fn one_pull_request(kind: Kind) {
    let hub = Hub::open(kind, work()).await;
    let wish = json!({ "draft": true, "reviewers": ["ann", "nobody-of-that-name"], "labels": ["dependencies"] });
    let id = hub.submit(hub.token, json!({ "task": "Bump the provider", "pullRequest": wish })).await;
    let task = hub.house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{kind:?} {task:#}");
    let pulls = hub.pulls("acme/api");
    let [pull] = pulls.as_slice() else { panic!("{kind:?}: {pulls:?}") };
    assert_eq!(
        (&*pull.head, &*pull.base, &*pull.title),
        (task["branch"].as_str().unwrap(), "main", "Bump the provider")
    );
    assert!(pull.body.contains(&id) && pull.body.contains("The provider is at 6.x now."), "{}", pull.body);
    let shown = &task["pullRequests"][0];
    assert_eq!((&shown["repo"], &shown["number"]), (&json!("hub:acme/api"), &json!(pull.number)), "{task:#}");
    assert_eq!(task["reason"], format!("opened {}", shown["url"].as_str().unwrap()));
    // The commit that is up for review is the one on the branch, and the light beside it went from one state to another.
    assert_eq!(hub.head("acme/api", &pull.head).as_deref(), task["commits"][0].as_str());
    assert_eq!(hub.lights("acme/api"), 2, "{kind:?}");
    let [comment] = pull.comments.as_slice() else { panic!("{kind:?}: {:?}", pull.comments) };
    assert!(comment.body.contains("Cost | 0."), "what it cost: {}", comment.body);
    // What could not be had is told, and nothing failed for it.
    let events = hub.house.events(&id).await;
    let noted: Vec<_> =
        events.iter().filter(|event| event["type"] == "forge-noted").map(|e| e["data"]["feature"].clone()).collect();
    assert!(noted.contains(&json!("reviewers")), "{kind:?} {noted:?}");
    assert_eq!(noted.contains(&json!("labels")), matches!(kind, Kind::BitbucketCloud | Kind::BitbucketDc), "{noted:?}");
    assert_eq!((count(&events, "pull-request-opened"), count(&events, "reported")), (1, 1));
    hub.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_ends_in_a_pull_request_on_github() {
    one_pull_request(Kind::Github).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_ends_in_a_pull_request_on_gitlab() {
    one_pull_request(Kind::Gitlab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_ends_in_a_pull_request_on_bitbucket_cloud() {
    one_pull_request(Kind::BitbucketCloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_ends_in_a_pull_request_on_bitbucket_data_center() {
    one_pull_request(Kind::BitbucketDc).await;
}

/// A token that may read and not push is told so before a model is paid, and a better one goes on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_could_not_deliver_is_refused_before_a_model_is_paid() {
    let hub = Hub::open(Kind::Github, work()).await;
    let id = hub.submit(hub.reads, json!({})).await;
    hub.house.event(&id, "credentials-required").await;
    let task = hub.house.task(&id).await;
    assert_eq!(
        (&task["status"], &task["failure"]["code"]),
        (&json!("awaiting-credentials"), &json!("git-token-scope"))
    );
    assert_eq!(hub.house.model.requests().await.len(), 0);
    assert!(!task.to_string().contains(hub.reads));
    hub.supply(&id, hub.token).await;
    assert_eq!(hub.house.ended(&id).await["status"], "succeeded");
    // Without any token nothing could be pushed either, however public the repository is.
    let id = hub.house.submit(json!({ "repo": "hub:acme/api", "task": "No token" })).await;
    hub.house.event(&id, "credentials-required").await;
    assert_eq!(hub.house.task(&id).await["failure"]["code"], "git-auth");
    hub.supply(&id, hub.token).await;
    assert_eq!(hub.house.ended(&id).await["status"], "succeeded");
    hub.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_that_the_forge_protects_is_refused_before_a_model_is_paid() {
    let hub = Hub::open(Kind::Gitlab, work()).await;
    hub.forge.with(|state| state.repos.get_mut("acme/api").unwrap().protected.push("release/*".to_owned()));
    let id = hub.submit(hub.token, json!({ "branch": "release/6" })).await;
    let task = hub.house.ended(&id).await;
    assert_eq!((&task["status"], &task["failure"]["code"]), (&json!("failed"), &json!("branch-protected")), "{task:#}");
    assert_eq!(hub.house.model.requests().await.len(), 0);
    hub.end().await;
}

/// The answer to the creation is lost, and the server is killed besides: the next one finds what is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_and_a_kill_open_no_second_pull_request() {
    let mut hub = Hub::open(Kind::Github, work()).await;
    hub.forge.fault(On::Operation("POST", "/pulls"), ApiFault::LoseReply, 1);
    let id = hub.submit(hub.token, json!({})).await;
    hub.house.event(&id, "pushed").await;
    until("there is a pull request", || !hub.pulls("acme/api").is_empty()).await;
    hub.house.kill().await;
    hub.house.restart().await;
    hub.house.event(&id, "credentials-required").await;
    let asked = hub.house.model.requests().await.len();
    hub.supply(&id, hub.token).await;
    let task = hub.house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!((hub.pulls("acme/api").len(), hub.pulls("acme/api")[0].comments.len()), (1, 1));
    assert_eq!(hub.house.model.requests().await.len(), asked, "the agent's work is not paid for again");
    assert_eq!(count(&hub.house.events(&id).await, "pushed"), 1);
    hub.end().await;
}

/// What a token lacks for the pull request alone leaves the branch where it is, and waits for another token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_request_that_a_token_may_not_open_waits_for_one_that_may() {
    let hub = Hub::open(Kind::Github, work()).await;
    let refused = ApiFault::Status(403, "Resource not accessible by personal access token");
    hub.forge.fault(On::Operation("POST", "/pulls"), refused, 1);
    let id = hub.submit(hub.token, json!({})).await;
    hub.house.event(&id, "credentials-required").await;
    let task = hub.house.task(&id).await;
    assert_eq!(task["failure"]["code"], "git-token-scope", "{task:#}");
    let branch = task["branch"].as_str().unwrap().to_owned();
    assert!(hub.head("acme/api", &branch).is_some());
    hub.supply(&id, hub.token).await;
    assert_eq!(hub.house.ended(&id).await["status"], "succeeded");
    let pushes = hub.git.requests().iter().filter(|line| line.starts_with("POST") && line.contains("receive")).count();
    assert_eq!((hub.pulls("acme/api").len(), pushes), (1, 1));
    hub.end().await;
}

/// A forge that will not have the pull request at all fails the task and keeps the work: a retry asks no model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_pull_request_is_opened_by_a_retry_without_a_model() {
    let hub = Hub::open(Kind::Github, work()).await;
    hub.forge.fault(On::Operation("POST", "/pulls"), ApiFault::Status(422, "Validation Failed"), 1);
    let id = hub.submit(hub.token, json!({})).await;
    let task = hub.house.ended(&id).await;
    assert_eq!(
        (&task["status"], &task["failure"]["code"]),
        (&json!("failed"), &json!("pull-request-failed")),
        "{task:#}"
    );
    let asked = hub.house.model.requests().await.len();
    let last = hub.house.events(&id).await.len() as u64 - 1;
    let body = json!({ "credentials": { "git": { "token": hub.token } } });
    assert_eq!(hub.house.api.post(&format!("/v1/tasks/{id}/retry"), &body).await.0, 202);
    let task = hub.house.ended_after(&id, Some(last)).await;
    assert_eq!((&task["status"], &task["attempt"]), (&json!("succeeded"), &json!(2)), "{task:#}");
    assert_eq!((hub.house.model.requests().await.len(), hub.pulls("acme/api").len()), (asked, 1));
    hub.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pull_requests_of_one_task_name_one_another() {
    let turns = json!([bash("echo six > api/version; echo six > web/version"), done()]);
    let hub = Hub::open(Kind::BitbucketCloud, turns).await;
    let mut payload = hub.house.payload();
    payload.as_object_mut().unwrap().remove("repo");
    payload["repos"] = json!(["hub:acme/api", "hub:acme/web"]);
    payload["credentials"] = json!({ "git": { "token": hub.token } });
    let (status, task) = hub.house.api.post("/v1/tasks", &payload).await;
    assert_eq!(status, 202, "{task}");
    let id = task["id"].as_str().unwrap();
    let task = hub.house.ended(id).await;
    assert_eq!((&task["status"], &task["reason"]), (&json!("succeeded"), &json!("opened 2 pull requests")), "{task:#}");
    for (repo, other) in [("acme/api", 1), ("acme/web", 0)] {
        let pulls = hub.pulls(repo);
        let url = task["pullRequests"][other]["url"].as_str().unwrap();
        assert_eq!(pulls.len(), 1);
        assert!(pulls[0].body.contains(url), "{repo} does not name {url}: {}", pulls[0].body);
        assert_eq!(pulls[0].comments.len(), 1);
    }
    assert_eq!(count(&hub.house.events(id).await, "pull-request-linked"), 2);
    hub.end().await;
}

/// A campaign whose forge loses answers, on a server that is killed in its middle: one pull request in each repository, and
/// never two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_opens_one_pull_request_in_each_repository_whatever_happens() {
    const REPOS: usize = 6;
    let mut hub = Hub::open(Kind::Github, work()).await;
    let names: Vec<String> = (0..REPOS).map(|number| format!("acme/r{number}")).collect();
    for name in &names {
        hub.forge.add_repo(name);
    }
    hub.forge.fault_in(On::Operation("POST", "/pulls"), ApiFault::LoseReply, 3);
    let repos: Vec<_> = names.iter().map(|name| format!("hub:{name}")).collect();
    let credentials = json!({ "git": { "token": hub.token } });
    let payload = json!({
        "name": "Six at once", "repos": repos, "task": "Bump the provider", "model": crate::harness::MODEL,
        "team": "platform", "concurrency": 3, "credentials": credentials,
    });
    let (status, campaign) = hub.house.api.post("/v1/campaigns", &payload).await;
    assert_eq!(status, 202, "{campaign}");
    let path = format!("/v1/campaigns/{}", campaign["id"].as_str().unwrap());
    let opened = |hub: &Hub| names.iter().filter(|name| !hub.pulls(name).is_empty()).count();
    until("there are two pull requests", || opened(&hub) >= 2).await;
    hub.house.kill().await;
    hub.house.restart().await;
    let (status, problem) = hub.house.api.put(&format!("{path}/credentials"), &credentials).await;
    assert_eq!(status, 202, "{problem}");
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    let campaign = loop {
        let (_, campaign) = hub.house.api.get(&path).await;
        if campaign["status"] == "finished" {
            break campaign;
        }
        assert!(std::time::Instant::now() < deadline, "{campaign:#}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert_eq!(campaign["progress"]["succeeded"], REPOS, "{campaign:#}");
    for name in &names {
        let pulls = hub.pulls(name);
        assert_eq!((pulls.len(), pulls[0].comments.len()), (1, 1), "{name}: {pulls:?}");
    }
    hub.end().await;
}
