//! Git end to end against a real `git http-backend`: a clone in, an agent's work out, one branch on the forge.

#[path = "support/repo.rs"]
mod repo;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestra_events::{CommitId, FailureCode};
use orchestra_runtime::forge::ForgeKind;
use orchestra_runtime::git::{
    Cloned, CommitPolicy, Git, GitAuth, GitConfig, GitError, History, ImportRules, Imported, Remote, RemoteKind,
    Signature, diff_script, export_script, with_current_token,
};
use orchestra_test_forges::{At, Fault, GitServer};
use secrecy::SecretString;

/// A token that must never be seen again.
const TOKEN: &str = "ghp_canary/9=41&x";

fn token() -> Option<SecretString> {
    Some(TOKEN.to_owned().into())
}

fn config() -> GitConfig {
    GitConfig::new(env!("CARGO_BIN_EXE_import-child"))
}

fn rules() -> ImportRules {
    ImportRules::default()
}

fn policy(mode: History) -> CommitPolicy {
    let who = Signature { name: "Orchestra".to_owned(), email: "o@example.com".to_owned() };
    CommitPolicy {
        mode,
        author: who.clone(),
        committer: who,
        co_authors: Vec::new(),
        trailers: Vec::new(),
        message: "Say three\n\nBody".to_owned(),
        time: jiff::Timestamp::UNIX_EPOCH,
    }
}

struct World {
    dir: tempfile::TempDir,
    server: GitServer,
    git: Git,
}

impl World {
    async fn new() -> Self {
        Self::with(config()).await
    }

    async fn with(config: GitConfig) -> Self {
        Self::within(config, repo::folder()).await
    }

