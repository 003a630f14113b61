//! What a provider answers when all is well, and what it is asked.

use super::*;

#[tokio::test]
async fn a_whole_reply_is_the_same_however_it_is_cut() {
    let text = events(&claude_events());
    for (text, piece) in [(text.clone(), usize::MAX), (text.clone(), 1), (text.replace('\n', "\r\n"), 7)] {
        let (reply, _) = ask_as(CLAUDE, Answer::stream(&text).in_pieces(piece)).await;
        assert_eq!(reply.expect("a reply"), claude_reply(), "in pieces of {piece}");
    }
    let expected = ModelReply {
        content: vec![
            Block::Text { text: Content::Inline("Grüezi 🏔".into()) },
            Block::ToolUse {
                id: "call_1".into(),
                name: "bash".into(),
                input: json!({ "command": "ls" }),
                malformed: None,
            },
            Block::ToolUse {
                id: "call_2".into(),
                name: "read".into(),
                input: Value::Null,
                malformed: Some("{\"path\"".into()),
            },
        ],
        stop_reason: StopReason::ToolUse,
        usage: Usage { input_tokens: 36, output_tokens: 7, cache_read_tokens: 64, ..Usage::default() },
        usage_reported: true,
    };
    let text = gpt_stream(&gpt_chunks(), ": a comment\n\ndata: [DONE]\n\n");
    for (text, piece) in [(text.clone(), usize::MAX), (text.clone(), 1), (text.replace('\n', "\r\n"), 7)] {
        let (reply, _) = ask_as(GPT, Answer::stream(&text).in_pieces(piece)).await;
        assert_eq!(reply.expect("a reply"), expected, "in pieces of {piece}");
    }
}

#[tokio::test]
async fn the_words_are_heard_while_they_come_and_a_slow_listener_stops_nothing() {
    let (url, _served) = provider(Answer::stream(&events(&claude_events()))).await;
    let models = models(&url);
    let (sender, mut words) = mpsc::channel(1);
    let key = SecretString::from(KEY);
    let reply = models.call(&request(&models, CLAUDE), Some(&key), Some(sender), CancellationToken::new()).await;
    assert!(reply.is_ok());
    assert_eq!(words.recv().await.as_deref(), Some("Grüezi "));
    assert_eq!(words.recv().await, None, "the second did not fit and was dropped");
}

fn body(asked: &str) -> Value {
    serde_json::from_str(asked.split_once("\r\n\r\n").expect("a body").1).expect("JSON")
}

