//! The wire between the host and the first process inside a sandbox.
//!
//! The host opens one connection per request on a Unix socket whose listening end the sandbox's init was handed as
//! a file descriptor. A frame is one byte of kind, four bytes of payload length (little endian) and the payload.
//! One connection carries one command, so the socket's own flow control is the back-pressure of that command's
//! output, and a host that restarts simply connects again and asks for the same command by its id.
//!
//! A streamed command or a terminal also reads its input from the connection, as frames that follow the request. What must
//! not wait behind input that nobody reads (a signal, a new window size, a kill) names the command and comes on a
//! connection of its own.
//!
//! Both ends treat the other's frames as hostile: every length is checked against a bound before anything is kept.

#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes before the payload: kind and length.
pub const HEADER_BYTES: usize = 5;
/// Largest request: a command with its standard input (a file to write, a patch to apply).
pub const MAX_REQUEST: usize = 16 * 1024 * 1024;
/// Largest reply: one result with both kept ends of its output, and room for its header.
pub const MAX_REPLY: usize = HEAD_BYTES + TAIL_BYTES + 64 * 1024;
/// Bytes kept from the start of a command's output.
pub const HEAD_BYTES: usize = 64 * 1024;
/// Bytes kept from the end of a command's output.
pub const TAIL_BYTES: usize = 64 * 1024;
/// Largest piece of output in one frame.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Longest id of a command, in bytes.
pub const MAX_ID: usize = 200;
/// Commands that run at once in one sandbox; more are refused, so that init's memory and poll set stay small.
pub const MAX_RUNNING: usize = 32;
/// Finished commands whose results wait to be forgotten; more are refused rather than silently dropped, because a
/// dropped result would let a command run twice.
pub const MAX_KEPT: usize = 256;
/// Live output sent to one watcher of a captured command; what exceeds it is in the kept ends or only counted.
pub const LIVE_BYTES: u64 = 8 * 1024 * 1024;

/// Input of a streamed command or a terminal that waits to be read by it; beyond it nothing more is taken off the
/// connection, which stops whoever writes there.
pub const MAX_INPUT: usize = 256 * 1024;

/// Bytes of a command line in a list.
pub const MAX_SHOWN: usize = 500;

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How the output of a command is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Both outputs merged, both ends kept until forgotten; never runs twice under one id.
    Captured,
    /// Standard output as a stream with back-pressure, nothing kept; dies with its connection.
    Piped,
    /// Both outputs as streams of their own with back-pressure, input off the connection, nothing kept; dies with its
    /// connection.
    Streamed,
    /// A terminal of this size, opened inside: one output, input off the connection; dies with its connection.
    Terminal(Window),
}

impl Mode {
    /// Whether its result is kept until it is forgotten.
    pub const fn is_kept(self) -> bool {
        matches!(self, Self::Captured)
    }

    /// Whether its input comes off the connection.
    pub const fn takes_input(self) -> bool {
        matches!(self, Self::Streamed | Self::Terminal(_))
    }
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    /// The key by which a captured command runs once.
    pub id: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables on top of the sandbox's own.
    pub env: Vec<(String, String)>,
    /// Directory to start in.
    pub cwd: String,
    /// Wall-clock limit in milliseconds, after which the whole session is killed.
    pub timeout_ms: u64,
    /// How its output is treated.
    pub mode: Mode,
}

/// The command that a request is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its id.
    pub id: String,
}

/// A signal for everything in a command's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signalled {
    /// The command's id.
    pub id: String,
    /// The signal's number.
    pub signal: i32,
}

/// A new size for a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// The command's id.
    pub id: String,
    /// How large it is now.
    pub window: Window,
}

/// What the host asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run a command with this standard input, or join it, or hand out its kept result.
    Exec(Exec, Vec<u8>),
    /// Kill a running command.
    Kill(Target),
    /// Free a kept result.
    Forget(Target),
    /// Say how things are.
    Ping,
    /// Input for the command of this connection, at most [`CHUNK_BYTES`]; nothing is its end.
    Input(Vec<u8>),
    /// Send a signal to a running command.
    Signal(Signalled),
    /// Tell a terminal how large it is.
    Resize(Resized),
    /// Say which commands run.
    List,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// Its time was up.
    TimedOut,
}

/// The result of a command, apart from its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// Bytes it wrote in all.
    pub total_bytes: u64,
    /// Of the bytes that follow, how many are the start of the output; the rest are its end.
    pub head_bytes: u64,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
}

/// What init counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Commands running now.
    pub running: u32,
    /// Results waiting to be forgotten.
    pub kept: u32,
    /// Orphans and commands buried so far.
    pub reaped: u64,
    /// The version of Landlock that init and all commands are restricted by; 0 is none.
    #[serde(default)]
    pub landlock: u32,
}

