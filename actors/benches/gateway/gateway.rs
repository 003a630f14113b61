//! Orchestra's own gateway as a process: a few sandboxes' listeners, and money from memory or from the ledger.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use orchestra_events::EventStore;
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::store::sqlite::SqliteStore;
use orchestra_runtime::gateway::{Gateway, GatewayPolicy, Session};
use orchestra_runtime::meter::Meter;
use orchestra_runtime::model::{Dialect, Models, ProviderConfig, Timeouts};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::meter::{self, OfLedger, Sums};
use super::upstream;

/// Sandboxes that are served at once. One takes 128 calls.
const SESSIONS: usize = 16;

/// Where the money of a gateway's calls is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Money {
    /// Two sums under a lock.
    Memory,
    /// The ledger's actor over a store in memory.
    Ledger,
    /// The ledger's actor over SQLite, each append synced.
    Durable,
}

/// Serves for ever.
pub async fn serve(upstream: SocketAddr, money: Money, folder: &Path, announce: impl FnOnce(&[SocketAddr])) {
    let provider = ProviderConfig {
        name: "anthropic".to_owned(),
        dialect: Dialect::Anthropic,
        base_url: format!("http://{upstream}"),
        operator_key: None,
        key_required: true,
        prices: Vec::new(),
    };
    let models = Arc::new(Models::new(vec![provider], Timeouts::default()).unwrap());
    let gateway = Arc::new(Gateway::new(Arc::clone(&models), GatewayPolicy::default()));
    let store: Option<Arc<dyn EventStore>> = match money {
        Money::Memory => None,
        Money::Ledger => Some(Arc::new(MemoryStore::new())),
        Money::Durable => Some(Arc::new(SqliteStore::open(folder.join("ledger.db")).unwrap())),
    };
    let ledgers = match store {
        None => None,
        Some(store) => Some(meter::ledgers(store).await),
    };
    let mut addresses = Vec::new();
    for _ in 0..SESSIONS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        addresses.push(listener.local_addr().unwrap());
        let meter: Arc<dyn Meter> = match &ledgers {
            None => Arc::new(Sums::default()),
            Some(ledgers) => Arc::new(OfLedger::new(ledgers.clone())),
        };
        let session = Session {
            meter,
            model: models.resolve("anthropic/claude-sonnet-4-6").unwrap(),
            key: Arc::new(|| Some(SecretString::from(upstream::KEY))),
            allowed: Arc::new(|_| true),
            deadline: None,
        };
        tokio::spawn(Arc::clone(&gateway).serve(listener, session, CancellationToken::new()));
    }
    announce(&addresses);
    std::future::pending().await
}
