//! What each agent is started with, and what its own words become. The lines are those that the agents printed.

use std::sync::Arc;

use orchestra_events::task::event::Harness;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::{Models, ProviderConfig, Timeouts};

const GATEWAY: &str = "http://127.0.0.1:8100";
const AGENTS: [Harness; 4] = [Harness::Codex, Harness::Opencode, Harness::ClaudeCode, Harness::Command];

fn model(name: &str) -> ResolvedModel {
    let mut configs = ProviderConfig::built_in();
    configs.push(ProviderConfig {
        name: "ollama".into(),
        dialect: Dialect::OpenaiChat,
        base_url: "http://127.0.0.1:11434/v1".into(),
        operator_key: None,
        key_required: false,
        prices: vec![serde_json::from_str(r#"{"model": "*", "input": 0, "output": 0}"#).expect("row")],
    });
    Models::new(configs, Timeouts::default()).expect("configuration").resolve(name).expect("known")
}

fn run<'a>(harness: Harness, model: &'a ResolvedModel, command: &'a [String]) -> Run<'a> {
    Run { harness, prompt: "--help\nme \"now\"", model, gateway: GATEWAY, resume: None, command }
}

fn variable<'a>(prepared: &'a Prepared, name: &str) -> Option<&'a str> {
    let mut found = prepared.env.iter().filter(|(given, _)| given == name);
    let first = found.next().map(|(_, value)| value.as_str());
    assert!(found.next().is_none(), "{name} is set twice");
    first
}

fn read(harness: Harness, lines: &[&str]) -> Vec<Entry> {
    let mut reader = Reader::new(harness);
    let mut entries: Vec<Entry> = lines.iter().flat_map(|line| reader.line(line.as_bytes())).collect();
    entries.extend(reader.end());
    entries
}

fn called(id: &str, name: &str, input: Value) -> Entry {
    Entry::ToolCalled { id: id.into(), name: name.into(), input }
}

fn finished(id: &str, ok: bool, output: &str) -> Entry {
    Entry::ToolFinished { id: id.into(), ok, output: output.into() }
}

#[test]
fn an_agent_speaks_to_the_gateway_with_a_placeholder_and_reads_its_prompt_from_standard_input() {
    let command = ["my-agent".to_owned(), "--fast".to_owned()];
    for harness in AGENTS {
        let model = model(if harness == Harness::ClaudeCode { "claude-sonnet-4-6" } else { "gpt-5" });
        let prepared = prepare(&run(harness, &model, &command)).expect("prepared");
        assert_eq!(prepared.stdin, b"--help\nme \"now\"");
        assert!(!prepared.argv.iter().any(|argument| argument.contains("now")), "{:?}", prepared.argv);
        for (path, _) in &prepared.files {
            assert!(path.starts_with("/home/agent/") && !path.contains(".."), "{path}");
        }
        let files = prepared.files.iter().map(|(_, content)| String::from_utf8_lossy(content).into_owned());
        let env = prepared.env.iter().map(|(_, value)| value.clone());
        let all: Vec<String> = files.chain(env).chain(prepared.argv.clone()).collect();
        for wanted in [GATEWAY, PLACEHOLDER_KEY, &model.model_id] {
            assert!(all.iter().any(|part| part.contains(wanted)), "{harness:?} {wanted}");
        }
        assert_eq!(variable(&prepared, "NO_PROXY"), Some("127.0.0.1,localhost"));
        assert_eq!(variable(&prepared, "HOME"), Some("/home/agent"));
    }
}

