//! A task service without actors: every command goes through the domain's own `decide`, and a script plays the agent.

#[path = "../support/budgets.rs"]
mod budgets;
#[path = "../support/campaigns.rs"]
mod campaigns;
#[allow(dead_code, reason = "the tests of the interface use the rest")]
#[path = "../support/webhooks.rs"]
mod webhooks;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use budgets::Budgets;
use campaigns::Campaigns;
use jiff::Timestamp;
use orchestra_actors::service::ServiceError;
use orchestra_actors::{BudgetService as _, Credentials, Delta, Erased, NewTask, Submitted, TaskService};
use orchestra_events::blob::{BlobRef, Content};
use orchestra_events::key::Scope;
use orchestra_events::ledger::{Budget as ScopeBudget, Cap};
use orchestra_events::projections::{self, ReadModels};
use orchestra_events::repo::RepoRef;
use orchestra_events::store::MAX_PAGE;
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::task::command::{Charge, PullRequestOutcome, Then};
use orchestra_events::task::conversation::{Block, StopReason, Usage};
use orchestra_events::task::event::{
    Budget, CredentialKind, ErasureReason, Harness, PushOutcome, SCHEMA, SandboxEnd, TaskSpec, ToolOutcome,
};
use orchestra_events::task::state::Ending;
use orchestra_events::task::{Command, Task, TaskEvent, decide, evolve};
use orchestra_events::{
    Actor, ActorKind, CallId, CommitId, Direction, EventId, EventStore, Expected, Failure, FailureCode, NanoUsd,
    NewEvent, SandboxId, StreamName, TaskId,
};
use orchestra_web::App;
use orchestra_web::auth::{KeyRing, issue_key};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use uuid::Uuid;
use webhooks::Webhooks;

/// Words that a slow reader may fall behind.
const DELTAS: usize = 256;

/// The diff of every scripted task.
pub const DIFF: &str = include_str!("sample.diff");

/// The service.
pub struct Scripted {
    pub store: Arc<MemoryStore>,
    deltas: Mutex<HashMap<TaskId, broadcast::Sender<Delta>>>,
}

impl Scripted {
    fn speaker(&self, id: TaskId) -> broadcast::Sender<Delta> {
        let mut deltas = self.deltas.lock().expect("not poisoned");
        deltas.entry(id).or_insert_with(|| broadcast::channel(DELTAS).0).clone()
    }

    /// Says a few words as the model would.
    pub fn say(&self, id: TaskId, words: &str) {
        // Nobody listening is fine.
        let _ = self.speaker(id).send(Delta { text: words.to_owned() });
    }

    /// Has a task decide a command and appends what comes of it.
    pub async fn act(&self, id: TaskId, actor: &Actor, command: Command) -> Result<(), ServiceError> {
        let stream = StreamName::task(id);
        let history = self.store.read_stream(&stream, None, Direction::Forwards, MAX_PAGE).await?;
        let mut task: Option<Task> = None;
        for envelope in &history {
            if let Some(event) = TaskEvent::decode(envelope).expect("own events") {
                task = evolve(task, &event);
            }
        }
        let events =
            decide(task.as_ref(), command).map_err(|refusal| ServiceError::Refused { refusal, status: None })?;
        if events.is_empty() {
            return Ok(());
        }
        let expected = history.last().map_or(Expected::NoStream, |last| Expected::Exactly(last.revision));
        let mut stamped = Vec::new();
        for event in events {
            stamped.push(NewEvent {
                id: EventId(Uuid::now_v7()),
                kind: event.kind().into(),
                schema: SCHEMA,
                time: Timestamp::now(),
                actor: actor.clone(),
                correlation: None,
                causation: None,
                data: event.data().expect("events are JSON"),
                private: None,
            });
        }
        self.store.append(&stream, expected, stamped).await?;
        Ok(())
    }

    /// The same, on behalf of Orchestra.
    pub async fn step(&self, id: TaskId, command: Command) {
        self.act(id, &Actor::system("task"), command).await.expect("the script fits the task");
    }
}

#[async_trait]
impl TaskService for Scripted {
    async fn submit(&self, _: NewTask, _: Actor) -> Result<Submitted, ServiceError> {
        Err(ServiceError::Internal("the script takes no tasks".to_owned()))
    }

