//! One connection out of a sandbox: what it asks for, whether it may, and its bytes until it ends.
//!
//! A connection carries one request. What comes behind it is not read, so no second request can hide in the first; what
//! comes before an answer is decided on here, so no server can smuggle one in either.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::Service;
use super::authority::{Authority, shown};
use super::head::{self, Answer, Asked, Chunks, Framing, MAX_HEAD, Request};
use super::hello::{self, MAX_HELLO};
use super::pattern::allows;
use super::reason::Reason;
use super::record::Verdict;
use super::relay::{Broken, carry, finish, send, tunnel, write_all};
use super::resolve;
use super::traffic::{Account, Direction};

/// After the last word, what the caller still sends is read for so long, and thrown away: a socket that is closed on unread
/// bytes takes the last word back.
const LINGER: Duration = Duration::from_millis(500);

/// So much of it at most.
const MAX_LINGER: usize = 256 * 1024;

/// Answers before the answer (1xx) that are passed over.
const MAX_INTERIM: usize = 8;

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A fatal `access_denied` of TLS 1.2 framing (RFC 8446, 6): a client says so instead of "connection closed".
const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];

/// What became of a connection that was not simply served.
struct Ended {
    reason: Reason,
    /// What of it the caller is told, if it can still be told anything.
    tell: Tell,
}

#[derive(Clone, Copy)]
enum Tell {
    Status,
    Alert,
    Nothing,
}

fn told(reason: Reason) -> Ended {
    Ended { reason, tell: Tell::Status }
}

fn silent(reason: Reason) -> Ended {
    Ended { reason, tell: Tell::Nothing }
}

/// Serves a connection to its end and writes down what came of it.
pub(super) async fn serve(service: Arc<Service>, client: TcpStream) {
    // Small answers must not wait for each other's acknowledgement. Without it they are slower, not wrong.
    let _ = client.set_nodelay(true);
    let account = Account::new(Arc::clone(&service.task), service.policy.limits.connection_bytes);
    let mut place = (String::new(), 0);
    let total = Instant::now() + service.policy.limits.total;
    let ended = timeout_at(total, exchange(&service, &client, &account, &mut place)).await;
    let ended = ended.unwrap_or_else(|_| Err(silent(Reason::TooLong)));
    let Err(ended) = ended else { return linger(&client).await };
    service.record.decided(&place.0, place.1, Verdict::of(ended.reason));
    let last_word = match ended.tell {
        Tell::Status => Some(refusal(ended.reason)),
        Tell::Alert => Some(ACCESS_DENIED.to_vec()),
        Tell::Nothing => None,
    };
    if let Some(word) = last_word {
        let _ = timeout(LINGER, write_all(&client, &word, &account)).await;
    }
    linger(&client).await;
}

/// An answer of ours.
pub(super) fn refusal(reason: Reason) -> Vec<u8> {
    let phrase = match reason.status() {
        400 => "Bad Request",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Bad Gateway",
    };
    let text = format!("orchestra: {} ({reason})\n", reason.told());
    let (status, length) = (reason.status(), text.len());
    format!(
        "HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\
         proxy-status: orchestra; error=http_request_denied; details={reason}\r\nconnection: close\r\n\r\n{text}"
    )
    .into_bytes()
}

