//! The host's end of the socket to a sandbox's first process. Everything that comes from there is hostile.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use orchestra_init::{HEADER_BYTES, MAX_REPLY, Reply, Request, parse_header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::layout::Layout;
use super::{Exit, PipedOutcome, SandboxError};

/// Pieces of a piped command's output that wait for the reader; beyond them the command waits.
const PIPED_CHUNKS: usize = 8;
/// How much longer than a command's own limit the host waits for its result, before it says that the sandbox's first
/// process does not answer. Under a fork bomb on a busy host even a healthy one takes seconds.
pub const ANSWER_GRACE: Duration = Duration::from_secs(30);

/// One request on one connection.
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Connects to the sandbox's first process; refused when it is gone.
    pub async fn open(layout: &Layout) -> io::Result<Self> {
        // Through a descriptor: the path of a socket may be at most 107 bytes long, a directory's is not so limited.
        let dir = File::open(layout.dir())?;
        let stream = UnixStream::connect(format!("/proc/self/fd/{}/init.sock", dir.as_raw_fd())).await?;
        Ok(Self { stream })
    }

    /// Sends a request.
    pub async fn send(&mut self, request: &Request) -> io::Result<()> {
        self.stream.write_all(&request.to_frame()).await
    }

    /// The next reply; an error at the end of the connection.
    pub async fn receive(&mut self) -> io::Result<Reply> {
        receive(&mut self.stream).await
    }

    /// The bare connection.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Sends a request that has one short answer.
    pub async fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        let exchange = async {
            self.send(request).await?;
            self.receive().await
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        tokio::time::timeout(ANSWER_GRACE, exchange).await.map_err(late)?
    }
}

/// The next reply off one half of a connection; an error at its end.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Reply> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let (kind, length) = parse_header(header, MAX_REPLY)?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Reply::parse(kind, &payload)
}

/// The protocol's way of telling an end, in the host's terms.
pub fn exit(exit: orchestra_init::Exit) -> Exit {
    match exit {
        orchestra_init::Exit::Code(code) => Exit::Code(code),
        orchestra_init::Exit::Signal(signal) => Exit::Signal(signal),
        orchestra_init::Exit::TimedOut => Exit::TimedOut,
    }
}

/// The standard output of a piped command, to be read as a stream.
#[derive(Debug)]
pub struct PipedExec {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    outcome: oneshot::Receiver<Result<PipedOutcome, SandboxError>>,
}

impl PipedExec {
    /// Follows a connection on which a piped command was asked for.
    pub fn follow(
        mut connection: Connection,
        limit: Duration,
        lost: impl FnOnce(String) -> SandboxError + Send + 'static,
    ) -> Self {
        let (send_chunk, chunks) = mpsc::channel(PIPED_CHUNKS);
        let (send_outcome, outcome) = oneshot::channel();
        tokio::spawn(async move {
            let stream = async {
                loop {
                    match connection.receive().await {
                        Ok(Reply::Output(bytes)) => {
                            if send_chunk.send(Bytes::from(bytes)).await.is_err() {
                                // The reader is gone; closing the connection ends the command.
                                return Ok(PipedOutcome { exit: Exit::Lost, stderr: Vec::new() });
                            }
                        }
                        Ok(Reply::Outcome(outcome, stderr)) => {
                            return Ok(PipedOutcome { exit: exit(outcome.exit), stderr });
                        }
                        Ok(Reply::Refused(refused)) => return Err(refused.message),
                        Ok(_) => return Err("it answered something else".to_owned()),
                        Err(_) => return Ok(PipedOutcome { exit: Exit::Lost, stderr: Vec::new() }),
                    }
                }
            };
            let ended = tokio::time::timeout(limit, stream).await;
            let ended = ended.unwrap_or_else(|_| Err("no result long after its time limit".to_owned()));
            let _ = send_outcome.send(ended.map_err(lost));
        });
        Self { chunks, current: Bytes::new(), outcome }
    }

    /// Reads what is there, or waits.
    pub(super) fn poll_output(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.chunks.poll_recv(cx)) {
                Some(chunk) => self.current = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current[..count]);
        self.current.advance(count);
        Poll::Ready(Ok(()))
    }

    /// How it ended. What was not read of its output is thrown away first. An output that was read to its end is only
    /// known to be whole when this says that the command succeeded.
    ///
    /// # Errors
    /// When the sandbox refused the command or does not answer.
    pub async fn finish(mut self) -> Result<PipedOutcome, SandboxError> {
        while self.chunks.recv().await.is_some() {}
        let lost = PipedOutcome { exit: Exit::Lost, stderr: Vec::new() };
        self.outcome.await.unwrap_or(Ok(lost))
    }
}
