//! `oidc` and `sessions`: who vouches for people, what their groups mean here, and how long they stay signed in.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use orchestra_events::session::Role;
use orchestra_runtime::oidc::{IdentityProvider, OidcClient, OidcConfig, OidcLimits};
use orchestra_web::auth::people::{People, rule};
use orchestra_web::auth::session::MAX_LIFETIME;
use orchestra_web::auth::{GroupRule, Lasting};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{Config, parse_duration};

/// Most rules about groups.
const MAX_RULES: usize = 1_000;

/// `oidc`: without an issuer, people sign in with keys alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcSection {
    /// The provider's issuer identifier, as in its discovery document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// What this server is called there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The variable that holds the client's secret; a public client has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_env: Option<String>,
    /// What the button says after "Sign in with".
    pub label: String,
    /// What is asked for besides `openid`.
    pub scopes: Vec<String>,
    /// Where the groups stand among the claims; dots lead into objects.
    pub groups_claim: String,
    /// What groups mean here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<GroupSection>,
}

/// `oidc.map`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSection {
    /// The group at the provider.
    pub group: String,
    /// The team here; `*` is the whole server.
    pub team: String,
    /// What its members may do there.
    pub role: Role,
}

/// `sessions`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionsSection {
    /// How long a person stays signed in at the most.
    pub lifetime: String,
    /// How long without using the dashboard.
    pub idle: String,
}

impl Default for OidcSection {
    fn default() -> Self {
        Self {
            issuer: None,
            client_id: None,
            client_secret_env: None,
            label: "single sign-on".to_owned(),
            scopes: vec!["profile".to_owned(), "email".to_owned()],
            groups_claim: "groups".to_owned(),
            map: Vec::new(),
        }
    }
}

impl Default for SessionsSection {
    fn default() -> Self {
        Self { lifetime: "12h".to_owned(), idle: "2h".to_owned() }
    }
}

impl SessionsSection {
    /// The same, found good.
    pub fn lasting(&self) -> anyhow::Result<Lasting> {
        let lifetime = parse_duration(&self.lifetime).context("in sessions.lifetime")?;
        let idle = parse_duration(&self.idle).context("in sessions.idle")?;
        if lifetime < Duration::from_secs(60) || lifetime > MAX_LIFETIME {
            bail!("sessions.lifetime is at least 1m and at most {} h", MAX_LIFETIME.as_secs() / 3_600);
        }
        if idle < Duration::from_secs(60) {
            bail!("sessions.idle is at least 1m");
        }
        Ok(Lasting { lifetime, idle })
    }
}

impl OidcSection {
    fn rules(&self) -> anyhow::Result<Vec<GroupRule>> {
        if self.map.len() > MAX_RULES {
            bail!("oidc.map has at most {MAX_RULES} rules");
        }
        let mut rules = Vec::new();
        for GroupSection { group, team, role } in &self.map {
            let within = || format!("in oidc.map, group {group:?}");
            let rule = rule(group, team, *role).map_err(anyhow::Error::msg).with_context(within)?;
            if let Some(team) = &rule.membership.team {
                // The rule for names of teams is the ledger's.
                format!("team:{team}").parse::<orchestra_events::ledger::Scope>().with_context(within)?;
            }
            rules.push(rule);
        }
        Ok(rules)
    }

    /// The client's configuration, if there is a provider.
    fn client(&self) -> anyhow::Result<Option<OidcConfig>> {
        let Some(issuer) = self.issuer.clone().filter(|issuer| !issuer.is_empty()) else {
            if self.client_id.is_some() || !self.map.is_empty() {
                bail!("oidc.issuer is missing; the rest of [oidc] means nothing without it");
            }
            return Ok(None);
        };
        let client_id = self.client_id.clone().filter(|id| !id.is_empty()).context("oidc.client_id is missing")?;
        let client_secret = match &self.client_secret_env {
            None => None,
            Some(variable) => {
                let secret = std::env::var(variable).ok().filter(|secret| !secret.is_empty());
                Some(SecretString::from(
                    secret.with_context(|| format!("oidc.client_secret_env names {variable}, which is not set"))?,
                ))
            }
        };
        Ok(Some(OidcConfig {
            issuer,
            client_id,
            client_secret,
            scopes: self.scopes.clone(),
            groups_claim: self.groups_claim.clone(),
            limits: OidcLimits::default(),
        }))
    }
}

