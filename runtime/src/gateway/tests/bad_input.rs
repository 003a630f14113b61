//! Requests that are not served, each refused in the shape that its client reads, with a sentence that says what to do.

use orchestra_events::NanoUsd;

use super::super::MAX_BODY_BYTES;
use super::house::*;
use crate::model::HostedTool;

fn check(what: &str, got: &Got, status: u16, anthropic: bool, words: &str) {
    let text = got.text();
    assert_eq!(got.status, status, "{what}: {text}");
    assert!(got.clean, "{what}");
    let body = got.json();
    assert_eq!(body["type"] == "error", anthropic, "{what}: {text}");
    let message = body["error"]["message"].as_str().expect("a message");
    assert!(message.contains(words), "{what}: {message}");
    assert!(body["error"]["type"].is_string(), "{what}: {text}");
}

#[tokio::test]
async fn what_is_not_served_is_refused_in_the_dialects_own_shape() {
    let plan = Plan { allowed: |name| !name.contains("opus"), ..Plan::default() };
    let house = House::with(vec![Act::stream(&Speaks::Messages.whole())], plan).await;
    let chat = r#"{"model":"gpt-5","messages":[]"#;
    for (what, path, body, status, words) in [
        ("no JSON", "/v1/messages", "{\"model\"", 400, "not understood: EOF"),
        ("a list", "/v1/chat/completions", "[]", 400, "a JSON object"),
        ("not UTF-8", "/v1/responses", "\u{0}", 400, "not understood"),
        ("a model twice", "/v1/messages", r#"{"model":"claude-opus-5","model":"x"}"#, 400, "twice"),
        ("no model", "/v1/messages", r#"{"max_tokens":9}"#, 400, "names no model"),
        ("no name", "/v1/messages", r#"{"model":7}"#, 400, "not a string"),
        ("unknown model", "/v1/messages", r#"{"model":"claude-sonet-4-6"}"#, 404, "did you mean"),
        ("unknown provider", "/v1/chat/completions", r#"{"model":"acme/x"}"#, 404, "no model provider is named"),
        ("unpriced", "/v1/chat/completions", r#"{"model":"local/x"}"#, 404, "has no price"),
        ("not allowed", "/v1/messages", r#"{"model":"claude-opus-5"}"#, 403, "use claude-sonnet-4-6"),
        ("another dialect", "/v1/messages", r#"{"model":"gpt-5"}"#, 404, "/v1/chat/completions"),
        ("another dialect", "/v1/responses", r#"{"model":"claude-sonnet-4-6"}"#, 404, "/v1/messages"),
        ("limit", "/v1/messages", r#"{"model":"claude-sonnet-4-6","max_tokens":1.5}"#, 400, "not a whole number"),
        ("limit", "/v1/messages", r#"{"model":"claude-sonnet-4-6","max_tokens":-1}"#, 400, "not a whole number"),
        ("limit", "/v1/messages", r#"{"model":"claude-sonnet-4-6","max_tokens":0}"#, 400, "at least one"),
        ("stream", "/v1/responses", r#"{"model":"gpt-5","stream":"yes"}"#, 400, "neither true nor false"),
        ("unknown path", "/v1/embeddings", "{}", 404, "/v1/messages"),
        ("unknown path", "/v1/messages/batches", "{}", 404, "/v1/messages"),
        ("the path's end", "/v1/messages/", "{}", 404, "/v1/messages"),
        ("n", "/v1/chat/completions", &format!(r#"{chat},"n":0}}"#), 400, "from 1 to 128"),
        ("n", "/v1/chat/completions", &format!(r#"{chat},"n":999}}"#), 400, "from 1 to 128"),
        ("fast", "/v1/messages", r#"{"model":"claude-sonnet-4-6","speed":"fast"}"#, 400, "changes the price"),
        ("place", "/v1/messages", r#"{"model":"claude-sonnet-4-6","inference_geo":"us"}"#, 400, "changes the price"),
        (
            "llama.cpp's limit",
            "/v1/chat/completions",
            r#"{"model":"gpt-5","messages":[],"n_predict":9}"#,
            400,
            "use max_tokens",
        ),
        (
            "another case",
            "/v1/messages",
            r#"{"model":"claude-sonnet-4-6","messages":[],"Max_tokens":9}"#,
            400,
            "lower case",
        ),
        ("stored", "/v1/responses", r#"{"model":"gpt-5","previous_response_id":"r"}"#, 400, "store: false"),
        ("stored", "/v1/responses", r#"{"model":"gpt-5","conversation":"c"}"#, 400, "store: false"),
        ("stored", "/v1/responses", r#"{"model":"gpt-5","prompt":{"id":"p"}}"#, 400, "the prompt itself"),
        ("background", "/v1/responses", r#"{"model":"gpt-5","background":true}"#, 400, "while the sandbox runs"),
        ("connector", "/v1/messages", r#"{"model":"claude-sonnet-4-6","mcp_servers":[{}]}"#, 400, "inside the sandbox"),
        ("container", "/v1/messages", r#"{"model":"claude-sonnet-4-6","container":"c"}"#, 400, "inside the sandbox"),
        (
            "compaction",
            "/v1/messages",
            r#"{"model":"claude-sonnet-4-6","context_management":{"edits":[{"type":"compact_20260112"}]}}"#,
            400,
            "compact it in the agent",
        ),
        ("audio", "/v1/chat/completions", &format!(r#"{chat},"modalities":["text","audio"]}}"#), 400, "audio"),
        (
            "a document",
            "/v1/messages",
            r#"{"model":"claude-sonnet-4-6","messages":[{"content":[{"type":"document","source":{"type":"base64"}}]}]}"#,
            400,
            "send its text",
        ),
    ] {
        let anthropic = path.starts_with("/v1/messages");
        check(what, &house.post(path, body.to_owned()).await, status, anthropic, words);
    }
    for (api, tool) in [
        ("/v1/messages", "web_search_20250305"),
        ("/v1/messages", "web_fetch_20250910"),
        ("/v1/messages", "code_execution_20250825"),
        ("/v1/messages", "tool_search_tool_regex_20251119"),
        ("/v1/messages", "mcp_toolset"),
        ("/v1/responses", "web_search"),
        ("/v1/responses", "web_search_preview"),
        ("/v1/responses", "file_search"),
        ("/v1/responses", "code_interpreter"),
        ("/v1/responses", "image_generation"),
        ("/v1/responses", "mcp"),
        ("/v1/responses", "computer_use_preview"),
    ] {
        let model = if api == "/v1/messages" { "claude-sonnet-4-6" } else { "gpt-5" };
        let body = format!(r#"{{"model":"{model}","tools":[{{"type":"{tool}","name":"x","max_uses":3}}]}}"#);
        check(tool, &house.post(api, body).await, 400, api == "/v1/messages", "run by the provider");
    }
    // Nor are they let through in an item of the conversation, or in a namespace.
    for tools in [
        r#"[{"type":"web_search"}]"#,
        r#"[{"type":"namespace","name":"n","tools":[{"type":"web\u005fsearch"}]}]"#,
        r#"[{"type":"namespace","tools":[{"type":"namespace","tools":[{"type":"namespace","tools":[]}]}]}]"#,
    ] {
        let body = format!(r#"{{"model":"gpt-5","input":[{{"type":"\u0061dditional_tools","tools":{tools}}}]}}"#);
        check(tools, &house.post("/v1/responses", body).await, 400, false, "run by the provider");
    }
    assert_eq!((house.asked().len(), house.ledger.entries().len()), (0, 0), "nothing was sent, nothing reserved");
    // What a client runs by itself passes.
    let tools = r#"{"name":"f","input_schema":{}},{"type":"custom","name":"g"},{"type":"bash_20250124","name":"bash"},
        {"type":"text_editor_20250728","name":"e"},{"type":"computer_20250124","name":"c"}"#;
    let body = Speaks::Messages.request(true).replace("\"messages\"", &format!("\"tools\":[{tools}],\"messages\""));
    assert_eq!(house.post("/v1/messages", body).await.status, 200);
    let tools = r#"{"type":"function","name":"f"},{"type":"custom","name":"g"},{"type":"namespace","name":"n","tools":[]},
        {"type":"local_shell"},{"type":"apply_patch"}"#;
    let body = Speaks::Responses.request(true).replace("\"input\"", &format!("\"tools\":[{tools}],\"input\""));
    let stream = || Act::stream(&Speaks::Responses.whole());
    let house = House::with(vec![stream(), stream()], Speaks::Responses.plan()).await;
    assert_eq!(house.post("/v1/responses", body).await.status, 200);
    let item = format!(r#"{{"type":"additional_tools","tools":[{tools}]}}"#);
    let body = format!(r#"{{"model":"gpt-5","stream":true,"input":[{item}]}}"#);
    assert_eq!(house.post("/v1/responses", body).await.status, 200);
}

#[tokio::test]
async fn methods_sizes_and_encodings_are_refused_before_anything_is_read() {
    let house = House::new(vec![Act::raw("")]).await;
    let url = |path: &str| format!("{}{path}", house.url);
    let got = house.send(house.client.get(url("/v1/messages"))).await;
    check("GET", &got, 405, true, "POST only");
    assert_eq!(got.header("allow"), Some("POST"));
    check("PUT", &house.send(house.client.put(url("/v1/responses"))).await, 405, false, "POST only");
    let headed = house.client.get(url("/nowhere")).header("anthropic-version", "2023-06-01");
    check("by header", &house.send(headed).await, 404, true, "Nothing is served");
    check("by path", &house.send(house.client.get(url("/nowhere"))).await, 404, false, "Nothing is served");
    for (path, anthropic) in [("/v1/messages", true), ("/v1/responses", false)] {
        let packed = house.client.post(url(path)).header("content-encoding", "gzip").body("x");
        check("gzip", &house.send(packed).await, 415, anthropic, "without Content-Encoding");
        let got = house.post(path, vec![b' '; MAX_BODY_BYTES + 1]).await;
        check("too long", &got, 413, anthropic, "longer than 32 MiB");
    }
    let chunks = futures_util::stream::iter((0..33).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])));
    let got = house.post("/v1/messages", reqwest::Body::wrap_stream(chunks)).await;
    check("too long, in chunks", &got, 413, true, "longer than 32 MiB");
    for path in ["/", "/api/hello"] {
        assert_eq!(house.send(house.client.head(url(path))).await.status, 200);
    }
    assert_eq!(house.ledger.entries(), []);
}

#[tokio::test]
async fn the_models_that_may_be_used_are_listed_in_the_callers_dialect() {
    let plan = Plan { allowed: |name| !name.contains("opus"), ..Plan::default() };
    let house = House::with(vec![Act::raw("")], plan).await;
    let list = |request: reqwest::RequestBuilder| house.send(request);
    let got = list(house.client.get(format!("{}/v1/models", house.url))).await.json();
    assert_eq!((&got["object"], &got["data"][0]["id"]), (&"list".into(), &"claude-sonnet-4-6".into()));
    let names = got["data"].to_string();
    assert!(names.contains("claude-haiku-4-5") && !names.contains("opus") && !names.contains("gpt"), "{names}");
    let headed = house.client.get(format!("{}/v1/models", house.url)).header("anthropic-version", "2023-06-01");
    let got = list(headed).await.json();
    assert_eq!((&got["data"][0]["type"], &got["has_more"]), (&"model".into(), &false.into()));
}

#[tokio::test]
async fn without_money_nothing_is_sent_and_every_agent_stops() {
    for speaks in ALL {
        for (what, plan) in [
            ("a cap", Plan { cap: Some(NanoUsd::from_nanos(1_000_000)), ..speaks.plan() }),
            ("the end", Plan { over: true, ..speaks.plan() }),
        ] {
            for stream in [true, false] {
                let house = House::with(vec![Act::raw("")], Plan { ..plan_again(&plan) }).await;
                let got = house.post(speaks.path(), speaks.request(stream)).await;
                let status = if speaks == Speaks::Responses { 400 } else { 402 };
                let words = if what == "a cap" { "The budget of task:t per task is used up." } else { "task is over" };
                check(what, &got, status, speaks == Speaks::Messages, words);
                assert_eq!(got.header("x-should-retry"), Some("false"), "{what} {speaks:?}");
                assert_eq!(house.asked().len(), 0);
            }
        }
    }
}

fn plan_again(plan: &Plan) -> Plan {
    Plan { model: plan.model, cap: plan.cap, over: plan.over, ..Plan::default() }
}

#[tokio::test]
async fn thinking_that_would_leave_no_room_for_an_answer_is_refused() {
    let body = r#"{"model":"claude-sonnet-4-6","max_tokens":32000,"stream":true,"thinking":{"type":"enabled","budget_tokens":10000},"messages":[]}"#;
    let input = (body.len() as i64 + 1_024) * 3_750;
    for (output, status) in [(11_100, 200), (10_500, 402)] {
        let cap = Some(NanoUsd::from_nanos(input + output * 15_000));
        let house = House::with(vec![Act::stream(&Speaks::Messages.whole())], Plan { cap, ..Plan::default() }).await;
        let got = house.post("/v1/messages", body).await;
        assert_eq!(got.status, status, "{output}: {}", got.text());
    }
}

#[tokio::test]
async fn a_granted_tool_is_reserved_for_and_settled_by_its_uses() {
    let events = Speaks::Messages.whole().replace(
        r#""usage":{"output_tokens":5}"#,
        r#""usage":{"output_tokens":5,"input_tokens":500,"server_tool_use":{"web_search_requests":2}}"#,
    );
    let body = |uses: &str| {
        let tools = format!(r#""tools":[{{"type":"web_search_20250305","name":"web_search"{uses}}}],"messages""#);
        Speaks::Messages.request(true).replace("\"messages\"", &tools)
    };
    let mut plan = Speaks::Messages.plan();
    plan.policy.hosted_tools.insert(HostedTool::WebSearch, 20_000);
    let house = House::with(vec![Act::stream(&events)], plan).await;
    let got = house.post("/v1/messages", body("")).await;
    check("without limit", &got, 400, true, "set max_uses");
    let sent = body(r#","max_uses":3"#);
    assert_eq!(house.post("/v1/messages", sent.clone()).await.status, 200);
    house.ledger.closed().await;
    let Entry::Reserved(ask, _) = &house.ledger.entries()[0] else { panic!("reserved") };
    let input = sent.len() as u64 + 1_024 + 3 * 20_000;
    assert_eq!(ask.quote.input_tokens, input);
    assert_eq!(ask.quote.input_picos, u128::from(input) * 3_750_000 + 3 * 10_000_000_000);
    // The input may grow: nothing is given back on the way.
    assert!(!house.ledger.entries().iter().any(|entry| matches!(entry, Entry::Trimmed(..))));
    assert_eq!(house.ledger.spent(), 500 * 3_000 + 5 * 15_000 + 2 * 10_000_000);
}
