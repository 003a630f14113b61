//! Reads a refusal: which limit, which missing permission, which sentence, whatever the forge's way of saying it.
//!
//! The four forges' errors have four shapes that do not overlap, so one reader does for all. Sources: GitHub's
//! "Troubleshooting the REST API" and "Rate limits for the REST API", Atlassian's REST error pages, GitLab's "REST API
//! troubleshooting".

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::http::{Answer, Request, Session};
use super::token::TokenKind;
use super::{ForgeError, ForgeKind};

/// What is waited when a forge limits without saying for how long: GitHub asks for at least a minute.
const UNTOLD_WAIT: Duration = Duration::from_secs(60);
/// No forge's limit lasts longer; a larger figure is a mistake.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);
/// What GitHub and Bitbucket say, in small letters, when an organisation lists the addresses that it is called from.
const NOT_FROM_HERE: [&str; 4] = ["ip allow list", "ip address is not permitted", "ip whitelist", "not allowlisted"];
/// Between the second that a forge names and ours.
const CLOCK_SKEW: Duration = Duration::from_millis(500);

/// A limit that was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit(Option<Duration>);

impl Limit {
    pub(super) fn wait(self) -> Duration {
        self.0.unwrap_or(UNTOLD_WAIT).min(LONGEST_WAIT)
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

/// Whether a limit is what this answer is about. GitHub says so with 403 as often as with 429, Bitbucket with 503 too.
pub(super) fn limited(answer: &Answer) -> Option<Limit> {
    let headers = &answer.headers;
    let after = header(headers, "retry-after").and_then(retry_after);
    let spent = header(headers, "x-ratelimit-remaining") == Some("0");
    let said = sentence(&answer.body).unwrap_or_default().to_lowercase();
    let limited = match answer.status {
        429 => true,
        403 => after.is_some() || spent || said.contains("rate limit") || said.contains("abuse detection"),
        503 => after.is_some(),
        _ => false,
    };
    let reset = || {
        let names = ["x-ratelimit-reset", "ratelimit-reset"];
        let second = names.iter().find_map(|name| header(headers, name)?.parse::<i64>().ok())?;
        let until = Timestamp::from_second(second).ok()?;
        Some(wait_until(until).unwrap_or_default() + CLOCK_SKEW)
    };
    limited.then(|| Limit(after.or_else(|| if spent || answer.status == 429 { reset() } else { None })))
}

/// RFC 9110, section 10.2.3: seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(wait_until(date.timestamp()).unwrap_or_default() + CLOCK_SKEW)
}

fn wait_until(until: Timestamp) -> Option<Duration> {
    Duration::try_from(until.duration_since(Timestamp::now())).ok()
}

/// The forge's own sentence in an error, not yet fit to be shown.
pub(super) fn sentence(body: &Value) -> Option<String> {
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    // GitLab's messages can be lists, or lists by field.
    let told = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => {
            let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            (!texts.is_empty()).then(|| texts.join("; "))
        }
        Value::Object(_) => Some(value.to_string()),
        Value::Bool(_) | Value::Number(_) => None,
    };
    let first = body
        .pointer("/message")
        .and_then(told)
        .or_else(|| text("/error/message"))
        .or_else(|| text("/errors/0/message"))
        .or_else(|| text("/error_description"))
        .or_else(|| text("/error"))?;
    // GitHub's reason for a 422 stands in `errors`, Bitbucket's fields in `error.fields`.
    let more = body.pointer("/message").and(body.pointer("/errors")).and_then(Value::as_array).map(|errors| {
        let texts = errors.iter().filter_map(|error| {
            let said = error.as_str().or_else(|| error.get("message")?.as_str()).map(str::to_owned);
            said.or_else(|| Some(format!("{} {}", error.get("field")?.as_str()?, error.get("code")?.as_str()?)))
        });
        texts.collect::<Vec<_>>().join("; ")
    });
    let more = more.or_else(|| body.pointer("/error/fields").map(Value::to_string));
    Some(match more.filter(|more| !more.is_empty()) {
        Some(more) => format!("{first}: {more}"),
        None => first,
    })
}

