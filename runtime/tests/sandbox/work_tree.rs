//! A task's work tree as it is in service: a commit's files from the cache under the sandbox's own disk, and the work that
//! comes out of it.

#[path = "../support/repo.rs"]
#[allow(dead_code, reason = "shared with tests that forge objects")]
mod repo;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orchestra_events::SandboxId;
use orchestra_runtime::git::{
    CacheDir, Cloned, CommitPolicy, Git, GitAuth, GitConfig, History, ImportRules, Mirror, MirrorKey, Remote,
    RemoteKind, Signature, export_script,
};
use orchestra_runtime::sandbox::{Exec, Sandbox, Sandboxes, WORKSPACE_GID, WORKSPACE_UID};

use crate::host::{Host, limits, say, spec, text};

/// Mode, owner, links, time and content.
type Seen = (u32, u32, u64, i64, i64, Vec<u8>);

struct World {
    host: Host,
    git: Git,
    mirror: Mirror,
    remote: Remote,
    cloned: Cloned,
    lower: PathBuf,
}

impl World {
    async fn new() -> Self {
        let host = Host::new();
        let origin = repo::origin(host.dir.path());
        let git = Git::new(GitConfig::new(env!("CARGO_BIN_EXE_import-child")));
        let cache = CacheDir::open(&host.dir.path().join("mirrors")).unwrap();
        let url = origin.to_string_lossy().into_owned();
        let remote = Remote { url, kind: RemoteKind::Local, auth: GitAuth::User(String::new()) };
        let access = git.prove_access(&cache, &remote, None, None).await.unwrap();
        let mirror = cache.mirror(&MirrorKey::new("local", &remote, "acme/api", None));
        let owner = (WORKSPACE_UID, WORKSPACE_GID);
        let lower = git.lower(&mirror, &remote, None, &access.cloned, owner).await.unwrap();
        Self { host, git, mirror, remote, cloned: lower.cloned, lower: lower.path }
    }

    async fn start(&self, id: SandboxId) -> Arc<dyn Sandbox> {
        self.host.sandboxes.create_volume(id, 256 << 20).await.unwrap().lay("", &self.lower).await.unwrap();
        self.host.start(id).await
    }

    /// Every byte, owner and mode of the mirror and its files, and every time but that of the notes of use.
    fn cached(&self) -> BTreeMap<PathBuf, Seen> {
        let mut found = BTreeMap::new();
        let mut pending = vec![self.mirror.dir().to_owned()];
        while let Some(path) = pending.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if meta.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            let about = (meta.mode(), meta.uid(), meta.nlink(), meta.mtime(), meta.mtime_nsec(), content);
            found.insert(path, about);
        }
        found
    }

    fn lines(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.mirror.dir().join("lines")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }
}

fn exec(argv: Vec<String>) -> Exec {
    Exec {
        id: uuid::Uuid::now_v7().to_string(),
        argv,
        env: Vec::new(),
        cwd: "/workspace".into(),
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
    }
}

#[tokio::test]
async fn the_work_of_a_task_on_shared_files_reaches_the_forge() {
    let world = World::new().await;
    let id = world.host.id();
    let trusted = world.host.dir.path().join("trusted.git");
    world.git.seed(&world.lower, &trusted, &world.cloned).await.unwrap();
    let sandbox = world.start(id).await;
    assert_eq!(
        say(&sandbox, "git status --porcelain; git branch --show-current; git log -1 --format=%s").await,
        "work\nsecond\n"
    );
    say(&sandbox, "echo three >> README.md; git mv src lib; echo new > lib/new.txt; rm go.bat").await;
    assert_eq!(
        say(&sandbox, "git add -A; git status --porcelain").await,
        "M  README.md\nD  go.bat\nA  lib/new.txt\nR  src/run.sh -> lib/run.sh\n"
    );
    // As after the loss of the sandbox: started again over its own disk, by another server.
    sandbox.kill().await.unwrap();
    crate::host::until("its helper is gone", || !world.host.dir_of(id).join("init.sock").exists()).await;
    let sandbox = world.host.restarted().start(&spec(id, limits())).await.unwrap();

    let mut pack = sandbox.exec_piped(exec(export_script(&world.cloned.commit, History::Keep))).await.unwrap();
    let imported =
        world.git.import(&trusted, &world.cloned.commit, &mut pack, &ImportRules::default()).await.unwrap().unwrap();
    let who = Signature { name: "a".into(), email: "a@a".into() };
    let policy = CommitPolicy {
        mode: imported.history,
        author: who.clone(),
        committer: who,
        co_authors: Vec::new(),
        trailers: Vec::new(),
        message: "x".to_owned(),
        time: jiff::Timestamp::UNIX_EPOCH,
    };
    let commit = world.git.commit(&trusted, &world.cloned.commit, &imported, &policy).await.unwrap().remove(0);
    world.git.push(&trusted, &world.remote, None, "work/1", &commit).await.unwrap();
    let origin = Path::new(&world.remote.url);
    assert_eq!(
        repo::git(origin, &["diff", "--name-status", "--no-renames", "main", "work/1"]),
        "M\tREADME.md\nD\tgo.bat\nA\tlib/new.txt\nA\tlib/run.sh\nD\tsrc/run.sh"
    );
    repo::git(origin, &["fsck", "--strict"]);
}

