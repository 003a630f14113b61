//! `orchestra image`: the file systems that sandboxes start from.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use orchestra_runtime::image::{AgentVersion, BuildOptions, Image as Built, ImageStore, Progress};

use super::{ConfigArguments, say};

/// Make, fetch and list sandbox images
#[derive(Subcommand)]
pub enum Image {
    /// Make an image from Debian, with git, node, npm, jq, ripgrep and python3; needs root and takes minutes
    Build {
        /// What to call it
        #[arg(long, default_value = "default")]
        name: String,
        /// A Debian package on top; may be given more than once
        #[arg(long = "package", value_name = "PACKAGE")]
        packages: Vec<String>,
        /// Command line agents to put into it, from the npm registry: codex, opencode, claude-code, each also as NAME@VERSION
        #[arg(long = "with", value_name = "AGENT", value_delimiter = ',')]
        agents: Vec<AgentVersion>,
        /// An image to derive it from, instead of installing Debian; takes seconds and next to no space
        #[arg(long, value_name = "IMAGE", requires = "agents", conflicts_with = "packages")]
        from: Option<String>,
        #[command(flatten)]
        folder: Folder,
    },
    /// Fetch an image from an OCI registry
    Pull {
        /// registry/name:tag or registry/name@sha256:…
        reference: String,
        /// What to call it here
        #[arg(long, default_value = "default")]
        name: String,
        #[command(flatten)]
        folder: Folder,
    },
    /// The images on this machine
    List {
        #[command(flatten)]
        folder: Folder,
    },
}

/// Which folder of images.
#[derive(clap::Args)]
pub struct Folder {
    /// The folder of images, instead of the configured one
    #[arg(long, value_name = "DIR", env = "ORCHESTRA_IMAGES")]
    images: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArguments,
}

impl Folder {
    fn store(self) -> anyhow::Result<ImageStore> {
        let folder = match self.images {
            Some(images) => images,
            None => self.config.load(Vec::new())?.config.images_dir(),
        };
        Ok(ImageStore::new(folder))
    }
}

/// Where images lie when nobody says: in the user's cache.
pub fn default_folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        home.map_or_else(|| PathBuf::from("/var/cache"), |home| home.join(".cache"))
    };
    cache.unwrap_or_else(home).join("orchestra/images")
}

/// A bar over the whole of a build or a pull.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(1_000);
    if let Ok(style) = ProgressStyle::with_template("{bar:32.cyan/dim} {percent:>3} % {prefix} {wide_msg:.dim}") {
        bar.set_style(style);
    }
    bar
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction between 0 and 1, clamped")]
fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_position((progress.fraction.clamp(0.0, 1.0) * 1_000.0) as u64);
    bar.set_prefix(progress.phase);
    bar.set_message(progress.detail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>());
}

async fn build(store: ImageStore, options: BuildOptions) -> anyhow::Result<Built> {
    let bar = bar();
    let shown = bar.clone();
    let built = tokio::task::spawn_blocking(move || store.build(&options, &|progress| show(&shown, progress))).await;
    bar.finish_and_clear();
    Ok(built.context("the build died")??)
}

/// Makes the default image, if it is not there.
pub async fn ensure(folder: &Path) -> anyhow::Result<()> {
    let store = ImageStore::new(folder.to_path_buf());
    if store.resolve("default").is_err() {
        say("The sandbox image is made once; this takes some minutes.");
        describe(&build(store, BuildOptions { name: "default".to_owned(), ..BuildOptions::default() }).await?);
    }
    Ok(())
}

fn describe(image: &Built) {
    let megabytes = image.manifest.bytes / 1_000_000;
    say(format!(
        "{:<20} {megabytes:>6} MB  {:>7} files  {}",
        image.name, image.manifest.entries, image.manifest.source
    ));
}

impl Image {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Build { name, packages, agents, from, folder } => {
                describe(&build(folder.store()?, BuildOptions { name, packages, from, agents }).await?);
            }
            Self::Pull { reference, name, folder } => {
                let bar = bar();
                let shown = bar.clone();
                let pulled = folder.store()?.pull(&reference, &name, &move |progress| show(&shown, progress)).await;
                bar.finish_and_clear();
                describe(&pulled?);
            }
            Self::List { folder } => {
                let images = folder.store()?.list()?;
                if images.is_empty() {
                    say("There are no images; make one with `orchestra image build`.");
                }
                images.iter().for_each(describe);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
