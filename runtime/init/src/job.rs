//! One command from its start to its result: its pipes, its clock, who watches it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{read, write};
use orchestra_init::{CHUNK_BYTES, Exec, Exit, Listed, MAX_INPUT, MAX_SHOWN, Mode, Outcome, Reply, Window};

use crate::capture::Capture;
use crate::lineage::{self, Claim};
use crate::session::{self, Started};
use crate::terminal;

/// How long output may still arrive after a command's own process has ended, when a process that it left behind
/// holds the pipe open.
pub const DRAIN_GRACE: Duration = Duration::from_millis(100);
/// What may still be read after the grace: the largest pipe an unprivileged process can make.
const DRAIN_BYTES: usize = 1024 * 1024;

/// What came of a read.
pub enum Read {
    /// These many bytes are in the buffer.
    Bytes(usize),
    /// Nothing now.
    Later,
    /// The other end is closed.
    End,
}

/// Reads once without waiting.
pub fn read_some(fd: &OwnedFd, buffer: &mut [u8]) -> Read {
    loop {
        match read(fd, buffer) {
            Ok(0) => return Read::End,
            Ok(count) => return Read::Bytes(count),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Read::Later,
            Err(_) => return Read::End,
        }
    }
}

/// Which of its outputs a piece is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Standard output, or the only one.
    Output,
    /// Standard error of a streamed command.
    Errors,
}

/// What is left to write into a command.
pub struct Input {
    /// Its standard input, or its keyboard.
    pub fd: OwnedFd,
    waiting: VecDeque<u8>,
    /// Nothing more comes.
    last: bool,
}

/// A running command.
pub struct Job {
    /// How its output is treated.
    pub mode: Mode,
    /// The leader of its session, and what else it may call its own.
    pub claim: Claim,
    /// Merged outputs, or standard output alone; gone when at its end.
    pub output: Option<OwnedFd>,
    /// Standard error of a piped or streamed command.
    pub errors: Option<OwnedFd>,
    /// Standard input, until all of it is written.
    pub input: Option<Input>,
    /// When its time is up.
    pub deadline: Instant,
    /// How and when its own process ended.
    pub ended: Option<(Exit, Instant)>,
    /// Live output sent so far.
    pub live: u64,
    /// The start of its command line.
    shown: String,
    capture: Capture,
    started: Instant,
    timed_out: bool,
    drained: usize,
}

/// The start of a command line.
fn shown(argv: &[String]) -> String {
    let mut line = String::new();
    for word in argv {
        if !line.is_empty() {
            line.push(' ');
        }
        // Cut before it is put together: an argument may be megabytes long.
        line.extend(word.chars().take(MAX_SHOWN));
        if line.len() >= MAX_SHOWN {
            line.truncate(line.floor_char_boundary(MAX_SHOWN));
            break;
        }
    }
    line
}

impl Job {
    /// Starts a command with this number.
    pub fn start(exec: &Exec, stdin: Vec<u8>, mark: u64, processes: u64) -> io::Result<Self> {
        let Started { claim, output, errors, input } = session::start(exec, !stdin.is_empty(), mark, processes)?;
        let started = Instant::now();
        let limit = Duration::from_millis(exec.timeout_ms);
        Ok(Self {
            mode: exec.mode,
            claim,
            output: Some(output),
            errors,
            input: input.map(|fd| Input { fd, waiting: stdin.into(), last: !exec.mode.takes_input() }),
            // A limit beyond the clock's range is no limit; a year stands for it.
            deadline: started.checked_add(limit).unwrap_or(started + Duration::from_secs(31_536_000)),
            ended: None,
            live: 0,
            shown: shown(&exec.argv),
            capture: Capture::default(),
            started,
            timed_out: false,
            drained: 0,
        })
    }

    /// When something has to be done even if nothing happens.
    pub fn wakes(&self) -> Instant {
        match self.ended {
            Some((_, at)) => at + DRAIN_GRACE,
            None if self.timed_out => Instant::now() + DRAIN_GRACE,
            None => self.deadline,
        }
    }

    /// What there is to say of it under this id.
    pub fn listed(&self, id: &str) -> Listed {
        let running_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Listed { id: id.to_owned(), pid: self.claim.session, mode: self.mode, command: self.shown.clone(), running_ms }
    }

