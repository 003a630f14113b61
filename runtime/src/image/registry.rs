//! Asks a registry that speaks the OCI distribution protocol.
//!
//! References and logins are the client library's business. Documents and blobs are asked for here: the library keeps the
//! whole of any answer in memory, and drops the header in which a registry says how long to wait.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use reqwest::{Response, StatusCode, header};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::error::PullFault;
use super::layer::hexadecimal;
use super::oci::{Descriptor, Digest, MAX_DOCUMENT};
use super::pull::Source;

/// Longest silence of a registry.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often something is asked for before a network fault counts.
const TRIES: u32 = 3;
/// The wait before the second try; twice that before the third.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How much of a registry's own words is quoted.
const MAX_WORDS: usize = 300;
/// How much of an error's body is read.
const MAX_ERROR_BODY: usize = 16 << 10;
/// Largest compressed layer.
pub const MAX_LAYER: u64 = 10 << 30;
/// The documents that are understood.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json, \
                        application/vnd.docker.distribution.manifest.v2+json";

/// Whether this registry is on the loopback device of this host, the only place where plain HTTP is trusted.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Words of somebody else, fit for a log.
fn quoted(words: &str) -> String {
    words.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(MAX_WORDS).collect()
}

/// One repository of a registry, and who asks.
pub struct Registry {
    reference: Reference,
    auth: RegistryAuth,
    logins: Client,
    http: reqwest::Client,
    base: String,
    /// The token that the registry's own login service gave for this repository.
    token: Mutex<Option<String>>,
}

/// Where a reference is read: its registry's address as it is asked, and as it is written.
pub fn hosts(reference: &Reference) -> (&str, &str) {
    (reference.resolve_registry(), reference.registry())
}

impl Registry {
    /// The registry of this reference.
    pub fn new(reference: Reference, auth: RegistryAuth) -> Result<Self, PullFault> {
        let host = reference.resolve_registry().to_owned();
        let plain = is_loopback(&host);
        let protocol = if plain { ClientProtocol::HttpsExcept(vec![host.clone()]) } else { ClientProtocol::Https };
        let agent = concat!("orchestra/", env!("CARGO_PKG_VERSION"));
        let logins = Client::new(ClientConfig {
            protocol,
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: agent,
            ..ClientConfig::default()
        });
        let http = reqwest::Client::builder().https_only(!plain).read_timeout(READ_TIMEOUT).user_agent(agent);
        let http = if plain { http.no_proxy() } else { http };
        let http = http.connect_timeout(CONNECT_TIMEOUT).build().map_err(|error| broken(&error))?;
        let scheme = if plain { "http" } else { "https" };
        let base = format!("{scheme}://{host}/v2/{}", reference.repository());
        Ok(Self { reference, auth, logins, http, base, token: Mutex::new(None) })
    }

    /// Asks the registry's login service, if it has one.
    async fn log_in(&self) -> Result<(), PullFault> {
        let token = self.logins.auth(&self.reference, &self.auth, RegistryOperation::Pull).await;
        *self.token.lock().await = token.map_err(login_fault)?;
        Ok(())
    }

    async fn ask_once(&self, path: &str, accepted: &str) -> Result<Response, PullFault> {
        let request = self.http.get(format!("{}/{path}", self.base)).header(header::ACCEPT, accepted);
        let request = match (&*self.token.lock().await, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, RegistryAuth::Bearer(token)) => request.bearer_auth(token),
            (None, RegistryAuth::Anonymous) => request,
        };
        let response = request.send().await.map_err(|error| broken(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    async fn ask(&self, path: &str, accepted: &str) -> Result<Response, PullFault> {
        match self.ask_once(path, accepted).await {
            // The first request of all, or a token that has grown old during a long pull.
            Err(PullFault::Unauthorized) => {
                self.log_in().await?;
                self.ask_once(path, accepted).await
            }
            answered => answered,
        }
    }

    async fn small(&self, path: &str, accepted: &str) -> Result<Vec<u8>, PullFault> {
        let once = || async {
            let mut body = self.ask(path, accepted).await?.bytes_stream();
            let mut bytes = Vec::new();
            while let Some(chunk) = body.next().await {
                bytes.extend_from_slice(&chunk.map_err(|error| broken(&error))?);
                if bytes.len() as u64 > MAX_DOCUMENT {
                    return Err(PullFault::Invalid(format!("a document of it is larger than {MAX_DOCUMENT} bytes")));
                }
            }
            Ok(bytes)
        };
        again(once).await
    }

    /// The manifest or index that the reference names, and its digest.
    pub async fn top(&self) -> Result<(Vec<u8>, Digest), PullFault> {
        match self.reference.digest() {
            Some(digest) => {
                let digest: Digest = digest.parse()?;
                Ok((self.document(&digest).await?, digest))
            }
            None => {
                let tag = self.reference.tag().unwrap_or("latest");
                let bytes = self.small(&format!("manifests/{tag}"), ACCEPTED).await?;
                let digest = Digest::of(&bytes);
                Ok((bytes, digest))
            }
        }
    }

    async fn fetch(&self, layer: &Descriptor, to: &Path, got: &(dyn Fn(u64) + Send + Sync)) -> Result<(), PullFault> {
        let (announced, size) = (layer.digest()?, layer.size()?);
        if size > MAX_LAYER {
            return Err(PullFault::Invalid("a layer is larger than a layer may be".into()));
        }
        let mut stream = self.ask(&format!("blobs/{announced}"), "*/*").await?.bytes_stream();
        let disk = |error: std::io::Error| PullFault::Invalid(format!("writing a layer: {error}"));
        let mut file = File::create(to).map_err(disk)?;
        let mut digest = Sha256::new();
        let mut so_far: u64 = 0;
        got(0);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| broken(&error))?;
            so_far += chunk.len() as u64;
            if so_far > size {
                return Err(PullFault::Invalid(format!(
                    "a layer is longer than the {size} bytes it was announced with"
                )));
            }
            digest.update(&chunk);
            // A local file: the write is a copy into memory that the kernel writes out later.
            file.write_all(&chunk).map_err(disk)?;
            got(so_far);
        }
        let found = format!("sha256:{}", hexadecimal(digest));
        if found == announced.to_string() {
            return Ok(());
        }
        Err(PullFault::Digest { what: "a layer", expected: announced.to_string(), found })
    }
}

