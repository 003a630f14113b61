//! What is charged is what the provider counted, however it was said.

use std::io::Write;
use std::sync::Arc;

use orchestra_events::task::conversation::{StopReason, Usage};

use tokio::sync::Notify;

use super::house::*;

struct Case {
    what: &'static str,
    speaks: Speaks,
    model: &'static str,
    events: String,
    usage: Usage,
    nanos: i64,
    confirmed: bool,
    stop: Option<StopReason>,
}

fn usage(input: u64, output: u64, read: u64, write5m: u64, write1h: u64) -> Usage {
    Usage {
        input_tokens: input,
        output_tokens: output,
        cache_read_tokens: read,
        cache_write5m_tokens: write5m,
        cache_write1h_tokens: write1h,
    }
}

/// Anthropic's events with these counts at the beginning and at the end.
fn messages(start: &str, deltas: &[&str], stop: &str) -> String {
    let mut events = vec![format!(
        r#"{{"type":"message_start","message":{{"id":"m","role":"assistant","content":[],"usage":{start}}}}}"#
    )];
    events.push(r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}"#.into());
    events.push(
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hm, hm, hm."}}"#.into(),
    );
    events.push(r#"{"type":"content_block_stop","index":0}"#.into());
    events.push(r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#.into());
    events.push(r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Grüezi 🏔"}}"#.into());
    for (index, usage) in deltas.iter().enumerate() {
        let reason = if index + 1 == deltas.len() { format!("\"{stop}\"") } else { "null".into() };
        events.push(format!(r#"{{"type":"message_delta","delta":{{"stop_reason":{reason}}},"usage":{usage}}}"#));
    }
    events.push(r#"{"type":"message_stop"}"#.into());
    events
        .iter()
        .map(|event| {
            let kind = event.split('"').nth(3).expect("a type");
            format!("event: {kind}\ndata: {event}\n\n")
        })
        .collect()
}

fn chat(chunks: &[&str]) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect::<String>() + "data: [DONE]\n\n"
}

fn responses(last: &str) -> String {
    let words = r#"{"type":"response.output_text.delta","delta":"Grüezi 🏔"}"#;
    let created = r#"{"type":"response.created","response":{"id":"r"}}"#;
    format!("data: {created}\n\ndata: {words}\n\ndata: {last}\n\n")
}

const WORDS: &str = r#"{"choices":[{"index":0,"delta":{"content":"Grüezi 🏔"}}]}"#;
const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;

fn cases() -> Vec<Case> {
    use Speaks::{Chat, Messages, Responses};
    let claude = |what, start: &str, deltas: &[&str], usage: Usage, nanos| Case {
        what,
        speaks: Messages,
        model: "claude-sonnet-4-6",
        events: messages(start, deltas, "end_turn"),
        usage,
        nanos,
        confirmed: true,
        stop: Some(StopReason::EndTurn),
    };
    let gpt = |what, speaks, events: String, usage: Usage, nanos| Case {
        what,
        speaks,
        model: "gpt-5",
        events,
        usage,
        nanos,
        confirmed: true,
        stop: Some(StopReason::EndTurn),
    };
    let split = r#"{"input_tokens":10,"output_tokens":1,"cache_read_input_tokens":200,"cache_creation_input_tokens":100,"cache_creation":{"ephemeral_5m_input_tokens":60,"ephemeral_1h_input_tokens":40}}"#;
    let plain = r#"{"input_tokens":10,"output_tokens":1}"#;
    vec![
        claude(
            "the split of the cache is kept from the beginning",
            split,
            &[
                r#"{"input_tokens":10,"output_tokens":50,"cache_creation_input_tokens":100,"cache_read_input_tokens":200}"#,
            ],
            usage(10, 50, 200, 60, 40),
            10 * 3_000 + 50 * 15_000 + 200 * 300 + 60 * 3_750 + 40 * 6_000,
        ),
        claude(
            "thinking is in the output and not added to it",
            plain,
            &[r#"{"output_tokens":70,"output_tokens_details":{"thinking_tokens":60}}"#],
            usage(10, 70, 0, 0, 0),
            10 * 3_000 + 70 * 15_000,
        ),
        claude(
            "cumulative counts are not added up",
            plain,
            &[r#"{"output_tokens":20}"#, r#"{"output_tokens":30}"#, r#"{"output_tokens":40}"#],
            usage(10, 40, 0, 0, 0),
            10 * 3_000 + 40 * 15_000,
        ),
        claude(
            "a zero that is there counts, what is absent stays",
            r#"{"input_tokens":10,"output_tokens":1,"cache_read_input_tokens":9}"#,
            &[r#"{"output_tokens":40,"cache_read_input_tokens":0}"#],
            usage(10, 40, 0, 0, 0),
            10 * 3_000 + 40 * 15_000,
        ),
        Case {
            model: "claude-haiku-5-5",
            ..claude(
                "a long context has its own price, for every token of the call",
                r#"{"input_tokens":1,"output_tokens":1,"cache_read_input_tokens":100000}"#,
                &[r#"{"output_tokens":10}"#],
                usage(1, 10, 100_000, 0, 0),
                500 + 10 * 2_500 + 100_000 * 50,
            )
        },
        gpt(
            "what was read from and written to a cache is within the prompt",
            Chat,
            chat(&[
                WORDS,
                STOP,
                r#"{"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":60,"cache_write_tokens":30},"completion_tokens_details":{"reasoning_tokens":8}}}"#,
            ]),
            usage(10, 9, 60, 30, 0),
            10 * 1_250 + 9 * 10_000 + 60 * 125 + 30 * 1_250,
        ),
        gpt(
            "a count in every chunk",
            Chat,
            chat(&[
                r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":10,"completion_tokens":1}}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"b"}}],"usage":{"prompt_tokens":10,"completion_tokens":2}}"#,
                r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":3}}"#,
            ]),
            usage(10, 3, 0, 0, 0),
            10 * 1_250 + 3 * 10_000,
        ),
        gpt(
            "no [DONE], but a reason to stop and a count",
            Chat,
            chat(&[WORDS, STOP, r#"{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3}}"#])
                .replace("data: [DONE]\n\n", ""),
            usage(10, 3, 0, 0, 0),
            10 * 1_250 + 3 * 10_000,
        ),
        gpt(
            "Responses",
            Responses,
            responses(
                r#"{"type":"response.completed","response":{"usage":{"input_tokens":100,"output_tokens":9,"input_tokens_details":{"cached_tokens":64},"output_tokens_details":{"reasoning_tokens":4}}}}"#,
            ),
            usage(36, 9, 64, 0, 0),
            36 * 1_250 + 9 * 10_000 + 64 * 125,
        ),
        Case {
            stop: Some(StopReason::MaxTokens),
            ..gpt(
                "an output that met its limit",
                Responses,
                responses(
                    r#"{"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"},"usage":{"input_tokens":10,"output_tokens":9}}}"#,
                ),
                usage(10, 9, 0, 0, 0),
                10 * 1_250 + 9 * 10_000,
            )
        },
    ]
}

async fn meters(case: &Case, how: &str, act: Act) {
    let name = format!("{}, {how}", case.what);
    for stream in [true, false] {
        let house = House::with(vec![act.clone()], Plan { model: case.model, ..Plan::default() }).await;
        let body = case.speaks.request(stream).replace(case.speaks.model(), case.model);
        // The whole of the context must have been reserved for.
        let filler = "x".repeat(if case.usage.context() > 50_000 { 120_000 } else { 0 });
        let body = body.replace("\"hi\"", &format!("\"hi{filler}\""));
        let got = house.post(case.speaks.path(), body).await;
        assert_eq!((got.status, got.clean), (200, true), "{name}: {}", got.text());
        house.ledger.closed().await;
        house.ledger.check();
        let settled = &house.ledger.settlements()[0];
        assert_eq!(settled.usage, case.usage, "{name}");
        assert_eq!(settled.cost.nanos(), case.nanos, "{name}");
        assert_eq!((settled.confirmed, settled.stop_reason), (case.confirmed, case.stop), "{name}");
        assert_eq!(settled.price, format!("2026-11-22/{}", case.model), "{name}");
        assert_eq!(settled.failure, None, "{name}");
    }
}

#[tokio::test]
async fn the_count_is_exact_whatever_the_form() {
    for case in cases() {
        let events = &case.events;
        meters(&case, "as it is", Act::stream(events)).await;
        meters(&case, "byte by byte", Act::stream(events).in_pieces(1)).await;
        meters(&case, "with CRLF", Act::stream(&events.replace('\n', "\r\n")).in_pieces(3)).await;
        let noisy = events.replace("\n\n", "\n\n: a comment\n\n");
        let noisy = if case.speaks == Speaks::Messages {
            noisy.replace(": a comment\n", ": a comment\n\nevent: ping\ndata: {\"type\":\"ping\"}\n")
        } else {
            noisy
        };
        meters(&case, "with comments and pings", Act::stream(&noisy)).await;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(events.as_bytes()).expect("memory");
        let packed = packed.finish().expect("memory");
        let act = Act::stream_with("Content-Encoding: gzip\r\n", &packed);
        meters(&case, "compressed, though nobody asked", act.in_pieces(5)).await;
    }
}

#[tokio::test]
async fn what_was_compressed_is_passed_on_as_it_is_meant() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(Speaks::Messages.whole().as_bytes()).expect("memory");
    let act = Act::stream_with("Content-Encoding: gzip\r\n", &packed.finish().expect("memory"));
    let house = House::new(vec![act]).await;
    let got = house.post("/v1/messages", Speaks::Messages.request(true)).await;
    assert_eq!(got.text(), Speaks::Messages.whole());
    assert_eq!(got.header("content-encoding"), None);
}

#[tokio::test]
async fn a_count_that_never_came_is_bounded_and_marked() {
    // The reply is whole, its price is not known.
    let house = House::with(vec![Act::stream(&chat(&[WORDS, STOP]))], Speaks::Chat.plan()).await;
    let got = house.post("/v1/chat/completions", Speaks::Chat.request(true)).await;
    assert!(got.clean, "{}", got.text());
    house.ledger.closed().await;
    let settled = &house.ledger.settlements()[0];
    let Entry::Reserved(_, reservation) = &house.ledger.entries()[0] else { panic!("reserved") };
    assert!(!settled.confirmed && settled.failure.is_none());
    assert_eq!((settled.cost, settled.usage.output_tokens), (reservation.nano_usd, 4_096));
    // Two answers at once, and what both may have hidden.
    let both = chat(&[
        r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#,
        r#"{"choices":[{"index":1,"delta":{"content":"b"},"finish_reason":"stop"}]}"#,
    ]);
    let house = House::with(vec![Act::stream(&both)], Speaks::Chat.plan()).await;
    let body = Speaks::Chat.request(true).replace("\"messages\"", "\"n\":2,\"messages\"");
    assert!(house.post("/v1/chat/completions", body).await.clean);
    house.ledger.closed().await;
    assert_eq!(house.ledger.settlements()[0].usage.output_tokens, 2 * 4_096);
}

#[tokio::test]
async fn an_error_that_counts_nothing_does_not_undo_what_was_written() {
    let begun = Speaks::Messages.events()[..3].concat();
    let zero = r#"data: {"type":"message_delta","delta":{},"usage":{"output_tokens":0}}"#;
    let events = format!("{begun}{zero}\n\n{}", Speaks::Messages.error("api_error", "oops"));
    let mut plan = Speaks::Messages.plan();
    plan.policy.retries_per_task = 0;
    let house = House::with(vec![Act::stream(&events)], plan).await;
    house.post("/v1/messages", Speaks::Messages.request(true)).await;
    house.ledger.closed().await;
    assert_eq!(house.ledger.spent(), 10 * 3_000 + 264 * 15_000);

    let failed = r#"{"type":"response.failed","response":{"error":{"code":"server_error","message":"oops"},"usage":{"input_tokens":0,"output_tokens":0}}}"#;
    let mut plan = Speaks::Responses.plan();
    plan.policy.retries_per_task = 0;
    let house = House::with(vec![Act::stream(&responses(failed))], plan).await;
    house.post("/v1/responses", Speaks::Responses.request(true)).await;
    house.ledger.closed().await;
    let Entry::Reserved(_, reservation) = &house.ledger.entries()[0] else { panic!("reserved") };
    assert_eq!(house.ledger.settlements()[0].cost, reservation.nano_usd);
    assert!(!house.ledger.settlements()[0].confirmed);
}

#[tokio::test]
async fn what_was_set_aside_too_much_for_the_input_is_given_back_at_once() {
    let (seen, events) = (Arc::<Notify>::default(), Speaks::Messages.events());
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    let act = Act::raw(format!("{head}{}", events[0])).then(Step::Wait(Arc::clone(&seen))).bytes(&events[1..].concat());
    let house = House::new(vec![act]).await;
    let request = house.client.post(format!("{}/v1/messages", house.url)).body(Speaks::Messages.request(true));
    house.send_and_see(request, |_| seen.notify_one()).await;
    house.ledger.closed().await;
    let entries = house.ledger.entries();
    let Entry::Reserved(_, reservation) = &entries[0] else { panic!("reserved") };
    let Some(Entry::Trimmed(_, nano_usd, tokens)) = entries.get(1) else { panic!("trimmed: {entries:?}") };
    assert_eq!(reservation.nano_usd.nanos() - nano_usd.nanos(), 10 * 3_000 + 4_096 * 15_000);
    assert_eq!(reservation.tokens - tokens, 10 + 4_096);
}

#[tokio::test]
async fn each_reason_to_stop_is_known() {
    use StopReason::{ContextWindow, EndTurn, MaxTokens, Pause, Refusal, ToolUse};
    let plain = r#"{"input_tokens":10,"output_tokens":1}"#;
    let claude = |stop| (Speaks::Messages, messages(plain, &[r#"{"output_tokens":5}"#], stop));
    let gpt = |stop: &str| (Speaks::Chat, chat(&[WORDS, &STOP.replace("\"stop\"", &format!("{stop:?}"))]));
    let response = |rest: &str| {
        let last = r#"{"type":"response.completed","response":{REST"usage":{"input_tokens":1,"output_tokens":1}}}"#;
        (Speaks::Responses, responses(&last.replace("REST", rest)))
    };
    for ((speaks, events), expected) in [
        (claude("end_turn"), Some(EndTurn)),
        (claude("stop_sequence"), Some(EndTurn)),
        (claude("tool_use"), Some(ToolUse)),
        (claude("max_tokens"), Some(MaxTokens)),
        (claude("refusal"), Some(Refusal)),
        (claude("model_context_window_exceeded"), Some(ContextWindow)),
        (claude("pause_turn"), Some(Pause)),
        (claude("something_newer"), None),
        (gpt("stop"), Some(EndTurn)),
        (gpt("tool_calls"), Some(ToolUse)),
        (gpt("length"), Some(MaxTokens)),
        (gpt("content_filter"), Some(Refusal)),
        (response(""), Some(EndTurn)),
        (response(r#""output":[{"type":"reasoning"},{"type":"function_call"}],"#), Some(ToolUse)),
        (response(r#""output":[{"type":"custom_tool_call"}],"#), Some(ToolUse)),
    ] {
        let house = House::with(vec![Act::stream(&events)], speaks.plan()).await;
        house.post(speaks.path(), speaks.request(true)).await;
        house.ledger.closed().await;
        let settled = &house.ledger.settlements()[0];
        assert_eq!((settled.stop_reason, &settled.failure), (expected, &None), "{events}");
    }
}
