//! Time, connections and bytes: what a sandbox may take, and that the proxy takes no more itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use orchestra_runtime::egress::{Batch, Limits, Lost, Policy, Reason, Sink, Verdict, expand, read_list, serve_on};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::hello::to;
use super::stage::{PATIENCE, Stage, refused};

const SHORT: Duration = Duration::from_millis(150);

async fn read_to_end(socket: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut heard)).await.expect("it is cut");
    heard
}

async fn tunnel(stage: &Stage) -> TcpStream {
    let mut socket = stage.dial().await;
    let connect = format!("CONNECT registry.example:{} HTTP/1.1\r\n\r\n", stage.server.address.port());
    socket.write_all(connect.as_bytes()).await.unwrap();
    let mut established = [0; 39];
    socket.read_exact(&mut established).await.unwrap();
    socket
}

#[tokio::test]
async fn who_is_slow_is_cut() {
    let limits = Limits { head: SHORT, ..Limits::default() };
    let stage = Stage::with(None, limits).await;
    // Slow loris: a byte now and then.
    let mut slow = stage.dial().await;
    let feeding = async {
        for byte in b"GET http://registry.example/ HTTP/1.1".iter().cycle() {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(SHORT * 8, feeding).await;
    // One that says nothing at all, one that opens a tunnel and says nothing, one that says half a hello.
    let mut silent = stage.dial().await;
    assert!(read_to_end(&mut silent).await.starts_with(b"HTTP/1.1 408 "));
    let mut unspoken = tunnel(&stage).await;
    assert_eq!(read_to_end(&mut unspoken).await, b"");
    let mut half = tunnel(&stage).await;
    half.write_all(&to("registry.example")[..30]).await.unwrap();
    assert_eq!(read_to_end(&mut half).await, b"");
    let (decisions, heard) = stage.end().await;
    let count = |reason| {
        decisions.iter().filter(|known| known.verdict == Verdict::of(reason)).map(|known| known.count).sum::<u64>()
    };
    assert_eq!((count(Reason::HeadTimeout), count(Reason::HelloTimeout)), (2, 2), "{decisions:?}");
    assert!(heard.is_empty());
}

#[tokio::test]
async fn a_tunnel_that_is_silent_or_old_is_cut() {
    for (limits, reason) in [
        (Limits { idle: SHORT, ..Limits::default() }, Reason::Idle),
        (Limits { total: SHORT * 4, ..Limits::default() }, Reason::TooLong),
    ] {
        let stage = Stage::with(None, limits).await;
        let mut socket = tunnel(&stage).await;
        let hello = to("registry.example");
        socket.write_all(&hello).await.unwrap();
        assert_eq!(read_to_end(&mut socket).await, hello);
        let (decisions, _) = stage.end().await;
        assert!(refused(&decisions, reason), "{reason}: {decisions:?}");
        assert!(decisions.iter().any(|decision| decision.verdict == Verdict::Allowed), "{reason}: {decisions:?}");
    }
}

#[tokio::test]
async fn a_flood_of_connections_is_told_to_come_back_and_those_before_it_go_on() {
    let stage = Stage::with(None, Limits { connections: 4, ..Limits::default() }).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(tunnel(&stage).await);
    }
    for _ in 0..100 {
        let mut more = stage.dial().await;
        let heard = read_to_end(&mut more).await;
        assert!(heard.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&heard));
    }
    let hello = to("registry.example");
    for socket in &mut open {
        socket.write_all(&hello).await.unwrap();
        let mut echoed = vec![0; hello.len()];
        socket.read_exact(&mut echoed).await.unwrap();
    }
    drop(open);
    let notes = Arc::clone(&stage.notes);
    stage.end().await;
    let decisions = notes.decisions();
    let flood: Vec<_> =
        decisions.iter().filter(|known| known.verdict == Verdict::of(Reason::TooManyConnections)).collect();
    assert_eq!(flood.iter().map(|known| known.count).sum::<u64>(), 100);
    assert!(flood.len() <= 3, "one entry a second: {flood:?}");
}

#[tokio::test]
async fn no_byte_more_than_the_limit_goes_either_way() {
    const LIMIT: u64 = 300_000;
    // Of a connection, and of a task over several connections.
    for (limits, connections) in [
        (Limits { connection_bytes: LIMIT, ..Limits::default() }, 1),
        (Limits { task_bytes: LIMIT, ..Limits::default() }, 3),
    ] {
        let stage = Stage::with(None, limits).await;
        let mut received = 0;
        for _ in 0..connections {
            let mut socket = stage.dial().await;
            let connect = format!("CONNECT registry.example:{} HTTP/1.1\r\n\r\n", stage.server.address.port());
            socket.write_all(connect.as_bytes()).await.unwrap();
            let mut head = [0; 39];
            socket.read_exact(&mut head).await.unwrap();
            if !head.starts_with(b"HTTP/1.1 200 ") {
                assert!(head.starts_with(b"HTTP/1.1 403 "));
                continue;
            }
            let (mut reader, mut writer) = socket.into_split();
            let writing = tokio::spawn(async move {
                let _ = writer.write_all(&to("registry.example")).await;
                let _ = writer.write_all(&vec![7; 2 * LIMIT as usize]).await;
            });
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) =
                tokio::time::timeout(PATIENCE, reader.read(&mut buffer)).await.expect("it is cut")
            {
                received += count as u64;
            }
            writing.await.unwrap();
        }
        let heard = stage.server.heard().len() as u64;
        let bytes = stage.egress.bytes();
        let (decisions, _) = stage.end().await;
        assert!(refused(&decisions, Reason::ByteLimit), "{decisions:?}");
        assert!(
            heard <= LIMIT && received <= LIMIT && bytes.sent <= LIMIT && bytes.received <= LIMIT,
            "{heard} {received} {bytes:?}"
        );
        assert_eq!(bytes.sent, LIMIT);
        let told = decisions.iter().map(|decision| decision.bytes.sent).sum::<u64>();
        assert_eq!(told, bytes.sent, "what is written down adds up");
    }
}

/// A sink that has lost its stream.
struct Closed;

#[async_trait]
impl Sink for Closed {
    async fn take_down(&self, _: Batch) -> Result<(), Lost> {
        Err(Lost)
    }
}

#[tokio::test]
async fn nothing_goes_out_that_nobody_takes_down() {
    let stage = Stage::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let allow = expand(&read_list(&["registry.example".to_owned()]).unwrap(), &Default::default());
    let policy = Policy { resolver: Arc::clone(&stage.names) as _, ..Policy::new(allow) };
    let egress = serve_on(listener, policy, Arc::new(Closed));
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut socket).await.starts_with(b"HTTP/1.1 403 "));
    let start = tokio::time::Instant::now();
    while egress.is_running() {
        assert!(start.elapsed() < PATIENCE, "it goes on without a record");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(TcpStream::connect(address).await.is_err());
}
