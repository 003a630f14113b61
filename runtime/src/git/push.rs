//! Sends one branch to the forge, once: with a lease, without following redirects, reading what the forge says.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use git2::{ErrorClass, ErrorCode, PushOptions, RemoteRedirect, Repository, RepositoryOpenFlags};
use secrecy::SecretString;

use super::error::{GitError, Operation};
use super::pool::Ticket;
use super::refusal::{PushFault, refusal};
use super::transport::{Lease, Session, check_remote};
use super::{Pushed, Remote, RemoteKind, commit_id};

const OPERATION: Operation = Operation::Push;
/// A lock on a reference stands while a few bytes are written. One that has stood for so long has nobody any more.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// The wait before a locked reference is looked at again.
const LOCK_LOOK: Duration = Duration::from_millis(10);

/// What one push needs.
pub(super) struct Request {
    pub repo: PathBuf,
    pub remote: Remote,
    pub token: Option<SecretString>,
    pub branch: String,
    pub commit: git2::Oid,
    /// Where the branch must be; `None`: nowhere.
    pub expected: Option<git2::Oid>,
    /// What is sent besides, where the forge takes it.
    pub options: Vec<String>,
    pub max_bytes: u64,
}

pub(super) fn run(request: &Request, ticket: &Ticket) -> Result<Pushed, GitError> {
    check_remote(&request.remote)?;
    match request.remote.kind {
        RemoteKind::Http => over_http(request, ticket),
        RemoteKind::Local => into_directory(request, ticket),
    }
}

/// libgit2 counts what the forge has by walking back from the base, and stops only at a missing commit when the
/// history was cut too close. Then the rest is fetched, once, and the push is done again. Options that the forge does not
/// take are left out, likewise once.
fn over_http(request: &Request, ticket: &Ticket) -> Result<Pushed, GitError> {
    let repo = Repository::open_bare(&request.repo).map_err(internal)?;
    repo.find_commit(request.commit).map_err(internal)?;
    let mut repo = repo;
    let mut options: &[String] = &request.options;
    // Each of the two remedies is tried once.
    for _ in 0..3 {
        match attempt(&repo, request, options, ticket) {
            Ok(pushed) => return Ok(pushed),
            Err(Attempt::Failed(error)) => return Err(error),
            Err(Attempt::HistoryTooShort) if repo.is_shallow() => {
                complete_history(&repo, request, ticket)?;
                repo = Repository::open_bare(&request.repo).map_err(internal)?;
            }
            Err(Attempt::HistoryTooShort) => break,
            Err(Attempt::OptionsNotTaken) => options = &[],
        }
    }
    Err(GitError::Git { operation: OPERATION, detail: "the history of the base is incomplete".to_owned() })
}

fn internal(error: git2::Error) -> GitError {
    GitError::Git { operation: OPERATION, detail: error.message().to_owned() }
}

/// How one try ended.
enum Attempt {
    HistoryTooShort,
    OptionsNotTaken,
    Failed(GitError),
}

fn complete_history(repo: &Repository, request: &Request, ticket: &Ticket) -> Result<(), GitError> {
    let session = Session::new(OPERATION, &request.remote, request.token.as_ref(), ticket, request.max_bytes);
    let failed = |error: git2::Error| session.classify(&error);
    let base = repo.find_reference("HEAD").map_err(internal)?;
    let base = base.symbolic_target().ok().flatten().unwrap_or("HEAD").to_owned();
    let mut remote = repo.remote_anonymous(&request.remote.url).map_err(failed)?;
    let mut options = session.fetch_options().map_err(failed)?;
    options.depth(i32::MAX);
    remote.download(&[format!("+{base}:{base}")], Some(&mut options)).map_err(failed)
}

