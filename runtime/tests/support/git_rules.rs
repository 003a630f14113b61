//! What the operator's rules let out of a sandbox: protected files, names, Git LFS, secrets.

use super::hostile::Scene;
use super::repo::Entry;
use super::*;
use orchestra_runtime::git::{NameRules, PackFault, SecretRules};

/// A token that nobody issued; no text may show it.
const SECRET: &str = "ghp_R7kq2ZtW9xVb4NcYp1LsD8fGh3JmQa6Te5Uo";

/// Repositories whose base the origin's seed was changed to by this line.
async fn seeded(line: &str, rules: ImportRules) -> Scene {
    let world = World::new().await;
    let seed = world.path("seed");
    let done = std::process::Command::new("bash").args(["-ec", line]).current_dir(&seed).status().expect("bash");
    assert!(done.success());
    repo::git(&seed, &["add", "-A"]);
    repo::git(&seed, &["commit", "-qm", "seeded"]);
    repo::git(&seed, &["push", "-q", &world.origin().to_string_lossy(), "main"]);
    Scene::on(world, rules).await
}

impl Scene {
    /// The exports of these shell lines, a commit each on the one before, from a clone without filters.
    fn commits(&self, lines: &[&str]) -> Vec<u8> {
        let work = tempfile::tempdir().expect("a temporary folder");
        let bare = self.forge.path();
        repo::git(work.path(), &["clone", "-q", &bare.to_string_lossy(), "w"]);
        let tree = work.path().join("w");
        for (n, line) in lines.iter().enumerate() {
            let done =
                std::process::Command::new("bash").args(["-ec", line]).current_dir(&tree).status().expect("bash");
            assert!(done.success(), "{line}");
            repo::git(&tree, &["add", "-A"]);
            repo::git(&tree, &["commit", "-q", "--allow-empty", "-m", &format!("step {n}")]);
        }
        repo::git(&tree, &["push", "-q", "--force", "origin", "HEAD:refs/heads/tip"]);
        self.forge.export(&repo::git(&tree, &["rev-parse", "HEAD"]))
    }

    async fn fault(&self, lines: &[&str]) -> Option<PackFault> {
        self.fault_and_detail(lines).await.map(|(fault, _)| fault)
    }

    async fn fault_and_detail(&self, lines: &[&str]) -> Option<(PackFault, String)> {
        match self.import(&self.commits(lines)).await {
            Ok(taken) => {
                assert!(taken.is_some(), "{lines:?}: nothing changed");
                None
            }
            Err(GitError::PackRejected { fault, detail }) => {
                let error = GitError::PackRejected { fault, detail: detail.clone() };
                let failure = error.failure();
                for text in [format!("{error:?}"), format!("{failure}"), failure.hint.to_string()] {
                    assert!(!text.contains(&SECRET[4..20]), "{lines:?}: the secret shows");
                }
                assert!(!failure.retryable && failure.code == FailureCode::PushRejected);
                Some((fault, detail))
            }
            Err(error) => panic!("{lines:?}: {error:?}"),
        }
    }
}

