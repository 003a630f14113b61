//! `/` and `/tasks`: every task that the visitor may see, newest first, filtered by what the address says.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use askama::Template;
use orchestra_events::projections::{Cursor, TaskFilter};
use orchestra_events::task::{TaskResource, TaskStatus};
use serde::Deserialize;

use super::error::{PageError, query_value};
use super::html::Html;
use super::panels;
use super::shell::{Shell, Visitor, page};
use crate::App;
use crate::fragments::{Fragments, TaskRow, rows::status_text};
use crate::problem::{Field, Problem};

/// Tasks on one page.
pub const ROWS: usize = 50;
/// Most pages of tasks that a search for words looks through before it shows what it found so far.
pub const MAX_LOOKS: usize = 20;
/// Longest filter text, in bytes.
pub const MAX_FILTER: usize = 400;

/// Which tasks: the query of the address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    status: String,
    team: String,
    repo: String,
    text: String,
    after: String,
}

impl Query {
    fn filter(&self, visitor: &Visitor) -> Result<TaskFilter, PageError> {
        let wrong = |name: &str, detail: &str| {
            let field = Field { pointer: format!("?{name}"), detail: detail.to_owned() };
            PageError::from(Problem { detail: format!("{name}: {detail}"), ..Problem::invalid_query(vec![field]) })
                .back_to("/tasks", "All tasks")
        };
        for (name, value) in [("team", &self.team), ("repo", &self.repo), ("text", &self.text)] {
            if value.len() > MAX_FILTER {
                return Err(wrong(name, "this filter is too long"));
            }
        }
        let given = |value: &str| Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        let status = match given(&self.status) {
            Some(word) => {
                let known = TaskStatus::ALL.into_iter().find(|status| status.as_str() == word);
                Some(known.ok_or_else(|| wrong("status", "there is no such status"))?)
            }
            None => None,
        };
        let mut filter = TaskFilter {
            status,
            team: given(&self.team),
            repo: given(&self.repo),
            bounds: (*visitor.caller.bounds).clone(),
            ..TaskFilter::default()
        };
        if let Some(own) = visitor.caller.only_team() {
            // Another team's tasks do not exist for this visitor; their own need not be asked for.
            if filter.team.as_ref().is_some_and(|team| *team != own) {
                filter.team = Some(String::new());
            } else {
                filter.team = Some(own);
            }
        }
        Ok(filter)
    }

    fn cursor(&self) -> Result<Option<Cursor>, PageError> {
        match self.after.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                PageError::from(Problem::invalid_query(vec![Field {
                    pointer: "?after".to_owned(),
                    detail: "not a place in this list".to_owned(),
                }]))
                .back_to("/tasks", "All tasks")
            }),
        }
    }

    fn admits(&self, task: &TaskResource) -> bool {
        let words = self.text.to_lowercase();
        let (asked, branch) = (task.spec.task.to_lowercase(), task.spec.branch.to_lowercase());
        words.split_whitespace().all(|word| asked.contains(word) || branch.contains(word))
    }

    fn is_filtered(&self) -> bool {
        [&self.status, &self.team, &self.repo, &self.text].iter().any(|value| !value.trim().is_empty())
    }

    /// The same query, starting after a cursor, as an address.
    fn href(&self, path: &str, after: &str) -> String {
        let pairs = [
            ("status", self.status.as_str()),
            ("team", &self.team),
            ("repo", &self.repo),
            ("text", &self.text),
            ("after", after),
        ];
        let pairs: Vec<_> = pairs
            .into_iter()
            .filter(|(_, value)| !value.trim().is_empty())
            .map(|(name, value)| format!("{name}={}", query_value(value.trim())))
            .collect();
        if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
    }
}

/// The tasks of one page.
#[derive(Debug)]
pub struct Found {
    /// The tasks.
    pub tasks: Vec<TaskResource>,
    /// Where the next page starts.
    pub next: Option<Cursor>,
}

