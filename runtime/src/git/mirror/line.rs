//! One base branch of a mirror: fetched, moved on with the forge, or fetched anew when it did not just move on.

use std::path::Path;

use git2::{Oid, Repository};
use secrecy::SecretString;

use super::super::checkout::{Objects, bring_objects};
use super::super::clone::{Listing, Partial, Source, fetch, init_bare};
use super::super::error::{GitError, Operation};
use super::super::pool::Ticket;
use super::super::{Remote, history};
use super::{MAX_PACKS, REFRESH_DEPTH};

const OPERATION: Operation = Operation::Clone;

/// What one fetch needs.
pub(super) struct Request<'a> {
    pub line: &'a Path,
    pub remote: &'a Remote,
    pub token: Option<&'a SecretString>,
    pub base: &'a str,
    pub depth: Option<u32>,
    pub max_bytes: u64,
}

fn internal(error: git2::Error) -> GitError {
    GitError::Git { operation: OPERATION, detail: error.message().to_owned() }
}

/// Where the line is, if it is there and of use.
pub(super) fn tip(line: &Path, base: &str) -> Option<Oid> {
    let repo = Repository::open_bare(line).ok()?;
    let tip = repo.refname_to_id(&format!("refs/heads/{base}")).ok()?;
    repo.find_commit(tip).ok().map(|commit| commit.id())
}

/// Makes the line as the forge has it now, beside the one that is there.
pub(super) fn updated(request: &Request<'_>, ticket: &Ticket) -> Result<(Partial, Listing), GitError> {
    if let Some(old) = tip(request.line, request.base)
        && packs(request.line) < MAX_PACKS
    {
        match moved_on(request, old, ticket) {
            Ok(Some(updated)) => return Ok(updated),
            Ok(None) => {
                tracing::info!(base = request.base, "the base was moved by force or by much; it is fetched anew")
            }
            // What the forge says is so also for another try. What is wrong with our own files is not there in a new one.
            Err(error @ (GitError::Git { .. } | GitError::Io { .. })) => {
                tracing::warn!(%error, "a mirror's line is of no use; it is fetched anew");
            }
            Err(error) => return Err(error),
        }
    }
    let partial = Partial::beside(request.line)?;
    let listing = fetch(&init_bare(&partial.0).map_err(internal)?, &source(request, request.depth), ticket)?;
    Ok((partial, listing))
}

fn source<'a>(request: &Request<'a>, depth: Option<u32>) -> Source<'a> {
    Source {
        remote: request.remote,
        token: request.token,
        base: Some(request.base),
        depth,
        max_bytes: request.max_bytes,
    }
}

/// The line with what is new. `None` when the commit it had is not behind the one that the forge has now, as far as can be
/// seen: then objects that nobody can reach any more would stay in it.
fn moved_on(request: &Request<'_>, old: Oid, ticket: &Ticket) -> Result<Option<(Partial, Listing)>, GitError> {
    let partial = Partial::beside(request.line)?;
    let repo = init_bare(&partial.0).map_err(internal)?;
    bring_objects(request.line, &partial.0, Objects::Linked, ticket)?;
    let reopened = |repo: Repository| -> Result<Repository, GitError> {
        history::mark_ends(&repo).map_err(|error| GitError::io(OPERATION, "noting where the history ends", &error))?;
        Repository::open_bare(repo.path()).map_err(internal)
    };
    // Twice: the first value has not seen the packs, and the history's end is made of commits that are in them.
    let repo = Repository::open_bare(repo.path()).map_err(internal)?;
    let repo = reopened(repo)?;
    repo.reference(&format!("refs/heads/{}", request.base), old, true, "fetch").map_err(internal)?;
    let depth = request.depth.map(|depth| depth.max(REFRESH_DEPTH));
    let listing = fetch(&repo, &source(request, depth), ticket)?;
    let repo = reopened(repo)?;
    let onward = listing.tip == old || repo.graph_descendant_of(listing.tip, old).map_err(internal)?;
    Ok(onward.then_some((partial, listing)))
}

fn packs(line: &Path) -> usize {
    let entries = std::fs::read_dir(line.join("objects/pack"));
    entries.map_or(0, |entries| {
        entries.flatten().filter(|entry| entry.path().extension().is_some_and(|kind| kind == "pack")).count()
    })
}
