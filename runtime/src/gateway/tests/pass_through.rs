//! What reaches the provider: the caller's bytes, but for what must be replaced.

use bytes::Bytes;

use super::super::request::Call;
use super::super::route::Target;
use super::super::{Api, GatewayPolicy};
use super::house::*;
use crate::model::Models;
use crate::model::{ProviderConfig, Timeouts};
use orchestra_events::NanoUsd;

/// A body that no serializer would write like this.
const ODD: &str = "{ \"mod\\u0065l\" :\t\"claude-sonnet-4-6\",\n\"max_tokens\":4096 , \"stream\":true, \"new_field\": [1.50, 1e3, {\"stream\": false}],\n  \"messages\": [ {\"role\":\"user\",\"content\":\"Z\\u00fcrich 🏔 \\/ max_tokens\\\":9\"} ] }\r\n";

#[tokio::test]
async fn only_what_must_be_replaced_is() {
    use Speaks::{Chat, Messages, Responses};
    let local = || vec![row(r#"{"model": "m", "input": 0, "output": 0}"#)];
    for (what, speaks, body, expected) in [
        ("nothing", Messages, ODD.to_owned(), ODD.to_owned()),
        (
            "the model's name",
            Messages,
            ODD.replace("\"claude-", "\"anthropic/claude-"),
            ODD.to_owned(),
        ),
        ("a stream", Messages, ODD.replace("\"stream\":true", "\"stream\":false"), ODD.to_owned()),
        (
            "no word of a stream, no limit",
            Responses,
            r#"{"model":"gpt-5","input":"hi"}"#.into(),
            r#"{"stream":true,"max_output_tokens":128000,"model":"gpt-5","input":"hi"}"#.into(),
        ),
        (
            "null",
            Responses,
            r#"{"model":"gpt-5","stream":null,"max_output_tokens":null,"input":"hi"}"#.into(),
            r#"{"model":"gpt-5","stream":true,"max_output_tokens":128000,"input":"hi"}"#.into(),
        ),
        (
            "a dearer tier",
            Responses,
            r#"{"model":"gpt-5","stream":true,"max_output_tokens":9,"service_tier":"priority","input":"hi"}"#.into(),
            r#"{"model":"gpt-5","stream":true,"max_output_tokens":9,"service_tier":"default","input":"hi"}"#.into(),
        ),
        (
            "the usage",
            Chat,
            r#"{"model":"local/m","stream":true,"max_tokens":9,"messages":[]}"#.into(),
            r#"{"stream_options":{"include_usage":true},"model":"m","stream":true,"max_tokens":9,"messages":[]}"#.into(),
        ),
        (
            "the usage, refused",
            Chat,
            r#"{"model":"local/m","stream":true,"max_tokens":9,"stream_options":{"x":1,"include_usage":false},"messages":[]}"#.into(),
            r#"{"model":"m","stream":true,"max_tokens":9,"stream_options":{"x":1,"include_usage":true},"messages":[]}"#.into(),
        ),
        (
            "the usage, beside something else",
            Chat,
            r#"{"model":"local/m","stream":true,"max_tokens":9,"stream_options": {"x":1},"messages":[]}"#.into(),
            r#"{"model":"m","stream":true,"max_tokens":9,"stream_options": {"include_usage":true,"x":1},"messages":[]}"#.into(),
        ),
        (
            "the usage, asked for",
            Chat,
            r#"{"model":"local/m","stream":true,"max_tokens":9,"stream_options":{"include_usage":true},"messages":[]}"#.into(),
            r#"{"model":"m","stream":true,"max_tokens":9,"stream_options":{"include_usage":true},"messages":[]}"#.into(),
        ),
        (
            "no limit, at a server that knows the older name",
            Chat,
            r#"{"model":"local/m","stream":true,"stream_options":{"include_usage":true},"messages":[]}"#.into(),
            r#"{"max_tokens":32000,"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}"#.into(),
        ),
    ] {
        let model = if speaks == Chat { "local/m" } else { speaks.model() };
        let plan = Plan { model, local: local(), ..Plan::default() };
        let house = House::with(vec![Act::stream(&speaks.whole())], plan).await;
        let got = house.post(speaks.path(), body).await;
        assert_eq!(got.status, 200, "{what}: {}", got.text());
        assert_eq!(String::from_utf8(house.asked()[0].body.clone()).expect("UTF-8"), expected, "{what}");
        house.ledger.closed().await;
    }
}

#[tokio::test]
async fn a_tight_budget_changes_the_digits_of_the_limit_and_nothing_else() {
    // What the input can cost at most, and two thousand tokens of output.
    let input = (ODD.len() as i64 + 1_024) * 3_750;
    let cap = Some(NanoUsd::from_nanos(input + 2_000 * 15_000));
    let house = House::with(vec![Act::stream(&Speaks::Messages.whole())], Plan { cap, ..Plan::default() }).await;
    let got = house.post("/v1/messages", ODD).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let sent = String::from_utf8(house.asked()[0].body.clone()).expect("UTF-8");
    assert_eq!(sent, ODD.replace("4096", "2000"));
}

#[tokio::test]
async fn the_sandboxes_keys_stay_and_the_right_headers_pass() {
    let reply = Act::stream_with(
        "request-id: req_1\r\nSet-Cookie: a=b\r\nanthropic-ratelimit-requests-remaining: 7\r\nanthropic-organization-id: o\r\n",
        Speaks::Messages.whole().as_bytes(),
    );
    let house = House::new(vec![reply]).await;
    let request = house
        .client
        .post(format!("{}/v1/messages?beta=true", house.url))
        .header("authorization", "Bearer placeholder")
        .header("x-api-key", "placeholder")
        .header("cookie", "placeholder")
        .header("x-claude-code-session-id", "placeholder")
        .header("anthropic-beta", "a-2025-01-01,b")
        .header("anthropic-version", "2023-06-01")
        .header("accept-encoding", "gzip, br")
        .header("user-agent", "claude-cli/2")
        .body(Speaks::Messages.request(true));
    let got = house.send(request).await;
    let asked = &house.asked()[0];
    assert!(asked.head.starts_with("POST /v1/messages?beta=true HTTP/1.1"), "{}", asked.head);
    assert!(!asked.head.contains("placeholder"), "{}", asked.head);
    for (name, value) in [
        ("x-api-key", KEY),
        ("anthropic-beta", "a-2025-01-01,b"),
        ("anthropic-version", "2023-06-01"),
        ("accept-encoding", "identity"),
        ("user-agent", "claude-cli/2"),
    ] {
        assert_eq!(asked.header(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(got.header("request-id"), Some("req_1"));
    assert_eq!(got.header("anthropic-ratelimit-requests-remaining"), Some("7"));
    assert!(got.header("set-cookie").is_none() && got.header("anthropic-organization-id").is_none());
}

#[tokio::test]
async fn the_tasks_key_goes_to_its_own_provider_only() {
    let house = House::new(vec![Act::stream(&Speaks::Chat.whole())]).await;
    let paying = |request: reqwest::RequestBuilder| request.header("openai-organization", "org-of-the-sandbox");
    let request = house.client.post(format!("{}/v1/chat/completions", house.url)).body(Speaks::Chat.request(true));
    assert_eq!(house.send(paying(request)).await.status, 200);
    let asked = &house.asked()[0];
    assert_eq!(asked.header("authorization"), Some(format!("Bearer {OPERATORS_KEY}")));
    assert!(!asked.head.contains(KEY) && !asked.head.contains("org-of-the-sandbox"), "{}", asked.head);
    let body = r#"{"model":"keyless/m","max_tokens":9,"messages":[]}"#;
    let got = house.post("/v1/chat/completions", body).await;
    assert_eq!((got.status, house.asked().len()), (403, 1), "{}", got.text());
    assert!(got.text().contains("belongs to anthropic and is sent to nobody else"), "{}", got.text());
    house.ledger.closed().await;
    house.ledger.check();
    // The other way round, the key is the caller's, and so is the organisation.
    let house = House::with(vec![Act::stream(&Speaks::Chat.whole())], Speaks::Chat.plan()).await;
    let request = house.client.post(format!("{}/v1/chat/completions", house.url)).body(Speaks::Chat.request(true));
    assert_eq!(house.send(paying(request)).await.status, 200);
    assert_eq!(house.asked()[0].header("authorization"), Some(format!("Bearer {KEY}")));
    assert_eq!(house.asked()[0].header("openai-organization").as_deref(), Some("org-of-the-sandbox"));
}

#[tokio::test]
async fn a_count_of_tokens_passes_and_costs_nothing() {
    let house = House::new(vec![Act::status("200 OK", "", r#"{"input_tokens":42}"#)]).await;
    let body = r#"{"model":"anthropic/claude-sonnet-4-6", "messages":[]}"#;
    let got = house.post("/v1/messages/count_tokens?beta=true", body).await;
    assert_eq!((got.status, got.text().as_str()), (200, r#"{"input_tokens":42}"#));
    let asked = &house.asked()[0];
    assert!(asked.head.starts_with("POST /v1/messages/count_tokens?beta=true "), "{}", asked.head);
    assert_eq!(asked.body, br#"{"model":"claude-sonnet-4-6", "messages":[]}"#);
    assert_eq!(asked.header("x-api-key").as_deref(), Some(KEY));
    assert_eq!(house.ledger.entries(), []);
    let got = house.post("/v1/messages/count_tokens", r#"{"model":"gpt-5","messages":[]}"#).await;
    assert_eq!((got.status, house.asked().len()), (404, 1), "OpenAI has no such thing: {}", got.text());
}

/// The two providers themselves bill by tier, and an account's default may be a dearer one.
#[test]
fn the_standard_tier_is_named_where_a_tier_has_a_price() {
    let models = Models::new(ProviderConfig::built_in(), Timeouts::default()).expect("configuration");
    for (api, name, body, expected) in [
        (
            Api::Messages,
            "claude-sonnet-4-6",
            r#"{"model":"claude-sonnet-4-6","max_tokens":9,"stream":true}"#,
            r#"{"service_tier":"standard_only","model":"claude-sonnet-4-6","max_tokens":9,"stream":true}"#,
        ),
        (
            Api::Chat,
            "gpt-5",
            r#"{"model":"gpt-5","stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"service_tier":"default","max_completion_tokens":128000,"model":"gpt-5","stream":true,"stream_options":{"include_usage":true}}"#,
        ),
        (
            Api::Responses,
            "gpt-5",
            r#"{"model":"gpt-5","stream":true,"max_output_tokens":9,"service_tier":"auto"}"#,
            r#"{"model":"gpt-5","stream":true,"max_output_tokens":9,"service_tier":"default"}"#,
        ),
    ] {
        let model = models.resolve(name).expect("known");
        let provider = &models.providers[&*model.provider];
        let target = Target {
            own: true,
            bills_tiers: provider.bills_service_tiers(),
            is_anthropic: provider.is_anthropic(),
            renamed: provider.is_openai(),
            model,
        };
        let call = Call::read(api, Bytes::from_static(body.as_bytes()), |_| Ok(target), &GatewayPolicy::default());
        let call = call.expect("a call");
        assert_eq!(call.body(call.quote.wanted_output), expected.as_bytes(), "{api:?}");
    }
}
