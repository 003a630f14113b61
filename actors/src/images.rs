//! Which image a task starts from: its own, its team's, or everybody's; and which ones it may name.

use std::collections::BTreeMap;
use std::sync::Arc;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use orchestra_runtime::image::{Supply, is_reference};

/// Most patterns of one list.
pub const MAX_PATTERNS: usize = 200;
/// Names that are told to somebody who has named one that there is not.
const NEAREST: usize = 3;

/// What the operator says about one team's images.
#[derive(Debug, Clone, Default)]
pub struct TeamImages {
    /// The image of its tasks that name none.
    pub default: Option<String>,
    /// The images that its tasks may name, as patterns; every one that is there when absent.
    pub allowed: Option<Vec<String>>,
}

/// The operator's rules about images.
#[derive(Debug, Clone)]
pub struct ImageRules {
    default: String,
    /// References that tasks may name.
    references: GlobSet,
    teams: Arc<BTreeMap<String, Team>>,
}

#[derive(Debug)]
struct Team {
    default: Option<String>,
    allowed: Option<GlobSet>,
}

/// A list that does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageRulesError {
    /// Not a pattern.
    #[error("{key}: {pattern:?} is not a pattern such as \"registry.example/tools/*\": {why}")]
    Pattern {
        /// Of which list.
        key: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// Over [`MAX_PATTERNS`].
    #[error("{0} has more than {MAX_PATTERNS} patterns")]
    TooMany(String),
}

fn patterns(key: &str, patterns: &[String]) -> Result<GlobSet, ImageRulesError> {
    if patterns.len() > MAX_PATTERNS {
        return Err(ImageRulesError::TooMany(key.to_owned()));
    }
    let wrong = |pattern: &str, why: globset::Error| ImageRulesError::Pattern {
        key: key.to_owned(),
        pattern: pattern.to_owned(),
        why: why.kind().to_string(),
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        // A star ends at a slash, so that one for a registry's folder is not one for its neighbours; two go on.
        set.add(GlobBuilder::new(pattern).literal_separator(true).build().map_err(|why| wrong(pattern, why))?);
    }
    set.build().map_err(|why| wrong("", why))
}

impl ImageRules {
    /// Reads the rules: everybody's image, the references that tasks may name, and what is said about teams.
    ///
    /// # Errors
    /// When a pattern is none, or there are too many.
    pub fn new(
        default: String,
        references: &[String],
        teams: BTreeMap<String, TeamImages>,
    ) -> Result<Self, ImageRulesError> {
        let references = patterns("images.allow", references)?;
        let mut read = BTreeMap::new();
        for (team, TeamImages { default, allowed }) in teams {
            let key = format!("teams.{team}.images");
            let allowed = allowed.map(|allowed| patterns(&key, &allowed)).transpose()?;
            read.insert(team, Team { default, allowed });
        }
        Ok(Self { default, references, teams: Arc::new(read) })
    }

    /// The image of a task of this team that names this one, or none.
    pub fn choose(&self, team: &str, named: Option<&str>) -> String {
        let teams = || self.teams.get(team).and_then(|team| team.default.clone());
        named.map(str::to_owned).or_else(teams).unwrap_or_else(|| self.default.clone())
    }

    /// Why a task of this team may not use this image. What the operator chose for it, it may.
    pub fn refusal(&self, team: &str, image: &str) -> Option<String> {
        let rules = self.teams.get(team);
        if image == self.choose(team, None) {
            return None;
        }
        let listed = rules.and_then(|team| team.allowed.as_ref()).map(|allowed| allowed.is_match(image));
        if listed == Some(false) {
            return Some(format!("is not among the images that team {team:?} may use"));
        }
        if !is_reference(image) {
            return None;
        }
        if let Some(fault) = Supply::fault_of(image) {
            return Some(fault);
        }
        // What a team's own list names is allowed by it.
        let allowed = listed == Some(true) || self.references.is_match(image);
        (!allowed).then(|| {
            "is a reference that matches no pattern of images.allow; name an image of the server, or have its operator allow \
             it"
                .to_owned()
        })
    }

