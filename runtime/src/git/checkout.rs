//! Writes a commit's files and a throw-away `.git` into a directory that will belong to a sandbox.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use git2::build::CheckoutBuilder;
use git2::{Index, IndexEntry, IndexTime, Repository, RepositoryInitOptions};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::error::{GitError, Operation};
use super::pool::Ticket;
use super::{CheckoutStats, WORK_BRANCH, extent};

const OPERATION: Operation = Operation::Checkout;
/// The mode of a submodule's entry.
const GITLINK: u32 = 0o160_000;

/// What one checkout needs.
pub(super) struct Request {
    pub repo: PathBuf,
    pub commit: git2::Oid,
    pub workspace: PathBuf,
    pub owner: (u32, u32),
    pub objects: Objects,
    /// A work tree of another commit that nobody will ever write to: files that are the same are linked from it.
    pub previous: Option<PathBuf>,
    /// Most bytes of files.
    pub max_bytes: u64,
}

/// How the history's packs come into the work tree's `.git`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Objects {
    /// As copies: a sandbox that may write to a link writes to the trusted repository.
    Copied,
    /// As hard links that keep their owner: for a directory that no sandbox can write through.
    Linked,
}

/// How far back the files' times are set. A file that is as young as git's index is read again by every `git status`, and
/// one that was changed in the second in which it was written could be missed by it.
const AGE: Duration = Duration::from_secs(10);

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
    let tree = source.find_commit(request.commit).map_err(git)?.tree_id();
    // Before anything is expanded: whoever may push to a repository chooses what it unfolds to.
    extent::measure(&source, tree, request.max_bytes, OPERATION, ticket)?;
    empty(&request.workspace)?;

    let mut options = RepositoryInitOptions::new();
    options.external_template(false).mkdir(true).initial_head(WORK_BRANCH).no_reinit(true);
    let work = Repository::init_opts(&request.workspace, &options).map_err(git)?;
    let object_bytes = bring_objects(source.path(), work.path(), request.objects, ticket)?;
    // The packs were not there when the object database was opened.
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
    let mut index = work.index().map_err(git)?;
    index.read_tree(&tree).map_err(git)?;
    // A forced checkout reads it again from the disk, and takes the rules for line ends from it.
    index.write().map_err(git)?;
    let linked = match &request.previous {
        Some(previous) => link_same(previous, &request.workspace, &index, ticket)?,
        None => HashSet::new(),
    };
    let mut checkout = CheckoutBuilder::new();
    checkout.force().update_index(false).disable_pathspec_match(true);
    checkout.notify_on(git2::CheckoutNotificationType::all()).notify(|_, _, _, _, _| !ticket.expired());
    let new: Vec<Vec<u8>> = if linked.is_empty() {
        Vec::new()
    } else {
        index.iter().map(|entry| entry.path).filter(|path| !linked.contains(path)).collect()
    };
    for path in &new {
        checkout.path(path.as_slice());
    }
    if linked.is_empty() || !new.is_empty() {
        work.checkout_tree(tree.as_object(), Some(&mut checkout)).map_err(git)?;
    }
    drop(checkout);
    work.set_head(&format!("refs/heads/{WORK_BRANCH}")).map_err(git)?;
    let mut stats = CheckoutStats { files: 0, bytes: 0, object_bytes };
    let entries = hand_over(request, &index, &linked, &mut stats, ticket)?;
    for entry in &entries {
        index.add(entry).map_err(git)?;
    }
    index.write().map_err(git)?;
    let path = request.workspace.join(".git/index");
    own(&path, &fs::symlink_metadata(&path).map_err(disk("writing the index"))?, request.owner)?;
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

/// Brings the packs, without what else is in the source: `objects/info` names paths of the host that mean nothing inside.
pub(super) fn bring_objects(from: &Path, to: &Path, how: Objects, ticket: &Ticket) -> Result<u64, GitError> {
    let mut brought = 0;
    let mut pending = vec![PathBuf::from("objects")];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(from.join(&folder)).map_err(disk("reading the objects"))? {
            if ticket.expired() {
                return Err(ticket.exceeded(OPERATION));
            }
            let entry = entry.map_err(disk("reading the objects"))?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type().map_err(disk("reading the objects"))?;
            if kind.is_dir() && entry.file_name() != "info" {
                fs::create_dir_all(to.join(&path)).map_err(disk("bringing the objects"))?;
                pending.push(path);
            } else if kind.is_file() {
                brought += match how {
                    Objects::Copied => fs::copy(from.join(&path), to.join(&path)),
                    Objects::Linked => link(&from.join(&path), &to.join(&path)),
                }
                .map_err(disk("bringing the objects"))?;
            }
        }
    }
    if from.join("shallow").is_file() {
        fs::copy(from.join("shallow"), to.join("shallow")).map_err(disk("bringing the history's end"))?;
    }
    Ok(brought)
}

/// A hard link, or a copy where the file system has no further link to give. Answers the file's size.
fn link(from: &Path, to: &Path) -> std::io::Result<u64> {
    match fs::hard_link(from, to) {
        Err(error) if matches!(error.kind(), ErrorKind::CrossesDevices | ErrorKind::TooManyLinks) => fs::copy(from, to),
        Err(error) => Err(error),
        Ok(()) => Ok(fs::symlink_metadata(to)?.len()),
    }
}

