//! A trusted repository with a base, and what was in it before anybody sent anything.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use git2::{ObjectType, Oid, Repository, Signature, Time};
use orchestra_events::CommitId;
use orchestra_runtime::git::{CommitPolicy, History, Signature as Person, init_process};
use tempfile::TempDir;

use super::script::{Entry, sorted, tree_bytes};

/// A trusted repository.
pub(super) struct World {
    /// Where it is.
    pub path: PathBuf,
    /// The commit that the work builds on.
    pub base: CommitId,
    /// The one before it.
    pub older: Oid,
    /// The base's own entries.
    pub entries: Vec<Entry>,
    /// Every file of the base.
    pub blobs: HashSet<Oid>,
    before: HashSet<PathBuf>,
    _folder: TempDir,
}

impl World {
    /// The one of this thread: made once, and restored by whoever changes it.
    pub fn with<T>(work: impl FnOnce(&Self) -> T) -> T {
        thread_local! {
            static WORLD: OnceCell<World> = const { OnceCell::new() };
        }
        WORLD.with(|world| work(world.get_or_init(Self::new)))
    }

    fn new() -> Self {
        let_git_panic();
        init_process();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("trusted.git");
        let repo = Repository::init_bare(&path).expect("a repository");
        let odb = repo.odb().expect("its objects");
        let mut blobs = HashSet::new();
        let mut file = |mode: &str, name: &str, content: &str| {
            let id = odb.write(ObjectType::Blob, content.as_bytes()).expect("written");
            blobs.insert(id);
            Entry { mode: mode.into(), name: name.into(), id }
        };
        let tree = |name: &str, entries: Vec<Entry>| {
            let id = odb.write(ObjectType::Tree, &tree_bytes(&sorted(entries))).expect("written");
            Entry { mode: "40000".into(), name: name.into(), id }
        };
        let code = tree("src", vec![file("100644", "lib.rs", "pub fn one() -> u8 {\n    1\n}\n")]);
        let workflows = tree("workflows", vec![file("100644", "ci.yml", "on: push\n")]);
        let mut entries = sorted(vec![
            code,
            tree(".github", vec![workflows]),
            file("100644", ".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n"),
            file("100644", "CODEOWNERS", "* @acme/owners\n"),
            file("100644", "README.md", "Base\n"),
            file("100755", "run.sh", "#!/bin/sh\n"),
            file("120000", "link", "README.md"),
        ]);
        let first = odb.write(ObjectType::Tree, &tree_bytes(&entries)).expect("written");
        let first = repo.find_tree(first).expect("written");
        let who = Signature::new("Ann", "ann@example.com", &Time::new(0, 0)).expect("a name");
        let older = repo.commit(None, &who, &who, "Older\n", &first, &[]).expect("a commit");
        // A submodule, of a commit that is here: git asks a pack for the commits of all submodules that it speaks of.
        entries.push(Entry { mode: "160000".into(), name: "vendor".into(), id: older });
        let entries = sorted(entries);
        let root = odb.write(ObjectType::Tree, &tree_bytes(&entries)).expect("written");
        let root = repo.find_tree(root).expect("written");
        let parent = repo.find_commit(older).expect("just made");
        let base = repo.commit(None, &who, &who, "Base\n", &root, &[&parent]).expect("a commit");
        // Where packs come in; git makes it with the first one.
        fs::create_dir_all(path.join("objects/pack")).expect("a folder");
        let base = CommitId::try_from(base.to_string()).expect("an id");
        drop((odb, parent, root, first));
        drop(repo);
        let before = listed(&path).into_iter().collect();
        Self { path, base, older, entries, blobs, before, _folder: folder }
    }

    /// The files and folders that were not there in the beginning.
    pub fn new_files(&self) -> Vec<PathBuf> {
        let now = listed(&self.path);
        let kept = now.iter().filter(|path| self.before.contains(*path)).count();
        assert_eq!(kept, self.before.len(), "something of the repository is gone");
        now.into_iter().filter(|path| !self.before.contains(path)).collect()
    }

    /// Nothing was left in it.
    pub fn untouched(&self, by: &str) {
        let new = self.new_files();
        assert!(new.is_empty(), "left behind by {by}: {new:?}");
    }

    /// Takes away what was let in and made.
    pub fn restore(&self) {
        for path in self.new_files().iter().rev() {
            let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
            removed.expect("it can be removed");
        }
        self.untouched("a restoration");
    }
}

/// Every path below a folder; folders before what is in them.
fn listed(folder: &Path) -> Vec<PathBuf> {
    let (mut all, mut next) = (Vec::new(), 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.get(next).cloned() {
        next += 1;
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            if entry.file_type().expect("its type").is_dir() {
                folders.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all
}

/// Who our commits are from, and what they say of the task.
pub(super) fn policy(history: History) -> CommitPolicy {
    let who = Person { name: "Orchestra".to_owned(), email: "o@example.com".to_owned() };
    CommitPolicy {
        mode: history,
        author: who.clone(),
        committer: who,
        co_authors: Vec::new(),
        trailers: vec![("Orchestra-Task".to_owned(), "task_1".to_owned())],
        message: "Change it".to_owned(),
        time: "1970-01-01T00:00:00Z".parse().expect("a time"),
    }
}

/// git2 panics at an object's kind that it does not know, and the child catches that. The fuzzer ends the process at every
/// panic before it can be caught; at this one it shall not.
fn let_git_panic() {
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let expected =
            panic.location().is_some_and(|place| place.file().contains("/git2-") && place.file().ends_with("odb.rs"));
        if !expected {
            end(panic);
        }
    }));
}