    async fn within(config: GitConfig, dir: tempfile::TempDir) -> Self {
        repo::origin(dir.path());
        let server = GitServer::start(dir.path(), TOKEN).await;
        Self { dir, server, git: Git::new(config) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn origin(&self) -> PathBuf {
        self.path("acme/api.git")
    }

    fn remote(&self) -> Remote {
        Remote {
            url: self.server.url("acme/api"),
            kind: RemoteKind::Http,
            auth: GitAuth::User("x-access-token".to_owned()),
        }
    }

    fn local(&self) -> Remote {
        Remote {
            url: self.origin().to_string_lossy().into_owned(),
            kind: RemoteKind::Local,
            auth: GitAuth::User(String::new()),
        }
    }

    async fn clone(&self) -> Cloned {
        self.git.clone(&self.path("trusted.git"), &self.remote(), token(), None).await.expect("a clone")
    }

    /// Clone, checkout, the agent's shell line, export, import and commit.
    async fn work(&self, remote: &Remote, line: &str) -> (Cloned, CommitId) {
        let trusted = self.path("trusted.git");
        let cloned = self.git.clone(&trusted, remote, token(), None).await.expect("a clone");
        let workspace = self.path("workspace");
        self.git.checkout(&trusted, &cloned.commit, &workspace, repo::agent()).await.expect("a checkout");
        repo::as_agent(&workspace, line);
        let (pack, err) = repo::in_sandbox(&workspace, &export_script(&cloned.commit, History::Keep));
        let imported =
            self.git.import(&trusted, &cloned.commit, &pack[..], &rules()).await.expect(&err).expect("a change");
        let id = self.commit(&trusted, &cloned.commit, &imported).await;
        (cloned, id)
    }

    async fn commit(&self, trusted: &Path, base: &CommitId, imported: &Imported) -> CommitId {
        let made = self.git.commit(trusted, base, imported, &policy(History::Keep)).await.expect("commits");
        made.into_iter().next_back().expect("at least one")
    }

    async fn push(&self, branch: &str, commit: &CommitId) -> Result<bool, GitError> {
        let pushed = self.git.push(&self.path("trusted.git"), &self.remote(), token(), branch, commit).await;
        pushed.map(|pushed| pushed.already_there)
    }
}

/// The error's code; and that nobody can read the token in it.
fn code(error: &GitError) -> FailureCode {
    let failure = error.failure();
    for text in [format!("{error}"), format!("{error:?}"), format!("{failure}"), format!("{failure:?}")] {
        assert!(!text.contains("canary") && !text.contains("eC1hY2Nlc3MtdG9rZW46"), "the token shows: {text}");
    }
    failure.code
}

const EDIT: &str = "echo three >> README.md; echo new > src/new.txt; mkdir -p target; echo x > target/x; chmod +x src/new.txt; rm go.bat";

#[tokio::test]
async fn an_agents_work_becomes_one_commit_on_a_branch() {
    let world = World::new().await;
    let (cloned, commit) = world.work(&world.remote(), EDIT).await;
    assert_eq!((cloned.default_branch.as_str(), cloned.base.as_str()), ("main", "main"));
    assert!(!world.push("orchestra/x-1", &commit).await.expect("a push"));

    let origin = world.origin();
    assert_eq!(repo::git(&origin, &["rev-parse", "orchestra/x-1"]), commit.as_str());
    assert_eq!(repo::git(&origin, &["rev-parse", "orchestra/x-1^"]), cloned.commit.as_str());
    assert_eq!(
        repo::git(&origin, &["diff", "--raw", "--no-abbrev", "--name-status", "main", "orchestra/x-1"]),
        "M\tREADME.md\nD\tgo.bat\nA\tsrc/new.txt"
    );
    assert!(repo::git(&origin, &["ls-tree", "orchestra/x-1", "src/new.txt"]).starts_with("100755"));
    assert_eq!(
        repo::git(&origin, &["log", "-1", "--format=%an %ae %at|%B", "orchestra/x-1"]),
        "Orchestra o@example.com 0|Say three\n\nBody"
    );
    repo::git(&origin, &["fsck", "--strict"]);

    // The forge was asked for the token and got it; the same push again sends nothing.
    let before = world.server.requests().len();
    assert!(world.push("orchestra/x-1", &commit).await.expect("the same push"));
    assert!(
        world.server.requests()[before..].iter().all(|line| line.starts_with("GET")),
        "{:?}",
        world.server.requests()
    );

    let diff = world.git.diff(&world.path("trusted.git"), &cloned.commit, &commit, 1 << 20).await.expect("a diff");
    assert_eq!((diff.files, diff.insertions, diff.deletions, diff.truncated), (3, 2, 1, false));
    assert!(String::from_utf8_lossy(&diff.text).contains("+three\n"));
    let cut = world.git.diff(&world.path("trusted.git"), &cloned.commit, &commit, 60).await.expect("a diff");
    assert!(cut.truncated && cut.text.len() <= 60 && cut.insertions == 2);
}

/// Bitbucket Data Center wants its tokens in a header, which libgit2 sends unasked: to that server alone.
#[tokio::test]
async fn a_forge_that_wants_a_header_gets_the_token_so() {
    const BEARER: &str = "BBDC-canary";
    let mut world = World::new().await;
    world.server = GitServer::start_bearer(world.dir.path(), BEARER).await;
    let remote = Remote { auth: GitAuth::Forge(ForgeKind::BitbucketDc), ..world.remote() };
    let (trusted, token) = (world.path("trusted.git"), || Some(SecretString::from(BEARER)));
    let cloned = world.git.clone(&trusted, &remote, token(), None).await.expect("a clone");
    assert_eq!(cloned.default_branch, "main");
    let tree: CommitId =
        repo::git(&trusted, &["hash-object", "-t", "tree", "-w", "/dev/null"]).try_into().expect("a tree");
    let tip = cloned.commit.clone();
    let nothing_left = Imported { tip, tree, files_changed: 1, history: History::Squash };
    let squashed = policy(History::Squash);
    let commit =
        world.git.commit(&trusted, &cloned.commit, &nothing_left, &squashed).await.expect("a commit").remove(0);
    world.git.push(&trusted, &remote, token(), "orchestra/x-1", &commit).await.expect("a push");
    assert_eq!(repo::git(&world.origin(), &["rev-parse", "orchestra/x-1"]), commit.as_str());
    assert!(world.server.authorizations().iter().all(|header| *header == format!("Bearer {BEARER}")));

    let dead = world.git.clone(&world.path("b.git"), &remote, Some("BBDC-canary-dead".to_owned().into()), None).await;
    assert_eq!(code(&dead.expect_err("a dead token")), FailureCode::GitAuth);

    let elsewhere = GitServer::start_bearer(world.dir.path(), BEARER).await;
    for base in [elsewhere.base(), elsewhere.base().replace("127.0.0.1", "localhost")] {
        world.server.fault(Some((At::All, Fault::Redirect(base))));
        let cloned = world.git.clone(&world.path("c.git"), &remote, token(), None).await;
        let pushed = world.git.push(&trusted, &remote, token(), "orchestra/x-2", &commit).await;
        assert!(matches!(cloned, Err(GitError::Redirected { .. })), "{cloned:?}");
        assert!(matches!(pushed, Err(GitError::Redirected { .. })), "{pushed:?}");
        assert_eq!(elsewhere.authorizations(), Vec::<String>::new());
    }
}

/// Bitbucket Cloud's API tokens are supplied with their owner's address, which git has no use for.
#[tokio::test]
async fn the_second_half_of_a_pair_is_the_password() {
    let mut world = World::new().await;
    world.server = GitServer::start(world.dir.path(), "ATATT3xcanary").await;
    let remote = Remote { auth: GitAuth::Forge(ForgeKind::BitbucketCloud), ..world.remote() };
    let token = Some(SecretString::from("ann@example.com:ATATT3xcanary"));
    world.git.clone(&world.path("trusted.git"), &remote, token, None).await.expect("a clone");
}

#[tokio::test]
async fn the_workspace_is_an_ordinary_clone_that_belongs_to_the_agent() {
    let world = World::new().await;
    let cloned = world.clone().await;
    let (trusted, workspace) = (world.path("trusted.git"), world.path("workspace"));
    let stats = world.git.checkout(&trusted, &cloned.commit, &workspace, repo::agent()).await.expect("a checkout");
    assert_eq!(stats.files, 7);
    assert_eq!(repo::as_agent(&workspace, "git status --porcelain"), "");
    assert_eq!(repo::as_agent(&workspace, "git log --format=%s"), "second\nfirst\n");
    assert_eq!(std::fs::read(workspace.join("go.bat")).expect("the file"), b"echo hi\r\n");
    assert_eq!(std::fs::read_link(workspace.join("outside")).expect("a link"), Path::new("/etc/passwd"));
    assert_eq!(std::fs::metadata("/etc/passwd").expect("there").uid(), 0, "links are not followed");
    assert_eq!(repo::as_agent(&workspace, "find . ! -user $(id -u)"), "", "everything is the agent's");
    assert!(repo::as_agent(&workspace, "find .git/objects -type f -links +1").is_empty(), "no hard links to the host");
    // Once more into what is there.
    repo::as_agent(&workspace, "echo junk > junk");
    world.git.checkout(&trusted, &cloned.commit, &workspace, repo::agent()).await.expect("again");
    assert!(!workspace.join("junk").exists());
}

#[tokio::test]
async fn a_local_forge_takes_the_same_way() {
    let world = World::new().await;
    let (cloned, commit) = world.work(&world.local(), EDIT).await;
    let push = |branch: &'static str, commit: CommitId| {
        let world = &world;
        async move { world.git.push(&world.path("trusted.git"), &world.local(), None, branch, &commit).await }
    };
    assert!(!push("orchestra/l", commit.clone()).await.expect("a push").already_there);
    assert!(push("orchestra/l", commit.clone()).await.expect("again").already_there);
    assert_eq!(
        repo::git(&world.origin(), &["rev-parse", "orchestra/l^{tree}"]),
        repo::git(&world.path("trusted.git"), &["rev-parse", &format!("{commit}^{{tree}}")])
    );
    repo::git(&world.origin(), &["fsck", "--strict"]);
    let conflict = push("main", commit.clone()).await.expect_err("a conflict");
    assert_eq!(code(&conflict), FailureCode::PushConflict);
    assert_eq!(conflict, GitError::Conflict { branch: "main".to_owned(), found: Some(cloned.commit) });
    // A name in the way, as a file, in the list of packed ones, and beneath.
    for branch in ["main/x", "orchestra"] {
        let taken = push(branch, commit.clone()).await.expect_err("a name in the way");
        assert!(matches!(taken, GitError::BranchNameTaken { .. }), "{branch}: {taken}");
        repo::git(&world.origin(), &["pack-refs", "--all"]);
        let taken = push(branch, commit.clone()).await.expect_err("a name in the way");
        assert!(matches!(taken, GitError::BranchNameTaken { .. }), "{branch}, packed: {taken}");
    }
    // What the disk says is not taken for a name.
    std::os::unix::fs::symlink("/nowhere/at/all", world.origin().join("refs/heads/odd")).expect("a link");
    let odd = push("odd/x", commit).await.expect_err("no folder can be made there");
    assert!(matches!(odd, GitError::Io { .. }), "{odd}");
    let missing = Remote { url: world.path("no.git").to_string_lossy().into_owned(), ..world.local() };
    let error = world.git.clone(&world.path("c.git"), &missing, None, None).await.expect_err("nothing there");
    assert_eq!(code(&error), FailureCode::RepoNotFound);
}

#[tokio::test]
async fn a_lock_on_a_branch_is_waited_for_and_a_dead_programs_lock_is_passed() {
    let world = World::new().await;
    let (_, commit) = world.work(&world.local(), EDIT).await;
    let folder = world.origin().join("refs/heads/orchestra");
    std::fs::create_dir_all(&folder).expect("a folder");
    let trusted = world.path("trusted.git");

    // Somebody has it, and lets it go.
    let lock = folder.join("held.lock");
    std::fs::write(&lock, "").expect("a lock");
    let remote = world.local();
    let push = world.git.push(&trusted, &remote, None, "orchestra/held", &commit);
    let held_until_then = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!folder.join("held").exists(), "nothing is written past a lock that somebody has");
        std::fs::remove_file(&lock).expect("it is still there");
    };
    let (pushed, ()) = tokio::join!(push, held_until_then);
    assert!(!pushed.expect("a push").already_there);

    // Who had it died with it.
    let lock = folder.join("dead.lock");
    std::fs::write(&lock, "").expect("a lock");
    let pushed = world.git.push(&trusted, &world.local(), None, "orchestra/dead", &commit).await;
    assert!(!pushed.expect("a push").already_there);
    assert!(!lock.exists());
    assert_eq!(repo::git(&world.origin(), &["rev-parse", "orchestra/dead"]), commit.to_string());

    // On somebody else's machine it is not ours to judge.
    let lock = folder.join("away.lock");
    std::fs::write(&lock, "").expect("a lock");
    let refused = world.push("orchestra/away", &commit).await.expect_err("it is locked");
    assert_eq!((code(&refused), refused.failure().retryable), (FailureCode::PushRejected, true), "{refused}");
    assert!(lock.exists());
    std::fs::remove_file(&lock).expect("it is there");
    assert!(!world.push("orchestra/away", &commit).await.expect("a push"));
}

