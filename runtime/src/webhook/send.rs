//! One attempt at one message: a POST that follows nowhere, waits for no longer than it is told, and reads little.

use std::error::Error as _;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use orchestra_events::webhook::{Fault, MessageId};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response, redirect};
use tokio::time::timeout;

use super::target::{CheckedResolver, Refused, Target, Targets};
use crate::egress::Reason;
use crate::http::HttpClient;
use crate::model::fault::retry_after;

/// The most that is read of an answer, so that its connection can be used again. What it says is nobody's business: it may
/// be the answer of something else.
pub const MAX_ANSWER: usize = 64 * 1024;
/// For opening a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept for the next message.
const IDLE: Duration = Duration::from_secs(30);
/// Connections to one receiver that are kept: as many as one webhook uses.
const IDLE_CONNECTIONS: usize = 8;

/// What is sent.
#[derive(Debug, Clone)]
pub struct Message {
    /// `webhook-id`.
    pub id: MessageId,
    /// `webhook-timestamp`.
    pub at: Timestamp,
    /// `webhook-signature`.
    pub signature: String,
    /// The body.
    pub body: Vec<u8>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The status, or why there is none.
    pub status: Result<u16, Fault>,
    /// What the receiver asks to be spared.
    pub retry_after: Option<Duration>,
    /// Until the answer began.
    pub took: Duration,
}

/// Sends messages.
#[derive(Debug, Clone)]
pub struct Sender {
    encrypted: HttpClient,
    plain: HttpClient,
    timeout: Duration,
}

impl Sender {
    /// A sender to these targets, which waits for an answer for no longer than this.
    pub fn new(targets: &Targets, timeout: Duration) -> Self {
        let client = |plain| {
            let targets = targets.clone();
            HttpClient::new(move |client| {
                client
                    .user_agent(concat!("orchestra/", env!("CARGO_PKG_VERSION")))
                    .redirect(redirect::Policy::none())
                    .no_proxy()
                    .http1_only()
                    .referer(false)
                    .connect_timeout(CONNECT_TIMEOUT)
                    .pool_idle_timeout(IDLE)
                    .pool_max_idle_per_host(IDLE_CONNECTIONS)
                    .dns_resolver(CheckedResolver::new(targets.clone(), plain))
            })
        };
        Self { encrypted: client(false), plain: client(true), timeout }
    }

    /// One attempt.
    pub async fn send(&self, target: &Target, message: Message) -> Answer {
        let started = Instant::now();
        let client = if target.is_plain() { &self.plain } else { &self.encrypted };
        let client = match client.get().await {
            Ok(client) => client,
            Err(error) => {
                tracing::error!("the client of the webhooks does not come up: {error}");
                return Answer { status: Err(Fault::Tls), retry_after: None, took: started.elapsed() };
            }
        };
        let response = timeout(self.timeout, post(client, target, message)).await;
        let took = started.elapsed();
        match response {
            Err(_) => Answer { status: Err(Fault::Timeout), retry_after: None, took },
            Ok(Err(error)) => Answer { status: Err(fault(&error)), retry_after: None, took },
            Ok(Ok(response)) => {
                let retry_after = retry_after(response.headers(), Timestamp::now());
                let answer = Answer { status: Ok(response.status().as_u16()), retry_after, took };
                // The status has said it all. A body that does not end in time costs its connection and no more.
                let _ = timeout(self.timeout.saturating_sub(took), drain(response)).await;
                answer
            }
        }
    }
}

async fn post(client: &Client, target: &Target, message: Message) -> reqwest::Result<Response> {
    client
        .post(target.url().clone())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header("webhook-id", message.id.to_string())
        .header("webhook-timestamp", message.at.as_second().to_string())
        .header("webhook-signature", message.signature)
        .body(Bytes::from(message.body))
        .send()
        .await
}

