//! Going into a sandbox from the host: as one command, or as a shell on a terminal.
//!
//! Both are children of the sandbox's own first process, with the same filter and as little rights as every command of its
//! agent. Each entry is noted durably before it begins; the server takes it down in the task's log.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use bytes::Bytes;
use orchestra_runtime::sandbox::{Entry, EntryKind, Exec, Exit, Piece, Sandbox, StreamedExec};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::terminal::{Raw, window};
use super::{ConfigArguments, Host};
use crate::config::parse_duration;

/// Bytes of standard input that are sent at once.
const INPUT_CHUNK: usize = 32 * 1024;
/// Pieces of output that wait to be written; beyond them the command waits.
const OUTPUT_CHUNKS: usize = 8;
/// Longest name of an operator, in characters.
const MAX_OPERATOR: usize = 64;
/// What a shell ends with when its time was up, as `timeout` of the coreutils does.
const TIMED_OUT: u8 = 124;
/// What it ends with when the sandbox went away meanwhile.
const LOST: u8 = 125;

/// Run a command in a sandbox as its agent would
#[derive(clap::Args)]
pub struct Enter {
    /// The sandbox's id or its task's, or the start of either
    id: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Directory to start in
    #[arg(long, default_value = "/workspace", value_name = "DIR")]
    cwd: String,
    /// A variable on top of the sandbox's own, as NAME=VALUE; may be given more than once
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
    /// How long it may run
    #[arg(long, default_value = "1h", value_name = "TIME")]
    timeout: String,
    #[command(flatten)]
    config: ConfigArguments,
}

/// Open a shell in a sandbox, on a terminal of its own
#[derive(clap::Args)]
pub struct EnterShell {
    /// The sandbox's id or its task's, or the start of either
    id: String,
    /// How long it may stay open
    #[arg(long, default_value = "8h", value_name = "TIME")]
    timeout: String,
    #[command(flatten)]
    config: ConfigArguments,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// Who is doing this, as far as the host knows.
fn operator() -> String {
    let named = ["SUDO_USER", "LOGNAME", "USER"].into_iter().find_map(|name| std::env::var(name).ok());
    let named = named.filter(|name| !name.is_empty()).unwrap_or_else(|| "root".to_owned());
    named.chars().filter(|c| !c.is_control()).take(MAX_OPERATOR).collect()
}

/// The kind of the operator's terminal, when it is a plain name.
fn terminal_kind() -> String {
    let plain =
        |kind: &String| kind.len() < 64 && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+._".contains(&b));
    std::env::var("TERM").ok().filter(plain).unwrap_or_else(|| "xterm".to_owned())
}

impl Enter {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let timeout = parse_duration(&self.timeout).context("in --timeout")?;
        let exec = Exec {
            id: format!("operator-{}", Uuid::now_v7()),
            argv: self.command,
            env: self.variables,
            cwd: self.cwd,
            stdin: Vec::new(),
            timeout,
        };
        enter(&self.config, &self.id, EntryKind::Exec, exec).await
    }
}

impl EnterShell {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let timeout = parse_duration(&self.timeout).context("in --timeout")?;
        let script = "command -v bash >/dev/null && exec bash -l; exec sh -l";
        let exec = Exec {
            id: format!("operator-{}", Uuid::now_v7()),
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("TERM".to_owned(), terminal_kind())],
            cwd: "/workspace".to_owned(),
            stdin: Vec::new(),
            timeout,
        };
        enter(&self.config, &self.id, EntryKind::Shell, exec).await
    }
}

