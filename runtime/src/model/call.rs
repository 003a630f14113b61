//! One attempt at a model call over HTTP: send, wait, read, and name what went wrong.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode};
use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::fault::{self, ErrorBody};
use super::provider::{Dialect, Models, Provider, Timeouts};
use super::sse::{Scanner, TooLong};
use super::wire::{self, Assembly, Fault, Limit, Progress};
use super::{
    Charge, FaultClass, ModelClient, ModelFailure, ModelReply, ModelRequest, anthropic, bound::input_bound, openai,
};

/// The longest reply that is read, in bytes on the wire: the largest output limit with every token an event of its own.
pub const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// The longest error body that is read.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// How long an error body is waited for: the status has said enough.
const ERROR_BODY_WAIT: Duration = Duration::from_secs(10);

/// After the last event, how long the connection's proper end is waited for, so that it can be used again.
const END_WAIT: Duration = Duration::from_millis(50);

#[async_trait]
impl ModelClient for Models {
    async fn call(
        &self,
        request: &ModelRequest,
        key: Option<&SecretString>,
        deltas: Option<mpsc::Sender<String>>,
        cancel: CancellationToken,
    ) -> Result<ModelReply, ModelFailure> {
        let refuse = |class, message| Err(ModelFailure::new(class, Charge::Nothing, message));
        let name = &request.model.provider;
        let Some(provider) = self.providers.get(&**name) else {
            return refuse(FaultClass::Unsupported, format!("no model provider is named {name}"));
        };
        if cancel.is_cancelled() {
            return refuse(FaultClass::Cancelled, "the call was cancelled before it was made".into());
        }
        let key = key.or(provider.operator_key.as_ref());
        if key.is_none() && provider.key_required {
            return refuse(FaultClass::Auth, format!("no model key for {name} was given"));
        }
        let Some(headers) = headers(provider, key) else {
            return refuse(FaultClass::Auth, format!("the model key for {name} has characters that no key has"));
        };
        let limit = Limit {
            tokens: request.max_output_tokens,
            renamed: provider.is_openai(),
            standard_tier: provider.bills_service_tiers(),
        };
        let body = wire::encode(request, limit)?;
        let mut exchange = Exchange {
            answered: false,
            provider,
            key,
            timeouts: &self.timeouts,
            input_bound: input_bound(body.len() as u64, None),
            max_output: request.max_output_tokens,
            deltas,
            reply: match provider.dialect {
                Dialect::Anthropic => Box::new(anthropic::Reply::default()),
                Dialect::OpenaiChat | Dialect::OpenaiResponses => Box::new(openai::Reply::default()),
            },
        };
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            outcome = exchange.run(headers, body) => Some(outcome),
        };
        match outcome {
            Some(Ok(())) => exchange.finish(),
            Some(Err(failure)) => Err(failure),
            // Dropping the exchange closes the connection, which is how a provider learns that nobody listens.
            None => Err(exchange.failure(Fault::new(FaultClass::Cancelled, "was told to stop"))),
        }
    }
}

fn headers(provider: &Provider, key: Option<&SecretString>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if provider.dialect == Dialect::Anthropic {
        headers.insert(HeaderName::from_static("anthropic-version"), HeaderValue::from_static(anthropic::VERSION));
    }
    if let Some(key) = key {
        let (name, value) = provider.authorization(key)?;
        headers.insert(name, value);
    }
    Some(headers)
}

struct Exchange<'a> {
    /// Whether anything at all has come back.
    answered: bool,
    provider: &'a Provider,
    key: Option<&'a SecretString>,
    timeouts: &'a Timeouts,
    input_bound: u64,
    max_output: u64,
    deltas: Option<mpsc::Sender<String>>,
    reply: Box<dyn Assembly>,
}

