//! Whatever is wrong with a request, the answer points at it, nothing is stored, and the server goes on.

use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{House, Setup, conformance, done, program, script, sha256};

/// More than any body may have.
const TOO_MUCH: usize = 1024 * 1024;

/// What came back.
struct Answer {
    status: u16,
    kind: String,
    text: String,
    body: Value,
}

impl Answer {
    /// Sends it, and holds what comes back against the document.
    async fn to(request: RequestBuilder) -> Self {
        let (client, request) = request.timeout(Duration::from_secs(60)).build_split();
        let request = request.unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let answer = client.execute(request).await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await.unwrap();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        conformance::check((method.as_str(), &path), status, header, text.as_bytes());
        let kind = header("content-type").unwrap_or_default().to_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Self { status, kind, text, body }
    }

    fn pointers(&self) -> Vec<&str> {
        let errors = self.body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        errors.iter().filter_map(|error| error["pointer"].as_str()).collect()
    }

    /// A problem of this status and code, with a sentence for each fault.
    fn is(&self, status: u16, code: &str, what: &str) {
        let found = (self.status, self.body["code"].as_str().unwrap_or_default());
        assert_eq!(found, (status, code), "{what:.120}: {}", self.text);
        assert_eq!(self.kind, "application/problem+json", "{what:.120}");
        assert_eq!(self.body["status"], status, "{what:.120}");
        assert_eq!(self.body["type"], format!("/docs/errors/{code}"), "{what:.120}");
        assert!(self.body["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{what:.120}: {}", self.text);
        for error in self.body["errors"].as_array().into_iter().flatten() {
            assert!(error["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{what:.120}: {}", self.text);
        }
    }
}

fn json_request(house: &House, method: Method, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    house.api.request(method, path).header("content-type", "application/json").body(body)
}

async fn submit(house: &House, body: impl Into<reqwest::Body>) -> Answer {
    Answer::to(json_request(house, Method::POST, "/v1/tasks", body)).await
}

async fn get(house: &House, path: &str) -> Answer {
    Answer::to(house.api.request(Method::GET, path)).await
}

/// How many tasks there are, from a server that says that it is well. Refusals and signatures of the log are events too, and no sign of anything stored.
async fn stored(house: &House) -> usize {
    let health = get(house, "/healthz").await;
    assert_eq!((health.status, &*health.text), (200, "ok\n"));
    get(house, "/v1/tasks").await.body["data"].as_array().expect("a list").len()
}

/// The example payload with this text as the value of one field.
fn with(house: &House, name: &str, value: &str) -> String {
    let mut body = house.payload();
    body.as_object_mut().unwrap().remove(name);
    let text = body.to_string();
    format!("{},{}:{value}}}", text.strip_suffix('}').unwrap(), json!(name))
}

fn long(length: usize) -> String {
    json!("x".repeat(length)).to_string()
}

/// A server whose tasks wait for a model key, so that nothing moves by itself.
async fn quiet_house() -> House {
    Setup::new(script(json!([done()]))).key_required().open().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_the_payload_wrong_in_turn_is_pointed_at() {
    let house = quiet_house().await;
    let before = stored(&house).await;
    let many: serde_json::Map<String, Value> = (0..51).map(|n| (format!("k{n}"), json!(n))).collect();
    let cases: Vec<(&str, String, &str)> = vec![
        // Type.
        ("repo", "7".into(), "/repo"),
        ("repo", "null".into(), "/repo"),
        ("task", "[]".into(), "/task"),
        ("task", "true".into(), "/task"),
        ("model", "{}".into(), "/model"),
        ("team", "1.5".into(), "/team"),
        ("project", "[]".into(), "/project"),
        ("environment", "1".into(), "/environment"),
        ("taskType", "{}".into(), "/taskType"),
        ("customer", "false".into(), "/customer"),
        ("budget", "2".into(), "/budget"),
        ("budget", r#"{"maxUsd": "2"}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": [2]}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxTokens": "many"}"#.into(), "/budget/maxTokens"),
        ("base", "0".into(), "/base"),
        ("branch", "[]".into(), "/branch"),
        ("harness", "1".into(), "/harness"),
        ("image", "{}".into(), "/image"),
        ("timeoutSeconds", r#""60""#.into(), "/timeoutSeconds"),
        ("timeoutSeconds", "1.5".into(), "/timeoutSeconds"),
        ("metadata", "[]".into(), "/metadata"),
        ("metadata", r#"{"a/b~c": {}}"#.into(), "/metadata/a~1b~0c"),
        ("credentials", r#""sk""#.into(), "/credentials"),
        ("credentials", r#"{"model": "sk"}"#.into(), "/credentials/model"),
        ("credentials", r#"{"model": {"apiKey": 1}}"#.into(), "/credentials/model/apiKey"),
        ("credentials", r#"{"git": {"token": []}}"#.into(), "/credentials/git/token"),
        // Range.
        ("budget", r#"{"maxUsd": 0}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": -1}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": 0.0000000001}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": 1e400}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": 99999999999}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxTokens": 0}"#.into(), "/budget/maxTokens"),
        ("budget", r#"{"maxTokens": -1}"#.into(), "/budget/maxTokens"),
        ("budget", r#"{"maxTokens": 18446744073709551616}"#.into(), "/budget/maxTokens"),
        ("timeoutSeconds", "0".into(), "/timeoutSeconds"),
        ("timeoutSeconds", "-1".into(), "/timeoutSeconds"),
        ("timeoutSeconds", "86401".into(), "/timeoutSeconds"),
        // Length.
        ("repo", long(401), "/repo"),
        ("task", r#""""#.into(), "/task"),
        ("task", r#"" \n\t""#.into(), "/task"),
        ("task", long(32 * 1024 + 1), "/task"),
        ("model", long(201), "/model"),
        ("team", r#""""#.into(), "/team"),
        ("team", long(65), "/team"),
        ("project", long(65), "/project"),
        ("environment", long(65), "/environment"),
        ("taskType", long(65), "/taskType"),
        ("customer", long(201), "/customer"),
        ("base", long(245), "/base"),
        ("branch", long(245), "/branch"),
        ("image", long(201), "/image"),
        ("metadata", Value::Object(many).to_string(), "/metadata"),
        ("metadata", format!(r#"{{"a": {}}}"#, long(9_000)), "/metadata"),
        ("credentials", format!(r#"{{"model": {{"apiKey": {}}}}}"#, long(8 * 1024 + 1)), "/credentials/model/apiKey"),
        ("credentials", r#"{"git": {"token": ""}}"#.into(), "/credentials/git/token"),
        ("credentials", r#"{"model": {}}"#.into(), "/credentials/model/apiKey"),
        // Characters.
        ("repo", r#""a/../b""#.into(), "/repo"),
        ("repo", r#""a/b\u0000c""#.into(), "/repo"),
        ("repo", r#""/etc/passwd""#.into(), "/repo"),
        ("repo", r#""local:../../etc/shadow""#.into(), "/repo"),
        ("repo", r#""local:acme/..""#.into(), "/repo"),
        ("task", r#""a\u0000b""#.into(), "/task"),
        ("task", r#""\u001b[2J""#.into(), "/task"),
        ("task", r#""\ud800""#.into(), "/task"),
        ("model", r#""a b""#.into(), "/model"),
        ("model", r#""anthropic/ü""#.into(), "/model"),
        ("team", r#""../x""#.into(), "/team"),
        ("team", r#""-a""#.into(), "/team"),
        ("project", r#""a b""#.into(), "/project"),
        ("environment", r#""a\nb""#.into(), "/environment"),
        ("taskType", r#""ü""#.into(), "/taskType"),
        ("customer", r#""a\nb""#.into(), "/customer"),
        ("base", r#""a..b""#.into(), "/base"),
        ("base", r#""--upload-pack=x""#.into(), "/base"),
        ("branch", r#""a b""#.into(), "/branch"),
        ("branch", r#""refs/heads/x""#.into(), "/branch"),
        ("branch", r#""x.lock""#.into(), "/branch"),
        ("branch", r#""HEAD""#.into(), "/branch"),
        ("image", r#""a b""#.into(), "/image"),
        ("metadata", r#"{"a\nb": 1}"#.into(), "/metadata/a\nb"),
        ("metadata", r#"{"n": 1e999}"#.into(), "/metadata/n"),
        ("credentials", r#"{"git": {"token": "a\nb"}}"#.into(), "/credentials/git/token"),
        // Unknown.
        ("repo", r#""nowhere:acme/api""#.into(), "/repo"),
        ("repo", r#""https://forge.invalid/acme/api""#.into(), "/repo"),
        ("repo", r#""https://me:secret@github.com/acme/api""#.into(), "/repo"),
        ("repo", r#""file:///etc/passwd""#.into(), "/repo"),
        ("repo", r#""ssh://git@github.com/acme/api""#.into(), "/repo"),
        ("model", r#""sonnet""#.into(), "/model"),
        ("model", r#""nobody/model""#.into(), "/model"),
        ("model", r#""claude-sonet-4-6""#.into(), "/model"),
        ("harness", r#""bultin""#.into(), "/harness"),
        ("harness", r#""codex""#.into(), "/harness"),
        ("harness", r#""command""#.into(), "/command"),
        ("budget", r#"{"maxUSD": 2}"#.into(), "/budget/maxUSD"),
        ("credentials", r#"{"gitt": {"token": "ab"}}"#.into(), "/credentials/gitt"),
        ("credentials", r#"{"git": {"token": "ab", "user": "x"}}"#.into(), "/credentials/git/user"),
        ("bugdet", "{}".into(), "/bugdet"),
        ("__proto__", "{}".into(), "/__proto__"),
        // Twice.
        ("task", r#""one", "task": "two""#.into(), "/task"),
        ("metadata", r#"{"a": 1, "a": 2}"#.into(), "/metadata/a"),
        // Not yet.
        ("repos", r#"["a/b"]"#.into(), "/repos"),
        ("retry", r#"{"attempts": 99}"#.into(), "/retry/attempts"),
        ("egress", r#"["evil.example"]"#.into(), "/egress/0"),
        ("egress", r#"["package-registries", "10.0.0.1"]"#.into(), "/egress/1"),
        ("pullRequest", r#"{"draft": "yes"}"#.into(), "/pullRequest/draft"),
    ];
    for (name, value, pointer) in &cases {
        let what = format!("{name} = {value}");
        let answer = submit(&house, with(&house, name, value)).await;
        answer.is(422, "invalid-request", &what);
        assert_eq!(answer.pointers(), [*pointer], "{what:.120}: {}", answer.text);
        assert!(!answer.text.contains("me:secret"), "{}", answer.text);
    }
    let answer = submit(&house, with(&house, "branch", r#""x", "base": "x""#)).await;
    assert_eq!(answer.pointers(), ["/branch"], "{}", answer.text);
    let answer = submit(&house, r#"{"task": 1, "modle": "x", "team": "a b", "budget": {"maxUsd": "2"}}"#).await;
    assert_eq!(answer.pointers(), ["/repo", "/task", "/model", "/team", "/budget/maxUsd", "/modle"]);
    assert_eq!(stored(&house).await, before, "nothing was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_no_json_object_is_refused_whatever_it_is() {
    let house = quiet_house().await;
    let before = stored(&house).await;
    let whole = house.payload().to_string();
    for end in [0, 1, whole.len() / 2, whole.len() - 1] {
        submit(&house, whole[..end].to_owned()).await.is(400, "invalid-json", &whole[..end]);
    }
    for (body, code) in [
        (b"\xff\xfe{\0}\0".to_vec(), "invalid-json"),
        (
            whole
                .replace("platform", "plat\u{fe}form")
                .into_bytes()
                .iter()
                .map(|b| if *b == 0xc3 { 0xff } else { *b })
                .collect(),
            "invalid-json",
        ),
        (format!("{whole} {whole}").into_bytes(), "invalid-json"),
        (format!("\u{feff}{whole}").into_bytes(), "invalid-json"),
        (b"[".repeat(100_000), "invalid-json"),
        (br#"{"a":"#.repeat(50_000), "invalid-json"),
        (b"NaN".to_vec(), "invalid-json"),
    ] {
        submit(&house, body.clone()).await.is(400, code, &String::from_utf8_lossy(&body[..body.len().min(60)]));
    }
    for body in ["[]", "\"x\"", "7", "null"] {
        submit(&house, body).await.is(422, "invalid-request", body);
    }
    let members: String = (0..1_000).map(|n| format!("\"m{n}\":0,")).collect();
    submit(&house, format!("{{{members}\"x\":0}}")).await.is(422, "invalid-request", "a thousand members");
    let deep = with(&house, "metadata", &format!("{{\"a\": {}{}}}", "[".repeat(1_000), "]".repeat(1_000)));
    assert_eq!(submit(&house, deep).await.pointers(), ["/metadata/a"]);

    // Too large, announced and not announced.
    submit(&house, "x".repeat(TOO_MUCH)).await.is(413, "body-too-large", "announced");
    let chunks = futures_util::stream::iter((0..64).map(|_| Ok::<_, std::io::Error>("x".repeat(TOO_MUCH / 64))));
    let sent = json_request(&house, Method::POST, "/v1/tasks", reqwest::Body::wrap_stream(chunks));
    // The server may close before everything is sent: then there is no answer, and nothing stored either.
    if let Ok(answer) = sent.timeout(Duration::from_secs(60)).send().await {
        assert_eq!(answer.status(), 413);
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"] {
        let request = house.api.request(Method::POST, "/v1/tasks").header("content-type", kind).body(whole.clone());
        Answer::to(request).await.is(415, "unsupported-media-type", kind);
    }
    for encoding in ["gzip", "br", "deflate, gzip", "x"] {
        let request =
            json_request(&house, Method::POST, "/v1/tasks", whole.clone()).header("content-encoding", encoding);
        Answer::to(request).await.is(415, "unsupported-media-type", encoding);
    }
    Answer::to(house.api.request(Method::POST, "/v1/tasks")).await.is(415, "unsupported-media-type", "no body");
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        Answer::to(house.api.request(method, "/v1/tasks")).await.is(405, "method-not-allowed", "a wrong method");
    }
    assert_eq!(stored(&house).await, before, "nothing was stored");
}

/// Sends bytes as they are; answers whatever comes until the connection ends or is silent.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close as soon as it has seen enough.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while let Ok(count) = stream.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..count]);
            if count == 0 || answer.windows(4).any(|four| four == b"\r\n\r\n") {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_a_trap_are_refused() {
    let house = quiet_house().await;
    let before = stored(&house).await;
    let address: SocketAddr = house.api.base.strip_prefix("http://").unwrap().parse().unwrap();
    let key = house.api.key();
    let body = house.payload().to_string();
    let request = |more: &str, body: &str| {
        format!(
            "POST /v1/tasks HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\n{more}\r\n\r\n{body}"
        )
        .into_bytes()
    };
    let length = body.len();
    let many: String = (0..5_000).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("two lengths", request(&format!("Content-Length: 5\r\nContent-Length: {length}"), &body)),
        ("a length and chunks", request(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"), &body)),
        ("a negative length", request("Content-Length: -1", &body)),
        ("a length that is no number", request("Content-Length: 1e3", &body)),
        ("a length with a sign", request(&format!("Content-Length: +{length}"), &body)),
        ("an enormous length", request("Content-Length: 99999999999999999999", &body)),
        ("an unknown transfer encoding", request("Transfer-Encoding: chunked, gzip", &body)),
        ("a broken chunk", request("Transfer-Encoding: chunked", "zz\r\n{}\r\n0\r\n\r\n")),
        ("a chunk of negative size", request("Transfer-Encoding: chunked", "-1\r\n{}\r\n0\r\n\r\n")),
        ("a header of a megabyte", request(&format!("X: {}\r\nContent-Length: {length}", "x".repeat(TOO_MUCH)), &body)),
        ("five thousand headers", request(&format!("{many}Content-Length: {length}"), &body)),
        ("a header with NUL", request(&format!("X: a\0b\r\nContent-Length: {length}"), &body)),
        ("a header without a name", request(&format!(": x\r\nContent-Length: {length}"), &body)),
        ("a blank before the colon", request(&format!("Content-Length : {length}"), &body)),
        ("a folded header", request(&format!("X: a\r\n b\r\nContent-Length: {length}"), &body)),
        ("no such protocol", b"POST /v1/tasks HTTP/9.9\r\n\r\n".to_vec()),
        ("no protocol", b"GET /\r\n\r\n".to_vec()),
        ("a TLS greeting", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("a path with a blank", b"GET /v1/tasks x HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("a path that is not UTF-8", b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
    ];
    cases.push((
        "a key that is not ASCII",
        b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n".to_vec(),
    ));
    for (what, bytes) in &cases {
        let answer = raw(address, bytes).await;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        // A connection closed without a word is a refusal, too.
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{what}: {answer:.300}");
    }
    for (name, value, status, code) in [
        ("authorization", "Bearer", 401, "unauthenticated"),
        ("authorization", "Bearer orc_admin_x_y", 401, "unauthenticated"),
        ("authorization", "Basic YWRtaW46YWRtaW4=", 401, "unauthenticated"),
    ] {
        let client = reqwest::Client::builder().timeout(super::harness::PATIENCE).build().unwrap();
        let url = format!("{}/v1/tasks", house.api.base);
        Answer::to(client.post(url).header(name, value).body(body.clone())).await.is(status, code, value);
    }
    let idempotency = |value: &[u8]| {
        let value = reqwest::header::HeaderValue::from_bytes(value).unwrap();
        json_request(&house, Method::POST, "/v1/tasks", body.clone()).header("idempotency-key", value)
    };
    for value in [&b""[..], b"  ", b"a\tb", &b"x".repeat(256), b"\xff\xfe"] {
        Answer::to(idempotency(value)).await.is(422, "invalid-request", "an Idempotency-Key");
    }
    assert_eq!(stored(&house).await, before, "nothing was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_pages_and_places_that_do_not_exist_are_told_so() {
    let house = quiet_house().await;
    let id = house.submit(json!({})).await;
    house.event(&id, "credentials-required").await;
    let before = stored(&house).await;
    let other = format!("{}{}", &id[..id.len() - 1], if id.ends_with('0') { '1' } else { '0' });
    let swapped = id.replace("task_", "sbx_");
    let long = "x".repeat(5_000);
    let bad = ["x", "task_", "..%2f..%2fetc", "%00", "task_%ff", "task_../x", &*other, &*swapped, &*long, "0", "*"];
    for bad in bad {
        for end in ["", "/events", "/diff"] {
            get(&house, &format!("/v1/tasks/{bad}{end}")).await.is(404, "not-found", bad);
        }
        for end in ["cancel", "retry", "messages"] {
            let request = json_request(&house, Method::POST, &format!("/v1/tasks/{bad}/{end}"), r#"{"message": "x"}"#);
            Answer::to(request).await.is(404, "not-found", bad);
        }
        let request = json_request(&house, Method::PUT, &format!("/v1/tasks/{bad}/credentials"), "{}");
        Answer::to(request).await.is(404, "not-found", bad);
    }
    for path in ["/v1", "/v1/", "/v1/task", "/v1/tasks/", "/v2/tasks", "/v1/tasks/../../etc/passwd"] {
        get(&house, path).await.is(404, "not-found", path);
    }
    let events = format!("/v1/tasks/{id}/events");
    for (path, pointer) in [
        ("/v1/tasks?limit=0", "?limit"),
        ("/v1/tasks?limit=-1", "?limit"),
        ("/v1/tasks?limit=201", "?limit"),
        ("/v1/tasks?limit=ten", "?limit"),
        ("/v1/tasks?limit=99999999999999999999", "?limit"),
        ("/v1/tasks?cursor=x", "?cursor"),
        ("/v1/tasks?cursor=%00", "?cursor"),
        ("/v1/tasks?status=done", "?status"),
        ("/v1/tasks?createdAfter=yesterday", "?createdAfter"),
        ("/v1/tasks?createdBefore=2026-13-45", "?createdBefore"),
        ("/v1/tasks?taem=x", "?taem"),
        ("/v1/tasks?team=a&team=b", "?team"),
        (&format!("{events}?after=x"), "?after"),
        (&format!("{events}?after=-1"), "?after"),
        (&format!("{events}?after=99999999999999999999"), "?after"),
        (&format!("{events}?limit=501"), "?limit"),
        (&format!("{events}?cursor=1"), "?cursor"),
        ("/v1/events?after=1.5", "?after"),
        ("/v1/events?task=x", "?task"),
        ("/v1/usage?groupBy=colour", "?groupBy"),
        ("/v1/usage?from=now", "?from"),
        (&format!("/v1/tasks/{id}?x=1"), "?x"),
    ] {
        let answer = get(&house, path).await;
        answer.is(400, "invalid-query", path);
        assert_eq!(answer.pointers(), [pointer], "{path}: {}", answer.text);
    }
    let many: String = (0..65).map(|n| format!("a{n}=1&")).collect();
    get(&house, &format!("/v1/tasks?{many}")).await.is(400, "invalid-query", "65 parameters");
    for last in ["x", "-1", "1.5", "", "99999999999999999999", "\u{fc}"] {
        for path in [&*events, "/v1/events"] {
            let header = reqwest::header::HeaderValue::from_bytes(last.as_bytes()).unwrap();
            let request = house.api.request(Method::GET, path).header("last-event-id", header);
            let answer = Answer::to(request.header("accept", "text/event-stream")).await;
            answer.is(400, "invalid-query", last);
        }
    }
    assert_eq!(stored(&house).await, before, "nothing was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_secrets_and_cancels_that_do_not_do_change_nothing() {
    let house = quiet_house().await;
    let id = house.submit(json!({})).await;
    house.event(&id, "credentials-required").await;
    let before = stored(&house).await;
    let long_text = |length: usize| json!({ "message": "x".repeat(length) }).to_string();
    let (posts, puts) = (Method::POST, Method::PUT);
    let cases: Vec<(&Method, &str, String, u16, &str)> = vec![
        (&posts, "messages", "{}".into(), 422, "/message"),
        (&posts, "messages", r#"{"message": 1}"#.into(), 422, "/message"),
        (&posts, "messages", r#"{"message": ""}"#.into(), 422, "/message"),
        (&posts, "messages", r#"{"message": " \n"}"#.into(), 422, "/message"),
        (&posts, "messages", r#"{"message": "a\u0007"}"#.into(), 422, "/message"),
        (&posts, "messages", r#"{"message": "a", "to": "b"}"#.into(), 422, "/to"),
        (&posts, "messages", long_text(300_000), 422, "/message"),
        (&posts, "messages", "[]".into(), 422, ""),
        (&puts, "credentials", "{}".into(), 422, ""),
        (&puts, "credentials", "null".into(), 422, ""),
        (&puts, "credentials", r#"{"model": "sk"}"#.into(), 422, "/model"),
        (&puts, "credentials", r#"{"model": {"key": "sk"}}"#.into(), 422, "/model/apiKey"),
        (&puts, "credentials", r#"{"model": {"apiKey": "a b"}}"#.into(), 422, "/model/apiKey"),
        (&puts, "credentials", r#"{"git": {"token": ""}}"#.into(), 422, "/git/token"),
        (&puts, "credentials", r#"{"credentials": {"git": {"token": "x"}}}"#.into(), 422, "/credentials"),
        (&posts, "cancel", r#"{"reason": 1}"#.into(), 422, "/reason"),
        (&posts, "cancel", json!({ "reason": "x".repeat(1_001) }).to_string(), 422, "/reason"),
        (&posts, "cancel", r#"{"why": "x"}"#.into(), 422, "/why"),
        (&posts, "retry", r#"{"credentials": 1}"#.into(), 422, "/credentials"),
        (&posts, "retry", r#"{"credentials": {"git": {}}}"#.into(), 422, "/credentials/git/token"),
        (&posts, "retry", r#"{"task": "x"}"#.into(), 422, "/task"),
    ];
    for (method, end, body, status, pointer) in cases {
        let request = json_request(&house, method.clone(), &format!("/v1/tasks/{id}/{end}"), body.clone());
        let answer = Answer::to(request).await;
        answer.is(status, "invalid-request", &format!("{end} {body}"));
        assert_eq!(answer.pointers().first(), Some(&pointer), "{end} {body:.80}: {}", answer.text);
    }
    for (method, end) in [(&posts, "messages"), (&puts, "credentials"), (&posts, "cancel"), (&posts, "retry")] {
        let path = format!("/v1/tasks/{id}/{end}");
        for (body, status, code) in [
            (b"{".to_vec(), 400, "invalid-json"),
            (b"{\"message\": \"\xff\"}".to_vec(), 400, "invalid-json"),
            (vec![b'x'; TOO_MUCH], 413, "body-too-large"),
        ] {
            Answer::to(json_request(&house, method.clone(), &path, body)).await.is(status, code, end);
        }
        let request = house.api.request(method.clone(), &path).header("content-type", "text/plain").body("x");
        Answer::to(request).await.is(415, "unsupported-media-type", end);
    }
    // Well-formed, and not the time for it.
    let retry = json_request(&house, Method::POST, &format!("/v1/tasks/{id}/retry"), "");
    Answer::to(retry).await.is(409, "conflict", "retry of an open task");
    assert_eq!(stored(&house).await, before, "nothing was stored");
    let cancelled = json_request(&house, Method::POST, &format!("/v1/tasks/{id}/cancel"), "");
    assert_eq!(Answer::to(cancelled).await.status, 202);
    assert_eq!(house.ended(&id).await["status"], "cancelled");
    let before = stored(&house).await;
    for (method, end, body) in
        [(&posts, "messages", r#"{"message": "x"}"#), (&puts, "credentials", r#"{"git": {"token": "x"}}"#)]
    {
        let request = json_request(&house, method.clone(), &format!("/v1/tasks/{id}/{end}"), body);
        Answer::to(request).await.is(409, "conflict", end);
    }
    assert_eq!(stored(&house).await, before, "nothing was stored");
}

async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let command = program().args(arguments).envs(environment.iter().copied()).output();
    tokio::time::timeout(Duration::from_secs(60), command).await.expect("it ends by itself").unwrap()
}

#[tokio::test]
async fn a_command_line_that_does_not_do_says_what_would() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let file = |text: &str| {
        let path = dir.path().join(format!("{}.toml", sha256(text)));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let key = [("ORCHESTRA_KEY", "orc_x")];
    let nobody = [("ORCHESTRA_KEY", "orc_x"), ("ORCHESTRA_URL", "http://127.0.0.1:9")];
    let serve =
        |config: &str| vec!["serve".to_owned(), "--data".into(), data.clone(), "--config".into(), config.into()];
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    type Case<'a> = (Vec<String>, &'a [(&'a str, &'a str)], &'a str);
    let cases: Vec<Case<'_>> = vec![
        (words("sevre"), &[], "serve"),
        (words("serve --lisen 127.0.0.1:0"), &[], "--listen"),
        (words("serve --listen"), &[], "--listen"),
        (words("run --task x"), &key, "--repo"),
        (words("run --repo a/b --task x --budget-usd two"), &key, "--budget-usd two"),
        (words("run --repo a/b --task x --timeout-seconds soon"), &key, "--timeout-seconds"),
        (words("run --repo a/b --task x --model-key-env NOT_SET_ANYWHERE"), &key, "NOT_SET_ANYWHERE"),
        (words("run --repo a/b --task x"), &[], "ORCHESTRA_KEY"),
        (words("tasks list"), &nobody, "cannot reach the server at http://127.0.0.1:9"),
        (words("tasks list --server nonsense"), &key, "nonsense"),
        (words("scripted-model --script /nowhere"), &[], "/nowhere"),
        (words("scripted-model --listen 0.0.0.0:0 --script /dev/null"), &[], "script"),
        (serve("/nowhere.toml"), &[], "cannot read /nowhere.toml"),
        (serve(&file("listen = ")), &[], "is not TOML"),
        (serve(&file("lisen = \"127.0.0.1:0\"")), &[], "the nearest known key is \"listen\""),
        (serve(&file("[sandbox]\nmemroy = \"1GiB\"")), &[], "the nearest known key is \"sandbox.memory\""),
        (serve(&file("[models.mine]\nbaseurl = \"http://x\"")), &[], "\"models.mine.base_url\""),
        (serve(&file("[sandbox]\nmemory = 7")), &[], "memory"),
        (serve(&file("[sandbox]\nmemory = \"2GB\"")), &[], "use KiB, MiB, GiB or TiB"),
        (serve(&file("[sandbox]\ntimeout = \"soon\"")), &[], "sandbox.timeout"),
        (serve(&file("[sandbox]\nwarm_pool = 33")), &[], "sandbox.warm_pool"),
        (serve(&file("default_forge = \"nowhere\"")), &[], "configure it under [forges.NAME]"),
        (serve(&file("store = \"oracle\"")), &[], "store must be"),
        (serve(&file("log = \"orchestra=louder\"")), &[], "log"),
        (serve(&file("listen = \"nonsense\"")), &[], "nonsense"),
        (serve(&file("[forges.github]\nkind = \"gihub\"")), &[], "gihub"),
        (
            serve(&file("[models.anthropic]\nbase_url = \"https://me:secret@api.invalid\"")),
            &[],
            "models.anthropic.base_url",
        ),
        (serve(&file("")), &[("ORCHESTRA_SANDBOX__CPU", "1")], "sandbox.cpus"),
        (serve(&file(" ")), &[("ORCHESTRA_SANDBOX__PIDS", "many")], "ORCHESTRA_SANDBOX__PIDS"),
    ];
    for (arguments, environment, sentence) in &cases {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = run(&arguments, environment).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(sentence), "{arguments:?}: expected {sentence:?} in: {said}");
        assert!(!said.contains("panicked") && !said.contains("me:secret"), "{arguments:?}: {said}");
    }
}
