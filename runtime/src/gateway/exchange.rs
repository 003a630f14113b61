//! One attempt: send the request, read what comes, pass it on, and name what went wrong.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use reqwest::Response;
use tokio::time::{Instant, timeout_at};

use super::assemble::Assembly;
use super::decode::{Decoder, STEP};
use super::frames::{Frames, TooLong};
use super::relay::{Live, Ticket};
use super::reply::{Gone, Reply};
use super::request::Call;
use super::route::{self, Key};
use super::watch::{Seen, Watch};
use super::{Abandoned, headers};
use crate::meter::Reservation;
use crate::model::call::{bounded_body, broken, not_connected};
use crate::model::fault::{self, ErrorBody};
use crate::model::provider::Provider;
use crate::model::retry::asked_wait;
use crate::model::wire::Fault;
use crate::model::{Charge, FaultClass, MAX_REPLY_BYTES, ModelFailure};

/// After the last event, how long the connection's proper end is waited for, so that it can be used again.
const END_WAIT: Duration = Duration::from_millis(50);

/// Comments and keep-alives that come before the reply are kept back until it is there; more of them are dropped.
const MAX_HELD: usize = 64 * 1024;

/// Events that came together are passed on together, up to this many bytes: a write for each is most of what a stream
/// costs.
const MAX_GATHERED: usize = 16 * 1024;

/// What the caller of the gateway sent along.
pub(super) struct Sent {
    pub headers: HeaderMap,
    pub query: Option<String>,
}

/// An attempt that failed.
pub(super) struct Failed {
    pub failure: ModelFailure,
    /// The provider's status, when it was none of success.
    pub status: Option<StatusCode>,
    pub headers: Box<HeaderMap>,
}

impl From<ModelFailure> for Failed {
    fn from(failure: ModelFailure) -> Self {
        Self { failure, status: None, headers: Box::default() }
    }
}

/// The state of an attempt. It outlives the attempt's future, so that one that is cut off can still be settled.
pub(super) struct Exchange<'a> {
    live: &'a Live,
    call: &'a Call,
    reservation: Reservation,
    key: Option<Key>,
    /// Whether the request may have reached the provider.
    pub sent: bool,
    /// Whether the provider may have worked on it.
    pub begun: bool,
    pub watch: Watch,
    assembly: Option<Assembly>,
    pub ticket: Ticket,
    frames: Frames,
    held: BytesMut,
    trimmed: bool,
}

impl<'a> Exchange<'a> {
    pub fn new(live: &'a Live, call: &'a Call, reservation: Reservation, ticket: Ticket) -> Self {
        Self {
            live,
            call,
            reservation,
            key: None,
            sent: false,
            begun: false,
            watch: Watch::new(call.api, call.quote.replies),
            assembly: (!call.streamed).then(|| Assembly::new(call.api)),
            ticket,
            frames: Frames::default(),
            held: BytesMut::new(),
            trimmed: false,
        }
    }

    fn leave(&self) -> bool {
        self.live.gateway.policy.abandoned == Abandoned::SettleAtBound
    }

    fn failed(&mut self, fault: Fault) -> Failed {
        if fault.reported.is_some() && !self.watch.tally.started {
            // An error in place of the first event: the provider did not begin.
            self.begun = false;
        }
        let key = self.key.as_ref().map(|key| &*key.secret);
        let says = fault.reported.map(|body| body.suffix(key)).unwrap_or_default();
        let message = format!("{} {}{says}", self.call.target.model.provider, fault.what);
        ModelFailure::new(fault.class, Charge::Unknown, message).into()
    }

    fn gone(&mut self) -> Failed {
        let message = "The caller has gone away before the reply was whole.";
        ModelFailure::new(FaultClass::Cancelled, Charge::Unknown, message).into()
    }