impl Exchange<'_> {
    /// Sends the request and reads the reply to its end.
    async fn run(&mut self, headers: HeaderMap, body: Vec<u8>) -> Result<(), ModelFailure> {
        // Before the clock starts: the first call of a process builds the client.
        let client = self.provider.client.get().await.map_err(|why| {
            let why = format!("no connection to {}: {why}", self.provider.name);
            ModelFailure::new(FaultClass::Tls, Charge::Nothing, why)
        })?;
        let wait = self.timeouts.first_byte_for(body.len());
        let deadline = Instant::now() + wait;
        let late = |exchange: &Self| {
            let what = format!("sent nothing for {} s", wait.as_secs());
            exchange.failure(Fault::new(FaultClass::FirstByteTimeout, what))
        };
        let send = client.post(self.provider.own_url()).headers(headers).body(body).send();
        let mut response = match timeout_at(deadline, send).await {
            Err(_) => return Err(late(self)),
            Ok(Err(error)) => return Err(self.not_sent(&error)),
            Ok(Ok(response)) => response,
        };
        self.answered = true;
        if response.status() != StatusCode::OK {
            return Err(self.refused(response).await);
        }
        if !is_event_stream(response.headers()) {
            return Err(self.not_a_stream(response).await);
        }
        let (mut scanner, mut events, mut read) = (Scanner::default(), Vec::new(), 0_usize);
        loop {
            let chunk = if read == 0 {
                timeout_at(deadline, response.chunk()).await.map_err(|_| late(self))?
            } else {
                timeout(self.timeouts.idle, response.chunk()).await.map_err(|_| {
                    let what = format!("fell silent for {} s in the middle of its reply", self.timeouts.idle.as_secs());
                    self.failure(Fault::new(FaultClass::IdleTimeout, what))
                })?
            };
            let Some(chunk) = chunk.map_err(|_| self.failure(broken()))? else {
                return self.reply.end().map_err(|fault| self.failure(fault));
            };
            read = read.saturating_add(chunk.len());
            let scanned = scanner.push(&chunk, &mut events);
            for event in events.drain(..) {
                let deltas = &self.deltas;
                let mut say = |words: &str| {
                    if let Some(deltas) = deltas {
                        // A full or closed channel: nobody keeps up, or nobody looks.
                        let _ = deltas.try_send(words.to_owned());
                    }
                };
                match self.reply.take(&event, &mut say) {
                    Ok(Progress::More) => {}
                    Ok(Progress::Whole) => {
                        let _ = timeout(END_WAIT, response.chunk()).await;
                        return Ok(());
                    }
                    Err(fault) => return Err(self.failure(fault)),
                }
            }
            let too_long = |what| self.failure(Fault::malformed(what));
            scanned.map_err(|TooLong| too_long("sent an event that is too long to be one"))?;
            if read > MAX_REPLY_BYTES {
                return Err(too_long("sent a reply without end"));
            }
        }
    }

    fn finish(self) -> Result<ModelReply, ModelFailure> {
        let (usage, usage_reported) = self.reply.counted().settle(self.input_bound, self.max_output);
        let name = &self.provider.name;
        match self.reply.finish() {
            Ok((content, stop_reason)) => Ok(ModelReply { content, stop_reason, usage, usage_reported }),
            Err(fault) => Err(ModelFailure::new(fault.class, Charge::Usage(usage), format!("{name} {}", fault.what))),
        }
    }

    /// The failure for a fault after the request was sent, with what the call has cost by now.
    fn failure(&self, fault: Fault) -> ModelFailure {
        let counted = self.reply.counted();
        let charged = if self.reply.started() && counted.input.is_some() {
            Charge::Usage(counted.settle(self.input_bound, self.max_output).0)
        } else if !self.reply.started() && fault.reported.is_some() {
            // An error in place of the first event: the provider did not begin.
            Charge::Nothing
        } else if !self.answered && fault.class != FaultClass::Cancelled {
            // Not one byte came back. Who stops a call before it is answered cannot know.
            Charge::Nothing
        } else {
            Charge::Unknown
        };
        let says = fault.reported.map(|body| body.suffix(self.key)).unwrap_or_default();
        ModelFailure::new(fault.class, charged, format!("{} {}{says}", self.provider.name, fault.what))
    }

    fn not_sent(&self, error: &reqwest::Error) -> ModelFailure {
        not_connected(&self.provider.name, error).unwrap_or_else(|| self.failure(broken()))
    }

    async fn refused(&self, response: Response) -> ModelFailure {
        let status = response.status().as_u16();
        let retry_after = fault::retry_after(response.headers(), jiff::Timestamp::now());
        let body = ErrorBody::read(&bounded_body(response).await);
        fault::of_status(&self.provider.name, status, retry_after, &body, self.key)
    }

    /// 200, but not a stream of events: an error that came with the wrong status, or somebody else's page.
    async fn not_a_stream(&self, response: Response) -> ModelFailure {
        let body = bounded_body(response).await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        self.failure(match body.get("error") {
            Some(error) => Fault::reported("answered with an error", ErrorBody::from_value(error)),
            None => Fault::malformed("did not answer with a stream of events"),
        })
    }
}

/// The failure of a connection that did not come about. `None`: it did, and broke later.
pub(crate) fn not_connected(name: &str, error: &reqwest::Error) -> Option<ModelFailure> {
    if !error.is_connect() {
        return None;
    }
    let why = innermost(error);
    let lower = why.to_ascii_lowercase();
    let failed = |class, message| Some(ModelFailure::new(class, Charge::Nothing, message));
    if ["certificate", "ssl", "tls", "handshake"].iter().any(|word| lower.contains(word)) {
        // The library's own words name its source files.
        let certificate = lower.contains("certificate");
        let why = if certificate { "its certificate is not trusted" } else { "the TLS handshake failed" };
        return failed(FaultClass::Tls, format!("no trusted connection to {name}: {why}"));
    }
    let why = if error.is_timeout() { "no answer in time".into() } else { why };
    failed(FaultClass::Connect, format!("no connection to {name}: {why}"))
}

pub(crate) fn broken() -> Fault {
    Fault::new(FaultClass::Reset, "broke the connection")
}

pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    let encoded = headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    let stream = |kind: &HeaderValue| kind.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream");
    !encoded && headers.get(CONTENT_TYPE).is_none_or(stream)
}

pub(crate) async fn bounded_body(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            let room = MAX_ERROR_BODY - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if body.len() >= MAX_ERROR_BODY {
                break;
            }
        }
    };
    // What has come by then is as much as will be known.
    let _ = timeout(ERROR_BODY_WAIT, read).await;
    body
}

/// The last cause of an error. The first ones name the URL, which is the operator's business.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
