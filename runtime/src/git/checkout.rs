//! Writes a commit's files and a throw-away `.git` into a directory that will belong to a sandbox.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use git2::build::CheckoutBuilder;
use git2::{Repository, RepositoryInitOptions};

use super::error::{GitError, Operation};
use super::pool::Ticket;
use super::{CheckoutStats, WORK_BRANCH};

const OPERATION: Operation = Operation::Checkout;

/// What one checkout needs.
pub(super) struct Request {
    pub repo: PathBuf,
    pub commit: git2::Oid,
    pub workspace: PathBuf,
    pub owner: (u32, u32),
}

fn disk(what: &'static str) -> impl Fn(std::io::Error) -> GitError {
    move |error| GitError::io(OPERATION, what, &error)
}

/// The workspace is trusted until the sandbox starts, so plain paths are safe here and nowhere later.
pub(super) fn run(request: &Request, ticket: &Ticket) -> Result<CheckoutStats, GitError> {
    let git = |error: git2::Error| {
        if ticket.expired() {
            ticket.exceeded(OPERATION)
        } else {
            GitError::Git { operation: OPERATION, detail: error.message().to_owned() }
        }
    };
    let source = Repository::open_bare(&request.repo).map_err(git)?;
    source.find_commit(request.commit).map_err(git)?;
    empty(&request.workspace)?;

    let mut options = RepositoryInitOptions::new();
    options.external_template(false).mkdir(true).initial_head(WORK_BRANCH).no_reinit(true);
    let work = Repository::init_opts(&request.workspace, &options).map_err(git)?;
    let copied = copy_objects(source.path(), work.path(), ticket)?;
    // The copied packs were not there when the object database was opened.
    work.odb().and_then(|odb| odb.refresh()).map_err(git)?;
    let mut config = work.config().map_err(git)?;
    // Owner, inode and device differ inside the sandbox; with these, `git status` does not read every file again.
    config.set_str("core.checkStat", "minimal").map_err(git)?;
    config.set_bool("core.trustctime", false).map_err(git)?;
    config.set_i32("gc.auto", 0).map_err(git)?;
    drop(config);
    let work = Repository::open(&request.workspace).map_err(git)?;
    work.reference(&format!("refs/heads/{WORK_BRANCH}"), request.commit, true, "checkout").map_err(git)?;
    let tree = work.find_commit(request.commit).and_then(|commit| commit.tree()).map_err(git)?;
    let mut checkout = CheckoutBuilder::new();
    checkout.force().notify_on(git2::CheckoutNotificationType::all()).notify(|_, _, _, _, _| !ticket.expired());
    work.checkout_tree(tree.as_object(), Some(&mut checkout)).map_err(git)?;
    work.set_head(&format!("refs/heads/{WORK_BRANCH}")).map_err(git)?;
    drop(tree);
    drop(work);
    let mut stats = CheckoutStats { files: 0, bytes: 0, object_bytes: copied };
    hand_over(&request.workspace, request.owner, &mut stats, ticket)?;
    Ok(stats)
}

/// Makes the workspace an empty directory: what an earlier, interrupted checkout left goes.
fn empty(workspace: &Path) -> Result<(), GitError> {
    fs::create_dir_all(workspace).map_err(disk("making the workspace"))?;
    for entry in fs::read_dir(workspace).map_err(disk("reading the workspace"))? {
        let entry = entry.map_err(disk("reading the workspace"))?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let path = entry.path();
        let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.map_err(disk("emptying the workspace"))?;
    }
    Ok(())
}

/// Copies, never links: a hard link would let the sandbox change the trusted repository's bytes.
fn copy_objects(from: &Path, to: &Path, ticket: &Ticket) -> Result<u64, GitError> {
    let mut copied = 0;
    let mut pending = vec![PathBuf::from("objects")];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(from.join(&folder)).map_err(disk("reading the objects"))? {
            if ticket.expired() {
                return Err(ticket.exceeded(OPERATION));
            }
            let entry = entry.map_err(disk("reading the objects"))?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type().map_err(disk("reading the objects"))?;
            // `objects/info` can hold alternates: paths of the host that mean nothing inside.
            if kind.is_dir() && entry.file_name() != "info" {
                fs::create_dir_all(to.join(&path)).map_err(disk("copying the objects"))?;
                pending.push(path);
            } else if kind.is_file() {
                copied += fs::copy(from.join(&path), to.join(&path)).map_err(disk("copying the objects"))?;
            }
        }
    }
    if from.join("shallow").is_file() {
        fs::copy(from.join("shallow"), to.join("shallow")).map_err(disk("copying the history's end"))?;
    }
    Ok(copied)
}

/// Gives everything to the sandbox's user. Links are changed themselves, never what they point at.
fn hand_over(root: &Path, (uid, gid): (u32, u32), stats: &mut CheckoutStats, ticket: &Ticket) -> Result<(), GitError> {
    let what = "giving the workspace to the sandbox's user";
    let own = |path: &Path, meta: &fs::Metadata| -> Result<(), GitError> {
        if (meta.uid(), meta.gid()) == (uid, gid) {
            return Ok(());
        }
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(disk(what))
    };
    let mut pending = vec![(root.to_path_buf(), false)];
    while let Some((folder, internal)) = pending.pop() {
        let meta = fs::symlink_metadata(&folder).map_err(disk(what))?;
        own(&folder, &meta)?;
        for entry in fs::read_dir(&folder).map_err(disk(what))? {
            if ticket.expired() {
                return Err(ticket.exceeded(OPERATION));
            }
            let entry = entry.map_err(disk(what))?;
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).map_err(disk(what))?;
            if meta.is_dir() {
                pending.push((path, internal || (folder == root && entry.file_name() == ".git")));
                continue;
            }
            if !internal {
                stats.files += 1;
                stats.bytes += meta.len();
            }
            own(&path, &meta)?;
        }
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(disk(what))
}
