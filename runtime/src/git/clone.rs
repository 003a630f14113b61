//! Fetches one branch of a repository into a bare repository that only the host can see.

use std::path::{Path, PathBuf};

use git2::{Repository, RepositoryInitOptions};
use orchestra_events::CommitId;
use secrecy::SecretString;

use super::error::{GitError, Operation};
use super::pool::Ticket;
use super::transport::{Session, check_remote};
use super::{Cloned, Remote, RemoteKind, commit_id};

const OPERATION: Operation = Operation::Clone;

/// What one clone needs.
pub(super) struct Request {
    pub into: PathBuf,
    pub remote: Remote,
    pub token: Option<SecretString>,
    pub base: Option<String>,
    pub depth: Option<u32>,
    pub max_bytes: u64,
}

pub(super) fn run(request: &Request, ticket: &Ticket) -> Result<Cloned, GitError> {
    check_remote(&request.remote)?;
    if request.remote.kind == RemoteKind::Local && !Path::new(&request.remote.url).is_dir() {
        return Err(GitError::RepoNotFound { repo: request.remote.url.clone(), forge: None });
    }
    let partial = Partial::beside(&request.into)?;
    let cloned = fetch(request, ticket, &partial.0)?;
    // From here on the caller waits; before, a late thread must not replace what a retry has made.
    if !ticket.claim() {
        return Err(ticket.exceeded(OPERATION));
    }
    let disk = |error: std::io::Error| GitError::io(OPERATION, "putting the clone in place", &error);
    remove(&request.into).map_err(disk)?;
    std::fs::rename(&partial.0, &request.into).map_err(disk)?;
    Ok(cloned)
}

/// A clone under construction; it is removed unless it was moved into its place.
struct Partial(PathBuf);

impl Partial {
    fn beside(into: &Path) -> Result<Self, GitError> {
        let disk = |error: std::io::Error| GitError::io(OPERATION, "making the clone's directory", &error);
        let parent =
            into.parent().ok_or(GitError::Io { operation: OPERATION, detail: "no parent directory".into() })?;
        std::fs::create_dir_all(parent).map_err(disk)?;
        let name = into.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A process that was killed leaves its partial clone; the next attempt takes it away.
        let prefix = format!(".{name}.partial-");
        for entry in std::fs::read_dir(parent).map_err(disk)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = remove(&entry.path());
            }
        }
        Ok(Self(parent.join(format!("{prefix}{}", uuid::Uuid::now_v7().simple()))))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = remove(&self.0);
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A bare repository with nothing from templates, and with redirects refused also where libgit2 offers no option.
pub(super) fn init_bare(path: &Path) -> Result<Repository, git2::Error> {
    let mut options = RepositoryInitOptions::new();
    options.bare(true).mkdir(true).mkpath(true).external_template(false).no_reinit(true);
    let repo = Repository::init_opts(path, &options)?;
    repo.config()?.set_str("http.followRedirects", "false")?;
    Ok(repo)
}

fn fetch(request: &Request, ticket: &Ticket, path: &Path) -> Result<Cloned, GitError> {
    let remote_name = &request.remote.url;
    let internal = |error: git2::Error| GitError::Git { operation: OPERATION, detail: error.message().to_owned() };
    let repo = init_bare(path).map_err(internal)?;
    let session = Session::new(OPERATION, &request.remote, request.token.as_ref(), ticket, request.max_bytes);
    let failed = |error: git2::Error| session.classify(&error);
    let mut remote = repo.remote_anonymous(remote_name).map_err(failed)?;
    session.connect(&mut remote).map_err(failed)?;

    let heads: Vec<(String, git2::Oid)> = remote
        .list()
        .map_err(failed)?
        .iter()
        // The forge is not trusted with names either: what is no branch name cannot be the base.
        .filter(|head| git2::Reference::is_valid_name(head.name()))
        .filter_map(|head| Some((head.name().strip_prefix("refs/heads/")?.to_owned(), head.oid())))
        .collect();
    if heads.is_empty() {
        return Err(GitError::EmptyRepository { repo: remote_name.clone() });
    }
    let has = |name: &str| heads.iter().any(|(head, _)| head == name);
    let default_branch = remote
        .default_branch()
        .ok()
        .and_then(|name| name.as_str().ok().and_then(|name| name.strip_prefix("refs/heads/").map(str::to_owned)))
        .filter(|name| has(name))
        // A HEAD that names no branch: what most repositories would have called it.
        .or_else(|| ["main", "master"].into_iter().find(|name| has(name)).map(str::to_owned))
        .or_else(|| request.base.clone().filter(|name| has(name)))
        .unwrap_or_else(|| heads[0].0.clone());
    let base = request.base.clone().unwrap_or_else(|| default_branch.clone());
    let Some(&(_, tip)) = heads.iter().find(|(name, _)| *name == base) else {
        return Err(GitError::BaseNotFound { repo: remote_name.clone(), base });
    };

    let mut options = session.fetch_options().map_err(failed)?;
    if let (RemoteKind::Http, Some(depth)) = (request.remote.kind, request.depth) {
        options.depth(i32::try_from(depth).unwrap_or(i32::MAX));
    }
    let branch = format!("refs/heads/{base}");
    remote.download(&[format!("+{branch}:{branch}")], Some(&mut options)).map_err(failed)?;
    drop(remote);
    repo.find_commit(tip).map_err(|_| GitError::ConnectionLost {
        operation: OPERATION,
        repo: remote_name.clone(),
        detail: "the base commit did not arrive".to_owned(),
    })?;
    repo.reference(&branch, tip, true, "fetch").map_err(internal)?;
    repo.set_head(&branch).map_err(internal)?;
    let commit: CommitId = commit_id(tip);
    Ok(Cloned { default_branch, base, commit })
}
