//! Writes down what the sandboxes of open tasks use, and who went into them, while they run.
//!
//! A watch belongs to the actor of a task whose sandbox runs, and goes with it. What it reads are the host's own counters;
//! nothing in the sandbox is asked. The last sample is taken by the step that stops the sandbox, and is recorded with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orchestra_events::task::command::Command;
use orchestra_events::task::usage::{MAX_SAMPLES, OperatorEntry, SandboxLimits, SandboxUsage, Traffic};
use orchestra_events::{SandboxId, TaskId};
use orchestra_runtime::egress::Bytes;
use orchestra_runtime::sandbox::{EntryKind, Limits, Usage};

use crate::task::{NotRecorded, Recorder};
use crate::workshop::Workshop;

/// Time between two samples in the first hour of a sandbox.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(15);
/// Samples that are so close together.
const CLOSE_SAMPLES: u32 = 240;
/// Time between two samples after that.
pub const SAMPLE_RARELY: Duration = Duration::from_secs(150);
/// How long the last sample may hold up the end of a sandbox.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// Less processor time than this between two samples is a sandbox that waits.
const SMALL_CPU: Duration = Duration::from_millis(100);
/// Less memory than this more or less is no change.
const SMALL_MEMORY: u64 = 1 << 20;
/// Less disk than this more or less is no change.
const SMALL_DISK: u64 = 64 << 10;

// The longest task that there may be has samples to its end.
const _: () = assert!(
    CLOSE_SAMPLES as u64
        + (orchestra_events::task::event::MAX_TIMEOUT.as_secs() - CLOSE_SAMPLES as u64 * SAMPLE_EVERY.as_secs())
            / SAMPLE_RARELY.as_secs()
        < MAX_SAMPLES as u64
);

/// What all sandboxes of this node use together, as gauges.
#[derive(Debug, Default)]
pub struct Totals {
    running: Mutex<BTreeMap<SandboxId, Usage>>,
}

impl Totals {
    fn put(&self, sandbox: SandboxId, usage: Option<Usage>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match usage {
            Some(usage) => running.insert(sandbox, usage),
            None => running.remove(&sandbox),
        };
        let sum = |of: fn(&Usage) -> u64| running.values().map(of).sum::<u64>() as f64;
        metrics::gauge!("orchestra_sandboxes_sampled").set(running.len() as f64);
        metrics::gauge!("orchestra_sandbox_memory_bytes").set(sum(|usage| usage.memory_bytes));
        metrics::gauge!("orchestra_sandbox_disk_bytes").set(sum(|usage| usage.disk_used_bytes));
        metrics::gauge!("orchestra_sandbox_pids").set(sum(|usage| usage.pids));
    }
}

/// The watch over one sandbox; dropped, it ends.
pub struct Watch {
    sandbox: SandboxId,
    watching: tokio::task::AbortHandle,
    workshop: Arc<Workshop>,
}

impl Watch {
    /// Watches the sandbox of a task's current attempt.
    pub fn begin(
        workshop: Arc<Workshop>,
        task: TaskId,
        sandbox: SandboxId,
        limits: Limits,
        recorder: Recorder,
    ) -> Self {
        let watching = actix_rt::spawn(watch(Arc::clone(&workshop), task, sandbox, limits, recorder)).abort_handle();
        Self { sandbox, watching, workshop }
    }

    /// Whose watch it is.
    pub fn sandbox(&self) -> SandboxId {
        self.sandbox
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watching.abort();
        self.workshop.totals.put(self.sandbox, None);
    }
}

/// Whether a person would see a difference.
fn differs(before: &Usage, now: &Usage) -> bool {
    before.pids != now.pids
        || before.oom_kills != now.oom_kills
        || now.cpu.saturating_sub(before.cpu) >= SMALL_CPU
        || before.memory_bytes.abs_diff(now.memory_bytes) >= SMALL_MEMORY
        || before.disk_used_bytes.abs_diff(now.disk_used_bytes) >= SMALL_DISK
}

/// A sample as it is recorded. `before` is an earlier one, and how long ago that was taken.
/// What went through the sandbox's proxy, as far as this process has served it; absent where there is none.
fn traffic(workshop: &Workshop, sandbox: SandboxId) -> Option<Traffic> {
    let Bytes { sent, received } = workshop.egress.bytes(sandbox)?;
    Some(Traffic { sent_bytes: sent, received_bytes: received })
}

fn sample(
    sandbox: SandboxId,
    limits: &Limits,
    before: Option<(&Usage, Duration)>,
    now: &Usage,
    egress: Option<Traffic>,
) -> SandboxUsage {
    let cpus_used = before.filter(|(_, ago)| !ago.is_zero()).map(|(before, ago)| {
        let share = now.cpu.saturating_sub(before.cpu).as_secs_f64() / ago.as_secs_f64();
        // Two places: more is noise.
        (share * 100.0).round() / 100.0
    });
    SandboxUsage {
        sandbox,
        cpu_ms: u64::try_from(now.cpu.as_millis()).unwrap_or(u64::MAX),
        cpus_used,
        memory_bytes: now.memory_bytes,
        memory_peak_bytes: now.memory_peak_bytes,
        pids: now.pids,
        disk_bytes: now.disk_used_bytes,
        oom_kills: now.oom_kills,
        egress,
        limits: SandboxLimits {
            cpus: limits.cpus,
            memory_bytes: limits.memory_bytes,
            pids: limits.pids.into(),
            disk_bytes: now.disk_bytes,
        },
    }
}

