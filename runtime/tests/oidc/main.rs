//! Sign-in against a provider over real HTTP with real keys: what it says when all is well, and every way to be lied to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestra_runtime::oidc::{
    Attempt, Identity, IdentityError, IdentityProvider as _, OidcClient, OidcConfig, OidcLimits, TokenFault,
};
use orchestra_test_forges::identity::{CLIENT_ID, CLIENT_SECRET, Groups, IdentityFault, IdentityServer, Signature};

const ATTEMPT: Attempt<'static> = Attempt {
    state: "state-of-this-browser",
    nonce: "nonce-of-this-sign-in",
    verifier: "0123456789012345678901234567890123456789abc",
    redirect_uri: "http://127.0.0.1:7070/sign-in/oidc/return",
};

fn limits() -> OidcLimits {
    OidcLimits { request_timeout: Duration::from_secs(8), key_pause: Duration::ZERO, ..OidcLimits::default() }
}

fn client_with(server: &IdentityServer, limits: OidcLimits) -> OidcClient {
    OidcClient::new(OidcConfig {
        issuer: server.issuer().to_owned(),
        client_id: CLIENT_ID.to_owned(),
        client_secret: Some(CLIENT_SECRET.into()),
        scopes: vec!["profile".to_owned(), "groups".to_owned()],
        groups_claim: "groups".to_owned(),
        limits,
    })
    .expect("a client")
}

fn client(server: &IdentityServer) -> OidcClient {
    client_with(server, limits())
}

/// One value of the query that the browser comes back with.
fn value(location: &str, name: &str) -> String {
    let url = reqwest::Url::parse(location).expect("an address");
    url.query_pairs().find(|(known, _)| known == name).expect(name).1.into_owned()
}

async fn redeem(server: &IdentityServer, client: &OidcClient) -> Result<Identity, IdentityError> {
    let url = client.authorization_url(&ATTEMPT).await?;
    assert!(url.starts_with(&format!("{}/authorize?", server.issuer())), "{url}");
    let back = server.consent(&url);
    assert_eq!(value(&back, "state"), ATTEMPT.state);
    client.redeem(&value(&back, "code"), Some(&value(&back, "iss")), &ATTEMPT).await
}

#[tokio::test]
async fn whoever_the_provider_vouches_for_is_let_in() {
    let server = IdentityServer::start().await;
    let client = client(&server);
    server.directory().groups = vec!["infra".to_owned(), "everybody".to_owned()];
    for signature in Signature::ALL {
        for in_body in [false, true] {
            let client = client_with(&server, limits());
            (server.directory().signature, server.directory().secret_in_body) = (signature, in_body);
            let identity = redeem(&server, &client).await.expect("an identity");
            assert_eq!((&*identity.subject, &*identity.name), ("5f0c-ada", "Ada Lovelace"), "{signature:?}");
            assert_eq!((identity.groups.len(), &*identity.issuer), (2, server.issuer()));
        }
    }
    // What the token does not say is asked for.
    server.directory().secret_in_body = false;
    server.directory().says = Groups::InUserinfo;
    assert_eq!(redeem(&server, &client).await.expect("an identity").groups, ["infra", "everybody"]);
    server.directory().says = Groups::Nowhere;
    assert_eq!(redeem(&server, &client).await.expect("an identity").groups, [""; 0]);
    server.directory().name.clear();
    assert_eq!(redeem(&server, &client).await.expect("an identity").name, "ada@example.com");
    assert_eq!(server.directory().count("/elsewhere"), 0);
}

#[tokio::test]
async fn a_token_that_is_not_quite_right_lets_nobody_in() {
    use IdentityFault as F;
    let server = IdentityServer::start().await;
    let client = client(&server);
    for (fault, expected) in [
        (F::Issuer, TokenFault::Issuer),
        (F::Audience, TokenFault::Audience),
        (F::TwoAudiences, TokenFault::Audience),
        (F::Party, TokenFault::Audience),
        (F::Nonce, TokenFault::Nonce),
        (F::NoNonce, TokenFault::Nonce),
        (F::Expired, TokenFault::Expired),
        (F::NoExpiry, TokenFault::Expired),
        (F::NotYet, TokenFault::Time),
        (F::Tomorrow, TokenFault::Time),
        (F::Yesterday, TokenFault::Time),
        (F::NoSubject, TokenFault::Subject),
        (F::Flipped, TokenFault::Signature),
        (F::OtherKey, TokenFault::Signature),
        (F::UnknownKey, TokenFault::UnknownKey),
        (F::NotSigned, TokenFault::Algorithm),
        (F::PublicAsSecret, TokenFault::Algorithm),
        (F::TwoParts, TokenFault::Malformed),
        (F::OtherAnswer, TokenFault::Issuer),
    ] {
        for signature in Signature::ALL {
            (server.directory().signature, server.directory().fault) = (signature, Some(fault));
            assert_eq!(redeem(&server, &client).await, Err(IdentityError::Token(expected)), "{fault:?} {signature:?}");
        }
    }
    server.directory().fault = None;
    redeem(&server, &client).await.expect("all is well again");
}

