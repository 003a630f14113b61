//! The keys that a provider signs with (RFC 7517), as far as they are good for it.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::{Client, Url};
use serde_json::Value;

use super::{IdentityError, crypto, fetch};

const WHAT: &str = "key set";
/// Most keys of a provider that are kept. Three or four are usual: one old, one in use, one to come.
const MAX_KEYS: usize = 64;

/// A key that tokens may be signed with.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub id: Option<String>,
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

/// One key of a set. None: it is for something else, or of a kind that is not used here.
fn read_one(value: &Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        // A symmetric key in a public document is nobody's secret.
        AlgorithmParameters::EllipticCurve(_)
        | AlgorithmParameters::OctetKeyPair(_)
        | AlgorithmParameters::OctetKey(_)
        | AlgorithmParameters::Other(_) => return None,
        // The list is open.
        _ => return None,
    };
    if jwk.common.key_algorithm.is_some_and(|given| given != named) {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok().filter(crypto::usable)?;
    Some(Key { id: jwk.common.key_id, algorithm, key })
}

/// Reads a set; keys of other kinds are left out.
pub(super) fn read(body: &Value) -> Result<Vec<Key>, IdentityError> {
    let nonsense = |detail: String| IdentityError::Nonsense { what: WHAT, detail };
    let all = body["keys"].as_array().ok_or_else(|| nonsense("it has no keys".to_owned()))?;
    if all.len() > MAX_KEYS {
        return Err(nonsense(format!("it has more than {MAX_KEYS} keys")));
    }
    let keys: Vec<_> = all.iter().filter_map(read_one).collect();
    if keys.is_empty() {
        return Err(nonsense("it has no key for RS256, ES256 or EdDSA".to_owned()));
    }
    Ok(keys)
}

/// Fetches the set.
pub(super) async fn fetch(client: &Client, url: Url) -> Result<Vec<Key>, IdentityError> {
    let answer = fetch::ask(WHAT, client.get(url)).await?;
    if answer.status != 200 {
        return Err(IdentityError::Nonsense { what: WHAT, detail: format!("its address answers {}", answer.status) });
    }
    read(&answer.body)
}

/// The key that a token names. One that names none is taken to mean the only one of its kind.
pub(super) fn find<'k>(keys: &'k [Key], id: Option<&str>, algorithm: Algorithm) -> Option<&'k Key> {
    let mut fitting = keys.iter().filter(|key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id));
    let first = fitting.next()?;
    fitting.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // RFC 8037, appendix A.2.
    fn edwards(id: &str) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    #[test]
    fn keys_of_other_kinds_are_left_out() {
        let with = |name: &str, value: Value| {
            let mut key = edwards("a");
            key[name] = value;
            key
        };
        let set = json!({"keys": [
            edwards("a"),
            with("use", json!("enc")),
            with("alg", json!("HS256")),
            with("crv", json!("X25519")),
            with("x", json!("AAAA")),
            {"kty": "oct", "kid": "a", "k": "c2VjcmV0"},
            {"kty": "RSA", "kid": "short", "n": "AQAB", "e": "AQAB"},
            {"kty": "EC", "crv": "secp256k1", "kid": "coin", "x": "AA", "y": "AA"},
            {"kty": "EC", "crv": "P-256", "kid": "off-the-curve", "x": "AA", "y": "AA"},
            {"kty": "new"},
            7,
        ]});
        let keys = read(&set).expect("keys");
        assert_eq!(keys.iter().map(|key| key.id.as_deref()).collect::<Vec<_>>(), [Some("a")]);
    }

    #[test]
    fn a_set_without_keys_or_with_too_many_is_refused() {
        for set in [
            json!({}),
            json!({"keys": []}),
            json!({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}),
            json!([]),
            json!({"keys": vec![edwards("a"); MAX_KEYS + 1]}),
        ] {
            assert!(matches!(read(&set), Err(IdentityError::Nonsense { .. })));
        }
    }

    #[test]
    fn a_token_without_a_name_for_its_key_means_the_only_one() {
        let one = read(&json!({"keys": [edwards("a")]})).expect("keys");
        assert!(find(&one, None, Algorithm::EdDSA).is_some());
        assert!(find(&one, Some("b"), Algorithm::EdDSA).is_none());
        assert!(find(&one, Some("a"), Algorithm::RS256).is_none());
        let two = read(&json!({"keys": [edwards("a"), edwards("b")]})).expect("keys");
        assert!(find(&two, None, Algorithm::EdDSA).is_none());
        assert!(find(&two, Some("b"), Algorithm::EdDSA).is_some());
    }
}
