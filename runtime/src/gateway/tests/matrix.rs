//! The fault matrix: every fault, before and after the first byte, streamed and not, in each dialect. What was tried, how
//! long was waited, what the caller saw, what the ledger was told, what was charged.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use orchestra_events::FailureCode as Code;
use tokio::sync::Notify;

use super::house::*;
use crate::model::FaultClass as Class;
use crate::model::Timeouts;

/// What a failed attempt costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Costs {
    /// It is released.
    Nothing,
    /// All that was set aside for it.
    Bound,
    /// In Anthropic's dialect the input is known by then, and this much output at most; in the others the bound.
    Begun(u64),
    /// All is known.
    Known,
}

/// The half of `0.5, 1, 2, 4` seconds, which is what chance says here.
const BACK_OFF: &[u64] = &[250, 500, 1_000, 2_000];

struct Row {
    what: &'static str,
    act: fn(Speaks) -> Act,
    class: Class,
    code: Code,
    waits: &'static [u64],
    costs: Costs,
    /// What the caller is told when nothing of a reply was passed on: in Anthropic's dialect and in OpenAI's.
    status: (u16, u16),
    retry_after: Option<&'static str>,
    should_retry: Option<&'static str>,
}

const fn row(what: &'static str, act: fn(Speaks) -> Act, class: Class, code: Code, costs: Costs, status: u16) -> Row {
    Row {
        what,
        act,
        class,
        code,
        waits: BACK_OFF,
        costs,
        status: (status, status),
        retry_after: None,
        should_retry: None,
    }
}

impl Row {
    /// Trying again would not help.
    const fn once(self) -> Self {
        Self { waits: &[], should_retry: Some("false"), ..self }
    }

    const fn asks(self, waits: &'static [u64], retry_after: &'static str) -> Self {
        Self { waits, retry_after: Some(retry_after), ..self }
    }

    const fn openai(self, status: u16) -> Self {
        Self { status: (self.status.0, status), ..self }
    }

    fn status(&self, speaks: Speaks) -> u16 {
        if speaks == Speaks::Messages { self.status.0 } else { self.status.1 }
    }

    fn charge(&self, speaks: Speaks, reserved: i64) -> Option<i64> {
        match (self.costs, speaks) {
            (Costs::Nothing, _) => None,
            (Costs::Known, _) => Some(speaks.cost()),
            (Costs::Begun(output), Speaks::Messages) => Some(10 * 3_000 + output.cast_signed() * 15_000),
            (Costs::Begun(_) | Costs::Bound, _) => Some(reserved),
        }
    }
}

fn status(status: &str, headers: &str, body: &str) -> Act {
    Act::status(status, headers, body)
}

/// The first three events.
fn begun(speaks: Speaks) -> String {
    speaks.events()[..3].concat()
}

const HTML: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>";

