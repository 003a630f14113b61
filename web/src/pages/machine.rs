//! The part of the task page that shows what the sandbox uses of what it may: small meters, and nothing to run.

use askama::Template;
use orchestra_events::task::TaskResource;
use orchestra_events::task::usage::SandboxUsage;

use super::format;

/// From this many thousandths on a meter warns, and from the second on it alarms.
const NEAR: u32 = 800;
const FULL: u32 = 950;

/// One thing that a sandbox uses.
#[derive(Debug)]
struct Meter {
    name: &'static str,
    used: String,
    limit: Option<String>,
    /// The share of the limit, in thousandths; none where there is nothing to fill.
    width: Option<u32>,
    level: &'static str,
    sentence: String,
}

impl Meter {
    fn new(name: &'static str, used: String, limit: Option<String>, share: Option<f64>) -> Self {
        let width =
            share.filter(|share| share.is_finite()).map(|share| (share.clamp(0.0, 1.0) * 1_000.0).round() as u32);
        let level = match width.unwrap_or(0) {
            FULL.. => "full",
            NEAR.. => "near",
            _ => "calm",
        };
        let of = limit.as_ref().map_or_else(String::new, |limit| format!(" of {limit}"));
        let sentence = format!("{name}: {used}{of}");
        Self { name, used, limit, width, level, sentence }
    }
}

fn share(used: u64, limit: u64) -> Option<f64> {
    (limit > 0).then(|| used as f64 / limit as f64)
}

/// What a sandbox uses, as meters.
#[derive(Debug, Template)]
#[template(path = "task_machine.html")]
pub struct Machine {
    meters: Vec<Meter>,
    /// Words below them: what went wrong, or what has no meter.
    note: Option<String>,
    /// It runs no more.
    gone: bool,
}

impl Machine {
    /// The machine of a task.
    pub fn of(task: &TaskResource) -> Self {
        let Some(usage) = &task.sandbox_usage else { return Self { meters: Vec::new(), note: None, gone: false } };
        Self { meters: meters(usage), note: note(usage), gone: task.sandbox != Some(usage.sandbox) }
    }
}

fn meters(usage: &SandboxUsage) -> Vec<Meter> {
    let limits = &usage.limits;
    let processors = match usage.cpus_used {
        Some(used) => {
            let limit = Some(format!("{} CPUs", limits.cpus));
            Meter::new("CPU", format!("{used:.2}"), limit, Some(used / limits.cpus))
        }
        None => Meter::new("CPU time", format::milliseconds(usage.cpu_ms), None, None),
    };
    let mut meters = vec![
        processors,
        Meter::new(
            "Memory",
            format::bytes(usage.memory_bytes),
            Some(format::bytes(limits.memory_bytes)),
            share(usage.memory_bytes, limits.memory_bytes),
        ),
        Meter::new(
            "Disk",
            format::bytes(usage.disk_bytes),
            Some(format::bytes(limits.disk_bytes)),
            share(usage.disk_bytes, limits.disk_bytes),
        ),
        Meter::new("Processes", usage.pids.to_string(), Some(limits.pids.to_string()), share(usage.pids, limits.pids)),
    ];
    if let Some(egress) = &usage.egress {
        let traffic = format!("{} in, {} out", format::bytes(egress.received_bytes), format::bytes(egress.sent_bytes));
        meters.push(Meter::new("Network", traffic, None, None));
    }
    meters
}

fn note(usage: &SandboxUsage) -> Option<String> {
    let mut said = Vec::new();
    if usage.cpus_used.is_some() {
        said.push(format!("{} of CPU time so far", format::milliseconds(usage.cpu_ms)));
    }
    if usage.memory_peak_bytes > 0 {
        said.push(format!("at most {} of memory at once", format::bytes(usage.memory_peak_bytes)));
    }
    if usage.oom_kills > 0 {
        said.push(format!("{} killed for memory", format::count(usage.oom_kills, "process", "processes")));
    }
    let words = said.join(" · ");
    (!words.is_empty()).then(|| super::timeline::capitalised(&words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{panels, sample};

    #[test]
    fn meters_fill_warn_and_never_overflow() {
        let widths = |share: f64| {
            let meter = Meter::new("Memory", "1".into(), None, Some(share));
            (meter.width, meter.level)
        };
        assert_eq!(widths(0.25), (Some(250), "calm"));
        assert_eq!(widths(0.8), (Some(800), "near"));
        assert_eq!(widths(7.0), (Some(1_000), "full"));
        assert_eq!(widths(f64::NAN), (None, "calm"));
        assert_eq!(share(5, 0), None);
    }

    #[test]
    fn a_task_without_a_sample_shows_an_empty_place_and_one_with_it_every_meter() {
        let mut task = sample::tasks().remove(0);
        let shown = panels::render(&Machine::of(&task)).to_string();
        for words in ["Memory", "Disk", "Processes", "CPU", "Network", "killed for memory"] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        assert!(!shown.contains("style="), "the pages' policy forbids it: {shown}");
        task.sandbox_usage = None;
        let shown = panels::render(&Machine::of(&task)).to_string();
        assert!(shown.contains("id=\"machine\"") && !shown.contains("Memory"), "{shown}");
    }
}
