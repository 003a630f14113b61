//! Every way a model call can fail: its class for the retry policy, and what the user is told.

use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::task::conversation::Usage;
use orchestra_events::{Failure, FailureCode};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use secrecy::SecretString;
use serde_json::Value;

use crate::redact::Redactor;

/// A provider's sentence is shown up to this many characters.
pub const MAX_PROVIDER_SENTENCE: usize = 300;

/// What kind of fault it was. The retry policy knows nothing else about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultClass {
    /// 429: too many requests or tokens for now.
    RateLimited,
    /// The account behind the key may not spend more, whatever the status said.
    SpendLimit,
    /// 503, 529 or an `overloaded` event.
    Overloaded,
    /// 5xx, 408, 409.
    ServerError,
    /// No connection.
    Connect,
    /// No trust in the provider's certificate.
    Tls,
    /// The connection broke after the request was sent.
    Reset,
    /// Nothing came back in time.
    FirstByteTimeout,
    /// The stream fell silent.
    IdleTimeout,
    /// The stream ended before the reply did.
    Truncated,
    /// What came back is not in the provider's dialect.
    Malformed,
    /// 401, 403, or no key at all.
    Auth,
    /// The provider refuses the request as such: 400, 404, 413 and their like.
    Rejected,
    /// The caller stopped it.
    Cancelled,
    /// The built-in agent does not speak the provider's dialect.
    Unsupported,
}

impl FaultClass {
    /// Whether the same request may succeed a little later.
    pub const fn retryable(self) -> bool {
        match self {
            Self::RateLimited
            | Self::Overloaded
            | Self::ServerError
            | Self::Connect
            | Self::Reset
            | Self::FirstByteTimeout
            | Self::IdleTimeout
            | Self::Truncated
            | Self::Malformed => true,
            Self::SpendLimit | Self::Tls | Self::Auth | Self::Rejected | Self::Cancelled | Self::Unsupported => false,
        }
    }

    const fn code(self) -> FailureCode {
        match self {
            Self::RateLimited | Self::SpendLimit => FailureCode::ModelRateLimited,
            Self::Overloaded => FailureCode::ModelOverloaded,
            // A refused request is not a refused key: new credentials would not mend it.
            Self::ServerError | Self::Connect | Self::Tls | Self::Malformed | Self::Rejected | Self::Unsupported => {
                FailureCode::ModelUnavailable
            }
            Self::Reset => FailureCode::NetworkDropped,
            Self::FirstByteTimeout | Self::IdleTimeout => FailureCode::ModelTimeout,
            Self::Truncated => FailureCode::ModelTruncated,
            Self::Auth => FailureCode::ModelAuth,
            Self::Cancelled => FailureCode::Cancelled,
        }
    }

    const fn hint(self) -> Option<&'static str> {
        match self {
            Self::SpendLimit => Some(
                "The account behind the model key has reached its spending limit; raise it at the provider or supply \
                 another key with PUT /v1/tasks/{id}/credentials.",
            ),
            Self::Tls => Some("Check the base URL of the model and the certificates this server trusts."),
            Self::Malformed => Some("Check that the base URL of the model leads to an API of the configured dialect."),
            Self::Rejected => Some("Read the provider's sentence; check the model's name and base URL."),
            Self::Unsupported => Some("Configure the provider with dialect = \"openai-chat\" or \"anthropic\"."),
            _ => None,
        }
    }
}

/// What a failed call has cost, as far as can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// The provider did no work.
    Nothing,
    /// At most this: what was reported, and for what was not, what was seen.
    Usage(Usage),
    /// It may have done all of it.
    Unknown,
}

/// A model call that brought no whole reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failure}")]
pub struct ModelFailure {
    /// What the user is told.
    pub failure: Box<Failure>,
    /// What the retry policy needs.
    pub class: FaultClass,
    /// How long the provider asked to wait.
    pub retry_after: Option<Duration>,
    /// What is to be charged.
    pub charged: Charge,
}