#[tokio::test]
async fn a_shallow_clone_is_enough_for_the_whole_way() {
    let world = World::with(GitConfig { depth: Some(1), ..config() }).await;
    let seed = world.path("seed");
    for n in 0..30 {
        repo::git(&seed, &["commit", "-q", "--allow-empty", "-m", &format!("more {n}")]);
    }
    repo::git(&seed, &["push", "-q", &world.origin().to_string_lossy(), "main"]);
    let (cloned, _) = world.work(&world.remote(), EDIT).await;
    let trusted = world.path("trusted.git");
    let history = repo::as_agent(&world.path("workspace"), "git log --format=%s");
    assert_eq!(history.lines().count(), 1, "{history}");

    // Neither a commit that is younger than its base nor one that claims to be older needs more history than there is.
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let fetches = || {
        world
            .server
            .requests()
            .iter()
            .filter(|line| line.starts_with("POST") && line.contains("git-upload-pack"))
            .count()
    };
    let before = fetches();
    let (pack, _) = repo::in_sandbox(&world.path("workspace"), &export_script(&cloned.commit, History::Keep));
    let imported =
        world.git.import(&trusted, &cloned.commit, &pack[..], &rules()).await.expect("again").expect("a change");
    let policy = CommitPolicy { time: later, ..policy(History::Keep) };
    let today = world.git.commit(&trusted, &cloned.commit, &imported, &policy).await.expect("a commit").remove(0);
    assert!(!world.push("orchestra/today", &today).await.expect("a push"));
    let old = world.commit(&trusted, &cloned.commit, &imported).await;
    assert!(!world.push("orchestra/old", &old).await.expect("a push"));
    assert_eq!(fetches(), before);
    repo::git(&world.origin(), &["fsck", "--strict"]);
    assert_eq!(repo::git(&world.origin(), &["rev-list", "--count", "orchestra/today"]), "33");
}

