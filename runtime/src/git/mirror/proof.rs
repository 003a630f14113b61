//! The proof that a token opens a repository now: its refs, from the forge itself.

use git2::Repository;
use secrecy::SecretString;

use super::super::clone::{listing, reachable};
use super::super::error::{GitError, Operation};
use super::super::pool::Ticket;
use super::super::transport::Session;
use super::super::{Cloned, Remote};
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
    let heads = kept(listing.heads, &cloned);
    Ok(Access { cloned, heads })
}

/// As many heads as an answer has, in the forge's order; where there are more, the base and the default branch before all
/// others, because what may be worked on is decided by whether they are there.
fn kept(mut heads: Vec<String>, cloned: &Cloned) -> Vec<String> {
    let needed = |name: &String| *name == cloned.base || *name == cloned.default_branch;
    heads.retain(|name| name.len() <= MAX_HEAD_BYTES || needed(name));
    if heads.len() > MAX_HEADS {
        heads.sort_by_key(|name| !needed(name));
        heads.truncate(MAX_HEADS);
    }
    heads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_branches_the_base_and_the_default_one_stay() {
        let commit = "1".repeat(40).try_into().unwrap();
        let cloned = Cloned { default_branch: "trunk".into(), base: "release/9".into(), commit };
        let few: Vec<String> = ["a", "release/9", "trunk", "z"].map(str::to_owned).into();
        assert_eq!(kept(few.clone(), &cloned), few);
        let many: Vec<String> = (0..MAX_HEADS).map(|number| format!("b{number}")).chain(few).collect();
        let kept = kept(many, &cloned);
        assert_eq!(kept.len(), MAX_HEADS);
        assert_eq!(kept[..3], ["release/9", "trunk", "b0"]);
    }
}
