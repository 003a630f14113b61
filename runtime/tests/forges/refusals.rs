//! Every refusal is told for what it is, with a remedy and without the token.

use std::time::{Duration, Instant};

use orchestra_events::FailureCode;
use orchestra_runtime::forge::{ForgeError, ForgeKind, ForgeLimits, StatusState};
use orchestra_test_forges::{ApiFault, On};
use secrecy::{ExposeSecret, SecretString};

use crate::world::{HEAD, REPO, Token, World, client, limits, stand_in};

/// What comes of opening a pull request, which has to be an error.
async fn refused(world: &World, token: &SecretString) -> ForgeError {
    let opened = world.forge.open_pull_request(world.access(token), &world.new_pull_request()).await;
    world.said(opened.expect_err("a refusal"))
}

/// Without an interface there is nobody to refuse anything.
async fn never_refuses(world: &World, token: Token) -> bool {
    if world.fake.is_some() {
        return false;
    }
    let token = world.token(token);
    let (access, new) = (world.access(&token), world.new_pull_request());
    assert!(world.forge.repository(access).await.is_ok());
    assert!(world.forge.branch_rules(access, HEAD).await.is_ok());
    assert!(world.forge.open_pull_request(access, &new).await.is_ok_and(|opened| opened.pull_request.is_none()));
    assert!(world.forge.set_status(access, &world.status(StatusState::Pending)).await.is_ok_and(|note| note.is_some()));
    true
}

pub async fn a_dead_token_is_named(world: &World) {
    if never_refuses(world, Token::Dead).await {
        return;
    }
    let token = world.token(Token::Dead);
    let error = refused(world, &token).await;
    assert!(matches!(error, ForgeError::TokenRejected { .. }), "{error:?}");
    assert_eq!((error.failure().code, error.failure().retryable), (FailureCode::GitAuth, false));
    assert!(error.remedy().is_some_and(|remedy| remedy.contains(" > ") || remedy.contains(": ")), "{error:?}");
    let read = world.said(world.forge.repository(world.access(&token)).await.expect_err("a refusal"));
    assert!(matches!(read, ForgeError::TokenRejected { .. }), "{read:?}");
    assert_eq!(world.pulls().len(), 0);
}

pub async fn a_reading_token_is_told_what_it_lacks(world: &World) {
    if never_refuses(world, Token::Reads).await {
        return;
    }
    let token = world.token(Token::Reads);
    let error = refused(world, &token).await;
    let ForgeError::TokenLacksPermission { permission: Some(permission), .. } = &error else { panic!("{error:?}") };
    let expected = match world.kind {
        ForgeKind::Github => "pull_requests=write",
        ForgeKind::Gitlab => "api",
        ForgeKind::BitbucketCloud => "pullrequest:write",
        ForgeKind::BitbucketDc => "REPO_WRITE",
        ForgeKind::Plain | ForgeKind::Local => unreachable!("they have no interface"),
    };
    assert_eq!(permission, expected);
    let failure = error.failure();
    assert_eq!((failure.code, failure.retryable), (FailureCode::GitTokenScope, false));
    assert!(failure.message.contains(expected), "{failure:?}");
    assert_eq!(world.pulls().len(), 0);
}

pub async fn a_hidden_repository_is_not_found(world: &World) {
    if never_refuses(world, Token::Blind).await {
        return;
    }
    let token = world.token(Token::Blind);
    let error = world.said(world.forge.repository(world.access(&token)).await.expect_err("a refusal"));
    assert!(matches!(error, ForgeError::NotFound { .. }), "{error:?}");
    assert_eq!(error.failure().code, FailureCode::RepoNotFound);
    assert!(error.to_string().contains("does not exist, or the git token may not see it"), "{error}");
    let error = refused(world, &token).await;
    // Bitbucket Data Center hides nothing: it says that the token may not read.
    let unread =
        matches!(&error, ForgeError::TokenLacksPermission { permission: Some(name), .. } if name == "REPO_READ");
    let unread = unread && world.kind == ForgeKind::BitbucketDc;
    assert!(matches!(error, ForgeError::NotFound { .. }) || unread, "{error:?}");
}

pub async fn an_archived_repository_takes_nothing(world: &World) {
    if never_refuses(world, Token::Writes).await {
        return;
    }
    world.fake().with(|state| state.repos.get_mut(REPO).expect("it is there").archived = true);
    let token = world.token(Token::Writes);
    let known = world.forge.repository(world.access(&token)).await.expect("it can be read");
    if world.kind == ForgeKind::BitbucketCloud {
        // It has no archive.
        assert!(!known.archived);
        return;
    }
    assert!(known.archived);
    let error = refused(world, &token).await;
    assert!(matches!(error, ForgeError::Archived { .. }), "{error:?}");
    assert!(!error.failure().retryable);
    assert_eq!(world.pulls().len(), 0);
}

pub async fn a_short_limit_is_waited_out(world: &World) {
    if never_refuses(world, Token::Writes).await {
        return;
    }
    let token = world.token(Token::Writes);
    world.fake().fault(On::Reading, ApiFault::Limited(1), 1);
    world.fake().fault(On::Writing, ApiFault::Limited(1), 1);
    let start = Instant::now();
    let opened = world.forge.open_pull_request(world.access(&token), &world.new_pull_request()).await;
    assert!(opened.is_ok_and(|opened| opened.pull_request.is_some()));
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(world.pulls().len(), 1);
}

