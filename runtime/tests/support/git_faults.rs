//! What goes wrong on the forge's side, and what the task's owner reads then.

use std::os::unix::fs::PermissionsExt;

use super::*;
use orchestra_test_forges::{At, Fault};

impl World {
    async fn try_clone(&self) -> GitError {
        self.git.clone(&self.path("other.git"), &self.remote(), token(), None).await.expect_err("a fault")
    }
}

fn text(error: &GitError) -> String {
    error.failure().message
}

#[tokio::test]
async fn tokens_that_do_not_open_the_door() {
    let world = World::new().await;
    let (_, commit) = world.work(&world.remote(), EDIT).await;
    let trusted = world.path("trusted.git");
    let wrong = || Some(SecretString::from("ghp_canary_wrong".to_owned()));

    let error = world.git.clone(&world.path("c.git"), &world.remote(), wrong(), None).await.expect_err("refused");
    assert_eq!(error, GitError::TokenRejected { repo: world.remote().url, forge: Some("Bad credentials".to_owned()) });
    assert_eq!(code(&error), FailureCode::GitAuth);
    assert!(!world.path("c.git").exists(), "no half clone");
    let error = world.git.push(&trusted, &world.remote(), wrong(), "orchestra/x", &commit).await.expect_err("refused");
    assert_eq!(code(&error), FailureCode::GitAuth);
    let error = world.git.clone(&world.path("c.git"), &world.remote(), None, None).await.expect_err("refused");
    assert_eq!(error, GitError::TokenMissing { repo: world.remote().url });
    // The right token afterwards: nothing was lost.
    assert!(!world.push("orchestra/x", &commit).await.expect("a push"));
}

#[tokio::test]
async fn an_error_status_becomes_the_forges_own_sentence() {
    let world = World::new().await;
    let (_, commit) = world.work(&world.remote(), EDIT).await;
    let github = |name| Some((name, "contents=write".to_owned()));
    for (status, kind, body, header, expected, words) in [
        (
            403,
            "text/plain",
            "Write access to repository not granted.",
            None,
            FailureCode::GitTokenScope,
            "Write access to repository not granted.",
        ),
        (
            403,
            "text/plain",
            "remote: This repository was archived so it is read-only.",
            None,
            FailureCode::PushRejected,
            "archived",
        ),
        (
            403,
            "text/plain",
            "The `acme` organization has enabled SAML SSO.",
            None,
            FailureCode::GitTokenScope,
            "single sign-on",
        ),
        (
            403,
            "text/plain",
            "no",
            github("X-Accepted-GitHub-Permissions"),
            FailureCode::GitTokenScope,
            "contents=write",
        ),
        (
            403,
            "application/json",
            "{\"type\":\"error\",\"error\":{\"message\":\"Your token lacks repository:write\"}}",
            None,
            FailureCode::GitTokenScope,
            "lacks repository:write",
        ),
        (404, "text/plain", "Repository not found.", None, FailureCode::RepoNotFound, "Repository not found."),
        (404, "text/html", "<html>secret page</html>", None, FailureCode::RepoNotFound, "may not see"),
        (429, "text/plain", "slow down", Some(("Retry-After", "17".to_owned())), FailureCode::NetworkDropped, "17 s"),
        (503, "text/plain", "maintenance", None, FailureCode::NetworkDropped, "503"),
        (200, "text/html", "<html>log in</html>", None, FailureCode::CloneFailed, "not a git server"),
        (
            401,
            "text/plain",
            &format!("{TOKEN} is not good, \u{1b}[31m{TOKEN}"),
            None,
            FailureCode::GitAuth,
            "[redacted]",
        ),
    ] {
        world.server.fault(Some((At::All, Fault::Status(status, kind, body.to_owned(), header))));
        let error = world.push("orchestra/x", &commit).await.expect_err(body);
        assert_eq!(code(&error), expected, "{status} {body}: {error:?}");
        assert!(text(&error).contains(words), "{words:?} is not in {:?}", text(&error));
        assert!(!text(&error).contains('\u{1b}') && !text(&error).contains("<html>"), "{error}");
        assert_eq!(error.failure().retryable, status == 429 || status == 503, "{error:?}");
        code(&world.try_clone().await);
    }
    world.server.fault(None);
    assert!(!world.push("orchestra/x", &commit).await.expect("the work is kept"));
}

