//! The cache of repositories: quick for whoever has access, closed for everybody else, and never a way from one repository,
//! branch or task to another. Against a real `git http-backend`; needs root for the sandboxes' disks.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "the forge of these tests is git itself")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orchestra_actors::mirror::{Mirrors, WorkTree, WorkTreeOrder};
use orchestra_events::{CommitId, SandboxId};
use orchestra_runtime::git::{
    CacheLimits, CommitPolicy, Git, GitAuth, GitConfig, GitError, History, Imported, Remote, RemoteKind, Signature,
};
use orchestra_runtime::sandbox::{Containers, SandboxConfig, Sandboxes};
use orchestra_test_forges::{At, Fault, GitServer};
use secrecy::SecretString;

const TOKEN: &str = "token-with-access";

/// One commit of this tree on that base.
async fn commit(git: &Git, repository: &Path, base: &CommitId, tree: &CommitId) -> CommitId {
    let who = Signature { name: "a".into(), email: "a@a".into() };
    let imported = Imported { tip: base.clone(), tree: tree.clone(), files_changed: 1, history: History::Squash };
    let policy = CommitPolicy {
        mode: History::Squash,
        author: who.clone(),
        committer: who,
        co_authors: Vec::new(),
        trailers: Vec::new(),
        message: "x".to_owned(),
        time: jiff::Timestamp::UNIX_EPOCH,
    };
    git.commit(repository, base, &imported, &policy).await.unwrap().remove(0)
}
/// A token, and what the forge answers it when that is not git's own answer.
type Stranger = (Option<&'static str>, Option<(At, Fault)>);

struct World {
    dir: tempfile::TempDir,
    server: GitServer,
    git: Arc<Git>,
    sandboxes: Arc<dyn Sandboxes>,
    mirrors: Mirrors,
}

fn git(dir: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new("git")
        .args(["-c", "safe.directory=*"])
        .args(args)
        .current_dir(dir)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .envs([("GIT_AUTHOR_NAME", "t"), ("GIT_AUTHOR_EMAIL", "t@t")])
        .envs([("GIT_COMMITTER_NAME", "t"), ("GIT_COMMITTER_EMAIL", "t@t")])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn run(dir: &Path, args: &[&str]) -> String {
    git(dir, args).unwrap_or_else(|error| panic!("git {args:?}: {error}"))
}

impl World {
    async fn new() -> Self {
        Self::with(CacheLimits::default(), Some(1)).await
    }

    async fn with(limits: CacheLimits, depth: Option<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("forge/acme")).unwrap();
        fs::create_dir(at("seed")).unwrap();
        run(&at("seed"), &["init", "-q", "-b", "main"]);
        let server = GitServer::start(&at("forge"), TOKEN).await;
        let mut config = GitConfig::new(std::env::current_exe().unwrap());
        config.depth = depth;
        let sandboxes = SandboxConfig::new(at("sandboxes"), at("images")).unwrap();
        let sandboxes: Arc<dyn Sandboxes> = Arc::new(Containers::new(sandboxes).unwrap());
        let git = Arc::new(Git::new(config));
        let mirrors = Mirrors::start(Arc::clone(&git), Arc::clone(&sandboxes), &at("mirrors"), limits).unwrap();
        let world = Self { dir, server, git, sandboxes, mirrors };
        world.commit(&[("README.md", "one\n"), ("src/lib.rs", "fn main() {}\n"), ("data", "the same\n")]);
        run(&world.at("forge"), &["clone", "-q", "--bare", "../seed", "acme/api.git"]);
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A commit in the seed, on the branch that it is on.
    fn commit(&self, files: &[(&str, &str)]) -> CommitId {
        let seed = self.at("seed");
        for (name, content) in files {
            let path = seed.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        run(&seed, &["add", "-A"]);
        run(&seed, &["commit", "-q", "--allow-empty", "-m", "change"]);
        self.head()
    }

    fn head(&self) -> CommitId {
        CommitId::try_from(run(&self.at("seed"), &["rev-parse", "HEAD"])).unwrap()
    }

    fn publish(&self, branch: &str) {
        let origin = self.at("forge/acme/api.git");
        run(&self.at("seed"), &["push", "-qf", origin.to_str().unwrap(), &format!("HEAD:refs/heads/{branch}")]);
    }

    fn order_of(&self, repo: &str) -> WorkTreeOrder {
        WorkTreeOrder {
            forge: "forge".into(),
            repo_path: repo.into(),
            repo_id: None,
            remote: Remote { url: self.server.url(repo), kind: RemoteKind::Http, auth: GitAuth::User("x".to_owned()) },
            token: Some(SecretString::from(TOKEN)),
            base: None,
            repository: self.at(&format!("repositories/{}.git", SandboxId::from_uuid(uuid::Uuid::now_v7()))),
        }
    }

    fn order(&self) -> WorkTreeOrder {
        self.order_of("acme/api")
    }

    async fn tree(&self) -> WorkTree {
        self.mirrors.work_tree(self.order()).await.unwrap()
    }

    fn restarted(&self, limits: CacheLimits) -> Mirrors {
        Mirrors::start(Arc::clone(&self.git), Arc::clone(&self.sandboxes), &self.at("mirrors"), limits).unwrap()
    }

    /// How often objects were fetched.
    fn fetches(&self) -> usize {
        let requests = self.server.requests();
        requests.iter().filter(|line| line.starts_with("POST") && line.contains("git-upload-pack")).count()
    }

    /// Everything in the cache: path, time and length.
    fn cache(&self) -> BTreeMap<PathBuf, (i64, i64, u64)> {
        let mut found = BTreeMap::new();
        let mut pending = vec![self.at("mirrors")];
        while let Some(path) = pending.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            found.insert(path, (meta.mtime(), meta.mtime_nsec(), meta.len()));
        }
        found
    }

    /// Whether the object is anywhere in this repository.
    fn holds(repository: &Path, commit: &CommitId) -> bool {
        git(repository, &["cat-file", "-e", commit.as_str()]).is_ok()
    }
}

/// The repositories of a mirror's base branches.
fn lines(mirror: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(mirror.join("lines")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|kind| kind == "git")).collect()
}

/// Waits until the disk has a commit's files and its line, and answers where the marks were that said it had not.
async fn settled(lower: &Path) -> [PathBuf; 2] {
    let line = lines(lower.ancestors().nth(2).unwrap()).remove(0);
    let marks = [lower.with_extension("unsettled"), line.with_extension("unsettled")];
    until("the disk has everything", || !marks.iter().any(|mark| mark.exists())).await;
    marks
}

/// Asks again until it is so, for at most this long.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn content(tree: &WorkTree, name: &str) -> String {
    fs::read_to_string(tree.lower.join(name)).unwrap()
}

