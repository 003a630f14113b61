//! The way out of a sandbox: a proxy on its own loopback that lets through what a list allows, and writes down the rest
//! as well.
//!
//! A sandbox has no route, no name server and no other peer. Programs in it ask this proxy for a host by its name, either
//! to forward one HTTP request or to open a tunnel for TLS. `authority` and `head` read what they ask for, in one way
//! only; `pattern` says whether it is on the list; `resolve` and `address` find where it leads and whether anybody may go
//! there; `hello` sees to it that TLS names the same host; `relay` moves the bytes, within what `traffic` leaves; `record`
//! gathers what was decided for whoever writes it down.
//!
//! What is inside a tunnel is not read. A host that is allowed can be told anything; that is what the list is for.

mod address;
mod authority;
mod connection;
mod head;
mod hello;
mod pattern;
mod reason;
mod record;
mod relay;
mod resolve;
mod traffic;

/// What reads the bytes of sandboxes and of those they ask, for the fuzz targets. Elsewhere it is only the proxy's.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use super::authority::{Authority, read_host, shown};
    pub use super::head::{Answer, Asked, Chunks, Framing, Request, aimed_at, end_of};
    pub use super::hello::server_name;
}

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub(crate) use address::check;
pub use address::{Network, NetworkError};
pub use authority::MAX_HOST;
pub(crate) use authority::read_host;
pub use head::{MAX_FIELDS, MAX_FIRST_LINE, MAX_HEAD};
pub use hello::MAX_HELLO;
pub use pattern::{Entry, MAX_ENTRIES, PACKAGE_REGISTRIES, Pattern, PatternError, expand, is_within, read_list};
pub use reason::Reason;
pub use record::{Batch, Bytes, Decision, Lost, MAX_BATCH, Sink, Verdict};
pub(crate) use resolve::addresses;
pub use resolve::{Resolve, SystemResolver};

use crate::sandbox::{Sandbox, SandboxError};
use record::Record;
use traffic::Allowance;

/// Where the proxy listens on a sandbox's own loopback.
pub const PORT: u16 = 7081;

/// Time between two batches of decisions.
const GATHER: Duration = Duration::from_secs(1);

/// How long the first decision after a silence waits for others.
const FIRST: Duration = Duration::from_millis(20);

/// How long connections may take to end when the proxy closes. They are cut, so they hardly take any.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// How long the last batch may take.
const LAST_BATCH: Duration = Duration::from_secs(5);

/// After an error of the listener itself.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a sandbox may use of the proxy.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once. More are told to come back.
    pub connections: usize,
    /// Bytes of one connection, in each direction.
    pub connection_bytes: u64,
    /// Bytes of the task, in each direction.
    pub task_bytes: u64,
    /// A request's head, and the beginning of TLS, must have come within this.
    pub head: Duration,
    /// The longest silence in both directions at once.
    pub idle: Duration,
    /// The longest life of a connection.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // npm opens 15 at once, and several may run; a browser less than 100.
            connections: 256,
            connection_bytes: 4 << 30,
            task_bytes: 10 << 30,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            total: Duration::from_secs(60 * 60),
        }
    }
}

/// Where a sandbox may go.
#[derive(Clone)]
pub struct Policy {
    /// The hosts. None: the proxy is not there at all.
    pub allow: Vec<Pattern>,
    /// Networks that are open although they are private, reserved or the like.
    pub networks: Vec<Network>,
    /// How much.
    pub limits: Limits,
    /// What the task has moved before, against its limit.
    pub spent: Bytes,
    /// Who knows addresses.
    pub resolver: Arc<dyn Resolve>,
}

impl Policy {
    /// To these hosts, by the host's own resolver and within the usual limits.
    pub fn new(allow: Vec<Pattern>) -> Self {
        let resolver = Arc::new(SystemResolver);
        Self { allow, networks: Vec::new(), limits: Limits::default(), spent: Bytes::default(), resolver }
    }
}

/// Variables that send programs to the proxy: those that almost all know, and npm's, cargo's and Node's own. pip and apt
/// know the first. The loopback itself is excepted, where the models' gateway listens.
pub fn variables() -> Vec<(String, String)> {
    let proxy = format!("http://{}:{PORT}", Ipv4Addr::LOCALHOST);
    let direct = "127.0.0.1,localhost,::1";
    let to_proxy = [
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "npm_config_proxy",
        "npm_config_https_proxy",
        "CARGO_HTTP_PROXY",
    ];
    let around = ["no_proxy", "NO_PROXY", "npm_config_noproxy"];
    let pairs = to_proxy.map(|name| (name, &*proxy)).into_iter().chain(around.map(|name| (name, direct)));
    // Node's own fetch heeds the others only with this.
    let pairs = pairs.chain([("NODE_USE_ENV_PROXY", "1")]);
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What the connections of one sandbox share.
struct Service {
    policy: Policy,
    record: Record,
    task: Arc<Allowance>,
}

/// A running proxy. It ends when this is dropped.
pub struct Egress {
    service: Arc<Service>,
    stop: Option<DropGuard>,
    serving: JoinHandle<()>,
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").field("bytes", &self.bytes()).field("running", &self.is_running()).finish()
    }
}

