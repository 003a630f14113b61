//! `orchestra sandbox`: the sandboxes on this host, for whoever looks after them, with or without a running server.

mod enter;
mod terminal;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table};
use jiff::Timestamp;
use orchestra_actors::workshop::sandbox_of;
use orchestra_events::projections::tasks::open_in_file;
use orchestra_events::task::event::MAX_ATTEMPTS;
use orchestra_events::{SandboxId, TaskId};
use orchestra_runtime::sandbox::{Inspection, RunState, Survey};
use serde::Serialize;

use super::{ConfigArguments, say};
use enter::{Enter, EnterShell};

/// Names that are told when one is not known.
const NEAREST: usize = 3;

/// See and enter the sandboxes on this host; needs root
#[derive(Subcommand)]
pub enum Sandbox {
    /// Every sandbox with its task, its state and what it uses
    Ps {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Everything about one sandbox: limits, usage, walls, processes
    Inspect {
        /// Its id or its task's, or the start of either
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Run a command in it as its agent would
    Exec(Enter),
    /// Open a shell in it, on a terminal of its own
    Shell(EnterShell),
}

/// A sandbox as it is listed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    /// The task whose it is, when the read models know.
    task: Option<TaskId>,
    #[serde(flatten)]
    seen: Inspection,
}

/// The sandboxes of the configured server.
struct Host {
    survey: Survey,
    /// Whose they are; empty when the read models cannot be read.
    tasks: HashMap<SandboxId, TaskId>,
}

impl Host {
    fn open(config: &ConfigArguments) -> anyhow::Result<Self> {
        // SAFETY: a plain system call without arguments.
        if unsafe { libc::geteuid() } != 0 {
            bail!("sandboxes are the server's, which runs as root: run this as root, for example with sudo");
        }
        let data = config.load(Vec::new())?.config.data_dir;
        let survey = Survey::open(&data.join("sandboxes")).with_context(|| {
            format!(
                "no server has kept sandboxes in {}; say where its data is with --data, or which configuration it has \
                 with --config",
                data.display()
            )
        })?;
        Ok(Self { survey, tasks: tasks(data.join("read.db")) })
    }

    fn all(&self) -> anyhow::Result<Vec<Listed>> {
        let ids = self.survey.list()?;
        ids.into_iter()
            .map(|id| Ok(Listed { task: self.tasks.get(&id).copied(), seen: self.survey.inspect(id)? }))
            .collect()
    }

    /// The one sandbox that is meant: by its id or its task's, or by the start of either.
    fn find(&self, given: &str) -> anyhow::Result<SandboxId> {
        let ids = self.survey.list()?;
        let names: Vec<(String, SandboxId)> = ids
            .iter()
            .flat_map(|id| {
                let task = self.tasks.get(id).map(|task| (task.to_string(), *id));
                std::iter::once((id.to_string(), *id)).chain(task)
            })
            .collect();
        named(given, &names)
    }
}

/// The sandbox of each open task's attempts.
fn tasks(read_models: PathBuf) -> HashMap<SandboxId, TaskId> {
    let open = open_in_file(&read_models).unwrap_or_else(|error| {
        eprintln!("orchestra: the tasks' names are not known: {error}");
        Vec::new()
    });
    open.into_iter()
        .flat_map(|(id, attempt)| {
            (attempt.saturating_sub(MAX_ATTEMPTS)..=attempt + 1).map(move |attempt| (sandbox_of(id, attempt), id))
        })
        .collect()
}

fn named(given: &str, names: &[(String, SandboxId)]) -> anyhow::Result<SandboxId> {
    let given = given.trim();
    // Without its first letters, which all have in common, a start is as good.
    let starts = |name: &str| {
        !given.is_empty()
            && (name.starts_with(given) || name.split_once('_').is_some_and(|(_, id)| id.starts_with(given)))
    };
    let mut found: Vec<_> = names.iter().filter(|(name, _)| starts(name)).map(|(_, id)| *id).collect();
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(*one),
        [] if names.is_empty() => bail!("there is no sandbox on this host"),
        [] => {
            let mut near: Vec<&str> = names.iter().map(|(name, _)| &**name).collect();
            near.sort_by_cached_key(|name| strsim::damerau_levenshtein(name, given));
            near.truncate(NEAREST);
            bail!("no sandbox and no task with a sandbox is called {given:?}; the nearest are {}", near.join(", "))
        }
        several => {
            let names: Vec<_> = several.iter().take(NEAREST).map(ToString::to_string).collect();
            bail!("{given:?} is the start of {} sandboxes, such as {}", several.len(), names.join(", "))
        }
    }
}

