//! The rules by example: a name, a repository, and what is said of them.

use super::*;

fn settings(bases: &[&str], template: &str, names: &[&str], allow_default: bool) -> BranchSettings {
    let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    BranchSettings { bases: list(bases), template: template.to_owned(), names: list(names), allow_default }
}

fn policy(bases: &[&str], names: &[&str], allow_default: bool) -> BranchPolicy {
    let template = BranchSettings::default().template;
    BranchPolicy::new("branches", &settings(bases, &template, names, allow_default)).expect("good rules")
}

fn named(template: &str, project: Option<&'static str>) -> String {
    let policy = BranchPolicy::new("branches", &settings(&[], template, &[], false)).expect(template);
    let id = TaskId::from_uuid(uuid::Uuid::from_u128(0x9f3c));
    let after = NamedAfter { id, task: "Bump terraform!", team: "Platform Team", project, task_type: Some("dep") };
    let name = policy.name(&after);
    check_branch_name(&name).expect(&name);
    name
}

#[test]
fn a_task_names_its_branch() {
    assert_eq!(named("orchestra/{slug}-{shortid}", None), "orchestra/bump-terraform-9f3c");
    assert_eq!(
        named("{team}/{project}/{taskType}/{slug}-{shortid}", Some("infra")),
        "platform-team/infra/dep/bump-terraform-9f3c"
    );
    assert_eq!(named("{team}/{project}/{slug}-{shortid}", None), "platform-team/bump-terraform-9f3c");
    assert_eq!(named("bots/{project}-{shortid}", None), "bots/9f3c");
    assert!(named("x/{id}", None).starts_with("x/task_"));
    let policy = BranchPolicy::new("branches", &BranchSettings::default()).expect("the default");
    for task in ["", "…", "日本語", "a/../b", &"x".repeat(500)] {
        let id = TaskId::from_uuid(uuid::Uuid::from_u128(1));
        let name = policy.name(&NamedAfter { id, task, team: "t", project: None, task_type: None });
        check_branch_name(&name).expect(&name);
        assert!(name.starts_with("orchestra/") && name.ends_with("-0001"), "{name}");
    }
}

#[test]
fn rules_that_do_not_do_are_refused_with_their_key() {
    for (bases, template, names, words) in [
        (&[][..], "x/{slugg}-{shortid}", &[][..], "no placeholder {slugg}; known are {slug}, {shortid}"),
        (&[], "x/{slug", &[], "brace"),
        (&[], "x/slug}-{shortid}", &[], "brace"),
        (&[], "x/{slug}", &[], "{shortid} or {id}"),
        (&[], "x y/{shortid}", &[], "cannot be"),
        (&[], "x.lock/{shortid}", &[], "cannot be"),
        (&["[a"], "x/{shortid}", &[], "branches.bases"),
        (&[], "x/{shortid}", &["[a"], "branches.names"),
        (&[], "x/{shortid}", &["bots/*"], "does not allow"),
    ] {
        let error = BranchPolicy::new("branches", &settings(bases, template, names, false)).expect_err(template);
        assert!(error.to_string().contains(words), "{error}");
    }
    let long = format!("{}{{shortid}}", "x".repeat(MAX_TEMPLATE_BYTES));
    assert!(matches!(
        BranchPolicy::new("b", &settings(&[], &long, &[], false)),
        Err(BranchPolicyError::TooLong { .. })
    ));
    let many = vec!["a".to_owned(); MAX_PATTERNS + 1];
    let many = BranchSettings { bases: many, ..BranchSettings::default() };
    assert!(matches!(BranchPolicy::new("b", &many), Err(BranchPolicyError::TooMany { .. })));
}

