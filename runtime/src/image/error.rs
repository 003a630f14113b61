//! What can go wrong with an image.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why an image cannot be used, built or pulled.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not a name.
    #[error("{0:?} is not a name of an image: use lower-case letters, digits, '.', '_' and '-'")]
    Name(String),
    /// There is none.
    #[error("there is no image named {name} in {}", dir.display())]
    Missing {
        /// Its name.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// There is one, but not whole.
    #[error("image {name} is damaged: {detail}")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong.
        detail: String,
    },
    /// A program that builds images failed.
    #[error("{program} failed: {detail}")]
    Program {
        /// Which one.
        program: &'static str,
        /// Its last words.
        detail: String,
    },
    /// A command line agent cannot be put into the image.
    #[error("{agent} cannot be installed: {detail}")]
    Agent {
        /// Which, in which version.
        agent: String,
        /// Why not.
        detail: String,
    },
    /// The registry, or what it sent.
    #[error("{reference} cannot be pulled: {fault}")]
    Pull {
        /// What was asked for.
        reference: String,
        /// Why not.
        fault: PullFault,
    },
    /// An archive of an image.
    #[error("{} cannot be loaded: {fault}", path.display())]
    Load {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        fault: PullFault,
    },
    /// The file of registries' credentials.
    #[error("the registries' credentials in {} cannot be used: {detail}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why not.
        detail: String,
    },
    /// Somebody pulls, builds or removes images at this moment.
    #[error("images are being made in {} at this moment; try again later", .0.display())]
    Busy(PathBuf),
    /// The host's file system.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Why an image did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PullFault {
    /// Not a reference.
    #[error("{0}; write it as registry/name:tag or registry/name@sha256:…")]
    Reference(String),
    /// The registry has none of that name.
    #[error("the registry has no such image, or shows it only to who has logged in")]
    NotFound,
    /// It wants to know who asks, or refuses whom it knows.
    #[error(
        "the registry refuses: it wants a login, or this one may not read the image. Give one with --username, or name a \
             docker config.json in images.docker_config"
    )]
    Unauthorized,
    /// Too many requests.
    #[error("the registry asks for a pause{}", .retry_after.map_or(String::new(), |wait| format!(" of {} s", wait.as_secs())))]
    RateLimited {
        /// How long, if it said so.
        retry_after: Option<Duration>,
    },
    /// An index without an entry for this machine.
    #[error("it is not made for {wanted}, only for {}", if there.is_empty() { "no platform that it names".to_owned() } else { there.join(", ") })]
    NoPlatform {
        /// What this machine is.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// Something is not what it was announced as.
    #[error("{what} is not what it was announced as: {expected} was expected, {found} came")]
    Digest {
        /// What.
        what: &'static str,
        /// Its announced digest.
        expected: String,
        /// That of what came.
        found: String,
    },
    /// The registry does not answer, or breaks off, or has troubles of its own.
    #[error("the registry cannot be reached: {0}")]
    Unreachable(String),
    /// What came is no image that can be used.
    #[error("{0}")]
    Invalid(String),
}

impl PullFault {
    /// Whether the same may work in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Unreachable(_) => true,
            Self::Reference(_)
            | Self::NotFound
            | Self::Unauthorized
            | Self::NoPlatform { .. }
            | Self::Digest { .. }
            | Self::Invalid(_) => false,
        }
    }
}

impl ImageError {
    /// How long the registry asks to wait, if it does.
    pub fn asked_wait(&self) -> Option<Duration> {
        match self {
            Self::Pull { fault: PullFault::RateLimited { retry_after }, .. } => *retry_after,
            Self::Pull { .. }
            | Self::Load { .. }
            | Self::Busy(_)
            | Self::Name(_)
            | Self::Missing { .. }
            | Self::Damaged { .. }
            | Self::Program { .. }
            | Self::Agent { .. }
            | Self::Credentials { .. }
            | Self::Io { .. } => None,
        }
    }

    /// Whether the same may work in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Pull { fault, .. } | Self::Load { fault, .. } => fault.is_passing(),
            Self::Busy(_) => true,
            Self::Name(_)
            | Self::Missing { .. }
            | Self::Damaged { .. }
            | Self::Program { .. }
            | Self::Agent { .. }
            | Self::Credentials { .. }
            | Self::Io { .. } => false,
        }
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
