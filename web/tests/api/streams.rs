//! Live streams: history, then live, each event once, whatever is cut.

use std::time::Duration;

use actix_web::HttpServer;
use orchestra_events::key::Scope;
use orchestra_events::store::read_whole_stream;
use orchestra_events::task::{Command, TaskEvent};
use orchestra_events::{Actor, EventStore, StreamName, TaskId};
use orchestra_web::app::MAX_STREAMS;
use orchestra_web::configure;
use orchestra_web::live::stream::limit_writes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uuid::Uuid;

use crate::harness::{SOON, Server, example, get, post};

async fn noise(server: &Server, id: TaskId, number: usize) {
    let event = TaskEvent::CancelRequested { reason: Some(format!("line one\nline two {number}")) };
    server.service.record(id, vec![event], &Actor::system("test"), jiff::Timestamp::now()).await;
}

fn sse(key: &str, path: &str) -> actix_web::test::TestRequest {
    get(key, path).insert_header(("accept", "text/event-stream"))
}

#[actix_web::test]
async fn a_stream_cut_anywhere_goes_on_without_gap_or_repeat() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    for number in 0..40 {
        noise(&server, id, number).await;
    }
    let mut seen: Vec<(u64, String)> = Vec::new();
    let mut seed = Uuid::now_v7().as_u128() | 1;
    let mut total = 42;
    while seen.len() < total {
        let mut request = sse(&server.admin, &format!("/v1/tasks/{id}/events"));
        if let Some((last, _)) = seen.last() {
            request = request.insert_header(("last-event-id", last.to_string()));
        }
        let mut stream = server.stream(request).await;
        assert_eq!(stream.content_type, "text/event-stream");
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let cut = 1 + (seed >> 64) as usize % 7;
        for _ in 0..cut.min(total - seen.len()) {
            let frame = stream.frame().await.expect("an event");
            let envelope: Value = serde_json::from_str(&frame.data).expect("one line of JSON");
            assert_eq!(envelope["type"], frame.event);
            assert_eq!(envelope["revision"].as_u64(), frame.id);
            seen.push((frame.id.expect("an id"), envelope["id"].as_str().expect("an id").to_owned()));
        }
        if total < 60 {
            // The task goes on while nobody is connected.
            noise(&server, id, total).await;
            total += 1;
        }
    }
    let stored = read_whole_stream(&*server.store, &StreamName::task(id)).await.expect("a stream");
    let stored: Vec<_> = stored.iter().map(|event| (event.revision.0, event.id.to_string())).collect();
    assert_eq!(seen, stored);
}

#[actix_web::test]
async fn what_happens_later_and_what_the_model_says_arrive_live() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    let mut stream = server.stream(sse(&server.admin, &format!("/v1/tasks/{id}/events?after=0"))).await;
    assert_eq!(stream.frame().await.expect("queued").event, "queued");
    let said = async {
        while server.service.listeners() == 0 {
            tokio::task::yield_now().await;
        }
        server.service.say("Hel\nlo");
    };
    let (frame, ()) =
        tokio::join!(stream.frame(), async { tokio::time::timeout(SOON, said).await.expect("a listener") });
    let delta = frame.expect("a delta");
    assert_eq!((delta.id, &*delta.event, &*delta.data), (None, "delta", r#"{"text":"Hel\nlo"}"#));
    server.service.command(id, Command::Cancel { reason: None }, &Actor::system("test")).await.expect("events");
    assert_eq!(stream.frame().await.expect("an event").event, "cancel-requested");
    let last = stream.frame().await.expect("an event");
    assert_eq!((last.id, &*last.event), (Some(3), "cancelled"));
}

#[actix_web::test]
async fn events_come_as_pages_too() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    for number in 0..5 {
        noise(&server, id, number).await;
    }
    let mut seen = Vec::new();
    let mut path = format!("/v1/tasks/{id}/events?limit=3");
    loop {
        let page = server.get(&server.admin, &path).await.json();
        seen.extend(
            page["data"].as_array().expect("a list").iter().map(|event| event["revision"].as_u64().expect("a number")),
        );
        match page["nextCursor"].as_str() {
            Some(after) => path = format!("/v1/tasks/{id}/events?limit=3&after={after}"),
            None => break,
        }
    }
    assert_eq!(seen, (0..7).collect::<Vec<_>>());
    let wrong = server.get(&server.admin, &format!("/v1/tasks/{id}/events?after=x")).await;
    assert_eq!(wrong.pointers(), ["?after"]);
    let wrong = get(&server.admin, &format!("/v1/tasks/{id}/events")).insert_header(("last-event-id", "x"));
    assert_eq!(server.send(wrong).await.code(), "invalid-query");
}

