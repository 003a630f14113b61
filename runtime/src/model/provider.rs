//! The configured providers, and how a model's name leads to one of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use reqwest::{Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::pricing::{Price, PriceRow, Prices};
use crate::http::HttpClient;

/// The wire format a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// Anthropic's Messages.
    Anthropic,
    /// OpenAI's Chat Completions, and what is compatible with it.
    OpenaiChat,
    /// OpenAI's Responses. The built-in agent does not speak it.
    OpenaiResponses,
}

/// A provider as the operator configured it.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Its name in `models.NAME` and in `NAME/model`.
    pub name: String,
    /// What it speaks.
    pub dialect: Dialect,
    /// Up to, and without, `/v1/messages` or `/chat/completions`; for OpenAI's dialects it ends in `/v1`. A query, such as
    /// Azure's `?api-version=…`, is kept at the end of every address.
    pub base_url: String,
    /// The operator's own key, for callers that bring none.
    pub operator_key: Option<SecretString>,
    /// Whether a call without a key is refused here, rather than sent.
    pub key_required: bool,
    /// The operator's prices, before those of the built-in table.
    pub prices: Vec<PriceRow>,
}

impl ProviderConfig {
    /// The public endpoints that need no configuration.
    pub fn built_in() -> Vec<Self> {
        let provider = |name: &str, dialect, base_url: &str| Self {
            name: name.into(),
            dialect,
            base_url: base_url.into(),
            operator_key: None,
            key_required: true,
            prices: Vec::new(),
        };
        vec![
            provider("anthropic", Dialect::Anthropic, "https://api.anthropic.com"),
            provider("openai", Dialect::OpenaiChat, "https://api.openai.com/v1"),
        ]
    }
}

/// How long a provider is waited for. The defaults suit real providers; tests use shorter ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// For the first byte of the reply to an empty prompt.
    pub first_byte: Duration,
    /// On top of it for each thousand tokens of prompt: long prompts take long to read.
    pub first_byte_per_1000_tokens: Duration,
    /// Never longer than this.
    pub first_byte_cap: Duration,
    /// Between two chunks of the reply.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            first_byte: Duration::from_secs(60),
            first_byte_per_1000_tokens: Duration::from_secs(1),
            first_byte_cap: Duration::from_secs(600),
            idle: Duration::from_secs(120),
        }
    }
}

impl Timeouts {
    /// The limit for a prompt of this size.
    pub(crate) fn first_byte_for(&self, prompt_bytes: usize) -> Duration {
        // Four bytes a token is what prompts measure; the limit need not be exact.
        let thousands = u32::try_from(prompt_bytes / 4_000).unwrap_or(u32::MAX);
        let more = self.first_byte_per_1000_tokens.saturating_mul(thousands);
        self.first_byte.saturating_add(more).min(self.first_byte_cap)
    }
}

/// Why the configured providers cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a URL to send requests to.
    #[error("models.{name}.base_url is not an http(s) URL without credentials and fragment; correct it")]
    BaseUrl {
        /// The provider.
        name: String,
    },
    /// Two providers share a name.
    #[error("models.{name} is configured twice; give one of them another name")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A name that cannot stand before the slash of `NAME/model`.
    #[error("models.{name:?}: a provider's name is 1 to 64 letters, digits, dashes and underscores")]
    Name {
        /// The name.
        name: String,
    },
}

/// Why a model's name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelNameError {
    /// No provider of that name.
    #[error("no model provider is named {name:?}; {}configure it under [models.{name}]", nearest_text(.nearest))]
    UnknownProvider {
        /// The name.
        name: String,
        /// The configured one that is spelled most alike.
        nearest: Option<String>,
    },
    /// The name has no provider in it, and none follows from it.
    #[error(
        "{model:?} does not say which provider serves it; {}write PROVIDER/{model}, with one of: {known}",
        nearest_text(.nearest)
    )]
    NoProvider {
        /// The name.
        model: String,
        /// The priced model that is spelled most alike.
        nearest: Option<String>,
        /// The configured providers.
        known: String,
    },
    /// No price, hence no bound, hence no call.
    #[error(
        "the model {model:?} of {provider} has no price, so its cost cannot be bounded; {}add a row to \
         models.{provider}.prices with its input and output price", nearest_text(.nearest)
    )]
    Unpriced {
        /// The provider.
        provider: String,
        /// The model.
        model: String,
        /// The priced one that is spelled most alike.
        nearest: Option<String>,
    },
    /// Empty, too long, or with characters no model's name has.
    #[error("a model's name is 1 to {MAX_MODEL_NAME} visible characters, such as claude-sonnet-4-6 or openai/gpt-5")]
    NotAName,
}

