//! The audit over REST: rows as their readers may see them, and the record that proves them.

use actix_web::http::{Method, StatusCode};
use orchestra_events::audit::{Checkpoint, PublicKey, Trust, verify};
use orchestra_events::key::Scope;
use orchestra_events::projections::audit::MAX_PAGE;
use orchestra_events::task::TaskEvent;
use orchestra_events::{Actor, ActorKind, EventStore, Origin};
use serde_json::json;

use crate::harness::{Server, example, get};

/// A server with a task of `platform`, steered by its own key and by an operator from elsewhere.
async fn with_task(server: &Server) -> String {
    let id = server.task(&server.admin, &example()).await;
    let own = server.key(Some("platform"), &[Scope::TasksCreate]).await;
    let caller = server.app.keys.authenticate(&own).expect("a key");
    let from = |id: String, address: &str| Actor {
        kind: ActorKind::ApiKey,
        id,
        team: Some("platform".to_owned()),
        origin: Origin {
            name: Some("=cmd|' /C calc'!A0".to_owned()),
            address: Some(address.parse().expect("an address")),
            user_agent: Some("curl/8, \"quoted\"".to_owned()),
            request: None,
        }
        .known(),
    };
    let steered = || vec![TaskEvent::Steered { message: "words that are nobody's business here".to_owned() }];
    let now = jiff::Timestamp::now();
    server.service.record(id, steered(), &from(caller.who.to_string(), "192.0.2.7"), now).await;
    let operator = server.app.keys.authenticate(&server.admin).expect("a key").who.to_string();
    server.service.record(id, steered(), &from(operator, "198.51.100.9"), now).await;
    id.to_string()
}

#[actix_web::test]
async fn a_row_says_who_what_and_on_which_repository_and_keeps_operators_addresses() {
    let server = Server::start().await;
    let id = with_task(&server).await;
    let reader = server.key(Some("platform"), &[Scope::AuditRead]).await;
    let other = server.key(Some("mobile"), &[Scope::AuditRead]).await;

    let rows = server.get(&reader, &format!("/v1/audit?task={id}")).await.json();
    let rows = rows["data"].as_array().expect("rows").clone();
    assert_eq!(rows.iter().map(|row| &row["kind"]).collect::<Vec<_>>(), ["steered", "steered", "task"]);
    let task = &rows[2];
    assert_eq!((&task["id"], &task["repos"]), (&json!(id), &json!(["github:acme/api"])));
    assert_eq!((&task["team"], &task["outcome"]), (&json!("platform"), &json!("queued")));
    assert_eq!(task["usage"]["costUsd"].to_string(), "0.0");
    let addresses: Vec<_> = rows[..2].iter().map(|row| row["actor"]["address"].clone()).collect();
    assert!(addresses.contains(&json!("192.0.2.7")), "its own key's: {addresses:?}");
    assert!(!addresses.contains(&json!("198.51.100.9")), "an operator's is not the team's to see: {addresses:?}");
    let all = server.get(&server.admin, &format!("/v1/audit?task={id}")).await;
    assert!(all.text().contains("198.51.100.9"));
    assert!(!all.text().contains("nobody's business"));

    for query in ["", &format!("?task={id}"), "?team=platform", "?repo=acme/api", "?kind=steered"] {
        let theirs = server.get(&other, &format!("/v1/audit{query}")).await;
        assert_eq!(theirs.status, StatusCode::OK);
        assert!(!theirs.text().contains(&id), "{query}");
    }
}

#[actix_web::test]
async fn pages_follow_one_another_and_filters_narrow() {
    let server = Server::start().await;
    for _ in 0..7 {
        server.task(&server.admin, &example()).await;
    }
    let whole = server.get(&server.admin, "/v1/audit?category=task&limit=200").await.json();
    let whole: Vec<_> = whole["data"].as_array().expect("rows").iter().map(|row| row["id"].clone()).collect();
    assert_eq!(whole.len(), 7);
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&server.admin, &format!("/v1/audit?category=task&limit=3{cursor}")).await.json();
        found.extend(page["data"].as_array().expect("rows").iter().map(|row| row["id"].clone()));
        let Some(next) = page["nextCursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
        // What comes meanwhile changes nothing behind the cursor.
        server.task(&server.admin, &example()).await;
    }
    assert_eq!(found, whole);
    for (query, some) in [
        ("repo=acme/api", true),
        ("repo=github:acme/api", true),
        ("repo=gitlab:acme/api", false),
        ("repo=acme/other", false),
        ("model=claude-sonnet-4-6", true),
        ("model=gpt-x", false),
        ("kind=key-issued", true),
        ("outcome=queued&team=platform", true),
        ("outcome=succeeded", false),
        ("from=2020-01-01&to=2020-12-31", false),
        ("from=2020-01-01", true),
        ("team=platform&model=claude-sonnet-4-6&kind=task&category=task&repo=acme/api", true),
        ("category=refusal", false),
    ] {
        let rows = server.get(&server.admin, &format!("/v1/audit?{query}")).await.json();
        assert_eq!(!rows["data"].as_array().expect("rows").is_empty(), some, "{query}: {rows}");
    }
    for wrong in ["category=x", "from=yesterday", "task=x", "cursor=x", "limit=0", "limit=201", "format=xml", "x=1"] {
        let answer = server.get(&server.admin, &format!("/v1/audit?{wrong}")).await;
        assert_eq!((answer.status, &*answer.code()), (StatusCode::BAD_REQUEST, "invalid-query"), "{wrong}");
    }
}

