//! Keys as their owners meet them: what they may hand on, how they are renewed, and what ends with them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use actix_web::http::{Method, StatusCode};
use actix_web::test::TestRequest;
use orchestra_events::EventStore as _;
use orchestra_events::access::AccessDenied;
use orchestra_events::key::Scope;
use orchestra_events::store::read_whole_stream;
use orchestra_events::{Actor, Envelope, StreamName};
use orchestra_web::api::keys::MAX_STANDING;
use orchestra_web::auth::issue_key;
use orchestra_web::auth::session;
use orchestra_web::auth::{Limits, Proxies, Rate, Rates};
use serde_json::{Value, json};

use crate::harness::{Answer, SOON, Server, example, get, post};

/// A manager of a team's keys who can do what its tasks need.
const MANAGER: [Scope; 5] =
    [Scope::KeysRead, Scope::KeysWrite, Scope::TasksCreate, Scope::TasksRead, Scope::TasksCancel];

async fn created(server: &Server, with: &str, body: &Value) -> (String, String) {
    let answer = server.post(with, "/v1/keys", &body.to_string()).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    let (id, key) = (answer.json()["id"].clone(), answer.json()["key"].clone());
    let (id, key) = (id.as_str().expect("an id").to_owned(), key.as_str().expect("a key").to_owned());
    assert_eq!(answer.header("location"), Some(&*format!("/v1/keys/{id}")));
    (id, key)
}

async fn delete(server: &Server, with: &str, path: &str) -> Answer {
    server.send(get(with, path).method(Method::DELETE)).await
}

fn from(peer: &str, request: TestRequest) -> TestRequest {
    let address: IpAddr = peer.parse().expect("an address");
    request.peer_addr(SocketAddr::new(address, 40_000))
}

