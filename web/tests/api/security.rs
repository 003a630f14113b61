//! What every answer carries, and what no form does without: asked of every row of the tables, so that none is forgotten.

use actix_web::http::{Method, StatusCode};
use actix_web::test::TestRequest;
use orchestra_web::auth::{Transport, session};
use orchestra_web::headers::{CONTENT_SECURITY_POLICY, PERMISSIONS_POLICY, STRICT_TRANSPORT_SECURITY};
use orchestra_web::pages::shell::csrf_token;
use orchestra_web::routes::{Access, Surface, table};

use crate::harness::{Answer, Server};

fn check(answer: &Answer, https: bool, what: &str) {
    for (name, value) in [
        ("content-security-policy", CONTENT_SECURITY_POLICY),
        ("permissions-policy", PERMISSIONS_POLICY),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{what}: {name}");
    }
    assert_eq!(answer.header("strict-transport-security"), https.then_some(STRICT_TRANSPORT_SECURITY), "{what}");
    assert!(matches!(answer.header("referrer-policy"), Some("no-referrer" | "same-origin")), "{what}");
    let cache = answer.header("cache-control").unwrap_or_else(|| panic!("{what} may be kept by anybody"));
    assert!(cache.contains("no-store") || what.contains("/assets/"), "{what}: {cache}");
    for line in answer.headers.get_all("set-cookie") {
        let line = line.to_str().expect("text");
        assert!(line.contains("; HttpOnly") && line.contains("; SameSite="), "{what}: {line}");
        assert!(!https || (line.starts_with("__Host-") && line.contains("; Secure")), "{what}: {line}");
    }
}

/// A path with something in it, whether that exists or not.
fn filled(path: &str) -> String {
    path.split('/').map(|part| if part.starts_with('{') { "icon.svg" } else { part }).collect::<Vec<_>>().join("/")
}

#[actix_web::test]
async fn every_answer_of_every_route_carries_the_headers() {
    for https in [false, true] {
        let address = if https { "https://orchestra.example" } else { "http://orchestra.example" };
        let server = Server::start_with(|app| app.reached(Transport::of(address))).await;
        let name = if https { session::SECURE_COOKIE } else { session::COOKIE };
        let mut looked_at = 0;
        for row in table() {
            let cookie = server.session(&server.admin).await;
            let path = filled(row.path);
            let request = || {
                let request = TestRequest::default().method(row.method.clone()).uri(&path);
                request.insert_header(("sec-fetch-site", "same-origin"))
            };
            let signed_in = request()
                .insert_header(("cookie", format!("{name}={cookie}")))
                .insert_header(("content-type", "application/x-www-form-urlencoded"))
                .set_payload(format!("csrf={}", csrf_token(&cookie)));
            let streams = row.surface == Surface::Stream || row.path == "/v1/events";
            for (who, request) in [("nobody", request()), ("an operator", signed_in)] {
                if streams && who != "nobody" {
                    continue;
                }
                let answer = server.send(request).await;
                check(&answer, https, &format!("{} {} by {who}: {}", row.method, row.path, answer.status));
                looked_at += 1;
            }
        }
        for (method, path) in [(Method::GET, "/nothing/here"), (Method::DELETE, "/tasks"), (Method::GET, "/tasks/%ff")]
        {
            let answer = server.send(TestRequest::default().method(method).uri(path)).await;
            check(&answer, https, path);
        }
        assert!(looked_at > 80, "{looked_at}");
    }
}

#[test]
fn the_policy_lets_nothing_inline_and_nobody_else_in() {
    assert!(!CONTENT_SECURITY_POLICY.contains("unsafe") && !CONTENT_SECURITY_POLICY.contains('*'));
    let sources = CONTENT_SECURITY_POLICY.split(';').flat_map(|rule| rule.trim().split(' ').skip(1));
    assert!(sources.clone().count() > 5 && sources.into_iter().all(|source| matches!(source, "'self'" | "'none'")));
    for needed in ["default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'", "form-action 'self'"] {
        assert!(CONTENT_SECURITY_POLICY.contains(needed), "{needed}");
    }
}

#[actix_web::test]
async fn no_form_does_anything_without_its_token_or_from_another_site() {
    let server = Server::start().await;
    let mut forms = 0;
    for row in table() {
        if row.surface == Surface::Api || row.method == Method::GET || row.access == Access::Anyone {
            continue;
        }
        forms += 1;
        let cookie = server.session(&server.admin).await;
        let other = server.session(&server.admin).await;
        let path = filled(row.path);
        // Fields that every form with fields of its own wants.
        let send = |token: String, site: Option<(&'static str, &'static str)>| {
            let fields = format!("csrf={token}&message=x&team=platform&name=x&scopes=tasks%3Aread&environment=x");
            let request = TestRequest::default()
                .method(row.method.clone())
                .uri(&path)
                .insert_header(("cookie", format!("{}={cookie}", session::COOKIE)))
                .insert_header(("host", "orchestra.example"))
                .insert_header(("content-type", "application/x-www-form-urlencoded"))
                .set_payload(fields);
            site.into_iter().fold(request, |request, header| request.insert_header(header))
        };
        let own = Some(("sec-fetch-site", "same-origin"));
        for (what, request) in [
            ("no token", send(String::new(), own)),
            ("another session's token", send(csrf_token(&other), own)),
            ("another site", send(csrf_token(&cookie), Some(("sec-fetch-site", "cross-site")))),
            ("a sibling", send(csrf_token(&cookie), Some(("sec-fetch-site", "same-site")))),
            ("another origin", send(csrf_token(&cookie), Some(("origin", "https://evil.example")))),
            ("no origin", send(csrf_token(&cookie), None)),
        ] {
            let answer = server.send(request).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{} with {what}: {}", row.path, answer.text());
        }
        assert!(server.app.sessions.find(&cookie).is_some(), "{}", row.path);
    }
    assert!(forms > 8, "{forms}");
}
