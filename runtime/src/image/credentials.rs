//! Who a registry is told is asking: what the operator gave for one pull, or what a `docker login` has left in a file. Nothing
//! of it is ever written anywhere by us.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use super::ImageError;

/// Largest file of credentials.
const MAX_FILE: u64 = 1 << 20;

/// Where a registry's login is from.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// None is needed.
    #[default]
    Anonymous,
    /// For this pull.
    Login {
        /// The user.
        username: String,
        /// The password, or a token.
        password: SecretString,
    },
    /// A `config.json` as `docker login` writes it, read anew for each pull: tokens in it change.
    DockerConfig(PathBuf),
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default, deserialize_with = "secret")]
    auth: Option<SecretString>,
    username: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    password: Option<SecretString>,
    #[serde(default, rename = "registrytoken", deserialize_with = "secret")]
    token: Option<SecretString>,
}

fn secret<'de, D: Deserializer<'de>>(text: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(text)?.filter(|text| !text.is_empty()).map(SecretString::from))
}

/// The host of a key of `auths`, which may be a whole address.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

impl Credentials {
    /// What to tell this registry.
    pub(super) fn of(&self, registry: &str, named: &str) -> Result<RegistryAuth, ImageError> {
        match self {
            Self::Anonymous => Ok(RegistryAuth::Anonymous),
            Self::Login { username, password } => {
                Ok(RegistryAuth::Basic(username.clone(), password.expose_secret().to_owned()))
            }
            Self::DockerConfig(path) => from_file(path, &[registry, named]),
        }
    }
}

fn from_file(path: &Path, hosts: &[&str]) -> Result<RegistryAuth, ImageError> {
    let refused = |detail: String| ImageError::Credentials { path: path.to_owned(), detail };
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
    read.map_err(|error| refused(error.to_string()))?;
    // The reader's own words could quote what it read.
    let config: DockerConfig = serde_json::from_slice(&text)
        .map_err(|error| refused(format!("it does not read at line {}, column {}", error.line(), error.column())))?;
    let is_meant = |key: &str| hosts.contains(&host_of(key));
    if let Some((_, auth)) = config.auths.iter().find(|(key, _)| is_meant(key)) {
        if let Some(token) = &auth.token {
            return Ok(RegistryAuth::Bearer(token.expose_secret().to_owned()));
        }
        if let (Some(username), Some(password)) = (&auth.username, &auth.password) {
            return Ok(RegistryAuth::Basic(username.clone(), password.expose_secret().to_owned()));
        }
        if let Some(auth) = &auth.auth {
            let odd = || refused(format!("the entry for {} is not the base64 of user:password", hosts[0]));
            let pair = STANDARD.decode(auth.expose_secret().trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
            let pair = SecretString::from(pair.ok_or_else(odd)?);
            let (username, password) = pair.expose_secret().split_once(':').ok_or_else(odd)?;
            return Ok(RegistryAuth::Basic(username.to_owned(), password.to_owned()));
        }
    }
    if config.helpers.keys().any(|key| is_meant(key)) || config.store.is_some() {
        // Silence would become a refusal by the registry that nobody understands.
        let detail =
            "it leaves them to a credential helper, and none is run; log in with a config.json that holds them";
        return Err(refused(detail.into()));
    }
    Ok(RegistryAuth::Anonymous)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, registry: &str) -> Result<RegistryAuth, ImageError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).expect("written");
        Credentials::DockerConfig(path).of(registry, registry)
    }

    #[test]
    fn a_registry_gets_its_own_login_and_no_other() {
        let text = format!(
            r#"{{"auths":{{"https://one.example/v1/":{{"auth":"{}"}},"two.example:5000":{{"username":"u","password":"p"}},
                "three.example":{{"registrytoken":"t"}}}}}}"#,
            STANDARD.encode("me:se:cret")
        );
        let basic = |user: &str, password: &str| RegistryAuth::Basic(user.to_owned(), password.to_owned());
        assert!(of(&text, "one.example").expect("reads") == basic("me", "se:cret"));
        assert!(of(&text, "two.example:5000").expect("reads") == basic("u", "p"));
        assert!(of(&text, "three.example").expect("reads") == RegistryAuth::Bearer("t".to_owned()));
        for other in ["two.example", "one.example.evil.example", "four.example", ""] {
            assert!(of(&text, other).expect("reads") == RegistryAuth::Anonymous, "{other}");
        }
    }

    #[test]
    fn a_file_that_does_not_do_is_refused_without_quoting_it() {
        for (text, word) in [
            (r#"{"auths":{"x.example":{"auth":"hunter2"#, "does not read"),
            (r#"{"auths":{"x.example":{"auth":"hunter2!"}}}"#, "base64"),
            (r#"{"credHelpers":{"x.example":"hunter2"}}"#, "helper"),
            (r#"{"credsStore":"hunter2"}"#, "helper"),
        ] {
            let error = of(text, "x.example").expect_err(text).to_string();
            assert!(error.contains(word) && !error.contains("hunter2"), "{error}");
        }
    }
}
