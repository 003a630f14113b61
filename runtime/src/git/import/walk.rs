//! Looks at everything between the base and the tip before it may enter the trusted repository.
//!
//! Each commit's tree is held against those of its parents: what is in one of them under the same name has been looked
//! at with it, or was in the base. So every file of every commit that is published is seen once, and a file that was
//! changed and changed back is seen twice.

use std::collections::HashSet;

use git2::{ObjectType, Odb, Oid, Repository, Tree};

use super::super::error::PackFault;
use super::super::message;
use super::content::{Content, Place};
use super::history::{self, Broken};
use super::names;
use super::rules::{History, ImportRules, Protected};
use super::twins::{Directory, Met};

/// Deeper trees than any real project's, and shallow enough for every client's path limit.
const MAX_DEPTH: usize = 100;
/// The longest path, as Linux's `PATH_MAX`.
const MAX_PATH_BYTES: usize = 4096;
/// The longest link target, likewise.
const MAX_LINK_BYTES: usize = 4096;
/// The longest commit object. The host reads those that are kept; a message is cut far below this.
const MAX_COMMIT_BYTES: usize = 256 * 1024;

/// Directory, in a tree entry.
const DIRECTORY: i32 = 0o040_000;
/// A file, and one that may be executed.
const FILES: [i32; 2] = [0o100_644, 0o100_755];
/// A symbolic link.
const LINK: i32 = 0o120_000;
/// A commit of another repository.
pub(super) const GITLINK: i32 = 0o160_000;

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

fn malformed(what: &str) -> Stop {
    Stop::Rejected(PackFault::Malformed, what.to_owned())
}

/// `repo` and `odb` see what was there before and the quarantine.
pub(super) fn walk(repo: &Repository, odb: &Odb<'_>, base: Oid, tip: Oid, rules: &ImportRules) -> Result<Walked, Stop> {
    let commits = history::commits(repo, base, tip, rules.limits.commits).map_err(|broken| match broken {
        Broken::TooMany => {
            Stop::Rejected(PackFault::Ancestry, format!("there are more than {} commits", rules.limits.commits))
        }
        Broken::Foreign => {
            Stop::Rejected(PackFault::Ancestry, "a commit does not descend from the base alone".to_owned())
        }
        Broken::TooManyParents => Stop::Rejected(PackFault::Ancestry, "a commit has too many parents".to_owned()),
        Broken::Missing(_) => malformed("a commit is missing from the pack or damaged"),
    })?;
    let base_tree = repo.find_commit(base)?.tree()?;
    let tip_tree = tree_of(repo, tip)?;
    let whole = |tree: &Tree<'_>, unchanged, files_changed| Walked { tree: tree.id(), unchanged, files_changed };
    if tip_tree.id() == base_tree.id() {
        return Ok(whole(&tip_tree, true, 0));
    }
    let invalid = |error: super::rules::InvalidGlob| Stop::Failed(git2::Error::from_str(&error.to_string()));
    let mut walk = Walk {
        repo,
        odb,
        rules,
        protected: Protected::new(&rules.protected).map_err(invalid)?,
        content: Content::new(repo, &base_tree, rules).map_err(invalid)?,
        bytes: 0,
        seen: HashSet::new(),
        entries: 0,
    };
    match rules.history {
        History::Keep => {
            for id in commits {
                walk.commit(id, &base_tree)?;
            }
        }
        History::Squash => walk.root(&tip_tree, vec![base_tree.clone()], &base_tree)?,
    }
    let changes = repo.diff_tree_to_tree(Some(&base_tree), Some(&tip_tree), None)?;
    Ok(whole(&tip_tree, false, u32::try_from(changes.deltas().len()).unwrap_or(u32::MAX)))
}

fn tree(repo: &Repository, id: Oid) -> Result<Tree<'_>, Stop> {
    repo.find_tree(id).map_err(|_| malformed("a tree is missing or damaged"))
}

fn tree_of(repo: &Repository, commit: Oid) -> Result<Tree<'_>, Stop> {
    let commit = repo.find_commit(commit).map_err(|_| malformed("the announced commit is not in the pack"))?;
    tree(repo, commit.tree_id())
}

/// One entry, by what decides whether it changed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Item {
    id: Oid,
    mode: i32,
}

/// The entry of that exact name. libgit2's look-up rests on the order of the entries, which is checked of every tree
/// that comes in.
fn item(tree: &Tree<'_>, name: &[u8]) -> Option<Item> {
    let entry = tree.get_name_bytes(name)?;
    Some(Item { id: entry.id(), mode: entry.filemode_raw() })
}