/// `1.5 GiB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut size = count as f64;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// `3m 20s`, `2h 5m`.
fn span(seconds: u64) -> String {
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

fn age(seen: &Inspection) -> String {
    let passed = seen.since.map(|since| Timestamp::now().duration_since(since).as_secs());
    passed.map_or_else(|| "-".to_owned(), |seconds| span(u64::try_from(seconds).unwrap_or(0)))
}

fn table(all: &[Listed]) -> Table {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["SANDBOX", "TASK", "STATE", "AGE", "IMAGE", "PIDS", "MEMORY", "CPU", "DISK"]);
    let none = || "-".to_owned();
    for Listed { task, seen } in all {
        let (about, usage) = (seen.about.as_ref(), seen.usage.as_ref());
        let of = |used: Option<u64>, limit: Option<u64>| match (used, limit) {
            (Some(used), Some(limit)) => format!("{} / {}", bytes(used), bytes(limit)),
            (Some(used), None) => bytes(used),
            (None, _) => none(),
        };
        table.add_row([
            seen.id.to_string(),
            task.map_or_else(none, |task| task.to_string()),
            seen.state.as_str().to_owned(),
            age(seen),
            about.map_or_else(none, |about| about.image.clone()),
            usage.map_or_else(none, |usage| match about {
                Some(about) => format!("{} / {}", usage.pids, about.pids),
                None => usage.pids.to_string(),
            }),
            of(usage.map(|usage| usage.memory_bytes), about.map(|about| about.memory_bytes)),
            usage.map_or_else(none, |usage| format!("{}.{}s", usage.cpu_ms / 1_000, usage.cpu_ms % 1_000 / 100)),
            of(usage.map(|usage| usage.disk_used_bytes), about.map(|about| about.disk_bytes)),
        ]);
    }
    table
}

