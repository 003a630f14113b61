//! The REST interface as a client uses it, and an event stream that remembers how far it was read.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::ACCEPT;
use reqwest::{Client, Method};
use serde_json::Value;

use super::{PATIENCE, conformance};

/// A client with a key.
#[derive(Clone)]
pub struct Api {
    /// Where the server is.
    pub base: String,
    key: String,
    http: Client,
}

/// One event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// `id:`; deltas have none.
    pub id: Option<u64>,
    /// `event:`.
    pub kind: String,
    /// `data:`.
    pub data: Value,
}

/// An open event stream.
pub struct Frames {
    response: futures_util::stream::BoxStream<'static, reqwest::Result<Vec<u8>>>,
    buffer: Vec<u8>,
    ready: VecDeque<Frame>,
}

impl Api {
    /// A client of the server there.
    pub fn new(base: &str, key: &str) -> Self {
        // No pool: after a kill, a pooled connection is a dead one.
        let http =
            Client::builder().pool_max_idle_per_host(0).connect_timeout(Duration::from_secs(10)).build().unwrap();
        Self { base: base.to_owned(), key: key.to_owned(), http }
    }

    /// The key itself, for requests that are written by hand.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A request that is not sent yet.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.key)
    }

    /// Sends it, and holds what comes back against the document; answers status and JSON (null where there is none).
    pub async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let request = request.timeout(PATIENCE).build().unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let answer = self.http.execute(request).await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.bytes().await.unwrap();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        conformance::check((method.as_str(), &path), status, header, &body);
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    /// GETs text.
    pub async fn text(&self, path: &str) -> String {
        let answer = self.request(Method::GET, path).timeout(PATIENCE).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.text().await.unwrap()
    }

    /// Opens a stream of server-sent events after this id.
    pub async fn follow(&self, path: &str, after: Option<u64>) -> Frames {
        self.try_follow(path, after).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The same, where the server may be dead.
    pub async fn try_follow(&self, path: &str, after: Option<u64>) -> reqwest::Result<Frames> {
        let mut request = self.request(Method::GET, path).header(ACCEPT, "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after.to_string());
        }
        let response = request.send().await?.error_for_status()?;
        Ok(Frames::of(response))
    }
}

impl Frames {
    /// The frames in this response.
    pub fn of(response: reqwest::Response) -> Self {
        let response = response.bytes_stream().map(|chunk| chunk.map(|bytes| bytes.to_vec())).boxed();
        Self { response, buffer: Vec::new(), ready: VecDeque::new() }
    }

    /// The next event; `None` when the connection ended, however it did.
    pub async fn next(&mut self) -> Option<Frame> {
        tokio::time::timeout(PATIENCE, self.next_frame()).await.expect("an event comes in time")
    }

    async fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            self.buffer.extend(self.response.next().await?.ok()?);
            while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let bytes: Vec<_> = self.buffer.drain(..end + 2).collect();
                self.ready.extend(frame(std::str::from_utf8(&bytes).unwrap()));
            }
        }
    }
}

fn frame(text: &str) -> Option<Frame> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = serde_json::from_str(field("data")?).unwrap();
    Some(Frame {
        id: field("id").map(|id| id.parse().unwrap()),
        kind: field("event").unwrap_or_default().to_owned(),
        data,
    })
}
