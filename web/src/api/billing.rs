//! Plans: what a team charges for what its tasks use.

use actix_web::{HttpRequest, HttpResponse, web};
use jiff::civil::Date;
use orchestra_actors::BillingError;
use orchestra_events::NanoUsd;
use orchestra_events::billing::event::PlanSet;
use orchestra_events::billing::plan::{HIGHEST_MARK_UP, LONGEST_NAME, MOST_OVERRIDES};
use orchestra_events::billing::{Billing, Currency, Override, Plan, Refusal, Terms};
use orchestra_events::ledger::Scope;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body;
use super::fields::{Faults, Object, step};
use super::query::Parameters;
use super::resource::Usd;
use crate::App;
use crate::auth::Caller;
use crate::problem::{Code, Field, Problem, ProblemBody};

/// Prices. What is absent is not charged for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BillingTerms)]
pub struct TermsView {
    /// The provider's cost is passed on with this much on top, in hundredths of a per cent; absent: it is not passed on.
    #[schema(minimum = 0, maximum = 1_000_000)]
    #[serde(skip_serializing_if = "Option::is_none")]
    mark_up_basis_points: Option<u32>,
    per_task_usd: Usd,
    /// For each minute that a sandbox runs, to the millisecond.
    per_minute_usd: Usd,
    per_million_input_tokens_usd: Usd,
    per_million_output_tokens_usd: Usd,
    per_million_cache_read_tokens_usd: Usd,
    per_million_cache_write_tokens_usd: Usd,
    /// The least that a month comes to for a customer for whom anything was done.
    minimum_usd: Usd,
}

impl From<&Terms> for TermsView {
    fn from(terms: &Terms) -> Self {
        Self {
            mark_up_basis_points: terms.mark_up_basis_points,
            per_task_usd: Usd(terms.per_task),
            per_minute_usd: Usd(terms.per_minute),
            per_million_input_tokens_usd: Usd(terms.per_million_input),
            per_million_output_tokens_usd: Usd(terms.per_million_output),
            per_million_cache_read_tokens_usd: Usd(terms.per_million_cache_read),
            per_million_cache_write_tokens_usd: Usd(terms.per_million_cache_write),
            minimum_usd: Usd(terms.minimum),
        }
    }
}

/// Other terms for a customer, a project, or a project of a customer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BillingOverride)]
pub struct OverrideView {
    customer: Option<String>,
    project: Option<String>,
    #[serde(flatten)]
    terms: TermsView,
}

/// A plan.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BillingPlan)]
pub struct PlanView {
    /// Counted from 1 in each team.
    version: u32,
    /// The first civil day that it goes for, until another begins.
    #[schema(format = "date")]
    effective_from: String,
    /// `USD`.
    currency: &'static str,
    #[serde(flatten)]
    terms: TermsView,
    /// Who has other terms. The narrower goes first: customer and project, then customer, then project.
    overrides: Vec<OverrideView>,
}

impl From<&PlanSet> for PlanView {
    fn from(set: &PlanSet) -> Self {
        let other = |other: &Override| OverrideView {
            customer: other.customer.clone(),
            project: other.project.clone(),
            terms: (&other.terms).into(),
        };
        Self {
            version: set.version,
            effective_from: set.plan.effective_from.to_string(),
            currency: set.plan.currency.as_str(),
            terms: (&set.plan.terms).into(),
            overrides: set.plan.overrides.iter().map(other).collect(),
        }
    }
}

/// The plans of a team.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BillingPlans)]
pub struct PlansView {
    team: String,
    /// The last month that is closed: a plan begins after it.
    closed_through: Option<String>,
    /// Every plan that was set, the last one first. Of those that have begun on a day, the one that began last goes;
    /// before the first, the provider's cost is passed on as it is.
    versions: Vec<PlanView>,
}

