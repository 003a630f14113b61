//! Looks at everything between the base and the tip before it may enter the trusted repository.

use std::collections::HashSet;

use git2::{ObjectType, Odb, Oid, Repository, Tree};

use super::super::error::PackFault;
use super::{ImportLimits, names};

/// Deeper trees than any real project's, and shallow enough for every client's path limit.
const MAX_DEPTH: usize = 100;
/// The longest link target, as Linux's `PATH_MAX`.
const MAX_LINK_BYTES: usize = 4096;
/// A path in an error is cut here.
const MAX_SHOWN_PATH: usize = 200;

/// Why the walk ended early.
pub(super) enum Stop {
    Rejected(PackFault, String),
    Failed(git2::Error),
}

impl From<git2::Error> for Stop {
    fn from(error: git2::Error) -> Self {
        Self::Failed(error)
    }
}

/// What came through.
pub(super) struct Walked {
    pub tree: Oid,
    pub unchanged: bool,
    pub files_changed: u32,
}

struct Walk<'a> {
    repo: &'a Repository,
    odb: &'a Odb<'a>,
    limits: &'a ImportLimits,
    /// Bytes of new blobs, each counted once.
    bytes: u64,
    seen: HashSet<Oid>,
    /// Changed paths so far: a few trees that hold each other many times over describe more than any disk.
    entries: u64,
}

/// `repo` and `odb` see what was there before and the quarantine.
pub(super) fn walk(
    repo: &Repository,
    odb: &Odb<'_>,
    base: Oid,
    tip: Oid,
    limits: &ImportLimits,
) -> Result<Walked, Stop> {
    let mut walk = Walk { repo, odb, limits, bytes: 0, seen: HashSet::new(), entries: 0 };
    let base_tree = repo.find_commit(base)?.tree()?;
    let mut pending = vec![tip];
    let mut commits = HashSet::new();
    while let Some(id) = pending.pop() {
        if id == base || !commits.insert(id) {
            continue;
        }
        if commits.len() > limits.commits as usize {
            return Err(Stop::Rejected(PackFault::Ancestry, format!("there are more than {} commits", limits.commits)));
        }
        let commit = repo
            .find_commit(id)
            .map_err(|_| Stop::Rejected(PackFault::Malformed, "a commit is missing from the pack".to_owned()))?;
        // A commit that was here before (an earlier import of the same work) is walked like the others; one that the
        // base itself builds on leads to a root.
        if commit.parent_count() == 0 {
            return Err(Stop::Rejected(PackFault::Ancestry, "a commit does not descend from the base".to_owned()));
        }
        pending.extend(commit.parent_ids());
        let tree = tree(repo, commit.tree_id())?;
        // Against the base, not the parent: what the base has was there before, all else is looked at.
        walk.tree(&tree, Some(&base_tree), &mut Vec::new())?;
    }
    let tip_tree = repo
        .find_commit(tip)
        .and_then(|commit| commit.tree())
        .map_err(|_| Stop::Rejected(PackFault::Malformed, "the announced commit is not in the pack".to_owned()))?;
    let changes = repo.diff_tree_to_tree(Some(&base_tree), Some(&tip_tree), None)?;
    Ok(Walked {
        tree: tip_tree.id(),
        unchanged: tip_tree.id() == base_tree.id(),
        files_changed: u32::try_from(changes.deltas().len()).unwrap_or(u32::MAX),
    })
}

fn tree(repo: &Repository, id: Oid) -> Result<Tree<'_>, Stop> {
    repo.find_tree(id).map_err(|_| Stop::Rejected(PackFault::Malformed, "a tree is missing or damaged".to_owned()))
}