#[tokio::test]
async fn a_status_reads_no_file_that_was_not_changed() {
    let world = World::new().await;
    // If a status looked into this file, it would see that it is another one: size and time are as before.
    let file = world.lower.join("README.md");
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "onX\ntwo\n").unwrap();
    fs::File::options().append(true).open(&file).unwrap().set_modified(time).unwrap();
    let sandbox = world.start(world.host.id()).await;
    assert_eq!(say(&sandbox, "git status --porcelain; git diff --stat; head -1 README.md").await, "onX\n");
    // And one that the agent has changed is seen, even if it is as long as before.
    assert_eq!(say(&sandbox, "printf 'One\\ntwo\\n' > README.md; git status --porcelain").await, " M README.md\n");
}

/// Everything that an agent could try on what it has been given.
const POISON: &str = r#"
cd /workspace
chmod -R u+w . 2>/dev/null
for pack in .git/objects/pack/*; do chmod 666 $pack; printf XXXX > $pack; printf X | dd of=$pack conv=notrunc bs=1 seek=100; mv $pack moved; ln moved $pack; done
rm -rf .git/objects/pack; mkdir -p .git/objects/pack .git/objects/info .git/hooks
echo /etc > .git/objects/info/alternates
printf '#!/bin/sh\ntouch /workspace/ran\n' > .git/hooks/post-checkout; chmod +x .git/hooks/post-checkout
printf '[core]\n\tfsmonitor = touch /workspace/ran\n\tworktree = /etc\n[url "http://evil/"]\n\tinsteadOf = http\n' >> .git/config
find . -type f -not -path './.git/*' | while read f; do echo poison >> "$f"; touch -d 1999-01-01 "$f"; done
rm -f README.md; ln -s /etc/passwd README.md; mkfifo .gitignore2; rm -f .gitignore; mkfifo .gitignore
mv .git gone; ln -s gone .git; rm -rf src; setfattr -n trusted.overlay.opaque -v y . ; setfattr -n user.overlay.redirect -v /etc .
echo done
"#;

#[tokio::test]
async fn a_poisoned_work_tree_never_reaches_the_cache() {
    let world = World::new().await;
    let before = world.cached();
    let id = world.host.id();
    let sandbox = world.start(id).await;
    let outcome = sandbox.exec(exec(["bash", "-c", POISON].map(str::to_owned).to_vec()), None).await.unwrap();
    assert!(text(&outcome).ends_with("done\n"), "{}", text(&outcome));
    assert!(world.cached() == before, "the mirror or its files have changed");

    // The next task, and the next server, see the commit as the forge has it.
    let second = world.start(world.host.id()).await;
    assert_eq!(
        say(&second, "git status --porcelain; git fsck --strict 2>&1; cat README.md; ls -A").await,
        "one\ntwo\n.git\n.gitattributes\n.gitignore\nREADME.md\ngo.bat\nlink\noutside\nsrc\n"
    );
    sandbox.kill().await.unwrap();
    crate::host::until("its helper is gone", || !world.host.dir_of(id).join("init.sock").exists()).await;
    let again = world.host.restarted().start(&spec(id, limits())).await.unwrap();
    assert_eq!(say(&again, "readlink .git README.md").await, "gone\n/etc/passwd\n");
    world.host.sandboxes.destroy(id).await.unwrap();
    assert!(world.cached() == before, "the mirror or its files have changed");
    for repository in world.lines().iter().chain([&world.lower]) {
        repo::git(repository, &["fsck", "--strict"]);
    }
    assert_eq!(
        world.git.census(&CacheDir::open(&world.host.dir.path().join("mirrors")).unwrap()).await.unwrap().len(),
        2
    );
}

#[tokio::test]
async fn nobody_else_on_the_host_can_read_the_cache() {
    let world = World::new().await;
    let root = world.host.dir.path().join("mirrors");
    assert_eq!(fs::metadata(root).unwrap().permissions().mode() & 0o777, 0o700);
}
