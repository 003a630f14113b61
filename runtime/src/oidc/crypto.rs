//! Signatures checked by the system's OpenSSL, as the crate that reads tokens asks for it.
//!
//! Three algorithms and no more: RSA with SHA-256, ECDSA on P-256, Ed25519. What a key is good for is decided by its kind,
//! never by what a token says about itself.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::rsa::Rsa;
use openssl::sign::Verifier;

/// Shortest RSA key, in bits: NIST SP 800-131A has allowed nothing shorter since 2014.
const MIN_RSA: i32 = 2_048;
/// Longest, in bits: a longer one only takes time.
const MAX_RSA: i32 = 8_192;
/// Length of each half of a signature on P-256.
const HALF: usize = 32;

struct Check {
    algorithm: Algorithm,
    key: PKey<Public>,
}

impl Check {
    fn holds(&self, message: &[u8], given: &[u8]) -> Result<bool, ErrorStack> {
        if self.algorithm == Algorithm::EdDSA {
            return Verifier::new_without_digest(&self.key)?.verify_oneshot(given, message);
        }
        let mut verifier = Verifier::new(MessageDigest::sha256(), &self.key)?;
        if self.algorithm != Algorithm::ES256 {
            return verifier.verify_oneshot(given, message);
        }
        // Two numbers side by side in a token (RFC 7518, section 3.4), a structure in OpenSSL.
        if given.len() != 2 * HALF {
            return Ok(false);
        }
        let (r, s) = (BigNum::from_slice(&given[..HALF])?, BigNum::from_slice(&given[HALF..])?);
        verifier.verify_oneshot(&EcdsaSig::from_private_components(r, s)?.to_der()?, message)
    }
}

impl signature::Verifier<Vec<u8>> for Check {
    fn verify(&self, message: &[u8], given: &Vec<u8>) -> Result<(), signature::Error> {
        match self.holds(message, given) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(signature::Error::new()),
        }
    }
}

impl JwtVerifier for Check {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn public(key: &DecodingKey) -> Result<Option<PKey<Public>>, ErrorStack> {
    match (key.family(), key.kind()) {
        (AlgorithmFamily::Rsa, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            let n = BigNum::from_slice(n)?;
            if !(MIN_RSA..=MAX_RSA).contains(&n.num_bits()) {
                return Ok(None);
            }
            PKey::from_rsa(Rsa::from_public_components(n, BigNum::from_slice(e)?)?).map(Some)
        }
        (AlgorithmFamily::Ec, DecodingKeyKind::SecretOrDer(point)) => {
            let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
            let point = EcPoint::from_bytes(&group, point, &mut *BigNumContext::new()?)?;
            let key = EcKey::from_public_key(&group, &point)?;
            key.check_key()?;
            PKey::from_ec_key(key).map(Some)
        }
        (AlgorithmFamily::Ed, DecodingKeyKind::SecretOrDer(bytes)) => {
            PKey::public_key_from_raw_bytes(bytes, Id::ED25519).map(Some)
        }
        (
            AlgorithmFamily::Hmac | AlgorithmFamily::Rsa | AlgorithmFamily::Ec | AlgorithmFamily::Ed,
            DecodingKeyKind::SecretOrDer(_) | DecodingKeyKind::RsaModulusExponent { .. },
        ) => Ok(None),
    }
}

/// What a key of a family is used with. None: with nothing here.
pub(super) fn algorithm_of(family: AlgorithmFamily) -> Option<Algorithm> {
    match family {
        AlgorithmFamily::Rsa => Some(Algorithm::RS256),
        AlgorithmFamily::Ec => Some(Algorithm::ES256),
        AlgorithmFamily::Ed => Some(Algorithm::EdDSA),
        AlgorithmFamily::Hmac => None,
    }
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    if algorithm_of(key.family()) != Some(*algorithm) {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    match public(key) {
        Ok(Some(key)) => Ok(Box::new(Check { algorithm: *algorithm, key })),
        Ok(None) | Err(_) => Err(ErrorKind::InvalidKeyFormat.into()),
    }
}

static OPENSSL: CryptoProvider = CryptoProvider {
    // Nothing is signed here.
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Whether a signature can be checked with this key at all.
pub(super) fn usable(key: &DecodingKey) -> bool {
    matches!(public(key), Ok(Some(_)))
}

/// Makes the crate check signatures here. Needed once a process; repeating it changes nothing.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    // Nobody else in this process installs one.
    ONCE.call_once(|| {
        let _ = OPENSSL.install_default();
    });
}