#[tokio::test]
async fn the_token_goes_to_the_forge_and_nowhere_else() {
    let world = World::new().await;
    let elsewhere = GitServer::start(world.dir.path(), TOKEN).await;
    let (_, commit) = world.work(&world.remote(), EDIT).await;
    let trusted = world.path("trusted.git");
    // Another host is not even asked; another port of the same host is asked without the token, as libgit2 does not
    // tell ports apart.
    for base in [elsewhere.base().replace("127.0.0.1", "localhost"), elsewhere.base()] {
        assert_eq!(elsewhere.requests(), Vec::<String>::new());
        for at in [At::All, At::Refs, At::Pack] {
            world.server.fault(Some((at, Fault::Redirect(base.clone()))));
            let error = world.push("orchestra/x", &commit).await.expect_err("redirected");
            assert!(matches!(error, GitError::Redirected { .. }), "{error:?}");
            code(&error);
            let error = world.try_clone().await;
            assert!(matches!(error, GitError::Redirected { .. }), "{error:?}");
        }
    }
    assert_eq!(elsewhere.authorizations(), Vec::<String>::new());
    // Nor does the repository's own configuration send it anywhere.
    world.server.fault(None);
    repo::git(
        &trusted,
        &["config", &format!("url.{}/.insteadOf", elsewhere.base()), &format!("{}/", world.server.base())],
    );
    let error = world.push("orchestra/x", &commit).await.expect_err("rewritten");
    assert!(matches!(error, GitError::Redirected { .. }), "{error:?}");
    assert_eq!(elsewhere.authorizations(), Vec::<String>::new());
    for url in ["http://user:ghp_canary@127.0.0.1/x.git", "ssh://git@host/x", "file:///etc", "../x", "http://h/x?y=1"] {
        let remote = Remote { url: url.to_owned(), ..world.remote() };
        let error = world.git.push(&trusted, &remote, token(), "b", &commit).await.expect_err(url);
        assert!(matches!(error, GitError::InvalidRemote { .. }), "{error:?}");
        code(&error);
    }
}

#[tokio::test]
async fn a_hook_that_declines_is_quoted() {
    let world = World::new().await;
    let (_, commit) = world.work(&world.remote(), EDIT).await;
    let hook = world.origin().join("hooks/pre-receive");
    let write = |script: &str| {
        std::fs::write(&hook, format!("#!/bin/sh\n{script}\nexit 1\n")).expect("writable");
        std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).expect("own file");
    };
    write("echo 'Commits need a ticket number.' >&2");
    let error = world.push("orchestra/x", &commit).await.expect_err("declined");
    assert_eq!(code(&error), FailureCode::PushRejected);
    assert!(text(&error).contains("Commits need a ticket number."), "{error}");
    assert!(text(&error).contains("pre-receive hook declined"), "{error}");
    write("echo 'error: GH006: Protected branch update failed for refs/heads/x.' >&2");
    assert_eq!(code(&world.push("orchestra/x", &commit).await.expect_err("declined")), FailureCode::BranchProtected);
    // The forge echoes what it was told; the token is not repeated, and the text has an end.
    write(&format!("echo '{TOKEN}' >&2; head -c 100000 /dev/zero | tr '\\0' 'A ' >&2"));
    let error = world.push("orchestra/x", &commit).await.expect_err("declined");
    code(&error);
    assert!(text(&error).len() < 1500, "{}", text(&error).len());
    std::fs::remove_file(&hook).expect("there");
    repo::git(&world.origin(), &["branch", "orchestra", "main"]);
    let error = world.push("orchestra/x", &commit).await.expect_err("a name in the way");
    assert_eq!(code(&error), FailureCode::BranchPolicy, "{error:?}");
}