fn nearest_text(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("did you mean {name:?}? Otherwise ")).unwrap_or_default()
}

/// The longest name of a model.
pub const MAX_MODEL_NAME: usize = 200;

/// A model's name, resolved: who serves it, and at what price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The provider's name.
    pub provider: Arc<str>,
    /// What the provider speaks.
    pub dialect: Dialect,
    /// The model, as the provider names it.
    pub model_id: String,
    /// What it costs.
    pub price: Arc<Price>,
}

/// What can be asked of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Anthropic's Messages.
    Messages,
    /// Anthropic's count of a prompt's tokens.
    CountTokens,
    /// OpenAI's Chat Completions.
    Chat,
    /// OpenAI's Responses.
    Responses,
}

impl Endpoint {
    const fn path(self) -> &'static str {
        match self {
            Self::Messages => "v1/messages",
            Self::CountTokens => "v1/messages/count_tokens",
            Self::Chat => "chat/completions",
            Self::Responses => "responses",
        }
    }

    /// Whether a provider of this dialect has it: OpenAI's own server, and most that copy it, have both of its APIs.
    pub const fn served_by(self, dialect: Dialect) -> bool {
        match self {
            Self::Messages | Self::CountTokens => matches!(dialect, Dialect::Anthropic),
            Self::Chat | Self::Responses => matches!(dialect, Dialect::OpenaiChat | Dialect::OpenaiResponses),
        }
    }
}

/// A provider that is ready to be called.
#[derive(Debug)]
pub(crate) struct Provider {
    pub name: Arc<str>,
    pub dialect: Dialect,
    base: Url,
    pub operator_key: Option<SecretString>,
    pub key_required: bool,
    pub client: HttpClient,
}

impl Provider {
    /// Where to send a request. The caller's query goes after the one that the operator configured.
    pub fn url(&self, endpoint: Endpoint, query: Option<&str>) -> Url {
        let mut url = self.base.clone();
        let path = self.base.path().trim_end_matches('/');
        url.set_path(&format!("{path}/{}", endpoint.path()));
        if let Some(query) = query.filter(|query| !query.is_empty()) {
            let joined =
                self.base.query().map_or_else(|| query.to_owned(), |configured| format!("{configured}&{query}"));
            url.set_query(Some(&joined));
        }
        url
    }

    /// Where the built-in agent sends its requests.
    pub fn own_url(&self) -> Url {
        let endpoint = match self.dialect {
            Dialect::Anthropic => Endpoint::Messages,
            Dialect::OpenaiChat => Endpoint::Chat,
            Dialect::OpenaiResponses => Endpoint::Responses,
        };
        self.url(endpoint, None)
    }