    async fn cancel(&self, id: TaskId, reason: Option<String>, actor: Actor) -> Result<(), ServiceError> {
        self.act(id, &actor, Command::Cancel { reason }).await
    }

    async fn retry(&self, id: TaskId, _: Credentials, actor: Actor) -> Result<(), ServiceError> {
        self.act(id, &actor, Command::Retry).await
    }

    async fn steer(&self, id: TaskId, message: String, actor: Actor) -> Result<(), ServiceError> {
        self.act(id, &actor, Command::Steer { message }).await
    }

    async fn supply_credentials(&self, id: TaskId, given: Credentials, actor: Actor) -> Result<(), ServiceError> {
        let kinds = [(given.model.is_some(), CredentialKind::Model), (given.git.is_some(), CredentialKind::Git)];
        let supplied = kinds.into_iter().filter_map(|(given, kind)| given.then_some(kind)).collect();
        self.act(id, &actor, Command::SupplyCredentials { supplied, now: Timestamp::now() }).await
    }

    async fn erase_content(&self, id: TaskId, who: Actor) -> Result<Erased, ServiceError> {
        let command = Command::EraseContent { reason: ErasureReason::Request, events: 1 };
        self.act(id, &who, command).await?;
        self.store.erase(&[StreamName::task(id)]).await?;
        Ok(Erased::Done)
    }

    async fn diff(&self, _: TaskId) -> Result<Vec<u8>, ServiceError> {
        Ok(DIFF.as_bytes().to_vec())
    }

    fn deltas(&self, id: TaskId) -> broadcast::Receiver<Delta> {
        self.speaker(id).subscribe()
    }
}

/// Everything a dashboard needs, in memory but for the read models.
pub struct World {
    pub service: Arc<Scripted>,
    pub campaigns: Arc<Campaigns>,
    pub app: actix_web::web::Data<App>,
    pub keys: Arc<KeyRing>,
    pub admin: SecretString,
}

impl World {
    pub async fn new(folder: &Path) -> Self {
        Self::with_dashboard(folder, orchestra_web::pages::Dashboard::default()).await
    }

    pub async fn with_dashboard(folder: &Path, dashboard: orchestra_web::pages::Dashboard) -> Self {
        let store = Arc::new(MemoryStore::new());
        let service = Arc::new(Scripted { store: store.clone(), deltas: Mutex::default() });
        let read = Arc::new(ReadModels::open(&folder.join("read.sqlite")).expect("read models"));
        let actor = Actor::system("test");
        let (_, admin) =
            issue_key(&*store, "platform team", None, "dev", vec![Scope::Admin], &actor).await.expect("a key");
        let keys = Arc::new(KeyRing::load(&*store).await.expect("keys"));
        tokio::spawn(projections::project(store.clone(), read.clone(), std::future::pending()));
        tokio::spawn(keys.clone().follow(store.clone(), std::future::pending()));
        let budgets = Arc::new(Budgets::default());
        let cap =
            |dollars: i64| Cap { max_nano_usd: Some(NanoUsd::from_nanos(dollars * 1_000_000_000)), max_tokens: None };
        let team = ScopeBudget { per_day: cap(50), per_month: cap(500), per_task: cap(2), ..ScopeBudget::default() };
        let scope = "team:platform".parse().expect("a scope");
        budgets.set_budget(&scope, team, actor.clone()).await.expect("a budget");
        let zone = Some("Europe/Zurich".to_owned());
        let infra = ScopeBudget { per_day: cap(10), time_zone: zone, ..ScopeBudget::default() };
        let scope = "project:platform/infra".parse().expect("a scope");
        budgets.set_budget(&scope, infra, actor.clone()).await.expect("a budget");
        let campaigns = Arc::new(Campaigns::new(store.clone()));
        let hooks = Arc::new(Webhooks::new(store.clone()));
        let app = App::new(service.clone(), campaigns.clone(), budgets, store, read, keys.clone())
            .with_dashboard(dashboard)
            .with_webhooks(hooks);
        Self { service, campaigns, app: actix_web::web::Data::new(app), keys, admin }
    }

