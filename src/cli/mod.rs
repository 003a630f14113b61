//! The command line: one file per sub-command.

mod audit;
mod bench;
mod billing;
mod campaigns;
mod demo;
mod doctor;
mod image;
mod keys;
mod progress;
mod projections;
mod run;
mod sandbox;
mod scripted_model;
mod serve;
mod tasks;
mod templates;
mod webhooks;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use secrecy::SecretString;

use crate::client::Client;
use crate::config::{self, Loaded};

/// Runs background coding agents for teams: isolated, budgeted, audited.
#[derive(Parser)]
#[command(name = "orchestra", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// The server: REST, live streams, dashboard, actors, sandboxes
    Serve(serve::Serve),
    /// Submit a task and follow it
    Run(Box<run::Run>),
    /// Make, fetch and list sandbox images
    #[command(subcommand)]
    Image(image::Image),
    /// See and enter the sandboxes on this host; needs root
    #[command(subcommand)]
    Sandbox(sandbox::Sandbox),
    /// List, show, cancel and read tasks
    #[command(subcommand)]
    Tasks(tasks::Tasks),
    /// See and try the templates of pull requests, commits and dashboard rows
    #[command(subcommand)]
    Templates(templates::Templates),
    /// Start, list, show, cancel and retry campaigns
    #[command(subcommand)]
    Campaigns(campaigns::Campaigns),
    /// Who did what; export the log, verify it, sign it
    #[command(subcommand)]
    Audit(Box<audit::Audit>),
    /// See and set plans, list, close and read bills
    #[command(subcommand)]
    Billing(billing::Billing),
    /// Issue, list, rotate and revoke API keys
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Make, list, show, change, test, rotate, replay and remove webhooks
    #[command(subcommand)]
    Webhooks(webhooks::Webhooks),
    /// Check this machine and say how to mend what is missing
    Doctor(doctor::Doctor),
    /// One whole task on this machine, with a scripted model
    Demo(demo::Demo),
    /// Work on the read models
    #[command(subcommand)]
    Projections(projections::Projections),
    /// Measure this machine with as many tasks as a company has
    #[command(subcommand)]
    Bench(bench::Bench),
    /// A model provider that says what a script says, for demos and tests
    ScriptedModel(scripted_model::ScriptedModel),
}

/// Where the configuration is from.
#[derive(clap::Args, Clone, Default)]
struct ConfigArguments {
    /// The configuration file (default: /etc/orchestra/orchestra.toml, when it is there)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl ConfigArguments {
    fn load(&self, more: Vec<(&'static str, String)>) -> anyhow::Result<Loaded> {
        let data = self.data.as_ref().map(|data| ("data_dir", data.display().to_string()));
        config::load(self.config.as_deref(), std::env::vars(), data.into_iter().chain(more).collect())
    }
}

/// Which server a command talks to.
#[derive(clap::Args, Clone)]
struct ServerArguments {
    /// The server's address
    #[arg(long, value_name = "URL", env = "ORCHESTRA_URL", default_value = "http://127.0.0.1:7070")]
    server: String,
}

impl ServerArguments {
    fn client(&self) -> anyhow::Result<Client> {
        let key = std::env::var("ORCHESTRA_KEY")
            .context("set ORCHESTRA_KEY to an API key; `orchestra serve` prints one at its first start")?;
        Client::new(&self.server, SecretString::from(key))
    }
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let system = actix_web::rt::System::new();
    let done = system.block_on(async move {
        match arguments.command {
            Verb::Serve(serve) => serve.run().await,
            Verb::Run(run) => run.run().await,
            Verb::Image(image) => image.run().await,
            Verb::Sandbox(sandbox) => sandbox.run().await,
            Verb::Tasks(tasks) => tasks.run().await,
            Verb::Templates(templates) => templates.run().await,
            Verb::Campaigns(campaigns) => campaigns.run().await,
            Verb::Audit(audit) => audit.run().await,
            Verb::Billing(billing) => billing.run().await,
            Verb::Keys(keys) => keys.run().await,
            Verb::Webhooks(webhooks) => webhooks.run().await,
            Verb::Doctor(doctor) => doctor.run(),
            Verb::Demo(demo) => demo.run().await,
            Verb::Projections(projections) => projections.run().await,
            Verb::Bench(bench) => bench.run().await,
            Verb::ScriptedModel(model) => model.run().await,
        }
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("orchestra: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::from(2)
        }
    }
}

/// What is logged, to standard error.
fn log(directives: &str) -> anyhow::Result<()> {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_new(directives)
        .with_context(|| format!("log = {directives:?} is not a tracing filter such as \"info\""))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        lines.init();
    } else {
        lines.json().init();
    }
    Ok(())
}

/// A line for the user. Whoever has closed the pipe has heard enough; a server goes on without them.
fn say(line: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout(), "{}", line.as_ref());
}