    /// The header that carries the key, with the key in it. `None`: the key has characters that no key has.
    pub fn authorization(&self, key: &SecretString) -> Option<(HeaderName, HeaderValue)> {
        let key = key.expose_secret().trim();
        let (name, value) = match self.dialect {
            Dialect::Anthropic => (HeaderName::from_static("x-api-key"), HeaderValue::from_str(key)),
            _ if self.is_azure() => (HeaderName::from_static("api-key"), HeaderValue::from_str(key)),
            Dialect::OpenaiChat | Dialect::OpenaiResponses => {
                (AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")))
            }
        };
        let mut value = value.ok()?;
        value.set_sensitive(true);
        Some((name, value))
    }

    /// Anthropic itself, which writes to a cache only where a request marks it.
    pub fn is_anthropic(&self) -> bool {
        self.base.host_str() == Some("api.anthropic.com")
    }

    fn is_azure(&self) -> bool {
        self.base.host_str().is_some_and(|host| host.ends_with(".openai.azure.com"))
    }

    /// The providers whose price depends on a tier that an account may set as its default.
    pub fn bills_service_tiers(&self) -> bool {
        matches!(self.base.host_str(), Some("api.openai.com" | "api.anthropic.com"))
    }

    /// OpenAI's own servers have renamed a field that others know by its old name only.
    pub fn is_openai(&self) -> bool {
        self.base.host_str().is_some_and(|host| host.ends_with("openai.com")) || self.is_azure()
    }
}

/// The providers of this process.
#[derive(Debug)]
pub struct Models {
    pub(crate) providers: BTreeMap<String, Provider>,
    prices: Prices,
    pub(crate) timeouts: Timeouts,
}

impl Models {
    /// Prepares the providers. Nothing is contacted.
    pub fn new(configs: Vec<ProviderConfig>, timeouts: Timeouts) -> Result<Self, ConfigError> {
        let mut prices = Prices::built_in();
        let mut providers = BTreeMap::new();
        let connect = timeouts.connect;
        // A redirect would carry the key to wherever it points.
        let outside = HttpClient::new(move |client| {
            client.redirect(redirect::Policy::none()).connect_timeout(connect).tcp_nodelay(true)
        });
        // A proxy of the environment is for reaching the outside, not this machine.
        let inside = HttpClient::new(move |client| {
            client.redirect(redirect::Policy::none()).connect_timeout(connect).tcp_nodelay(true).no_proxy()
        });
        for config in configs {
            let name = config.name;
            let letters = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > 64 || !name.chars().all(letters) {
                return Err(ConfigError::Name { name });
            }
            for row in &config.prices {
                prices.set(&name, row);
            }
            let base = base(config.dialect, &config.base_url).ok_or(ConfigError::BaseUrl { name: name.clone() })?;
            let client = if is_loopback(&base) { inside.clone() } else { outside.clone() };
            let provider = Provider {
                name: name.as_str().into(),
                dialect: config.dialect,
                base,
                operator_key: config.operator_key,
                key_required: config.key_required,
                client,
            };
            if providers.insert(name.clone(), provider).is_some() {
                return Err(ConfigError::Duplicate { name });
            }
        }
        Ok(Self { providers, prices, timeouts })
    }

    /// Lets all providers be reached through one client: building one takes longer than most tests.
    #[cfg(test)]
    pub(crate) fn share(&mut self, client: &HttpClient) {
        self.providers.values_mut().for_each(|provider| provider.client = client.clone());
    }

    /// The models of a provider that have a price.
    pub(crate) fn priced<'a>(&'a self, provider: &'a str) -> impl Iterator<Item = &'a str> {
        self.prices.models_of(provider)
    }

    /// Whether calls to this provider need a key that the operator does not hold.
    pub fn needs_callers_key(&self, provider: &str) -> bool {
        self.providers.get(provider).is_some_and(|provider| provider.key_required && provider.operator_key.is_none())
    }

    /// Who serves a model: `claude-…` is Anthropic's, `gpt-…`, `o3` and their like OpenAI's, `NAME/model` is NAME's. At the
    /// prices of today.
    pub fn resolve(&self, name: &str) -> Result<ResolvedModel, ModelNameError> {
        self.resolve_on(name, day_of(jiff::Timestamp::now()))
    }

