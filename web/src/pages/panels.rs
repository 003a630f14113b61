//! The parts of the task page that change while it is looked at: where it stands, what it changed, what can be done.

use askama::Template;
use orchestra_events::key::Scope;
use orchestra_events::task::event::{CredentialKind, Harness};
use orchestra_events::task::{TaskEvent, TaskResource, TaskStatus};

use super::diff::{self, Diff};
use super::format;
use super::html::Html;
use super::shell::Visitor;
use super::timeline::{FailureBox, Link, capitalised, short};
use crate::fragments::rows::{elapsed, status_text, title};
use crate::fragments::{BudgetBar, Fragments};

/// Links to a task's pull requests.
pub fn pull_requests(task: &TaskResource) -> Vec<Link> {
    let links = task.pull_requests.iter();
    links.filter_map(|pull| Link::outside(&pull.url, format!("Pull request {}", pull.number))).collect()
}

/// Where the task stands.
#[derive(Debug, Template)]
#[template(path = "task_head.html")]
pub struct Head {
    id: String,
    repo: String,
    title: String,
    status: &'static str,
    status_text: &'static str,
    reason: String,
    failed: bool,
    failure: Option<FailureBox>,
    pulls: Vec<Link>,
    budget: Html,
    tokens_read: String,
    tokens_cached: String,
    tokens_written: String,
    since: Option<String>,
    duration: String,
}

impl Head {
    /// The head of a task's page.
    pub fn of(task: &TaskResource, fragments: &Fragments) -> Self {
        let (since, duration) = elapsed(task);
        let failure = task.failure.as_ref().map(|(failure, _)| FailureBox::new(failure));
        // The failure's message is the reason; said once is enough.
        let repeated = task.status == TaskStatus::Failed && failure.is_some();
        Self {
            id: task.id.to_string(),
            repo: task.spec.repo.to_string(),
            title: title(&task.spec.task),
            status: task.status.as_str(),
            status_text: status_text(task.status),
            reason: if repeated { String::new() } else { capitalised(&task.reason) },
            failed: task.status == TaskStatus::Failed,
            failure,
            pulls: pull_requests(task),
            budget: fragments.budget_bar(&BudgetBar::of(task)),
            tokens_read: format::thousands(task.usage.context()),
            tokens_cached: format::thousands(task.usage.cache_read_tokens),
            tokens_written: format::thousands(task.usage.output_tokens),
            since,
            duration,
        }
    }
}

/// What the task changed.
#[derive(Debug, Template)]
#[template(path = "changes.html")]
pub struct Changes {
    id: String,
    summary: String,
    diff: Diff,
    /// Whether this is the page of the diff alone.
    whole: bool,
}

impl Changes {
    /// The changes of a task.
    pub fn of(task: &TaskResource, patch: &[u8], bounds: diff::Bounds, whole: bool) -> Self {
        let diff = diff::read(patch, bounds);
        let files = task.stat.map_or(diff.files.len() as u64, |(files, ..)| u64::from(files));
        let commit = task.commits.last().map_or_else(String::new, |commit| format!(" in {}", short(commit.as_str())));
        Self {
            id: task.id.to_string(),
            summary: format!("{}{commit}", format::count(files, "file", "files")),
            diff,
            whole,
        }
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.diff.files.is_empty()
    }
}

/// One thing to know about a task.
#[derive(Debug)]
struct Fact {
    name: &'static str,
    value: String,
    mono: bool,
    time: Option<String>,
}

/// What is to be known about the task, and what can be done with it.
#[derive(Debug, Template)]
#[template(path = "task_side.html")]
pub struct Side {
    id: String,
    csrf: String,
    needs_model: bool,
    needs_git: bool,
    brings_model: bool,
    brings_git: bool,
    can_steer: bool,
    can_cancel: bool,
    can_retry: bool,
    can_erase: bool,
    facts: Vec<Fact>,
    whole_text: Option<String>,
}

impl Side {
    /// The side of a task's page. `missing` are the secrets that it waits for.
    pub fn of(task: &TaskResource, missing: &[CredentialKind], visitor: &Visitor) -> Self {
        let waits = task.status == TaskStatus::AwaitingCredentials && visitor.caller.may(Scope::TasksCreate);
        let create = visitor.caller.may(Scope::TasksCreate);
        let over = task.status.is_final();
        Self {
            id: task.id.to_string(),
            csrf: visitor.csrf.clone(),
            needs_model: waits && missing.contains(&CredentialKind::Model),
            needs_git: waits && missing.contains(&CredentialKind::Git),
            brings_model: task.spec.caller_brings_model_key,
            brings_git: task.spec.caller_brings_git_token,
            can_steer: create && !over,
            can_cancel: visitor.caller.may(Scope::TasksCancel) && !over,
            can_retry: create
                && task.erased_at.is_none()
                && matches!(task.status, TaskStatus::Failed | TaskStatus::Cancelled),
            can_erase: over && task.erased_at.is_none() && visitor.caller.may(Scope::ContentErase),
            facts: facts(task),
            whole_text: (title(&task.spec.task) != task.spec.task.trim()).then(|| task.spec.task.clone()),
        }
    }
}

fn facts(task: &TaskResource) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut add = |name, value: Option<String>, mono| {
        facts.extend(value.map(|value| Fact { name, value, mono, time: None }));
    };
    let spec = &task.spec;
    add("Branch", Some(spec.branch.clone()), true);
    let base = task.base.as_ref().map(|base| match &task.base_commit {
        Some(commit) => format!("{base} at {}", short(commit.as_str())),
        None => base.clone(),
    });
    add("Base", base, true);
    add("Commit", task.commits.last().map(|commit| short(commit.as_str()).to_owned()), true);
    add("Model", Some(spec.model.clone()), false);
    add("Team", Some(spec.team.clone()), false);
    add("Project", spec.project.clone(), false);
    add("Environment", spec.environment.clone(), false);
    add("Kind of work", spec.task_type.clone(), false);
    add("Customer", spec.customer.clone(), false);
    add("Token cap", spec.budget.max_tokens.map(format::thousands), false);
    add("Attempt", (task.attempt > 0).then(|| task.attempt.to_string()), false);
    let harness = spec.harness;
    add("Agent", (harness != Harness::Builtin).then(|| harness.as_str().to_owned()), false);
    add("Image", Some(spec.image.clone()), false);
    for (name, time) in [
        ("Created", Some(task.created_at)),
        ("Started", task.started_at),
        ("Finished", task.finished_at),
        ("Erased", task.erased_at),
    ] {
        facts.extend(time.map(|time| Fact {
            name,
            value: format::moment(time),
            mono: false,
            time: Some(format::iso(time)),
        }));
    }
    facts
}

/// The secrets that a task waits for after these events, as far as they say so.
pub fn missing_after(before: Vec<CredentialKind>, event: &TaskEvent) -> Vec<CredentialKind> {
    match event {
        TaskEvent::CredentialsRequired { missing, .. } => missing.clone(),
        TaskEvent::CredentialsSupplied { supplied, .. } => {
            before.into_iter().filter(|kind| !supplied.contains(kind)).collect()
        }
        TaskEvent::Queued {} | TaskEvent::AttemptStarted { .. } => Vec::new(),
        _ => before,
    }
}

/// Renders a panel. A template that compiles fails only when there is no memory left.
pub fn render(panel: &impl Template) -> Html {
    Html::from_template(panel.render().unwrap_or_else(|error| {
        tracing::error!(%error, "a panel does not render; report this");
        String::new()
    }))
}