/// A tree, what stood in its place in each of the parents, and in the base.
struct Step<'a, 'r> {
    new: &'a Tree<'r>,
    olds: Vec<Option<Tree<'r>>>,
    base: Option<Tree<'r>>,
}

struct Walk<'a> {
    repo: &'a Repository,
    odb: &'a Odb<'a>,
    rules: &'a ImportRules,
    protected: Protected,
    content: Content<'a>,
    /// Bytes of new blobs, each counted once.
    bytes: u64,
    seen: HashSet<Oid>,
    /// Changed paths so far: a few trees that hold each other many times over describe more than any disk.
    entries: u64,
}

impl<'a> Walk<'a> {
    fn reject<T>(&self, fault: PackFault, path: &[u8], why: &str) -> Result<T, Stop> {
        Err(Stop::Rejected(fault, format!("{why}: {}", self.content.shown(path))))
    }

    fn count_entry(&mut self, path: &[u8]) -> Result<(), Stop> {
        self.entries += 1;
        if self.entries > self.rules.limits.entries {
            return self.reject(PackFault::TooLarge, path, "there are more changed paths than the limit");
        }
        Ok(())
    }

    fn commit(&mut self, id: Oid, base: &Tree<'a>) -> Result<(), Stop> {
        if self.odb.read_header(id).is_ok_and(|(size, _)| size > MAX_COMMIT_BYTES) {
            let why = format!("a commit's header and message are larger than {MAX_COMMIT_BYTES} bytes");
            return Err(Stop::Rejected(PackFault::TooLarge, why));
        }
        let commit = self.repo.find_commit(id)?;
        self.content.message(&message::clean(commit.message_raw_bytes()))?;
        let olds = commit.parent_ids().map(|parent| tree_of(self.repo, parent)).collect::<Result<Vec<_>, _>>()?;
        self.root(&tree(self.repo, commit.tree_id())?, olds, base)
    }

    fn root(&mut self, new: &Tree<'a>, olds: Vec<Tree<'a>>, base: &Tree<'a>) -> Result<(), Stop> {
        if olds.iter().any(|old| old.id() == new.id()) {
            return Ok(());
        }
        let step = Step { new, olds: olds.into_iter().map(Some).collect(), base: Some(base.clone()) };
        self.tree(&step, &mut Vec::new())
    }

    fn tree(&mut self, step: &Step<'_, 'a>, path: &mut Vec<u8>) -> Result<(), Stop> {
        let depth = path.iter().filter(|byte| **byte == b'/').count();
        if depth > MAX_DEPTH {
            return self.reject(PackFault::Path, path, "directories are nested too deeply");
        }
        self.content.enter(step.new, step.base.as_ref());
        let mut names_here = Directory::default();
        let mut previous: Option<Vec<u8>> = None;
        for entry in step.new {
            let (name, now) = (entry.name_bytes(), Item { id: entry.id(), mode: entry.filemode_raw() });
            let length = path.len();
            path.extend_from_slice(name);
            // As git sorts: a directory as if its name ended in a slash. Look-ups rest on it.
            let sorted_as = [name, if now.mode == DIRECTORY { b"/" } else { b"" }].concat();
            if previous.as_ref().is_some_and(|previous| *previous >= sorted_as) {
                return self.reject(PackFault::Malformed, path, "a directory's entries are not in order");
            }
            previous = Some(sorted_as);
            let before: Vec<_> = step.olds.iter().map(|old| old.as_ref().and_then(|old| item(old, name))).collect();
            // Against the first parent: twins of two branches meet in their merge.
            let new_name = before.first().is_none_or(Option::is_none);
            match names_here.add(name, new_name) {
                Met::Itself => return self.reject(PackFault::Path, path, "a directory holds the same name twice"),
                Met::Twin if !self.rules.names.case_twins => {
                    let why = "another name in its directory is the same where case does not count";
                    return self.reject(PackFault::CaseTwins, path, why);
                }
                Met::Twin | Met::Nothing => {}
            }
            if !before.contains(&Some(now)) {
                self.entry(step, name, now, &before, path)?;
            }
            path.truncate(length);
        }
        if let Some(Some(old)) = step.olds.first() {
            for entry in old {
                if step.new.get_name_bytes(entry.name_bytes()).is_none() {
                    let length = path.len();
                    path.extend_from_slice(entry.name_bytes());
                    self.removed(Item { id: entry.id(), mode: entry.filemode_raw() }, path)?;
                    path.truncate(length);
                }
            }
        }
        self.content.leave();
        Ok(())
    }