impl Egress {
    /// What has moved since this proxy began.
    pub fn bytes(&self) -> Bytes {
        self.service.task.moved()
    }

    /// Whether it serves. It ends by itself when nobody takes its decisions down any more.
    pub fn is_running(&self) -> bool {
        !self.serving.is_finished()
    }

    /// Cuts every connection and waits until the last decision is taken down.
    pub async fn end(mut self) {
        drop(self.stop.take());
        // Its own waits are shorter together.
        let _ = timeout(STOP_WAIT + LAST_BATCH + LAST_BATCH, self.serving).await;
    }
}

/// Serves a sandbox's way out from its own loopback, port [`PORT`]. `None`: the policy allows nothing, and nothing listens.
///
/// Begin before the first command runs, so that nothing in the sandbox can have taken the port, and again after a restart
/// of the server. Give the sandbox [`variables`].
///
/// # Errors
/// When the sandbox is gone, or the port is taken in there.
pub async fn serve(sandbox: &dyn Sandbox, policy: Policy, sink: Arc<dyn Sink>) -> Result<Option<Egress>, SandboxError> {
    if policy.allow.is_empty() {
        return Ok(None);
    }
    let listener = sandbox.listen(PORT).await?;
    let doing = format!("listening on port {PORT} inside sandbox {}", sandbox.id());
    let listener = TcpListener::from_std(listener).map_err(SandboxError::host(doing))?;
    Ok(Some(serve_on(listener, policy, sink)))
}

/// The same for a listener of this process's own network.
pub fn serve_on(listener: TcpListener, policy: Policy, sink: Arc<dyn Sink>) -> Egress {
    let task = Arc::new(Allowance::new(policy.limits.task_bytes, policy.spent));
    let service = Arc::new(Service { policy, record: Record::default(), task });
    let stop = CancellationToken::new();
    let serving = tokio::spawn(run(Arc::clone(&service), listener, sink, stop.clone()));
    Egress { service, stop: Some(stop.drop_guard()), serving }
}

/// Accepts until it is told to stop, or until nobody takes decisions down.
async fn run(service: Arc<Service>, listener: TcpListener, sink: Arc<dyn Sink>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let mut writing = Box::pin(write_down(&service, &*sink, &stop));
    let lost = tokio::select! {
        () = stop.cancelled() => false,
        () = accept(&service, listener, &connections, &stop) => false,
        () = &mut writing => true,
    };
    if lost && !stop.is_cancelled() {
        tracing::warn!("nobody takes down what a sandbox connects to: its way out is closed");
    }
    stop.cancel();
    connections.close();
    let _ = timeout(STOP_WAIT, connections.wait()).await;
    // A batch that is on its way is not given up for the last one.
    if !lost {
        let _ = timeout(LAST_BATCH, writing).await;
    }
    let last = service.record.take();
    if !last.is_empty() && !matches!(timeout(LAST_BATCH, sink.take_down(last)).await, Ok(Ok(()))) {
        tracing::warn!("the last connections of a sandbox are not in its task's stream");
    }
}

async fn accept(service: &Arc<Service>, listener: TcpListener, tracker: &TaskTracker, stop: &CancellationToken) {
    let places = Arc::new(Semaphore::new(service.policy.limits.connections));
    loop {
        let Ok((client, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            flooded(service, &client);
            continue;
        };
        let (service, stop) = (Arc::clone(service), stop.clone());
        tracker.spawn(async move {
            let _place = place;
            metrics::gauge!("orchestra_egress_connections").increment(1);
            let _open = Open;
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection::serve(service, client) => {}
            }
        });
    }
}

/// A connection that the gauge counts.
struct Open;

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("orchestra_egress_connections").decrement(1);
    }
}

/// One connection too many: told so in one breath, and dropped.
fn flooded(service: &Service, client: &TcpStream) {
    service.record.decided("", 0, Verdict::Refused(Reason::TooManyConnections));
    let _ = client.try_write(&connection::refusal(Reason::TooManyConnections));
}

/// Gives the sink what was gathered, as long as it takes it and the proxy runs.
async fn write_down(service: &Service, sink: &dyn Sink, stop: &CancellationToken) {
    while stop.run_until_cancelled(service.record.changed()).await.is_some()
        && stop.run_until_cancelled(sleep(FIRST)).await.is_some()
    {
        let batch = service.record.take();
        if !batch.is_empty() && sink.take_down(batch).await.is_err() {
            return;
        }
        if stop.run_until_cancelled(sleep(GATHER)).await.is_none() {
            return;
        }
    }
}