impl Config {
    /// What can be found wrong before anybody signs in. The secret's variable is looked at when the server starts.
    pub(super) fn check_sign_in(&self) -> anyhow::Result<()> {
        self.sessions.lasting()?;
        self.oidc.rules()?;
        let without_secret = OidcSection { client_secret_env: None, ..self.oidc.clone() };
        if let Some(client) = without_secret.client()? {
            OidcClient::new(client).context("in [oidc]")?;
        }
        Ok(())
    }

    /// Who vouches for people, if anybody does. Browsers reach this server at `public_url`.
    pub fn people(&self, public_url: &str) -> anyhow::Result<Option<People>> {
        let Some(client) = self.oidc.client()? else { return Ok(None) };
        let provider: Arc<dyn IdentityProvider> = Arc::new(OidcClient::new(client).context("in [oidc]")?);
        Ok(Some(People::new(provider, self.oidc.label.clone(), self.oidc.rules()?, public_url)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn loaded(text: &str) -> anyhow::Result<Config> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("orchestra.toml");
        std::fs::write(&file, text).unwrap();
        load(Some(&file), std::iter::empty(), Vec::new()).map(|loaded| loaded.config)
    }

    const OIDC: &str = "[oidc]\nissuer = \"https://login.example.com\"\nclient_id = \"orchestra\"\n";

    #[test]
    fn groups_are_given_parts() {
        let config = loaded(&format!(
            "{OIDC}label = \"Acme\"\n[[oidc.map]]\ngroup = \"infra\"\nteam = \"platform\"\nrole = \"operator\"\n\
             [[oidc.map]]\ngroup = \"root\"\nteam = \"*\"\nrole = \"admin\"\n[sessions]\nlifetime = \"8h\"\nidle = \"30m\"\n"
        ))
        .expect("loads");
        let people = config.people("https://a.example").expect("a provider").expect("a provider");
        assert_eq!(people.label(), "Acme");
        assert_eq!(people.memberships(&["infra".to_owned(), "root".to_owned()]).len(), 2);
        assert_eq!(config.sessions.lasting().unwrap().idle, Duration::from_secs(1_800));
        assert!(loaded("").expect("loads").people("http://a").expect("none").is_none());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let map = |team: &str, role: &str| {
            format!("{OIDC}[[oidc.map]]\ngroup = \"g\"\nteam = \"{team}\"\nrole = \"{role}\"\n")
        };
        for (text, word) in [
            ("[oidc]\nclient_id = \"a\"\n".to_owned(), "oidc.issuer"),
            ("[oidc]\nissuer = \"https://login.example.com\"\n".to_owned(), "oidc.client_id"),
            (OIDC.replace("https", "http"), "https"),
            (map("*", "viewer"), "whole server"),
            (map("a b", "viewer"), "group \"g\""),
            (map("platform", "owner"), "owner"),
            ("[sessions]\nlifetime = \"1000h\"\n".to_owned(), "sessions.lifetime"),
            ("[sessions]\nidle = \"1s\"\n".to_owned(), "sessions.idle"),
        ] {
            let error = format!("{:#}", loaded(&text).expect_err(&text));
            assert!(error.contains(word), "{text}: {error}");
        }
        let secret = loaded(&format!("{OIDC}client_secret_env = \"A_VARIABLE_OF_NOBODY\"\n")).expect("loads");
        let error = secret.people("http://127.0.0.1:1").err().expect("a missing secret");
        assert!(error.to_string().contains("A_VARIABLE_OF_NOBODY"), "{error}");
    }
}
