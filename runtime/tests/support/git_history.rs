//! What becomes of the commits that an agent made.

use super::repo::Entry;
use super::*;

const ME: &str = "git config user.name Eve; git config user.email eve@example.com";

/// A world with the agent's line run in its workspace.
async fn worked(line: &str) -> (World, CommitId) {
    let world = World::new().await;
    let base = world.clone().await.commit;
    let workspace = world.path("workspace");
    world.git.checkout(&world.path("trusted.git"), &base, &workspace, repo::agent()).await.expect("a checkout");
    let said = repo::as_agent(&workspace, &format!("set -e; {ME}; {line}"));
    assert!(!said.contains("fatal"), "{said}");
    (world, base)
}

impl World {
    async fn taken(&self, base: &CommitId, history: History) -> Imported {
        let (pack, err) = repo::in_sandbox(&self.path("workspace"), &export_script(base, history));
        let rules = ImportRules { history, ..rules() };
        let taken = self.git.import(&self.path("trusted.git"), base, &pack[..], &rules).await;
        taken.unwrap_or_else(|error| panic!("{error}: {err}")).expect("a change")
    }

    async fn made(&self, base: &CommitId, imported: &Imported, policy: &CommitPolicy) -> Vec<CommitId> {
        self.git.commit(&self.path("trusted.git"), base, imported, policy).await.expect("commits")
    }

    fn log(&self, base: &CommitId, tip: &CommitId, format: &str) -> Vec<String> {
        let range = format!("{base}..{tip}");
        let trusted = self.path("trusted.git");
        let log = repo::git(&trusted, &["log", "--reverse", "--topo-order", &format!("--format={format}%x00"), &range]);
        log.split('\0').map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()).collect()
    }
}

fn with_task(mode: History) -> CommitPolicy {
    CommitPolicy {
        committer: Signature { name: "Owner".to_owned(), email: "owner@example.com".to_owned() },
        co_authors: vec![Signature { name: "Ann".to_owned(), email: "ann@example.com".to_owned() }],
        trailers: vec![("Orchestra-Task".to_owned(), "task_1".to_owned())],
        ..policy(mode)
    }
}

const WORK: &str = "echo a > a; git add a; git commit -qm $'First\\n\\nBecause.\\n\\nSigned-off-by: Eve <e@x>\\nOrchestra-Task: task_9'; \
    echo b > b; git add b; git commit -qm Second; echo c > c";

#[tokio::test]
async fn an_agents_commits_are_kept_and_what_it_left_becomes_one_more() {
    let (world, base) = worked(WORK).await;
    let imported = world.taken(&base, History::Keep).await;
    assert_eq!(imported.files_changed, 3);
    let made = world.made(&base, &imported, &with_task(History::Keep)).await;
    assert_eq!(made.len(), 3);
    let tip = &made[2];
    let trailers = "Orchestra-Task: task_1\nCo-authored-by: Ann <ann@example.com>";
    assert_eq!(
        world.log(&base, tip, "%B"),
        [
            format!("First\n\nBecause.\n\n{trailers}"),
            format!("Second\n\n{trailers}"),
            format!("Say three\n\nBody\n\n{trailers}")
        ]
    );
    assert_eq!(
        world.log(&base, tip, "%an %ae %cn %ce %at %ct"),
        ["Orchestra o@example.com Owner owner@example.com 0 0"; 3]
    );
    assert_eq!(world.log(&base, tip, "%H"), made.iter().map(ToString::to_string).collect::<Vec<_>>());
    let trusted = world.path("trusted.git");
    assert_eq!(repo::git(&trusted, &["rev-parse", &format!("{tip}^{{tree}}")]), imported.tree.as_str());
    assert_eq!(repo::git(&trusted, &["diff", "--name-status", &format!("{}^", made[1]), made[1].as_str()]), "A\tb");

    // Once more, from the sandbox on: the same commits; and they can be pushed.
    let again = world.taken(&base, History::Keep).await;
    assert_eq!(world.made(&base, &again, &with_task(History::Keep)).await, made);
    assert!(!world.push("orchestra/kept", tip).await.expect("a push"));
    assert_eq!(repo::git(&world.origin(), &["rev-list", "--count", "main..orchestra/kept"]), "3");
    repo::git(&world.origin(), &["fsck", "--strict"]);
}

#[tokio::test]
async fn squashed_work_is_one_commit_whatever_the_agent_made() {
    let (world, base) = worked(WORK).await;
    for history in [History::Keep, History::Squash] {
        let imported = world.taken(&base, history).await;
        let made = world.made(&base, &imported, &with_task(History::Squash)).await;
        assert_eq!(made.len(), 1, "{history:?}");
        let subjects = world.log(&base, &made[0], "%B");
        assert_eq!(subjects, ["Say three\n\nBody\n\nOrchestra-Task: task_1\nCo-authored-by: Ann <ann@example.com>"]);
    }
    // What was checked as one tree is never published as several.
    let imported = world.taken(&base, History::Squash).await;
    let kept = world.git.commit(&world.path("trusted.git"), &base, &imported, &policy(History::Keep)).await;
    assert!(matches!(kept, Err(GitError::Git { .. })), "{kept:?}");
}

