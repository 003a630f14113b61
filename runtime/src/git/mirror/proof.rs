//! The proof that a token opens a repository now: its refs, from the forge itself.

use git2::Repository;
use secrecy::SecretString;

use super::super::Remote;
use super::super::clone::{listing, reachable};
use super::super::error::{GitError, Operation};
use super::super::pool::Ticket;
use super::super::transport::Session;
use super::{Access, CacheDir, MAX_HEAD_BYTES, MAX_HEADS};

const OPERATION: Operation = Operation::Clone;

/// What one proof needs.
pub(super) struct Request {
    pub cache: CacheDir,
    pub remote: Remote,
    pub token: Option<SecretString>,
    pub base: Option<String>,
}

pub(super) fn run(request: &Request, ticket: &Ticket) -> Result<Access, GitError> {
    reachable(&request.remote)?;
    let internal = |error: git2::Error| GitError::Git { operation: OPERATION, detail: error.message().to_owned() };
    // An empty repository that has nothing to do with the one that is asked about.
    let scratch = request.cache.scratch().and_then(Repository::open_bare).map_err(internal)?;
    let session = Session::new(OPERATION, &request.remote, request.token.as_ref(), ticket, 0);
    let failed = |error: git2::Error| session.classify(&error);
    let mut remote = scratch.remote_anonymous(&request.remote.url).map_err(failed)?;
    session.connect(&mut remote).map_err(failed)?;
    let listing = listing(&remote, &session, &request.remote.url, request.base.as_deref())?;
    let cloned = listing.cloned();
    let heads = listing.heads.into_iter().filter(|name| name.len() <= MAX_HEAD_BYTES).take(MAX_HEADS).collect();
    Ok(Access { cloned, heads })
}