#[test]
fn a_session_is_gone_on_with_where_each_agent_expects_it() {
    let argv = |harness, resume| {
        let model = model(if harness == Harness::ClaudeCode { "claude-sonnet-4-6" } else { "gpt-5" });
        prepare(&Run { resume, ..run(harness, &model, &["x".to_owned()]) }).map(|prepared| prepared.argv.join(" "))
    };
    let session = Some("01a2-b_3");
    let long = "a".repeat(MAX_SESSION_BYTES + 1);
    assert!(argv(Harness::Codex, session).expect("prepared").ends_with(" resume 01a2-b_3 -"));
    assert!(argv(Harness::ClaudeCode, session).expect("prepared").ends_with(" --resume 01a2-b_3"));
    assert!(argv(Harness::Opencode, session).expect("prepared").ends_with(" --session 01a2-b_3"));
    for harness in AGENTS {
        for no_session in ["", "--last", "../x", "a b", "a\nb", &long] {
            let refused = argv(harness, Some(no_session));
            assert!(matches!(refused, Err(PrepareError::Session(_))), "{harness:?} {no_session:?}");
        }
    }
}

#[test]
fn an_agent_needs_a_provider_that_speaks_as_it_does() {
    let refused =
        |harness, name: &str| prepare(&run(harness, &model(name), &[])).map(|_| ()).map_err(|error| error.to_string());
    let told = refused(Harness::Codex, "claude-sonnet-4-6").expect_err("another dialect");
    assert!(told.contains("codex speaks OpenAI's Responses, which anthropic does not"), "{told}");
    assert!(refused(Harness::ClaudeCode, "gpt-5").expect_err("another dialect").contains("claude-code"));
    assert!(refused(Harness::Builtin, "gpt-5").is_err());
    assert!(refused(Harness::Command, "gpt-5").expect_err("no command").contains("needs a command"));
    assert_eq!(refused(Harness::Codex, "ollama/qwen3-coder:30b"), Ok(()));
}

#[test]
fn opencode_asks_each_provider_in_its_own_dialect_and_for_nothing_else() {
    for (name, provider, client) in [
        ("claude-sonnet-4-6", "anthropic", "@ai-sdk/anthropic"),
        ("gpt-5", "openai", "@ai-sdk/openai"),
        ("ollama/org/qwen3", "orchestra", "@ai-sdk/openai-compatible"),
    ] {
        let model = model(name);
        let prepared = prepare(&run(Harness::Opencode, &model, &[])).expect("prepared");
        let config: Value =
            serde_json::from_str(variable(&prepared, "OPENCODE_CONFIG_CONTENT").expect("set")).expect("JSON");
        let whole = format!("{provider}/{}", model.model_id);
        assert_eq!((&config["model"], &config["small_model"]), (&json!(whole), &json!(whole)));
        assert_eq!(config["enabled_providers"], json!([provider]));
        let configured = &config["provider"][provider];
        assert_eq!(configured["npm"], client);
        assert_eq!(configured["options"]["baseURL"], format!("{GATEWAY}/v1"));
        assert!(configured["models"][&model.model_id].is_object());
        assert!(prepared.argv.ends_with(&["--model".to_owned(), whole]));
        assert_eq!(variable(&prepared, "OPENCODE_DISABLE_PROJECT_CONFIG"), Some("1"));
    }
}

#[test]
fn a_models_name_cannot_add_to_codexs_configuration() {
    let hostile = ResolvedModel { model_id: "x\"\nmodel_provider = \"evil".into(), ..model("gpt-5") };
    let prepared = prepare(&run(Harness::Codex, &hostile, &[])).expect("prepared");
    let (path, config) = &prepared.files[0];
    let config = String::from_utf8_lossy(config);
    assert_eq!(path, "/home/agent/.codex/config.toml");
    let providers: Vec<&str> = config.lines().filter(|line| line.starts_with("model_provider ")).collect();
    assert_eq!(providers, ["model_provider = \"orchestra\""]);
}

