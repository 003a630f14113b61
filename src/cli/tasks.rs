//! `orchestra tasks`: the REST resources for a terminal.

use std::io::Write;
use std::process::ExitCode;

use clap::Subcommand;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Value, json};

use super::progress::Progress;
use super::{ServerArguments, say};

/// List, show, cancel, read and erase tasks
#[derive(Subcommand)]
pub enum Tasks {
    /// The newest tasks
    List {
        #[command(flatten)]
        server: ServerArguments,
        /// Only those in this state
        #[arg(long)]
        status: Option<String>,
        /// Only those of this team
        #[arg(long)]
        team: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// One task, as JSON
    Show {
        /// Its id
        id: String,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Stop a task
    Cancel {
        /// Its id
        id: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Erase what was asked for, said and written in a task that has ended; the record and the costs stay
    Erase {
        /// Its id
        id: String,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// What happened to a task, from the first event on
    Logs {
        /// Its id
        id: String,
        /// Go on until the task is over
        #[arg(long)]
        follow: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// The diff of what was, or would be, pushed
    Diff {
        /// Its id
        id: String,
        #[command(flatten)]
        server: ServerArguments,
    },
}

/// Names and values as a query string.
pub(super) fn query(pairs: &[(&str, Option<String>)]) -> String {
    let encode = |text: &str| {
        text.bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect::<String>()
    };
    let set = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", encode(value.as_ref()?))));
    set.collect::<Vec<_>>().join("&")
}

pub(super) fn text<'a>(task: &'a Value, pointer: &str) -> &'a str {
    task.pointer(pointer).and_then(Value::as_str).unwrap_or("-")
}

impl Tasks {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::List { server, status, team, limit } => {
                let query = query(&[("status", status), ("team", team), ("limit", Some(limit.to_string()))]);
                let page = server.client()?.get(&format!("/v1/tasks?{query}")).await?;
                let mut table = Table::new();
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_header(["ID", "STATUS", "REPO", "TASK", "COST", "REASON"]);
                for task in page["data"].as_array().into_iter().flatten() {
                    let first_line = text(task, "/task").lines().next().unwrap_or_default();
                    let cost = format!("${}", task["usage"]["costUsd"]);
                    let columns = [text(task, "/id"), text(task, "/status"), text(task, "/repo"), first_line, &cost];
                    table.add_row(columns.into_iter().chain([text(task, "/reason")]));
                }
                say(table.to_string());
            }
            Self::Show { id, server } => {
                let task = server.client()?.get(&format!("/v1/tasks/{id}")).await?;
                say(serde_json::to_string_pretty(&task)?);
            }
            Self::Cancel { id, reason, server } => {
                server.client()?.post(&format!("/v1/tasks/{id}/cancel"), &json!({"reason": reason})).await?;
                say(format!("{id} is being cancelled"));
            }
            Self::Erase { id, server } => {
                let left = server.client()?.delete(&format!("/v1/tasks/{id}/content")).await?;
                let gone = if left.is_null() { "erased" } else { "being erased" };
                say(format!("what was said in {id} is {gone}"));
            }
            Self::Logs { id, follow, server } => {
                let client = server.client()?;
                if follow {
                    let mut progress = Progress::plain();
                    client.follow(&id, |event| progress.see(&event)).await?;
                    return Ok(progress.exit_code());
                }
                let mut after = String::new();
                loop {
                    let page = client.get(&format!("/v1/tasks/{id}/events?limit=500{after}")).await?;
                    let events = page["data"].as_array().cloned().unwrap_or_default();
                    let Some(last) = events.last() else { break };
                    after = format!("&after={}", last["revision"]);
                    for event in &events {
                        say(super::progress::line(event));
                    }
                }
            }
            Self::Diff { id, server } => {
                let diff = server.client()?.get_bytes(&format!("/v1/tasks/{id}/diff")).await?;
                std::io::stdout().write_all(&diff)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
