//! A proxy on a loopback of the test's own, a server behind it that notes what reaches it, and names that lead wherever a
//! test wants.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use orchestra_runtime::egress::{
    Batch, Bytes, Decision, Egress, Limits, Lost, Policy, Reason, Resolve, Sink, Verdict, expand, read_list, serve_on,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What no attempt may bring out.
pub const SECRET: &[u8] = b"exfiltrated-secret";

/// Names and where they lead, one answer after the other; the last one stays.
#[derive(Default)]
pub struct Names {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    asked: Mutex<Vec<String>>,
}

impl Names {
    pub fn lead(&self, name: &str, answers: &[&[&str]]) {
        let read = |answer: &&[&str]| answer.iter().map(|address| address.parse().unwrap()).collect();
        self.answers.lock().unwrap().insert(name.to_owned(), answers.iter().map(read).collect());
    }

    /// Every name that was looked up.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl Resolve for Names {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.lock().unwrap().push(host.to_owned());
        let mut answers = self.answers.lock().unwrap();
        let answers = answers.get_mut(host).ok_or(io::ErrorKind::NotFound)?;
        Ok(if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() })
    }
}

/// Keeps every batch.
#[derive(Default)]
pub struct Notes(pub Mutex<Vec<Batch>>);

#[async_trait]
impl Sink for Notes {
    async fn take_down(&self, batch: Batch) -> Result<(), Lost> {
        assert!(!batch.is_empty());
        self.0.lock().unwrap().push(batch);
        Ok(())
    }
}

impl Notes {
    pub fn decisions(&self) -> Vec<Decision> {
        self.0.lock().unwrap().iter().flat_map(|batch| batch.decisions.clone()).collect()
    }
}

/// A server that notes what reaches it and answers every connection with the same bytes, or sends back what comes.
pub struct Server {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Server {
    pub async fn answering(answer: Option<Vec<u8>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (noted, answer) = (Arc::clone(&noted), answer.clone());
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 * 1024];
                    let mut answered = false;
                    while let Ok(count @ 1..) = socket.read(&mut buffer).await {
                        noted.lock().unwrap().extend(&buffer[..count]);
                        let sent = match &answer {
                            Some(answer) if !answered && ends_a_head(&noted.lock().unwrap()) => Some(answer.clone()),
                            Some(_) => None,
                            None => Some(buffer[..count].to_vec()),
                        };
                        if let Some(sent) = sent {
                            answered = answer.is_some();
                            if socket.write_all(&sent).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { address, heard }
    }

    pub fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

fn ends_a_head(heard: &[u8]) -> bool {
    heard.windows(4).any(|window| window == b"\r\n\r\n")
}

pub fn has(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// What an ordinary server says.
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Everything that a test needs.
pub struct Stage {
    pub server: Server,
    pub names: Arc<Names>,
    pub notes: Arc<Notes>,
    pub egress: Egress,
    pub proxy: SocketAddr,
}

impl Stage {
    /// With `registry.example` and `*.wild.example` allowed on the server's port, `tls.example` on the usual ones, and the
    /// loopback as an operator's network.
    pub async fn new() -> Self {
        Self::with(Some(ANSWER.to_vec()), Limits::default()).await
    }

    pub async fn with(answer: Option<Vec<u8>>, limits: Limits) -> Self {
        let server = Server::answering(answer).await;
        let port = server.address.port();
        let allow = ["registry.example", "other.example", "*.wild.example", "xn--bcher-kva.example"]
            .map(|host| format!("{host}:{port}"))
            .into_iter()
            .chain(["tls.example".to_owned()])
            .collect::<Vec<_>>();
        let names = Arc::new(Names::default());
        for host in ["registry.example", "other.example", "a.wild.example", "tls.example"] {
            names.lead(host, &[&["127.0.0.1"]]);
        }
        let notes = Arc::new(Notes::default());
        let policy = Policy {
            allow: expand(&read_list(&allow).unwrap(), &Default::default()),
            networks: vec!["127.0.0.1/32".parse().unwrap()],
            limits,
            spent: Bytes::default(),
            resolver: Arc::clone(&names) as _,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let egress = serve_on(listener, policy, Arc::clone(&notes) as _);
        Self { server, names, notes, egress, proxy }
    }

    pub async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.proxy).await.unwrap()
    }

    /// Sends the bytes, and what follows once a tunnel is open. All that is answered.
    pub async fn say(&self, bytes: &[u8], then: Option<&[u8]>) -> Vec<u8> {
        let mut socket = self.dial().await;
        // Whoever is refused in the middle of a word may find the door closed.
        let _ = socket.write_all(bytes).await;
        let mut heard = Vec::new();
        if let Some(then) = then {
            let mut buffer = [0; 4096];
            while !ends_a_head(&heard) {
                match tokio::time::timeout(PATIENCE, socket.read(&mut buffer)).await.expect("an answer to CONNECT") {
                    Ok(0) | Err(_) => return heard,
                    Ok(count) => heard.extend(&buffer[..count]),
                }
            }
            if !heard.starts_with(b"HTTP/1.1 200 ") {
                return heard;
            }
            let _ = socket.write_all(then).await;
        }
        let _ = socket.shutdown().await;
        let _ = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut heard)).await.expect("an end");
        heard
    }

    /// Ends the proxy: what it has decided, summed up over its batches, and what the server has heard.
    pub async fn end(self) -> (Vec<Decision>, Vec<u8>) {
        self.egress.end().await;
        let mut summed: Vec<Decision> = Vec::new();
        for decision in self.notes.decisions() {
            let alike = |known: &&mut Decision| {
                (&known.host, known.port, known.verdict) == (&decision.host, decision.port, decision.verdict)
            };
            match summed.iter_mut().find(alike) {
                Some(known) => {
                    known.count += decision.count;
                    known.bytes.received += decision.bytes.received;
                    known.bytes.sent += decision.bytes.sent;
                }
                None => summed.push(decision),
            }
        }
        (summed, self.server.heard())
    }
}

/// Whether there is such a decision.
pub fn refused(decisions: &[Decision], reason: Reason) -> bool {
    decisions.iter().any(|decision| decision.verdict == Verdict::of(reason) && decision.count > 0)
}
