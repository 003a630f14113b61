//! The loop of the sandbox's first process: connections, commands, signals, the dead; one thread, one `poll`.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use orchestra_init::{
    CHUNK_BYTES, Exec, Exit, HEADER_BYTES, LIVE_BYTES, MAX_ID, MAX_KEPT, MAX_REQUEST, MAX_RUNNING, Mode, Outcome,
    Refused, Reply, Request, Stats, first_frame,
};

use crate::job::{Job, Read, Side, read_some};
use crate::landlock;
use crate::lineage::{self, Claim};

/// The descriptor on which the host hands over the listening socket.
const LISTENER: i32 = 3;
/// Open connections; the next ones wait in the socket's backlog.
const MAX_CLIENTS: usize = 64;
/// Unsent output per connection above which a piped command's output is left in its pipe, which stops it, and a
/// captured command's output is no longer sent live.
const HIGH_WATER: usize = 256 * 1024;
/// Outputs of processes left behind by finished commands that are read and thrown away, so that those processes do
/// not die of writing; the oldest is closed when there are more.
const MAX_SINKS: usize = 32;

/// One connection.
struct Client {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: VecDeque<u8>,
    /// The command this connection asked for.
    watches: Option<String>,
    gone: bool,
}

impl Client {
    fn send(&mut self, frame: &[u8]) {
        self.outgoing.extend(frame);
    }

    /// Sends as much as the socket takes.
    fn flush(&mut self) {
        while !self.outgoing.is_empty() && !self.gone {
            match self.stream.write(self.outgoing.as_slices().0) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }
}

/// Everything this process knows.
struct Supervisor {
    listener: UnixListener,
    signals: SignalFd,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    jobs: BTreeMap<String, Job>,
    /// The number of the next command.
    next_mark: u64,
    /// Results of captured commands as ready frames, until forgotten.
    kept: BTreeMap<String, Vec<u8>>,
    sinks: VecDeque<OwnedFd>,
    processes: u64,
    reaped: u64,
    /// The version of Landlock that everything in here is restricted by.
    landlock: u32,
    buffer: Box<[u8; CHUNK_BYTES]>,
}

/// What a slot of the poll set stands for.
#[derive(Clone)]
enum Source {
    Listener,
    Signals,
    Client(u64),
    Output(String),
    Errors(String),
    Input(String),
    Sink(usize),
}

/// Runs until the sandbox ends. Commands get at most `processes` processes between them.
pub fn run(processes: u64) -> io::Result<Infallible> {
    set_dumpable(false)?;
    let landlock = landlock::restrict()?;
    // SAFETY: the host hands over exactly this descriptor, and nothing else in this process owns it.
    let listener = unsafe { OwnedFd::from_raw_fd(LISTENER) };
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        // What the host's helper ignores would stay ignored in every command. The kernel itself keeps these from the first
        // process of a namespace. SAFETY: the default disposition installs no code.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut supervisor = Supervisor {
        listener,
        signals,
        clients: BTreeMap::new(),
        next_client: 0,
        jobs: BTreeMap::new(),
        next_mark: 1,
        kept: BTreeMap::new(),
        sinks: VecDeque::new(),
        processes,
        reaped: 0,
        landlock,
        buffer: Box::new([0; CHUNK_BYTES]),
    };
    loop {
        supervisor.turn()?;
    }
}

