//! The one way to a forge's REST interface: bounded in time and size, patient with limits, and careful with the token.
//!
//! Architecture invariant: a token goes to the origin of the configured `api_url` and nowhere else. No redirect is
//! followed by the client; one within that origin is followed here, by hand.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{Method, Url};
use secrecy::SecretString;
use serde_json::Value;

use super::lane::{Lanes, Turn};
use super::refusal;
use super::token::rest_header;
use super::{Access, ForgeError, ForgeKind};
use crate::http::HttpClient;
use crate::redact;

/// The largest answer read, in bytes: a page of fifty comments of the longest kind.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// How much of a forge's text stands in an error.
const MAX_FORGE_TEXT: usize = 600;
/// Redirects within the forge's own origin: a repository that was renamed answers with one.
const MAX_REDIRECTS: usize = 3;
/// How often a question is asked again after a server error or a broken connection.
const RETRIES: u32 = 2;
/// How many times longer than before another question the pause is that gives a forge time to learn of a push: with the
/// usual limits one to two seconds, and then twice that.
const SETTLING: u32 = 4;
/// How often one call waits for a limit to pass, however short the waits.
const MAX_WAITS: u32 = 5;

/// How patient a forge's client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgeLimits {
    /// For opening a connection.
    pub connect_timeout: Duration,
    /// For one request and its answer.
    pub request_timeout: Duration,
    /// What a forge may ask to wait, in all waits of one call together; longer is told to the caller.
    pub longest_wait: Duration,
    /// Between two things created with one token.
    pub creation_gap: Duration,
    /// Before a question is asked again; doubled each time, and up to twice as long by chance.
    pub retry_pause: Duration,
}

impl Default for ForgeLimits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            longest_wait: Duration::from_secs(20),
            // GitHub's "best practices for using the REST API" asks for at least one second.
            creation_gap: Duration::from_secs(1),
            retry_pause: Duration::from_millis(250),
        }
    }
}

/// A forge's REST interface.
pub(super) struct Rest {
    kind: ForgeKind,
    api: Url,
    limits: ForgeLimits,
    client: HttpClient,
    lanes: Arc<Lanes>,
}

/// One request. The path is below the configured `api_url`.
#[derive(Debug, Clone)]
pub(super) struct Request {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, &'static str)>,
    body: Option<Value>,
    pub(super) doing: &'static str,
    pub(super) needs: Option<&'static str>,
    takes: &'static [u16],
}

impl Request {
    fn new(method: Method, path: impl Into<String>, doing: &'static str, body: Option<Value>) -> Self {
        let (path, query, headers) = (path.into(), Vec::new(), Vec::new());
        Self { method, path, query, headers, body, doing, needs: None, takes: &[] }
    }

    /// A question. `doing` completes "asked to …".
    pub(super) fn get(path: impl Into<String>, doing: &'static str) -> Self {
        Self::new(Method::GET, path, doing, None)
    }

    /// Creates something.
    pub(super) fn post(path: impl Into<String>, doing: &'static str, body: Value) -> Self {
        Self::new(Method::POST, path, doing, Some(body))
    }

    /// Replaces something.
    pub(super) fn put(path: impl Into<String>, doing: &'static str, body: Value) -> Self {
        Self::new(Method::PUT, path, doing, Some(body))
    }

    /// Changes something.
    pub(super) fn patch(path: impl Into<String>, doing: &'static str, body: Value) -> Self {
        Self::new(Method::PATCH, path, doing, Some(body))
    }

    /// One more parameter.
    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// One more header.
    pub(super) fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The permission that this takes, for a forge that does not name it when it is missing.
    pub(super) fn needs(mut self, permission: &'static str) -> Self {
        self.needs = Some(permission);
        self
    }

    /// Statuses that are an answer to the caller and no error yet; [`Session::refusal`] makes it one.
    pub(super) fn takes(mut self, statuses: &'static [u16]) -> Self {
        self.takes = statuses;
        self
    }
}

/// What a forge answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// `Null` when there was no body, or none in JSON.
    pub(super) body: Value,
    /// There was a body, and it was no JSON: a web page, as a rule.
    pub(super) foreign: bool,
}

impl Answer {
    pub(super) fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// A text in the body, by JSON pointer.
    pub(super) fn text(&self, pointer: &str) -> Option<&str> {
        self.body.pointer(pointer)?.as_str()
    }

