//! Finds tokens and keys in new content, and says what and where, never which.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ops::Range;

use regex::bytes::{Regex, RegexBuilder};

use super::secret_rules::{RULES, Rule};

/// The longest stretch that one token is looked for in: the longest tokens, and a key's header.
const MAX_TOKEN_BYTES: usize = 4096;
/// Memory for one compiled pattern; the largest here takes a fraction of it.
const MAX_PATTERN_BYTES: usize = 4 * 1024 * 1024;
/// Words in tokens that are only shown: AWS's documentation has `AKIAIOSFODNN7EXAMPLE`.
const PLACEHOLDERS: [&[u8]; 3] = [b"EXAMPLE", b"example", b"Example"];

/// A token, by its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// What it is.
    pub kind: &'static str,
    /// Where, in bytes.
    pub at: Range<usize>,
    /// Whether this is only the beginning, and more lines of it follow.
    pub many_lines: bool,
}

/// Patterns are compiled when their anchor is first met: most imports meet none.
pub(super) struct Scanner {
    anchors: Regex,
    patterns: Vec<OnceCell<Regex>>,
}

impl Scanner {
    pub(super) fn new() -> Self {
        let anchors: Vec<String> =
            RULES.iter().flat_map(|rule| rule.anchors).map(|anchor| regex::escape(anchor)).collect();
        Self { anchors: compile(&anchors.join("|")), patterns: RULES.iter().map(|_| OnceCell::new()).collect() }
    }

    /// The first finding that begins at or after `from`, roughly: of two that overlap, either.
    pub(super) fn find(&self, content: &[u8], from: usize) -> Option<Finding> {
        let mut from = from;
        while let Some(anchor) = self.anchors.find_at(content, from) {
            let here = RULES.iter().zip(&self.patterns).find_map(|(rule, pattern)| {
                let anchored = rule.anchors.iter().any(|text| content[anchor.start()..].starts_with(text.as_bytes()));
                anchored.then(|| token(rule, pattern, content, anchor.start()))?
            });
            if here.is_some() {
                return here;
            }
            from = anchor.start() + 1;
        }
        None
    }

    /// Every token in the content.
    pub(super) fn tokens<'a>(&self, content: &'a [u8]) -> HashSet<&'a [u8]> {
        let mut tokens = HashSet::new();
        let mut from = 0;
        while let Some(finding) = self.find(content, from) {
            from = finding.at.end;
            tokens.insert(&content[finding.at]);
        }
        tokens
    }

    fn redacted(&self, text: &str) -> String {
        let content = text.as_bytes();
        let (mut clean, mut kept) = (Vec::with_capacity(content.len()), 0);
        while let Some(finding) = self.find(content, kept) {
            // A token can begin before its anchor, and so in what is gone already.
            clean.extend_from_slice(&content[kept..finding.at.start.max(kept)]);
            clean.extend_from_slice(REDACTED);
            kept = if finding.many_lines { end_of_key(content, finding.at.end) } else { finding.at.end };
        }
        clean.extend_from_slice(&content[kept..]);
        // A format's bytes are ASCII at both ends, so no character is cut.
        String::from_utf8_lossy(&clean).into_owned()
    }
}

/// Where the key ends that is known to go on at `from`.
fn end_of_key(content: &[u8], from: usize) -> usize {
    let rest = &content[from..];
    let Some(end) = KEY_ENDS.iter().filter_map(|end| rest.windows(end.len()).position(|part| part == *end)).min()
    else {
        return content.len();
    };
    // Keys in program text have escaped line ends.
    let line = rest[end..].iter().position(|byte| matches!(byte, b'\n' | b'\r' | b'\\')).unwrap_or(rest.len() - end);
    from + end + line
}

/// What stands where a secret was.
const REDACTED: &[u8] = b"[redacted]";
/// What the line after a private key's last one has in it.
const KEY_ENDS: [&[u8]; 2] = [b"-----END ", b"Private-MAC:"];

/// The text with each token and key that an import would refuse replaced by `[redacted]`: for what an agent wrote and others
/// will read, such as a title. A private key goes whole; one whose end is not there takes the rest of the text with it.
pub fn redact_secrets(text: &str) -> String {
    thread_local! {
        // The patterns that were compiled stay so; there is no more of them than there are threads.
        static SCANNER: Scanner = Scanner::new();
    }
    SCANNER.with(|scanner| scanner.redacted(text))
}

