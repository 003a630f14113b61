//! What a template of a text is told: everything about a task that a reader of its pull request may know.

use std::time::Duration;

use orchestra_events::money::NanoUsd;
use orchestra_events::{Failure, FailureCode, TaskId};
use serde::Serialize;

use super::words::{Place, clean, clean_line, clean_own};

/// How much of a task's or an agent's words is shown: a screen or two. The task's page has the rest.
const MAX_WORDS_BYTES: usize = 16 * 1024;
/// How much of a requested text is shown: nearly what a pull request may hold.
const MAX_REQUESTED_BYTES: usize = 50_000;
/// How much of a name, a subject or an address is shown.
const MAX_LINE_BYTES: usize = 500;
/// How many commits are listed; the others are counted.
const MAX_COMMITS: usize = 50;
/// How many other pull requests are listed: as many as one task can have.
const MAX_LINKED: usize = 32;

/// Where the task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It goes on.
    Running,
    /// It has done its work.
    Succeeded,
    /// It was given up.
    Failed(Failure),
    /// Somebody stopped it.
    Cancelled,
}

/// Another pull request of the same task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkedPullRequest {
    /// The repository, as `forge:owner/name`.
    pub repo: String,
    /// Its page.
    pub url: String,
}

/// A task, as far as its texts speak of it. Nothing here is trusted: every text is cleaned before a template sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskText {
    /// The task.
    pub id: TaskId,
    /// What was asked for, in the caller's words.
    pub task: String,
    /// The model, as the caller named it.
    pub model: String,
    /// Which agent does it.
    pub harness: String,
    /// Whose task it is.
    pub team: String,
    /// The project within the team.
    pub project: Option<String>,
    /// What kind of work it is.
    pub task_type: Option<String>,
    /// The repository, as `forge:owner/name`.
    pub repo: String,
    /// Which of the task's repositories that is, counted from 0.
    pub repo_index: usize,
    /// The branch with the work.
    pub branch: String,
    /// The branch that it goes to.
    pub base: String,
    /// The commits' first lines, oldest first.
    pub commits: Vec<String>,
    /// Files that differ.
    pub files: u64,
    /// Lines added.
    pub insertions: u64,
    /// Lines removed.
    pub deletions: u64,
    /// What the task has cost so far.
    pub cost: NanoUsd,
    /// Tokens sent to the model, whether cached or not.
    pub input_tokens: u64,
    /// Tokens that the model wrote.
    pub output_tokens: u64,
    /// How long the task has taken so far.
    pub duration: Duration,
    /// The task's page on the dashboard.
    pub link: Option<String>,
    /// The agent's last words.
    pub summary: Option<String>,
    /// The task's other pull requests.
    pub pull_requests: Vec<LinkedPullRequest>,
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// The title that the caller wants for the pull request.
    pub requested_title: Option<String>,
    /// The text that the caller wants for the pull request.
    pub requested_body: Option<String>,
    /// Where the task stands.
    pub standing: Standing,
}

/// What the templates see: names of `TaskText`, with texts cleaned for one place.
#[derive(Serialize)]
pub(super) struct View {
    id: String,
    task: String,
    model: String,
    harness: String,
    team: String,
    project: Option<String>,
    task_type: Option<String>,
    repo: String,
    branch: String,
    base: String,
    commits: Vec<String>,
    more_commits: usize,
    files: u64,
    insertions: u64,
    deletions: u64,
    cost: String,
    input_tokens: u64,
    output_tokens: u64,
    duration: String,
    link: Option<String>,
    summary: Option<String>,
    pull_requests: Vec<LinkedPullRequest>,
    attempt: u32,
    requested_title: Option<String>,
    requested_body: Option<String>,
    state: &'static str,
    failure: Option<FailureView>,
}

#[derive(Serialize)]
struct FailureView {
    code: &'static str,
    message: String,
    hint: String,
}

impl TaskText {
    pub(super) fn view(&self, place: Place) -> View {
        let words = |text: &str| clean(text, place, MAX_WORDS_BYTES).trim().to_owned();
        let line = |text: &str| clean_line(text, place, MAX_LINE_BYTES);
        let some_line = |text: &Option<String>| text.as_deref().map(line).filter(|text| !text.is_empty());
        let (state, failure) = match &self.standing {
            Standing::Running => ("running", None),
            Standing::Succeeded => ("succeeded", None),
            Standing::Cancelled => ("cancelled", None),
            Standing::Failed(failure) => ("failed", Some(failure)),
        };
        View {
            id: self.id.to_string(),
            task: words(&self.task),
            model: line(&self.model),
            harness: line(&self.harness),
            team: line(&self.team),
            project: some_line(&self.project),
            task_type: some_line(&self.task_type),
            repo: line(&self.repo),
            branch: line(&self.branch),
            base: line(&self.base),
            commits: self.commits.iter().take(MAX_COMMITS).map(|subject| line(subject)).collect(),
            more_commits: self.commits.len().saturating_sub(MAX_COMMITS),
            files: self.files,
            insertions: self.insertions,
            deletions: self.deletions,
            cost: self.cost.to_string(),
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            duration: spoken(self.duration),
            // An address stands as it is, if it is one: cleaning would break it, and it is the operator's own.
            link: self.link.clone().filter(|link| is_address(link)),
            summary: self.summary.as_deref().map(words).filter(|text| !text.is_empty()),
            pull_requests: self
                .pull_requests
                .iter()
                .filter(|other| is_address(&other.url))
                .take(MAX_LINKED)
                .map(|other| LinkedPullRequest { repo: line(&other.repo), url: other.url.clone() })
                .collect(),
            attempt: self.attempt,
            requested_title: some_line(&self.requested_title),
            requested_body: self
                .requested_body
                .as_deref()
                .map(|text| clean_own(text, place, MAX_REQUESTED_BYTES).trim().to_owned())
                .filter(|text| !text.is_empty()),
            state,
            failure: failure.map(|failure| FailureView {
                code: failure.code.as_str(),
                message: line(&failure.message),
                hint: line(&failure.hint),
            }),
        }
    }

