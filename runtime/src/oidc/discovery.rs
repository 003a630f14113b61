//! The provider's document about itself (OpenID Connect Discovery 1.0): where its parts are.

use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::Value;

use super::{IdentityError, MAX_ISSUER, fetch};

const WHAT: &str = "discovery document";

/// Where the provider's parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    pub authorization: Url,
    pub token: Url,
    pub keys: Url,
    pub userinfo: Option<Url>,
    /// The secret goes into the body of a request, as the provider takes it nowhere else.
    pub secret_in_body: bool,
    /// Its answers say who they are from (RFC 9207).
    pub names_itself: bool,
}

#[derive(Deserialize)]
struct Raw {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
    authorization_response_iss_parameter_supported: Option<bool>,
}

/// The issuer as an address, and the address of its document.
pub(super) fn address(issuer: &str) -> Result<Url, IdentityError> {
    let wrong = |error: IdentityError| IdentityError::Configuration(format!("oidc.issuer: {error}"));
    if issuer.len() > MAX_ISSUER {
        return Err(IdentityError::Configuration(format!("oidc.issuer is longer than {MAX_ISSUER} bytes")));
    }
    let url = fetch::address("issuer", issuer).map_err(wrong)?;
    if url.query().is_some() {
        return Err(IdentityError::Configuration("oidc.issuer has no query".to_owned()));
    }
    // The path of the issuer stays in front (section 4 of the specification).
    let document = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    fetch::address("issuer", &document).map_err(wrong)
}

/// Reads the document of this issuer and of no other.
pub(super) fn read(issuer: &str, body: Value) -> Result<Document, IdentityError> {
    let nonsense = |detail: String| IdentityError::Nonsense { what: WHAT, detail };
    let raw: Raw = serde_json::from_value(body).map_err(|error| nonsense(super::cleaned(&error.to_string(), 200)))?;
    if raw.issuer != issuer {
        let said = super::cleaned(&raw.issuer, MAX_ISSUER);
        return Err(nonsense(format!("it is about {said:?}, and oidc.issuer is {issuer:?}")));
    }
    // Where nothing is said, it may be able to; where others are listed, it is not.
    if raw.code_challenge_methods_supported.is_some_and(|methods| !methods.iter().any(|method| method == "S256")) {
        return Err(nonsense("it does not do PKCE with S256".to_owned()));
    }
    let takes =
        |way: &str| raw.token_endpoint_auth_methods_supported.as_ref().map(|ways| ways.iter().any(|w| w == way));
    let url = |text: &str| fetch::address(WHAT, text);
    Ok(Document {
        authorization: url(&raw.authorization_endpoint)?,
        token: url(&raw.token_endpoint)?,
        keys: url(&raw.jwks_uri)?,
        userinfo: raw.userinfo_endpoint.as_deref().map(url).transpose()?,
        // The header is the default (section 3).
        secret_in_body: takes("client_secret_basic") == Some(false) && takes("client_secret_post") == Some(true),
        names_itself: raw.authorization_response_iss_parameter_supported.unwrap_or(false),
    })
}

/// Fetches it.
pub(super) async fn fetch(client: &Client, issuer: &str) -> Result<Document, IdentityError> {
    let answer = fetch::ask(WHAT, client.get(address(issuer)?)).await?;
    if answer.status != 200 {
        return Err(IdentityError::Nonsense { what: WHAT, detail: format!("its address answers {}", answer.status) });
    }
    read(issuer, answer.body)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ISSUER: &str = "https://login.example.com/realms/a";

    fn document() -> Value {
        json!({
            "issuer": ISSUER,
            "authorization_endpoint": "https://login.example.com/authorize?tenant=1",
            "token_endpoint": "https://token.example.net/token",
            "jwks_uri": "https://keys.example.org/keys",
        })
    }

    #[test]
    fn a_document_counts_for_its_own_issuer_only() {
        let read_with = |name: &str, value: Value| {
            let mut document = document();
            document[name] = value;
            read(ISSUER, document)
        };
        let fine = read(ISSUER, document()).expect("a document");
        assert!(!fine.secret_in_body && !fine.names_itself && fine.userinfo.is_none());
        assert_eq!(fine.authorization.query(), Some("tenant=1"));
        for (name, value) in [
            ("issuer", json!("https://login.example.com/realms/a/")),
            ("issuer", json!("https://login.example.com/realms/b")),
            ("token_endpoint", json!("http://token.example.net/token")),
            ("jwks_uri", json!(7)),
            ("userinfo_endpoint", json!("javascript:alert(1)")),
            ("code_challenge_methods_supported", json!(["plain"])),
        ] {
            assert!(matches!(read_with(name, value), Err(IdentityError::Nonsense { .. })), "{name}");
        }
        let post = read_with("token_endpoint_auth_methods_supported", json!(["client_secret_post"]));
        assert!(post.expect("a document").secret_in_body);
        let both =
            read_with("token_endpoint_auth_methods_supported", json!(["client_secret_post", "client_secret_basic"]));
        assert!(!both.expect("a document").secret_in_body);
    }

    #[test]
    fn the_document_lies_below_the_issuer() {
        for issuer in [ISSUER, "https://login.example.com/realms/a/"] {
            let address = address(issuer).expect("an address");
            assert_eq!(address.as_str(), "https://login.example.com/realms/a/.well-known/openid-configuration");
        }
        for wrong in
            ["http://login.example.com", "https://login.example.com/?a=b", "", &format!("https://{}", "a".repeat(300))]
        {
            assert!(matches!(address(wrong), Err(IdentityError::Configuration(_))), "{wrong}");
        }
    }
}
