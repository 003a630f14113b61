//! Takes a secret out of texts that the other side made, in whatever form a server repeats what it was sent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};

/// A shorter piece of an encoded secret says nothing, and would be found by chance.
const MIN_ENCODED: usize = 8;

/// The forms of one secret: as it is, percent-encoded, in Base64 (also within `user:secret`), in hexadecimal.
pub(crate) struct Redactor(Vec<SecretString>);

impl Redactor {
    /// Of this secret; without one, texts stay as they are.
    pub(crate) fn new(secret: Option<&SecretString>) -> Self {
        let Some(plain) = secret.map(|secret| secret.expose_secret().trim()).filter(|plain| !plain.is_empty()) else {
            return Self(Vec::new());
        };
        // Of a pair `user:token` the second half is the secret by itself.
        let half = plain.split_once(':').map(|(_, half)| half).filter(|half| half.len() >= MIN_ENCODED);
        let mut forms = Vec::new();
        for plain in [Some(plain), half].into_iter().flatten() {
            let encoded = [hexadecimal(plain), percent(plain, true), percent(plain, false)];
            let cores = (0..3).map(|offset| base64_core(plain, offset));
            let cores = cores.flat_map(|core| [core.replace('+', "-").replace('/', "_"), core]);
            forms.extend(encoded.into_iter().chain(cores).filter(|form| form.len() >= MIN_ENCODED && form != plain));
            forms.push(plain.to_owned());
        }
        // The longest first: what is left of a text then holds no part of it.
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        forms.dedup();
        Self(forms.into_iter().map(SecretString::from).collect())
    }

    /// The text with `mark` in place of the secret.
    pub(crate) fn apply(&self, text: &str, mark: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, form| text.replace(form.expose_secret(), mark))
    }
}

fn hexadecimal(plain: &str) -> String {
    plain.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn percent(plain: &str, upper: bool) -> String {
    let encode = |byte: u8| match byte {
        _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
        _ if upper => format!("%{byte:02X}"),
        _ => format!("%{byte:02x}"),
    };
    plain.bytes().map(encode).collect()
}

/// The characters of a Base64 text that this part of its bytes alone decides, when the part begins so many bytes past a
/// group of three.
fn base64_core(plain: &str, offset: usize) -> String {
    let bytes = [&[0; 2][..offset], plain.as_bytes()].concat();
    let text = STANDARD.encode(&bytes);
    text[(offset * 8).div_ceil(6)..bytes.len() * 8 / 6].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_the_secret_stays() {
        let secret = "ghp_sec/ret+42%=";
        let redactor = Redactor::new(Some(&SecretString::from(secret)));
        for user in ["", "g", "gi", "git", "x-access-token"] {
            let pair = STANDARD.encode(format!("{user}:{secret}"));
            let told = redactor.apply(&format!("Authorization: Basic {pair} for {secret}!"), "[redacted]");
            assert!(!told.contains(&pair[pair.len() - 12..]) && !told.contains("sec/ret"), "{told}");
            assert!(told.starts_with("Authorization: Basic ") && told.ends_with(" for [redacted]!"), "{told}");
        }
        for form in [hexadecimal(secret), percent(secret, true), percent(secret, false), STANDARD.encode(secret)] {
            // The last character of Base64 and its padding may stay.
            assert!(redactor.apply(&form, "*").len() <= 4, "{form}");
        }
    }

    #[test]
    fn the_second_half_of_a_pair_does_not_stay_either() {
        let redactor = Redactor::new(Some(&SecretString::from("ann@example.com:ATATT3xFfGF0")));
        let pair = STANDARD.encode("x-bitbucket-api-token-auth:ATATT3xFfGF0");
        let told = redactor.apply(&format!("ATATT3xFfGF0 {pair} ann@example.com"), "*");
        assert!(!told.contains("ATATT3") && !told.contains(&pair[pair.len() - 12..]), "{told}");
        assert!(told.ends_with(" ann@example.com"), "{told}");
    }

    #[test]
    fn other_words_stay() {
        let text = "permission denied for a user";
        assert_eq!(Redactor::new(None).apply(text, "*"), text);
        assert_eq!(Redactor::new(Some(&SecretString::from(" "))).apply(text, "*"), text);
        assert_eq!(Redactor::new(Some(&SecretString::from("zq"))).apply(text, "*"), text);
    }
}
