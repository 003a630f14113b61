//! `egress`: which hosts sandboxes may connect to, over networks that nobody else may, and how much.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use orchestra_actors::workshop::egress::{EgressRules, HostLists};
use orchestra_runtime::egress::{Entry, Limits, Network, PACKAGE_REGISTRIES, read_list};
use orchestra_runtime::image::ImageStore;
use serde::{Deserialize, Serialize};

use super::{TeamSection, parse_bytes, parse_duration};

/// Most networks that are opened.
const MAX_NETWORKS: usize = 100;

/// Most connections that one sandbox may be given.
const MAX_CONNECTIONS: usize = 4_096;

/// `egress`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressSection {
    /// The hosts of tasks that ask for none: names, `*.example.com`, either with a port, and the word
    /// `package-registries`. Empty: none.
    pub allow: Vec<String>,
    /// What tasks may ask for besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<Vec<String>>,
    /// Networks that names may lead into although they are private, reserved or the like, such as `10.1.0.0/16`.
    pub networks: Vec<String>,
    /// What a task may move, in each direction.
    pub max_bytes: String,
    /// Connections of one sandbox at once.
    pub max_connections: usize,
    /// The longest silence on a connection.
    pub idle_timeout: String,
}

/// `teams.NAME.egress`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeamEgress {
    /// In place of `egress.allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// In place of `egress.permit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<Vec<String>>,
}

impl TeamEgress {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.allow.is_none() && self.permit.is_none()
    }
}

impl Default for EgressSection {
    fn default() -> Self {
        Self {
            allow: vec![PACKAGE_REGISTRIES.to_owned()],
            permit: None,
            networks: Vec::new(),
            max_bytes: "10GiB".to_owned(),
            max_connections: 256,
            idle_timeout: "2m".to_owned(),
        }
    }
}

fn entries(path: &str, texts: &[String]) -> anyhow::Result<Vec<Entry>> {
    read_list(texts).map_err(|(_, error)| error).with_context(|| format!("in {path}"))
}

fn some_entries(path: &str, texts: Option<&Vec<String>>) -> anyhow::Result<Option<Vec<Entry>>> {
    texts.map(|texts| entries(path, texts)).transpose()
}

impl EgressSection {
    /// What the operator says, read.
    pub fn rules(&self, teams: &BTreeMap<String, TeamSection>, images: &Path) -> anyhow::Result<EgressRules> {
        let mut own = BTreeMap::new();
        for (team, TeamSection { egress, .. }) in teams.iter().filter(|(_, section)| !section.egress.is_empty()) {
            let allow = some_entries(&format!("teams.{team}.egress.allow"), egress.allow.as_ref())?;
            let permit = some_entries(&format!("teams.{team}.egress.permit"), egress.permit.as_ref())?;
            own.insert(team.clone(), (allow, permit));
        }
        if self.networks.len() > MAX_NETWORKS {
            bail!("egress.networks has at most {MAX_NETWORKS} entries");
        }
        let networks: Result<Vec<Network>, _> = self.networks.iter().map(|text| text.parse()).collect();
        if self.max_connections == 0 || self.max_connections > MAX_CONNECTIONS {
            bail!("egress.max_connections is at least 1 and at most {MAX_CONNECTIONS}");
        }
        let task_bytes = parse_bytes(&self.max_bytes).context("in egress.max_bytes")?;
        let idle = parse_duration(&self.idle_timeout).context("in egress.idle_timeout")?;
        if task_bytes == 0 || idle.is_zero() {
            bail!("egress.max_bytes and egress.idle_timeout are above 0; an empty egress.allow closes the way out");
        }
        let usual = Limits::default();
        let store = ImageStore::new(images.to_owned());
        Ok(EgressRules {
            server: HostLists {
                allow: entries("egress.allow", &self.allow)?,
                permit: some_entries("egress.permit", self.permit.as_ref())?,
            },
            teams: own,
            networks: networks.context("in egress.networks")?,
            limits: Limits {
                connections: self.max_connections,
                connection_bytes: usual.connection_bytes.min(task_bytes),
                task_bytes,
                idle,
                ..usual
            },
            // An image that is not there has none; its sandbox does not start either.
            registries: Arc::new(move |image| store.registries(image).unwrap_or_default()),
            ..EgressRules::default()
        })
    }
}
