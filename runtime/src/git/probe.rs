//! Asks the forge itself why it refused: libgit2 drops the body of an HTTP error, and the sentence is in there.

use std::sync::LazyLock;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use secrecy::SecretString;

use super::error::{GitError, Operation};
use super::transport::Redactor;
use super::{Remote, RemoteKind};
use crate::forge::GitCredential;
use crate::http::HttpClient;

/// How long the question may take: it explains a failure that has already happened.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of an answer is read: forges' sentences are one or two lines, log-in pages are not needed.
const MAX_PROBE_BYTES: usize = 8 * 1024;

/// The longest wait that a forge is believed to mean.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// The longest address that is shown: that of any real repository is shorter.
const MAX_ADDRESS_BYTES: usize = 200;
/// How much of a header is shown: lists of permissions are shorter.
const MAX_HEADER_CHARS: usize = 120;

pub(super) struct Probe(HttpClient);

static CLIENT: LazyLock<HttpClient> = LazyLock::new(|| {
    HttpClient::new(|client| {
        client
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(PROBE_TIMEOUT)
            // Asked once in a while, from whichever runtime.
            .pool_max_idle_per_host(0)
            .user_agent("git/2.0 (orchestra)")
    })
});

/// Whether the server sends a git client on to another address. Blocks; for the threads of the pool. The error says why
/// the server could not be asked.
pub(super) fn sends_on(operation: Operation, remote: &Remote, token: &SecretString) -> Result<bool, String> {
    let services: &[&str] = match operation {
        // A push fetches first when its history is too short.
        Operation::Push => &["git-receive-pack", "git-upload-pack"],
        Operation::Clone | Operation::Checkout | Operation::Import | Operation::Commit | Operation::Diff => {
            &["git-upload-pack"]
        }
    };
    let ask = async {
        for service in services {
            let response = request(&CLIENT, service, remote, Some(token)).await?.send().await;
            let response = response.map_err(|error| error.without_url().to_string())?;
            if response.status().is_redirection() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    tokio::runtime::Handle::current().block_on(ask)
}

async fn request(
    client: &HttpClient,
    service: &str,
    remote: &Remote,
    token: Option<&SecretString>,
) -> Result<reqwest::RequestBuilder, String> {
    let url = format!("{}/info/refs?service={service}", remote.url.trim_end_matches('/'));
    let request = client.get().await?.get(url).header(ACCEPT, "*/*");
    Ok(match token.map(|token| remote.auth.credential(token)) {
        Some(GitCredential::Basic { user, password }) => request.basic_auth(user, Some(password)),
        Some(GitCredential::Bearer(token)) => request.bearer_auth(token),
        None => request,
    })
}

/// What the forge answered.
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: Option<String>,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self(CLIENT.clone())
    }

    /// A more exact error, when the forge has more to say about this one.
    pub(super) async fn explain(
        &self,
        error: GitError,
        operation: Operation,
        remote: &Remote,
        token: Option<&SecretString>,
    ) -> GitError {
        let asks = matches!(
            error,
            GitError::TokenRejected { .. }
                | GitError::TokenLacksAccess { .. }
                | GitError::RepoNotFound { .. }
                | GitError::RateLimited { .. }
                | GitError::ForgeUnavailable { .. }
                | GitError::RepoDisabled { .. }
                | GitError::Redirected { .. }
        );
        if !asks || remote.kind != RemoteKind::Http {
            return error;
        }
        match self.ask(operation, remote, token).await {
            Some(answer) => refine(error, operation, answer),
            None => error,
        }
    }

    async fn ask(&self, operation: Operation, remote: &Remote, token: Option<&SecretString>) -> Option<Answer> {
        let service = if operation == Operation::Push { "git-receive-pack" } else { "git-upload-pack" };
        let request = request(&self.0, service, remote, token).await.ok()?;
        let mut response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            let room = MAX_PROBE_BYTES - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if body.len() == MAX_PROBE_BYTES {
                break;
            }
        }
        let text = sentence(&kind, &body).map(|text| Redactor::new(token).line(&text));
        Some(Answer { status, headers, text: text.filter(|text| !text.is_empty()) })
    }
}

/// The sentence in an answer: plain text as it is, the message of a JSON error, nothing of a web page.
fn sentence(kind: &str, body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    if kind.starts_with("application/json") || kind.contains("+json") {
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        let paths = ["/message", "/error/message", "/errors/0/message", "/error_description", "/error"];
        return paths.iter().find_map(|path| Some(value.pointer(path)?.as_str()?.to_owned()));
    }
    let text = text.trim();
    (kind.starts_with("text/plain") && !text.starts_with('<')).then(|| text.to_owned())
}

