//! The tools of the built-in agent, and how a call of one becomes a command in the sandbox.
//!
//! `bash` runs as it is; the others are answered by the sandbox's own init, which takes the tool's input as JSON on its
//! standard input. What the model wrote is checked here, so that a mistake costs a sentence and not an exec.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::model::ToolSpec;

/// How long a command may run when the model names no limit.
pub const BASH_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest limit the model may name.
pub const MAX_BASH_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a file tool may take: a search through a large repository on a slow disk.
pub const TOOL_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest command: the kernel takes 128 KiB for one argument, with room left for nothing else to matter.
pub const MAX_COMMAND_BYTES: usize = 120 * 1024;
/// The longest input of a file tool.
pub const MAX_INPUT_BYTES: usize = 8 * 1024 * 1024;

/// The program in the sandbox that answers the file tools.
const INIT: &str = "/orch/init";

/// A command to run in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedExec {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// What it reads.
    pub stdin: Vec<u8>,
    /// When it is stopped.
    pub timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bash {
    command: String,
    timeout_seconds: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Write {
    path: String,
    content: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    path: String,
    old_string: String,
    new_string: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    replace_all: Option<bool>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Glob {
    pattern: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grep {
    pattern: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    glob: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    case_insensitive: Option<bool>,
}

/// Every tool, in a fixed order, so that providers can cache them.
pub fn tool_specs() -> Vec<ToolSpec> {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let number = |description: &str| json!({ "type": "integer", "minimum": 0, "description": description });
    let flag = |description: &str| json!({ "type": "boolean", "description": description });
    let spec = |name: &str, description: &str, properties: Value, required: &[&str]| ToolSpec {
        name: name.into(),
        description: description.into(),
        input_schema: json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        }),
    };
    vec![
        spec(
            "bash",
            "Runs a command with bash in /workspace and returns what it prints. Each call is a new shell.",
            json!({
                "command": text("The command."),
                "timeout_seconds": { "type": "integer", "minimum": 1, "maximum": MAX_BASH_TIMEOUT.as_secs(),
                    "description": format!("Stop it after so many seconds; {} when absent.", BASH_TIMEOUT.as_secs()) },
            }),
            &["command"],
        ),
        spec(
            "read",
            "Returns a text file with line numbers.",
            json!({
                "path": text("The file."),
                "offset": number("The first line to return, counted from 1."),
                "limit": number("How many lines to return."),
            }),
            &["path"],
        ),
        spec(
            "write",
            "Creates a file, or replaces all of its content. Missing directories are made.",
            json!({ "path": text("The file."), "content": text("All of its new content.") }),
            &["path", "content"],
        ),
        spec(
            "edit",
            "Replaces a piece of text in a file. It must occur exactly once, unless replace_all is set.",
            json!({
                "path": text("The file."),
                "old_string": text("The text as it is, indentation included."),
                "new_string": text("The text as it is to be."),
                "replace_all": flag("Replace every occurrence."),
            }),
            &["path", "old_string", "new_string"],
        ),
        spec(
            "glob",
            "Lists the files whose path matches a pattern, such as src/**/*.rs. Ignored files are left out.",
            json!({ "pattern": text("The pattern."), "path": text("The directory to start from.") }),
            &["pattern"],
        ),
        spec(
            "grep",
            "Searches the files for a regular expression and returns the matching lines. Ignored files are left out.",
            json!({
                "pattern": text("The regular expression."),
                "path": text("The file or directory to search."),
                "glob": text("Search only files whose path matches this pattern."),
                "context": number("Lines to show around each match."),
                "case_insensitive": flag("Do not tell upper from lower case."),
            }),
            &["pattern"],
        ),
    ]
}

/// What a tool call runs in the sandbox; or, when it cannot be run, what the model is told. A `null` input stands for
/// one that was not JSON.
pub fn plan_tool(name: &str, input: &Value) -> Result<PlannedExec, String> {
    match name {
        "bash" => {
            let bash: Bash = parse(name, input)?;
            if bash.command.contains('\0') {
                return Err("The command holds a NUL character, which no command can. Nothing was run.".into());
            }
            if bash.command.len() > MAX_COMMAND_BYTES {
                return Err(format!(
                    "The command is {} bytes long; at most {MAX_COMMAND_BYTES} are possible. Nothing was run. Write the \
                     data to a file with the write tool first.",
                    bash.command.len()
                ));
            }
            let timeout = bash.timeout_seconds.map_or(BASH_TIMEOUT, |seconds| Duration::from_secs(seconds.max(1)));
            Ok(PlannedExec {
                argv: vec!["bash".into(), "-lc".into(), bash.command],
                stdin: Vec::new(),
                timeout: timeout.min(MAX_BASH_TIMEOUT),
            })
        }
        "read" => file_tool::<Read>(name, input),
        "write" => file_tool::<Write>(name, input),
        "edit" => file_tool::<Edit>(name, input),
        "glob" => file_tool::<Glob>(name, input),
        "grep" => file_tool::<Grep>(name, input),
        _ => Err(format!("There is no tool named {:?}. The tools are: {}.", shortened(name), tool_names())),
    }
}

fn tool_names() -> String {
    tool_specs().into_iter().map(|tool| tool.name).collect::<Vec<_>>().join(", ")
}

fn file_tool<T: Serialize + DeserializeOwned>(name: &str, input: &Value) -> Result<PlannedExec, String> {
    let input: T = parse(name, input)?;
    let stdin = serde_json::to_vec(&input).map_err(|error| format!("The input cannot be passed on: {error}."))?;
    if stdin.len() > MAX_INPUT_BYTES {
        return Err(format!(
            "The input is {} bytes long; at most {MAX_INPUT_BYTES} are possible. Nothing was done.",
            stdin.len()
        ));
    }
    Ok(PlannedExec { argv: vec![INIT.into(), "tool".into(), name.into()], stdin, timeout: TOOL_TIMEOUT })
}

fn parse<T: DeserializeOwned>(name: &str, input: &Value) -> Result<T, String> {
    let wrong = if input.is_null() {
        "it is not a JSON object (was it cut off?)".to_owned()
    } else {
        match T::deserialize(input) {
            Ok(parsed) => return Ok(parsed),
            Err(error) => shortened(&error.to_string()),
        }
    };
    Err(format!("The input of {name} does not fit: {wrong}. Nothing was done. {}", fields(name)))
}

fn fields(name: &str) -> String {
    let Some(tool) = tool_specs().into_iter().find(|tool| tool.name == name) else { return String::new() };
    let required = tool.input_schema["required"].as_array().cloned().unwrap_or_default();
    let fields = tool.input_schema["properties"].as_object().into_iter().flatten().map(|(field, schema)| {
        let optional = if required.iter().any(|name| name == field) { "" } else { ", optional" };
        format!("{field} ({}{optional})", schema["type"].as_str().unwrap_or_default())
    });
    format!("It takes: {}.", fields.collect::<Vec<_>>().join(", "))
}

/// The model's own words back to it, but not all of them.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_runs_in_a_shell_within_its_limit() {
        for (input, seconds) in [
            (json!({ "command": "ls -l" }), 120),
            (json!({ "command": "ls -l", "timeout_seconds": 5 }), 5),
            (json!({ "command": "ls -l", "timeout_seconds": 0 }), 1),
            (json!({ "command": "ls -l", "timeout_seconds": u64::MAX }), 600),
            (json!({ "command": "ls -l", "timeout_seconds": null }), 120),
        ] {
            let planned = plan_tool("bash", &input).expect("a command");
            assert_eq!(planned.argv, ["bash", "-lc", "ls -l"]);
            assert_eq!((planned.stdin.len(), planned.timeout), (0, Duration::from_secs(seconds)), "{input}");
        }
    }

    #[test]
    fn a_file_tool_gets_its_input_on_stdin_and_never_on_the_command_line() {
        for (name, input) in [
            ("read", json!({ "path": "a", "offset": 3, "limit": 10 })),
            ("write", json!({ "path": "-rf", "content": "$(reboot)\n\u{0}" })),
            ("edit", json!({ "path": "a", "old_string": "b", "new_string": "", "replace_all": true })),
            ("glob", json!({ "pattern": "**/*.rs" })),
            ("grep", json!({ "pattern": "x+", "path": "src", "glob": "*.rs", "context": 2, "case_insensitive": true })),
        ] {
            let planned = plan_tool(name, &input).expect(name);
            assert_eq!(planned.argv, ["/orch/init", "tool", name]);
            assert_eq!(serde_json::from_slice::<Value>(&planned.stdin).expect("JSON"), input);
        }
    }

    #[test]
    fn a_mistake_is_told_to_the_model_with_what_would_be_right() {
        let huge = json!({ "command": "x".repeat(MAX_COMMAND_BYTES + 1) });
        for (name, input, expected) in [
            ("python", json!({}), "The tools are: bash, read, write, edit, glob, grep."),
            ("read", Value::Null, "not a JSON object"),
            ("read", json!({ "path": 7 }), "invalid type"),
            (
                "read",
                json!({ "file": "a" }),
                "It takes: limit (integer, optional), offset (integer, optional), path (string).",
            ),
            ("read", json!(["a"]), "does not fit"),
            ("write", json!({ "path": "a" }), "missing field `content`"),
            ("bash", json!({ "command": "a\u{0}b" }), "NUL"),
            ("bash", huge, "at most 122880"),
            ("bash", json!("ls"), "invalid type"),
        ] {
            let told = plan_tool(name, &input).expect_err("a mistake");
            assert!(told.contains(expected), "{name}: {told}");
            assert!(told.len() < 1_000);
        }
        assert!(plan_tool(&"x".repeat(1_000_000), &Value::Null).expect_err("no such tool").len() < 500);
    }

    #[test]
    fn every_tool_that_is_offered_can_be_called_with_what_its_schema_requires() {
        for tool in tool_specs() {
            let input: Value = tool.input_schema["required"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|field| (field.as_str().expect("a name").to_owned(), Value::from("x")))
                .collect::<serde_json::Map<_, _>>()
                .into();
            assert!(plan_tool(&tool.name, &input).is_ok(), "{}", tool.name);
        }
    }
}