impl PlansView {
    fn new(team: &str, billing: &Billing) -> Self {
        Self {
            team: team.to_owned(),
            closed_through: billing.cut_off.map(|last| last.to_string()),
            versions: billing.plans.iter().rev().map(PlanView::from).collect(),
        }
    }
}

impl From<BillingError> for Problem {
    fn from(error: BillingError) -> Self {
        let field = |pointer: &str, refusal: &Refusal| {
            Self::invalid(vec![Field { pointer: pointer.to_owned(), detail: refusal.to_string() }])
        };
        match error {
            BillingError::Refused(refusal) => match &refusal {
                Refusal::PlanTooEarly(_) => field("/effectiveFrom", &refusal),
                Refusal::NoPrice | Refusal::PriceOutOfRange => field("", &refusal),
                Refusal::BadOverride | Refusal::TooManyOverrides => field("/overrides", &refusal),
                Refusal::TooManyPlans
                | Refusal::NotEnded(_)
                | Refusal::EarlierOpen(_)
                | Refusal::BeforeTheFirst(_)
                | Refusal::NotClosing(_)
                | Refusal::LinesMissing { .. }
                | Refusal::NotClosed(_) => Self::new(Code::Conflict, format!("Nothing was done: {refusal}.")),
            },
            BillingError::TooManyLines | BillingError::Contended => {
                Self::new(Code::Conflict, format!("Nothing was done: {error}."))
            }
            BillingError::Store(error) => error.into(),
            BillingError::Read(error) => error.into(),
            BillingError::Damaged(what) => Self::internal(what),
            BillingError::Team(_) => Self::no_such_team(),
        }
    }
}

/// A team whose bills this caller may read. That they are the whole team's, and not for a key that is good for a part of it,
/// the guard has said before.
pub fn visible(caller: &Caller, team: &str) -> Result<(), Problem> {
    let is_name = format!("team:{team}").parse::<Scope>().is_ok();
    if !is_name || !caller.sees(team) {
        return Err(Problem::no_such_team());
    }
    Ok(())
}

/// The team that a query is about: the key's own, or the one that an operator names.
pub fn team_of(caller: &Caller, asked: Option<String>) -> Result<String, Problem> {
    let Some(team) = asked.or_else(|| caller.team.clone()) else {
        let detail = "is required with an operator's key: whose bills?".to_owned();
        return Err(Problem::invalid_query(vec![Field { pointer: "?team".to_owned(), detail }]));
    };
    visible(caller, &team)?;
    Ok(team)
}

/// A team's plans.
#[utoipa::path(get, path = "/v1/billing/plans/{team}", tag = "billing", operation_id = "getBillingPlans",
    params(("team" = String, Path)),
    responses((status = 200, description = "Every plan that was set", body = PlansView),
        (status = 400, description = "Parameters that do not do", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such team, or another one", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn plans(
    app: web::Data<App>,
    caller: Caller,
    team: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    Parameters::of(&request)?.finish()?;
    visible(&caller, &team)?;
    app.caught_up().await?;
    let billing = app.read.billing(team.clone()).await?;
    Ok(HttpResponse::Ok().json(PlansView::new(&team, &billing)))
}

fn usd(object: &mut Object, name: &'static str, faults: &mut Faults) -> NanoUsd {
    let pointer = object.at(name);
    let Some(raw) = object.take(name, faults) else { return NanoUsd::ZERO };
    NanoUsd::parse_decimal(raw.get()).unwrap_or_else(|error| {
        faults.add(pointer, error.to_string());
        NanoUsd::ZERO
    })
}

fn terms(object: &mut Object, faults: &mut Faults) -> Terms {
    let mark_up = object.whole("markUpBasisPoints", 0, HIGHEST_MARK_UP.into(), faults);
    Terms {
        mark_up_basis_points: mark_up.and_then(|points| u32::try_from(points).ok()),
        per_task: usd(object, "perTaskUsd", faults),
        per_minute: usd(object, "perMinuteUsd", faults),
        per_million_input: usd(object, "perMillionInputTokensUsd", faults),
        per_million_output: usd(object, "perMillionOutputTokensUsd", faults),
        per_million_cache_read: usd(object, "perMillionCacheReadTokensUsd", faults),
        per_million_cache_write: usd(object, "perMillionCacheWriteTokensUsd", faults),
        minimum: usd(object, "minimumUsd", faults),
    }
}

fn name(text: &str) -> Result<(), String> {
    let fits = (1..=LONGEST_NAME).contains(&text.len()) && !text.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(format!("expected 1 to {LONGEST_NAME} bytes without control characters")) }
}