    /// The items of the body, or of the array that it holds under `pointer`.
    pub(super) fn items(&self, pointer: &str) -> &[Value] {
        self.body.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// Where the interface is to be found has to be an address that a token may be sent to.
pub(super) fn check_api_url(text: &str) -> Option<Url> {
    let url = Url::parse(text.trim_end_matches('/')).ok()?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    (matches!(url.scheme(), "https" | "http") && url.has_host() && plain && url.fragment().is_none()).then_some(url)
}

/// A text as one segment of a path: everything but RFC 3986's unreserved characters percent-encoded.
pub(super) fn segment(text: &str) -> String {
    let encode = |byte: u8| match byte {
        _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

impl Rest {
    pub(super) fn new(kind: ForgeKind, api: Url, limits: ForgeLimits, lanes: Arc<Lanes>) -> Self {
        let (connect, request) = (limits.connect_timeout, limits.request_timeout);
        let client = HttpClient::new(move |client| {
            client
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .referer(false)
                .connect_timeout(connect)
                .timeout(request)
                .user_agent(concat!("orchestra/", env!("CARGO_PKG_VERSION")))
        });
        Self { kind, api, limits, client, lanes }
    }

    /// The same interface at an address made of the configured one, on the same origin.
    pub(super) fn rooted(mut self, root: impl FnOnce(&Url) -> String) -> Self {
        let path = root(&self.api);
        self.api.set_path(&path);
        self
    }

    /// The path of the configured address, for interfaces that have several roots.
    pub(super) fn api(&self) -> &Url {
        &self.api
    }

    /// A conversation on behalf of one token about one repository.
    pub(super) fn session<'a>(&'a self, access: Access<'a>) -> Session<'a> {
        Session { rest: self, access, redactor: redact::Redactor::new(access.token) }
    }
}

/// A conversation with a forge on behalf of one token about one repository.
pub(super) struct Session<'a> {
    rest: &'a Rest,
    access: Access<'a>,
    redactor: redact::Redactor,
}

/// How one try ended without an answer.
enum Broken {
    Unreachable(String),
    Lost(String),
    Silent(String),
    Foreign(String),
}

impl Session<'_> {
    pub(super) fn repo(&self) -> String {
        self.access.repo.to_string()
    }

    pub(super) fn kind(&self) -> ForgeKind {
        self.rest.kind
    }

    pub(super) fn token(&self) -> Option<&SecretString> {
        self.access.token
    }

    /// The text as one printable line of bounded length, without the token.
    pub(super) fn line(&self, text: &str) -> String {
        one_line(&self.redactor.apply(text, "[redacted]"), MAX_FORGE_TEXT)
    }

    /// Sends it, waits out short limits, asks questions again. An answer is a 2xx, or a status that the request takes.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, ForgeError> {
        let limits = &self.rest.limits;
        let turn = if request.method == Method::GET { None } else { Some(self.turn().await?) };
        let (mut waited, mut waits, mut retries) = (Duration::ZERO, 0, 0);
        loop {
            let tried = self.try_once(request).await;
            let again = match &tried {
                Ok(answer) => answer.status >= 500 && refusal::limited(answer).is_none(),
                Err(Broken::Unreachable(_) | Broken::Lost(_)) => true,
                Err(Broken::Silent(_) | Broken::Foreign(_)) => false,
            };
            if again && request.method == Method::GET && retries < RETRIES {
                tokio::time::sleep(jittered(limits.retry_pause * 2_u32.pow(retries))).await;
                retries += 1;
                continue;
            }
            let answer = tried.map_err(|broken| self.broken(request, broken))?;
            if let Some(limit) = refusal::limited(&answer) {
                let wait = limit.wait();
                if let Some(turn) = &turn {
                    turn.close_for(wait);
                }
                if waits < MAX_WAITS && waited + wait <= limits.longest_wait {
                    tokio::time::sleep(wait).await;
                    waited += wait;
                    waits += 1;
                    continue;
                }
                return Err(ForgeError::RateLimited { repo: self.repo(), retry_after: Some(wait) });
            }
            return match answer.status {
                200..300 if answer.foreign => Err(self.not_a_forge("it answers with a web page")),
                200..300 => Ok(answer),
                status if request.takes.contains(&status) => Ok(answer),
                _ => Err(self.refusal(request, &answer)),
            };
        }
    }

    /// Gives the forge time to learn of what was just pushed; longer each time, counted from 1.
    pub(super) async fn settle(&self, time: u32) {
        let pause = self.rest.limits.retry_pause * SETTLING * 2_u32.saturating_pow(time.saturating_sub(1));
        tokio::time::sleep(jittered(pause)).await;
    }

    /// The error that this answer is.
    pub(super) fn refusal(&self, request: &Request, answer: &Answer) -> ForgeError {
        refusal::refused(self, request, answer)
    }

    pub(super) fn not_a_forge(&self, detail: &str) -> ForgeError {
        ForgeError::NotAForge { repo: self.repo(), detail: self.line(detail) }
    }

    async fn turn(&self) -> Result<Turn, ForgeError> {
        let (limits, origin) = (&self.rest.limits, self.rest.api.origin().ascii_serialization());
        let turn = self.rest.lanes.turn(&origin, self.access.token, limits.creation_gap, limits.longest_wait).await;
        turn.map_err(|crowded| ForgeError::RateLimited { repo: self.repo(), retry_after: Some(crowded.retry_after) })
    }

    fn broken(&self, request: &Request, broken: Broken) -> ForgeError {
        let (repo, doing) = (self.repo(), request.doing);
        match broken {
            Broken::Unreachable(detail) => ForgeError::Unreachable { repo, detail },
            Broken::Lost(detail) | Broken::Silent(detail) => ForgeError::ConnectionLost { repo, doing, detail },
            Broken::Foreign(detail) => ForgeError::NotAForge { repo, detail },
        }
    }

    async fn try_once(&self, request: &Request) -> Result<Answer, Broken> {
        let mut url = self.rest.api.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}{}", request.path));
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.exchange(request, url.clone()).await?;
            // 307 and 308 keep the method; of the others only a question survives.
            let follow = match answer.status {
                307 | 308 => true,
                301..=303 => request.method == Method::GET,
                _ => return Ok(answer),
            };
            let target = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
            let target = target.and_then(|target| url.join(target).ok());
            url = match target {
                Some(target) if follow && target.origin() == self.rest.api.origin() => target,
                Some(_) | None => return Err(Broken::Foreign("it redirects to another address".to_owned())),
            };
        }
        Err(Broken::Foreign("it redirects in a circle".to_owned()))
    }

    async fn exchange(&self, request: &Request, url: Url) -> Result<Answer, Broken> {
        let client = self.rest.client.get().await.map_err(Broken::Unreachable)?;
        let mut builder = client.request(request.method.clone(), url).header(ACCEPT, "application/json");
        for (name, value) in &request.headers {
            builder = builder.header(*name, *value);
        }
        if let Some(token) = self.access.token {
            let header = rest_header(self.rest.kind, token);
            // No forge makes such a token, and none is told about it.
            let (name, value) =
                header.ok_or_else(|| Broken::Foreign("the token has characters that no header takes".to_owned()))?;
            builder = builder.header(name, value);
        }
        if let Some(body) = &request.body {
            builder = builder.json(body);
        }
        let lost = |error: reqwest::Error| self.lost(error);
        let mut response = builder.send().await.map_err(lost)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(Broken::Foreign(format!("it answers with more than {MAX_ANSWER} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let json = kind.starts_with("application/json") || kind.contains("+json");
        let body = json.then(|| serde_json::from_slice(&bytes).ok()).flatten();
        let foreign = body.is_none() && !bytes.trim_ascii().is_empty();
        Ok(Answer { status, headers, body: body.unwrap_or_default(), foreign })
    }

    fn lost(&self, error: reqwest::Error) -> Broken {
        let error = error.without_url();
        if error.is_timeout() && !error.is_connect() {
            return Broken::Silent(format!("no answer within {:?}", self.rest.limits.request_timeout));
        }
        let mut detail = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            detail = cause.to_string();
            source = cause.source();
        }
        let detail = self.line(&detail);
        if error.is_connect() { Broken::Unreachable(detail) } else { Broken::Lost(detail) }
    }
}

/// Between once and twice the pause.
fn jittered(pause: Duration) -> Duration {
    let chance = getrandom::u32().unwrap_or_default();
    pause + pause.mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

fn one_line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty()) {
        let room = most.saturating_sub(line.len() + 1);
        if word.len() > room {
            let end = (0..=room).rev().find(|end| word.is_char_boundary(*end)).unwrap_or_default();
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(&word[..end]);
            line.push('…');
            break;
        }
        line.push_str(if line.is_empty() { "" } else { " " });
        line.push_str(word);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_one_bounded_line() {
        assert_eq!(one_line(" a\u{1b}[31m \r\n b\0c ", 600), "a [31m b c");
        assert_eq!(one_line("", 600), "");
        let long = one_line(&"ä".repeat(1000), 600);
        assert!(long.len() < 610 && long.ends_with('…'), "{}", long.len());
        assert!(one_line(&"word ".repeat(1000), 600).len() < 610);
    }

    #[test]
    fn a_segment_cannot_leave_its_place() {
        assert_eq!(segment("group/sub/../x?y#z é"), "group%2Fsub%2F..%2Fx%3Fy%23z%20%C3%A9");
    }

    #[test]
    fn a_token_is_sent_to_no_odd_address() {
        for wrong in ["ftp://a.example", "https://user@a.example", "https://a.example/?x", "not a url", "https://"] {
            assert!(check_api_url(wrong).is_none(), "{wrong}");
        }
        assert!(check_api_url("https://a.example/api/v3/").is_some_and(|url| url.path() == "/api/v3"));
    }
}