    /// An entry that no parent has.
    fn entry(
        &mut self,
        step: &Step<'_, 'a>,
        name: &[u8],
        now: Item,
        before: &[Option<Item>],
        path: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        self.count_entry(path)?;
        if let Some(why) = names::fault(name) {
            return self.reject(PackFault::Path, path, why);
        }
        if path.len() > MAX_PATH_BYTES {
            return self.reject(PackFault::Path, path, "a path is longer than 4096 bytes");
        }
        if before.iter().all(Option::is_none) {
            if let Some(why) = names::unwanted(name, &self.rules.names) {
                return self.reject(PackFault::Name, path, why);
            }
            self.content.name(name)?;
        }
        if now.mode == LINK && names::is_git_file(name) {
            return self.reject(PackFault::Symlink, path, "a file that git reads is a symbolic link");
        }
        let first = before.first().copied().flatten();
        if now.mode != DIRECTORY {
            if self.protected.file(path) {
                return self.reject(PackFault::Protected, path, "a protected file was added or changed");
            }
            if self.protected.directory(path) {
                return self.reject(PackFault::Protected, path, "something took the place of a protected directory");
            }
        }
        if let Some(first) = first.filter(|first| (first.mode == DIRECTORY) != (now.mode == DIRECTORY)) {
            self.removed(first, path)?;
        }
        match now.mode {
            DIRECTORY => {
                let subtree = |item: Option<Item>| match item {
                    Some(Item { id, mode: DIRECTORY }) => tree(self.repo, id).map(Some),
                    _ => Ok(None),
                };
                let olds = before.iter().map(|item| subtree(*item)).collect::<Result<Vec<_>, _>>()?;
                let base = subtree(step.base.as_ref().and_then(|base| item(base, name)))?;
                let new = tree(self.repo, now.id)?;
                path.push(b'/');
                self.tree(&Step { new: &new, olds, base }, path)
            }
            mode if FILES.contains(&mode) => {
                let size = self.blob(now.id, path)?;
                let in_base = step.base.as_ref().and_then(|base| item(base, name));
                let earlier = before.iter().flatten().chain(in_base.iter()).filter(|item| item.mode != DIRECTORY);
                let place = Place { path, id: now.id, size, earlier: &earlier.map(|item| item.id).collect::<Vec<_>>() };
                self.content.file(&place)
            }
            LINK => {
                // By its header first: an endless link is never unpacked.
                if self.blob(now.id, path)? > MAX_LINK_BYTES {
                    return self.reject(PackFault::Symlink, path, "a symbolic link has an endless target");
                }
                let depth = path.iter().filter(|byte| **byte == b'/').count();
                let blob = self.repo.find_blob(now.id)?;
                match names::link_fault(blob.content(), depth) {
                    Some(why) => self.reject(PackFault::Symlink, path, why),
                    None => Ok(()),
                }
            }
            GITLINK => self.reject(PackFault::Gitlink, path, "a nested repository was added or moved"),
            _ => self.reject(PackFault::Mode, path, "a file has a mode that git does not define"),
        }
    }

    /// What the first parent has and this commit has not.
    fn removed(&mut self, was: Item, path: &mut Vec<u8>) -> Result<(), Stop> {
        self.count_entry(path)?;
        if was.mode != DIRECTORY {
            return match self.protected.file(path) {
                true => self.reject(PackFault::Protected, path, "a protected file was removed or moved"),
                false => Ok(()),
            };
        }
        path.push(b'/');
        for entry in &tree(self.repo, was.id)? {
            let length = path.len();
            path.extend_from_slice(entry.name_bytes());
            self.removed(Item { id: entry.id(), mode: entry.filemode_raw() }, path)?;
            path.truncate(length);
        }
        path.pop();
        Ok(())
    }

    /// The size of a file, from the object's header: a large one is never unpacked for this.
    fn blob(&mut self, id: Oid, path: &[u8]) -> Result<usize, Stop> {
        let Ok((size, kind)) = self.odb.read_header(id) else {
            return self.reject(PackFault::Malformed, path, "a file's content is missing from the pack");
        };
        if kind != ObjectType::Blob {
            return self.reject(PackFault::Malformed, path, "a file's content is not a file");
        }
        if size as u64 > self.rules.limits.file_bytes {
            return self.reject(PackFault::FileTooLarge, path, "a file is larger than the limit");
        }
        if self.seen.insert(id) {
            self.bytes = self.bytes.saturating_add(size as u64);
        }
        if self.bytes > self.rules.limits.total_bytes {
            return self.reject(PackFault::TooLarge, path, "the changed files are larger than the limit together");
        }
        Ok(size)
    }
}
