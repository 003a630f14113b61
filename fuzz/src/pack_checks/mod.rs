//! A sandbox's work on its way into a repository: what is refused leaves nothing, and what comes in is harmless by rules that are
//! written down here once more, by other code.
//!
//! An input is an export as it comes, or the script of one (`script`). The checks run in this process; the child's confinement
//! has tests of its own.

mod script;
mod world;

use std::sync::Once;

use git2::{ObjectType, Oid, Repository, Tree};
use orchestra_runtime::git::fuzzing::{commit, import_here};
use orchestra_runtime::git::{GitError, History, ImportLimits, ImportRules, NameRules, redact_secrets};

use script::Export;
use world::World;

/// Files that nobody may touch, in the base and in the default rules.
const PROTECTED: [&str; 2] = [".github/workflows/ci.yml", "CODEOWNERS"];
/// Small enough that an input can meet each of them.
const LIMITS: ImportLimits = ImportLimits {
    pack_bytes: 256 * 1024,
    objects: 100,
    entries: 200,
    file_bytes: 4096,
    total_bytes: 16 * 1024,
    commits: 8,
    memory_bytes: 1 << 30,
    cpu_seconds: 10,
};
/// Longest text about a refusal, in bytes.
const MAX_DETAIL: usize = 1_500;

/// Work that every check lets in.
const HONEST: &[u8] = b"blob x\nedit\n100644 #0 new.txt\ncommit #0 ^ An honest change";

/// Imports what a hostile sandbox may send, and commits what comes in.
pub fn pack_checks(input: &[u8]) {
    static ONCE: Once = Once::new();
    World::with(|world| {
        // Else nothing that is found out here would mean anything.
        ONCE.call_once(|| assert!(comes_in(HONEST, world), "honest work is refused"));
        comes_in(input, world);
    });
}

/// Whether it came in.
fn comes_in(input: &[u8], world: &World) -> bool {
    let Export { history, strict, bytes } = script::export(input, world);
    let names = match strict {
        true => NameRules { non_utf8: false, not_on_windows: false, case_twins: false },
        false => NameRules::default(),
    };
    let rules = ImportRules { limits: LIMITS, history, names, ..ImportRules::default() };
    match import_here(&world.path, &world.base, &rules, &bytes) {
        Ok(Some(imported)) => {
            let new = world.new_files();
            assert!(
                new.len() <= 2 && new.iter().all(|file| file.starts_with(world.path.join("objects/pack"))),
                "{new:?}"
            );
            let policy = world::policy(history);
            let made = commit(&world.path, &world.base, &imported, &policy)
                .unwrap_or_else(|error| panic!("what came in cannot be committed: {error:?}"));
            let repo = Repository::open_bare(&world.path).expect("the repository");
            let id = |text: &str| Oid::from_str(text).expect("an id");
            assert!(made.len() == 1 || history == History::Keep, "one commit of all");
            for commit in &made {
                Look { repo: &repo, world, strict }.commit(id(commit.as_str()));
            }
            let last = made.last().expect("a change makes a commit");
            let tree = repo.find_commit(id(last.as_str())).expect("just made").tree_id();
            assert_eq!(tree, id(imported.tree.as_str()), "another tree is published than was checked");
            world.restore();
            true
        }
        Ok(None) => {
            world.untouched("what changes nothing");
            false
        }
        Err(error) => {
            refused(&error);
            world.untouched(&format!("{error:?}"));
            false
        }
    }
}

/// The sandbox is told off, in words that can be shown; nothing it sends is taken for a fault of this server's.
fn refused(error: &GitError) {
    match error {
        GitError::PackRejected { detail, .. } => {
            assert!(!detail.chars().any(char::is_control) && detail.len() < MAX_DETAIL, "{detail:?}");
        }
        GitError::ExportFailed { .. } => {}
        other => panic!("a sandbox's bytes look like the server's own failure: {other:?}"),
    }
}

/// What is published, looked at with nothing of what has checked it.
struct Look<'a> {
    repo: &'a Repository,
    world: &'a World,
    strict: bool,
}

