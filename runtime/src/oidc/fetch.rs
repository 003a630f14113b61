//! One question to an identity provider, with its answer in bounds.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{RequestBuilder, Url, redirect};
use serde_json::Value;

use super::{IdentityError, cleaned};
use crate::http::HttpClient;

/// Largest answer of any kind, in bytes. The largest real ones are tokens with some hundred groups.
pub(super) const MAX_ANSWER: usize = 512 * 1024;
/// How much of a failure's words is passed on.
const MAX_WORDS: usize = 200;

/// A client that waits for so long and follows nothing.
pub(super) fn client(timeout: Duration) -> HttpClient {
    HttpClient::new(move |client| {
        client
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(timeout)
            .timeout(timeout)
            .user_agent(concat!("orchestra/", env!("CARGO_PKG_VERSION")))
    })
}

/// An address that is asked: encrypted, unless it is this machine itself.
pub(super) fn address(what: &'static str, text: &str) -> Result<Url, IdentityError> {
    let refuse =
        |detail: &str| IdentityError::Nonsense { what, detail: format!("{} {detail}", cleaned(text, MAX_WORDS)) };
    let url = Url::parse(text).map_err(|_| refuse("is no address"))?;
    let host = url.host_str().ok_or_else(|| refuse("has no host"))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let here = host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match url.scheme() {
        "https" => {}
        "http" if here => {}
        _ => return Err(refuse("is not https")),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(refuse("has a user, a password or a fragment"));
    }
    Ok(url)
}

/// What came back: the status, and the JSON.
pub(super) struct Answer {
    pub status: u16,
    pub body: Value,
}

/// Asks, and reads an answer in JSON of whatever status.
pub(super) async fn ask(what: &'static str, request: RequestBuilder) -> Result<Answer, IdentityError> {
    let unreachable = |error: reqwest::Error| {
        let error = error.without_url();
        let words = if error.is_timeout() { "it took too long".to_owned() } else { error.to_string() };
        IdentityError::Unreachable(cleaned(&words, MAX_WORDS))
    };
    let nonsense = |detail: String| IdentityError::Nonsense { what, detail };
    let mut response = request.header(ACCEPT, "application/json").send().await.map_err(unreachable)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(nonsense(format!("it answers {status} and points elsewhere, which is not followed")));
    }
    if status.is_server_error() {
        return Err(IdentityError::Unreachable(format!("it answers {status}")));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = cleaned(kind, MAX_WORDS);
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        if body.len() + piece.len() > MAX_ANSWER {
            return Err(nonsense(format!("it is larger than {MAX_ANSWER} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    let body = serde_json::from_slice(&body).map_err(|_| nonsense(format!("it is no JSON ({status}, {kind:?})")))?;
    Ok(Answer { status: status.as_u16(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encrypted_addresses_are_asked_unless_they_are_here() {
        for fine in [
            "https://login.example.com/a",
            "http://127.0.0.1:9/x",
            "http://[::1]:9/",
            "http://localhost/",
            "https://a/?p=b",
        ] {
            assert!(address("document", fine).is_ok(), "{fine}");
        }
        for wrong in [
            "http://login.example.com/",
            "http://127.0.0.1.example.com/",
            "ftp://login.example.com/",
            "file:///etc/passwd",
            "https://user:pass@login.example.com/",
            "https://login.example.com/#a",
            "login.example.com",
            "",
        ] {
            assert!(matches!(address("document", wrong), Err(IdentityError::Nonsense { .. })), "{wrong}");
        }
    }
}
