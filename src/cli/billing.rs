//! `orchestra billing`: plans, months and bills for a terminal.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Value, json};

use super::tasks::{query, text};
use super::{ServerArguments, say};

/// See and set plans, list, close and read bills
#[derive(Subcommand)]
pub enum Billing {
    /// What a team charges; with --file, what it charges from a day on
    Plan {
        /// The team
        team: String,
        /// A file with a plan as JSON: effectiveFrom, markUpBasisPoints, perTaskUsd …
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// The months of a team, newest first
    Periods {
        /// The team; the key's own when absent
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Close a month for good
    Close {
        /// The month, such as 2026-11
        period: String,
        /// The team; the key's own when absent
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Send the bill of a closed month to a webhook
    Push {
        /// The month, such as 2026-11
        period: String,
        /// The webhook's id
        webhook: String,
        /// The team; the key's own when absent
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// The bill of a month: what it comes to for each customer, or its lines
    Invoice {
        /// The month, such as 2026-11
        period: String,
        /// The team; the key's own when absent
        #[arg(long)]
        team: Option<String>,
        /// Only this customer
        #[arg(long)]
        customer: Option<String>,
        /// Every line as CSV
        #[arg(long, conflicts_with = "json")]
        csv: bool,
        /// The whole first page as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(head);
    table
}

fn dollars(of: &Value, name: &str) -> String {
    format!("${}", of[name])
}

impl Billing {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Plan { team, file, server } => {
                let path = format!("/v1/billing/plans/{team}");
                let client = server.client()?;
                let plans = match file {
                    None => client.get(&path).await?,
                    Some(file) => {
                        let text = std::fs::read_to_string(&file)
                            .with_context(|| format!("cannot read the plan in {}", file.display()))?;
                        let plan: Value = serde_json::from_str(&text).context("the plan is not JSON")?;
                        client.put(&path, &plan).await?
                    }
                };
                say(serde_json::to_string_pretty(&plans)?);
            }
            Self::Periods { team, server } => {
                let query = query(&[("team", team)]);
                let list = server.client()?.get(&format!("/v1/billing/periods?{query}")).await?;
                let mut table = table(&["MONTH", "STATUS", "LINES", "TASKS", "COST", "REFUNDED", "BILLABLE"]);
                for month in list["data"].as_array().into_iter().flatten() {
                    table.add_row([
                        text(month, "/period").to_owned(),
                        text(month, "/status").to_owned(),
                        month["lines"].to_string(),
                        month["tasks"].to_string(),
                        dollars(month, "costUsd"),
                        dollars(month, "refundedUsd"),
                        dollars(month, "billableUsd"),
                    ]);
                }
                say(table.to_string());
            }
            Self::Close { period, team, server } => {
                let query = query(&[("team", team)]);
                let path = format!("/v1/billing/periods/{period}/close?{query}");
                let closed = server.client()?.post(&path, &json!({})).await?;
                let (lines, billable) = (&closed["lines"], dollars(&closed, "billableUsd"));
                say(format!("{period} is closed: {lines} lines, {billable}, SHA-256 {}", text(&closed, "/digest")));
            }
            Self::Push { period, webhook, team, server } => {
                let query = query(&[("team", team)]);
                let path = format!("/v1/billing/periods/{period}/push?{query}");
                server.client()?.post(&path, &json!({ "webhook": webhook })).await?;
                say(format!("the bill of {period} is being sent to {webhook}"));
            }
            Self::Invoice { period, team, customer, csv, json, server } => {
                let format = csv.then(|| "csv".to_owned());
                let query = query(&[("team", team), ("customer", customer), ("format", format)]);
                let path = format!("/v1/billing/periods/{period}?{query}");
                let client = server.client()?;
                if csv {
                    std::io::stdout().write_all(&client.get_bytes(&path).await?)?;
                    return Ok(ExitCode::SUCCESS);
                }
                let bill = client.get(&path).await?;
                if json {
                    say(serde_json::to_string_pretty(&bill)?);
                    return Ok(ExitCode::SUCCESS);
                }
                let mut table = table(&["CUSTOMER", "TASKS", "COST", "USAGE", "ADJUSTMENTS", "MINIMUM", "TO PAY"]);
                let customers = bill["customers"].as_array().into_iter().flatten();
                let mut row = |name: &str, of: &Value| {
                    let amounts = ["costUsd", "usageUsd", "adjustmentsUsd", "minimumUsd", "billableUsd"];
                    let cells = amounts.map(|amount| dollars(of, amount));
                    table.add_row([name.to_owned(), of["tasks"].to_string()].into_iter().chain(cells));
                };
                for customer in customers {
                    row(text(customer, "/customer"), customer);
                }
                row("all together", &bill["totals"]);
                say(format!("{} of {}: {}", period, text(&bill, "/team"), text(&bill, "/status")));
                say(table.to_string());
                if bill["intact"] == json!(false) {
                    anyhow::bail!("the lines of this closed month are not those that were written down");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
