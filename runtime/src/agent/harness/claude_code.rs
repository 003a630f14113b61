//! `claude`: Anthropic's command line agent. Seen with 2.1.330.

use serde_json::Value;

use super::reader::{Found, text};
use super::{HOME, PLACEHOLDER_KEY, Prepared, Run, WORKSPACE, set, switched_on};

/// Where claude keeps its configuration and its sessions.
const FOLDER: &str = "/home/agent/.claude";
/// How long it waits for a whole answer, in milliseconds. When a stream was cut it asks again without one, and then nothing
/// comes before the answer is complete; the gateway has the shorter limits.
const WAIT_MS: &str = "1800000";

pub(super) fn prepare(run: &Run<'_>) -> Prepared {
    let model = run.model.model_id.as_str();
    let mut argv = vec![
        "claude",
        "--print",
        "--output-format",
        "stream-json",
        "--verbose",
        "--dangerously-skip-permissions",
        "--model",
        model,
        // A repository's own settings can redirect the model traffic and start programs before the first word.
        "--setting-sources",
        "user",
        "--strict-mcp-config",
        // A search on the provider's side brings in text that no budget bounds, and the gateway refuses it.
        "--disallowedTools",
        "WebSearch",
    ];
    if let Some(session) = run.resume {
        argv.extend(["--resume", session]);
    }
    let mut env = set([
        ("HOME", HOME),
        ("CLAUDE_CONFIG_DIR", FOLDER),
        ("ANTHROPIC_BASE_URL", run.gateway),
        ("ANTHROPIC_API_KEY", PLACEHOLDER_KEY),
        // Every call goes to the task's model, those beside the conversation and those of sub-agents too.
        ("ANTHROPIC_MODEL", model),
        ("ANTHROPIC_SMALL_FAST_MODEL", model),
        ("ANTHROPIC_DEFAULT_HAIKU_MODEL", model),
        ("ANTHROPIC_DEFAULT_SONNET_MODEL", model),
        ("ANTHROPIC_DEFAULT_OPUS_MODEL", model),
        ("CLAUDE_CODE_SUBAGENT_MODEL", model),
        // Retries are the gateway's. The second, unstreamed request after a cut stream stays: without it the task is over.
        ("CLAUDE_CODE_MAX_RETRIES", "1"),
        ("API_TIMEOUT_MS", WAIT_MS),
    ]);
    env.extend(switched_on([
        "IS_SANDBOX",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
        "DISABLE_AUTOUPDATER",
        "DISABLE_TELEMETRY",
        "DISABLE_ERROR_REPORTING",
        "DISABLE_BUG_COMMAND",
    ]));
    // The repository's instructions belong to its settings, which are left out: they are named here. Those that it has not
    // are passed over.
    let instructions = format!("@{WORKSPACE}/CLAUDE.md\n@{WORKSPACE}/AGENTS.md\n");
    Prepared {
        files: vec![(format!("{FOLDER}/CLAUDE.md"), instructions.into_bytes())],
        argv: argv.into_iter().map(str::to_owned).collect(),
        env,
        stdin: run.prompt.into(),
    }
}

/// Reads one event of `claude --output-format stream-json`.
pub(super) fn read(event: &Value, found: &mut Found) {
    let content = || event["message"]["content"].as_array().into_iter().flatten();
    match event["type"].as_str().unwrap_or_default() {
        "system" if event["subtype"] == "init" => found.session(&event["session_id"]),
        "assistant" => {
            for block in content() {
                match block["type"].as_str().unwrap_or_default() {
                    // Its own words about an error are written as if the model had said them.
                    "text" if event["message"]["model"] == "<synthetic>" => found.error(text(&block["text"])),
                    "text" => found.message(text(&block["text"])),
                    "tool_use" => {
                        let name = block["name"].as_str().unwrap_or_default();
                        if let Some(id) = block["id"].as_str() {
                            found.called(id, name, block["input"].clone());
                        }
                    }
                    _ => {}
                }
            }
        }
        "user" => {
            for block in content().filter(|block| block["type"] == "tool_result") {
                if let Some(id) = block["tool_use_id"].as_str() {
                    found.finished(id, block["is_error"] != true, text(&block["content"]));
                }
            }
        }
        // `subtype` says "success" also of failures.
        "result" if event["is_error"] == true => found.error(text(&event["result"])),
        _ => {}
    }
}