#[tokio::test]
async fn a_code_counts_once_and_for_who_asked_for_it() {
    let server = IdentityServer::start().await;
    let client = client(&server);
    let back = server.consent(&client.authorization_url(&ATTEMPT).await.expect("an address"));
    let (code, issuer) = (value(&back, "code"), value(&back, "iss"));
    client.redeem(&code, Some(&issuer), &ATTEMPT).await.expect("an identity");
    let refused = client.redeem(&code, Some(&issuer), &ATTEMPT).await.expect_err("used before");
    assert_eq!(refused, IdentityError::Refused("invalid_grant: invalid_grant  it is".to_owned()));
    // Somebody else's code, without the secret that it was asked for with.
    let stolen = server.consent(&client.authorization_url(&ATTEMPT).await.expect("an address"));
    let other = Attempt { verifier: "another-verifier-of-another-browser-0123456789", ..ATTEMPT };
    let refused = client.redeem(&value(&stolen, "code"), Some(&issuer), &other).await.expect_err("not theirs");
    assert!(matches!(refused, IdentityError::Refused(_)), "{refused}");
    // The answer of a provider that names itself, without its name.
    let back = server.consent(&client.authorization_url(&ATTEMPT).await.expect("an address"));
    let nameless = client.redeem(&value(&back, "code"), None, &ATTEMPT).await;
    assert_eq!(nameless, Err(IdentityError::Token(TokenFault::Issuer)));
    for code in ["", &"x".repeat(5_000)] {
        assert!(matches!(client.redeem(code, Some(&issuer), &ATTEMPT).await, Err(IdentityError::Refused(_))));
    }
}

#[tokio::test]
async fn answers_without_bounds_or_from_elsewhere_are_not_taken() {
    use IdentityFault as F;
    let server = IdentityServer::start().await;
    let short = OidcLimits { failure_pause: Duration::ZERO, ..limits() };
    for (fault, unreachable) in [
        (F::HugeKeys, false),
        (F::EndlessKeys, false),
        (F::TokenRedirects, false),
        (F::DocumentRedirects, false),
        (F::OtherDocument, false),
        (F::Page, false),
        (F::NoToken, false),
        (F::Slow, true),
        (F::ServerError, true),
    ] {
        server.directory().fault = Some(fault);
        let began = Instant::now();
        let refused = redeem(&server, &client_with(&server, short.clone())).await.expect_err("a fault");
        let as_expected = match refused {
            IdentityError::Unreachable(_) => unreachable,
            IdentityError::Nonsense { .. } => !unreachable,
            _ => false,
        };
        assert!(as_expected, "{fault:?}: {refused}");
        assert!(began.elapsed() < Duration::from_secs(20), "{fault:?}");
        assert_eq!(server.directory().count("/elsewhere"), 0, "no redirect is followed");
    }
    server.directory().fault = Some(F::OtherUserinfo);
    server.directory().says = Groups::InUserinfo;
    let refused = redeem(&server, &client_with(&server, short)).await.expect_err("somebody else's groups");
    assert!(matches!(refused, IdentityError::Nonsense { what: "userinfo", .. }), "{refused}");
}

#[tokio::test]
async fn new_keys_are_found_and_not_looked_for_without_end() {
    let server = IdentityServer::start().await;
    let patient = client_with(&server, OidcLimits { key_pause: Duration::from_secs(60), ..limits() });
    redeem(&server, &patient).await.expect("an identity");
    redeem(&server, &patient).await.expect("an identity");
    assert_eq!(server.directory().count("/keys"), 1, "they are kept");
    assert_eq!(server.directory().count("/.well-known/openid-configuration"), 1, "and so is the document");
    server.directory().fault = Some(IdentityFault::UnknownKey);
    for _ in 0..5 {
        assert_eq!(redeem(&server, &patient).await, Err(IdentityError::Token(TokenFault::UnknownKey)));
    }
    assert_eq!(server.directory().count("/keys"), 1, "a token does not make us ask again and again");
    // A provider that has new keys is asked as soon as it may be.
    server.directory().fault = None;
    let eager = client(&server);
    redeem(&server, &eager).await.expect("an identity");
    server.directory().rotate();
    redeem(&server, &eager).await.expect("an identity by the new key");
    assert_eq!(server.directory().count("/keys"), 3);
}

#[tokio::test]
async fn a_provider_that_is_down_is_not_asked_by_everybody_at_once() {
    let server = IdentityServer::start().await;
    server.directory().fault = Some(IdentityFault::OtherDocument);
    let client = Arc::new(client(&server));
    let many = (0..50).map(|_| {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.authorization_url(&ATTEMPT).await })
    });
    for one in many.collect::<Vec<_>>() {
        assert!(one.await.expect("no panic").is_err());
    }
    assert_eq!(server.directory().count("/.well-known/openid-configuration"), 1);
}