/// Links the files that `index` has in common with the work tree `previous`. None if the rules by which git writes files
/// are not the same in both.
fn link_same(previous: &Path, workspace: &Path, index: &Index, ticket: &Ticket) -> Result<HashSet<Vec<u8>>, GitError> {
    // One that cannot be read is one that was removed: then every file is written anew.
    let Ok(before) = Index::open(&previous.join(".git/index")) else { return Ok(HashSet::new()) };
    let is_rule = |path: &[u8]| path == b".gitattributes" || path.ends_with(b"/.gitattributes");
    let rules = |index: &Index| -> Vec<(Vec<u8>, git2::Oid)> {
        index.iter().filter(|entry| is_rule(&entry.path)).map(|entry| (entry.path, entry.id)).collect()
    };
    if rules(&before) != rules(index) {
        return Ok(HashSet::new());
    }
    let had: HashMap<Vec<u8>, IndexEntry> = before.iter().map(|entry| (entry.path.clone(), entry)).collect();
    let (mut linked, mut made) = (HashSet::new(), HashSet::new());
    for entry in index.iter() {
        if ticket.expired() {
            return Err(ticket.exceeded(OPERATION));
        }
        let regular = matches!(entry.mode, 0o100_644 | 0o100_755);
        let path = Path::new(OsStr::from_bytes(&entry.path));
        // libgit2 has written the same name in the other tree, so it is one; it is looked at nevertheless.
        let plain = path.components().all(|part| matches!(part, Component::Normal(name) if name != ".git"));
        let Some(same) = had.get(&entry.path).filter(|same| (same.id, same.mode) == (entry.id, entry.mode)) else {
            continue;
        };
        if !regular || !plain {
            continue;
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        if made.insert(folder.to_owned()) {
            fs::create_dir_all(workspace.join(folder)).map_err(disk("making a folder"))?;
        }
        let from = previous.join(path);
        // Only the very file that was seen there: a path can lead through a link. Any other is written anew.
        let seen =
            |meta: fs::Metadata| meta.is_file() && meta.ino() as u32 == same.ino && meta.dev() as u32 == same.dev;
        if fs::symlink_metadata(&from).is_ok_and(seen) && fs::hard_link(&from, workspace.join(path)).is_ok() {
            linked.insert(entry.path);
        }
    }
    Ok(linked)
}

/// Gives everything to the sandbox's user and answers how git's index has to describe the files. Walks the folders that are
/// there, and follows no link: the names in a commit are its author's, and one can lead through a link that it also has.
/// A file that is shared with another work tree has the right owner and time already.
fn hand_over(
    request: &Request,
    index: &Index,
    linked: &HashSet<Vec<u8>>,
    stats: &mut CheckoutStats,
    ticket: &Ticket,
) -> Result<Vec<IndexEntry>, GitError> {
    const WHAT: &str = "giving the workspace to the sandbox's user";
    let written = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(AGE);
    let time = TimeSpec::new(i64::try_from(written.as_secs()).unwrap_or(0), 0);
    // A submodule is an empty directory.
    let mut expected: HashMap<Vec<u8>, IndexEntry> =
        index.iter().filter(|entry| entry.mode != GITLINK).map(|entry| (entry.path.clone(), entry)).collect();
    let mut entries = Vec::with_capacity(expected.len());
    let root = &request.workspace;
    let mut pending = vec![PathBuf::new()];
    while let Some(folder) = pending.pop() {
        let here = root.join(&folder);
        own(&here, &fs::symlink_metadata(&here).map_err(disk(WHAT))?, request.owner)?;
        let internal = folder.starts_with(".git");
        let packs = request.objects == Objects::Linked && folder.starts_with(".git/objects");
        for found in fs::read_dir(&here).map_err(disk(WHAT))? {
            if ticket.expired() {
                return Err(ticket.exceeded(OPERATION));
            }
            let found = found.map_err(disk(WHAT))?;
            let (path, inside) = (found.path(), folder.join(found.file_name()));
            let mut meta = fs::symlink_metadata(&path).map_err(disk(WHAT))?;
            if meta.is_dir() {
                pending.push(inside);
                continue;
            }
            if internal {
                if !packs {
                    own(&path, &meta, request.owner)?;
                }
                continue;
            }
            let Some(mut entry) = expected.remove(inside.as_os_str().as_bytes()) else {
                return Err(unwritable("a file is there that the commit does not have"));
            };
            if !linked.contains(&entry.path) {
                utimensat(nix::fcntl::AT_FDCWD, &path, &time, &time, UtimensatFlags::NoFollowSymlink)
                    .map_err(|error| disk(WHAT)(error.into()))?;
                own(&path, &meta, request.owner)?;
                meta = fs::symlink_metadata(&path).map_err(disk(WHAT))?;
            }
            stats.files += 1;
            stats.bytes += meta.len();
            describe(&mut entry, &meta);
            entries.push(entry);
        }
    }
    if !expected.is_empty() {
        return Err(unwritable("two of its names exclude each other"));
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(disk(WHAT))?;
    Ok(entries)
}

fn unwritable(why: &str) -> GitError {
    GitError::Git { operation: OPERATION, detail: format!("the commit cannot be written out: {why}") }
}

/// The index keeps the low half of each number, as git itself does.
fn describe(entry: &mut IndexEntry, meta: &fs::Metadata) {
    entry.mtime = IndexTime::new(meta.mtime() as i32, meta.mtime_nsec() as u32);
    entry.ctime = IndexTime::new(meta.ctime() as i32, meta.ctime_nsec() as u32);
    (entry.dev, entry.ino) = (meta.dev() as u32, meta.ino() as u32);
    (entry.uid, entry.gid, entry.file_size) = (meta.uid(), meta.gid(), meta.len() as u32);
}

fn own(path: &Path, meta: &fs::Metadata, (uid, gid): (u32, u32)) -> Result<(), GitError> {
    if (meta.uid(), meta.gid()) == (uid, gid) {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(disk("giving the workspace to the sandbox's user"))
}
