//! `opencode`. Seen with 1.18.33.

use serde_json::{Value, json};

use super::reader::{Found, text};
use super::{HOME, PLACEHOLDER_KEY, Prepared, Run, WORKSPACE, set, switched_on};
use crate::model::Dialect;

/// The name under which opencode knows the provider, and the client it asks it with. Under their own names it knows what
/// their models can do.
fn provider(run: &Run<'_>) -> (&'static str, &'static str) {
    match run.model.dialect {
        Dialect::Anthropic => ("anthropic", "@ai-sdk/anthropic"),
        Dialect::OpenaiChat if &*run.model.provider != "openai" => ("orchestra", "@ai-sdk/openai-compatible"),
        Dialect::OpenaiChat | Dialect::OpenaiResponses => ("openai", "@ai-sdk/openai"),
    }
}

/// The configuration. It is passed in the environment, and so goes over everything that lies in files.
fn config(run: &Run<'_>) -> Value {
    let (provider, client) = provider(run);
    let model = &run.model.model_id;
    let name = format!("{provider}/{model}");
    json!({
        "model": name,
        "small_model": name,
        "enabled_providers": [provider],
        "provider": { provider: {
            "npm": client,
            "options": {
                "baseURL": format!("{}/v1", run.gateway),
                "apiKey": PLACEHOLDER_KEY,
                // Time limits are the gateway's, which keeps a stream alive; this is far above its pings.
                "timeout": false,
                "headerTimeout": false,
                "chunkTimeout": 300_000,
            },
            "models": { model: {} },
        } },
        "permission": "allow",
        "autoupdate": false,
        "share": "disabled",
        "snapshot": false,
        "lsp": false,
        // The repository's instructions go with its configuration, which is left out: they are named here. Those that it has
        // not are passed over.
        "instructions": [format!("{WORKSPACE}/AGENTS.md"), format!("{WORKSPACE}/CLAUDE.md")],
    })
}

pub(super) fn prepare(run: &Run<'_>) -> Prepared {
    let name = format!("{}/{}", provider(run).0, run.model.model_id);
    // With a title of ours it does not ask the model for one.
    let mut argv = vec!["opencode", "run", "--format", "json", "--title", "task", "--model", &name];
    if let Some(session) = run.resume {
        argv.extend(["--session", session]);
    }
    let argv = argv.into_iter().map(str::to_owned).collect();
    let mut env = set([
        ("HOME", HOME),
        ("XDG_CONFIG_HOME", "/home/agent/.config"),
        ("XDG_DATA_HOME", "/home/agent/.local/share"),
        ("XDG_STATE_HOME", "/home/agent/.local/state"),
        ("XDG_CACHE_HOME", "/home/agent/.cache"),
        // Set to nothing, so that a `.env` in the work tree cannot set them.
        ("OPENCODE_CONFIG", ""),
        ("OPENCODE_CONFIG_DIR", ""),
        ("OPENCODE_PERMISSION", ""),
        ("OPENCODE_AUTH_CONTENT", ""),
        ("OPENCODE_MODELS_URL", ""),
        ("OPENCODE_MODELS_PATH", ""),
    ]);
    env.push(("OPENCODE_CONFIG_CONTENT".into(), config(run).to_string()));
    env.extend(switched_on([
        // A repository's `opencode.json` and `.opencode/` can redirect the model traffic and run code in the agent.
        "OPENCODE_DISABLE_PROJECT_CONFIG",
        "OPENCODE_DISABLE_MODELS_FETCH",
        "OPENCODE_DISABLE_AUTOUPDATE",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS",
        "OPENCODE_DISABLE_LSP_DOWNLOAD",
        "OPENCODE_DISABLE_SHARE",
    ]));
    Prepared { files: Vec::new(), argv, env, stdin: run.prompt.into() }
}

/// Reads one event of `opencode run --format json`.
pub(super) fn read(event: &Value, found: &mut Found) {
    found.session(&event["sessionID"]);
    let part = &event["part"];
    match event["type"].as_str().unwrap_or_default() {
        "text" => found.message(text(&part["text"])),
        "tool_use" => {
            let (Some(id), state) = (part["callID"].as_str(), &part["state"]) else { return };
            found.called(id, part["tool"].as_str().unwrap_or_default(), state["input"].clone());
            let failed = state["status"] == "error";
            if failed || state["status"] == "completed" {
                let ok = !failed && state["metadata"]["exit"].as_i64().is_none_or(|code| code == 0);
                found.finished(id, ok, text(&state[if failed { "error" } else { "output" }]));
            }
        }
        "error" => {
            let error = &event["error"];
            let said = text(&error["data"]["message"]);
            found.error(if said.is_empty() { text(&error["name"]) } else { said });
        }
        _ => {}
    }
}
