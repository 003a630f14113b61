//! `orchestra webhooks`: who is told what happens, for a terminal.

use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Value, json};

use super::tasks::{query, text};
use super::{ServerArguments, say};

/// Make, list, show, change, test, rotate, replay and remove webhooks
#[derive(Subcommand)]
pub enum Webhooks {
    /// The newest webhooks
    List {
        #[command(flatten)]
        server: ServerArguments,
        /// Only those of this team
        #[arg(long)]
        team: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Tell an address what happens from now on; prints the id and the secret, which is not shown again
    Create {
        /// Where to
        url: String,
        /// What: task.succeeded, task.* or *; say it as often as there are
        #[arg(long = "event", value_name = "TYPE", required = true)]
        events: Vec<String>,
        /// Whose events; an operator who names none gets those of all
        #[arg(long)]
        team: Option<String>,
        /// Only those of tasks and campaigns of this project; say it as often as there are
        #[arg(long = "project", value_name = "NAME")]
        projects: Vec<String>,
        /// The same for environments
        #[arg(long = "environment", value_name = "NAME")]
        environments: Vec<String>,
        /// What it is for
        #[arg(long)]
        description: Option<String>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// One webhook, as JSON
    Show {
        /// Its id
        id: String,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Go on sending where it ended
    Enable {
        /// Its id
        id: String,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Send nothing any more
    Disable {
        /// Its id
        id: String,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Make the secret anew; prints it, and for a while messages are signed with both
    Rotate {
        /// Its id
        id: String,
        /// For how many seconds they are; a day when absent
        #[arg(long, value_name = "SECONDS")]
        overlap: Option<u64>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Send again one message, or what is wanted of a part of the log
    Replay {
        /// Its id
        id: String,
        /// One message
        #[arg(long, conflicts_with_all = ["from", "to"])]
        message: Option<String>,
        /// The first position
        #[arg(long, requires = "to")]
        from: Option<u64>,
        /// The last position
        #[arg(long, requires = "from")]
        to: Option<u64>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// What became of the newest messages
    Deliveries {
        /// Its id
        id: String,
        /// Only those that are delivered, retrying, given-up or skipped
        #[arg(long)]
        outcome: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Send a test, and say what came of it
    Test {
        /// Its id
        id: String,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Remove a webhook for good
    Remove {
        /// Its id
        id: String,
        #[command(flatten)]
        server: ServerArguments,
    },
}

fn answer(delivery: &Value) -> String {
    match (delivery["status"].as_u64(), delivery["error"].as_str()) {
        (Some(status), _) => status.to_string(),
        (None, error) => error.unwrap_or_default().to_owned(),
    }
}

fn standing(webhook: &Value) -> String {
    match (webhook["disabledReason"].as_str(), webhook["failingSince"].as_str()) {
        (Some(why), _) => format!("disabled: {why}"),
        (None, Some(since)) => format!("failing since {since}"),
        (None, None) => "enabled".to_owned(),
    }
}

impl Webhooks {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::List { server, team, limit } => {
                let query = query(&[("team", team), ("limit", Some(limit.to_string()))]);
                let page = server.client()?.get(&format!("/v1/webhooks?{query}")).await?;
                let mut table = Table::new();
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_header(["ID", "TEAM", "URL", "EVENTS", "STATUS"]);
                for webhook in page["data"].as_array().into_iter().flatten() {
                    let events: Vec<_> =
                        webhook["events"].as_array().into_iter().flatten().map(|e| text(e, "")).collect();
                    let columns = [text(webhook, "/id"), text(webhook, "/team"), text(webhook, "/url")];
                    table.add_row(columns.into_iter().chain([&*events.join(", "), &*standing(webhook)]));
                }
                say(table.to_string());
            }
            Self::Create { url, events, team, projects, environments, description, server } => {
                let mut body = json!({
                    "url": url, "events": events, "projects": projects, "environments": environments,
                });
                for (name, value) in [("team", team), ("description", description)] {
                    if let Some(value) = value {
                        body[name] = json!(value);
                    }
                }
                let webhook = server.client()?.post("/v1/webhooks", &body).await?;
                say(text(&webhook, "/id"));
                say(text(&webhook, "/secret"));
            }
            Self::Show { id, server } => {
                let webhook = server.client()?.get(&format!("/v1/webhooks/{id}")).await?;
                say(serde_json::to_string_pretty(&webhook)?);
            }
            Self::Enable { id, server } => {
                server.client()?.patch(&format!("/v1/webhooks/{id}"), &json!({ "enabled": true })).await?;
                say(format!("{id} goes on where it ended"));
            }
            Self::Disable { id, server } => {
                server.client()?.patch(&format!("/v1/webhooks/{id}"), &json!({ "enabled": false })).await?;
                say(format!("{id} sends nothing any more"));
            }
            Self::Rotate { id, overlap, server } => {
                let body = overlap.map_or_else(|| json!({}), |seconds| json!({ "overlapSeconds": seconds }));
                let secret = server.client()?.post(&format!("/v1/webhooks/{id}/secret"), &body).await?;
                say(text(&secret, "/secret"));
            }
            Self::Replay { id, message, from, to, server } => {
                let body = match (message, from.zip(to)) {
                    (Some(message), _) => json!({ "message": message }),
                    (None, Some((from, to))) => json!({ "from": from, "to": to }),
                    (None, None) => bail!("name --message, or --from and --to"),
                };
                server.client()?.post(&format!("/v1/webhooks/{id}/replay"), &body).await?;
                say(format!("{id} sends it again"));
            }
            Self::Deliveries { id, outcome, limit, server } => {
                let query = query(&[("outcome", outcome), ("limit", Some(limit.to_string()))]);
                let page = server.client()?.get(&format!("/v1/webhooks/{id}/deliveries?{query}")).await?;
                let mut table = Table::new();
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_header(["MESSAGE", "TYPE", "OUTCOME", "ANSWER", "ATTEMPTS", "LAST", "NEXT"]);
                for delivery in page["data"].as_array().into_iter().flatten() {
                    let (answer, attempts) = (answer(delivery), delivery["attempts"].to_string());
                    let columns = [text(delivery, "/message"), text(delivery, "/type"), text(delivery, "/outcome")];
                    let times = [text(delivery, "/lastAttemptAt"), text(delivery, "/nextAttemptAt")];
                    table.add_row(columns.into_iter().chain([&*answer, &*attempts]).chain(times));
                }
                say(table.to_string());
            }
            Self::Test { id, server } => {
                let delivery = server.client()?.post(&format!("/v1/webhooks/{id}/test"), &json!({})).await?;
                let (outcome, milliseconds) = (text(&delivery, "/outcome"), &delivery["milliseconds"]);
                say(format!("{outcome}: {} after {milliseconds} ms", answer(&delivery)));
                if outcome != "delivered" {
                    return Ok(ExitCode::FAILURE);
                }
            }
            Self::Remove { id, server } => {
                server.client()?.delete(&format!("/v1/webhooks/{id}")).await?;
                say(format!("{id} is gone"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
