//! HTTP on the sandbox's loopback: connections, paths, and bodies within their bounds.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::errors::{Refusal, Shape};
use super::exchange::Sent;
use super::relay::{Live, Relay};
use super::reply::{Flushed, Reply, ReplyBody, response};
use super::request::{self, Call};
use super::route;
use super::{Api, Gateway, Session, headers};
use crate::model::call::{bounded_body, not_connected};
use crate::model::provider::day_of;

/// Connections of one sandbox at once. More wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 256;

/// Calls of one sandbox at once. More are told to come back.
pub const MAX_CALLS: usize = 128;

/// The longest body of a request: Anthropic's own limit, and above what any context window takes as text.
pub const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;

/// The longest head of a request.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// The longest query.
const MAX_QUERY: usize = 1_024;

/// The bodies of one sandbox's calls are at most so large together, in KiB.
const MAX_BODIES_KIB: usize = 256 * 1024;

/// A body of unknown length takes the room of the longest, in KiB: it may turn out to be that.
const UNKNOWN_BODY_KIB: u32 = (MAX_BODY_BYTES / 1024) as u32;

/// A body must have come within this.
const BODY_WAIT: Duration = Duration::from_secs(60);

/// A head must have come within this; so long a connection may also be idle.
const HEAD_WAIT: Duration = Duration::from_secs(300);

/// After an error of the listener itself.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// When the service ends, calls that are under way are waited for so long.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// At most so many models are listed.
const MAX_LISTED: usize = 200;

pub(super) async fn serve(gateway: Arc<Gateway>, listener: TcpListener, session: Session, stop: CancellationToken) {
    // A child, so that calls end also when this future is dropped.
    let ended = stop.child_token();
    let _end = ended.clone().drop_guard();
    let live = Arc::new(Live {
        retries: AtomicU32::new(gateway.policy.retries_per_task),
        gateway,
        session,
        calls: Arc::new(Semaphore::new(MAX_CALLS)),
        bodies: Arc::new(Semaphore::new(MAX_BODIES_KIB)),
        stop: ended.clone(),
        tasks: TaskTracker::new(),
    });
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        let (permit, socket) = tokio::select! {
            () = ended.cancelled() => break,
            accepted = accepted => match accepted {
                Some((permit, Ok((socket, _)))) => (permit, socket),
                Some((_, Err(_))) => {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
                None => break,
            },
        };
        live.tasks.spawn(connection(Arc::clone(&live), socket, permit));
    }
    live.tasks.close();
    if timeout(STOP_WAIT, live.tasks.wait()).await.is_err() {
        tracing::warn!("calls are still being settled after their sandbox has ended");
    }
}

