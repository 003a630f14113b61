//! Plans and bills over REST: what may be set, what a closed month keeps, and who sees any of it.

use actix_web::http::Method;
use actix_web::test::TestRequest;
use jiff::Timestamp;
use orchestra_events::key::Scope;
use orchestra_events::ledger::LedgerEvent;
use orchestra_events::ledger::event::Refunded;
use orchestra_events::task::conversation::Usage;
use orchestra_events::{Actor, EventId, EventStore as _, Expected, FailureCode, NanoUsd, NewEvent, StreamName, TaskId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Answer, Server, example, post};
use crate::usage::settle;

fn put(key: &str, path: &str, body: &Value) -> TestRequest {
    post(key, path, &body.to_string()).method(Method::PUT)
}

async fn set_plan(server: &Server, body: &Value) -> Answer {
    server.send(put(&server.admin, "/v1/billing/plans/platform", body)).await
}

async fn close(server: &Server, key: &str, period: &str) -> Answer {
    server.send(post(key, &format!("/v1/billing/periods/{period}/close?team=platform"), "")).await
}

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// A task whose call was paid for on this day.
async fn used(server: &Server, customer: Option<&str>, at: &str, nanos: i64) -> TaskId {
    let mut body = example();
    (body["team"], body["customer"]) = (json!("platform"), json!(customer));
    let id = server.task(&server.admin, &body).await;
    let usage = Usage { input_tokens: 1_000, output_tokens: 2_000, ..Usage::default() };
    settle(server, id, "platform", "model-1", time(at), usage, NanoUsd::from_nanos(nanos)).await;
    id
}

async fn refund(server: &Server, task: TaskId, at: &str, nanos: i64) {
    let (time, reason) = (time(at), FailureCode::Internal);
    let day = Some(time.to_zoned(jiff::tz::TimeZone::UTC).date());
    let refunded = Refunded { task, nano_usd: NanoUsd::from_nanos(nanos), reason, day, usage: Usage::default() };
    let event = LedgerEvent::Refunded(refunded);
    let new = NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: event.kind().into(),
        schema: 1,
        time,
        actor: Actor::system("ledger"),
        correlation: None,
        causation: None,
        data: event.data().expect("JSON"),
        private: None,
    };
    let ledger = StreamName::ledger("platform").expect("a team");
    server.store.append(&ledger, Expected::Any, vec![new]).await.expect("an append");
}

#[actix_web::test]
async fn a_plan_is_set_read_and_prices_what_is_open() {
    let server = Server::start().await;
    let plan = json!({
        "effectiveFrom": "2026-02-01", "currency": "USD", "markUpBasisPoints": 2_500, "perTaskUsd": 0.5,
        "perMinuteUsd": 0.01, "perMillionInputTokensUsd": 3, "perMillionOutputTokensUsd": 15.000000001,
        "perMillionCacheReadTokensUsd": 0.3, "perMillionCacheWriteTokensUsd": 3.75, "minimumUsd": 20,
        "overrides": [{ "customer": "Acme", "project": "infra", "perTaskUsd": 1 }, { "customer": "Acme", "markUpBasisPoints": 0 }],
    });
    let answer = set_plan(&server, &plan).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let read = server.get(&server.admin, "/v1/billing/plans/platform").await;
    assert_eq!(read.text(), answer.text(), "who has set it reads it");
    let plans = read.json();
    let first = &plans["versions"][0];
    assert_eq!((&first["version"], &first["markUpBasisPoints"]), (&json!(1), &json!(2_500)));
    assert_eq!(first["perMillionOutputTokensUsd"].to_string(), "15.000000001");
    assert_eq!(first["overrides"][0]["perTaskUsd"], json!(1.0));
    assert_eq!(first["overrides"][0].get("markUpBasisPoints"), None);
    assert_eq!((&first["overrides"][1]["project"], &plans["closedThrough"]), (&Value::Null, &Value::Null));
    // The same again is nothing new.
    set_plan(&server, &plan).await;
    let mut other = plan.clone();
    other["effectiveFrom"] = json!("2026-03-01");
    let plans = set_plan(&server, &other).await.json();
    assert_eq!((plans["versions"].as_array().map(Vec::len), &plans["versions"][0]["version"]), (Some(2), &json!(2)));

    // Only the mark-up: a thousandth of a cent, and a quarter on top of it.
    let simple = json!({ "effectiveFrom": "2026-02-01", "markUpBasisPoints": 2_500 });
    used(&server, None, "2026-02-10T12:00:00Z", 10_001).await;
    set_plan(&server, &simple).await;
    let usage = server.get(&server.admin, "/v1/usage?from=2026-02-10&to=2026-02-10").await.json();
    assert_eq!(usage["total"]["costUsd"].to_string(), "0.000010001");
    assert_eq!(usage["total"]["billableUsd"].to_string(), "0.000012501");
}

