//! `orchestra templates`: what pull requests, commits and dashboard rows would look like with an operator's own templates.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use orchestra_runtime::texts::{Text, TextError, Texts, Tried};
use orchestra_web::fragments::Fragments;

use super::{ConfigArguments, say};

/// See and try the templates of pull requests, commits, comments and dashboard rows
#[derive(Subcommand)]
pub enum Templates {
    /// Render every template with every sample; exits 1 if one fails
    Check(Check),
}

/// Render every template with every sample
#[derive(clap::Args)]
pub struct Check {
    /// The folder of templates (default: templates_dir of the configuration)
    dir: Option<PathBuf>,
    /// Print this template alone, such as pull_request_body.md
    #[arg(long, value_name = "NAME")]
    show: Option<String>,
    #[command(flatten)]
    config: ConfigArguments,
}

impl Templates {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(check) => check.run(),
        }
    }
}

impl Check {
    fn run(self) -> anyhow::Result<ExitCode> {
        // A folder that is named is checked without a configuration, which need not be on this machine.
        let dir = match self.dir {
            Some(dir) if !dir.is_dir() => bail!("{} is no folder", dir.display()),
            Some(dir) => Some(dir),
            None => {
                self.config
                    .load(Vec::new())
                    .context("no folder is named, and the configuration does not load")?
                    .config
                    .templates_dir
            }
        };
        let shown = match &self.show {
            None => None,
            Some(name) => {
                let known = Text::ALL.map(Text::file).join(", ");
                let text = Text::ALL.into_iter().find(|text| text.file() == name);
                Some(text.with_context(|| format!("no template is called {name:?}; known are {known}"))?)
            }
        };
        let mut wrong = Vec::new();
        match Texts::read(dir.as_ref().map(|dir| dir.join("texts")).as_deref()) {
            Err(error) => wrong.push(error.to_string()),
            Ok(texts) => {
                for tried in texts.check().iter().filter(|tried| shown.is_none_or(|text| tried.text == text)) {
                    say(shown_as(tried));
                    wrong.extend(tried.outcome.as_ref().err().map(TextError::to_string));
                }
            }
        }
        if let (Some(dir), None) = (&dir, shown) {
            wrong.extend(
                Fragments::check(dir).into_iter().map(|(fragment, error)| format!("{}: {error}", fragment.file())),
            );
        }
        for error in &wrong {
            eprintln!("orchestra: {error}");
        }
        if wrong.is_empty() {
            say(format!("{} are fine.", if dir.is_some() { "The templates" } else { "The built-in templates" }));
            return Ok(ExitCode::SUCCESS);
        }
        Ok(ExitCode::FAILURE)
    }
}

fn shown_as(tried: &Tried) -> String {
    let head = format!("── {} · {} ", tried.text.file(), tried.sample);
    let rule = "─".repeat(80_usize.saturating_sub(head.chars().count()));
    match &tried.outcome {
        Ok(text) => format!("{head}{rule}\n{text}\n"),
        Err(error) => format!("{head}{rule}\nfails: {error}\n"),
    }
}