#[test]
fn a_command_is_told_its_task_in_every_way() {
    let command = ["/usr/bin/agent".to_owned()];
    let model = model("gpt-5");
    let short = prepare(&run(Harness::Command, &model, &command)).expect("prepared");
    for (name, value) in [
        ("ORCHESTRA_TASK", "--help\nme \"now\""),
        ("ORCHESTRA_MODEL", "gpt-5"),
        ("ANTHROPIC_BASE_URL", GATEWAY),
        ("OPENAI_BASE_URL", "http://127.0.0.1:8100/v1"),
        ("OPENAI_API_KEY", PLACEHOLDER_KEY),
        ("ANTHROPIC_API_KEY", PLACEHOLDER_KEY),
    ] {
        assert_eq!(variable(&short, name), Some(value));
    }
    let prompt = "x".repeat(200 * 1024);
    let long = prepare(&Run { prompt: &prompt, ..run(Harness::Command, &model, &command) }).expect("prepared");
    assert_eq!(variable(&long, "ORCHESTRA_TASK"), None);
    assert_eq!(long.files, [(variable(&long, "ORCHESTRA_TASK_FILE").expect("set").to_owned(), prompt.into_bytes())]);
}

#[test]
fn what_codex_prints_is_understood() {
    let entries = read(
        Harness::Codex,
        &[
            r#"{"type":"thread.started","thread_id":"01a2053f-7afe-7661-b148-a936102f10cd"}"#,
            r#"{"type":"turn.started"}"#,
            r#"{"type":"item.completed","item":{"id":"item_0","type":"agent_message","text":"I look first."}}"#,
            r#"{"type":"item.started","item":{"id":"item_1","type":"command_execution","command":"ls","aggregated_output":"","exit_code":null,"status":"in_progress"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_1","type":"command_execution","command":"ls","aggregated_output":"one\n","exit_code":1,"status":"failed"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_3","type":"file_change","changes":[{"path":"/workspace/made.txt","kind":"add"}],"status":"completed"}}"#,
            r#"{"type":"item.started","item":{"id":"item_4","type":"command_execution","command":"sleep 9","exit_code":null,"status":"in_progress"}}"#,
            r#"{"type":"error","message":"Reconnecting... waiting for network"}"#,
            r#"{"type":"error","message":"Reconnecting... waiting for network"}"#,
            r#"{"type":"turn.failed","error":{"message":"Connection failed"}}"#,
        ],
    );
    assert_eq!(
        entries,
        [
            Entry::Session("01a2053f-7afe-7661-b148-a936102f10cd".into()),
            Entry::Message("I look first.".into()),
            called("item_1", "command_execution", json!({ "command": "ls" })),
            finished("item_1", false, "one\n"),
            called("item_3", "file_change", json!({ "changes": [{ "path": "/workspace/made.txt", "kind": "add" }] })),
            finished("item_3", true, ""),
            called("item_4", "command_execution", json!({ "command": "sleep 9" })),
            Entry::Error("Reconnecting... waiting for network".into()),
            Entry::Error("Connection failed".into()),
            finished("item_4", false, "[interrupted]"),
        ]
    );
}

#[test]
fn what_opencode_prints_is_understood() {
    let entries = read(
        Harness::Opencode,
        &[
            r#"{"type":"step_start","timestamp":1,"sessionID":"ses_dfabf96","part":{"type":"step-start"}}"#,
            r#"{"type":"text","timestamp":1,"sessionID":"ses_dfabf96","part":{"type":"text","text":"I look first."}}"#,
            r#"{"type":"tool_use","sessionID":"ses_dfabf96","part":{"type":"tool","tool":"bash","callID":"toolu_0_0","state":{"status":"completed","input":{"command":"false"},"output":"one\n","metadata":{"exit":1}}}}"#,
            r#"{"type":"tool_use","sessionID":"ses_dfabf96","part":{"type":"tool","tool":"write","callID":"toolu_1_0","state":{"status":"error","input":{},"error":"no such folder"}}}"#,
            r#"{"type":"error","sessionID":"ses_dfabf96","error":{"name":"UnknownError","data":{"message":"Unexpected server error."}}}"#,
        ],
    );
    assert_eq!(
        entries,
        [
            Entry::Session("ses_dfabf96".into()),
            Entry::Message("I look first.".into()),
            called("toolu_0_0", "bash", json!({ "command": "false" })),
            finished("toolu_0_0", false, "one\n"),
            called("toolu_1_0", "write", json!({})),
            finished("toolu_1_0", false, "no such folder"),
            Entry::Error("Unexpected server error.".into()),
        ]
    );
}