#[actix::test]
async fn the_second_task_fetches_nothing_and_has_a_repository_of_its_own() {
    let world = World::new().await;
    let first_order = world.order();
    let first = world.mirrors.work_tree(first_order.clone()).await.unwrap();
    assert!(!first.hit);
    assert_eq!(
        (content(&first, "README.md"), content(&first, "src/lib.rs")),
        ("one\n".into(), "fn main() {}\n".into())
    );
    assert_eq!(first.heads, ["main"]);
    assert_eq!((first.cloned.base.as_str(), &first.cloned.commit), ("main", &world.head()));
    let fetches = world.fetches();

    let second_order = world.order();
    let second = world.mirrors.work_tree(second_order.clone()).await.unwrap();
    assert!(second.hit);
    assert_eq!((&second.lower, &second.cloned), (&first.lower, &first.cloned));
    assert_eq!(world.fetches(), fetches);
    for repository in [&first_order.repository, &second_order.repository, &second.lower] {
        assert_eq!(run(repository, &["rev-parse", "HEAD"]), first.cloned.commit.as_str());
        run(repository, &["fsck", "--strict"]);
    }
    assert_eq!(run(&second.lower, &["status", "--porcelain"]), "");

    // What one task does to its repository is its own: objects are added to it, and one of the two goes.
    let base = &first.cloned.commit;
    let tree = CommitId::try_from(run(&first.lower, &["rev-parse", "HEAD:src"])).unwrap();
    let commit = commit(&world.git, &first_order.repository, base, &tree).await;
    assert!(!World::holds(&second_order.repository, &commit) && !World::holds(&second.lower, &commit));
    // And it is enough to push from, without another fetch.
    let pushed = world.git.push(&first_order.repository, &first_order.remote, first_order.token, "work/1", &commit);
    assert!(!pushed.await.unwrap().already_there);
    assert_eq!(world.fetches(), fetches);
    run(&world.at("forge/acme/api.git"), &["fsck", "--strict"]);
}

