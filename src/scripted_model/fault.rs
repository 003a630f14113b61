//! Answers that go wrong, each in the way its name says.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::body::BodyStream;
use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::Value;

use super::script::{Asked, Fault, FaultKind, Played};
use super::{Dialect, MAX_HANG, events, responses, say, stream_of};

/// What follows the first half of a stream.
enum After {
    Break,
    Silence,
}

pub(super) async fn answer(fault: &Fault, dialect: Dialect, played: &Played, asked: &Asked) -> HttpResponse {
    let message = fault.message.as_deref().unwrap_or("as the script says");
    let error = |status| {
        let mut error = dialect.error(status, message);
        if let Some(code) = &fault.code {
            error["error"]["code"] = code.as_str().into();
            error["error"]["details"]["error_code"] = code.as_str().into();
        }
        error
    };
    let all = || dialect.stream(played, asked);
    // Half of it: past the first event, and short of the end.
    let half = || {
        let mut half = all();
        half.truncate((half.len() / 2).max(1));
        half
    };
    match fault.kind {
        FaultKind::Status => {
            let status = fault.status.unwrap_or(500);
            let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = HttpResponse::build(code);
            if let Some(wait) = &fault.retry_after {
                response.insert_header(("Retry-After", wait.as_str()));
            }
            response.json(error(status))
        }
        FaultKind::Truncate => events(half(), None),
        FaultKind::Reset => broken(half(), After::Break),
        FaultKind::Stall => broken(half(), After::Silence),
        FaultKind::Hang => {
            tokio::time::sleep(MAX_HANG).await;
            HttpResponse::GatewayTimeout().finish()
        }
        FaultKind::Garbage => HttpResponse::Ok().content_type("text/html").body("<!doctype html><p>Please log in"),
        FaultKind::BadJson => {
            let mut half = half();
            half.push("event: content_block_delta\ndata: {\"type\":\n\n".into());
            events(half, None)
        }
        FaultKind::Empty => events(Vec::new(), None),
        FaultKind::ErrorFirst => events(vec![error_event(dialect, message, error(529), true)], None),
        FaultKind::ErrorEvent => {
            let mut half = half();
            half.push(error_event(dialect, message, error(529), false));
            events(half, None)
        }
        FaultKind::NoUsage => {
            let uncounted = Played { count: false, ..played.clone() };
            say(dialect, &uncounted, asked, None)
        }
    }
}

/// An error in the middle of a stream that began with status 200, or in place of its first event.
fn error_event(dialect: Dialect, message: &str, error: Value, first: bool) -> String {
    match dialect {
        Dialect::Anthropic | Dialect::OpenaiChat => format!("event: error\ndata: {error}\n\n"),
        Dialect::OpenaiResponses => responses::overloaded(message, first),
    }
}

fn broken(events: Vec<String>, after: After) -> HttpResponse {
    let head = stream::iter(events).map(|event| Ok(Bytes::from(event)));
    let tail = stream::once(async move {
        match after {
            // Long enough for what was said to be on its way first.
            After::Break => tokio::time::sleep(Duration::from_millis(20)).await,
            After::Silence => tokio::time::sleep(MAX_HANG).await,
        }
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
    });
    stream_of(BodyStream::new(head.chain(tail)))
}
