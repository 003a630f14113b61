//! What a caller is told when there is no reply, in the shape that its client library reads.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use orchestra_events::Failure;
use serde_json::json;

use super::Api;
use crate::meter::MeterError;
use crate::model::FaultClass;

/// A 429 never asks for a longer wait: some agents sleep through an hour, others give up at once.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What a 429 asks for when the provider said nothing: agents that are told nothing fail at once.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Tells a client whether it is worth asking again. Anthropic's and OpenAI's libraries obey it.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// How errors look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Anthropic,
    Openai,
}

/// An answer that is no reply.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub status: StatusCode,
    /// The type of error; what each dialect calls it follows from the status unless it is given.
    pub kind: Option<&'static str>,
    /// The code of the failure, when it is one of a task.
    pub code: Option<&'static str>,
    /// What is wrong, and what to do about it.
    pub message: String,
    pub retry_after: Option<Duration>,
    /// `Some(false)`: asking again does not help.
    pub should_retry: Option<bool>,
    /// What the provider's own answer said about itself.
    pub headers: Box<HeaderMap>,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: None,
            code: None,
            message: message.into(),
            retry_after: None,
            should_retry: status.is_client_error().then_some(false),
            headers: Box::default(),
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// There is no money, or nobody to ask for it.
    pub fn no_money(error: &MeterError, api: Api) -> Self {
        let stop = |code, message: String| Self {
            // The status at which each agent stops at once: Claude Code and those of the chat dialect at 402, Codex at 400.
            kind: Some(match api {
                Api::Messages | Api::CountTokens => "billing_error",
                Api::Chat | Api::Responses => "insufficient_quota",
            }),
            code: Some(code),
            ..Self::new(
                if api == Api::Responses { StatusCode::BAD_REQUEST } else { StatusCode::PAYMENT_REQUIRED },
                message,
            )
        };
        match error {
            MeterError::Refused(failure) => {
                stop(failure.code.as_str(), format!("{} {}", failure.message, failure.hint))
            }
            MeterError::Over => stop("cancelled", "The task is over; no further model call is made for it.".into()),
            MeterError::Unavailable(_) => Self {
                retry_after: Some(DEFAULT_RETRY_AFTER),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "The ledger does not answer, so no call can be paid for; ask again.",
                )
            },
        }
    }

    /// A call that failed before anything of a reply was passed on. `status` is the provider's own, when it gave one.
    pub fn failed(
        class: FaultClass,
        failure: &Failure,
        status: Option<StatusCode>,
        asked: Option<Duration>,
        shape: Shape,
    ) -> Self {
        let status = status.filter(|status| !status.is_redirection() && !status.is_success()).unwrap_or(match class {
            FaultClass::RateLimited | FaultClass::SpendLimit => StatusCode::TOO_MANY_REQUESTS,
            FaultClass::Overloaded if shape == Shape::Anthropic => overloaded(),
            FaultClass::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            FaultClass::FirstByteTimeout | FaultClass::IdleTimeout => StatusCode::GATEWAY_TIMEOUT,
            FaultClass::Auth => StatusCode::FORBIDDEN,
            FaultClass::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            FaultClass::ServerError
            | FaultClass::Connect
            | FaultClass::Tls
            | FaultClass::Reset
            | FaultClass::Truncated
            | FaultClass::Malformed
            | FaultClass::Rejected
            | FaultClass::Unsupported => StatusCode::BAD_GATEWAY,
        });
        let should_retry = if class.retryable() { None } else { Some(false) };
        Self {
            code: Some(failure.code.as_str()),
            retry_after: asked,
            should_retry,
            ..Self::new(status, failure.message.clone())
        }
    }

    fn anthropic_kind(&self) -> &'static str {
        self.kind.unwrap_or(match self.status.as_u16() {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 | 405 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            504 => "timeout_error",
            503 | 529 => "overloaded_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        })
    }

    fn openai_kind(&self) -> &'static str {
        self.kind.unwrap_or(match self.status.as_u16() {
            401 => "authentication_error",
            402 => "insufficient_quota",
            403 => "permission_error",
            429 => "rate_limit_exceeded",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        })
    }

    fn body(&self, shape: Shape) -> serde_json::Value {
        match shape {
            Shape::Anthropic => {
                json!({ "type": "error", "error": { "type": self.anthropic_kind(), "message": self.message } })
            }
            Shape::Openai => json!({ "error": {
                "message": self.message, "type": self.openai_kind(), "param": null, "code": self.code,
            } }),
        }
    }

    /// The whole answer.
    pub fn into_response(mut self, shape: Shape) -> hyper::Response<Bytes> {
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            self.retry_after = Some(self.retry_after.unwrap_or(DEFAULT_RETRY_AFTER));
        }
        let body = Bytes::from(self.body(shape).to_string());
        let mut response = hyper::Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = *self.headers;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            let seconds = wait.min(MAX_RETRY_AFTER).as_nanos().div_ceil(1_000_000_000).max(1);
            // At most sixty.
            headers.insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(60)));
        }
        match self.should_retry {
            Some(true) => drop(headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"))),
            Some(false) => drop(headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"))),
            None => {}
        }
        response
    }

    /// The same as an event of a stream that has begun.
    pub fn event(&self, api: Api) -> Bytes {
        Bytes::from(match api {
            Api::Messages | Api::CountTokens => format!("event: error\ndata: {}\n\n", self.body(Shape::Anthropic)),
            Api::Chat => format!("data: {}\n\n", self.body(Shape::Openai)),
            Api::Responses => {
                let event = json!({
                    "type": "error", "code": self.code.unwrap_or(self.openai_kind()), "message": self.message,
                    "param": null,
                });
                format!("event: error\ndata: {event}\n\n")
            }
        })
    }
}

fn overloaded() -> StatusCode {
    StatusCode::from_u16(529).expect("three digits")
}