#[actix_web::test]
async fn what_is_no_plan_is_named() {
    let server = Server::start().await;
    let with = |name: &str, value: Value| {
        let mut plan = json!({ "effectiveFrom": "2026-02-01", "markUpBasisPoints": 1 });
        plan[name] = value;
        plan
    };
    for (plan, pointer) in [
        (json!({ "markUpBasisPoints": 1 }), "/effectiveFrom"),
        (with("effectiveFrom", json!("soon")), "/effectiveFrom"),
        (with("effectiveFrom", json!(20_260_201)), "/effectiveFrom"),
        (with("currency", json!("EUR")), "/currency"),
        (with("markUpBasisPoints", json!(-1)), "/markUpBasisPoints"),
        (with("markUpBasisPoints", json!(1_000_001)), "/markUpBasisPoints"),
        (with("perTaskUsd", json!(-1)), "/perTaskUsd"),
        (with("perTaskUsd", json!("1")), "/perTaskUsd"),
        (with("perTaskUsd", json!(0.000_000_000_1)), "/perTaskUsd"),
        (with("minimumUsd", json!(1_000_001)), ""),
        (with("perTask", json!(1)), "/perTask"),
        (with("overrides", json!({})), "/overrides"),
        (with("overrides", json!([{ "perTaskUsd": 1 }])), "/overrides"),
        (with("overrides", json!([{ "customer": "", "perTaskUsd": 1 }])), "/overrides/0/customer"),
        (with("overrides", json!([{ "customer": "a\u{7}", "perTaskUsd": 1 }])), "/overrides/0/customer"),
        (with("overrides", json!([{ "customer": "a", "perTaskUsd": {} }])), "/overrides/0/perTaskUsd"),
        (json!({ "effectiveFrom": "2026-02-01" }), ""),
    ] {
        let answer = set_plan(&server, &plan).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (422, "invalid-request"), "{plan}");
        assert_eq!(answer.pointers(), [pointer], "{plan}");
    }
    let plans = server.get(&server.admin, "/v1/billing/plans/platform").await.json();
    assert_eq!(plans["versions"], json!([]), "nothing was stored");
}

