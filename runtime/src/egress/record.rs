//! What is written down of a sandbox's connections: every decision, gathered for about a second and bounded, so that a
//! sandbox that knocks a million times fills no log.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::reason::Reason;

/// Most entries of one batch. Decisions beyond are counted.
pub const MAX_BATCH: usize = 64;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It was let through.
    Allowed,
    /// It was not, or was cut.
    Refused(Reason),
    /// It was allowed, and the other side failed.
    Failed(Reason),
}

impl Verdict {
    /// Of a connection that ended with this.
    pub fn of(reason: Reason) -> Self {
        if reason.is_failure() { Self::Failed(reason) } else { Self::Refused(reason) }
    }

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }

    /// Why, unless it was let through.
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Self::Allowed => None,
            Self::Refused(reason) | Self::Failed(reason) => Some(reason),
        }
    }
}

/// Bytes that have crossed the proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Towards the sandbox.
    pub received: u64,
    /// Out of it.
    pub sent: u64,
}

/// Decisions about one host, with one verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The host as the sandbox named it, cleaned and bounded. Empty where it named none.
    pub host: String,
    /// Its port; 0 where none was named.
    pub port: u16,
    /// What was decided.
    pub verdict: Verdict,
    /// How often. 0: these are the bytes of connections that were told of before.
    pub count: u64,
    /// Bytes of connections that have ended meanwhile.
    pub bytes: Bytes,
}

/// What was gathered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The decisions, by host.
    pub decisions: Vec<Decision>,
    /// Decisions that are not among them: there were too many hosts at once.
    pub omitted: u64,
    /// Bytes that are not among them.
    pub omitted_bytes: Bytes,
}

impl Batch {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.decisions.is_empty() && self.omitted == 0 && self.omitted_bytes == Bytes::default()
    }
}

/// Nobody takes decisions down any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// Where decisions are written down.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Writes a batch down. Not empty, and about a second apart from the one before.
    ///
    /// # Errors
    /// When nobody can any more: the proxy then closes, for nothing goes out that nobody has noted.
    async fn take_down(&self, batch: Batch) -> Result<(), Lost>;
}

type Key = (String, u16, Verdict);

/// What has been decided since the last batch.
#[derive(Debug, Default)]
pub(super) struct Record {
    gathered: Mutex<Gathered>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Gathered {
    decisions: BTreeMap<Key, (u64, Bytes)>,
    omitted: u64,
    omitted_bytes: Bytes,
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        // Plain numbers: whoever panicked while holding it left them usable.
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to take.
    pub async fn changed(&self) {
        self.news.notified().await;
    }

    /// A decision.
    pub fn decided(&self, host: &str, port: u16, verdict: Verdict) {
        let reason = verdict.reason().map_or("", Reason::code);
        metrics::counter!("orchestra_egress_decisions_total", "verdict" => verdict.as_str(), "reason" => reason)
            .increment(1);
        self.add(host, port, verdict, 1, Bytes::default());
    }

    /// The bytes of a connection that was allowed.
    pub fn ended(&self, host: &str, port: u16, bytes: Bytes) {
        self.add(host, port, Verdict::Allowed, 0, bytes);
    }

    fn add(&self, host: &str, port: u16, verdict: Verdict, count: u64, bytes: Bytes) {
        let mut gathered = self.lock();
        let key = (host.to_owned(), port, verdict);
        let full = gathered.decisions.len() >= MAX_BATCH && !gathered.decisions.contains_key(&key);
        let (known, moved) = if full {
            let Gathered { omitted, omitted_bytes, .. } = &mut *gathered;
            (omitted, omitted_bytes)
        } else {
            let entry = gathered.decisions.entry(key).or_default();
            (&mut entry.0, &mut entry.1)
        };
        *known = known.saturating_add(count);
        moved.received = moved.received.saturating_add(bytes.received);
        moved.sent = moved.sent.saturating_add(bytes.sent);
        drop(gathered);
        self.news.notify_one();
    }

    /// Takes what was gathered.
    pub fn take(&self) -> Batch {
        let gathered = std::mem::take(&mut *self.lock());
        let decisions = gathered.decisions.into_iter().map(|((host, port, verdict), (count, bytes))| Decision {
            host,
            port,
            verdict,
            count,
            bytes,
        });
        Batch { decisions: decisions.collect(), omitted: gathered.omitted, omitted_bytes: gathered.omitted_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_is_one_entry_and_what_is_too_much_is_a_number() {
        let record = Record::default();
        for _ in 0..1000 {
            record.decided("a.example", 443, Verdict::Refused(Reason::NotAllowed));
        }
        record.decided("a.example", 443, Verdict::Allowed);
        record.ended("a.example", 443, Bytes { received: 5, sent: 7 });
        let batch = record.take();
        let counts: Vec<_> = batch.decisions.iter().map(|decision| (decision.verdict, decision.count)).collect();
        assert_eq!(counts, [(Verdict::Allowed, 1), (Verdict::Refused(Reason::NotAllowed), 1000)]);
        assert_eq!(batch.decisions[0].bytes, Bytes { received: 5, sent: 7 });
        for number in 0..1000 {
            record.decided(&format!("{number}.example"), 443, Verdict::Refused(Reason::NotAllowed));
        }
        let batch = record.take();
        assert_eq!((batch.decisions.len(), batch.omitted), (MAX_BATCH, 1000 - MAX_BATCH as u64));
        assert!(record.take().is_empty());
    }
}