/// How long the forge asks to wait: seconds, or a date (RFC 9110, 10.2.3). Bounded by a day.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
            Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Where the forge points to, as an address to clone from: without a query, which can hold anything.
fn new_address(repo: &str, headers: &HeaderMap) -> Option<String> {
    let location = headers.get(LOCATION)?.to_str().ok()?;
    let mut url = Url::parse(repo).ok()?.join(location).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    let plain = url.username().is_empty() && url.password().is_none();
    let address = url.as_str().trim_end_matches("/info/refs").to_owned();
    (plain && address.len() <= MAX_ADDRESS_BYTES).then_some(address)
}

/// The classic scopes of which one would have been enough, when the token has none of them.
fn missing_scope(accepted: Option<String>, granted: Option<String>) -> Option<String> {
    let list = |text: &str| {
        text.split(',').map(|scope| scope.trim().to_owned()).filter(|scope| !scope.is_empty()).collect::<Vec<_>>()
    };
    let (accepted, granted) = (list(&accepted?), list(&granted?));
    let enough = accepted.is_empty() || accepted.iter().any(|scope| granted.contains(scope));
    (!enough).then(|| accepted.join(" or "))
}

fn refine(error: GitError, operation: Operation, answer: Answer) -> GitError {
    let Answer { status, headers, text: forge } = answer;
    let said = forge.as_deref().unwrap_or_default().to_lowercase();
    let says = |needles: &[&str]| needles.iter().any(|needle| said.contains(needle));
    let header = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(value.chars().filter(|c| !c.is_control()).take(MAX_HEADER_CHARS).collect::<String>())
    };
    let retry_after = retry_after(&headers);
    let captcha = header("x-authentication-denied-reason").is_some_and(|why| why.to_lowercase().contains("captcha"));
    match (error, status) {
        (
            GitError::TokenRejected { repo, .. }
            | GitError::TokenLacksAccess { repo, .. }
            | GitError::RepoNotFound { repo, .. },
            401 | 403,
        ) if captcha => GitError::CaptchaRequired { repo },
        (
            GitError::RateLimited { repo, .. }
            | GitError::ForgeUnavailable { repo, .. }
            | GitError::TokenLacksAccess { repo, .. },
            429,
        ) => GitError::RateLimited { operation, repo, retry_after },
        (GitError::ForgeUnavailable { repo, .. }, 500..) => {
            GitError::ForgeUnavailable { operation, repo, status, retry_after, forge }
        }
        (GitError::TokenRejected { repo, .. } | GitError::TokenLacksAccess { repo, .. }, 401) => {
            GitError::TokenRejected { repo, forge }
        }
        (GitError::RepoNotFound { repo, .. }, 404 | 410) => GitError::RepoNotFound { repo, forge },
        (GitError::Redirected { operation, repo, .. }, 300..=399) => {
            GitError::Redirected { operation, to: new_address(&repo, &headers), repo }
        }
        (GitError::RepoDisabled { repo, .. }, 402 | 451) => GitError::RepoDisabled { repo, forge },
        (
            GitError::TokenLacksAccess { repo, .. }
            | GitError::TokenRejected { repo, .. }
            | GitError::RepoNotFound { repo, .. },
            403,
        ) => {
            let accepted = header("x-accepted-github-permissions").filter(|text| !text.is_empty());
            let scope = missing_scope(header("x-accepted-oauth-scopes"), header("x-oauth-scopes"));
            if says(&["archived"]) {
                GitError::RepoArchived { repo, forge }
            } else if says(&["saml", "single sign-on"]) || header("x-github-sso").is_some() {
                GitError::SsoRequired { repo, forge }
            } else if says(&["ip allow list", "ip address is not permitted", "ip whitelist", "not allowlisted"]) {
                GitError::AddressNotAllowed { repo, forge }
            } else if says(&["rate limit", "abuse detection"]) {
                GitError::RateLimited { operation, repo, retry_after }
            } else if says(&["has been disabled", "billing", "dmca"]) {
                GitError::RepoDisabled { repo, forge }
            } else if let Some(permission) = accepted.or(scope) {
                GitError::TokenLacksPermission { repo, permission, forge }
            } else {
                GitError::TokenLacksAccess { operation, repo, forge }
            }
        }
        (error, _) => error,
    }
}
