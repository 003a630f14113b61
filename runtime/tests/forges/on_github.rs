//! What is GitHub's alone: scopes of classic tokens, teams, single sign-on, two kinds of limit, a renamed repository.

use std::time::Duration;

use orchestra_events::repo::RepoRef;
use orchestra_runtime::forge::{Access, ForgeError, ForgeKind, NewPullRequest};
use orchestra_test_forges::{ApiFault, Login, On};
use secrecy::SecretString;

use crate::world::{HEAD, MARKER, REPO, Token, World};

#[tokio::test]
async fn a_classic_token_is_told_the_scope_that_it_lacks() {
    let world = World::new(ForgeKind::Github).await;
    let classic = |name: &str, scopes, may_write| {
        let token = format!("ghp_{name}");
        let login = Login { user: "ann".to_owned(), may_write, sees: None, scopes: Some(scopes) };
        world.fake().add_token(&token, login);
        SecretString::from(token)
    };
    let gists = classic("gists", "gist, read:org", false);
    let error = world.forge.open_pull_request(world.access(&gists), &world.new_pull_request()).await;
    let error = world.said(error.expect_err("a refusal"));
    let ForgeError::TokenLacksPermission { permission, .. } = &error else { panic!("{error:?}") };
    assert_eq!(permission.as_deref(), Some("repo"));
    let hint = error.failure().hint;
    assert!(hint.contains("Tokens (classic)") && hint.contains("/credentials"), "{hint}");

    // Its owner may push to the repository; the token itself was not given that.
    let owner = classic("owner", "gist", true);
    let known = world.forge.repository(world.access(&owner)).await.expect("an answer");
    assert_eq!(known.may_push, Some(false));
    let whole = classic("whole", "repo, workflow", true);
    let known = world.forge.repository(world.access(&whole)).await.expect("an answer");
    assert_eq!(known.may_push, Some(true));
    world.end();
}

#[tokio::test]
async fn an_apps_installation_has_no_role_and_is_not_refused_for_that() {
    let world = World::new(ForgeKind::Github).await;
    let add = |token: &str, user: &str| {
        let login = Login { user: user.to_owned(), may_write: true, sees: None, scopes: None };
        world.fake().add_token(token, login);
        SecretString::from(token)
    };
    let (app, behalf) = (add("ghs_app", "orchestra[bot]"), add("ghu_behalf", "ann"));
    for token in [&app, &behalf] {
        let known = world.forge.repository(world.access(token)).await.expect("an answer");
        assert_eq!(known.may_push, None, "only the push tells");
    }
    let opened = world.forge.open_pull_request(world.access(&app), &world.new_pull_request()).await.expect("opened");
    assert!(opened.ours && opened.pull_request.is_some(), "{opened:?}");
    world.end();
}

#[tokio::test]
async fn a_repository_named_after_drafts_says_nothing_about_them() {
    let world = World::new(ForgeKind::Github).await;
    world.fake().add_repo("acme/draft-tool");
    let (token, repo) = (world.token(Token::Writes), RepoRef::new("here", "acme/draft-tool").expect("a repository"));
    let access = Access { repo: &repo, token: Some(&token) };
    let (head, base) = ("orchestra/draft-9f3c".to_owned(), "not-there".to_owned());
    let new = NewPullRequest { head, base, draft: true, ..world.new_pull_request() };
    let error = world.said(world.forge.open_pull_request(access, &new).await.expect_err("there is no such base"));
    assert!(matches!(error, ForgeError::Refused { .. }), "{error:?}");
    let posts = world.fake().requests().iter().filter(|line| line.starts_with("POST")).count();
    assert_eq!(posts, 1, "it was not asked again without a draft");
    world.end();
}

#[tokio::test]
async fn teams_are_asked_beside_people() {
    let world = World::new(ForgeKind::Github).await;
    let token = world.token(Token::Writes);
    let reviewers = ["ann", "team:platform", "team:acme/security"].map(str::to_owned).to_vec();
    let new = NewPullRequest { reviewers, ..world.new_pull_request() };
    let opened = world.forge.open_pull_request(world.access(&token), &new).await.expect("opened");
    assert!(opened.notes.is_empty(), "{opened:?}");
    assert_eq!(world.pulls()[0].reviewers, ["ann", "team:platform", "team:security"]);
    world.end();
}

#[tokio::test]
async fn single_sign_on_is_no_missing_permission() {
    let world = World::new(ForgeKind::Github).await;
    let token = world.token(Token::Writes);
    let said = "Resource protected by organization SAML enforcement. You must grant your token access.";
    world.fake().fault(On::Any, ApiFault::Status(403, said), 1);
    let error = world.said(world.forge.repository(world.access(&token)).await.expect_err("a refusal"));
    assert!(matches!(error, ForgeError::SsoRequired { .. }), "{error:?}");
    world.end();
}

#[tokio::test]
async fn an_address_that_is_not_listed_is_no_missing_permission() {
    let world = World::new(ForgeKind::Github).await;
    let token = world.token(Token::Writes);
    let said = "Although you appear to have the correct authorization credentials, the `acme` organization has an IP \
                allow list enabled, and your IP address is not permitted to access this resource.";
    world.fake().fault(On::Any, ApiFault::Status(403, said), 1);
    let error = world.said(world.forge.repository(world.access(&token)).await.expect_err("a refusal"));
    assert!(matches!(error, ForgeError::AddressNotAllowed { .. }), "{error:?}");
    assert!(error.failure().hint.contains("allow list"), "{error:?}");
    world.end();
}

#[tokio::test]
async fn a_limit_without_a_time_is_a_minute() {
    let world = World::new(ForgeKind::Github).await;
    let token = world.token(Token::Writes);
    let said = "API rate limit exceeded for user ID 1.";
    world.fake().fault(On::Any, ApiFault::Status(403, said), 1);
    let error = world.said(world.forge.repository(world.access(&token)).await.expect_err("a limit"));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(60)), "{error:?}");
    world.end();
}

#[tokio::test]
async fn a_renamed_repositorys_pull_request_is_still_found() {
    let world = World::new(ForgeKind::Github).await;
    let token = world.token(Token::Writes);
    let first = world.forge.open_pull_request(world.access(&token), &world.new_pull_request()).await.expect("opened");
    // The forge answers for the old name, and tells the new one.
    world.fake().with(|state| state.repos.get_mut(REPO).expect("it is there").path = "acme/renamed".to_owned());
    let second = world.forge.open_pull_request(world.access(&token), &world.new_pull_request()).await.expect("found");
    assert!(second.existed, "{second:?}");
    assert_eq!(second.pull_request.map(|pull| pull.number), first.pull_request.map(|pull| pull.number));
    assert_eq!((world.pulls().len(), world.pulls()[0].head.as_str()), (1, HEAD));
    assert!(world.pulls()[0].body.contains(MARKER));
    world.end();
}
