//! Judges an ID token (OpenID Connect Core 1.0, section 3.1.3.7): signed by the provider, for us, now, and for this sign-in.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation, decode};
use serde_json::Value;

use super::keys::Key;
use super::{IdentityError, MAX_GROUP, MAX_GROUPS, MAX_NAME, MAX_SUBJECT, cleaned};

/// How far the provider's clock and ours may be apart, in seconds.
const LEEWAY: u64 = 60;
/// How old a token may be, in seconds. It comes straight from the provider.
const MAX_AGE: u64 = 10 * 60;
/// Longest token looked at, in bytes.
pub(super) const MAX_TOKEN: usize = 128 * 1024;

/// What is wrong with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// No three parts of JSON.
    #[error("it is no signed token")]
    Malformed,
    /// `none`, a shared secret, or one that goes with another kind of key.
    #[error("it is signed in a way that is not accepted")]
    Algorithm,
    /// The provider publishes no such key.
    #[error("it names a key that the provider does not publish")]
    UnknownKey,
    /// The signature is another's.
    #[error("its signature does not hold")]
    Signature,
    /// Another provider's.
    #[error("it is from another issuer")]
    Issuer,
    /// For somebody else.
    #[error("it is meant for another application")]
    Audience,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time is to come, or its clock is wrong.
    #[error("it is from another time; compare the clocks")]
    Time,
    /// For another sign-in.
    #[error("it belongs to another sign-in")]
    Nonce,
    /// It says nothing usable about whom it is about.
    #[error("it does not say whom it is about")]
    Subject,
}

impl TokenFault {
    /// A stable word, for the audit.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "token-malformed",
            Self::Algorithm => "token-algorithm",
            Self::UnknownKey => "token-unknown-key",
            Self::Signature => "token-signature",
            Self::Issuer => "token-issuer",
            Self::Audience => "token-audience",
            Self::Expired => "token-expired",
            Self::Time => "token-time",
            Self::Nonce => "token-nonce",
            Self::Subject => "token-subject",
        }
    }
}

/// What a token has to be.
pub(super) struct Expected<'a> {
    pub issuer: &'a str,
    pub client_id: &'a str,
    pub nonce: &'a str,
    /// Seconds since 1970.
    pub now: u64,
}

/// How a token says that it is signed.
pub(super) fn header(token: &str) -> Result<Header, TokenFault> {
    if token.len() > MAX_TOKEN {
        return Err(TokenFault::Malformed);
    }
    jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
        // `none` is an algorithm that the reader does not know.
        ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName | ErrorKind::InvalidAlgorithm => TokenFault::Algorithm,
        _ => TokenFault::Malformed,
    })
}

/// The claims of a token, once everything about it has been found right.
pub(super) fn judge(token: &str, key: &Key, expected: &Expected<'_>) -> Result<Value, TokenFault> {
    let mut validation = Validation::new(key.algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[expected.issuer]);
    validation.set_audience(&[expected.client_id]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims = decode::<Value>(token, &key.key, &validation).map_err(|error| fault(error.kind()))?.claims;
    // With several audiences, the one it was issued to is named; where one is named, it is us.
    let several = claims["aud"].as_array().is_some_and(|all| all.len() > 1);
    match &claims["azp"] {
        Value::Null if several => return Err(TokenFault::Audience),
        Value::Null => {}
        party if party.as_str() == Some(expected.client_id) => {}
        _ => return Err(TokenFault::Audience),
    }
    let issued = claims["iat"].as_f64().filter(|at| at.is_finite() && *at >= 0.0).ok_or(TokenFault::Time)?;
    let now = expected.now as f64;
    if issued > now + LEEWAY as f64 || issued < now - (MAX_AGE + LEEWAY) as f64 {
        return Err(TokenFault::Time);
    }
    if claims["nonce"].as_str() != Some(expected.nonce) {
        return Err(TokenFault::Nonce);
    }
    subject(&claims).ok_or(TokenFault::Subject)?;
    Ok(claims)
}

fn fault(kind: &ErrorKind) -> TokenFault {
    match kind {
        ErrorKind::InvalidSignature => TokenFault::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::MissingAlgorithm => {
            TokenFault::Algorithm
        }
        ErrorKind::InvalidIssuer => TokenFault::Issuer,
        ErrorKind::InvalidAudience => TokenFault::Audience,
        ErrorKind::InvalidSubject => TokenFault::Subject,
        ErrorKind::ExpiredSignature => TokenFault::Expired,
        ErrorKind::ImmatureSignature => TokenFault::Time,
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "iss" => TokenFault::Issuer,
            "aud" => TokenFault::Audience,
            "sub" => TokenFault::Subject,
            _ => TokenFault::Expired,
        },
        // The crate's list is open; what it may say besides is about the token's form.
        _ => TokenFault::Malformed,
    }
}