    /// A key of a team, known to the ring when this returns.
    pub async fn key(&self, team: &str, scopes: Vec<Scope>) -> SecretString {
        let store = &*self.service.store;
        let issued = issue_key(store, team, Some(team), "dev", scopes, &Actor::system("test")).await;
        let head = store.head().await.expect("a head");
        assert!(self.keys.wait_for(head, Duration::from_secs(5)).await, "the key ring keeps up");
        issued.expect("a key").1
    }

    /// Waits until the read models know everything.
    pub async fn caught_up(&self) {
        self.app.caught_up().await.expect("the read models keep up");
    }

    /// Asks for a task.
    pub async fn create(&self, task: &str, repo: &str, team: &str, model: &str, cents: i64) -> TaskId {
        let id = TaskId::from_uuid(Uuid::now_v7());
        let words: String = task
            .to_lowercase()
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
            .take(28)
            .collect();
        let spec = TaskSpec {
            repo: RepoRef::parse(repo, "github").expect("a repository"),
            task: task.to_owned(),
            model: model.to_owned(),
            harness: Harness::Builtin,
            command: Vec::new(),
            retry: None,
            team: team.to_owned(),
            project: Some("infra".to_owned()),
            environment: None,
            task_type: Some("dependency-upgrade".to_owned()),
            customer: None,
            budget: Budget { max_nano_usd: Some(usd(cents)), max_tokens: None },
            base: None,
            branch: format!("orchestra/{}", words.trim_matches('-')),
            further: Vec::new(),
            pull_request: None,
            campaign: None,
            image: "default".to_owned(),
            egress: Vec::new(),
            timeout_seconds: 1_800,
            metadata: serde_json::Map::new(),
            request_hash: None,
            caller_brings_model_key: false,
            caller_brings_git_token: true,
        };
        let asked =
            Actor { kind: ActorKind::ApiKey, id: "key_sample".to_owned(), team: Some(team.to_owned()), origin: None };
        self.service.act(id, &asked, Command::Create(Box::new(spec))).await.expect("a new task");
        id
    }

    /// Takes a task up to where its agent begins.
    pub async fn begin(&self, id: TaskId) -> SandboxId {
        let service = &self.service;
        let sandbox = SandboxId::from_uuid(Uuid::now_v7());
        service.step(id, Command::Claim { node: "node-1".to_owned() }).await;
        service.step(id, Command::Begin { now: Timestamp::now(), delivers: true }).await;
        service
            .step(
                id,
                Command::RecordClone {
                    repo: 0,
                    base: "main".to_owned(),
                    commit: commit("4be1a09c"),
                    sandbox,
                    setup: false,
                },
            )
            .await;
        service.step(id, Command::RecordSandbox { sandbox, start_ms: 84, image_digest: None }).await;
        sandbox
    }

    /// One model call: the words are said piece by piece, then stored with the tool that the model wants.
    pub async fn reply(&self, id: TaskId, words: &str, tool: Option<(&str, &str, Value)>, micros: i64, pace: Duration) {
        let service = &self.service;
        let call = CallId::from_uuid(Uuid::now_v7());
        let reserve = Command::ReserveModel {
            call,
            heard: 0,
            reserved: usd(12),
            reserved_tokens: 30_000,
            max_output_tokens: 4_096,
        };
        service.step(id, reserve).await;
        if !pace.is_zero() {
            for piece in words.split_inclusive(' ') {
                service.say(id, piece);
                tokio::time::sleep(pace / 6).await;
            }
        }
        let mut content = vec![Block::Text { text: Content::Inline(words.to_owned()) }];
        let stop_reason = if tool.is_some() { StopReason::ToolUse } else { StopReason::EndTurn };
        if let Some((tool_call, name, input)) = tool {
            content.push(Block::ToolUse { id: tool_call.to_owned(), name: name.to_owned(), input, malformed: None });
        }
        let usage = Usage { input_tokens: 1_850, output_tokens: 240, cache_read_tokens: 9_400, ..Usage::default() };
        let cost = NanoUsd::from_nanos(micros * 1_000);
        let charge = Charge { usage, cost, confirmed: true, price: "sample".to_owned() };
        service.step(id, Command::RecordReply { call, charge, content, stop_reason }).await;
    }

