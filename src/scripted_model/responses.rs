//! A turn in the words of OpenAI's Responses.

use serde_json::{Value, json};

use super::script::{Asked, Played, SpecialTool, Tool};

/// The id of a tool call: the same whenever the same turn is played.
fn call_id(asked: &Asked, index: usize) -> String {
    format!("call_{}_{index}", asked.turn)
}

fn usage(played: &Played) -> Value {
    if !played.count {
        return Value::Null;
    }
    let usage = &played.usage;
    json!({
        "input_tokens": usage.context(),
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_tokens, "cache_write_tokens": usage.cache_write_tokens(),
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage.total(),
    })
}

/// Why a response is not whole, if it is not.
fn reason(played: &Played) -> Option<&'static str> {
    match &*played.stop {
        "max_tokens" | "model_context_window_exceeded" => Some("max_output_tokens"),
        "refusal" => Some("content_filter"),
        _ => None,
    }
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn message(asked: &Asked, status: &str, content: Vec<Value>) -> Value {
    json!({ "id": format!("msg_{}", asked.turn), "type": "message", "role": "assistant", "status": status, "content": content })
}

/// What the request says about a tool that is called in another way than most.
fn special<'a>(asked: &'a Asked, tool: &Tool) -> Option<&'a SpecialTool> {
    asked.special_tools.iter().find(|special| special.name == tool.name)
}

fn takes_text(asked: &Asked, tool: &Tool) -> bool {
    special(asked, tool).is_some_and(|special| special.takes_text)
}

/// A call of a tool, in the form that the request gave the tool, with this much of its input.
fn call(asked: &Asked, at: usize, tool: &Tool, status: &str, input: &str) -> Value {
    let (kind, id, field) = if takes_text(asked, tool) {
        ("custom_tool_call", "ctc", "input")
    } else {
        ("function_call", "fc", "arguments")
    };
    let id = format!("{id}_{}_{at}", asked.turn);
    let call_id = call_id(asked, at);
    let mut call =
        json!({ "id": id, "type": kind, "status": status, "call_id": call_id, "name": tool.name, field: input });
    if let Some(namespace) = special(asked, tool).and_then(|special| special.namespace.as_deref()) {
        call["namespace"] = namespace.into();
    }
    call
}

/// The input as the model writes it: text for the tools that take text, JSON for all others.
fn written(asked: &Asked, tool: &Tool) -> String {
    match (&tool.raw_input, &tool.input) {
        (None, Value::String(text)) if takes_text(asked, tool) => text.clone(),
        _ => tool.written(),
    }
}

fn response(asked: &Asked, status: &str, output: Vec<Value>) -> Value {
    json!({
        "id": format!("resp_{}", asked.turn), "object": "response", "created_at": 0, "status": status, "error": null,
        "incomplete_details": null, "model": asked.model, "output": output, "parallel_tool_calls": true, "usage": null,
    })
}

fn output(played: &Played, asked: &Asked) -> Vec<Value> {
    let text = played.text.iter().map(|text| message(asked, "completed", vec![part(text)]));
    let tools = played.tools.iter().enumerate();
    text.chain(tools.map(|(at, tool)| call(asked, at, tool, "completed", &written(asked, tool)))).collect()
}

pub(super) fn json(played: &Played, asked: &Asked) -> Value {
    let reason = reason(played);
    let status = if reason.is_some() { "incomplete" } else { "completed" };
    let mut response = response(asked, status, output(played, asked));
    response["usage"] = usage(played);
    if let Some(reason) = reason {
        response["incomplete_details"] = json!({ "reason": reason });
    }
    response
}

pub(super) fn stream(played: &Played, asked: &Asked) -> Vec<String> {
    let begun = response(asked, "in_progress", Vec::new());
    let mut events = vec![
        json!({ "type": "response.created", "response": begun }),
        json!({ "type": "response.in_progress", "response": begun }),
    ];
    let done = output(played, asked);
    let mut index = 0;
    if let Some(text) = &played.text {
        let item = message(asked, "in_progress", Vec::new());
        events.push(json!({ "type": "response.output_item.added", "output_index": index, "item": item }));
        let at = json!({ "item_id": format!("msg_{}", asked.turn), "output_index": index, "content_index": 0 });
        let mut say = |kind: &str, field: &str, value: Value| {
            let mut event = at.clone();
            event["type"] = kind.into();
            event[field] = value;
            events.push(event);
        };
        say("response.content_part.added", "part", part(""));
        for piece in Played::pieces(text) {
            say("response.output_text.delta", "delta", piece.into());
        }
        say("response.output_text.done", "text", text.as_str().into());
        say("response.content_part.done", "part", part(text));
        events.push(json!({ "type": "response.output_item.done", "output_index": index, "item": done[index] }));
        index += 1;
    }
    for (at, tool) in played.tools.iter().enumerate() {
        let input = written(asked, tool);
        let (begin, field) = if takes_text(asked, tool) {
            ("response.custom_tool_call_input", "input")
        } else {
            ("response.function_call_arguments", "arguments")
        };
        let item = call(asked, at, tool, "in_progress", "");
        let id = item["id"].clone();
        events.push(json!({ "type": "response.output_item.added", "output_index": index, "item": item }));
        for piece in Played::pieces(&input) {
            let kind = format!("{begin}.delta");
            events.push(json!({ "type": kind, "item_id": id, "output_index": index, "delta": piece }));
        }
        let kind = format!("{begin}.done");
        events.push(json!({ "type": kind, "item_id": id, "output_index": index, field: input }));
        events.push(json!({ "type": "response.output_item.done", "output_index": index, "item": done[index] }));
        index += 1;
    }
    let whole = json(played, asked);
    let kind = format!("response.{}", whole["status"].as_str().unwrap_or_default());
    events.push(json!({ "type": kind, "response": whole }));
    events.into_iter().enumerate().map(|(number, event)| written_out(event, number)).collect()
}

fn written_out(mut event: Value, number: usize) -> String {
    event["sequence_number"] = number.into();
    format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default())
}

/// An overloaded provider: an event of its own in place of the first, the response's failure after that.
pub(super) fn overloaded(message: &str, first: bool) -> String {
    const CODE: &str = "server_is_overloaded";
    let error = json!({ "code": CODE, "message": message });
    if first {
        let event = json!({ "type": "error", "code": CODE, "message": message, "param": null, "error": error });
        return written_out(event, 0);
    }
    let response = json!({ "id": "resp_failed", "object": "response", "status": "failed", "error": error, "output": [], "usage": null });
    written_out(json!({ "type": "response.failed", "response": response }), 0)
}