    /// The same, at the prices of that day (in UTC).
    pub fn resolve_on(&self, name: &str, day: Date) -> Result<ResolvedModel, ModelNameError> {
        if name.is_empty() || name.len() > MAX_MODEL_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ModelNameError::NotAName);
        }
        let (provider, model) = match name.split_once('/') {
            Some((provider, model)) if !provider.is_empty() && !model.is_empty() => (provider, model),
            Some(_) => return Err(ModelNameError::NotAName),
            None => (self.implied_provider(name)?, name),
        };
        let Some(found) = self.providers.get(provider) else {
            let nearest = nearest(provider, self.providers.keys().map(String::as_str));
            return Err(ModelNameError::UnknownProvider { name: provider.into(), nearest });
        };
        let Some(price) = self.prices.find(provider, model, day) else {
            let nearest = nearest(model, self.prices.models_of(provider));
            return Err(ModelNameError::Unpriced { provider: provider.into(), model: model.into(), nearest });
        };
        Ok(ResolvedModel {
            provider: Arc::clone(&found.name),
            dialect: found.dialect,
            model_id: model.to_owned(),
            price: Arc::clone(price),
        })
    }

    fn implied_provider(&self, model: &str) -> Result<&'static str, ModelNameError> {
        let reasoning = model.strip_prefix('o').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if model.starts_with("claude-") {
            Ok("anthropic")
        } else if model.starts_with("gpt-") || model.starts_with("chatgpt-") || model == "chat-latest" || reasoning {
            Ok("openai")
        } else {
            let priced = self.providers.keys().flat_map(|provider| self.prices.models_of(provider));
            Err(ModelNameError::NoProvider {
                model: model.into(),
                nearest: nearest(model, priced),
                known: self.providers.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
            })
        }
    }
}

/// The day by which prices are chosen.
pub(crate) fn day_of(time: jiff::Timestamp) -> Date {
    jiff::tz::Offset::UTC.to_datetime(time).date()
}

/// The address that every path of the provider is appended to.
fn base(dialect: Dialect, base_url: &str) -> Option<Url> {
    let mut base = Url::parse(base_url).ok()?;
    let plain = matches!(base.scheme(), "http" | "https")
        && base.has_host()
        && base.username().is_empty()
        && base.password().is_none()
        && base.fragment().is_none();
    // Both forms are in use for Anthropic-compatible servers; one `/v1` is meant.
    let path = base.path().trim_end_matches('/');
    let path = if dialect == Dialect::Anthropic { path.strip_suffix("/v1").unwrap_or(path) } else { path };
    let path = path.to_owned();
    base.set_path(&path);
    plain.then_some(base)
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

/// The name spelled most alike, when one is alike at all.
fn nearest<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|name| (edit_distance(wanted, name), name))
        .min()
        .filter(|(distance, name)| *distance <= (wanted.len().max(name.len()) / 3).max(1))
        .map(|(_, name)| name.to_owned())
}

