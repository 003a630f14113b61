//! Which branch names git and every forge accept.

use super::error::GitError;

/// The longest branch name. GitHub and Bitbucket accept 255 bytes for a whole ref; this leaves room for prefixes.
pub const MAX_BRANCH_BYTES: usize = 200;
/// How much of the task's sentence goes into a branch name: enough to recognise it in a list of branches.
const SLUG_BYTES: usize = 40;

/// Checks a branch name: the rules of `git check-ref-format`, less what confuses shells, URLs and forges.
pub fn check_branch_name(name: &str) -> Result<(), GitError> {
    let refuse = |reason| Err(GitError::InvalidBranch { name: name.chars().take(80).collect(), reason });
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name.len() > MAX_BRANCH_BYTES {
        return refuse("it is longer than 200 bytes");
    }
    if name == "HEAD" || name.starts_with("refs/") {
        return refuse("that name has a meaning of its own in git");
    }
    if matches!(name.len(), 40 | 64) && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return refuse("it looks like a commit id");
    }
    if name.starts_with('-') {
        return refuse("it starts with a dash");
    }
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\\"'`$;&|<>(){}!#%".contains(c);
    if name.chars().any(forbidden) {
        return refuse("it holds a space, a control character or a character with a meaning in git, shells or URLs");
    }
    if name.contains("..") || name.contains("@{") || name == "@" {
        return refuse("it holds `..` or `@{`");
    }
    for part in name.split('/') {
        if part.is_empty() {
            return refuse("it has an empty part between slashes");
        }
        if part.starts_with('.') || part.ends_with('.') || part.ends_with(".lock") {
            return refuse("a part starts or ends with a dot, or ends with .lock");
        }
    }
    if !git2::Reference::is_valid_name(&format!("refs/heads/{name}")) {
        return refuse("git does not accept it");
    }
    Ok(())
}

/// The words of a text as a part of a branch name, in lower case with dashes between them; empty when there are none.
///
/// `Bump terraform-aws-provider from 5.x to 6.x` becomes `bump-terraform-aws-provider-from-5-x-to`.
pub(super) fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars() {
        if slug.len() >= SLUG_BYTES {
            // A word cut in the middle reads worse than a shorter name.
            if c.is_ascii_alphanumeric()
                && let Some(end) = slug.rfind('-')
            {
                slug.truncate(end);
            }
            break;
        }
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_a_part_of_a_name() {
        assert_eq!(slug("Bump terraform-aws-provider from 5.x to 6.x"), "bump-terraform-aws-provider-from-5-x-to");
        for nothing in ["", "…", "--", "日本語"] {
            assert_eq!(slug(nothing), "");
        }
        for text in ["a/../b", &"x".repeat(500), "Bump terraform-aws-provider from 5.x to 6.x; update"] {
            let name = slug(text);
            check_branch_name(&name).expect(&name);
            assert!(name.len() <= SLUG_BYTES, "{name}");
        }
    }

    #[test]
    fn names_that_git_or_a_shell_would_misread_are_refused() {
        for bad in [
            "",
            "a b",
            "a..b",
            "-x",
            "a//b",
            "/a",
            "a/",
            ".a",
            "a/.b",
            "a.lock",
            "a~1",
            "a^",
            "a:b",
            "HEAD",
            "refs/heads/a",
            "a\\b",
            "a\nb",
            "@",
            "a@{b",
            "$(x)",
            "a;b",
            &"a".repeat(201),
            "0123456789012345678901234567890123456789",
        ] {
            assert!(check_branch_name(bad).is_err(), "{bad:?}");
        }
        for good in ["main", "orchestra/bump-9f3c", "feature/ABC-1_x.y", "ümlaut"] {
            check_branch_name(good).expect(good);
        }
    }
}
