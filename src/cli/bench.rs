//! `orchestra bench`: a data folder as large as a company's, and how fast a server over it answers.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Subcommand;
use orchestra_events::projections::ReadModels;
use orchestra_events::store::sqlite::SqliteStore;

use super::{ConfigArguments, ServerArguments, say};
use crate::bench::{load, seed};

/// Measure this machine with as many tasks as a company has
#[derive(Subcommand)]
pub enum Bench {
    /// Fill an empty data folder with finished tasks
    Seed {
        /// How many tasks
        #[arg(long, default_value_t = 1_000_000)]
        tasks: u64,
        /// Of how many teams
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=seed::MAX_TEAMS))]
        teams: u64,
        /// Over how many days until now
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=seed::MAX_DAYS))]
        days: u64,
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Ask a running server for tasks, lists, usage and deep pages, and say how long it took
    Api {
        /// How many seconds each question is asked
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
        /// The server's process, whose processor time is then told per request
        #[arg(long)]
        pid: Option<u32>,
        #[command(flatten)]
        server: ServerArguments,
    },
}

impl Bench {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Seed { tasks, teams, days, config } => {
                let data = config.load(Vec::new())?.config.data_dir;
                std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
                let log = data.join("events.db");
                ensure!(!log.exists(), "{} exists: seed an empty folder, not somebody's", log.display());
                let store = SqliteStore::open(log).context("cannot open the event store")?;
                let read = ReadModels::open(&data.join("read.db")).context("cannot open the read models")?;
                seed::seed(store, read, seed::Plan { tasks, teams, days }, say).await?;
            }
            Self::Api { seconds, pid, server } => {
                let client = server.client()?;
                load::run(&client, seconds, pid, say).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