impl Supervisor {
    /// Waits for something to happen, and deals with all of it.
    fn turn(&mut self) -> io::Result<()> {
        for (source, flags) in self.wait()? {
            match source {
                Source::Listener => self.accept(),
                Source::Signals => self.reap(),
                Source::Client(key) => self.serve(key, flags),
                Source::Output(id) => self.pump(&id, Side::Output),
                Source::Errors(id) => self.pump(&id, Side::Errors),
                Source::Input(id) => {
                    if let Some(job) = self.jobs.get_mut(&id) {
                        job.write_input();
                    }
                }
                Source::Sink(index) => self.drain_sink(index),
            }
        }
        let now = Instant::now();
        if self.jobs.values().any(|job| job.is_overdue(now)) {
            let running = self.claims();
            self.jobs.values_mut().filter(|job| job.is_overdue(now)).for_each(|job| job.time_out(&running));
        }
        self.settle(now);
        self.bury_clients();
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut watch = |source: Source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        if self.clients.len() < MAX_CLIENTS {
            watch(Source::Listener, self.listener.as_fd(), PollFlags::POLLIN);
        }
        for (key, client) in &self.clients {
            let out = if client.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            // What its command cannot take yet stays in the socket, which stops the other end.
            let full = client.watches.as_ref().and_then(|id| self.jobs.get(id)).is_some_and(Job::is_full);
            let more = if full { PollFlags::empty() } else { PollFlags::POLLIN };
            watch(Source::Client(*key), client.stream.as_fd(), more | out);
        }
        for (id, job) in &self.jobs {
            let congested = self.is_congested(id);
            if let Some(fd) = &job.output
                && (job.mode.is_kept() || !congested)
            {
                watch(Source::Output(id.clone()), fd.as_fd(), PollFlags::POLLIN);
            }
            if let Some(fd) = &job.errors
                && (job.mode == Mode::Piped || !congested)
            {
                watch(Source::Errors(id.clone()), fd.as_fd(), PollFlags::POLLIN);
            }
            if let Some(input) = &job.input
                && job.has_input()
            {
                watch(Source::Input(id.clone()), input.fd.as_fd(), PollFlags::POLLOUT);
            }
        }
        for (index, fd) in self.sinks.iter().enumerate() {
            watch(Source::Sink(index), fd.as_fd(), PollFlags::POLLIN);
        }
        let timeout = self.jobs.iter().filter(|(id, job)| job.ended.is_none() || !self.is_congested(id));
        let timeout = timeout.map(|(_, job)| job.wakes()).min().map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = fds.iter().zip(sources).filter_map(|(fd, source)| {
            let flags = fd.revents().unwrap_or(PollFlags::empty());
            (!flags.is_empty()).then_some((source, flags))
        });
        Ok(ready.collect())
    }

    /// What every running command may call its own.
    fn claims(&self) -> Vec<Claim> {
        self.jobs.values().map(|job| job.claim).collect()
    }

    /// Whether the connection that reads a command as a stream is behind.
    fn is_congested(&self, id: &str) -> bool {
        let watching = self.clients.values().find(|client| client.watches.as_deref() == Some(id));
        watching.is_some_and(|client| client.outgoing.len() >= HIGH_WATER)
    }

    fn accept(&mut self) {
        while self.clients.len() < MAX_CLIENTS {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let client = Client { stream, incoming: Vec::new(), outgoing: VecDeque::new(), watches: None, gone: false };
            self.clients.insert(self.next_client, client);
            self.next_client += 1;
        }
    }

