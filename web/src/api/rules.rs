//! What a text in a request may be: lengths, characters, shapes.

use orchestra_events::repo::{MAX_REPO_REF, RepoRef};
use orchestra_events::task::command::MAX_STEERING;
use orchestra_events::task::event::MAX_TASK_TEXT;

/// Longest name of a team, project, environment or task type.
pub const MAX_NAME: usize = 64;
/// Longest name of a model or an image.
pub const MAX_MODEL: usize = 200;
/// Longest name of a customer, in bytes.
pub const MAX_CUSTOMER: usize = 200;
/// Longest branch name; git refuses longer file names.
pub const MAX_BRANCH: usize = 244;
/// Longest secret, in bytes.
pub const MAX_SECRET: usize = 8 * 1024;
/// Longest reason for a cancel, in bytes.
pub const MAX_CANCEL_REASON: usize = 1_000;

type Verdict = Result<(), String>;

fn check(fits: bool, detail: impl FnOnce() -> String) -> Verdict {
    if fits { Ok(()) } else { Err(detail()) }
}

fn length(text: &str, max: usize) -> Verdict {
    check((1..=max).contains(&text.len()), || format!("expected 1 to {max} bytes"))
}

fn one_line(text: &str) -> Verdict {
    check(!text.chars().any(char::is_control), || "no control characters".to_owned())
}

/// A team, a project, an environment, a task type: part of stream names and budget scopes.
pub fn name(text: &str) -> Verdict {
    length(text, MAX_NAME)?;
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    check(text.bytes().all(inner) && text.as_bytes()[0].is_ascii_alphanumeric(), || {
        "letters, digits, '.', '_' and '-', starting with a letter or a digit".to_owned()
    })
}

/// A model or an image.
pub fn graphic(text: &str) -> Verdict {
    length(text, MAX_MODEL)?;
    check(text.bytes().all(|byte| byte.is_ascii_graphic()), || "printable ASCII without spaces".to_owned())
}

/// A customer, in the team's own words.
pub fn customer(text: &str) -> Verdict {
    length(text, MAX_CUSTOMER)?;
    one_line(text)?;
    check(!text.trim().is_empty(), || "not only spaces".to_owned())
}

fn prose(text: &str, max: usize) -> Verdict {
    length(text, max)?;
    check(!text.trim().is_empty(), || "not only white space".to_owned())?;
    let odd = |char: char| char.is_control() && !matches!(char, '\n' | '\r' | '\t');
    check(!text.chars().any(odd), || "no control characters but line breaks and tabs".to_owned())
}

/// What is to be done.
pub fn task(text: &str) -> Verdict {
    prose(text, MAX_TASK_TEXT)
}

/// The title of a pull request.
pub fn title(text: &str) -> Verdict {
    length(text, super::payload::MAX_TITLE)?;
    one_line(text)?;
    check(!text.trim().is_empty(), || "not only spaces".to_owned())
}

/// The text of a pull request.
pub fn pull_request_body(text: &str) -> Verdict {
    prose(text, super::payload::MAX_PULL_REQUEST_BODY)
}

/// Words to the running agent.
pub fn message(text: &str) -> Verdict {
    prose(text, MAX_STEERING)
}

/// Why somebody cancels.
pub fn reason(text: &str) -> Verdict {
    prose(text, MAX_CANCEL_REASON)
}

/// A secret. The verdict says nothing about it.
pub fn secret(text: &str) -> Verdict {
    length(text, MAX_SECRET)?;
    check(text.bytes().all(|byte| byte.is_ascii_graphic()), || "printable ASCII without spaces".to_owned())
}

/// `owner/name`, `forge:owner/name` or a URL. Which forges there are is the service's to know.
pub fn repo(text: &str) -> Verdict {
    length(text, MAX_REPO_REF)?;
    let Some((scheme, rest)) = text.split_once("://") else {
        return RepoRef::parse(text, "default").map(drop).map_err(|error| error.to_string());
    };
    check(matches!(scheme, "https" | "http"), || "a URL starts with https://".to_owned())?;
    check(text.bytes().all(|byte| byte.is_ascii_graphic()), || "a URL has no spaces".to_owned())?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    check(!host.contains('@'), || {
        "no user or password in the URL; send the token as credentials.git.token".to_owned()
    })?;
    check(!host.is_empty() && !path.is_empty(), || "expected https://host/owner/name".to_owned())?;
    check(!path.contains(['?', '#']), || "no query and no fragment in the URL".to_owned())
}

/// A branch, by the rules of git-check-ref-format(1), without the `refs/heads/` in front.
pub fn branch(text: &str) -> Verdict {
    length(text, MAX_BRANCH)?;
    let odd = |char: char| char.is_control() || char == '\u{7f}' || " ~^:?*[\\".contains(char);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let fits = !text.chars().any(odd)
        && text.split('/').all(part)
        && !text.starts_with('-')
        && !text.ends_with('.')
        && !text.contains("..")
        && !text.contains("@{")
        && text != "@"
        && text != "HEAD"
        && !text.starts_with("refs/");
    check(fits, || "not a branch name git accepts".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_follow_git() {
        for good in ["main", "feature/x-1", "orchestra/bump-9f3c", "ünïcode", "v1.2"] {
            assert!(branch(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-x",
            "a b",
            "a..b",
            "a/",
            "/a",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "a.",
            "@",
            "a@{1",
            "a:b",
            "refs/heads/a",
            "a\n",
        ] {
            assert!(branch(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_url_carries_no_secret() {
        assert!(repo("https://github.com/acme/api").is_ok());
        for bad in ["https://user:token@github.com/acme/api", "ssh://x/y", "https://", "https://h", "https://h/a?b"] {
            assert!(repo(bad).is_err(), "{bad}");
        }
    }
}