#[tokio::test]
async fn protected_files_stay_as_they_were_in_every_commit() {
    let seed = "mkdir -p .github/workflows docs ci; echo on: push > .github/workflows/ci.yml; echo x > .github/readme; \
        echo '* @boss' > CODEOWNERS; echo y > docs/a; echo on: push > ci/ci.yml";
    let scene = seeded(seed, rules()).await;
    let protected = Some(PackFault::Protected);
    for (lines, expected) in [
        (&["echo x >> .github/workflows/ci.yml"][..], protected),
        (&["echo x > .github/workflows/new.yml"], protected),
        (&["mkdir -p .github/workflows/deep; echo x > .github/workflows/deep/new.yml"], protected),
        (&["mkdir -p .GitHub/Workflows; echo x > .GitHub/Workflows/new.yml"], protected),
        (&["git rm -q .github/workflows/ci.yml"], protected),
        (&["git rm -qr .github"], protected),
        (&["git mv .github/workflows/ci.yml moved.yml"], protected),
        (&["git mv .github/workflows/ci.yml .github/workflows/other.yml"], protected),
        (&["git mv .github moved"], protected),
        (&["chmod +x .github/workflows/ci.yml"], protected),
        (&["rm -r .github; ln -s ci .github"], protected),
        (&["rm CODEOWNERS; mkdir CODEOWNERS; echo x > CODEOWNERS/x"], protected),
        (&["echo x > docs/CODEOWNERS"], protected),
        (&["echo x > .gitlab-ci.yml"], protected),
        (&["rm -r docs; ln -s ci docs"], protected),
        // Changed, and changed back.
        (&["echo x >> .github/workflows/ci.yml; echo a > a", "git checkout -q HEAD^ -- .github"], protected),
        (&["echo x > .gitlab-ci.yml; echo a > a", "rm .gitlab-ci.yml"], protected),
        // Beside them.
        (&["echo x >> .github/readme; echo x > src/CODEOWNERS; echo x > docs/b; rm docs/a; git rm -q ci/ci.yml"], None),
    ] {
        assert_eq!(scene.fault(lines).await, expected, "{lines:?}");
    }
    // Squashed, only the end counts.
    let scene = Scene { rules: ImportRules { history: History::Squash, ..rules() }, ..scene };
    assert_eq!(scene.fault(&["echo x > .gitlab-ci.yml; echo a > a", "rm .gitlab-ci.yml"]).await, None);
    assert_eq!(scene.fault(&["echo x > .gitlab-ci.yml; echo a > a"]).await, protected);
    // The operator's own list takes the place of the default one.
    let own = ImportRules { protected: vec!["secret/**".to_owned(), "*.lock".to_owned()], ..rules() };
    let scene = Scene { rules: own, ..scene };
    assert_eq!(scene.fault(&["echo x >> .github/workflows/ci.yml"]).await, None);
    assert_eq!(scene.fault(&["echo x > Cargo.lock"]).await, protected);
    assert_eq!(scene.fault(&["echo x > src/Cargo.lock"]).await, None);
    let hint = GitError::PackRejected { fault: PackFault::Protected, detail: String::new() }.failure().hint;
    assert!(hint.contains("commits.protected_files"), "{hint}");
}

#[tokio::test]
async fn a_merge_hides_nothing() {
    let scene = seeded("echo '* @boss' > CODEOWNERS; echo x > a.txt", rules()).await;
    let forge = &scene.forge;
    let blob = forge.blob(b"x\n");
    let base = scene.base.to_string();
    let base_tree = repo::git(&forge.path(), &["ls-tree", &base]);
    // The base's own tree with one entry more, by git's plumbing.
    let tree = |more: &str| {
        let made = repo::git_with(&forge.path(), &["mktree"], format!("{base_tree}\n{more}\n").as_bytes());
        String::from_utf8(made).expect("hex").trim().to_owned()
    };
    let commit = |tree: &str, parents: &[&str]| {
        let mut args = vec!["commit-tree", "-m", "x", tree];
        args.extend(parents.iter().flat_map(|parent| ["-p", parent]));
        repo::git(&forge.path(), &args)
    };
    let left = commit(&tree(&format!("100644 blob {blob}\tb.txt")), &[&base]);
    let right = commit(&tree(&format!("100644 blob {blob}\tB.txt")), &[&base]);
    let both = tree(&format!("100644 blob {blob}\tb.txt\n100644 blob {blob}\tB.txt"));
    let merged = commit(&both, &[&left, &right]);
    assert_eq!(scene.refused("twins out of two branches", &forge.export(&merged)).await, PackFault::CaseTwins);
    let evil = commit(&tree(&format!("100644 blob {blob}\t.gitlab-ci.yml")), &[&left, &right]);
    assert_eq!(scene.refused("a file from nowhere", &forge.export(&evil)).await, PackFault::Protected);
    // The second parent is looked at as well as the first.
    let hidden = commit(&tree(&format!("100644 blob {blob}\t.gitlab-ci.yml")), &[&base]);
    let merged = commit(&tree(&format!("100644 blob {blob}\tb.txt")), &[&left, &hidden]);
    assert_eq!(scene.refused("a branch beside", &forge.export(&merged)).await, PackFault::Protected);
    let fine = commit(&tree(&format!("100644 blob {blob}\tb.txt")), &[&left, &base]);
    assert!(scene.import(&forge.export(&fine)).await.expect("an honest merge").is_some());
}

