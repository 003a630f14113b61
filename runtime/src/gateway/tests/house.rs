//! The stage: provider, ledger, clock and client.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use orchestra_events::ledger::Remaining;
use orchestra_events::{CallId, Failure, FailureCode, NanoUsd};
use secrecy::SecretString;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::clock::Clock;
use super::super::{Gateway, GatewayPolicy, Session};
use crate::meter::{Ask, Meter, MeterError, Reservation, Retried, Settlement};
use crate::model::{Dialect, Models, PriceRow, ProviderConfig, Timeouts};

pub const KEY: &str = "canary-7c1e9d";
pub const OPERATORS_KEY: &str = "operators-5b21";

/// A step of what the provider does once it was asked.
#[derive(Clone)]
pub enum Step {
    Bytes(Vec<u8>),
    /// Goes on when the test says so.
    Wait(Arc<Notify>),
    Reset,
    Hang,
}

/// What the provider does at one request.
#[derive(Clone)]
pub struct Act {
    pub steps: Vec<Step>,
    /// Each piece in a packet of its own.
    pub piece: usize,
}

impl Act {
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { steps: vec![Step::Bytes(bytes.into())], piece: usize::MAX }
    }

    /// A stream that ends properly after these bytes.
    pub fn stream(events: &str) -> Self {
        Self::stream_with("", events.as_bytes())
    }

    pub fn stream_with(headers: &str, body: &[u8]) -> Self {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        Self::raw([head.as_bytes(), body].concat())
    }

    /// A stream whose end is not in it.
    pub fn open_stream(events: &str) -> Self {
        Self::raw(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999999\r\n\r\n{events}"
        ))
    }

    pub fn status(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::raw(format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ))
    }

    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    pub fn bytes(self, text: &str) -> Self {
        self.then(Step::Bytes(text.as_bytes().to_vec()))
    }

    pub fn in_pieces(self, piece: usize) -> Self {
        Self { piece, ..self }
    }
}

/// A request as the provider got it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub head: String,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn header(&self, name: &str) -> Option<String> {
        let line = self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        });
        line
    }
}

/// A provider that plays a script, one act for each request, and the last one again and again.
pub struct Provider {
    pub url: String,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    /// Rings when a caller has left a connection that the script left open.
    pub left: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<Asked> {
    let mut request = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = socket.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        request.extend_from_slice(&buffer[..read]);
        let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(request[..end].to_vec()).expect("UTF-8");
        let length = head.to_lowercase();
        let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("content-length");
        let length: usize = length.parse().expect("number");
        while request.len() < end + 4 + length {
            let read = socket.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
            request.extend_from_slice(&buffer[..read]);
        }
        return Some(Asked { head, body: request[end + 4..].to_vec() });
    }
}

impl Provider {
    pub async fn new(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let (asked, left) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::<Notify>::default());
        let script: Arc<Mutex<VecDeque<Act>>> = Arc::new(Mutex::new(script.into()));
        let (log, leaving) = (Arc::clone(&asked), Arc::clone(&left));
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("client");
                socket.set_nodelay(true).expect("socket");
                tokio::spawn(play(socket, Arc::clone(&script), Arc::clone(&log), Arc::clone(&leaving)));
            }
        });
        Self { url, asked, left, task }
    }
}

async fn play(
    mut socket: TcpStream,
    script: Arc<Mutex<VecDeque<Act>>>,
    log: Arc<Mutex<Vec<Asked>>>,
    left: Arc<Notify>,
) {
    let Some(request) = read_request(&mut socket).await else { return };
    let act = {
        log.lock().expect("log").push(request);
        let mut script = script.lock().expect("script");
        if script.len() > 1 { script.pop_front().expect("an act") } else { script[0].clone() }
    };
    for step in act.steps {
        match step {
            Step::Bytes(bytes) => {
                for piece in bytes.chunks(act.piece.max(1)) {
                    if socket.write_all(piece).await.is_err() {
                        return left.notify_one();
                    }
                    if act.piece < 64 {
                        tokio::task::yield_now().await;
                    }
                }
            }
            Step::Wait(notify) => notify.notified().await,
            Step::Reset => return drop(socket.set_zero_linger()),
            Step::Hang => {
                while socket.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                return left.notify_one();
            }
        }
    }
    let _ = socket.shutdown().await;
    // The caller's own end, so that nothing is reset before it was read.
    while socket.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
}

/// What the ledger was told.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    Reserved(Ask, Reservation),
    Trimmed(CallId, NanoUsd, u64),
    Settled(CallId, Settlement),
    Released(CallId, Option<FailureCode>),
    Retried(CallId, Retried),
}