impl ModelFailure {
    /// A failure of this class, with the class's code, verdict and remedy.
    pub fn new(class: FaultClass, charged: Charge, message: impl Into<String>) -> Self {
        let mut failure = Failure::new(class.code(), message).with_retryable(class.retryable());
        if let Some(hint) = class.hint() {
            failure = failure.with_hint(hint);
        }
        Self { failure: Box::new(failure), class, retry_after: None, charged }
    }
}

/// What a provider's error body says, in either dialect.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ErrorBody {
    kind: String,
    code: String,
    sentence: String,
}

impl ErrorBody {
    /// Reads `{"error": {"type", "code", "message", "details": {"error_code"}}}` and what comes near to it. Anything
    /// else says nothing.
    pub fn read(body: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        Self::from_value(value.get("error").unwrap_or(&value))
    }

    pub fn from_value(error: &Value) -> Self {
        let text = |field: &str| error.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let detail = error.pointer("/details/error_code").and_then(Value::as_str).unwrap_or_default();
        let sentence =
            error.as_str().or_else(|| ["message", "detail"].iter().find_map(|name| error.get(name)?.as_str()));
        Self {
            kind: text("type"),
            code: if detail.is_empty() { text("code") } else { detail.to_owned() },
            sentence: sentence.unwrap_or_default().to_owned(),
        }
    }

    fn says(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.kind == *word || self.code == *word)
    }

    fn out_of_money(&self) -> bool {
        self.says(&[
            "enforced_spend_limit_reached",
            "insufficient_quota",
            "billing_error",
            "billing_hard_limit_reached",
        ])
    }

    /// The class of an error that came inside a stream, after a 200.
    pub fn class(&self) -> FaultClass {
        if self.out_of_money() {
            FaultClass::SpendLimit
        } else if self.says(&["overloaded_error", "overloaded", "server_is_overloaded", "slow_down"]) {
            FaultClass::Overloaded
        } else if self.says(&["rate_limit_error", "rate_limit_exceeded", "requests", "tokens"]) {
            FaultClass::RateLimited
        } else if self.says(&["authentication_error", "permission_error", "invalid_api_key"]) {
            FaultClass::Auth
        } else if self.says(&["invalid_request_error", "not_found_error", "request_too_large", "model_not_found"]) {
            FaultClass::Rejected
        } else {
            FaultClass::ServerError
        }
    }

    /// `: the sentence`, or nothing. `key` is taken out of it, should the other side repeat it.
    pub fn suffix(&self, key: Option<&SecretString>) -> String {
        let sentence = sanitise(&self.sentence, key);
        if sentence.is_empty() { sentence } else { format!(": {sentence}") }
    }
}

