//! A turn in the words of OpenAI's Chat Completions.

use serde_json::{Value, json};

use super::script::{Asked, Played};

fn tool_id(asked: &Asked, index: usize) -> String {
    format!("call_{}_{index}", asked.turn)
}

fn finish(played: &Played) -> &str {
    match &*played.stop {
        "end_turn" | "stop_sequence" => "stop",
        "tool_use" => "tool_calls",
        "max_tokens" => "length",
        "refusal" => "content_filter",
        other => other,
    }
}

fn usage(played: &Played) -> Value {
    let usage = &played.usage;
    json!({
        "prompt_tokens": usage.context(),
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total(),
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_tokens, "cache_write_tokens": usage.cache_write_tokens(),
        },
    })
}

pub(super) fn stream(played: &Played, asked: &Asked) -> Vec<String> {
    let chunk = |choices: Value| {
        json!({ "id": format!("chatcmpl-{}", asked.turn), "object": "chat.completion.chunk", "created": 0,
            "model": asked.model, "choices": choices })
    };
    let delta = |delta: Value| chunk(json!([{ "index": 0, "delta": delta, "finish_reason": null }]));
    let mut chunks = vec![delta(json!({ "role": "assistant", "content": "" }))];
    for text in played.text.iter().flat_map(|text| Played::pieces(text)) {
        chunks.push(delta(json!({ "content": text })));
    }
    for (at, tool) in played.tools.iter().enumerate() {
        let function = json!({ "name": tool.name, "arguments": "" });
        let call = json!({ "index": at, "id": tool_id(asked, at), "type": "function", "function": function });
        chunks.push(delta(json!({ "tool_calls": [call] })));
        for arguments in Played::pieces(&tool.written()) {
            let call = json!({ "index": at, "function": { "arguments": arguments } });
            chunks.push(delta(json!({ "tool_calls": [call] })));
        }
    }
    chunks.push(chunk(json!([{ "index": 0, "delta": {}, "finish_reason": finish(played) }])));
    if asked.include_usage && played.count {
        let mut last = chunk(json!([]));
        last["usage"] = usage(played);
        chunks.push(last);
    }
    let mut events: Vec<String> = chunks.into_iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    events.push("data: [DONE]\n\n".into());
    events
}

pub(super) fn json(played: &Played, asked: &Asked) -> Value {
    let calls: Vec<Value> = played
        .tools
        .iter()
        .enumerate()
        .map(|(at, tool)| {
            let function = json!({ "name": tool.name, "arguments": tool.written() });
            json!({ "id": tool_id(asked, at), "type": "function", "function": function })
        })
        .collect();
    let mut message = json!({ "role": "assistant", "content": played.text });
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    let mut completion = json!({
        "id": format!("chatcmpl-{}", asked.turn), "object": "chat.completion", "created": 0, "model": asked.model,
        "choices": [{ "index": 0, "message": message, "finish_reason": finish(played) }],
    });
    if played.count {
        completion["usage"] = usage(played);
    }
    completion
}

pub(super) fn error(status: u16, message: &str) -> Value {
    let kind = match status {
        400 | 404 | 413 => "invalid_request_error",
        401 | 403 => "authentication_error",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        _ => "server_error",
    };
    json!({ "error": { "message": message, "type": kind, "code": null, "param": null } })
}
