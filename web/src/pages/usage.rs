//! `/usage`: what was used, by day, team, project, model or customer, and the bills of each month.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use askama::Template;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use orchestra_events::NanoUsd;
use orchestra_events::billing::{Billing, Month};
use orchestra_events::key::Scope;
use orchestra_events::projections::{Dimension, PeriodSums, UsageGroup, UsageQuery, UsageReport};
use serde::Deserialize;

use super::error::PageError;
use super::format;
use super::shell::{Shell, Visitor, page};
use crate::App;
use crate::api::billing::visible;
use crate::api::billing_periods::StatusView;
use crate::problem::{Code, Problem};

/// The days that are shown unless a month is chosen.
const DAYS: i32 = 30;
/// Most rows of the table; the CSV has them all.
const MAX_ROWS: usize = 200;
/// Most teams that are offered as links; the address bar knows the others.
const MAX_TEAMS: usize = 50;
/// The width of a bar in the units of its picture.
const BAR: i128 = 1_000;

/// What the table may be by.
const BY: [Dimension; 7] = [
    Dimension::Day,
    Dimension::Month,
    Dimension::Team,
    Dimension::Project,
    Dimension::Model,
    Dimension::Customer,
    Dimension::TaskType,
];

fn title(by: Dimension) -> &'static str {
    match by {
        Dimension::Day => "Day",
        Dimension::Month => "Month",
        Dimension::Team => "Team",
        Dimension::Project => "Project",
        Dimension::Environment => "Environment",
        Dimension::TaskType => "Kind of work",
        Dimension::Model => "Model",
        Dimension::Customer => "Customer",
    }
}

#[derive(Debug)]
struct Choice {
    name: String,
    href: String,
    chosen: bool,
}

/// One row of the table.
#[derive(Debug)]
struct Row {
    name: String,
    bar: i128,
    tasks: String,
    tokens: String,
    sandbox: String,
    cost: String,
    refunded: Option<String>,
    billable: String,
}

impl Row {
    fn new(name: String, group: &UsageGroup, largest: NanoUsd) -> Self {
        let tokens = [group.input_tokens, group.output_tokens, group.cache_read_tokens, group.cache_write_tokens];
        let part = i128::from(group.billable.nanos().max(0)) * BAR / i128::from(largest.nanos().max(1));
        Self {
            name,
            bar: part.clamp(0, BAR),
            tasks: format::thousands(group.tasks),
            tokens: format::thousands(tokens.iter().fold(0, |sum, tokens| sum.saturating_add(*tokens))),
            sandbox: format::milliseconds(group.sandbox_ms),
            cost: format::usd(group.cost),
            refunded: (group.refunded > NanoUsd::ZERO).then(|| format::usd(group.refunded)),
            billable: format::usd(group.billable),
        }
    }
}

/// One month of the list of bills.
#[derive(Debug)]
struct Period {
    name: String,
    href: String,
    csv: String,
    chip: &'static str,
    status: &'static str,
    lines: String,
    cost: String,
    billable: String,
    /// It is over and may be closed by this visitor.
    may_close: bool,
}

/// The page.
#[derive(Debug, Template)]
#[template(path = "usage.html")]
pub struct UsagePage {
    shell: Shell,
    csrf: String,
    team: Option<String>,
    span: String,
    csv: String,
    by: &'static str,
    teams: Vec<Choice>,
    choices: Vec<Choice>,
    rows: Vec<Row>,
    more: bool,
    total: Row,
    bills: Option<Vec<Period>>,
}

/// What to show: the query of the address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    team: String,
    by: String,
    month: String,
}

/// What the query stands for.
struct Asked {
    team: Option<String>,
    by: Dimension,
    month: Option<Month>,
    from: Date,
    to: Date,
}