/// The permission that is missing, in the forge's own word for it.
fn permission(answer: &Answer) -> Option<String> {
    let (headers, body) = (&answer.headers, &answer.body);
    let words =
        |text: &str| text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect();
    // GitHub, fine-grained tokens and apps: `pull_requests=write; contents=read`, alternatives apart by `;`.
    if let Some(accepted) = header(headers, "x-accepted-github-permissions") {
        return Some(accepted.to_owned());
    }
    // GitHub, classic tokens: one of the accepted scopes would do.
    if let Some(accepted) = header(headers, "x-accepted-oauth-scopes") {
        let granted: Vec<String> = header(headers, "x-oauth-scopes").map(words).unwrap_or_default();
        let accepted: Vec<String> = words(accepted);
        if !accepted.iter().any(|scope| granted.contains(scope)) {
            return accepted.first().cloned();
        }
    }
    // Bitbucket Cloud: what is required, and what was granted.
    let list = |pointer: &str| -> Vec<String> {
        let value = body.pointer(pointer);
        let all = |value: &Value| match value {
            Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Value::String(text) => words(text),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
        };
        value.map(all).unwrap_or_default()
    };
    let granted = list("/error/detail/granted");
    let missing: Vec<String> =
        list("/error/detail/required").into_iter().filter(|scope| !granted.contains(scope)).collect();
    if !missing.is_empty() {
        return Some(missing.join(", "));
    }
    // GitLab: `{"error": "insufficient_scope", "scope": "api"}`.
    let scope = body.pointer("/scope").and_then(Value::as_str).filter(|scope| !scope.is_empty());
    scope.map(|scope| scope.split(' ').next().unwrap_or(scope).to_owned())
}

