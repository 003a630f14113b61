//! One running sandbox: commands, limits seen, the end.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use orchestra_events::SandboxId;
use orchestra_init::{Listed, Mode, Reply, Request, Resized, Signalled, Target, Window};
use tokio::sync::mpsc;

use super::cgroup::Hierarchy;
use super::client::{self, ANSWER_GRACE, Connection, PipedExec};
use super::layout::{Cause, Layout, write_whole};
use super::streams::StreamedExec;
use super::{Exec, ExecOutcome, Exit, Sandbox, SandboxError, Usage, Walls, network};

/// Times that a broken connection to a living sandbox is made again for one command.
const RECONNECTS: usize = 5;
/// How long the host waits for the helper to write down how the sandbox ended.
const ENDING_PATIENCE: Duration = Duration::from_secs(15);

/// Longest standard input of a command; the rest of the largest request is for its arguments and variables.
const MAX_STDIN: usize = orchestra_init::MAX_REQUEST - (1 << 20);

/// A handle on a running sandbox; any number of them, in any number of processes, may exist.
#[derive(Debug, Clone)]
pub struct Running {
    id: SandboxId,
    layout: Layout,
    cgroups: Arc<Hierarchy>,
}

/// The first process of the sandbox, if it is alive.
pub fn first_process(layout: &Layout, cgroups: &Hierarchy) -> Option<i32> {
    let pid = fs::read_to_string(layout.first_process()).ok()?.parse().ok()?;
    cgroups.holds(layout.cgroup(), pid).then_some(pid)
}

/// Whether this is how a connection fails when nobody is there, or whoever was there ends just now.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
    )
}

/// What the kernel says of a process, out of the text of `/proc/<pid>/status`; what it does not say is taken for the worst.
fn walls(status: &str, landlock: u32) -> Walls {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim()
    };
    Walls {
        filter: field("Seccomp") == "2",
        no_new_privileges: field("NoNewPrivs") == "1",
        capabilities: u64::from_str_radix(field("CapBnd"), 16).unwrap_or(u64::MAX),
        landlock,
    }
}

/// What a sandbox uses now.
pub fn read_usage(layout: &Layout, cgroups: &Hierarchy) -> io::Result<Usage> {
    let disk = nix::sys::statvfs::statvfs(&layout.volume())?;
    let (block, group) = (disk.fragment_size(), layout.cgroup());
    Ok(Usage {
        cpu: cgroups.cpu_time(group),
        memory_bytes: cgroups.memory(group),
        memory_peak_bytes: cgroups.memory_peak(group),
        pids: cgroups.tasks(group),
        disk_used_bytes: (disk.blocks() - disk.blocks_free()) * block,
        disk_bytes: disk.blocks() * block,
        oom_kills: cgroups.oom_kills(group),
    })
}

impl Running {
    pub fn new(id: SandboxId, layout: Layout, cgroups: Arc<Hierarchy>) -> Self {
        Self { id, layout, cgroups }
    }

    fn unresponsive(&self, detail: impl Into<String>) -> SandboxError {
        SandboxError::Unresponsive { id: self.id, detail: detail.into() }
    }