impl Asked {
    fn of(visitor: &Visitor, query: &Query) -> Result<Self, PageError> {
        let named = Some(query.team.clone()).filter(|team| !team.is_empty());
        let team = visitor.caller.narrow(named).ok_or_else(Problem::no_such_team)?;
        if let Some(team) = &team {
            visible(&visitor.caller, team)?;
        }
        let by = match query.by.as_str() {
            "" => Dimension::Day,
            text => text.parse().ok().filter(|by| BY.contains(by)).ok_or_else(PageError::not_found)?,
        };
        let month = match query.month.as_str() {
            "" => None,
            text => Some(text.parse::<Month>().map_err(|_| PageError::not_found())?),
        };
        let today = today();
        let (from, to) = match month {
            Some(month) => (month.first_day(), month.last_day()),
            None => (today.checked_sub((DAYS - 1).days()).unwrap_or(today), today),
        };
        Ok(Self { team, by, month, from, to })
    }

    fn href(&self, team: Option<&str>, by: Dimension, month: Option<Month>) -> String {
        let month = month.map_or_else(String::new, |month| format!("&month={month}"));
        // The rule for names leaves nothing to be escaped.
        format!("/usage?team={}&by={}{month}", team.unwrap_or_default(), by.as_str())
    }
}

fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

impl UsagePage {
    fn new(
        visitor: &Visitor,
        asked: &Asked,
        teams: Vec<String>,
        report: &UsageReport,
        bills: Option<(&Billing, &[PeriodSums])>,
    ) -> Self {
        let team = asked.team.as_deref();
        let largest = report.groups.iter().map(|group| group.billable).max().unwrap_or_default();
        let name = |group: &UsageGroup| {
            let value = group.key.first().and_then(|(_, value)| value.clone());
            value.unwrap_or_else(|| "none".to_owned())
        };
        let mut rows: Vec<_> = report.groups.iter().map(|group| Row::new(name(group), group, largest)).collect();
        if matches!(asked.by, Dimension::Day | Dimension::Month) {
            rows.reverse();
        }
        let more = rows.len() > MAX_ROWS || report.too_many;
        rows.truncate(MAX_ROWS);
        let (from, to) = (asked.from, asked.to);
        let of_team = team.map_or_else(String::new, |team| format!("&team={team}"));
        let choices = BY.into_iter().map(|by| Choice {
            name: title(by).to_owned(),
            href: asked.href(team, by, asked.month),
            chosen: by == asked.by,
        });
        let teams = teams.into_iter().map(|name| Choice {
            href: asked.href(Some(&name), asked.by, asked.month),
            chosen: Some(&*name) == team,
            name,
        });
        let closes = visitor.caller.may(Scope::BillingWrite);
        let bill = |billing: &Billing, sums: &PeriodSums| {
            let (period, team) = (sums.period, team.unwrap_or_default());
            let (chip, status) = match StatusView::of(billing, period) {
                StatusView::Open => ("running", "Open"),
                StatusView::Closing => ("retrying", "Being closed"),
                StatusView::Closed => ("succeeded", "Closed"),
            };
            let closed = billing.closed.get(&period);
            let (lines, billable) = closed.map_or((sums.lines, sums.billable), |closed| {
                (closed.totals.lines.into(), closed.totals.billable_nano_usd)
            });
            Period {
                name: period.to_string(),
                href: asked.href(Some(team), asked.by, Some(period)),
                csv: format!("/v1/billing/periods/{period}?team={team}&format=csv"),
                chip,
                status,
                lines: format::count(lines, "line", "lines"),
                cost: format::usd(sums.quantities.cost_nano_usd - sums.quantities.refunded_nano_usd),
                billable: format::usd(billable),
                may_close: closes && closed.is_none() && today() > period.last_day(),
            }
        };
        let bills = bills.map(|(billing, periods)| periods.iter().map(|sums| bill(billing, sums)).collect());
        Self {
            shell: Shell::of(visitor),
            csrf: visitor.csrf.clone(),
            team: asked.team.clone(),
            span: asked.month.map_or_else(|| format!("The last {DAYS} days"), |month| month.to_string()),
            csv: format!("/v1/usage?groupBy={}&from={from}&to={to}{of_team}&format=csv", asked.by.as_str()),
            by: title(asked.by),
            teams: teams.collect(),
            choices: choices.collect(),
            rows,
            more,
            total: Row::new("All together".to_owned(), &report.total, largest),
            bills,
        }
    }

