//! `/audit`: who did what, filtered by what the address says.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use orchestra_events::audit::acts::Category;
use orchestra_events::projections::{AuditRow, Cursor};
use serde::Deserialize;

use super::error::{PageError, query_value};
use super::format;
use super::shell::{Shell, Visitor, page};
use super::timeline::Link;
use crate::App;
use crate::api::audit;
use crate::api::query::Parameters;
use crate::problem::Problem;

/// Rows on one page.
pub const ROWS: usize = 50;
/// Most pages that are looked through for rows before what was found is shown.
pub const MAX_LOOKS: usize = 4;

/// Which rows: the query of the address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    category: String,
    team: String,
    project: String,
    actor: String,
    repo: String,
    model: String,
    outcome: String,
    kind: String,
    task: String,
    from: String,
    to: String,
    after: String,
}

impl Query {
    fn pairs(&self) -> [(&'static str, &str); 11] {
        [
            ("category", &self.category),
            ("team", &self.team),
            ("project", &self.project),
            ("actor", &self.actor),
            ("repo", &self.repo),
            ("model", &self.model),
            ("outcome", &self.outcome),
            ("kind", &self.kind),
            ("task", &self.task),
            ("from", &self.from),
            ("to", &self.to),
        ]
    }

    /// The same query as an address, with one more pair.
    fn href(&self, path: &str, name: &str, value: &str) -> String {
        let pairs: Vec<_> = self
            .pairs()
            .into_iter()
            .chain([(name, value)])
            .filter(|(_, value)| !value.trim().is_empty())
            .map(|(name, value)| format!("{name}={}", query_value(value.trim())))
            .collect();
        if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
    }

    fn is_filtered(&self) -> bool {
        self.pairs().iter().any(|(_, value)| !value.trim().is_empty())
    }
}

#[derive(Debug)]
struct CategoryOption {
    value: &'static str,
    text: &'static str,
    chosen: bool,
}

/// A row as it is shown.
#[derive(Debug)]
struct Line {
    time: String,
    iso: String,
    /// `task`, `act` or `refusal`: its colour.
    category: &'static str,
    kind: String,
    who: String,
    actor: String,
    from: Option<String>,
    about: Option<String>,
    team: Option<String>,
    project: Option<String>,
    repos: Vec<String>,
    model: Option<String>,
    outcome: String,
    failure: Option<&'static str>,
    cost: Option<String>,
    tokens: Option<String>,
    taken: Option<String>,
    task: Option<String>,
    pull_requests: Vec<String>,
    count: Option<String>,
}

impl Line {
    fn new(row: &AuditRow, visitor: &Visitor) -> Self {
        let shown = row.own || visitor.caller.is_admin();
        let task = row.resource.as_deref();
        let parts: Vec<_> = [&row.address, &row.user_agent].into_iter().flatten().cloned().collect();
        let name = row.name.clone().filter(|_| shown);
        Self {
            time: format::moment(row.at),
            iso: format::iso(row.at),
            category: row.category.as_str(),
            kind: row.kind.replace('-', " "),
            who: name.unwrap_or_else(|| row.actor.clone()),
            actor: row.actor.clone(),
            from: (shown && !parts.is_empty()).then(|| parts.join(", ")),
            about: row.about.clone(),
            team: row.team.clone(),
            project: row.project.clone(),
            repos: row.repos.clone(),
            model: row.model.clone(),
            outcome: row.outcome.replace('-', " "),
            failure: task.and_then(|task| task.failure.as_ref()).map(|(failure, _)| failure.code.as_str()),
            cost: task.map(|task| format::usd(task.cost)),
            tokens: task.map(|task| {
                let (read, written) = (task.usage.context(), task.usage.output_tokens);
                format!("{} tokens in, {} out", format::thousands(read), format::thousands(written))
            }),
            taken: task.and_then(|task| Some(format::between(task.created_at, task.finished_at?))),
            task: row.task.map(|task| task.to_string()),
            pull_requests: task
                .map(|task| {
                    let links = task.pull_requests.iter().filter_map(|pull| Link::outside(&pull.url, ""));
                    links.map(|link| link.href).collect()
                })
                .unwrap_or_default(),
            count: (row.count > 1).then(|| format!("{} times", format::thousands(row.count))),
        }
    }
}

/// The page.
#[derive(Debug, Template)]
#[template(path = "audit.html")]
pub struct AuditPage {
    shell: Shell,
    query: Query,
    categories: Vec<CategoryOption>,
    filtered: bool,
    more: bool,
    lines: Vec<Line>,
    csv: String,
    first: Option<String>,
    next: Option<String>,
}

impl AuditPage {
    fn new(visitor: &Visitor, query: Query, rows: &[AuditRow], next: Option<Cursor>) -> Self {
        let words = |category| match category {
            Category::Task => "Tasks",
            Category::Act => "Acts",
            Category::Refusal => "Refused acts",
        };
        let further =
            [&query.team, &query.project, &query.actor, &query.model, &query.outcome, &query.kind, &query.task];
        Self {
            shell: Shell::of(visitor),
            categories: Category::ALL
                .map(|category| CategoryOption {
                    value: category.as_str(),
                    text: words(category),
                    chosen: category.as_str() == query.category,
                })
                .into(),
            filtered: query.is_filtered(),
            more: further.iter().any(|value| !value.trim().is_empty()),
            lines: rows.iter().map(|row| Line::new(row, visitor)).collect(),
            csv: query.href("/v1/audit", "format", "csv"),
            first: (!query.after.is_empty()).then(|| query.href("/audit", "", "")),
            next: next.map(|next| query.href("/audit", "after", &next.to_string())),
            query,
        }
    }