#[test]
fn what_claude_prints_is_understood() {
    let entries = read(
        Harness::ClaudeCode,
        &[
            r#"{"type":"system","subtype":"init","cwd":"/workspace","session_id":"88c4763c-1534-4bf9-be2f-37fc1b9cc8d9"}"#,
            r#"{"type":"assistant","message":{"content":[{"text":"I look.","type":"text"}],"model":"claude-sonnet-4-6"}}"#,
            r#"{"type":"assistant","message":{"content":[{"id":"toolu_0_0","input":{"command":"ls"},"name":"Bash","type":"tool_use"}],"model":"claude-sonnet-4-6"}}"#,
            r#"{"type":"user","message":{"role":"user","content":[{"tool_use_id":"toolu_0_0","type":"tool_result","content":[{"type":"text","text":"one"},{"type":"text","text":"two"}],"is_error":false}]}}"#,
            r#"{"type":"assistant","message":{"content":[{"text":"API Error: 402 over budget","type":"text"}],"model":"<synthetic>"}}"#,
            r#"{"type":"result","subtype":"success","is_error":true,"result":"API Error: 402 over budget"}"#,
        ],
    );
    assert_eq!(
        entries,
        [
            Entry::Session("88c4763c-1534-4bf9-be2f-37fc1b9cc8d9".into()),
            Entry::Message("I look.".into()),
            called("toolu_0_0", "Bash", json!({ "command": "ls" })),
            finished("toolu_0_0", true, "one\ntwo"),
            Entry::Error("API Error: 402 over budget".into()),
        ]
    );
}

#[test]
fn a_commands_lines_are_words_unless_they_are_entries() {
    let entries = read(
        Harness::Command,
        &[
            "compiling \u{1b}[1mfoo\u{1b}[0m\r",
            "",
            r#"{"message": "half way"}"#,
            r#"{"tool-called": {"id": "1", "name": "make"}}"#,
            r#"{"tool-finished": {"id": "1", "ok": true, "output": "ok"}}"#,
            r#"{"session": "abc"}"#,
            r#"{"session": "--not-one"}"#,
            r#"{"message": "log", "level": "info"}"#,
        ],
    );
    assert_eq!(
        entries,
        [
            Entry::Message("compiling foo".into()),
            Entry::Message("half way".into()),
            called("1", "make", Value::Null),
            finished("1", true, "ok"),
            Entry::Session("abc".into()),
            Entry::Message(r#"{"message": "log", "level": "info"}"#.into()),
        ]
    );
    for entry in [
        Entry::Session("x".into()),
        called("1", "make", json!({})),
        finished("1", false, "x"),
        Entry::Error("e".into()),
    ] {
        let line = serde_json::to_vec(&entry).expect("JSON");
        assert_eq!(serde_json::from_slice::<Entry>(&line).expect("an entry"), entry);
    }
}

#[test]
fn output_has_bounds() {
    let mut reader = Reader::new(Harness::Codex);
    let line =
        |text: &str| json!({ "type": "item.completed", "item": { "type": "agent_message", "text": text } }).to_string();
    let long = "ä".repeat(MAX_TEXT_BYTES);
    let [Entry::Message(cut)] = &reader.line(line(&long).as_bytes())[..] else { panic!("a message") };
    assert!(cut.len() <= MAX_TEXT_BYTES && cut.ends_with("[… cut off …]"), "{}", cut.len());
    assert!(reader.line(line(&"x".repeat(MAX_LINE_BYTES)).as_bytes()).is_empty());
    let mut words = Reader::new(Harness::Command);
    assert_eq!(words.line(&vec![b'x'; MAX_LINE_BYTES + 1]).len(), 1);
    let said: Vec<Entry> = (0..2 * MAX_ENTRIES).flat_map(|_| words.line(b"again and again")).collect();
    assert_eq!(said.len(), MAX_ENTRIES - 1);
    assert!(matches!(said.last(), Some(Entry::Error(told)) if told.contains("left out")));
}

#[test]
fn a_logged_command_keeps_its_words_as_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("a folder/run.log");
    let script = "cat; printf '%s|' \"$@\"; echo err >&2";
    let argv = ["/bin/sh", "-c", script, "sh", "a b", "$(reboot)", "'\""].map(str::to_owned).to_vec();
    let argv = logged(argv, log.to_str().expect("UTF-8"));
    let mut child = std::process::Command::new(&argv[0])
        .args(&argv[1..])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"prompt;").expect("written");
    assert!(child.wait().expect("ended").success());
    assert_eq!(std::fs::read_to_string(&log).expect("a log"), "prompt;a b|$(reboot)|'\"|");
    assert_eq!(std::fs::read_to_string(log.with_extension("log.err")).expect("a log"), "err\n");
}

