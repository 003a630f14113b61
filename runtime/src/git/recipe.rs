//! What a commit says about its setup: the script, and what of the tree goes into what it makes.
//!
//! All of it comes from the trusted repository at the base commit. What an agent does to its own copy changes nothing.

use std::collections::BTreeMap;
use std::path::Path;

use git2::{ObjectType, Oid, Repository, Tree, TreeWalkMode, TreeWalkResult};
use globset::{Glob, GlobBuilder, GlobMatcher};
use orchestra_events::CommitId;
use sha2::{Digest, Sha256};

use super::error::{GitError, Operation};
use super::pool::{Late, Ticket};
use super::{Git, oid};

/// Where a repository keeps its setup script.
pub const SETUP_SCRIPT: &str = ".orchestra/setup.sh";
/// The largest setup script: a long one calls programs of the repository.
pub const MAX_SETUP_SCRIPT: usize = 256 * 1024;
/// Most names and patterns that a script can give as its inputs.
const MAX_PATTERNS: usize = 64;
/// Most files that they can stand for.
const MAX_INPUTS: usize = 10_000;
/// Entries of a tree that are looked at for patterns. The largest repositories have half a million.
const MAX_ENTRIES: usize = 2_000_000;
/// Entries between two looks at the clock.
const ENTRIES_PER_LOOK: usize = 1_024;

const OPERATION: Operation = Operation::Checkout;

/// A commit's setup script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetupScript {
    /// It has none.
    Absent,
    /// It has one that cannot be run, for this reason.
    Unusable(String),
    /// It has one.
    Usable(Recipe),
}

/// What goes into what a script makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The SHA-256 of the script, in hexadecimal.
    pub script: String,
    /// The digest of what the script reads of the tree: the tree's own id, or one over the inputs that it names.
    pub inputs: String,
    /// The script names its inputs, so that what it makes is also used for other commits.
    pub narrowed: bool,
}

impl Git {
    /// Whether this commit of a trusted repository has a setup script.
    pub async fn has_setup_script(&self, repo: &Path, commit: &CommitId) -> Result<bool, GitError> {
        let (repo, commit) = (repo.to_owned(), oid(OPERATION, commit)?);
        let look = move |_: &Ticket| {
            let repo = Repository::open_bare(&repo).map_err(internal)?;
            let tree = repo.find_commit(commit).and_then(|commit| commit.tree()).map_err(internal)?;
            Ok(tree.get_path(Path::new(SETUP_SCRIPT)).is_ok())
        };
        self.pool.run(OPERATION, self.config.local_timeout, Late::Await, look).await
    }

    /// The setup script of this commit of a trusted repository.
    pub async fn setup_script(&self, repo: &Path, commit: &CommitId) -> Result<SetupScript, GitError> {
        let (repo, commit) = (repo.to_owned(), oid(OPERATION, commit)?);
        let read = move |ticket: &Ticket| read(&repo, commit, ticket);
        self.pool.run(OPERATION, self.config.local_timeout, Late::Await, read).await
    }
}

