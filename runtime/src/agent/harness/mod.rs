//! Command line agents, headless: what they are started with, and what their output says.
//!
//! Everything here is pure. An agent runs inside the sandbox like any other command, as the sandbox's user; its model is
//! behind the gateway, and its key is a placeholder. What it prints is written by a program that the task controls, so
//! it is shown and recorded and never believed: usage is metered on the wire, and whether there is work is seen in the diff.

mod claude_code;
mod codex;
mod command;
mod opencode;
mod reader;
#[cfg(test)]
mod tests;

use orchestra_events::task::event::Harness;

use crate::model::{Dialect, ResolvedModel};

pub use reader::{Entry, MAX_ENTRIES, MAX_LINE_BYTES, MAX_TEXT_BYTES, Reader};

/// The key that agents are given. It opens nothing: the gateway puts the real one in its place, outside of the sandbox.
pub const PLACEHOLDER_KEY: &str = "orchestra-placeholder";
/// The agent's home in the sandbox.
const HOME: &str = "/home/agent";
/// The work tree in the sandbox, where agents are to be started.
const WORKSPACE: &str = "/workspace";
/// The longest name of a session.
const MAX_SESSION_BYTES: usize = 200;

/// An agent to run.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Which.
    pub harness: Harness,
    /// What it is to do.
    pub prompt: &'a str,
    /// The model it is to use.
    pub model: &'a ResolvedModel,
    /// Where the gateway is, seen from inside: `http://127.0.0.1:PORT`. It serves `/v1/messages`, `/v1/chat/completions`
    /// and `/v1/responses`.
    pub gateway: &'a str,
    /// The session of an earlier run of the same agent in the same sandbox, to go on with.
    pub resume: Option<&'a str>,
    /// For [`Harness::Command`]: the program and its arguments.
    pub command: &'a [String],
}

/// How an agent is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Files to write before each start, with [`placed`]: absolute path, below the agent's home, and content.
    pub files: Vec<(String, Vec<u8>)>,
    /// The program and its arguments, to be started in `/workspace`.
    pub argv: Vec<String>,
    /// Variables on top of the sandbox's own.
    pub env: Vec<(String, String)>,
    /// What it reads.
    pub stdin: Vec<u8>,
}

/// Why an agent cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The built-in agent is no program.
    #[error("the built-in agent runs in the server, not in the sandbox")]
    Builtin,
    /// The agent and the model's provider have no dialect in common.
    #[error("{} speaks {speaks}, which {provider} does not; choose another model or another harness", harness.as_str())]
    Dialect {
        /// The agent.
        harness: Harness,
        /// What it speaks.
        speaks: &'static str,
        /// The model's provider.
        provider: String,
    },
    /// `harness: command` without a command.
    #[error("harness command needs a command: a program and its arguments")]
    NoCommand,
    /// Not a session that an agent can have named.
    #[error("there is no session {0:?} to go on with")]
    Session(String),
}

/// What an agent is started with.
///
/// # Errors
/// When it is not a program, has no dialect in common with the model's provider, or is asked to go on with no session.
pub fn prepare(run: &Run<'_>) -> Result<Prepared, PrepareError> {
    if let Some(session) = run.resume.filter(|session| !is_session(session)) {
        return Err(PrepareError::Session(session.chars().take(MAX_SESSION_BYTES).collect()));
    }
    let needs = |speaks: &'static str, spoken: bool| {
        let provider = run.model.provider.to_string();
        if spoken { Ok(()) } else { Err(PrepareError::Dialect { harness: run.harness, speaks, provider }) }
    };
    let openai = match run.model.dialect {
        Dialect::Anthropic => false,
        Dialect::OpenaiChat | Dialect::OpenaiResponses => true,
    };
    let mut prepared = match run.harness {
        Harness::Builtin => return Err(PrepareError::Builtin),
        Harness::Codex => {
            needs("OpenAI's Responses", openai)?;
            codex::prepare(run)
        }
        Harness::ClaudeCode => {
            needs("Anthropic's Messages", !openai)?;
            claude_code::prepare(run)
        }
        Harness::Opencode => opencode::prepare(run),
        Harness::Command => command::prepare(run)?,
    };
    // The gateway is on the sandbox's own loopback: no proxy leads there.
    for name in ["NO_PROXY", "no_proxy"] {
        prepared.env.push((name.into(), "127.0.0.1,localhost".into()));
    }
    Ok(prepared)
}

/// The same command, with its output in files: standard output in `log`, errors in `log` with `.err` at the end. What was
/// written can be read from any place on, by whoever comes back after a crash.
pub fn logged(argv: Vec<String>, log: &str) -> Vec<String> {
    const SCRIPT: &str = r#"mkdir -p "${0%/*}" && exec "$@" >"$0" 2>"$0.err""#;
    let shell = ["/bin/sh", "-c", SCRIPT, log].map(str::to_owned);
    shell.into_iter().chain(argv).collect()
}

/// A command that writes its standard input to a file of [`Prepared::files`], whatever lies there: an earlier run of the agent
/// had the same home, and may have left anything in it.
pub fn placed(path: &str) -> Vec<String> {
    const SCRIPT: &str = r#"mkdir -p "${0%/*}" && rm -rf -- "$0" && cat >"$0""#;
    ["/bin/sh", "-c", SCRIPT, path].map(str::to_owned).into()
}

/// Whether this can be a session: nothing that could be taken for an option or a path.
fn is_session(text: &str) -> bool {
    text.len() <= MAX_SESSION_BYTES
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Variables that are all set to `1`.
fn switched_on<const N: usize>(names: [&str; N]) -> Vec<(String, String)> {
    names.map(|name| (name.to_owned(), "1".to_owned())).into()
}

fn set<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}