    /// With and without rows, filters and further pages.
    pub fn samples() -> Vec<Self> {
        use orchestra_events::{ActorKind, Position};
        let hostile = || super::sample::HOSTILE.to_owned();
        let row = |category, kind: &str| AuditRow {
            id: uuid::Uuid::nil(),
            at: jiff::Timestamp::UNIX_EPOCH,
            category,
            kind: kind.to_owned(),
            team: Some(hostile()),
            project: Some(hostile()),
            actor_kind: ActorKind::Person,
            actor: hostile(),
            own: true,
            name: Some(hostile()),
            address: Some("2001:db8::1".to_owned()),
            user_agent: Some(hostile()),
            repos: vec![hostile()],
            model: Some(hostile()),
            outcome: hostile(),
            task: Some(super::sample::id()),
            about: Some(hostile()),
            count: 3,
            stream: "access-x".to_owned(),
            position: Position(7),
            resource: super::sample::tasks().into_iter().next().filter(|_| category == Category::Task).map(Box::new),
        };
        let rows = [
            row(Category::Task, "task"),
            row(Category::Act, "key-issued"),
            AuditRow { own: false, ..row(Category::Refusal, "access-denied") },
        ];
        let filtered = Query { team: hostile(), category: "act".to_owned(), after: hostile(), ..Query::default() };
        let next: Option<Cursor> = "00065f4a1b2c3d4e0198000000007000800000000000002a".parse().ok();
        vec![
            Self::new(&Visitor::sample(), Query::default(), &[], None),
            Self::new(&Visitor::sample(), filtered, &rows, next),
        ]
    }
}

/// `GET /audit`.
pub async fn show(
    app: web::Data<App>,
    visitor: Visitor,
    query: web::Query<Query>,
    request: HttpRequest,
) -> Result<HttpResponse, PageError> {
    let back = |problem: Problem| {
        let detail = problem.errors.first().map_or_else(
            || problem.detail.clone(),
            |field| format!("{}: {}", field.pointer.trim_start_matches('?'), field.detail),
        );
        PageError::from(Problem { detail, ..problem }).back_to("/audit", "The whole audit")
    };
    let mut given = Parameters::of_form(&request).map_err(back)?;
    let filter = audit::filter(&mut given);
    let mut after = given.parsed::<Cursor>("after", "a place in this list");
    given.finish().map_err(back)?;
    let mut rows = Vec::new();
    for _ in 0..MAX_LOOKS {
        let found = audit::page(&app, &visitor.caller, filter.clone(), after, ROWS - rows.len()).await?;
        rows.extend(found.rows);
        after = found.next;
        if after.is_none() || rows.len() >= ROWS {
            break;
        }
    }
    Ok(page(StatusCode::OK, &AuditPage::new(&visitor, query.into_inner(), &rows, after)))
}
