//! What a stand-in knows: repositories, people, tokens, pull requests. The same for every forge; each shows it its own way.

use std::collections::BTreeMap;

use crate::bare::Bare;

/// All of it.
#[derive(Debug, Default)]
pub struct State {
    /// By `owner/name`.
    pub repos: BTreeMap<String, Repo>,
    /// By the token's text.
    pub tokens: BTreeMap<String, Login>,
    /// Those who can be asked for a review.
    pub people: Vec<Person>,
    /// Where the interface answers, such as `http://127.0.0.1:1234/api/v3`.
    pub base: String,
    /// The last id given to anything.
    pub last_id: u64,
}

/// Whose token it is, and what it may.
#[derive(Debug, Clone)]
pub struct Login {
    /// The owner.
    pub user: String,
    /// Whether it may change anything.
    pub may_write: bool,
    /// The repositories that it sees; `None` is all.
    pub sees: Option<Vec<String>>,
    /// GitHub's classic tokens: what it was given. `None` is a fine-grained token.
    pub scopes: Option<&'static str>,
}

impl Login {
    /// GitHub's app that is installed on the repository, by the name that it comments under: somebody without a role.
    pub fn is_installation(&self) -> bool {
        self.user.ends_with("[bot]")
    }
}

/// Somebody with an account.
#[derive(Debug, Clone)]
pub struct Person {
    /// The user name.
    pub login: String,
    /// What Bitbucket knows people by.
    pub uuid: String,
    /// What GitLab knows people by.
    pub id: u64,
}

/// A repository.
#[derive(Debug)]
pub struct Repo {
    /// `owner/name`.
    pub path: String,
    /// Stays when it is renamed.
    pub id: u64,
    /// The same, where forges want a UUID.
    pub uuid: String,
    /// The files.
    pub git: Bare,
    /// Where pull requests go when nothing is said.
    pub default_branch: String,
    /// Read-only for everybody.
    pub archived: bool,
    /// Whether pull requests can be drafts there.
    pub drafts: bool,
    /// Names or patterns (`release/*`) of protected branches.
    pub protected: Vec<String>,
    /// All pull requests ever, numbered from 1.
    pub pulls: Vec<Pull>,
    /// All lights, the latest last, one per commit and context.
    pub statuses: Vec<Status>,
    /// How often a light was set.
    pub status_changes: Vec<Status>,
}

/// A pull request.
#[derive(Debug, Clone, Default)]
pub struct Pull {
    /// Its number.
    pub number: u64,
    /// Its head branch.
    pub head: String,
    /// The branch it goes to.
    pub base: String,
    /// Its title, without a prefix that makes it a draft.
    pub title: String,
    /// Its text.
    pub body: String,
    /// Not to be looked at yet.
    pub draft: bool,
    /// The repository that it goes to, as `owner/name`, where that is another one than it comes from.
    pub upstream: Option<String>,
    /// Neither merged nor declined.
    pub open: bool,
    /// Whether its branch goes when it is merged.
    pub delete_branch: bool,
    /// Counts changes, where the forge wants that known.
    pub version: u64,
    /// Its labels.
    pub labels: Vec<String>,
    /// User names, and `team:slug`.
    pub reviewers: Vec<String>,
    /// What was said.
    pub comments: Vec<Comment>,
}

/// Something said below a pull request.
#[derive(Debug, Clone)]
pub struct Comment {
    /// Its id.
    pub id: u64,
    /// Its text.
    pub body: String,
    /// Counts changes.
    pub version: u64,
}

/// A light beside a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Which commit.
    pub commit: String,
    /// The forge's own word.
    pub state: String,
    /// Whose light.
    pub context: String,
    /// One line.
    pub description: String,
    /// Where to read more.
    pub url: Option<String>,
}

impl State {
    /// A new id.
    pub fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The repository, if this login sees it.
    pub fn seen(&self, path: &str, login: &Login) -> Option<&Repo> {
        login.sees.as_ref().is_none_or(|sees| sees.iter().any(|seen| seen == path)).then(|| self.repos.get(path))?
    }

    /// Somebody, by user name.
    pub fn person(&self, login: &str) -> Option<&Person> {
        self.people.iter().find(|person| person.login == login)
    }
}

impl Repo {
    /// Whether a rule protects a branch of that name.
    pub fn protects(&self, branch: &str) -> bool {
        self.protected.iter().any(|pattern| match pattern.split_once('*') {
            Some((start, end)) => {
                branch.len() >= start.len() + end.len() && branch.starts_with(start) && branch.ends_with(end)
            }
            None => pattern == branch,
        })
    }

    /// The open pull request of these branches.
    pub fn open_pull(&self, head: &str, base: &str) -> Option<&Pull> {
        self.pulls.iter().find(|pull| pull.open && pull.head == head && pull.base == base)
    }

    /// Opens one; its number is the next.
    pub fn add_pull(&mut self, pull: Pull) -> &mut Pull {
        let number = self.pulls.len() as u64 + 1;
        self.pulls.push(Pull { number, open: true, ..pull });
        self.pulls.last_mut().expect("one was pushed")
    }

    /// One, by number.
    pub fn pull_mut(&mut self, number: u64) -> Option<&mut Pull> {
        self.pulls.iter_mut().find(|pull| pull.number == number)
    }

    /// One, by number.
    pub fn pull(&self, number: u64) -> Option<&Pull> {
        self.pulls.iter().find(|pull| pull.number == number)
    }

    /// Sets a light, in place of the one of the same commit and context.
    pub fn set_status(&mut self, status: Status) {
        self.statuses.retain(|old| (&old.commit, &old.context) != (&status.commit, &status.context));
        self.statuses.push(status.clone());
        self.status_changes.push(status);
    }
}
