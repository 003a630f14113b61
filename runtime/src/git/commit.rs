//! Makes the one commit that is pushed, and shows what is in it.

use std::path::Path;

use git2::{DiffFormat, DiffOptions, Repository};
use orchestra_events::CommitId;

use super::error::{GitError, Operation};
use super::pool::Ticket;
use super::{Diff, Signature, commit_id};

/// Files larger than this are shown as binary: their diff would not be read, and computing it costs memory.
const MAX_DIFFED_FILE_BYTES: i64 = 4 * 1024 * 1024;

fn git(operation: Operation) -> impl Fn(git2::Error) -> GitError {
    move |error| GitError::Git { operation, detail: error.message().to_owned() }
}

/// One commit on the base with the given tree. Its time is UTC and it holds nothing else that varies, so that the
/// same inputs give the same id and a repeated push finds its commit already there.
pub(super) fn commit(
    repo: &Path,
    base: git2::Oid,
    tree: git2::Oid,
    signature: &Signature,
    message: &str,
    time: jiff::Timestamp,
) -> Result<CommitId, GitError> {
    let failed = git(Operation::Commit);
    let repo = Repository::open_bare(repo).map_err(&failed)?;
    let parent = repo.find_commit(base).map_err(&failed)?;
    if parent.tree_id() == tree {
        return Err(GitError::NothingToPush);
    }
    let tree = repo.find_tree(tree).map_err(&failed)?;
    let time = git2::Time::new(time.as_second(), 0);
    let who = git2::Signature::new(
        &one_line(&signature.name, "Orchestra"),
        &one_line(&signature.email, "orchestra@localhost"),
        &time,
    )
    .map_err(&failed)?;
    let message = git2::message_prettify(message.replace('\0', ""), None).map_err(&failed)?;
    let id = repo.commit(None, &who, &who, &message, &tree, &[&parent]).map_err(&failed)?;
    Ok(commit_id(id))
}

/// Git's commit header has no quoting: what would end a name early is left out.
fn one_line(text: &str, otherwise: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control() && !matches!(c, '<' | '>')).collect();
    let text = text.trim();
    if text.is_empty() { otherwise.to_owned() } else { text.to_owned() }
}

/// The unified diff, cut at `max_bytes`; the counts are of the whole.
pub(super) fn diff(
    repo: &Path,
    base: git2::Oid,
    tip: git2::Oid,
    max_bytes: usize,
    ticket: &Ticket,
) -> Result<Diff, GitError> {
    let failed = git(Operation::Diff);
    let repo = Repository::open_bare(repo).map_err(&failed)?;
    let tree = |id| repo.find_commit(id).and_then(|commit| commit.tree());
    let (old, new) = (tree(base).map_err(&failed)?, tree(tip).map_err(&failed)?);
    let mut options = DiffOptions::new();
    options.max_size(MAX_DIFFED_FILE_BYTES).context_lines(3);
    let changes = repo.diff_tree_to_tree(Some(&old), Some(&new), Some(&mut options)).map_err(&failed)?;
    let mut diff =
        Diff { text: Vec::new(), files: changes.deltas().len() as u64, insertions: 0, deletions: 0, truncated: false };
    let printed = changes.print(DiffFormat::Patch, |_, _, line| {
        let origin = line.origin();
        match origin {
            '+' => diff.insertions += 1,
            '-' => diff.deletions += 1,
            _ => {}
        }
        let mark = matches!(origin, '+' | '-' | ' ').then_some(origin as u8);
        let content = line.content();
        if diff.truncated || diff.text.len() + content.len() + 1 > max_bytes {
            // Cut between lines, so that what is kept is still a readable diff.
            diff.truncated = true;
        } else {
            diff.text.extend(mark);
            diff.text.extend_from_slice(content);
        }
        !ticket.expired()
    });
    match printed {
        Ok(()) => Ok(diff),
        Err(_) if ticket.expired() => Err(ticket.exceeded(Operation::Diff)),
        Err(error) => Err(failed(error)),
    }
}
