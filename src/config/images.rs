//! `images` and what teams say about them: which images there are, where they come from, and who may use which.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use orchestra_actors::images::{ImageRules, TeamImages};
use orchestra_runtime::image::{Credentials, ImageStore, Keep, Named, Supply, is_reference};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{Config, parse_bytes, parse_duration};

/// `images`. What is not one of its own keys is the name of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImagesSection {
    /// The references that a task may name, as patterns. None: tasks name images by their names here.
    #[serde(default)]
    pub allow: Vec<String>,
    /// What no task has used for so long is removed, of what tasks have named by reference.
    pub keep: String,
    /// Bytes of all of them.
    pub max_size: String,
    /// A `config.json` of docker with the logins of registries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_config: Option<PathBuf>,
    /// Images by the name that they have here.
    #[serde(flatten)]
    pub named: BTreeMap<String, ImageSection>,
}

/// `images.NAME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSection {
    /// Where it is pulled from.
    pub reference: String,
    /// Who logs in to its registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The variable that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,
}

impl Default for ImagesSection {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            keep: "168h".to_owned(),
            max_size: "50GiB".to_owned(),
            docker_config: None,
            named: BTreeMap::new(),
        }
    }
}

impl ImagesSection {
    /// What is kept of the images that tasks have named by reference.
    pub fn keep(&self) -> anyhow::Result<Keep> {
        let max_age = parse_duration(&self.keep).context("in images.keep")?;
        let max_bytes = parse_bytes(&self.max_size).context("in images.max_size")?;
        Ok(Keep { max_age, max_bytes })
    }

    fn credentials(&self) -> Credentials {
        self.docker_config.clone().map_or(Credentials::Anonymous, Credentials::DockerConfig)
    }

    fn named(&self) -> anyhow::Result<BTreeMap<String, Named>> {
        let mut named = BTreeMap::new();
        for (name, image) in &self.named {
            if !is_reference(&image.reference) {
                bail!("images.{name}.reference is registry/name:tag or registry/name@sha256:…");
            }
            if let Some(fault) = Supply::fault_of(&image.reference) {
                bail!("images.{name}.reference: {fault}");
            }
            let password = image.password_env.as_ref().and_then(|variable| std::env::var(variable).ok());
            let credentials = match (&image.username, password) {
                (Some(username), Some(password)) => {
                    Credentials::Login { username: username.clone(), password: SecretString::from(password) }
                }
                (Some(_), None) => {
                    bail!("images.{name}.username needs password_env, and that variable a password")
                }
                (None, _) => self.credentials(),
            };
            named.insert(name.clone(), Named { reference: image.reference.clone(), credentials });
        }
        Ok(named)
    }
}

impl Config {
    /// Where images come from.
    pub fn supply(&self) -> anyhow::Result<Supply> {
        let store = ImageStore::new(self.images_dir());
        Ok(Supply::new(store, self.images.named()?, self.images.credentials(), self.images.keep()?))
    }

    /// Which images the teams' tasks may use.
    pub fn image_rules(&self) -> anyhow::Result<ImageRules> {
        let teams = self.teams.iter().map(|(team, section)| {
            (team.clone(), TeamImages { default: section.image.clone(), allowed: section.images.clone() })
        });
        Ok(ImageRules::new(self.sandbox.image.clone(), &self.images.allow, teams.collect())?)
    }

    /// Whether the sections about images do.
    pub(super) fn check_images(&self) -> anyhow::Result<()> {
        self.images.keep()?;
        self.image_rules()?;
        for name in self.images.named.keys() {
            if ImageStore::fault_of(name).is_some() {
                bail!("images.{name}: a name has lower-case letters, digits, '.', '_' and '-'");
            }
        }
        // A password's variable is the server's: other verbs load the same file without it.
        let broken =
            self.images.named.iter().find_map(|(name, image)| Some((name, Supply::fault_of(&image.reference)?)));
        match broken {
            Some((name, fault)) => bail!("images.{name}.reference: {fault}"),
            None => Ok(()),
        }
    }
}
