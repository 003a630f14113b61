//! A command whose outputs are read as they come, each for itself, and that is spoken to while it runs.

use std::time::Duration;

use bytes::Bytes;
use orchestra_init::{CHUNK_BYTES, Reply, Request};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};

use super::client::{self, Connection};
use super::{Exit, SandboxError};

/// Pieces of output that wait for the reader; beyond them the command waits.
const OUTPUT_CHUNKS: usize = 8;
/// Pieces of input that wait to be sent; beyond them whoever writes waits.
pub const INPUT_CHUNKS: usize = 8;

/// A piece of what a command says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// On standard output, or on the terminal.
    Output(Bytes),
    /// On standard error.
    Errors(Bytes),
}

/// A running command: what it says, and the way to its input.
#[derive(Debug)]
pub struct StreamedExec {
    id: String,
    pieces: mpsc::Receiver<Piece>,
    input: mpsc::Sender<Bytes>,
    outcome: oneshot::Receiver<Result<Exit, SandboxError>>,
}

/// Sends what is to be read by the command for as long as there is something. An end of the channel is not the end of the
/// input: only an empty piece is.
async fn write(mut stream: OwnedWriteHalf, mut input: mpsc::Receiver<Bytes>) {
    'input: while let Some(bytes) = input.recv().await {
        let whole = [&bytes[..]].into_iter().filter(|bytes| bytes.is_empty());
        for chunk in whole.chain(bytes.chunks(CHUNK_BYTES)) {
            if stream.write_all(&Request::Input(chunk.to_vec()).to_frame()).await.is_err() {
                break 'input;
            }
        }
    }
    // Closing this half would look like the end of the connection, and kill the command.
    std::future::pending().await
}

impl StreamedExec {
    /// Follows a connection on which such a command was asked for.
    pub(super) fn follow(
        connection: Connection,
        id: String,
        limit: Duration,
        lost: impl FnOnce(String) -> SandboxError + Send + 'static,
    ) -> Self {
        let (send_piece, pieces) = mpsc::channel(OUTPUT_CHUNKS);
        let (input, receive_input) = mpsc::channel(INPUT_CHUNKS);
        let (send_outcome, outcome) = oneshot::channel();
        tokio::spawn(async move {
            let (mut replies, requests) = connection.into_stream().into_split();
            let read = async {
                loop {
                    let piece = match client::receive(&mut replies).await {
                        Ok(Reply::Output(bytes)) => Piece::Output(bytes.into()),
                        Ok(Reply::Errors(bytes)) => Piece::Errors(bytes.into()),
                        Ok(Reply::Outcome(outcome, words)) => {
                            // Why it could not be started; a command that ran has said all it had to say.
                            if !words.is_empty() {
                                let _ = send_piece.send(Piece::Errors(words.into())).await;
                            }
                            return Ok(client::exit(outcome.exit));
                        }
                        Ok(Reply::Refused(refused)) => return Err(refused.message),
                        Ok(Reply::Done(_) | Reply::Pong(_) | Reply::Running(_)) => {
                            return Err("it answered something else".to_owned());
                        }
                        Err(_) => return Ok(Exit::Lost),
                    };
                    if send_piece.send(piece).await.is_err() {
                        return Ok(Exit::Lost);
                    }
                }
            };
            let ended = tokio::select! {
                ended = tokio::time::timeout(limit, read) => {
                    ended.unwrap_or_else(|_| Err("no result long after its time limit".to_owned()))
                }
                // Nobody listens any more, also to a command that says nothing; closing the connection ends it.
                () = send_piece.closed() => Ok(Exit::Lost),
                () = write(requests, receive_input) => Ok(Exit::Lost),
            };
            let _ = send_outcome.send(ended.map_err(lost));
        });
        Self { id, pieces, input, outcome }
    }

    /// The id under which it is killed, signalled and resized.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The way to its input; an empty piece ends it.
    pub fn input(&self) -> mpsc::Sender<Bytes> {
        self.input.clone()
    }

    /// What it says next; `None` when it has said everything.
    pub async fn next(&mut self) -> Option<Piece> {
        self.pieces.recv().await
    }

    /// How it ended. What was not read of its output is thrown away first.
    ///
    /// # Errors
    /// When the sandbox refused the command or does not answer.
    pub async fn finish(mut self) -> Result<Exit, SandboxError> {
        while self.pieces.recv().await.is_some() {}
        self.outcome.await.unwrap_or(Ok(Exit::Lost))
    }
}
