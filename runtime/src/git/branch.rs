//! Which branch names git and every forge accept, and the name that a task gets when it asks for none.

use orchestra_events::TaskId;

use super::error::GitError;

/// The longest branch name. GitHub and Bitbucket accept 255 bytes for a whole ref; this leaves room for prefixes.
pub const MAX_BRANCH_BYTES: usize = 200;
/// How much of the task's sentence goes into a branch name: enough to recognise it in a list of branches.
const SLUG_BYTES: usize = 40;
/// Where Orchestra's branches live unless the task names one.
const PREFIX: &str = "orchestra/";

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

/// The branch for a task: its first words, and four digits of its id so that equal sentences do not collide.
///
/// `Bump terraform-aws-provider from 5.x to 6.x` becomes `orchestra/bump-terraform-aws-provider-from-5-x-9f3c`.
pub fn branch_slug(task: &str, id: TaskId) -> String {
    let mut slug = String::new();
    for c in task.chars() {
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
    let slug = slug.trim_matches('-');
    let slug = if slug.is_empty() { "task" } else { slug };
    // The last digits of a version 7 UUID are random; the first are the time.
    let short = id.uuid().as_u128() & 0xffff;
    format!("{PREFIX}{slug}-{short:04x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_names_its_branch() {
        let id = TaskId::from_uuid(uuid::Uuid::from_u128(0x9f3c));
        assert_eq!(branch_slug("Bump terraform", id), "orchestra/bump-terraform-9f3c");
        for task in
            ["", "…", "--", "日本語", "a/../b", &"x".repeat(500), "Bump terraform-aws-provider from 5.x to 6.x; update"]
        {
            let name = branch_slug(task, id);
            check_branch_name(&name).expect(&name);
            assert!(name.len() < 60, "{name}");
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