#[tokio::test]
async fn somebody_elses_branch_is_left_alone() {
    let world = World::new().await;
    let (cloned, commit) = world.work(&world.remote(), EDIT).await;
    let before = repo::git(&world.origin(), &["rev-parse", "other"]);
    let error = world.push("other", &commit).await.expect_err("taken");
    assert_eq!(code(&error), FailureCode::PushConflict);
    let found = CommitId::try_from(before.clone()).expect("hex");
    assert_eq!(error, GitError::Conflict { branch: "other".to_owned(), found: Some(found) });
    // Not even where the push would be a fast-forward: the branch is not this task's.
    let error = world.push("main", &commit).await.expect_err("taken");
    assert_eq!(error, GitError::Conflict { branch: "main".to_owned(), found: Some(cloned.commit) });
    assert_eq!(repo::git(&world.origin(), &["rev-parse", "other"]), before);
    for bad in ["a b", "../x", "", "HEAD"] {
        assert_eq!(code(&world.push(bad, &commit).await.expect_err(bad)), FailureCode::BranchPolicy);
    }
}

#[tokio::test]
async fn a_broken_connection_is_retryable_and_a_lost_answer_is_no_second_push() {
    let world = World::new().await;
    let (_, commit) = world.work(&world.remote(), EDIT).await;
    for (at, fault) in [(At::Refs, Fault::Cut(10)), (At::Pack, Fault::Cut(3)), (At::Refs, Fault::LoseReply)] {
        world.server.fault(Some((at, fault.clone())));
        let error = world.try_clone().await;
        assert_eq!((code(&error), error.failure().retryable), (FailureCode::CloneFailed, true), "{fault:?}: {error:?}");
        assert!(!world.path("other.git").exists());
    }
    world.server.fault(Some((At::Pack, Fault::LoseReply)));
    let error = world.push("orchestra/x", &commit).await.expect_err("no answer");
    assert_eq!((code(&error), error.failure().retryable), (FailureCode::NetworkDropped, true), "{error:?}");
    world.server.fault(None);
    assert!(world.push("orchestra/x", &commit).await.expect("the forge has it"));

    let closed = Remote { url: "http://127.0.0.1:9/a/b.git".to_owned(), ..world.remote() };
    let error = world.git.clone(&world.path("c.git"), &closed, token(), None).await.expect_err("nobody there");
    assert!(matches!(error, GitError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_forge_that_hangs_is_left_at_the_deadline() {
    let limit = Duration::from_millis(700);
    let world = World::with(GitConfig { clone_timeout: limit, ..config() }).await;
    for at in [At::Refs, At::Pack] {
        world.server.fault(Some((at, Fault::Hang)));
        let started = std::time::Instant::now();
        let error = world.try_clone().await;
        assert_eq!(error, GitError::DeadlineExceeded { operation: orchestra_runtime::git::Operation::Clone, limit });
        assert!(error.failure().retryable && error.failure().code == FailureCode::CloneFailed);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
    // The next attempt is not disturbed by the ones left behind.
    world.server.fault(None);
    world.git.clone(&world.path("other.git"), &world.remote(), token(), None).await.expect("a clone");
    let left: Vec<_> =
        std::fs::read_dir(world.dir.path()).expect("there").flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
}

#[tokio::test]
async fn a_base_is_an_existing_branch() {
    let world = World::new().await;
    let cloned = world.git.clone(&world.path("o.git"), &world.remote(), token(), Some("other")).await.expect("a clone");
    assert_eq!((cloned.default_branch.as_str(), cloned.base.as_str()), ("main", "other"));
    assert_eq!(repo::git(&world.path("o.git"), &["for-each-ref", "--format=%(refname)"]), "refs/heads/other");
    let error =
        world.git.clone(&world.path("o.git"), &world.remote(), token(), Some("nope")).await.expect_err("missing");
    assert_eq!(code(&error), FailureCode::BranchPolicy);
    assert!(world.path("o.git").exists(), "the clone that was there stays");
    repo::git(world.dir.path(), &["init", "-q", "--bare", "acme/empty.git"]);
    let empty = Remote { url: world.server.url("acme/empty"), ..world.remote() };
    let error = world.git.clone(&world.path("e.git"), &empty, token(), None).await.expect_err("empty");
    assert!(matches!(error, GitError::EmptyRepository { .. }), "{error:?}");
    let small = Git::new(GitConfig { max_clone_bytes: 100, ..config() });
    let error = small.clone(&world.path("s.git"), &world.remote(), token(), None).await.expect_err("too large");
    assert!(matches!(error, GitError::RepoTooLarge { .. }), "{error:?}");
}