/// A provider's words made fit for an event and a terminal: one line, no control characters, bounded, without the key.
pub(crate) fn sanitise(text: &str, key: Option<&SecretString>) -> String {
    // Far more than is shown: the rest need not be looked at.
    let mut end = text.len().min(16 * 1024);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = Redactor::new(key).apply(&text[..end], "[key]");
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words
        .map(|word| if word.contains("sk-") { "[key]" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
        // Marks that turn the direction of a line or hide in it.
        .replace(
            |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'),
            "",
        );
    if line.chars().count() > MAX_PROVIDER_SENTENCE {
        line.chars().take(MAX_PROVIDER_SENTENCE).chain(['…']).collect()
    } else {
        line
    }
}

/// The failure that an HTTP status other than success stands for.
pub(crate) fn of_status(
    provider: &str,
    status: u16,
    retry_after: Option<Duration>,
    body: &ErrorBody,
    key: Option<&SecretString>,
) -> ModelFailure {
    let (class, what) = match status {
        300..=399 => (FaultClass::Rejected, "answered with a redirect, which is never followed"),
        402 => (FaultClass::SpendLimit, "says that the account behind the key has no credit"),
        429 if body.out_of_money() => (FaultClass::SpendLimit, "says that the account has reached its spending limit"),
        401 | 403 => (FaultClass::Auth, "refused the model key"),
        429 => (FaultClass::RateLimited, "limits the rate of this key"),
        503 | 529 => (FaultClass::Overloaded, "is overloaded"),
        408 | 409 | 425 | 500..=599 => (FaultClass::ServerError, "failed"),
        400..=499 => (FaultClass::Rejected, "refused the request"),
        _ => (FaultClass::Malformed, "answered with a status that is not one"),
    };
    let mut failure =
        ModelFailure::new(class, Charge::Nothing, format!("{provider} {what} (HTTP {status}){}", body.suffix(key)));
    failure.retry_after = retry_after;
    failure
}

/// `Retry-After`, in seconds or as a date (RFC 9110, section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    if let Some(seconds) = text.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_class_charge_and_code() {
        use FailureCode as Code;
        use FaultClass as Class;
        for (status, body, class, code, charged) in [
            (429, "{}", Class::RateLimited, Code::ModelRateLimited, Charge::Nothing),
            (
                429,
                r#"{"error":{"type":"rate_limit_error","details":{"error_code":"enforced_spend_limit_reached"}}}"#,
                Class::SpendLimit,
                Code::ModelRateLimited,
                Charge::Nothing,
            ),
            (
                429,
                r#"{"error":{"code":"insufficient_quota"}}"#,
                Class::SpendLimit,
                Code::ModelRateLimited,
                Charge::Nothing,
            ),
            (402, "", Class::SpendLimit, Code::ModelRateLimited, Charge::Nothing),
            (529, "<html>", Class::Overloaded, Code::ModelOverloaded, Charge::Nothing),
            (503, "null", Class::Overloaded, Code::ModelOverloaded, Charge::Nothing),
            (500, "[]", Class::ServerError, Code::ModelUnavailable, Charge::Nothing),
            (504, "", Class::ServerError, Code::ModelUnavailable, Charge::Nothing),
            (401, "", Class::Auth, Code::ModelAuth, Charge::Nothing),
            (403, "", Class::Auth, Code::ModelAuth, Charge::Nothing),
            (400, "", Class::Rejected, Code::ModelUnavailable, Charge::Nothing),
            (404, "", Class::Rejected, Code::ModelUnavailable, Charge::Nothing),
            (413, "", Class::Rejected, Code::ModelUnavailable, Charge::Nothing),
            (307, "", Class::Rejected, Code::ModelUnavailable, Charge::Nothing),
        ] {
            let failure = of_status("acme", status, None, &ErrorBody::read(body.as_bytes()), None);
            assert_eq!(
                (failure.class, failure.failure.code, failure.charged),
                (class, code, charged),
                "{status} {body}"
            );
            assert_eq!(failure.failure.retryable, class.retryable(), "{status}");
        }
    }

    #[test]
    fn a_providers_sentence_is_shown_on_one_line_without_key_or_control_characters() {
        let key = SecretString::from("canary-0123456789");
        let body = "{\"error\":{\"message\":\"bad\\u001b[31m\\n key canary-0123456789 or\\t'sk-proj-abc' \\u202e!\"}}";
        let failure = of_status("acme", 400, None, &ErrorBody::read(body.as_bytes()), Some(&key));
        assert_eq!(failure.failure.message, "acme refused the request (HTTP 400): bad [31m key [key] or [key] !");
        let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "é".repeat(20_000));
        let failure = of_status("acme", 400, None, &ErrorBody::read(long.as_bytes()), None);
        assert!(failure.failure.message.chars().count() < MAX_PROVIDER_SENTENCE + 50);
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().expect("time");
        for (text, expected) in [
            ("7", Some(7_000)),
            ("0.5", Some(500)),
            ("Sun, 22 Nov 2026 10:01:30 GMT", Some(90_000)),
            ("Sun, 22 Nov 2026 09:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("NaN", None),
            ("1e300", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("header"));
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_millis), "{text}");
        }
    }
}