#[actix::test]
async fn a_token_without_access_gets_the_forges_answer_and_nothing_of_the_cache() {
    let world = World::new().await;
    let strangers: [Stranger; 3] = [
        (Some("another token"), None),
        (None, None),
        // Forges hide what a token may not see.
        (Some("hidden"), Some((At::All, Fault::Status(404, "text/plain", "Not Found".into(), None)))),
    ];
    let ask = async |token: Option<&str>, fault: &Option<(At, Fault)>| {
        world.server.fault(fault.clone());
        let before = world.server.requests().len();
        let mut order = world.order();
        order.token = token.map(SecretString::from);
        let error = world.mirrors.work_tree(order.clone()).await.unwrap_err();
        world.server.fault(None);
        assert!(!order.repository.exists());
        (error, world.server.requests()[before..].to_vec())
    };
    let mut cold = Vec::new();
    for (token, fault) in &strangers {
        cold.push(ask(*token, fault).await);
    }
    assert!(matches!(cold[0].0, GitError::TokenRejected { .. }), "{:?}", cold[0]);
    assert!(matches!(cold[1].0, GitError::TokenMissing { .. }), "{:?}", cold[1]);
    assert!(matches!(cold[2].0, GitError::RepoNotFound { .. }), "{:?}", cold[2]);

    let lower = world.tree().await.lower;
    // The disk has it all: nothing that still goes on for this task changes a file of the cache.
    settled(&lower).await;
    let cached = world.cache();
    for ((token, fault), cold) in strangers.iter().zip(&cold) {
        // The same sentence, the same requests, and no file of the cache is another than before.
        assert_eq!(&ask(*token, fault).await, cold);
    }
    assert_eq!(world.cache(), cached);
    // Nothing of the cache was needed for that answer: it is the same when there is none to look at.
    fs::rename(world.at("mirrors"), world.at("elsewhere")).unwrap();
    fs::create_dir(world.at("mirrors")).unwrap();
    let (token, fault) = &strangers[0];
    assert_eq!(&ask(*token, fault).await, &cold[0]);
}

#[actix::test]
async fn a_stranger_does_not_wait_behind_another_tasks_fetch() {
    let world = World::new().await;
    world.server.fault(Some((At::Pack, Fault::Hang)));
    let fetching = {
        let (mirrors, order) = (world.mirrors.clone(), world.order());
        actix::spawn(async move { mirrors.work_tree(order).await.map(drop) })
    };
    until("the fetch has begun", || world.fetches() > 0).await;
    let order = WorkTreeOrder { token: Some("another token".into()), ..world.order() };
    let answer = tokio::time::timeout(Duration::from_secs(20), world.mirrors.work_tree(order)).await;
    assert!(matches!(answer.unwrap().unwrap_err(), GitError::TokenRejected { .. }));
    assert!(!fetching.is_finished());
    // Nor does the next task wait behind one that was cancelled while its forge said nothing.
    fetching.abort();
    world.server.fault(None);
    assert!(!tokio::time::timeout(Duration::from_secs(20), world.tree()).await.unwrap().hit);
}

