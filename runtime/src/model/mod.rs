//! Models and their providers: names, prices, bounds, calls, faults and when to try again.
//!
//! A call goes: [`Models::resolve`] a name, [`ModelRequest::bytes`] and [`input_bound`] for what it can read,
//! [`quote`] for what it may cost, then [`ModelClient::call`], and [`retry::decide_within`] about what failed. Money is
//! reserved and settled by the caller; nothing here knows a ledger.

pub(crate) mod anthropic;
mod bound;
pub mod breaker;
pub(crate) mod call;
pub(crate) mod fault;
mod openai;
mod price_file;
mod pricing;
pub(crate) mod provider;
pub mod retry;
mod sse;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use async_trait::async_trait;
use orchestra_events::blob::Content;
use orchestra_events::task::conversation::{Block, StopReason, Turn, Usage};
use secrecy::SecretString;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use bound::{HIDDEN_INPUT_TOKENS, ImageRules, OUTPUT_FLOOR, image_tokens, input_bound, quote};
pub use call::MAX_REPLY_BYTES;
pub use fault::{Charge, FaultClass, ModelFailure};
pub use price_file::{PriceFileError, read_operator};
pub use pricing::{
    ANY_MODEL, CacheWrites, HostedTool, LongContext, LongContextRow, Price, PriceRow, Prices, Rates, ToolCalls,
    ToolPrices,
};
pub use provider::{ConfigError, Dialect, ModelNameError, Models, ProviderConfig, ResolvedModel, Timeouts};

/// A tool that the model may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    /// Its name.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// The JSON Schema of its input, an object.
    pub input_schema: Value,
}

/// What the model is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRequest {
    /// Which model.
    pub model: ResolvedModel,
    /// The instructions before the conversation.
    pub system: String,
    /// The conversation so far, every [`Content`] inline.
    pub conversation: Vec<Turn>,
    /// What the model may ask for.
    pub tools: Vec<ToolSpec>,
    /// How much it may write.
    pub max_output_tokens: u64,
}

impl ModelRequest {
    /// The cache writes that these requests can cause.
    pub const CACHE_WRITES: CacheWrites = CacheWrites::FiveMinutes;

    /// How many bytes are sent: what [`input_bound`] starts from. Counted with the longest output limit, so that
    /// lowering the limit afterwards cannot make the request longer.
    pub fn bytes(&self) -> Result<u64, ModelFailure> {
        let longest = wire::Limit { tokens: u64::MAX, renamed: true, standard_tier: true };
        Ok(wire::encode(self, longest)?.len() as u64)
    }
}

/// What the model answered, whole.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelReply {
    /// What it said.
    pub content: Vec<Block>,
    /// Why it stopped.
    pub stop_reason: StopReason,
    /// What the provider counted, or a bound of it.
    pub usage: Usage,
    /// False when the provider reported no usage, or not all of it, and `usage` is an upper bound instead.
    pub usage_reported: bool,
}

/// Asks models.
#[async_trait]
pub trait ModelClient: Send + Sync {
    /// Makes one attempt and returns the whole reply. `key` goes before the operator's. Words are sent to `deltas` as
    /// they come, and dropped when nobody keeps up: they are a view, the reply is the record.
    async fn call(
        &self,
        request: &ModelRequest,
        key: Option<&SecretString>,
        deltas: Option<mpsc::Sender<String>>,
        cancel: CancellationToken,
    ) -> Result<ModelReply, ModelFailure>;
}

/// The text of content that the caller has resolved.
fn inline(content: &Content) -> Result<&str, ModelFailure> {
    match content {
        Content::Inline(text) => Ok(text),
        Content::Blob(blob) => Err(ModelFailure::new(
            FaultClass::Unsupported,
            Charge::Nothing,
            format!("the conversation refers to blob {}, which was not read before the call", blob.sha256),
        )),
    }
}