/// A ledger in memory, with a cap that it checks at every step.
#[derive(Default)]
pub struct Ledger {
    pub log: Mutex<Vec<Entry>>,
    open: Mutex<HashMap<CallId, NanoUsd>>,
    spent: Mutex<i64>,
    pub cap: Option<NanoUsd>,
    pub over: bool,
    changed: Notify,
}

impl Ledger {
    fn note(&self, entry: Entry) {
        self.log.lock().expect("log").push(entry);
        self.changed.notify_waiters();
    }

    pub fn spent(&self) -> i64 {
        *self.spent.lock().expect("spent")
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.log.lock().expect("log").clone()
    }

    pub fn settlements(&self) -> Vec<Settlement> {
        let settled = |entry| if let Entry::Settled(_, settlement) = entry { Some(settlement) } else { None };
        self.entries().into_iter().filter_map(settled).collect()
    }

    pub fn retries(&self) -> Vec<Retried> {
        let retried = |entry| if let Entry::Retried(_, retried) = entry { Some(retried) } else { None };
        self.entries().into_iter().filter_map(retried).collect()
    }

    /// Until nothing is open any more, and something was reserved.
    pub async fn closed(&self) {
        let closed = async {
            loop {
                let changed = self.changed.notified();
                if !self.entries().is_empty() && self.open.lock().expect("open").is_empty() {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), closed).await.expect("every call is settled or released");
    }

    /// Every reservation ended exactly once.
    pub fn check(&self) {
        let mut reserved: HashMap<CallId, u32> = HashMap::new();
        for entry in self.entries() {
            match entry {
                Entry::Reserved(ask, _) => assert!(reserved.insert(ask.call, 0).is_none(), "an id is used twice"),
                Entry::Settled(call, _) | Entry::Released(call, _) => *reserved.get_mut(&call).expect("reserved") += 1,
                Entry::Trimmed(..) | Entry::Retried(..) => {}
            }
        }
        assert!(reserved.values().all(|ends| *ends == 1), "{:?}", self.entries());
    }
}

#[async_trait]
impl Meter for Ledger {
    async fn reserve(&self, ask: Ask) -> Result<Reservation, MeterError> {
        if self.over {
            return Err(MeterError::Over);
        }
        let reserved: i64 = self.open.lock().expect("open").values().map(|amount| amount.nanos()).sum();
        let left = self.cap.map(|cap| NanoUsd::from_nanos(cap.nanos() - self.spent() - reserved));
        let Some(fitted) = ask.quote.fit(Remaining { nano_usd: left, tokens: None }) else {
            let failure = Failure::new(FailureCode::BudgetExceeded, "The budget of task:t per task is used up.");
            return Err(MeterError::Refused(Box::new(failure)));
        };
        let reservation = Reservation {
            call: ask.call,
            max_output_tokens: fitted.max_output_tokens,
            nano_usd: fitted.nano_usd,
            tokens: fitted.tokens,
        };
        self.open.lock().expect("open").insert(ask.call, fitted.nano_usd);
        self.note(Entry::Reserved(ask, reservation));
        Ok(reservation)
    }

    fn trim(&self, call: CallId, nano_usd: NanoUsd, tokens: u64) {
        let mut open = self.open.lock().expect("open");
        let amount = open.get_mut(&call).expect("open");
        assert!(nano_usd.nanos() >= 0 && nano_usd <= *amount, "more than was set aside");
        *amount = amount.saturating_sub(nano_usd);
        drop(open);
        self.note(Entry::Trimmed(call, nano_usd, tokens));
    }

    async fn settle(&self, call: CallId, settlement: Settlement) -> Result<(), MeterError> {
        let held = self.open.lock().expect("open").remove(&call).expect("settled once, after it was reserved");
        assert!(settlement.cost <= held, "{settlement:?} is above what was set aside: {held}");
        *self.spent.lock().expect("spent") += settlement.cost.nanos();
        self.note(Entry::Settled(call, settlement));
        Ok(())
    }

    async fn release(&self, call: CallId, failure: Option<Failure>) -> Result<(), MeterError> {
        self.open.lock().expect("open").remove(&call).expect("released once, after it was reserved");
        self.note(Entry::Released(call, failure.map(|failure| failure.code)));
        Ok(())
    }

    async fn retried(&self, call: CallId, retried: Retried) {
        self.note(Entry::Retried(call, retried));
    }
}

/// A clock that only waiting moves.
#[derive(Default)]
pub struct TestClock {
    pub slept: Mutex<Vec<Duration>>,
    elapsed: AtomicU64,
}

pub const NOW: &str = "2026-12-24T10:00:00Z";

impl TestClock {
    pub fn waits(&self) -> Vec<u64> {
        let slept = self.slept.lock().expect("slept");
        slept.iter().map(|wait| u64::try_from(wait.as_millis()).expect("short")).collect()
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let start: Timestamp = NOW.parse().expect("time");
        start + jiff::SignedDuration::try_from(self.elapsed()).expect("short")
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed.load(Ordering::SeqCst))
    }

