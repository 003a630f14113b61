//! How large a commit's files would be, found out before the first of them is written.
//!
//! A few kilobytes of nested trees that name each other many times are millions of files when they are written out, and one
//! blob under ten thousand names is ten thousand times its size. libgit2 expands them all in memory. So each tree is looked
//! at once here, however many names it has.

use std::collections::HashMap;

use git2::{ObjectType, Odb, Oid, Repository};

use super::error::{GitError, Operation};
use super::pool::Ticket;

/// Most files, links and folders of one work tree. The largest repositories that people work in have about half a million;
/// the index of these, in memory, is some 200 MiB.
pub(super) const MAX_ENTRIES: u64 = 2_000_000;
/// Most folders in one another. libgit2 calls itself once for each.
pub(super) const MAX_FOLDERS: usize = 256;
/// Entries between two looks at the clock.
const ENTRIES_PER_LOOK: u64 = 1_024;

/// What a tree becomes when it is written out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Files, links, submodules and folders.
    pub entries: u64,
    /// Bytes of files and links, as they are in the repository.
    pub bytes: u64,
    /// Folders in one another.
    folders: usize,
}

/// A tree that is being looked at.
struct Open {
    id: Oid,
    children: Vec<(Oid, bool)>,
    sum: Extent,
}

/// Measures `tree`, or refuses it as soon as it is certain to be larger than [`MAX_ENTRIES`], [`MAX_FOLDERS`] or `max_bytes`.
pub(super) fn measure(
    repo: &Repository,
    tree: Oid,
    max_bytes: u64,
    operation: Operation,
    ticket: &Ticket,
) -> Result<Extent, GitError> {
    let internal = |error: git2::Error| GitError::Git { operation, detail: error.message().to_owned() };
    let too_large = |what: &'static str, limit: u64| GitError::TreeTooLarge { operation, what, limit };
    let odb = repo.odb().map_err(internal)?;
    let mut known: HashMap<Oid, Extent> = HashMap::new();
    let mut open = vec![expand(repo, tree).map_err(internal)?];
    let mut looked = 0_u64;
    loop {
        looked += 1;
        if looked.is_multiple_of(ENTRIES_PER_LOOK) && ticket.expired() {
            return Err(ticket.exceeded(operation));
        }
        let depth = open.len();
        let here = open.last_mut().expect("the loop ends with the last one");
        let Some((child, is_tree)) = here.children.pop() else {
            let done = open.pop().expect("it was just looked at");
            known.insert(done.id, done.sum);
            let Some(parent) = open.last_mut() else { return Ok(done.sum) };
            parent.sum.add(done.sum);
            check(parent.sum, depth - 1, max_bytes, too_large)?;
            continue;
        };
        here.sum.entries = here.sum.entries.saturating_add(1);
        if !is_tree {
            here.sum.bytes = here.sum.bytes.saturating_add(size(&odb, child).map_err(internal)?);
        } else if let Some(sum) = known.get(&child) {
            here.sum.add(*sum);
        } else if depth > MAX_FOLDERS {
            return Err(too_large("folders in one another", MAX_FOLDERS as u64));
        } else {
            open.push(expand(repo, child).map_err(internal)?);
            continue;
        }
        check(here.sum, depth, max_bytes, too_large)?;
    }
}

impl Extent {
    /// One more folder, with this in it.
    fn add(&mut self, folder: Self) {
        self.entries = self.entries.saturating_add(folder.entries);
        self.bytes = self.bytes.saturating_add(folder.bytes);
        self.folders = self.folders.max(folder.folders + 1);
    }
}

