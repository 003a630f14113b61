//! What is set aside for a request before it is sent.

use bytes::Bytes;
use orchestra_events::ledger::Quote;

use super::super::request::Call;
use super::super::route::Target;
use super::super::{Api, GatewayPolicy, MAX_CALLS};
use super::house::*;
use crate::model::{HIDDEN_INPUT_TOKENS, Models, ProviderConfig, Timeouts};

/// What a request to one of the two providers themselves can cost.
fn quote(api: Api, model: &str, body: &str) -> Quote {
    let models = Models::new(ProviderConfig::built_in(), Timeouts::default()).expect("configuration");
    let model = models.resolve(model).expect("known");
    let provider = &models.providers[&*model.provider];
    let target = Target {
        own: true,
        bills_tiers: true,
        is_anthropic: provider.is_anthropic(),
        renamed: provider.is_openai(),
        model,
    };
    let read = Call::read(api, Bytes::from(body.to_owned()), |_| Ok(target), &GatewayPolicy::default());
    read.unwrap_or_else(|refusal| panic!("{body}: {refusal:?}")).quote
}

#[test]
fn every_byte_is_a_token_and_every_image_what_its_provider_documents() {
    let base64 = "A".repeat(100_000);
    let claude = |content: &str| {
        format!(r#"{{"model":"claude-sonnet-4-6","max_tokens":9,"messages":[{{"role":"user","content":{content}}}]}}"#)
    };
    let image = format!(r#"[{{"type":"image","source":{{"type":"base64","data":"{base64}"}}}}]"#);
    let words = claude("\"hi\"");
    let with_image = claude(&image);
    let gpt = |model: &str| {
        format!(
            r#"{{"model":"{model}","max_output_tokens":9,"input":[{{"content":[{{"type":"input_image","image_url":"http://x"}}]}}]}}"#
        )
    };
    for (what, api, model, body, tokens) in [
        ("words", Api::Messages, "claude-sonnet-4-6", words.clone(), words.len() as u64),
        (
            "an image",
            Api::Messages,
            "claude-sonnet-4-6",
            with_image.clone(),
            (with_image.len() - base64.len() - 2) as u64 + 4_784,
        ),
        ("a link to one", Api::Responses, "gpt-5", gpt("gpt-5"), gpt("gpt-5").len() as u64 + 12_000),
        ("for a small model", Api::Responses, "gpt-5-mini", gpt("gpt-5-mini"), gpt("gpt-5-mini").len() as u64 + 48_169),
        (
            "a tool of Anthropic's",
            Api::Messages,
            "claude-sonnet-4-6",
            words.replace("\"messages\"", r#""tools":[{"type":"bash_20250124","name":"bash"}],"messages""#),
            words.len() as u64 + 49 + 1_500,
        ),
    ] {
        assert_eq!(quote(api, model, &body).input_tokens, tokens + HIDDEN_INPUT_TOKENS, "{what}");
    }
}

#[test]
fn the_dearest_kind_of_input_that_the_request_can_cause_is_reserved_for() {
    let body = |rest: &str| format!(r#"{{"model":"claude-sonnet-4-6","max_tokens":9,"messages":[]{rest}}}"#);
    for (what, body, rate) in [
        ("no mark", body(""), 3_000_000),
        (
            "five minutes",
            body(r#","system":[{"type":"text","text":"","cache_control":{"type":"ephemeral"}}]"#),
            3_750_000,
        ),
        ("a tool", body(r#","tools":[{"name":"f","cache_control":{"type":"ephemeral"}}]"#), 3_750_000),
        ("the whole", body(r#","cache_control":{"type":"ephemeral","ttl":"1h"}"#), 6_000_000),
    ] {
        let quote = quote(Api::Messages, "claude-sonnet-4-6", &body);
        assert_eq!(quote.input_picos, u128::from(quote.input_tokens) * rate, "{what}");
    }
    // OpenAI writes to its cache by itself.
    let gpt = quote(Api::Responses, "gpt-5.6", r#"{"model":"gpt-5.6","input":"hi"}"#);
    assert_eq!(gpt.input_picos, u128::from(gpt.input_tokens) * 5_000_000);
    // Enough bytes for the long context's prices.
    let long = format!(r#"{{"model":"gpt-5.6","input":"{}"}}"#, "x".repeat(272_000));
    let gpt = quote(Api::Responses, "gpt-5.6", &long);
    assert_eq!((gpt.input_picos, gpt.output_picos), (u128::from(gpt.input_tokens) * 10_000_000, 30_000_000));
}

#[test]
fn every_answer_may_be_as_long_as_the_limit() {
    let chat = quote(
        Api::Chat,
        "gpt-5",
        r#"{"model":"gpt-5","n":3,"max_tokens":500,"max_completion_tokens":400,"messages":[]}"#,
    );
    assert_eq!((chat.replies, chat.wanted_output), (3, 500));
    let most =
        quote(Api::Messages, "claude-haiku-4-5", r#"{"model":"claude-haiku-4-5","max_tokens":999999,"messages":[]}"#);
    assert_eq!(most.wanted_output, 64_000, "what the model can write");
    let thinking = r#"{"model":"claude-haiku-4-5","max_tokens":9000,"thinking":{"type":"enabled","budget_tokens":4000},"messages":[]}"#;
    assert_eq!(quote(Api::Messages, "claude-haiku-4-5", thinking).least_output, 4_000 + 1_024);
}

#[tokio::test]
async fn more_calls_than_there_is_room_for_are_told_to_come_back() {
    let house = House::new(vec![Act::raw("").then(Step::Hang)]).await;
    let request = || house.client.post(format!("{}/v1/messages", house.url)).body(Speaks::Messages.request(true));
    let calls: Vec<_> = (0..MAX_CALLS).map(|_| tokio::spawn(request().send())).collect();
    let all = async {
        while house.asked().len() < MAX_CALLS {
            house.provider.came.notified().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), all).await.expect("every call is under way");
    let got = house.send(request()).await;
    assert_eq!((got.status, got.header("retry-after"), got.header("x-should-retry")), (429, Some("1"), Some("true")));
    assert_eq!(got.json()["error"]["type"], "rate_limit_error");
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}