    /// Makes the attempt. Success means that the reply came whole and was passed on, or gathered.
    pub async fn run(&mut self, sent: &Sent, reply: &mut Reply) -> Result<(), Failed> {
        let models = &self.live.gateway.models;
        let refuse = |class, message: String| Err(ModelFailure::new(class, Charge::Nothing, message).into());
        let Some(provider) = models.providers.get(&*self.call.target.model.provider) else {
            return refuse(FaultClass::Unsupported, "The provider is gone from the configuration.".into());
        };
        self.key = match route::key(provider, &self.call.target, &self.live.session) {
            Ok(key) => key,
            Err(why) => return refuse(FaultClass::Auth, why),
        };
        let Some(headers) = headers::to_provider(&sent.headers, provider, self.key.as_ref()) else {
            return refuse(
                FaultClass::Auth,
                format!("The model key for {} has characters that no key has.", provider.name),
            );
        };
        let client = match provider.client.get().await {
            Ok(client) => client,
            Err(why) => return refuse(FaultClass::Tls, format!("no connection to {}: {why}", provider.name)),
        };
        let body = self.call.body(self.reservation.max_output_tokens);
        let wait = models.timeouts.first_byte_for(body.len());
        let deadline = Instant::now() + wait;
        let url = provider.url(self.call.api.endpoint(), sent.query.as_deref());
        let send = client.post(url).headers(headers).body(body).send();
        self.sent = true;
        let sent = reply.meanwhile(self.leave(), timeout_at(deadline, send)).await;
        let mut response = match sent.map_err(|Gone| self.gone())? {
            Err(_) => return Err(self.late(wait)),
            Ok(Err(error)) => {
                return Err(match not_connected(&provider.name, &error) {
                    Some(failure) => failure.into(),
                    None => self.failed(broken()),
                });
            }
            Ok(Ok(response)) => response,
        };
        if response.status() != StatusCode::OK {
            return Err(self.refused(provider, response).await);
        }
        self.begun = true;
        let passing = headers::to_caller(response.headers());
        let decoder = Decoder::new(response.headers()).map_err(|fault| self.failed(fault))?;
        if !is_stream(response.headers()) {
            return Err(self.not_a_stream(response, decoder).await);
        }
        reply.headers = passing;
        // They share the buffer that the connection reads into, which would be kept until the end.
        response.headers_mut().clear();
        self.read(response, decoder, (deadline, wait), reply).await
    }

    async fn read(
        &mut self,
        mut response: Response,
        mut decoder: Decoder,
        (deadline, wait): (Instant, Duration),
        reply: &mut Reply,
    ) -> Result<(), Failed> {
        let idle = self.live.gateway.models.timeouts.idle;
        let (mut read, mut plain) = (0_usize, Vec::new());
        let (mut events, mut early) = (BytesMut::new(), None);
        loop {
            let chunk = match early.take() {
                Some(chunk) => Ok(chunk),
                None => {
                    let limit = match (self.watch.tally.whole, read) {
                        (true, _) => Instant::now() + END_WAIT,
                        (false, 0) => deadline,
                        (false, _) => Instant::now() + idle,
                    };
                    let chunk = reply.meanwhile(self.leave(), timeout_at(limit, response.chunk())).await;
                    chunk.map_err(|Gone| self.gone())?
                }
            };
            let chunk = match chunk {
                // What comes after the closing event is not waited for, nor a fault.
                Err(_) | Ok(Err(_)) if self.watch.tally.whole => return Ok(()),
                Err(_) if read == 0 => return Err(self.late(wait)),
                Err(_) => {
                    let what = format!("fell silent for {} s in the middle of its reply", idle.as_secs());
                    return Err(self.failed(Fault::new(FaultClass::IdleTimeout, what)));
                }
                Ok(Err(_)) => return Err(self.failed(broken())),
                Ok(Ok(None)) => {
                    self.watch.end().map_err(|fault| self.failed(fault))?;
                    let rest = self.frames.rest();
                    if !rest.is_empty() && !self.held_back() {
                        reply.forward(rest).await;
                    }
                    return Ok(());
                }
                Ok(Ok(Some(chunk))) => chunk,
            };
            let mut fault = None;
            for piece in chunk.chunks(if matches!(decoder, Decoder::Identity) { chunk.len().max(1) } else { STEP }) {
                plain.clear();
                let taken = match decoder.decode(piece, &mut plain) {
                    Ok(()) => {
                        read = read.saturating_add(plain.len());
                        self.take(&plain, &mut events)
                    }
                    Err(fault) => Err(fault),
                };
                if let Err(found) = taken {
                    fault = Some(found);
                    break;
                }
                if read > MAX_REPLY_BYTES {
                    fault = Some(Fault::malformed("sent a reply without end"));
                    break;
                }
            }
            self.trim();
            // What comes after the closing event is no fault of the reply's.
            let whole = self.watch.tally.whole;
            // A fault right at the beginning is not passed on: the next attempt may go better. Later, what was whole is.
            if !events.is_empty() && (fault.is_none() || whole || reply.forwarded) {
                if fault.is_none() && reply.forwarded && events.len() < MAX_GATHERED {
                    early = soon(response.chunk()).await;
                    if matches!(early, Some(Ok(Some(_)))) {
                        continue;
                    }
                }
                reply.forward(events.split().freeze()).await;
            }
            match fault {
                Some(_) if whole => return Ok(()),
                Some(fault) => return Err(self.failed(fault)),
                None => {}
            }
        }
    }