#[tokio::test]
async fn each_dialect_is_asked_in_its_own_way() {
    let (_, asked) = ask_as(CLAUDE, Answer::stream(&events(&claude_events()))).await;
    assert!(asked.starts_with("POST /v1/messages HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("x-api-key: {KEY}\r\n")) && asked.contains("anthropic-version: 2023-06-01\r\n"));
    let sent = body(&asked);
    assert_eq!((&sent["stream"], &sent["max_tokens"]), (&json!(true), &json!(4096)));
    assert_eq!(sent["system"][0]["cache_control"]["type"], "ephemeral");
    assert_eq!(sent["messages"][0]["content"][0]["cache_control"]["type"], "ephemeral");
    assert_eq!(sent["tools"][0]["input_schema"]["type"], "object");

    let (_, asked) = ask_as(GPT, Answer::stream(&gpt_stream(&gpt_chunks(), "data: [DONE]\n\n"))).await;
    assert!(asked.starts_with("POST /chat/completions HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("authorization: Bearer {KEY}\r\n")));
    let sent = body(&asked);
    assert_eq!(sent["stream_options"]["include_usage"], true);
    assert_eq!(sent["max_tokens"], 4096);
    assert!(sent["service_tier"].is_null(), "a compatible server may not know the field");
    assert_eq!(sent["messages"][0], json!({ "role": "system", "content": "Be brief." }));
    assert_eq!(sent["tools"][0]["function"]["name"], "bash");
}

#[test]
fn a_conversation_goes_back_as_the_provider_wants_it() {
    let models = models("http://127.0.0.1:1");
    let conversation = vec![
        Turn::User(vec![UserPart::Text { text: "Go".into() }]),
        Turn::Assistant(vec![
            Block::Thinking { text: Content::Inline("Hm.".into()), signature: Some("c2ln".into()) },
            Block::Thinking { text: Content::Inline(String::new()), signature: Some("redacted_thinking:QUJD".into()) },
            Block::Text { text: Content::Inline(String::new()) },
            Block::ToolUse { id: "a".into(), name: "bash".into(), input: Value::Null, malformed: Some("{".into()) },
        ]),
        Turn::User(vec![
            UserPart::Text { text: "Faster".into() },
            UserPart::ToolResult { tool_call: "a".into(), output: Content::Inline("no".into()), is_error: true },
        ]),
    ];
    let sent = |model: &str| {
        let request = ModelRequest { conversation: conversation.clone(), ..request(&models, model) };
        let limit = wire::Limit { tokens: 1, renamed: true, standard_tier: true };
        serde_json::from_slice::<Value>(&wire::encode(&request, limit).expect("encodes")).expect("JSON")
    };
    let claude = sent(CLAUDE);
    assert_eq!(
        claude["messages"][1]["content"],
        json!([
            { "type": "thinking", "thinking": "Hm.", "signature": "c2ln" },
            { "type": "redacted_thinking", "data": "QUJD" },
            { "type": "tool_use", "id": "a", "name": "bash", "input": { "invalid_json": "{" } },
        ])
    );
    assert_eq!(claude["messages"][2]["content"][0]["type"], "tool_result", "results come first");
    assert_eq!(claude["messages"][2]["content"][1]["cache_control"]["type"], "ephemeral");
    let gpt = sent(GPT);
    assert_eq!(gpt["max_completion_tokens"], 1);
    assert_eq!((&claude["service_tier"], &gpt["service_tier"]), (&json!("standard_only"), &json!("default")));
    assert_eq!(gpt["messages"][2]["content"], Value::Null);
    assert_eq!(gpt["messages"][2]["tool_calls"][0]["function"]["arguments"], "{\"invalid_json\":\"{\"}");
    assert_eq!(gpt["messages"][3], json!({ "role": "tool", "tool_call_id": "a", "content": "The tool failed:\nno" }));
    assert_eq!(gpt["messages"][4], json!({ "role": "user", "content": "Faster" }));
    let blob = Content::Blob(BlobRef { sha256: "ab".into(), bytes: 1 });
    let part = UserPart::ToolResult { tool_call: "a".into(), output: blob, is_error: false };
    let unresolved = ModelRequest { conversation: vec![Turn::User(vec![part])], ..request(&models, CLAUDE) };
    assert_eq!(unresolved.bytes().expect_err("unresolved").charged, Charge::Nothing);
}

#[tokio::test]
async fn a_reply_says_why_it_stopped() {
    for (reason, expected) in [
        ("end_turn", StopReason::EndTurn),
        ("stop_sequence", StopReason::EndTurn),
        ("max_tokens", StopReason::MaxTokens),
        ("refusal", StopReason::Refusal),
        ("pause_turn", StopReason::Pause),
        ("model_context_window_exceeded", StopReason::ContextWindow),
    ] {
        let stream = events(&[
            claude_start(),
            json!({ "type": "message_delta", "delta": { "stop_reason": reason }, "usage": { "output_tokens": 0 } }),
            json!({ "type": "message_stop" }),
        ]);
        let reply = ask_as(CLAUDE, Answer::stream(&stream)).await.0.expect(reason);
        assert_eq!((reply.stop_reason, reply.usage.output_tokens), (expected, 0), "zero is a count, not an absence");
    }
    for (reason, expected) in
        [("stop", StopReason::EndTurn), ("length", StopReason::MaxTokens), ("content_filter", StopReason::Refusal)]
    {
        let stream = gpt_stream(&[chunk(json!({ "content": "x" }), Some(reason)), gpt_usage()], "");
        let reply = ask_as(GPT, Answer::stream(&stream)).await.0.expect(reason);
        assert_eq!(reply.stop_reason, expected);
    }
}

#[tokio::test]
async fn a_count_that_never_came_is_bounded_and_marked() {
    let stream = gpt_stream(&[chunk(json!({ "content": "x" }), Some("stop"))], "data: [DONE]\n\n");
    let reply = ask_as(GPT, Answer::stream(&stream)).await.0.expect("a reply");
    assert!(!reply.usage_reported);
    assert!(reply.usage.input_tokens > HIDDEN_INPUT_TOKENS, "{:?}", reply.usage);
    assert_eq!(reply.usage.output_tokens, 4_096, "hidden reasoning is billed up to the limit");
    // The count at the beginning is not the last word.
    let stop = json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" } });
    let stream = events(&[claude_start(), stop, json!({ "type": "message_stop" })]);
    let reply = ask_as(CLAUDE, Answer::stream(&stream)).await.0.expect("a reply");
    assert_eq!((reply.usage_reported, reply.usage.output_tokens), (false, 256));
}