async fn drain(mut response: Response) {
    let mut left = MAX_ANSWER;
    while let Ok(Some(chunk)) = response.chunk().await {
        match left.checked_sub(chunk.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Why there was no answer, in a word that can be told: no text of a stranger's.
fn fault(error: &reqwest::Error) -> Fault {
    let mut source = error.source();
    let mut broken = None;
    while let Some(cause) = source {
        if let Some(Refused(reason)) = cause.downcast_ref() {
            return if *reason == Reason::Unresolvable { Fault::Unresolvable } else { Fault::ForbiddenAddress };
        }
        if let Some(error) = cause.downcast_ref::<hyper::Error>()
            && (error.is_parse() || error.is_parse_status() || error.is_parse_too_large())
        {
            return Fault::BadAnswer;
        }
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            broken = broken.or(Some(error.kind()));
        }
        source = cause.source();
    }
    if error.is_timeout() || broken == Some(io::ErrorKind::TimedOut) {
        return Fault::Timeout;
    }
    match (error.is_connect(), broken) {
        (
            true,
            Some(
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::AddrNotAvailable
                | io::ErrorKind::PermissionDenied,
            ),
        ) => Fault::Unreachable,
        // What went wrong once the connection stood and before the request did is TLS.
        (true, _) => Fault::Tls,
        (false, _) => Fault::Broken,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use orchestra_events::{EventId, WebhookId};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use uuid::Uuid;

    use super::super::target::FixedResolver;
    use super::*;

    const LIMIT: Duration = Duration::from_millis(600);

    /// Answers every connection with what `answer` does, and counts them.
    async fn receiver<F: Future<Output = ()> + Send>(
        answer: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let answer = Arc::new(answer);
            while let Ok((socket, _)) = listener.accept().await {
                let answer = Arc::clone(&answer);
                tokio::spawn(async move { answer(socket).await });
            }
        });
        address
    }

    /// Reads a request whole, as far as these tests send one.
    async fn request(socket: &mut TcpStream) -> String {
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        while !text.ends_with(b"{\"a\":1}") {
            match socket.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => text.extend_from_slice(&buffer[..read]),
            }
        }
        String::from_utf8(text).unwrap()
    }

    fn message() -> Message {
        let id = MessageId::of(WebhookId::from_uuid(Uuid::nil()), EventId(Uuid::nil()));
        let at = Timestamp::from_second(1_790_000_000).unwrap();
        Message { id, at, signature: "v1,abc".to_owned(), body: br#"{"a":1}"#.to_vec() }
    }

    async fn send_to(url: &str, networks: &[&str], names: &[(&str, &str)]) -> Answer {
        let names = names.iter().map(|(name, address)| ((*name).to_owned(), vec![address.parse().unwrap()])).collect();
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        let targets = Targets::new(networks, Arc::new(FixedResolver(names)));
        Sender::new(&targets, LIMIT).send(&targets.read(url).unwrap(), message()).await
    }

    async fn answered(text: &'static str) -> Answer {
        let address = receiver(move |mut socket| async move {
            request(&mut socket).await;
            let _ = socket.write_all(text.as_bytes()).await;
            // Whatever is still to come does not come.
            tokio::time::sleep(Duration::from_secs(20)).await;
        });
        send_to(&format!("http://{}/hook", address.await), &["127.0.0.0/8"], &[]).await
    }

    #[tokio::test]
    async fn the_status_is_the_answer_whatever_becomes_of_the_body() {
        for (text, status, retry_after) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n", 200, None),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n", 200, None),
            ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", 302, None),
            ("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n", 410, None),
            ("HTTP/1.1 503 x\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", 503, Some(Duration::from_secs(7))),
            ("HTTP/1.1 429 x\r\nretry-after: soon\r\ncontent-length: 0\r\n\r\n", 429, None),
        ] {
            let answer = answered(text).await;
            assert_eq!((answer.status, answer.retry_after), (Ok(status), retry_after), "{text}");
        }
    }

    #[tokio::test]
    async fn what_is_sent_is_what_the_standard_says() {
        let (sender, mut seen) = tokio::sync::mpsc::channel(1);
        let address = receiver(move |mut socket| {
            let sender = sender.clone();
            async move {
                let text = request(&mut socket).await;
                let _ = sender.send(text).await;
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        });
        let url = format!("http://{}/hook?x=1", address.await);
        assert_eq!(send_to(&url, &["127.0.0.0/8"], &[]).await.status, Ok(200));
        let text = seen.recv().await.unwrap();
        assert!(text.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{text}");
        for line in [
            "content-type: application/json",
            &format!("webhook-id: {}", message().id),
            "webhook-timestamp: 1790000000",
            "webhook-signature: v1,abc",
        ] {
            assert!(text.contains(&format!("\r\n{line}\r\n")), "{line} in {text}");
        }
        assert!(text.ends_with("\r\n\r\n{\"a\":1}"), "{text}");
    }

    #[tokio::test]
    async fn what_went_wrong_has_a_name() {
        let hang = answered("");
        let drip = receiver(|mut socket| async move {
            request(&mut socket).await;
            for byte in b"HTTP/1.1 200 OK\r\n".iter().cycle() {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if socket.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        });
        let drip = send_to(&format!("http://{}/", drip.await), &["127.0.0.0/8"], &[]).await;
        let cut = receiver(|mut socket| async move {
            request(&mut socket).await;
        });
        let cut = send_to(&format!("http://{}/", cut.await), &["127.0.0.0/8"], &[]).await;
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody = send_to(&format!("http://{nobody}/"), &["127.0.0.0/8"], &[]).await;
        let not_tls = receiver(|mut socket| async move {
            let _ = socket.read(&mut [0; 64]).await;
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        });
        let not_tls = send_to(&format!("https://{}/", not_tls.await), &["127.0.0.0/8"], &[]).await;
        for (answer, fault) in [
            (hang.await, Fault::Timeout),
            (drip, Fault::Timeout),
            (cut, Fault::Broken),
            (nobody, Fault::Unreachable),
            (not_tls, Fault::Tls),
            (answered("SSH-2.0-OpenSSH_9.2\r\n").await, Fault::BadAnswer),
            (send_to("https://nowhere.example/", &[], &[]).await, Fault::Unresolvable),
            (send_to("https://inside.example/", &[], &[("inside.example", "10.0.0.1")]).await, Fault::ForbiddenAddress),
            (
                send_to("https://mapped.example/", &[], &[("mapped.example", "::ffff:7f00:1")]).await,
                Fault::ForbiddenAddress,
            ),
            (
                send_to("http://outside.example/", &["127.0.0.0/8"], &[("outside.example", "93.184.216.34")]).await,
                Fault::ForbiddenAddress,
            ),
        ] {
            assert_eq!(answer.status, Err(fault), "{answer:?}");
            assert!(answer.took < LIMIT * 2, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_and_what_was_checked_is_connected_to() {
        /// The first answer is allowed, every later one is not.
        #[derive(Default)]
        struct Rebinding(std::sync::atomic::AtomicU32);
        #[async_trait::async_trait]
        impl crate::egress::Resolve for Rebinding {
            async fn resolve(&self, _: &str) -> io::Result<Vec<std::net::IpAddr>> {
                let first = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
                Ok(vec![if first { "127.0.0.1" } else { "10.0.0.1" }.parse().unwrap()])
            }
        }
        let address = receiver(|mut socket| async move {
            request(&mut socket).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        })
        .await;
        let targets = Targets::new(vec!["127.0.0.0/8".parse().unwrap()], Arc::new(Rebinding::default()));
        let sender = Sender::new(&targets, LIMIT);
        let target = targets.read(&format!("http://rebinding.example:{}/", address.port())).unwrap();
        assert_eq!(sender.send(&target, message()).await.status, Ok(200));
        assert_eq!(sender.send(&target, message()).await.status, Err(Fault::ForbiddenAddress));
    }
}
