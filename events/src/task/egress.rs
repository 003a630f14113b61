//! What a task's sandbox connected to, or tried to: facts beside the plan, bounded so that a sandbox cannot fill its own
//! stream.

use serde::{Deserialize, Serialize};

use super::event::TaskEvent;

/// Most entries about connections in the stream of one attempt. What comes after them is counted.
pub const MAX_EGRESS_ENTRIES: usize = 1_000;
/// Most of them in one event.
pub const MAX_EGRESS_BATCH: usize = 64;
/// Longest host in an entry, in bytes.
const MAX_HOST: usize = 256;

/// What was decided about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressVerdict {
    /// It was let through.
    Allowed,
    /// It was not, or it was cut.
    Refused,
    /// It was allowed, and the other side failed.
    Failed,
}

impl EgressVerdict {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Connections to one host, with one verdict, within about a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressDecision {
    /// The host as the sandbox named it; empty where it named none.
    pub host: String,
    /// Its port; 0 where none was named.
    pub port: u16,
    /// What was decided.
    pub verdict: EgressVerdict,
    /// Why, unless it was let through: `not-allowed`, `private-address`, `server-name-mismatch` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many connections. 0: the entry is about the bytes of connections that were told of before.
    pub count: u64,
    /// Bytes towards the sandbox, of connections that have ended meanwhile.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_in: u64,
    /// Bytes out of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_out: u64,
}

/// What is not listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressRest {
    /// How many connections.
    pub count: u64,
    /// Their bytes towards the sandbox.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_in: u64,
    /// Their bytes out of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_out: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl EgressRest {
    /// Takes more in.
    pub fn add(&mut self, count: u64, bytes_in: u64, bytes_out: u64) {
        self.count = self.count.saturating_add(count);
        self.bytes_in = self.bytes_in.saturating_add(bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(bytes_out);
    }
}

/// What is known of a task's way out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EgressUse {
    /// Entries of the current attempt.
    pub entries: usize,
    /// Bytes towards its sandboxes, of all attempts.
    pub bytes_in: u64,
    /// Bytes out of them.
    pub bytes_out: u64,
}

impl EgressUse {
    /// The event that takes these down: as many as there is room for, and the number of the rest.
    pub(super) fn decide(&self, decisions: Vec<EgressDecision>, mut rest: EgressRest) -> Option<TaskEvent> {
        let room = MAX_EGRESS_ENTRIES.saturating_sub(self.entries).min(MAX_EGRESS_BATCH);
        let mut listed = decisions;
        for EgressDecision { count, bytes_in, bytes_out, .. } in listed.drain(room.min(listed.len())..) {
            rest.add(count, bytes_in, bytes_out);
        }
        for decision in &mut listed {
            let end = decision.host.floor_char_boundary(MAX_HOST);
            decision.host.truncate(end);
            decision.host.retain(|c| c.is_ascii_graphic());
        }
        let omitted = Some(rest).filter(|rest| *rest != EgressRest::default());
        (!listed.is_empty() || omitted.is_some()).then_some(TaskEvent::EgressDecided { decisions: listed, omitted })
    }

    /// Takes an event in.
    pub(super) fn evolve(&mut self, decisions: &[EgressDecision], omitted: Option<EgressRest>) {
        self.entries += decisions.len();
        let rest = omitted.unwrap_or_default();
        let listed = decisions.iter().map(|decision| (decision.bytes_in, decision.bytes_out));
        for (bytes_in, bytes_out) in listed.chain([(rest.bytes_in, rest.bytes_out)]) {
            self.bytes_in = self.bytes_in.saturating_add(bytes_in);
            self.bytes_out = self.bytes_out.saturating_add(bytes_out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(host: &str) -> EgressDecision {
        let (verdict, reason) = (EgressVerdict::Refused, Some("not-allowed".to_owned()));
        EgressDecision { host: host.to_owned(), port: 443, verdict, reason, count: 2, bytes_in: 3, bytes_out: 5 }
    }

    #[test]
    fn a_sandbox_that_knocks_without_end_fills_no_stream() {
        let mut known = EgressUse::default();
        let (mut listed, mut counted) = (0, 0);
        for _ in 0..100 {
            let many = (0..100).map(|number| entry(&format!("{number}.example"))).collect();
            let Some(TaskEvent::EgressDecided { decisions, omitted }) = known.decide(many, EgressRest::default())
            else {
                panic!("something is always told");
            };
            assert!(decisions.len() <= MAX_EGRESS_BATCH);
            listed += decisions.len();
            counted += omitted.unwrap_or_default().count;
            known.evolve(&decisions, omitted);
        }
        assert_eq!(listed, MAX_EGRESS_ENTRIES);
        assert_eq!(counted, 2 * (100 * 100 - MAX_EGRESS_ENTRIES as u64));
        assert_eq!((known.bytes_in, known.bytes_out), (3 * 100 * 100, 5 * 100 * 100), "every byte is counted");
    }

    #[test]
    fn what_a_sandbox_has_written_is_bounded_and_clean() {
        let known = EgressUse::default();
        let hostile = vec![entry(&format!("a\u{1b}[2J\u{202e}\n{}", "b".repeat(10_000)))];
        let Some(TaskEvent::EgressDecided { decisions, .. }) = known.decide(hostile, EgressRest::default()) else {
            panic!("it is told");
        };
        let host = &decisions[0].host;
        assert!(host.starts_with("a[2Jbbb") && host.len() <= MAX_HOST && host.is_ascii(), "{host}");
        assert_eq!(known.decide(Vec::new(), EgressRest::default()), None);
    }
}