async fn usage_of(workshop: &Workshop, sandbox: SandboxId) -> Option<Usage> {
    let running = workshop.sandboxes.attach(sandbox).await.ok().flatten()?;
    match running.usage().await {
        Ok(usage) => Some(usage),
        Err(error) => {
            tracing::debug!(%sandbox, %error, "what it uses cannot be read");
            None
        }
    }
}

async fn watch(workshop: Arc<Workshop>, task: TaskId, sandbox: SandboxId, limits: Limits, recorder: Recorder) {
    let (mut told, mut seen): (Option<Usage>, Option<(Usage, Instant)>) = (None, None);
    let mut taken =
        recorder.task().await.ok().and_then(|task| task.current().map(|attempt| attempt.samples)).unwrap_or(0);
    loop {
        tokio::time::sleep(if taken < CLOSE_SAMPLES { SAMPLE_EVERY } else { SAMPLE_RARELY }).await;
        taken = taken.saturating_add(1);
        if let Err(NotRecorded::Gone) = take_down_entries(&workshop, sandbox, &recorder).await {
            return;
        }
        let Some(now) = usage_of(&workshop, sandbox).await else { continue };
        workshop.totals.put(sandbox, Some(now.clone()));
        let before = seen.as_ref().map(|(usage, at)| (usage, at.elapsed()));
        let command =
            Command::RecordSandboxUsage(Box::new(sample(sandbox, &limits, before, &now, traffic(&workshop, sandbox))));
        seen = Some((now.clone(), Instant::now()));
        if told.as_ref().is_none_or(|told| differs(told, &now)) {
            match recorder.record(command).await {
                Ok(()) => told = Some(now),
                Err(NotRecorded::Gone) => return,
                Err(NotRecorded::Journal(error)) => tracing::debug!(%task, %error, "a sample was not recorded"),
            }
        }
    }
}

/// Takes down in the task's log who went into its sandbox. Each is let go once it is there, so a crash in between takes one
/// down twice and none never.
async fn take_down_entries(workshop: &Workshop, sandbox: SandboxId, recorder: &Recorder) -> Result<(), NotRecorded> {
    let entries = workshop.sandboxes.entries(sandbox).await.unwrap_or_else(|error| {
        tracing::warn!(%sandbox, %error, "who entered it cannot be read");
        Vec::new()
    });
    for entry in entries {
        tracing::info!(%sandbox, operator = entry.operator, program = entry.program, "an operator entered a sandbox");
        let how = match entry.kind {
            EntryKind::Exec => OperatorEntry::Exec,
            EntryKind::Shell => OperatorEntry::Shell,
        };
        let (operator, program) = (entry.operator, entry.program);
        recorder.record(Command::RecordOperatorEntry { sandbox, at: entry.at, operator, how, program }).await?;
        if let Err(error) = workshop.sandboxes.forget_entry(sandbox, entry.id).await {
            tracing::warn!(%sandbox, %error, "an entry that was taken down stays");
        }
    }
    Ok(())
}

/// The last sample of a sandbox that is about to be stopped, after everybody who went into it was taken down.
pub async fn last(
    workshop: &Workshop,
    sandbox: SandboxId,
    limits: &Limits,
    recorder: &Recorder,
) -> Option<SandboxUsage> {
    let look = async {
        if let Err(error) = take_down_entries(workshop, sandbox, recorder).await {
            tracing::warn!(%sandbox, %error, "who entered it last is not in its task's log");
        }
        usage_of(workshop, sandbox).await
    };
    let now = tokio::time::timeout(LAST_PATIENCE, look).await.ok().flatten()?;
    Some(sample(sandbox, limits, None, &now, traffic(workshop, sandbox)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(cpu_ms: u64, memory: u64) -> Usage {
        Usage {
            cpu: Duration::from_millis(cpu_ms),
            memory_bytes: memory,
            memory_peak_bytes: memory,
            pids: 3,
            disk_used_bytes: 100,
            disk_bytes: 1_000,
            oom_kills: 0,
        }
    }

    #[test]
    fn a_sandbox_that_waits_says_nothing_new() {
        let before = usage(1_000, 50 << 20);
        assert!(!differs(&before, &before));
        assert!(!differs(&before, &usage(1_050, (50 << 20) + 4_096)));
        assert!(differs(&before, &usage(1_100, 50 << 20)));
        assert!(differs(&before, &usage(1_000, 52 << 20)));
        assert!(differs(&before, &Usage { pids: 4, ..before.clone() }));
        assert!(differs(&before, &Usage { oom_kills: 1, ..before.clone() }));
        assert!(differs(&before, &Usage { disk_used_bytes: 1 << 20, ..before.clone() }));
    }

    #[test]
    fn processors_in_use_are_counted_between_two_samples() {
        let sandbox = SandboxId::from_uuid(uuid::Uuid::nil());
        let (before, now) = (usage(1_000, 1), usage(4_000, 1));
        let limits = Limits::default();
        let used = |ago| sample(sandbox, &limits, Some((&before, ago)), &now, None).cpus_used;
        assert_eq!(used(Duration::from_secs(2)), Some(1.5));
        assert_eq!(used(Duration::ZERO), None);
        assert_eq!(sample(sandbox, &limits, None, &now, None).cpus_used, None);
    }
}