fn compile(pattern: &str) -> Regex {
    RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(MAX_PATTERN_BYTES)
        .build()
        .expect("the table's patterns are compiled by a test")
}

/// The token of this format around an anchor.
fn token(rule: &Rule, pattern: &OnceCell<Regex>, content: &[u8], anchor: usize) -> Option<Finding> {
    let start = anchor.checked_sub(rule.lead)?;
    // In the middle of a word it is a part of something else.
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    if start > 0 && !rule.inside && word(&content[start - 1]) {
        return None;
    }
    let pattern = pattern.get_or_init(|| compile(&format!("^(?:{})", rule.pattern)));
    let window = &content[start..content.len().min(start + MAX_TOKEN_BYTES)];
    let captures = pattern.captures(window)?;
    let whole = captures.get(0)?;
    if content.get(start + whole.end()).is_some_and(word) {
        return None;
    }
    let random = captures.get(1).unwrap_or(whole).as_bytes();
    let shown = PLACEHOLDERS.iter().any(|word| random.windows(word.len()).any(|part| part == *word));
    let many_lines = matches!(rule.kind, "private key" | "PuTTY private key");
    let at = start..start + whole.end();
    (!shown && entropy(random) >= rule.entropy).then_some(Finding { kind: rule.kind, at, many_lines })
}

