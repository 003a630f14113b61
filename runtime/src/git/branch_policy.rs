//! Which branches a task may start from and push to, and what its branch is called: the operator's rules, pure.
//!
//! They are asked before a model call is paid for, with what the forge advertises then, and again before the push, with
//! what it advertises by then. The push itself has a lease besides, so that what changes in between is met there.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use orchestra_events::{Failure, FailureCode, TaskId};
use serde::{Deserialize, Serialize};

use super::branch::{check_branch_name, slug};
use super::error::GitError;

/// Most patterns of one list.
pub const MAX_PATTERNS: usize = 200;
/// The longest template: with every placeholder at its longest the name still fits [`super::MAX_BRANCH_BYTES`] in all
/// but odd cases, which are refused by name.
pub const MAX_TEMPLATE_BYTES: usize = 100;
/// How much of somebody else's branch name is repeated in a sentence, in characters.
const MAX_TOLD_CHARS: usize = 100;

/// `branches` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchSettings {
    /// The branches that a task may start from, as patterns. `*` stays within one part of a name, `**` does not. Empty:
    /// all.
    #[serde(default)]
    pub bases: Vec<String>,
    /// What a task's branch is called when the task does not say.
    pub template: String,
    /// The branches that a task may push to, as patterns. Empty: all.
    #[serde(default)]
    pub names: Vec<String>,
    /// Whether a task may push to the repository's default branch, or to the branch it started from.
    #[serde(default)]
    pub allow_default: bool,
}

impl Default for BranchSettings {
    fn default() -> Self {
        Self {
            bases: Vec::new(),
            template: "orchestra/{slug}-{shortid}".to_owned(),
            names: Vec::new(),
            allow_default: false,
        }
    }
}

/// `teams.NAME.branches`: what is set here stands in place of the same key of [`BranchSettings`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchOverrides {
    /// See [`BranchSettings::bases`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bases: Option<Vec<String>>,
    /// See [`BranchSettings::template`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// See [`BranchSettings::names`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
    /// See [`BranchSettings::allow_default`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_default: Option<bool>,
}

