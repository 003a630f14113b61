//! One command from its start to its result: its pipes, its clock, who watches it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{read, write};
use orchestra_init::{CHUNK_BYTES, Exec, Exit, Mode, Outcome, Reply};

use crate::capture::Capture;
use crate::session::{self, Started};

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

/// A running command.
pub struct Job {
    /// How its output is treated.
    pub mode: Mode,
    /// The leader of its session.
    pub pid: i32,
    /// Merged outputs, or standard output alone; gone when at its end.
    pub output: Option<OwnedFd>,
    /// Standard error of a piped command.
    pub errors: Option<OwnedFd>,
    /// Standard input and what is left to write into it.
    pub input: Option<(OwnedFd, Vec<u8>, usize)>,
    /// When its time is up.
    pub deadline: Instant,
    /// How and when its own process ended.
    pub ended: Option<(Exit, Instant)>,
    /// Live output sent so far.
    pub live: u64,
    capture: Capture,
    started: Instant,
    timed_out: bool,
    drained: usize,
}

impl Job {
    /// Starts a command.
    pub fn start(exec: &Exec, stdin: Vec<u8>, processes: u64) -> io::Result<Self> {
        let Started { pid, output, errors, input } = session::start(exec, !stdin.is_empty(), processes)?;
        let started = Instant::now();
        let limit = Duration::from_millis(exec.timeout_ms);
        Ok(Self {
            mode: exec.mode,
            pid,
            output: Some(output),
            errors,
            input: input.map(|fd| (fd, stdin, 0)),
            // A limit beyond the clock's range is no limit; a year stands for it.
            deadline: started.checked_add(limit).unwrap_or(started + Duration::from_secs(31_536_000)),
            ended: None,
            live: 0,
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

    /// Kills the command if its time is up; called again until it is dead, so nothing slips through a pass.
    pub fn enforce_deadline(&mut self, now: Instant) {
        if self.ended.is_none() && now >= self.deadline {
            self.timed_out = true;
            session::kill_all(self.pid);
        }
    }

    /// Kills the whole session.
    pub fn kill(&self) {
        session::kill_all(self.pid);
    }

    /// Notes the end of the command's own process.
    pub fn end(&mut self, exit: Exit) {
        let exit = if self.timed_out { Exit::TimedOut } else { exit };
        self.ended = Some((exit, Instant::now()));
        self.input = None;
        if self.timed_out {
            session::kill_all(self.pid);
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

    /// Reads what a piped command says on standard error.
    pub fn read_errors(&mut self, buffer: &mut [u8; CHUNK_BYTES]) {
        let Some(fd) = &self.errors else { return };
        match read_some(fd, buffer) {
            Read::Bytes(count) => self.capture.push(&buffer[..count]),
            Read::Later => {}
            Read::End => self.errors = None,
        }
    }

    /// Writes the next piece of standard input and closes it at the end.
    pub fn write_input(&mut self) {
        let Some((fd, bytes, at)) = &mut self.input else { return };
        match write(&*fd, &bytes[*at..]) {
            Ok(count) => *at += count,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => *at = bytes.len(),
        }
        if *at >= bytes.len() {
            self.input = None;
        }
    }

    /// Whether the result is whole: the process has ended, and its output too, or its grace is over and what was in
    /// the pipe has been read.
    pub fn finished(
        &mut self,
        now: Instant,
        buffer: &mut [u8; CHUNK_BYTES],
        mut sink: impl FnMut(&[u8]) -> bool,
    ) -> bool {
        let Some((_, at)) = self.ended else { return false };
        if self.output.is_none() && self.errors.is_none() {
            return true;
        }
        if now < at + DRAIN_GRACE {
            return false;
        }
        while self.errors.is_some() && self.drained < DRAIN_BYTES {
            match self.errors.as_ref().map(|fd| read_some(fd, buffer)) {
                Some(Read::Bytes(count)) => {
                    self.capture.push(&buffer[..count]);
                    self.drained += count;
                }
                Some(Read::End) => self.errors = None,
                _ => break,
            }
        }
        while self.drained < DRAIN_BYTES {
            match self.read_output(buffer) {
                Read::Bytes(count) => {
                    if !sink(&buffer[..count]) {
                        return false;
                    }
                }
                Read::Later | Read::End => break,
            }
        }
        true
    }

    /// The result, and the pipe that a process left behind may still hold.
    pub fn result(self) -> (Reply, Option<OwnedFd>) {
        let exit = self.ended.map_or(Exit::Signal(9), |(exit, _)| exit);
        let (total_bytes, head_bytes, kept) = self.capture.finish();
        let ended = self.ended.map_or_else(Instant::now, |(_, at)| at);
        let duration = ended.saturating_duration_since(self.started);
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        (Reply::Outcome(Outcome { exit, total_bytes, head_bytes, duration_ms }, kept), self.output)
    }
}
