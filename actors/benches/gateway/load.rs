//! Callers: so many at once, or so many a second, or silent ones.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::upstream::DELTAS;

/// In a prompt: events 10 ms apart.
pub const PACED: &str = "bench:paced";
/// In a prompt: a few events, then silence.
pub const HELD: &str = "bench:held";
/// In a prompt: as fast as it goes.
pub const AT_ONCE: &str = "bench:once";
/// The length of a request's body.
const PROMPT_BYTES: usize = 1024;
/// How long a reply may take before it counts as failed.
const LONGEST: Duration = Duration::from_secs(60);
/// Idle connections that a paced load begins with.
const READY: usize = 32;

/// Whom to call, and what to say.
#[derive(Clone)]
pub struct Target {
    /// Callers are spread over them.
    pub addresses: Vec<SocketAddr>,
    pub headers: Vec<(&'static str, String)>,
}

/// What a caller waited.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    /// Until the first byte of the body.
    pub first: Duration,
    /// Until its end.
    pub whole: Duration,
}

/// The waits of many callers, and how many of them got no proper reply.
#[derive(Default)]
pub struct Outcome {
    pub heard: Vec<Heard>,
    pub failed: u64,
    /// One of the failures, in words.
    pub example: Option<String>,
}

impl Outcome {
    fn add(&mut self, result: Result<Heard, String>) {
        match result {
            Ok(heard) => self.heard.push(heard),
            Err(why) => {
                self.failed += 1;
                self.example.get_or_insert(why);
            }
        }
    }

    pub fn extend(&mut self, other: Self) {
        self.heard.extend(other.heard);
        self.failed += other.failed;
        if let Some(why) = other.example {
            self.example.get_or_insert(why);
        }
    }

    /// The wait for the first byte that this share of the callers does not exceed, in milliseconds.
    pub fn first(&self, share: f64) -> f64 {
        at(self.heard.iter().map(|heard| heard.first), share)
    }

    /// The same for the whole reply.
    pub fn whole(&self, share: f64) -> f64 {
        at(self.heard.iter().map(|heard| heard.whole), share)
    }
}

/// The time that this share of them does not exceed, in milliseconds. Of none: nothing that could be mistaken for one.
pub fn at(times: impl Iterator<Item = Duration>, share: f64) -> f64 {
    let mut millis: Vec<_> = times.map(|time| time.as_secs_f64() * 1e3).collect();
    millis.sort_by(f64::total_cmp);
    let last = millis.len().saturating_sub(1) as f64;
    millis.get((last * share) as usize).copied().unwrap_or(f64::NAN)
}

/// A request of a kilobyte with this mark in its prompt.
pub fn prompt(mark: &str) -> Bytes {
    let head = r#"{"model":"claude-sonnet-4-6","max_tokens":1024,"stream":true,"messages":[{"role":"user","content":""#;
    let tail = r#""}]}"#;
    let words = "please rename this function wherever it is called, and run the tests ".repeat(20);
    let room = PROMPT_BYTES - head.len() - tail.len() - mark.len() - 1;
    format!("{head}{mark} {}{tail}", &words[..room]).into()
}

/// A caller with a connection of its own.
pub struct Caller {
    target: Arc<Target>,
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Caller {
    pub async fn connect(target: &Arc<Target>, number: usize) -> Result<Self, String> {
        let address = target.addresses[number % target.addresses.len()];
        let sender = connect(address).await?;
        Ok(Self { target: Arc::clone(target), address, sender })
    }

    async fn send(&mut self, prompt: &Bytes) -> Result<(Instant, Response<Incoming>), String> {
        if self.sender.is_closed() || self.sender.ready().await.is_err() {
            self.sender = connect(self.address).await?;
        }
        let mut request = Request::post("/v1/messages")
            .header(HOST, "bench")
            .header(CONTENT_TYPE, "application/json")
            .header("anthropic-version", "2023-06-01");
        for (name, value) in &self.target.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(prompt.clone())).map_err(|error| error.to_string())?;
        let began = Instant::now();
        let response = self.sender.send_request(request).await.map_err(|error| format!("no answer: {error}"))?;
        Ok((began, response))
    }

    async fn hear(&mut self, prompt: &Bytes) -> Result<Heard, String> {
        let (began, response) = self.send(prompt).await?;
        let status = response.status();
        let mut body = response.into_body();
        let (mut first, mut text) = (None, BytesMut::with_capacity(8 * 1024));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| format!("a reply broke off: {error}"))?;
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                first.get_or_insert_with(|| began.elapsed());
                text.extend_from_slice(&data);
            }
        }
        let whole = began.elapsed();
        let text = String::from_utf8_lossy(&text);
        let deltas = text.matches("event: content_block_delta").count();
        match first {
            Some(first) if status == StatusCode::OK && deltas == DELTAS && text.contains("event: message_stop") => {
                Ok(Heard { first, whole })
            }
            _ => Err(format!("{status}, {deltas} deltas: {}", text.chars().take(200).collect::<String>())),
        }
    }

    /// Makes a call to its end.
    pub async fn call(&mut self, prompt: &Bytes) -> Result<Heard, String> {
        timeout(LONGEST, self.hear(prompt)).await.unwrap_or_else(|_| Err(format!("no end within {LONGEST:?}")))
    }

    /// Begins a call and returns once its first bytes are there.
    async fn begin(&mut self, prompt: &Bytes) -> Result<Incoming, String> {
        let (_, response) = self.send(prompt).await?;
        let status = response.status();
        let mut body = response.into_body();
        match body.frame().await {
            Some(Ok(_)) if status == StatusCode::OK => Ok(body),
            _ => Err(format!("a silent call was answered {status}")),
        }
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("no connection: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        // What goes wrong with it, its caller hears.
        let _ = connection.await;
    });
    Ok(sender)
}

