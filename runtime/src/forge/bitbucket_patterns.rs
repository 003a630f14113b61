//! Which branches a Bitbucket's rule means: the pattern languages of Cloud and Data Center.
//!
//! Sources: Cloud's REST reference on branch restrictions (`*` is any text, `/` included); Data Center's page "Branch
//! permission patterns" (Ant's: `?`, `*`, `**`, and a pattern without a leading `/` holds at any depth).

/// Whether Cloud's pattern means this branch.
pub(super) fn cloud_glob(pattern: &str, branch: &str) -> bool {
    text(pattern, branch, |wanted, found| wanted == found)
}

/// Whether Data Center's pattern means this branch.
pub(super) fn data_center_pattern(pattern: &str, branch: &str) -> bool {
    let reference = format!("refs/heads/{branch}");
    let depth = if pattern.starts_with('/') { "" } else { "**/" };
    let below = if pattern.ends_with('/') { "**" } else { "" };
    let whole = format!("{depth}{}{below}", pattern.trim_start_matches('/'));
    let (parts, names): (Vec<&str>, Vec<&str>) = (whole.split('/').collect(), reference.split('/').collect());
    let same = |wanted: &&str, found: &&str| text(wanted, found, |wanted, found| wanted == '?' || wanted == found);
    sequence(&parts, &names, |part| *part == "**", same)
}

fn text(pattern: &str, text: &str, same: impl Fn(char, char) -> bool) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    sequence(&pattern, &text, |wanted| *wanted == '*', |wanted, found| same(*wanted, *found))
}

/// Whether the pattern, in which a star stands for any number of items, is these items. It takes one step per pair, so
/// that no pattern is slow.
fn sequence<P, I>(pattern: &[P], items: &[I], star: impl Fn(&P) -> bool, same: impl Fn(&P, &I) -> bool) -> bool {
    // Whether the pattern so far is the first so many items.
    let mut reached = vec![false; items.len() + 1];
    reached[0] = true;
    for wanted in pattern {
        let mut next = vec![false; reached.len()];
        if star(wanted) {
            let first = reached.iter().position(|reached| *reached).unwrap_or(reached.len());
            next[first..].fill(true);
        } else {
            for (place, item) in items.iter().enumerate() {
                next[place + 1] = reached[place] && same(wanted, item);
            }
        }
        reached = next;
    }
    reached[items.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clouds_star_is_any_text() {
        for (pattern, branch, meant) in [
            ("foo*", "foo", true),
            ("foo*", "foobar", true),
            ("foo*", "barfoo", false),
            ("*", "orchestra/a/b", true),
            ("release/*", "release/1/2", true),
            ("a?c", "abc", false),
            ("main", "main", true),
            ("main", "main2", false),
        ] {
            assert_eq!(cloud_glob(pattern, branch), meant, "{pattern} {branch}");
        }
    }

    #[test]
    fn data_centers_patterns_are_ants() {
        for (pattern, branch, meant) in [
            ("main", "main", true),
            ("main", "team/main", true),
            ("main", "mainly", false),
            ("/refs/heads/main", "main", true),
            ("/refs/heads/main", "team/main", false),
            ("PROJECT-*", "stable/PROJECT-new", true),
            ("heads/**/main", "a/b/main", true),
            ("heads/**/main", "main", true),
            ("release/", "release/1/2", true),
            ("release/*", "release/1/2", false),
            ("*.*", "v1.1", true),
            ("v?", "v1", true),
            ("v?", "v12", false),
        ] {
            assert_eq!(data_center_pattern(pattern, branch), meant, "{pattern} {branch}");
        }
    }

    #[test]
    fn a_pattern_made_to_be_slow_ends() {
        let long = "a".repeat(250);
        assert!(!cloud_glob(&format!("{}b", "*a".repeat(100)), &long));
        assert!(!data_center_pattern(&format!("{}b", "**/*a/".repeat(60)), &vec!["a"; 120].join("/")));
    }
}
