//! `orchestra scripted-model`: a provider on loopback that says what a script says.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::scripted_model::{read_script, serve};

/// Serve Anthropic Messages, OpenAI Chat Completions and OpenAI Responses from a script
#[derive(clap::Args)]
pub struct ScriptedModel {
    /// Address and port, on loopback
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// The script; see docs/scripted-model.md
    #[arg(long, value_name = "FILE")]
    script: PathBuf,
    /// Where each request is written down
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

impl ScriptedModel {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        serve(&self.listen, read_script(&self.script)?, self.log).await?;
        Ok(ExitCode::SUCCESS)
    }
}