/// `depth` trees are open, the one with this sum included.
fn check(
    sum: Extent,
    depth: usize,
    max_bytes: u64,
    too_large: impl Fn(&'static str, u64) -> GitError,
) -> Result<(), GitError> {
    if sum.entries > MAX_ENTRIES {
        return Err(too_large("files and folders", MAX_ENTRIES));
    }
    if sum.bytes > max_bytes {
        return Err(too_large("bytes of files", max_bytes));
    }
    if depth + sum.folders > MAX_FOLDERS + 1 {
        return Err(too_large("folders in one another", MAX_FOLDERS as u64));
    }
    Ok(())
}

/// The children, and which of them are trees. Submodules are folders without anything.
fn expand(repo: &Repository, id: Oid) -> Result<Open, git2::Error> {
    let tree = repo.find_tree(id)?;
    let mut sum = Extent::default();
    let mut children = Vec::with_capacity(tree.len());
    for entry in &tree {
        match entry.kind() {
            Some(ObjectType::Tree) => children.push((entry.id(), true)),
            Some(ObjectType::Blob) => children.push((entry.id(), false)),
            _ => sum.entries = sum.entries.saturating_add(1),
        }
    }
    Ok(Open { id, children, sum })
}

fn size(odb: &Odb<'_>, blob: Oid) -> Result<u64, git2::Error> {
    odb.read_header(blob).map(|(bytes, _)| bytes as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BLOB: i32 = 0o100_644;
    const TREE: i32 = 0o40_000;

    struct World {
        _dir: tempfile::TempDir,
        repo: Repository,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { repo: Repository::init_bare(dir.path()).unwrap(), _dir: dir }
        }

        fn tree(&self, entries: impl IntoIterator<Item = (Oid, i32)>) -> Oid {
            let mut tree = self.repo.treebuilder(None).unwrap();
            for (number, (id, mode)) in entries.into_iter().enumerate() {
                tree.insert(format!("{number:05}"), id, mode).unwrap();
            }
            tree.write().unwrap()
        }

        fn measure(&self, tree: Oid, max_bytes: u64) -> Result<Extent, GitError> {
            measure(&self.repo, tree, max_bytes, Operation::Checkout, &Ticket::until(Duration::from_secs(20)))
        }
    }

    fn refused(what: &'static str, limit: u64) -> Result<Extent, GitError> {
        Err(GitError::TreeTooLarge { operation: Operation::Checkout, what, limit })
    }

    #[test]
    fn an_honest_tree_is_as_large_as_it_is() {
        let world = World::new();
        let (blob, link) = (world.repo.blob(b"12345").unwrap(), world.repo.blob(b"ab").unwrap());
        let module = Oid::from_str(&"1".repeat(40)).unwrap();
        let deep = world.tree([(blob, BLOB), (link, 0o120_000)]);
        let root = world.tree([(deep, TREE), (blob, 0o100_755), (deep, TREE), (module, 0o160_000)]);
        assert_eq!(world.measure(root, 19), Ok(Extent { entries: 8, bytes: 19, folders: 1 }));
        assert_eq!(world.measure(root, 18), refused("bytes of files", 18));
    }

    #[test]
    fn ten_levels_of_ten_are_refused_without_being_walked() {
        let world = World::new();
        let blob = world.repo.blob(b"x").unwrap();
        let bomb = (0..10).fold(world.tree([(blob, BLOB); 10]), |tree, _| world.tree([(tree, TREE); 10]));
        let started = std::time::Instant::now();
        assert_eq!(world.measure(bomb, u64::MAX), refused("files and folders", MAX_ENTRIES));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }

    #[test]
    fn one_large_blob_under_many_names_counts_each_time() {
        let world = World::new();
        let blob = world.repo.blob(&vec![b'x'; 1 << 20]).unwrap();
        let root = world.tree((0..5_000).map(|_| (blob, BLOB)));
        assert_eq!(world.measure(root, 1 << 32), refused("bytes of files", 1 << 32));
        assert!(world.measure(root, 5_000 << 20).is_ok());
    }

    #[test]
    fn folders_in_one_another_have_a_bound_also_when_they_are_met_again() {
        let world = World::new();
        let leaf = world.tree([(world.repo.blob(b"x").unwrap(), BLOB)]);
        let nested = |levels: usize, tree: Oid| (0..levels).fold(tree, |tree, _| world.tree([(tree, TREE)]));
        assert!(world.measure(nested(MAX_FOLDERS, leaf), 9).is_ok());
        let bound = refused("folders in one another", MAX_FOLDERS as u64);
        assert_eq!(world.measure(nested(MAX_FOLDERS + 1, leaf), 9), bound);
        assert_eq!(world.measure(nested(10_000, leaf), 9), bound);
        // Known from a place further up, it is deeper here.
        let half = nested(MAX_FOLDERS / 2, leaf);
        let deeper = nested(MAX_FOLDERS / 2 + 1, half);
        for root in [[half, deeper], [deeper, half]] {
            assert_eq!(world.measure(world.tree(root.map(|tree| (tree, TREE))), 9), bound);
        }
    }
}