async fn enter(config: &ConfigArguments, id: &str, kind: EntryKind, exec: Exec) -> anyhow::Result<ExitCode> {
    let host = Host::open(config)?;
    let id = host.find(id)?;
    let sandbox = host.survey.attach(id).await?;
    let program = exec.argv.first().cloned().unwrap_or_default();
    let entry = Entry { id: Uuid::now_v7(), at: jiff::Timestamp::now(), operator: operator(), kind, program };
    host.survey.note(id, &entry)?;
    let timeout = exec.timeout;
    let window = (kind == EntryKind::Shell).then(window);
    let running = sandbox.exec_streamed(exec, window).await?;
    let raw = match kind {
        EntryKind::Shell => Raw::enter().context("cannot make this terminal raw")?,
        EntryKind::Exec => None,
    };
    pass_on_input(running.input());
    let ended = follow(&sandbox, running, kind).await;
    drop(raw);
    Ok(match ended? {
        Exit::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Exit::Signal(signal) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        Exit::TimedOut => {
            eprintln!("orchestra: its time was up after {} s", timeout.as_secs());
            ExitCode::from(TIMED_OUT)
        }
        Exit::OutOfMemory => ExitCode::from(128 + 9),
        Exit::Lost => {
            eprintln!("orchestra: the sandbox went away before the command ended");
            ExitCode::from(LOST)
        }
    })
}

/// Reads standard input on a thread that ends with this process: a read of a terminal cannot be taken back.
fn pass_on_input(input: mpsc::Sender<Bytes>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; INPUT_CHUNK];
        loop {
            let count = std::io::stdin().lock().read(&mut buffer).unwrap_or(0);
            // An empty piece is the end of the input, and so is a failed read.
            if input.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() || count == 0 {
                return;
            }
        }
    });
}

/// Writes what the command says on a thread, where a terminal that takes nothing holds up nobody else.
fn show(mut said: mpsc::Receiver<Piece>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while let Some(piece) = said.blocking_recv() {
            let written = match &piece {
                Piece::Output(bytes) => {
                    let mut output = std::io::stdout().lock();
                    output.write_all(bytes).and_then(|()| output.flush())
                }
                Piece::Errors(bytes) => std::io::stderr().lock().write_all(bytes),
            };
            if written.is_err() {
                return;
            }
        }
    })
}

/// Passes on what it says, and to it what this process is told by signals.
async fn follow(sandbox: &Arc<dyn Sandbox>, mut running: StreamedExec, kind: EntryKind) -> anyhow::Result<Exit> {
    let exec = running.id().to_owned();
    let mut signals = Signals::new()?;
    let (say, said) = mpsc::channel(OUTPUT_CHUNKS);
    let shown = show(said);
    let following = async {
        while let Some(piece) = running.next().await {
            if say.send(piece).await.is_err() {
                // Nobody reads our own output any more; dropping the command's ends it.
                return Ok(Exit::Signal(libc::SIGPIPE));
            }
        }
        drop(say);
        running.finish().await
    };
    tokio::pin!(following);
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut following => break ended,
            told = signals.next() => match told {
                Told::Window if kind == EntryKind::Shell => {
                    sandbox.resize_exec(&exec, window()).await?;
                }
                Told::Window => {}
                Told::Pass(number) => {
                    sandbox.signal_exec(&exec, number).await?;
                }
                Told::End => {
                    sandbox.kill_exec(&exec).await?;
                }
            },
        }
    };
    // What was said last is shown before the end is told.
    let _ = shown.join();
    Ok(ended?)
}

/// What this process is told while a command runs.
enum Told {
    /// Its terminal has another size.
    Window,
    /// To pass on this signal.
    Pass(i32),
    /// To end all of it: told a second time, or hung up.
    End,
}

struct Signals {
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    hang_up: Signal,
    window: Signal,
    told: bool,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            window: signal(SignalKind::window_change())?,
            told: false,
        })
    }

    async fn next(&mut self) -> Told {
        let number = tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.quit.recv() => libc::SIGQUIT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hang_up.recv() => return Told::End,
            _ = self.window.recv() => return Told::Window,
        };
        if std::mem::replace(&mut self.told, true) { Told::End } else { Told::Pass(number) }
    }
}