#[actix::test]
async fn a_repository_that_was_made_anew_under_the_same_name_has_nothing_of_the_old_one() {
    for ids in [[Some("1"), Some("2")], [None, None]] {
        let world = World::new().await;
        let order = |id: Option<&str>| WorkTreeOrder { repo_id: id.map(str::to_owned), ..world.order() };
        let old = world.mirrors.work_tree(order(ids[0])).await.unwrap();
        let was = old.cloned.commit.clone();

        fs::remove_dir_all(world.at("forge/acme/api.git")).unwrap();
        fs::remove_dir_all(world.at("seed")).unwrap();
        fs::create_dir(world.at("seed")).unwrap();
        run(&world.at("seed"), &["init", "-q", "-b", "main"]);
        world.commit(&[("NEW.md", "another project\n")]);
        run(&world.at("forge"), &["clone", "-q", "--bare", "../seed", "acme/api.git"]);

        let order = order(ids[1]);
        let new = world.mirrors.work_tree(order.clone()).await.unwrap();
        assert!(!new.hit && !new.lower.join("README.md").exists());
        assert_eq!(content(&new, "NEW.md"), "another project\n");
        for repository in [&order.repository, &new.lower] {
            assert!(!World::holds(repository, &was), "{ids:?}");
        }
        // With an id, not even the directory is the same; without one, no line has the old objects any more.
        let mirror = |tree: &WorkTree| tree.lower.ancestors().nth(2).unwrap().to_owned();
        assert_eq!(mirror(&old) == mirror(&new), ids[0].is_none());
        for line in lines(&mirror(&new)) {
            assert!(!World::holds(&line, &was));
        }
    }
}

#[actix::test]
async fn a_renamed_repository_keeps_its_mirror_where_the_forge_has_an_id() {
    let world = World::new().await;
    let order = |repo: &str| WorkTreeOrder { repo_id: Some("42".into()), ..world.order_of(repo) };
    world.mirrors.work_tree(order("acme/api")).await.unwrap();
    fs::rename(world.at("forge/acme/api.git"), world.at("forge/acme/renamed.git")).unwrap();
    assert!(world.mirrors.work_tree(order("acme/renamed")).await.unwrap().hit);
}

#[actix::test]
async fn forks_hosts_and_forges_share_nothing() {
    let world = World::new().await;
    let first = world.tree().await;
    run(&world.at("forge"), &["clone", "-q", "--bare", "acme/api.git", "mallory/api.git"]);
    let fork = world.mirrors.work_tree(world.order_of("mallory/api")).await.unwrap();
    let other_forge = WorkTreeOrder { forge: "mirror-of-forge".into(), ..world.order() };
    let other_forge = world.mirrors.work_tree(other_forge).await.unwrap();
    // The same number on another host is another repository.
    let second_host = GitServer::start(&world.at("forge"), TOKEN).await;
    let with_id = |url: String| {
        let remote = Remote { url, ..world.order().remote };
        WorkTreeOrder { repo_id: Some("1".into()), remote, ..world.order() }
    };
    let here = world.mirrors.work_tree(with_id(world.server.url("acme/api"))).await.unwrap();
    let there = world.mirrors.work_tree(with_id(second_host.url("acme/api"))).await.unwrap();
    let all = [&first, &fork, &other_forge, &here, &there];
    assert!(all.iter().all(|tree| !tree.hit && tree.cloned.commit == first.cloned.commit));
    let inodes: std::collections::HashSet<u64> =
        all.iter().map(|tree| fs::metadata(tree.lower.join("README.md")).unwrap().ino()).collect();
    assert_eq!(inodes.len(), all.len());
}