    fn random(&self) -> u64 {
        1 << 63
    }

    async fn sleep(&self, wait: Duration) {
        self.slept.lock().expect("slept").push(wait);
        self.elapsed.fetch_add(u64::try_from(wait.as_nanos()).expect("short"), Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
}

/// What a client got.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
    /// Whether the reply ended properly.
    pub clean: bool,
}

impl Got {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// How a house is built.
pub struct Plan {
    pub model: &'static str,
    pub cap: Option<NanoUsd>,
    pub over: bool,
    pub policy: GatewayPolicy,
    pub timeouts: Timeouts,
    pub allowed: fn(&str) -> bool,
    /// Rows for the provider `local`, which is of OpenAI's dialect and needs no key.
    pub local: Vec<PriceRow>,
    pub deadline: Option<Timestamp>,
    pub base_url: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            model: "claude-sonnet-4-6",
            cap: None,
            over: false,
            policy: GatewayPolicy::default(),
            timeouts: Timeouts {
                first_byte: Duration::from_millis(400),
                idle: Duration::from_millis(400),
                ..Timeouts::default()
            },
            allowed: |_| true,
            local: Vec::new(),
            deadline: None,
            base_url: None,
        }
    }
}

/// A gateway with everything around it.
pub struct House {
    pub provider: Provider,
    pub ledger: Arc<Ledger>,
    pub clock: Arc<TestClock>,
    pub gateway: Arc<Gateway>,
    pub url: String,
    pub client: reqwest::Client,
    pub stop: CancellationToken,
    pub served: Option<JoinHandle<()>>,
    session: Session,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl House {
    pub async fn new(script: Vec<Act>) -> Self {
        Self::with(script, Plan::default()).await
    }

    pub async fn with(script: Vec<Act>, plan: Plan) -> Self {
        let provider = Provider::new(script).await;
        let base = plan.base_url.clone().unwrap_or_else(|| provider.url.clone());
        let config = |name: &str, dialect, operator: Option<&str>, prices| ProviderConfig {
            name: name.into(),
            dialect,
            base_url: if dialect == Dialect::Anthropic { base.clone() } else { format!("{base}/v1") },
            operator_key: operator.map(SecretString::from),
            key_required: name != "local",
            prices,
        };
        let configs = vec![
            config("anthropic", Dialect::Anthropic, None, Vec::new()),
            config("openai", Dialect::OpenaiChat, Some(OPERATORS_KEY), Vec::new()),
            config("keyless", Dialect::OpenaiChat, None, vec![row(r#"{"model": "m", "input": 1, "output": 1}"#)]),
            config("local", Dialect::OpenaiChat, None, plan.local.clone()),
        ];
        let models = Arc::new(Models::new(configs, plan.timeouts).expect("configuration"));
        let session_model = models.resolve(plan.model).expect("known model");
        let clock = Arc::<TestClock>::default();
        let gateway = Arc::new(Gateway::with_clock(models, plan.policy, Arc::clone(&clock) as Arc<dyn Clock>));
        let ledger = Arc::new(Ledger { cap: plan.cap, over: plan.over, ..Ledger::default() });
        let session = Session {
            meter: Arc::clone(&ledger) as Arc<dyn Meter>,
            model: session_model,
            key: Arc::new(|| Some(SecretString::from(KEY))),
            allowed: Arc::new(plan.allowed),
            deadline: plan.deadline,
        };
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(0)
            .build()
            .expect("client");
        let mut house = Self {
            provider,
            ledger,
            clock,
            gateway,
            url: String::new(),
            client,
            stop: CancellationToken::new(),
            served: None,
            session,
        };
        let (url, served) = house.serve(Arc::clone(&house.ledger));
        (house.url, house.served) = (url, Some(served));
        house
    }

    /// Serves another task of the same server.
    pub fn serve(&self, ledger: Arc<Ledger>) -> (String, JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.set_nonblocking(true).expect("socket");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let session = Session { meter: ledger, ..self.session.clone() };
        let served = tokio::spawn(Arc::clone(&self.gateway).serve(listener, session, self.stop.clone()));
        (url, served)
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Got {
        self.send(self.client.post(format!("{}{path}", self.url)).body(body)).await
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Got {
        let mut response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let (mut body, mut clean) = (Vec::new(), false);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => {
                    clean = true;
                    break;
                }
                Err(error) if error.is_timeout() => panic!("the reply never ends"),
                Err(_) => break,
            }
        }
        Got { status, headers, body, clean }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.provider.asked.lock().expect("log").clone()
    }
}

pub fn row(json: &str) -> PriceRow {
    serde_json::from_str(json).expect("row")
}

/// The three dialects, as callers use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Messages,
    Chat,
    Responses,
}

pub const ALL: [Speaks; 3] = [Speaks::Messages, Speaks::Chat, Speaks::Responses];

impl Speaks {
    pub const fn path(self) -> &'static str {
        match self {
            Self::Messages => "/v1/messages",
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
        }
    }

    pub const fn model(self) -> &'static str {
        match self {
            Self::Messages => "claude-sonnet-4-6",
            Self::Chat | Self::Responses => "gpt-5",
        }
    }

    /// Output is dearer than this many nano-dollars.
    pub const fn output_nanos(self) -> i64 {
        match self {
            Self::Messages => 15_000,
            Self::Chat | Self::Responses => 10_000,
        }
    }

    pub fn request(self, stream: bool) -> String {
        match self {
            Self::Messages => format!(
                r#"{{"model":"claude-sonnet-4-6","max_tokens":4096,"stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#
            ),
            Self::Chat => format!(
                r#"{{"model":"gpt-5","max_completion_tokens":4096,"stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#
            ),
            Self::Responses => {
                format!(r#"{{"model":"gpt-5","max_output_tokens":4096,"stream":{stream},"input":"hi"}}"#)
            }
        }
    }

    /// The events of a whole reply: 10 tokens read, 5 written, "Grüezi 🏔".
    pub fn events(self) -> Vec<String> {
        let event = |json: &str| {
            let value: Value = serde_json::from_str(json).expect("JSON");
            match self {
                Self::Chat => format!("data: {json}\n\n"),
                _ => format!("event: {}\ndata: {json}\n\n", value["type"].as_str().expect("a type")),
            }
        };
        match self {
            Self::Messages => [
                r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"usage":{"input_tokens":10,"output_tokens":1}}}"#,
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Grüezi "}}"#,
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"🏔"}}"#,
                r#"{"type":"content_block_stop","index":0}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":5}}"#,
                r#"{"type":"message_stop"}"#,
            ]
            .map(event)
            .to_vec(),
            Self::Chat => [
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[{"index":0,"delta":{"content":"Grüezi "},"finish_reason":null}],"usage":null}"#,
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[{"index":0,"delta":{"content":"🏔"},"finish_reason":null}],"usage":null}"#,
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#,
                r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-5","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}"#,
            ]
            .map(event)
            .into_iter()
            .chain(["data: [DONE]\n\n".to_owned()])
            .collect(),
            Self::Responses => [
                r#"{"type":"response.created","sequence_number":0,"response":{"id":"resp_1","status":"in_progress","usage":null}}"#,
                r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"message","id":"i1","content":[]}}"#,
                r#"{"type":"response.output_text.delta","output_index":0,"delta":"Grüezi "}"#,
                r#"{"type":"response.output_text.delta","output_index":0,"delta":"🏔"}"#,
                r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"message","id":"i1","content":[{"type":"output_text","text":"Grüezi 🏔"}]}}"#,
                r#"{"type":"response.completed","response":{"id":"resp_1","object":"response","status":"completed","output":[{"type":"message","id":"i1","content":[{"type":"output_text","text":"Grüezi 🏔"}]}],"usage":{"input_tokens":10,"output_tokens":5,"total_tokens":15}}}"#,
            ]
            .map(event)
            .to_vec(),
        }
    }

    pub fn whole(self) -> String {
        self.events().concat()
    }

    /// What the whole reply costs, in nano-dollars.
    pub const fn cost(self) -> i64 {
        match self {
            Self::Messages => 10 * 3_000 + 5 * 15_000,
            Self::Chat | Self::Responses => 10 * 1_250 + 5 * 10_000,
        }
    }

    /// An error in the middle of a stream.
    pub fn error(self, kind: &str, message: &str) -> String {
        match self {
            Self::Messages => format!(
                "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":\"{message}\"}}}}\n\n"
            ),
            Self::Chat => format!("data: {{\"error\":{{\"code\":\"{kind}\",\"message\":\"{message}\"}}}}\n\n"),
            Self::Responses => format!(
                "event: error\ndata: {{\"type\":\"error\",\"code\":\"{kind}\",\"message\":\"{message}\",\"param\":null}}\n\n"
            ),
        }
    }

    /// The model's words in a reply without a stream.
    pub fn words(self, reply: &Value) -> String {
        let pointer = match self {
            Self::Messages => "/content/0/text",
            Self::Chat => "/choices/0/message/content",
            Self::Responses => "/output/0/content/0/text",
        };
        reply.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no words in {reply}")).to_owned()
    }

    pub fn plan(self) -> Plan {
        Plan { model: self.model(), ..Plan::default() }
    }
}