/// So many callers at once, each calling again as soon as it was answered. What ends within `time` counts; what ends
/// while it warms up does not. `mark` is asked at the beginning and at the end of that time.
pub async fn closed_loop<T>(
    target: &Target,
    callers: usize,
    warm: Duration,
    time: Duration,
    mark: impl Fn() -> T,
) -> (Outcome, T, T) {
    let (target, prompt) = (Arc::new(target.clone()), prompt(AT_ONCE));
    let (counting, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut tasks = JoinSet::new();
    for number in 0..callers {
        let (target, prompt) = (Arc::clone(&target), prompt.clone());
        let (counting, over) = (Arc::clone(&counting), Arc::clone(&over));
        tasks.spawn(async move {
            let mut outcome = Outcome::default();
            let mut caller = match Caller::connect(&target, number).await {
                Ok(caller) => caller,
                Err(why) => {
                    outcome.add(Err(why));
                    return outcome;
                }
            };
            while !over.load(Ordering::Relaxed) {
                let result = caller.call(&prompt).await;
                if counting.load(Ordering::Relaxed) {
                    outcome.add(result);
                }
            }
            outcome
        });
    }
    tokio::time::sleep(warm).await;
    let before = mark();
    counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(time).await;
    counting.store(false, Ordering::Relaxed);
    let after = mark();
    over.store(true, Ordering::Relaxed);
    let mut outcome = Outcome::default();
    for part in tasks.join_all().await {
        outcome.extend(part);
    }
    (outcome, before, after)
}

/// So many calls by so many callers at once, then `reached` for each of these counts, while nobody calls.
pub async fn count_up(target: &Target, callers: usize, counts: &[u64], mut reached: impl FnMut(u64, f64)) -> Outcome {
    let (target, prompt) = (Arc::new(target.clone()), prompt(AT_ONCE));
    let mut held = Vec::new();
    for number in 0..callers {
        held.push(Caller::connect(&target, number).await.unwrap());
    }
    let made = Arc::new(AtomicU64::new(0));
    let mut outcome = Outcome::default();
    for &count in counts {
        let began = Instant::now();
        let before = made.load(Ordering::Relaxed);
        let mut tasks = JoinSet::new();
        for mut caller in held.drain(..) {
            let (prompt, made) = (prompt.clone(), Arc::clone(&made));
            tasks.spawn(async move {
                let mut outcome = Outcome::default();
                while made.fetch_add(1, Ordering::Relaxed) < count {
                    outcome.add(caller.call(&prompt).await);
                }
                (caller, outcome)
            });
        }
        for (caller, part) in tasks.join_all().await {
            held.push(caller);
            outcome.extend(part);
        }
        // Each caller took one ticket too many.
        made.store(count, Ordering::Relaxed);
        reached(count, (count - before) as f64 / began.elapsed().as_secs_f64());
    }
    outcome
}

/// So many paced calls a second for a while, whatever the answers take.
pub async fn open_loop(target: &Target, per_second: u32, time: Duration) -> Outcome {
    let (target, prompt) = (Arc::new(target.clone()), prompt(PACED));
    let idle = Arc::new(Mutex::new(Vec::new()));
    for number in 0..READY {
        match Caller::connect(&target, number).await {
            Ok(caller) => idle.lock().unwrap().push(caller),
            Err(why) => return Outcome { failed: 1, example: Some(why), ..Outcome::default() },
        }
    }
    let count = (time.as_secs_f64() * f64::from(per_second)) as u32;
    let (due, mut dues) = mpsc::channel(count as usize);
    // A thread that sleeps is more punctual than a timer wheel of milliseconds.
    let pacer = std::thread::spawn(move || {
        let start = Instant::now() + Duration::from_millis(20);
        for number in 0..count {
            let at = start + Duration::from_secs(1) * number / per_second;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            due.blocking_send(number).unwrap();
        }
    });
    let mut calls = JoinSet::new();
    while let Some(number) = dues.recv().await {
        let (target, prompt, idle) = (Arc::clone(&target), prompt.clone(), Arc::clone(&idle));
        calls.spawn(async move {
            // The one that was idle longest goes first, so that every connection is used.
            let ready = {
                let mut idle = idle.lock().unwrap();
                (!idle.is_empty()).then(|| idle.remove(0))
            };
            let mut caller = match ready {
                Some(caller) => caller,
                None => Caller::connect(&target, number as usize).await?,
            };
            let heard = caller.call(&prompt).await;
            idle.lock().unwrap().push(caller);
            heard
        });
    }
    pacer.join().unwrap();
    let mut outcome = Outcome::default();
    for result in calls.join_all().await {
        outcome.add(result);
    }
    outcome
}

/// Calls that have begun and are silent; they are held until this is dropped.
pub struct Silent(#[expect(dead_code, reason = "held, not read")] Vec<(Caller, Incoming)>);

/// Begins so many calls that fall silent.
pub async fn silent(target: &Target, count: usize) -> Silent {
    let (target, prompt) = (Arc::new(target.clone()), prompt(HELD));
    let mut held = Vec::new();
    for number in 0..count {
        let mut caller = Caller::connect(&target, number).await.unwrap();
        let body = timeout(LONGEST, caller.begin(&prompt)).await.unwrap().unwrap();
        held.push((caller, body));
    }
    Silent(held)
}
