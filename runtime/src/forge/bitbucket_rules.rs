//! Whether the rules of a repository on Bitbucket hold back pushes to a branch, in the languages of Cloud and Data Center.
//!
//! A rule has exceptions: people, groups and keys that it does not hold back. Whether the token's owner is among them
//! cannot be told, so such a rule leaves the answer open, and the push tells.
//!
//! Sources: Cloud's REST reference on branch restrictions (`*` is any text, `/` included); Data Center's page "Branch
//! permission patterns" (Ant's: `?`, `*`, `**`, and a pattern without a leading `/` holds at any depth).

use serde_json::Value;

/// Whether one of Cloud's restrictions holds pushes to this branch back; `None`: it cannot be told.
pub(super) fn cloud<'r>(rules: impl IntoIterator<Item = &'r Value>, branch: &str) -> Option<bool> {
    answer(rules.into_iter().filter(|rule| rule["kind"] == "push").filter_map(|rule| {
        // The other way to name branches is by the branching model, which the rule does not hold.
        let meant = match rule["branch_match_kind"].as_str() {
            Some("glob") => Some(cloud_glob(rule["pattern"].as_str().unwrap_or_default(), branch)),
            Some(_) | None => None,
        };
        held(meant, rule, &["users", "groups"])
    }))
}

/// Whether one of Data Center's restrictions holds pushes that make or move this branch back; `None`: it cannot be told.
pub(super) fn data_center<'r>(rules: impl IntoIterator<Item = &'r Value>, branch: &str) -> Option<bool> {
    // `fast-forward-only` and `no-deletes` hold back other things.
    let kinds = ["read-only", "pull-request-only", "no-creates"];
    let holds = |rule: &&Value| rule["type"].as_str().is_some_and(|kind| kinds.contains(&kind));
    answer(rules.into_iter().filter(holds).filter_map(|rule| {
        let id = rule.pointer("/matcher/id").and_then(Value::as_str).unwrap_or_default();
        let meant = match rule.pointer("/matcher/type/id").and_then(Value::as_str) {
            Some("BRANCH") => Some(id == format!("refs/heads/{branch}") || id == branch),
            Some("PATTERN") => Some(data_center_pattern(id, branch)),
            Some("ANY_REF") => Some(true),
            Some(_) | None => None,
        };
        held(meant, rule, &["users", "groups", "accessKeys"])
    }))
}

/// What a rule says when it means the branch, or may mean it. `None`: it does not.
fn held(meant: Option<bool>, rule: &Value, exceptions: &[&str]) -> Option<Option<bool>> {
    let excepted = exceptions.iter().any(|who| rule[*who].as_array().is_some_and(|all| !all.is_empty()));
    match meant {
        Some(false) => None,
        Some(true) if !excepted => Some(Some(true)),
        Some(true) | None => Some(None),
    }
}

/// One rule that holds back is enough; one that cannot be told leaves the answer open.
fn answer(rules: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let rules: Vec<Option<bool>> = rules.collect();
    match rules.contains(&Some(true)) {
        true => Some(true),
        false => rules.is_empty().then_some(false),
    }
}

/// Whether Cloud's pattern means this branch.
fn cloud_glob(pattern: &str, branch: &str) -> bool {
    text(pattern, branch, |wanted, found| wanted == found)
}

/// Whether Data Center's pattern means this branch.
fn data_center_pattern(pattern: &str, branch: &str) -> bool {
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
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_of_data_centers_means_a_branch_by_name_or_pattern_and_else_nobody_knows() {
        let rule = |kind: &str, matcher: &str, id: &str| json!({"type": kind, "matcher": {"id": id, "type": {"id": matcher}}, "users": [], "groups": []});
        for (rule, branch, expected) in [
            (rule("read-only", "BRANCH", "refs/heads/main"), "main", Some(true)),
            (rule("read-only", "BRANCH", "refs/heads/main"), "main2", Some(false)),
            (rule("fast-forward-only", "BRANCH", "refs/heads/main"), "main", Some(false)),
            (rule("no-creates", "PATTERN", "orchestra/**"), "orchestra/x", Some(true)),
            (rule("pull-request-only", "ANY_REF", "ANY_REF_MATCHER_ID"), "x", Some(true)),
            (rule("read-only", "MODEL_CATEGORY", "FEATURE"), "feature/x", None),
        ] {
            assert_eq!(data_center([&rule], branch), expected, "{rule} {branch}");
        }
        let mut excepting = rule("read-only", "BRANCH", "refs/heads/main");
        excepting["users"] = json!([{"name": "ann"}]);
        assert_eq!(data_center([&excepting], "main"), None);
        assert_eq!(data_center([&excepting, &rule("read-only", "ANY_REF", "")], "main"), Some(true));
        assert_eq!(data_center([], "main"), Some(false));
    }

    #[test]
    fn a_rule_of_clouds_holds_back_pushes_to_what_its_pattern_means() {
        let rule = |kind: &str, pattern: &str, users: Value| json!({"kind": kind, "branch_match_kind": "glob", "pattern": pattern, "users": users, "groups": []});
        assert_eq!(cloud([&rule("push", "main", json!([]))], "main"), Some(true));
        assert_eq!(cloud([&rule("push", "main", json!([]))], "dev"), Some(false));
        assert_eq!(cloud([&rule("force", "*", json!([]))], "main"), Some(false));
        assert_eq!(cloud([&rule("push", "*", json!([{"uuid": "{u}"}]))], "main"), None);
        assert_eq!(cloud([&json!({"kind": "push", "branch_match_kind": "branching_model"})], "main"), None);
    }

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
