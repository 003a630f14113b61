//! Signatures as Standard Webhooks has them: HMAC-SHA256 over `id.timestamp.body`, in base 64, one for each secret that
//! is still valid.
//!
//! A webhook's secrets are not stored. Each is derived from the server's key for the webhook and the number of the secret.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use orchestra_events::WebhookId;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use sha2::Sha256;

use crate::server_key::{KEY_BYTES, ServerKey};

/// What a secret begins with, as everywhere.
const PREFIX: &str = "whsec_";

/// The secrets of every webhook.
#[derive(Debug, Clone)]
pub struct Secrets(Arc<ServerKey>);

impl Secrets {
    /// Those that are derived from this key.
    pub const fn new(key: Arc<ServerKey>) -> Self {
        Self(key)
    }

    fn key(&self, webhook: WebhookId, version: u32) -> SecretBox<[u8; KEY_BYTES]> {
        self.0.derive(&format!("webhook/{webhook}/{version}"))
    }

    /// A secret as its owner gets to see it, once.
    pub fn shown(&self, webhook: WebhookId, version: u32) -> SecretString {
        format!("{PREFIX}{}", STANDARD.encode(self.key(webhook, version).expose_secret())).into()
    }

    /// The value of `webhook-signature`: a signature for each of these secrets.
    pub fn sign(&self, webhook: WebhookId, versions: &[u32], message: &str, at: Timestamp, body: &[u8]) -> String {
        let signatures = versions.iter().map(|version| {
            let key = self.key(webhook, *version);
            sign(key.expose_secret(), message, at, body)
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

/// One signature.
pub fn sign(key: &[u8], message: &str, at: Timestamp, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(message.as_bytes());
    mac.update(b".");
    mac.update(at.as_second().to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn a_signature_is_the_one_that_everybody_makes() {
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let at = Timestamp::from_second(1_614_265_330).unwrap();
        let signature = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", at, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_webhook_and_every_number_has_a_secret_of_its_own() {
        let secrets = Secrets::new(Arc::new(ServerKey::passing().unwrap()));
        let (one, other) = (WebhookId::from_uuid(Uuid::from_u128(1)), WebhookId::from_uuid(Uuid::from_u128(2)));
        let shown = |webhook, version| secrets.shown(webhook, version).expose_secret().to_owned();
        assert_eq!(shown(one, 1), shown(one, 1));
        assert!(shown(one, 1) != shown(one, 2) && shown(one, 1) != shown(other, 1));
        let text = shown(one, 1);
        let key = STANDARD.decode(text.strip_prefix("whsec_").unwrap()).unwrap();
        assert_eq!(key.len(), 32);
        let at = Timestamp::from_second(1_790_000_000).unwrap();
        let both = secrets.sign(one, &[2, 1], "msg_1", at, b"{}");
        assert_eq!(both.split(' ').count(), 2);
        assert!(both.ends_with(&sign(&key, "msg_1", at, b"{}")));
    }
}
