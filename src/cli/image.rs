//! `orchestra image`: the file systems that sandboxes start from.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use orchestra_runtime::image::ImageStore;

use super::{ConfigArguments, say};

/// Make, fetch and list sandbox images
#[derive(Subcommand)]
pub enum Image {
    /// The images on this machine
    List {
        #[command(flatten)]
        config: ConfigArguments,
    },
}

/// Where images lie when nobody says: in the user's cache.
pub fn default_folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || {
        std::env::var_os("HOME").map_or_else(|| PathBuf::from("/var/cache"), |home| PathBuf::from(home).join(".cache"))
    };
    cache.unwrap_or_else(home).join("orchestra/images")
}

/// Makes the default image, if it is not there.
pub async fn ensure(folder: &Path) -> anyhow::Result<()> {
    ImageStore::new(folder.to_path_buf()).resolve("default")?;
    Ok(())
}

impl Image {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let Self::List { config } = self;
        let folder = config.load(Vec::new())?.config.images_dir();
        for image in ImageStore::new(folder).list()? {
            say(format!("{:<20} {:>6} MB  {}", image.name, image.manifest.bytes / 1_000_000, image.manifest.source));
        }
        Ok(ExitCode::SUCCESS)
    }
}
