//! Commits whose names are meant to hurt the host that writes them out for its sandboxes.

#[path = "support/repo.rs"]
#[allow(dead_code, reason = "shared with tests that run an agent's commands")]
mod repo;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use orchestra_events::CommitId;
use orchestra_runtime::git::{CacheDir, Git, GitAuth, GitConfig, GitError, Lower, MirrorKey, Remote, RemoteKind};
use repo::{Entry, Forge};

const OWNER: (u32, u32) = (65_534, 65_534);

/// Makes the tree a commit on `main` of a local forge and writes it out as a task's files.
async fn write_out(root: &Path, forge: &Forge, tree: &str, before: Option<&str>) -> Result<Lower, GitError> {
    let commit = forge.commit(tree, before);
    repo::git(&forge.path(), &["update-ref", "refs/heads/main", &commit]);
    let git = Git::new(GitConfig::new(env!("CARGO_BIN_EXE_import-child")));
    let cache = CacheDir::open(&root.join("mirrors")).expect("a directory");
    let url = forge.path().to_string_lossy().into_owned();
    let remote = Remote { url, kind: RemoteKind::Local, auth: GitAuth::User(String::new()) };
    let access = git.prove_access(&cache, &remote, None, Some("main")).await?;
    assert_eq!(access.cloned.commit.as_str(), commit);
    git.lower(&cache.mirror(&MirrorKey::new("f", &remote, "x", None)), &remote, None, &access.cloned, OWNER).await
}

#[tokio::test]
async fn names_that_lead_out_of_the_work_tree_change_nothing_on_the_host() {
    let dir = repo::folder();
    let root = dir.path();
    let trusted = repo::origin(root);
    let main = repo::git(&trusted, &["rev-parse", "main"]);
    let base = CommitId::try_from(main).expect("hexadecimal");
    let outside = root.join("outside");
    fs::create_dir(&outside).expect("writable");
    let victim = outside.join("victim");
    fs::write(&victim, "the host's\n").expect("writable");
    let state = || {
        let meta = fs::symlink_metadata(&victim).expect("there");
        let content = fs::read_to_string(&victim).expect("there");
        (meta.uid(), meta.gid(), meta.mode(), meta.nlink(), meta.mtime(), meta.mtime_nsec(), content)
    };
    let before = state();

    let forge = Forge::new(&trusted, &base);
    let same = forge.blob(b"the host's\n");
    let link = forge.blob(outside.to_string_lossy().as_bytes());
    let leaf = forge.tree(&[Entry("100644", b"victim", same.clone())]);
    let plain = Entry("100644", b"z", same.clone());
    let up = (0..12).fold(
        forge.tree(&[Entry(
            "40000",
            outside.strip_prefix("/").expect("absolute").iter().next().expect("a name").as_encoded_bytes(),
            leaf.clone(),
        )]),
        |tree, _| forge.tree(&[Entry("40000", b"..", tree)]),
    );
    let trees = [
        // One name twice: a link out of the tree, and the folder that would be behind it; in both orders.
        forge.tree(&[Entry("120000", b"a", link.clone()), Entry("40000", b"a", leaf.clone()), plain]),
        forge.tree(&[Entry("40000", b"a", leaf.clone()), Entry("120000", b"a", link.clone())]),
        forge.tree(&[Entry("40000", b"..", leaf.clone())]),
        up,
        forge.tree(&[Entry("100644", b"../victim", same.clone())]),
        forge.tree(&[Entry("100644", victim.as_os_str().as_encoded_bytes(), same.clone())]),
        forge.tree(&[Entry("40000", b".git", forge.tree(&[Entry("40000", b"hooks", leaf.clone())]))]),
        forge.tree(&[Entry("100644", b".GIT", same.clone())]),
    ];
    let mut refused = 0;
    // The second round finds the first tree's files as those to link from.
    let good = forge.tree(&[Entry("100644", b"z", same.clone())]);
    for round in 0..2 {
        for tree in &trees {
            if round == 1 {
                write_out(root, &forge, &good, Some(base.as_str())).await.expect("an ordinary commit");
            }
            let written = write_out(root, &forge, tree, Some(base.as_str())).await;
            refused += usize::from(written.is_err());
            assert_eq!(state(), before, "{tree}: {written:?}");
            if let Ok(lower) = written {
                // What was written is below its own directory, and the host's file was not linked into it.
                assert!(lower.path.starts_with(root.join("mirrors")));
                let link = lower.path.join("a/victim");
                assert!(
                    fs::symlink_metadata(link)
                        .map_or(true, |meta| meta.ino() != fs::metadata(&victim).expect("there").ino())
                );
            }
        }
    }
    assert!(refused >= 12, "{refused}");
    let odd = fs::read_dir(root.join("mirrors"))
        .expect("there")
        .flatten()
        .filter(|entry| entry.path().join("lowers").is_dir());
    for mirror in odd {
        for entry in fs::read_dir(mirror.path().join("lowers")).expect("there").flatten() {
            assert!(!entry.file_name().to_string_lossy().starts_with('.'), "{:?} is left", entry.path());
        }
    }
}

