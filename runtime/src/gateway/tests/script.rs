//! A provider on a socket that plays a script.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

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
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }
}

/// A provider that plays a script, one act for each request, and the last one again and again.
pub struct Provider {
    pub url: String,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    /// Rings at each request.
    pub came: Arc<Notify>,
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
        let came = Arc::<Notify>::default();
        let coming = Arc::clone(&came);
        let script: Arc<Mutex<VecDeque<Act>>> = Arc::new(Mutex::new(script.into()));
        let (log, leaving) = (Arc::clone(&asked), Arc::clone(&left));
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("client");
                socket.set_nodelay(true).expect("socket");
                let (script, log) = (Arc::clone(&script), Arc::clone(&log));
                tokio::spawn(play(socket, script, log, Arc::clone(&coming), Arc::clone(&leaving)));
            }
        });
        Self { url, asked, came, left, task }
    }
}

async fn play(
    mut socket: TcpStream,
    script: Arc<Mutex<VecDeque<Act>>>,
    log: Arc<Mutex<Vec<Asked>>>,
    came: Arc<Notify>,
    left: Arc<Notify>,
) {
    let Some(request) = read_request(&mut socket).await else { return };
    let act = {
        log.lock().expect("log").push(request);
        let mut script = script.lock().expect("script");
        if script.len() > 1 { script.pop_front().expect("an act") } else { script[0].clone() }
    };
    came.notify_one();
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
