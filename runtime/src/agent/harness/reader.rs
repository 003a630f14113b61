//! What an agent's output says, line by line.

use std::collections::BTreeSet;

use orchestra_events::task::event::Harness;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{claude_code, codex, command, is_session, opencode};
use crate::agent::output::plain;

/// The longest line that is read; one that is longer says nothing, unless it is words of a command's own, which are cut.
pub const MAX_LINE_BYTES: usize = 4 << 20;
/// The longest text of an entry. What is over it is cut off, and said to be.
pub const MAX_TEXT_BYTES: usize = 256 << 10;
/// The most entries of one run. What follows is left out, and said to be.
pub const MAX_ENTRIES: usize = 20_000;
/// The most tools that can be running at once; what is called beyond is not waited for.
const MAX_OPEN: usize = 1_000;
/// The longest id of a tool call, and the longest name of a tool, in characters.
const MAX_NAME_CHARS: usize = 200;

/// Something that an agent did. Commands of the caller's own may print these as JSON, one a line: `{"message": "…"}`,
/// `{"tool-called": {"id": "…", "name": "…", "input": {}}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// It named its session: what [`super::Run::resume`] takes.
    Session(String),
    /// It said something.
    Message(String),
    /// It began to use a tool.
    ToolCalled {
        /// The call's id, unique within one run.
        id: String,
        /// The tool, as the agent calls it.
        name: String,
        /// Its input.
        #[serde(default)]
        input: Value,
    },
    /// A tool answered. Every call is finished once, by the end of the run at the latest.
    ToolFinished {
        /// The call.
        id: String,
        /// Whether it did what it was to do.
        ok: bool,
        /// What it printed.
        #[serde(default)]
        output: String,
    },
    /// It reported an error, and may have gone on.
    Error(String),
}

/// Collects the entries of a run, each within its bounds.
#[derive(Debug, Default)]
pub(super) struct Found {
    entries: Vec<Entry>,
    count: usize,
    session: Option<String>,
    last_error: Option<String>,
    open: BTreeSet<String>,
}

/// Words, or what lies in the `text` of a list of blocks, or anything else as JSON.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(blocks) if blocks.iter().any(|block| block["text"].is_string()) => {
            blocks.iter().filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n")
        }
        other => other.to_string(),
    }
}

/// The text without control sequences, and not longer than a text may be.
fn bounded(text: &str) -> String {
    const NOTE: &str = "\n[… cut off …]";
    let mut text = plain(text.as_bytes());
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES - NOTE.len()));
        text.push_str(NOTE);
    }
    text
}

fn named(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect()
}

impl Found {
    fn push(&mut self, entry: Entry) {
        self.count += 1;
        match self.count.cmp(&MAX_ENTRIES) {
            std::cmp::Ordering::Less => self.entries.push(entry),
            std::cmp::Ordering::Equal => self.entries.push(Entry::Error("The rest of the output is left out.".into())),
            std::cmp::Ordering::Greater => {}
        }
    }

    pub fn session(&mut self, id: &Value) {
        let new = id.as_str().filter(|id| is_session(id) && self.session.as_deref() != Some(id)).map(str::to_owned);
        if let Some(id) = new {
            self.session = Some(id.clone());
            self.push(Entry::Session(id));
        }
    }

    pub fn message(&mut self, said: String) {
        let said = bounded(&said);
        if !said.trim().is_empty() {
            self.push(Entry::Message(said));
        }
    }

    /// An error that is told twice in a row, as by an event and by the end that it led to, is one.
    pub fn error(&mut self, said: String) {
        let said = bounded(&said);
        if !said.trim().is_empty() && self.last_error.as_deref() != Some(&said) {
            self.last_error = Some(said.clone());
            self.push(Entry::Error(said));
        }
    }

    /// A tool was called. Told again of a call that is not finished, nothing happens.
    pub fn called(&mut self, id: &str, name: &str, input: Value) {
        let id = named(id);
        let room = self.open.len() < MAX_OPEN && self.count + 1 < MAX_ENTRIES;
        if !id.is_empty() && room && self.open.insert(id.clone()) {
            self.push(Entry::ToolCalled { id, name: named(name), input });
        }
    }

    /// A tool that was called, answered. That is told also when the most entries have been: there are only so many calls.
    pub fn finished(&mut self, id: &str, ok: bool, output: String) {
        let id = named(id);
        if self.open.remove(&id) {
            self.entries.push(Entry::ToolFinished { id, ok, output: bounded(&output) });
        }
    }
}

/// Reads the output of one run, from its first line on. The same output is read as the same entries, so whoever comes back
/// after a crash reads it again and passes over as many as were recorded.
#[derive(Debug)]
pub struct Reader {
    harness: Harness,
    found: Found,
}

impl Reader {
    /// For the output of this agent. The built-in one has none.
    pub fn new(harness: Harness) -> Self {
        Self { harness, found: Found::default() }
    }

    /// Takes a line, with or without its end. Lines that are not understood are passed over.
    pub fn line(&mut self, line: &[u8]) -> Vec<Entry> {
        let line = line.trim_ascii();
        let whole = line.len() <= MAX_LINE_BYTES;
        let found = &mut self.found;
        match self.harness {
            Harness::Command => command::read(&line[..line.len().min(MAX_LINE_BYTES)], found),
            Harness::Codex | Harness::ClaudeCode | Harness::Opencode if !whole => {}
            Harness::Codex => with_json(line, |event| codex::read(event, found)),
            Harness::ClaudeCode => with_json(line, |event| claude_code::read(event, found)),
            Harness::Opencode => with_json(line, |event| opencode::read(event, found)),
            Harness::Builtin => {}
        }
        std::mem::take(&mut found.entries)
    }

    /// There is no more: what was begun and not finished was interrupted.
    pub fn end(&mut self) -> Vec<Entry> {
        for id in std::mem::take(&mut self.found.open) {
            self.found.entries.push(Entry::ToolFinished { id, ok: false, output: "[interrupted]".into() });
        }
        std::mem::take(&mut self.found.entries)
    }
}

fn with_json(line: &[u8], read: impl FnOnce(&Value)) {
    if let Ok(event) = serde_json::from_slice(line) {
        read(&event);
    }
}
