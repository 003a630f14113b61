//! Sends one branch to the forge, once: with a lease, without following redirects, reading what the forge says.

use std::io::Write;
use std::path::{Path, PathBuf};

use git2::{ErrorClass, ErrorCode, PushOptions, RemoteRedirect, Repository, RepositoryOpenFlags};
use secrecy::SecretString;

use super::error::{GitError, Operation};
use super::pool::Ticket;
use super::transport::{Lease, Session, check_remote};
use super::{Pushed, Remote, RemoteKind, commit_id};

const OPERATION: Operation = Operation::Push;

/// What one push needs.
pub(super) struct Request {
    pub repo: PathBuf,
    pub remote: Remote,
    pub token: Option<SecretString>,
    pub branch: String,
    pub commit: git2::Oid,
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
/// history was cut too close. Then the rest is fetched, once, and the push is done again.
fn over_http(request: &Request, ticket: &Ticket) -> Result<Pushed, GitError> {
    let repo = Repository::open_bare(&request.repo).map_err(internal)?;
    repo.find_commit(request.commit).map_err(internal)?;
    match attempt(&repo, request, ticket) {
        Err(Attempt::HistoryTooShort) => {}
        Err(Attempt::Failed(error)) => return Err(error),
        Ok(pushed) => return Ok(pushed),
    }
    complete_history(&repo, request, ticket)?;
    let repo = Repository::open_bare(&request.repo).map_err(internal)?;
    attempt(&repo, request, ticket).map_err(|error| match error {
        Attempt::Failed(error) => error,
        Attempt::HistoryTooShort => {
            GitError::Git { operation: OPERATION, detail: "the history of the base is incomplete".to_owned() }
        }
    })
}

fn internal(error: git2::Error) -> GitError {
    GitError::Git { operation: OPERATION, detail: error.message().to_owned() }
}

/// How one try ended.
enum Attempt {
    HistoryTooShort,
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
fn attempt(repo: &Repository, request: &Request, ticket: &Ticket) -> Result<Pushed, Attempt> {
    let session = Session::new(OPERATION, &request.remote, request.token.as_ref(), ticket, request.max_bytes);
    let mut remote =
        repo.remote_anonymous(&request.remote.url).map_err(|error| Attempt::Failed(session.classify(&error)))?;
    let mut options = PushOptions::new();
    options.remote_callbacks(session.callbacks()).follow_redirects(RemoteRedirect::None).packbuilder_parallelism(1);
    if let Some(header) = session.header().map_err(|error| Attempt::Failed(session.classify(&error)))? {
        options.custom_headers(&[&header]);
    }
    let pushed = remote.push(&[format!("{}:refs/heads/{}", request.commit, request.branch)], Some(&mut options));
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
            _ if error.code() == ErrorCode::NotFastForward => GitError::Conflict { branch, found: None },
            other => other,
        },
    }))
}

/// Which rule refused the branch. `status` is git's own short reason, `forge` the sentences beside it.
fn refusal(branch: String, repo: &str, status: &str, forge: Option<String>) -> GitError {
    let all = format!("{status} {}", forge.as_deref().unwrap_or_default()).to_lowercase();
    let has = |needles: &[&str]| needles.iter().any(|needle| all.contains(needle));
    let forge = Some(match forge {
        Some(text) => format!("{text} ({status})"),
        None => status.to_owned(),
    });
    // Before protection: these texts can name protected things too.
    if all.contains("workflow") && has(&["scope", "permission"]) {
        return GitError::TokenLacksPermission { repo: repo.to_owned(), permission: "workflow".to_owned(), forge };
    }
    if has(&["cannot lock ref", "directory file conflict"]) && has(&["exists; cannot create", "conflict"]) {
        return GitError::BranchNameTaken { branch, forge };
    }
    if has(&["gh013", "repository rule violation", "ruleset"]) {
        return GitError::BranchRule { branch, forge };
    }
    if has(&["gh006", "protected branch", "branch is protected"]) {
        return GitError::BranchProtected { branch, forge };
    }
    if has(&[
        "permission denied to create branch",
        "permission denied to update branch",
        "branch permission",
        "branch restriction",
    ]) {
        return GitError::BranchRule { branch, forge };
    }
    if has(&["non-fast-forward", "fetch first", "stale info", "reference already exists", "incorrect old value"]) {
        return GitError::Conflict { branch, found: None };
    }
    if status.starts_with("failed to update ref") {
        return GitError::BranchNameTaken { branch, forge };
    }
    GitError::Rejected { branch, forge }
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
    if let Ok(existing) = target.refname_to_id(&name) {
        return if existing == request.commit {
            Ok(Pushed { already_there: true })
        } else {
            Err(GitError::Conflict { branch, found: Some(commit_id(existing)) })
        };
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
    match target.reference(&name, request.commit, false, "push") {
        Ok(_) => Ok(Pushed { already_there: false }),
        Err(error) if error.code() == ErrorCode::Exists => Err(GitError::Conflict { branch, found: None }),
        Err(error) if matches!(error.class(), ErrorClass::Reference | ErrorClass::Os | ErrorClass::Filesystem) => {
            Err(GitError::BranchNameTaken { branch, forge: None })
        }
        Err(error) => Err(internal(error)),
    }
}

#[cfg(test)]
mod tests {
    use orchestra_events::FailureCode;

    use super::*;

    #[test]
    fn each_forges_sentence_has_its_code() {
        for (status, text, code) in [
            (
                "protected branch hook declined",
                "error: GH006: Protected branch update failed for refs/heads/x.",
                FailureCode::BranchProtected,
            ),
            (
                "push declined due to repository rule violations",
                "error: GH013: Repository rule violations found for refs/heads/x.",
                FailureCode::BranchPolicy,
            ),
            ("pre-receive hook declined", "error: GH001: Large files detected.", FailureCode::PushRejected),
            (
                "pre-receive hook declined",
                "GitLab: You are not allowed to push code to protected branches on this project.",
                FailureCode::BranchProtected,
            ),
            ("pre-receive hook declined", "Permission denied to create branch x", FailureCode::BranchPolicy),
            (
                "refusing to allow a Personal Access Token to create or update workflow `.github/workflows/a.yml` without `workflow` scope",
                "",
                FailureCode::GitTokenScope,
            ),
            (
                "failed to update ref",
                "error: cannot lock ref 'refs/heads/a/b': 'refs/heads/a' exists; cannot create 'refs/heads/a/b'",
                FailureCode::BranchPolicy,
            ),
            ("non-fast-forward", "", FailureCode::PushConflict),
            ("unpacker error", "fatal: fsck error in packed object", FailureCode::PushRejected),
        ] {
            let error = refusal(
                "x".to_owned(),
                "https://forge.example/a/b.git",
                status,
                Some(text.to_owned()).filter(|text| !text.is_empty()),
            );
            assert_eq!(error.failure().code, code, "{status}: {error}");
            assert!(error.to_string().contains(status) || code == FailureCode::PushConflict, "{error}");
        }
    }
}
