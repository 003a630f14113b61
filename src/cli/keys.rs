//! `orchestra keys`: issue, list, rotate and revoke API keys over REST.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::tasks::{query, text};
use super::{ServerArguments, say};
use crate::config::parse_duration;

/// Issue, list, rotate and revoke API keys
#[derive(Subcommand)]
pub enum Keys {
    /// Issue a key and show its text, this once
    Create(Box<Create>),
    /// Keys, newest first
    List {
        #[command(flatten)]
        server: ServerArguments,
        /// Only those of this team
        #[arg(long)]
        team: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Give a key a new text and show it, this once; the one before works on for a while
    Rotate {
        /// Its id
        id: String,
        /// How long the text before works on, such as 15m, 24h or 7d
        #[arg(long, value_name = "TIME", default_value = "1h")]
        overlap: String,
        /// Print nothing but the new text
        #[arg(long)]
        quiet: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Take a key back for good; what is open with it ends
    Revoke {
        /// Its id
        id: String,
        /// Also if it is the key that asks
        #[arg(long = "self")]
        itself: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
}

/// Issue a key and show its text, this once
#[derive(clap::Args)]
pub struct Create {
    /// What you call it
    name: String,
    /// What it may do; may be repeated. `campaigns:*` stands for all that begin so
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// The team it acts for; your own key's when absent
    #[arg(long)]
    team: Option<String>,
    /// Stands in its visible prefix
    #[arg(long, value_name = "NAME")]
    prefix: Option<String>,
    /// When it stops working: a time from now such as 90d, or a date and time
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Only for this project; may be repeated, as all below
    #[arg(long = "project", value_name = "NAME")]
    projects: Vec<String>,
    /// Only for this environment
    #[arg(long = "environment", value_name = "NAME")]
    environments: Vec<String>,
    /// Only for this kind of work
    #[arg(long = "task-type", value_name = "NAME")]
    task_types: Vec<String>,
    /// Only for these repositories, such as 'github:acme/*'
    #[arg(long = "repo", value_name = "PATTERN")]
    repos: Vec<String>,
    /// Only with these models, such as 'claude-*'
    #[arg(long = "model", value_name = "PATTERN")]
    models: Vec<String>,
    /// Only from this network, such as 10.0.0.0/8
    #[arg(long = "network", value_name = "NETWORK")]
    networks: Vec<String>,
    /// Requests in a minute
    #[arg(long, value_name = "COUNT")]
    requests_per_minute: Option<u32>,
    /// Requests at once; a minute's worth when absent
    #[arg(long, value_name = "COUNT")]
    burst: Option<u32>,
    /// Open tasks at once
    #[arg(long, value_name = "COUNT")]
    concurrent_tasks: Option<u32>,
    /// Print nothing but the key's text
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    server: ServerArguments,
}

/// A time from now, or a time.
fn expiry(text: &str) -> anyhow::Result<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let wait = span(text)
        .with_context(|| format!("--expires {text:?} is no time; expected one such as 90d or 2027-01-31T00:00:00Z"))?;
    Timestamp::now().checked_add(wait).with_context(|| format!("--expires {text:?} is too far away"))
}

/// A duration of the configuration's kind, or days.
fn span(text: &str) -> anyhow::Result<std::time::Duration> {
    match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) => Ok(std::time::Duration::from_secs(u64::from(days) * 24 * 60 * 60)),
        Some(Err(_)) | None => parse_duration(text),
    }
}

impl Create {
    fn body(&self) -> anyhow::Result<Value> {
        let mut bounds = Map::new();
        for (name, list) in [
            ("projects", &self.projects),
            ("environments", &self.environments),
            ("taskTypes", &self.task_types),
            ("repos", &self.repos),
            ("models", &self.models),
            ("networks", &self.networks),
        ] {
            if !list.is_empty() {
                bounds.insert(name.to_owned(), json!(list));
            }
        }
        let expires = self.expires.as_deref().map(expiry).transpose()?;
        Ok(json!({
            "name": self.name,
            "team": self.team,
            "environment": self.prefix,
            "scopes": self.scopes,
            "bounds": bounds,
            "expiresAt": expires.map(|time| time.to_string()),
            "limits": {
                "requestsPerMinute": self.requests_per_minute,
                "burst": self.burst,
                "concurrentTasks": self.concurrent_tasks,
            },
        }))
    }
}

/// Shows a key's text, the only time that it can be shown.
fn show(answer: &Value, quiet: bool) -> anyhow::Result<()> {
    let Some(key) = answer["key"].as_str() else { bail!("the server's answer has no key in it") };
    if quiet {
        say(key);
        return Ok(());
    }
    say(format!("{}  {}", text(answer, "/id"), text(answer, "/name")));
    say(format!("\n  {key}\n"));
    say("This is the only time it is shown: keep it now. The server has its hash and cannot show it again.");
    if let Some(until) = answer["previousUntil"].as_str() {
        say(format!("The text before it works until {until}."));
    }
    if let Some(end) = answer["expiresAt"].as_str() {
        say(format!("It stops working at {end}."));
    }
    Ok(())
}

impl Keys {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Create(create) => {
                let answer = create.server.client()?.post("/v1/keys", &create.body()?).await?;
                show(&answer, create.quiet)?;
            }
            Self::List { server, team, limit } => {
                let client = server.client()?;
                let mut table = Table::new();
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_header(["ID", "NAME", "TEAM", "STATUS", "SCOPES", "EXPIRES", "LAST USED"]);
                let (mut left, mut cursor) = (limit, None);
                while left > 0 {
                    // The server gives out no larger pages.
                    let page = Some(left.min(200).to_string());
                    let query = query(&[("team", team.clone()), ("limit", page), ("cursor", cursor)]);
                    let page = client.get(&format!("/v1/keys?{query}")).await?;
                    for key in page["data"].as_array().into_iter().flatten() {
                        let scopes: Vec<_> =
                            key["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                        let scopes = scopes.join(" ");
                        let columns =
                            [text(key, "/id"), text(key, "/name"), text(key, "/team"), text(key, "/status"), &scopes];
                        table.add_row(columns.into_iter().chain([text(key, "/expiresAt"), text(key, "/lastUsedAt")]));
                        left = left.saturating_sub(1);
                    }
                    cursor = page["nextCursor"].as_str().map(str::to_owned);
                    if cursor.is_none() {
                        break;
                    }
                }
                say(table.to_string());
            }
            Self::Rotate { id, overlap, quiet, server } => {
                let overlap = span(&overlap).context("in --overlap")?.as_secs();
                let path = format!("/v1/keys/{id}/rotate");
                show(&server.client()?.post(&path, &json!({"overlapSeconds": overlap})).await?, quiet)?;
            }
            Self::Revoke { id, itself, server } => {
                let itself = if itself { "?self=true" } else { "" };
                server.client()?.delete(&format!("/v1/keys/{id}{itself}")).await?;
                say(format!("{id} is revoked"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_time_from_now_or_a_time() {
        let exact: Timestamp = "2099-01-31T00:00:00Z".parse().expect("a time");
        assert_eq!(expiry("2099-01-31T00:00:00Z").ok(), Some(exact));
        let left = expiry("90d").expect("a time").duration_since(Timestamp::now()).as_secs();
        assert!((90 * 86_400 - 5..=90 * 86_400).contains(&left), "{left}");
        assert_eq!(span("15m").ok(), Some(std::time::Duration::from_secs(900)));
        for wrong in ["soon", "d", "-3d", "9999999999999d"] {
            assert!(expiry(wrong).is_err(), "{wrong}");
        }
    }
}