impl Sandbox {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Ps { json, config } => {
                let all = Host::open(&config)?.all()?;
                match (json, all.is_empty()) {
                    (true, _) => say(serde_json::to_string_pretty(&all)?),
                    (false, true) => say("There is no sandbox on this host."),
                    (false, false) => say(table(&all).to_string()),
                }
            }
            Self::Inspect { id, json, config } => {
                let host = Host::open(&config)?;
                let id = host.find(&id)?;
                let listed = Listed { task: host.tasks.get(&id).copied(), seen: host.survey.inspect(id)? };
                let commands = commands(&host, &listed.seen).await;
                if json {
                    let mut value = serde_json::to_value(&listed)?;
                    value["commands"] = serde_json::to_value(&commands)?;
                    say(serde_json::to_string_pretty(&value)?);
                } else {
                    describe(&listed, &commands);
                }
            }
            Self::Exec(enter) => return enter.run().await,
            Self::Shell(enter) => return enter.run().await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A command that runs, as it is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Command {
    id: String,
    pid: i32,
    running_ms: u64,
    command: String,
}

/// The commands that run in a sandbox. It says so itself, so nothing rests on it.
async fn commands(host: &Host, seen: &Inspection) -> Vec<Command> {
    if seen.state != RunState::Running {
        return Vec::new();
    }
    let Ok(sandbox) = host.survey.attach(seen.id).await else { return Vec::new() };
    let listed = sandbox.running().await.unwrap_or_default().into_iter();
    let harmless = |text: String| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    listed
        .map(|listed| Command {
            id: harmless(listed.id),
            pid: listed.pid,
            running_ms: listed.running_ms,
            command: harmless(listed.command),
        })
        .collect()
}

fn describe(listed: &Listed, commands: &[Command]) {
    let Listed { task, seen } = listed;
    let line = |name: &str, value: String| say(format!("{name:<14} {value}"));
    let some = |name: &str, value: Option<String>| value.into_iter().for_each(|value| line(name, value));
    line("sandbox", seen.id.to_string());
    some("task", task.map(|task| task.to_string()));
    line("state", format!("{}, {}", seen.state.as_str(), age(seen)));
    if let Some(about) = &seen.about {
        line("image", about.image.clone());
        line(
            "limits",
            format!(
                "memory {}, {} processors, {} processes, disk {}, {} in all",
                bytes(about.memory_bytes),
                about.cpus,
                about.pids,
                bytes(about.disk_bytes),
                span(about.timeout_seconds)
            ),
        );
    }
    if let Some(usage) = &seen.usage {
        line(
            "usage",
            format!(
                "memory {} (at most {}), cpu {} ms, {} processes, disk {}, killed for memory {}",
                bytes(usage.memory_bytes),
                bytes(usage.memory_peak_bytes),
                usage.cpu_ms,
                usage.pids,
                bytes(usage.disk_used_bytes),
                usage.oom_kills
            ),
        );
    }
    line("directory", seen.directory.display().to_string());
    some("first process", seen.first_process.map(|pid| pid.to_string()));
    some("helper", seen.helper.map(|pid| pid.to_string()));
    seen.cgroups.iter().for_each(|group| line("cgroup", group.display().to_string()));
    seen.layers.iter().for_each(|layer| line("layer", layer.display().to_string()));
    if let Some(walls) = &seen.walls {
        let digest = walls.seccomp_digest.as_deref().unwrap_or("unknown");
        line("system calls", format!("{} {digest}", walls.seccomp));
        line("new privileges", if walls.no_new_privileges { "never" } else { "POSSIBLE" }.to_owned());
        let held = walls.capabilities.iter().map(|(set, value)| format!("{set} {value}")).collect::<Vec<_>>();
        line("capabilities", if held.is_empty() { "none".to_owned() } else { held.join(", ") });
        let abi =
            walls.landlock_abi.map_or_else(|| "unknown to the kernel".to_owned(), |abi| format!("interface {abi}"));
        line("landlock", abi);
        for (kind, namespace) in &walls.namespaces {
            let whose = if namespace.own { "its own" } else { "THE HOST'S" };
            line("namespace", format!("{kind}: {whose}, {}", namespace.id));
        }
        walls.uid_map.iter().for_each(|range| line("users", range.clone()));
        walls.gid_map.iter().for_each(|range| line("groups", range.clone()));
    }
    seen.listeners.iter().for_each(|address| line("listens", address.clone()));
    for command in commands {
        let Command { id, pid, running_ms, command } = command;
        line("command", format!("{id}, process {pid} inside, {}: {command}", span(running_ms / 1_000)));
    }
    for process in &seen.processes {
        let inner = process.inner_pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        line("process", format!("{} (inside {inner}) {}", process.pid, process.command));
    }
}

#[cfg(test)]
mod tests {
    use orchestra_events::SandboxId;
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> SandboxId {
        SandboxId::from_uuid(Uuid::from_u128(number))
    }

    #[test]
    fn a_start_names_one_or_says_what_is_near() {
        let task = TaskId::from_uuid(Uuid::from_u128(7 << 120)).to_string();
        let (one, two) = (id(1 << 120), id((1 << 120) + 1));
        let names = vec![(one.to_string(), one), (two.to_string(), two), (task.clone(), one)];
        assert_eq!(named(&one.to_string(), &names).unwrap(), one);
        assert_eq!(named(&task[..9], &names).unwrap(), one);
        assert_eq!(named(&task[5..9], &names).unwrap(), one, "without the kind");
        let error = named("sbx_0", &names).unwrap_err().to_string();
        assert!(error.contains("start of 2 sandboxes"), "{error}");
        let mut typo = one.to_string();
        typo.pop();
        typo.push('z');
        let error = named(&typo, &names).unwrap_err().to_string();
        assert!(error.contains(&format!("the nearest are {one}")), "{error}");
        assert!(named("", &names).unwrap_err().to_string().contains("nearest"));
        assert!(named("x", &[]).unwrap_err().to_string().contains("no sandbox on this host"));
    }

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!([0, 1_023, 1_536, 2 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "2.0 GiB"]);
        assert_eq!([5, 200, 7_500].map(span), ["5s", "3m 20s", "2h 5m"]);
    }
}
