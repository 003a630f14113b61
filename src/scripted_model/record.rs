//! What was asked: kept for `GET /requests`, and appended to a file when there is one. Keys only by their hash.

use std::collections::{BTreeMap, HashMap, VecDeque};
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

/// Models whose totals are kept.
const MAX_MODELS: usize = 1_000;

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

/// What was asked and what a provider would bill for it, since the start; unlike the list of requests it never forgets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// By the model that the request named.
    pub models: BTreeMap<String, ModelTotals>,
}

/// One model's part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelTotals {
    /// Requests, answered or not.
    pub calls: u64,
    /// Those that a provider would bill.
    pub billed_calls: u64,
    /// What it would bill them at.
    pub billed: Usage,
    /// Those that were answered without a fault, and so told what they are billed at.
    pub reported_calls: u64,
    /// What they told.
    pub reported: Usage,
}

fn add(sum: &mut Usage, more: &Usage) {
    for (sum, more) in [
        (&mut sum.input_tokens, more.input_tokens),
        (&mut sum.output_tokens, more.output_tokens),
        (&mut sum.cache_read_tokens, more.cache_read_tokens),
        (&mut sum.cache_write5m_tokens, more.cache_write5m_tokens),
        (&mut sum.cache_write1h_tokens, more.cache_write1h_tokens),
    ] {
        *sum = sum.saturating_add(more);
    }
}

impl ModelTotals {
    fn count(&mut self, record: &RequestRecord) {
        self.calls += 1;
        let Some(usage) = &record.usage else { return };
        self.billed_calls += 1;
        add(&mut self.billed, usage);
        if record.fault.is_none() {
            self.reported_calls += 1;
            add(&mut self.reported, usage);
        }
    }
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
    totals: Mutex<Totals>,
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
        let log = log.map(open).transpose()?;
        Ok(Self { kept: Mutex::default(), totals: Mutex::default(), log, met: Mutex::default() })
    }

    /// Keeps a request. It is in the file before it is answered.
    pub fn add(&self, record: RequestRecord) {
        if let (Some(log), Ok(mut line)) = (&self.log, serde_json::to_vec(&record)) {
            line.push(b'\n');
            if let Err(error) = locked(log).write_all(&line) {
                tracing::warn!(%error, "the scripted model cannot write its log");
            }
        }
        let mut totals = locked(&self.totals);
        // Names are the client's: a mistaken client cannot fill the memory with them.
        if totals.models.len() < MAX_MODELS || totals.models.contains_key(&record.model) {
            totals.models.entry(record.model.clone()).or_default().count(&record);
        }
        drop(totals);
        let mut kept = locked(&self.kept);
        if kept.len() == MAX_RECORDS {
            kept.pop_front();
        }
        kept.push_back(record);
    }

    pub fn all(&self) -> Vec<RequestRecord> {
        locked(&self.kept).iter().cloned().collect()
    }

    pub fn totals(&self) -> Totals {
        locked(&self.totals).clone()
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