#[actix_web::test]
async fn a_closed_month_stays_and_what_comes_late_adjusts_the_next_bill() {
    let server = Server::start().await;
    let early = used(&server, Some("=Acme, \"Inc\""), "2026-01-10T12:00:00Z", 2_000_000_001).await;
    used(&server, None, "2026-01-31T23:30:00Z", 1_000_000_000).await;
    set_plan(&server, &json!({ "effectiveFrom": "2026-01-01", "markUpBasisPoints": 1_000, "minimumUsd": 2 })).await;
    // Settled in February, and of January all the same.
    let january = server.get(&server.admin, "/v1/billing/periods/2026-01?team=platform").await.json();
    assert_eq!((&january["status"], &january["intact"]), (&json!("open"), &Value::Null));
    assert_eq!(january["totals"]["billableUsd"].to_string(), "4.200000001", "2.200000001, and 1.1 filled up to 2");
    assert_eq!(january["totals"]["minimumUsd"].to_string(), "0.9");

    let closed = close(&server, &server.admin, "2026-01").await;
    assert_eq!(closed.status, 200, "{closed:?}");
    assert_eq!(closed.json()["status"], "closed");
    assert_eq!(close(&server, &server.admin, "2026-01").await.text(), closed.text(), "asked again, the same");
    let acts = server.get(&server.admin, "/v1/audit?kind=period-closed").await.json();
    let acts: Vec<_> =
        acts["data"].as_array().expect("rows").iter().map(|act| (&act["category"], &act["team"])).collect();
    assert_eq!(acts, [(&json!("act"), &json!("platform"))], "one act, of whoever closed it");
    let bill = server.get(&server.admin, "/v1/billing/periods/2026-01?team=platform").await;
    assert_eq!((&bill.json()["intact"], &bill.json()["digest"]), (&json!(true), &closed.json()["digest"]));
    assert_eq!(bill.json()["lines"], january["lines"]);
    assert_eq!(bill.json()["customers"].as_array().map(Vec::len), Some(2));

    refund(&server, early, "2026-01-10T18:00:00Z", 2_000_000_001).await;
    used(&server, None, "2026-02-03T12:00:00Z", 5).await;
    let after = server.get(&server.admin, "/v1/billing/periods/2026-01?team=platform").await;
    assert_eq!(after.text(), bill.text(), "not a byte of it has changed");
    let february = server.get(&server.admin, "/v1/billing/periods/2026-02?team=platform").await.json();
    let adjustment = &february["lines"][0];
    assert_eq!((&adjustment["kind"], &adjustment["corrects"]), (&json!("adjustment"), &json!("2026-01")));
    assert_eq!(
        (adjustment["billableUsd"].to_string(), &adjustment["day"]),
        ("-2.200000001".into(), &json!("2026-01-10"))
    );
    assert_eq!(february["totals"]["adjustmentsUsd"].to_string(), "-2.200000001");

    // A plan does not reach back, and no month is closed before its time or out of turn.
    let late = set_plan(&server, &json!({ "effectiveFrom": "2026-01-31", "perTaskUsd": 1 })).await;
    assert_eq!((late.status.as_u16(), late.pointers()), (422, vec!["/effectiveFrom".to_owned()]));
    for (period, status) in [("2026-03", 409), ("2999-01", 409), ("2025-12", 409), ("2026-13", 404), ("x", 404)] {
        assert_eq!(close(&server, &server.admin, period).await.status, status, "{period}");
    }
    let months = server.get(&server.admin, "/v1/billing/periods?team=platform").await.json();
    let named =
        |name: &str| months["data"].as_array().expect("months").iter().find(|month| month["period"] == name).cloned();
    assert_eq!(named("2026-01").expect("january")["status"], "closed");
    assert_eq!(named("2026-02").expect("february")["status"], "open");
    // All bills together are all that was used; only minima come on top.
    let usage = server.get(&server.admin, "/v1/usage?team=platform").await.json();
    let nanos = |value: &Value| {
        let text = value.to_string();
        let (sign, text) = text.strip_prefix('-').map_or((1, &*text), |text| (-1, text));
        sign * NanoUsd::parse_decimal(text).expect("an amount").nanos()
    };
    let billed: i64 = months["data"].as_array().expect("months").iter().map(|month| nanos(&month["billableUsd"])).sum();
    assert_eq!(billed - 900_000_000, nanos(&usage["total"]["billableUsd"]));

    // A rebuild shows the same, to the byte.
    server.app.read.rebuild(&*server.store).await.expect("a rebuild");
    assert_eq!(server.get(&server.admin, "/v1/billing/periods/2026-01?team=platform").await.text(), bill.text());
}

#[actix_web::test]
async fn pages_and_csv_have_the_same_lines() {
    let server = Server::start().await;
    for day in 1..=5 {
        used(&server, Some("=Acme, \"Inc\""), &format!("2026-01-0{day}T12:00:00Z"), 1_000_000_007 * day).await;
    }
    let path = "/v1/billing/periods/2026-01?team=platform";
    let whole = server.get(&server.admin, path).await.json();
    let lines = whole["lines"].as_array().expect("lines").clone();
    assert_eq!((lines.len(), &whole["nextCursor"]), (5, &Value::Null));
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&server.admin, &format!("{path}&limit=2{cursor}")).await.json();
        paged.extend(page["lines"].as_array().expect("lines").clone());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(paged, lines);
    let csv = server.get(&server.admin, &format!("{path}&format=csv")).await;
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    let mut rows = csv.text().trim_end().split("\r\n");
    let head: Vec<_> = rows.next().expect("a head").split(',').collect();
    for (row, line) in rows.zip(&lines) {
        let row = row.replace("\"'=Acme, \"\"Inc\"\"\"", "ACME");
        let cells: Vec<_> = row.split(',').collect();
        assert_eq!(cells.len(), head.len());
        for (name, cell) in head.iter().zip(cells) {
            let expected = match &line[*name] {
                Value::Null => String::new(),
                Value::String(_) if *name == "customer" => "ACME".to_owned(),
                Value::String(text) => text.clone(),
                number => number.to_string(),
            };
            assert_eq!(cell, expected, "{name}");
        }
    }
    assert_eq!(csv.text().lines().count(), 6);
    let other = server.get(&server.admin, &format!("{path}&customer=Nobody")).await.json();
    assert_eq!((&other["lines"], &other["totals"]["lines"]), (&json!([]), &json!(0)));
    for (query, pointer) in
        [("limit=0", "?limit"), ("cursor=x", "?cursor"), ("format=xml", "?format"), ("cutsomer=a", "?cutsomer")]
    {
        assert_eq!(server.get(&server.admin, &format!("{path}&{query}")).await.pointers(), [pointer], "{query}");
    }
}

