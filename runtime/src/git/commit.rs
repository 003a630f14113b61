//! Makes the commits that are pushed, and shows what is in them.
//!
//! The host writes every commit itself: of the sandbox's only the trees, the order and the words of the messages count.
//! Signatures, encodings and whatever else stands in their headers are left behind.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use git2::{DiffFormat, DiffOptions, Repository};
use orchestra_events::CommitId;

use super::error::{GitError, Operation};
use super::import::History;
use super::import::history::{self, Broken};
use super::message::{clean, one_line, with_trailers};
use super::pool::Ticket;
use super::script::LEFTOVER;
use super::{Diff, Signature, commit_id};

/// Files larger than this are shown as binary: their diff would not be read, and computing it costs memory.
const MAX_DIFFED_FILE_BYTES: i64 = 4 * 1024 * 1024;

fn git(operation: Operation) -> impl Fn(git2::Error) -> GitError {
    move |error| GitError::Git { operation, detail: error.message().to_owned() }
}

/// How the commits that are pushed are made.
#[derive(Debug, Clone)]
pub struct CommitPolicy {
    /// The sandbox's commits made anew, or one of the final tree.
    pub mode: History,
    /// Who the commits are by.
    pub author: Signature,
    /// Who made them: some forges take only commits of whoever pushes.
    pub committer: Signature,
    /// Named in a `Co-authored-by` line each.
    pub co_authors: Vec<Signature>,
    /// Lines at the end of every message, such as `Orchestra-Task: task_…`.
    pub trailers: Vec<(String, String)>,
    /// The message of the one commit, of what the agent left uncommitted, and of a commit whose own says nothing.
    pub message: String,
    /// The time of all of them, in UTC. It comes with the call, so that a repeat gives the same ids.
    pub time: jiff::Timestamp,
}

pub(super) struct Request {
    pub(super) repo: PathBuf,
    pub(super) base: git2::Oid,
    pub(super) tip: git2::Oid,
    pub(super) tree: git2::Oid,
    pub(super) checked: History,
    pub(super) policy: CommitPolicy,
}

/// Makes the commits. Their time is UTC and they hold nothing else that varies, so that the same inputs give the same
/// ids and a repeated push finds its commits already there.
pub(super) fn run(request: &Request, ticket: &Ticket) -> Result<Vec<CommitId>, GitError> {
    let made = make_anew(request, ticket)?;
    keep(&request.repo.join("objects")).map_err(|error| {
        let detail = format!("the disk did not take the commits: {error}");
        GitError::Git { operation: Operation::Commit, detail }
    })?;
    Ok(made)
}

/// Waits until the disk has every object that is this repository's own. What the log says is committed must be there also when
/// the machine loses power before the push; files with another name elsewhere are the cache's, which looks after them.
fn keep(objects: &Path) -> io::Result<()> {
    for entry in fs::read_dir(objects)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            keep(&entry.path())?;
        } else if kind.is_file() && entry.metadata()?.nlink() == 1 {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(objects)?.sync_all()
}

fn make_anew(request: &Request, ticket: &Ticket) -> Result<Vec<CommitId>, GitError> {
    let failed = git(Operation::Commit);
    let policy = &request.policy;
    let repo = Repository::open_bare(&request.repo).map_err(&failed)?;
    if repo.find_commit(request.base).map_err(&failed)?.tree_id() == request.tree {
        return Err(GitError::NothingToPush);
    }
    let time = git2::Time::new(policy.time.as_second(), 0);
    let who = |signature: &Signature| {
        let (name, email) = (one_line(&signature.name, "Orchestra"), one_line(&signature.email, "orchestra@localhost"));
        git2::Signature::new(&name, &email, &time).map_err(&failed)
    };
    let (author, committer) = (who(&policy.author)?, who(&policy.committer)?);
    let make = |message: &str, tree: git2::Oid, parents: &[git2::Oid]| {
        if ticket.expired() {
            return Err(ticket.exceeded(Operation::Commit));
        }
        let message = with_trailers(&message.replace('\0', ""), &policy.trailers, &policy.co_authors);
        let message = git2::message_prettify(message, None).map_err(&failed)?;
        let tree = repo.find_tree(tree).map_err(&failed)?;
        let parents: Vec<_> =
            parents.iter().map(|id| repo.find_commit(*id)).collect::<Result<_, _>>().map_err(&failed)?;
        let parents: Vec<_> = parents.iter().collect();
        repo.commit(None, &author, &committer, &message, &tree, &parents).map_err(&failed)
    };
    match (policy.mode, request.checked) {
        (History::Squash, _) => {
            let id = make(&policy.message, request.tree, &[request.base])?;
            Ok(vec![commit_id(id)])
        }
        (History::Keep, History::Squash) => Err(GitError::Git {
            operation: Operation::Commit,
            detail: "only the final tree was checked, so the commits below it cannot be kept".to_owned(),
        }),
        (History::Keep, History::Keep) => {
            let order = history::commits(&repo, request.base, request.tip, u32::MAX).map_err(|broken| {
                let detail = match broken {
                    Broken::Missing(error) => error.message().to_owned(),
                    Broken::TooMany | Broken::Foreign | Broken::TooManyParents => "its history has changed".to_owned(),
                };
                GitError::Git { operation: Operation::Commit, detail }
            })?;
            let mut anew = HashMap::from([(request.base, request.base)]);
            let mut made = Vec::with_capacity(order.len());
            for id in order {
                let old = repo.find_commit(id).map_err(&failed)?;
                let mut parents: Vec<git2::Oid> = Vec::with_capacity(old.parent_count());
                for parent in old.parent_ids() {
                    let parent = anew[&parent];
                    if !parents.contains(&parent) {
                        parents.push(parent);
                    }
                }
                let said = clean(old.message_raw_bytes());
                let leftover = id == request.tip && said == LEFTOVER;
                let message = if leftover || said.is_empty() { &policy.message } else { &said };
                let new = make(message, old.tree_id(), &parents)?;
                anew.insert(id, new);
                made.push(commit_id(new));
            }
            Ok(made)
        }
    }
}

/// What commits of ours say; the host wrote every one of them.
pub(super) fn messages(repo: &Path, commits: &[git2::Oid]) -> Result<Vec<String>, GitError> {
    let failed = git(Operation::Commit);
    let repo = Repository::open_bare(repo).map_err(&failed)?;
    let message = |id: &git2::Oid| {
        repo.find_commit(*id).map(|commit| String::from_utf8_lossy(commit.message_bytes()).into_owned())
    };
    commits.iter().map(message).collect::<Result<_, _>>().map_err(&failed)
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