fn heads(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn every_refusal_has_its_type_and_remedy() {
    let heads = heads(&["main", "release/1", "Orchestra/Y", "taken", "folder/a", "orchestra"]);
    let default = policy(&[], &[], false);
    let strict = policy(&["main", "release/*"], &["orchestra/**", "bots/*"], false);
    let free = policy(&[], &[], true);
    let own = |text: &str| text.to_owned();
    let patterns = |texts: &[&str]| texts.iter().map(|text| own(text)).collect::<Vec<_>>();
    for (policy, base, branch, expected) in [
        (&default, "main", "bots/x", None),
        (&default, "nope", "bots/x", Some(BranchRefusal::NoSuchBase { base: own("nope") })),
        (&default, "main", "main", Some(BranchRefusal::IsDefault { branch: own("main") })),
        (&default, "release/1", "release/1", Some(BranchRefusal::IsBase { branch: own("release/1") })),
        (&default, "release/1", "main", Some(BranchRefusal::IsDefault { branch: own("main") })),
        (&default, "main", "taken", Some(BranchRefusal::Exists { branch: own("taken") })),
        (&default, "main", "taken/b", Some(BranchRefusal::NameTaken { branch: own("taken/b"), by: own("taken") })),
        (&default, "main", "folder", Some(BranchRefusal::NameTaken { branch: own("folder"), by: own("folder/a") })),
        (&default, "main", "Folder", Some(BranchRefusal::NameTaken { branch: own("Folder"), by: own("folder/a") })),
        (&default, "main", "TAKEN", Some(BranchRefusal::CaseTwin { branch: own("TAKEN"), by: own("taken") })),
        (&default, "main", "takenx", None),
        (
            &default,
            "main",
            "a b",
            Some(BranchRefusal::Invalid {
                name: own("a b"),
                reason: "it holds a space, a control character or a character with a meaning in git, shells or URLs",
            }),
        ),
        (&strict, "main", "bots/x", None),
        (&strict, "release/1", "bots/x", None),
        (
            &strict,
            "taken",
            "bots/x",
            Some(BranchRefusal::BaseNotAllowed { base: own("taken"), allowed: patterns(&["main", "release/*"]) }),
        ),
        (
            &strict,
            "main",
            "bots/x/y",
            Some(BranchRefusal::NameNotAllowed {
                branch: own("bots/x/y"),
                allowed: patterns(&["orchestra/**", "bots/*"]),
            }),
        ),
        (&free, "main", "main", None),
        (&free, "release/1", "release/1", None),
        (&free, "main", "taken", Some(BranchRefusal::Exists { branch: own("taken") })),
    ] {
        let situation =
            Situation { base, branch, default_branch: "main", heads: &heads, protected: None, may_be_ours: false };
        let refused = policy.check(&situation).err();
        assert_eq!(refused, expected, "{base} {branch}");
        if let Some(refused) = refused {
            let failure = refused.failure();
            assert!(!failure.retryable && failure.hint.len() > 20 && failure.message.ends_with('.'), "{failure}");
        }
    }
    // One of our own from before is left to the lease; a protected one is refused wherever the forge tells.
    let ours = Situation {
        base: "main",
        branch: "taken",
        default_branch: "main",
        heads: &heads,
        protected: Some(false),
        may_be_ours: true,
    };
    assert_eq!(default.check(&ours), Ok(()));
    let protected = Situation { branch: "bots/x", protected: Some(true), ..ours };
    assert_eq!(default.check(&protected).map_err(|refused| refused.failure().code), Err(FailureCode::BranchProtected));
}

#[test]
fn the_names_alone_say_much_before_the_repository_is_asked() {
    let strict = policy(&["main"], &["orchestra/**"], false);
    assert_eq!(strict.check_names(None, "orchestra/x"), Ok(()));
    assert!(matches!(strict.check_names(Some("dev"), "orchestra/x"), Err(BranchRefusal::BaseNotAllowed { .. })));
    assert!(matches!(strict.check_names(Some("main"), "x"), Err(BranchRefusal::NameNotAllowed { .. })));
    assert!(matches!(strict.check_names(Some("main"), "main"), Err(BranchRefusal::IsBase { .. })));
    assert!(matches!(strict.check_names(Some("a b"), "x"), Err(BranchRefusal::Invalid { .. })));
}

#[test]
fn a_team_has_its_own_rules_over_everybodys() {
    let own = BranchOverrides {
        names: Some(vec!["bots/*".to_owned()]),
        template: Some("bots/{shortid}".to_owned()),
        ..BranchOverrides::default()
    };
    let team = "platform".to_owned();
    let policies =
        BranchPolicies::new(&settings(&["main"], "orchestra/{shortid}", &[], false), [(&team, &own)]).expect("good");
    assert!(policies.of("platform").check_names(Some("main"), "orchestra/x").is_err());
    assert!(policies.of("platform").check_names(Some("dev"), "bots/x").is_err(), "what it does not set is everybody's");
    assert!(policies.of("other").check_names(Some("main"), "orchestra/x").is_ok());
    let bad = BranchOverrides { template: Some("{nope}".to_owned()), ..BranchOverrides::default() };
    let error = BranchPolicies::new(&BranchSettings::default(), [(&team, &bad)]).expect_err("refused");
    assert!(error.to_string().starts_with("teams.platform.branches.template"), "{error}");
}
