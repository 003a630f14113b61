//! A provider that answers every request with the same 25 events, in Anthropic's dialect.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep, sleep_until};

use super::load::{HELD, PACED};

/// What a caller or a gateway must show. Whoever forgets to put it in is refused, and seen.
pub const KEY: &str = "sk-bench-upstream";
/// Events of one reply.
pub const EVENTS: usize = 25;
/// Of them, those that carry text.
pub const DELTAS: usize = EVENTS - 6;
/// Between two events of a paced reply.
const PACE: Duration = Duration::from_millis(10);
/// So many events of a held reply are sent before it falls silent.
const BEFORE_SILENCE: usize = 4;

static REPLY: LazyLock<Arc<[Bytes]>> = LazyLock::new(|| {
    let event = |kind: &str, rest: &str| {
        Bytes::from(format!("event: {kind}\ndata: {{\"type\":\"{kind}\"{rest}}}\n\n").into_bytes())
    };
    let start = r#","message":{"id":"msg_bench","type":"message","role":"assistant","model":"claude-sonnet-4-6","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":280,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}"#;
    let mut events = vec![
        event("message_start", start),
        event("content_block_start", r#","index":0,"content_block":{"type":"text","text":""}"#),
        event("ping", ""),
    ];
    let delta = r#","index":0,"delta":{"type":"text_delta","text":"a few words of a reply "}"#;
    events.extend((0..DELTAS).map(|_| event("content_block_delta", delta)));
    let end = r#","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":96}"#;
    events.extend([
        event("content_block_stop", r#","index":0"#),
        event("message_delta", end),
        event("message_stop", ""),
    ]);
    assert_eq!(events.len(), EVENTS);
    events.into()
});

/// How the events of a reply come.
enum Pace {
    /// One after the other, each written on its own.
    AtOnce { given_way: bool },
    /// Ten milliseconds apart.
    Paced { start: Instant, due: Option<Pin<Box<Sleep>>> },
    /// A few, then nothing until the connection is closed.
    Held,
}

struct Reply {
    events: Arc<[Bytes]>,
    next: usize,
    pace: Pace,
}

impl Reply {
    fn new(asked: &[u8]) -> Self {
        let says = |mark: &str| asked.windows(mark.len()).any(|part| part == mark.as_bytes());
        let pace = if says(PACED) {
            Pace::Paced { start: Instant::now(), due: None }
        } else if says(HELD) {
            Pace::Held
        } else {
            Pace::AtOnce { given_way: false }
        };
        Self { events: Arc::clone(&REPLY), next: 0, pace }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let reply = self.get_mut();
        let next = reply.next;
        if next == reply.events.len() {
            return Poll::Ready(None);
        }
        match &mut reply.pace {
            // hyper writes what it has whenever there is nothing to poll.
            Pace::AtOnce { given_way } if next > 0 && !*given_way => {
                *given_way = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Pace::AtOnce { given_way } => *given_way = false,
            // A timer that is due already would still wait for the next millisecond.
            Pace::Paced { .. } if next == 0 => {}
            Pace::Paced { start, due } => {
                let sleep = due.get_or_insert_with(|| Box::pin(sleep_until(*start + PACE * next as u32)));
                ready!(sleep.as_mut().poll(context));
                *due = None;
            }
            Pace::Held if next == BEFORE_SILENCE => return Poll::Pending,
            Pace::Held => {}
        }
        reply.next += 1;
        Poll::Ready(Some(Ok(Frame::data(reply.events[next].clone()))))
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Either<Reply, Full<Bytes>>>, hyper::Error> {
    let known = request.headers().get("x-api-key").is_some_and(|key| key == KEY);
    let asked = request.into_body().collect().await?.to_bytes();
    let mut response = if known {
        Response::new(Either::Left(Reply::new(&asked)))
    } else {
        let refusal = br#"{"type":"error","error":{"type":"authentication_error","message":"wrong key"}}"#;
        let mut response = Response::new(Either::Right(Full::from(&refusal[..])));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response
    };
    let kind = if known { "text/event-stream; charset=utf-8" } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// Answers for ever.
pub async fn serve(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            // A caller that goes away is none of its business.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}
