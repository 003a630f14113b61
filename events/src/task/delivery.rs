//! How far each repository of an attempt has come: from its checkout, over its commit and its branch, to its pull
//! request; and what of that is next.

use super::command::{Command, PullRequestOutcome, Refusal, named, working};
use super::event::{Target, TaskEvent, TaskSpec};
use super::state::{Checkout, Commit, Task};
use super::step::{Step, planned_step};
use crate::repo::RepoRef;

/// One repository of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct RepoWork {
    /// Which one, and where its work goes.
    pub target: Target,
    /// Its files on disk, once there.
    pub checkout: Option<Checkout>,
    /// What the agent's work in it came to.
    pub outcome: Option<Outcome>,
    /// Its branch holds the commit.
    pub pushed: bool,
    /// Its pull request.
    pub request: Request,
    /// Its pull request names those of the other repositories.
    pub linked: bool,
    /// The forge was told how the task ended.
    pub reported: bool,
}

/// What the agent's work in a repository came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Nothing was changed in it.
    Unchanged,
    /// A commit, or several of which this is the last.
    Committed(Commit),
}

/// How far a pull request has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Nobody has asked for it.
    NotAsked,
    /// The forge has none.
    Omitted,
    /// It is open.
    Open {
        /// Its page.
        url: String,
        /// Its number.
        number: u64,
        /// Somebody else has opened it: its title and its text are theirs.
        foreign: bool,
    },
}

impl RepoWork {
    fn new(target: Target) -> Self {
        Self {
            target,
            checkout: None,
            outcome: None,
            pushed: false,
            request: Request::NotAsked,
            linked: false,
            reported: false,
        }
    }

    /// Every repository of a task, with everything still to do.
    pub fn all(spec: &TaskSpec) -> Vec<Self> {
        spec.targets().into_iter().map(Self::new).collect()
    }

    /// The commit, if there is one.
    pub fn commit(&self) -> Option<&Commit> {
        match &self.outcome {
            Some(Outcome::Committed(commit)) => Some(commit),
            Some(Outcome::Unchanged) | None => None,
        }
    }

    /// The open pull request's page and number.
    pub fn open_request(&self) -> Option<(&str, u64)> {
        match &self.request {
            Request::Open { url, number, .. } => Some((url, *number)),
            Request::NotAsked | Request::Omitted => None,
        }
    }
}

/// Whether the agent's work is committed in every repository where it changed something, and there is any.
pub fn is_committed(repos: &[RepoWork]) -> bool {
    repos.iter().all(|repo| repo.outcome.is_some()) && repos.iter().any(|repo| repo.commit().is_some())
}

/// The repository with an open pull request whose readers have not been told yet how the task ended.
pub fn unreported(repos: &[RepoWork]) -> Option<usize> {
    repos.iter().position(|repo| repo.open_request().is_some() && !repo.reported)
}

/// What is next once everything is committed and the sandbox is gone; `None`: all is delivered.
///
/// Every branch is pushed before the first pull request is opened: a push is what can be refused, and a set of
/// changes of which one half is up for review is worse than none.
pub(super) fn next(repos: &[RepoWork]) -> Option<Step> {
    let first = |wanted: &dyn Fn(&RepoWork) -> bool| repos.iter().position(wanted);
    let open = repos.iter().filter(|repo| repo.open_request().is_some()).count();
    let is_ours = |repo: &RepoWork| matches!(repo.request, Request::Open { foreign: false, .. });
    if let Some(repo) = first(&|repo| repo.commit().is_some() && !repo.pushed) {
        return Some(Step::Push(repo));
    }
    if let Some(repo) = first(&|repo| repo.pushed && repo.request == Request::NotAsked) {
        return Some(Step::OpenPullRequest(repo));
    }
    if open > 1
        && let Some(repo) = first(&|repo| is_ours(repo) && !repo.linked)
    {
        return Some(Step::LinkPullRequest(repo));
    }
    unreported(repos).map(|repo| Step::Report(repo, None))
}