#[actix::test]
async fn what_was_moved_away_by_force_reaches_no_later_task() {
    for depth in [Some(1), None] {
        let world = World::with(CacheLimits::default(), depth).await;
        let seed = world.at("seed");
        let start = world.head();
        let leaked = world.commit(&[("secret", "a leaked key\n")]);
        world.publish("main");
        assert_eq!(content(&world.tree().await, "secret"), "a leaked key\n");

        run(&seed, &["reset", "-q", "--hard", start.as_str()]);
        let clean = world.commit(&[("README.md", "two\n")]);
        world.publish("main");
        let order = world.order();
        let after = world.mirrors.work_tree(order.clone()).await.unwrap();
        assert_eq!((after.hit, &after.cloned.commit), (false, &clean));
        assert!(!after.lower.join("secret").exists());
        let mirror = after.lower.ancestors().nth(2).unwrap();
        for repository in lines(mirror).into_iter().chain([order.repository.clone(), after.lower.clone()]) {
            assert!(!World::holds(&repository, &leaked), "{}", repository.display());
        }
    }
}

#[actix::test]
async fn a_sandbox_gets_the_objects_of_its_own_branch_and_no_others() {
    let world = World::with(CacheLimits::default(), None).await;
    run(&world.at("seed"), &["checkout", "-q", "-b", "embargoed"]);
    let embargoed = world.commit(&[("fix", "for a hole that nobody knows yet\n")]);
    world.publish("embargoed");
    let order = WorkTreeOrder { base: Some("embargoed".into()), ..world.order() };
    assert_eq!(world.mirrors.work_tree(order).await.unwrap().cloned.commit, embargoed);
    let order = WorkTreeOrder { base: Some("main".into()), ..world.order() };
    let main = world.mirrors.work_tree(order.clone()).await.unwrap();
    assert_eq!(main.heads, ["embargoed", "main"]);
    for repository in [&order.repository, &main.lower] {
        assert!(!World::holds(repository, &embargoed));
    }
}

#[actix::test]
async fn a_base_that_the_forge_no_longer_shows_is_not_taken_from_the_cache() {
    let world = World::new().await;
    run(&world.at("seed"), &["checkout", "-q", "-b", "short-lived"]);
    world.commit(&[("x", "x\n")]);
    world.publish("short-lived");
    let order = || WorkTreeOrder { base: Some("short-lived".into()), ..world.order() };
    world.mirrors.work_tree(order()).await.unwrap();
    run(&world.at("forge/acme/api.git"), &["branch", "-D", "short-lived"]);
    let error = world.mirrors.work_tree(order()).await.unwrap_err();
    assert!(matches!(&error, GitError::BaseNotFound { base, .. } if base == "short-lived"), "{error:?}");
}

#[actix::test]
async fn a_base_that_moved_on_costs_only_what_is_new() {
    for depth in [Some(1), None] {
        let world = World::with(CacheLimits::default(), depth).await;
        let first = world.tree().await;
        let inode = |tree: &WorkTree, name: &str| fs::metadata(tree.lower.join(name)).unwrap().ino();
        fs::remove_file(world.at("seed/src/lib.rs")).unwrap();
        let next = world.commit(&[("README.md", "two\n"), ("data2", "new\n")]);
        world.publish("main");
        let order = world.order();
        let second = world.mirrors.work_tree(order.clone()).await.unwrap();
        assert_eq!((second.hit, &second.cloned.commit), (false, &next));
        assert_eq!(content(&second, "README.md"), "two\n");
        assert!(!second.lower.join("src").exists());
        assert_eq!(content(&first, "README.md"), "one\n", "the first task's files are as they were");
        // What is the same is on the disk once, and is one whole repository nevertheless.
        assert_eq!(inode(&first, "data"), inode(&second, "data"));
        assert_ne!(inode(&first, "README.md"), inode(&second, "README.md"));
        for repository in [&order.repository, &second.lower, &first.lower] {
            run(repository, &["fsck", "--strict"]);
        }
        assert_eq!(run(&second.lower, &["status", "--porcelain"]), "");
        assert_eq!(run(&second.lower, &["ls-files"]), "README.md\ndata\ndata2");
        assert_eq!(run(&second.lower, &["rev-list", "--count", "HEAD"]), "2");

        // Other rules for line ends: nothing is taken over from before.
        world.commit(&[(".gitattributes", "data text eol=crlf\n")]);
        world.publish("main");
        let third = world.tree().await;
        assert_eq!(content(&third, "data"), "the same\r\n");
        assert_eq!(content(&second, "data"), "the same\n");
        assert_eq!(run(&third.lower, &["status", "--porcelain"]), "");

        // From the repository of a line that has moved on, a push needs nothing more.
        // A tree that the repository has: that of the commit before.
        let tree = CommitId::try_from(run(&first.lower, &["rev-parse", "HEAD^{tree}"])).unwrap();
        let commit = commit(&world.git, &order.repository, &next, &tree).await;
        let fetches = world.fetches();
        world.git.push(&order.repository, &order.remote, order.token, "work/2", &commit).await.unwrap();
        assert_eq!(world.fetches(), fetches);
    }
}