    /// Why the sandbox is gone, once its helper has written it down.
    async fn ended(&self) -> SandboxError {
        let start = tokio::time::Instant::now();
        loop {
            let layout = self.layout.clone();
            let seen = tokio::task::spawn_blocking(move || (layout.helper_pid(), layout.read_ending())).await;
            let (helper, ending) = seen.unwrap_or((None, None));
            match ending.map(|ending| ending.cause) {
                Some(Cause::TimedOut) => return SandboxError::TimedOut(self.id),
                Some(Cause::OutOfMemory) => return SandboxError::OutOfMemory(self.id),
                Some(Cause::Stopped) => return SandboxError::Gone(self.id),
                None if helper.is_none() || start.elapsed() > ENDING_PATIENCE => return SandboxError::Gone(self.id),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn connect(&self) -> Result<Connection, SandboxError> {
        match Connection::open(&self.layout).await {
            Ok(connection) => Ok(connection),
            Err(error) if is_end(&error) => Err(self.ended().await),
            Err(error) => Err(SandboxError::host(format!("connecting to sandbox {}", self.id))(error)),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Reply, SandboxError> {
        let mut connection = self.connect().await?;
        match connection.ask(request).await {
            Ok(Reply::Refused(refused)) => Err(SandboxError::Refused { id: self.id, detail: refused.message }),
            Ok(reply) => Ok(reply),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(self.unresponsive(error.to_string())),
            Err(_) => Err(self.ended().await),
        }
    }

    /// Waits until the first process answers.
    pub async fn ping(&self) -> Result<(), SandboxError> {
        match self.ask(&Request::Ping).await? {
            Reply::Pong(_) => Ok(()),
            _ => Err(self.unresponsive("it answered something else")),
        }
    }

    fn request(&self, exec: Exec, mode: Mode) -> Result<Request, SandboxError> {
        // What goes around the input is bounded by the arguments that a kernel takes at all.
        if exec.stdin.len() > MAX_STDIN {
            let detail = format!("its input is longer than {} MiB", MAX_STDIN >> 20);
            return Err(SandboxError::Refused { id: self.id, detail });
        }
        let timeout_ms = u64::try_from(exec.timeout.as_millis()).unwrap_or(u64::MAX);
        let Exec { id, argv, env, cwd, stdin, .. } = exec;
        Ok(Request::Exec(orchestra_init::Exec { id, argv, env, cwd, timeout_ms, mode }, stdin))
    }

    /// Runs, joins or asks again for a captured command, over as many connections as it takes.
    async fn run_captured(
        &self,
        request: &Request,
        live: Option<&mpsc::Sender<Bytes>>,
    ) -> Result<(orchestra_init::Outcome, Vec<u8>), SandboxError> {
        for _ in 0..RECONNECTS {
            let mut connection = self.connect().await?;
            if connection.send(request).await.is_err() {
                continue;
            }
            loop {
                match connection.receive().await {
                    Ok(Reply::Output(bytes)) => {
                        if let Some(live) = live {
                            let _ = live.try_send(Bytes::from(bytes));
                        }
                    }
                    Ok(Reply::Outcome(outcome, output)) => return Ok((outcome, output)),
                    Ok(Reply::Refused(refused)) => {
                        return Err(SandboxError::Refused { id: self.id, detail: refused.message });
                    }
                    Ok(Reply::Done(_) | Reply::Pong(_) | Reply::Errors(_) | Reply::Running(_)) => {
                        return Err(self.unresponsive("it answered something else"));
                    }
                    // Either it is gone, which the next connection shows, or the connection broke, and joining again
                    // is safe.
                    Err(_) => break,
                }
            }
        }
        Err(self.unresponsive("its connection breaks again and again"))
    }

    /// Whether the failed command `exec` is to be told as a lack of memory: the kernel has killed since the last time
    /// that was told, or it was told of this very command before.
    fn blames_memory(&self, exec: &str) -> bool {
        let kills = self.cgroups.oom_kills(self.layout.cgroup());
        let (told, whom) = self.layout.oom_told();
        if kills == told {
            return kills > 0 && whom == exec;
        }
        // Not being able to note it costs at worst a second mention.
        let _ = write_whole(&self.layout.oom_seen(), format!("{kills}\n{exec}").as_bytes(), 0o600);
        true
    }
}

#[async_trait]
impl Sandbox for Running {
    fn id(&self) -> SandboxId {
        self.id
    }

    async fn exec(&self, request: Exec, live: Option<mpsc::Sender<Bytes>>) -> Result<ExecOutcome, SandboxError> {
        let exec = request.id.clone();
        let patience = request.timeout.saturating_add(ANSWER_GRACE);
        let request = self.request(request, Mode::Captured)?;
        let run = tokio::time::timeout(patience, self.run_captured(&request, live.as_ref()));
        let (outcome, mut head) =
            run.await.map_err(|_| self.unresponsive("no result long after the command's time limit"))??;
        let tail = head.split_off(usize::try_from(outcome.head_bytes).unwrap_or(head.len()).min(head.len()));
        let mut exit = client::exit(outcome.exit);
        if matches!(exit, Exit::Signal(_)) || matches!(exit, Exit::Code(code) if code != 0) {
            let this = self.clone();
            let blamed = tokio::task::spawn_blocking(move || this.blames_memory(&exec)).await;
            if blamed.unwrap_or(false) {
                exit = Exit::OutOfMemory;
            }
        }
        let duration = Duration::from_millis(outcome.duration_ms);
        Ok(ExecOutcome { exit, head, tail, total_bytes: outcome.total_bytes, duration })
    }

    async fn exec_piped(&self, request: Exec) -> Result<PipedExec, SandboxError> {
        let patience = request.timeout.saturating_add(ANSWER_GRACE);
        let request = self.request(request, Mode::Piped)?;
        let mut connection = self.connect().await?;
        if connection.send(&request).await.is_err() {
            return Err(self.ended().await);
        }
        let id = self.id;
        Ok(PipedExec::follow(connection, patience, move |detail| SandboxError::Refused { id, detail }))
    }

    async fn kill_exec(&self, exec: &str) -> Result<bool, SandboxError> {
        let request = Request::Kill(Target { id: exec.to_owned() });
        Ok(matches!(self.ask(&request).await?, Reply::Done(true)))
    }

    async fn exec_streamed(&self, request: Exec, window: Option<Window>) -> Result<StreamedExec, SandboxError> {
        let (exec, patience) = (request.id.clone(), request.timeout.saturating_add(ANSWER_GRACE));
        let request = self.request(request, window.map_or(Mode::Streamed, Mode::Terminal))?;
        let mut connection = self.connect().await?;
        if connection.send(&request).await.is_err() {
            return Err(self.ended().await);
        }
        let id = self.id;
        Ok(StreamedExec::follow(connection, exec, patience, move |detail| SandboxError::Refused { id, detail }))
    }

    async fn signal_exec(&self, exec: &str, signal: i32) -> Result<bool, SandboxError> {
        let request = Request::Signal(Signalled { id: exec.to_owned(), signal });
        Ok(matches!(self.ask(&request).await?, Reply::Done(true)))
    }

    async fn resize_exec(&self, exec: &str, window: Window) -> Result<bool, SandboxError> {
        let request = Request::Resize(Resized { id: exec.to_owned(), window });
        Ok(matches!(self.ask(&request).await?, Reply::Done(true)))
    }

    async fn running(&self) -> Result<Vec<Listed>, SandboxError> {
        match self.ask(&Request::List).await? {
            Reply::Running(listed) => Ok(listed),
            _ => Err(self.unresponsive("it answered something else")),
        }
    }

    async fn forget(&self, exec: &str) -> Result<(), SandboxError> {
        self.ask(&Request::Forget(Target { id: exec.to_owned() })).await.map(drop)
    }

    async fn listen(&self, port: u16) -> Result<TcpListener, SandboxError> {
        let this = self.clone();
        let bound = tokio::task::spawn_blocking(move || {
            let pid = first_process(&this.layout, &this.cgroups).ok_or(SandboxError::Gone(this.id))?;
            let doing = format!("listening on port {port} inside sandbox {}", this.id);
            network::listen_inside(pid, port).map_err(SandboxError::host(doing))
        });
        bound.await.unwrap_or_else(|error| Err(self.unresponsive(error.to_string())))
    }

    async fn walls(&self) -> Result<Walls, SandboxError> {
        let landlock = match self.ask(&Request::Ping).await? {
            Reply::Pong(stats) => stats.landlock,
            Reply::Output(_)
            | Reply::Errors(_)
            | Reply::Outcome(..)
            | Reply::Done(_)
            | Reply::Running(_)
            | Reply::Refused(_) => {
                return Err(self.unresponsive("it answered something else"));
            }
        };
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let pid = first_process(&this.layout, &this.cgroups).ok_or(SandboxError::Gone(this.id))?;
            let status = fs::read_to_string(format!("/proc/{pid}/status"));
            status.map_err(SandboxError::host(format!("reading what sandbox {} is behind", this.id)))
        });
        let status = read.await.unwrap_or_else(|error| Err(self.unresponsive(error.to_string())))?;
        Ok(walls(&status, landlock))
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || read_usage(&this.layout, &this.cgroups));
        let read = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        read.map_err(SandboxError::host(format!("reading what sandbox {} uses", self.id)))
    }

    async fn kill(&self) -> Result<(), SandboxError> {
        let this = self.clone();
        let killed = tokio::task::spawn_blocking(move || this.cgroups.kill(this.layout.cgroup())).await;
        let killed = killed.unwrap_or_else(|error| Err(io::Error::other(error)));
        killed.map_err(SandboxError::host(format!("killing sandbox {}", self.id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_not_say_is_taken_for_the_worst() {
        let none = Walls { filter: false, no_new_privileges: false, capabilities: u64::MAX, landlock: 0 };
        assert_eq!(walls("", 0), none);
        let status = "Name:\tinit\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let all = Walls { filter: true, no_new_privileges: true, capabilities: 1, landlock: 7 };
        assert_eq!(walls(status, 7), all);
    }
}
