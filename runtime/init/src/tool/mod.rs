//! The file tools of the built-in agent: JSON on standard input, text for the model on standard output.
//!
//! They run inside the sandbox as the agent's own user, so they can do nothing that the agent's shell could not.
//! Exit code 0 is a result, 1 an error text written for the model, 2 a call that was not understood.

mod file;
mod search;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::de::DeserializeOwned;

/// Paths that are not absolute start here.
const WORKSPACE: &str = "/workspace";
/// Largest call accepted, in bytes: a whole file to write.
const MAX_CALL: u64 = 16 * 1024 * 1024;

/// A tool's answer: text for the model either way.
type Answer = Result<String, String>;

/// Runs the named tool.
pub fn main(name: Option<&str>) -> ExitCode {
    let mut call = Vec::new();
    if let Err(error) = std::io::stdin().lock().take(MAX_CALL).read_to_end(&mut call) {
        return say(&format!("the arguments could not be read: {error}"), 2);
    }
    let root = Path::new(WORKSPACE);
    let answer = match name {
        Some("read") => run(&call, |call| file::read(root, call)),
        Some("write") => run(&call, |call| file::write(root, call)),
        Some("edit") => run(&call, |call| file::edit(root, call)),
        Some("glob") => run(&call, |call| search::glob(root, call)),
        Some("grep") => run(&call, |call| search::grep(root, call)),
        other => return say(&format!("no tool named {}", other.unwrap_or("(nothing)")), 2),
    };
    match answer {
        Ok(text) => say(&text, 0),
        Err(text) => say(&text, 1),
    }
}

fn run<T: DeserializeOwned>(call: &[u8], tool: impl FnOnce(T) -> Answer) -> Answer {
    tool(serde_json::from_slice(call).map_err(|error| format!("The arguments do not fit this tool: {error}."))?)
}

fn say(text: &str, code: u8) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::from(2),
    }
}

/// The file that a path names, seen from the workspace.
fn at(root: &Path, path: &str) -> PathBuf {
    root.join(path)
}

/// The way a path is shown: relative when it is in the workspace.
fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