#[actix_web::test]
async fn the_whole_log_is_filtered_and_holds_only_the_callers_team() {
    let server = Server::start().await;
    let (platform, mobile) = (server.team_key("platform").await, server.team_key("mobile").await);
    let mut theirs = example();
    theirs["team"] = json!("mobile");
    let other = server.task(&server.admin, &theirs).await;
    let own = server.task(&server.admin, &example()).await;
    // Orchestra's own acts carry no team; the task they are about does.
    noise(&server, other, 1).await;
    noise(&server, own, 1).await;
    let mut log = server.stream(get(&platform, "/v1/events")).await;
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let frame = log.frame().await.expect("an event");
        let envelope: Value = serde_json::from_str(&frame.data).expect("JSON");
        assert_eq!(envelope["stream"], StreamName::task(own).as_str());
        assert_eq!(envelope["position"].as_u64(), frame.id);
        kinds.push(frame.event);
    }
    assert_eq!(kinds, ["created", "queued", "cancel-requested"]);
    // Starting in the middle, the team is found out without the first event.
    let head = server.store.head().await.expect("a head").0;
    let mut log = server.stream(get(&mobile, &format!("/v1/events?after={}", head - 2))).await;
    let frame = log.frame().await.expect("an event");
    assert_eq!(frame.id, Some(head - 1));
    let path = format!("/v1/events?type=queued,created&task={own}");
    let mut lines = server.stream(get(&server.admin, &path).insert_header(("accept", "application/x-ndjson"))).await;
    assert_eq!(lines.content_type, "application/x-ndjson");
    for kind in ["created", "queued"] {
        let line: Value = serde_json::from_str(&lines.line().await.expect("a line")).expect("JSON");
        assert_eq!(line["type"], kind);
    }
    let mut lines = server.stream(get(&server.admin, "/v1/events?team=mobile&type=created")).await;
    let envelope: Value = serde_json::from_str(&lines.frame().await.expect("an event").data).expect("JSON");
    assert_eq!(envelope["stream"], StreamName::task(other).as_str());
}

