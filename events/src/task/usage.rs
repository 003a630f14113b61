//! What a task's sandbox uses of its host, as it is written into the task's log from time to time.

use serde::{Deserialize, Serialize};

use super::command::{Command, Refusal};
use super::event::TaskEvent;
use super::state::Task;
use crate::id::SandboxId;

/// Samples that one attempt may hold. One every 15 seconds fills an hour with 240; further apart, the rest is enough for
/// the longest attempt there may be.
pub const MAX_SAMPLES: u32 = 1_000;

/// What a sandbox uses at one moment, and what it may.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxUsage {
    /// Its name.
    pub sandbox: SandboxId,
    /// Processor time of all its processes since it was started, in milliseconds.
    pub cpu_ms: u64,
    /// Processors in use on average since the sample before; absent in the first one and in the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus_used: Option<f64>,
    /// Memory of its processes and temporary file systems, in bytes.
    pub memory_bytes: u64,
    /// The most of it at once; 0 where the kernel does not say.
    pub memory_peak_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes used of its disk.
    pub disk_bytes: u64,
    /// Processes that the kernel killed for memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub oom_kills: u64,
    /// What it sent to hosts outside and had from them; absent where nobody counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Traffic>,
    /// What it may use.
    pub limits: SandboxLimits,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Bytes that passed through the sandbox's proxy, since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// To hosts outside.
    pub sent_bytes: u64,
    /// From hosts outside.
    pub received_bytes: u64,
}

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxLimits {
    /// Processors' worth of time.
    pub cpus: f64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Disk, in bytes.
    pub disk_bytes: u64,
}

/// How an operator came into a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperatorEntry {
    /// With one command.
    Exec,
    /// With a shell.
    Shell,
}

/// What is known of a sandbox beside the plan: no step follows from it.
pub(super) fn about_sandbox(task: &Task, command: Command) -> Result<Vec<TaskEvent>, Refusal> {
    match command {
        Command::RecordSandboxUsage(usage) => {
            let attempt = task.current().ok_or(Refusal::MovedOn)?;
            if attempt.sandbox != Some(usage.sandbox) {
                return Err(Refusal::MovedOn);
            }
            // Silent: that nobody counts any further is no failure of anything.
            Ok(if attempt.samples < MAX_SAMPLES { vec![TaskEvent::SandboxUsage(usage)] } else { Vec::new() })
        }
        Command::RecordOperatorEntry { sandbox, at, operator, how, program } => {
            Ok(vec![TaskEvent::OperatorEntered { sandbox, at, operator, how, program }])
        }
        _ => Err(Refusal::MovedOn),
    }
}
