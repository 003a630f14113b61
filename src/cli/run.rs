//! `orchestra run`: submit a task, to a server or to one within this process, and follow it.

use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::progress::Progress;
use super::{ConfigArguments, ServerArguments, log, say};
use crate::client::Client;
use crate::wiring;

/// Submit a task and, with --follow, stay until it is over
#[derive(clap::Args)]
pub struct Run {
    /// The repository: owner/name, forge:owner/name or a URL. Several times: one task on all of them, one pull request each
    #[arg(long, required = true)]
    repo: Vec<String>,
    /// What is to be done
    #[arg(long)]
    task: String,
    /// The model
    #[arg(long, default_value = "claude-sonnet-4-6")]
    model: String,
    /// Who does it: builtin, claude-code, codex or opencode
    #[arg(long)]
    harness: Option<String>,
    /// The sandbox image
    #[arg(long)]
    image: Option<String>,
    /// A host that its sandbox may connect to, in place of what is usual; may be repeated, and "" alone is none
    #[arg(long, value_name = "HOST")]
    egress: Vec<String>,
    /// The team it is for
    #[arg(long, default_value = "default")]
    team: String,
    /// The most it may cost, in dollars
    #[arg(long, value_name = "USD")]
    budget_usd: Option<String>,
    /// The branch to start from
    #[arg(long)]
    base: Option<String>,
    /// The branch to push to
    #[arg(long)]
    branch: Option<String>,
    /// The title of the pull request
    #[arg(long)]
    title: Option<String>,
    /// Open the pull request as a draft
    #[arg(long)]
    draft: bool,
    /// Who is asked to review; may be repeated
    #[arg(long = "reviewer", value_name = "NAME")]
    reviewers: Vec<String>,
    /// A label of the pull request; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// The wall-clock limit, in seconds
    #[arg(long)]
    timeout_seconds: Option<u64>,
    /// The environment variable with the model key to send along
    #[arg(long, value_name = "NAME")]
    model_key_env: Option<String>,
    /// The environment variable with the git token to send along
    #[arg(long, value_name = "NAME")]
    git_token_env: Option<String>,
    /// Show what happens until the task is over, and exit with its outcome
    #[arg(long)]
    follow: bool,
    /// Without a server: do it within this process
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    server: ServerArguments,
    #[command(flatten)]
    config: ConfigArguments,
}

pub(super) fn secret(variable: &Option<String>) -> anyhow::Result<Option<String>> {
    match variable {
        Some(name) => std::env::var(name).map(Some).with_context(|| format!("the variable {name} is not set")),
        None => Ok(None),
    }
}

impl Run {
    fn payload(&self) -> anyhow::Result<Value> {
        let mut body = json!({ "task": self.task, "model": self.model, "team": self.team });
        match self.repo.as_slice() {
            [repo] => body["repo"] = json!(repo),
            repos => body["repos"] = json!(repos),
        }
        let mut request = Map::new();
        if let Some(title) = &self.title {
            request.insert("title".to_owned(), json!(title));
        }
        if self.draft {
            request.insert("draft".to_owned(), json!(true));
        }
        for (name, values) in [("reviewers", &self.reviewers), ("labels", &self.labels)] {
            if !values.is_empty() {
                request.insert(name.to_owned(), json!(values));
            }
        }
        if !request.is_empty() {
            body["pullRequest"] = Value::Object(request);
        }
        if let Some(usd) = &self.budget_usd {
            // Sent as the user wrote it: the server reads the decimal exactly.
            let cap = orchestra_events::NanoUsd::parse_decimal(usd).with_context(|| format!("--budget-usd {usd}"))?;
            let cap: Value = serde_json::from_str(&cap.to_string())?;
            body["budget"] = json!({ "maxUsd": cap });
        }
        let texts =
            [("base", &self.base), ("branch", &self.branch), ("harness", &self.harness), ("image", &self.image)];
        for (name, value) in texts {
            if let Some(value) = value {
                body[name] = json!(value);
            }
        }
        if !self.egress.is_empty() {
            let hosts: Vec<&String> = self.egress.iter().filter(|host| !host.is_empty()).collect();
            body["egress"] = json!(hosts);
        }
        if let Some(seconds) = self.timeout_seconds {
            body["timeoutSeconds"] = json!(seconds);
        }
        let mut credentials = Map::new();
        if let Some(key) = secret(&self.model_key_env)? {
            credentials.insert("model".to_owned(), json!({ "apiKey": key }));
        }
        if let Some(token) = secret(&self.git_token_env)? {
            credentials.insert("git".to_owned(), json!({ "token": token }));
        }
        if !credentials.is_empty() {
            body["credentials"] = Value::Object(credentials);
        }
        Ok(body)
    }

    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let payload = self.payload()?;
        if !self.local {
            return Ok(submit(&self.server.client()?, &payload, self.follow).await?.1);
        }
        let loaded = self.config.load(vec![("listen", "127.0.0.1:0".to_owned())])?;
        log("warn")?;
        let server = wiring::start(&loaded.config).await?;
        let (key, text) = server.temporary_key("orchestra run --local").await?;
        let client = Client::new(&server.url(), text)?;
        // Without a server to go on, it is followed to its end.
        let code = submit(&client, &payload, true).await;
        server.revoke(key).await?;
        server.stop().await?;
        Ok(code?.1)
    }
}

/// Submits, and follows if asked to. Answers the task's id and how the command ends.
pub async fn submit(client: &Client, payload: &Value, follow: bool) -> anyhow::Result<(String, ExitCode)> {
    let task = client.post("/v1/tasks", payload).await?;
    let id = task["id"].as_str().context("the server's answer has no id")?.to_owned();
    say(format!("{id}  {}", task["branch"].as_str().unwrap_or_default()));
    if !follow {
        return Ok((id, ExitCode::SUCCESS));
    }
    let mut progress = Progress::live();
    let followed = client.follow(&id, |event| progress.see(&event)).await;
    followed.with_context(|| format!("{id} is followed no longer; `orchestra tasks logs {id} --follow` goes on"))?;
    say(format!("cost {}", progress.cost()));
    Ok((id, progress.exit_code()))
}