#[tokio::test]
async fn links_submodules_and_odd_names_of_an_honest_commit_are_written_as_they_are() {
    let dir = repo::folder();
    let root = dir.path();
    let trusted = repo::origin(root);
    let base = CommitId::try_from(repo::git(&trusted, &["rev-parse", "main"])).expect("hexadecimal");
    let forge = Forge::new(&trusted, &base);
    let blob = forge.blob(b"x\n");
    let deep = (0..90).fold(forge.tree(&[Entry("100755", b"run", blob.clone())]), |tree, _| {
        forge.tree(&[Entry("40000", b"d", tree)])
    });
    let tree = forge.tree(&[
        Entry("100644", b"A", blob.clone()),
        Entry("100644", b"a", blob.clone()),
        Entry("40000", b"d", deep),
        Entry("160000", b"sub", base.as_str().to_owned()),
        Entry("120000", b"to", forge.blob(b"/etc/passwd")),
        Entry("100644", b"\xff\xfe\n name", blob.clone()),
    ]);
    let lower = write_out(root, &forge, &tree, Some(base.as_str())).await.expect("files");
    assert_eq!(repo::git(&lower.path, &["status", "--porcelain"]), "");
    assert_eq!(fs::read_link(lower.path.join("to")).expect("a link"), Path::new("/etc/passwd"));
    assert!(lower.path.join("sub").is_dir());
    let run = lower.path.join("d/".repeat(91)).join("run");
    assert_eq!(
        (fs::metadata(&run).expect("there").mode() & 0o777, fs::metadata(&run).expect("there").uid()),
        (0o755, OWNER.0)
    );
    // Once more from those files, with one more.
    let more = forge.tree(&[Entry("100644", b"A", blob.clone()), Entry("160000", b"sub", base.as_str().to_owned())]);
    let next = write_out(root, &forge, &more, Some(base.as_str())).await.expect("files");
    assert_eq!(repo::git(&next.path, &["status", "--porcelain"]), "");
    let inode = |lower: &Lower| fs::metadata(lower.path.join("A")).expect("there").ino();
    assert_eq!(inode(&lower), inode(&next));
}

#[tokio::test]
async fn a_commit_that_unfolds_to_more_than_a_disk_is_refused_before_a_file_is_written() {
    let dir = repo::folder();
    let root = dir.path();
    let trusted = repo::origin(root);
    let base = CommitId::try_from(repo::git(&trusted, &["rev-parse", "main"])).expect("hexadecimal");
    let forge = Forge::new(&trusted, &base);
    let blob = forge.blob(b"x");
    let names: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
    let ten = |mode: &'static str, of: &String| {
        let entries: Vec<Entry> = names.iter().map(|name| Entry(mode, name.as_bytes(), of.clone())).collect();
        forge.tree(&entries)
    };
    let bomb = (0..10).fold(ten("100644", &blob), |tree, _| ten("40000", &tree));
    let started = std::time::Instant::now();
    let error = write_out(root, &forge, &bomb, None).await.expect_err("it is too much");
    assert!(matches!(error, GitError::TreeTooLarge { .. }), "{error:?}");
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    let mirror = fs::read_dir(root.join("mirrors")).expect("there").flatten().map(|entry| entry.path().join("lowers"));
    let lowers: Vec<_> = mirror.filter_map(|path| fs::read_dir(path).ok()).flatten().flatten().collect();
    assert!(lowers.is_empty(), "{lowers:?}");
}
