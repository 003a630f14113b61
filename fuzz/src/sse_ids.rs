//! Where a reader of a live stream goes on, and what it is sent. An input is a query, a line feed, a `Last-Event-ID`, a line
//! feed, and a text that somebody else wrote into the stream.

use std::sync::OnceLock;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use orchestra_events::projections::Cursor;
use orchestra_events::{Actor, Envelope, EventId, Json, Position, Revision, TaskId};
use orchestra_web::api::events::{MAX_PAGE, after};
use orchestra_web::api::query::{MAX_PARAMETERS, Parameters};
use orchestra_web::live::frames::Format;
use serde_json::{Value, json};
use uuid::Uuid;

/// The name under which a resuming reader sends the last id.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Reads a query and a header as an event stream's handler does, and writes frames.
pub fn sse_ids(input: &[u8]) {
    let mut parts = input.splitn(3, |byte| *byte == b'\n');
    let [query, last, text] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    if let Ok(query) = std::str::from_utf8(query) {
        resume(query, last);
        ids(query);
    }
    ids(&String::from_utf8_lossy(last));
    frames(&String::from_utf8_lossy(text));
}

/// The number that an id stands for, if it is one: digits, and no more than a store counts to.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= i64::MAX as u64)
}

fn resume(query: &str, last: &[u8]) {
    let mut headers = HeaderMap::new();
    let last = HeaderValue::from_bytes(last).ok().filter(|last| !last.is_empty());
    if let Some(last) = &last {
        headers.insert(LAST_EVENT_ID, last.clone());
    }
    let Ok(mut parameters) = Parameters::read(query) else { return };
    assert!(query.split('&').filter(|pair| !pair.is_empty()).count() <= MAX_PARAMETERS, "{query:?}");
    let found = after(&headers, &mut parameters);
    let limit = parameters.limit(100, MAX_PAGE);
    assert!((1..=MAX_PAGE).contains(&limit), "{query:?}");
    let _ = (parameters.text("type"), parameters.text("team"), parameters.parsed::<TaskId>("task", "a task"));
    let taken = parameters.finish();
    if let Err(problem) = &taken {
        assert_eq!(problem.code.status().as_u16(), 400, "{problem:?}");
        return;
    }
    // Nothing was refused, so what was given is what was taken.
    match last {
        Some(last) => assert_eq!(found, last.to_str().ok().and_then(|last| number(last.trim())), "{last:?}"),
        None => assert!(found.is_none_or(|found| query.contains("after=") && found <= i64::MAX as u64), "{query:?}"),
    }
    // And goes on from the same place when it comes back as an id that was given out.
    if let Some(found) = found {
        let mut headers = HeaderMap::new();
        headers.insert(LAST_EVENT_ID, found.into());
        let mut nothing = Parameters::read("").expect("an empty query");
        assert_eq!(after(&headers, &mut nothing), Some(found));
    }
}

/// Ids that stand in paths and queries: what is taken is written as the same.
fn ids(text: &str) {
    if let Ok(id) = text.parse::<TaskId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().eq_ignore_ascii_case(text), "two names for one task: {text:?} {id}");
    }
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string(), text.to_ascii_lowercase());
    }
}

/// An event as the specification reads it (WHATWG HTML, 9.2.6).
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    id: Option<String>,
    kind: String,
    data: Vec<String>,
}

fn heard(stream: &str) -> Vec<Heard> {
    let (mut all, mut now) = (Vec::new(), Heard::default());
    let lines = stream.replace("\r\n", "\n").replace('\r', "\n");
    for line in lines.split_inclusive('\n') {
        let line = line.strip_suffix('\n').expect("a frame ends with its line");
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        match field {
            "" if line.is_empty() => all.push(std::mem::take(&mut now)),
            "" => {}
            "id" => now.id = Some(value),
            "event" => now.kind = value,
            "data" => now.data.push(value),
            other => panic!("a field of somebody else: {other:?}"),
        }
    }
    assert_eq!(now, Heard::default(), "a frame that does not end");
    all
}

fn envelope(data: &str) -> Envelope {
    static BASE: OnceLock<Envelope> = OnceLock::new();
    let base = BASE.get_or_init(|| Envelope {
        id: EventId(Uuid::max()),
        kind: "agent-said".into(),
        schema: 1,
        stream: "task-1".parse().expect("a stream's name"),
        revision: Revision(7),
        position: Position(11),
        time: "2026-01-02T03:04:05Z".parse().expect("a time"),
        actor: Actor::system("fuzz"),
        correlation: None,
        causation: None,
        data: Json::stored("{}"),
        erased: false,
    });
    Envelope { data: Json::stored(data), ..base.clone() }
}

/// Whatever is in a text, it is one frame, and says what it said.
fn frames(text: &str) {
    let delta = Format::TaskEvents.delta(text);
    let delta = heard(std::str::from_utf8(&delta).expect("UTF-8"));
    let [Heard { id: None, kind, data }] = &delta[..] else { panic!("{delta:?}") };
    let said = serde_json::from_str::<Value>(&data.join("\n")).expect("JSON");
    assert_eq!((kind.as_str(), &said["text"]), ("delta", &json!(text)));

    let quoted = json!({ "text": text }).to_string();
    let whole = serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
    for data in [Some(quoted.as_str()), Some(text).filter(|_| whole)].into_iter().flatten() {
        let envelope = envelope(data);
        let expected: Value = serde_json::from_str(data).expect("checked above");
        for (format, id) in [(Format::TaskEvents, "7"), (Format::LogEvents, "11")] {
            let frame = format.event(&envelope).expect("it is JSON");
            let frame = heard(std::str::from_utf8(&frame).expect("UTF-8"));
            let [Heard { id: Some(given), kind, data }] = &frame[..] else { panic!("{frame:?}") };
            assert_eq!((given.as_str(), kind.as_str(), data.len()), (id, "agent-said", 1));
            let said: Value = serde_json::from_str(&data[0]).expect("JSON");
            assert_eq!(said["data"], expected);
        }
        let line = Format::Lines.event(&envelope).expect("it is JSON");
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "one line");
    }
}
