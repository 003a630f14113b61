//! What can go wrong with a sandbox, each told so that a person knows what to do next.

use std::io;

use orchestra_events::{Failure, FailureCode, SandboxId};

use crate::image::ImageError;

/// Why a sandbox did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The image is missing or damaged.
    #[error("the sandbox's image cannot be used: {0}")]
    Image(#[from] ImageError),
    /// The container did not come up.
    #[error("sandbox {id} did not start: {detail}")]
    StartFailed {
        /// Which one.
        id: SandboxId,
        /// The cause, as the kernel or the container library put it.
        detail: String,
    },
    /// The host's disk, or the sandbox's, is full.
    #[error("there is no disk space left for sandbox {0}")]
    DiskFull(SandboxId),
    /// The whole sandbox died for memory.
    #[error("sandbox {0} ran out of memory and was stopped")]
    OutOfMemory(SandboxId),
    /// The wall-clock limit passed.
    #[error("sandbox {0} reached its time limit and was stopped")]
    TimedOut(SandboxId),
    /// It does not run any more.
    #[error("sandbox {0} does not run any more")]
    Gone(SandboxId),
    /// Its first process does not answer.
    #[error("sandbox {id} does not answer: {detail}")]
    Unresponsive {
        /// Which one.
        id: SandboxId,
        /// What was waited for.
        detail: String,
    },
    /// Its first process said no.
    #[error("sandbox {id} refused the command: {detail}")]
    Refused {
        /// Which one.
        id: SandboxId,
        /// Its reason.
        detail: String,
    },
    /// Something of it could not be removed.
    #[error("sandbox {id} was not removed completely: {detail}")]
    NotRemoved {
        /// Which one.
        id: SandboxId,
        /// What is left, and why.
        detail: String,
    },
    /// The host did not do what was asked of it.
    #[error("{doing}: {source}")]
    Host {
        /// What was being done, and to what.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl SandboxError {
    /// An error of the host while doing something.
    pub(crate) fn host(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Host { doing, source }
    }

    /// The failure that a user meets.
    pub fn failure(&self) -> Failure {
        let message = format!("{self}.");
        match self {
            Self::Image(error) if error.is_passing() => Failure::new(FailureCode::SandboxStartFailed, message)
                .with_hint(
                    "The registry is asked again when the step is; `orchestra image pull` on the server shows more.",
                ),
            Self::Image(_) => Failure::new(FailureCode::SandboxStartFailed, message)
                .with_hint("Run `orchestra image list` on the server, and build or pull the image that is named.")
                .with_retryable(false),
            Self::StartFailed { .. } => Failure::new(FailureCode::SandboxStartFailed, message),
            Self::Host { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Failure::new(FailureCode::SandboxDiskFull, message)
            }
            Self::Host { .. } => Failure::new(FailureCode::SandboxStartFailed, message),
            Self::DiskFull(_) => Failure::new(FailureCode::SandboxDiskFull, message),
            Self::OutOfMemory(_) => Failure::new(FailureCode::SandboxOutOfMemory, message),
            Self::TimedOut(_) => Failure::new(FailureCode::SandboxTimeout, message),
            Self::Gone(_) | Self::Unresponsive { .. } | Self::Refused { .. } | Self::NotRemoved { .. } => {
                Failure::new(FailureCode::Internal, message)
            }
        }
    }
}