/// Levenshtein's distance, in bytes: both sides are ASCII and short.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> Models {
        let mut configs = ProviderConfig::built_in();
        configs.push(ProviderConfig {
            name: "ollama".into(),
            dialect: Dialect::OpenaiChat,
            base_url: "http://127.0.0.1:11434/v1".into(),
            operator_key: None,
            key_required: false,
            prices: vec![serde_json::from_str(r#"{"model": "qwen3-coder", "input": 0, "output": 0}"#).expect("row")],
        });
        Models::new(configs, Timeouts::default()).expect("configuration")
    }

    #[test]
    fn a_name_leads_to_its_provider_and_price() {
        let models = models();
        for (name, provider, model, price) in [
            ("claude-sonnet-4-6", "anthropic", "claude-sonnet-4-6", "2026-11-22/claude-sonnet-4-6"),
            ("claude-haiku-4-5-20251001", "anthropic", "claude-haiku-4-5-20251001", "2026-11-22/claude-haiku-4-5"),
            ("anthropic/claude-opus-5", "anthropic", "claude-opus-5", "2026-11-22/claude-opus-5"),
            ("gpt-5", "openai", "gpt-5", "2026-11-22/gpt-5"),
            ("o4-mini", "openai", "o4-mini", "2026-11-22/o4-mini"),
            ("ollama/qwen3-coder", "ollama", "qwen3-coder", "operator/ollama/qwen3-coder"),
        ] {
            let resolved = models.resolve(name).expect(name);
            assert_eq!((&*resolved.provider, &*resolved.model_id, resolved.price.id()), (provider, model, price));
        }
        assert!(models.needs_callers_key("anthropic") && !models.needs_callers_key("ollama"));
    }

    #[test]
    fn a_name_that_leads_nowhere_says_what_would() {
        let models = models();
        for (name, expected) in [
            ("olama/qwen3-coder", "no model provider is named \"olama\"; did you mean \"ollama\"?"),
            ("claude-sonet-4-6", "did you mean \"claude-sonnet-4-6\"?"),
            ("ollama/llama4", "add a row to models.ollama.prices"),
            ("sonnet", "write PROVIDER/sonnet, with one of: anthropic, ollama, openai"),
            ("", "a model's name is"),
            ("/x", "a model's name is"),
            ("claude\n", "a model's name is"),
        ] {
            let error = models.resolve(name).expect_err(name).to_string();
            assert!(error.contains(expected), "{name:?}: {error}");
        }
    }

    #[test]
    fn a_base_url_must_be_one_that_requests_can_go_to() {
        for (dialect, base, expected) in [
            (Dialect::Anthropic, "https://a.example", Some("https://a.example/v1/messages")),
            (Dialect::Anthropic, "https://a.example/v1/", Some("https://a.example/v1/messages")),
            (Dialect::OpenaiChat, "http://[::1]:8080/v1", Some("http://[::1]:8080/v1/chat/completions")),
            (Dialect::OpenaiChat, "https://user:pass@a.example/v1", None),
            (
                Dialect::OpenaiChat,
                "https://a.openai.azure.com/openai/deployments/d?api-version=2",
                Some("https://a.openai.azure.com/openai/deployments/d/chat/completions?api-version=2"),
            ),
            (Dialect::OpenaiChat, "https://a.example/v1#x", None),
            (Dialect::OpenaiChat, "file:///etc/passwd", None),
            (Dialect::OpenaiChat, "a.example", None),
        ] {
            let config = ProviderConfig {
                name: "p".into(),
                dialect,
                base_url: base.into(),
                operator_key: None,
                key_required: true,
                prices: Vec::new(),
            };
            let models = Models::new(vec![config], Timeouts::default());
            let url = models.ok().map(|models| models.providers["p"].own_url().to_string());
            assert_eq!(url.as_deref(), expected, "{base}");
        }
    }

    #[test]
    fn an_azure_deployment_has_its_version_in_the_query_and_its_key_in_a_header_of_its_own() {
        let config = |name: &str, base: &str| ProviderConfig {
            name: name.into(),
            dialect: Dialect::OpenaiChat,
            base_url: base.into(),
            operator_key: None,
            key_required: true,
            prices: Vec::new(),
        };
        let configs = vec![
            config("azure", "https://a.openai.azure.com/openai/v1/?api-version=preview"),
            config("lookalike", "https://openai.azure.com.example/v1"),
        ];
        let models = Models::new(configs, Timeouts::default()).expect("configuration");
        let (azure, other) = (&models.providers["azure"], &models.providers["lookalike"]);
        assert_eq!(
            azure.url(Endpoint::Responses, Some("x=1")).as_str(),
            "https://a.openai.azure.com/openai/v1/responses?api-version=preview&x=1"
        );
        assert_eq!(
            other.url(Endpoint::Chat, Some("x=1")).as_str(),
            "https://openai.azure.com.example/v1/chat/completions?x=1"
        );
        let key = SecretString::from("k");
        assert_eq!(azure.authorization(&key).expect("a key").0, "api-key");
        assert_eq!(other.authorization(&key).expect("a key").0, "authorization");
        assert!(azure.is_openai() && !other.is_openai());
    }

    #[test]
    fn the_first_byte_may_take_longer_for_a_longer_prompt_up_to_ten_minutes() {
        let timeouts = Timeouts::default();
        for (bytes, seconds) in [(0, 60), (4_000, 61), (400_000, 160), (usize::MAX, 600)] {
            assert_eq!(timeouts.first_byte_for(bytes), Duration::from_secs(seconds));
        }
    }
}
