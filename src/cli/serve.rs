//! `orchestra serve`: the server.

use std::process::ExitCode;

use secrecy::ExposeSecret;

use super::{ConfigArguments, log, say};
use crate::wiring;

/// Serve REST, live streams and the dashboard, and work on tasks
#[derive(clap::Args)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigArguments,
    /// Address and port
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The event store: sqlite
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// Print the effective configuration with the source of each value, and end
    #[arg(long)]
    print_config: bool,
}

impl Serve {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let listen = self.listen.map(|listen| ("listen", listen));
        let store = self.store.map(|store| ("store", store));
        let loaded = self.config.load(listen.into_iter().chain(store).collect())?;
        if self.print_config {
            say(loaded.print()?);
            return Ok(ExitCode::SUCCESS);
        }
        log(&loaded.config.log)?;
        let server = wiring::start(&loaded.config).await?;
        if let Some(key) = &server.admin_key {
            say("This is the first start. The admin key, shown once:");
            say(format!("  {}", key.expose_secret()));
        }
        say(format!("The log is signed by the key {}", server.signing_key()));
        say(format!("Orchestra listens on {}", server.url()));
        server.until_asked_to_end().await?;
        Ok(ExitCode::SUCCESS)
    }
}