#[tokio::test]
async fn an_untouched_tree_is_nothing_to_push() {
    let world = World::new().await;
    let cloned = world.clone().await;
    let (trusted, workspace) = (world.path("trusted.git"), world.path("workspace"));
    world.git.checkout(&trusted, &cloned.commit, &workspace, repo::agent()).await.expect("a checkout");
    repo::as_agent(&workspace, "mkdir target; echo x > target/x");
    let (pack, _) = repo::in_sandbox(&workspace, &export_script(&cloned.commit, History::Keep));
    assert_eq!(pack, b"unchanged\n");
    assert_eq!(world.git.import(&trusted, &cloned.commit, &pack[..], &rules()).await.expect("no error"), None);
    let tree =
        CommitId::try_from(repo::git(&trusted, &["rev-parse", &format!("{}^{{tree}}", cloned.commit)])).expect("hex");
    let same = Imported { tip: cloned.commit.clone(), tree, files_changed: 0, history: History::Keep };
    let made = world.git.commit(&trusted, &cloned.commit, &same, &policy(History::Keep)).await;
    let error = made.expect_err("empty");
    assert_eq!(code(&error), FailureCode::NothingToPush);
}

#[tokio::test]
async fn the_work_comes_out_whatever_the_agent_did_to_its_git() {
    let world = World::new().await;
    let (trusted, workspace) = (world.path("trusted.git"), world.path("workspace"));
    let cloned = world.clone().await;
    for (name, line, expected) in [
        (
            "hooks and config",
            "printf '#!/bin/sh\nexit 1\n' > .git/hooks/pre-commit 2>/dev/null || { mkdir -p .git/hooks; printf '#!/bin/sh\nexit 1\n' > .git/hooks/pre-commit; }; chmod +x .git/hooks/pre-commit; git config core.fsmonitor /bin/false; git config core.worktree /; git config commit.gpgsign true; git config core.excludesFile /dev/stdin; echo a > a",
            "A\ta",
        ),
        (
            "own commits on another branch",
            "git config user.name x; git config user.email x@x; git checkout -qb mine; echo a > a; git add a; git commit -qm one; echo b > b",
            "A\ta\nA\tb",
        ),
        ("a corrupt index and HEAD", "echo junk > .git/index; echo junk > .git/HEAD; echo a > a", "A\ta"),
        (
            "a forced file",
            "mkdir target; echo a > target/a; git -c user.name=x -c user.email=x@x add -f target/a; git -c user.name=x -c user.email=x@x commit -qm f",
            "A\ttarget/a",
        ),
        (
            "nested repositories",
            "git init -q sub; echo x > sub/x; git init -q two; (cd two; git -c user.name=x -c user.email=x@x commit -q --allow-empty -m x); echo a > a",
            "A\ta",
        ),
        (
            "odd names",
            "echo a > $'n\\xff'; echo a > 'sp ace'; mkfifo pipe; ln -s README.md l2",
            "A\tl2\nA\t\"n\\377\"\nA\tsp ace",
        ),
        ("rewritten history", "git -c user.name=x -c user.email=x@x commit -q --amend -m other; echo a > a", "A\ta"),
    ] {
        world.git.checkout(&trusted, &cloned.commit, &workspace, repo::agent()).await.expect("a checkout");
        repo::as_agent(&workspace, line);
        let (pack, err) = repo::in_sandbox(&workspace, &export_script(&cloned.commit, History::Keep));
        let imported = world
            .git
            .import(&trusted, &cloned.commit, &pack[..], &rules())
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}: {err}"));
        let imported = imported.unwrap_or_else(|| panic!("{name}: unchanged: {err}"));
        assert_eq!(
            repo::git(&trusted, &["diff", "--name-status", cloned.commit.as_str(), imported.tree.as_str()]),
            expected,
            "{name}"
        );
        let (diff, err) = repo::in_sandbox(&workspace, &diff_script(&cloned.commit));
        assert_eq!(
            String::from_utf8_lossy(&diff).matches("diff --git").count() as u32,
            imported.files_changed,
            "{name}: {err}"
        );
    }
    world.git.checkout(&trusted, &cloned.commit, &workspace, repo::agent()).await.expect("a checkout");
    repo::as_agent(&workspace, "rm -rf .git; git init -q");
    let (pack, _) = repo::in_sandbox(&workspace, &export_script(&cloned.commit, History::Keep));
    let error = world.git.import(&trusted, &cloned.commit, &pack[..], &rules()).await.expect_err("no history");
    assert!(error.failure().hint.contains(".git"), "{error:?}");
}

#[path = "support/git_failures.rs"]
mod failures;
#[path = "support/git_faults.rs"]
mod faults;
#[path = "support/git_history.rs"]
mod history;
#[path = "support/git_hostile.rs"]
mod hostile;
#[path = "support/git_hostile_tree.rs"]
mod hostile_tree;
#[path = "support/git_rules.rs"]
mod import_rules;
