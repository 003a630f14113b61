//! Budgets: the caps of teams, projects, environments and task types, and where they stand.

use actix_web::{HttpRequest, HttpResponse, web};
use orchestra_events::NanoUsd;
use orchestra_events::ledger::{Budget, Cap, Scope, Standing, View};
use serde::Serialize;
use utoipa::ToSchema;

use super::body;
use super::fields::{Faults, Object};
use super::query::Parameters;
use super::resource::Usd;
use crate::App;
use crate::auth::Caller;
use crate::auth::caller::Bound;
use crate::problem::{Field, Problem, ProblemBody};

/// The largest cap on tokens; more than any team can use.
const MAX_TOKENS: u64 = 1_000_000_000_000_000;
/// The longest name of a time zone, in bytes.
const MAX_TIME_ZONE: usize = 64;

/// A cap. Absent means no limit of that kind.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CapView {
    max_usd: Option<Usd>,
    max_tokens: Option<u64>,
}

/// A cap over a time, and where it stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StandingView {
    max_usd: Option<Usd>,
    max_tokens: Option<u64>,
    /// Settled in the current period.
    spent_usd: Usd,
    /// Set aside for calls that are under way.
    reserved_usd: Usd,
    spent_tokens: u64,
    reserved_tokens: u64,
    /// When the next period begins.
    #[schema(format = "date-time")]
    resets_at: Option<String>,
}

/// A scope's budget and where it stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Budget)]
pub struct ScopeView {
    /// `team:platform`, `project:platform/infra`, `environment:platform/infra/prod`, `task-type:platform/upgrade`.
    scope: String,
    /// What one task may cost, all its attempts together.
    per_task: CapView,
    per_day: StandingView,
    per_month: StandingView,
    /// Whose midnight begins a day.
    time_zone: String,
}

/// Budgets.
#[derive(Debug, Serialize, ToSchema)]
pub struct BudgetList {
    data: Vec<ScopeView>,
}

fn standing(standing: &Standing) -> StandingView {
    StandingView {
        max_usd: standing.cap.max_nano_usd.map(Usd),
        max_tokens: standing.cap.max_tokens,
        spent_usd: Usd(standing.spent.nano_usd),
        reserved_usd: Usd(standing.reserved.nano_usd),
        spent_tokens: standing.spent.tokens,
        reserved_tokens: standing.reserved.tokens,
        resets_at: standing.resets_at.map(|time| time.to_string()),
    }
}

impl From<&View> for ScopeView {
    fn from(view: &View) -> Self {
        let task = view.budget.per_task;
        Self {
            scope: view.scope.to_string(),
            per_task: CapView { max_usd: task.max_nano_usd.map(Usd), max_tokens: task.max_tokens },
            per_day: standing(&view.day),
            per_month: standing(&view.month),
            time_zone: view.time_zone.clone(),
        }
    }
}

/// Whether a scope is the caller's to see and to set. One that they are not good for does not exist for them; one of which
/// only a part is theirs is refused, because a budget has no parts.
pub fn admit(caller: &Caller, scope: &Scope) -> Result<(), Problem> {
    let bounds = &caller.bounds;
    let (inside, open): (bool, &[Bound]) = match scope {
        Scope::Team { .. } => (true, &[Bound::Project, Bound::Environment, Bound::TaskType, Bound::Repo, Bound::Model]),
        Scope::Project { project, .. } => {
            (bounds.admits_project(Some(project)), &[Bound::Environment, Bound::TaskType, Bound::Repo, Bound::Model])
        }
        Scope::Environment { project, environment, .. } => (
            bounds.admits_project(Some(project)) && bounds.admits_environment(Some(environment)),
            &[Bound::TaskType, Bound::Repo, Bound::Model],
        ),
        Scope::TaskType { task_type, .. } => {
            (bounds.admits_task_type(Some(task_type)), &[Bound::Project, Bound::Environment, Bound::Repo, Bound::Model])
        }
    };
    if !caller.sees(scope.team()) || !inside {
        return Err(Problem::no_such_team());
    }
    caller.require_unbound("This budget", open)
}

/// The scope in the path, if it is the caller's to see.
fn visible(caller: &Caller, text: &str) -> Result<Scope, Problem> {
    let scope: Scope = text.parse().map_err(|error| Problem::no_such_scope(&error))?;
    admit(caller, &scope)?;
    Ok(scope)
}