/// Rules that do not do. The texts name the key below `branches` or `teams.NAME.branches`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the sentences name")]
pub enum BranchPolicyError {
    /// Not a pattern.
    #[error("{at}.{key}: {pattern:?} is not a pattern such as \"release/*\": {why}")]
    Pattern { at: String, key: &'static str, pattern: String, why: String },
    /// Over [`MAX_PATTERNS`].
    #[error("{at}.{key} has more than {MAX_PATTERNS} patterns")]
    TooMany { at: String, key: &'static str },
    /// A placeholder that there is not.
    #[error("{at}.template: there is no placeholder {{{name}}}; known are {}", Placeholder::known())]
    Placeholder { at: String, name: String },
    /// A brace without its other half.
    #[error("{at}.template: a brace is not closed or not opened; placeholders are written {{slug}}")]
    Brace { at: String },
    /// It would give two tasks the same branch.
    #[error("{at}.template: put {{shortid}} or {{id}} into it, or two tasks with the same words meet on one branch")]
    NotUnique { at: String },
    /// Over [`MAX_TEMPLATE_BYTES`].
    #[error("{at}.template is longer than {MAX_TEMPLATE_BYTES} bytes")]
    TooLong { at: String },
    /// What it makes is no branch name.
    #[error("{at}.template makes names such as {made:?}, which cannot be: {why}")]
    BadName { at: String, made: String, why: &'static str },
    /// What it makes is not allowed by the names beside it.
    #[error("{at}.template makes names such as {made:?}, which {at}.names does not allow")]
    NotAllowed { at: String, made: String },
}

/// Why a task may not have its base or branch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the sentences name")]
pub enum BranchRefusal {
    /// Not a name that git and forges accept.
    #[error("{name:?} cannot be a branch name: {reason}.")]
    Invalid { name: String, reason: &'static str },
    /// The repository has no such branch.
    #[error("The repository has no branch {base:?} to start from.")]
    NoSuchBase { base: String },
    /// The policy does not list the base.
    #[error("A task of this team may not start from the branch {base:?}; allowed are {}.", allowed.join(", "))]
    BaseNotAllowed { base: String, allowed: Vec<String> },
    /// The policy does not list the branch.
    #[error("A task of this team may not push to a branch called {branch:?}; allowed are {}.", allowed.join(", "))]
    NameNotAllowed { branch: String, allowed: Vec<String> },
    /// The branch is where the work starts from.
    #[error("The branch {branch:?} is where the work starts from; it is not pushed to.")]
    IsBase { branch: String },
    /// The branch is the repository's default branch.
    #[error("The branch {branch:?} is the repository's default branch; it is not pushed to.")]
    IsDefault { branch: String },
    /// `a` and `a/b` cannot both exist.
    #[error("The branch {branch:?} cannot be created beside the branch {by:?}: one name is a folder of the other.")]
    NameTaken { branch: String, by: String },
    /// The names differ in nothing but case, and a file system that does not tell cases apart cannot hold both.
    #[error("The branch {branch:?} differs from the branch {by:?} in capital letters alone.")]
    CaseTwin { branch: String, by: String },
    /// Somebody has a branch of that name.
    #[error("The branch {branch:?} exists already.")]
    Exists { branch: String },
    /// The forge holds pushes to it back.
    #[error("The forge protects branches called {branch:?}.")]
    Protected { branch: String },
}

impl BranchRefusal {
    /// The failure that the task's owner reads.
    pub fn failure(&self) -> Failure {
        use FailureCode as Code;
        let (code, hint) = match self {
            Self::Invalid { .. } => (Code::BranchPolicy, "Choose another branch name."),
            Self::NoSuchBase { .. } => {
                (Code::BranchPolicy, "Choose a base branch that exists, or leave `base` out for the default branch.")
            }
            Self::BaseNotAllowed { .. } => {
                (Code::BranchPolicy, "Choose an allowed `base`, or have the operator add this one to `branches.bases`.")
            }
            Self::NameNotAllowed { .. } => (
                Code::BranchPolicy,
                "Choose an allowed `branch`, leave it out, or have the operator add this one to `branches.names`.",
            ),
            Self::IsBase { .. } | Self::IsDefault { .. } => {
                (Code::BranchPolicy, "Choose another `branch`, or have the operator set `branches.allow_default`.")
            }
            Self::NameTaken { .. } | Self::CaseTwin { .. } => {
                (Code::BranchPolicy, "Choose another `branch`, or delete the branch in the way.")
            }
            Self::Exists { .. } => (
                Code::PushConflict,
                "Choose another `branch`, leave it out for one of the task's own, or delete the branch on the forge.",
            ),
            Self::Protected { .. } => (
                Code::BranchProtected,
                "Choose another `branch`, or let the token bypass the rule in the forge's branch settings.",
            ),
        };
        Failure::new(code, self.to_string()).with_hint(hint).with_retryable(false)
    }
}

/// What a branch can be named after.
#[derive(Debug, Clone, Copy)]
pub struct NamedAfter<'a> {
    /// The task.
    pub id: TaskId,
    /// What is to be done.
    pub task: &'a str,
    /// Whose task it is.
    pub team: &'a str,
    /// The project within the team.
    pub project: Option<&'a str>,
    /// What kind of work it is.
    pub task_type: Option<&'a str>,
}

/// What is known of the repository when a branch is checked.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The branch that the work starts from.
    pub base: &'a str,
    /// The branch that it is to be pushed to.
    pub branch: &'a str,
    /// The repository's default branch.
    pub default_branch: &'a str,
    /// The branches that the forge advertises to this token.
    pub heads: &'a [String],
    /// Whether the forge says that pushes to `branch` are held back; `None` where it does not tell.
    pub protected: Option<bool>,
    /// Whether the branch may be this task's own from an earlier push. The lease of the push then decides.
    pub may_be_ours: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Slug,
    ShortId,
    Id,
    Team,
    Project,
    TaskType,
}

impl Placeholder {
    const ALL: [(&'static str, Self); 6] = [
        ("slug", Self::Slug),
        ("shortid", Self::ShortId),
        ("id", Self::Id),
        ("team", Self::Team),
        ("project", Self::Project),
        ("taskType", Self::TaskType),
    ];

    fn known() -> String {
        Self::ALL.map(|(name, _)| format!("{{{name}}}")).join(", ")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Placeholder),
}

/// A list of patterns; an empty one allows everything.
#[derive(Debug, Clone)]
struct Patterns {
    texts: Vec<String>,
    set: GlobSet,
}

impl Patterns {
    fn new(at: &str, key: &'static str, texts: &[String]) -> Result<Self, BranchPolicyError> {
        if texts.len() > MAX_PATTERNS {
            return Err(BranchPolicyError::TooMany { at: at.to_owned(), key });
        }
        let wrong = |pattern: &str, why: globset::Error| BranchPolicyError::Pattern {
            at: at.to_owned(),
            key,
            pattern: pattern.to_owned(),
            why: why.kind().to_string(),
        };
        let mut set = GlobSetBuilder::new();
        for text in texts {
            let glob = GlobBuilder::new(text).literal_separator(true).build();
            set.add(glob.map_err(|why| wrong(text, why))?);
        }
        Ok(Self { texts: texts.to_vec(), set: set.build().map_err(|why| wrong("", why))? })
    }

    fn allow(&self, name: &str) -> bool {
        self.texts.is_empty() || self.set.is_match(name)
    }
}

/// The rules of one team.
#[derive(Debug, Clone)]
pub struct BranchPolicy {
    bases: Patterns,
    template: Vec<Piece>,
    names: Patterns,
    allow_default: bool,
}

impl BranchPolicy {
    /// Reads the rules. `at` is where they stand in the configuration, such as `branches`.
    pub fn new(at: &str, settings: &BranchSettings) -> Result<Self, BranchPolicyError> {
        let policy = Self {
            bases: Patterns::new(at, "bases", &settings.bases)?,
            template: pieces(at, &settings.template)?,
            names: Patterns::new(at, "names", &settings.names)?,
            allow_default: settings.allow_default,
        };
        let sample = NamedAfter {
            id: TaskId::from_uuid(uuid::Uuid::from_u128(0x9f3c)),
            task: "Bump terraform",
            team: "platform",
            project: Some("infra"),
            task_type: Some("upgrade"),
        };
        let made = policy.name(&sample);
        if let Err(GitError::InvalidBranch { reason, .. }) = check_branch_name(&made) {
            return Err(BranchPolicyError::BadName { at: at.to_owned(), made, why: reason });
        }
        // With a team's name in it, the same template may be allowed for one team and not for another.
        let same_for_all = policy.template.iter().all(|piece| match piece {
            Piece::Text(_) | Piece::Value(Placeholder::Slug | Placeholder::ShortId | Placeholder::Id) => true,
            Piece::Value(Placeholder::Team | Placeholder::Project | Placeholder::TaskType) => false,
        });
        if same_for_all && !policy.names.allow(&made) {
            return Err(BranchPolicyError::NotAllowed { at: at.to_owned(), made });
        }
        Ok(policy)
    }

    /// The branch for a task that names none.
    pub fn name(&self, after: &NamedAfter<'_>) -> String {
        let mut name = String::new();
        for piece in &self.template {
            match piece {
                Piece::Text(text) => name.push_str(text),
                Piece::Value(Placeholder::Slug) => {
                    let words = slug(after.task);
                    name.push_str(if words.is_empty() { "task" } else { &words });
                }
                // The last digits of a version 7 UUID are random; the first are the time.
                Piece::Value(Placeholder::ShortId) => {
                    name.push_str(&format!("{:04x}", after.id.uuid().as_u128() & 0xffff));
                }
                Piece::Value(Placeholder::Id) => name.push_str(&after.id.to_string()),
                Piece::Value(Placeholder::Team) => name.push_str(&slug(after.team)),
                Piece::Value(Placeholder::Project) => name.push_str(&slug(after.project.unwrap_or_default())),
                Piece::Value(Placeholder::TaskType) => name.push_str(&slug(after.task_type.unwrap_or_default())),
            }
        }
        // A task without a project leaves `team//words` or `team/-words` behind.
        let parts = name.split('/').map(|part| part.trim_matches('-')).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("/")
    }

    /// What can be said of the names alone, before the repository is asked. `base` is absent for the default branch.
    pub fn check_names(&self, base: Option<&str>, branch: &str) -> Result<(), BranchRefusal> {
        for name in base.into_iter().chain([branch]) {
            if let Err(GitError::InvalidBranch { name, reason }) = check_branch_name(name) {
                return Err(BranchRefusal::Invalid { name, reason });
            }
        }
        if let Some(base) = base {
            self.check_base(base)?;
            if base == branch && !self.allow_default {
                return Err(BranchRefusal::IsBase { branch: branch.to_owned() });
            }
        }
        if !self.names.allow(branch) {
            return Err(BranchRefusal::NameNotAllowed { branch: branch.to_owned(), allowed: self.names.texts.clone() });
        }
        Ok(())
    }

    fn check_base(&self, base: &str) -> Result<(), BranchRefusal> {
        if self.bases.allow(base) {
            return Ok(());
        }
        Err(BranchRefusal::BaseNotAllowed { base: base.to_owned(), allowed: self.bases.texts.clone() })
    }

    /// Everything that can be said before the push. The default branch is checked as a base like any other.
    pub fn check(&self, at: &Situation<'_>) -> Result<(), BranchRefusal> {
        let branch = || at.branch.to_owned();
        // The base's own name is the forge's, and may be one that we would not give.
        if let Err(GitError::InvalidBranch { name, reason }) = check_branch_name(at.branch) {
            return Err(BranchRefusal::Invalid { name, reason });
        }
        if !at.heads.iter().any(|head| head == at.base) {
            return Err(BranchRefusal::NoSuchBase { base: told(at.base) });
        }
        self.check_base(at.base)?;
        let is_base = at.branch == at.base;
        let is_default = at.branch == at.default_branch;
        if !self.allow_default {
            if is_default {
                return Err(BranchRefusal::IsDefault { branch: branch() });
            }
            if is_base {
                return Err(BranchRefusal::IsBase { branch: branch() });
            }
        }
        if !self.names.allow(at.branch) {
            return Err(BranchRefusal::NameNotAllowed { branch: branch(), allowed: self.names.texts.clone() });
        }
        if at.protected == Some(true) {
            return Err(BranchRefusal::Protected { branch: branch() });
        }
        let lower = at.branch.to_lowercase();
        for head in at.heads {
            if head == at.branch {
                // Whoever may push to the base may find it there.
                if is_base || is_default || at.may_be_ours {
                    continue;
                }
                return Err(BranchRefusal::Exists { branch: branch() });
            }
            let head_lower = head.to_lowercase();
            if head_lower == lower {
                return Err(BranchRefusal::CaseTwin { branch: branch(), by: told(head) });
            }
            let inside = |name: &str, folder: &str| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
            if inside(&head_lower, &lower) || inside(&lower, &head_lower) {
                return Err(BranchRefusal::NameTaken { branch: branch(), by: told(head) });
            }
        }
        Ok(())
    }
}

/// Somebody else's branch name, short enough for a sentence. Printed with `{:?}`, so control characters show.
fn told(name: &str) -> String {
    name.chars().take(MAX_TOLD_CHARS).collect()
}

fn pieces(at: &str, template: &str) -> Result<Vec<Piece>, BranchPolicyError> {
    if template.len() > MAX_TEMPLATE_BYTES {
        return Err(BranchPolicyError::TooLong { at: at.to_owned() });
    }
    let brace = || BranchPolicyError::Brace { at: at.to_owned() };
    let mut pieces = Vec::new();
    let mut rest = template;
    while !rest.is_empty() {
        let (text, tail) = match rest.split_once('{') {
            Some((text, tail)) => (text, Some(tail)),
            None => (rest, None),
        };
        if text.contains('}') {
            return Err(brace());
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        let Some(tail) = tail else { break };
        let (name, after) = tail.split_once('}').ok_or_else(brace)?;
        let value = Placeholder::ALL.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let unknown = || BranchPolicyError::Placeholder { at: at.to_owned(), name: name.to_owned() };
        pieces.push(Piece::Value(value.ok_or_else(unknown)?));
        rest = after;
    }
    let unique = |piece: &Piece| matches!(piece, Piece::Value(Placeholder::ShortId | Placeholder::Id));
    if !pieces.iter().any(unique) {
        return Err(BranchPolicyError::NotUnique { at: at.to_owned() });
    }
    Ok(pieces)
}

/// The rules of every team.
#[derive(Debug, Clone)]
pub struct BranchPolicies {
    default: BranchPolicy,
    teams: BTreeMap<String, BranchPolicy>,
}

impl Default for BranchPolicies {
    fn default() -> Self {
        let default = BranchPolicy::new("branches", &BranchSettings::default());
        Self { default: default.expect("the built-in rules are tested to read"), teams: BTreeMap::new() }
    }
}

impl BranchPolicies {
    /// Reads `branches` and each `teams.NAME.branches`.
    pub fn new<'a>(
        settings: &BranchSettings,
        teams: impl IntoIterator<Item = (&'a String, &'a BranchOverrides)>,
    ) -> Result<Self, BranchPolicyError> {
        let default = BranchPolicy::new("branches", settings)?;
        let mut read = BTreeMap::new();
        for (team, own) in teams {
            let own = BranchSettings {
                bases: own.bases.clone().unwrap_or_else(|| settings.bases.clone()),
                template: own.template.clone().unwrap_or_else(|| settings.template.clone()),
                names: own.names.clone().unwrap_or_else(|| settings.names.clone()),
                allow_default: own.allow_default.unwrap_or(settings.allow_default),
            };
            read.insert(team.clone(), BranchPolicy::new(&format!("teams.{team}.branches"), &own)?);
        }
        Ok(Self { default, teams: read })
    }

    /// The rules of this team.
    pub fn of(&self, team: &str) -> &BranchPolicy {
        self.teams.get(team).unwrap_or(&self.default)
    }
}
