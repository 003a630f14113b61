//! Usage: the report equals the sum of the events, in every grouping, before and after a rebuild.

use std::collections::BTreeMap;

use jiff::Timestamp;
use orchestra_events::ledger::{Amount, Cap, LedgerEvent, Path, Reserved, Settled};
use orchestra_events::task::TaskEvent;
use orchestra_events::task::conversation::Usage;
use orchestra_events::{Actor, CallId, EventId, EventStore as _, Expected, NanoUsd, NewEvent, StreamName, TaskId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Server, example};

fn cost_of(number: u64) -> NanoUsd {
    NanoUsd::from_nanos(i64::try_from(number).expect("small") * 1_000_000_007 + 1)
}

/// Sets a call aside and pays for it, as the ledger writes it down.
pub async fn settle(
    server: &Server,
    task: TaskId,
    team: &str,
    model: &str,
    time: Timestamp,
    usage: Usage,
    cost: NanoUsd,
) {
    let (call, price) = (CallId::from_uuid(Uuid::now_v7()), "test".to_owned());
    let reserved = Reserved {
        call,
        task,
        path: Path::team(team),
        day: time.to_zoned(jiff::tz::TimeZone::UTC).date(),
        days: BTreeMap::new(),
        reserved_nano_usd: cost,
        reserved_tokens: usage.total(),
        max_output_tokens: usage.output_tokens,
        model: model.to_owned(),
        price: price.clone(),
        own: Cap::default(),
        opening: Amount::ZERO,
        campaign: None,
    };
    let settled = Settled { call, task, usage, cost_nano_usd: cost, confirmed: true, price };
    let events = [LedgerEvent::Reserved(Box::new(reserved)), LedgerEvent::Settled(Box::new(settled))];
    let new = |event: &LedgerEvent| NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: event.kind().into(),
        schema: 1,
        // It is settled after midnight, and counts to the day before all the same.
        time: time + jiff::SignedDuration::from_hours(2),
        actor: Actor::system("ledger"),
        correlation: None,
        causation: None,
        data: event.data().expect("JSON"),
        private: None,
    };
    let ledger = StreamName::ledger(team).expect("a team");
    let events = events.iter().map(new).collect();
    server.store.append(&ledger, Expected::Any, events).await.expect("an append");
}

async fn seeded() -> (Server, Usage, NanoUsd) {
    let server = Server::start().await;
    let (mut usage, mut cost) = (Usage::default(), NanoUsd::ZERO);
    for number in 0..12_u64 {
        let mut body = example();
        body["team"] = json!(if number % 3 == 0 { "mobile" } else { "platform" });
        body["customer"] = if number % 2 == 0 { json!("=Acme, Inc") } else { Value::Null };
        body["model"] = json!(format!("model-{}", number % 4));
        let id = server.task(&server.admin, &body).await;
        let time: Timestamp = format!("2026-11-{:02}T23:59:59.5Z", 10 + number % 3).parse().expect("a time");
        let used = Usage {
            input_tokens: number,
            output_tokens: number * 2,
            cache_read_tokens: 3,
            cache_write5m_tokens: 4,
            cache_write1h_tokens: 5,
        };
        let charge = TaskEvent::TokensCharged {
            call: CallId::from_uuid(Uuid::now_v7()),
            model: format!("model-{}", number % 4),
            usage: used,
            cost_nano_usd: cost_of(number),
            confirmed: true,
            price: "test".to_owned(),
            stop_reason: None,
        };
        if let TaskEvent::TokensCharged { usage: used, cost_nano_usd, .. } = &charge {
            usage += *used;
            cost += *cost_nano_usd;
        }
        server.service.record(id, vec![charge], &Actor::system("test"), time).await;
        let team = body["team"].as_str().expect("a team").to_owned();
        let (model, nanos) = (body["model"].as_str().expect("a model"), cost_of(number));
        settle(&server, id, &team, model, time, used, nanos).await;
    }
    (server, usage, cost)
}

const GROUPINGS: [&str; 5] =
    ["", "team", "team,customer", "month,model", "project,environment,taskType,team,day,customer,model"];