/// Finds the tasks of one page.
pub async fn find(app: &App, visitor: &Visitor, query: &Query) -> Result<Found, PageError> {
    let filter = query.filter(visitor)?;
    let mut after = query.cursor()?;
    let mut tasks = Vec::new();
    for _ in 0..MAX_LOOKS {
        let page = app.read.tasks(filter.clone(), after, ROWS).await?;
        tasks.extend(page.tasks.into_iter().filter(|task| query.admits(task)));
        after = page.next;
        if after.is_none() || tasks.len() >= ROWS {
            break;
        }
    }
    Ok(Found { tasks, next: after })
}

/// The list itself, which the stream replaces when tasks come or go.
#[derive(Debug, Template)]
#[template(path = "task_list.html")]
pub struct TaskList<'a> {
    rows: &'a [Html],
    filtered: bool,
}

impl<'a> TaskList<'a> {
    /// The list of these rows.
    pub fn new(rows: &'a [Html], query: &Query) -> Self {
        Self { rows, filtered: query.is_filtered() }
    }
}

/// A status to choose.
#[derive(Debug)]
struct StatusOption {
    value: &'static str,
    text: &'static str,
    chosen: bool,
}

/// The filters as the form shows them.
#[derive(Debug)]
struct Filters {
    text: String,
    team: String,
    repo: String,
    statuses: Vec<StatusOption>,
    active: bool,
}

/// The page of all tasks.
#[derive(Debug, Template)]
#[template(path = "tasks.html")]
pub struct TasksPage {
    shell: Shell,
    filters: Filters,
    live: String,
    list: Html,
    first: Option<String>,
    next: Option<String>,
}

impl TasksPage {
    fn new(visitor: &Visitor, fragments: &Fragments, query: &Query, found: &Found, position: u64) -> Self {
        let rows: Vec<_> = found.tasks.iter().map(|task| fragments.task_row(&TaskRow::of(task))).collect();
        let live = query.href("/live/tasks", &query.after);
        let mark = if live.contains('?') { '&' } else { '?' };
        Self {
            shell: Shell::of(visitor),
            filters: Filters {
                text: query.text.clone(),
                team: query.team.clone(),
                repo: query.repo.clone(),
                statuses: TaskStatus::ALL
                    .map(|status| StatusOption {
                        value: status.as_str(),
                        text: status_text(status),
                        chosen: status.as_str() == query.status,
                    })
                    .into(),
                active: query.is_filtered(),
            },
            live: format!("{live}{mark}position={position}"),
            list: panels::render(&TaskList::new(&rows, query)),
            first: (!query.after.is_empty()).then(|| query.href("/tasks", "")),
            next: found.next.map(|next| query.href("/tasks", &next.to_string())),
        }
    }

    /// Lists with and without tasks, filters and further pages.
    pub fn samples() -> Vec<Self> {
        let hostile = || super::sample::HOSTILE.to_owned();
        let filtered =
            Query { status: "running".to_owned(), team: hostile(), repo: hostile(), text: hostile(), after: hostile() };
        let next: Option<Cursor> = "00065f4a1b2c3d4e0198000000007000800000000000002a".parse().ok();
        let cases = [
            (Query::default(), Found { tasks: Vec::new(), next: None }),
            (filtered.clone(), Found { tasks: Vec::new(), next: None }),
            (filtered, Found { tasks: super::sample::tasks(), next }),
        ];
        let fragments = Fragments::embedded();
        cases.map(|(query, found)| Self::new(&Visitor::sample(), &fragments, &query, &found, 7)).into()
    }
}

/// `GET /` and `GET /tasks`.
pub async fn show(app: web::Data<App>, visitor: Visitor, query: web::Query<Query>) -> Result<HttpResponse, PageError> {
    // Taken before the tasks are read: what happens in between, the stream shows again.
    // First: a page that is behind its own sign-in would be sent all of its list again by its stream.
    app.caught_up().await?;
    let position = app.read.checkpoint().0;
    let found = find(&app, &visitor, &query).await?;
    Ok(page(StatusCode::OK, &TasksPage::new(&visitor, &app.dashboard.fragments, &query, &found, position)))
}
