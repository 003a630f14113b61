//! `orchestra projections`: throw the read models away and fold them again.

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use orchestra_events::projections::ReadModels;
use orchestra_events::store::sqlite::SqliteStore;

use super::{ConfigArguments, say};

/// Work on the read models
#[derive(Subcommand)]
pub enum Projections {
    /// Throw the read models away and fold them again from the log; the server must not run
    Rebuild {
        #[command(flatten)]
        config: ConfigArguments,
    },
}

impl Projections {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let Self::Rebuild { config } = self;
        let data = config.load(Vec::new())?.config.data_dir;
        let store = SqliteStore::open(data.join("events.db")).context("cannot open the event store")?;
        let read = ReadModels::open(&data.join("read.db")).context("cannot open the read models")?;
        let position = read.rebuild(&store).await?;
        say(format!("folded up to position {}", position.0));
        Ok(ExitCode::SUCCESS)
    }
}