/// Faults before anything could be passed on.
fn before() -> Vec<Row> {
    use Costs::{Begun, Bound, Nothing};
    let limited = |act, waits, after| {
        row("429", act, Class::RateLimited, Code::ModelRateLimited, Nothing, 429).asks(waits, after)
    };
    vec![
        limited(|_| status("429 Slow", "Retry-After: 2\r\n", "{}"), &[2_000, 2_000, 2_000, 2_000], "2"),
        limited(|_| status("429 Slow", "", "{}"), BACK_OFF, "5"),
        // The provider's own limits say when.
        limited(
            |_| {
                let limits = "anthropic-ratelimit-tokens-remaining: 0\r\nanthropic-ratelimit-tokens-reset: 2026-12-24T10:00:30Z\r\n";
                status("429 Slow", limits, "{}")
            },
            &[30_000, 500, 1_000, 2_000],
            "1",
        ),
        limited(|_| status("429 Slow", "Retry-After: 3600\r\n", "{}"), &[], "60"),
        row(
            "out of money",
            |_| status("429 Slow", "", r#"{"error":{"code":"insufficient_quota"}}"#),
            Class::SpendLimit,
            Code::ModelRateLimited,
            Nothing,
            429,
        )
        .once()
        .asks(&[], "5"),
        row("402", |_| status("402 Pay", "", "{}"), Class::SpendLimit, Code::ModelRateLimited, Nothing, 402).once(),
        row("529", |_| status("529 Busy", "", "{}"), Class::Overloaded, Code::ModelOverloaded, Nothing, 529),
        row("503", |_| status("503 Busy", "", "{}"), Class::Overloaded, Code::ModelOverloaded, Nothing, 503),
        row("500", |_| status("500 Oops", "", "<html>"), Class::ServerError, Code::ModelUnavailable, Nothing, 500),
        row("504", |_| status("504 Late", "", ""), Class::ServerError, Code::ModelUnavailable, Nothing, 504),
        row("408", |_| status("408 Late", "", ""), Class::ServerError, Code::ModelUnavailable, Nothing, 408),
        row("401", |_| status("401 No", "", "{}"), Class::Auth, Code::ModelAuth, Nothing, 401).once(),
        row("403", |_| status("403 No", "", "{}"), Class::Auth, Code::ModelAuth, Nothing, 403).once(),
        row("400", |_| status("400 Bad", "", "{}"), Class::Rejected, Code::ModelUnavailable, Nothing, 400).once(),
        row("404", |_| status("404 None", "", "{}"), Class::Rejected, Code::ModelUnavailable, Nothing, 404).once(),
        row(
            "redirect",
            |_| status("307 Moved", "Location: http://127.0.0.1:1/\r\n", ""),
            Class::Rejected,
            Code::ModelUnavailable,
            Nothing,
            502,
        )
        .once(),
        row("reset", |_| Act::raw("").then(Step::Reset), Class::Reset, Code::NetworkDropped, Nothing, 502),
        row("closed", |_| Act::raw(""), Class::Reset, Code::NetworkDropped, Nothing, 502),
        row("not HTTP", |_| Act::raw("SSH-2.0\r\n"), Class::Reset, Code::NetworkDropped, Nothing, 502),
        row("no byte", |_| Act::raw("").then(Step::Hang), Class::FirstByteTimeout, Code::ModelTimeout, Nothing, 504),
        row(
            "an error first",
            |speaks| Act::stream(&speaks.error("overloaded_error", "busy")),
            Class::Overloaded,
            Code::ModelOverloaded,
            Nothing,
            529,
        )
        .openai(503),
        row(
            "an error after a ping",
            |speaks| Act::stream(&format!(": hello\n\n{}", speaks.error("overloaded_error", "busy"))).in_pieces(9),
            Class::Overloaded,
            Code::ModelOverloaded,
            Nothing,
            529,
        )
        .openai(503),
        row(
            "an error with a 200",
            |_| status("200 OK", "", r#"{"error":{"code":"rate_limit_exceeded"}}"#),
            Class::RateLimited,
            Code::ModelRateLimited,
            Nothing,
            429,
        )
        .asks(BACK_OFF, "5"),
        // From here on, the provider has answered and may have worked.
        row("a login page", |_| Act::raw(HTML), Class::Malformed, Code::ModelUnavailable, Bound, 502),
        row("an empty stream", |_| Act::stream(""), Class::Truncated, Code::ModelTruncated, Bound, 502),
        row("no JSON", |_| Act::stream("data: {\n\n"), Class::Malformed, Code::ModelUnavailable, Bound, 502),
        row(
            "reset after the head",
            |_| Act::open_stream("").then(Step::Reset),
            Class::Reset,
            Code::NetworkDropped,
            Bound,
            502,
        ),
        row(
            "silence after the head",
            |_| Act::open_stream("").then(Step::Hang),
            Class::FirstByteTimeout,
            Code::ModelTimeout,
            Bound,
            504,
        ),
        row(
            "an error with the first event",
            |speaks| Act::stream(&[&speaks.events()[0], &*speaks.error("overloaded_error", "busy")].concat()),
            Class::Overloaded,
            Code::ModelOverloaded,
            Begun(256),
            529,
        )
        .openai(503),
    ]
}

/// Faults after three events, "Grüezi " among them.
fn after() -> Vec<Row> {
    use Costs::{Begun, Known};
    // Eight bytes were seen, and some may be on the way.
    let seen = Begun(8 + 256);
    vec![
        row("a clean end", |_| Act::raw(""), Class::Truncated, Code::ModelTruncated, seen, 502),
        row("a reset", |_| Act::raw("").then(Step::Reset), Class::Reset, Code::NetworkDropped, seen, 502),
        row("silence", |_| Act::raw("").then(Step::Hang), Class::IdleTimeout, Code::ModelTimeout, seen, 504),
        row(
            "an error",
            |speaks| Act::raw(speaks.error("overloaded_error", "busy")),
            Class::Overloaded,
            Code::ModelOverloaded,
            seen,
            529,
        )
        .openai(503),
        row("no JSON", |_| Act::raw("data: {\"ty\n\n"), Class::Malformed, Code::ModelUnavailable, seen, 502),
        row(
            "half an event",
            |speaks| Act::raw(speaks.events()[3].as_bytes()[..20].to_vec()),
            Class::Truncated,
            Code::ModelTruncated,
            seen,
            502,
        ),
        row(
            "all but the end",
            |speaks| {
                let events = speaks.events();
                // What is left of Chat without its reason to stop, and of Responses without its last event.
                let rest = match speaks {
                    Speaks::Messages => events[3..events.len() - 1].concat(),
                    Speaks::Chat | Speaks::Responses => events[3..4].concat().replace("\"stop\"", "null"),
                };
                Act::raw(rest)
            },
            Class::Truncated,
            Code::ModelTruncated,
            Known,
            502,
        ),
    ]
}

fn plan(speaks: Speaks, row: &Row) -> Plan {
    let late = matches!(row.class, Class::FirstByteTimeout | Class::IdleTimeout);
    let wait = if late { Duration::from_millis(250) } else { Duration::from_secs(20) };
    let timeouts = Timeouts { first_byte: wait, idle: wait, ..Timeouts::default() };
    Plan { timeouts, ..speaks.plan() }
}

fn reserved(house: &House) -> Vec<i64> {
    let reserved = |entry| if let Entry::Reserved(_, reservation) = entry { Some(reservation) } else { None };
    house.ledger.entries().into_iter().filter_map(reserved).map(|reservation| reservation.nano_usd.nanos()).collect()
}

/// What the ledger must have been told about so many failed attempts, and a good one after them.
fn check_ledger(house: &House, row: &Row, speaks: Speaks, failed: usize, recovered: bool, name: &str) {
    house.ledger.check();
    let reserved = reserved(house);
    let settlements = house.ledger.settlements();
    let retries = house.ledger.retries();
    let repeated = if recovered { failed } else { failed - 1 };
    assert_eq!(retries.len(), repeated, "{name}");
    for (index, retried) in retries.iter().enumerate() {
        assert_eq!((retried.class, retried.attempt as usize), (row.class, index + 1), "{name}");
        assert_eq!(retried.wait, house.clock.slept.lock().expect("slept")[index], "{name}");
    }
    let charge = row.charge(speaks, reserved[0]);
    let paid = if charge.is_some() { failed } else { 0 };
    assert_eq!(settlements.len(), paid + usize::from(recovered), "{name}");
    let mut sum = 0;
    for settlement in &settlements[..paid] {
        let known = row.costs == Costs::Known && speaks == Speaks::Messages;
        assert_eq!(settlement.confirmed, known, "{name}");
        assert_eq!(settlement.failure.as_ref().expect("a failure").code, row.code, "{name}");
        let expected = match (row.costs, speaks) {
            (Costs::Known, Speaks::Chat | Speaks::Responses) => reserved[0],
            _ => charge.expect("charged"),
        };
        assert_eq!(settlement.cost.nanos(), expected, "{name}");
        sum += expected;
    }
    if recovered {
        let last = settlements.last().expect("the good one");
        assert!(last.confirmed && last.failure.is_none(), "{name}");
        sum += speaks.cost();
    }
    assert_eq!(house.ledger.spent(), sum, "{name}");
    let released: Vec<_> = house
        .ledger
        .entries()
        .into_iter()
        .filter_map(|entry| if let Entry::Released(_, code) = entry { Some(code) } else { None })
        .collect();
    let expected = if charge.is_none() && !recovered { vec![Some(row.code)] } else { vec![] };
    assert_eq!(released, expected, "{name}");
    // A charged attempt has used its reservation up; any other goes on with it.
    let expected = if charge.is_some() { failed + usize::from(recovered) } else { 1 };
    assert_eq!(reserved.len(), expected, "{name}");
}

fn check_refusal(got: &Got, row: &Row, speaks: Speaks, name: &str) {
    assert_eq!((got.status, got.clean), (row.status(speaks), true), "{name}: {}", got.text());
    assert_eq!(got.header("retry-after"), row.retry_after, "{name}");
    assert_eq!(got.header("x-should-retry"), row.should_retry, "{name}");
    let body = got.json();
    let message = body["error"]["message"].as_str().unwrap_or_else(|| panic!("{name}: {body}"));
    assert!(message.contains(if speaks == Speaks::Messages { "anthropic" } else { "openai" }), "{name}: {message}");
    assert!(!message.contains(KEY), "{name}");
    assert_eq!(body["type"] == "error", speaks == Speaks::Messages, "{name}: {body}");
}

async fn fails_always(row: &Row, speaks: Speaks, stream: bool) {
    let name = format!("{} always, {speaks:?}, stream: {stream}", row.what);
    let house = House::with(vec![(row.act)(speaks)], plan(speaks, row)).await;
    let got = house.post(speaks.path(), speaks.request(stream)).await;
    house.ledger.closed().await;
    assert_eq!(house.clock.waits(), row.waits, "{name}");
    let attempts = row.waits.len() + 1;
    assert_eq!(house.asked().len(), attempts, "{name}");
    check_refusal(&got, row, speaks, &name);
    check_ledger(&house, row, speaks, attempts, false, &name);
}

async fn recovers(row: &Row, speaks: Speaks, stream: bool) {
    let name = format!("{} once, {speaks:?}, stream: {stream}", row.what);
    let house = House::with(vec![(row.act)(speaks), Act::stream(&speaks.whole())], plan(speaks, row)).await;
    let got = house.post(speaks.path(), speaks.request(stream)).await;
    house.ledger.closed().await;
    assert_eq!((got.status, got.clean), (200, true), "{name}: {}", got.text());
    assert_eq!(house.clock.waits(), row.waits[..1], "{name}");
    let text = got.text();
    if stream {
        assert!(text.contains("Grüezi ") && !text.contains("error") && !text.contains("busy"), "{name}: {text}");
        assert_eq!(text.matches("Grüezi \"").count(), 1, "{name}: nothing of the first attempt");
    } else {
        assert_eq!(speaks.words(&got.json()), "Grüezi 🏔", "{name}");
    }
    check_ledger(&house, row, speaks, 1, true, &name);
}

async fn each(rows: &[Row], stream: bool) {
    for row in rows {
        join_all(ALL.map(|speaks| fails_always(row, speaks, stream))).await;
        if !row.waits.is_empty() {
            join_all(ALL.map(|speaks| recovers(row, speaks, stream))).await;
        }
    }
}

#[tokio::test]
async fn before_the_first_byte_of_a_stream() {
    each(&before(), true).await;
}

#[tokio::test]
async fn before_the_first_byte_without_a_stream() {
    each(&before(), false).await;
}

/// Nothing was passed on yet: what came is lost, paid for, and asked for again.
#[tokio::test]
async fn after_the_first_byte_without_a_stream() {
    let rows: Vec<Row> = after();
    for row in rows {
        for speaks in ALL {
            let act = |speaks: Speaks| {
                let mut act = Act::open_stream(&begun(speaks));
                // An end that the length does not deny.
                act.steps[0] = Step::Bytes(
                    format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{}",
                        begun(speaks)
                    )
                    .into_bytes(),
                );
                act.steps.extend((row.act)(speaks).steps);
                act
            };
            let name = format!("{} always, {speaks:?}", row.what);
            let house = House::with(vec![act(speaks)], plan(speaks, &row)).await;
            let got = house.post(speaks.path(), speaks.request(false)).await;
            house.ledger.closed().await;
            assert_eq!(house.clock.waits(), row.waits, "{name}");
            check_refusal(&got, &row, speaks, &name);
            check_ledger(&house, &row, speaks, 5, false, &name);

            let name = format!("{} once, {speaks:?}", row.what);
            let house = House::with(vec![act(speaks), Act::stream(&speaks.whole())], plan(speaks, &row)).await;
            let got = house.post(speaks.path(), speaks.request(false)).await;
            house.ledger.closed().await;
            assert_eq!(speaks.words(&got.json()), "Grüezi 🏔", "{name}");
            check_ledger(&house, &row, speaks, 1, true, &name);
        }
    }
}

/// The caller has begun to read: nothing is tried again, and the end is none.
#[tokio::test]
async fn after_the_first_byte_of_a_stream() {
    for row in after() {
        for speaks in ALL {
            let name = format!("{}, {speaks:?}", row.what);
            let seen = Arc::<Notify>::default();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
            let mut act = Act::raw(format!("{head}{}", begun(speaks))).then(Step::Wait(Arc::clone(&seen)));
            act.steps.extend((row.act)(speaks).steps);
            let house = House::with(vec![act], plan(speaks, &row)).await;
            let request = house.client.post(format!("{}{}", house.url, speaks.path())).body(speaks.request(true));
            let first = begun(speaks);
            let got = house
                .send_and_see(request, |body| {
                    if body.len() >= first.len() {
                        seen.notify_one();
                    }
                })
                .await;
            house.ledger.closed().await;
            assert_eq!((got.status, got.clean), (200, false), "{name}: a cut is never a clean end: {}", got.text());
            let text = got.text();
            assert!(text.starts_with(&first), "{name}: {text}");
            let error = text.trim_end().rsplit("data: ").next().expect("a last event");
            let error: serde_json::Value = serde_json::from_str(error).unwrap_or_else(|_| panic!("{name}: {text}"));
            let message = match speaks {
                Speaks::Messages => {
                    assert!(text.contains("event: error\n"), "{name}: {text}");
                    assert_eq!(error["type"], "error", "{name}");
                    error["error"]["message"].clone()
                }
                Speaks::Chat => error["error"]["message"].clone(),
                Speaks::Responses => {
                    assert_eq!(error["type"], "error", "{name}");
                    error["message"].clone()
                }
            };
            let provider = if speaks == Speaks::Messages { "anthropic" } else { "openai" };
            assert!(message.as_str().is_some_and(|message| message.starts_with(provider)), "{name}: {text}");
            assert_eq!(house.asked().len(), 1, "{name}");
            check_ledger(&house, &row, speaks, 1, false, &name);
        }
    }
}

#[tokio::test]
async fn nobody_listens_or_nobody_to_trust() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = closed.local_addr().expect("address");
    drop(closed);
    for (row, base) in [
        (
            row("connect", |_| Act::raw(""), Class::Connect, Code::ModelUnavailable, Costs::Nothing, 502),
            format!("http://{address}"),
        ),
        (row("TLS", |_| Act::raw(""), Class::Tls, Code::ModelUnavailable, Costs::Nothing, 502).once(), String::new()),
    ] {
        for speaks in ALL {
            for stream in [true, false] {
                let name = format!("{}, {speaks:?}, stream: {stream}", row.what);
                // Plain HTTP where TLS is expected.
                let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
                let url = format!("https://{}", plain.local_addr().expect("address"));
                let served = tokio::spawn(async move {
                    while let Ok((mut socket, _)) = plain.accept().await {
                        use tokio::io::AsyncWriteExt;
                        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                    }
                });
                let base = if base.is_empty() { url } else { base.clone() };
                let house = House::with(vec![Act::raw("")], Plan { base_url: Some(base), ..speaks.plan() }).await;
                let got = house.post(speaks.path(), speaks.request(stream)).await;
                house.ledger.closed().await;
                assert_eq!(house.clock.waits(), row.waits, "{name}");
                check_refusal(&got, &row, speaks, &name);
                check_ledger(&house, &row, speaks, row.waits.len() + 1, false, &name);
                served.abort();
            }
        }
    }
}

