//! `/budgets`: what a team and its parts may spend, and where that stands.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use askama::Template;
use orchestra_events::ledger::{Cap, Scope, Standing, View};
use orchestra_events::projections::{Dimension, UsageQuery};
use serde::Deserialize;

use super::error::PageError;
use super::format;
use super::html::Html;
use super::shell::{Shell, Visitor, page};
use crate::App;
use crate::auth::Caller;
use crate::auth::caller::Bound;
use crate::fragments::{BudgetBar, Fragments};
use crate::problem::Problem;

/// Most teams that are offered as links; the address bar knows the others.
const MAX_TEAMS: usize = 50;

/// The page.
#[derive(Debug, Template)]
#[template(path = "budgets.html")]
pub struct BudgetsPage {
    shell: Shell,
    teams: Vec<TeamLink>,
    scopes: Vec<ScopePanel>,
}

#[derive(Debug)]
struct TeamLink {
    name: String,
    href: String,
    chosen: bool,
}

#[derive(Debug)]
struct ScopePanel {
    name: String,
    lines: Vec<Line>,
    note: String,
}

#[derive(Debug)]
struct Line {
    title: &'static str,
    bar: Html,
    note: String,
}

/// Whose budgets.
#[derive(Debug, Default, Deserialize)]
pub struct Query {
    team: Option<String>,
}

fn caps(cap: Cap) -> Option<String> {
    let dollars = cap.max_nano_usd.map(format::usd);
    let tokens = cap.max_tokens.map(|tokens| format!("{} tokens", format::thousands(tokens)));
    let parts: Vec<_> = dollars.into_iter().chain(tokens).collect();
    (!parts.is_empty()).then(|| parts.join(" and "))
}

impl ScopePanel {
    fn new(fragments: &Fragments, view: &View) -> Self {
        let line = |title, standing: &Standing| {
            let bar = BudgetBar::new(standing.spent.nano_usd, standing.reserved.nano_usd, standing.cap.max_nano_usd);
            let tokens = format::thousands(standing.spent.tokens);
            let of =
                standing.cap.max_tokens.map_or_else(String::new, |most| format!(" of {}", format::thousands(most)));
            let until =
                standing.resets_at.map_or_else(String::new, |at| format!("; begins anew {}", format::moment(at)));
            Line { title, bar: fragments.budget_bar(&bar), note: format!("{tokens}{of} tokens{until}") }
        };
        let task =
            caps(view.budget.per_task).map_or_else(|| "no cap per task".to_owned(), |caps| format!("{caps} per task"));
        Self {
            name: view.scope.to_string(),
            lines: vec![line("Today", &view.day), line("This month", &view.month)],
            note: format!("{task}; days begin at midnight in {}", view.time_zone),
        }
    }
}

impl BudgetsPage {
    /// Pages of every kind.
    pub fn samples() -> Vec<Self> {
        use orchestra_events::NanoUsd;
        use orchestra_events::ledger::{Amount, Budget};
        let amount = |dollars: i64, tokens| Amount { nano_usd: NanoUsd::from_nanos(dollars * 1_000_000_000), tokens };
        let standing = |cap| Standing { cap, spent: amount(3, 41_000), reserved: amount(1, 9_000), resets_at: None };
        let cap = Cap { max_nano_usd: Some(NanoUsd::from_nanos(5_000_000_000)), max_tokens: Some(100_000) };
        let view = View {
            scope: "project:platform/infra".parse().unwrap_or_else(|_| unreachable!("a scope")),
            budget: Budget { per_task: cap, ..Budget::default() },
            time_zone: "Europe/Zurich".to_owned(),
            day: standing(cap),
            month: standing(Cap::default()),
        };
        let team = TeamLink { name: "a<b".to_owned(), href: "/budgets?team=a%3Cb".to_owned(), chosen: true };
        let fragments = Fragments::default();
        vec![
            Self { shell: Shell::sample(), teams: Vec::new(), scopes: Vec::new() },
            Self { shell: Shell::sample(), teams: vec![team], scopes: vec![ScopePanel::new(&fragments, &view)] },
        ]
    }
}

/// The teams that have used anything that an operator is good for, by name.
async fn known_teams(app: &App, operator: &Caller) -> Result<Vec<String>, Problem> {
    if operator.require_unbound("Usage", &[Bound::Repo, Bound::Model]).is_err() {
        // They know the team that they are here for.
        return Ok(Vec::new());
    }
    app.caught_up().await?;
    let bounds = (*operator.bounds).clone();
    let query = UsageQuery { group_by: vec![Dimension::Team], bounds, ..UsageQuery::default() };
    let report = app.read.usage(query).await?;
    let names = report.groups.into_iter().filter_map(|group| group.key.into_iter().next()?.1);
    Ok(names.take(MAX_TEAMS).collect())
}

/// Shows the budgets of a team: the visitor's own, or the one an operator chooses.
pub async fn show(app: web::Data<App>, visitor: Visitor, query: web::Query<Query>) -> Result<HttpResponse, PageError> {
    let names = match visitor.caller.only_team() {
        Some(own) => vec![own],
        None => known_teams(&app, &visitor.caller).await?,
    };
    let chosen = query.into_inner().team.filter(|team| !team.is_empty()).or_else(|| names.first().cloned());
    let scopes = match &chosen {
        Some(team) if !visitor.caller.sees(team) || format!("team:{team}").parse::<Scope>().is_err() => {
            return Err(Problem::no_such_team().into());
        }
        Some(team) => app.budgets.budgets(team).await.map_err(Problem::from)?,
        None => Vec::new(),
    };
    let teams = names
        .into_iter()
        .map(|name| TeamLink {
            // The rule for names leaves nothing to be escaped.
            href: format!("/budgets?team={name}"),
            chosen: Some(&name) == chosen.as_ref(),
            name,
        })
        .collect();
    let fragments = &app.dashboard.fragments;
    // The same as in the interface: a budget of which only a part is theirs is none of theirs.
    let visible = |view: &&View| crate::api::budgets::admit(&visitor.caller, &view.scope).is_ok();
    let scopes = scopes.iter().filter(visible).map(|view| ScopePanel::new(fragments, view)).collect();
    Ok(page(StatusCode::OK, &BudgetsPage { shell: Shell::of(&visitor), teams, scopes }))
}