/// Takes one event in that is about one repository.
pub(super) fn evolve(repos: &mut [RepoWork], event: &TaskEvent) {
    let named = |name: Option<&RepoRef>| name.map_or(Some(0), |name| repos.iter().position(|r| r.target.repo == *name));
    match event {
        TaskEvent::Cloned { repo, base, commit, sandbox, setup } => {
            if let Some(found) = named(Some(repo)) {
                let checkout =
                    Checkout { base: base.clone(), commit: commit.clone(), sandbox: *sandbox, setup: *setup };
                repos[found].checkout = Some(checkout);
            }
        }
        TaskEvent::Committed { repo, commit, message, subjects, files, insertions, deletions, diff, .. } => {
            if let Some(found) = named(repo.as_ref()) {
                let first_line = || vec![message.lines().next().unwrap_or_default().to_owned()];
                let commit = Commit {
                    id: commit.clone(),
                    subjects: if subjects.is_empty() { first_line() } else { subjects.clone() },
                    stat: (*files, *insertions, *deletions),
                    diff: diff.clone(),
                };
                repos[found].outcome = Some(Outcome::Committed(commit));
            }
        }
        TaskEvent::Unchanged { repo } => {
            if let Some(found) = named(Some(repo)) {
                repos[found].outcome = Some(Outcome::Unchanged);
            }
        }
        TaskEvent::Pushed { repo, .. } => {
            if let Some(found) = named(Some(repo)) {
                repos[found].pushed = true;
            }
        }
        TaskEvent::PullRequestOpened { repo, url, number, foreign, .. } => {
            if let Some(found) = named(Some(repo)) {
                repos[found].request = Request::Open { url: url.clone(), number: *number, foreign: *foreign };
            }
        }
        TaskEvent::PullRequestOmitted { repo, .. } => {
            if let Some(found) = named(Some(repo)) {
                repos[found].request = Request::Omitted;
            }
        }
        TaskEvent::PullRequestLinked { repo } => {
            if let Some(found) = named(Some(repo)) {
                repos[found].linked = true;
            }
        }
        TaskEvent::Reported { repo } => {
            if let Some(found) = named(Some(repo)) {
                repos[found].reported = true;
            }
        }
        _ => {}
    }
}

/// What came of a repository's work, as events.
pub(super) fn decide(task: &Task, command: Command) -> Result<Vec<TaskEvent>, Refusal> {
    let next = planned_step(task);
    match command {
        Command::RecordCommit { repo, commits, tree, message, stat: (files, insertions, deletions), diff } => {
            let Some((commit, _)) = commits.last().cloned().filter(|_| next == Step::Commit(repo)) else {
                return Err(Refusal::MovedOn);
            };
            let (commits, subjects) = if commits.len() > 1 { commits.into_iter().unzip() } else { Default::default() };
            let repo = if task.spec.further.is_empty() { None } else { Some(named(task, repo)?) };
            Ok(vec![TaskEvent::Committed {
                repo,
                commit,
                commits,
                tree,
                message,
                subjects,
                files,
                insertions,
                deletions,
                diff,
            }])
        }
        Command::RecordUnchanged { repo } if next == Step::Commit(repo) => {
            // A task of which nothing comes at all does not end in silence but in `nothing-to-push`.
            let others = working(task)?.repos.iter().enumerate().filter(|(other, _)| *other != repo);
            if others.into_iter().all(|(_, work)| work.outcome == Some(Outcome::Unchanged)) {
                return Err(Refusal::MovedOn);
            }
            Ok(vec![TaskEvent::Unchanged { repo: named(task, repo)? }])
        }
        // Also after a cancel: the branch has moved all the same, and the record says so.
        Command::RecordPush { repo, outcome } => {
            let work = delivered(task, repo)?;
            match work.commit() {
                Some(commit) if !work.pushed => Ok(vec![TaskEvent::Pushed {
                    repo: work.target.repo.clone(),
                    branch: work.target.branch.clone(),
                    commit: commit.id.clone(),
                    outcome,
                }]),
                Some(_) | None => Err(Refusal::MovedOn),
            }
        }
        Command::RecordPullRequest { repo, opened, notes } => {
            let work = delivered(task, repo)?;
            if !work.pushed || work.request != Request::NotAsked {
                return Err(Refusal::MovedOn);
            }
            let repo = work.target.repo.clone();
            let came = match opened {
                PullRequestOutcome::Open { url, number, existed, foreign } => {
                    TaskEvent::PullRequestOpened { repo: repo.clone(), url, number, existed, foreign }
                }
                PullRequestOutcome::Omitted { reason } => TaskEvent::PullRequestOmitted { repo: repo.clone(), reason },
            };
            Ok(std::iter::once(came).chain(noted(&repo, notes)).collect())
        }
        Command::RecordLink { repo, notes } => match next {
            Step::LinkPullRequest(linked) if linked == repo => {
                let repo = named(task, repo)?;
                Ok(noted(&repo, notes).chain([TaskEvent::PullRequestLinked { repo: repo.clone() }]).collect())
            }
            _ => Err(Refusal::MovedOn),
        },
        Command::RecordReport { repo, notes } => match next {
            Step::Report(reported, _) if reported == repo => {
                let repo = named(task, repo)?;
                Ok(noted(&repo, notes).chain([TaskEvent::Reported { repo: repo.clone() }]).collect())
            }
            _ => Err(Refusal::MovedOn),
        },
        _ => Err(Refusal::MovedOn),
    }
}

/// A repository whose commits are on their way: the sandbox is gone.
fn delivered(task: &Task, repo: usize) -> Result<&RepoWork, Refusal> {
    let attempt = working(task)?;
    match attempt.repos.get(repo) {
        Some(work) if attempt.sandbox.is_none() => Ok(work),
        Some(_) | None => Err(Refusal::MovedOn),
    }
}

/// What a forge could not do, as events.
fn noted(repo: &RepoRef, notes: Vec<(String, String)>) -> impl Iterator<Item = TaskEvent> + use<> {
    let repo = repo.clone();
    notes.into_iter().map(move |(feature, detail)| TaskEvent::ForgeNoted { repo: repo.clone(), feature, detail })
}
