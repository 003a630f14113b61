//! The conversation between the agent and the model, in no provider's dialect.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::blob::Content;

/// One turn. Turns alternate: the first is the user's (the task), the next the model's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", content = "content", rename_all = "kebab-case")]
pub enum Turn {
    /// What the user, and the tools on the user's behalf, said.
    User(Vec<UserPart>),
    /// What the model said.
    Assistant(Vec<Block>),
}

/// A part of a user's turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum UserPart {
    /// Words: the task itself, or steering on the way.
    Text {
        /// The words.
        text: String,
    },
    /// What a tool answered.
    ToolResult {
        /// The id of the tool call this answers.
        tool_call: String,
        /// What it printed.
        output: Content,
        /// Whether the tool failed.
        is_error: bool,
    },
}

/// A part of the model's turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Block {
    /// Words.
    Text {
        /// The words.
        text: Content,
    },
    /// Reasoning that the provider wants back unchanged.
    Thinking {
        /// The readable part, possibly empty.
        text: Content,
        /// The provider's own proof or encrypted form.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
    },
    /// A request to run a tool.
    ToolUse {
        /// The provider's id of the call.
        id: String,
        /// The tool.
        name: String,
        /// Its input; `null` when what the model wrote is not JSON.
        input: Value,
        /// What the model wrote, when it is not a JSON object.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        malformed: Option<String>,
    },
}

/// Why the model stopped speaking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// It is done.
    EndTurn,
    /// It waits for tools.
    ToolUse,
    /// It reached the output limit of the call.
    MaxTokens,
    /// It declined.
    Refusal,
    /// The conversation no longer fits.
    ContextWindow,
    /// The provider paused a long turn; sending the conversation back continues it.
    Pause,
}

/// Tokens of one call, as the provider counted them. The five kinds do not overlap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Input that was neither read from nor written to a cache.
    pub input_tokens: u64,
    /// Output, thinking included.
    pub output_tokens: u64,
    /// Input read from a cache.
    pub cache_read_tokens: u64,
    /// Input written to a cache for five minutes (or the provider's only kind).
    pub cache_write5m_tokens: u64,
    /// Input written to a cache for an hour.
    pub cache_write1h_tokens: u64,
}

impl Usage {
    /// Everything that counts against a token budget.
    pub fn total(&self) -> u64 {
        self.context().saturating_add(self.output_tokens)
    }

    /// Everything the model read.
    pub fn context(&self) -> u64 {
        self.input_tokens
            .saturating_add(self.cache_read_tokens)
            .saturating_add(self.cache_write5m_tokens)
            .saturating_add(self.cache_write1h_tokens)
    }

    /// Both kinds of cache writes.
    pub fn cache_write_tokens(&self) -> u64 {
        self.cache_write5m_tokens.saturating_add(self.cache_write1h_tokens)
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.cache_read_tokens = self.cache_read_tokens.saturating_add(other.cache_read_tokens);
        self.cache_write5m_tokens = self.cache_write5m_tokens.saturating_add(other.cache_write5m_tokens);
        self.cache_write1h_tokens = self.cache_write1h_tokens.saturating_add(other.cache_write1h_tokens);
    }
}