impl Look<'_> {
    fn commit(&self, id: Oid) {
        let commit = self.repo.find_commit(id).expect("it was made");
        let base = Oid::from_str(self.world.base.as_str()).expect("an id");
        assert!(self.repo.graph_descendant_of(id, base).expect("a graph"), "it does not build on the base");
        for who in [commit.author(), commit.committer()] {
            assert_eq!((who.name(), who.email(), who.when().seconds()), (Ok("Orchestra"), Ok("o@example.com"), 0));
        }
        let message = commit.message().expect("UTF-8");
        assert!(!message.chars().any(|letter| letter.is_control() && !matches!(letter, '\n' | '\t')), "{message:?}");
        assert_eq!(redact_secrets(message), message);
        let said = |claim: &str| message.lines().filter(|line| line.to_ascii_lowercase().starts_with(claim)).count();
        let claims = ["orchestra-task:", "co-authored-by:", "signed-off-by:"].map(said);
        assert_eq!(claims, [1, 0, 0], "{message:?}");
        let old = self.repo.find_commit(base).expect("the base").tree().expect("its tree");
        let new = commit.tree().expect("its tree");
        for path in PROTECTED {
            let entry =
                |tree: &Tree<'_>| tree.get_path(path.as_ref()).ok().map(|entry| (entry.id(), entry.filemode_raw()));
            assert_eq!(entry(&new), entry(&old), "{path} is protected");
        }
        self.tree(&new, Some(&old), &mut Vec::new());
    }

    fn tree(&self, new: &Tree<'_>, old: Option<&Tree<'_>>, path: &mut Vec<Vec<u8>>) {
        assert!(path.len() <= 101, "too deep");
        let mut names: Vec<_> = new.iter().map(|entry| entry.name_bytes().to_ascii_lowercase()).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "names that some file systems take for one");
        for entry in new {
            let (name, mode, id) = (entry.name_bytes(), entry.filemode_raw(), entry.id());
            let before = old.and_then(|old| old.get_name_bytes(name).map(|entry| (entry.id(), entry.filemode_raw())));
            if before == Some((id, mode)) {
                continue;
            }
            self.name(name, before.is_none());
            path.push(name.to_vec());
            match mode {
                0o040_000 => {
                    let old = before.filter(|before| before.1 == mode).map(|(id, _)| self.repo.find_tree(id));
                    let old = old.map(|tree| tree.expect("the base is whole"));
                    self.tree(&self.repo.find_tree(id).expect("a whole tree"), old.as_ref(), path);
                }
                0o100_644 | 0o100_755 => self.file(name, id),
                0o120_000 => self.link(id, path.len() - 1),
                other => panic!("mode {other:o} of {:?}", path.last()),
            }
            path.pop();
        }
    }

    fn name(&self, name: &[u8], is_new: bool) {
        let shown = name.escape_ascii().to_string();
        assert!((1..=255).contains(&name.len()) && name != b"." && name != b"..", "{shown}");
        assert!(!name.iter().any(|byte| byte.is_ascii_control() || matches!(byte, b'/' | b'\\')), "{shown}");
        let trimmed = name.trim_ascii_end().strip_suffix(b".").unwrap_or(name).trim_ascii_end();
        assert!(!trimmed.eq_ignore_ascii_case(b".git") && !trimmed.eq_ignore_ascii_case(b"git~1"), "{shown}");
        if is_new && self.strict {
            assert!(std::str::from_utf8(name).is_ok() && !name.contains(&b':'), "{shown}");
        }
    }

    fn file(&self, name: &[u8], id: Oid) {
        let blob = self.repo.find_blob(id).expect("a whole file");
        assert!(blob.size() as u64 <= LIMITS.file_bytes);
        if self.world.blobs.contains(&id) {
            return;
        }
        assert!(!name.ends_with(b".bin") || blob.size() == 0, "a file of LFS with its content");
        if let Ok(text) = std::str::from_utf8(blob.content()) {
            assert_eq!(redact_secrets(text), text, "a secret is published");
        }
    }

    /// A link stays inside whatever the names on its way are links to.
    fn link(&self, id: Oid, depth: usize) {
        let object = self.repo.find_object(id, Some(ObjectType::Blob)).expect("a link's target");
        let target = object.as_blob().expect("asked for").content();
        assert!(!target.is_empty() && !target.contains(&0) && target[0] != b'/', "{target:?}");
        let parts: Vec<_> = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        let climbs = parts.iter().take_while(|part| **part == b"..").count();
        assert!(climbs <= depth && !parts[climbs..].contains(&&b".."[..]), "{}", target.escape_ascii());
        assert!(!parts.iter().any(|part| part.eq_ignore_ascii_case(b".git")), "{}", target.escape_ascii());
    }
}