#[test]
fn a_file_is_placed_over_whatever_lies_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, other) = (dir.path().join("a folder/config"), dir.path().join("other"));
    let place = |content: &[u8]| {
        let argv = placed(path.to_str().expect("UTF-8"));
        let mut child = std::process::Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), content).expect("written");
        assert!(child.wait().expect("ended").success());
        assert_eq!(std::fs::read(&path).expect("a file"), content);
    };
    place(b"first");
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir_all(path.join("deep")).expect("made");
    place(b"second");
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&other, "kept").expect("written");
    std::os::unix::fs::symlink(&other, &path).expect("linked");
    place(b"third");
    assert_eq!(std::fs::read(&other).expect("a file"), b"kept");
}

/// Lines that begin like an agent's and go on anyhow.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    const KEYS: &[&str] = &[
        "type",
        "item",
        "id",
        "status",
        "part",
        "state",
        "message",
        "content",
        "error",
        "tool-called",
        "text",
        "callID",
    ];
    const KINDS: &[&str] = &[
        "item.started",
        "item.completed",
        "command_execution",
        "tool_use",
        "tool_result",
        "assistant",
        "user",
        "error",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(KINDS).prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(KEYS), inner), 0..8).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    });
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        value.clone().prop_map(|value| value.to_string().into_bytes()),
        (value, any::<prop::sample::Index>()).prop_map(|(value, at)| {
            let mut bytes = value.to_string().into_bytes();
            bytes.truncate(at.index(bytes.len().max(1)));
            bytes
        }),
    ]
}

proptest! {
    #[test]
    fn no_line_stops_the_reader_and_every_call_is_finished_once(lines in prop::collection::vec(garbage(), 0..40)) {
        for harness in Harness::ALL {
            let mut reader = Reader::new(harness);
            let mut entries: Vec<Entry> = lines.iter().flat_map(|line| reader.line(line)).collect();
            entries.extend(reader.end());
            prop_assert!(reader.end().is_empty());
            let mut open = std::collections::BTreeSet::new();
            for entry in entries {
                match entry {
                    Entry::ToolCalled { id, .. } => prop_assert!(open.insert(id)),
                    Entry::ToolFinished { id, .. } => prop_assert!(open.remove(&id)),
                    Entry::Session(id) => prop_assert!(is_session(&id)),
                    Entry::Message(said) | Entry::Error(said) => prop_assert!(said.len() <= MAX_TEXT_BYTES),
                }
            }
            prop_assert!(open.is_empty());
        }
    }
}

#[test]
fn a_provider_of_another_name_is_no_reason_to_fail() {
    // Azure and its like speak as OpenAI does under a name of the operator's.
    let azure = ResolvedModel { provider: Arc::from("azure"), ..model("gpt-5") };
    assert!(prepare(&run(Harness::Codex, &azure, &[])).is_ok());
}