    /// Reads a piece. Whole events that the caller shall see are appended to `events`.
    fn take(&mut self, plain: &[u8], events: &mut BytesMut) -> Result<(), Fault> {
        self.frames.push(plain).map_err(|TooLong| Fault::malformed("sent an event that is too long to be one"))?;
        while let Some(frame) = self.frames.next() {
            let seen = self.watch.take(&frame)?;
            if self.watch.tally.started {
                self.ticket.begun();
            }
            if let Some(assembly) = &mut self.assembly {
                assembly.take(&frame, seen)?;
                continue;
            }
            if seen == Seen::UsageOnly && !self.call.wants_usage {
                continue;
            }
            if !self.watch.tally.started {
                if self.held.len() + frame.len() <= MAX_HELD {
                    self.held.extend_from_slice(&frame);
                }
                continue;
            }
            if !self.held.is_empty() {
                events.extend_from_slice(&self.held.split());
            }
            events.extend_from_slice(&frame);
        }
        Ok(())
    }

    /// Whether nothing is passed on as it comes.
    fn held_back(&self) -> bool {
        self.assembly.is_some()
    }

    /// Once the provider has said what it read, what was set aside for more is given back.
    fn trim(&mut self) {
        let tally = &self.watch.tally;
        if self.trimmed || self.call.hosted || tally.whole || tally.counted.input.is_none() {
            return;
        }
        self.trimmed = true;
        let most = self.reservation.max_output_tokens.saturating_mul(self.call.quote.replies);
        let (mut usage, _) = tally.counted.settle(self.call.quote.input_tokens, most);
        usage.output_tokens = most;
        let cost = self.call.target.model.price.cost(&usage);
        let nano_usd = self.reservation.nano_usd.saturating_sub(cost);
        let tokens = self.reservation.tokens.saturating_sub(usage.total());
        if nano_usd.nanos() > 0 || tokens > 0 {
            self.live.session.meter.trim(self.reservation.call, nano_usd, tokens);
        }
    }

    fn late(&mut self, wait: Duration) -> Failed {
        self.failed(Fault::new(FaultClass::FirstByteTimeout, format!("sent nothing for {} s", wait.as_secs())))
    }

    async fn refused(&mut self, provider: &Provider, response: Response) -> Failed {
        let status = response.status();
        let asked = asked_wait(response.headers(), self.live.gateway.clock.now());
        let headers = Box::new(headers::to_caller(response.headers()));
        let body = ErrorBody::read(&bounded_body(response).await);
        let key = self.key.as_ref().map(|key| &*key.secret);
        let failure = fault::of_status(&provider.name, status.as_u16(), asked, &body, key);
        Failed { failure, status: Some(status), headers }
    }

    /// 200, but not a stream of events: an error that came with the wrong status, or somebody else's page.
    async fn not_a_stream(&mut self, response: Response, mut decoder: Decoder) -> Failed {
        let (body, mut plain) = (bounded_body(response).await, Vec::new());
        for piece in body.chunks(STEP) {
            if decoder.decode(piece, &mut plain).is_err() || plain.len() > MAX_HELD {
                break;
            }
        }
        let body: serde_json::Value = serde_json::from_slice(&plain).unwrap_or_default();
        self.failed(match body.get("error").filter(|error| !error.is_null()) {
            Some(error) => Fault::reported("answered with an error", ErrorBody::from_value(error)),
            None => Fault::malformed("did not answer with a stream of events"),
        })
    }

    /// The gathered reply, for a caller that wanted no stream.
    pub fn gathered(&mut self) -> Result<Option<Bytes>, Failed> {
        let Some(assembly) = self.assembly.take() else { return Ok(None) };
        assembly.finish().map(Some).map_err(|fault| self.failed(fault))
    }
}

/// What is there now, or once those tasks have had their turn that can run already: the one that reads the connection
/// hands over one piece at a time, also when it has read many at once.
async fn soon<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = tokio::task::yield_now() => None,
    }
}

fn is_stream(headers: &HeaderMap) -> bool {
    let stream =
        |kind: &hyper::header::HeaderValue| kind.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream");
    headers.get(CONTENT_TYPE).is_none_or(stream)
}
