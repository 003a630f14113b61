//! What must get through, byte for byte: a proxy that refuses everything would pass every other test.

use orchestra_runtime::egress::{Bytes, Limits, Reason, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::hello::{names, to, with_extensions};
use super::stage::{ANSWER, Stage, has, refused};

async fn forward(answer: &[u8], request: &str) -> (String, String, Vec<orchestra_runtime::egress::Decision>) {
    let stage = Stage::with(Some(answer.to_vec()), Limits::default()).await;
    let port = stage.server.address.port().to_string();
    let answer = stage.say(request.replace("{port}", &port).as_bytes(), None).await;
    let (decisions, heard) = stage.end().await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&port, "{port}");
    (text(&answer), text(&heard), decisions)
}

const HOST: &str = "Host: registry.example:{port}\r\n";

#[tokio::test]
async fn a_request_is_forwarded_and_its_answer_comes_back() {
    let (answer, heard, decisions) =
        forward(ANSWER, &format!("GET http://Registry.Example:{{port}}/a?b=c HTTP/1.1\r\n{HOST}Accept: x\r\n\r\n"))
            .await;
    assert_eq!(heard, "GET /a?b=c HTTP/1.1\r\nhost: registry.example:{port}\r\naccept: x\r\nconnection: close\r\n\r\n");
    assert_eq!(answer, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
    let [decision] = &decisions[..] else { panic!("{decisions:?}") };
    assert_eq!((&*decision.host, decision.verdict, decision.count), ("registry.example", Verdict::Allowed, 1));
    // The port has four or five digits.
    let sent = decision.bytes.sent as usize + "{port}".len();
    assert!((heard.len() + 4..=heard.len() + 5).contains(&sent), "{sent}");
    assert_eq!(decision.bytes.received, answer.len() as u64);
}

#[tokio::test]
async fn bodies_go_out_within_their_framing_and_nothing_behind_them_does() {
    let post = format!("POST http://registry.example:{{port}}/ HTTP/1.1\r\n{HOST}");
    let second = "GET http://registry.example:{port}/second HTTP/1.1\r\n\r\n";
    let (_, heard, _) = forward(ANSWER, &format!("{post}Content-Length: 4\r\n\r\nbody{second}")).await;
    assert!(heard.ends_with("\r\n\r\nbody"), "{heard}");
    let (_, heard, _) =
        forward(ANSWER, &format!("{post}Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n{second}")).await;
    assert!(heard.ends_with("\r\n\r\n4\r\nbody\r\n0\r\n\r\n"), "{heard}");
    // A body that breaks its framing is cut at the place.
    for broken in
        ["4;x=y\r\nbody\r\n0\r\n\r\n", "4\nbody\r\n0\r\n\r\n", "4\r\nbodyGET /\r\n", "0\r\nX: y\r\n\r\n", "-1\r\n\r\n"]
    {
        let request = format!("{post}Transfer-Encoding: chunked\r\n\r\n{broken}");
        // A server that answers only when it has heard everything, so that the cut is what ends it.
        let (_, heard, decisions) = forward(b"", &request).await;
        assert!(!heard.contains("body") && !heard.contains("X: y"), "{broken:?}: {heard}");
        assert!(refused(&decisions, Reason::BadBody), "{broken:?}: {decisions:?}");
    }
}

#[tokio::test]
async fn a_redirection_is_the_callers_to_follow() {
    let redirect = b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n";
    let (answer, heard, decisions) =
        forward(redirect, &format!("GET http://registry.example:{{port}}/ HTTP/1.1\r\n{HOST}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 302 Found\r\nlocation: http://evil.example/\r\n"), "{answer}");
    assert_eq!(heard.matches("HTTP/1.1").count(), 1);
    assert_eq!(decisions.len(), 1);
}

#[tokio::test]
async fn an_answer_that_reads_in_two_ways_does_not_come_back() {
    let get = format!("GET http://registry.example:{{port}}/ HTTP/1.1\r\n{HOST}\r\n");
    for bad in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nhidden",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nhidden",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 6\r\n\r\nhidden",
        "HTTP/1.1 200 OK\r\nA\nB: c\r\n\r\nhidden",
        "SSH-2.0-OpenSSH\r\n\r\nhidden",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\n\r\nSSH-2.0-OpenSSH\r\n\r\nhidden",
    ] {
        let (answer, _, decisions) = forward(bad.as_bytes(), &get).await;
        assert!(!answer.contains("hidden"), "{bad:?}: {answer}");
        assert!(refused(&decisions, Reason::BadResponse), "{bad:?}: {decisions:?}");
    }
    // What comes behind an answer is nobody's.
    let (answer, ..) = forward(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n", &get).await;
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    let (answer, ..) = forward(b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", &get).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
    let (answer, ..) =
        forward(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nX", &get).await;
    assert!(answer.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn who_waits_for_a_word_before_the_body_gets_it() {
    let stage = Stage::new().await;
    let port = stage.server.address.port();
    let mut socket = stage.dial().await;
    let head = format!(
        "PUT http://registry.example:{port}/ HTTP/1.1\r\nHost: registry.example:{port}\r\nContent-Length: 4\r\n\
         Expect: 100-continue\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut word = [0; 25];
    socket.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"body").await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_tunnel_carries_tls_to_the_host_that_it_names() {
    for (target, hello) in [
        ("registry.example", to("registry.example")),
        ("REGISTRY.example", to("Registry.Example")),
        ("a.wild.example", to("a.wild.example")),
        ("registry.example", with_extensions(&[(10, vec![0; 8000]), (0, names(&[b"registry.example"]))])),
    ] {
        let stage = Stage::with(None, Limits::default()).await;
        let connect = format!(
            "CONNECT {target}:{} HTTP/1.1\r\nProxy-Connection: keep-alive\r\n\r\n",
            stage.server.address.port()
        );
        // In pieces, and with what follows the hello in the same breath.
        let then = [&hello[..], b"and the rest"].concat();
        let answer = stage.say(connect.as_bytes(), Some(&then)).await;
        let (decisions, heard) = stage.end().await;
        assert!(answer.ends_with(&then), "{target}: the tunnel is no tunnel");
        assert_eq!(heard, then);
        let [decision] = &decisions[..] else { panic!("{decisions:?}") };
        assert_eq!((&*decision.host, decision.verdict), (&*target.to_ascii_lowercase(), Verdict::Allowed));
        assert_eq!(decision.bytes, Bytes { received: then.len() as u64, sent: then.len() as u64 });
    }
}

#[tokio::test]
async fn a_hello_may_come_byte_by_byte() {
    let stage = Stage::with(None, Limits::default()).await;
    let mut socket = stage.dial().await;
    socket.set_nodelay(true).unwrap();
    let connect = format!("CONNECT registry.example:{} HTTP/1.1\r\n\r\n", stage.server.address.port());
    for byte in connect.bytes() {
        socket.write_all(&[byte]).await.unwrap();
    }
    let mut established = [0; 39];
    socket.read_exact(&mut established).await.unwrap();
    assert!(has(&established, b"200 Connection established\r\n\r\n"));
    let hello = to("registry.example");
    for byte in &hello {
        socket.write_all(&[*byte]).await.unwrap();
    }
    let mut echoed = vec![0; hello.len()];
    socket.read_exact(&mut echoed).await.unwrap();
    assert_eq!(echoed, hello);
}

#[tokio::test]
async fn much_arrives_as_it_was_sent_in_both_directions_at_once() {
    const SIZE: usize = 24 << 20;
    let stage = Stage::with(None, Limits::default()).await;
    let mut socket = stage.dial().await;
    let connect = format!("CONNECT registry.example:{} HTTP/1.1\r\n\r\n", stage.server.address.port());
    socket.write_all(connect.as_bytes()).await.unwrap();
    let mut established = [0; 39];
    socket.read_exact(&mut established).await.unwrap();
    let mut sent = to("registry.example");
    let mut state = 7_u32;
    while sent.len() < SIZE {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        sent.extend(state.to_le_bytes());
    }
    let (mut reader, mut writer) = socket.into_split();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&copy).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut echoed = Vec::with_capacity(SIZE);
    reader.read_to_end(&mut echoed).await.unwrap();
    writing.await.unwrap();
    assert!(echoed == sent, "{} of {} bytes, or others", echoed.len(), sent.len());
    assert_eq!(stage.egress.bytes(), Bytes { received: sent.len() as u64, sent: sent.len() as u64 });
}