#[tokio::test]
async fn histories_that_lead_elsewhere_come_out_as_one_commit() {
    for (what, line, kept) in [
        ("no commit of its own", "echo a > a", 1),
        ("everything committed", "echo a > a; git add a; git commit -qm one", 1),
        (
            "on a branch",
            "git checkout -qb x; echo a > a; git add a; git commit -qm one; git checkout -q --detach; echo b > b",
            2,
        ),
        (
            "a merge of two branches",
            "git checkout -qb l; echo a > a; git add a; git commit -qm l; git checkout -qb r work; echo b > b; git add b; git commit -qm r; git merge -q --no-edit l",
            3,
        ),
        ("an amended base", "echo a > a; git add a; git commit -q --amend -m other", 1),
        (
            "a merge with what the base builds on",
            "git checkout -qb old HEAD^; echo b > b; git add b; git commit -qm old; git checkout -q work; git merge -q --no-edit old",
            1,
        ),
        ("an orphan", "git checkout -q --orphan o; git commit -qm o; echo a > a", 1),
        ("behind the base", "git reset -q --soft HEAD^; echo a > a", 1),
        ("an empty commit", "git commit -q --allow-empty -m nothing; echo a > a", 2),
        (
            "a lost object",
            "echo a > a; git add a; git commit -qm one; echo b > a; git commit -qam two; rm -f .git/objects/$(git rev-parse HEAD^:a | sed 's,^..,&/,')",
            1,
        ),
        (
            "an unfinished merge",
            "git checkout -qb l; echo l > README.md; git commit -qam l; git checkout -q work; echo w > README.md; git commit -qam w; git merge -q l || true",
            2,
        ),
    ] {
        let (world, base) = worked(line).await;
        let imported = world.taken(&base, History::Keep).await;
        let made = world.made(&base, &imported, &policy(History::Keep)).await;
        assert_eq!(made.len(), kept, "{what}");
        let tip = made.last().expect("one");
        let trusted = world.path("trusted.git");
        assert_eq!(
            repo::git(&trusted, &["rev-list", "--count", &format!("{base}..{tip}")]),
            kept.to_string(),
            "{what}"
        );
        repo::git(&trusted, &["merge-base", "--is-ancestor", base.as_str(), tip.as_str()]);
        if what.starts_with("a merge of") {
            assert_eq!(repo::git(&trusted, &["rev-list", "--merges", "--count", &format!("{base}..{tip}")]), "1");
        }
    }
    // Commits that add up to nothing are nothing to push.
    let (world, base) = worked("echo a > a; git add a; git commit -qm one; git rm -q a; git commit -qm two").await;
    let (pack, _) = repo::in_sandbox(&world.path("workspace"), &export_script(&base, History::Keep));
    assert_eq!(world.git.import(&world.path("trusted.git"), &base, &pack[..], &rules()).await.expect("no error"), None);
}

#[tokio::test]
async fn headers_of_hostile_commits_are_left_behind() {
    let world = World::new().await;
    let scene = hostile::Scene::on(world, rules()).await;
    let forge = &scene.forge;
    let tree = forge.tree(&[Entry("100644", b"a", forge.blob(b"x\n"))]);
    let commit = |parent: &str, more: &[u8]| {
        let mut text =
            format!("tree {tree}\nparent {parent}\nauthor =?\x1b[31m <a\x01> 99999999999999 +9999\n").into_bytes();
        text.extend(b"committer <<>> 0 +0000\n");
        text.extend(more);
        forge.object("commit", &text)
    };
    let long = [b"\nlong\n\n".to_vec(), vec![b'y'; 200_000]].concat();
    let mut parent = scene.base.to_string();
    for more in [
        &b"gpgsig -----BEGIN PGP SIGNATURE-----\n \n abc\n -----END PGP SIGNATURE-----\n\nsigned\n"[..],
        b"encoding ISO-8859-1\n\ncaf\xe9\n",
        b"mergetag object 0123\n type commit\nx-unknown \x00\xff\n\nnul\x00 in it\n",
        b"\n\x1b]0;title\x07\n\nCo-authored-by: Boss <b@x>\n",
        b"\nOrchestra-Task: task_9\n",
        &long,
    ] {
        parent = commit(&parent, more);
    }
    let imported = scene.import(&forge.export(&parent)).await.expect("they are let in").expect("a change");
    let made = scene.world.made(&scene.base, &imported, &with_task(History::Keep)).await;
    let tip = made.last().expect("six");
    let trusted = scene.world.path("trusted.git");
    for id in &made {
        let raw = repo::git_with(&trusted, &["cat-file", "commit", id.as_str()], b"");
        let text = String::from_utf8(raw).expect("UTF-8");
        let headers: Vec<_> =
            text.split("\n\n").next().expect("headers").lines().map(|line| line.split(' ').next()).collect();
        assert_eq!(headers, ["tree", "parent", "author", "committer"].map(Some), "{text}");
        assert!(
            !text.contains(|c: char| c.is_control() && c != '\n') && !text.contains("Boss") && !text.contains("task_9")
        );
        assert!(text.len() < 20_000, "{}", text.len());
    }
    assert_eq!(scene.world.log(&scene.base, tip, "%s")[..5], ["signed", "caf\u{fffd}", "nul", "]0;title", "Say three"]);
    // What the sandbox made stays behind when the branch goes out.
    scene.world.push("orchestra/clean", tip).await.expect("a push");
    repo::git(&scene.world.origin(), &["fsck", "--strict"]);
}