    /// Everything set.
    pub fn sample() -> Self {
        Self {
            id: TaskId::from_uuid(uuid::Uuid::from_u128(0x0198_5a10_0000_7000_8000_0000_0000_9f3c)),
            task: "Bump terraform-aws-provider from 5.x to 6.x; update breaking calls".to_owned(),
            model: "claude-sonnet-4-6".to_owned(),
            harness: "builtin".to_owned(),
            team: "platform".to_owned(),
            project: Some("infra".to_owned()),
            task_type: Some("dependency-upgrade".to_owned()),
            repo: "github:acme/api".to_owned(),
            repo_index: 0,
            branch: "orchestra/bump-terraform-9f3c".to_owned(),
            base: "main".to_owned(),
            commits: vec!["Raise the provider to 6.0".to_owned(), "Name buckets by their new argument".to_owned()],
            files: 7,
            insertions: 41,
            deletions: 38,
            cost: NanoUsd::from_nanos(420_500_000),
            input_tokens: 182_340,
            output_tokens: 9_120,
            duration: Duration::from_secs(254),
            link: Some("https://orchestra.example/tasks/task_01k".to_owned()),
            summary: Some(
                "The provider is at 6.0. `aws_s3_bucket` no longer takes `acl`; the five calls were moved to \
                 `aws_s3_bucket_acl`.\n\n`terraform validate` passes."
                    .to_owned(),
            ),
            pull_requests: vec![LinkedPullRequest {
                repo: "github:acme/web".to_owned(),
                url: "https://github.com/acme/web/pull/12".to_owned(),
            }],
            attempt: 2,
            requested_title: Some("Terraform AWS provider 6".to_owned()),
            requested_body: None,
            standing: Standing::Succeeded,
        }
    }

    /// The samples that every template is tried with, each with a name that says what is special about it.
    pub fn samples() -> Vec<(&'static str, Self)> {
        let whole = Self::sample();
        let bare = Self {
            task: "Fix the build".to_owned(),
            project: None,
            task_type: None,
            commits: Vec::new(),
            files: 1,
            insertions: 1,
            deletions: 0,
            cost: NanoUsd::ZERO,
            link: None,
            summary: None,
            pull_requests: Vec::new(),
            attempt: 1,
            requested_title: None,
            ..whole.clone()
        };
        let failure = Failure::new(FailureCode::PushRejected, "The forge refused the push to \"orchestra/x\".");
        vec![
            ("bare", bare.clone()),
            ("running", Self { standing: Standing::Running, ..bare.clone() }),
            ("failed", Self { standing: Standing::Failed(failure), ..bare.clone() }),
            ("cancelled", Self { standing: Standing::Cancelled, ..bare.clone() }),
            ("requested", Self { requested_body: Some("As agreed on Monday.".to_owned()), ..whole.clone() }),
            (
                "long",
                Self {
                    task: "Go through all the packages and say what each is for. ".repeat(2_000),
                    summary: Some("It is done, and this is what was found.\n\n".repeat(2_000)),
                    commits: (1..=80)
                        .map(|n| format!("Step {n} of a long way that does not fit a line {}", "x".repeat(300)))
                        .collect(),
                    ..bare.clone()
                },
            ),
            (
                "hostile",
                Self {
                    task:
                        "@everybody <!-- orchestra:task=task_1 repo=0 --> \u{202e}{{ id }} {% for %}\nOrchestra-Task: x\n  /merge"
                            .to_owned(),
                    summary: Some("![x](https://evil.example) <script> @octocat \0 @\u{200e}octocat <\0!-- !\u{feff}[y](https://evil.example)\n\
                              /approve\n- /assign @octocat".to_owned()),
                    commits: vec!["<!-- @x\nSigned-off-by: y".to_owned(), "/close".to_owned()],
                    link: Some("javascript:alert(1)".to_owned()),
                    requested_title: Some("\n\n".to_owned()),
                    ..bare
                },
            ),
            ("whole", whole),
        ]
    }
}

/// Whether it is a plain web address that can stand in a text as it is.
fn is_address(text: &str) -> bool {
    (text.starts_with("https://") || text.starts_with("http://"))
        && text.len() <= 2_000
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"'`()[]{}\\|".contains(&byte))
}

fn spoken(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}
