//! The stage: a gateway between a scripted provider, a ledger, a clock and a client.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use orchestra_events::NanoUsd;
use secrecy::SecretString;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::clock::Clock;
use super::super::{Gateway, GatewayPolicy, Session};
use crate::http::HttpClient;
use crate::meter::Meter;
use crate::model::{Dialect, Models, PriceRow, ProviderConfig, Timeouts};

pub use super::dialects::{ALL, Speaks};
pub use super::ledger::{Entry, Ledger, NOW, TestClock};
pub use super::script::{Act, Asked, Provider, Step};

pub const KEY: &str = "canary-7c1e9d";
pub const OPERATORS_KEY: &str = "operators-5b21";

/// What a client got.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
    /// Whether the reply ended properly.
    pub clean: bool,
}

impl Got {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// How a house is built.
pub struct Plan {
    pub model: &'static str,
    pub cap: Option<NanoUsd>,
    pub over: bool,
    pub policy: GatewayPolicy,
    pub timeouts: Timeouts,
    pub allowed: fn(&str) -> bool,
    /// Rows for the provider `local`, which is of OpenAI's dialect and needs no key.
    pub local: Vec<PriceRow>,
    pub deadline: Option<Timestamp>,
    pub base_url: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            model: "claude-sonnet-4-6",
            cap: None,
            over: false,
            policy: GatewayPolicy::default(),
            timeouts: Timeouts::default(),
            allowed: |_| true,
            local: Vec::new(),
            deadline: None,
            base_url: None,
        }
    }
}

/// A gateway with everything around it.
pub struct House {
    pub provider: Provider,
    pub ledger: Arc<Ledger>,
    pub clock: Arc<TestClock>,
    pub gateway: Arc<Gateway>,
    pub url: String,
    pub client: reqwest::Client,
    pub stop: CancellationToken,
    pub served: Option<JoinHandle<()>>,
    session: Session,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl House {
    pub async fn new(script: Vec<Act>) -> Self {
        Self::with(script, Plan::default()).await
    }

    pub async fn with(script: Vec<Act>, plan: Plan) -> Self {
        let provider = Provider::new(script).await;
        let base = plan.base_url.clone().unwrap_or_else(|| provider.url.clone());
        let config = |name: &str, dialect, operator: Option<&str>, prices| ProviderConfig {
            name: name.into(),
            dialect,
            base_url: if dialect == Dialect::Anthropic { base.clone() } else { format!("{base}/v1") },
            operator_key: operator.map(SecretString::from),
            key_required: name != "local",
            prices,
        };
        let configs = vec![
            config("anthropic", Dialect::Anthropic, None, Vec::new()),
            config("openai", Dialect::OpenaiChat, Some(OPERATORS_KEY), Vec::new()),
            config("keyless", Dialect::OpenaiChat, None, vec![row(r#"{"model": "m", "input": 1, "output": 1}"#)]),
            config("local", Dialect::OpenaiChat, None, plan.local.clone()),
        ];
        let mut models = Models::new(configs, plan.timeouts).expect("configuration");
        models.share(&gateways_client());
        let models = Arc::new(models);
        let session_model = models.resolve(plan.model).expect("known model");
        let clock = Arc::<TestClock>::default();
        let gateway = Arc::new(Gateway::with_clock(models, plan.policy, Arc::clone(&clock) as Arc<dyn Clock>));
        let ledger = Arc::new(Ledger::new(plan.cap, plan.over));
        let session = Session {
            meter: Arc::clone(&ledger) as Arc<dyn Meter>,
            model: session_model,
            key: Arc::new(|| Some(SecretString::from(KEY))),
            allowed: Arc::new(plan.allowed),
            deadline: plan.deadline,
        };
        let mut house = Self {
            provider,
            ledger,
            clock,
            gateway,
            url: String::new(),
            client: testers_client(),
            stop: CancellationToken::new(),
            served: None,
            session,
        };
        let (url, served) = house.serve(Arc::clone(&house.ledger));
        (house.url, house.served) = (url, Some(served));
        house
    }

    /// Serves another task of the same server.
    pub fn serve(&self, ledger: Arc<Ledger>) -> (String, JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.set_nonblocking(true).expect("socket");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let session = Session { meter: ledger, ..self.session.clone() };
        let served = tokio::spawn(Arc::clone(&self.gateway).serve(listener, session, self.stop.clone()));
        (url, served)
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Got {
        self.send(self.client.post(format!("{}{path}", self.url)).body(body)).await
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Got {
        self.send_and_see(request, |_| {}).await
    }

    /// `see` is shown every piece as it comes.
    pub async fn send_and_see(&self, request: reqwest::RequestBuilder, mut see: impl FnMut(&[u8])) -> Got {
        let mut response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let (mut body, mut clean) = (Vec::new(), false);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    body.extend_from_slice(&chunk);
                    see(&body);
                }
                Ok(None) => {
                    clean = true;
                    break;
                }
                Err(error) if error.is_timeout() => panic!("the reply never ends"),
                Err(_) => break,
            }
        }
        Got { status, headers, body, clean }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.provider.asked.lock().expect("log").clone()
    }
}

/// Built once: it takes longer than most tests. No connection is kept, because each test has a runtime of its own.
fn gateways_client() -> HttpClient {
    static CLIENT: OnceLock<HttpClient> = OnceLock::new();
    let settings = |client: reqwest::ClientBuilder| {
        client.redirect(reqwest::redirect::Policy::none()).no_proxy().tcp_nodelay(true).pool_max_idle_per_host(0)
    };
    CLIENT.get_or_init(|| HttpClient::new(settings)).clone()
}

fn testers_client() -> reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    let build = || {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).pool_max_idle_per_host(0);
        client.build().expect("client")
    };
    CLIENT.get_or_init(build).clone()
}

pub fn row(json: &str) -> PriceRow {
    serde_json::from_str(json).expect("row")
}
