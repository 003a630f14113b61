//! A bill that was closed stays what it was, whatever happens later; and the report, the bills and the ledger are the same
//! money: with a real server that refunds, is killed in the middle of a call, and is told of a refund a month late.

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use orchestra_events::ledger::event::Refunded;
use orchestra_events::ledger::{Amount, Cap, LedgerEvent, Path, Reserved, Settled};
use orchestra_events::repo::RepoRef;
use orchestra_events::store::sqlite::SqliteStore;
use orchestra_events::task::conversation::Usage;
use orchestra_events::task::event::{Budget, Harness};
use orchestra_events::task::{TaskEvent, TaskSpec};
use orchestra_events::{
    Actor, CallId, EventId, EventStore as _, Expected, FailureCode, NanoUsd, NewEvent, StreamName, TaskId,
};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{House, PATIENCE, Setup, bash, count, done, nano_usd, program};
use crate::webhooks::receiver::{Answer, Receiver};

/// The task of last month, and what its call cost.
pub const OLD_NANOS: i64 = 1_234_567_891;

fn conversation(name: &str, turns: Value) -> Value {
    json!({ "match": format!("<{name}>"), "turns": turns })
}

fn spec(team: &str) -> TaskSpec {
    TaskSpec {
        repo: RepoRef::parse("acme/api", "local").unwrap(),
        task: "Done a month ago".to_owned(),
        model: "claude-sonnet-4-6".to_owned(),
        harness: Harness::Builtin,
        command: Vec::new(),
        retry: None,
        team: team.to_owned(),
        project: Some("infra".to_owned()),
        environment: None,
        task_type: None,
        customer: Some("Acme, Inc".to_owned()),
        budget: Budget::default(),
        base: None,
        branch: "orchestra/old".to_owned(),
        further: Vec::new(),
        pull_request: None,
        campaign: None,
        image: "default".to_owned(),
        egress: Vec::new(),
        timeout_seconds: 60,
        metadata: serde_json::Map::new(),
        request_hash: None,
        caller_brings_model_key: false,
        caller_brings_git_token: false,
    }
}

/// Writes into the log of a server that does not run.
async fn append(house: &House, stream: StreamName, time: Timestamp, events: Vec<(&str, Box<RawValue>)>) {
    let store = SqliteStore::open(house.data().join("events.db")).unwrap();
    let new = |(kind, data): (&str, _)| NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: kind.into(),
        schema: 1,
        time,
        actor: Actor::system("test"),
        correlation: None,
        causation: None,
        data,
        private: None,
    };
    let events = events.into_iter().map(new).collect();
    store.append(&stream, Expected::Any, events).await.unwrap();
}

fn ledger(team: &str) -> StreamName {
    StreamName::ledger(team).unwrap()
}

fn of_ledger(event: &LedgerEvent) -> (&'static str, Box<RawValue>) {
    (event.kind(), event.data().unwrap())
}

/// A task of last month: created, paid for, over.
pub async fn seed_last_month(house: &House, team: &str, day: Date) -> TaskId {
    let time = day.at(12, 0, 0, 0).to_zoned(TimeZone::UTC).unwrap().timestamp();
    let (task, call) = (TaskId::from_uuid(Uuid::now_v7()), CallId::from_uuid(Uuid::now_v7()));
    let usage = Usage { input_tokens: 11, output_tokens: 13, ..Usage::default() };
    let cost = NanoUsd::from_nanos(OLD_NANOS);
    let price = "test".to_owned();
    let charged = TaskEvent::TokensCharged {
        call,
        model: spec(team).model,
        usage,
        cost_nano_usd: cost,
        confirmed: true,
        price: price.clone(),
        stop_reason: None,
    };
    let events = [TaskEvent::Created(Box::new(spec(team))), charged, TaskEvent::Cancelled {}];
    let of_task = events.iter().map(|event| (event.kind(), event.data().unwrap())).collect();
    append(house, StreamName::task(task), time, of_task).await;
    let reserved = Reserved {
        call,
        task,
        path: Path::from(&spec(team)),
        day,
        days: BTreeMap::new(),
        reserved_nano_usd: cost,
        reserved_tokens: usage.total(),
        max_output_tokens: 13,
        model: spec(team).model,
        price: price.clone(),
        own: Cap::default(),
        opening: Amount::ZERO,
        campaign: None,
    };
    let settled = Settled { call, task, usage, cost_nano_usd: cost, confirmed: true, price };
    let events = [LedgerEvent::Reserved(Box::new(reserved)), LedgerEvent::Settled(Box::new(settled))];
    // Settled after midnight: it counts to the day before all the same.
    append(house, ledger(team), time + SignedDuration::from_hours(13), events.iter().map(of_ledger).collect()).await;
    task
}