    /// The tool runs.
    pub async fn tool(&self, id: TaskId, tool_call: &str, outcome: ToolOutcome, output: &str, took: Duration) {
        let service = &self.service;
        service.step(id, Command::CallTool { tool_call: tool_call.to_owned() }).await;
        tokio::time::sleep(took).await;
        let record = Command::RecordTool {
            tool_call: tool_call.to_owned(),
            outcome,
            output: Content::Inline(output.to_owned()),
            duration_ms: 1_240,
            omitted_bytes: 0,
        };
        service.step(id, record).await;
    }

    /// Commit, push, done.
    pub async fn deliver(&self, id: TaskId, sandbox: SandboxId) {
        let service = &self.service;
        let record = Command::RecordCommit {
            repo: 0,
            commits: vec![(commit("9f3c2d1e"), "Bump the AWS provider to 6.x".to_owned())],
            tree: commit("0a1b2c3d"),
            message: "Bump the AWS provider to 6.x".to_owned(),
            stat: (3, 4, 4),
            diff: BlobRef { sha256: "5".repeat(64), bytes: DIFF.len() as u64 },
        };
        service.step(id, record).await;
        service.step(id, Command::RecordSandboxStopped { sandbox, reason: SandboxEnd::Finished }).await;
        service.step(id, Command::RecordPush { repo: 0, outcome: PushOutcome::Pushed }).await;
        let opened = PullRequestOutcome::Omitted { reason: "The forge has none.".to_owned() };
        service.step(id, Command::RecordPullRequest { repo: 0, opened, notes: Vec::new() }).await;
        service.step(id, Command::Finish { ending: Ending::Succeeded, refund: NanoUsd::ZERO }).await;
    }

    /// The whole upgrade, at a pace.
    pub async fn play(&self, id: TaskId, pace: Duration) {
        let sandbox = self.begin(id).await;
        self.work(id, pace).await;
        self.deliver(id, sandbox).await;
    }

    /// What the agent does.
    pub async fn work(&self, id: TaskId, pace: Duration) {
        let look = "I'll start by finding where the provider is pinned, and what uses it.\n\n- `versions.tf` holds the constraint\n- the modules hold the resources that changed in 6.x";
        self.reply(id, look, Some(("t1", "grep", json!({"pattern": "hashicorp/aws", "path": "."}))), 14_200, pace)
            .await;
        self.tool(id, "t1", ToolOutcome::Ok, "infra/versions.tf:6:      source  = \"hashicorp/aws\"\ninfra/modules/network/versions.tf:4:      source  = \"hashicorp/aws\"\n", pace).await;
        let edit = "Two places. I'll raise both constraints to `~> 6.0` and look at what no longer validates.";
        let input = json!({"path": "infra/versions.tf", "old": "version = \"~> 5.0\"", "new": "version = \"~> 6.0\""});
        self.reply(id, edit, Some(("t2", "edit", input)), 18_900, pace).await;
        self.tool(id, "t2", ToolOutcome::Ok, "1 replacement in infra/versions.tf\n", pace).await;
        let check = "Now `terraform validate` tells me which calls broke.";
        let input = json!({"command": "terraform init -upgrade -input=false && terraform validate -no-color"});
        self.reply(id, check, Some(("t3", "bash", input)), 21_300, pace).await;
        self.tool(id, "t3", ToolOutcome::Error, "Error: Unsupported argument\n\n  on modules/network/main.tf line 41, in resource \"aws_eip\" \"nat\":\n  41:   vpc = true\n\nAn argument named \"vpc\" is not expected here.\nexit status 1\n", pace).await;
        let mend = "`aws_eip` dropped **vpc** in 6.x; `domain = \"vpc\"` replaces it:\n\n```hcl\nresource \"aws_eip\" \"nat\" {\n  domain = \"vpc\"\n}\n```";
        let input = json!({"path": "infra/modules/network/main.tf", "old": "vpc = true", "new": "domain = \"vpc\""});
        self.reply(id, mend, Some(("t4", "edit", input)), 24_800, pace).await;
        self.tool(id, "t4", ToolOutcome::Ok, "1 replacement in infra/modules/network/main.tf\n", pace).await;
        self.reply(
            id,
            "Once more, to be sure.",
            Some(("t5", "bash", json!({"command": "terraform validate -no-color"}))),
            26_100,
            pace,
        )
        .await;
        self.tool(id, "t5", ToolOutcome::Ok, "Success! The configuration is valid.\n", pace).await;
        let done = "The provider is at 6.x in both modules, `aws_eip` uses `domain`, and the configuration validates.";
        self.reply(id, done, None, 27_400, pace).await;
    }