async fn connection(live: Arc<Live>, socket: TcpStream, _permit: OwnedSemaphorePermit) {
    // Small events must not wait for each other's acknowledgement. Without it they are slower, not wrong.
    let _ = socket.set_nodelay(true);
    let flushed = Arc::new(Flushed::default());
    let io = TokioIo::new(Counting { socket, flushed: Arc::clone(&flushed) });
    let stop = live.stop.clone();
    let service = service_fn(move |request| {
        let (live, flushed) = (Arc::clone(&live), Arc::clone(&flushed));
        async move { answer(live, request, &flushed).await }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    // How a connection ends is the caller's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(STOP_WAIT, connection).await;
}

/// A socket that counts its flushes.
struct Counting {
    socket: TcpStream,
    flushed: Arc<Flushed>,
}

impl tokio::io::AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl tokio::io::AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        if flushed.is_ready() {
            self.flushed.note();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

async fn answer(
    live: Arc<Live>,
    request: Request<Incoming>,
    flushed: &Arc<Flushed>,
) -> Result<Response<ReplyBody>, Infallible> {
    let shape = shape(&request);
    let refused = |refusal: Refusal| Ok(refusal.into_response(shape).map(ReplyBody::from));
    let whole = |response: Response<Bytes>| Ok(response.map(ReplyBody::from));
    let api = match (request.method(), request.uri().path()) {
        (&Method::POST, "/v1/messages") => Api::Messages,
        (&Method::POST, "/v1/messages/count_tokens") => Api::CountTokens,
        (&Method::POST, "/v1/chat/completions") => Api::Chat,
        (&Method::POST, "/v1/responses") => Api::Responses,
        (&Method::GET, "/v1/models") => return whole(models(&live, shape)),
        (&Method::HEAD, "/" | "/api/hello") => return whole(Response::new(Bytes::new())),
        (_, "/v1/messages" | "/v1/messages/count_tokens" | "/v1/chat/completions" | "/v1/responses") => {
            return refused(wrong_method("POST"));
        }
        (_, "/v1/models") => return refused(wrong_method("GET")),
        (_, "/" | "/api/hello") => return refused(wrong_method("HEAD")),
        _ => {
            let message = "Nothing is served under this path; use /v1/messages, /v1/chat/completions or /v1/responses.";
            return refused(Refusal::new(StatusCode::NOT_FOUND, message));
        }
    };
    match call(&live, api, request).await {
        Err(refusal) => refused(*refusal),
        Ok(Asked::Counted(response)) => whole(response),
        Ok(Asked::Call(relay, head)) => {
            live.tasks.spawn(relay.run());
            match head.await {
                Ok(answer) => response(answer, flushed),
                Err(_) => refused(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "The gateway failed; ask again.")),
            }
        }
    }
}

enum Asked {
    Counted(Response<Bytes>),
    Call(Box<Relay>, oneshot::Receiver<super::reply::Answer>),
}

async fn call(live: &Arc<Live>, api: Api, request: Request<Incoming>) -> Result<Asked, Box<Refusal>> {
    let query = request.uri().query().map(str::to_owned);
    if query.as_ref().is_some_and(|query| query.len() > MAX_QUERY) {
        return Err(Box::new(Refusal::new(StatusCode::URI_TOO_LONG, "The query is too long; leave it out.")));
    }
    let encoded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if request.headers().get(CONTENT_ENCODING).is_some_and(encoded) {
        let message = "A compressed body is not read here; send it without Content-Encoding.";
        return Err(Box::new(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)));
    }
    let busy = || {
        let message = format!("More than {MAX_CALLS} calls are under way; wait for one to end.");
        Box::new(Refusal {
            retry_after: Some(Duration::from_secs(1)),
            should_retry: Some(true),
            ..Refusal::new(StatusCode::TOO_MANY_REQUESTS, message)
        })
    };
    let place = Arc::clone(&live.calls).try_acquire_owned().map_err(|_| busy())?;
    let room = request.body().size_hint().exact().map_or(UNKNOWN_BODY_KIB, |bytes| {
        u32::try_from(bytes.min(MAX_BODY_BYTES as u64).div_ceil(1024)).unwrap_or(UNKNOWN_BODY_KIB)
    });
    let room = Arc::clone(&live.bodies).try_acquire_many_owned(room).map_err(|_| busy())?;
    let (parts, body) = request.into_parts();
    let body = read(body).await.map_err(Box::new)?;
    let sent = Sent { headers: headers::kept(&parts.headers), query };
    drop(parts);
    let day = day_of(live.gateway.clock.now());
    let find = |name: &str| route::find(&live.gateway.models, &live.session, api, name, day);
    if api == Api::CountTokens {
        let (target, body) = request::count_tokens(&body, find).map_err(Box::new)?;
        return count_tokens(live, &target, &sent, body).await.map(Asked::Counted).map_err(Box::new);
    }
    let call = Call::read(api, body, find, &live.gateway.policy).map_err(Box::new)?;
    let (head, answer) = oneshot::channel();
    let reply = Reply::new(api, call.streamed, live.gateway.policy.keep_alive, head);
    let relay = Relay { live: Arc::clone(live), call, sent, reply, _room: (place, room) };
    Ok(Asked::Call(Box::new(relay), answer))
}

async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(request::too_large(MAX_BODY_BYTES));
    }
    match timeout(BODY_WAIT, Limited::new(body, MAX_BODY_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(released(body.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(request::too_large(MAX_BODY_BYTES)),
        Ok(Err(_)) => Err(Refusal::bad_request("The body broke off; send it again.")),
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "The body did not come in time; send it again.")),
    }
}

