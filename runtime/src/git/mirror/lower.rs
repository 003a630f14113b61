//! A commit's files on this host, written once and never changed: many tasks read them through overlays of their own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use git2::Repository;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::super::checkout::{self, Objects, bring_objects};
use super::super::clone::{Partial, init_bare, reachable, remove};
use super::super::error::{GitError, Operation};
use super::super::pool::Ticket;
use super::super::{Cloned, Remote, commit_id, history, oid};
use super::{Lower, Mirror, PARTIAL, census, durable, fresh_name, line, remove_tree, replace};

const OPERATION: Operation = Operation::Clone;

/// What one call needs.
pub(super) struct Request {
    pub mirror: Mirror,
    pub remote: Remote,
    pub token: Option<SecretString>,
    /// What the proof of access has shown.
    pub wanted: Cloned,
    pub depth: Option<u32>,
    pub max_bytes: u64,
    pub owner: (u32, u32),
}

/// What is written down beside a commit's files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Note {
    /// Bytes of files and packs, those included that other directories have links to.
    pub bytes: u64,
    /// Files of the work tree.
    pub files: u64,
}

/// The note beside a commit's files.
pub(super) fn note_of(lower: &Path) -> PathBuf {
    lower.with_extension("json")
}

fn disk(what: &'static str) -> impl Fn(std::io::Error) -> GitError {
    move |error| GitError::io(OPERATION, what, &error)
}

pub(super) fn run(request: &Request, ticket: &Ticket) -> Result<Lower, GitError> {
    reachable(&request.remote)?;
    let mirror = &request.mirror;
    mirror.prepare().map_err(disk("making the mirror's directory"))?;
    let path = mirror.lower(&request.wanted.commit);
    if mirror.has(&request.wanted.commit) {
        return Ok(Lower { cloned: request.wanted.clone(), path, made: false });
    }
    let base = &request.wanted.base;
    let line = mirror.line(base);
    let here = line::tip(&line, base).is_some_and(|tip| commit_id(tip) == request.wanted.commit);
    let (cloned, _turn) = if here {
        (request.wanted.clone(), claim(mirror, ticket)?)
    } else {
        let order = line::Request {
            line: &line,
            remote: &request.remote,
            token: request.token.as_ref(),
            base,
            depth: request.depth,
            max_bytes: request.max_bytes,
        };
        let (partial, listing) = line::updated(&order, ticket)?;
        let turn = claim(mirror, ticket)?;
        durable::mark(&line).and_then(|()| replace(&partial, &line)).map_err(disk("putting the mirror in place"))?;
        (listing.cloned(), turn)
    };
    let path = mirror.lower(&cloned.commit);
    if !mirror.has(&cloned.commit) {
        write(request, &cloned, &line, &path, ticket)?;
    }
    Ok(Lower { cloned, path, made: true })
}

/// Before, a thread that nobody waits for must not replace what a retry has made. From here on it goes to its end, also if its
/// caller goes: then the next one waits for it here.
fn claim(mirror: &Mirror, ticket: &Ticket) -> Result<File, GitError> {
    if !ticket.claim() {
        return Err(ticket.exceeded(OPERATION));
    }
    let turn = File::create(mirror.dir().join("lock")).and_then(|file| file.lock().map(|()| file));
    turn.map_err(disk("waiting for the mirror"))
}

/// A directory under construction; it is removed unless it was moved into its place.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = remove_tree(&self.0);
    }
}

fn write(request: &Request, cloned: &Cloned, line: &Path, path: &Path, ticket: &Ticket) -> Result<(), GitError> {
    let draft = Draft(path.with_file_name(fresh_name(PARTIAL)));
    let order = checkout::Request {
        repo: line.to_owned(),
        commit: oid(OPERATION, &cloned.commit)?,
        workspace: draft.0.clone(),
        owner: request.owner,
        objects: Objects::Linked,
        previous: census::latest_lower(&request.mirror),
        max_bytes: request.max_bytes,
    };
    let written = checkout::run(&order, ticket)?;
    let note = Note { bytes: written.bytes + written.object_bytes, files: written.files };
    let note = serde_json::to_vec(&note).map_err(|error| disk("noting the size")(error.into()))?;
    // One without a note is not whole, whatever left it. But a sandbox from before may still have it mounted.
    if fs::symlink_metadata(path).is_ok() && !request.mirror.may_replace(path) {
        return Err(GitError::Io {
            operation: OPERATION,
            detail: "the commit's files were damaged, and a sandbox still uses them".to_owned(),
        });
    }
    remove_tree(path).map_err(disk("putting the files in place"))?;
    durable::mark(path).and_then(|()| fs::write(note_of(path), note)).map_err(disk("noting the size"))?;
    fs::rename(&draft.0, path).map_err(disk("putting the files in place"))
}

pub(super) fn touch(mirror: &Mirror, base: &str, commit: &orchestra_events::CommitId) {
    let now = SystemTime::now();
    for path in [note_of(&mirror.lower(commit)), mirror.line(base).join("HEAD")] {
        // It only says what goes first when room is needed.
        let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(now));
    }
}

pub(super) fn seed(lower: &Path, into: &Path, cloned: &Cloned, ticket: &Ticket) -> Result<(), GitError> {
    let internal = |error: git2::Error| GitError::Git { operation: OPERATION, detail: error.message().to_owned() };
    let partial = Partial::beside(into)?;
    drop(init_bare(&partial.0).map_err(internal)?);
    // The packs of the commit, not those of the line as it is by now.
    bring_objects(&lower.join(".git"), &partial.0, Objects::Linked, ticket)?;
    let repo = Repository::open_bare(&partial.0).map_err(internal)?;
    let commit = oid(OPERATION, &cloned.commit)?;
    repo.find_commit(commit).map_err(internal)?;
    history::mark_ends(&repo).map_err(disk("noting where the history ends"))?;
    let branch = format!("refs/heads/{}", cloned.base);
    repo.reference(&branch, commit, true, "fetch").map_err(internal)?;
    repo.set_head(&branch).map_err(internal)?;
    drop(repo);
    remove(into).map_err(disk("putting the repository in place"))?;
    fs::rename(&partial.0, into).map_err(disk("putting the repository in place"))
}
