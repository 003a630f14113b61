//! `orchestra image`: the file systems that sandboxes start from.

use std::collections::{HashMap, HashSet};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use orchestra_runtime::image::{
    AgentVersion, BuildOptions, Credentials, Image as Built, ImageStore, Keep, NpmPackage, Progress,
};
use secrecy::SecretString;

use super::{ConfigArguments, say};
use crate::config::Config;

/// Make, fetch, list and remove sandbox images
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
        /// A tool of the npm registry, with what it depends on, as NAME@VERSION; none of its scripts is run. May be given more
        /// than once
        #[arg(long = "npm", value_name = "NAME@VERSION")]
        npm: Vec<NpmPackage>,
        /// Command line agents to put into it, from the npm registry: codex, opencode, claude-code, each also as NAME@VERSION
        #[arg(long = "with", value_name = "AGENT", value_delimiter = ',')]
        agents: Vec<AgentVersion>,
        /// Have it trust the certificate authorities that this machine's administrator has added
        #[arg(long)]
        host_ca: bool,
        /// An image to derive it from, instead of installing Debian; takes seconds and next to no space
        #[arg(long, value_name = "IMAGE", conflicts_with = "packages")]
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
        /// Who logs in to the registry; the password is in ORCHESTRA_REGISTRY_PASSWORD, or comes with --password-stdin
        #[arg(long, value_name = "USER")]
        username: Option<String>,
        /// Read the password from standard input
        #[arg(long, requires = "username")]
        password_stdin: bool,
        /// A config.json of docker with the registry's login, instead of the configured one
        #[arg(long, value_name = "FILE", conflicts_with = "username")]
        docker_config: Option<PathBuf>,
        #[command(flatten)]
        folder: Folder,
    },
    /// Take an image from a file: an OCI layout (archive or folder), or what docker save writes
    Load {
        /// The archive or folder
        path: PathBuf,
        /// What to call it here
        #[arg(long, default_value = "default")]
        name: String,
        /// Which image, where there are several
        #[arg(long)]
        tag: Option<String>,
        #[command(flatten)]
        folder: Folder,
    },
    /// The images on this machine
    List {
        #[command(flatten)]
        folder: Folder,
    },
    /// What is known of an image, as JSON
    Inspect {
        /// Its name, or the reference that a task has pulled it by
        name: String,
        #[command(flatten)]
        folder: Folder,
    },
    /// Take an image's name away, and its files once nothing stands on them
    Remove {
        /// Its name
        name: String,
        /// Also when the configuration speaks of it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        folder: Folder,
    },
    /// Remove old versions, what tasks have pulled and no longer use, and what was left half done
    Prune {
        /// Also what tasks have pulled lately
        #[arg(long)]
        all: bool,
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

    /// The configuration too, for what has to know it.
    fn with_config(self) -> anyhow::Result<(ImageStore, Config)> {
        let config = self.config.load(Vec::new())?.config;
        Ok((ImageStore::new(self.images.unwrap_or_else(|| config.images_dir())), config))
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

/// A bar over the whole of a build or a pull, and under it one for each layer that is on its way.
struct Bars {
    all: MultiProgress,
    whole: ProgressBar,
    parts: Mutex<HashMap<String, ProgressBar>>,
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

impl Bars {
    fn new() -> Arc<Self> {
        let all = MultiProgress::new();
        let whole = all.add(ProgressBar::new(1_000));
        let whole = styled(whole, "{bar:32.cyan/dim} {percent:>3} % {prefix} {wide_msg:.dim}");
        Arc::new(Self { all, whole, parts: Mutex::default() })
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction between 0 and 1, clamped")]
    fn show(&self, progress: Progress) {
        self.whole.set_position((progress.fraction.clamp(0.0, 1.0) * 1_000.0) as u64);
        self.whole.set_prefix(progress.phase);
        let detail = progress.detail.chars().map(|c| if c.is_control() { ' ' } else { c });
        self.whole.set_message(detail.collect::<String>());
        let Some(part) = progress.part else { return };
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = parts.entry(part.name.clone()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(part.total));
            bar.set_prefix(part.name);
            styled(bar, "  {prefix} {bar:24.blue/dim} {bytes:>10} of {total_bytes:>10}")
        });
        bar.set_position(part.done);
        if part.done >= part.total {
            bar.finish_and_clear();
        }
    }

    fn clear(&self) {
        let _ = self.all.clear();
    }
}

async fn build(store: ImageStore, options: BuildOptions) -> anyhow::Result<Built> {
    let bars = Bars::new();
    let shown = Arc::clone(&bars);
    let built = tokio::task::spawn_blocking(move || store.build(&options, &|progress| shown.show(progress))).await;
    bars.clear();
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

/// What is known of the registry's login: a password never stands on a command line, where everybody can read it.
fn credentials(username: Option<String>, from_stdin: bool, file: Option<PathBuf>) -> anyhow::Result<Credentials> {
    /// Longest password or token.
    const MAX_PASSWORD: u64 = 64 << 10;
    let Some(username) = username else {
        return Ok(file.map_or(Credentials::Anonymous, Credentials::DockerConfig));
    };
    let password = if from_stdin {
        if std::io::stdin().is_terminal() {
            say("Type the password, then press Enter and Ctrl-D.");
        }
        let mut text = String::new();
        std::io::stdin().take(MAX_PASSWORD).read_to_string(&mut text).context("cannot read the password")?;
        SecretString::from(text.trim_end_matches(['\r', '\n']).to_owned())
    } else {
        let variable = std::env::var("ORCHESTRA_REGISTRY_PASSWORD");
        SecretString::from(variable.context("--username needs --password-stdin, or ORCHESTRA_REGISTRY_PASSWORD")?)
    };
    Ok(Credentials::Login { username, password })
}

/// How long ago, in the largest unit that fits.
fn age(created: &str) -> String {
    let Ok(created) = created.parse::<Timestamp>() else { return "?".to_owned() };
    let seconds = Timestamp::now().duration_since(created).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn list(store: &ImageStore) -> anyhow::Result<()> {
    let images = store.list()?;
    if images.is_empty() {
        say("There are no images; make one with `orchestra image build`.");
        return Ok(());
    }
    let holders = store.holders();
    let mut table = comfy_table::Table::new();
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_header(["NAME", "SIZE", "AGE", "DIGEST", "AGENTS", "USED BY", "FROM"]);
    for image in images {
        let manifest = &image.manifest;
        let identity = manifest.identity();
        let (kind, hex) = identity.split_once(':').unwrap_or(("", &identity));
        let agents: Vec<String> = manifest.agents.iter().map(|(agent, version)| format!("{agent}@{version}")).collect();
        let used = match holders.get(&image.rootfs).copied().unwrap_or(0) {
            0 => "-".to_owned(),
            1 => "1 sandbox".to_owned(),
            count => format!("{count} sandboxes"),
        };
        table.add_row([
            image.name.clone(),
            format!("{} MB", manifest.bytes / 1_000_000),
            age(&manifest.created),
            format!("{kind}:{}", &hex[..hex.len().min(12)]),
            if agents.is_empty() { "-".to_owned() } else { agents.join(" ") },
            used,
            manifest.reference.clone().unwrap_or_else(|| manifest.source.clone()),
        ]);
    }
    say(table.trim_fmt());
    Ok(())
}

fn inspect(store: &ImageStore, name: &str) -> anyhow::Result<()> {
    let registries = store.registries(name)?;
    let mut image = store.find(name)?;
    image.manifest.registries = registries;
    let mut shown = serde_json::to_value(&image.manifest)?;
    shown["name"] = image.name.into();
    shown["identity"] = image.manifest.identity().into();
    shown["usedBy"] = store.holders().get(&image.rootfs).copied().unwrap_or(0).into();
    shown["rootfs"] = image.rootfs.display().to_string().into();
    say(serde_json::to_string_pretty(&shown)?);
    Ok(())
}

/// What of the configuration speaks of this image.
fn spoken_of(config: &Config, name: &str) -> Option<String> {
    if config.sandbox.image == name {
        return Some("sandbox.image".to_owned());
    }
    if config.images.named.contains_key(name) {
        return Some(format!("images.{name}"));
    }
    let team = config.teams.iter().find(|(_, team)| team.image.as_deref() == Some(name));
    team.map(|(team, _)| format!("teams.{team}.image"))
}

async fn collect(store: ImageStore, keep: Keep) -> anyhow::Result<()> {
    let collected = tokio::task::spawn_blocking(move || store.collect(&keep, &HashSet::new()));
    let collected = collected.await.context("the collection died")??;
    for image in &collected.images {
        say(format!("removed {image}"));
    }
    say(format!("{} images and {} layers were removed.", collected.images.len(), collected.layers));
    Ok(())
}

impl Image {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Build { name, packages, npm, agents, host_ca, from, folder } => {
                let options = BuildOptions { name, packages, from, agents, npm, host_authorities: host_ca };
                if options.from.is_some() && options.agents.is_empty() && options.npm.is_empty() && !host_ca {
                    bail!("--from needs something to put on top: --with, --npm or --host-ca");
                }
                describe(&build(folder.store()?, options).await?);
            }
            Self::Pull { reference, name, username, password_stdin, docker_config, folder } => {
                let (store, config) = folder.with_config()?;
                let file = docker_config.or(config.images.docker_config);
                let credentials = credentials(username, password_stdin, file)?;
                let bars = Bars::new();
                let shown = Arc::clone(&bars);
                let pulled = store.pull(&reference, &name, &credentials, &move |progress| shown.show(progress)).await;
                bars.clear();
                describe(&pulled?);
            }
            Self::Load { path, name, tag, folder } => {
                let bars = Bars::new();
                let shown = Arc::clone(&bars);
                let store = folder.store()?;
                let loaded = store.load(&path, tag.as_deref(), &name, &move |progress| shown.show(progress)).await;
                bars.clear();
                describe(&loaded?);
            }
            Self::List { folder } => list(&folder.store()?)?,
            Self::Inspect { name, folder } => {
                let store = folder.store()?;
                tokio::task::spawn_blocking(move || inspect(&store, &name)).await.context("the look died")??;
            }
            Self::Remove { name, force, folder } => {
                let (store, config) = folder.with_config()?;
                if let Some(key) = spoken_of(&config, &name).filter(|_| !force) {
                    bail!("{key} is {name}; tasks need it. Give --force to remove it all the same");
                }
                store.remove(&name)?;
                collect(store, config.images.keep()?).await?;
            }
            Self::Prune { all, folder } => {
                let (store, config) = folder.with_config()?;
                let nothing = Keep { max_age: Duration::ZERO, max_bytes: 0 };
                collect(store, if all { nothing } else { config.images.keep()? }).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