#[actix::test]
async fn a_line_of_many_small_packs_is_fetched_anew() {
    let world = World::new().await;
    let mut most = 0;
    for n in 0..20 {
        world.commit(&[("counter", &format!("{n}\n"))]);
        world.publish("main");
        let tree = world.tree().await;
        let packs = fs::read_dir(tree.lower.join(".git/objects/pack")).unwrap();
        let packs = packs.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|kind| kind == "pack"));
        most = most.max(packs.count());
        assert_eq!(content(&tree, "counter"), format!("{n}\n"));
        run(&tree.lower, &["fsck", "--strict"]);
    }
    assert!((10..=16).contains(&most), "{most}");
}

#[actix::test]
async fn tasks_that_come_at_once_wait_for_one_fetch() {
    let world = World::new().await;
    let trees = futures_util::future::join_all((0..6).map(|_| world.tree())).await;
    assert_eq!(trees.iter().filter(|tree| !tree.hit).count(), trees.len(), "none was there before");
    let one_fetch = world.fetches();
    assert!(trees.iter().all(|tree| tree.lower == trees[0].lower && tree.cloned == trees[0].cloned));
    // A fetch over HTTP takes a request or two; six of them would be at least six.
    assert!(one_fetch <= 2, "{one_fetch}");
    // Six proofs, and one more of each task that had waited. Each asks twice: libgit2 begins without the token.
    let proofs = world.server.requests().iter().filter(|line| line.contains("service=git-upload-pack")).count() / 2 - 1;
    assert_eq!(proofs, 6 + 5);
}

#[actix::test]
async fn files_that_a_sandbox_uses_are_not_removed() {
    let tight = CacheLimits { max_lowers_per_mirror: 1, ..CacheLimits::default() };
    let world = World::with(tight, Some(1)).await;
    let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
    let first = world.tree().await;
    let volume = world.sandboxes.create_volume(id, 64 << 20).await.unwrap();
    let (used, held) = (first.lower.clone(), first);
    let next = |content: &'static str| {
        world.commit(&[("README.md", content)]);
        world.publish("main");
        world.tree()
    };
    let second = next("two\n").await.lower;
    // Not recorded yet, but held: the task is about to lay it.
    world.mirrors.sweep().await;
    assert!(used.is_dir());
    volume.lay("", &held.lower).await.unwrap();
    drop(held);
    // A server that has just been started knows it from the sandbox's record alone.
    let third = next("three\n").await.lower;
    let mirrors = world.restarted(tight);
    mirrors.sweep().await;
    assert!(used.is_dir() && fs::read_to_string(used.join("README.md")).unwrap() == "one\n");
    assert!(!second.is_dir(), "nobody uses it, and there is a newer one");
    world.sandboxes.destroy(id).await.unwrap();
    mirrors.sweep().await;
    assert!(!used.is_dir() && third.is_dir());
    // A task's own repository does not need the mirror.
    let order = world.order();
    let last = world.mirrors.work_tree(order.clone()).await.unwrap();
    let commit = last.cloned.commit.clone();
    drop(last);
    fs::remove_dir_all(world.at("mirrors")).unwrap();
    assert!(World::holds(&order.repository, &commit));
    run(&order.repository, &["fsck", "--strict"]);
}