/// What the ledger's own events come to: charged and refunded.
async fn ledger_sums(house: &House) -> (u64, u64) {
    let events = house.log_of("ledger-platform").await;
    let sum = |kind: &str, field: &str| {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind.map(|event| event["data"][field].as_u64().unwrap()).sum()
    };
    (sum("settled", "costNanoUsd"), sum("refunded", "nanoUsd"))
}

async fn total(house: &House) -> Value {
    house.api.get("/v1/usage?team=platform").await.1["total"].clone()
}

/// The lines of a bill from its CSV, as the JSON has them.
fn read_csv(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut rows = text.trim_end().split("\r\n").map(|row| row.replace("\"Acme, Inc\"", "Acme; Inc"));
    let head: Vec<_> = rows.next().unwrap().split(',').map(str::to_owned).collect();
    rows.map(|row| head.iter().cloned().zip(row.split(',').map(|cell| cell.replace(';', ","))).collect()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_bill_stays_and_the_report_the_bills_and_the_ledger_are_the_same_money() {
    let slow = json!([{ "text": "Wait for it, it takes a while.", "tools": [], "fault": { "kind": "stall", "times": 1 } }, done()]);
    let script = json!([
        conversation("well", json!([bash("echo once >> log.txt"), done()])),
        conversation(
            "badly",
            json!([bash("echo once >> log.txt"), {"text": "cut off in the middle of these words", "fault": { "kind": "truncate" }}])
        ),
        conversation("killed", slow),
    ]);
    let more = "[retry]\nmost_failures = 2\nfirst_wait = \"20ms\"\n[webhooks]\nnetworks = [\"127.0.0.0/8\"]";
    let mut house = Setup::new(script).without_retry().config(more).open().await;
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let this_month = today.strftime("%Y-%m").to_string();
    let old_day = today.first_of_month().checked_sub(3.days()).unwrap();
    let last_month = old_day.strftime("%Y-%m").to_string();
    house.kill().await;
    let old = seed_last_month(&house, "platform", old_day).await;
    house.restart().await;

    // A plan for all of it, then the month is closed: once, and for good.
    let plan = json!({ "effectiveFrom": old_day.first_of_month().to_string(), "markUpBasisPoints": 1_500 });
    let (status, answer) = house.api.put("/v1/billing/plans/platform", &plan).await;
    assert_eq!(status, 200, "{answer}");
    let close = format!("/v1/billing/periods/{last_month}/close?team=platform");
    let (status, closed) = house.api.post(&close, &json!({})).await;
    assert_eq!((status, &closed["status"]), (200, &json!("closed")), "{closed}");
    assert_eq!(nano_usd(&closed["costUsd"]), u64::try_from(OLD_NANOS).unwrap());
    assert_eq!(nano_usd(&closed["billableUsd"]), 1_419_753_075, "1234567891 and 15 per cent, to the nearest");
    assert_eq!(house.api.post(&close, &json!({})).await, (200, closed));
    let running = format!("/v1/billing/periods/{this_month}/close?team=platform");
    assert_eq!(house.api.post(&running, &json!({})).await.0, 409, "this month is not over");
    assert_eq!(
        house
            .api
            .put(
                "/v1/billing/plans/platform",
                &json!({
        "effectiveFrom": old_day.to_string(), "perTaskUsd": 1 })
            )
            .await
            .0,
        422,
        "it reaches back"
    );
    let bill_of = |month: &str| format!("/v1/billing/periods/{month}?team=platform");
    let csv = house.api.text(&format!("{}&format=csv", bill_of(&last_month))).await;

    // Pushed to a metering endpoint, twice: the same messages under the same ids, each line with its own key.
    let meter = Receiver::start(|_, _| Answer::Status(200)).await;
    let hook =
        json!({ "url": meter.url(), "events": ["billing.invoice-ready", "billing.period-closed"], "team": "platform" });
    let (status, hook) = house.api.post("/v1/webhooks", &hook).await;
    assert_eq!(status, 201, "{hook}");
    let push = json!({ "webhook": hook["id"] });
    let push_to = |month: &str| format!("/v1/billing/periods/{month}/push?team=platform");
    assert_eq!(house.api.post(&push_to(&this_month), &push).await.0, 409, "there is no bill yet");
    for _ in 0..2 {
        let (status, pushed) = house.api.post(&push_to(&last_month), &push).await;
        assert_eq!((status, &pushed["pushedTo"]), (202, &json!([hook["id"]])), "{pushed}");
    }
    let got = meter.until("both have arrived", |got| got.len() >= 4).await;
    let mut bodies: BTreeMap<&str, &Value> = BTreeMap::new();
    for got in &got {
        assert!(got.is_signed_with(hook["secret"].as_str().unwrap()));
        assert_eq!(*bodies.entry(&got.id).or_insert(&got.body), &got.body);
    }
    let kinds: Vec<_> = got[..2].iter().map(|got| got.body["type"].as_str().unwrap()).collect();
    assert_eq!((kinds, bodies.len()), (vec!["billing.invoice-ready", "billing.period-closed"], 2));
    let line = &got[0].body["data"]["data"]["lines"][0];
    assert_eq!(line["idempotencyKey"], json!(format!("platform/{last_month}/1")));
    assert_eq!(line["billableNanoUsd"], json!(1_419_753_075));
    let bill = house.api.text(&bill_of(&last_month)).await;

    // Work that succeeds, work that is refunded, and work whose server is killed while the model speaks.
    let well = house.submit(json!({ "task": "Do <well>.", "customer": "Acme, Inc" })).await;
    assert_eq!(house.ended(&well).await["status"], "succeeded");
    let badly = house.submit(json!({ "task": "Do <badly>." })).await;
    assert_eq!(house.ended(&badly).await["status"], "failed");
    assert_eq!(count(&house.events(&badly).await, "refund-granted"), 1);
    let killed = house.submit(json!({ "task": "Do <killed>." })).await;
    house.event(&killed, "model-called").await;
    house.kill().await;
    let late = Refunded {
        task: old,
        nano_usd: NanoUsd::from_nanos(OLD_NANOS),
        reason: FailureCode::Internal,
        day: Some(old_day),
        usage: Usage::default(),
    };
    append(&house, ledger("platform"), Timestamp::now(), vec![of_ledger(&LedgerEvent::Refunded(late))]).await;
    house.restart().await;
    house.ended(&killed).await;

    // The closed bill is what it was, to the byte; the refund stands on this month's.
    assert_eq!(house.api.text(&bill_of(&last_month)).await, bill);
    assert_eq!(house.api.text(&format!("{}&format=csv", bill_of(&last_month))).await, csv);
    let (_, open) = house.api.get(&bill_of(&this_month)).await;
    let lines = open["lines"].as_array().unwrap();
    let adjustments: Vec<_> = lines.iter().filter(|line| line["kind"] == "adjustment").collect();
    assert_eq!(adjustments.len(), 1, "{open:#}");
    assert_eq!(adjustments[0]["corrects"], json!(last_month));
    assert_eq!(adjustments[0]["billableUsd"].to_string(), "-1.419753075");

    // The same lines as CSV.
    let cells = read_csv(&house.api.text(&format!("{}&format=csv", bill_of(&this_month))).await);
    assert_eq!(cells.len(), lines.len());
    for (row, line) in cells.iter().zip(lines) {
        for (name, cell) in row {
            let expected = match &line[name] {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                number => number.to_string(),
            };
            assert_eq!(*cell, expected, "{name}");
        }
    }

    // The report is the ledger, and the bills together are the report.
    let report = total(&house).await;
    let (charged, refunded) = ledger_sums(&house).await;
    assert_eq!((nano_usd(&report["costUsd"]), nano_usd(&report["refundedUsd"])), (charged, refunded));
    assert!(refunded > u64::try_from(OLD_NANOS).unwrap(), "the failed attempt was refunded too");
    let (_, months) = house.api.get("/v1/billing/periods?team=platform").await;
    let of_months =
        |name: &str| months["data"].as_array().unwrap().iter().map(|month| nano_usd(&month[name])).sum::<u64>();
    assert_eq!((of_months("costUsd"), of_months("refundedUsd")), (charged, refunded));
    for id in [&well, &badly, &killed] {
        let task = house.task(id).await;
        let of_ledger = house.log_of("ledger-platform").await;
        let own = of_ledger.iter().filter(|event| event["type"] == "settled" && event["data"]["task"] == json!(id));
        let sum: u64 = own.map(|event| event["data"]["costNanoUsd"].as_u64().unwrap()).sum();
        assert_eq!(nano_usd(&task["usage"]["costUsd"]), sum, "{id}");
    }

    // The same from a terminal, and after the read models were thrown away.
    let printed = program()
        .args(["billing", "invoice", &last_month, "--team", "platform", "--csv", "--server", &house.api.base])
        .env("ORCHESTRA_KEY", house.api.key())
        .output();
    let printed = tokio::time::timeout(PATIENCE, printed).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), csv);
    house.kill().await;
    let rebuilt = program().args(["projections", "rebuild", "--data"]).arg(house.data()).output();
    let rebuilt = tokio::time::timeout(PATIENCE, rebuilt).await.unwrap().unwrap();
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    house.restart().await;
    assert_eq!(house.api.text(&bill_of(&last_month)).await, bill);
    assert_eq!(total(&house).await, report);
}
