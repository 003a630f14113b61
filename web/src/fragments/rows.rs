//! What the task row and the budget bar know about a task.

use orchestra_events::NanoUsd;
use orchestra_events::task::{TaskResource, TaskStatus};
use serde::Serialize;

use crate::pages::format;
use crate::pages::timeline::capitalised;

/// A task as a row of the list.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskRow {
    /// Its id; the row's id on the page is `row-ID`.
    pub id: String,
    /// The kebab-case status.
    pub status: String,
    /// The status in words.
    pub status_text: String,
    /// The first line of what was asked for.
    pub task: String,
    /// What it is doing, or why it stands there.
    pub reason: String,
    /// `forge:owner/name`.
    pub repo: String,
    /// The branch it pushes to.
    pub branch: String,
    /// Whose it is.
    pub team: String,
    /// The model.
    pub model: String,
    /// The attempt, once there was more than one.
    pub attempt: Option<u32>,
    /// Cost against budget.
    pub budget: BudgetBar,
    /// When it was asked for, RFC 3339.
    pub created_at: String,
    /// The same for people.
    pub created: String,
    /// When what is being timed began, RFC 3339; nothing once it is over.
    pub since: Option<String>,
    /// How long it took, or has taken so far.
    pub duration: String,
}

/// Longest line of a task's text in the list, in characters.
const MAX_TITLE: usize = 200;

/// The first line of a task's text, shortened to fit a heading.
pub fn title(task: &str) -> String {
    let line = task.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    if line.chars().count() <= MAX_TITLE {
        return line.to_owned();
    }
    line.chars().take(MAX_TITLE - 1).chain(['…']).collect()
}

/// A status in words.
pub fn status_text(status: TaskStatus) -> &'static str {
    match status {
        TaskStatus::Queued => "Queued",
        TaskStatus::Preparing => "Preparing",
        TaskStatus::Running => "Running",
        TaskStatus::AwaitingCredentials => "Needs credentials",
        TaskStatus::Retrying => "Retrying",
        TaskStatus::Succeeded => "Succeeded",
        TaskStatus::Failed => "Failed",
        TaskStatus::Cancelled => "Cancelled",
    }
}

impl TaskRow {
    /// The row of a task. The same task gives the same row until something happens to it: what passes with time is
    /// filled in by the browser.
    pub fn of(task: &TaskResource) -> Self {
        let (since, duration) = elapsed(task);
        Self {
            id: task.id.to_string(),
            status: task.status.as_str().to_owned(),
            status_text: status_text(task.status).to_owned(),
            task: title(&task.spec.task),
            reason: capitalised(&task.reason),
            repo: task.spec.repo.to_string(),
            branch: task.spec.branch.clone(),
            team: task.spec.team.clone(),
            model: task.spec.model.clone(),
            attempt: (task.attempt > 1).then_some(task.attempt),
            budget: BudgetBar::of(task),
            created_at: format::iso(task.created_at),
            created: format::moment(task.created_at),
            since,
            duration,
        }
    }
}

/// Since when the task runs, while it does, and how long it took once it is over.
pub fn elapsed(task: &TaskResource) -> (Option<String>, String) {
    match (task.started_at, task.finished_at) {
        (Some(started), Some(finished)) => (None, format::between(started, finished)),
        (Some(started), None) => (Some(format::iso(started)), format!("since {}", format::clock(started))),
        (None, Some(_)) => (None, "never started".to_owned()),
        (None, None) => (None, "not started".to_owned()),
    }
}

/// What was spent, what is set aside, and what there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetBar {
    /// `$0.42`.
    pub spent: String,
    /// `$0.05`, while a call is open.
    pub reserved: Option<String>,
    /// `$2.00`, where there is a cap.
    pub cap: Option<String>,
    /// The share spent, in thousandths of the bar.
    pub spent_width: u32,
    /// The share set aside, in thousandths of the bar.
    pub reserved_width: u32,
    /// `calm`, `near` from four fifths on, `full` from 98 % on.
    pub level: &'static str,
    /// All of it as a sentence.
    pub sentence: String,
}

impl BudgetBar {
    /// The bar of a task.
    pub fn of(task: &TaskResource) -> Self {
        Self::new(task.cost, task.reserved(), task.spec.budget.max_nano_usd)
    }

    /// A bar. Without a cap it has no length to speak of, and only the words count.
    pub fn new(spent: NanoUsd, reserved: NanoUsd, cap: Option<NanoUsd>) -> Self {
        let share = |part: NanoUsd| -> u32 {
            let Some(cap) = cap.filter(|cap| cap.nanos() > 0) else { return 0 };
            let thousandths = i128::from(part.nanos().max(0)) * 1_000 / i128::from(cap.nanos());
            u32::try_from(thousandths.min(1_000)).unwrap_or(1_000)
        };
        let spent_width = share(spent);
        let reserved_width = share(reserved).min(1_000 - spent_width);
        let open = reserved > NanoUsd::ZERO;
        let sentence = match (cap, open) {
            (Some(cap), true) => {
                format!("{} spent and {} set aside of {}", format::usd(spent), format::usd(reserved), format::usd(cap))
            }
            (Some(cap), false) => format!("{} spent of {}", format::usd(spent), format::usd(cap)),
            (None, true) => format!("{} spent and {} set aside, no cap", format::usd(spent), format::usd(reserved)),
            (None, false) => format!("{} spent, no cap", format::usd(spent)),
        };
        Self {
            spent: format::usd(spent),
            reserved: open.then(|| format::usd(reserved)),
            cap: cap.map(format::usd),
            spent_width,
            reserved_width,
            level: match spent_width {
                0..800 => "calm",
                800..980 => "near",
                _ => "full",
            },
            sentence,
        }
    }

    /// Bars of every kind.
    pub fn samples() -> Vec<Self> {
        let usd = |cents: i64| NanoUsd::from_nanos(cents * 10_000_000);
        vec![
            Self::new(usd(42), usd(5), Some(usd(200))),
            Self::new(usd(195), usd(5), Some(usd(200))),
            Self::new(usd(250), NanoUsd::ZERO, Some(usd(200))),
            Self::new(usd(1), usd(1), None),
            Self::new(NanoUsd::ZERO, NanoUsd::ZERO, Some(NanoUsd::ZERO)),
        ]
    }
}

impl TaskRow {
    /// Rows of every status.
    pub fn samples() -> Vec<Self> {
        crate::pages::sample::tasks().iter().map(Self::of).collect()
    }
}