#[actix_web::test]
async fn every_grouping_adds_up_to_the_events() {
    let (server, usage, cost) = seeded().await;
    for grouping in GROUPINGS {
        let answer = server.get(&server.admin, &format!("/v1/usage?groupBy={grouping}")).await;
        let report = answer.json();
        assert_eq!(report["total"]["tasks"], 12, "{grouping}");
        let sum = |name: &str| {
            let groups = report["groups"].as_array().expect("a list");
            groups.iter().map(|group| group[name].as_u64().expect("a number")).sum::<u64>()
        };
        assert_eq!(sum("tasks"), 12, "{grouping}");
        assert_eq!(sum("inputTokens"), usage.input_tokens, "{grouping}");
        assert_eq!(sum("outputTokens"), usage.output_tokens, "{grouping}");
        assert_eq!(sum("cacheReadTokens"), usage.cache_read_tokens, "{grouping}");
        assert_eq!(sum("cacheWriteTokens"), usage.cache_write_tokens(), "{grouping}");
        assert!(
            answer
                .text()
                .ends_with(&format!(r#""costUsd":{cost},"billableUsd":{cost},"refundedUsd":0.0,"sandboxMs":0}}}}"#)),
            "{}",
            answer.text()
        );
    }
    let teams = server.get(&server.admin, "/v1/usage?groupBy=team").await.json();
    assert_eq!(teams["groups"][0]["team"], "mobile");
    assert_eq!((&teams["groups"][0]["tasks"], &teams["groups"][1]["tasks"]), (&json!(4), &json!(8)));
    let customers = server.get(&server.admin, "/v1/usage?groupBy=customer").await.json();
    assert_eq!(customers["groups"][0]["customer"], Value::Null);
    let one_day = server.get(&server.admin, "/v1/usage?from=2026-11-11&to=2026-11-11").await.json();
    assert_eq!(one_day["total"]["inputTokens"], 1 + 4 + 7 + 10);
    let by_time = "/v1/usage?from=2026-11-11T00:00:00Z&to=2026-11-11T23:00:00Z";
    assert_eq!(server.get(&server.admin, by_time).await.json(), one_day);
    for (query, pointer) in [
        ("groupBy=tema", "?groupBy"),
        ("from=soon", "?from"),
        ("groupBy=team,team", "?groupBy"),
        ("format=xml", "?format"),
    ] {
        assert_eq!(server.get(&server.admin, &format!("/v1/usage?{query}")).await.pointers(), [pointer], "{query}");
    }
}

#[actix_web::test]
async fn the_csv_says_the_same_and_runs_no_formula() {
    let (server, _, cost) = seeded().await;
    let answer = server.get(&server.admin, "/v1/usage?groupBy=customer&format=csv").await;
    assert_eq!(answer.header("content-type"), Some("text/csv; charset=utf-8"));
    let lines: Vec<_> = answer.text().split("\r\n").collect();
    assert_eq!(
        lines[0],
        "customer,tasks,inputTokens,outputTokens,cacheReadTokens,cacheWriteTokens,costUsd,billableUsd,refundedUsd,\
         sandboxMs"
    );
    assert!(lines[2].starts_with("\"'=Acme, Inc\",6,"), "{}", lines[2]);
    let nanos = |line: &str| {
        let amount = line.rsplit(',').nth(2).expect("a field");
        NanoUsd::parse_decimal(amount).expect("an amount")
    };
    assert_eq!(nanos(lines[1]) + nanos(lines[2]), cost);
}

#[actix_web::test]
async fn a_rebuild_gives_the_same_rows() {
    let (server, ..) = seeded().await;
    let look = async || {
        let mut all = vec![server.get(&server.admin, "/v1/tasks?limit=200").await.text().to_owned()];
        for grouping in GROUPINGS {
            all.push(server.get(&server.admin, &format!("/v1/usage?groupBy={grouping}")).await.text().to_owned());
        }
        all
    };
    let before = look().await;
    let at = server.app.read.rebuild(&*server.store).await.expect("a rebuild");
    assert_eq!(at, orchestra_events::EventStore::head(&*server.store).await.expect("a head"));
    assert_eq!(look().await, before);
}