#[actix::test]
async fn what_is_old_or_too_much_goes_and_comes_back_when_it_is_needed() {
    let limits = CacheLimits { max_age: Duration::from_secs(3_600), ..CacheLimits::default() };
    let world = World::with(limits, Some(1)).await;
    let lower = world.tree().await.lower;
    let mirror = lower.ancestors().nth(2).unwrap().to_owned();
    world.mirrors.sweep().await;
    assert!(lower.is_dir());
    let long_ago = SystemTime::now() - Duration::from_secs(4_000);
    let line = lines(&mirror).remove(0);
    for path in [lower.with_extension("json"), line.join("HEAD")] {
        fs::File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    // Used again, it is young again.
    assert!(world.tree().await.hit);
    world.mirrors.sweep().await;
    assert!(lower.is_dir() && line.is_dir());
    let small = world.restarted(CacheLimits { max_bytes: 1, ..limits });
    small.sweep().await;
    assert!(!mirror.exists());
    let again = world.tree().await;
    assert!(!again.hit && content(&again, "README.md") == "one\n");
}

#[actix::test]
async fn a_crash_leaves_nothing_that_is_taken_for_whole() {
    let world = World::new().await;
    let lower = world.tree().await.lower;
    let mirror = lower.ancestors().nth(2).unwrap().to_owned();
    // Half a work tree, half a line, half a removal, a note without files, and files without a note.
    let odd = ["lowers/.partial-1/x", "lowers/.gone-1/x", "lines/.gone-1/x", "lines/.abc.git.partial-1/x"];
    for name in odd {
        fs::create_dir_all(mirror.join(name)).unwrap();
    }
    fs::create_dir_all(world.at("mirrors/.partial-scratch")).unwrap();
    let next = world.commit(&[("README.md", "two\n")]);
    world.publish("main");
    let unfinished = lower.with_file_name(next.as_str());
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("README.md"), "half a").unwrap();
    fs::write(lower.with_file_name(format!("{}.json", "0".repeat(40))), "{}").unwrap();

    let mirrors = world.restarted(CacheLimits::default());
    mirrors.sweep().await;
    for name in odd {
        assert!(!mirror.join(name).parent().unwrap().exists(), "{name}");
    }
    assert!(!world.at("mirrors/.partial-scratch").exists());
    assert!(lower.is_dir());
    let names: Vec<_> = fs::read_dir(mirror.join("lowers")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with("000")), "{names:?}");
    let tree = mirrors.work_tree(world.order()).await.unwrap();
    assert!(!tree.hit);
    assert_eq!((&tree.lower, content(&tree, "README.md")), (&unfinished, "two\n".into()));
}

#[actix::test]
async fn what_the_disk_did_not_have_when_the_power_went_is_not_trusted() {
    let world = World::new().await;
    let lower = world.tree().await.lower;
    let marks = settled(&lower).await;
    assert!(world.restarted(CacheLimits::default()).work_tree(world.order()).await.unwrap().hit);

    // The same server again before the disk had it: good. The machine again: not.
    for (boot, good) in
        [(fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap(), true), ("another".into(), false)]
    {
        fs::write(lower.join("README.md"), "").unwrap();
        for mark in &marks {
            fs::write(mark, &boot).unwrap();
        }
        let fetches = world.fetches();
        let tree = world.restarted(CacheLimits::default()).work_tree(world.order()).await.unwrap();
        assert_eq!((tree.hit, world.fetches() == fetches), (good, good));
        assert_eq!(content(&tree, "README.md") == "one\n", !good);
    }
}

#[actix::test]
async fn damaged_files_that_a_sandbox_uses_are_not_taken_from_under_it() {
    let world = World::new().await;
    let lower = world.tree().await.lower;
    settled(&lower).await;
    let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
    world.sandboxes.create_volume(id, 64 << 20).await.unwrap().lay("", &lower).await.unwrap();
    fs::remove_file(lower.with_extension("json")).unwrap();
    let inode = || fs::metadata(&lower).unwrap().ino();
    let before = inode();
    let error = world.mirrors.work_tree(world.order()).await.unwrap_err();
    assert!(matches!(error, GitError::Io { .. }) && error.failure().retryable, "{error:?}");
    assert_eq!((inode(), fs::read_to_string(lower.join("README.md")).unwrap()), (before, "one\n".into()));
    world.sandboxes.destroy(id).await.unwrap();
    assert!(!world.tree().await.hit);
    assert_ne!(inode(), before);
}