/// Everything that a bill says, page by page.
async fn paged(server: &Server, path: &str, limit: usize) -> (Vec<Value>, Vec<Value>) {
    let (mut lines, mut intact, mut cursor) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = server.get(&server.admin, &format!("{path}&limit={limit}{cursor}")).await.json();
        let found = page["lines"].as_array().expect("lines");
        assert!(found.len() <= limit && (!found.is_empty() || cursor.is_empty()), "{page}");
        lines.extend(found.clone());
        intact.push(page["intact"].clone());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (lines, intact),
        }
    }
}

#[actix_web::test]
async fn every_page_goes_on_where_the_one_before_ended_whatever_the_lines_are() {
    let server = Server::start().await;
    set_plan(&server, &json!({ "effectiveFrom": "2026-01-01", "markUpBasisPoints": 1_000, "minimumUsd": 9 })).await;
    for day in 1..=3 {
        for customer in [None, Some("Acme"), Some("B\u{f6}hm & Co"), Some("{\"a\":1}")] {
            used(&server, customer, &format!("2026-01-0{day}T12:00:00Z"), 1_000_000_007 * day).await;
        }
    }
    let path = "/v1/billing/periods/2026-01?team=platform";
    for status in ["open", "closed"] {
        let whole = server.get(&server.admin, path).await.json();
        assert_eq!(whole["status"], status);
        let lines = whole["lines"].as_array().expect("lines").clone();
        // Three days of four customers, and what each of them is short of.
        assert_eq!((lines.len(), &whole["totals"]["lines"]), (16, &json!(16)));
        let numbers: Vec<_> = lines.iter().filter_map(|line| line["number"].as_u64()).collect();
        assert!(numbers.iter().copied().eq(1..=16), "{numbers:?}");
        assert_eq!(lines.iter().filter(|line| line["kind"] == "minimum").count(), 4);
        for limit in [1, 3, 5, 12, 13, 16, 17] {
            let (found, intact) = paged(&server, path, limit).await;
            assert_eq!(found, lines, "{limit} at a time");
            let expected = if status == "closed" { json!(true) } else { Value::Null };
            assert_eq!(intact[0], expected);
            assert!(intact[1..].iter().all(Value::is_null));
        }
        for (name, asked) in [("Acme", "Acme"), ("B\u{f6}hm & Co", "B%C3%B6hm%20%26%20Co")] {
            let own: Vec<_> = lines.iter().filter(|line| line["customer"] == name).cloned().collect();
            let of_one = format!("{path}&customer={asked}");
            for limit in [1, 2, 3, 4] {
                assert_eq!(paged(&server, &of_one, limit).await.0, own, "{name}, {limit} at a time");
            }
            let totals = server.get(&server.admin, &of_one).await.json()["totals"].clone();
            assert_eq!((own.len(), &totals["lines"]), (4, &json!(4)));
            assert_eq!(totals["billableUsd"], json!(9.0));
            let csv = server.get(&server.admin, &format!("{of_one}&format=csv")).await;
            assert_eq!(csv.text().lines().count(), 5);
        }
        if status == "open" {
            assert_eq!(close(&server, &server.admin, "2026-01").await.status, 200);
        }
    }
    for cursor in ["7", "zz", "7b7d", &"00".repeat(5_000)] {
        assert_eq!(server.get(&server.admin, &format!("{path}&cursor={cursor}")).await.pointers(), ["?cursor"]);
    }
}

#[actix_web::test]
async fn a_csv_of_many_pieces_has_every_line_once() {
    let server = Server::start().await;
    // More than two pieces, written into the ledger alone: a line for each model.
    let id = used(&server, None, "2026-01-10T12:00:00Z", 1).await;
    for number in 0..4_100 {
        let usage = Usage { input_tokens: 1, ..Usage::default() };
        let at = time("2026-01-11T12:00:00Z");
        settle(&server, id, "platform", &format!("model-{number:05}"), at, usage, NanoUsd::from_nanos(3)).await;
    }
    let path = "/v1/billing/periods/2026-01?team=platform";
    let csv = server.get(&server.admin, &format!("{path}&format=csv")).await;
    let numbers: Vec<u64> = csv
        .text()
        .lines()
        .skip(1)
        .map(|line| line.split(',').next().and_then(|number| number.parse().ok()).expect("a number"))
        .collect();
    let whole = server.get(&server.admin, path).await.json();
    assert_eq!(Some(numbers.len() as u64), whole["totals"]["lines"].as_u64());
    assert!(numbers.len() > 4_100 && numbers.iter().copied().eq(1..=numbers.len() as u64));
}