#[actix_web::test]
async fn csv_has_every_row_and_runs_nothing() {
    let server = Server::start().await;
    for _ in 0..3 {
        with_task(&server).await;
    }
    let answer = server.get(&server.admin, "/v1/audit?format=csv").await;
    assert_eq!(answer.header("content-type"), Some("text/csv; charset=utf-8"));
    let lines: Vec<_> = answer.text().lines().collect();
    assert!(lines[0].starts_with("time,category,kind,id,"), "{}", lines[0]);
    let json = server.get(&server.admin, "/v1/audit?limit=200").await.json();
    assert_eq!(lines.len() - 1, json["data"].as_array().expect("rows").len());
    assert!(answer.text().contains("'=cmd|' /C calc'!A0"), "a formula is text: {}", answer.text());
    assert!(answer.text().contains("\"curl/8, \"\"quoted\"\"\""));
}

#[actix_web::test]
async fn a_list_whose_reader_is_revoked_breaks_off_and_does_not_look_whole() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    let reader = server.key(Some("platform"), &[Scope::AuditRead]).await;
    let by = server.app.keys.authenticate(&reader).expect("a caller");
    // More than is read at once.
    let steered = (0..MAX_PAGE + 50).map(|_| TaskEvent::Steered { message: "on".to_owned() }).collect();
    server.service.record(id, steered, &by.actor(), jiff::Timestamp::now()).await;
    let list = async || server.stream(get(&reader, "/v1/audit?format=csv")).await;
    assert!(!list().await.breaks_off().await);
    let mut open = list().await;
    open.piece().await.expect("the first line");
    server.revoke(&by.who).await;
    assert!(open.breaks_off().await);
}

/// A log that is longer than an export reads at once, and the task at its end, which is over.
async fn with_a_long_log(server: &Server) -> String {
    let by = server.app.keys.authenticate(&server.admin).expect("a caller").actor();
    let mut last = String::new();
    for part in 0..3 {
        let id = server.task(&server.admin, &example()).await;
        let words = |number: usize| TaskEvent::Steered { message: format!("words, {}", part * 300 + number) };
        server.service.record(id, (0..300).map(words).collect(), &by, jiff::Timestamp::now()).await;
        last = id.to_string();
    }
    let ended = server.post(&server.admin, &format!("/v1/tasks/{last}/cancel"), "{}").await;
    assert_eq!(ended.status, StatusCode::ACCEPTED, "{}", ended.text());
    last
}

#[actix_web::test]
async fn an_export_that_is_read_while_words_are_erased_goes_on_to_their_erasure() {
    let server = Server::start().await;
    let last = with_a_long_log(&server).await;
    let head = server.store.head().await.expect("a head").0;
    let mut open = server.stream(get(&server.admin, "/v1/audit/export")).await;
    open.piece().await.expect("the header");
    open.piece().await.expect("the first events");
    let erase = get(&server.admin, &format!("/v1/tasks/{last}/content")).method(Method::DELETE);
    assert_eq!(server.send(erase).await.status, StatusCode::NO_CONTENT);
    let file = open.end().await;
    assert!(
        file.contains("words, 10\"") && !file.contains("words, 899"),
        "what was read before stays, and the rest is gone"
    );
    let report = verify::export(file.as_bytes(), &Trust::default()).expect("it reads");
    assert!(report.broken.is_none(), "{report:?}");
    assert!(report.found.words_gone >= 300 && report.found.events > head, "{report:?}");
}

#[actix_web::test]
async fn an_export_whose_reader_is_revoked_breaks_off_and_does_not_look_whole() {
    let server = Server::start().await;
    with_a_long_log(&server).await;
    let admin = server.key(None, &[Scope::Admin]).await;
    let by = server.app.keys.authenticate(&admin).expect("a caller");
    let export = async || server.stream(get(&admin, "/v1/audit/export")).await;
    assert!(!export().await.breaks_off().await);
    let mut open = export().await;
    open.piece().await.expect("the header");
    server.revoke(&by.who).await;
    assert!(open.breaks_off().await);
}

#[actix_web::test]
async fn the_export_verifies_with_the_key_that_the_server_names() {
    let server = Server::start().await;
    with_task(&server).await;
    let reader = server.key(Some("platform"), &[Scope::AuditRead]).await;
    let signed = server.post(&server.admin, "/v1/audit/checkpoints", "").await;
    assert_eq!(signed.status, StatusCode::CREATED, "{}", signed.text());
    let kept: Checkpoint = serde_json::from_slice(&signed.body).expect("a checkpoint");
    assert_eq!(server.post(&reader, "/v1/audit/checkpoints", "").await.status, StatusCode::FORBIDDEN);
    assert_eq!(server.get(&reader, "/v1/audit/export").await.status, StatusCode::FORBIDDEN);
    let key = server.get(&reader, "/v1/audit/key").await.json();
    let key: PublicKey = key["publicKey"].as_str().expect("a key").parse().expect("a key");
    let listed = server.get(&reader, "/v1/audit/checkpoints?limit=1").await.json();
    assert_eq!(listed["data"][0]["position"], kept.position);

    let trust = Trust { keys: vec![key], checkpoints: vec![kept] };
    for content in [true, false] {
        let file = server.get(&server.admin, &format!("/v1/audit/export?content={content}")).await;
        assert_eq!(file.header("content-type"), Some("application/x-ndjson"));
        let report = verify::export(&file.body[..], &trust).expect("it reads");
        assert!(report.broken.is_none(), "{report:?}");
        assert_eq!((report.found.given, report.found.signed), (1, 1));
        let words = file.text().contains("nobody's business");
        assert!(content || !words, "words were left out");
        let mut torn = file.body.to_vec();
        let middle = torn.len() / 2;
        torn[middle] ^= 1;
        assert!(verify::export(&torn[..], &trust).expect("it reads").broken.is_some());
    }
}
