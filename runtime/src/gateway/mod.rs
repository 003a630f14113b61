//! The metered gateway: what an agent in a sandbox takes for its model's provider.
//!
//! It is served on the sandbox's own loopback device and speaks Anthropic's Messages, OpenAI's Chat Completions and
//! OpenAI's Responses. A request passes byte for byte, except for the key, the output limit, the standard service tier and
//! what metering needs; no request leaves without money that is set aside for it ([`crate::meter::Meter`]), and each
//! reservation is settled or released exactly once, whatever becomes of the caller.
//!
//! A call goes: `server` reads it, `route` finds who serves the model and whether it may be used, `request` and `quote` say
//! what it can cost and what is replaced in it, `relay` reserves, tries, waits and settles, `exchange` makes one attempt,
//! `watch` reads the usage off the stream while `reply` passes it on.

mod assemble;
mod clock;
mod content;
mod decode;
mod errors;
mod exchange;
mod frames;
mod headers;
mod quote;
mod relay;
mod reply;
mod request;
mod route;
mod scan;
mod server;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::meter::Meter;
use crate::model::breaker::{Admission, Breaker, Health};
use crate::model::provider::Endpoint;
use crate::model::{HostedTool, Models, ResolvedModel};
use clock::{Clock, SystemClock};
use errors::Shape;

pub use server::{MAX_BODY_BYTES, MAX_CALLS, MAX_CONNECTIONS, MAX_HEADER_BYTES};

/// What becomes of a call whose caller has gone away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandoned {
    /// The reply is read to its end, so that what it cost is exact. It is paid for either way.
    ReadToEnd,
    /// The connection is closed at once, and what is not known is settled at its bound.
    SettleAtBound,
}

/// What the operator decides.
#[derive(Debug, Clone)]
pub struct GatewayPolicy {
    /// What becomes of a call whose caller has gone away.
    pub abandoned: Abandoned,
    /// The tools that a provider may run by itself, each with the input tokens that one use may bring in. A tool must have
    /// a price as well. Without an entry, requests that name such a tool are refused.
    pub hosted_tools: BTreeMap<HostedTool, u64>,
    /// How often a task's calls may be tried again, all together.
    pub retries_per_task: u32,
    /// A caller that waits for a stream hears something this often.
    pub keep_alive: Duration,
}

impl Default for GatewayPolicy {
    fn default() -> Self {
        Self {
            abandoned: Abandoned::ReadToEnd,
            hosted_tools: BTreeMap::new(),
            retries_per_task: 200,
            // Claude Code shows a stall after 20 s of silence.
            keep_alive: Duration::from_secs(15),
        }
    }
}

/// One task's use of the gateway.
#[derive(Clone)]
pub struct Session {
    /// Its money.
    pub meter: Arc<dyn Meter>,
    /// Its model. The task's key is that of this model's provider, and is sent to no other.
    pub model: ResolvedModel,
    /// The task's key, asked for at each attempt: keys rotate.
    pub key: Arc<dyn Fn() -> Option<SecretString> + Send + Sync>,
    /// Whether the team may use a model, given as `provider/model`.
    pub allowed: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// When the task's time is over.
    pub deadline: Option<jiff::Timestamp>,
}

/// The gateway of a server: its providers, and what is known of their health. One for all tasks.
pub struct Gateway {
    models: Arc<Models>,
    policy: GatewayPolicy,
    clock: Arc<dyn Clock>,
    breakers: BTreeMap<Arc<str>, Mutex<Breaker>>,
}

impl Gateway {
    /// A gateway to these providers.
    pub fn new(models: Arc<Models>, policy: GatewayPolicy) -> Self {
        Self::with_clock(models, policy, Arc::new(SystemClock::default()))
    }

    fn with_clock(models: Arc<Models>, policy: GatewayPolicy, clock: Arc<dyn Clock>) -> Self {
        let breakers =
            models.providers.values().map(|provider| (Arc::clone(&provider.name), Mutex::default())).collect();
        Self { models, policy, clock, breakers }
    }

    /// Serves one sandbox's loopback listener until `stop` is cancelled. Calls that are under way then are settled at what
    /// is known of them before this returns, or within ten seconds after.
    pub async fn serve(self: Arc<Self>, listener: std::net::TcpListener, session: Session, stop: CancellationToken) {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => self.serve_on(listener, session, stop).await,
            Err(error) => tracing::error!(%error, "the gateway's listener cannot be used"),
        }
    }

    /// The same, for a listener of this process's own network.
    pub async fn serve_on(
        self: Arc<Self>,
        listener: tokio::net::TcpListener,
        session: Session,
        stop: CancellationToken,
    ) {
        server::serve(self, listener, session, stop).await;
    }

    /// Asks whether a provider may be called now.
    fn admit(&self, provider: &str) -> Admission {
        self.breaker(provider, |breaker, now| breaker.admit(now)).unwrap_or(Admission::Go)
    }

    fn report(&self, provider: &str, health: Option<Health>, probe: bool) {
        self.breaker(provider, |breaker, now| match health {
            Some(health) => breaker.report(now, health, probe),
            None if probe => breaker.forgo(now),
            None => {}
        });
    }

    fn breaker<T>(&self, provider: &str, ask: impl FnOnce(&mut Breaker, Duration) -> T) -> Option<T> {
        let now = self.clock.elapsed();
        let breaker = self.breakers.get(provider)?;
        // Plain numbers: whoever panicked while holding it left them usable.
        Some(ask(&mut breaker.lock().unwrap_or_else(std::sync::PoisonError::into_inner), now))
    }
}

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    Messages,
    CountTokens,
    Chat,
    Responses,
}

impl Api {
    const fn endpoint(self) -> Endpoint {
        match self {
            Self::Messages => Endpoint::Messages,
            Self::CountTokens => Endpoint::CountTokens,
            Self::Chat => Endpoint::Chat,
            Self::Responses => Endpoint::Responses,
        }
    }

    const fn is_anthropic(self) -> bool {
        matches!(self, Self::Messages | Self::CountTokens)
    }

    const fn shape(self) -> Shape {
        if self.is_anthropic() { Shape::Anthropic } else { Shape::Openai }
    }

    /// An event that says nothing but that somebody is there. Not a comment: Codex does not count those.
    const fn keep_alive(self) -> &'static str {
        match self {
            Self::Messages | Self::CountTokens => "event: ping\ndata: {\"type\": \"ping\"}\n\n",
            Self::Chat => {
                "data: {\"id\":\"keepalive\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"\",\"choices\":[]}\n\n"
            }
            Self::Responses => "data: {\"type\":\"keepalive\"}\n\n",
        }
    }
}