/// A running command, in the eyes of whoever looks after the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its process's number inside.
    pub pid: i32,
    /// How its output is treated.
    pub mode: Mode,
    /// The start of its program and arguments, at most [`MAX_SHOWN`] bytes.
    pub command: String,
    /// How long it has run, in milliseconds.
    pub running_ms: u64,
}

/// Why init refused a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A sentence for a person.
    pub message: String,
}

/// What init answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A piece of output.
    Output(Vec<u8>),
    /// The end of a command, with the kept start and end of its output (for a piped one: of its standard error).
    Outcome(Outcome, Vec<u8>),
    /// Done; whether there was such a command.
    Done(bool),
    /// How things are.
    Pong(Stats),
    /// Not done.
    Refused(Refused),
    /// A piece of what a streamed command says on standard error.
    Errors(Vec<u8>),
    /// Every running command; at most [`MAX_RUNNING`].
    Running(Vec<Listed>),
}

const EXEC: u8 = 1;
const KILL: u8 = 2;
const FORGET: u8 = 3;
const PING: u8 = 4;
const INPUT: u8 = 5;
const SIGNAL: u8 = 6;
const RESIZE: u8 = 7;
const LIST: u8 = 8;
const OUTPUT: u8 = 16;
const OUTCOME: u8 = 17;
const DONE: u8 = 18;
const PONG: u8 = 19;
const REFUSED: u8 = 20;
const ERRORS: u8 = 21;
const RUNNING: u8 = 22;

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed frame: {what}"))
}

fn json<T: DeserializeOwned>(payload: &[u8]) -> io::Result<T> {
    serde_json::from_slice(payload).map_err(|error| broken(&error.to_string()))
}

fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.push(kind);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have string keys and no failing serializers")
}

/// A JSON part with its length before it, and the raw bytes after it.
fn split(payload: &[u8]) -> io::Result<(&[u8], &[u8])> {
    let (length, rest) = payload.split_first_chunk::<4>().ok_or_else(|| broken("no header length"))?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(|| broken("header longer than frame"))
}

fn with_header(kind: u8, header: &[u8], raw: &[u8]) -> Vec<u8> {
    let length = u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes();
    frame(kind, &[&length, header, raw])
}

/// Reads the fixed part of a frame.
///
/// # Errors
/// When the announced payload is longer than `limit`.
pub fn parse_header(header: [u8; HEADER_BYTES], limit: usize) -> io::Result<(u8, usize)> {
    let [kind, a, b, c, d] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > limit { Err(broken("longer than allowed")) } else { Ok((kind, length)) }
}

/// The first whole frame of `buffer` as kind, payload and total length, if it is all there.
///
/// # Errors
/// When the announced payload is longer than `limit`.
pub fn first_frame(buffer: &[u8], limit: usize) -> io::Result<Option<(u8, &[u8], usize)>> {
    let Some((header, rest)) = buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let (kind, length) = parse_header(*header, limit)?;
    Ok(rest.get(..length).map(|payload| (kind, payload, HEADER_BYTES + length)))
}

impl Request {
    /// The frame, header included.
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Exec(exec, stdin) => with_header(EXEC, &encode(exec), stdin),
            Self::Kill(target) => frame(KILL, &[&encode(target)]),
            Self::Forget(target) => frame(FORGET, &[&encode(target)]),
            Self::Ping => frame(PING, &[]),
            Self::Input(bytes) => frame(INPUT, &[bytes]),
            Self::Signal(signalled) => frame(SIGNAL, &[&encode(signalled)]),
            Self::Resize(resized) => frame(RESIZE, &[&encode(resized)]),
            Self::List => frame(LIST, &[]),
        }
    }

    /// Understands a payload.
    ///
    /// # Errors
    /// When it is not what its kind says.
    pub fn parse(kind: u8, payload: &[u8]) -> io::Result<Self> {
        match kind {
            EXEC => {
                let (header, stdin) = split(payload)?;
                Ok(Self::Exec(json(header)?, stdin.to_vec()))
            }
            KILL => Ok(Self::Kill(json(payload)?)),
            FORGET => Ok(Self::Forget(json(payload)?)),
            PING => Ok(Self::Ping),
            INPUT if payload.len() > CHUNK_BYTES => Err(broken("more input than one frame may hold")),
            INPUT => Ok(Self::Input(payload.to_vec())),
            SIGNAL => Ok(Self::Signal(json(payload)?)),
            RESIZE => Ok(Self::Resize(json(payload)?)),
            LIST => Ok(Self::List),
            other => Err(broken(&format!("unknown request {other}"))),
        }
    }
}