async fn linger(client: &TcpStream) {
    finish(client);
    let drained = async {
        let (mut left, mut buffer) = (MAX_LINGER, [0; 4096]);
        while left > 0 && client.readable().await.is_ok() {
            match client.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = timeout(LINGER, drained).await;
}

/// Reads more into the buffer. `false`: there is no more.
async fn more(from: &TcpStream, into: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    loop {
        from.readable().await?;
        let room = limit.saturating_sub(into.len()).min(16 * 1024);
        let before = into.len();
        into.resize(before + room, 0);
        let read = from.try_read(&mut into[before..]);
        into.truncate(before + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads a head. `None`: nothing came at all. What was read behind it stays in the buffer.
async fn read_head(from: &TcpStream, buffer: &mut Vec<u8>, otherwise: Reason) -> Result<Option<Vec<u8>>, Reason> {
    loop {
        if let Some(end) = head::end_of(buffer) {
            let rest = buffer.split_off(end);
            return Ok(Some(std::mem::replace(buffer, rest)));
        }
        let line_end = buffer.windows(2).position(|pair| pair == b"\r\n").unwrap_or(buffer.len());
        if buffer.len() >= MAX_HEAD || line_end > head::MAX_FIRST_LINE {
            return Err(Reason::HeadTooLarge);
        }
        match more(from, buffer, MAX_HEAD).await {
            Ok(true) => {}
            Ok(false) if buffer.is_empty() => return Ok(None),
            Ok(false) | Err(_) => return Err(otherwise),
        }
    }
}

async fn exchange(
    service: &Arc<Service>,
    client: &TcpStream,
    account: &Account,
    place: &mut (String, u16),
) -> Result<(), Ended> {
    let mut buffer = Vec::new();
    let head = timeout(service.policy.limits.head, read_head(client, &mut buffer, Reason::BadRequest)).await;
    let head = match head {
        Err(_) => Err(Reason::HeadTimeout),
        Ok(Ok(None)) => return Ok(()),
        Ok(Ok(Some(head))) => Ok(head),
        Ok(Err(reason)) => Err(reason),
    };
    let head = head.inspect_err(|_| place.0 = shown(head::aimed_at(&buffer))).map_err(told)?;
    place.0 = shown(head::aimed_at(&head));
    let asked = Asked::read(&head).map_err(told)?;
    let target = match &asked {
        Asked::Connect(target) | Asked::Forward(Request { target, .. }) => target.clone(),
    };
    *place = (target.host.clone(), target.port);
    let found = admit(service, &asked, &target).await.map_err(told)?;
    let server = resolve::connect(&target, &found).await.map_err(told)?;
    let _ = server.set_nodelay(true);
    let moving = Moving { service, client, server, account, target };
    match asked {
        Asked::Connect(_) => moving.tunnel(buffer).await,
        Asked::Forward(request) => moving.forward(request, buffer).await,
    }
}

/// Whether the target may be connected to, and at which addresses.
async fn admit(service: &Service, asked: &Asked, target: &Authority) -> Result<Vec<IpAddr>, Reason> {
    let policy = &service.policy;
    allows(&policy.allow, target)?;
    if matches!(asked, Asked::Forward(_)) && target.port == 443 {
        return Err(Reason::PlainOnTlsPort);
    }
    if service.task.is_spent() {
        return Err(Reason::ByteLimit);
    }
    resolve::addresses(&target.host, &*policy.resolver, &policy.networks).await
}

/// A connection to a host that was let through.
struct Moving<'a> {
    service: &'a Service,
    client: &'a TcpStream,
    server: TcpStream,
    account: &'a Account,
    target: Authority,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let moved = self.account.moved();
        if moved != Default::default() {
            self.service.record.ended(&self.target.host, self.target.port, moved);
        }
    }
}

impl Moving<'_> {
    fn allowed(&self) {
        self.service.record.decided(&self.target.host, self.target.port, Verdict::Allowed);
    }

    /// Ends when nothing has moved for too long.
    async fn idle(&self) -> Broken {
        loop {
            let until = self.account.last() + self.service.policy.limits.idle;
            if until <= Instant::now() {
                return Broken::Cut(Reason::Idle);
            }
            sleep_until(until).await;
        }
    }

    /// The work, unless nothing moves.
    async fn watched<T>(&self, work: impl Future<Output = Result<T, Broken>>) -> Result<T, Broken> {
        self.account.touch();
        tokio::select! {
            done = work => done,
            broken = self.idle() => Err(broken),
        }
    }

    async fn tunnel(&self, mut buffer: Vec<u8>) -> Result<(), Ended> {
        if write_all(self.client, ESTABLISHED, self.account).await.is_err() {
            return Ok(());
        }
        let hello = timeout(self.service.policy.limits.head, self.hello(&mut buffer)).await;
        match hello.unwrap_or(Err(Reason::HelloTimeout)) {
            Ok(()) => {}
            Err(reason @ (Reason::NotTls | Reason::HelloTimeout)) => return Err(silent(reason)),
            Err(reason) => return Err(Ended { reason, tell: Tell::Alert }),
        }
        self.allowed();
        let work = async {
            send(&self.server, &buffer, self.account, Direction::Sent).await?;
            tunnel(self.client, &self.server, self.account).await
        };
        ended(self.watched(work).await)
    }

    /// Reads the beginning of TLS. It is not sent before it is found to name the host of the CONNECT.
    async fn hello(&self, buffer: &mut Vec<u8>) -> Result<(), Reason> {
        loop {
            if let Some(name) = hello::server_name(buffer)? {
                let matches = name == self.target.host;
                return if matches { Ok(()) } else { Err(Reason::ServerNameMismatch) };
            }
            // A record that is allowed is whole before this is full.
            if buffer.len() > MAX_HELLO {
                return Err(Reason::HelloTooLarge);
            }
            match more(self.client, buffer, MAX_HELLO + 1).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return Err(Reason::NotTls),
            }
        }
    }

    async fn forward(&self, request: Request, buffer: Vec<u8>) -> Result<(), Ended> {
        self.allowed();
        let upload = async {
            send(&self.server, &request.head, self.account, Direction::Sent).await?;
            if request.expects_continue && buffer.is_empty() && request.framing != Framing::None {
                write_all(self.client, CONTINUE, self.account).await?;
            }
            body(self.client, &self.server, self.account, Direction::Sent, request.framing, &buffer, Reason::BadBody)
                .await
        };
        let download = self.answer(request.is_head);
        tokio::pin!(upload, download);
        let work = async {
            tokio::select! {
                // An answer that comes early ends the matter: what is left of the question is nobody's.
                answered = &mut download => return answered,
                sent = &mut upload => match sent {
                    // A server may stop reading and answer all the same.
                    Ok(()) | Err(Broken::Socket) => {}
                    Err(cut @ Broken::Cut(_)) => return Err(cut),
                },
            }
            download.await
        };
        ended(self.watched(work).await)
    }

    async fn answer(&self, to_head: bool) -> Result<(), Broken> {
        let mut buffer = Vec::new();
        for _ in 0..=MAX_INTERIM {
            let head = read_head(&self.server, &mut buffer, Reason::BadResponse).await;
            let bad = || Broken::Cut(Reason::BadResponse);
            let head = head.map_err(|_| bad())?.ok_or_else(bad)?;
            let answer = Answer::read(&head, to_head).map_err(Broken::Cut)?;
            if answer.status < 200 {
                continue;
            }
            send(self.client, &answer.head, self.account, Direction::Received).await?;
            let way = Direction::Received;
            return body(&self.server, self.client, self.account, way, answer.framing, &buffer, Reason::BadResponse)
                .await;
        }
        Err(Broken::Cut(Reason::BadResponse))
    }
}

/// Of a connection that was let through, only what we have cut is worth a word: a side that goes away is everyday.
fn ended(done: Result<(), Broken>) -> Result<(), Ended> {
    match done {
        Ok(()) | Err(Broken::Socket) => Ok(()),
        Err(Broken::Cut(reason)) => Err(silent(reason)),
    }
}

/// Passes a body on, to its end and not beyond. `begun` was read before.
async fn body(
    from: &TcpStream,
    to: &TcpStream,
    account: &Account,
    way: Direction,
    framing: Framing,
    begun: &[u8],
    otherwise: Reason,
) -> Result<(), Broken> {
    match framing {
        Framing::None => Ok(()),
        Framing::Close => {
            send(to, begun, account, way).await?;
            carry(from, to, account, way, None).await.map(drop)
        }
        Framing::Length(length) => {
            let here = usize::try_from(length).unwrap_or(usize::MAX).min(begun.len());
            send(to, &begun[..here], account, way).await?;
            carry(from, to, account, way, Some(length - here as u64)).await.map(drop)
        }
        Framing::Chunked => {
            let (mut chunks, mut buffer) = (Chunks::default(), begun.to_vec());
            loop {
                let ours = chunks.follow(&buffer, otherwise).map_err(Broken::Cut)?;
                send(to, &buffer[..ours], account, way).await?;
                if chunks.is_over() {
                    return Ok(());
                }
                buffer.clear();
                if !more(from, &mut buffer, 64 * 1024).await? {
                    // Broken off: the reader misses the last chunk and sees it.
                    return Ok(());
                }
            }
        }
    }
}