    /// The work fails for good.
    pub async fn fail(&self, id: TaskId, sandbox: Option<SandboxId>, failure: Failure) {
        let service = &self.service;
        service.step(id, Command::RecordFailure { failure: failure.clone(), then: Then::GiveUp }).await;
        if let Some(sandbox) = sandbox {
            service.step(id, Command::RecordSandboxStopped { sandbox, reason: SandboxEnd::Failed }).await;
        }
        service.step(id, Command::Finish { ending: Ending::Failed(failure), refund: NanoUsd::ZERO }).await;
    }

    /// A list as a team has it: something in every state. The last one is at work and waits to be played on.
    pub async fn seed(&self) -> (TaskId, SandboxId) {
        let quick = Duration::ZERO;
        let done = self
            .create(
                "Pin GitHub Actions to commit hashes in every workflow",
                "acme/api",
                "platform",
                "claude-sonnet-4-6",
                200,
            )
            .await;
        self.play(done, quick).await;
        let failed = self
            .create("Migrate the billing service from moment to date-fns", "acme/billing", "payments", "gpt-5.2", 50)
            .await;
        let sandbox = self.begin(failed).await;
        self.reply(failed, "Looking for uses of `moment`.", None, 402_000, quick).await;
        let failure =
            Failure::new(FailureCode::NothingToPush, "The agent finished, and no file of acme/billing had changed.");
        self.fail(failed, Some(sandbox), failure).await;
        let stuck = self
            .create(
                "Rotate the deprecated OpenSSL calls in the edge proxy",
                "bitbucket:acme/edge-proxy",
                "platform",
                "claude-sonnet-4-6",
                500,
            )
            .await;
        self.begin(stuck).await;
        let refused =
            Failure::new(FailureCode::GitAuth, "The forge refused the git token for bitbucket:acme/edge-proxy (401).");
        let ask = Command::RecordFailure { failure: refused, then: Then::AskFor(vec![CredentialKind::Git]) };
        self.service.step(stuck, ask).await;
        let retrying =
            self.create("Add request ids to the access log", "acme/gateway", "edge", "claude-haiku-4-5", 100).await;
        self.begin(retrying).await;
        let overloaded = Failure::new(FailureCode::ModelOverloaded, "Anthropic answered 529 for claude-haiku-4-5.");
        let until = Timestamp::now() + jiff::SignedDuration::from_secs(3_600);
        self.service
            .step(
                retrying,
                Command::RecordFailure { failure: overloaded, then: Then::Retry { until, wait_ms: 3_600_000 } },
            )
            .await;
        let cancelled =
            self.create("Try the new linter on one package", "acme/web", "frontend", "claude-haiku-4-5", 25).await;
        self.service.step(cancelled, Command::Cancel { reason: Some("Wrong repository.".to_owned()) }).await;
        let near = self
            .create(
                "Raise test coverage of the tax calculator to 90 %",
                "acme/billing",
                "payments",
                "claude-sonnet-4-6",
                100,
            )
            .await;
        self.begin(near).await;
        self.reply(
            near,
            "Writing tests for the rounding rules first.",
            Some(("n1", "bash", json!({"command": "cargo llvm-cov --summary-only"}))),
            881_000,
            quick,
        )
        .await;
        self.service.step(near, Command::CallTool { tool_call: "n1".to_owned() }).await;
        self.create("Replace the home-grown retry loop with backon", "acme/ingest", "data", "gpt-5.2", 150).await;
        let live = self
            .create(
                "Bump terraform-aws-provider from 5.x to 6.x; update breaking calls",
                "acme/infra",
                "platform",
                "claude-sonnet-4-6",
                200,
            )
            .await;
        let sandbox = self.begin(live).await;
        self.caught_up().await;
        (live, sandbox)
    }
}

fn usd(cents: i64) -> NanoUsd {
    NanoUsd::from_nanos(cents * 10_000_000)
}

fn commit(eight: &str) -> CommitId {
    CommitId::try_from(eight.repeat(5)).expect("forty hexadecimal digits")
}
