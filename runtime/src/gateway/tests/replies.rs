//! What comes back when nothing goes wrong.

use serde_json::json;

use super::house::*;

#[tokio::test]
async fn a_stream_passes_as_it_is_and_is_paid_for() {
    for speaks in ALL {
        let house = House::with(vec![Act::stream(&speaks.whole())], speaks.plan()).await;
        let got = house.post(speaks.path(), speaks.request(true)).await;
        assert_eq!((got.status, got.clean), (200, true), "{speaks:?}: {}", got.text());
        assert!(got.header("content-type").expect("a type").starts_with("text/event-stream"));
        let mut events = speaks.events();
        if speaks == Speaks::Chat {
            // The chunk with the usage, which this caller did not ask for.
            events.remove(4);
        }
        assert_eq!(got.text(), events.concat(), "{speaks:?}");
        house.ledger.closed().await;
        house.ledger.check();
        assert_eq!(house.ledger.spent(), speaks.cost(), "{speaks:?}");
        assert_eq!(house.asked().len(), 1);
    }
}

#[tokio::test]
async fn a_caller_that_wants_no_stream_gets_one_reply() {
    for speaks in ALL {
        for piece in [usize::MAX, 1] {
            let act = Act::stream(&speaks.whole()).in_pieces(piece);
            let house = House::with(vec![act], speaks.plan()).await;
            let got = house.post(speaks.path(), speaks.request(false)).await;
            assert_eq!((got.status, got.clean), (200, true), "{speaks:?}: {}", got.text());
            assert_eq!(got.header("content-type"), Some("application/json"));
            assert_eq!(speaks.words(&got.json()), "Grüezi 🏔");
            let expected = match speaks {
                Speaks::Messages => json!({ "input_tokens": 10, "output_tokens": 5 }),
                Speaks::Chat => json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15 }),
                Speaks::Responses => json!({ "input_tokens": 10, "output_tokens": 5, "total_tokens": 15 }),
            };
            assert_eq!(got.json()["usage"], expected);
            house.ledger.closed().await;
            assert_eq!(house.ledger.spent(), speaks.cost(), "{speaks:?}");
            assert_eq!(house.asked()[0].json()["stream"], true, "the provider streams all the same");
        }
    }
}

#[tokio::test]
async fn what_is_newer_than_this_version_passes_and_what_comes_after_the_end_is_no_fault() {
    for speaks in ALL {
        let mut events = speaks.events();
        if speaks != Speaks::Chat {
            events.insert(
                1,
                "event: newer\ndata: {\"type\":\"newer\",\"delta\":[7],\"message\":\"m\",\"item\":1}\n\n".into(),
            );
        }
        let sent = format!("{}data: {{\n\n", events.concat());
        for stream in [true, false] {
            let house = House::with(vec![Act::stream(&sent)], speaks.plan()).await;
            let got = house.post(speaks.path(), speaks.request(stream)).await;
            assert_eq!((got.status, got.clean), (200, true), "{speaks:?}: {}", got.text());
            if stream {
                assert_eq!(got.text().contains("newer"), speaks != Speaks::Chat, "{speaks:?}");
                assert!(got.text().contains(events.last().expect("an end")), "{speaks:?}");
            } else {
                assert_eq!(speaks.words(&got.json()), "Grüezi 🏔");
            }
            house.ledger.closed().await;
            assert_eq!(house.ledger.spent(), speaks.cost(), "{speaks:?}");
        }
    }
}

#[tokio::test]
async fn every_kind_of_part_comes_back_in_one_reply() {
    let claude = [
        r#"{"type":"message_start","message":{"id":"m","role":"assistant","content":[],"usage":{"input_tokens":1,"output_tokens":1}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hm."}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hi"}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"citations_delta","citation":{"c":1}}}"#,
        r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t","name":"bash","input":{}}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"1}"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":7},"context_management":{"x":1}}"#,
        r#"{"type":"message_stop"}"#,
    ]
    .map(|event| format!("data: {event}\n\n"))
    .concat();
    let house = House::new(vec![Act::stream(&claude)]).await;
    let got = house.post("/v1/messages", Speaks::Messages.request(false)).await.json();
    let expected = json!({
        "id": "m", "role": "assistant", "stop_reason": "tool_use", "context_management": { "x": 1 },
        "usage": { "input_tokens": 1, "output_tokens": 7 },
        "content": [
            { "type": "thinking", "thinking": "Hm.", "signature": "c2ln" },
            { "type": "text", "text": "Hi", "citations": [{ "c": 1 }] },
            { "type": "tool_use", "id": "t", "name": "bash", "input": { "a": 1 } },
        ],
    });
    assert_eq!(got, expected);
    let gpt = [
        r#"{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"Hm"}}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"."}}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t","type":"function","function":{"name":"bash","arguments":""}}]}}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}}]}}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"u","type":"function","function":{"name":"read","arguments":"{}"}}]}}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}}]}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        r#"{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":7}}"#,
        "[DONE]",
    ]
    .map(|event| format!("data: {event}\n\n"))
    .concat();
    let house = House::with(vec![Act::stream(&gpt)], Speaks::Chat.plan()).await;
    let got = house.post("/v1/chat/completions", Speaks::Chat.request(false)).await.json();
    let call = |id: &str, name: &str, arguments: &str| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
    let expected = json!({
        "id": "c", "object": "chat.completion", "usage": { "prompt_tokens": 1, "completion_tokens": 7 },
        "choices": [{ "index": 0, "finish_reason": "tool_calls", "logprobs": null, "message": {
            "role": "assistant", "content": null, "reasoning_content": "Hm.",
            "tool_calls": [call("t", "bash", "{\"a\":1}"), call("u", "read", "{}")],
        } }],
    });
    assert_eq!(got, expected);
}
