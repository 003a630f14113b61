//! A receiver over plain sockets, so that it can misbehave in every way; and a check of signatures that shares nothing
//! with what makes them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    Status(u16),
    /// 429, and so many seconds.
    RetryAfter(u32),
    /// 302 to another receiver.
    Redirect,
    /// Nothing, and the connection stays.
    Hang,
    /// One byte after the other, without an end.
    Drip,
    /// The connection breaks.
    Reset,
    /// A status and a body of many megabytes.
    Huge(u16),
    NotHttp,
}

/// A message that arrived.
#[derive(Debug, Clone)]
pub struct Got {
    pub id: String,
    timestamp: String,
    signature: String,
    raw: Vec<u8>,
    pub body: Value,
    pub at: Instant,
    /// How often it had arrived before.
    pub attempts_before: usize,
}

/// HMAC-SHA256 as RFC 2104 writes it.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

impl Got {
    /// Whether one of its signatures is by this secret, over what arrived, and its time is now.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").expect("a secret")).expect("base 64");
        let signed = [self.id.as_bytes(), b".", self.timestamp.as_bytes(), b".", &self.raw].concat();
        let expected = format!("v1,{}", STANDARD.encode(hmac(&key, &signed)));
        let now = jiff::Timestamp::now().as_second();
        let age = now - self.timestamp.parse::<i64>().expect("seconds");
        (0..300).contains(&age) && self.signature.split(' ').any(|signature| signature == expected)
    }
}

impl Got {
    /// The message as somebody else's library wants it.
    pub fn for_a_peer(&self, secret: &str) -> Value {
        let headers = serde_json::json!({
            "webhook-id": self.id, "webhook-timestamp": self.timestamp, "webhook-signature": self.signature,
        });
        let body = std::str::from_utf8(&self.raw).expect("UTF-8");
        serde_json::json!({ "secret": secret, "headers": headers, "body": body })
    }
}

type Decide = dyn Fn(&Got, usize) -> Answer + Send + Sync;

/// The receiver.
pub struct Receiver {
    address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    elsewhere: Arc<Mutex<String>>,
    read: Arc<AtomicUsize>,
}

impl Receiver {
    /// Answers what this says of each message and how many there were before.
    pub async fn start(decide: impl Fn(&Got, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let receiver =
            Self { address, got: Arc::default(), elsewhere: Arc::default(), read: Arc::new(AtomicUsize::new(0)) };
        let (got, elsewhere, read) =
            (Arc::clone(&receiver.got), Arc::clone(&receiver.elsewhere), Arc::clone(&receiver.read));
        let decide: Arc<Decide> = Arc::new(decide);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (got, decide, elsewhere, read) =
                    (Arc::clone(&got), Arc::clone(&decide), Arc::clone(&elsewhere), Arc::clone(&read));
                tokio::spawn(async move { serve(socket, got, decide, elsewhere, read).await });
            }
        });
        receiver
    }

    pub fn redirecting_to(self, url: &str) -> Self {
        *self.elsewhere.lock().expect("no panic while held") = url.to_owned();
        self
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().expect("no panic while held").clone()
    }

    /// The most bytes of one body that were taken from it.
    pub fn most_read(&self) -> usize {
        self.read.load(Ordering::SeqCst)
    }

    /// Waits until so many have arrived.
    pub async fn wait_for(&self, count: usize) -> Vec<Got> {
        self.until(&format!("{count} have arrived"), |got| got.len() >= count).await
    }

    /// Waits until this is so of what has arrived.
    pub async fn until(&self, what: &str, is_so: impl Fn(&[Got]) -> bool) -> Vec<Got> {
        let deadline = Instant::now() + super::PATIENCE;
        loop {
            let got = self.got();
            if is_so(&got) {
                return got;
            }
            assert!(Instant::now() < deadline, "still not so: {what}; {} have", got.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Reads one request; `None` when there is none.
async fn request(socket: &mut TcpStream, rest: &mut Vec<u8>) -> Option<(HashMap<String, String>, Vec<u8>)> {
    let mut buffer = [0; 16 * 1024];
    let end = loop {
        if let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => rest.extend_from_slice(&buffer[..read]),
        }
    };
    let head = String::from_utf8(rest[..end].to_vec()).expect("a head");
    let headers: HashMap<_, _> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())))
        .collect();
    let length: usize = headers["content-length"].parse().expect("a number");
    while rest.len() < end + 4 + length {
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => rest.extend_from_slice(&buffer[..read]),
        }
    }
    let body = rest[end + 4..end + 4 + length].to_vec();
    rest.drain(..end + 4 + length);
    Some((headers, body))
}

async fn serve(
    mut socket: TcpStream,
    all: Arc<Mutex<Vec<Got>>>,
    decide: Arc<Decide>,
    elsewhere: Arc<Mutex<String>>,
    read: Arc<AtomicUsize>,
) {
    let mut rest = Vec::new();
    while let Some((headers, raw)) = request(&mut socket, &mut rest).await {
        let text = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let id = text("webhook-id");
        let answer = {
            let mut all = all.lock().expect("no panic while held");
            let got = Got {
                attempts_before: all.iter().filter(|got| got.id == id).count(),
                id,
                timestamp: text("webhook-timestamp"),
                signature: text("webhook-signature"),
                body: serde_json::from_slice(&raw).expect("JSON"),
                raw,
                at: Instant::now(),
            };
            let answer = decide(&got, all.len());
            all.push(got);
            answer
        };
        let head = |status: u16, more: &str| format!("HTTP/1.1 {status} x\r\n{more}\r\n");
        let written = match answer {
            Answer::Status(status @ 204) => socket.write_all(head(status, "").as_bytes()).await,
            Answer::Status(status) => socket.write_all(head(status, "content-length: 0\r\n").as_bytes()).await,
            Answer::RetryAfter(seconds) => {
                let more = format!("retry-after: {seconds}\r\ncontent-length: 0\r\n");
                socket.write_all(head(429, &more).as_bytes()).await
            }
            Answer::Redirect => {
                let to = elsewhere.lock().expect("no panic while held").clone();
                let more = format!("location: {to}\r\ncontent-length: 0\r\n");
                socket.write_all(head(302, &more).as_bytes()).await
            }
            Answer::Hang => {
                tokio::time::sleep(super::PATIENCE).await;
                return;
            }
            Answer::Drip => {
                for byte in b"HTTP/1.1 200 OK\r\nx: ".iter().chain(b"y".iter().cycle()) {
                    if socket.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
                return;
            }
            Answer::Reset => return,
            Answer::Huge(status) => {
                let _ = socket.write_all(head(status, "content-length: 1000000000\r\n").as_bytes()).await;
                let piece = [b'x'; 64 * 1024];
                let mut sent = 0;
                while socket.write_all(&piece).await.is_ok() {
                    sent += piece.len();
                    read.fetch_max(sent, Ordering::SeqCst);
                }
                return;
            }
            Answer::NotHttp => {
                let _ = socket.write_all(b"220 mail.example ESMTP\r\n").await;
                return;
            }
        };
        if written.is_err() {
            return;
        }
    }
}