fn overrides(raw: Option<&RawValue>, faults: &mut Faults) -> Vec<Override> {
    let Some(raw) = raw else { return Vec::new() };
    let items: Vec<Box<RawValue>> = match serde_json::from_str(raw.get()) {
        Ok(items) => items,
        Err(_) => {
            faults.add("/overrides", "expected a list of objects");
            return Vec::new();
        }
    };
    if items.len() > MOST_OVERRIDES {
        faults.add("/overrides", format!("at most {MOST_OVERRIDES}"));
        return Vec::new();
    }
    let read = |(index, item): (usize, Box<RawValue>)| {
        let mut object = Object::read(&item, &step("/overrides", &index.to_string()), faults)?;
        let customer = object.text("customer", name, faults);
        let project = object.text("project", name, faults);
        let terms = terms(&mut object, faults);
        object.finish(faults);
        Some(Override { customer, project, terms })
    };
    items.into_iter().enumerate().filter_map(read).collect()
}

/// Reads a plan, or every fault of it.
fn plan(raw: &RawValue) -> Result<Plan, Problem> {
    let mut faults = Faults::default();
    let mut effective_from = None;
    let mut plan =
        Plan { effective_from: Date::ZERO, currency: Currency::Usd, terms: Terms::default(), overrides: Vec::new() };
    if let Some(mut object) = Object::read(raw, "", &mut faults) {
        let is_day = |text: &str| match text.parse::<Date>() {
            Ok(_) => Ok(()),
            Err(_) => Err("expected a day such as 2026-12-01".to_owned()),
        };
        let is_usd = |text: &str| if text == "USD" { Ok(()) } else { Err("only USD is known".to_owned()) };
        let before = faults.count();
        effective_from = object.text("effectiveFrom", is_day, &mut faults).and_then(|text| text.parse().ok());
        if effective_from.is_none() && faults.count() == before {
            faults.add("/effectiveFrom", "is required: the first day that the plan goes for");
        }
        object.text("currency", is_usd, &mut faults);
        plan.terms = terms(&mut object, &mut faults);
        let raw = object.take("overrides", &mut faults);
        plan.overrides = overrides(raw.as_deref(), &mut faults);
        object.finish(&mut faults);
    }
    faults.none()?;
    plan.effective_from = effective_from.unwrap_or(Date::ZERO);
    Ok(plan)
}

/// Lets a plan go from its first day on.
///
/// It prices every charge from that day on, those that were made already included, unless their month is closed: what
/// lies in a closed month keeps its price. The same plan said again changes nothing.
#[utoipa::path(put, path = "/v1/billing/plans/{team}", tag = "billing", operation_id = "putBillingPlan",
    params(("team" = String, Path)), request_body(content = super::openapi::BillingPlanRequest),
    responses((status = 200, description = "Every plan that was set", body = PlansView),
        (status = 404, description = "No such team, or another one", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "Too many plans, or somebody else changed them at the same moment", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Fields that do not do", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn put_plan(
    app: web::Data<App>,
    caller: Caller,
    team: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    visible(&caller, &team)?;
    let plan = plan(&body::json(&request, payload).await?)?;
    let billing = app.billing.set_plan(&team, plan, caller.actor_for(&team)).await?;
    Ok(HttpResponse::Ok().json(PlansView::new(&team, &billing)))
}
