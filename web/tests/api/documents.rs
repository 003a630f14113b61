//! The OpenAPI document, the pages, and what operators look at.

use std::collections::BTreeSet;

use actix_web::http::StatusCode;
use actix_web::test::TestRequest;
use orchestra_events::FailureCode;
use orchestra_web::api::document::document;
use orchestra_web::api::endpoints::endpoints;
use orchestra_web::problem::Code;

use crate::harness::Server;

/// The committed document, from which clients are made.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");

#[test]
fn the_openapi_document_is_the_committed_one() {
    let mut current = serde_json::to_string_pretty(document()).expect("JSON");
    current.push('\n');
    if std::env::var_os("ORCHESTRA_ACCEPT").is_some() {
        std::fs::write(COMMITTED, &current).expect("a file");
    }
    let committed = std::fs::read_to_string(COMMITTED).expect("a committed document");
    assert!(
        committed == current,
        "the interface differs from web/openapi.json; if that is meant, run the tests with ORCHESTRA_ACCEPT=1 and commit"
    );
}

#[test]
fn every_endpoint_is_described_and_every_described_one_exists() {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let described: BTreeSet<_> = paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods");
            methods.keys().map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let served: BTreeSet<_> =
        endpoints().into_iter().map(|endpoint| (endpoint.method.to_string(), endpoint.path.to_owned())).collect();
    assert_eq!(described, served);
}

#[actix_web::test]
async fn the_pages_need_nothing_from_elsewhere() {
    let server = Server::start().await;
    let page = server.send(TestRequest::get().uri("/docs")).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.text().contains("<code>POST /v1/tasks</code>"));
    for outside in ["<script", "http://", "https://", "style=", " on"] {
        let found =
            page.text().match_indices(outside).map(|(at, _)| &page.text()[at..(at + 30).min(page.text().len())]);
        assert_eq!(found.filter(|text| outside != " on" || text.contains("=\"")).count(), 0, "{outside}");
    }
    let codes = FailureCode::ALL.iter().map(|code| code.as_str()).chain(Code::ALL.iter().map(|code| code.as_str()));
    for code in codes {
        let page = server.send(TestRequest::get().uri(&format!("/docs/errors/{code}"))).await;
        assert_eq!(page.status, StatusCode::OK, "{code}");
        assert!(page.text().contains("<h2>Remedy</h2><ul><li>"), "{code}");
    }
    assert_eq!(server.send(TestRequest::get().uri("/docs/errors/none")).await.code(), "not-found");
}

#[actix_web::test]
async fn operators_see_that_it_lives_and_keeps_up() {
    let server = Server::start().await;
    assert_eq!(server.send(TestRequest::get().uri("/healthz")).await.text(), "ok\n");
    let ready = server.send(TestRequest::get().uri("/readyz")).await;
    assert_eq!(ready.status, StatusCode::OK);
    assert_eq!(ready.json()["skippedEvents"], 0);
}