    /// Whether its time is up and it is not dead yet.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.ended.is_none() && now >= self.deadline
    }

    /// Kills a command whose time is up; called again until it is dead, so nothing slips through a pass.
    pub fn time_out(&mut self, running: &[Claim]) {
        self.timed_out = true;
        self.kill(running);
    }

    /// Kills every process that belongs to it. `running` are the claims of all running commands.
    pub fn kill(&self, running: &[Claim]) {
        lineage::kill_all(self.claim, running);
    }

    /// Notes the end of the command's own process.
    pub fn end(&mut self, exit: Exit, running: &[Claim]) {
        let exit = if self.timed_out { Exit::TimedOut } else { exit };
        self.ended = Some((exit, Instant::now()));
        self.input = None;
        if self.timed_out {
            self.kill(running);
        }
    }

    /// Takes input off the connection; an empty piece is its end.
    pub fn take_input(&mut self, bytes: &[u8]) {
        let terminal = matches!(self.mode, Mode::Terminal(_));
        let Some(input) = self.input.as_mut().filter(|input| !input.last) else { return };
        match bytes {
            // A terminal has no end; this is how its user says so, as often as it takes.
            [] if terminal => input.waiting.push_back(terminal::END_OF_INPUT),
            [] => input.last = true,
            bytes => input.waiting.extend(bytes),
        }
        self.write_input();
    }

    /// Whether it is to be given no more input before it has read some.
    pub fn is_full(&self) -> bool {
        self.input.as_ref().is_some_and(|input| input.waiting.len() >= MAX_INPUT)
    }

    /// Whether there is something to write into it, or its input to be closed.
    pub fn has_input(&self) -> bool {
        self.input.as_ref().is_some_and(|input| input.last || !input.waiting.is_empty())
    }

    /// Tells its terminal how large it is; anything else has no size.
    pub fn resize(&self, window: Window) {
        if let (Mode::Terminal(_), Some(keyboard)) = (self.mode, &self.output) {
            let _ = terminal::resize(keyboard, window);
        }
    }

    /// Reads the next piece of output; captured output is also kept.
    pub fn read_output(&mut self, buffer: &mut [u8; CHUNK_BYTES]) -> Read {
        let Some(fd) = &self.output else { return Read::End };
        let got = read_some(fd, buffer);
        match &got {
            Read::Bytes(count) => {
                if self.mode == Mode::Captured {
                    self.capture.push(&buffer[..*count]);
                }
                if self.ended.is_some_and(|(_, at)| at.elapsed() >= DRAIN_GRACE) {
                    self.drained += count;
                }
            }
            Read::Later => {}
            Read::End => self.output = None,
        }
        got
    }

    /// Reads what a command says on standard error; what a piped one says is kept.
    pub fn read_errors(&mut self, buffer: &mut [u8; CHUNK_BYTES]) -> Read {
        let Some(fd) = &self.errors else { return Read::End };
        let got = read_some(fd, buffer);
        match &got {
            Read::Bytes(count) => {
                if self.mode == Mode::Piped {
                    self.capture.push(&buffer[..*count]);
                }
                if self.ended.is_some_and(|(_, at)| at.elapsed() >= DRAIN_GRACE) {
                    self.drained += count;
                }
            }
            Read::Later => {}
            Read::End => self.errors = None,
        }
        got
    }

    /// Writes the next piece of standard input and closes it at the end.
    pub fn write_input(&mut self) {
        let Some(input) = &mut self.input else { return };
        if !input.waiting.is_empty() {
            match write(&input.fd, input.waiting.as_slices().0) {
                Ok(count) => drop(input.waiting.drain(..count)),
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // Nobody reads any more: what is left and what still comes is nobody's.
                Err(_) => (input.waiting, input.last) = (VecDeque::new(), true),
            }
        }
        if input.last && input.waiting.is_empty() {
            self.input = None;
        }
    }

    /// Whether the result is whole: the process has ended, and its output too, or its grace is over and what was in
    /// the pipe has been read.
    pub fn finished(
        &mut self,
        now: Instant,
        buffer: &mut [u8; CHUNK_BYTES],
        mut sink: impl FnMut(Side, &[u8]) -> bool,
    ) -> bool {
        let Some((_, at)) = self.ended else { return false };
        if self.output.is_none() && self.errors.is_none() {
            return true;
        }
        if now < at + DRAIN_GRACE {
            return false;
        }
        for side in [Side::Errors, Side::Output] {
            while self.drained < DRAIN_BYTES {
                let read = match side {
                    Side::Errors => self.read_errors(buffer),
                    Side::Output => self.read_output(buffer),
                };
                match read {
                    Read::Bytes(count) => {
                        if !sink(side, &buffer[..count]) {
                            return false;
                        }
                    }
                    Read::Later | Read::End => break,
                }
            }
        }
        true
    }

    /// The result, and the pipes that a process left behind may still hold.
    pub fn result(self) -> (Reply, impl Iterator<Item = OwnedFd>) {
        let exit = self.ended.map_or(Exit::Signal(9), |(exit, _)| exit);
        let (total_bytes, head_bytes, kept) = self.capture.finish();
        let ended = self.ended.map_or_else(Instant::now, |(_, at)| at);
        let duration = ended.saturating_duration_since(self.started);
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let left_behind = [self.output, self.errors].into_iter().flatten();
        (Reply::Outcome(Outcome { exit, total_bytes, head_bytes, duration_ms }, kept), left_behind)
    }
}
