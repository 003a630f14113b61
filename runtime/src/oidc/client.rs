//! Speaks with the provider: where to send a browser, and who came back.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, Semaphore};

use super::discovery::Document;
use super::keys::Key;
use super::token::{self, Expected, TokenFault};
use super::{Attempt, Identity, IdentityError, IdentityProvider, OidcConfig, cleaned, discovery, fetch, keys};
use crate::http::HttpClient;

/// Codes that are redeemed at the same time. Each is a question or three to the provider.
const MAX_AT_ONCE: usize = 32;
/// Longest code taken from a browser, in bytes.
const MAX_CODE: usize = 4 * 1024;
/// How much of the provider's own words about a failure is passed on.
const MAX_WORDS: usize = 200;

/// Something fetched, or why it was not.
struct Kept<T> {
    what: Result<T, IdentityError>,
    at: Instant,
}

/// The client of one provider.
pub struct OidcClient {
    config: OidcConfig,
    http: HttpClient,
    // Held while fetching, so that many who wait ask once.
    document: Mutex<Option<Kept<Arc<Document>>>>,
    keys: Mutex<Option<Kept<Arc<[Key]>>>>,
    redeeming: Semaphore,
}

impl OidcClient {
    /// A client; the provider is asked when somebody signs in.
    pub fn new(config: OidcConfig) -> Result<Self, IdentityError> {
        discovery::address(&config.issuer)?;
        if config.client_id.is_empty() {
            return Err(IdentityError::Configuration("oidc.client_id is empty".to_owned()));
        }
        super::crypto::install();
        let http = fetch::client(config.limits.request_timeout);
        let redeeming = Semaphore::new(MAX_AT_ONCE);
        Ok(Self { config, http, document: Mutex::default(), keys: Mutex::default(), redeeming })
    }

    async fn http(&self) -> Result<&Client, IdentityError> {
        self.http.get().await.map_err(IdentityError::Unreachable)
    }

    async fn document(&self) -> Result<Arc<Document>, IdentityError> {
        let limits = &self.config.limits;
        let mut kept = self.document.lock().await;
        if let Some(Kept { what, at }) = &*kept {
            let good_for = if what.is_ok() { limits.keep } else { limits.failure_pause };
            if at.elapsed() < good_for {
                return what.clone();
            }
        }
        let what = discovery::fetch(self.http().await?, &self.config.issuer).await.map(Arc::new);
        *kept = Some(Kept { what: what.clone(), at: Instant::now() });
        what
    }

    /// The key that a token names, looked for anew if it is not among those that are known.
    async fn key(&self, url: &Url, id: Option<&str>, algorithm: Algorithm) -> Result<Key, IdentityError> {
        let limits = &self.config.limits;
        let mut kept = self.keys.lock().await;
        if let Some(Kept { what, at }) = &*kept {
            match what {
                Ok(known) if at.elapsed() < limits.keep => {
                    if let Some(key) = keys::find(known, id, algorithm) {
                        return Ok(key.clone());
                    }
                    if at.elapsed() < limits.key_pause {
                        return Err(TokenFault::UnknownKey.into());
                    }
                }
                Err(error) if at.elapsed() < limits.failure_pause => return Err(error.clone()),
                Ok(_) | Err(_) => {}
            }
        }
        let what = keys::fetch(self.http().await?, url.clone()).await.map(Arc::from);
        *kept = Some(Kept { what: what.clone(), at: Instant::now() });
        keys::find(&what?, id, algorithm).cloned().ok_or_else(|| TokenFault::UnknownKey.into())
    }