    /// Why there is no image of this name. The nearest names are named, as far as the team may use them.
    pub fn unknown(&self, team: &str, image: &str, names: &[String]) -> Option<String> {
        if is_reference(image) || names.iter().any(|name| name == image) {
            return None;
        }
        let mut usable: Vec<&String> = names.iter().filter(|name| self.refusal(team, name).is_none()).collect();
        usable.sort_by_key(|name| (distance(name, image), (*name).clone()));
        usable.truncate(NEAREST);
        let usable: Vec<String> = usable.into_iter().map(|name| format!("{name:?}")).collect();
        Some(if usable.is_empty() {
            "is not there, and neither is any other image: the server's operator makes one with `orchestra image build`"
                .into()
        } else {
            format!("is no image of this server; the nearest are {}", usable.join(", "))
        })
    }
}

/// How many letters have to be added, removed or changed, in names of bounded length.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().take(orchestra_runtime::image::MAX_NAME).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (place, letter) in one.chars().take(orchestra_runtime::image::MAX_NAME).enumerate() {
        let mut before = row[0];
        row[0] = place + 1;
        for (column, &wanted) in other.iter().enumerate() {
            let changed = before + usize::from(letter != wanted);
            before = row[column + 1];
            row[column + 1] = changed.min(before + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> ImageRules {
        let list = |patterns: &[&str]| Some(patterns.iter().map(|&pattern| pattern.to_owned()).collect());
        let teams = BTreeMap::from([
            (
                "web".to_owned(),
                TeamImages { default: Some("web-tools".into()), allowed: list(&["web-*", "other.example/web/*"]) },
            ),
            ("closed".to_owned(), TeamImages { default: None, allowed: list(&[]) }),
        ]);
        ImageRules::new("default".into(), &["registry.example/tools/*".to_owned()], teams).expect("patterns")
    }

    #[test]
    fn a_task_gets_its_own_image_or_its_teams_or_everybodys() {
        let rules = rules();
        assert_eq!(rules.choose("web", Some("mine")), "mine");
        assert_eq!(rules.choose("web", None), "web-tools");
        assert_eq!(rules.choose("closed", None), "default");
        assert_eq!(rules.choose("nobody", None), "default");
    }

    #[test]
    fn a_team_uses_what_its_list_says_and_a_reference_what_a_pattern_says() {
        let rules = rules();
        let digest = "0".repeat(64);
        for (team, image, may) in [
            ("web", "web-tools", true),
            ("web", "web-more", true),
            ("web", "default", false),
            ("web", "other.example/web/x:1", true),
            ("web", "registry.example/tools/x:1", false),
            ("closed", "default", true),
            ("closed", "agents", false),
            ("other", "agents", true),
            ("other", "registry.example/tools/x:1", true),
            ("other", &format!("registry.example/tools/x@sha256:{digest}"), true),
            ("other", "registry.example/tools/x@sha256:00", false),
            ("other", "registry.example/tools/deeper/x:1", false),
            ("other", "registry.example/other/x:1", false),
            ("other", "evil.example/registry.example/tools/x:1", false),
            ("other", "library/debian", false),
        ] {
            assert_eq!(rules.refusal(team, image).is_none(), may, "{team} {image}");
        }
        let bad = ImageRules::new("default".into(), &["[a".to_owned()], BTreeMap::new());
        assert!(matches!(bad, Err(ImageRulesError::Pattern { .. })));
    }

    #[test]
    fn an_image_that_is_not_there_is_answered_with_the_nearest_that_one_may_use() {
        let rules = rules();
        let names = ["agents", "default", "web-tools", "web-other"].map(str::to_owned);
        assert_eq!(rules.unknown("other", "agents", &names), None);
        assert_eq!(rules.unknown("other", "registry.example/x:1", &names), None);
        let said = rules.unknown("other", "agent", &names).expect("refused");
        assert!(said.contains("the nearest are \"agents\""), "{said}");
        let said = rules.unknown("web", "agent", &names).expect("refused");
        assert!(!said.contains("agents") && said.contains("web-tools"), "{said}");
        assert!(rules.unknown("web", "x", &[]).expect("refused").contains("image build"));
        assert_eq!((distance("agents", "agent"), distance("abc", "abc"), distance("", "abc")), (1, 0, 3));
    }
}