fn cap(body: &mut Object, name: &'static str, faults: &mut Faults) -> Cap {
    let Some(mut object) = body.object(name, faults) else { return Cap::default() };
    let pointer = object.at("maxUsd");
    let max_nano_usd = object.take("maxUsd", faults).and_then(|raw| match NanoUsd::parse_decimal(raw.get()) {
        Ok(amount) => Some(amount),
        Err(error) => {
            faults.add(pointer, error.to_string());
            None
        }
    });
    let max_tokens = object.whole("maxTokens", 0, MAX_TOKENS, faults);
    object.finish(faults);
    Cap { max_nano_usd, max_tokens }
}

fn time_zone(text: &str) -> Result<(), String> {
    let known = text.len() <= MAX_TIME_ZONE && jiff::tz::TimeZone::get(text).is_ok();
    if known { Ok(()) } else { Err("is not a time zone; use a name such as Europe/Zurich".to_owned()) }
}

/// A scope's caps and where they stand.
///
/// Spending counts in every scope it belongs to from the first call on, whether or not a cap was set by then.
#[utoipa::path(get, path = "/v1/budgets/{scope}", tag = "budgets", operation_id = "getBudget",
    params(("scope" = String, Path, description = "team:TEAM, project:TEAM/PROJECT, environment:TEAM/PROJECT/ENVIRONMENT or task-type:TEAM/TYPE")),
    responses((status = 200, description = "The budget", body = ScopeView),
        (status = 404, description = "No such scope, or another team's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn get(app: web::Data<App>, caller: Caller, scope: web::Path<String>) -> Result<HttpResponse, Problem> {
    let scope = visible(&caller, &scope)?;
    let view = app.budgets.budget(&scope).await?;
    Ok(HttpResponse::Ok().json(ScopeView::from(&view)))
}

/// Gives a scope caps, in place of those it had. Every part is optional; an empty object takes them all away.
///
/// A lower cap stops new model calls; those that are under way keep what was set aside for them.
#[utoipa::path(put, path = "/v1/budgets/{scope}", tag = "budgets", operation_id = "putBudget",
    params(("scope" = String, Path)), request_body(content = super::openapi::ScopeBudgetRequest, example = json!({
        "perTask": {"maxUsd": 2}, "perMonth": {"maxUsd": 500, "maxTokens": 100000000}, "timeZone": "Europe/Zurich",
    })),
    responses((status = 200, description = "The budget as it stands now", body = ScopeView),
        (status = 404, description = "No such scope, or another team's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn put(
    app: web::Data<App>,
    caller: Caller,
    scope: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let scope = visible(&caller, &scope)?;
    let raw = body::json(&request, payload).await?;
    let mut faults = Faults::default();
    let budget = Object::read(&raw, "", &mut faults).map_or_else(Budget::default, |mut object| {
        let budget = Budget {
            per_task: cap(&mut object, "perTask", &mut faults),
            per_day: cap(&mut object, "perDay", &mut faults),
            per_month: cap(&mut object, "perMonth", &mut faults),
            time_zone: object.text("timeZone", time_zone, &mut faults),
        };
        object.finish(&mut faults);
        budget
    });
    faults.none()?;
    let view = app.budgets.set_budget(&scope, budget, caller.actor_for(scope.team())).await?;
    Ok(HttpResponse::Ok().json(ScopeView::from(&view)))
}

/// A team's budgets: the team's own first, then every scope of it that has caps.
#[utoipa::path(get, path = "/v1/budgets", tag = "budgets", operation_id = "listBudgets",
    params(("team" = Option<String>, Query, description = "The key's own team when absent; an operator names one")),
    responses((status = 200, description = "The budgets", body = BudgetList),
        (status = 404, description = "No such team, or another one", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn list(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let asked = query.text("team").or_else(|| caller.team.clone());
    query.finish()?;
    let Some(team) = asked else {
        let detail = "is required with an operator's key: whose budgets?".to_owned();
        return Err(Problem::invalid_query(vec![Field { pointer: "?team".to_owned(), detail }]));
    };
    if !caller.sees(&team) || format!("team:{team}").parse::<Scope>().is_err() {
        return Err(Problem::no_such_team());
    }
    let mut views = app.budgets.budgets(&team).await?;
    views.retain(|view| admit(&caller, &view.scope).is_ok());
    Ok(HttpResponse::Ok().json(BudgetList { data: views.iter().map(ScopeView::from).collect() }))
}