    /// Pages of every kind.
    pub fn samples() -> Vec<Self> {
        use orchestra_events::billing::{PeriodClosed, Quantities, Totals};
        let usd = |dollars: i64| NanoUsd::from_nanos(dollars * 1_000_000_000);
        let month: Month = "2026-10".parse().unwrap_or_else(|_| unreachable!("a month"));
        let visitor = Visitor::sample();
        let asked = |team: Option<&str>, by| Asked {
            team: team.map(str::to_owned),
            by,
            month: Some(month),
            from: month.first_day(),
            to: month.last_day(),
        };
        let group = |name: Option<&str>, cost, refunded| UsageGroup {
            key: vec![(Dimension::Customer, name.map(str::to_owned))],
            tasks: 3,
            input_tokens: 1_234_567,
            cost: usd(cost),
            refunded: usd(refunded),
            billable: usd(cost - refunded),
            sandbox_ms: 61_000,
            ..UsageGroup::default()
        };
        let groups = vec![group(None, 3, 0), group(Some("<script>&'\""), 1, 2)];
        let report = UsageReport { groups, total: group(None, 4, 2), too_many: false };
        let sums = |period: Month| PeriodSums { period, lines: 1, quantities: Quantities::default(), billable: usd(2) };
        let mut billing = Billing { cut_off: Some(month), ..Billing::default() };
        let closed = PeriodClosed {
            period: month,
            through: orchestra_events::Position(7),
            totals: Totals::default(),
            digest: "00".repeat(32),
            plans: vec![0],
        };
        billing.closed.insert(month, closed);
        let periods = [sums(month.next()), sums(month)];
        vec![
            Self::new(&visitor, &asked(None, Dimension::Day), Vec::new(), &UsageReport::default(), None),
            Self::new(
                &visitor,
                &asked(Some("platform"), Dimension::Customer),
                vec!["platform".to_owned()],
                &report,
                Some((&billing, &periods)),
            ),
        ]
    }
}

/// The teams that have used anything, by name.
async fn known_teams(app: &App, visitor: &Visitor) -> Result<Vec<String>, Problem> {
    match visitor.caller.only_team() {
        Some(own) => Ok(vec![own]),
        None => Ok(app.read.billed_teams().await?.into_iter().map(|(team, _)| team).take(MAX_TEAMS).collect()),
    }
}

/// `GET /usage`.
pub async fn show(app: web::Data<App>, visitor: Visitor, query: web::Query<Query>) -> Result<HttpResponse, PageError> {
    let asked = Asked::of(&visitor, &query)?;
    app.caught_up().await?;
    let teams = known_teams(&app, &visitor).await?;
    let query = UsageQuery {
        group_by: vec![asked.by],
        from: Some(asked.from),
        to: Some(asked.to),
        team: asked.team.clone(),
        customer: None,
        bounds: (*visitor.caller.bounds).clone(),
    };
    let report = app.read.usage(query).await?;
    let reads_bills = visitor.caller.may(Scope::BillingRead);
    let bills = match asked.team.clone().filter(|_| reads_bills) {
        Some(team) => Some((app.read.billing(team.clone()).await?, app.read.billing_periods(team).await?)),
        None => None,
    };
    let bills = bills.as_ref().map(|(billing, periods)| (billing, periods.as_slice()));
    Ok(page(StatusCode::OK, &UsagePage::new(&visitor, &asked, teams, &report, bills)))
}

/// The form that closes a month.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Close {
    csrf: String,
    team: String,
}

/// `POST /usage/{period}/close`.
pub async fn close(
    app: web::Data<App>,
    visitor: Visitor,
    period: web::Path<String>,
    form: web::Form<Close>,
) -> Result<HttpResponse, PageError> {
    visitor.check_form(&form.csrf)?;
    visible(&visitor.caller, &form.team)?;
    let back = format!("/usage?team={}&month={}", form.team, period.as_str());
    let month: Month =
        period.parse().map_err(|error| Problem::new(Code::NotFound, format!("There is no such month: {error}.")))?;
    let actor = visitor.caller.actor_for(&form.team);
    let closed = app.billing.close_period(&form.team, month, actor).await;
    closed.map_err(|error| PageError::from(Problem::from(error)).back_to(back.clone(), "Back to the bills"))?;
    Ok(HttpResponse::SeeOther().insert_header((header::LOCATION, back)).finish())
}
