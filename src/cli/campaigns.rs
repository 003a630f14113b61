//! `orchestra campaigns`: one task over many repositories, for a terminal.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table};
use orchestra_events::NanoUsd;
use serde_json::{Value, json};

use super::run::secret;
use super::tasks::{query, text};
use super::{ServerArguments, say};

/// Start, list, show, cancel and retry campaigns, and give them credentials
#[derive(Subcommand)]
pub enum Campaigns {
    /// One sentence, many repositories, a task for each
    Create(Box<Create>),
    /// The newest campaigns
    List {
        #[command(flatten)]
        server: ServerArguments,
        /// Only those in this state: running, paused, finished or cancelled
        #[arg(long)]
        status: Option<String>,
        /// Only those of this team
        #[arg(long)]
        team: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// One campaign with each of its repositories
    Show {
        /// Its id
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Stop a campaign and all its tasks
    Cancel {
        /// Its id
        id: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Erase what was said and written in a campaign that has ended, and in all its tasks
    Erase {
        /// Its id
        id: String,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Replace the secrets of a campaign and of all its tasks, as after a restart of the server
    Credentials {
        /// Its id
        id: String,
        /// The environment variable with the model key
        #[arg(long, value_name = "NAME")]
        model_key_env: Option<String>,
        /// The environment variable with the git token
        #[arg(long, value_name = "NAME")]
        git_token_env: Option<String>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Do again what failed, and go on where it is paused
    Retry {
        /// Its id
        id: String,
        /// The environment variable with the model key to send along
        #[arg(long, value_name = "NAME")]
        model_key_env: Option<String>,
        /// The environment variable with the git token to send along
        #[arg(long, value_name = "NAME")]
        git_token_env: Option<String>,
        #[command(flatten)]
        server: ServerArguments,
    },
}

/// What a new campaign is asked for
#[derive(clap::Args)]
pub struct Create {
    /// What you call it
    #[arg(long)]
    name: String,
    /// A repository: owner/name, forge:owner/name or a URL; say it as often as there are
    #[arg(long)]
    repo: Vec<String>,
    /// A file with one repository a line
    #[arg(long, value_name = "FILE")]
    repos_file: Option<PathBuf>,
    /// What is to be done, everywhere
    #[arg(long)]
    task: String,
    /// The model
    #[arg(long, default_value = "claude-sonnet-4-6")]
    model: String,
    /// The team it is for
    #[arg(long, default_value = "default")]
    team: String,
    /// The branch to start from
    #[arg(long)]
    base: Option<String>,
    /// The most that all tasks together may cost, in dollars
    #[arg(long, value_name = "USD")]
    budget_usd: Option<String>,
    /// The most that each task may cost, in dollars
    #[arg(long, value_name = "USD")]
    task_budget_usd: Option<String>,
    /// Tasks that may run at once
    #[arg(long)]
    concurrency: Option<u32>,
    /// Pull requests that may be opened within any sixty minutes
    #[arg(long)]
    pull_requests_per_hour: Option<u32>,
    /// Pause after so many failed tasks, or after such a part of all (0.1)
    #[arg(long)]
    stop_after_failures: Option<f64>,
    /// The environment variable with the model key to send along
    #[arg(long, value_name = "NAME")]
    model_key_env: Option<String>,
    /// The environment variable with the git token to send along
    #[arg(long, value_name = "NAME")]
    git_token_env: Option<String>,
    #[command(flatten)]
    server: ServerArguments,
}

/// The `credentials` object of what these variables hold; `None` when none is named.
fn credentials(model: &Option<String>, git: &Option<String>) -> anyhow::Result<Option<Value>> {
    let mut credentials = json!({});
    if let Some(key) = secret(model)? {
        credentials["model"] = json!({ "apiKey": key });
    }
    if let Some(token) = secret(git)? {
        credentials["git"] = json!({ "token": token });
    }
    Ok(credentials.as_object().is_some_and(|object| !object.is_empty()).then_some(credentials))
}

/// A cap in dollars, sent as the user wrote it: the server reads the decimal exactly.
fn cap(usd: &str) -> anyhow::Result<Value> {
    let amount = NanoUsd::parse_decimal(usd).with_context(|| format!("{usd} is no amount of dollars"))?;
    let amount: Value = serde_json::from_str(&amount.to_string())?;
    Ok(json!({ "maxUsd": amount }))
}

impl Create {
    fn payload(&self) -> anyhow::Result<Value> {
        let mut repos = self.repo.clone();
        if let Some(file) = &self.repos_file {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            repos.extend(lines.map(str::to_owned));
        }
        if repos.is_empty() {
            bail!("name the repositories with --repo or --repos-file");
        }
        let mut body = json!({
            "name": self.name, "repos": repos, "task": self.task, "model": self.model, "team": self.team,
        });
        for (name, usd) in [("budget", &self.budget_usd), ("taskBudget", &self.task_budget_usd)] {
            if let Some(usd) = usd {
                body[name] = cap(usd)?;
            }
        }
        if let Some(base) = &self.base {
            body["base"] = json!(base);
        }
        for (name, number) in [("concurrency", self.concurrency), ("pullRequestsPerHour", self.pull_requests_per_hour)]
        {
            if let Some(number) = number {
                body[name] = json!(number);
            }
        }
        if let Some(stop) = self.stop_after_failures {
            // A count is a whole number, a part is not.
            body["stopAfterFailures"] = if stop.fract() == 0.0 { json!(stop as u64) } else { json!(stop) };
        }
        if let Some(credentials) = credentials(&self.model_key_env, &self.git_token_env)? {
            body["credentials"] = credentials;
        }
        Ok(body)
    }
}

fn ended(campaign: &Value) -> String {
    let count = |name: &str| campaign["progress"][name].as_u64().unwrap_or(0);
    format!("{}/{}", count("succeeded") + count("failed") + count("cancelled"), count("total"))
}

impl Campaigns {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Create(create) => {
                let campaign = create.server.client()?.post("/v1/campaigns", &create.payload()?).await?;
                say(text(&campaign, "/id"));
            }
            Self::List { server, status, team, limit } => {
                let query = query(&[("status", status), ("team", team), ("limit", Some(limit.to_string()))]);
                let page = server.client()?.get(&format!("/v1/campaigns?{query}")).await?;
                let mut table = Table::new();
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_header(["ID", "STATUS", "NAME", "ENDED", "FAILED", "COST", "REASON"]);
                for campaign in page["data"].as_array().into_iter().flatten() {
                    let (ended, failed) = (ended(campaign), campaign["progress"]["failed"].to_string());
                    let cost = format!("${}", campaign["usage"]["costUsd"]);
                    let columns = [text(campaign, "/id"), text(campaign, "/status"), text(campaign, "/name"), &ended];
                    table.add_row(columns.into_iter().chain([&*failed, &*cost, text(campaign, "/reason")]));
                }
                say(table.to_string());
            }
            Self::Show { id, json, server } => {
                let campaign = server.client()?.get(&format!("/v1/campaigns/{id}")).await?;
                if json {
                    say(serde_json::to_string_pretty(&campaign)?);
                    return Ok(ExitCode::SUCCESS);
                }
                let cost = &campaign["usage"]["costUsd"];
                let (name, status) = (text(&campaign, "/name"), text(&campaign, "/status"));
                say(format!("{name}: {status}, {} ended, ${cost}\n{}", ended(&campaign), text(&campaign, "/reason")));
                let mut table = Table::new();
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_header(["REPO", "STATUS", "TASK", "COST", "PULL REQUEST", "FAILURE"]);
                for child in campaign["children"].as_array().into_iter().flatten() {
                    let cost = format!("${}", child["costUsd"]);
                    let columns = [text(child, "/repo"), text(child, "/status"), text(child, "/task"), &cost];
                    table.add_row(
                        columns.into_iter().chain([text(child, "/pullRequests/0/url"), text(child, "/failure")]),
                    );
                }
                say(table.to_string());
            }
            Self::Erase { id, server } => {
                server.client()?.delete(&format!("/v1/campaigns/{id}/content")).await?;
                say(format!("what was said in {id} is being erased"));
            }
            Self::Cancel { id, reason, server } => {
                server.client()?.post(&format!("/v1/campaigns/{id}/cancel"), &json!({ "reason": reason })).await?;
                say(format!("{id} is being cancelled"));
            }
            Self::Credentials { id, model_key_env, git_token_env, server } => {
                let Some(given) = credentials(&model_key_env, &git_token_env)? else {
                    bail!("name --model-key-env, --git-token-env or both");
                };
                server.client()?.put(&format!("/v1/campaigns/{id}/credentials"), &given).await?;
                say(format!("{id} goes on with them"));
            }
            Self::Retry { id, model_key_env, git_token_env, server } => {
                let given = credentials(&model_key_env, &git_token_env)?;
                let body = given.map_or_else(|| json!({}), |credentials| json!({ "credentials": credentials }));
                let campaign = server.client()?.post(&format!("/v1/campaigns/{id}/retry"), &body).await?;
                say(format!("{id}: {} wait for their turn", campaign["progress"]["waiting"]));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    #[test]
    fn what_is_said_on_the_command_line_is_what_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("repos.txt");
        std::fs::write(&file, "# ours\nacme/web\n\n gitlab:acme/docs \n").expect("written");
        let file = file.display().to_string();
        let arguments =
            ["x", "--name", "N", "--task", "T", "--repo", "acme/api", "--repos-file", &file, "--budget-usd"];
        let more = ["20.10", "--concurrency", "3", "--stop-after-failures", "3"];
        let line = Line::parse_from(arguments.into_iter().chain(more));
        let payload = line.create.payload().expect("a payload");
        assert_eq!(payload["repos"], json!(["acme/api", "acme/web", "gitlab:acme/docs"]));
        assert_eq!(
            (payload["budget"]["maxUsd"].to_string(), &payload["stopAfterFailures"]),
            ("20.1".into(), &json!(3))
        );
        assert_eq!((&payload["concurrency"], payload.get("credentials")), (&json!(3), None));
        let line = Line::parse_from(["x", "--name", "N", "--task", "T", "--stop-after-failures", "0.1"]);
        assert!(line.create.payload().is_err(), "no repository");
    }
}