#[actix_web::test]
async fn where_an_act_came_from_is_told_by_the_log_alone_and_to_whom_it_concerns() {
    let server = Server::start().await;
    let (platform, reader) =
        (server.team_key("platform").await, server.key(Some("platform"), &[Scope::TasksRead]).await);
    server.session(&platform).await;
    let submit = |key: &str, program: &str| {
        post(key, "/v1/tasks", &example().to_string()).insert_header(("user-agent", program))
    };
    let of = |answer: crate::harness::Answer| answer.json()["id"].as_str().expect("an id").to_owned();
    let own = of(server.send(submit(&platform, "own-program/1")).await);
    let operators = of(server.send(submit(&server.admin, "operators-program/1")).await);
    let key = r#"{"name": "ci", "team": "platform", "scopes": ["tasks:read"]}"#;
    assert_eq!(server.post(&server.admin, "/v1/keys", key).await.status, 201);
    // The events of a task do not say, whoever asks.
    for key in [&platform, &reader, &server.admin] {
        for id in [&own, &operators] {
            let path = format!("/v1/tasks/{id}/events");
            let page = server.get(key, &path).await;
            let frame = server.stream(sse(key, &path)).await.frame().await.expect("an event");
            for text in [page.text(), &frame.data] {
                assert!(text.contains("created") && !text.contains("origin") && !text.contains("program"), "{text}");
            }
        }
    }
    // The log does: all of it to the operators, and to a team of its own.
    let log = async |key: &str, path: &str, accept: &str| {
        let mut pieces = server.stream(get(key, path).insert_header(("accept", accept))).await;
        let mut seen = Vec::new();
        while seen.iter().filter(|event: &&Value| event["type"] == "key-issued").count() < 1 {
            let text = match accept {
                "application/x-ndjson" => pieces.line().await.expect("a line"),
                _ => pieces.frame().await.expect("an event").data,
            };
            seen.push(serde_json::from_str::<Value>(&text).expect("JSON"));
        }
        seen
    };
    for accept in ["text/event-stream", "application/x-ndjson"] {
        let seen = log(&platform, "/v1/events", accept).await;
        let created = |id: &str| {
            let id = id.parse::<TaskId>().expect("a task's id");
            let of = |event: &&Value| event["type"] == "created" && event["stream"] == StreamName::task(id).as_str();
            seen.iter().find(of).expect("an event").clone()
        };
        assert_eq!(created(&own)["actor"]["origin"]["userAgent"], "own-program/1");
        assert_eq!(created(&operators)["actor"]["origin"], Value::Null);
        let text = serde_json::to_string(&seen).expect("JSON");
        assert!(text.contains("session-started") && !text.contains("Sha256"), "{text}");
        let everything = log(&server.admin, "/v1/events?team=platform", accept).await;
        let text = serde_json::to_string(&everything).expect("JSON");
        for told in ["own-program/1", "operators-program/1", "secretSha256", "cookieSha256"] {
            assert!(text.contains(told), "{told}: {text}");
        }
    }
}

#[actix_web::test]
async fn streams_are_counted_and_let_go() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    let mut stream = server.stream(sse(&server.admin, &format!("/v1/tasks/{id}/events"))).await;
    stream.frame().await.expect("an event");
    assert_eq!(server.app.streams.available_permits(), MAX_STREAMS - 1);
    let taken = server.app.streams.clone().acquire_many_owned(MAX_STREAMS as u32 - 1).await.expect("open");
    let refused = server.send(sse(&server.admin, &format!("/v1/tasks/{id}/events"))).await;
    assert_eq!(refused.code(), "overloaded");
    assert!(refused.header("retry-after").is_some());
    drop(taken);
    drop(stream);
    assert_eq!(server.app.streams.available_permits(), MAX_STREAMS);
}

#[actix_web::test]
async fn a_reader_who_stops_reading_is_cut_off() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    // More than any socket buffers.
    let long = "x".repeat(500_000);
    for _ in 0..64 {
        let event = TaskEvent::CancelRequested { reason: Some(long.clone()) };
        server.service.record(id, vec![event], &Actor::system("test"), jiff::Timestamp::now()).await;
    }
    let app = server.app.clone();
    let http = HttpServer::new(move || {
        let app = app.clone();
        actix_web::App::new().configure(|cfg| configure(cfg, app))
    })
    .workers(1)
    .disable_signals()
    .on_connect(|connection, _| limit_writes(connection, Duration::from_millis(500)))
    .bind("127.0.0.1:0")
    .expect("a port");
    let address = http.addrs()[0];
    let running = http.run();
    let handle = running.handle();
    actix_web::rt::spawn(running);
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let request = format!(
        "GET /v1/tasks/{id}/events HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nauthorization: Bearer {}\r\n\r\n",
        server.admin
    );
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut first = [0_u8; 12];
    socket.read_exact(&mut first).await.expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    assert_eq!(server.app.streams.available_permits(), MAX_STREAMS - 1);
    // From here on nobody reads. The kernel probes the full socket at growing intervals and gives up after the limit.
    let freed = tokio::time::timeout(SOON, server.app.streams.acquire_many(MAX_STREAMS as u32)).await;
    assert!(freed.is_ok(), "the stream of a stuck reader is still open");
    drop(freed);
    drop(socket);
    handle.stop(false).await;
}