#[actix::test]
async fn one_unreadable_record_keeps_all_files_and_not_the_branches() {
    let world = World::new().await;
    let lower = world.tree().await.lower;
    settled(&lower).await;
    let id = SandboxId::from_uuid(uuid::Uuid::now_v7());
    let volume = world.sandboxes.create_volume(id, 64 << 20).await.unwrap();
    let record = volume.workspace().ancestors().nth(2).unwrap().join("layers.json");
    fs::write(&record, "{").unwrap();
    let none = CacheLimits { max_bytes: 0, max_age: Duration::ZERO, max_lowers_per_mirror: 0 };
    let mirrors = world.restarted(none);
    assert_eq!(mirrors.sweep().await, 1);
    assert!(lower.is_dir() && lines(lower.ancestors().nth(2).unwrap()).is_empty());
    world.sandboxes.destroy(id).await.unwrap();
    assert_eq!(mirrors.sweep().await, 1);
    assert!(!lower.exists());
}

#[actix::test]
async fn a_note_without_files_at_the_start_is_not_taken_from_files_that_came_since() {
    let world = World::new().await;
    let lower = world.tree().await.lower;
    settled(&lower).await;
    fs::remove_dir_all(&lower).unwrap();
    let mirrors = world.restarted(CacheLimits::default());
    assert!(!mirrors.work_tree(world.order()).await.unwrap().hit);
    assert_eq!(mirrors.sweep().await, 0);
    assert!(mirrors.work_tree(world.order()).await.unwrap().hit);
}

#[actix::test]
async fn a_fetch_that_breaks_leaves_the_cache_as_it_was() {
    let world = World::new().await;
    let first = world.tree().await;
    world.commit(&[("README.md", &"two\n".repeat(10_000))]);
    world.publish("main");
    world.server.fault(Some((At::Pack, Fault::Cut(200))));
    let error = world.mirrors.work_tree(world.order()).await.unwrap_err();
    assert!(error.failure().retryable, "{error:?}");
    world.server.fault(None);
    let mirror = first.lower.ancestors().nth(2).unwrap();
    for folder in ["lines", "lowers"] {
        let names: Vec<_> =
            fs::read_dir(mirror.join(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{names:?}");
    }
    assert!(!world.tree().await.hit);
    run(&first.lower, &["fsck", "--strict"]);
}

#[actix::test]
async fn another_process_on_the_same_cache_finds_what_is_there() {
    let world = World::new().await;
    let first = world.tree().await;
    let again = world.restarted(CacheLimits::default()).work_tree(world.order()).await.unwrap();
    assert!(again.hit && again.lower == first.lower);
}

#[actix::test]
async fn a_local_forge_takes_the_same_way() {
    let world = World::new().await;
    let url = world.at("forge/acme/api.git").to_string_lossy().into_owned();
    let order = || WorkTreeOrder {
        remote: Remote { url: url.clone(), kind: RemoteKind::Local, auth: GitAuth::User(String::new()) },
        token: None,
        ..world.order()
    };
    let first = world.mirrors.work_tree(order()).await.unwrap();
    assert!(!first.hit && world.mirrors.work_tree(order()).await.unwrap().hit);
    world.commit(&[("README.md", "two\n")]);
    world.publish("main");
    let next = world.mirrors.work_tree(order()).await.unwrap();
    assert!(!next.hit && content(&next, "README.md") == "two\n");
    let missing = Remote { url: format!("{url}.missing"), ..order().remote };
    let error = world.mirrors.work_tree(WorkTreeOrder { remote: missing, ..order() }).await.unwrap_err();
    assert!(matches!(error, GitError::RepoNotFound { .. }));
}