#[tokio::test]
async fn names_are_judged_where_they_are_new() {
    let seed = "echo x > Twin; echo x > twin; echo x > aux.c; mkdir d; echo x > d/a";
    let strict = NameRules { non_utf8: false, not_on_windows: false, case_twins: false };
    let scene = seeded(seed, ImportRules { names: strict, ..rules() }).await;
    for (lines, expected) in [
        (&["echo y >> twin; echo y >> aux.c"][..], None),
        (&["echo x > tWin"], Some(PackFault::CaseTwins)),
        (&["echo x > README.MD"], Some(PackFault::CaseTwins)),
        (&["echo x > D"], Some(PackFault::CaseTwins)),
        (&["mkdir D; echo x > D/b"], Some(PackFault::CaseTwins)),
        (&["echo x > $'caf\\xc3\\xa9'; echo x > $'cafe\\xcc\\x81'"], Some(PackFault::CaseTwins)),
        (&["git mv d/a d/A"], None),
        (&["echo x > d/NUL.txt"], Some(PackFault::Name)),
        (&["echo x > $'n\\xff'"], Some(PackFault::Name)),
        (&["echo x > 'x.'"], Some(PackFault::Name)),
        (&["echo x > $'x\\xe2\\x80\\xaetxt.exe'"], Some(PackFault::Path)),
        (&["echo x > '.gitmodules::$DATA'"], Some(PackFault::Path)),
    ] {
        assert_eq!(scene.fault(lines).await, expected, "{lines:?}");
    }
    let lenient = NameRules { case_twins: true, ..NameRules::default() };
    let scene = Scene { rules: ImportRules { names: lenient, ..rules() }, ..scene };
    assert_eq!(scene.fault(&["echo x > tWin; echo x > d/NUL.txt; echo x > $'n\\xff'"]).await, None);
    // One name for two things is not a matter of taste.
    let forge = &scene.forge;
    let blob = forge.blob(b"x");
    let twice =
        [Entry("100644", b"a", blob.clone()), Entry("100644", b"a.b", blob.clone()), Entry("100755", b"a", blob)];
    let fault = scene.refused("a name twice", &forge.export_tree(&twice)).await;
    assert!(matches!(fault, PackFault::Path | PackFault::Malformed), "{fault:?}");
}

const POINTER: &str = "printf 'version https://git-lfs.github.com/spec/v1\\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\\nsize 12345\\n'";

#[tokio::test]
async fn files_of_git_lfs_come_as_pointers_that_the_forge_knows() {
    let seed = format!(
        "echo '*.psd filter=lfs diff=lfs merge=lfs -text' > .gitattributes; mkdir art; echo '*.raw filter=lfs' > art/.gitattributes; \
         {POINTER} > a.psd; echo content > old.psd"
    );
    let scene = seeded(&seed, rules()).await;
    let other = POINTER.replace("4d7a", "0000");
    let (content, object) = (Some(PackFault::LfsContent), Some(PackFault::LfsObject));
    for (line, expected) in [
        ("echo pixels > b.psd".to_owned(), content),
        ("echo pixels > a.psd".to_owned(), content),
        ("mkdir -p x/y; echo pixels > x/y/b.psd".to_owned(), content),
        ("echo pixels > art/b.raw".to_owned(), content),
        ("echo pixels > b.raw; : > empty.psd".to_owned(), None),
        // The base's word counts although the commit takes it back.
        ("rm .gitattributes; echo pixels > b.psd".to_owned(), content),
        ("echo '*.bin filter=lfs' >> .gitattributes; echo pixels > b.bin".to_owned(), content),
        (format!("{other} > b.psd"), object),
        (format!("{other} > a.psd"), object),
        (format!("{other} > b.txt"), object),
        ("git mv a.psd moved.psd; cp moved.psd copy.psd; git mv old.psd older.psd".to_owned(), None),
        ("git rm -q a.psd".to_owned(), None),
    ] {
        assert_eq!(scene.fault(&[&line]).await, expected, "{line}");
    }
    assert_eq!(scene.fault(&["echo pixels > b.psd; echo a > a", "rm b.psd"]).await, content, "in between");
    let scene = Scene { rules: ImportRules { lfs: false, ..rules() }, ..scene };
    assert_eq!(scene.fault(&["echo pixels > b.psd"]).await, None, "where the operator does not use it");
}

