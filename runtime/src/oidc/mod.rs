//! Sign-in of people through an identity provider: OpenID Connect's authorization code flow with PKCE.
//!
//! `discovery` reads where the provider's parts are, `keys` holds what it signs with, `token` judges what it signed, and
//! `client` speaks with it. Who a browser belongs to is not known here: `state`, `nonce` and the verifier come from outside.
//!
//! Architecture invariant: a byte of the provider counts only after a signature by a key that was fetched from the address
//! that the issuer's own document names; no redirect is followed, and every answer is bounded in size and time.

mod client;
mod crypto;
mod discovery;
mod fetch;
mod keys;
mod token;

use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;

pub use client::OidcClient;
pub use token::TokenFault;

/// Longest issuer identifier, in bytes.
pub const MAX_ISSUER: usize = 255;
/// Longest subject, in bytes (OpenID Connect Core 1.0, section 2: 255 ASCII characters).
pub const MAX_SUBJECT: usize = 255;
/// Longest name shown of a person, in bytes.
pub const MAX_NAME: usize = 200;
/// Most groups that are looked at; a provider that names more is not believed.
pub const MAX_GROUPS: usize = 2_000;
/// Longest name of a group, in bytes; longer ones are left out.
pub const MAX_GROUP: usize = 256;

/// Who the provider is, and what this server is to it.
#[derive(Debug, Clone)]
pub struct OidcConfig {
    /// Its issuer identifier: an `https` address (`http` on the loopback), as in its tokens.
    pub issuer: String,
    /// What this server is called there.
    pub client_id: String,
    /// What this server proves that with; a public client has none.
    pub client_secret: Option<SecretString>,
    /// What is asked for; `openid` always is.
    pub scopes: Vec<String>,
    /// Where the groups stand in the claims: a name, or a path of names with dots between them.
    pub groups_claim: String,
    /// How long things may take, and may be kept.
    pub limits: OidcLimits,
}

/// How long things may take, and may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcLimits {
    /// For one question to the provider, with its answer.
    pub request_timeout: Duration,
    /// How long its document and keys are believed.
    pub keep: Duration,
    /// Between two looks for a key that is not known: a token is free to name any.
    pub key_pause: Duration,
    /// How long a failure is repeated before the provider is asked again.
    pub failure_pause: Duration,
}

impl Default for OidcLimits {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(10),
            keep: Duration::from_secs(60 * 60),
            key_pause: Duration::from_secs(30),
            failure_pause: Duration::from_secs(5),
        }
    }
}

/// What binds a sign-in to the browser that began it.
pub struct Attempt<'a> {
    /// Comes back with the answer; the caller compares it.
    pub state: &'a str,
    /// Comes back within the signed token.
    pub nonce: &'a str,
    /// Proves that the code is redeemed by who asked for it (RFC 7636): 43 to 128 unreserved characters.
    pub verifier: &'a str,
    /// Where the provider sends the browser.
    pub redirect_uri: &'a str,
}

/// Who somebody is, on the provider's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The provider.
    pub issuer: String,
    /// The person there.
    pub subject: String,
    /// What they are called.
    pub name: String,
    /// The groups they are in.
    pub groups: Vec<String>,
}

/// Why nobody was let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The configuration cannot be meant.
    #[error("{0}")]
    Configuration(String),
    /// The provider did not answer, or not in time.
    #[error("the identity provider did not answer: {0}")]
    Unreachable(String),
    /// It answered something that makes no sense, or too much of it.
    #[error("the identity provider's {what} is not usable: {detail}")]
    Nonsense {
        /// Which of its documents.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// It said no: the code was used before or is too old, or this server is not welcome.
    #[error("the identity provider refused: {0}")]
    Refused(String),
    /// What it signed does not do.
    #[error("the identity provider's token does not do: {0}")]
    Token(#[from] TokenFault),
    /// Too many sign-ins at once.
    #[error("too many people are signing in at this moment")]
    Busy,
}

impl IdentityError {
    /// A stable word, for the audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Configuration(_) => "configuration",
            Self::Unreachable(_) => "provider-unreachable",
            Self::Nonsense { .. } => "provider-nonsense",
            Self::Refused(_) => "provider-refused",
            Self::Token(fault) => fault.reason(),
            Self::Busy => "busy",
        }
    }
}

/// Somebody who knows people.
#[async_trait]
pub trait IdentityProvider: Send + Sync + 'static {
    /// Its issuer identifier.
    fn issuer(&self) -> &str;
    /// Where a browser is sent to sign in.
    async fn authorization_url(&self, attempt: &Attempt<'_>) -> Result<String, IdentityError>;
    /// Who the code that came back stands for. `issuer` is what the answer said about itself (RFC 9207).
    async fn redeem(&self, code: &str, issuer: Option<&str>, attempt: &Attempt<'_>) -> Result<Identity, IdentityError>;
}

/// A text of the provider's that is shown: one line, without control characters, and not too long.
fn cleaned(text: &str, most: usize) -> String {
    let mut line = String::new();
    for letter in text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }) {
        if line.len() + letter.len_utf8() > most {
            break;
        }
        line.push(letter);
    }
    line.trim().to_owned()
}