/// Whom the claims are about.
pub(super) fn subject(claims: &Value) -> Option<&str> {
    let fits = |subject: &&str| {
        !subject.is_empty()
            && subject.len() <= MAX_SUBJECT
            && subject.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
    };
    claims["sub"].as_str().filter(fits)
}

/// What somebody is called.
pub(super) fn name(claims: &Value) -> Option<String> {
    let called =
        |claim: &str| claims[claim].as_str().map(|name| cleaned(name, MAX_NAME)).filter(|name| !name.is_empty());
    ["name", "preferred_username", "email"].into_iter().find_map(called)
}

/// The groups in the claims; `None` where they do not speak of groups.
pub(super) fn groups(claims: &Value, claim: &str) -> Result<Option<Vec<String>>, IdentityError> {
    // A name may have dots of its own, as those that begin with an address do.
    let found = claims.get(claim).or_else(|| claim.split('.').try_fold(claims, |at, name| at.get(name)));
    let names: Vec<&str> = match found {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            let detail = format!("its claim {claim:?} is no list of names");
            return Err(IdentityError::Nonsense { what: "token", detail });
        }
    };
    if names.len() > MAX_GROUPS {
        let detail = format!("it names more than {MAX_GROUPS} groups; let it name those alone that are mapped");
        return Err(IdentityError::Nonsense { what: "token", detail });
    }
    Ok(Some(names.into_iter().filter(|name| name.len() <= MAX_GROUP).map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn groups_are_found_by_name_or_by_path() {
        let claims = json!({
            "groups": ["a", "b", 7],
            "one": "a",
            "realm_access": {"roles": ["c"]},
            "https://example.com/groups": ["d"],
            "odd": {"a": 1},
            "long": ["x".repeat(MAX_GROUP + 1), "e"],
        });
        let found = |claim: &str| groups(&claims, claim).expect("groups");
        assert_eq!(found("groups"), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(found("one"), Some(vec!["a".to_owned()]));
        assert_eq!(found("realm_access.roles"), Some(vec!["c".to_owned()]));
        assert_eq!(found("https://example.com/groups"), Some(vec!["d".to_owned()]));
        assert_eq!(found("long"), Some(vec!["e".to_owned()]));
        assert_eq!(found("nothing"), None);
        assert!(groups(&claims, "odd").is_err());
        assert!(groups(&json!({"g": vec!["a"; MAX_GROUPS + 1]}), "g").is_err());
    }

    #[test]
    fn names_are_one_clean_line() {
        assert_eq!(name(&json!({"name": " \n", "email": "ada@example.com"})).as_deref(), Some("ada@example.com"));
        assert_eq!(name(&json!({"name": "A\u{1b}[31md\na"})).as_deref(), Some("A [31md a"));
        assert_eq!(name(&json!({"name": "é".repeat(200)})).expect("a name").len(), MAX_NAME);
        assert_eq!(name(&json!({})), None);
        for wrong in ["", "a\nb", "é", &"a".repeat(MAX_SUBJECT + 1)] {
            assert_eq!(subject(&json!({"sub": wrong})), None, "{wrong}");
        }
    }
}
