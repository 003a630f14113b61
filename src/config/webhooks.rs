//! `webhooks`: where messages may be sent, how many webhooks there may be, and how long receivers are borne with.

use anyhow::{Context, bail};
use orchestra_actors::WebhookRules;
use orchestra_events::webhook::Patience;
use orchestra_runtime::egress::Network;
use serde::{Deserialize, Serialize};

use super::parse_duration;

/// Most networks that are opened.
const MAX_NETWORKS: usize = 100;
/// Most webhooks that one team may be given: each reads the log.
const MAX_WEBHOOKS: usize = 1_000;

/// `webhooks`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhooksSection {
    /// Networks that messages may go into although they are private, reserved or the like, and unencrypted too.
    pub networks: Vec<String>,
    /// Webhooks of one team, and of the operators.
    pub max: usize,
    /// How long a receiver may take to answer.
    pub timeout: String,
    /// The second attempt comes after a wait drawn from zero to this; each further ceiling is six times as high.
    pub first_wait: String,
    /// Counted from the first attempt at a message, the last one comes after this.
    pub give_up: String,
    /// With nothing taken for so long, the webhook is disabled.
    pub disable_after: String,
}

impl Default for WebhooksSection {
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            max: 20,
            timeout: "15s".to_owned(),
            first_wait: "10s".to_owned(),
            give_up: "72h".to_owned(),
            disable_after: "120h".to_owned(),
        }
    }
}

impl WebhooksSection {
    /// What the operator says, read.
    pub fn rules(&self) -> anyhow::Result<WebhookRules> {
        if self.networks.len() > MAX_NETWORKS {
            bail!("webhooks.networks has at most {MAX_NETWORKS} entries");
        }
        if self.max > MAX_WEBHOOKS {
            bail!("webhooks.max is at most {MAX_WEBHOOKS}");
        }
        let read = |name: &str, text: &str| match parse_duration(text) {
            Ok(duration) if duration.is_zero() => bail!("webhooks.{name} is above 0"),
            Ok(duration) => Ok(duration),
            Err(error) => Err(error).with_context(|| format!("in webhooks.{name}")),
        };
        let networks: Result<Vec<Network>, _> = self.networks.iter().map(|text| text.parse()).collect();
        Ok(WebhookRules {
            networks: networks.context("in webhooks.networks")?,
            most: self.max,
            timeout: read("timeout", &self.timeout)?,
            patience: Patience {
                first_wait: read("first_wait", &self.first_wait)?,
                give_up: read("give_up", &self.give_up)?,
                disable_after: read("disable_after", &self.disable_after)?,
            },
        })
    }
}