impl Reply {
    /// The frame, header included.
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Output(bytes) => frame(OUTPUT, &[bytes]),
            Self::Outcome(outcome, output) => with_header(OUTCOME, &encode(outcome), output),
            Self::Done(found) => frame(DONE, &[&[u8::from(*found)]]),
            Self::Pong(stats) => frame(PONG, &[&encode(stats)]),
            Self::Refused(refused) => frame(REFUSED, &[&encode(refused)]),
            Self::Errors(bytes) => frame(ERRORS, &[bytes]),
            Self::Running(listed) => frame(RUNNING, &[&encode(listed)]),
        }
    }

    /// Understands a payload.
    ///
    /// # Errors
    /// When it is not what its kind says.
    pub fn parse(kind: u8, payload: &[u8]) -> io::Result<Self> {
        match kind {
            OUTPUT => Ok(Self::Output(payload.to_vec())),
            OUTCOME => {
                let (header, output) = split(payload)?;
                let outcome: Outcome = json(header)?;
                let fits = outcome.head_bytes <= output.len() as u64 && output.len() <= HEAD_BYTES + TAIL_BYTES;
                if fits { Ok(Self::Outcome(outcome, output.to_vec())) } else { Err(broken("output longer than kept")) }
            }
            DONE => Ok(Self::Done(payload == [1])),
            PONG => Ok(Self::Pong(json(payload)?)),
            REFUSED => Ok(Self::Refused(json(payload)?)),
            ERRORS => Ok(Self::Errors(payload.to_vec())),
            RUNNING => Ok(Self::Running(json(payload)?)),
            other => Err(broken(&format!("unknown reply {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec() -> Exec {
        Exec {
            id: "call-1".into(),
            argv: vec!["true".into()],
            env: vec![("A".into(), "b".into())],
            cwd: "/workspace".into(),
            timeout_ms: 5,
            mode: Mode::Captured,
        }
    }

    #[test]
    fn requests_and_replies_come_back_as_they_were() {
        let id = || Target { id: "call-1".into() };
        let window = Window { rows: 24, columns: 80 };
        let terminal = Exec { mode: Mode::Terminal(window), ..exec() };
        for request in [
            Request::Exec(exec(), vec![0, 255, 10]),
            Request::Exec(terminal, Vec::new()),
            Request::Kill(id()),
            Request::Forget(id()),
            Request::Ping,
            Request::Input(vec![3]),
            Request::Input(Vec::new()),
            Request::Signal(Signalled { id: "call-1".into(), signal: 2 }),
            Request::Resize(Resized { id: "call-1".into(), window }),
            Request::List,
        ] {
            let bytes = request.to_frame();
            let (kind, payload, used) = first_frame(&bytes, MAX_REQUEST).unwrap().unwrap();
            assert_eq!(used, bytes.len());
            assert_eq!(Request::parse(kind, payload).unwrap(), request);
        }
        let outcome = Outcome { exit: Exit::Signal(9), total_bytes: 4, head_bytes: 2, duration_ms: 1 };
        for reply in [
            Reply::Output(vec![1, 2]),
            Reply::Errors(vec![3, 4]),
            Reply::Running(vec![Listed {
                id: "call-1".into(),
                pid: 7,
                mode: Mode::Streamed,
                command: "true".into(),
                running_ms: 3,
            }]),
            Reply::Outcome(outcome, vec![1, 2, 3]),
            Reply::Done(true),
            Reply::Done(false),
            Reply::Refused(Refused { message: "no".into() }),
        ] {
            let bytes = reply.to_frame();
            let (kind, payload, _) = first_frame(&bytes, MAX_REPLY).unwrap().unwrap();
            assert_eq!(Reply::parse(kind, payload).unwrap(), reply);
        }
    }

    #[test]
    fn a_partial_frame_waits_and_an_oversized_one_is_refused() {
        let bytes = Request::Exec(exec(), Vec::new()).to_frame();
        for cut in 0..bytes.len() {
            assert!(first_frame(&bytes[..cut], MAX_REQUEST).unwrap().is_none(), "{cut}");
        }
        assert!(first_frame(&[OUTPUT, 255, 255, 255, 255], MAX_REPLY).is_err());
    }

    #[test]
    fn lying_lengths_are_refused() {
        assert!(Request::parse(EXEC, &[255, 255, 255, 255, b'{']).is_err());
        assert!(Request::parse(EXEC, &[1]).is_err());
        assert!(Request::parse(INPUT, &vec![0; CHUNK_BYTES + 1]).is_err());
        assert!(Reply::parse(99, &[]).is_err());
        let outcome = Outcome { exit: Exit::Code(0), total_bytes: 9, head_bytes: 9, duration_ms: 1 };
        assert!(Reply::parse(OUTCOME, &with_header(OUTCOME, &encode(&outcome), &[1])[HEADER_BYTES..]).is_err());
    }
}