impl Walk<'_> {
    fn tree(&mut self, new: &Tree<'_>, old: Option<&Tree<'_>>, path: &mut Vec<u8>) -> Result<(), Stop> {
        if old.is_some_and(|old| old.id() == new.id()) {
            return Ok(());
        }
        let depth = path.iter().filter(|byte| **byte == b'/').count();
        let reject = |fault, path: &[u8], why: &str| {
            let shown: String = String::from_utf8_lossy(path).chars().take(MAX_SHOWN_PATH).collect();
            Err(Stop::Rejected(fault, format!("{why}: {shown:?}")))
        };
        if depth > MAX_DEPTH {
            return reject(PackFault::Path, path, "directories are nested too deeply");
        }
        let mut names_here = HashSet::with_capacity(new.len());
        for entry in new {
            let name = entry.name_bytes();
            let before = old.and_then(|old| same_name(old, name));
            let mode = entry.filemode_raw();
            if before.as_ref().is_some_and(|(id, was)| (*id, *was) == (entry.id(), mode)) {
                names_here.insert(name.to_vec());
                continue;
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                return reject(PackFault::TooLarge, path, "there are more changed paths than the limit");
            }
            let length = path.len();
            path.extend_from_slice(name);
            if let Some(why) = names::fault(name) {
                return reject(PackFault::Path, path, why);
            }
            if !names_here.insert(name.to_vec()) {
                return reject(PackFault::Path, path, "a directory holds the same name twice");
            }
            match mode {
                0o040_000 => {
                    let subtree = tree(self.repo, entry.id())?;
                    let was = match before {
                        Some((id, 0o040_000)) => Some(tree(self.repo, id)?),
                        _ => None,
                    };
                    path.push(b'/');
                    self.tree(&subtree, was.as_ref(), path)?;
                }
                0o100_644 | 0o100_755 => {
                    if let Some(why) = self.blob(entry.id())? {
                        return reject(why.0, path, why.1);
                    }
                }
                0o120_000 => {
                    if names::is_git_file(name) {
                        return reject(PackFault::Symlink, path, "a file that git reads is a symbolic link");
                    }
                    // By its header first: an endless link is never unpacked.
                    if self.odb.read_header(entry.id()).is_ok_and(|(size, _)| size > MAX_LINK_BYTES) {
                        return reject(PackFault::Symlink, path, "a symbolic link has an endless target");
                    }
                    if let Some(why) = self.blob(entry.id())? {
                        return reject(why.0, path, why.1);
                    }
                    let blob = self.repo.find_blob(entry.id())?;
                    if let Some(why) = names::link_fault(blob.content(), depth) {
                        return reject(PackFault::Symlink, path, why);
                    }
                }
                0o160_000 => return reject(PackFault::Gitlink, path, "a nested repository was added or moved"),
                _ => return reject(PackFault::Mode, path, "a file has a mode that git does not define"),
            }
            path.truncate(length);
        }
        Ok(())
    }

    /// The sizes of a file, from the object's header: a large one is never unpacked for this.
    fn blob(&mut self, id: Oid) -> Result<Option<(PackFault, &'static str)>, Stop> {
        let Ok((size, kind)) = self.odb.read_header(id) else {
            return Ok(Some((PackFault::Malformed, "a file's content is missing from the pack")));
        };
        if kind != ObjectType::Blob {
            return Ok(Some((PackFault::Malformed, "a file's content is not a file")));
        }
        if size as u64 > self.limits.file_bytes {
            return Ok(Some((PackFault::FileTooLarge, "a file is larger than the limit")));
        }
        if self.seen.insert(id) {
            self.bytes = self.bytes.saturating_add(size as u64);
        }
        Ok((self.bytes > self.limits.total_bytes)
            .then_some((PackFault::TooLarge, "the changed files are larger than the limit together")))
    }
}

/// The entry of that exact name. libgit2's own look-up trusts the order of the entries, which only the base's trees
/// have proven.
fn same_name(tree: &Tree<'_>, name: &[u8]) -> Option<(Oid, i32)> {
    let entry = tree.get_name_bytes(name)?;
    Some((entry.id(), entry.filemode_raw()))
}
