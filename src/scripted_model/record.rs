//! What was asked: kept for `GET /requests`, and appended to a file when there is one. Keys only by their hash.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use jiff::Timestamp;
use orchestra_events::task::conversation::Usage;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Dialect;
use super::script::{Asked, FaultKind};

/// The last so many requests are kept in memory; the file has them all.
const MAX_RECORDS: usize = 100_000;

/// One request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRecord {
    /// When it came.
    pub time: Timestamp,
    /// What it was written in.
    pub dialect: Dialect,
    /// The model it named.
    pub model: String,
    /// The `match` of the script that answered.
    pub script: Option<String>,
    /// The turn, counted from 0.
    pub turn: Option<usize>,
    /// What went wrong on purpose.
    pub fault: Option<FaultKind>,
    /// What a provider would bill for it; nothing when it did no work.
    pub usage: Option<Usage>,
    /// SHA-256 of the body.
    pub body_sha256: String,
    /// Its length in bytes.
    pub body_bytes: usize,
    /// SHA-256 of the key, never the key.
    pub key_sha256: Option<String>,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl RequestRecord {
    /// A request of which nothing is known yet but its bytes.
    pub fn new(dialect: Dialect, body: &[u8], key: Option<&str>) -> Self {
        Self {
            time: Timestamp::now(),
            dialect,
            model: String::new(),
            script: None,
            turn: None,
            fault: None,
            usage: None,
            body_sha256: sha256(body),
            body_bytes: body.len(),
            key_sha256: key.map(|key| sha256(key.as_bytes())),
        }
    }
}

/// Every request so far.
pub(super) struct Records {
    kept: Mutex<VecDeque<RequestRecord>>,
    log: Option<Mutex<File>>,
    /// How often a conversation (by its first message) has come to a turn that fails.
    met: Mutex<HashMap<(String, usize), u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Records {
    pub fn new(log: Option<PathBuf>) -> anyhow::Result<Self> {
        let open = |path: PathBuf| {
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.with_context(|| format!("cannot append to {}", path.display())).map(Mutex::new)
        };
        Ok(Self { kept: Mutex::default(), log: log.map(open).transpose()?, met: Mutex::default() })
    }

    /// Keeps a request. It is in the file before it is answered.
    pub fn add(&self, record: RequestRecord) {
        if let (Some(log), Ok(mut line)) = (&self.log, serde_json::to_vec(&record)) {
            line.push(b'\n');
            if let Err(error) = locked(log).write_all(&line) {
                tracing::warn!(%error, "the scripted model cannot write its log");
            }
        }
        let mut kept = locked(&self.kept);
        if kept.len() == MAX_RECORDS {
            kept.pop_front();
        }
        kept.push_back(record);
    }

    pub fn all(&self) -> Vec<RequestRecord> {
        locked(&self.kept).iter().cloned().collect()
    }

    /// Whether the fault of this turn still happens to this conversation.
    pub fn fault_is_due(&self, asked: &Asked, times: Option<u64>) -> bool {
        let Some(times) = times else { return true };
        let mut met = locked(&self.met);
        if met.len() >= MAX_RECORDS {
            met.clear();
        }
        let met = met.entry((sha256(asked.first_message.as_bytes()), asked.turn)).or_default();
        *met += 1;
        *met <= times
    }
}