    /// The tokens for a code.
    async fn exchange(&self, document: &Document, code: &str, attempt: &Attempt<'_>) -> Result<Tokens, IdentityError> {
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", attempt.redirect_uri),
            ("code_verifier", attempt.verifier),
        ];
        let mut request = self.http().await?.post(document.token.clone());
        match &self.config.client_secret {
            Some(secret) if !document.secret_in_body => {
                // Each half form-encoded before they are put together (RFC 6749, section 2.3.1).
                let pair = format!("{}:{}", encoded(&self.config.client_id), encoded(secret.expose_secret()));
                request = request.header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(pair)));
            }
            Some(secret) => {
                form.extend([("client_id", &*self.config.client_id), ("client_secret", secret.expose_secret())])
            }
            None => form.push(("client_id", &self.config.client_id)),
        }
        let body: Vec<_> = form.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body.join("&"));
        let answer = fetch::ask("token", request).await?;
        if answer.status != 200 {
            let said = |name: &str| answer.body[name].as_str().map(|text| cleaned(text, MAX_WORDS));
            let words = said("error").unwrap_or_else(|| format!("it answers {}", answer.status));
            let words = said("error_description").map_or_else(|| words.clone(), |more| format!("{words}: {more}"));
            return Err(IdentityError::Refused(words));
        }
        let text = |name: &str| answer.body[name].as_str().map(str::to_owned);
        let id = text("id_token").ok_or_else(|| IdentityError::Nonsense {
            what: "token",
            detail: "there is no id_token in it".to_owned(),
        })?;
        Ok(Tokens { id, access: text("access_token").map(SecretString::from) })
    }

    /// What the provider says about somebody besides.
    async fn userinfo(&self, url: &Url, access: &SecretString, subject: &str) -> Result<Value, IdentityError> {
        let what = "userinfo";
        let request = self.http().await?.get(url.clone());
        let answer = fetch::ask(what, request.bearer_auth(access.expose_secret())).await?;
        if answer.status != 200 {
            return Err(IdentityError::Refused(format!("its userinfo answers {}", answer.status)));
        }
        // About the same person (section 5.3.2 of the specification).
        if answer.body["sub"].as_str() != Some(subject) {
            return Err(IdentityError::Nonsense { what, detail: "it is about somebody else".to_owned() });
        }
        Ok(answer.body)
    }
}

struct Tokens {
    id: String,
    access: Option<SecretString>,
}

/// A value of a form: everything but RFC 3986's unreserved characters percent-encoded.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[async_trait]
impl IdentityProvider for OidcClient {
    fn issuer(&self) -> &str {
        &self.config.issuer
    }

    async fn authorization_url(&self, attempt: &Attempt<'_>) -> Result<String, IdentityError> {
        let document = self.document().await?;
        let mut scopes = vec!["openid"];
        scopes.extend(self.config.scopes.iter().map(String::as_str).filter(|scope| *scope != "openid"));
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(attempt.verifier.as_bytes()));
        let mut url = document.authorization.clone();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.config.client_id)
            .append_pair("redirect_uri", attempt.redirect_uri)
            .append_pair("scope", &scopes.join(" "))
            .append_pair("state", attempt.state)
            .append_pair("nonce", attempt.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        Ok(url.into())
    }

    async fn redeem(&self, code: &str, issuer: Option<&str>, attempt: &Attempt<'_>) -> Result<Identity, IdentityError> {
        let _turn = self.redeeming.try_acquire().map_err(|_| IdentityError::Busy)?;
        if code.is_empty() || code.len() > MAX_CODE {
            return Err(IdentityError::Refused("there is no usable code in the answer".to_owned()));
        }
        let document = self.document().await?;
        match issuer {
            Some(issuer) if issuer != self.config.issuer => return Err(TokenFault::Issuer.into()),
            None if document.names_itself => return Err(TokenFault::Issuer.into()),
            Some(_) | None => {}
        }
        let tokens = self.exchange(&document, code, attempt).await?;
        let header = token::header(&tokens.id)?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA) {
            return Err(TokenFault::Algorithm.into());
        }
        let key = self.key(&document.keys, header.kid.as_deref(), header.alg).await?;
        let expected = Expected {
            issuer: &self.config.issuer,
            client_id: &self.config.client_id,
            nonce: attempt.nonce,
            now: now(),
        };
        let claims = token::judge(&tokens.id, &key, &expected)?;
        let subject = token::subject(&claims).ok_or(TokenFault::Subject)?.to_owned();
        let mut groups = token::groups(&claims, &self.config.groups_claim)?;
        let mut name = token::name(&claims);
        // Many providers put little into the token.
        if let (Some(url), Some(access)) = (&document.userinfo, &tokens.access)
            && (groups.is_none() || name.is_none())
        {
            let more = self.userinfo(url, access, &subject).await?;
            groups = groups.or(token::groups(&more, &self.config.groups_claim)?);
            name = name.or_else(|| token::name(&more));
        }
        Ok(Identity {
            issuer: self.config.issuer.clone(),
            name: name.unwrap_or_else(|| subject.clone()),
            subject,
            groups: groups.unwrap_or_default(),
        })
    }
}
