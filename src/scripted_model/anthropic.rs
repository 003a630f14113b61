//! A turn in Anthropic's words.

use serde_json::{Value, json};

use super::script::{Asked, Played};

/// The id of a tool call: the same whenever the same turn is played.
fn tool_id(asked: &Asked, index: usize) -> String {
    format!("toolu_{}_{index}", asked.turn)
}

fn input_usage(played: &Played) -> Value {
    if !played.count {
        return json!({});
    }
    let usage = &played.usage;
    json!({
        "input_tokens": usage.input_tokens,
        "output_tokens": 1,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens(),
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write5m_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write1h_tokens,
        },
    })
}

fn message(asked: &Asked) -> Value {
    json!({ "id": format!("msg_{}", asked.turn), "type": "message", "role": "assistant", "model": asked.model,
        "content": [], "stop_reason": null, "stop_sequence": null })
}

pub(super) fn stream(played: &Played, asked: &Asked) -> Vec<String> {
    let mut start = message(asked);
    start["usage"] = input_usage(played);
    let mut events = vec![json!({ "type": "message_start", "message": start }), json!({ "type": "ping" })];
    let mut index = 0;
    let mut block = |begin: Value, deltas: Vec<Value>| {
        events.push(json!({ "type": "content_block_start", "index": index, "content_block": begin }));
        for delta in deltas {
            events.push(json!({ "type": "content_block_delta", "index": index, "delta": delta }));
        }
        events.push(json!({ "type": "content_block_stop", "index": index }));
        index += 1;
    };
    if let Some(thinking) = &played.thinking {
        let mut deltas = vec![json!({ "type": "thinking_delta", "thinking": thinking })];
        deltas.push(json!({ "type": "signature_delta", "signature": "c2NyaXB0ZWQ=" }));
        block(json!({ "type": "thinking", "thinking": "", "signature": "" }), deltas);
    }
    if let Some(text) = &played.text {
        let deltas =
            Played::pieces(text).into_iter().map(|text| json!({ "type": "text_delta", "text": text })).collect();
        block(json!({ "type": "text", "text": "" }), deltas);
    }
    for (at, tool) in played.tools.iter().enumerate() {
        let deltas = Played::pieces(&tool.written())
            .into_iter()
            .map(|json| json!({ "type": "input_json_delta", "partial_json": json }))
            .collect();
        block(json!({ "type": "tool_use", "id": tool_id(asked, at), "name": tool.name, "input": {} }), deltas);
    }
    let mut end = json!({ "type": "message_delta", "delta": { "stop_reason": played.stop, "stop_sequence": null } });
    if played.count {
        end["usage"] = json!({ "output_tokens": played.usage.output_tokens });
    }
    events.push(end);
    events.push(json!({ "type": "message_stop" }));
    events
        .into_iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default()))
        .collect()
}

pub(super) fn json(played: &Played, asked: &Asked) -> Value {
    let mut content = Vec::new();
    if let Some(thinking) = &played.thinking {
        content.push(json!({ "type": "thinking", "thinking": thinking, "signature": "c2NyaXB0ZWQ=" }));
    }
    if let Some(text) = &played.text {
        content.push(json!({ "type": "text", "text": text }));
    }
    for (at, tool) in played.tools.iter().enumerate() {
        content.push(json!({ "type": "tool_use", "id": tool_id(asked, at), "name": tool.name, "input": tool.input }));
    }
    let mut message = message(asked);
    message["content"] = content.into();
    message["stop_reason"] = played.stop.as_str().into();
    message["usage"] = input_usage(played);
    if played.count {
        message["usage"]["output_tokens"] = played.usage.output_tokens.into();
    }
    message
}

pub(super) fn error(status: u16, message: &str) -> Value {
    let kind = match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    json!({ "type": "error", "error": { "type": kind, "message": message } })
}
