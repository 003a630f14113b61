//! `orchestra demo`: one whole task on this machine, from a sentence to a pushed branch.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use secrecy::ExposeSecret;
use serde_json::json;

use super::{log, run, say};
use crate::client::Client;
use crate::config::{self, Config};
use crate::{demo, scripted_model, wiring};

/// One whole task: a repository with a bug, a real sandbox, a model, a pushed branch
#[derive(clap::Args)]
pub struct Demo {
    /// End when the task is over, instead of leaving the dashboard up
    #[arg(long)]
    ci: bool,
    /// Where sandbox images lie
    #[arg(long, value_name = "DIR", env = "ORCHESTRA_IMAGES")]
    images: Option<PathBuf>,
    /// Address and port of the server
    #[arg(long, default_value = "127.0.0.1:7070")]
    listen: String,
}

/// A folder that is removed with everything in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("orchestra-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("orchestra: {} is left behind: {error}", self.0.display());
        }
    }
}

/// Which model speaks: a real one, when its key is at hand.
fn real_model() -> Option<&'static str> {
    let set = |name: &str| std::env::var(name).is_ok_and(|key| !key.is_empty());
    if set("ANTHROPIC_API_KEY") {
        Some("claude-sonnet-4-6")
    } else if set("OPENAI_API_KEY") {
        Some("gpt-5")
    } else {
        None
    }
}

impl Demo {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        if !nix_is_root() {
            bail!("sandboxes need root on this machine; run the demo with sudo");
        }
        log("warn")?;
        let scratch = Scratch::new()?;
        let images = self.images.clone().unwrap_or_else(super::image::default_folder);
        super::image::ensure(&images).await?;
        let forge = scratch.0.join("forge");
        let repository = demo::seed(&forge)?;

        let mut config = Config { listen: self.listen.clone(), data_dir: scratch.0.join("data"), ..Config::default() };
        config.sandbox.images_dir = Some(images);
        config.forges.insert("local".to_owned(), config::local_forge(forge));
        config.default_forge = "local".to_owned();
        let model = match real_model() {
            Some(model) => {
                say(format!("A real model does the work: {model}"));
                model
            }
            None => {
                let (address, provider) =
                    scripted_model::start("127.0.0.1:0", serde_json::from_str(demo::SCRIPT)?, None)?;
                actix_web::rt::spawn(provider);
                let anthropic = config.models.get_mut("anthropic").context("the defaults lack a provider")?;
                anthropic.base_url = format!("http://{address}");
                anthropic.api_key_env = None;
                anthropic.key_required = false;
                say("A scripted model does the work; set ANTHROPIC_API_KEY or OPENAI_API_KEY for a real one.");
                "claude-sonnet-4-6"
            }
        };
        let server = wiring::start(&config).await?;
        let (key, text) = server.temporary_key("demo").await?;
        let client = Client::new(&server.url(), text)?;
        let body = json!({
            "repo": "acme/greeter", "task": demo::TASK, "model": model, "team": "platform", "project": "greeter",
            "taskType": "bug-fix", "budget": { "maxUsd": 0.5 },
        });
        let (id, code) = run::submit(&client, &body, true).await?;
        report(&client, &id, &repository).await?;
        let link = server.sign_in_link(key).context("no link to the dashboard can be made")?;
        say(format!("\nDashboard: {}", link.expose_secret()));
        if self.ci {
            server.stop().await?;
        } else {
            say("Press Ctrl-C to end the demo and remove what it made.");
            server.until_asked_to_end().await?;
        }
        Ok(code)
    }
}

/// What a user has at the end: the diff, the cost, the branch.
async fn report(client: &Client, id: &str, repository: &Path) -> anyhow::Result<()> {
    let task = client.get(&format!("/v1/tasks/{id}")).await?;
    let diff = client.get_bytes(&format!("/v1/tasks/{id}/diff")).await?;
    say("");
    say(String::from_utf8_lossy(&diff));
    say(format!("Branch:    {} in {}", task["branch"].as_str().unwrap_or("-"), repository.display()));
    let usage = &task["usage"];
    say(format!(
        "Cost:      ${} for {} tokens in and {} out",
        usage["costUsd"], usage["inputTokens"], usage["outputTokens"]
    ));
    Ok(())
}

/// Whether this process may do what sandboxes need.
fn nix_is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
