//! The built-in agent: what the model is told, what it may ask for, and how its tool calls become commands.
//!
//! Everything here is pure. The loop itself is the task's own fold (what happened decides what is next); this is the
//! part of it that knows tools and words.

pub mod harness;
mod output;
mod prompt;
mod tools;

pub use output::{End, MAX_OUTPUT_BYTES, render_output};
pub use prompt::{WANTED_OUTPUT_TOKENS, system_prompt};
pub use tools::{
    BASH_TIMEOUT, MAX_BASH_TIMEOUT, MAX_COMMAND_BYTES, MAX_INPUT_BYTES, PlannedExec, TOOL_TIMEOUT, plan_tool,
    tool_specs,
};