/// The task's own count of retries, and its deadline, end what the provider would let go on.
#[tokio::test]
async fn a_task_that_has_tried_enough_gives_up() {
    let busy = || vec![Act::status("529 Busy", "", "{}")];
    let mut few = Speaks::Messages.plan();
    few.policy.retries_per_task = 3;
    let house = House::with(busy(), few).await;
    let got = house.post("/v1/messages", Speaks::Messages.request(true)).await;
    assert_eq!((got.status, house.asked().len(), got.header("x-should-retry")), (529, 4, Some("false")));
    let got = house.post("/v1/messages", Speaks::Messages.request(true)).await;
    assert_eq!((got.status, house.asked().len()), (529, 5), "none is left for the next call");
    house.ledger.closed().await;
    house.ledger.check();

    let late = Act::status("429 Slow", "Retry-After: 20\r\n", "{}");
    let deadline = NOW.parse::<jiff::Timestamp>().expect("time") + jiff::SignedDuration::from_secs(19);
    let plan = Plan { deadline: Some(deadline), ..Speaks::Messages.plan() };
    let house = House::with(vec![late], plan).await;
    let got = house.post("/v1/messages", Speaks::Messages.request(true)).await;
    assert_eq!((got.status, house.asked().len(), got.header("retry-after")), (429, 1, Some("20")));
    assert_eq!(house.ledger.spent(), 0);
}