/// The listing that decides (already there, taken, or free) and the update travel on one connection; the forge then
/// compares the same old value under its own lock, so nobody's branch is moved.
fn attempt(repo: &Repository, request: &Request, more: &[String], ticket: &Ticket) -> Result<Pushed, Attempt> {
    let session = Session::new(OPERATION, &request.remote, request.token.as_ref(), ticket, request.max_bytes);
    session.expected.set(request.expected);
    let mut remote =
        repo.remote_anonymous(&request.remote.url).map_err(|error| Attempt::Failed(session.classify(&error)))?;
    let mut options = PushOptions::new();
    options.remote_callbacks(session.callbacks()).follow_redirects(RemoteRedirect::None).packbuilder_parallelism(1);
    if let Some(header) = session.header().map_err(|error| Attempt::Failed(session.classify(&error)))? {
        options.custom_headers(&[&header]);
    }
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    if !more.is_empty() {
        options.remote_push_options(&more);
    }
    // What may be replaced is said by the lease, not by what descends from what.
    let force = if request.expected.is_some() { "+" } else { "" };
    let refspec = format!("{force}{}:refs/heads/{}", request.commit, request.branch);
    let pushed = remote.push(&[refspec], Some(&mut options));
    drop(options);
    let branch = request.branch.clone();
    match session.lease.borrow_mut().take() {
        Some(Lease::AlreadyThere) => return Ok(Pushed { already_there: true }),
        Some(Lease::Conflict(found)) => return Err(Attempt::Failed(GitError::Conflict { branch, found })),
        None => {}
    }
    let status = session.ref_status.borrow_mut().take();
    let url = &request.remote.url;
    Err(Attempt::Failed(match (pushed, status) {
        (Ok(()), Some(None)) => return Ok(Pushed { already_there: false }),
        // libgit2 calls a push that was refused for every branch a success.
        (_, Some(Some(status))) => refusal(branch, url, &status, session.forge_text()),
        (Ok(()), None) => GitError::ConnectionLost {
            operation: OPERATION,
            repo: url.clone(),
            detail: "the forge did not confirm the branch".to_owned(),
        },
        (Err(error), None | Some(None)) => match session.classify(&error) {
            _ if error.class() == ErrorClass::Odb && error.code() == ErrorCode::NotFound && repo.is_shallow() => {
                return Err(Attempt::HistoryTooShort);
            }
            // The forge could not store the objects (its own checks, its disk): its sentence says why.
            GitError::ConnectionLost { .. } | GitError::Git { .. } if error.message().contains("unpacking") => {
                refusal(branch, url, "unpacker error", session.forge_text())
            }
            _ if error.message().contains("push-options not supported") => return Err(Attempt::OptionsNotTaken),
            _ if error.code() == ErrorCode::NotFastForward => GitError::Conflict { branch, found: None },
            other => other,
        },
    }))
}

