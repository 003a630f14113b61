//! The commits between the base and a sandbox's tip, in an order in which they can be made anew.

use std::collections::HashSet;

use git2::{Oid, Repository};

/// The most parents of one commit: git's own limit for an octopus merge is lower.
const MAX_PARENTS: usize = 64;

/// Why a history cannot be taken.
#[derive(Debug)]
pub(in crate::git) enum Broken {
    /// More commits than allowed.
    TooMany,
    /// A commit, or one it builds on, does not lead to the base.
    Foreign,
    /// A commit with too many parents.
    TooManyParents,
    /// A commit that is not there, or is none.
    Missing(git2::Error),
}

/// Every commit that `tip` builds on and `base` is not, parents before children; the same history gives the same order.
///
/// All ways back must end at the base: one that goes on to what the base builds on, or to another branch, ends at a
/// root or at the limit.
pub(in crate::git) fn commits(repo: &Repository, base: Oid, tip: Oid, limit: u32) -> Result<Vec<Oid>, Broken> {
    let mut order = Vec::new();
    let mut met = HashSet::from([base]);
    let mut way: Vec<(Oid, Vec<Oid>)> = Vec::new();
    let mut next = Some(tip);
    loop {
        if let Some(id) = next.take().filter(|id| met.insert(*id)) {
            if met.len() > limit as usize + 1 {
                return Err(Broken::TooMany);
            }
            let commit = repo.find_commit(id).map_err(Broken::Missing)?;
            match commit.parent_count() {
                0 => return Err(Broken::Foreign),
                count if count > MAX_PARENTS => return Err(Broken::TooManyParents),
                _ => {}
            }
            // The last is taken first.
            way.push((id, commit.parent_ids().rev().collect()));
        }
        let Some((id, parents)) = way.last_mut() else { return Ok(order) };
        match parents.pop() {
            Some(parent) => next = Some(parent),
            None => {
                order.push(*id);
                way.pop();
            }
        }
    }
}
