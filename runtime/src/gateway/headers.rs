//! Which headers pass, in either direction. Everything else stays where it is: above all what a sandbox sends as a key.

use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use super::route::Key;
use crate::model::anthropic;
use crate::model::provider::Provider;

const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// Who pays, at OpenAI. Only whose key it is may say so.
const BILLING: [&str; 2] = ["openai-organization", "openai-project"];

/// What of a caller's headers may pass, copied: as they came they share the buffer that the connection reads into, and a
/// call would keep all of it for as long as it lasts.
pub(super) fn kept(callers: &HeaderMap) -> HeaderMap {
    let passes = |name: &HeaderName| {
        let text = name.as_str();
        name == USER_AGENT || text == "anthropic-beta" || text == "anthropic-version" || text.starts_with("openai-")
    };
    let passing = callers.iter().filter(|(name, _)| passes(name));
    let copied = passing.filter_map(|(name, value)| {
        let value = HeaderValue::from_bytes(value.as_bytes()).ok()?;
        Some((name.clone(), value))
    });
    copied.collect()
}

/// The headers of an attempt, from what was [`kept`] of the caller's. `None`: the key has characters that no key has.
pub(super) fn to_provider(kept: &HeaderMap, provider: &Provider, key: Option<&Key>) -> Option<HeaderMap> {
    let mut headers = kept.clone();
    if !key.is_some_and(|key| key.callers) {
        for name in BILLING {
            headers.remove(name);
        }
    }
    if provider.dialect == crate::model::Dialect::Anthropic && !headers.contains_key(ANTHROPIC_VERSION) {
        headers.insert(ANTHROPIC_VERSION, HeaderValue::from_static(anthropic::VERSION));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Some(key) = key {
        let (name, value) = provider.authorization(&key.secret)?;
        headers.insert(name, value);
    }
    Some(headers)
}

/// What of a provider's answer the caller may see beside its body.
pub(super) fn to_caller(providers: &HeaderMap) -> HeaderMap {
    let passes = |name: &str| {
        matches!(name, "request-id" | "x-request-id" | "openai-processing-ms" | "openai-version")
            || name.starts_with("anthropic-ratelimit-")
            || name.starts_with("x-ratelimit-")
    };
    let passing = providers.iter().filter(|(name, _)| passes(name.as_str()));
    passing.map(|(name, value)| (name.clone(), value.clone())).collect()
}
