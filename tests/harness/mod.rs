//! A whole house for one test: a server process with its own data, a model process that follows a script and outlives
//! the server, repositories, and a count of whatever is left on the machine.

mod api;
#[path = "../../web/tests/support/conformance.rs"]
pub mod conformance;
mod model;
mod process;
mod remotes;
mod traces;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub use api::{Api, Frame};
pub use model::{Model, cost_of, sha256};
pub use process::{PROGRAM, Process, program};
pub use remotes::{REPO, Remotes, git};
pub use traces::{destroy_sandboxes, orphan, processes_of, traces};

/// The longest wait for anything: two cores may be shared with a build.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The model that tests name.
pub const MODEL: &str = "claude-sonnet-4-6";
/// The sentence of a task when a test does not care.
pub const TASK: &str = "Do what the script says.";
/// The token that the git server over HTTP wants.
pub const GIT_TOKEN: &str = "git-token-of-the-tests";

/// Where images are: `ORCHESTRA_IMAGES`, or the user's cache.
pub fn images() -> PathBuf {
    let folder = std::env::var_os("ORCHESTRA_IMAGES").map(PathBuf::from).unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache
            .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"))
            .join("orchestra/images")
    });
    assert!(
        folder.join("default").exists(),
        "there is no sandbox image named \"default\" in {}; make it with `orchestra image build`, or set \
         ORCHESTRA_IMAGES to the folder that has it",
        folder.display()
    );
    folder
}

/// Waits until this is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a house is like.
pub struct Setup {
    script: Value,
    key_required: bool,
    retry: &'static str,
    config: String,
    environment: Vec<(String, String)>,
}

impl Setup {
    /// A model that says this; a local forge; a model that needs no key.
    pub fn new(script: Value) -> Self {
        images();
        let retry = "[retry]\nfirst_wait = \"20ms\"\n";
        Self { script, key_required: false, retry, config: String::new(), environment: Vec::new() }
    }

    /// The caller has to bring a model key.
    pub fn key_required(mut self) -> Self {
        self.key_required = true;
        self
    }

    /// The test has a `[retry]` of its own.
    pub fn without_retry(mut self) -> Self {
        self.retry = "";
        self
    }

    /// More lines of configuration: whole tables.
    pub fn config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    /// A variable of the first server process.
    pub fn environment(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Starts everything.
    pub async fn open(self) -> House {
        let dir = tempfile::tempdir().unwrap();
        let remotes = Remotes::seed(&dir.path().join("forge"), GIT_TOKEN).await;
        let model = Model::start(dir.path(), &self.script).await;
        let config = dir.path().join("orchestra.toml");
        let text = format!(
            "default_forge = \"local\"\nlog = \"info,orchestra=debug\"\n\
             [models.anthropic]\nbase_url = \"{model}\"\nkey_required = {key}\napi_key_env = \"NO_OPERATOR_KEY\"\n\
             [models.compatible]\ndialect = \"openai-chat\"\nbase_url = \"{model}/v1\"\nkey_required = {key}\n\
             prices = [{{ model = \"*\", input = 3000000, output = 15000000 }}]\n\
             [forges.local]\nkind = \"local\"\nroot = \"{local}\"\n\
             [forges.plain]\nkind = \"plain\"\ngit_url = \"{http}\"\n\
             [sandbox]\nimages_dir = \"{images}\"\nmemory = \"256MiB\"\ncpus = 1.0\npids = 128\ndisk = \"256MiB\"\n\
             timeout = \"10m\"\n\
             {retry}{more}",
            model = model.url,
            key = self.key_required,
            local = remotes.local_root().display(),
            http = remotes.http.base(),
            images = images().display(),
            retry = self.retry,
            more = self.config,
        );
        std::fs::write(&config, text).unwrap();
        let server = Process::start(dir.path(), &config, None, &self.environment).await;
        let key = server.admin_key.clone().expect("the first start prints the admin key");
        let api = Api::new(&server.url, &key);
        House { server: Some(server), api, model, remotes, config, dir }
    }
}

/// Everything a test lives in. Dropped, it ends what it started and removes what is left.
pub struct House {
    /// The server, when it runs.
    pub server: Option<Process>,
    /// Its REST interface.
    pub api: Api,
    /// The model.
    pub model: Model,
    /// The repositories.
    pub remotes: Remotes,
    config: PathBuf,
    dir: TempDir,
}

impl House {
    /// The server's data folder.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The folder of everything: the server's log, the model's log, the data.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `kill -9`.
    pub async fn kill(&mut self) {
        self.server.take().expect("the server runs").kill().await;
    }

    /// Starts the server again on the same data and port, without the variables of the first start.
    pub async fn restart(&mut self) {
        self.restart_with(&[]).await;
    }

    /// The same, with these variables.
    pub async fn restart_with(&mut self, environment: &[(String, String)]) {
        assert!(self.server.is_none(), "kill it first");
        let address = self.api.base.strip_prefix("http://").unwrap().to_owned();
        self.server = Some(Process::start(self.dir.path(), &self.config, Some(&address), environment).await);
    }