/// The events of a stream, as soon as there are so many.
async fn events(server: &Server, stream: &StreamName, count: usize) -> Vec<Envelope> {
    let end = Instant::now() + SOON;
    loop {
        let found = read_whole_stream(&*server.store, stream).await.expect("a stream");
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < end, "{} of {count} events", found.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[actix_web::test]
async fn a_key_is_shown_once_and_told_by_its_hash_alone() {
    let server = Server::start().await;
    let body = json!({
        "name": "ci", "team": "platform", "environment": "prod", "scopes": ["campaigns:*", "tasks:read"],
        "bounds": {"projects": ["infra"], "repos": ["github:acme/*"], "networks": ["10.1.2.3/8"]},
        "expiresAt": "2099-01-01T00:00:00Z", "limits": {"requestsPerMinute": 60, "concurrentTasks": 3}
    });
    let (id, key) = created(&server, &server.admin, &body).await;
    assert!(key.starts_with("orc_prod_") && key.len() == "orc_prod_".len() + 26 + 1 + 64, "{key:.12}");
    let read = server.get(&server.admin, &format!("/v1/keys/{id}")).await;
    let view = read.json();
    assert_eq!(view["scopes"], json!(["tasks:read", "campaigns:create", "campaigns:read", "campaigns:cancel"]));
    assert_eq!(view["bounds"]["networks"], json!(["10.0.0.0/8"]));
    assert_eq!((&view["status"], &view["lastUsedAt"], &view["key"]), (&json!("active"), &Value::Null, &Value::Null));
    let secret = key.rsplit('_').next().expect("a secret");
    for hidden in [secret, "secretSha256", "sha256"] {
        assert!(!read.text().contains(hidden), "{hidden}");
    }
    let list = server.get(&server.admin, "/v1/keys").await;
    assert!(!list.text().contains(secret) && !list.text().contains("ha256"));
    assert_eq!(list.json()["data"].as_array().map(Vec::len), Some(2));
    // Only from its networks, and with what it is good for.
    let asked = |peer| server.send(from(peer, get(&key, "/v1/tasks")));
    assert_eq!(asked("10.9.9.9").await.status, StatusCode::OK);
    let elsewhere = asked("11.9.9.9").await;
    assert_eq!((elsewhere.status, &*elsewhere.code()), (StatusCode::FORBIDDEN, "address-not-allowed"));
    assert_eq!(server.get(&key, "/v1/tasks").await.status, StatusCode::FORBIDDEN, "nor from an unknown place");
}

#[actix_web::test]
async fn what_does_not_do_is_named_field_by_field() {
    let server = Server::start().await;
    let body = json!({
        "name": "", "scopes": ["tasks:reed", "nothing:*"], "team": "a team", "environment": "Prod", "expiresAt": "2001-01-01T00:00:00Z",
        "bounds": {"projects": ["a b"], "repos": ["acme/*"], "networks": ["10.0.0.0/99"], "colour": []},
        "limits": {"requestsPerMinute": 0}, "foo": 1
    });
    let answer = server.post(&server.admin, "/v1/keys", &body.to_string()).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    let mut pointers = answer.pointers();
    pointers.sort();
    assert_eq!(
        pointers,
        [
            "/bounds/colour",
            "/bounds/networks/0",
            "/bounds/projects/0",
            "/bounds/repos/0",
            "/environment",
            "/expiresAt",
            "/foo",
            "/limits/requestsPerMinute",
            "/name",
            "/scopes/0",
            "/scopes/1",
            "/team",
        ]
    );
    let none = server.post(&server.admin, "/v1/keys", r#"{"name": "x", "scopes": []}"#).await;
    assert_eq!(none.pointers(), ["/scopes", "/team"]);
    for raw in ["[]", "{", "", "null", r#"{"name": 7, "scopes": "x"}"#] {
        let answer = server.post(&server.admin, "/v1/keys", raw).await;
        assert!(answer.status.is_client_error(), "{raw}");
    }
}

#[actix_web::test]
async fn nobody_hands_on_more_than_they_have() {
    let server = Server::start().await;
    let own = json!({
        "name": "lead", "team": "platform", "scopes": ["keys:*", "tasks:*"], "expiresAt": "2090-01-01T00:00:00Z",
        "bounds": {"projects": ["infra", "web"], "repos": ["github:acme/*"], "networks": ["10.0.0.0/8"]},
        "limits": {"requestsPerMinute": 600, "concurrentTasks": 5}
    });
    let (_, lead) = created(&server, &server.admin, &own).await;
    let ask = |change: Value| {
        let mut body = json!({"name": "ci", "scopes": ["tasks:create"]});
        let members = body.as_object_mut().expect("an object");
        members.extend(change.as_object().expect("an object").clone());
        server.send(from("10.0.0.1", post(&lead, "/v1/keys", &body.to_string())))
    };
    for (change, pointer) in [
        (json!({"scopes": ["tasks:create", "audit:read"]}), "/scopes"),
        (json!({"scopes": ["admin"]}), "/scopes"),
        (json!({"team": "mobile"}), "/team"),
        (json!({"bounds": {"projects": ["infra", "ops"]}}), "/bounds"),
        (json!({"bounds": {"repos": ["github:*"]}}), "/bounds"),
        (json!({"bounds": {"networks": ["0.0.0.0/0"]}}), "/bounds"),
        (json!({"limits": {"requestsPerMinute": 601}}), "/limits"),
        (json!({"limits": {"concurrentTasks": 6}}), "/limits"),
        (json!({"expiresAt": "2090-01-01T00:00:01Z"}), "/expiresAt"),
    ] {
        let answer = ask(change.clone()).await;
        assert_eq!((answer.status, answer.pointers()), (StatusCode::FORBIDDEN, vec![pointer.to_owned()]), "{change}");
    }
    // What is left out is as one's own.
    let same = ask(json!({})).await;
    assert_eq!(same.status, StatusCode::CREATED, "{}", same.text());
    let view = same.json();
    assert_eq!(view["team"], "platform");
    assert_eq!(view["bounds"]["repos"], json!(["github:acme/*"]));
    assert_eq!(view["limits"], json!({"requestsPerMinute": 600, "burst": null, "concurrentTasks": 5}));
    assert_eq!(view["expiresAt"], "2090-01-01T00:00:00Z");
    let narrower = json!({"bounds": {"repos": ["github:acme/api"], "projects": ["web"], "networks": ["10.1.0.0/16"]}});
    assert_eq!(ask(narrower).await.status, StatusCode::CREATED);
    // Nor by rotating a key that can do more.
    let body = json!({"name": "auditor", "team": "platform", "scopes": ["audit:read"], "bounds": own["bounds"]});
    let (auditor, _) = created(&server, &server.admin, &body).await;
    let rotated = server.send(from("10.0.0.1", post(&lead, &format!("/v1/keys/{auditor}/rotate"), ""))).await;
    assert_eq!(rotated.status, StatusCode::FORBIDDEN);
}

#[actix_web::test]
async fn another_teams_keys_do_not_exist() {
    let server = Server::start().await;
    let manager = server.key(Some("platform"), &MANAGER).await;
    let (own, _) = created(&server, &manager, &json!({"name": "ours", "scopes": ["tasks:read"]})).await;
    let theirs = json!({"name": "theirs", "team": "mobile", "scopes": ["tasks:read"]});
    let (other, _) = created(&server, &server.admin, &theirs).await;
    let operator = server.app.keys.authenticate(&server.admin).expect("a caller").who.to_string();
    for id in [&*other, &*operator, "key_00000000000000000000000000", "nonsense"] {
        let path = format!("/v1/keys/{id}");
        for answer in [
            server.get(&manager, &path).await,
            delete(&server, &manager, &path).await,
            server.post(&manager, &format!("{path}/rotate"), "").await,
        ] {
            assert_eq!((answer.status, &*answer.code()), (StatusCode::NOT_FOUND, "not-found"), "{path}");
        }
    }
    let listed = server.get(&manager, "/v1/keys").await.json();
    let ids: Vec<_> = listed["data"].as_array().expect("a list").iter().map(|key| key["name"].clone()).collect();
    assert_eq!(ids, [json!("ours"), json!("test")], "newest first, the manager's own with them");
    let nobody = json!({"data": [], "nextCursor": null});
    assert_eq!(server.get(&manager, "/v1/keys?team=mobile").await.json(), nobody);
    // A manager of one project does not see the keys of another.
    let bounded =
        json!({"name": "web lead", "team": "platform", "scopes": ["keys:*"], "bounds": {"projects": ["web"]}});
    let (_, lead) = created(&server, &server.admin, &bounded).await;
    assert_eq!(server.get(&lead, &format!("/v1/keys/{own}")).await.status, StatusCode::NOT_FOUND);
    let seen = server.get(&lead, "/v1/keys").await.json();
    assert_eq!(seen["data"].as_array().map(Vec::len), Some(1), "their own: {seen}");
}

#[actix_web::test]
async fn a_list_is_read_page_by_page_whatever_comes_meanwhile() {
    let server = Server::start().await;
    for number in 0..7 {
        let body = json!({"name": format!("k{number}"), "team": "platform", "scopes": ["tasks:read"]});
        created(&server, &server.admin, &body).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&server.admin, &format!("/v1/keys?team=platform&limit=3{cursor}")).await.json();
        let data = page["data"].as_array().expect("a list").clone();
        seen.extend(data.iter().map(|key| key["name"].as_str().expect("a name").to_owned()));
        let late = json!({"name": "late", "team": "platform", "scopes": ["tasks:read"]});
        created(&server, &server.admin, &late).await;
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ["k6", "k5", "k4", "k3", "k2", "k1", "k0"]);
    for wrong in ["limit=0", "limit=201", "cursor=x", "colour=red"] {
        let answer = server.get(&server.admin, &format!("/v1/keys?{wrong}")).await;
        assert_eq!(answer.code(), "invalid-query", "{wrong}");
    }
}

#[actix_web::test]
async fn the_text_before_a_rotation_works_for_its_overlap() {
    let server = Server::start().await;
    let body = json!({"name": "ci", "team": "platform", "scopes": ["tasks:read"]});
    let (id, first) = created(&server, &server.admin, &body).await;
    let path = format!("/v1/keys/{id}/rotate");
    let rotated = server.post(&server.admin, &path, r#"{"overlapSeconds": 1}"#).await;
    assert_eq!(rotated.status, StatusCode::OK, "{}", rotated.text());
    let second = rotated.json()["key"].as_str().expect("a key").to_owned();
    assert!(second != first && rotated.json()["previousUntil"].is_string());
    let works = async |key: &str| server.get(key, "/v1/tasks").await.status == StatusCode::OK;
    assert!(works(&first).await && works(&second).await, "both, for a second");
    let end = Instant::now() + SOON;
    while works(&first).await {
        assert!(Instant::now() < end, "the old text works on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(works(&second).await);
    let third = server.post(&server.admin, &path, r#"{"overlapSeconds": 0}"#).await;
    let third = third.json()["key"].as_str().expect("a key").to_owned();
    assert!(!works(&second).await && works(&third).await, "without an overlap at once");
    for wrong in [r#"{"overlapSeconds": -1}"#, r#"{"overlapSeconds": 2592001}"#, r#"{"overlap": 1}"#] {
        assert_eq!(server.post(&server.admin, &path, wrong).await.code(), "invalid-request", "{wrong}");
    }
    assert_eq!(delete(&server, &server.admin, &format!("/v1/keys/{id}")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.post(&server.admin, &path, "").await.code(), "conflict");
    assert!(!works(&third).await);
}

#[actix_web::test]
async fn a_text_that_was_replaced_makes_no_new_one() {
    let server = Server::start().await;
    let (id, first) =
        created(&server, &server.admin, &json!({"name": "ci", "team": "platform", "scopes": MANAGER})).await;
    let cookie = server.session(&first).await;
    let path = format!("/v1/keys/{id}/rotate");
    let rotated = server.post(&first, &path, "").await;
    assert_eq!(rotated.status, StatusCode::OK, "its newest text does: {}", rotated.text());
    let second = rotated.json()["key"].as_str().expect("a key").to_owned();
    // Within its overlap the first still reads, and so does a session that was begun with it.
    assert_eq!(server.get(&first, "/v1/tasks").await.status, StatusCode::OK);
    let in_session = || {
        let cookie = ("cookie", format!("{}={cookie}", session::COOKIE));
        TestRequest::post().uri(&path).insert_header(cookie).insert_header(("sec-fetch-site", "same-origin"))
    };
    for answer in [server.post(&first, &path, "").await, server.send(in_session()).await] {
        assert_eq!((answer.status, &*answer.code()), (StatusCode::FORBIDDEN, "forbidden"), "{}", answer.text());
        assert!(answer.text().contains("newest text"), "{}", answer.text());
    }
    // Nor a key beside it that lasts longer than itself.
    let beside = server.post(&first, "/v1/keys", r#"{"name": "mine", "scopes": ["tasks:read"]}"#).await;
    assert!(beside.json()["expiresAt"].is_string(), "{}", beside.text());
    assert_eq!(server.get(&second, "/v1/tasks").await.status, StatusCode::OK, "the owner's was not touched");
    assert_eq!(server.post(&second, &path, "").await.status, StatusCode::OK);
}

#[actix_web::test]
async fn a_key_revokes_itself_only_on_purpose_and_the_last_admin_stays() {
    let server = Server::start().await;
    let admin = server.app.keys.authenticate(&server.admin).expect("a caller").who.to_string();
    let path = format!("/v1/keys/{admin}");
    for path in [path.clone(), format!("{path}?self=true")] {
        let answer = delete(&server, &server.admin, &path).await;
        assert_eq!((answer.status, &*answer.code()), (StatusCode::CONFLICT, "conflict"), "{path}");
    }
    let manager = server.key(Some("platform"), &MANAGER).await;
    let own = server.app.keys.authenticate(&manager).expect("a caller").who.to_string();
    assert_eq!(delete(&server, &manager, &format!("/v1/keys/{own}")).await.code(), "conflict");
    let meant = delete(&server, &manager, &format!("/v1/keys/{own}?self=true")).await;
    assert_eq!(meant.status, StatusCode::NO_CONTENT);
    assert_eq!(server.get(&manager, "/v1/keys").await.status, StatusCode::UNAUTHORIZED);
    // Two who revoke each other at the same time: one of them stays.
    let other = server.key(None, &[Scope::Admin]).await;
    let second = server.app.keys.authenticate(&other).expect("a caller").who.to_string();
    let second = format!("/v1/keys/{second}");
    let answers = tokio::join!(delete(&server, &server.admin, &second), delete(&server, &other, &path));
    let done = [&answers.0, &answers.1].into_iter().filter(|answer| answer.status == StatusCode::NO_CONTENT).count();
    assert_eq!(done, 1, "{} {}", answers.0.text(), answers.1.text());
    let left = [&server.admin, &other].map(|key| server.app.keys.authenticate(key).is_some());
    assert_eq!(left.into_iter().filter(|left| *left).count(), 1);
}

#[actix_web::test]
async fn a_use_is_noted_once_in_a_while_with_its_address() {
    let server = Server::start().await;
    server.write_down();
    tokio::task::yield_now().await;
    let body = json!({"name": "ci", "team": "platform", "scopes": ["tasks:read"]});
    let (id, key) = created(&server, &server.admin, &body).await;
    for _ in 0..20 {
        let request = get(&key, "/v1/tasks").insert_header(("user-agent", "ci/1.0"));
        assert_eq!(server.send(from("192.0.2.7", request)).await.status, StatusCode::OK);
    }
    let stream = StreamName::key(id.parse().expect("a key's id"));
    let noted = events(&server, &stream, 2).await;
    server.keys_caught_up().await;
    let view = server.get(&server.admin, &format!("/v1/keys/{id}")).await.json();
    assert_eq!(view["lastUsedFrom"], "192.0.2.7");
    assert!(view["lastUsedAt"].is_string());
    let actor = &noted[1].actor;
    let origin = actor.origin.as_ref().expect("an origin");
    assert_eq!((&*noted[1].kind, &*actor.id), ("key-used", &*id));
    assert_eq!((origin.name.as_deref(), origin.user_agent.as_deref()), (Some("ci"), Some("ci/1.0")));
    assert_eq!(events(&server, &stream, 2).await.len(), 2, "twenty uses are one event");
}

#[actix_web::test]
async fn every_act_says_where_it_came_from_as_far_as_proxies_are_trusted() {
    let network = "10.0.0.0/8".parse().expect("a network");
    let server = Server::start_with(|app| app.behind(Proxies::new(vec![network]))).await;
    let key = server.team_key("platform").await;
    let submit = || post(&key, "/v1/tasks", &example().to_string()).insert_header(("user-agent", "ci/2"));
    let forwarded = |request: TestRequest| request.insert_header(("x-forwarded-for", "198.51.100.1, 203.0.113.5"));
    let mut requests = Vec::new();
    for (peer, address) in [("10.0.0.1", "203.0.113.5"), ("192.0.2.9", "192.0.2.9")] {
        let named = submit().insert_header(("idempotency-key", format!("by {peer}")));
        let answer = server.send(from(peer, forwarded(named))).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        let id = answer.json()["id"].as_str().expect("an id").parse().expect("a task's id");
        let events = read_whole_stream(&*server.store, &StreamName::task(id)).await.expect("a stream");
        let origin = events[0].actor.origin.as_ref().expect("an origin");
        assert_eq!(origin.address, Some(address.parse().expect("an address")), "by {peer}");
        assert_eq!((origin.name.as_deref(), origin.user_agent.as_deref()), (Some("test"), Some("ci/2")));
        requests.push(origin.request.expect("a request with a name"));
    }
    assert_ne!(requests[0], requests[1]);
}

#[actix_web::test]
async fn who_asks_too_often_is_told_when_to_come_back_and_everybody_what_is_left() {
    let rates = Rates { caller: Rate::new(6, Some(5)), failures: Rate::new(6, Some(3)), ..Rates::default() };
    let server = Server::start_with(|app| app.limited(Limits::new(rates))).await;
    let key = server.team_key("platform").await;
    let answers = futures_util::future::join_all((0..12).map(|_| server.get(&key, "/v1/tasks"))).await;
    let taken = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert!((5..=6).contains(&taken), "{taken} of five, and one that ten seconds give back");
    for answer in &answers {
        assert_eq!(answer.header("ratelimit-limit"), Some("5"));
        assert_eq!(answer.header("ratelimit-policy"), Some("6;w=60;burst=5"));
        let left: u32 = answer.header("ratelimit-remaining").and_then(|left| left.parse().ok()).expect("a number");
        let reset: u32 = answer.header("ratelimit-reset").and_then(|left| left.parse().ok()).expect("a number");
        assert!(left <= 4 && (1..=50).contains(&reset), "{left} {reset}");
        if answer.status != StatusCode::OK {
            assert_eq!((answer.status, &*answer.code()), (StatusCode::TOO_MANY_REQUESTS, "rate-limited"));
            let wait: u32 = answer.header("retry-after").and_then(|wait| wait.parse().ok()).expect("a number");
            assert!((1..=10).contains(&wait) && left == 0, "{wait} {left}");
        }
    }
    // One request counts once, whatever it is, and another key has its own.
    let answer = server.get(&server.admin, "/v1/nothing").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(server.get(&server.admin, "/v1/keys").await.header("ratelimit-remaining"), Some("4"));
    // Guessing is slowed down by where it comes from, and the right key from there is not.
    let guess = || server.send(from("192.0.2.1", get("orc_x_00000000000000000000000000_0", "/v1/tasks")));
    let mut codes = Vec::new();
    for _ in 0..5 {
        codes.push(guess().await.code());
    }
    assert_eq!(codes[..3], ["unauthenticated"; 3]);
    assert_eq!(codes[4], "rate-limited");
    let right = server.send(from("192.0.2.1", get(&server.admin, "/v1/tasks"))).await;
    assert_eq!(right.status, StatusCode::OK);
}

#[actix_web::test]
async fn a_keys_own_limit_goes_before_the_servers() {
    let rates = Rates { caller: Rate::new(6_000, None), ..Rates::default() };
    let server = Server::start_with(|app| app.limited(Limits::new(rates))).await;
    let body = json!({"name": "ci", "team": "platform", "scopes": ["tasks:read"], "limits": {"requestsPerMinute": 2}});
    let (_, key) = created(&server, &server.admin, &body).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(server.get(&key, "/v1/tasks").await.status.as_u16());
    }
    assert_eq!(seen, [200, 200, 429]);
}

#[actix_web::test]
async fn nobody_but_an_admin_lifts_what_the_server_allows_everybody() {
    let rates = Rates { caller: Rate::new(600, None), concurrent_tasks: Some(4), ..Rates::default() };
    let server = Server::start_with(|app| app.limited(Limits::new(rates))).await;
    let manager = server.key(Some("platform"), &MANAGER).await;
    let ask = async |with: &str, limits: Value| {
        let body = json!({"name": "ci", "team": "platform", "scopes": ["tasks:read"], "limits": limits});
        server.post(with, "/v1/keys", &body.to_string()).await
    };
    for more in [
        json!({"requestsPerMinute": 601}),
        json!({"concurrentTasks": 5}),
        json!({"burst": 601}),
        json!({"requestsPerMinute": 600, "burst": 1_000}),
    ] {
        let refused = ask(&manager, more.clone()).await;
        assert_eq!((refused.status, refused.pointers()), (StatusCode::FORBIDDEN, vec!["/limits".to_owned()]), "{more}");
        assert_eq!(ask(&server.admin, more.clone()).await.status, StatusCode::CREATED, "{more}");
    }
    let as_much = json!({"requestsPerMinute": 600, "burst": 600, "concurrentTasks": 4});
    for within in [as_much, json!({"requestsPerMinute": 5}), json!({})] {
        assert_eq!(ask(&manager, within.clone()).await.status, StatusCode::CREATED, "{within}");
    }
    // What an admin has given somebody is theirs to hand on.
    let lead = json!({"name": "lead", "team": "platform", "scopes": ["keys:write", "tasks:read"], "limits": {"requestsPerMinute": 900}});
    let (_, lead) = created(&server, &server.admin, &lead).await;
    assert_eq!(ask(&lead, json!({"requestsPerMinute": 900})).await.status, StatusCode::CREATED);
    assert_eq!(ask(&lead, json!({"requestsPerMinute": 900, "burst": 901})).await.status, StatusCode::FORBIDDEN);
}

#[actix_web::test]
async fn a_team_has_so_many_keys_that_work_and_no_more() {
    let server = Server::start().await;
    let by = Actor::system("test");
    let issue = |team| issue_key(&*server.store, "test", team, "test", vec![Scope::TasksRead], &by);
    let (spare, _) = issue(Some("platform")).await.expect("a key");
    for _ in 1..MAX_STANDING {
        issue(Some("platform")).await.expect("a key");
    }
    server.keys_caught_up().await;
    let ask = async |team: &str| {
        let body = json!({"name": "ci", "team": team, "scopes": ["tasks:read"]});
        server.post(&server.admin, "/v1/keys", &body.to_string()).await
    };
    let refused = ask("platform").await;
    assert_eq!((refused.status, &*refused.code()), (StatusCode::CONFLICT, "conflict"), "{}", refused.text());
    assert!(refused.text().contains("Revoke those"), "{}", refused.text());
    assert_eq!(ask("mobile").await.status, StatusCode::CREATED, "another team's keys are its own matter");
    assert_eq!(delete(&server, &server.admin, &format!("/v1/keys/{spare}")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(ask("platform").await.status, StatusCode::CREATED);
}

#[actix_web::test]
async fn a_key_that_is_over_is_known_to_the_record_and_not_to_who_shows_it() {
    let server = Server::start().await;
    server.write_down();
    tokio::task::yield_now().await;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(300);
    let new = async |more: Value| {
        let mut body = json!({"name": "ci", "team": "platform", "scopes": ["tasks:read"]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        created(&server, &server.admin, &body).await
    };
    let (expired, revoked) = (new(json!({"expiresAt": soon.to_string()})).await, new(json!({})).await);
    let (rotated, signed_in) = (new(json!({})).await, new(json!({})).await);
    let cookie = format!("{}={}", session::COOKIE, server.session(&signed_in.1).await);
    let path = format!("/v1/keys/{}/rotate", rotated.0);
    assert_eq!(server.post(&server.admin, &path, r#"{"overlapSeconds": 0}"#).await.status, StatusCode::OK);
    let path = format!("/v1/keys/{}", revoked.0);
    assert_eq!(delete(&server, &server.admin, &path).await.status, StatusCode::NO_CONTENT);
    let end = Instant::now() + SOON;
    while jiff::Timestamp::now() < soon {
        assert!(Instant::now() < end, "the clock stands");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let never = server.send(from("192.0.2.1", get("orc_x_00000000000000000000000000_0", "/v1/tasks"))).await;
    for (_, text) in [&expired, &revoked, &rotated] {
        let answer = server.send(from("192.0.2.1", get(text, "/v1/tasks"))).await;
        assert_eq!((answer.status, answer.text()), (never.status, never.text()), "nobody is told that it was one");
    }
    // A session that another site makes use of, and one whose key is over.
    let elsewhere = || {
        let cookie = ("cookie", cookie.clone());
        TestRequest::post().uri("/v1/tasks").insert_header(cookie).insert_header(("sec-fetch-site", "cross-site"))
    };
    assert_eq!(server.send(elsewhere()).await.code(), "cross-site-request");
    let known = events(&server, &StreamName::access(Some("platform")), 4).await;
    let who: Vec<_> = known.iter().map(|event| &*event.actor.id).collect();
    assert_eq!(who, [&*expired.0, &*revoked.0, &*rotated.0, &*signed_in.0]);
    let last = AccessDenied::decode(&known[3]).expect("it reads").expect("a refusal");
    assert_eq!(last.code, "cross-site-request");
    let address = known[0].actor.origin.as_ref().and_then(|origin| origin.address);
    assert_eq!(address, Some("192.0.2.1".parse().expect("an address")));
    let path = format!("/v1/keys/{}", signed_in.0);
    assert_eq!(delete(&server, &server.admin, &path).await.status, StatusCode::NO_CONTENT);
    let over = server.send(TestRequest::get().uri("/v1/tasks").insert_header(("cookie", cookie.clone()))).await;
    assert_eq!((over.status, &*over.code()), (StatusCode::UNAUTHORIZED, "unauthenticated"));
    let known = events(&server, &StreamName::access(Some("platform")), 5).await;
    assert_eq!((&*known[4].actor.id, known[4].actor.team.as_deref()), (&*signed_in.0, Some("platform")));
    assert_eq!(events(&server, &StreamName::access(None), 1).await.len(), 1, "and nobody knows the one that never was");
}

#[actix_web::test]
async fn guessing_at_the_sign_in_page_is_slowed_down_and_written_down_once() {
    let rates = Rates { failures: Rate::new(6, Some(2)), ..Rates::default() };
    let server = Server::start_with(|app| app.limited(Limits::new(rates))).await;
    server.write_down();
    tokio::task::yield_now().await;
    let guess = |key: &str| {
        let form = TestRequest::post().uri("/sign-in").insert_header(("sec-fetch-site", "same-origin"));
        server.send(from("192.0.2.1", form.set_form([("key", key), ("next", "/")])))
    };
    let wrong = "orc_x_00000000000000000000000000_0";
    assert_eq!(guess(wrong).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(guess(wrong).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(guess(wrong).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(guess(&server.admin).await.status, StatusCode::SEE_OTHER, "the right one is let in");
    let api = server.send(from("192.0.2.1", get(wrong, "/v1/tasks"))).await;
    assert_eq!(&*api.code(), "rate-limited", "the bucket is the same");
    // Once each: the two as failed sign-ins, the rest as refusals.
    let refused = events(&server, &StreamName::access(None), 2).await;
    let codes: Vec<_> =
        refused.iter().map(|event| AccessDenied::decode(event).expect("it reads").expect("one").code).collect();
    assert_eq!(codes, ["rate-limited", "rate-limited"]);
    let log = server.store.read_all(orchestra_events::Position::START, 1_000).await.expect("a log");
    assert_eq!(log.iter().filter(|event| &*event.kind == "sign-in-refused").count(), 2);
}

#[actix_web::test]
async fn an_admin_key_that_ends_or_is_bound_does_not_stand_in_for_the_last() {
    let server = Server::start().await;
    let admin = server.app.keys.authenticate(&server.admin).expect("a caller").who.to_string();
    let path = format!("/v1/keys/{admin}?self=true");
    let new = |more: Value| {
        let mut body = json!({"name": "ops", "scopes": ["admin"]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let (ending, _) = created(&server, &server.admin, &new(json!({"expiresAt": "2099-01-01T00:00:00Z"}))).await;
    created(&server, &server.admin, &new(json!({"bounds": {"networks": ["10.0.0.0/8"]}}))).await;
    assert_eq!(delete(&server, &server.admin, &path).await.code(), "conflict");
    assert_eq!(delete(&server, &server.admin, &format!("/v1/keys/{ending}")).await.status, StatusCode::NO_CONTENT);
    created(&server, &server.admin, &new(json!({}))).await;
    assert_eq!(delete(&server, &server.admin, &path).await.status, StatusCode::NO_CONTENT);
}

#[actix_web::test]
async fn refusals_are_taken_down_with_who_and_what_and_never_the_callers_words() {
    let server = Server::start().await;
    server.write_down();
    tokio::task::yield_now().await;
    let key = server.key(Some("platform"), &[Scope::TasksRead]).await;
    for _ in 0..3 {
        let request = post(&key, "/v1/tasks", "{}").insert_header(("user-agent", "ci/3"));
        assert_eq!(server.send(from("192.0.2.8", request)).await.status, StatusCode::FORBIDDEN);
    }
    let guess = get("orc_x_00000000000000000000000000_0", "/v1/tasks/task_secret-words?x=secret-words");
    assert_eq!(server.send(from("198.51.100.4", guess)).await.status, StatusCode::UNAUTHORIZED);
    let known = events(&server, &StreamName::access(Some("platform")), 1).await;
    let denied = AccessDenied::decode(&known[0]).expect("it reads").expect("a refusal");
    assert_eq!((&*denied.method, &*denied.route, &*denied.code), ("POST", "/v1/tasks", "forbidden"));
    assert_eq!((denied.count, denied.user_agent.as_deref()), (1, Some("ci/3")), "the rest of its minute follows");
    assert_eq!(denied.address, Some("192.0.2.8".parse().expect("an address")));
    let who = server.app.keys.authenticate(&key).expect("a caller").who.to_string();
    assert_eq!((&*known[0].actor.id, known[0].actor.team.as_deref()), (&*who, Some("platform")));
    let unknown = events(&server, &StreamName::access(None), 1).await;
    let denied = AccessDenied::decode(&unknown[0]).expect("it reads").expect("a refusal");
    assert_eq!((&*denied.route, &*denied.code), ("/v1/tasks/{id}", "unauthenticated"));
    assert_eq!(unknown[0].actor.id, "unknown-caller");
    let log = server.store.read_all(orchestra_events::Position::START, 1_000).await.expect("a log");
    assert!(log.iter().all(|event| !event.data.get().contains("secret-words")));
}

/// Time within which what is open with a key must end once the key does.
const CUT: Duration = Duration::from_secs(1);

#[actix_web::test]
async fn what_is_open_with_a_key_ends_with_it_within_a_second() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    let new_key = async |more: Value| {
        let mut body = json!({"name": "ci", "team": "platform", "scopes": ["tasks:read", "audit:read"]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        created(&server, &server.admin, &body).await
    };
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    let (revoked, rotated) = (new_key(json!({})).await, new_key(json!({})).await);
    let (expiring, kept) = (new_key(json!({"expiresAt": soon.to_string()})).await, new_key(json!({})).await);
    let paths = [
        format!("/v1/tasks/{id}/events"),
        "/v1/events".to_owned(),
        format!("/tasks/{id}/live"),
        "/live/tasks".to_owned(),
    ];
    let mut open = Vec::new();
    for (_, key) in [&revoked, &rotated, &expiring, &kept] {
        for path in &paths {
            let request = get(key, path).insert_header(("accept", "text/event-stream"));
            open.push(server.stream(request).await);
        }
    }
    // All of them have said something, and go on.
    for stream in &mut open {
        stream.piece().await.expect("a first piece");
    }
    let mut open = open.into_iter();
    let mut next = || open.by_ref().take(paths.len()).collect::<Vec<_>>();
    let (of_revoked, of_rotated, of_expiring, of_kept) = (next(), next(), next(), next());
    let all_end = async |streams: Vec<crate::harness::Pieces>| {
        futures_util::future::join_all(streams.into_iter().map(|stream| stream.end())).await;
        Instant::now()
    };
    let began = Instant::now();
    let revoking = async {
        let answer = delete(&server, &server.admin, &format!("/v1/keys/{}", revoked.0)).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        Instant::now()
    };
    let (ended, asked) = tokio::join!(all_end(of_revoked), revoking);
    assert!(ended.saturating_duration_since(asked) < CUT, "{:?} after the revocation", ended - asked);
    let rotating = async {
        let path = format!("/v1/keys/{}/rotate", rotated.0);
        let answer = server.post(&server.admin, &path, r#"{"overlapSeconds": 1}"#).await;
        assert_eq!(answer.status, StatusCode::OK);
        Instant::now() + Duration::from_secs(1)
    };
    let (ended, due) = tokio::join!(all_end(of_rotated), rotating);
    assert!(ended.saturating_duration_since(due) < CUT, "{:?} after the overlap", ended - due);
    assert!(ended + Duration::from_millis(100) > due, "and not before it");
    let ended = all_end(of_expiring).await;
    assert!(ended < began + Duration::from_secs(2) + CUT, "{:?}", ended - began);
    // The others were not disturbed: what happens arrives.
    for mut stream in of_kept {
        assert!(!stream.has_ended().await);
    }
}