#[tokio::test]
async fn secrets_do_not_leave_and_are_not_shown() {
    let old = SECRET.replace("R7kq", "Old1");
    let scene = seeded(&format!("printf 'a\\ntoken={old}\\n' > old.txt; echo x > plain"), rules()).await;
    let found = |lines: &[String]| {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let pack = scene.commits(&lines);
        let scene = &scene;
        async move {
            match scene.import(&pack).await {
                Ok(_) => None,
                Err(GitError::PackRejected { fault: PackFault::Secret, detail }) => {
                    assert!(!detail.contains(&SECRET[4..20]) && !detail.contains("Old1"), "it shows");
                    Some(detail)
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let detail = found(&[format!("mkdir d; printf 'a\\nb\\nkey = \"{SECRET}\"\\n' > d/x.env")]).await.expect("found");
    assert_eq!(detail, "\"d/x.env\" line 3 holds a secret (GitHub token (classic))");
    // Of a file that had one already, only what is added counts.
    assert_eq!(found(&["echo more >> old.txt".to_owned()]).await, None);
    assert_eq!(found(&["git mv old.txt new.txt; cp new.txt copy.txt".to_owned()]).await, None);
    assert!(found(&[format!("echo {SECRET} >> old.txt")]).await.is_some_and(|detail| detail.contains("line 3")));
    // Pushed is pushed, even if the last commit takes it away; and in a name, or a message.
    let taken_back = [format!("echo {SECRET} > x; echo a > a"), "rm x".to_owned()];
    assert!(found(&taken_back).await.is_some());
    assert!(found(&[format!("echo x > {SECRET}")]).await.is_some_and(|detail| !detail.contains("ghp")));
    assert!(found(&[format!("mkdir {SECRET}; printf '\\n{SECRET}' > {SECRET}/x")]).await.is_some());
    let forge = &scene.forge;
    let tree = forge.tree(&[Entry("100644", b"a", forge.blob(b"x"))]);
    for message in [SECRET.to_owned(), SECRET.replace("kq", "k\x01q")] {
        let text = format!(
            "tree {tree}\nparent {}\nauthor a <a@a> 0 +0000\ncommitter a <a@a> 0 +0000\n\nUse {message}\n",
            scene.base
        );
        let tip = forge.object("commit", text.as_bytes());
        let (fault, detail) = scene.refusal("a message", &forge.export(&tip)).await;
        assert_eq!(fault, PackFault::Secret);
        assert!(!detail.contains("ghp"), "{detail}");
    }
    // A comment of the sandbox's own allows nothing; the operator's paths do, and so does looking at the end alone.
    assert!(found(&[format!("echo '{SECRET} # orchestra:allow-secret gitleaks:allow' > x")]).await.is_some());
    let allow = SecretRules { allow_paths: vec!["tests/**".to_owned()], ..SecretRules::default() };
    let scene = Scene { rules: ImportRules { secrets: allow, ..rules() }, ..scene };
    assert_eq!(scene.fault(&[&format!("mkdir tests; echo {SECRET} > tests/x")]).await, None);
    // Met at an allowed path first, and at another then.
    let both = format!("mkdir tests; echo {SECRET} > tests/x; echo {SECRET} > zz");
    assert_eq!(scene.fault(&[&both]).await, Some(PackFault::Secret));
    let scene = Scene { rules: ImportRules { history: History::Squash, ..rules() }, ..scene };
    assert_eq!(scene.fault(&[&taken_back[0], &taken_back[1]]).await, None);
    let off = SecretRules { search: false, ..SecretRules::default() };
    let scene = Scene { rules: ImportRules { secrets: off, ..rules() }, ..scene };
    assert_eq!(scene.fault(&[&format!("echo {SECRET} > x")]).await, None);
}

/// git asks of nobody that the commits of a submodule are in the repository that names it.
#[tokio::test]
async fn a_base_with_a_submodule_takes_honest_work() {
    let elsewhere = "1111111111111111111111111111111111111111";
    let line = format!("mkdir -p vendor/lib; git update-index --add --cacheinfo 160000,{elsewhere},vendor/lib");
    let scene = seeded(&line, rules()).await;
    assert!(repo::git(&scene.forge.path(), &["ls-tree", "-r", scene.base.as_str()]).contains(elsewhere));
    assert_eq!(scene.fault(&["echo x > new; echo y > vendor/note"]).await, None);
    assert_eq!(
        scene.fault(&["git update-index --cacheinfo 160000,$(git rev-parse HEAD),vendor/lib"]).await,
        Some(PackFault::Gitlink)
    );
}
