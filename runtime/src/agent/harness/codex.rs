//! `codex`: OpenAI's command line agent. Seen with 0.169.0.

use serde_json::{Value, json};

use super::reader::{Found, text};
use super::{HOME, PLACEHOLDER_KEY, Prepared, Run, set};

/// Where codex keeps its configuration and its sessions.
const FOLDER: &str = "/home/agent/.codex";

/// The configuration. A repository's own `.codex/` is ignored, because nobody has declared the work tree trusted; its
/// `AGENTS.md` is read all the same. A work tree that is declared *untrusted* would lose that too.
///
/// Retries are the gateway's. When nobody listens, codex waits: the server is being restarted. The idle limit is far above the
/// gateway's keep-alives. The hosted search would bring in text that no budget bounds, and the gateway refuses it.
fn config(run: &Run<'_>) -> String {
    // A JSON string of such text is a TOML string too.
    let quoted = |text: &str| Value::from(text).to_string();
    format!(
        r#"model = {model}
model_provider = "orchestra"
approval_policy = "never"
sandbox_mode = "danger-full-access"
web_search = "disabled"
check_for_update_on_startup = false

[model_providers.orchestra]
name = "orchestra"
base_url = {base}
env_key = "ORCHESTRA_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 1
stream_idle_timeout_ms = 300000

[analytics]
enabled = false

[feedback]
enabled = false

[history]
persistence = "none"

[features]
plugins = false
apps = false
hooks = false
image_generation = false
enable_request_compression = false
unbounded_connection_retries = true
"#,
        model = quoted(&run.model.model_id),
        base = quoted(&format!("{}/v1", run.gateway)),
    )
}

pub(super) fn prepare(run: &Run<'_>) -> Prepared {
    let mut argv = vec![
        "codex",
        "exec",
        "--json",
        // The sandbox is around it; its own needs namespaces, which there are none of in here.
        "--dangerously-bypass-approvals-and-sandbox",
        "--skip-git-repo-check",
    ];
    if let Some(session) = run.resume {
        argv.extend(["resume", session]);
    }
    // The prompt comes on standard input, where its length and its first letter do not matter.
    argv.push("-");
    Prepared {
        files: vec![(format!("{FOLDER}/config.toml"), config(run).into_bytes())],
        argv: argv.into_iter().map(str::to_owned).collect(),
        env: set([("CODEX_HOME", FOLDER), ("ORCHESTRA_API_KEY", PLACEHOLDER_KEY), ("HOME", HOME)]),
        stdin: run.prompt.into(),
    }
}

/// Reads one event of `codex exec --json`.
pub(super) fn read(event: &Value, found: &mut Found) {
    match event["type"].as_str().unwrap_or_default() {
        "thread.started" => found.session(&event["thread_id"]),
        "error" => found.error(text(&event["message"])),
        "turn.failed" => found.error(text(&event["error"]["message"])),
        "item.started" => item(&event["item"], false, found),
        "item.completed" => item(&event["item"], true, found),
        _ => {}
    }
}

fn item(item: &Value, done: bool, found: &mut Found) {
    let kind = item["type"].as_str().unwrap_or_default();
    let (name, input) = match kind {
        "agent_message" if done => return found.message(text(&item["text"])),
        "error" if done => return found.error(text(&item["message"])),
        "command_execution" => (kind.to_owned(), json!({ "command": item["command"] })),
        "file_change" => (kind.to_owned(), json!({ "changes": item["changes"] })),
        "web_search" => (kind.to_owned(), json!({ "query": item["query"] })),
        "mcp_tool_call" => (format!("{}.{}", text(&item["server"]), text(&item["tool"])), item["arguments"].clone()),
        _ => return,
    };
    let Some(id) = item["id"].as_str() else { return };
    found.called(id, &name, input);
    if done {
        let ok = item["status"] != "failed" && item["exit_code"].as_i64().is_none_or(|code| code == 0);
        let output = match kind {
            "command_execution" => text(&item["aggregated_output"]),
            "mcp_tool_call" if item["error"].is_null() => text(&item["result"]["content"]),
            _ => text(&item["error"]["message"]),
        };
        found.finished(id, ok, output);
    }
}