/// Shannon's entropy in bits per byte.
fn entropy(bytes: &[u8]) -> f32 {
    let mut counts = [0_u32; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    let total = bytes.len() as f32;
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| *count as f32 / total)
        .map(|share| -share * share.log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Letters and digits that look random and are the same in each run.
    fn noise(length: usize, alphabet: &[u8]) -> String {
        let mut state = 0x9e37_79b9_u32;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            char::from(alphabet[state as usize % alphabet.len()])
        };
        (0..length).map(next).collect()
    }

    fn mixed(length: usize) -> String {
        noise(length, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
    }

    fn hex(length: usize) -> String {
        noise(length, b"0123456789abcdef")
    }

    #[test]
    fn every_pattern_compiles_and_starts_at_its_anchor() {
        for rule in RULES {
            compile(rule.pattern);
            assert!(rule.anchors.iter().all(|anchor| anchor.len() > 1), "{}", rule.kind);
        }
    }

    #[test]
    fn well_known_tokens_are_found_and_their_placeholders_are_not() {
        let scanner = Scanner::new();
        let upper = |length| noise(length, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567");
        for (kind, token) in [
            ("GitHub token (classic)", format!("ghp_{}", mixed(36))),
            ("GitHub token (fine-grained)", format!("github_pat_{}_{}", mixed(22), mixed(59))),
            ("GitHub token (OAuth, app or refresh)", format!("ghs_{}", mixed(36))),
            ("GitLab token", format!("glpat-{}", mixed(20))),
            ("Bitbucket or Atlassian token", format!("ATATT3xFf{}", mixed(180))),
            ("Bitbucket Data Center token", format!("BBDC-{}", mixed(44))),
            ("npm token", format!("npm_{}", mixed(36))),
            ("AWS access key", format!("AKIA{}", upper(16))),
            ("AWS secret key", format!("aws_secret_access_key = \"{}\"", mixed(40))),
            ("Google API key", format!("AIza{}", mixed(35))),
            ("Azure client secret", format!("abC8Q~{}", mixed(34))),
            ("Azure storage key", format!("AccountKey={}==", mixed(86))),
            ("Terraform Cloud token", format!("{}.atlasv1.{}", mixed(14), mixed(67))),
            ("Vault token", format!("hvs.{}", mixed(90))),
            ("Anthropic key", format!("sk-ant-api03-{}AA", mixed(93))),
            ("OpenAI key", format!("sk-proj-{}", mixed(120))),
            ("OpenAI or DeepSeek key", format!("sk-{}", hex(32))),
            (
                "Hugging Face token",
                format!("hf_{}", noise(34, b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")),
            ),
            ("Slack token", format!("xoxb-123456789012-1234567890123-{}", mixed(24))),
            ("Slack webhook", format!("https://hooks.slack.com/services/T{}/B{}/{}", upper(8), upper(10), mixed(24))),
            ("Telegram bot token", format!("1234567890:AA{}", mixed(33))),
            ("SendGrid key", format!("SG.{}.{}", mixed(22), mixed(43))),
            ("Stripe key", format!("sk_live_{}", mixed(24))),
            ("Shopify token", format!("shpat_{}", hex(32))),
            ("private key", format!("-----BEGIN RSA PRIVATE KEY-----\n{}\n", mixed(64))),
            ("private key", format!("\"-----BEGIN PRIVATE KEY-----\\n{}\\n\"", mixed(64))),
            (
                "private key",
                format!(
                    "-----BEGIN EC PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\nDEK-Info: AES-128-CBC,00\r\n\r\n{}",
                    mixed(64)
                ),
            ),
            ("private key", format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n", mixed(70))),
        ] {
            for text in [token.clone(), format!("x = '{token}';\n"), format!("\0\u{1}{token}\n")] {
                let finding = scanner.find(text.as_bytes(), 0).unwrap_or_else(|| panic!("{kind}: {text}"));
                assert_eq!(finding.kind, kind);
            }
            let inside = format!("x{token}");
            let begins_with_word = token.starts_with(|c: char| c.is_ascii_alphanumeric());
            if begins_with_word && kind != "Telegram bot token" && kind != "Slack webhook" {
                assert_eq!(scanner.find(inside.as_bytes(), 0), None, "{kind}: in the middle of a word");
            }
        }
        for text in [
            format!("ghp_{}", "x".repeat(36)),
            "ghp_short".to_owned(),
            "AKIAIOSFODNN7EXAMPLE".to_owned(),
            "aws_secret_access_key = os.environ['AWS_SECRET_ACCESS_KEY']".to_owned(),
            "-----BEGIN PRIVATE KEY-----".to_owned(),
            "if line == \"-----BEGIN RSA PRIVATE KEY-----\" { read() }".to_owned(),
            format!("-----BEGIN CERTIFICATE-----\n{}", mixed(64)),
            format!("-----BEGIN PUBLIC KEY-----\n{}", mixed(64)),
            format!("integrity sha512-{}==", mixed(86)),
            format!("sk-{}", hex(40)),
            hex(64),
            format!("task-{}", hex(32)),
        ] {
            assert_eq!(scanner.find(text.as_bytes(), 0), None, "{text}");
        }
    }

    #[test]
    fn all_tokens_of_a_text_are_told_apart() {
        let (one, two) = (format!("ghp_{}", mixed(36)), format!("glpat-{}", mixed(20)));
        let text = format!("a\n{one} {two}\n{one}\n");
        let tokens = Scanner::new().tokens(text.as_bytes());
        assert_eq!(tokens, HashSet::from([one.as_bytes(), two.as_bytes()]));
    }

    #[test]
    fn a_redacted_text_has_its_words_and_no_secret() {
        let token = format!("ghp_{}", mixed(36));
        let text = format!("Größe: {token}, and ü{token}ü again; AccountKey={}== ende", mixed(86));
        let clean = redact_secrets(&text);
        assert!(!clean.contains(&mixed(20)), "{clean}");
        assert!(
            clean.starts_with("Größe: [redacted], and ü[redacted]ü again; ") && clean.ends_with(" ende"),
            "{clean}"
        );
        assert_eq!(redact_secrets("nothing to hide"), "nothing to hide");

        let body = format!("{}\n{}\n{}=\n", mixed(64), hex(64), mixed(20));
        let key = format!("-----BEGIN RSA PRIVATE KEY-----\n{body}-----END RSA PRIVATE KEY-----");
        assert_eq!(redact_secrets(&format!("before\n{key}\nafter")), "before\n[redacted]\nafter");
        let escaped = key.replace('\n', "\\n");
        assert_eq!(redact_secrets(&format!("\"{escaped}\\n\", x")), "\"[redacted]\\n\", x");
        // Without its end it is not known what else belongs to it.
        assert_eq!(redact_secrets(&format!("before -----BEGIN PRIVATE KEY-----\n{body}")), "before [redacted]");
    }

    #[test]
    fn text_made_of_anchors_takes_time_in_proportion() {
        let text = "-----BEGIN sk-key-SKghp_".repeat(4_000);
        let started = std::time::Instant::now();
        assert_eq!(Scanner::new().find(text.as_bytes(), 0), None);
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
