//! Every way in which a payload can be wrong: the fault is pointed at, and nothing is stored.

use actix_web::http::StatusCode;
use orchestra_events::EventStore;
use orchestra_web::api::body::MAX_BODY;
use serde_json::{Value, json};

use crate::harness::{Server, example, post};

fn with(name: &str, value: &str) -> String {
    let mut body = example();
    let object = body.as_object_mut().expect("an object");
    object.remove(name);
    let text = body.to_string();
    let open = text.strip_suffix('}').expect("an object");
    format!("{open},{}:{value}}}", json!(name))
}

#[actix_web::test]
async fn each_wrong_field_is_pointed_at_and_nothing_is_stored() {
    let server = Server::start().await;
    let before = server.store.head().await.expect("a head");
    let long = |length: usize| json!("x".repeat(length)).to_string();
    let cases: Vec<(&str, String, &str)> = vec![
        ("repo", "null".into(), "/repo"),
        ("repo", "7".into(), "/repo"),
        ("repo", r#""api""#.into(), "/repo"),
        ("repo", r#""a/../b""#.into(), "/repo"),
        ("repo", r#""https://me:secret@h/a/b""#.into(), "/repo"),
        ("repo", long(401), "/repo"),
        ("task", r#""""#.into(), "/task"),
        ("task", r#"" \n""#.into(), "/task"),
        ("task", r#""a\u0000b""#.into(), "/task"),
        ("task", long(32 * 1024 + 1), "/task"),
        ("task", "[]".into(), "/task"),
        ("model", r#""a b""#.into(), "/model"),
        ("model", "{}".into(), "/model"),
        ("model", long(201), "/model"),
        ("team", r#""a/b""#.into(), "/team"),
        ("team", r#""-a""#.into(), "/team"),
        ("team", "null".into(), "/team"),
        ("team", long(65), "/team"),
        ("project", r#""a b""#.into(), "/project"),
        ("environment", "1".into(), "/environment"),
        ("taskType", r#""ü""#.into(), "/taskType"),
        ("customer", r#""a\nb""#.into(), "/customer"),
        ("customer", long(201), "/customer"),
        ("budget", "2".into(), "/budget"),
        ("budget", r#"{"maxUsd": "2"}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": -1}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": 0}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": 1e3}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": 0.0000000001}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxUsd": 99999999999}"#.into(), "/budget/maxUsd"),
        ("budget", r#"{"maxTokens": 1.5}"#.into(), "/budget/maxTokens"),
        ("budget", r#"{"maxTokens": 0}"#.into(), "/budget/maxTokens"),
        ("budget", r#"{"maxTokens": -1}"#.into(), "/budget/maxTokens"),
        ("budget", r#"{"maxUSD": 2}"#.into(), "/budget/maxUSD"),
        ("base", r#""a..b""#.into(), "/base"),
        ("branch", r#""a b""#.into(), "/branch"),
        ("branch", r#""refs/heads/x""#.into(), "/branch"),
        ("harness", r#""robot""#.into(), "/harness"),
        ("harness", r#""command""#.into(), "/command"),
        ("command", r#"["true"]"#.into(), "/command"),
        ("retry", r#"{"attempts": 0}"#.into(), "/retry/attempts"),
        ("retry", r#"{"attempts": 11}"#.into(), "/retry/attempts"),
        ("retry", r#"{"workspace": "new"}"#.into(), "/retry/workspace"),
        ("retry", r#"{"often": 2}"#.into(), "/retry/often"),
        ("harness", r#""bultin""#.into(), "/harness"),
        ("harness", "1".into(), "/harness"),
        ("image", r#""a b""#.into(), "/image"),
        ("timeoutSeconds", "0".into(), "/timeoutSeconds"),
        ("timeoutSeconds", "86401".into(), "/timeoutSeconds"),
        ("timeoutSeconds", r#""60""#.into(), "/timeoutSeconds"),
        ("metadata", "[]".into(), "/metadata"),
        ("metadata", r#"{"a/b~c": {}}"#.into(), "/metadata/a~1b~0c"),
        ("metadata", r#"{"a": 1, "a": 2}"#.into(), "/metadata/a"),
        ("metadata", r#"{"n": 1e999}"#.into(), "/metadata/n"),
        ("metadata", format!(r#"{{"a": {}}}"#, long(9_000)), "/metadata"),
        ("credentials", r#""sk""#.into(), "/credentials"),
        ("credentials", r#"{"model": {}}"#.into(), "/credentials/model/apiKey"),
        ("credentials", r#"{"model": {"apiKey": ""}}"#.into(), "/credentials/model/apiKey"),
        ("credentials", r#"{"git": {"token": "a\nb"}}"#.into(), "/credentials/git/token"),
        ("credentials", r#"{"gitt": {"token": "ab"}}"#.into(), "/credentials/gitt"),
        ("repos", r#"["a/b"]"#.into(), "/repos"),
        ("egress", r#""registry.example""#.into(), "/egress"),
        ("egress", r#"[""]"#.into(), "/egress"),
        ("pullRequest", "[]".into(), "/pullRequest"),
        ("pullRequest", r#"{"titel": "x"}"#.into(), "/pullRequest/titel"),
        ("pullRequest", r#"{"title": "a\nb"}"#.into(), "/pullRequest/title"),
        ("pullRequest", r#"{"body": " "}"#.into(), "/pullRequest/body"),
        ("pullRequest", r#"{"draft": "yes"}"#.into(), "/pullRequest/draft"),
        ("pullRequest", r#"{"reviewers": "ada"}"#.into(), "/pullRequest/reviewers"),
        ("pullRequest", r#"{"reviewers": [""]}"#.into(), "/pullRequest/reviewers"),
        ("pullRequest", format!(r#"{{"labels": [{}"x"]}}"#, r#""x","#.repeat(20)), "/pullRequest/labels"),
        ("bugdet", "{}".into(), "/bugdet"),
        ("task", r#""one", "task": "two""#.into(), "/task"),
    ];
    for (name, value, pointer) in cases {
        let body = with(name, &value);
        let answer = server.post(&server.admin, "/v1/tasks", &body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{name} = {value:.80}: {}", answer.text());
        assert_eq!(answer.code(), "invalid-request");
        assert_eq!(answer.pointers(), [pointer], "{name} = {value:.80}: {}", answer.text());
    }
    assert_eq!(server.store.head().await.expect("a head"), before, "nothing was stored");
}

#[actix_web::test]
async fn a_number_is_kept_to_its_last_bit() {
    let server = Server::start().await;
    let body: Value = serde_json::from_str(&with("metadata", r#"{"n": 1.8446744073709554e43}"#)).expect("JSON");
    let id = server.task(&server.admin, &body).await;
    let task = server.get(&server.admin, &format!("/v1/tasks/{id}")).await.json();
    assert_eq!(task["metadata"]["n"].as_f64(), Some(1.844_674_407_370_955_4e43), "{}", task["metadata"]);
}

#[actix_web::test]
async fn a_list_of_repositories_is_read_item_by_item() {
    let server = Server::start().await;
    let faults = |repos: &str| {
        let body = format!(r#"{{"task": "t", "model": "claude-sonnet-4-6", "team": "a", "repos": {repos}}}"#);
        let (server, body) = (&server, body);
        async move { server.post(&server.admin, "/v1/tasks", &body).await.pointers() }
    };
    for (repos, pointers) in [
        ("[]", vec!["/repos"]),
        (r#""a/b""#, vec!["/repos"]),
        (r#"["a/b", 7]"#, vec!["/repos/1"]),
        (r#"["a/b", "b"]"#, vec!["/repos/1"]),
        (r#"["a/b", {"base": "main"}]"#, vec!["/repos/1/repo"]),
        (r#"[{"repo": "a/b", "branch": "a b"}, {"repo": "c/d", "bas": "x"}]"#, vec!["/repos/0/branch", "/repos/1/bas"]),
    ] {
        assert_eq!(faults(repos).await, pointers, "{repos}");
    }
    let many = vec![r#""a/b""#; 17].join(",");
    assert_eq!(faults(&format!("[{many}]")).await, ["/repos"]);
}

#[actix_web::test]
async fn all_faults_come_at_once_and_the_nearest_name_is_offered() {
    let server = Server::start().await;
    let body = r#"{"task": 1, "modle": "x", "team": "a b", "budget": {"maxUsd": "2"}}"#;
    let answer = server.post(&server.admin, "/v1/tasks", body).await;
    assert_eq!(answer.pointers(), ["/repo", "/task", "/model", "/team", "/budget/maxUsd", "/modle"]);
    let last = answer.json()["errors"].as_array().expect("a list").last().expect("one")["detail"].clone();
    assert_eq!(last, "is not known here; did you mean `model`?");
    let empty = server.post(&server.admin, "/v1/tasks", "{}").await;
    assert_eq!(empty.pointers(), ["/repo", "/task", "/model", "/team"]);
}

#[actix_web::test]
async fn what_is_no_json_is_told_so() {
    let server = Server::start().await;
    for (body, code) in [
        (&b""[..], "invalid-json"),
        (b"{", "invalid-json"),
        (b"{\"task\": \"\xff\"}", "invalid-json"),
        (b"{} {}", "invalid-json"),
        (b"[1]", "invalid-request"),
        (b"\"x\"", "invalid-request"),
    ] {
        let request = post(&server.admin, "/v1/tasks", "").set_payload(body.to_vec());
        assert_eq!(server.send(request).await.code(), code, "{body:?}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(server.post(&server.admin, "/v1/tasks", &deep).await.code(), "invalid-json");
    let deep = format!("{{\"metadata\": {{\"a\": {}{}}}}}", "[".repeat(1_000), "]".repeat(1_000));
    assert!(server.post(&server.admin, "/v1/tasks", &deep).await.pointers().contains(&"/metadata/a".to_owned()));
    let large = server.post(&server.admin, "/v1/tasks", &"x".repeat(MAX_BODY + 1)).await;
    assert_eq!((large.status, &*large.code()), (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large"));
    let form = post(&server.admin, "/v1/tasks", "a=b").insert_header(("content-type", "text/plain"));
    let form = server.send(form).await;
    assert_eq!((form.status, &*form.code()), (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type"));
}

#[actix_web::test]
async fn a_secret_is_repeated_nowhere() {
    let server = Server::start().await;
    let secret = "sk-never-to-be-seen";
    for credentials in [
        json!({"model": {"apiKey": format!("{secret} x")}}),
        json!({"model": {"apiKey": [secret]}}),
        json!({"model": secret}),
        json!(secret),
    ] {
        let mut body = example();
        body["credentials"] = credentials;
        let answer = server.post(&server.admin, "/v1/tasks", &body.to_string()).await;
        assert_eq!(answer.code(), "invalid-request");
        assert!(!answer.text().contains(secret), "{}", answer.text());
    }
    let mut body = example();
    body["credentials"] = json!({"model": {"apiKey": secret}, "git": {"token": "ghp_x"}});
    let id = server.task(&server.admin, &body).await;
    assert_eq!(*server.service.secrets.lock().expect("no panic"), [secret, "ghp_x"]);
    for path in [format!("/v1/tasks/{id}"), format!("/v1/tasks/{id}/events"), "/v1/tasks".to_owned()] {
        assert!(!server.get(&server.admin, &path).await.text().contains(secret), "{path}");
    }
    let broken = body.to_string().replace("\"team\"", "team");
    assert!(!server.post(&server.admin, "/v1/tasks", &broken).await.text().contains(secret));
}

#[actix_web::test]
async fn the_described_request_is_the_one_that_is_read() {
    let server = Server::start().await;
    let document = server.get(&server.admin, "/openapi.json").await.json();
    let properties = document["components"]["schemas"]["TaskRequest"]["properties"].as_object().expect("properties");
    let described: Vec<_> = properties.keys().cloned().collect();
    assert!(described.len() > 10);
    // An empty list is a wish that can be had where it is one of hosts.
    let odd = |name: &String| if name == "egress" { json!([7]) } else { json!([]) };
    let wrong: Value = described.iter().map(|name| (name.clone(), odd(name))).collect::<serde_json::Map<_, _>>().into();
    let answer = server.post(&server.admin, "/v1/tasks", &wrong.to_string()).await;
    for error in answer.json()["errors"].as_array().expect("errors") {
        assert!(!error["detail"].as_str().expect("a detail").contains("not known"), "{error}");
    }
    assert_eq!(answer.pointers().len(), described.len(), "each described field is read: {}", answer.text());
}