    /// Reads a connection's requests and sends what waits for it.
    fn serve(&mut self, key: u64, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        client.flush();
        if !flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        match client.stream.read(&mut self.buffer[..]) {
            Ok(0) => client.gone = true,
            Ok(count) => client.incoming.extend_from_slice(&self.buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => client.gone = true,
        }
        loop {
            let Some(client) = self.clients.get_mut(&key) else { return };
            let (kind, payload, used) = match first_frame(&client.incoming, MAX_REQUEST + HEADER_BYTES) {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(_) => {
                    client.gone = true;
                    return;
                }
            };
            let request = Request::parse(kind, payload);
            client.incoming.drain(..used);
            let reply = match request {
                Ok(request) => self.answer(key, request),
                Err(error) => Some(refuse(&error.to_string())),
            };
            if let (Some(reply), Some(client)) = (reply, self.clients.get_mut(&key)) {
                client.send(&reply);
                client.flush();
            }
        }
    }

    fn answer(&mut self, key: u64, request: Request) -> Option<Vec<u8>> {
        match request {
            Request::Exec(exec, stdin) => self.exec(key, &exec, stdin),
            Request::Kill(target) => {
                let job = self.jobs.get(&target.id);
                job.inspect(|job| job.kill(&self.claims()));
                Some(Reply::Done(job.is_some()).to_frame())
            }
            Request::Signal(signalled) => {
                let job = self.jobs.get(&signalled.id);
                let Ok(signal) = Signal::try_from(signalled.signal) else { return Some(refuse("no such signal")) };
                job.inspect(|job| lineage::signal_session(job.claim.session, signal));
                Some(Reply::Done(job.is_some()).to_frame())
            }
            Request::List => {
                let listed = self.jobs.iter().filter(|(_, job)| job.ended.is_none()).map(|(id, job)| job.listed(id));
                Some(Reply::Running(listed.collect()).to_frame())
            }
            Request::Resize(resized) => {
                let job = self.jobs.get(&resized.id);
                job.inspect(|job| job.resize(resized.window));
                Some(Reply::Done(job.is_some()).to_frame())
            }
            Request::Input(bytes) => {
                // One that has ended while this was on its way has no use for it, and its result is on the way too.
                let watched = self.clients.get(&key).and_then(|client| client.watches.clone());
                if let Some(job) = watched.and_then(|id| self.jobs.get_mut(&id)) {
                    job.take_input(&bytes);
                }
                None
            }
            Request::Forget(target) => Some(Reply::Done(self.kept.remove(&target.id).is_some()).to_frame()),
            Request::Ping => Some(
                Reply::Pong(Stats {
                    running: self.jobs.len() as u32,
                    kept: self.kept.len() as u32,
                    reaped: self.reaped,
                    landlock: self.landlock,
                })
                .to_frame(),
            ),
        }
    }

    /// Starts, joins or answers for a command; nothing to send yet when it runs.
    fn exec(&mut self, key: u64, exec: &Exec, stdin: Vec<u8>) -> Option<Vec<u8>> {
        if exec.id.is_empty() || exec.id.len() > MAX_ID {
            return Some(refuse("a command's id is 1 to 200 bytes long"));
        }
        if let Some(result) = self.kept.get(&exec.id) {
            return Some(result.clone());
        }
        let running = self.jobs.get(&exec.id).map(|job| job.mode);
        match running {
            Some(mode) if !mode.is_kept() || !exec.mode.is_kept() => {
                return Some(refuse("a command with this id is running, and its stream cannot be shared"));
            }
            Some(_) => {}
            None if self.jobs.len() >= MAX_RUNNING => return Some(refuse("too many commands are running")),
            None if self.kept.len() + self.jobs.len() >= MAX_KEPT => {
                return Some(refuse("too many results wait to be forgotten"));
            }
            None => match Job::start(exec, stdin, self.next_mark, self.processes) {
                Ok(job) => {
                    self.next_mark += 1;
                    drop(self.jobs.insert(exec.id.clone(), job));
                }
                Err(error) => return Some(self.not_started(exec, &error)),
            },
        }
        if let Some(client) = self.clients.get_mut(&key) {
            client.watches = Some(exec.id.clone());
        }
        None
    }

    /// The result of a command that could not be started, with the codes a shell uses.
    fn not_started(&mut self, exec: &Exec, error: &io::Error) -> Vec<u8> {
        let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        let text = format!("{}: {error}\n", exec.argv.first().map_or("", String::as_str)).into_bytes();
        let size = text.len() as u64;
        let outcome = Outcome { exit: Exit::Code(code), total_bytes: size, head_bytes: size, duration_ms: 0 };
        let frame = Reply::Outcome(outcome, text).to_frame();
        if exec.mode.is_kept() {
            self.kept.insert(exec.id.clone(), frame.clone());
        }
        frame
    }

    /// Moves one piece of output from a command to who watches it.
    fn pump(&mut self, id: &str, side: Side) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let read = match side {
            Side::Output => job.read_output(&mut self.buffer),
            Side::Errors => job.read_errors(&mut self.buffer),
        };
        let Read::Bytes(count) = read else { return };
        forward(&mut self.clients, id, job, side, &self.buffer[..count]);
    }

