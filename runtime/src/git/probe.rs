//! Asks the forge itself why it refused: libgit2 drops the body of an HTTP error, and the sentence is in there.

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

/// What the forge answered.
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: Option<String>,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self(HttpClient::new(|client| {
            client
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .timeout(PROBE_TIMEOUT)
                .user_agent("git/2.0 (orchestra)")
        }))
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
        let url = format!("{}/info/refs?service={service}", remote.url.trim_end_matches('/'));
        let mut request = self.0.get().await.ok()?.get(url).header(ACCEPT, "*/*");
        if let Some(token) = token {
            request = match remote.auth.credential(token) {
                GitCredential::Basic { user, password } => request.basic_auth(user, Some(password)),
                GitCredential::Bearer(token) => request.bearer_auth(token),
            };
        }
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
