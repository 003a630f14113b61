//! What can go wrong with an image.

use std::io;
use std::path::{Path, PathBuf};

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
    #[error("{reference} cannot be pulled: {detail}")]
    Pull {
        /// What was asked for.
        reference: String,
        /// Why not.
        detail: String,
    },
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

impl ImageError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
