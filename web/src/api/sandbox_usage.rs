//! What a task's sandbox uses, as JSON: the last sample of the latest attempt.

use orchestra_events::task::usage::SandboxUsage;
use serde::Serialize;
use utoipa::ToSchema;

/// What the latest attempt's sandbox used when that was last written down.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SandboxUsage)]
pub struct SandboxUsageView {
    /// Processor time so far, in milliseconds.
    cpu_ms: u64,
    /// Processors in use on average since the sample before.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus_used: Option<f64>,
    memory_bytes: u64,
    /// The most memory at once; 0 where the host's kernel does not say.
    memory_peak_bytes: u64,
    /// Processes and threads.
    pids: u64,
    disk_bytes: u64,
    /// Processes that were killed for memory.
    oom_kills: u64,
    /// Sent to hosts outside; absent where nobody counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_sent_bytes: Option<u64>,
    /// Had from hosts outside; absent where nobody counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_received_bytes: Option<u64>,
    limits: SandboxLimitsView,
}

/// What a sandbox may use.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SandboxLimits)]
pub struct SandboxLimitsView {
    /// Processors' worth of time.
    cpus: f64,
    memory_bytes: u64,
    pids: u64,
    disk_bytes: u64,
}

impl From<SandboxUsage> for SandboxUsageView {
    fn from(usage: SandboxUsage) -> Self {
        let limits = usage.limits;
        Self {
            cpu_ms: usage.cpu_ms,
            cpus_used: usage.cpus_used,
            memory_bytes: usage.memory_bytes,
            memory_peak_bytes: usage.memory_peak_bytes,
            pids: usage.pids,
            disk_bytes: usage.disk_bytes,
            oom_kills: usage.oom_kills,
            egress_sent_bytes: usage.egress.map(|traffic| traffic.sent_bytes),
            egress_received_bytes: usage.egress.map(|traffic| traffic.received_bytes),
            limits: SandboxLimitsView {
                cpus: limits.cpus,
                memory_bytes: limits.memory_bytes,
                pids: limits.pids,
                disk_bytes: limits.disk_bytes,
            },
        }
    }
}