    /// Collects every process that has died, ours or an orphan's.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let mut status = 0;
            // SAFETY: `status` is a valid place for the status; any child is meant.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            self.reaped += 1;
            let running = self.claims();
            if let Some(job) = self.jobs.values_mut().find(|job| job.claim.session == pid && job.ended.is_none()) {
                let exit = if libc::WIFSIGNALED(status) {
                    Exit::Signal(libc::WTERMSIG(status))
                } else {
                    Exit::Code(libc::WEXITSTATUS(status))
                };
                job.end(exit, &running);
            }
        }
    }

    /// Turns finished commands into results.
    fn settle(&mut self, now: Instant) {
        let ids: Vec<String> =
            self.jobs.iter().filter(|(_, job)| job.ended.is_some()).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let congested = self.is_congested(&id);
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if congested && !job.mode.is_kept() && (job.output.is_some() || job.errors.is_some()) {
                continue;
            }
            let (mut drained, mut size) = (Vec::new(), 0);
            let finished = job.finished(now, &mut self.buffer, |side, bytes| {
                drained.push((side, bytes.to_vec()));
                size += bytes.len();
                size < HIGH_WATER
            });
            for (side, piece) in drained {
                forward(&mut self.clients, &id, job, side, &piece);
            }
            if !finished {
                continue;
            }
            let Some(job) = self.jobs.remove(&id) else { continue };
            let mode = job.mode;
            let (reply, left_behind) = job.result();
            let frame = reply.to_frame();
            for client in self.clients.values_mut().filter(|client| client.watches.as_deref() == Some(&*id)) {
                client.watches = None;
                client.send(&frame);
                client.flush();
            }
            if mode.is_kept() {
                self.kept.insert(id, frame);
            }
            self.sinks.extend(left_behind);
            while self.sinks.len() > MAX_SINKS {
                self.sinks.pop_front();
            }
        }
    }

    fn drain_sink(&mut self, index: usize) {
        if let Some(fd) = self.sinks.get(index)
            && matches!(read_some(fd, &mut self.buffer[..]), Read::End)
        {
            // Swapped, not removed: the other indices of this turn stay valid, the last one at worst waits a turn.
            self.sinks.swap_remove_back(index);
        }
    }

    /// Lets go of closed connections; a command that is read as a stream dies with its own.
    fn bury_clients(&mut self) {
        let gone: Vec<u64> = self.clients.iter().filter(|(_, client)| client.gone).map(|(key, _)| *key).collect();
        for key in gone {
            let Some(client) = self.clients.remove(&key) else { continue };
            let Some(id) = client.watches else { continue };
            if self.jobs.get(&id).is_some_and(|job| !job.mode.is_kept()) {
                let running = self.claims();
                if let Some(job) = self.jobs.remove(&id) {
                    job.kill(&running);
                }
            }
        }
    }
}

fn refuse(message: &str) -> Vec<u8> {
    Reply::Refused(Refused { message: message.to_owned() }).to_frame()
}

/// Sends a piece of output to the connections that watch a command.
fn forward(clients: &mut BTreeMap<u64, Client>, id: &str, job: &mut Job, side: Side, bytes: &[u8]) {
    let frame = match (side, job.mode) {
        (Side::Output, Mode::Captured) if job.live >= LIVE_BYTES => return,
        (Side::Output, Mode::Captured) => {
            job.live += bytes.len() as u64;
            Reply::Output(bytes.to_vec())
        }
        (Side::Output, Mode::Piped | Mode::Streamed | Mode::Terminal(_)) => Reply::Output(bytes.to_vec()),
        (Side::Errors, Mode::Streamed) => Reply::Errors(bytes.to_vec()),
        // Kept, and told with the result.
        (Side::Errors, Mode::Captured | Mode::Piped | Mode::Terminal(_)) => return,
    };
    let frame = frame.to_frame();
    for client in clients.values_mut().filter(|client| client.watches.as_deref() == Some(id)) {
        if !job.mode.is_kept() || client.outgoing.len() < HIGH_WATER {
            client.send(&frame);
            client.flush();
        }
    }
}
