//! A client of the REST interface, for the commands that talk to a server.

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use reqwest::{Method, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

/// Largest answer read into memory, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Largest line of an event stream.
const MAX_LINE: usize = 4 * 1024 * 1024;
/// How long an event stream may be silent: the server sends a comment every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// The wait before a broken event stream is opened again for the first time; it doubles with each time.
const RECONNECT: Duration = Duration::from_millis(500);
/// The longest wait before it is opened again.
const LONGEST_RECONNECT: Duration = Duration::from_secs(5);
/// How often in a row a stream is opened again without an event in between: long enough for a server to be replaced.
const MOST_RECONNECTS: u32 = 24;

/// A server and the key for it.
pub struct Client {
    base: String,
    key: SecretString,
    http: reqwest::Client,
}

/// An event of a stream.
pub struct Event {
    /// Its type; `delta` for words that are not stored.
    pub kind: String,
    /// Its envelope, or the delta.
    pub data: Value,
}

impl Client {
    /// A client for this server.
    pub fn new(base: &str, key: SecretString) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), key, http })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(self.key.expose_secret())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Vec<u8>> {
        let answer = request.send().await.with_context(|| format!("cannot reach the server at {}", self.base))?;
        let status = answer.status();
        let mut body = Vec::new();
        let mut chunks = answer.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk.context("the server's answer broke off")?);
            if body.len() > MAX_ANSWER {
                bail!("the server's answer is larger than {MAX_ANSWER} bytes");
            }
        }
        if !status.is_success() {
            bail!("{}", self.problem(status, &body));
        }
        Ok(body)
    }

    /// GETs JSON.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.send(self.request(Method::GET, path)).await?)?)
    }

    /// GETs whatever it is.
    pub async fn get_bytes(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        self.send(self.request(Method::GET, path)).await
    }

    /// GETs whatever it is, however large, into a file.
    pub async fn download(&self, path: &str, out: &mut impl std::io::Write) -> anyhow::Result<()> {
        let answer = self.request(Method::GET, path).send().await;
        let answer = answer.with_context(|| format!("cannot reach the server at {}", self.base))?;
        let status = answer.status();
        if !status.is_success() {
            let body = answer.bytes().await.unwrap_or_default();
            bail!("{}", self.problem(status, &body));
        }
        let mut chunks = answer.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            out.write_all(&chunk.context("the server's answer broke off: what was written is not all of it")?)?;
        }
        Ok(out.flush()?)
    }

    /// POSTs JSON; answers JSON, or null where the server says nothing.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.send(self.request(Method::POST, path).json(body)).await?;
        if answer.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&answer)?) }
    }

    /// PUTs JSON; answers JSON.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.send(self.request(Method::PUT, path).json(body)).await?)?)
    }

    /// PATCHes JSON; answers JSON.
    pub async fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.send(self.request(Method::PATCH, path).json(body)).await?)?)
    }

    /// DELETEs; answers JSON, or null where the server says nothing.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.send(self.request(Method::DELETE, path)).await?;
        if answer.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&answer)?) }
    }

    /// Follows a task's events from the first, across broken connections, until `see` says it has seen enough.
    pub async fn follow(&self, id: &str, mut see: impl FnMut(Event) -> bool) -> anyhow::Result<()> {
        let mut last: Option<String> = None;
        let mut failures = 0;
        loop {
            let mut request = self
                .request(Method::GET, &format!("/v1/tasks/{id}/events"))
                .header(header::ACCEPT, "text/event-stream");
            if let Some(last) = &last {
                request = request.header("last-event-id", last);
            }
            match self.read_stream(request, &mut last, &mut failures, &mut see).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if failures >= MOST_RECONNECTS => return Err(error),
                Err(_) if failures == 0 => {
                    eprintln!("orchestra: the connection to {} is lost; trying again", self.base)
                }
                Err(_) => {}
            }
            tokio::time::sleep(LONGEST_RECONNECT.min(RECONNECT * 2_u32.pow(failures.min(8)))).await;
            failures += 1;
        }
    }

    async fn read_stream(
        &self,
        request: reqwest::RequestBuilder,
        last: &mut Option<String>,
        failures: &mut u32,
        see: &mut impl FnMut(Event) -> bool,
    ) -> anyhow::Result<bool> {
        let answer = request.send().await.with_context(|| format!("cannot reach the server at {}", self.base))?;
        let status = answer.status();
        if !status.is_success() {
            let body = answer.bytes().await.unwrap_or_default();
            // Asking again gives the same answer, unless it is busy or on its way up or down.
            if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
                *failures = MOST_RECONNECTS;
            }
            bail!("{}", self.problem(status, &body));
        }
        let mut chunks = answer.bytes_stream();
        let mut buffer = Vec::new();
        let mut fields = Fields::default();
        while let Some(chunk) = chunks.next().await {
            buffer.extend_from_slice(&chunk?);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end_matches(['\n', '\r']);
                if !line.is_empty() {
                    fields.take(line);
                    continue;
                }
                let Some(event) = fields.event(last)? else { continue };
                *failures = 0;
                if see(event) {
                    return Ok(true);
                }
            }
            if buffer.len() > MAX_LINE {
                bail!("a line of the event stream is longer than {MAX_LINE} bytes");
            }
        }
        Ok(false)
    }
}

/// The fields of the event that is being read.
#[derive(Default)]
struct Fields {
    id: Option<String>,
    kind: Option<String>,
    data: String,
}

impl Fields {
    fn take(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.id = Some(value.to_owned()),
            "event" => self.kind = Some(value.to_owned()),
            "data" => self.data.push_str(value),
            _ => {}
        }
    }

    fn event(&mut self, last: &mut Option<String>) -> anyhow::Result<Option<Event>> {
        let Self { id, kind, data } = std::mem::take(self);
        if data.is_empty() {
            return Ok(None);
        }
        if id.is_some() {
            *last = id;
        }
        let data = serde_json::from_str(&data).context("the server sent an event that is not JSON")?;
        Ok(Some(Event { kind: kind.unwrap_or_default(), data }))
    }
}

impl Client {
    /// A refusal, and whose it is where that may be another server than was meant.
    fn problem(&self, status: StatusCode, body: &[u8]) -> String {
        let refusal = problem(status, body);
        if status != StatusCode::UNAUTHORIZED {
            return refusal;
        }
        format!("{refusal}\nThe server is {}; --server or ORCHESTRA_URL names another one.", self.base)
    }
}

/// A refusal in a sentence, with the fields it concerns.
fn problem(status: StatusCode, body: &[u8]) -> String {
    let Ok(problem) = serde_json::from_slice::<Value>(body) else {
        return format!("the server answered {status}");
    };
    let text = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut lines = vec![format!("{} ({status}, {})", text("title"), text("code")), text("detail").to_owned()];
    for error in problem.get("errors").and_then(Value::as_array).into_iter().flatten() {
        let field = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
        lines.push(format!("  {}: {}", field("pointer"), field("detail")));
    }
    lines.retain(|line| !line.is_empty());
    lines.join("\n")
}