/// Tries again after what may pass by itself. A pause that the registry asks for is the caller's to make.
async fn again<T, F: Future<Output = Result<T, PullFault>>>(ask: impl Fn() -> F) -> Result<T, PullFault> {
    let mut wait = FIRST_WAIT;
    for _ in 1..TRIES {
        match ask().await {
            Err(PullFault::Unreachable(_)) => {}
            answered => return answered,
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    ask().await
}

#[async_trait]
impl Source for Registry {
    async fn document(&self, digest: &Digest) -> Result<Vec<u8>, PullFault> {
        let bytes = self.small(&format!("manifests/{digest}"), ACCEPTED).await?;
        super::pull::verified("a manifest", bytes, digest)
    }

    async fn config(&self, config: &Descriptor) -> Result<Vec<u8>, PullFault> {
        let digest = config.digest()?;
        let bytes = self.small(&format!("blobs/{digest}"), "*/*").await?;
        super::pull::verified("the configuration", bytes, &digest)
    }

    async fn layer(
        &self,
        layer: &Descriptor,
        to: &Path,
        got: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<PathBuf, PullFault> {
        again(|| self.fetch(layer, to, got)).await?;
        Ok(to.to_owned())
    }
}

fn broken(error: &reqwest::Error) -> PullFault {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    PullFault::Unreachable(quoted(&text))
}

/// What a registry that says no means by it.
async fn refusal(response: Response) -> PullFault {
    let status = response.status();
    let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
    let mut body = response.bytes_stream();
    let mut words = Vec::new();
    while let Some(Ok(chunk)) = body.next().await {
        words.extend_from_slice(&chunk[..chunk.len().min(MAX_ERROR_BODY - words.len())]);
        if words.len() >= MAX_ERROR_BODY {
            break;
        }
    }
    let said = || quoted(String::from_utf8_lossy(&words).trim());
    match status {
        StatusCode::NOT_FOUND => PullFault::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => PullFault::Unauthorized,
        StatusCode::TOO_MANY_REQUESTS => PullFault::RateLimited { retry_after: wait },
        status if status.is_server_error() => PullFault::Unreachable(format!("{status}: {}", said())),
        status => PullFault::Invalid(format!("the registry answers {status}: {}", said())),
    }
}

/// `Retry-After`: seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(date.duration_since(jiff::Timestamp::now())).ok()
}

fn login_fault(error: OciDistributionError) -> PullFault {
    match error {
        OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
            PullFault::Unauthorized
        }
        OciDistributionError::RegistryError { envelope, .. }
            if envelope.errors.iter().any(|error| error.code == OciErrorCode::Toomanyrequests) =>
        {
            PullFault::RateLimited { retry_after: None }
        }
        OciDistributionError::RequestError(error) => PullFault::Unreachable(quoted(&error.to_string())),
        error => PullFault::Invalid(quoted(&format!("the registry's login: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_the_loopback_only() {
        for here in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.3.2.1", "[::1]:5000"] {
            assert!(is_loopback(here), "{here}");
        }
        for there in ["registry.example", "localhost.example:5000", "10.0.0.1:5000", "0.0.0.0:5000", "[::2]:1"] {
            assert!(!is_loopback(there), "{there}");
        }
    }

    #[test]
    fn a_pause_is_asked_for_in_seconds_or_until_a_date() {
        assert_eq!(retry_after(" 17 "), Some(Duration::from_secs(17)));
        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60);
        let text = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&soon).expect("prints");
        let wait = retry_after(&text).expect("a date");
        assert!(wait > Duration::from_secs(50) && wait < Duration::from_secs(61), "{wait:?}");
        assert_eq!(retry_after("soon"), None);
    }
}
