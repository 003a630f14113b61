//! The page of every code, as it stands in `docs/errors/`: cause and remedy.

macro_rules! pages {
    ($($code:literal,)*) => {
        /// Every code with its page's Markdown. A code without a page does not compile.
        pub const PAGES: &[(&str, &str)] =
            &[$(($code, include_str!(concat!("../../../docs/errors/", $code, ".md"))),)*];
    };
}

pages! {
    "address-not-allowed",
    "body-incomplete",
    "body-too-large",
    "branch-policy",
    "branch-protected",
    "budget-exceeded",
    "cancelled",
    "clone-failed",
    "conflict",
    "cross-site-request",
    "forbidden",
    "git-auth",
    "git-token-scope",
    "harness-failed",
    "idempotency-key-reused",
    "internal",
    "internal-error",
    "invalid-json",
    "invalid-query",
    "invalid-request",
    "lagging",
    "method-not-allowed",
    "model-auth",
    "model-overloaded",
    "model-rate-limited",
    "model-timeout",
    "model-truncated",
    "model-unavailable",
    "network-dropped",
    "not-found",
    "nothing-to-push",
    "overloaded",
    "pull-request-failed",
    "push-conflict",
    "push-rejected",
    "rate-limited",
    "repo-not-found",
    "request-in-progress",
    "sandbox-disk-full",
    "sandbox-out-of-memory",
    "sandbox-start-failed",
    "sandbox-timeout",
    "setup-failed",
    "too-many-tasks",
    "unauthenticated",
    "unsupported-media-type",
}

/// The Markdown of a code's page.
pub fn page(code: &str) -> Option<&'static str> {
    PAGES.iter().find(|(known, _)| *known == code).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Code;
    use orchestra_events::FailureCode;

    #[test]
    fn every_code_has_its_page_and_every_page_its_code() {
        let mut codes: Vec<_> = FailureCode::ALL.iter().map(|code| code.as_str()).collect();
        codes.extend(Code::ALL.iter().map(|code| code.as_str()));
        codes.sort_unstable();
        // A budget refuses at the door as it does in the middle.
        codes.dedup();
        let pages: Vec<_> = PAGES.iter().map(|(code, _)| *code).collect();
        assert_eq!(pages, codes);
        for (code, text) in PAGES {
            assert!(text.starts_with(&format!("# {code}\n")), "{code}");
            assert!(text.contains("## Cause\n") && text.contains("## Remedy\n"), "{code}");
        }
    }
}
