//! `orchestra doctor`: what this machine lacks, and how to mend it.

use std::process::{Command, ExitCode};

use orchestra_runtime::git::version;
use orchestra_runtime::image::ImageStore;
use orchestra_runtime::sandbox::{Check, checks};

use super::{ConfigArguments, say};
use crate::config::{Config, parse_bytes};

/// Check kernel, control groups, image, git, disk and clock
#[derive(clap::Args)]
pub struct Doctor {
    #[command(flatten)]
    config: ConfigArguments,
}

/// A clock before this has never been set.
const EARLIEST: i64 = 1_767_225_600;
/// Free disk below which tasks are likely to fail.
const LEAST_FREE: u64 = 2 << 30;

impl Doctor {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = self.config.load(Vec::new())?.config;
        let mut all = checks();
        all.extend([image(&config), git(&config), disk(&config), clock()]);
        for check in &all {
            say(format!("{} {:<24} {}", if check.ok { "ok  " } else { "MEND" }, check.name, check.detail));
            if !check.ok {
                say(format!("       {}", check.remedy));
            }
        }
        let missing = all.iter().filter(|check| !check.ok).count();
        if missing > 0 {
            say(format!("{missing} of {} checks need mending", all.len()));
            return Ok(ExitCode::FAILURE);
        }
        say("everything is in place");
        Ok(ExitCode::SUCCESS)
    }
}

fn check(name: &'static str, outcome: Result<String, String>, remedy: &'static str) -> Check {
    let (ok, detail) = match outcome {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    Check { name, ok, detail, remedy }
}

fn image(config: &Config) -> Check {
    let found = ImageStore::new(config.images_dir()).resolve(&config.sandbox.image);
    let outcome = found.map(|path| path.display().to_string()).map_err(|error| error.to_string());
    check("sandbox image", outcome, "Run `orchestra image build`.")
}

/// Git is a library here; what can be missing are the repositories of a local forge.
fn git(config: &Config) -> Check {
    let missing: Vec<_> = config
        .forges
        .iter()
        .filter_map(|(name, forge)| Some((name, forge.root.as_ref()?)))
        .filter(|(_, root)| !root.is_dir())
        .map(|(name, root)| format!("forge {name}: {} is not a folder", root.display()))
        .collect();
    let outcome = if missing.is_empty() {
        Ok(format!("{}, {} forges configured", version(), config.forges.len()))
    } else {
        Err(missing.join("; "))
    };
    check("git", outcome, "Create the folder, or correct forges.NAME.root.")
}

fn disk(config: &Config) -> Check {
    let wanted = parse_bytes(&config.sandbox.disk).unwrap_or(LEAST_FREE).min(LEAST_FREE);
    // `df` follows every file system's own idea of what is available to this user.
    let existing = config.data_dir.ancestors().find(|path| path.exists());
    let output = existing.and_then(|path| Command::new("df").arg("-B1").arg("--output=avail").arg(path).output().ok());
    let free = output.and_then(|output| {
        String::from_utf8_lossy(&output.stdout).lines().nth(1).and_then(|line| line.trim().parse::<u64>().ok())
    });
    let outcome = match free {
        Some(free) if free >= wanted => Ok(format!("{} GiB free for {}", free >> 30, config.data_dir.display())),
        Some(free) => Err(format!("{} MiB free for {}", free >> 20, config.data_dir.display())),
        None => Err("the free disk cannot be found out".to_owned()),
    };
    check("disk", outcome, "Free some space, or set data_dir to a larger disk.")
}

fn clock() -> Check {
    let now = jiff::Timestamp::now();
    let outcome = if now.as_second() > EARLIEST { Ok(now.to_string()) } else { Err(now.to_string()) };
    check("clock", outcome, "Set the clock; budgets and certificates depend on it.")
}