/// A push into a bare repository on this machine: copy the objects, then create the branch, which fails when it
/// exists by then. No hook of that repository runs.
fn into_directory(request: &Request, ticket: &Ticket) -> Result<Pushed, GitError> {
    let branch = request.branch.clone();
    let path = &request.remote.url;
    let repo = Repository::open_bare(&request.repo).map_err(internal)?;
    repo.find_commit(request.commit).map_err(internal)?;
    if !Path::new(path).is_dir() {
        return Err(GitError::RepoNotFound { repo: path.clone(), forge: None });
    }
    let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE;
    let target = Repository::open_ext(path, flags, std::iter::empty::<&str>())
        .map_err(|_| GitError::NotGit { operation: OPERATION, repo: path.clone() })?;
    let name = format!("refs/heads/{branch}");
    let existing = target.refname_to_id(&name).ok();
    if existing == Some(request.commit) {
        return Ok(Pushed { already_there: true });
    }
    if existing != request.expected {
        return Err(GitError::Conflict { branch, found: existing.map(commit_id) });
    }

    let mut walk = repo.revwalk().map_err(internal)?;
    walk.push(request.commit).map_err(internal)?;
    for reference in target.references_glob("refs/heads/*").map_err(internal)?.flatten() {
        if let Some(known) = reference.target().filter(|id| repo.find_commit(*id).is_ok()) {
            walk.hide(known).map_err(internal)?;
        }
    }
    let mut builder = repo.packbuilder().map_err(internal)?;
    builder.set_threads(1);
    builder.insert_walk(&mut walk).map_err(internal)?;
    let odb = target.odb().map_err(internal)?;
    let mut writer = odb.packwriter().map_err(internal)?;
    let mut broken = None;
    let sent = builder.foreach(|chunk| {
        let written = writer.write_all(chunk);
        broken = written.err();
        broken.is_none() && !ticket.expired()
    });
    if ticket.expired() {
        return Err(ticket.exceeded(OPERATION));
    }
    if let Some(error) = broken {
        return Err(GitError::io(OPERATION, "writing into the local forge", &error));
    }
    sent.map_err(internal)?;
    writer.commit().map_err(internal)?;
    if !ticket.claim() {
        return Err(ticket.exceeded(OPERATION));
    }
    let written = past_locks(&target.commondir().join(format!("{name}.lock")), ticket, || match request.expected {
        Some(expected) => target.reference_matching(&name, request.commit, true, expected, "push"),
        None => target.reference(&name, request.commit, false, "push"),
    });
    match written {
        Ok(_) => Ok(Pushed { already_there: false }),
        Err(error) if matches!(error.code(), ErrorCode::Exists | ErrorCode::Modified | ErrorCode::NotFound) => {
            Err(GitError::Conflict { branch, found: None })
        }
        Err(error) if error.code() == ErrorCode::Locked => {
            let fault = PushFault::BranchLocked;
            Err(GitError::Rejected { branch, fault, forge: Some(error.message().to_owned()) })
        }
        Err(_) if name_is_taken(&target, &branch) => Err(GitError::BranchNameTaken { branch, forge: None }),
        Err(error) if matches!(error.class(), ErrorClass::Os | ErrorClass::Filesystem) => {
            let detail = format!("moving the branch {branch:?}: {}", error.message());
            Err(GitError::Io { operation: OPERATION, detail })
        }
        Err(error) => Err(internal(error)),
    }
}

/// Whether another branch's name is a part of this one's, or this one of another's.
fn name_is_taken(target: &Repository, branch: &str) -> bool {
    let mut above = branch.match_indices('/').map(|(end, _)| format!("refs/heads/{}", &branch[..end]));
    let mut beneath = target.references_glob(&format!("refs/heads/{branch}/*")).into_iter().flatten();
    above.any(|name| target.refname_to_id(&name).is_ok()) || beneath.next().is_some()
}

/// Writes a reference, past the lock of a program that died while it had it, as this one does when it is killed there.
fn past_locks<T>(lock: &Path, ticket: &Ticket, write: impl Fn() -> Result<T, git2::Error>) -> Result<T, git2::Error> {
    // Who has it, as far as a file can tell, and since when it is known.
    let mut held: Option<((u64, i64, i64), Instant)> = None;
    loop {
        let error = match write() {
            Err(error) if error.code() == ErrorCode::Locked && !ticket.expired() => error,
            written => return written,
        };
        match std::fs::symlink_metadata(lock).map(|lock| (lock.ino(), lock.mtime(), lock.mtime_nsec())) {
            Ok(holder) => match held {
                Some((known, since)) if known == holder && since.elapsed() >= LOCK_PATIENCE => {
                    tracing::warn!(lock = %lock.display(), "a lock that a program left behind when it died is removed");
                    std::fs::remove_file(lock).map_err(|_| error)?;
                    held = None;
                }
                Some((known, _)) if known == holder => {}
                _ => held = Some((holder, Instant::now())),
            },
            // It has gone meanwhile.
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => held = None,
            Err(_) => return Err(error),
        }
        std::thread::sleep(LOCK_LOOK);
    }
}