    /// A task's payload when a test does not care.
    pub fn payload(&self) -> Value {
        json!({ "repo": REPO, "task": TASK, "model": MODEL, "team": "platform", "budget": { "maxUsd": 2.00 } })
    }

    /// Submits the usual payload with these fields in it; answers the task's id.
    pub async fn submit(&self, more: Value) -> String {
        let mut payload = self.payload();
        for (name, value) in more.as_object().unwrap() {
            payload[name] = value.clone();
        }
        let (status, task) = self.api.post("/v1/tasks", &payload).await;
        assert_eq!(status, 202, "{task}");
        task["id"].as_str().unwrap().to_owned()
    }

    /// Waits for the first event after this revision (`None`: from the beginning) that is so.
    pub async fn event_after(&self, id: &str, after: Option<u64>, is_it: impl Fn(&Frame) -> bool) -> Frame {
        let mut frames = self.api.follow(&format!("/v1/tasks/{id}/events"), after).await;
        loop {
            match frames.next().await {
                Some(frame) if frame.id.is_some() && is_it(&frame) => return frame,
                Some(_) => {}
                None => panic!("the stream of {id} ended before the event came"),
            }
        }
    }

    /// Waits for the first event of this type.
    pub async fn event(&self, id: &str, kind: &str) -> Frame {
        self.event_after(id, None, |frame| frame.kind == kind).await
    }

    /// Waits until the task is over, and gives it.
    pub async fn ended(&self, id: &str) -> Value {
        self.ended_after(id, None).await
    }

    /// The same, for an end after this revision.
    pub async fn ended_after(&self, id: &str, after: Option<u64>) -> Value {
        let last = |frame: &Frame| matches!(&*frame.kind, "succeeded" | "failed" | "cancelled");
        self.event_after(id, after, last).await;
        self.task(id).await
    }

    /// The task as it stands.
    pub async fn task(&self, id: &str) -> Value {
        let (status, task) = self.api.get(&format!("/v1/tasks/{id}")).await;
        assert_eq!(status, 200, "{task}");
        task
    }

    /// Every event of the task so far, from JSON pages.
    pub async fn events(&self, id: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let mut cursor = String::new();
        loop {
            let (status, page) = self.api.get(&format!("/v1/tasks/{id}/events?limit=100{cursor}")).await;
            assert_eq!(status, 200, "{page}");
            events.extend(page["data"].as_array().unwrap().iter().cloned());
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&after={next}"),
                None => return events,
            }
        }
    }

    /// Every event so far of a stream that has no page of its own, from the whole log.
    pub async fn log_of(&self, stream: &str) -> Vec<Value> {
        // The log has no end: what is there by now is up to its head.
        let head = self.api.get("/readyz").await.1["head"].as_u64().unwrap();
        let mut frames = self.api.follow("/v1/events", Some(0)).await;
        let mut events = Vec::new();
        while let Some(frame) = frames.next().await {
            let position = frame.id.unwrap();
            if frame.data["stream"] == stream {
                events.push(frame.data);
            }
            if position >= head {
                break;
            }
        }
        events
    }

    /// What is left on this machine of this house's sandboxes. Empty when all is well.
    pub fn traces(&self) -> Vec<String> {
        traces(&self.data())
    }

    /// Waits until nothing is left on this machine of this house's sandboxes.
    pub async fn nothing_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        // The kernel lets go of the last mount and process a moment after the server is told.
        while !self.traces().is_empty() {
            assert!(Instant::now() < deadline, "left behind: {:#?}", self.traces());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default();
            let from = log.lines().count().saturating_sub(60);
            let tail: Vec<_> = log.lines().skip(from).collect();
            eprintln!("the end of the server's log:\n{}", tail.join("\n"));
        }
        if let Some(server) = self.server.take() {
            server.kill_now();
        }
        destroy_sandboxes(&self.data());
    }
}

/// The types of events, in order.
pub fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

/// How many events are of this type.
pub fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["type"] == kind).count()
}

/// Dollars in JSON as nano-dollars, without a rounding that could hide one.
pub fn nano_usd(dollars: &Value) -> u64 {
    let text = dollars.to_string();
    assert!(!text.contains('e'), "{text}");
    let (whole, places) = text.split_once('.').unwrap_or((&text, ""));
    format!("{whole}{places:0<9}").parse().unwrap()
}

/// A script with one conversation, which every task gets.
pub fn script(turns: Value) -> Value {
    json!([{ "match": "", "turns": turns }])
}

/// A turn that runs a command.
pub fn bash(command: &str) -> Value {
    json!({ "text": "I run a command.", "tools": [{ "name": "bash", "input": { "command": command } }] })
}

/// The last turn.
pub fn done() -> Value {
    json!({ "text": "It is done." })
}

/// Numbers that look random and are the same in every run (SplitMix64).
pub struct Seed(pub u64);

impl Seed {
    /// A number below this one.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}