/// A body that came in one piece is a part of the buffer that the connection reads into: copied, so that a call does not
/// keep all of that.
fn released(body: Bytes) -> Bytes {
    if body.len() <= MAX_HEADER_BYTES { Bytes::copy_from_slice(&body) } else { body }
}

/// Passes on a request that costs nothing, once.
async fn count_tokens(
    live: &Live,
    target: &route::Target,
    sent: &Sent,
    body: Bytes,
) -> Result<Response<Bytes>, Refusal> {
    let bad_gateway = |message: String| Refusal::new(StatusCode::BAD_GATEWAY, message);
    let models = &live.gateway.models;
    let Some(provider) = models.providers.get(&*target.model.provider) else {
        return Err(bad_gateway("The provider is gone from the configuration.".into()));
    };
    let forbidden = |why: String| Refusal::new(StatusCode::FORBIDDEN, why);
    let key = route::key(provider, target, &live.session).map_err(forbidden)?;
    let headers = headers::to_provider(&sent.headers, provider, key.as_ref())
        .ok_or_else(|| forbidden(format!("The model key for {} has characters that no key has.", provider.name)))?;
    let client = provider.client.get().await.map_err(bad_gateway)?;
    let wait = models.timeouts.first_byte_for(body.len());
    let url = provider.url(Api::CountTokens.endpoint(), sent.query.as_deref());
    let answer = match timeout(wait, client.post(url).headers(headers).body(body).send()).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let why = not_connected(&provider.name, &error).map(|failure| failure.failure.message);
            return Err(bad_gateway(why.unwrap_or_else(|| format!("{} broke the connection.", provider.name))));
        }
        Err(_) => {
            let message = format!("{} sent nothing for {} s.", provider.name, wait.as_secs());
            return Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, message));
        }
    };
    let (status, passing) = (answer.status(), headers::to_caller(answer.headers()));
    let encoded = answer.headers().contains_key(CONTENT_ENCODING);
    if encoded || status.is_redirection() {
        return Err(bad_gateway(format!("{} answered in a way that is not passed on.", provider.name)));
    }
    let body = bounded_body(answer).await;
    if !status.is_success() {
        let body = crate::model::fault::ErrorBody::read(&body);
        let key = key.as_ref().map(|key| &*key.secret);
        let failure = crate::model::fault::of_status(&provider.name, status.as_u16(), None, &body, key);
        return Err(Refusal { headers: Box::new(passing), ..Refusal::new(status, failure.failure.message.clone()) });
    }
    let mut response = Response::new(Bytes::from(body));
    *response.headers_mut() = passing;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The models that may be used, the task's own first.
fn models(live: &Live, shape: Shape) -> Response<Bytes> {
    let own = &live.session.model;
    let mut names: Vec<String> = live
        .gateway
        .models
        .priced(&own.provider)
        .filter(|name| *name != own.model_id && *name != crate::model::ANY_MODEL)
        .filter(|name| (live.session.allowed)(&format!("{}/{name}", own.provider)))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.insert(0, own.model_id.clone());
    names.truncate(MAX_LISTED);
    let body = match shape {
        Shape::Anthropic => {
            let data: Vec<_> = names
                .iter()
                .map(|name| {
                    json!({ "type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z" })
                })
                .collect();
            json!({ "data": data, "has_more": false, "first_id": names.first(), "last_id": names.last() })
        }
        Shape::Openai => {
            let data: Vec<_> = names
                .iter()
                .map(|name| json!({ "id": name, "object": "model", "created": 0, "owned_by": &*own.provider }))
                .collect();
            json!({ "object": "list", "data": data })
        }
    };
    let mut response = Response::new(Bytes::from(body.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Which client library is likely to read the answer.
fn shape<B>(request: &Request<B>) -> Shape {
    let headers: &HeaderMap = request.headers();
    let path = request.uri().path();
    let anthropic = path == "/v1/messages" || path.starts_with("/v1/messages/");
    if anthropic || headers.contains_key("anthropic-version") { Shape::Anthropic } else { Shape::Openai }
}

fn wrong_method(right: &'static str) -> Refusal {
    let mut refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("This path takes {right} only."));
    refusal.headers.insert(ALLOW, HeaderValue::from_static(right));
    refusal
}