/// The error that this answer is.
pub(super) fn refused(session: &Session<'_>, request: &Request, answer: &Answer) -> ForgeError {
    let (repo, doing, status) = (session.repo(), request.doing, answer.status);
    let forge = sentence(&answer.body).map(|text| session.line(&text)).filter(|text| !text.is_empty());
    let said = forge.as_deref().unwrap_or_default().to_lowercase();
    let remedy = session.token().and_then(|token| TokenKind::of(token).remedy());
    let lacks = |forge: Option<String>| {
        let named = permission(answer).map(|name| session.line(&name)).filter(|name| !name.is_empty());
        let permission = named.or_else(|| request.needs.map(str::to_owned));
        ForgeError::TokenLacksPermission { repo: repo.clone(), doing, permission, forge, remedy }
    };
    // Bitbucket Cloud has no archives; it makes a workspace that is over its plan read-only.
    let read_only = session.kind() == ForgeKind::BitbucketCloud && said.contains("read-only");
    let archived = said.contains("archived") || said.contains("read-only repository") || read_only;
    // Bitbucket Data Center answers 401 also to a good token that may not.
    let exception = answer.body.pointer("/errors/0/exceptionName").and_then(Value::as_str).unwrap_or_default();
    let unpermitted = session.kind() == ForgeKind::BitbucketDc && exception.ends_with("AuthorisationException");
    let captcha = header(&answer.headers, "x-authentication-denied-reason")
        .is_some_and(|why| why.to_ascii_lowercase().contains("captcha"));
    match status {
        300..=399 => session.not_a_forge("it redirects to another address"),
        401 | 403 if session.token().is_none() => ForgeError::TokenMissing { repo },
        // Bitbucket Data Center, after too many wrong passwords for one account.
        401 | 403 if captcha => ForgeError::CaptchaRequired { repo },
        401 if !unpermitted => ForgeError::TokenRejected { repo, forge, remedy },
        400..=499 if archived => ForgeError::Archived { repo, forge },
        403 if said.contains("saml") || header(&answer.headers, "x-github-sso").is_some() => {
            ForgeError::SsoRequired { repo, forge }
        }
        403 if NOT_FROM_HERE.iter().any(|words| said.contains(words)) => ForgeError::AddressNotAllowed { repo, forge },
        401 | 403 => lacks(forge),
        404 if answer.foreign => session.not_a_forge("it answers with a web page"),
        404 | 410 => ForgeError::NotFound { repo, forge },
        429 => ForgeError::RateLimited { repo, retry_after: limited(answer).map(Limit::wait) },
        400..=499 => ForgeError::Refused { repo, doing, forge },
        500..=599 => ForgeError::Unavailable { repo, doing, status },
        _ => session.not_a_forge(&format!("it answers with HTTP status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: Value) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header")))
            .collect();
        Answer { status, headers, body, foreign: false }
    }

    #[test]
    fn a_limit_is_told_from_a_refusal() {
        let soon = (Timestamp::now().as_second() + 90).to_string();
        let waits = |status, headers: &[(&'static str, &str)], message: &str| {
            limited(&answer(status, headers, json!({"message": message}))).map(|limit| limit.wait().as_secs())
        };
        assert_eq!(waits(429, &[("retry-after", "7")], ""), Some(7));
        assert_eq!(waits(403, &[("retry-after", "7")], "You have exceeded a secondary rate limit."), Some(7));
        assert_eq!(waits(403, &[], "You have exceeded a secondary rate limit."), Some(60));
        let primary = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", soon.as_str())];
        assert!(waits(403, &primary, "API rate limit exceeded").is_some_and(|wait| (85..=91).contains(&wait)));
        assert!(waits(429, &[("ratelimit-reset", &soon)], "").is_some_and(|wait| (85..=91).contains(&wait)));
        assert_eq!(waits(429, &[("retry-after", "999999999")], ""), Some(24 * 60 * 60));
        assert_eq!(waits(429, &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")], ""), Some(0));
        assert_eq!(waits(403, &[("x-ratelimit-remaining", "17")], "Resource not accessible"), None);
        assert_eq!(waits(404, &[("retry-after", "7")], ""), None);
    }

    #[test]
    fn each_forges_sentence_is_found() {
        for (body, expected) in [
            (json!({"message": "Bad credentials", "documentation_url": "x"}), "Bad credentials"),
            (
                json!({"message": "Validation Failed", "errors": [{"resource": "PullRequest", "code": "custom", "message": "A pull request already exists for acme:x."}]}),
                "Validation Failed: A pull request already exists for acme:x.",
            ),
            (
                json!({"message": "Validation Failed", "errors": [{"field": "base", "code": "invalid"}]}),
                "Validation Failed: base invalid",
            ),
            (json!({"type": "error", "error": {"message": "Token is invalid"}}), "Token is invalid"),
            (json!({"errors": [{"context": null, "message": "No such repo", "exceptionName": "x"}]}), "No such repo"),
            (json!({"message": ["Another open merge request exists"]}), "Another open merge request exists"),
            (json!({"message": {"title": ["is blank"]}}), "{\"title\":[\"is blank\"]}"),
            (json!({"error": "insufficient_scope", "error_description": "Higher privileges"}), "Higher privileges"),
        ] {
            assert_eq!(sentence(&body).as_deref(), Some(expected));
        }
        assert_eq!(sentence(&Value::Null), None);
    }

    #[test]
    fn the_missing_permission_is_named_whatever_the_way_of_saying_it() {
        for (headers, body, expected) in [
            (vec![("x-accepted-github-permissions", "pull_requests=write")], json!({}), Some("pull_requests=write")),
            (
                vec![("x-accepted-oauth-scopes", "repo, public_repo"), ("x-oauth-scopes", "gist")],
                json!({}),
                Some("repo"),
            ),
            (vec![("x-accepted-oauth-scopes", "repo"), ("x-oauth-scopes", "repo, gist")], json!({}), None),
            (
                vec![],
                json!({"error": {"detail": {"required": ["repository:write", "account"], "granted": ["account"]}}}),
                Some("repository:write"),
            ),
            (vec![], json!({"error": "insufficient_scope", "scope": "api read_api"}), Some("api")),
            (vec![], json!({"message": "no"}), None),
        ] {
            assert_eq!(permission(&answer(403, &headers, body)).as_deref(), expected);
        }
    }
}