pub async fn a_long_limit_is_told(world: &World) {
    if never_refuses(world, Token::Writes).await {
        return;
    }
    let token = world.token(Token::Writes);
    world.fake().fault(On::Writing, ApiFault::Limited(1800), 1);
    let start = Instant::now();
    let error = refused(world, &token).await;
    assert!(matches!(error, ForgeError::RateLimited { .. }), "{error:?}");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1800)));
    assert!(error.failure().retryable);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // Who was told to wait does not ask again before.
    let asked = || world.fake().requests().iter().filter(|line| !line.starts_with("GET")).count();
    let before = asked();
    let again = refused(world, &token).await;
    assert!(again.retry_after().is_some_and(|wait| wait > Duration::from_secs(1700)), "{again:?}");
    assert_eq!((asked(), world.pulls().len()), (before, 0));
}

pub async fn a_server_error_is_asked_again(world: &World) {
    if never_refuses(world, Token::Writes).await {
        return;
    }
    let token = world.token(Token::Writes);
    world.fake().fault(On::Reading, ApiFault::Status(502, "Bad Gateway"), 1);
    world.fake().fault(On::Reading, ApiFault::LoseReply, 1);
    let known = world.forge.repository(world.access(&token)).await.expect("the third try is answered");
    assert_eq!(known.default_branch.as_deref(), Some("main"));
    // For good: an error that may be tried again, and no more than a few questions.
    world.fake().fault(On::Any, ApiFault::Status(503, "Maintenance"), u32::MAX);
    let before = world.fake().requests().len();
    let error = world.said(world.forge.repository(world.access(&token)).await.expect_err("down"));
    assert!(matches!(error, ForgeError::Unavailable { status: 503, .. }), "{error:?}");
    assert!(error.failure().retryable);
    assert!((1..=4).contains(&(world.fake().requests().len() - before)));
    // Creating is not repeated blindly.
    world.fake().mend();
    world.fake().fault(On::Writing, ApiFault::Status(500, "Oops"), u32::MAX);
    let error = refused(world, &token).await;
    assert!(matches!(error, ForgeError::Unavailable { status: 500, .. }), "{error:?}");
    let posts = world.fake().requests().iter().filter(|line| line.starts_with("POST")).count();
    assert_eq!(posts, 1);
}

pub async fn a_web_page_is_no_answer(world: &World) {
    if never_refuses(world, Token::Writes).await {
        return;
    }
    let token = world.token(Token::Writes);
    for status in [200, 404] {
        world.fake().mend();
        world.fake().fault(On::Any, ApiFault::Html(status), u32::MAX);
        let error = world.said(world.forge.repository(world.access(&token)).await.expect_err("a page"));
        assert!(matches!(error, ForgeError::NotAForge { .. }), "{status}: {error:?}");
        assert!(error.failure().hint.contains("api_url"));
    }
}

pub async fn the_token_follows_no_redirect(world: &World) {
    if never_refuses(world, Token::Writes).await {
        return;
    }
    let token = world.token(Token::Writes);
    let elsewhere = stand_in(world.kind, world.root()).await.expect("another one");
    world.fake().fault(On::Any, ApiFault::Redirect(elsewhere.origin()), u32::MAX);
    let error = world.said(world.forge.repository(world.access(&token)).await.expect_err("a redirect"));
    assert!(matches!(error, ForgeError::NotAForge { .. }), "{error:?}");
    let error = refused(world, &token).await;
    assert!(matches!(error, ForgeError::NotAForge { .. }), "{error:?}");
    assert_eq!(elsewhere.requests(), Vec::<String>::new());
    // A repository that was renamed is answered for by its own forge.
    world.fake().mend();
    world.fake().fault(On::Reading, ApiFault::Redirect(world.fake().origin()), 1);
    assert!(world.forge.repository(world.access(&token)).await.is_ok());
}

pub async fn a_silent_forge_is_given_up(world: &World) {
    if never_refuses(world, Token::Writes).await {
        return;
    }
    let token = world.token(Token::Writes);
    let hasty = ForgeLimits { request_timeout: Duration::from_millis(300), ..limits() };
    let forge = client(world.kind, Some(world.fake().api_url()), &hasty);
    world.fake().fault(On::Any, ApiFault::Hang, u32::MAX);
    let start = Instant::now();
    let error = world.said(forge.repository(world.access(&token)).await.expect_err("silence"));
    assert!(matches!(error, ForgeError::ConnectionLost { .. }), "{error:?}");
    assert!(error.failure().retryable);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

pub async fn a_branch_without_work_is_refused_with_the_forges_sentence(world: &World) {
    if never_refuses(world, Token::Writes).await {
        return;
    }
    let token = world.token(Token::Writes);
    let new = orchestra_runtime::forge::NewPullRequest { head: "not-there".to_owned(), ..world.new_pull_request() };
    let error = world.forge.open_pull_request(world.access(&token), &new).await.expect_err("no such branch");
    let error = world.said(error);
    assert!(
        matches!(&error, ForgeError::Refused { forge: Some(text), .. } | ForgeError::NotFound { forge: Some(text), .. } if !text.is_empty()),
        "{error:?}"
    );
    assert!(!error.failure().retryable);
    assert_eq!(world.pulls().len(), 0);
}

pub async fn no_text_repeats_the_token(world: &World) {
    if never_refuses(world, Token::Dead).await {
        return;
    }
    let token = world.token(Token::Writes);
    let echo = format!("You sent {} \u{1b}[31m\r\n and {}", token.expose_secret(), "long ".repeat(1000));
    let echo: &'static str = Box::leak(echo.into_boxed_str());
    for status in [400, 401, 403, 404, 409, 418, 422, 500] {
        world.fake().mend();
        world.fake().fault(On::Any, ApiFault::Status(status, echo), u32::MAX);
        let error = world.said(world.forge.repository(world.access(&token)).await.expect_err("a refusal"));
        let text = error.to_string();
        assert!(!text.chars().any(char::is_control) && text.len() < 900, "{status}: {text}");
        refused(world, &token).await;
    }
}