#[actix_web::test]
async fn a_bill_is_pushed_only_to_whom_is_told_of_it() {
    let server = Server::start().await;
    used(&server, None, "2026-01-10T12:00:00Z", 1).await;
    assert_eq!(close(&server, &server.admin, "2026-01").await.status, 200);
    let path = "/v1/billing/periods/2026-01/push?team=platform";
    for (change, status) in [
        (json!({ "events": ["task.*"] }), 422),
        (json!({ "events": ["billing.period-closed"] }), 422),
        (json!({ "events": ["billing.*"], "projects": ["infra"] }), 422),
        (json!({ "events": ["*"], "environments": ["production"] }), 422),
        (json!({ "events": ["billing.*"] }), 202),
        (json!({ "events": ["billing.invoice-ready", "billing.period-closed"], "team": null }), 202),
    ] {
        let mut body = json!({ "url": "https://receiver.example/hook", "team": "platform" });
        for (name, value) in change.as_object().expect("an object") {
            match value {
                Value::Null => drop(body.as_object_mut().expect("an object").remove(name)),
                value => body[name] = value.clone(),
            }
        }
        let made = server.post(&server.admin, "/v1/webhooks", &body.to_string()).await;
        assert_eq!(made.status, 201, "{made:?}");
        let asked = json!({ "webhook": made.json()["id"] }).to_string();
        let answer = server.post(&server.admin, path, &asked).await;
        assert_eq!(answer.status.as_u16(), status, "{body} {answer:?}");
        if status == 422 {
            assert_eq!(answer.pointers(), ["/webhook"]);
        }
        let month = server.get(&server.admin, "/v1/billing/periods?team=platform").await.json();
        let january = month["data"].as_array().expect("months").iter().find(|month| month["period"] == "2026-01");
        let pushed = january.expect("it is closed")["pushedTo"].as_array().expect("a list").clone();
        assert_eq!(pushed.contains(&made.json()["id"]), status == 202, "{month}");
    }
}

#[actix_web::test]
async fn a_team_sees_and_closes_its_own_bills_and_no_other_teams() {
    let server = Server::start().await;
    used(&server, None, "2026-01-10T12:00:00Z", 1).await;
    let own = server.key(Some("platform"), &[Scope::BillingRead]).await;
    let writer = server.key(Some("platform"), &[Scope::BillingRead, Scope::BillingWrite]).await;
    let other = server.key(Some("mobile"), &[Scope::BillingRead, Scope::BillingWrite]).await;
    let none = server.key(Some("platform"), &[Scope::UsageRead]).await;
    let plan = json!({ "effectiveFrom": "2026-01-01", "markUpBasisPoints": 1 });
    for path in
        ["/v1/billing/plans/platform", "/v1/billing/periods?team=platform", "/v1/billing/periods/2026-01?team=platform"]
    {
        assert_eq!(server.get(&own, path).await.status, 200, "{path}");
        assert_eq!(server.get(&other, path).await.code(), "not-found", "{path}");
        assert_eq!(server.get(&none, path).await.code(), "forbidden", "{path}");
    }
    // A key's own team goes without saying; an operator's key has none.
    assert_eq!(server.get(&own, "/v1/billing/periods").await.json()["data"][0]["team"], "platform");
    assert_eq!(server.get(&other, "/v1/billing/periods").await.json()["data"], json!([]));
    assert_eq!(server.get(&server.admin, "/v1/billing/periods").await.pointers(), ["?team"]);
    let path = "/v1/billing/plans/platform";
    assert_eq!(server.send(put(&own, path, &plan)).await.code(), "forbidden");
    assert_eq!(server.send(put(&other, path, &plan)).await.code(), "not-found");
    assert_eq!(server.send(put(&writer, path, &plan)).await.status, 200);
    assert_eq!(close(&server, &own, "2026-01").await.code(), "forbidden");
    assert_eq!(close(&server, &other, "2026-01").await.code(), "not-found");
    assert_eq!(close(&server, &writer, "2026-01").await.status, 200);
    for team in ["a%20b", "", "team:a", "a%2Fb"] {
        assert_eq!(server.get(&server.admin, &format!("/v1/billing/plans/{team}")).await.code(), "not-found", "{team}");
    }
}
