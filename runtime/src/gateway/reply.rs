//! The caller's end of a call: its answer, event by event, and whether anybody still listens.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::Response;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::Api;
use super::errors::Refusal;

/// So many pieces wait for a slow caller; then the provider waits.
const BACKLOG: usize = 16;

/// A caller that takes nothing for so long is taken for gone.
const STALLED: Duration = Duration::from_secs(300);

/// What the connection is told.
pub(super) enum Answer {
    Whole(Response<Bytes>),
    Stream(HeaderMap, mpsc::Receiver<Piece>),
}

/// A piece of a stream.
pub(super) enum Piece {
    Bytes(Bytes),
    /// The proper end. Without it, the connection is broken off.
    End,
}

/// The caller has gone away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// The caller's end of a call.
pub(super) struct Reply {
    api: Api,
    streamed: bool,
    every: Duration,
    head: Option<oneshot::Sender<Answer>>,
    pieces: Option<mpsc::Sender<Piece>>,
    /// The provider's headers that pass.
    pub headers: HeaderMap,
    last: Instant,
    /// Whether anything of a provider's reply was passed on.
    pub forwarded: bool,
    gone: bool,
}

impl Reply {
    pub fn new(api: Api, streamed: bool, every: Duration, head: oneshot::Sender<Answer>) -> Self {
        Self {
            api,
            streamed,
            every,
            head: Some(head),
            pieces: None,
            headers: HeaderMap::new(),
            last: Instant::now(),
            forwarded: false,
            gone: false,
        }
    }

    /// Whether nobody listens any more.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Waits for something while the caller is kept waiting. With `leave`, it is given up when the caller goes away.
    pub async fn meanwhile<F: Future>(&mut self, leave: bool, future: F) -> Result<F::Output, Gone> {
        let mut future = pin!(future);
        loop {
            if self.gone {
                return if leave { Err(Gone) } else { Ok(future.await) };
            }
            let next = self.last + self.every;
            tokio::select! {
                biased;
                output = &mut future => return Ok(output),
                () = closed(&mut self.head, &self.pieces) => self.gone = true,
                () = sleep_until(next), if self.streamed => {
                    self.send(Bytes::from_static(self.api.keep_alive().as_bytes())).await;
                }
            }
        }
    }

    /// Passes on whole events of the provider's.
    pub async fn forward(&mut self, events: Bytes) {
        self.forwarded = true;
        self.send(events).await;
    }

    async fn send(&mut self, bytes: Bytes) {
        self.last = Instant::now();
        if self.gone {
            return;
        }
        if let Some(head) = self.head.take() {
            let (pieces, stream) = mpsc::channel(BACKLOG);
            // Before the head, so that both are written at once. A new channel has room.
            let _ = pieces.try_send(Piece::Bytes(bytes));
            match head.send(Answer::Stream(std::mem::take(&mut self.headers), stream)) {
                Ok(()) => self.pieces = Some(pieces),
                Err(_) => self.gone = true,
            }
            return;
        }
        if let Some(pieces) = &self.pieces {
            let sent = timeout(STALLED, pieces.send(Piece::Bytes(bytes))).await;
            if !matches!(sent, Ok(Ok(()))) {
                self.gone = true;
                self.pieces = None;
            }
        }
    }

    /// The stream has come to its end.
    pub async fn end(mut self) {
        if let Some(pieces) = self.pieces.take() {
            let _ = timeout(STALLED, pieces.send(Piece::End)).await;
        }
    }

    /// The whole reply, for a caller that wanted no stream.
    pub fn answer(mut self, body: Bytes) {
        if let Some(head) = self.head.take() {
            let mut response = Response::new(body);
            *response.headers_mut() = std::mem::take(&mut self.headers);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            // Whoever has gone away does not miss it.
            let _ = head.send(Answer::Whole(response));
        }
    }

    /// There is no reply, or no more of it: an error, and, where the stream has begun, a broken connection after it.
    pub async fn refuse(mut self, refusal: Refusal) {
        match self.head.take() {
            Some(head) => drop(head.send(Answer::Whole(refusal.into_response(self.api.shape())))),
            None => self.send(refusal.event(self.api)).await,
        }
    }
}

/// Resolves when the caller goes away.
async fn closed(head: &mut Option<oneshot::Sender<Answer>>, pieces: &Option<mpsc::Sender<Piece>>) {
    match (head, pieces) {
        (Some(head), _) => head.closed().await,
        (None, Some(pieces)) => pieces.closed().await,
        (None, None) => std::future::pending().await,
    }
}

/// Counts how often everything that was written has reached the socket.
#[derive(Debug, Default)]
pub(super) struct Flushed {
    count: AtomicU64,
    waker: AtomicWaker,
}

impl Flushed {
    pub fn note(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.waker.wake();
    }
}

/// A stream that breaks off.
#[derive(Debug, thiserror::Error)]
#[error("the reply broke off")]
pub(super) struct BrokenOff;

/// The body of an answer.
pub(super) enum ReplyBody {
    Whole(Option<Bytes>),
    Stream { pieces: mpsc::Receiver<Piece>, flushed: Arc<Flushed>, flushes: Option<u64> },
}

impl ReplyBody {
    pub fn stream(pieces: mpsc::Receiver<Piece>, flushed: Arc<Flushed>) -> Self {
        Self::Stream { pieces, flushed, flushes: None }
    }
}

impl From<Bytes> for ReplyBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { pieces, flushed, flushes } => match std::task::ready!(pieces.poll_recv(context)) {
                Some(Piece::Bytes(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Piece::End) => Poll::Ready(None),
                None => {
                    // An error of the body drops what hyper has not written yet. The caller must see the last event, so
                    // it is flushed first, which hyper does whenever there is nothing to poll.
                    flushed.waker.register(context.waker());
                    let now = flushed.count.load(Ordering::Acquire);
                    match *flushes {
                        Some(before) if before != now => Poll::Ready(Some(Err(BrokenOff))),
                        Some(_) => Poll::Pending,
                        None => {
                            *flushes = Some(now);
                            Poll::Pending
                        }
                    }
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { .. } => SizeHint::default(),
        }
    }
}

/// The answer as hyper takes it.
pub(super) fn response(answer: Answer, flushed: &Arc<Flushed>) -> Result<Response<ReplyBody>, Infallible> {
    Ok(match answer {
        Answer::Whole(response) => response.map(ReplyBody::from),
        Answer::Stream(headers, pieces) => {
            let mut response = Response::new(ReplyBody::stream(pieces, Arc::clone(flushed)));
            *response.headers_mut() = headers;
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        }
    })
}