fn internal(error: git2::Error) -> GitError {
    GitError::Git { operation: OPERATION, detail: error.message().to_owned() }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(repo: &Path, commit: Oid, ticket: &Ticket) -> Result<SetupScript, GitError> {
    let repo = Repository::open_bare(repo).map_err(internal)?;
    let tree = repo.find_commit(commit).and_then(|commit| commit.tree()).map_err(internal)?;
    let Ok(entry) = tree.get_path(Path::new(SETUP_SCRIPT)) else { return Ok(SetupScript::Absent) };
    if !matches!(entry.filemode(), 0o100_644 | 0o100_755) {
        return Ok(SetupScript::Unusable(format!("{SETUP_SCRIPT} is no regular file")));
    }
    let (size, _) = repo.odb().and_then(|odb| odb.read_header(entry.id())).map_err(internal)?;
    if size > MAX_SETUP_SCRIPT {
        let limit = MAX_SETUP_SCRIPT / 1024;
        return Ok(SetupScript::Unusable(format!("{SETUP_SCRIPT} is larger than {limit} KiB")));
    }
    let blob = repo.find_blob(entry.id()).map_err(internal)?;
    let patterns = match patterns(blob.content()) {
        Ok(patterns) => patterns,
        Err(reason) => return Ok(SetupScript::Unusable(reason)),
    };
    let inputs = match &patterns {
        None => Ok(tree.id().to_string()),
        Some(patterns) => inputs(&tree, patterns, ticket)?,
    };
    Ok(match inputs {
        Ok(inputs) => {
            let script = hex(&Sha256::digest(blob.content()));
            SetupScript::Usable(Recipe { script, inputs, narrowed: patterns.is_some() })
        }
        Err(reason) => SetupScript::Unusable(reason),
    })
}

/// One of the inputs that a script names.
#[derive(Debug)]
enum Pattern {
    /// A file or a folder.
    Name(String),
    /// Whatever matches.
    Glob(Glob),
}

/// The lines `# orchestra: inputs …` of a script; `None` when it has none. A line for Orchestra that says anything else is
/// an error: with a misspelt one, what is stale would be used.
fn patterns(script: &[u8]) -> Result<Option<Vec<Pattern>>, String> {
    let mut found: Option<Vec<Pattern>> = None;
    for line in String::from_utf8_lossy(script).lines() {
        let comment = line.trim().strip_prefix('#').map(str::trim_start);
        let Some(said) = comment.and_then(|comment| comment.strip_prefix("orchestra:")) else { continue };
        let mut words = said.split_whitespace();
        if words.next() != Some("inputs") {
            let said: String = said.trim().chars().filter(|c| !c.is_control()).take(80).collect();
            return Err(format!("the script's line \"# orchestra: {said}\" is not understood; known is: inputs"));
        }
        let list = found.get_or_insert_default();
        for word in words {
            if list.len() >= MAX_PATTERNS {
                return Err(format!("the script names more than {MAX_PATTERNS} inputs"));
            }
            list.push(pattern(word)?);
        }
    }
    Ok(found)
}

fn pattern(word: &str) -> Result<Pattern, String> {
    let name = word.strip_prefix("./").unwrap_or(word).trim_end_matches('/');
    if !name.contains(['*', '?', '[', '{', '\\']) {
        return Ok(Pattern::Name(name.to_owned()));
    }
    let glob = GlobBuilder::new(name).literal_separator(true).build();
    glob.map(Pattern::Glob).map_err(|error| format!("the script's input {word:?} is no pattern: {error}"))
}

/// One digest over everything in the tree that the patterns stand for. Also over the patterns: a file that is not there yet
/// changes it when it comes.
fn inputs(tree: &Tree<'_>, patterns: &[Pattern], ticket: &Ticket) -> Result<Result<String, String>, GitError> {
    let mut found: BTreeMap<Vec<u8>, (i32, Oid)> = BTreeMap::new();
    let mut globs: Vec<GlobMatcher> = Vec::new();
    for pattern in patterns {
        match pattern {
            Pattern::Name(name) => {
                if let Ok(entry) = tree.get_path(Path::new(name)) {
                    found.insert(name.clone().into_bytes(), (entry.filemode(), entry.id()));
                }
            }
            Pattern::Glob(glob) => globs.push(glob.compile_matcher()),
        }
    }
    let (mut looked, mut too_many, mut late) = (0_usize, false, false);
    if !globs.is_empty() {
        let walked = tree.walk(TreeWalkMode::PreOrder, |folder, entry| {
            looked += 1;
            late = looked.is_multiple_of(ENTRIES_PER_LOOK) && ticket.expired();
            too_many = looked > MAX_ENTRIES || found.len() > MAX_INPUTS;
            if late || too_many {
                return TreeWalkResult::Abort;
            }
            // A name that is no text matches nothing.
            if let (Some(ObjectType::Blob), Ok(name)) = (entry.kind(), entry.name()) {
                let path = format!("{folder}{name}");
                if globs.iter().any(|glob| glob.is_match(&path)) {
                    found.insert(path.into_bytes(), (entry.filemode(), entry.id()));
                }
            }
            TreeWalkResult::Ok
        });
        if late {
            return Err(ticket.exceeded(OPERATION));
        }
        if too_many || found.len() > MAX_INPUTS {
            return Ok(Err(format!(
                "the script's inputs stand for more than {MAX_INPUTS} files, or the tree is too large"
            )));
        }
        walked.map_err(internal)?;
    }
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    for pattern in patterns {
        match pattern {
            Pattern::Name(name) => part(name.as_bytes()),
            Pattern::Glob(glob) => part(glob.glob().as_bytes()),
        }
    }
    part(b"");
    for (path, (mode, id)) in &found {
        part(path);
        part(&mode.to_le_bytes());
        part(id.as_bytes());
    }
    Ok(Ok(hex(&digest.finalize())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A repository with one commit of these files; answers the commit.
    fn commit(repo: &Repository, files: &[(&str, &str, i32)]) -> Oid {
        let mut index = git2::Index::new().unwrap();
        for (path, text, mode) in files {
            let id = repo.blob(text.as_bytes()).unwrap();
            let entry = git2::IndexEntry {
                ctime: git2::IndexTime::new(0, 0),
                mtime: git2::IndexTime::new(0, 0),
                dev: 0,
                ino: 0,
                mode: u32::try_from(*mode).unwrap(),
                uid: 0,
                gid: 0,
                file_size: 0,
                id,
                flags: 0,
                flags_extended: 0,
                path: path.as_bytes().to_vec(),
            };
            index.add(&entry).unwrap();
        }
        let tree = repo.find_tree(index.write_tree_to(repo).unwrap()).unwrap();
        let who = git2::Signature::now("T", "t@localhost").unwrap();
        repo.commit(None, &who, &who, "c", &tree, &[]).unwrap()
    }

    const FILE: i32 = 0o100_644;

    fn script_of(files: &[(&str, &str, i32)]) -> SetupScript {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repository::init_bare(dir.path()).unwrap();
        let commit = commit(&repo, files);
        read(dir.path(), commit, &Ticket::until(Duration::from_secs(60))).unwrap()
    }

    fn recipe(script: &str, files: &[(&str, &str)]) -> Recipe {
        let mut all = vec![(SETUP_SCRIPT, script, FILE)];
        all.extend(files.iter().map(|(path, text)| (*path, *text, FILE)));
        match script_of(&all) {
            SetupScript::Usable(recipe) => recipe,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_named_inputs_every_change_counts() {
        let one = recipe("true", &[("a", "1"), ("b", "1")]);
        assert!(!one.narrowed);
        assert_eq!(recipe("true", &[("a", "1"), ("b", "1")]), one);
        assert_ne!(recipe("true", &[("a", "1"), ("b", "2")]).inputs, one.inputs);
        assert_ne!(recipe("false", &[("a", "1"), ("b", "1")]).script, one.script);
    }

    #[test]
    fn named_inputs_are_all_that_counts() {
        let script =
            "#!/bin/bash\n# orchestra: inputs Cargo.lock ./lib/\n  #orchestra: inputs packages/*/package.json\ntrue\n";
        let files = [
            ("Cargo.lock", "1"),
            ("lib/deep/x", "1"),
            ("packages/a/package.json", "1"),
            ("packages/a/b/package.json", "1"),
            ("src/main.rs", "1"),
        ];
        let one = recipe(script, &files);
        assert!(one.narrowed);
        let changed = |path: &str, text| {
            let mut files = files.to_vec();
            match files.iter_mut().find(|(name, _)| *name == path) {
                Some(file) => file.1 = text,
                None => panic!("{path}"),
            }
            recipe(script, &files)
        };
        // The star does not cross folders.
        for same in ["src/main.rs", "packages/a/b/package.json"] {
            assert_eq!(changed(same, "2"), one, "{same}");
        }
        for other in ["Cargo.lock", "lib/deep/x", "packages/a/package.json"] {
            assert_ne!(changed(other, "2").inputs, one.inputs, "{other}");
        }
        let mut more = files.to_vec();
        more.push(("packages/b/package.json", "1"));
        assert_ne!(recipe(script, &more).inputs, one.inputs, "one that comes");
        assert_ne!(recipe(script, &files[1..]).inputs, one.inputs, "one that goes");
        // No inputs at all is a choice too.
        assert_eq!(recipe("# orchestra: inputs\n", &files).inputs, recipe("# orchestra: inputs\n", &[]).inputs);
    }

    #[test]
    fn what_cannot_be_run_is_told() {
        let long = "x".repeat(MAX_SETUP_SCRIPT + 1);
        let many = format!("# orchestra: inputs {}", "a ".repeat(MAX_PATTERNS + 1));
        for (text, mode, word) in [
            ("/etc/passwd", 0o120_000, "no regular file"),
            (&*long, FILE, "larger than"),
            (&*many, FILE, "more than 64"),
            ("# orchestra: imputs Cargo.lock", FILE, "not understood"),
            ("# orchestra: inputs [", FILE, "no pattern"),
        ] {
            match script_of(&[(SETUP_SCRIPT, text, mode)]) {
                SetupScript::Unusable(reason) => assert!(reason.contains(word), "{reason}"),
                other => panic!("{word}: {other:?}"),
            }
        }
        assert_eq!(script_of(&[("README.md", "x", FILE)]), SetupScript::Absent);
        // A folder of that name.
        let nested = format!("{SETUP_SCRIPT}/x");
        assert!(matches!(script_of(&[(&nested, "x", FILE)]), SetupScript::Unusable(_)));
    }
}
