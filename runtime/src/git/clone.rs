//! Fetches one branch of a repository into a bare repository that only the host can see.

use std::path::{Path, PathBuf};

use git2::{Repository, RepositoryInitOptions};
use orchestra_events::CommitId;
use secrecy::SecretString;

use super::error::{GitError, Operation};
use super::pool::Ticket;
use super::transport::{Session, check_remote};
use super::{Cloned, Remote, RemoteKind, commit_id, history};

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
    reachable(&request.remote)?;
    let partial = Partial::beside(&request.into)?;
    let internal = |error: git2::Error| GitError::Git { operation: OPERATION, detail: error.message().to_owned() };
    let source = Source {
        remote: &request.remote,
        token: request.token.as_ref(),
        base: request.base.as_deref(),
        depth: request.depth,
        max_bytes: request.max_bytes,
    };
    let cloned = fetch(&init_bare(&partial.0).map_err(internal)?, &source, ticket)?.cloned();
    // From here on the caller waits; before, a late thread must not replace what a retry has made.
    if !ticket.claim() {
        return Err(ticket.exceeded(OPERATION));
    }
    let disk = |error: std::io::Error| GitError::io(OPERATION, "putting the clone in place", &error);
    remove(&request.into).map_err(disk)?;
    std::fs::rename(&partial.0, &request.into).map_err(disk)?;
    Ok(cloned)
}

/// Refuses an address that cannot be used before anything is asked of it.
pub(super) fn reachable(remote: &Remote) -> Result<(), GitError> {
    check_remote(remote)?;
    if remote.kind == RemoteKind::Local && !Path::new(&remote.url).is_dir() {
        return Err(GitError::RepoNotFound { repo: remote.url.clone(), forge: None });
    }
    Ok(())
}

/// A clone under construction; it is removed unless it was moved into its place.
pub(super) struct Partial(pub PathBuf);

impl Partial {
    pub(super) fn beside(into: &Path) -> Result<Self, GitError> {
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

pub(super) fn remove(path: &Path) -> std::io::Result<()> {
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

/// What a forge advertises to whoever holds this token, now.
pub(super) struct Listing {
    pub default_branch: String,
    pub base: String,
    pub tip: git2::Oid,
    /// Branches, in the forge's order.
    pub heads: Vec<String>,
}

impl Listing {
    pub(super) fn cloned(&self) -> Cloned {
        let commit: CommitId = commit_id(self.tip);
        Cloned { default_branch: self.default_branch.clone(), base: self.base.clone(), commit }
    }
}

/// Reads the listing off a remote that is connected. The base has to be in it.
pub(super) fn listing(
    remote: &git2::Remote<'_>,
    session: &Session<'_>,
    repo: &str,
    base: Option<&str>,
) -> Result<Listing, GitError> {
    let heads: Vec<(String, git2::Oid)> = remote
        .list()
        .map_err(|error| session.classify(&error))?
        .iter()
        // The forge is not trusted with names either: what is no branch name cannot be the base.
        .filter(|head| git2::Reference::is_valid_name(head.name()))
        .filter_map(|head| Some((head.name().strip_prefix("refs/heads/")?.to_owned(), head.oid())))
        .collect();
    if heads.is_empty() {
        return Err(GitError::EmptyRepository { repo: repo.to_owned() });
    }
    let has = |name: &str| heads.iter().any(|(head, _)| head == name);
    let default_branch = remote
        .default_branch()
        .ok()
        .and_then(|name| name.as_str().ok().and_then(|name| name.strip_prefix("refs/heads/").map(str::to_owned)))
        .filter(|name| has(name))
        // A HEAD that names no branch: what most repositories would have called it.
        .or_else(|| ["main", "master"].into_iter().find(|name| has(name)).map(str::to_owned))
        .or_else(|| base.map(str::to_owned).filter(|name| has(name)))
        .unwrap_or_else(|| heads[0].0.clone());
    let base = base.map_or_else(|| default_branch.clone(), str::to_owned);
    let Some(&(_, tip)) = heads.iter().find(|(name, _)| *name == base) else {
        return Err(GitError::BaseNotFound { repo: repo.to_owned(), base });
    };
    let heads = heads.into_iter().map(|(name, _)| name).collect();
    Ok(Listing { default_branch, base, tip, heads })
}

/// Where a fetch comes from, and how much of it.
pub(super) struct Source<'a> {
    pub remote: &'a Remote,
    pub token: Option<&'a SecretString>,
    pub base: Option<&'a str>,
    /// Commits of history over HTTP; `None` is all. A local repository always comes whole: libgit2 cannot shorten it.
    pub depth: Option<u32>,
    pub max_bytes: u64,
}

/// Fetches one branch into `repo`, whose `HEAD` it becomes. What `repo` has of it already is not sent again.
pub(super) fn fetch(repo: &Repository, source: &Source<'_>, ticket: &Ticket) -> Result<Listing, GitError> {
    let remote_name = &source.remote.url;
    let internal = |error: git2::Error| GitError::Git { operation: OPERATION, detail: error.message().to_owned() };
    let session = Session::new(OPERATION, source.remote, source.token, ticket, source.max_bytes);
    let failed = |error: git2::Error| session.classify(&error);
    let mut remote = repo.remote_anonymous(remote_name).map_err(failed)?;
    session.connect(&mut remote).map_err(failed)?;
    let listing = listing(&remote, &session, remote_name, source.base)?;

    let mut options = session.fetch_options().map_err(failed)?;
    if let (RemoteKind::Http, Some(depth)) = (source.remote.kind, source.depth) {
        options.depth(i32::try_from(depth.max(1)).unwrap_or(i32::MAX));
    }
    let branch = format!("refs/heads/{}", listing.base);
    remote.download(&[format!("+{branch}:{branch}")], Some(&mut options)).map_err(failed)?;
    drop(remote);
    repo.find_commit(listing.tip).map_err(|_| GitError::ConnectionLost {
        operation: OPERATION,
        repo: remote_name.clone(),
        detail: "the base commit did not arrive".to_owned(),
    })?;
    history::mark_ends(repo).map_err(|error| GitError::io(OPERATION, "noting where the history ends", &error))?;
    repo.reference(&branch, listing.tip, true, "fetch").map_err(internal)?;
    repo.set_head(&branch).map_err(internal)?;
    Ok(listing)
}
